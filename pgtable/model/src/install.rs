//! Register writes: which tree a PE runs on, and under which VMID.
//!
//! Writes are looked at when the PE does something else next, so that the order
//! in which VTCR_EL2 and VTTBR_EL2 are written does not matter.

use crate::Regime;
use crate::machine::{Context, Machine, NO_TREE, Tree, Verdict};
use crate::shape::{Shape, vmid};
use crate::unclean::{MAX_PES, Unclean};
use crate::violation::{Kind, Violation};

impl Machine {
    /// Looks up what the registers of the current PE install.
    pub(crate) fn settle(&mut self) -> Verdict {
        if !self.pe().unsettled {
            return Ok(());
        }
        self.pe().unsettled = false;
        let pe = &self.pes[usize::from(self.now)];
        let (vtcr, vttbr, ttbr0, mair) = (pe.vtcr, pe.vttbr, pe.ttbr0, pe.mair);
        let stage2 = match self.toy {
            Some(shape) => Some(Ok(shape)),
            None if pe.vtcr == 0 => None,
            None => Some(Shape::stage2(pe.vtcr, pe.hcr, &self.features)),
        };
        let el2 = (pe.tcr != 0).then(|| Shape::el2(pe.tcr, &self.features));
        let bit = 1 << self.now;
        for tree in &mut self.trees {
            tree.installed &= !bit;
        }
        self.pe().stage2 = None;
        self.pe().el2 = None;
        if let Some(shape) = stage2 {
            let shape = shape.map_err(|e| self.violation(Kind::BadSetup, e.rule))?;
            self.pe().shape = Some(shape);
            if vttbr & 0xffff_ffff_fffe != 0 {
                let vmid = match self.toy {
                    Some(_) => (vttbr >> 48) as u16,
                    None => vmid(vttbr, vtcr, &self.features),
                };
                let at = self.install(shape, vttbr, vmid, 0)?;
                self.pe().stage2 = Some(at);
            }
        }
        if let Some(shape) = el2 {
            let shape = shape.map_err(|e| self.violation(Kind::BadSetup, e.rule))?;
            self.pe().el2_shape = Some(shape);
            if ttbr0 & 0xffff_ffff_fffe != 0 {
                let at = self.install(shape, ttbr0, 0, mair)?;
                self.pe().el2 = Some(at);
            }
        }
        Ok(())
    }

    pub(crate) fn install(
        &mut self,
        shape: Shape,
        ttbr: u64,
        vmid: u16,
        mair: u64,
    ) -> Result<(u32, u32), Box<Violation>> {
        let (root, low) = shape
            .root(ttbr)
            .map_err(|e| self.violation(Kind::BadSetup, e.rule))?;
        if low != 0 {
            let mut v = self.violation(
                Kind::UnalignedRoot,
                format!("bits {low:#x} of the base are below its alignment"),
            );
            v.pa = Some(root | low);
            return Err(v);
        }
        let known = self.known_tree(shape, root, mair)?;
        let tree = known.unwrap_or_else(|| self.new_tree(shape, root, mair));
        let context = self.context_of(tree, vmid, shape.regime);
        let bit = 1 << self.now;
        self.trees[tree as usize].installed |= bit;
        let c = &mut self.contexts[context as usize];
        c.cached |= bit;
        c.flush.iter_mut().for_each(|mask| *mask &= !bit);
        if known.is_none() {
            self.adopt_root(tree)?;
        }
        if self.clashes(context) {
            self.contexts[context as usize].clash = true;
            let clean = self.contexts[context as usize].unclean.is_empty();
            if !clean || !self.root_is_empty(tree) {
                return Err(self.reused(vmid));
            }
        }
        Ok((tree, context))
    }

    /// The tree of this root, if it was installed before and lives.
    fn known_tree(
        &mut self,
        shape: Shape,
        root: u64,
        mair: u64,
    ) -> Result<Option<u32>, Box<Violation>> {
        let known = self
            .trees
            .iter()
            .position(|t| !t.retired && t.root == root && t.shape.regime == shape.regime);
        let Some(i) = known else {
            return Ok(None);
        };
        if self.trees[i].shape == shape && self.trees[i].mair == mair {
            return Ok(Some(i as u32));
        }
        // The same root for something new, after the old was let go.
        if self.may_go(i as u32) {
            self.retire(i as u32);
            return Ok(None);
        }
        Err(self.violation(
            Kind::BadSetup,
            "this tree was installed with other control registers before",
        ))
    }

    fn new_tree(&mut self, shape: Shape, root: u64, mair: u64) -> u32 {
        let tree = Tree {
            shape,
            root,
            mair,
            contexts: Vec::new(),
            installed: 0,
            retired: false,
            contiguous: false,
            spec: None,
            changed: (0, u64::MAX),
        };
        let slot = self.trees.iter().position(|t| t.retired);
        place(&mut self.trees, slot, tree)
    }

    /// The context of a tree under a VMID, made if there was none.
    fn context_of(&mut self, tree: u32, vmid: u16, regime: Regime) -> u32 {
        let known = self
            .contexts
            .iter()
            .position(|c| c.tree == tree && c.vmid == vmid);
        if let Some(i) = known {
            return i as u32;
        }
        let context = Context {
            tree,
            vmid,
            regime,
            unclean: Unclean::default(),
            cached: 0,
            flush: [0; MAX_PES],
            clash: false,
        };
        let slot = self.contexts.iter().position(|c| c.tree == NO_TREE);
        let i = place(&mut self.contexts, slot, context);
        self.trees[tree as usize].contexts.push(i);
        i
    }

    /// True if TLBs may hold entries of another tree under the same VMID.
    pub(crate) fn clashes(&self, context: u32) -> bool {
        let mine = &self.contexts[context as usize];
        self.contexts.iter().any(|c| {
            c.tree != mine.tree
                && c.tree != NO_TREE
                && c.regime == mine.regime
                && c.vmid == mine.vmid
                && c.cached != 0
                && !(c.unclean.is_empty() && self.root_is_empty(c.tree))
        })
    }

    /// A tree whose VMID another tree had gets its first entries.
    pub(crate) fn check_clash(&mut self, tree: u32) -> Verdict {
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i];
            if !self.contexts[c as usize].clash {
                continue;
            }
            if self.clashes(c) {
                return Err(self.reused(self.contexts[c as usize].vmid));
            }
            self.contexts[c as usize].clash = false;
        }
        Ok(())
    }

    pub(crate) fn reused(&self, vmid: u16) -> Box<Violation> {
        self.violation(
            Kind::VmidReused,
            format!("VMID {vmid} still tags entries of another tree"),
        )
    }
}

/// Puts `item` into a slot that is free, or at the end.
fn place<T>(list: &mut Vec<T>, slot: Option<usize>, item: T) -> u32 {
    match slot {
        Some(i) => {
            list[i] = item;
            i as u32
        }
        None => {
            list.push(item);
            list.len() as u32 - 1
        }
    }
}

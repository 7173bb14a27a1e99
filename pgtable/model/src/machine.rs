//! The machine: PEs, memory, and every tree a PE has ever installed.
//!
//! [`Machine::on`] takes one event and says whether a rule was broken. State is
//! spread over the modules beside this one: `tree` follows descriptors,
//! `maintain` follows barriers and TLBIs, `pages` follows ownership, and
//! `check` answers questions.

use crate::event::{Accesses, Barrier, Domain, Event, EventKind, How, Reg};
use crate::features::Features;
use crate::hash::FastMap;
use crate::mem::{LastStore, Mem};
use crate::ranges::RangeMap;
use crate::shape::{Regime, Shape, vmid};
use crate::spec::Spec;
use crate::tree::Stored;
use crate::unclean::{Class, MAX_PES, PeMask, Progress, Run, Unclean, Was, note};
use crate::violation::{Kind, Violation};

/// A store that some walkers may not see yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub pa: u64,
    pub old: u64,
    pub event: u64,
    /// The PE's own walker sees the new value.
    pub local: bool,
}

/// A change to the tables that a PE's own EL2 runs on, until it may rely on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum El2Change {
    #[default]
    None,
    /// Stored.
    Stored,
    /// Completed by a DSB; an ISB is due.
    Visible,
}

/// One PE.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pe {
    pub vttbr: u64,
    pub vtcr: u64,
    pub hcr: u64,
    pub ttbr0: u64,
    pub tcr: u64,
    pub mair: u64,
    /// VTTBR_EL2 before the first write since the last ISB.
    pub old_vttbr: Option<u64>,
    /// A register was written since the last ISB.
    pub unsynced: bool,
    /// The registers changed since the trees below were looked up.
    pub unsettled: bool,
    pub shape: Option<Shape>,
    pub el2_shape: Option<Shape>,
    /// Installed stage 2: tree and context.
    pub stage2: Option<(u32, u32)>,
    /// Installed EL2 stage 1.
    pub el2: Option<(u32, u32)>,
    pub pending: Vec<Pending>,
    /// Last event that ordered earlier stores before later ones.
    pub ordered: u64,
    /// Last event that completed earlier stores.
    pub completed: u64,
    /// A TLBI was completed and no ISB followed.
    pub needs_isb: bool,
    pub el2_change: El2Change,
}

/// A tree of tables, from the first time a PE installed it.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub shape: Shape,
    pub root: u64,
    pub mair: u64,
    pub contexts: Vec<u32>,
    /// PEs that have it installed now.
    pub installed: PeMask,
    pub retired: bool,
    /// A leaf with the contiguous hint was seen.
    pub contiguous: bool,
    pub spec: Option<Spec>,
}

/// A tree under one VMID (EL2 has one context without).
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub tree: u32,
    pub vmid: u16,
    pub regime: Regime,
    pub unclean: Unclean,
    /// PEs that may hold entries of this context at all.
    pub cached: PeMask,
    /// A whole-context TLBI is under way, per issuer: the PEs it reaches.
    pub flush: [PeMask; MAX_PES],
    /// Another tree had this VMID when this one was installed.
    pub clash: bool,
}

/// The tree of a context whose tree is gone.
pub(crate) const NO_TREE: u32 = u32::MAX;

/// A table that walkers may read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub base: u64,
    pub entries: u64,
    pub tree: u32,
    pub level: i8,
    pub ia: u64,
    /// The removal that detached it, 0 while linked.
    pub tag: u32,
}

/// A fault whose entry already allowed the access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultNote {
    pub pe: u8,
    pub ia: u64,
    pub access: u8,
    pub desc: u64,
    pub stage: u8,
}

/// Counts of what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Stores to words of tables that walkers may read.
    pub live_stores: u64,
    /// All stores.
    pub stores: u64,
    /// TLB invalidations.
    pub tlbis: u64,
    /// DSBs.
    pub dsbs: u64,
    /// ISBs.
    pub isbs: u64,
    /// Pages or ranges allocated less those freed, in bytes.
    pub table_bytes: u64,
}

/// The modelled machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) features: Features,
    pub(crate) all: PeMask,
    pub(crate) toy: Option<Shape>,
    pub(crate) pes: Vec<Pe>,
    pub(crate) mem: Mem,
    pub(crate) trees: Vec<Tree>,
    pub(crate) contexts: Vec<Context>,
    pub(crate) tables: FastMap<u64, Table>,
    /// Distinct table sizes in use, in bytes.
    pub(crate) sizes: Vec<u64>,
    /// Leaves by (output address | log2 size, tree).
    pub(crate) outputs: FastMap<(u64, u32), u32>,
    pub(crate) clean_data: RangeMap<bool>,
    pub(crate) clean_insn: RangeMap<bool>,
    pub(crate) window: Option<(u64, u64)>,
    pub(crate) faults: Vec<FaultNote>,
    pub(crate) event: u64,
    pub(crate) now: u8,
    pub(crate) next_tag: u32,
    /// The removal that the store under judgement makes and replaces at once,
    /// as FEAT_BBM allows.
    pub(crate) exempt: u32,
    pub(crate) stats: Stats,
    pub(crate) scratch: Vec<(u64, u64)>,
}

/// Largest range of table memory that one event may speak of, in bytes.
pub(crate) const LARGEST: u64 = 1 << 28;

/// The result of judging an event.
pub type Verdict = Result<(), Box<Violation>>;

impl Machine {
    /// A machine of `pes` PEs (1 to 8) with these features, registers zero and
    /// HCR_EL2.FWB as the features have it.
    pub fn new(features: Features, pes: usize) -> Self {
        let pes = pes.clamp(1, MAX_PES);
        let hcr = u64::from(features.fwb) << 46;
        let pe = Pe {
            hcr,
            ..Pe::default()
        };
        Self {
            features,
            all: ((1u16 << pes) - 1) as PeMask,
            toy: None,
            pes: vec![pe; pes],
            mem: Mem::default(),
            trees: Vec::new(),
            contexts: Vec::new(),
            tables: FastMap::default(),
            sizes: Vec::new(),
            outputs: FastMap::default(),
            clean_data: RangeMap::default(),
            clean_insn: RangeMap::default(),
            window: None,
            faults: Vec::new(),
            event: 0,
            now: 0,
            next_tag: 1,
            exempt: 0,
            stats: Stats::default(),
            scratch: Vec::new(),
        }
    }

    /// A machine whose stage 2 has `shape`, whatever VTCR_EL2 says.
    pub fn toy(shape: Shape, features: Features, pes: usize) -> Self {
        let mut machine = Self::new(features, pes);
        machine.toy = Some(shape);
        machine
    }

    /// Features.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Physical memory, newest values.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// What happened so far, counted.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Events taken so far.
    pub fn events(&self) -> u64 {
        self.event
    }

    /// Takes an event.
    ///
    /// # Errors
    /// The rule it breaks. The machine goes on as if the rule had been kept
    /// where that makes sense, but verdicts after the first are for hints.
    pub fn on(&mut self, event: Event) -> Verdict {
        self.event += 1;
        self.now = event.pe;
        if usize::from(event.pe) >= self.pes.len() {
            self.now = 0;
            return self.fail(Kind::BadEvent, "no such PE");
        }
        if !matches!(event.kind, EventKind::Write { .. }) {
            self.settle()?;
        }
        match event.kind {
            EventKind::Store { pa, value, how } => self.store(pa, value, how),
            EventKind::Cas {
                pa,
                expected,
                value,
                release,
            } => {
                if self.mem.load(pa) != expected {
                    return self.fail(
                        Kind::BadEvent,
                        "a compare-and-swap found another value than memory holds",
                    );
                }
                let how = if release {
                    How::AtomicRelease
                } else {
                    How::Atomic
                };
                self.store(pa, value, how)
            }
            EventKind::Zero { pa, len } => self.zero(pa, len),
            EventKind::Barrier(barrier) => self.barrier(barrier),
            EventKind::Tlbi { op, xt } => self.tlbi(op, xt),
            EventKind::Write { reg, value } => {
                self.write(reg, value);
                Ok(())
            }
            EventKind::Alloc { pa, len, zeroed } => self.alloc(pa, len, zeroed),
            EventKind::Free { pa, len } => self.free(pa, len),
            EventKind::Own { pa, len, owner } => self.own(pa, len, owner),
            EventKind::CleanData { pa, len } => {
                self.clean_data.set(pa, pa.saturating_add(len), true);
                Ok(())
            }
            EventKind::InvalidateInstructions { pa, len } => {
                self.clean_insn.set(pa, pa.saturating_add(len), true);
                Ok(())
            }
            EventKind::Fault { ia, access } => self.fault(ia, access),
            EventKind::Window { lo, hi } => {
                self.window = (hi != 0).then_some((lo, hi));
                Ok(())
            }
            EventKind::Spec(promise) => self.promise(promise),
            EventKind::Quiesce { lo, hi } => self.quiesce(lo, hi),
        }
    }

    /// Takes events of one PE until one breaks a rule.
    ///
    /// # Errors
    /// As [`on`](Self::on).
    pub fn run(&mut self, pe: u8, kinds: impl IntoIterator<Item = EventKind>) -> Verdict {
        for kind in kinds {
            self.on(Event { pe, kind })?;
        }
        Ok(())
    }

    pub(crate) fn pe(&mut self) -> &mut Pe {
        &mut self.pes[usize::from(self.now)]
    }

    pub(crate) fn violation(&self, kind: Kind, detail: impl Into<String>) -> Box<Violation> {
        Box::new(Violation {
            kind,
            shown_by: None,
            event: self.event,
            since: None,
            pe: self.now,
            ia: None,
            level: None,
            pa: None,
            detail: detail.into(),
        })
    }

    pub(crate) fn fail(&self, kind: Kind, detail: impl Into<String>) -> Verdict {
        Err(self.violation(kind, detail))
    }

    /// Names the cause that an unclean entry is not clean yet.
    pub(crate) fn blame(
        &self,
        regime: Regime,
        class: Class,
        ia: u64,
        run: &Run,
        shown: Kind,
    ) -> Box<Violation> {
        let p = &run.progress;
        let tried = |bit: u16| p.notes & bit != 0;
        let missing_s2 = p.s2 != self.all;
        let cause = if missing_s2 {
            if p.s2 != 0 {
                Some(Kind::LocalOnly)
            } else if p.s2_pending.iter().any(|&m| m != 0) {
                Some(Kind::MissingDsb)
            } else if tried(note::EARLY) {
                Some(Kind::TlbiBeforeDsb)
            } else if tried(note::ISB) {
                Some(Kind::MissingIsb)
            } else if tried(note::TG) {
                Some(Kind::TgMismatch)
            } else if tried(note::TTL) {
                Some(Kind::TtlMismatch)
            } else if tried(note::LAST_LEVEL | note::REFILL) {
                Some(Kind::LastLevelForTable)
            } else if tried(note::GROUP) {
                Some(Kind::ContiguousAlive)
            } else if tried(note::WRONG_VMID) {
                Some(Kind::WrongVmid)
            } else {
                None
            }
        } else if class.0 != Was::Table && regime == Regime::Stage2 && p.s1 != self.all {
            if p.s1 != 0 {
                Some(Kind::LocalOnly)
            } else if p.s1_pending.iter().any(|&m| m != 0) {
                Some(Kind::MissingDsb)
            } else if tried(note::REGIME) {
                Some(Kind::WrongVmid)
            } else if tried(note::S1_EARLY) {
                Some(Kind::Stage1BeforeStage2)
            } else {
                Some(Kind::MissingStage1)
            }
        } else {
            Some(Kind::MissingRepeat)
        };
        let mut v = self.violation(
            cause.unwrap_or(shown),
            format!(
                "a {} at level {} ({}) is not clean",
                match class.0 {
                    Was::Leaf => "leaf that was removed",
                    Was::Table => "table that was removed",
                    Was::Loose => "leaf that lost rights",
                },
                class.1,
                progress_words(p, self.all, class.0, regime),
            ),
        );
        v.shown_by = cause.map(|_| shown);
        v.ia = Some(ia);
        v.level = Some(class.1);
        v.since = Some(run.since);
        v
    }

    fn store(&mut self, pa: u64, value: u64, how: How) -> Verdict {
        if !pa.is_multiple_of(8) {
            return self.fail(Kind::BadEvent, "a store that is not aligned to 8 bytes");
        }
        let last = LastStore {
            pe: self.now,
            event: self.event,
        };
        self.stats.stores += 1;
        let old = self.mem.swap(pa, value, last);
        self.stored(Stored {
            pa,
            old,
            new: value,
            how,
        })
    }

    fn zero(&mut self, pa: u64, len: u64) -> Verdict {
        if !pa.is_multiple_of(8)
            || !len.is_multiple_of(8)
            || len > LARGEST
            || pa.checked_add(len).is_none()
        {
            return self.fail(Kind::BadEvent, "a range of zeros that is not words");
        }
        // Live words go through the automaton one by one.
        let mut live = Vec::new();
        if !self.tables.is_empty() {
            self.mem.nonzero(pa, len / 8, &mut live);
            live.retain(|&(index, _)| self.table_of(pa + index * 8).is_some());
        }
        for (index, _) in live {
            self.store(pa + index * 8, 0, How::Plain)?;
        }
        let last = LastStore {
            pe: self.now,
            event: self.event,
        };
        self.mem.zero(pa, len, last);
        Ok(())
    }

    fn write(&mut self, reg: Reg, value: u64) {
        let pe = self.pe();
        match reg {
            Reg::Vttbr => {
                pe.old_vttbr.get_or_insert(pe.vttbr);
                pe.vttbr = value;
            }
            Reg::Vtcr => pe.vtcr = value,
            Reg::Hcr => pe.hcr = value,
            Reg::Ttbr0El2 => pe.ttbr0 = value,
            Reg::TcrEl2 => pe.tcr = value,
            Reg::MairEl2 => pe.mair = value,
        }
        pe.unsynced = true;
        pe.unsettled = true;
    }

    fn barrier(&mut self, barrier: Barrier) -> Verdict {
        match barrier {
            Barrier::Isb => {
                self.stats.isbs += 1;
                let pe = self.pe();
                pe.old_vttbr = None;
                pe.unsynced = false;
                pe.needs_isb = false;
                if pe.el2_change == El2Change::Visible {
                    pe.el2_change = El2Change::None;
                }
            }
            Barrier::Dmb(_, Accesses::Loads) => {}
            Barrier::Dmb(..) => {
                let event = self.event;
                self.pe().ordered = event;
            }
            Barrier::Dsb(domain, accesses) => {
                self.stats.dsbs += 1;
                self.dsb(domain != Domain::NonShareable, accesses);
            }
        }
        Ok(())
    }

    /// Looks up what the registers of the current PE install.
    fn settle(&mut self) -> Verdict {
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

    fn install(
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
        let mut known = self
            .trees
            .iter()
            .position(|t| !t.retired && t.root == root && t.shape.regime == shape.regime);
        // The same root for something new, after the old was let go.
        if let Some(i) = known
            && (self.trees[i].shape != shape || self.trees[i].mair != mair)
            && self.may_go(i as u32)
        {
            self.retire(i as u32);
            known = None;
        }
        let tree = match known {
            Some(i) => {
                if self.trees[i].shape != shape || self.trees[i].mair != mair {
                    return Err(self.violation(
                        Kind::BadSetup,
                        "this tree was installed with other control registers before",
                    ));
                }
                i as u32
            }
            None => {
                let tree = Tree {
                    shape,
                    root,
                    mair,
                    contexts: Vec::new(),
                    installed: 0,
                    retired: false,
                    contiguous: false,
                    spec: None,
                };
                let slot = self.trees.iter().position(|t| t.retired);
                place(&mut self.trees, slot, tree)
            }
        };
        let context = self
            .contexts
            .iter()
            .position(|c| c.tree == tree && c.vmid == vmid);
        let context = match context {
            Some(i) => i as u32,
            None => {
                let context = Context {
                    tree,
                    vmid,
                    regime: shape.regime,
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
        };
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
}

impl Machine {
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

fn progress_words(p: &Progress, all: PeMask, was: Was, regime: Regime) -> String {
    let mut out = String::new();
    let mut say = |what: &str, mask: PeMask| {
        if !out.is_empty() {
            out.push_str(", ");
        }
        let state = if mask == all {
            "yes"
        } else if mask == 0 {
            "no"
        } else {
            "some PEs"
        };
        out.push_str(what);
        out.push(' ');
        out.push_str(state);
    };
    say("visible", p.guard);
    say("invalidated", p.s2);
    if was != Was::Table && regime == Regime::Stage2 {
        say("combined entries gone", p.s1);
    }
    out
}

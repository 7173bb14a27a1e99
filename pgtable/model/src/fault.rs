//! Faults that come again: an entry already allows the access, but a stale one
//! in this PE's TLB does not, and nobody invalidates it.

use crate::descriptor::Perms;
use crate::machine::{FaultNote, Machine, Verdict};
use crate::shape::Regime;
use crate::tlbi::{Extent, TlbiKind, TlbiOp};
use crate::violation::Kind;
use crate::walker::walk;

impl Machine {
    /// A fault was handled and the access is tried again.
    pub(crate) fn fault(&mut self, ia: u64, access: u8) -> Verdict {
        let pe = self.now;
        let Some((tree, context)) = self.pe().stage2 else {
            return Ok(());
        };
        let vmid = self.contexts[context as usize].vmid;
        let t = &self.trees[tree as usize];
        let now = walk(&t.shape, t.root, t.mair, ia, |pa| self.mem.load(pa));
        let page = ia & !((1 << t.shape.page_bits) - 1);
        let at = self
            .faults
            .iter()
            .position(|n| (n.pe, n.vmid, n.ia, n.access) == (pe, vmid, page, access));
        let earlier = at.map(|i| self.faults.swap_remove(i));
        let Ok(translation) = now else {
            return Ok(());
        };
        if translation.allows(Perms(access)).is_err() {
            return Ok(());
        }
        if let Some(n) = earlier
            && n.desc == translation.desc
            && n.stage < 4
        {
            let mut v = self.violation(
                Kind::Livelock,
                "the entry allows the access, the fault came twice, nothing was invalidated",
            );
            v.ia = Some(page);
            return Err(v);
        }
        self.faults.push(FaultNote {
            pe,
            vmid,
            level: translation.level,
            ia: page,
            access,
            desc: translation.desc,
            stage: 0,
        });
        Ok(())
    }

    /// Follows the invalidation that a handled fault asks for on its own PE: of
    /// its VMID, of the page, with the leaf's own level if it names one.
    pub(crate) fn note_faults(
        &mut self,
        op: TlbiOp,
        extent: Option<&Extent>,
        issuer: usize,
        vmid: u16,
    ) {
        let mine = |n: &&mut FaultNote| {
            usize::from(n.pe) == issuer && (n.vmid == vmid || op.kind == TlbiKind::Alle1)
        };
        for n in self.faults.iter_mut().filter(mine) {
            match (op.kind, extent) {
                (TlbiKind::Vmalls12e1 | TlbiKind::Alle1, _) => n.stage = 3,
                (TlbiKind::Vmalle1, _) if n.stage == 2 => n.stage = 3,
                (kind, Some(e))
                    if kind.regime() == Regime::Stage2
                        && n.stage == 0
                        && (e.lo..e.hi).contains(&n.ia)
                        && e.leaf(n.level)
                        && e.mismatch.is_none() =>
                {
                    n.stage = 1;
                }
                _ => {}
            }
        }
    }

    pub(crate) fn complete_faults(&mut self, issuer: usize) -> bool {
        let mut any = false;
        for n in self
            .faults
            .iter_mut()
            .filter(|n| usize::from(n.pe) == issuer)
        {
            if n.stage == 1 || n.stage == 3 {
                n.stage += 1;
                any = true;
            }
        }
        any
    }
}

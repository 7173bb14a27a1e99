//! The end of a tree, whole.

use crate::addr::{Ipa, Pa};
use crate::error::Budget;
use crate::format::{self, VALID};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::release::{Cut, Release, Tell};
use crate::sink::{LeafSink, RemovedLeaf, RemovedRun};
use crate::stage2::Stage2;
use crate::sync::Synced;
use crate::tree::Core;

impl<M: TableMem> Stage2<M> {
    /// Takes everything out of the tree, live or not: the root's entries
    /// first, then one invalidation of the whole VMID, then table by table
    /// without a store or a TLBI for what is in them. `sink` is told of all
    /// leaves. Caches are not maintained: what the guest wrote is of no use
    /// any more, and whoever gives the memory on overwrites it.
    ///
    /// Work is in proportion to the tables that exist. Returns the first IPA
    /// not done: call again from there until it is the end of the space.
    /// The root then is empty, no TLB knows the VMID, and the root's pages
    /// and the VMID are free as soon as no CPU has them loaded.
    ///
    /// The way over the root comes first because this CPU's walker may use
    /// the tables until the moment it has another `VTTBR_EL2`.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let mut at = Ipa::new(0);
    /// while at.get() < 1 << 39 {
    ///     at = tree.teardown(&mut cpu, at, &mut Ignore, &mut Budget::entries(100));
    /// }
    /// assert_eq!(tree.mem().count(tree.root()), 0);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn teardown<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        from: Ipa,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Ipa {
        let fresh = !core::mem::replace(&mut self.cut, true);
        let core = &self.core;
        let shape = &core.shape;
        let level = shape.start().get();
        let first = (from.get().min(shape.ia_end()) >> shape.root_shift()) as usize;
        let entries = shape.root_entries();
        let root = core.mem.locate(Pa::new(core.root));
        // What an earlier call cut was synced by it.
        let mut proof = Synced::never_linked();
        let known = |raw| raw & VALID != 0 || (fresh && may_be_known(raw, level));
        let mut whole = false;
        let out = &mut Tell(sink);
        let mut index = first;
        while index < entries {
            let at = (index as u64) << shape.root_shift();
            let mut raw = core.mem.load(root, index);
            budget.spend(1);
            if raw == 0 && !budget.is_spent() {
                index += 1;
                continue;
            }
            if !whole && known(raw) {
                proof = core.cut_root(maint, index, known);
                whole = true;
                raw = core.mem.load(root, index);
            }
            if format::is_frozen(raw) && format::was_table(raw, level) {
                let table = Cut {
                    pa: shape.decode_oa(raw),
                    level: level + 1,
                    base: at,
                };
                let done = core.reclaim_from(table, from.get(), out, &proof, budget);
                if let Some(next) = done {
                    return Ipa::new(next);
                }
            } else if S::WANTS && format::is_frozen(raw) && raw & format::ELSEWHERE == 0 {
                let leaf = RemovedLeaf::new(shape, at, level, format::thaw(raw, level));
                out.run(RemovedRun::new(leaf, 1));
            } else if format::is_annotation(raw) {
                core.add_count(core.root, -core.counting.of(raw));
            }
            if raw != 0 {
                core.mem.store(root, index, 0);
            }
            index += 1;
            if budget.is_spent() {
                break;
            }
        }
        let at = ((index as u64) << shape.root_shift()).min(shape.ia_end());
        self.cut = index < entries;
        Ipa::new(at)
    }
}

impl<M: TableMem> Core<M> {
    /// Cuts the root's entries from `from` on off, and invalidates the whole
    /// VMID. What is cut is frozen, and in no count.
    fn cut_root<T: Maintenance>(
        &self,
        maint: &mut T,
        from: usize,
        known: impl Fn(u64) -> bool,
    ) -> Synced {
        let level = self.shape.start().get();
        let root = self.mem.locate(Pa::new(self.root));
        let mut gone = 0;
        for index in from..self.shape.root_entries() {
            let mut raw = self.mem.load(root, index);
            // A leaf of a gather that comes later, or never; what somebody
            // held who was forgotten; what the root maps.
            while known(raw) {
                let (counted, cut) = if raw == format::GATHERED {
                    (1, 0)
                } else if format::is_frozen(raw) {
                    (self.counting.of(format::thaw(raw, level)), raw)
                } else {
                    (self.counting.of(raw), format::freeze(raw, level))
                };
                match self.mem.cas(root, index, raw, cut) {
                    Ok(()) => {
                        gone += counted;
                        break;
                    }
                    // Hardware marked it accessed or dirty.
                    Err(now) => raw = now,
                }
            }
        }
        self.add_count(self.root, -gone);
        self.sync_all(maint)
    }
}

/// True for an entry that a TLB may know: what hardware may walk, and what was
/// taken out by somebody whose invalidation may not be done.
#[inline]
const fn may_be_known(raw: u64, level: i8) -> bool {
    format::is_table(raw, level)
        || format::is_leaf(raw, level)
        || raw == format::GATHERED
        || (format::is_frozen(raw) && raw & format::ELSEWHERE == 0)
}

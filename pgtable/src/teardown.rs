//! The end of a tree, whole.

use crate::addr::{Ipa, Pa};
use crate::error::Budget;
use crate::format;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::release::Tell;
use crate::sink::{LeafSink, RemovedLeaf};
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
        let core = &self.core;
        let shape = &core.shape;
        let root = core.mem.locate(self.root());
        let level = shape.start().get();
        let first = (from.get().min(shape.ia_end()) >> shape.root_shift()) as usize;
        // What is cut is parked, and parked entries are in no count.
        let mut gone = 0;
        // What earlier calls, or unmappings, parked was synced by them.
        let mut proof = Synced::never_linked();
        let mut whole = false;
        let mut index = first;
        while index
            < mutant!(
                TeardownSkipsLast,
                shape.root_entries(),
                shape.root_entries() - 1
            )
        {
            let at = (index as u64) << shape.root_shift();
            let mut raw = core.mem.load(root, index);
            budget.spend(1);
            if raw != 0 && !whole && format::may_be_known(raw, level) {
                proof = core.cut_root(maint, index, &mut gone);
                whole = true;
                raw = core.mem.load(root, index);
            }
            if raw != 0 {
                if format::is_annotation(raw) {
                    gone += core.counting.of(raw);
                } else if format::is_frozen(raw) {
                    if format::was_table(raw, level) {
                        let pa = shape.decode_oa(raw);
                        if !core.reclaim(pa, level + 1, at, &mut Tell(sink), &proof, budget) {
                            break;
                        }
                    } else if S::WANTS && !format::is_coming(raw) {
                        let cleaned = raw & format::cleaned_mask(shape, level);
                        let old = core.leaf_of(raw, level);
                        let leaf = RemovedLeaf::new(shape, at, level, old);
                        sink.leaf(leaf.part(cleaned, leaf.size()));
                    }
                }
                core.mem.store(root, index, 0);
            }
            index += 1;
            if budget.is_spent() {
                break;
            }
        }
        if gone != 0 {
            core.mem.add_count(Pa::new(core.root), -gone);
        }
        Ipa::new(((index as u64) << shape.root_shift()).min(shape.ia_end()))
    }
}

impl<M: TableMem> Core<M> {
    /// Cuts the root's entries from `from` on off, and invalidates the whole
    /// VMID. `gone` gets what they counted.
    fn cut_root<T: Maintenance>(&self, maint: &mut T, from: usize, gone: &mut i32) -> Synced {
        let level = self.shape.start().get();
        let root = self.mem.locate(Pa::new(self.root));
        for index in from..self.shape.root_entries() {
            let mut raw = self.mem.load(root, index);
            while raw != 0 && format::may_be_known(raw, level) {
                // A leaf of a gather that comes later, or never; what somebody
                // held who was forgotten; what the root maps.
                let (counted, parked) = if raw == format::GATHERED {
                    (1, 0)
                } else if format::is_frozen(raw) {
                    let was = format::thaw(raw, level);
                    (self.counting.of(was), raw | format::GOING)
                } else {
                    let frozen = format::freeze(raw, level) | format::GOING;
                    (self.counting.of(raw), frozen)
                };
                let new = mutant!(TeardownUncut, parked, raw);
                match self.mem.cas(root, index, raw, new) {
                    Ok(()) => {
                        *gone += counted;
                        break;
                    }
                    // Hardware marked it accessed or dirty.
                    Err(now) => raw = now,
                }
            }
        }
        self.sync_all(maint)
    }
}

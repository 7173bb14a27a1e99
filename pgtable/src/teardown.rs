//! The end of a tree that no CPU walks any more.

use crate::addr::{Ipa, Pa};
use crate::error::Budget;
use crate::format::{self, FROZEN_TABLE};
use crate::mem::TableMem;
use crate::stage2::Stage2;
use crate::sync::Synced;
use crate::unmap::{LeafSink, RemovedLeaf};

impl<M: TableMem> Stage2<M> {
    /// Frees all tables under the root and tells `sink` of all leaves,
    /// without a store or a TLBI for each: for a tree whose VMID no CPU has
    /// loaded, and loads again, after `proof` of
    /// [`invalidate_all`](Self::invalidate_all). To empty a live tree, use
    /// [`unmap`](Self::unmap) on all of it.
    ///
    /// Work is in proportion to the tables that exist. Returns the first
    /// IPA not done: call again until it is the end of the space. The root
    /// then holds nothing, and its pages are the caller's.
    pub fn teardown<S: LeafSink>(
        &mut self,
        proof: &Synced,
        from: Ipa,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Ipa {
        let core = &self.core;
        let shape = &core.shape;
        let root = core.mem.locate(self.root());
        let level = shape.start().get();
        let first = (from.get().min(shape.ia_end()) >> shape.root_shift()) as usize;
        let mut gone = 0;
        let mut index = first;
        while index < shape.root_entries() {
            let at = (index as u64) << shape.root_shift();
            let raw = core.mem.load(root, index);
            budget.spend(1);
            if raw != 0 {
                let table = format::is_table(raw, level)
                    || (format::is_frozen(raw) && raw & FROZEN_TABLE != 0);
                if table {
                    let pa = shape.decode_oa(raw);
                    if !core.reclaim(pa, level + 1, at, sink, proof, budget) {
                        break;
                    }
                } else if S::WANTS && format::is_leaf(raw, level) {
                    sink.leaf(RemovedLeaf::new(shape, at, level, raw));
                }
                core.mem.store(root, index, 0);
                gone += core.counting.of(raw | u64::from(table));
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

//! The end of a tree, whole.

use crate::addr::Ipa;
use crate::desc::{Desc, Kind};
use crate::error::Budget;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::release::{Cut, Release, Tell};
use crate::sink::{LeafSink, RemovedLeaf, RemovedRun};
use crate::stage2::Stage2;
use crate::sync::Synced;
use crate::tree::Slot;
use crate::work::Work;

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
        let fresh = !self.cut;
        let core = &self.core;
        let shape = &core.shape;
        let mut work = core.work(maint);
        let entries = shape.root_entries();
        // What an earlier call cut was synced by it.
        let mut proof = Synced::never_linked();
        let mut whole = false;
        // What somebody took out whose invalidation may not be done, TLBs may know
        // if nothing was cut before.
        let known = |slot: &Slot<M::Table>| match slot.kind(shape) {
            Kind::FrozenLeaf(_) | Kind::FrozenTable(_) => fresh,
            Kind::Elsewhere => fresh && slot.desc == Desc::GATHERED,
            _ => slot.desc.is_valid(),
        };
        let out = &mut Tell(sink);
        let root = core.root_slot(shape.root_ia(0));
        let mut index = shape.root_index(shape.space().end.min(from.into()));
        while index < entries {
            let desc = core.load(root.table, index);
            budget.spend(1);
            if desc == Desc::EMPTY && !budget.is_spent() {
                index += 1;
                continue;
            }
            let mut slot = root.after(index, desc);
            if !whole && known(&slot) {
                proof = work.cut_root(index, known);
                whole = true;
                slot.desc = core.load(slot.table, index);
            }
            match slot.kind(shape) {
                Kind::FrozenTable(pa) => {
                    let table = Cut {
                        from: from.into(),
                        ..Cut::under(slot.level, slot.ia, pa)
                    };
                    let done = core.reclaim_from(table, out, &proof, budget);
                    if let Some(next) = done {
                        self.cut = true;
                        return next.into();
                    }
                }
                Kind::FrozenLeaf(leaf) if S::WANTS => {
                    let leaf = RemovedLeaf::new(shape, slot.ia, slot.level, leaf);
                    out.run(RemovedRun::new(leaf, 1));
                }
                Kind::Invalid => core.add_count(slot.pa, -core.counting.of(slot.desc)),
                _ => (),
            }
            if slot.desc != Desc::EMPTY {
                core.put(&slot, Desc::EMPTY);
            }
            index += 1;
            if budget.is_spent() {
                break;
            }
        }
        // A call that met nothing but empty entries has cut nothing.
        self.cut = (whole || !fresh) && index < entries;
        shape.root_ia(index).into()
    }
}

impl<M: TableMem, T: Maintenance> Work<'_, M, T> {
    /// Cuts off the root's entries from `from` on that a TLB may know, and
    /// invalidates the whole VMID. What is cut is frozen, and in no count.
    fn cut_root(&mut self, from: usize, known: impl Fn(&Slot<M::Table>) -> bool) -> Synced {
        let core = self.core;
        let root = core.root_slot(core.shape.root_ia(0));
        let mut gone = 0;
        for index in from..core.shape.root_entries() {
            let desc = core.load(root.table, index);
            if desc == Desc::EMPTY {
                continue;
            }
            let mut slot = root.after(index, desc);
            // A leaf of a gather that comes later, or never; what somebody
            // held who was forgotten; what the root maps.
            while known(&slot) {
                let (counted, cut) = match slot.kind(&core.shape) {
                    Kind::Elsewhere => (1, Desc::EMPTY),
                    Kind::FrozenLeaf(leaf) => (core.counting.of(leaf), slot.desc),
                    Kind::FrozenTable(_) => (1, slot.desc),
                    _ => (core.counting.of(slot.desc), slot.desc.freeze(slot.level)),
                };
                match core.cas(slot.table, slot.index, slot.desc, cut) {
                    Ok(()) => {
                        gone += counted;
                        break;
                    }
                    // Hardware marked it accessed or dirty.
                    Err(now) => slot.desc = now,
                }
            }
        }
        core.add_count(core.root, -gone);
        self.sync_all()
    }
}

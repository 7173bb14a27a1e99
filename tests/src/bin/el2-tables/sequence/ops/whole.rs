//! Operations on all of a range or of a tree: a walk, the end.

use arm64::regs::VTTBR_EL2;
use pgtable::{Budget, Entry, Ignore, Ipa, Next, TableMem, Visit};

use super::{Ended, Run};
use crate::guest;
use crate::instructions::Instructions;
use crate::sequence::Wrong;
use crate::sequence::probe::ensure;
use crate::sequence::state::Is;
use crate::text::Name;

impl Run<'_> {
    /// What a visitor sees in a range is what is mapped there.
    pub(super) fn walk(&mut self, guest: usize, start: u64, end: u64) -> Result<(), Wrong> {
        let it = &self.guests[guest];
        let (mut seen, mut pages) = (0, true);
        let shape = *self.geometry.shape();
        let result = it.tree.walk(
            Ipa::new(start),
            end - start,
            &mut Budget::unlimited(),
            |entry| {
                if let (Visit::Leaf, Entry::Leaf { pa, .. }) = (entry.visit, entry.entry) {
                    let (base, to) = (entry.ipa.get(), entry.ipa.get() + shape.span(entry.level));
                    let (from, to) = (base.max(start), to.min(end));
                    seen += to - from;
                    pages &= it.shadow.pieces(from, to).all(|piece| {
                        let wanted = pa.get() + (piece.start - base);
                        matches!(piece.state, Is::Mapped { pa, .. } if pa == wanted)
                    });
                }
                Next::Descend
            },
        );
        ensure!(result == Ok(Ipa::new(end)), "{result:?}");
        let mapped: u64 = it
            .shadow
            .pieces(start, end)
            .filter(|piece| matches!(piece.state, Is::Mapped { .. }))
            .map(|piece| piece.end - piece.start)
            .sum();
        ensure!(
            seen == mapped && pages,
            "{seen:#x} bytes seen, {mapped:#x} mapped"
        );
        Ok(())
    }

    /// Tears the tree down in steps, and begins again.
    pub(super) fn tear_down(&mut self, guest: usize, c: u64) -> Result<Ended, Wrong> {
        let places = [0, 1, 2, 3].map(|n| self.places.place(n));
        let it = &mut self.guests[guest];
        let current = it.tree.vttbr() == VTTBR_EL2.get();
        let mut at = Ipa::new(0);
        let mut calls = 0;
        while at.get() < self.places.end() {
            let mut budget = Budget::entries(1 + (c >> 6 & 1023));
            at = it
                .tree
                .teardown(&mut Instructions, at, &mut Ignore, &mut budget);
            calls += 1;
            ensure!(calls < 100_000, "no end at {at}");
        }
        it.shadow.reset();
        let count = self.pool.count(it.tree.root());
        ensure!(count == 0, "the root counts {count}");
        self.pool.limit(u64::MAX);
        self.map_code(guest)?;
        if current {
            for ipa in places {
                let load = guest::read(ipa);
                ensure!(
                    guest::met(load, guest::Kind::Translation, ipa),
                    "{ipa:#x}: load {load:x?} after the end"
                );
            }
        }
        Ok(Ended::Done)
    }
}

//! Changes of leaves where they stand: rights, access flag, dirty state.

use pgtable::{
    Access, Attrs, Budget, Dirty, Error, Execute, Flush, Ipa, Partial, Permissions, Sweep,
};

use super::{Ended, Run, ended, reached};
use crate::guest::{self, Kind as FaultKind};
use crate::instructions::Instructions;
use crate::sequence::Wrong;
use crate::sequence::probe::{ensure, install};
use crate::sequence::state::{Is, change, either, reads, without_write, writes};
use crate::text::Name;

impl Run<'_> {
    pub(super) fn protect(
        &mut self,
        guest: usize,
        (start, end): (u64, u64),
        (low, high): (u64, u64),
        partial: Partial,
        b: u64,
        c: u64,
    ) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        let wanted = self.places.attrs(b >> 8);
        let permissions = Permissions {
            access: wanted.access,
            execute: wanted.execute,
        };
        let mut gather = it.tree.gather();
        let flush = if c >> 8 & 1 == 1 {
            Flush::Later(&mut gather)
        } else {
            Flush::Now
        };
        let result = it.tree.protect(
            &mut Instructions,
            Sweep {
                flush,
                ..Sweep::new(Ipa::new(start), end - start).partial(partial)
            },
            permissions,
            &mut Budget::unlimited(),
        );
        let _synced = it.tree.sync(&mut Instructions, gather);
        let next = reached(result);
        let (from, to) = match partial {
            Partial::DropWhole if next >= end => (low, high),
            Partial::DropWhole => (low, next),
            _ => (start, next),
        };
        let keeps = writes(wanted.access);
        change(it.shadow, from, to, |attrs| Attrs {
            access: wanted.access,
            execute: wanted.execute,
            dirty: if keeps { attrs.dirty } else { Dirty::Fault },
            ..attrs
        });
        Ok(ended(result))
    }

    pub(super) fn relax(&mut self, guest: usize, ipa: u64, b: u64) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        install(&it.tree);
        let wanted = if b & 1 == 0 {
            Access::ReadWrite
        } else {
            Access::Read
        };
        let permissions = Permissions {
            access: wanted,
            execute: Execute::Never,
        };
        let mapped = match it.shadow.at(ipa) {
            Some(Is::Mapped { pa, .. }) => Some(pa),
            _ => None,
        };
        // The guest touches it, faults, is helped, and touches it again.
        self.touch(guest, ipa);
        let it = &mut self.guests[guest];
        let relaxed = it.tree.relax(&mut Instructions, Ipa::new(ipa), permissions);
        ensure!(relaxed.is_ok() == mapped.is_some(), "{relaxed:?}");
        let Some(pa) = mapped else {
            return Ok(Ended::Refused);
        };
        if self.data.holds(pa) {
            let again = guest::read(ipa);
            ensure!(again == Ok(pa), "{ipa:#x}: load {again:x?} after relax");
        }
        if let Some((base, end)) = self.leaf(guest, ipa) {
            change(self.guests[guest].shadow, base, end, |attrs| Attrs {
                access: either(attrs.access, wanted),
                ..attrs
            });
        }
        Ok(Ended::Done)
    }

    pub(super) fn age(
        &mut self,
        guest: usize,
        start: u64,
        size: u64,
        c: u64,
    ) -> Result<Ended, Wrong> {
        let tree = &self.guests[guest].tree;
        let cpu = &mut Instructions;
        let ipa = Ipa::new(start);
        let mut gather = tree.gather();
        let flush = if c & 1 == 0 {
            Flush::Now
        } else {
            Flush::Later(&mut gather)
        };
        let before = tree.count_young(cpu, ipa, size, &mut Budget::unlimited());
        let done = tree.clear_young(
            cpu,
            Sweep {
                flush,
                ..Sweep::new(ipa, size)
            },
            &mut Budget::unlimited(),
        );
        let _synced = tree.sync(cpu, gather).expect("of this tree");
        let after = tree.count_young(cpu, ipa, size, &mut Budget::unlimited());
        ensure!(
            before == done && done.is_ok() && after.map(|(_, young)| young) == Ok(0),
            "{before:?}, {done:?}, {after:?}"
        );
        // Without hardware's help EL1 faults, is helped, and goes on.
        if !self.geometry.features().hw_access_flag
            && let Some(Is::Mapped { pa, attrs }) = self.guests[guest].shadow.at(start)
            && self.data.holds(pa)
            && c & 2 == 0
        {
            install(&self.guests[guest].tree);
            let load = guest::read(start);
            ensure!(
                guest::met(load, FaultKind::AccessFlag, start),
                "{start:#x}: load {load:x?}, aged"
            );
            let marked = self.guests[guest].tree.mark_young(cpu, ipa);
            ensure!(marked.is_ok(), "{marked:?}");
            let load = guest::read(start);
            ensure!(
                load == Ok(pa) || !reads(attrs.access),
                "{start:#x}: load {load:x?}, young"
            );
        }
        Ok(Ended::Done)
    }

    pub(super) fn harvest(
        &mut self,
        guest: usize,
        (start, end): (u64, u64),
        (low, high): (u64, u64),
    ) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        let shadow = &mut *it.shadow;
        let mut wrong = None;
        let mut told = 0;
        let result = it.tree.harvest_dirty(
            &mut Instructions,
            Sweep::new(Ipa::new(start), end - start),
            &mut Budget::unlimited(),
            |at, size| {
                let (from, to) = (at.get(), at.get() + size);
                let right = shadow.covers(from, to)
                    && shadow.pieces(from, to).all(
                        |piece| matches!(piece.state, Is::Mapped { attrs, .. } if attrs.is_dirty()),
                    );
                if !right {
                    let text = Name::new(format_args!("{from:#x} told dirty, is not"));
                    wrong.get_or_insert(text);
                }
                told += size;
            },
        );
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        if !self.geometry.features().hw_dirty {
            let why = result.map_err(|stopped| stopped.why);
            ensure!(why == Err(Error::Attributes), "{why:?} without HD");
            return Ok(Ended::Refused);
        }
        ensure!(result == Ok(Ipa::new(end)), "{result:?}");
        let dirty: u64 = shadow
            .pieces(low, high)
            .map(|piece| match piece.state {
                Is::Mapped { attrs, .. } if attrs.is_dirty() => piece.end - piece.start,
                _ => 0,
            })
            .sum();
        ensure!(told == dirty, "{told:#x} bytes told dirty, {dirty:#x} are");
        change(shadow, low, high, |attrs| Attrs {
            access: without_write(attrs.access),
            dirty: if writes(attrs.access) {
                Dirty::Track
            } else {
                attrs.dirty
            },
            ..attrs
        });
        Ok(Ended::Done)
    }
}

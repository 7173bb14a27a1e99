//! Changes of the tables under what is mapped: it stays where it is.

use pgtable::{Annotation, Budget, Change, Error, Ipa, Level, Map, Over, Pa, Split, Stopped};

use super::{Ended, Run, budget};
use crate::instructions::Instructions;
use crate::sequence::probe::ensure;
use crate::sequence::state::Is;
use crate::sequence::{Wrong, block};
use crate::text::Name;

impl Run<'_> {
    pub(super) fn fold(&mut self, guest: usize, ipa: u64) -> Result<Ended, Wrong> {
        let it = &mut self.guests[guest];
        match it.tree.fold(&mut Instructions, Ipa::new(ipa), Level::L2) {
            Ok(()) => {
                let level = it.tree.lookup(Ipa::new(ipa)).map(|found| found.level);
                ensure!(level == Ok(Level::L2), "a table is left: {level:?}");
                let base = ipa & !(block(&self.geometry) - 1);
                self.settle(guest, base, base + block(&self.geometry))?;
                Ok(Ended::Done)
            }
            Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => {
                Ok(Ended::Refused)
            }
            Err(error) => Err(Name::new(format_args!("{error}"))),
        }
    }

    /// The hint, set or taken away; a second time it changes nothing.
    pub(super) fn contiguous(&mut self, guest: usize, ipa: u64, b: u64) -> Result<Ended, Wrong> {
        let tree = &self.guests[guest].tree;
        let set = b & 3 != 0;
        let change = || {
            if set {
                tree.set_contiguous(&mut Instructions, Ipa::new(ipa))
            } else {
                tree.clear_contiguous(&mut Instructions, Ipa::new(ipa))
            }
        };
        match change() {
            Ok(()) => {
                let raw = tree.lookup(Ipa::new(ipa)).map(|found| found.raw);
                let has = raw.is_ok_and(|raw| raw >> 52 & 1 == u64::from(set));
                ensure!(has && change() == Ok(()), "{ipa:#x}: {raw:x?}, set {set}");
                if set {
                    self.group(guest, ipa)?;
                }
                Ok(Ended::Done)
            }
            Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => {
                Ok(Ended::Refused)
            }
            Err(error) => Err(Name::new(format_args!("{error}"))),
        }
    }

    /// A group with the hint is one: members alike, their output adjacent and
    /// aligned as the group is. QEMU does not look.
    fn group(&self, guest: usize, ipa: u64) -> Result<(), Wrong> {
        const CONTIGUOUS: u64 = 1 << 52;
        const AF: u64 = 1 << 10;
        const DBM: u64 = 1 << 51;
        const S2AP_WRITE: u64 = 1 << 7;
        let tree = &self.guests[guest].tree;
        let at = |ipa| {
            tree.lookup(Ipa::new(ipa))
                .map_err(|error| Name::new(format_args!("{ipa:#x}: {error}")))
        };
        let found = at(ipa)?;
        let span = self.geometry.span(found.level);
        let bits = self.geometry.granule().contiguous_bits(found.level);
        let Some(bits) = bits else {
            return Err(Name::new(format_args!("{ipa:#x}: hint at {}", found.level)));
        };
        let group = span << bits;
        let base = ipa & !(group - 1);
        let first = at(base)?;
        // What hardware marks in one member it need not mark in all.
        let marks = if self.geometry.features().hw_dirty && first.raw & DBM != 0 {
            AF | S2AP_WRITE
        } else {
            AF
        };
        let pa = tree.translate(Ipa::new(base)).map(|(pa, _)| pa.get());
        ensure!(
            pa.is_some_and(|pa| pa & (group - 1) == 0),
            "{base:#x}: a group at {pa:x?}"
        );
        for member in 0..1 << bits {
            let ipa = base + member * span;
            let (raw, alike) = (at(ipa)?.raw, first.raw + member * span);
            ensure!(
                (raw ^ alike) & !marks == 0 && raw & CONTIGUOUS != 0,
                "{ipa:#x}: {raw:#x} in a group of {:#x}",
                first.raw
            );
        }
        Ok(())
    }

    pub(super) fn split(
        &mut self,
        guest: usize,
        start: u64,
        end: u64,
        b: u64,
        c: u64,
    ) -> Result<Ended, Wrong> {
        let to = if b & 1 == 0 || !self.geometry.leaf_ok(Level::L2) {
            Level::L3
        } else {
            Level::L2
        };
        let pool = self.pool;
        let tree = &self.guests[guest].tree;
        let mut at = start;
        while at < end {
            let result = tree.split(
                &mut Instructions,
                &Split {
                    ipa: Ipa::new(at),
                    size: end - at,
                    to,
                },
                |_| pool.page(),
                &mut budget(c),
            );
            match result {
                Ok(next) => {
                    ensure!(next.get() > at, "no progress at {at:#x}");
                    at = next.get();
                }
                Err(Stopped {
                    why: Error::NoMem, ..
                }) => return Ok(Ended::Refused),
                Err(Stopped { why, .. }) => return Err(Name::new(format_args!("{why}"))),
            }
        }
        Ok(Ended::Done)
    }

    pub(super) fn subtree(
        &mut self,
        guest: usize,
        start: u64,
        b: u64,
        c: u64,
        over: Over,
    ) -> Result<Ended, Wrong> {
        let span = block(&self.geometry);
        let base = start & !(span - 1);
        if self.geometry.start() > Level::L2 {
            return Ok(Ended::Refused);
        }
        let attrs = self.places.attrs(b >> 8);
        let pa = self.places.target(base, c >> 20);
        let size = (1 + b % 7) * self.places.page();
        let cpu = &mut Instructions;
        let it = &mut self.guests[guest];
        let mut built = match it.tree.subtree(Ipa::new(base), Level::L2) {
            Ok(built) => built,
            Err(Error::NoMem) => return Ok(Ended::Refused),
            Err(error) => return Err(Name::new(format_args!("{error}"))),
        };
        let map = Map::new(Ipa::new(base), Pa::new(pa), size, attrs);
        let mapped = built.map(cpu, &map, &mut Budget::unlimited());
        let linked = match mapped {
            Ok(_) => built.link(cpu, over),
            Err(Stopped { why, .. }) => {
                let rest = built.discard(&mut Budget::unlimited());
                ensure!(rest.is_ok(), "a subtree is left");
                return Err(Name::new(format_args!("in the subtree: {why}")));
            }
        };
        let done = match linked {
            Ok(()) => {
                it.shadow.clear(base, base + span);
                it.shadow.set(base, base + size, Is::Mapped { pa, attrs });
                Ended::Done
            }
            Err((built, why)) => {
                let rest = built.discard(&mut Budget::unlimited());
                ensure!(rest.is_ok(), "a subtree is left");
                let known = matches!(why, Error::Exists { .. } | Error::NoMem);
                ensure!(known, "link: {why}");
                Ended::Refused
            }
        };
        self.settle(guest, base, base + span)?;
        Ok(done)
    }

    pub(super) fn freeze(
        &mut self,
        guest: usize,
        start: u64,
        b: u64,
        c: u64,
    ) -> Result<Ended, Wrong> {
        let cpu = &mut Instructions;
        let level = if b & 1 == 0 { Level::L3 } else { Level::L2 };
        let attrs = self.places.attrs(b >> 8);
        let span = self.geometry.span(level);
        let base = start & !(span - 1);
        let pa = self.places.target(base, c >> 20 & 3) & !(span - 1);
        let it = &mut self.guests[guest];
        let Ok(frozen) = it.tree.freeze(Ipa::new(start), level) else {
            return Ok(Ended::Refused);
        };
        // Somebody else comes by.
        let map = Map::new(Ipa::new(base), Pa::new(pa), self.places.page(), attrs);
        let map = map.over(Over::Anything);
        let other = it.tree.map(cpu, &map, &mut Budget::unlimited());
        let other = other.map_err(|stopped| stopped.why);
        ensure!(other == Err(Error::Busy), "{other:?} where it is frozen");
        match c & 3 {
            0 => frozen.rollback(cpu),
            1 => {
                let annotation = Annotation::new(b & 0xffc).unwrap_or(Annotation::EMPTY);
                let done = frozen.commit(cpu, Change::Invalid(annotation));
                ensure!(done.is_ok(), "{done:?}");
                it.shadow.clear(base, base + span);
                if annotation != Annotation::EMPTY {
                    it.shadow
                        .set(base, base + span, Is::Annotated(annotation.get()));
                }
            }
            _ => match frozen.commit(cpu, Change::Leaf(Pa::new(pa), attrs)) {
                Ok(()) => it.shadow.set(base, base + span, Is::Mapped { pa, attrs }),
                Err(Error::BlockLevel { .. }) => (),
                Err(error) => return Err(Name::new(format_args!("{error}"))),
            },
        }
        self.settle(guest, base, base + span)?;
        Ok(Ended::Done)
    }
}

//! Each command, and what is true after it.

use pgtable::{
    Attrs, ChangeDestroyed, Fill, HostPages, Ipa, Level, Pa, RemovedLeaf, Ripas, RttAt, RttState,
};

use super::{Is, Run, above, align, in_steps};
use crate::instructions::Instructions;
use crate::sequence::probe::ensure;
use crate::sequence::{Wrong, block};
use crate::text::Name;

impl Run<'_> {
    pub(super) fn destroy(&mut self, ipa: u64, level: Level) -> Result<bool, Wrong> {
        if level <= self.geometry.start() {
            return Ok(false);
        }
        let at = align(&self.geometry, ipa, above(level));
        let (base, end) = (at.get(), at.get() + self.geometry.span(above(level)));
        let code = self.code();
        if (base..end).contains(&code) {
            return Ok(false);
        }
        let shadow = &mut *self.shadow;
        let mut wrong = None;
        let mut sink = |leaf: RemovedLeaf| {
            let (ia, to, pa) = (
                leaf.ipa().get(),
                leaf.ipa().get() + leaf.size(),
                leaf.pa().get(),
            );
            let right = shadow.covers(ia, to)
                && shadow.pieces(ia, to).all(|piece| {
                    matches!(piece.state, Is::Host { pa: was, .. } if was == pa + (piece.start - ia))
                });
            if !right {
                wrong.get_or_insert(ia);
            }
            shadow.clear(ia, to);
        };
        let done = in_steps(|budget| {
            self.rtt
                .destroy(&mut Instructions, RttAt::new(at, level), &mut sink, budget)
        });
        if let Some(ia) = wrong {
            return Err(Name::new(format_args!(
                "told of {ia:#x}, was not mapped so"
            )));
        }
        let Ok(removed) = done else { return Ok(false) };
        let live = self
            .shadow
            .pieces(base, end)
            .any(|piece| piece.state.is_live());
        ensure!(!live, "{at}: {level} destroyed with something in it");
        if self.rtt.is_protected(at) {
            self.shadow.set(base, end, Is::Blank(Ripas::Destroyed));
        } else {
            self.shadow.clear(base, end);
        }
        self.pool.give_back(removed.pa);
        self.settle(base)?;
        Ok(true)
    }

    pub(super) fn fold(&mut self, ipa: u64) -> Result<bool, Wrong> {
        let level = match self.random.below(4) {
            0 => self.level(),
            _ => Level::L3,
        };
        if level <= self.geometry.start() {
            return Ok(false);
        }
        let at = align(&self.geometry, ipa, above(level));
        let Ok(page) = self.rtt.fold(&mut Instructions, RttAt::new(at, level)) else {
            return Ok(false);
        };
        self.pool.give_back(page);
        let end = at.get() + self.geometry.span(above(level));
        // One piece of like memory, or nothing.
        let pieces = self.shadow.pieces(at.get(), end).count();
        let covered = self.shadow.covers(at.get(), end);
        ensure!(
            pieces == 0 || (pieces == 1 && covered),
            "{at}: {pieces} pieces folded"
        );
        self.settle(at.get())?;
        self.settle(end - 1)?;
        Ok(true)
    }

    pub(super) fn data_create(
        &mut self,
        ipa: u64,
        variant: u64,
        fill: Fill,
    ) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let pa = self.memory(ipa, variant);
        let was = match self.shadow.at(ipa) {
            None => Some(Ripas::Empty),
            Some(Is::Blank(ripas)) => Some(ripas),
            _ => None,
        };
        let checked = self.rtt.data_check(Ipa::new(ipa));
        ensure!(
            checked.is_err() || checked.ok() == was,
            "{ipa:#x}: {checked:?}, is {was:?}"
        );
        let done = self
            .rtt
            .data_create(&mut Instructions, Ipa::new(ipa), Pa::new(pa), fill);
        ensure!(
            done.is_ok() == checked.is_ok(),
            "{ipa:#x}: {done:?} after {checked:?}"
        );
        let (Ok(()), Some(was)) = (done, was) else {
            return Ok(false);
        };
        let ripas = if fill == Fill::Known { Ripas::Ram } else { was };
        self.shadow.set(ipa, ipa + page, Is::Data { ripas, pa });
        Ok(true)
    }

    pub(super) fn data_destroy(&mut self, ipa: u64) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let Ok(removed) = self.rtt.data_destroy(&mut Instructions, Ipa::new(ipa)) else {
            return Ok(false);
        };
        let Some(Is::Data { ripas, pa }) = self.shadow.at(ipa) else {
            return Err(Name::new(format_args!("{ipa:#x}: nothing was assigned")));
        };
        ensure!(
            removed.pa.get() == pa,
            "{ipa:#x}: {} is back, was {pa:#x}",
            removed.pa
        );
        match ripas {
            Ripas::Empty => self.shadow.clear(ipa, ipa + page),
            _ => self
                .shadow
                .set(ipa, ipa + page, Is::Blank(Ripas::Destroyed)),
        }
        self.top(ipa, removed.top.get())?;
        Ok(true)
    }

    /// `top` of a command on a page: the first that is live, or the table's end.
    pub(super) fn top(&self, ipa: u64, top: u64) -> Result<(), Wrong> {
        let end = (ipa | (block(&self.geometry) - 1)) + 1;
        let live = self
            .shadow
            .pieces(ipa, end)
            .find(|piece| piece.state.is_live())
            .map_or(end, |piece| piece.start);
        ensure!(top == live, "{ipa:#x}: top {top:#x}, not {live:#x}");
        Ok(())
    }

    pub(super) fn set_ripas(&mut self, ipa: u64) -> Result<bool, Wrong> {
        let page = self.geometry.granule().page_size();
        let top = ipa + (1 + self.random.below(12)) * page;
        let ripas = [Ripas::Ram, Ripas::Empty][self.random.below(2) as usize];
        let destroyed = [ChangeDestroyed::No, ChangeDestroyed::Yes][self.random.below(2) as usize];
        for at in (ipa..top).step_by(page as usize) {
            self.touch(at);
        }
        let done = self.rtt.set_ripas(
            &mut Instructions,
            Ipa::new(ipa)..Ipa::new(top),
            ripas,
            destroyed,
        );
        let Ok(next) = done else { return Ok(false) };
        let mut kept = false;
        self.shadow.change(ipa, next.get(), |is| {
            let was = match is {
                Is::Blank(was) | Is::Data { ripas: was, .. } => was,
                Is::Host { .. } => Ripas::Empty,
            };
            kept |= was == Ripas::Destroyed && destroyed == ChangeDestroyed::No;
            match is {
                Is::Data { pa, .. } => Some(Is::Data { ripas, pa }),
                _ => Some(Is::Blank(ripas)),
            }
        });
        ensure!(!kept, "{ipa:#x}: destroyed memory changed");
        // What was empty before is in no piece.
        let mut at = ipa;
        while at < next.get() {
            if self.shadow.at(at).is_none() {
                self.shadow.set(at, at + page, Is::Blank(ripas));
            }
            at += page;
        }
        if ripas == Ripas::Empty {
            self.shadow.change(ipa, next.get(), |is| match is {
                Is::Blank(_) => None,
                other => Some(other),
            });
        }
        for at in (ipa..next.get()).step_by(page as usize) {
            self.look(at)?;
        }
        Ok(true)
    }

    pub(super) fn map_unprotected(
        &mut self,
        ipa: u64,
        level: Level,
        count: usize,
        attrs: Attrs,
    ) -> Result<bool, Wrong> {
        let pa = self.memory(ipa, 0);
        let (at, to) = (Ipa::new(ipa), Pa::new(pa));
        let done = in_steps(|budget| {
            self.rtt.map_unprotected(
                &mut Instructions,
                &HostPages {
                    ipa: at,
                    level,
                    pa: to,
                    attrs,
                    count,
                },
                budget,
            )
        });
        let Ok(next) = done else { return Ok(false) };
        let free = self.shadow.pieces(ipa, next.get()).next().is_none();
        ensure!(free, "{ipa:#x} to {next}: mapped over something");
        // Software bit 0 says that it is the host's.
        let attrs = attrs.soft(1);
        self.shadow.set(ipa, next.get(), Is::Host { pa, attrs });
        Ok(true)
    }

    /// RTT_READ_ENTRY and RSI_IPA_STATE_GET say what is there.
    pub(super) fn read(&mut self, ipa: u64) -> Result<(), Wrong> {
        let entry = self.rtt.read(Ipa::new(ipa), Level::L3);
        let Ok(entry) = entry else {
            return Err(Name::new(format_args!("{ipa:#x}: {entry:?}")));
        };
        let offset = ipa & (self.geometry.span(entry.level) - 1);
        let right = match (entry.state, self.shadow.at(ipa)) {
            (RttState::Unassigned(Ripas::Empty) | RttState::UnassignedNs, None) => true,
            (RttState::Unassigned(seen), Some(Is::Blank(ripas))) => seen == ripas,
            (
                RttState::Assigned {
                    ripas: seen,
                    pa: at,
                },
                Some(Is::Data { ripas, pa }),
            ) => seen == ripas && at.get() + offset == pa,
            (RttState::AssignedNs { pa: at, .. }, Some(Is::Host { pa, .. })) => {
                at.get() + offset == pa
            }
            _ => false,
        };
        let is = self.shadow.at(ipa);
        ensure!(right, "{ipa:#x}: {:?}, is {is:?}", entry.state);
        if self.rtt.is_protected(Ipa::new(ipa)) {
            let page = self.geometry.granule().page_size();
            let told = self.rtt.ripas(Ipa::new(ipa)..Ipa::new(ipa + page));
            let ripas = match is {
                Some(Is::Blank(ripas) | Is::Data { ripas, .. }) => ripas,
                _ => Ripas::Empty,
            };
            ensure!(
                told.is_ok_and(|(seen, _)| seen == ripas),
                "{ipa:#x}: {told:?}, is {ripas:?}"
            );
        }
        Ok(())
    }
}

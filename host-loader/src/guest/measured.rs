//! A realm's first memory, in the order that its initial measurement tells of
//! (docs/abi.md): so that who has the files can compute it.
//!
//! 1. All of its RAM becomes RAM (RTT_INIT_RIPAS), the lowest address first, by entries
//!    as large as fit.
//! 2. What its files hold, in whole granules, the lowest address first (DATA_CREATE).
//!
//! The rest of its RAM is zero and not measured: EL2 zeroes it, whoever asks.

use super::delegated::reclaim;
use super::failure::RealmError;
use super::handover::Reached;
use super::pieces::PIECE_SIZE;
use super::ram::{Extent, Ram};
use super::realm::{BuildContext, Realm};
use crate::arch::bytes;
use crate::rmi_call::{self, CallError};
use alloc::sync::Arc;
use core::ops::Range;
use guest_config::Measure;
use rmi::Status;
use rmi::rtt::DataFlags;

/// What a realm begins with.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// What its files hold of its RAM, in whole granules, the lowest first.
    pub written: &'a [Range<u64>],
    /// Whether what is in them counts.
    pub measure: Measure,
    /// It gets the rest when it touches that.
    pub lazy: bool,
}

impl Realm {
    /// Tells a realm of its RAM and gives it what it begins with; then all tables that
    /// the rest takes, or the rest.
    ///
    /// On an error a part may be the realm's; `destroy` knows it.
    pub async fn begin(
        &mut self,
        context: BuildContext<'_>,
        ram: &Arc<Ram>,
        contents: Contents<'_>,
    ) -> Result<(), RealmError> {
        self.set_ram(ram);
        let heir = self.stage2().heir();
        self.in_steps(context, ram.range(), |ipas| heir.tell_ram(ipas))
            .await?;
        self.copy_contents(context, ram, contents).await?;
        self.complete_pieces(context, ram, contents).await?;
        self.make_tables(context, ram).await?;
        if !contents.lazy {
            self.populate_all(context, ram).await?;
        }
        self.fold(context, ram).await;
        Ok(())
    }

    /// Makes what the files hold the realm's. A granule of it goes to a granule beside,
    /// so that it can be copied back, where it is the realm's.
    async fn copy_contents(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
        contents: Contents<'_>,
    ) -> Result<(), RealmError> {
        let size = self.shape().granule();
        let taken = context.granules.lock().take(size, size);
        let source = taken.ok_or(RealmError::NoMemory("what is copied to a realm"))?;
        let flags = match contents.measure {
            Measure::All => DataFlags::MEASURE,
            Measure::None => DataFlags::empty(),
        };
        let mut result = Ok(());
        'all: for range in contents.written {
            for part in ram.parts(range.clone()) {
                for offset in (0..part.size).step_by(size as usize) {
                    let granule = Extent {
                        ipa: part.ipa + offset,
                        pa: part.pa + offset,
                        size,
                    };
                    result = self.copy_granule(context, ram, granule, (source, flags));
                    if result.is_err() {
                        break 'all;
                    }
                    context.pace.step().await;
                }
            }
        }
        context.granules.lock().give(source, size);
        result
    }

    fn copy_granule(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
        Extent { ipa, pa, size }: Extent,
        (source, flags): (u64, DataFlags),
    ) -> Result<(), RealmError> {
        let from = core::ptr::with_exposed_provenance::<u8>(pa as usize);
        let to = core::ptr::with_exposed_provenance_mut::<u8>(source as usize);
        // SAFETY: the one is of the guest's RAM, which nobody else touches while it is
        // built, and the other was taken for this; both are granules.
        unsafe { bytes::copy_lines(to, from, size as usize / 64) };
        rmi_call::granule_delegate(pa)
            .map_err(|error| RealmError::Call("GRANULE_DELEGATE", error))?;
        let heir = self.stage2().heir();
        loop {
            match heir.give_copy(ipa, pa, source, flags) {
                Ok(Reached::NoTable(level)) => {
                    if let Err(error) = self.add_table(context.granules, ipa, level) {
                        take_back(ram, pa);
                        return Err(error);
                    }
                }
                Ok(Reached::To(_)) => return Ok(()),
                Err(error) => {
                    take_back(ram, pa);
                    return Err(error);
                }
            }
        }
    }

    /// Gives the realm the rest of each piece that it has a part of.
    async fn complete_pieces(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
        contents: Contents<'_>,
    ) -> Result<(), RealmError> {
        for piece in ram.pieces().claimed() {
            let Range { start, end } = ram.piece(piece);
            let (mut at, mut is_written) = (start, false);
            let inside = |w: &&Range<u64>| w.start < end && start < w.end;
            for written in contents.written.iter().filter(inside) {
                is_written = true;
                self.give_gap(context, ram, at..written.start).await?;
                at = written.end.min(end);
            }
            if is_written {
                self.give_gap(context, ram, at..end).await?;
                ram.pieces().set_mapped(piece);
            } else {
                ram.pieces().unclaim(piece);
            }
        }
        Ok(())
    }

    /// Gives the realm zeros for these addresses, which may be none.
    async fn give_gap(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
        ipas: Range<u64>,
    ) -> Result<(), RealmError> {
        for part in ram.parts(ipas) {
            self.stage2().heir().give_zeros(ram, part)?;
            context.pace.step().await;
        }
        Ok(())
    }

    /// Makes the tables that the pieces take which the realm does not have.
    async fn make_tables(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
    ) -> Result<(), RealmError> {
        let stage2 = self.stage2();
        let shape = self.shape();
        let mut last = [None; 5];
        for ipa in ram.range().step_by(PIECE_SIZE as usize) {
            let Some(piece) = ram.piece_at(ipa).filter(|&p| !ram.pieces().is_mapped(p)) else {
                continue;
            };
            for (entry, level) in stage2.entries_of(ram, piece) {
                for below in shape.start_level + 1..=level {
                    let base = entry.ipa & !(shape.entry_size(below - 1) - 1);
                    let last = &mut last[below as usize];
                    if *last != Some(base) {
                        self.ensure_table(context, base, below)?;
                        *last = Some(base);
                    }
                }
            }
            context.pace.step().await;
        }
        Ok(())
    }

    /// Makes a table, unless there is one.
    fn ensure_table(
        &mut self,
        context: BuildContext<'_>,
        ipa: u64,
        level: i64,
    ) -> Result<(), RealmError> {
        match self.add_table(context.granules, ipa, level) {
            Err(RealmError::Call(_, CallError::Status(Status::ErrorRtt(reached))))
                if i64::from(reached as i8) == level - 1 =>
            {
                Ok(())
            }
            other => other,
        }
    }

    async fn populate_all(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
    ) -> Result<(), RealmError> {
        let stage2 = self.stage2();
        for ipa in ram.range().step_by(PIECE_SIZE as usize) {
            if let Some(piece) = ram.piece_at(ipa)
                && ram.pieces().claim(piece)
            {
                stage2.populate(ram, piece)?;
                ram.pieces().set_mapped(piece);
                context.pace.step().await;
            }
        }
        Ok(())
    }

    /// Makes blocks of tables whose pages are all there, where they can be.
    async fn fold(&mut self, context: BuildContext<'_>, ram: &Ram) {
        let size = self.shape().entry_size(2);
        if !self.has_blocks() {
            return;
        }
        let Range { start, end } = ram.range();
        let first = start.next_multiple_of(size);
        for ipa in (first..end)
            .step_by(size as usize)
            .filter(|ipa| end - ipa >= size)
        {
            let pieces = (ipa..ipa + size).step_by(PIECE_SIZE as usize);
            let is_there = |ipa| {
                let piece = ram.piece_at(ipa);
                piece.is_some_and(|piece| ram.pieces().is_mapped(piece))
            };
            let whole = { pieces }.all(is_there);
            if whole && let Ok(table) = rmi_call::rtt_fold(self.rd(), ipa, 3) {
                self.lose_table();
                reclaim(context.granules, table);
            }
            context.pace.step().await;
        }
    }
}

/// A granule that could not be the realm's is the host's again, or its RAM is lost.
fn take_back(ram: &Ram, pa: u64) {
    if rmi_call::granule_undelegate(pa).is_err() {
        ram.lose();
    }
}

//! A realm's RAM changes hands while it runs: EMPTY granules come back to the host,
//! and those that are RAM again go to the realm.
//!
//! One exit does a part of what was asked, at most a piece's worth of memory, and the
//! realm asks for the rest: so no guest chooses how long the host works for it. One
//! lock for each guest stands around a change of hands, and around the first touch of a
//! piece: who populates it sees what is EMPTY.

use super::failure::RealmError;
use super::pieces::{PIECE_SIZE, Populated};
use super::ram::{Extent, Ram};
use super::realm::{Rights, Stage2, add_table};
use super::shares::Shares;
use crate::arch::bytes;
use crate::granules::Granules;
use crate::pace::{Pace, at_once};
use crate::rmi_call::{self, CallError};
use arm64::instr;
use core::ops::Range;
use rmi::Status;
use rmi::rsi::GRANULE;
use spin::Mutex;

/// Calls of one exit, of which most change nothing but what tables say.
const CALLS: usize = 64;

/// What a realm asks for (RIPAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To have nothing there: it shares the address.
    Empty,
    /// To have memory of its own there.
    Ram,
}

/// A realm's RAM, and what its changes take.
#[derive(Clone, Copy, Debug)]
pub struct Sharing<'a> {
    /// The realm's tables.
    pub stage2: Stage2,
    /// Its RAM.
    pub ram: &'a Ram,
    /// The host's free RAM.
    pub granules: &'a Mutex<Granules>,
    /// All of the guest's accesses are cached (FEAT_S2FWB).
    pub coherent: bool,
}

fn failed(what: &'static str) -> impl Fn(CallError) -> RealmError {
    move |error| RealmError::Call(what, error)
}

impl Sharing<'_> {
    /// Changes a part of `ipas`, from their begin on, as the vCPU `rec` has asked: all
    /// of it RAM of the guest's. None may be changed, where it was destroyed.
    pub fn change(self, rec: u64, ipas: Range<u64>, to: Asked) -> Result<(), RealmError> {
        const CALL: &str = "RTT_SET_RIPAS";
        let Range { start: mut at, end } = ipas;
        let mut shares = self.ram.shares().lock();
        // Where what the realm has asked for begins, it may be amid a granule: not where a
        // change goes on.
        let begins = shares.take_stopped(rec) != Some(at);
        let ends = [begins.then_some(at), Some(end - shares.granule())];
        let (mut step, mut moves) = (at, false);
        for _ in 0..CALLS {
            // All of a step is alike: it is looked for once, however many calls it takes.
            if at == step {
                (step, moves) = self.step(&shares, at..end, to);
            }
            if moves && to == Asked::Ram {
                self.hide(&mut shares, at..step, ends)?;
            }
            match rmi_call::rtt_set_ripas(self.stage2.rd(), rec, at, step) {
                Ok(next) if next > at && next <= step => {
                    if moves {
                        self.hand_over(&shares, at..next, to)?;
                    } else if to == Asked::Empty {
                        shares.set_empty(&(at..next), true);
                    }
                    at = next;
                    if moves {
                        break;
                    }
                }
                Err(CallError::Status(Status::ErrorRtt(level))) if (level as i8) < 3 => {
                    let level = i64::from(level as i8) + 1;
                    self.add_table(&mut shares, at, level)?;
                }
                // What was destroyed stays so: the realm learns how far it came.
                Err(CallError::Status(Status::ErrorRtt(_))) => break,
                Ok(_) => return Err(failed(CALL)(CallError::Status(Status::ErrorInput))),
                Err(error) => return Err(failed(CALL)(error)),
            }
            if at == end {
                break;
            }
        }
        if at < end {
            shares.set_stopped(rec, at);
        }
        Ok(())
    }

    /// Up to where a change goes in one step, and whether memory changes hands there.
    fn step(self, shares: &Shares, ipas: Range<u64>, to: Asked) -> (u64, bool) {
        let mut at = ipas.start;
        while at < ipas.end {
            let end = (at + 1).next_multiple_of(PIECE_SIZE).min(ipas.end);
            let moves = match to {
                // A piece that it never had may hold what others left there.
                Asked::Empty => shares.any_own(&(at..end)),
                Asked::Ram => shares.any_empty(&(at..end)),
            };
            if moves {
                return if at == ipas.start {
                    (end, true)
                } else {
                    (at, false)
                };
            }
            at = end;
        }
        (ipas.end, false)
    }

    /// What was changed changes hands. Of what is populated at first touch the realm
    /// gets nothing yet.
    fn hand_over(self, shares: &Shares, ipas: Range<u64>, to: Asked) -> Result<(), RealmError> {
        let populated =
            (self.ram.piece_at(ipas.start)).is_some_and(|piece| self.ram.pieces().is_mapped(piece));
        match to {
            Asked::Empty => {
                if populated {
                    let heir = self.stage2.heir();
                    let back = at_once(heir.take_back(ipas.clone(), &Pace::new()));
                    back.inspect_err(|_| self.ram.lose())?;
                } else {
                    let mut rest = ipas.clone();
                    while let Some(own) = shares.first_own(&rest) {
                        rest.start = own.end;
                        for part in self.ram.parts(own) {
                            zero(part.pa, part.size, self.coherent);
                        }
                    }
                }
                shares.set_empty(&ipas, true);
            }
            Asked::Ram => {
                let mut rest = ipas;
                while let Some(was) = shares.first_empty(&rest) {
                    shares.set_empty(&was, false);
                    for part in self.ram.parts(was.clone()).filter(|_| populated) {
                        self.stage2.heir().give_zeros(self.ram, part)?;
                    }
                    rest.start = was.end;
                }
            }
        }
        Ok(())
    }

    /// Takes EMPTY granules out of the other half. Of `ends` the realm may have asked about
    /// a part (RSI counts in less): what it shares of the rest stays, in other memory.
    fn hide(
        self,
        shares: &mut Shares,
        ipas: Range<u64>,
        ends: [Option<u64>; 2],
    ) -> Result<(), RealmError> {
        let granule = shares.granule();
        let mut rest = ipas;
        while let Some(ipa) = shares.first_mapped(&rest) {
            rest.start = ipa + granule;
            if !shares.is_empty(ipa) {
                continue;
            }
            self.unmap(shares, ipa)?;
            if granule > GRANULE && ends.contains(&Some(ipa)) {
                self.keep(shares, ipa)?;
            } else if let Some(pa) = shares.take_part(Some(ipa)) {
                self.granules.lock().give(pa, granule);
            }
        }
        Ok(())
    }

    fn unmap(self, shares: &Shares, ipa: u64) -> Result<(), RealmError> {
        const CALL: &str = "RTT_UNMAP_UNPROTECTED";
        let (rd, other) = (self.stage2.rd(), self.stage2.shared() + ipa);
        let mut gone = ipa..ipa + shares.granule();
        let mut unmapped = rmi_call::rtt_unmap_unprotected(rd, other, 3).result;
        if unmapped == Err(CallError::Status(Status::ErrorRtt(2))) {
            gone = piece_of(ipa);
            let block = self.stage2.shared() + gone.start;
            unmapped = rmi_call::rtt_unmap_unprotected(rd, block, 2).result;
        }
        unmapped
            .map_err(failed(CALL))
            .inspect_err(|_| self.ram.lose())?;
        shares.set_mapped(&gone, false);
        Ok(())
    }

    /// What stood in the other half for the granule at `ipa` stays there in memory of
    /// the host's; what there is no room for is lost.
    fn keep(self, shares: &mut Shares, ipa: u64) -> Result<(), RealmError> {
        let granule = shares.granule();
        let pa = match shares.take_part(Some(ipa)) {
            Some(pa) => pa,
            None => {
                let (Some(from), true) = (self.ram.pa_at(ipa), shares.has_room()) else {
                    return Ok(());
                };
                let Some(pa) = self.granules.lock().take(granule, granule) else {
                    return Ok(());
                };
                copy(from, pa, granule, self.coherent);
                pa
            }
        };
        self.add_part(shares, ipa, pa)
    }

    /// Lets the realm have what it touched in the other half, of the address `ipa` of
    /// its RAM. `None`: nothing is there, because the memory is its own.
    pub fn touch(self, ipa: u64) -> Option<Result<Populated, RealmError>> {
        let mut shares = self.ram.shares().lock();
        let granule = shares.granule();
        let ipa = ipa & !(granule - 1);
        if shares.is_mapped(ipa) {
            return Some(Ok(Populated::Before));
        }
        let shown = if shares.is_empty(ipa) {
            self.show(&mut shares, ipa)
        } else if granule > GRANULE && shares.has_room() {
            let pa = self.granules.lock().take(granule, granule)?;
            zero(pa, granule, self.coherent);
            self.add_part(&mut shares, ipa, pa)
        } else {
            return None;
        };
        Some(shown.map(|()| Populated::Now))
    }

    /// Maps an EMPTY granule, and all of its piece with it where that is one entry.
    fn show(self, shares: &mut Shares, ipa: u64) -> Result<(), RealmError> {
        let piece = piece_of(ipa);
        let whole = self.stage2.maps_pieces() && shares.is_idle(&piece);
        let at = |ipas: &Range<u64>| self.ram.parts(ipas.clone()).next();
        if let Some(Extent { pa, size, .. }) = at(&piece).filter(|_| whole)
            && size == PIECE_SIZE
            && pa.is_multiple_of(PIECE_SIZE)
            && self.map(shares, piece.start, pa, 2)?
        {
            shares.set_mapped(&piece, true);
            return Ok(());
        }
        let lost = RealmError::NoMemory("what a realm shares");
        let pa = self.ram.pa_at(ipa).ok_or(lost)?;
        self.map_page(shares, ipa, pa)
    }

    fn add_part(self, shares: &mut Shares, ipa: u64, pa: u64) -> Result<(), RealmError> {
        match self.map_page(shares, ipa, pa) {
            Ok(()) => {
                shares.add_part(ipa, pa);
                Ok(())
            }
            Err(error) => {
                self.granules.lock().give(pa, shares.granule());
                Err(error)
            }
        }
    }

    fn map_page(self, shares: &mut Shares, ipa: u64, pa: u64) -> Result<(), RealmError> {
        if !self.map(shares, ipa, pa, 3)? {
            let stuck = CallError::Status(Status::ErrorRtt(3));
            return Err(RealmError::Call("RTT_MAP_UNPROTECTED", stuck));
        }
        let end = ipa + shares.granule();
        shares.set_mapped(&(ipa..end), true);
        Ok(())
    }

    /// Maps memory of the host's into the other half, with the tables that it takes:
    /// whether there was room for it.
    fn map(self, shares: &mut Shares, ipa: u64, pa: u64, level: i64) -> Result<bool, RealmError> {
        let other = self.stage2.shared() + ipa;
        let desc = pa | Rights::ReadWrite.attributes();
        // A table at most is missing at each level.
        for _ in 0..=level + 1 {
            match rmi_call::rtt_map_unprotected(self.stage2.rd(), other, level, desc) {
                Ok(()) => return Ok(true),
                Err(CallError::Status(Status::ErrorRtt(reached)))
                    if i64::from(reached as i8) < level =>
                {
                    self.add_table(shares, other, i64::from(reached as i8) + 1)?;
                }
                Err(CallError::Status(Status::ErrorRtt(_))) => return Ok(false),
                Err(error) => return Err(failed("RTT_MAP_UNPROTECTED")(error)),
            }
        }
        Ok(false)
    }

    fn add_table(self, shares: &mut Shares, ipa: u64, level: i64) -> Result<(), RealmError> {
        add_table(self.stage2, self.granules, ipa, level)?;
        shares.tables += 1;
        Ok(())
    }
}

/// Zeroes memory, as a guest is to find it.
fn zero(pa: u64, size: u64, coherent: bool) {
    let to = core::ptr::with_exposed_provenance_mut::<u8>(pa as usize);
    // SAFETY: mapped; free, or of a guest that has not got it yet.
    unsafe { bytes::zero_bytes(to, size as usize) };
    if !coherent {
        instr::clean_to_poc(pa, size);
    }
}

/// Copies what a realm shared to a free granule.
fn copy(from: u64, to: u64, size: u64, coherent: bool) {
    if !coherent {
        instr::clean_to_poc(from, size);
    }
    let source = core::ptr::with_exposed_provenance::<u8>(from as usize);
    let target = core::ptr::with_exposed_provenance_mut::<u8>(to as usize);
    // SAFETY: the realm has let go of the source, which is the host's and in no table
    // any more; the target was taken from what is free.
    unsafe { bytes::copy_lines(target, source, size as usize / 64) };
    if !coherent {
        instr::clean_to_poc(to, size);
    }
}

const fn piece_of(ipa: u64) -> Range<u64> {
    let start = ipa & !(PIECE_SIZE - 1);
    start..start + PIECE_SIZE
}

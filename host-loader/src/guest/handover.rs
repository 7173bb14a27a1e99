//! A protected guest's memory: given to its realm, and taken back.
//!
//! While it is the realm's, the host cannot reach it; when it comes back, it is all
//! zero.

use super::failure::RealmError;
use super::ram::{Extent, Ram};
use crate::pace::Pace;
use crate::rmi_call::{self, CallError};
use core::ops::Range;
use rmi::Status;

/// Most bytes that wait to be taken back together.
const RUN: u64 = 2 << 20;

fn failed(what: &'static str) -> impl Fn(CallError) -> RealmError {
    move |error| RealmError::Call(what, error)
}

/// Where a call that does a part went on to from `at`: never where it was.
fn further(what: &'static str, at: u64, next: Result<u64, CallError>) -> Result<u64, RealmError> {
    let next = next.map_err(failed(what))?;
    let stuck = CallError::Status(Status::ErrorInput);
    if next > at {
        Ok(next)
    } else {
        Err(RealmError::Call(what, stuck))
    }
}

/// A realm that gets memory.
#[derive(Clone, Copy, Debug)]
pub struct Heir {
    /// Its descriptor.
    pub rd: u64,
    /// Bytes of a granule.
    pub granule: u64,
}

impl Heir {
    /// The granules of an extent.
    fn granules(self, extent: Extent) -> impl Iterator<Item = Extent> {
        let offsets = (0..extent.size).step_by(self.granule as usize);
        offsets.map(move |offset| Extent {
            ipa: extent.ipa + offset,
            pa: extent.pa + offset,
            size: self.granule,
        })
    }

    /// Gives an extent, for which there are tables: what the guest finds there are
    /// zeros. After an error a part is EL2's, or the realm's.
    pub fn give_zeros(self, extent: Extent) -> Result<(), RealmError> {
        let (mut at, end) = (extent.pa, extent.pa + extent.size);
        while at < end {
            let next = rmi_call::granule_range_delegate(at, end);
            at = further("GRANULE_RANGE_DELEGATE", at, next)?;
        }
        for Extent { ipa, pa, .. } in self.granules(extent) {
            rmi_call::data_create_unknown(self.rd, pa, ipa)
                .map_err(failed("DATA_CREATE_UNKNOWN"))?;
        }
        Ok(())
    }

    /// Gives a granule of the guest's with what is in it, by way of the host's granule
    /// at `scratch`; of a realm that does not run yet. After an error it may be EL2's.
    pub fn give_content(
        self,
        Extent { ipa, pa, size }: Extent,
        scratch: u64,
    ) -> Result<(), RealmError> {
        // SAFETY: Both granules are the host's, mapped at their own addresses, and
        // no reference to either exists: the guest does not run, and nobody else
        // knows the other.
        unsafe {
            core::ptr::copy_nonoverlapping(
                core::ptr::with_exposed_provenance::<u8>(pa as usize),
                core::ptr::with_exposed_provenance_mut(scratch as usize),
                size as usize,
            );
        }
        rmi_call::granule_delegate(pa).map_err(failed("GRANULE_DELEGATE"))?;
        rmi_call::data_create(self.rd, pa, ipa, scratch).map_err(failed("DATA_CREATE"))
    }

    /// Those granules of a piece, for [`Self::give_content`].
    pub fn granules_of(self, ram: &Ram, piece: usize) -> impl Iterator<Item = Extent> {
        ram.parts_of(piece)
            .flat_map(move |part| self.granules(part))
    }

    /// Tells the realm, which does not run yet, that these addresses are its RAM:
    /// where it came to, and the level of the table that is missing there, if any.
    pub fn tell_ram(self, ipas: Range<u64>) -> Result<(u64, Option<i64>), RealmError> {
        let Range { mut start, end } = ipas;
        while start < end {
            match rmi_call::rtt_init_ripas(self.rd, start, end) {
                Err(CallError::Status(Status::ErrorRtt(level))) => {
                    return Ok((start, Some(i64::from(level as i8) + 1)));
                }
                next => start = further("RTT_INIT_RIPAS", start, next)?,
            }
        }
        Ok((end, None))
    }

    /// Takes back what the realm has of these addresses, from one granule to the next
    /// that there is, as DATA_DESTROY says (`top`).
    pub async fn take_back(self, ipas: Range<u64>, pace: &Pace) -> Result<(), RealmError> {
        let Range {
            start: mut ipa,
            end,
        } = ipas;
        // Granules that are one after another go back together.
        let mut run = 0..0;
        while ipa < end {
            let walked = rmi_call::data_destroy(self.rd, ipa);
            match walked.result {
                Ok(pa) if pa == run.end && run.end - run.start < RUN => run.end += self.granule,
                Ok(pa) => {
                    undelegate(run)?;
                    run = pa..pa + self.granule;
                }
                // Nothing here; `top` is where something is again.
                Err(CallError::Status(Status::ErrorRtt(_))) if walked.top > ipa => {}
                Err(error) => return Err(RealmError::Call("DATA_DESTROY", error)),
            }
            ipa = walked.top.max(ipa + self.granule);
            pace.step().await;
        }
        undelegate(run)
    }
}

/// Takes granules back from EL2.
fn undelegate(pas: Range<u64>) -> Result<(), RealmError> {
    let Range { mut start, end } = pas;
    while start < end {
        let next = rmi_call::granule_range_undelegate(start, end);
        start = further("GRANULE_RANGE_UNDELEGATE", start, next)?;
    }
    Ok(())
}

//! Memory of a protected guest or a realm: given to it, and taken back.
//!
//! While it is the realm's, the host cannot reach it; when it comes back, it is all
//! zero.

use super::failure::RealmError;
use super::ram::{Extent, Ram};
use crate::pace::Pace;
use crate::rmi_call::{self, CallError, Removed};
use core::ops::Range;
use rmi::Status;
use rmi::rtt::DataFlags;

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

/// What one call about a range of IPAs came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// It is done up to here.
    To(u64),
    /// Nothing was done: a table of this level is missing at its begin.
    NoTable(i64),
}

fn reached(
    what: &'static str,
    at: u64,
    next: Result<u64, CallError>,
) -> Result<Reached, RealmError> {
    match next {
        Err(CallError::Status(Status::ErrorRtt(level))) => {
            Ok(Reached::NoTable(i64::from(level as i8) + 1))
        }
        next => further(what, at, next).map(Reached::To),
    }
}

/// A realm that gets memory.
#[derive(Clone, Copy, Debug)]
pub struct Heir {
    /// Its descriptor.
    pub rd: u64,
}

impl Heir {
    /// Gives an extent of a guest's RAM, for which there are tables: what the guest finds
    /// there are zeros. After an error each part of it is the host's or the realm's; or
    /// the RAM is lost.
    pub fn give_zeros(self, ram: &Ram, extent: Extent) -> Result<(), RealmError> {
        let (mut at, end) = (extent.pa, extent.pa + extent.size);
        while at < end {
            let next = rmi_call::granule_range_delegate(at, end);
            let next = further("GRANULE_RANGE_DELEGATE", at, next)?;
            while at < next {
                let ipa = extent.ipa + (at - extent.pa);
                let mapped = rmi_call::rtt_data_map(self.rd, ipa, ipa + (next - at), at);
                match further("RTT_DATA_MAP", ipa, mapped) {
                    Ok(to) => at += to - ipa,
                    Err(error) => {
                        let mut rest = at..next;
                        while !rest.is_empty() && !ram.is_lost() {
                            match undelegate(&rest) {
                                Ok(to) => rest.start = to,
                                Err(_) => ram.lose(),
                            }
                        }
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives an extent with what is in it, or a part from its begin on, to a realm that
    /// does not run yet.
    pub fn give_content(self, Extent { ipa, pa, size }: Extent) -> Result<Reached, RealmError> {
        let given = rmi_call::rtt_data_donate(self.rd, ipa, ipa + size, pa);
        reached("RTT_DATA_DONATE", ipa, given)
    }

    /// Gives the delegated granule `pa` with a copy of what is in `source`, which counts
    /// by `flags`, to a realm that does not run yet.
    pub fn give_copy(
        self,
        ipa: u64,
        pa: u64,
        source: u64,
        flags: DataFlags,
    ) -> Result<Reached, RealmError> {
        let given = rmi_call::data_create(self.rd, pa, ipa, source, flags);
        reached("DATA_CREATE", ipa, given.map(|()| ipa + 1))
    }

    /// Tells a realm that does not run yet that these addresses, or a part from their
    /// begin on, are its RAM.
    pub fn tell_ram(self, Range { start, end }: Range<u64>) -> Result<Reached, RealmError> {
        let told = rmi_call::rtt_init_ripas(self.rd, start, end);
        reached("RTT_INIT_RIPAS", start, told)
    }

    /// Takes back what the realm has of these addresses, from one part to the next that
    /// there is, as EL2 says (`top`).
    pub async fn take_back(self, ipas: Range<u64>, pace: &Pace) -> Result<(), RealmError> {
        let Range {
            start: mut ipa,
            end,
        } = ipas;
        while ipa < end {
            let walked = rmi_call::rtt_data_unmap(self.rd, ipa, end);
            match walked.result {
                Ok(Removed { pa, end: to }) => {
                    let to = further("RTT_DATA_UNMAP", ipa, Ok(to))?;
                    let mut part = pa..pa + (to - ipa);
                    while !part.is_empty() {
                        part.start = undelegate(&part)?;
                        pace.step().await;
                    }
                }
                // Nothing here; `top` is where something is again.
                Err(CallError::Status(Status::ErrorRtt(_))) => {}
                Err(error) => return Err(RealmError::Call("RTT_DATA_UNMAP", error)),
            }
            ipa = further("RTT_DATA_UNMAP", ipa, Ok(walked.top))?;
            pace.step().await;
        }
        Ok(())
    }
}

/// Takes granules back from EL2, as many as one call does: where it came to.
fn undelegate(pas: &Range<u64>) -> Result<u64, RealmError> {
    let next = rmi_call::granule_range_undelegate(pas.start, pas.end);
    further("GRANULE_RANGE_UNDELEGATE", pas.start, next)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::guest::ram::GuestRam;
    use crate::pace::at_once;
    use alloc::boxed::Box;
    use arm64::recording;
    use core::slice;
    use rmi::Command;
    use rmi::call::HostCall;
    use rmi::vendor::Vendor;
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec;
    use std::vec::Vec;

    const HEIR: Heir = Heir { rd: 0x1000 };
    const EXTENT: Extent = Extent {
        ipa: 0x4000_0000,
        pa: 0x20_0000,
        size: 0x4000,
    };

    /// What `f` comes to where `answer` answers its calls, and the calls.
    fn answered<R>(
        answer: impl Fn(HostCall) -> (Status, [u64; 3]) + 'static,
        f: impl FnOnce() -> R,
    ) -> (R, Vec<HostCall>) {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let made = calls.clone();
        recording::answer_calls(Box::new(move |registers| {
            let call = HostCall::decode(registers).unwrap();
            made.borrow_mut().push(call);
            let (status, [first, second, third]) = answer(call);
            [status.pack(), first, second, third, 0]
        }));
        let result = f();
        recording::reset();
        (result, calls.take())
    }

    fn stuck(what: &'static str) -> RealmError {
        RealmError::Call(what, CallError::Status(Status::ErrorInput))
    }

    /// RAM of which nothing is touched.
    fn ram() -> GuestRam {
        // SAFETY: It is not touched.
        unsafe { GuestRam::new(0x4000_0000, slice::from_ref(&(0x20_0000..0x40_0000))) }
    }

    /// An EL2 that says that it did something, and did nothing, is not asked for ever.
    #[test]
    fn a_call_that_does_not_get_on_is_an_error() {
        let ram = ram();
        let give_zeros = || HEIR.give_zeros(ram.shared(), EXTENT);
        for (what, calls) in [
            ("GRANULE_RANGE_DELEGATE", 1),
            // And those that undo the one before: of two granules, one, and one.
            ("RTT_DATA_MAP", 5),
            ("RTT_DATA_DONATE", 1),
            ("RTT_INIT_RIPAS", 1),
            ("RTT_DATA_UNMAP", 1),
            ("GRANULE_RANGE_UNDELEGATE", 2),
        ] {
            let (result, made) = answered(
                move |call| match call {
                    HostCall::Vendor(Vendor::GranuleRangeDelegate { base, top }) => {
                        let stuck = what == "GRANULE_RANGE_DELEGATE";
                        (Status::Success, [if stuck { base } else { top }, 0, 0])
                    }
                    HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top }) => {
                        let stuck = what == "GRANULE_RANGE_UNDELEGATE";
                        let half = base + (top - base).div_ceil(0x2000) * 0x1000;
                        (Status::Success, [if stuck { base } else { half }, 0, 0])
                    }
                    HostCall::Vendor(Vendor::RttDataUnmap { ipa, top, .. }) => {
                        let stuck = what == "RTT_DATA_UNMAP";
                        let end = if stuck { ipa } else { top };
                        (Status::Success, [0x20_0000, end, top])
                    }
                    HostCall::Vendor(
                        Vendor::RttDataMap { ipa, .. } | Vendor::RttDataDonate { ipa, .. },
                    )
                    | HostCall::Rmi(Command::RttInitRipas { base: ipa, .. }) => {
                        (Status::Success, [ipa, 0, 0])
                    }
                    other => panic!("{other:x?}"),
                },
                || match what {
                    "RTT_INIT_RIPAS" => HEIR.tell_ram(0x4000_0000..0x4000_4000).map(drop),
                    "RTT_DATA_DONATE" => HEIR.give_content(EXTENT).map(drop),
                    "GRANULE_RANGE_DELEGATE" | "RTT_DATA_MAP" => give_zeros(),
                    _ => at_once(HEIR.take_back(0x4000_0000..0x4000_4000, &Pace::new())),
                },
            );
            assert_eq!(result, Err(stuck(what)));
            assert_eq!(made.len(), calls, "{what}");
        }
        assert!(!ram.shared().is_lost());
    }

    /// What could be delegated and not mapped is the host's again; RAM of which EL2 keeps
    /// that is lost.
    #[test]
    fn what_cannot_be_mapped_comes_back_or_is_lost() {
        for comes_back in [true, false] {
            let ram = ram();
            let (result, calls) = answered(
                move |call| match call {
                    HostCall::Vendor(Vendor::GranuleRangeDelegate { top, .. }) => {
                        (Status::Success, [top, 0, 0])
                    }
                    HostCall::Vendor(Vendor::RttDataMap { ipa, .. }) if ipa == EXTENT.ipa => {
                        (Status::Success, [ipa + 0x1000, 0, 0])
                    }
                    HostCall::Vendor(Vendor::GranuleRangeUndelegate { top, .. }) if comes_back => {
                        (Status::Success, [top, 0, 0])
                    }
                    _ => (Status::ErrorRtt(2), [0; 3]),
                },
                || HEIR.give_zeros(ram.shared(), EXTENT),
            );
            let why = CallError::Status(Status::ErrorRtt(2));
            assert_eq!(result, Err(RealmError::Call("RTT_DATA_MAP", why)));
            let (base, top) = (EXTENT.pa + 0x1000, EXTENT.pa + EXTENT.size);
            let undone = HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top });
            assert_eq!(calls.last(), Some(&undone));
            assert_eq!(ram.shared().is_lost(), !comes_back);
        }
    }

    /// Where a table is missing, it is told which: not an error.
    #[test]
    fn a_missing_table_is_named() {
        let (result, _) = answered(
            |_| (Status::ErrorRtt(2), [0; 3]),
            || (HEIR.tell_ram(0..0x1000), HEIR.give_content(EXTENT)),
        );
        let missing = Ok(Reached::NoTable(3));
        assert_eq!(result, (missing.clone(), missing));
    }

    /// What is not there is stepped over as far as EL2 says; what was, is given back
    /// before more is taken out.
    #[test]
    fn what_is_taken_back_goes_back_in_runs_and_holes_are_stepped_over() {
        const BASE: u64 = 0x4000_0000;
        const END: u64 = BASE + 0x80_0000;
        // Runs of IPAs, and where they are.
        let there = [
            (BASE + 0x3000, BASE + 0x5000, 0x20_0000),
            (BASE + 0x20_0000, BASE + 0x40_0000, 0x60_0000),
        ];
        let (result, calls) = answered(
            move |call| match call {
                HostCall::Vendor(Vendor::RttDataUnmap { ipa, top, .. }) => {
                    assert_eq!(top, END);
                    let next = there.iter().find(|(from, ..)| *from > ipa);
                    let next = next.map_or(BASE + 0x4000_0000, |(from, ..)| *from);
                    match there.iter().find(|(from, ..)| *from == ipa) {
                        Some((_, end, pa)) => (Status::Success, [*pa, *end, next]),
                        None => (Status::ErrorRtt(2), [0, 0, next]),
                    }
                }
                HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top }) => {
                    (Status::Success, [top.min(base + 0x10_0000), 0, 0])
                }
                other => panic!("{other:x?}"),
            },
            || at_once(HEIR.take_back(BASE..END, &Pace::new())),
        );
        assert_eq!(result, Ok(()));
        let steps: Vec<_> = calls
            .iter()
            .map(|call| match call {
                HostCall::Vendor(Vendor::RttDataUnmap { ipa, .. }) => (*ipa - BASE, 0),
                HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top }) => (*base, *top),
                other => panic!("{other:x?}"),
            })
            .collect();
        let expected = vec![
            (0, 0),
            (0x3000, 0),
            (0x20_0000, 0x20_2000),
            (0x20_0000, 0),
            (0x60_0000, 0x80_0000),
            (0x70_0000, 0x80_0000),
        ];
        assert_eq!(steps, expected);
    }

    /// A hole that EL2 says ends where it begins is an error, and does not go on for
    /// ever.
    #[test]
    fn a_hole_without_an_end_is_an_error() {
        let (result, calls) = answered(
            |_| (Status::ErrorRtt(3), [0, 0, 0x4000_0000]),
            || at_once(HEIR.take_back(0x4000_0000..0x4010_0000, &Pace::new())),
        );
        assert_eq!(result, Err(stuck("RTT_DATA_UNMAP")));
        assert_eq!(calls.len(), 1);
    }
}

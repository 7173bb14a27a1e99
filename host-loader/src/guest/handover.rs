//! A protected guest's memory: given to its realm, and taken back.
//!
//! While it is the realm's, the host cannot reach it; when it comes back, it is all
//! zero.

use super::failure::RealmError;
use super::ram::{Extent, Ram};
use crate::pace::Pace;
use crate::rmi_call::{self, CallError, Removed};
use core::ops::Range;
use rmi::Status;

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
    use crate::pace::at_once;
    use alloc::boxed::Box;
    use arm64::recording;
    use rmi::call::HostCall;
    use rmi::vendor::Vendor;
    use rmi::{Command, fid, vendor};
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::vec;
    use std::vec::Vec;

    const HEIR: Heir = Heir {
        rd: 0x1000,
        granule: 0x1000,
    };

    /// What `f` comes to where `answer` answers its calls, and the calls.
    fn answered<R>(
        answer: impl Fn(HostCall) -> (Status, [u64; 2]) + 'static,
        f: impl FnOnce() -> R,
    ) -> (R, Vec<HostCall>) {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let made = calls.clone();
        recording::answer_calls(Box::new(move |registers| {
            let call = HostCall::decode(registers).unwrap();
            made.borrow_mut().push(call);
            let (status, [first, second]) = answer(call);
            [status.pack(), first, second, 0, 0]
        }));
        let result = f();
        recording::reset();
        (result, calls.take())
    }

    fn stuck(what: &'static str) -> RealmError {
        RealmError::Call(what, CallError::Status(Status::ErrorInput))
    }

    /// An EL2 that says that it did something, and did nothing, is not asked for ever.
    #[test]
    fn a_call_that_does_not_get_on_is_an_error() {
        let extent = Extent {
            ipa: 0x4000_0000,
            pa: 0x20_0000,
            size: 0x4000,
        };
        for (what, function) in [
            ("GRANULE_RANGE_DELEGATE", vendor::GRANULE_RANGE_DELEGATE),
            ("GRANULE_RANGE_UNDELEGATE", vendor::GRANULE_RANGE_UNDELEGATE),
            ("RTT_INIT_RIPAS", fid::RMI_RTT_INIT_RIPAS),
        ] {
            let (result, calls) = answered(
                move |call| match call {
                    HostCall::Vendor(
                        Vendor::GranuleRangeDelegate { base, .. }
                        | Vendor::GranuleRangeUndelegate { base, .. },
                    )
                    | HostCall::Rmi(Command::RttInitRipas { base, .. }) => {
                        (Status::Success, [base, 0])
                    }
                    other => panic!("{other:x?}"),
                },
                || match what {
                    "RTT_INIT_RIPAS" => HEIR.tell_ram(0x4000_0000..0x4000_4000).map(drop),
                    "GRANULE_RANGE_DELEGATE" => HEIR.give_zeros(extent),
                    _ => undelegate(0x20_0000..0x20_4000),
                },
            );
            assert_eq!(result, Err(stuck(what)));
            assert_eq!(calls.len(), 1, "{function:#x}");
        }
    }

    /// Where a table is missing, it is told which: not an error.
    #[test]
    fn telling_of_ram_stops_where_a_table_is_missing() {
        let (result, calls) = answered(
            |call| match call {
                HostCall::Rmi(Command::RttInitRipas { base, .. }) if base < 0x4020_0000 => {
                    (Status::Success, [0x4020_0000, 0])
                }
                _ => (Status::ErrorRtt(2), [0, 0]),
            },
            || HEIR.tell_ram(0x4000_0000..0x4060_0000),
        );
        assert_eq!(result, Ok((0x4020_0000, Some(3))));
        assert_eq!(calls.len(), 2);
    }

    /// Granules one after another go back by one call, and what is not there is
    /// stepped over as far as EL2 says.
    #[test]
    fn what_is_taken_back_goes_back_in_runs_and_holes_are_stepped_over() {
        const BASE: u64 = 0x4000_0000;
        // Two granules that are one after another, then one that is not; one of the
        // second table, which follows in memory.
        let there = [
            (BASE + 0x3000, 0x20_0000),
            (BASE + 0x4000, 0x20_1000),
            (BASE + 0x7000, 0x50_0000),
            (BASE + 0x20_0000, 0x50_1000),
        ];
        let (result, calls) = answered(
            move |call| match call {
                HostCall::Rmi(Command::DataDestroy { ipa, .. }) => {
                    if ipa >= BASE + 0x40_0000 {
                        return (Status::ErrorRtt(2), [0, BASE + 0x4000_0000]);
                    }
                    let end = (ipa | 0x1f_ffff) + 1;
                    let next = there.iter().find(|(at, _)| (ipa + 1..end).contains(at));
                    let top = next.map_or(end, |(at, _)| *at);
                    match there.iter().find(|(at, _)| *at == ipa) {
                        Some((_, pa)) => (Status::Success, [*pa, top]),
                        None => (Status::ErrorRtt(3), [0, top]),
                    }
                }
                HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top }) => {
                    // A granule at a time.
                    (Status::Success, [top.min(base + 0x1000), 0])
                }
                other => panic!("{other:x?}"),
            },
            || at_once(HEIR.take_back(BASE..BASE + 0x80_0000, &Pace::new())),
        );
        assert_eq!(result, Ok(()));
        let destroyed = calls.iter().filter_map(|call| match call {
            HostCall::Rmi(Command::DataDestroy { ipa, .. }) => Some(*ipa - BASE),
            _ => None,
        });
        let expected = [0, 0x3000, 0x4000, 0x7000, 0x20_0000, 0x40_0000];
        assert_eq!(destroyed.collect::<Vec<_>>(), expected);
        let returned = calls.iter().filter_map(|call| match call {
            HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top }) => Some((*base, *top)),
            _ => None,
        });
        let expected = vec![
            (0x20_0000, 0x20_2000),
            (0x20_1000, 0x20_2000),
            (0x50_0000, 0x50_2000),
            (0x50_1000, 0x50_2000),
        ];
        assert_eq!(returned.collect::<Vec<_>>(), expected);
    }

    /// A hole that EL2 says ends where it begins is an error, and does not go on for
    /// ever.
    #[test]
    fn a_hole_without_an_end_is_an_error() {
        let hole = CallError::Status(Status::ErrorRtt(3));
        let (result, calls) = answered(
            |_| (Status::ErrorRtt(3), [0, 0x4000_0000]),
            || at_once(HEIR.take_back(0x4000_0000..0x4010_0000, &Pace::new())),
        );
        assert_eq!(result, Err(RealmError::Call("DATA_DESTROY", hole)));
        assert_eq!(calls.len(), 1);
    }
}

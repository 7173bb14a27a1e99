//! What a realm's addresses are, and what it asks them to be. Of EL2's granules only
//! those that lie in the range whole become EMPTY, and what is RAM in part is RAM.

use core::ops::Range;

use ::rmi::rsi::{ACCEPT, CHANGE_DESTROYED, Code, GRANULE, REJECT};
use ::rmi::run::{EnterFlags, ExitReason};
use pgtable::{ChangeDestroyed, Ipa, Ripas};

use super::{Served, answer, returned};
use crate::guest::record::{Next, Record};
use crate::realm::Realm;
use crate::rec::{Pending, RipasChange, VcpuState};

/// What is asked about `range`: all of it the realm's own, in units of RSI's granule.
fn own(realm: &Realm, range: &Range<u64>) -> Result<(), Code> {
    let aligned = range.start.is_multiple_of(GRANULE) && range.end.is_multiple_of(GRANULE);
    let own = range.start < range.end && realm.is_protected(range.end - 1);
    if aligned && own {
        Ok(())
    } else {
        Err(Code::ErrorInput)
    }
}

/// The least granules of EL2's that hold all of `range`.
fn around(realm: &Realm, range: &Range<u64>) -> Range<u64> {
    let granule = realm.granule();
    // No overflow: the realm's own half ends far below 2^64, aligned to a granule.
    range.start & !(granule - 1)..range.end.next_multiple_of(granule)
}

/// The granules that lie in `range`: it may be empty, and end before it begins.
fn within(realm: &Realm, range: &Range<u64>) -> Range<u64> {
    let granule = realm.granule();
    range.start.next_multiple_of(granule)..range.end & !(granule - 1)
}

pub(super) fn ripas(realm: &Realm, range: Range<u64>) -> Served<2> {
    own(realm, &range)?;
    let Range { start, end } = around(realm, &range);
    let rtt = realm.rtt.lock();
    let tables = rtt.as_ref().ok_or(Code::ErrorInput)?;
    let found = tables.ripas(Ipa::new(start)..Ipa::new(end));
    let (ripas, reached) = found.map_err(|_| Code::ErrorInput)?;
    Ok([reached.get().min(range.end), ripas as u64])
}

/// Asks the host for a change of `range`.
pub(super) fn change_ripas(
    realm: &Realm,
    state: &mut VcpuState,
    range: Range<u64>,
    to: u64,
    flags: u64,
) -> Next {
    let to = match to {
        0 => Ripas::Empty,
        1 => Ripas::Ram,
        _ => return answer::<0>(state, Err(Code::ErrorInput.into())),
    };
    if let Err(code) = own(realm, &range) {
        return answer::<0>(state, Err(code.into()));
    }
    let destroyed = match flags & CHANGE_DESTROYED {
        0 => ChangeDestroyed::No,
        _ => ChangeDestroyed::Yes,
    };
    let granules = match to {
        Ripas::Ram => around(realm, &range),
        _ => within(realm, &range),
    };
    if granules.is_empty() {
        // Parts of granules, which stay RAM.
        return answer(state, Ok([range.end, ACCEPT]));
    }
    state.gprs.step();
    state.pending = Pending::Ripas;
    state.ripas = RipasChange {
        reached: granules.start,
        top: granules.end,
        asked: (range.start, range.end),
        to,
        destroyed,
    };
    Next::Exit(Record::new(ExitReason::RipasChange))
}

/// Tells a realm how far its change has come.
pub fn finish_ripas(state: &mut VcpuState, flags: EnterFlags) {
    let change = state.ripas;
    let whole = change.reached == change.top;
    let refused = change.to == Ripas::Ram && flags.contains(EnterFlags::RIPAS_RESPONSE);
    // In the realm's own terms, which may begin and end amid a granule.
    let (base, end) = change.asked;
    let reached = if whole { end } else { change.reached.max(base) };
    let response = if refused && !whole { REJECT } else { ACCEPT };
    returned(state, Code::Success, &[reached, response]);
}

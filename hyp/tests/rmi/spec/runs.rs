//! A realm's own memory by ranges: as many granules, or one block, as one call does.

use std::ops::Range;

use super::realms::Life;
use super::tables::{Entry, Ripas, Slot};
use super::{Content, Outcome, Realm, Refusal, Spec, State, Status, ask, one};

/// What one call scrubs.
const STEP: u64 = 2 << 20;

/// Addresses that a call may name: pages of the realm's own, one at least.
fn ask_range(realm: &Realm, ipas: &Range<u64>) -> Result<(), Status> {
    let page = realm.tables.machine.page();
    let whole = ipas.start.is_multiple_of(page) && ipas.end.is_multiple_of(page);
    let own = ipas.end <= realm.shared_from;
    ask(!ipas.is_empty() && whole && own, Status::Input)
}

/// The entries of the table that a walk ended in, from there on: each with the range
/// that it spans.
fn entries(realm: &Realm, slot: Slot) -> Vec<(Slot, Range<u64>)> {
    let tables = &realm.tables;
    let span = tables.machine.span(slot.level);
    (slot.index..tables.end(&slot))
        .map(|index| {
            let from = tables.address(slot.key, index);
            let entry = tables.all[&slot.key].entries()[index];
            let slot = Slot {
                index,
                entry,
                ..slot
            };
            (slot, from..from + span)
        })
        .collect()
}

impl Spec {
    /// RTT_DATA_MAP.
    pub(super) fn rtt_data_map(&mut self, rd: u64, ipas: Range<u64>, pa: u64) -> Outcome {
        self.realm(rd)?;
        let free = |spec: &Self, pa| spec.is(pa, State::Delegated);
        let places = self.places(rd, &ipas, pa, free)?;
        self.fill(rd, &places, pa, |ripas| (ripas, Some(Content::ZERO)))
    }

    /// RTT_DATA_DONATE: the content stays. A realm takes no unmeasured memory so.
    pub(super) fn rtt_data_donate(&mut self, rd: u64, ipas: Range<u64>, pa: u64) -> Outcome {
        let realm = self.realm(rd)?;
        ask(realm.life == Life::New, Status::Realm(0))?;
        // What a realm begins with counts in its measurement.
        ask(realm.measured.is_none(), Status::Input)?;
        let places = self.places(rd, &ipas, pa, Self::can_go)?;
        self.fill(rd, &places, pa, |_| (Ripas::Ram, None))
    }

    /// The entries that take memory: unassigned, of one table, one after another. A
    /// block is taken whole; where it does not fit, a table of pages is wanted.
    fn places(
        &self,
        rd: u64,
        ipas: &Range<u64>,
        pa: u64,
        free: impl Fn(&Self, u64) -> bool,
    ) -> Result<Vec<(Slot, Range<u64>)>, Status> {
        let (realm, machine) = (self.realm(rd)?, &self.machine);
        ask_range(realm, ipas)?;
        ask(pa.is_multiple_of(machine.page()), Status::Input)?;
        let most = if machine.fwb { machine.span(2) } else { STEP };
        let end = ipas.end.min(ipas.start + most);
        let slot = realm.tables.walk(ipas.start, 3);
        let span = machine.span(slot.level);
        let fits = realm.tables.maps_memory(slot.level, false)
            && ipas.start.is_multiple_of(span)
            && pa.is_multiple_of(span);
        let vacant = |(slot, at): &(Slot, Range<u64>)| {
            matches!(slot.entry, Entry::Unassigned(_)) && at.end <= end
        };
        let mut places = entries(realm, slot);
        let count = places.iter().take_while(|place| vacant(place)).count();
        ask(fits && count > 0, Status::Rtt(slot.level))?;
        // Granules of one span.
        let span_end =
            (u128::from(pa) / u128::from(machine.span(2)) + 1) * u128::from(machine.span(2));
        let most = (count as u64 * span).min((span_end - u128::from(pa)) as u64);
        let granules = (0..most / machine.page())
            .take_while(|n| free(self, pa.saturating_add(n * machine.page())))
            .count() as u64;
        ask(granules > 0, Status::Input)?;
        let whole = granules * machine.page() / span;
        ask(whole > 0, Status::Rtt(slot.level))?;
        places.truncate(whole as usize);
        Ok(places)
    }

    /// Memory from `pa` on is a realm's at these entries: what its RIPAS and content
    /// become.
    fn fill(
        &mut self,
        rd: u64,
        places: &[(Slot, Range<u64>)],
        pa: u64,
        become_of: impl Fn(Ripas) -> (Ripas, Option<Content>),
    ) -> Outcome {
        let (mut pa, mut end) = (pa, 0);
        for (slot, at) in places {
            let Entry::Unassigned(was) = slot.entry else {
                continue;
            };
            let (ripas, content) = become_of(was);
            self.put(rd, slot, Entry::Assigned(ripas, pa));
            for _ in at.clone().step_by(self.machine.page() as usize) {
                let held = self.granule(pa).map(|granule| granule.content.clone());
                let content = content.clone().or(held).unwrap_or(Content::Other);
                self.becomes(pa, State::Data, content);
                pa += self.machine.page();
            }
            end = at.end;
        }
        Ok(one(end))
    }

    /// RTT_DATA_UNMAP: X1 and X2 say where the memory was and to which address it
    /// reached. What is too much to scrub in one call is scrubbed when it goes back. A
    /// block above level 2 does not go whole.
    pub(super) fn rtt_data_unmap(&mut self, rd: u64, ipas: Range<u64>) -> Outcome {
        let realm = self.realm(rd)?;
        ask_range(realm, &ipas)?;
        let slot = realm.tables.walk(ipas.start, 3);
        let mut gone: Vec<(Slot, Ripas)> = Vec::new();
        let (mut from, mut end) = (0, ipas.start);
        for (place, at) in entries(realm, slot) {
            let Entry::Assigned(ripas, pa) = place.entry else {
                break;
            };
            let first = gone.is_empty();
            let follows = if first {
                at.start == ipas.start && slot.level >= 2
            } else {
                pa == from + (at.start - ipas.start) && at.end - ipas.start <= STEP
            };
            if !follows || at.end > ipas.end {
                break;
            }
            if first {
                from = pa;
            }
            end = at.end;
            gone.push((place, ripas));
        }
        let Some((last, _)) = gone.last().copied() else {
            let top = realm.tables.top(&slot, ipas.start);
            return Err(Refusal(Status::Rtt(slot.level), [0, 0, top, 0]));
        };
        for (place, ripas) in &gone {
            let left = match ripas {
                Ripas::Empty => Ripas::Empty,
                Ripas::Ram | Ripas::Destroyed => Ripas::Destroyed,
            };
            self.put(rd, place, Entry::Unassigned(left));
        }
        let size = end - ipas.start;
        for pa in (from..from + size).step_by(self.machine.page() as usize) {
            if size <= STEP {
                self.becomes(pa, State::Delegated, Content::ZERO);
            } else {
                self.becomes(pa, State::Unscrubbed, Content::Other);
            }
        }
        let tables = &self.realm(rd)?.tables;
        let top = tables.top(&last, tables.address(last.key, last.index));
        Ok([from, end, top, 0])
    }
}

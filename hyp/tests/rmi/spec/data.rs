//! A realm's own memory, and what it was told of its addresses.

use super::realms::Life;
use super::tables::{Entry, Ripas, Slot};
use super::{Content, NOTHING, Outcome, Realm, Refusal, Spec, State, Status, ask, one};

/// Where a walk for a page of a realm's own ends.
fn page(realm: &Realm, ipa: u64) -> Result<Slot, Status> {
    ask(realm.has(ipa, 3) && realm.is_protected(ipa), Status::Input)?;
    Ok(realm.tables.walk(ipa, 3))
}

/// As [`page`], where nothing is assigned: its RIPAS too.
fn free_page(realm: &Realm, ipa: u64) -> Result<(Slot, Ripas), Status> {
    let slot = page(realm, ipa)?;
    match slot.entry {
        Entry::Unassigned(ripas) if slot.level == 3 => Ok((slot, ripas)),
        _ => Err(Status::Rtt(slot.level)),
    }
}

impl Spec {
    /// RMI_DATA_CREATE(rd, data, ipa, src, flags). Nothing is measured.
    pub(super) fn data_create(&mut self, x: [u64; 5]) -> Outcome {
        let [rd, data, ipa, src, flags] = x;
        ask(flags == 0, Status::Input)?;
        ask(self.is(src, State::Ns), Status::Input)?;
        ask(self.is(data, State::Delegated), Status::Input)?;
        let realm = self.realm(rd)?;
        ask(realm.life == Life::New, Status::Realm(0))?;
        let (slot, _) = free_page(realm, ipa)?;
        let content = self.granule(src).map_or(Content::Zero, |src| src.content);
        self.becomes(data, State::Data, content);
        self.put(rd, &slot, Entry::Assigned(Ripas::Ram, data));
        Ok(NOTHING)
    }

    /// RMI_DATA_CREATE_UNKNOWN.
    pub(super) fn data_create_unknown(&mut self, rd: u64, data: u64, ipa: u64) -> Outcome {
        ask(self.is(data, State::Delegated), Status::Input)?;
        let (slot, ripas) = free_page(self.realm(rd)?, ipa)?;
        self.becomes(data, State::Data, Content::Zero);
        self.put(rd, &slot, Entry::Assigned(ripas, data));
        Ok(NOTHING)
    }

    /// RMI_DATA_DESTROY.
    pub(super) fn data_destroy(&mut self, rd: u64, ipa: u64) -> Outcome {
        let realm = self.realm(rd)?;
        let slot = page(realm, ipa)?;
        let (ripas, data) = match slot.entry {
            Entry::Assigned(ripas, data) if slot.level == 3 => (ripas, data),
            _ => {
                let top = realm.tables.top(&slot, ipa);
                return Err(Refusal(Status::Rtt(slot.level), [0, top, 0, 0]));
            }
        };
        let left = match ripas {
            Ripas::Empty => Ripas::Empty,
            Ripas::Ram | Ripas::Destroyed => Ripas::Destroyed,
        };
        self.becomes(data, State::Delegated, Content::Zero);
        self.put(rd, &slot, Entry::Unassigned(left));
        Ok([data, self.realm(rd)?.tables.top(&slot, ipa), 0, 0])
    }

    /// RMI_RTT_INIT_RIPAS: entries of one table, from `base` on, as far as they are
    /// whole in the range and can change.
    pub(super) fn rtt_init_ripas(&mut self, rd: u64, base: u64, top: u64) -> Outcome {
        ask(base < top, Status::Input)?;
        let page = self.machine.page();
        let realm = self.realm_mut(rd)?;
        let aligned = base.is_multiple_of(page) && top.is_multiple_of(page);
        ask(aligned && top <= realm.shared_from, Status::Input)?;
        ask(realm.life == Life::New, Status::Realm(0))?;
        let slot = realm.tables.walk(base, 3);
        let span = realm.tables.machine.span(slot.level);
        ask(base.is_multiple_of(span), Status::Rtt(slot.level))?;
        let mut at = base;
        for index in slot.index..realm.tables.end(&slot) {
            let table = &realm.tables.all[&slot.key];
            let can = matches!(
                table.entries()[index],
                Entry::Unassigned(Ripas::Empty | Ripas::Ram)
            );
            if !can || at + span > top {
                break;
            }
            let slot = Slot { index, ..slot };
            realm.tables.set(&slot, Entry::Unassigned(Ripas::Ram));
            at += span;
        }
        ask(at > base, Status::Rtt(slot.level))?;
        Ok(one(at))
    }

    /// RMI_RTT_SET_RIPAS, which no vCPU of Undercroft's modes asks for.
    pub(super) fn rtt_set_ripas(&mut self, rd: u64, rec: u64, base: u64, top: u64) -> Outcome {
        ask(base < top, Status::Input)?;
        self.realm(rd)?;
        let rec = self.recs.get(&rec).ok_or(Status::Input)?;
        ask(rec.rd == rd, Status::Rec)?;
        Err(Status::Input.into())
    }
}

//! A realm's own memory, and what it was told of its addresses.

use super::realms::Life;
use super::recs::Pending;
use super::tables::{Entry, Ripas, Slot};
use super::{Content, Memory, NOTHING, Outcome, Realm, Refusal, Spec, State, Status, ask, one};

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
    /// RMI_DATA_CREATE(rd, data, ipa, src, flags); of flags there is one, that the
    /// content is measured, and that of a realm alone.
    pub(super) fn data_create(&mut self, x: [u64; 5], memory: Memory<'_>) -> Outcome {
        let [rd, data, ipa, src, flags] = x;
        ask(flags <= 1, Status::Input)?;
        ask(self.is(src, State::Ns), Status::Input)?;
        ask(self.is(data, State::Delegated), Status::Input)?;
        let realm = self.realm(rd)?;
        ask(realm.life == Life::New, Status::Realm(0))?;
        ask(flags == 0 || realm.measured.is_some(), Status::Input)?;
        let (slot, _) = free_page(realm, ipa)?;
        let words = || {
            (0..self.machine.page())
                .step_by(8)
                .map(|at| (at, memory(src + at)))
        };
        let content = match self.granule(src).map(|src| src.content.clone()) {
            Some(Content::Words(word, but)) => Content::Words(word, but),
            _ => Content::Words(0, words().filter(|(_, word)| *word != 0).collect()),
        };
        let bytes =
            (flags == 1).then(|| words().flat_map(|(_, word)| word.to_le_bytes()).collect());
        if let Some(measured) = &mut self.realm_mut(rd)?.measured {
            measured.data(ipa, flags, bytes);
        }
        self.becomes(data, State::Data, content);
        self.put(rd, &slot, Entry::Assigned(Ripas::Ram, data));
        Ok(NOTHING)
    }

    /// RMI_DATA_CREATE_UNKNOWN.
    pub(super) fn data_create_unknown(&mut self, rd: u64, data: u64, ipa: u64) -> Outcome {
        ask(self.is(data, State::Delegated), Status::Input)?;
        let (slot, ripas) = free_page(self.realm(rd)?, ipa)?;
        self.becomes(data, State::Data, Content::ZERO);
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
        self.becomes(data, State::Delegated, Content::ZERO);
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
            let can = matches!(table.entries()[index], Entry::Unassigned(_));
            // As many as a table of 4 KiB has: each is hashed.
            if !can || at + span > top || index - slot.index == 512 {
                break;
            }
            let slot = Slot { index, ..slot };
            realm.tables.set(&slot, Entry::Unassigned(Ripas::Ram));
            if let Some(measured) = &mut realm.measured {
                measured.ripas(at, at + span);
            }
            at += span;
        }
        ask(at > base, Status::Rtt(slot.level))?;
        Ok(one(at))
    }

    /// RMI_RTT_SET_RIPAS: what a vCPU asked for, from where the host has come to: entries
    /// of one table, as far as they are whole in the range and may change.
    pub(super) fn rtt_set_ripas(&mut self, rd: u64, rec: u64, base: u64, top: u64) -> Outcome {
        ask(base < top, Status::Input)?;
        self.realm(rd)?;
        let vcpu = *self.recs.get(&rec).ok_or(Status::Input)?;
        ask(vcpu.rd == rd, Status::Rec)?;
        let Pending::Ripas {
            reached,
            top: last,
            asked,
            ram,
            destroyed,
        } = vcpu.pending
        else {
            return Err(Status::Input.into());
        };
        let whole = top.is_multiple_of(self.machine.page());
        ask(base == reached && top <= last && whole, Status::Input)?;
        let realm = self.realm_mut(rd)?;
        let slot = realm.tables.walk(base, 3);
        let span = realm.tables.machine.span(slot.level);
        ask(base.is_multiple_of(span), Status::Rtt(slot.level))?;
        let to = if ram { Ripas::Ram } else { Ripas::Empty };
        let may = |was| was != Ripas::Destroyed || destroyed;
        let mut at = base;
        for index in slot.index..realm.tables.end(&slot) {
            let entry = match realm.tables.all[&slot.key].entries()[index] {
                Entry::Unassigned(was) if may(was) => Entry::Unassigned(to),
                Entry::Assigned(was, pa) if may(was) => Entry::Assigned(to, pa),
                _ => break,
            };
            if at + span > top {
                break;
            }
            realm.tables.set(&Slot { index, ..slot }, entry);
            at += span;
        }
        ask(at > base, Status::Rtt(slot.level))?;
        let pending = Pending::Ripas {
            reached: at,
            top: last,
            asked,
            ram,
            destroyed,
        };
        self.recs.entry(rec).and_modify(|rec| rec.pending = pending);
        Ok(one(at))
    }
}

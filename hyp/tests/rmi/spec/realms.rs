//! Realms: made, activated, ended.

use std::collections::BTreeMap;

use super::measure::Measured;
use super::tables::{Entry, Ripas, Slot, Table, Tables};
use super::{Content, Memory, NOTHING, Outcome, Spec, State, Status, ask};

/// The life of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    New,
    Active,
    SystemOff,
}

/// A realm.
#[derive(Clone, Debug)]
pub struct Realm {
    pub life: Life,
    pub ipa_bits: u32,
    /// Where the addresses begin that it shares with the host; 0 for a plain guest.
    pub shared_from: u64,
    pub vmid: u16,
    pub roots: Vec<u64>,
    pub tables: Tables,
    /// Its interrupts are the host's, by list registers.
    pub host_lrs: bool,
    /// What a realm is measured as: of no other guest.
    pub measured: Option<Measured>,
    /// The host's words for it.
    pub rpv: [u64; 8],
    /// vCPUs ever made.
    pub made: u64,
    /// Its page of posted accesses.
    pub posted: Option<u64>,
}

impl Realm {
    /// An address of its own.
    pub fn is_protected(&self, ipa: u64) -> bool {
        ipa < self.shared_from
    }

    /// A multiple of an entry's span, in its space.
    pub fn has(&self, ipa: u64, level: i8) -> bool {
        ipa >> self.ipa_bits == 0 && ipa.is_multiple_of(self.tables.machine.span(level))
    }
}

const LPA2: u64 = 1 << 0;
const PROTECTED: u64 = 1 << 61;
const NONCONF: u64 = 1 << 62;
const EL2_VGIC: u64 = 1 << 63;

impl Spec {
    /// RMI_REALM_CREATE; flags and modes as `docs/abi.md` has them.
    pub(super) fn realm_create(&mut self, rd: u64, params: u64, memory: Memory<'_>) -> Outcome {
        ask(self.is(params, State::Ns), Status::Input)?;
        let word = |offset| memory(params + offset);
        let (flags, ipa_bits) = (word(0), word(8) as u8);
        let (vmid, base) = (word(0x800) as u16, word(0x808));
        let (start, count) = (word(0x810) as i64, word(0x818) as u32);

        let mode = flags & !LPA2;
        let known = [PROTECTED | EL2_VGIC, NONCONF | EL2_VGIC, EL2_VGIC, 0];
        ask(known.contains(&mode), Status::Input)?;
        let is_realm = mode & !EL2_VGIC == 0;
        // Breakpoints and watchpoints, less one: two of each is what there is; the hash.
        let (breakpoints, watchpoints) = (word(0x18) as u8, word(0x20) as u8);
        let counts = breakpoints == 1 && watchpoints == 1;
        ask(!is_realm || counts && word(0x30) as u8 <= 1, Status::Input)?;
        let lpa2 = flags & LPA2 != 0;
        let roots = self.machine.roots(ipa_bits.into(), start, lpa2);
        ask(roots == Some(count.into()), Status::Input)?;
        let size = self.machine.page();
        let aligned = base.is_multiple_of(u64::from(count) * size);
        ask(aligned, Status::Input)?;
        ask(self.is(base, State::Delegated), Status::Input)?;
        let roots: Vec<u64> = (0..u64::from(count)).map(|n| base + n * size).collect();
        for root in &roots {
            ask(self.is(*root, State::Delegated), Status::Input)?;
        }
        ask(self.is(rd, State::Delegated), Status::Input)?;
        ask(!roots.contains(&rd), Status::Input)?;
        let widest = if self.machine.vmid16 { 0xffff } else { 0xff };
        // One is EL2's, which the highest stands for.
        ask(vmid < widest, Status::Input)?;
        let vmid = if vmid == 0 { widest } else { vmid };
        let taken = self.realms.values().any(|realm| realm.vmid == vmid);
        ask(!taken, Status::Input)?;

        let start = start as i8;
        let shared_from = if mode & NONCONF == 0 {
            1 << (ipa_bits - 1)
        } else {
            0
        };
        let entries = 1u64 << (u32::from(ipa_bits) - self.machine.span_bits(start));
        let own = shared_from / self.machine.span(start);
        let entry = |n| {
            if n < own {
                Entry::Unassigned(Ripas::Empty)
            } else {
                Entry::UnassignedNs
            }
        };
        let root = Table::new(base, (0..entries).map(entry).collect());
        for root in &roots {
            self.becomes(*root, State::Rtt, Content::Other);
        }
        self.becomes(rd, State::Rd, Content::Other);
        let realm = Realm {
            life: Life::New,
            ipa_bits: ipa_bits.into(),
            shared_from,
            vmid,
            roots,
            tables: Tables {
                wide: lpa2,
                machine: self.machine,
                start,
                all: BTreeMap::from([((start, 0), root)]),
            },
            host_lrs: mode == 0,
            measured: is_realm.then(|| Measured::realm(word)),
            rpv: std::array::from_fn(|n| word(0x400 + 8 * n as u64)),
            made: 0,
            posted: None,
        };
        self.realms.insert(rd, realm);
        Ok(NOTHING)
    }

    /// RMI_REALM_ACTIVATE.
    pub(super) fn realm_activate(&mut self, rd: u64) -> Outcome {
        let realm = self.realm_mut(rd)?;
        ask(realm.life == Life::New, Status::Realm(0))?;
        realm.life = Life::Active;
        Ok(NOTHING)
    }

    /// RMI_REALM_DESTROY. What the root itself maps of the host's memory is no
    /// obstacle.
    pub(super) fn realm_destroy(&mut self, rd: u64) -> Outcome {
        let realm = self.realm(rd)?;
        let recs = self.recs.values().any(|rec| rec.rd == rd);
        let root = &realm.tables.all[&(realm.tables.start, 0)];
        ask(!recs && root.kept == 0, Status::Realm(0))?;
        let (roots, posted, start) = (realm.roots.clone(), realm.posted, realm.tables.start);
        let mapped: Vec<Entry> = root.entries().to_vec();
        for entry in mapped {
            self.let_go(entry, start);
        }
        if let Some(page) = posted {
            self.granule_mut(page).uses -= 1;
        }
        self.realms.remove(&rd);
        for root in roots {
            self.becomes(root, State::Delegated, Content::ZERO);
        }
        self.becomes(rd, State::Delegated, Content::ZERO);
        Ok(NOTHING)
    }

    /// SET_POSTED: a page for a device of the realm's, or none any more.
    pub(super) fn set_posted(&mut self, rd: u64, page: u64, ipa: u64) -> Outcome {
        let realm = self.realm(rd)?;
        if page == 0 {
            let page = realm.posted.ok_or(Status::Input)?;
            self.granule_mut(page).uses -= 1;
            self.realm_mut(rd)?.posted = None;
            return Ok(NOTHING);
        }
        ask(realm.posted.is_none(), Status::Input)?;
        let shared = !realm.is_protected(ipa) && ipa >> realm.ipa_bits == 0;
        ask(shared && ipa.is_multiple_of(4096), Status::Input)?;
        let at = ipa - realm.shared_from;
        // The distributor's frame, and two of 64 KiB for each of 64 vCPUs.
        let gic = (0x0800_0000..0x0801_0000).contains(&at)
            || (0x080A_0000..0x080A_0000 + 64 * 0x2_0000).contains(&at);
        ask(!gic && self.is(page, State::Ns), Status::Input)?;
        self.granule_mut(page).uses += 1;
        self.realm_mut(rd)?.posted = Some(page);
        Ok(NOTHING)
    }

    /// Changes an entry of a realm's.
    pub(super) fn put(&mut self, rd: u64, slot: &Slot, entry: Entry) {
        if let Some(realm) = self.realms.get_mut(&rd) {
            realm.tables.set(slot, entry);
        }
    }
}

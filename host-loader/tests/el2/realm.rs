//! Realms and vCPUs.

use super::{BAD, El2, Owner, entry_size};
use host_loader::guest::realm::Shape;
use rmi::Status;
use rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Auxiliary granules of each vCPU.
pub const AUX: u64 = 3;

/// A change of RIPAS that a vCPU has asked for.
pub struct Asks {
    pub rec: u64,
    /// What of it is left.
    pub ipas: Range<u64>,
    /// RAM, or EMPTY.
    pub to_ram: bool,
}

pub struct RealmState {
    pub rd: u64,
    pub(super) granule_shift: u32,
    pub ipa_bits: u32,
    /// Its descriptors are LPA2's, as the host said.
    pub lpa2: bool,
    pub(super) start: i64,
    pub active: bool,
    /// Where the half begins that it shares with the host.
    pub shared: u64,
    pub(super) roots: Vec<u64>,
    /// Tables below the roots: (level, base IPA) to granule.
    pub(super) tables: BTreeMap<(i64, u64), u64>,
    /// Mapped entries: (level, IPA) to output address.
    pub mapped: BTreeMap<(i64, u64), u64>,
    /// Its own memory, by IPA.
    pub data: BTreeMap<u64, Data>,
    /// Granules of its addresses that are RAM to it.
    pub ram: BTreeSet<u64>,
    pub recs: BTreeMap<u64, Vec<u64>>,
    pub asks: Option<Asks>,
    /// It is measured, so that its content is copied.
    pub is_realm: bool,
    /// What was copied and counts, in order.
    pub measured: Vec<u64>,
    /// Where its first vCPU starts, and with what in X0.
    pub start_at: (u64, u64),
    /// A page of the host's for the realm's device at an IPA.
    pub posted: Option<(u64, u64)>,
}

/// A granule of a realm's memory.
pub struct Data {
    pub pa: u64,
    /// What it holds; all zero otherwise.
    pub content: Option<Vec<u8>>,
}

impl RealmState {
    pub fn size(&self, level: i64) -> u64 {
        entry_size(self.granule_shift, level)
    }
}

impl El2 {
    pub(super) fn realm_create(&mut self, rd: u64, page: u64) -> Status {
        let Some(params) = self.read::<RealmParams>(page) else {
            return BAD;
        };
        let Some(flags) = RealmFlags::from_bits(params.flags) else {
            return BAD;
        };
        let shape = Shape {
            granule_shift: self.granule_shift,
            ipa_bits: params.s2sz.into(),
            start_level: params.rtt_level_start,
            roots: params.rtt_num_start,
            lpa2: flags.contains(RealmFlags::LPA2),
        };
        // What the architecture lets the root cover (Arm ARM D8.2.2).
        let covered =
            self.granule_shift + (4 - shape.start_level) as u32 * (self.granule_shift - 3);
        let roots_size = u64::from(shape.roots) << self.granule_shift;
        let roots: Vec<u64> = (0..u64::from(shape.roots))
            .map(|i| params.rtt_base + (i << self.granule_shift))
            .collect();
        let mode = flags - RealmFlags::EL2_VGIC - RealmFlags::LPA2;
        let is_realm = mode.is_empty();
        let shared = match mode {
            RealmFlags::NONCONF => 0,
            _ if is_realm || mode == RealmFlags::PROTECTED => 1 << (shape.ipa_bits - 1),
            _ => return BAD,
        };
        if is_realm && (params.num_bps != 1 || params.num_wps != 1 || params.hash_algo != 0) {
            return BAD;
        }
        if !flags.contains(RealmFlags::EL2_VGIC)
            || !self.has_walk(&shape)
            || self.realm.is_some()
            || params.vmid == 0
            || shape.roots > 16
            || u32::from(params.s2sz) > covered + shape.roots.ilog2()
            || (shape.roots > 1 && u32::from(params.s2sz) != covered + shape.roots.ilog2())
            || !params.rtt_base.is_multiple_of(roots_size)
            || !self.is(rd, Owner::Delegated)
            || roots
                .iter()
                .any(|&pa| pa == rd || !self.is(pa, Owner::Delegated))
        {
            return BAD;
        }
        self.take(rd, Owner::Rd);
        for &pa in &roots {
            self.take(pa, Owner::Root);
        }
        self.realm = Some(RealmState {
            rd,
            granule_shift: self.granule_shift,
            ipa_bits: shape.ipa_bits,
            lpa2: shape.lpa2,
            start: shape.start_level,
            active: false,
            shared,
            roots,
            tables: BTreeMap::new(),
            mapped: BTreeMap::new(),
            data: BTreeMap::new(),
            ram: BTreeSet::new(),
            recs: BTreeMap::new(),
            asks: None,
            is_realm,
            measured: Vec::new(),
            start_at: (0, 0),
            posted: None,
        });
        Status::Success
    }

    /// Whether the CPU has descriptors of this form, and with them so many bits of
    /// address and a walk from that level (Arm ARM D8.2).
    fn has_walk(&self, shape: &Shape) -> bool {
        let (first, bits) = match (self.granule_shift, shape.lpa2) {
            (12, false) => (0, self.pa_bits.min(48)),
            (14, false) => (1, self.pa_bits.min(48)),
            (12, true) => (-1, self.pa_bits),
            (14, true) => (0, self.pa_bits),
            _ => (1, self.pa_bits),
        };
        let has_form = self.lpa2 || !shape.lpa2;
        has_form && shape.ipa_bits <= bits && (first..=3).contains(&shape.start_level)
    }

    pub(super) fn realm_activate(&mut self, rd: u64) -> Status {
        match self.realm.as_mut().filter(|realm| realm.rd == rd) {
            Some(realm) if !realm.active => realm.active = true,
            _ => return BAD,
        }
        Status::Success
    }

    pub(super) fn realm_destroy(&mut self, rd: u64) -> Status {
        let ends = |realm: &mut RealmState| {
            // What is shared counts nowhere.
            let mapped = !realm.mapped.is_empty() && realm.shared == 0;
            let roots_are_live = mapped || !(realm.tables.is_empty() && realm.data.is_empty());
            realm.rd == rd && realm.recs.is_empty() && !roots_are_live
        };
        let Some(realm) = self.realm.take_if(ends) else {
            return Status::ErrorRealm(0);
        };
        for pa in realm.roots.into_iter().chain([realm.rd]) {
            self.owners.insert(pa, Owner::Delegated);
        }
        Status::Success
    }

    pub(super) fn rec_create(&mut self, rd: u64, rec: u64, page: u64) -> Status {
        let Some(params) = self.read::<RecParams>(page) else {
            return BAD;
        };
        let aux = params.aux[..params.num_aux.min(16) as usize].to_vec();
        let all: BTreeSet<u64> = aux.iter().copied().chain([rec]).collect();
        let Some(realm) = self.realm.as_ref().filter(|r| r.rd == rd && !r.active) else {
            return Status::ErrorRealm(0);
        };
        let index = realm.recs.len() as u64;
        let runs = params.flags == RecFlags::RUNNABLE.bits();
        if params.num_aux != AUX
            || all.len() as u64 != AUX + 1
            || all.iter().any(|&pa| !self.is(pa, Owner::Delegated))
            || rmi::params::mpidr_index(params.mpidr) != Some(index)
            || runs != (index == 0)
        {
            return BAD;
        }
        for &pa in &aux {
            self.take(pa, Owner::Aux);
        }
        self.take(rec, Owner::Rec);
        if let Some(realm) = &mut self.realm {
            realm.recs.insert(rec, aux);
            if index == 0 {
                realm.start_at = (params.pc, params.gprs[0]);
            }
        }
        Status::Success
    }

    pub(super) fn rec_destroy(&mut self, rec: u64) -> Status {
        let Some(aux) = self.realm.as_mut().and_then(|r| r.recs.remove(&rec)) else {
            return BAD;
        };
        for pa in aux.into_iter().chain([rec]) {
            self.owners.insert(pa, Owner::Delegated);
        }
        Status::Success
    }

    /// The realm's page for its device, until it is destroyed.
    pub(super) fn set_posted(&mut self, rd: u64, page: u64, ipa: u64) -> Status {
        let hosts = self.is_hosts(page);
        match self.realm.as_mut().filter(|r| r.rd == rd) {
            Some(realm)
                if realm.posted.is_none()
                    && hosts
                    && ipa.is_multiple_of(4096)
                    && (realm.shared..1 << realm.ipa_bits).contains(&ipa) =>
            {
                realm.posted = Some((page, ipa));
            }
            _ => return BAD,
        }
        Status::Success
    }
}

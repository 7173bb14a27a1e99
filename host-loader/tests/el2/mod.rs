//! An EL2 that keeps RMI's books: who owns each granule, and what a realm has.
//!
//! It refuses what RMI 1.0 refuses. What it owns it fills with a pattern, which is
//! still there when it is given back: a host that wrote to it is found out, and one
//! that read it has read nonsense.

mod realm;
mod rtt;

pub use realm::{Asks, RealmState};

use rmi::call::HostCall;
use rmi::vendor::Vendor;
use rmi::{Command, Status};
use std::collections::BTreeMap;
use std::ops::Range;
use zerocopy::FromBytes;

/// What EL2 has of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Delegated,
    Rd,
    Root,
    Rtt,
    Rec,
    Aux,
    Data,
}

const BAD: Status = Status::ErrorInput;

/// Most bytes that a call of a range's does.
const STEP: u64 = 2 << 20;

#[derive(Default)]
pub struct El2 {
    pub granule_shift: u32,
    /// Bits of address of the CPU.
    pub pa_bits: u32,
    /// It has FEAT_LPA2 for this granule.
    pub lpa2: bool,
    pub memory: Range<u64>,
    pub owners: BTreeMap<u64, Owner>,
    pub realm: Option<RealmState>,
    /// The function identifiers of the calls so far.
    pub calls: Vec<u64>,
    /// The calls that fail, the first being 1.
    pub failing: Option<Range<usize>>,
    /// Calls that were refused, but by a status that a walk ends with.
    pub errors: usize,
}

/// Bytes that one entry of `level` maps.
fn entry_size(granule_shift: u32, level: i64) -> u64 {
    1 << (granule_shift + (3 - level) as u32 * (granule_shift - 3))
}

impl El2 {
    fn granule(&self) -> u64 {
        1 << self.granule_shift
    }

    fn is(&self, pa: u64, owner: Owner) -> bool {
        self.owners.get(&pa) == Some(&owner)
    }

    /// Whether it is a granule of the host's.
    fn is_hosts(&self, pa: u64) -> bool {
        let granule = pa.is_multiple_of(self.granule()) && self.memory.contains(&pa);
        granule && !self.owners.contains_key(&pa)
    }

    fn take(&mut self, pa: u64, owner: Owner) -> bool {
        let ok = self.is(pa, Owner::Delegated);
        if ok {
            self.owners.insert(pa, owner);
        }
        ok
    }

    /// The words of a granule.
    fn words(&mut self, pa: u64) -> &mut [u64] {
        assert!(self.memory.contains(&pa));
        let count = self.granule() as usize / 8;
        let start = std::ptr::with_exposed_provenance_mut(pa as usize);
        // SAFETY: The granule lies in the test's arena, which lives to the end; while
        // this is borrowed, the code under test waits for its call.
        unsafe { std::slice::from_raw_parts_mut(start, count) }
    }

    /// The bytes of a granule of the host's.
    fn bytes(&self, pa: u64) -> Option<Vec<u8>> {
        let size = self.granule() as usize;
        let start = std::ptr::with_exposed_provenance(pa as usize);
        // SAFETY: As in `words`.
        let bytes = || unsafe { std::slice::from_raw_parts(start, size) }.to_vec();
        self.is_hosts(pa).then(bytes)
    }

    /// A structure in a page that must be the host's.
    fn read<T: FromBytes>(&self, pa: u64) -> Option<T> {
        T::read_from_bytes(&self.bytes(pa)?[..4096]).ok()
    }

    /// Nobody has written to what is EL2's.
    pub fn assert_untouched(&mut self) {
        for pa in self.owners.keys().copied().collect::<Vec<_>>() {
            self.assert_granule_untouched(pa);
        }
    }

    fn assert_granule_untouched(&mut self, pa: u64) {
        let whole = self.words(pa).iter().all(|word| *word == pattern(pa));
        assert!(whole, "the host wrote to EL2's granule {pa:#x}");
    }

    /// Serves a call: X0 to X5, X0 to X4 of the answer.
    pub fn call(&mut self, a: [u64; 6]) -> [u64; 5] {
        if a[0] == rmi::vendor::RANDOM {
            // A CPU without: nothing fails for it.
            return [rmi::NOT_SUPPORTED, 0, 0, 0, 0];
        }
        self.calls.push(a[0]);
        let now = self.calls.len();
        if self
            .failing
            .as_ref()
            .is_some_and(|calls| calls.contains(&now))
        {
            return [BAD.pack(), 0, 0, 0, 0];
        }
        let mut out = [0; 4];
        let call = HostCall::decode(a).expect("a call that there is");
        let status = self.serve(call, &mut out);
        if status != Status::Success && !matches!(status, Status::ErrorRtt(_)) {
            self.errors += 1;
        }
        [status.pack(), out[0], out[1], out[2], out[3]]
    }

    fn serve(&mut self, call: HostCall, out: &mut [u64; 4]) -> Status {
        match call {
            HostCall::Rmi(command) => self.command(command, out),
            HostCall::Vendor(Vendor::Log { .. }) => Status::Success,
            HostCall::Vendor(Vendor::SetPosted { rd, page, ipa, .. }) => {
                self.set_posted(rd, page, ipa)
            }
            HostCall::Vendor(Vendor::GranuleRangeDelegate { base, top }) => {
                self.range(base, top, out, Self::delegate)
            }
            HostCall::Vendor(Vendor::GranuleRangeUndelegate { base, top }) => {
                self.range(base, top, out, Self::undelegate)
            }
            HostCall::Vendor(call) => self.data(call, out),
            other => panic!("{other:x?}"),
        }
    }

    /// Does `one` to granules from `base` on, to the next multiple of [`STEP`] at most,
    /// and to the first that cannot change.
    fn range(
        &mut self,
        base: u64,
        top: u64,
        out: &mut [u64; 4],
        one: fn(&mut Self, u64) -> Status,
    ) -> Status {
        if base >= top || !(base | top).is_multiple_of(self.granule()) {
            return BAD;
        }
        let end = top.min((base + 1).next_multiple_of(STEP));
        let mut at = base;
        while at < end && one(self, at) == Status::Success {
            at += self.granule();
        }
        out[0] = at;
        if at > base { Status::Success } else { BAD }
    }

    fn delegate(&mut self, pa: u64) -> Status {
        let of_realm = self.realm.as_ref().is_some_and(|realm| {
            let posted = realm.posted.is_some_and(|(page, _)| page == pa);
            posted || realm.maps().any(|mapped| mapped == pa)
        });
        if !self.is_hosts(pa) || of_realm {
            return BAD;
        }
        self.owners.insert(pa, Owner::Delegated);
        self.words(pa).fill(pattern(pa));
        Status::Success
    }

    fn undelegate(&mut self, pa: u64) -> Status {
        if !self.is(pa, Owner::Delegated) {
            return BAD;
        }
        self.assert_granule_untouched(pa);
        self.owners.remove(&pa);
        self.words(pa).fill(0);
        Status::Success
    }

    fn command(&mut self, command: Command, out: &mut [u64; 4]) -> Status {
        match command {
            Command::GranuleDelegate { pa } => self.delegate(pa),
            Command::GranuleUndelegate { pa } => self.undelegate(pa),
            Command::RealmCreate { rd, params } => self.realm_create(rd, params),
            Command::RealmActivate { rd } => self.realm_activate(rd),
            Command::RealmDestroy { rd } => self.realm_destroy(rd),
            Command::RecAuxCount { .. } => {
                out[0] = realm::AUX;
                Status::Success
            }
            Command::RecCreate { rd, rec, params } => self.rec_create(rd, rec, params),
            Command::RecDestroy { rec } => self.rec_destroy(rec),
            of_tables => self.rtt(of_tables, out),
        }
    }
}

/// What each word of a granule of EL2's holds.
const fn pattern(pa: u64) -> u64 {
    0x0bad_0000_0000_0000 | pa
}

//! Protected guests of one vCPU and two pages, quickly built and taken apart: what runs
//! in them is the caller's. They live where those of [`crate::tiny`] do.

use core::mem::offset_of;

use rmi::Command;
use rmi::params::{RealmFlags, RealmParams};
use rmi::run::EnterFlags;
use tests::bare::asm::{read64, write64};

use crate::calls::{SUCCESS, ask, granule, status};
use crate::granules::{delegate, fill, is_zero, undelegate};
use crate::realm::{IPA_BITS, map, normal, span, start_level, table, write_params, write_rec};
use crate::tiny::{Exit, RAM, Tiny};

/// Where the half begins that the host shares.
pub const SHARED: u64 = 1 << (IPA_BITS - 1);
/// The guest's second page, all zero at first, its page that is shared, and where the
/// host keeps the code, by offset in granules of the memory of a [`Tiny`].
const PAGES: [u64; 4] = [0, 1, 2, 3];

/// A guest. Its run page is a [`Tiny`]'s.
#[derive(Clone, Copy, Debug)]
pub struct Sealed(Tiny);

impl Sealed {
    /// Builds the guest with this VMID, whose vCPU begins with the 4 KiB at `code` and
    /// X0 = `x0`. `None` when a call fails.
    pub fn build(vmid: u16, code: *const u8, x0: u64) -> Option<Self> {
        let this = Self(Tiny::existing(0, PAGES.len() as u64 * granule(), 1));
        let (rd, params) = (this.0.rd(), this.0.params());
        let [own, zeros, shared, source] = PAGES.map(|n| this.0.memory(n * granule()));
        write_params(params, this.0.root(), vmid);
        let flags = RealmFlags::PROTECTED | RealmFlags::EL2_VGIC;
        // SAFETY: A granule of this host's.
        unsafe { write64(params + offset_of!(RealmParams, flags) as u64, flags.bits()) };
        let mut right = this.of_el2().all(|pa| delegate(pa) == SUCCESS);
        right &= status(Command::RealmCreate { rd, params }) == SUCCESS;
        for (half, ipa) in [RAM, SHARED].into_iter().enumerate() {
            for level in start_level() + 1..=3 {
                let base = ipa & !(span(level - 1) - 1);
                right &= table(rd, this.table(half, level), base, level) == SUCCESS;
            }
        }
        let (base, top) = (RAM, RAM + 2 * granule());
        right &= ask(Command::RttInitRipas { rd, base, top })[..2] == [SUCCESS, top];
        fill(source, 0);
        fill(shared, 0);
        for offset in (0..4096).step_by(8) {
            // SAFETY: The program's code, and a granule of this host's.
            unsafe { write64(source + offset, read64(code.addr() as u64 + offset)) };
        }
        let create = Command::DataCreate {
            rd,
            data: own,
            ipa: RAM,
            src: source,
            flags: 0,
        };
        right &= status(create) == SUCCESS;
        let unknown = Command::DataCreateUnknown {
            rd,
            data: zeros,
            ipa: RAM + granule(),
        };
        right &= status(unknown) == SUCCESS && map(rd, SHARED, 3, normal(shared)) == SUCCESS;
        write_rec(params, 0, true, RAM, x0);
        let rec = this.0.rec(0);
        right &= status(Command::RecCreate { rd, rec, params }) == SUCCESS;
        (right && this.0.activate()).then_some(this)
    }

    fn table(&self, half: usize, level: i64) -> u64 {
        self.0.granule(8 + 4 * half as u64 + level as u64)
    }

    /// The granules of the guest's that are its own, or EL2's for it.
    pub fn of_el2(&self) -> impl Iterator<Item = u64> {
        let this = *self;
        let levels = move || start_level() + 1..=3;
        let tables = (0..2).flat_map(move |half| levels().map(move |n| this.table(half, n)));
        let [own, zeros, ..] = PAGES.map(|n| this.0.memory(n * granule()));
        [this.0.rd(), this.0.root(), this.0.rec(0), own, zeros]
            .into_iter()
            .chain(tables)
    }

    /// Enters its vCPU, again after each interrupt.
    pub fn go(&self, flags: EnterFlags, value: u64) -> Exit {
        self.0.go(0, flags, value)
    }

    /// Takes its memory away, which is nobody's then; whether that could be.
    pub fn take_memory(&self) -> bool {
        let rd = self.0.rd();
        let mut pages = [RAM, RAM + granule()].into_iter();
        pages.all(|ipa| {
            let gone = ask(Command::DataDestroy { rd, ipa });
            gone[0] == SUCCESS && undelegate(gone[1]) == SUCCESS && delegate(gone[1]) == SUCCESS
        })
    }

    /// Takes it apart; whether all came back, and zero.
    pub fn destroy(self) -> bool {
        let rd = self.0.rd();
        let mut right = status(Command::RecDestroy { rec: self.0.rec(0) }) == SUCCESS;
        right &= self.take_memory();
        let shared = Command::RttUnmapUnprotected {
            rd,
            ipa: SHARED,
            level: 3,
        };
        right &= status(shared) == SUCCESS;
        for ipa in [RAM, SHARED] {
            for level in (start_level() + 1..=3).rev() {
                let ipa = ipa & !(span(level - 1) - 1);
                right &= status(Command::RttDestroy { rd, ipa, level }) == SUCCESS;
            }
        }
        right &= status(Command::RealmDestroy { rd }) == SUCCESS;
        self.of_el2().fold(right, |right, pa| {
            right & (undelegate(pa) == SUCCESS && is_zero(pa))
        })
    }
}

//! Guests of one vCPU and a few pages, side by side: what runs in them is the
//! caller's. They live in granules of their own, above those of other checks.

use core::mem::offset_of;

use rmi::Command;
use rmi::run::{EnterFlags, ExitReason, RecEnter, RecExit, RecRun};
use tests::bare::asm::{clean, read32, read64, write32, write64};

use crate::calls::{SUCCESS, ask, granule, status};
use crate::granules::{at, delegate, fill, undelegate};
use crate::realm::{map, normal, span, start_level, table, write_params, write_rec};

/// Where a guest's memory begins, IPA.
pub const RAM: u64 = 0x4000_0000;

/// Granules before a guest's memory: RD, root, parameters, run pages, RECs,
/// tables.
const HEAD: u64 = 16;
/// The first granule of the first guest.
const FIRST: u64 = 320;
/// Bytes of a guest's memory at most.
const BYTES_MAX: u64 = 1 << 20;
/// vCPUs at most.
const VCPUS: u64 = 2;

/// A guest.
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    first: u64,
    pages: u64,
    vcpus: u64,
}

/// What an exit says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Of the call.
    pub status: u64,
    /// `exit_reason`.
    pub reason: u64,
    /// Syndrome.
    pub esr: u64,
    /// Offset of the access in its page.
    pub offset: u64,
    /// The value of a write.
    pub value: u64,
}

impl Exit {
    /// Whether it is an interrupt's, or a kick's.
    pub fn is_irq(&self) -> bool {
        self.status == SUCCESS && self.reason == ExitReason::Irq as u64
    }

    /// Whether the vCPU waits: a WFI that was trapped.
    pub fn is_wfi(&self) -> bool {
        let wfx = self.reason == ExitReason::Sync as u64 && self.esr >> 26 == 1;
        self.status == SUCCESS && wfx && self.esr & 1 == 0
    }

    /// The offset of a device access that came out.
    pub fn access(&self) -> Option<u64> {
        let data_abort = self.reason == ExitReason::Sync as u64 && self.esr >> 26 == 0x24;
        (self.status == SUCCESS && data_abort).then_some(self.offset)
    }
}

impl Tiny {
    /// Builds guest number `n` with this VMID: `bytes` of memory that begin with
    /// the 4 KiB at `code`, `vcpus` that all start there with X0 = their index.
    /// `None` when a call fails.
    pub fn build(n: u64, vmid: u16, code: *const u8, bytes: u64, vcpus: u64) -> Option<Self> {
        Self::build_new(n, vmid, code, bytes, vcpus).filter(Self::activate)
    }

    /// Guest 0 of one vCPU, which begins with X0 = `x0`.
    pub fn build_at(vmid: u16, code: *const u8, bytes: u64, x0: u64) -> Option<Self> {
        let this = Self::existing(0, bytes, 1).build_memory(vmid, code, bytes)?;
        let right = this.add(0, x0) && this.activate();
        right.then_some(this)
    }

    /// The same as [`Self::build`], up to the call that activates it.
    pub fn build_new(n: u64, vmid: u16, code: *const u8, bytes: u64, vcpus: u64) -> Option<Self> {
        let this = Self::existing(n, bytes, vcpus).build_memory(vmid, code, bytes)?;
        let right = (0..vcpus).all(|vcpu| this.add(vcpu, vcpu));
        right.then_some(this)
    }

    /// Its realm and its memory.
    fn build_memory(self, vmid: u16, code: *const u8, bytes: u64) -> Option<Self> {
        let this = self;
        let (rd, root, params) = (this.granule(0), this.granule(1), this.granule(2));
        let mut right = delegate(rd) == SUCCESS && delegate(root) == SUCCESS;
        write_params(params, root, vmid);
        right &= status(Command::RealmCreate { rd, params }) == SUCCESS;
        for level in start_level() + 1..=3 {
            let rtt = this.granule(8 + level as u64);
            let base = RAM & !(span(level - 1) - 1);
            right &= delegate(rtt) == SUCCESS && table(rd, rtt, base, level) == SUCCESS;
        }
        for page in 0..this.pages {
            fill(this.memory(page * granule()), 0);
            let pa = normal(this.memory(page * granule()));
            right &= map(rd, RAM + page * granule(), 3, pa) == SUCCESS;
        }
        for offset in (0..4096).step_by(4) {
            // SAFETY: code of the program, and memory of the host's.
            unsafe { write32(this.memory(offset), read32(code.addr() as u64 + offset)) };
        }
        clean(this.memory(0), this.memory(bytes));
        right.then_some(this)
    }

    /// Its next vCPU.
    fn add(&self, vcpu: u64, x0: u64) -> bool {
        let (rd, rec, params) = (self.rd(), self.rec(vcpu), self.params());
        write_rec(params, vcpu, true, RAM, x0);
        fill(self.run(vcpu), 0);
        delegate(rec) == SUCCESS && status(Command::RecCreate { rd, rec, params }) == SUCCESS
    }

    /// The granules that EL2 has for it.
    pub fn of_el2(&self) -> impl Iterator<Item = u64> {
        let this = *self;
        let tables = (start_level() + 1..=3).map(move |level| this.granule(8 + level as u64));
        let recs = (0..self.vcpus).map(move |vcpu| this.rec(vcpu));
        [this.rd(), this.root()]
            .into_iter()
            .chain(tables)
            .chain(recs)
    }

    /// `REALM_ACTIVATE`; whether it succeeded.
    pub fn activate(&self) -> bool {
        status(Command::RealmActivate { rd: self.rd() }) == SUCCESS
    }

    /// PA of its RD.
    pub fn rd(&self) -> u64 {
        self.granule(0)
    }

    /// PA of its page of parameters, which nobody looks into between two calls.
    pub fn params(&self) -> u64 {
        self.granule(2)
    }

    /// Guest number `n`, which [`Self::build`] made with the same numbers.
    pub fn existing(n: u64, bytes: u64, vcpus: u64) -> Self {
        Self {
            first: FIRST + n * (HEAD + BYTES_MAX / granule()),
            pages: bytes.div_ceil(granule()),
            vcpus,
        }
    }

    /// PA of its root table.
    pub fn root(&self) -> u64 {
        self.granule(1)
    }

    /// PA of the `n`-th granule of its, below [`Self::memory`].
    pub fn granule(&self, n: u64) -> u64 {
        at(self.first + n)
    }

    /// PA of a vCPU's run page.
    pub fn run(&self, vcpu: u64) -> u64 {
        self.granule(3 + vcpu % VCPUS)
    }

    /// PA of a vCPU's REC.
    pub fn rec(&self, vcpu: u64) -> u64 {
        self.granule(5 + vcpu % VCPUS)
    }

    /// PA of the guest's memory at this offset.
    pub fn memory(&self, offset: u64) -> u64 {
        self.granule(HEAD) + offset
    }

    /// Enters a vCPU, for a device access or an exit of another kind; the answer
    /// to a read that came out before is `value`.
    pub fn enter(&self, vcpu: u64, flags: EnterFlags, value: u64) -> Exit {
        let run = self.run(vcpu);
        // SAFETY: the run page is the host's.
        unsafe {
            write64(run + offset_of!(RecEnter, flags) as u64, flags.bits());
            write64(run + offset_of!(RecEnter, gprs) as u64, value);
        }
        let status = status(Command::RecEnter {
            rec: self.rec(vcpu),
            run,
        });
        // SAFETY: as above.
        let word =
            |offset: usize| unsafe { read64(run + (offset_of!(RecRun, exit) + offset) as u64) };
        Exit {
            status,
            reason: word(offset_of!(RecExit, exit_reason)),
            esr: word(offset_of!(RecExit, esr)),
            offset: word(offset_of!(RecExit, far)) & 0xfff,
            value: word(offset_of!(RecExit, gprs)),
        }
    }

    /// The same, again after each interrupt of the machine's.
    pub fn go(&self, vcpu: u64, flags: EnterFlags, value: u64) -> Exit {
        let mut exit = self.enter(vcpu, flags, value);
        while exit.is_irq() {
            exit = self.enter(vcpu, flags & !EnterFlags::EMUL_MMIO, 0);
        }
        exit
    }

    /// Takes it apart; whether all came back.
    pub fn destroy(self) -> bool {
        let rd = self.granule(0);
        let mut right = true;
        for vcpu in 0..self.vcpus {
            right &= status(Command::RecDestroy {
                rec: self.rec(vcpu),
            }) == SUCCESS;
            right &= undelegate(self.rec(vcpu)) == SUCCESS;
        }
        for page in 0..self.pages {
            let ipa = RAM + page * granule();
            right &= status(Command::RttUnmapUnprotected { rd, ipa, level: 3 }) == SUCCESS;
        }
        for level in (start_level() + 1..=3).rev() {
            let base = RAM & !(span(level - 1) - 1);
            let gone = ask(Command::RttDestroy {
                rd,
                ipa: base,
                level,
            });
            right &= gone[0] == SUCCESS && undelegate(gone[1]) == SUCCESS;
        }
        right &= status(Command::RealmDestroy { rd }) == SUCCESS;
        right && undelegate(rd) == SUCCESS && undelegate(self.granule(1)) == SUCCESS
    }
}

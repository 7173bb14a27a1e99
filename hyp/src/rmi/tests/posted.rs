//! The page of accesses that need not wait: who has it, what EL2 makes of a
//! guest's accesses, and what it says of them when it dies.

use std::string::String;

use ::posted::{Page, View};
use arm64::regs::{ELR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2, PAR_EL1, SCTLR_EL1, SPSR_EL2};

use super::*;
use crate::cpu::context::Served;
use crate::guest::fast::serve;
use crate::memory::guarded::Taken;
use crate::memory::region::Region;
use crate::realm::report_posted;

const DEVICE: u64 = 0x0900_0000;
const DR: u64 = 0;
const FR: u64 = 0x18;
const RIS: u64 = 0x3c;

/// Where the guest is.
const PC: u64 = 0x1000;

/// Places of the guest's and the host's granules.
const RD: u64 = 1;
const REC: u64 = 60;
const PAGE: u64 = 70;
/// Where no memory answers.
const ABSENT: u64 = 71;

/// A guest of one vCPU whose device has a page.
struct Guest {
    h: Host,
}

impl Guest {
    fn new() -> Self {
        let mut h = Host::new(Granule::K4, RAM_SIZE);
        h.realm();
        h.rec(0, REC);
        let guest = Self { h };
        guest.page().show(&{
            let mut view = View::CLOSED;
            view.waits(DR);
            view.reads(FR, 0x8000_0090, true);
            view.reads(RIS, 0x20, false);
            view
        });
        guest
    }

    fn set(&mut self, page: u64, ipa: u64) -> Status {
        let args = [self.h.page(RD), page, ipa, 1000];
        self.h.status(vendor::SET_POSTED, &args)
    }

    fn page(&self) -> &'static Page {
        // SAFETY: the fake machine's memory, all zeros at first, which is a page.
        unsafe { &*phys::pointer::<Page>(self.h.page(PAGE)) }
    }

    fn run(&self) -> &'static mut VcpuState {
        // SAFETY: the fake machine's REC, which nobody runs.
        unsafe { &mut *Rec::at(self.h.page(REC)).state.get() }
    }

    /// An access of register `x` at `offset` of the device's page, with these bits
    /// of the syndrome too.
    fn access(&mut self, offset: u64, x: u64, more: u64) -> Served {
        let ipa = DEVICE.wrapping_add(offset);
        HPFAR_EL2.set(ipa >> 12 << 4);
        FAR_EL2.set(0xffff_0000_0000_0000 | ipa & 0xfff);
        ESR_EL2.set(0x24 << 26 | 1 << 25 | 1 << 24 | x << 16 | 0x07 | more);
        ELR_EL2.set(PC);
        let before = Taken::get();
        // SAFETY: the fake machine's realm, which nobody else uses.
        let realm = unsafe { Realm::at(self.h.page(RD)) };
        let served = serve(self.run(), realm);
        // But for the way on, all is as it was taken.
        let elr = if served == Served::No { PC } else { PC + 4 };
        assert_eq!(Taken::get(), Taken { elr, ..before }, "{offset:#x}");
        served
    }

    /// SCTLR_EL1 while the guest runs.
    fn set_sctlr(&self, value: u64) {
        // SAFETY: the register file of this test's thread.
        unsafe { SCTLR_EL1.steer(value) };
    }

    fn count(&self) -> u32 {
        self.h.granule(PAGE).count()
    }

    fn report(&self) -> String {
        let mut text = String::new();
        report_posted(&self.h.system.granules, &mut text);
        text
    }
}

const WRITE: u64 = 1 << 6;
const SIGNED: u64 = 1 << 21;

/// Of so many bytes, as log2.
const fn sized(shift: u64) -> u64 {
    shift << 22
}

#[test]
fn a_posted_page_is_the_hosts_until_it_is_taken_back() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    // Its last line alone does not answer.
    let last = guest.h.page(ABSENT) + 0xfc0;
    phys::fake::make_hole(Region::new(last, 64).unwrap());
    for (page, ipa) in [
        (page + 8, DEVICE),
        (guest.h.page(REC), DEVICE),
        (RAM - 0x1000, DEVICE),
        (page, DEVICE + 8),
        (page, 1 << 40),
        (guest.h.page(ABSENT), DEVICE),
        // EL2's own.
        (page, vendor::GICD_IPA),
        (page, vendor::GICD_IPA + 0xf000),
        (page, vendor::GICR_IPA),
        (page, vendor::GICR_IPA + 0x7f_f000),
        (0, 0),
    ] {
        assert_eq!(
            guest.set(page, ipa),
            Status::ErrorInput,
            "{page:#x} {ipa:#x}"
        );
        assert_eq!(guest.count(), 0);
    }
    for _ in 0..2 {
        assert_eq!(guest.set(page, DEVICE), Status::Success);
        assert_eq!(guest.count(), 1);
        assert_eq!(guest.set(page, DEVICE), Status::ErrorInput);
        assert_eq!(guest.count(), 1);
        let delegated = guest.h.status(fid::RMI_GRANULE_DELEGATE, &[page]);
        assert_eq!(delegated, Status::ErrorInput);
        assert_eq!(guest.set(0, 0), Status::Success);
        assert_eq!(guest.count(), 0);
        assert_eq!(guest.set(0, 0), Status::ErrorInput);
    }
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    guest.h.ok(fid::RMI_REC_DESTROY, &[guest.h.page(REC)]);
    guest.h.ok(fid::RMI_REALM_DESTROY, &[guest.h.page(RD)]);
    assert_eq!(guest.count(), 0);
    guest.h.ok(fid::RMI_GRANULE_DELEGATE, &[page]);
}

/// Another page begins with nothing posted.
#[test]
fn each_page_is_begun_anew() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    for byte in 1..4 {
        assert_eq!(guest.set(page, DEVICE), Status::Success);
        guest.run().gprs.x[1] = byte;
        guest.access(DR, 1, WRITE | sized(0));
        let write = guest.page().next().expect("it waits");
        assert_eq!(u64::from(write.value()), byte);
        guest.page().taken();
        assert!(guest.page().is_empty());
        assert_eq!(guest.set(0, 0), Status::Success);
        let view = phys::pointer::<u64>(page);
        // SAFETY: the fake machine's memory: TAKEN and POSTED, by the host.
        unsafe {
            view.add(2).write(0);
            view.add(8).write(0);
        }
    }
}

/// As the access would be served by way of the host.
#[test]
fn accesses_are_of_each_size() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    for (shift, posted, read) in [
        (0, 0x88, 0x90_u64),
        (1, 0x7788, 0x90),
        (2, 0x5566_7788, 0x8000_0090),
    ] {
        guest.run().gprs.x[3] = 0x1122_3344_5566_7788;
        for _ in 0..2 {
            let served = guest.access(DR, 3, WRITE | sized(shift));
            assert_eq!(served, Served::HostSoon);
            let write = guest.page().next().expect("it waits");
            let size = write.size_shift();
            assert_eq!((write.offset(), size), (DR, shift as u32));
            assert_eq!(write.value(), posted, "{shift}");
            guest.page().taken();
            guest.run().gprs.x[4] = u64::MAX;
            assert_eq!(guest.access(FR, 4, sized(shift)), Served::Enter);
            assert_eq!(guest.run().gprs.x[4], read, "{shift}");
        }
    }
    // The zero register.
    guest.access(DR, 31, WRITE | sized(2));
    assert_eq!(guest.page().next().map(|write| write.value()), Some(0));
    assert_eq!(guest.access(FR, 31, sized(2)), Served::EnterChanged);
}

/// A register that the way back to the guest leaves out is loaded all the same.
#[test]
fn a_read_changes_any_register() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    for x in 0..31 {
        let right = if x < 20 {
            Served::Enter
        } else {
            Served::EnterChanged
        };
        assert_eq!(guest.access(FR, x, sized(2)), right, "x{x}");
        assert_eq!(guest.run().gprs.x[x as usize], 0x8000_0090, "x{x}");
    }
}

/// What was found of an access stands for that one alone.
#[test]
fn each_access_is_looked_at_for_itself() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    let registers = [(FR, 0x8000_0090_u64), (RIS, 0x20)];
    for (offset, value) in registers.into_iter().cycle().take(8) {
        for (shift, mask) in [(0, 0xff), (2, 0xffff_ffff)] {
            guest.access(offset, 1, sized(shift));
            assert_eq!(guest.run().gprs.x[1], value & mask, "{offset:#x}");
        }
    }
    // The same address, translated to another page.
    let ipa = DEVICE + 0x1000;
    HPFAR_EL2.set(ipa >> 12 << 4);
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(guest.h.page(RD)) };
    assert_eq!(serve(guest.run(), realm), Served::No);
}

#[test]
fn what_is_no_plain_access_of_the_page_is_the_hosts() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.access(FR, 1, sized(2)),
        Served::No,
        "there is no page"
    );
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    for (offset, more) in [
        // Eight bytes, not aligned, not of the page, a register that nobody shows.
        (FR, sized(3)),
        (FR + 1, sized(0)),
        (0x1000, sized(2)),
        (0x1000 + FR, sized(2)),
        (0x4, sized(2)),
        (0x100, sized(2)),
        (FR, WRITE | sized(2)),
        (DR, sized(2)),
        // A permission fault, by DFSC; sign-extended; of a walk; of a cache; not told.
        (FR, sized(2) | 0x0f),
        (FR, SIGNED | sized(0)),
        (FR, sized(2) | 1 << 7),
        (FR, sized(2) | 1 << 8),
    ] {
        assert_eq!(guest.access(offset, 1, more), Served::No, "{offset:#x}");
    }
    // Data is big-endian, at EL1 or EL0; a step, a BTI check, AArch32: though it was
    // plain before.
    SPSR_EL2.set(5);
    assert_eq!(guest.access(FR, 1, sized(2)), Served::Enter);
    assert_ne!(guest.access(DR, 1, WRITE | sized(2)), Served::No);
    guest.page().taken();
    for (sctlr, pstate) in [
        (1 << 25, 0x5),
        (1 << 24, 0),
        (0, 1 << 21 | 5),
        (0, 1 << 10 | 5),
        (0, 1 << 11 | 5),
        (0, 1 << 4),
    ] {
        guest.set_sctlr(sctlr);
        SPSR_EL2.set(pstate);
        for write in [0, WRITE] {
            let offset = if write == 0 { FR } else { DR };
            let served = guest.access(offset, 1, write | sized(2));
            assert_eq!(served, Served::No, "{sctlr:#x} {pstate:#x}");
        }
    }
    guest.set_sctlr(0);
    SPSR_EL2.set(0x6000_0005);
    assert_eq!(guest.access(FR, 1, sized(2)), Served::Enter);
    // Below the device's page.
    let down = guest.access(FR.wrapping_sub(0x1000), 1, sized(2));
    assert_eq!(down, Served::No);
    guest.page().close();
    assert_eq!(guest.access(FR, 1, sized(2)), Served::No, "closed");
    assert!(guest.page().is_empty());
}

/// The host is called once for the first that waits, and at once when the ring is
/// half full.
#[test]
fn what_waits_calls_the_host() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    for n in 1..=::posted::ENTRIES {
        let right = match n {
            1 => Served::HostSoon,
            n if n < ::posted::CALL_AT => Served::Enter,
            _ => Served::HostNow,
        };
        assert_eq!(guest.access(DR, 1, WRITE | sized(2)), right, "{n}");
        guest.run().gprs.host_is_called = true;
    }
    assert_eq!(guest.access(DR, 1, WRITE | sized(2)), Served::No);
}

/// An access of two bytes at the page's start may be the end of one from the page
/// before, and then is not known whole. The look at that page leaves PAR_EL1 alone.
#[test]
fn what_may_have_begun_in_the_page_before_is_the_hosts() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    // PAR_EL1 of a translation that succeeds, and of one that fails (F).
    let (there, not) = (Some(0x4000_0000), Some(1));
    for (sctlr, shift, led, right) in [
        (0, 2, there, true),
        (0b11, 2, there, true),
        (0b01, 0, there, true),
        (0b01, 1, not, true),
        (0b01, 1, None, true),
        (0b01, 1, there, false),
        (0b01, 2, there, false),
    ] {
        guest.set_sctlr(sctlr);
        PAR_EL1.set(0x1234);
        phys::fake::set_translation(led);
        let served = guest.access(DR, 1, WRITE | sized(shift));
        assert_eq!(served != Served::No, right, "{sctlr} {shift} {led:?}");
        assert_eq!(PAR_EL1.get(), 0x1234);
    }
}

#[test]
fn a_report_of_el2s_death_has_what_guests_wrote_last() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.report(), "");
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    assert_eq!(guest.report(), "");
    for byte in b"taken\0waits\x1b[2J\n" {
        guest.run().gprs.x[1] = (*byte).into();
        guest.access(DR, 1, WRITE | sized(2));
    }
    for _ in b"taken" {
        guest.page().taken();
    }
    let told = "guest vmid 1: the host has not seen: \\x00waits\\x1b[2J\\n\n";
    assert_eq!(guest.report(), told);
    // One that died with the lock in its hands does not wait for it.
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(guest.h.page(RD)) };
    realm.posted.while_held(|| assert_eq!(guest.report(), ""));
    assert_eq!(guest.set(0, 0), Status::Success);
    assert_eq!(guest.report(), "");
}

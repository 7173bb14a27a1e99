//! The page of accesses that need not wait: who has it, what EL2 makes of a
//! guest's accesses, and what it says of them when it dies.

use std::string::String;

use ::posted::{Access, Page, View};
use arm64::regs::{FAR_EL2, HPFAR_EL2, SCTLR_EL1};

use super::*;
use crate::guest::interrupts::Interrupts;
use crate::guest::posted::{Served, report, serve};

const DEVICE: u64 = 0x0900_0000;
const DR: u64 = 0;
const FR: u64 = 0x18;
const RIS: u64 = 0x3c;

/// Places of the guest's and the host's granules.
const RD: u64 = 1;
const REC: u64 = 60;
const PAGE: u64 = 70;

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

    fn run(&self) -> &'static mut Run {
        // SAFETY: the fake machine's REC, which nobody runs.
        unsafe { &mut *Rec::at(self.h.page(REC)).run.get() }
    }

    /// An access of register `x` at `offset` of the device's page, with these bits
    /// of the syndrome too.
    fn access(&mut self, offset: u64, x: u64, more: u64) -> Served {
        let ipa = DEVICE.wrapping_add(offset);
        HPFAR_EL2.set(ipa >> 12 << 4);
        FAR_EL2.set(0xffff_0000_0000_0000 | ipa & 0xfff);
        let esr = Syndrome(0x24 << 26 | 1 << 25 | 1 << 24 | x << 16 | 0x07 | more);
        let run = self.run();
        // SAFETY: the fake machine's realm and REC, which nobody else uses.
        let (realm, rec) = unsafe { (Realm::at(self.h.page(RD)), Rec::at(self.h.page(REC))) };
        let cpu = &mut self.h.cpu;
        serve(&mut Interrupts { cpu, realm, rec }, run, esr)
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
        report(&self.h.cpu.system.granules, &mut text);
        text
    }
}

const WRITE: u64 = 1 << 6;
const SIGNED: u64 = 1 << 21;
const WIDE: u64 = 1 << 15;

/// Of so many bytes, as log2.
const fn sized(shift: u64) -> u64 {
    shift << 22
}

#[test]
fn a_posted_page_is_the_hosts_until_it_is_taken_back() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    for (page, ipa) in [
        (page + 8, DEVICE),
        (guest.h.page(REC), DEVICE),
        (RAM - 0x1000, DEVICE),
        (page, DEVICE + 8),
        (page, 1 << 40),
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

/// As the access would be served by way of the host.
#[test]
fn accesses_are_of_both_orders_of_bytes_and_of_each_size() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    for (sctlr, shift, posted, read, signed) in [
        (0, 0, 0x88, 0x90, 0xffff_ff90_u64),
        (0, 1, 0x7788, 0x90, 0x90),
        (0, 2, 0x5566_7788, 0x8000_0090, 0x8000_0090),
        (1 << 25, 0, 0x88, 0x90, 0xffff_ff90),
        (1 << 25, 1, 0x8877, 0x9000, 0xffff_9000),
        (1 << 25, 2, 0x8877_6655, 0x9000_0080, 0x9000_0080),
    ] {
        guest.set_sctlr(sctlr);
        let run = guest.run();
        (run.gprs.pc, run.gprs.x[3]) = (0x1000, 0x1122_3344_5566_7788);
        assert_eq!(guest.access(DR, 3, WRITE | sized(shift)), Served::Enter);
        let write = guest.page().next().expect("it waits");
        assert_eq!(Some(write.access), Access::new(DR, shift as u32));
        assert_eq!(write.value, posted, "{sctlr:#x} {shift}");
        guest.page().taken();
        assert_eq!(guest.access(FR, 4, sized(shift)), Served::Enter);
        assert_eq!(guest.run().gprs.x[4], read, "{sctlr:#x} {shift}");
        assert_eq!(guest.access(FR, 4, SIGNED | sized(shift)), Served::Enter);
        assert_eq!(guest.run().gprs.x[4], signed, "{sctlr:#x} {shift}");
        guest.access(FR, 4, SIGNED | WIDE | sized(shift));
        let bits = 8 << shift;
        let wide = ((read << (64 - bits)) as i64 >> (64 - bits)) as u64;
        assert_eq!(guest.run().gprs.x[4], wide, "{sctlr:#x} {shift}");
        assert_eq!(guest.run().gprs.pc, 0x1010, "each is stepped over");
    }
    guest.set_sctlr(0);
    // The zero register.
    guest.access(DR, 31, WRITE | sized(2));
    assert_eq!(guest.page().next().map(|write| write.value), Some(0));
    assert_eq!(guest.access(FR, 31, sized(2)), Served::Enter);
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
        // A permission fault, by DFSC.
        (FR, sized(2) | 0x0f),
    ] {
        assert_eq!(guest.access(offset, 1, more), Served::No, "{offset:#x}");
    }
    // Below the device's page.
    let down = guest.access(FR.wrapping_sub(0x1000), 1, sized(2));
    assert_eq!(down, Served::No);
    guest.page().close();
    assert_eq!(guest.access(FR, 1, sized(2)), Served::No, "closed");
    assert_eq!(guest.run().gprs.pc, 0, "nothing is stepped over");
    assert!(guest.page().is_empty());
}

/// The host is called once for the first that waits, and at once when the ring is
/// half full.
#[test]
fn what_waits_calls_the_host() {
    let mut guest = Guest::new();
    let page = guest.h.page(PAGE);
    assert_eq!(guest.set(page, DEVICE), Status::Success);
    assert_eq!(guest.run().call_host_at, None);
    for n in 1..=::posted::ENTRIES {
        let right = if n < ::posted::CALL_AT {
            Served::Enter
        } else {
            Served::CallHost
        };
        assert_eq!(guest.access(DR, 1, WRITE | sized(2)), right, "{n}");
        assert_eq!(guest.run().call_host_at, Some(1000));
    }
    assert_eq!(guest.access(DR, 1, WRITE | sized(2)), Served::No);
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
    let held = unsafe { Realm::at(guest.h.page(RD)) }.posted.lock();
    assert_eq!(guest.report(), "");
    drop(held);
    assert_eq!(guest.set(0, 0), Status::Success);
    assert_eq!(guest.report(), "");
}

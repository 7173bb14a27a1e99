//! The page of accesses that need not wait (`SET_POSTED`): what EL2 makes of one
//! that means well, and that no page, whatever is or is not in it, lets anything
//! out of it or keeps EL2 from anything.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ::posted::{ENTRIES, Page, View};
use rmi::run::EnterFlags;
use rmi::vendor::{RangeKind, Vendor};
use tests::bare::asm::{read64, write64};
use tests::bare::console::Console;
use tests::bare::{cpu, machine};
use tests::random::Random;
use tests::suite::Suite;

use crate::calls::{self, INPUT, SUCCESS, granule, memory_ranges, status};
use crate::devices::number;
use crate::granules::{at, delegate, fill, undelegate};
use crate::realm::IPA_BITS;
use crate::tiny::{Exit, Tiny};

// Asks at ASKS what to do, and at 8 behind with what; tells what came of it at 16.
global_asm!(
    ".balign 4096",
    "posts_code:",
    "movz x28, #0x0900, lsl #16",
    "movz x27, #0x0910, lsl #16",
    "1: ldr x1, [x27]",
    "ldr x2, [x27, #8]",
    "mov x3, xzr",
    "cmp x1, #1",
    "b.eq 4f",
    "cmp x1, #2",
    "b.eq 5f",
    "cmp x1, #3",
    "b.eq 6f",
    "cmp x1, #4",
    "b.eq 7f",
    // So many writes.
    "2: cbz x2, 3f",
    "str w3, [x28]",
    "add x3, x3, #1",
    "sub x2, x2, #1",
    "b 2b",
    "3: str x3, [x27, #16]",
    "b 1b",
    // A read.
    "4: ldr w3, [x28, x2]",
    "b 3b",
    // A write of each size.
    "5: strb w2, [x28]",
    "strh w2, [x28]",
    "str w2, [x28]",
    "b 3b",
    // A write, and no more.
    "6: str w2, [x28]",
    "b .",
    // A read into each register: the bits in which they differ.
    "7: ldr w4, [x28, x2]",
    ".irp r, 0, 1, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23",
    "ldr w\\r, [x28, x2]",
    "eor w\\r, w\\r, w4",
    "orr w3, w3, w\\r",
    ".endr",
    ".irp r, 24, 25, 26, 29, 30",
    "ldr w\\r, [x28, x2]",
    "eor w\\r, w\\r, w4",
    "orr w3, w3, w\\r",
    ".endr",
    "b 3b",
    ".org posts_code + 4096",
);

// One stage-1 table at 64 KiB (4K granule, level 1), as the host writes it; then
// three writes of four bytes at the start of a page (4 GiB), X30 being where EL2 has
// no business, and a read of eight bytes that comes out.
global_asm!(
    ".balign 4096",
    "posts_behind_nowhere:",
    "adr x9, posts_behind_nowhere",
    "mov x0, #0xff",
    "msr mair_el1, x0",
    "add x1, x9, #0x10, lsl #12",
    "msr ttbr0_el1, x1",
    // T0SZ 25, inner shareable, write-back, EPD1, IPS of 48 bits.
    "movz x0, #0x3519",
    "movk x0, #0x0080, lsl #16",
    "movk x0, #0x5, lsl #32",
    "msr tcr_el1, x0",
    "isb",
    "tlbi vmalle1",
    "dsb sy",
    "isb",
    "mrs x0, sctlr_el1",
    "orr x0, x0, #1",
    "orr x0, x0, #4",
    "msr sctlr_el1, x0",
    "isb",
    "mov x3, #0x100000000",
    "movz x27, #0x0910, lsl #16",
    "add x27, x27, x3",
    "movz x30, #0x6660, lsl #16",
    "1: str w0, [x3]",
    "str w0, [x3]",
    "str w0, [x3]",
    "ldr x1, [x27]",
    "b 1b",
    ".org posts_behind_nowhere + 4096",
);

unsafe extern "C" {
    static posts_code: u8;
    static posts_behind_nowhere: u8;
}

const DEVICE: u64 = 0x0900_0000;
/// Where the device is that the guest never touches.
const ELSEWHERE: u64 = DEVICE + 0x1000;
/// An offset of what the guest asks, and of nothing of the device's that is here.
const ASKS: [u64; 3] = [0, 8, 16];

const COUNT: u64 = 0;
const READ: u64 = 1;
/// The same into each register but those that it works with.
const READ_EACH: u64 = 4;
const SIZES: u64 = 2;
const STAY: u64 = 3;

const NONE: EnterFlags = EnterFlags::empty();
const EMULATE: EnterFlags = EnterFlags::EMUL_MMIO;

/// Registers of a PL011, as good as any.
const DR: u64 = 0;
const FR: u64 = 0x18;
const RIS: u64 = 0x3c;

/// Ticks after which the host is called that it is not called after.
const NEVER: u64 = u64::MAX;

/// More than the ring holds.
const MANY: u64 = 1000;

/// Granules of this host's own: the page, with one before and one behind it.
const PAGE: u64 = 61;
const OTHER: u64 = 64;

/// What nobody but EL2 could change.
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

fn set(guest: &Tiny, page: u64, ipa: u64, delay: u64) -> u64 {
    status(Vendor::SetPosted {
        rd: guest.rd(),
        page,
        ipa,
        delay,
    })
}

fn build(vmid: u16) -> Option<Tiny> {
    Tiny::build(0, vmid, &raw const posts_code, granule(), 1)
}

/// The page in this granule, where nothing waits.
fn fresh(n: u64) -> &'static Page {
    for n in n - 1..=n + 1 {
        fill(at(n), PATTERN);
    }
    let page = core::ptr::with_exposed_provenance_mut::<Page>(at(n) as usize);
    // SAFETY: a granule of this host's, which holds a page, and no reference to
    // its memory is left but this one and EL2's.
    unsafe {
        page.write(Page::new());
        &*page
    }
}

/// Whether all around the page is as it was.
fn around_is_whole(n: u64) -> bool {
    let page = at(n)..at(n) + ::posted::PAGE as u64;
    // SAFETY: granules of this host's.
    (at(n - 1)..at(n + 2))
        .step_by(8)
        .all(|word| page.contains(&word) || unsafe { read64(word) } == PATTERN)
}

/// A device whose writes may wait and whose flags may be read.
fn open() -> View {
    let mut view = View::CLOSED;
    view.waits(DR);
    view.reads(FR, 0x90, true);
    view.reads(RIS, 0x20, false);
    view
}

/// What came out of the guest while it did one thing.
#[derive(Debug, Default)]
struct Came {
    /// Calls for the host.
    irqs: u64,
    /// Accesses of the device that were the host's, and the value of the first.
    accesses: u64,
    first: Option<u64>,
    /// What the guest told, if it came so far.
    told: Option<u64>,
}

/// Has the guest, which waits to be told, do this. The host takes nothing.
fn tell(guest: &Tiny, what: u64, with: u64) -> Came {
    let mut came = Came::default();
    let (mut flags, mut value) = (NONE, 0);
    // Far more than there can be.
    for _ in 0..8 * MANY {
        let exit = guest.enter(0, flags, value);
        (flags, value) = (NONE, 0);
        if exit.is_irq() {
            came.irqs += 1;
            continue;
        }
        if exit.access().is_none() {
            break;
        }
        flags = EMULATE;
        match (is_asked(&exit), exit.offset) {
            (true, 0) if came.told.is_some() => break,
            (true, 0) => value = what,
            (true, 8) => value = with,
            (true, _) => came.told = Some(exit.value),
            (false, _) => {
                came.accesses += 1;
                came.first = came.first.or(Some(exit.value));
            }
        }
    }
    came
}

/// It is of what the guest asks, by its size, and not of the device.
fn is_asked(exit: &Exit) -> bool {
    exit.esr >> 22 & 3 == 3 && ASKS.contains(&exit.offset)
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let Some(guest) = build(40) else {
        suite.check("posted/build", false, "no guest");
        return;
    };
    arguments(suite, &guest);
    well_meant(suite, &guest);
    never_taken(suite, &guest);
    nonsense(suite, &guest);
    in_time(suite, &guest);
    suite.check("posted/destroy", guest.destroy(), "not all came back");
    ends_with_its_realm(suite);
    if let Some(pa) = machine::get().argument("absent").and_then(number) {
        absent(suite, pa);
        behind_nowhere(suite, pa);
    }
    if cpu::count() > 1 {
        beside(suite);
    }
    calls::still_there(suite, "posted/rmi-version");
}

fn arguments(suite: &mut Suite<Console>, guest: &Tiny) {
    let page = at(PAGE);
    suite.equal("posted/none-to-take", set(guest, 0, 0, 0), INPUT);
    for (name, page, ipa) in [
        ("posted/page-unaligned", page + 8, DEVICE),
        ("posted/page-device", machine::get().uart, DEVICE),
        ("posted/page-nowhere", !(granule() - 1), DEVICE),
        ("posted/page-rd", guest.rd(), DEVICE),
        ("posted/page-rec", guest.rec(0), DEVICE),
        ("posted/ipa-unaligned", page, DEVICE + 8),
        ("posted/ipa-too-wide", page, 1 << IPA_BITS),
        ("posted/ipa-top", page, !0xfff),
        ("posted/ipa-all-ones", page, u64::MAX),
    ] {
        suite.equal(name, set(guest, page, ipa, 0), INPUT);
    }
    for (base, _, kind) in memory_ranges() {
        if kind == RangeKind::Hypervisor as u64 {
            suite.equal("posted/page-el2", set(guest, base, DEVICE, 0), INPUT);
        }
    }
    for rd in [page, guest.rd() + 8, guest.rec(0), u64::MAX] {
        let (ipa, delay) = (DEVICE, 0);
        let call = Vendor::SetPosted {
            rd,
            page,
            ipa,
            delay,
        };
        suite.equal("posted/no-rd", status(call), INPUT);
    }
    // What was refused is not kept.
    suite.equal("posted/not-pinned", delegate(page), SUCCESS);
    suite.equal("posted/delegated", set(guest, page, DEVICE, 0), INPUT);
    suite.equal("posted/back", undelegate(page), SUCCESS);
    for _ in 0..3 {
        suite.equal("posted/set", set(guest, page, DEVICE, 0), SUCCESS);
        suite.equal("posted/twice", set(guest, page, DEVICE, 0), INPUT);
        suite.equal("posted/another", set(guest, at(OTHER), DEVICE, 0), INPUT);
        suite.equal("posted/another-free", delegate(at(OTHER)), SUCCESS);
        suite.equal("posted/another-back", undelegate(at(OTHER)), SUCCESS);
        suite.equal("posted/pinned", delegate(page), INPUT);
        suite.equal("posted/take", set(guest, 0, 0, 0), SUCCESS);
        suite.equal("posted/free", delegate(page), SUCCESS);
        suite.equal("posted/free-back", undelegate(page), SUCCESS);
    }
}

/// A host that does as it should.
fn well_meant(suite: &mut Suite<Console>, guest: &Tiny) {
    let page = fresh(PAGE);
    let came = tell(guest, COUNT, 3);
    suite.equal("posted/without", came.accesses, 3);
    suite.equal("posted/with", set(guest, at(PAGE), DEVICE, NEVER), SUCCESS);
    suite.equal("posted/closed", tell(guest, COUNT, 3).accesses, 3);
    page.show(&open());
    let came = tell(guest, READ_EACH, FR);
    let right = (came.accesses, came.told) == (0, Some(0));
    suite.check("posted/each-register", right, format_args!("{came:x?}"));
    let came = tell(guest, READ, FR);
    let right = (came.accesses, came.told) == (0, Some(0x90));
    suite.check("posted/read", right, format_args!("{came:x?}"));
    let came = tell(guest, READ, RIS);
    let right = (came.accesses, came.told) == (0, Some(0x20));
    suite.check("posted/read-empty", right, format_args!("{came:x?}"));
    let came = tell(guest, SIZES, 0x1234_5678);
    let right = (came.accesses, came.irqs) == (0, 0);
    suite.check("posted/write", right, format_args!("{came:x?}"));
    suite.equal("posted/waits", tell(guest, READ, RIS).accesses, 1);
    suite.equal("posted/other-register", tell(guest, READ, 4).accesses, 1);
    for (shift, value) in [(0, 0x78), (1, 0x5678), (2, 0x1234_5678)] {
        let write = page.next();
        let right = write.is_some_and(|write| {
            (write.offset(), write.size_shift(), write.value()) == (DR, shift, value)
        });
        suite.check("posted/sizes", right, format_args!("{write:x?}"));
        page.taken();
    }
    suite.check("posted/empty", page.is_empty(), "there is more");
    suite.equal("posted/read-again", tell(guest, READ, RIS).accesses, 0);
    suite.equal("posted/end", set(guest, 0, 0, 0), SUCCESS);
    suite.equal("posted/after", tell(guest, COUNT, 3).accesses, 3);
}

/// A ring that nobody takes from fills, and then each write is the host's.
fn never_taken(suite: &mut Suite<Console>, guest: &Tiny) {
    let page = fresh(PAGE);
    page.show(&open());
    suite.equal("full/set", set(guest, at(PAGE), DEVICE, NEVER), SUCCESS);
    let came = tell(guest, COUNT, MANY);
    let right = came.accesses == MANY - ENTRIES
        && came.first == Some(ENTRIES)
        && came.told == Some(MANY)
        && came.irqs > 0;
    suite.check("full/exits", right, format_args!("{came:x?}"));
    let mut waiting = 0;
    while let Some(write) = page.next() {
        let right = u64::from(write.value()) == waiting;
        if !right {
            suite.check("full/order", false, format_args!("{write:x?}"));
        }
        waiting += 1;
        page.taken();
    }
    suite.equal("full/waits", waiting, ENTRIES);
    suite.check("full/around", around_is_whole(PAGE), "EL2 wrote elsewhere");
    suite.equal("full/room", tell(guest, COUNT, 9).accesses, 0);
    suite.equal("full/end", set(guest, 0, 0, 0), SUCCESS);
}

/// Pages that no host means.
fn nonsense(suite: &mut Suite<Console>, guest: &Tiny) {
    let mut random = Random::new(7);
    for round in 0..40 {
        fresh(PAGE);
        for word in 0..::posted::PAGE as u64 / 8 {
            let value = match round {
                0 => u64::MAX,
                1 => 0,
                // Counts that are near those of EL2's.
                _ if word == 2 && round % 4 == 2 => random.below(600),
                _ => random.word(),
            };
            // SAFETY: the page.
            unsafe { write64(at(PAGE) + 8 * word, value) };
        }
        let set_it = set(guest, at(PAGE), DEVICE, NEVER);
        let all = [
            tell(guest, COUNT, 300).told == Some(300),
            tell(guest, READ, FR).told.is_some(),
            tell(guest, SIZES, 1).told.is_some(),
            tell(guest, COUNT, 300).told == Some(300),
            set_it == SUCCESS && set(guest, 0, 0, 0) == SUCCESS,
            around_is_whole(PAGE),
        ];
        let right = all == [true; 6];
        if !right || round < 2 {
            suite.check("nonsense/page", right, format_args!("{round} {all:?}"));
        }
    }
    suite.check("nonsense/all", true, "");
}

/// What waits calls the host, though the guest does nothing more.
fn in_time(suite: &mut Suite<Console>, guest: &Tiny) {
    let page = fresh(PAGE);
    page.show(&open());
    let delay = arm64::regs::CNTFRQ_EL0.get() / 1000;
    suite.equal("time/set", set(guest, at(PAGE), DEVICE, delay), SUCCESS);
    let begun = cpu::now();
    let mut exit = guest.go(0, NONE, 0);
    for value in [STAY, 0x41] {
        exit = guest.enter(0, EMULATE, value);
    }
    suite.check("time/irq", exit.is_irq(), format_args!("{exit:x?}"));
    let took = cpu::now() - begun;
    suite.check("time/not-before", took >= delay, took);
    suite.check("time/waits", !page.is_empty(), "nothing waits");
    suite.equal("time/end", set(guest, 0, 0, 0), SUCCESS);
}

/// The realm's end is the page's.
fn ends_with_its_realm(suite: &mut Suite<Console>) {
    for vmid in 40..44 {
        let Some(guest) = build(vmid) else {
            suite.check("posted/build-again", false, vmid);
            return;
        };
        fresh(PAGE).show(&open());
        suite.equal("ends/set", set(&guest, at(PAGE), DEVICE, NEVER), SUCCESS);
        tell(&guest, COUNT, 5);
        // A realm that lives keeps it.
        let rd = guest.rd();
        let early = status(rmi::Command::RealmDestroy { rd });
        suite.check("ends/early", early != SUCCESS, early);
        suite.equal("ends/pinned", delegate(at(PAGE)), INPUT);
        suite.check("ends/destroy", guest.destroy(), "not all came back");
        suite.equal("ends/free", delegate(at(PAGE)), SUCCESS);
        suite.equal("ends/back", undelegate(at(PAGE)), SUCCESS);
    }
}

/// A page where there is no memory, though EL2 takes it for RAM: it is refused, and
/// is the host's still.
fn absent(suite: &mut Suite<Console>, pa: u64) {
    let Some(guest) = build(45) else {
        suite.check("absent/posted-build", false, "no guest");
        return;
    };
    suite.equal("absent/posted", set(&guest, pa, DEVICE, NEVER), INPUT);
    let came = tell(&guest, COUNT, 20);
    let right = (came.accesses, came.irqs, came.told) == (20, 0, Some(20));
    suite.check("absent/posted-writes", right, format_args!("{came:x?}"));
    suite.equal("absent/posted-none", set(&guest, 0, 0, 0), INPUT);
    suite.equal(
        "absent/posted-there",
        set(&guest, at(PAGE), DEVICE, 0),
        SUCCESS,
    );
    suite.check(
        "absent/posted-destroy",
        guest.destroy(),
        "not all came back",
    );
}

/// The walk to the page before the device's meets an external abort at EL2, while
/// that serves the access at its vector: the guest goes on where it was, and where
/// it was is the guest.
fn behind_nowhere(suite: &mut Suite<Console>, absent: u64) {
    let bytes = 0x2_0000;
    let code = &raw const posts_behind_nowhere;
    let Some(guest) = Tiny::build_new(0, 47, code, bytes, 1) else {
        suite.check("behind-nowhere/build", false, "no guest");
        return;
    };
    let nowhere = crate::tiny::RAM + 0x3_0000;
    let page = crate::realm::normal(absent);
    let mapped = crate::realm::map(guest.rd(), nowhere, 3, page);
    suite.equal("behind-nowhere/map", mapped, SUCCESS);
    let block = |ipa: u64| ipa | 1 << 10 | 3 << 8 | 1;
    let table = guest.memory(0x1_0000);
    for (index, descriptor) in [
        // The code's, for reading only.
        (1, block(crate::tiny::RAM) | 1 << 7),
        (3, nowhere | 3),
        (4, block(0) | 1 << 54 | 1 << 53),
    ] {
        // SAFETY: memory of the guest's, which is the host's.
        unsafe { write64(table + 8 * index, descriptor) };
    }
    tests::bare::asm::clean(table, table + 4096);
    suite.check("behind-nowhere/activate", guest.activate(), "a call failed");
    // Without a page, each access is the host's, at its own offset.
    let mut exit = guest.go(0, NONE, 0);
    for _ in 0..4 {
        let right = exit.access() == Some(0);
        suite.check("behind-nowhere/offset", right, format_args!("{exit:x?}"));
        exit = guest.go(0, EMULATE, 0);
    }
    fresh(PAGE).show(&open());
    suite.equal(
        "behind-nowhere/set",
        set(&guest, at(PAGE), 0, NEVER),
        SUCCESS,
    );
    let exit = guest.go(0, NONE, 0);
    let right = exit.access() == Some(0) && exit.esr >> 22 & 3 == 3;
    suite.check("behind-nowhere/exit", right, format_args!("{exit:x?}"));
    suite.equal("behind-nowhere/end", set(&guest, 0, 0, 0), SUCCESS);
    let gone = calls::ask(rmi::Command::RttUnmapUnprotected {
        rd: guest.rd(),
        ipa: nowhere,
        level: 3,
    });
    suite.equal("behind-nowhere/unmap", gone[0], SUCCESS);
    suite.check(
        "behind-nowhere/destroy",
        guest.destroy(),
        "not all came back",
    );
}

static STOP: AtomicBool = AtomicBool::new(false);
static WRONG: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU64 = AtomicU64::new(0);

/// Another CPU runs the guest while this one scribbles over its page, takes it
/// away, gives it to EL2, and says that it is another device's.
fn beside(suite: &mut Suite<Console>) {
    let Some(guest) = build(46) else {
        suite.check("beside/build", false, "no guest");
        return;
    };
    STOP.store(false, Ordering::SeqCst);
    let job = || {
        let guest = Tiny::existing(0, granule(), 1);
        while !STOP.load(Ordering::SeqCst) {
            let came = tell(&guest, COUNT, 50);
            let wrong = came.told != Some(50);
            WRONG.fetch_add(u64::from(wrong), Ordering::SeqCst);
            RUNS.fetch_add(1, Ordering::SeqCst);
        }
    };
    suite.equal("beside/cpu", cpu::start(1, job) as u64, 0);
    let mut random = Random::new(3);
    let (mut refused, mut elsewhere) = (0u64, 0u64);
    for round in 0..400u64 {
        let page = fresh(PAGE);
        page.show(&open());
        refused += u64::from(set(&guest, at(PAGE), DEVICE, random.below(1000)) != SUCCESS);
        let runs = RUNS.load(Ordering::SeqCst);
        for _ in 0..200 {
            let at = at(PAGE) + 8 * random.below(::posted::PAGE as u64 / 8);
            let value = random.word() & !0u64.wrapping_shr(random.word() as u32 % 64);
            // SAFETY: the page, which EL2 has its eyes on too.
            unsafe { write64(at, value) };
        }
        if round % 8 == 0 {
            cpu::eventually(|| RUNS.load(Ordering::SeqCst) > runs + 1);
        }
        refused += u64::from(set(&guest, 0, 0, 0) != SUCCESS);
        // Another's device: no write of this one's is for it.
        let other = fresh(OTHER);
        other.show(&open());
        refused += u64::from(set(&guest, at(OTHER), ELSEWHERE, NEVER) != SUCCESS);
        refused += u64::from(delegate(at(PAGE)) != SUCCESS);
        refused += u64::from(undelegate(at(PAGE)) != SUCCESS);
        refused += u64::from(set(&guest, 0, 0, 0) != SUCCESS);
        elsewhere += u64::from(!other.is_empty());
    }
    STOP.store(true, Ordering::SeqCst);
    suite.check("beside/off", cpu::wait_off(1), "CPU 1 stays on");
    suite.equal("beside/refused", refused, 0);
    suite.equal("beside/elsewhere", elsewhere, 0);
    suite.equal("beside/told", WRONG.load(Ordering::SeqCst), 0);
    let runs = RUNS.load(Ordering::SeqCst);
    suite.check("beside/runs", runs > 0, "the guest did not run");
    suite.check(
        "beside/around",
        around_is_whole(OTHER),
        "EL2 wrote elsewhere",
    );
    suite.check("beside/destroy", guest.destroy(), "not all came back");
}

//! A GICv3 as a test sets it up, which is less than Linux does: nobody wakes a
//! redistributor, and nothing is written to the interface's control register.

use arm64::regs::{
    CNTFRQ_EL0, ICC_EOIR1_EL1, ICC_HPPIR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_RPR_EL1,
    ICC_SGI1R_EL1,
};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tests::bare::asm::{self, read8, read16, read32, set, write8, write16, write32};
use tests::bare::console::Console;
use tests::bare::gic::{self, gicd, gicr};
use tests::bare::{MAX_CPUS, cpu, exception, machine};
use tests::println;
use tests::suite::Suite;

use crate::fact;

/// The SGI that is sent.
const IPI: u32 = 1;

static ACKED: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static NUMBER: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static SPURIOUS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static READY: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicU32 = AtomicU32::new(0);
static RESULTS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Lets milliseconds pass.
pub fn delay(ms: u64) {
    let end = cpu::now() + CNTFRQ_EL0.get() * ms / 1000;
    while cpu::now() < end {
        core::hint::spin_loop();
    }
}

fn wait_for_distributor() {
    while gic::d(gicd::CTLR) & 1 << 31 != 0 {
        core::hint::spin_loop();
    }
}

/// What each CPU does before its first interrupt.
pub fn defaults() {
    let lines = 32 * ((gic::d(gicd::TYPER) & 31) + 1);
    gic::set_d(gicd::CTLR, 0);
    wait_for_distributor();
    gic::set_d(gicd::CTLR, 0b1_0011);
    wait_for_distributor();
    // One register for each four interrupts, as if a group took a byte: it goes on
    // into the registers behind the groups.
    for at in (0..u64::from(lines.min(1020))).step_by(4) {
        gic::set_d(gicd::IGROUPR + at, u32::MAX);
    }
    gic::set_r(gicr::SGI + gicd::IGROUPR, u32::MAX);
    for at in (0..16).step_by(4) {
        gic::set_r(gicr::SGI + gicd::IPRIORITYR + at, 0xa0a0_a0a0);
    }
    gic::set_r(gicr::SGI + gicd::ISENABLER, 0xffff);
    set(ICC_PMR_EL1, 0xf0);
    set(ICC_IGRPEN1_EL1, 1);
}

fn serve() {
    let me = cpu::index();
    let intid = gic::acknowledge();
    if intid == gic::NOTHING {
        SPURIOUS[me].fetch_add(1, Ordering::SeqCst);
        return;
    }
    gic::end(intid);
    NUMBER[me].store(intid, Ordering::SeqCst);
    ACKED[me].fetch_add(1, Ordering::SeqCst);
}

fn reset_counts() {
    for index in 0..MAX_CPUS {
        ACKED[index].store(0, Ordering::SeqCst);
        NUMBER[index].store(IPI, Ordering::SeqCst);
    }
}

/// Whether each CPU of `mask` got the SGI once, and no other one.
fn acked(mask: usize) -> bool {
    let seen = |index: usize| ACKED[index].load(Ordering::SeqCst);
    let want = |index: usize| (mask >> index & 1) as u32;
    cpu::eventually(|| (0..cpu::count()).all(|index| seen(index) >= want(index)));
    delay(20);
    let number = |index: usize| NUMBER[index].load(Ordering::SeqCst);
    let wrong = |index: &usize| seen(*index) != want(*index) || number(*index) != IPI;
    let first = (0..cpu::count()).find(wrong);
    if let Some(index) = first {
        let (seen, number) = (seen(index), number(index));
        println!("= gic/acked CPU {index}: {seen} of {mask:#b}, the last {number}");
    }
    first.is_none()
}

/// One CPU's checks.
pub fn checks(suite: &mut Suite<Console>) {
    exception::on_irq(serve);
    defaults();
    asm::irq_on();
    fact!("gic/defaults-ctlr", gic::d(gicd::CTLR));
    let words = (0..9).map(|n| gic::d(gicd::ISENABLER + 4 * n));
    for (n, word) in words.enumerate() {
        println!("= gic/defaults-isenabler{n} {word:#x}");
    }
    // To itself, with a redistributor that nobody woke.
    reset_counts();
    gic::send_sgi(IPI, 0);
    suite.check("gic/self", acked(1), ACKED[0].load(Ordering::SeqCst));
    reset_counts();
    for _ in 0..2 {
        set(ICC_SGI1R_EL1, 1 << 40 | u64::from(IPI) << 24);
    }
    suite.check(
        "gic/broadcast-not-to-self",
        acked(0),
        ACKED[0].load(Ordering::SeqCst),
    );
    active(suite);
    by_hand(suite);
    read_only(suite);
    priorities(suite);
    sizes();
    sweep();
    asm::irq_off();
}

fn serve_inactive() {
    let me = cpu::index();
    let intid = gic::acknowledge();
    if intid == gic::NOTHING {
        SPURIOUS[me].fetch_add(1, Ordering::SeqCst);
        return;
    }
    gic::set_r(gicr::SGI + gicd::ICACTIVER, 1 << IPI);
    NUMBER[me].store(intid, Ordering::SeqCst);
    ACKED[me].fetch_add(1, Ordering::SeqCst);
}

/// Ended by ICACTIVER alone.
fn active(suite: &mut Suite<Console>) {
    exception::on_irq(serve_inactive);
    reset_counts();
    gic::send_sgi(IPI, 0);
    suite.check("gic/active", acked(1), ACKED[0].load(Ordering::SeqCst));
    fact!("gic/active-rpr", ICC_RPR_EL1.get());
    fact!("gic/active-isactiver", gic::r(gicr::SGI + gicd::ISACTIVER));
    // A second one waits, since the priority was not dropped.
    gic::send_sgi(IPI, 0);
    delay(5);
    fact!("gic/active-second", ACKED[0].load(Ordering::SeqCst));
    fact!(
        "gic/active-second-pending",
        gic::r(gicr::SGI + gicd::ISPENDR)
    );
    fact!("gic/active-hppir", ICC_HPPIR1_EL1.get());
    exception::on_irq(serve);
    asm::irq_off();
    set(ICC_EOIR1_EL1, IPI.into());
    fact!("gic/dropped-rpr", ICC_RPR_EL1.get());
    fact!("gic/dropped-isactiver", gic::r(gicr::SGI + gicd::ISACTIVER));
    fact!("gic/dropped-hppir", ICC_HPPIR1_EL1.get());
    asm::irq_on();
    delay(5);
    fact!("gic/dropped-taken", ACKED[0].load(Ordering::SeqCst));
    reset_counts();
    gic::send_sgi(IPI, 0);
    suite.check(
        "gic/active-then-usual",
        acked(1),
        ACKED[0].load(Ordering::SeqCst),
    );
}

fn state(intid: u32) -> u64 {
    u64::from(gic::get(gicd::ISPENDR, intid)) | u64::from(gic::get(gicd::ISACTIVER, intid)) << 1
}

/// Pending and active by writes to GICR and GICD.
fn by_hand(suite: &mut Suite<Console>) {
    for intid in [2u32, 20, 100] {
        if intid == 100 {
            gic::route(intid, 0);
            gic::set_edge(intid, true);
            gic::set_priority(intid, 0xa0);
            gic::change(gicd::IGROUPR, intid, true);
        }
        if intid == 20 {
            gic::set_priority(intid, 0xa0);
        }
        asm::irq_off();
        reset_counts();
        gic::put(gicd::ICENABLER, intid);
        gic::put(gicd::ISPENDR, intid);
        println!("= gic/{intid}-disabled-state {:#x}", state(intid));
        println!("= gic/{intid}-disabled-hppir {:#x}", ICC_HPPIR1_EL1.get());
        gic::put(gicd::ISACTIVER, intid);
        println!("= gic/{intid}-both-state {:#x}", state(intid));
        gic::put(gicd::ISENABLER, intid);
        gic::sync();
        println!("= gic/{intid}-both-hppir {:#x}", ICC_HPPIR1_EL1.get());
        gic::put(gicd::ICACTIVER, intid);
        gic::sync();
        println!("= gic/{intid}-pending-hppir {:#x}", ICC_HPPIR1_EL1.get());
        println!("= gic/{intid}-pending-state {:#x}", state(intid));
        let got = gic::acknowledge();
        println!("= gic/{intid}-acknowledged {got}");
        println!("= gic/{intid}-active-state {:#x}", state(intid));
        gic::put(gicd::ISPENDR, intid);
        println!("= gic/{intid}-again-state {:#x}", state(intid));
        gic::put(gicd::ICPENDR, intid);
        println!("= gic/{intid}-cleared-state {:#x}", state(intid));
        // An end of what is not active, of nothing, and of what is.
        set(ICC_EOIR1_EL1, 1023);
        println!("= gic/{intid}-rpr {:#x}", ICC_RPR_EL1.get());
        set(ICC_EOIR1_EL1, intid.into());
        println!("= gic/{intid}-ended-state {:#x}", state(intid));
        println!("= gic/{intid}-ended-rpr {:#x}", ICC_RPR_EL1.get());
        asm::irq_on();
        delay(2);
        let none = ACKED[0].load(Ordering::SeqCst);
        suite.equal("gic/none-left", none.into(), 0);
        gic::put(gicd::ICENABLER, intid);
    }
    gic::set_r(gicr::SGI + gicd::ISENABLER, 0xffff);
}

fn keeps(at: u64) -> bool {
    // SAFETY: a register of the GIC's that only reads, by the caller.
    unsafe {
        let first = read32(at);
        [u32::MAX, 0xa5a5_5a5a, 0].into_iter().all(|pattern| {
            write32(at, pattern);
            read32(at) == first
        })
    }
}

fn read_only(suite: &mut Suite<Console>) {
    let gicd = machine::get().gicd;
    let gicr = gic::redistributor(0);
    for (name, at) in [
        ("gic/typer-reads-only", gicd + gicd::TYPER),
        ("gic/iidr-reads-only", gicd + gicd::IIDR),
        ("gic/typer2-reads-only", gicd + 0xc),
        ("gic/pidr2-reads-only", gicd + gicd::PIDR2),
        ("gic/gicr-iidr-reads-only", gicr + 4),
        ("gic/gicr-typer-reads-only", gicr + gicr::TYPER),
        ("gic/gicr-typer-high-reads-only", gicr + gicr::TYPER + 4),
        ("gic/gicr-pidr2-reads-only", gicr + 0xffe8),
    ] {
        suite.check(name, keeps(at), "it changed");
    }
    fact!("gic/gicv2-pidr2", gic::d(0xfe8));
}

fn priorities(suite: &mut Suite<Console>) {
    let lines = 32 * (u64::from(gic::d(gicd::TYPER) & 31) + 1);
    let first = machine::get().gicd + gicd::IPRIORITYR + 32;
    // SAFETY: priorities of SPIs, by words and bytes.
    unsafe {
        let before = read32(first);
        write32(first, u32::MAX);
        let mask = read32(first);
        let byte = mask & 0xff;
        suite.check("gic/priority-mask", mask == byte * 0x0101_0101, mask);
        suite.check(
            "gic/priority-4-bits",
            (byte as u8).leading_ones() >= 4,
            byte,
        );
        fact!("gic/priority-mask", mask);
        write32(first, 0);
        suite.equal("gic/priority-clear", read32(first).into(), 0);
        let beyond = machine::get().gicd + gicd::IPRIORITYR + lines;
        suite.check(
            "gic/priority-beyond",
            read32(beyond) == 0 && keeps(beyond),
            read32(beyond),
        );
        let last = beyond - 4;
        write32(last, 0xff7f_bf3f);
        suite.equal(
            "gic/priority-last",
            read32(last).into(),
            (0xff7f_bf3f & mask).into(),
        );
        write32(last, 0);
        write32(first, 0xff7f_bf3f);
        suite.equal(
            "gic/priority-kept",
            read32(first).into(),
            (0xff7f_bf3f & mask).into(),
        );
        let byte = u32::from(read8(first + 1));
        suite.equal(
            "gic/priority-byte-read",
            byte.into(),
            (0xbf & mask >> 8 & 0xff).into(),
        );
        write8(first + 2, 0x1f);
        suite.equal(
            "gic/priority-byte-write",
            read32(first).into(),
            (0xff1f_bf3f & mask).into(),
        );
        write32(first, before);
        // The old registers of targets.
        let targets = machine::get().gicd + gicd::ITARGETSR;
        let raz = keeps(targets + 32) && read32(targets + 32) == 0;
        suite.check("gic/targets-are-nothing", raz, read32(targets + 32));
    }
}

/// Registers by bytes, halves and words: whatever QEMU's GIC has them read and do.
fn sizes() {
    let gicd = machine::get().gicd;
    let own = gic::redistributor(0) + gicr::SGI;
    let route = gicd + gicd::IROUTER + 8 * 40;
    for (name, at) in [
        ("typer", gicd + gicd::TYPER),
        ("iidr", gicd + gicd::IIDR),
        ("ipriorityr", gicd + gicd::IPRIORITYR + 40),
        ("itargetsr", gicd + gicd::ITARGETSR + 40),
        ("icfgr", gicd + gicd::ICFGR + 12),
        ("igroupr", gicd + gicd::IGROUPR + 4),
        ("isenabler", gicd + gicd::ISENABLER + 4),
        ("irouter", route),
        ("irouter-high", route + 4),
        ("pidr2", gicd + gicd::PIDR2),
        ("gicr-typer", own - gicr::SGI + gicr::TYPER),
        ("gicr-waker", own - gicr::SGI + gicr::WAKER),
        ("gicr-ipriorityr", own + gicd::IPRIORITYR + 24),
        ("gicr-isenabler", own + gicd::ISENABLER),
        ("gicr-icfgr1", own + gicd::ICFGR + 4),
    ] {
        // SAFETY: the GIC's, and no interrupt's of a device that is on.
        let seen = exception::probe(|| unsafe {
            let before = read32(at);
            let reads = [
                u32::from(read8(at)),
                u32::from(read8(at + 1)),
                read16(at).into(),
            ];
            write16(at, 0x5555);
            let half = read32(at);
            write8(at + 1, 0xaa);
            let byte = read32(at);
            write32(at, 0xffff_ffff);
            let ones = read32(at);
            write32(at, 0);
            let zeros = read32(at);
            write32(at, before);
            (before, reads, half, byte, ones, zeros, read32(at))
        });
        println!("= gic/sizes/{name} {seen:x?}");
    }
    gic::set_r(gicr::SGI + gicd::ISENABLER, 0xffff);
}

/// All registers that are not zero.
fn sweep() {
    let machine = machine::get();
    let own = gic::redistributor(0);
    for (name, base) in [
        ("gicd", machine.gicd),
        ("gicr", own),
        ("gicr-sgi", own + gicr::SGI),
    ] {
        for at in (0..0x1_0000).step_by(4) {
            // SAFETY: the GIC's frames.
            let seen = exception::probe(|| unsafe { read32(base + at) });
            match seen {
                Ok(0) => {}
                seen => println!("= gic/sweep/{name}/{at:#x} {seen:x?}"),
            }
        }
    }
}

fn receive() {
    defaults();
    asm::irq_on();
    READY.fetch_add(1, Ordering::SeqCst);
    while STOP.load(Ordering::SeqCst) == 0 {
        asm::wfi();
    }
}

/// Sends as CPU 1, with all others in WFI.
fn send() {
    defaults();
    asm::irq_on();
    while READY.load(Ordering::SeqCst) as usize != cpu::count() - 1 {
        core::hint::spin_loop();
    }
    let all = (1usize << cpu::count()) - 1;
    reset_counts();
    gic::send_sgi(IPI, 1);
    RESULTS[0].store(1 + usize::from(acked(0b10)), Ordering::SeqCst);
    // One write for all of the other parity.
    reset_counts();
    let list = all & 0b0101_0101;
    set(ICC_SGI1R_EL1, list as u64 | u64::from(IPI) << 24);
    RESULTS[1].store(1 + usize::from(acked(list)), Ordering::SeqCst);
    reset_counts();
    set(ICC_SGI1R_EL1, 1 << 40 | u64::from(IPI) << 24);
    RESULTS[2].store(1 + usize::from(acked(all & !0b10)), Ordering::SeqCst);
    STOP.store(1, Ordering::SeqCst);
    set(ICC_SGI1R_EL1, 1 << 40 | u64::from(IPI) << 24);
}

/// SGIs among all CPUs.
pub fn other_cpus(suite: &mut Suite<Console>) {
    exception::on_irq(serve);
    READY.store(0, Ordering::SeqCst);
    STOP.store(0, Ordering::SeqCst);
    let mut started = cpu::start(1, send);
    for index in 2..cpu::count() {
        started |= cpu::start(index, receive);
    }
    suite.check("gic/others-start", started == 0, started);
    receive();
    asm::irq_off();
    for (name, result) in ["gic/smp-self", "gic/smp-list", "gic/smp-broadcast"]
        .iter()
        .zip(&RESULTS)
    {
        suite.equal(name, result.load(Ordering::SeqCst) as u64, 2);
    }
    let off = (1..cpu::count()).all(cpu::wait_off);
    suite.check("gic/others-off", off, "not all");
    let spurious: u32 = SPURIOUS
        .iter()
        .map(|count| count.load(Ordering::SeqCst))
        .sum();
    suite.equal("gic/no-spurious", spurious.into(), 0);
}

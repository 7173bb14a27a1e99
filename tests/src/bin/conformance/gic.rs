//! The GICv3's distributor, redistributors and CPU interface (IHI0069).

use arm64::regs::{
    ELR_EL1, ICC_CTLR_EL1, ICC_HPPIR1_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_RPR_EL1,
    ICC_SGI1R_EL1, ICC_SRE_EL1, SPSR_EL1,
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tests::bare::asm::set;

use tests::bare::asm::{read8, read32, read64, write32, write64};
use tests::bare::console::Console;
use tests::bare::gic::{self, NOTHING, gicd, gicr};
use tests::bare::{asm, cpu, machine, pl011};
use tests::suite::Suite;

use crate::irq;

/// SPIs that no device of a virt machine drives.
const SPI: u32 = 96;
/// How many of them are used at once: more than any CPU has list registers.
const MANY: u32 = 60;

/// What one CPU can see.
pub fn checks(suite: &mut Suite<Console>) {
    irq::on_each(irq::nothing);
    identity(suite);
    sgis(suite);
    priorities(suite);
    eoi_mode_1(suite);
    spis(suite);
    level(suite);
    many(suite);
}

fn identity(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let lines = 32 * ((gic::d(gicd::TYPER) & 31) + 1);
    suite.check("gic/64-spis", lines >= 96, lines);
    suite.equal(
        "gic/gicd-pidr2",
        u64::from(gic::d(gicd::PIDR2) >> 4 & 0xf),
        3,
    );
    suite.equal("gic/gicr-pidr2", u64::from(gic::r(0xffe8) >> 4 & 0xf), 3);
    suite.equal("gic/are", u64::from(gic::d(gicd::CTLR) & 1 << 4), 1 << 4);
    for index in 0..machine.cpus {
        // SAFETY: A redistributor's GICR_TYPER.
        let typer = unsafe { read64(gic::redistributor(index) + gicr::TYPER) };
        let mpidr = machine.mpidrs[index];
        let affinity = mpidr >> 32 << 24 | mpidr & 0xff_ffff;
        suite.equal("gic/typer-affinity", typer >> 32, affinity);
        let last = typer & 1 << 4 != 0;
        suite.check("gic/typer-last", last == (index + 1 == machine.cpus), index);
        // SAFETY: As above, its halves.
        let (low, high) = unsafe {
            let base = gic::redistributor(index) + gicr::TYPER;
            (read32(base), read32(base + 4))
        };
        let halves = u64::from(low) | u64::from(high) << 32;
        suite.equal("gic/typer-halves", halves, typer);
    }
    suite.equal("gic/idle-rpr", ICC_RPR_EL1.get() & 0xff, 0xff);
    suite.equal(
        "gic/idle-iar",
        u64::from(gic::acknowledge()),
        u64::from(NOTHING),
    );
    suite.equal("gic/idle-hppir", ICC_HPPIR1_EL1.get(), u64::from(NOTHING));
    suite.equal("gic/sre", ICC_SRE_EL1.get() & 1, 1);

    // With affinity routing the old target registers are nothing.
    gic::set_d(gicd::ITARGETSR + u64::from(SPI), 0xffff_ffff);
    let targets = gic::d(gicd::ITARGETSR + u64::from(SPI));
    suite.equal("gic/itargetsr-raz", u64::from(targets), 0);

    gic::set_priority(SPI + 1, 0xa0);
    gic::set_priority(SPI, 0x40);
    // SAFETY: IPRIORITYR by bytes and words.
    let (byte, word) = unsafe {
        let base = machine.gicd + gicd::IPRIORITYR + u64::from(SPI);
        (read8(base + 1), read32(base))
    };
    suite.equal("gic/priority-byte", u64::from(byte), 0xa0);
    suite.equal("gic/priority-word", u64::from(word & 0xffff), 0xa040);
    // The distributor's own banks for SGIs and PPIs are nothing with ARE.
    suite.equal(
        "gic/banked-isenabler-raz",
        u64::from(gic::d(gicd::ISENABLER)),
        0,
    );
}

fn sgis(suite: &mut Suite<Console>) {
    irq::forget();
    for intid in 0..16 {
        gic::enable(intid, 0x80);
        gic::send_sgi(intid, cpu::index());
    }
    let all = (0..16).all(|intid| irq::arrives(intid, 1));
    irq::settle();
    let once = (0..16).all(|intid| irq::taken(intid) == 1);
    suite.check("gic/sgis-to-self", all && once, "not each once");

    irq::forget();
    gic::send_sgi_to_others(1);
    irq::settle();
    suite.equal("gic/irm-not-self", u64::from(irq::taken(1)), 0);

    // RS of ICC_SGI1R_EL1, where neither side has it (GICD_TYPER.RSS, ICC_CTLR_EL1.RSS).
    if (gic::d(gicd::TYPER) >> 26 & 1) == 0 && ICC_CTLR_EL1.get() >> 18 & 1 == 0 {
        asm::dsb();
        set(
            ICC_SGI1R_EL1,
            1 << 44 | 14 << 24 | 1 << (asm::mpidr() & 0xf),
        );
        suite.check("gic/sgi-range-is-none", irq::arrives(14, 1), irq::taken(14));
    }

    // ISPENDR and ICPENDR of an SGI.
    asm::irq_off();
    gic::put(gicd::ISPENDR, 2);
    suite.check("gic/sgi-ispendr", gic::get(gicd::ISPENDR, 2), "not pending");
    gic::put(gicd::ICPENDR, 2);
    gic::sync();
    suite.check("gic/sgi-icpendr", !gic::get(gicd::ISPENDR, 2), "pending");
    asm::irq_on();
    irq::settle();
    suite.equal("gic/cleared-not-taken", u64::from(irq::taken(2)), 0);

    // Acknowledged it is active, and may become pending besides.
    asm::irq_off();
    gic::send_sgi(3, cpu::index());
    let pending = cpu::eventually(|| ICC_HPPIR1_EL1.get() == 3);
    suite.check("gic/hppir", pending, ICC_HPPIR1_EL1.get());
    suite.equal("gic/acknowledge", u64::from(gic::acknowledge()), 3);
    let state = (gic::get(gicd::ISPENDR, 3), gic::get(gicd::ISACTIVER, 3));
    suite.check(
        "gic/active",
        state == (false, true),
        format_args!("{state:?}"),
    );
    suite.equal("gic/rpr", ICC_RPR_EL1.get() & 0xff, 0x80);
    gic::send_sgi(3, cpu::index());
    let both = cpu::eventually(|| gic::get(gicd::ISPENDR, 3));
    let active = gic::get(gicd::ISACTIVER, 3);
    suite.check(
        "gic/active-and-pending",
        both && active,
        format_args!("{both} {active}"),
    );
    suite.equal("gic/not-twice-at-once", u64::from(gic::acknowledge()), 1023);
    gic::end(3);
    suite.equal("gic/then-again", u64::from(gic::acknowledge()), 3);
    gic::end(3);
    let state = (gic::get(gicd::ISPENDR, 3), gic::get(gicd::ISACTIVER, 3));
    suite.check(
        "gic/inactive",
        state == (false, false),
        format_args!("{state:?}"),
    );
    asm::irq_on();

    // 1000, one after the other.
    irq::forget();
    let mut sent = 0;
    while sent < 1000 {
        gic::send_sgi(5, cpu::index());
        sent += 1;
        if !cpu::eventually(|| irq::taken(5) == sent) {
            break;
        }
    }
    suite.equal("gic/1000-sgis", u64::from(irq::taken(5)), 1000);
}

/// Interrupts that came while another one was served.
static NESTED: AtomicU32 = AtomicU32::new(0);
static RUNNING: AtomicU64 = AtomicU64::new(0);

/// In the handler of SGI 6: a higher, an equal and a lower one become pending.
fn nest(intid: u32) {
    if intid != 6 {
        NESTED.fetch_or(1 << intid, Ordering::AcqRel);
        if intid == 7 {
            RUNNING.store(ICC_RPR_EL1.get() & 0xff, Ordering::Release);
        }
        return;
    }
    let (elr, spsr) = (ELR_EL1.get(), SPSR_EL1.get());
    for other in [7, 8, 9] {
        gic::send_sgi(other, cpu::index());
    }
    asm::irq_on();
    cpu::eventually(|| NESTED.load(Ordering::Acquire) & 1 << 7 != 0);
    irq::settle();
    asm::irq_off();
    NESTED.fetch_or(1 << 31, Ordering::AcqRel);
    set(ELR_EL1, elr);
    set(SPSR_EL1, spsr);
}

fn priorities(suite: &mut Suite<Console>) {
    let order = [(7u32, 0x20u8), (8, 0x60), (6, 0x60), (9, 0xa0)];
    for (intid, priority) in order {
        gic::enable(intid, priority);
    }
    // In order of priority, whatever order they were sent in.
    irq::forget();
    asm::irq_off();
    for intid in [9, 6, 7] {
        gic::send_sgi(intid, cpu::index());
    }
    asm::irq_on();
    cpu::eventually(|| irq::taken(9) == 1);
    let mut seen = irq::order();
    let seen = [seen.next(), seen.next(), seen.next(), seen.next()];
    suite.check(
        "gic/priority-order",
        seen == [Some(7), Some(6), Some(9), None],
        format_args!("{seen:?}"),
    );

    // Preemption: by the higher alone.
    irq::forget();
    irq::on_each(nest);
    NESTED.store(0, Ordering::Release);
    gic::send_sgi(6, cpu::index());
    cpu::eventually(|| irq::taken(9) == 1);
    irq::on_each(irq::nothing);
    let mut seen = irq::order();
    let seen = [seen.next(), seen.next(), seen.next(), seen.next()];
    suite.check(
        "gic/preemption",
        seen == [Some(6), Some(7), Some(8), Some(9)] && NESTED.load(Ordering::Acquire) >> 31 == 1,
        format_args!("{seen:?} {:#x}", NESTED.load(Ordering::Acquire)),
    );
    suite.equal("gic/preempting-rpr", RUNNING.load(Ordering::Acquire), 0x20);
    suite.equal("gic/rpr-after", ICC_RPR_EL1.get() & 0xff, 0xff);

    // The mask lets through what is above it only.
    irq::forget();
    set(ICC_PMR_EL1, 0x60);
    gic::send_sgi(8, cpu::index());
    gic::send_sgi(7, cpu::index());
    let higher = irq::arrives(7, 1);
    irq::settle();
    suite.check("gic/pmr-higher", higher, "not taken");
    suite.equal("gic/pmr-equal", u64::from(irq::taken(8)), 0);
    suite.equal("gic/pmr-masked-iar", u64::from(gic::acknowledge()), 1023);
    // 0xf0 keeps what one Security state's five bits and two states' four keep.
    set(ICC_PMR_EL1, 0xf0);
    suite.equal("gic/pmr-reads", ICC_PMR_EL1.get(), 0xf0);
    suite.check("gic/pmr-lifted", irq::arrives(8, 1), "not taken");

    // The group's own enable.
    irq::forget();
    set(ICC_IGRPEN1_EL1, 0);
    gic::send_sgi(7, cpu::index());
    irq::settle();
    suite.equal("gic/igrpen1-off", u64::from(irq::taken(7)), 0);
    set(ICC_IGRPEN1_EL1, 1);
    suite.check("gic/igrpen1-on", irq::arrives(7, 1), "not taken");
    // The distributor's.
    gic::set_d(gicd::CTLR, 1 << 4);
    gic::sync();
    gic::send_sgi(7, cpu::index());
    irq::settle();
    suite.equal("gic/ctlr-off", u64::from(irq::taken(7)), 1);
    gic::set_d(gicd::CTLR, 1 << 4 | 0b11);
    gic::sync();
    suite.check("gic/ctlr-on", irq::arrives(7, 2), "not taken");
    for (intid, _) in order {
        gic::set_priority(intid, 0x80);
    }
}

fn eoi_mode_1(suite: &mut Suite<Console>) {
    irq::forget();
    asm::irq_off();
    set(ICC_CTLR_EL1, ICC_CTLR_EL1.get() | 2);
    suite.equal("gic/eoimode", ICC_CTLR_EL1.get() & 2, 2);
    gic::send_sgi(4, cpu::index());
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == 4);
    suite.equal("gic/eoimode1-acknowledge", u64::from(gic::acknowledge()), 4);
    gic::end(4);
    suite.equal("gic/eoimode1-drop", ICC_RPR_EL1.get() & 0xff, 0xff);
    suite.check(
        "gic/eoimode1-active",
        gic::get(gicd::ISACTIVER, 4),
        "inactive",
    );
    // While it is active it is not taken again; another of its priority is.
    gic::send_sgi(4, cpu::index());
    gic::send_sgi(10, cpu::index());
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == 10);
    suite.equal("gic/eoimode1-other", u64::from(gic::acknowledge()), 10);
    suite.equal(
        "gic/eoimode1-not-again",
        u64::from(gic::acknowledge()),
        1023,
    );
    gic::end(10);
    gic::deactivate(10);
    gic::deactivate(4);
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == 4);
    suite.check("gic/dir-inactive", !gic::get(gicd::ISACTIVER, 4), "active");
    suite.equal("gic/dir-then-again", u64::from(gic::acknowledge()), 4);
    gic::end(4);
    gic::deactivate(4);
    // Ended in another order than acknowledged: an SPI and an SGI.
    gic::enable(SPI, 0x40);
    gic::set_edge(SPI, true);
    gic::route(SPI, cpu::index());
    gic::send_sgi(4, cpu::index());
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == 4);
    let low = gic::acknowledge();
    gic::put(gicd::ISPENDR, SPI);
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == u64::from(SPI));
    let high = gic::acknowledge();
    gic::end(high);
    gic::end(low);
    gic::deactivate(low);
    gic::deactivate(high);
    let active = (gic::get(gicd::ISACTIVER, 4), gic::get(gicd::ISACTIVER, SPI));
    suite.check(
        "gic/dir-any-order",
        (low, high) == (4, SPI) && active == (false, false),
        format_args!("{low} {high} {active:?}"),
    );
    gic::disable(SPI);
    set(ICC_CTLR_EL1, ICC_CTLR_EL1.get() & !2);
    asm::irq_on();
}

fn spis(suite: &mut Suite<Console>) {
    irq::forget();
    gic::set_edge(SPI, true);
    gic::route(SPI, cpu::index());
    gic::enable(SPI, 0x80);
    gic::put(gicd::ISPENDR, SPI);
    suite.check("gic/spi", irq::arrives(SPI, 1), "not taken");
    irq::settle();
    suite.equal("gic/spi-once", u64::from(irq::taken(SPI)), 1);

    // Disabled while pending, perhaps in a list register.
    asm::irq_off();
    gic::put(gicd::ISPENDR, SPI);
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == u64::from(SPI));
    gic::put(gicd::ICENABLER, SPI);
    gic::sync();
    suite.equal(
        "gic/disabled-hppir",
        ICC_HPPIR1_EL1.get(),
        u64::from(NOTHING),
    );
    asm::irq_on();
    irq::settle();
    suite.equal("gic/disabled-not-taken", u64::from(irq::taken(SPI)), 1);
    suite.check("gic/disabled-pending", gic::get(gicd::ISPENDR, SPI), "lost");
    suite.check(
        "gic/disabled-reads",
        !gic::get(gicd::ISENABLER, SPI),
        "enabled",
    );
    gic::put(gicd::ISENABLER, SPI);
    suite.check("gic/enabled-taken", irq::arrives(SPI, 2), "not taken");

    // Cleared while pending.
    asm::irq_off();
    gic::put(gicd::ISPENDR, SPI);
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == u64::from(SPI));
    gic::put(gicd::ICPENDR, SPI);
    gic::sync();
    asm::irq_on();
    irq::settle();
    suite.equal("gic/cleared-spi", u64::from(irq::taken(SPI)), 2);

    // Made active by hand, it waits until it is not.
    gic::put(gicd::ISACTIVER, SPI);
    gic::sync();
    suite.check("gic/isactiver", gic::get(gicd::ISACTIVER, SPI), "inactive");
    gic::put(gicd::ISPENDR, SPI);
    irq::settle();
    suite.equal("gic/active-waits", u64::from(irq::taken(SPI)), 2);
    gic::put(gicd::ICACTIVER, SPI);
    suite.check("gic/icactiver", irq::arrives(SPI, 3), "not taken");

    // Its priority changed while it is pending and masked by it.
    set(ICC_PMR_EL1, 0x80);
    gic::put(gicd::ISPENDR, SPI);
    irq::settle();
    suite.equal("gic/masked-spi", u64::from(irq::taken(SPI)), 3);
    gic::set_priority(SPI, 0x40);
    suite.check("gic/raised-spi", irq::arrives(SPI, 4), "not taken");
    set(ICC_PMR_EL1, 0xf8);

    // IROUTER, in a word and in halves; 1-of-N reads back.
    let base = machine::get().gicd + gicd::IROUTER + u64::from(SPI) * 8;
    let me = asm::mpidr();
    // SAFETY: IROUTER of an SPI that is ours.
    let (word, low) = unsafe {
        write64(base, 1 << 31);
        let word = read64(base);
        write32(base, me as u32);
        write32(base + 4, (me >> 32) as u32);
        (word, read64(base))
    };
    suite.equal("gic/irouter-irm", word & 1 << 31, 1 << 31);
    suite.equal("gic/irouter-halves", low, me);
    suite.equal("gic/irouter-routed", gic::routed(SPI), me);
    // Any one of all: this is the only CPU that is on.
    // SAFETY: As above.
    unsafe { write64(base, 1 << 31) };
    gic::put(gicd::ISPENDR, SPI);
    suite.check("gic/one-of-n", irq::arrives(SPI, 5), "not taken");
    gic::disable(SPI);
}

/// Handlings of the UART's interrupt before it is cleared.
const LEVELS: u32 = 3;

fn level_handler(_: u32) {
    if irq::taken(machine::get().uart_intid) + 1 == LEVELS {
        let uart = machine::get().uart;
        // SAFETY: The UART's mask.
        unsafe { write32(uart + pl011::IMSC, 0) };
    }
}

/// The PL011's transmit interrupt is a level.
fn level(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let intid = machine.uart_intid;
    irq::forget();
    irq::on_each(level_handler);
    gic::set_edge(intid, false);
    gic::route(intid, cpu::index());
    gic::enable(intid, 0x80);
    // SAFETY: The UART is ours: queues off, so that a byte sent is the interrupt.
    unsafe {
        write32(machine.uart + pl011::IMSC, 0);
        write32(machine.uart + pl011::ICR, 0x7ff);
    }
    pl011::put(machine.uart, b'.');
    pl011::put(machine.uart, b'\n');
    pl011::flush(machine.uart);
    // SAFETY: As above.
    let raw = unsafe { read32(machine.uart + pl011::RIS) };
    suite.check(
        "gic/uart-tx-raw",
        raw & pl011::TX != 0,
        format_args!("{raw:#x}"),
    );
    irq::settle();
    suite.equal("gic/uart-masked", u64::from(irq::taken(intid)), 0);
    // SAFETY: As above.
    unsafe { write32(machine.uart + pl011::IMSC, pl011::TX) };
    let came = irq::arrives(intid, LEVELS);
    irq::settle();
    suite.check("gic/level-repeats", came, irq::taken(intid));
    suite.equal(
        "gic/level-ends",
        u64::from(irq::taken(intid)),
        u64::from(LEVELS),
    );

    asm::irq_off();
    // SAFETY: As above.
    unsafe { write32(machine.uart + pl011::IMSC, pl011::TX) };
    let high = cpu::eventually(|| gic::get(gicd::ISPENDR, intid));
    gic::put(gicd::ICPENDR, intid);
    gic::sync();
    let stays = gic::get(gicd::ISPENDR, intid);
    // SAFETY: As above.
    unsafe { write32(machine.uart + pl011::ICR, pl011::TX) };
    let low = cpu::eventually(|| !gic::get(gicd::ISPENDR, intid));
    irq::forget();
    asm::irq_on();
    irq::settle();
    let taken = irq::taken(intid);
    // Nothing is printed before this: it would be the interrupt.
    // SAFETY: As above.
    unsafe { write32(machine.uart + pl011::IMSC, 0) };
    gic::disable(intid);
    irq::on_each(irq::nothing);
    suite.check(
        "gic/level-icpendr-ignored",
        high && stays,
        format_args!("{high} {stays}"),
    );
    suite.check("gic/level-falls", low, "pending");
    suite.equal("gic/level-fallen-not-taken", u64::from(taken), 0);
}

fn priority_of(n: u32) -> u8 {
    // Every priority several times, in no order.
    (n * 37 % 30 * 8) as u8
}

/// More interrupts at once than there are list registers.
fn many(suite: &mut Suite<Console>) {
    irq::forget();
    asm::irq_off();
    for n in 0..MANY {
        gic::set_edge(SPI + n, true);
        gic::route(SPI + n, cpu::index());
        gic::enable(SPI + n, priority_of(n));
    }
    for word in 0..2u64 {
        let first = u64::from(SPI) / 32 + word;
        let mask = if word == 0 {
            u32::MAX
        } else {
            (1 << (MANY - 32)) - 1
        };
        gic::set_d(gicd::ISPENDR + first * 4, mask);
    }
    gic::sync();
    asm::irq_on();
    let all = cpu::eventually(|| (0..MANY).all(|n| irq::taken(SPI + n) == 1));
    irq::settle();
    let once = (0..MANY).all(|n| irq::taken(SPI + n) == 1);
    suite.check("gic/60-at-once", all && once, "not each once");
    let mut last = 0;
    let mut wrong = 0;
    for intid in irq::order() {
        let priority = priority_of(intid.wrapping_sub(SPI));
        wrong += u32::from(priority < last);
        last = priority;
    }
    suite.equal("gic/60-in-order", u64::from(wrong), 0);

    // All active at once, in EOImode 1, then ended in the order taken.
    irq::forget();
    asm::irq_off();
    set(ICC_CTLR_EL1, ICC_CTLR_EL1.get() | 2);
    for n in 0..MANY {
        gic::put(gicd::ISPENDR, SPI + n);
    }
    let mut acknowledged = 0u64;
    let done = cpu::eventually(|| {
        let intid = gic::acknowledge();
        if (SPI..SPI + MANY).contains(&intid) {
            acknowledged |= 1 << (intid - SPI);
            gic::end(intid);
        }
        acknowledged == (1 << MANY) - 1
    });
    suite.check(
        "gic/60-acknowledged",
        done,
        format_args!("{acknowledged:#x}"),
    );
    let active = (0..MANY)
        .filter(|n| gic::get(gicd::ISACTIVER, SPI + n))
        .count();
    suite.equal("gic/60-active", active as u64, u64::from(MANY));
    for n in 0..MANY {
        gic::deactivate(SPI + n);
    }
    let active = (0..MANY)
        .filter(|n| gic::get(gicd::ISACTIVER, SPI + n))
        .count();
    suite.equal("gic/60-inactive", active as u64, 0);
    set(ICC_CTLR_EL1, ICC_CTLR_EL1.get() & !2);
    asm::irq_on();
    for n in 0..MANY {
        gic::disable(SPI + n);
    }
}

static STOP: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);

/// Another CPU: takes interrupts until told to stop.
fn take() {
    gic::start_cpu();
    for intid in 0..16 {
        gic::enable(intid, 0x80);
    }
    asm::irq_on();
    READY.fetch_add(1, Ordering::AcqRel);
    while STOP.load(Ordering::Acquire) == 0 {
        asm::irq_off();
        if STOP.load(Ordering::Acquire) == 0 {
            asm::wfi();
        }
        asm::irq_on();
    }
}

/// What needs a second CPU.
pub fn other_cpus(suite: &mut Suite<Console>) {
    irq::forget();
    STOP.store(0, Ordering::Release);
    READY.store(0, Ordering::Release);
    let others = 1..cpu::count();
    let started = others.clone().all(|index| cpu::start(index, take) == 0);
    let ready = cpu::eventually(|| READY.load(Ordering::Acquire) as usize == others.len());
    suite.check("gic/others-ready", started && ready, "not all are");

    gic::send_sgi_to_others(1);
    let all = others
        .clone()
        .all(|index| cpu::eventually(|| irq::taken_by(index, 1) == 1));
    irq::settle();
    let once = others.clone().all(|index| irq::taken_by(index, 1) == 1);
    suite.check("gic/irm-others", all && once, "not each once");
    suite.equal("gic/irm-not-self-smp", u64::from(irq::taken(1)), 0);

    for index in others.clone() {
        gic::send_sgi(2, index);
    }
    let all = others
        .clone()
        .all(|index| cpu::eventually(|| irq::taken_by(index, 2) == 1));
    suite.check("gic/sgi-to-each", all, "not each");

    // A hundred to each, one by one: all wake from WFI.
    let mut woken = 0;
    for round in 1..=100 {
        for index in others.clone() {
            gic::send_sgi(3, index);
            woken += u32::from(cpu::eventually(|| irq::taken_by(index, 3) == round));
        }
    }
    suite.equal("gic/sgis-wake-wfi", woken.into(), 100 * others.len() as u64);

    // A pending bit set from here, in the other's redistributor.
    // SAFETY: GICR_ISPENDR0 of CPU 1.
    unsafe { write32(gic::redistributor(1) + gicr::SGI + gicd::ISPENDR, 1 << 4) };
    let came = cpu::eventually(|| irq::taken_by(1, 4) == 1);
    suite.check("gic/remote-ispendr", came, irq::taken_by(1, 4));

    // An SPI for the other one.
    gic::set_edge(SPI, true);
    gic::route(SPI, 1);
    gic::enable(SPI, 0x80);
    gic::put(gicd::ISPENDR, SPI);
    let came = cpu::eventually(|| irq::taken_by(1, SPI) == 1);
    suite.check(
        "gic/spi-to-other",
        came && irq::taken(SPI) == 0,
        irq::taken_by(1, SPI),
    );

    // Pending here, and masked; routed there.
    asm::irq_off();
    gic::route(SPI, 0);
    gic::put(gicd::ISPENDR, SPI);
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == u64::from(SPI));
    gic::route(SPI, 1);
    let came = cpu::eventually(|| irq::taken_by(1, SPI) == 2);
    suite.check("gic/rerouted-pending", came, irq::taken_by(1, SPI));
    suite.equal("gic/rerouted-not-here", u64::from(gic::acknowledge()), 1023);
    asm::irq_on();
    irq::settle();
    suite.equal("gic/rerouted-once", u64::from(irq::taken(SPI)), 0);

    // Active at one, deactivated from the other.
    asm::irq_off();
    gic::route(SPI, 0);
    gic::put(gicd::ISPENDR, SPI);
    cpu::eventually(|| ICC_HPPIR1_EL1.get() == u64::from(SPI));
    let own = gic::acknowledge();
    gic::route(SPI, 1);
    gic::put(gicd::ISPENDR, SPI);
    irq::settle();
    let before = irq::taken_by(1, SPI);
    gic::end(own);
    let came = cpu::eventually(|| irq::taken_by(1, SPI) == 3);
    asm::irq_on();
    suite.check("gic/active-here-pending-there", came && before == 2, before);
    gic::disable(SPI);

    STOP.store(1, Ordering::Release);
    gic::send_sgi_to_others(0);
    let off = others.clone().all(cpu::wait_off);
    suite.check("gic/others-off", off, "not all are");

    // An SGI for a CPU that is off does not wait for it after the next start.
    suite.check(
        "gic/off-and-on",
        cpu::together(gic::start_cpu, || {}),
        "did not",
    );
}

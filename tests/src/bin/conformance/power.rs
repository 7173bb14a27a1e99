//! What of a CPU's interrupts goes with its power, and what stays.

use arm64::regs::{CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0};
use core::sync::atomic::{AtomicU64, Ordering};
use tests::bare::asm::{self, set, write32, write64};
use tests::bare::console::Console;
use tests::bare::gic::{self, gicd, gicr};
use tests::bare::{cpu, machine};
use tests::suite::Suite;

use crate::irq;

/// An SPI that no device drives.
const SPI: u32 = 96;
/// PPIs and SGIs that nothing else uses: written from outside.
const ENABLED: u32 = 1 << 20;
const PENDING: u32 = 1 << 5;
/// The physical timer's PPI.
const CNTP: u32 = 1 << 30;
/// GICR_WAKER.ProcessorSleep.
const SLEEPS: u32 = 1 << 1;

/// How far another CPU has come, and what it saw.
static STEP: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);

fn step(n: u64) {
    STEP.store(n, Ordering::SeqCst);
}

/// Of a machine of three CPUs or more. `bare`: QEMU's own GIC gives a 1-of-N interrupt to
/// one that sleeps, and its timer's line outlives the power.
pub fn other_cpus(suite: &mut Suite<Console>, bare: bool) {
    redistributor_of_one_that_is_off(suite);
    if !bare {
        timer_that_is_off(suite);
        one_of_n_beside_one_that_is_off(suite);
    }
}

fn look_at_own() {
    let word = |offset| u64::from(gic::r(gicr::SGI + offset));
    let seen = word(gicd::ISENABLER) << 32 | word(gicd::ISPENDR);
    SEEN.store(seen, Ordering::SeqCst);
}

/// What another CPU writes there meanwhile: PSCI is no reset of the GIC's.
fn redistributor_of_one_that_is_off(suite: &mut Suite<Console>) {
    let frame = gic::redistributor(1) + gicr::SGI;
    // SAFETY: CPU 1's redistributor.
    unsafe {
        write32(frame + gicd::ISENABLER, ENABLED);
        write32(frame + gicd::ISPENDR, PENDING);
    }
    cpu::start(1, look_at_own);
    cpu::wait_off(1);
    let seen = SEEN.load(Ordering::SeqCst);
    let (enabled, pending) = (seen >> 32 & u64::from(ENABLED), seen & u64::from(PENDING));
    let right = enabled != 0 && pending != 0;
    suite.check(
        "power/written-from-outside",
        right,
        format_args!("{seen:#x}"),
    );
    // SAFETY: as above.
    unsafe {
        write32(frame + gicd::ICENABLER, ENABLED);
        write32(frame + gicd::ICPENDR, PENDING);
    }
}

fn has_timer() -> bool {
    gic::r(gicr::SGI + gicd::ISPENDR) & CNTP != 0
}

fn timer_expires() {
    asm::irq_off();
    set(CNTP_CVAL_EL0, 0);
    set(CNTP_CTL_EL0, 1);
    step(1 + u64::from(cpu::eventually(has_timer)));
}

/// Nothing of the timer's is touched: out of reset it is off.
fn timer_is_off() {
    SEEN.store(has_timer().into(), Ordering::SeqCst);
}

fn timer_that_is_off(suite: &mut Suite<Console>) {
    step(0);
    let on = cpu::start(1, timer_expires);
    let expired = cpu::wait_off(1) && STEP.load(Ordering::SeqCst) == 2;
    suite.check("power/timer-expires", on == 0 && expired, on);
    cpu::start(1, timer_is_off);
    cpu::wait_off(1);
    let seen = SEEN.load(Ordering::SeqCst);
    suite.equal("power/timer-is-off", seen, 0);
}

fn comes_and_goes() {
    gic::start_cpu();
}

/// Takes interrupts, and does nothing that anybody else serves.
fn spins() {
    gic::start_cpu();
    asm::irq_on();
    step(1);
    while STEP.load(Ordering::SeqCst) != 2 {
        core::hint::spin_loop();
    }
    asm::irq_off();
}

/// CPU 1 was there and is off, CPU 0 sleeps: CPU 2 takes it.
fn one_of_n_beside_one_that_is_off(suite: &mut Suite<Console>) {
    irq::forget();
    irq::on_each(irq::nothing);
    step(0);
    cpu::start(1, comes_and_goes);
    cpu::wait_off(1);
    cpu::start(2, spins);
    let up = cpu::eventually(|| STEP.load(Ordering::SeqCst) == 1);
    suite.check("power/one-takes-interrupts", up, 2);
    gic::set_edge(SPI, true);
    gic::enable(SPI, 0x80);
    let router = machine::get().gicd + gicd::IROUTER + u64::from(SPI) * 8;
    // SAFETY: GICD_IROUTER of an SPI that is ours; IRM.
    unsafe { write64(router, 1 << 31) };
    gic::set_r(gicr::WAKER, gic::r(gicr::WAKER) | SLEEPS);
    gic::put(gicd::ISPENDR, SPI);
    // Whoever else looks, as EL2 does for whoever asks, would see it: so this one waits
    // by the counter alone.
    let end = cpu::now() + 30 * CNTFRQ_EL0.get();
    while cpu::now() < end && irq::taken_by(2, SPI) == 0 {
        core::hint::spin_loop();
    }
    let by = [0, 1, 2].map(|cpu| irq::taken_by(cpu, SPI));
    let right = by == [0, 0, 1];
    suite.check("power/one-of-n", right, format_args!("{by:?}"));
    step(2);
    cpu::wait_off(2);
    gic::set_r(gicr::WAKER, gic::r(gicr::WAKER) & !SLEEPS);
    gic::disable(SPI);
}

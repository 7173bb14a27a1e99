//! Takes interrupts and remembers them: how often each came to each CPU, and in
//! which order.

use arm64::regs::CNTFRQ_EL0;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use tests::bare::{MAX_CPUS, cpu, exception, gic};

const INTIDS: usize = 256;
const ORDER: usize = 128;

static TAKEN: [[AtomicU32; INTIDS]; MAX_CPUS] =
    [const { [const { AtomicU32::new(0) }; INTIDS] }; MAX_CPUS];
static SPURIOUS: AtomicU32 = AtomicU32::new(0);
static ORDERED: [AtomicU32; ORDER] = [const { AtomicU32::new(0) }; ORDER];
static NEXT: AtomicUsize = AtomicUsize::new(0);
static ACTION: AtomicUsize = AtomicUsize::new(0);

/// Serves IRQs from here on.
pub fn install() {
    on_each(nothing);
    exception::on_irq(serve);
}

/// Does nothing for an interrupt.
pub fn nothing(_: u32) {}

/// What is done for each interrupt between its acknowledgement and its end.
pub fn on_each(action: fn(u32)) {
    ACTION.store(action as usize, Ordering::Release);
}

fn serve() {
    let intid = gic::acknowledge();
    if intid as usize >= INTIDS {
        SPURIOUS.fetch_add(1, Ordering::AcqRel);
        return;
    }
    let at = NEXT.fetch_add(1, Ordering::AcqRel);
    ORDERED[at % ORDER].store(intid, Ordering::Release);
    let action = ACTION.load(Ordering::Acquire);
    // SAFETY: `on_each` stored a `fn(u32)`.
    let action: fn(u32) = unsafe { core::mem::transmute(action) };
    action(intid);
    TAKEN[cpu::index()][intid as usize].fetch_add(1, Ordering::AcqRel);
    gic::end(intid);
}

/// Forgets.
pub fn forget() {
    for count in TAKEN.iter().flatten() {
        count.store(0, Ordering::Relaxed);
    }
    SPURIOUS.store(0, Ordering::Relaxed);
    NEXT.store(0, Ordering::Release);
}

/// How often a CPU took an interrupt.
pub fn taken_by(index: usize, intid: u32) -> u32 {
    TAKEN[index][intid as usize].load(Ordering::Acquire)
}

/// How often this CPU took it.
pub fn taken(intid: u32) -> u32 {
    taken_by(cpu::index(), intid)
}

/// The interrupts of all CPUs in the order they were acknowledged, at most 128.
pub fn order() -> impl Iterator<Item = u32> {
    let count = NEXT.load(Ordering::Acquire).min(ORDER);
    ORDERED[..count]
        .iter()
        .map(|intid| intid.load(Ordering::Acquire))
}

/// Waits until this CPU took it `count` times.
pub fn arrives(intid: u32, count: u32) -> bool {
    cpu::eventually(|| taken(intid) >= count)
}

/// Lets some time pass in which something wrong could happen: accesses that
/// leave for the hypervisor, too.
pub fn settle() {
    let end = cpu::now() + CNTFRQ_EL0.get() / 500;
    while cpu::now() < end {
        gic::d(gic::gicd::TYPER);
    }
}

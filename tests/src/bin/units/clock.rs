//! A PL031, where the machine has one.

use arm64::regs::{CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};

use tests::bare::asm::{self, read8, read16, read32, write8, write16, write32};
use tests::bare::console::Console;
use tests::bare::gic::{self, gicd};
use tests::bare::psci::{fid, psci};
use tests::bare::{cpu, exception, machine};
use tests::println;
use tests::suite::Suite;

use crate::gic::{defaults, delay};

static BASE: AtomicU64 = AtomicU64::new(0);
static INTID: AtomicU32 = AtomicU32::new(0);
static TAKEN: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);

const MR: u64 = 4;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;

fn r(at: u64) -> u32 {
    // SAFETY: the clock's.
    unsafe { read32(BASE.load(Ordering::SeqCst) + at) }
}

fn w(at: u64, value: u32) {
    // SAFETY: the clock's.
    unsafe { write32(BASE.load(Ordering::SeqCst) + at, value) };
}

fn serve() {
    let intid = gic::acknowledge();
    gic::end(intid);
    let before = r(RIS) | r(MIS) << 1;
    w(ICR, 1);
    SEEN.store(before << 4 | r(RIS) | r(MIS) << 1, Ordering::SeqCst);
    TAKEN.fetch_add(1, Ordering::SeqCst);
}

fn find() -> Option<(u64, u32)> {
    let fdt = devtree::open(machine::get().tree).ok()?;
    let node = fdt
        .root()
        .children()
        .find(|node| node.is_compatible("arm,pl031"))?;
    let base = node.reg().ok()??.next()?.address::<u64>().ok()?;
    let number = node
        .property("interrupts")?
        .value()
        .get(4..8)?
        .try_into()
        .ok()?;
    Some((base, 32 + u32::from_be_bytes(number)))
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let Some((base, intid)) = find() else {
        println!("no clock");
        return;
    };
    // In the half that the UART is in, which a realm's tree leaves to the realm.
    const IN_HALF: u64 = 0xffff_ffff;
    let base = machine::get().uart & !IN_HALF | base & IN_HALF;
    BASE.store(base, Ordering::SeqCst);
    INTID.store(intid, Ordering::SeqCst);
    exception::on_irq(serve);
    defaults();
    let ids = [0x31, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1];
    let right = (0..8).all(|n| r(0xfe0 + 4 * n) == ids[n as usize]);
    suite.check("clock/identity", right, "another");
    for at in [RIS, MIS].into_iter().chain((0xfe0..0x1000).step_by(4)) {
        // SAFETY: the clock's, by all sizes.
        let kept = unsafe {
            let at = base + at;
            let before = (read8(at), read16(at), read32(at));
            write8(at, 0xef);
            write16(at, 0xbeef);
            write32(at, 0xdead_beef);
            before == (read8(at), read16(at), read32(at))
        };
        suite.check("clock/reads-only", kept, at);
    }
    // From the edge of a second to the second after the next.
    let first = r(0);
    cpu::eventually(|| r(0) != first);
    let (edge, from) = (r(0), cpu::now());
    cpu::eventually(|| r(0) >= edge + 2);
    let took = (cpu::now() - from) * 10 / CNTFRQ_EL0.get();
    suite.check(
        "clock/ticks",
        took >= 10,
        format_args!("2 s in {took} tenths"),
    );
    suite.check(
        "clock/not-pending",
        !gic::get(gicd::ISPENDR, intid),
        "pending",
    );
    w(MR, r(0) + 1);
    let end = cpu::now() + 2 * CNTFRQ_EL0.get();
    cpu::eventually(|| cpu::now() > end);
    suite.check("clock/masked", !gic::get(gicd::ISPENDR, intid), "pending");
    w(IMSC, 1);
    suite.check("clock/pending", gic::get(gicd::ISPENDR, intid), "not");
    gic::put(gicd::ISENABLER, intid);
    asm::irq_on();
    cpu::eventually(|| TAKEN.load(Ordering::SeqCst) != 0);
    delay(5);
    suite.equal("clock/taken", TAKEN.load(Ordering::SeqCst).into(), 1);
    suite.equal("clock/in-handler", SEEN.load(Ordering::SeqCst).into(), 0x30);
    suite.check(
        "clock/no-longer",
        !gic::get(gicd::ISPENDR, intid),
        "pending",
    );
    asm::irq_off();
    suspended(suite);
    gic::put(gicd::ICENABLER, intid);
    w(IMSC, 0);
}

/// Whose CPU sleeps is woken by the alarm: the host has nothing else to wake it for, until
/// a timer that is there so that the check ends.
fn suspended(suite: &mut Suite<Console>) {
    w(MR, r(0) + 2);
    asm::set(CNTV_CVAL_EL0, CNTVCT_EL0.get() + 60 * CNTFRQ_EL0.get());
    asm::set(CNTV_CTL_EL0, 1);
    psci(fid::CPU_SUSPEND_64, 0, 0, 0);
    let late = CNTV_CTL_EL0.get() & 0b100 != 0;
    asm::set(CNTV_CTL_EL0, 0);
    suite.check(
        "clock/ends-a-suspend",
        !late && r(MIS) == 1,
        format_args!("late {late}, MIS {}", r(MIS)),
    );
    w(ICR, 1);
}

//! What is measured as costs of a hypervisor: calls, device reads, ends of interrupts,
//! SGIs, a timer of 10 ms.

use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, ICC_EOIR1_EL1};
use core::sync::atomic::{AtomicU32, Ordering};

use tests::bare::asm::{self, Conduit, read32, set};
use tests::bare::console::Console;
use tests::bare::gic::{self, gicd};
use tests::bare::{cpu, exception, machine};
use tests::println;
use tests::suite::Suite;

use crate::fact;
use crate::gic::defaults;

static RECEIVED: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);

fn serve() {
    let intid = gic::acknowledge();
    gic::end(intid);
    if intid == 27 {
        set(CNTV_CTL_EL0, 3);
    }
    RECEIVED.fetch_add(1, Ordering::SeqCst);
}

fn count() -> u64 {
    asm::isb();
    CNTPCT_EL0.get()
}

fn timed(name: &str, times: u64, mut what: impl FnMut()) {
    let start = count();
    for _ in 0..times {
        what();
    }
    let took = count() - start;
    println!(
        "{name}: {} ns each",
        took * (1_000_000_000 / CNTFRQ_EL0.get()) / times
    );
}

/// One CPU's.
pub fn checks(suite: &mut Suite<Console>) {
    // The transports of QEMU's machine, without a device behind them, in the half that
    // the UART is in: "virt", the legacy interface, no device, "QEMU".
    let first = machine::get().uart + 0x100_0000;
    let empty = [0x7472_6976, 1, 0, 0x554d_4551];
    let other = (0..32u64).find_map(|n| {
        // SAFETY: a device's, or an abort.
        let read = |at| exception::probe(|| unsafe { read32(first + 0x200 * n + at) });
        let seen = [0, 4, 8, 12].map(read);
        (seen != empty.map(Ok)).then_some((n, seen))
    });
    suite.check(
        "bench/empty-transports",
        other.is_none(),
        format_args!("{other:x?}"),
    );
    exception::on_irq(serve);
    defaults();
    let conduit = machine::get().conduit;
    let call = || {
        let x0 = asm::call(conduit, [0x4b00_0000, 0, 0, 0, 0, 0, 0, 0])[0];
        x0 as i64
    };
    suite.check("bench/call", call() == -1, format_args!("{:#x}", call()));
    timed("call", 10_000, || {
        call();
    });
    if conduit == Conduit::Smc {
        println!("the conduit is SMC");
    }
    timed("read of GICD_IIDR", 10_000, || {
        gic::d(gicd::IIDR);
    });
    timed("EOI of nothing", 65_536, || ICC_EOIR1_EL1.set(1023));
    gic::put(gicd::ISENABLER, 27);
    set(CNTV_CTL_EL0, 3);
    asm::irq_on();
    RECEIVED.store(0, Ordering::SeqCst);
    let mut wrong = 0;
    timed("timer of 10 ms", 50, || {
        let before = RECEIVED.load(Ordering::SeqCst);
        let now = cpu::now();
        set(CNTV_CVAL_EL0, now + CNTFRQ_EL0.get() / 100);
        set(CNTV_CTL_EL0, 1);
        cpu::eventually(|| RECEIVED.load(Ordering::SeqCst) != before);
        wrong += u32::from(RECEIVED.load(Ordering::SeqCst) != before + 1);
    });
    fact!("bench/timer-not-once", wrong);
    let received = RECEIVED.load(Ordering::SeqCst);
    suite.check("bench/timer-all", (50..=100).contains(&received), received);
    set(CNTV_CTL_EL0, 0);
    asm::irq_off();
}

fn receive() {
    defaults();
    asm::irq_on();
    READY.store(1, Ordering::SeqCst);
    while READY.load(Ordering::SeqCst) != 2 {
        core::hint::spin_loop();
    }
}

/// SGIs from CPU 0 to CPU 1, which spins.
pub fn other_cpus(suite: &mut Suite<Console>) {
    exception::on_irq(serve);
    defaults();
    RECEIVED.store(0, Ordering::SeqCst);
    cpu::start(1, receive);
    cpu::eventually(|| READY.load(Ordering::SeqCst) == 1);
    let mut sent = 0;
    timed("SGI", 2000, || {
        sent += 1;
        gic::send_sgi(1, 1);
        cpu::eventually(|| RECEIVED.load(Ordering::SeqCst) >= sent);
    });
    suite.equal("bench/sgis", RECEIVED.load(Ordering::SeqCst).into(), 2000);
    READY.store(2, Ordering::SeqCst);
    cpu::wait_off(1);
}

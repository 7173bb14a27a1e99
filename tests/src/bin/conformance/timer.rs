//! The generic timer's virtual and physical timers (DDI0487, D11.2).

use arm64::regs::{
    CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTP_TVAL_EL0, CNTPCT_EL0, CNTV_CTL_EL0,
    CNTV_CVAL_EL0, CNTV_TVAL_EL0, CNTVCT_EL0,
};
use core::sync::atomic::{AtomicU64, Ordering};
use tests::bare::asm::set;

use tests::bare::console::Console;
use tests::bare::{asm, cpu, gic, psci};
use tests::suite::Suite;

use crate::irq;
use crate::psci::Name;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Timer {
    Virtual,
    Physical,
}
use Timer::{Physical, Virtual};

const ENABLE: u64 = 1;
const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

impl Timer {
    fn name(self) -> &'static str {
        match self {
            Virtual => "cntv",
            Physical => "cntp",
        }
    }
    /// INTIDs of QEMU's virt machine, and of the base system architecture.
    fn intid(self) -> u32 {
        match self {
            Virtual => 27,
            Physical => 30,
        }
    }
    fn count(self) -> u64 {
        asm::isb();
        match self {
            Virtual => CNTVCT_EL0.get(),
            Physical => CNTPCT_EL0.get(),
        }
    }
    fn ctl(self) -> u64 {
        asm::isb();
        match self {
            Virtual => CNTV_CTL_EL0.get(),
            Physical => CNTP_CTL_EL0.get(),
        }
    }
    fn set_ctl(self, value: u64) {
        match self {
            Virtual => set(CNTV_CTL_EL0, value),
            Physical => set(CNTP_CTL_EL0, value),
        }
    }
    fn cval(self) -> u64 {
        match self {
            Virtual => CNTV_CVAL_EL0.get(),
            Physical => CNTP_CVAL_EL0.get(),
        }
    }
    fn set_cval(self, value: u64) {
        match self {
            Virtual => set(CNTV_CVAL_EL0, value),
            Physical => set(CNTP_CVAL_EL0, value),
        }
    }
    fn tval(self) -> u64 {
        match self {
            Virtual => CNTV_TVAL_EL0.get(),
            Physical => CNTP_TVAL_EL0.get(),
        }
    }
    fn set_tval(self, value: u64) {
        match self {
            Virtual => set(CNTV_TVAL_EL0, value),
            Physical => set(CNTP_TVAL_EL0, value),
        }
    }
}

fn of(intid: u32) -> Option<Timer> {
    [Virtual, Physical]
        .into_iter()
        .find(|timer| timer.intid() == intid)
}

fn ticks(microseconds: u64) -> u64 {
    CNTFRQ_EL0.get() * microseconds / 1_000_000
}

/// Handlers: one shot, and one that sets the next.
fn once(intid: u32) {
    if let Some(timer) = of(intid) {
        timer.set_ctl(0);
    }
}

static EARLY: AtomicU64 = AtomicU64::new(0);

fn again(intid: u32) {
    let Some(timer) = of(intid) else {
        return;
    };
    if timer.ctl() & ISTATUS == 0 || timer.count() < timer.cval() {
        EARLY.fetch_add(1, Ordering::Relaxed);
    }
    if irq::taken(intid) + 1 < MANY {
        timer.set_cval(timer.count() + ticks(20));
    } else {
        timer.set_ctl(0);
    }
}

/// Interrupts in a row.
const MANY: u32 = 1000;

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    for timer in [Virtual, Physical] {
        one(suite, timer);
    }
    both(suite);
}

fn one(suite: &mut Suite<Console>, timer: Timer) {
    let mut check = |name: &str, right: bool, seen: u64| {
        let mut text = Name::new(timer.name());
        text.push("/");
        text.push(name);
        suite.check(text.as_str(), right, format_args!("{seen:#x}"))
    };
    let intid = timer.intid();
    timer.set_ctl(0);
    irq::on_each(once);

    let before = timer.count();
    let went = cpu::eventually(|| timer.count() > before);
    check("counts", went, before);
    for value in [0, u64::MAX, 0x1234_5678_9abc_def0] {
        timer.set_cval(value);
        check("cval-keeps", timer.cval() == value, timer.cval());
    }
    let before = timer.count();
    timer.set_tval(0x4000_0000);
    let after = timer.count();
    let cval = timer.cval();
    let right = (before + 0x4000_0000..=after + 0x4000_0000).contains(&cval);
    check("tval-sets-cval", right, cval);
    let tval = timer.tval();
    check("tval-counts-down", tval <= 0x4000_0000 && tval > 0, tval);
    let before = timer.count();
    timer.set_tval((-1000i64) as u64);
    let after = timer.count();
    let cval = timer.cval();
    let right = (before.wrapping_sub(1000)..=after.wrapping_sub(1000)).contains(&cval);
    check("tval-is-signed", right, cval);
    let tval = timer.tval();
    check(
        "tval-negative",
        tval >> 32 == 0 && (tval as i32) < -999,
        tval,
    );

    timer.set_cval(0);
    timer.set_ctl(ENABLE | IMASK);
    check(
        "istatus-past",
        timer.ctl() == ENABLE | IMASK | ISTATUS,
        timer.ctl(),
    );
    timer.set_cval(u64::MAX);
    check("istatus-future", timer.ctl() == ENABLE | IMASK, timer.ctl());
    timer.set_ctl(u64::MAX);
    check("ctl-reserved", timer.ctl() & !ISTATUS == 3, timer.ctl());

    // Masked, it says so and interrupts nobody; unmasked, it does.
    irq::forget();
    timer.set_ctl(ENABLE | IMASK);
    timer.set_cval(0);
    gic::enable(intid, 0x80);
    irq::settle();
    check("imask", irq::taken(intid) == 0, irq::taken(intid).into());
    timer.set_ctl(ENABLE);
    check("unmasked", irq::arrives(intid, 1), irq::taken(intid).into());
    irq::settle();
    check("once", irq::taken(intid) == 1, irq::taken(intid).into());

    // Disabled, it interrupts nobody.
    timer.set_ctl(0);
    timer.set_cval(0);
    irq::settle();
    check("disabled", irq::taken(intid) == 1, irq::taken(intid).into());

    // Its line is a level: pending follows it.
    asm::irq_off();
    timer.set_cval(0);
    timer.set_ctl(ENABLE);
    let pending = cpu::eventually(|| gic::get(gic::gicd::ISPENDR, intid));
    check("level-rises", pending, 0);
    timer.set_cval(u64::MAX);
    let pending = cpu::eventually(|| !gic::get(gic::gicd::ISPENDR, intid));
    check("level-falls", pending, 1);
    irq::forget();
    asm::irq_on();
    irq::settle();
    check(
        "fallen-not-taken",
        irq::taken(intid) == 0,
        irq::taken(intid).into(),
    );
    timer.set_ctl(0);

    // Never early, and at all.
    irq::forget();
    let start = timer.count();
    timer.set_tval(ticks(2000));
    timer.set_ctl(ENABLE);
    let came = irq::arrives(intid, 1);
    let took = timer.count() - start;
    check(
        "in-time",
        came && (ticks(2000)..ticks(cpu::PATIENCE * 1_000_000)).contains(&took),
        took,
    );

    // WFI ends for it, with interrupts masked too.
    asm::irq_off();
    let start = timer.count();
    timer.set_tval(ticks(3000));
    timer.set_ctl(ENABLE);
    while timer.ctl() & ISTATUS == 0 {
        asm::wfi();
    }
    let took = timer.count() - start;
    check(
        "wakes-wfi-masked",
        (ticks(3000)..ticks(cpu::PATIENCE * 1_000_000)).contains(&took),
        took,
    );
    timer.set_ctl(0);
    asm::irq_on();
    irq::forget();
    timer.set_tval(ticks(3000));
    timer.set_ctl(ENABLE);
    let woke = cpu::eventually(|| {
        asm::irq_off();
        if irq::taken(intid) == 0 {
            asm::wfi();
        }
        asm::irq_on();
        irq::taken(intid) != 0
    });
    check("wakes-wfi", woke, irq::taken(intid).into());
    // So does a suspend to standby.
    asm::irq_off();
    timer.set_tval(ticks(3000));
    timer.set_ctl(ENABLE);
    let mut answer = 0;
    while timer.ctl() & ISTATUS == 0 && answer == 0 {
        answer = psci::psci(psci::fid::CPU_SUSPEND_64, 0, cpu::entry(), 0);
    }
    check("wakes-cpu-suspend", answer == 0, answer as u64);
    timer.set_ctl(0);
    asm::irq_on();

    irq::forget();
    irq::on_each(again);
    EARLY.store(0, Ordering::Relaxed);
    timer.set_tval(ticks(20));
    timer.set_ctl(ENABLE);
    let all = irq::arrives(intid, MANY);
    check("1000-in-a-row", all, irq::taken(intid).into());
    let early = EARLY.load(Ordering::Relaxed);
    check("never-early", early == 0, early);
    timer.set_ctl(0);
    irq::settle();
    check(
        "none-too-many",
        irq::taken(intid) == MANY,
        irq::taken(intid).into(),
    );
    irq::on_each(irq::nothing);
    gic::disable(intid);
}

fn both(suite: &mut Suite<Console>) {
    irq::forget();
    irq::on_each(again);
    let all = both_here();
    suite.check(
        "timers/both-1000",
        all,
        format_args!(
            "{} and {}",
            irq::taken(Virtual.intid()),
            irq::taken(Physical.intid())
        ),
    );
    irq::on_each(irq::nothing);
}

/// Both timers of this CPU, 1000 times each.
fn both_here() -> bool {
    let timers = [Virtual, Physical];
    for timer in timers {
        gic::enable(timer.intid(), 0x80);
        timer.set_tval(ticks(20));
        timer.set_ctl(ENABLE);
    }
    let all = cpu::eventually(|| timers.iter().all(|timer| irq::taken(timer.intid()) >= MANY));
    for timer in timers {
        timer.set_ctl(0);
        gic::disable(timer.intid());
    }
    all
}

static WHOLE: AtomicU64 = AtomicU64::new(0);

fn job() {
    gic::start_cpu();
    asm::irq_on();
    WHOLE.fetch_add(u64::from(both_here()), Ordering::AcqRel);
    asm::irq_off();
}

/// Both timers of every CPU at once: each has its own.
pub fn other_cpus(suite: &mut Suite<Console>) {
    irq::forget();
    irq::on_each(again);
    WHOLE.store(0, Ordering::Release);
    let together = cpu::together(job, || {
        WHOLE.fetch_add(u64::from(both_here()), Ordering::AcqRel);
    });
    irq::on_each(irq::nothing);
    let whole = WHOLE.load(Ordering::Acquire);
    suite.check(
        "timers/all-cpus-1000",
        together && whole == cpu::count() as u64,
        whole,
    );
}

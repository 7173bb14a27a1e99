//! What a guest's turn leaves in the machine's GIC and timers: nothing. The host
//! has its own virtual timer as before, whatever the guest had begun and not
//! ended.

use arm64::regs::{
    CNTKCTL_EL1, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, ICC_AP1R0_EL1,
    ICC_BPR1_EL1, ICC_CTLR_EL1, ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1, ICC_PMR_EL1, ICC_RPR_EL1,
    ICC_SRE_EL1,
};
use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};
use tests::bare::asm::set;

use rmi::run::EnterFlags;
use tests::bare::console::Console;
use tests::bare::gic::{gicd, gicr};
use tests::bare::{cpu, gic};
use tests::suite::Suite;

use crate::tiny::{Exit, Tiny};

// Lets its virtual timer fire, and tells the device: at 0, acknowledged; the
// answer is ICC_CTLR_EL1, where EOImode 1 has it tell, at 16, that the priority is
// dropped. Deactivated, it comes again, for the timer is still on; at 8, what
// came, and the timer is off. And so on.
global_asm!(
    ".balign 4096",
    "timer_code:",
    "mov x28, #0x09000000",
    "movz x9, #0x080a, lsl #16",
    "str wzr, [x9, #0x14]",
    "add x10, x9, #0x10000",
    "mov w1, #-1",
    "str w1, [x10, #0x80]",
    "mov w1, #(1 << 27)",
    "str w1, [x10, #0x100]",
    "movz x9, #0x0800, lsl #16",
    "mov w1, #2",
    "str w1, [x9]",
    "mov x1, #0xff",
    "msr icc_pmr_el1, x1",
    "mov x1, #1",
    "msr icc_igrpen1_el1, x1",
    "isb",
    "1: mrs x1, cntvct_el0",
    "msr cntv_cval_el0, x1",
    "mov x1, #1",
    "msr cntv_ctl_el0, x1",
    "isb",
    "2: mrs x2, icc_iar1_el1",
    "and x2, x2, #0xffffff",
    "cmp x2, #27",
    "b.ne 2b",
    "ldr x3, [x28]",
    "msr icc_ctlr_el1, x3",
    "isb",
    "msr icc_eoir1_el1, x2",
    "isb",
    "cbz x3, 3f",
    "ldr x4, [x28, #16]",
    "msr icc_dir_el1, x2",
    "isb",
    "3: mov x5, #0x100000",
    "4: sub x5, x5, #1",
    "cbz x5, 5f",
    "mrs x2, icc_iar1_el1",
    "and x2, x2, #0xffffff",
    "cmp x2, #1023",
    "b.eq 4b",
    "msr cntv_ctl_el0, xzr",
    "isb",
    "msr icc_eoir1_el1, x2",
    "isb",
    "cbz x3, 5f",
    "msr icc_dir_el1, x2",
    "isb",
    "5: str x2, [x28, #8]",
    "b 1b",
    ".org timer_code + 4096",
);

unsafe extern "C" {
    static timer_code: u8;
}

const BYTES: u64 = 4096;
const ACKNOWLEDGED: u64 = 0;
const ENDED: u64 = 8;
const DROPPED: u64 = 16;
/// ICC_CTLR_EL1.EOImode.
const MODE_1: u64 = 2;

/// The virtual timer's PPI on QEMU's virt machine.
const TIMER: u32 = 27;

/// An SPI that no device drives.
const MASKED: u32 = 96;

/// All that a host sees of the GIC and the timers on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    redistributor: [u32; 15],
    interface: [u64; 8],
    timers: [u64; 5],
}

impl View {
    fn take() -> Self {
        let states = [
            gicd::IGROUPR,
            gicd::ISENABLER,
            gicd::ISPENDR,
            gicd::ISACTIVER,
            gicd::ICFGR + 4,
        ];
        let registers = [gicr::WAKER, gicr::CTLR]
            .into_iter()
            .chain(states.map(|register| gicr::SGI + register))
            .chain((0..8).map(|n| gicr::SGI + gicd::IPRIORITYR + 4 * n));
        let mut redistributor = [0; 15];
        for (word, register) in redistributor.iter_mut().zip(registers) {
            *word = gic::r(register);
        }
        Self {
            redistributor,
            interface: [
                ICC_SRE_EL1.get(),
                ICC_PMR_EL1.get(),
                ICC_CTLR_EL1.get(),
                ICC_IGRPEN1_EL1.get(),
                ICC_IGRPEN0_EL1.get(),
                ICC_BPR1_EL1.get(),
                ICC_AP1R0_EL1.get(),
                ICC_RPR_EL1.get(),
            ],
            timers: [
                CNTV_CTL_EL0.get(),
                CNTV_CVAL_EL0.get(),
                CNTP_CTL_EL0.get(),
                CNTP_CVAL_EL0.get(),
                CNTKCTL_EL1.get(),
            ],
        }
    }
}

/// What a host may have made of the timer's interrupt and of its CPU interface
/// before it enters a guest.
const SETTINGS: [(&str, fn()); 9] = [
    ("usual", || ()),
    ("disabled", || gic::put(gicd::ICENABLER, TIMER)),
    ("group-0", || gic::change(gicd::IGROUPR, TIMER, false)),
    ("lowest-priority", || gic::set_priority(TIMER, 0xf8)),
    ("edge", || {
        gic::put(gicd::ICENABLER, TIMER);
        gic::sync();
        let at = gicr::SGI + gicd::ICFGR + 4;
        gic::set_r(at, gic::r(at) | 2 << (TIMER % 16 * 2));
        gic::put(gicd::ISENABLER, TIMER);
    }),
    ("pending", || gic::put(gicd::ISPENDR, TIMER)),
    ("active", || gic::put(gicd::ISACTIVER, TIMER)),
    ("interface", || {
        set(ICC_PMR_EL1, 0x60);
        set(ICC_CTLR_EL1, MODE_1);
        set(ICC_BPR1_EL1, 5);
        set(ICC_IGRPEN1_EL1, 0);
    }),
    // DEN0137, A6.1: what the host masks by priority ends no entry.
    ("masked", || {
        set(ICC_PMR_EL1, 0xa0);
        gic::set_edge(MASKED, true);
        gic::route(MASKED, 0);
        gic::enable(MASKED, 0xc0);
        gic::put(gicd::ISPENDR, MASKED);
        gic::sync();
    }),
];

/// This CPU's GIC as a host has it that uses its virtual timer, which does not
/// fire for now.
fn begin() {
    gic::disable(MASKED);
    gic::start_cpu();
    let at = gicr::SGI + gicd::ICFGR + 4;
    gic::set_r(at, gic::r(at) & !(2 << (TIMER % 16 * 2)));
    gic::enable(TIMER, 0xa0);
    set(CNTV_CVAL_EL0, u64::MAX / 2);
    set(CNTV_CTL_EL0, 1);
}

/// Whether the host's own virtual timer fires here, again and again.
fn fires() -> bool {
    set(ICC_PMR_EL1, 0xff);
    (0..3).all(|_| {
        set(CNTV_CVAL_EL0, 0);
        set(CNTV_CTL_EL0, 1);
        let mut intid = gic::NOTHING;
        cpu::eventually(|| {
            intid = gic::acknowledge();
            intid != gic::NOTHING
        });
        set(CNTV_CTL_EL0, 2);
        cpu::now();
        if intid != gic::NOTHING {
            gic::end(intid);
        }
        intid == TIMER
    })
}

/// A guest to its next exit; the answer to what it asked before.
fn next(guest: &Tiny, answer: u64) -> Exit {
    guest.go(0, EnterFlags::EMUL_MMIO, answer)
}

/// A guest that has just acknowledged its timer's interrupt.
fn acknowledged(vmid: u16) -> Option<Tiny> {
    let guest = Tiny::build(0, vmid, &raw const timer_code, BYTES, 1)?;
    let exit = guest.go(0, EnterFlags::empty(), 0);
    (exit.access() == Some(ACKNOWLEDGED)).then_some(guest)
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    gic::start_distributor();
    for (name, set) in SETTINGS {
        begin();
        set();
        let result = leaves_nothing();
        suite.check(
            "timer/guest-leaves-nothing",
            result.is_ok(),
            format_args!("{name}: {result:x?}"),
        );
    }
    for mode in [0, MODE_1] {
        begin();
        let result = host_fires(mode);
        suite.check(
            "timer/host-has-its-own",
            result.is_ok(),
            format_args!("EOImode {mode}: {result:x?}"),
        );
        if cpu::count() > 1 {
            let result = elsewhere(mode);
            suite.check(
                "timer/goes-on-elsewhere",
                result.is_ok(),
                format_args!("EOImode {mode}: {result:x?}"),
            );
        }
    }
    begin();
    set(CNTV_CTL_EL0, 0);
    gic::disable(TIMER);
}

/// What went wrong: where, and what was seen.
type Wrong = (&'static str, u64, Option<Exit>);

/// Whatever a guest has begun with its interrupt, the host has all as before.
fn leaves_nothing() -> Result<(), Wrong> {
    let before = View::take();
    let same = |at, round| {
        let after = View::take();
        if before == after {
            return Ok(());
        }
        tests::println!("  it was {before:x?},\n  and is {after:x?}");
        Err((at, round, None))
    };
    let guest = acknowledged(50).ok_or(("build", 0, None))?;
    same("first", 0)?;
    for round in 0..6 {
        let mode = round % 2 * MODE_1;
        let mut answer = mode;
        let all = [DROPPED, ENDED, ACKNOWLEDGED];
        for expected in &all[usize::from(mode == 0)..] {
            let exit = next(&guest, answer);
            let timer = exit.access() != Some(ENDED) || exit.value == u64::from(TIMER);
            if exit.access() != Some(*expected) || !timer {
                return Err(("exit", round, Some(exit)));
            }
            answer = 0;
            same("after", round)?;
        }
    }
    // It goes with its interrupt active; the next has none of that.
    let gone = guest.destroy();
    gone.then_some(()).ok_or(("destroy", 0, None))?;
    same("destroyed", 0)?;
    let guest = acknowledged(50).ok_or(("build again", 0, None))?;
    let exit = next(&guest, 0);
    let right = exit.access() == Some(ENDED) && guest.destroy();
    right.then_some(()).ok_or(("again", 0, Some(exit)))?;
    same("destroyed again", 0)
}

/// While the guest's interrupt is active, and after the guest is gone, the host's
/// timer fires; and the guest does not lose its own by that.
fn host_fires(mode: u64) -> Result<(), Wrong> {
    let guest = acknowledged(51).ok_or(("build", 0, None))?;
    for round in 0..3 {
        if !fires() {
            return Err(("host", round, None));
        }
        let mut exit = next(&guest, mode);
        if mode != 0 && exit.access() == Some(DROPPED) {
            if !fires() {
                return Err(("dropped", round, None));
            }
            exit = next(&guest, 0);
        }
        if exit.access() != Some(ENDED) || exit.value != u64::from(TIMER) || !fires() {
            return Err(("ended", round, Some(exit)));
        }
        exit = next(&guest, 0);
        if exit.access() != Some(ACKNOWLEDGED) {
            return Err(("acknowledged", round, Some(exit)));
        }
    }
    if !guest.destroy() || !fires() {
        return Err(("destroyed", 0, None));
    }
    Ok(())
}

static MODE: AtomicU64 = AtomicU64::new(0);
/// What CPU 1 saw, with 1 in the lowest bit when all was right.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Takes over a guest whose interrupt is active, has it end that, and lets it
/// acknowledge the next.
fn take_over() {
    begin();
    let guest = Tiny::existing(0, BYTES, 1);
    let mode = MODE.load(Ordering::SeqCst);
    let mut exit = next(&guest, mode);
    if mode != 0 && exit.access() == Some(DROPPED) {
        exit = next(&guest, 0);
    }
    let ended = exit.access() == Some(ENDED) && fires();
    let again = next(&guest, 0).access() == Some(ACKNOWLEDGED) && fires();
    let inactive = !gic::get(gicd::ISACTIVER, TIMER);
    let seen = [ended, again, inactive].map(u64::from);
    SEEN.store(seen[0] << 2 | seen[1] << 1 | seen[2], Ordering::SeqCst);
    set(CNTV_CTL_EL0, 0);
    gic::disable(TIMER);
}

/// A vCPU moves with its interrupt active, there and back: no CPU keeps any of
/// it, and it is not lost.
fn elsewhere(mode: u64) -> Result<(), Wrong> {
    let guest = acknowledged(52).ok_or(("build", 0, None))?;
    MODE.store(mode, Ordering::SeqCst);
    for round in 0..3 {
        SEEN.store(0, Ordering::SeqCst);
        let moved = cpu::start(1, take_over) == 0 && cpu::wait_off(1);
        let seen = SEEN.load(Ordering::SeqCst);
        if !moved || seen != 0b111 {
            return Err(("CPU 1", seen, None));
        }
        if gic::get(gicd::ISACTIVER, TIMER) || !fires() {
            return Err(("here", round, None));
        }
        let mut exit = next(&guest, mode);
        if mode != 0 && exit.access() == Some(DROPPED) {
            exit = next(&guest, 0);
        }
        let ended = exit.access() == Some(ENDED) && fires();
        exit = next(&guest, 0);
        if !ended || exit.access() != Some(ACKNOWLEDGED) {
            return Err(("back", round, Some(exit)));
        }
    }
    let gone = guest.destroy() && fires();
    gone.then_some(()).ok_or(("destroyed", 0, None))
}

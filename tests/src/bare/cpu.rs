//! CPUs by index: starting them, and giving them something to do.

use arm64::regs::{CNTFRQ_EL0, CNTVCT_EL0, TPIDR_EL1, TPIDR_EL2};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{MAX_CPUS, asm, machine, mmu, psci};

/// What each CPU does when it starts: a `fn()`, as an address.
static JOBS: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
/// How often each CPU came to Rust.
static STARTS: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
/// How often each CPU was told to.
static ASKED: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

unsafe extern "C" {
    fn secondary_entry();
    fn park(words: *mut u64, index: usize) -> i64;
    fn unpark();
}

/// Where each parked CPU left its registers.
static PARKED: [[AtomicU64; 14]; MAX_CPUS] =
    [const { [const { AtomicU64::new(0) }; 14] }; MAX_CPUS];

/// This CPU's index in the device tree; the boot CPU's is 0.
pub fn index() -> usize {
    let index = if asm::current_el() == 2 {
        TPIDR_EL2.get()
    } else {
        TPIDR_EL1.get()
    };
    index as usize
}

/// CPUs of the machine, as many as the program drives.
pub fn count() -> usize {
    machine::get().cpus
}

/// Where CPUs enter the program, for `CPU_ON`.
pub fn entry() -> u64 {
    secondary_entry as *const () as u64
}

/// Starts the CPU `index` with `job`, after which it is off again; PSCI's answer.
pub fn start(index: usize, job: fn()) -> i64 {
    prepare(index, job);
    let answer = psci::psci(
        psci::fid::CPU_ON_64,
        machine::get().mpidrs[index],
        entry(),
        index as u64,
    );
    if answer == 0 {
        ASKED[index].fetch_add(1, Ordering::Relaxed);
    }
    answer
}

/// Sets what the CPU does once it is started.
pub fn prepare(index: usize, job: fn()) {
    JOBS[index].store(job as usize, Ordering::Release);
    let from = mmu::REGISTERS.as_ptr().addr() as u64;
    asm::clean(from, from + 32);
}

/// How often the CPU came up.
pub fn starts(index: usize) -> usize {
    STARTS[index].load(Ordering::Acquire)
}

/// Turns this CPU off, in the middle of what it does. Another turns it on again
/// by [`wake`], and it goes on behind the call; the answer is PSCI's if that was
/// denied, else 0.
pub fn off_until_woken() -> i64 {
    let index = index();
    let words = PARKED[index].as_ptr().cast::<u64>().cast_mut();
    // SAFETY: The words are this CPU's, and `unpark` restores all that a call
    // preserves from them.
    unsafe { park(words, index) }
}

/// Turns on a CPU that [`off_until_woken`] turned off; PSCI's answer.
pub fn wake(index: usize) -> i64 {
    psci::psci(
        psci::fid::CPU_ON_64,
        machine::get().mpidrs[index],
        unpark as *const () as u64,
        PARKED[index].as_ptr().addr() as u64,
    )
}

/// Waits until the CPU has come up as often as [`start`] asked, and is off;
/// false after too long. A CPU that was told to start may still be called off.
pub fn wait_off(index: usize) -> bool {
    let mpidr = machine::get().mpidrs[index];
    let asked = ASKED[index].load(Ordering::Relaxed);
    eventually(|| starts(index) >= asked) && eventually(|| psci::affinity_info(mpidr) == 1)
}

/// Runs `job` on all other CPUs and `mine` here, and waits for the others to be
/// off again. False when one did not start or did not end.
pub fn together(job: fn(), mine: impl FnOnce()) -> bool {
    let mut right = true;
    for index in 1..count() {
        right &= start(index, job) == 0;
    }
    mine();
    for index in 1..count() {
        right &= wait_off(index);
    }
    right
}

/// Seconds that a check waits for what has to come. No verdict hangs on them where
/// it comes at all, however slow or loaded the machine is.
pub const PATIENCE: u64 = 100;

/// Repeats `what` until it is true; false when it is not for [`PATIENCE`].
pub fn eventually(mut what: impl FnMut() -> bool) -> bool {
    let frequency = CNTFRQ_EL0.get().max(1 << 20);
    let start = now();
    loop {
        if what() {
            return true;
        }
        if now() - start > PATIENCE * frequency {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// The virtual counter.
pub fn now() -> u64 {
    asm::isb();
    CNTVCT_EL0.get()
}

pub(super) extern "C" fn secondary(index: usize) -> ! {
    STARTS[index].fetch_add(1, Ordering::AcqRel);
    let job = JOBS[index].load(Ordering::Acquire);
    // SAFETY: `prepare` stored a `fn()` before this CPU was started.
    let job: fn() = unsafe { core::mem::transmute(job) };
    job();
    asm::irq_off();
    psci::psci(psci::fid::CPU_OFF, 0, 0, 0);
    crate::println!("FAIL psci/CPU_OFF: it came back");
    loop {
        asm::wfe();
    }
}

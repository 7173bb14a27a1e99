//! The PEs: what EL2 keeps for each, where their stacks are, how one reaches
//! another.
//!
//! A `Pe` is shared: other PEs read it to start or to interrupt this one. What a
//! PE alone touches is on its own stack ([`crate::cpu::Cpu`]).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arm64::frame::Regime;
use arm64::regs::{AFFINITY, CNTFRQ_EL0, affinity};

use crate::cpu::gic::{self, Redistributor};
use crate::early::Early;
use crate::memory::region::Region;
use crate::speculation::Steps;

/// PEs that one image drives.
pub const MAX_PES: usize = 128;

/// Bytes of each PE's stack.
pub const STACK: u64 = 64 << 10;

/// The PA of no REC.
pub const NO_REC: u64 = u64::MAX;

/// Whether a PE runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Power {
    /// Off, or never started.
    Off = 0,
    /// `CPU_ON` was called for it.
    Starting = 1,
    /// Runs.
    On = 2,
}

/// The bits of a [`Power`].
const POWER: u64 = 0b11;
/// It was started and would not do: it is off for good.
const UNFIT: u64 = 0b100;
/// Somebody is about to start it, and above this bit, how many were before.
const CLAIMED: u64 = 0b1000;

/// The right to start a PE: one at a time has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

/// What asm.S needs of a PE before Rust runs on it.
#[derive(Debug)]
#[repr(C)]
pub struct Entry {
    /// Where its stack ends.
    pub stack_top: u64,
    /// Where the stack for reports of its death ends.
    pub emergency_top: u64,
    /// EL2's own translation.
    pub regime: Regime,
    /// Where it goes on in Rust.
    pub rust: u64,
    /// The [`Steps`] of its vectors.
    pub steps: AtomicU64,
}

impl Entry {
    /// Of the PE `index`, which goes on at `rust`.
    pub fn new(stacks: &Stacks, index: usize, regime: Regime, rust: u64) -> Self {
        let [stack, emergency] = stacks.mapped(index);
        Self {
            stack_top: stack.end(),
            emergency_top: emergency.end(),
            regime,
            rust,
            steps: AtomicU64::new(0),
        }
    }
}

/// One PE.
#[derive(Debug)]
#[repr(C)]
pub struct Pe {
    /// Read by asm.S.
    pub entry: Entry,
    /// Place in the list of PEs.
    pub index: usize,
    /// MPIDR_EL1, affinity fields.
    pub mpidr: u64,
    /// Its redistributor.
    pub gicr: Redistributor,
    /// A [`Power`], [`UNFIT`], [`CLAIMED`], and how often it was.
    power: AtomicU64,
    redistributor_changed: AtomicBool,
    /// PA of the REC that runs here, or [`NO_REC`].
    runs: AtomicU64,
    start_pc: AtomicU64,
    start_context: AtomicU64,
}

static PES: Early<&'static [Pe]> = Early::new();
static STACKS: Early<Stacks> = Early::new();

/// Where the stacks are: for each PE a guard, the stack, a guard, and the
/// emergency stack, each a multiple of EL2's granule.
#[derive(Clone, Copy, Debug)]
pub struct Stacks {
    /// All of them.
    pub region: Region,
    granule: u64,
}

impl Stacks {
    /// Bytes that one PE's stacks and guards take.
    pub fn stride(granule: u64) -> u64 {
        granule + Self::stack(granule) + granule + granule
    }

    fn stack(granule: u64) -> u64 {
        STACK.next_multiple_of(granule)
    }

    /// The stacks in `region`.
    pub fn new(region: Region, granule: u64) -> Self {
        Self { region, granule }
    }

    /// The parts that are mapped, for the PE `index`: stack, emergency stack.
    pub fn mapped(&self, index: usize) -> [Region; 2] {
        let base = self.region.base() + index as u64 * Self::stride(self.granule);
        let stack = Self::stack(self.granule);
        [
            (base + self.granule, stack),
            (base + 2 * self.granule + stack, self.granule),
        ]
        .map(|(base, size)| Region::new(base, size).unwrap_or(Region::EMPTY))
    }

    fn is_mapped(&self, address: u64) -> bool {
        let count = self.region.size() / Self::stride(self.granule);
        (0..count as usize).any(|pe| self.mapped(pe).iter().any(|r| r.contains(address)))
    }
}

impl Pe {
    /// A PE that is off.
    pub fn new(index: usize, mpidr: u64, gicr: Redistributor, entry: Entry) -> Self {
        Self {
            entry,
            index,
            mpidr,
            gicr,
            power: AtomicU64::new(Power::Off as u64),
            redistributor_changed: AtomicBool::new(true),
            runs: AtomicU64::new(NO_REC),
            start_pc: AtomicU64::new(0),
            start_context: AtomicU64::new(0),
        }
    }

    /// Whether it runs.
    pub fn power(&self) -> Power {
        Self::power_of(self.power.load(Ordering::Acquire))
    }

    fn power_of(word: u64) -> Power {
        match word & POWER {
            0 => Power::Off,
            1 => Power::Starting,
            _ => Power::On,
        }
    }

    /// Claims the right to start it, for the host to begin at `pc` with
    /// `context` in X0.
    ///
    /// # Errors
    /// What it is, when it is not off.
    pub fn claim_start(&self, pc: u64, context: u64) -> Result<Claim, Power> {
        let word = self.power.load(Ordering::Acquire);
        if word & (CLAIMED | POWER) != Power::Off as u64 {
            return Err(Self::power_of(word).max(Power::Starting));
        }
        let claim = (word & !(CLAIMED | POWER)).wrapping_add(CLAIMED << 1)
            | CLAIMED
            | Power::Starting as u64;
        self.power
            .compare_exchange(word, claim, Ordering::AcqRel, Ordering::Acquire)
            // Off again already, it is somebody else's to start.
            .map_err(|now| Self::power_of(now).max(Power::Starting))?;
        self.start_pc.store(pc, Ordering::Release);
        self.start_context.store(context, Ordering::Release);
        Ok(Claim(claim))
    }

    /// This PE has come up. Its claim has served.
    pub fn arrive(&self) {
        self.change(|word| Some(word & !(CLAIMED | POWER) | Power::On as u64));
    }

    /// The same of one that lacks what EL2 or guests go by: it goes off again, and
    /// nobody need start it. Who waits for it learns both at once.
    pub fn arrive_unfit(&self) {
        self.change(|word| Some(word & !(CLAIMED | POWER) | UNFIT | Power::Off as u64));
    }

    /// Whether the start by this claim is still on its way.
    pub fn is_started_by(&self, Claim(claim): Claim) -> bool {
        self.power.load(Ordering::Acquire) == claim
    }

    /// Whether it was refused.
    pub fn is_unfit(&self) -> bool {
        self.power.load(Ordering::Acquire) & UNFIT != 0
    }

    /// What its vectors do when a lower level comes out.
    pub fn steps(&self) -> Steps {
        Steps(self.entry.steps.load(Ordering::Relaxed))
    }

    /// Sets that: asm.S reads it on this PE, where its vectors ask.
    pub fn set_steps(&self, steps: Steps) {
        self.entry.steps.store(steps.0, Ordering::Relaxed);
    }

    /// This PE goes off, in a moment. False while somebody is about to start it,
    /// who has met one that was denied its going off before.
    pub fn leave(&self) -> bool {
        self.change(|word| (word & CLAIMED == 0).then_some(word & !POWER | Power::Off as u64))
    }

    /// The firmware has denied it.
    pub fn stay(&self) {
        self.change(|word| Some(word & !POWER | Power::On as u64));
    }

    /// Ends a claim whose start the firmware refused: the PE is off, unless it has
    /// stayed on meanwhile.
    pub fn give_up_start(&self, Claim(claim): Claim) {
        self.change(|word| {
            let mine = (word | POWER) == (claim | POWER);
            let on = word & POWER == Power::On as u64;
            let power = if on { Power::On } else { Power::Off };
            mine.then_some(word & !(CLAIMED | POWER) | power as u64)
        });
    }

    fn change(&self, to: impl FnMut(u64) -> Option<u64>) -> bool {
        let changed = (self.power).fetch_update(Ordering::AcqRel, Ordering::Acquire, to);
        changed.is_ok()
    }

    /// Which REC runs here, by its PA, or [`NO_REC`]: `kicks`'s to change.
    pub fn runs(&self) -> &AtomicU64 {
        &self.runs
    }

    /// Notes that the host wrote to this PE's redistributor.
    pub fn note_redistributor_change(&self) {
        self.redistributor_changed.store(true, Ordering::Release);
    }

    /// Whether it did since the last call.
    pub fn take_redistributor_change(&self) -> bool {
        self.redistributor_changed.load(Ordering::Acquire)
            && self.redistributor_changed.swap(false, Ordering::AcqRel)
    }

    /// Where the host begins on it: program counter and X0.
    pub fn start(&self) -> (u64, u64) {
        (
            self.start_pc.load(Ordering::Acquire),
            self.start_context.load(Ordering::Acquire),
        )
    }
}

/// Makes the list known, once.
///
/// # Safety
/// No other PE has been started.
pub unsafe fn set_all(pes: &'static [Pe], stacks: Stacks) {
    // SAFETY: the caller's promise.
    unsafe {
        PES.set(pes);
        STACKS.set(stacks);
    }
}

/// All PEs.
pub fn all() -> &'static [Pe] {
    PES.get().copied().unwrap_or(&[])
}

/// The PE that this MPIDR_EL1 is of.
pub fn find(mpidr: u64) -> Option<&'static Pe> {
    let affinity = mpidr & AFFINITY;
    all().iter().find(|pe| pe.mpidr == affinity)
}

/// Sends the kick SGI to every other PE that runs.
pub fn interrupt_others() {
    let me = affinity();
    for pe in all()
        .iter()
        .filter(|pe| pe.mpidr != me && pe.power() == Power::On)
    {
        gic::send_kick(pe.mpidr);
    }
}

/// True when 16 bytes at `address` lie in a stack of EL2's.
pub fn is_stack(address: u64) -> bool {
    #[cfg(target_os = "none")]
    {
        unsafe extern "C" {
            static __boot_stack_bottom: u8;
            static __boot_stack_top: u8;
        }
        let boot = &raw const __boot_stack_bottom as u64..&raw const __boot_stack_top as u64 - 15;
        if boot.contains(&address) {
            return true;
        }
    }
    STACKS
        .get()
        .is_some_and(|s| s.is_mapped(address) && s.is_mapped(address + 15))
}

/// True when the address is in a guard page of a stack.
pub fn is_guard_page(address: u64) -> bool {
    STACKS
        .get()
        .is_some_and(|s| s.region.contains(address) && !s.is_mapped(address))
}

/// Ticks of the counter in so many seconds.
pub fn ticks(seconds: u64) -> u64 {
    let second = match CNTFRQ_EL0.get() {
        // Not set by the firmware: no counter is faster than 1 GHz.
        0 => 1_000_000_000,
        second => second,
    };
    seconds.saturating_mul(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_have_guards_below() {
        for granule in [0x1000, 0x4000, 0x1_0000] {
            let size = 2 * Stacks::stride(granule);
            let s = Stacks::new(Region::new(0x10_0000, size).unwrap(), granule);
            for pe in 0..2 {
                for r in s.mapped(pe) {
                    assert!(
                        !s.is_mapped(r.base() - 1)
                            && s.is_mapped(r.base())
                            && s.is_mapped(r.end() - 1)
                    );
                    assert_eq!(r.base() % granule, 0);
                }
            }
            assert!(!s.is_mapped(s.region.end()));
        }
    }

    #[test]
    fn a_pe_is_started_once() {
        let s = Stacks::new(
            Region::new(0x10_0000, Stacks::stride(0x1000)).unwrap(),
            0x1000,
        );
        // SAFETY: a record is behind it, and no GIC.
        let gicr = unsafe { Redistributor::new(0) };
        let pe = Pe::new(0, 0, gicr, Entry::new(&s, 0, Regime::default(), 0));
        let claim = pe.claim_start(0x80000, 7).expect("it is off");
        assert_eq!(pe.claim_start(0x90000, 8), Err(Power::Starting));
        assert_eq!(pe.start(), (0x80000, 7));
        pe.arrive();
        assert_eq!(pe.claim_start(0x90000, 8), Err(Power::On));
        // A claim that was overtaken gives up nothing of the next.
        assert!(pe.leave());
        let next = pe.claim_start(0xa0000, 9).expect("it is off again");
        pe.give_up_start(claim);
        assert_eq!(pe.power(), Power::Starting);
        pe.give_up_start(next);
        assert_eq!(pe.power(), Power::Off);
    }
}

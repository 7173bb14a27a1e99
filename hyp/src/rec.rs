//! A REC: one vCPU, in a granule of its own.
//!
//! Who may touch what: `state` belongs to the PE that holds the REC (its granule's
//! count is 1 from `REC_ENTER` until it returns) or, while the count is 0, to
//! whoever holds the granule's lock. The redistributor is guarded by the realm's
//! `vgic` lock. The rest is atomic or never changes.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use attest::Session;
use pgtable::{ChangeDestroyed, Ripas};
use rmi::rsi::HostCall;
use rmi::vendor::{Exit, HISTORY_LEN};
use vgic::{Affinity, ListRegisters, Redistributor};

use arm64::frame::{FpState, Gprs};

use zerocopy::{Immutable, IntoBytes};

use crate::cpu::context::{El1, Exception, VirtualTimer, leave_el2};
use crate::cpu::debug::Debug;
use crate::cpu::gic::VirtualInterface;
use crate::cpu::inject;
use crate::kicks::Kicks;
use crate::memory::phys;
use arm64::syndrome::Syndrome;

/// The number of no PE.
pub const NO_PE: u32 = u32::MAX;

/// One vCPU.
#[derive(Debug)]
pub struct Rec {
    /// PA of its realm's RD.
    pub rd: u64,
    /// Its index in the realm.
    pub index: usize,
    /// May be entered: on, in PSCI's terms.
    runnable: AtomicBool,
    /// The host has requested an exit: it exits as soon as it can.
    pub exit_requested: AtomicBool,
    /// Where it runs, for those who interrupt it.
    pub kicks: Kicks,
    /// SGIs, PPIs and what the list registers hold.
    pub redistributor: UnsafeCell<Redistributor>,
    /// Registers and all that only its runner needs.
    pub state: UnsafeCell<VcpuState>,
}

const _: () = assert!(size_of::<Rec>() <= 4096);

/// What only the PE that runs a REC touches.
#[derive(Debug)]
#[repr(C)]
pub struct VcpuState {
    /// General registers. First: where EL2's vectors find them, they find all of this.
    pub gprs: Gprs,
    /// Its index in the realm.
    pub index: usize,
    /// EL1's system registers.
    pub el1: El1,
    /// Its breakpoints and watchpoints.
    pub debug: Debug,
    /// FP/SIMD registers, when no PE holds them.
    pub fp: FpState,
    /// PE that last loaded `fp`.
    pub fp_pe: u32,
    /// The virtual timer.
    pub vtimer: VirtualTimer,
    /// The physical timer, which EL2 plays with CNTHP.
    pub ptimer: PhysicalTimer,
    /// When it must come out to the host, which has something to take.
    pub call_host_at: Option<u64>,
    /// The virtual CPU interface.
    pub interface: VirtualInterface,
    /// The list registers, as last filled; as the host gave them, and as they stood at
    /// the last exit, where it has them.
    pub lrs: ListRegisters,
    /// The CPU's list registers hold them.
    pub lrs_loaded: bool,
    /// What each exit tells beside its reason.
    pub exit: ExitState,
    /// What the host has been told of interrupts that are its to deliver.
    pub told: Told,
    /// What the last exit waits for.
    pub pending: Pending,
    /// The change of RIPAS that a realm asked for last.
    pub ripas: RipasChange,
    /// A realm's call of its host, in both directions.
    pub host_call: HostCall,
    /// A realm's token, on its way to it.
    pub token: Session,
    /// Its own address of the MPIDR, with RES1.
    pub vmpidr: u64,
    /// The last exits.
    pub history: [Exit; HISTORY_LEN],
    /// Exits ever, modulo 2^64.
    pub exits: u64,
}

/// What an exit tells the host of a vCPU, whatever its reason. In the order of
/// [`write_exit`](crate::memory::guarded::write_exit).
#[derive(Clone, Copy, Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
pub struct ExitState {
    /// `cntp_ctl`, `cntp_cval`, `cntv_ctl`, `cntv_cval`.
    pub timers: [u64; 4],
    /// `ripas_base`, `ripas_top`, `ripas_value`: of a change of RIPAS.
    pub ripas: [u64; 3],
    /// `imm`: of a realm's call.
    pub imm: u64,
    /// `elr`, `spsr`: of a plain guest.
    pub pc: [u64; 2],
}

/// What the last exit told the host of a realm whose interrupts are its (HOST_LRS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The outputs of the physical and the virtual timer.
    pub timers: [bool; 2],
    /// ICH_MISR_EL2.
    pub misr: u64,
}

/// The output of a timer whose CNTx_CTL_EL0 is read like this: ENABLE and ISTATUS are
/// set, IMASK is not (DDI0487, D12.2.4).
pub const fn asserts(ctl: u64) -> bool {
    ctl & 0b111 == 0b101
}

/// The physical timer of a vCPU: CNTP_CTL_EL0 (ENABLE, IMASK) and CNTP_CVAL_EL0.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhysicalTimer {
    /// ENABLE and IMASK.
    pub ctl: u64,
    /// Compare value, ticks of the physical counter.
    pub cval: u64,
}

impl PhysicalTimer {
    /// CNTP_CTL_EL0 as the guest reads it: ISTATUS too.
    pub fn read_ctl(&self, now: u64) -> u64 {
        let met = self.ctl & 1 != 0 && now >= self.cval;
        self.ctl & 0b11 | u64::from(met) << 2
    }

    /// The level of its interrupt.
    pub fn level(&self, now: u64) -> bool {
        asserts(self.read_ctl(now))
    }

    /// When CNTHP must fire: `None` when it need not.
    pub fn deadline(&self) -> Option<u64> {
        (self.ctl & 0b11 == 1).then_some(self.cval)
    }
}

/// What the next `REC_ENTER` or `PSCI_COMPLETE` finishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    Nothing,
    /// An MMIO access: its syndrome and address.
    Mmio(Syndrome, u64),
    /// An abort that the host may answer with an SEA: its address.
    Abort(Syndrome, u64),
    /// `CPU_ON`: target, entry, context.
    CpuOn(u64, u64, u64),
    /// `AFFINITY_INFO`: target.
    AffinityInfo(u64),
    /// A change of RIPAS that the host may make: [`VcpuState::ripas`].
    Ripas,
    /// A call of the host's, by the structure at this IPA.
    HostCall(u64),
}

/// A change of RIPAS that a realm asks for (RSI_IPA_STATE_SET).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RipasChange {
    /// How far the host has come: where it goes on, granule-aligned.
    pub reached: u64,
    /// Its end, likewise.
    pub top: u64,
    /// The first address that the realm named, and the end.
    pub asked: (u64, u64),
    /// What is asked for.
    pub to: Ripas,
    /// Of destroyed memory too.
    pub destroyed: ChangeDestroyed,
}

impl RipasChange {
    /// Of nothing.
    pub const NONE: Self = Self {
        reached: 0,
        top: 0,
        asked: (0, 0),
        to: Ripas::Empty,
        destroyed: ChangeDestroyed::No,
    };
}

impl Rec {
    /// A vCPU out of reset.
    pub fn new(rd: u64, index: usize, mpidr: u64, list_registers: usize) -> Self {
        Self {
            rd,
            index,
            runnable: AtomicBool::new(false),
            exit_requested: AtomicBool::new(false),
            kicks: Kicks::new(),
            redistributor: UnsafeCell::new(Redistributor::new(Affinity::from_mpidr(mpidr))),
            state: UnsafeCell::new(VcpuState {
                gprs: Gprs::reset(0),
                index,
                el1: El1::reset(),
                debug: Debug::RESET,
                fp: FpState::ZERO,
                fp_pe: NO_PE,
                vtimer: VirtualTimer::default(),
                ptimer: PhysicalTimer::default(),
                call_host_at: None,
                interface: VirtualInterface::default(),
                lrs: ListRegisters::new(list_registers),
                lrs_loaded: false,
                exit: ExitState::default(),
                told: Told::default(),
                pending: Pending::Nothing,
                ripas: RipasChange::NONE,
                host_call: HostCall::ZERO,
                token: Session::NONE,
                vmpidr: 1 << 31 | mpidr,
                history: [Exit::default(); HISTORY_LEN],
                exits: 0,
            }),
        }
    }

    /// The REC in the granule at `pa`.
    ///
    /// # Safety
    /// The granule is a REC and stays one for `'a`: its lock is held, it is
    /// counted, or its realm lists it and the realm's `vgic` lock is held.
    pub unsafe fn at<'a>(pa: u64) -> &'a Self {
        // SAFETY: a REC granule holds a `Rec`.
        unsafe { &*phys::pointer::<Self>(pa) }
    }

    /// May be entered.
    pub fn runnable(&self) -> bool {
        self.runnable.load(Ordering::Acquire)
    }

    /// Turns it on or off.
    pub fn set_runnable(&self, runnable: bool) {
        self.runnable.store(runnable, Ordering::Release);
    }
}

const _: () = assert!(core::mem::offset_of!(VcpuState, gprs) == 0);

impl VcpuState {
    /// Leaves EL2 for the vCPU, until an exception that is not served at the vector.
    pub fn enter(&mut self) -> Exception {
        let state: *mut Self = self;
        // SAFETY: a pointer to all of it, which begins with `gprs`.
        unsafe { leave_el2(state.cast()) }
    }

    /// Out of reset, for a `CPU_ON`: begins at `pc` with `context` in X0.
    pub fn reset(&mut self, pc: u64, context: u64) {
        self.gprs = Gprs::reset(pc);
        self.gprs.x[0] = context;
        self.el1 = El1::reset();
        self.debug = Debug::RESET;
        self.fp = FpState::ZERO;
        self.fp_pe = NO_PE;
        self.vtimer = VirtualTimer::default();
        self.ptimer = PhysicalTimer::default();
        self.call_host_at = None;
        self.interface = VirtualInterface::default();
        self.lrs = ListRegisters::new(self.lrs.count());
        self.lrs_loaded = false;
        self.told = Told::default();
        self.pending = Pending::Nothing;
    }

    /// Answers the last exit's access with a synchronous external abort. The
    /// vCPU's EL1 registers are in memory, not in the CPU.
    pub fn inject_external_abort(&mut self, cause: Syndrome, far: u64) {
        inject::external_abort_saved(&mut self.gprs, &mut self.el1, cause, far);
    }

    /// Remembers an exit.
    #[inline]
    pub fn note(&mut self, exit: Exit) {
        self.history[(self.exits % HISTORY_LEN as u64) as usize] = exit;
        self.exits = self.exits.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn a_vcpu_that_is_turned_on_has_no_breakpoints_of_before() {
        use arm64::regs::{DBGBCR0_EL1, MDSCR_EL1, OSLAR_EL1, OSLSR_EL1};
        let mut rec = Rec::new(0, 0, 0, 4);
        let state = rec.state.get_mut();
        let locked = state.debug.read(OSLSR_EL1::ENCODING);
        state.debug.write(OSLAR_EL1::ENCODING, 0);
        for register in [DBGBCR0_EL1::ENCODING, MDSCR_EL1::ENCODING] {
            state.debug.write(register, 1);
            assert_eq!(state.debug.read(register), 1);
        }
        state.reset(0x4000_0000, 0);
        assert_eq!(state.debug.read(DBGBCR0_EL1::ENCODING), 0);
        assert_eq!(state.debug.read(MDSCR_EL1::ENCODING), 0);
        assert_eq!(state.debug.read(OSLSR_EL1::ENCODING), locked);
    }

    /// Of what it was before it went off nothing is left: active priorities of the virtual
    /// interface would keep its interrupts away for ever, and FP/SIMD registers be another
    /// kernel's.
    #[test]
    fn a_vcpu_that_is_turned_on_is_as_out_of_reset() {
        use std::{format, string::String};
        let all = |state: &VcpuState| -> String {
            let debugged = (
                (&state.gprs.x, state.gprs.pc, state.gprs.pstate),
                (&state.el1, &state.debug, &state.fp, state.fp_pe),
                (state.vtimer, state.ptimer, state.call_host_at),
                (state.interface, &state.lrs, state.lrs_loaded),
                (state.told, state.pending),
            );
            format!("{debugged:?}")
        };
        let mut fresh = Rec::new(0, 0, 0, 4);
        let mut rec = Rec::new(0, 0, 0, 4);
        let fresh = fresh.state.get_mut();
        (fresh.gprs.pc, fresh.gprs.x[0]) = (0x4000_0000, 7);
        let state = rec.state.get_mut();
        (state.gprs.x, state.gprs.pc, state.gprs.pstate) = ([1; 31], 2, 3);
        (state.el1.ttbr0, state.el1.keys) = (4, [5; 10]);
        state.fp.set_q([6; 32]);
        state.fp_pe = 0;
        state.vtimer = VirtualTimer { ctl: 1, cval: 7 };
        state.ptimer = PhysicalTimer { ctl: 1, cval: 8 };
        state.call_host_at = Some(9);
        state.interface.vmcr = 10;
        state.lrs.hcr = 11;
        state.lrs_loaded = true;
        state.told.misr = 12;
        state.pending = Pending::Ripas;
        assert_ne!(all(state), all(fresh));
        state.reset(0x4000_0000, 7);
        assert_eq!(all(state), all(fresh));
    }

    #[test]
    fn the_physical_timer_follows_the_manual() {
        let mut t = PhysicalTimer { ctl: 1, cval: 100 };
        assert_eq!((t.read_ctl(99), t.read_ctl(100)), (1, 5));
        assert!(t.level(100) && !t.level(99));
        assert_eq!(t.deadline(), Some(100));
        t.ctl = 3;
        assert_eq!(t.read_ctl(100), 7);
        assert!(!t.level(100));
        assert_eq!(t.deadline(), None);
        t.ctl = 0;
        assert_eq!(t.read_ctl(100), 0);
    }
}

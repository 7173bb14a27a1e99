//! A PE as EL2 drives it: traps, the host's and a guest's turn, FP/SIMD.

pub mod context;
pub mod features;
pub mod gic;
pub mod instr;
pub mod pe;
pub mod worlds;

use crate::System;
use crate::msr;
use context::{El1, FpState, Gprs, VirtualTimer};
use gic::{Gic, HostInterface};
use pe::Pe;

/// HCR_EL2 bits (DDI0487, D24.2.53).
pub mod hcr {
    /// Stage 2 on.
    pub const VM: u64 = 1 << 0;
    /// Set/way invalidations clean too.
    pub const SWIO: u64 = 1 << 1;
    /// Physical FIQ, IRQ and SError to EL2.
    pub const FMO: u64 = 1 << 3;
    /// Physical IRQ to EL2.
    pub const IMO: u64 = 1 << 4;
    /// Physical SError to EL2.
    pub const AMO: u64 = 1 << 5;
    /// Broadcast maintenance of EL1.
    pub const FB: u64 = 1 << 9;
    /// Barriers of EL1 are at least inner shareable.
    pub const BSU_INNER: u64 = 1 << 10;
    /// Trap WFI.
    pub const TWI: u64 = 1 << 13;
    /// Trap WFE.
    pub const TWE: u64 = 1 << 14;
    /// Trap ID registers.
    pub const TID3: u64 = 1 << 18;
    /// Trap SMC.
    pub const TSC: u64 = 1 << 19;
    /// Trap implementation-defined registers.
    pub const TIDCP: u64 = 1 << 20;
    /// Trap ACTLR_EL1.
    pub const TACR: u64 = 1 << 21;
    /// EL1 is AArch64.
    pub const RW: u64 = 1 << 31;
    /// Trap LOR registers.
    pub const TLOR: u64 = 1 << 35;
    /// Trap RAS error records.
    pub const TERR: u64 = 1 << 36;
    /// Pointer authentication keys and instructions are not trapped.
    pub const APK: u64 = 1 << 40;
    /// See [`APK`].
    pub const API: u64 = 1 << 41;
    /// The FEAT_S2FWB encoding of stage-2 memory types.
    pub const FWB: u64 = 1 << 46;
    /// Trap MTE's GMID_EL1.
    pub const TID5: u64 = 1 << 58;
}

/// HCR_EL2 while the host runs, but for what every lower level has: what is not
/// switched between it and guests, and how the CPU itself behaves, is not its.
const HOST_HCR: u64 =
    hcr::SWIO | hcr::TID3 | hcr::TSC | hcr::TIDCP | hcr::TACR | hcr::TLOR | hcr::TERR;

/// HCR_EL2 while a guest runs, but for what every lower level has.
const GUEST_HCR: u64 = hcr::SWIO
    | hcr::FMO
    | hcr::IMO
    | hcr::AMO
    | hcr::FB
    | hcr::BSU_INNER
    | hcr::TID3
    | hcr::TSC
    | hcr::TIDCP
    | hcr::TACR
    | hcr::TLOR
    | hcr::TERR
    | hcr::TID5;

/// CPTR_EL2 with E2H = 0: RES1, and traps of SVE, SME, trace and AMU.
const CPTR: u64 = 0x22ff | 1 << 8 | 1 << 12 | 1 << 20 | 1 << 30;
/// CPTR_EL2.TFP.
const CPTR_TFP: u64 = 1 << 10;
/// MDCR_EL2: debug registers, OS lock, PMU, trace filter (TTRF) and profiling
/// (TPMS) trap, the trace and profiling buffers are EL2's; HPMN is the CPU's.
const MDCR: u64 = 1 << 19 | 1 << 14 | 1 << 11 | 1 << 10 | 1 << 9 | 1 << 6 | 1 << 5;

/// Whose FP/SIMD registers the PE holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FpOwner {
    Host,
    /// PA of the REC.
    Rec(u64),
}

/// The host's state on this PE while a guest runs.
#[derive(Debug)]
pub struct Host {
    /// General registers, at its last exception to EL2.
    pub gprs: Gprs,
    el1: El1,
    vtimer: VirtualTimer,
    interface: HostInterface,
    fp: FpState,
}

/// What this PE has, and only this PE touches.
#[derive(Debug)]
pub struct Cpu {
    /// What others see of it.
    pub pe: &'static Pe,
    /// The machine.
    pub system: &'static System,
    /// Its GIC.
    pub gic: Gic,
    /// The host.
    pub host: Host,
    fp_owner: FpOwner,
    /// While a guest runs: the virtual timer's PPI is active at the physical GIC.
    pub timer_active: bool,
    /// Exits of unknown system registers that were logged already, by encoding.
    pub logged: crate::guest::Once,
}

impl Cpu {
    /// Sets this PE up for running lower levels.
    pub fn new(pe: &'static Pe, system: &'static System) -> Self {
        let features = &system.features;
        msr!("cptr_el2", CPTR);
        msr!("mdcr_el2", MDCR | crate::mrs!("mdcr_el2") & 0x1f);
        msr!("hstr_el2", 0);
        msr!("cntvoff_el2", 0);
        msr!("vpidr_el2", features.midr);
        if features.hcx {
            msr!("S3_4_C1_C2_2", 0); // HCRX_EL2
        }
        if features.fgt > 0 {
            // No fine-grained traps; the inverted bits then trap what is hidden.
            msr!("S3_4_C1_C1_4", 0); // HFGRTR_EL2
            msr!("S3_4_C1_C1_5", 0); // HFGWTR_EL2
            msr!("S3_4_C1_C1_6", 0); // HFGITR_EL2
            msr!("S3_4_C3_C1_4", 0); // HDFGRTR_EL2
            msr!("S3_4_C3_C1_5", 0); // HDFGWTR_EL2
        }
        if features.fgt > 1 {
            msr!("S3_4_C3_C1_0", 0); // HDFGRTR2_EL2
            msr!("S3_4_C3_C1_1", 0); // HDFGWTR2_EL2
            msr!("S3_4_C3_C1_2", 0); // HFGRTR2_EL2
            msr!("S3_4_C3_C1_3", 0); // HFGWTR2_EL2
            msr!("S3_4_C3_C1_7", 0); // HFGITR2_EL2
        }
        if features.mpam {
            msr!("S3_4_C10_C5_0", 0b11 << 48); // MPAM2_EL2: trap EL1's registers
        }
        instr::isb();
        Self {
            pe,
            system,
            gic: Gic::init(system.machine, pe.gicr),
            host: Host {
                gprs: Gprs::reset(0),
                el1: El1::reset(),
                vtimer: VirtualTimer::default(),
                interface: HostInterface::default(),
                fp: FpState::ZERO,
            },
            fp_owner: FpOwner::Host,
            timer_active: false,
            logged: crate::guest::Once::new(),
        }
    }

    /// Traps and translation of the host: stage 2, calls, hidden features.
    /// Interrupts are its own.
    fn host_traps(&self) {
        msr!("hcr_el2", self.hcr(HOST_HCR));
        msr!("cnthctl_el2", 0b11); // counter and timer are the host's
        msr!("vmpidr_el2", 1 << 31 | self.pe.mpidr);
        self.set_fp_trap(self.fp_owner != FpOwner::Host);
        msr!("vtcr_el2", self.system.host.vtcr());
        msr!("vttbr_el2", self.system.host.vttbr());
        instr::isb();
    }

    /// The bits that hold for every lower level, and `more`.
    fn hcr(&self, more: u64) -> u64 {
        let mut value = hcr::VM | hcr::RW | more;
        if self.system.features.pauth {
            value |= hcr::APK | hcr::API;
        }
        if self.system.features.fwb {
            value |= hcr::FWB;
        }
        value
    }

    fn set_fp_trap(&self, trap: bool) {
        msr!("cptr_el2", if trap { CPTR | CPTR_TFP } else { CPTR });
    }

    /// Gives the host this PE for the first time, or after `CPU_ON`: it begins at
    /// `pc` with `context` in X0, EL1's registers as out of reset.
    pub fn begin_host(&mut self, pc: u64, context: u64) {
        self.host.gprs = Gprs::reset(pc);
        self.host.gprs.x[0] = context;
        self.host.el1 = El1::reset();
        self.host.el1.load(&self.system.features);
        // Out of reset as far as the host can tell, whatever the firmware keeps.
        msr!("cntv_ctl_el0", 0);
        msr!("cntp_ctl_el0", 0);
        self.host.fp = FpState::ZERO;
        self.fp_to_host();
        self.pe.note_redistributor_change();
        self.gic.stop_lpis();
        self.gic.enable_own();
        self.host_traps();
        instr::tlbi_alle1is();
        instr::ic_iallu();
        instr::dsb_ish();
        instr::isb();
    }

    /// Takes the PE from the host and gives it to a guest with this register
    /// state. `trap`: TWI and TWE as the host asked.
    pub fn switch_to_guest(&mut self, guest: &GuestState<'_>, trap: u64) {
        let features = &self.system.features;
        self.host.el1.save(features);
        self.host.vtimer.take();
        let changed = self.pe.take_redistributor_change();
        self.gic.borrow(&mut self.host.interface, changed);
        self.timer_active = false;
        self.guest_traps(guest, trap);
        guest.el1.load(features);
        self.set_fp_trap(!self.holds_fp(guest.rec, guest.fp_pe));
        self.gic.load(guest.interface);
        guest.vtimer.give();
        if guest.other_vcpu_ran_here {
            // Its entries of stage 1 carry the same VMID, perhaps the same ASID.
            instr::tlbi_vmalle1();
            instr::ic_iallu();
            instr::dsb_nsh();
        }
        instr::isb();
    }

    fn guest_traps(&self, guest: &GuestState<'_>, trap: u64) {
        msr!("hcr_el2", self.hcr(GUEST_HCR | trap));
        msr!("cnthctl_el2", 0b01); // counter yes; physical timer traps
        msr!("vmpidr_el2", guest.vmpidr);
        msr!("vtcr_el2", guest.vtcr);
        msr!("vttbr_el2", guest.vttbr);
        instr::isb();
    }

    /// Takes the PE back from a guest for the host, saving the guest's state.
    pub fn switch_to_host(&mut self, guest: SavedState<'_>) {
        let features = &self.system.features;
        guest.vtimer.take();
        msr!("cnthp_ctl_el2", 0);
        self.gic.save(guest.interface);
        if self.fp_owner == FpOwner::Rec(guest.rec) && *guest.fp_pe == self.pe.index as u32 {
            // Access is open if this guest used it; the registers stay here, so
            // that it need not load them again if it comes straight back.
            self.set_fp_trap(false);
            instr::isb();
            guest.fp.save();
        }
        guest.el1.save(features);
        self.host.el1.load(features);
        self.gic.give_back(&self.host.interface);
        self.host_traps();
        self.host.vtimer.give();
        instr::isb();
    }

    fn holds_fp(&self, rec: u64, fp_pe: u32) -> bool {
        self.fp_owner == FpOwner::Rec(rec) && fp_pe == self.pe.index as u32
    }

    /// The host used FP/SIMD while the PE held a guest's (saved at its exit).
    pub fn fp_to_host(&mut self) {
        self.set_fp_trap(false);
        instr::isb();
        self.host.fp.restore();
        self.fp_owner = FpOwner::Host;
    }

    /// The guest used FP/SIMD for the first time since another did.
    pub fn fp_to_guest(&mut self, rec: u64, fp: &FpState, fp_pe: &mut u32) {
        self.set_fp_trap(false);
        instr::isb();
        if self.fp_owner == FpOwner::Host {
            self.host.fp.save();
        }
        fp.restore();
        self.fp_owner = FpOwner::Rec(rec);
        *fp_pe = self.pe.index as u32;
    }
}

/// What [`Cpu::switch_to_guest`] loads.
#[derive(Debug)]
pub struct GuestState<'a> {
    /// PA of the REC.
    pub rec: u64,
    /// EL1's registers.
    pub el1: &'a El1,
    /// The virtual timer.
    pub vtimer: VirtualTimer,
    /// The virtual CPU interface.
    pub interface: &'a gic::VirtualInterface,
    /// PE that holds, or held, its FP/SIMD registers.
    pub fp_pe: u32,
    /// VMPIDR_EL2.
    pub vmpidr: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// Another vCPU of its realm was the last to run on this PE.
    pub other_vcpu_ran_here: bool,
}

/// Where [`Cpu::switch_to_host`] saves.
#[derive(Debug)]
pub struct SavedState<'a> {
    /// PA of the REC.
    pub rec: u64,
    /// EL1's registers.
    pub el1: &'a mut El1,
    /// The virtual timer.
    pub vtimer: &'a mut VirtualTimer,
    /// The virtual CPU interface.
    pub interface: &'a mut gic::VirtualInterface,
    /// FP/SIMD registers.
    pub fp: &'a mut FpState,
    /// PE that holds them.
    pub fp_pe: &'a u32,
}

/// PAR_EL1 of a translation of `address` by the current EL1's own tables, or
/// `None` when that walk meets an external abort; the guest's PAR_EL1 stays as it
/// was.
pub fn translate_stage1(address: u64) -> Option<u64> {
    let saved = crate::mrs!("par_el1");
    let par = crate::memory::guarded::translate_stage1(address).ok();
    msr!("par_el1", saved);
    par
}

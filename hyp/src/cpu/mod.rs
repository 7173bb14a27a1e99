//! A PE as EL2 drives it: traps, the host's and a guest's turn, FP/SIMD.

pub mod access;
pub mod context;
pub mod debug;
pub mod dying;
pub mod fault;
pub mod gic;
pub mod inject;
pub mod pe;
#[cfg(any(target_os = "none", test))]
pub mod system_error;
#[cfg(any(test, feature = "worlds"))]
pub mod worlds;

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod vectors;

use arm64::frame::{FpState, Gprs};
use arm64::regs::*;
use arm64::{bits, instr};
use attest::{Attester, Generator};

use crate::errata::{InForce, Walks, WorkAround, steer_hcr, trapped_writes};
use crate::features::Features;
use crate::idregs::{Common, of_cpu};
use crate::log::once::Once;
use crate::memory::guarded::Look;
use crate::speculation::Steps;
use arm64::syndrome::Syndrome;
use context::{El1, VirtualTimer};
use gic::{Distributor, Frames, Gic, HostInterface};
use pe::Pe;
use pgtable::Stage2Regs;
use spin::mutex::SpinMutex;

/// HCR_EL2 while the host runs, but for what every lower level has: what is not
/// switched between it and guests, and how the CPU itself behaves, is not its.
/// System errors come to EL2, which gives them to whose they are.
const HOST_HCR: u64 = bits!(HCR_EL2: SWIO, TID3, TSC, TIDCP, TACR, TLOR, TERR, AMO);

/// HCR_EL2 while a guest runs, but for what every lower level has. Barriers of its
/// own reach the inner shareable domain at least, as all that it runs on is there.
const GUEST_HCR: u64 = HOST_HCR | bits!(HCR_EL2: FMO, IMO, FB, TID5) | HCR_EL2::BSU.val(0b01).value;

/// CPTR_EL2: RES1, and traps of SVE, SME, trace and AMU.
const CPTR: u64 = bits!(CPTR_EL2: RES1_0, RES1_9, RES1_13, TZ, TSM, TTA, TAM);
/// MDCR_EL2: debug registers, OS lock, PMU, trace filter and profiling trap, the
/// trace and profiling buffers are EL2's; HPMN is the CPU's.
const MDCR: u64 = bits!(MDCR_EL2: TTRF, TPMS, TDRA, TDOSA, TDA, TPM, TPMCR);

/// The host's state on this PE while a guest runs.
#[derive(Debug)]
pub struct Host {
    /// General registers, at its last exception to EL2.
    pub gprs: Gprs,
    el1: El1,
    vtimer: VirtualTimer,
    interface: HostInterface,
    fp: FpState,
    /// HCR_EL2.VSE, where it has a system error to take yet.
    error: u64,
}

/// What a PE needs of what all share.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// What every PE has.
    pub features: &'static Features,
    /// Errata of those that have come.
    pub errata: &'static InForce,
    /// What guests are told of them.
    pub common: &'static Common,
    /// Random numbers, on a machine that has any.
    pub random: Option<&'static SpinMutex<Generator>>,
    /// Who signs realms' tokens, there.
    pub attester: Option<&'static Attester>,
    /// The interrupt controller.
    pub frames: &'static Frames,
    /// The host's stage 2.
    pub host_stage2: Stage2Regs,
}

/// What this PE has, and only this PE touches.
#[derive(Debug)]
pub struct Cpu {
    /// What others see of it.
    pub pe: &'static Pe,
    /// What every PE has.
    pub features: &'static Features,
    errata: &'static InForce,
    /// What guests are told of all CPUs.
    pub common: &'static Common,
    /// Random numbers, on a machine that has any.
    pub random: Option<&'static SpinMutex<Generator>>,
    /// Who signs realms' tokens, there.
    pub attester: Option<&'static Attester>,
    /// The host's stage 2.
    host_stage2: Stage2Regs,
    /// Its GIC.
    pub gic: Gic,
    /// The host.
    pub host: Host,
    /// Whose FP/SIMD registers the PE holds: PA of the REC, or the host's.
    pub fp_owner: Option<u64>,
    /// Whether the guest that runs may use them, which are its own.
    guest_has_fp: bool,
    /// While a guest runs: the virtual timer's PPI is active at the physical GIC.
    pub timer_active: bool,
    /// The list registers are known to be zero.
    pub lrs_are_zero: bool,
    /// Exits of unknown system registers that were logged already, by encoding.
    pub logged: Once,
}

impl Cpu {
    /// Sets this PE up for running lower levels.
    pub fn new(pe: &'static Pe, shared: &Shared) -> Self {
        let Shared {
            features,
            errata,
            common,
            random,
            attester,
            frames,
            host_stage2,
        } = *shared;
        CPTR_EL2.set(CPTR);
        MDCR_EL2.set(MDCR | MDCR_EL2.get() & bits!(MDCR_EL2: HPMN));
        HSTR_EL2.set(0);
        // Locked by a reset, it keeps guests from stepping; what EL2 traps stays trapped.
        OSLAR_EL1.set(0);
        debug::begin();
        // Whatever the firmware waited for.
        CNTHP_CTL_EL2.set(0);
        CNTVOFF_EL2.set(0);
        VPIDR_EL2.set(MIDR_EL1.get());
        if features.hcx {
            // Memory copies are for all where they are; what else there is has registers.
            let mops = of_cpu(ID_AA64ISAR2_EL1::ENCODING) & bits!(ID_AA64ISAR2_EL1: MOPS);
            HCRX_EL2.write(HCRX_EL2::MSCEn.val((mops != 0).into()));
        }
        if features.fgt > 0 {
            // No fine-grained traps, but those that errata need; the inverted bits
            // then trap what is hidden.
            HFGRTR_EL2.set(0);
            HFGWTR_EL2.set(trapped_writes(errata));
            HFGITR_EL2.set(0);
            HDFGRTR_EL2.set(0);
            HDFGWTR_EL2.set(0);
        }
        if features.fgt > 1 {
            HDFGRTR2_EL2.set(0);
            HDFGWTR2_EL2.set(0);
            HFGRTR2_EL2.set(0);
            HFGWTR2_EL2.set(0);
            HFGITR2_EL2.set(0);
        }
        if pe.steps() != Steps::default() {
            context::take_steps();
        }
        if features.ras {
            DISR_EL1.set(0);
        }
        if features.mpam {
            // What nobody below can set either is in the default partition.
            MPAM2_EL2.set(bits!(MPAM2_EL2: TRAPMPAM0EL1, TRAPMPAM1EL1));
            MPAM1_EL1.set(0);
            MPAM0_EL1.set(0);
            if MPAMIDR_EL1.is_set(MPAMIDR_EL1::HAS_HCR) {
                MPAMHCR_EL2.set(0);
            }
        }
        instr::isb();
        // SAFETY: the device tree's distributor, which EL2 maps. What is written to
        // it makes interrupts pending.
        let distributor = unsafe { Distributor::new(frames.distributor.base()) };
        Self {
            pe,
            features,
            errata,
            common,
            random,
            attester,
            host_stage2,
            gic: Gic::init(distributor, pe.gicr, frames.ppi),
            host: Host {
                gprs: Gprs::reset(0),
                el1: El1::reset(),
                vtimer: VirtualTimer::default(),
                interface: HostInterface::default(),
                fp: FpState::ZERO,
                error: 0,
            },
            fp_owner: None,
            guest_has_fp: false,
            timer_active: false,
            lrs_are_zero: false,
            logged: Once::new(),
        }
    }

    /// Traps and translation of the host: stage 2, calls, hidden features.
    /// Interrupts are its own.
    fn host_traps(&self) {
        CNTHCTL_EL2.set(bits!(CNTHCTL_EL2: EL1PCTEN, EL1PCEN));
        VMPIDR_EL2.set(bits!(VMPIDR_EL2: RES1) | self.pe.mpidr);
        self.set_fp_trap(self.fp_owner.is_some());
        let host = self.host_stage2;
        // SAFETY: EL2 translates by neither. The host is kept to its own stage 2,
        // by traps that are its world's.
        unsafe {
            steer_hcr(self.errata, self.hcr(HOST_HCR | self.host.error));
            VTCR_EL2.steer(host.vtcr);
            VTTBR_EL2.steer(host.vttbr);
        }
        instr::isb();
    }

    /// The bits that hold for every lower level, and `more`.
    fn hcr(&self, more: u64) -> u64 {
        let mut value = bits!(HCR_EL2: VM, RW) | more;
        if self.features.pauth {
            value |= bits!(HCR_EL2: APK, API);
        }
        if self.features.fwb {
            value |= bits!(HCR_EL2: FWB);
        }
        value
    }

    fn set_fp_trap(&self, trap: bool) {
        CPTR_EL2.set(if trap {
            CPTR | bits!(CPTR_EL2: TFP)
        } else {
            CPTR
        });
    }

    /// Gives the host this PE for the first time, or after `CPU_ON`: it begins at
    /// `pc` with `context` in X0, EL1's registers as out of reset.
    pub fn begin_host(&mut self, pc: u64, context: u64) {
        self.host.gprs = Gprs::reset(pc);
        self.host.gprs.x[0] = context;
        self.host.el1 = El1::reset();
        self.host.el1.load(self.features);
        self.host.el1.load_walks(None);
        // Out of reset as far as the host can see, whatever the firmware keeps.
        CNTV_CTL_EL0.set(0);
        CNTP_CTL_EL0.set(0);
        self.host.fp = FpState::ZERO;
        self.host.error = 0;
        self.fp_to_host();
        self.pe.note_redistributor_change();
        self.gic.stop_lpis();
        self.gic.enable_own();
        self.host_traps();
        instr::tlbi_alle1is();
        instr::ic_iallu();
        instr::dsb_ish();
        if self.errata.need(WorkAround::TlbiSyncRepeat) {
            instr::tlbi_alle1is();
            instr::dsb_ish();
        }
        instr::isb();
    }

    /// Takes the PE from the host and gives it to a guest with this register
    /// state. `trap`: TWI and TWE as the host asked.
    pub fn switch_to_guest(&mut self, guest: &GuestState<'_>, trap: u64) {
        let features = self.features;
        self.host.el1.save(features);
        self.host.error = HCR_EL2.get() & bits!(HCR_EL2: VSE);
        self.host.vtimer.take();
        let changed = self.pe.take_redistributor_change();
        self.gic.borrow(&mut self.host.interface, changed);
        self.timer_active = false;
        let held = Walks::hold_where_needed(self.errata);
        self.guest_traps(guest, trap);
        guest.el1.load(features);
        guest.el1.load_walks(held);
        let here = guest.fp_pe == self.pe.index as u32;
        self.guest_has_fp = here && self.fp_owner == Some(guest.rec);
        self.set_fp_trap(!self.guest_has_fp);
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
        CNTHCTL_EL2.set(bits!(CNTHCTL_EL2: EL1PCTEN)); // the physical timer traps
        VMPIDR_EL2.set(guest.vmpidr);
        // SAFETY: as for the host: the guest's own stage 2, and its world's traps.
        unsafe {
            steer_hcr(self.errata, self.hcr(GUEST_HCR | trap));
            VTCR_EL2.steer(guest.vtcr);
            VTTBR_EL2.steer(guest.vttbr);
        }
        instr::isb();
    }

    /// Has the guest's WFI trap until the host has been there.
    pub fn trap_wfi(&self) {
        // SAFETY: one trap more of the guest that has just left the PE.
        unsafe { steer_hcr(self.errata, HCR_EL2.get() | bits!(HCR_EL2: TWI)) };
        instr::isb();
    }

    /// Takes the PE back from a guest for the host, saving the guest's state.
    pub fn switch_to_host(&mut self, guest: SavedState<'_>) {
        let features = self.features;
        guest.vtimer.take();
        CNTHP_CTL_EL2.set(0);
        self.gic.save(guest.interface);
        if self.guest_has_fp {
            // They stay here too, so that it need not load them again if it comes
            // straight back.
            guest.fp.save();
        }
        guest.el1.save(features);
        let held = Walks::hold_where_needed(self.errata);
        self.host.el1.load(features);
        self.gic.give_back(&self.host.interface);
        self.host_traps();
        self.host.el1.load_walks(held);
        self.host.vtimer.give();
        instr::isb();
    }

    /// A system error of the host's, which runs, has come to EL2: it takes it when it
    /// does not mask it.
    pub fn return_error(&self, error: Syndrome) {
        if self.features.ras {
            VSESR_EL2.set(error.0 & 0x1ff_ffff);
        }
        // SAFETY: it is still the host's world.
        unsafe { steer_hcr(self.errata, HCR_EL2.get() | bits!(HCR_EL2: VSE)) };
    }

    /// The host used FP/SIMD while the PE held a guest's (saved at its exit).
    pub fn fp_to_host(&mut self) {
        self.set_fp_trap(false);
        instr::isb();
        self.host.fp.restore();
        self.fp_owner = None;
    }

    /// The guest that runs gets its FP/SIMD registers: it used them for the first time
    /// since another did, or nobody else's are there.
    pub fn fp_to_guest(&mut self, rec: u64, fp: &FpState, fp_pe: &mut u32) {
        self.set_fp_trap(false);
        instr::isb();
        if self.fp_owner.is_none() {
            self.host.fp.save();
        }
        fp.restore();
        self.fp_owner = Some(rec);
        self.guest_has_fp = true;
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
    /// EL1's registers.
    pub el1: &'a mut El1,
    /// The virtual timer.
    pub vtimer: &'a mut VirtualTimer,
    /// The virtual CPU interface.
    pub interface: &'a mut gic::VirtualInterface,
    /// FP/SIMD registers.
    pub fp: &'a mut FpState,
}

/// PAR_EL1 of a translation of `address` by the current EL1's own tables, or
/// `None` when there is none, or when that walk meets an external abort. The
/// guest's PAR_EL1 stays as it was.
pub fn translate(address: u64, look: Look) -> Option<u64> {
    /// PAR_EL1.F: the translation failed.
    const FAILED: u64 = 1;
    let saved = PAR_EL1.get();
    let par = crate::memory::guarded::translate(address, look).ok();
    PAR_EL1.set(saved);
    par.filter(|par| par & FAILED == 0)
}

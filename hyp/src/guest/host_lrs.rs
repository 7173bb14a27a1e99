//! A realm whose host has its interrupts: RMI 1.0's own mode, HOST_LRS (DEN0137
//! 1.0-rel0, A6.1 and A6.2).
//!
//! EL2 models no GIC for it. The host fills the list registers at each entry, and gets
//! them back as they stand at each exit; the virtual interface's settings and active
//! priorities are the vCPU's own. What would change the host's model is an exit: a
//! physical interrupt, a maintenance interrupt, an SGI, and the output of a timer that
//! rises or falls against what the last exit told.
//!
//! While the virtual timer's output is high, its physical interrupt is active on this PE
//! and so not signalled: the host knows, and delivers one of its own. A guest may lower
//! and raise it meanwhile unseen; a host that has the list register's EOI bit set learns
//! at the guest's EOI what the output is by then.

use core::mem::offset_of;

use arm64::regs::{
    CNTPCT_EL0, ICC_ASGI1R_EL1, ICC_DIR_EL1, ICC_SGI0R_EL1, ICC_SGI1R_EL1, ICH_HCR_EL2,
    ICH_MISR_EL2,
};
use arm64::syndrome::Syndrome;
use arm64::sysreg::Sysreg;
use rmi::run::{ExitReason, RecEnter, RecExit, RecRun};
use vgic::{BadListRegisters, Interface, MAX_LIST_REGISTERS, hcr};

use super::confidential;
use super::record::{Next, Record};
use super::vcpu::RunningVcpu;
use crate::cpu::Cpu;
use crate::cpu::gic::{self, Gic, Taken};
use crate::memory::guarded::{self, ExternalAbort};
use crate::rec::{VcpuState, asserts};

/// `gicv3_hcr` and `gicv3_lrs`, as the host hands them over.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    hcr: u64,
    lrs: [u64; MAX_LIST_REGISTERS],
}

impl Given {
    /// Copies them from a run page, once.
    ///
    /// # Errors
    /// They cannot be read.
    ///
    /// # Safety
    /// The page is RAM of the host's.
    pub unsafe fn read(page: u64) -> Result<Self, ExternalAbort> {
        let at = offset_of!(RecRun, enter) + offset_of!(RecEnter, gicv3_hcr);
        // SAFETY: the caller's promise; the list registers follow.
        let [hcr, lrs @ ..] = unsafe { guarded::read::<[u64; 17]>(page + at as u64) }?;
        Ok(Self { hcr, lrs })
    }

    /// Whether this PE's list registers may hold them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self, gic: &Gic) -> Result<(), BadListRegisters> {
        gic.interface().check(self.hcr, &self.lrs)
    }

    /// Makes them the vCPU's, for its next entry on this PE.
    pub fn take(&self, gic: &Gic, state: &mut VcpuState) {
        state.lrs.lr = [0; MAX_LIST_REGISTERS];
        let count = gic.list_registers;
        state.lrs.lr[..count].copy_from_slice(&self.lrs[..count]);
        state.lrs.hcr = hcr::EN | self.hcr;
    }
}

/// Loads what [`Given::take`] took, when the rest of the virtual interface is loaded.
pub fn load(cpu: &mut Cpu, state: &VcpuState) {
    cpu.lrs_are_zero = false;
    gic::write_lrs(cpu.gic.list_registers, &state.lrs.lr);
    cpu.gic.turn_on(state.lrs.hcr);
}

/// Reads them back as they stand, before the virtual interface is turned off.
pub fn leave(gic: &Gic, state: &mut VcpuState) {
    gic::read_lrs(gic.list_registers, &mut state.lrs.lr);
    state.lrs.hcr = ICH_HCR_EL2.get();
    state.told.misr = ICH_MISR_EL2.get();
}

/// Before each entry: false when the host is to see the output of a timer first.
pub fn prepare(vcpu: &mut RunningVcpu<'_>, state: &VcpuState) -> bool {
    let virtual_timer = vcpu.timer_level();
    vcpu.set_timer_active(virtual_timer);
    state.told.timers == [state.ptimer.level(CNTPCT_EL0.get()), virtual_timer]
}

/// Whether a physical interrupt that ended the guest's turn is the host's to see. Of the
/// timers' it sees what [`prepare`] finds.
pub fn physical(vcpu: &mut RunningVcpu<'_>, taken: Taken) -> bool {
    match taken {
        Taken::Host | Taken::Maintenance => true,
        Taken::VirtualTimer => {
            vcpu.cpu.timer_active = true;
            false
        }
        // A kick is for this vCPU, which looks before it is entered again.
        Taken::HypTimer | Taken::Kick | Taken::Nothing => false,
    }
}

/// Remembers what an exit with these timers' CNTP_CTL_EL0 and CNTV_CTL_EL0 tells.
pub fn tell(state: &mut VcpuState, [physical, virtual_timer]: [u64; 2]) {
    state.told.timers = [asserts(physical), asserts(virtual_timer)];
}

/// A register whose writes are the host's to act on.
pub fn is_hosts(register: Sysreg) -> bool {
    matches!(
        register,
        ICC_SGI0R_EL1::ENCODING
            | ICC_SGI1R_EL1::ENCODING
            | ICC_ASGI1R_EL1::ENCODING
            | ICC_DIR_EL1::ENCODING
    )
}

/// A write of one of them, which is done as far as the guest can see.
pub fn written(state: &mut VcpuState, esr: Syndrome) -> Next {
    state.gprs.step();
    let mut record = Record {
        esr: confidential::of_register(esr),
        ..Record::new(ExitReason::Sync)
    };
    record.gprs[0] = state.gprs.get(esr.sysreg_rt());
    Next::Exit(record)
}

/// Writes what an exit tells of the virtual interface into a run page.
///
/// # Errors
/// It cannot be written.
///
/// # Safety
/// The page is RAM of the host's.
pub unsafe fn write_exit(page: u64, state: &VcpuState) -> Result<(), ExternalAbort> {
    const LRS: usize = MAX_LIST_REGISTERS;
    const {
        let words = (offset_of!(RecExit, gicv3_vmcr) - offset_of!(RecExit, gicv3_hcr)) / 8;
        assert!(words == LRS + 2);
    };
    let mut words = [0; LRS + 3];
    words[0] = state.lrs.hcr & (hcr::EOI_COUNT | Interface::HOST_HCR);
    words[1..=LRS].copy_from_slice(&state.lrs.lr);
    words[LRS + 1] = state.told.misr;
    words[LRS + 2] = state.interface.vmcr;
    let at = offset_of!(RecRun, exit) + offset_of!(RecExit, gicv3_hcr);
    // SAFETY: the caller's promise; the fields are one after another.
    unsafe { guarded::write(page + at as u64, &words) }
}

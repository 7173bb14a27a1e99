//! The page that `REC_ENTER` reads (first half) and writes (second half).
//!
//! DEN0137 1.0, B4.4.14 RmiRecEnter, B4.4.15 RmiRecExit, B4.4.18 RmiRecRun.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags::bitflags! {
    /// `RecEnter::flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EnterFlags: u64 {
        /// Completes the MMIO read or write of the previous exit: a read's value
        /// is `gprs[0]`, and the instruction is stepped over.
        const EMUL_MMIO = 1 << 0;
        /// Answers the previous exit's abort with an SEA.
        const INJECT_SEA = 1 << 1;
        /// WFI exits to the host.
        const TRAP_WFI = 1 << 2;
        /// WFE exits to the host.
        const TRAP_WFE = 1 << 3;
        /// Rejects the RIPAS change of the previous exit.
        const RIPAS_RESPONSE = 1 << 4;
    }
}

/// What the host passes on entry.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RecEnter {
    /// [`EnterFlags`].
    pub flags: u64,
    _pad0: [u8; 0x200 - 8],
    /// Results for the guest, by the previous exit's kind.
    pub gprs: [u64; 31],
    _pad1: [u8; 8],
    /// ICH_HCR_EL2 bits that the host may set.
    pub gicv3_hcr: u64,
    /// List registers, HOST_LRS mode only.
    pub gicv3_lrs: [u64; 16],
    _pad2: [u8; 0x800 - 0x388],
}

/// Why a REC came back: `RecExit::exit_reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum ExitReason {
    /// A synchronous exception: see `esr`, `far`, `hpfar`.
    Sync = 0,
    /// A physical IRQ is pending for the host.
    Irq = 1,
    /// A physical FIQ is pending for the host.
    Fiq = 2,
    /// A PSCI call for the host: function and arguments in `gprs[0..4]`.
    Psci = 3,
    /// The guest asks for a RIPAS change.
    RipasChange = 4,
    /// The guest calls the host.
    HostCall = 5,
    /// An SError reached the guest.
    SError = 6,
}

impl ExitReason {
    /// Reads the field; `None` for a reason that RMI 1.0 does not define.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            0 => Some(Self::Sync),
            1 => Some(Self::Irq),
            2 => Some(Self::Fiq),
            3 => Some(Self::Psci),
            4 => Some(Self::RipasChange),
            5 => Some(Self::HostCall),
            6 => Some(Self::SError),
            _ => None,
        }
    }
}

/// What EL2 reports on exit.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RecExit {
    /// [`ExitReason`].
    pub exit_reason: u64,
    _pad0: [u8; 0x100 - 8],
    /// ESR_EL2, as much of it as the host may see.
    pub esr: u64,
    /// FAR_EL2, the page offset only for a realm's emulatable abort.
    pub far: u64,
    /// HPFAR_EL2: IPA\[51:12\] in bits 43:4.
    pub hpfar: u64,
    _pad1: [u8; 0x200 - 0x118],
    /// A written value, or a call's function and arguments.
    pub gprs: [u64; 31],
    _pad2: [u8; 8],
    /// ICH_HCR_EL2.
    pub gicv3_hcr: u64,
    /// List registers, HOST_LRS mode only.
    pub gicv3_lrs: [u64; 16],
    /// ICH_MISR_EL2.
    pub gicv3_misr: u64,
    /// ICH_VMCR_EL2.
    pub gicv3_vmcr: u64,
    _pad3: [u8; 0x400 - 0x398],
    /// CNTP_CTL_EL0 of the guest, with ISTATUS.
    pub cntp_ctl: u64,
    /// CNTP_CVAL_EL0, in ticks of the physical counter.
    pub cntp_cval: u64,
    /// CNTV_CTL_EL0.
    pub cntv_ctl: u64,
    /// CNTV_CVAL_EL0, in ticks of the physical counter.
    pub cntv_cval: u64,
    _pad4: [u8; 0x500 - 0x420],
    /// Start of the RIPAS change asked for, IPA.
    pub ripas_base: u64,
    /// End of it.
    pub ripas_top: u64,
    /// RIPAS asked for.
    pub ripas_value: u8,
    _pad5: [u8; 0x600 - 0x511],
    /// Immediate of a host call.
    pub imm: u16,
    _pad6: [u8; 0x6f0 - 0x602],
    /// Vendor, plain guests only: ELR_EL2, the guest's program counter.
    pub elr: u64,
    /// Vendor, plain guests only: SPSR_EL2.
    pub spsr: u64,
    /// PMU overflow status.
    pub pmu_ovf_status: u64,
    _pad7: [u8; 0x800 - 0x708],
}

/// The whole page: entry at 0, exit at 0x800.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RecRun {
    /// Read by `REC_ENTER`.
    pub enter: RecEnter,
    /// Written by `REC_ENTER`.
    pub exit: RecExit,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_is_the_specifications() {
        assert_eq!(size_of::<RecRun>(), 0x1000);
        assert_eq!(offset_of!(RecRun, exit), 0x800);
        assert_eq!(offset_of!(RecEnter, gprs), 0x200);
        assert_eq!(offset_of!(RecEnter, gicv3_hcr), 0x300);
        assert_eq!(offset_of!(RecEnter, gicv3_lrs), 0x308);
        assert_eq!(offset_of!(RecExit, esr), 0x100);
        assert_eq!(offset_of!(RecExit, far), 0x108);
        assert_eq!(offset_of!(RecExit, hpfar), 0x110);
        assert_eq!(offset_of!(RecExit, gprs), 0x200);
        assert_eq!(offset_of!(RecExit, gicv3_hcr), 0x300);
        assert_eq!(offset_of!(RecExit, gicv3_lrs), 0x308);
        assert_eq!(offset_of!(RecExit, gicv3_misr), 0x388);
        assert_eq!(offset_of!(RecExit, gicv3_vmcr), 0x390);
        assert_eq!(offset_of!(RecExit, cntp_ctl), 0x400);
        assert_eq!(offset_of!(RecExit, cntv_cval), 0x418);
        assert_eq!(offset_of!(RecExit, ripas_base), 0x500);
        assert_eq!(offset_of!(RecExit, ripas_value), 0x510);
        assert_eq!(offset_of!(RecExit, imm), 0x600);
        assert_eq!(offset_of!(RecExit, pmu_ovf_status), 0x700);
    }
}

//! What a guest can write in a CPU, and why no other world reads it: one table,
//! against which the hostile host holds every register that a guest's write has
//! changed on the machine (`tests/src/bin/hostile/worlds.rs`).
//!
//! The worlds are the host and each vCPU. A register that a guest can write is
//! *switched*: each world has its own value; or *trapped*: a guest neither reads
//! nor changes what the CPU has, and EL2 emulates one for each vCPU or has it
//! undefined. Registers that only EL2 and EL3 reach have no row.
//!
//! The state that virtual copies hold counts: while HCR_EL2.AMO is set, a guest's
//! DISR_EL1 is VDISR_EL2, and with FMO and IMO its ICC registers are ICV.

use arm64::bits;

use super::{CPTR, GUEST_HCR, MDCR};

/// What becomes of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Each world has its own: [`super::context::El1`], by name.
    El1,
    /// Each world has its own: by whom.
    Switched(&'static str),
    /// A guest's access traps, by what, and EL2 keeps each vCPU's own value.
    Emulated(Trap),
    /// A guest's access traps, by what: there is nothing behind it.
    Trapped(Trap),
}

/// What traps a guest's access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// Bits of HCR_EL2 that are set.
    Hcr(u64),
    /// Bits of HCR_EL2 that are clear.
    HcrClear(u64),
    /// Bits of CPTR_EL2.
    Cptr(u64),
    /// Bits of MDCR_EL2.
    Mdcr(u64),
    /// Bits of MDCR_EL2 that are clear.
    MdcrClear(u64),
    /// HCRX_EL2 is zero.
    HcrxZero,
    /// HFGRTR_EL2 and the like are zero: their inverted bits trap.
    FgtZero,
    /// CNTHCTL_EL2.EL1PCEN is clear.
    Timer,
    /// ICC_SRE_EL2.Enable is clear.
    Sre,
    /// MPAM2_EL2 traps.
    Mpam,
}

/// Any number, in a [`Row::at`].
pub const ANY: u8 = 0xff;

/// A register, or some that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name in the manual.
    pub name: &'static str,
    /// Op0, Op1, CRn, CRm, Op2, or [`ANY`].
    pub at: [u8; 5],
    /// What becomes of it.
    pub fate: Fate,
}

/// The row of a register: the one that fits it and least else.
pub fn of(at: [u8; 5]) -> Option<&'static Row> {
    let fits = |row: &&Row| row.at.iter().zip(at).all(|(&n, m)| n == ANY || n == m);
    let width = |row: &&Row| row.at.iter().filter(|&&n| n == ANY).count();
    TABLE.iter().filter(fits).min_by_key(width)
}

const fn row(name: &'static str, at: [u8; 5], fate: Fate) -> Row {
    Row { name, at, fate }
}

use Fate::{El1, Emulated, Switched, Trapped};
use Trap::{Cptr, FgtZero, Hcr, HcrClear, HcrxZero, Mdcr, MdcrClear, Mpam, Sre, Timer};

/// The program status goes by SPSR_EL2.
const PSTATE: Fate = Switched("Gprs::pstate");
const KEYS: Fate = Switched("El1::keys");
const FP: Fate = Switched("FpState");
const VIRTUAL_TIMER: Fate = Switched("VirtualTimer");
/// The guest's is the virtual one, the host's the physical one.
const INTERFACE: Fate = Switched("gic::VirtualInterface");

/// The table.
pub const TABLE: &[Row] = &[
    row("SCTLR_EL1", [3, 0, 1, 0, 0], El1),
    row("CPACR_EL1", [3, 0, 1, 0, 2], El1),
    row("TTBR0_EL1", [3, 0, 2, 0, 0], El1),
    row("TTBR1_EL1", [3, 0, 2, 0, 1], El1),
    row("TCR_EL1", [3, 0, 2, 0, 2], El1),
    row("SPSR_EL1", [3, 0, 4, 0, 0], El1),
    row("ELR_EL1", [3, 0, 4, 0, 1], El1),
    row("SP_EL0", [3, 0, 4, 1, 0], El1),
    row("SP_EL1", [3, 4, 4, 1, 0], El1),
    row("AFSR0_EL1", [3, 0, 5, 1, 0], El1),
    row("AFSR1_EL1", [3, 0, 5, 1, 1], El1),
    row("ESR_EL1", [3, 0, 5, 2, 0], El1),
    row("FAR_EL1", [3, 0, 6, 0, 0], El1),
    row("PAR_EL1", [3, 0, 7, 4, 0], El1),
    row("MAIR_EL1", [3, 0, 10, 2, 0], El1),
    row("AMAIR_EL1", [3, 0, 10, 3, 0], El1),
    row("VBAR_EL1", [3, 0, 12, 0, 0], El1),
    row("CONTEXTIDR_EL1", [3, 0, 13, 0, 1], El1),
    row("TPIDR_EL1", [3, 0, 13, 0, 4], El1),
    row("CNTKCTL_EL1", [3, 0, 14, 1, 0], El1),
    row("CSSELR_EL1", [3, 2, 0, 0, 0], El1),
    row(
        "CCSIDR_EL1, CCSIDR2_EL1",
        [3, 1, 0, 0, ANY],
        Switched("CSSELR_EL1"),
    ),
    row("TPIDR_EL0", [3, 3, 13, 0, 2], El1),
    row("TPIDRRO_EL0", [3, 3, 13, 0, 3], El1),
    // Trapped too: a guest sets but a few bits of it.
    row("MDSCR_EL1", [2, 0, 0, 2, 2], El1),
    row("APIAKey, APIBKey", [3, 0, 2, 1, ANY], KEYS),
    row("APDAKey, APDBKey", [3, 0, 2, 2, ANY], KEYS),
    row("APGAKey", [3, 0, 2, 3, ANY], KEYS),
    row("FPCR, FPSR", [3, 3, 4, 4, ANY], FP),
    row("SPSel, CurrentEL, PAN, UAO", [3, 0, 4, 2, ANY], PSTATE),
    row("ALLINT", [3, 0, 4, 3, 0], PSTATE),
    row("NZCV, DAIF, DIT, SSBS, TCO", [3, 3, 4, 2, ANY], PSTATE),
    row(
        "CNTV_TVAL, CTL, CVAL_EL0",
        [3, 3, 14, 3, ANY],
        VIRTUAL_TIMER,
    ),
    row("DISR_EL1", [3, 0, 12, 1, 1], Switched("El1::vdisr")),
    // The GIC's.
    row("ICC_PMR_EL1", [3, 0, 4, 6, 0], INTERFACE),
    row(
        "ICC_SGI1R_EL1",
        [3, 0, 12, 11, 5],
        Trapped(Hcr(bits!(HCR_EL2: IMO))),
    ),
    row(
        "ICC_ASGI1R_EL1",
        [3, 0, 12, 11, 6],
        Trapped(Hcr(bits!(HCR_EL2: IMO))),
    ),
    row(
        "ICC_SGI0R_EL1",
        [3, 0, 12, 11, 7],
        Trapped(Hcr(bits!(HCR_EL2: FMO))),
    ),
    row("ICC_SRE_EL1", [3, 0, 12, 12, 5], Trapped(Sre)),
    row("ICC_IAR0, BPR0, AP0R", [3, 0, 12, 8, ANY], INTERFACE),
    row("ICC_AP1R", [3, 0, 12, 9, ANY], INTERFACE),
    row("ICC_DIR, RPR", [3, 0, 12, 11, ANY], INTERFACE),
    row(
        "ICC_IAR1, BPR1, CTLR, IGRPEN",
        [3, 0, 12, 12, ANY],
        INTERFACE,
    ),
    // What a guest is kept from.
    row(
        "CNTP_TVAL, CTL, CVAL_EL0",
        [3, 3, 14, 2, ANY],
        Emulated(Timer),
    ),
    row(
        "ACTLR_EL1",
        [3, 0, 1, 0, 1],
        Trapped(Hcr(bits!(HCR_EL2: TACR))),
    ),
    row(
        "RGSR_EL1, GCR_EL1",
        [3, 0, 1, 0, ANY],
        Trapped(HcrClear(bits!(HCR_EL2: ATA))),
    ),
    row(
        "TFSR_EL1, TFSRE0_EL1",
        [3, 0, 5, 6, ANY],
        Trapped(HcrClear(bits!(HCR_EL2: ATA))),
    ),
    row(
        "ZCR_EL1",
        [3, 0, 1, 2, 0],
        Trapped(Cptr(bits!(CPTR_EL2: TZ))),
    ),
    row(
        "TRFCR_EL1",
        [3, 0, 1, 2, 1],
        Trapped(Mdcr(bits!(MDCR_EL2: TTRF))),
    ),
    row(
        "SMPRI_EL1, SMCR_EL1",
        [3, 0, 1, 2, ANY],
        Trapped(Cptr(bits!(CPTR_EL2: TSM))),
    ),
    row("SVCR", [3, 3, 4, 2, 2], Trapped(Cptr(bits!(CPTR_EL2: TSM)))),
    row("SCTLR2_EL1", [3, 0, 1, 0, 3], Trapped(HcrxZero)),
    row("TCR2_EL1", [3, 0, 2, 0, 3], Trapped(HcrxZero)),
    row(
        "GCSCR_EL1, GCSPR, GCSCRE0",
        [3, 0, 2, 5, ANY],
        Trapped(FgtZero),
    ),
    row("GCSPR_EL0", [3, 3, 2, 5, 1], Trapped(FgtZero)),
    row("FPMR", [3, 3, 4, 4, 2], Trapped(HcrxZero)),
    row(
        "PIRE0, PIR, POR, S2POR_EL1",
        [3, 0, 10, 2, ANY],
        Trapped(FgtZero),
    ),
    row("POR_EL0", [3, 3, 10, 2, 4], Trapped(FgtZero)),
    row("AMAIR2_EL1", [3, 0, 10, 3, 1], Trapped(FgtZero)),
    row("RCWMASK, RCWSMASK_EL1", [3, 0, 13, 0, 6], Trapped(FgtZero)),
    row("RCWSMASK_EL1", [3, 0, 13, 0, 3], Trapped(FgtZero)),
    row("ACCDATA_EL1", [3, 0, 13, 0, 5], Trapped(FgtZero)),
    row("TPIDR2_EL0", [3, 3, 13, 0, 5], Trapped(FgtZero)),
    row(
        "SCXTNUM_EL1",
        [3, 0, 13, 0, 7],
        Trapped(HcrClear(bits!(HCR_EL2: EnSCXT))),
    ),
    row(
        "SCXTNUM_EL0",
        [3, 3, 13, 0, 7],
        Trapped(HcrClear(bits!(HCR_EL2: EnSCXT))),
    ),
    row(
        "ERRSELR, ERX*",
        [3, 0, 5, 3, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TERR))),
    ),
    row(
        "ERX*",
        [3, 0, 5, 4, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TERR))),
    ),
    row(
        "ERXMISC*",
        [3, 0, 5, 5, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TERR))),
    ),
    row(
        "LORSA, LOREA, LORN, LORC_EL1",
        [3, 0, 10, 4, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TLOR))),
    ),
    row("MPAM1_EL1, MPAM0_EL1", [3, 0, 10, 5, ANY], Trapped(Mpam)),
    row(
        "PMINTENSET, CLR_EL1",
        [3, 0, 9, 14, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TPM))),
    ),
    row(
        "PMSCR_EL1, PMS*",
        [3, 0, 9, 9, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TPMS))),
    ),
    row(
        "PMBLIMITR, PMBPTR, TRB*",
        [3, 0, 9, ANY, ANY],
        Trapped(MdcrClear(bits!(MDCR_EL2: E2TB, E2PB))),
    ),
    row(
        "PMCR_EL0, PM*",
        [3, 3, 9, ANY, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TPM, TPMCR))),
    ),
    row(
        "PMEVCNTR, PMEVTYPER, PMCCFILTR",
        [3, 3, 14, ANY, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TPM))),
    ),
    row(
        "AMCR_EL0, AM*",
        [3, 3, 13, ANY, ANY],
        Trapped(Cptr(bits!(CPTR_EL2: TAM))),
    ),
    row(
        "IMPDEF of EL1",
        [3, 0, 11, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF of EL1",
        [3, 0, 15, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF",
        [3, 1, 11, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF",
        [3, 1, 15, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF",
        [3, 2, 11, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF",
        [3, 2, 15, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF of EL0",
        [3, 3, 11, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "IMPDEF of EL0",
        [3, 3, 15, ANY, ANY],
        Trapped(Hcr(bits!(HCR_EL2: TIDCP))),
    ),
    row(
        "trace unit",
        [2, 1, ANY, ANY, ANY],
        Trapped(Cptr(bits!(CPTR_EL2: TTA))),
    ),
    row(
        "OSLAR, OSDLR, DBGPRCR_EL1",
        [2, 0, 1, ANY, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TDOSA))),
    ),
    row(
        "DBGBVR, DBGWVR, MDCCINT, OSDTR",
        [2, 0, ANY, ANY, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TDA))),
    ),
    row(
        "DBGDTR_EL0",
        [2, 3, ANY, ANY, ANY],
        Trapped(Mdcr(bits!(MDCR_EL2: TDA))),
    ),
];

/// The traps that a row names, as the CPU's registers have them for a guest, all
/// features there: true when they hold.
pub fn is_set(trap: Trap) -> bool {
    match trap {
        Hcr(bits) => GUEST_HCR & bits == bits,
        HcrClear(bits) => GUEST_HCR & bits == 0,
        Cptr(bits) => CPTR & bits == bits,
        Mdcr(bits) => MDCR & bits == bits,
        MdcrClear(bits) => MDCR & bits == 0,
        // Written with constants: `Cpu::new`, `Cpu::guest_traps`, `Gic::borrow`.
        HcrxZero | FgtZero | Timer | Sre | Mpam => true,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::context::El1 as Registers;
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    fn plain(name: &str) -> String {
        name.to_ascii_lowercase()
    }

    #[test]
    fn the_switched_registers_are_those_of_the_switch() {
        let rows = TABLE.iter().filter(|row| row.fate == El1);
        let mut table: Vec<_> = rows.map(|row| plain(row.name)).collect();
        let mut code: Vec<_> = Registers::NAMES.iter().map(|name| plain(name)).collect();
        table.sort();
        code.sort();
        assert_eq!(table, code);
    }

    #[test]
    fn every_trap_that_is_named_is_set() {
        for row in TABLE {
            if let Trapped(trap) | Emulated(trap) = row.fate {
                assert!(is_set(trap), "{}: {trap:?}", row.name);
            }
        }
    }

    #[test]
    fn each_register_has_one_row() {
        for (n, row) in TABLE.iter().enumerate() {
            let same = TABLE[..n].iter().find(|before| before.at == row.at);
            assert!(same.is_none(), "{} is there twice", row.name);
            if !row.at.contains(&ANY) {
                assert_eq!(of(row.at).map(|found| found.name), Some(row.name));
            }
        }
        assert_eq!(of([3, 3, 4, 2, 2]).map(|row| row.name), Some("SVCR"));
        assert!(
            of([3, 0, 0, 0, 0]).is_none(),
            "MIDR_EL1 is nobody's to write"
        );
    }
}

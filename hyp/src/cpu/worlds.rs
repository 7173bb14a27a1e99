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
use arm64::regs::*;
use arm64::sysreg::Sysreg;

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
    /// HCRX_EL2 is zero, but for MSCEn.
    HcrxClear,
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

const fn at(register: Sysreg) -> [u8; 5] {
    let r = register;
    [
        r.op0() as u8,
        r.op1() as u8,
        r.crn() as u8,
        r.crm() as u8,
        r.op2() as u8,
    ]
}

use Fate::{El1, Emulated, Switched, Trapped};
use Trap::{Cptr, FgtZero, Hcr, HcrClear, HcrxClear, Mdcr, MdcrClear, Mpam, Sre, Timer};

/// The program status goes by SPSR_EL2.
const PSTATE: Fate = Switched("Gprs::pstate");
const KEYS: Fate = Switched("El1::keys");
const FP: Fate = Switched("FpState");
const VIRTUAL_TIMER: Fate = Switched("VirtualTimer");
/// The guest's is the virtual one, the host's the physical one.
const INTERFACE: Fate = Switched("gic::VirtualInterface");

/// Rows by what becomes of them: name, Op0, Op1, CRn, CRm, Op2. Where two fit, the
/// one with more numbers counts.
macro_rules! table {
    (El1: $($register:ident)+; $($fate:expr => $($name:literal [$($n:tt)+]),+;)*) => {
        /// The table.
        pub const TABLE: &[Row] = &[
            $(Row { name: $register.name(), at: at($register::ENCODING), fate: El1 },)+
            $($(Row { name: $name, at: [$(table!(@number $n)),+], fate: $fate },)+)*
        ];
    };
    (@number _) => { ANY };
    (@number $n:literal) => { $n };
}

table! {
    // MDSCR_EL1 is trapped too: a guest sets but a few bits of it.
    El1: SCTLR_EL1 CPACR_EL1 TTBR0_EL1 TTBR1_EL1 TCR_EL1 SPSR_EL1 ELR_EL1 SP_EL0 SP_EL1
        AFSR0_EL1 AFSR1_EL1 ESR_EL1 FAR_EL1 PAR_EL1 MAIR_EL1 AMAIR_EL1 VBAR_EL1
        CONTEXTIDR_EL1 TPIDR_EL1 CNTKCTL_EL1 CSSELR_EL1 TPIDR_EL0 TPIDRRO_EL0 MDSCR_EL1;
    Switched("CSSELR_EL1") =>
        "CCSIDR_EL1, CCSIDR2_EL1" [3 1 0 0 _];
    KEYS =>
        "APIAKey, APIBKey" [3 0 2 1 _],
        "APDAKey, APDBKey" [3 0 2 2 _],
        "APGAKey" [3 0 2 3 _];
    FP =>
        "FPCR, FPSR" [3 3 4 4 _];
    PSTATE =>
        "SPSel, CurrentEL, PAN, UAO" [3 0 4 2 _],
        "ALLINT" [3 0 4 3 0],
        "NZCV, DAIF, DIT, SSBS, TCO" [3 3 4 2 _];
    VIRTUAL_TIMER =>
        "CNTV_TVAL, CTL, CVAL_EL0" [3 3 14 3 _];
    Switched("El1::vdisr") =>
        "DISR_EL1" [3 0 12 1 1];
    INTERFACE =>
        "ICC_PMR_EL1" [3 0 4 6 0],
        "ICC_IAR0, BPR0, AP0R" [3 0 12 8 _],
        "ICC_AP1R" [3 0 12 9 _],
        "ICC_DIR, RPR" [3 0 12 11 _],
        "ICC_IAR1, BPR1, CTLR, IGRPEN" [3 0 12 12 _];
    Trapped(Hcr(bits!(HCR_EL2: IMO))) =>
        "ICC_SGI1R_EL1" [3 0 12 11 5],
        "ICC_ASGI1R_EL1" [3 0 12 11 6];
    Trapped(Hcr(bits!(HCR_EL2: FMO))) =>
        "ICC_SGI0R_EL1" [3 0 12 11 7];
    Trapped(Sre) =>
        "ICC_SRE_EL1" [3 0 12 12 5];
    Emulated(Timer) =>
        "CNTP_TVAL, CTL, CVAL_EL0" [3 3 14 2 _];
    Trapped(Hcr(bits!(HCR_EL2: TACR))) =>
        "ACTLR_EL1" [3 0 1 0 1];
    Trapped(HcrClear(bits!(HCR_EL2: ATA))) =>
        "RGSR_EL1, GCR_EL1" [3 0 1 0 _],
        "TFSR_EL1, TFSRE0_EL1" [3 0 5 6 _];
    Trapped(Cptr(bits!(CPTR_EL2: TZ))) =>
        "ZCR_EL1" [3 0 1 2 0];
    Trapped(Mdcr(bits!(MDCR_EL2: TTRF))) =>
        "TRFCR_EL1" [3 0 1 2 1];
    Trapped(Cptr(bits!(CPTR_EL2: TSM))) =>
        "SMPRI_EL1, SMCR_EL1" [3 0 1 2 _],
        "SVCR" [3 3 4 2 2];
    Trapped(HcrxClear) =>
        "SCTLR2_EL1" [3 0 1 0 3],
        "TCR2_EL1" [3 0 2 0 3],
        "FPMR" [3 3 4 4 2];
    Trapped(FgtZero) =>
        "GCSCR_EL1, GCSPR, GCSCRE0" [3 0 2 5 _],
        "GCSPR_EL0" [3 3 2 5 1],
        "PIRE0, PIR, POR, S2POR_EL1" [3 0 10 2 _],
        "POR_EL0" [3 3 10 2 4],
        "AMAIR2_EL1" [3 0 10 3 1],
        "RCWMASK, RCWSMASK_EL1" [3 0 13 0 6],
        "RCWSMASK_EL1" [3 0 13 0 3],
        "ACCDATA_EL1" [3 0 13 0 5],
        "TPIDR2_EL0" [3 3 13 0 5];
    Trapped(HcrClear(bits!(HCR_EL2: EnSCXT))) =>
        "SCXTNUM_EL1" [3 0 13 0 7],
        "SCXTNUM_EL0" [3 3 13 0 7];
    Trapped(Hcr(bits!(HCR_EL2: TERR))) =>
        "ERRSELR, ERX*" [3 0 5 3 _],
        "ERX*" [3 0 5 4 _],
        "ERXMISC*" [3 0 5 5 _];
    Trapped(Hcr(bits!(HCR_EL2: TLOR))) =>
        "LORSA, LOREA, LORN, LORC_EL1" [3 0 10 4 _];
    Trapped(Mpam) =>
        "MPAM1_EL1, MPAM0_EL1" [3 0 10 5 _];
    Trapped(Mdcr(bits!(MDCR_EL2: TPM))) =>
        "PMINTENSET, CLR_EL1" [3 0 9 14 _],
        "PMEVCNTR, PMEVTYPER, PMCCFILTR" [3 3 14 _ _];
    Trapped(Mdcr(bits!(MDCR_EL2: TPMS))) =>
        "PMSCR_EL1, PMS*" [3 0 9 9 _];
    Trapped(MdcrClear(bits!(MDCR_EL2: E2TB, E2PB))) =>
        "PMBLIMITR, PMBPTR, TRB*" [3 0 9 _ _];
    Trapped(Mdcr(bits!(MDCR_EL2: TPM, TPMCR))) =>
        "PMCR_EL0, PM*" [3 3 9 _ _];
    Trapped(Cptr(bits!(CPTR_EL2: TAM))) =>
        "AMCR_EL0, AM*" [3 3 13 _ _];
    Trapped(Hcr(bits!(HCR_EL2: TIDCP))) =>
        "IMPDEF of EL1" [3 0 11 _ _],
        "IMPDEF of EL1" [3 0 15 _ _],
        "IMPDEF" [3 1 11 _ _],
        "IMPDEF" [3 1 15 _ _],
        "IMPDEF" [3 2 11 _ _],
        "IMPDEF" [3 2 15 _ _],
        "IMPDEF of EL0" [3 3 11 _ _],
        "IMPDEF of EL0" [3 3 15 _ _];
    Trapped(Cptr(bits!(CPTR_EL2: TTA))) =>
        "trace unit" [2 1 _ _ _];
    Trapped(Mdcr(bits!(MDCR_EL2: TDOSA))) =>
        "OSLAR, OSDLR, DBGPRCR_EL1" [2 0 1 _ _];
    Trapped(Mdcr(bits!(MDCR_EL2: TDA))) =>
        "DBGBVR, DBGWVR, MDCCINT, OSDTR" [2 0 _ _ _],
        "DBGDTR_EL0" [2 3 _ _ _];
}

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
        HcrxClear | FgtZero | Timer | Sre | Mpam => true,
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

    /// The page for people has all rows, and no others.
    #[test]
    fn the_page_of_worlds_is_this_table() {
        let page = include_str!("../../../docs/worlds.md");
        let begin = page.find("|---|---|---|\n").expect("a table");
        let lines = page[begin..].lines().skip(1);
        let page: Vec<_> = lines.take_while(|line| line.starts_with('|')).collect();
        let of = |trap| match trap {
            Hcr(_) | HcrClear(_) => "HCR_EL2",
            Cptr(_) => "CPTR_EL2",
            Mdcr(_) | MdcrClear(_) => "MDCR_EL2",
            HcrxClear => "HCRX_EL2",
            FgtZero => "HFGxTR_EL2",
            Timer => "CNTHCTL_EL2",
            Sre => "ICC_SRE_EL2",
            Mpam => "MPAM2_EL2",
        };
        let line = |row: &Row| {
            let (fate, by) = match row.fate {
                El1 => ("switched", "El1"),
                Switched(by) => ("switched", by),
                Emulated(trap) => ("emulated", of(trap)),
                Trapped(trap) => ("trapped", of(trap)),
            };
            std::format!("| {} | {fate} | {by} |", row.name)
        };
        let table: Vec<_> = TABLE.iter().map(line).collect();
        assert_eq!(page, table);
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

//! The interrupts of a realm whose host has the list registers (DEN0137 1.0-rel0, A6.1):
//! what it may give with an entry, and gets with an exit.

use super::format::Machine;

/// `gicv3_hcr` and `gicv3_lrs` of an entry.
pub type Given = [u64; 17];
/// Those of an exit, as they stand; `gicv3_misr` and `gicv3_vmcr`.
pub type Told = [u64; 19];

/// Bits of ICH_HCR_EL2 that are the host's: UIE, LRENPIE, NPIE, VGrp0EIE, VGrp0DIE,
/// VGrp1EIE, VGrp1DIE; TDIR.
const HOSTS: u64 = 0b1111_1110 | 1 << 14;

/// Of a list register: state, HW, the non-maskable one and what is reserved, EOI of the field that has a physical INTID otherwise.
const STATE: u64 = 0b11 << 62;
const HW: u64 = 1 << 61;
const NEVER: u64 = 0b1111 << 56 | 0b111 << 45;
const EOI: u64 = 1 << 41;

/// Whether hardware may have it.
pub fn may_be_given(machine: &Machine, given: &Given) -> bool {
    let (hcr, lrs) = (given[0], &given[1..=machine.list_registers as usize]);
    let used: Vec<u64> = lrs.iter().copied().filter(|lr| lr & STATE != 0).collect();
    let fits = |lr: &u64| {
        let physical = lr & 0x1fff << 32 & !EOI;
        // Five bits of priority are there.
        let priority = lr >> 48 & 0b111;
        let intid = lr & 0xffff_ffff;
        // SGIs, PPIs and SPIs; LPIs of 16 bits.
        let is_one = intid < 1020 || (8192..1 << 16).contains(&intid);
        lr & (HW | NEVER) == 0 && physical == 0 && priority == 0 && is_one
    };
    let intids = used.iter().map(|lr| lr & 0xffff_ffff);
    let different: std::collections::BTreeSet<u64> = intids.collect();
    hcr & !HOSTS == 0 && used.iter().all(fits) && different.len() == used.len()
}

/// What an exit tells of them: no guest here has touched them.
pub fn told(machine: &Machine, given: &Given) -> Told {
    let mut told = [0; 19];
    let count = machine.list_registers as usize;
    told[..=count].copy_from_slice(&given[..=count]);
    told
}

//! The redistributors, as the host has them: EL2 takes each access and does what
//! of it is harmless (IHI0069H, 12.11).
//!
//! A redistributor masters memory by its LPI tables, and holds the settings of
//! EL2's own interrupts. So LPIs are not there (TYPER says so, their registers
//! are RAZ/WI), GICv4's frames are not there, and of EL2's interrupts nothing can
//! be changed. All else is as the machine has it. Frames of 128 KiB follow one
//! another in each region of the device tree, whatever stands behind each in the
//! machine.

use core::ops::Range;

use arm64::syndrome::Syndrome;
use rmi::vendor::KICK_SGI;

use crate::cpu::Cpu;
use crate::cpu::gic::{Frames, Ppis, Redistributor, gicr};
use crate::cpu::pe;

/// What an access to a register does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// The machine's.
    Pass,
    /// The machine's to read; writes are ignored.
    Read,
    /// GICR_TYPER: as `Read`, but for what is of LPIs.
    Type,
    /// GICR_PIDR2: of a GICv3, whose redistributors have no frames for virtual LPIs.
    Revision,
    /// GICR_CTLR: interrupts that choose among CPUs are the host's setting.
    Control,
    /// GICR_WAKER: the host may wake the redistributor; it never sleeps again.
    Waker,
    /// A field for each interrupt, of so many bits; EL2's own stay as they are.
    Fields(u32),
    /// As `Fields(1)`, where writing ones sets or clears and zeros do nothing.
    Ones,
}

/// GICR_CTLR.DPG0, DPG1NS, DPG1S.
const CTLR_DPG: u64 = 0b111 << 24;
/// What the host sees of GICR_CTLR: RWP, DPG and UWP. EnableLPIs, CES and IR are
/// of LPIs.
const CTLR_SEEN: u64 = CTLR_DPG | 1 << 3 | 1 << 31;
/// What the host sees of GICR_TYPER: Last, DPGS, Processor_Number, PPInum,
/// Affinity_Value. PLPIS, VLPIS, Dirty, DirectLPI, RVPEID, CommonLPIAff and VSGI
/// are of LPIs; MPAM tags accesses to memory.
const TYPER_SEEN: u64 = !0 << 27 | 0xffff << 8 | 1 << 5 | 1 << 4;
/// GICR_PIDR2.ArchRev, and what it is of a GICv3.
const PIDR2_ARCH_REV: u64 = 0xf << 4;
const PIDR2_GICV3: u64 = 3 << 4;

/// The registers that do something, by offset from RD_base; the first that has it, where
/// two do. All others are
/// RAZ/WI: LPIs (PROPBASER, PENDBASER, SETLPIR, CLRLPIR, INVLPIR, INVALLR,
/// SYNCR), MPAM, the secure world's (IGRPMODR, NSACR), implementation-defined.
/// Those of extended PPIs (GICv3.1) follow the ones of SGIs and PPIs.
const REGISTERS: [(Range<u64>, Rule); 18] = [
    (gicr::CTLR..0x04, Rule::Control),
    (0x04..gicr::TYPER, Rule::Read), // IIDR
    (gicr::TYPER..0x10, Rule::Type),
    (gicr::STATUSR..0x14, Rule::Pass),
    (gicr::WAKER..0x18, Rule::Waker),
    (0xffe8..0xffec, Rule::Revision),
    (0xffd0..0x1_0000, Rule::Read),  // PIDR, CIDR
    sgi(0x080, 3, Rule::Fields(1)),  // IGROUPR
    sgi(0x100, 3, Rule::Ones),       // ISENABLER
    sgi(0x180, 3, Rule::Ones),       // ICENABLER
    sgi(0x200, 3, Rule::Ones),       // ISPENDR
    sgi(0x280, 3, Rule::Ones),       // ICPENDR
    sgi(0x300, 3, Rule::Ones),       // ISACTIVER
    sgi(0x380, 3, Rule::Ones),       // ICACTIVER
    sgi(0x400, 24, Rule::Fields(8)), // IPRIORITYR
    sgi(0xc00, 6, Rule::Fields(2)),  // ICFGR
    sgi(0xf80, 3, Rule::Fields(1)),  // INMIR
    sgi(0xffd0, 12, Rule::Read),
];

/// A row of registers in the frame SGI_base.
const fn sgi(offset: u64, words: u64, rule: Rule) -> (Range<u64>, Rule) {
    let at = gicr::SGI_BASE + offset;
    (at..at + 4 * words, rule)
}

/// An access of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    /// Offset from RD_base.
    offset: u64,
    /// Bytes.
    size: u32,
    /// What is written; `None` for a read.
    write: Option<u64>,
}

impl Access {
    /// Whether the architecture has this access (IHI0069H, 12.1.3): 32 bits, for
    /// TYPER 64 too, for priorities 8 too.
    fn is_allowed(&self, rule: Rule) -> bool {
        let sized = match self.size {
            1 => rule == Rule::Fields(8),
            4 => true,
            8 => self.offset == gicr::TYPER,
            _ => false,
        };
        sized && self.offset.is_multiple_of(u64::from(self.size))
    }

    /// The bits of this access that belong to `intids`, a bit for each SGI and
    /// PPI, in a row of fields of `bits` bits that begins at `row`.
    fn fields_of(&self, row: u64, bits: u32, intids: u32) -> u64 {
        let first = (self.offset - row) * 8 / u64::from(bits);
        let count = self.size * 8 / bits;
        let field = (1u64 << bits) - 1;
        (0..count)
            .filter(|n| {
                intids
                    .checked_shr((first + u64::from(*n)) as u32)
                    .unwrap_or(0)
                    & 1
                    != 0
            })
            .fold(0, |mask, n| mask | field << (n * bits))
    }
}

/// EL2's own interrupts, bits by INTID.
#[derive(Clone, Copy, Debug)]
struct Own {
    /// Whose state the host does not see.
    hidden: u32,
    /// Which it cannot change.
    kept: u32,
}

impl Own {
    fn new(ppi: &Ppis) -> Self {
        let hidden = 1 << (ppi.maintenance & 31) | 1 << (ppi.hyp_timer & 31);
        // A kick that comes while the host runs is the host's: it sees that SGI.
        let kept = hidden | 1 << KICK_SGI;
        Self { hidden, kept }
    }
}

/// Does an access to a redistributor; what is read.
fn perform(frame: Redistributor, own: Own, access: Access) -> u64 {
    let found = REGISTERS.iter().find(|row| row.0.contains(&access.offset));
    let Some((row, rule)) = found.filter(|row| access.is_allowed(row.1)) else {
        return 0;
    };
    let (offset, size) = (access.offset, access.size);
    let fields = |bits, intids| access.fields_of(row.start, bits, intids);
    let Some(value) = access.write else {
        let seen = match *rule {
            Rule::Pass | Rule::Read | Rule::Waker => !0,
            Rule::Type => TYPER_SEEN >> (8 * (access.offset - row.start)),
            Rule::Revision => return frame.read(offset, size) & !PIDR2_ARCH_REV | PIDR2_GICV3,
            Rule::Control => CTLR_SEEN,
            Rule::Fields(bits) => !fields(bits, own.hidden),
            Rule::Ones => !fields(1, own.hidden),
        };
        return frame.read(offset, size) & seen;
    };
    let replace = |mask: u64| {
        frame.modify(offset, size, |old| old & !mask | value & mask);
    };
    match *rule {
        Rule::Pass => frame.write(offset, size, value),
        Rule::Read | Rule::Type | Rule::Revision => {}
        Rule::Control => replace(CTLR_DPG),
        Rule::Waker => replace(gicr::WAKER_PROCESSOR_SLEEP & !value),
        Rule::Fields(bits) => replace(!fields(bits, own.kept)),
        Rule::Ones => frame.write(offset, size, value & !fields(1, own.kept)),
    }
    0
}

/// What the host has at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A redistributor of the machine, and the offset in it.
    Redistributor(Redistributor, u64),
    /// Space between two of them.
    Between,
}

/// Finds the redistributor that the host has at `ipa`.
///
/// # Safety
/// As for [`Redistributor::all_of`], for each region.
unsafe fn locate(frames: &Frames, ipa: u64) -> Option<Place> {
    let (regions, stride) = (&frames.redistributors, frames.stride);
    let region = regions.iter().find(|region| region.contains(ipa))?;
    let step = stride.unwrap_or(gicr::SIZE).max(gicr::SIZE);
    let (index, offset) = ((ipa - region.base()) / step, (ipa - region.base()) % step);
    let index = usize::try_from(index).ok()?;
    // SAFETY: the caller's promise.
    let (frame, _) = unsafe { Redistributor::all_of(*region, stride) }.nth(index)?;
    Some(if offset < gicr::SIZE {
        Place::Redistributor(frame, offset)
    } else {
        Place::Between
    })
}

/// Does the access of the host's that was trapped with `esr` at `ipa`; false when
/// there is no redistributor, or the syndrome does not describe the access.
pub fn access(cpu: &mut Cpu, frames: &Frames, esr: Syndrome, ipa: u64) -> bool {
    if !esr.is_emulatable() {
        return false;
    }
    // SAFETY: the device tree's redistributors, which EL2 maps.
    let Some(place) = (unsafe { locate(frames, ipa) }) else {
        return false;
    };
    let gprs = &mut cpu.host.gprs;
    let write = esr.is_write().then(|| esr.cut(gprs.get(esr.register())));
    let value = match place {
        Place::Between => 0,
        Place::Redistributor(frame, offset) => {
            let access = Access {
                offset,
                size: esr.size(),
                write,
            };
            let value = perform(frame, Own::new(&frames.ppi), access);
            if write.is_some()
                && let Some(pe) = pe::all().iter().find(|pe| pe.gicr == frame)
            {
                pe.note_redistributor_change();
            }
            value
        }
    };
    if write.is_none() {
        gprs.set(esr.register(), esr.extend(value));
    }
    true
}

#[cfg(test)]
mod tests;

//! Where a guest's abort struck, and whether its syndrome describes all of the access.

use super::fault::faulting_ipa;
use super::translate;
use crate::memory::guarded::{self, Look, Taken};
use arm64::regs::{FAR_EL2, PAR_EL1, SCTLR_EL1};
use arm64::syndrome::{Class, Syndrome};

/// What stage 1 translates at once, at the least; and stage 2.
const PAGE: u64 = 4096;
/// PAR_EL1.PA.
const PAR_PAGE: u64 = 0x000f_ffff_ffff_f000;
/// SCTLR_EL1: stage 1 is on; alignment is checked.
const SCTLR_M: u64 = 1 << 0;
const SCTLR_A: u64 = 1 << 1;

/// The IPA that an abort struck. HPFAR_EL2 is not written for permission faults
/// on the access itself: those are looked up as the guest would. `None` when its
/// tables do not lead there any more: what it does again meets what they say now. An
/// error of the machine's has struck none that is known: 0.
pub fn fault_ipa(esr: Syndrome, pstate: u64) -> Option<u64> {
    if esr.has_hpfar() || !esr.fault().is_of_address() {
        return Some(faulting_ipa(esr));
    }
    let far = FAR_EL2.get();
    let par = translate(far, look(esr, pstate))?;
    Some(par & PAR_PAGE | (far & (PAGE - 1)))
}

/// How to look an access up after the fact: no narrower than it was, or a guest
/// would meet its fault for ever; and no wider than can be known, so that what its
/// tables have come to forbid is the guest's own fault.
///
/// PSTATE.PAN has no part in it. The forms that use it (`at s1e1rp`, `s1e1wp`)
/// use EL2's own, and LDTR, which it does not bind, looks the same as LDR; an
/// access that PAN forbids never came as far as stage 2. What EL0 may do there,
/// EL1 may do without PAN: the look for EL1 is wide enough for LDTR and STTR.
///
/// Fetches and cache maintenance are reads of EL1, which any page allows: memory
/// may be for execution only, and maintenance asks for less than a read does.
fn look(esr: Syndrome, pstate: u64) -> Look {
    // M[3:0] of AArch64's EL0 and AArch32's User mode.
    let is_el0 = pstate & 0b1111 == 0;
    let is_access = esr.class() == Class::DATA_ABORT_LOWER && !esr.is_cache_maintenance();
    match (is_access, is_el0, esr.is_write()) {
        (false, ..) | (_, false, false) => Look::El1Read,
        (_, false, true) => Look::El1Write,
        (_, true, false) => Look::El0Read,
        (_, true, true) => Look::El0Write,
    }
}

/// A data abort's syndrome, without its access where that is more than FAR describes:
/// what runs on into the next page, which may lie anywhere; and what began in the
/// page before, of which FAR holds the second part's address alone.
///
/// `alone`: nobody looks at the instruction else. Then an access of Device memory is whole:
/// what comes to it from another page is none of the architecture's (DDI0487, B2.10.2).
pub fn as_told(esr: Syndrome, pstate: u64, alone: bool) -> Syndrome {
    let far = FAR_EL2.get();
    let is_whole = || alone && is_device(far, look(esr, pstate));
    let comes_from = |before| page_is_there(before) && !is_whole();
    // An error of the machine's has no address that an access could be served at.
    let nowhere = !esr.fault().is_of_address();
    if esr.has_access() && (nowhere || is_parted(esr, far, comes_from)) {
        esr.without_access()
    } else {
        esr
    }
}

/// Whether accesses of memory need not be aligned: stage 1 is on, and does not ask
/// for it.
pub const fn may_be_unaligned(sctlr: u64) -> bool {
    sctlr & (SCTLR_M | SCTLR_A) == SCTLR_M
}

/// Whether the access that was taken, at the start of a page, may be the end of one
/// that began in the page before, if such need not be aligned.
#[inline(always)]
pub fn is_second(taken: &Taken) -> bool {
    let saved = PAR_EL1.get();
    let is_there = guarded::is_there(taken.far.wrapping_sub(1), taken);
    PAR_EL1.set(saved);
    is_there
}

/// Whether the access at `far` may be a part of one. `is_there`: of an address, in
/// the page before.
fn is_parted(esr: Syndrome, far: u64, is_there: impl FnOnce(u64) -> bool) -> bool {
    let (offset, size) = (far % PAGE, u64::from(esr.size()));
    offset + size > PAGE || (offset == 0 && size > 1 && is_there(far.wrapping_sub(1)))
}

/// Whether an access that is not aligned could have passed this address and come
/// to the next: both stages lead somewhere.
fn page_is_there(address: u64) -> bool {
    may_be_unaligned(SCTLR_EL1.get()) && translate(address, Look::BothEl1Read).is_some()
}

/// Whether stage 1 maps this as Device memory.
fn is_device(address: u64, look: Look) -> bool {
    /// PAR_EL1.ATTR\[7:4\], as MAIR_EL1 has it: 0, of all kinds of Device memory.
    const NORMAL: u64 = 0xf << 60;
    translate(address, look).is_some_and(|par| par & NORMAL == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WNR: u64 = 1 << 6;
    const CM: u64 = 1 << 8;
    const ISV: u64 = 1 << 24;

    #[test]
    fn an_access_is_looked_up_as_what_it_was() {
        let data = 0x24 << 26 | 0x0f;
        for (esr, pstate, expected) in [
            (data, 0x3c5, Look::El1Read),
            (data, 0x3c4, Look::El1Read),
            (data | WNR, 0x3c5, Look::El1Write),
            (data, 0x000, Look::El0Read),
            (data | WNR, 0x000, Look::El0Write),
            // AArch32's User mode.
            (data | WNR, 0x010, Look::El0Write),
            // With PAN.
            (data | WNR, 0x40_0005, Look::El1Write),
            // Of caches, which counts as a write; and fetches.
            (data | WNR | CM, 0x000, Look::El1Read),
            (0x20 << 26 | 0x0f, 0x000, Look::El1Read),
            (0x20 << 26 | 0x0f, 0x3c5, Look::El1Read),
        ] {
            assert_eq!(
                look(Syndrome(esr), pstate),
                expected,
                "{esr:#x} {pstate:#x}"
            );
        }
    }

    #[test]
    fn what_may_be_the_second_part_of_an_access_is_not_the_first() {
        let of = |size_log2: u64| Syndrome(0x24 << 26 | ISV | size_log2 << 22);
        for (size, far, before, parted) in [
            (2, 0x1000, true, true),
            (1, 0x1000, true, true),
            (2, 0x1000, false, false),
            // A byte has no parts; of others FAR holds the address.
            (0, 0x1000, true, false),
            (2, 0x1004, true, false),
            (2, 0x1001, true, false),
            // What runs on into the next page.
            (2, 0x1ffd, false, true),
            (3, 0x1ff9, false, true),
            (3, 0x1ff8, true, false),
            (0, 0x1fff, true, false),
        ] {
            let asked = |at| {
                assert_eq!(at, far - 1);
                before
            };
            assert_eq!(is_parted(of(size), far, asked), parted, "{size} {far:#x}");
        }
    }
}

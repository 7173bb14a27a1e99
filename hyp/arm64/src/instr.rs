//! One function per instruction.
//!
//! What is here loses nothing, and steers no translation; [`steering`] has the
//! rest.
//!
//! [`steering`]: crate::steering

use crate::regs::CTR_EL0;

/// Instructions, one a row: function, name in the manual, what the assembler is
/// given where it takes the name for an extension's, and the operand.
macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident $text:literal $(= $system:literal)? $(($operand:ident))?;)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            pub fn $name($($operand: u64)?) {
                #[cfg(target_os = "none")]
                // SAFETY: barriers, hints, address translations and maintenance
                // that cleans before it invalidates change no value in memory, and
                // no register that the compiler knows of.
                unsafe {
                    core::arch::asm!(
                        instructions!(@told $text $($system)?; $($operand)?),
                        $(in(reg) $operand,)?
                        options(nostack, preserves_flags)
                    );
                }
                #[cfg(not(target_os = "none"))]
                crate::recording::instruction($text, None$(.or(Some($operand)))?);
            }
        )*
        /// What the assembler is given in the place of which name.
        #[cfg(test)]
        const TOLD: &[(&str, &str)] = &[$($(($text, $system),)?)*];
    };
    (@told $text:literal $system:literal; $operand:ident) => { concat!($system, ", {}") };
    (@told $text:literal; $operand:ident) => { concat!($text, ", {}") };
    (@told $text:literal;) => { $text };
}

instructions! {
    /// Issues `isb`: what follows sees the context that was set before.
    isb "isb";
    /// Issues `dsb ishst`: stores before it are seen by every walker.
    dsb_ishst "dsb ishst";
    /// Issues `dsb ish`: completes broadcast TLB maintenance.
    dsb_ish "dsb ish";
    /// Issues `dsb nshst`: as `dsb ishst`, for this PE's walker.
    dsb_nshst "dsb nshst";
    /// Issues `dsb nsh`: completes this PE's TLB maintenance.
    dsb_nsh "dsb nsh";
    /// Issues `dsb sy`: completes every earlier access and cache maintenance.
    dsb_sy "dsb sy";
    /// Issues `wfi`: waits until an interrupt is pending, masked or not.
    wfi "wfi";
    /// Issues `wfe`: waits for an event.
    wfe "wfe";
    /// Masks IRQs of this level.
    irq_off "msr daifset, #2";
    /// Takes IRQs of this level.
    irq_on "msr daifclr, #2";
    /// Takes system errors of this level.
    serror_on "msr daifclr, #4";
    /// Issues `ic iallu`: invalidates this PE's instruction cache.
    ic_iallu "ic iallu";
    /// Issues `ic ialluis`: invalidates every PE's instruction cache.
    ic_ialluis "ic ialluis";
    /// Issues `dc civac`: cleans and invalidates the line of an address to the
    /// point of coherency.
    dc_civac "dc civac" (address);
    /// Issues `dc cvau`: cleans the line of an address for instruction fetches.
    dc_cvau "dc cvau" (address);
    /// Issues `ic ivau`: invalidates the line of an address in instruction caches.
    ic_ivau "ic ivau" (address);
    /// Issues `at s1e1r`: PAR_EL1 gets the read of an address by EL1's stage 1.
    at_s1e1r "at s1e1r" (address);
    /// Issues `at s1e2r`: the same by EL2's own stage 1.
    at_s1e2r "at s1e2r" (address);
    /// Issues `at s12e1r`: the same by EL1's stage 1 and by stage 2.
    at_s12e1r "at s12e1r" (address);
    /// Issues `tlbi ipas2e1is`: stage-2 entries of one IPA, current VMID.
    tlbi_ipas2e1is "tlbi ipas2e1is" (operand);
    /// Issues `tlbi ipas2e1`: as `ipas2e1is`, this PE only.
    tlbi_ipas2e1 "tlbi ipas2e1" (operand);
    /// Issues `tlbi ripas2e1is` (FEAT_TLBIRANGE): a range of IPAs.
    tlbi_ripas2e1is "tlbi ripas2e1is" = "sys #4, c8, c0, #2" (operand);
    /// Issues `tlbi vmalle1is`: stage 1 of the current VMID.
    tlbi_vmalle1is "tlbi vmalle1is";
    /// Issues `tlbi vmalle1`: as `vmalle1is`, this PE only.
    tlbi_vmalle1 "tlbi vmalle1";
    /// Issues `tlbi vmalls12e1is`: both stages of the current VMID.
    tlbi_vmalls12e1is "tlbi vmalls12e1is";
    /// Issues `tlbi alle1is`: both stages of every VMID.
    tlbi_alle1is "tlbi alle1is";
    /// Issues `tlbi vae2is`: EL2's own entries of one address.
    tlbi_vae2is "tlbi vae2is" (operand);
    /// Issues `tlbi rvae2is` (FEAT_TLBIRANGE): a range of EL2's addresses.
    tlbi_rvae2is "tlbi rvae2is" = "sys #4, c8, c2, #1" (operand);
    /// Issues `tlbi alle2is`: every entry of EL2's own regime.
    tlbi_alle2is "tlbi alle2is";
}

/// Smallest data cache line in bytes.
pub fn dcache_line() -> u64 {
    4 << CTR_EL0.read(CTR_EL0::DminLine)
}

/// Cleans and invalidates `[start, start + len)` to the point of coherency, so
/// that an observer with its caches off sees what was written. `line` is the
/// smallest data cache line in bytes.
pub fn clean_invalidate(start: u64, len: u64, line: u64) {
    let mut at = start & !(line - 1);
    let end = start.saturating_add(len);
    while at < end {
        dc_civac(at);
        at += line;
    }
    dsb_sy();
}

/// As [`clean_invalidate`], in this CPU's lines.
pub fn clean_to_poc(start: u64, len: u64) {
    clean_invalidate(start, len, dcache_line());
}

/// Issues `mrs RNDRRS` (FEAT_RNG), 64 random bits of a generator that is reseeded
/// first: `None` when the CPU has none at the moment.
pub fn rndrrs() -> Option<u64> {
    #[cfg(target_os = "none")]
    {
        let (value, failed): (u64, u64);
        // SAFETY: reads a register. A CPU without it takes an exception.
        unsafe {
            core::arch::asm!(
                "mrs {}, S3_3_C2_C4_1",
                "cset {}, eq",
                out(reg) value, out(reg) failed, options(nomem, nostack)
            );
        }
        (failed == 0).then_some(value)
    }
    #[cfg(not(target_os = "none"))]
    crate::recording::random()
}

/// `index`, where it is below `bound`. A CPU that only guesses that it is goes on
/// with 0 until it knows (CVE-2017-5753): so a number from a lower level cannot have
/// it look behind an array.
#[inline(always)]
pub fn index(index: usize, bound: usize) -> Option<usize> {
    if index >= bound {
        return None;
    }
    #[cfg(target_os = "none")]
    {
        let mask: usize;
        // SAFETY: computes a value, all ones where `index` is below; csdb is a hint.
        unsafe {
            core::arch::asm!(
                "cmp {index}, {bound}", "sbc {mask}, xzr, xzr", "hint #20",
                index = in(reg) index, bound = in(reg) bound, mask = out(reg) mask,
                options(nomem, nostack)
            );
        }
        Some(index & mask)
    }
    #[cfg(not(target_os = "none"))]
    {
        crate::recording::instruction("csdb", None);
        Some(index)
    }
}

/// The element of an array that a lower level names: [`index`].
#[inline(always)]
pub fn element<T>(array: &[T], at: usize) -> Option<&T> {
    array.get(index(at, array.len())?)
}

/// The frame pointer, X29: of the function that this is inlined to.
#[inline(always)]
pub fn frame_pointer() -> u64 {
    #[cfg(target_os = "none")]
    {
        let frame;
        // SAFETY: reads a register.
        unsafe {
            core::arch::asm!("mov {}, x29", out(reg) frame, options(nomem, nostack, preserves_flags));
        }
        frame
    }
    #[cfg(not(target_os = "none"))]
    0
}

#[cfg(test)]
mod tests {
    use super::TOLD;
    use crate::assembler::assemble;
    use crate::recording::{Event, of};
    use std::vec::Vec;
    use std::{assert_eq, format};

    #[test]
    fn the_assembler_is_told_what_the_name_stands_for() {
        let lines: Vec<_> = TOLD
            .iter()
            .flat_map(|(name, told)| [format!("{name}, x3"), format!("{told}, x3")])
            .collect();
        let words = assemble("armv8.4-a", &lines);
        for (pair, line) in words.chunks(2).zip(TOLD) {
            assert_eq!(pair[0], pair[1], "{line:?}");
        }
    }

    #[test]
    fn an_element_is_found_behind_a_barrier_and_none_behind_the_end() {
        let events = of(|| {
            for (n, right) in [(0, Some(&5)), (2, Some(&7)), (3, None), (usize::MAX, None)] {
                assert_eq!(super::element(&[5, 6, 7], n), right);
            }
        });
        assert_eq!(events, [Event::Instruction("csdb", None); 2]);
    }

    #[test]
    fn every_line_of_a_range_is_cleaned_and_then_waited_for() {
        let events = of(|| super::clean_invalidate(0x1078, 16, 64));
        let line = |at| Event::Instruction("dc civac", Some(at));
        let end = Event::Instruction("dsb sy", None);
        assert_eq!(events, [line(0x1040), line(0x1080), end]);
    }
}

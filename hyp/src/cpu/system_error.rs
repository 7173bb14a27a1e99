//! System errors of lower levels that wait when one comes out. EL2 takes them while
//! they are that level's, so that none is taken for another's, or for its own. Its own
//! it takes whenever its code runs, and ends; but in a guarded routine, whose they are.

use arm64::frame::Gprs;
use arm64::instr;
use arm64::regs::*;
use arm64::syndrome::{Class, Syndrome};
use log::warn;

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn guarded_error() -> u64;
}

/// EL2 takes its own from here on, on this PE. What waits already is of whoever had
/// the PE before, and is told.
pub fn begin() {
    let deferred = if has_ras() { DISR_EL1.get() } else { 0 };
    if deferred != 0 {
        DISR_EL1.set(0);
    }
    if take_error() || deferred != 0 {
        warn!("a system error from before EL2 is passed over: firmware's, or the boot's");
    }
    instr::serror_on();
}

fn has_ras() -> bool {
    ID_AA64PFR0_EL1.read(ID_AA64PFR0_EL1::RAS) >= 1
}

/// Called by asm.S: what waited when a lower level came out, by this vector, was a
/// system error of its own. So it is that, by its vector, that came back; the other
/// comes again when the level goes on, but for a call whose instruction was done.
///
/// With FEAT_RAS asm.S has taken it, and DISR_EL1 tells; else it is taken here.
#[cfg_attr(target_os = "none", unsafe(no_mangle))]
extern "C" fn system_error_waited(vector: u64, gprs: &mut Gprs) -> u64 {
    let cause = Syndrome(ESR_EL2.get());
    let taken = if has_ras() {
        let disr = DISR_EL1.get();
        DISR_EL1.set(0);
        ESR_EL2.set(Syndrome::of_deferred(disr).0);
        true
    } else {
        take_error()
    };
    instr::serror_on();
    if !taken {
        return vector;
    }
    if vector == 0 && cause.class() == Class::HVC {
        gprs.repeat();
    }
    3
}

/// Takes the system error that is pending; false when none is any more. ESR_EL2 is
/// its syndrome then. They are taken from here on.
fn take_error() -> bool {
    #[cfg(target_os = "none")]
    // SAFETY: asm.S expects the exception; no register changes but those that a call
    // may change.
    let taken = unsafe { guarded_error() } != 0;
    #[cfg(not(target_os = "none"))]
    let taken = ISR_EL1.is_set(ISR_EL1::A);
    taken
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use arm64::bits;
    use arm64::recording::{self, Event};
    use std::vec::Vec;

    const HVC: u64 = 0x16 << 26;
    const ABORT: u64 = 0x24 << 26;
    const TAKE: Event = Event::Instruction("msr daifclr, #4", None);

    /// What came back in place of what came by `vector` with this syndrome, and by
    /// how much the program counter has moved.
    fn comes(vector: u64, esr: u64) -> (u64, i64) {
        let mut gprs = Gprs::reset(0x1000);
        recording::set(ESR_EL2, esr);
        let mut came = 0;
        let events = recording::of(|| came = system_error_waited(vector, &mut gprs));
        assert_eq!(events.last(), Some(&TAKE), "{events:?}");
        (came, gprs.pc as i64 - 0x1000)
    }

    /// DISR_EL1: A, IDS, and AET, EA and DFSC or what the CPU has there.
    #[test]
    fn a_system_error_that_esb_has_taken_is_that_levels() {
        recording::reset();
        recording::set(ID_AA64PFR0_EL1, ID_AA64PFR0_EL1::RAS.val(1).value);
        for (disr, esr) in [
            (1 << 31 | 0x0e11, 0xbe00_0e11),
            (1 << 31 | 1 << 24 | 0xab_cdef, 0xbfab_cdef),
        ] {
            for (vector, cause, moved) in [
                // The call is made again; whatever else comes of itself.
                (0, HVC, -4),
                (0, ABORT, 0),
                (1, HVC, 0),
                (2, HVC, 0),
                (3, HVC, 0),
            ] {
                recording::set(DISR_EL1, disr);
                assert_eq!(comes(vector, cause), (3, moved));
                assert_eq!(recording::get(ESR_EL2), esr);
                assert_eq!(recording::get(DISR_EL1), 0, "it is taken once");
            }
        }
    }

    #[test]
    fn without_ras_a_system_error_is_taken_if_it_is_still_there() {
        recording::reset();
        recording::set(ISR_EL1, bits!(ISR_EL1: A));
        assert_eq!(comes(0, HVC), (3, -4));
        recording::set(ISR_EL1, 0);
        assert_eq!(comes(0, HVC), (0, 0));
        assert_eq!(comes(1, HVC), (1, 0));
    }

    /// What EL2 found by DISR_EL1 and ISR_EL1 is not the first lower level's.
    #[test]
    fn what_waited_before_el2_is_nobodys_later() {
        recording::reset();
        recording::set(ID_AA64PFR0_EL1, ID_AA64PFR0_EL1::RAS.val(1).value);
        recording::set(DISR_EL1, 1 << 31);
        assert_eq!(recording::of(begin).last(), Some(&TAKE));
        assert_eq!(recording::get(DISR_EL1), 0);
        // Without FEAT_RAS the register is none.
        recording::reset();
        let events = recording::of(begin);
        assert_eq!(events.last(), Some(&TAKE));
        let disr = |event: &Event| std::format!("{event:?}").contains("DISR");
        assert!(!events.iter().any(disr), "{events:?}");
    }

    /// asm.S from this line to that.
    fn lines(from: &str, to: &str) -> Vec<&'static str> {
        let all = include_str!("../asm.S").lines();
        let code = all.map(|line| line.split("//").next().unwrap_or("").trim());
        let label = |c: char| c.is_ascii_digit() || c == ':';
        let code = code.map(|line| line.trim_start_matches(label).trim_start());
        let code = code.filter(|line| !line.is_empty());
        let begin = code.skip_while(|line| *line != from).skip(1);
        begin.take_while(|line| *line != to).collect()
    }

    /// Order is all that QEMU, which raises no system error, cannot show.
    #[test]
    fn a_vector_takes_the_lower_levels_error_before_el2s_own_can_come() {
        let place = |code: &[&str], what: &str| {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            let at = code.iter().position(|line| words(line) == what);
            at.unwrap_or_else(|| panic!("{what} in {code:?}"))
        };
        let order = |code: &[&str], order: &[&str]| {
            let places: Vec<_> = order.iter().map(|what| place(code, what)).collect();
            assert!(places.is_sorted(), "{code:?}");
        };
        let code = lines("leave_lower:", "ret");
        let looked = ["cbnz x1, leave_with_error", "msr daifclr, #4", "leave"];
        order(
            &code,
            &[["esb", "mrs x1, disr_el1"].as_slice(), &looked].concat(),
        );
        assert_eq!(place(&code, "esb"), 0);
        let code = lines("leave_by_steps:", ".bss");
        let without_ras = ["dsb sy", "isb", "mrs x1, isr_el1", "b leave_looked"];
        order(&code, &without_ras);
        // EL2's own, before a lower level goes on.
        let code = lines("enter_lower:", "resume:");
        order(&code, &["mov sp, x0", "esb", "msr elr_el2, x1"]);
        // A guarded routine's own, however late: EL2's is taken before the routine
        // begins, and nothing is left when it ends.
        order(
            &lines(".macro  guarded", ".endm"),
            &["esb", "msr spsel, #0"],
        );
        let window = ["dsb sy", "esb", "isb", "msr spsel, #1", "mov x0, #0", "ret"];
        let code = lines("guarded_done:", "ret");
        assert_eq!(code.len() + 1, window.len());
        order(&code, &window[..5]);
        let code = lines("guarded_begin:", "guarded_done:");
        for (at, line) in code.iter().enumerate() {
            let name = line.strip_suffix(':').unwrap_or("");
            if name.starts_with("guarded_") && !name.starts_with("guarded_looks") {
                let is_there = name == "guarded_is_there";
                let first = ["guarded", "msr     spsel, #0"][usize::from(is_there)];
                assert_eq!(code[at + 1], first, "{name}");
            }
        }
        let ends = code.iter().filter(|line| **line == "ret").count();
        assert_eq!(ends, 1, "guarded_is_there's alone: {code:?}");
        let code = lines("guarded_error_taken:", "guarded_abort:");
        assert_eq!(code[..2], ["is_guarded", "b       guarded_fails"]);
        let code = lines("steps:", "b       leave_by_steps");
        // Nothing is branched to that a lower level may have foretold.
        let indirect = |line: &&&str| ["br ", "blr ", "ret"].iter().any(|i| line.starts_with(i));
        assert_eq!(code.iter().find(indirect), None);
    }
}

//! A guest's self-hosted debug (DDI0487, D2): its two breakpoints and two watchpoints,
//! what it sets of MDSCR_EL1, and its OS lock. All of it is trapped (MDCR_EL2.TDA and
//! TDOSA). The PE's own registers hold a vCPU's from when it is entered with its
//! debug exceptions on (MDSCR_EL1.MDE) until another's is: nobody reads them, and they
//! match for nobody else, for MDE is clear of a vCPU that uses none, and of the host. At
//! EL2 they raise nothing, as exceptions that were for EL1 (MDCR_EL2.TDE is clear).

use arm64::bits;
use arm64::regs::*;
use arm64::sysreg::Sysreg;

/// MDSCR_EL1 bits that a guest may set: single step, debug exceptions of EL1 to
/// itself, breakpoints and watchpoints, and traps of EL0 from the (empty) debug channel.
const MDSCR: u64 = bits!(MDSCR_EL1: SS, KDE, MDE, TDCC);

/// What a guest may set of a value; of a breakpoint's control all but what matches a
/// context or links to one that does (BT, LBN): E, PMC, BAS, HMC, SSC; of a watchpoint's
/// all but what links (WT, LBN): E, PAC, LSC, BAS, HMC, SSC, MASK.
const VALUE: u64 = !0b11;
const BREAKPOINT: u64 = 0xe1e7;
const WATCHPOINT: u64 = 0x1f00_ffff;

/// BT and WT of a control: by what else than an address it matches. Such a one is never
/// enabled.
const KIND: u64 = 0xf << 20;
const ENABLED: u64 = 1;

/// Disables each comparator that this CPU has: what a reset or somebody else has left in
/// them would match in a guest that has two of its own.
pub fn begin() {
    let id = ID_AA64DFR0_EL1;
    disable_comparators(
        id.read(ID_AA64DFR0_EL1::BRPs),
        id.read(ID_AA64DFR0_EL1::WRPs),
    );
}

/// A vCPU's debug registers.
#[derive(Clone, Debug)]
pub struct Debug {
    mdscr: u64,
    locked: bool,
    /// The claim tags that are set.
    claimed: u8,
    /// Value and control of breakpoint 0, breakpoint 1, watchpoint 0 and watchpoint 1.
    comparators: [u64; 8],
}

/// The bits that each has.
const KEPT: [u64; 8] = [
    VALUE, BREAKPOINT, VALUE, BREAKPOINT, VALUE, WATCHPOINT, VALUE, WATCHPOINT,
];

impl Debug {
    /// Out of reset: the OS lock is locked, and nothing matches.
    pub const RESET: Self = Self {
        mdscr: 0,
        locked: true,
        claimed: 0,
        comparators: [0; 8],
    };

    /// What a register of debug reads; those that are not there are zero.
    pub fn read(&self, register: Sysreg) -> u64 {
        match register {
            MDSCR_EL1::ENCODING => self.mdscr,
            OSLSR_EL1::ENCODING => {
                bits!(OSLSR_EL1: OSLM_1) | u64::from(self.locked) << OSLSR_EL1::OSLK.shift
            }
            DBGCLAIMSET_EL1::ENCODING => 0xff,
            DBGCLAIMCLR_EL1::ENCODING => self.claimed.into(),
            _ => place(register).map_or(0, |at| self.comparators[at]),
        }
    }

    /// Writes one, on the PE that the vCPU runs on.
    pub fn write(&mut self, register: Sysreg, value: u64) {
        match register {
            MDSCR_EL1::ENCODING => self.mdscr = value & MDSCR,
            OSLAR_EL1::ENCODING => self.locked = value & 1 != 0,
            DBGCLAIMSET_EL1::ENCODING => self.claimed |= value as u8,
            DBGCLAIMCLR_EL1::ENCODING => self.claimed &= !(value as u8),
            _ => {
                let Some(at) = place(register) else { return };
                let is_control = at & 1 != 0;
                let off = if is_control && value & KIND != 0 {
                    ENABLED
                } else {
                    0
                };
                self.comparators[at] = value & KEPT[at] & !off;
            }
        }
        // While it is locked no debug exception is taken.
        let unlocked = if self.locked {
            bits!(MDSCR_EL1: TDCC)
        } else {
            !0
        };
        MDSCR_EL1.set(self.mdscr & unlocked);
        self.load(self.mdscr & unlocked);
    }

    /// Has them match, on a vCPU that runs with this MDSCR_EL1.
    #[inline(always)]
    pub fn load(&self, mdscr: u64) {
        if mdscr & bits!(MDSCR_EL1: MDE) != 0 {
            self.match_here();
        }
    }

    #[cold]
    fn match_here(&self) {
        let [bvr0, bcr0, bvr1, bcr1, wvr0, wcr0, wvr1, wcr1] = self.comparators;
        DBGBVR0_EL1.set(bvr0);
        DBGBCR0_EL1.set(bcr0);
        DBGBVR1_EL1.set(bvr1);
        DBGBCR1_EL1.set(bcr1);
        DBGWVR0_EL1.set(wvr0);
        DBGWCR0_EL1.set(wcr0);
        DBGWVR1_EL1.set(wvr1);
        DBGWCR1_EL1.set(wcr1);
    }
}

/// Where it stands among the comparators: Op0 2, Op1 0, CRn 0, CRm which of two, Op2 4
/// and 5 a breakpoint's value and control, 6 and 7 a watchpoint's.
fn place(register: Sysreg) -> Option<usize> {
    let (n, op2) = (register.crm() as usize, register.op2() as usize);
    let is_one = register.op0() == 2 && register.op1() == 0 && register.crn() == 0;
    (is_one && n < 2 && op2 >= 4).then_some((op2 & 2) * 2 + n * 2 + (op2 & 1))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use arm64::recording::{self, Event};
    use arm64::sysreg::sysreg;
    use std::vec::Vec;

    const MDE: u64 = bits!(MDSCR_EL1: MDE);

    /// What the PE's registers were written with.
    fn written(what: impl FnOnce()) -> Vec<(&'static str, u64)> {
        let msr = |event: &Event| match event {
            Event::Msr(name, value) => Some((*name, *value)),
            _ => None,
        };
        recording::of(what).iter().filter_map(msr).collect()
    }

    #[test]
    fn a_guest_sets_what_its_two_of_each_have_and_no_more() {
        let mut debug = Debug::RESET;
        for (op2, kept) in [(4, !0b11), (5, 0xe1e7), (6, !0b11), (7, 0x1f00_ffff)] {
            for n in 0..16 {
                let register = sysreg(2, 0, 0, n, op2);
                debug.write(register, !KIND);
                let kept = if op2 & 1 == 0 { kept & !KIND } else { kept };
                assert_eq!(debug.read(register), if n < 2 { kept } else { 0 });
                // What matches by more than an address stays off.
                for kind in [1 << 20, 1 << 21, 1 << 22, 1 << 23] {
                    debug.write(register, !KIND | kind);
                    let off = if op2 & 1 == 0 { kept | kind } else { kept & !1 };
                    assert_eq!(debug.read(register), if n < 2 { off } else { 0 });
                }
                debug.write(register, !KIND);
            }
        }
        debug.write(MDSCR_EL1::ENCODING, u64::MAX);
        let all = bits!(MDSCR_EL1: SS, KDE, MDE, TDCC);
        assert_eq!(debug.read(MDSCR_EL1::ENCODING), all);
        // Whose CRn or Op1 is another.
        for other in [
            sysreg(2, 0, 1, 0, 4),
            sysreg(2, 3, 0, 0, 4),
            sysreg(2, 0, 7, 10, 6),
        ] {
            debug.write(other, 0);
            assert_eq!(debug.read(other), 0);
        }
        assert_eq!(debug.read(DBGBVR0_EL1::ENCODING), !0b11 & !KIND);
    }

    /// DDI0487, DBGCLAIMSET_EL1 and DBGCLAIMCLR_EL1: eight claim tags, which are no matter of
    /// the hardware. The first register reads as all ones, the second as those that are set.
    #[test]
    fn a_guest_has_eight_claim_tags() {
        let (set, clear) = (sysreg(2, 0, 7, 8, 6), sysreg(2, 0, 7, 9, 6));
        let mut debug = Debug::RESET;
        for (register, value, tags) in [
            (set, 0, 0),
            (set, 0x1_0005, 0x05),
            (set, 0x82, 0x87),
            (clear, 0, 0x87),
            (clear, !0xf0, 0x80),
            (clear, u64::MAX, 0),
        ] {
            debug.write(register, value);
            assert_eq!(debug.read(set), 0xff, "{register} {value:#x}");
            assert_eq!(debug.read(clear), tags, "{register} {value:#x}");
        }
    }

    #[test]
    fn what_was_left_in_a_cpus_comparators_matches_nowhere() {
        for (breakpoints, watchpoints) in [(1u64, 1u64), (5, 3), (15, 15)] {
            recording::reset();
            recording::set(ID_AA64DFR0_EL1, breakpoints << 12 | watchpoints << 20);
            let mut all = written(begin);
            all.sort_unstable();
            let names =
                |letter, last| (0..=last).map(move |n| std::format!("DBG{letter}CR{n}_EL1"));
            let mut expected: Vec<_> = names('B', breakpoints)
                .chain(names('W', watchpoints))
                .collect();
            expected.sort_unstable();
            assert_eq!(all.len(), expected.len(), "{all:?}");
            for ((name, value), expected) in all.iter().zip(&expected) {
                assert_eq!((*name, *value), (expected.as_str(), 0));
            }
        }
    }

    #[test]
    fn they_are_the_pes_only_while_debug_exceptions_are_on() {
        let mut debug = Debug::RESET;
        let mut write = |register, value| written(|| debug.write(register, value));
        // Out of reset the OS lock is locked.
        assert_eq!(write(MDSCR_EL1::ENCODING, MDE | 1), [("MDSCR_EL1", 0)]);
        assert_eq!(write(DBGBVR1_EL1::ENCODING, 0x8000), [("MDSCR_EL1", 0)]);
        let open = write(OSLAR_EL1::ENCODING, 0);
        assert_eq!(open[0], ("MDSCR_EL1", MDE | 1));
        assert_eq!(open.len(), 9, "and all of them: {open:x?}");
        assert!(open.contains(&("DBGBVR1_EL1", 0x8000)));
        let more = write(DBGWCR0_EL1::ENCODING, 0xff);
        assert!(more.contains(&("DBGWCR0_EL1", 0xff)), "{more:x?}");
        assert_eq!(write(OSLAR_EL1::ENCODING, 1), [("MDSCR_EL1", 0)]);
        assert_eq!(write(MDSCR_EL1::ENCODING, 1), [("MDSCR_EL1", 0)]);
        assert_eq!(write(OSLAR_EL1::ENCODING, 0), [("MDSCR_EL1", 1)]);
    }

    /// OSLAR_EL1 has one bit. OSLSR_EL1 tells of it, and that there is such a lock. The
    /// traps of EL0 are no debug exceptions: they stay.
    #[test]
    fn the_os_lock_is_one_bit_and_leaves_el0s_traps() {
        const TDCC: u64 = bits!(MDSCR_EL1: TDCC);
        let mut debug = Debug::RESET;
        let set = written(|| debug.write(MDSCR_EL1::ENCODING, u64::MAX));
        assert_eq!(set, [("MDSCR_EL1", TDCC)]);
        for (value, told) in [(!1, 0b1000), (1, 0b1010), (2, 0b1000), (u64::MAX, 0b1010)] {
            debug.write(OSLAR_EL1::ENCODING, value);
            assert_eq!(debug.read(OSLSR_EL1::ENCODING), told, "{value:#x}");
        }
    }

    #[test]
    fn each_register_gets_its_own_when_the_vcpu_is_entered() {
        let debug = Debug {
            comparators: [4, 5, 6, 7, 8, 9, 10, 11],
            ..Debug::RESET
        };
        assert_eq!(written(|| debug.load(!MDE)), []);
        let mut all = written(|| debug.load(MDE));
        all.sort_unstable_by_key(|(_, value)| *value);
        let names = [
            "DBGBVR0_EL1",
            "DBGBCR0_EL1",
            "DBGBVR1_EL1",
            "DBGBCR1_EL1",
            "DBGWVR0_EL1",
            "DBGWCR0_EL1",
            "DBGWVR1_EL1",
            "DBGWCR1_EL1",
        ];
        let expected: Vec<_> = names.into_iter().zip(4..).collect();
        assert_eq!(all, expected);
    }
}

//! What of the CPU is taken for absent, by EL2 and all above it, as boot arguments ask.

use core::sync::atomic::{AtomicBool, Ordering};

use arm64::regs::{ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1};
use arm64::sysreg::Sysreg;

/// What everybody takes for absent, EL2 too: CPUs that have one and not the other are
/// not at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// Physical addresses of more than 48 bits: FEAT_LPA, and FEAT_LPA2 with it.
    pub pa_52: bool,
    /// Virtual addresses of more than 48 bits: FEAT_LVA, and FEAT_LPA2 with it.
    pub va_52: bool,
}

static PA_52: AtomicBool = AtomicBool::new(false);
static VA_52: AtomicBool = AtomicBool::new(false);

impl Mask {
    /// From now on they are absent. Before anybody has been told of a feature.
    pub fn begin(self) {
        PA_52.store(self.pa_52, Ordering::Relaxed);
        VA_52.store(self.va_52, Ordering::Relaxed);
    }

    fn apply(self, register: Sysreg, value: u64) -> u64 {
        // Signed fields: what is above 7 is less than nothing.
        let least = |value: u64, (field, most): (usize, u64)| {
            let has = value >> field & 0xf;
            let shown = if has < 8 { has.min(most) } else { has };
            value & !(0xf << field) | shown << field
        };
        match register {
            ID_AA64MMFR0_EL1::ENCODING if self != Self::default() => {
                let range = if self.pa_52 { 5 } else { 0xf };
                [
                    (ID_AA64MMFR0_EL1::PARange.shift, range),
                    (ID_AA64MMFR0_EL1::TGran4.shift, 0),
                    (ID_AA64MMFR0_EL1::TGran16.shift, 1),
                    (ID_AA64MMFR0_EL1::TGran4_2.shift, 2),
                    (ID_AA64MMFR0_EL1::TGran16_2.shift, 2),
                ]
                .into_iter()
                .fold(value, least)
            }
            ID_AA64MMFR2_EL1::ENCODING if self.va_52 => {
                least(value, (ID_AA64MMFR2_EL1::VARange.shift, 0))
            }
            _ => value,
        }
    }
}

/// An ID register's value less what is to be absent.
pub fn masked(register: Sysreg, value: u64) -> u64 {
    let mask = Mask {
        pa_52: PA_52.load(Ordering::Relaxed),
        va_52: VA_52.load(Ordering::Relaxed),
    };
    mask.apply(register, value)
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use arm64::regs::ID_AA64MMFR1_EL1;
    use std::sync::{Mutex, PoisonError};

    /// A process has one mask: of two tests that begin one, the second waits.
    static ONE: Mutex<()> = Mutex::new(());

    /// Nothing is masked any more.
    struct End;

    impl Drop for End {
        fn drop(&mut self) {
            Mask::default().begin();
        }
    }

    /// Does `f` on CPUs that are masked so.
    pub(crate) fn under<R>(mask: Mask, f: impl FnOnce() -> R) -> R {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let _end = End;
        mask.begin();
        f()
    }

    /// 52 bits with every granule, of both stages.
    pub(crate) const LPA2: u64 = 0x0000_0323_1020_0126;
    /// 52 bits of VA with 64K.
    pub(crate) const LVA: u64 = 0x1_0011;

    /// A mask, and what becomes under it of these two.
    const MASKS: [(Mask, u64, u64); 4] = [
        (mask(false, false), LPA2, LVA),
        (mask(true, false), 0x0000_0222_0010_0125, LVA),
        (mask(false, true), 0x0000_0222_0010_0126, 0x11),
        (mask(true, true), 0x0000_0222_0010_0125, 0x11),
    ];

    pub(crate) const fn mask(pa_52: bool, va_52: bool) -> Mask {
        Mask { pa_52, va_52 }
    }

    #[test]
    fn what_is_to_be_absent_is_seen_by_nobody() {
        let (wide, lva) = (ID_AA64MMFR0_EL1::ENCODING, ID_AA64MMFR2_EL1::ENCODING);
        for (mask, seen_wide, seen_lva) in MASKS {
            assert_eq!(mask.apply(wide, LPA2), seen_wide, "{mask:?}");
            assert_eq!(mask.apply(lva, LVA), seen_lva, "{mask:?}");
            // What is less stays, and what has no such granule has none.
            let old = 0x0000_0000_f000_0022;
            assert_eq!(mask.apply(wide, old), old, "{mask:?}");
            // Other registers' fields stand elsewhere.
            let other = ID_AA64MMFR1_EL1::ENCODING;
            assert_eq!(mask.apply(other, u64::MAX), u64::MAX, "{mask:?}");
        }
    }

    #[test]
    fn what_begins_to_be_absent_is_what_was_asked_for() {
        let (wide, lva) = (ID_AA64MMFR0_EL1::ENCODING, ID_AA64MMFR2_EL1::ENCODING);
        for (mask, seen_wide, seen_lva) in MASKS {
            under(mask, || {
                assert_eq!(masked(wide, LPA2), seen_wide, "{mask:?}");
                assert_eq!(masked(lva, LVA), seen_lva, "{mask:?}");
            });
        }
    }
}

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
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_absent_is_seen_by_nobody() {
        let (wide, lva) = (ID_AA64MMFR0_EL1::ENCODING, ID_AA64MMFR2_EL1::ENCODING);
        // 52 bits with every granule, of both stages.
        let lpa2 = 0x0000_0323_1020_0126;
        let pa = Mask {
            pa_52: true,
            va_52: false,
        };
        let va = Mask {
            pa_52: false,
            va_52: true,
        };
        let none = Mask::default();
        assert_eq!(none.apply(wide, lpa2), lpa2);
        assert_eq!(pa.apply(wide, lpa2), 0x0000_0222_0010_0125);
        assert_eq!(va.apply(wide, lpa2), 0x0000_0222_0010_0126);
        // What is less stays, and what has no such granule has none.
        let old = 0x0000_0000_f000_0022;
        assert_eq!(pa.apply(wide, old), old);
        assert_eq!(pa.apply(lva, 1 << 16), 1 << 16);
        assert_eq!(va.apply(lva, 0x1_0011), 0x11);
    }
}

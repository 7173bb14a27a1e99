//! PSCI 1.1 and SMCCC 1.2 towards guests, by HVC and by SMC.
//!
//! EL2 answers what it can; what needs a decision of the host's (which vCPU runs
//! when, the end of the guest) becomes an exit, as in RMI.

use rmi::psci::{self, Psci};
use rmi::smccc::trng::Trng;
use rmi::smccc::{Smccc, counted, is_narrow};

use crate::realm::Mode;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// X0 of the answer.
    Return(u64),
    /// X0–X3 of the answer, TRNG.
    Random([u64; 4]),
    /// `CPU_ON(target, entry, context)`.
    CpuOn {
        /// MPIDR of the vCPU to start.
        target: u64,
        /// Where it begins, IPA.
        entry: u64,
        /// Its X0.
        context: u64,
    },
    /// `AFFINITY_INFO(target, 0)`.
    AffinityInfo {
        /// MPIDR asked about.
        target: u64,
    },
    /// `CPU_OFF`.
    CpuOff,
    /// `CPU_SUSPEND`: a standby, as WFI.
    Suspend,
    /// `SYSTEM_OFF` or `SYSTEM_RESET`: the host reads which from the exit.
    SystemEnd,
}

/// What the machine has: random numbers, and defences from speculation.
pub trait Cpus {
    /// Random bits, on a machine that has any.
    fn random(&self) -> Option<[u64; 3]>;
    /// X0 of the answer to a call of the convention's own.
    fn answer(&self, call: Smccc) -> u64;
}

/// X0 to X3 of a call, as it counts them: those of a 32-bit call by their low
/// halves only (SMCCC 1.2, 3.1).
pub fn arguments(x: [u64; 4]) -> [u64; 4] {
    counted(x[0] as u32, x)
}

/// Serves a guest's call: function in `x[0]`, of which the low half counts,
/// arguments in `x[1..4]`. RSI is no plain guest's.
pub fn call(x: &[u64; 4], mode: Mode, cpus: &impl Cpus) -> Answer {
    let [function, registers @ ..] = *x;
    let function = function as u32;
    if let Some(call) = Psci::read(function, registers) {
        return power(call, mode);
    }
    if let Some(call) = Trng::read(function, registers)
        && let Some(words) = cpus.random()
    {
        return trng(call, is_narrow(function), words);
    }
    let call = Smccc::decode(function, counted(function, registers));
    Answer::Return(call.map_or(rmi::NOT_SUPPORTED, |call| cpus.answer(call)))
}

/// Whether guests of this mode have the call: a realm has what RMI 1.0 lists (DEN0137,
/// A4.3.7).
fn has(mode: Mode, call: Psci) -> bool {
    mode != Mode::Realm || call != Psci::MigrateInfoType
}

fn power(call: Psci, mode: Mode) -> Answer {
    match call {
        _ if !has(mode, call) => Answer::Return(rmi::NOT_SUPPORTED),
        Psci::Version => Answer::Return(psci::VERSION_1_1),
        Psci::Features { function } => {
            let asked = Psci::read(function as u32, [0; 3]);
            let known = asked.is_none_or(|asked| has(mode, asked));
            Answer::Return(if known {
                psci::features(function) as u64
            } else {
                rmi::NOT_SUPPORTED
            })
        }
        Psci::CpuOn {
            target,
            entry,
            context,
        } => Answer::CpuOn {
            target,
            entry,
            context,
        },
        Psci::AffinityInfo { target, level: 0 } => Answer::AffinityInfo { target },
        // Levels above 0 are optional, and Linux asks for none.
        Psci::AffinityInfo { .. } => Answer::Return(psci::INVALID_PARAMETERS as u64),
        Psci::CpuOff => Answer::CpuOff,
        Psci::CpuSuspend { .. } => Answer::Suspend,
        Psci::SystemOff | Psci::SystemReset => Answer::SystemEnd,
        Psci::MigrateInfoType => Answer::Return(psci::MIGRATE_NOT_REQUIRED as u64),
    }
}

fn trng(call: Trng, narrow: bool, words: [u64; 3]) -> Answer {
    match call {
        Trng::Version => Answer::Return(0x1_0000),
        Trng::Features { function } => {
            let known = Trng::read(function as u32, [0; 3]).is_some();
            Answer::Return(if known { 0 } else { rmi::NOT_SUPPORTED })
        }
        // "Undercroft TRNG1", as four words.
        Trng::GetUuid => Answer::Random([0x6465_6e55, 0x6f72_6372, 0x5420_7466, 0x3147_4e52]),
        Trng::Rnd { bits } => random(bits, narrow, words),
    }
}

/// `TRNG_RND(bits)` (DEN0098, 2.4): at most 192 bits (96 in the 32-bit call),
/// the most significant register first, bits above the number asked for clear; all of
/// them where it fails.
fn random(bits: u64, narrow: bool, words: [u64; 3]) -> Answer {
    const INVALID_PARAMETERS: i64 = -2;
    let width: u64 = if narrow { 32 } else { 64 };
    if bits == 0 || bits > 3 * width {
        return Answer::Random([INVALID_PARAMETERS as u64, 0, 0, 0]);
    }
    let mut out = [0u64; 4];
    let mut left = bits;
    for (register, word) in (1..=3).rev().zip(words) {
        let take = left.min(width);
        out[register] = word & (1u64.unbounded_shl(take as u32)).wrapping_sub(1);
        left -= take;
    }
    Answer::Random(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idregs::Common;
    use rmi::fid;
    use rmi::smccc::narrow;

    struct Ones(bool);
    impl Cpus for Ones {
        fn random(&self) -> Option<[u64; 3]> {
            self.0.then_some([u64::MAX; 3])
        }
        fn answer(&self, call: Smccc) -> u64 {
            Common::default().answer(call)
        }
    }

    fn ask(x: [u64; 4]) -> Answer {
        ask_as(Mode::Plain, x)
    }

    fn ask_as(mode: Mode, x: [u64; 4]) -> Answer {
        call(&arguments(x), mode, &Ones(true))
    }

    #[test]
    fn every_function_that_features_names_is_served() {
        for mode in [Mode::Plain, Mode::Protected, Mode::Realm] {
            let ask = |x| ask_as(mode, x);
            for function in (0x8400_0000u64..0x8400_0020).chain(0xC400_0000..0xC400_0020) {
                let features = u64::from(fid::PSCI_FEATURES);
                let told = ask([features, function, 0, 0]) == Answer::Return(0);
                let served = ask([function, u64::from(fid::PSCI_VERSION), 0, 0])
                    != Answer::Return(rmi::NOT_SUPPORTED);
                assert_eq!(told, served, "{mode:?} {function:#x}");
            }
        }
    }

    /// Functions that are not in DEN0137's A4.3.7.
    #[test]
    fn a_realm_has_the_calls_of_its_specification() {
        let migrate = [fid::PSCI_MIGRATE_INFO_TYPE.into(), 0, 0, 0];
        assert_eq!(ask(migrate), Answer::Return(2));
        assert_eq!(
            ask_as(Mode::Realm, migrate),
            Answer::Return(rmi::NOT_SUPPORTED)
        );
    }

    #[test]
    fn narrow_calls_count_low_halves() {
        let on = ask([
            u64::from(narrow(fid::PSCI_CPU_ON)),
            1 << 32 | 1,
            0x4000_0000,
            7 << 32,
        ]);
        assert_eq!(
            on,
            Answer::CpuOn {
                target: 1,
                entry: 0x4000_0000,
                context: 0
            }
        );
    }

    #[test]
    fn random_bits_fill_from_the_least_significant_register() {
        let rnd = |bits| ask([u64::from(fid::TRNG_RND), bits, 0, 0]);
        assert_eq!(rnd(1), Answer::Random([0, 0, 0, 1]));
        assert_eq!(rnd(65), Answer::Random([0, 0, 1, u64::MAX]));
        assert_eq!(rnd(192), Answer::Random([0, u64::MAX, u64::MAX, u64::MAX]));
        assert_eq!(
            ask([u64::from(narrow(fid::TRNG_RND)), 33, 0, 0]),
            Answer::Random([0, 0, 1, 0xffff_ffff])
        );
        assert_eq!(
            call(
                &[u64::from(fid::TRNG_VERSION), 0, 0, 0],
                Mode::Plain,
                &Ones(false)
            ),
            Answer::Return(rmi::NOT_SUPPORTED)
        );
    }

    /// DEN0098, 2.4: of TRNG_RND that fails, the registers of the entropy are zero.
    #[test]
    fn no_random_bits_are_zero_bits() {
        let wrong = Answer::Random([-2i64 as u64, 0, 0, 0]);
        for (function, bits) in [
            (fid::TRNG_RND, 0),
            (fid::TRNG_RND, 193),
            (fid::TRNG_RND, u64::MAX),
            (narrow(fid::TRNG_RND), 0),
            (narrow(fid::TRNG_RND), 97),
        ] {
            let answer = ask([function.into(), bits, 0x5ec, 0x5ec]);
            assert_eq!(answer, wrong, "{function:#x} {bits}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_told() {
        let invalid = Answer::Return(psci::INVALID_PARAMETERS as u64);
        let unsupported = Answer::Return(rmi::NOT_SUPPORTED);
        for level in [1, 3, u64::MAX] {
            for function in [narrow(fid::PSCI_AFFINITY_INFO), fid::PSCI_AFFINITY_INFO] {
                assert_eq!(ask([function.into(), 0, level, 0]), invalid, "{level}");
            }
        }
        // SMCCC_ARCH_WORKAROUND_1, 2, 3, and ARCH_SOC_ID.
        for function in [0x8000_8000, 0x8000_7fff, 0x8000_3fff, 0x8000_0002] {
            let features = fid::SMCCC_ARCH_FEATURES.into();
            assert_eq!(ask([features, function, 0, 0]), unsupported);
        }
        for function in [
            fid::TRNG_VERSION,
            fid::TRNG_FEATURES,
            fid::TRNG_GET_UUID,
            narrow(fid::TRNG_RND),
            fid::TRNG_RND,
        ] {
            let x = [function.into(), fid::TRNG_RND.into(), 0, 0];
            assert_eq!(
                call(&x, Mode::Plain, &Ones(false)),
                unsupported,
                "{function:#x}"
            );
        }
    }
}

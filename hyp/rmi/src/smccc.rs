//! What the SMC calling convention itself defines (DEN0028, SMCCC 1.2), and the
//! random numbers of DEN0098.
//!
//! An identifier's bit 30 says that the call is a 64-bit one. Of the services that
//! stand in both ranges, PSCI and TRNG, a table has the 64-bit form where there is
//! one; [`narrow`] is the other, which counts the low halves of its registers.

use crate::table::calls;

/// Set in the identifier of a call with 64-bit arguments.
pub const SMC64: u32 = 1 << 30;

/// The version that hosts and guests see: 1.2.
pub const VERSION_1_2: u64 = 0x1_0002;

/// The 32-bit form of a function.
pub const fn narrow(function: u32) -> u32 {
    function & !SMC64
}

/// Whether a call's registers are 32 bits wide.
pub const fn is_narrow(function: u32) -> bool {
    function & SMC64 == 0
}

/// The registers that a call of this function counts: the low halves, if it is a
/// 32-bit one (SMCCC 1.2, 3.1).
pub const fn counted<const N: usize>(function: u32, mut registers: [u64; N]) -> [u64; N] {
    let mut n = 0;
    while is_narrow(function) && n < N {
        registers[n] &= 0xffff_ffff;
        n += 1;
    }
    registers
}

calls! {
    /// A call of the convention's own.
    enum Smccc(u32), "", 3 arguments;

    /// The convention's version, in X0.
    0x8000_0000 SMCCC_VERSION = Version;
    /// Whether the architecture's function is there, in X0.
    0x8000_0001 SMCCC_ARCH_FEATURES = ArchFeatures { function };
    /// Forgets what branches do (CVE-2017-5715).
    0x8000_8000 SMCCC_ARCH_WORKAROUND_1 = ArchWorkaround1;
    /// The same and their history (CVE-2022-23960).
    0x8000_3FFF SMCCC_ARCH_WORKAROUND_3 = ArchWorkaround3;
}

/// Random numbers (DEN0098 1.0).
pub mod trng {
    use super::{SMC64, counted};
    use crate::table::calls;

    calls! {
        /// A call for random numbers.
        enum Trng(u32), "", 3 arguments;

        /// The interface's version, in X0.
        0x8400_0050 TRNG_VERSION = Version;
        /// Whether the function is there, in X0.
        0x8400_0051 TRNG_FEATURES = Features { function };
        /// The source's name: 128 bits in X0 to X3.
        0x8400_0052 TRNG_GET_UUID = GetUuid -> [uuid1, uuid2, uuid3];
        /// At most three registers of random bits, X3 first. That they are random
        /// is all that may be logged of them: they are the caller's.
        0xC400_0053 TRNG_RND = Rnd { bits };
    }

    impl Trng {
        /// The call of either form.
        pub const fn read(function: u32, registers: [u64; 3]) -> Option<Self> {
            let registers = counted(function, registers);
            match Self::decode(function, registers) {
                None => Self::decode(function | SMC64, registers),
                found => found,
            }
        }
    }
}

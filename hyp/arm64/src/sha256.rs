//! SHA-256 by the CPU's instructions (FEAT_SHA256). What hashes around them, and where
//! a CPU has none, is `sha2`: its own backend of these instructions is for programs
//! whose compiler may use SIMD registers, which an image's may not.

use core::hint::black_box;

use crate::bits;
use crate::frame::FpState;
use crate::instr;
use crate::regs::{CPTR_EL2, ID_AA64ISAR0_EL1};

/// Bytes of a block.
pub const BLOCK: usize = 64;

/// Hashes whole blocks into `state`: false, and nothing done, on a CPU that has no
/// instructions for it. At EL2; what a lower level has in SIMD registers stays.
pub fn compress(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) -> bool {
    if ID_AA64ISAR0_EL1::SHA2.read(ID_AA64ISAR0_EL1.get()) == 0 {
        return false;
    }
    let traps = CPTR_EL2.get();
    CPTR_EL2.set(traps & !bits!(CPTR_EL2: TFP));
    instr::isb();
    let mut lower = FpState::ZERO;
    lower.save();
    // SAFETY: the CPU has the instructions, they do not trap, and the registers are
    // saved.
    let hashed = unsafe { by_instructions(state, blocks) };
    lower.restore();
    // They may be a confidential guest's: nothing of them stays on EL2's stack.
    lower = FpState::ZERO;
    black_box(&mut lower);
    CPTR_EL2.set(traps);
    instr::isb();
    hashed
}

/// # Safety
/// The CPU has FEAT_SHA256, CPTR_EL2 does not trap SIMD, and V0 to V31 are nobody's.
unsafe fn by_instructions(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) -> bool {
    #[cfg(target_os = "none")]
    {
        /// Four of the 64 steps: `$m` has their words, `$k` their constants.
        macro_rules! steps {
            ($m:literal, $k:literal) => {
                concat!(
                    "add v8.4s, v",
                    $m,
                    ".4s, v",
                    $k,
                    ".4s\n",
                    "mov v9.16b, v0.16b\n",
                    "sha256h q0, q1, v8.4s\n",
                    "sha256h2 q1, q9, v8.4s\n",
                )
            };
            // And the words of the steps 16 later, from these and the next 12.
            ($m:literal, $k:literal, $m1:literal, $m2:literal, $m3:literal) => {
                concat!(
                    steps!($m, $k),
                    "sha256su0 v",
                    $m,
                    ".4s, v",
                    $m1,
                    ".4s\n",
                    "sha256su1 v",
                    $m,
                    ".4s, v",
                    $m2,
                    ".4s, v",
                    $m3,
                    ".4s\n",
                )
            };
        }
        if blocks.is_empty() {
            return true;
        }
        // SAFETY: reads the constants and the blocks, which are as many; reads and
        // writes the state. The rest is the caller's promise.
        unsafe {
            core::arch::asm!(
                ".arch_extension fp", ".arch_extension simd", ".arch_extension sha2",
                "ld1 {{v16.4s-v19.4s}}, [{k}], #64", "ld1 {{v20.4s-v23.4s}}, [{k}], #64",
                "ld1 {{v24.4s-v27.4s}}, [{k}], #64", "ld1 {{v28.4s-v31.4s}}, [{k}]",
                "ld1 {{v0.4s-v1.4s}}, [{state}]",
                "2:",
                "ld1 {{v4.16b-v7.16b}}, [{block}], #64",
                "rev32 v4.16b, v4.16b", "rev32 v5.16b, v5.16b",
                "rev32 v6.16b, v6.16b", "rev32 v7.16b, v7.16b",
                "mov v2.16b, v0.16b", "mov v3.16b, v1.16b",
                steps!(4, 16, 5, 6, 7), steps!(5, 17, 6, 7, 4),
                steps!(6, 18, 7, 4, 5), steps!(7, 19, 4, 5, 6),
                steps!(4, 20, 5, 6, 7), steps!(5, 21, 6, 7, 4),
                steps!(6, 22, 7, 4, 5), steps!(7, 23, 4, 5, 6),
                steps!(4, 24, 5, 6, 7), steps!(5, 25, 6, 7, 4),
                steps!(6, 26, 7, 4, 5), steps!(7, 27, 4, 5, 6),
                steps!(4, 28), steps!(5, 29), steps!(6, 30), steps!(7, 31),
                "add v0.4s, v0.4s, v2.4s", "add v1.4s, v1.4s, v3.4s",
                "subs {left}, {left}, #1",
                "b.ne 2b",
                "st1 {{v0.4s-v1.4s}}, [{state}]",
                k = inout(reg) K.as_ptr() => _,
                state = in(reg) state.as_mut_ptr(),
                block = inout(reg) blocks.as_ptr() => _,
                left = inout(reg) blocks.len() => _,
                options(nostack)
            );
        }
    }
    // The development machine has none.
    #[cfg(not(target_os = "none"))]
    crate::recording::instruction("sha256", Some(state.len().min(blocks.len()) as u64));
    cfg!(target_os = "none")
}

/// The first 32 bits of the fractions of the first 8 primes' square roots (FIPS 180-4,
/// 5.3.3): the state before the first block.
#[rustfmt::skip]
pub const INITIAL: [u32; 8] = [
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
];

/// The same of the first 64 primes' cube roots (FIPS 180-4, 4.2.2).
#[cfg_attr(not(target_os = "none"), allow(dead_code, reason = "the instructions'"))]
#[rustfmt::skip]
static K: [u32; 64] = [
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::{self, Event};

    /// SIMD registers are somebody else's, and are reached while their trap is open.
    #[test]
    fn the_cpu_hashes_between_a_save_and_a_restore() {
        let hash = || recording::of(|| assert!(!compress(&mut INITIAL.clone(), &[[0; BLOCK]; 3])));
        let asked = Event::Mrs(ID_AA64ISAR0_EL1.name());
        assert_eq!(hash(), [asked]);
        recording::set(ID_AA64ISAR0_EL1, bits!(ID_AA64ISAR0_EL1: SHA2));
        for traps in [bits!(CPTR_EL2: TZ), bits!(CPTR_EL2: TZ, TFP)] {
            recording::set(CPTR_EL2, traps);
            let cptr = |value| Event::Msr(CPTR_EL2.name(), value);
            let did = |name| Event::Instruction(name, None);
            let expected = [
                asked,
                Event::Mrs(CPTR_EL2.name()),
                cptr(bits!(CPTR_EL2: TZ)),
                did("isb"),
                did("fp save"),
                Event::Instruction("sha256", Some(3)),
                did("fp restore"),
                cptr(traps),
                did("isb"),
            ];
            assert_eq!(hash(), expected);
        }
    }
}

//! What a computation with secrets leaves on a stack: copies of keys, and of the states
//! that numbers were drawn from. A value that is overwritten where it ends, or moved, is
//! still where it was made. Nobody else reads EL2's stacks, but firmware may start the
//! next system with RAM as it is.

use arm64::instr;
use core::hint::black_box;

/// Bytes of stack that a signature takes at most, with much to spare.
pub const OF_A_SIGNATURE: usize = 16 << 10;
/// The same of random numbers.
pub const OF_RANDOM_NUMBERS: usize = 4 << 10;
/// The same of all that a boot does with both: of its stack, almost all.
pub const OF_A_BOOT: usize = 56 << 10;

/// Does `f`, and then overwrites as many bytes of the stack as it may have used: of what
/// it had there, nothing is left but its result.
#[inline(always)]
pub fn leaving_none<const BYTES: usize, R>(f: impl FnOnce() -> R) -> R {
    let done = apart(f);
    overwrite::<BYTES>();
    done
}

/// Below the caller's frame, where [`overwrite`]'s is afterwards.
#[inline(never)]
fn apart<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// In memory too: a reset may lose what a cache alone has.
#[inline(never)]
fn overwrite<const BYTES: usize>() {
    let bytes = [0u8; BYTES];
    instr::clean_to_poc(black_box(&bytes).as_ptr().addr() as u64, BYTES as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use arm64::recording::{self, Event};
    use arm64::regs::CTR_EL0;
    use attest::{Algorithm, Attester, Generator, Realm, Session};
    use core::mem::MaybeUninit;

    const SEEN: usize = 64 << 10;
    const PAINT: u8 = 0xa5;

    #[inline(never)]
    fn paint() {
        black_box(&mut [PAINT; SEEN]);
    }

    /// Of so many bytes below this frame, those that are neither paint nor zero.
    #[inline(never)]
    fn left(depth: usize) -> usize {
        let mut stack = MaybeUninit::<[u8; SEEN]>::uninit();
        let at = black_box(&mut stack).as_mut_ptr().cast::<u8>();
        // SAFETY: this function's own stack, which others have written before.
        let used = |n: &usize| !matches!(unsafe { at.add(*n).read_volatile() }, 0 | PAINT);
        (SEEN - depth..SEEN).filter(used).count()
    }

    /// What each way of doing the same leaves behind, so far below. What overwrites cleans
    /// lines, and has frames of its own for that below what it overwrites.
    fn compare(depth: usize, mut plainly: impl FnMut(), mut leaving: impl FnMut()) {
        // Return addresses and saved registers of the frames that overwrite and look.
        const FRAMES: usize = 130;
        paint();
        plainly();
        let plain = left(depth);
        assert!(plain > 2 * FRAMES, "{plain} bytes were left");
        paint();
        leaving();
        let none = left(depth);
        assert!(none < FRAMES, "{none} bytes are left of {plain}");
    }

    /// Nor the steps before the first, which make what it needs.
    #[test]
    fn no_signature_leaves_its_key() {
        let realm = Realm {
            personalization: &[0; 64],
            algorithm: Algorithm::Sha256,
            measurements: &[[0; 64]; 5],
        };
        let [mut plain, mut leaving] = [1, 2].map(|seed| {
            let mut generator = Generator::from_entropy(&[seed; 32]).expect("enough");
            let attester = Attester::new::<sha2::Sha256>(&mut generator, &[]);
            let mut session = Session::NONE;
            session.begin(&[2; 64]);
            move || {
                let step = session.step(&attester, &realm, &mut []);
                assert!(step.is_some());
                session.is_signed()
            }
        });
        for signed in [false, false, true] {
            compare(
                OF_A_SIGNATURE,
                || assert_eq!(apart(&mut plain), signed),
                || {
                    let done = leaving_none::<{ 2 * OF_A_SIGNATURE }, _>(&mut leaving);
                    assert_eq!(done, signed);
                },
            );
        }
    }

    #[test]
    fn what_is_overwritten_is_so_in_memory() {
        const LINES: usize = 8;
        recording::set(CTR_EL0, 4 << 16);
        let done = recording::of(overwrite::<{ 64 * LINES }>);
        let cleaned = |event: &&Event| matches!(event, Event::Instruction("dc civac", Some(_)));
        let lines = done.iter().filter(cleaned).count();
        assert!((LINES..=LINES + 1).contains(&lines), "{lines} lines");
    }

    #[test]
    fn no_number_leaves_what_it_was_drawn_from() {
        let mut generator = Generator::from_entropy(&[1; 32]).expect("enough");
        let mut other = Generator::from_entropy(&[2; 32]).expect("enough");
        compare(
            OF_RANDOM_NUMBERS,
            || assert_ne!(apart(|| generator.words()), [0; 3]),
            || {
                let words = leaving_none::<{ 2 * OF_RANDOM_NUMBERS }, _>(|| other.words());
                assert_ne!(words, [0; 3]);
            },
        );
    }
}

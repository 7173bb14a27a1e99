//! Random numbers from entropy that is given once: ChaCha20, with a key of its own
//! after each answer, so that what was answered cannot be computed from what is left.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use p384::SecretKey;
use p384::elliptic_curve::Generate;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Entropy of any sources, as it comes.
#[derive(Clone, Debug, Default)]
pub struct Entropy {
    hash: Sha256,
    bytes: usize,
}

impl Entropy {
    /// Bytes without which there is no generator.
    pub const LEAST: usize = 32;

    /// Adds a source's.
    pub fn add(&mut self, source: &[u8]) {
        self.hash.update(source);
        self.bytes += source.len();
    }

    /// A generator that all of it counts for; `None` when it is less than
    /// [`Self::LEAST`].
    pub fn generator(self) -> Option<Generator> {
        if self.bytes < Self::LEAST {
            return None;
        }
        let seed = Zeroizing::new(self.hash.finalize().into());
        Some(Generator(ChaCha20Rng::from_seed(*seed)))
    }
}

/// A generator of random numbers. Its state leaves nothing behind when it goes.
#[derive(Debug)]
pub struct Generator(ChaCha20Rng);

impl Generator {
    /// One of a single source: see [`Entropy::generator`].
    pub fn from_entropy(source: &[u8]) -> Option<Self> {
        let mut entropy = Entropy::default();
        entropy.add(source);
        entropy.generator()
    }

    /// Fills with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
        self.renew();
    }

    /// Random words.
    pub fn words<const N: usize>(&mut self) -> [u64; N] {
        let words = core::array::from_fn(|_| self.0.next_u64());
        self.renew();
        words
    }

    /// A key for ES384.
    pub(crate) fn key(&mut self) -> SecretKey {
        let key = SecretKey::generate_from_rng(&mut self.0);
        self.renew();
        key
    }

    fn renew(&mut self) {
        self.0 = ChaCha20Rng::from_rng(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_entropy_counts_and_little_is_none() {
        assert!(Generator::from_entropy(&[7; 31]).is_none());
        let mut parts = Entropy::default();
        parts.add(&[7; 31]);
        parts.add(&[]);
        assert!(parts.clone().generator().is_none());
        parts.add(&[7; 1]);
        let mut whole = Generator::from_entropy(&[7; 32]).unwrap();
        assert_eq!(parts.generator().unwrap().words::<4>(), whole.words());
        let first = |entropy: &[u8]| {
            let mut out = [0; 32];
            Generator::from_entropy(entropy).unwrap().fill(&mut out);
            out
        };
        let mut entropy = [7; 100];
        let before = first(&entropy);
        assert_eq!(before, first(&entropy));
        for at in 0..100 {
            entropy[at] ^= 1;
            assert_ne!(before, first(&entropy));
            entropy[at] ^= 1;
        }
    }

    #[test]
    fn no_answer_comes_twice() {
        let mut generator = Generator::from_entropy(&[1; 32]).unwrap();
        let mut seen = [[0u8; 8]; 200];
        for n in 0..200 {
            let mut out = [0; 8];
            generator.fill(&mut out);
            assert!(!seen[..n].contains(&out));
            seen[n] = out;
        }
    }

    /// RFC 8439, 2.3.2 with a key, nonce and counter of zero (its appendix A.1, 1 and
    /// 2): the numbers are ChaCha20's, not something like it.
    #[test]
    fn the_stream_is_chacha20() {
        let mut stream = Generator(ChaCha20Rng::from_seed([0; 32]));
        let mut out = [0; 8];
        stream.fill(&mut out);
        assert_eq!(out, [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]);
    }
}

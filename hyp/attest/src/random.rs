//! Random numbers from entropy that is given once: ChaCha20, with a key of its own
//! after each answer, so that what was answered cannot be computed from what is left.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use p384::ecdsa::SigningKey;
use p384::elliptic_curve::Generate;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// A generator of random numbers. Its state leaves nothing behind when it goes.
#[derive(Debug)]
pub struct Generator(ChaCha20Rng);

impl Generator {
    /// Bytes of entropy without which there is no generator.
    pub const ENTROPY: usize = 32;

    /// Begins with all of these bytes, from whatever sources. `None` when there are
    /// fewer than [`Self::ENTROPY`].
    pub fn from_entropy(entropy: &[u8]) -> Option<Self> {
        if entropy.len() < Self::ENTROPY {
            return None;
        }
        let seed = Zeroizing::new(Sha256::digest(entropy).into());
        Some(Self(ChaCha20Rng::from_seed(*seed)))
    }

    /// Fills with random bytes.
    pub fn fill(&mut self, out: &mut [u8]) {
        self.0.fill_bytes(out);
        self.renew();
    }

    /// A key for ES384.
    pub(crate) fn key(&mut self) -> SigningKey {
        let key = SigningKey::generate_from_rng(&mut self.0);
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

//! Random numbers for guests' device trees (`rng-seed`, `kaslr-seed`): Linux
//! takes them as entropy, so a guest gets none rather than weak ones.
//!
//! Two sources, mixed where both are there: numbers of EL2's generator, which are asked
//! for at each start of a guest, and the seed of the machine's device tree, which is
//! EL2's too where it has a generator, stretched by ChaCha20. With neither, there
//! are no seeds, and the log says so.

use crate::rmi_call;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use spin::Mutex;

/// What one start of a guest gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    /// For its random number generator.
    pub rng: [u8; 32],
    /// For where its kernel goes.
    pub kaslr: u64,
}

/// Where seeds come from.
#[derive(Debug)]
pub struct Seeds(Mutex<Option<ChaCha20Rng>>);

impl Seeds {
    /// Seeds from what the machine's tree has, which may be nothing.
    pub fn new(of_tree: &[u8]) -> Self {
        let mut key = [0; 32];
        // All of it counts, whatever its length.
        for (n, byte) in of_tree.iter().enumerate() {
            key[n % 32] ^= byte;
        }
        let weak = of_tree.len() < 16;
        let stretched = (!weak).then(|| ChaCha20Rng::from_seed(key));
        Self(Mutex::new(stretched))
    }

    /// A seed that nobody had before; `None` without a source.
    pub fn next(&self) -> Option<Seed> {
        let mut words = [0u64; 5];
        let of_cpu = self.mix_cpu(&mut words);
        let stretched = self.0.lock().as_mut().map(|stretched| {
            for word in &mut words {
                *word ^= stretched.next_u64();
            }
        });
        if !of_cpu && stretched.is_none() {
            return None;
        }
        let mut rng = [0; 32];
        for (bytes, word) in rng.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Some(Seed {
            rng,
            kaslr: words[4],
        })
    }

    /// Mixes the CPU's numbers in; false when it has none, or none now.
    fn mix_cpu(&self, words: &mut [u64; 5]) -> bool {
        let (Ok(first), Ok(second)) = (rmi_call::random(), rmi_call::random()) else {
            return false;
        };
        for (word, random) in words.iter_mut().zip(first.into_iter().chain(second)) {
            *word ^= random;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use arm64::recording;
    use std::boxed::Box;
    use std::collections::BTreeSet;

    fn cpu_with_numbers(has: bool) {
        let mut n = 0u64;
        recording::answer_calls(Box::new(move |call| {
            if !has || call[0] != rmi::vendor::RANDOM {
                return [rmi::NOT_SUPPORTED, 0, 0, 0, 0];
            }
            n += 1;
            [0, n << 8, n << 8 | 1, n << 8 | 2, n << 8 | 3]
        }));
    }

    #[test]
    fn each_start_has_seeds_of_its_own() {
        for (tree, cpu) in [(&[7u8; 32][..], true), (&[7; 32], false), (&[], true)] {
            cpu_with_numbers(cpu);
            let seeds = Seeds::new(tree);
            let all: BTreeSet<_> = (0..100)
                .map(|_| seeds.next().expect("a source"))
                .map(|seed| (seed.rng, seed.kaslr))
                .collect();
            assert_eq!(all.len(), 100);
            let kaslr: BTreeSet<_> = all.iter().map(|(_, kaslr)| kaslr).collect();
            assert_eq!(kaslr.len(), 100);
            assert!(all.iter().all(|(rng, _)| rng[..8] != rng[8..16]));
        }
    }

    #[test]
    fn without_a_source_there_is_no_seed() {
        cpu_with_numbers(false);
        assert_eq!(Seeds::new(&[]).next(), None);
        assert_eq!(Seeds::new(&[1; 15]).next(), None, "too little to stretch");
    }

    #[test]
    fn another_tree_is_another_seed() {
        cpu_with_numbers(false);
        let first = |tree: &[u8]| Seeds::new(tree).next().expect("a source").rng;
        assert_ne!(first(&[1; 32]), first(&[2; 32]));
        assert_eq!(first(&[1; 32]), first(&[1; 32]));
        let mut long = [1; 64];
        long[63] = 9;
        assert_ne!(first(&long), first(&[0; 64]));
    }
}

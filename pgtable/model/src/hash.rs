//! A fast hasher for keys that are addresses.
//!
//! The model hashes one address per event, so the hasher is one multiplication
//! and one rotation. Keys come from the program under test, never from an
//! adversary of the hash table.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A hash map keyed by addresses or small integers.
pub type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<AddressHasher>>;

/// Mixes words by multiplication with an odd constant.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddressHasher(u64);

impl AddressHasher {
    fn mix(&mut self, word: u64) {
        let x = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ (x >> 32);
    }
}

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, x: u8) {
        self.mix(u64::from(x));
    }

    fn write_u16(&mut self, x: u16) {
        self.mix(u64::from(x));
    }

    fn write_u32(&mut self, x: u32) {
        self.mix(u64::from(x));
    }

    fn write_u64(&mut self, x: u64) {
        self.mix(x);
    }

    fn write_usize(&mut self, x: usize) {
        self.mix(x as u64);
    }
}

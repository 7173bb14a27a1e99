//! What a realm is measured by (DEN0137 1.0-rel0, A7.1 and C1.11 to C1.13): each step is
//! a structure of so many bytes, most of them zero, that is hashed.

use sha2::{Digest, Sha256, Sha512};

/// A hash, and zeros behind one of 32 bytes.
pub type Hash = [u8; 64];

/// A realm's: the initial measurement, and those that it extends, 1 to 4.
#[derive(Clone, Debug)]
pub struct Measured {
    wide: bool,
    pub values: [Hash; 5],
}

/// Bytes of zero, and these words at these offsets.
fn structure(size: usize, words: &[(usize, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, word) in words {
        bytes[*at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

impl Measured {
    /// A realm whose parameters' words are read by offset (B4.3.9.4): flags, and a byte
    /// each: width, SVE's vectors, breakpoints, watchpoints, counters, hash.
    pub fn realm(word: impl Fn(u64) -> u64) -> Self {
        let mut measured = Self {
            wide: word(0x30) as u8 == 1,
            values: [[0; 64]; 5],
        };
        let mut words = vec![(0, word(0))];
        for at in [0x8, 0x10, 0x18, 0x20, 0x28, 0x30] {
            words.push((at, word(at as u64) & 0xff));
        }
        measured.values[0] = measured.hash(&structure(0x1000, &words));
        measured
    }

    /// What the algorithm is told as: 0 is SHA-256, 1 is SHA-512.
    pub fn algorithm(&self) -> u64 {
        u64::from(self.wide)
    }

    fn size(&self) -> usize {
        if self.wide { 64 } else { 32 }
    }

    fn hash(&self, bytes: &[u8]) -> Hash {
        let mut hash = [0; 64];
        if self.wide {
            hash.copy_from_slice(&Sha512::digest(bytes));
        } else {
            hash[..32].copy_from_slice(&Sha256::digest(bytes));
        }
        hash
    }

    /// A descriptor: its kind, its length, the measurement before, what it is about.
    fn extend_initial(
        &mut self,
        kind: u64,
        words: &[(usize, u64)],
        content: Option<(usize, Hash)>,
    ) {
        let mut bytes = structure(0x100, words);
        bytes[..16].copy_from_slice(&structure(16, &[(0, kind), (8, 0x100)]));
        bytes[0x10..0x50].copy_from_slice(&self.values[0]);
        if let Some((at, hash)) = content {
            bytes[at..at + 64].copy_from_slice(&hash);
        }
        self.values[0] = self.hash(&bytes);
    }

    /// DATA_CREATE with these flags; the content, if it counts (B4.3.1.4).
    pub fn data(&mut self, ipa: u64, flags: u64, content: Option<Vec<u8>>) {
        let content = content.map(|bytes| (0x60, self.hash(&bytes)));
        self.extend_initial(0, &[(0x50, ipa), (0x58, flags)], content);
    }

    /// REC_CREATE of a vCPU that may run (B4.3.12.4).
    pub fn rec(&mut self, flags: u64, pc: u64, gprs: &[u64]) {
        let mut words = vec![(0, flags), (0x200, pc)];
        words.extend((0..).zip(gprs).map(|(n, x)| (0x300 + 8 * n, *x)));
        let content = self.hash(&structure(0x1000, &words));
        self.extend_initial(1, &[], Some((0x50, content)));
    }

    /// RTT_INIT_RIPAS of one entry (B4.3.18.4).
    pub fn ripas(&mut self, base: u64, top: u64) {
        self.extend_initial(2, &[(0x50, base), (0x58, top)], None);
    }

    /// RSI_MEASUREMENT_EXTEND (B5.3.7); of the old value as much counts as a hash has,
    /// as TF-RMM has it.
    pub fn extend(&mut self, index: usize, by: &[u8]) {
        let old = &self.values[index][..self.size()];
        self.values[index] = self.hash(&[old, by].concat());
    }

    /// One of them, as registers tell it.
    pub fn words(&self, index: usize) -> [u64; 8] {
        let value = &self.values[index];
        std::array::from_fn(|n| {
            let bytes = value[8 * n..8 * n + 8].try_into();
            u64::from_le_bytes(bytes.expect("8 bytes"))
        })
    }
}

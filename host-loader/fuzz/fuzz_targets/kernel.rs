//! Any bytes load inside the guest's RAM or not at all.
#![no_main]

use core::ops::Range;
use host_loader::image::{GuestMemory, RawPlace, load};
use libfuzzer_sys::fuzz_target;

struct Ram(Vec<u8>);

const BASE: u64 = 0x4000_0000;

impl Ram {
    /// The bytes at `ipa`; out of range is the failure that is looked for.
    fn at(&mut self, ipa: u64, count: usize) -> &mut [u8] {
        let start = usize::try_from(ipa - BASE).unwrap();
        &mut self.0[start..start + count]
    }
}

impl GuestMemory for Ram {
    fn range(&self) -> Range<u64> {
        BASE..BASE + self.0.len() as u64
    }
    fn write(&mut self, ipa: u64, bytes: &[u8]) {
        self.at(ipa, bytes.len()).copy_from_slice(bytes);
    }
    fn zero(&mut self, ipa: u64, count: u64) {
        self.at(ipa, count as usize).fill(0);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut ram = Ram(vec![0; 4 << 20]);
    if let Ok(placed) = load(bytes, RawPlace::default(), &mut ram) {
        assert!(placed.range.start >= BASE && placed.range.end <= ram.range().end);
        assert!(ram.range().contains(&placed.entry));
    }
});

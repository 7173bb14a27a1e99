//! Any bytes load inside the guest's RAM or not at all, in the memory that they
//! say they take.
#![no_main]

use core::ops::Range;
use host_loader::image::stream::Unpacker;
use host_loader::image::{GuestMemory, ImageError, RawPlace, load};
use host_loader::pace::{Pace, at_once};
use host_loader_fuzz::within;
use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;

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

/// Of the unpacker: a window of 8 MiB, as most have.
const MEMORY: usize = 9 << 20;

thread_local! {
    static UNPACKER: RefCell<Unpacker> =
        RefCell::new(Unpacker::new(Box::leak(vec![0; MEMORY].into())));
}

fuzz_target!(|bytes: &[u8]| {
    let mut ram = Ram(vec![0; 4 << 20]);
    let takes = Unpacker::memory_for(bytes);
    let loaded = UNPACKER.with_borrow_mut(|unpacker| {
        // Segments of an ELF file are listed; nothing else is allocated.
        within(8 << 10, || {
            let pace = Pace::default();
            at_once(load(bytes, RawPlace::default(), unpacker, &mut ram, &pace))
        })
    });
    let lacks = matches!(loaded, Err(ImageError::NoMemory(_)));
    assert_eq!(lacks, takes > MEMORY);
    if let Ok(placed) = loaded {
        assert!(placed.range.start >= BASE && placed.range.end <= ram.range().end);
        assert!(ram.range().contains(&placed.entry));
    }
});

//! Arbitrary memory taken for tables: looking at it must not panic nor work
//! without bound. `cargo fuzz run arbitrary_memory`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgtable::{
    Budget, Features, Granule, Ipa, Level, Next, Pa, Stage2, Stage2Config, Synced, TableMem, Vmid,
};
use std::cell::Cell;

/// Every address leads into the same few words.
struct Any<'a> {
    words: &'a [u64],
    loads: Cell<u64>,
}

impl TableMem for Any<'_> {
    type Table = usize;
    fn locate(&self, pa: Pa) -> usize {
        (pa.get() / 8) as usize
    }
    fn load(&self, table: usize, index: usize) -> u64 {
        self.loads.set(self.loads.get() + 1);
        self.words[table.wrapping_add(index) % self.words.len()]
    }
    fn store(&self, _: usize, _: usize, _: u64) {}
    fn cas(&self, _: usize, _: usize, old: u64, _: u64) -> Result<(), u64> {
        Err(!old)
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        None
    }
    fn free(&self, _: Pa, _: Level, _: &Synced) {}
    fn count(&self, _: Pa) -> u32 {
        1
    }
    fn add_count(&self, _: Pa, _: i32) {}
}

fuzz_target!(|data: &[u8]| {
    let words: Vec<u64> = data
        .chunks_exact(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        .collect();
    let [which, at, rest @ ..] = &words[..] else { return };
    if rest.is_empty() {
        return;
    }
    let granule = Granule::ALL[(which % 3) as usize];
    let mut config = Stage2Config::new(granule, 32 + (which >> 8) as u8 % 21, 52);
    config.lpa2 = which >> 16 & 1 == 1;
    config.features = Features { fwb: which >> 17 & 1 == 1, xnx: which >> 18 & 1 == 1, ..config.features };
    let Ok(geometry) = config.validate() else { return };
    let mem = Any { words: rest, loads: Cell::new(0) };
    let Ok(tree) = Stage2::new(geometry, Pa::new(0), Vmid::new(0), &mem) else { return };
    let size = 1u64 << geometry.ipa_bits();
    let ipa = Ipa::new(at % size);
    let _ = tree.lookup(ipa);
    let _ = tree.translate(ipa);
    mem.loads.set(0);
    let mut budget = Budget::entries(10_000);
    let _ = tree.walk(Ipa::new(0), size, &mut budget, |seen| {
        let _ = geometry.decode(seen.raw, seen.level);
        Next::Descend
    });
    assert!(mem.loads.get() <= 3 * 10_000, "work without bound");
});

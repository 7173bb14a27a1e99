//! EL2's own map: ranges put over ranges, taken out and looked up, judged by
//! the model and held against what each of a few addresses must say.
//! `cargo fuzz run el2 -- -max_len=1024 -len_control=0`.

#![no_main]

#[path = "../../tests/judge/mod.rs"]
mod judge;
mod numbers;

use judge::{Cpu, Judge};
use libfuzzer_sys::fuzz_target;
use mmu_model::{EventKind, Promise, Reg, Target};
use numbers::numbers;
use pgtable::{
    El2Access, El2Attrs, El2Config, El2Map, El2Range, Error, Features, Granule, Leaves, Level,
    Over, Pa, Va,
};

/// Output addresses of what is mapped; tables lie below.
const MEMORY: u64 = 0x40_0000_0000;

type Mapped = Option<(u64, El2Attrs)>;

struct Own<'j> {
    judge: &'j Judge,
    map: El2Map<&'j Judge>,
    probes: Vec<(u64, Mapped)>,
}

fn promise(judge: &Judge, ia: u64, len: u64, to: Mapped) {
    if len == 0 {
        return;
    }
    let to = to.map(|(pa, attrs)| Target {
        pa,
        perms: Some(match attrs.access {
            El2Access::ReadExecute => 1 | 4,
            El2Access::Read => 1,
            El2Access::ReadWrite => 1 | 2,
        }),
        memory: None,
    });
    judge.event(EventKind::Spec(Promise { ia, len, to }));
}

impl Own<'_> {
    /// `[from, to)` now is what `at` says.
    fn change(&mut self, from: u64, to: u64, what: Mapped) {
        promise(self.judge, from, to - from, what);
        for (at, says) in &mut self.probes {
            if (from..to).contains(at) {
                *says = what.map(|(pa, attrs)| (pa + (*at - from), attrs));
            }
        }
    }

    fn step(&mut self, [kind, a, b]: [u64; 3]) {
        let judge = self.judge;
        let shape = *self.map.geometry().shape();
        let page = shape.granule().page_size();
        let span = shape.span(Level::L2);
        let (probe, _) = self.probes[a as usize % self.probes.len()];
        let space = 1u64 << shape.ia_bits();
        let size = match kind >> 8 & 3 {
            0 | 1 => (1 + b % 8) * page,
            2 => span,
            _ => 2 * span + b % 2 * page,
        };
        let start = match kind >> 10 & 3 {
            0 => probe & !(span - 1),
            _ => probe,
        };
        let size = size.min(space - start);
        let end = start + size;
        judge.limit.set(if kind >> 12 & 7 == 7 {
            b >> 60 & 3
        } else {
            u64::MAX
        });
        let mut cpu = Cpu(judge);
        if kind & 3 == 3 {
            let (next, why) = match self.map.unmap(&mut cpu, Va::new(start), size) {
                Ok(next) => (next.get(), None),
                Err(stopped) => (stopped.next.get(), Some(stopped.why)),
            };
            assert!(why.is_none_or(|why| why == Error::NoMem), "unmap: {why:?}");
            assert!(next >= start && next <= end && (next == end || why.is_some()));
            self.change(start, next, None);
        } else {
            let attrs = [
                El2Attrs::CODE,
                El2Attrs::RODATA,
                El2Attrs::DATA,
                El2Attrs::DEVICE,
            ][(kind >> 2 & 3) as usize];
            let over = [Over::Nothing, Over::Anything][(kind >> 4 & 1) as usize];
            let leaves = match kind >> 5 & 3 {
                0 => Leaves::Exactly(Level::L3),
                1 => Leaves::AtMost(Level::L2),
                _ => Leaves::Largest,
            };
            // Alike offsets for blocks, and now and then others.
            let shift = if b >> 32 & 3 == 0 { page } else { 0 };
            let pa = MEMORY + (b >> 34 & 1) * 8 * span + (start & (8 * span - 1)) + shift;
            let range = El2Range::new(Va::new(start), Pa::new(pa), size, El2Attrs::DATA);
            let (next, why) = match self.map.map(
                &mut cpu,
                &El2Range {
                    attrs: attrs,
                    ..range
                }
                .leaves(leaves)
                .over(over),
            ) {
                Ok(next) => (next.get(), None),
                Err(stopped) => (stopped.next.get(), Some(stopped.why)),
            };
            assert!(next >= start && next <= end && (next == end || why.is_some()));
            let known = match why {
                Some(Error::Exists { .. }) => over == Over::Nothing,
                Some(Error::NoMem) | None => true,
                _ => false,
            };
            assert!(known, "map: {why:?}");
            if over == Over::Nothing {
                for (at, says) in &self.probes {
                    let same =
                        says.is_none_or(|(was, _)| was == pa.wrapping_add(at.wrapping_sub(start)));
                    assert!(!(start..next).contains(at) || same, "mapped over {at:#x}");
                }
            }
            self.change(start, next, Some((pa, attrs)));
        }
        judge.limit.set(u64::MAX);
        self.check();
    }

    fn check(&self) {
        for &(va, says) in &self.probes {
            let found = self.map.translate(Va::new(va));
            let found = found.map(|(pa, attrs, _)| (pa.get(), attrs));
            assert_eq!(found, says, "{va:#x}");
        }
        let top = 1 << self.map.geometry().shape().ia_bits();
        self.judge.event(EventKind::Quiesce { lo: 0, hi: top });
        if let Some(what) = self.judge.broken.borrow().as_ref() {
            panic!("{what}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let numbers = numbers(data);
    let Some((which, rest)) = numbers.split_first() else {
        return;
    };
    let bit = |n: u32| which >> n & 1 == 1;
    let granule = Granule::ALL[(which % 3) as usize];
    let bits = [36, 39, 42, 48, 52][(which >> 8) as usize % 5];
    let wide = bits > 48;
    let mut config = El2Config::new(granule, bits, if wide { 52 } else { 48 });
    config.lpa2 = wide && granule != Granule::K64;
    config.lva = wide;
    config.features = Features {
        tlb_range: bit(16),
        ttl: bit(17),
        ..config.features
    };
    let geometry = config.validate().expect("every CPU has it");
    let features = mmu_model::Features {
        pa_bits: config.pa_bits,
        lpa2: config.lpa2,
        lva: wide,
        tlbirange: bit(16),
        ttl: bit(17),
        bbm: 0,
        hafdbs: 0,
        ..mmu_model::Features::max()
    };
    let page = granule.page_size();
    let judge = Judge::new(features, 2, page);
    let root = judge.root(page);
    let map = El2Map::new(geometry, root, &judge).expect("aligned as it must be");
    for pe in 0..2 {
        judge.pe.set(pe);
        judge.write(Reg::MairEl2, geometry.mair());
        judge.write(Reg::TcrEl2, geometry.tcr());
        judge.write(Reg::Ttbr0El2, map.ttbr());
        judge.event(EventKind::ISB);
    }
    judge.pe.set(0);
    let span = geometry.shape().span(Level::L2);
    let top = 1u64 << bits;
    let places = [0, span, 2 * span, 5 * span, top - 2 * span, top - span];
    let inside = [0, page, 3 * page, span - page];
    let mut own = Own {
        judge: &judge,
        map,
        probes: places
            .iter()
            .flat_map(|place| inside.map(|at| (place + at, None)))
            .collect(),
    };
    for op in rest.as_chunks().0 {
        own.step(*op);
    }
    own.step([0x303, 0, 0]);
    let done = own.map.unmap(&mut Cpu(&judge), Va::new(0), top);
    assert_eq!(done, Ok(Va::new(top)));
    assert_eq!(judge.live(), 0, "tables are left");
});

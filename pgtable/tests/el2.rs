//! EL2's own map under the model's eyes, for every granule and both sizes.

mod judge;

use judge::{Cpu, Judge};
use mmu_model::{EventKind, Promise, Reg, Target};
use pgtable::{
    El2Access, El2Attrs, El2Config, El2Map, El2Range, Features, Granule, Level, Over, Pa, Va,
};

/// What the image looks like: code, constants, data with a guard page, a
/// device, and a block's worth of memory.
fn ranges(page: u64, block: u64) -> Vec<El2Range> {
    let at =
        |va: u64, pa: u64, size: u64, attrs| El2Range::new(Va::new(va), Pa::new(pa), size, attrs);
    let image = 0x4000_0000;
    let constants = image + 5 * page;
    let data = image + 7 * page;
    vec![
        at(image, image, 5 * page, El2Attrs::CODE),
        at(constants, constants, 2 * page, El2Attrs::RODATA),
        at(data, data, 9 * page, El2Attrs::DATA),
        at(0x0900_0000, 0x0900_0000, page, El2Attrs::DEVICE),
        at(8 * block, 16 * block, 2 * block, El2Attrs::DATA),
    ]
}

fn perms(attrs: El2Attrs) -> u8 {
    match attrs.access {
        El2Access::ReadExecute => 1 | 4,
        El2Access::Read => 1,
        El2Access::ReadWrite => 1 | 2,
    }
}

/// The configuration, and the judge of its like.
fn format(granule: Granule, va_bits: u8, range: bool) -> (El2Config, Judge) {
    let wide = va_bits > 48;
    let lpa2 = wide && granule != Granule::K64;
    let mut config = El2Config::new(granule, va_bits, if wide { 52 } else { 48 });
    config.lpa2 = lpa2;
    config.lva = wide;
    config.features = Features {
        tlb_range: range,
        ttl: range,
        ..config.features
    };
    let features = mmu_model::Features {
        pa_bits: config.pa_bits,
        lpa2,
        lva: wide,
        tlbirange: range,
        ttl: range,
        bbm: 0,
        hafdbs: 0,
        ..mmu_model::Features::max()
    };
    (config, Judge::new(features, 2, granule.page_size()))
}

/// EL2's map on both CPUs, and the operations on it.
struct Image<'j> {
    judge: &'j Judge,
    map: El2Map<&'j Judge>,
    /// One past the last VA.
    top: u64,
}

impl<'j> Image<'j> {
    fn new(judge: &'j Judge, config: &El2Config) -> Result<Self, String> {
        let geometry = config.validate().map_err(|error| error.to_string())?;
        // Tables in the image's own memory, away from what is mapped.
        let root = judge.root(config.granule.page_size());
        let map = El2Map::new(geometry, root, judge).map_err(|error| error.to_string())?;
        for pe in 0..2 {
            judge.pe.set(pe);
            judge.write(Reg::MairEl2, geometry.mair());
            judge.write(Reg::TcrEl2, geometry.tcr());
            judge.write(Reg::Ttbr0El2, map.ttbr());
            judge.event(EventKind::ISB);
        }
        judge.pe.set(0);
        let top = 1 << config.va_bits;
        Ok(Self { judge, map, top })
    }

    fn map(&mut self, range: &El2Range) -> Result<(), String> {
        let done = self.map.map(&mut Cpu(self.judge), range);
        let end = range.va.checked_add(range.size).expect("in the space");
        if done != Ok(end) {
            return Err(format!("{range:?}: {done:?}"));
        }
        let to = Some((range.pa.get(), range.attrs));
        promise(self.judge, range.va.get(), range.size, to);
        Ok(())
    }

    /// In the middle of a range is what it was mapped to.
    fn leads_there(&self, range: &El2Range) -> Result<(), String> {
        let middle = (range.size / 2) & !7;
        let at = Va::new(range.va.get() + middle);
        let (pa, got, _) = self.map.translate(at).ok_or("unmapped")?;
        if (pa.get(), got) != (range.pa.get() + middle, range.attrs) {
            return Err(format!("{range:?}: {pa:?} {got:?}"));
        }
        Ok(())
    }

    fn unmap(&mut self, from: u64, size: u64) -> Result<(), String> {
        let done = self.map.unmap(&mut Cpu(self.judge), Va::new(from), size);
        if done != Ok(Va::new(from + size)) {
            return Err(format!("unmap {from:#x}: {done:?}"));
        }
        promise(self.judge, from, size, None);
        self.quiet()
    }

    fn quiet(&self) -> Result<(), String> {
        let (lo, hi) = (0, self.top);
        self.judge.event(EventKind::Quiesce { lo, hi });
        self.judge.broken.borrow().clone().map_or(Ok(()), Err)
    }
}

fn run(granule: Granule, va_bits: u8, range: bool) -> Result<(), String> {
    let (config, judge) = format(granule, va_bits, range);
    let mut image = Image::new(&judge, &config)?;
    let page = granule.page_size();
    let block = image.map.geometry().shape().span(Level::L2);
    let mut all = ranges(page, block);
    // The last page of the space, high in memory.
    let last = Pa::new((1 << config.pa_bits) - page);
    let va = Va::new(image.top - page);
    all.push(El2Range::new(va, last, page, El2Attrs::DATA));
    for range in &all {
        image.map(range)?;
    }
    image.quiet()?;
    for range in &all {
        image.leads_there(range)?;
    }
    // A guard page out of the data, and one out of a block.
    image.unmap(0x4000_0000 + 9 * page, page)?;
    image.unmap(8 * block + 3 * page, page)?;
    // Code becomes constant: a permission, no break.
    let code = El2Range {
        attrs: El2Attrs::RODATA,
        ..all[0]
    };
    image.map(&code.over(Over::Anything))?;
    image.quiet()?;
    image.unmap(0, image.top)?;
    if judge.live() != 0 {
        return Err(format!("{} tables are left", judge.live()));
    }
    Ok(())
}

fn promise(judge: &Judge, ia: u64, len: u64, to: Option<(u64, El2Attrs)>) {
    let to = to.map(|(pa, attrs)| Target {
        pa,
        perms: Some(perms(attrs)),
        memory: None,
    });
    judge.event(EventKind::Spec(Promise { ia, len, to }));
}

#[test]
fn the_image_map_keeps_the_rules() {
    for granule in Granule::ALL {
        for va_bits in [36, 39, 42, 48, 52] {
            for range in [false, true] {
                if let Err(what) = run(granule, va_bits, range) {
                    panic!("{granule:?}, {va_bits} bits, ranges {range}: {what}");
                }
            }
        }
    }
}

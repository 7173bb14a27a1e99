//! EL2's own map under the model's eyes, for every granule and both sizes.

mod judge;

use judge::{Cpu, Judge};
use mmu_model::{EventKind, Promise, Reg, Target};
use pgtable::{
    El2Access, El2Attrs, El2Config, El2Map, El2Range, Features, Granule, Level, Over, Pa, Va,
};

/// What the image looks like: code, constants, data with a guard page, a
/// device, and a block's worth of memory.
fn ranges(page: u64, block: u64) -> Vec<(El2Range, El2Attrs)> {
    let at =
        |va: u64, pa: u64, size: u64| El2Range::new(Va::new(va), Pa::new(pa), size, El2Attrs::DATA);
    vec![
        (at(0x4000_0000, 0x4000_0000, 5 * page), El2Attrs::CODE),
        (
            at(0x4000_0000 + 5 * page, 0x4000_0000 + 5 * page, 2 * page),
            El2Attrs::RODATA,
        ),
        (
            at(0x4000_0000 + 7 * page, 0x4000_0000 + 7 * page, 9 * page),
            El2Attrs::DATA,
        ),
        (at(0x0900_0000, 0x0900_0000, page), El2Attrs::DEVICE),
        (at(8 * block, 16 * block, 2 * block), El2Attrs::DATA),
    ]
}

fn perms(attrs: El2Attrs) -> u8 {
    match attrs.access {
        El2Access::ReadExecute => 1 | 4,
        El2Access::Read => 1,
        El2Access::ReadWrite => 1 | 2,
    }
}

fn run(granule: Granule, va_bits: u8, range: bool) -> Result<(), String> {
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
    let geometry = config.validate().map_err(|error| error.to_string())?;
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
    let page = granule.page_size();
    let judge = Judge::new(features, 2, page);
    // Tables in the image's own memory, away from what is mapped.
    let root = judge.root(page);
    let mut map = El2Map::new(geometry, root, &judge).map_err(|error| error.to_string())?;
    for pe in 0..2 {
        judge.pe.set(pe);
        judge.write(Reg::MairEl2, geometry.mair());
        judge.write(Reg::TcrEl2, geometry.tcr());
        judge.write(Reg::Ttbr0El2, map.ttbr());
        judge.event(EventKind::ISB);
    }
    judge.pe.set(0);
    let mut cpu = Cpu(&judge);
    let block = geometry.shape().span(Level::L2);
    let top = 1u64 << va_bits;
    let mut all = ranges(page, block);
    // The last page of the space, high in memory.
    let last = El2Range::new(
        Va::new(top - page),
        Pa::new((1 << config.pa_bits) - page),
        page,
        El2Attrs::DATA,
    );
    all.push((last, El2Attrs::DATA));
    for (range, attrs) in &all {
        let done = map.map(
            &mut cpu,
            &El2Range {
                attrs: *attrs,
                ..*range
            },
        );
        let end = range.va.checked_add(range.size).expect("in the space");
        if done != Ok(end) {
            return Err(format!("{range:?}: {done:?}"));
        }
        promise(
            &judge,
            range.va.get(),
            range.size,
            Some((range.pa.get(), *attrs)),
        );
    }
    quiet(&judge, top)?;
    for (range, attrs) in &all {
        let middle = (range.size / 2) & !7;
        let (pa, got, _) = map
            .translate(Va::new(range.va.get() + middle))
            .ok_or("unmapped")?;
        if (pa.get(), got) != (range.pa.get() + middle, *attrs) {
            return Err(format!("{range:?}: {pa:?} {got:?}"));
        }
    }
    // A guard page out of the data, and one out of a block.
    for guard in [0x4000_0000 + 9 * page, 8 * block + 3 * page] {
        let done = map.unmap(&mut cpu, Va::new(guard), page);
        if done != Ok(Va::new(guard + page)) {
            return Err(format!("guard: {done:?}"));
        }
        promise(&judge, guard, page, None);
        quiet(&judge, top)?;
    }
    // Code becomes constant: a permission, no break.
    let (code, _) = all[0];
    let done = map.map(
        &mut cpu,
        &El2Range {
            attrs: El2Attrs::RODATA,
            ..code
        }
        .over(Over::Anything),
    );
    if done.is_err() {
        return Err(format!("protect: {done:?}"));
    }
    promise(
        &judge,
        code.va.get(),
        code.size,
        Some((code.pa.get(), El2Attrs::RODATA)),
    );
    quiet(&judge, top)?;
    let done = map.unmap(&mut cpu, Va::new(0), top);
    if done != Ok(Va::new(top)) {
        return Err(format!("unmap all: {done:?}"));
    }
    promise(&judge, 0, top, None);
    quiet(&judge, top)?;
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

fn quiet(judge: &Judge, top: u64) -> Result<(), String> {
    judge.event(EventKind::Quiesce { lo: 0, hi: top });
    judge.broken.borrow().clone().map_or(Ok(()), Err)
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

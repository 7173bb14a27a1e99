//! EL2's own stage 1 by `pgtable`: each format that the CPU has is turned on for
//! a while, and its rights and addresses are tried; then one of them stays on for
//! the rest of the program, so that RAM is Normal memory, where CPUs may share.

use arm64::instr;
use arm64::regs::SCTLR_EL2;
use core::arch::asm;
use core::sync::atomic::Ordering;

use pgtable::{
    El2Access, El2Attrs, El2Config, El2Geometry, El2Map, El2Range, Granule, Leaves, Level, Pa, Va,
};
use tests::bare::asm::{clean, read64, write64};
use tests::bare::console::{self, Console};
use tests::bare::exception::{Caught, probe};
use tests::bare::{machine, mmu};
use tests::println;
use tests::suite::Suite;

use crate::cpu::{Cpu, name};
use crate::erratum::errata;
use crate::instructions::{Instructions, at_el2};
use crate::memory::{CODE, DATA, Pool, RETURNS};
use crate::text::Name;

/// SCTLR_EL2: MMU, data and instruction caches.
const ON: u64 = 1 | 1 << 2 | 1 << 12;

unsafe extern "C" {
    static text_end: u8;
}

/// Every format of EL2's stage 1 that the CPU has.
pub fn configurations(cpu: &Cpu) -> impl Iterator<Item = El2Config> {
    let granules = [Granule::K4, Granule::K16, Granule::K64].into_iter();
    let forms = granules.flat_map(|granule| [(granule, false), (granule, true)]);
    let forms = forms.filter(|&(granule, lpa2)| cpu.has_stage1(granule, lpa2));
    forms.flat_map(move |(granule, lpa2)| {
        (32..=52).map(move |va_bits| El2Config {
            lpa2,
            lva: cpu.lva,
            features: cpu.features,
            errata: errata(),
            ..El2Config::new(granule, va_bits, cpu.pa_bits)
        })
    })
}

/// Tries each format; one line each. The MMU is off before and after.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu) {
    let mut formats = 0;
    for config in configurations(cpu) {
        let Ok(geometry) = config.validate() else {
            continue;
        };
        formats += 1;
        let shape = geometry.shape();
        let form = if config.lpa2 { "-lpa2" } else { "" };
        let (granule, start) = (name(config.granule), shape.start().get());
        let title = Name::new(format_args!(
            "el2/{granule}{form}/va{}/start{start}",
            config.va_bits
        ));
        let result = steps(&geometry);
        suite.check(
            title.text(),
            result.is_ok(),
            result.err().unwrap_or_default(),
        );
    }
    let expected = expected(cpu);
    suite.equal("el2/formats", formats, expected);
    println!("EL2's stage 1: {formats} formats");
}

/// How many there are, counted apart from `pgtable`: a VA of 32 to 48 bits, or to
/// 52 with LPA2 and with 64K and FEAT_LVA.
fn expected(cpu: &Cpu) -> u64 {
    let of = |sizes: u8, wide: u64| match sizes {
        0 => 0,
        1 => 17,
        _ => 17 + wide,
    };
    let large = if cpu.lva { 21 } else { 17 };
    of(cpu.stage1[0], 21) + of(cpu.stage1[1], 21) + u64::from(cpu.stage1[2] != 0) * large
}

fn hold(right: bool, step: &'static str) -> Result<(), &'static str> {
    if right { Ok(()) } else { Err(step) }
}

/// A tree that maps the image, RAM and the console at their own addresses.
fn build(geometry: El2Geometry, pool: &Pool) -> Result<El2Map<&Pool>, &'static str> {
    let page = geometry.shape().granule().page_size();
    let root = pool.block(geometry.shape().root_align().max(page));
    let mut map = El2Map::new(geometry, Pa::new(root), pool).map_err(|_| "new")?;
    let machine = machine::get();
    let text = machine.image.start..(&raw const text_end).addr() as u64;
    identity(&mut map, text.start, text.end, El2Attrs::CODE)?;
    for ram in machine.ram.iter().filter(|ram| !ram.is_empty()) {
        let text = text.start.clamp(ram.start, ram.end)..text.end.clamp(ram.start, ram.end);
        identity(&mut map, ram.start, text.start, El2Attrs::DATA)?;
        identity(&mut map, text.end, ram.end, El2Attrs::DATA)?;
    }
    let uart = machine.uart & !(page - 1);
    identity(&mut map, uart, uart + page, El2Attrs::DEVICE)?;
    Ok(map)
}

fn identity(
    map: &mut El2Map<&Pool>,
    start: u64,
    end: u64,
    attrs: El2Attrs,
) -> Result<(), &'static str> {
    put(map, start, start, end - start, attrs, Leaves::Largest)
}

fn put(
    map: &mut El2Map<&Pool>,
    va: u64,
    pa: u64,
    size: u64,
    attrs: El2Attrs,
    leaves: Leaves,
) -> Result<(), &'static str> {
    let range = El2Range::new(Va::new(va), Pa::new(pa), size, El2Attrs::DATA);
    map.map(
        &mut Instructions,
        &El2Range { attrs, ..range }.leaves(leaves),
    )
    .map_err(|_| "map")
    .and_then(|next| hold(next.get() == va + size, "map ends early"))
}

/// Turns the MMU on, with what was written until `end` seen by it.
fn on(geometry: &El2Geometry, ttbr: u64, end: u64) {
    clean(machine::get().image.start, end);
    // SAFETY: The map holds the image, the stack and the console where they are.
    unsafe {
        asm!(
            "ic iallu", "tlbi alle2", "dsb nsh", "isb",
            "msr ttbr0_el2, {0}", "msr tcr_el2, {1}", "msr mair_el2, {2}", "isb",
            "msr sctlr_el2, {3}", "isb",
            in(reg) ttbr, in(reg) geometry.tcr(), in(reg) geometry.mair(),
            in(reg) SCTLR_EL2.get() | ON,
            options(nostack),
        );
    }
}

/// Turns the MMU off; what was written until `end` is in memory then.
fn off(end: u64) {
    let line = instr::dcache_line();
    // SAFETY: All is mapped at its own address. Nothing is read or written until
    // the caches are clean.
    unsafe {
        asm!(
            "msr sctlr_el2, {0}", "isb",
            "2:", "dc civac, {1}", "add {1}, {1}, {2}", "cmp {1}, {3}", "b.lo 2b",
            "dsb sy", "tlbi alle2", "dsb nsh", "isb",
            in(reg) SCTLR_EL2.get() & !ON,
            inout(reg) machine::get().image.start & !(line - 1) => _,
            in(reg) line, in(reg) end,
            options(nostack),
        );
    }
}

/// Calls what stands at `at`.
fn call(at: u64) -> u64 {
    let result: u64;
    // SAFETY: A function of ours, or an exception that is expected.
    unsafe { asm!("blr {}", in(reg) at, lateout("x0") result, out("x30") _, clobber_abi("C")) };
    result
}

/// Whether an exception was a fault of this kind: 1 translation, 3 permission.
fn faulted<T>(result: Result<T, Caught>, kind: u64) -> bool {
    result.is_err_and(|caught| match caught.esr & 0x3f {
        0x2b => kind == 1,
        status => status >> 2 == kind,
    })
}

const TRANSLATION: u64 = 1;
const PERMISSION: u64 = 3;

fn steps(geometry: &El2Geometry) -> Result<(), &'static str> {
    let shape = geometry.shape();
    let page = shape.granule().page_size();
    let pool = Pool::plain(page);
    let mut map = build(*geometry, &pool)?;
    let end = 1u64 << shape.ia_bits();
    let frame = pool.block(page);
    // SAFETY: A frame of this check's: `mov x0, #…; ret`, and two words.
    unsafe {
        write64(frame, 0x1234);
        write64(frame + CODE, 0xd65f_03c0_d280_0000 | RETURNS << 5);
        write64(frame + page - 8, 0x5678);
    }
    let [data, rodata, code, device, hole] = [1, 2, 3, 4, 5].map(|n| end - n * page);
    put(&mut map, data, frame, page, El2Attrs::DATA, Leaves::Largest)?;
    put(
        &mut map,
        rodata,
        frame,
        page,
        El2Attrs::RODATA,
        Leaves::Largest,
    )?;
    put(&mut map, code, frame, page, El2Attrs::CODE, Leaves::Largest)?;
    let uart = machine::get().uart & !(page - 1);
    put(
        &mut map,
        device,
        uart,
        page,
        El2Attrs::DEVICE,
        Leaves::Largest,
    )?;
    // Blocks of each level where nothing is, behind which nothing need be.
    let mut blocks = [None; 3];
    let levels = [Level::L0, Level::L1, Level::L2].into_iter();
    for (level, block) in levels.zip(&mut blocks) {
        let span = shape.span(level);
        if !shape.leaf_ok(level) || level < shape.start() || span > end / 4 {
            continue;
        }
        let free = |va: &u64| {
            let own = machine::get().ram.iter().any(|ram| {
                let start = ram.start & !(span - 1);
                !ram.is_empty() && *va < ram.end && start < va + span
            });
            let ends = [*va, va + span - page];
            !own && va + span <= hole && ends.iter().all(|&at| map.translate(Va::new(at)).is_none())
        };
        let places = [end / 2, end / 4 * 3, end / 4, end / 4 * 3 - span];
        let Some(va) = places.into_iter().find(free) else {
            continue;
        };
        let pa = (1u64 << shape.oa_bits()) - span;
        put(
            &mut map,
            va,
            pa,
            span,
            El2Attrs::DATA,
            Leaves::Exactly(level),
        )?;
        *block = Some((va, pa, span));
    }

    on(geometry, map.ttbr(), pool.used());
    let live = tried(&mut map, [data, rodata, code, device, hole], frame, &blocks);
    off(pool.used());
    live?;
    let gone = map.unmap(&mut Instructions, Va::new(0), end);
    hold(gone.is_ok_and(|next| next.get() == end), "unmap all")?;
    hold(pool.live() == 0, "unmap frees all tables")
}

/// What is checked while the MMU is on.
fn tried(
    map: &mut El2Map<&Pool>,
    [data, rodata, code, device, hole]: [u64; 5],
    frame: u64,
    blocks: &[Option<(u64, u64, u64)>],
) -> Result<(), &'static str> {
    let page = map.geometry().shape().granule().page_size();
    let last = page - 8;
    // SAFETY: In the probes: pages of this check's, or the fault.
    let load = |at| probe(|| unsafe { read64(at) });
    // SAFETY: As above.
    let store = |at, value| probe(|| unsafe { write64(at, value) });
    hold(load(data) == Ok(0x1234), "data: load")?;
    hold(store(data + last, 0x9abc).is_ok(), "data: store")?;
    hold(load(frame + last) == Ok(0x9abc), "data: stored")?;
    hold(
        faulted(probe(|| call(data + CODE)), PERMISSION),
        "data: fetch",
    )?;
    hold(load(rodata + last) == Ok(0x9abc), "rodata: load")?;
    hold(faulted(store(rodata, 1), PERMISSION), "rodata: store")?;
    hold(
        faulted(probe(|| call(rodata + CODE)), PERMISSION),
        "rodata: fetch",
    )?;
    hold(probe(|| call(code + CODE)) == Ok(RETURNS), "code: fetch")?;
    hold(load(code) == Ok(0x1234), "code: load")?;
    hold(faulted(store(code, 1), PERMISSION), "code: store")?;
    hold(faulted(load(hole), TRANSLATION), "hole: load")?;
    let at = at_el2(data + 8);
    hold(
        at.is_ok_and(|at| at.pa == frame + 8 && at.attr == 0xff && at.share == 3),
        "data: AT",
    )?;
    let uart = machine::get().uart & !(page - 1);
    hold(
        at_el2(device).is_ok_and(|at| at.pa == uart && at.attr == 0x04),
        "device: AT",
    )?;
    hold(at_el2(hole).is_err(), "hole: AT")?;
    let found = map.translate(Va::new(rodata));
    hold(
        found.is_some_and(|(pa, attrs, _)| pa.get() == frame && attrs.access == El2Access::Read),
        "rodata: translate",
    )?;
    for &(va, pa, span) in blocks.iter().flatten() {
        let right = |offset| at_el2(va + offset).is_ok_and(|at| at.pa == pa + offset);
        let ends = [0, page, span / 2, span - page, span - 8];
        hold(ends.iter().all(|&offset| right(offset)), "block: AT")?;
        // A page of it goes: split, with the MMU on.
        let gone = map.unmap(&mut Instructions, Va::new(va + page), page);
        hold(gone.is_ok(), "block: unmap a page")?;
        hold(at_el2(va + page).is_err(), "block: AT, a page less")?;
        hold(
            right(0) && right(2 * page) && right(span - 8),
            "block: AT beside it",
        )?;
    }
    let gone = map.unmap(&mut Instructions, Va::new(data), page);
    hold(gone.is_ok(), "data: unmap")?;
    hold(faulted(load(data), TRANSLATION), "data: load, unmapped")?;
    hold(load(rodata) == Ok(0x1234), "rodata: still there")
}

/// Turns on the widest map that the CPU has, for good, for this CPU and for those
/// that come later; `high` is RAM besides what the device tree names.
pub fn stay(cpu: &Cpu, high: Option<u64>) -> Option<u64> {
    let wide = configurations(cpu)
        .filter(|config| config.validate().is_ok())
        .filter(|config| config.pa_bits < 52 || config.lpa2 || config.granule == Granule::K64)
        .filter(|config| config.va_bits >= 48)
        .max_by_key(|config| config.va_bits)?;
    let geometry = wide.validate().ok()?;
    let pool = Pool::plain(wide.granule.page_size());
    let mut map = build(geometry, &pool).ok()?;
    let high = high.filter(|&at| (at + DATA) >> geometry.shape().oa_bits() == 0);
    let high = high.filter(|&at| (at + DATA) >> wide.va_bits == 0);
    if let Some(at) = high {
        identity(&mut map, at, at + DATA, El2Attrs::DATA).ok()?;
    }
    let (ttbr, end) = (map.ttbr(), pool.used());
    pool.keep();
    on(&geometry, ttbr, end);
    let registers = [ttbr, geometry.tcr(), geometry.mair(), SCTLR_EL2.get()];
    for (register, value) in mmu::REGISTERS.iter().zip(registers) {
        register.store(value, Ordering::Relaxed);
    }
    console::share();
    println!(
        "EL2's stage 1 from here on: {} granule, {} bits",
        name(wide.granule),
        wide.va_bits
    );
    high
}

//! QEMU's range TLBI, whose length is computed in 32 bits: a multiple of 4 GiB
//! leaves stage-2 entries behind. What is kept is a walk's own access to a
//! stage-1 table, so EL1's MMU is on here.

use arm64::regs::{MAIR_EL1, SCTLR_EL1, TCR_EL1, TTBR0_EL1};
use pgtable::{
    Attrs, Budget, Caches, Errata, Granule, Ignore, Ipa, Leaves, Level, Map, Pa, Partial, Stage2,
    Stage2Config, Unmap, Vmid,
};
use tests::bare::asm::{steer, write64};
use tests::bare::console::Console;
use tests::println;
use tests::suite::Suite;

use crate::cpu::Cpu;
use crate::guest::{self, Stage1};
use crate::instructions::{Instructions, translate};
use crate::memory::Pool;

/// What is worked around in all other checks.
pub fn errata() -> Errata {
    Errata::QEMU_RANGE_LENGTH
}

const GIB: u64 = 1 << 30;
/// The range that goes: 4 GiB, at 4 GiB.
const RANGE: u64 = 4 * GIB;

/// With the work-around nothing is stale; whether there is something without is
/// the machine's, and told.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu) {
    if !cpu.features.tlb_range || cpu.pa_bits < 36 {
        println!("erratum qemu-range-length: no range operations on this CPU");
        return;
    }
    let with = stale(cpu, errata());
    suite.check(
        "erratum/qemu-range-length-avoided",
        with == Some(false),
        format_args!("{with:?}"),
    );
    let without = stale(cpu, Errata::NONE);
    suite.check(
        "erratum/qemu-range-length-runs",
        without.is_some(),
        "could not be tried",
    );
    let word = if without == Some(true) {
        "shown"
    } else {
        "not shown"
    };
    println!("erratum qemu-range-length: {word} without the work-around");
}

/// Whether a walk still goes through a 4 GiB range that was unmapped.
fn stale(cpu: &Cpu, errata: Errata) -> Option<bool> {
    let config = Stage2Config {
        features: cpu.features,
        errata,
        ..Stage2Config::new(Granule::K4, 36, cpu.pa_bits)
    };
    let geometry = config.validate().ok()?;
    let pool = Pool::new(4096);
    let root = pool.block(geometry.root_align().max(4096));
    let mut tree = Stage2::new(geometry, Pa::new(root), Vmid::new(9), &pool).ok()?;
    let maint = &mut Instructions;
    let budget = &mut Budget::unlimited();
    guest::load(&geometry, tree.vttbr(), Stage1::Own);
    // RAM at its own address, and four times over in the range.
    let ram = root & !(GIB - 1);
    let places = [ram, RANGE, RANGE + GIB, RANGE + 2 * GIB, RANGE + 3 * GIB];
    for ipa in places {
        // Leaves enough for a range to be cheaper than one by one.
        let map = Map::new(Ipa::new(ipa), Pa::new(ram), GIB, Attrs::MEMORY)
            .leaves(Leaves::AtMost(Level::L2))
            .caches(Caches::Skip);
        tree.map(maint, &map, budget).ok()?;
    }
    // Stage 1: one table of 1 GiB blocks, known by its IPA in the range.
    let table = pool.block(4096);
    // SAFETY: A page of the pool's.
    unsafe { write64(table + 8 * (ram / GIB), ram | 1 | 1 << 10 | 3 << 8) };
    // SAFETY: EL1's, which runs no code but for the translations below.
    unsafe {
        steer(MAIR_EL1, 0xff);
        steer(TCR_EL1, 25 | 1 << 23 | 2 << 32);
        steer(TTBR0_EL1, RANGE + (table - ram));
        steer(SCTLR_EL1, 0x30d0_0801);
    }
    let before = translate(root);
    let gone = tree.unmap(
        maint,
        &Unmap::new(Ipa::new(RANGE), 4 * GIB).partial(Partial::Refuse),
        &mut Ignore,
        budget,
    );
    let after = translate(root);
    // SAFETY: As above.
    unsafe { steer(SCTLR_EL1, 0x30d0_0800) };
    guest::load(&geometry, tree.vttbr(), Stage1::Own);
    if before != Ok(root) || gone.is_err() {
        return None;
    }
    Some(after.is_ok())
}

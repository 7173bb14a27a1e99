//! The CPU of `pgtable`'s example, which whoever uses the crate begins with: what it
//! executes takes entries out of the TLBs of this one.

// The very file: nothing else builds it for arm64.
#[path = "../../../../pgtable/examples/hypervisor/cpu.rs"]
mod executes;

use arm64::regs::VTTBR_EL2;
use pgtable::{
    Attrs, Budget, Granule, Ignore, Ipa, Map, Over, Pa, Stage2, Stage2Config, Unmap, Vmid,
};
use tests::bare::console::Console;
use tests::suite::Suite;

use crate::cpu::Cpu;
use crate::erratum::errata;
use crate::guest::{self, Stage1};
use crate::memory::{Data, Pool};

/// With the features that the CPU has, and as if it had none: then caches are
/// cleaned, and each entry is invalidated by itself.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu, data: &Data) {
    let oldest = Stage2Config::new(Granule::K4, 32, 32).features;
    for (name, features) in [
        ("example/features-of-the-cpu", cpu.features),
        ("example/no-features", oldest),
    ] {
        let granules = [Granule::K4, Granule::K16, Granule::K64];
        for granule in granules.into_iter().filter(|&g| cpu.has(g, false)) {
            let config = Stage2Config {
                features,
                errata: errata(),
                ..Stage2Config::new(granule, 32, cpu.pa_bits)
            };
            let result = steps(config, data);
            suite.check(name, result.is_ok(), result.err().unwrap_or_default());
        }
    }
}

/// A page is mapped, replaced and unmapped, with its own tree loaded or another
/// VMID's; EL1 looks at it.
fn steps(config: Stage2Config, data: &Data) -> Result<(), &'static str> {
    let geometry = config.validate().map_err(|_| "the configuration")?;
    let page = geometry.granule().page_size();
    let (pool, executes) = (Pool::new(page), &mut executes::Cpu::new());
    let new = |vmid| {
        let root = Pa::new(pool.block(geometry.root_align().max(page)));
        Stage2::new(geometry, root, Vmid::new(vmid), &pool).map_err(|_| "a tree")
    };
    let (mut tree, other) = (new(21)?, new(22)?);
    let all = &mut Budget::unlimited();
    let hold = |right: bool, what| if right { Ok(()) } else { Err(what) };
    let map = |ipa: u64, pa: u64| {
        let map = Map::new(Ipa::new(ipa), Pa::new(pa), page, Attrs::MEMORY);
        map.over(Over::Anything)
    };
    let (first, second) = (data.base, data.base + page);
    tree.map(executes, &map(guest::code(), guest::code()), all)
        .map_err(|_| "EL1's code")?;
    for loaded in [&tree.vttbr(), &other.vttbr()] {
        tree.map(executes, &map(page, first), all)
            .map_err(|_| "map")?;
        guest::load(&geometry, tree.vttbr(), Stage1::Off);
        hold(guest::read(page) == Ok(first), "what is mapped")?;
        guest::switch(*loaded);
        tree.map(executes, &map(page, second), all)
            .map_err(|_| "replace")?;
        hold(VTTBR_EL2.get() == *loaded, "the registers put back")?;
        guest::switch(tree.vttbr());
        hold(guest::read(page) == Ok(second), "what is replaced")?;
        guest::switch(*loaded);
        let range = Unmap::new(Ipa::new(page), page);
        tree.unmap(executes, &range, &mut Ignore, all)
            .map_err(|_| "unmap")?;
        guest::switch(tree.vttbr());
        let gone = guest::met(guest::read(page), guest::Kind::Translation, page);
        hold(gone, "what is unmapped")?;
    }
    Ok(())
}

//! `VTCR_EL2.PS`: a geometry for less than the CPU's physical addresses says so,
//! and the CPU faults on an output address beyond it.

use pgtable::{Attrs, Budget, Caches, Geometry, Granule, Ipa, Map, Pa, Stage2, Stage2Config, Vmid};
use tests::bare::console::Console;
use tests::suite::Suite;

use crate::cpu::{Cpu, name};
use crate::erratum::errata;
use crate::guest::{self, Stage1};
use crate::instructions::{Instructions, translate};
use crate::memory::Pool;
use crate::text::Name;

/// Each size below the CPU's, in every granule and form: one line each.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu) {
    let granules = [Granule::K4, Granule::K16, Granule::K64].into_iter();
    let forms = granules.flat_map(|granule| [(granule, false), (granule, true)]);
    for (granule, lpa2) in forms.filter(|&(granule, lpa2)| cpu.has(granule, lpa2)) {
        let geometry = |pa_bits: u8| {
            let config = Stage2Config {
                lpa2,
                features: cpu.features,
                errata: errata(),
                ..Stage2Config::new(granule, 32, pa_bits)
            };
            config.validate().ok()
        };
        let Some(whole) = geometry(cpu.pa_bits) else {
            continue;
        };
        for pa_bits in [32, 36, 40, 42, 44, 48] {
            let small = geometry(pa_bits).filter(|_| pa_bits < whole.shape().oa_bits());
            // With 64K, what an address above 48 bits looks like is nothing to a
            // CPU that is told of 48: the bits are not looked at.
            let Some(small) = small.filter(|_| pa_bits < 48 || granule != Granule::K64) else {
                continue;
            };
            let form = if lpa2 { "-lpa2" } else { "" };
            let title = Name::new(format_args!("output/{}{form}/pa{pa_bits}", name(granule)));
            let result = steps(whole, small);
            suite.check(
                title.text(),
                result.is_ok(),
                result.err().unwrap_or_default(),
            );
        }
    }
}

/// PAR_EL1 tells an address size fault of stage 2.
fn is_too_large(par: u64) -> bool {
    let status = par >> 1 & 0x3f;
    (status <= 3 || status == 0x29) && par >> 9 & 1 == 1
}

/// Two pages around the end of the smaller size, seen with each of both.
fn steps(whole: Geometry, small: Geometry) -> Result<(), &'static str> {
    let page = whole.granule().page_size();
    let pool = Pool::new(page);
    let root = pool.block(whole.root_align().max(page));
    let tree = Stage2::new(whole, Pa::new(root), Vmid::new(13), &pool).map_err(|_| "the tree")?;
    let end = 1u64 << small.shape().oa_bits();
    for (ipa, pa) in [(page, end - page), (2 * page, end)] {
        let map = Map::new(Ipa::new(ipa), Pa::new(pa), page, Attrs::MEMORY).caches(Caches::Skip);
        tree.map(&mut Instructions, &map, &mut Budget::unlimited())
            .map_err(|_| "map")?;
    }
    let hold = |right: bool, what| if right { Ok(()) } else { Err(what) };
    guest::load(&whole, tree.vttbr(), Stage1::Off);
    hold(translate(page) == Ok(end - page), "the CPU's size, below")?;
    hold(translate(2 * page) == Ok(end), "the CPU's size, above")?;
    guest::load(&small, tree.vttbr(), Stage1::Off);
    hold(translate(page) == Ok(end - page), "the smaller size, below")?;
    hold(
        translate(2 * page).is_err_and(is_too_large),
        "the smaller size, above",
    )?;
    // And `pgtable` refuses it, when it is asked for with that size.
    let tree = Stage2::new(small, Pa::new(root), Vmid::new(13), &pool).map_err(|_| "small")?;
    let map = Map::new(Ipa::new(4 * page), Pa::new(end), page, Attrs::MEMORY);
    let refused = tree.map(&mut Instructions, &map, &mut Budget::unlimited());
    hold(refused.is_err(), "the smaller size, mapped above")
}

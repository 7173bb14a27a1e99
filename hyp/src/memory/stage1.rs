//! EL2's own map: what it needs, each part with just the rights it needs, at its
//! own address.
//!
//! Code is executable and read-only; constants are read-only; data, stacks and
//! the rest of RAM are writable and never executable; each stack has an unmapped
//! guard below. Of devices, the log's UART and the GIC.

use pgtable::{El2Attrs, El2Config, El2Geometry, El2Map, El2Range, Errata, Pa, Va};

use super::maintenance;
use super::pool::BootPool;
use super::region::{Region, Regions};
use crate::errors::errors;
use crate::features::{Features, GranuleSupport};
use arm64::bits;
use arm64::frame::Regime;

/// The parts of the image, by rights.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Instructions.
    pub text: Region,
    /// Constants, relocations, and the appendix behind the image.
    pub rodata: [Region; 2],
    /// Everything writable.
    pub data: Region,
}

impl Image {
    /// All of it.
    pub fn region(&self) -> Region {
        let end = self.rodata[1].end().max(self.data.end());
        Region::new(self.text.base(), end - self.text.base()).unwrap_or(self.text)
    }
}

/// SCTLR_EL2: RES1, and I, SA, C, A, M; WXN, so that what is writable is never
/// executable whatever its descriptor says.
pub const SCTLR: u64 = 0x30c5_0830 | bits!(SCTLR_EL2: M, A, C, SA, I, WXN);

/// EL2's stage 1 with this granule on this CPU: an identity map needs as many VA
/// bits as there are PA bits. `own` are other numbers of them, of VA and PA, as far as
/// the CPU has them.
///
/// # Errors
/// What the architecture does not have.
pub fn geometry(
    features: &Features,
    granule: pgtable::Granule,
    own: Option<(u8, u8)>,
) -> Result<El2Geometry, pgtable::ConfigError> {
    let support = features.stage1(granule);
    let reach = features.max_bits(granule, support);
    let (va_bits, pa_bits) = own.unwrap_or((reach, features.pa_bits));
    let lpa2 = support == GranuleSupport::Lpa2 && va_bits.max(pa_bits) > 48;
    let wide = lpa2 || granule == pgtable::Granule::K64 && features.lva;
    let va_bits = va_bits.clamp(32, if wide { 52 } else { 48 });
    let mut config = El2Config::new(granule, va_bits, pa_bits.min(features.pa_bits));
    config.lpa2 = lpa2;
    config.lva = features.lva;
    config.features.tlb_range = features.tlbi_range;
    config.features.ttl = features.ttl;
    config.errata = Errata::QEMU_RANGE_LENGTH;
    config.validate()
}

/// Table pages that the map takes at most: for each part the tables of both its
/// ends, at every level.
pub fn pool_pages(ram: &Regions, pes: usize) -> u64 {
    let parts = ram.iter().count() as u64 + 2 * pes as u64 + 16;
    4 + 8 * parts
}

/// What the map has.
#[derive(Debug)]
pub struct Parts<'a, S> {
    /// EL2's image.
    pub image: &'a Image,
    /// RAM, the image's and the stacks' too.
    pub ram: &'a Regions,
    /// The stacks and their guards.
    pub stacks: Region,
    /// Those of them that are no guards.
    pub stack_parts: S,
    /// Devices that EL2 drives.
    pub devices: &'a Regions,
}

errors! {
    /// Why there is no map.
    MapError {
        Pool: "the pool of EL2's tables is too small",
        Root: "EL2's root table lies beyond the CPU's reach",
        Part: "EL2 cannot map what the device tree names: two parts overlap, or lie beyond the CPU's address range",
        Pieces: "the machine's RAM is in too many pieces",
    }
}

/// Builds the map and returns what asm.S loads.
///
/// # Errors
/// A machine that the tables cannot cover.
pub fn build(
    parts: Parts<'_, impl Iterator<Item = Region>>,
    geometry: El2Geometry,
    mut pe: maintenance::Pe,
    pool: &BootPool,
) -> Result<Regime, MapError> {
    let root = pool.take().ok_or(MapError::Pool)?;
    let mut map = El2Map::new(geometry, root, pool).map_err(|_| MapError::Root)?;
    let granule = geometry.shape().granule().page_size();
    let mut add = |region: Region, attrs: El2Attrs| {
        let region = region.grow_to(granule);
        if region.is_empty() {
            return Ok(());
        }
        let (va, pa) = (Va::new(region.base()), Pa::new(region.base()));
        let range = El2Range::new(va, pa, region.size(), attrs);
        map.map(&mut pe, &range)
            .map(|_| ())
            .map_err(|_| MapError::Part)
    };

    let image = parts.image;
    add(image.text, El2Attrs::CODE)?;
    for part in image.rodata {
        add(part, El2Attrs::RODATA)?;
    }
    add(image.data, El2Attrs::DATA)?;

    // RAM, less the image and the stacks' region; of that, what is no guard.
    let mut ram = parts.ram.clone();
    for region in [image.region(), parts.stacks] {
        ram.remove(region.grow_to(granule))
            .map_err(|_| MapError::Pieces)?;
    }
    for region in ram.iter() {
        add(*region, El2Attrs::DATA)?;
    }
    for stack in parts.stack_parts {
        add(stack, El2Attrs::DATA)?;
    }
    for region in parts.devices.iter() {
        add(*region, El2Attrs::DEVICE)?;
    }

    Ok(Regime {
        ttbr0: map.ttbr(),
        tcr: geometry.tcr(),
        mair: geometry.mair(),
        sctlr: SCTLR,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgtable::Granule;

    /// T0SZ, PS and DS of TCR_EL2 (Arm ARM): bits of VA, the code of PA, LPA2.
    fn fields(features: &Features, granule: Granule, own: Option<(u8, u8)>) -> (u64, u64, bool) {
        let tcr = geometry(features, granule, own).expect("it is legal").tcr();
        (64 - (tcr & 0x3f), tcr >> 16 & 7, tcr >> 32 & 1 == 1)
    }

    #[test]
    fn own_addresses_are_as_wide_as_asked_for_where_the_cpu_has_them() {
        let lpa2 = Features {
            pa_bits: 52,
            lva: true,
            stage1: [GranuleSupport::Lpa2; 3],
            ..Features::default()
        };
        let lpa = Features {
            stage1: [GranuleSupport::Yes; 3],
            ..lpa2
        };
        let narrow = Features {
            pa_bits: 48,
            lva: false,
            ..lpa
        };
        let own = [None, Some((48, 48)), Some((48, 52)), Some((52, 48))];
        let all = |features, granule| own.map(|own| fields(features, granule, own));
        for granule in [Granule::K4, Granule::K16] {
            let wide = [(52, 6, true), (48, 5, false), (48, 6, true), (52, 5, true)];
            assert_eq!(all(&lpa2, granule), wide);
            for features in [&lpa, &narrow] {
                assert_eq!(all(features, granule), [(48, 5, false); 4]);
            }
        }
        let wide = [
            (52, 6, false),
            (48, 5, false),
            (48, 6, false),
            (52, 5, false),
        ];
        let lpa2_of_64k = Features {
            stage1: [
                GranuleSupport::Lpa2,
                GranuleSupport::Lpa2,
                GranuleSupport::Yes,
            ],
            ..lpa2
        };
        assert_eq!(all(&lpa2_of_64k, Granule::K64), wide);
        assert_eq!(all(&lpa, Granule::K64), wide);
        assert_eq!(all(&narrow, Granule::K64), [(48, 5, false); 4]);
        let no_lva = Features { lva: false, ..lpa };
        let least = [
            (48, 6, false),
            (48, 5, false),
            (48, 6, false),
            (48, 5, false),
        ];
        assert_eq!(all(&no_lva, Granule::K64), least);
    }
}

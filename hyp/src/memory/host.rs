//! The host's stage 2: identity, less what it gave away and what is EL2's.
//!
//! RAM is mapped at boot, in the largest blocks. Devices are mapped when the
//! host first touches them, in the largest block that holds no RAM.
//!
//! Lock protocol: one lock for the tree, taken after a granule's lock and
//! before nothing. The pool is sized so that every granule of RAM can be mapped
//! apart ([`HostMemory::pool_pages`]): taking one out cannot run out of tables
//! as long as devices leave enough, and they are refused the last pages.

use pgtable::{
    Attrs, Budget, Caches, Errata, Geometry, Ignore, Ipa, Leaves, Level, Map, Over, Pa, Partial,
    Stage2, Stage2Config, Vmid,
};
use spin::mutex::SpinMutex;

use super::maintenance;
use super::pool::Pool;
use super::region::{Region, Regions};
use crate::cpu::features::Features;

/// The host's VMID; guests have the others.
pub const HOST_VMID: u16 = 0;

/// Table pages that device mappings leave alone, for each range of RAM.
const RESERVE_FOR_DEVICES: u64 = 64;

/// The host's memory, as it sees it.
#[derive(Debug)]
pub struct HostMemory {
    tree: SpinMutex<Stage2<&'static Pool>>,
    pool: &'static Pool,
    ram_tables: u64,
    vttbr: u64,
    vtcr: u64,
    line: u64,
}

/// Why the host cannot have a device mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The address is RAM, or no address of this machine.
    NotDevice,
    /// The reserve of table pages is used up.
    NoTables,
}

/// Stage 2 for `ipa_bits` on this CPU.
///
/// # Errors
/// What the architecture does not have.
pub fn geometry(
    features: &Features,
    granule: pgtable::Granule,
    ipa_bits: u8,
    lpa2: bool,
    start: pgtable::Start,
) -> Result<Geometry, pgtable::ConfigError> {
    let mut config = Stage2Config::new(granule, ipa_bits, features.pa_bits);
    config.lpa2 = lpa2;
    config.start = start;
    config.features = pgtable::Features {
        tlb_range: features.tlbi_range,
        ttl: features.ttl,
        fwb: features.fwb,
        xnx: features.xnx,
        vmid16: features.vmid16,
        ttst: features.ttst,
        dic: features.dic,
        ..Default::default()
    };
    // QEMU cannot be told from the hardware it models, and the work-around
    // costs an instruction for each 4 GiB: it is always on.
    config.errata = Errata::QEMU_RANGE_LENGTH;
    config.validate()
}

impl HostMemory {
    /// Table pages that mapping every granule of `ram` apart takes, one root and
    /// the reserve for devices included.
    pub fn pool_pages(ram: &Regions, geometry: &Geometry) -> u64 {
        let mut pages = geometry.root_tables() as u64 * 2 + RESERVE_FOR_DEVICES;
        for region in ram.iter() {
            pages += tables_over(region, geometry);
        }
        pages
    }

    /// Builds the tree: `ram` less `taken`.
    ///
    /// # Errors
    /// In words, when the machine's RAM is beyond the tables' reach.
    pub fn new(
        features: &Features,
        geometry: Geometry,
        ram: &Regions,
        taken: &Regions,
        pool: &'static Pool,
    ) -> Result<Self, &'static str> {
        let line = features.dcache_line;
        let root = pool
            .take_root(geometry.root_tables() as u64)
            .ok_or("the pool of host tables is too small for its root")?;
        let tree = Stage2::new(geometry, root, Vmid::new(HOST_VMID), pool)
            .map_err(|_| "the host's root table lies beyond the CPU's reach")?;
        let ram_tables = ram.iter().map(|r| tables_over(r, &geometry)).sum();
        let host = Self {
            vttbr: tree.vttbr(),
            vtcr: geometry.vtcr(),
            tree: SpinMutex::new(tree),
            pool,
            ram_tables,
            line,
        };
        let granule = geometry.granule().page_size();
        for region in ram.iter() {
            let mut at = region.shrink_to(granule).base();
            let end = region.shrink_to(granule).end();
            // What lies between the parts that are taken.
            while at < end {
                let next = taken
                    .iter()
                    .map(|t| t.grow_to(granule))
                    .find(|t| t.end() > at && t.base() < end);
                let stop = next.map_or(end, |t| t.base().max(at));
                if stop > at {
                    let range = Region::new(at, stop - at).unwrap_or(Region::EMPTY);
                    host.map(range, Attrs::MEMORY)
                        .map_err(|_| "the machine's RAM does not fit the host's stage 2")?;
                }
                at = next.map_or(end, |t| t.end());
            }
        }
        Ok(host)
    }

    /// `VTTBR_EL2` while the host runs.
    pub fn vttbr(&self) -> u64 {
        self.vttbr
    }

    /// `VTCR_EL2` while the host runs.
    pub fn vtcr(&self) -> u64 {
        self.vtcr
    }

    fn pe(&self) -> maintenance::Pe {
        maintenance::Pe::new(self.vtcr, self.line)
    }

    fn map(&self, region: Region, attrs: Attrs) -> Result<(), pgtable::Error> {
        let map = Map::new(
            Ipa::new(region.base()),
            Pa::new(region.base()),
            region.size(),
            attrs,
        )
        .leaves(Leaves::Largest)
        .over(Over::Nothing)
        .caches(Caches::Skip);
        let done = self
            .tree
            .lock()
            .map(&mut self.pe(), &map, &mut Budget::unlimited());
        done.map(|_| ()).map_err(|stopped| stopped.why)
    }

    /// Takes one granule of RAM from the host: when this returns no CPU can
    /// reach it through the host's stage 2.
    ///
    /// # Errors
    /// Out of tables to split a block with: nothing changed.
    pub fn take(&self, pa: u64, size: u64) -> Result<(), pgtable::Error> {
        let mut tree = self.tree.lock();
        let taken = tree.unmap(
            &mut self.pe(),
            Ipa::new(pa),
            size,
            Partial::Split,
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        taken.map(|_| ()).map_err(|stopped| stopped.why)
    }

    /// Gives one granule of RAM back.
    ///
    /// # Errors
    /// Out of tables: nothing changed.
    pub fn give(&self, pa: u64, size: u64) -> Result<(), pgtable::Error> {
        self.map(
            Region::new(pa, size).unwrap_or(Region::EMPTY),
            Attrs::MEMORY,
        )
    }

    /// Maps the device at `ipa`, which the host touched: the largest block
    /// around it without RAM.
    ///
    /// # Errors
    /// RAM (which the host may not have any more), or no tables left.
    pub fn map_device(&self, ipa: u64, ram: &Regions) -> Result<(), Refused> {
        if self.pool.left() <= self.ram_tables {
            return Err(Refused::NoTables);
        }
        let tree = self.tree.lock();
        let geometry = *tree.geometry();
        drop(tree);
        if ipa >> geometry.ipa_bits() != 0 {
            return Err(Refused::NotDevice);
        }
        for level in (geometry.start().get().max(-1)..=3).filter_map(Level::new) {
            if !geometry.leaf_ok(level) {
                continue;
            }
            let span = geometry.span(level);
            let block = Region::new(ipa & !(span - 1), span).ok_or(Refused::NotDevice)?;
            if ram.iter().any(|r| r.overlaps(&block)) {
                continue;
            }
            return match self.map(block, Attrs::DEVICE) {
                // Another CPU was quicker, with this block or a part of it.
                Ok(()) | Err(pgtable::Error::Exists { .. } | pgtable::Error::Busy) => Ok(()),
                Err(pgtable::Error::NoMem) => Err(Refused::NoTables),
                Err(_) => Err(Refused::NotDevice),
            };
        }
        Err(Refused::NotDevice)
    }
}

/// Tables below the root that map every granule of a range apart.
fn tables_over(region: &Region, geometry: &Geometry) -> u64 {
    (geometry.start().get()..3)
        .filter_map(Level::new)
        .map(|level| region.grow_to(geometry.span(level)).size() / geometry.span(level))
        .sum()
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::super::phys;
    use super::*;
    use pgtable::{Granule, Start};

    const RAM: u64 = 0x4000_0000;

    fn host(granule: Granule) -> (HostMemory, Regions) {
        let features = Features {
            pa_bits: 40,
            // Without it what leaves is cleaned, and here is no RAM to clean.
            fwb: true,
            ..Features::default()
        };
        let geometry = geometry(&features, granule, 40, false, Start::Concatenate).unwrap();
        let mut ram = Regions::new();
        ram.insert(Region::new(RAM, 256 << 20).unwrap()).unwrap();
        let mut taken = Regions::new();
        taken
            .insert(Region::new(RAM + 0x20_0000, 0x23_0000).unwrap())
            .unwrap();
        let size = granule.page_size();
        let pages = HostMemory::pool_pages(&ram, &geometry);
        let bytes = Pool::bytes_for(pages, size);
        phys::fake::install(0x8000_0000, bytes as usize);
        let region = Region::new(0x8000_0000, bytes).unwrap();
        // SAFETY: the fake memory is this test's.
        let pool = std::boxed::Box::leak(std::boxed::Box::new(unsafe { Pool::new(region, size) }));
        (
            HostMemory::new(&features, geometry, &ram, &taken, pool).unwrap(),
            ram,
        )
    }

    fn reaches(host: &HostMemory, ipa: u64) -> bool {
        host.tree
            .lock()
            .translate(Ipa::new(ipa))
            .is_some_and(|(pa, _)| pa.get() == ipa)
    }

    #[test]
    fn ram_is_there_and_what_is_taken_is_not() {
        for granule in Granule::ALL {
            let (host, ram) = host(granule);
            let size = granule.page_size();
            assert!(reaches(&host, RAM) && reaches(&host, RAM + (256 << 20) - 1));
            for at in (0x20_0000..0x43_0000).step_by(0x1_0000) {
                assert!(!reaches(&host, RAM + at), "{granule:?} {at:#x}");
            }
            let page = RAM + (64 << 20) + size;
            host.take(page, size).unwrap();
            assert!(!reaches(&host, page));
            assert!(reaches(&host, page - 1) && reaches(&host, page + size));
            assert_eq!(host.map_device(page, &ram), Err(Refused::NotDevice));
            host.give(page, size).unwrap();
            assert!(reaches(&host, page));
        }
    }

    #[test]
    fn every_granule_can_leave_whatever_devices_were_touched() {
        let (host, ram) = host(Granule::K4);
        let mut device = 0x50_0000_0000;
        while host.map_device(device, &ram).is_ok() && device < 1 << 40 {
            device += 1 << 30;
        }
        assert!(host.map_device(0x900_0000, &ram) != Err(Refused::NotDevice));
        for page in (RAM..RAM + (256 << 20)).step_by(0x20_0000) {
            if reaches(&host, page) {
                host.take(page, 0x1000).unwrap();
            }
        }
    }

    #[test]
    fn devices_are_mapped_where_no_ram_is() {
        let (host, ram) = host(Granule::K4);
        assert!(!reaches(&host, 0x900_0000));
        assert_eq!(host.map_device(0x900_0000, &ram), Ok(()));
        assert!(reaches(&host, 0x900_0000));
        assert_eq!(host.map_device(RAM, &ram), Err(Refused::NotDevice));
        assert_eq!(host.map_device(1 << 40, &ram), Err(Refused::NotDevice));
    }
}

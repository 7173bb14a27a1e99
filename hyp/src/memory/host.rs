//! The host's stage 2: identity, of its RAM less what it gave away, and of its
//! devices. All of it is mapped at boot, in the largest blocks; what is in none of
//! the ranges is never mapped.
//!
//! A granule that is given away splits the block that it is in; when the last of
//! a block's granules is back, they become the block again. So the tree depends
//! on what is given away at the moment and on nothing before.
//!
//! Lock protocol: one lock for the tree, taken after a granule's lock and
//! before the pool's. The pool has as many pages as mapping every granule of RAM
//! apart takes, and those of the devices ([`pool_pages`]): no call runs out.

use pgtable::{
    Attrs, Budget, Caches, Entry, Errata, Geometry, Ignore, Ipa, Leaves, Level, Map, Over, Pa,
    Stage2, Stage2Config, Stage2Regs, TableMem, Unmap, Vmid,
};

use super::maintenance;
use super::order::TreeLock;
use super::pool::Pool;
use super::region::{Region, Regions};
use crate::errors::errors;
use crate::features::Features;

/// The VMID of the host's own stage 2.
pub const HOST_VMID: u16 = 0;

/// What the host's stage 2 maps at first.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<'a> {
    /// RAM.
    pub ram: &'a Regions,
    /// Parts of it that are EL2's.
    pub taken: &'a Regions,
    /// The host's devices.
    pub devices: &'a Regions,
}

/// The host's memory, as it sees it.
#[derive(Debug)]
pub struct HostMemory {
    tree: TreeLock<Stage2<&'static Pool>>,
    pool: &'static Pool,
    regs: Stage2Regs,
    pe: maintenance::Pe,
}

errors! {
    /// Why the host gets no memory.
    HostError {
        Pool: "the pool of host tables is too small for its root",
        Root: "the host's root table lies beyond the CPU's reach",
        Pieces: "the machine's RAM is in too many pieces",
        Ram: "the machine's RAM does not fit the host's stage 2",
        Devices: "the machine's devices do not fit the host's stage 2",
    }
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
    // QEMU cannot be distinguished from the hardware it models, and the work-around
    // costs an instruction for each 4 GiB: it is always on.
    config.errata = Errata::QEMU_RANGE_LENGTH;
    config.validate()
}

/// Table pages that mapping every granule of `ram` apart and `devices` takes,
/// the root included.
pub fn pool_pages(ram: &Regions, devices: &Regions, geometry: &Geometry) -> u64 {
    let below: u64 = ram
        .iter()
        .chain(devices.iter())
        .map(|region| tables_over(region, geometry))
        .sum();
    geometry.root_tables() as u64 * 2 + below
}

impl HostMemory {
    /// Builds the tree.
    ///
    /// # Errors
    /// A machine that the tables cannot cover.
    pub fn new(
        pe: maintenance::Pe,
        geometry: Geometry,
        ranges: &Ranges<'_>,
        pool: &'static Pool,
    ) -> Result<Self, HostError> {
        let root = pool
            .take_root(geometry.root_tables() as u64)
            .ok_or(HostError::Pool)?;
        let tree =
            Stage2::new(geometry, root, Vmid::new(HOST_VMID), pool).map_err(|_| HostError::Root)?;
        let host = Self {
            regs: Stage2Regs {
                vttbr: tree.vttbr(),
                vtcr: geometry.vtcr(),
            },
            tree: TreeLock::new(tree),
            pool,
            pe,
        };
        let granule = geometry.granule().page_size();
        let mut ram = ranges.ram.clone();
        for taken in ranges.taken.iter() {
            ram.remove(taken.grow_to(granule))
                .map_err(|_| HostError::Pieces)?;
        }
        for region in ram.iter().map(|region| region.shrink_to(granule)) {
            host.map(region, Attrs::MEMORY)
                .map_err(|_| HostError::Ram)?;
        }
        for region in ranges.devices.iter() {
            host.map(*region, Attrs::DEVICE)
                .map_err(|_| HostError::Devices)?;
        }
        Ok(host)
    }

    /// The registers of stage 2 while the host runs.
    pub fn regs(&self) -> Stage2Regs {
        self.regs
    }

    /// The CPU, for changes of this tree and of realms'.
    pub fn pe(&self) -> maintenance::Pe {
        self.pe.another()
    }

    fn map(&self, region: Region, attrs: Attrs) -> Result<(), pgtable::Error> {
        if region.is_empty() {
            return Ok(());
        }
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

    /// Takes granules of RAM from the host: when this returns no CPU can reach them
    /// through the host's stage 2.
    ///
    /// # Errors
    /// Out of tables to split a block with: nothing changed.
    pub fn take(&self, pa: u64, size: u64) -> Result<(), pgtable::Error> {
        let mut tree = self.tree.lock();
        let taken = tree.unmap(
            &mut self.pe(),
            &Unmap::new(Ipa::new(pa), size),
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        taken.map(|_| ()).map_err(|stopped| stopped.why)
    }

    /// Gives granules of RAM back. Once all of a span is the host's again,
    /// [`Self::fold`] makes a block of it.
    ///
    /// # Errors
    /// Out of tables: nothing changed.
    pub fn give(&self, pa: u64, size: u64) -> Result<(), pgtable::Error> {
        self.map(
            Region::new(pa, size).unwrap_or(Region::EMPTY),
            Attrs::MEMORY,
        )
    }

    /// Makes blocks of the tables around `pa` that are whole again. A table is
    /// looked into only when all its entries are in use.
    pub fn fold(&self, pa: u64) {
        let ipa = Ipa::new(pa);
        let mut tree = self.tree.lock();
        let entries = tree.geometry().granule().page_size() / 8;
        let start = tree.geometry().start();
        for level in (start.get()..3).rev().filter_map(Level::new) {
            if !tree.geometry().leaf_ok(level) {
                return;
            }
            let whole = match tree.lookup_to(ipa, level).map(|found| found.entry) {
                Ok(Entry::Table(table)) => u64::from(self.pool.count(table)) == entries,
                // A whole block came back: the table that it is in may be whole now.
                Ok(Entry::Leaf { .. }) => continue,
                _ => false,
            };
            if !whole || tree.fold(&mut self.pe(), ipa, level).is_err() {
                return;
            }
        }
    }

    /// Whether the host may touch `ipa`. Where it may, and took a translation
    /// fault all the same, another CPU was changing the tables around it.
    pub fn reaches(&self, ipa: u64) -> bool {
        let tree = self.tree.lock();
        tree.translate(Ipa::new(ipa)).is_some()
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
mod tests;

//! From what the boot loader left to a machine that can run a host.

pub mod image;
pub mod seed;
pub mod tree;

use arm64::instr;
use arm64::regs::affinity;
use pgtable::{Granule, Start};

use crate::cpu::gic::Redistributor;
use crate::cpu::pe::{self, Entry, Pe, Stacks};
use crate::errata::InForce;
use crate::errors::errors;
use crate::features::{CpuError, Features, GranuleSupport};
use crate::idregs::Common;
use crate::memory::granule::Granules;
use crate::memory::host::{self, HostError, HostMemory};
use crate::memory::maintenance;
use crate::memory::phys;
use crate::memory::pool::{BootPool, Pool};
use crate::memory::region::{Region, Regions};
use crate::memory::stage1::{self, Image, MapError};
use crate::system::System;
use crate::vmid::Vmids;
use appendix::Appendix;
use image::ImageHeader;
use tree::{Machine, Steps, TreeError};

errors! {
    /// Why the image cannot run here.
    BootError {
        NoAppendix: "nothing behind the image: build with `cargo qemu image`",
        BadAppendix: "the image's appendix is damaged: build it again",
        ImageOutside: "the image lies outside of RAM, or where no-map reserves it: load it elsewhere",
        NoHostImage: "the host's image behind this one is no arm64 Image: build with cargo qemu",
        NoSpace: "too little RAM for EL2's own tables (QEMU: give it more with -m)",
        NoHostSpace: "too little RAM for the host's image (QEMU: give it more with -m)",
        ManyDevices: "the device tree has too many ranges of EL2's devices",
        NoRedistributor: "a CPU of the device tree has no redistributor in the GIC",
        NoBootCpu: "the device tree does not name the CPU that it boots on",
    }
    Tree(TreeError),
    Cpu(CpuError),
    Map(MapError),
    Host(HostError),
}

/// Where the host's image must begin: the arm64 boot protocol's alignment.
const HOST_ALIGN: u64 = 2 << 20;

/// EL2's working memory and the host's place in RAM.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The granules of all tables.
    pub granules: TableGranules,
    /// All of EL2's working memory.
    pub own: Region,
    el2_tables: Region,
    stacks: Stacks,
    pes: Region,
    granule_words: Region,
    host_tables: Region,
    /// Where the host's image goes.
    pub host_image: Region,
}

/// The granules of all tables.
#[derive(Clone, Copy, Debug)]
pub struct TableGranules {
    /// Of every stage 2.
    pub stage2: Granule,
    /// Of EL2's own stage 1: the same, if the CPU has it there.
    pub el2: Granule,
}

impl TableGranules {
    /// Those that the command line asks for, or 4K, or what the CPU has.
    ///
    /// # Errors
    /// A CPU without what was asked for.
    pub fn choose(features: &Features, asked: Option<Granule>) -> Result<Self, CpuError> {
        let has = |granule| features.stage2(granule) != GranuleSupport::No;
        let stage2 = match asked {
            Some(granule) if has(granule) => granule,
            Some(Granule::K4) => return Err(CpuError::No4k),
            Some(Granule::K16) => return Err(CpuError::No16k),
            Some(Granule::K64) => return Err(CpuError::No64k),
            None => Granule::ALL
                .into_iter()
                .find(|g| has(*g))
                .ok_or(CpuError::NoStage2)?,
        };
        let own = |granule| features.stage1(granule) != GranuleSupport::No;
        let el2 = if own(stage2) {
            Some(stage2)
        } else {
            Granule::ALL.into_iter().find(|g| own(*g))
        };
        let el2 = el2.ok_or(CpuError::NoStage1)?;
        Ok(Self { stage2, el2 })
    }

    /// What is aligned to this suits either's tables, bytes.
    pub fn align(&self) -> u64 {
        self.stage2.page_size().max(self.el2.page_size())
    }

    /// In what steps memory and devices change hands on this CPU.
    pub fn steps(&self, features: &Features) -> Steps {
        Steps {
            memory: self.align(),
            device: self.stage2.page_size(),
            end: 1 << features.max_ipa_bits(self.stage2),
        }
    }
}

fn host_geometry(features: &Features, granule: Granule) -> Result<pgtable::Geometry, CpuError> {
    let lpa2 = features.stage2(granule) == GranuleSupport::Lpa2 && features.pa_bits > 48;
    let bits = features.max_ipa_bits(granule);
    host::geometry(features, granule, bits, lpa2, Start::Concatenate)
        .map_err(|_| CpuError::NarrowStage2)
}

impl Layout {
    /// Places everything that EL2 needs in RAM, clear of what is there already.
    ///
    /// # Errors
    /// Too little RAM, or an image that is not in it.
    pub fn plan(
        machine: &Machine,
        features: &Features,
        granules: TableGranules,
        image: &Image,
        appendix: &Appendix<'_>,
    ) -> Result<Self, BootError> {
        let (granule, el2_granule) = (granules.stage2, granules.el2);
        let align = granules.align();
        let geometry = host_geometry(features, granule)?;
        let pes = machine.pes.len();
        if !machine.ram.covers(&image.region().grow_to(align)) {
            return Err(BootError::ImageOutside);
        }

        let mut taken = Regions::new();
        let there = [Some(image.region()), Some(machine.dtb), machine.initrd];
        for region in machine
            .reserved
            .iter()
            .copied()
            .chain(there.into_iter().flatten())
        {
            taken
                .insert(region.grow_to(align))
                .map_err(|_| TreeError::ManyReserved)?;
        }

        // First, so that a debugger knows it: where is a matter of the image's size.
        let header = ImageHeader::read(appendix.payload).ok_or(BootError::NoHostImage)?;
        let size = header
            .image_size
            .max(appendix.payload.len() as u64)
            .next_multiple_of(align);
        let host_image = machine
            .ram
            .place(size, HOST_ALIGN, &taken)
            .ok_or(BootError::NoHostSpace)?;
        taken
            .insert(host_image)
            .map_err(|_| TreeError::ManyReserved)?;

        let sizes = [
            Pool::bytes_for(
                stage1::pool_pages(&machine.ram, pes),
                el2_granule.page_size(),
            ),
            Stacks::stride(el2_granule.page_size()) * pes as u64,
            size_of::<[Pe; pe::MAX_PES]>() as u64,
            Granules::bytes_for(&machine.ram, u32::from(granule.page_bits())),
            Pool::bytes_for(
                host::pool_pages(&machine.ram, &machine.devices, &geometry),
                granule.page_size(),
            ),
        ]
        .map(|size| size.next_multiple_of(align));
        let own = machine
            .ram
            .place(sizes.iter().sum(), align, &taken)
            .ok_or(BootError::NoSpace)?;
        taken.insert(own).map_err(|_| TreeError::ManyReserved)?;
        let mut at = own.base();
        let mut part = |size: u64| {
            at += size;
            Region::new(at - size, size).unwrap_or(Region::EMPTY)
        };
        let [el2_tables, stacks, pe_list, granule_words, host_tables] = sizes.map(&mut part);
        Ok(Self {
            granules,
            own,
            el2_tables,
            stacks: Stacks::new(stacks, el2_granule.page_size()),
            pes: pe_list,
            granule_words,
            host_tables,
            host_image,
        })
    }

    /// Builds EL2's stage 1 and the list of PEs; `entry` is where each begins in
    /// Rust when it is started. Returns the boot PE.
    ///
    /// # Errors
    /// A machine that the tables cannot cover, or without redistributors.
    pub fn build_pes(
        &self,
        machine: &Machine,
        features: &Features,
        image: &Image,
        entry: u64,
    ) -> Result<&'static Pe, BootError> {
        let own = machine.settings.el2_bits;
        let geometry = stage1::geometry(features, self.granules.el2, own)
            .map_err(|_| CpuError::NarrowStage1)?;
        // SAFETY: the layout gave it this region, and this PE is alone.
        let tables = unsafe { BootPool::new(self.el2_tables, self.granules.el2.page_size()) };
        // Two of them may share a page.
        let (mut devices, page) = (Regions::new(), self.granules.el2.page_size());
        let gic = &machine.gic;
        let frames = gic.redistributors.iter().copied().chain([gic.distributor]);
        for region in frames.chain(machine.uart).chain(machine.console) {
            devices
                .insert(region.grow_to(page))
                .map_err(|_| BootError::ManyDevices)?;
        }
        let parts = stage1::Parts {
            image,
            ram: &machine.ram,
            stacks: self.stacks.region,
            stack_parts: (0..machine.pes.len()).flat_map(|pe| self.stacks.mapped(pe)),
            devices: &devices,
        };
        let pe = maintenance::Pe::new(features.dcache_line, &ERRATA);
        let regime = stage1::build(parts, geometry, pe, &tables)?;
        let boot = affinity();
        let list = phys::pointer::<Pe>(self.pes.base());
        for (index, &mpidr) in machine.pes.iter().enumerate() {
            // SAFETY: the device tree's, which EL2 maps.
            let gicr =
                unsafe { Redistributor::find(gic, mpidr) }.ok_or(BootError::NoRedistributor)?;
            let place = list.wrapping_add(index);
            // SAFETY: the region is EL2's and holds MAX_PES of them.
            unsafe {
                let entry = Entry::new(&self.stacks, index, regime, entry);
                place.write(Pe::new(index, mpidr, gicr, entry));
            }
        }
        // SAFETY: so many were just written, and nobody takes them away.
        let list = unsafe { core::slice::from_raw_parts(list, machine.pes.len()) };
        // SAFETY: this PE has started no other.
        unsafe { pe::set_all(list, self.stacks) };
        pe::find(boot).ok_or(BootError::NoBootCpu)
    }

    /// Parts that were written before the caches were on.
    pub fn written_early(&self) -> [Region; 2] {
        [self.el2_tables, self.pes]
    }

    /// Builds what all PEs share, and puts the host into its place.
    ///
    /// # Errors
    /// RAM beyond the tables' reach.
    pub fn build_system(
        &self,
        machine: &'static Machine,
        features: Features,
        image: &Image,
        appendix: &Appendix<'_>,
    ) -> Result<System, BootError> {
        let shift = u32::from(self.granules.stage2.page_bits());
        // SAFETY: that part of EL2's working memory is the table's.
        let granules = unsafe { Granules::new(&machine.ram, shift, self.granule_words.base()) };
        let own = [image.region().grow_to(self.granules.align()), self.own];
        let mut taken = Regions::new();
        for region in own {
            granules.claim(region);
            taken.insert(region).map_err(|_| TreeError::ManyReserved)?;
        }
        let geometry = host_geometry(&features, self.granules.stage2)?;
        // SAFETY: the layout gave this region to this pool alone.
        let tables = HOST_TABLES
            .call_once(|| unsafe { Pool::new(self.host_tables, self.granules.stage2.page_size()) });
        let ranges = host::Ranges {
            ram: &machine.ram,
            taken: &taken,
            devices: &machine.devices,
        };
        let pe = maintenance::Pe::new(features.dcache_line, &ERRATA);
        let host = HostMemory::new(pe, geometry, &ranges, tables)?;

        let to = phys::pointer::<u8>(self.host_image.base());
        // SAFETY: that RAM was placed clear of everything, the image with it.
        unsafe {
            core::ptr::copy_nonoverlapping(appendix.payload.as_ptr(), to, appendix.payload.len());
            let rest = self.host_image.size() as usize - appendix.payload.len();
            core::ptr::write_bytes(to.add(appendix.payload.len()), 0, rest);
        }
        // The host begins with its caches off, and fetches what was just written.
        instr::clean_invalidate(
            self.host_image.base(),
            self.host_image.size(),
            features.dcache_line,
        );
        let (code, end) = (image.text.base(), image.rodata[0].end());
        let length = (end - code) as usize;
        // SAFETY: the image's first part, which nobody writes any more.
        let code = unsafe { core::slice::from_raw_parts(phys::pointer(code), length) };
        Ok(System {
            features,
            gic: &machine.gic,
            errata: &ERRATA,
            common: Common::default(),
            random: None,
            code,
            attester: spin::Once::new(),
            granule: self.granules.stage2,
            granules,
            host,
            own,
            withheld: &machine.withheld,
            host_image: self.host_image,
            vmids: Vmids::new(),
            protection_asked: spin::Once::new(),
        })
    }
}

/// Errata of the machine's CPUs.
pub static ERRATA: InForce = InForce::new();

static HOST_TABLES: spin::Once<Pool> = spin::Once::new();

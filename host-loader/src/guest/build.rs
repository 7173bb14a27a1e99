//! A guest from its configuration: RAM, kernel, initrd, device tree, realm.

use super::place::{self, TREE_SPACE};
use super::ram::GuestRam;
use super::realm::{Realm, Rights, Shape};
use super::{fdt, map};
use crate::bundle::config::GuestConfig;
use crate::bundle::{Bundle, CONFIG};
use crate::granules::Granules;
use crate::image::{self, GuestMemory, RawPlace};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use rmi::feature::{Feature0, VendorFeatures};
use spin::Mutex;

/// The memory of a guest, its own across resets.
#[derive(Debug)]
pub struct Memory {
    /// Its RAM.
    pub ram: GuestRam,
    /// A guest has run in it.
    used: bool,
    runs: Vec<Range<u64>>,
}

/// What a guest is built with.
pub struct Resources<'a> {
    /// The host's free RAM.
    pub granules: &'a Mutex<Granules>,
    /// What EL2 can.
    pub features: VendorFeatures,
    /// What RMI offers.
    pub rmi: Feature0,
    /// Kernels and initrds.
    pub bundle: &'a Bundle<'a>,
    /// A granule of ones that stands for erased flash.
    pub blank: u64,
}

fn refuse(config: &GuestConfig, line: usize, what: impl core::fmt::Display) -> String {
    format!("{CONFIG}:{line}: guest \"{}\": {what}", config.name)
}

/// Takes a guest's RAM from the host's, before any guest has run: it comes as
/// the firmware left it.
///
/// The error says how much there is.
pub fn allocate(config: &GuestConfig, resources: &Resources<'_>) -> Result<Memory, String> {
    let limit = vcpu_limit(resources);
    if config.vcpus.value as u64 > limit {
        return Err(refuse(
            config,
            config.vcpus.line,
            format_args!(
                "vcpus = {}: expected at most {limit}, as many as its GIC serves",
                config.vcpus.value
            ),
        ));
    }
    let size = config.memory.value;
    let line = config.memory.line;
    let shape = shape(config, resources)?;
    let mut granules = resources.granules.lock();
    let runs = granules
        .take_scattered(size, &[shape.entry_size(2)])
        .ok_or_else(|| {
            refuse(
                config,
                line,
                format_args!(
                    "memory = {} MiB: the machine has {} MiB left",
                    size >> 20,
                    granules.free_bytes() >> 20
                ),
            )
        })?;
    // SAFETY: The granules were free: mapped, and nobody else's from here on.
    let ram = unsafe { GuestRam::new(map::RAM_BASE, &runs) };
    Ok(Memory {
        ram,
        used: false,
        runs,
    })
}

/// Gives a guest's RAM back, with what the guest left in it. Nobody sees that:
/// all guests' RAM is taken before the first one runs ([`allocate`]), and what
/// is taken later goes to EL2, which scrubs it, or is the host's own.
pub fn release(memory: Memory, granules: &Mutex<Granules>) {
    let mut granules = granules.lock();
    for run in memory.runs {
        granules.give(run.start, run.end - run.start);
    }
}

/// The most vCPUs that a guest has: what its map has redistributors for, and
/// what EL2 has indices for.
fn vcpu_limit(resources: &Resources<'_>) -> u64 {
    let frames = (map::GICR.end - map::GICR.start) / map::GICR_STRIDE;
    frames.min(1 << resources.rmi.max_recs_order)
}

fn shape(config: &GuestConfig, resources: &Resources<'_>) -> Result<Shape, String> {
    let end = map::RAM_BASE.saturating_add(config.memory.value);
    let shape = Shape::for_ipas(resources.features.granule_shift.into(), end);
    if shape.ipa_bits > resources.rmi.s2sz.into() {
        return Err(refuse(
            config,
            config.memory.line,
            format_args!(
                "memory = {} MiB needs {} bits of address; this CPU has {}",
                config.memory.value >> 20,
                shape.ipa_bits,
                resources.rmi.s2sz
            ),
        ));
    }
    Ok(shape)
}

/// Loads a guest and makes its realm, ready to run.
///
/// Errors are one sentence that names guest and culprit; nothing but the
/// content of `memory` has changed then.
pub fn build(
    config: &GuestConfig,
    resources: &Resources<'_>,
    memory: &mut Memory,
) -> Result<Realm, String> {
    let loaded = load(config, resources, &mut memory.ram)?;
    if !resources.features.fwb {
        if memory.used {
            memory.ram.clean_all();
        } else {
            memory.ram.clean();
        }
    }
    memory.used = true;
    let granules = resources.granules;
    let shape = shape(config, resources)?;
    let sentence = |e| refuse(config, config.kernel.line, e);
    let mut realm = Realm::create(granules, shape, &resources.features).map_err(sentence)?;
    let mut fill = || {
        for run in memory.ram.runs() {
            realm.map(granules, run.ipa, run.pa, run.size, Rights::ReadWrite)?;
        }
        if loaded.firmware {
            // Firmware reads its variables with more than single loads, which
            // only memory can serve: blank flash where they start.
            for ipa in map::FLASH_VARIABLES.step_by(shape.granule() as usize) {
                realm.map(
                    granules,
                    ipa,
                    resources.blank,
                    shape.granule(),
                    Rights::Read,
                )?;
            }
        }
        for _ in 0..config.vcpus.value {
            realm.add_rec(granules, loaded.entry, loaded.tree)?;
        }
        realm.activate()
    };
    match fill() {
        Ok(()) => Ok(realm),
        Err(error) => {
            realm.destroy(granules);
            Err(sentence(error))
        }
    }
}

struct Loaded {
    entry: u64,
    tree: u64,
    firmware: bool,
}

/// Fills the guest's RAM.
fn load(
    config: &GuestConfig,
    resources: &Resources<'_>,
    ram: &mut impl GuestMemory,
) -> Result<Loaded, String> {
    let archive = &resources.bundle.archive;
    let file = |name| archive.file(name).unwrap_or_default();
    let kernel = &config.kernel;
    let place = RawPlace {
        load: config.load.as_ref().map(|l| l.value),
        entry: config.entry.as_ref().map(|l| l.value),
    };
    let placed = image::load(file(&kernel.value), place, ram).map_err(|e| {
        refuse(
            config,
            kernel.line,
            format_args!("kernel = {:?}: {e}", kernel.value),
        )
    })?;
    if placed.kind != image::Kind::Raw
        && let Some(at) = config.load.as_ref().or(config.entry.as_ref())
    {
        return Err(refuse(
            config,
            at.line,
            format_args!(
                "{} is for raw binaries; {:?} says itself where it goes",
                at.key, kernel.value
            ),
        ));
    }
    let mpidrs: Vec<u64> = (0..config.vcpus.value as u64)
        .map(rmi::params::index_mpidr)
        .collect();
    let tree_with = |initrd| {
        let tree = fdt::write(&fdt::Machine {
            ram: ram.range(),
            mpidrs: &mpidrs,
            cmdline: &config.cmdline,
            initrd,
        })
        .map_err(|e| refuse(config, kernel.line, format_args!("device tree: {e}")))?;
        if tree.len() as u64 > TREE_SPACE {
            let what = "its device tree is longer than 2 MiB; shorten cmdline";
            return Err(refuse(config, kernel.line, what));
        }
        Ok(tree)
    };
    let initrd = config.initrd.as_ref().map(|f| file(&f.value));
    // The addresses in it change neither the tree's length nor its place.
    let size = tree_with(initrd.map(|_| 0..0))?.len() as u64;
    let places = place::choose(&ram.range(), &placed, initrd.map(|f| f.len() as u64), size)
        .map_err(|e| refuse(config, config.memory.line, e))?;
    let tree = tree_with(places.initrd.clone())?;
    if let (Some(range), Some(bytes)) = (&places.initrd, initrd) {
        ram.write(range.start, bytes);
    }
    ram.write(places.tree, &tree);
    log::debug!(
        "guest {}: {:?} kernel {:#x}-{:#x}, entry {:#x}, device tree {:#x}",
        config.name,
        placed.kind,
        placed.range.start,
        placed.range.end,
        placed.entry,
        places.tree
    );
    Ok(Loaded {
        entry: placed.entry,
        tree: places.tree,
        firmware: placed.kind == image::Kind::Raw,
    })
}

//! A guest from its configuration: RAM, kernel, initrd, device tree, realm.

use super::error::{GuestError, Refusal};
use super::failure::{FlashError, RealmError};
use super::flash::Banks;
use super::measured::Contents;
use super::pieces::PIECE_SIZE;
use super::place::{self, TREE_SPACE};
use super::ram::{Extent, GuestRam};
use super::realm::{BuildContext, Kind, Realm, Rights, Shape};
use super::shares;
use super::{fdt, map};
use crate::bundle::Bundle;
use crate::device::clock::Clock;
use crate::granules::Granules;
use crate::image::stream::Unpacker;
use crate::image::{self, GuestMemory, ImageError, Placed, RawPlace};
use crate::pace::Pace;
use crate::seed::{Seed, Seeds};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arm64::regs::CNTFRQ_EL0;
use core::ops::Range;
use guest_config::{Located, Mode, Populate};
use rmi::feature::{Feature0, VendorFeatures};
use spin::Mutex;

/// The memory of a guest, its own across resets.
#[derive(Debug)]
pub struct Memory {
    /// Its RAM.
    pub ram: GuestRam,
    /// Its flash, if it starts from that.
    pub flash: Option<Banks>,
    /// Its clock, which no reset sets.
    pub clock: Arc<Mutex<Clock>>,
    /// The guest's device tree, which no reset changes; empty until the first
    /// start.
    tree: Vec<u8>,
}

/// What a guest is built with.
pub struct Resources<'a> {
    /// The host's free RAM.
    pub granules: &'a Mutex<Granules>,
    /// What EL2 can.
    pub features: VendorFeatures,
    /// What RMI offers.
    pub rmi: Feature0,
    /// Some of the machine's RAM lies above 2^48.
    pub high_ram: bool,
    /// Kernels and initrds.
    pub bundle: &'a Bundle<'a>,
    /// What unpacks kernels, one at a time.
    pub unpacker: &'a Mutex<Unpacker>,
    /// Randomness for its device tree.
    pub seeds: &'a Seeds,
    /// A granule of ones that stands for erased flash.
    pub blank: u64,
    /// How long the work goes on before others have their turn.
    pub pace: &'a Pace,
}

impl<'a> Resources<'a> {
    /// What realms are built and taken apart with.
    pub fn build_context(&self) -> BuildContext<'a> {
        BuildContext {
            granules: self.granules,
            pace: self.pace,
        }
    }
}

/// Takes a guest's RAM from the host's.
///
/// The error says how much there is.
pub fn allocate(config: &Located, resources: &Resources<'_>) -> Result<Memory, GuestError> {
    let limit = vcpu_limit(resources);
    if u64::from(config.guest.vcpus) > limit {
        let vcpus = config.guest.vcpus;
        return Err(Refusal::ManyVcpus { vcpus, limit }.of(config));
    }
    let size = config.guest.memory;
    let shape = shape(config, resources)?;
    let file = resources.bundle.archive.file(&config.guest.kernel);
    let flash = Banks::allocate(config, file.unwrap_or_default(), resources.granules)?;
    // Nobody allocates under the lock. A free range gives blocks, and what is in
    // front of them and behind.
    let ranges = resources.granules.lock().ranges().len();
    let mut extents = Vec::with_capacity(3 * ranges);
    let (taken, left) = {
        let mut granules = resources.granules.lock();
        let taken = granules.take_scattered(size, &[shape.entry_size(2)], &mut extents);
        (taken, granules.free_bytes())
    };
    if !taken {
        if let Some(banks) = flash {
            banks.release(&mut resources.granules.lock());
        }
        let memory = size;
        return Err(Refusal::LittleMemory { memory, left }.of(config));
    }
    // SAFETY: The granules were free: mapped, and nobody else's from here on.
    let ram = unsafe {
        match config.guest.mode {
            Mode::Realm => GuestRam::of_realm(ram_base(config), &extents, shape.granule_shift),
            Mode::Plain | Mode::Protected => GuestRam::new(ram_base(config), &extents),
        }
    };
    Ok(Memory {
        ram,
        flash,
        clock: Arc::default(),
        tree: Vec::new(),
    })
}

/// Gives a guest's RAM back, with what the guest left in it: whoever takes it next
/// begins with zeros ([`build`]), is EL2, which scrubs it, or the host itself.
pub fn release(memory: Memory, granules: &Mutex<Granules>) {
    // Which of its memory EL2 has kept is not told.
    if memory.ram.shared().is_lost() {
        return;
    }
    let mut granules = granules.lock();
    if let Some(banks) = &memory.flash {
        banks.release(&mut granules);
    }
    for extent in memory.ram.shared().extents() {
        granules.give(extent.pa, extent.size);
    }
}

/// What the starts and resets of a guest take at any one time, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of the heap, each allocation rounded up to a power of two. The tree
    /// is not among them: only the first start writes it.
    pub heap: u64,
    /// Extents of granules.
    pub extents: usize,
}

/// Bytes of the heap for a guest, for each of its vCPUs, and for each extent of its
/// RAM: twice what `tests/realm.rs` sees at most, and messages.
const HEAP_GUEST: u64 = 16 << 10;
const HEAP_VCPU: u64 = 256;
const HEAP_RUN: u64 = 64;

/// Computes what the starts and resets of a guest take, so that it is set aside.
pub fn needs(
    config: &Located,
    resources: &Resources<'_>,
    memory: &Memory,
) -> Result<Needs, GuestError> {
    let shape = shape(config, resources)?;
    let block = shape.entry_size(2);
    // Tables at each level below the root that a range may take.
    let tables = |size: u64, deepest: i64| -> u64 {
        (shape.start_level + 1..=deepest)
            .map(|level| size.div_ceil(shape.entry_size(level - 1)) + 1)
            .sum()
    };
    let flash = match &memory.flash {
        Some(flash) => flash.extents().map(|extent| extent.size).sum(),
        None => map::FLASH_VARIABLES.end - map::FLASH_VARIABLES.start,
    };
    let by_pages = shape.largest_level(&resources.features) == 3
        || match populate(config, resources, &shape) {
            Populate::Eager => false,
            Populate::Lazy => block > PIECE_SIZE,
            Populate::Pages | Populate::LazyPages => true,
        };
    let extents = memory.ram.shared().extents();
    let ram: u64 = (extents.iter())
        .map(|extent| {
            let whole = (extent.ipa | extent.pa | extent.size).is_multiple_of(block);
            let whole = whole && !by_pages;
            tables(extent.size, if whole { 2 } else { 3 })
        })
        .sum();
    // What a realm shares, in the other half too, and split.
    let shared = match config.guest.mode {
        Mode::Realm => {
            let size = memory.ram.shared().range();
            2 * tables(size.end - size.start, 3) + shares::PARTS as u64 + 1
        }
        Mode::Plain | Mode::Protected => 0,
    };
    let vcpus = u64::from(config.guest.vcpus);
    let parts = extents.len() as u64;
    // A REC, its auxiliary granules and its run page; RD, roots, parameters, the
    // page of posted writes.
    let rec = rmi::params::MAX_REC_AUX as u64 + 2;
    let realm = u64::from(shape.roots) + 3 + rec * vcpus;
    Ok(Needs {
        heap: HEAP_GUEST + HEAP_VCPU * vcpus + HEAP_RUN * parts,
        extents: (tables(flash, 3) + ram + shared + realm + parts) as usize,
    })
}

/// What unpacks the kernels of a bundle, in memory that is taken here for good.
///
/// The error names the guest whose kernel takes more than there is.
pub fn unpacker(bundle: &Bundle<'_>, granules: &Mutex<Granules>) -> Result<Unpacker, GuestError> {
    let needs = |guest: &Located| {
        let kernel = bundle.archive.file(&guest.guest.kernel);
        let kernel = kernel.unwrap_or_default();
        Unpacker::memory_for(kernel)
    };
    let Some(guest) = bundle.guests.iter().max_by_key(|guest| needs(guest)) else {
        return Ok(Unpacker::new(&mut []));
    };
    let size = needs(guest);
    if size == 0 {
        return Ok(Unpacker::new(&mut []));
    }
    let taken = granules.lock().take(size as u64, 1);
    let start = taken.ok_or_else(|| {
        let why = ImageError::NoMemory(size as u64);
        let kernel = guest.guest.kernel.clone();
        Refusal::Kernel { kernel, why }.of(guest)
    })?;
    // SAFETY: The granules were free: mapped, and nobody else's from here on.
    // Whatever they hold are bytes.
    Ok(Unpacker::new(unsafe {
        core::slice::from_raw_parts_mut(
            core::ptr::with_exposed_provenance_mut(start as usize),
            size,
        )
    }))
}

/// How long what a guest has written to its UART may wait for the host, as a part
/// of a second: a reader at a terminal does not see it.
const POSTED_PART: u64 = 200;

/// The most vCPUs that a guest has: what its map has redistributors for, and
/// what EL2 has indices for.
fn vcpu_limit(resources: &Resources<'_>) -> u64 {
    let frames = (map::GICR.end - map::GICR.start) / map::GICR_STRIDE;
    frames.min(1 << resources.rmi.max_recs_order)
}

/// Where a guest's memory stands.
fn ram_base(config: &Located) -> u64 {
    config.guest.ram_base.unwrap_or(map::RAM_BASE)
}

fn shape(config: &Located, resources: &Resources<'_>) -> Result<Shape, GuestError> {
    let end = ram_base(config).saturating_add(config.guest.memory);
    let granule_shift = resources.features.granule_shift.into();
    // As much again, for what it shares.
    let shared = u32::from(config.guest.mode != Mode::Plain);
    // No stage 2 has fewer than 32.
    let needs = (Shape::bits(end) + shared).max(32);
    if needs > resources.rmi.s2sz.into() {
        let refusal = Refusal::WideMemory {
            memory: config.guest.memory,
            base: config.guest.ram_base,
            needs,
            has: resources.rmi.s2sz,
        };
        return Err(refusal.of(config));
    }
    let default = Shape::for_ipas(granule_shift, end).ipa_bits + shared;
    let bits = config.guest.ipa_bits.unwrap_or(default);
    if !(needs..=resources.rmi.s2sz.into()).contains(&bits) {
        let refusal = Refusal::IpaBits {
            bits,
            base: config.guest.ram_base,
            needs,
            has: resources.rmi.s2sz,
        };
        return Err(refusal.of(config));
    }
    let usual = Shape {
        ipa_bits: bits,
        lpa2: granule_shift != 16 && (bits > 48 || resources.high_ram),
        ..Shape::for_ipas(granule_shift, 1 << bits)
    };
    let Some(level) = config.guest.start_level else {
        return Ok(usual);
    };
    let rmi = &resources.rmi;
    let starting_at = |level| usual.starting_at(level, rmi.s2sz, rmi.lpa2);
    starting_at(level).ok_or_else(|| {
        let levels = || (-1..=3).filter(|level| starting_at(*level).is_some());
        let least = levels().min().unwrap_or(usual.start_level);
        let most = levels().max().unwrap_or(usual.start_level);
        let refusal = Refusal::StartLevel {
            level,
            bits,
            least,
            most,
        };
        refusal.of(config)
    })
}

/// How a guest gets its RAM. One that does not say gets it a piece at a time where
/// its pieces are mapped by entries as large as all of it would be: it then has
/// what it touches sooner, and nothing for it later.
fn populate(config: &Located, resources: &Resources<'_>, shape: &Shape) -> Populate {
    config.guest.populate.unwrap_or_else(|| {
        let largest = shape.entry_size(shape.largest_level(&resources.features));
        if largest <= PIECE_SIZE {
            Populate::Lazy
        } else {
            Populate::Eager
        }
    })
}

/// Loads a guest and makes its realm, ready to run.
///
/// After an error nothing but the content of `memory` has changed.
pub async fn build(
    config: &Located,
    resources: &Resources<'_>,
    memory: &mut Memory,
) -> Result<Realm, GuestError> {
    let context = resources.build_context();
    let shape = shape(config, resources)?;
    let (populate, mode) = (populate(config, resources, &shape), config.guest.mode);
    let lazy = populate.is_lazy();
    log::debug!(
        "guest {}: {} bits of IPA, from level {}, root tables: {}{}, RAM at {:#x}, {}, {}",
        config.guest.name,
        shape.ipa_bits,
        shape.start_level,
        shape.roots,
        if shape.lpa2 { ", LPA2" } else { "" },
        ram_base(config),
        mode.word(),
        populate.word()
    );
    if memory.ram.shared().is_lost() {
        return Err(Refusal::LostMemory.of(config));
    }
    memory.ram.forget();
    // What a realm gets beside its files EL2 zeroes.
    if !lazy && mode != Mode::Realm {
        memory.ram.claim_all(context.pace).await;
    }
    let loaded = load(config, resources, memory).await?;
    // EL2 cleans what it maps as a protected guest's own.
    if !resources.features.fwb && mode == Mode::Plain {
        memory.ram.clean_claimed(context.pace).await;
    }
    let refused = |why| Refusal::Realm(why).of(config);
    let kind = Kind {
        mode,
        shape,
        by_pages: populate.is_by_pages(),
        lazy,
        personalization: config.guest.personalization(),
    };
    let created = Realm::create(context, kind, &resources.features).await;
    let mut realm = created.map_err(refused)?;
    let mut fill = async || {
        let ram = memory.ram.shared();
        if mode == Mode::Realm {
            let contents = Contents {
                written: &memory.ram.written(shape.granule()),
                measure: config.guest.measure.unwrap_or_default(),
                lazy,
            };
            realm.begin(context, ram, contents).await?;
        } else if lazy {
            realm.map_claimed(context, ram).await?;
        } else {
            realm.fill(context, ram).await?;
        }
        if loaded.firmware && mode == Mode::Plain {
            map_flash(&mut realm, resources, memory.flash.as_ref()).await?;
        }
        let delay = CNTFRQ_EL0.get() / POSTED_PART;
        let uart = realm.shared() + map::UART.start;
        realm.add_posted(context.granules, uart, delay)?;
        for _ in 0..config.guest.vcpus {
            realm.add_rec(context.granules, loaded.entry, loaded.x0)?;
            context.pace.step().await;
        }
        // With what is left: nobody needs it.
        realm.split_blocks(context, ram).await;
        realm.activate()
    };
    match fill().await {
        Ok(()) => Ok(realm),
        Err(error) => {
            realm.destroy(context).await;
            Err(refused(error))
        }
    }
}

/// Maps the flash of a plain guest that is no Linux. One that starts from RAM reads its
/// variables with more than single loads, which only memory can serve: blank flash where
/// they start.
async fn map_flash(
    realm: &mut Realm,
    resources: &Resources<'_>,
    banks: Option<&Banks>,
) -> Result<(), RealmError> {
    let context = resources.build_context();
    if let Some(banks) = banks {
        for extent in banks.extents() {
            realm.map(context, extent, Rights::Read).await?;
        }
        return Ok(());
    }
    let size = realm.shape().granule();
    for ipa in map::FLASH_VARIABLES.step_by(size as usize) {
        let pa = resources.blank;
        let blank = Extent { ipa, pa, size };
        realm.map(context, blank, Rights::Read).await?;
    }
    Ok(())
}

/// A guest's device tree.
fn write_tree(
    config: &Located,
    ram: &Range<u64>,
    devices_at: u64,
    initrd: Option<Range<u64>>,
    seed: Option<Seed>,
) -> Result<Vec<u8>, GuestError> {
    let mpidrs: Vec<u64> = (0..u64::from(config.guest.vcpus))
        .map(rmi::params::index_mpidr)
        .collect();
    let tree = fdt::write(&fdt::Machine {
        ram: ram.clone(),
        mpidrs: &mpidrs,
        devices_at,
        conduit: if config.guest.mode == Mode::Realm {
            "smc"
        } else {
            "hvc"
        },
        cmdline: &config.guest.cmdline,
        initrd,
        flash: map::is_flash(config.guest.load),
        seed,
    })
    .map_err(|why| Refusal::Tree(why).of(config))?;
    if tree.len() as u64 > TREE_SPACE {
        return Err(Refusal::LongTree.of(config));
    }
    Ok(tree)
}

struct Loaded {
    entry: u64,
    x0: u64,
    firmware: bool,
}

/// Puts the guest's program into its RAM, or into its flash: where that is.
async fn load_program(
    config: &Located,
    resources: &Resources<'_>,
    Memory { ram, flash, .. }: &mut Memory,
) -> Result<Placed, GuestError> {
    let kernel = &config.guest.kernel;
    let file = resources.bundle.archive.file(kernel).unwrap_or_default();
    let place = RawPlace {
        load: config.guest.load,
        entry: config.guest.entry,
    };
    // Held over steps, so that no CPU may wait for it in one go.
    let mut unpacker = loop {
        match resources.unpacker.try_lock() {
            Some(unpacker) => break unpacker,
            None => resources.pace.wait().await,
        }
    };
    if let Some(banks) = flash {
        banks.code.forget();
    }
    let is_flash = flash.is_some();
    let to = flash.as_mut().map_or(ram, |banks| &mut banks.code);
    let placed = image::load(file, place, &mut unpacker, to, resources.pace).await;
    drop(unpacker);
    let of_raw = |key| {
        let kernel = kernel.clone();
        Refusal::OfRaw { key, kernel }.of(config)
    };
    let placed = placed.map_err(|why| match why {
        // The bank is as large as the program.
        ImageError::DoesNotFit(at) if is_flash => {
            Refusal::Flash(FlashError::Entry(at.start)).of(config)
        }
        why => {
            let kernel = kernel.clone();
            Refusal::Kernel { kernel, why }.of(config)
        }
    })?;
    let raw = [("load", place.load), ("entry", place.entry)];
    if placed.kind != image::Kind::Raw
        && let Some(&(key, _)) = raw.iter().find(|(_, at)| at.is_some())
    {
        return Err(of_raw(key));
    }
    if let Some(banks) = flash
        && !resources.features.fwb
    {
        banks.clean(resources.pace).await;
    }
    Ok(placed)
}

/// Fills the guest's RAM, and its flash.
async fn load(
    config: &Located,
    resources: &Resources<'_>,
    memory: &mut Memory,
) -> Result<Loaded, GuestError> {
    let placed = load_program(config, resources, memory).await?;
    let is_flash = memory.flash.is_some();
    let Memory { ram, tree, .. } = memory;
    let archive = &resources.bundle.archive;
    let initrd = config.guest.initrd.as_ref();
    let initrd = initrd.map(|name| archive.file(name).unwrap_or_default());
    let range = ram.range();
    let in_ram = Placed {
        // What is in flash takes nothing of RAM.
        range: if is_flash {
            range.start..range.start
        } else {
            placed.range.clone()
        },
        ..placed
    };
    let places = |tree: &[u8]| {
        let size = initrd.map(|bytes| bytes.len() as u64);
        place::choose(&range, &in_ram, size, tree.len() as u64)
            .map_err(|why| Refusal::Place(why).of(config))
    };
    // A realm's tree counts in its measurement; nor does it trust the host's numbers.
    let is_realm = config.guest.mode == Mode::Realm;
    let seed = resources.seeds.next().filter(|_| !is_realm);
    // Its kernel knows where the shared half is.
    let devices_at = match config.guest.mode {
        Mode::Plain | Mode::Realm => 0,
        mode @ Mode::Protected => shape(config, resources)?.shared(mode),
    };
    if tree.is_empty() {
        // The addresses in it change neither the tree's length nor its place.
        let draft = write_tree(config, &range, devices_at, initrd.map(|_| 0..0), seed)?;
        *tree = write_tree(config, &range, devices_at, places(&draft)?.initrd, seed)?;
    } else if let Some(seed) = &seed {
        fdt::set_seed(tree, seed);
    }
    let places = places(tree)?;
    if let (Some(range), Some(bytes)) = (&places.initrd, initrd) {
        ram.write_in_steps(range.start, bytes, resources.pace).await;
    }
    for at in [Some(places.tree), places.copy].into_iter().flatten() {
        ram.write(at, tree);
    }
    log::debug!(
        "guest {}: {:?} kernel {:#x}-{:#x}, entry {:#x}, device tree {:#x}",
        config.guest.name,
        placed.kind,
        placed.range.start,
        placed.range.end,
        placed.entry,
        places.tree
    );
    if placed.kind == image::Kind::Raw && config.guest.mode != Mode::Plain {
        let name = &config.guest.name;
        log::warn!("guest {name}: a raw binary; its devices are where its tree says");
    }
    Ok(Loaded {
        entry: placed.entry,
        x0: places.x0,
        firmware: placed.kind == image::Kind::Raw,
    })
}

//! The boot, top to bottom.

extern crate alloc;

mod error;

use alloc::boxed::Box;
use alloc::vec::Vec;
use arm64::instr;
use arm64::regs::affinity;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use error::{BootError, Purpose};
use host_loader::arch::{cpu, exception, local, mmu};
use host_loader::bundle::Bundle;
use host_loader::clock::Time;
use host_loader::gic::{Controller, GicError};
use host_loader::granules::Granules;
use host_loader::guest::build;
use host_loader::guest::error::Refusal;
use host_loader::machine::{self, Cpu, Machine};
use host_loader::pace::{Pace, at_once};
use host_loader::platform::{Platform, Uart, boot_arguments};
use host_loader::port::Port;
use host_loader::seed::Seeds;
use host_loader::{heap, life, logger, rmi_call, sched, trace};
use rmi::feature::{Feature0, VendorFeatures};
use rmi::vendor::RangeKind;
use spin::Mutex;

/// What the heap starts with, before the machine's RAM is mapped: enough for
/// the device tree's facts and for page tables.
const EARLY_HEAP: usize = 256 << 10;

#[repr(C, align(4096))]
struct EarlyHeap(UnsafeCell<[u8; EARLY_HEAP]>);

// SAFETY: Only the heap uses it, which locks.
unsafe impl Sync for EarlyHeap {}

static EARLY: EarlyHeap = EarlyHeap(UnsafeCell::new([0; EARLY_HEAP]));

/// What the heap takes of the machine's RAM at once, and the part at most; it
/// grows by itself.
const HEAP_BYTES: u64 = 16 << 20;
const HEAP_PART: u64 = 8;

/// Stacks of a CPU: to run on, and for exceptions; a page of the host's stage 1 is left
/// out below each.
const STACK: u64 = 128 << 10;
const EXCEPTION_STACK: u64 = 16 << 10;

/// entry.s comes here on the boot CPU, with the early map on.
#[unsafe(no_mangle)]
extern "C" fn host_main(dtb: u64) -> ! {
    logger::init();
    let early = EARLY.0.get().expose_provenance() as u64;
    // SAFETY: The memory is the heap's alone, from here on.
    unsafe { heap::add(early..early + EARLY_HEAP as u64) };
    match boot(dtb) {
        Ok(machine) => sched::run_loop(machine),
        Err(error) => {
            log::error!("{error}");
            life::end(2)
        }
    }
}

/// Everything up to the run loop.
fn boot(dtb: u64) -> Result<&'static Machine, BootError> {
    let tree = device_tree(dtb)?;
    logger::set_token(boot_arguments(tree));
    let platform = Platform::parse(tree)?;
    logger::set_level(&platform.bootargs);
    trace::set(&platform.bootargs);
    let (rmi, features) = el2()?;
    let granule = 1u64 << features.granule_shift;

    let taken = taken_ranges(dtb, tree, &platform);
    // Of a page that is mapped in part, nothing is.
    let mapped = ram(&platform, &holes(&platform));
    let mut granules = Granules::new(granule, mapped.ranges(), &taken);
    let cpus = cpus(&platform, &mut granules)?;
    let more = heap_range(&mut granules)?;
    map_everything(&platform, &cpus)?;
    // SAFETY: The range is mapped now and was taken for the heap.
    unsafe { heap::add(more) };
    let blank = blank_granule(&mut granules)?;
    let granules: &Mutex<Granules> = Box::leak(Box::new(Mutex::new(granules)));
    // SAFETY: All of the host's RAM is mapped now.
    unsafe { heap::grow_from(granules, life::end) };

    let me = affinity();
    let index = cpus.iter().position(|cpu| cpu.mpidr == me);
    local::set_index(index.ok_or(BootError::NoCpu(me))?);
    // SAFETY: The registers are mapped as Device, and this is their driver.
    let mut gic = unsafe { Controller::new(&platform.gic) }?;
    let console = port(platform.console.as_ref(), &mut gic, me)?;
    // The log's UART is EL2's; its interrupt comes here.
    if let Some(intid) = platform.log.as_ref().and_then(|uart| uart.intid) {
        gic.route(intid, me)?;
    }

    let bundle = bundle(&platform)?;
    for guest in &bundle.guests {
        if guest.guest.vcpus as usize > cpus.len() {
            let (vcpus, cpus) = (guest.guest.vcpus, cpus.len());
            return Err(Refusal::FewCpus { vcpus, cpus }.of(guest).into());
        }
    }
    let unpacker = build::unpacker(&bundle, granules)?;
    log::info!(
        "{} MiB of RAM free, CPUs: {}, guests: {}",
        granules.lock().free_bytes() >> 20,
        cpus.len(),
        bundle.guests.len()
    );
    // SAFETY: The registers are mapped as Device; nobody else reads them.
    let time = unsafe { Time::of_machine(platform.clock) };
    let paces = bundle.guests.iter().map(|_| Pace::new()).collect();
    let seeds = Seeds::new(&platform.rng_seed);
    if seeds.next().is_none() {
        log::warn!("no randomness: this CPU has no FEAT_RNG, and the device tree");
        log::warn!("  no rng-seed; guests get neither rng-seed nor kaslr-seed");
    }
    let machine = machine::install(Machine {
        seeds,
        live: AtomicUsize::new(bundle.guests.len()),
        platform,
        features,
        rmi,
        granules,
        unpacker: Mutex::new(unpacker),
        bundle,
        paces,
        blank,
        cpus,
        gic: Mutex::new(gic),
        console: Mutex::new(console),
        console_guest: Mutex::new(None),
        time,
        faulted: AtomicBool::new(false),
        reports: AtomicU32::new(0),
    });
    machine.gic.lock().start_cpu(&sched::private(machine))?;
    start_guests(machine)?;
    Ok(machine)
}

/// The device tree's bytes.
fn device_tree(dtb: u64) -> Result<&'static [u8], BootError> {
    let at = core::ptr::with_exposed_provenance::<u8>(dtb as usize);
    // SAFETY: The early map covers the tree's first 2 MiB block and the next;
    // nobody writes there.
    let header = unsafe { core::slice::from_raw_parts(at, 8) };
    let size = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if header[..4] != [0xd0, 0x0d, 0xfe, 0xed] || size > 2 << 20 {
        return Err(BootError::NoTree(dtb));
    }
    // SAFETY: As above; the map covers `size` bytes, at most 2 MiB.
    Ok(unsafe { core::slice::from_raw_parts(at, size) })
}

/// Checks that this is Undercroft with what plain guests need.
fn el2() -> Result<(Feature0, VendorFeatures), BootError> {
    let version = rmi_call::vendor_version().map_err(BootError::NoUndercroft)?;
    if version >> 16 != rmi::vendor::VERSION_1_0 >> 16 {
        return Err(BootError::Version);
    }
    rmi_call::version().map_err(BootError::NoRmi)?;
    let rmi = rmi_call::features().map_err(BootError::NoFeatures)?;
    let features = rmi_call::vendor_features().map_err(BootError::NoUndercroft)?;
    if !features.nonconf || !features.el2_vgic {
        return Err(BootError::NoPlainGuests);
    }
    if !matches!(features.granule_shift, 12 | 14 | 16) {
        return Err(BootError::Granule(features.granule_shift));
    }
    Ok((rmi, features))
}

/// What of it the host's stage 1 can map.
fn clipped(memory: &[Range<u64>]) -> Vec<Range<u64>> {
    let (end, _) = mmu::reach();
    memory
        .iter()
        .map(|r| r.start.min(end)..r.end.min(end))
        .collect()
}

/// What of the RAM is not free: EL2's and the host's images and tables, what
/// the device tree reserves, itself and the initrd.
fn taken_ranges(dtb: u64, tree: &[u8], platform: &Platform) -> Vec<Range<u64>> {
    let mut taken: Vec<Range<u64>> = (0..)
        .map_while(rmi_call::memory_range)
        .map(|(base, size, _)| base..base + size)
        .collect();
    let image = mmu::image_layout();
    taken.push(image.text.start..image.data.end);
    taken.push(dtb..dtb + tree.len() as u64);
    taken.extend(platform.initrd.clone());
    taken.extend(platform.reserved.iter().cloned());
    taken
}

/// The CPUs with stacks for all but this one. Those that EL2 does not drive are
/// none of them: it has logged that.
fn cpus(platform: &Platform, granules: &mut Granules) -> Result<Vec<Cpu>, BootError> {
    let me = affinity();
    let (_, page) = mmu::reach();
    let mut cpus = Vec::new();
    let driven = |mpidr: &&u64| rmi_call::machine_has_cpu(**mpidr);
    for &mpidr in platform.cpus.iter().filter(driven) {
        let mut stack = |size: u64| -> Result<u64, BootError> {
            if mpidr == me {
                return Ok(0);
            }
            // The part above the hole ends with a page, too.
            let bytes = page + size.next_multiple_of(page);
            let start = granules
                .take(bytes, page)
                .ok_or(BootError::NoRam(Purpose::Stacks))?;
            Ok(start + bytes)
        };
        cpus.push(Cpu {
            mpidr,
            stacks: (stack(STACK)?, stack(EXCEPTION_STACK)?),
            inbox: Mutex::new(Vec::new()),
            started: AtomicBool::new(mpidr == me),
        });
    }
    Ok(cpus)
}

fn heap_range(granules: &mut Granules) -> Result<Range<u64>, BootError> {
    let bytes = (granules.free_bytes() / HEAP_PART).min(HEAP_BYTES);
    let start = granules
        .take(bytes, mmu::reach().1)
        .ok_or(BootError::NoRam(Purpose::Heap))?;
    // Whole granules were taken; all of them are of use.
    Ok(start..start + bytes.next_multiple_of(granules.granule()))
}

/// A granule of ones.
fn blank_granule(granules: &mut Granules) -> Result<u64, BootError> {
    let size = granules.granule();
    let blank = granules
        .take(size, size)
        .ok_or(BootError::NoRam(Purpose::Blank))?;
    // SAFETY: The granule was free and is mapped.
    unsafe {
        core::ptr::write_bytes(
            core::ptr::with_exposed_provenance_mut::<u8>(blank as usize),
            0xff,
            size as usize,
        );
    }
    instr::clean_to_poc(blank, size);
    Ok(blank)
}

/// What of the RAM the host's final stage 1 does not map as such: EL2's, the image,
/// which has maps of its own, and what the device tree forbids.
fn holes(platform: &Platform) -> Vec<Range<u64>> {
    let image = mmu::image_layout();
    let mut holes: Vec<_> = (0..)
        .map_while(rmi_call::memory_range)
        .filter(|(_, _, kind)| *kind != RangeKind::HostImage as u64)
        .map(|(base, size, _)| base..base + size)
        .collect();
    holes.push(image.text.start..image.data.end);
    holes.extend(platform.no_map.iter().cloned());
    holes
}

/// The RAM that the host's final stage 1 maps as such: whole pages of it.
fn ram(platform: &Platform, holes: &[Range<u64>]) -> Granules {
    // Whatever EL2 counts in.
    let (_, page) = mmu::reach();
    Granules::new(page, &clipped(&platform.memory), holes)
}

/// Makes the host's final stage 1: all RAM but EL2's, without the pages below
/// stacks, and the devices that the host drives.
fn map_everything(platform: &Platform, cpus: &[Cpu]) -> Result<(), BootError> {
    let image = mmu::image_layout();
    let (_, page) = mmu::reach();
    let mut holes = holes(platform);
    let appendix = (0..)
        .map_while(rmi_call::memory_range)
        .find(|(base, size, kind)| {
            *kind == RangeKind::HostImage as u64 && (*base..base + size).contains(&image.text.start)
        })
        .map(|(base, size, _)| image.data.end..base + size);
    for cpu in cpus {
        for (top, size) in [(cpu.stacks.0, STACK), (cpu.stacks.1, EXCEPTION_STACK)] {
            if top != 0 {
                let base = top - size.next_multiple_of(page);
                holes.push(base - page..base);
            }
        }
    }
    let ram = ram(platform, &holes);
    let mut devices = platform.gic.redistributors.clone();
    devices.push(platform.gic.distributor.clone());
    if let Some(uart) = &platform.console {
        devices.push(uart.base..uart.base + 0x1000);
    }
    if let Some(clock) = platform.clock {
        devices.push(clock..clock + 0x1000);
    }
    mmu::activate(&mmu::FinalMap {
        ram: ram.ranges().to_vec(),
        devices,
    })
    .map_err(BootError::Map)?;
    if let Some(range) = clipped(&platform.memory)
        .iter()
        .find(|r| r.contains(&image.text.start))
    {
        logger::set_readable(range.start, range.end);
    }
    if let Some(range) = appendix.filter(|r| r.start < r.end) {
        // SAFETY: EL2 says that its copy of the image reaches that far; it is
        // mapped and nobody writes there.
        exception::set_appendix(unsafe {
            core::slice::from_raw_parts(
                core::ptr::with_exposed_provenance(range.start as usize),
                (range.end - range.start) as usize,
            )
        });
    }
    Ok(())
}

/// A driver for this UART, its interrupt routed to the CPU `mpidr`.
fn port(uart: Option<&Uart>, gic: &mut Controller, mpidr: u64) -> Result<Option<Port>, GicError> {
    let Some(uart) = uart else {
        return Ok(None);
    };
    if let Some(intid) = uart.intid {
        gic.route(intid, mpidr)?;
    }
    // SAFETY: The registers are mapped as Device; each UART has one port.
    Ok(unsafe { Port::new(uart.base) })
}

fn bundle(platform: &Platform) -> Result<Bundle<'static>, BootError> {
    let initrd = platform.initrd.clone().ok_or(BootError::NoInitrd)?;
    let inside = platform
        .memory
        .iter()
        .any(|r| r.start <= initrd.start && initrd.end <= r.end.min(mmu::reach().0));
    if !inside {
        return Err(BootError::InitrdOutside(initrd));
    }
    // SAFETY: It is in mapped RAM, and taken: nobody writes there.
    let bytes = unsafe {
        core::slice::from_raw_parts(
            core::ptr::with_exposed_provenance(initrd.start as usize),
            (initrd.end - initrd.start) as usize,
        )
    };
    Ok(Bundle::parse(bytes)?)
}

/// Builds all guests, spreads their vCPUs over the CPUs, and starts those.
fn start_guests(machine: &'static Machine) -> Result<(), BootError> {
    let memories = life::allocate_all(machine)?;
    life::reserve(machine, &memories)?;
    let mut guests = Vec::new();
    let mut first = local::index();
    let count = machine.cpus.len();
    for (index, memory) in memories.into_iter().enumerate() {
        let vcpus = machine.bundle.guests[index].guest.vcpus as usize;
        let cpus: Vec<usize> = (0..vcpus).map(|i| (first + i) % count).collect();
        first = (first + vcpus) % count;
        // Nobody runs yet whom it could keep waiting.
        let guest = at_once(life::create(machine, index, memory, &cpus));
        let guest = guest.map_err(|(error, _)| error)?;
        guests.push(guest);
    }
    for guest in &guests {
        for vcpu in &guest.vcpus {
            start_cpu(machine, vcpu.cpu)?;
        }
    }
    for guest in &guests {
        life::start(machine, guest);
        log::info!("guest {}: started", guest.name);
    }
    Ok(())
}

fn start_cpu(machine: &'static Machine, index: usize) -> Result<(), BootError> {
    let cpu = &machine.cpus[index];
    if cpu.started.swap(true, Ordering::AcqRel) {
        return Ok(());
    }
    cpu::start(
        index,
        cpu.mpidr,
        cpu.stacks.0,
        cpu.stacks.1,
        sched::secondary,
    )
    .map_err(|code| BootError::CpuOn(index, code))
}

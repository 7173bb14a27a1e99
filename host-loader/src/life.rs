//! A guest's life: built, run, stopped, and perhaps built again.
//!
//! Stopping is a request that every CPU which holds one of the guest's vCPUs
//! answers by leaving ([`leave`]); the last to leave takes the guest apart and,
//! after a reset, builds it anew. So nobody waits for anybody, and a realm is
//! destroyed only when none of its vCPUs can be entered. That is work in steps
//! ([`crate::pace`]), which its CPU does between the turns of others and on the
//! account of the vCPU that left.

use crate::alarm::WallClock;
use crate::console::{self, Console, PostedPage};
use crate::guest::build::{self, Memory, Resources};
use crate::guest::error::GuestError;
use crate::guest::handle::{Guest, Repeats, Stop, Vcpu};
use crate::guest::live::LiveRam;
use crate::guest::map;
use crate::image::GuestMemory;
use crate::machine::{self, Machine};
use crate::pace::Pace;
use crate::{granules, heap, logger, rmi_call};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0};
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use core::task::{Context, Waker};
use log::Level;
use posted::Page;
use rmi::end::How;
use spin::Mutex;

/// What is left to do for a guest that nobody runs.
pub struct Job {
    /// The guest's place in the configuration.
    pub config: usize,
    /// Until when it goes on at a turn.
    pub pace: &'static Pace,
    work: Pin<Box<dyn Future<Output = ()>>>,
}

/// Bytes of a job at most: what the heap sets aside for it.
const JOB: usize = 8 << 10;

impl Job {
    fn new(
        machine: &'static Machine,
        config: usize,
        work: impl Future<Output = ()> + 'static,
    ) -> Self {
        assert!(size_of_val(&work) <= JOB, "a job's size is set aside");
        Self {
            config,
            pace: &machine.paces[config],
            work: Box::pin(work),
        }
    }

    /// Goes on until its pace says so: whether all is done.
    pub fn turn(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        self.work.as_mut().poll(&mut context).is_ready()
    }
}

/// Above it an address takes descriptors of 52 bits.
const HIGH: u64 = 1 << 48;

/// What guest `config` is built with.
fn resources(machine: &Machine, config: usize) -> Resources<'_> {
    Resources {
        pace: &machine.paces[config],
        granules: machine.granules,
        features: machine.features,
        rmi: machine.rmi,
        // Where EL2 has no such descriptors, that RAM is nobody's.
        high_ram: machine.rmi.lpa2 && machine.platform.memory.iter().any(|ram| ram.end > HIGH),
        bundle: &machine.bundle,
        unpacker: &machine.unpacker,
        blank: machine.blank,
        seeds: &machine.seeds,
    }
}

/// Takes the RAM of all guests, so that one that finds too little is reported
/// before any runs.
pub fn allocate_all(machine: &Machine) -> Result<Vec<Memory>, GuestError> {
    let guests = machine.bundle.guests.iter().enumerate();
    guests
        .map(|(index, config)| build::allocate(config, &resources(machine, index)))
        .collect()
}

/// For each live block of a guest's, the heap holds as much again for each size
/// that blocks have: its free blocks may be of other sizes than is asked for.
const BLOCK_SIZES: u64 = 16;

/// Why what the guests take cannot be set aside.
#[derive(Debug)]
pub enum ReserveError {
    /// A guest's own settings.
    Guest(GuestError),
    /// The machine has not so many bytes for their starts and resets.
    Heap(u64),
}

impl From<GuestError> for ReserveError {
    fn from(why: GuestError) -> Self {
        Self::Guest(why)
    }
}

impl fmt::Display for ReserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(why) => why.fmt(f),
            Self::Heap(bytes) => write!(
                f,
                "the guests' starts and resets take {} MiB of memory beside the guests'; \
                 give the machine more",
                bytes.div_ceil(1 << 20)
            ),
        }
    }
}

/// Sets aside what the guests' starts and resets allocate, whatever the others
/// do meanwhile, so that none of them can fail.
///
pub fn reserve(machine: &'static Machine, memories: &[Memory]) -> Result<(), ReserveError> {
    let (mut heap, mut extents, mut vcpus) = (0, 0, 0);
    for (index, (config, memory)) in machine.bundle.guests.iter().zip(memories).enumerate() {
        let needs = build::needs(config, &resources(machine, index), memory)?;
        // The guest of before a reset goes when the next one runs.
        let count = config.guest.vcpus as usize;
        let own = size_of::<Guest>() + count * size_of::<Vcpu>() + JOB;
        heap += BLOCK_SIZES * (needs.heap + 2 * own.next_power_of_two() as u64);
        extents += needs.extents;
        vcpus += count;
    }
    // Where vCPUs arrive: no CPU has more than all of them.
    for cpu in &machine.cpus {
        *cpu.inbox.lock() = Vec::with_capacity(vcpus);
    }
    if !heap::reserve(heap) {
        return Err(ReserveError::Heap(heap));
    }
    granules::make_room(machine.granules, extents);
    Ok(())
}

/// Builds guest `config` in `memory`. Its vCPUs run on `cpus`.
///
/// The error comes with the memory.
pub async fn create(
    machine: &'static Machine,
    config: usize,
    mut memory: Memory,
    cpus: &[usize],
) -> Result<Arc<Guest>, (GuestError, Memory)> {
    let settings = &machine.bundle.guests[config];
    let built = build::build(settings, &resources(machine, config), &mut memory).await;
    let realm = match built {
        Ok(realm) => realm,
        Err(error) => return Err((error, memory)),
    };
    let vcpus = cpus
        .iter()
        .enumerate()
        .map(|(index, &cpu)| Vcpu {
            rec: realm.rec(index),
            run_page: realm.run_page(index),
            starts: AtomicU32::new(u32::from(index == 0)),
            off: AtomicBool::new(index != 0),
            cpu,
            repeats: Repeats::default(),
            spurious: Repeats::default(),
        })
        .collect();
    // SAFETY: The page was written when the realm was built, and is given back with
    // it, when nobody runs the guest any more.
    let posted = unsafe { PostedPage::new(realm.posted()) };
    let name: Arc<str> = settings.guest.name.as_str().into();
    let owns_port = machine.bundle.console == Some(config);
    let console = Console::new(
        name.clone(),
        console::Line {
            rd: realm.rd(),
            intid: map::UART_INTID,
        },
        posted,
        owns_port.then_some(&machine.console),
    );
    Ok(Arc::new(Guest {
        config,
        name,
        rd: realm.rd(),
        ram: memory.ram.range(),
        memory: LiveRam::new(
            memory.ram.shared().clone(),
            realm.stage2(),
            machine.features.fwb,
        ),
        shared: realm.shared(),
        strict: settings.guest.strict,
        trespassed: AtomicBool::new(false),
        called: AtomicBool::new(false),
        vcpus,
        console: Mutex::new(console),
        posted,
        clock: WallClock::new(
            memory.clock.clone(),
            machine.time,
            (realm.rd(), map::CLOCK_INTID),
        ),
        flash: (memory.flash.as_ref())
            .map(|banks| Mutex::new(banks.devices(realm.stage2(), machine.features.fwb))),
        stop: AtomicU8::new(0),
        attached: AtomicUsize::new(cpus.len()),
        parts: Mutex::new(Some((realm, memory))),
    }))
}

/// Hands the guest's vCPUs to their CPUs.
pub fn start(machine: &Machine, guest: &Arc<Guest>) {
    if machine.bundle.console == Some(guest.config) {
        *machine.console_guest.lock() = Some(guest.clone());
        console::listen(&machine.console);
    }
    for (index, vcpu) in guest.vcpus.iter().enumerate() {
        machine.cpus[vcpu.cpu]
            .inbox
            .lock()
            .push((guest.clone(), index));
    }
    for vcpu in &guest.vcpus {
        machine.wake(vcpu.cpu);
    }
}

/// A CPU lets go of one vCPU of a stopping guest: what it has to do if that was
/// the last.
pub fn leave(machine: &'static Machine, guest: Arc<Guest>) -> Option<Job> {
    let last = guest.attached.fetch_sub(1, Ordering::AcqRel) == 1;
    last.then(|| Job::new(machine, guest.config, finish(machine, guest)))
}

/// Takes what the guest has last written to its UART. Where the machine's UART takes
/// nothing for a while, the rest is lost.
async fn drain(machine: &Machine, guest: &Guest) {
    let patience = CNTFRQ_EL0.get();
    let (mut end, mut before) = (CNTPCT_EL0.get() + patience, u64::MAX);
    loop {
        let waiting = {
            let mut console = guest.console.lock();
            console.catch_up();
            guest.posted.get().map_or(0, Page::waiting) + console.owes()
        };
        let now = CNTPCT_EL0.get();
        if waiting < before {
            end = now + patience;
        }
        if waiting == 0 {
            return;
        }
        if now > end {
            let text = "bytes found no room on the console";
            guest.log(Level::Warn, format_args!("its last {waiting} {text}"));
            return;
        }
        before = waiting;
        machine.paces[guest.config].wait().await;
    }
}

/// Takes the guest apart, which nobody runs any more, and builds it again if it
/// was reset.
async fn finish(machine: &'static Machine, guest: Arc<Guest>) {
    drain(machine, &guest).await;
    guest.console.lock().flush();
    {
        let mut owner = machine.console_guest.lock();
        if owner.as_ref().is_some_and(|o| Arc::ptr_eq(o, &guest)) {
            *owner = None;
        }
    }
    let Some((realm, memory)) = guest.parts.lock().take() else {
        return;
    };
    if let Some(devices) = &guest.flash {
        // As it was built.
        devices.lock().show(true);
    }
    realm
        .destroy(resources(machine, guest.config).build_context())
        .await;
    let free = machine.granules.lock().free_bytes() >> 10;
    guest.log(
        Level::Debug,
        format_args!("taken apart; {free} KiB of RAM free"),
    );
    let why = guest.stop.load(Ordering::Acquire);
    if why == Stop::Reset as u8 {
        guest.log(Level::Info, format_args!("reset"));
        let cpus: Vec<usize> = guest.vcpus.iter().map(|v| v.cpu).collect();
        match create(machine, guest.config, memory, &cpus).await {
            Ok(again) => start(machine, &again),
            Err((error, memory)) => {
                log::error!("{error}");
                machine.faulted.store(true, Ordering::Relaxed);
                end_of(machine, memory);
            }
        }
        return;
    }
    if why == Stop::Fault as u8 {
        machine.faulted.store(true, Ordering::Relaxed);
        guest.log(Level::Error, format_args!("stopped"));
    } else {
        guest.log(Level::Info, format_args!("powered off"));
    }
    end_of(machine, memory);
}

/// A guest is gone for good; the last one ends the machine.
fn end_of(machine: &Machine, memory: Memory) {
    if machine.live.fetch_sub(1, Ordering::AcqRel) == 1 {
        end(u64::from(machine.faulted.load(Ordering::Relaxed)));
    }
    build::release(memory, machine.granules);
}

/// Ends the machine: 0 when every guest powered itself off, 1 when one was
/// stopped, 2 when what the boot loader passed was wrong.
pub fn end(status: u64) -> ! {
    if let Some(machine) = machine::try_get() {
        console::settle(&machine.console);
    }
    logger::end(How::Status(status));
    rmi_call::machine_off();
}

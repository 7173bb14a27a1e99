//! A machine of RAM alone, on the development machine: what tests and fuzz
//! targets run the handlers of the host's calls on. No CPU is behind it.

extern crate std;

use std::boxed::Box;
use std::vec::Vec;

use ::rmi::call::HostCall;
use arrayvec::ArrayVec;
use attest::Generator;
use pgtable::{Geometry, Granule, Level, Pa, Stage2, Start, Synced, TableMem, Vmid};
use spin::mutex::SpinMutex;

use super::{Answer, UNKNOWN, serve, serve_vendor};
use crate::cpu::Cpu;
use crate::cpu::gic::{Frames, Ppis, Redistributor};
use crate::cpu::pe::{Entry, Pe, Stacks};
use crate::errata::InForce;
use crate::features::{Features, GranuleSupport};
use crate::idregs::Common;
use crate::memory::granule::{GranuleWord, Granules};
use crate::memory::host::{self, HostMemory};
use crate::memory::maintenance;
use crate::memory::order;
use crate::memory::phys;
use crate::memory::pool::Pool;
use crate::memory::region::{Region, Regions};
use crate::system::System;
use crate::vmid::Vmids;
use arm64::frame::Regime;

/// Where the host's RAM begins; EL2's own memory lies behind it.
pub const RAM: u64 = 0x4000_0000;

/// The host, on the one CPU of such a machine.
#[derive(Debug)]
pub struct Host {
    /// What its calls are served on.
    pub cpu: Cpu,
    /// What all CPUs share.
    pub system: &'static System,
    /// Bytes of a granule.
    pub size: u64,
    ram: u64,
    shared: *mut System,
    pool: *mut Pool,
    errata: *mut InForce,
    pe: *mut Pe,
    /// Free table pages at the start.
    left: u64,
}

/// A PE, with a record behind its GIC.
fn pe_of(index: usize) -> Pe {
    let stacks = Region::new(0, Stacks::stride(0x1000)).expect("no overflow");
    let stacks = Stacks::new(stacks, 0x1000);
    // SAFETY: a record is behind it, and no GIC.
    let frame = unsafe { Redistributor::new(0) };
    let entry = Entry::new(&stacks, 0, Regime::default(), 0);
    Pe::new(index, index as u64, frame, entry)
}

/// Another CPU of a machine, for a thread of its own.
#[derive(Debug)]
pub struct Another {
    index: usize,
    system: &'static System,
    memory: phys::fake::Shared,
}

/// A CPU that makes calls beside the first.
#[derive(Debug)]
pub struct Peer {
    cpu: Cpu,
    system: &'static System,
}

impl Another {
    /// The CPU, on the thread that is to be it.
    pub fn begin(self) -> Peer {
        self.memory.join();
        let pe = Box::leak(Box::new(pe_of(self.index)));
        let mut cpu = Cpu::new(pe, &self.system.shared());
        cpu.begin_host(0, 0);
        let system = self.system;
        Peer { cpu, system }
    }
}

impl Peer {
    /// One turn of a call, as [`Host::turn`].
    pub fn turn(&mut self, x: [u64; 6]) -> Option<Answer> {
        turn(self.system, &mut self.cpu, x)
    }
}

/// One turn of a call: `None` if there is more of it to be done. EL2 holds nothing
/// when it goes back to the host.
fn turn(system: &'static System, cpu: &mut Cpu, x: [u64; 6]) -> Option<Answer> {
    let answer = match HostCall::decode(x) {
        Some(HostCall::Rmi(command)) => serve(system, cpu, command),
        Some(HostCall::Vendor(call)) => Some(serve_vendor(system, call)),
        Some(HostCall::Psci(_) | HostCall::Smccc(_)) | None => Some(UNKNOWN),
    };
    order::idle();
    answer
}

static GIC: Frames = Frames {
    distributor: Region::EMPTY,
    redistributors: ArrayVec::new_const(),
    stride: None,
    ppi: Ppis {
        maintenance: 25,
        virtual_timer: 27,
        hyp_timer: 26,
    },
};
static WITHHELD: Regions = Regions::new();

impl Host {
    /// A machine with this granule and this much RAM of the host's, which no
    /// realm has any of. Its CPU has no FEAT_S2FWB.
    ///
    /// # Panics
    /// When the development machine has no memory for it.
    pub fn new(granule: Granule, ram_size: u64) -> Self {
        Self::with(granule, ram_size, |_| {})
    }

    /// The same with features of its CPU changed.
    ///
    /// # Panics
    /// As for [`new`](Self::new).
    pub fn with(granule: Granule, ram_size: u64, change: fn(&mut Features)) -> Self {
        let mut features = Features {
            pa_bits: 40,
            stage1: [GranuleSupport::Yes; 3],
            stage2: [GranuleSupport::Yes; 3],
            vmid16: true,
            dcache_line: 64,
            ..Features::default()
        };
        change(&mut features);
        let size = granule.page_size();
        let shift = u32::from(granule.page_bits());
        let mut ram = Regions::new();
        let region = Region::new(RAM, ram_size).expect("no overflow");
        ram.insert(region).expect("the first");
        let geometry = geometry(&features, granule);
        let pages = host::pool_pages(&ram, &Regions::new(), &geometry);
        let pool_size = Pool::bytes_for(pages, size);
        let words = Granules::bytes_for(&ram, shift).next_multiple_of(size);
        let bytes = (ram_size + pool_size + words) as usize;
        phys::fake::install(RAM, bytes);
        // SAFETY: the fake memory behind the host's is for these.
        let (pool, granules) = unsafe {
            let pool = Region::new(RAM + ram_size, pool_size).expect("no overflow");
            (
                Pool::new(pool, size),
                Granules::new(&ram, shift, RAM + ram_size + pool_size),
            )
        };
        let pool = Box::into_raw(Box::new(pool));
        // SAFETY: just made, and only `drop` frees it, after the `System`, which
        // alone has this reference; nothing refers to it mutably.
        let tables = unsafe { &*pool };
        let none = Regions::new();
        let ranges = host::Ranges {
            ram: &ram,
            taken: &none,
            devices: &none,
        };
        let errata = Box::into_raw(Box::new(InForce::new()));
        // SAFETY: just made, and only `drop` frees it, after the `System`.
        let of_machine = unsafe { &*errata };
        of_machine.begin(features.midr, |_| {});
        let pe = maintenance::Pe::new(64, of_machine);
        let host = HostMemory::new(pe, geometry, &ranges, tables);
        let shared = Box::into_raw(Box::new(System {
            features,
            gic: &GIC,
            errata: of_machine,
            common: Common::default(),
            code: b"code",
            attester: spin::Once::new(),
            random: Generator::from_entropy(&[7; 32]).map(SpinMutex::new),
            granule,
            granules,
            host: host.expect("RAM fits"),
            own: [Region::EMPTY; 2],
            withheld: &WITHHELD,
            host_image: Region::EMPTY,
            vmids: Vmids::new(),
            protection_asked: spin::Once::new(),
        }));
        // SAFETY: just made, and only `drop` frees it, when nothing that has this
        // reference is used any more; nothing refers to it mutably.
        let system = unsafe { &*shared };
        let pe = Box::into_raw(Box::new(pe_of(0)));
        Self {
            // SAFETY: just made, and only `drop` frees it, when the `Cpu` is
            // used no more; nothing refers to it mutably.
            cpu: Cpu::new(unsafe { &*pe }, &system.shared()),
            system,
            size,
            ram: ram_size,
            shared,
            pool,
            errata,
            pe,
            left: tables.left(),
        }
    }

    /// One turn of a call of the host's, X0 to X5, as EL2's door reads it: `None`
    /// if there is more of it to be done. Nobody serves power here.
    pub fn turn(&mut self, x: [u64; 6]) -> Option<Answer> {
        turn(self.system, &mut self.cpu, x)
    }

    /// The CPU `index`, which is not 0, for another thread.
    ///
    /// # Safety
    /// That thread makes no call any more when this value is dropped.
    pub unsafe fn another(&self, index: usize) -> Another {
        Another {
            index,
            system: self.system,
            memory: phys::fake::share(),
        }
    }

    /// A whole call.
    pub fn call(&mut self, x: [u64; 6]) -> Answer {
        loop {
            if let Some(answer) = self.turn(x) {
                return answer;
            }
        }
    }

    /// The format of the host's stage 2.
    pub fn geometry(&self) -> Geometry {
        geometry(&self.system.features, self.system.granule)
    }

    /// Where the host's `n`th granule is.
    pub fn page(&self, n: u64) -> u64 {
        RAM + n * self.size
    }

    /// How many granules the host has.
    pub fn pages(&self) -> u64 {
        self.ram / self.size
    }

    /// The host's `n`th granule's word.
    ///
    /// # Panics
    /// When it has fewer.
    pub fn granule(&self, n: u64) -> &GranuleWord {
        self.system.granules.get(self.page(n)).expect("is RAM")
    }

    /// Whether a granule is all zeros.
    pub fn is_zero(&self, n: u64) -> bool {
        (0..self.size / 8).all(|word| {
            // SAFETY: inside the fake memory, which this thread alone uses.
            unsafe { phys::read::<u64>(self.page(n) + 8 * word) == 0 }
        })
    }

    /// Which granules the host's stage 2 maps.
    ///
    /// # Panics
    /// When one is mapped to another.
    pub fn mapped(&self) -> Vec<bool> {
        let all = (0..self.pages()).map(|n| self.page(n));
        all.map(|pa| is_mapped(self.system, pa)).collect()
    }

    /// Leaves the host's stage 2 no page for another table.
    pub fn use_up_tables(&self) {
        // SAFETY: as in `tables`.
        let pool = unsafe { &*self.pool };
        while pool.alloc(Level::L3).is_some() {}
    }

    /// Table pages of the host's stage 2 beyond those it began with; fewer, where it has
    /// given away all that one of them maps.
    pub fn tables(&self) -> i64 {
        // SAFETY: `new` made it, and only `drop` frees it.
        self.left as i64 - unsafe { &*self.pool }.left() as i64
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: `new` made all five for this machine alone. `cpu` and `system`,
        // which refer to them, are not used again and have nothing to drop; nobody
        // else has the memory.
        unsafe {
            drop(Box::from_raw(self.shared));
            drop(Box::from_raw(self.pool));
            drop(Box::from_raw(self.errata));
            drop(Box::from_raw(self.pe));
            phys::fake::free();
        }
    }
}

/// Whether the host's stage 2 maps a granule. No lock is taken, so that it can be asked
/// amid a call.
///
/// # Panics
/// When it is mapped to another.
pub fn is_mapped(system: &System, pa: u64) -> bool {
    let root = system.host.regs().vttbr & 0x0000_ffff_ffff_fffe;
    let geometry = geometry(&system.features, system.granule);
    let tree = Stage2::new(geometry, Pa::new(root), Vmid::new(0), Look);
    let tree = tree.expect("it is the root of a tree");
    let to = tree.translate(pgtable::Ipa::new(pa)).map(|(to, _)| to);
    assert!(to.is_none_or(|to| to.get() == pa), "not the identity");
    to.is_some()
}

fn geometry(features: &Features, granule: Granule) -> Geometry {
    host::geometry(features, granule, 40, false, Start::Concatenate).expect("every CPU has it")
}

/// Tables that are only looked at.
struct Look;

impl TableMem for Look {
    type Table = u64;
    fn locate(&self, pa: Pa) -> u64 {
        pa.get()
    }
    fn load(&self, table: u64, index: usize) -> u64 {
        // SAFETY: a table's entry, in the fake memory.
        unsafe { phys::read(table + 8 * index as u64) }
    }
    fn store(&self, _: u64, _: usize, _: u64) {}
    fn cas(&self, _: u64, _: usize, old: u64, _: u64) -> Result<(), u64> {
        Err(old)
    }
    fn alloc(&self, _: Level) -> Option<Pa> {
        None
    }
    fn free(&self, _: Pa, _: Level, _: &Synced) {}
    fn count(&self, _: Pa) -> u32 {
        0
    }
    fn add_count(&self, _: Pa, _: i32) {}
}

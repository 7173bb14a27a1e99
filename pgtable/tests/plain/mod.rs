//! Plain memory and a CPU that writes down all that is done, in order: for
//! tests that say exactly what an operation does, or that it does nothing.

#![allow(dead_code)]

use pgtable::{
    Barrier, CacheOp, Features, Level, Maintenance, Pa, Stage2, Stage2Config, Stage2Regs, Synced,
    TableMem, Tlbi, Vmid,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};

/// A CPU with all that makes operations cheap, without FEAT_BBM.
pub const MODERN: Features = Features {
    tlb_range: true,
    ttl: true,
    fwb: true,
    xnx: true,
    dic: true,
    hw_access_flag: true,
    hw_dirty: true,
    vmid16: false,
    ttst: false,
    cnp: false,
    bbm2: false,
};

/// Something that was done to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    /// An entry was read.
    Load {
        pa: u64,
    },
    /// An entry was written, by a store or by a swap that succeeded.
    Write {
        pa: u64,
        old: u64,
        new: u64,
    },
    /// A swap failed.
    Lost {
        pa: u64,
    },
    Barrier(Barrier),
    Tlbi(Tlbi),
    Cache(CacheOp),
    Stage2(Stage2Regs),
    Alloc {
        pa: u64,
        level: Level,
    },
    Free {
        pa: u64,
        level: Level,
    },
}

/// Somebody else: called before each swap, or each read, of the entry at an
/// address.
type Other = Box<dyn FnMut(&Plain, u64)>;

/// Memory that tables live in.
pub struct Plain {
    /// By 4 KiB of addresses.
    words: RefCell<HashMap<u64, Box<[u64; 512]>>>,
    counts: RefCell<HashMap<u64, i64>>,
    live: RefCell<BTreeSet<u64>>,
    free: RefCell<Vec<u64>>,
    /// Where there are tables, and their bytes: nothing else may be read.
    tables: RefCell<HashMap<u64, u64>>,
    page: u64,
    next: Cell<u64>,
    /// Pages that `alloc` still gives.
    pub limit: Cell<u64>,
    /// All that was done.
    pub did: RefCell<Vec<Did>>,
    other: RefCell<Option<Other>>,
    reader: RefCell<Option<Other>>,
}

impl Plain {
    pub fn new(page: u64) -> Self {
        Self {
            words: RefCell::default(),
            counts: RefCell::default(),
            live: RefCell::default(),
            free: RefCell::default(),
            tables: RefCell::default(),
            page,
            next: Cell::new(0x100_0000),
            limit: Cell::new(u64::MAX),
            did: RefCell::default(),
            other: RefCell::default(),
            reader: RefCell::default(),
        }
    }

    /// An aligned, zeroed root.
    pub fn root(&self, bytes: u64) -> Pa {
        let at = self.next.get().next_multiple_of(bytes);
        self.next.set(at + bytes);
        self.tables.borrow_mut().insert(at, bytes);
        Pa::new(at)
    }

    /// An empty tree of this format on it.
    pub fn tree(&self, config: Stage2Config) -> Stage2<&Self> {
        let geometry = config.validate().expect("legal");
        let root = self.root(geometry.root_align());
        Stage2::new(geometry, root, Vmid::new(3), self).expect("a root")
    }

    /// A page that is nobody's table yet.
    pub fn page(&self) -> Pa {
        self.root(self.page)
    }

    /// The CPU that works on it, with this `VTTBR_EL2`.
    pub fn cpu(&self, regs: Stage2Regs) -> Cpu<'_> {
        Cpu { mem: self, regs }
    }

    pub fn word(&self, pa: u64) -> u64 {
        let words = self.words.borrow();
        words
            .get(&(pa >> 12))
            .map_or(0, |page| page[pa as usize / 8 % 512])
    }

    /// Writes an entry as somebody else: in no log.
    pub fn poke(&self, pa: u64, value: u64) {
        let mut words = self.words.borrow_mut();
        let page = words.entry(pa >> 12).or_insert_with(|| Box::new([0; 512]));
        page[pa as usize / 8 % 512] = value;
    }

    /// What happens before each swap from now on.
    pub fn interfere(&self, other: impl FnMut(&Self, u64) + 'static) {
        *self.other.borrow_mut() = Some(Box::new(other));
    }

    /// What happens before each read from now on.
    pub fn interfere_with_reads(&self, other: impl FnMut(&Self, u64) + 'static) {
        *self.reader.borrow_mut() = Some(Box::new(other));
    }

    pub fn undisturbed(&self) {
        *self.other.borrow_mut() = None;
        *self.reader.borrow_mut() = None;
    }

    /// Forgets what was done until now.
    pub fn forget(&self) {
        self.did.borrow_mut().clear();
    }

    /// What was done since, reads apart.
    pub fn changes(&self) -> Vec<Did> {
        let mut did = self.did.take();
        did.retain(|did| !matches!(did, Did::Load { .. }));
        did
    }

    /// How many entries were read, written or tried since.
    pub fn visits(&self) -> u64 {
        let visit =
            |did: &&Did| matches!(did, Did::Load { .. } | Did::Write { .. } | Did::Lost { .. });
        self.did.borrow().iter().filter(visit).count() as u64
    }

    /// How many tables `alloc` gave that did not come back.
    pub fn live(&self) -> usize {
        self.live.borrow().len()
    }

    fn note(&self, did: Did) {
        self.did.borrow_mut().push(did);
    }

    fn at(&self, table: u64, index: usize) -> u64 {
        let bytes = self.tables.borrow().get(&table).copied().unwrap_or(0);
        let offset = index as u64 * 8;
        assert!(offset < bytes, "entry {index} of a table at {table:#x}");
        table + offset
    }
}

impl TableMem for Plain {
    type Table = u64;

    fn locate(&self, pa: Pa) -> u64 {
        pa.get()
    }

    fn load(&self, table: u64, index: usize) -> u64 {
        let pa = self.at(table, index);
        let reader = self.reader.borrow_mut().take();
        if let Some(mut reader) = reader {
            reader(self, pa);
            self.reader.borrow_mut().get_or_insert(reader);
        }
        self.note(Did::Load { pa });
        self.word(pa)
    }

    fn store(&self, table: u64, index: usize, value: u64) {
        let pa = self.at(table, index);
        let old = self.word(pa);
        self.note(Did::Write {
            pa,
            old,
            new: value,
        });
        self.poke(pa, value);
    }

    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let pa = self.at(table, index);
        let other = self.other.borrow_mut().take();
        if let Some(mut other) = other {
            other(self, pa);
            self.other.borrow_mut().get_or_insert(other);
        }
        let now = self.word(pa);
        if now != old {
            self.note(Did::Lost { pa });
            return Err(now);
        }
        self.note(Did::Write { pa, old, new });
        self.poke(pa, new);
        Ok(())
    }

    fn alloc(&self, level: Level) -> Option<Pa> {
        self.limit.set(self.limit.get().checked_sub(1)?);
        let freed = self.free.borrow_mut().pop();
        let pa = freed.unwrap_or_else(|| self.page().get());
        assert!(self.live.borrow_mut().insert(pa));
        self.note(Did::Alloc { pa, level });
        Some(Pa::new(pa))
    }

    fn free(&self, table: Pa, level: Level, _: &Synced) {
        let pa = table.get();
        self.note(Did::Free { pa, level });
        assert!(self.live.borrow_mut().remove(&pa), "{pa:#x} freed twice");
        self.counts.borrow_mut().remove(&pa);
        for part in pa >> 12..(pa + self.page) >> 12 {
            self.words.borrow_mut().remove(&part);
        }
        self.free.borrow_mut().push(pa);
    }

    fn count(&self, table: Pa) -> u32 {
        let count = *self.counts.borrow().get(&table.get()).unwrap_or(&0);
        u32::try_from(count).expect("a count below zero")
    }

    fn add_count(&self, table: Pa, by: i32) {
        *self.counts.borrow_mut().entry(table.get()).or_insert(0) += i64::from(by);
    }
}

/// A CPU of a [`Plain`] machine.
pub struct Cpu<'m> {
    mem: &'m Plain,
    pub regs: Stage2Regs,
}

impl Maintenance for Cpu<'_> {
    fn barrier(&mut self, barrier: Barrier) {
        self.mem.note(Did::Barrier(barrier));
    }
    fn tlbi(&mut self, op: Tlbi) {
        self.mem.note(Did::Tlbi(op));
    }
    fn cache(&mut self, op: CacheOp) {
        self.mem.note(Did::Cache(op));
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.regs
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.regs = regs;
        self.mem.note(Did::Stage2(regs));
    }
}

//! `pgtable` on a machine that the model judges: every store, barrier, TLBI
//! and register write becomes an event, and a broken rule ends the run.

#![allow(dead_code)]

pub mod directed;
pub mod driver;
pub mod shadow;

use mmu_model::{Event, EventKind, Machine, Owner, Reach, Reg, TlbiOp};
use pgtable::{Barrier, CacheOp, Level, Maintenance, Pa, Synced, TableMem, Tlbi, TlbiKind};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};

/// Tables live above this, below all that guests map.
pub const TABLES: u64 = 0x100_0000;

/// Memory and CPUs under the model's eyes.
pub struct Judge {
    pub machine: RefCell<Machine>,
    /// The CPU that acts.
    pub pe: Cell<u8>,
    vttbr: RefCell<Vec<u64>>,
    counts: RefCell<HashMap<u64, i64>>,
    taken: RefCell<BTreeSet<u64>>,
    free: RefCell<Vec<u64>>,
    next: Cell<u64>,
    page: u64,
    /// Pages that `alloc` still gives.
    pub limit: Cell<u64>,
    events: Cell<u64>,
    /// Entries that a CPU stored and walkers care about, and no DSB since.
    unseen: RefCell<Vec<(u8, u64)>>,
    /// The first broken rule.
    pub broken: RefCell<Option<String>>,
    /// All events, if wanted.
    pub trace: RefCell<Option<Vec<Event>>>,
}

impl Judge {
    pub fn new(machine: Machine, pes: usize, page: u64) -> Self {
        Self {
            machine: RefCell::new(machine),
            pe: Cell::new(0),
            vttbr: RefCell::new(vec![0; pes]),
            counts: RefCell::default(),
            taken: RefCell::default(),
            free: RefCell::default(),
            next: Cell::new(TABLES),
            page,
            limit: Cell::new(u64::MAX),
            events: Cell::new(0),
            unseen: RefCell::default(),
            broken: RefCell::default(),
            trace: RefCell::default(),
        }
    }

    /// Tells the model.
    pub fn event(&self, kind: EventKind) {
        // While a panic unwinds, guards put entries back: no second panic.
        if std::thread::panicking() {
            return;
        }
        // A fault may have made a loop endless.
        self.events.set(self.events.get() + 1);
        let most = if self.is_broken() { 20_000 } else { 5_000_000 };
        assert!(
            self.events.get() < most || self.trace.borrow().is_some(),
            "no end"
        );
        let event = Event {
            pe: self.pe.get(),
            kind,
        };
        if kind == EventKind::DSB_ISH || kind == EventKind::DSB_ISHST {
            let pe = self.pe.get();
            self.unseen.borrow_mut().retain(|&(by, _)| by != pe);
        }
        if let Some(trace) = self.trace.borrow_mut().as_mut() {
            trace.push(event);
        }
        if let Err(violation) = self.machine.borrow_mut().on(event) {
            self.complain(format!("{violation} (at {event:?})"));
        }
    }

    /// Before the model is asked whether all is visible: stores that put one
    /// invalid value in another's place are no matter of walkers, but the
    /// model would ask for their barrier. It gets it if nothing else is due.
    /// Returns whether it was.
    pub fn settle_invalid(&self) -> bool {
        let pe = self.pe.get();
        let only = self.unseen.borrow().iter().all(|&(by, _)| by != pe);
        if only {
            self.event(EventKind::DSB_ISHST);
        }
        only
    }

    fn note_store(&self, pa: u64, old: u64, new: u64) {
        if (old | new) & 1 != 0 {
            self.unseen.borrow_mut().push((self.pe.get(), pa));
        }
    }

    /// Remembers the first complaint.
    pub fn complain(&self, what: String) {
        if self.broken.borrow().is_none() {
            self.events.set(0);
        }
        self.broken.borrow_mut().get_or_insert(what);
    }

    pub fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// Takes an aligned, zeroed root.
    pub fn root(&self, bytes: u64) -> Pa {
        let at = self.next.get().next_multiple_of(bytes);
        self.next.set(at + bytes);
        self.event(EventKind::Alloc {
            pa: at,
            len: bytes,
            zeroed: true,
        });
        self.event(EventKind::DSB_ISHST);
        Pa::new(at)
    }

    /// A page that an operation gave back whole, as `free` does.
    pub fn give_back(&self, page: Pa) {
        self.take_back(page.get());
    }

    fn take_back(&self, pa: u64) {
        if !self.taken.borrow_mut().remove(&pa) {
            self.complain(format!("table {pa:#x} freed twice"));
        }
        self.unseen
            .borrow_mut()
            .retain(|&(_, at)| at & !(self.page - 1) != pa);
        self.event(EventKind::Free { pa, len: self.page });
        self.counts.borrow_mut().remove(&pa);
        self.free.borrow_mut().push(pa);
    }

    /// Pages out for tables.
    pub fn live(&self) -> usize {
        self.taken.borrow().len()
    }

    /// Writes a control register of the CPU that acts.
    pub fn write(&self, reg: Reg, value: u64) {
        if reg == Reg::Vttbr {
            self.vttbr.borrow_mut()[usize::from(self.pe.get())] = value;
        }
        self.event(EventKind::Write { reg, value });
    }

    pub fn word(&self, pa: u64) -> u64 {
        self.machine.borrow().mem().load(pa)
    }
}

impl TableMem for Judge {
    type Table = u64;

    fn locate(&self, pa: Pa) -> u64 {
        pa.get()
    }

    fn load(&self, table: u64, index: usize) -> u64 {
        self.word(table + index as u64 * 8)
    }

    fn store(&self, table: u64, index: usize, value: u64) {
        let pa = table + index as u64 * 8;
        self.note_store(pa, self.word(pa), value);
        self.event(EventKind::Store {
            pa,
            value,
            how: mmu_model::How::Release,
        });
    }

    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let pa = table + index as u64 * 8;
        let now = self.word(pa);
        if now != old {
            return Err(now);
        }
        self.note_store(pa, old, new);
        self.event(EventKind::Cas {
            pa,
            expected: old,
            value: new,
            release: true,
        });
        Ok(())
    }

    fn alloc(&self, _: Level) -> Option<Pa> {
        if self.limit.get() == 0 {
            return None;
        }
        self.limit.set(self.limit.get() - 1);
        let pa = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let at = self.next.get().next_multiple_of(self.page);
            self.next.set(at + self.page);
            at
        });
        self.taken.borrow_mut().insert(pa);
        self.event(EventKind::Alloc {
            pa,
            len: self.page,
            zeroed: true,
        });
        Some(Pa::new(pa))
    }

    fn free(&self, table: Pa, _: Level, _: &Synced) {
        self.take_back(table.get());
    }

    fn count(&self, table: Pa) -> u32 {
        *self.counts.borrow().get(&table.get()).unwrap_or(&0) as u32
    }

    fn add_count(&self, table: Pa, by: i32) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(table.get()).or_insert(0);
        *count += i64::from(by);
        if *count < 0 {
            let what = format!("count of table {table} went to {count}");
            drop(counts);
            self.complain(what);
        }
    }
}

/// One CPU of a [`Judge`].
pub struct Cpu<'a>(pub &'a Judge);

impl Maintenance for Cpu<'_> {
    fn barrier(&mut self, barrier: Barrier) {
        use mmu_model::{Accesses, Barrier as B, Domain};
        self.0.event(EventKind::Barrier(match barrier {
            Barrier::DsbIshst => B::Dsb(Domain::Inner, Accesses::Stores),
            Barrier::DsbIsh => B::Dsb(Domain::Inner, Accesses::All),
            Barrier::DsbNshst => B::Dsb(Domain::NonShareable, Accesses::Stores),
            Barrier::DsbNsh => B::Dsb(Domain::NonShareable, Accesses::All),
            Barrier::Isb => B::Isb,
        }));
    }

    fn tlbi(&mut self, op: Tlbi) {
        use mmu_model::TlbiKind as K;
        let (kind, reach) = match op.kind() {
            TlbiKind::Ipas2e1is => (K::Ipas2e1, Reach::Inner),
            TlbiKind::Ripas2e1is => (K::Ripas2e1, Reach::Inner),
            TlbiKind::Ipas2e1 => (K::Ipas2e1, Reach::Local),
            TlbiKind::Vmalle1is => (K::Vmalle1, Reach::Inner),
            TlbiKind::Vmalle1 => (K::Vmalle1, Reach::Local),
            TlbiKind::Vmalls12e1is => (K::Vmalls12e1, Reach::Inner),
            TlbiKind::Alle1is => (K::Alle1, Reach::Inner),
            TlbiKind::Vae2is => (K::Vae2, Reach::Inner),
            TlbiKind::Rvae2is => (K::Rvae2, Reach::Inner),
            TlbiKind::Alle2is => (K::Alle2, Reach::Inner),
        };
        self.0.event(EventKind::Tlbi {
            op: TlbiOp { kind, reach },
            xt: op.operand(),
        });
    }

    fn cache(&mut self, op: CacheOp) {
        self.0.event(match op {
            CacheOp::CleanInvalidateData { pa, size } => EventKind::CleanData {
                pa: pa.get(),
                len: size,
            },
            CacheOp::SyncInstructions { pa, size } => EventKind::InvalidateInstructions {
                pa: pa.get(),
                len: size,
            },
        });
    }

    fn vttbr(&mut self) -> u64 {
        self.0.vttbr.borrow()[usize::from(self.0.pe.get())]
    }

    fn set_vttbr(&mut self, value: u64) {
        self.0.write(Reg::Vttbr, value);
    }
}

/// Gives memory to a VMID, or to nobody.
pub fn own(judge: &Judge, pa: u64, len: u64, owner: Owner) {
    judge.event(EventKind::Own { pa, len, owner });
}

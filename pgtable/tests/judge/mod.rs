//! `pgtable` on a machine that the model judges: every store, barrier, TLBI
//! and register write becomes an event, and a broken rule ends the run.

#![allow(dead_code)]

pub mod bulk;
pub mod case;
pub mod directed;
pub mod driver;
mod guest;
mod ops;
mod peer;
pub mod shadow;
pub mod tally;
mod trace;

use mmu_model::trace::Header;
use mmu_model::{Event, EventKind, Features, Machine, Owner, Reach, Reg, Shape, TlbiOp};
use pgtable::{
    Barrier, CacheOp, Level, Maintenance, Pa, Stage2Regs, Synced, TableMem, Tlbi, TlbiKind,
};
use std::cell::{Cell, RefCell};

pub use guest::{Access, Meanwhile};
pub use peer::{Peer, Work};

/// Tables live above this, below all that guests map.
pub const TABLES: u64 = 0x100_0000;

/// A page of table memory.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    count: i64,
    taken: bool,
    /// The operation that took it.
    since: u64,
}

/// Memory and CPUs under the model's eyes.
pub struct Judge {
    pub machine: RefCell<Machine>,
    /// The CPU that acts.
    pub pe: Cell<u8>,
    regs: RefCell<Vec<Stage2Regs>>,
    /// From [`TABLES`] on.
    pages: RefCell<Vec<Page>>,
    free: RefCell<Vec<u64>>,
    next: Cell<u64>,
    page: u64,
    live: Cell<usize>,
    /// Pages that `alloc` still gives.
    pub limit: Cell<u64>,
    events: Cell<u64>,
    /// Where the events end, for a fault may have made a loop endless.
    most: Cell<u64>,
    /// Operations so far, and whether this one has others beside it.
    operation: Cell<u64>,
    shared: Cell<bool>,
    /// The guest that goes on beside.
    guest: guest::Guest,
    /// The first broken rule.
    pub broken: RefCell<Option<String>>,
    /// All events, if somebody wants them.
    trace: RefCell<Option<trace::Trace>>,
}

impl Judge {
    /// A machine with tables in pages of `page` bytes.
    pub fn new(features: Features, pes: usize, page: u64) -> Self {
        Self::on(
            Header {
                features,
                pes,
                toy: None,
            },
            page,
        )
    }

    /// A machine by its trace's header.
    pub fn on(header: Header, page: u64) -> Self {
        let pes = header.pes;
        Self {
            machine: RefCell::new(header.machine()),
            pe: Cell::new(0),
            regs: RefCell::new(vec![Stage2Regs::default(); pes]),
            pages: RefCell::default(),
            free: RefCell::default(),
            next: Cell::new(TABLES),
            page,
            live: Cell::new(0),
            limit: Cell::new(u64::MAX),
            events: Cell::new(0),
            most: Cell::new(5_000_000),
            operation: Cell::new(0),
            shared: Cell::new(false),
            guest: guest::Guest::default(),
            broken: RefCell::default(),
            trace: RefCell::new(trace::Trace::wanted(&header)),
        }
    }

    /// Tells the model.
    pub fn event(&self, kind: EventKind) {
        // While a panic unwinds, guards put entries back: no second panic.
        if std::thread::panicking() {
            return;
        }
        self.events.set(self.events.get() + 1);
        assert!(self.events.get() < self.most.get(), "no end");
        let event = Event {
            pe: self.pe.get(),
            kind,
        };
        if let Some(trace) = self.trace.borrow_mut().as_mut() {
            trace.event(&event);
        }
        let verdict = self.machine.borrow_mut().on(event);
        if let Err(violation) = verdict {
            self.complain(format!("{violation} (at {event:?})"));
        }
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events.get()
    }

    /// An operation begins. Where others may be in the tree meanwhile it must
    /// not free a table that they may be in: any but its own new ones.
    pub fn begin(&self, shared: bool) {
        self.operation.set(self.operation.get() + 1);
        self.shared.set(shared);
    }

    /// Allows for another so many events.
    pub fn extend(&self, events: u64) {
        self.most.set(self.events.get() + events);
    }

    /// Remembers the first complaint.
    pub fn complain(&self, what: String) {
        if !self.is_broken() {
            self.extend(20_000);
            *self.broken.borrow_mut() = Some(what);
        }
    }

    pub fn is_broken(&self) -> bool {
        self.broken.borrow().is_some()
    }

    /// What was told of a page of table memory.
    fn page_of<R>(&self, pa: u64, f: impl FnOnce(&mut Page) -> R) -> R {
        let index = (pa.saturating_sub(TABLES) / self.page) as usize;
        let mut pages = self.pages.borrow_mut();
        if index >= pages.len() {
            // A fault may have made an address of anything.
            if index >= 1 << 20 {
                return f(&mut Page::default());
            }
            pages.resize(index + 1, Page::default());
        }
        f(&mut pages[index])
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
        let page = self.page_of(pa, std::mem::take);
        if !page.taken {
            self.complain(format!("table {pa:#x} freed twice"));
        }
        if self.shared.get() && page.since != self.operation.get() {
            self.complain(format!("table {pa:#x} freed by a shared operation"));
        }
        self.live.set(self.live.get().saturating_sub(1));
        self.event(EventKind::Free { pa, len: self.page });
        self.free.borrow_mut().push(pa);
    }

    /// Pages out for tables.
    pub fn live(&self) -> usize {
        self.live.get()
    }

    /// Writes a control register of the CPU that acts.
    pub fn write(&self, reg: Reg, value: u64) {
        let pe = usize::from(self.pe.get());
        match reg {
            Reg::Vttbr => self.regs.borrow_mut()[pe].vttbr = value,
            Reg::Vtcr => self.regs.borrow_mut()[pe].vtcr = value,
            _ => (),
        }
        self.event(EventKind::Write { reg, value });
    }

    /// The registers of stage 2 of the CPU that acts.
    pub fn regs(&self) -> Stage2Regs {
        self.regs_of(self.pe.get())
    }

    fn regs_of(&self, pe: u8) -> Stage2Regs {
        self.regs.borrow()[usize::from(pe)]
    }

    /// What a VTCR_EL2 says.
    pub fn shape(&self, vtcr: u64) -> Option<Shape> {
        let machine = self.machine.borrow();
        let features = machine.features();
        Shape::stage2(vtcr, u64::from(features.fwb) << 46, features).ok()
    }

    /// Installs a tree on the CPU that acts.
    pub fn install(&self, regs: Stage2Regs) {
        self.write(Reg::Vtcr, regs.vtcr);
        self.write(Reg::Vttbr, regs.vttbr);
        self.event(EventKind::ISB);
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
        self.tick();
        self.word(table + index as u64 * 8)
    }

    fn store(&self, table: u64, index: usize, value: u64) {
        self.tick();
        let pa = table + index as u64 * 8;
        self.event(EventKind::Store {
            pa,
            value,
            how: mmu_model::How::Release,
        });
    }

    fn cas(&self, table: u64, index: usize, old: u64, new: u64) -> Result<(), u64> {
        self.tick();
        let pa = table + index as u64 * 8;
        let now = self.word(pa);
        if now != old {
            return Err(now);
        }
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
        let since = self.operation.get();
        self.page_of(pa, |page| (page.taken, page.since) = (true, since));
        self.live.set(self.live.get() + 1);
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
        self.page_of(table.get(), |page| page.count as u32)
    }

    fn add_count(&self, table: Pa, by: i32) {
        let count = self.page_of(table.get(), |page| {
            page.count += i64::from(by);
            page.count
        });
        if count < 0 {
            self.complain(format!("count of table {table} went to {count}"));
        }
    }
}

/// One CPU of a [`Judge`].
pub struct Cpu<'a>(pub &'a Judge);

impl Maintenance for Cpu<'_> {
    fn barrier(&mut self, barrier: Barrier) {
        self.0.tick();
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
        self.0.tick();
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
        self.0.tick();
        self.0.event(match op {
            CacheOp::CleanInvalidateData { pa, size } => EventKind::CleanData {
                pa: pa.get(),
                len: size,
            },
            CacheOp::InvalidateInstructions => EventKind::InvalidateInstructions {
                pa: 0,
                len: u64::MAX,
            },
        });
    }

    fn stage2(&mut self) -> Stage2Regs {
        self.0.regs()
    }

    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.0.write(Reg::Vtcr, regs.vtcr);
        self.0.write(Reg::Vttbr, regs.vttbr);
    }
}

/// Gives memory to a VMID, or to nobody.
pub fn own(judge: &Judge, pa: u64, len: u64, owner: Owner) {
    judge.event(EventKind::Own { pa, len, owner });
}

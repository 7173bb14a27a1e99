//! Plain memory and a CPU that writes down what it is asked to do.

#![allow(dead_code)]

use pgtable::{Barrier, CacheOp, Level, Maintenance, Pa, Stage2Regs, Synced, TableMem, Tlbi};
use std::cell::{Cell, RefCell};

/// Tables in a vector of words, from `BASE` on.
pub struct Plain {
    /// One vector: comes zeroed, at no cost even in an interpreter.
    words: RefCell<Vec<u64>>,
    counts: RefCell<Vec<u32>>,
    page: u64,
    next: Cell<u64>,
    free: RefCell<Vec<u64>>,
    pub limit: Cell<usize>,
    pub live: Cell<usize>,
}

pub const BASE: u64 = 0x1000_0000;

impl Plain {
    /// Room for `bytes` of tables.
    pub fn new(page: u64, bytes: u64) -> Self {
        Self {
            words: RefCell::new(std::vec![0; (bytes / 8) as usize]),
            counts: RefCell::new(std::vec![0; (bytes / page) as usize]),
            page,
            next: Cell::new(BASE),
            free: RefCell::new(Vec::new()),
            limit: Cell::new(usize::MAX),
            live: Cell::new(0),
        }
    }

    /// Takes an aligned root.
    pub fn root(&self, bytes: u64) -> Pa {
        let at = self.next.get().next_multiple_of(bytes);
        self.next.set(at + bytes);
        Pa::new(at)
    }
}

impl TableMem for Plain {
    type Table = usize;

    fn locate(&self, pa: Pa) -> usize {
        ((pa.get() - BASE) / 8) as usize
    }

    fn load(&self, table: usize, index: usize) -> u64 {
        self.words.borrow()[table + index]
    }

    fn store(&self, table: usize, index: usize, value: u64) {
        self.words.borrow_mut()[table + index] = value;
    }

    fn cas(&self, table: usize, index: usize, old: u64, new: u64) -> Result<(), u64> {
        let word = &mut self.words.borrow_mut()[table + index];
        if *word != old {
            return Err(*word);
        }
        *word = new;
        Ok(())
    }

    fn alloc(&self, _level: Level) -> Option<Pa> {
        if self.limit.get() == 0 {
            return None;
        }
        self.limit.set(self.limit.get() - 1);
        self.live.set(self.live.get() + 1);
        if let Some(at) = self.free.borrow_mut().pop() {
            return Some(Pa::new(at));
        }
        let at = self.next.get().next_multiple_of(self.page);
        self.next.set(at + self.page);
        assert!(
            (at + self.page - BASE) / 8 <= self.words.borrow().len() as u64,
            "test memory used up"
        );
        Some(Pa::new(at))
    }

    fn free(&self, table: Pa, _level: Level, _proof: &Synced) {
        let at = self.locate(table);
        self.words.borrow_mut()[at..at + (self.page / 8) as usize].fill(0);
        self.counts.borrow_mut()[((table.get() - BASE) / self.page) as usize] = 0;
        self.live.set(self.live.get() - 1);
        self.free.borrow_mut().push(table.get());
    }

    fn count(&self, table: Pa) -> u32 {
        self.counts.borrow()[((table.get() - BASE) / self.page) as usize]
    }

    fn add_count(&self, table: Pa, by: i32) {
        let count = &mut self.counts.borrow_mut()[((table.get() - BASE) / self.page) as usize];
        *count = count.checked_add_signed(by).expect("count below zero");
    }
}

/// What was asked of the CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    Barrier(Barrier),
    Tlbi(Tlbi),
    Cache(CacheOp),
    Stage2(Stage2Regs),
}

/// Writes down what it is asked to do.
#[derive(Default)]
pub struct Log {
    pub regs: Stage2Regs,
    pub events: Vec<Event>,
}

impl Log {
    pub fn tlbis(&self) -> usize {
        self.events
            .iter()
            .filter(|event| matches!(event, Event::Tlbi(_)))
            .count()
    }

    pub fn barriers(&self) -> usize {
        self.events
            .iter()
            .filter(|event| matches!(event, Event::Barrier(_)))
            .count()
    }
}

impl Maintenance for Log {
    fn barrier(&mut self, barrier: Barrier) {
        self.events.push(Event::Barrier(barrier));
    }
    fn tlbi(&mut self, op: Tlbi) {
        self.events.push(Event::Tlbi(op));
    }
    fn cache(&mut self, op: CacheOp) {
        self.events.push(Event::Cache(op));
    }
    fn stage2(&mut self) -> Stage2Regs {
        self.regs
    }
    fn set_stage2(&mut self, regs: Stage2Regs) {
        self.regs = regs;
        self.events.push(Event::Stage2(regs));
    }
}

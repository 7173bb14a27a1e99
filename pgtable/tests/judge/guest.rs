//! What goes on beside an operation: a guest's access, or another CPU's work.
//!
//! While one CPU works on a tree, a guest on another touches an address in
//! it: between a load and the compare-and-swap, between a store and its
//! barrier, between a TLBI and its DSB. Hardware then sets the access flag or
//! the dirty state of what it finds, and the guest sees any translation that
//! the model still allows.

use super::Judge;
use super::peer::{Done, Peer, Work};
use mmu_model::{EventKind, Outcome, Regime, Shape};
use pgtable::Stage2Regs;
use std::cell::{Cell, RefCell};

/// One access of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The CPU it runs on.
    pub pe: u8,
    /// The registers of the tree, what they say, and its root.
    pub regs: Stage2Regs,
    pub shape: Option<Shape>,
    pub root: u64,
    pub ipa: u64,
    pub write: bool,
}

/// What comes between the steps of an operation.
#[derive(Clone, Copy, Debug)]
pub enum Meanwhile {
    Guest(Access),
    Peer(Peer),
}

/// What goes on after a pause.
#[must_use]
#[derive(Debug)]
pub struct Paused {
    left: u32,
    shared: bool,
}

/// What is to come, and what the last ones did.
#[derive(Default)]
pub(super) struct Guest {
    /// Steps to it, from 1; 0 if nothing is to come.
    left: Cell<u32>,
    planned: Cell<Option<Meanwhile>>,
    done: RefCell<Option<Done>>,
    marked: Cell<bool>,
    written: Cell<Option<(u64, u64)>>,
    seen: RefCell<Vec<u64>>,
}

impl Judge {
    /// Plans what comes after so many loads, stores, barriers and TLBIs.
    pub fn plan(&self, meanwhile: Meanwhile, after: u32) {
        self.guest.planned.set(Some(meanwhile));
        self.guest.left.set(after + 1);
    }

    /// Nothing comes by until [`resume`](Self::resume) gets the result: the
    /// driver prepares or compares.
    pub fn pause(&self) -> Paused {
        Paused {
            left: self.guest.left.replace(0),
            shared: self.shared.replace(false),
        }
    }

    pub fn resume(&self, paused: Paused) {
        self.guest.left.set(paused.left);
        self.shared.set(paused.shared);
    }

    /// The operation is over: nothing comes any more, and what was done is
    /// forgotten.
    pub fn unplan(&self) {
        self.guest.done.take();
        self.guest.left.set(0);
        self.guest.marked.set(false);
        self.guest.written.set(None);
        self.guest.seen.borrow_mut().clear();
    }

    /// A step of the operation.
    #[inline]
    pub(super) fn tick(&self) {
        let left = self.guest.left.get();
        if left != 0 {
            self.guest.left.set(left - 1);
            if left == 1 {
                self.interrupt();
            }
        }
    }

    #[cold]
    fn interrupt(&self) {
        match self.guest.planned.take() {
            Some(Meanwhile::Guest(access)) => {
                self.guest_access(&access);
                self.look(&access);
            }
            Some(Meanwhile::Peer(peer)) => {
                self.guest.marked.set(true);
                let done = peer.act(self);
                *self.guest.done.borrow_mut() = Some(done);
            }
            None => (),
        }
    }

    /// The page that another CPU mapped and where it leads, if it did.
    pub fn mapped_meanwhile(&self) -> Option<(u64, u64)> {
        let done = self.guest.done.borrow();
        let done = done.as_ref().filter(|done| done.result.is_ok())?;
        match done.peer.work {
            Work::Map { pa, .. } | Work::Replace { pa, .. } => Some((done.peer.ipa, pa)),
            _ => None,
        }
    }

    /// True if another CPU holds a page for a gather of its own.
    pub fn held_meanwhile(&self) -> bool {
        let done = self.guest.done.borrow();
        done.as_ref().is_some_and(|done| done.held.is_some())
    }

    /// What another CPU did.
    pub fn take_done(&self) -> Option<Done> {
        self.guest.done.take()
    }

    /// A guest touches memory now.
    pub fn guest_access(&self, access: &Access) {
        let Some(shape) = access.shape else {
            return;
        };
        let mut place = 0;
        let found = mmu_model::walk(&shape, access.root, 0, access.ipa, |pa| {
            place = pa;
            self.word(pa)
        });
        if let Ok(leaf) = found {
            let dirties = shape.hd && access.write && leaf.attrs.dbm && leaf.desc & 1 << 7 == 0;
            let mut new = leaf.desc;
            if shape.ha {
                new |= 1 << 10;
            }
            if dirties {
                new |= 1 << 7;
            }
            if new != leaf.desc {
                self.mark(access.pe, place, leaf.desc, new);
            }
            if dirties {
                let low = (1 << leaf.size_log2) - 1;
                let base = access.ipa & !low;
                self.guest.written.set(Some((base, base + low + 1)));
            }
        }
    }

    /// What a guest may find at an address, if its CPU runs on the tree.
    fn look(&self, access: &Access) {
        if self.regs_of(access.pe) == access.regs {
            let machine = self.machine.borrow();
            let may = machine.translate(access.pe, Regime::Stage2, access.ipa);
            let leads = |outcome: Outcome| outcome.ok().map(|found| found.pa);
            let all = may.into_iter().filter_map(|one| leads(one.outcome));
            self.guest.seen.borrow_mut().extend(all);
        }
    }

    /// Hardware of `pe` changes a leaf: at once and for all to see.
    fn mark(&self, pe: u8, pa: u64, expected: u64, value: u64) {
        let acting = self.pe.replace(pe);
        self.event(EventKind::Cas {
            pa,
            expected,
            value,
            release: true,
        });
        self.event(EventKind::DSB_ISHST);
        self.pe.set(acting);
        self.guest.marked.set(true);
    }

    /// True if hardware marked a leaf, or another CPU did something, during
    /// this operation.
    pub fn was_marked(&self) -> bool {
        self.guest.marked.get()
    }

    /// The leaf that a guest wrote to, which became dirty by that: first IPA
    /// and end.
    pub fn take_written(&self) -> Option<(u64, u64)> {
        self.guest.written.take()
    }

    /// Where a planned access led, or may have led.
    pub fn take_seen(&self) -> Vec<u64> {
        self.guest.seen.take()
    }
}

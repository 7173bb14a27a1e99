//! What goes on beside an operation, and how it becomes part of the shadow.

use super::{Kind, Run, State, Task};
use crate::judge::Cpu;
use crate::judge::driver::{PES, with_access, without_write};
use crate::judge::peer::Done;
use crate::judge::tally::Outcome;
use crate::judge::{Access as GuestAccess, Meanwhile, Peer, Work};
use Kind as K;
use pgtable::{Access, Attrs, Dirty, Entry, Error, Ipa, Level, Over};

impl Run<'_, '_> {
    /// What goes on beside a task, by the bits of its first number from 16 on:
    /// mostly a guest's access to an address in its range.
    pub(super) fn meanwhile(&self, task: &Task, inside: u64, n: u64) -> Option<Meanwhile> {
        let pes = PES as u8;
        let pe = (self.judge.pe.get() + 1 + (n >> 18 & 1) as u8) % pes;
        match n >> 16 & 3 {
            0 => None,
            1 if task.kind.shares() => self.peer(task, pe, inside, n >> 32),
            _ => Some(Meanwhile::Guest(GuestAccess {
                pe,
                regs: self.guests[task.guest].tree.regs(),
                shape: self.judge.shape(self.guests[task.guest].tree.regs().vtcr),
                root: self.guests[task.guest].tree.root().get(),
                ipa: inside,
                write: n >> 19 & 1 == 1 && task.kind.bears_writes(),
            })),
        }
    }

    /// What another CPU does while an operation goes on: something to the age
    /// of what is in its range, the same mapping, or anything to a page beside
    /// the range.
    fn peer(&self, task: &Task, pe: u8, inside: u64, n: u64) -> Option<Meanwhile> {
        let page = self.page();
        let guest = task.guest;
        let skip = (n >> 3) % 8 * page;
        let beside = match n >> 6 & 1 {
            0 if task.high + skip < self.space() => task.high + skip,
            _ => task.low.checked_sub(skip + page)?,
        };
        let (low, high) = self.whole(guest, beside, beside + page);
        let apart = (high <= task.low || low >= task.high) && task.kind.keeps_to_range();
        // The leaf there is all in the range, or there is none.
        let (from, to) = self.whole(guest, inside, inside + page);
        let within = task.start <= from && to <= task.end;
        let (ipa, work) = match n & 7 {
            0 if task.kind == K::Map => (inside, self.same_mapping(task, inside, n)),
            0 | 1 if task.kind.removes_leaves() => (inside, self.refill(task, inside, n)?),
            2 | 3 if task.kind.bears_removal() && within => (inside, Work::Unmap),
            1 | 2 if apart => (beside, self.mapping_beside(task, beside, n)),
            3 if apart => (beside, Work::Unmap),
            4 if apart => (beside, Work::WriteProtect),
            5 if apart => (beside, Work::Relax),
            6 => (inside, Work::MarkYoung),
            _ => (inside, Work::ClearYoung),
        };
        let it = &self.guests[guest];
        Some(Meanwhile::Peer(Peer {
            pe,
            geometry: self.geometry,
            root: it.tree.root(),
            vmid: it.vmid,
            ipa,
            work,
        }))
    }

    /// A page of what the task itself maps.
    fn same_mapping(&self, task: &Task, inside: u64, n: u64) -> Work {
        let (pa, attrs, _) = self.mapping(task);
        let pa = pa + (inside - task.start);
        // The end is the same, whoever is first.
        let whole = task.size() == self.page() && task.over == Over::Anything;
        match n >> 11 & 1 {
            1 if whole => Work::Replace { pa, attrs },
            _ => Work::Map { pa, attrs },
        }
    }

    /// A page where the task removes leaves: before it comes there, or after.
    fn refill(&self, task: &Task, inside: u64, n: u64) -> Option<Work> {
        let (guest, page) = (task.guest, self.page());
        let pa = self.target(guest, inside, task.c >> 20);
        if self.guests[guest].shadow.unmapped(pa, pa + page) != [(pa, pa + page)] {
            return None;
        }
        self.give(guest, pa, page);
        let attrs = self.attrs(n >> 8);
        Some(match n >> 20 & 1 {
            0 => Work::Map { pa, attrs },
            _ => Work::Hold { pa, attrs },
        })
    }

    /// A page beside the task's range, over nothing or over what is there, or a
    /// table with it.
    fn mapping_beside(&self, task: &Task, beside: u64, n: u64) -> Work {
        let (guest, page) = (task.guest, self.page());
        let pa = self.target(guest, beside, task.c >> 20);
        let attrs = self.attrs(n >> 8);
        let span = self.geometry.span(Level::L2);
        let base = beside & !(span - 1);
        let apart = base >= task.high || base + span <= task.low;
        let room = apart && self.geometry.start() <= Level::L2;
        let over = n >> 20 & 3;
        if over > 1 || self.guests[guest].shadow.at(beside).is_none() {
            self.give(guest, pa, page);
        }
        match over {
            0 | 1 => Work::Map { pa, attrs },
            2 if room => Work::Link { pa, attrs },
            _ => Work::Replace { pa, attrs },
        }
    }

    /// True if another CPU mapped a page in the range of a removal, after that
    /// had passed there.
    pub(super) fn came_after(&self, task: &Task, gone: &[(u64, u64, u64)]) -> bool {
        let Some((ipa, pa)) = self.judge.mapped_meanwhile() else {
            return false;
        };
        let told = gone.iter().any(|&(ia, _, to)| ia == ipa && to == pa);
        (task.start..task.end).contains(&ipa) && !told
    }

    /// What another CPU did, if it came by, becomes part of the shadow.
    pub(super) fn meet(&mut self, guest: usize) {
        if let Some(done) = self.judge.take_done() {
            let mut done = done;
            self.peer_done(guest, &done);
            self.release_held(guest, &mut done);
            self.met = Some(done);
        }
    }

    /// Compares what another CPU did, on that CPU.
    pub(super) fn settle_met(&mut self, guest: usize) {
        let Some(done) = self.met.take() else {
            return;
        };
        let outcome = match done.result {
            Ok(()) => Outcome::Done,
            Err(why) => why.into(),
        };
        self.tally.note("of another CPU", outcome, 0);
        let left = self.guests[guest].shadow.at(done.peer.ipa);
        if done.peer.work == Work::Unmap && done.result.is_ok() && left.is_some() {
            self.complain(format!("another CPU's unmap left {left:?}"));
        }
        self.judge.pe.set(done.peer.pe);
        let (ipa, end) = (done.peer.ipa, done.peer.ipa + self.page());
        let (mut low, mut high) = self.whole(guest, ipa, end);
        if let Work::Link { .. } = done.peer.work {
            let span = self.geometry.span(Level::L2);
            low = low.min(ipa & !(span - 1));
            high = high.max(low + span);
        }
        self.settle(guest, low, high);
    }

    /// Another CPU syncs its gather: until now what is in it was frozen.
    fn release_held(&mut self, guest: usize, done: &mut Done) {
        let Some((gather, leaves)) = done.held.take() else {
            return;
        };
        let judge = self.judge;
        let acting = judge.pe.replace(done.peer.pe);
        let tree = &self.guests[guest].tree;
        for leaf in &leaves {
            let found = tree
                .lookup(Ipa::new(leaf.ipa().get()))
                .map(|found| found.entry);
            if found != Ok(Entry::Frozen) {
                judge.complain(format!("held for another gather: {found:?}"));
            }
        }
        let synced = tree.sync(&mut Cpu(judge), gather).expect("of this tree");
        let gone: Vec<_> = (leaves.into_iter())
            .filter_map(|leaf| leaf.release(&synced).ok())
            .map(|leaf| (leaf.ipa().get(), leaf.size(), leaf.pa().get()))
            .collect();
        judge.pe.set(acting);
        self.forget(guest, &gone);
    }

    fn peer_done(&mut self, guest: usize, done: &Done) {
        if let Err(why) = done.result {
            let known = matches!(
                why,
                Error::Busy
                    | Error::NoMem
                    | Error::Exists { .. }
                    | Error::Missing { .. }
                    | Error::NeedsExclusive { .. }
            );
            if !known {
                self.complain(format!("{:?}: {why}", done.peer));
            }
            if !matches!(done.peer.work, Work::Unmap) {
                return;
            }
        }
        let (ipa, end) = (done.peer.ipa, done.peer.ipa + self.page());
        let found = self.guests[guest].tree.lookup(Ipa::new(ipa));
        let (base, span) = found.map_or((ipa, 0), |found| {
            (found.base.get(), self.geometry.span(found.level))
        });
        let shadow = &mut self.guests[guest].shadow;
        match done.peer.work {
            Work::Map { pa, attrs } | Work::Replace { pa, attrs } | Work::Hold { pa, attrs } => {
                shadow.set(ipa, end, State::Mapped { pa, attrs });
            }
            Work::Link { pa, attrs } => {
                let span = self.geometry.span(Level::L2);
                let base = ipa & !(span - 1);
                let gone: Vec<_> = (shadow.pieces(base, base + span).into_iter())
                    .filter_map(|(from, to, state)| match state {
                        State::Mapped { pa, .. } => Some((from, to - from, pa)),
                        State::Annotated(_) => None,
                    })
                    .collect();
                shadow.clear(base, base + span);
                shadow.set(ipa, end, State::Mapped { pa, attrs });
                for (_, size, from) in gone {
                    self.take(guest, from, size);
                }
            }
            Work::MarkYoung | Work::ClearYoung => (),
            Work::Unmap => {
                self.forget(guest, &done.gone);
                let shadow = &mut self.guests[guest].shadow;
                if let Some(State::Annotated(_)) = shadow.at(ipa)
                    && done.result.is_ok()
                {
                    shadow.clear(ipa, end);
                }
            }
            Work::WriteProtect => shadow.change(base, base + span, |attrs| Attrs {
                access: without_write(attrs.access),
                dirty: Dirty::Fault,
                ..attrs
            }),
            Work::Relax => shadow.change(base, base + span, |attrs| Attrs {
                access: with_access(attrs.access, Access::Read),
                ..attrs
            }),
        }
    }

    /// "Busy, try again" is an answer only where somebody came by: another CPU,
    /// or hardware that marked a leaf between a load and its swap.
    pub(super) fn crossed(&self, why: Error) -> bool {
        why == Error::Busy && self.judge.was_marked()
    }

    /// Writes by guests that went on beside become part of the shadow.
    /// Returns the entry that one wrote to.
    pub(super) fn absorb(&mut self, guest: usize) -> Option<(u64, u64)> {
        let (from, to) = self.judge.take_written()?;
        self.guests[guest].shadow.change(from, to, |attrs| Attrs {
            access: with_access(attrs.access, Access::Write),
            ..attrs
        });
        Some((from, to))
    }

    /// What a guest saw in the midst of an operation was what stood there
    /// before it, or what stands there after.
    pub(super) fn check_seen(&self, guest: usize, ipa: u64, was: Option<State>) {
        let is = self.guests[guest].shadow.at(ipa);
        for pa in self.judge.take_seen() {
            let leads = |state: Option<State>| matches!(state, Some(State::Mapped { pa: to, .. }) if to == pa);
            if !leads(was) && !leads(is) {
                self.complain(format!(
                    "meanwhile {ipa:#x} led to {pa:#x}: before {was:?}, after {is:?}"
                ));
            }
        }
    }
}

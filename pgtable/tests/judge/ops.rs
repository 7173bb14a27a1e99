//! What the four numbers of an operation mean, and what each operation has to
//! do to the shadow.

use super::driver::{PES, Run, with_access, without_write};
use super::peer::Done;
use super::shadow::State;
use super::tally::Outcome;
use super::{Access as GuestAccess, Cpu, Meanwhile, Peer, Work};
use mmu_model::{EventKind, Reg};
use pgtable::{
    Access, Age, Annotation, Attrs, Budget, Change, Dirty, Entry, Error, Execute, Flush, Gather,
    Ignore, Ipa, Leaves, Level, Map, Over, Pa, Partial, Permissions, RemovedLeaf, Stopped,
    TableMem,
};

/// The kinds of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Map,
    MapExclusive,
    Unmap,
    UnmapLeaves,
    UnmapLater,
    UnmapAll,
    Annotate,
    Protect,
    WriteProtect,
    Relax,
    Young,
    MarkYoung,
    Harvest,
    Split,
    Fold,
    FillAndFold,
    Contiguous,
    FillGroup,
    Subtree,
    Freeze,
    Hardware,
    FlushCaches,
}

use Kind as K;

/// Which kind the low bits of the first number mean.
const KINDS: [Kind; 32] = [
    K::Map,
    K::Map,
    K::Map,
    K::MapExclusive,
    K::MapExclusive,
    K::MapExclusive,
    K::Unmap,
    K::Unmap,
    K::UnmapLeaves,
    K::UnmapLater,
    K::UnmapAll,
    K::Annotate,
    K::Protect,
    K::Protect,
    K::WriteProtect,
    K::Relax,
    K::Relax,
    K::Young,
    K::MarkYoung,
    K::Harvest,
    K::Split,
    K::Split,
    K::Fold,
    K::FillAndFold,
    K::Contiguous,
    K::FillGroup,
    K::Subtree,
    K::Freeze,
    K::Freeze,
    K::Hardware,
    K::Hardware,
    K::FlushCaches,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            K::Map => "map",
            K::MapExclusive => "map exclusive",
            K::Unmap => "unmap",
            K::UnmapLeaves => "unmap leaves",
            K::UnmapLater => "unmap later",
            K::UnmapAll => "unmap all",
            K::Annotate => "annotate",
            K::Protect => "protect",
            K::WriteProtect => "write-protect",
            K::Relax => "relax",
            K::Young => "clear young",
            K::MarkYoung => "mark young",
            K::Harvest => "harvest dirty",
            K::Split => "split",
            K::Fold => "fold",
            K::FillAndFold => "fill and fold",
            K::Contiguous => "contiguous",
            K::FillGroup => "fill group",
            K::Subtree => "subtree",
            K::Freeze => "freeze",
            K::Hardware => "hardware",
            K::FlushCaches => "flush caches",
        }
    }

    /// Ranges are made of what is mapped, in so many cases of four.
    const fn aims(self) -> u64 {
        match self {
            K::Map | K::MapExclusive | K::Subtree | K::FillAndFold | K::FillGroup => 1,
            K::Unmap | K::UnmapLeaves | K::UnmapLater | K::Annotate | K::Freeze => 2,
            _ => 3,
        }
    }

    /// Other CPUs may be in the tree meanwhile: nothing but `&self` is used,
    /// after what was laid out for it.
    const fn shares(self) -> bool {
        !matches!(
            self,
            K::MapExclusive
                | K::Unmap
                | K::UnmapAll
                | K::Annotate
                | K::Fold
                | K::FillAndFold
                | K::Hardware
        )
    }

    /// It keeps to its range, so that other CPUs may change what is beside it.
    const fn keeps_to_range(self) -> bool {
        !matches!(
            self,
            K::Subtree | K::Freeze | K::FillGroup | K::Split | K::Contiguous
        )
    }

    /// A guest may write while it goes on, and the shadow can tell what
    /// becomes of that.
    const fn bears_writes(self) -> bool {
        !matches!(
            self,
            K::Map | K::MapExclusive | K::Subtree | K::Freeze | K::Annotate
        )
    }
}

/// One operation, taken apart.
#[derive(Clone, Copy, Debug)]
struct Task {
    kind: Kind,
    guest: usize,
    start: u64,
    end: u64,
    /// What it may touch besides its range: the leaves at the ends, whole.
    low: u64,
    high: u64,
    partial: Partial,
    over: Over,
    b: u64,
    c: u64,
}

impl Task {
    const fn ipa(&self) -> Ipa {
        Ipa::new(self.start)
    }

    const fn size(&self) -> u64 {
        self.end - self.start
    }

    const fn budget(&self) -> Budget {
        match self.c >> 4 & 3 {
            0 => Budget::entries(1 + (self.c >> 6 & 63)),
            _ => Budget::unlimited(),
        }
    }
}

impl Run<'_, '_> {
    /// An address near one of a few places all over the space.
    fn place(&self, n: u64) -> u64 {
        let span = self.geometry.span(Level::L2);
        let end = self.space();
        let anchor = match n % 4 {
            0 => 0,
            1 => end / 2,
            2 => end - 4 * span,
            _ => end / 4 * 3 - 2 * span,
        };
        anchor & !(span - 1)
    }

    /// The longest range: memory for it must be found below the PA size.
    fn longest(&self) -> u64 {
        (1u64 << self.geometry.shape().oa_bits()) / 32
    }

    /// A range: a few pages, or around blocks.
    fn range(&self, a: u64, b: u64) -> (u64, u64) {
        let (page, span) = (self.page(), self.geometry.span(Level::L2));
        let anchor = self.place(a);
        let (offset, size) = match a >> 2 & 7 {
            0..=2 => ((a >> 5) % 24 * page, (1 + b % 20) * page),
            3 => (span - (1 + (a >> 5) % 8) * page, (1 + b % 16) * page),
            4 | 5 => ((a >> 5) % 2 * span, (1 + b % 2) * span),
            6 => (
                (a >> 5) % 2 * span + (a >> 6) % 3 * page,
                span + b % 3 * page,
            ),
            _ => {
                let group = page << self.group_bits(Level::L3).unwrap_or(4);
                ((a >> 5) % 3 * group, (1 + b % 2) * group)
            }
        };
        (anchor + offset, size.min(self.longest()))
    }

    /// A range in or around something that the shadow holds.
    fn aimed(&self, guest: usize, a: u64, b: u64) -> Option<(u64, u64)> {
        let page = self.page();
        let (from, to, _) = self.guests[guest].shadow.some(a >> 8)?;
        let pages = (to - from) / page;
        let skip = match a >> 32 & 3 {
            0 | 1 => 0,
            2 => (a >> 34) % pages.min(24),
            _ => (a >> 34) % pages,
        };
        let start = from + skip * page;
        let size = match b & 3 {
            0 => page,
            1 => (1 + (b >> 2) % 24) * page,
            2 => to - start,
            _ => to - start + (b >> 2) % 4 * page,
        };
        // No more than two tables of pages, whatever a block may span.
        let most = 2 * self.geometry.span(Level::L2);
        let room = self.space() - start;
        Some((start, size.min(most).min(self.longest()).min(room)))
    }

    fn group_bits(&self, level: Level) -> Option<u32> {
        let bits = self.geometry.granule().contiguous_bits(level)?;
        Some(u32::from(bits))
    }

    fn attrs(&self, n: u64) -> Attrs {
        use pgtable::{Device, Memory as M};
        let features = self.geometry.features();
        let memory = match n >> 4 & 7 {
            5 => M::NormalNonCacheable,
            6 => M::Device(Device::NGnRE),
            7 => M::FromStage1,
            _ => M::Normal,
        };
        Attrs {
            access: [
                Access::ReadWrite,
                Access::Read,
                Access::ReadWrite,
                Access::Write,
            ][(n & 3) as usize],
            execute: self.execute(n >> 2),
            memory,
            age: if n >> 7 & 3 == 3 || features.hw_access_flag && n >> 7 & 1 == 1 {
                Age::Old
            } else {
                Age::Young
            },
            dirty: if n >> 9 & 3 == 3 || features.hw_dirty && n >> 9 & 1 == 1 {
                Dirty::Track
            } else {
                Dirty::Fault
            },
            soft: (n >> 11 & 15) as u8,
            ..Attrs::MEMORY
        }
    }

    fn execute(&self, n: u64) -> Execute {
        match n & 3 {
            1 if self.geometry.features().xnx => Execute::El0,
            2 if self.geometry.features().xnx => Execute::El1,
            3 => Execute::Never,
            _ => Execute::All,
        }
    }

    /// The memory for a range: the same for the same `variant`, disjoint
    /// between guests.
    fn target(&self, guest: usize, ipa: u64, variant: u64) -> u64 {
        let bits = u32::from(self.geometry.shape().oa_bits()) - 3;
        let within = ipa & ((1 << (bits - 1)) - 1);
        let shift = if variant & 3 == 3 { self.page() } else { 0 };
        let half = (guest as u64) << (bits + 2);
        let slot = (1 + variant % 3) << bits;
        half + (slot & ((1 << (bits + 2)) - 1)) + within + shift
    }

    /// Does one operation and judges what came of it.
    pub(super) fn step(&mut self, op: &[u64; 4]) {
        let [kind, a, b, c] = *op;
        let judge = self.judge;
        let pe = (kind >> 8 & 3) as u8 % PES as u8;
        judge.pe.set(pe);
        let guest = (kind >> 10 & 1) as usize;
        // Now and then an allocator that fails soon.
        judge.limit.set(if kind >> 11 & 7 == 7 {
            kind >> 14 & 3
        } else {
            u64::MAX
        });
        let told = kind;
        let kind = KINDS[(kind & 31) as usize];
        let aimed = if a >> 60 & 3 < kind.aims() {
            self.aimed(guest, a, b >> 48)
        } else {
            None
        };
        let (start, size) = aimed.unwrap_or_else(|| self.range(a, b));
        let (start, end) = self.in_blocks(kind, start, start + size, c);
        let (low, high) = self.whole(guest, start, end);
        let task = Task {
            kind,
            guest,
            start,
            end,
            low: low.min(start),
            high: high.max(end),
            partial: self.partial(c),
            over: [Over::Anything, Over::Invalid, Over::Nothing, Over::Anything]
                [(c / 3 % 4) as usize],
            b,
            c,
        };
        let installed = judge.vttbr();
        let events = judge.events();
        judge.extend(2_000_000);
        let page = self.page();
        let at = start + (told >> 40) % ((end - start) / page) * page;
        let was = self.guests[guest].shadow.at(at);
        let other = (pe + 1 + (told >> 18 & 1) as u8) % PES as u8;
        let meanwhile = match told >> 16 & 3 {
            0 => None,
            1 if kind.shares() => self.peer(&task, other, at, told >> 32),
            _ => Some(Meanwhile::Guest(GuestAccess {
                pe: other,
                vttbr: self.guests[guest].tree.vttbr(),
                root: self.guests[guest].tree.root().get(),
                ipa: at,
                write: told >> 19 & 1 == 1 && kind.bears_writes(),
            })),
        };
        if let Some(meanwhile) = meanwhile {
            let after = told >> 22 & [3, 15, 63, 255][(told >> 20 & 3) as usize];
            judge.plan(meanwhile, after as u32);
        }
        let outcome = self.perform(&task);
        judge.limit.set(u64::MAX);
        if judge.vttbr() != installed && !matches!(kind, K::Relax | K::Hardware) {
            self.complain("another VTTBR is installed after the operation");
        }
        self.absorb(guest);
        self.check_seen(guest, at, was);
        self.meet(guest);
        let beside = self.met.take();
        judge.unplan();
        let made = judge.events() - events;
        self.tally.note(kind.name(), outcome, made);
        if judge.is_broken() {
            return;
        }
        self.settle(guest, task.low, task.high);
        if let Some(done) = beside {
            self.tally.note(
                "of another CPU",
                done.result.map_or_else(Into::into, |()| Outcome::Done),
                0,
            );
            judge.pe.set(done.peer.pe);
            let (ipa, end) = (done.peer.ipa, done.peer.ipa + page);
            let (low, high) = self.whole(guest, ipa, end);
            self.settle(guest, low, high);
        }
    }

    /// What another CPU does while an operation goes on: something to the age
    /// of what is in its range, the same mapping, or anything to a page beside
    /// the range.
    fn peer(&mut self, task: &Task, pe: u8, inside: u64, n: u64) -> Option<Meanwhile> {
        let page = self.page();
        let guest = task.guest;
        let skip = (n >> 3) % 8 * page;
        let beside = match n >> 6 & 1 {
            0 if task.high + skip < self.space() => task.high + skip,
            _ => task.low.checked_sub(skip + page)?,
        };
        let (low, high) = self.whole(guest, beside, beside + page);
        let apart = (high <= task.low || low >= task.high) && task.kind.keeps_to_range();
        let mut ipa = beside;
        let work = match n & 7 {
            0 if task.kind == K::Map => {
                let (pa, attrs, _) = self.mapping(task);
                ipa = inside;
                let pa = pa + (inside - task.start);
                Work::Map { pa, attrs }
            }
            1 | 2 if apart => {
                let pa = self.target(guest, beside, task.c >> 20);
                if self.guests[guest].shadow.at(beside).is_none() {
                    self.give(guest, pa, page);
                }
                let attrs = self.attrs(n >> 8);
                Work::Map { pa, attrs }
            }
            3 if apart => Work::Unmap,
            4 if apart => Work::WriteProtect,
            5 if apart => Work::Relax,
            6 => {
                ipa = inside;
                Work::MarkYoung
            }
            _ => {
                ipa = inside;
                Work::ClearYoung
            }
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

    /// What another CPU did, if it came by, becomes part of the shadow.
    fn meet(&mut self, guest: usize) {
        if let Some(done) = self.judge.take_done() {
            self.peer_done(guest, &done);
            self.met = Some(done);
        }
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
            Work::Map { pa, attrs } => shadow.set(ipa, end, State::Mapped { pa, attrs }),
            Work::MarkYoung | Work::ClearYoung => (),
            Work::Unmap => {
                self.forget(guest, &done.gone);
                if done.result.is_ok() {
                    self.guests[guest].shadow.clear(ipa, end);
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

    /// What a task maps: to where, how, with which leaves.
    fn mapping(&self, task: &Task) -> (u64, Attrs, Leaves) {
        let dear = self.dear(task.size() / self.page(), task.c);
        let leaves = match task.c >> 16 & 3 {
            0 if !dear => Leaves::Exactly(Level::L3),
            1 => Leaves::AtMost(Level::L2),
            _ => Leaves::Largest,
        };
        let variant = task.c >> 20 & if dear { 1 } else { 15 };
        let pa = self.target(task.guest, task.start, variant);
        (pa, self.attrs(task.b >> 8), leaves)
    }

    fn perform(&mut self, task: &Task) -> Outcome {
        match task.kind {
            K::Map | K::MapExclusive => {
                let (pa, attrs, leaves) = self.mapping(task);
                self.map(task, pa, attrs, leaves)
            }
            K::Unmap | K::UnmapLeaves | K::UnmapLater => self.unmap(task),
            K::UnmapAll => {
                let entries = 64 + (task.c >> 6 & 1023);
                let budget = (task.c >> 4 & 3 == 0).then_some(entries);
                self.unmap_whole(task.guest, task.partial, budget)
            }
            K::Annotate => self.annotate(task),
            K::Protect => self.protect(task),
            K::WriteProtect => self.write_protect(task),
            K::Relax => self.relax(task),
            K::Young => self.young(task),
            K::MarkYoung => {
                let it = &mut self.guests[task.guest];
                let marked = it.tree.mark_young(&mut Cpu(self.judge), task.ipa());
                let mapped = matches!(it.shadow.at(task.start), Some(State::Mapped { .. }));
                let crossed = marked == Err(Error::Busy) && self.judge.was_marked();
                if marked.is_ok() != mapped && !crossed {
                    self.complain(format!("mark_young: {marked:?}"));
                }
                marked.into()
            }
            K::Harvest => self.harvest(task),
            K::Split => self.split(task),
            K::Fold => self.fold(task.guest, task.start),
            K::FillAndFold => self.fill_and_fold(task),
            K::Contiguous => self.contiguous(task),
            K::FillGroup => self.fill_group(task),
            K::Subtree => self.subtree(task),
            K::Freeze => self.freeze(task),
            K::Hardware => self.hardware(task),
            K::FlushCaches => self.flush_caches(task),
        }
    }

    /// True if so many pages are too many to be mapped one by one each time:
    /// tables are large where the granule is.
    fn dear(&self, pages: u64, c: u64) -> bool {
        let entries = self.geometry.granule().entries() as u64;
        pages >= entries / 2 && c >> 24 & (entries / 64 - 1) != 0
    }

    /// The range of a mapping, which is made of whole blocks if its pages are
    /// too many.
    fn in_blocks(&self, kind: Kind, start: u64, end: u64, c: u64) -> (u64, u64) {
        let span = self.geometry.span(Level::L2);
        let maps = matches!(kind, K::Map | K::MapExclusive);
        if !maps || span > self.longest() || !self.dear((end - start) / self.page(), c) {
            return (start, end);
        }
        let start = start & !(span - 1);
        (
            start,
            start + (end - start).next_multiple_of(span).min(self.longest()),
        )
    }

    /// What to do about a block in part: seldom a split where it makes
    /// thousands of entries.
    fn partial(&self, c: u64) -> Partial {
        let often = self.geometry.granule().entries() as u64 / 512;
        match c % 3 {
            0 if c >> 33 & (often - 1) == 0 => Partial::Split,
            0 | 1 => Partial::DropWhole,
            _ => Partial::Refuse,
        }
    }

    fn map(&mut self, task: &Task, pa: u64, attrs: Attrs, leaves: Leaves) -> Outcome {
        let judge = self.judge;
        let mut cpu = Cpu(judge);
        let (start, end, guest) = (task.start, task.end, task.guest);
        self.give(guest, pa, task.size());
        let exclusive = task.kind != K::Map;
        let mut at = start;
        loop {
            let to = pa + (at - start);
            let rest = Map::new(Ipa::new(at), Pa::new(to), end - at, attrs)
                .leaves(leaves)
                .over(task.over);
            let it = &mut self.guests[guest];
            let result = if exclusive {
                let mut sink = |_: RemovedLeaf| ();
                it.tree
                    .map_exclusive(&mut cpu, &rest, &mut sink, &mut task.budget())
            } else {
                it.tree.map(&mut cpu, &rest, &mut task.budget())
            };
            let (next, stopped) = match result {
                Ok(next) => (next.get(), None),
                Err(Stopped { why, next }) => (next.get(), Some(why)),
            };
            self.check_over(guest, at, next, task.over, (to, attrs));
            let state = State::Mapped { pa: to, attrs };
            self.guests[guest].shadow.set(at, next, state);
            at = next;
            if let Some(why) = stopped {
                let known = matches!(
                    why,
                    Error::Exists { .. } | Error::NoMem | Error::NeedsExclusive { .. }
                );
                if !known && !self.crossed(why) {
                    self.complain(format!("map stopped: {why}"));
                }
                return why.into();
            }
            if at >= end || judge.is_broken() {
                return Outcome::Done;
            }
        }
    }

    /// Checks that what a mapping went over was what `over` allows.
    fn check_over(&self, guest: usize, start: u64, end: u64, over: Over, to: (u64, Attrs)) {
        for (at, _, state) in self.guests[guest].shadow.pieces(start, end) {
            let fine = match state {
                State::Mapped { pa, attrs } => {
                    let same = Attrs {
                        age: to.1.age,
                        ..attrs
                    } == to.1
                        || !self.geometry.features().fwb;
                    over == Over::Anything || (pa == to.0 + (at - start) && same)
                }
                State::Annotated(_) => over != Over::Nothing,
            };
            if !fine {
                self.complain(format!("mapped over {state:?} at {at:#x} with {over:?}"));
            }
        }
    }

    fn unmap(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let mut cpu = Cpu(judge);
        let (guest, partial, end) = (task.guest, task.partial, task.end);
        let mut gone: Vec<(u64, u64, u64)> = Vec::new();
        let mut at = task.start;
        let mut outcome = Outcome::Done;
        while at < end && !judge.is_broken() {
            let mut budget = task.budget();
            let it = &mut self.guests[guest];
            let (from, size) = (Ipa::new(at), end - at);
            let mut sink = |leaf: RemovedLeaf| gone.push((leaf.ia(), leaf.size(), leaf.pa().get()));
            let tree = &mut it.tree;
            let result = match task.kind {
                K::UnmapLeaves => {
                    tree.unmap_leaves(&mut cpu, from, size, partial, &mut sink, &mut budget)
                }
                K::UnmapLater => {
                    let mut gather = Gather::new();
                    let mut held = Vec::new();
                    let done = tree.unmap_later(
                        &mut cpu,
                        from,
                        size,
                        partial,
                        &mut gather,
                        &mut budget,
                        |leaf| held.push(leaf),
                    );
                    let synced = tree.sync(&mut cpu, gather);
                    for leaf in held {
                        match leaf.release(&synced) {
                            Ok(leaf) => sink(leaf),
                            Err(_) => judge.complain("a leaf that its proof does not open".into()),
                        }
                    }
                    done
                }
                _ => tree.unmap(&mut cpu, from, size, partial, &mut sink, &mut budget),
            };
            match result {
                Ok(next) if next.get() <= at => {
                    // A table taken apart half ends where it began.
                    if task.kind != K::Unmap {
                        judge.complain("unmap made no progress".into());
                    }
                }
                Ok(next) => at = next.get(),
                Err(Stopped { why, next }) => {
                    let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                    if !known && !self.crossed(why) {
                        judge.complain(format!("unmap: {why}"));
                    }
                    at = next.get();
                    outcome = why.into();
                    break;
                }
            }
        }
        self.unmapped(task, &gone, at.min(end));
        if gone.is_empty() && outcome == Outcome::Done {
            outcome = Outcome::Nothing;
        }
        outcome
    }

    /// After leaves were removed from `[task.start, done)`.
    fn unmapped(&mut self, task: &Task, gone: &[(u64, u64, u64)], done: u64) {
        let judge = self.judge;
        self.absorb(task.guest);
        self.meet(task.guest);
        self.forget(task.guest, gone);
        let it = &mut self.guests[task.guest];
        for (from, to, state) in it.shadow.pieces(task.start, done) {
            match state {
                State::Mapped { .. } => {
                    judge.complain(format!("unmapped {from:#x} to {to:#x} and told nobody"));
                }
                State::Annotated(_) if task.kind == K::UnmapLater => (),
                State::Annotated(_) => it.shadow.clear(from, to),
            }
        }
        if let (Some(low), Some(high)) = (
            gone.iter().map(|leaf| leaf.0).min(),
            gone.iter().map(|leaf| leaf.0 + leaf.1).max(),
        ) && (low < task.low || high > task.high)
        {
            self.settle(task.guest, low, high);
        }
    }

    /// Takes all of a guest's space apart, in steps if there is a budget.
    pub(super) fn unmap_whole(
        &mut self,
        guest: usize,
        partial: Partial,
        budget: Option<u64>,
    ) -> Outcome {
        let whole = self.space();
        let task = Task {
            kind: K::Unmap,
            guest,
            start: 0,
            end: whole,
            low: 0,
            high: whole,
            partial,
            over: Over::Nothing,
            b: 0,
            c: 0,
        };
        let mut gone = Vec::new();
        let mut at = 0;
        let mut calls = 0;
        while at < whole && !self.judge.is_broken() {
            let mut budget = budget.map_or(Budget::unlimited(), Budget::entries);
            let mut sink = |leaf: RemovedLeaf| gone.push((leaf.ia(), leaf.size(), leaf.pa().get()));
            let result = self.guests[guest].tree.unmap(
                &mut Cpu(self.judge),
                Ipa::new(at),
                whole - at,
                partial,
                &mut sink,
                &mut budget,
            );
            calls += 1;
            match result {
                Ok(next) if calls < 100_000 => at = next.get(),
                other => {
                    self.complain(format!("unmap of everything: {other:?}"));
                    break;
                }
            }
        }
        self.unmapped(&task, &gone, at);
        self.settle(guest, 0, whole);
        if gone.is_empty() {
            return Outcome::Nothing;
        }
        Outcome::Done
    }

    fn annotate(&mut self, task: &Task) -> Outcome {
        let bits = (task.b >> 8 & 0xfff) << 2;
        let annotation = Annotation::new(bits).expect("bits 1:0 are zero");
        let partial = match task.partial {
            Partial::DropWhole => Partial::Split,
            other => other,
        };
        let result = self.guests[task.guest].tree.annotate(
            &mut Cpu(self.judge),
            task.ipa(),
            task.size(),
            annotation,
            partial,
            &mut Ignore,
            &mut Budget::unlimited(),
        );
        let (next, outcome) = match result {
            Ok(next) => (next.get(), Outcome::Done),
            Err(Stopped { why, next }) => {
                let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                if !known && !self.crossed(why) {
                    self.complain(format!("annotate: {why}"));
                }
                (next.get(), why.into())
            }
        };
        let shadow = &mut self.guests[task.guest].shadow;
        if bits == 0 {
            shadow.clear(task.start, next);
        } else {
            shadow.set(task.start, next, State::Annotated(bits));
        }
        outcome
    }

    fn protect(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let wanted = self.attrs(task.b >> 8);
        let permissions = Permissions {
            access: wanted.access,
            execute: wanted.execute,
        };
        let mut gather = Gather::new();
        let later = task.c >> 8 & 1 == 1;
        let it = &mut self.guests[task.guest];
        let flush = if later {
            Flush::Later(&mut gather)
        } else {
            Flush::Now
        };
        let mut cpu = Cpu(judge);
        let result = it.tree.protect(
            &mut cpu,
            task.ipa(),
            task.size(),
            permissions,
            task.partial,
            flush,
            &mut Budget::unlimited(),
        );
        let _synced = it.tree.sync(&mut cpu, gather);
        self.absorb(task.guest);
        let (next, outcome) = match result {
            Ok(next) => (next.get(), Outcome::Done),
            Err(Stopped { why, next }) => {
                let known = matches!(why, Error::InsideBlock { .. } | Error::NoMem);
                if !known && !self.crossed(why) {
                    self.complain(format!("protect: {why}"));
                }
                (next.get(), why.into())
            }
        };
        let (from, to) = if task.partial == Partial::DropWhole && next >= task.end {
            (task.low, task.high)
        } else if task.partial == Partial::DropWhole {
            (task.low, next)
        } else {
            (task.start, next)
        };
        self.guests[task.guest].shadow.change(from, to, |attrs| {
            let keeps = matches!(wanted.access, Access::Write | Access::ReadWrite);
            Attrs {
                access: wanted.access,
                execute: wanted.execute,
                dirty: if keeps { attrs.dirty } else { Dirty::Fault },
                ..attrs
            }
        });
        outcome
    }

    fn write_protect(&mut self, task: &Task) -> Outcome {
        let done = self.guests[task.guest].tree.write_protect(
            &mut Cpu(self.judge),
            task.ipa(),
            task.size(),
            Flush::Now,
            &mut Budget::unlimited(),
        );
        self.absorb(task.guest);
        let (next, outcome) = match done {
            Ok(next) => (next.get(), Outcome::Done),
            Err(Stopped { why, next }) => (next.get(), why.into()),
        };
        // Where another CPU changed a group meanwhile, the rest is left.
        let crossed = done.is_err_and(|stopped| self.crossed(stopped.why));
        if next != task.end && !crossed {
            self.complain(format!("write_protect: {done:?}"));
        }
        let to = if next == task.end { task.high } else { next };
        let shadow = &mut self.guests[task.guest].shadow;
        shadow.change(task.low, to, |attrs| Attrs {
            access: without_write(attrs.access),
            dirty: Dirty::Fault,
            ..attrs
        });
        outcome
    }

    fn relax(&mut self, task: &Task) -> Outcome {
        let (judge, ipa) = (self.judge, task.start);
        let execute = match task.b >> 1 & 3 {
            0 => self.execute(task.b >> 3),
            _ => Execute::Never,
        };
        let it = &mut self.guests[task.guest];
        judge.write(Reg::Vttbr, it.tree.vttbr());
        judge.event(EventKind::ISB);
        let wanted = if task.b & 1 == 0 {
            Access::ReadWrite
        } else {
            Access::Read
        };
        let permissions = Permissions {
            access: wanted,
            execute,
        };
        let mapped = matches!(it.shadow.at(ipa), Some(State::Mapped { .. }));
        let mut outcome = Outcome::Done;
        for _ in 0..2 {
            // The guest touches it, faults, is helped, and tries again.
            judge.event(EventKind::Fault {
                ia: ipa,
                access: wanted as u8,
            });
            let relaxed = it.tree.relax(&mut Cpu(judge), Ipa::new(ipa), permissions);
            let crossed = relaxed == Err(Error::Busy) && judge.was_marked();
            if relaxed.is_ok() != mapped && !crossed {
                judge.complain(format!("relax: {relaxed:?}"));
            }
            outcome = relaxed.into();
        }
        // What one CPU is allowed more, others may learn late: the facts ask
        // for a local barrier only, the model's quiet point for more.
        judge.event(EventKind::DSB_ISHST);
        self.absorb(task.guest);
        let it = &mut self.guests[task.guest];
        let Ok(found) = it.tree.lookup(Ipa::new(ipa)) else {
            return outcome;
        };
        let base = found.base.get();
        let end = base + self.geometry.span(found.level);
        let it = &mut self.guests[task.guest];
        it.shadow.change(base, end, |attrs| Attrs {
            access: with_access(attrs.access, wanted),
            execute: with_execute(attrs.execute, execute),
            ..attrs
        });
        outcome
    }

    fn young(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let it = &mut self.guests[task.guest];
        let mut cpu = Cpu(judge);
        let mut gather = Gather::new();
        let flush = if task.c & 1 == 0 {
            Flush::Now
        } else {
            Flush::Later(&mut gather)
        };
        let (ipa, size) = (task.ipa(), task.size());
        let all = || Budget::unlimited();
        let before = it.tree.count_young(&mut cpu, ipa, size, &mut all());
        let done = it.tree.clear_young(&mut cpu, ipa, size, flush, &mut all());
        let _synced = it.tree.sync(&mut cpu, gather);
        let after = it.tree.count_young(&mut cpu, ipa, size, &mut all());
        let alike = before == done && after.map(|(_, young)| young) == Ok(0);
        if done.is_err() || !alike && !judge.was_marked() {
            judge.complain(format!("young: {before:?} {done:?} {after:?}"));
        }
        match done {
            Ok((_, 0)) => Outcome::Nothing,
            _ => Outcome::Done,
        }
    }

    fn harvest(&mut self, task: &Task) -> Outcome {
        let it = &mut self.guests[task.guest];
        let mut dirty = Vec::new();
        let done = it.tree.harvest_dirty(
            &mut Cpu(self.judge),
            task.ipa(),
            task.size(),
            Flush::Now,
            &mut Budget::unlimited(),
            |at, size| dirty.push((at.get(), at.get() + size)),
        );
        if !self.geometry.features().hw_dirty {
            if done.map_err(|stopped| stopped.why) != Err(Error::Attributes) {
                self.complain("dirty harvest without HD");
            }
            return Error::Attributes.into();
        }
        // Where another CPU changed a group meanwhile, the rest is left.
        let high = match done {
            Ok(next) if next.get() == task.end => task.high,
            Err(stopped) if self.crossed(stopped.why) => stopped.next.get(),
            other => {
                self.complain(format!("harvest: {other:?}"));
                return Outcome::Nothing;
            }
        };
        // A page written meanwhile is told of, or is dirty still.
        let late = self.absorb(task.guest);
        let again = late.filter(|&(at, _)| {
            let found = self.guests[task.guest].tree.lookup(Ipa::new(at));
            let now = found.map(|found| found.entry);
            matches!(now, Ok(Entry::Leaf { attrs, .. }) if attrs.is_dirty())
        });
        let it = &mut self.guests[task.guest];
        for (at, to, state) in it.shadow.pieces(task.low, high) {
            let State::Mapped { attrs, .. } = state else {
                continue;
            };
            let told = dirty.iter().any(|&(from, until)| from < to && at < until);
            let written_late = late.is_some_and(|(from, until)| from < to && at < until);
            let right = if written_late {
                told || again.is_some()
            } else {
                told == attrs.is_dirty()
            };
            if !right {
                self.judge
                    .complain(format!("{at:#x} dirty: told {told}, is {attrs:?}"));
            }
        }
        it.shadow.change(task.low, high, |attrs| {
            let written = matches!(attrs.access, Access::Write | Access::ReadWrite);
            Attrs {
                access: without_write(attrs.access),
                dirty: if written { Dirty::Track } else { attrs.dirty },
                ..attrs
            }
        });
        if let Some((from, to)) = again {
            it.shadow.change(from, to, |attrs| Attrs {
                access: with_access(attrs.access, Access::Write),
                ..attrs
            });
        }
        if dirty.is_empty() {
            return Outcome::Nothing;
        }
        Outcome::Done
    }

    fn split(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        // Every other time there is a block for certain.
        let span = self.geometry.span(Level::L2);
        let base = task.start & !(span - 1);
        let fits = self.geometry.start() <= Level::L2 && span <= self.longest();
        let pages = span / self.page();
        let dear = pages > 512 && self.dear(pages, task.c);
        let lays = task.c >> 31 & 1 == 1 && fits && !dear;
        let mut laid = *task;
        if lays {
            laid.start = base;
            laid.end = base + span;
            laid.over = Over::Anything;
            let pa = self.target(task.guest, base, task.c >> 20 & 1);
            let attrs = self.attrs(task.b >> 8);
            let paused = judge.pause();
            self.map(&laid, pa, attrs, Leaves::Exactly(Level::L2));
            self.settle(task.guest, base, base + span);
            judge.resume(paused);
            laid.start = task.start;
            laid.end = task.end.min(base + span);
        }
        let task = &laid;
        let pages = lays || task.b & 1 == 0 && !dear;
        let to = if pages || !self.geometry.leaf_ok(Level::L2) {
            Level::L3
        } else {
            Level::L2
        };
        let pages = |level| judge.alloc(level);
        let tables = judge.live();
        let mut at = task.start;
        while at < task.end && !judge.is_broken() {
            let rest = task.end - at;
            let mut budget = task.budget();
            let tree = &self.guests[task.guest].tree;
            let before = judge.live();
            let result = tree.split(&mut Cpu(judge), Ipa::new(at), rest, to, pages, &mut budget);
            match result {
                Ok(next) if next.get() <= at => {
                    // A large block goes level by level.
                    if judge.live() == before {
                        judge.complain("split made no progress".into());
                    }
                }
                Ok(next) => at = next.get(),
                Err(Stopped {
                    why: Error::NoMem, ..
                }) => return Error::NoMem.into(),
                Err(stopped) => {
                    if !self.crossed(stopped.why) {
                        judge.complain(format!("split: {stopped}"));
                    }
                    return stopped.why.into();
                }
            }
        }
        if judge.live() == tables {
            return Outcome::Nothing;
        }
        Outcome::Done
    }

    fn fold(&mut self, guest: usize, ipa: u64) -> Outcome {
        let it = &mut self.guests[guest];
        let at = Ipa::new(ipa);
        let folded = it.tree.fold(&mut Cpu(self.judge), at, Level::L2);
        match folded {
            Ok(()) => {
                if it.tree.lookup(at).map(|found| found.level) != Ok(Level::L2) {
                    self.complain("fold left a table");
                }
            }
            Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => (),
            Err(error) if self.crossed(error) => (),
            Err(error) => self.complain(format!("fold: {error}")),
        }
        folded.into()
    }

    /// Fills a table with pages that make a block, spoils one now and then,
    /// and folds it.
    fn fill_and_fold(&mut self, task: &Task) -> Outcome {
        let span = self.geometry.span(Level::L2);
        let base = task.start & !(span - 1);
        let fill = Task {
            start: base,
            end: base + span,
            over: Over::Anything,
            ..*task
        };
        let fits = self.geometry.start() <= Level::L2 && span <= self.longest();
        if !fits || self.dear(fill.size() / self.page(), task.c) {
            return self.fold(task.guest, task.start);
        }
        let attrs = self.attrs(task.b >> 8);
        // A variant that is not shifted by a page.
        let pa = self.target(task.guest, base, task.c >> 20 & 1);
        let leaves = Leaves::Exactly(Level::L3);
        let paused = self.judge.pause();
        if self.map(&fill, pa, attrs, leaves) != Outcome::Done {
            self.settle(task.guest, base, base + span);
            return Error::NoMem.into();
        }
        let spoilt = task.c >> 30 & 3 == 0;
        if spoilt {
            let page = self.page();
            let at = base + (task.c >> 32) % (span / page) * page;
            let other = attrs.soft(attrs.soft ^ 1 << (task.c >> 48 & 3));
            let one = Task {
                start: at,
                end: at + page,
                ..fill
            };
            self.map(&one, pa + (at - base), other, leaves);
        }
        self.judge.resume(paused);
        let outcome = self.fold(task.guest, base);
        self.absorb(task.guest);
        let right = match outcome {
            Outcome::Done => !spoilt,
            _ => spoilt || self.judge.was_marked(),
        };
        if !right {
            self.complain(format!("fold of a table filled: {outcome:?}"));
        }
        self.settle(task.guest, base, base + span);
        outcome
    }

    fn contiguous(&mut self, task: &Task) -> Outcome {
        let tree = &self.guests[task.guest].tree;
        let mut cpu = Cpu(self.judge);
        let result = if task.b & 3 != 0 {
            tree.set_contiguous(&mut cpu, task.ipa())
        } else {
            tree.clear_contiguous(&mut cpu, task.ipa())
        };
        match result {
            Ok(())
            | Err(Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. }) => (),
            Err(error) if self.crossed(error) => (),
            Err(error) => self.complain(format!("contiguous: {error}")),
        }
        result.into()
    }

    /// Maps a group that may have the contiguous hint, and sets that.
    fn fill_group(&mut self, task: &Task) -> Outcome {
        let level = match task.b >> 4 & 3 {
            0 if self.geometry.leaf_ok(Level::L2) && self.geometry.start() <= Level::L2 => {
                Level::L2
            }
            _ => Level::L3,
        };
        let Some(bits) = self.group_bits(level) else {
            return Outcome::Nothing;
        };
        let size = self.geometry.span(level) << bits;
        let base = task.start & !(size - 1);
        // The root may have fewer entries than a group.
        let root = self.geometry.start() == level
            && (self.geometry.shape().root_entries() as u64) < 1 << bits;
        if root || size > self.longest() || base + size > self.space() {
            return Outcome::Nothing;
        }
        let fill = Task {
            start: base,
            end: base + size,
            over: Over::Anything,
            ..*task
        };
        let attrs = self.attrs(task.b >> 8);
        let pa = self.target(task.guest, base, task.c >> 20 & 1);
        // Now and then a group that must not get the hint: its memory does not
        // begin at a multiple of its size, or one member differs.
        let shifts = task.c >> 30 & 7 == 0;
        let differs = task.c >> 30 & 7 == 1;
        let span = self.geometry.span(level);
        let pa = if shifts { pa + span } else { pa };
        let leaves = Leaves::Exactly(level);
        let paused = self.judge.pause();
        let mut outcome = self.map(&fill, pa, attrs, leaves);
        if differs && outcome == Outcome::Done {
            let at = base + (task.c >> 33) % (size / span) * span;
            let one = Task {
                start: at,
                end: at + span,
                ..fill
            };
            let access = match attrs.access {
                Access::ReadWrite => Access::Read,
                _ => Access::ReadWrite,
            };
            outcome = self.map(&one, pa + (at - base), attrs.access(access), leaves);
        }
        self.judge.resume(paused);
        if outcome == Outcome::Done {
            let tree = &self.guests[task.guest].tree;
            let at = Ipa::new(base + task.c % size);
            let joined = tree.set_contiguous(&mut Cpu(self.judge), at);
            self.absorb(task.guest);
            let refused = matches!(joined, Err(Error::Mismatch { .. }));
            let right = if self.judge.was_marked() {
                refused || matches!(joined, Ok(()) | Err(Error::Busy))
            } else if shifts || differs {
                refused
            } else {
                joined == Ok(())
            };
            if !right {
                self.complain(format!("hint on a group made for it: {joined:?}"));
            }
            outcome = joined.into();
        }
        self.settle(task.guest, base, base + size);
        outcome
    }

    fn subtree(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let span = self.geometry.span(Level::L2);
        let base = task.start & !(span - 1);
        if self.geometry.start() > Level::L2 {
            return Outcome::Nothing;
        }
        let attrs = self.attrs(task.b >> 8);
        let pa = self.target(task.guest, base, task.c >> 20);
        let page = self.page();
        let pages = 1 + task.b % 7;
        self.give(task.guest, pa, pages * page);
        let it = &mut self.guests[task.guest];
        let mut built = match it.tree.subtree(Ipa::new(base), Level::L2) {
            Ok(built) => built,
            Err(Error::NoMem) => return Error::NoMem.into(),
            Err(error) => {
                judge.complain(format!("subtree: {error}"));
                return error.into();
            }
        };
        let mut cpu = Cpu(judge);
        let map = Map::new(Ipa::new(base), Pa::new(pa), pages * page, attrs);
        if let Err(stopped) = built.map(&mut cpu, &map, &mut Budget::unlimited()) {
            judge.complain(format!("mapping in a subtree: {stopped}"));
        }
        let outcome = match built.link(&mut cpu, task.over) {
            Ok(()) => {
                it.shadow.clear(base, base + span);
                let state = State::Mapped { pa, attrs };
                it.shadow.set(base, base + pages * page, state);
                Outcome::Done
            }
            Err((built, why)) => {
                built.discard();
                let crossed = why == Error::Busy && judge.was_marked();
                if !matches!(why, Error::Exists { .. } | Error::NoMem) && !crossed {
                    judge.complain(format!("link: {why}"));
                }
                why.into()
            }
        };
        self.settle(task.guest, base, base + span);
        outcome
    }

    fn freeze(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        let (b, c) = (task.b, task.c);
        let mut cpu = Cpu(judge);
        let found = self.guests[task.guest].tree.lookup(task.ipa());
        let level = match b & 3 {
            // What stands there.
            0 | 1 => found.map_or(Level::L3, |found| found.level),
            2 => Level::L2,
            _ => Level::L3,
        };
        let attrs = self.attrs(b >> 8);
        let span = self.geometry.span(level);
        let base = task.start & !(span - 1);
        if span > self.longest() {
            return Outcome::Nothing;
        }
        let pa = self.target(task.guest, base, c >> 20 & 1);
        self.give(task.guest, pa, span);
        let it = &mut self.guests[task.guest];
        let frozen = match it.tree.freeze(task.ipa(), level) {
            Ok(frozen) => frozen,
            Err(why) => return why.into(),
        };
        // Another CPU comes by.
        let map = Map::new(
            Ipa::new(base),
            Pa::new(pa),
            self.geometry.granule().page_size(),
            attrs,
        )
        .over(Over::Anything);
        let other = it.tree.map(&mut cpu, &map, &mut Budget::unlimited());
        if other.map_err(|stopped| stopped.why) != Err(Error::Busy) {
            judge.complain(format!("frozen, and {other:?}"));
        }
        let outcome = match c & 3 {
            0 => {
                frozen.rollback(&mut cpu);
                Outcome::Done
            }
            1 => {
                let annotation = Annotation::new(b & 0xffc).expect("bits 1:0 are zero");
                let result = frozen.commit(&mut cpu, Change::Invalid(annotation));
                if let Err(error) = result {
                    judge.complain(format!("commit: {error}"));
                }
                it.shadow.clear(base, base + span);
                if annotation != Annotation::EMPTY {
                    let state = State::Annotated(annotation.get());
                    it.shadow.set(base, base + span, state);
                }
                result.into()
            }
            _ => {
                let result = frozen.commit(&mut cpu, Change::Leaf(Pa::new(pa), attrs));
                if result.is_ok() {
                    let state = State::Mapped { pa, attrs };
                    it.shadow.set(base, base + span, state);
                } else if !matches!(result, Err(Error::Align | Error::BlockLevel { .. })) {
                    judge.complain(format!("commit: {result:?}"));
                }
                result.into()
            }
        };
        self.settle(task.guest, base, base + span);
        outcome
    }

    /// A guest of this CPU touches memory: the access flag and the dirty state
    /// change without anybody's doing.
    fn hardware(&mut self, task: &Task) -> Outcome {
        let judge = self.judge;
        // Some guest runs on this CPU from now on.
        let other = self.guests[(task.c & 1) as usize].tree.vttbr();
        judge.write(Reg::Vttbr, other);
        judge.event(EventKind::ISB);
        let it = &self.guests[task.guest];
        judge.guest_access(&GuestAccess {
            pe: judge.pe.get(),
            vttbr: it.tree.vttbr(),
            root: it.tree.root().get(),
            ipa: task.start,
            write: task.b & 1 == 1,
        });
        if judge.was_marked() {
            Outcome::Done
        } else {
            Outcome::Nothing
        }
    }

    /// Maintains caches, counts tables, drops all of a VMID's entries.
    fn flush_caches(&mut self, task: &Task) -> Outcome {
        let tree = &self.guests[task.guest].tree;
        let mut cpu = Cpu(self.judge);
        let mut at = task.start;
        while at < task.end && !self.judge.is_broken() {
            // Room for the way down.
            let mut budget = match task.c >> 4 & 3 {
                0 => Budget::entries(8 + (task.c >> 6 & 63)),
                _ => Budget::unlimited(),
            };
            let done = tree.flush_caches(&mut cpu, Ipa::new(at), task.end - at, &mut budget);
            match done {
                Ok(next) if next.get() > at => at = next.get(),
                other => {
                    self.complain(format!("flush_caches: {other:?}"));
                    break;
                }
            }
        }
        if task.b & 7 == 0 {
            let _all = tree.invalidate_all(&mut cpu);
        }
        if task.b >> 3 & 7 == 0 {
            self.counts(task.guest);
        }
        Outcome::Done
    }

    /// Hardware marked a leaf meanwhile: "busy, try again" is an answer to
    /// that, where else nobody is.
    fn crossed(&self, why: Error) -> bool {
        why == Error::Busy && self.judge.was_marked()
    }

    /// Writes by guests that went on beside become part of the shadow.
    /// Returns the entry that one wrote to.
    fn absorb(&mut self, guest: usize) -> Option<(u64, u64)> {
        let (from, to) = self.judge.take_written()?;
        self.guests[guest].shadow.change(from, to, |attrs| Attrs {
            access: with_access(attrs.access, Access::Write),
            ..attrs
        });
        Some((from, to))
    }

    /// What a guest saw in the midst of an operation was what stood there
    /// before it, or what stands there after.
    fn check_seen(&self, guest: usize, ipa: u64, was: Option<State>) {
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

fn with_execute(now: Execute, more: Execute) -> Execute {
    use Execute as X;
    match (now, more) {
        (X::Never, other) | (other, X::Never) => other,
        (X::El0, X::El0) => X::El0,
        (X::El1, X::El1) => X::El1,
        _ => X::All,
    }
}

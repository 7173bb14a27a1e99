//! Runs operations on trees beside their shadows, and compares after each.
//!
//! Two guests, three CPUs. What an operation's numbers mean is in `ops`; here
//! is what stays true whatever they do: the model hears every event, its
//! promises are the shadow's, the memory that guests map is theirs, tables
//! count right, and nothing is left at the end.

use super::peer::Done;
use super::shadow::{Shadow, State};
use super::tally::Tally;
use super::{Cpu, Judge, own};
use mmu_model::{EventKind, Memory, Owner, Promise, Target};
use pgtable::{
    Access, Attrs, Budget, ConfigError, Dirty, Entry, Execute, Features, Geometry, Ignore, Ipa,
    Next, Partial, Stage2, Stage2Regs, TableMem, Visit, Vmid,
};

#[allow(unused_imports)] // each test binary uses its own part of them
pub use super::case::{Case, Op, Seeded, case, geometries};

pub(super) const PES: usize = 3;

pub(super) struct Guest<'j> {
    pub tree: Stage2<&'j Judge>,
    pub shadow: Shadow,
    pub vmid: u16,
}

pub(super) struct Run<'j, 't> {
    pub judge: &'j Judge,
    pub geometry: Geometry,
    pub guests: Vec<Guest<'j>>,
    /// A tree of another format, that CPUs have loaded now and then.
    pub stranger: Stage2Regs,
    pub tally: &'t mut Tally,
    /// What another CPU did during the operation.
    pub met: Option<Done>,
}

/// Runs operations on two guests and three CPUs.
///
/// # Errors
/// What went wrong, with the operation's index.
pub fn run(case: &Case, ops: &[Op]) -> Result<(), String> {
    run_tallied(case, ops, &mut Tally::default())
}

/// As [`run`], and counts how the operations ended.
///
/// # Errors
/// As [`run`].
pub fn run_tallied(case: &Case, ops: &[Op], tally: &mut Tally) -> Result<(), String> {
    let judge = Judge::new(case.model(), PES, case.config.granule.page_size());
    run_on(&judge, case, ops, tally)
}

fn run_on(judge: &Judge, case: &Case, ops: &[Op], tally: &mut Tally) -> Result<(), String> {
    let fails = |error: ConfigError| error.to_string();
    let geometry = case.config.validate().map_err(fails)?;
    let other = case.stranger().validate().map_err(fails)?;
    let root = judge.root(other.root_align());
    let stranger = Stage2::new(other, root, Vmid::new(case.vmids[2]), judge).map_err(fails)?;
    let mut run = Run {
        judge,
        geometry,
        stranger: stranger.regs(),
        guests: Vec::new(),
        tally,
        met: None,
    };
    for vmid in [case.vmids[0], case.vmids[1]] {
        let root = judge.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, Vmid::new(vmid), judge)
            .map_err(|error| error.to_string())?;
        run.guests.push(Guest {
            tree,
            shadow: Shadow::default(),
            vmid,
        });
    }
    for pe in 0..PES as u8 {
        judge.pe.set(pe);
        judge.install(run.stranger);
        for guest in run.guests.iter().rev() {
            judge.install(guest.tree.regs());
        }
    }
    for (index, op) in ops.iter().enumerate() {
        run.step(op);
        run.verdict()
            .map_err(|what| format!("op {index} {op:?}: {what}"))?;
    }
    run.finish();
    run.verdict().map_err(|what| format!("at the end: {what}"))
}

fn perms(attrs: &Attrs, features: &Features) -> u8 {
    let dirty = features.hw_dirty && attrs.dirty == Dirty::Track;
    let mut bits = attrs.access as u8;
    if dirty {
        bits |= 2;
    }
    bits | match attrs.execute {
        Execute::All => 12,
        Execute::El1 => 4,
        Execute::El0 => 8,
        Execute::Never => 0,
    }
}

fn memory(attrs: &Attrs, fwb: bool) -> Memory {
    use mmu_model::Cache;
    let normal = |cache| Memory::Normal {
        outer: cache,
        inner: cache,
    };
    match (attrs.memory, fwb) {
        (pgtable::Memory::Normal, true) => Memory::ForcedWriteBack,
        (pgtable::Memory::NormalNonCacheable, true) => Memory::ForcedNonCacheable,
        (pgtable::Memory::FromStage1, true) => Memory::Stage1,
        (pgtable::Memory::Normal | pgtable::Memory::FromStage1, false) => normal(Cache::WriteBack),
        (pgtable::Memory::NormalNonCacheable, false) => normal(Cache::NonCacheable),
        (pgtable::Memory::Device(device), _) => Memory::Device(device as u8),
    }
}

/// Without FWB two memory types have one encoding: what a leaf of `attrs`
/// reads back as.
fn readable(attrs: Attrs, fwb: bool) -> Attrs {
    match attrs.memory {
        pgtable::Memory::FromStage1 if !fwb => attrs.memory(pgtable::Memory::Normal),
        _ => attrs,
    }
}

impl Run<'_, '_> {
    fn verdict(&self) -> Result<(), String> {
        match self.judge.broken.borrow().as_ref() {
            None => Ok(()),
            Some(what) => Err(what.clone()),
        }
    }

    pub(super) fn complain(&self, what: impl Into<String>) {
        self.judge.complain(what.into());
    }

    /// The CPU that acts has this tree loaded when it begins: a guest's, or
    /// the stranger's, or as before.
    pub(super) fn load(&self, which: u64) {
        let regs = match which & 7 {
            0 | 1 => self.guests[which as usize & 1].tree.regs(),
            2 | 3 => self.stranger,
            _ => return,
        };
        if regs != self.judge.regs() {
            self.judge.install(regs);
        }
    }

    pub(super) fn page(&self) -> u64 {
        self.geometry.granule().page_size()
    }

    pub(super) fn space(&self) -> u64 {
        1 << self.geometry.ipa_bits()
    }

    /// Memory becomes a guest's, but for what it has mapped already.
    pub(super) fn give(&self, guest: usize, pa: u64, len: u64) {
        let it = &self.guests[guest];
        for (from, to) in it.shadow.unmapped(pa, pa + len) {
            own(self.judge, from, to - from, Owner::Vmid(it.vmid));
        }
    }

    /// Memory that a guest lost is nobody's, but for what it maps elsewhere.
    pub(super) fn take(&self, guest: usize, pa: u64, len: u64) {
        for (from, to) in self.guests[guest].shadow.unmapped(pa, pa + len) {
            own(self.judge, from, to - from, Owner::Nobody);
        }
    }

    /// The first entry of `ipa` and its end, if it is a leaf.
    fn leaf(&self, guest: usize, ipa: u64) -> Option<(u64, u64)> {
        let found = self.guests[guest].tree.lookup(Ipa::new(ipa)).ok()?;
        matches!(found.entry, Entry::Leaf { .. }).then(|| {
            (
                found.base.get(),
                found.base.get() + self.geometry.span(found.level),
            )
        })
    }

    /// `[start, end)` with the leaves at its ends whole.
    pub(super) fn whole(&self, guest: usize, start: u64, end: u64) -> (u64, u64) {
        if start >= end {
            return (start, end);
        }
        let from = self
            .leaf(guest, start)
            .map_or(start, |(base, _)| base.min(start));
        let to = self.leaf(guest, end - 1).map_or(end, |(_, to)| to.max(end));
        (from, to)
    }

    /// Promises the model what the shadow says, and lets it compare.
    pub(super) fn settle(&self, guest: usize, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let judge = self.judge;
        let paused = judge.pause();
        let it = &self.guests[guest];
        let features = self.geometry.features();
        // Promises are about the installed tree.
        let current = judge.regs();
        if current != it.tree.regs() {
            judge.install(it.tree.regs());
        }
        let nothing = Promise {
            ia: start,
            len: end - start,
            to: None,
        };
        judge.event(EventKind::Spec(nothing));
        let pieces = it.shadow.pieces(start, end);
        for &(at, to, state) in &pieces {
            if let State::Mapped { pa, attrs } = state {
                let target = Target {
                    pa,
                    perms: Some(perms(&attrs, features)),
                    memory: Some(memory(&attrs, features.fwb)),
                };
                judge.event(EventKind::Spec(Promise {
                    ia: at,
                    len: to - at,
                    to: Some(target),
                }));
            }
        }
        judge.event(EventKind::Quiesce { lo: start, hi: end });
        if current != it.tree.regs() {
            judge.install(current);
        }
        // Annotations and attributes that hardware does not see.
        for (at, to, state) in pieces {
            self.probe(guest, at, state);
            if to - at > self.page() {
                self.probe(guest, (at + to) / 2, state);
                self.probe(guest, to - 1, state);
            }
        }
        judge.resume(paused);
    }

    fn probe(&self, guest: usize, ipa: u64, state: State) {
        let Ok(found) = self.guests[guest].tree.lookup(Ipa::new(ipa)) else {
            return self.complain(format!("{ipa:#x} is outside"));
        };
        let right = match (found.entry, state) {
            (
                Entry::Leaf { attrs, .. },
                State::Mapped {
                    attrs: expected, ..
                },
            ) => {
                let expected = Attrs {
                    age: attrs.age,
                    share: attrs.share,
                    ..expected
                };
                attrs == readable(expected, self.geometry.features().fwb)
            }
            (Entry::Invalid(annotation), State::Annotated(bits)) => annotation.get() == bits,
            _ => false,
        };
        if !right {
            self.complain(format!("{ipa:#x}: {:?} is not {state:?}", found.entry));
        }
    }

    /// Takes removed leaves (IPA, bytes, PA) out of the shadow; their memory
    /// goes back.
    pub(super) fn forget(&mut self, guest: usize, gone: &[(u64, u64, u64)]) {
        // Neighbours that follow each other are one.
        let mut runs: Vec<(u64, u64, u64)> = Vec::new();
        for &(ia, size, pa) in gone {
            match runs.last_mut() {
                Some((at, len, from)) if *at + *len == ia && *from + *len == pa => *len += size,
                _ => runs.push((ia, size, pa)),
            }
        }
        for &(ia, size, pa) in &runs {
            let it = &mut self.guests[guest];
            let mut covered = 0;
            for (at, to, state) in it.shadow.pieces(ia, ia + size) {
                covered += to - at;
                let right =
                    matches!(state, State::Mapped { pa: from, .. } if from == pa + (at - ia));
                if !right {
                    self.judge
                        .complain(format!("told of {ia:#x} -> {pa:#x}, was {state:?}"));
                }
            }
            if covered != size {
                self.judge.complain(format!(
                    "told of {ia:#x}, {size:#x} bytes: {covered:#x} mapped"
                ));
            }
            it.shadow.clear(ia, ia + size);
        }
        for (_, size, pa) in runs {
            self.take(guest, pa, size);
        }
    }

    /// Every count is right, and after the end nothing is left.
    fn finish(&mut self) {
        let judge = self.judge;
        let whole = self.space();
        for guest in 0..self.guests.len() {
            judge.pe.set(guest as u8);
            self.counts(guest);
            if judge.is_broken() {
                return;
            }
            if guest == 0 {
                self.unmap_whole(guest, Partial::Split, None);
            } else {
                let it = &mut self.guests[guest];
                let mut at = Ipa::new(0);
                let mut calls = 0;
                while at.get() < whole && !judge.is_broken() {
                    calls += 1;
                    if calls > 5000 {
                        judge.complain("teardown does not end".into());
                    }
                    let mut budget = Budget::entries(700);
                    at = it
                        .tree
                        .teardown(&mut Cpu(judge), at, &mut Ignore, &mut budget);
                }
            }
            let root = self.guests[guest].tree.root();
            if judge.count(root) != 0 {
                judge.complain(format!("the root counts {} at the end", judge.count(root)));
            }
        }
        if judge.live() != 0 {
            judge.complain(format!("{} tables are left", judge.live()));
        }
    }

    /// The tables of a tree, as a visitor meets them, are those that the model
    /// knows, and each counts its entries.
    pub(super) fn counts(&self, guest: usize) {
        let judge = self.judge;
        let it = &self.guests[guest];
        let whole = self.space();
        let mut tables = vec![it.tree.root()];
        let walked = it
            .tree
            .walk(Ipa::new(0), whole, &mut Budget::unlimited(), |seen| match (
                seen.visit, seen.entry,
            ) {
                (Visit::TablePre, Entry::Table(pa)) => {
                    tables.push(pa);
                    Next::Descend
                }
                _ => Next::Descend,
            });
        if walked != Ok(Ipa::new(whole)) {
            judge.complain(format!("walk: {walked:?}"));
        }
        for pa in tables {
            let held = judge.machine.borrow().table_counts(pa.get());
            let held = held.map(|(held, _)| held as u32);
            if held != Some(judge.count(pa)) {
                let count = judge.count(pa);
                judge.complain(format!("table {pa} holds {held:?} and counts {count}"));
            }
        }
    }
}

pub(super) fn without_write(access: Access) -> Access {
    match access {
        Access::ReadWrite | Access::Read => Access::Read,
        Access::Write | Access::None => Access::None,
    }
}

pub(super) fn with_access(access: Access, more: Access) -> Access {
    [Access::None, Access::Read, Access::Write, Access::ReadWrite]
        [usize::from(access as u8 | more as u8)]
}

pub(super) fn with_execute(now: Execute, more: Execute) -> Execute {
    use Execute as X;
    match (now, more) {
        (X::Never, other) | (other, X::Never) => other,
        (X::El0, X::El0) => X::El0,
        (X::El1, X::El1) => X::El1,
        _ => X::All,
    }
}

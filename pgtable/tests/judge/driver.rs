//! Operations made of plain numbers, done to a tree and to its shadow.
//!
//! An operation is four numbers, whatever they are, so that a generator
//! cannot make a wrong one and a shrinker can make them small.

use super::shadow::{Shadow, State};
use super::{Cpu, Judge, own};
use mmu_model::{EventKind, Machine, Memory, Owner, Promise, Reg, Target};
use pgtable::{
    Access, Age, Annotation, Attrs, Budget, Change, ConfigError, Dirty, Entry, Errata, Error,
    Execute, Features, Flush, Gather, Geometry, Granule, Ignore, Ipa, Leaves, Level, Map, Next,
    Over, Pa, Partial, Permissions, RemovedLeaf, Stage2, Stage2Config, Start, Stopped, TableMem,
    Visit, Vmid,
};

/// One operation.
pub type Op = [u64; 4];

/// A machine and a format, as a number.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub config: Stage2Config,
    pub bbm: u8,
}

/// Every legal combination of granule, LPA2, sizes and start level.
pub fn geometries() -> Vec<Stage2Config> {
    let mut all = Vec::new();
    for granule in Granule::ALL {
        for lpa2 in [false, true] {
            for pa_bits in [32, 36, 40, 42, 44, 48, 52] {
                for ipa_bits in 32..=52 {
                    for start in -1..=3 {
                        let mut config = Stage2Config::new(granule, ipa_bits, pa_bits);
                        config.lpa2 = lpa2;
                        config.start = Start::At(Level::new(start).unwrap());
                        if config.validate().is_ok() {
                            all.push(config);
                        }
                    }
                }
            }
        }
    }
    all
}

/// The combination with this number, and features after its other bits.
pub fn case(geometries: &[Stage2Config], number: u64) -> Case {
    let mut config = geometries[(number as usize) % geometries.len()];
    let bits = number / geometries.len() as u64;
    let bit = |n: u64| bits >> n & 1 == 1;
    config.features = Features {
        tlb_range: !bit(0),
        ttl: !bit(1),
        fwb: !bit(2),
        xnx: !bit(3),
        vmid16: !bit(4),
        hw_access_flag: !bit(5),
        hw_dirty: !bit(5) && !bit(6),
        ttst: false,
        cnp: bit(7),
        dic: !bit(8),
        bbm2: bit(9) && bit(10),
    };
    config.errata = Errata::NONE;
    if bit(11) {
        config.errata = config.errata | Errata::QEMU_RANGE_LENGTH;
    }
    if bit(12) {
        config.errata = config.errata | Errata::TLBI_SYNC_REPEAT;
    }
    Case {
        config,
        bbm: if config.features.bbm2 { 2 } else { 0 },
    }
}

const PES: usize = 3;

struct Guest<'j> {
    tree: Stage2<&'j Judge>,
    shadow: Shadow,
    vmid: u16,
}

struct Run<'j> {
    judge: &'j Judge,
    geometry: Geometry,
    guests: Vec<Guest<'j>>,
}

fn features(case: &Case) -> mmu_model::Features {
    let config = &case.config;
    let features = &config.features;
    mmu_model::Features {
        pa_bits: config.pa_bits,
        granules: [true; 3],
        lpa2: config.lpa2,
        lva: config.pa_bits == 52,
        ttst: features.ttst,
        ttl: features.ttl,
        tlbirange: features.tlb_range,
        xnx: features.xnx,
        fwb: features.fwb,
        bbm: case.bbm,
        vmid16: features.vmid16,
        hafdbs: u8::from(features.hw_access_flag) + u8::from(features.hw_dirty),
        dic: features.dic,
        errata: mmu_model::Errata {
            range_len_32: config.errata.has(Errata::QEMU_RANGE_LENGTH),
            repeat_tlbi: config.errata.has(Errata::TLBI_SYNC_REPEAT),
        },
    }
}

/// Runs operations on two guests and three CPUs.
///
/// # Errors
/// What went wrong, with the operation's index.
pub fn run(case: &Case, ops: &[Op]) -> Result<(), String> {
    let geometry = case
        .config
        .validate()
        .map_err(|error: ConfigError| error.to_string())?;
    let page = geometry.granule().page_size();
    let judge = Judge::new(Machine::new(features(case), PES), PES, page);
    let trace = std::env::var_os("PGTABLE_TRACE");
    if trace.is_some() {
        *judge.trace.borrow_mut() = Some(Vec::new());
    }
    let done = run_on(&judge, geometry, ops);
    if let Some(path) = trace {
        write_trace(&judge, case, path.as_ref()).map_err(|error| error.to_string())?;
    }
    done
}

/// Writes the run's events for other judges: the format is in the model's
/// README.
fn write_trace(judge: &Judge, case: &Case, path: &std::path::Path) -> std::io::Result<()> {
    let header = mmu_model::trace::Header {
        features: features(case),
        pes: PES,
        toy: None,
    };
    let mut writer = mmu_model::trace::Writer::new(Vec::new(), &header)?;
    for event in judge.trace.borrow().iter().flatten() {
        writer.event(event)?;
    }
    std::fs::write(path, writer.finish()?)
}

fn run_on(judge: &Judge, geometry: Geometry, ops: &[Op]) -> Result<(), String> {
    let mut run = Run {
        judge,
        geometry,
        guests: Vec::new(),
    };
    for vmid in [5u16, 9] {
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
        judge.write(Reg::Vtcr, geometry.vtcr());
        for guest in run.guests.iter().rev() {
            judge.write(Reg::Vttbr, guest.tree.vttbr());
            judge.event(EventKind::ISB);
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

impl<'j> Run<'j> {
    fn verdict(&self) -> Result<(), String> {
        match self.judge.broken.borrow().as_ref() {
            None => Ok(()),
            Some(what) => Err(what.clone()),
        }
    }

    fn complain(&self, what: impl Into<String>) {
        self.judge.complain(what.into());
    }

    fn page(&self) -> u64 {
        self.geometry.granule().page_size()
    }

    /// An address near one of a few places all over the space.
    fn place(&self, n: u64) -> u64 {
        let span = self.geometry.span(Level::L2);
        let end = 1u64 << self.geometry.ipa_bits();
        let anchor = match n % 4 {
            0 => 0,
            1 => end / 2,
            2 => end - 4 * span,
            _ => end / 4 * 3 - 2 * span,
        };
        anchor & !(span - 1)
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
                let bits = self
                    .geometry
                    .granule()
                    .contiguous_bits(Level::L3)
                    .unwrap_or(4);
                let group = page << bits;
                ((a >> 5) % 3 * group, (1 + b % 2) * group)
            }
        };
        let most = (1u64 << self.geometry.shape().oa_bits()) / 32;
        (anchor + offset, size.min(most))
    }

    fn attrs(&self, n: u64) -> Attrs {
        use pgtable::{Device, Memory as M};
        let features = self.geometry.features();
        let execute = match n >> 2 & 3 {
            1 if features.xnx => Execute::El0,
            2 if features.xnx => Execute::El1,
            3 => Execute::Never,
            _ => Execute::All,
        };
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
            execute,
            memory,
            age: if n >> 7 & 3 == 3 {
                Age::Old
            } else {
                Age::Young
            },
            dirty: if n >> 9 & 3 == 3 {
                Dirty::Track
            } else {
                Dirty::Fault
            },
            soft: (n >> 11 & 3) as u8,
            ..Attrs::MEMORY
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

    /// Memory becomes a guest's, but for what it has mapped already.
    fn give(&self, guest: usize, pa: u64, len: u64) {
        let it = &self.guests[guest];
        let owner = Owner::Vmid(it.vmid);
        if !it.shadow.maps(pa, len) {
            return own(self.judge, pa, len, owner);
        }
        let page = self.page();
        for at in (pa..pa + len).step_by(page as usize) {
            if !it.shadow.maps(at, page) {
                own(self.judge, at, page, owner);
            }
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
    fn whole(&self, guest: usize, start: u64, end: u64) -> (u64, u64) {
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
    fn settle(&self, guest: usize, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let judge = self.judge;
        let it = &self.guests[guest];
        let features = self.geometry.features();
        // Promises are about the installed tree.
        let mut cpu = Cpu(judge);
        let current = pgtable::Maintenance::vttbr(&mut cpu);
        if current != it.tree.vttbr() {
            judge.settle_invalid();
            judge.write(Reg::Vttbr, it.tree.vttbr());
            judge.event(EventKind::ISB);
        }
        let nothing = Promise {
            ia: start,
            len: end - start,
            to: None,
        };
        judge.event(EventKind::Spec(nothing));
        for (at, to, state) in it.shadow.pieces(start, end) {
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
        judge.settle_invalid();
        judge.event(EventKind::Quiesce { lo: start, hi: end });
        if current != it.tree.vttbr() {
            judge.write(Reg::Vttbr, current);
            judge.event(EventKind::ISB);
        }
        // Annotations and attributes that hardware does not see.
        for (at, to, state) in it.shadow.pieces(start, end) {
            for probe in [at, (at + to) / 2, to - 1] {
                self.probe(guest, probe, state);
            }
        }
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
                // Without FWB two types have one encoding.
                let expected = if attrs.memory == pgtable::Memory::Normal
                    && expected.memory == pgtable::Memory::FromStage1
                    && !self.geometry.features().fwb
                {
                    Attrs {
                        memory: attrs.memory,
                        ..expected
                    }
                } else {
                    expected
                };
                attrs == expected
            }
            (Entry::Invalid(annotation), State::Annotated(bits)) => annotation.get() == bits,
            _ => false,
        };
        if !right {
            self.complain(format!("{ipa:#x}: {:?} is not {state:?}", found.entry));
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

    fn step(&mut self, op: &Op) {
        let [kind, a, b, c] = *op;
        let judge = self.judge;
        judge.pe.set((kind >> 8 & 3) as u8 % PES as u8);
        let guest = (kind >> 10 & 1) as usize;
        // Now and then an allocator that fails soon.
        judge.limit.set(if kind >> 11 & 7 == 7 {
            kind >> 14 & 3
        } else {
            u64::MAX
        });
        let mut cpu = Cpu(judge);
        let (start, size) = self.range(a, b);
        let ipa = Ipa::new(start);
        let end = start + size;
        let partial = [Partial::Split, Partial::DropWhole, Partial::Refuse][(c % 3) as usize];
        let over = [Over::Anything, Over::Invalid, Over::Nothing][(c / 3 % 3) as usize];
        let budget = || match c >> 4 & 3 {
            0 => Budget::entries(1 + (c >> 6 & 63)),
            _ => Budget::unlimited(),
        };
        let installed = pgtable::Maintenance::vttbr(&mut cpu);
        // What the operation may have touched besides its range.
        let (low, high) = self.whole(guest, start, end);
        match kind % 24 {
            0..=5 => {
                let attrs = self.attrs(b >> 8);
                let pa = self.target(guest, start, c >> 20);
                self.give(guest, pa, size);
                let exclusive = kind % 24 >= 3;
                let leaves = match c >> 16 & 3 {
                    0 => Leaves::Exactly(Level::L3),
                    1 => Leaves::AtMost(Level::L2),
                    _ => Leaves::Largest,
                };
                let map = Map::new(ipa, Pa::new(pa), size, attrs)
                    .leaves(leaves)
                    .over(over);
                let mut at = start;
                loop {
                    let rest = Map {
                        ipa: Ipa::new(at),
                        pa: Pa::new(pa + (at - start)),
                        size: end - at,
                        ..map
                    };
                    let it = &mut self.guests[guest];
                    let result = if exclusive {
                        let mut sink = |_: RemovedLeaf| ();
                        it.tree
                            .map_exclusive(&mut cpu, &rest, &mut sink, &mut budget())
                    } else {
                        it.tree.map(&mut cpu, &rest, &mut budget())
                    };
                    let (next, stop) = match result {
                        Ok(next) => (next.get(), next.get() >= end),
                        Err(Stopped { why, next }) => {
                            let known = matches!(
                                why,
                                Error::Exists { .. } | Error::NoMem | Error::NeedsExclusive { .. }
                            );
                            if !known {
                                self.complain(format!("map stopped: {why}"));
                            }
                            (next.get(), true)
                        }
                    };
                    self.check_over(guest, at, next, over, (pa + (at - start), attrs));
                    let state = State::Mapped {
                        pa: pa + (at - start),
                        attrs,
                    };
                    self.guests[guest].shadow.set(at, next, state);
                    at = next;
                    if stop || judge.is_broken() {
                        break;
                    }
                }
            }
            6..=9 => self.unmap(guest, start, end, partial, kind, c),
            10 => {
                let bits = (b >> 8 & 0xfff) << 2;
                let annotation = Annotation::new(bits).expect("bits 1:0 are zero");
                let result = self.guests[guest].tree.annotate(
                    &mut cpu,
                    ipa,
                    size,
                    annotation,
                    if partial == Partial::DropWhole {
                        Partial::Split
                    } else {
                        partial
                    },
                    &mut Ignore,
                    &mut Budget::unlimited(),
                );
                let next = match result {
                    Ok(next) => next.get(),
                    Err(stopped) => stopped.next.get(),
                };
                let shadow = &mut self.guests[guest].shadow;
                if bits == 0 {
                    shadow.clear(start, next);
                } else {
                    shadow.set(start, next, State::Annotated(bits));
                }
            }
            11 | 12 => {
                let wanted = self.attrs(b >> 8);
                let permissions = Permissions {
                    access: wanted.access,
                    execute: wanted.execute,
                };
                let mut gather = Gather::new();
                let later = c >> 8 & 1 == 1;
                let it = &mut self.guests[guest];
                let flush = if later {
                    Flush::Later(&mut gather)
                } else {
                    Flush::Now
                };
                let result = it.tree.protect(
                    &mut cpu,
                    ipa,
                    size,
                    permissions,
                    partial,
                    flush,
                    &mut Budget::unlimited(),
                );
                let _synced = it.tree.sync(&mut cpu, gather);
                let next = match result {
                    Ok(next) => next.get(),
                    Err(stopped) => stopped.next.get(),
                };
                let (from, to) = if partial == Partial::DropWhole && next >= end {
                    (low, high)
                } else if partial == Partial::DropWhole {
                    (low, next)
                } else {
                    (start, next)
                };
                it.shadow.change(from, to, |attrs| {
                    let keeps = matches!(wanted.access, Access::Write | Access::ReadWrite);
                    Attrs {
                        access: wanted.access,
                        execute: wanted.execute,
                        dirty: if keeps { attrs.dirty } else { Dirty::Fault },
                        ..attrs
                    }
                });
            }
            13 => {
                let it = &mut self.guests[guest];
                let done = it.tree.write_protect(
                    &mut cpu,
                    ipa,
                    size,
                    Flush::Now,
                    &mut Budget::unlimited(),
                );
                if done != Ok(Ipa::new(end)) {
                    judge.complain(format!("write_protect: {done:?}"));
                }
                it.shadow.change(low, high, |attrs| Attrs {
                    access: without_write(attrs.access),
                    dirty: Dirty::Fault,
                    ..attrs
                });
            }
            14 => self.relax(guest, start, b),
            15 => {
                let it = &mut self.guests[guest];
                let mut gather = Gather::new();
                let flush = if c & 1 == 0 {
                    Flush::Now
                } else {
                    Flush::Later(&mut gather)
                };
                let before = it
                    .tree
                    .count_young(&mut cpu, ipa, size, &mut Budget::unlimited());
                let done =
                    it.tree
                        .clear_young(&mut cpu, ipa, size, flush, &mut Budget::unlimited());
                let _synced = it.tree.sync(&mut cpu, gather);
                let after = it
                    .tree
                    .count_young(&mut cpu, ipa, size, &mut Budget::unlimited());
                if before != done || after.map(|(_, young)| young) != Ok(0) {
                    judge.complain(format!("young: {before:?} {done:?} {after:?}"));
                }
            }
            16 => {
                let it = &mut self.guests[guest];
                let marked = it.tree.mark_young(&mut cpu, ipa);
                if marked.is_ok() != matches!(it.shadow.at(start), Some(State::Mapped { .. })) {
                    judge.complain(format!("mark_young: {marked:?}"));
                }
            }
            17 => self.harvest(guest, start, end, (low, high)),
            18 => {
                let to = if b & 1 == 0 || !self.geometry.leaf_ok(Level::L2) {
                    Level::L3
                } else {
                    Level::L2
                };
                let it = &mut self.guests[guest];
                let pages = |level| judge.alloc(level);
                let mut at = start;
                while at < end {
                    let rest = end - at;
                    let result =
                        it.tree
                            .split(&mut cpu, Ipa::new(at), rest, to, pages, &mut budget());
                    match result {
                        Ok(next) if next.get() <= at => {
                            judge.complain("split made no progress".into());
                            break;
                        }
                        Ok(next) => at = next.get(),
                        Err(Stopped {
                            why: Error::NoMem, ..
                        }) => break,
                        Err(stopped) => {
                            judge.complain(format!("split: {stopped}"));
                            break;
                        }
                    }
                    if judge.is_broken() {
                        break;
                    }
                }
            }
            19 => {
                let it = &mut self.guests[guest];
                match it.tree.fold(&mut cpu, ipa, Level::L2) {
                    Ok(()) => {
                        if it.tree.lookup(ipa).map(|found| found.level) != Ok(Level::L2) {
                            judge.complain("fold left a table".into());
                        }
                    }
                    Err(
                        Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. },
                    ) => (),
                    Err(error) => judge.complain(format!("fold: {error}")),
                }
            }
            20 => {
                let it = &mut self.guests[guest];
                let result = if b & 3 != 0 {
                    it.tree.set_contiguous(&mut cpu, ipa)
                } else {
                    it.tree.clear_contiguous(&mut cpu, ipa)
                };
                match result {
                    Ok(())
                    | Err(
                        Error::Missing { .. } | Error::Mismatch { .. } | Error::BlockLevel { .. },
                    ) => (),
                    Err(error) => judge.complain(format!("contiguous: {error}")),
                }
            }
            21 => self.subtree(guest, start, b, c, over),
            22 => self.freeze(guest, start, b, c),
            _ => {
                // Another guest runs on this CPU now.
                let other = self.guests[(a & 1) as usize].tree.vttbr();
                judge.write(Reg::Vttbr, other);
                judge.event(EventKind::ISB);
                self.hardware(guest, start, b);
            }
        }
        judge.limit.set(u64::MAX);
        let now = pgtable::Maintenance::vttbr(&mut cpu);
        if now != installed && !matches!(kind % 24, 14 | 23) {
            self.complain("another VTTBR is installed after the operation");
        }
        if judge.is_broken() {
            return;
        }
        self.settle(guest, low.min(start), high.max(end));
    }

    /// Hardware sets the access flag or the dirty state of a leaf.
    fn hardware(&mut self, guest: usize, ipa: u64, n: u64) {
        let features = *self.geometry.features();
        let it = &mut self.guests[guest];
        let mut place = None;
        let level = match it.tree.lookup(Ipa::new(ipa)) {
            Ok(found) if matches!(found.entry, Entry::Leaf { .. }) => found.level,
            _ => return,
        };
        // The entry's address, found by walking as a CPU does.
        let mut table = it.tree.root().get();
        let mut at = it.tree.geometry().start();
        let shape = *it.tree.geometry().shape();
        loop {
            let pa = table + shape.index(at, ipa) as u64 * 8;
            let raw = self.judge.word(pa);
            if at == level {
                place = place.or(Some((pa, raw)));
                break;
            }
            let Entry::Table(next) = it.tree.geometry().decode(raw, at) else {
                return;
            };
            table = next.get();
            at = Level::new(at.get() + 1).expect("a level below");
        }
        let Some((pa, raw)) = place else { return };
        let mut new = raw;
        if features.hw_access_flag {
            new |= 1 << 10;
        }
        let track = features.hw_dirty && raw >> 51 & 1 == 1 && n & 1 == 1;
        if track {
            new |= 1 << 7;
        }
        if new == raw {
            return;
        }
        self.judge.event(EventKind::Cas {
            pa,
            expected: raw,
            value: new,
            release: true,
        });
        if track {
            let base = ipa & !(shape.span(level) - 1);
            it.shadow
                .change(base, base + shape.span(level), |attrs| Attrs {
                    access: with_write(attrs.access),
                    ..attrs
                });
        }
    }

    fn harvest(&mut self, guest: usize, start: u64, end: u64, (low, high): (u64, u64)) {
        let it = &mut self.guests[guest];
        let mut dirty = Vec::new();
        let done = it.tree.harvest_dirty(
            &mut Cpu(self.judge),
            Ipa::new(start),
            end - start,
            Flush::Now,
            &mut Budget::unlimited(),
            |at, size| dirty.push((at.get(), at.get() + size)),
        );
        if !self.geometry.features().hw_dirty {
            if done.map_err(|stopped| stopped.why) != Err(Error::Attributes) {
                self.judge.complain("dirty harvest without HD".into());
            }
            return;
        }
        if done != Ok(Ipa::new(end)) {
            self.judge.complain(format!("harvest: {done:?}"));
        }
        for (at, to, state) in it.shadow.pieces(low, high) {
            let State::Mapped { attrs, .. } = state else {
                continue;
            };
            let told = dirty.iter().any(|&(from, until)| from < to && at < until);
            if told != attrs.is_dirty() {
                self.judge
                    .complain(format!("{at:#x} dirty: told {told}, is {attrs:?}"));
            }
        }
        it.shadow.change(low, high, |attrs| {
            let written = matches!(attrs.access, Access::Write | Access::ReadWrite);
            Attrs {
                access: without_write(attrs.access),
                dirty: if written { Dirty::Track } else { attrs.dirty },
                ..attrs
            }
        });
    }

    fn relax(&mut self, guest: usize, ipa: u64, n: u64) {
        let judge = self.judge;
        let it = &mut self.guests[guest];
        judge.write(Reg::Vttbr, it.tree.vttbr());
        judge.event(EventKind::ISB);
        let wanted = if n & 1 == 0 {
            Access::ReadWrite
        } else {
            Access::Read
        };
        let permissions = Permissions {
            access: wanted,
            execute: Execute::Never,
        };
        let mapped = matches!(it.shadow.at(ipa), Some(State::Mapped { .. }));
        for _ in 0..2 {
            // The guest touches it, faults, is helped, and tries again.
            judge.event(EventKind::Fault {
                ia: ipa,
                access: wanted as u8,
            });
            let relaxed = it.tree.relax(&mut Cpu(judge), Ipa::new(ipa), permissions);
            if relaxed.is_ok() != mapped {
                judge.complain(format!("relax: {relaxed:?}"));
            }
        }
        // What one CPU is allowed more, others may learn late: the facts ask
        // for a local barrier only, the model's quiet point for more.
        judge.event(EventKind::DSB_ISHST);
        let Ok(found) = it.tree.lookup(Ipa::new(ipa)) else {
            return;
        };
        if mapped {
            let base = found.base.get();
            it.shadow
                .change(base, base + self.geometry.span(found.level), |attrs| {
                    let more = attrs.access as u8 | wanted as u8;
                    let access = [Access::None, Access::Read, Access::Write, Access::ReadWrite]
                        [usize::from(more)];
                    Attrs { access, ..attrs }
                });
        }
    }

    fn subtree(&mut self, guest: usize, start: u64, b: u64, c: u64, over: Over) {
        let judge = self.judge;
        let span = self.geometry.span(Level::L2);
        let base = start & !(span - 1);
        if self.geometry.start() > Level::L2 {
            return;
        }
        let attrs = self.attrs(b >> 8);
        let pa = self.target(guest, base, c >> 20);
        let pages = 1 + b % 7;
        let page = self.page();
        self.give(guest, pa, pages * page);
        let it = &mut self.guests[guest];
        let mut built = match it.tree.subtree(Ipa::new(base), Level::L2) {
            Ok(built) => built,
            Err(Error::NoMem) => return,
            Err(error) => return judge.complain(format!("subtree: {error}")),
        };
        let mut cpu = Cpu(judge);
        let map = Map::new(Ipa::new(base), Pa::new(pa), pages * page, attrs);
        if let Err(stopped) = built.map(&mut cpu, &map, &mut Budget::unlimited()) {
            judge.complain(format!("mapping in a subtree: {stopped}"));
        }
        match built.link(&mut cpu, over) {
            Ok(()) => {
                it.shadow.clear(base, base + span);
                let state = State::Mapped { pa, attrs };
                it.shadow.set(base, base + pages * page, state);
            }
            Err((built, why)) => {
                built.discard();
                if !matches!(why, Error::Exists { .. } | Error::NoMem) {
                    judge.complain(format!("link: {why}"));
                }
            }
        }
        self.settle(guest, base, base + span);
    }

    fn freeze(&mut self, guest: usize, start: u64, b: u64, c: u64) {
        let judge = self.judge;
        let mut cpu = Cpu(judge);
        let level = if b & 1 == 0 { Level::L3 } else { Level::L2 };
        let attrs = self.attrs(b >> 8);
        let span = self.geometry.span(level);
        let base = start & !(span - 1);
        let pa = self.target(guest, base, c >> 20 & 1);
        self.give(guest, pa, span);
        let it = &mut self.guests[guest];
        let Ok(frozen) = it.tree.freeze(Ipa::new(start), level) else {
            return;
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
        match c & 3 {
            0 => frozen.rollback(&mut cpu),
            1 => {
                let annotation = Annotation::new(b & 0xffc).expect("bits 1:0 are zero");
                if let Err(error) = frozen.commit(&mut cpu, Change::Invalid(annotation)) {
                    judge.complain(format!("commit: {error}"));
                }
                it.shadow.clear(base, base + span);
                if annotation != Annotation::EMPTY {
                    it.shadow
                        .set(base, base + span, State::Annotated(annotation.get()));
                }
            }
            _ => {
                let result = frozen.commit(&mut cpu, Change::Leaf(Pa::new(pa), attrs));
                if result.is_ok() {
                    let state = State::Mapped { pa, attrs };
                    it.shadow.set(base, base + span, state);
                } else if !matches!(result, Err(Error::Align)) {
                    judge.complain(format!("commit: {result:?}"));
                }
            }
        }
        self.settle(guest, base, base + span);
    }

    fn unmap(&mut self, guest: usize, start: u64, end: u64, partial: Partial, kind: u64, c: u64) {
        let judge = self.judge;
        let mut cpu = Cpu(judge);
        let mut gone: Vec<(u64, u64, u64)> = Vec::new();
        let mut at = start;
        let mut stopped = None;
        while at < end && !judge.is_broken() {
            let mut budget = match c >> 4 & 3 {
                0 => Budget::entries(1 + (c >> 6 & 63)),
                _ => Budget::unlimited(),
            };
            let it = &mut self.guests[guest];
            let (from, size) = (Ipa::new(at), end - at);
            let mut sink = |leaf: RemovedLeaf| gone.push((leaf.ia(), leaf.size(), leaf.pa().get()));
            let tree = &mut it.tree;
            let result = match kind % 24 {
                6 => tree.unmap_leaves(&mut cpu, from, size, partial, &mut sink, &mut budget),
                7 => {
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
                    if kind % 24 < 8 {
                        judge.complain("unmap made no progress".into());
                    }
                }
                Ok(next) => at = next.get(),
                Err(Stopped { why, next }) => {
                    if !matches!(why, Error::InsideBlock { .. } | Error::NoMem) {
                        judge.complain(format!("unmap: {why}"));
                    }
                    at = next.get();
                    stopped = Some(at);
                    break;
                }
            }
        }
        let done = stopped.unwrap_or(end);
        let keeps_annotations = kind % 24 == 7;
        self.forget(guest, &gone);
        let it = &mut self.guests[guest];
        for (from, to, state) in it.shadow.pieces(start, done) {
            match state {
                State::Mapped { .. } => {
                    judge.complain(format!("unmapped {from:#x} to {to:#x} and told nobody"));
                }
                State::Annotated(_) if keeps_annotations => (),
                State::Annotated(_) => it.shadow.clear(from, to),
            }
        }
        if let (Some(low), Some(high)) = (
            gone.iter().map(|leaf| leaf.0).min(),
            gone.iter().map(|leaf| leaf.0 + leaf.1).max(),
        ) {
            self.settle(guest, low, high);
        }
    }

    /// Takes removed leaves out of the shadow; their memory goes back.
    fn forget(&mut self, guest: usize, gone: &[(u64, u64, u64)]) {
        for &(ia, size, pa) in gone {
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
        let page = self.page();
        for &(_, size, pa) in gone {
            let shadow = &self.guests[guest].shadow;
            if !shadow.maps(pa, size) {
                own(self.judge, pa, size, Owner::Nobody);
                continue;
            }
            for at in (pa..pa + size).step_by(page as usize) {
                if !shadow.maps(at, page) {
                    own(self.judge, at, page, Owner::Nobody);
                }
            }
        }
    }

    /// Every count is right, and after the end nothing is left.
    fn finish(&mut self) {
        let judge = self.judge;
        let whole = 1u64 << self.geometry.ipa_bits();
        for guest in 0..self.guests.len() {
            judge.pe.set(guest as u8);
            self.counts(guest);
            if judge.is_broken() {
                return;
            }
            if guest == 0 {
                self.unmap(guest, 0, whole, Partial::Split, 8, 0x40 * 5);
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

    fn counts(&self, guest: usize) {
        let judge = self.judge;
        let it = &self.guests[guest];
        let whole = 1u64 << self.geometry.ipa_bits();
        let entries = self.geometry.granule().entries() as u64;
        let mut tables = vec![(
            it.tree.root().get(),
            self.geometry.shape().root_entries() as u64,
        )];
        let walked = it
            .tree
            .walk(Ipa::new(0), whole, &mut Budget::unlimited(), |seen| {
                if let (Visit::TablePre, Entry::Table(pa)) = (seen.visit, seen.entry) {
                    tables.push((pa.get(), entries));
                }
                Next::Descend
            });
        if walked != Ok(Ipa::new(whole)) {
            judge.complain(format!("walk: {walked:?}"));
        }
        for (pa, entries) in tables {
            let held = (0..entries)
                .filter(|index| judge.word(pa + index * 8) != 0)
                .count();
            let count = judge.count(Pa::new(pa)) as usize;
            if held != count {
                judge.complain(format!("table {pa:#x} holds {held} and counts {count}"));
            }
        }
    }
}

fn without_write(access: Access) -> Access {
    match access {
        Access::ReadWrite | Access::Read => Access::Read,
        Access::Write | Access::None => Access::None,
    }
}

fn with_write(access: Access) -> Access {
    match access {
        Access::ReadWrite | Access::Read => Access::ReadWrite,
        Access::Write | Access::None => Access::Write,
    }
}

/// A sequence of numbers that depends on its seed alone.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Operations: of all kinds everywhere, or every other time of a few
    /// kinds in one place, so that they meet.
    pub fn sequence(&mut self, length: usize) -> Vec<Op> {
        let focus = self.number();
        let mut ops: Vec<Op> = (0..length).map(|_| self.op()).collect();
        if focus & 1 == 1 {
            let kinds = [0, 3, focus >> 8 & 31, focus >> 13 & 31, focus >> 18 & 31];
            for op in &mut ops {
                op[0] = op[0] / 24 * 24 % (1 << 60) + kinds[(op[0] >> 40) as usize % 5] % 24;
                op[1] = op[1] & !0x1f | focus >> 3 & 0x1f;
            }
        }
        ops
    }

    pub fn op(&mut self) -> Op {
        [self.number(), self.number(), self.number(), self.number()]
    }
}

/// One seeded run: a case and `length` operations.
///
/// # Errors
/// The seed, the case, the shortest operations found, and what went wrong.
pub fn seeded(geometries: &[Stage2Config], seed: u64, length: usize) -> Result<(), String> {
    let mut numbers = Seeded::new(seed);
    let case = case(geometries, numbers.number() >> 8);
    let mut ops = numbers.sequence(length);
    let Err(mut what) = run(&case, &ops) else {
        return Ok(());
    };
    // Leaves out what is not needed to fail.
    let mut index = ops.len();
    while index > 0 {
        index -= 1;
        let mut fewer = ops.clone();
        fewer.remove(index);
        if let Err(still) = run(&case, &fewer) {
            ops = fewer;
            what = still;
        }
    }
    Err(format!(
        "seed {seed}: {what}\ncase {case:#?}\nops {ops:#x?}"
    ))
}

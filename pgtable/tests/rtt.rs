//! The RTT operations against a plain reference of RMM's rules, and against
//! the model: results, levels and `top` must agree exactly.

mod judge;

use judge::driver::Seeded;
use judge::{Cpu, Judge, own};
use mmu_model::{EventKind, Owner, Reg};
use pgtable::{
    Attrs, Budget, ChangeDestroyed, Features, Fill, Geometry, Granule, HostPages, Ipa, Level, Pa,
    Removed, RemovedLeaf, Ripas, Rtt, RttAt, RttError, RttState, Stage2Config, TableMem, Vmid,
};
use std::collections::HashMap;

/// An RTT entry, after TF-RMM (lib/s2tt), not after `pgtable`.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Unassigned(Ripas),
    Assigned(Ripas, u64),
    UnassignedNs,
    AssignedNs(u64),
    Table(Table),
}

#[derive(Clone, Debug, PartialEq)]
struct Table {
    pa: u64,
    /// Entries that are not `rest`.
    held: HashMap<usize, Node>,
    rest: Box<Node>,
    entries: usize,
}

impl Node {
    fn live(&self) -> bool {
        matches!(
            self,
            Self::Assigned(..) | Self::AssignedNs(_) | Self::Table(_)
        )
    }
    fn counted(&self) -> bool {
        matches!(self, Self::Assigned(..) | Self::Table(_))
    }
}

impl Table {
    fn get(&self, index: usize) -> &Node {
        self.held.get(&index).unwrap_or(&self.rest)
    }
    fn count(&self) -> usize {
        let others = if self.rest.counted() {
            self.entries - self.held.len()
        } else {
            0
        };
        others + self.held.values().filter(|node| node.counted()).count()
    }
}

struct Reference {
    root: Table,
    geometry: Geometry,
    protected_end: u64,
}

type Reply<T> = Result<T, RttError>;

impl Reference {
    fn start(&self) -> i8 {
        self.geometry.start().get()
    }

    fn span(&self, level: i8) -> u64 {
        self.geometry.span(Level::new(level).unwrap())
    }

    /// Entries of a table that is no root.
    fn table_entries(&self) -> usize {
        (self.span(2) / self.span(3)) as usize
    }

    fn index(&self, level: i8, ipa: u64) -> usize {
        let level = Level::new(level).unwrap();
        self.geometry.shape().index(level, Ipa::new(ipa))
    }

    /// The table that a walk to `level` ends in, and its level.
    fn walk(&self, ipa: u64, level: i8) -> (&Table, i8) {
        let mut at = self.start();
        let mut table = &self.root;
        while at < level
            && let Node::Table(next) = table.get(self.index(at, ipa))
        {
            at += 1;
            table = next;
        }
        (table, at)
    }

    fn node(&self, ipa: u64, level: i8) -> (&Node, i8) {
        let (table, at) = self.walk(ipa, level);
        (table.get(self.index(at, ipa)), at)
    }

    /// Puts `node` into the table of `level`.
    fn put(&mut self, ipa: u64, level: i8, node: Node) {
        let shape = *self.geometry.shape();
        let index = |at: i8| shape.index(Level::new(at).unwrap(), Ipa::new(ipa));
        let mut table = &mut self.root;
        for at in self.geometry.start().get()..level {
            let Some(Node::Table(next)) = table.held.get_mut(&index(at)) else {
                panic!("no table of level {} at {ipa:#x}", at + 1);
            };
            table = next;
        }
        table.held.insert(index(level), node);
    }

    /// RMM's skip over entries that are not live.
    fn top(&self, ipa: u64, level: i8) -> u64 {
        let (table, at) = self.walk(ipa, level);
        let index = self.index(at, ipa);
        if table.get(index).live() {
            return ipa;
        }
        let entries = self.table_entries();
        let span = self.span(at);
        let mut next = ipa & !(span - 1);
        let end = ((index / entries + 1) * entries).min(table.entries);
        for other in index + 1..end {
            next += span;
            if table.get(other).live() {
                return next;
            }
        }
        next + span
    }

    fn fault<T>(&self, ipa: u64, level: i8, at: i8) -> Reply<T> {
        let top = Ipa::new(self.top(ipa, level));
        Err(RttError::Rtt {
            level: Level::new(at).unwrap(),
            top,
        })
    }

    fn valid(&self, ipa: u64, aligned: i8) -> bool {
        ipa < 1 << self.geometry.ipa_bits() && ipa.is_multiple_of(self.span(aligned))
    }

    fn create(&mut self, ipa: u64, level: i8, rtt: u64) -> Reply<()> {
        if level <= self.start() || level > 3 || !self.valid(ipa, level - 1) {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, level - 1);
        if at < level - 1 || matches!(node, Node::Table(_)) {
            return self.fault(ipa, level - 1, at);
        }
        let node = node.clone();
        let entries = self.table_entries();
        let step = self.span(level);
        let mut held = HashMap::new();
        let part = |index: usize| match &node {
            Node::Assigned(ripas, pa) => Node::Assigned(*ripas, pa + index as u64 * step),
            Node::AssignedNs(pa) => Node::AssignedNs(pa + index as u64 * step),
            other => other.clone(),
        };
        if node.live() {
            held = (0..entries).map(|index| (index, part(index))).collect();
        }
        let table = Table {
            pa: rtt,
            held,
            rest: Box::new(node),
            entries,
        };
        self.put(ipa, level - 1, Node::Table(table));
        Ok(())
    }

    fn destroy(&mut self, ipa: u64, level: i8) -> Reply<(u64, u64)> {
        if level <= self.start() || level > 3 || !self.valid(ipa, level - 1) {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, level - 1);
        let Node::Table(table) = node else {
            return self.fault(ipa, level - 1, at);
        };
        let pa = table.pa;
        if table.count() != 0 {
            let level = Level::new(level).unwrap();
            return Err(RttError::Rtt {
                level,
                top: Ipa::new(ipa),
            });
        }
        let blank = if ipa < self.protected_end {
            Node::Unassigned(Ripas::Destroyed)
        } else {
            Node::UnassignedNs
        };
        self.put(ipa, level - 1, blank);
        Ok((pa, self.top(ipa, level - 1)))
    }

    fn fold(&mut self, ipa: u64, level: i8) -> Reply<u64> {
        if level <= self.start() || level > 3 || !self.valid(ipa, level - 1) {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, level - 1);
        let Node::Table(table) = node else {
            return self.fault(ipa, level - 1, at);
        };
        let refuse = Err(RttError::Rtt {
            level: Level::new(level).unwrap(),
            top: Ipa::new(ipa),
        });
        let first = table.get(0).clone();
        let step = self.span(level);
        let leaf_ok =
            |least: i8| level > least && self.geometry.leaf_ok(Level::new(level - 1).unwrap());
        for index in 0..table.entries {
            let fits = match (&first, table.get(index)) {
                (Node::Assigned(ripas, pa), Node::Assigned(other, to)) => {
                    leaf_ok(1)
                        && ripas == other
                        && pa % self.span(level - 1) == 0
                        && *to == pa + index as u64 * step
                }
                (Node::AssignedNs(pa), Node::AssignedNs(to)) => {
                    leaf_ok(1) && pa % self.span(level - 1) == 0 && *to == pa + index as u64 * step
                }
                (Node::Table(_), _) => false,
                (one, other) => !one.live() && one == other,
            };
            if !fits {
                return refuse;
            }
        }
        let pa = table.pa;
        self.put(ipa, level - 1, first);
        Ok(pa)
    }

    fn data_create(&mut self, ipa: u64, pa: u64, fill: Fill) -> Reply<()> {
        if !self.valid(ipa, 3) || ipa >= self.protected_end {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, 3);
        let &Node::Unassigned(was) = node else {
            return self.fault(ipa, 3, at);
        };
        if at != 3 {
            return self.fault(ipa, 3, at);
        }
        let ripas = if fill == Fill::Known { Ripas::Ram } else { was };
        self.put(ipa, 3, Node::Assigned(ripas, pa));
        Ok(())
    }

    fn data_destroy(&mut self, ipa: u64) -> Reply<(u64, u64)> {
        if !self.valid(ipa, 3) || ipa >= self.protected_end {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, 3);
        let &Node::Assigned(ripas, pa) = node else {
            return self.fault(ipa, 3, at);
        };
        if at != 3 {
            return self.fault(ipa, 3, at);
        }
        let left = if ripas == Ripas::Empty {
            Ripas::Empty
        } else {
            Ripas::Destroyed
        };
        self.put(ipa, 3, Node::Unassigned(left));
        Ok((pa, self.top(ipa, 3)))
    }

    fn map(&mut self, ipa: u64, level: i8, pa: u64) -> Reply<()> {
        let usable = self.geometry.leaf_ok(Level::new(level).unwrap());
        if !self.valid(ipa, level) || ipa < self.protected_end || level < 1 || !usable {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, level);
        if at != level || *node != Node::UnassignedNs {
            return self.fault(ipa, level, at);
        }
        self.put(ipa, level, Node::AssignedNs(pa));
        Ok(())
    }

    fn unmap(&mut self, ipa: u64, level: i8) -> Reply<(u64, u64)> {
        let usable = self.geometry.leaf_ok(Level::new(level).unwrap());
        if !self.valid(ipa, level) || ipa < self.protected_end || level < 1 || !usable {
            return Err(RttError::Input);
        }
        let (node, at) = self.node(ipa, level);
        let &Node::AssignedNs(pa) = node else {
            return self.fault(ipa, level, at);
        };
        if at != level {
            return self.fault(ipa, level, at);
        }
        self.put(ipa, level, Node::UnassignedNs);
        Ok((pa, self.top(ipa, level)))
    }

    fn ripas_run(
        &mut self,
        base: u64,
        top: u64,
        change: impl Fn(&Node) -> Option<Node>,
    ) -> Reply<u64> {
        let page = self.geometry.granule().page_size();
        if !self.valid(base, 3)
            || base >= top
            || top > self.protected_end
            || !top.is_multiple_of(page)
        {
            return Err(RttError::Input);
        }
        let (_, at) = self.walk(base, 3);
        let span = self.span(at);
        let entries = self.table_entries();
        let mut here = base;
        let mut index = self.index(at, base);
        while here.is_multiple_of(span) && here + span <= top {
            let (node, _) = self.node(here, at);
            let Some(new) = change(node) else { break };
            self.put(here, at, new);
            here += span;
            index += 1;
            if index.is_multiple_of(entries)
                || index == self.geometry.shape().root_entries() && at == self.start()
            {
                break;
            }
        }
        if here == base {
            self.fault(base, 3, at)
        } else {
            Ok(here)
        }
    }

    fn init_ripas(&mut self, base: u64, top: u64) -> Reply<u64> {
        self.ripas_run(base, top, |node| match node {
            Node::Unassigned(_) => Some(Node::Unassigned(Ripas::Ram)),
            _ => None,
        })
    }

    fn set_ripas(&mut self, base: u64, top: u64, to: Ripas, how: ChangeDestroyed) -> Reply<u64> {
        self.ripas_run(base, top, |node| match node {
            Node::Unassigned(Ripas::Destroyed) | Node::Assigned(Ripas::Destroyed, _)
                if how == ChangeDestroyed::No =>
            {
                None
            }
            Node::Unassigned(_) => Some(Node::Unassigned(to)),
            Node::Assigned(_, pa) => Some(Node::Assigned(to, *pa)),
            _ => None,
        })
    }
}

/// Calls a command with small budgets until it says how it went.
fn in_steps<T>(kind: u64, mut command: impl FnMut(&mut Budget) -> Reply<T>) -> Reply<T> {
    for _ in 0..100_000 {
        let mut budget = match kind >> 30 & 3 {
            0 => Budget::unlimited(),
            _ => Budget::entries(kind >> 32 & 0x7f),
        };
        match command(&mut budget) {
            Err(RttError::Again) => (),
            answer => return answer,
        }
    }
    panic!("a command without end");
}

struct Realm<'j> {
    judge: &'j Judge,
    rtt: Rtt<&'j Judge>,
    reference: Reference,
    memory: u64,
    /// How often each operation succeeded.
    done: HashMap<&'static str, u64>,
}

impl Realm<'_> {
    fn same<T: PartialEq + std::fmt::Debug>(
        &mut self,
        what: &'static str,
        got: Reply<T>,
        want: Reply<T>,
    ) {
        if got.is_ok() {
            *self.done.entry(what).or_insert(0) += 1;
        }
        if got != want {
            self.judge
                .complain(format!("{what}: {got:x?}, reference {want:x?}"));
        }
    }

    /// An IPA that meets tables: few bits differ from a few places.
    fn ipa(&self, numbers: &mut Seeded) -> u64 {
        let geometry = &self.reference.geometry;
        let n = numbers.number();
        let half = 1u64 << (geometry.ipa_bits() - 1);
        let page = geometry.granule().page_size();
        if half / page <= 256 {
            // Two blocks of level 1 and all that is in them, in each half.
            let pages = 2 * geometry.span(Level::L1) / page;
            return (n & 1) * half + (n >> 1) % pages * page;
        }
        let span = geometry.span(Level::L2);
        let place = [0, half - span * 2, half, 2 * half - 2 * span][(n & 3) as usize];
        let offset = match n >> 2 & 7 {
            0..=3 => (n >> 5 & 3) * page,
            4 => span - page,
            5 => span + (n >> 5 & 3) * page,
            6 => span,
            _ => 0,
        };
        let odd = if n >> 8 & 31 == 31 { 8 } else { 0 };
        place + offset + odd
    }

    /// RTT_CREATE, and what comes of it.
    fn create(&mut self, cpu: &mut Cpu<'_>, ipa: u64, level: i8) {
        let page = self.judge.alloc(Level::L3).unwrap();
        let over = matches!(
            self.reference.walk(ipa, level - 1),
            (table, 1) if matches!(table.get(self.reference.index(1, ipa)), Node::Assigned(..))
        );
        let typed = Level::new(level).unwrap();
        let got = self.rtt.create(cpu, RttAt::new(Ipa::new(ipa), typed), page);
        if got.is_err() {
            give_back(self.judge, page);
        } else if over {
            *self.done.entry("create over level 1").or_insert(0) += 1;
        }
        let want = self.reference.create(ipa, level, page.get());
        self.same("create", got, want);
    }

    /// RTT_FOLD, and what comes of it.
    fn fold(&mut self, cpu: &mut Cpu<'_>, ipa: u64, level: i8) {
        let typed = Level::new(level).unwrap();
        let got = self.rtt.fold(cpu, RttAt::new(Ipa::new(ipa), typed));
        let want = self.reference.fold(ipa, level);
        if let Ok(page) = got {
            give_back(self.judge, page);
            if matches!(self.reference.node(ipa, level - 1), (Node::Assigned(..), 1)) {
                *self.done.entry("fold to level 1").or_insert(0) += 1;
            }
        }
        self.same("fold", got.map(Pa::get), want);
    }

    /// Where an IPA's memory lies. Bit 16 of a block is nT, which is address in
    /// the smallest tables: not used there.
    fn own_place(&self, ipa: u64) -> u64 {
        if self.reference.table_entries() == 4 {
            ipa & 0xffff | (ipa >> 16) << 17
        } else {
            ipa
        }
    }

    /// DATA_CREATE of a page of the realm's at its own place. False when it
    /// was refused.
    fn data(&mut self, cpu: &mut Cpu<'_>, ipa: u64, fill: Fill) -> bool {
        let page = self.reference.geometry.granule().page_size();
        let to = (self.memory + self.own_place(ipa & 0xff_ffff)) & !(page - 1);
        own(self.judge, to, page, Owner::Vmid(7));
        let got = self.rtt.data_create(cpu, Ipa::new(ipa), Pa::new(to), fill);
        let want = self.reference.data_create(ipa, to, fill);
        let done = got.is_ok();
        self.same("data_create", got, want);
        done
    }

    /// All pages of an entry of level 1 become data, and are folded upwards.
    fn assign_level_1(&mut self, cpu: &mut Cpu<'_>, ipa: u64, fill: Fill) {
        let spans = [1, 2, 3].map(|level| self.reference.span(level));
        let base = ipa & !(spans[0] - 1);
        self.create(cpu, base & !(self.reference.span(0) - 1), 1);
        self.create(cpu, base, 2);
        for table in (base..base + spans[0]).step_by(spans[1] as usize) {
            self.create(cpu, table, 3);
            for page in (table..table + spans[1]).step_by(spans[2] as usize) {
                self.data(cpu, page, fill);
            }
            self.fold(cpu, table, 3);
        }
        self.fold(cpu, base, 2);
    }

    /// One command, by the bits of a number.
    fn step(&mut self, numbers: &mut Seeded) {
        let kind = numbers.number();
        self.judge.pe.set((kind >> 16 & 1) as u8);
        let ipa = self.ipa(numbers);
        let start = self.reference.geometry.start().get();
        let level = start + (numbers.number() % (4 - start) as u64) as i8;
        let call = Call { kind, ipa, level };
        let cpu = &mut Cpu(self.judge);
        match kind % 16 {
            // Down to a random depth, as a host does.
            0..=3 => self.create(cpu, self.table_of(&call), level),
            4 | 5 => self.destroy(cpu, &call),
            6 => self.fold(cpu, self.table_of(&call), level),
            7 | 8 => self.assign(cpu, &call),
            9 => {
                let got = self.rtt.data_destroy(cpu, Ipa::new(ipa)).map(plain);
                let want = self.reference.data_destroy(ipa);
                self.same("data_destroy", got, want);
            }
            10 | 11 => self.map(cpu, &call),
            12 => {
                let (at, level) = (Ipa::new(ipa), call.typed());
                let got = in_steps(kind, |budget| {
                    self.rtt.unmap_unprotected(cpu, at, level, budget)
                });
                let want = self.reference.unmap(ipa, call.level);
                self.same("unmap_unprotected", got.map(plain), want);
            }
            13 => {
                let end = self.ipa(numbers);
                self.init_ripas(ipa, end);
            }
            14 => {
                let end = self.ipa(numbers);
                self.set_ripas(cpu, &call, end);
            }
            _ => self.read(&call),
        }
        // Quiet everywhere: no TLB may know better.
        if kind >> 28 & 3 == 0 {
            let hi = 1 << self.reference.geometry.ipa_bits();
            self.judge.event(EventKind::Quiesce { lo: 0, hi });
        }
    }

    /// Mostly where a table of the call's level begins.
    fn table_of(&self, call: &Call) -> u64 {
        let start = self.reference.geometry.start().get();
        if call.kind >> 20 & 7 == 0 || call.level == start {
            call.ipa
        } else {
            call.ipa & !(self.reference.span(call.level - 1) - 1)
        }
    }

    fn destroy(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let ipa = self.table_of(call);
        let table = RttAt::new(Ipa::new(ipa), call.typed());
        let mut gone = Vec::new();
        let mut sink = |leaf: RemovedLeaf| gone.push((leaf.pa().get(), leaf.size()));
        let got = in_steps(call.kind, |budget| {
            self.rtt.destroy(cpu, table, &mut sink, budget)
        });
        let want = self.reference.destroy(ipa, call.level);
        if let Ok(removed) = got {
            give_back(self.judge, removed.pa);
        }
        self.same("destroy", got.map(plain), want);
    }

    /// Data: mostly one page after another, so that folds succeed.
    fn assign(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let (kind, geometry) = (call.kind, self.reference.geometry);
        let page = geometry.granule().page_size();
        let fill = match kind >> 24 & 3 {
            0 => Fill::Unknown,
            _ => Fill::Known,
        };
        let (ipa, many) = match kind >> 26 & 3 {
            0 => {
                let table = call.ipa & !(self.reference.span(2) - 1);
                (table, self.reference.table_entries().min(2048))
            }
            _ => (call.ipa, 1),
        };
        if kind >> 28 & 3 == 0 && geometry.start().get() == 0 && is_toy(&geometry) {
            self.assign_level_1(cpu, ipa & !(page - 1), fill);
            return;
        }
        for index in 0..many as u64 {
            if !self.data(cpu, ipa + index * page, fill) {
                break;
            }
        }
    }

    /// RTT_MAP_UNPROTECTED of the host's memory.
    fn map(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let (ipa, level) = (call.ipa, call.level);
        let span = self.reference.span(level);
        let place = self.own_place(ipa & 0xffff_ffff);
        let to = (self.memory + (64 << 30) + place) & !(span - 1);
        own(self.judge, to, span, Owner::Shared);
        let pages = HostPages {
            ipa: Ipa::new(ipa),
            level: call.typed(),
            pa: Pa::new(to),
            attrs: Attrs::MEMORY,
            count: 1,
        };
        let got = in_steps(call.kind, |budget| {
            self.rtt.map_unprotected(cpu, &pages, budget)
        });
        let want = self.reference.map(ipa, level, to);
        self.same("map_unprotected", got.map(|_| ()), want);
    }

    fn init_ripas(&mut self, ipa: u64, end: u64) {
        let mut told = 0;
        let measured = |from: Ipa, to: Ipa| told += to.get() - from.get();
        let got = self
            .rtt
            .init_ripas(Ipa::new(ipa)..Ipa::new(end), measured)
            .map(Ipa::get);
        if let Ok(top) = got
            && told != top - ipa
        {
            let what = format!("measured {told:#x} of {:#x}", top - ipa);
            self.judge.complain(what);
        }
        let want = self.reference.init_ripas(ipa, end);
        self.same("init_ripas", got, want);
    }

    fn set_ripas(&mut self, cpu: &mut Cpu<'_>, call: &Call, end: u64) {
        let to = match call.kind >> 24 & 1 {
            0 => Ripas::Ram,
            _ => Ripas::Empty,
        };
        let how = match call.kind >> 25 & 1 {
            0 => ChangeDestroyed::No,
            _ => ChangeDestroyed::Yes,
        };
        let range = Ipa::new(call.ipa)..Ipa::new(end);
        let got = self.rtt.set_ripas(cpu, range, to, how).map(Ipa::get);
        let want = self.reference.set_ripas(call.ipa, end, to, how);
        self.same("set_ripas", got, want);
    }

    fn read(&mut self, call: &Call) {
        let got = self.rtt.read(Ipa::new(call.ipa), call.typed());
        let got = got.map(|entry| (entry.level.get(), entry.state));
        let want = if self.reference.valid(call.ipa, call.level) {
            let (node, reached) = self.reference.node(call.ipa, call.level);
            Ok((reached, state_of(node)))
        } else {
            Err(RttError::Input)
        };
        self.same("read", got, want);
    }

    fn check(&self) {
        let mut tables = vec![&self.reference.root];
        while let Some(table) = tables.pop() {
            let count = self.judge.count(Pa::new(table.pa)) as usize;
            if count != table.count() {
                let want = table.count();
                self.judge
                    .complain(format!("{:#x} counts {count}, reference {want}", table.pa));
            }
            for node in table.held.values() {
                if let Node::Table(below) = node {
                    tables.push(below);
                }
            }
        }
    }
}

/// What one command is made of.
struct Call {
    /// Its choices, by bits.
    kind: u64,
    ipa: u64,
    level: i8,
}

impl Call {
    fn typed(&self) -> Level {
        Level::new(self.level).expect("a level")
    }
}

/// Address and `top` of what was removed.
fn plain(removed: Removed) -> (u64, u64) {
    (removed.pa.get(), removed.top.get())
}

/// What reading an entry must say of it.
fn state_of(node: &Node) -> RttState {
    match *node {
        Node::Unassigned(ripas) => RttState::Unassigned(ripas),
        Node::Assigned(ripas, pa) => {
            let pa = Pa::new(pa);
            RttState::Assigned { ripas, pa }
        }
        Node::UnassignedNs => RttState::UnassignedNs,
        Node::AssignedNs(pa) => {
            let (pa, attrs) = (Pa::new(pa), Attrs::MEMORY.soft(1));
            RttState::AssignedNs { pa, attrs }
        }
        Node::Table(ref table) => RttState::Table(Pa::new(table.pa)),
    }
}

/// A page that the operations gave back: its count is 0, its content stays.
fn give_back(judge: &Judge, page: Pa) {
    if judge.count(page) != 0 {
        judge.complain(format!("{page} came back counting {}", judge.count(page)));
    }
    judge.give_back(page);
}

/// True of tables of four entries: no CPU has so few IPAs.
fn is_toy(geometry: &Geometry) -> bool {
    geometry.ipa_bits() < 32
}

/// A format by the bits of a number, and the judge of its like.
fn format(number: u64) -> Result<(Geometry, Judge), String> {
    // Tables of four entries now and then, where folds reach level 1.
    let toy = number >> 24 & 3 == 0;
    let granule = if toy {
        Granule::K4
    } else {
        Granule::ALL[(number % 8 / 3) as usize]
    };
    let mut config = Stage2Config::new(granule, 33 + (number >> 8 & 7) as u8, 48);
    let features = Features {
        tlb_range: number >> 16 & 1 == 0,
        ttl: number >> 17 & 1 == 0,
        fwb: true,
        dic: true,
        xnx: true,
        hw_access_flag: number >> 18 & 1 == 0,
        ..Features::default()
    };
    config.features = features;
    let geometry = if toy {
        Geometry::toy(2, 4, features)
    } else {
        config.validate().map_err(|error| error.to_string())?
    };
    let model = mmu_model::Features {
        pa_bits: 48,
        lpa2: false,
        tlbirange: features.tlb_range,
        ttl: features.ttl,
        hafdbs: u8::from(features.hw_access_flag),
        bbm: 0,
        ..mmu_model::Features::max()
    };
    let header = mmu_model::trace::Header {
        features: model,
        pes: 2,
        toy: toy.then_some((12, 2, 4)),
    };
    Ok((geometry, Judge::on(header, granule.page_size())))
}

/// A realm without tables but its root, and the reference of it.
fn realm(judge: &Judge, geometry: Geometry, protected_end: u64) -> Result<Realm<'_>, String> {
    let root = judge.root(geometry.root_align());
    let entries = geometry.shape().root_entries();
    let split = (protected_end >> geometry.shape().span_bits(geometry.start())) as usize;
    let half = Ipa::new(protected_end);
    let rtt = Rtt::new(geometry, root, Vmid::new(7), judge, half);
    let rtt = rtt.map_err(|error| error.to_string())?;
    for pe in 0..2 {
        judge.pe.set(pe);
        judge.event(EventKind::DSB_ISHST);
        if is_toy(&geometry) {
            judge.write(Reg::Vttbr, rtt.regs().vttbr);
            judge.event(EventKind::ISB);
        } else {
            judge.install(rtt.regs());
        }
    }
    let unassigned = |index| (index, Node::Unassigned(Ripas::Empty));
    let root = Table {
        pa: root.get(),
        held: (0..split).map(unassigned).collect(),
        rest: Box::new(Node::UnassignedNs),
        entries,
    };
    Ok(Realm {
        judge,
        rtt,
        reference: Reference {
            root,
            geometry,
            protected_end,
        },
        memory: 0x20_0000_0000,
        done: HashMap::new(),
    })
}

fn run(seed: u64, length: usize, done: &mut HashMap<&'static str, u64>) -> Result<(), String> {
    let mut numbers = Seeded::new(seed);
    let number = numbers.number();
    let (geometry, judge) = format(number)?;
    let ipa_bits = geometry.ipa_bits();
    let protected_end = match number >> 19 & 3 {
        0 => 0,
        _ => 1u64 << (ipa_bits - 1),
    };
    let mut it = realm(&judge, geometry, protected_end)?;
    for step in 0..length {
        it.step(&mut numbers);
        if step % 16 == 15 {
            it.check();
        }
        if let Some(what) = judge.broken.borrow().as_ref() {
            let granule = geometry.granule();
            return Err(format!(
                "seed {seed}, step {step}, {granule:?} {ipa_bits} bits: {what}"
            ));
        }
    }
    for (what, times) in it.done {
        *done.entry(what).or_insert(0) += times;
    }
    Ok(())
}

#[test]
fn rtt_operations_agree_with_the_reference() {
    let runs = std::env::var("PGTABLE_RTT_RUNS")
        .ok()
        .and_then(|text| text.parse().ok());
    let mut done = HashMap::new();
    for seed in 0..runs.unwrap_or(150) {
        if let Err(what) = run(seed, 120, &mut done) {
            panic!("{what}");
        }
    }
    // Each operation was not only refused.
    println!("{done:?}");
    for what in [
        "create",
        "destroy",
        "fold",
        "data_create",
        "data_destroy",
        "map_unprotected",
        "unmap_unprotected",
        "init_ripas",
        "set_ripas",
        "read",
        "fold to level 1",
        "create over level 1",
    ] {
        let times = done.get(what).copied().unwrap_or(0);
        assert!(times >= 5, "{what} succeeded {times} times only");
    }
}

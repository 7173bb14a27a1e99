//! The exact TLB: every entry that hardware may hold, one by one.
//!
//! Where the automaton keeps a state per entry, this keeps for every PE the set
//! of everything a TLB could hold at the probed addresses: walk-cache entries,
//! stage-2 leaves, and combined entries made from them. After each event every
//! PE walks every probe, from the root and from every walk-cache entry, with
//! old and new values of stores that are not complete, and keeps what it
//! finds. It is slow and meant for toy shapes; its use is to confirm that what
//! the automaton accepts is safe ([`Exact::on`] runs both).
//!
//! An issued TLBI may act at any time until its issuer's DSB. An item therefore
//! carries *conditions*: sets of issued TLBIs that must not have acted yet for
//! the item to be there. What memory alone yields has the empty condition; what
//! a doomed item yields inherits the doom only as far as the same TLBIs name
//! the new item as well, for else it outlives them. A DSB strikes the
//! conditions that name its TLBIs; an item without conditions is gone.

use std::collections::BTreeMap;

use crate::descriptor::Desc;
use crate::event::{Accesses, Barrier, Domain, Event, EventKind};
use crate::machine::{Machine, Verdict};
use crate::mem::{Owner, Use};
use crate::shape::{Regime, Shape, vmid};
use crate::tlbi::{Extent, TlbiKind, TlbiOp, decode};
use crate::violation::{Kind, Violation};
use crate::walker::{Above, Step, Translation, step};

/// What kind of thing a TLB holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum What {
    /// A table descriptor: leads to a table at `target`.
    Walk,
    /// A leaf of stage 2 alone (or of EL2 stage 1).
    Leaf,
    /// A leaf combined with a stage-1 translation: its IPA is forgotten.
    Combined,
}

/// One thing a TLB may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Item {
    what: What,
    regime_el2: bool,
    vmid: u16,
    level: i8,
    ia: u64,
    size_log2: u8,
    target: u64,
    desc: u64,
}

impl Item {
    fn covers(&self, ia: u64) -> bool {
        self.ia == ia & !((1 << self.size_log2) - 1)
    }
}

/// A TLBI that may not have acted yet.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    issuer: u8,
    targets: u8,
    kind: TlbiKind,
    extent: Option<Extent>,
    vmid: u16,
}

impl InFlight {
    fn names(&self, item: &Item) -> bool {
        let el2 = self.kind.regime() == Regime::El2;
        if el2 != item.regime_el2 {
            return false;
        }
        if !el2 && self.kind != TlbiKind::Alle1 && self.vmid != item.vmid {
            return false;
        }
        let Some(e) = self.extent else {
            return match self.kind {
                TlbiKind::Vmalle1 => item.what == What::Combined,
                _ => true,
            };
        };
        let overlaps = item.ia < e.hi && item.ia + (1 << item.size_log2) > e.lo;
        overlaps
            && match item.what {
                What::Walk => e.tables(),
                What::Leaf => e.leaf(item.level),
                What::Combined => false,
            }
    }
}

/// Sets of in-flight TLBIs, as bit masks; an antichain by inclusion.
type Conditions = Vec<u32>;

fn add_condition(set: &mut Conditions, mask: u32) -> bool {
    if set.iter().any(|&m| m & !mask == 0) {
        return false;
    }
    set.retain(|&m| mask & !m != 0);
    set.push(mask);
    true
}

/// The machine with the exact TLB of every PE beside it.
#[derive(Clone, Debug)]
pub struct Exact {
    machine: Machine,
    probes: Vec<u64>,
    tlbs: Vec<BTreeMap<Item, Conditions>>,
    in_flight: [Option<InFlight>; 32],
}

/// What the two judges say of one event.
#[derive(Clone, Debug)]
pub struct Verdicts {
    /// The automaton's verdict.
    pub automaton: Verdict,
    /// The exact TLB's.
    pub exact: Verdict,
}

impl Exact {
    /// Puts exact TLBs beside `machine`, probing these input addresses.
    pub fn new(machine: Machine, probes: Vec<u64>) -> Self {
        let pes = machine.pes.len();
        Self {
            machine,
            probes,
            tlbs: vec![BTreeMap::new(); pes],
            in_flight: [None; 32],
        }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Items in all TLBs.
    pub fn items(&self) -> usize {
        self.tlbs.iter().map(BTreeMap::len).sum()
    }

    /// Takes an event and asks both judges.
    pub fn on(&mut self, event: Event) -> Verdicts {
        let automaton = self.machine.on(event);
        let exact = self.follow(event);
        Verdicts { automaton, exact }
    }

    fn follow(&mut self, event: Event) -> Verdict {
        match event.kind {
            EventKind::Tlbi { op, xt } => self.issue(event.pe, op, xt)?,
            EventKind::Barrier(Barrier::Dsb(domain, Accesses::All)) => {
                self.complete(event.pe, domain != Domain::NonShareable);
            }
            _ => {}
        }
        for pe in 0..self.tlbs.len() {
            self.fill(pe as u8)?;
            self.check_conflicts(pe as u8)?;
        }
        if matches!(event.kind, EventKind::Own { .. } | EventKind::Alloc { .. }) {
            self.check_owners()?;
        }
        if let EventKind::Quiesce { lo, hi } = event.kind {
            for pe in 0..self.tlbs.len() {
                self.check_stale(pe as u8, lo, hi)?;
            }
        }
        Ok(())
    }

    fn issue(&mut self, pe: u8, op: TlbiOp, xt: u64) -> Verdict {
        if op.kind.is_stage1_address() {
            return Ok(());
        }
        let m = &self.machine;
        let regs = &m.pes[usize::from(pe)];
        let el2 = op.kind.regime() == Regime::El2;
        let shape = if el2 { regs.el2_shape } else { regs.shape };
        let extent = if op.kind.is_all() {
            None
        } else {
            let Some(Ok(extent)) = shape.map(|s| decode(op.kind, xt, &s, &m.features)) else {
                return Ok(());
            };
            if extent.mismatch.is_some() {
                return Ok(());
            }
            Some(extent)
        };
        let read = |v: u64| {
            if m.toy.is_some() {
                (v >> 48) as u16
            } else {
                vmid(v, regs.vtcr, &m.features)
            }
        };
        let current = read(regs.vttbr);
        let sure = regs.old_vttbr.is_none_or(|v| read(v) == current);
        if !el2 && !sure && op.kind != TlbiKind::Alle1 {
            return Ok(());
        }
        if op.kind == TlbiKind::Vmalle1 && regs.hcr >> 34 & 1 == 1 && regs.hcr >> 27 & 1 == 1 {
            return Ok(());
        }
        let Some(slot) = self.in_flight.iter().position(Option::is_none) else {
            // Too many at once to follow: this one is taken to do nothing.
            return Ok(());
        };
        let local = op.reach == crate::tlbi::Reach::Local;
        let flight = InFlight {
            issuer: pe,
            targets: if local { 1 << pe } else { m.all },
            kind: op.kind,
            extent,
            vmid: current,
        };
        self.in_flight[slot] = Some(flight);
        for (i, tlb) in self.tlbs.iter_mut().enumerate() {
            if flight.targets >> i & 1 == 0 {
                continue;
            }
            for (item, conditions) in tlb.iter_mut().filter(|(item, _)| flight.names(item)) {
                let _ = item;
                for mask in conditions.iter_mut() {
                    *mask |= 1 << slot;
                }
                let old = std::mem::take(conditions);
                for mask in old {
                    add_condition(conditions, mask);
                }
            }
        }
        Ok(())
    }

    fn complete(&mut self, pe: u8, wide: bool) {
        let wide = wide || self.tlbs.len() == 1;
        for slot in 0..self.in_flight.len() {
            let Some(flight) = self.in_flight[slot].filter(|f| f.issuer == pe) else {
                continue;
            };
            for (i, tlb) in self.tlbs.iter_mut().enumerate() {
                let here = flight.targets >> i & 1 == 1 && (wide || i == usize::from(pe));
                if !here {
                    continue;
                }
                tlb.retain(|_, conditions| {
                    conditions.retain(|mask| mask >> slot & 1 == 0);
                    !conditions.is_empty()
                });
            }
            let left = flight.targets & !(1 << pe);
            if wide || left == 0 {
                self.in_flight[slot] = None;
            } else if let Some(f) = &mut self.in_flight[slot] {
                f.targets = left;
            }
        }
    }

    /// In-flight TLBIs that reach `pe` and name `item`.
    fn named_by(&self, pe: u8, item: &Item) -> u32 {
        self.in_flight
            .iter()
            .enumerate()
            .filter_map(|(slot, f)| {
                let f = f.as_ref()?;
                (f.targets >> pe & 1 == 1 && f.names(item)).then_some(1 << slot)
            })
            .fold(0, |a, b| a | b)
    }

    /// Adds an item that sources with these conditions yield.
    fn add(&mut self, pe: u8, item: Item, sources: &[u32]) {
        let named = self.named_by(pe, &item);
        let conditions = self.tlbs[usize::from(pe)].entry(item).or_default();
        for &mask in sources {
            add_condition(conditions, mask & named);
        }
    }

    /// Walks every probe from every place a walk may begin.
    fn fill(&mut self, pe: u8) -> Verdict {
        let regs = &self.machine.pes[usize::from(pe)];
        for (tree, context) in [regs.stage2, regs.el2].into_iter().flatten() {
            let t = &self.machine.trees[tree as usize];
            if t.retired {
                continue;
            }
            let (shape, root, mair) = (t.shape, t.root, t.mair);
            let vmid = self.machine.contexts[context as usize].vmid;
            for i in 0..self.probes.len() {
                let ia = self.probes[i];
                self.fill_probe(pe, &shape, (root, mair, vmid), ia)?;
            }
        }
        Ok(())
    }

    fn fill_probe(
        &mut self,
        pe: u8,
        shape: &Shape,
        (root, mair, vmid): (u64, u64, u16),
        ia: u64,
    ) -> Verdict {
        let el2 = shape.regime == Regime::El2;
        // Tables to read at this level, with the conditions of being there.
        let mut here: Vec<(u64, Conditions)> = vec![(root, vec![0])];
        for level in shape.start..=3 {
            let mut next: Vec<(u64, Conditions)> = Vec::new();
            for (table, conditions) in here {
                let pa = table + shape.index(level, ia) * 8;
                self.check_table_page(pe, pa, ia, level)?;
                for word in self.machine.visible(pe, pa) {
                    let size_log2 = shape.shift(level);
                    let mut item = Item {
                        what: What::Walk,
                        regime_el2: el2,
                        vmid,
                        level,
                        ia: ia & !((1 << size_log2) - 1),
                        size_log2,
                        target: 0,
                        desc: word,
                    };
                    match step(shape, mair, (level, word), ia, Above::default()) {
                        Step::Next(below, _) => {
                            item.target = below;
                            // What only matters is where it leads.
                            item.desc = 0;
                            self.add(pe, item, &conditions);
                        }
                        Step::End(Ok(leaf)) => {
                            for item in as_cached(shape, item, &leaf) {
                                self.fill_leaf(pe, item, &conditions);
                            }
                        }
                        Step::End(Err(_)) => {}
                    }
                }
            }
            // From the walk cache, old entries as well as those just added.
            for (item, conditions) in &self.tlbs[usize::from(pe)] {
                let fits = item.what == What::Walk
                    && item.regime_el2 == el2
                    && item.vmid == vmid
                    && item.level == level
                    && item.covers(ia);
                if fits {
                    next.push((item.target, conditions.clone()));
                }
            }
            here = next;
        }
        Ok(())
    }

    fn fill_leaf(&mut self, pe: u8, item: Item, conditions: &[u32]) {
        self.add(pe, item, conditions);
        if !item.regime_el2 {
            // Stage 1 may use the stage-2 entry at any time.
            let from = self.tlbs[usize::from(pe)][&item].clone();
            let combined = Item {
                what: What::Combined,
                ..item
            };
            self.add(pe, combined, &from);
        }
    }

    fn violation(&self, kind: Kind, pe: u8, ia: u64, detail: String) -> Box<Violation> {
        let mut v = self.machine.violation(kind, detail);
        v.pe = pe;
        v.ia = Some(ia);
        v
    }

    fn check_table_page(&self, pe: u8, pa: u64, ia: u64, level: i8) -> Verdict {
        match self.machine.mem.use_at(pa) {
            Use::Table | Use::Unknown | Use::Data(Owner::Hypervisor) => Ok(()),
            other => Err(self.violation(
                Kind::FreeWhileCached,
                pe,
                ia,
                format!("the walker reads level {level} at {pa:#x}, which is {other:?}"),
            )),
        }
    }

    /// Leaves and combined entries that a lookup of `ia` may hit.
    fn hits(&self, pe: u8, ia: u64) -> Vec<Item> {
        let regs = &self.machine.pes[usize::from(pe)];
        let mut out = Vec::new();
        for (tree, context) in [regs.stage2, regs.el2].into_iter().flatten() {
            let el2 = self.machine.shape_of(tree).regime == Regime::El2;
            let vmid = self.machine.contexts[context as usize].vmid;
            out.extend(self.tlbs[usize::from(pe)].keys().filter(|item| {
                item.what != What::Walk
                    && item.regime_el2 == el2
                    && item.vmid == vmid
                    && item.covers(ia)
            }));
        }
        out
    }

    fn shape_and_mair(&self, pe: u8, el2: bool) -> Option<(Shape, u64, u64)> {
        let regs = &self.machine.pes[usize::from(pe)];
        let (tree, _) = if el2 { regs.el2 } else { regs.stage2 }?;
        let t = &self.machine.trees[tree as usize];
        Some((t.shape, t.mair, t.root))
    }

    /// No two entries for one address may contradict each other.
    fn check_conflicts(&self, pe: u8) -> Verdict {
        for &ia in &self.probes {
            let hits = self.hits(pe, ia);
            for (i, a) in hits.iter().enumerate() {
                let Some((shape, mair, _)) = self.shape_and_mair(pe, a.regime_el2) else {
                    continue;
                };
                let at = shape.attrs(a.level, a.desc, mair);
                for b in &hits[i + 1..] {
                    if a.regime_el2 != b.regime_el2 {
                        continue;
                    }
                    let bt = shape.attrs(b.level, b.desc, mair);
                    let same_place = a.target + (ia - a.ia) == b.target + (ia - b.ia);
                    let same_type = at.memory == bt.memory && at.sh == bt.sh;
                    if !same_place || !same_type {
                        return Err(self.violation(
                            Kind::MakeWhileUnclean,
                            pe,
                            ia,
                            format!("two entries differ: {:#x} and {:#x}", a.desc, b.desc),
                        ));
                    }
                    let same_size = a.level == b.level && at.contiguous == bt.contiguous;
                    if !same_size && self.machine.features.bbm < 2 {
                        return Err(self.violation(
                            Kind::ConflictingSizes,
                            pe,
                            ia,
                            format!("levels {} and {}", a.level, b.level),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// No entry may lead to memory that its VMID does not own.
    fn check_owners(&self) -> Verdict {
        for (pe, tlb) in self.tlbs.iter().enumerate() {
            for item in tlb.keys() {
                if item.what == What::Walk || item.regime_el2 {
                    continue;
                }
                let size = 1u64 << item.size_log2;
                for (lo, _, usage) in self.machine.mem.uses(item.target, size) {
                    let fine = match usage {
                        Use::Unknown | Use::Data(Owner::Shared) => true,
                        Use::Data(Owner::Vmid(v)) => v == item.vmid,
                        _ => false,
                    };
                    if !fine {
                        return Err(self.violation(
                            Kind::OutputNotOwned,
                            pe as u8,
                            item.ia,
                            format!("a TLB entry leads to {lo:#x}, which is {usage:?}"),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// What may be hit is what the newest walk says, and no more rights.
    fn check_stale(&self, pe: u8, lo: u64, hi: u64) -> Verdict {
        for &ia in self.probes.iter().filter(|ia| (lo..hi).contains(ia)) {
            for item in self.hits(pe, ia) {
                let Some((shape, mair, root)) = self.shape_and_mair(pe, item.regime_el2) else {
                    continue;
                };
                let load = |pa| self.machine.mem.load(pa);
                let newest = crate::walker::walk(&shape, root, mair, ia, load);
                let old = shape.attrs(item.level, item.desc, mair);
                let fine = match newest {
                    Ok(now) => {
                        now.pa == item.target + (ia - item.ia)
                            && now.attrs.memory == old.memory
                            && now.attrs.perms.covers(old.perms)
                    }
                    // The access flag may be noticed late.
                    Err(fault) => fault.kind == crate::FaultKind::AccessFlag,
                };
                if !fine {
                    return Err(self.violation(
                        Kind::StaleTranslation,
                        pe,
                        ia,
                        format!("a {:?} entry still says {:#x}", item.what, item.desc),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// How a TLB may hold the leaf at the end of a walk: as it is, and as its whole
/// contiguous group.
fn as_cached(shape: &Shape, mut item: Item, leaf: &Translation) -> Vec<Item> {
    let Desc::Leaf(oa) = shape.decode(item.level, item.desc) else {
        return Vec::new();
    };
    item.what = What::Leaf;
    item.target = oa;
    let mut sizes = vec![item];
    if leaf.attrs.contiguous {
        let mut group = item;
        group.size_log2 += shape.group_log2(item.level);
        let low = (1u64 << group.size_log2) - 1;
        group.ia &= !low;
        group.target = oa.wrapping_sub(item.ia - group.ia);
        sizes.push(group);
    }
    sizes
}

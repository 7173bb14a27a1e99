//! The machine: PEs, memory, and every tree a PE has ever installed.
//!
//! [`Machine::on`] takes one event and says whether a rule was broken. The rules
//! are in the modules beside this one: `install` follows registers, `tree`,
//! `leaf`, `link` and `group` descriptors, `maintain` barriers and TLBIs, `pages`
//! ownership, `fault` faults that repeat; `check` answers questions and `blame`
//! says what was left out.

use crate::event::{Accesses, Barrier, Domain, Event, EventKind, How, Reg};
use crate::features::Features;
use crate::hash::FastMap;
use crate::mem::{LastStore, Mem};
use crate::ranges::RangeMap;
use crate::shape::{Regime, Shape};
use crate::spec::Spec;
use crate::tree::Stored;
use crate::unclean::{MAX_PES, PeMask, Unclean};
use crate::violation::{Kind, Violation};

/// A store that some walkers may not see yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub pa: u64,
    pub old: u64,
    pub event: u64,
    /// The PE's own walker sees the new value.
    pub local: bool,
}

/// A change to the tables that a PE's own EL2 runs on, until it may rely on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum El2Change {
    #[default]
    None,
    /// Stored.
    Stored,
    /// Completed by a DSB; an ISB is due.
    Visible,
}

/// One PE.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pe {
    pub vttbr: u64,
    pub vtcr: u64,
    pub hcr: u64,
    pub ttbr0: u64,
    pub tcr: u64,
    pub mair: u64,
    /// VTTBR_EL2 before the first write since the last ISB.
    pub old_vttbr: Option<u64>,
    /// A register was written since the last ISB.
    pub unsynced: bool,
    /// The registers changed since the trees below were looked up.
    pub unsettled: bool,
    pub shape: Option<Shape>,
    pub el2_shape: Option<Shape>,
    /// Installed stage 2: tree and context.
    pub stage2: Option<(u32, u32)>,
    /// Installed EL2 stage 1.
    pub el2: Option<(u32, u32)>,
    pub pending: Vec<Pending>,
    /// Last event that ordered earlier stores before later ones.
    pub ordered: u64,
    /// Last event that completed earlier stores.
    pub completed: u64,
    /// A TLBI was completed and no ISB followed.
    pub needs_isb: bool,
    pub el2_change: El2Change,
}

/// A tree of tables, from the first time a PE installed it.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub shape: Shape,
    pub root: u64,
    pub mair: u64,
    pub contexts: Vec<u32>,
    /// PEs that have it installed now.
    pub installed: PeMask,
    pub retired: bool,
    /// A leaf with the contiguous hint was seen.
    pub contiguous: bool,
    pub spec: Option<Spec>,
    /// What changed, in tables or promises, since it was compared: first
    /// address and end.
    pub changed: (u64, u64),
}

impl Tree {
    /// Notes that `[lo, hi)` may read differently now.
    pub fn change(&mut self, lo: u64, hi: u64) {
        self.changed = (self.changed.0.min(lo), self.changed.1.max(hi));
    }

    /// What of `[lo, hi)` was not compared since it changed.
    pub fn unchecked(&self, lo: u64, hi: u64) -> (u64, u64) {
        (self.changed.0.max(lo), self.changed.1.min(hi))
    }

    /// Notes that `[lo, hi)` was compared.
    pub fn checked(&mut self, lo: u64, hi: u64) {
        let (from, to) = &mut self.changed;
        match (lo <= *from, *to <= hi) {
            (true, true) => (*from, *to) = (u64::MAX, 0),
            (true, false) => *from = (*from).max(hi),
            (false, true) => *to = (*to).min(lo),
            (false, false) => {}
        }
    }
}

/// A tree under one VMID (EL2 has one context without).
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub tree: u32,
    pub vmid: u16,
    pub regime: Regime,
    pub unclean: Unclean,
    /// PEs that may hold entries of this context at all.
    pub cached: PeMask,
    /// A whole-context TLBI is under way, per issuer: the PEs it reaches.
    pub flush: [PeMask; MAX_PES],
    /// Another tree had this VMID when this one was installed.
    pub clash: bool,
}

/// The tree of a context whose tree is gone.
pub(crate) const NO_TREE: u32 = u32::MAX;

/// A table that walkers may read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub base: u64,
    pub entries: u64,
    pub tree: u32,
    pub level: i8,
    pub ia: u64,
    /// The removal that detached it, 0 while linked.
    pub tag: u32,
}

/// A fault whose entry already allowed the access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultNote {
    pub pe: u8,
    pub vmid: u16,
    pub level: i8,
    pub ia: u64,
    pub access: u8,
    pub desc: u64,
    pub stage: u8,
}

/// Counts of what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Stores to words of tables that walkers may read.
    pub live_stores: u64,
    /// All stores.
    pub stores: u64,
    /// TLB invalidations.
    pub tlbis: u64,
    /// DSBs.
    pub dsbs: u64,
    /// ISBs.
    pub isbs: u64,
    /// Pages or ranges allocated less those freed, in bytes.
    pub table_bytes: u64,
}

/// The modelled machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) features: Features,
    pub(crate) all: PeMask,
    pub(crate) toy: Option<Shape>,
    pub(crate) pes: Vec<Pe>,
    pub(crate) mem: Mem,
    pub(crate) trees: Vec<Tree>,
    pub(crate) contexts: Vec<Context>,
    pub(crate) tables: FastMap<u64, Table>,
    /// Distinct table sizes in use, in bytes.
    pub(crate) sizes: Vec<u64>,
    /// Leaves by (output address | log2 size, tree).
    pub(crate) outputs: FastMap<(u64, u32), u32>,
    pub(crate) clean_data: RangeMap<bool>,
    pub(crate) clean_insn: RangeMap<bool>,
    pub(crate) window: Option<(u64, u64)>,
    pub(crate) faults: Vec<FaultNote>,
    pub(crate) event: u64,
    pub(crate) now: u8,
    pub(crate) next_tag: u32,
    /// The removal that the store under judgement makes and replaces at once,
    /// as FEAT_BBM allows.
    pub(crate) exempt: u32,
    pub(crate) stats: Stats,
    pub(crate) scratch: Vec<(u64, u64)>,
}

/// Largest range of table memory that one event may speak of, in bytes.
pub(crate) const LARGEST: u64 = 1 << 28;

/// The result of judging an event.
pub type Verdict = Result<(), Box<Violation>>;

impl Machine {
    /// A machine of `pes` PEs (1 to 8) with these features, registers zero and
    /// HCR_EL2.FWB as the features have it.
    pub fn new(features: Features, pes: usize) -> Self {
        let pes = pes.clamp(1, MAX_PES);
        let hcr = u64::from(features.fwb) << 46;
        let pe = Pe {
            hcr,
            ..Pe::default()
        };
        Self {
            features,
            all: ((1u16 << pes) - 1) as PeMask,
            toy: None,
            pes: vec![pe; pes],
            mem: Mem::default(),
            trees: Vec::new(),
            contexts: Vec::new(),
            tables: FastMap::default(),
            sizes: Vec::new(),
            outputs: FastMap::default(),
            clean_data: RangeMap::default(),
            clean_insn: RangeMap::default(),
            window: None,
            faults: Vec::new(),
            event: 0,
            now: 0,
            next_tag: 1,
            exempt: 0,
            stats: Stats::default(),
            scratch: Vec::new(),
        }
    }

    /// A machine whose stage 2 has `shape`, whatever VTCR_EL2 says.
    pub fn toy(shape: Shape, features: Features, pes: usize) -> Self {
        let mut machine = Self::new(features, pes);
        machine.toy = Some(shape);
        machine
    }

    /// Features.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Physical memory, newest values.
    pub fn mem(&self) -> &Mem {
        &self.mem
    }

    /// What happened so far, counted.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Events taken so far.
    pub fn events(&self) -> u64 {
        self.event
    }

    /// Takes an event.
    ///
    /// # Errors
    /// The rule it breaks. The machine goes on as if the rule had been kept
    /// where that makes sense, but verdicts after the first are for hints.
    pub fn on(&mut self, event: Event) -> Verdict {
        self.event += 1;
        self.now = event.pe;
        if usize::from(event.pe) >= self.pes.len() {
            self.now = 0;
            return self.fail(Kind::BadEvent, "no such PE");
        }
        if !matches!(event.kind, EventKind::Write { .. }) {
            self.settle()?;
        }
        match event.kind {
            EventKind::Store { pa, value, how } => self.store(pa, value, how),
            EventKind::Cas {
                pa,
                expected,
                value,
                release,
            } => {
                if self.mem.load(pa) != expected {
                    return self.fail(
                        Kind::BadEvent,
                        "a compare-and-swap found another value than memory holds",
                    );
                }
                let how = if release {
                    How::AtomicRelease
                } else {
                    How::Atomic
                };
                self.store(pa, value, how)
            }
            EventKind::Zero { pa, len } => self.zero(pa, len),
            EventKind::Barrier(barrier) => self.barrier(barrier),
            EventKind::Tlbi { op, xt } => self.tlbi(op, xt),
            EventKind::Write { reg, value } => {
                self.write(reg, value);
                Ok(())
            }
            EventKind::Alloc { pa, len, zeroed } => self.alloc(pa, len, zeroed),
            EventKind::Free { pa, len } => self.free(pa, len),
            EventKind::Own { pa, len, owner } => self.own(pa, len, owner),
            EventKind::CleanData { pa, len } => {
                self.clean_data.set(pa, pa.saturating_add(len), true);
                Ok(())
            }
            EventKind::InvalidateInstructions { pa, len } => {
                self.clean_insn.set(pa, pa.saturating_add(len), true);
                Ok(())
            }
            EventKind::Fault { ia, access } => self.fault(ia, access),
            EventKind::Window { lo, hi } => {
                self.window = (hi != 0).then_some((lo, hi));
                Ok(())
            }
            EventKind::Spec(promise) => self.promise(promise),
            EventKind::Quiesce { lo, hi } => self.quiesce(lo, hi),
        }
    }

    /// Takes events of one PE until one breaks a rule.
    ///
    /// # Errors
    /// As [`on`](Self::on).
    pub fn run(&mut self, pe: u8, kinds: impl IntoIterator<Item = EventKind>) -> Verdict {
        for kind in kinds {
            self.on(Event { pe, kind })?;
        }
        Ok(())
    }

    pub(crate) fn pe(&mut self) -> &mut Pe {
        &mut self.pes[usize::from(self.now)]
    }

    pub(crate) fn violation(&self, kind: Kind, detail: impl Into<String>) -> Box<Violation> {
        Box::new(Violation {
            kind,
            shown_by: None,
            event: self.event,
            since: None,
            pe: self.now,
            ia: None,
            level: None,
            pa: None,
            detail: detail.into(),
        })
    }

    pub(crate) fn fail(&self, kind: Kind, detail: impl Into<String>) -> Verdict {
        Err(self.violation(kind, detail))
    }

    fn store(&mut self, pa: u64, value: u64, how: How) -> Verdict {
        if !pa.is_multiple_of(8) {
            return self.fail(Kind::BadEvent, "a store that is not aligned to 8 bytes");
        }
        let last = LastStore {
            pe: self.now,
            event: self.event,
        };
        self.stats.stores += 1;
        let old = self.mem.swap(pa, value, last);
        self.stored(Stored {
            pa,
            old,
            new: value,
            how,
        })
    }

    fn zero(&mut self, pa: u64, len: u64) -> Verdict {
        if !pa.is_multiple_of(8)
            || !len.is_multiple_of(8)
            || len > LARGEST
            || pa.checked_add(len).is_none()
        {
            return self.fail(Kind::BadEvent, "a range of zeros that is not words");
        }
        // Live words go through the automaton one by one.
        let mut live = Vec::new();
        if !self.tables.is_empty() {
            self.mem.nonzero(pa, len / 8, &mut live);
            live.retain(|&(index, _)| self.table_of(pa + index * 8).is_some());
        }
        for (index, _) in live {
            self.store(pa + index * 8, 0, How::Plain)?;
        }
        let last = LastStore {
            pe: self.now,
            event: self.event,
        };
        self.mem.zero(pa, len, last);
        Ok(())
    }

    fn write(&mut self, reg: Reg, value: u64) {
        let pe = self.pe();
        match reg {
            Reg::Vttbr => {
                pe.old_vttbr.get_or_insert(pe.vttbr);
                pe.vttbr = value;
            }
            Reg::Vtcr => pe.vtcr = value,
            Reg::Hcr => pe.hcr = value,
            Reg::Ttbr0El2 => pe.ttbr0 = value,
            Reg::TcrEl2 => pe.tcr = value,
            Reg::MairEl2 => pe.mair = value,
        }
        pe.unsynced = true;
        pe.unsettled = true;
    }

    fn barrier(&mut self, barrier: Barrier) -> Verdict {
        match barrier {
            Barrier::Isb => {
                self.stats.isbs += 1;
                let pe = self.pe();
                pe.old_vttbr = None;
                pe.unsynced = false;
                pe.needs_isb = false;
                if pe.el2_change == El2Change::Visible {
                    pe.el2_change = El2Change::None;
                }
            }
            Barrier::Dmb(_, Accesses::Loads) => {}
            Barrier::Dmb(..) => {
                let event = self.event;
                self.pe().ordered = event;
            }
            Barrier::Dsb(domain, accesses) => {
                self.stats.dsbs += 1;
                self.dsb(domain != Domain::NonShareable, accesses);
            }
        }
        Ok(())
    }
}

//! RTT operations of a realm or a plain guest, judged by the model and held
//! against what each of a few addresses must say, whatever tables are made and
//! folded above it. `cargo fuzz run realm -- -max_len=2048 -len_control=0`.

#![no_main]

#[path = "../../tests/judge/mod.rs"]
mod judge;
mod numbers;

use judge::{Cpu, Judge, own};
use libfuzzer_sys::fuzz_target;
use mmu_model::{EventKind, Owner, Reg};
use numbers::numbers;
use pgtable::{
    Attrs, Budget, ChangeDestroyed, Features, Fill, Geometry, Granule, HostPages, Ipa, Level, Pa,
    RemovedLeaf, Ripas, Rtt, RttAt, RttError, RttState, Stage2Config, TableMem, Vmid,
};
use std::ops::Range;

const VMID: u16 = 7;

/// What the realm was given, and what the host lends it.
const DATA: u64 = 1 << 47;
const LENT: u64 = 1 << 46;

/// What an address must say, level apart.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    Unassigned(Ripas),
    Assigned(Ripas, u64),
    UnassignedNs,
    AssignedNs(u64),
}

/// What one command is made of.
struct Call {
    b: u64,
    probe: u64,
    level: Level,
    /// Not aligned to anything, now and then.
    odd: u64,
    table: RttAt,
    /// What the table translates.
    under: u64,
    leaf: Ipa,
    range: Range<Ipa>,
}

impl Call {
    fn budget(&self) -> Budget {
        Budget::entries(self.b >> 32 & 0xfff)
    }
}

struct Realm<'j> {
    judge: &'j Judge,
    geometry: Geometry,
    rtt: Rtt<&'j Judge>,
    probes: Vec<(u64, State)>,
}

impl Realm<'_> {
    fn page(&self) -> u64 {
        self.geometry.granule().page_size()
    }

    /// Changes what the probes in `[from, to)` say.
    fn change(&mut self, from: u64, to: u64, how: impl Fn(u64, State) -> State) {
        for (at, state) in &mut self.probes {
            if (from..to).contains(at) {
                *state = how(*at, *state);
            }
        }
    }

    fn span(&self, level: Level) -> u64 {
        self.geometry.span(level.max(self.geometry.start()))
    }

    /// What one command is aimed at: mostly aligned as it wants it.
    fn call(&self, [kind, a, b]: [u64; 3]) -> Call {
        let (probe, _) = self.probes[a as usize % self.probes.len()];
        let (end, _) = self.probes[b as usize % self.probes.len()];
        let level = Level::new((kind >> 9 & 3) as i8).unwrap_or(Level::L3);
        let above = Level::new(level.get() - 1).map_or(1, |level| self.span(level));
        let odd = if kind >> 11 & 31 == 31 { 8 } else { 0 };
        Call {
            b,
            probe,
            level,
            odd,
            table: RttAt::new(Ipa::new((probe & !(above - 1)) + odd), level),
            under: above,
            leaf: Ipa::new((probe & !(self.span(level) - 1)) + odd),
            range: Ipa::new(probe + odd)..Ipa::new(end),
        }
    }

    fn step(&mut self, op: [u64; 3]) {
        let judge = self.judge;
        let [kind, ..] = op;
        judge.pe.set((kind >> 8 & 1) as u8);
        let (call, cpu) = (self.call(op), &mut Cpu(judge));
        match kind % 12 {
            0..=2 => {
                let page = judge.alloc(Level::L3).expect("no limit is set");
                if self.rtt.create(cpu, call.table, page).is_err() {
                    judge.give_back(page);
                }
            }
            3 => self.destroy(cpu, &call),
            4 => {
                if let Ok(folded) = self.rtt.fold(cpu, call.table) {
                    assert_eq!(judge.count(folded), 0);
                    judge.give_back(folded);
                }
            }
            5 => self.data(cpu, &call),
            6 => self.data_destroy(cpu, &call),
            7 | 8 => self.map(cpu, &call),
            9 => self.unmap(cpu, &call),
            10 => self.init_ripas(&call),
            _ => self.set_ripas(cpu, &call),
        }
        self.check();
    }

    fn destroy(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let judge = self.judge;
        // The host writes what it has back.
        let mut told = |leaf: RemovedLeaf| own(judge, leaf.pa().get(), leaf.size(), Owner::Shared);
        let done = loop {
            let budget = &mut call.budget();
            match self.rtt.destroy(cpu, call.table, &mut told, budget) {
                Err(RttError::Again) => (),
                done => break done,
            }
        };
        if let Ok(removed) = done {
            assert_eq!(judge.count(removed.pa), 0);
            judge.give_back(removed.pa);
            let base = call.table.ipa.get();
            self.change(base, base + call.under, |_, state| match state {
                State::Unassigned(_) => State::Unassigned(Ripas::Destroyed),
                State::Assigned(..) => panic!("{state:?} went with its table"),
                _ => State::UnassignedNs,
            });
        }
    }

    /// One page, or a whole table of them, which then folds.
    fn data(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let page = self.page();
        let fill = [Fill::Known, Fill::Unknown][(call.b & 1) as usize];
        let many = match call.b >> 1 & 3 {
            0 => self.span(Level::L2),
            _ => page,
        };
        let base = (call.probe + call.odd) & !(many - 1) | call.odd;
        for ipa in (base..base + many).step_by(page as usize) {
            let pa = DATA + (ipa & !(page - 1));
            let (at, to) = (Ipa::new(ipa), Pa::new(pa));
            if self.rtt.data_check(at).is_ok() {
                own(self.judge, pa, page, Owner::Vmid(VMID));
            }
            if self.rtt.data_create(cpu, at, to, fill).is_err() {
                break;
            }
            self.change(ipa, ipa + page, |_, state| match (state, fill) {
                (State::Unassigned(_), Fill::Known) => State::Assigned(Ripas::Ram, pa),
                (State::Unassigned(ripas), _) => State::Assigned(ripas, pa),
                _ => panic!("data over {state:?}"),
            });
        }
    }

    fn data_destroy(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let (probe, page) = (call.probe, self.page());
        if let Ok(removed) = self.rtt.data_destroy(cpu, call.range.start) {
            let pa = removed.pa.get();
            own(self.judge, pa, page, Owner::Nobody);
            self.change(probe, probe + page, |_, state| match state {
                State::Assigned(Ripas::Empty, was) if was == pa => State::Unassigned(Ripas::Empty),
                State::Assigned(_, was) if was == pa => State::Unassigned(Ripas::Destroyed),
                _ => panic!("{pa:#x} came out of {state:?}"),
            });
        }
    }

    fn map(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let base = call.leaf.get();
        let to = LENT + (base & !(self.span(call.level) - 1));
        let pages = HostPages {
            ipa: call.leaf,
            level: call.level,
            pa: Pa::new(to),
            attrs: Attrs::MEMORY,
            count: 1 + (call.b % 3) as usize,
        };
        let done = self.rtt.map_unprotected(cpu, &pages, &mut call.budget());
        // Left in the middle, it is as if it had not begun.
        if let Ok(next) = done {
            assert!(next.get() > base);
            self.change(base, next.get(), |at, state| match state {
                State::UnassignedNs => State::AssignedNs(to + (at - base)),
                _ => panic!("mapped over {state:?}"),
            });
        }
    }

    fn unmap(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let (leaf, level) = (call.leaf, call.level);
        let budget = &mut call.budget();
        if let Ok(removed) = self.rtt.unmap_unprotected(cpu, leaf, level, budget) {
            let (base, pa) = (leaf.get(), removed.pa.get());
            let span = self.span(level);
            own(self.judge, pa, span, Owner::Shared);
            self.change(base, base + span, |at, state| match state {
                State::AssignedNs(was) if was == pa + (at - base) => State::UnassignedNs,
                _ => panic!("{pa:#x} came out of {state:?}"),
            });
        }
    }

    fn init_ripas(&mut self, call: &Call) {
        let mut told = 0;
        let measure = |from: Ipa, to: Ipa| told += to.get() - from.get();
        if let Ok(next) = self.rtt.init_ripas(call.range.clone(), measure) {
            assert_eq!(told, next.get() - call.probe);
            self.change(call.probe, next.get(), |_, state| match state {
                State::Unassigned(Ripas::Empty | Ripas::Ram) => State::Unassigned(Ripas::Ram),
                _ => panic!("RAM over {state:?}"),
            });
        }
    }

    fn set_ripas(&mut self, cpu: &mut Cpu<'_>, call: &Call) {
        let to = [Ripas::Ram, Ripas::Empty][(call.b >> 8 & 1) as usize];
        let how = [ChangeDestroyed::No, ChangeDestroyed::Yes][(call.b >> 9 & 1) as usize];
        let is_kept = |ripas| ripas == Ripas::Destroyed && how == ChangeDestroyed::No;
        if let Ok(next) = self.rtt.set_ripas(cpu, call.range.clone(), to, how) {
            self.change(call.probe, next.get(), |_, state| match state {
                State::Unassigned(was) | State::Assigned(was, _) if is_kept(was) => {
                    panic!("destroyed memory is back")
                }
                State::Unassigned(_) => State::Unassigned(to),
                State::Assigned(_, pa) => State::Assigned(to, pa),
                _ => panic!("RIPAS of {state:?}"),
            });
        }
    }

    /// The probes say what they must, and the model knows of no broken rule.
    fn check(&self) {
        for &(ipa, state) in &self.probes {
            let entry = self.rtt.find(Ipa::new(ipa)).expect("inside the space");
            let inside = ipa & (self.geometry.span(entry.level) - 1);
            let says = match entry.state {
                RttState::Unassigned(ripas) => State::Unassigned(ripas),
                RttState::Assigned { ripas, pa } => State::Assigned(ripas, pa.get() + inside),
                RttState::UnassignedNs => State::UnassignedNs,
                RttState::AssignedNs { pa, .. } => State::AssignedNs(pa.get() + inside),
                RttState::Table(_) => panic!("a table at the end of a walk"),
            };
            assert_eq!(says, state, "{ipa:#x}");
        }
        let whole = 1 << self.geometry.ipa_bits();
        self.judge.event(EventKind::Quiesce { lo: 0, hi: whole });
        if let Some(what) = self.judge.broken.borrow().as_ref() {
            panic!("{what}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let numbers = numbers(data);
    let Some((which, rest)) = numbers.split_first() else {
        return;
    };
    let bit = |n: u32| which >> n & 1 == 1;
    let granule = Granule::ALL[(which % 3) as usize];
    let bits = 34 + (which >> 8) as u8 % 13;
    let mut config = Stage2Config::new(granule, bits, 48);
    config.features = Features {
        tlb_range: bit(16),
        ttl: bit(17),
        fwb: bit(20),
        dic: true,
        xnx: true,
        hw_access_flag: bit(18),
        ..Features::default()
    };
    let geometry = config.validate().expect("every CPU has it");
    let features = mmu_model::Features {
        pa_bits: 48,
        lpa2: false,
        tlbirange: bit(16),
        ttl: bit(17),
        hafdbs: u8::from(bit(18)),
        fwb: bit(20),
        bbm: 0,
        ..mmu_model::Features::max()
    };
    let page = granule.page_size();
    let judge = Judge::new(features, 2, page);
    let root = judge.root(geometry.root_align());
    let half = 1u64 << (bits - 1);
    let protected = if bit(19) { half } else { 0 };
    own(&judge, LENT, 1 << 46, Owner::Shared);
    let rtt = Rtt::new(geometry, root, Vmid::new(VMID), &judge, Ipa::new(protected));
    let rtt = rtt.expect("aligned as it must be");
    for pe in 0..2 {
        judge.pe.set(pe);
        judge.event(EventKind::DSB_ISHST);
        judge.write(Reg::Vtcr, geometry.vtcr());
        judge.write(Reg::Vttbr, rtt.regs().vttbr);
        judge.event(EventKind::ISB);
    }
    let span = geometry.span(Level::L2);
    let places = [0, half - 2 * span, half, 2 * half - 2 * span];
    let inside = [0, page, 2 * page, span - page, span, span + page];
    let probes = places.iter().flat_map(|place| inside.map(|at| place + at));
    let first = |at| {
        if at < protected {
            State::Unassigned(Ripas::Empty)
        } else {
            State::UnassignedNs
        }
    };
    let mut realm = Realm {
        judge: &judge,
        geometry,
        rtt,
        probes: probes.map(|at| (at, first(at))).collect(),
    };
    for op in rest.as_chunks().0 {
        realm.step(*op);
    }
});

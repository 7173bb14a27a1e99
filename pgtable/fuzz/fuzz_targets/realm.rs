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

    fn step(&mut self, [kind, a, b]: [u64; 3]) {
        let judge = self.judge;
        judge.pe.set((kind >> 8 & 1) as u8);
        let mut cpu = Cpu(judge);
        let (probe, _) = self.probes[a as usize % self.probes.len()];
        let level = Level::new((kind >> 9 & 3) as i8).unwrap_or(Level::L3);
        let span = |level: Level| self.geometry.span(level.max(self.geometry.start()));
        let above = Level::new(level.get() - 1).map_or(1, span);
        // Mostly aligned as the operation wants it.
        let odd = if kind >> 11 & 31 == 31 { 8 } else { 0 };
        let table = Ipa::new((probe & !(above - 1)) + odd);
        let leaf = Ipa::new((probe & !(span(level) - 1)) + odd);
        let ipa = Ipa::new(probe + odd);
        let page = self.page();
        // The host writes what it has back.
        let mut told = |leaf: RemovedLeaf| own(judge, leaf.pa().get(), leaf.size(), Owner::Shared);
        let mut budget = Budget::entries(b >> 32 & 0xfff);
        match kind % 12 {
            0..=2 => {
                let table_page = judge.alloc(Level::L3).expect("no limit is set");
                if self
                    .rtt
                    .create(&mut cpu, RttAt::new(table, level), table_page)
                    .is_err()
                {
                    judge.give_back(table_page);
                }
            }
            3 => {
                let done = loop {
                    let mut budget = budget;
                    match self.rtt.destroy(
                        &mut cpu,
                        RttAt::new(table, level),
                        &mut told,
                        &mut budget,
                    ) {
                        Err(RttError::Again) => (),
                        done => break done,
                    }
                };
                if let Ok(removed) = done {
                    assert_eq!(judge.count(removed.pa), 0);
                    judge.give_back(removed.pa);
                    let base = table.get();
                    self.change(base, base + above, |_, state| match state {
                        State::Unassigned(_) => State::Unassigned(Ripas::Destroyed),
                        State::Assigned(..) => panic!("{state:?} went with its table"),
                        _ => State::UnassignedNs,
                    });
                }
            }
            4 => {
                if let Ok(folded) = self.rtt.fold(&mut cpu, RttAt::new(table, level)) {
                    assert_eq!(judge.count(folded), 0);
                    judge.give_back(folded);
                }
            }
            5 => {
                // One page, or a whole table of them, which then folds.
                let fill = [Fill::Known, Fill::Unknown][(b & 1) as usize];
                let many = if b >> 1 & 3 == 0 {
                    span(Level::L2)
                } else {
                    page
                };
                let base = ipa.get() & !(many - 1) | odd;
                for ipa in (base..base + many).step_by(page as usize) {
                    let pa = DATA + (ipa & !(page - 1));
                    let (at, to) = (Ipa::new(ipa), Pa::new(pa));
                    if self.rtt.data_check(at).is_ok() {
                        own(judge, pa, page, Owner::Vmid(VMID));
                    }
                    if self.rtt.data_create(&mut cpu, at, to, fill).is_err() {
                        break;
                    }
                    self.change(ipa, ipa + page, |_, state| match (state, fill) {
                        (State::Unassigned(_), Fill::Known) => State::Assigned(Ripas::Ram, pa),
                        (State::Unassigned(ripas), _) => State::Assigned(ripas, pa),
                        _ => panic!("data over {state:?}"),
                    });
                }
            }
            6 => {
                if let Ok(removed) = self.rtt.data_destroy(&mut cpu, ipa) {
                    let pa = removed.pa.get();
                    own(judge, pa, page, Owner::Nobody);
                    self.change(probe, probe + page, |_, state| match state {
                        State::Assigned(Ripas::Empty, was) if was == pa => {
                            State::Unassigned(Ripas::Empty)
                        }
                        State::Assigned(_, was) if was == pa => State::Unassigned(Ripas::Destroyed),
                        _ => panic!("{pa:#x} came out of {state:?}"),
                    });
                }
            }
            7 | 8 => {
                let to = LENT + (leaf.get() & !(span(level) - 1));
                let count = 1 + (b % 3) as usize;
                let pa = Pa::new(to);
                let attrs = Attrs::MEMORY;
                let done = self.rtt.map_unprotected(
                    &mut cpu,
                    &HostPages {
                        ipa: leaf,
                        level,
                        pa,
                        attrs,
                        count,
                    },
                    &mut budget,
                );
                // Left in the middle, it is as if it had not begun.
                if let Ok(next) = done {
                    let base = leaf.get();
                    assert!(next.get() > base);
                    self.change(base, next.get(), |at, state| match state {
                        State::UnassignedNs => State::AssignedNs(to + (at - base)),
                        _ => panic!("mapped over {state:?}"),
                    });
                }
            }
            9 => {
                let done = self
                    .rtt
                    .unmap_unprotected(&mut cpu, leaf, level, &mut budget);
                if let Ok(removed) = done {
                    let (base, pa) = (leaf.get(), removed.pa.get());
                    own(judge, pa, span(level), Owner::Shared);
                    self.change(base, base + span(level), |at, state| match state {
                        State::AssignedNs(was) if was == pa + (at - base) => State::UnassignedNs,
                        _ => panic!("{pa:#x} came out of {state:?}"),
                    });
                }
            }
            10 => {
                let (top, _) = self.probes[b as usize % self.probes.len()];
                let mut told = 0;
                let measure = |from: Ipa, to: Ipa| told += to.get() - from.get();
                if let Ok(next) = self.rtt.init_ripas(ipa..Ipa::new(top), measure) {
                    assert_eq!(told, next.get() - probe);
                    self.change(probe, next.get(), |_, state| match state {
                        State::Unassigned(Ripas::Empty | Ripas::Ram) => {
                            State::Unassigned(Ripas::Ram)
                        }
                        _ => panic!("RAM over {state:?}"),
                    });
                }
            }
            _ => {
                let (top, _) = self.probes[b as usize % self.probes.len()];
                let to = [Ripas::Ram, Ripas::Empty][(b >> 8 & 1) as usize];
                let how = [ChangeDestroyed::No, ChangeDestroyed::Yes][(b >> 9 & 1) as usize];
                let done = self.rtt.set_ripas(&mut cpu, ipa..Ipa::new(top), to, how);
                if let Ok(next) = done {
                    self.change(probe, next.get(), |_, state| match state {
                        State::Unassigned(Ripas::Destroyed)
                        | State::Assigned(Ripas::Destroyed, _)
                            if how == ChangeDestroyed::No =>
                        {
                            panic!("destroyed memory is back")
                        }
                        State::Unassigned(_) => State::Unassigned(to),
                        State::Assigned(_, pa) => State::Assigned(to, pa),
                        _ => panic!("RIPAS of {state:?}"),
                    });
                }
            }
        }
        self.check();
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

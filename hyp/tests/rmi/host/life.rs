//! A realm's life in the order that leads somewhere: built up to where its vCPUs run, run,
//! and taken down when it is at its end. What chance alone does rarely comes so far.

use super::{Caller, c_state};
use crate::pair::Op;
use crate::spec::tables::{Entry, Ripas};
use crate::spec::{Life, Pending, Realm, Rec, Spec, State, mpidr_of};

/// Pages from 0 on that it is built with.
const PAGES: u64 = 5;

impl Caller {
    /// A realm that is one of RMI's own, mostly, in this state.
    fn realm_in(&mut self, spec: &Spec, life: Life) -> Option<u64> {
        let in_life = |(rd, realm): (&u64, &Realm)| (realm.life == life).then_some(*rd);
        let all: Vec<u64> = spec.realms.iter().filter_map(in_life).collect();
        let own = |rd: &u64| spec.realms[rd].measured.is_some();
        let of_rmi: Vec<u64> = all.iter().copied().filter(own).collect();
        if self.random.percent(80) && !of_rmi.is_empty() {
            return self.random.of(&of_rmi);
        }
        self.random.of(&all)
    }

    /// What it needs next.
    pub(super) fn build(&mut self, spec: &Spec) -> Op {
        let Some(rd) = self.realm_in(spec, Life::New) else {
            return self.realm_create(spec);
        };
        let (realm, machine) = (&spec.realms[&rd], &spec.machine);
        let base = self.random.below(2) * machine.span(2);
        let slot = realm.tables.walk(base, 3);
        if slot.level < 3 {
            let level = slot.level + 1;
            let above = base & !(machine.span(slot.level) - 1);
            return self.with_granule(spec, |rtt| [0xC400_015D, rd, rtt, above, level as u64, 0]);
        }
        let entry = |n: u64| realm.tables.walk(base + n * machine.page(), 3).entry;
        let vacant = |n: &u64| matches!(entry(*n), Entry::Unassigned(_));
        let plain = realm.shared_from == 0;
        let free: Vec<u64> = (0..PAGES).filter(vacant).collect();
        let at = self.random.of(&free).map(|n| base + n * machine.page());
        let runs = |rec: &Rec| rec.rd == rd && rec.runnable;
        match (at, self.random.below(8)) {
            (Some(ipa), 0..3) if !plain => {
                let measure = u64::from(realm.measured.is_some()) * self.random.below(2);
                let src = self.page(spec, State::Ns);
                self.with_granule(spec, |data| [0xC400_0153, rd, data, ipa, src, measure])
            }
            (Some(ipa), 3) if !plain && entry(0) == Entry::Unassigned(Ripas::Ram) => {
                self.with_granule(spec, |data| [0xC400_0154, rd, data, ipa, 0, 0])
            }
            (Some(ipa), 3 | 4) if !plain => {
                let top = ipa + (1 + self.random.below(3)) * machine.page();
                Op::Call([0xC400_0168, rd, ipa, top, 0, 0])
            }
            _ if !spec.recs.values().any(runs) || self.random.percent(50) && realm.made < 4 => {
                let params = self.page(spec, State::Ns);
                let runs = u64::from(realm.made == 0 || self.random.percent(50));
                let mut words = vec![
                    (0, runs),
                    (0x100, mpidr_of(realm.made)),
                    (0x200, 0x4000_0000),
                ];
                words.extend((0..8).map(|n| (0x300 + 8 * n, self.random.next())));
                let create = self.with_granule(spec, |rec| [0xC400_015A, rd, rec, params, 0, 0]);
                self.queue.push_front(create);
                Op::Write(params, words)
            }
            _ => Op::Call([0xC400_0157, rd, 0, 0, 0, 0]),
        }
    }

    /// A call with a granule that is given away for it.
    fn with_granule(&mut self, spec: &Spec, call: impl FnOnce(u64) -> [u64; 6]) -> Op {
        let granule = self.page(spec, State::Delegated);
        if spec.is(granule, State::Delegated) {
            return Op::Call(call(granule));
        }
        let granule = self.page(spec, State::Ns);
        self.queue.push_front(Op::Call(call(granule)));
        Op::Call([0xC400_0151, granule, 0, 0, 0, 0])
    }

    /// A vCPU that can run does; what it waits for, the host does first, or a part.
    pub(super) fn run(&mut self, spec: &Spec) -> Op {
        let Some(rd) = self.realm_in(spec, Life::Active) else {
            return self.build(spec);
        };
        let realm = &spec.realms[&rd];
        let runs = |(pa, rec): (&u64, &Rec)| (rec.rd == rd && rec.runnable).then_some(*pa);
        let all: Vec<u64> = spec.recs.iter().filter_map(runs).collect();
        let Some(rec) = self.random.of(&all) else {
            // Nobody turns one on any more.
            return take_realm_down(spec, rd).unwrap_or(Op::Call([0xC400_0159, rd, 0, 0, 0, 0]));
        };
        match spec.recs[&rec].pending {
            Pending::Ripas { .. } if self.random.percent(60) => self.set_ripas(spec),
            // And does what it was asked for when nobody asks any more.
            Pending::Ripas { reached, top, .. } if self.random.percent(40) => {
                let enter = self.enter_of(spec, rec);
                let late = Op::Call([0xC400_0169, rd, rec, reached, top, 0]);
                self.queue.push_back(late);
                enter
            }
            Pending::CpuOn(..) | Pending::AffinityInfo(_) => self.psci_complete(spec),
            // What was there may be gone when the answer comes.
            Pending::HostCall(ipa) if self.random.percent(10) => self.go_or_come(spec, rd, ipa),
            // Such a vCPU does not run on, unless another has it made memory again.
            Pending::HostCall(ipa) if is_lost(realm, ipa) && self.random.percent(50) => {
                Op::Call([0xC400_015B, rec, 0, 0, 0, 0])
            }
            _ if self.random.percent(10) => {
                let ipa = self.built(spec);
                self.go_or_come(spec, rd, ipa)
            }
            _ => self.enter_of(spec, rec),
        }
    }

    /// An address that realms are built at.
    pub(super) fn built(&mut self, spec: &Spec) -> u64 {
        let machine = &spec.machine;
        self.random.below(2) * machine.span(2) + self.random.below(PAGES) * machine.page()
    }

    /// The page at `ipa` goes, or comes.
    fn go_or_come(&mut self, spec: &Spec, rd: u64, ipa: u64) -> Op {
        let ipa = ipa & !(spec.machine.page() - 1);
        let slot = spec.realms[&rd].tables.walk(ipa, 3);
        match slot.entry {
            Entry::Unassigned(_) if slot.level == 3 => {
                self.with_granule(spec, |data| [0xC400_0154, rd, data, ipa, 0, 0])
            }
            _ => Op::Call([0xC400_0155, rd, ipa, 0, 0, 0]),
        }
    }

    /// One that is at its end is taken down.
    pub(super) fn bury(&mut self, spec: &Spec) -> Op {
        let dead = self.realm_in(spec, Life::SystemOff);
        let op = dead.and_then(|rd| take_realm_down(spec, rd));
        op.unwrap_or_else(|| self.call(0xC400_0159, &[c_state(State::Rd)], spec))
    }
}

/// The host has taken what was there.
fn is_lost(realm: &Realm, ipa: u64) -> bool {
    let page = ipa & !(realm.tables.machine.page() - 1);
    matches!(
        realm.tables.walk(page, 3).entry,
        Entry::Unassigned(Ripas::Destroyed) | Entry::Assigned(Ripas::Destroyed, _)
    )
}

/// The next call of those that end a realm.
pub fn take_realm_down(spec: &Spec, rd: u64) -> Option<Op> {
    let call = |function, a, b, c, d| Some(Op::Call([function, a, b, c, d, 0]));
    if let Some((rec, _)) = spec.recs.iter().find(|(_, rec)| rec.rd == rd) {
        return call(0xC400_015B, *rec, 0, 0, 0);
    }
    let realm = &spec.realms[&rd];
    let tables = &realm.tables;
    let (key, table) = tables.all.iter().next_back()?;
    let entries = table.entries().iter();
    let own = entries
        .enumerate()
        .find(|(_, entry)| matches!(entry, Entry::Assigned(..)));
    let many = table.kept > 16;
    match own {
        // What is mapped one after another goes at once.
        Some((index, _)) if key.0 == 3 && many => {
            let from = tables.address(*key, index);
            let end = tables.address(*key, table.entries().len());
            call(0xC600_0018, rd, from, end.min(realm.shared_from), 0)
        }
        Some((index, _)) if key.0 == 3 => call(0xC400_0155, rd, tables.address(*key, index), 0, 0),
        // A block: at once; or as pages again, by a table of a granule that is free.
        Some((index, _)) if realm.vmid.is_multiple_of(2) => {
            let (from, span) = (tables.address(*key, index), spec.machine.span(key.0));
            call(0xC600_0018, rd, from, from + span, 0)
        }
        Some((index, _)) => {
            let of = |state| {
                let mut all = spec.granules();
                all.find(|(_, granule)| granule.state == state)
            };
            match of(State::Delegated) {
                Some((rtt, _)) => {
                    let level = (key.0 + 1) as u64;
                    call(0xC400_015D, rd, rtt, tables.address(*key, index), level)
                }
                None => call(0xC400_0151, of(State::Ns)?.0, 0, 0, 0),
            }
        }
        None if key.0 > tables.start => call(0xC400_015E, rd, key.1, key.0 as u64, 0),
        None => call(0xC400_0159, rd, 0, 0, 0),
    }
}

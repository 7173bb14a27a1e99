//! A host that makes calls at random: good ones mostly, and of each kind of bad one
//! some. What it does depends on its seed and on what the specification says there is.

mod guest;
mod life;

use std::collections::VecDeque;

use life::take_realm_down;

use crate::pair::Op;
use crate::spec::{Life, Pending, Realm, Rec, Spec, State};

/// Numbers from a seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n.max(1)
    }

    /// With this chance in 100.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let n = self.below(all.len() as u64) as usize;
        all.get(n).copied()
    }
}

/// Granules that it does most with: few enough that calls meet.
const WORK: u64 = 112;
/// Realms at a time.
const REALMS: usize = 3;

/// The host.
pub struct Caller {
    pub random: Random,
    queue: VecDeque<Op>,
}

/// A kind of step, and how often it is taken.
type Step = (u64, fn(&mut Caller, &Spec) -> Op);

const STEPS: &[Step] = &[
    (90, |c, s| c.call(0xC400_0151, &[c_state(State::Ns)], s)),
    (35, |c, s| {
        c.call(0xC400_0152, &[c_state(State::Delegated)], s)
    }),
    (25, |c, s| c.range(s)),
    (25, Caller::realm_create),
    (8, |c, s| c.call(0xC400_0157, &[c_state(State::Rd)], s)),
    (8, |c, s| c.call(0xC400_0159, &[c_state(State::Rd)], s)),
    (4, |c, s| c.call(0xC400_0167, &[c_state(State::Rd)], s)),
    (30, Caller::rec_create),
    (6, |c, s| c.call(0xC400_015B, &[c_state(State::Rec)], s)),
    (25, Caller::enter),
    (150, Caller::build),
    (200, Caller::run),
    (40, Caller::bury),
    (25, Caller::psci_complete),
    (8, |c, s| c.call(0xC600_0007, &[c_state(State::Rec)], s)),
    (8, Caller::set_posted),
    (110, Caller::rtt_create),
    (60, Caller::rtt_destroy),
    (25, Caller::rtt_fold),
    (20, Caller::rtt_read_entry),
    (80, Caller::map),
    (40, Caller::unmap),
    (50, Caller::data_create),
    (80, Caller::data_create_unknown),
    (60, Caller::data_destroy),
    (70, Caller::init_ripas),
    (10, Caller::set_ripas),
    (35, Caller::data_map),
    (12, Caller::donate_block),
    (30, Caller::data_unmap),
    (50, Caller::fill),
    (12, Caller::fill_a_call),
    (1, Caller::whole_table),
    (6, Caller::nonsense),
];

/// What an argument is to be.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    State(State),
    Number(u64),
}

fn c_state(state: State) -> Wanted {
    Wanted::State(state)
}

impl Caller {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            queue: VecDeque::new(),
        }
    }

    /// What it does next.
    pub fn next(&mut self, spec: &Spec) -> Op {
        if let Some(op) = self.queue.pop_front() {
            return op;
        }
        let all = STEPS.iter().map(|(often, _)| often).sum();
        let mut at = self.random.below(all);
        for (often, step) in STEPS {
            if at < *often {
                return step(self, spec);
            }
            at -= often;
        }
        self.nonsense(spec)
    }

    /// A granule that is something, of those that it works with.
    fn page(&mut self, spec: &Spec, state: State) -> u64 {
        let size = spec.machine.page();
        let all = WORK.min(spec.machine.ram_size / size);
        let from = self.random.below(all);
        let found = (0..all)
            .map(|n| spec.machine.ram_base + (from + n) % all * size)
            .find(|pa| spec.is(*pa, state));
        found.unwrap_or(spec.machine.ram_base + from * size)
    }

    /// An address as it should not be.
    fn bad_address(&mut self, spec: &Spec) -> u64 {
        let machine = &spec.machine;
        let (base, size) = (machine.ram_base, machine.page());
        let any = base + self.random.below(WORK) * size;
        match self.random.below(9) {
            0 => any + 8,
            1 => any + size / 2,
            2 => any | 0xfff,
            3 => base - size,
            4 => base + machine.ram_size,
            5 => 0,
            6 => u64::MAX - self.random.below(2) * (size - 1),
            7 => any | 1 << (48 + self.random.below(16)),
            _ => self.random.next(),
        }
    }

    /// An address of a granule that is to be in `state`: so mostly, else in another,
    /// or none.
    fn granule(&mut self, spec: &Spec, state: State) -> u64 {
        match self.random.below(100) {
            0..=91 => self.page(spec, state),
            92..=96 => {
                let size = spec.machine.page();
                spec.machine.ram_base + self.random.below(WORK) * size
            }
            _ => self.bad_address(spec),
        }
    }

    fn wanted(&mut self, spec: &Spec, wanted: Wanted) -> u64 {
        match wanted {
            Wanted::State(state) => self.granule(spec, state),
            Wanted::Number(number) => number,
        }
    }

    fn call(&mut self, function: u64, arguments: &[Wanted], spec: &Spec) -> Op {
        let mut x = [function, 0, 0, 0, 0, 0];
        for (x, wanted) in x[1..].iter_mut().zip(arguments) {
            *x = self.wanted(spec, *wanted);
        }
        // Now and then one operand is another's.
        if arguments.len() > 1 && self.random.percent(2) {
            let (from, to) = (self.random.below(4) as usize, self.random.below(4) as usize);
            x[1 + to] = x[1 + from];
        }
        Op::Call(x)
    }

    fn range(&mut self, spec: &Spec) -> Op {
        let gives = self.random.percent(50);
        let (function, state) = if gives {
            (0xC600_0014, State::Ns)
        } else {
            (0xC600_0015, State::Delegated)
        };
        let size = spec.machine.page();
        let mut base = self.granule(spec, state);
        if self.random.percent(20) {
            base = spec.machine.ram_base + self.random.below(spec.machine.ram_size / size) * size;
        }
        let count = [1, 3, 9, 600][self.random.below(4) as usize];
        let top = match self.random.below(20) {
            0 => base,
            1 => base.wrapping_add(count * size + 8),
            2 => !(size - 1),
            3 => base.wrapping_sub(size),
            _ => base.wrapping_add(self.random.below(count) * size + size),
        };
        Op::Call([function, base, top, 0, 0, 0])
    }

    /// A realm of the host's, if it has one.
    fn realm(&mut self, spec: &Spec) -> Option<u64> {
        let all: Vec<u64> = spec.realms.keys().copied().collect();
        self.random.of(&all)
    }

    fn realm_create(&mut self, spec: &Spec) -> Op {
        let machine = &spec.machine;
        if spec.realms.len() >= REALMS {
            return self.data_create(spec);
        }
        let lpa2 = machine.lpa2 && self.random.percent(50);
        let (bits, start, count) = loop {
            let bits = 32 + self.random.below(21);
            let start = self.random.below(5) as i64 - 1;
            if let Some(count) = machine.roots(bits as u32, start, lpa2) {
                break (bits, start, count);
            }
        };
        let page = |n| machine.ram_base + n * machine.page();
        let base = page(32 + self.random.below(80 / count) * count);
        let base = base & !(count * machine.page() - 1);
        let rd = self.page(spec, State::Delegated);
        let params = self.page(spec, State::Ns);
        for n in 0..count {
            let root = base + n * machine.page();
            if spec.is(root, State::Ns) && root != params {
                self.queue
                    .push_back(Op::Call([0xC400_0151, root, 0, 0, 0, 0]));
            }
        }
        let mode = match self.random.below(10) {
            0..3 => 1 << 63,
            // The host has its interrupts.
            3..5 => 0,
            5..8 => 1 << 63 | 1 << 61,
            _ => 1 << 63 | 1 << 62,
        };
        let flags = mode | u64::from(lpa2);
        let vmid = 1 + self.random.below(5);
        let mut words = vec![
            (0, flags),
            (8, bits),
            (0x800, vmid),
            (0x808, base),
            (0x810, start as u64),
            (0x818, count),
            // Breakpoints, watchpoints, hash: what is above a byte is looked at by nobody.
            (0x18, self.random.next() << 8 | 1),
            (0x20, 1),
            (0x30, self.random.below(2)),
            // What is measured all the same; and what is told to a realm.
            (0x10, self.random.below(16)),
            (0x28, self.random.next()),
        ];
        words.extend((0..8).map(|n| (0x400 + 8 * n, self.random.next())));
        if self.random.percent(25) {
            let which = self.random.below(6) as usize;
            words[which].1 = match (which, self.random.below(3)) {
                (0, _) => flags ^ 1 << self.random.below(64),
                (2, 0) => 0,
                (2, 1) => 0x100 | vmid,
                (3, 0) => base + machine.page(),
                (3, 1) => rd & !(count * machine.page() - 1),
                (3, _) => self.bad_address(spec),
                (_, 0) => self.random.below(70),
                (_, 1) => (self.random.below(8) as i64 - 3) as u64,
                _ => self.random.next(),
            };
        }
        if self.random.percent(15) {
            words[6 + self.random.below(3) as usize].1 = self.random.below(4);
        }
        self.queue.push_back(Op::Write(params, words));
        let rd = if self.random.percent(4) { base } else { rd };
        let create = [
            Wanted::Number(self.or_bad(spec, rd)),
            Wanted::Number(self.or_bad(spec, params)),
        ];
        let create = self.call(0xC400_0158, &create, spec);
        self.queue.push_back(create);
        self.next(spec)
    }

    fn or_bad(&mut self, spec: &Spec, address: u64) -> u64 {
        if self.random.percent(3) {
            self.bad_address(spec)
        } else {
            address
        }
    }

    fn rec_create(&mut self, spec: &Spec) -> Op {
        let rd = self.realm(spec);
        let index = rd.map_or(0, |rd| spec.realms[&rd].made);
        let params = self.page(spec, State::Ns);
        let mut words = vec![
            (0, self.random.below(2)),
            (0x100, crate::spec::mpidr_of(index)),
            (0x200, 0x4000_0000 + 4 * self.random.below(9)),
            (0x800, 0),
        ];
        words.extend((0..8).map(|n| (0x300 + 8 * n, self.random.next())));
        if self.random.percent(25) {
            let which = [0, 1, 3][self.random.below(3) as usize];
            words[which].1 = match self.random.below(3) {
                0 => self.random.below(20),
                1 => 1 << self.random.below(64),
                _ => self.random.next(),
            };
        }
        let rd = rd.unwrap_or_else(|| self.page(spec, State::Rd));
        let arguments = [
            Wanted::Number(self.or_bad(spec, rd)),
            c_state(State::Delegated),
            Wanted::Number(self.or_bad(spec, params)),
        ];
        let create = self.call(0xC400_015A, &arguments, spec);
        self.queue.push_back(create);
        Op::Write(params, words)
    }

    fn enter(&mut self, spec: &Spec) -> Op {
        let may =
            |(_, rec): &(&u64, &Rec)| rec.runnable && spec.realms[&rec.rd].life == Life::Active;
        let mut all: Vec<u64> = spec.recs.iter().filter(may).map(|(pa, _)| *pa).collect();
        if all.is_empty() || self.random.percent(10) {
            all = spec.recs.keys().copied().collect();
        }
        let Some(rec) = self.random.of(&all) else {
            return self.rec_create(spec);
        };
        self.enter_of(spec, rec)
    }

    fn enter_of(&mut self, spec: &Spec, rec: u64) -> Op {
        let run = self.page(spec, State::Ns);
        let fits = spec.recs.get(&rec).map(|rec| rec.pending);
        let mut flags = match fits {
            Some(Pending::Access(..)) => self.random.below(4),
            Some(Pending::Abort) => self.random.below(4) & !self.random.below(2),
            Some(Pending::Ripas { .. }) => self.random.below(2) << 4,
            _ => 0,
        };
        if self.random.percent(10) {
            flags |= self.random.below(32);
        }
        if self.random.percent(2) {
            flags |= 1 << self.random.below(64);
        }
        let act = self.act(spec, rec);
        let mut words = vec![(0, flags)];
        words.extend((0..31).map(|n| (0x200 + 8 * n, self.random.next())));
        if spec
            .recs
            .get(&rec)
            .is_some_and(|rec| spec.realms[&rec.rd].host_lrs)
        {
            words.extend(self.interrupts());
        }
        let rec = if self.random.percent(5) {
            self.granule(spec, State::Rec)
        } else {
            rec
        };
        let enter = Op::Enter(rec, self.or_bad(spec, run), act);
        self.queue.push_back(enter);
        Op::Write(run, words)
    }

    /// Words of a run page for a realm whose interrupts are the host's.
    fn interrupts(&mut self) -> Vec<(u64, u64)> {
        let mut hcr = self.random.next() & (0xfe | 1 << 14);
        let mut lrs: [u64; 16] = std::array::from_fn(|n| {
            let intid = [3, 27, 40, 8192][n % 4] + n as u64;
            let state = self.random.below(4) << 62;
            let rest = self.random.below(2) << 60 | self.random.below(2) << 41;
            state | rest | self.random.below(32) << 51 | intid
        });
        let which = self.random.below(4) as usize;
        match self.random.below(25) {
            0 => hcr ^= 1 << self.random.below(64),
            1 => lrs[which] ^= 1 << (32 + self.random.below(32)),
            2 => lrs[which] = 1 << 62 | (1020 + self.random.below(8000)),
            3 => lrs[which] = 1 << 62 | lrs[(which + 1) % 4] & 0xffff_ffff,
            4 => lrs[which] = 1 << 63 | 1 << 16,
            _ => {}
        }
        let all = std::iter::once(hcr).chain(lrs);
        (0x300..).step_by(8).zip(all).collect()
    }

    fn psci_complete(&mut self, spec: &Spec) -> Op {
        let waits = |pending| match pending {
            Pending::CpuOn(index, ..) | Pending::AffinityInfo(index) => Some(index),
            _ => None,
        };
        let all = spec.recs.iter();
        let all: Vec<(u64, u64, u64)> = all
            .filter_map(|(pa, rec)| Some((*pa, rec.rd, waits(rec.pending)?)))
            .collect();
        let Some((calling, rd, index)) = self.random.of(&all) else {
            if self.random.percent(80) {
                return self.enter(spec);
            }
            let recs = [c_state(State::Rec), c_state(State::Rec), Wanted::Number(0)];
            return self.call(0xC400_0164, &recs, spec);
        };
        let mut others = spec.recs.iter();
        let target = others.find(|(_, rec)| rec.rd == rd && rec.index == index);
        let target = target.map_or(calling, |(pa, _)| *pa);
        let status = match self.random.below(10) {
            0..=5 => 0,
            6..=8 => -3,
            _ => self.random.below(8) as i64 - 6,
        };
        let of_realm = |(pa, rec): (&u64, &Rec)| (rec.rd == rd).then_some(*pa);
        let all: Vec<u64> = spec.recs.iter().filter_map(of_realm).collect();
        let target = match self.random.below(12) {
            0 => Wanted::State(State::Rec),
            1 | 2 => Wanted::Number(self.random.of(&all).unwrap_or(target)),
            _ => Wanted::Number(target),
        };
        let arguments = [
            Wanted::Number(calling),
            target,
            Wanted::Number(status as u64),
        ];
        self.call(0xC400_0164, &arguments, spec)
    }

    fn set_posted(&mut self, spec: &Spec) -> Op {
        let rd = self.realm(spec);
        let realm = rd.map(|rd| &spec.realms[&rd]);
        let from = realm.map_or(0, |realm| realm.shared_from);
        let ipa = match self.random.below(8) {
            0 => from | 0x0800_0000 | self.random.below(0x100_0000) & !0xfff,
            1 => self.ipa(spec, realm, 3),
            2 => from | 0x0900_0008,
            3 => 1 << 52,
            _ => from | 0x0900_0000,
        };
        let page = if self.random.percent(40) {
            Wanted::Number(0)
        } else {
            Wanted::State(State::Ns)
        };
        let rd = rd.map_or(c_state(State::Rd), Wanted::Number);
        let arguments = [rd, page, Wanted::Number(ipa), Wanted::Number(0)];
        self.call(0xC600_0013, &arguments, spec)
    }

    /// An address of a realm's, of those that calls meet at, a multiple of a level's
    /// span; sometimes none of the realm's.
    fn ipa(&mut self, spec: &Spec, realm: Option<&Realm>, level: i8) -> u64 {
        let (bits, shared) =
            realm.map_or((40, 1 << 39), |realm| (realm.ipa_bits, realm.shared_from));
        let hot = [
            0,
            0x4000_0000,
            shared,
            shared,
            shared | 0x4000_0000,
            shared.wrapping_sub(spec.machine.span(2)),
            (1 << bits) - spec.machine.span(2),
        ];
        let near = [0, 0, 0, 1, 1, 2];
        let within = [0, 0, 1, 1, 2, 3, (1 << spec.machine.stride()) - 1];
        let base = self.random.of(&hot).unwrap_or_default();
        let block = self.random.of(&near).unwrap_or_default() * spec.machine.span(2);
        let page = self.random.of(&within).unwrap_or_default() * spec.machine.page();
        let ipa = base.wrapping_add(block).wrapping_add(page);
        match self.random.below(40) {
            0 => ipa + 8,
            1 => 1 << bits,
            2 => self.random.next(),
            3 => ipa & !(spec.machine.page() - 1) | 1 << 63,
            4 => ipa,
            _ => ipa & !(spec.machine.span(level.clamp(-1, 3)) - 1),
        }
    }

    /// A realm, one of its addresses, and a level that a command may name there:
    /// `deeper` than where a walk ends.
    fn place(&mut self, spec: &Spec, deeper: i8) -> (Wanted, u64, i64) {
        let Some(rd) = self.realm(spec) else {
            return (c_state(State::Rd), 0, 3);
        };
        let realm = &spec.realms[&rd];
        let ipa = self.ipa(spec, Some(realm), 3);
        let rd_or_bad = Wanted::Number(self.or_bad(spec, rd));
        if ipa >> realm.ipa_bits != 0 || self.random.percent(8) {
            let level = self.random.below(8) as i64 - 3;
            let at = (level as i8 - 1).clamp(-1, 3);
            return (rd_or_bad, ipa & !(spec.machine.span(at) - 1), level);
        }
        let level = realm.tables.walk(ipa, 3).level + deeper;
        let above = (level - 1).clamp(-1, 3);
        let ipa = if self.random.percent(97) {
            ipa & !(spec.machine.span(above) - 1)
        } else {
            ipa
        };
        (rd_or_bad, ipa, level.into())
    }

    fn rtt_create(&mut self, spec: &Spec) -> Op {
        let (rd, ipa, level) = self.place(spec, 1);
        let arguments = [
            rd,
            c_state(State::Delegated),
            Wanted::Number(ipa),
            Wanted::Number(level as u64),
        ];
        self.call(0xC400_015D, &arguments, spec)
    }

    fn at_table(&mut self, function: u64, spec: &Spec) -> Op {
        let (rd, ipa, level) = self.place(spec, 0);
        let arguments = [rd, Wanted::Number(ipa), Wanted::Number(level as u64)];
        self.call(function, &arguments, spec)
    }

    fn rtt_destroy(&mut self, spec: &Spec) -> Op {
        self.at_table(0xC400_015E, spec)
    }

    fn rtt_fold(&mut self, spec: &Spec) -> Op {
        self.at_table(0xC400_0166, spec)
    }

    fn rtt_read_entry(&mut self, spec: &Spec) -> Op {
        let rd = self.realm(spec);
        let realm = rd.map(|rd| &spec.realms[&rd]);
        let level = self.random.below(7) as i8 - 2;
        let ipa = self.ipa(spec, realm, level);
        let rd = rd.map_or(c_state(State::Rd), Wanted::Number);
        let level = i64::from(level) as u64;
        let arguments = [rd, Wanted::Number(ipa), Wanted::Number(level)];
        self.call(0xC400_0161, &arguments, spec)
    }

    /// An entry for the host's memory: where, and of which level.
    fn shared_place(&mut self, spec: &Spec) -> (Wanted, u64, u64) {
        let Some(rd) = self.realm(spec) else {
            return (c_state(State::Rd), 0, 3);
        };
        let realm = &spec.realms[&rd];
        let level = match self.random.below(20) {
            0 => self.random.below(8) as i64 - 3,
            1..=4 => 2,
            _ => 3,
        };
        let mut ipa = self.ipa(spec, Some(realm), level as i8);
        if self.random.percent(85) && ipa >> realm.ipa_bits == 0 {
            ipa |= realm.shared_from;
        }
        (Wanted::Number(self.or_bad(spec, rd)), ipa, level as u64)
    }

    fn map(&mut self, spec: &Spec) -> Op {
        let (rd, ipa, level) = self.shared_place(spec);
        let machine = &spec.machine;
        let memory = if level == 2 && self.random.percent(90) {
            let spans = (machine.ram_size / machine.span(2)).max(1);
            machine.ram_base + self.random.below(spans) * machine.span(2)
        } else {
            self.granule(spec, State::Ns)
        };
        let mut desc = memory | (5 + self.random.below(3)) << 2 | self.random.below(4) << 6;
        if self.random.percent(5) {
            desc ^= 1 << self.random.below(64);
        }
        let arguments = [
            rd,
            Wanted::Number(ipa),
            Wanted::Number(level),
            Wanted::Number(desc),
        ];
        self.call(0xC400_015F, &arguments, spec)
    }

    fn unmap(&mut self, spec: &Spec) -> Op {
        let (rd, ipa, level) = self.shared_place(spec);
        let arguments = [rd, Wanted::Number(ipa), Wanted::Number(level)];
        self.call(0xC400_0162, &arguments, spec)
    }

    /// A realm and one of its own pages, mostly.
    fn own_page(&mut self, spec: &Spec) -> (Wanted, Wanted) {
        let has_own = |(rd, realm): (&u64, &Realm)| (realm.shared_from != 0).then_some(*rd);
        let with_own: Vec<u64> = spec.realms.iter().filter_map(has_own).collect();
        let rd = self.random.of(&with_own).or_else(|| self.realm(spec));
        let realm = rd.map(|rd| &spec.realms[&rd]);
        let mut ipa = self.ipa(spec, realm, 3);
        if let Some(realm) = realm
            && self.random.percent(85)
        {
            ipa &= !realm.shared_from;
        }
        let rd = rd.map_or(c_state(State::Rd), Wanted::Number);
        (rd, Wanted::Number(ipa))
    }

    fn data_create(&mut self, spec: &Spec) -> Op {
        let (rd, ipa) = self.own_page(spec);
        let flags = if self.random.percent(95) {
            let Wanted::Number(rd) = rd else {
                return self.data_create_unknown(spec);
            };
            let is_realm = spec
                .realms
                .get(&rd)
                .is_some_and(|realm| realm.measured.is_some());
            u64::from(is_realm) & self.random.below(2)
        } else {
            self.random.below(3)
        };
        let arguments = [
            rd,
            c_state(State::Delegated),
            ipa,
            c_state(State::Ns),
            Wanted::Number(flags),
        ];
        self.call(0xC400_0153, &arguments, spec)
    }

    fn data_create_unknown(&mut self, spec: &Spec) -> Op {
        let (rd, ipa) = self.own_page(spec);
        self.call(0xC400_0154, &[rd, c_state(State::Delegated), ipa], spec)
    }

    fn data_destroy(&mut self, spec: &Spec) -> Op {
        let (rd, ipa) = self.own_page(spec);
        self.call(0xC400_0155, &[rd, ipa], spec)
    }

    /// A run of memory for a realm: delegated granules, or the host's.
    fn data_map(&mut self, spec: &Spec) -> Op {
        let (rd, ipa) = self.own_page(spec);
        let top = self.range_end(spec, ipa);
        let (function, state) = if self.random.percent(50) {
            (0xC600_0016, State::Delegated)
        } else {
            (0xC600_0017, State::Ns)
        };
        self.call(function, &[rd, ipa, top, c_state(state)], spec)
    }

    /// A block of the host's memory for a realm that has no table there.
    fn donate_block(&mut self, spec: &Spec) -> Op {
        let (machine, rd) = (&spec.machine, self.realm(spec));
        let span = machine.span(2);
        // What is scrubbed in the end is scrubbed in earnest: 512 MiB take a while.
        if span > 64 << 20 && !self.random.percent(4) {
            return self.data_map(spec);
        }
        let ipa = self.ipa(spec, rd.map(|rd| &spec.realms[&rd]), 2);
        let ipa = rd.map_or(ipa, |rd| ipa & !spec.realms[&rd].shared_from);
        let block = self.random.below((machine.ram_size / span).max(1));
        let arguments = [
            rd.map_or(c_state(State::Rd), Wanted::Number),
            Wanted::Number(ipa),
            Wanted::Number(ipa.wrapping_add(span)),
            Wanted::Number(machine.ram_base + block * span),
        ];
        self.call(0xC600_0017, &arguments, spec)
    }

    fn data_unmap(&mut self, spec: &Spec) -> Op {
        let (rd, ipa) = self.own_page(spec);
        let top = self.range_end(spec, ipa);
        self.call(0xC600_0018, &[rd, ipa, top], spec)
    }

    /// Where a range of addresses ends, mostly.
    fn range_end(&mut self, spec: &Spec, base: Wanted) -> Wanted {
        let Wanted::Number(base) = base else {
            return base;
        };
        let machine = &spec.machine;
        let size = machine.span([3, 3, 3, 2, 2, 1][self.random.below(6) as usize]);
        let count = self.random.below(4);
        Wanted::Number(match self.random.below(20) {
            0 => base,
            1 => base.wrapping_add(size / 2 + 8),
            2 => u64::MAX,
            _ => base.wrapping_add(size).wrapping_add(count * machine.page()),
        })
    }

    fn init_ripas(&mut self, spec: &Spec) -> Op {
        let (rd, base) = self.own_page(spec);
        let top = self.range_end(spec, base);
        self.call(0xC400_0168, &[rd, base, top], spec)
    }

    /// Mostly what a vCPU waits for: all of it, or a part.
    fn set_ripas(&mut self, spec: &Spec) -> Op {
        let asks = |(pa, rec): (&u64, &Rec)| match rec.pending {
            Pending::Ripas { reached, top, .. } => Some((rec.rd, *pa, reached, top)),
            _ => None,
        };
        let all: Vec<_> = spec.recs.iter().filter_map(asks).collect();
        let Some((rd, rec, reached, last)) = self.random.of(&all) else {
            if self.random.percent(80) {
                return self.enter(spec);
            }
            let (rd, base) = self.own_page(spec);
            let top = self.range_end(spec, base);
            return self.call(0xC400_0169, &[rd, c_state(State::Rec), base, top], spec);
        };
        let page = spec.machine.page();
        let base = match self.random.below(25) {
            0 => reached.wrapping_add(page),
            1 => reached.wrapping_sub(page),
            2 => reached.wrapping_add(8),
            _ => reached,
        };
        let part = [page, 2 * page, spec.machine.span(2)][self.random.below(3) as usize];
        let top = match self.random.below(25) {
            0 => base,
            1 => last.wrapping_add(page),
            2 => last.wrapping_sub(8),
            3..=11 => base.wrapping_add(part),
            _ => last,
        };
        let or_another = |one, state, chance: bool| match chance {
            true => Wanted::State(state),
            false => Wanted::Number(one),
        };
        let arguments = [
            or_another(rd, State::Rd, self.random.percent(5)),
            or_another(rec, State::Rec, self.random.percent(5)),
            Wanted::Number(base),
            Wanted::Number(top),
        ];
        self.call(0xC400_0169, &arguments, spec)
    }

    /// A guest writes calls of its host's into its memory, each with a register that no
    /// other has.
    fn fill_a_call(&mut self, spec: &Spec) -> Op {
        let words = (0..spec.machine.page()).step_by(8).take(512);
        let words = words.map(|at| (at, self.random.next())).collect();
        Op::Write(self.page(spec, State::Data), words)
    }

    /// The host writes its own memory, a guest its.
    fn fill(&mut self, spec: &Spec) -> Op {
        let state = if self.random.percent(50) {
            State::Ns
        } else {
            State::Data
        };
        Op::Fill(self.page(spec, state), self.random.next() | 1)
    }

    /// A whole table's worth of neighbouring granules, as a realm's own memory or as
    /// the host's; then it is folded.
    fn whole_table(&mut self, spec: &Spec) -> Op {
        let machine = &spec.machine;
        let (span, size) = (machine.span(2), machine.page());
        let Some(rd) = self.realm(spec) else {
            return self.nonsense(spec);
        };
        let realm = &spec.realms[&rd];
        let own = realm.shared_from != 0 && self.random.percent(50);
        let (ipa, state) = match own {
            true => (0, State::Ns),
            false => (realm.shared_from, State::Ns),
        };
        // Where there is a table with nothing in it.
        let slot = realm.tables.walk(ipa, 3);
        let spans = machine.ram_size / span;
        let block = machine.ram_base + self.random.below(spans.max(1)) * span;
        let free = |pa: u64| {
            spec.granule(pa)
                .is_some_and(|g| g.state == state && g.uses == 0)
        };
        let fits = spans > 0
            && slot.level == 3
            && span / size <= 2048
            && (block..block + span).step_by(size as usize).all(free);
        if !fits {
            return self.rtt_create(spec);
        }
        for at in (0..span).step_by(size as usize) {
            let (entry, memory) = (ipa + at, block + at);
            if own {
                self.queue
                    .push_back(Op::Call([0xC400_0151, memory, 0, 0, 0, 0]));
                self.queue
                    .push_back(Op::Call([0xC400_0154, rd, memory, entry, 0, 0]));
            } else {
                let desc = memory | 6 << 2 | 3 << 6;
                self.queue
                    .push_back(Op::Call([0xC400_015F, rd, entry, 3, desc, 0]));
            }
        }
        self.queue
            .push_back(Op::Call([0xC400_0166, rd, ipa, 3, 0, 0]));
        self.next(spec)
    }

    fn nonsense(&mut self, spec: &Spec) -> Op {
        let function = match self.random.below(6) {
            0 => 0xC400_0150,
            1 => 0xC400_0165,
            2 => 0xC400_0156,
            3 => 0xC400_0160,
            4 => 0xC400_0163,
            _ => 0xC400_016A + self.random.below(0x20),
        };
        let number = [0, 1, 0x1_0000, 0x2_0000][self.random.below(4) as usize];
        self.call(function, &[Wanted::Number(number)], spec)
    }
}

/// What a host does that takes everything down again: `None` when all is its own.
pub fn take_down(spec: &Spec) -> Option<Op> {
    if let Some(rd) = spec.realms.keys().next() {
        return take_realm_down(spec, *rd);
    }
    let given = |state| {
        spec.granules()
            .find(move |(_, granule)| granule.state == state)
    };
    let (pa, _) = given(State::Delegated).or_else(|| given(State::Unscrubbed))?;
    let end = spec.machine.ram_base + spec.machine.ram_size;
    Some(Op::Call([0xC600_0015, pa, end, 0, 0, 0]))
}

//! What guests do at random when they run: good calls and accesses mostly, and of each
//! kind of bad ones some.

use super::Caller;
use crate::spec::tables::{Entry, Ripas};
use crate::spec::{Act, Realm, Rec, Spec, mpidr_of};

/// One of so many arguments is each kind of a bad one.
const BAD: u64 = 35;

impl Caller {
    /// What the vCPU at `rec` does.
    pub(super) fn act(&mut self, spec: &Spec, rec: u64) -> Act {
        let Some(rec) = spec.recs.get(&rec) else {
            return Act::Wait;
        };
        let realm = &spec.realms[&rec.rd];
        let asks = realm.measured.is_some() && self.random.percent(65);
        match self.random.below(20) {
            _ if asks => self.asks(spec, realm),
            0..9 => self.powers(realm, rec),
            9 => Act::Wait,
            // Of a guest that is no realm there is none.
            10 => self.asks(spec, realm),
            _ => {
                let register = self.random.percent(70);
                let register = register.then(|| self.random.below(4) as usize);
                Act::Access {
                    // 52 bits, as a fault can tell.
                    ipa: self.ipa(spec, Some(realm), 3) % (1 << 52) / 4096 * 4096
                        + self.random.below(512) * 8,
                    writes: self.random.percent(50),
                    register,
                }
            }
        }
    }

    /// A call with this function and these arguments, and anything in the registers
    /// behind.
    fn calls(&mut self, smc: bool, function: u64, arguments: &[u64]) -> Act {
        let mut x = [0; 11];
        x.fill_with(|| self.random.next());
        x[0] = function;
        x[1..=arguments.len()].copy_from_slice(arguments);
        Act::Call { smc, x }
    }

    fn powers(&mut self, realm: &Realm, rec: &Rec) -> Act {
        use crate::spec::psci::*;
        // A realm's HVC is undefined.
        let smc = self
            .random
            .percent(if realm.measured.is_some() { 90 } else { 40 });
        let target = match self.random.below(BAD) {
            0 => mpidr_of(rec.index),
            1 => mpidr_of(realm.made),
            2 => self.random.next(),
            // Another's, if there is one.
            _ => {
                let other = rec.index + 1 + self.random.below(realm.made.saturating_sub(1));
                mpidr_of(other % realm.made)
            }
        };
        let entry = match self.random.below(BAD) {
            0 => 0x8000_0002,
            1 => 1 << realm.ipa_bits,
            2 => realm.shared_from | 0x4000_0000,
            _ => 0x4000_0000 + 4 * self.random.below(9),
        };
        let [one, two] = [self.random.next(), self.random.next()];
        match self.random.below(10) {
            0 if self.random.percent(20) => self.calls(smc, SYSTEM_OFF, &[one]),
            1 if self.random.percent(20) => self.calls(smc, SYSTEM_RESET, &[]),
            2 => self.calls(smc, CPU_OFF, &[]),
            3 => self.calls(smc, CPU_SUSPEND, &[one, two]),
            4..=6 => self.calls(smc, CPU_ON, &[target, entry, one]),
            7 => {
                let level = u64::from(self.random.percent(10));
                self.calls(smc, AFFINITY_INFO, &[target, level])
            }
            8 => self.calls(smc, AFFINITY_INFO, &[target, 0]),
            // Nobody's.
            _ => self.calls(smc, 0x8400_00ff, &[]),
        }
    }

    /// A call of RSI, mostly by SMC.
    fn asks(&mut self, spec: &Spec, realm: &Realm) -> Act {
        use crate::spec::rsi::*;
        let index = match self.random.below(BAD) {
            0 => 5,
            1 => self.random.next(),
            _ => self.random.below(5),
        };
        let size = match self.random.below(BAD) {
            0 => 65,
            1 => self.random.next(),
            2 => 1 << 32 | 32,
            _ => [0, 1, 31, 32, 33, 63, 64, self.random.below(65)][self.random.below(8) as usize],
        };
        let (function, arguments) = match self.random.below(20) {
            0 => (
                VERSION,
                vec![[0x1_0000, 0x1_0001, 0x2_0000][index as usize % 3]],
            ),
            1 => (FEATURES, vec![index]),
            2 | 3 => (MEASUREMENT_READ, vec![index]),
            4 | 5 => (MEASUREMENT_EXTEND, vec![index, size]),
            6..=8 => (REALM_CONFIG, vec![self.place_of(spec, realm, 0x1000)]),
            9..=11 => (HOST_CALL, vec![self.place_of(spec, realm, 0x100)]),
            12..=14 => {
                let (base, top) = self.span_of(spec, realm);
                (IPA_STATE_GET, vec![base, top])
            }
            15 => (0xC400_019A + self.random.below(0x16), vec![index]),
            _ => {
                let (base, top) = self.span_of(spec, realm);
                let ripas = match self.random.below(BAD) {
                    0 => 2,
                    1 => self.random.next(),
                    _ => self.random.below(2),
                };
                let flags = self.random.next() << 1 | self.random.below(2);
                (IPA_STATE_SET, vec![base, top, ripas, flags])
            }
        };
        // Of a function the low half counts.
        let above = if self.random.percent(10) {
            self.random.next() << 32
        } else {
            0
        };
        let smc = self.random.percent(95);
        self.calls(smc, function | above, &arguments)
    }

    /// An address for a structure: mostly in memory that a realm has.
    fn place_of(&mut self, spec: &Spec, realm: &Realm, size: u64) -> u64 {
        let is_memory = |entry: &Entry| matches!(entry, Entry::Assigned(Ripas::Ram, _));
        let has_some = realm.tables.all.iter().filter_map(|(key, table)| {
            let all = table.entries().len();
            let from = self.random.below(all as u64) as usize;
            let found = (from..all)
                .chain(0..from)
                .find(|n| is_memory(&table.entries()[*n]))?;
            Some(realm.tables.address(*key, found))
        });
        let has_some: Vec<u64> = has_some.collect();
        let ipa = match self.random.of(&has_some) {
            Some(ipa) if self.random.percent(80) => {
                ipa + self.random.below(spec.machine.page() / size) * size
            }
            _ => self.ipa(spec, Some(realm), 3) & !realm.shared_from & !(size - 1),
        };
        match self.random.below(BAD) {
            0 => ipa + size / 2,
            1 => ipa | realm.shared_from,
            2 => ipa | 1 << 63,
            3 => self.random.next() & !(size - 1),
            _ => ipa,
        }
    }

    /// Addresses in units of 4 KiB, mostly of a realm's own.
    fn span_of(&mut self, spec: &Spec, realm: &Realm) -> (u64, u64) {
        let (machine, unit) = (&spec.machine, 0x1000);
        let mut base = if self.random.percent(60) {
            self.built(spec)
        } else {
            self.ipa(spec, Some(realm), 3) & !realm.shared_from
        };
        if self.random.percent(30) {
            base = base.wrapping_add(self.random.below(20) * unit);
        }
        let size = match self.random.below(6) {
            0 | 1 => unit,
            2 | 3 => machine.page(),
            _ => machine.span(2),
        };
        let count = self.random.below(5);
        let top = match self.random.below(BAD) {
            0 => base,
            1 => base.wrapping_sub(unit),
            2 => base.wrapping_add(size / 2 + 8),
            3 => u64::MAX,
            4 => realm.shared_from,
            5 => realm.shared_from.wrapping_add(unit),
            6 => base.wrapping_add(size + unit),
            _ => base.wrapping_add(size + count * machine.page()),
        };
        let base = match self.random.below(BAD) {
            0 => base.wrapping_add(8),
            _ => base,
        };
        (base, top)
    }
}

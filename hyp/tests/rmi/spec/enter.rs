//! REC_ENTER: a vCPU runs, does one thing, and comes out.

use super::realms::Life;
use super::recs::{Pending, mpidr_of};
use super::tables::{Entry, Ripas};
use super::{Memory, NOTHING, Rec, Spec, State, Status, answer, ask};

/// What a guest does when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// WFI, which the host had trapped.
    Wait,
    /// A PSCI call by HVC: X0 to X3.
    Call([u64; 4]),
    /// A load or store of 8 bytes at `ipa` that nothing is mapped for; `register` is
    /// `None` where the syndrome does not tell (an access that cannot be emulated).
    Access {
        ipa: u64,
        writes: bool,
        register: Option<usize>,
    },
}

/// What the host finds in the run page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exit {
    pub reason: u64,
    /// EC and, of an abort, whether it can be emulated.
    pub class: u64,
    pub emulatable: bool,
    pub hpfar: u64,
    pub x: [u64; 4],
}

pub const CPU_SUSPEND: u64 = 0xC400_0001;
pub const CPU_OFF: u64 = 0x8400_0002;
pub const CPU_ON: u64 = 0xC400_0003;
pub const AFFINITY_INFO: u64 = 0xC400_0004;
pub const SYSTEM_OFF: u64 = 0x8400_0008;
pub const SYSTEM_RESET: u64 = 0x8400_0009;

const EMUL_MMIO: u64 = 1 << 0;
const INJECT_SEA: u64 = 1 << 1;

impl Spec {
    /// Whether this, done by the vCPU at `rec`, brings it out to the host.
    pub fn comes_out(&self, rec: u64, act: Act) -> bool {
        let Some(rec) = self.recs.get(&rec) else {
            return true;
        };
        let realm = &self.realms[&rec.rd];
        match act {
            Act::Wait => true,
            Act::Call([function, target, x2, _]) => match function {
                CPU_ON => {
                    let own = realm.shared_from == 0 || realm.is_protected(x2);
                    self.other(rec, target).is_some()
                        && x2.is_multiple_of(4)
                        && x2 >> realm.ipa_bits == 0
                        && own
                }
                AFFINITY_INFO => x2 == 0 && self.other(rec, target).is_some(),
                _ => true,
            },
            Act::Access { ipa, .. } => {
                if ipa >> realm.ipa_bits != 0 {
                    return realm.shared_from == 0;
                }
                if !realm.is_protected(ipa) {
                    let at = ipa - realm.shared_from;
                    return !(0x0800_0000..0x0900_0000).contains(&at);
                }
                let page = ipa & !(self.machine.page() - 1);
                // What is not RAM is the guest's mistake; what is there, is there.
                matches!(
                    realm.tables.walk(page, 3).entry,
                    Entry::Unassigned(Ripas::Ram | Ripas::Destroyed)
                        | Entry::Assigned(Ripas::Destroyed, _)
                )
            }
        }
    }

    /// The index of the vCPU with this MPIDR, if it is another of the same realm.
    fn other(&self, rec: &Rec, mpidr: u64) -> Option<u64> {
        let mut all = self.recs.values();
        all.find(|other| other.rd == rec.rd && mpidr_of(other.index) == mpidr)
            .map(|other| other.index)
            .filter(|index| *index != rec.index)
    }

    /// RMI_REC_ENTER(rec, run): X0 to X4, and what the run page says if the vCPU ran.
    /// What it does brings it out.
    pub fn enter(
        &mut self,
        rec: u64,
        run: u64,
        memory: Memory<'_>,
        act: Act,
    ) -> ([u64; 5], Option<Exit>) {
        match self.can_enter(rec, run, memory) {
            Err(status) => (answer(Err(status.into())), None),
            Ok(flags) => {
                self.answers(rec, flags, memory(run + 0x200));
                (answer(Ok(NOTHING)), Some(self.runs(rec, act)))
            }
        }
    }

    /// Its checks, in their order: the flags.
    fn can_enter(&self, rec: u64, run: u64, memory: Memory<'_>) -> Result<u64, Status> {
        ask(self.is(run, State::Ns), Status::Input)?;
        let rec = self.recs.get(&rec).ok_or(Status::Input)?;
        let flags = memory(run);
        match self.realms[&rec.rd].life {
            Life::New => return Err(Status::Realm(0)),
            Life::SystemOff => return Err(Status::Realm(1)),
            Life::Active => {}
        }
        ask(rec.runnable, Status::Rec)?;
        ask(flags & !0b1_1111 == 0, Status::Input)?;
        let (sea, mmio) = (flags & INJECT_SEA != 0, flags & EMUL_MMIO != 0);
        let fits = match rec.pending {
            Pending::CpuOn(..) | Pending::AffinityInfo(_) => false,
            Pending::Access(..) => true,
            // An SEA answers either, whatever else is asked.
            Pending::Abort => sea || !mmio,
            Pending::Nothing => !sea && !mmio,
        };
        ask(fits, Status::Rec)?;
        Ok(flags)
    }

    /// The host's answer to the last exit reaches the vCPU.
    fn answers(&mut self, rec: u64, flags: u64, value: u64) {
        let Some(rec) = self.recs.get_mut(&rec) else {
            return;
        };
        match rec.pending {
            Pending::Access(..) | Pending::Abort if flags & INJECT_SEA != 0 => {
                // It goes on at a vector of its own.
                rec.pc = None;
            }
            Pending::Access(writes, register) if flags & EMUL_MMIO != 0 => {
                rec.pc = rec.pc.map(|pc| pc.wrapping_add(4));
                if let Some(x) = rec.x.get_mut(register)
                    && !writes
                {
                    *x = Some(value);
                }
            }
            _ => {}
        }
        rec.pending = Pending::Nothing;
    }

    /// What becomes of what it does.
    fn runs(&mut self, pa: u64, act: Act) -> Exit {
        let mut rec = self.recs[&pa];
        let mut exit = Exit::default();
        if std::mem::take(&mut rec.kicked) {
            exit.reason = 1;
            self.recs.insert(pa, rec);
            return exit;
        }
        let plain = self.realms[&rec.rd].shared_from == 0;
        match act {
            Act::Wait => {
                exit.class = 0x01;
                rec.pc = rec.pc.map(|pc| pc.wrapping_add(4));
            }
            Act::Call(x) => {
                exit.reason = 3;
                rec.x = x.map(Some);
                self.calls(&mut rec, x);
                // X0 and as many arguments as the function has; of a plain guest all.
                let told = match x[0] {
                    CPU_ON | CPU_SUSPEND => 4,
                    AFFINITY_INFO => 3,
                    _ => 1,
                };
                // A 32-bit function's registers have 32 bits.
                let wide = x[0] >> 30 & 1 != 0;
                let counted = |x: u64| if wide { x } else { x & 0xffff_ffff };
                for (n, told) in exit.x.iter_mut().zip(x).take(if plain { 4 } else { told }) {
                    *n = counted(told);
                }
            }
            Act::Access {
                ipa,
                writes,
                register,
            } => {
                let realm = &self.realms[&rec.rd];
                exit.class = 0x24;
                exit.hpfar = ipa >> 12 << 4;
                let own = realm.is_protected(ipa);
                exit.emulatable = register.is_some() && !own;
                rec.pending = match register {
                    _ if own => Pending::Nothing,
                    Some(register) => Pending::Access(writes, register),
                    None => Pending::Abort,
                };
                if let (true, true, Some(register)) = (exit.emulatable, writes, register) {
                    exit.x[0] = rec.x[register].unwrap_or_default();
                }
            }
        }
        self.recs.insert(pa, rec);
        exit
    }

    fn calls(&mut self, rec: &mut Rec, x: [u64; 4]) {
        let [function, target, entry, context] = x;
        match function {
            CPU_OFF => rec.runnable = false,
            CPU_SUSPEND => rec.x[0] = Some(0),
            CPU_ON => {
                let other = self.other(rec, target).unwrap_or_default();
                rec.pending = Pending::CpuOn(other, entry, context);
            }
            AFFINITY_INFO => {
                rec.pending = Pending::AffinityInfo(self.other(rec, target).unwrap_or_default());
            }
            _ => {
                if let Some(realm) = self.realms.get_mut(&rec.rd) {
                    realm.life = Life::SystemOff;
                }
            }
        }
    }
}

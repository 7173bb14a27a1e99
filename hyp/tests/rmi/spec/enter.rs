//! REC_ENTER: a vCPU runs, does one thing, waits, and comes out.

use super::gic::{Told, may_be_given, told};
use super::realms::Life;
use super::recs::{Pending, mpidr_of};
use super::rsi::Registers;
use super::tables::{Entry, Ripas};
use super::{Memory, NOTHING, Rec, Spec, State, Status, answer, ask};

/// What a guest does when it runs; if it goes on then, it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// WFI, which the host had trapped.
    Wait,
    /// A call by SMC, or by HVC: X0 to X10.
    Call { smc: bool, x: Registers },
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
    /// EC; of an abort whether it can be emulated, and its fault's status.
    pub class: u64,
    pub emulatable: bool,
    pub fault: u64,
    pub hpfar: u64,
    pub x: [u64; 31],
    /// Of a change of RIPAS: base, top, value.
    pub ripas: [u64; 3],
    /// Of a call of the host.
    pub imm: u64,
    /// Of interrupts that are the host's.
    pub gic: Told,
    /// Where a plain guest is.
    pub pc: u64,
}

pub const CPU_SUSPEND: u64 = 0xC400_0001;
pub const CPU_OFF: u64 = 0x8400_0002;
pub const CPU_ON: u64 = 0xC400_0003;
pub const AFFINITY_INFO: u64 = 0xC400_0004;
pub const SYSTEM_OFF: u64 = 0x8400_0008;
pub const SYSTEM_RESET: u64 = 0x8400_0009;

/// X0 of what PSCI answers (DEN0022, 5.2.2).
const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const INVALID_ADDRESS: i64 = -9;
/// And AFFINITY_INFO, of what is on.
const ON: i64 = 0;

const EMUL_MMIO: u64 = 1 << 0;
const INJECT_SEA: u64 = 1 << 1;
const REJECT: u64 = 1 << 4;

/// Classes of exceptions at EL1: of what is undefined, of an abort.
const UNDEFINED: u64 = 0x00;
const ABORT: u64 = 0x25;
/// EL1's vector for them, by a VBAR_EL1 of 0, which no guest moves here.
const VECTOR: u64 = 0x200;

/// What the host has in a run page for its interrupts.
fn given(run: u64, memory: Memory<'_>) -> [u64; 17] {
    std::array::from_fn(|n| memory(run + 0x300 + 8 * n as u64))
}

impl Rec {
    /// It takes an exception at EL1, for what it did at its PC.
    fn takes(&mut self, class: u64) {
        self.taken = (class, self.pc);
        self.pc = VECTOR;
    }
}

impl Spec {
    /// Whether it is told here what becomes of this, done by the vCPU at `rec`: not of
    /// accesses of an interrupt controller that is EL2's.
    pub fn tells(&self, rec: u64, act: Act) -> bool {
        let (Some(rec), Act::Access { ipa, .. }) = (self.recs.get(&rec), act) else {
            return true;
        };
        let realm = &self.realms[&rec.rd];
        let at = ipa.wrapping_sub(realm.shared_from);
        realm.host_lrs || !(0x0800_0000..0x0900_0000).contains(&at)
    }

    /// The index of the vCPU of the same realm that has this MPIDR.
    fn named(&self, rec: &Rec, mpidr: u64) -> Option<u64> {
        let mut all = self.recs.values();
        all.find(|other| other.rd == rec.rd && mpidr_of(other.index) == mpidr)
            .map(|other| other.index)
    }

    /// RMI_REC_ENTER(rec, run): X0 to X4, and what the run page says if the vCPU ran.
    pub fn enter(
        &mut self,
        rec: u64,
        run: u64,
        memory: Memory<'_>,
        act: Act,
    ) -> ([u64; 5], Option<Exit>) {
        let flags = match self.can_enter(rec, run, memory) {
            Err(status) => return (answer(Err(status.into())), None),
            Ok(flags) => flags,
        };
        let gprs = std::array::from_fn(|n| memory(run + 0x200 + 8 * n as u64));
        let mut vcpu = self.recs[&rec];
        let mut exit = match self.answers(&mut vcpu, flags, &gprs) {
            Some(exit) => exit,
            None => self.runs(&mut vcpu, act),
        };
        let realm = &self.realms[&vcpu.rd];
        if realm.shared_from == 0 {
            exit.pc = vcpu.pc;
        }
        if realm.host_lrs {
            exit.gic = told(&self.machine, &given(run, memory));
        }
        self.recs.insert(rec, vcpu);
        (answer(Ok(NOTHING)), Some(exit))
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
        if self.realms[&rec.rd].host_lrs {
            let may = may_be_given(&self.machine, &given(run, memory));
            ask(may, Status::Rec)?;
        }
        let (sea, mmio) = (flags & INJECT_SEA != 0, flags & EMUL_MMIO != 0);
        let fits = match rec.pending {
            Pending::CpuOn(..) | Pending::AffinityInfo(_) => false,
            Pending::Access(..) => true,
            // An SEA answers either, whatever else is asked.
            Pending::Abort => sea || !mmio,
            Pending::Nothing | Pending::Ripas { .. } | Pending::HostCall(_) => !sea && !mmio,
        };
        ask(fits, Status::Rec)?;
        Ok(flags)
    }

    /// The host's answer to the last exit reaches the vCPU; if it cannot, that is the
    /// next exit.
    fn answers(&mut self, rec: &mut Rec, flags: u64, gprs: &[u64; 31]) -> Option<Exit> {
        match rec.pending {
            Pending::Access(..) | Pending::Abort if flags & INJECT_SEA != 0 => rec.takes(ABORT),
            Pending::Access(writes, register) if flags & EMUL_MMIO != 0 => {
                rec.pc += 4;
                if !writes {
                    rec.x[register] = gprs[0];
                }
            }
            _ => {
                let exit = self.finish_rsi(rec, flags & REJECT != 0, gprs);
                if exit.is_some() {
                    return exit;
                }
            }
        }
        rec.pending = Pending::Nothing;
        None
    }

    /// It runs, until it comes out.
    fn runs(&mut self, rec: &mut Rec, act: Act) -> Exit {
        if std::mem::take(&mut rec.kicked) {
            return Exit {
                reason: 1,
                ..Exit::default()
            };
        }
        let came = match act {
            Act::Wait => None,
            Act::Call { smc, x } => {
                rec.x[..x.len()].copy_from_slice(&x);
                self.calls(rec, smc, &x)
            }
            Act::Access {
                ipa,
                writes,
                register,
            } => self.accesses(rec, ipa, writes, register),
        };
        came.unwrap_or_else(|| {
            rec.pc += 4;
            Exit {
                class: 0x01,
                ..Exit::default()
            }
        })
    }

    /// An access: `None` if it is no matter of the host's.
    fn accesses(
        &self,
        rec: &mut Rec,
        ipa: u64,
        writes: bool,
        register: Option<usize>,
    ) -> Option<Exit> {
        let realm = &self.realms[&rec.rd];
        let mut exit = Exit {
            class: 0x24,
            fault: 0x07,
            hpfar: ipa >> 12 << 4,
            ..Exit::default()
        };
        if realm.is_protected(ipa) {
            let page = ipa & !(self.machine.page() - 1);
            return match realm.tables.walk(page, 3).entry {
                Entry::Unassigned(Ripas::Ram | Ripas::Destroyed)
                | Entry::Assigned(Ripas::Destroyed, _) => Some(exit),
                // It is there by now.
                Entry::Assigned(Ripas::Ram, _) => None,
                // What is not RAM is the guest's mistake.
                _ => {
                    rec.takes(ABORT);
                    None
                }
            };
        }
        // A plain guest's host hears of what is beyond its space, but not beyond the range
        // of addresses that it is told, the narrowest that there is for that space.
        let bits = match realm.shared_from {
            0 => [32, 36, 40, 42, 44, 48, 52]
                .into_iter()
                .find(|bits| *bits >= realm.ipa_bits)
                .unwrap_or(52),
            _ => realm.ipa_bits,
        };
        if ipa >> bits != 0 {
            rec.takes(ABORT);
            return None;
        }
        rec.pending = match register {
            Some(register) => Pending::Access(writes, register),
            None => Pending::Abort,
        };
        exit.emulatable = register.is_some();
        if let (true, Some(register)) = (writes, register) {
            exit.x[0] = rec.x[register];
        }
        Some(exit)
    }

    /// A call: `None` if the guest has its answer.
    fn calls(&mut self, rec: &mut Rec, smc: bool, x: &Registers) -> Option<Exit> {
        let realm = &self.realms[&rec.rd];
        if !smc && realm.measured.is_some() {
            rec.takes(UNDEFINED);
            return None;
        }
        if smc && self.is_rsi(rec, x) {
            return self.rsi(rec, x);
        }
        rec.pc += 4;
        match self.power(rec, x) {
            Ok(exit) => Some(exit),
            Err(x0) => {
                rec.x[0] = x0 as u64;
                None
            }
        }
    }

    /// A PSCI call that the host is told of; or what it is answered.
    fn power(&mut self, rec: &mut Rec, x: &Registers) -> Result<Exit, i64> {
        let [function, target, entry, context, ..] = *x;
        let realm = &self.realms[&rec.rd];
        let plain = realm.shared_from == 0;
        let ask = |so, otherwise| if so { Ok(()) } else { Err(otherwise) };
        match function {
            CPU_OFF => rec.runnable = false,
            CPU_SUSPEND => rec.x[0] = 0,
            CPU_ON => {
                let other = self.named(rec, target).ok_or(INVALID_PARAMETERS)?;
                let own = plain || realm.is_protected(entry);
                let there = entry >> realm.ipa_bits == 0 && entry.is_multiple_of(4);
                ask(own && there, INVALID_ADDRESS)?;
                ask(other != rec.index, ALREADY_ON)?;
                rec.pending = Pending::CpuOn(other, entry, context);
            }
            AFFINITY_INFO => {
                ask(entry == 0, INVALID_PARAMETERS)?;
                let other = self.named(rec, target).ok_or(INVALID_PARAMETERS)?;
                ask(other != rec.index, ON)?;
                rec.pending = Pending::AffinityInfo(other);
            }
            SYSTEM_OFF | SYSTEM_RESET => {
                if let Some(realm) = self.realms.get_mut(&rec.rd) {
                    realm.life = Life::SystemOff;
                }
            }
            _ => return Err(NOT_SUPPORTED),
        }
        // X0 and as many arguments as the function has; of a plain guest all.
        let told = match function {
            _ if plain => 4,
            CPU_ON | CPU_SUSPEND => 4,
            AFFINITY_INFO => 3,
            _ => 1,
        };
        // A 32-bit function's registers have 32 bits.
        let wide = function >> 30 & 1 != 0;
        let counted = |x: u64| if wide { x } else { x & 0xffff_ffff };
        let mut exit = Exit {
            reason: 3,
            ..Exit::default()
        };
        for (n, told) in exit.x.iter_mut().zip(x).take(told) {
            *n = counted(*told);
        }
        Ok(exit)
    }
}

//! RSI 1.0 (DEN0137 1.0-rel0, B5.3): what a realm's guest asks for by SMC.
//!
//! Its addresses are in units of 4 KiB whatever EL2's granule is: a larger one is RAM if
//! a part of it is to be, and EMPTY if all of it is to be (`docs/abi.md`).

use super::enter::Exit;
use super::recs::Pending;
use super::tables::{Entry, Ripas};
use super::{Realm, Rec, Spec};

/// Registers of a call: the function, and ten that it may read.
pub type Registers = [u64; 11];

pub const VERSION: u64 = 0xC400_0190;
pub const FEATURES: u64 = 0xC400_0191;
pub const MEASUREMENT_READ: u64 = 0xC400_0192;
pub const MEASUREMENT_EXTEND: u64 = 0xC400_0193;
pub const REALM_CONFIG: u64 = 0xC400_0196;
pub const IPA_STATE_SET: u64 = 0xC400_0197;
pub const IPA_STATE_GET: u64 = 0xC400_0198;
pub const HOST_CALL: u64 = 0xC400_0199;

/// Bytes that RSI's addresses are multiples of.
const UNIT: u64 = 0x1000;
/// Bytes of what HOST_CALL names: an immediate, and 31 registers from 8 on.
const CALL: u64 = 0x100;

/// X0 of an answer.
const SUCCESS: u64 = 0;
const ERROR_INPUT: u64 = 1;

/// Why a call is not answered with success.
pub enum Otherwise {
    /// X0.
    Answer(u64),
    /// It comes out, and is past the call.
    Comes(Box<Exit>),
    /// It comes out by an abort, and makes the call again.
    Again(Box<Exit>),
}

/// X1 on.
type Served = Result<Vec<u64>, Otherwise>;

fn ask(so: bool) -> Result<(), Otherwise> {
    if so {
        Ok(())
    } else {
        Err(Otherwise::Answer(ERROR_INPUT))
    }
}

/// Addresses that a call may name: units of the realm's own, one at least.
fn ask_range(realm: &Realm, base: u64, top: u64) -> Result<(), Otherwise> {
    let whole = base.is_multiple_of(UNIT) && top.is_multiple_of(UNIT);
    ask(whole && base < top && top <= realm.shared_from)
}

/// The exit of an abort at an address of the realm's own: a translation fault of the
/// level of the entry where its walk ended.
pub fn abort(ipa: u64, level: i8) -> Exit {
    Exit {
        class: 0x24,
        fault: if level < 0 {
            0b10_1011
        } else {
            0b100 + level as u64
        },
        hpfar: ipa >> 12 << 4,
        ..Exit::default()
    }
}

/// The registers of an answer: zero in what of X0 to X3 it has no output for.
fn answered(rec: &mut Rec, x0: u64, outputs: &[u64]) {
    rec.x[..4].copy_from_slice(&[x0, 0, 0, 0]);
    rec.x[1..=outputs.len()].copy_from_slice(outputs);
}

impl Spec {
    /// Whether this is a call of RSI, made by SMC: of its function the low half counts.
    pub(super) fn is_rsi(&self, rec: &Rec, x: &Registers) -> bool {
        let known = [
            VERSION,
            FEATURES,
            MEASUREMENT_READ,
            MEASUREMENT_EXTEND,
            REALM_CONFIG,
            IPA_STATE_SET,
            IPA_STATE_GET,
            HOST_CALL,
        ];
        self.realms[&rec.rd].measured.is_some() && known.contains(&(x[0] & 0xffff_ffff))
    }

    /// A call of RSI: `None` if the guest goes on.
    pub(super) fn rsi(&mut self, rec: &mut Rec, x: &Registers) -> Option<Exit> {
        let (x0, outputs) = match self.serve(rec, x) {
            Ok(outputs) => (SUCCESS, outputs),
            Err(Otherwise::Answer(x0)) if x[0] & 0xffff_ffff == VERSION => (x0, vec![0x1_0000; 2]),
            Err(Otherwise::Answer(x0)) => (x0, Vec::new()),
            Err(Otherwise::Comes(exit)) => {
                rec.pc += 4;
                return Some(*exit);
            }
            Err(Otherwise::Again(exit)) => return Some(*exit),
        };
        rec.pc += 4;
        answered(rec, x0, &outputs);
        None
    }

    fn serve(&mut self, rec: &mut Rec, x: &Registers) -> Served {
        let [function, a, b, c, d, ..] = *x;
        match function & 0xffff_ffff {
            VERSION => {
                ask(a == 0x1_0000)?;
                Ok(vec![0x1_0000; 2])
            }
            FEATURES => Ok(vec![0]),
            MEASUREMENT_READ => {
                ask(a <= 4)?;
                let measured = self.realms[&rec.rd].measured.as_ref();
                Ok(measured.map_or(Vec::new(), |all| all.words(a as usize).to_vec()))
            }
            MEASUREMENT_EXTEND => {
                ask((1..=4).contains(&a) && b <= 64)?;
                let by: Vec<u8> = x[3..].iter().flat_map(|word| word.to_le_bytes()).collect();
                let realm = self.realms.get_mut(&rec.rd);
                if let Some(measured) = realm.and_then(|realm| realm.measured.as_mut()) {
                    measured.extend(a as usize, &by[..b as usize]);
                }
                Ok(Vec::new())
            }
            REALM_CONFIG => self.realm_config(rec, a),
            IPA_STATE_GET => self.ipa_state_get(rec, a, b),
            IPA_STATE_SET => self.ipa_state_set(rec, [a, b, c, d]),
            _ => self.host_call(rec, a),
        }
    }

    /// Where a realm's own memory at `ipa` is.
    pub(super) fn own_memory(&self, rd: u64, ipa: u64, size: u64) -> Result<u64, Otherwise> {
        let realm = &self.realms[&rd];
        ask(ipa.is_multiple_of(size) && realm.is_protected(ipa))?;
        let slot = realm.tables.walk(ipa & !(self.machine.page() - 1), 3);
        match slot.entry {
            Entry::Assigned(Ripas::Ram, pa) => Ok(pa + ipa % self.machine.span(slot.level)),
            Entry::Unassigned(Ripas::Ram | Ripas::Destroyed)
            | Entry::Assigned(Ripas::Destroyed, _) => {
                Err(Otherwise::Again(Box::new(abort(ipa, slot.level))))
            }
            _ => Err(Otherwise::Answer(ERROR_INPUT)),
        }
    }

    /// RSI_REALM_CONFIG: 4 KiB, zero but for these.
    fn realm_config(&mut self, rec: &Rec, ipa: u64) -> Served {
        let pa = self.own_memory(rec.rd, ipa, UNIT)?;
        let realm = &self.realms[&rec.rd];
        let algorithm = realm.measured.as_ref().map_or(0, |all| all.algorithm());
        let mut words = vec![0; UNIT as usize / 8];
        words[0] = realm.ipa_bits.into();
        words[1] = algorithm;
        words[0x200 / 8..0x240 / 8].copy_from_slice(&realm.rpv);
        self.write(pa, &words);
        Ok(Vec::new())
    }

    /// RSI_IPA_STATE_GET: what the first entry says, and as far as those behind it in
    /// its table say the same.
    fn ipa_state_get(&mut self, rec: &Rec, base: u64, top: u64) -> Served {
        let realm = &self.realms[&rec.rd];
        ask_range(realm, base, top)?;
        let tables = &realm.tables;
        let told = |entry| match entry {
            Entry::Unassigned(ripas) | Entry::Assigned(ripas, _) => Some(ripas),
            _ => None,
        };
        let slot = tables.walk(base & !(self.machine.page() - 1), 3);
        let ripas = told(slot.entry);
        let entries = tables.all[&slot.key].entries();
        let alike = (slot.index..tables.end(&slot)).take_while(|n| told(entries[*n]) == ripas);
        let end = tables.address(slot.key, slot.index + alike.count());
        Ok(vec![end.min(top), ripas.map_or(0, |ripas| ripas as u64)])
    }

    /// RSI_IPA_STATE_SET(base, top, RIPAS, flags).
    fn ipa_state_set(&mut self, rec: &mut Rec, [base, top, ripas, flags]: [u64; 4]) -> Served {
        ask(ripas <= 1)?;
        ask_range(&self.realms[&rec.rd], base, top)?;
        let (page, ram) = (self.machine.page(), ripas == 1);
        let (down, up) = (
            |ipa| ipa / page * page,
            |ipa: u64| ipa.div_ceil(page) * page,
        );
        let (first, last) = if ram {
            (down(base), up(top))
        } else {
            (up(base), down(top))
        };
        if first >= last {
            return Ok(vec![top, 0]);
        }
        rec.pending = Pending::Ripas {
            reached: first,
            top: last,
            asked: (base, top),
            ram,
            destroyed: flags & 1 != 0,
        };
        Err(Otherwise::Comes(Box::new(Exit {
            reason: 4,
            ripas: [first, last, ripas],
            ..Exit::default()
        })))
    }

    /// RSI_HOST_CALL.
    fn host_call(&mut self, rec: &mut Rec, ipa: u64) -> Served {
        let pa = self.own_memory(rec.rd, ipa, CALL)?;
        let exit = Exit {
            reason: 5,
            imm: self.word(pa) & 0xffff,
            x: std::array::from_fn(|n| self.word(pa + 8 + 8 * n as u64)),
            ..Exit::default()
        };
        rec.pending = Pending::HostCall(ipa);
        Err(Otherwise::Comes(Box::new(exit)))
    }

    /// What the host answered to the last exit reaches a vCPU that is entered: or it
    /// does not run, for where it belongs is not there.
    pub(super) fn finish_rsi(
        &mut self,
        rec: &mut Rec,
        rejects: bool,
        gprs: &[u64; 31],
    ) -> Option<Exit> {
        match rec.pending {
            Pending::Ripas {
                reached,
                top,
                asked,
                ram,
                ..
            } => {
                let whole = reached == top;
                let reached = if whole { asked.1 } else { reached.max(asked.0) };
                let rejected = ram && rejects && !whole;
                answered(rec, SUCCESS, &[reached, rejected.into()]);
                None
            }
            Pending::HostCall(ipa) => {
                let x0 = match self.own_memory(rec.rd, ipa, CALL) {
                    Ok(pa) => {
                        self.write(pa + 8, gprs);
                        SUCCESS
                    }
                    Err(Otherwise::Answer(x0)) => x0,
                    Err(Otherwise::Again(exit) | Otherwise::Comes(exit)) => return Some(*exit),
                };
                answered(rec, x0, &[]);
                None
            }
            _ => None,
        }
    }
}

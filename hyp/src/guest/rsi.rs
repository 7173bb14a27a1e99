//! RSI 1.0 (DEN0137 1.0-rel0, B5.3): what a realm asks EL2 and, through it, its host.
//!
//! Addresses are 4 KiB-aligned whatever EL2's granule is. Of a larger granule only
//! what lies in the range whole becomes EMPTY, and what is RAM in part is RAM: so a
//! kernel with smaller pages shares by the other half, and the host never gets what
//! is RAM.

use core::ops::Range;

use ::rmi::rsi::{ACCEPT, CHANGE_DESTROYED, Code, GRANULE, HostCall, REJECT, RealmConfig, Rsi};
use ::rmi::run::{EnterFlags, ExitReason};
use arm64::syndrome::Class;
use attest::Algorithm;
use pgtable::{ChangeDestroyed, Ipa, Ripas, RttState};

use super::record::{Next, Record};
use super::vcpu::RunningVcpu;
use crate::measure::Digest;
use crate::memory::guarded::{self, ExternalAbort};
use crate::realm::{Mode, Realm};
use crate::rec::{Pending, RipasChange, VcpuState};

/// Fault status of a translation fault at level 0 (DDI0487, ESR_ELx.DFSC), and of
/// level −1.
const TRANSLATION_LEVEL_0: u64 = 0b000_100;
const TRANSLATION_LEVEL_MINUS_1: u64 = 0b101_011;

/// What comes of a call: X0 and its outputs, or the host is needed.
type Served<const N: usize> = Result<[u64; N], Failure>;

/// Why a call has no outputs.
enum Failure {
    /// It is answered by this.
    Code(Code),
    /// There is no memory at an address that is RAM: the host brings it, and the call
    /// is made again.
    Missing(Missing),
}

/// An address of a realm's that is RAM, where none is.
#[derive(Clone, Copy, Debug)]
pub struct Missing {
    ipa: u64,
    /// Of the entry that says so.
    level: i8,
}

impl Missing {
    /// The exit of a realm that reads it.
    pub fn exit(self) -> Record {
        let status = match u64::try_from(self.level) {
            Ok(level) => TRANSLATION_LEVEL_0 + level,
            Err(_) => TRANSLATION_LEVEL_MINUS_1,
        };
        Record {
            esr: u64::from(Class::DATA_ABORT_LOWER.0) << 26 | status,
            hpfar: self.ipa >> 12 << 4,
            ..Record::new(ExitReason::Sync)
        }
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self::Code(code)
    }
}

/// An address that names nothing which could be read or written is an argument like
/// any other.
impl From<ExternalAbort> for Failure {
    fn from(_: ExternalAbort) -> Self {
        Self::Code(Code::ErrorInput)
    }
}

/// The call of RSI that a realm makes, by W0.
pub fn call_of(realm: &Realm, state: &VcpuState) -> Option<Rsi> {
    let [function, registers @ ..] = *state.gprs.x.first_chunk::<11>()?;
    let function = u64::from(function as u32);
    Rsi::decode(function, registers).filter(|_| realm.mode == Mode::Realm)
}

/// Serves a call. The PC is at it.
pub fn serve(vcpu: &mut RunningVcpu<'_>, state: &mut VcpuState, call: Rsi) -> Next {
    let realm = vcpu.realm;
    match call {
        Rsi::Version { requested } => {
            let code = match requested {
                rmi::VERSION_1_0 => Code::Success,
                _ => Code::ErrorInput,
            };
            done(state, code, &[rmi::VERSION_1_0; 2])
        }
        Rsi::Features { .. } => answer(state, Ok([0])),
        Rsi::MeasurementRead { index } => answer(state, measurement(realm, index)),
        Rsi::MeasurementExtend { index, size, .. } => {
            let served = extend(realm, state, index, size);
            answer(state, served)
        }
        Rsi::AttestationTokenInit { .. } => {
            let served = begin_token(vcpu, state);
            answer(state, served)
        }
        Rsi::AttestationTokenContinue { ipa, offset, size } => {
            let part = offset..offset.saturating_add(size);
            match continue_token(vcpu, state, ipa, part) {
                Ok((code, written)) => done(state, code, &[written]),
                Err(failure) => answer::<1>(state, Err(failure)),
            }
        }
        Rsi::RealmConfig { ipa } => answer(state, configuration(vcpu, ipa)),
        Rsi::IpaStateGet { base, top } => answer(state, ripas(realm, base..top)),
        Rsi::IpaStateSet {
            base,
            top,
            ripas,
            flags,
        } => change_ripas(realm, state, base..top, ripas, flags),
        Rsi::HostCall { ipa } => call_host(vcpu, state, ipa),
    }
}

/// Answers a call, or leaves it to be made again.
fn answer<const N: usize>(state: &mut VcpuState, served: Served<N>) -> Next {
    match served {
        Ok(outputs) => done(state, Code::Success, &outputs),
        Err(Failure::Code(code)) => done(state, code, &[]),
        Err(Failure::Missing(missing)) => Next::Exit(missing.exit()),
    }
}

/// Answers by X0 and these outputs: the realm goes on behind its call.
fn done(state: &mut VcpuState, code: Code, outputs: &[u64]) -> Next {
    state.gprs.x[0] = code as u64;
    state.gprs.x[1..=outputs.len()].copy_from_slice(outputs);
    state.gprs.step();
    Next::Enter
}

fn measurement(realm: &Realm, index: u64) -> Served<8> {
    let measured = realm.measured.lock();
    let value = measured.as_ref().and_then(|measured| measured.read(index));
    let (words, _) = value.ok_or(Code::ErrorInput)?.as_chunks::<8>();
    Ok(core::array::from_fn(|n| u64::from_le_bytes(words[n])))
}

fn extend(realm: &Realm, state: &VcpuState, index: u64, size: u64) -> Served<0> {
    let bytes = zerocopy::IntoBytes::as_bytes(&state.gprs.x[3..11]);
    let size = usize::try_from(size).map_err(|_| Code::ErrorInput)?;
    let by = bytes.get(..size).ok_or(Code::ErrorInput)?;
    let mut measured = realm.measured.lock();
    let extended = measured.as_mut().is_some_and(|m| m.extend(index, by));
    if extended {
        Ok([])
    } else {
        Err(Code::ErrorInput.into())
    }
}

/// What a token says of a realm: its measurements as they are now.
fn shown(realm: &Realm) -> Option<(Algorithm, [Digest; 5])> {
    let measured = realm.measured.lock();
    let measured = measured.as_ref()?;
    Some((measured.algorithm, *measured.all()))
}

/// Begins a token over the challenge in X1 to X8: how long it can be. On a machine that
/// has no random numbers there is no key to sign it.
fn begin_token(vcpu: &RunningVcpu<'_>, state: &mut VcpuState) -> Served<1> {
    let attester = vcpu.cpu.attester.ok_or(Code::ErrorUnknown)?;
    let (algorithm, _) = shown(vcpu.realm).ok_or(Code::ErrorUnknown)?;
    let mut challenge = [0; 64];
    challenge.copy_from_slice(zerocopy::IntoBytes::as_bytes(&state.gprs.x[1..9]));
    state.token.begin(&challenge);
    Ok([attester.token_length(algorithm) as u64])
}

/// Writes the next part of a token to a part of the granule at `ipa`: how much, and
/// whether more of it is to come.
fn continue_token(
    vcpu: &RunningVcpu<'_>,
    state: &mut VcpuState,
    ipa: u64,
    part: Range<u64>,
) -> Result<(Code, u64), Failure> {
    let realm = vcpu.realm;
    let own = ipa.is_multiple_of(GRANULE) && realm.is_protected(ipa);
    if !own || part.start >= GRANULE || part.end > GRANULE {
        return Err(Code::ErrorInput.into());
    }
    let attester = vcpu.cpu.attester.ok_or(Code::ErrorState)?;
    let (algorithm, measurements) = shown(realm).ok_or(Code::ErrorState)?;
    let shown = attest::Realm {
        personalization: &realm.rpv,
        algorithm,
        measurements: &measurements,
    };
    // Signed first, while nobody waits for the realm's tables.
    let token = &mut state.token;
    let begun = token.step(attester, &shown, &mut []);
    let mut last = begun.ok_or(Code::ErrorState)?;
    let written = with_memory(vcpu, ipa, GRANULE, |pa| {
        let mut at = part.start;
        let mut bytes = [0; 512];
        while at < part.end && !last.complete {
            let room = bytes.len().min((part.end - at) as usize);
            last = match token.step(attester, &shown, &mut bytes[..room]) {
                Some(step) => step,
                None => break,
            };
            // SAFETY: memory of the realm's, which it stays while its tables are locked.
            unsafe { guarded::write_bytes(pa + at, &bytes[..last.written])? };
            at += last.written as u64;
        }
        Ok(at - part.start)
    })?;
    let code = if last.complete {
        Code::Success
    } else {
        Code::Incomplete
    };
    Ok((code, written))
}

/// Calls `f` with where the realm's own memory at `ipa` is, as long as it is there:
/// `ipa` is aligned to `size`, a power of two up to [`GRANULE`]. What the realm wrote
/// before is met, and what is written here it meets, with its caches off too.
fn with_memory<R>(
    vcpu: &RunningVcpu<'_>,
    ipa: u64,
    size: u64,
    f: impl FnOnce(u64) -> Result<R, ExternalAbort>,
) -> Result<R, Failure> {
    let (realm, features) = (vcpu.realm, vcpu.cpu.features);
    if !ipa.is_multiple_of(size) || !realm.is_protected(ipa) {
        return Err(Code::ErrorInput.into());
    }
    let rtt = realm.rtt.lock();
    let tables = rtt.as_ref().ok_or(Code::ErrorInput)?;
    let entry = tables.find(Ipa::new(ipa)).map_err(|_| Code::ErrorInput)?;
    let ripas = match entry.state {
        RttState::Assigned {
            ripas: Ripas::Ram,
            pa,
        } => {
            let offset = ipa & (tables.geometry().span(entry.level) - 1);
            let pa = pa.get() + offset;
            // With FEAT_S2FWB no realm looks past the caches.
            let reach_memory = || {
                if !features.fwb {
                    // SAFETY: memory of the realm's, which is RAM in EL2's own map.
                    unsafe { guarded::clean_invalidate(pa, size, features.dcache_line) };
                }
            };
            reach_memory();
            let done = f(pa)?;
            reach_memory();
            return Ok(done);
        }
        RttState::Assigned { ripas, .. } | RttState::Unassigned(ripas) => ripas,
        _ => Ripas::Empty,
    };
    Err(match ripas {
        Ripas::Empty => Code::ErrorInput.into(),
        Ripas::Ram | Ripas::Destroyed => {
            let level = entry.level.get();
            Failure::Missing(Missing { ipa, level })
        }
    })
}

/// Writes what the realm is.
fn configuration(vcpu: &RunningVcpu<'_>, ipa: u64) -> Served<0> {
    let realm = vcpu.realm;
    let hash_algo = match realm.measured.lock().as_ref() {
        Some(measured) => measured.algorithm as u64,
        None => 0,
    };
    let config = RealmConfig {
        ipa_width: realm.ipa_bits.into(),
        hash_algo,
        pad: [0; 0x3e],
        rpv: realm.rpv,
    };
    with_memory(vcpu, ipa, GRANULE, |pa| {
        // SAFETY: a granule of the realm's, which it stays while its tables are locked.
        unsafe {
            guarded::zero(pa, GRANULE)?;
            guarded::write(pa, &config)
        }
    })?;
    Ok([])
}

/// What is asked about `range`: all of it the realm's own, in units of RSI's granule.
fn own(realm: &Realm, range: &Range<u64>) -> Result<(), Code> {
    let aligned = range.start.is_multiple_of(GRANULE) && range.end.is_multiple_of(GRANULE);
    let own = range.start < range.end && realm.is_protected(range.end - 1);
    if aligned && own {
        Ok(())
    } else {
        Err(Code::ErrorInput)
    }
}

/// The least granules of EL2's that hold all of `range`.
fn around(realm: &Realm, range: &Range<u64>) -> Range<u64> {
    let granule = realm.granule();
    // No overflow: the realm's own half ends far below 2^64, aligned to a granule.
    range.start & !(granule - 1)..range.end.next_multiple_of(granule)
}

/// The granules that lie in `range`: it may be empty, and end before it begins.
fn within(realm: &Realm, range: &Range<u64>) -> Range<u64> {
    let granule = realm.granule();
    range.start.next_multiple_of(granule)..range.end & !(granule - 1)
}

fn ripas(realm: &Realm, range: Range<u64>) -> Served<2> {
    own(realm, &range)?;
    let Range { start, end } = around(realm, &range);
    let rtt = realm.rtt.lock();
    let tables = rtt.as_ref().ok_or(Code::ErrorInput)?;
    let found = tables.ripas(Ipa::new(start)..Ipa::new(end));
    let (ripas, reached) = found.map_err(|_| Code::ErrorInput)?;
    Ok([reached.get().min(range.end), ripas as u64])
}

/// Asks the host for a change of `range`.
fn change_ripas(
    realm: &Realm,
    state: &mut VcpuState,
    range: Range<u64>,
    to: u64,
    flags: u64,
) -> Next {
    let to = match to {
        0 => Ripas::Empty,
        1 => Ripas::Ram,
        _ => return answer::<0>(state, Err(Code::ErrorInput.into())),
    };
    if let Err(code) = own(realm, &range) {
        return answer::<0>(state, Err(code.into()));
    }
    let destroyed = match flags & CHANGE_DESTROYED {
        0 => ChangeDestroyed::No,
        _ => ChangeDestroyed::Yes,
    };
    let granules = match to {
        Ripas::Ram => around(realm, &range),
        _ => within(realm, &range),
    };
    if granules.is_empty() {
        // Parts of granules, which stay RAM.
        return answer(state, Ok([range.end, ACCEPT]));
    }
    state.gprs.step();
    state.pending = Pending::Ripas;
    state.ripas = RipasChange {
        reached: granules.start,
        top: granules.end,
        asked: (range.start, range.end),
        to,
        destroyed,
    };
    Next::Exit(Record::new(ExitReason::RipasChange))
}

/// Tells a realm how far its change has come.
pub fn finish_ripas(state: &mut VcpuState, flags: EnterFlags) {
    let change = state.ripas;
    let whole = change.reached == change.top;
    let refused = change.to == Ripas::Ram && flags.contains(EnterFlags::RIPAS_RESPONSE);
    // In the realm's own terms, which may begin and end amid a granule.
    let (base, end) = change.asked;
    let reached = if whole { end } else { change.reached.max(base) };
    let response = if refused && !whole { REJECT } else { ACCEPT };
    state.gprs.x[..3].copy_from_slice(&[Code::Success as u64, reached, response]);
}

/// Calls the host by what stands at `ipa`.
fn call_host(vcpu: &RunningVcpu<'_>, state: &mut VcpuState, ipa: u64) -> Next {
    // SAFETY: memory of the realm's, which it stays while its tables are locked.
    let read = |pa| unsafe { guarded::read::<HostCall>(pa) };
    match with_memory(vcpu, ipa, size_of::<HostCall>() as u64, read) {
        Ok(call) => {
            state.gprs.step();
            state.host_call = call;
            state.pending = Pending::HostCall(ipa);
            Next::Exit(Record::new(ExitReason::HostCall))
        }
        Err(failure) => answer::<0>(state, Err(failure)),
    }
}

/// Brings a realm the host's answer, which is read from `gprs` in the host's page: of
/// registers that cannot be read, zero.
///
/// # Errors
/// The answer belongs in memory that the host is to bring first.
#[inline]
pub fn finish_host_call(
    vcpu: &RunningVcpu<'_>,
    state: &mut VcpuState,
    gprs: u64,
) -> Result<(), Missing> {
    match state.pending {
        Pending::HostCall(ipa) => bring_answer(vcpu, state, ipa, gprs),
        _ => Ok(()),
    }
}

#[cold]
fn bring_answer(
    vcpu: &RunningVcpu<'_>,
    state: &mut VcpuState,
    ipa: u64,
    gprs: u64,
) -> Result<(), Missing> {
    let call = &mut state.host_call;
    // SAFETY: in the run page, which is pinned as the host's.
    call.gprs = unsafe { guarded::read(gprs) }.unwrap_or_default();
    let written = with_memory(vcpu, ipa, size_of::<HostCall>() as u64, |pa| {
        let gprs = pa + core::mem::offset_of!(HostCall, gprs) as u64;
        // SAFETY: memory of the realm's, which it stays while its tables are locked.
        unsafe { guarded::write(gprs, &call.gprs) }
    });
    let code = match written {
        Ok(()) => Code::Success,
        Err(Failure::Code(code)) => code,
        Err(Failure::Missing(missing)) => return Err(missing),
    };
    state.pending = Pending::Nothing;
    state.gprs.x[0] = code as u64;
    Ok(())
}

#[cfg(test)]
mod tests;

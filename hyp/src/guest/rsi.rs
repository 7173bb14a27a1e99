//! RSI 1.0 (DEN0137 1.0-rel0, B5.3): what a realm asks EL2 and, through it, its host.
//!
//! Addresses are 4 KiB-aligned whatever EL2's granule is: so a kernel with smaller pages
//! shares by the other half of its addresses, and the host never gets what is RAM.
//!
//! | module | calls |
//! |---|---|
//! | this | `RSI_VERSION`, `FEATURES`, `MEASUREMENT_READ`, `_EXTEND` |
//! | `memory` | `REALM_CONFIG`, and what others read and write of the realm's memory |
//! | `ripas` | `IPA_STATE_GET`, `_SET` |
//! | `token` | `ATTESTATION_TOKEN_INIT`, `_CONTINUE` |
//! | `host_call` | `HOST_CALL` |

use ::rmi::rsi::{Code, Rsi};

use super::record::Next;
use super::vcpu::RunningVcpu;
use crate::memory::guarded::ExternalAbort;
use crate::realm::{Mode, Realm};
use crate::rec::VcpuState;

mod host_call;
mod memory;
mod ripas;
mod token;

use host_call::call_host;
use memory::configuration;
use ripas::{change_ripas, ripas};
use token::{begin_token, continue_token};

pub use host_call::finish_host_call;
pub use memory::Missing;
pub use ripas::finish_ripas;

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
    returned(state, code, outputs);
    state.gprs.step();
    Next::Enter
}

/// The registers of an answer. Of those that every version of the convention has for
/// results, X0 to X3, what is no output is zero. The others keep what they held: a caller
/// by SMCCC 1.1, as Linux is one, may rely on that.
fn returned(state: &mut VcpuState, code: Code, outputs: &[u64]) {
    let x = &mut state.gprs.x;
    x[..4].copy_from_slice(&[code as u64, 0, 0, 0]);
    x[1..=outputs.len()].copy_from_slice(outputs);
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

#[cfg(test)]
mod tests;

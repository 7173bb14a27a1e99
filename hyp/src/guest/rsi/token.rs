//! A realm's token, in parts ([`attest`]).

use core::ops::Range;

use ::rmi::rsi::{Code, GRANULE};
use attest::Algorithm;

use super::memory::with_memory;
use super::{Failure, Served};
use crate::guest::vcpu::RunningVcpu;
use crate::measure::Digest;
use crate::memory::{guarded, residue};
use crate::realm::Realm;
use crate::rec::VcpuState;

/// What a token says of a realm: its measurements as they are now.
fn shown(realm: &Realm) -> Option<(Algorithm, [Digest; 5])> {
    let measured = realm.measured.lock();
    let measured = measured.as_ref()?;
    Some((measured.algorithm, *measured.all()))
}

/// Begins a token over the challenge in X1 to X8: how long it can be. On a machine that
/// has no random numbers there is no key to sign it.
pub(super) fn begin_token(vcpu: &RunningVcpu<'_>, state: &mut VcpuState) -> Served<1> {
    let attester = vcpu.cpu.attester.ok_or(Code::ErrorUnknown)?;
    let (algorithm, _) = shown(vcpu.realm).ok_or(Code::ErrorUnknown)?;
    let mut challenge = [0; 64];
    challenge.copy_from_slice(zerocopy::IntoBytes::as_bytes(&state.gprs.x[1..9]));
    state.token.begin(&challenge);
    Ok([attester.token_length(algorithm) as u64])
}

/// Writes the next part of a token to a part of the granule at `ipa`: how much, and
/// whether more of it is to come.
pub(super) fn continue_token(
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
    // What fails by its memory signs nothing.
    with_memory(vcpu, ipa, GRANULE, |_| Ok(()))?;
    let attester = vcpu.cpu.attester.ok_or(Code::ErrorState)?;
    let (algorithm, measurements) = shown(realm).ok_or(Code::ErrorState)?;
    let shown = attest::Realm {
        personalization: &realm.rpv,
        algorithm,
        measurements: &measurements,
    };
    // Signed first, while nobody waits for the realm's tables.
    let token = &mut state.token;
    let sign = || token.step(attester, &shown, &mut []);
    let begun = residue::leaving_none::<{ residue::OF_A_SIGNATURE }, _>(sign);
    let mut last = begun.ok_or(Code::ErrorState)?;
    if !token.is_signed() {
        return Ok((Code::Incomplete, 0));
    }
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

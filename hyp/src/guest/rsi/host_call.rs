//! Calls that a realm's host serves, by a structure in the realm's memory.

use ::rmi::rsi::{Code, HostCall};
use ::rmi::run::ExitReason;

use super::memory::{Missing, with_memory};
use super::{Failure, answer, returned};
use crate::guest::record::{Next, Record};
use crate::guest::vcpu::RunningVcpu;
use crate::memory::guarded;
use crate::rec::{Pending, VcpuState};

/// Calls the host by what stands at `ipa`.
pub(super) fn call_host(vcpu: &RunningVcpu<'_>, state: &mut VcpuState, ipa: u64) -> Next {
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
    returned(state, code, &[]);
    Ok(())
}

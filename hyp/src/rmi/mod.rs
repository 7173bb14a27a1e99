//! The host's calls: RMI 1.0 and the vendor range, one handler each.
//!
//! Arguments are numbers from the host: each handler checks all of them (by what
//! stands in `args`) before it changes anything, and a command either happens
//! whole or changes nothing.
//! Those that clean much memory, on CPUs without FEAT_S2FWB, take several turns.
//! What the host keeps in its own memory is copied once and then checked.

mod args;
mod data;
#[cfg(not(target_os = "none"))]
pub mod fake;
mod granule;
mod realm;
mod rec;
mod registers;
mod rtt;
mod vendor;

use ::rmi::feature::Feature0;
use ::rmi::vendor::Vendor;
use ::rmi::{Command, NOT_SUPPORTED, Status, VERSION_1_0};

use crate::cpu::Cpu;
use crate::features::GranuleSupport;
use crate::system::{System, words};

/// Breakpoints and watchpoints that a realm sees, less one.
const NUM_BPS: u8 = 1;
const NUM_WPS: u8 = 1;

/// X0–X4 of an answer.
pub type Answer = [u64; 5];

/// The answer to a call that is not served.
pub const UNKNOWN: Answer = [NOT_SUPPORTED, 0, 0, 0, 0];

/// Success, or why not.
type Outcome<T = ()> = Result<T, Status>;

/// The outcome of a command that reports where to go on, in failure too.
struct Walked<T> {
    outcome: Outcome<T>,
    /// `top` of RMI 1.0; 0 when an argument was refused.
    top: u64,
}

impl<T> From<Status> for Walked<T> {
    fn from(status: Status) -> Self {
        Self {
            outcome: Err(status),
            top: 0,
        }
    }
}

/// Serves a command. `None` if it did as much as one call may and there is more:
/// the host makes the same call again.
#[inline(always)]
pub fn serve(system: &'static System, cpu: &mut Cpu, command: Command) -> Option<Answer> {
    let outcome = match command {
        Command::Version { requested } => return Some(version(requested)),
        Command::Features { index } => Ok(outputs(&[feature(system, cpu, index)])),
        Command::GranuleDelegate { pa } => granule::delegate(system, pa).map(no_outputs),
        Command::GranuleUndelegate { pa } => granule::undelegate(system, pa).map(no_outputs),
        Command::RealmCreate { rd, params } => realm::create(system, rd, params).map(no_outputs),
        Command::RealmDestroy { rd } => realm::destroy(system, rd).transpose()?.map(no_outputs),
        Command::RealmActivate { rd } => realm::activate(system, rd).map(no_outputs),
        Command::RecAuxCount { rd } => rec::aux_count(system, rd).map(|n| outputs(&[n])),
        Command::RecCreate { rd, rec, params } => {
            rec::create(system, cpu.gic.list_registers, rd, rec, params).map(no_outputs)
        }
        Command::RecDestroy { rec } => rec::destroy(system, rec).map(no_outputs),
        Command::RecEnter { rec, run } => return Some(enter(system, cpu, rec, run)),
        Command::PsciComplete {
            calling,
            target,
            status,
        } => rec::psci_complete(system, calling, target, status).map(no_outputs),
        Command::RttCreate {
            rd,
            rtt,
            ipa,
            level,
        } => rtt::create(system, rd, rtt, ipa, level).map(no_outputs),
        Command::RttDestroy { rd, ipa, level } => {
            let Walked { outcome, top } = rtt::destroy(system, rd, ipa, level)?;
            return Some(answer_with(outcome, |rtt| [rtt.unwrap_or(0), top, 0, 0]));
        }
        Command::RttFold { rd, ipa, level } => {
            rtt::fold(system, rd, ipa, level).map(|rtt| outputs(&[rtt]))
        }
        Command::RttReadEntry { rd, ipa, level } => {
            rtt::read_entry(system, rd, ipa, level).map(rtt::Entry::outputs)
        }
        Command::RttMapUnprotected {
            rd,
            ipa,
            level,
            desc,
        } => rtt::map_unprotected(system, rd, ipa, level, desc).map(no_outputs),
        Command::RttUnmapUnprotected { rd, ipa, level } => {
            let Walked { outcome, top } = rtt::unmap_unprotected(system, rd, ipa, level);
            return Some(answer_with(outcome, |_| [top, 0, 0, 0]));
        }
        Command::DataCreate {
            rd,
            data,
            ipa,
            src,
            flags,
        } => data::create(system, rd, data, ipa, data::Content { src, flags }).map(no_outputs),
        Command::DataCreateUnknown { rd, data, ipa } => {
            data::create_unknown(system, rd, data, ipa).map(no_outputs)
        }
        Command::DataDestroy { rd, ipa } => {
            let Walked { outcome, top } = data::destroy(system, rd, ipa);
            return Some(answer_with(outcome, |data| [data.unwrap_or(0), top, 0, 0]));
        }
        Command::RttInitRipas { rd, base, top } => {
            data::init_ripas(system, rd, base, top).map(|top| outputs(&[top]))
        }
        Command::RttSetRipas { rd, rec, base, top } => {
            data::set_ripas(system, rd, rec, base, top).map(|top| outputs(&[top]))
        }
    };
    Some(answer(outcome))
}

/// Serves `REC_ENTER`.
pub fn enter(system: &System, cpu: &mut Cpu, rec: u64, run: u64) -> Answer {
    answer(rec::enter(system, cpu, rec, run).map(no_outputs))
}

/// Serves a call of Undercroft's own.
pub fn serve_vendor(system: &System, call: Vendor) -> Answer {
    answer(match call {
        Vendor::RttDataUnmap { rd, ipa, top } => {
            let Walked { outcome, top } = data::unmap_range(system, rd, ipa..top);
            return answer_with(outcome, |removed| {
                let data::Removed { pa, end } = removed.unwrap_or_default();
                [pa, end, top, 0]
            });
        }
        Vendor::RttDataMap { rd, ipa, top, pa } => {
            data::map_range(system, rd, ipa..top, pa).map(|top| outputs(&[top]))
        }
        Vendor::RttDataDonate { rd, ipa, top, pa } => {
            data::donate_range(system, rd, ipa..top, pa).map(|top| outputs(&[top]))
        }
        Vendor::Version => Ok(outputs(&[::rmi::vendor::VERSION_1_0])),
        Vendor::Features => Ok(outputs(&[vendor::features(system).pack()])),
        Vendor::MemoryRange { index } => {
            vendor::memory_range(system, index).map(|range| outputs(&range))
        }
        Vendor::Log { level, pa, length } => vendor::log(system, level, pa, length).map(no_outputs),
        Vendor::LogInput => vendor::log_input(),
        Vendor::GranuleRangeDelegate { base, top } => {
            granule::delegate_range(system, base, top).map(|top| outputs(&[top]))
        }
        Vendor::GranuleRangeUndelegate { base, top } => {
            granule::undelegate_range(system, base, top).map(|top| outputs(&[top]))
        }
        Vendor::SetPosted {
            rd,
            page,
            ipa,
            delay,
        } => vendor::set_posted(system, rd, page, ipa, delay).map(no_outputs),
        Vendor::SetSpi { rd, intid, level } => {
            vendor::set_spi(system, rd, intid, level).map(no_outputs)
        }
        Vendor::RecPending { rec } => {
            vendor::rec_pending(system, rec).map(|pending| outputs(&[pending.into()]))
        }
        Vendor::RecHistory { rec, pa } => {
            vendor::rec_history(system, rec, pa).map(|count| outputs(&[count]))
        }
        Vendor::Kick { rec } => vendor::kick(system, rec).map(no_outputs),
        Vendor::Random => match &system.random {
            Some(random) => Ok(words(random)),
            None => return UNKNOWN,
        },
        Vendor::RecRead { rec, pa } => registers::read(system, rec, pa).map(no_outputs),
        Vendor::RecWrite { rec, pa } => registers::write(system, rec, pa).map(no_outputs),
    })
}

/// X1–X4 of a command without outputs.
#[inline(always)]
fn no_outputs((): ()) -> [u64; 4] {
    [0; 4]
}

/// X1–X4 of these outputs.
#[inline(always)]
fn outputs<const N: usize>(values: &[u64; N]) -> [u64; 4] {
    core::array::from_fn(|n| values.get(n).copied().unwrap_or(0))
}

#[inline(always)]
fn answer(outcome: Outcome<[u64; 4]>) -> Answer {
    answer_with(outcome, |outputs| outputs.unwrap_or([0; 4]))
}

/// The answer whose outputs depend on what came of the command, or that nothing
/// did.
#[inline(always)]
fn answer_with<T>(outcome: Outcome<T>, outputs: impl FnOnce(Option<T>) -> [u64; 4]) -> Answer {
    let (status, value) = match outcome {
        Ok(value) => (Status::Success, Some(value)),
        Err(status) => (status, None),
    };
    let [x1, x2, x3, x4] = outputs(value);
    [status.pack(), x1, x2, x3, x4]
}

/// There is one revision, which a refusal reports too.
fn version(requested: u64) -> Answer {
    let status = if requested == VERSION_1_0 {
        Status::Success
    } else {
        Status::ErrorInput
    };
    [status.pack(), VERSION_1_0, VERSION_1_0, 0, 0]
}

/// Only the first feature register has anything.
fn feature(system: &System, cpu: &Cpu, index: u64) -> u64 {
    if index != 0 {
        return 0;
    }
    let features = Feature0 {
        s2sz: system.features.max_ipa_bits(system.granule),
        lpa2: system.features.stage2(system.granule) == GranuleSupport::Lpa2,
        num_bps: NUM_BPS,
        num_wps: NUM_WPS,
        sha256: true,
        sha512: true,
        gicv3_num_lrs: cpu.gic.list_registers as u8 - 1,
        max_recs_order: crate::realm::MAX_RECS.trailing_zeros() as u8,
    };
    features.pack()
}

#[cfg(test)]
mod tests;

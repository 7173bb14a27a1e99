//! The host's calls: RMI 1.0 and the vendor range.
//!
//! Arguments are numbers from the host: each handler checks all of them before
//! it changes anything, and a command either happens whole or changes nothing.
//! Those that clean much memory, on CPUs without FEAT_S2FWB, take several turns.
//! What the host keeps in its own memory is copied once and then checked.

#[cfg(not(target_os = "none"))]
pub mod fake;
mod granule;
mod realm;
mod rec;
mod registers;
mod rtt;
mod vendor;

use ::rmi::feature::Feature0;
use ::rmi::{NOT_SUPPORTED, Status, VERSION_1_0, fid, vendor as calls};

use crate::cpu::Cpu;
use crate::cpu::features::GranuleSupport;

/// X0–X4 of an answer.
pub type Answer = [u64; 5];

/// Success, or why not; the outputs go to X1–X4.
type Outcome = Result<[u64; 4], Status>;

const NONE: [u64; 4] = [0; 4];

/// Serves a call of the host: function and X1–X5. `None` if it did as much as
/// one call may and there is more: the host makes the same call again.
pub fn serve(cpu: &mut Cpu, function: u64, args: [u64; 5]) -> Option<Answer> {
    let system = cpu.system;
    let [a, b, c, d, _] = args;
    let outcome = match function {
        fid::RMI_VERSION => {
            let status = if a == VERSION_1_0 {
                Status::Success
            } else {
                Status::ErrorInput
            };
            return Some([status.pack(), VERSION_1_0, VERSION_1_0, 0, 0]);
        }
        fid::RMI_FEATURES => Ok([if a == 0 { features(cpu).pack() } else { 0 }, 0, 0, 0]),
        fid::RMI_GRANULE_DELEGATE => granule::delegate(system, a),
        fid::RMI_GRANULE_UNDELEGATE => granule::undelegate(system, a),
        fid::RMI_REALM_CREATE => realm::create(system, a, b),
        fid::RMI_REALM_DESTROY => realm::destroy(system, a).transpose()?,
        fid::RMI_REALM_ACTIVATE => realm::activate(system, a),
        fid::RMI_REC_AUX_COUNT => rec::aux_count(system, a),
        fid::RMI_REC_CREATE => rec::create(system, cpu.gic.list_registers, a, b, c),
        fid::RMI_REC_DESTROY => rec::destroy(system, a),
        fid::RMI_REC_ENTER => rec::enter(cpu, a, b),
        fid::RMI_PSCI_COMPLETE => rec::psci_complete(system, a, b, c),
        fid::RMI_RTT_CREATE => rtt::create(system, a, b, c, d),
        fid::RMI_RTT_DESTROY => return Some(with_top(rtt::destroy(system, a, b, c)?)),
        fid::RMI_RTT_FOLD => rtt::fold(system, a, b, c),
        fid::RMI_RTT_READ_ENTRY => rtt::read_entry(system, a, b, c),
        fid::RMI_RTT_MAP_UNPROTECTED => rtt::map_unprotected(system, a, b, c, d)?,
        fid::RMI_RTT_UNMAP_UNPROTECTED => {
            return Some(with_top(rtt::unmap_unprotected(system, a, b, c)?));
        }
        calls::VERSION => Ok([calls::VERSION_1_0, 0, 0, 0]),
        calls::FEATURES => Ok([vendor::features(system).pack(), 0, 0, 0]),
        calls::MEMORY_RANGE => vendor::memory_range(system, a),
        calls::LOG => vendor::log(system, a, b, c),
        calls::LOG_INPUT => vendor::log_input(),
        calls::SET_POSTED => vendor::set_posted(system, [a, b, c, d]),
        calls::SET_SPI => vendor::set_spi(system, a, b, c),
        calls::REC_PENDING => vendor::rec_pending(system, a),
        calls::REC_HISTORY => vendor::rec_history(system, a, b),
        calls::KICK => vendor::kick(system, a),
        calls::RANDOM if system.features.rng => vendor::random(),
        calls::REC_READ => registers::read(system, a, b),
        calls::REC_WRITE => registers::write(system, a, b),
        // Confidential realms come with their own issue: DATA_*, RIPAS, RSI.
        _ => return Some([NOT_SUPPORTED, 0, 0, 0, 0]),
    };
    Some(match outcome {
        Ok([x1, x2, x3, x4]) => [Status::Success.pack(), x1, x2, x3, x4],
        Err(status) => [status.pack(), 0, 0, 0, 0],
    })
}

/// Outcomes of the commands that tell `top` in failure too.
fn with_top(outcome: Result<[u64; 4], (Status, [u64; 4])>) -> Answer {
    let (status, [x1, x2, x3, x4]) = match outcome {
        Ok(outputs) => (Status::Success, outputs),
        Err(failed) => failed,
    };
    [status.pack(), x1, x2, x3, x4]
}

fn features(cpu: &Cpu) -> Feature0 {
    let system = cpu.system;
    Feature0 {
        s2sz: crate::max_ipa_bits(&system.features, system.granule),
        lpa2: system.features.stage2(system.granule) == GranuleSupport::Lpa2,
        num_bps: 1,
        num_wps: 1,
        sha256: false,
        sha512: false,
        gicv3_num_lrs: cpu.gic.list_registers as u8 - 1,
        max_recs_order: crate::realm::MAX_RECS.trailing_zeros() as u8,
    }
}

#[cfg(test)]
mod tests;

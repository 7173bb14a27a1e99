//! What a call reads and writes of the realm's own memory.

use ::rmi::rsi::{Code, GRANULE, RealmConfig};
use ::rmi::run::ExitReason;
use arm64::syndrome::Class;
use pgtable::{Ipa, Ripas, RttState};

use super::{Failure, Served};
use crate::guest::record::Record;
use crate::guest::vcpu::RunningVcpu;
use crate::memory::guarded::{self, ExternalAbort};

/// Fault status of a translation fault at level 0 (DDI0487, ESR_ELx.DFSC), and of
/// level −1.
const TRANSLATION_LEVEL_0: u64 = 0b000_100;
const TRANSLATION_LEVEL_MINUS_1: u64 = 0b101_011;

/// An address of a realm's that is RAM, where none is.
#[derive(Clone, Copy, Debug)]
pub struct Missing {
    pub(super) ipa: u64,
    /// Of the entry that says so.
    pub(super) level: i8,
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

/// Calls `f` with where the realm's own memory at `ipa` is, as long as it is there:
/// `ipa` is aligned to `size`, a power of two up to [`GRANULE`]. What the realm wrote
/// before is met, and what is written here it meets, with its caches off too.
pub(super) fn with_memory<R>(
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
pub(super) fn configuration(vcpu: &RunningVcpu<'_>, ipa: u64) -> Served<0> {
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

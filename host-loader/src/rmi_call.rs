//! Calls to EL2 with types: RMI 1.0, the vendor calls, and PSCI for the host.
//!
//! Addresses are the host's own: identity, so a pointer's value is its PA. A
//! command that fails changed nothing, unless its doc says otherwise.

use crate::arch::insn::smc;
use core::fmt;
use rmi::feature::{Feature0, VendorFeatures};
use rmi::{Status, fid, vendor};

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// EL2 does not know the call, or answered what RMI does not define.
    NotSupported,
    /// A status other than success.
    Status(Status),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => f.write_str("EL2 does not serve this call"),
            Self::Status(Status::Success) => f.write_str("success"),
            Self::Status(Status::ErrorInput) => f.write_str("EL2 refused an argument"),
            Self::Status(Status::ErrorRealm(index)) => {
                write!(f, "the realm is in the wrong state ({index})")
            }
            Self::Status(Status::ErrorRec) => f.write_str("the REC is in the wrong state"),
            Self::Status(Status::ErrorRtt(level)) => {
                write!(f, "the RTT walk ended at level {}", *level as i8)
            }
        }
    }
}

fn call(arguments: [u64; 6]) -> Result<[u64; 4], CallError> {
    let [x0, x1, x2, x3, x4] = smc(arguments);
    match Status::unpack(x0) {
        Some(Status::Success) => Ok([x1, x2, x3, x4]),
        Some(status) => Err(CallError::Status(status)),
        None => Err(CallError::NotSupported),
    }
}

/// `RMI_VERSION(1.0)`: lower and higher revision on offer.
pub fn version() -> Result<(u64, u64), CallError> {
    call([fid::RMI_VERSION, rmi::VERSION_1_0, 0, 0, 0, 0]).map(|r| (r[0], r[1]))
}

/// `RMI_FEATURES(0)`.
pub fn features() -> Result<Feature0, CallError> {
    call([fid::RMI_FEATURES, 0, 0, 0, 0, 0]).map(|r| Feature0::unpack(r[0]))
}

/// Gives the granule at `pa` to EL2, which zeroes it.
pub fn granule_delegate(pa: u64) -> Result<(), CallError> {
    call([fid::RMI_GRANULE_DELEGATE, pa, 0, 0, 0, 0]).map(drop)
}

/// Takes the granule at `pa` back, zeroed.
pub fn granule_undelegate(pa: u64) -> Result<(), CallError> {
    call([fid::RMI_GRANULE_UNDELEGATE, pa, 0, 0, 0, 0]).map(drop)
}

/// Makes the delegated granule `rd` a realm after the parameters at `params`.
pub fn realm_create(rd: u64, params: u64) -> Result<(), CallError> {
    call([fid::RMI_REALM_CREATE, rd, params, 0, 0, 0]).map(drop)
}

/// Lets the realm run.
pub fn realm_activate(rd: u64) -> Result<(), CallError> {
    call([fid::RMI_REALM_ACTIVATE, rd, 0, 0, 0, 0]).map(drop)
}

/// Ends a realm without RECs and tables; `rd` and root RTTs stay delegated.
pub fn realm_destroy(rd: u64) -> Result<(), CallError> {
    call([fid::RMI_REALM_DESTROY, rd, 0, 0, 0, 0]).map(drop)
}

/// Auxiliary granules that each REC of the realm needs.
pub fn rec_aux_count(rd: u64) -> Result<u64, CallError> {
    call([fid::RMI_REC_AUX_COUNT, rd, 0, 0, 0, 0]).map(|r| r[0])
}

/// Makes the delegated granule `rec` a vCPU after the parameters at `params`.
pub fn rec_create(rd: u64, rec: u64, params: u64) -> Result<(), CallError> {
    call([fid::RMI_REC_CREATE, rd, rec, params, 0, 0]).map(drop)
}

/// Ends a vCPU; its granules stay delegated.
pub fn rec_destroy(rec: u64) -> Result<(), CallError> {
    call([fid::RMI_REC_DESTROY, rec, 0, 0, 0, 0]).map(drop)
}

/// Runs the vCPU until it needs the host; reads and writes the page `run`.
#[inline(always)]
pub fn rec_enter(rec: u64, run: u64) -> Result<(), CallError> {
    call([fid::RMI_REC_ENTER, rec, run, 0, 0, 0]).map(drop)
}

/// Makes the delegated granule `rtt` the table of `level` that covers `ipa`.
pub fn rtt_create(rd: u64, rtt: u64, ipa: u64, level: i64) -> Result<(), CallError> {
    call([fid::RMI_RTT_CREATE, rd, rtt, ipa, level as u64, 0]).map(drop)
}

/// What a walk over tables did, and where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked<T> {
    /// The command's result.
    pub result: Result<T, CallError>,
    /// The next IPA worth a look; see `top` in RMI 1.0. 0 for `ErrorInput`.
    pub top: u64,
}

/// Removes the table of `level` at `ipa`: the granule that it was.
pub fn rtt_destroy(rd: u64, ipa: u64, level: i64) -> Walked<u64> {
    let [x0, rtt, top, ..] = smc([fid::RMI_RTT_DESTROY, rd, ipa, level as u64, 0, 0]);
    walked(x0, rtt, top)
}

/// Maps `desc` (output address, type, permissions; see [`rmi::rtt`]) at `ipa`.
pub fn rtt_map_unprotected(rd: u64, ipa: u64, level: i64, desc: u64) -> Result<(), CallError> {
    call([fid::RMI_RTT_MAP_UNPROTECTED, rd, ipa, level as u64, desc, 0]).map(drop)
}

/// Unmaps what is mapped at `ipa` with an entry of `level`.
pub fn rtt_unmap_unprotected(rd: u64, ipa: u64, level: i64) -> Walked<()> {
    let [x0, top, ..] = smc([fid::RMI_RTT_UNMAP_UNPROTECTED, rd, ipa, level as u64, 0, 0]);
    walked(x0, (), top)
}

fn walked<T>(x0: u64, value: T, top: u64) -> Walked<T> {
    let result = match Status::unpack(x0) {
        Some(Status::Success) => Ok(value),
        Some(status) => Err(CallError::Status(status)),
        None => Err(CallError::NotSupported),
    };
    Walked { result, top }
}

/// Answers the PSCI call that `calling` waits in about `target`.
pub fn psci_complete(calling: u64, target: u64, status: i64) -> Result<(), CallError> {
    call([fid::RMI_PSCI_COMPLETE, calling, target, status as u64, 0, 0]).map(drop)
}

/// Undercroft's version word; see [`vendor::VERSION_1_0`].
pub fn vendor_version() -> Result<u64, CallError> {
    call([vendor::VERSION, 0, 0, 0, 0, 0]).map(|r| r[0])
}

/// Undercroft's features, the granule among them.
pub fn vendor_features() -> Result<VendorFeatures, CallError> {
    call([vendor::FEATURES, 0, 0, 0, 0, 0]).map(|r| VendorFeatures::unpack(r[0]))
}

/// The `index`-th range of RAM that is taken: base, size in bytes, kind.
pub fn memory_range(index: u64) -> Option<(u64, u64, u64)> {
    let [base, size, kind, _] = call([vendor::MEMORY_RANGE, index, 0, 0, 0, 0]).ok()?;
    Some((base, size, kind))
}

/// Writes one line, at most [`vendor::LOG_LINE_MAX`] bytes of UTF-8 without a
/// newline, inside one granule, to the log. `level` is 1 (error) to 5 (trace).
pub fn log_line(level: u64, line: &[u8]) -> Result<(), CallError> {
    let at = line.as_ptr().expose_provenance() as u64;
    call([vendor::LOG, level, at, line.len() as u64, 0, 0]).map(drop)
}

/// Takes what the log's own UART has received: its bytes, and how many there are.
pub fn log_input() -> Result<([u8; vendor::LOG_INPUT_MAX], usize), CallError> {
    let [count, words @ ..] = call([vendor::LOG_INPUT, 0, 0, 0, 0, 0])?;
    let mut bytes = [0; vendor::LOG_INPUT_MAX];
    for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    Ok((bytes, (count as usize).min(vendor::LOG_INPUT_MAX)))
}

/// Lets accesses of the realm's device at `ipa` wait in `page`, for `delay` ticks at
/// most; see [`vendor::SET_POSTED`].
pub fn set_posted(rd: u64, page: u64, ipa: u64, delay: u64) -> Result<(), CallError> {
    call([vendor::SET_POSTED, rd, page, ipa, delay, 0]).map(drop)
}

/// Drives the guest's SPI `intid` to `level`.
pub fn set_spi(rd: u64, intid: u32, level: bool) -> Result<(), CallError> {
    call([vendor::SET_SPI, rd, intid.into(), level.into(), 0, 0]).map(drop)
}

/// The vCPU has an interrupt that would wake it from WFI.
pub fn rec_pending(rec: u64) -> Result<bool, CallError> {
    call([vendor::REC_PENDING, rec, 0, 0, 0, 0]).map(|r| r[0] != 0)
}

/// Writes the vCPU's last exits to the granule at `page`: how many.
pub fn rec_history(rec: u64, page: u64) -> Result<u64, CallError> {
    call([vendor::REC_HISTORY, rec, page, 0, 0, 0]).map(|r| r[0])
}

/// Makes a running vCPU exit to its host.
pub fn kick(rec: u64) -> Result<(), CallError> {
    call([vendor::KICK, rec, 0, 0, 0, 0]).map(drop)
}

/// 256 random bits of the CPU's.
pub fn random() -> Result<[u64; 4], CallError> {
    call([vendor::RANDOM, 0, 0, 0, 0, 0])
}

/// Writes a plain guest's registers ([`rmi::registers::Registers`]) to `page`,
/// inside one granule.
pub fn rec_read(rec: u64, page: u64) -> Result<(), CallError> {
    call([vendor::REC_READ, rec, page, 0, 0, 0]).map(drop)
}

/// Takes them back from `page`, and ends the vCPU's last abort.
pub fn rec_write(rec: u64, page: u64) -> Result<(), CallError> {
    call([vendor::REC_WRITE, rec, page, 0, 0, 0]).map(drop)
}

/// PSCI `CPU_ON` of the machine: starts the CPU `mpidr` at `entry` with X0 =
/// `context`. The error is PSCI's code.
pub fn machine_cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), i64> {
    let [x0, ..] = smc([u64::from(fid::PSCI_CPU_ON_64), mpidr, entry, context, 0, 0]);
    match x0 as i64 {
        rmi::psci::SUCCESS => Ok(()),
        error => Err(error),
    }
}

/// Whether EL2 drives the machine's CPU `mpidr` (PSCI `AFFINITY_INFO` knows it).
pub fn machine_has_cpu(mpidr: u64) -> bool {
    let function = u64::from(fid::PSCI_AFFINITY_INFO_64);
    let [x0, ..] = smc([function, mpidr, 0, 0, 0, 0]);
    x0 as i64 >= 0
}

/// PSCI `SYSTEM_OFF` of the machine.
#[cfg(target_os = "none")]
pub fn machine_off() -> ! {
    loop {
        smc([u64::from(fid::PSCI_SYSTEM_OFF), 0, 0, 0, 0, 0]);
        crate::arch::insn::wfi();
    }
}

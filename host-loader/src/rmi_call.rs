//! Calls to EL2 with types: RMI 1.0, the vendor calls, and PSCI for the host.
//!
//! Addresses are the host's own: identity, so a pointer's value is its PA. A
//! command that fails changed nothing, unless its doc says otherwise.

use core::fmt;
use rmi::feature::{Feature0, VendorFeatures};
use rmi::psci::Psci;
use rmi::rtt::DataFlags;
use rmi::vendor::{self, Vendor};
use rmi::{Command, Status};

/// Calls EL2.
fn smc(arguments: [u64; 6]) -> [u64; 5] {
    // SAFETY: what a command does to memory is what its function here says, to
    // memory that the caller names. The host keeps nothing in what it hands over.
    unsafe { arm64::steering::smc(arguments) }
}

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

/// Makes a call of RMI or the vendor range: X1 to X4 of its answer.
#[inline(always)]
fn call(registers: [u64; 6]) -> Result<[u64; 4], CallError> {
    let [x0, outputs @ ..] = smc(registers);
    status(x0).map(|()| outputs)
}

fn status(x0: u64) -> Result<(), CallError> {
    match Status::unpack(x0) {
        Some(Status::Success) => Ok(()),
        Some(status) => Err(CallError::Status(status)),
        None => Err(CallError::NotSupported),
    }
}

#[inline(always)]
fn command(command: Command) -> Result<[u64; 4], CallError> {
    call(command.encode())
}

fn vendor(of: Vendor) -> Result<[u64; 4], CallError> {
    call(of.encode())
}

/// `RMI_VERSION(1.0)`: lower and higher revision on offer.
pub fn version() -> Result<(u64, u64), CallError> {
    let requested = rmi::VERSION_1_0;
    command(Command::Version { requested }).map(|r| (r[0], r[1]))
}

/// `RMI_FEATURES(0)`.
pub fn features() -> Result<Feature0, CallError> {
    command(Command::Features { index: 0 }).map(|r| Feature0::unpack(r[0]))
}

/// Gives the granule at `pa` to EL2, which zeroes it.
pub fn granule_delegate(pa: u64) -> Result<(), CallError> {
    command(Command::GranuleDelegate { pa }).map(drop)
}

/// Takes the granule at `pa` back, zeroed.
pub fn granule_undelegate(pa: u64) -> Result<(), CallError> {
    command(Command::GranuleUndelegate { pa }).map(drop)
}

/// Makes the delegated granule `rd` a realm after the parameters at `params`.
pub fn realm_create(rd: u64, params: u64) -> Result<(), CallError> {
    command(Command::RealmCreate { rd, params }).map(drop)
}

/// Lets the realm run.
pub fn realm_activate(rd: u64) -> Result<(), CallError> {
    command(Command::RealmActivate { rd }).map(drop)
}

/// Ends a realm without RECs and tables; `rd` and root RTTs stay delegated.
pub fn realm_destroy(rd: u64) -> Result<(), CallError> {
    command(Command::RealmDestroy { rd }).map(drop)
}

/// Auxiliary granules that each REC of the realm needs.
pub fn rec_aux_count(rd: u64) -> Result<u64, CallError> {
    command(Command::RecAuxCount { rd }).map(|r| r[0])
}

/// Makes the delegated granule `rec` a vCPU after the parameters at `params`.
pub fn rec_create(rd: u64, rec: u64, params: u64) -> Result<(), CallError> {
    command(Command::RecCreate { rd, rec, params }).map(drop)
}

/// Ends a vCPU; its granules stay delegated.
pub fn rec_destroy(rec: u64) -> Result<(), CallError> {
    command(Command::RecDestroy { rec }).map(drop)
}

/// Runs the vCPU until it needs the host; reads and writes the page `run`.
#[inline(always)]
pub fn rec_enter(rec: u64, run: u64) -> Result<(), CallError> {
    command(Command::RecEnter { rec, run }).map(drop)
}

/// Makes the delegated granule `rtt` the table of `level` that covers `ipa`.
pub fn rtt_create(rd: u64, rtt: u64, ipa: u64, level: i64) -> Result<(), CallError> {
    command(Command::RttCreate {
        rd,
        rtt,
        ipa,
        level,
    })
    .map(drop)
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
    let [x0, rtt, top, ..] = smc(Command::RttDestroy { rd, ipa, level }.encode());
    walked(x0, rtt, top)
}

/// Maps `desc` (output address, type, permissions; see [`rmi::rtt`]) at `ipa`.
pub fn rtt_map_unprotected(rd: u64, ipa: u64, level: i64, desc: u64) -> Result<(), CallError> {
    command(Command::RttMapUnprotected {
        rd,
        ipa,
        level,
        desc,
    })
    .map(drop)
}

/// Unmaps what is mapped at `ipa` with an entry of `level`.
pub fn rtt_unmap_unprotected(rd: u64, ipa: u64, level: i64) -> Walked<()> {
    let [x0, top, ..] = smc(Command::RttUnmapUnprotected { rd, ipa, level }.encode());
    walked(x0, (), top)
}

fn walked<T>(x0: u64, value: T, top: u64) -> Walked<T> {
    let result = status(x0).map(|()| value);
    Walked { result, top }
}

/// Copies the granule `src` into the delegated granule `data`, which becomes a realm's
/// memory at `ipa`.
pub fn data_create(
    rd: u64,
    data: u64,
    ipa: u64,
    src: u64,
    flags: DataFlags,
) -> Result<(), CallError> {
    command(Command::DataCreate {
        rd,
        data,
        ipa,
        src,
        flags: flags.bits(),
    })
    .map(drop)
}

/// Changes `[base, top)` as the vCPU `rec` has asked: how far it came.
pub fn rtt_set_ripas(rd: u64, rec: u64, base: u64, top: u64) -> Result<u64, CallError> {
    command(Command::RttSetRipas { rd, rec, base, top }).map(|r| r[0])
}

/// Makes one entry of the table of `level` at `ipa`: the granule that it was.
pub fn rtt_fold(rd: u64, ipa: u64, level: i64) -> Result<u64, CallError> {
    command(Command::RttFold { rd, ipa, level }).map(|r| r[0])
}

/// Maps delegated granules from `pa` on at `ipa`, before `top`: how far it came.
pub fn rtt_data_map(rd: u64, ipa: u64, top: u64, pa: u64) -> Result<u64, CallError> {
    vendor(Vendor::RttDataMap { rd, ipa, top, pa }).map(|r| r[0])
}

/// The same of granules of the host's with what is in them, for a realm that does not
/// run yet.
pub fn rtt_data_donate(rd: u64, ipa: u64, top: u64, pa: u64) -> Result<u64, CallError> {
    vendor(Vendor::RttDataDonate { rd, ipa, top, pa }).map(|r| r[0])
}

/// Memory that a realm had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Where it is.
    pub pa: u64,
    /// The IPA behind it.
    pub end: u64,
}

/// Takes memory out of a realm from `ipa` on, before `limit`. It stays EL2's.
pub fn rtt_data_unmap(rd: u64, ipa: u64, limit: u64) -> Walked<Removed> {
    let top = limit;
    let [x0, pa, end, top, _] = smc(Vendor::RttDataUnmap { rd, ipa, top }.encode());
    walked(x0, Removed { pa, end }, top)
}

/// Makes `[base, top)` RAM of a realm that does not run yet: how far it came.
pub fn rtt_init_ripas(rd: u64, base: u64, top: u64) -> Result<u64, CallError> {
    command(Command::RttInitRipas { rd, base, top }).map(|r| r[0])
}

/// Gives granules from `base` on to EL2, before `top`: how far it came.
pub fn granule_range_delegate(base: u64, top: u64) -> Result<u64, CallError> {
    vendor(Vendor::GranuleRangeDelegate { base, top }).map(|r| r[0])
}

/// Takes them back, likewise.
pub fn granule_range_undelegate(base: u64, top: u64) -> Result<u64, CallError> {
    vendor(Vendor::GranuleRangeUndelegate { base, top }).map(|r| r[0])
}

/// Answers the PSCI call that `calling` waits in about `target`.
pub fn psci_complete(calling: u64, target: u64, status: i64) -> Result<(), CallError> {
    command(Command::PsciComplete {
        calling,
        target,
        status,
    })
    .map(drop)
}

/// Undercroft's version word; see [`vendor::VERSION_1_0`].
pub fn vendor_version() -> Result<u64, CallError> {
    vendor(Vendor::Version).map(|r| r[0])
}

/// Undercroft's features, the granule among them.
pub fn vendor_features() -> Result<VendorFeatures, CallError> {
    vendor(Vendor::Features).map(|r| VendorFeatures::unpack(r[0]))
}

/// The `index`-th range of RAM that is taken: base, size in bytes, kind.
pub fn memory_range(index: u64) -> Option<(u64, u64, u64)> {
    let [base, size, kind, _] = vendor(Vendor::MemoryRange { index }).ok()?;
    Some((base, size, kind))
}

/// Writes one line, at most [`vendor::LOG_LINE_MAX`] bytes of UTF-8 without a
/// newline, inside one granule, to the log. `level` is 1 (error) to 5 (trace).
pub fn log_line(level: u64, line: &[u8]) -> Result<(), CallError> {
    let pa = line.as_ptr().expose_provenance() as u64;
    let length = line.len() as u64;
    vendor(Vendor::Log { level, pa, length }).map(drop)
}

/// Takes what the log's own UART has received: its bytes, and how many there are.
pub fn log_input() -> Result<([u8; vendor::LOG_INPUT_MAX], usize), CallError> {
    let [count, words @ ..] = vendor(Vendor::LogInput)?;
    let mut bytes = [0; vendor::LOG_INPUT_MAX];
    for (part, word) in bytes.chunks_exact_mut(8).zip(words) {
        part.copy_from_slice(&word.to_le_bytes());
    }
    Ok((bytes, (count as usize).min(vendor::LOG_INPUT_MAX)))
}

/// Lets accesses of the realm's device at `ipa` wait in `page`, for `delay` ticks at
/// most; see [`Vendor::SetPosted`].
pub fn set_posted(rd: u64, page: u64, ipa: u64, delay: u64) -> Result<(), CallError> {
    let call = Vendor::SetPosted {
        rd,
        page,
        ipa,
        delay,
    };
    vendor(call).map(drop)
}

/// Drives the guest's SPI `intid` to `level`.
pub fn set_spi(rd: u64, intid: u32, level: bool) -> Result<(), CallError> {
    let (intid, level) = (intid.into(), level.into());
    vendor(Vendor::SetSpi { rd, intid, level }).map(drop)
}

/// The vCPU has an interrupt that would wake it from WFI.
pub fn rec_pending(rec: u64) -> Result<bool, CallError> {
    vendor(Vendor::RecPending { rec }).map(|r| r[0] != 0)
}

/// Writes the vCPU's last exits to the granule at `page`: how many.
pub fn rec_history(rec: u64, page: u64) -> Result<u64, CallError> {
    vendor(Vendor::RecHistory { rec, pa: page }).map(|r| r[0])
}

/// Makes a running vCPU exit to its host.
pub fn kick(rec: u64) -> Result<(), CallError> {
    vendor(Vendor::Kick { rec }).map(drop)
}

/// 256 random bits of the CPU's.
pub fn random() -> Result<[u64; 4], CallError> {
    vendor(Vendor::Random)
}

/// Writes a plain guest's registers ([`rmi::registers::Registers`]) to `page`,
/// inside one granule.
pub fn rec_read(rec: u64, page: u64) -> Result<(), CallError> {
    vendor(Vendor::RecRead { rec, pa: page }).map(drop)
}

/// Takes them back from `page`, and ends the vCPU's last abort.
pub fn rec_write(rec: u64, page: u64) -> Result<(), CallError> {
    vendor(Vendor::RecWrite { rec, pa: page }).map(drop)
}

/// PSCI `CPU_ON` of the machine: starts the CPU `mpidr` at `entry` with X0 =
/// `context`. The error is PSCI's code.
pub fn machine_cpu_on(mpidr: u64, entry: u64, context: u64) -> Result<(), i64> {
    let on = Psci::CpuOn {
        target: mpidr,
        entry,
        context,
    };
    match power(on) {
        rmi::psci::SUCCESS => Ok(()),
        error => Err(error),
    }
}

/// Whether EL2 drives the machine's CPU `mpidr` (PSCI `AFFINITY_INFO` knows it).
pub fn machine_has_cpu(mpidr: u64) -> bool {
    let (target, level) = (mpidr, 0);
    power(Psci::AffinityInfo { target, level }) >= 0
}

/// PSCI `SYSTEM_OFF` of the machine.
#[cfg(target_os = "none")]
pub fn machine_off() -> ! {
    loop {
        power(Psci::SystemOff);
        arm64::instr::wfi();
    }
}

/// Makes a call of PSCI: X0 of its answer.
fn power(call: Psci) -> i64 {
    let [function, a, b, c] = call.encode();
    let [x0, ..] = smc([function, a, b, c, 0, 0]);
    x0 as i64
}

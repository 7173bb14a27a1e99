//! Undercroft's own calls: vendor-specific hypervisor service range, SMC64
//! (0xC600_0000 and up). X0 of a result is a packed [`crate::Status`].

use crate::table::calls;

pub use fid::*;

calls! {
    /// A call of the host's to Undercroft.
    enum Vendor(u64), "VENDOR_", 5 arguments;

    /// Says that this is Undercroft: [`VERSION_1_0`].
    0xC600_0000 VERSION = Version -> [version];
    /// What the host can count on: [`crate::feature::VendorFeatures`].
    0xC600_0001 FEATURES = Features -> [features];
    /// The index-th range of RAM that is taken already, `size` in bytes, `kind` a
    /// [`RangeKind`]. `ERROR_INPUT` past the last.
    0xC600_0002 MEMORY_RANGE = MemoryRange { index } -> [base, size, kind];
    /// Writes one line of UTF-8 (at most [`LOG_LINE_MAX`] bytes,
    /// [plain](crate::text::is_plain) characters, inside one granule of the
    /// host's memory) to the log, among EL2's own lines. `level`: 1 error to 5
    /// trace. Behind the line that reports the machine's end ([`crate::end`])
    /// nothing is logged.
    0xC600_0003 LOG = Log { level, pa, length };
    /// Drives the input line of a guest's SPI (32 and up) to 0 or 1. A vCPU that
    /// runs elsewhere takes it at once; for one that waits in the host, see
    /// [`KICK_SGI`].
    0xC600_0004 SET_SPI = SetSpi { rd, intid, level };
    /// 1 if the vCPU has an interrupt that would wake it from WFI, or a timer that
    /// has fired.
    0xC600_0005 REC_PENDING = RecPending { rec } -> [pending];
    /// Writes the vCPU's last exits to the start of a granule of the host's memory,
    /// oldest first, as [`Exit`]: those that EL2 served too, but for what a page of
    /// [`SET_POSTED`] does. Plain guests only.
    0xC600_0006 REC_HISTORY = RecHistory { rec, pa } -> [count];
    /// Makes the vCPU exit to the host (reason IRQ) if it runs.
    0xC600_0007 KICK = Kick { rec };
    /// Takes what the log's UART has received, where the log has one to itself:
    /// how many bytes, at most [`LOG_INPUT_MAX`], and the bytes, the first in the
    /// lowest bits. The UART's interrupt is the host's to take; it ends when all
    /// bytes are taken. It also comes when the log waits for the UART: any call
    /// does then. `ERROR_INPUT` where the UART is the host's.
    0xC600_0008 LOG_INPUT = LogInput -> [count, word0, word1, word2];
    /// Writes [`crate::registers::Registers`] of a vCPU that does not run to the
    /// start of a granule of the host's memory. Plain guests only; `ERROR_INPUT`
    /// for others.
    0xC600_0010 REC_READ = RecRead { rec, pa };
    /// Takes them back and ends the vCPU's last exit, an abort, as
    /// [`crate::registers::Finish`] says. `ERROR_REC` after any other exit.
    0xC600_0011 REC_WRITE = RecWrite { rec, pa };
    /// 256 random bits of EL2's generator. `NOT_SUPPORTED` on a machine without a source
    /// of entropy.
    0xC600_0012 RANDOM = Random -> [word0, word1, word2, word3];
    /// Takes granules of `[base, top)` from the host, as many one after another from
    /// `base` on as one call does and as can be: `top` of the answer is where to go on.
    /// `ERROR_INPUT` if that is not one.
    0xC600_0014 GRANULE_RANGE_DELEGATE = GranuleRangeDelegate { base, top } -> [top];
    /// Gives them back, likewise.
    0xC600_0015 GRANULE_RANGE_UNDELEGATE = GranuleRangeUndelegate { base, top } -> [top];
    /// Maps delegated granules from `pa` on, all zero, as a realm's memory at
    /// `[ipa, top)`, whose RIPAS stays what it is: as many, from the first on, as one
    /// call does and as entries of one table map. They are blocks where no table stands
    /// below, and addresses and sizes allow. `top` of the answer is where to go on.
    /// `ERROR_INPUT` and `ERROR_RTT` as of `DATA_CREATE_UNKNOWN` if that is not one.
    0xC600_0016 RTT_DATA_MAP = RttDataMap { rd, ipa, top, pa } -> [top];
    /// The same of granules of the host's, with what is in them, for a realm in state
    /// NEW: its RAM from then on. Nothing is copied, nothing measured.
    0xC600_0017 RTT_DATA_DONATE = RttDataDonate { rd, ipa, top, pa } -> [top];
    /// Takes memory out of a realm from `ipa` on, up to `top`: what entries of one table
    /// map one after another. It was at `pa`, and reached to `end`; the answer's `top` is
    /// RMI's, behind that. What a call does not scrub (an entry of more than 2 MiB)
    /// can only be undelegated, which does.
    /// `ERROR_INPUT` and `ERROR_RTT` as of `DATA_DESTROY`, the latter also for an entry
    /// that goes beyond `top`, or a block above level 2, which has to be split.
    0xC600_0018 RTT_DATA_UNMAP = RttDataUnmap { rd, ipa, top } -> [pa, end, top];
    /// A page of the host's, at the start of a granule, says from now on which
    /// accesses of the realm's device at `ipa` (4 KiB of its IPA space) EL2 serves
    /// or lets wait in it; crate `posted` has its layout. What waits calls the host
    /// after `delay` ticks of the counter, by an exit with reason IRQ, or sooner.
    /// The page cannot be delegated meanwhile. `page` = 0 takes it back; so does the
    /// realm's end. `ERROR_INPUT` where there is one already, or none to take back;
    /// where EL2's vGIC has its registers; and for a page that does not answer: the
    /// call reads and writes it once, and nobody else may write to it meanwhile.
    0xC600_0013 SET_POSTED = SetPosted { rd, page, ipa, delay };
}

/// What [`Vendor::Version`] answers: "UC" above the major and minor number.
pub const VERSION_1_0: u64 = 0x5543_0001_0000;
/// Longest line that [`Vendor::Log`] takes, in bytes.
pub const LOG_LINE_MAX: u64 = 256;
/// Bytes that [`Vendor::LogInput`] gives at most.
pub const LOG_INPUT_MAX: usize = 24;

/// Where EL2's vGIC puts the distributor in a guest's IPA space: QEMU virt's map.
pub const GICD_IPA: u64 = 0x0800_0000;
/// Where it puts the redistributors, 128 KiB for each vCPU.
pub const GICR_IPA: u64 = 0x080A_0000;

/// The SGI by which EL2 wakes a PE. A host that sleeps there takes it as: look
/// again ([`Vendor::RecPending`]) at each vCPU that last ran here and waits. It comes once
/// until a vCPU is looked at or entered, and not while the PE runs another vCPU:
/// so a host asks for those that wait whenever one comes out, and bounds by a timer
/// how long one runs while others wait. EL2 keeps this SGI enabled.
///
/// One of the lower eight: Arm's firmware keeps 8 to 15 for the secure world, and drops
/// what others send by them.
pub const KICK_SGI: u32 = 7;

const _: () = assert!(KICK_SGI < 8);

/// What a range of [`Vendor::MemoryRange`] is taken by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum RangeKind {
    /// EL2's image, tables and stacks: absent from the host's stage 2.
    Hypervisor = 1,
    /// The host's own image, as EL2 placed it.
    HostImage = 2,
    /// RAM of the device tree that nobody uses: reserved by `no-map`, or no whole
    /// granule of EL2's tables. Absent from the host's stage 2.
    Withheld = 3,
}

/// One entry of [`Vendor::RecHistory`].
#[derive(
    Clone, Copy, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
)]
#[repr(C)]
pub struct Exit {
    /// Physical counter when it happened.
    pub time: u64,
    /// ESR_EL2; [`Self::INTERRUPT`] for an IRQ.
    pub esr: u64,
    /// ELR_EL2.
    pub elr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// Faulting IPA, 0 where the exit has none.
    pub ipa: u64,
}

impl Exit {
    /// In the place of a syndrome: the exit was an interrupt's.
    pub const INTERRUPT: u64 = u64::MAX;
}

/// Exits that EL2 remembers for each vCPU.
pub const HISTORY_LEN: usize = 8;

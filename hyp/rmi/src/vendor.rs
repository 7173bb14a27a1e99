//! Undercroft's own calls: vendor-specific hypervisor service range, SMC64
//! (0xC600_0000 and up). X0 of a result is a packed [`crate::Status`].

/// `VERSION()`: X1 = [`VERSION_1_0`]. Says that this is Undercroft.
pub const VERSION: u64 = 0xC600_0000;
/// What [`VERSION`] answers: "UC" above the major and minor number.
pub const VERSION_1_0: u64 = 0x5543_0001_0000;
/// `FEATURES()`: X1 = [`crate::feature::VendorFeatures`].
pub const FEATURES: u64 = 0xC600_0001;
/// `MEMORY_RANGE(index)`: X1 base, X2 size in bytes, X3 [`RangeKind`] of the
/// index-th range of RAM that is taken already. `ERROR_INPUT` past the last.
pub const MEMORY_RANGE: u64 = 0xC600_0002;
/// `LOG(level, pa, length)`: writes one line of UTF-8 (at most
/// [`LOG_LINE_MAX`] bytes, [plain](crate::text::is_plain) characters, inside one
/// granule of the host's memory) to the log, among EL2's own lines. `level`: 1
/// error to 5 trace. Behind the line that tells the machine's end
/// ([`crate::end`]) nothing is logged.
pub const LOG: u64 = 0xC600_0003;
/// Longest line that [`LOG`] takes, in bytes.
pub const LOG_LINE_MAX: u64 = 256;
/// `SET_SPI(rd, intid, level)`: drives the input line of a guest's SPI (32 and
/// up) to 0 or 1. A vCPU that runs elsewhere takes it at once; for one that
/// waits in the host, see [`KICK_SGI`].
pub const SET_SPI: u64 = 0xC600_0004;
/// `REC_PENDING(rec)`: X1 = 1 if the vCPU has an interrupt that would wake it
/// from WFI, or a timer that has fired.
pub const REC_PENDING: u64 = 0xC600_0005;
/// `REC_HISTORY(rec, pa)`: writes the vCPU's last exits, those that EL2 served
/// too (but not those that a page of [`SET_POSTED`] did), to the start of a granule of the host's memory: X1 = count, oldest first,
/// as [`Exit`]. Plain guests only.
pub const REC_HISTORY: u64 = 0xC600_0006;
/// `KICK(rec)`: makes the vCPU exit to the host (reason IRQ) if it runs.
pub const KICK: u64 = 0xC600_0007;
/// `LOG_INPUT()`: takes what the log's UART has received, where the log has one
/// to itself: X1 = number of bytes, at most [`LOG_INPUT_MAX`]; X2 to X4 = the
/// bytes, the first in the lowest bits of X2. The UART's interrupt is the host's
/// to take; it ends when all bytes are taken. It also comes when the log waits
/// for the UART: any call does then. `ERROR_INPUT` where the UART is the host's.
pub const LOG_INPUT: u64 = 0xC600_0008;
/// Bytes that [`LOG_INPUT`] gives at most.
pub const LOG_INPUT_MAX: usize = 24;
/// `RANDOM()`: X1–X4 = 256 random bits of the CPU's (FEAT_RNG). `NOT_SUPPORTED`
/// on a CPU without; `ERROR_INPUT` when it has none at the moment.
pub const RANDOM: u64 = 0xC600_0012;
/// `REC_READ(rec, pa)`: writes [`crate::registers::Registers`] of a vCPU that
/// does not run to the start of a granule of the host's memory. Plain guests
/// only; `ERROR_INPUT` for others.
pub const REC_READ: u64 = 0xC600_0010;
/// `REC_WRITE(rec, pa)`: takes them back and ends the vCPU's last exit, an
/// abort, as [`crate::registers::Finish`] says. `ERROR_REC`
/// after any other exit.
pub const REC_WRITE: u64 = 0xC600_0011;

/// `SET_POSTED(rd, page, ipa, delay)`: a page of the host's, at the start of a
/// granule, says from now on which accesses of the realm's device at `ipa` (4 KiB
/// of its IPA space) EL2 serves or lets wait in it; crate `posted` has its layout.
/// What waits calls the host after `delay` ticks of the counter, by an exit with
/// reason IRQ, or sooner. The page cannot be delegated meanwhile. `page` = 0 takes
/// it back; so does the realm's end. `ERROR_INPUT` where there is one already, or
/// none to take back.
pub const SET_POSTED: u64 = 0xC600_0013;

/// Where EL2's vGIC puts the distributor in a guest's IPA space: QEMU virt's map.
pub const GICD_IPA: u64 = 0x0800_0000;
/// Where it puts the redistributors, 128 KiB for each vCPU.
pub const GICR_IPA: u64 = 0x080A_0000;

/// The SGI by which EL2 wakes a PE. A host that sleeps there takes it as: look
/// again ([`REC_PENDING`]) at each vCPU that last ran here and waits. It comes once
/// until a vCPU is looked at or entered, and not while the PE runs another vCPU:
/// so a host asks for those that wait whenever one comes out, and bounds by a timer
/// how long one runs while others wait. EL2 keeps this SGI enabled.
pub const KICK_SGI: u32 = 8;

/// What a range of [`MEMORY_RANGE`] is taken by.
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

/// One entry of [`REC_HISTORY`].
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

//! Values of the RTT commands (DEN0137 1.0, B4.4.20 and A5.5).

/// `RTT_MAP_UNPROTECTED` descriptor: the output address, bits 51:granule.
/// With LPA2 the address is written in place here, never folded into \[9:8\].
pub const DESC_OA: u64 = 0x000f_ffff_ffff_f000;
/// Descriptor: memory type \[4:2\], in the encoding of FEAT_S2FWB.
pub const DESC_MEMATTR_SHIFT: u32 = 2;
/// Descriptor: width mask of the memory type.
pub const DESC_MEMATTR_MASK: u64 = 0b111;
/// Descriptor: readable (S2AP bit 6).
pub const DESC_READ: u64 = 1 << 6;
/// Descriptor: writable (S2AP bit 7).
pub const DESC_WRITE: u64 = 1 << 7;

/// Memory type: Normal write-back whatever stage 1 says.
pub const MEMATTR_NORMAL_WB: u64 = 6;
/// Memory type: Normal non-cacheable.
pub const MEMATTR_NORMAL_NC: u64 = 5;
/// Memory type: as stage 1 says.
pub const MEMATTR_PASSTHROUGH: u64 = 7;
/// Memory type: Device-nGnRE.
pub const MEMATTR_DEVICE_NGNRE: u64 = 1;

/// State of an RTT entry, X2 of `RTT_READ_ENTRY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum EntryState {
    /// Nothing here.
    Unassigned = 0,
    /// A granule or block of memory.
    Assigned = 1,
    /// A table of the next level.
    Table = 2,
}

bitflags::bitflags! {
    /// `flags` of `DATA_CREATE` (DEN0137 1.0, B4.4.2 RmiDataFlags).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DataFlags: u64 {
        /// The content counts in the realm's measurement, not its address alone.
        const MEASURE = 1 << 0;
    }
}

/// Realm IPA state (DEN0137 1.0, A5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ripas {
    /// Nothing there: an access is the guest's error.
    Empty = 0,
    /// The realm's memory.
    Ram = 1,
    /// Was memory, and the host destroyed it.
    Destroyed = 2,
}

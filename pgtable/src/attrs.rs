//! What a mapping allows, in words; `format` turns it into bits.
//!
//! The numbers of the variants are the fields' codes, so that turning them
//! into bits takes a shift each.

/// Data access that stage 2 allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Access {
    /// None: every access faults.
    None = 0b00,
    /// Loads.
    Read = 0b01,
    /// Stores, no loads.
    Write = 0b10,
    /// Both.
    ReadWrite = 0b11,
}

/// Instruction fetch that stage 2 allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Execute {
    /// At EL1 and EL0.
    All = 0b00,
    /// At EL0 only. Needs FEAT_XNX.
    El0 = 0b01,
    /// Nowhere.
    Never = 0b10,
    /// At EL1 only. Needs FEAT_XNX.
    El1 = 0b11,
}

/// The four kinds of Device memory, strictest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Device {
    /// No gathering, no reordering, no early acknowledgement.
    NGnRnE,
    /// No gathering, no reordering.
    NGnRE,
    /// No gathering.
    NGRE,
    /// Gathering, reordering, early acknowledgement.
    GRE,
}

/// What stage 2 makes of the memory type that stage 1 asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Memory {
    /// Normal write-back. With FWB it overrides stage 1, without it stage 1
    /// may weaken it.
    Normal,
    /// Normal, non-cacheable at best.
    NormalNonCacheable,
    /// Stage 1 decides. Without FWB the same bits as [`Memory::Normal`].
    FromStage1,
    /// Device memory.
    Device(Device),
}

/// Shareability. Ignored by descriptors of DS=1, where `VTCR_EL2.SH0`
/// (inner) holds for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Share {
    /// This CPU only.
    Non = 0b00,
    /// The outer domain.
    Outer = 0b10,
    /// All CPUs that run guests. What memory should be.
    Inner = 0b11,
}

/// The access flag of a new leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Age {
    /// AF=0: the first access sets AF, or faults without FEAT_HAFDBS.
    Old = 0,
    /// AF=1: the first access does not fault.
    Young = 1,
}

/// Whether hardware may turn a read-only leaf writable (DBM).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Dirty {
    /// Writes to a read-only leaf fault.
    Fault = 0,
    /// DBM=1: with `VTCR_EL2.HD` a write sets S2AP\[1\] instead of faulting.
    Track = 1,
}

/// Everything that a stage-2 leaf says apart from its address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Attrs {
    /// Loads and stores.
    pub access: Access,
    /// Instruction fetch.
    pub execute: Execute,
    /// Memory type.
    pub memory: Memory,
    /// Shareability.
    pub share: Share,
    /// Access flag.
    pub age: Age,
    /// Dirty state.
    pub dirty: Dirty,
    /// Software bits \[58:55\] of the descriptor, in \[3:0\].
    pub soft: u8,
}

impl Attrs {
    /// Memory of a guest: everything allowed, write-back, inner shareable.
    pub const MEMORY: Self = Self {
        access: Access::ReadWrite,
        execute: Execute::All,
        memory: Memory::Normal,
        share: Share::Inner,
        age: Age::Young,
        dirty: Dirty::Fault,
        soft: 0,
    };

    /// A device: loads and stores, no fetch, Device-nGnRE.
    pub const DEVICE: Self = Self {
        execute: Execute::Never,
        memory: Memory::Device(Device::NGnRE),
        ..Self::MEMORY
    };

    /// The same with other data access.
    pub const fn access(self, access: Access) -> Self {
        Self { access, ..self }
    }

    /// The same with other fetch.
    pub const fn execute(self, execute: Execute) -> Self {
        Self { execute, ..self }
    }

    /// The same with another memory type.
    pub const fn memory(self, memory: Memory) -> Self {
        Self { memory, ..self }
    }
}

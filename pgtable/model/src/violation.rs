//! What can be wrong, each said in words.

/// The kinds of violation.
///
/// Where an invalidation was tried but was wrong, the kind names the cause and
/// [`Violation::shown_by`] what it led to; where none was tried, the kind is
/// the consequence itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A valid descriptor replaced by another that break-before-make separates.
    ValidToValidNeedsBbm,
    /// A valid descriptor written while an old one may still be cached.
    MakeWhileUnclean,
    /// A TLBI before the DSB that makes the store visible.
    TlbiBeforeDsb,
    /// A TLBI while another VMID was current.
    WrongVmid,
    /// A level hint that is not the level of the entry.
    TtlMismatch,
    /// A granule code that is not the regime's.
    TgMismatch,
    /// A TLBI reaches further than it may.
    RangeOverrun,
    /// Stage 2 was invalidated, combined entries were not.
    MissingStage1,
    /// Stage 1 was invalidated before stage 2 was complete.
    Stage1BeforeStage2,
    /// A TLBI without the DSB that completes it.
    MissingDsb,
    /// A TLBI or DSB that reaches this PE only, where others may hold entries.
    LocalOnly,
    /// A last-level TLBI where a table was removed.
    LastLevelForTable,
    /// A member of a contiguous group was still valid at the TLBI.
    ContiguousAlive,
    /// One more TLBI and DSB is due (repeat-TLBI errata).
    MissingRepeat,
    /// A TLB may still translate otherwise than the tables say.
    StaleTranslation,
    /// A TLB may hold two sizes for one address.
    ConflictingSizes,
    /// A table page freed while a walker may read it.
    FreeWhileCached,
    /// A table linked before its contents are there.
    TableUsedUninitialised,
    /// A plain store over an entry that others may change at the same time.
    PlainWriteRace,
    /// A block at a level that has none.
    BlockIllegalLevel,
    /// An address beyond the output size.
    AddressSize,
    /// A block whose output address is not aligned to its size.
    MisalignedOutput,
    /// A reserved memory attribute.
    ReservedAttribute,
    /// Normal memory mapped non-shareable where several PEs run.
    NotShareable,
    /// A root that is not aligned to its size.
    UnalignedRoot,
    /// A mapping of memory that this tree may not map.
    OutputNotOwned,
    /// Memory mapped cacheable without having been cleaned, FWB being off.
    MissingCmo,
    /// Execution allowed without instruction cache invalidation.
    MissingInstructionInvalidate,
    /// A context synchronisation event is missing.
    MissingIsb,
    /// A store is not yet visible where it must be.
    MissingStoreBarrier,
    /// Registers that describe no usable regime.
    BadSetup,
    /// An instruction that this CPU does not have.
    UndefinedTlbi,
    /// Reserved operand bits are set.
    ReservedOperand,
    /// A VMID given to another tree before it was invalidated.
    VmidReused,
    /// An entry below a removed table made valid before the removal is clean.
    FrozenChildWritten,
    /// A page linked as a table twice.
    TableLinkedTwice,
    /// A contiguous group whose members do not agree.
    BadContiguous,
    /// A fault repeats because the stale entry was never invalidated.
    Livelock,
    /// The tables do not say what the specification promises.
    SpecMismatch,
    /// The trace contradicts itself.
    BadEvent,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 40] = [
        Self::ValidToValidNeedsBbm,
        Self::MakeWhileUnclean,
        Self::TlbiBeforeDsb,
        Self::WrongVmid,
        Self::TtlMismatch,
        Self::TgMismatch,
        Self::RangeOverrun,
        Self::MissingStage1,
        Self::Stage1BeforeStage2,
        Self::MissingDsb,
        Self::LocalOnly,
        Self::LastLevelForTable,
        Self::ContiguousAlive,
        Self::MissingRepeat,
        Self::StaleTranslation,
        Self::ConflictingSizes,
        Self::FreeWhileCached,
        Self::TableUsedUninitialised,
        Self::PlainWriteRace,
        Self::BlockIllegalLevel,
        Self::AddressSize,
        Self::MisalignedOutput,
        Self::ReservedAttribute,
        Self::NotShareable,
        Self::UnalignedRoot,
        Self::OutputNotOwned,
        Self::MissingCmo,
        Self::MissingInstructionInvalidate,
        Self::MissingIsb,
        Self::MissingStoreBarrier,
        Self::BadSetup,
        Self::UndefinedTlbi,
        Self::ReservedOperand,
        Self::VmidReused,
        Self::FrozenChildWritten,
        Self::TableLinkedTwice,
        Self::BadContiguous,
        Self::Livelock,
        Self::SpecMismatch,
        Self::BadEvent,
    ];

    /// One sentence that says what to do.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::ValidToValidNeedsBbm => {
                "write an invalid descriptor, invalidate and complete, then write the new one"
            }
            Self::MakeWhileUnclean => {
                "the old translation may still be cached: DSB ISHST; TLBI; DSB ISH first"
            }
            Self::TlbiBeforeDsb => {
                "a walker may refill from the old value: DSB ISHST goes between store and TLBI"
            }
            Self::WrongVmid => {
                "the TLBI acted on the VMID in VTTBR_EL2: switch it, ISB, invalidate, restore"
            }
            Self::TtlMismatch => {
                "the hint must be the leaf's level, and 0 where a table goes or levels are mixed"
            }
            Self::TgMismatch => {
                "TG is 1 for 4K, 2 for 16K, 3 for 64K and must be the regime's granule"
            }
            Self::RangeOverrun => "the operation covers addresses that it has no business with",
            Self::MissingStage1 => {
                "after DSB ISH, TLBI VMALLE1IS and DSB ISH remove the combined entries"
            }
            Self::Stage1BeforeStage2 => {
                "stage 2 must be complete (DSB ISH) before VMALLE1IS, or entries refill from it"
            }
            Self::MissingDsb => "a TLBI is complete only after DSB ISH on the PE that issued it",
            Self::LocalOnly => "other PEs may hold the entry: use the IS form and DSB ISH",
            Self::LastLevelForTable => {
                "a removed table needs the any-level form without a hint, over its whole span"
            }
            Self::ContiguousAlive => {
                "clear every member of the contiguous group before invalidating any"
            }
            Self::MissingRepeat => "the erratum asks for one more TLBI and DSB ISH",
            Self::StaleTranslation => "invalidate what was changed before saying it is done",
            Self::ConflictingSizes => "two entries of different size for one address: TLB conflict",
            Self::FreeWhileCached => {
                "a walker may still read the page: unlink, invalidate, complete, then free"
            }
            Self::TableUsedUninitialised => {
                "write the whole table first and link it with a store-release"
            }
            Self::PlainWriteRace => "use an atomic read-modify-write: an update may be lost",
            Self::BlockIllegalLevel => "this granule has no block here; level 3 wants 0b11",
            Self::AddressSize => "the address exceeds the output size of the regime",
            Self::MisalignedOutput => "a block's output address is a multiple of its size",
            Self::ReservedAttribute => "this MemAttr encoding is reserved",
            Self::NotShareable => "PEs do not see each other's caches: map it inner shareable",
            Self::UnalignedRoot => "hardware ignores the low bits: align the root to its size",
            Self::OutputNotOwned => "check ownership before mapping, and unmap before releasing",
            Self::MissingCmo => "without FWB, clean to the point of coherency before mapping",
            Self::MissingInstructionInvalidate => {
                "invalidate the instruction cache before allowing execution"
            }
            Self::MissingIsb => "an ISB (or exception return) is due here",
            Self::MissingStoreBarrier => "a DSB ISHST is due after the last store",
            Self::BadSetup => "the registers break a rule of the architecture",
            Self::UndefinedTlbi => "FEAT_TLBIRANGE is absent: the range form is undefined",
            Self::ReservedOperand => "reserved bits of the operand must be zero",
            Self::VmidReused => "TLBI VMALLS12E1IS or ALLE1IS, and DSB ISH, before reuse",
            Self::FrozenChildWritten => "leave the children of a removed table alone until clean",
            Self::TableLinkedTwice => "a table page has one parent entry",
            Self::BadContiguous => "members of a group agree in all but the output address",
            Self::Livelock => "invalidate locally after a fault on an entry already relaxed",
            Self::SpecMismatch => "the tables differ from what was asked for",
            Self::BadEvent => "this event does not fit what was recorded before",
        }
    }
}

/// A rule broken, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What is wrong.
    pub kind: Kind,
    /// What it led to, if that was how it came to light.
    pub shown_by: Option<Kind>,
    /// Index of the event at which it came to light, from 1.
    pub event: u64,
    /// Index of the event that began it (the store that removed an entry).
    pub since: Option<u64>,
    /// PE of the event.
    pub pe: u8,
    /// Input address, where one is known.
    pub ia: Option<u64>,
    /// Level, where one is known.
    pub level: Option<i8>,
    /// Physical address of the entry or page.
    pub pa: Option<u64>,
    /// Details for a person.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "event {}, PE {}: {:?}", self.event, self.pe, self.kind)?;
        if let Some(shown) = self.shown_by {
            write!(f, ", shown by {shown:?}")?;
        }
        if let Some(ia) = self.ia {
            write!(f, "\n  input address {ia:#x}")?;
            if let Some(level) = self.level {
                write!(f, ", level {level}")?;
            }
        }
        if let Some(pa) = self.pa {
            write!(f, "\n  physical address {pa:#x}")?;
        }
        if let Some(since) = self.since {
            write!(f, "\n  begun by event {since}")?;
        }
        if !self.detail.is_empty() {
            write!(f, "\n  {}", self.detail)?;
        }
        write!(f, "\n  {}", self.kind.explain())
    }
}

impl std::error::Error for Violation {}

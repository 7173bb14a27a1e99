//! Why the machine cannot run its guests: one sentence for the user.

use core::fmt;
use core::ops::Range;
use host_loader::arch::mmu::MapError;
use host_loader::bundle::BundleError;
use host_loader::gic::GicError;
use host_loader::guest::error::GuestError;
use host_loader::life::ReserveError;
use host_loader::platform::PlatformError;
use host_loader::rmi_call::CallError;

/// What the machine's RAM does not suffice for.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// The stacks of the other CPUs.
    Stacks,
    /// The host's heap.
    Heap,
    /// A granule of ones.
    Blank,
}

/// Why the boot ends.
#[derive(Debug)]
pub enum BootError {
    /// At this address there is no device tree of at most 2 MiB.
    NoTree(u64),
    /// The device tree.
    Platform(PlatformError),
    /// It does not name the CPU with this affinity, which boots.
    NoCpu(u64),
    /// EL2 is not Undercroft's.
    NoUndercroft(CallError),
    /// EL2 is of another major version.
    Version,
    /// EL2 has no RMI.
    NoRmi(CallError),
    /// EL2 does not say what its RMI has.
    NoFeatures(CallError),
    /// EL2 does not serve plain guests with its own vGIC.
    NoPlainGuests,
    /// EL2 counts in granules of this shift.
    Granule(u8),
    /// The machine has no RAM left for something.
    NoRam(Purpose),
    /// The host's stage 1 cannot map what it must.
    Map(MapError),
    /// The GIC.
    Gic(GicError),
    /// The boot loader passed no initrd.
    NoInitrd,
    /// It is not in RAM.
    InitrdOutside(Range<u64>),
    /// The bundle.
    Bundle(BundleError),
    /// A guest's settings.
    Guest(GuestError),
    /// What the guests take cannot be set aside.
    Reserve(ReserveError),
    /// PSCI does not start this CPU, by this code.
    CpuOn(usize, i64),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTree(dtb) => write!(f, "no device tree of at most 2 MiB at {dtb:#x}"),
            Self::Platform(why) => why.fmt(f),
            Self::NoCpu(mpidr) => write!(f, "device tree: no CPU with MPIDR {mpidr:#x}"),
            Self::NoUndercroft(why) => write!(f, "no Undercroft at EL2: {why}"),
            Self::Version => f.write_str("EL2 is of another major version than this host"),
            Self::NoRmi(why) => write!(f, "RMI_VERSION: {why}"),
            Self::NoFeatures(why) => write!(f, "RMI_FEATURES: {why}"),
            Self::NoPlainGuests => f.write_str("EL2 does not serve plain guests with its own vGIC"),
            Self::Granule(shift) => write!(f, "EL2 counts in granules of 2^{shift}"),
            Self::NoRam(purpose) => {
                f.write_str("the machine has no RAM left")?;
                f.write_str(match purpose {
                    Purpose::Stacks => " for the CPUs' stacks",
                    Purpose::Heap => " for the host's heap",
                    Purpose::Blank => "",
                })
            }
            Self::Map(why) => why.fmt(f),
            Self::Gic(why) => why.fmt(f),
            Self::NoInitrd => f.write_str(
                "no initrd: the boot loader passed no bundle; give it one \
                 (QEMU: -initrd bundle.cpio)",
            ),
            Self::InitrdOutside(range) => write!(
                f,
                "the initrd at {:#x} to {:#x} is not in RAM",
                range.start, range.end
            ),
            Self::Bundle(why) => why.fmt(f),
            Self::Guest(why) => why.fmt(f),
            Self::Reserve(why) => why.fmt(f),
            Self::CpuOn(index, code) => {
                write!(f, "CPU {index}: PSCI CPU_ON answers {code}")
            }
        }
    }
}

macro_rules! from {
    ($($variant:ident: $of:ty,)*) => {
        $(impl From<$of> for BootError {
            fn from(why: $of) -> Self {
                Self::$variant(why)
            }
        })*
    };
}

from! {
    Platform: PlatformError,
    Gic: GicError,
    Bundle: BundleError,
    Guest: GuestError,
    Reserve: ReserveError,
}

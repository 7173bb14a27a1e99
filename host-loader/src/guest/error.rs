//! Why a guest cannot be had: the setting that asks for it, and what is wrong.

use super::failure::{FlashError, RealmError};
use super::place::Collision;
use crate::image::ImageError;
use alloc::string::{String, ToString};
use core::fmt;
use guest_config::quote::Value;
use guest_config::{FILE, Located, Place};

/// What is wrong with a guest's setting.
#[derive(Debug)]
pub enum Refusal {
    /// More vCPUs than its interrupt controller serves.
    ManyVcpus {
        /// Those that it asks for.
        vcpus: u32,
        /// As many as there can be.
        limit: u64,
    },
    /// More vCPUs than the machine has CPUs.
    FewCpus {
        /// Those that it asks for.
        vcpus: u32,
        /// The machine's.
        cpus: usize,
    },
    /// More memory than the machine has left, both in bytes.
    LittleMemory {
        /// What it asks for.
        memory: u64,
        /// What is left.
        left: u64,
    },
    /// More memory, bytes, than the CPU has address bits for.
    WideMemory {
        /// What it asks for.
        memory: u64,
        /// Where it is to begin, if that was asked for.
        base: Option<u64>,
        /// Bits of address that it needs.
        needs: u32,
        /// Bits that there are.
        has: u8,
    },
    /// Fewer bits of address than its memory takes, or more than the CPU has.
    IpaBits {
        /// What it asks for.
        bits: u32,
        /// Where its memory begins, if that was asked for.
        base: Option<u64>,
        /// Bits that it needs.
        needs: u32,
        /// Bits that there are.
        has: u8,
    },
    /// Its granule and IPA bits have no walk from there.
    StartLevel {
        /// What it asks for.
        level: i64,
        /// Bits of IPA.
        bits: u32,
        /// The first level that there is.
        least: i64,
        /// The last.
        most: i64,
    },
    /// Its kernel cannot be loaded.
    Kernel {
        /// The file.
        kernel: String,
        /// Why.
        why: ImageError,
    },
    /// A setting for raw binaries, of a kernel that is none.
    OfRaw {
        /// The setting.
        key: &'static str,
        /// The file.
        kernel: String,
    },
    /// Its flash cannot be had.
    Flash(FlashError),
    /// Its device tree cannot be written.
    Tree(vm_fdt::Error),
    /// Its device tree is longer than the boot protocol allows.
    LongTree,
    /// EL2 has not given back all that its last life had.
    LostMemory,
    /// Its RAM has no place for all of its files.
    Place(Collision),
    /// Its realm cannot be built.
    Realm(RealmError),
}

impl Refusal {
    /// The setting that mends it.
    const fn key(&self) -> &'static str {
        match self {
            Self::ManyVcpus { .. } | Self::FewCpus { .. } => "vcpus",
            Self::WideMemory { base: Some(_), .. } => "ram_base",
            Self::LittleMemory { .. } | Self::WideMemory { .. } | Self::Place(_) => "memory",
            Self::Kernel {
                why: ImageError::DoesNotFit(_),
                ..
            } => "memory",
            Self::IpaBits { .. } => "ipa_bits",
            Self::StartLevel { .. } => "start_level",
            Self::OfRaw { key, .. } => key,
            Self::Flash(why) => why.key(),
            Self::Kernel { .. }
            | Self::Tree(_)
            | Self::LongTree
            | Self::LostMemory
            | Self::Realm(_) => "kernel",
        }
    }

    /// As what is wrong with this guest's settings.
    pub fn of(self, config: &Located) -> GuestError {
        GuestError {
            place: config.place(self.key()),
            guest: config.guest.name.to_string(),
            why: self,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ManyVcpus { vcpus, limit } => write!(
                f,
                "vcpus = {vcpus}: expected at most {limit}, as many as its GIC serves"
            ),
            Self::FewCpus { vcpus, cpus } => write!(
                f,
                "vcpus = {vcpus}: expected at most {cpus}, as many as the machine has CPUs"
            ),
            Self::LittleMemory { memory, left } => write!(
                f,
                "memory = {} MiB: the machine has {} MiB left",
                memory >> 20,
                left >> 20
            ),
            Self::WideMemory {
                memory,
                base,
                needs,
                has,
            } => {
                match base {
                    Some(base) => write!(f, "ram_base = {base:#x}: its memory from there on")?,
                    None => write!(f, "memory = {} MiB", memory >> 20)?,
                }
                write!(f, " needs {needs} bits of address; this CPU has {has}")
            }
            Self::IpaBits {
                bits,
                base,
                needs,
                has,
            } => {
                write!(f, "ipa_bits = {bits}: expected {needs}, which its memory")?;
                if let Some(base) = base {
                    write!(f, " from {base:#x} on")?;
                }
                write!(f, " takes, to {has}, which this CPU has")
            }
            Self::StartLevel {
                level,
                bits,
                least,
                most,
            } => write!(
                f,
                "start_level = {level}: expected {least} to {most}, where a walk of {bits} bits \
                 of IPA can start with this granule"
            ),
            Self::Kernel { kernel, why } => write!(f, "kernel = {}: {why}", Value(kernel)),
            Self::OfRaw { key, kernel } => write!(
                f,
                "{key} is for raw binaries; {} says itself where it goes",
                Value(kernel)
            ),
            Self::Flash(why) => why.fmt(f),
            Self::Tree(why) => write!(f, "device tree: {why}"),
            Self::LostMemory => {
                f.write_str("EL2 has kept a part of its memory: start the machine anew")
            }
            Self::LongTree => f.write_str("its device tree is longer than 2 MiB; shorten cmdline"),
            Self::Place(why) => why.fmt(f),
            Self::Realm(why) => why.fmt(f),
        }
    }
}

/// What is wrong, and where in the configuration: one sentence.
#[derive(Debug)]
pub struct GuestError {
    /// Where the setting stands.
    pub place: Place,
    /// The guest's name.
    pub guest: String,
    /// What is wrong with it.
    pub why: Refusal,
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, guest, why } = self;
        write!(f, "{FILE}:{place}: guest \"{guest}\": {why}")
    }
}

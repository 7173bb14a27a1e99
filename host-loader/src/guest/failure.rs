//! Why a realm cannot be had, or a guest's flash.

use super::map;
use crate::rmi_call::CallError;
use alloc::string::String;
use core::fmt;
use guest_config::quote::Value;

/// Why a realm was not built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RealmError {
    /// No granules are left for this purpose.
    NoMemory(&'static str),
    /// Living realms have all VMIDs.
    NoVmid,
    /// A call failed.
    Call(&'static str, CallError),
}

impl fmt::Display for RealmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory(what) => write!(f, "the machine has no RAM left for {what}"),
            Self::NoVmid => f.write_str("as many guests live as the CPU has VMIDs for"),
            Self::Call(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

/// Why a guest cannot start from flash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlashError {
    /// It is no plain guest; where its program is to go.
    Mode(u64),
    /// The file is packed, or says itself where it goes.
    File(String),
    /// The program ends behind the bank.
    End {
        /// Where it begins.
        load: u64,
        /// Where it ends.
        end: u64,
    },
    /// It is to start where its program is not.
    Entry(u64),
    /// It takes more memory than the machine has left, both in bytes.
    Memory {
        /// What it takes.
        memory: u64,
        /// What is left.
        left: u64,
    },
}

impl FlashError {
    /// The setting that mends it.
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Entry(_) => "entry",
            Self::Mode(_) | Self::File(_) | Self::End { .. } | Self::Memory { .. } => "load",
        }
    }
}

impl fmt::Display for FlashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(load) => write!(
                f,
                "load = {load:#x}: there is flash, which only a plain guest has"
            ),
            Self::File(kernel) => write!(
                f,
                "what starts from flash stands there as it is: {} is packed, or says \
                 itself where it goes",
                Value(kernel)
            ),
            Self::End { load, end } => write!(
                f,
                "load = {load:#x}: its program ends at {end:#x}, and flash at {:#x}",
                map::FLASH_CODE.end
            ),
            Self::Entry(entry) => write!(
                f,
                "entry = {entry:#x}: it starts from flash, and its program is not there"
            ),
            Self::Memory { memory, left } => write!(
                f,
                "its flash takes {} MiB of memory: the machine has {} MiB left",
                memory >> 20,
                left >> 20
            ),
        }
    }
}

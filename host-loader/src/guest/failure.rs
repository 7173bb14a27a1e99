//! Why a realm cannot be had.

use crate::rmi_call::CallError;
use core::fmt;

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

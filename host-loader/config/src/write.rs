//! The file of guests, as [`parse`](crate::parse) reads it.

use alloc::string::String;

use serde::{Serialize, Serializer};

use super::Guest;
use super::size::Shown;

#[derive(Serialize)]
struct File<'a> {
    guest: &'a [Guest],
}

/// The text of a file with these guests.
///
/// # Errors
/// None in practice: every guest can be written as TOML.
pub fn write(guests: &[Guest]) -> Result<String, toml::ser::Error> {
    toml::to_string(&File { guest: guests })
}

pub(crate) fn size<S: Serializer>(bytes: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Shown(*bytes))
}

pub(crate) fn is_not(set: &bool) -> bool {
    !set
}

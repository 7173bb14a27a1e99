//! Guests to boot: the catalogue, how they are fetched into a cache, and the
//! initial RAM disk that gives a Linux guest its shell.

pub mod catalogue;
pub mod fetch;
pub mod initrd;

//! Guests to boot: the catalogue, how they are fetched or built into a cache, and the
//! initial RAM disk that gives a Linux guest its shell.

pub mod catalogue;
pub mod fetch;
pub mod initrd;
pub mod tiny;

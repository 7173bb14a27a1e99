//! A guest: from its configuration to a running realm, and back.
//!
//! | module | holds |
//! |---|---|
//! | [`map`] | the guest's physical address map, that of a QEMU virt machine |
//! | [`ram`] | its RAM: extents of the host's granules behind consecutive IPAs |
//! | [`pieces`] | which pieces of that are populated |
//! | [`live`] | the RAM of a guest that runs, and how that gets it |
//! | [`flash`] | the flash of one that starts from it |
//! | [`place`] | where kernel, initrd and device tree go |
//! | [`fdt`] | its device tree |
//! | [`handover`] | a protected guest's memory: given to its realm, and taken back |
//! | [`measured`] | a realm's first memory, in the order of its measurement |
//! | [`splits`] | its blocks that are split into pages |
//! | [`sharing`] | a realm's RAM that changes hands while it runs |
//! | [`shares`] | what of it is shared |
//! | [`delegated`] | single granules that are EL2's while a realm is |
//! | [`realm`] | the RMI commands that build a realm and take it apart |
//! | [`vmid`] | which VMIDs living realms have |
//! | [`build`] | all of these in order |
//! | [`error`] | why a guest cannot be had |
//! | [`failure`] | why a realm cannot be |
//!
//! The image has `handle` besides, a guest that runs.

pub mod build;
pub mod delegated;
pub mod error;
pub mod failure;
pub mod fdt;
pub mod flash;
#[cfg(target_os = "none")]
pub mod handle;
pub mod handover;
pub mod live;
pub mod map;
pub mod measured;
pub mod pieces;
pub mod place;
pub mod ram;
pub mod realm;
pub mod shares;
pub mod sharing;
pub mod splits;
pub mod vmid;

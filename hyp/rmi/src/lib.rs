//! The ABI between the EL1 host, the EL2 image and its guests.
//!
//! Function identifiers, structures and status codes of Arm's Realm Management
//! Interface 1.0 (DEN0137, 1.0-rel0), of the Realm Services Interface 1.0, and
//! of Undercroft's few vendor calls. Constants, layouts and texts only: what they *do*
//! stands in `hyp` (which serves them) and in `host-loader` (which calls them).
//!
//! A call is SMC64 or HVC64 with the function identifier in X0 and arguments in
//! X1–X5; results come back in X0–X4. X0 of a result is a [`Status`], packed.
//! An unknown identifier answers [`NOT_SUPPORTED`] in X0.
//!
//! | module | holds |
//! |---|---|
//! | [`call`] | the names of calls, for people |
//! | [`end`] | the last line of the log, and the token in it |
//! | [`fid`] | function identifiers of RMI, RSI and PSCI |
//! | [`status`] | return codes, packed and unpacked |
//! | [`feature`] | feature register 0 and the vendor feature register |
//! | [`params`] | what `REALM_CREATE` and `REC_CREATE` read |
//! | [`run`] | the page that `REC_ENTER` reads and writes |
//! | [`registers`] | the page of `REC_READ` and `REC_WRITE` |
//! | [`rtt`] | descriptors, states and RIPAS values of the RTT commands |
//! | [`syndrome`] | ESR_ELx, which exit records carry |
//! | [`psci`] | return codes and states of PSCI 1.1 |
//! | [`text`] | which characters the log takes |
//! | [`vendor`] | Undercroft's own calls, 0xC600_0000 and up |
#![no_std]
#![forbid(unsafe_code)]

pub mod call;
pub mod end;
pub mod feature;
pub mod fid;
pub mod params;
pub mod psci;
pub mod registers;
pub mod rtt;
pub mod run;
pub mod status;
pub mod syndrome;
pub mod text;
pub mod vendor;

pub use status::{NOT_SUPPORTED, Status};

/// The interface version that `RMI_VERSION` and `RSI_VERSION` answer: 1.0,
/// major in bits 30:16, minor in bits 15:0 (DEN0137 1.0, B4.3.23).
pub const VERSION_1_0: u64 = 0x1_0000;

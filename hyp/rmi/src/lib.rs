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
//! Every call is a row of a table, written once: its identifier, its arguments
//! and its outputs. From it come an enum with `decode` and `encode`, by which a
//! call is made and read, and the names that a trace shows.
//!
//! | module | holds |
//! |---|---|
//! | [`table`] | how a table of calls is written |
//! | [`command`] | the commands of RMI |
//! | [`rsi`] | the calls of RSI |
//! | [`psci`] | the calls of PSCI 1.1, its return codes and states |
//! | [`smccc`] | the calls of the convention, and for random numbers |
//! | [`vendor`] | Undercroft's own calls, 0xC600_0000 and up |
//! | [`call`] | a call of any kind: read at EL2's door, shown to people |
//! | [`fid`] | function identifiers by name |
//! | [`end`] | the last line of the log, and the token in it |
//! | [`status`] | return codes, packed and unpacked |
//! | [`feature`] | feature register 0 and the vendor feature register |
//! | [`params`] | what `REALM_CREATE` and `REC_CREATE` read |
//! | [`run`] | the page that `REC_ENTER` reads and writes |
//! | [`registers`] | the page of `REC_READ` and `REC_WRITE` |
//! | [`rtt`] | descriptors, states and RIPAS values of the RTT commands |
//! | [`text`] | which characters the log takes |
#![no_std]
#![forbid(unsafe_code)]

pub mod call;
pub mod command;
pub mod end;
pub mod feature;
pub mod fid;
pub mod params;
pub mod psci;
pub mod registers;
pub mod rsi;
pub mod rtt;
pub mod run;
pub mod smccc;
pub mod status;
pub mod table;
pub mod text;
pub mod vendor;

pub use command::Command;
pub use status::{NOT_SUPPORTED, Status};

/// The interface version that `RMI_VERSION` and `RSI_VERSION` answer: 1.0,
/// major in bits 30:16, minor in bits 15:0 (DEN0137 1.0, B4.3.23).
pub const VERSION_1_0: u64 = 0x1_0000;

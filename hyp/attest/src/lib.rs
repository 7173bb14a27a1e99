//! What a realm shows to others about itself: the CCA token (Realm Management Monitor
//! specification, DEN0137 1.0-rel0, A7), and the random numbers that its keys are
//! made of.
//!
//! | module | what it holds |
//! |---|---|
//! | [`random`] | a generator that entropy is given to once |
//! | [`claims`] | what a token says of the realm and of the platform, as CBOR |
//! | `cose` | the signed envelope around them |
//! | [`token`] | the keys of one boot, and tokens in steps |
//!
//! Nothing is allocated. A token is never held whole: it is written anew into each
//! part that is asked for, and is the same every time (RFC 6979: signing needs no
//! random numbers).
#![no_std]

pub mod claims;
mod cose;
pub mod random;
pub mod token;

pub use claims::{Algorithm, Realm};
pub use random::{Entropy, Generator};
pub use token::{Attester, Session};

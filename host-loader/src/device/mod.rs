//! Device models: what a guest's accesses outside its RAM reach.

pub mod bus;
pub mod clock;
pub mod flash;
pub mod owed;
pub mod pl011;
pub mod transport;

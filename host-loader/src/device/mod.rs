//! Device models: what a guest's accesses outside its RAM reach.

pub mod pl011;

//! A guest's turn: the loop around it, and what EL2 serves without the host.

mod confidential;
pub mod exits;
pub mod fast;
pub mod host_lrs;
pub mod interrupts;
pub mod psci;
pub mod record;
pub mod rsi;
pub mod run;
pub mod vcpu;

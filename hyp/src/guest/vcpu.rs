//! A vCPU that runs on this PE.

use crate::cpu::Cpu;
use crate::realm::Realm;
use crate::rec::Rec;

/// The vCPU and what it runs on; its registers ([`crate::rec::VcpuState`]) apart.
pub struct RunningVcpu<'a> {
    /// The PE.
    pub cpu: &'a mut Cpu,
    /// The guest.
    pub realm: &'a Realm,
    /// The vCPU.
    pub rec: &'a Rec,
}

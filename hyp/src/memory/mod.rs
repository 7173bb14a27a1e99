//! Memory: who owns each granule, EL2's own map, the host's stage 2.

pub mod granule;
pub mod guarded;
pub mod host;
pub mod instructions;
pub mod lent;
pub mod maintenance;
pub mod order;
pub mod phys;
pub mod pool;
pub mod region;
pub mod residue;
pub mod run;
pub mod stage1;

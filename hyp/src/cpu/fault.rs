//! What the CPU says of a fault that a lower level met.

use arm64::regs::{FAR_EL2, HPFAR_EL2};
use arm64::syndrome::Syndrome;

/// The IPA of a stage-2 fault that HPFAR_EL2 holds (not a permission fault).
pub fn faulting_ipa(esr: Syndrome) -> u64 {
    esr.ipa(HPFAR_EL2.get(), FAR_EL2.get())
}

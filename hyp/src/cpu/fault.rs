//! What the CPU says of a fault that a lower level met.

use arm64::regs::{FAR_EL2, HPFAR_EL2};
use arm64::syndrome::Syndrome;

/// The IPA of a stage-2 fault, as HPFAR_EL2 holds it; 0 for a fault that it is not written
/// for: it may hold another guest's.
pub fn faulting_ipa(esr: Syndrome) -> u64 {
    if esr.has_hpfar() {
        esr.ipa(HPFAR_EL2.get(), FAR_EL2.get())
    } else {
        0
    }
}

//! When a vCPU's wait ends by itself.

use arm64::syndrome::{Class, Syndrome};
use rmi::run::RecExit;

/// ISS of WF*, TI\[1\]: it is WFIT or WFET. Its register has no name here: of a
/// confidential guest the host is told the time alone, in the record's first.
const TIMED: u64 = 1 << 1;

/// When a waiting vCPU's timers fire next, or its WFIT ends, in ticks of the physical
/// counter, which is the virtual one too.
#[inline]
pub fn ends_at(exit: &RecExit) -> Option<u64> {
    const NEVER: u64 = u64::MAX;
    // CNTx_CTL: 0 enable, 1 mask.
    let fires = |ctl: u64, cval: u64| if ctl & 3 == 1 { cval } else { NEVER };
    let esr = Syndrome(exit.esr);
    let timed = esr.class() == Class::WFX && esr.0 & TIMED != 0;
    let ends = fires(exit.cntv_ctl, exit.cntv_cval)
        .min(fires(exit.cntp_ctl, exit.cntp_cval))
        .min(if timed { exit.gprs[0] } else { NEVER });
    (ends != NEVER).then_some(ends)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    /// WF*, with what its ISS says.
    const WFX: u64 = 1 << 26 | 1 << 25;

    #[test]
    fn a_wait_ends_by_the_first_of_its_timers_and_its_own_time() {
        let (wfi, wfit) = (WFX, WFX | 0b10);
        for (esr, cntv_ctl, cntp_ctl, ends) in [
            (wfi, 0, 0, None),
            (wfi, 1, 0, Some(300)),
            (wfi, 3, 1, Some(200)),
            (wfit, 0, 0, Some(100)),
            (wfit, 1, 1, Some(100)),
            // RV, and RN: a plain guest's is told whole.
            (wfit | 7 << 5 | 1 << 2, 0, 0, Some(100)),
            // HVC: CPU_SUSPEND has no time of its own.
            (0x16 << 26 | 0b110, 1, 0, Some(300)),
        ] {
            let mut exit = RecExit::new_zeroed();
            (exit.esr, exit.gprs[0]) = (esr, 100);
            (exit.cntp_ctl, exit.cntp_cval) = (cntp_ctl, 200);
            (exit.cntv_ctl, exit.cntv_cval) = (cntv_ctl, 300);
            assert_eq!(ends_at(&exit), ends, "{esr:#x} {cntv_ctl} {cntp_ctl}");
        }
    }
}

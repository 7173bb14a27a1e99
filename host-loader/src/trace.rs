//! Exits, one line each, for who debugs a guest: `undercroft.trace=exits`.
//!
//! They are shown as the exit record has them, so of a guest that hides something
//! from its host nothing else is.

use crate::logger;
use crate::platform::boot_argument;
use arm64::syndrome::{Class, Syndrome};
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use log::Level;
use rmi::call::Made;
use rmi::run::{ExitReason, RecExit};

static EXITS: AtomicBool = AtomicBool::new(false);

/// Takes what is to be traced from `undercroft.trace=` of `bootargs`; calls are
/// EL2's to trace.
pub fn set(bootargs: &str) {
    let kinds = boot_argument(bootargs, "undercroft.trace").unwrap_or_default();
    for kind in kinds.split(',').filter(|kind| !kind.is_empty()) {
        match kind {
            "exits" => EXITS.store(true, Ordering::Relaxed),
            "calls" => {}
            _ => log::warn!("undercroft.trace={kind}: expected calls or exits; it is ignored"),
        }
    }
}

/// Shows an exit of a vCPU, if exits are traced.
#[inline]
pub fn exit(guest: &str, vcpu: usize, exit: &RecExit) {
    if EXITS.load(Ordering::Relaxed) {
        let what = What(exit);
        logger::raw(
            Level::Trace as u64,
            format_args!("exit {guest}/{vcpu}: {what}"),
        );
    }
}

/// What an exit record says.
struct What<'a>(&'a RecExit);

impl fmt::Display for What<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exit = self.0;
        match ExitReason::from_raw(exit.exit_reason) {
            Some(ExitReason::Sync) => {
                let esr = Syndrome(exit.esr);
                write!(f, "{esr}")?;
                let data = esr.class() == Class::DATA_ABORT_LOWER;
                if data || esr.class() == Class::INST_ABORT_LOWER {
                    write!(f, " ipa={:#x}", esr.ipa(exit.hpfar, exit.far))?;
                }
                if data && esr.is_emulatable() && esr.is_write() {
                    write!(f, " value={:#x}", esr.cut(exit.gprs[0]))?;
                }
                Ok(())
            }
            Some(ExitReason::Irq) => f.write_str("interrupt"),
            Some(ExitReason::Fiq) => f.write_str("fast interrupt"),
            Some(ExitReason::SError) => f.write_str("SError"),
            Some(ExitReason::Psci) => {
                let call = Made {
                    function: exit.gprs[0],
                    arguments: &exit.gprs[1..4],
                };
                write!(f, "{call}")
            }
            Some(ExitReason::RipasChange) => write!(
                f,
                "RIPAS change {:#x} to {:#x}: {}",
                exit.ripas_base, exit.ripas_top, exit.ripas_value
            ),
            Some(ExitReason::HostCall) => write!(f, "host call {:#x}", exit.imm),
            None => write!(f, "reason {}", exit.exit_reason),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;
    use zerocopy::FromZeros;

    #[test]
    fn an_exit_shows_what_its_record_has() {
        let mut exit = RecExit::new_zeroed();
        exit.exit_reason = ExitReason::Psci as u64;
        exit.gprs[0] = rmi::fid::PSCI_CPU_ON.into();
        exit.gprs[1] = 1;
        assert_eq!(What(&exit).to_string(), "PSCI_CPU_ON(0x1, 0x0, 0x0)");

        // A word written to the UART's first register by the guest's w0.
        exit.exit_reason = ExitReason::Sync as u64;
        exit.esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 1 << 6 | 7;
        exit.hpfar = (0x900_0000 >> 12) << 4;
        exit.gprs[0] = 0x1_0000_0041;
        let text = What(&exit).to_string();
        assert!(
            text.ends_with("write, 4 bytes ipa=0x9000000 value=0x41"),
            "{text}"
        );

        exit.exit_reason = ExitReason::Irq as u64;
        assert_eq!(What(&exit).to_string(), "interrupt");
        exit.exit_reason = 77;
        assert_eq!(What(&exit).to_string(), "reason 77");
    }
}

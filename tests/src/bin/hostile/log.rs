//! The log under a host that wants it to stop EL2: it has the UART turned off
//! under EL2's feet, floods it, and makes EL2 log by its own faults.
//!
//! `bound=N` of the command line: no call may take longer than N ticks of the
//! counter. Only where the counter counts instructions is that a fair question.

use arm64::regs::CNTPCT_EL0;
use rmi::fid;
use rmi::vendor::Vendor;
use tests::bare::asm::{self, Conduit};
use tests::bare::console::Console;
use tests::bare::{exception, machine, pl011};
use tests::suite::Suite;

use crate::calls::{self, INPUT, SUCCESS, ask};

/// Lines of a flood: more than EL2's ring holds.
const FLOOD: u64 = 400;

/// Where QEMU's virt machine has nothing.
const HOLE: u64 = 0x0b00_0000;

/// UARTCR.
const CR: u64 = 0x30;

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let own = crate::devices::log_uart().is_some();
    let [status, count, ..] = ask(Vendor::LogInput);
    if own {
        suite.check(
            "log/input",
            (status, count) == (SUCCESS, 0),
            format_args!("{status:#x} {count}"),
        );
    } else {
        suite.equal("log/input-of-the-host", status, INPUT);
    }
    suite.equal("log/flood", flood(), SUCCESS);
    // SAFETY: The console is this program's, and it prints nothing meanwhile.
    let (kept, statuses) = unsafe {
        pl011::flush(machine.uart);
        let kept = asm::read32(machine.uart + CR);
        // Off, then on with nothing to send by, then looped back to itself.
        let statuses = [0, 0x201, 0x381].map(|control| {
            asm::write32(machine.uart + CR, control);
            let status = flood();
            let fault = exception::probe(|| u64::from(asm::read32(HOLE)));
            (status, fault.is_err())
        });
        asm::write32(machine.uart + CR, kept);
        (kept, statuses)
    };
    let right = statuses.iter().all(|&seen| seen == (SUCCESS, true));
    suite.check(
        "log/uart-turned-off",
        right,
        format_args!("{statuses:x?}, CR was {kept:#x}"),
    );
    if let Some(bound) = machine.argument("bound").and_then(|n| n.parse().ok()) {
        bounded(suite, bound);
    }
    calls::still_there(suite, "log/rmi-version");
}

/// More lines than the ring holds: the first answer that is no success.
fn flood() -> u64 {
    (0..FLOOD)
        .map(|_| calls::log(3, "a line of which there will be too many to keep"))
        .find(|&status| status != SUCCESS)
        .unwrap_or(SUCCESS)
}

/// The longest of many calls that log, and of calls that have nothing to do with
/// the log, while it waits for its UART.
fn bounded(suite: &mut Suite<Console>, bound: u64) {
    let mut longest = 0;
    for n in 0..FLOOD {
        let begun = CNTPCT_EL0.get();
        if n % 2 == 0 {
            calls::log(3, "and one more");
        } else {
            asm::call(Conduit::Smc, [fid::RMI_VERSION, 0x1_0000, 0, 0, 0, 0, 0, 0]);
        }
        longest = longest.max(CNTPCT_EL0.get() - begun);
    }
    suite.check("log/bounded", longest <= bound, longest);
}

//! Calls, one line each with its result, for who debugs a host or a guest:
//! `undercroft.trace=calls`, or `undercroft.loglevel=trace` among all else.
//!
//! Of the host's calls all is shown, its own arguments and EL2's answers. Of a
//! guest's, what a host may know: a plain guest hides nothing from it.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use ::rmi::call::{Answered, HostCall, Made};
use ::rmi::psci::Psci;
use ::rmi::vendor;
use log::Level;

static CALLS: AtomicBool = AtomicBool::new(false);

/// Traces calls from now on, or not.
pub fn set_calls(on: bool) {
    CALLS.store(on, Ordering::Relaxed);
}

/// Whether calls are traced.
#[inline]
pub fn calls() -> bool {
    CALLS.load(Ordering::Relaxed)
}

/// What became of a call.
#[derive(Clone, Copy, Debug)]
pub enum Answer<'a> {
    /// X0 and on.
    Results(&'a [u64]),
    /// EL2 left the answer to the host.
    ToHost,
    /// There is none: the PE goes off, or the machine.
    Never,
}

/// Shows a call of the host's: X0 to X5.
pub fn of_host(x: &[u64], answer: Answer<'_>) {
    // A line about each line would have no end.
    if x[0] != vendor::LOG {
        show(format_args!("call"), x, answer);
    }
}

/// Shows a call of a plain guest's, which this VMID is of: X0 to X3.
pub fn of_guest(vmid: u16, vcpu: usize, x: &[u64], answer: Answer<'_>) {
    show(format_args!("call of vmid {vmid}/{vcpu}:"), x, answer);
}

/// Whether the host's call ends in silence, if it succeeds.
pub fn is_last(call: HostCall) -> bool {
    use Psci::{CpuOff, SystemOff, SystemReset};
    matches!(call, HostCall::Psci(CpuOff | SystemOff | SystemReset))
}

fn show(who: fmt::Arguments<'_>, x: &[u64], answer: Answer<'_>) {
    // What turns the machine off comes behind the log's last line.
    if super::CLOSED.load(Ordering::Relaxed) {
        return;
    }
    let function = x[0];
    let made = Made {
        function,
        arguments: &x[1..],
    };
    let line = |text| super::line("hyp ", Level::Trace, text);
    match answer {
        Answer::ToHost => line(format_args!("{who} {made}: the host answers")),
        Answer::Never => line(format_args!("{who} {made}")),
        Answer::Results(results) => {
            let answered = Answered { function, results };
            line(format_args!("{who} {made} = {answered}"));
        }
    }
}

//! Calls, one line each, for who debugs a host or a guest: `undercroft.trace=calls`.
//!
//! Of the host's calls all is shown, its own arguments and EL2's answers. Of a
//! guest's, what a host may know: a plain guest hides nothing from it.

use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use ::rmi::call::{self, Made};
use ::rmi::{fid, vendor};
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
pub fn is_last(function: u64) -> bool {
    let last = [
        fid::PSCI_CPU_OFF,
        fid::PSCI_SYSTEM_OFF,
        fid::PSCI_SYSTEM_RESET,
    ];
    last.map(u64::from).contains(&function)
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
            let shown = &results[..(1 + call::of(function).results).min(results.len())];
            line(format_args!("{who} {made} = {}", List(shown)));
        }
    }
}

/// Numbers on one line.
struct List<'a>(&'a [u64]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, number) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{number:#x}")?;
        }
        Ok(())
    }
}

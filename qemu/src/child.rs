//! Children that do not outlive the runner.

use std::process::Command;

/// Lets the program that `command` starts get a SIGTERM when the thread that
/// starts it dies, whatever way.
#[cfg(target_os = "linux")]
pub fn end_with_us(command: &mut Command) {
    use std::io;
    use std::os::unix::process::CommandExt;

    use rustix::process::{Signal, set_parent_process_death_signal};

    let hook = || set_parent_process_death_signal(Some(Signal::TERM)).map_err(io::Error::from);
    // SAFETY: between fork and exec the hook makes one system call; it takes
    // no lock and allocates nothing.
    unsafe { command.pre_exec(hook) };
}

/// Elsewhere it is up to those who keep the child to end it.
#[cfg(not(target_os = "linux"))]
pub fn end_with_us(_command: &mut Command) {}

//! Children that do not outlive the runner.

use std::process::{Child, Command};
use std::time::Duration;

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

/// Waits for the end of `child` and says how long CPUs have worked for it, all its
/// threads together; the child's status can still be asked for. `None` for one that
/// was waited for before.
#[cfg(target_os = "linux")]
pub fn cpu_time(child: &Child) -> Option<Duration> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

    let pid = Pid::from_child(child);
    // Whoever has ended keeps its entry in /proc until it is waited for.
    waitid(
        WaitId::Pid(pid),
        WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
    )
    .ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    ticks(&stat).map(|ticks| {
        let second = rustix::param::clock_ticks_per_second();
        Duration::from_secs_f64(ticks as f64 / second as f64)
    })
}

/// Elsewhere nobody is asked.
#[cfg(not(target_os = "linux"))]
pub fn cpu_time(_child: &Child) -> Option<Duration> {
    None
}

/// `utime` and `stime` of a line of /proc/PID/stat (proc_pid_stat(5)): fields 14 and
/// 15, counted behind the name, which may hold spaces and parentheses.
#[cfg(target_os = "linux")]
fn ticks(stat: &str) -> Option<u64> {
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_ascii_whitespace().skip(11);
    let [user, system] = [fields.next()?, fields.next()?].map(str::parse::<u64>);
    user.ok()?.checked_add(system.ok()?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_is_no_field() {
        let stat = "7 (a) b (c) Z 1 2 3 4 5 6 7 8 9 10 120 34 0 0 20";
        assert_eq!(ticks(stat), Some(154));
        assert_eq!(ticks("7 (a) Z 1"), None);
    }

    #[test]
    fn a_child_says_what_it_took_and_still_its_status() {
        let mut child = Command::new("sh")
            .args([
                "-c",
                "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; exit 3",
            ])
            .spawn()
            .expect("a shell");
        let took = cpu_time(&child).expect("it has ended");
        assert!(
            took > Duration::ZERO && took < Duration::from_secs(60),
            "{took:?}"
        );
        assert_eq!(child.wait().expect("a status").code(), Some(3));
        assert_eq!(cpu_time(&child), None, "its entry is gone");
    }
}

//! Which signals end the runner, and are watched so that it ends the machine first.

use std::fs;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Those of them that whoever started us has not told us to ignore, as `nohup` does and
/// a shell for what it starts in the background.
pub fn ending() -> Vec<i32> {
    // Without /proc nothing is known to be ignored.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = ignored(&status);
    let all = [SIGINT, SIGTERM, SIGHUP].into_iter();
    all.filter(|signal| ignored >> (signal - 1) & 1 == 0)
        .collect()
}

/// The signals that a process ignores, a bit each from 1 up (proc(5), SigIgn).
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_its_line() {
        let status = "Name:\tqemu\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        assert_eq!(ignored(status), 1 << 12 | 1 << (SIGHUP - 1));
        assert_eq!(ignored("SigIgn:\tnone\n"), 0);
        assert_eq!(ignored(""), 0);
    }
}

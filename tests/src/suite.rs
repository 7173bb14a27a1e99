//! Checks: each prints one line `ok NAME` or `FAIL NAME: what was seen`, and a
//! suite ends with `N passed, N failed`.

use core::fmt::{self, Write};

/// Counts what passed and what failed, and prints it as it happens.
#[derive(Debug)]
pub struct Suite<W> {
    to: W,
    passed: u32,
    failed: u32,
}

impl<W: Write> Suite<W> {
    /// A suite that prints to `to`.
    pub fn new(to: W) -> Self {
        Self {
            to,
            passed: 0,
            failed: 0,
        }
    }

    /// Says whether `right` holds; `seen` is printed when it does not.
    pub fn check(&mut self, name: &str, right: bool, seen: impl fmt::Display) -> bool {
        // A console cannot refuse.
        let _ = if right {
            self.passed += 1;
            writeln!(self.to, "ok {name}")
        } else {
            self.failed += 1;
            writeln!(self.to, "FAIL {name}: {seen}")
        };
        right
    }

    /// The same of one of many alike: what holds is neither printed nor counted.
    pub fn check_quietly(&mut self, name: &str, right: bool, seen: impl fmt::Display) {
        if !right {
            self.check(name, right, seen);
        }
    }

    /// Says whether a number is the expected one; both are printed when not.
    pub fn equal(&mut self, name: &str, seen: u64, expected: u64) -> bool {
        self.check(
            name,
            seen == expected,
            format_args!("{seen:#x}, expected {expected:#x}"),
        )
    }

    /// What passed and what failed so far.
    pub fn counts(&self) -> (u32, u32) {
        (self.passed, self.failed)
    }

    /// Prints the sum; true when nothing failed and something passed.
    pub fn finish(mut self) -> bool {
        let _ = writeln!(self.to, "{} passed, {} failed", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_sum() {
        let mut text = String::new();
        let mut suite = Suite::new(&mut text);
        assert!(suite.equal("same", 1, 1));
        assert!(!suite.equal("other", 1, 2));
        assert!(!suite.check("said", false, "no"));
        assert_eq!(suite.counts(), (1, 2));
        assert!(!suite.finish());
        assert_eq!(
            text,
            "ok same\nFAIL other: 0x1, expected 0x2\nFAIL said: no\n1 passed, 2 failed\n"
        );
    }

    #[test]
    fn nothing_checked_is_no_success() {
        assert!(!Suite::new(String::new()).finish());
    }
}

//! What is taken from elsewhere: by `deny.toml`, which licences and which
//! sources, and nothing twice without a word.

use anyhow::{Result, ensure};

use super::super::call::{Call, LIMIT};
use super::super::{Context, Counts, Outcome};

/// What needs no network but for the packages themselves. Advisories do: they are
/// `cargo deny check advisories`, which the CI runs.
const CHECKS: [&str; 3] = ["bans", "licenses", "sources"];

/// Asks cargo-deny, where it is installed.
///
/// # Errors
/// With its words when it objects.
pub fn check(context: &Context) -> Result<Outcome> {
    let call = |words: &[&str]| {
        Call::of(context.workspace.cargo(), LIMIT)
            .args(["deny"])
            .args(words)
            .env("CARGO_TERM_COLOR", "never")
            .call()
    };
    if call(&["--version"])?.code != Some(0) {
        return Ok(Outcome::skipped(
            "no cargo-deny: cargo install cargo-deny --locked",
        ));
    }
    let called = call(&[&["--color", "never", "check"][..], &CHECKS].concat())?;
    ensure!(called.code == Some(0), "{}{}", called.stdout, called.stderr);
    Ok(Counts::ONE.into())
}

//! `cargo qemu`: builds Undercroft's image, fetches guests, boots them on
//! QEMU, tests and measures.
//!
//! | module | idea |
//! |---|---|
//! | [`command`] | the subcommands |
//! | [`workspace`], [`setup`] | what this machine has, and getting what it lacks |
//! | [`build`], [`image`] | the image file from two programs |
//! | [`guests`], [`config`], [`bundle`], [`newc`] | guests, and how they are packed |
//! | [`machine`] | a machine as a command |
//! | [`run`] | a machine that runs, to its end |
//! | [`mod@bench`] | what a boot costs |
//! | [`suite`] | every test of the project |
//! | [`child`], [`ui`], [`size`] | small things that the others share |

mod bench;
mod build;
mod bundle;
mod child;
mod command;
mod config;
mod guests;
mod image;
mod machine;
mod newc;
mod run;
mod setup;
mod size;
mod suite;
mod ui;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::run::ending::FAILED;

/// Builds Undercroft, boots guests on it, tests it.
///
/// `cargo qemu run` is the place to start: it builds everything, gets QEMU and
/// a Debian kernel, boots it as a guest and leaves you at its shell.
#[derive(Parser)]
#[command(
    name = "cargo qemu",
    bin_name = "cargo qemu",
    version,
    max_term_width = 80
)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Boot a guest and stay at its shell, or run one command in it
    #[command(after_help = RUN_HELP)]
    Run(Box<run::options::Run>),
    /// Write the files that any arm64 boot loader needs
    Image(Box<command::image::Options>),
    /// List, fetch or build guests
    Guests(command::guests::Options),
    /// Run every test of the project
    Test(command::test::Options),
    /// Measure
    Bench(command::bench::Options),
}

/// What the options alone do not say.
const RUN_HELP: &str = "\
At a terminal the guest's console is yours; Ctrl-a x leaves, Ctrl-a h shows
more. Without one, and without --exec, the guest's shell reads standard input
as its script; a guest without our shell, such as u-boot, has standard input
and output as its console.

The guest's output is on standard output, Undercroft's log on standard error.
Exit status: CMD's own, or the machine's; 124 when the time was over, 125 when
Undercroft, QEMU or the guest's kernel failed.";

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // A mistake of ours: where it happened is all that helps.
        let place = panic
            .location()
            .map_or_else(String::new, |place| format!(" at {place}"));
        let said = panic.payload_as_str().unwrap_or("no reason given");
        eprintln!("error: cargo qemu itself failed{place}: {said}; please report this");
    }));
    let done = match Cli::parse().command {
        Action::Run(options) => command::run::run(&options),
        Action::Image(options) => command::image::image(&options),
        Action::Guests(options) => command::guests::guests(&options),
        Action::Test(options) => command::test::test(&options),
        Action::Bench(options) => command::bench::bench(&options),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

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
//! | [`matrix`] | every configuration, and which are booted |
//! | [`run`] | a machine that runs, to its end |
//! | [`mod@bench`] | what a boot costs |
//! | [`suite`] | every test of the project |
//! | [`child`], [`scratch`], [`ui`], [`size`] | small things that the others share |

// Everything that is said goes through `ui`.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod audit;
mod bench;
mod build;
mod bundle;
mod child;
mod command;
mod config;
mod guests;
mod image;
mod machine;
mod matrix;
mod newc;
mod run;
mod scratch;
mod setup;
mod signals;
mod size;
mod suite;
mod ui;
mod workspace;

use std::process::ExitCode;

use clap::{Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::run::ending::{FAILED, NO_READER};
use crate::ui::Unwritten;

/// Builds Undercroft, boots guests on it, tests it.
///
/// `cargo qemu run` is the place to start: it builds everything, gets QEMU and
/// a Debian kernel, boots it as a guest and leaves you at its shell.
#[derive(Parser)]
#[command(
    name = "cargo qemu",
    bin_name = "cargo qemu",
    version,
    max_term_width = 80,
    after_help = HELP
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
    #[command(after_help = IMAGE_HELP)]
    Image(Box<command::image::Options>),
    /// List, fetch or build guests
    #[command(after_help = GUESTS_HELP)]
    Guests(command::guests::Options),
    /// Run every test of the project
    #[command(after_help = TEST_HELP)]
    Test(command::test::Options),
    /// Boot configurations of every granule, address size, CPU and mode
    #[command(after_help = MATRIX_HELP)]
    Matrix(command::matrix::Options),
    /// Measure what a boot and the table library cost
    #[command(after_help = BENCH_HELP)]
    Bench(command::bench::Options),
    /// Print what completes these commands in your shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(command::completions::Options),
}

/// The first things to try.
const HELP: &str = "\
Examples:
  cargo qemu run                      a shell in a Debian guest
  cargo qemu run --exec 'uname -a'    one command in it
  cargo qemu run --help               all that a guest and its machine can be
  cargo qemu guests                   the guests that can be had by name
  cargo qemu test --filter runner/    some of the tests";

/// What the options alone do not say.
const RUN_HELP: &str = "\
Examples:
  cargo qemu run                                a shell in a Debian guest
  cargo qemu run --exec 'nproc' --smp 4         one command on four CPUs
  cargo qemu run < script.sh                    a script in the guest's shell
  cargo qemu run --guest debian13-16k --granule 16k
  cargo qemu run --kernel Image --initrd initrd.cpio --append console=ttyAMA0
  cargo qemu run --guests guests.toml           several guests at once
  cargo qemu run --dry-run -- -d int            arguments of QEMU behind --
  cargo qemu run --machine fvp --dry-run        on Arm's model

At a terminal the guest's console is yours; Ctrl-a x leaves, Ctrl-a h shows
more. Without one, and without --exec, the guest's shell reads standard input
as its script; a guest without our shell, such as u-boot, has standard input
and output as its console.

The guest's output is on standard output, Undercroft's log on standard error.

Exit status: CMD's own. 124 when the time was over. 125 when it is not CMD
that failed: an option or a file is wrong, a guest cannot start, or it ended
before CMD did; 128 and a signal's number when that ended the run.";

const IMAGE_HELP: &str = "\
Examples:
  cargo qemu image -o boot                      Undercroft and a Debian guest
  cargo qemu image -o boot --guests guests.toml

boot/README.txt then says how U-Boot and QEMU start it.";

const GUESTS_HELP: &str = "\
Examples:
  cargo qemu guests                             what there is
  cargo qemu guests --json                      for a program to read
  cargo qemu guests fetch debian12 u-boot
  cargo qemu guests fetch                       all, before a flight
  cargo qemu guests build hello
  cargo qemu guests build tiny-4k-va52-pa52     from Debian's source of Linux

A tiny kernel takes minutes of all CPUs, 2.5 GB of disk and a compiler, which
is installed. So it is built when it is named, and then kept.";

const BENCH_HELP: &str = "\
Examples:
  cargo qemu bench boot                         instructions of a boot
  cargo qemu bench boot --guest debian12 --seeds 10
  cargo qemu bench pgtable --json               for a program to read

A gate that is missed is a failure: exit status 125.";

const TEST_HELP: &str = "\
Examples:
  cargo qemu test --list                        the cases
  cargo qemu test --filter boots/debian13       those with this in their name
  cargo qemu test --filter check/ --filter crate/
  cargo qemu test --tier full --json            all, for a program to read

Ctrl-C prints the sums so far.";

const MATRIX_HELP: &str = "\
Examples:
  cargo qemu matrix                             all pairs of values
  cargo qemu matrix --filter hw=lpa2,hyp=16k    those with these values
  cargo qemu matrix --tier full --shard 2/8 --report DIR
  cargo qemu matrix --rerun-failed DIR          what failed there
  cargo qemu matrix --list --json               for a program to read
  cargo qemu matrix --explain NAME              its axes and its geometry

Configurations with a tiny kernel are skipped where it is not built:
cargo qemu guests build NAME.";

const COMPLETIONS_HELP: &str = "\
Examples:
  cargo qemu completions bash >> ~/.bashrc
  cargo qemu completions zsh > ~/.zfunc/_cargo-qemu   a folder of your fpath
  cargo qemu completions fish > ~/.config/fish/conf.d/cargo-qemu.fish";

/// All commands and options.
fn every_command() -> Command {
    telling_negative_numbers(Cli::command())
}

/// Lets a number below zero be the wrong value of an option, which tells what it takes,
/// and not an unknown option, for which clap recommends `--`: what is there goes to QEMU.
fn telling_negative_numbers(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let is_option = arg.get_action().takes_values() && !arg.is_positional();
        if is_option {
            arg.allow_negative_numbers(true)
        } else {
            arg
        }
    });
    command.mut_subcommands(telling_negative_numbers)
}

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // A mistake of ours: where it happened is all that helps.
        let place = panic
            .location()
            .map_or_else(String::new, |place| format!(" at {place}"));
        let said = panic.payload_as_str().unwrap_or("no reason given");
        ui::error(format_args!(
            "cargo qemu itself failed{place}: {said}; please report this"
        ));
    }));
    let mut cli = every_command();
    // Asking git for the commit takes a moment that nothing else needs.
    if std::env::args_os().any(|word| word == "--version" || word == "-V") {
        cli = cli.version(command::version());
    }
    let action = match cli
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli.command,
        Err(error) => {
            // Help and the version go to standard output, mistakes elsewhere;
            // either may have no reader.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    let done = match action {
        Action::Run(options) => command::run::run(&options),
        Action::Image(options) => command::image::image(&options),
        Action::Guests(options) => command::guests::guests(&options),
        Action::Test(options) => command::test::test(&options),
        Action::Matrix(options) => command::matrix::matrix(&options),
        Action::Bench(options) => command::bench::bench(&options),
        Action::Completions(options) => {
            command::completions::completions(&options, every_command())
        }
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error)
            if error
                .downcast_ref::<Unwritten>()
                .is_some_and(Unwritten::reader_gone) =>
        {
            ExitCode::from(NO_READER)
        }
        Err(error) => {
            ui::error(format_args!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a help that can be typed: up to what explains them, and what
    /// is the shell's.
    fn examples(help: &str) -> Vec<String> {
        let lines = help
            .lines()
            .filter_map(|line| line.strip_prefix("  cargo "));
        lines
            .map(|line| {
                let end = line.find("  ").unwrap_or(line.len());
                let typed = line[..end].split(['<', '>']).next().unwrap_or_default();
                format!("cargo {}", typed.trim())
            })
            .collect()
    }

    #[test]
    fn a_number_below_zero_is_a_wrong_value_of_its_option() {
        for (words, says) in [
            ("run --smp -1", "expected 1 to 64"),
            ("run --timeout -1", "such as 60"),
            ("run --memory -1", "such as \"512M\""),
            ("run --ram -2", "such as \"512M\""),
            ("run --gdb -1", "a TCP port"),
            ("test --jobs -1", "1..=64"),
            ("matrix --patience -1", "1..="),
            ("bench boot --seeds -1", "1..=100"),
        ] {
            let read = every_command().try_get_matches_from(
                [&["cargo qemu"], &words.split(' ').collect::<Vec<_>>()[..]].concat(),
            );
            let said = read.expect_err(words).to_string();
            let option = words
                .split(' ')
                .find(|word| word.starts_with("--"))
                .expect("an option");
            assert!(
                said.contains(option) && said.contains(says) && !said.contains("-- -"),
                "{words}: {said}"
            );
        }
    }

    #[test]
    fn every_command_has_examples_that_can_be_typed() {
        let mut cli = Cli::command();
        cli.build();
        let helps = std::iter::once(cli.clone())
            .chain(cli.get_subcommands().cloned())
            .filter(|command| command.get_name() != "help");
        for mut command in helps {
            let help = command.render_long_help().to_string();
            let examples = examples(&help);
            assert!(examples.len() > 1, "{} has no examples", command.get_name());
            for example in examples {
                // Cargo's alias is the first two words.
                let words = shlex::split(&example).expect("a shell can read it");
                let read = Cli::command().try_get_matches_from(&words[1..]);
                let shown = |e: &clap::Error| !e.use_stderr();
                assert!(
                    read.as_ref().map_or_else(shown, |_| true),
                    "{example}: {read:?}"
                );
            }
        }
    }
}

//! `cargo qemu completions`: what completes these commands in a shell.
//!
//! They are a subcommand of cargo's, whose own completion stays as it is: zsh's
//! asks for a function of our name, fish's is added to, and bash's is called
//! for everything that is not ours.

use anyhow::Result;
use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};

use crate::ui;

/// The name that zsh's completion of cargo knows a program of this kind by.
const NAME: &str = "cargo-qemu";

/// The name in bash, whose functions are named after it.
const NAME_IN_BASH: &str = "cargo_qemu";

/// Bash completes by the first word alone, which is `cargo`.
const BASH: &str = include_str!("completions/cargo.bash");

/// Which shell.
#[derive(Args, Debug)]
pub struct Options {
    /// The shell
    #[arg(value_enum)]
    shell: Kind,
}

/// A shell whose completion of cargo can be added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Bash, 4.4 or newer
    Bash,
    /// Z shell
    Zsh,
    /// Fish
    Fish,
}

/// Prints the completion of `cli`.
///
/// # Errors
/// When standard output has no reader.
pub fn completions(options: &Options, cli: Command) -> Result<u8> {
    ui::print(script(options.shell, cli).trim_end())?;
    Ok(0)
}

fn script(shell: Kind, cli: Command) -> String {
    let mut text = Vec::new();
    match shell {
        Kind::Bash => {
            let mut own = cli.name(NAME_IN_BASH);
            generate(Shell::Bash, &mut own, NAME_IN_BASH, &mut text);
            text.extend(BASH.as_bytes());
        }
        Kind::Zsh => generate(Shell::Zsh, &mut cli.name(NAME), NAME, &mut text),
        Kind::Fish => {
            let mut cargo =
                Command::new("cargo").subcommand(cli.name("qemu").bin_name("cargo qemu"));
            generate(Shell::Fish, &mut cargo, "cargo", &mut text);
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

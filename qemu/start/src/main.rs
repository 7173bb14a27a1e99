//! What the alias `cargo qemu` runs: builds the runner, package `qemu`, behind
//! one status line, and becomes it. It needs no other crate, so cargo has it
//! ready in a second, and a first build is neither silent for a minute nor a
//! hundred lines long.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use qemu_start::At;

/// The exit status that says that the runner failed, not what it ran.
const FAILED: u8 = 125;

/// The columns that every terminal has.
const COLUMNS: usize = 79;

/// The columns of the verb that a line begins with.
const VERB: usize = 12;

/// Shorter builds are not worth a line.
const NOTICEABLE: Duration = Duration::from_millis(1500);

/// Variables that may name a file from where the user is, and whether a bare name
/// is one; else it is looked for in `PATH`.
const PATHS: [(&str, bool); 3] = [
    ("UNDERCROFT_GUESTS", true),
    ("UNDERCROFT_FVP_FIRMWARE", true),
    ("UNDERCROFT_QEMU", false),
];

/// The file by which cargo's target directory is known.
const TAG: &str = "CACHEDIR.TAG";

fn main() -> ExitCode {
    match start() {
        Ok(never) => match never {},
        Err(why) => {
            // Without standard error there is nobody to tell.
            let _ = writeln!(io::stderr(), "error: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn start() -> Result<std::convert::Infallible, String> {
    let own = env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    // Cargo says where it found this package; that is the tree to build, even
    // when the programs came along from another.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
        .join("Cargo.toml");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--package", "qemu", "--manifest-path"])
        .arg(manifest);
    // The same for all that cargo builds from here on, wherever it is started.
    let target = own.ancestors().find(|dir| dir.join(TAG).is_file());
    let mut runner = Command::new(own.with_file_name("qemu"));
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
        runner.env("CARGO_TARGET_DIR", target);
    }
    for (name, bare) in PATHS {
        let value = env::var_os(name).map(PathBuf::from);
        let is_file = |path: &PathBuf| bare || path.components().count() > 1;
        let named = value.filter(|path| path.is_relative() && is_file(path));
        if let Some(absolute) = named.and_then(|path| std::path::absolute(path).ok()) {
            // What the runner starts may be elsewhere.
            runner.env(name, absolute);
        }
    }
    let mut status = Status::new(quiet(&arguments));
    let built = qemu_start::build(&mut command, io::stderr().is_terminal(), |at| {
        status.show(&at);
    });
    let built = built.map_err(|e| format!("cannot run cargo: {e}"))?;
    status.end(built.well);
    if !built.well {
        // As above.
        let _ = io::stderr().write_all(&built.said);
        return Err("cargo qemu does not build; cargo says above why".into());
    }
    let why = runner.args(arguments).exec();
    Err(format!("cannot run {}: {why}", shown(runner.get_program())))
}

fn shown(program: &std::ffi::OsStr) -> std::path::Display<'_> {
    Path::new(program).display()
}

/// Whether the runner is asked to be quiet: then so are we.
fn quiet(arguments: &[OsString]) -> bool {
    arguments
        .iter()
        .filter_map(|argument| argument.to_str())
        .take_while(|argument| *argument != "--")
        .any(|argument| argument == "--quiet" || argument == "-q")
}

/// The status line: redrawn on a terminal, written once elsewhere.
struct Status {
    quiet: bool,
    redrawn: bool,
    begun: Instant,
    drawn: bool,
}

impl Status {
    fn new(quiet: bool) -> Self {
        let clever = env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
        Self {
            quiet,
            redrawn: clever && io::stderr().is_terminal(),
            begun: Instant::now(),
            drawn: false,
        }
    }

    fn show(&mut self, at: &At) {
        let text = match at {
            // Nothing to build is nothing to say.
            At::Building { done, of, .. } if done == of => return,
            At::Building { done, of, what } => {
                let elapsed = self.begun.elapsed().as_secs();
                format!(
                    "{:>12} the runner {done}/{of} {elapsed}s: {what}",
                    "Building"
                )
            }
            At::Other(line) if line.starts_with("Finished") || line.starts_with("Fresh") => return,
            At::Other(line) => format!("{:>12} the runner: {line}", "Building"),
        };
        if self.quiet || (self.drawn && !self.redrawn) {
            return;
        }
        self.drawn = true;
        let text: String = text.chars().take(COLUMNS).collect();
        if self.redrawn {
            let (verb, text) = text.split_at(VERB.min(text.len()));
            // Not wrapped where the terminal is narrower: what was drawn on another
            // line would stay.
            self.write(&format!(
                "\r\u{1b}[K\u{1b}[?7l{}{text}\u{1b}[?7h",
                coloured(verb)
            ));
        } else {
            self.write(&format!("{:>12} the runner\n", "Building"));
        }
    }

    fn end(&self, well: bool) {
        if !self.drawn {
            return;
        }
        if self.redrawn {
            self.write("\r\u{1b}[K");
        }
        let elapsed = self.begun.elapsed();
        if well && elapsed >= NOTICEABLE {
            let all = elapsed.as_secs_f64();
            let took = if all < 100.0 {
                format!("{all:.1} s")
            } else {
                format!(
                    "{} min {} s",
                    elapsed.as_secs() / 60,
                    elapsed.as_secs() % 60
                )
            };
            self.write(&format!("{:>12} the runner in {took}\n", "Built"));
        }
    }

    fn write(&self, text: &str) {
        let mut to = io::stderr();
        // Without standard error there is nobody to tell.
        let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
    }
}

fn coloured(verb: &str) -> String {
    if env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty()) {
        verb.into()
    } else {
        format!("\u{1b}[1;36m{verb}\u{1b}[0m")
    }
}

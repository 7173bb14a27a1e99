//! What the runner says, at a terminal of 80 columns, in a pipe, and to programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::super::call::{Call, LIMIT};
use super::super::pty::{COLUMNS, Pty};
use super::super::{Case, Context, Counts};
use super::{LINUX, bare};

/// Two cases that take no time, for a test of tests.
const TWO: [&str; 4] = [
    "--filter",
    "runner/old-qemu",
    "--filter",
    "runner/wrong-cache",
];

/// What moves a terminal's cursor, or colours its letters.
const ESCAPE: char = '\u{1b}';

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = at_a_terminal();
    cases.extend(in_a_pipe());
    cases.extend(of_the_log());
    cases.extend(for_programs());
    cases
}

fn at_a_terminal() -> Vec<Case> {
    vec![
        Case::new("runner/terminal", |context| {
            let mut pty = Pty::start(at_terminal(context, &[])?, LIMIT)?;
            pty.until("leave with Ctrl-a x")?;
            let before = pty.until_now();
            ensure!(!before.contains("debian13:~#"), "the guest was first");
            // Our own init says it as well, right before its prompt.
            pty.until("Ctrl-a x leaves QEMU")?;
            pty.until("debian13:~# ")?;
            pty.type_in("echo $((6 * 7))\r")?;
            pty.until("42")?;
            pty.type_in("\u{1}x")?;
            let status = pty.finish()?;
            ensure!(status == Some(0), "left with {status:?}\n{}", pty.text());
            ensure!(!pty.text().contains("error"), "{}", pty.text());
            fits(&pty)
        })
        .boots(LINUX),
        Case::new("runner/terminal-power-off", |context| {
            let mut pty = Pty::start(at_terminal(context, &["--quiet"])?, LIMIT)?;
            pty.until("debian13:~# ")?;
            ensure!(!pty.text().contains("Booting"), "{}", pty.text());
            pty.type_in("poweroff\r")?;
            let status = pty.finish()?;
            ensure!(status == Some(0), "ended with {status:?}\n{}", pty.text());
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/status-line", |context| {
            let mut pty = Pty::start(test_of_two(context)?, LIMIT)?;
            let status = pty.finish()?;
            ensure!(status == Some(0), "{}", pty.text());
            let lines = pty.lines();
            let counted = |line: &&String| line.contains("Testing") && line.contains("/2 ");
            lines.iter().find(counted).context("no status line")?;
            ensure!(
                lines
                    .last()
                    .is_some_and(|line| line == "2 passed, 0 failed"),
                "something was left behind:\n{}",
                pty.text()
            );
            fits(&pty)
        }),
        Case::new("runner/dumb-terminal", |context| {
            let mut command = test_of_two(context)?;
            command.env("TERM", "dumb");
            let mut pty = Pty::start(command, LIMIT)?;
            ensure!(pty.finish()? == Some(0), "{}", pty.text());
            let text = String::from_utf8_lossy(&pty.shown).into_owned();
            ensure!(!text.contains(ESCAPE), "{text:?}");
            ensure!(!text.contains("Testing"), "{text}");
            Ok(())
        }),
        Case::new("runner/interrupted-test", |context| {
            // A QEMU that never ends: the second case is under way until Ctrl-C.
            let folder = tempfile::tempdir_in(&context.folder)?;
            let qemu = folder.path().join("qemu");
            let script = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo QEMU emulator \
                          version 10.0\nexec sleep 100000\n";
            super::program(&qemu, script)?;
            let mut command = Command::new(&context.runner);
            command
                .args(["test", "--jobs", "1", "--image"])
                .arg(&context.image()?.file)
                .args(["--filter", "runner/old-qemu", "--filter", "tests/hello"])
                .env("UNDERCROFT_QEMU", &qemu)
                .env("TERM", "dumb");
            let mut pty = Pty::start(command, LIMIT)?;
            pty.until("passed runner/old-qemu")?;
            pty.type_in("\u{3}")?;
            pty.until("interrupted: 1 of 2 cases have ended")?;
            pty.until("1 passed, 0 failed")?;
            ensure!(pty.finish()? == Some(130), "{}", pty.text());
            Ok(())
        }),
    ]
}

fn in_a_pipe() -> Vec<Case> {
    vec![
        Case::new("runner/first-line-alone", |context| {
            let runner = context.runner.display();
            for command in [
                "guests",
                "guests --json",
                "test --list",
                "run --help",
                "--help",
            ] {
                let line = format!("'{runner}' {command} | head -1");
                let called = Call::program("sh", LIMIT).args(["-c", &line]).call()?;
                let called = called.ended(0)?;
                ensure!(called.stderr.is_empty(), "{command}: {}", called.stderr);
                ensure!(called.stdout.lines().count() == 1, "{command}");
            }
            // A full disk is another thing: what is there is not all.
            let line = format!("'{runner}' guests >/dev/full");
            let called = Call::program("sh", LIMIT).args(["-c", &line]).call()?;
            called
                .ended(125)?
                .tells(&["error: cannot write standard output", "space"])?;
            let line = format!("{{ '{runner}' run --smp 0; echo $? >&3; }} 2>&1 | : 3>&1");
            let line = format!("exec 3>&1; {line}");
            let called = Call::program("sh", LIMIT).args(["-c", &line]).call()?;
            called.printed("125\n")?;
            Ok(())
        }),
        Case::new("runner/first-line-of-a-command", |context| {
            // `yes` has no end of its own: the run ends with its reader.
            let line = format!(
                "exec 3>&1; {{ '{}' run --bare --timeout 0 --exec yes; echo $? >&3; }} | head -1",
                context.runner.display()
            );
            let called = Call::program("sh", LIMIT).args(["-c", &line]).call()?;
            let called = called.ended(0)?.printed("y\n141\n")?.calmly()?;
            ensure!(!called.stderr.contains("error"), "{}", called.stderr);
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/command-onto-a-full-disk", |context| {
            let line = format!(
                "'{}' run --bare --timeout 0 --exec yes >/dev/full",
                context.runner.display()
            );
            let called = Call::program("sh", LIMIT).args(["-c", &line]).call()?;
            called
                .ended(125)?
                .tells(&["error: cannot write standard output", "space"])?;
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/log-without-a-reader", |context| {
            let line = format!(
                "exec 3>&1; {{ '{}' run --guest hello --image '{}'; echo $? >&3; }} 2>&1 | head -1",
                context.runner.display(),
                context.image()?.file.display()
            );
            let called = Call::program("sh", LIMIT).args(["-c", &line]).call()?;
            ensure!(
                called.stdout.contains("141") || called.stdout.contains('0'),
                "{called:?}"
            );
            called.ended(0)?.calmly()?;
            Ok(())
        }),
    ]
}

fn of_the_log() -> Vec<Case> {
    vec![
        Case::new("runner/log-levels", |context| {
            for (level, none) in [("error", &["INFO", "WARN"][..]), ("warn", &["INFO"])] {
                let called = Call::run(context)?
                    .args(["--quiet", "--log", level, "--guest", "hello"])
                    .call()?
                    .ended(0)?;
                for word in none {
                    ensure!(!called.stderr.contains(word), "{}", called.stderr);
                }
            }
            Ok(())
        }),
        Case::new("runner/quiet", |context| {
            let called = Call::run(context)?
                .args(["--quiet", "--guest", "hello"])
                .call()?
                .ended(0)?;
            // Lines of the log, and nothing else.
            let other = called.stderr.lines().find(|line| !line.starts_with('['));
            ensure!(other.is_none(), "{other:?}");
            Ok(())
        }),
        Case::new("runner/last-words-steer-no-terminal", |context| {
            let command = r"printf '\033[2J\007evil\033]0;x\007\n'; poweroff -f; sleep 100";
            let called = bare(context).args(["--exec", command]).call()?.ended(125)?;
            let called = called.tells(&["  | ", "evil"])?;
            let steers = |c: char| c.is_control() && c != '\n';
            ensure!(!called.stderr.contains(steers), "{:?}", called.stderr);
            Ok(())
        })
        .boots(LINUX),
        Case::new("runner/guests-in-all-forms", |context| {
            // What the runner or the host alone took, comes through both.
            let folder = tempfile::tempdir_in(&context.folder)?;
            let hello = crate::build::program(&context.workspace, "hello")?;
            let file = folder.path().join("guests.toml");
            for (settings, says) in [
                ("", "hello from EL1, 1 vcpus, 512 MiB"),
                ("memory = \"64MiB\"", "hello from EL1, 1 vcpus, 64 MiB"),
                ("memory = \"65536KiB\"", "hello from EL1, 1 vcpus, 64 MiB"),
                ("memory = \"67108864\"", "hello from EL1, 1 vcpus, 64 MiB"),
            ] {
                let guest = format!("[[guest]]\nname = \"a\"\nkernel = {hello:?}\n{settings}\n");
                fs::write(&file, guest)?;
                let called = Call::run(context)?
                    .args(["--guests"])
                    .args([&file])
                    .call()?;
                called.ended(0)?.shows(&[says])?;
            }
            // An ELF file says itself where it goes: the image reads the key, too.
            let guest =
                format!("[[guest]]\nname = \"a\"\nkernel = {hello:?}\nload = 0x4020_0000\n");
            fs::write(&file, guest)?;
            let called = Call::run(context)?
                .args(["--guests"])
                .args([&file])
                .call()?;
            called
                .ended(125)?
                .tells(&["guests.toml:4:8: ", "load is for raw binaries"])?;
            Ok(())
        }),
        Case::new("runner/several-guests", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let hello = crate::build::program(&context.workspace, "hello")?;
            let guest = |name: &str| {
                format!(
                    "[[guest]]\nname = {name:?}\nkernel = {hello:?}\nmemory = \"64M\"\nvcpus = 1\n"
                )
            };
            let file = folder.path().join("guests.toml");
            fs::write(&file, guest("one") + &guest("two"))?;
            Call::run(context)?
                .args(["--guests"])
                .args([&file])
                .call()?
                .ended(0)?
                .shows(&["hello"])?
                .tells(&["Console", "guest one has standard input and output"])?
                .tells(&["Console", "guest two", "the log", "`guest two: "])?
                .tells(&["host", "guest two: hello"])?;
            Ok(())
        }),
    ]
}

fn for_programs() -> Vec<Case> {
    vec![
        Case::new("runner/help", help),
        Case::new("runner/case-of-the-other-tier", |context| {
            for (name, says) in [
                ("proof/mutants-rmi", "of --tier full 1 does"),
                ("proof/none", "--list"),
            ] {
                Call::program(&context.runner, LIMIT)
                    .args(["test", "--filter", name])
                    .call()?
                    .ended(125)?
                    .tells(&[name, "--tier full", says])?;
            }
            Ok(())
        }),
        Case::new("runner/json-of-bench-boot", |context| {
            let called = Call::program(&context.runner, super::LIMIT * 3)
                .args(["bench", "boot", "--seeds", "1", "--console", "quiet"])
                .args(["--json", "--image"])
                .args([&context.image()?.file])
                .call()?;
            let rows = rows(&called.stdout)?;
            let [row] = rows.as_slice() else {
                bail!("{}", called.stdout);
            };
            ensure!(row["guest"] == "debian13", "{row}");
            ensure!(row["console"] == "quiet", "{row}");
            let number = |key: &str| row[key].as_f64().with_context(|| format!("{key}: {row}"));
            let ratio = number("undercroft")? / number("bare")?;
            ensure!((ratio - number("ratio")?).abs() < 1e-9, "{row}");
            let well = ratio <= number("gate")?;
            ensure!(row["passed"] == well, "{row}");
            called.ended(if well { 0 } else { 125 })?.calmly()?;
            Ok(())
        })
        .boots(LINUX),
        Case::of_cargo("runner/json-of-bench-pgtable", |context: &Context| {
            let called = Call::program(&context.runner, super::LIMIT * 3)
                .args(["bench", "pgtable", "--json"])
                .call()?
                .ended(0)?
                .calmly()?;
            let rows = rows(&called.stdout)?;
            let with = |key: &str| rows.iter().filter(|row| row[key].is_number()).count();
            let counted = crate::workspace::in_path("valgrind").is_some();
            ensure!((with("instructions") > 0) == counted, "{}", called.stdout);
            ensure!(with("nanoseconds") > 0, "{}", called.stdout);
            Ok(Counts::ONE)
        })
        .full(),
        Case::new("runner/json", |context| {
            let called = Call::program(&context.runner, LIMIT)
                .args(["guests", "--json"])
                .call()?
                .ended(0)?;
            let mut names = Vec::new();
            for guest in rows(&called.stdout)? {
                for key in ["name", "about", "origin"] {
                    ensure!(guest[key].is_string(), "{key} of {guest}");
                }
                for key in ["file", "version"] {
                    ensure!(guest[key].is_string() || guest[key].is_null(), "{guest}");
                }
                // What was fetched is there.
                let file = guest["file"].as_str().map(Path::new);
                ensure!(file.is_none_or(Path::is_file), "{guest}");
                names.push(guest["name"].as_str().context("a name")?.to_string());
            }
            ensure!(
                names.first().is_some_and(|name| name == "debian13"),
                "{names:?}"
            );
            for name in ["debian-backports-16k", "tiny-64k-va52-pa52"] {
                ensure!(names.contains(&name.into()), "{name} not in {names:?}");
            }
            Ok(())
        }),
        Case::new("runner/version", |context| {
            let git = Call::program("git", LIMIT)
                .args(["rev-parse", "--short=12", "HEAD"])
                .within(&context.workspace.root)
                .call();
            let called = Call::program(&context.runner, LIMIT)
                .args(["--version"])
                .call()?
                .ended(0)?
                .shows(&["cargo qemu", env!("CARGO_PKG_VERSION")])?;
            if let Ok(git) = git
                && git.code == Some(0)
            {
                called.shows(&[git.stdout.trim()])?;
            }
            Ok(())
        }),
        Case::new("runner/completions", |context| {
            let script = Call::program(&context.runner, LIMIT)
                .args(["completions", "bash"])
                .call()?
                .ended(0)?
                .stdout;
            let folder = tempfile::tempdir_in(&context.folder)?;
            let file = folder.path().join("completions");
            fs::write(&file, script)?;
            let ask = format!(
                "_cargo() {{ COMPREPLY=(cargo-own); }}; complete -F _cargo cargo\n. '{}'\n\
                 f=$(complete -p cargo | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
                 COMP_WORDS=(cargo qemu run --gran); COMP_CWORD=3\n\
                 $f cargo --gran run; echo \"${{COMPREPLY[@]}}\"\n\
                 COMP_WORDS=(cargo qemu b); COMP_CWORD=2\n\
                 $f cargo b qemu; echo \"${{COMPREPLY[@]}}\"\n\
                 COMP_WORDS=(cargo bu); COMP_CWORD=1\n\
                 $f cargo bu cargo; echo \"${{COMPREPLY[@]}}\"\n",
                file.display()
            );
            Call::program("bash", LIMIT)
                .args(["-c", &ask])
                .call()?
                .ended(0)?
                .printed("--granule\nbench\ncargo-own\n")?;
            for (shell, sign) in [
                ("zsh", "#compdef cargo-qemu"),
                ("fish", "complete -c cargo"),
            ] {
                Call::program(&context.runner, LIMIT)
                    .args(["completions", shell])
                    .call()?
                    .ended(0)?
                    .shows(&[sign, "granule"])?;
            }
            Ok(())
        }),
    ]
}

/// What is read by a person who looks for an option: groups, and examples.
fn help(context: &Context) -> Result<()> {
    let help = |words: &[&str]| -> Result<String> {
        let call = Call::program(&context.runner, LIMIT).args(words);
        let called = call
            .args(["--help"])
            .env("COLUMNS", "80")
            .call()?
            .ended(0)?;
        for line in called.stdout.lines() {
            let width = console::measure_text_width(line);
            ensure!(width <= usize::from(COLUMNS), "{words:?}: {line}");
        }
        Ok(called.stdout)
    };
    for command in [&["run"][..], &["image"]] {
        let text = help(command)?;
        let heads = text
            .lines()
            .filter(|line| !line.starts_with(' ') && line.ends_with(':'));
        let heads: Vec<_> = heads.collect();
        for head in [
            "What to boot:",
            "The guest and its machine:",
            "What is said:",
            "Examples:",
        ] {
            ensure!(
                heads.contains(&head),
                "{command:?} has no {head} but {heads:?}"
            );
        }
        // What is in no group is of every command, or what this one is about.
        let (_, rest) = text.split_once("\nOptions:\n").context("no options")?;
        let rest = rest.split("\n\nWhat").next().unwrap_or_default();
        let names = rest
            .split_whitespace()
            .filter(|word| word.starts_with("--"));
        let odd: Vec<_> = names
            .filter(|name| !["--help", "--output"].contains(name))
            .collect();
        ensure!(
            odd.is_empty(),
            "{command:?}: {odd:?} are in no group\n{rest}"
        );
    }
    for command in [
        &[][..],
        &["guests"],
        &["test"],
        &["bench"],
        &["completions"],
    ] {
        ensure!(
            help(command)?.contains("\nExamples:\n  cargo qemu "),
            "{command:?}"
        );
    }
    // Each bench can be read by a program.
    let benches = help(&["bench"])?;
    let (_, list) = benches.split_once("Commands:\n").context("no benches")?;
    let names = list.lines().take_while(|line| !line.is_empty());
    let names = names.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    for name in names.filter(|name| !name.is_empty() && *name != "help") {
        ensure!(help(&["bench", name])?.contains("--json"), "bench {name}");
    }
    Ok(())
}

/// The objects of an output that has one a line.
fn rows(text: &str) -> Result<Vec<serde_json::Value>> {
    let row = |line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
    text.lines().map(row).collect()
}

/// A shell in a guest, at a terminal.
fn at_terminal(context: &Context, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(&context.runner);
    command
        .args(["run", "--guest", "debian13", "--append", "quiet", "--image"])
        .arg(&context.image()?.file)
        .args(arguments)
        .env("TERM", "xterm");
    Ok(command)
}

fn test_of_two(context: &Context) -> Result<Command> {
    let mut command = Command::new(&context.runner);
    command
        .args(["test", "--image"])
        .arg(&context.image()?.file)
        .args(TWO)
        .env("TERM", "xterm");
    Ok(command)
}

/// Asks that nothing was wider than the terminal.
fn fits(pty: &Pty) -> Result<()> {
    for line in pty.lines() {
        ensure!(
            console::measure_text_width(&line) <= usize::from(COLUMNS),
            "wider than {COLUMNS} columns: {line}"
        );
    }
    Ok(())
}

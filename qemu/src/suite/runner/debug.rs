//! A debugger on a machine that the runner started, and what is traced of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use object::{Object, ObjectSection};
use rmi::fid;

use super::super::call::{Call, Called, LIMIT};
use super::super::pty::Pty;
use super::super::{Case, Context, Counts, Lane, Outcome};
use super::first::{maybe, without_apt};
use super::{LINUX, bare, program};
use crate::image::{appendix, flat, symbols};
use crate::run::gdb;
use crate::setup::package;

/// A function of every Linux that runs once, with the MMU on.
const OF_LINUX: &str = "start_kernel";

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        with_gdb("runner/gdb-in-hyp-and-host", in_hyp_and_host),
        with_gdb("runner/gdb-in-the-guest", in_the_guest).boots(LINUX),
        Case::new("runner/gdb-in-an-image-of-somebody-else", |context| {
            // Nothing is known of it but where it stands.
            let mut pty = debugged(context, |command| {
                command.arg("--image");
                command.arg(&context.image()?.file);
                Ok(())
            })?;
            let line = line(&mut pty)?;
            let words = shlex::split(&line).context("a shell cannot read it")?;
            let script = fs::read_to_string(words.last().context("a file")?)?;
            ensure!(!script.contains("add-symbol-file"), "{script}");
            ensure!(script.contains("target remote /"), "{script}");
            Ok(())
        }),
        Case::new("runner/gdb-comes-from-a-package", |context| {
            // A machine without any gdb is told where one is to be had.
            let folder = tempfile::tempdir_in(&context.folder)?;
            let programs = without_apt(context, folder.path())?;
            let call = || -> Result<Call> {
                let call = Call::run(context)?.args(["--guest", "hello", "--dry-run", "--gdb"]);
                Ok(call.env("PATH", &programs))
            };
            let line = format!("sudo apt-get install {}", gdb::PACKAGE);
            call()?
                .call()?
                .ended(0)?
                .tells(&[gdb::PACKAGE, " -x "])?
                .tells(&["not in PATH", &line])?;
            program(&programs.join(gdb::PACKAGE), "#!/bin/sh\n")?;
            let called = call()?.call()?.ended(0)?.tells(&[gdb::PACKAGE, " -x "])?;
            ensure!(!called.stderr.contains("apt-get"), "{}", called.stderr);
            Ok(())
        }),
        maybe(
            "runner/debug-information-stays-out-of-the-image",
            flat_image,
        ),
        Case::new("runner/trace", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let file = folder.path().join("a trace");
            let called = Call::run(context)?
                .args(["--guest", "hello", "--trace", "calls,exits", "--trace-file"])
                .args([&file])
                .call()?
                .ended(0)?
                .shows(&["hello"])?
                .tells(&["Traced", "lines into", "a trace"])?
                .calmly()?;
            for word in ["TRACE", "dropped"] {
                ensure!(!called.stderr.contains(word), "{}", called.stderr);
            }
            let text = fs::read_to_string(&file)?;
            for parts in [
                // Calls of the host's: RMI, PSCI and vendor, refused ones too.
                &["call RMI_REALM_CREATE(0x", ", 0x", ") = SUCCESS"][..],
                &["call VENDOR_MEMORY_RANGE(0x3) = ERROR_INPUT"],
                &["call RMI_REC_ENTER(0x", ") = SUCCESS"],
                &["call RMI_RTT_UNMAP_UNPROTECTED(0x", ") = SUCCESS, 0x"],
                &["call PSCI_AFFINITY_INFO(0x0, 0x0) = 0x0"],
                // A guest's, which the host answers.
                &["call of vmid ", "/0: PSCI_SYSTEM_OFF(): the host"],
                &["exit hello/0: PSCI_SYSTEM_OFF()"],
            ] {
                let found = |line: &str| parts.iter().all(|part| line.contains(part));
                ensure!(text.lines().any(found), "no {parts:?} in\n{text}");
            }
            // Its own lines are no calls worth a line each.
            ensure!(!text.contains("VENDOR_LOG("), "{text}");
            // What cannot be written is told before a machine starts.
            Call::run(context)?
                .args(["--guest", "hello", "--trace", "calls", "--trace-file"])
                .args([folder.path()])
                .call()?
                .ended(125)?
                .tells(&["error", "--trace-file"])?
                .printed("")?;
            Ok(())
        }),
        Case::new("runner/log-trace", |context| {
            // Each call with its result, among all else that the log has.
            Call::run(context)?
                .args(["--guest", "hello", "--log", "trace"])
                .call()?
                .ended(0)?
                .shows(&["hello"])?
                .tells(&["call RMI_REC_ENTER(0x", ") = SUCCESS"])?
                .tells(&["call of vmid ", "/0: PSCI_SYSTEM_OFF(): the host"])?;
            Ok(())
        }),
        Case::new("runner/gdb-busy-port", |context| {
            let busy = std::net::TcpListener::bind("127.0.0.1:0")?;
            let port = busy.local_addr()?.port().to_string();
            Call::run(context)?
                .args(["--bundle", "none", "--gdb", &port])
                .call()?
                .ended(125)?
                .tells(&["error", &format!("port {port}"), "--gdb alone"])?;
            Ok(())
        }),
    ]
}

/// What is for a debugger is in the ELF files, and what is loaded in the image.
fn flat_image(context: &Context) -> Result<Outcome> {
    let image = context.image()?;
    let (Some(hyp), Some(host)) = (&image.hyp, &image.host) else {
        return Ok(Outcome::skipped("the image was not built here"));
    };
    let size = fs::metadata(&image.file)?.len();
    let (mut loaded, mut debug) = (0, 0);
    for elf in [hyp, host] {
        let data = fs::read(elf)?;
        let file = object::File::parse(&*data)?;
        let of_debugger = |name: object::Result<&str>| name.is_ok_and(|n| n.starts_with(".debug_"));
        let sections = file
            .sections()
            .filter(|section| of_debugger(section.name()));
        debug += sections.map(|section| section.size()).sum::<u64>();
        loaded += (flat::binary(&data)?.len() + symbols::table(&data)?.len()) as u64;
    }
    // Each of the two has a header of its own, and is padded twice.
    let most = loaded + 4 * appendix::UNIT as u64;
    ensure!(size <= most, "{size} bytes, of which {loaded} are loaded");
    ensure!(
        debug > size,
        "{debug} bytes of debug information show no source"
    );
    Ok(Counts::ONE.into())
}

/// A case that drives a gdb, where there is one or can be.
pub fn with_gdb(name: &str, body: fn(&Context) -> Result<()>) -> Case {
    let mut case = Case::of_cargo(name, move |context: &Context| {
        let scratch = context.workspace.scratch();
        if package::ensure(&scratch, gdb::PACKAGE, gdb::PACKAGE)?.is_none() {
            return Ok(Outcome::skipped("there is no gdb-multiarch"));
        }
        if context.image()?.hyp.is_none() {
            return Ok(Outcome::skipped("the image was not built here"));
        }
        body(context).map(|()| Counts::ONE.into())
    });
    case.lane = Lane::Shared;
    case
}

/// Source, arguments, memory and statics of hyp and host, from a target directory with a
/// blank in its path.
fn in_hyp_and_host(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let target = folder.path().join("a 'b' c");
    symlink(&context.workspace.target, &target)?;
    let mut pty = debugged(context, |command| {
        command.env("CARGO_TARGET_DIR", &target);
        Ok(())
    })?;
    let line = line(&mut pty)?;
    // RMI_REALM_CREATE, which the host calls once.
    let called = gdb(
        &line,
        &[
            "break hyp::rmi::realm::create",
            "break host_loader::rmi_call::realm_create",
            "continue",
            "frame",
            "continue",
            "print hyp::log::HOST_RUNS",
            "backtrace",
            // What is compiled into it comes first.
            "frame function hyp::exception::host::serve",
            "up",
            "info args",
            "print/x cpu.host.gprs.x[0]",
            "delete",
            "detach",
        ],
    )?;
    called
        .shows(&["host_loader", "rmi_call.rs"])?
        .shows(&["hyp::rmi::realm::create (system=", "hyp/src/rmi/realm.rs:"])?
        .shows(&["$1 = core::sync::atomic::AtomicBool", "value: 1"])?
        .shows(&["cpu = 0x", &format!("$2 = {:#x}\n", fid::RMI_REALM_CREATE)])?
        .shows(&["hyp::exception::host::run", "host.rs:"])?;
    let status = pty.finish()?;
    ensure!(
        status == Some(0),
        "it ended with {status:?}\n{}",
        pty.text()
    );
    Ok(())
}

/// A Linux with symbols of its own stands where they say, and stops there.
fn in_the_guest(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let find = format!("grep -w {OF_LINUX} /proc/kallsyms");
    let found = bare(context)
        .args(["--append", "nokaslr", "--exec", &find])
        .call()?
        .ended(0)?;
    let address = found.stdout.split(' ').next().context("an address")?;
    let address = u64::from_str_radix(address, 16).context("no address")?;
    let symbols = folder.path().join("vm linux");
    fs::write(&symbols, elf_of(OF_LINUX, address))?;
    let mut pty = debugged(context, |command| {
        command.arg("--guest-symbols").arg(&symbols);
        command.args(["--exec", "echo on; exit 6"]);
        Ok(())
    })?;
    let line = line(&mut pty)?;
    let called = gdb(
        &line,
        &[
            &format!("break {OF_LINUX}"),
            "continue",
            "print $cpsr & 0xc",
            "delete",
            "detach",
        ],
    )?;
    // EL1, by its own name.
    called
        .shows(&["Breakpoint 1,", OF_LINUX])?
        .shows(&["$1 = 4"])?;
    let status = pty.finish()?;
    ensure!(
        status == Some(6),
        "it ended with {status:?}\n{}",
        pty.text()
    );
    Ok(())
}

/// A machine that waits for a debugger, and has the guest `hello` if no other is
/// asked for.
///
/// # Errors
/// When it cannot be started.
pub fn debugged(context: &Context, more: impl FnOnce(&mut Command) -> Result<()>) -> Result<Pty> {
    let mut command = Command::new(&context.runner);
    command.args(["run", "--timeout", "240", "--gdb", "--memory", "256M"]);
    more(&mut command)?;
    let others = ["--exec", "--kernel"];
    if !command
        .get_args()
        .any(|word| others.iter().any(|other| word == *other))
    {
        command.args(["--guest", "hello"]);
    }
    Pty::start(command, LIMIT)
}

/// The line that starts the debugger.
///
/// # Errors
/// When there is none.
pub fn line(pty: &mut Pty) -> Result<String> {
    pty.until(" -x ")?;
    pty.until("\n")?;
    let lines = pty.lines();
    let line = lines.iter().find(|line| line.contains(" -x "));
    Ok(line.context("no line")?.trim().to_string())
}

/// Starts the debugger as a person does, with these commands after its own. Its
/// status is not looked at: a machine that goes on may have ended before QEMU has
/// answered the `detach`.
///
/// # Errors
/// When it cannot be started.
pub fn gdb(line: &str, commands: &[&str]) -> Result<Called> {
    let mut words = vec!["-nx".to_string(), "-batch".to_string()];
    for command in commands {
        words.extend(["-ex".into(), (*command).to_string()]);
    }
    let more = shlex::try_join(words.iter().map(String::as_str)).context("no NUL")?;
    Call::program("sh", LIMIT)
        .args(["-c", &format!("{line} {more}")])
        .call()
}

/// An ELF file of a 64-bit Arm program that has one function, of which nothing
/// but the name and the address is there.
fn elf_of(name: &str, address: u64) -> Vec<u8> {
    const HEADER: u64 = 64;
    const SECTION: u16 = 64;
    let sections = [".text", ".symtab", ".strtab", ".shstrtab"];
    let mut names = vec![0];
    let mut name_at = Vec::new();
    for section in sections {
        name_at.push(names.len() as u32);
        names.extend(section.bytes());
        names.push(0);
    }
    let strings = format!("\0{name}\0");
    // The null symbol, then ours: global, a function, of section 1, 16 bytes.
    let mut symbols = vec![0; 24];
    symbols.extend(1u32.to_le_bytes());
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend([address, 16].iter().flat_map(|word| word.to_le_bytes()));

    let mut body = symbols.clone();
    body.extend(strings.bytes());
    body.extend(&names);
    let at = |before: usize| HEADER + before as u64;
    let strings_at = at(symbols.len());
    let names_at = strings_at + strings.len() as u64;
    let table_at = (at(body.len())).next_multiple_of(8);
    body.resize((table_at - HEADER) as usize, 0);

    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_EXEC, EM_AARCH64.
    elf.extend([2u16, 183].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    for word in [address, 0, table_at] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, 0, 0, SECTION, 5, 4] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(&body);
    let mut section = |name: u32, kind: u32, words: [u64; 4], link: [u32; 2], entry: u64| {
        let [flags, address, offset, size] = words;
        elf.extend([name, kind].iter().flat_map(|word| word.to_le_bytes()));
        for word in [flags, address, offset, size] {
            elf.extend(word.to_le_bytes());
        }
        elf.extend(link.iter().flat_map(|word| word.to_le_bytes()));
        elf.extend([4, entry].iter().flat_map(|word: &u64| word.to_le_bytes()));
    };
    section(0, 0, [0; 4], [0; 2], 0);
    // SHT_NOBITS, allocated and executable.
    section(name_at[0], 8, [6, address, HEADER, 16], [0; 2], 0);
    section(name_at[1], 2, [0, 0, HEADER, 48], [3, 1], 24);
    let strings = strings.len() as u64;
    section(name_at[2], 3, [0, 0, strings_at, strings], [0; 2], 0);
    section(
        name_at[3],
        3,
        [0, 0, names_at, names.len() as u64],
        [0; 2],
        0,
    );
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::ObjectSymbol;

    #[test]
    fn an_elf_of_one_function_has_it() {
        let elf = elf_of("f", 0x1234_0000);
        let file = object::File::parse(&*elf).expect("an ELF file");
        let symbol = file.symbols().find(|s| s.name() == Ok("f")).expect("there");
        assert_eq!(symbol.address(), 0x1234_0000);
    }
}

//! The machine goes on whatever one guest does: ends, resets, and guests that
//! touch what is not theirs.

use anyhow::Result;

use super::boots::{LIMIT, ended_well, machine_with_shell};
use super::call::Call;
use super::runner::exit::once_begun;
use super::{Case, Context, runner};
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::run::capture::Capture;
use crate::run::ending::Ending;

/// How often a guest resets, or is powered off, in a row.
const TIMES: usize = 10;

/// An IPA where a plain guest has neither RAM nor a device, which its kernel
/// lets a process touch.
const NOWHERE: &str = "0xa0000000";

/// The guest that cases boot.
const LINUX: &[&str] = &["debian13"];

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("stays-up/ten-resets", ten_resets).boots(LINUX),
        Case::new("stays-up/ten-power-offs", |context| {
            for time in 1..=TIMES {
                let ended = Call::run(context)?
                    .args(["--guest", "hello"])
                    .call()?
                    .ended(0);
                ended.map_err(|error| error.context(format!("power-off {time}")))?;
            }
            Ok(())
        }),
        Case::new("stays-up/guest-outside-its-memory", outside).boots(LINUX),
        Case::new("stays-up/hang-tells-last-exits", |context| {
            // Whatever of the log the user wants to see.
            once_begun(|patience| {
                let call = Call::run(context)?.args(["--guest", "debian13", "--log", "error"]);
                let command = ["--exec", "echo begun; sleep 10000"];
                Ok(call.args(command).args(["--timeout", patience]))
            })?
            .ended(124)?
            .tells(&["last exits"])?
            // Reason and registers of each vCPU, and the region where there is one.
            .tells(&["debian13/0", "elr=", "far=", "ipa="])?
            .calmly()?;
            Ok(())
        })
        .boots(LINUX),
    ]
}

/// The guest resets itself ten times; each time it boots to its shell again.
fn ten_resets(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let machine = machine_with_shell(context, folder.path())?;
    let mut capture = Capture::start(&machine, 2 * LIMIT, false)?;
    let talk = |capture: &mut Capture| -> Result<Ending> {
        for _ in 0..TIMES {
            capture.until("guest:~# ")?;
            capture.type_in("reboot -f\n")?;
        }
        capture.until("guest:~# ")?;
        capture.type_in("poweroff -f\n")?;
        capture.finish()
    };
    ended_well(talk(&mut capture), &capture)
}

/// One strict guest reads where it has nothing and is stopped with a report that
/// names it and the address; the other one, beside it, finishes its work.
fn outside(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = runner::kernel(context)?;
    let busybox = Cache::of(&context.workspace).busybox()?;
    let guests = [
        ("intruder", format!("devmem {NOWHERE}"), false),
        (
            "neighbour",
            "sleep 5; echo still here; poweroff -f".to_string(),
            true,
        ),
    ];
    let mut toml = String::new();
    for (name, command, console) in guests {
        let task = Task::Command {
            command: command.into_bytes(),
            mark: initrd::mark(),
        };
        let initrd = folder.path().join(format!("{name}.cpio"));
        std::fs::write(&initrd, initrd::build(&busybox, name, &task)?)?;
        toml += &format!(
            "[[guest]]\nname = {name:?}\nkernel = {kernel:?}\ninitrd = {initrd:?}\n\
             cmdline = \"console=ttyAMA0 quiet\"\nmemory = \"256M\"\nvcpus = 1\n\
             console = {console}\nstrict = true\n"
        );
    }
    let file = folder.path().join("guests.toml");
    std::fs::write(&file, toml)?;
    let called = Call::run(context)?
        .args(["--smp", "2", "--guests"])
        .args([&file])
        .call()?;
    called
        .failed()?
        .shows(&["still here"])?
        .tells(&["intruder", NOWHERE])?
        .tells(&["end: ", "status"])?
        .calmly()?;
    Ok(())
}

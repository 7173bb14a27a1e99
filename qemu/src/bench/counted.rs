//! Machines for the benchmarks, and how many instructions one executes.
//!
//! QEMU counts them (`plugin/count.rs`), with `-icount`, so that the same
//! images give the same number each time. *Bare* is the same kernel, initial
//! RAM disk and CPU on a machine whose CPUs begin at EL1, which is what the
//! guest sees under Undercroft.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use rmi::end::Token;

use crate::build::Image;
use crate::bundle;
use crate::config::Guest;
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::run::options::Granule;
use crate::setup::qemu::Qemu;
use crate::size::Size;
use crate::ui;

/// The guest's memory; the machine has as much more for Undercroft.
pub const MEMORY: Size = Size::mib(512);
const RAM: Size = Size::mib(1024);

/// How long one boot may take.
pub const LIMIT: Duration = Duration::from_secs(600);

/// The machine that the guest sees, without Undercroft.
pub fn bare(qemu: &Qemu, guest: &Guest) -> Machine {
    Machine {
        qemu: qemu.clone(),
        cpu: DEFAULT_CPU.into(),
        cpus: 1,
        ram: guest.memory,
        ram_base: RAM_BASE,
        kernel: Some(guest.kernel.clone()),
        initrd: guest.initrd.clone(),
        append: guest.cmdline.clone().unwrap_or_default(),
        end: None,
        el2: false,
        log_uart: false,
        debugger: None,
        extra: Vec::new(),
    }
}

/// The machine with Undercroft, and the guest in it.
///
/// # Errors
/// When the bundle cannot be written.
pub fn under(
    qemu: &Qemu,
    guest: &Guest,
    image: &Image,
    granule: Granule,
    folder: &Path,
) -> Result<Machine> {
    let file = folder.join("bundle.cpio");
    bundle::write(std::slice::from_ref(guest), &file)?;
    let log_uart = Machine::can_have_log_uart(qemu);
    let log = if log_uart {
        " undercroft.log=serial1"
    } else {
        ""
    };
    Ok(Machine {
        ram: RAM,
        ram_base: RAM_BASE,
        kernel: Some(image.file.clone()),
        initrd: Some(file),
        append: format!("undercroft.granule={granule} undercroft.loglevel=info{log}"),
        // The same at each boot, as all that could make a difference.
        end: Some(Token::of_bits(1)),
        el2: true,
        log_uart,
        ..bare(qemu, guest)
    })
}

/// How a count is made.
#[derive(Clone, Copy, Debug)]
pub struct Counting<'a> {
    /// QEMU's plugin.
    pub plugin: &'a Path,
    /// Where it writes.
    pub folder: &'a Path,
    /// The address whose first execution ends the count.
    pub until: u64,
    /// For the CPU's random numbers.
    pub seed: u32,
}

/// Boots once and returns the count of instructions.
///
/// # Errors
/// When the machine does not end well, or not behind the count.
pub fn count(machine: &Machine, how: Counting<'_>, bare: bool) -> Result<u64> {
    let Counting {
        plugin,
        folder,
        until,
        seed,
    } = how;
    let out = folder.join("count");
    // Of an earlier boot; there may be none.
    let _ = fs::remove_file(&out);
    let mut machine = machine.clone();
    let plugin = format!(
        "{},until={:#x},out={}",
        plugin.display(),
        until,
        out.display()
    );
    // One tick an instruction, and nothing that differs from run to run: no
    // seeds in the device tree, the same random numbers of the CPU's own, no
    // clock of the day.
    let steady = [
        "-icount",
        "shift=0,sleep=off",
        "-machine",
        "dtb-randomness=off",
    ];
    let seed = seed.to_string();
    let fixed = [
        "-seed",
        &seed,
        "-rtc",
        "base=2026-01-01,clock=vm",
        "-plugin",
        &plugin,
    ];
    let all = steady.into_iter().chain(fixed);
    machine.extra.extend(all.map(OsString::from));
    let mut capture = Capture::start(&machine, LIMIT, bare)?;
    let ending = capture.finish()?;
    let count = fs::read_to_string(&out)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    match (ending, count) {
        (Ending::Status(0), Some(count)) => Ok(count),
        (ending, count) => {
            ui::say(capture.last_words().trim_end());
            if count.is_none() {
                ui::warn("the guest did not come to where the count ends");
            }
            bail!("{ending}")
        }
    }
}

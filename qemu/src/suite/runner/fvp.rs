//! Arm's model as a machine. Nobody has it here: what is tested is what the runner
//! makes for it, and that it reads what a model would write.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::super::call::{Call, Called, LIMIT};
use super::super::{Case, Context, Counts, Outcome};
use super::program;
use crate::machine::fvp::{BL1, FIP, PROGRAM, fip, parts};
use crate::setup::package;

/// The variables that name the model and its firmware.
const MODEL: &str = "UNDERCROFT_FVP";
const FIRMWARE: &str = "UNDERCROFT_FVP_FIRMWARE";

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::skipping("runner/fvp-dry-run", dry_run),
        Case::new("runner/fvp-refusals", refusals),
        Case::new("runner/fvp-run", stand_in),
    ]
}

/// A call for the model's machine with the guest `hello`, without what the user's
/// environment has of one.
fn call(context: &Context) -> Result<Call> {
    let call = Call::run(context)?.args(["--machine", "fvp", "--guest", "hello"]);
    Ok(call.without(MODEL).without(FIRMWARE))
}

/// The files, the command and the tree, without model and firmware.
fn dry_run(context: &Context) -> Result<Outcome> {
    let called = call(context)?
        .args(["--dry-run", "--smp", "6"])
        .call()?
        .ended(0)?
        .tells(&["undercroft.img at 0x80200000..0x80"])?
        .tells(&["device tree at 0x82000000..0x82004000"])?
        .tells(&["bundle.cpio at 0x84000000..0x84"])?
        .tells(&["warning", "TF-A", "PRELOADED_BL33_BASE=0x80200000"])?;
    let words = shlex::split(called.stdout.trim()).context("a shell cannot read it")?;
    ensure!(
        words.first().is_some_and(|word| word == PROGRAM),
        "{words:?}"
    );
    let at = format!("@{:#x}", parts::IMAGE);
    let image = words.iter().find_map(|word| word.strip_suffix(&at));
    let image = image.and_then(|word| word.strip_prefix("cluster0.cpu0="));
    // What is loaded is the image as it is on QEMU, to the byte.
    let image = fs::read(image.context("no image in it")?)?;
    ensure!(image == fs::read(&context.image()?.file)?, "another image");
    let tree = context.workspace.scratch().join("dry-run/undercroft.dtb");
    let scratch = context.workspace.scratch();
    if package::ensure(&scratch, "dtc", "device-tree-compiler")?.is_none() {
        return Ok(Outcome::skipped("there is no dtc to read the tree"));
    }
    let read = Call::program("dtc", LIMIT)
        .args(["-I", "dtb", "-O", "dts"])
        .args([&tree])
        .call()?
        .ended(0)?
        .shows(&["arm,gic-v3", "undercroft.granule=4k", "linux,initrd-start"])?;
    ensure!(read.stderr.is_empty(), "dtc says\n{}", read.stderr);
    Ok(Counts::ONE.into())
}

fn refusals(context: &Context) -> Result<()> {
    let refused = |call: Call, more: &[&str], says: &[&str]| -> Result<()> {
        let called = call.args(more).call()?.ended(125)?.calmly()?;
        called.tells(&["error"])?.tells(says)?.printed("")?;
        Ok(())
    };
    for more in [
        &["--gdb"][..],
        &["--cpu", "cortex-a72"],
        &["--one-uart"],
        &["--trace", "calls"],
        &["--", "-d", "int"],
    ] {
        refused(call(context)?, more, &["QEMU alone", more[0]])?;
    }
    let bare = Call::bare(context).args(["--machine", "fvp"]);
    refused(bare, &["--bare"], &["QEMU alone", "--bare"])?;
    let dry = || Ok::<_, anyhow::Error>(call(context)?.args(["--dry-run"]));
    refused(dry()?, &["--smp", "9"], &["--smp 9", "8 CPUs"])?;
    refused(dry()?, &["--memory", "4G"], &["4032M"])?;
    let nowhere = "/nowhere/model";
    let missing = call(context)?.env(MODEL, nowhere);
    refused(missing, &[], &[nowhere, "is not there"])?;
    let no_firmware = call(context)?.env(MODEL, "true");
    refused(no_firmware, &[], &["no firmware of its own"])?;
    let of_qemu = Call::run(context)?.args(["--firmware", ".", "--dry-run"]);
    refused(of_qemu, &[], &["--firmware", "--machine fvp"])
}

/// A program in the model's place that writes to its UARTs as Undercroft would. It
/// shows how the runner reads them, and no more.
fn stand_in(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let firmware = folder.path().join("firmware");
    fs::create_dir(&firmware)?;
    fs::write(firmware.join(BL1), "")?;
    fs::write(firmware.join(FIP), package_of_a_tree())?;
    let model = folder.path().join("a model");
    let words = format!("env A=b '{}'", model.display());
    let run = |end: &str| -> Result<Called> {
        program(&model, &script(end))?;
        let call = call(context)?.env(MODEL, &words).env(FIRMWARE, &firmware);
        call.call()?.calmly()
    };
    run("$token status 0")?
        .ended(0)?
        .printed("a guest's words\n")?
        .tells(&["the model's own"])?
        .tells(&["INFO", "end: status 0"])?;
    run("$token status 2")?
        .ended(125)?
        .tells(&["a guest could not be started"])?;
    // Whoever has not the token ends nothing.
    run("status 0")?
        .ended(125)?
        .tells(&["without Undercroft saying why"])?;
    Ok(())
}

/// The stand-in: it finds its UARTs' files and the token in what it is given.
fn script(end: &str) -> String {
    format!(
        r#"#!/bin/sh
for word; do case $word in
    bp.pl011_uart0.out_file=*) console=${{word#*=}} ;;
    bp.pl011_uart1.out_file=*) log=${{word#*=}} ;;
    bp.flashloader0.fname=*) fip=${{word#*=}} ;;
esac; done
token=$(grep -ao 'undercroft.end=[0-9a-f]*' "$fip" | cut -d= -f2)
echo "the model's own"
echo "a guest's words" >>"$console"
echo "[    1.000000] host INFO  end: {end}" >>"$log"
"#
    )
}

/// A package of the firmware's that has a device tree, and nothing else.
fn package_of_a_tree() -> Vec<u8> {
    let mut package = fip::NAME.to_le_bytes().to_vec();
    package.resize(16, 0);
    package.extend(fip::HW_CONFIG);
    package.resize(16 + 2 * 40, 0);
    package
}

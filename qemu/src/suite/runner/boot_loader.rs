//! The files that `cargo qemu image` writes, booted as their README says.

use std::ffi::OsStr;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::super::boots::LIMIT;
use super::super::call::{self, Call};
use super::super::{Case, Context};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::machine::virt::{DEFAULT_CPU, Machine, RAM_BASE};
use crate::run::capture::Capture;
use crate::run::ending::Ending;
use crate::size::Size;

/// The cases.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("runner/image-by-u-boot", by_u_boot).boots(&["u-boot"]),
        Case::new("runner/image-into-its-own-folder", over_itself),
        Case::new("runner/image-says-its-machine", its_machine),
    ]
}

/// The image that is given stands where it is to be written.
fn over_itself(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let image = folder.path().join("undercroft.img");
    let whole = fs::read(&context.image()?.file)?;
    fs::write(&image, &whole)?;
    Call::program(&context.runner, call::LIMIT)
        .args(["image", "--guest", "hello", "--image"])
        .args([&image])
        .args(["--output"])
        .args([folder.path()])
        .call()?
        .ended(0)?;
    ensure!(fs::read(&image)? == whole, "it is another");
    Ok(())
}

/// The machine that the files want is the one that `run` makes for the same guests.
fn its_machine(context: &Context) -> Result<()> {
    let image = &context.image()?.file;
    let folder = tempfile::tempdir_in(&context.folder)?;
    let of = |name: &str| folder.path().join(name);
    fs::write(of("initrd"), vec![0x11; 200 << 20])?;
    let bundle = of("first/bundle.cpio");
    let initrd = of("initrd");
    let words: [&[&OsStr]; 3] = [
        &["--guest".as_ref(), "hello".as_ref()],
        &[
            "--bundle".as_ref(),
            bundle.as_ref(),
            "--smp".as_ref(),
            "3".as_ref(),
        ],
        &[
            "--kernel".as_ref(),
            image.as_ref(),
            "--initrd".as_ref(),
            initrd.as_ref(),
        ],
    ];
    for (words, to) in words.into_iter().zip(["first", "second", "third"]) {
        let call = Call::program(&context.runner, call::LIMIT).args(["image", "--image"]);
        let call = call.args([image]).args(["--output"]).args([of(to)]);
        call.args(words).call()?.ended(0)?;
        let dry = Call::run(context)?.args(["--dry-run"]).args(words);
        let command = dry.call()?.ended(0)?.stdout;
        let machine = (command.find("-smp ").zip(command.find(" -nodefaults")))
            .map(|(from, to)| &command[from..to])
            .with_context(|| format!("no machine in {command}"))?;
        let told = fs::read_to_string(of(to).join("README.txt"))?;
        ensure!(told.contains(machine), "{machine} is not in\n{told}");
    }
    Ok(())
}

/// U-Boot for QEMU finds the script on a disk and boots by it, untouched.
fn by_u_boot(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    // QEMU shows a folder as a FAT disk.
    let disk = folder.path().join("disk");
    Call::program(&context.runner, call::LIMIT)
        .args(["image", "--guest", "hello", "--image"])
        .args([&context.image()?.file])
        .args(["--output"])
        .args([&disk])
        .call()?
        .ended(0)?;
    let script = fs::read(disk.join("boot.cmd"))?;
    fs::write(disk.join("boot.scr"), boot_script(&script))?;
    let firmware = Cache::of(&context.workspace).kernel(catalogue::find("u-boot")?)?;
    let machine = Machine {
        qemu: context.qemu()?.clone(),
        cpu: DEFAULT_CPU.into(),
        cpus: 1,
        ram: Size::mib(1024),
        ram_base: RAM_BASE,
        kernel: None,
        initrd: None,
        append: String::new(),
        end: None,
        el2: true,
        log_uart: false,
        debugger: None,
        extra: vec![
            "-bios".into(),
            firmware.into(),
            "-drive".into(),
            format!(
                "file=fat:{},format=raw,if=none,id=disk,read-only=on",
                disk.display().to_string().replace(',', ",,")
            )
            .into(),
            "-device".into(),
            "virtio-blk-pci,drive=disk".into(),
        ],
    };
    let mut capture = Capture::start(&machine, LIMIT, false)?;
    let ending = capture
        .until("hello from EL1")
        .and_then(|()| capture.finish())
        .map_err(|error| error.context(capture.last_words()))?;
    ensure!(ending == Ending::Status(0), "{ending}");
    Ok(())
}

/// What `mkimage -A arm64 -T script` makes of a script (U-Boot's
/// `include/image.h`, `struct legacy_img_hdr`): a header of 64 bytes, the length
/// of each script and a 0, the script.
fn boot_script(script: &[u8]) -> Vec<u8> {
    const LEN: usize = 64;
    let mut body = Vec::new();
    body.extend((script.len() as u32).to_be_bytes());
    body.extend([0; 4]);
    body.extend(script);
    let header = |own_sum: u32| {
        let mut header = Vec::new();
        let (magic, time, load, entry) = (0x2705_1956u32, 0, 0, 0);
        let words = [
            magic,
            own_sum,
            time,
            body.len() as u32,
            load,
            entry,
            crc32(&body),
        ];
        header.extend(words.iter().flat_map(|word| word.to_be_bytes()));
        // Linux, arm64, a script, not compressed.
        header.extend([5, 22, 6, 0]);
        header.resize(LEN, 0);
        header
    };
    // Its own sum is over the header without it.
    let mut file = header(crc32(&header(0)));
    file.extend(&body);
    file
}

/// The CRC of Ethernet and zlib, bit by bit.
fn crc32(data: &[u8]) -> u32 {
    let rest = data.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    });
    !rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_as_everybody_has_it() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}

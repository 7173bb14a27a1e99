//! A kernel stands where QEMU's `-kernel` puts it, whatever its format, and finds
//! its device tree where it would there: the same program says so on both.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::call::Call;
use super::{Case, Context};
use crate::build;

/// Offset of an Image's text offset, its size and its magic.
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const MAGIC: usize = 0x38;

/// How a program becomes another kernel.
type Form = fn(Vec<u8>) -> Vec<u8>;

/// An initrd of an odd size, after which the device tree is aligned again.
const INITRD: usize = (5 << 20) + 123;

/// What is booted.
struct Boot {
    name: &'static str,
    options: &'static [&'static str],
    initrd: bool,
    form: Form,
}

const fn boot(name: &'static str, form: Form) -> Boot {
    Boot {
        name,
        options: &[],
        initrd: false,
        form,
    }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let long: Form = |image| {
        let mut image = raw(image);
        image.resize(140 << 20, 0);
        image
    };
    let of_text_offset: Form = |image| with(image, TEXT_OFFSET, 0x8_0000);
    let to_elf: Form = |image| elf(&image, 0x4010_0000);
    let boots = [
        boot("image", |image| image),
        boot("image-text-offset", of_text_offset),
        boot("image-of-no-size", |image| {
            with(with(image, TEXT_OFFSET, 0x30_0000), IMAGE_SIZE, 0)
        }),
        boot("image-large", |image| with(image, IMAGE_SIZE, 140 << 20)),
        boot("raw", raw),
        Boot {
            options: &["--memory", "64M"],
            ..boot("raw-in-little-memory", raw)
        },
        Boot {
            options: &["--memory", "512M"],
            ..boot("raw-long", long)
        },
        boot("elf", to_elf),
        Boot {
            initrd: true,
            ..boot("image-and-initrd", of_text_offset)
        },
        Boot {
            initrd: true,
            options: &["--memory", "64M"],
            ..boot("image-and-initrd-in-little-memory", |image| image)
        },
        Boot {
            initrd: true,
            ..boot("raw-long-and-initrd", long)
        },
    ];
    boots
        .into_iter()
        .map(|boot| {
            Case::new(format!("placement/{}", boot.name), move |context| {
                placed(context, &boot)
            })
        })
        .collect()
}

fn placed(context: &Context, what: &Boot) -> Result<()> {
    let program = fs::read(build::program(&context.workspace, "placed")?)?;
    let folder = tempfile::tempdir_in(&context.folder)?;
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, (what.form)(program))?;
    let initrd = folder.path().join("initrd");
    fs::write(&initrd, vec![0x5a; INITRD])?;
    let initrd = if what.initrd {
        initrd.as_os_str()
    } else {
        "none".as_ref()
    };
    let boot = |call: Call| -> Result<(String, String)> {
        let called = call
            .args(["--initrd".as_ref(), initrd])
            .args(["--kernel".as_ref(), kernel.as_os_str()])
            .args(what.options)
            .call()?
            .ended(0)?;
        let line = |sign: &str| {
            let line = called.stdout.lines().find(|line| line.contains(sign));
            line.map(str::to_owned)
                .with_context(|| format!("no `{sign}`"))
        };
        Ok((line("placed at")?, line("a tree at RAM's base")?))
    };
    let (here, at_base) = boot(Call::run(context)?)?;
    let (there, _) = boot(Call::bare(context).args(["--bare"]))?;
    ensure!(here == there, "here {here}\non QEMU {there}");
    let is_image = fs::read(&kernel)?[MAGIC..].starts_with(b"ARM\x64");
    ensure!(
        is_image || at_base.contains("true"),
        "no device tree at RAM's base: {here}"
    );
    Ok(())
}

fn with(mut image: Vec<u8>, at: usize, value: u64) -> Vec<u8> {
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
    image
}

/// Without the magic, an Image is any code.
fn raw(mut image: Vec<u8>) -> Vec<u8> {
    image[MAGIC] = 0;
    image
}

/// The same code as an ELF file with one segment, at a fixed address.
fn elf(image: &[u8], address: u64) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let image = raw(image.to_vec());
    let size = image.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for AArch64, version 1.
    for half in [2u16, 183, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    // Entry, program headers, no sections.
    for word in [address, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // To be loaded; to be read, written and executed.
    for half in [1u32, 7] {
        file.extend(half.to_le_bytes());
    }
    for word in [HEADERS, address, address, size, size, 8] {
        file.extend(word.to_le_bytes());
    }
    file.extend(image);
    file
}

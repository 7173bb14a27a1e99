//! Bad input ends with one clear sentence that names the culprit: told by the
//! runner where it can know, and by the image where a boot loader brings it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Result;

use super::call::{Call, Called, LIMIT};
use super::{Case, Context, runner};
use crate::bundle::CONFIGURATION;
use crate::newc::Archive;
use crate::setup::sources::VARIABLE as MIRROR;
use crate::workspace::GUESTS;

const GUEST: &str = "[[guest]]\nname = \"a\"\nkernel = \"a/kernel\"\nmemory = \"64M\"\nvcpus = 1\n";

/// A command line that no kernel takes.
const LONG: &str = match std::str::from_utf8(&[b'x'; 2048]) {
    Ok(text) => text,
    Err(_) => "",
};

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = told_by_the_runner();
    cases.extend(told_by_the_image());
    cases
}

/// A configuration, and what the error about it must name.
struct Wrong {
    name: &'static str,
    configuration: String,
    names: &'static [&'static str],
}

/// Mistakes in `guests.toml` that both the runner and the image must tell. The
/// image is asked to name file, line and key as well.
fn wrong_configurations() -> Vec<Wrong> {
    let wrong = |name, configuration: String, names| Wrong {
        name,
        configuration,
        names,
    };
    vec![
        wrong(
            "unknown-key",
            GUEST.replace("vcpus", "cpus"),
            &["guests.toml:5:", "cpus"],
        ),
        wrong("not-toml", "[[guest\n".into(), &["guests.toml:1:"]),
        wrong("no-guest", String::new(), &[CONFIGURATION, "guest"]),
        wrong(
            "no-vcpus",
            GUEST.replace("vcpus = 1", "vcpus = 0"),
            &["guests.toml:5:", "vcpus"],
        ),
        wrong(
            "memory-not-a-size",
            GUEST.replace("64M", "lots"),
            &["guests.toml:4:", "memory"],
        ),
        wrong(
            "missing-kernel",
            GUEST.replace("a/kernel", "a/nothing"),
            &["guests.toml:3:", "kernel", "a/nothing"],
        ),
        wrong(
            "odd-memory",
            GUEST.replace("64M", "129M"),
            &["guests.toml:4:", "memory", "129M", "2M"],
        ),
        wrong(
            "two-consoles",
            format!(
                "{GUEST}console = true\n\n{}console = true\n",
                GUEST.replace("\"a\"", "\"b\"")
            ),
            &["guests.toml:13:", "console"],
        ),
        wrong(
            "nul-in-cmdline",
            GUEST.replace("vcpus = 1", "cmdline = \"a\\u0000b\"\nvcpus = 1"),
            &["guests.toml:5:11:", "cmdline"],
        ),
        wrong(
            "two-of-a-name",
            format!("{GUEST}\n{GUEST}"),
            &["guests.toml:8:8:", "name"],
        ),
        wrong(
            "hidden-name",
            GUEST.replace("\"a\"", "\".a\""),
            &["guests.toml:2:8:", "name", ".a"],
        ),
        wrong(
            "unknown-mode",
            format!("{GUEST}mode = \"secret\"\n"),
            &["guests.toml:6:8:", "mode", "secret", "realm"],
        ),
        wrong(
            "negative-load",
            format!("{GUEST}load = -1\n"),
            &["guests.toml:6:8:", "load = -1", "address"],
        ),
        wrong(
            "more-vcpus-than-a-guest-can-have",
            GUEST.replace("vcpus = 1", "vcpus = 65"),
            &["guests.toml:5:9:", "vcpus", "65", "64"],
        ),
        wrong(
            "long-cmdline",
            format!("{GUEST}cmdline = \"{LONG}\"\n"),
            &["guests.toml:6:11:", "cmdline", "2048", "2047"],
        ),
    ]
}

fn told_by_the_runner() -> Vec<Case> {
    let mut cases = Vec::new();
    let only_here = [Wrong {
        name: "kernel-is-a-folder",
        configuration: GUEST.replace("a/kernel", "a"),
        names: &["guests.toml:3:", "kernel"],
    }];
    for wrong in wrong_configurations().into_iter().chain(only_here) {
        cases.push(Case::new(
            format!("bad-input/runner-{}", wrong.name),
            move |context| {
                let folder = tempfile::tempdir_in(&context.folder)?;
                fs::create_dir(folder.path().join("a"))?;
                fs::write(folder.path().join("a/kernel"), "a kernel")?;
                let file = folder.path().join(CONFIGURATION);
                fs::write(&file, &wrong.configuration)?;
                told(
                    &Call::bare(context).args(["--guests"]).args([file]).call()?,
                    wrong.names,
                )
            },
        ));
    }
    let simple: [(&str, &[&str], &[&str]); 14] = [
        (
            "kernel-is-a-device",
            &["--kernel", "/dev/zero"],
            &["--kernel", "/dev/zero"],
        ),
        (
            "guests-is-a-guest",
            &["--guests", "debian13"],
            &["--guest debian13"],
        ),
        (
            "odd-memory-option",
            &["--memory", "129M"],
            &["--memory", "129M", "2M"],
        ),
        (
            "long-append",
            &["--append", LONG, "--kernel", "/proc/self/exe"],
            &["--append", "2047"],
        ),
        (
            "no-kernel",
            &["--kernel", "/nonexistent/kernel"],
            &["--kernel", "/nonexistent/kernel"],
        ),
        (
            "no-guest-of-that-name",
            &["--guest", "plan9"],
            &["plan9", "debian13"],
        ),
        (
            "protected-firmware",
            &["--guest", "u-boot", "--mode", "protected"],
            &["u-boot", "protected guest", "--mode plain"],
        ),
        (
            "realm-of-an-older-linux",
            &["--guest", "debian13", "--mode", "realm"],
            &["debian13", "realms", "--guest debian-backports"],
        ),
        // What is said is what is allowed, and not of another machine.
        (
            "zero-cpus",
            &["--smp", "0"],
            &["--smp", "0", "expected 1 to 64", "--guests"],
        ),
        (
            "more-cpus-than-a-guest-can-have",
            &["--smp", "65", "--kernel", "/nonexistent/kernel"],
            &["--smp 65", "expected 1 to 64"],
        ),
        (
            "more-cpus-than-a-machine-can-have",
            &["--smp", "100000", "--bundle", "none"],
            &["100000", "CPU"],
        ),
        (
            "memory",
            &["--memory", "lots"],
            &["--memory", "lots", "512M"],
        ),
        (
            "larger-than-ram",
            &["--memory", "4G", "--ram", "1G"],
            &["4G", "1G", "debian13"],
        ),
        (
            "no-bundle",
            &["--bundle", "/nonexistent/b"],
            &["--bundle", "/nonexistent/b"],
        ),
    ];
    for (name, arguments, names) in simple {
        cases.push(Case::new(
            format!("bad-input/runner-{name}"),
            move |context| {
                let mut call = Call::bare(context).args(arguments);
                if ["larger-than-ram", "more-cpus-than-a-machine-can-have"].contains(&name) {
                    call = Call::run(context)?.args(arguments);
                }
                told(&call.call()?, names)
            },
        ));
    }
    cases.push(Case::new("bad-input/runner-no-text", |context| {
        let word = OsStr::from_bytes(b"n\xff");
        let file = Call::bare(context).args(["--kernel".as_ref(), word]);
        told(&file.call()?, &["--kernel", "n"])?;
        let text = Call::bare(context).args(["--exec".as_ref(), word]);
        told(&text.call()?, &["UTF-8"])
    }));
    cases.push(Case::new("bad-input/runner-no-mirror", |context| {
        let folder = tempfile::tempdir_in(&context.folder)?;
        let called = Call::program(&context.runner, LIMIT)
            .args(["guests", "fetch", "debian12"])
            .env(GUESTS, folder.path())
            .env(MIRROR, "nonsense")
            .call()?
            .ended(125)?;
        told(&called, &[MIRROR, "nonsense", "https://"])
    }));
    cases.push(Case::new("bad-input/runner-no-symbols", |context| {
        // A kernel's Image has no names; what it was linked as has.
        let folder = tempfile::tempdir_in(&context.folder)?;
        let file = folder.path().join("Image");
        fs::write(&file, [0x11; 4096])?;
        let called = Call::run(context)?
            .args(["--guest", "hello", "--gdb", "--dry-run", "--guest-symbols"])
            .args([&file])
            .call()?
            .ended(125)?;
        told(&called, &["--guest-symbols", "Image", "ELF", "vmlinux"])
    }));
    cases.push(Case::new(
        "bad-input/runner-more-vcpus-than-cpus",
        |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            fs::create_dir(folder.path().join("a"))?;
            fs::write(folder.path().join("a/kernel"), "a kernel")?;
            let file = folder.path().join(CONFIGURATION);
            fs::write(&file, GUEST.replace("vcpus = 1", "vcpus = 4"))?;
            let called = Call::run(context)?
                .args(["--smp", "2", "--guests"])
                .args([file])
                .call()?;
            told(&called, &["guests.toml:5:", "`a`", "4 vCPUs", "2 CPUs"])
        },
    ));
    cases.push(Case::new("bad-input/runner-little-memory", |context| {
        // Only the image knows what a kernel takes, and it has another file.
        let folder = tempfile::tempdir_in(&context.folder)?;
        let file = folder.path().join("mine.toml");
        let kernel = crate::build::program(&context.workspace, "hello")?;
        let text = format!(
            "# Mine.\n\n[[guest]]\nmemory = \"2M\"\nname = \"a\"\nkernel = {kernel:?}\nvcpus = 1\n"
        );
        fs::write(&file, text)?;
        let called = Call::run(context)?
            .args(["--guests"])
            .args([&file])
            .call()?;
        told(
            &called.ended(125)?,
            &["mine.toml:4:", "\"a\"", "more memory"],
        )?;
        let called = Call::run(context)?
            .args(["--guest", "hello", "--memory", "2M"])
            .call()?;
        told(
            &called.ended(125)?,
            &["--memory 2M: ", "\"hello\"", "more memory"],
        )
    }));
    cases
}

/// What a boot loader may bring, and what the image must name.
fn told_by_the_image() -> Vec<Case> {
    let mut cases = Vec::new();
    for wrong in wrong_configurations() {
        cases.push(Case::new(
            format!("bad-input/image-{}", wrong.name),
            move |context| {
                image_tells(
                    context,
                    &bundle(&wrong.configuration, b"a kernel")?,
                    &[],
                    wrong.names,
                )
            },
        ));
    }
    cases.push(Case::new("bad-input/image-no-bundle", |context| {
        let called = Call::run(context)?.args(["--bundle", "none"]).call()?;
        told(&called, &["initrd"])
    }));
    cases.push(Case::new("bad-input/image-empty-bundle", |context| {
        image_tells(context, &Archive::new().finish()?, &[], &[CONFIGURATION])
    }));
    cases.push(Case::new("bad-input/image-not-a-bundle", |context| {
        image_tells(context, &[0x5a; 4096], &[], &["cpio"])
    }));
    cases.push(
        Case::new("bad-input/image-truncated-bundle", |context| {
            let kernel = fs::read(runner::kernel(context)?)?;
            let whole = bundle(GUEST, &kernel)?;
            // In the middle of the kernel, and in the middle of its header.
            image_tells(context, &whole[..whole.len() / 2], &[], &["cpio"])?;
            image_tells(
                context,
                &whole[..whole.len() - kernel.len() - 200],
                &[],
                &["cpio"],
            )
        })
        .boots(&["debian13"]),
    );
    cases.push(Case::new("bad-input/image-corrupt-kernel", |context| {
        // Each begins as one of the formats, and goes on as none.
        let mut zboot = vec![0u8; 256];
        zboot[..8].copy_from_slice(b"MZ\0\0zimg");
        let elf = [b"\x7fELF\x02\x01\x01".as_slice(), &[0xff; 200]].concat();
        let gzip = [[0x1f, 0x8b, 8, 0].as_slice(), &[0xee; 400]].concat();
        for kernel in [zboot, elf, gzip] {
            image_tells(context, &bundle(GUEST, &kernel)?, &[], &["a", "kernel"])?;
        }
        Ok(())
    }));
    cases.push(Case::new("bad-input/image-odd-text-offset", |context| {
        let mut kernel = vec![0u8; 4096];
        kernel[0x38..0x3c].copy_from_slice(b"ARM\x64");
        kernel[8] = 2;
        kernel[17] = 0x10;
        image_tells(
            context,
            &bundle(GUEST, &kernel)?,
            &[],
            &["a", "kernel", "instruction"],
        )
    }));
    cases.push(Case::new("bad-input/image-empty-kernel", |context| {
        image_tells(context, &bundle(GUEST, b"")?, &[], &["a", "kernel"])
    }));
    cases.push(
        Case::new("bad-input/image-guest-larger-than-ram", |context| {
            let text = GUEST.replace("64M", "64G");
            let kernel = fs::read(runner::kernel(context)?)?;
            image_tells(
                context,
                &bundle(&text, &kernel)?,
                &["--ram", "1G"],
                &["a", "memory"],
            )
        })
        .boots(&["debian13"]),
    );
    cases.push(
        Case::new("bad-input/image-kernel-larger-than-guest", |context| {
            let text = GUEST.replace("64M", "16M");
            let kernel = fs::read(runner::kernel(context)?)?;
            image_tells(context, &bundle(&text, &kernel)?, &[], &["a", "kernel"])
        })
        .boots(&["debian13"]),
    );
    cases.extend(in_little_memory());
    cases.push(
        Case::new("bad-input/image-regions-collide", |context| {
            // The initial RAM disk leaves no room that the kernel does not need.
            let text = GUEST
                .replace("64M", "96M")
                .replace("memory", "initrd = \"a/initrd\"\nmemory");
            let kernel = fs::read(runner::kernel(context)?)?;
            let mut archive = Archive::new();
            archive.file(CONFIGURATION, text.as_bytes())?;
            archive.folder("a")?;
            archive.file("a/kernel", &kernel)?;
            archive.file("a/initrd", &vec![0x11; 80 << 20])?;
            image_tells(
                context,
                &archive.finish()?,
                &["--ram", "1G"],
                &["a", "initrd"],
            )
        })
        .boots(&["debian13"]),
    );
    cases.push(
        Case::new("bad-input/image-more-vcpus-than-cpus", |context| {
            let text = GUEST.replace("vcpus = 1", "vcpus = 3");
            let kernel = fs::read(runner::kernel(context)?)?;
            image_tells(
                context,
                &bundle(&text, &kernel)?,
                &["--smp", "2"],
                &["a", "vcpus"],
            )
        })
        .boots(&["debian13"]),
    );
    // What file and CPU alone do not tell: walks that this granule has not.
    for (name, line, tells) in [
        (
            "start-level",
            "ipa_bits = 40\nstart_level = 2",
            "start_level = 2: expected 0 to 1",
        ),
        (
            "few-ipa-bits",
            "ram_base = 0x1_0000_0000_0000\nipa_bits = 48",
            "ipa_bits = 48: expected 49",
        ),
    ] {
        let body = move |context: &Context| {
            let text = GUEST.replace("vcpus = 1", line);
            image_tells(context, &bundle(&text, b"a kernel")?, &[], &["a", tells])
        };
        cases.push(Case::new(format!("bad-input/image-{name}"), body));
    }
    cases.push(Case::new("bad-input/image-no-el2", |context| {
        let folder = tempfile::tempdir_in(&context.folder)?;
        let file = folder.path().join("bundle.cpio");
        fs::write(&file, bundle(GUEST, b"a kernel")?)?;
        let called = Call::run(context)?
            .args(["--timeout", "60", "--bundle"])
            .args([&file])
            .args(["--", "-machine", "virtualization=off"])
            .call()?;
        // It cannot know a log's UART yet: the console will do.
        let all = format!("{}{}", called.stdout, called.stderr);
        anyhow::ensure!(all.contains("EL2"), "nothing about EL2 in\n{all}");
        called.failed()?;
        Ok(())
    }));
    cases
}

/// What makes the image read much, on a machine that has little.
fn in_little_memory() -> Vec<Case> {
    const RAM: [&str; 2] = ["--ram", "128M"];
    vec![
        Case::new("bad-input/image-nested-configuration", |context| {
            let long = ["guests.toml:1:", "long"];
            let bracket = ["guests.toml:2:", "in `["];
            let recursion = ["guests.toml:2:", "recurs", "in `a = [[["];
            for (open, size, names) in [
                ("[", 240 << 10, &long[..]),
                ("[", 60 << 10, &bracket),
                ("a = [", 60 << 10, &recursion),
                ("a.", 60 << 10, &["guests.toml:2:"]),
                (".", 60 << 10, &["guests.toml:2:"]),
            ] {
                let last = &open[open.len() - 1..];
                let text = format!("\n{open}{}", last.repeat(size));
                let folder = tempfile::tempdir_in(&context.folder)?;
                let file = folder.path().join("bundle.cpio");
                fs::write(&file, bundle(&text, b"a kernel")?)?;
                let called = boot_with(context, &file, &RAM)?.ended(125)?;
                told(&called, names)?;
            }
            Ok(())
        }),
        Case::new("bad-input/image-many-files", |context| {
            let mut archive = Archive::new();
            archive.file(CONFIGURATION, GUEST.as_bytes())?;
            for index in 0..100_000 {
                archive.file(&format!("f{index}"), b"")?;
            }
            image_tells(context, &archive.finish()?, &RAM, &["cpio", "files"])
        }),
        Case::new("bad-input/image-long-name", |context| {
            let name = "k".repeat(60 << 10);
            let text = GUEST.replace("a/kernel", &name);
            image_tells(
                context,
                &bundle(&text, b"a kernel")?,
                &RAM,
                &["guests.toml:3:", "kkk...\"", "no such file"],
            )
        }),
    ]
}

fn bundle(configuration: &str, kernel: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.file(CONFIGURATION, configuration.as_bytes())?;
    archive.folder("a")?;
    archive.file("a/kernel", kernel)?;
    archive.finish()
}

/// Boots the image with a bundle as it is and asks for an error that names
/// all of `names`.
fn image_tells(context: &Context, bundle: &[u8], arguments: &[&str], names: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let file = folder.path().join("bundle.cpio");
    fs::write(&file, bundle)?;
    let called = boot_with(context, &file, arguments)?;
    told(&called, names)
}

fn boot_with(context: &Context, bundle: &Path, arguments: &[&str]) -> Result<Called> {
    let call = Call::run(context)?
        .args(["--timeout", "100", "--bundle"])
        .args([bundle]);
    call.args(arguments).call()
}

/// Asks for a failure that is not a hang, with one line that names the culprit.
fn told(called: &Called, names: &[&str]) -> Result<()> {
    called.clone().failed()?.tells(names)?.calmly()?;
    anyhow::ensure!(called.code != Some(124), "it hung");
    Ok(())
}

//! `guests.toml`: which guests a bundle holds and how they are to run.
//!
//! `host-loader` reads the same file from the bundle; here it is read for the
//! user's sake, so that a mistake is told before a machine starts. Keys of a
//! `[[guest]]`:
//!
//! | key | value |
//! |---|---|
//! | `name` | letters, digits, `-`, `_` and `.`; differs between guests |
//! | `kernel` | file: arm64 Image, gzip, EFI zboot, ELF, or raw binary |
//! | `initrd` | file, optional |
//! | `cmdline` | text, optional |
//! | `memory` | such as `"512M"` |
//! | `vcpus` | 1 or more |
//! | `mode` | `"plain"`, optional |
//! | `console` | `true` (default for the first guest) or `false`, optional |
//! | `strict` | `true`: stopped when it accesses what it does not have, optional |
//! | `entry` | address at which a raw binary begins, optional |

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::size::Size;

/// How a guest's memory stands towards the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Shared with the host; boots whatever boots on QEMU's virt machine.
    #[default]
    Plain,
}

/// One guest, valid, with files of the development machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its name, also of its folder in the bundle.
    pub name: String,
    /// The kernel's file.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// Memory of the guest.
    pub memory: Size,
    /// Number of its virtual CPUs.
    pub vcpus: u32,
    /// How its memory stands towards the host.
    pub mode: Mode,
    /// Whether its console is the machine's; the first guest's is by default.
    pub console: Option<bool>,
    /// Whether it is stopped when it accesses what it does not have.
    pub strict: bool,
    /// Where a raw binary is entered.
    pub entry: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    guest: Spanned<Vec<Spanned<Entry>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: Spanned<String>,
    kernel: Spanned<PathBuf>,
    initrd: Option<Spanned<PathBuf>>,
    cmdline: Option<String>,
    memory: Size,
    vcpus: Spanned<u32>,
    #[serde(default)]
    mode: Mode,
    console: Option<bool>,
    #[serde(default)]
    strict: bool,
    entry: Option<u64>,
}

/// The form that goes into a bundle.
#[derive(Serialize)]
struct Packed<'a> {
    guest: Vec<PackedGuest<'a>>,
}

#[derive(Serialize)]
struct PackedGuest<'a> {
    name: &'a str,
    kernel: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmdline: Option<&'a str>,
    memory: Size,
    vcpus: u32,
    mode: Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<bool>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<u64>,
}

impl Guest {
    /// The kernel's path in the bundle.
    pub fn packed_kernel(&self) -> String {
        format!("{}/kernel", self.name)
    }

    /// The initial RAM disk's path in the bundle.
    pub fn packed_initrd(&self) -> String {
        format!("{}/initrd", self.name)
    }
}

/// Reads a `guests.toml`; relative files are beside it.
///
/// # Errors
/// Names the file, the line, the key and what was expected there.
pub fn read(file: &Path) -> Result<Vec<Guest>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new("."));
    parse(&text, &file.display().to_string(), folder)
}

fn parse(text: &str, file: &str, folder: &Path) -> Result<Vec<Guest>> {
    let at = |span: Range<usize>| {
        let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
        format!("{file}:{line}")
    };
    let read: File = match toml::from_str(text) {
        Ok(read) => read,
        Err(error) => {
            let place = error.span().map_or_else(|| file.to_string(), at);
            bail!("{place}: {}", error.message().replace('\n', "; "));
        }
    };
    if read.guest.get_ref().is_empty() {
        bail!(
            "{}: `guest` is empty: expected at least one [[guest]]",
            at(read.guest.span())
        );
    }
    let mut guests: Vec<Guest> = Vec::new();
    for entry in read.guest.into_inner() {
        let entry = entry.into_inner();
        let place = at(entry.name.span());
        let name = entry.name.into_inner();
        check_name(&name).with_context(|| place.clone())?;
        if guests.iter().any(|guest| guest.name == name) {
            bail!("{place}: `name`: there are two guests `{name}`: expected names that differ");
        }
        let place = at(entry.vcpus.span());
        let vcpus = entry.vcpus.into_inner();
        if vcpus == 0 {
            bail!("{place}: `vcpus` of guest `{name}` is 0: expected 1 or more");
        }
        let found = |key: &str, path: Spanned<PathBuf>| {
            let place = at(path.span());
            let path = folder.join(path.into_inner());
            if !path.is_file() {
                bail!(
                    "{place}: `{key}` of guest `{name}`: there is no file {}",
                    path.display()
                );
            }
            Ok(path)
        };
        guests.push(Guest {
            kernel: found("kernel", entry.kernel)?,
            initrd: entry.initrd.map(|path| found("initrd", path)).transpose()?,
            cmdline: entry.cmdline,
            memory: entry.memory,
            vcpus,
            mode: entry.mode,
            console: entry.console,
            strict: entry.strict,
            entry: entry.entry,
            name,
        });
    }
    Ok(guests)
}

fn check_name(name: &str) -> Result<()> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.starts_with('.') || name.len() > 32 || !name.bytes().all(ok) {
        bail!(
            "`name` is `{name}`: expected up to 32 letters, digits, `-`, `_` \
             or `.`, not beginning with `.`"
        );
    }
    Ok(())
}

/// The `guests.toml` that goes into the bundle of these guests.
///
/// # Errors
/// None in practice: every guest can be written as TOML.
pub fn packed(guests: &[Guest]) -> Result<String> {
    let guest = guests
        .iter()
        .map(|guest| PackedGuest {
            name: &guest.name,
            kernel: guest.packed_kernel(),
            initrd: guest.initrd.as_ref().map(|_| guest.packed_initrd()),
            cmdline: guest.cmdline.as_deref(),
            memory: guest.memory,
            vcpus: guest.vcpus,
            mode: guest.mode,
            console: guest.console,
            strict: guest.strict,
            entry: guest.entry,
        })
        .collect();
    toml::to_string(&Packed { guest }).context("cannot write guests.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[guest]]\nname = \"a\"\nkernel = \"Cargo.toml\"\n\
                        memory = \"512M\"\nvcpus = 2\n";

    fn read_text(text: &str) -> Result<Vec<Guest>> {
        parse(text, "guests.toml", Path::new(env!("CARGO_MANIFEST_DIR")))
    }

    #[test]
    fn a_guest_is_read_and_packed() {
        let guests = read_text(GOOD).expect("valid");
        assert_eq!(guests.len(), 1);
        assert_eq!(guests[0].memory, Size::mib(512));
        assert_eq!(guests[0].mode, Mode::Plain);
        let text = packed(&guests).expect("writes");
        assert_eq!(
            text,
            "[[guest]]\nname = \"a\"\nkernel = \"a/kernel\"\nmemory = \"512M\"\n\
             vcpus = 2\nmode = \"plain\"\n"
        );
    }

    #[test]
    fn mistakes_name_file_line_key_and_what_was_expected() {
        let twice = format!("{GOOD}\n{GOOD}");
        for (text, expected) in [
            (
                GOOD.replace("vcpus = 2", "vcpus = 0"),
                &[":5:", "`vcpus`", "1 or more"][..],
            ),
            (
                GOOD.replace("vcpus", "cpus"),
                &[":5:", "`cpus`", "expected one of"],
            ),
            (
                GOOD.replace("\"512M\"", "\"lots\""),
                &[":4:", "`lots`", "\"512M\""],
            ),
            (
                GOOD.replace("Cargo.toml", "none"),
                &[":3:", "`kernel`", "no file"],
            ),
            (
                GOOD.replace("\"a\"", "\"../a\""),
                &[":2:", "`name`", "expected"],
            ),
            (
                GOOD.replace("vcpus = 2", "mode = \"odd\""),
                &[":5:", "odd", "plain"],
            ),
            (GOOD.replace("vcpus = 2\n", ""), &[":1:", "vcpus"]),
            (twice, &[":8:", "`name`", "differ"]),
            ("guest = []\n".into(), &[":1:", "`guest`", "at least one"]),
            (String::new(), &["guest"]),
            ("[[guest]\n".into(), &[":1:"]),
        ] {
            let error = format!("{:#}", read_text(&text).expect_err(&text));
            assert!(error.starts_with("guests.toml"), "{error}");
            for part in expected {
                assert!(error.contains(part), "{part} not in: {error}");
            }
            assert!(!error.contains('\n'), "{error}");
        }
    }
}

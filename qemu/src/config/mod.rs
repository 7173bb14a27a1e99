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
//! | `cmdline` | text, at most 2047 bytes, optional |
//! | `memory` | such as `"512M"`, a multiple of 2M |
//! | `vcpus` | 1 to 64 |
//! | `mode` | `"plain"`, optional |
//! | `console` | `true` (default for the first guest) or `false`, optional; one guest at most |
//! | `strict` | `true`: stopped when it accesses what it does not have, optional |
//! | `entry` | address at which a raw binary begins, optional |

pub mod places;

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use self::places::Places;
use crate::guests::catalogue;
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

/// The unit that a guest's memory is counted in: what one level-2 block of the 4K
/// granule covers (`host-loader`'s `MEMORY_UNIT`).
const MEMORY_UNIT: u64 = 2 << 20;

/// The most vCPUs that a guest can have: EL2 has indices for so many
/// (`hyp::realm::MAX_RECS`).
pub const MAX_VCPUS: u32 = 64;

/// The longest command line: an arm64 Linux has 2048 bytes for it and its end
/// (`COMMAND_LINE_SIZE`).
const MAX_CMDLINE: usize = 2047;

/// What is wrong with an amount of a guest's memory.
///
/// # Errors
/// When no guest can have it; the message says what is expected.
pub fn check_memory(memory: Size) -> Result<()> {
    if !memory.bytes().is_multiple_of(MEMORY_UNIT) {
        bail!("{memory} of memory: expected a multiple of 2M, such as \"512M\"");
    }
    Ok(())
}

/// What is wrong with a number of a guest's vCPUs.
///
/// # Errors
/// When no guest can have so many; the message says what is expected.
pub fn check_vcpus(vcpus: u32) -> Result<()> {
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        bail!("{vcpus} vCPUs: expected 1 to {MAX_VCPUS}");
    }
    Ok(())
}

/// What is wrong with a kernel's command line.
///
/// # Errors
/// When no kernel can take it; the message says what is expected.
pub fn check_cmdline(cmdline: &str) -> Result<()> {
    if cmdline.contains('\0') {
        bail!("a command line with a NUL, where it would end: expected text");
    }
    if cmdline.len() > MAX_CMDLINE {
        bail!(
            "a command line of {} bytes: expected at most {MAX_CMDLINE}, a kernel takes no more",
            cmdline.len()
        );
    }
    Ok(())
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
    cmdline: Option<Spanned<String>>,
    memory: Spanned<Size>,
    vcpus: Spanned<u32>,
    #[serde(default)]
    mode: Mode,
    console: Option<Spanned<bool>>,
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
pub fn read(file: &Path) -> Result<(Vec<Guest>, Places)> {
    let bytes = fs::read(file).with_context(|| match file.to_str() {
        // The two options are easily taken for each other.
        Some(name) if catalogue::find(name).is_ok() && !file.exists() => format!(
            "--guests takes a guests.toml; the guest of that name is --guest {name}: cannot \
             read {name}"
        ),
        _ => format!("cannot read {}", file.display()),
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..valid];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        anyhow!("{}:{line}: not UTF-8 text", file.display())
    })?;
    let folder = file.parent().unwrap_or(Path::new("."));
    parse(&text, &file.display().to_string(), folder)
}

fn parse(text: &str, file: &str, folder: &Path) -> Result<(Vec<Guest>, Places)> {
    let reader = Reader { text, file, folder };
    let read: File = match toml::from_str(text) {
        Ok(read) => read,
        Err(error) => {
            let place = error
                .span()
                .map_or_else(|| file.to_string(), |span| reader.at(span));
            bail!("{place}: {}", error.message().replace('\n', "; "));
        }
    };
    if read.guest.get_ref().is_empty() {
        bail!(
            "{}: `guest` is empty: expected at least one [[guest]]",
            reader.at(read.guest.span())
        );
    }
    let mut guests: Vec<Guest> = Vec::new();
    // What the file alone tells comes first, then what else is there.
    let mut files = Vec::new();
    for entry in read.guest.into_inner() {
        let entry = entry.into_inner();
        reader.beside(&entry, &guests)?;
        reader.settings(&entry)?;
        let (guest, of_guest) = reader.guest(entry);
        guests.push(guest);
        files.extend(of_guest);
    }
    for (file, setting) in files {
        check_file(&file).context(setting)?;
    }
    Ok((guests, Places::in_file(text, file)))
}

struct Reader<'a> {
    text: &'a str,
    /// The file's name, for messages.
    file: &'a str,
    /// Where relative files are.
    folder: &'a Path,
}

impl Reader<'_> {
    fn at(&self, span: Range<usize>) -> String {
        let before = &self.text[..span.start.min(self.text.len())];
        format!("{}:{}", self.file, before.matches('\n').count() + 1)
    }

    /// A setting and where it stands, to begin a message with.
    fn setting<T>(&self, guest: &str, key: &str, value: &Spanned<T>) -> String {
        format!("{}: `{key}` of guest `{guest}`", self.at(value.span()))
    }

    /// What is wrong with a guest beside those before it.
    fn beside(&self, entry: &Entry, others: &[Guest]) -> Result<()> {
        let name = entry.name.get_ref();
        if others.iter().any(|guest| guest.name == *name) {
            bail!(
                "{}: `name`: there are two guests `{name}`: expected names that differ",
                self.at(entry.name.span())
            );
        }
        let owner = others.iter().find(|guest| guest.console == Some(true));
        if let (Some(console), Some(owner)) = (&entry.console, owner)
            && *console.get_ref()
        {
            bail!(
                "{}: guest `{}` has the console already: expected one at most",
                self.setting(name, "console", console),
                owner.name
            );
        }
        Ok(())
    }

    /// What is wrong with a guest's settings by themselves.
    fn settings(&self, entry: &Entry) -> Result<()> {
        let name = entry.name.get_ref();
        check_name(name).with_context(|| self.at(entry.name.span()))?;
        check_vcpus(*entry.vcpus.get_ref())
            .with_context(|| self.setting(name, "vcpus", &entry.vcpus))?;
        check_memory(*entry.memory.get_ref())
            .with_context(|| self.setting(name, "memory", &entry.memory))?;
        if let Some(cmdline) = &entry.cmdline {
            check_cmdline(cmdline.get_ref())
                .with_context(|| self.setting(name, "cmdline", cmdline))?;
        }
        Ok(())
    }

    /// The guest, and its files with the settings that name them.
    fn guest(&self, entry: Entry) -> (Guest, Vec<(PathBuf, String)>) {
        let name = entry.name.into_inner();
        let mut files = Vec::new();
        let mut file = |key: &str, path: Spanned<PathBuf>| {
            let file = self.folder.join(path.get_ref());
            files.push((file.clone(), self.setting(&name, key, &path)));
            file
        };
        let kernel = file("kernel", entry.kernel);
        let initrd = entry.initrd.map(|path| file("initrd", path));
        let guest = Guest {
            kernel,
            initrd,
            cmdline: entry.cmdline.map(Spanned::into_inner),
            memory: entry.memory.into_inner(),
            vcpus: entry.vcpus.into_inner(),
            mode: entry.mode,
            console: entry.console.map(Spanned::into_inner),
            strict: entry.strict,
            entry: entry.entry,
            name,
        };
        (guest, files)
    }
}

/// What is wrong with a file that a guest is to get.
///
/// # Errors
/// When there is none, or it is empty.
pub fn check_file(path: &Path) -> Result<()> {
    let Ok(file) = path.metadata() else {
        bail!("there is no file {}", path.display());
    };
    if !file.is_file() {
        bail!("{} is no file", path.display());
    }
    if file.len() == 0 {
        bail!("{} is empty", path.display());
    }
    Ok(())
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
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        parse(text, "guests.toml", folder).map(|(guests, _)| guests)
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
                &[":5:", "`vcpus`", "expected 1 to 64"][..],
            ),
            (
                GOOD.replace("vcpus = 2", "vcpus = 65"),
                &[":5:", "`vcpus`", "65", "expected 1 to 64"],
            ),
            (
                GOOD.replace("512M", "129M"),
                &[":4:", "`memory`", "129M", "multiple of 2M"],
            ),
            (
                GOOD.replace("512M", "1K"),
                &[":4:", "`memory`", "1K", "multiple of 2M"],
            ),
            (
                GOOD.replace("vcpus", "cmdline = \"a\\u0000b\"\nvcpus"),
                &[":5:", "`cmdline`", "NUL"],
            ),
            (
                GOOD.replace(
                    "vcpus",
                    &format!("cmdline = \"{}\"\nvcpus", "x".repeat(2048)),
                ),
                &[":5:", "`cmdline`", "2048", "2047"],
            ),
            (
                format!(
                    "{GOOD}console = true\n{}console = true\n",
                    GOOD.replace("\"a\"", "\"b\"")
                ),
                &[":12:", "`console`", "`b`", "`a`"],
            ),
            (
                GOOD.replace("Cargo.toml", "src"),
                &[":3:", "`kernel`", "is no file"],
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

//! The guests of a run, and the `guests.toml` that names them: the schema of both
//! is crate `guest-config`'s, which the host reads the bundle's file by, too. Here
//! it is read for the user's sake, so that a mistake is told before a machine
//! starts; relative files are beside it.

pub mod places;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use guest_config::check;
pub use guest_config::check::MAX_VCPUS;
pub use guest_config::{Measure, Mode, Populate};

use self::places::Places;
use crate::guests::catalogue;
use crate::size::Size;

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
    /// What of a realm is measured; all of it by default.
    pub measure: Option<Measure>,
    /// A realm's personalization value, hexadecimal; zero by default.
    pub personalization: Option<String>,
    /// Bits of its IPA space; as few as its memory takes by default.
    pub ipa_bits: Option<u32>,
    /// Where the walk of its stage 2 starts; the host decides by default.
    pub start_level: Option<i64>,
    /// IPA of its memory; as on QEMU's virt machine by default.
    pub ram_base: Option<u64>,
    /// When it gets its memory; the host decides by default.
    pub populate: Option<Populate>,
    /// Whether its console is the machine's; the first guest's is by default.
    pub console: Option<bool>,
    /// Whether it is stopped when it accesses what it does not have.
    pub strict: bool,
    /// Where a raw binary is loaded.
    pub load: Option<u64>,
    /// Where a raw binary is entered.
    pub entry: Option<u64>,
}

impl Guest {
    /// A plain guest of one vCPU, and all else as the file has it by default.
    pub fn new(name: impl Into<String>, kernel: impl Into<PathBuf>, memory: Size) -> Self {
        Self {
            name: name.into(),
            kernel: kernel.into(),
            initrd: None,
            cmdline: None,
            memory,
            vcpus: 1,
            mode: Mode::Plain,
            measure: None,
            personalization: None,
            ipa_bits: None,
            start_level: None,
            ram_base: None,
            populate: None,
            console: None,
            strict: false,
            load: None,
            entry: None,
        }
    }

    /// The kernel's path in the bundle.
    pub fn packed_kernel(&self) -> String {
        format!("{}/kernel", self.name)
    }

    /// The initial RAM disk's path in the bundle.
    pub fn packed_initrd(&self) -> String {
        format!("{}/initrd", self.name)
    }

    /// The guest as the bundle's file has it.
    fn packed(&self) -> guest_config::Guest {
        guest_config::Guest {
            name: self.name.clone(),
            kernel: self.packed_kernel(),
            initrd: self.initrd.as_ref().map(|_| self.packed_initrd()),
            cmdline: self.cmdline.clone().unwrap_or_default(),
            memory: self.memory.bytes(),
            vcpus: self.vcpus,
            mode: self.mode,
            measure: self.measure,
            personalization: self.personalization.clone(),
            ipa_bits: self.ipa_bits,
            start_level: self.start_level,
            ram_base: self.ram_base,
            populate: self.populate,
            console: self.console,
            strict: self.strict,
            load: self.load,
            entry: self.entry,
        }
    }
}

/// What is wrong with an amount of a guest's memory.
///
/// # Errors
/// When no guest can have it; the message says what is expected.
pub fn check_memory(memory: Size) -> Result<()> {
    check::memory(memory.bytes()).map_err(|what| anyhow!(what))
}

/// What is wrong with a number of a guest's vCPUs.
///
/// # Errors
/// When no guest can have so many; the message says what is expected.
pub fn check_vcpus(vcpus: u32) -> Result<()> {
    check::vcpus(vcpus.into())
        .map(drop)
        .map_err(|what| anyhow!(what))
}

/// What is wrong with a kernel's command line.
///
/// # Errors
/// When no kernel can take it; the message says what is expected.
pub fn check_cmdline(cmdline: &str) -> Result<()> {
    check::cmdline(cmdline).map_err(|what| anyhow!(what))
}

/// Reads a `guests.toml`; relative files are beside it.
///
/// # Errors
/// Names the file, the line, the column, the key and what was expected there.
pub fn read(file: &Path) -> Result<(Vec<Guest>, Places)> {
    let bytes = fs::read(file).with_context(|| match file.to_str() {
        // The two options are easily taken for each other.
        Some(name) if catalogue::find(name).is_ok() && !file.exists() => format!(
            "--guests takes a guests.toml; the guest of that name is --guest {name}: cannot \
             read {name}"
        ),
        _ => format!("cannot read {}", file.display()),
    })?;
    let folder = file.parent().unwrap_or(Path::new("."));
    parse(&bytes, &file.display().to_string(), folder)
}

fn parse(bytes: &[u8], file: &str, folder: &Path) -> Result<(Vec<Guest>, Places)> {
    let read = guest_config::parse(bytes).map_err(|error| anyhow!("{file}:{error}"))?;
    let places = Places::in_file(&read, file);
    let mut guests = Vec::new();
    for located in read {
        // What the file alone tells comes first, then what else is there.
        let found = |key: &str, path: &str| {
            let path = folder.join(path);
            let place = located.place(key);
            let name = &located.guest.name;
            check_packed(&path)
                .with_context(|| format!("{file}:{place}: `{key}` of guest `{name}`"))?;
            anyhow::Ok(path)
        };
        let guest = &located.guest;
        let kernel = found("kernel", &guest.kernel)?;
        let initrd = guest.initrd.as_deref();
        let initrd = initrd.map(|path| found("initrd", path)).transpose()?;
        guests.push(Guest {
            kernel,
            initrd,
            cmdline: (!guest.cmdline.is_empty()).then(|| guest.cmdline.clone()),
            memory: Size::of_bytes(guest.memory),
            vcpus: guest.vcpus,
            mode: guest.mode,
            measure: guest.measure,
            personalization: guest.personalization.clone(),
            ipa_bits: guest.ipa_bits,
            start_level: guest.start_level,
            ram_base: guest.ram_base,
            populate: guest.populate,
            console: guest.console,
            strict: guest.strict,
            load: guest.load,
            entry: guest.entry,
            name: located.guest.name,
        });
    }
    Ok((guests, places))
}

/// What is wrong with a file that a guest is to get.
///
/// # Errors
/// As [`check_file`], and when no archive holds it.
pub fn check_packed(path: &Path) -> Result<()> {
    let size = check_file(path)?;
    // Told before anything is built for it.
    if u32::try_from(size).is_err() {
        bail!(
            "{} is {} MiB large, and the archive that Undercroft gets holds files below 4096",
            path.display(),
            size >> 20
        );
    }
    Ok(())
}

/// The size of a file that is to be used, or what is wrong with it.
///
/// # Errors
/// When there is none, or it is empty.
pub fn check_file(path: &Path) -> Result<u64> {
    let Ok(file) = path.metadata() else {
        bail!("there is no file {}", path.display());
    };
    if !file.is_file() {
        bail!("{} is no file", path.display());
    }
    if file.len() == 0 {
        bail!("{} is empty", path.display());
    }
    Ok(file.len())
}

/// The `guests.toml` that goes into the bundle of these guests.
///
/// # Errors
/// None in practice: every guest can be written as TOML.
pub fn packed(guests: &[Guest]) -> Result<String> {
    let guests: Vec<_> = guests.iter().map(Guest::packed).collect();
    guest_config::write(&guests).context("cannot write guests.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[guest]]\nname = \"a\"\nkernel = \"Cargo.toml\"\n\
                        memory = \"512M\"\nvcpus = 2\n";

    fn read_text(text: &str) -> Result<Vec<Guest>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        parse(text.as_bytes(), "guests.toml", folder).map(|(guests, _)| guests)
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

    /// What the runner takes, the host takes from the bundle that it packs.
    #[test]
    fn every_form_of_every_key_comes_through_to_the_bundle() {
        let short = "[[guest]]\nname = \"a\"\nkernel = \"Cargo.toml\"\n";
        for (line, packed_as) in [
            ("", "memory = \"512M\"\nvcpus = 1\n"),
            ("memory = \"512MiB\"", "memory = \"512M\"\n"),
            ("memory = \"1T\"", "memory = \"1024G\"\n"),
            ("memory = \"1TiB\"", "memory = \"1024G\"\n"),
            ("memory = \"1g\"", "memory = \"1G\"\n"),
            ("memory = \"2048KiB\"", "memory = \"2M\"\n"),
            ("memory = \"2097152\"", "memory = \"2M\"\n"),
            ("vcpus = 64", "vcpus = 64\n"),
            ("load = 0x4020_0000", "load = 1075838976\n"),
            ("entry = 0x4020_0004", "entry = 1075838980\n"),
            ("initrd = \"src/main.rs\"", "initrd = \"a/initrd\"\n"),
            ("cmdline = \"x\"", "cmdline = \"x\"\n"),
            ("console = false", "console = false\n"),
            ("populate = \"lazy\"", "populate = \"lazy\"\n"),
            ("strict = true", "strict = true\n"),
            ("mode = \"plain\"", "mode = \"plain\"\n"),
        ] {
            let guests = read_text(&format!("{short}{line}\n")).expect(line);
            let text = packed(&guests).expect("writes");
            assert!(text.contains(packed_as), "{line}: {text}");
            let hosts = guest_config::parse(text.as_bytes()).expect(line);
            assert_eq!(hosts[0].guest, guests[0].packed(), "{line}");
        }
    }

    #[test]
    fn a_file_that_no_archive_holds_is_not_read() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let most = u64::from(u32::MAX);
        file.as_file().set_len(most).expect("a hole");
        check_packed(file.path()).expect("an archive holds it");
        file.as_file().set_len(most + 1).expect("a hole");
        let error = check_packed(file.path())
            .expect_err("too large")
            .to_string();
        assert!(error.contains("is 4096 MiB large"), "{error}");
    }

    #[test]
    fn mistakes_name_file_line_key_and_what_was_expected() {
        let twice = format!("{GOOD}\n{GOOD}");
        for (text, expected) in [
            (
                GOOD.replace("vcpus = 2", "vcpus = 0"),
                &[":5:9:", "vcpus = 0", "expected 1 to 64"][..],
            ),
            (
                GOOD.replace("vcpus = 2", "vcpus = 65"),
                &[":5:9:", "vcpus", "65", "expected 1 to 64"],
            ),
            (
                GOOD.replace("512M", "129M"),
                &[":4:10:", "memory", "129M", "multiple of 2M"],
            ),
            (
                GOOD.replace("512M", "1K"),
                &[":4:10:", "memory", "1K", "multiple of 2M"],
            ),
            (
                GOOD.replace("vcpus", "cmdline = \"a\\u0000b\"\nvcpus"),
                &[":5:11:", "cmdline", "zero byte"],
            ),
            (
                GOOD.replace(
                    "vcpus",
                    &format!("cmdline = \"{}\"\nvcpus", "x".repeat(2048)),
                ),
                &[":5:11:", "cmdline", "2048", "2047"],
            ),
            (
                format!(
                    "{GOOD}console = true\n{}console = true\n",
                    GOOD.replace("\"a\"", "\"b\"")
                ),
                &[":12:11:", "console", "\"b\"", "\"a\""],
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
                &[":4:10:", "\"lots\"", "\"512M\""],
            ),
            (
                GOOD.replace("Cargo.toml", "none"),
                &[":3:", "`kernel`", "no file"],
            ),
            (
                GOOD.replace("\"a\"", "\"../a\""),
                &[":2:8:", "name", "expected"],
            ),
            (
                GOOD.replace("vcpus = 2", "mode = \"odd\""),
                &[":5:", "odd", "plain"],
            ),
            (twice, &[":8:8:", "name", "of its own"]),
            (
                "guest = []\n".into(),
                &[":1:1:", "[[guest]]", "at least one"],
            ),
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

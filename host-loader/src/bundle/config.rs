//! `guests.toml`: which guests there are and what each gets.
//!
//! | key | value | default |
//! |---|---|---|
//! | `name` | how messages call it, unique | required |
//! | `kernel` | file in the bundle | required |
//! | `initrd` | file in the bundle | none |
//! | `cmdline` | the kernel's command line | empty |
//! | `memory` | `"512M"`: bytes with K, M, G or T | `"512M"` |
//! | `vcpus` | 1 to the machine's CPUs | 1 |
//! | `mode` | `"plain"` | `"plain"` |
//! | `console` | it owns the first UART | the first guest does |
//! | `strict` | it is stopped when it accesses what it does not have | `false` |
//! | `load` | IPA of a raw binary | RAM base + 512 KiB |
//! | `entry` | IPA where a raw binary starts | its first byte |
//!
//! Unknown keys are errors: a misspelt key must not be a silent default.

use super::CONFIG;
use super::quote::{Source, Value, Words};
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Deserialize;
use toml::Spanned;

/// A value and where it stands, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Line in `guests.toml`, from 1.
    pub line: usize,
    /// Its key.
    pub key: &'static str,
}

/// One guest as configured, checked as far as the file alone allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// How messages call it.
    pub name: String,
    /// Kernel file.
    pub kernel: Located<String>,
    /// Initrd file.
    pub initrd: Option<Located<String>>,
    /// Kernel command line.
    pub cmdline: String,
    /// Bytes of RAM, a multiple of 2 MiB.
    pub memory: Located<u64>,
    /// Number of vCPUs, at least 1.
    pub vcpus: Located<usize>,
    /// It owns the first UART.
    pub console: bool,
    /// It is stopped when it accesses what it does not have.
    pub strict: bool,
    /// IPA of a raw binary.
    pub load: Option<Located<u64>>,
    /// IPA where a raw binary starts.
    pub entry: Option<Located<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    guest: Vec<Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: Spanned<String>,
    kernel: Spanned<String>,
    initrd: Option<Spanned<String>>,
    #[serde(default)]
    cmdline: Option<Spanned<String>>,
    memory: Option<Spanned<String>>,
    vcpus: Option<Spanned<i64>>,
    mode: Option<Spanned<String>>,
    console: Option<Spanned<bool>>,
    #[serde(default)]
    strict: bool,
    load: Option<Spanned<i64>>,
    entry: Option<Spanned<i64>>,
}

/// The unit that guest memory is counted in: what one level-2 block of the 4K
/// granule covers.
pub const MEMORY_UNIT: u64 = 2 << 20;

/// Bytes of the longest command line that Linux on arm64 takes, without the zero
/// at its end (COMMAND_LINE_SIZE).
pub const MAX_CMDLINE: usize = 2047;

/// The most that the file may be long. Reading takes up to 20 MiB of the heap for
/// that (`tests/memory.rs`).
pub const MAX_LENGTH: usize = 64 << 10;

/// Reads a size: decimal digits, then K, M, G or T (of 1024) or nothing.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" | "KiB" => 10,
        "M" | "m" | "MiB" => 20,
        "G" | "g" | "GiB" => 30,
        "T" | "t" | "TiB" => 40,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads the configuration.
///
/// Errors are one sentence: `guests.toml:LINE: …`.
pub fn parse(bytes: &[u8]) -> Result<Vec<GuestConfig>, String> {
    if bytes.len() > MAX_LENGTH {
        return Err(format!(
            "{CONFIG}:1: the file is {} bytes long; expected at most {MAX_LENGTH}",
            bytes.len()
        ));
    }
    let text = core::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + count_lines(&bytes[..e.valid_up_to()]);
        format!("{CONFIG}:{line}: not UTF-8 text")
    })?;
    let file: File = toml::from_str(text).map_err(|e| {
        let start = e.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + count_lines(&bytes[..start]);
        let source = text.lines().nth(line - 1).unwrap_or("").trim();
        let message = e.message().trim().replace('\n', ", ");
        let message = Words(&message);
        if source.is_empty() {
            format!("{CONFIG}:{line}: {message}")
        } else {
            format!("{CONFIG}:{line}: {message}, in `{}`", Source(source))
        }
    })?;
    let reader = Reader { text };
    if file.guest.is_empty() {
        return Err(format!("{CONFIG}:1: no [[guest]]; at least one is needed"));
    }
    let mut guests: Vec<GuestConfig> = Vec::new();
    let mut console: Option<(bool, usize)> = None;
    for (index, table) in file.guest.into_iter().enumerate() {
        let wants = table.console.as_ref().map(|c| *c.as_ref());
        let line = table.console.as_ref().map_or(0, |c| reader.line(c));
        let name_line = reader.line(&table.name);
        let guest = reader.guest(table)?;
        if let Some(other) = guests.iter().find(|g| g.name == guest.name) {
            return Err(format!(
                "{CONFIG}:{name_line}: name = {:?}: two guests are called so; \
                 expected a name of its own for each",
                other.name
            ));
        }
        if wants == Some(true) {
            if let Some((true, first)) = console {
                return Err(format!(
                    "{CONFIG}:{line}: console = true: guest \"{}\" owns the console already; \
                     expected one at most",
                    guests[first].name
                ));
            }
            console = Some((true, index));
        } else if wants.is_none() && console.is_none() && index == 0 {
            console = Some((false, index));
        }
        guests.push(guest);
    }
    if let Some((_, owner)) = console {
        guests[owner].console = true;
    }
    Ok(guests)
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&b| b == b'\n').count()
}

struct Reader<'a> {
    text: &'a str,
}

impl Reader<'_> {
    fn line<T>(&self, value: &Spanned<T>) -> usize {
        let start = value.span().start.min(self.text.len());
        1 + count_lines(&self.text.as_bytes()[..start])
    }

    fn located<T>(&self, key: &'static str, value: Spanned<T>) -> Located<T> {
        Located {
            line: self.line(&value),
            value: value.into_inner(),
            key,
        }
    }

    fn address(&self, key: &'static str, value: Spanned<i64>) -> Result<Located<u64>, String> {
        let at = self.located(key, value);
        let value = u64::try_from(at.value).map_err(|_| {
            format!(
                "{CONFIG}:{}: {key} = {}: expected an address",
                at.line, at.value
            )
        })?;
        Ok(Located {
            value,
            line: at.line,
            key,
        })
    }

    fn guest(&self, table: Table) -> Result<GuestConfig, String> {
        let name_line = self.line(&table.name);
        let name = table.name.into_inner();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            return Err(format!(
                "{CONFIG}:{name_line}: name = {}: expected 1 to 32 letters, digits, -, _ or .",
                Value(&name)
            ));
        }
        let fail =
            |line: usize, what: String| Err(format!("{CONFIG}:{line}: guest \"{name}\": {what}"));
        if let Some(mode) = table.mode {
            let mode = self.located("mode", mode);
            match mode.value.as_str() {
                "plain" => {}
                "protected" | "realm" => {
                    return fail(
                        mode.line,
                        format!(
                            "mode = \"{}\" is not supported yet; use \"plain\"",
                            mode.value
                        ),
                    );
                }
                other => {
                    let other = Value(other);
                    return fail(mode.line, format!("mode = {other}: expected \"plain\""));
                }
            }
        }
        let memory = match table.memory {
            None => Located {
                value: 512 << 20,
                line: name_line,
                key: "memory",
            },
            Some(text) => {
                let text = self.located("memory", text);
                match size(&text.value) {
                    Some(bytes) if bytes > 0 && bytes.is_multiple_of(MEMORY_UNIT) => Located {
                        value: bytes,
                        line: text.line,
                        key: "memory",
                    },
                    _ => {
                        return fail(
                            text.line,
                            format!(
                                "memory = {}: expected a multiple of 2M, such as \"512M\"",
                                Value(&text.value)
                            ),
                        );
                    }
                }
            }
        };
        let vcpus = match table.vcpus {
            None => Located {
                value: 1,
                line: name_line,
                key: "vcpus",
            },
            Some(count) => {
                let count = self.located("vcpus", count);
                match usize::try_from(count.value) {
                    Ok(value) if value > 0 => Located {
                        value,
                        line: count.line,
                        key: "vcpus",
                    },
                    _ => {
                        return fail(
                            count.line,
                            format!("vcpus = {}: expected at least 1", count.value),
                        );
                    }
                }
            }
        };
        let cmdline = match table.cmdline {
            None => String::new(),
            Some(text) => {
                let text = self.located("cmdline", text);
                if text.value.contains('\0') {
                    return fail(text.line, "cmdline holds a zero byte".to_owned());
                }
                if text.value.len() > MAX_CMDLINE {
                    let length = text.value.len();
                    return fail(
                        text.line,
                        format!(
                            "cmdline is {length} bytes long: expected at most {MAX_CMDLINE}, \
                             which is what Linux takes"
                        ),
                    );
                }
                text.value
            }
        };
        Ok(GuestConfig {
            kernel: self.located("kernel", table.kernel),
            initrd: table.initrd.map(|file| self.located("initrd", file)),
            cmdline,
            memory,
            vcpus,
            console: false,
            strict: table.strict,
            load: table.load.map(|at| self.address("load", at)).transpose()?,
            entry: table
                .entry
                .map(|at| self.address("entry", at))
                .transpose()?,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err()
    }

    const MINIMAL: &str = "[[guest]]\nname = \"a\"\nkernel = \"k\"\n";

    #[test]
    fn defaults() {
        let guests = parse(MINIMAL.as_bytes()).unwrap();
        assert_eq!(guests.len(), 1);
        let guest = &guests[0];
        assert_eq!(guest.memory.value, 512 << 20);
        assert_eq!(guest.vcpus.value, 1);
        assert!(guest.console);
        assert_eq!(guest.kernel.line, 3);
    }

    #[test]
    fn messages_name_line_key_and_what_was_expected() {
        for (line, parts) in [
            (
                "memroy = \"1G\"",
                &["guests.toml:4", "memroy", "memory"][..],
            ),
            ("memory = \"1X\"", &["guests.toml:4", "memory", "512M"]),
            ("memory = \"1M\"", &["guests.toml:4", "2M"]),
            ("memory = 5", &["guests.toml:4", "string", "memory = 5"]),
            ("vcpus = 0", &["guests.toml:4", "vcpus = 0", "at least 1"]),
            ("vcpus = -1", &["guests.toml:4", "vcpus = -1"]),
            ("vcpus = \"2\"", &["guests.toml:4", "vcpus"]),
            ("mode = \"realm\"", &["guests.toml:4", "not supported yet"]),
            ("mode = \"fast\"", &["guests.toml:4", "fast", "plain"]),
            ("load = -4", &["guests.toml:4", "load", "address"]),
            ("name = \"b\"", &["guests.toml:4", "name"]),
            ("cmdline = \"a", &["guests.toml:4"]),
        ] {
            let message = error(&format!("{MINIMAL}{line}\n"));
            for part in parts {
                assert!(message.contains(part), "{line}: {message}");
            }
            assert!(!message.contains('\n'), "{message}");
        }
        let cmdline = |length: usize| format!("{MINIMAL}cmdline = \"{}\"\n", "x".repeat(length));
        let long = error(&cmdline(MAX_CMDLINE + 1));
        assert!(
            long.starts_with("guests.toml:4") && long.contains("2048"),
            "{long}"
        );
        assert!(long.contains("guest \"a\": cmdline"), "{long}");
        assert!(parse(cmdline(MAX_CMDLINE).as_bytes()).is_ok());
        let zero = error(&format!("{MINIMAL}cmdline = \"a\\u0000b\"\n"));
        assert!(
            zero.starts_with("guests.toml:4") && zero.contains("zero"),
            "{zero}"
        );
        assert!(error("").contains("[[guest]]"));
        assert!(error("[[guest]]\nname=\"a\"\n").contains("kernel"));
        assert!(error("[[guest]]\nname=\"a b\"\nkernel=\"k\"\n").contains("guests.toml:2"));
        let twice = error(&format!("{MINIMAL}{MINIMAL}"));
        assert!(twice.starts_with("guests.toml:5: name"), "{twice}");
        assert!(parse(b"a\n\xff").unwrap_err().contains("guests.toml:2"));
    }

    #[test]
    fn one_guest_owns_the_console() {
        let two = |a: &str, b: &str| {
            parse(format!("{MINIMAL}{a}\n[[guest]]\nname=\"b\"\nkernel=\"k\"\n{b}\n").as_bytes())
                .map(|g| (g[0].console, g[1].console))
        };
        assert_eq!(two("", ""), Ok((true, false)));
        assert_eq!(two("", "console = true"), Ok((false, true)));
        assert_eq!(two("console = false", ""), Ok((false, false)));
        assert_eq!(two("console = false", "console = true"), Ok((false, true)));
        assert!(
            two("console = true", "console = true")
                .unwrap_err()
                .contains("console")
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512M"), Some(512 << 20));
        assert_eq!(size("2GiB"), Some(2 << 30));
        assert_eq!(size("77"), Some(77));
        for bad in ["", "M", "1.5G", "-1", "1MM", "+1", "99999999999T"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_guests_or_one_line(text in "(\\[\\[guest\\]\\]\n)?([a-z]{1,8} = (\"[^\"]{0,5}\"|[0-9-]{1,4})\n){0,6}.{0,20}") {
            match parse(text.as_bytes()) {
                Ok(guests) => prop_assert!(!guests.is_empty()),
                Err(message) => prop_assert!(message.starts_with(CONFIG), "{}", message),
            }
        }
    }
}

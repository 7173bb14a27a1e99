//! cpio archives in the `newc` format (Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Strict where it matters: an archive that ends in the middle of a member, or
//! before its trailer, is an error with the place; it is never half an archive.
//! Archives may follow each other, with zeroes between, as boot loaders and
//! build tools join them; a later file of the same name wins.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use guest_config::quote::Value;

const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";

/// The most files of an archive: they are listed.
const MAX_FILES: usize = 16 << 10;

/// Why an archive is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpioError {
    /// It holds nothing at all.
    Empty,
    /// No `newc` header where one must be.
    Magic(usize),
    /// A header field that is no hexadecimal number.
    Number(usize),
    /// It ends inside the header or the name at this offset.
    Truncated(usize),
    /// It ends inside this file, named as in messages; its header is at this
    /// offset.
    TruncatedFile(usize, String),
    /// It ends at this offset, without the trailer.
    NoTrailer(usize),
    /// A member's name is not plain UTF-8 text ended by a zero byte.
    Name(usize),
    /// It holds more files than are listed.
    Files,
}

impl fmt::Display for CpioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the initrd is empty; expected a cpio archive (newc)"),
            Self::Magic(at) => write!(
                f,
                "no cpio newc header at byte {at}; make it with `cpio -H newc`, uncompressed"
            ),
            Self::Number(at) => write!(f, "the cpio header at byte {at} is corrupt"),
            Self::Truncated(at) => write!(
                f,
                "the cpio archive is cut off inside the member at byte {at}"
            ),
            Self::TruncatedFile(at, name) => write!(
                f,
                "the cpio archive is cut off inside {name}, the member at byte {at}"
            ),
            Self::NoTrailer(at) => write!(
                f,
                "the cpio archive is cut off: it ends at byte {at} without its trailer"
            ),
            Self::Name(at) => write!(
                f,
                "the member at byte {at} of the cpio archive has no plain UTF-8 name"
            ),
            Self::Files => write!(
                f,
                "the cpio archive holds more than {MAX_FILES} files; the guests' own \
                 go into their initrds"
            ),
        }
    }
}

/// The files of an archive, by reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive<'a> {
    files: Vec<(&'a str, &'a [u8])>,
}

fn field(header: &[u8], index: usize) -> Option<usize> {
    let text = header.get(6 + index * 8..14 + index * 8)?;
    // from_str_radix would take a sign.
    if !text.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    usize::from_str_radix(core::str::from_utf8(text).ok()?, 16).ok()
}

impl<'a> Archive<'a> {
    /// Reads all members.
    ///
    /// Errors name the byte at which the archive stops making sense.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CpioError> {
        let mut files = Vec::new();
        let mut at = 0;
        let mut members = 0;
        loop {
            // Between archives, and behind the last, zeroes may stand.
            let rest = &bytes[at..];
            if members == 0 {
                match rest.iter().position(|&b| b != 0) {
                    Some(zeroes) => at += zeroes,
                    None if files.is_empty() && at == 0 => return Err(CpioError::Empty),
                    None => return Ok(Self { files }),
                }
            } else if rest.is_empty() {
                return Err(CpioError::NoTrailer(at));
            }
            let header = match bytes[at..].get(..HEADER) {
                Some(header) => header,
                None if bytes[at..].starts_with(b"07070") => return Err(CpioError::Truncated(at)),
                None => return Err(CpioError::Magic(at)),
            };
            if !matches!(&header[..6], b"070701" | b"070702") {
                return Err(CpioError::Magic(at));
            }
            let number = |index| field(header, index).ok_or(CpioError::Number(at));
            let mode = number(1)?;
            let size = number(6)?;
            let name_size = number(11)?;
            let truncated = || CpioError::Truncated(at);
            let name_at = at + HEADER;
            let name_end = name_at.checked_add(name_size).ok_or_else(truncated)?;
            let name = bytes.get(name_at..name_end).ok_or_else(truncated)?;
            let name = name
                .strip_suffix(b"\0")
                .and_then(|name| core::str::from_utf8(name).ok())
                .filter(|name| !name.contains(char::is_control))
                .ok_or(CpioError::Name(at))?;
            let data_at = name_end.next_multiple_of(4);
            let truncated = || CpioError::TruncatedFile(at, Value(trim(name)).to_string());
            let data_end = data_at.checked_add(size).ok_or_else(truncated)?;
            if name == TRAILER {
                members = 0;
                at = data_end.next_multiple_of(4).min(bytes.len());
                continue;
            }
            let data = bytes.get(data_at..data_end).ok_or_else(truncated)?;
            members += 1;
            const REGULAR: usize = 0o100_000;
            if mode & 0o170_000 == REGULAR {
                if files.len() == MAX_FILES {
                    return Err(CpioError::Files);
                }
                files.push((trim(name), data));
            }
            at = data_end.next_multiple_of(4);
            if at > bytes.len() {
                return Err(CpioError::NoTrailer(bytes.len()));
            }
        }
    }

    /// The content of a file, by its path without a leading `/` or `./`.
    pub fn file(&self, name: &str) -> Option<&'a [u8]> {
        let name = trim(name);
        self.files
            .iter()
            .rev()
            .find(|(n, _)| *n == name)
            .map(|(_, data)| *data)
    }
}

fn trim(name: &str) -> &str {
    name.trim_start_matches("./").trim_start_matches('/')
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::format;
    use std::string::String;
    use std::vec;

    /// An archive with these files, in the way of the specification.
    pub(crate) fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        let trailer: (&str, &[u8]) = (TRAILER, &[]);
        for (name, data) in files.iter().chain([&trailer]) {
            let mode = if *name == TRAILER { 0 } else { 0o100_644 };
            out.extend(b"070701");
            for value in [
                1,
                mode,
                0,
                0,
                1,
                0,
                data.len(),
                0,
                0,
                0,
                0,
                name.len() + 1,
                0,
            ] {
                out.extend(format!("{value:08X}").bytes());
            }
            out.extend(name.bytes());
            out.push(0);
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(*data);
            out.resize(out.len().next_multiple_of(4), 0);
        }
        out
    }

    #[test]
    fn nothing_and_rubbish_are_told_apart() {
        assert_eq!(Archive::parse(&[]), Err(CpioError::Empty));
        assert_eq!(Archive::parse(&[0; 512]), Err(CpioError::Empty));
        assert_eq!(Archive::parse(b"\x1f\x8bgzip"), Err(CpioError::Magic(0)));
        let mut bytes = archive(&[("a", b"b")]);
        bytes[20] = b'x';
        assert_eq!(Archive::parse(&bytes), Err(CpioError::Number(0)));
        bytes[20] = b'+';
        assert_eq!(Archive::parse(&bytes), Err(CpioError::Number(0)));
    }

    #[test]
    fn a_name_that_would_break_a_message_is_none() {
        assert_eq!(
            Archive::parse(&archive(&[("a\nb", b"c")])),
            Err(CpioError::Name(0))
        );
    }

    #[test]
    fn the_later_archive_wins_and_paths_may_start_with_a_dot() {
        let mut bytes = archive(&[("./guests.toml", b"old"), ("k", b"kernel")]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(archive(&[("guests.toml", b"new")]));
        let archive = Archive::parse(&bytes).unwrap();
        assert_eq!(archive.file("guests.toml"), Some(&b"new"[..]));
        assert_eq!(archive.file("/k"), Some(&b"kernel"[..]));
        assert_eq!(archive.file("l"), None);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            files in prop::collection::btree_map(
                "[a-z]{1,9}(/[a-z.]{1,5}){0,2}", prop::collection::vec(any::<u8>(), 0..99), 0..9),
            pad in 0usize..600,
        ) {
            let files: BTreeMap<String, Vec<u8>> = files;
            let list: Vec<_> = files.iter().map(|(n, d)| (n.as_str(), d.as_slice())).collect();
            let mut bytes = archive(&list);
            bytes.extend(vec![0; pad]);
            let archive = Archive::parse(&bytes).unwrap();
            for (name, data) in &files {
                prop_assert_eq!(archive.file(name), Some(data.as_slice()));
            }
        }

        #[test]
        fn a_cut_archive_is_an_error(size in 0usize..200, cut in 1usize..400) {
            let data = vec![7u8; size];
            let bytes = archive(&[("kernel", &data), ("guests.toml", b"x")]);
            // Up to the trailer's name; its padding is not missed.
            let whole = bytes.len() - 1 - (124 - 121);
            let cut = whole.saturating_sub(cut);
            prop_assert!(Archive::parse(&bytes[..cut]).is_err());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), keep: bool) {
            let mut all = if keep { archive(&[("a", b"0123")]) } else { Vec::new() };
            for (i, b) in bytes.iter().enumerate().filter(|(_, b)| **b > 240) {
                let n = all.len().max(1);
                if let Some(slot) = all.get_mut(i * 7 % n) { *slot = *b; }
            }
            all.extend(&bytes);
            let _ = Archive::parse(&all);
        }
    }
}

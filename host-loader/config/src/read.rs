//! The file, read: from text to guests, and to one sentence about what is wrong.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Deserialize;
use toml::Spanned;

use super::quote::{Source, Value, Words};
use super::{DEFAULT_MEMORY, Error, Guest, Located, MAX_LENGTH, Mode, Place, check, size};

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
    cmdline: Option<Spanned<String>>,
    memory: Option<Spanned<String>>,
    vcpus: Option<Spanned<i64>>,
    mode: Option<Spanned<String>>,
    measure: Option<Spanned<String>>,
    personalization: Option<Spanned<String>>,
    ipa_bits: Option<Spanned<i64>>,
    start_level: Option<Spanned<i64>>,
    ram_base: Option<Spanned<i64>>,
    populate: Option<Spanned<String>>,
    console: Option<Spanned<bool>>,
    strict: Option<Spanned<bool>>,
    load: Option<Spanned<i64>>,
    entry: Option<Spanned<i64>>,
}

/// Reads the file: at least one guest.
///
/// # Errors
/// What is wrong with it, and where.
pub fn parse(bytes: &[u8]) -> Result<Vec<Located>, Error> {
    let begin = Mark::BEGIN.place;
    if bytes.len() > MAX_LENGTH {
        return Err(Error {
            place: begin,
            what: format!(
                "the file is {} bytes long; expected at most {MAX_LENGTH}",
                bytes.len()
            ),
        });
    }
    let text = core::str::from_utf8(bytes).map_err(|e| {
        let (valid, _) = bytes.split_at(e.valid_up_to());
        let valid = core::str::from_utf8(valid).unwrap_or("");
        Error {
            place: Mark::BEGIN.at(valid, valid.len()).place,
            what: "not UTF-8 text".to_string(),
        }
    })?;
    let file: File = toml::from_str(text).map_err(|e| not_a_file(text, &e))?;
    if file.guest.is_empty() {
        return Err(Error {
            place: begin,
            what: "no [[guest]]; at least one is needed".to_string(),
        });
    }
    let mut guests: Vec<Located> = Vec::new();
    let mut from = Mark::BEGIN;
    for table in file.guest {
        let mut reader = Reader {
            text,
            from,
            to: from,
            name: String::new(),
            places: Vec::new(),
        };
        let guest = reader.guest(table)?;
        reader.beside(&guest, &guests)?;
        from = reader.to;
        let mut places = reader.places;
        places.shrink_to_fit();
        guests.push(Located { guest, places });
    }
    Ok(guests)
}

/// What the parser calls as Rust does, and what it is to who writes the file. Guests
/// are its only sequence.
const NAMES: [(&str, &str); 4] = [
    ("invalid type: map", "invalid type: one table"),
    ("expected a sequence", "expected [[guest]]"),
    (" as i128", ""),
    ("expected i64", "expected a whole number"),
];

/// What the parser says, with the line that it says it of.
fn not_a_file(text: &str, error: &toml::de::Error) -> Error {
    let at = error.span().map_or(0, |span| span.start);
    let place = Mark::BEGIN.at(text, at).place;
    let source = text.lines().nth(place.line as usize - 1).unwrap_or("");
    let mut message = error.message().trim().replace('\n', ", ");
    for (theirs, ours) in NAMES {
        message = message.replace(theirs, ours);
    }
    let message = Words(&message);
    let what = match source.trim() {
        "" => format!("{message}"),
        source => format!("{message}, in `{}`", Source(source)),
    };
    Error { place, what }
}

/// A byte of the text, and its place.
#[derive(Clone, Copy)]
struct Mark {
    offset: usize,
    place: Place,
}

impl Mark {
    const BEGIN: Self = Self {
        offset: 0,
        place: Place { line: 1, column: 1 },
    };

    /// The byte at `offset`, counted from here if it is not before.
    fn at(self, text: &str, offset: usize) -> Self {
        let mut end = offset.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let from = if end < self.offset { Self::BEGIN } else { self };
        let Place { line, column } = from.place;
        let between = &text[from.offset..end];
        let place = match between.rsplit_once('\n') {
            Some((before, last)) => Place {
                line: line + 1 + before.bytes().filter(|&b| b == b'\n').count() as u32,
                column: 1 + last.chars().count() as u32,
            },
            None => Place {
                line,
                column: column + between.chars().count() as u32,
            },
        };
        Self { offset: end, place }
    }
}

/// Reads one guest.
struct Reader<'a> {
    text: &'a str,
    /// Behind the guest before it, where those of this one are counted from.
    from: Mark,
    /// Its last value so far.
    to: Mark,
    /// The guest's, for messages, once it is known to be one.
    name: String,
    places: Vec<(&'static str, Place)>,
}

impl Reader<'_> {
    /// A value that `check` takes, and notes where it stands.
    fn read<T, R>(
        &mut self,
        key: &'static str,
        value: Spanned<T>,
        check: impl FnOnce(T) -> Result<R, String>,
    ) -> Result<R, Error> {
        let mark = self.from.at(self.text, value.span().start);
        let place = mark.place;
        if mark.offset > self.to.offset {
            self.to = mark;
        }
        self.places.push((key, place));
        check(value.into_inner()).map_err(|what| self.wrong(place, what))
    }

    /// The same of one that the file may have.
    fn read_if<T, R>(
        &mut self,
        key: &'static str,
        value: Option<Spanned<T>>,
        check: impl FnOnce(T) -> Result<R, String>,
    ) -> Result<Option<R>, Error> {
        value.map(|value| self.read(key, value, check)).transpose()
    }

    fn wrong(&self, place: Place, what: String) -> Error {
        let what = match &*self.name {
            "" => what,
            name => format!("guest \"{name}\": {what}"),
        };
        Error { place, what }
    }

    fn guest(&mut self, table: Table) -> Result<Guest, Error> {
        let name = self.read("name", table.name, |name| check::name(&name).map(|()| name))?;
        self.name.clone_from(&name);
        let kernel = self.read("kernel", table.kernel, Ok)?;
        let initrd = self.read_if("initrd", table.initrd, Ok)?;
        let mode = self.read_if("mode", table.mode, |text| check::mode(&text))?;
        let is_realm = mode == Some(Mode::Realm);
        let of_realm = |key| is_realm.then_some(()).ok_or_else(|| check::of_realm(key));
        let measure = self.read_if("measure", table.measure, |text| {
            of_realm("measure")?;
            check::measure(&text)
        })?;
        let personalization = self.read_if("personalization", table.personalization, |text| {
            of_realm("personalization")?;
            check::personalization(&text).map(|_| text)
        })?;
        let ipa_bits = self.read_if("ipa_bits", table.ipa_bits, check::ipa_bits)?;
        let start_level = self.read_if("start_level", table.start_level, check::start_level)?;
        let ram_base = self.read_if("ram_base", table.ram_base, check::ram_base)?;
        let populate = self.read_if("populate", table.populate, |text| check::populate(&text))?;
        let memory = self.read_if("memory", table.memory, |text| match size::parse(&text) {
            Some(bytes) if check::memory(bytes).is_ok() => Ok(bytes),
            _ => Err(check::memory_is(&format!("{}", Value(&text)))),
        })?;
        let vcpus = self.read_if("vcpus", table.vcpus, check::vcpus)?;
        let cmdline = self.read_if("cmdline", table.cmdline, |text| {
            check::cmdline(&text).map(|()| text)
        })?;
        let console = self.read_if("console", table.console, Ok)?;
        let strict = self.read_if("strict", table.strict, Ok)?;
        let load = self.read_if("load", table.load, |at| check::address("load", at))?;
        let entry = self.read_if("entry", table.entry, |at| check::address("entry", at))?;
        Ok(Guest {
            name,
            kernel,
            initrd,
            cmdline: cmdline.unwrap_or_default(),
            memory: memory.unwrap_or(DEFAULT_MEMORY),
            vcpus: vcpus.unwrap_or(1),
            mode: mode.unwrap_or_default(),
            measure,
            personalization,
            ipa_bits,
            start_level,
            ram_base,
            populate,
            console,
            strict: strict.unwrap_or_default(),
            load,
            entry,
        })
    }

    /// What is wrong with a guest beside those before it.
    fn beside(&self, guest: &Guest, others: &[Located]) -> Result<(), Error> {
        let at = |key| {
            let found = self.places.iter().find(|(k, _)| *k == key);
            found.map_or(Mark::BEGIN.place, |(_, place)| *place)
        };
        if others.iter().any(|other| other.guest.name == guest.name) {
            let name = &guest.name;
            return Err(Error {
                place: at("name"),
                what: format!(
                    "name = \"{name}\": two guests are called so; expected a name of its own \
                     for each"
                ),
            });
        }
        let owner = others
            .iter()
            .find(|other| other.guest.console == Some(true));
        match owner {
            Some(owner) if guest.console == Some(true) => {
                let owner = &owner.guest.name;
                let what = format!(
                    "console = true: guest \"{owner}\" owns the console already; expected one \
                     at most"
                );
                Err(self.wrong(at("console"), what))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::{FILE, Measure, Populate, console_owner};
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        let error = parse(text.as_bytes()).unwrap_err();
        format!("{FILE}:{error}")
    }

    const MINIMAL: &str = "[[guest]]\nname = \"a\"\nkernel = \"k\"\n";

    #[test]
    fn a_wrong_type_is_told_in_words_of_the_file() {
        for (text, expected) in [
            (
                "[guest]\nname = \"a\"\n",
                "one table, expected [[guest]], in `[guest]`",
            ),
            (
                "guest = 3\n",
                "integer `3`, expected [[guest]], in `guest = 3`",
            ),
        ] {
            let error = error(text);
            assert!(error.ends_with(expected), "{error}");
        }
        for value in ["\"2\"", "2.5", "true", "99999999999999999999"] {
            let error = error(&format!("{MINIMAL}vcpus = {value}\n"));
            assert!(
                error.contains(", expected a whole number, in `vcpus = "),
                "{error}"
            );
            assert!(!error.contains("i64") && !error.contains("i128"), "{error}");
        }
    }

    #[test]
    fn defaults() {
        let guests = parse(MINIMAL.as_bytes()).unwrap();
        let expected = Guest {
            name: "a".to_string(),
            kernel: "k".to_string(),
            memory: 512 << 20,
            vcpus: 1,
            ..Guest::default()
        };
        assert_eq!(guests[0].guest, expected);
        assert_eq!(guests.len(), 1);
        assert_eq!(
            guests[0].place("kernel"),
            Place {
                line: 3,
                column: 10
            }
        );
        // Of what it does not say, its name's.
        assert_eq!(guests[0].place("memory"), Place { line: 2, column: 8 });
    }

    /// What one of two readers took and the other refused.
    #[test]
    fn every_form_of_every_key_is_read() {
        let read = |line: &str| parse(format!("{MINIMAL}{line}\n").as_bytes());
        for (line, memory) in [
            ("memory = \"2M\"", 2 << 20),
            ("memory = \"512MiB\"", 512 << 20),
            ("memory = \"65536K\"", 64 << 20),
            ("memory = \"65536KiB\"", 64 << 20),
            ("memory = \"1g\"", 1 << 30),
            ("memory = \"1GiB\"", 1 << 30),
            ("memory = '1T'", 1 << 40),
            ("memory = \"1TiB\"", 1 << 40),
            ("memory = \"4194304\"", 4 << 20),
        ] {
            assert_eq!(read(line).unwrap()[0].guest.memory, memory, "{line}");
        }
        let guest = |line: &str| read(line).expect(line).remove(0).guest;
        assert_eq!(guest("load = 0x4000_0000").load, Some(0x4000_0000));
        assert_eq!(guest("entry = 1073741824").entry, Some(0x4000_0000));
        assert_eq!(guest("vcpus = 64").vcpus, 64);
        assert_eq!(guest("initrd = \"i\"").initrd.as_deref(), Some("i"));
        for (word, mode) in Mode::ALL {
            assert_eq!(guest(&format!("mode = \"{word}\"")).mode, mode);
        }
        for (word, measure) in Measure::ALL {
            let line = format!("mode = \"realm\"\nmeasure = \"{word}\"");
            assert_eq!(guest(&line).measure, Some(measure));
        }
        let named = guest("mode = \"realm\"\npersonalization = \"00fFa0\"");
        let mut value = [0; crate::PERSONALIZATION];
        value[..3].copy_from_slice(&[0, 0xff, 0xa0]);
        assert_eq!(named.personalization(), value);
        assert_eq!(Guest::default().personalization(), [0; 64]);
        assert_eq!(guest("ipa_bits = 52").ipa_bits, Some(52));
        assert_eq!(guest("start_level = -1").start_level, Some(-1));
        let high = guest("ram_base = 0x1_0000_0000_0000");
        assert_eq!(high.ram_base, Some(1 << 48));
        for (word, mode) in Mode::ALL {
            assert_eq!(mode.word(), word);
        }
        for (word, populate) in Populate::ALL {
            assert_eq!(populate.word(), word);
            let line = format!("populate = \"{word}\"");
            assert_eq!(guest(&line).populate, Some(populate));
        }
        assert!(guest("strict = true").strict && !guest("strict = false").strict);
        assert_eq!(guest("console = false").console, Some(false));
        assert_eq!(guest("cmdline = \"\"").cmdline, "");
        let inline = "guest = [{ name = \"x\", kernel = \"k\", memory = \"4M\" }]";
        let guests = parse(inline.as_bytes()).unwrap();
        assert_eq!(guests[0].guest.memory, 4 << 20);
        assert_eq!(
            guests[0].place("memory"),
            Place {
                line: 1,
                column: 47
            }
        );
    }

    #[test]
    fn messages_name_place_key_and_what_was_expected() {
        for (line, parts) in [
            (
                "memroy = \"1G\"",
                &["guests.toml:4:1: ", "memroy", "memory"][..],
            ),
            ("memory = \"1X\"", &[":4:10: ", "memory = \"1X\"", "512M"]),
            ("memory = \"1M\"", &[":4:10: ", "2M"]),
            ("memory = \"0M\"", &[":4:10: ", "2M"]),
            ("memory = 5", &[":4:10: ", "string", "memory = 5"]),
            ("vcpus = 0", &[":4:9: ", "vcpus = 0", "1 to 64"]),
            ("vcpus = 65", &[":4:9: ", "vcpus = 65", "1 to 64"]),
            ("vcpus = -1", &[":4:9: ", "vcpus = -1"]),
            ("vcpus = \"2\"", &[":4:9: ", "vcpus"]),
            ("measure = \"all\"", &[":4:11: ", "mode = \"realm\""]),
            ("personalization = \"00\"", &[":4:19: ", "mode = \"realm\""]),
            ("start_level = 4", &[":4:15: ", "-1 to 3"]),
            ("start_level = -2", &[":4:15: ", "-1 to 3"]),
            ("ram_base = 0x4010_0000", &[":4:12: ", "0x40100000", "2M"]),
            ("ram_base = 0x3fe0_0000", &[":4:12: ", "from 0x40000000"]),
            ("ram_base = 0x10_0000_0000_0000", &[":4:12: ", "2^52"]),
            ("ram_base = -2097152", &[":4:12: ", "ram_base"]),
            ("mode = \"fast\"", &[":4:8: ", "fast", "plain"]),
            (
                "populate = \"later\"",
                &[":4:12: ", "populate = \"later\"", "or \"lazy-pages\""],
            ),
            ("populate = true", &[":4:12: ", "string"]),
            ("load = -4", &[":4:8: ", "load", "address"]),
            ("  entry = -4", &[":4:11: ", "entry", "address"]),
            ("name = \"b\"", &[":4:1: ", "name"]),
            ("cmdline = \"a", &[":4:"]),
            ("cmdline = \"a\\u0000b\"", &[":4:11: ", "zero byte"]),
        ] {
            let message = error(&format!("{MINIMAL}{line}\n"));
            for part in parts {
                assert!(message.contains(part), "{line}: {message}");
            }
            assert!(message.starts_with("guests.toml:4:"), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
        for (line, parts) in [
            ("measure = \"some\"", ["measure = \"some\"", "\"all\" or"]),
            ("personalization = \"0\"", ["= \"0\"", "64 bytes"]),
            ("personalization = \"0g\"", ["= \"0g\"", "hexadecimal"]),
            (
                &format!("personalization = \"{}\"", "00".repeat(65)),
                ["personalization", "64 bytes"],
            ),
            ("ipa_bits = 31", ["ipa_bits = 31", "32 to 52"]),
            ("ipa_bits = 53", ["ipa_bits = 53", "32 to 52"]),
            ("ipa_bits = -1", ["ipa_bits = -1", "32 to 52"]),
        ] {
            let message = error(&format!("{MINIMAL}mode = \"realm\"\n{line}\n"));
            assert!(message.starts_with("guests.toml:5:"), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        let cmdline = |length: usize| {
            let text = "x".repeat(length);
            format!("{MINIMAL}cmdline = \"{text}\"\n")
        };
        let long = error(&cmdline(check::MAX_CMDLINE + 1));
        assert!(long.contains("2048"), "{long}");
        assert!(long.contains("guest \"a\": cmdline"), "{long}");
        assert!(parse(cmdline(check::MAX_CMDLINE).as_bytes()).is_ok());
        assert!(error("").contains("[[guest]]"));
        assert!(error("guest = []\n").contains("[[guest]]"));
        assert!(error("[[guest]]\nname=\"a\"\n").contains("kernel"));
        for name in ["", "a b", ".a", "..", "../a", "é", &"x".repeat(33)] {
            let text = format!("[[guest]]\nname=\"{name}\"\nkernel=\"k\"\n");
            assert!(error(&text).starts_with("guests.toml:2:6: name"), "{name}");
        }
        let twice = error(&format!("{MINIMAL}{MINIMAL}"));
        assert!(twice.starts_with("guests.toml:5:8: name"), "{twice}");
        let bytes = parse(b"a\nb\xff").unwrap_err();
        assert_eq!(bytes.place, Place { line: 2, column: 2 });
        // Characters, not bytes.
        let wide = parse("# \u{e9}\n\u{e9} = 1".as_bytes()).unwrap_err();
        assert_eq!(wide.place.line, 2);
        let inline = error("guest = [{ name = \"\u{e9}\", kernel = \"k\" }]");
        assert!(inline.starts_with("guests.toml:1:19: name"), "{inline}");
    }

    #[test]
    fn one_guest_owns_the_console() {
        let two = |a: &str, b: &str| {
            let second = MINIMAL.replace("\"a\"", "\"b\"");
            parse(format!("{MINIMAL}{a}\n{second}{b}\n").as_bytes())
                .map(|guests| console_owner(guests.iter().map(|g| g.guest.console)))
        };
        assert_eq!(two("", ""), Ok(Some(0)));
        assert_eq!(two("", "console = false"), Ok(Some(0)));
        assert_eq!(two("", "console = true"), Ok(Some(1)));
        assert_eq!(two("console = false", ""), Ok(None));
        assert_eq!(two("console = false", "console = true"), Ok(Some(1)));
        let both = two("console = true", "console = true").unwrap_err();
        assert_eq!(
            both.place,
            Place {
                line: 8,
                column: 11
            }
        );
        assert!(both.what.contains("\"a\" owns the console"), "{both}");
    }

    proptest! {
        #[test]
        fn any_text_is_guests_or_one_line(text in "(\\[\\[guest\\]\\]\n)?([a-z]{1,8} = (\"[^\"]{0,5}\"|[0-9-]{1,4})\n){0,6}.{0,20}") {
            match parse(text.as_bytes()) {
                Ok(guests) => prop_assert!(!guests.is_empty()),
                Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
            }
        }

        /// From anywhere before it, a place is counted as from the beginning.
        #[test]
        fn a_place_is_where_it_is(text in "[a\u{e9}\u{1f980}\n]{0,40}", from in 0usize..80, to in 0usize..80) {
            let mark = Mark::BEGIN.at(&text, from).at(&text, to);
            let before = text.char_indices().filter(|(at, c)| at + c.len_utf8() <= to);
            let (mut line, mut column) = (1, 1);
            for (_, c) in before {
                (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
            }
            prop_assert_eq!(mark.place, Place { line, column });
        }

        /// What is written is read as what it was.
        #[test]
        fn a_guest_is_the_same_there_and_back(
            names in prop::collection::btree_set("[a-zA-Z0-9_-][a-zA-Z0-9_.-]{0,31}", 1..4),
            files in (".{0,20}", prop::option::of(".{0,20}")),
            cmdline in "[^\0]{0,40}",
            (memory, vcpus) in (1u64..1 << 40, 1..=check::MAX_VCPUS),
            (owner, strict) in (prop::option::of(0usize..4), any::<bool>()),
            populate in prop::option::of(prop::sample::select(
                Populate::ALL.map(|(_, populate)| populate).to_vec()
            )),
            mode in prop::sample::select(Mode::ALL.map(|(_, mode)| mode).to_vec()),
            measure in prop::sample::select(Measure::ALL.map(|(_, measure)| measure).to_vec()),
            personalization in "([0-9a-fA-F]{2}){0,64}",
            (ipa_bits, start_level, ram_base) in (
                prop::option::of(32u32..=52),
                prop::option::of(-1i64..=3),
                prop::option::of(512u64..1 << 31),
            ),
            (load, entry) in (prop::option::of(0..=i64::MAX as u64), prop::option::of(0..1u64 << 48)),
        ) {
            let guests: Vec<Guest> = names.into_iter().enumerate().map(|(n, name)| Guest {
                name,
                kernel: files.0.clone(),
                initrd: files.1.clone(),
                cmdline: cmdline.clone(),
                memory: memory * check::MEMORY_UNIT,
                vcpus,
                mode,
                measure: (mode == Mode::Realm).then_some(measure),
                personalization: (mode == Mode::Realm).then(|| personalization.clone()),
                ipa_bits,
                start_level,
                ram_base: ram_base.map(|mib| mib << 21),
                populate,
                console: owner.map(|owner| owner == n),
                strict,
                load,
                entry,
            }).collect();
            let text = crate::write(&guests).expect("writes");
            let read = parse(text.as_bytes()).map_err(|e| TestCaseError::fail(format!("{e}: {text}")))?;
            let read: Vec<Guest> = read.into_iter().map(|located| located.guest).collect();
            prop_assert_eq!(read, guests);
        }
    }
}

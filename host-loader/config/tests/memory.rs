//! What the text of the file makes its reader allocate is bounded, whatever it says.

#[path = "../../tests/counting/mod.rs"]
mod counting;

use counting::counted;
use guest_config::{FILE, MAX_LENGTH, heap_of};
use proptest::prelude::*;

/// Reads the file in so much memory that the image's heap has it: the error.
fn read(text: &str) -> Option<String> {
    let (result, used) = counted(|| guest_config::parse(text.as_bytes()));
    let most = heap_of(text.len().min(MAX_LENGTH));
    let start: String = text.chars().take(40).collect();
    assert!(used.peak <= most, "{start}: {used:?} of {most}");
    let error = result.err().map(|error| format!("{FILE}:{error}"));
    if let Some(error) = &error {
        assert!(error.starts_with("guests.toml:"), "{error}");
        assert!(
            error.len() < 1300,
            "{start}: {} bytes of error",
            error.len()
        );
        assert!(!error.contains(char::is_control), "{error}");
    }
    error
}

#[test]
fn a_file_of_brackets_is_told_by_its_line() {
    for (open, what) in [("[", ""), ("a = [", "recurse"), ("a = {b = ", "")] {
        let nested = |size: usize| {
            let fill = open.trim_start_matches("a = ");
            format!("\n\n{open}{}", fill.repeat(size / fill.len()))
        };
        let error = read(&nested(MAX_LENGTH - 100)).unwrap();
        assert!(error.starts_with("guests.toml:3:"), "{error}");
        assert!(error.contains(what) && error.contains("..."), "{error}");
        let error = read(&nested(240 << 10)).unwrap();
        assert!(error.contains("bytes long; expected at most"), "{error}");
    }
}

/// Pieces of which a file may consist to the end.
const PIECES: [&str; 44] = [
    "[",
    "]",
    "{",
    "}",
    ".",
    "=",
    ",",
    "\"",
    "'",
    "#",
    "\n",
    "\r",
    " ",
    "\t",
    "a",
    "0",
    "\u{1}",
    "\u{e9}",
    "\u{202e}",
    "a.",
    "a=",
    "a=1\n",
    "a=[",
    "a={",
    "{a=",
    "[a]\n",
    "[[a]]\n",
    "[,",
    "[]",
    "{},",
    "1,",
    "''",
    "\"\"\"",
    "'''",
    "\"\\u0001",
    "1979-05-27T07:32:00Z,",
    "[[guest]]\n",
    "[guest]\n",
    "name=",
    "name=\"a\"\n",
    "guest=[{",
    "[guest.a]\n",
    "a#",
    "e1.",
];

#[test]
fn no_piece_repeated_takes_more_than_was_measured() {
    for head in ["", "a=", "a=[", "[[guest]]\nname=", "[[guest]]\nname=["] {
        for piece in PIECES {
            read(&(head.to_string() + &piece.repeat((MAX_LENGTH - 20) / piece.len())));
        }
    }
}

/// Sequences that take much: tables of one entry, in tables, of guests, and what
/// looks like the end of a table and is none.
#[test]
fn no_sequence_repeated_takes_more_than_was_measured() {
    let deep = format!("[[a]]\n{}a=0\n", "a.".repeat(78));
    for unit in [
        &*deep,
        "..=\n[[guest]]\n.a.",
        "\n[[a]]\n.e1.a.a=",
        "[a]\n={",
        "[a]\n={]",
        "{[}]a={",
        "a={}}{",
        "a=[]][",
    ] {
        read(&unit.repeat((MAX_LENGTH - 20) / unit.len()));
    }
}

#[test]
fn many_guests_and_long_values_are_read_or_told() {
    let guest = |name: &str| format!("[[guest]]\nname=\"{name}\"\nkernel=\"\"\n");
    let many: String = (0..2000).map(|i| guest(&i.to_string())).collect();
    assert_eq!(read(&many), None);
    let long = "\u{1f980}".repeat(MAX_LENGTH / 4 - 20);
    for (key, line) in [("name", 2), ("mode", 4), ("memory", 4), (&*long, 4)] {
        let text = match key {
            "name" => guest(&long),
            "mode" | "memory" => format!("{}{key}=\"{long}\"", guest("a")),
            key => format!("{}\"{key}\"=1", guest("a")),
        };
        let error = read(&text).unwrap();
        assert!(
            error.starts_with(&format!("guests.toml:{line}:")),
            "{error}"
        );
    }
}

proptest! {
    #[test]
    fn no_pieces_take_more_than_was_measured(
        pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 1..12),
    ) {
        let unit: String = pieces.concat();
        read(&unit.repeat((16 << 10) / unit.len()));
    }
}

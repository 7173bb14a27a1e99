//! Which characters a line of the log may hold: those that a terminal shows
//! where they stand.
//!
//! Whoever reads the log must see who wrote what. A control character moves the
//! cursor or begins an escape sequence, a line or paragraph separator may end
//! the line, a format character turns the direction of what follows or hides.
//! So do the few letters and marks that are shown as nothing (Unicode's
//! `Default_Ignorable_Code_Point`: fillers, joiners, variation selectors, tags).

use core::fmt;

/// What stands in the place of a character that may not be in the log.
pub const REPLACEMENT: char = '\u{fffd}';

/// Unicode's general categories Cc, Cf, Zl and Zp, and what is ignorable by
/// default (Unicode 17.0), as sorted ranges with both ends.
const HIDDEN: [(u32, u32); 27] = [
    (0x0000, 0x001f),
    (0x007f, 0x009f),
    (0x00ad, 0x00ad),
    (0x034f, 0x034f),
    (0x0600, 0x0605),
    (0x061c, 0x061c),
    (0x06dd, 0x06dd),
    (0x070f, 0x070f),
    (0x0890, 0x0891),
    (0x08e2, 0x08e2),
    (0x115f, 0x1160),
    (0x17b4, 0x17b5),
    (0x180b, 0x180f),
    (0x200b, 0x200f),
    (0x2028, 0x202e),
    (0x2060, 0x206f),
    (0x3164, 0x3164),
    (0xfe00, 0xfe0f),
    (0xfeff, 0xfeff),
    (0xffa0, 0xffa0),
    (0xfff0, 0xfffb),
    (0x1_10bd, 0x1_10bd),
    (0x1_10cd, 0x1_10cd),
    (0x1_3430, 0x1_343f),
    (0x1_bca0, 0x1_bca3),
    (0x1_d173, 0x1_d17a),
    (0xe_0000, 0xe_0fff),
];

/// Whether the log takes this character.
pub fn is_plain(c: char) -> bool {
    // Nearly all text is this.
    if matches!(c, ' '..='~') {
        return true;
    }
    let code = u32::from(c);
    !HIDDEN.iter().any(|&(from, to)| (from..=to).contains(&code))
}

/// The character itself, or what the log shows in its place.
pub fn plain(c: char) -> char {
    if is_plain(c) { c } else { REPLACEMENT }
}

/// Text as the log shows it.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|c| f.write_char(plain(c)))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
    use icu_properties::{CodePointMapData, CodePointSetData};
    use std::string::ToString;

    #[test]
    fn the_table_is_what_unicode_says() {
        let category = CodePointMapData::<GeneralCategory>::new();
        let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
        for c in '\0'..=char::MAX {
            let hidden = matches!(
                category.get(c),
                GeneralCategory::Control
                    | GeneralCategory::Format
                    | GeneralCategory::LineSeparator
                    | GeneralCategory::ParagraphSeparator
            ) || ignorable.contains(c);
            assert_eq!(is_plain(c), !hidden, "U+{:04X}", u32::from(c));
        }
    }

    #[test]
    fn what_forgers_use_is_replaced() {
        let bad = "\u{1b}[2J\r\n\0\u{7f}\u{85}\u{9b}\u{200b}\u{2028}\u{202e}\u{2066}\u{feff}\
                   \u{fe0f}\u{e0041}\u{e0100}\u{ad}\u{3164}";
        let shown = Plain(bad).to_string();
        let expected = "\u{fffd}[2J".to_string() + &"\u{fffd}".repeat(16);
        assert_eq!(shown, expected);
        let good = "naïve 日本語 العربية 🙂 ~";
        assert_eq!(Plain(good).to_string(), good);
    }
}

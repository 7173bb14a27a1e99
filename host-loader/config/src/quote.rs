//! Text of the bundle in messages: short, on one line, and plainly visible.

use core::fmt::{self, Write};

/// The most characters that are quoted.
const MOST: usize = 60;

/// A value, in quotation marks.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a>(pub &'a str);

/// Words as they stand.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a>(pub &'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        cut(self.0, MOST, f, |c, f| write!(f, "{}", c.escape_debug()))?;
        f.write_char('"')
    }
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A message of the parser's quotes a name and lists what is expected.
        cut(self.0, 4 * MOST, f, plain)
    }
}

/// Writes a line of the file.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a>(pub &'a str);

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        cut(self.0, MOST, f, plain)
    }
}

/// Quotation marks stay; what cannot be seen is spelt out.
fn plain(c: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match c {
        '"' | '\'' | '\\' => f.write_char(c),
        '\t' | '\n' => f.write_char(' '),
        _ => write!(f, "{}", c.escape_debug()),
    }
}

/// Writes at most `most` characters of `text` by `each`, and a sign where there
/// are more.
fn cut(
    text: &str,
    most: usize,
    f: &mut fmt::Formatter<'_>,
    each: impl Fn(char, &mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut left = text.chars();
    for c in left.by_ref().take(most) {
        each(c, f)?;
    }
    if left.next().is_some() {
        f.write_str("...")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn what_is_quoted_is_short_and_can_be_seen() {
        assert_eq!(Value("a\"b\u{202e}\n").to_string(), r#""a\"b\u{202e}\n""#);
        assert_eq!(Source("a = \"b\"\t\u{7}").to_string(), r#"a = "b" \u{7}"#);
        // Cut between characters, whatever their length.
        for c in ['x', '\u{e9}', '\u{1f980}'] {
            let long = c.to_string().repeat(100_000);
            let quoted = Value(&long).to_string();
            assert_eq!(quoted.chars().count(), MOST + 5);
            assert!(quoted.ends_with("...\""));
            assert!(Words(&long).to_string().chars().count() < 5 * MOST);
        }
        assert_eq!(Value("").to_string(), "\"\"");
    }
}

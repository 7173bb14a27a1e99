//! Where the settings of guests stand, for messages about them: a line of the
//! user's file, or an option.

use std::collections::BTreeMap;

use toml::de::DeTable;

use crate::bundle::CONFIGURATION;
use crate::run::ending::message;

/// Where each setting of each guest comes from, as a message begins with it:
/// `FILE:LINE`, or an option with its value.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<BTreeMap<String, String>>);

impl Places {
    /// Those of a `guests.toml` that is called `file`.
    pub fn in_file(text: &str, file: &str) -> Self {
        let place = |line| format!("{file}:{line}");
        let guests = lines(text).into_iter().map(|keys| {
            let keys = keys.into_iter();
            keys.map(|(key, line)| (key, place(line))).collect()
        });
        Self(guests.collect())
    }

    /// Those of one guest that was described by options: keys, and the options.
    pub fn by_options(settings: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let settings = settings.into_iter();
        Self(vec![
            settings.map(|(key, at)| (key.to_string(), at)).collect(),
        ])
    }

    /// Where the setting `key` of a guest comes from, if it was set.
    pub fn of(&self, guest: usize, key: &str) -> Option<&str> {
        self.0.get(guest)?.get(key).map(String::as_str)
    }

    /// The same for the lines of the `guests.toml` that was packed of them.
    pub fn packed(&self, text: &str) -> Packed {
        let mut places = BTreeMap::new();
        for (guest, keys) in lines(text).into_iter().enumerate() {
            for (key, line) in keys {
                if let Some(place) = self.of(guest, &key) {
                    places.insert(line, place.to_string());
                }
            }
        }
        Packed(places)
    }
}

/// What each line of a bundle's `guests.toml` is to the user.
#[derive(Clone, Debug, Default)]
pub struct Packed(BTreeMap<usize, String>);

impl Packed {
    /// A line of `host-loader`'s log about a line of the bundle's configuration,
    /// about what the user has written instead. Other lines stay as they are.
    pub fn told(&self, line: &str) -> Option<String> {
        // Behind time, speaker and level, where a guest's own words never begin.
        let message = message(line)?;
        let rest = message.strip_prefix(CONFIGURATION)?.strip_prefix(':')?;
        let (number, rest) = rest.split_once(": ")?;
        let place = self.0.get(&number.parse().ok()?)?;
        let head = &line[..line.find(message)?];
        Some(format!("{head}{place}: {rest}"))
    }
}

/// The line of each key of each `[[guest]]`, from 1. Nothing of a text that is
/// not TOML.
fn lines(text: &str) -> Vec<BTreeMap<String, usize>> {
    let Ok(file) = DeTable::parse(text) else {
        return Vec::new();
    };
    let guests = file.get_ref().get("guest");
    let guests = guests.and_then(|guests| guests.get_ref().as_array());
    let tables = guests
        .into_iter()
        .flat_map(|guests| guests.iter())
        .map(|guest| guest.get_ref().as_table());
    tables
        .map(|table| {
            let keys = table.into_iter().flat_map(|table| table.keys());
            keys.map(|key| {
                let before = &text[..key.span().start];
                (key.get_ref().to_string(), before.matches('\n').count() + 1)
            })
            .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: &str = "[[guest]]\nname = \"a\"\nmemory = \"16M\"\n\n\
                          [[guest]]\nname = \"b\"\nmemory = \"8M\"\nvcpus = 2\n";

    #[test]
    fn a_message_names_what_the_user_wrote() {
        let file = "# mine\n[[guest]]\nmemory = \"16M\"\nname = \"a\"\n\
                    [[guest]]\nvcpus = 2\nname = \"b\"\n\n\nmemory = \"8M\"\n";
        let places = Places::in_file(file, "my.toml");
        assert_eq!(places.of(0, "memory"), Some("my.toml:3"));
        assert_eq!(places.of(1, "vcpus"), Some("my.toml:6"));
        assert_eq!((places.of(0, "vcpus"), places.of(2, "name")), (None, None));
        let packed = places.packed(PACKED);
        let told = |line| packed.told(line);
        assert_eq!(
            told("[    0.1] host ERROR guests.toml:7: guest \"b\": too little").as_deref(),
            Some("[    0.1] host ERROR my.toml:10: guest \"b\": too little")
        );
        for other in [
            "[    0.1] host ERROR guests.toml:1: guest \"a\": of no key",
            "[    0.1] host INFO  guest a: guests.toml:7: a guest's own words",
            "guests.toml:7: no line of the log",
            "[    0.1] host ERROR guests.toml: no line",
        ] {
            assert_eq!(told(other), None);
        }
    }

    #[test]
    fn a_message_names_an_option() {
        let places = Places::by_options([("memory", "--memory 16M".to_string())]);
        assert_eq!(
            places
                .packed(PACKED)
                .told("[    0.1] host ERROR guests.toml:3: guest \"a\": x")
                .as_deref(),
            Some("[    0.1] host ERROR --memory 16M: guest \"a\": x")
        );
    }
}

//! Where the settings of guests stand, for messages about them: a line of the
//! user's file, or an option.

use std::collections::BTreeMap;

use guest_config::Located;

use crate::bundle::CONFIGURATION;
use crate::run::ending::message;

/// Where each setting of each guest comes from, as a message begins with it:
/// `FILE:LINE:COLUMN`, or an option with its value.
#[derive(Clone, Debug, Default)]
pub struct Places(Vec<BTreeMap<String, String>>);

impl Places {
    /// Those of a `guests.toml` that is called `file`.
    pub fn in_file(guests: &[Located], file: &str) -> Self {
        let guests = guests.iter().map(|guest| {
            let places = guest.places();
            places
                .map(|(key, place)| (key.to_string(), format!("{file}:{place}")))
                .collect()
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
        // It was written a moment ago.
        let guests = guest_config::parse(text.as_bytes()).unwrap_or_default();
        for (index, guest) in guests.iter().enumerate() {
            for (key, at) in guest.places() {
                // What the user did not set is the guest's all the same.
                if let Some(place) = self.of(index, key).or_else(|| self.of(index, "name")) {
                    places.insert(at.line, place.to_string());
                }
            }
        }
        Packed(places)
    }
}

/// What each line of a bundle's `guests.toml` is to the user.
#[derive(Clone, Debug, Default)]
pub struct Packed(BTreeMap<u32, String>);

impl Packed {
    /// A line of `host-loader`'s log about a line of the bundle's configuration,
    /// about what the user has written instead. Other lines stay as they are.
    pub fn told(&self, line: &str) -> Option<String> {
        // Behind time, speaker and level, where a guest's own words never begin.
        let message = message(line)?;
        let rest = message.strip_prefix(CONFIGURATION)?.strip_prefix(':')?;
        let (at, rest) = rest.split_once(": ")?;
        let (line_number, _column) = at.split_once(':')?;
        let place = self.0.get(&line_number.parse().ok()?)?;
        let head = &line[..line.find(message)?];
        Some(format!("{head}{place}: {rest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKED: &str = "[[guest]]\nname = \"a\"\nkernel = \"k\"\nmemory = \"16M\"\n\n\
                          [[guest]]\nname = \"b\"\nkernel = \"k\"\nmemory = \"8M\"\n";

    #[test]
    fn a_message_names_what_the_user_wrote() {
        let file = "# mine\n[[guest]]\nmemory = \"16M\"\nname = \"a\"\nkernel = \"k\"\n\
                    [[guest]]\nvcpus = 2\nname = \"b\"\n\n\n memory= \"8M\"\nkernel = \"k\"\n";
        let read = guest_config::parse(file.as_bytes()).expect("valid");
        let places = Places::in_file(&read, "my.toml");
        assert_eq!(places.of(0, "memory"), Some("my.toml:3:10"));
        assert_eq!(places.of(1, "vcpus"), Some("my.toml:7:9"));
        assert_eq!((places.of(0, "vcpus"), places.of(2, "name")), (None, None));
        let packed = places.packed(PACKED);
        let told = |line| packed.told(line);
        assert_eq!(
            told("[    0.1] host ERROR guests.toml:9:10: guest \"b\": too little").as_deref(),
            Some("[    0.1] host ERROR my.toml:11:10: guest \"b\": too little")
        );
        // Of what was not set, whose it is.
        let unset = "[[guest]]\nname = \"a\"\nkernel = \"k\"\n";
        let read = guest_config::parse(unset.as_bytes()).expect("valid");
        assert_eq!(
            (Places::in_file(&read, "my.toml").packed(PACKED))
                .told("[    0.1] host ERROR guests.toml:4:10: guest \"a\": too little")
                .as_deref(),
            Some("[    0.1] host ERROR my.toml:2:8: guest \"a\": too little")
        );
        for other in [
            "[    0.1] host ERROR guests.toml:1:1: guest \"a\": of no key",
            "[    0.1] host INFO  guest a: guests.toml:9:10: a guest's own words",
            "guests.toml:9:10: no line of the log",
            "[    0.1] host ERROR guests.toml: no line",
            "[    0.1] host ERROR guests.toml:9: no column",
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
                .told("[    0.1] host ERROR guests.toml:4:10: guest \"a\": x")
                .as_deref(),
            Some("[    0.1] host ERROR --memory 16M: guest \"a\": x")
        );
    }
}

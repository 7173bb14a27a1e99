//! Failures that are known, of a user's list: each with a reason and a link.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Cell;

/// Configurations that are known to fail.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// Which, as `--filter` has them.
    pub filter: String,
    /// Why.
    pub reason: String,
    /// Where more is said.
    pub link: String,
}

/// A list of those: `[[expected]]` of a TOML file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Its entries.
    #[serde(default)]
    expected: Vec<Known>,
}

impl List {
    /// Reads a list.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("--expected: cannot read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("--expected: {}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let list: Self = toml::from_str(text)?;
        for known in &list.expected {
            Cell::checked(&known.filter)?;
            ensure!(
                !known.reason.trim().is_empty() && known.link.contains("://"),
                "`{}` wants a reason, and a link with ://",
                known.filter
            );
        }
        Ok(list)
    }

    /// Entries that none of these configurations is of.
    pub fn idle<'a>(&'a self, cells: &'a [Cell]) -> impl Iterator<Item = &'a Known> {
        let fits = |known: &Known| cells.iter().any(|cell| cell.matches(&known.filter));
        self.expected.iter().filter(move |known| !fits(known))
    }

    /// The entry that a configuration is of.
    pub fn find(&self, cell: &Cell) -> Option<&Known> {
        let mut entries = self.expected.iter();
        entries.find(|known| cell.matches(&known.filter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cells;
    use crate::suite::Tier;

    #[test]
    fn an_entry_wants_a_filter_a_reason_and_a_link() {
        let entry = |filter: &str, reason: &str, link: &str| {
            List::parse(&format!(
                "[[expected]]\nfilter = '{filter}'\nreason = '{reason}'\nlink = '{link}'\n"
            ))
        };
        let list = entry("mode=realm", "slow", "https://example.org/1").expect("a list");
        let cells = cells(Tier::Quick);
        let known = cells.iter().filter(|cell| list.find(cell).is_some());
        let realms = cells.iter().filter(|cell| cell.matches("mode=realm"));
        assert!(realms.eq(known));
        assert!(entry("", "slow", "https://example.org/1").is_err());
        assert!(entry("mode=realm, ", "slow", "https://example.org/1").is_err());
        assert_eq!(list.idle(&cells).count(), 0);
        assert_eq!(list.idle(&[]).count(), 1);
        assert!(entry("made=realm", "slow", "https://example.org/1").is_err());
        assert!(entry("mode=realms", "slow", "https://example.org/1").is_err());
        assert!(entry("mode=realm", " ", "https://example.org/1").is_err());
        assert!(entry("mode=realm", "slow", "none").is_err());
        assert!(List::parse("[[expect]]\n").is_err());
        assert!(List::parse("").expect("an empty list").expected.is_empty());
    }
}

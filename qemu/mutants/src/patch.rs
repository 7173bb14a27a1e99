//! Faults as text: a line that says what is wrong, and a unified diff whose hunks
//! are found by their text wherever it stands.

/// A fault.
pub struct Fault {
    pub name: String,
    /// What is wrong.
    pub what: String,
    pub edits: Vec<Edit>,
}

/// One hunk.
pub struct Edit {
    /// The file, from the crate's folder.
    pub path: String,
    old: Vec<String>,
    new: Vec<String>,
}

/// Where a hunk changes a source, and to what.
#[derive(Clone, Debug)]
pub struct Change {
    /// Bytes of the source.
    pub at: std::ops::Range<usize>,
    pub new: String,
}

impl Fault {
    /// Reads a file.
    pub fn parse(name: &str, text: &str) -> Self {
        let mut lines = text.lines();
        let what = lines.next().unwrap_or_default().to_owned();
        let mut path = String::new();
        let mut edits: Vec<Edit> = Vec::new();
        for line in lines {
            if let Some(to) = line.strip_prefix("+++ b/") {
                path = to.to_owned();
            } else if line.starts_with("--- a/") {
                // The next file: what is behind belongs to its hunks.
                path.clear();
            } else if line.starts_with("@@") {
                edits.push(Edit {
                    path: path.clone(),
                    old: Vec::new(),
                    new: Vec::new(),
                });
            } else if let Some(edit) = edits.last_mut() {
                let (sign, text) = line.split_at_checked(1).unwrap_or((" ", ""));
                if sign != "+" {
                    edit.old.push(text.to_owned());
                }
                if sign != "-" {
                    edit.new.push(text.to_owned());
                }
            }
        }
        assert!(!edits.is_empty(), "{name}: no hunk");
        Self {
            name: name.to_owned(),
            what,
            edits,
        }
    }
}

impl Edit {
    /// What it changes in its source, without the lines around.
    pub fn change(&self, source: &str, name: &str) -> Change {
        let joined = |lines: &[String]| lines.iter().map(|line| line.clone() + "\n").collect();
        let old: String = joined(&self.old);
        let found = source.matches(&old).count();
        assert_eq!(found, 1, "{name}: its hunk stands {found} times:\n{old}");
        let start = source.find(&old).unwrap_or_default();
        let pairs = || self.old.iter().zip(&self.new);
        let before = pairs().take_while(|(old, new)| old == new).count();
        let least = self.old.len().min(self.new.len()) - before;
        let ends = self.old.iter().rev().zip(self.new.iter().rev());
        let after = ends.take(least).take_while(|(old, new)| old == new).count();
        let bytes = |lines: &[String]| -> usize { lines.iter().map(|line| line.len() + 1).sum() };
        let from = start + bytes(&self.old[..before]);
        let to = from + bytes(&self.old[before..self.old.len() - after]);
        Change {
            at: from..to,
            new: joined(&self.new[before..self.new.len() - after]),
        }
    }
}

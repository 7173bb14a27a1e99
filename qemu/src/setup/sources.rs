//! The package sources that the machine's own apt is configured for, read to
//! learn which mirror of Debian this machine uses and which keys it trusts.
//!
//! Both notations are read: one-line `.list` files and deb822 `.sources`
//! files, see sources.list(5). What cannot be understood is left out: another
//! stanza may do.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The releases of Debian by the names that sources give them.
const RELEASES: [&str; 8] = [
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// Names an archive of Debian for machines whose own sources name none.
pub const VARIABLE: &str = "UNDERCROFT_DEBIAN_MIRROR";

/// The keys of Debian's archive, by the package of the same name.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One place of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The archive's address.
    pub uri: String,
    /// Releases: `bookworm`, `bookworm-updates`.
    pub suites: Vec<String>,
    /// Sections: `main`.
    pub components: Vec<String>,
    /// The value of `Signed-By`, possibly a key of several lines.
    pub signed_by: Option<String>,
}

impl Source {
    fn is_debian(&self) -> bool {
        self.suites.iter().any(|suite| {
            let release = suite.split(['-', '/']).next().unwrap_or_default();
            RELEASES.contains(&release)
        })
    }

    /// Whether whole releases are here, rather than updates to them.
    fn is_release(&self) -> bool {
        self.components.iter().any(|c| c == "main")
            && self.suites.iter().any(|s| RELEASES.contains(&s.as_str()))
    }

    /// The same archive, with other releases.
    pub fn with_suites(&self, suites: &[&str]) -> Self {
        Self {
            suites: suites.iter().map(ToString::to_string).collect(),
            components: vec!["main".into()],
            ..self.clone()
        }
    }

    /// The source as a deb822 stanza, for `architecture` alone if one is
    /// given.
    pub fn stanza(&self, architecture: Option<&str>) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
            self.uri,
            self.suites.join(" "),
            self.components.join(" ")
        );
        if let Some(architecture) = architecture {
            text += &format!("Architectures: {architecture}\n");
        }
        if let Some(signed_by) = &self.signed_by {
            text += &format!("Signed-By: {signed_by}\n");
        }
        text + "\n"
    }
}

/// All sources of Debian packages that this machine's apt knows.
pub fn of_machine() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    parts.sort();
    files.append(&mut parts);
    files
        .iter()
        .flat_map(|file| read(file))
        .filter(Source::is_debian)
        .collect()
}

/// The archive that whole releases of Debian come from: the machine's own
/// mirror, or the one that [`VARIABLE`] names.
pub fn mirror() -> Option<Source> {
    let own = of_machine().into_iter().find(Source::is_release);
    own.or_else(|| {
        let uri = env::var(VARIABLE).ok().filter(|uri| !uri.is_empty())?;
        Some(Source {
            uri,
            suites: Vec::new(),
            components: vec!["main".into()],
            signed_by: Path::new(KEYRING).is_file().then(|| KEYRING.into()),
        })
    })
}

fn read(file: &Path) -> Vec<Source> {
    let Ok(text) = fs::read_to_string(file) else {
        return Vec::new();
    };
    match file.extension().and_then(|e| e.to_str()) {
        Some("list") => text.lines().filter_map(one_line).collect(),
        Some("sources") => deb822(&text),
        _ => Vec::new(),
    }
}

/// `deb [arch=amd64 signed-by=/key.gpg] http://mirror/debian bookworm main`.
fn one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line
        .strip_prefix("deb")?
        .strip_prefix([' ', '\t'])?
        .trim_start();
    let mut signed_by = None;
    if let Some(after) = rest.strip_prefix('[') {
        let (options, tail) = after.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(String::from);
        rest = tail;
    }
    let mut words = rest.split_whitespace().map(String::from);
    Some(Source {
        uri: words.next()?,
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by,
    })
}

/// Stanzas of `Key: value` lines; a line that begins with a blank goes on with
/// the value before it, a line that begins with `#` is a comment.
fn deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            sources.extend(stanza(&fields));
            fields.clear();
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.to_ascii_lowercase(), value.trim().to_string()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let field = |name: &str| fields.iter().find(|(k, _)| k == name).map(|(_, v)| v);
    let words = |name: &str| -> Vec<String> {
        field(name).map_or_else(Vec::new, |v| {
            v.split_whitespace().map(String::from).collect()
        })
    };
    let off = field("enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
    if off || !words("types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    words("uris")
        .into_iter()
        .map(|uri| Source {
            uri,
            suites: words("suites"),
            components: words("components"),
            signed_by: field("signed-by").cloned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_read() {
        let line =
            one_line("deb [arch=amd64 signed-by=/k.gpg] http://m/debian trixie main contrib")
                .expect("a source");
        assert_eq!(line.uri, "http://m/debian");
        assert_eq!(line.suites, ["trixie"]);
        assert_eq!(line.signed_by.as_deref(), Some("/k.gpg"));
        assert!(line.is_debian() && line.is_release());

        let text = "Types: deb\n# a comment\nURIs: http://m/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n\
                    Signed-By:\n -----BEGIN-----\n .\n abc\n\n\
                    Enabled: no\nTypes: deb\nURIs: http://n/debian\nSuites: trixie\n";
        let read = deb822(text);
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].suites, ["bookworm", "bookworm-updates"]);
        let again = deb822(&read[0].stanza(Some("arm64")));
        assert_eq!(again, read, "a stanza says what was read");
    }

    #[test]
    fn other_archives_are_no_mirror() {
        for line in [
            "deb http://archive.ubuntu.com/ubuntu noble main",
            "deb-src http://m/debian trixie main",
            "# deb http://m/debian trixie main",
            "deb http://security.debian.org/debian-security trixie-security main",
        ] {
            assert!(!one_line(line).is_some_and(|s| s.is_release()), "{line}");
        }
    }
}

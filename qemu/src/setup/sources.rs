//! The package sources that the machine's own apt is configured for, read to
//! learn which mirror of Debian this machine uses and which keys it trusts.
//!
//! Both notations are read: one-line `.list` files and deb822 `.sources`
//! files, see sources.list(5). What cannot be understood is left out: another
//! stanza may do.
//!
//! Many archives call their suite `stable`. Whose archive it is says the signed
//! `Release` file in it, by `Origin`; apt knows that of what it has fetched.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::{self, Apt, Release};
use crate::ui::Step;

/// What Debian's own archive says in its `Release` file.
const ORIGINS: [&str; 2] = ["Debian", "Debian Backports"];

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

/// Names an archive of Debian instead of the machine's own, for instance where
/// those name none.
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

/// All sources of Debian's own archive that this machine's apt knows. What the
/// machine itself has fetched nothing from is asked; `dir` is for that.
///
/// # Errors
/// When apt cannot be run.
pub fn of_machine(dir: &Path) -> Result<Vec<Source>> {
    let known = apt::releases_of_machine()?;
    let candidates = candidates(configured(), &known);
    if candidates.iter().all(|source| is_known(source, &known)) {
        return Ok(candidates);
    }
    let mut sources = Vec::new();
    for source in candidates {
        let asked = || -> Result<bool> {
            let apt = Apt::native(dir, std::slice::from_ref(&source))?;
            apt.update(&Step::new("Asking", source.uri.clone()))?;
            Ok(apt.releases()?.iter().all(Release::is_debian))
        };
        // One that does not answer may still be needed; apt will say so.
        if asked().unwrap_or(true) {
            sources.push(source);
        }
    }
    Ok(sources)
}

/// The archives that whole releases of Debian may come from, the likeliest first:
/// the one that [`VARIABLE`] names, or the machine's own mirrors. What comes from
/// them is still to be asked for its origin: [`Release::is`].
///
/// # Errors
/// When apt cannot be run.
pub fn mirrors() -> Result<Vec<Source>> {
    if let Some(uri) = env::var_os(VARIABLE).filter(|uri| !uri.is_empty()) {
        return Ok(vec![Source {
            uri: address(&uri)?,
            suites: Vec::new(),
            components: vec!["main".into()],
            signed_by: Path::new(KEYRING).is_file().then(|| KEYRING.into()),
        }]);
    }
    let known = apt::releases_of_machine()?;
    let mut own = candidates(configured(), &known);
    own.retain(Source::is_release);
    own.sort_by_key(|source| !is_known(source, &known));
    Ok(own)
}

/// The address of an archive, which is one by its looks: for apt a word of another kind
/// is a mistake in a file of ours.
fn address(uri: &OsStr) -> Result<String> {
    let is_address = |uri: &&str| {
        let path = uri.split_once(':').map(|(_, path)| path);
        path.is_some_and(|path| path.starts_with('/')) && !uri.contains(char::is_whitespace)
    };
    let address = uri.to_str().filter(is_address).with_context(|| {
        format!(
            "{VARIABLE}: {} is no address of an archive, such as \
             https://deb.debian.org/debian",
            uri.display()
        )
    })?;
    Ok(address.to_string())
}

/// Those sources that may be Debian's by their suites, and of which apt does not
/// know that they are somebody else's.
fn candidates(sources: Vec<Source>, known: &[Release]) -> Vec<Source> {
    let foreign = |source: &Source| {
        let mut own = known.iter().filter(|release| source.has(release));
        own.any(|release| !release.origin.is_empty() && !release.is_debian())
    };
    sources
        .into_iter()
        .filter(|source| source.is_debian() && !foreign(source))
        .collect()
}

/// Whether apt knows that all of this is Debian's.
fn is_known(source: &Source, known: &[Release]) -> bool {
    let mut own = known
        .iter()
        .filter(|release| source.has(release))
        .peekable();
    own.peek().is_some() && own.all(Release::is_debian)
}

impl Source {
    fn has(&self, release: &Release) -> bool {
        self.uri.trim_end_matches('/') == release.uri
    }
}

impl Release {
    /// Whether it is Debian's own.
    pub fn is_debian(&self) -> bool {
        ORIGINS.contains(&self.origin.as_str())
    }

    /// Whether it is Debian's own release of this name.
    pub fn is(&self, name: &str) -> bool {
        self.is_debian() && (self.codename == name || self.suite == name)
    }
}

/// All sources that this machine's apt is configured for.
fn configured() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let mut parts: Vec<PathBuf> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    parts.sort();
    files.append(&mut parts);
    files.iter().flat_map(|file| read(file)).collect()
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
    fn an_archive_has_an_address() {
        for uri in [
            "http://m/debian",
            "file:/srv/debian",
            "mirror+file:/etc/mirrors",
        ] {
            assert_eq!(address(uri.as_ref()).expect("one"), uri);
        }
        for word in [
            "nonsense",
            "/srv/debian",
            "m/debian",
            "localhost:80",
            "http://m/a b",
        ] {
            let said = address(word.as_ref()).expect_err(word).to_string();
            assert!(said.contains(VARIABLE) && said.contains(word), "{said}");
        }
    }

    #[test]
    fn whose_archive_it_is_says_its_origin_not_its_suite() {
        let brave = one_line("deb [arch=amd64] https://brave.example stable main").expect("one");
        let debian = one_line("deb http://m/debian/ stable main").expect("one");
        let unknown = one_line("deb http://n/debian trixie main").expect("one");
        let release = |uri: &str, origin: &str| Release {
            uri: uri.into(),
            origin: origin.into(),
            codename: "trixie".into(),
            suite: "stable".into(),
        };
        let known = [
            release("https://brave.example", "Brave Software"),
            release("http://m/debian", "Debian"),
        ];
        let all = vec![brave.clone(), unknown.clone(), debian.clone()];
        assert_eq!(
            candidates(all, &known),
            [unknown.clone(), debian.clone()],
            "Brave's suite is `stable` too"
        );
        assert!(is_known(&debian, &known) && !is_known(&unknown, &known));
        assert!(!is_known(&brave, &known));
        let theirs = release("http://m/debian", "Brave Software");
        assert!(!theirs.is("trixie") && !theirs.is("stable"));
        let ours = release("http://m/debian", "Debian");
        assert!(ours.is("trixie") && ours.is("stable") && !ours.is("bookworm"));
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

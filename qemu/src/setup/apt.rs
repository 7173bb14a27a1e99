//! apt with a state of its own, so that fetching an arm64 package or reading
//! another release's index leaves the machine's own apt as it was.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use super::sources::Source;
use crate::ui::{self, Step};
use crate::workspace::in_path;

/// Whether this machine has apt and dpkg.
pub fn available() -> bool {
    in_path("apt-get").is_some() && in_path("dpkg-deb").is_some()
}

/// An apt whose sources and state lie in one folder, which its user owns: only
/// what must be root runs as root.
#[derive(Clone, Debug)]
pub struct Apt {
    dir: PathBuf,
}

/// Settings that hold for every apt of ours.
const COMMON: [(&str, &str); 17] = [
    // Progress goes to standard output, for us, and so does why a file cannot be
    // fetched; the rest is errors.
    ("quiet", "1"),
    ("APT::Status-Fd", "1"),
    ("Dpkg::Use-Pty", "0"),
    ("Dir::Etc::sourceparts", "/dev/null"),
    ("Dir::Etc::preferences", "/dev/null"),
    ("Dir::Etc::preferencesparts", "/dev/null"),
    ("Dir::Cache::pkgcache", ""),
    ("Dir::Cache::srcpkgcache", ""),
    // Nothing but the index of packages is of use here.
    ("Acquire::Languages", "none"),
    (
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
        "false",
    ),
    (
        "Acquire::IndexTargets::deb::DEP-11-icons-small::DefaultEnabled",
        "false",
    ),
    (
        "Acquire::IndexTargets::deb::DEP-11-icons::DefaultEnabled",
        "false",
    ),
    ("Acquire::IndexTargets::deb::CNF::DefaultEnabled", "false"),
    ("Acquire::Retries", "3"),
    // An index that cannot be fetched is an error, not an old index.
    ("APT::Update::Error-Mode", "any"),
    // Our folders may lie where apt's own user cannot look.
    ("APT::Sandbox::User", "root"),
    // Another apt at work is waited for.
    ("DPkg::Lock::Timeout", "600"),
];

/// Lists of settings that are emptied, not added to: hooks of the machine are
/// about its own state.
const CLEARED: [&str; 4] = [
    "APT::Architectures",
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
];

/// Where a package comes from, by the archive's own signed word (the `Release`
/// file: Debian wiki, DebianRepository/Format).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The archive's address.
    pub uri: String,
    /// `Origin`, such as `Debian`.
    pub origin: String,
    /// `Codename`, such as `trixie`.
    pub codename: String,
    /// `Suite`, such as `stable`.
    pub suite: String,
}

impl Apt {
    /// Prepares an apt for packages of `architecture`, which need not be the
    /// machine's and of which nothing counts as installed.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn foreign(dir: &Path, sources: &[Source], architecture: &str) -> Result<Self> {
        let stanzas = sources
            .iter()
            .map(|s| s.stanza(Some(architecture)))
            .collect();
        let (status, cache) = (dir.join("status"), dir.join("cache"));
        let apt = Self::prepare(
            dir,
            stanzas,
            &[
                ("Dir::State::status", shown(&status)?),
                ("Dir::Cache", shown(&cache)?),
                ("APT::Architecture", architecture),
                ("APT::Architectures::", architecture),
            ],
        )?;
        write(&status, "")?;
        Ok(apt)
    }

    /// Prepares an apt that installs into this machine from `sources`.
    ///
    /// # Errors
    /// When `dir` cannot be written.
    pub fn native(dir: &Path, sources: &[Source]) -> Result<Self> {
        Self::prepare(dir, sources.iter().map(|s| s.stanza(None)).collect(), &[])
    }

    fn prepare(dir: &Path, stanzas: String, more: &[(&str, &str)]) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let (list, lists) = (dir.join("debian.sources"), dir.join("lists"));
        write(&list, &stanzas)?;
        let own = [
            ("Dir::State::lists", shown(&lists)?),
            ("Dir::Etc::sourcelist", shown(&list)?),
        ];
        let mut text = String::from("// Of cargo qemu.\n");
        for name in CLEARED {
            text += &format!("#clear {name};\n");
        }
        for (name, value) in own.iter().chain(&COMMON).chain(more) {
            text += &format!("{name} \"{value}\";\n");
        }
        let apt = Self {
            dir: dir.to_path_buf(),
        };
        write(&apt.config(), &text)?;
        Ok(apt)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("apt.conf")
    }

    /// Fetches the index of packages, as this user.
    ///
    /// # Errors
    /// With apt's own words when it fails.
    pub fn update(&self, step: &Step) -> Result<()> {
        let mut command = self.command("apt-get");
        command.arg("update");
        follow(command, step).context("apt cannot fetch the index of packages")
    }

    /// Where the packages of its index come from.
    ///
    /// # Errors
    /// When apt cannot be run.
    pub fn releases(&self) -> Result<Vec<Release>> {
        releases(self.command("apt-get"))
    }

    /// Whether this machine can have `packages` as it is: tried, and nothing done.
    pub fn can_install(&self, packages: &[&str]) -> bool {
        let mut command = self.command("apt-get");
        command
            .args(["install", "--simulate", "-y", "--no-install-recommends"])
            .args(packages)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// The command that installs `packages` into this machine, as root.
    pub fn install_command(&self, release: Option<&str>, packages: &[&str]) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"].map(String::from));
        words.extend([
            "apt-get".into(),
            "-c".into(),
            self.config().display().to_string(),
        ]);
        words.extend(["install", "-y", "--no-install-recommends"].map(String::from));
        if let Some(release) = release {
            words.extend(["-t".into(), release.into()]);
        }
        words.extend(packages.iter().map(ToString::to_string));
        words
    }

    /// Downloads `package`, or `package=version`, and returns its file, which is there
    /// until the next.
    ///
    /// # Errors
    /// With apt's own words when it fails.
    pub fn download(&self, package: &str, step: &Step) -> Result<PathBuf> {
        // Whoever was killed here has left something; the cache's lock is ours.
        let folder = self.dir.join("download");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut command = self.command("apt-get");
        command.arg("download").arg(package).current_dir(&folder);
        follow(command, step).with_context(|| format!("apt cannot download {package}"))?;
        fs::read_dir(folder)?
            .flatten()
            .map(|entry| entry.path())
            .find(|file| file.extension().is_some_and(|e| e == "deb"))
            .with_context(|| format!("apt left no file of {package}"))
    }

    /// A field of the newest version of `package`, for instance `Depends`.
    ///
    /// # Errors
    /// When the archive does not have the package.
    pub fn field(&self, package: &str, field: &str) -> Result<String> {
        let output = self
            .command("apt-cache")
            .args(["show", "--no-all-versions", package])
            .output()
            .context("cannot run apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(": "))
            .map(String::from)
            .with_context(|| format!("the archive has no package {package} (field {field})"))
    }

    /// The versions of `package` that the archive has; none where it has no such.
    ///
    /// # Errors
    /// When apt cannot be run.
    pub fn versions(&self, package: &str) -> Result<Vec<String>> {
        let output = self
            .command("apt-cache")
            .args(["madison", package])
            .output()
            .context("cannot run apt-cache")?;
        // `package | version | where`, a line each.
        let version = |line: &str| line.split('|').nth(1).map(|word| word.trim().to_string());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().filter_map(version).collect())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C")
            .arg("-c")
            .arg(self.config())
            .stdin(Stdio::null());
        command
    }
}

/// Where the packages that this machine's own apt knows come from.
///
/// # Errors
/// When apt cannot be run.
pub fn releases_of_machine() -> Result<Vec<Release>> {
    releases(Command::new("apt-get"))
}

fn releases(mut command: Command) -> Result<Vec<Release>> {
    let output = command
        .args(["indextargets", "--format"])
        .arg("$(REPO_URI)\t$(ORIGIN)\t$(CODENAME)\t$(SUITE)")
        .arg("Created-By: Packages")
        .stdin(Stdio::null())
        .output()
        .context("cannot run apt-get")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(release)
        .collect())
}

/// A line of [`releases`]; a word that apt does not know stays as it was asked.
fn release(line: &str) -> Option<Release> {
    let mut words = line.split('\t').map(|word| {
        if word.starts_with("$(") {
            String::new()
        } else {
            word.to_string()
        }
    });
    Some(Release {
        uri: words.next()?.trim_end_matches('/').into(),
        origin: words.next()?,
        codename: words.next()?,
        suite: words.next()?,
    })
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// A path as apt's configuration takes it.
fn shown(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| !text.contains(['"', ';', '\n']))
        .with_context(|| format!("apt cannot take the path {}", path.display()))
}

/// Runs a command as root: shows it first where that is not this user, so that
/// nobody gives a password for what they have not seen.
///
/// # Errors
/// When this user may not become root, and when it fails.
pub fn as_root(words: &[String], what_for: &str, step: impl FnOnce() -> Step) -> Result<()> {
    let mut command;
    if rustix::process::geteuid().is_root() {
        command = Command::new(&words[0]);
        command.args(&words[1..]);
    } else {
        let line = shlex::try_join(words.iter().map(String::as_str))
            .context("a command of ours has no NUL")?;
        if in_path("sudo").is_none() {
            bail!(
                "{what_for} must be installed by root, and there is no sudo; let root run\n\n  \
                 {line}\n"
            );
        }
        // Whole, so that it can be copied; the user must see it, even with -q.
        ui::say(format_args!("{:>12} sudo {line}", "Running"));
        // Asked now, before a status line would write over the question.
        let asked = Command::new("sudo").arg("-v").status();
        if !asked.context("cannot run sudo")?.success() {
            bail!("{what_for} must be installed by root, and sudo refused");
        }
        command = Command::new("sudo");
        command.args(words);
    }
    let step = step();
    follow(command, &step)
}

/// Runs apt and shows its progress, which it reports on its standard output as
/// `dlstatus:ITEM:PERCENT:TEXT` and `pmstatus:ITEM:PERCENT:TEXT`.
fn follow(mut command: Command, step: &Step) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run apt-get")?;
    let stderr = child.stderr.take();
    let errors = thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut stderr) = stderr {
            // What is not UTF-8 there is lost; the exit status is not.
            let _ = stderr.read_to_string(&mut text);
        }
        text
    });
    let mut transport = Transport::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let mut parts = line.splitn(4, ':');
            let kind = parts.next();
            if let Some("dlstatus" | "pmstatus") = kind {
                if let Some(Ok(percent)) = parts.nth(1).map(str::parse::<f64>) {
                    step.at(percent / 100.0);
                }
            } else {
                transport.take(&line);
            }
        }
    }
    let status = child.wait().context("apt-get was lost")?;
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        bail!("{}", why(&transport, &errors));
    }
    Ok(())
}

/// What apt says on its standard output of files that it could not fetch: `Err:`,
/// and below it why.
#[derive(Debug, Default)]
struct Transport {
    failed: bool,
    reasons: Vec<String>,
}

impl Transport {
    fn take(&mut self, line: &str) {
        let reason = line.strip_prefix("  ").map(str::trim);
        if let Some(reason) = reason.filter(|_| self.failed)
            && !self.reasons.iter().any(|known| known == reason)
        {
            self.reasons.push(reason.into());
        }
        self.failed = line.starts_with("Err:");
    }
}

/// Why apt failed: what the transport said, where the errors do not repeat it,
/// and the errors. Of an archive that cannot be reached they may say no more than
/// that it has no index.
fn why(transport: &Transport, errors: &str) -> String {
    let mut told: Vec<String> = Vec::new();
    let mut of_package = false;
    for line in errors.lines() {
        if of_package && let Some(last) = told.last_mut() {
            // Of a package dpkg says in the next line what failed.
            *last += line;
        } else if line.starts_with("E:") || line.starts_with("dpkg: error") {
            told.push(line.trim().to_string());
        }
        of_package = line.starts_with("dpkg: error");
    }
    let told = told.iter().map(String::as_str);
    let reasons = transport.reasons.iter().map(String::as_str);
    let reasons = reasons.filter(|reason| !errors.contains(reason));
    let all: Vec<_> = reasons.chain(told).collect();
    if all.is_empty() {
        errors.trim().to_string()
    } else {
        all.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_out_of_reach_is_not_one_without_an_index() {
        // apt 3.0 behind a proxy of an unreachable network.
        let mut transport = Transport::default();
        for line in [
            "Ign:1 http://m/debian bookworm InRelease",
            "Err:2 http://m/debian bookworm Release",
            "  Cannot initiate the connection to 10.1.1.1:9. - connect (101: Network is unreachable)",
            "Err:3 http://m/debian bookworm Other",
            "  Cannot initiate the connection to 10.1.1.1:9. - connect (101: Network is unreachable)",
            "Reading package lists...",
            "  of no file",
        ] {
            transport.take(line);
        }
        let text = why(
            &transport,
            "W: x\nE: The repository 'http://m/debian' no longer has a Release file.\n",
        );
        assert_eq!(
            text,
            "Cannot initiate the connection to 10.1.1.1:9. - connect (101: Network is \
             unreachable); E: The repository 'http://m/debian' no longer has a Release file."
        );
        // Where the errors say it, once is enough.
        let mut transport = Transport::default();
        transport.take("Err:1 http://m/debian bookworm InRelease");
        transport.take("  Could not connect");
        let text = why(&transport, "E: Failed to fetch http://m  Could not connect");
        assert_eq!(text, "E: Failed to fetch http://m  Could not connect");
        assert_eq!(why(&Transport::default(), " killed\n"), "killed");
        let dpkg = "x\ndpkg: error processing package a (--configure):\n b failed\nc\nE: d\n";
        assert_eq!(
            why(&Transport::default(), dpkg),
            "dpkg: error processing package a (--configure): b failed; E: d"
        );
    }

    #[test]
    fn a_release_is_read_and_what_apt_does_not_know_is_empty() {
        let read = release("http://m/debian/\tDebian\ttrixie\tstable").expect("four words");
        assert_eq!((&*read.uri, &*read.origin), ("http://m/debian", "Debian"));
        assert_eq!((&*read.codename, &*read.suite), ("trixie", "stable"));
        let unknown = release("http://m/x/\t$(ORIGIN)\t$(CODENAME)\t$(SUITE)").expect("four");
        assert_eq!((&*unknown.origin, &*unknown.codename), ("", ""));
    }
}

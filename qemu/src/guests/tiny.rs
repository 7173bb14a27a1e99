//! Tiny kernels, built from Debian's package of Linux's source.
//!
//! Each is Linux's `tinyconfig`, the fragment `guests/tiny.config` of this crate, and
//! the three options of its name. It is built outside of the source, which is fetched
//! and unpacked once and stays under `target/` for the next kernel; who removes
//! `target/undercroft/linux` has the next one built from the newest source.
//!
//! One kernel is built at a time, under a lock of their own: whoever fetches other
//! guests meanwhile need not wait.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::catalogue::{Guest, Origin};
use super::fetch::Cache;
use crate::child;
use crate::scratch;
use crate::setup::package;
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// What all of them have beyond `tinyconfig`.
const FRAGMENT: &str = include_str!("../../guests/tiny.config");

/// What a build runs, and the package of each. libc6-dev is there, too: nobody could
/// have linked this runner without it.
const NEEDS: [(&str, &str); 8] = [
    ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    ("gcc", "gcc"),
    ("make", "make"),
    ("bc", "bc"),
    ("bison", "bison"),
    ("flex", "flex"),
    ("perl", "perl-base"),
    ("xz", "xz-utils"),
];

/// Settings of the user's that would make it another kernel, or put it elsewhere.
const NOT_TAKEN: [&str; 9] = [
    "GNUMAKEFLAGS",
    "KBUILD_OUTPUT",
    "KCFLAGS",
    "KCONFIG_ALLCONFIG",
    "KCONFIG_CONFIG",
    "LLVM",
    "LOCALVERSION",
    "MAKEFLAGS",
    "MAKELEVEL",
];

/// How many lines of a failed build are shown.
const SHOWN: usize = 20;

/// A kernel under way, and its step.
struct Build<'a> {
    /// Linux's source.
    source: &'a Path,
    /// What is made of it.
    objects: PathBuf,
    name: &'static str,
    step: &'a Step,
}

/// Builds a tiny kernel, unless it is there, and returns its file.
///
/// # Errors
/// When something cannot be had or does not build; the message says what to do.
pub fn build(workspace: &Workspace, guest: &Guest) -> Result<PathBuf> {
    let Origin::Tiny { pages, bits } = guest.origin else {
        bail!("guest `{}` is no tiny kernel", guest.name);
    };
    let cache = Cache::of(workspace);
    if let Ok(file) = cache.tiny_kernel(guest.name) {
        return Ok(file);
    }
    let folder = workspace.scratch().join("linux");
    let _alone = alone(&folder)?;
    if let Ok(file) = cache.tiny_kernel(guest.name) {
        // Another run built it while we waited for the lock.
        return Ok(file);
    }
    tools(workspace)?;
    let (source, version) = source(&cache, &folder)?;
    let step = Step::new("Building", guest.name);
    let build = Build {
        source: &source,
        objects: folder.join(guest.name),
        name: guest.name,
        step: &step,
    };
    let failed = || {
        format!(
            "cannot build {}; any kernel of yours boots with --kernel and --initrd",
            guest.name
        )
    };
    let image = build.image(&options(pages, bits)).with_context(failed)?;
    let file = cache.file(guest).context("a kernel has a file")?;
    put(&image, &file, &version).with_context(failed)?;
    // The next kernel has objects of its own.
    fs::remove_dir_all(&build.objects).ok();
    step.done("Built", format_args!("{} ({version})", guest.name));
    Ok(file)
}

/// What a kernel's name says of its pages and addresses, as options.
fn options(pages: u8, bits: u8) -> [String; 3] {
    [
        format!("CONFIG_ARM64_{pages}K_PAGES=y"),
        format!("CONFIG_ARM64_VA_BITS_{bits}=y"),
        format!("CONFIG_ARM64_PA_BITS_{bits}=y"),
    ]
}

/// Keeps source and objects to whoever holds this.
fn alone(folder: &Path) -> Result<File> {
    scratch::make(folder)?;
    let lock = folder.join(".lock");
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    if lock.try_lock().is_err() {
        ui::note("Waiting", "for another run that builds a kernel");
        lock.lock().context("cannot wait for another build")?;
    }
    Ok(lock)
}

/// Installs what a build runs.
fn tools(workspace: &Workspace) -> Result<()> {
    let there = package::ensure_all(&workspace.scratch(), &NEEDS)?;
    let programs = NEEDS.map(|(program, _)| program).join(", ");
    there.with_context(|| {
        format!("a kernel is built by {programs}: install those that are missing; there is no apt")
    })
}

/// The folder of Linux's source, fetched and unpacked unless it is there, and what it
/// is: a package and its version.
fn source(cache: &Cache, folder: &Path) -> Result<(PathBuf, String)> {
    let (source, packed) = (folder.join("source"), folder.join("source.tar.xz"));
    let stamp = folder.join("version");
    let version = || fs::read_to_string(&stamp).unwrap_or_else(|_| "linux-source".into());
    if source.is_dir() {
        return Ok((source, version()));
    }
    cache.source(&packed)?;
    let part = folder.join("source.part");
    if part.exists() {
        // Of a run that was killed.
        fs::remove_dir_all(&part)?;
    }
    scratch::make(&part)?;
    let step = Step::new("Unpacking", "Linux's source");
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--xz", "--strip-components=1", "--file"])
        .arg(&packed)
        .arg("--directory")
        .arg(&part);
    follow(tar, &folder.join("unpack.log"), |_| false).with_context(|| {
        format!(
            "cannot unpack {}: it takes 2 GB of disk; remove it where it is broken",
            packed.display()
        )
    })?;
    fs::rename(&part, &source)?;
    fs::remove_file(&packed)?;
    step.done("Unpacked", "Linux's source");
    Ok((source, version()))
}

impl Build<'_> {
    /// Builds the kernel with these options of its own, and returns its file.
    fn image(&self, own: &[String]) -> Result<PathBuf> {
        scratch::make(&self.objects)?;
        self.make("tinyconfig")?;
        let config = self.objects.join(".config");
        let wanted = format!("{FRAGMENT}\n{}\n", own.join("\n"));
        // What stands further down counts.
        let text = fs::read_to_string(&config)? + &wanted;
        fs::write(&config, text)?;
        self.make("olddefconfig")?;
        let refused = refused(&wanted, &fs::read_to_string(&config)?);
        ensure!(
            refused.is_empty(),
            "this Linux does not take {}: qemu/guests/tiny.config is of another one",
            refused.join(", ")
        );
        self.make("Image")?;
        Ok(self.objects.join("arch/arm64/boot/Image"))
    }

    fn make(&self, target: &str) -> Result<()> {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let mut objects = OsStr::new("O=").to_os_string();
        objects.push(&self.objects);
        let mut make = Command::new("make");
        make.arg("--no-print-directory")
            .arg("-C")
            .arg(self.source)
            .arg(objects)
            .args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"])
            .arg(format!("-j{jobs}"))
            .arg(target)
            // Nobody is told who built it, and where.
            .envs([
                ("KBUILD_BUILD_USER", "cargo"),
                ("KBUILD_BUILD_HOST", "qemu"),
            ])
            .env("LC_ALL", "C");
        for name in NOT_TAKEN {
            make.env_remove(name);
        }
        let log = self.objects.join(format!("{target}.log"));
        follow(make, &log, |line| {
            let what = under_way(line);
            if let Some(what) = what {
                self.step.say(format!("{}: {what}", self.name));
            }
            what.is_some()
        })
    }
}

/// What a line of a kernel's build says is under way: two spaces, what is done in
/// capitals, and to which file.
fn under_way(line: &str) -> Option<&str> {
    let (verb, file) = line.strip_prefix("  ")?.split_once(' ')?;
    let is_verb = !verb.is_empty() && verb.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    is_verb.then(|| file.trim())
}

/// The lines of `wanted` that do not hold in a configuration.
fn refused<'a>(wanted: &'a str, config: &str) -> Vec<&'a str> {
    let holds = |line: &&str| match line.strip_suffix("=n") {
        // What is off stands there as a comment, or not at all.
        Some(option) => !config.lines().any(|set| {
            set.strip_prefix(option)
                .is_some_and(|rest| rest.starts_with('='))
        }),
        None => config.lines().any(|set| set == *line),
    };
    settings(wanted).filter(|line| !holds(line)).collect()
}

/// The lines of a fragment that set an option.
fn settings(fragment: &str) -> impl Iterator<Item = &str> {
    let lines = fragment.lines();
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Puts a kernel into its place in the cache; it is complete there or not at all.
fn put(image: &Path, file: &Path, version: &str) -> Result<()> {
    let folder = file.parent().context("a file of the cache has a folder")?;
    scratch::make(folder)?;
    let part = file.with_extension("part");
    let written = || -> io::Result<()> {
        fs::copy(image, &part)?;
        File::open(&part)?.sync_all()?;
        fs::write(file.with_file_name("version"), version)?;
        fs::rename(&part, file)
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}

/// Runs a program whose words go into `log`; of one that fails the last ones are
/// shown, without those of which `is_progress` says that they need not be.
fn follow(mut command: Command, log: &Path, is_progress: impl Fn(&str) -> bool) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let (said, to) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(to.try_clone()?)
        .stderr(to);
    child::end_with_us(&mut command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    // Its ends of the pipe are ours, too: nobody would see that the program closed it.
    drop(command);
    let mut kept = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut last = VecDeque::new();
    for line in BufReader::new(said).split(b'\n') {
        let line = line?;
        kept.write_all(&line)?;
        kept.write_all(b"\n")?;
        let line = ui::plain(&String::from_utf8_lossy(&line));
        if !is_progress(&line) {
            last.push_back(line);
            if last.len() > SHOWN {
                last.pop_front();
            }
        }
    }
    let status = child
        .wait()
        .with_context(|| format!("{program} was lost"))?;
    if !status.success() {
        for line in last {
            ui::say(line);
        }
        bail!(
            "{program} failed as it says above; all it said is in {}",
            log.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::catalogue::CATALOGUE;

    #[test]
    fn a_line_of_the_fragment_sets_an_option_and_none_is_set_twice() {
        let mut seen = Vec::new();
        for line in settings(FRAGMENT) {
            let (option, value) = line.split_once('=').expect(line);
            let name = option.strip_prefix("CONFIG_").expect(line);
            let is_word = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
            assert!(!name.is_empty() && name.chars().all(is_word), "{line}");
            let is_number = value.parse::<u32>().is_ok();
            assert!(is_number || ["y", "n"].contains(&value), "{line}");
            assert!(!seen.contains(&option), "{option} stands there twice");
            seen.push(option);
        }
        let comments = FRAGMENT.lines().filter(|line| line.starts_with('#'));
        for line in comments {
            assert!(!line.contains("CONFIG_"), "{line}: =n turns an option off");
        }
        // What a name says is not said here.
        for option in seen {
            for part in ["_PAGES", "_VA_BITS", "_PA_BITS"] {
                assert!(!option.contains(part), "{option}");
            }
        }
    }

    #[test]
    fn the_options_of_a_name_are_those_it_has() {
        let mut all = Vec::new();
        for guest in &CATALOGUE {
            let Origin::Tiny { pages, bits } = guest.origin else {
                continue;
            };
            let options = options(pages, bits);
            assert!(!all.contains(&options), "{}", guest.name);
            all.push(options);
        }
        assert_eq!(all.len(), 6);
        let wide = [
            "CONFIG_ARM64_64K_PAGES=y",
            "CONFIG_ARM64_VA_BITS_52=y",
            "CONFIG_ARM64_PA_BITS_52=y",
        ];
        assert_eq!(options(64, 52), wide);
    }

    #[test]
    fn an_option_that_kconfig_drops_is_told() {
        let config = "CONFIG_TTY=y\n# CONFIG_VT is not set\nCONFIG_NR_CPUS=16\n";
        let wanted = "# why\n\nCONFIG_TTY=y\nCONFIG_VT=n\nCONFIG_NR=n\nCONFIG_NR_CPUS=16\n";
        assert!(refused(wanted, config).is_empty());
        let wanted = "CONFIG_TTY=n\nCONFIG_NR_CPUS=1\nCONFIG_NEW=y\nCONFIG_VT=y";
        let all: Vec<_> = wanted.lines().collect();
        assert_eq!(refused(wanted, config), all);
    }

    #[test]
    fn progress_is_told_from_what_went_wrong() {
        assert_eq!(under_way("  CC      fs/pipe.o"), Some("fs/pipe.o"));
        assert_eq!(under_way("  CC_VDSO a.o"), Some("a.o"));
        for line in ["", "  ", "   42 | x", "  int x;", "make: *** [x] Error 1"] {
            assert_eq!(under_way(line), None, "{line}");
        }
    }

    #[test]
    fn a_build_that_fails_leaves_all_that_it_said() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("make.log");
        let mut sh = Command::new("sh");
        sh.args(["-c", "echo '  CC      a.o'; echo 'a.c: no' >&2; exit 2"]);
        let why = follow(sh, &log, |_| true).expect_err("it failed");
        let why = why.to_string();
        assert!(
            why.contains("sh failed") && why.contains("make.log"),
            "{why}"
        );
        let said = fs::read_to_string(&log).expect("is there");
        assert_eq!(said, "  CC      a.o\na.c: no\n");
        let why = follow(Command::new("/nowhere/make"), &log, |_| false);
        let why = why.expect_err("there is none").to_string();
        assert_eq!(why, "cannot run /nowhere/make");
    }

    #[test]
    fn a_kernel_in_the_cache_is_whole_and_says_what_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = folder.path().join("built");
        fs::write(&image, "kernel").expect("writes");
        let file = folder.path().join("cache/tiny/Image");
        put(&image, &file, "linux-source-7.3 7.3.4-1").expect("puts");
        assert_eq!(fs::read(&file).expect("is there"), b"kernel");
        let version = fs::read_to_string(file.with_file_name("version"));
        assert_eq!(version.expect("is there"), "linux-source-7.3 7.3.4-1");
        let left = fs::read_dir(folder.path().join("cache/tiny")).expect("a folder");
        assert_eq!(left.count(), 2);
    }
}

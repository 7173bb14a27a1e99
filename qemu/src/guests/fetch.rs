//! Fetches guests' kernels and busybox from Debian's archive into a cache.
//!
//! A guest is complete when its file stands in the cache: files are made
//! beside their place and renamed into it, under a lock of the whole cache.
//! Nothing is fetched twice.
//!
//! A cache of the user's (`UNDERCROFT_GUESTS`) holds the same: of each guest of
//! the archive a folder of its name with `Image`, or with the firmware's own file,
//! and `busybox/busybox`; beside each a file `version`, which only modules need: those
//! of a kernel, in its folder's `modules`, are of the very package that it names. What
//! is there is used as it is, other files do not matter, and what is missing is
//! put there or, where this user may not write, into the cache under `target/`.
//!
//! A tiny kernel is built ([`super::tiny`]), and then stands there as the others do. A
//! cache of the user's may also have it as `NAME.Image.gz`, beside the folders.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use super::catalogue::{self, BUSYBOX_RELEASE, Guest, Origin, SOURCE_RELEASE};
use crate::scratch;
use crate::setup::apt::{self, Apt};
use crate::setup::sources::{self, Source};
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// The cache of guests.
#[derive(Debug)]
pub struct Cache {
    /// Where files are looked for, in this order; the last can be written.
    dirs: Vec<PathBuf>,
    scratch: PathBuf,
}

impl Cache {
    /// The cache of this workspace; nothing is made yet.
    pub fn of(workspace: &Workspace) -> Self {
        let theirs = workspace.guests_of_user().map(Path::to_path_buf);
        let enough = theirs.as_deref().is_some_and(can_be_written);
        let ours = (!enough).then(|| workspace.guests());
        Self {
            dirs: theirs.into_iter().chain(ours).collect(),
            scratch: workspace.scratch(),
        }
    }

    /// Where the file of a guest stands, or would. A program of our own has none here.
    pub fn file(&self, guest: &Guest) -> Option<PathBuf> {
        let name = match guest.origin {
            Origin::Linux { .. } | Origin::Tiny { .. } => "Image",
            Origin::Firmware { file, .. } => file.rsplit('/').next()?,
            Origin::Ours { .. } => return None,
        };
        let file = Path::new(guest.name).join(name);
        let packed = match guest.origin {
            Origin::Tiny { .. } => self.found(format!("{}.Image.gz", guest.name).as_ref()),
            _ => None,
        };
        Some((self.found(&file).or(packed)).unwrap_or_else(|| self.own().join(file)))
    }

    /// The file of a tiny kernel, where the cache has it.
    ///
    /// # Errors
    /// How to build it, where it does not: nobody's mistake.
    pub fn tiny_kernel(&self, name: &str) -> Result<PathBuf, String> {
        let guest = catalogue::find(name).map_err(|error| error.to_string())?;
        let file = self.file(guest).filter(|file| file.is_file());
        file.ok_or_else(|| guest.not_built())
    }

    /// Where this file is, or would be put.
    fn place(&self, file: &Path) -> PathBuf {
        self.found(file).unwrap_or_else(|| self.own().join(file))
    }

    /// Where this file is.
    fn found(&self, file: &Path) -> Option<PathBuf> {
        let mut places = self.dirs.iter().map(|dir| dir.join(file));
        places.find(|place| place.is_file())
    }

    /// The folder that can be written.
    fn own(&self) -> &Path {
        self.dirs.last().expect("there is always one")
    }

    /// What is in the cache for this guest: a package and its version.
    pub fn version(&self, guest: &Guest) -> Option<String> {
        let file = self.file(guest)?;
        if !file.is_file() {
            return None;
        }
        let stamp = fs::read_to_string(file.with_file_name("version")).ok();
        Some(stamp.map_or_else(|| "in the cache".into(), |text| text.trim().to_string()))
    }

    /// The kernel of a guest of the archive, fetched unless it is there, or a tiny one
    /// that was built.
    ///
    /// # Errors
    /// When it is not there and cannot be fetched; the message says why and
    /// what to do.
    pub fn kernel(&self, guest: &Guest) -> Result<PathBuf> {
        let file = self
            .file(guest)
            .with_context(|| format!("{} is built, not fetched", guest.name))?;
        if matches!(guest.origin, Origin::Tiny { .. }) {
            return self.tiny_kernel(guest.name).map_err(|why| anyhow!(why));
        }
        let fetch = |step: &Step| match guest.origin {
            Origin::Linux { release, package } => {
                let apt = self.apt(release, step)?;
                let depends = apt.field(package, "Depends")?;
                let kernel = depends
                    .split([',', ' '])
                    .find(|word| word.starts_with("linux-image-"))
                    .with_context(|| format!("{package} names no kernel: {depends}"))?;
                let kernel = holder(&apt, kernel)?;
                let wanted = Wanted::new(&file, |path| {
                    path.starts_with("boot/vmlinuz-")
                        || (path.starts_with("usr/lib/modules/") && path.ends_with("/vmlinuz"))
                });
                take(&apt, &kernel, None, vec![wanted], step)
            }
            Origin::Firmware {
                release,
                package,
                file: inside,
                ..
            } => {
                let apt = self.apt(release, step)?;
                let wanted = Wanted::new(&file, |path| path == inside);
                take(&apt, package, None, vec![wanted], step)
            }
            Origin::Tiny { .. } | Origin::Ours { .. } => unreachable!("is not fetched"),
        };
        self.ensure(std::slice::from_ref(&file), guest.about, fetch)?;
        Ok(file)
    }

    /// Modules of a Linux of the archive by their names, packed as Debian does since
    /// 13 (busybox's `insmod` reads them so); fetched unless they are there.
    ///
    /// # Errors
    /// As for [`Cache::kernel`], and when the archive has those of another version
    /// than the kernel that is there.
    pub fn modules(&self, guest: &Guest, names: &[&str]) -> Result<Vec<PathBuf>> {
        let Origin::Linux { release, .. } = guest.origin else {
            bail!("{} has no modules", guest.name);
        };
        let kernel = self.kernel(guest)?;
        let folder = Path::new(guest.name).join("modules");
        let packed = |name: &&str| format!("{name}.ko.xz");
        let files: Vec<_> = (names.iter())
            .map(|name| self.place(&folder.join(packed(name))))
            .collect();
        self.ensure(&files, &format!("modules of {}", guest.about), |step| {
            let stamp = kernel.with_file_name("version");
            let (package, version) = (fs::read_to_string(&stamp).ok())
                .and_then(|text| modules_package(text.trim()))
                .with_context(|| format!("{} names no package", stamp.display()))?;
            let apt = self.apt(release, step)?;
            if !apt.versions(&package)?.contains(&version) {
                bail!(
                    "the archive has no {package} {version} any more; remove {} to have \
                     a newer kernel fetched, too",
                    kernel.display()
                );
            }
            let wanted = names.iter().zip(&files).map(|(name, file)| {
                let end = format!("/{}", packed(name));
                Wanted::new(file, move |path| path.ends_with(&end))
            });
            take(&apt, &package, Some(&version), wanted.collect(), step)
        })?;
        Ok(files)
    }

    /// The static busybox for arm64, fetched unless it is there.
    ///
    /// # Errors
    /// As for [`Cache::kernel`].
    pub fn busybox(&self) -> Result<PathBuf> {
        let file = self.place(Path::new("busybox/busybox"));
        let one = std::slice::from_ref(&file);
        self.ensure(one, "busybox for the guests' shell", |step| {
            let apt = self.apt(BUSYBOX_RELEASE, step)?;
            let wanted = Wanted::new(&file, |path| {
                path == "bin/busybox" || path == "usr/bin/busybox"
            });
            take(&apt, "busybox-static", None, vec![wanted], step)
        })?;
        Ok(file)
    }

    /// Puts the newest source of Linux that Debian has, as its package packs it, into
    /// this file, and into `version` beside it which one that is.
    ///
    /// # Errors
    /// As for [`Cache::kernel`].
    pub fn source(&self, file: &Path) -> Result<()> {
        self.ensure(&[file.to_path_buf()], "Linux's source", |step| {
            let apt = self.apt(SOURCE_RELEASE, step)?;
            let depends = apt.field("linux-source", "Depends")?;
            let package = (depends.split([',', ' ']))
                .find(|word| word.starts_with("linux-source-"))
                .with_context(|| format!("linux-source names no source: {depends}"))?;
            let wanted = Wanted::new(file, |path| {
                path.starts_with("usr/src/linux-source-") && path.ends_with(".tar.xz")
            });
            take(&apt, package, None, vec![wanted], step)
        })
    }

    /// Has these files, of one folder, fetched together unless all are there.
    fn ensure(
        &self,
        files: &[PathBuf],
        what: &str,
        fetch: impl FnOnce(&Step) -> Result<String>,
    ) -> Result<()> {
        let missing = || files.iter().find(|file| !file.is_file());
        let Some(file) = missing() else {
            return Ok(());
        };
        let folder = file.parent().context("a file of the cache has a folder")?;
        scratch::make(folder)?;
        scratch::make(self.own())?;
        let lock = self.own().join(".lock");
        let lock =
            File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        lock.lock().context("cannot lock the cache of guests")?;
        if missing().is_none() {
            // Another runner fetched it while we waited for the lock.
            return Ok(());
        }
        let step = Step::new("Fetching", what.to_string());
        let version = fetch(&step).with_context(|| {
            format!("cannot fetch {what}; any kernel of yours boots with --kernel and --initrd")
        })?;
        fs::write(file.with_file_name("version"), &version)?;
        step.done("Fetched", format_args!("{what} ({version})"));
        Ok(())
    }

    /// An apt for arm64 packages of `release`, from the machine's own mirror.
    /// Its index is fetched once a process, when something is missing.
    fn apt(&self, release: &str, step: &Step) -> Result<Apt> {
        if !apt::available() {
            bail!("this machine has no apt to fetch Debian's packages with");
        }
        let mut failed = None;
        for mirror in sources::mirrors()? {
            match self.apt_of(&mirror, release, step) {
                Ok(apt) => return Ok(apt),
                // The likeliest comes first: what it says is what matters.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| {
            anyhow!(
                "this machine's apt knows no archive of Debian: name one in {}, \
                 and install Debian's keys, debian-archive-keyring",
                sources::VARIABLE
            )
        }))
    }

    fn apt_of(&self, mirror: &Source, release: &str, step: &Step) -> Result<Apt> {
        let mirror = mirror.with_suites(&[release]);
        ui::note("Using", format_args!("{} {release}", mirror.uri));
        let dir = self.scratch.join(format!("apt-{release}"));
        let apt = Apt::foreign(&dir, std::slice::from_ref(&mirror), "arm64")?;
        apt.update(step)?;
        let releases = apt.releases()?;
        let other = releases.iter().find(|found| !found.is(release));
        if let Some(other) = other {
            bail!(
                "{} is no archive of Debian's {release}: it says that it is {} {}",
                mirror.uri,
                other.origin,
                other.codename
            );
        }
        Ok(apt)
    }
}

/// Whether this user can put files into a folder, or make it where it is not there yet;
/// and is to: of root, whom nothing refuses, what the folder says counts too.
fn can_be_written(dir: &Path) -> bool {
    use rustix::fs::{Access, access};
    let there = dir.ancestors().find(|dir| dir.exists());
    // Of a name without a folder, the one that we are in.
    let there = there.filter(|dir| !dir.as_os_str().is_empty());
    let there = there.unwrap_or(Path::new("."));
    let may = there
        .metadata()
        .is_ok_and(|about| about.is_dir() && !about.permissions().readonly());
    may && access(there, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// The package that holds the kernel: `package` itself or, as Debian has it from
/// Linux 7.0 on, the `linux-binary-` package that it depends on.
fn holder(apt: &Apt, package: &str) -> Result<String> {
    for field in ["Pre-Depends", "Depends"] {
        // A package need not depend on any.
        let depends = apt.field(package, field).unwrap_or_default();
        if let Some(binary) = binary_package(&depends) {
            return Ok(binary.into());
        }
    }
    Ok(package.into())
}

fn binary_package(depends: &str) -> Option<&str> {
    depends
        .split([',', ' ', '|'])
        .find(|word| word.starts_with("linux-binary-"))
}

/// The package that holds the modules of a kernel, and its version: the kernel's own
/// or, where that is a `linux-binary-` package, one beside it. `stamp` is the package
/// that the kernel is of, and its version.
fn modules_package(stamp: &str) -> Option<(String, String)> {
    let (package, version) = stamp.split_once(' ')?;
    let package = match package.strip_prefix("linux-binary-") {
        Some(release) => format!("linux-modules-{release}"),
        None => package
            .starts_with("linux-image-")
            .then(|| package.into())?,
    };
    Some((package, version.into()))
}

/// A file of a package.
struct Wanted<'a> {
    /// Where it is put.
    to: &'a Path,
    /// Which one it is, by its path there.
    is: Box<dyn Fn(&str) -> bool + 'a>,
}

impl<'a> Wanted<'a> {
    fn new(to: &'a Path, is: impl Fn(&str) -> bool + 'a) -> Self {
        let is = Box::new(is);
        Self { to, is }
    }
}

/// Downloads `package`, the newest unless a version is given, takes files out of it
/// and returns the package and its version.
fn take(
    apt: &Apt,
    package: &str,
    version: Option<&str>,
    wanted: Vec<Wanted<'_>>,
    step: &Step,
) -> Result<String> {
    let (version, asked) = match version {
        Some(version) => (version.into(), format!("{package}={version}")),
        None => (apt.field(package, "Version")?, package.into()),
    };
    step.say(format!("{package} {version}"));
    let deb = apt.download(&asked, step)?;
    extract(&deb, wanted).with_context(|| format!("cannot unpack {package}"))?;
    Ok(format!("{package} {version}"))
}

fn extract(deb: &Path, wanted: Vec<Wanted<'_>>) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stdout = child.stdout.take().context("dpkg-deb has an output")?;
    let taken = pick(stdout, wanted);
    // It may still be writing what nobody wants.
    child.kill().ok();
    child.wait().context("dpkg-deb was lost")?;
    taken
}

/// Takes these files out of an archive, the first of it for each.
fn pick(tar: impl Read, mut wanted: Vec<Wanted<'_>>) -> Result<()> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.strip_prefix("./").unwrap_or(&path);
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Some(at) = wanted.iter().position(|wanted| (wanted.is)(path)) else {
            continue;
        };
        let Wanted { to, .. } = wanted.swap_remove(at);
        let part = to.with_extension("part");
        let mut file = File::create(&part)?;
        io::copy(&mut entry, &mut file)?;
        file.sync_all()?;
        fs::rename(&part, to)?;
        if wanted.is_empty() {
            return Ok(());
        }
    }
    let names: Vec<_> = wanted.iter().filter_map(|w| w.to.file_name()).collect();
    bail!("what is wanted is not in the package: {names:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_may_be_in_a_package_of_its_own() {
        let depends = "kmod, linux-binary-7.3.4-arm64 (= 7.3.4-1), initramfs-tools | dracut";
        assert_eq!(binary_package(depends), Some("linux-binary-7.3.4-arm64"));
        assert_eq!(binary_package("kmod, linux-base (>= 4.3)"), None);
    }

    #[test]
    fn a_tiny_kernel_is_found_built_or_in_a_users_cache() {
        let (theirs, ours) = (tempfile::tempdir(), tempfile::tempdir());
        let (theirs, ours) = (theirs.expect("a folder"), ours.expect("a folder"));
        let cache = Cache {
            dirs: [&theirs, &ours].map(|dir| dir.path().into()).into(),
            scratch: ours.path().into(),
        };
        const NAME: &str = "tiny-4k-va52-pa52";
        let guest = catalogue::find(NAME).expect("one of the catalogue");
        let built = ours.path().join(NAME).join("Image");
        assert_eq!(cache.file(guest), Some(built.clone()), "where it would be");
        assert_eq!(cache.tiny_kernel(NAME), Err(guest.not_built()));
        let why = cache.kernel(guest).expect_err("nothing builds unasked");
        assert_eq!(why.to_string(), guest.not_built());

        let packed = theirs.path().join(format!("{NAME}.Image.gz"));
        fs::write(&packed, "theirs").expect("writes");
        assert_eq!(cache.tiny_kernel(NAME), Ok(packed));
        fs::create_dir(ours.path().join(NAME)).expect("makes");
        fs::write(&built, "ours").expect("writes");
        assert_eq!(cache.kernel(guest).expect("is there"), built);
        // Others are not looked for in that form.
        let debian = catalogue::find("debian13").expect("one of the catalogue");
        fs::write(theirs.path().join("debian13.Image.gz"), "no").expect("writes");
        assert_eq!(cache.version(debian), None);
    }

    #[test]
    fn modules_are_of_their_kernels_version() {
        let of = |stamp| modules_package(stamp);
        let both = |package: &str, version: &str| Some((package.into(), version.into()));
        assert_eq!(
            of("linux-binary-7.3.4+deb13-arm64 7.3.4-1~bpo13+1"),
            both("linux-modules-7.3.4+deb13-arm64", "7.3.4-1~bpo13+1")
        );
        assert_eq!(
            of("linux-image-6.12.117-arm64 6.12.117-1"),
            both("linux-image-6.12.117-arm64", "6.12.117-1")
        );
        assert_eq!(of(""), None);
        assert_eq!(of("in the cache"), None);
    }

    #[test]
    fn the_wanted_file_is_taken_and_a_missing_one_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut tar = tar::Builder::new(Vec::new());
        for (path, data) in [
            ("./boot/config-6", &b"no"[..]),
            ("./boot/vmlinuz-6", b"kernel"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_cksum();
            tar.append_data(&mut header, path, data).expect("append");
        }
        let tar = tar.into_inner().expect("a tar");
        let (to, config) = (dir.path().join("Image"), dir.path().join("config"));
        let kernel = || Wanted::new(&to, |p| p.starts_with("boot/vmlinuz-"));
        let both = vec![kernel(), Wanted::new(&config, |p| p == "boot/config-6")];
        pick(&tar[..], both).expect("are there");
        assert_eq!(fs::read(&to).expect("read"), b"kernel");
        assert_eq!(fs::read(&config).expect("read"), b"no");
        let other = Wanted::new(&config, |p| p == "boot/other");
        let why = pick(&tar[..], vec![kernel(), other]).expect_err("one is missing");
        assert!(why.to_string().contains("config"), "{why}");
    }

    /// Whoever runs this: root may write anywhere.
    #[test]
    fn a_folder_that_says_read_only_is_not_written_to() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let there = folder.path().join("there");
        fs::create_dir(&there).expect("a folder in it");
        assert!(can_be_written(&there) && can_be_written(&there.join("not/yet")));
        fs::set_permissions(&there, fs::Permissions::from_mode(0o555)).expect("ours");
        assert!(!can_be_written(&there) && !can_be_written(&there.join("not/yet")));
        assert!(!there.join("not").exists());
    }
}

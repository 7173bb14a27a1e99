//! Fetches guests' kernels and busybox from Debian's archive into a cache.
//!
//! A guest is complete when its file stands in the cache: files are made
//! beside their place and renamed into it, under a lock of the whole cache.
//! Nothing is fetched twice, and a cache that came from elsewhere
//! (`UNDERCROFT_GUESTS`) is used as it is.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::catalogue::{BUSYBOX_RELEASE, Guest, Origin};
use crate::setup::apt::{self, Apt};
use crate::setup::sources;
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// The cache of guests.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    scratch: PathBuf,
}

impl Cache {
    /// The cache of this workspace; nothing is made yet.
    pub fn of(workspace: &Workspace) -> Self {
        Self {
            dir: workspace.guests(),
            scratch: workspace.scratch(),
        }
    }

    /// Where the file of a fetched guest stands, whether or not it does.
    /// A guest of our own has none here.
    pub fn file(&self, guest: &Guest) -> Option<PathBuf> {
        let name = match guest.origin {
            Origin::Linux { .. } => "Image",
            Origin::Firmware { file, .. } => file.rsplit('/').next()?,
            Origin::Ours { .. } => return None,
        };
        Some(self.dir.join(guest.name).join(name))
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

    /// The kernel of a guest of the archive, fetched unless it is there.
    ///
    /// # Errors
    /// When it is not there and cannot be fetched; the message says why and
    /// what to do.
    pub fn kernel(&self, guest: &Guest) -> Result<PathBuf> {
        let file = self
            .file(guest)
            .with_context(|| format!("{} is built, not fetched", guest.name))?;
        let fetch = |step: &Step| match guest.origin {
            Origin::Linux { release, package } => {
                let apt = self.apt(release, step)?;
                let depends = apt.field(package, "Depends")?;
                let kernel = depends
                    .split([',', ' '])
                    .find(|word| word.starts_with("linux-image-"))
                    .with_context(|| format!("{package} names no kernel: {depends}"))?;
                take(&apt, kernel, &file, step, |path| {
                    path.starts_with("boot/vmlinuz-")
                        || (path.starts_with("usr/lib/modules/") && path.ends_with("/vmlinuz"))
                })
            }
            Origin::Firmware {
                release,
                package,
                file: inside,
            } => {
                let apt = self.apt(release, step)?;
                take(&apt, package, &file, step, |path| path == inside)
            }
            Origin::Ours { .. } => unreachable!("file() was None"),
        };
        self.ensure(&file, guest.about, fetch)?;
        Ok(file)
    }

    /// The static busybox for arm64, fetched unless it is there.
    ///
    /// # Errors
    /// As for [`Cache::kernel`].
    pub fn busybox(&self) -> Result<PathBuf> {
        let file = self.dir.join("busybox").join("busybox");
        self.ensure(&file, "busybox for the guests' shell", |step| {
            let apt = self.apt(BUSYBOX_RELEASE, step)?;
            take(&apt, "busybox-static", &file, step, |path| {
                path == "bin/busybox" || path == "usr/bin/busybox"
            })
        })?;
        Ok(file)
    }

    fn ensure(
        &self,
        file: &Path,
        what: &str,
        fetch: impl FnOnce(&Step) -> Result<String>,
    ) -> Result<()> {
        if file.is_file() {
            return Ok(());
        }
        let folder = file.parent().context("a file of the cache has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = self.dir.join(".lock");
        let lock =
            File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        lock.lock().context("cannot lock the cache of guests")?;
        if file.is_file() {
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
        let Some(mirror) = sources::mirror() else {
            bail!(
                "this machine's apt knows no archive of Debian: name one in {}, \
                 and install Debian's keys, debian-archive-keyring",
                sources::VARIABLE
            );
        };
        let mirror = mirror.with_suites(&[release]);
        ui::note("Using", format_args!("{} {release}", mirror.uri));
        let dir = self.scratch.join(format!("apt-{release}"));
        let apt = Apt::foreign(&dir, &[mirror], "arm64")?;
        apt.update(false, step)?;
        Ok(apt)
    }
}

/// Downloads `package`, takes the file that `wanted` picks out of it to `to`
/// and returns the package and its version.
fn take(
    apt: &Apt,
    package: &str,
    to: &Path,
    step: &Step,
    wanted: impl Fn(&str) -> bool,
) -> Result<String> {
    let version = apt.field(package, "Version")?;
    step.say(format!("{package} {version}"));
    let (_folder, deb) = apt.download(package, step)?;
    extract(&deb, to, wanted).with_context(|| format!("cannot unpack {package}"))?;
    Ok(format!("{package} {version}"))
}

fn extract(deb: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let stdout = child.stdout.take().context("dpkg-deb has an output")?;
    let taken = pick(stdout, to, wanted);
    // It may still be writing what nobody wants.
    child.kill().ok();
    child.wait().context("dpkg-deb was lost")?;
    taken
}

fn pick(tar: impl Read, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let path = path.strip_prefix("./").unwrap_or(&path);
        if !entry.header().entry_type().is_file() || !wanted(path) {
            continue;
        }
        let part = to.with_extension("part");
        let mut file = File::create(&part)?;
        io::copy(&mut entry, &mut file)?;
        file.sync_all()?;
        fs::rename(&part, to)?;
        return Ok(());
    }
    bail!("the file that is wanted is not in the package");
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let to = dir.path().join("Image");
        pick(&tar[..], &to, |p| p.starts_with("boot/vmlinuz-")).expect("is there");
        assert_eq!(fs::read(&to).expect("read"), b"kernel");
        assert!(pick(&tar[..], &to, |p| p == "boot/other").is_err());
    }
}

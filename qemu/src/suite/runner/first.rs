//! The first hour on a machine: what it lacks, what cannot be had, where things
//! go, and what root is asked for.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::super::call::{Call, Called, LIMIT};
use super::super::{Case, Context, Lane, Outcome};
use super::{LINUX, kernel, program};
use crate::guests::fetch::Cache;
use crate::setup::apt;
use crate::workspace::{GUESTS, in_path};

/// An archive that nobody serves.
const NOWHERE: &str = "http://127.0.0.1:9/debian";

/// `nobody` and `nogroup`, who may not write what is not theirs.
const NOBODY: u32 = 65534;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = guests_and_caches();
    cases.extend(own_builds());
    cases
}

fn guests_and_caches() -> Vec<Case> {
    vec![
        maybe("runner/offline", |context| {
            if !apt::available() {
                return Ok(Outcome::skipped("there is no apt"));
            }
            let folder = tempfile::tempdir_in(&context.folder)?;
            let called = fetch_nowhere(context, folder.path())?.call()?.ended(125)?;
            let called =
                called
                    .calmly()?
                    .tells(&["error", "apt cannot fetch the index", "127.0.0.1"])?;
            ensure!(
                !called.stderr.contains("has no package"),
                "{}",
                called.stderr
            );
            done()
        }),
        Case::new("runner/relative-cache", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let guests = folder.path().join("cache");
            fs::create_dir_all(guests.join("u-boot"))?;
            fs::write(guests.join("u-boot/u-boot.bin"), "firmware")?;
            let called = Call::bare(context)
                .args(["--bare", "--dry-run", "--guest", "u-boot"])
                .env(GUESTS, "cache")
                .within(folder.path())
                .call()?
                .ended(0)?;
            let file = guests.canonicalize()?.join("u-boot/u-boot.bin");
            ensure!(
                called.stdout.contains(file.to_str().context("a path")?),
                "{called:?}"
            );
            Ok(())
        }),
        Case::new("runner/wrong-cache", |context| {
            // What is not looked for does not matter; what is no file is no guest.
            let folder = tempfile::tempdir_in(&context.folder)?;
            let guests = folder.path().join("cache");
            fs::create_dir_all(guests.join("u-boot"))?;
            fs::write(guests.join("tiny-4k-va48-pa48.Image.gz"), "another kernel")?;
            fs::write(guests.join("u-boot/u-boot.bin"), "firmware")?;
            Call::bare(context)
                .args(["--bare", "--dry-run", "--guest", "u-boot"])
                .env(GUESTS, &guests)
                .call()?
                .ended(0)?;
            Ok(())
        }),
        maybe("runner/read-only-cache", read_only_cache).boots(LINUX),
        maybe("runner/sudo-is-shown", sudo_is_shown),
        Case::new("runner/tests-fetch-what-they-need", |context| {
            let folder = tempfile::tempdir_in(&context.folder)?;
            let programs = without_apt(context, folder.path())?;
            let call = |filters: &[&str]| -> Result<Called> {
                Call::program(&context.runner, LIMIT)
                    .args(["test", "--image"])
                    .args([&context.image()?.file])
                    .args(filters)
                    .env("PATH", &programs)
                    .env(GUESTS, folder.path().join("guests"))
                    .call()
            };
            // Nothing can be fetched, and this needs nothing.
            call(&["--filter", "runner/old-qemu"])?
                .ended(0)?
                .shows(&["1 passed, 0 failed"])?;
            ensure!(!folder.path().join("guests/busybox").exists(), "it tried");
            // What another needs does not stop it.
            call(&["--filter", "runner/old-qemu", "--filter", "runner/dry-run"])?
                .ended(125)?
                .shows(&["passed runner/old-qemu"])?
                .shows(&["error: runner/dry-run", "no apt"])?
                .shows(&["1 passed, 1 failed"])?;
            Ok(())
        }),
    ]
}

fn own_builds() -> Vec<Case> {
    vec![
        Case::of_cargo("runner/copied-tree-builds-itself", |context: &Context| {
            let Some(copy) = copy_of_sources(context)? else {
                return Ok(Outcome::skipped("there is no git to list the sources"));
            };
            // From a subfolder, with a target directory that is meant from there.
            let sub = copy.path().join("tests");
            let called = Call::program(&context.runner, LIMIT)
                .args(["guests", "build", "hello", "--json"])
                .within(&sub)
                .env("CARGO_MANIFEST_DIR", copy.path().join("qemu/start"))
                .env("CARGO_TARGET_DIR", "own")
                .call()?
                .ended(0)?;
            let guest: serde_json::Value = serde_json::from_str(called.stdout.trim())?;
            let file = Path::new(guest["file"].as_str().context("a file")?);
            let own = sub.canonicalize()?.join("own");
            ensure!(
                file.starts_with(&own),
                "{} is not in {}",
                file.display(),
                own.display()
            );
            ensure!(file.is_file(), "it is not there");
            done()
        }),
        Case::of_cargo("runner/first-build-is-quiet", |context: &Context| {
            let Some(copy) = copy_of_sources(context)? else {
                return Ok(Outcome::skipped("there is no git to list the sources"));
            };
            let cargo = || {
                Call::program(crate::workspace::cargo(), super::super::boots::LIMIT * 5)
                    .within(copy.path())
                    .without("CARGO_TARGET_DIR")
                    .without("CARGO_MANIFEST_DIR")
                    .env(
                        GUESTS,
                        context
                            .workspace
                            .guests_of_user()
                            .unwrap_or(&context.workspace.guests()),
                    )
            };
            let called = cargo()
                .args(["qemu", "run", "-q", "--log", "error", "--guest", "hello"])
                .call()?
                .ended(0)?
                .shows(&["hello"])?;
            ensure!(called.stderr.is_empty(), "{}", called.stderr);
            // An error is told whatever was asked for.
            fs::write(copy.path().join("host-loader/src/lib.rs"), "what is this")?;
            let called = cargo()
                .args(["qemu", "run", "-q", "--guest", "hello"])
                .call()?;
            called
                .ended(125)?
                .tells(&["host-loader/src/lib.rs:1"])?
                .tells(&["error", "does not build"])?;
            done()
        })
        .full(),
    ]
}

fn done() -> Result<Outcome> {
    Ok(super::super::Counts::ONE.into())
}

/// A case that may be skipped, beside others.
pub fn maybe(
    name: &str,
    body: impl Fn(&Context) -> Result<Outcome> + Send + Sync + 'static,
) -> Case {
    let mut case = Case::of_cargo(name, body);
    case.lane = Lane::Shared;
    case
}

/// A call that must fetch a guest from an archive that nobody serves; all that it
/// writes goes into `folder`.
fn fetch_nowhere(context: &Context, folder: &Path) -> Result<Call> {
    Ok(Call::program(&context.runner, LIMIT)
        .args(["guests", "fetch", "debian12"])
        .env(GUESTS, folder.join("guests"))
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env("UNDERCROFT_DEBIAN_MIRROR", NOWHERE))
}

/// A folder of programs for `PATH`, as another distribution has them.
pub fn without_apt(context: &Context, folder: &Path) -> Result<std::path::PathBuf> {
    let programs = folder.join("bin");
    fs::create_dir(&programs)?;
    let qemu = &context.qemu()?.program;
    symlink(qemu, programs.join("qemu-system-aarch64"))?;
    for name in ["cargo", "rustc"] {
        let real = in_path(name).with_context(|| format!("{name} is not in PATH"))?;
        symlink(real, programs.join(name))?;
    }
    Ok(programs)
}

/// The runner as another user's, if this is root: who may write everywhere finds
/// nothing read-only. It lives in a folder that this user can reach, as what it
/// needs of cargo does; `home` is its own. `None` where that cannot be.
fn as_nobody(context: &Context, home: &Path) -> Result<Option<Call>> {
    let tree = home.join("tree");
    for package in ["hyp", "qemu"] {
        fs::create_dir_all(tree.join(package))?;
        fs::write(tree.join(package).join("Cargo.toml"), "")?;
    }
    // All that is asked of cargo here is where things are.
    let metadata = serde_json::json!({
        "workspace_root": tree,
        "target_directory": home.join("target"),
        "packages": [],
    });
    let cargo = home.join("cargo");
    program(
        &cargo,
        &format!("#!/bin/sh\ncat <<'END'\n{metadata}\nEND\n"),
    )?;
    let runner = home.join("runner");
    fs::copy(&context.runner, &runner)?;
    let settings = |call: Call| {
        call.env("HOME", home)
            .env("CARGO", &cargo)
            .env("CARGO_MANIFEST_DIR", tree.join("qemu"))
            .within(home)
    };
    if !rustix::process::geteuid().is_root() {
        return Ok(Some(settings(Call::program(&runner, LIMIT))));
    }
    let Some(setpriv) = in_path("setpriv") else {
        return Ok(None);
    };
    chown(home, Some(NOBODY), Some(NOBODY))?;
    let user = NOBODY.to_string();
    let call = Call::program(setpriv, LIMIT)
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .args([&runner]);
    Ok(Some(settings(call)))
}

/// A cache that this user may not write is read; what is missing goes elsewhere.
fn read_only_cache(context: &Context) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let guests = folder.path().join("guests");
    fs::create_dir_all(guests.join("u-boot"))?;
    fs::write(guests.join("u-boot/u-boot.bin"), "firmware")?;
    fs::set_permissions(&guests, PermissionsExt::from_mode(0o555))?;
    let home = folder.path().join("home");
    fs::create_dir(&home)?;
    let call = || -> Result<Option<Call>> {
        let call = as_nobody(context, &home)?;
        Ok(call.map(|call| {
            call.env(GUESTS, &guests)
                .env("UNDERCROFT_DEBIAN_MIRROR", NOWHERE)
        }))
    };
    let Some(first) = call()? else {
        return Ok(Outcome::skipped("no other user can run this program"));
    };
    let dry = ["run", "--bare", "--dry-run", "--guest"];
    first
        .args(dry)
        .args(["u-boot"])
        .call()?
        .ended(0)?
        .shows(&["guests/u-boot/u-boot.bin"])?;
    // What it lacks is looked for in the cache of one's own.
    let own = home.join("target/guests/debian13");
    fs::create_dir_all(&own)?;
    fs::copy(kernel(context)?, own.join("Image"))?;
    let busybox = home.join("target/guests/busybox");
    fs::create_dir_all(&busybox)?;
    fs::copy(
        Cache::of(&context.workspace).busybox()?,
        busybox.join("busybox"),
    )?;
    let call = call()?.context("it was there just now")?;
    call.args(dry)
        .args(["debian13"])
        .call()?
        .ended(0)?
        .shows(&["target/guests/debian13/Image"])?;
    fs::set_permissions(&guests, PermissionsExt::from_mode(0o755))?;
    done()
}

/// What root is to do is shown before sudo asks, to the word; and root gets
/// nothing to write in this user's folders.
fn sudo_is_shown(context: &Context) -> Result<Outcome> {
    let folder = tempfile::tempdir()?;
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let home = folder.path().join("home");
    let programs = folder.path().join("bin");
    fs::create_dir(&home)?;
    fs::create_dir(&programs)?;
    let Some(call) = as_nobody(context, &home)? else {
        return Ok(Outcome::skipped("no other user can run this program"));
    };
    for name in ["sh", "cat"] {
        let real = in_path(name).with_context(|| format!("{name} is not in PATH"))?;
        symlink(real, programs.join(name))?;
    }
    let said = home.join("said");
    program(&programs.join("apt-get"), "#!/bin/sh\nexit 0\n")?;
    program(&programs.join("dpkg-deb"), "#!/bin/sh\nexit 0\n")?;
    // It asks for no password, and then refuses.
    let sudo = format!(
        "#!/bin/sh\n[ \"$1\" = -v ] && exit 0\necho sudo \"$@\" >>'{}'\nexit 1\n",
        said.display()
    );
    program(&programs.join("sudo"), &sudo)?;
    let called = call
        .args(["run", "--guest", "hello"])
        .env("PATH", &programs)
        .without("UNDERCROFT_QEMU")
        .call()?
        .ended(125)?
        .calmly()?;
    let ran = fs::read_to_string(&said).context("sudo was not asked")?;
    let mut shown = called
        .stderr
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Running sudo "))
        .filter_map(shlex::split);
    for line in ran.lines() {
        let words: Vec<_> = line.split(' ').skip(1).map(String::from).collect();
        ensure!(
            shown.any(|shown| shown == words) && line.contains("apt-get"),
            "`{line}` was not shown:\n{}",
            called.stderr
        );
        // The index of packages is this user's to fetch.
        ensure!(!words.contains(&"update".into()), "{line}");
    }
    let owner = said.metadata()?.uid();
    for entry in walk(&home.join("target"))? {
        ensure!(
            entry.symlink_metadata()?.uid() == owner,
            "{}",
            entry.display()
        );
    }
    done()
}

fn walk(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut all = vec![folder.to_path_buf()];
    let mut next = 0;
    while next < all.len() {
        if all[next].is_dir() {
            for entry in fs::read_dir(&all[next])? {
                all.push(entry?.path());
            }
        }
        next += 1;
    }
    Ok(all)
}

/// The sources of this tree in a folder of their own; `None` without git.
fn copy_of_sources(context: &Context) -> Result<Option<tempfile::TempDir>> {
    let root = &context.workspace.root;
    let listed = Call::program("git", LIMIT)
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .within(root)
        .call();
    let Some(listed) = listed.ok().filter(|listed| listed.code == Some(0)) else {
        return Ok(None);
    };
    let copy = tempfile::tempdir_in(&context.folder)?;
    for file in listed.stdout.lines() {
        let (from, to) = (root.join(file), copy.path().join(file));
        // Removed, and git does not know yet.
        if !from.is_file() {
            continue;
        }
        fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        fs::copy(from, to)?;
    }
    Ok(Some(copy))
}

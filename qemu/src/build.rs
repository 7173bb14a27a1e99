//! Builds what runs on the machine: the image, and our bare-metal programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use qemu_start::At;
use serde::Deserialize;

use crate::child::end_with_us;
use crate::config;
use crate::image::{appendix, assemble, flat, header};
use crate::setup::qemu::Qemu;
use crate::setup::rust::{self, TARGET};
use crate::ui::{self, Step};
use crate::workspace::Workspace;

/// The image file and the programs that it was made of.
#[derive(Clone, Debug)]
pub struct Image {
    /// `undercroft.img`.
    pub file: PathBuf,
    /// `hyp` as an ELF file, for a debugger; `None` for an image that was not
    /// built here.
    pub hyp: Option<PathBuf>,
    /// `host-loader` as an ELF file, likewise.
    pub host: Option<PathBuf>,
}

/// The image in `file`, or one that is built.
///
/// # Errors
/// When there is no such file, and as for [`image`].
pub fn image_or(workspace: &Workspace, file: Option<&Path>) -> Result<Image> {
    let Some(file) = file else {
        return image(workspace);
    };
    config::check_file(file).context("--image")?;
    // A kernel is an arm64 Image, too, but has no host behind it.
    let ours = header::is_image(&header::read(file)?)
        && appendix::payload_len(&read(file)?).is_some_and(|len| len > 0);
    if !ours {
        bail!(
            "--image: {} is no image of Undercroft's, which `cargo qemu image` makes; a \
             guest's kernel is for --kernel",
            file.display()
        );
    }
    Ok(Image {
        file: file.to_path_buf(),
        hyp: None,
        host: None,
    })
}

/// As [`image_or`], begun now, while other things are made ready: what is returned waits
/// for it. An error of theirs does not; what is being built then ends with the runner.
pub fn begin_image_or(
    workspace: &Workspace,
    file: Option<&Path>,
) -> impl FnOnce() -> Result<Image> + use<> {
    let (workspace, file) = (workspace.clone(), file.map(Path::to_path_buf));
    let image = thread::spawn(move || image_or(&workspace, file.as_deref()));
    || image.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Builds `hyp` and `host-loader` and puts the image together.
///
/// # Errors
/// When one of them does not build; cargo has then told why.
pub fn image(workspace: &Workspace) -> Result<Image> {
    rust::ensure_target(&workspace.root)?;
    let what = ["-p", "hyp", "-p", "host-loader"];
    let built = cargo_build(workspace, "Undercroft's image", &what)?;
    let elf = |name: &str| {
        built
            .iter()
            .find(|(target, _)| target == name)
            .map(|(_, file)| file.clone())
            .with_context(|| format!("cargo built no program `{name}`"))
    };
    let (hyp, host) = (elf("hyp")?, elf("host-loader")?);
    let image =
        assemble::image(&read(&hyp)?, &read(&host)?).context("cannot put the image together")?;
    let file = workspace.scratch().join("undercroft.img");
    if write_if_new(&file, &image)? {
        ui::note(
            "Assembled",
            format_args!("undercroft.img ({})", ui::bytes(image.len() as u64)),
        );
    }
    Ok(Image {
        file,
        hyp: Some(hyp),
        host: Some(host),
    })
}

/// Builds the bare-metal program `name` of the crate `tests`, and returns it
/// in a form that boots as a kernel: an arm64 Image where the program has that
/// header, else its ELF file.
///
/// # Errors
/// When there is no such program, or it does not build.
pub fn program(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    let elf = elf(workspace, name)?;
    let Ok(image) = flat::binary(&read(&elf)?) else {
        return Ok(elf);
    };
    if !header::is_image(&image) {
        return Ok(elf);
    }
    let file = workspace.scratch().join(format!("{name}.img"));
    write_if_new(&file, &image)?;
    Ok(file)
}

/// Builds the bare-metal program `name` of the crate `tests`, as an ELF file.
///
/// # Errors
/// When there is no such program, or it does not build.
pub fn elf(workspace: &Workspace, name: &str) -> Result<PathBuf> {
    if !workspace.has_bin("tests", name) {
        bail!("this tree has no bare-metal program `{name}` in `tests`");
    }
    rust::ensure_target(&workspace.root)?;
    let what = ["-p", "tests", "--bin", name];
    let built = cargo_build(workspace, &format!("guest {name}"), &what)?;
    let elf = built.into_iter().find(|(target, _)| target == name);
    elf.map(|(_, file)| file)
        .with_context(|| format!("cargo built no program `{name}`"))
}

/// Builds the plugin that counts instructions, for this QEMU.
///
/// # Errors
/// When it does not build.
pub fn plugin(workspace: &Workspace, qemu: &Qemu) -> Result<PathBuf> {
    let mut command = workspace.cargo();
    // Not a release: its crates are those that built the runner just now.
    command
        .args(["build", "-p", "qemu", "--example", "count"])
        .env("UNDERCROFT_PLUGIN_API", qemu.plugin_api().to_string());
    let output = call(&mut command, "the counting plugin")?;
    artifacts(&output)
        .find(|artifact| artifact.target.name == "count")
        .and_then(|artifact| artifact.filenames.into_iter().next())
        .context("cargo built no plugin")
}

const MESSAGES: [&str; 1] = ["--message-format=json-render-diagnostics"];

/// Runs cargo for [`TARGET`]. Returns the programs by name.
fn cargo_build(
    workspace: &Workspace,
    title: &str,
    what: &[&str],
) -> Result<Vec<(String, PathBuf)>> {
    let mut command = workspace.cargo();
    command
        .args(["build", "--release", "--target", TARGET])
        .args(what)
        // The user's flags would replace those that make images relocatable.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_FUTURE_INCOMPAT_REPORT_FREQUENCY", "never");
    let output = call(&mut command, title)?;
    Ok(artifacts(&output)
        .filter_map(|artifact| Some((artifact.target.name, artifact.executable?)))
        .collect())
}

/// Runs a build, silent unless it fails, and returns cargo's messages.
fn call(command: &mut Command, title: &str) -> Result<Vec<u8>> {
    command.args(MESSAGES);
    end_with_us(command);
    let mut step = None;
    let colour = console::colors_enabled_stderr();
    let built = qemu_start::build(command, colour, |at| {
        // Nothing to build is nothing to say.
        let text = match &at {
            At::Building { done, of, .. } if done == of => return,
            At::Building { what, .. } => format!("{title}: {what}"),
            At::Other(line) if line.starts_with("Finished") => return,
            At::Other(line) => format!("{title}: {line}"),
        };
        let step = step.get_or_insert_with(|| Step::new("Building", title.to_string()));
        step.say(text);
        if let At::Building { done, of, .. } = at {
            step.count(done.into(), of.into());
        }
    });
    let built = built.context("cannot run cargo")?;
    if !built.well {
        drop(step);
        ui::say(String::from_utf8_lossy(&built.said).trim_end());
        bail!("{title} does not build; cargo says above why");
    }
    if let Some(step) = step {
        step.done("Built", title);
    }
    Ok(built.stdout)
}

#[derive(Deserialize)]
struct Artifact {
    reason: String,
    target: ArtifactTarget,
    executable: Option<PathBuf>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct ArtifactTarget {
    name: String,
}

fn artifacts(messages: &[u8]) -> impl Iterator<Item = Artifact> {
    messages
        .split(|b| *b == b'\n')
        .filter_map(|line| serde_json::from_slice::<Artifact>(line).ok())
        .filter(|artifact| artifact.reason == "compiler-artifact")
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a file unless it holds just that; it is replaced whole, so that a
/// machine that boots from it at this moment sees one or the other.
fn write_if_new(file: &Path, data: &[u8]) -> Result<bool> {
    if fs::read(file).is_ok_and(|old| old == data) {
        return Ok(false);
    }
    let folder = file.parent().context("a file of ours has a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut part = tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    std::io::Write::write_all(&mut part, data)?;
    part.persist(file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(true)
}

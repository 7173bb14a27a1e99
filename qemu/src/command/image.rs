//! `cargo qemu image -o DIR`: the files that any arm64 boot loader needs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::build;
use crate::bundle;
use crate::run::options::Boot;
use crate::run::plan::{self, Shell};
use crate::scratch;
use crate::ui;
use crate::workspace::Workspace;

/// What to put where.
#[derive(Args, Debug)]
pub struct Options {
    /// The folder to write into; made if it is not there
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,

    #[command(flatten)]
    boot: Boot,
}

/// Writes the files.
///
/// # Errors
/// When something cannot be built, fetched or written.
pub fn image(options: &Options) -> Result<u8> {
    let workspace = Workspace::find()?;
    let folder = scratch::folder(&workspace)?;
    let guests = plan::guests(
        &workspace,
        &options.boot,
        &Shell::Interactive,
        false,
        folder.path(),
    )?;
    let image = build::image_or(&workspace, options.boot.image.as_deref())?;
    let bundle = match &guests.bundle {
        None => bundle::pack(&guests.list)?,
        Some(None) => bail!("--bundle none: a bundle is what is written here"),
        Some(Some(file)) => {
            fs::read(file).with_context(|| format!("cannot read {}", file.display()))?
        }
    };
    let bootargs = options.boot.bootargs(false, options.boot.log);
    let cpus = plan::cpus(&options.boot, &guests)?;
    let ram = plan::ram(&options.boot, &guests, bundle.len() as u64)?;
    let fill = |template: &str| {
        template
            .replace("@BOOTARGS@", &bootargs)
            .replace("@MEMORY@", &ram.as_mib().to_string())
            .replace("@CPUS@", &cpus.to_string())
    };
    let to = &options.output;
    // All of it before anything is written: it may be the very file that is.
    let image =
        fs::read(&image.file).with_context(|| format!("cannot read {}", image.file.display()))?;
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    write(to, "undercroft.img", &image)?;
    write(to, "bundle.cpio", &bundle)?;
    write(
        to,
        "boot.cmd",
        fill(include_str!("image/boot.cmd")).as_bytes(),
    )?;
    write(
        to,
        "README.txt",
        fill(include_str!("image/README.txt")).as_bytes(),
    )?;
    ui::note(
        "Wrote",
        format_args!("{} (README.txt says how to boot it)", to.display()),
    );
    Ok(0)
}

fn write(folder: &Path, name: &str, data: &[u8]) -> Result<()> {
    let file = folder.join(name);
    fs::write(&file, data).with_context(|| format!("cannot write {}", file.display()))
}

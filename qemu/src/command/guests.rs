//! `cargo qemu guests`: what the catalogue has, fetched or built ahead.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::build;
use crate::guests::catalogue::{self, CATALOGUE, Guest, Origin};
use crate::guests::fetch::Cache;
use crate::guests::tiny;
use crate::ui;
use crate::workspace::Workspace;

/// What to do with guests; nothing said, list them.
#[derive(Args, Debug)]
pub struct Options {
    /// Print JSON: an object a line for each guest
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the catalogue, and what the cache holds of it
    List,
    /// Fetch guests into the cache
    Fetch {
        /// Which ones [default: all that can be fetched]
        names: Vec<String>,
    },
    /// Build our own guests, and tiny kernels that are named
    Build {
        /// Which ones [default: our own programs, which takes seconds; a tiny
        /// kernel takes long and is built only when it is named]
        names: Vec<String>,
    },
}

/// A guest as one JSON object on a line.
#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    about: &'a str,
    /// `fetched` from Debian's archive, or `built` here.
    origin: &'a str,
    /// Its file, where there is one yet.
    file: Option<PathBuf>,
    /// The package and its version, where that is known.
    version: Option<String>,
}

/// Lists, fetches or builds.
///
/// # Errors
/// When a guest is unknown or cannot be had.
pub fn guests(options: &Options) -> Result<u8> {
    let workspace = Workspace::find()?;
    let list = match options.action.as_ref().unwrap_or(&Action::List) {
        Action::List => CATALOGUE.iter().collect(),
        Action::Fetch { names } => {
            let guests = chosen(names, false)?;
            for guest in &guests {
                fetch(&workspace, guest)?;
            }
            guests
        }
        Action::Build { names } => {
            let guests = chosen(names, true)?;
            for guest in &guests {
                let file = build(&workspace, guest)?;
                if !options.json {
                    ui::note("Built", format_args!("{}: {}", guest.name, file.display()));
                }
            }
            guests
        }
    };
    let listed = matches!(options.action, None | Some(Action::List));
    let cache = Cache::of(&workspace);
    for guest in list {
        if options.json {
            object(&workspace, &cache, guest, listed)?;
        } else if listed {
            let state = match guest.origin {
                Origin::Ours { .. } => "built from this tree".to_string(),
                Origin::Tiny { .. } => cache
                    .version(guest)
                    .unwrap_or_else(|| "not built yet".into()),
                Origin::Linux { .. } | Origin::Firmware { .. } => cache
                    .version(guest)
                    .unwrap_or_else(|| "not fetched yet".into()),
            };
            ui::print(format_args!("{:<22}{}", guest.name, guest.about))?;
            ui::print(format_args!("{:<22}{state}", ""))?;
        }
    }
    Ok(0)
}

/// Prints a guest as JSON; one of ours is built for it unless it is only listed.
fn object(workspace: &Workspace, cache: &Cache, guest: &Guest, listed: bool) -> Result<()> {
    let ours = matches!(guest.origin, Origin::Ours { .. });
    let file = match (ours, listed) {
        (true, true) => None,
        (true, false) => Some(build(workspace, guest)?),
        (false, _) => cache.file(guest).filter(|file| file.is_file()),
    };
    let line = Line {
        name: guest.name,
        about: guest.about,
        origin: if is_built(guest) { "built" } else { "fetched" },
        file,
        version: cache.version(guest),
    };
    let text = serde_json::to_string(&line).context("a guest is JSON")?;
    Ok(ui::print(text)?)
}

fn build(workspace: &Workspace, guest: &Guest) -> Result<PathBuf> {
    match guest.origin {
        Origin::Ours { program } => build::program(workspace, program),
        Origin::Tiny { .. } => {
            let file = tiny::build(workspace, guest)?;
            Cache::of(workspace).busybox()?;
            Ok(file)
        }
        Origin::Linux { .. } | Origin::Firmware { .. } => {
            anyhow::bail!("guest `{}` is fetched, not built", guest.name)
        }
    }
}

/// Fetches a guest, and busybox if it gets a shell.
///
/// # Errors
/// When one of them cannot be had.
pub fn fetch(workspace: &Workspace, guest: &Guest) -> Result<()> {
    let cache = Cache::of(workspace);
    cache.kernel(guest)?;
    if guest.has_shell() {
        cache.busybox()?;
    }
    Ok(())
}

/// Whether a guest is built on this machine.
fn is_built(guest: &Guest) -> bool {
    matches!(guest.origin, Origin::Ours { .. } | Origin::Tiny { .. })
}

/// The named guests, or all that are built or not; a tiny kernel only by its name.
fn chosen(names: &[String], built: bool) -> Result<Vec<&'static Guest>> {
    let of_that_kind = |guest: &&Guest| is_built(guest) == built;
    if names.is_empty() {
        let is_quick = |guest: &&Guest| !matches!(guest.origin, Origin::Tiny { .. });
        let all = CATALOGUE.iter().filter(of_that_kind);
        return Ok(all.filter(is_quick).collect());
    }
    let mut guests = Vec::new();
    for name in names {
        let guest = catalogue::find(name)?;
        if of_that_kind(&guest) {
            guests.push(guest);
        } else if built {
            anyhow::bail!("guest `{name}` is fetched, not built: cargo qemu guests fetch {name}");
        } else {
            anyhow::bail!("guest `{name}` is built, not fetched: cargo qemu guests build {name}");
        }
    }
    Ok(guests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_tiny_kernel_that_was_not_named() {
        let names = |built| -> Vec<_> {
            let all = chosen(&[], built).expect("all");
            all.iter().map(|guest| guest.name).collect()
        };
        assert_eq!(names(true), ["hello"]);
        assert!(names(false).contains(&"debian13"));
        assert!(!names(false).iter().any(|name| name.starts_with("tiny")));
        let tiny = ["tiny-64k-va48-pa48".to_string()];
        assert_eq!(chosen(&tiny, true).expect("it is built").len(), 1);
        let why = chosen(&tiny, false).expect_err("it is not fetched");
        let why = why.to_string();
        assert!(
            why.ends_with("cargo qemu guests build tiny-64k-va48-pa48"),
            "{why}"
        );
    }
}

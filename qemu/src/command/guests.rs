//! `cargo qemu guests`: what the catalogue has, fetched or built ahead.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::build;
use crate::guests::catalogue::{self, CATALOGUE, Guest, Origin};
use crate::guests::fetch::Cache;
use crate::ui;
use crate::workspace::Workspace;

/// What to do with guests; nothing said, list them.
#[derive(Args, Debug)]
pub struct Options {
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
    /// Build our own guests
    Build {
        /// Which ones [default: all that can be built]
        names: Vec<String>,
    },
}

/// Lists, fetches or builds.
///
/// # Errors
/// When a guest is unknown or cannot be had.
pub fn guests(options: &Options) -> Result<u8> {
    let workspace = Workspace::find()?;
    match options.action.as_ref().unwrap_or(&Action::List) {
        Action::List => list(&workspace),
        Action::Fetch { names } => fetch(&workspace, &chosen(names, false)?)?,
        Action::Build { names } => {
            for guest in chosen(names, true)? {
                if let Origin::Ours { program } = guest.origin {
                    let file = build::program(&workspace, program)?;
                    ui::note("Built", format_args!("{}: {}", guest.name, file.display()));
                }
            }
        }
    }
    Ok(0)
}

/// Fetches these guests, and busybox for those that get a shell.
///
/// # Errors
/// When one cannot be had.
pub fn fetch(workspace: &Workspace, guests: &[&Guest]) -> Result<()> {
    let cache = Cache::of(workspace);
    for guest in guests {
        cache.kernel(guest)?;
        if guest.has_shell() {
            cache.busybox()?;
        }
    }
    Ok(())
}

/// The named guests, or all that are ours or not.
fn chosen(names: &[String], ours: bool) -> Result<Vec<&'static Guest>> {
    let is_ours = |guest: &&Guest| matches!(guest.origin, Origin::Ours { .. }) == ours;
    if names.is_empty() {
        return Ok(CATALOGUE.iter().filter(is_ours).collect());
    }
    let mut guests = Vec::new();
    for name in names {
        let guest = catalogue::find(name)?;
        if is_ours(&guest) {
            guests.push(guest);
        } else if ours {
            anyhow::bail!("guest `{name}` is fetched, not built: cargo qemu guests fetch {name}");
        } else {
            anyhow::bail!("guest `{name}` is built, not fetched: cargo qemu guests build {name}");
        }
    }
    Ok(guests)
}

fn list(workspace: &Workspace) {
    let cache = Cache::of(workspace);
    for guest in &CATALOGUE {
        let state = match guest.origin {
            Origin::Ours { .. } => "built from this tree".to_string(),
            Origin::Linux { .. } | Origin::Firmware { .. } => cache
                .version(guest)
                .unwrap_or_else(|| "not fetched yet".into()),
        };
        println!("{:<14}{}", guest.name, guest.about);
        println!("{:<14}{state}", "");
    }
}

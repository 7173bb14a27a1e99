//! The bundle: what the image gets as its initial RAM disk, a `newc` archive
//! with `guests.toml` and the files that it names.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::config::{self, Guest};
use crate::newc::Archive;

pub use guest_config::FILE as CONFIGURATION;

/// Packs `guests` with their files.
///
/// # Errors
/// When a file cannot be read or is too large.
pub fn pack(guests: &[Guest]) -> Result<Vec<u8>> {
    pack_to(guests, Vec::new())
}

/// Packs them into `file`, and returns its size in bytes.
///
/// # Errors
/// When a file cannot be read or is too large, or when this one cannot be written.
pub fn write(guests: &[Guest], file: &Path) -> Result<u64> {
    let cannot = || format!("cannot write {}", file.display());
    let packed = pack_to(guests, File::create(file).with_context(cannot)?)?;
    Ok(packed.metadata().with_context(cannot)?.len())
}

fn pack_to<W: Write>(guests: &[Guest], to: W) -> Result<W> {
    let mut archive = Archive::to(to);
    archive.file(CONFIGURATION, config::packed(guests)?.as_bytes())?;
    for guest in guests {
        archive.folder(&guest.name)?;
        let initrd = guest
            .initrd
            .as_ref()
            .map(|path| (guest.packed_initrd(), path));
        let files = [(guest.packed_kernel(), &guest.kernel)];
        for (name, path) in files.into_iter().chain(initrd) {
            archive.copy(&name, path)?;
        }
    }
    archive.finish()
}

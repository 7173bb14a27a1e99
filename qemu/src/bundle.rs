//! The bundle: what the image gets as its initial RAM disk, a `newc` archive
//! with `guests.toml` and the files that it names.

use std::fs;

use anyhow::{Context, Result};

use crate::config::{self, Guest};
use crate::newc::Archive;

pub use guest_config::FILE as CONFIGURATION;

/// Packs `guests` with their files.
///
/// # Errors
/// When a file cannot be read or is too large.
pub fn pack(guests: &[Guest]) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    archive.file(CONFIGURATION, config::packed(guests)?.as_bytes())?;
    for guest in guests {
        archive.folder(&guest.name);
        let initrd = guest
            .initrd
            .as_ref()
            .map(|path| (guest.packed_initrd(), path));
        let files = [(guest.packed_kernel(), &guest.kernel)];
        for (name, path) in files.into_iter().chain(initrd) {
            let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.file(&name, &data)?;
        }
    }
    archive.finish()
}

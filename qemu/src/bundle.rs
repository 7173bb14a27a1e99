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
    let to = File::create(file).with_context(cannot)?;
    let packed = pack_to(guests, to).with_context(cannot)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;

    /// What is full is where the bundle goes to, not where its kernel is.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_named() {
        let kernel = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(kernel.path(), [7; 100_000]).expect("writes");
        let guest = Guest::new("a", kernel.path(), Size::mib(64));
        let full = Path::new("/dev/full");
        let said = format!("{:#}", write(&[guest], full).expect_err("no room"));
        assert!(said.starts_with("cannot write /dev/full: "), "{said}");
    }
}

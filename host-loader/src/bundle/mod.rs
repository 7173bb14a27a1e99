//! The bundle: what the boot loader passed as initrd, a cpio archive with
//! `guests.toml` and the files that it names.

pub mod config;
pub mod cpio;
pub mod quote;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use config::GuestConfig;
use cpio::Archive;
use quote::Value;

/// The configuration's file name in the archive.
pub const CONFIG: &str = "guests.toml";

/// A bundle whose configuration is well-formed and whose files are there.
#[derive(Debug)]
pub struct Bundle<'a> {
    /// Its files.
    pub archive: Archive<'a>,
    /// The guests, in the order of the file; at least one.
    pub guests: Vec<GuestConfig>,
}

impl<'a> Bundle<'a> {
    /// Reads the archive and the configuration in it.
    ///
    /// Errors are one sentence that names file, line and what was expected.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let archive = Archive::parse(bytes).map_err(|e| format!("bundle: {e}"))?;
        let text = archive.file(CONFIG).ok_or_else(|| {
            format!("bundle: the initrd holds no {CONFIG}; it says which guests to run")
        })?;
        let guests = config::parse(text)?;
        for guest in &guests {
            for file in [Some(&guest.kernel), guest.initrd.as_ref()]
                .into_iter()
                .flatten()
            {
                let bytes = archive.file(&file.value).ok_or_else(|| {
                    format!(
                        "{CONFIG}:{}: guest \"{}\": {} = {}: the bundle holds no such file",
                        file.line,
                        guest.name,
                        file.key,
                        Value(&file.value),
                    )
                })?;
                if bytes.is_empty() {
                    return Err(format!(
                        "{CONFIG}:{}: guest \"{}\": {} = {}: the file is empty",
                        file.line,
                        guest.name,
                        file.key,
                        Value(&file.value),
                    ));
                }
            }
        }
        Ok(Self { archive, guests })
    }
}

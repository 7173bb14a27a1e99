//! The bundle: what the boot loader passed as initrd, a cpio archive with
//! `guests.toml` and the files that it names.

pub mod cpio;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use cpio::Archive;
pub use guest_config::FILE as CONFIG;
use guest_config::quote::Value;
use guest_config::{Located, console_owner};

/// A bundle whose configuration is well-formed and whose files are there.
#[derive(Debug)]
pub struct Bundle<'a> {
    /// Its files.
    pub archive: Archive<'a>,
    /// The guests, in the order of the file; at least one.
    pub guests: Vec<Located>,
    /// Which of them owns the first UART.
    pub console: Option<usize>,
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
        let guests = guest_config::parse(text).map_err(|e| format!("{CONFIG}:{e}"))?;
        for located in &guests {
            let guest = &located.guest;
            let files = [
                ("kernel", Some(&guest.kernel)),
                ("initrd", guest.initrd.as_ref()),
            ];
            for (key, file) in files {
                let Some(file) = file else { continue };
                let wrong = match archive.file(file) {
                    None => "the bundle holds no such file",
                    Some([]) => "the file is empty",
                    Some(_) => continue,
                };
                return Err(format!(
                    "{CONFIG}:{}: guest \"{}\": {key} = {}: {wrong}",
                    located.place(key),
                    guest.name,
                    Value(file),
                ));
            }
        }
        let console = console_owner(guests.iter().map(|located| located.guest.console));
        Ok(Self {
            archive,
            guests,
            console,
        })
    }
}

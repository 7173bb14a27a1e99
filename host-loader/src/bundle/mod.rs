//! The bundle: what the boot loader passed as initrd, a cpio archive with
//! `guests.toml` and the files that it names.

pub mod cpio;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use cpio::{Archive, CpioError};
pub use guest_config::FILE as CONFIG;
use guest_config::quote::Value;
use guest_config::{Located, Place, console_owner};

/// Why a bundle is none: one sentence that names file, line and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// It is no archive.
    Archive(CpioError),
    /// It has no configuration.
    NoConfig,
    /// Its configuration is not well-formed.
    Config(guest_config::Error),
    /// A file that a guest's setting names is not there, or empty.
    File {
        /// Where the setting stands.
        place: Place,
        /// The guest's name.
        guest: String,
        /// The setting.
        key: &'static str,
        /// The file.
        file: String,
        /// It is there, and empty.
        is_empty: bool,
    },
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(why) => write!(f, "bundle: {why}"),
            Self::NoConfig => write!(
                f,
                "bundle: the initrd holds no {CONFIG}; it says which guests to run"
            ),
            Self::Config(why) => write!(f, "{CONFIG}:{why}"),
            Self::File {
                place,
                guest,
                key,
                file,
                is_empty,
            } => {
                let file = Value(file);
                let wrong = if *is_empty {
                    "the file is empty"
                } else {
                    "the bundle holds no such file"
                };
                write!(
                    f,
                    "{CONFIG}:{place}: guest \"{guest}\": {key} = {file}: {wrong}"
                )
            }
        }
    }
}

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
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let archive = Archive::parse(bytes).map_err(BundleError::Archive)?;
        let text = archive.file(CONFIG).ok_or(BundleError::NoConfig)?;
        let guests = guest_config::parse(text).map_err(BundleError::Config)?;
        for located in &guests {
            let guest = &located.guest;
            let files = [
                ("kernel", Some(&guest.kernel)),
                ("initrd", guest.initrd.as_ref()),
            ];
            for (key, file) in files {
                let Some(file) = file else { continue };
                let is_empty = match archive.file(file) {
                    None => false,
                    Some([]) => true,
                    Some(_) => continue,
                };
                return Err(BundleError::File {
                    place: located.place(key),
                    guest: guest.name.clone(),
                    key,
                    file: file.clone(),
                    is_empty,
                });
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

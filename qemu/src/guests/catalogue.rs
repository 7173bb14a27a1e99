//! The guests that the runner knows by name.

use anyhow::{Result, bail};

/// A guest that can be had by its name alone.
#[derive(Debug)]
pub struct Guest {
    /// What `--guest` takes.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a guest's kernel comes from.
#[derive(Clone, Copy, Debug)]
pub enum Origin {
    /// The kernel that a package of Debian depends on; it gets our initial
    /// RAM disk, and with it a shell.
    Linux {
        /// The release of Debian.
        release: &'static str,
        /// The package that names the newest kernel.
        package: &'static str,
    },
    /// A file of a package of Debian, which needs nothing else.
    Firmware {
        /// The release of Debian.
        release: &'static str,
        /// The package.
        package: &'static str,
        /// The file inside the package.
        file: &'static str,
    },
    /// A program of this project's `tests`.
    Ours {
        /// The program's name.
        program: &'static str,
    },
}

/// All of them; the first is the default.
pub const CATALOGUE: [Guest; 7] = [
    Guest {
        name: "debian13",
        about: "Debian 13, Linux 6.12, 4K pages",
        origin: Origin::Linux {
            release: "trixie",
            package: "linux-image-arm64",
        },
    },
    Guest {
        name: "debian13-16k",
        about: "Debian 13, Linux 6.12, 16K pages",
        origin: Origin::Linux {
            release: "trixie",
            package: "linux-image-arm64-16k",
        },
    },
    Guest {
        name: "debian12",
        about: "Debian 12, Linux 6.1, 4K pages",
        origin: Origin::Linux {
            release: "bookworm",
            package: "linux-image-arm64",
        },
    },
    Guest {
        name: "debian-backports",
        about: "Debian's newest Linux for 13, 4K pages",
        origin: Origin::Linux {
            release: "trixie-backports",
            package: "linux-image-arm64",
        },
    },
    Guest {
        name: "debian-backports-16k",
        about: "Debian's newest Linux for 13, 16K pages",
        origin: Origin::Linux {
            release: "trixie-backports",
            package: "linux-image-arm64-16k",
        },
    },
    Guest {
        name: "u-boot",
        about: "U-Boot for QEMU's virt machine, to its prompt",
        origin: Origin::Firmware {
            release: "trixie",
            package: "u-boot-qemu",
            file: "usr/lib/u-boot/qemu_arm64/u-boot.bin",
        },
    },
    Guest {
        name: "hello",
        about: "our own bare-metal guest: prints and powers off",
        origin: Origin::Ours { program: "hello" },
    },
];

/// The release whose busybox the guests' initial RAM disk holds.
pub const BUSYBOX_RELEASE: &str = "trixie";

impl Guest {
    /// Whether the guest is a Linux that gets our shell.
    pub fn has_shell(&self) -> bool {
        matches!(self.origin, Origin::Linux { .. })
    }
}

/// Finds a guest by its name.
///
/// # Errors
/// When the catalogue has no such guest; the message lists those it has.
pub fn find(name: &str) -> Result<&'static Guest> {
    if let Some(guest) = CATALOGUE.iter().find(|guest| guest.name == name) {
        return Ok(guest);
    }
    let names: Vec<_> = CATALOGUE.iter().map(|guest| guest.name).collect();
    bail!(
        "there is no guest `{name}`: choose one of {}",
        names.join(", ")
    );
}

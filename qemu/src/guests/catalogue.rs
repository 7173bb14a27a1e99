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
        /// Where it is loaded and entered; as any raw binary by default.
        load: Option<u64>,
    },
    /// A Linux of few options that is built here from Debian's package of the
    /// source; it gets our initial RAM disk, and with it a shell.
    Tiny {
        /// The size of its pages in KiB.
        pages: u8,
        /// Bits of its virtual and of its physical addresses.
        bits: u8,
    },
    /// A program of this project's `tests`.
    Ours {
        /// The program's name.
        program: &'static str,
    },
}

/// All of them; the first is the default.
pub const CATALOGUE: [Guest; 14] = [
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
            load: None,
        },
    },
    Guest {
        name: "edk2",
        about: "EDK2's UEFI for QEMU's virt machine, to its shell",
        origin: Origin::Firmware {
            release: "trixie",
            package: "qemu-efi-aarch64",
            file: "usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
            // In flash, where it is linked.
            load: Some(0),
        },
    },
    Guest {
        name: "hello",
        about: "our own bare-metal guest: prints and powers off",
        origin: Origin::Ours { program: "hello" },
    },
    tiny("tiny-4k-va48-pa48", "tiny Linux, 4K pages, 48 bits", 4, 48),
    tiny("tiny-4k-va52-pa52", "tiny Linux, 4K pages, 52 bits", 4, 52),
    tiny(
        "tiny-16k-va48-pa48",
        "tiny Linux, 16K pages, 48 bits",
        16,
        48,
    ),
    tiny(
        "tiny-16k-va52-pa52",
        "tiny Linux, 16K pages, 52 bits",
        16,
        52,
    ),
    tiny(
        "tiny-64k-va48-pa48",
        "tiny Linux, 64K pages, 48 bits",
        64,
        48,
    ),
    tiny(
        "tiny-64k-va52-pa52",
        "tiny Linux, 64K pages, 52 bits",
        64,
        52,
    ),
];

const fn tiny(name: &'static str, about: &'static str, pages: u8, bits: u8) -> Guest {
    Guest {
        name,
        about,
        origin: Origin::Tiny { pages, bits },
    }
}

/// The release whose newest source of Linux tiny kernels are built from.
pub const SOURCE_RELEASE: &str = "trixie-backports";

/// The release whose busybox the guests' initial RAM disk holds.
pub const BUSYBOX_RELEASE: &str = "trixie";

impl Guest {
    /// Whether the guest is a Linux that gets our shell.
    pub fn has_shell(&self) -> bool {
        matches!(self.origin, Origin::Linux { .. } | Origin::Tiny { .. })
    }

    /// Whether it can find that it is a realm: Linux does from 6.13 on, and Debian's
    /// releases stay with what they came with.
    pub fn knows_realms(&self) -> bool {
        match self.origin {
            Origin::Linux { release, .. } => !matches!(release, "bookworm" | "trixie"),
            Origin::Firmware { .. } => false,
            Origin::Tiny { .. } | Origin::Ours { .. } => true,
        }
    }

    /// What to do where a tiny kernel is not there: building takes too long to be
    /// begun unasked.
    pub fn not_built(&self) -> String {
        let name = self.name;
        format!("guest `{name}` is not built yet: cargo qemu guests build {name}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiny_kernel_is_what_its_name_says() {
        let mut tiny = 0;
        for guest in &CATALOGUE {
            let Origin::Tiny { pages, bits } = guest.origin else {
                assert!(!guest.name.starts_with("tiny"), "{}", guest.name);
                continue;
            };
            tiny += 1;
            assert_eq!(guest.name, format!("tiny-{pages}k-va{bits}-pa{bits}"));
            let about = format!("tiny Linux, {pages}K pages, {bits} bits");
            assert_eq!(guest.about, about);
            assert!(guest.has_shell());
            let found = find(guest.name).expect("by its name");
            assert_eq!(found.name, guest.name, "names are different");
        }
        assert_eq!(tiny, 6);
    }

    #[test]
    fn what_is_not_built_says_how_to_build_it() {
        let guest = find("tiny-64k-va52-pa52").expect("one of the catalogue");
        assert_eq!(
            guest.not_built(),
            "guest `tiny-64k-va52-pa52` is not built yet: cargo qemu guests build \
             tiny-64k-va52-pa52"
        );
    }
}

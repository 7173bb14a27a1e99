//! Where what the machine boots from stands in its RAM.
//!
//! The firmware is built for the image's address (`PRELOADED_BL33_BASE`), and has
//! addresses of its own (TF-A 2.12: `plat/arm/board/fvp/fdts/fvp_fw_config.dts`,
//! `plat/arm/board/fvp/include/platform_def.h`, `include/plat/arm/common/arm_def.h`).

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::size::Size;

/// Bytes of RAM from an address on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub at: u64,
    /// How many.
    pub size: u64,
}

impl Span {
    const fn new(at: u64, size: u64) -> Self {
        Self { at, size }
    }

    /// The first byte behind it.
    pub fn end(&self) -> u64 {
        self.at.saturating_add(self.size)
    }

    fn holds(&self, other: &Self) -> bool {
        self.at <= other.at && other.end() <= self.end()
    }

    fn meets(&self, other: &Self) -> bool {
        self.at < other.end() && other.at < self.end()
    }
}

/// The model's RAM (`bp.dram_size=4`, in GiB) as far as the firmware leaves it: it keeps
/// the last 64 MiB below 4 GiB (`ARM_TZC_DRAM1_SIZE` with `ENABLE_RME`; 16 MiB without).
const BANKS: [Span; 2] = [
    Span::new(0x8000_0000, 0x7c00_0000),
    Span::new(0x8_8000_0000, 0x8000_0000),
];

/// Where the firmware writes its NT_FW_CONFIG.
const NT_FW_CONFIG: Span = Span::new(0x8000_0000, 0x200);

/// Where the image is entered: a multiple of 2 MiB, as the arm64 boot protocol asks.
pub const IMAGE: u64 = 0x8020_0000;

/// Where the firmware puts the device tree (`secondary-load-address` of its
/// HW_CONFIG), and how much of one it takes (`PLAT_ARM_HW_CONFIG_SIZE`).
pub const TREE: Span = Span::new(0x8200_0000, 0x4000);

/// Where the bundle goes.
pub const BUNDLE: u64 = 0x8400_0000;

/// A part of what the machine boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: &'static str,
    /// Where it is.
    pub span: Span,
    /// The file that the model loads there; what has none, the firmware puts there.
    pub file: Option<PathBuf>,
}

/// The banks that so much RAM takes.
///
/// # Errors
/// More than the machine has.
pub fn banks(ram: Size) -> Result<Vec<Span>> {
    let mut left = ram.bytes();
    let mut banks = Vec::new();
    for bank in BANKS {
        let size = bank.size.min(left);
        if size > 0 {
            banks.push(Span::new(bank.at, size));
        }
        left -= size;
    }
    let most: u64 = BANKS.iter().map(|bank| bank.size).sum();
    ensure!(
        left == 0,
        "the machine would have {ram} of RAM, and --machine fvp has {} at most: give \
         the guests less",
        Size::mib(most >> 20)
    );
    Ok(banks)
}

/// A file that is loaded, and the bytes that it takes.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The file.
    pub file: PathBuf,
    /// What it takes in RAM.
    pub size: u64,
}

/// Places an image and a bundle in a machine with so much RAM.
///
/// # Errors
/// When they do not fit.
pub fn place(image: Loaded, bundle: Option<Loaded>, ram: Size) -> Result<Vec<Part>> {
    let kept = |name, span| Part {
        name,
        span,
        file: None,
    };
    let loaded = |name, at, what: Loaded| Part {
        name,
        span: Span::new(at, what.size),
        file: Some(what.file),
    };
    let mut parts = vec![
        kept("NT_FW_CONFIG", NT_FW_CONFIG),
        loaded("undercroft.img", IMAGE, image),
        kept("device tree", TREE),
    ];
    if let Some(bundle) = bundle {
        parts.push(loaded("bundle.cpio", BUNDLE, bundle));
    }
    check(&parts, &banks(ram)?)?;
    Ok(parts)
}

/// Whether all parts are in RAM, and clear of each other.
///
/// # Errors
/// Which are not.
pub fn check(parts: &[Part], banks: &[Span]) -> Result<()> {
    for (n, part) in parts.iter().enumerate() {
        let bank = banks.iter().find(|bank| bank.holds(&part.span));
        bank.with_context(|| {
            format!(
                "{} at {:#x} takes {:#x} bytes, and there is not so much RAM: give the \
                 machine more with --ram",
                part.name, part.span.at, part.span.size
            )
        })?;
        if let Some(other) = parts[..n].iter().find(|o| o.span.meets(&part.span)) {
            bail!(
                "{} takes {:#x} bytes at {:#x}, where {} is to stand",
                other.name,
                other.span.size,
                other.span.at,
                part.name
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the firmware keeps of the first bank.
    const FIRMWARE: Span = Span::new(0xfc00_0000, 0x0400_0000);

    fn loaded(size: u64) -> Loaded {
        Loaded {
            file: "file".into(),
            size,
        }
    }

    #[test]
    fn no_two_parts_overlap_and_none_is_the_firmwares() {
        let parts = place(loaded(3 << 20), Some(loaded(200 << 20)), Size::mib(2048));
        let parts = parts.expect("they fit");
        for (n, part) in parts.iter().enumerate() {
            assert!(!part.span.meets(&FIRMWARE), "{part:?}");
            assert!(parts[..n].iter().all(|o| !o.span.meets(&part.span)));
        }
        let names: Vec<_> = parts.iter().map(|part| part.name).collect();
        let all = [
            "NT_FW_CONFIG",
            "undercroft.img",
            "device tree",
            "bundle.cpio",
        ];
        assert_eq!(names, all);
        assert!(IMAGE.is_multiple_of(2 << 20));
    }

    #[test]
    fn the_firmware_is_built_for_these_addresses() {
        let readme = include_str!("../../../../README.md");
        for said in [
            format!("PRELOADED_BL33_BASE={IMAGE:#x} "),
            format!("ARM_PRELOADED_DTB_BASE={:#x} ", TREE.at),
        ] {
            assert!(readme.contains(&said), "{said}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let most = TREE.at - IMAGE;
        assert!(place(loaded(most), None, Size::mib(1024)).is_ok());
        let told = |image, bundle, ram| {
            let error = place(loaded(image), Some(loaded(bundle)), Size::mib(ram));
            error.expect_err("it does not fit").to_string()
        };
        let text = told(most + 1, 1, 1024);
        assert!(
            text.contains("undercroft.img") && text.contains("device tree"),
            "{text}"
        );
        let text = told(1, 1 << 30, 1024);
        assert!(
            text.contains("bundle.cpio") && text.contains("--ram"),
            "{text}"
        );
    }

    #[test]
    fn ram_is_what_the_firmware_leaves() {
        let most = Size::mib(1984 + 2048);
        assert_eq!(banks(most).expect("it has"), BANKS);
        assert!(banks(Size::mib(most.as_mib() + 1)).is_err());
        let few = banks(Size::mib(1024)).expect("it has");
        assert_eq!(few, [Span::new(0x8000_0000, 1 << 30)]);
        assert_eq!(BANKS[0].end(), FIRMWARE.at);
        assert_eq!(FIRMWARE.end(), 1 << 32);
    }
}

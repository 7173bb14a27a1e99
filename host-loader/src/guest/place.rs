//! Where a guest's initrd and device tree go, beside its kernel.
//!
//! As QEMU has it (hw/arm/boot.c): an initrd half-way up RAM, at most 128 MiB,
//! or behind the kernel when that ends later; the device tree behind it, at a
//! multiple of 2 MiB. An arm64 Image and a raw binary get its address in X0. For
//! an ELF file it stands at RAM's base where that is free, and X0 is 0. A raw
//! binary finds a copy there too, where there is room: firmware looks there.

use crate::image::{Kind, Placed};
use core::fmt;
use core::ops::Range;

/// What the device tree may take: Linux maps it with one 2 MiB block.
pub const TREE_SPACE: u64 = 2 << 20;

const INITRD_OFFSET: u64 = 128 << 20;
/// What an initrd begins at a multiple of.
const PAGE: u64 = 4096;

/// Where the rest goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The initrd, where there is one.
    pub initrd: Option<Range<u64>>,
    /// Start of the device tree.
    pub tree: u64,
    /// Start of its copy, where there is one.
    pub copy: Option<u64>,
    /// X0 of the first vCPU.
    pub x0: u64,
}

/// Why there is no place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collision {
    /// What has no place.
    pub what: &'static str,
    /// Its range.
    pub range: Range<u64>,
    /// What it collides with.
    pub with: &'static str,
    /// That one's range.
    pub other: Range<u64>,
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the {} at {:#x} to {:#x} collides with {} at {:#x} to {:#x}; \
             give the guest more memory",
            self.what,
            self.range.start,
            self.range.end,
            self.with,
            self.other.start,
            self.other.end,
        )
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Finds places for `initrd_size` bytes of initrd and `tree_size` of tree.
///
/// Errors name the two that collide, RAM's end among them.
pub fn choose(
    ram: &Range<u64>,
    kernel: &Placed,
    initrd_size: Option<u64>,
    tree_size: u64,
) -> Result<Places, Collision> {
    let inside = |what, range: Range<u64>| {
        if range.end <= ram.end {
            Ok(range)
        } else {
            Err(Collision {
                what,
                range,
                with: "the end of RAM",
                other: ram.end..ram.end,
            })
        }
    };
    let half = ram.start + ((ram.end - ram.start) / 2).min(INITRD_OFFSET);
    let begin = half.max(kernel.range.end).next_multiple_of(PAGE);
    let initrd = match initrd_size {
        None => None,
        Some(size) => {
            let behind = begin..begin.saturating_add(size);
            let below = half..half.saturating_add(size);
            // Below a kernel that leaves no room behind it.
            let fits = behind.end <= ram.end || overlap(&below, &kernel.range);
            Some(inside("initrd", if fits { behind } else { below })?)
        }
    };
    let taken = [Some(&kernel.range), initrd.as_ref()];
    let base = ram.start..ram.start + tree_size;
    let is_free = |range: &Range<u64>| {
        range.end <= ram.end
            && taken
                .into_iter()
                .flatten()
                .all(|other| !overlap(range, other))
    };
    let places = |tree, copy| {
        let x0 = if kernel.kind == Kind::Elf { 0 } else { tree };
        Ok(Places {
            initrd: initrd.clone(),
            tree,
            copy,
            x0,
        })
    };
    if kernel.kind == Kind::Elf && is_free(&base) {
        return places(base.start, None);
    }
    let behind = initrd.as_ref().map_or(begin, |initrd| initrd.end);
    let last = behind.max(kernel.range.end);
    // In a small RAM: just behind the last of them, or before the first.
    let candidates = [
        behind.next_multiple_of(TREE_SPACE),
        last.next_multiple_of(8),
        kernel.range.end.next_multiple_of(8),
        base.start,
    ];
    let at = |start: u64| start..start.saturating_add(tree_size);
    if let Some(tree) = candidates.into_iter().find(|start| is_free(&at(*start))) {
        let free = is_free(&base) && !overlap(&base, &at(tree));
        let copy = kernel.kind == Kind::Raw && free;
        return places(tree, copy.then_some(base.start));
    }
    let (with, other) = match &initrd {
        Some(initrd) if overlap(&base, initrd) => ("the initrd", initrd),
        _ => ("the kernel", &kernel.range),
    };
    Err(Collision {
        what: "device tree",
        range: base,
        with,
        other: other.clone(),
    })
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    const BASE: u64 = 0x4000_0000;

    fn placed(kind: Kind, range: Range<u64>) -> Placed {
        Placed {
            kind,
            entry: range.start,
            range,
        }
    }

    /// Seen on QEMU 10.0's virt machine, but for the copy.
    #[test]
    fn linux_firmware_and_elf_find_what_qemu_gives_them() {
        let ram = BASE..BASE + (512 << 20);
        let linux = placed(Kind::Image, BASE + 0x20_0000..BASE + 0x300_0000);
        let places = choose(&ram, &linux, Some(5 << 20), 0x2000).unwrap();
        assert_eq!(places.initrd.unwrap().start, BASE + (128 << 20));
        assert_eq!(places.tree, BASE + (134 << 20));
        assert_eq!((places.x0, places.copy), (places.tree, None));
        let uboot = placed(Kind::Raw, BASE + 0x8_0000..BASE + 0x18_0000);
        let places = choose(&ram, &uboot, None, 0x2000).unwrap();
        assert_eq!((places.tree, places.x0), (BASE + (128 << 20), places.tree));
        assert_eq!(places.copy, Some(BASE));
        let small = BASE..BASE + (64 << 20);
        assert_eq!(
            choose(&small, &uboot, None, 0x2000).unwrap().x0,
            BASE + (32 << 20)
        );
        // One that ends later.
        let long = placed(Kind::Raw, BASE + 0x8_0000..BASE + (130 << 20) + 1);
        assert_eq!(
            choose(&ram, &long, None, 0x2000).unwrap().x0,
            BASE + (132 << 20)
        );
        let elf = placed(Kind::Elf, BASE + 0x8_0000..BASE + 0x18_0000);
        let places = choose(&ram, &elf, None, 0x2000).unwrap();
        assert_eq!((places.tree, places.x0, places.copy), (BASE, 0, None));
        let at_base = placed(Kind::Elf, BASE..BASE + 0x1_0000);
        let places = choose(&ram, &at_base, None, 0x2000).unwrap();
        assert_eq!((places.tree, places.x0), (BASE + (128 << 20), 0));
        // No room for a copy.
        let low = placed(Kind::Raw, BASE..BASE + 0x1_0000);
        assert_eq!(choose(&ram, &low, None, 0x2000).unwrap().copy, None);
    }

    #[test]
    fn an_initrd_that_does_not_fit_is_named() {
        let ram = BASE..BASE + (64 << 20);
        let linux = placed(Kind::Image, BASE + 0x20_0000..BASE + (40 << 20));
        let message = choose(&ram, &linux, Some(30 << 20), 0x2000)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("initrd") && message.contains("RAM"),
            "{message}"
        );
    }

    proptest! {
        #[test]
        fn nothing_overlaps(
            mib in 1u64..600,
            kind in prop::sample::select(std::vec![Kind::Image, Kind::Raw, Kind::Elf]),
            start in 0u64..500, size in 1u64..500,
            initrd in prop::option::of(1u64..300),
            tree in 0x1000u64..0x8000,
        ) {
            let ram = BASE..BASE + (mib << 20);
            let start = start % mib;
            let size = 1 + size % (mib - start);
            let kernel = BASE + (start << 20)..BASE + ((start + size) << 20);
            let kernel = placed(kind, kernel);
            if let Ok(places) = choose(&ram, &kernel, initrd.map(|m| m << 20), tree) {
                let size = tree;
                let tree = places.tree..places.tree + size;
                if let Some(copy) = places.copy {
                    let copy = copy..copy + size;
                    prop_assert!(copy.start == ram.start && copy.end <= ram.end);
                    prop_assert!(!overlap(&copy, &kernel.range) && !overlap(&copy, &tree));
                    prop_assert!(places.initrd.iter().all(|i| !overlap(&copy, i)));
                }
                prop_assert_eq!(places.x0, if kind == Kind::Elf { 0 } else { tree.start });
                prop_assert!(tree.start >= ram.start && tree.end <= ram.end);
                prop_assert_eq!(tree.start % 8, 0);
                prop_assert!(!overlap(&tree, &kernel.range));
                prop_assert_eq!(places.initrd.is_some(), initrd.is_some());
                if let Some(i) = places.initrd {
                    prop_assert!(i.start >= ram.start && i.end <= ram.end);
                    prop_assert!(!overlap(&tree, &i) && !overlap(&i, &kernel.range));
                }
            }
        }
    }
}

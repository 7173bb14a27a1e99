//! Where a guest's initrd and device tree go, beside its kernel.
//!
//! As QEMU has it: an initrd half-way up RAM, at most 128 MiB, never into the
//! kernel; the device tree behind it. For a kernel that is no arm64 Image
//! (firmware, bare metal) the tree stands at RAM's base where there is room: that
//! is where such programs look who were not told in X0.

use crate::image::{Kind, Placed};
use core::fmt;
use core::ops::Range;

/// What the device tree may take: Linux maps it with one 2 MiB block.
pub const TREE_SPACE: u64 = 2 << 20;

const INITRD_OFFSET: u64 = 128 << 20;

/// Where the rest goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The initrd, where there is one.
    pub initrd: Option<Range<u64>>,
    /// Start of the device tree.
    pub tree: u64,
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
    let initrd = match initrd_size {
        None => None,
        Some(size) => {
            let half = ram.start + ((ram.end - ram.start) / 2).min(INITRD_OFFSET);
            let mut start = half;
            // Below the kernel when it starts high; behind it when it is long.
            if overlap(&(start..start.saturating_add(size)), &kernel.range) {
                start = kernel.range.end.next_multiple_of(4096);
            }
            Some(inside("initrd", start..start.saturating_add(size))?)
        }
    };
    if kernel.kind != Kind::Image {
        let tree = ram.start..ram.start + tree_size;
        let free = !overlap(&tree, &kernel.range)
            && initrd.as_ref().is_none_or(|initrd| !overlap(&tree, initrd));
        if free {
            return Ok(Places {
                initrd,
                tree: tree.start,
            });
        }
    }
    let behind = match &initrd {
        Some(initrd) => initrd
            .end
            .max(if overlap(&(initrd.end..u64::MAX), &kernel.range) {
                kernel.range.end
            } else {
                0
            }),
        None => kernel
            .range
            .end
            .max(ram.start + ((ram.end - ram.start) / 2).min(INITRD_OFFSET)),
    };
    let start = behind.next_multiple_of(TREE_SPACE);
    let tree = start..start.saturating_add(tree_size);
    if tree.end <= ram.end {
        return Ok(Places {
            initrd,
            tree: start,
        });
    }
    // A small RAM: just behind the last of them, or below the first.
    let last = initrd
        .as_ref()
        .map_or(kernel.range.end, |i| i.end.max(kernel.range.end));
    let start = last.next_multiple_of(8);
    if start.saturating_add(tree_size) <= ram.end {
        return Ok(Places {
            initrd,
            tree: start,
        });
    }
    let tree = ram.start..ram.start + tree_size;
    for (with, other) in [
        ("the kernel", Some(&kernel.range)),
        ("the initrd", initrd.as_ref()),
    ] {
        if let Some(other) = other
            && overlap(&tree, other)
        {
            return Err(Collision {
                what: "device tree",
                range: tree,
                with,
                other: other.clone(),
            });
        }
    }
    Ok(Places {
        initrd,
        tree: ram.start,
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

    #[test]
    fn linux_and_firmware_find_what_they_expect() {
        let ram = BASE..BASE + (512 << 20);
        let linux = placed(Kind::Image, BASE + 0x20_0000..BASE + 0x300_0000);
        let places = choose(&ram, &linux, Some(5 << 20), 0x2000).unwrap();
        assert_eq!(places.initrd.unwrap().start, BASE + (128 << 20));
        assert_eq!(places.tree, BASE + (134 << 20));
        let uboot = placed(Kind::Raw, BASE + 0x8_0000..BASE + 0x18_0000);
        assert_eq!(choose(&ram, &uboot, None, 0x2000).unwrap().tree, BASE);
        let hello = placed(Kind::Elf, BASE..BASE + 0x1_0000);
        assert_ne!(choose(&ram, &hello, None, 0x2000).unwrap().tree, BASE);
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
            image: bool,
            start in 0u64..500, size in 1u64..500,
            initrd in prop::option::of(1u64..300),
            tree in 0x1000u64..0x8000,
        ) {
            let ram = BASE..BASE + (mib << 20);
            let start = start % mib;
            let size = 1 + size % (mib - start);
            let kernel = BASE + (start << 20)..BASE + ((start + size) << 20);
            let kind = if image { Kind::Image } else { Kind::Raw };
            let kernel = placed(kind, kernel);
            if let Ok(places) = choose(&ram, &kernel, initrd.map(|m| m << 20), tree) {
                let tree = places.tree..places.tree + tree;
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

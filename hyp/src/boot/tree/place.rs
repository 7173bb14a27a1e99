//! Where a node's registers are for the CPU: through the `ranges` of all buses
//! above it (Devicetree Specification 0.4, 2.3.8), and whether it may be used.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::Reg;
use dtoolkit::{Node, Property};

use super::TreeError;
use crate::memory::region::Region;

/// Most nodes above one another, as many as Linux takes (FDT_MAX_DEPTH); real
/// trees have less than ten.
const MAX_DEPTH: usize = 64;

/// A node and those above it.
#[derive(Clone, Copy)]
pub struct Place<'a, 'p> {
    /// The node.
    pub node: FdtNode<'a>,
    /// Its `status` is okay, and so is that of all above it: others are no
    /// devices of this world (2.3.4).
    pub enabled: bool,
    above: Option<&'p Place<'a, 'p>>,
}

fn is_okay(node: FdtNode<'_>) -> bool {
    node.property("status")
        .is_none_or(|p| matches!(p.value(), b"okay\0" | b"ok\0"))
}

fn region(reg: Reg<'_>) -> Option<Region> {
    Region::new(reg.address::<u64>().ok()?, reg.size::<u64>().ok()?)
}

impl<'a, 'p> Place<'a, 'p> {
    fn below(above: Option<&'p Place<'a, 'p>>, node: FdtNode<'a>) -> Self {
        Self {
            node,
            enabled: is_okay(node) && above.is_none_or(|above| above.enabled),
            above,
        }
    }

    /// It stands right below /reserved-memory.
    pub fn is_reserved_memory(&self) -> bool {
        self.above.is_some_and(Self::is_reserved_memory_root)
    }

    fn is_reserved_memory_root(&self) -> bool {
        self.above.is_none() && self.node.name() == "reserved-memory"
    }

    /// Passes on each part of `region`, one of [`Self::entries`], as the CPU addresses
    /// it. What no bus passes on is no part.
    pub fn raise(&self, region: Region, part: &mut dyn FnMut(Region)) {
        let Some(bus) = self.above else {
            return part(region);
        };
        let Ok(Some(windows)) = bus.node.ranges() else {
            // A bus that passes nothing on. /reserved-memory is none, and its
            // `ranges` is often forgotten.
            if bus.is_reserved_memory_root() {
                part(region);
            }
            return;
        };
        let mut any = false;
        for window in windows {
            any = true;
            let (Ok(child), Ok(parent), Ok(size)) = (
                window.child_bus_address::<u64>(),
                window.parent_bus_address::<u64>(),
                window.length::<u64>(),
            ) else {
                continue; // wider addresses, as PCI's
            };
            let Some(inside) = Region::new(child, size).and_then(|w| w.intersect(&region)) else {
                continue;
            };
            let base = parent.checked_add(inside.base() - child);
            if let Some(raised) = base.and_then(|base| Region::new(base, inside.size())) {
                bus.raise(raised, part);
            }
        }
        if !any {
            bus.raise(region, part); // empty: the same addresses
        }
    }

    /// The entries of `reg`, as addresses of the bus that the node stands on;
    /// `None` for one that is wider than 64 bits.
    pub fn entries(&self) -> impl Iterator<Item = Option<Region>> {
        self.node
            .reg()
            .ok()
            .flatten()
            .into_iter()
            .flatten()
            .map(region)
    }

    /// One of [`Self::entries`] as the CPU addresses it, if it reaches all of it
    /// in one piece.
    pub fn whole(&self, entry: Region) -> Option<Region> {
        let mut found = None;
        self.raise(entry, &mut |part| {
            found = (part.size() == entry.size()).then_some(part);
        });
        found
    }

    /// The `n`-th entry of `reg`, if the CPU reaches all of it in one piece.
    pub fn registers(&self, n: usize) -> Option<Region> {
        self.whole(self.entries().nth(n)??)
    }
}

/// Visits every node below the root, those above others first.
///
/// # Errors
/// Nodes nested more than 64 deep, in words.
pub fn walk<'a>(
    fdt: Fdt<'a>,
    visit: &mut dyn FnMut(&Place<'a, '_>) -> Result<(), TreeError>,
) -> Result<(), TreeError> {
    fn descend<'a>(
        node: FdtNode<'a>,
        above: Option<&Place<'a, '_>>,
        depth: usize,
        visit: &mut dyn FnMut(&Place<'a, '_>) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        for child in node.children() {
            if depth == MAX_DEPTH {
                return Err(TreeError::TooDeep);
            }
            let place = Place::below(above, child);
            visit(&place)?;
            descend(child, Some(&place), depth + 1, visit)?;
        }
        Ok(())
    }
    descend(fdt.root(), None, 0, visit)
}

/// Calls `f` with the node at `path`, an alias or a full path, whose options
/// after ':' are dropped.
pub fn at<'a, R>(fdt: Fdt<'a>, path: &str, f: impl FnOnce(&Place<'a, '_>) -> R) -> Option<R> {
    fn descend<'a, R>(
        node: FdtNode<'a>,
        above: Option<&Place<'a, '_>>,
        path: &str,
        f: impl FnOnce(&Place<'a, '_>) -> R,
    ) -> Option<R> {
        let (name, rest) = path.split_once('/').unwrap_or((path, ""));
        let place = Place::below(above, node.child(name)?);
        if rest.is_empty() {
            return Some(f(&place));
        }
        descend(place.node, Some(&place), rest, f)
    }
    let path = path.split(':').next()?;
    let path = if path.starts_with('/') {
        path
    } else {
        let aliases = fdt.find_node("/aliases")?;
        aliases.property(path)?.value_as::<&str>().ok()?
    };
    let path = path.trim_matches('/');
    if path.matches('/').count() >= MAX_DEPTH {
        return None;
    }
    descend(fdt.root(), None, path, f)
}

//! Device trees for tests, node by node.

extern crate std;

use std::string::String;
use std::vec::Vec;
use vm_fdt::{FdtReserveEntry, FdtWriter, FdtWriterNode};

use super::devices::Probe;
use super::{Machine, Steps, TreeError};
use crate::memory::region::{Region, Regions};

/// Where the tree is said to lie.
pub const DTB: u64 = 0x4800_0000;

/// A tree that is being written, below its root: 2 address and 2 size cells.
pub struct Tree {
    writer: FdtWriter,
    root: FdtWriterNode,
}

impl Tree {
    /// An empty one, with these ranges in its header.
    pub fn reserving(ranges: &[(u64, u64)]) -> Self {
        let entry = |&(base, size): &(u64, u64)| FdtReserveEntry::new(base, size).unwrap();
        let entries: Vec<_> = ranges.iter().map(entry).collect();
        let mut writer = FdtWriter::new_with_mem_reserv(&entries).unwrap();
        let root = writer.begin_node("").unwrap();
        Self { writer, root }.cells()
    }

    /// One with 256 MiB of RAM around [`DTB`].
    pub fn with_ram() -> Self {
        Self::reserving(&[]).memory(0x4000_0000, 0x1000_0000)
    }

    pub fn node(mut self, name: &str, inside: impl FnOnce(Self) -> Self) -> Self {
        let node = self.writer.begin_node(name).unwrap();
        let mut this = inside(self);
        this.writer.end_node(node).unwrap();
        this
    }

    pub fn cells(mut self) -> Self {
        self.writer.property_u32("#address-cells", 2).unwrap();
        self.writer.property_u32("#size-cells", 2).unwrap();
        self
    }

    pub fn compatible(mut self, names: &[&str]) -> Self {
        let names = names.iter().map(|name| String::from(*name)).collect();
        self.writer
            .property_string_list("compatible", names)
            .unwrap();
        self
    }

    pub fn numbers(mut self, name: &str, numbers: &[u64]) -> Self {
        self.writer.property_array_u64(name, numbers).unwrap();
        self
    }

    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.writer.property_string(name, text).unwrap();
        self
    }

    pub fn bytes(mut self, name: &str, bytes: &[u8]) -> Self {
        self.writer.property(name, bytes).unwrap();
        self
    }

    pub fn flag(mut self, name: &str) -> Self {
        self.writer.property_null(name).unwrap();
        self
    }

    /// A device: its kind, and address and size of its registers.
    pub fn device(self, name: &str, compatible: &str, reg: &[u64]) -> Self {
        self.node(name, |t| t.compatible(&[compatible]).numbers("reg", reg))
    }

    pub fn memory(self, base: u64, size: u64) -> Self {
        self.node(&std::format!("memory@{base:x}"), |t| {
            t.text("device_type", "memory")
                .numbers("reg", &[base, size])
        })
    }

    /// /reserved-memory with these ranges, which nobody may map.
    pub fn no_map(self, ranges: &[(u64, u64)]) -> Self {
        let child = |t: Self, &(base, size): &(u64, u64)| {
            t.node(&std::format!("keep@{base:x}"), |t| {
                t.numbers("reg", &[base, size]).flag("no-map")
            })
        };
        self.node("reserved-memory", |t| {
            ranges.iter().fold(t.cells().flag("ranges"), child)
        })
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.writer.end_node(self.root).unwrap();
        self.writer.finish().unwrap()
    }
}

/// Memory and devices change hands in these steps.
pub fn steps(page: u64) -> Steps {
    Steps {
        memory: page,
        device: page,
        end: 1 << 48,
    }
}

/// The machine of a tree, not settled yet.
pub fn machine(tree: &[u8]) -> Result<Machine, TreeError> {
    let mut machine = Machine::new();
    machine.read(DTB, tree)?;
    Ok(machine)
}

/// The machine of a tree, settled.
pub fn settled(tree: &[u8], steps: &Steps, probe: Probe<'_>) -> Result<Machine, TreeError> {
    let mut machine = machine(tree)?;
    machine.settle(tree, steps, probe)?;
    Ok(machine)
}

/// A set's ranges: first address and end.
pub fn ranges(regions: &Regions) -> Vec<(u64, u64)> {
    let ends = |r: &Region| (r.base(), r.end());
    regions.iter().map(ends).collect()
}

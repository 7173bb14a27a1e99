//! A node's interrupts, below a GIC (binding `arm,gic-v3`; Devicetree Specification 0.4,
//! 2.4).

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property};

/// Type and number of a node's `n`-th interrupt. By `interrupts-extended`, where each has
/// its parent before it, or by `interrupts`; of so many `cells` (the parent's
/// `#interrupt-cells`), or of three or four, as their length says.
pub fn interrupt(node: FdtNode<'_>, n: usize, cells: Option<usize>) -> Option<[u32; 2]> {
    let (property, parent) = match node.property("interrupts-extended") {
        Some(property) => (property, 1),
        None => (node.property("interrupts")?, 0),
    };
    let value = property.value();
    let of = |cells: usize| cells.saturating_add(parent).saturating_mul(4);
    let is = |cells| value.len().is_multiple_of(of(cells));
    let by_length = || if is(4) && !is(3) { 4 } else { 3 };
    let size = of(cells.unwrap_or_else(by_length));
    let at = n.checked_mul(size)?.checked_add(4 * parent)?;
    let (words, _) = value.get(at..)?.get(..8)?.as_chunks::<4>();
    Some([u32::from_be_bytes(words[0]), u32::from_be_bytes(words[1])])
}

/// Which of a node's interrupts is the one of this name; the `otherwise`-th where none has
/// a name.
pub fn named(node: FdtNode<'_>, name: &str, otherwise: usize) -> Option<usize> {
    let Some(names) = node.property("interrupt-names") else {
        return Some(otherwise);
    };
    let mut names = names.value().split(|byte| *byte == 0);
    names.position(|other| other == name.as_bytes())
}

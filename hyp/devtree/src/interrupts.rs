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

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use dtoolkit::fdt::Fdt;
    use std::vec::Vec;

    /// What `f` makes of a node with these properties, of words.
    fn of<T>(properties: &[(&str, &[u32])], f: impl Fn(FdtNode<'_>) -> T) -> T {
        let mut fdt = vm_fdt::FdtWriter::new().expect("a writer");
        let root = fdt.begin_node("").expect("root");
        let node = fdt.begin_node("device").expect("a node");
        for (name, words) in properties {
            fdt.property_array_u32(name, words).expect("a property");
        }
        fdt.end_node(node).expect("in order");
        fdt.end_node(root).expect("in order");
        let data = fdt.finish().expect("whole");
        f(Fdt::new(&data)
            .expect("a tree")
            .find_node("/device")
            .expect("there"))
    }

    #[test]
    fn an_interrupt_is_found_by_the_cells_of_its_parent() {
        // Type, number and flags, of the GIC's binding; a fourth word names CPUs.
        let three: Vec<u32> = (0..4).flat_map(|n| [1, 10 + n, 4]).collect();
        let four: Vec<u32> = (0..4).flat_map(|n| [1, 10 + n, 4, 0]).collect();
        for n in 0..4 {
            let right = Some([1, 10 + n as u32]);
            let found = |words: &[u32], cells| {
                of(&[("interrupts", words)], |node| interrupt(node, n, cells))
            };
            assert_eq!(found(&three, Some(3)), right);
            assert_eq!(found(&four, Some(4)), right);
            // Of twelve words they may be three or four, and are three.
            assert_eq!(found(&three, None), right);
            assert_eq!(found(&four, None), right);
            let extended = |words: &[u32], size| -> Vec<u32> {
                let each = words.chunks(size).flat_map(|one| [&[0x8000], one].concat());
                each.collect()
            };
            for (words, cells) in [(&three, 3), (&four, 4)] {
                let words = extended(words, cells);
                let both = [
                    ("interrupts", &[9, 9, 9][..]),
                    ("interrupts-extended", &words),
                ];
                // Twenty words are five of four, too.
                let guessed = (cells == 3).then_some(None);
                for cells in [Some(Some(cells)), guessed].into_iter().flatten() {
                    assert_eq!(of(&both, |node| interrupt(node, n, cells)), right);
                }
            }
        }
    }

    #[test]
    fn what_is_not_there_is_no_interrupt() {
        let one = [("interrupts", &[1, 2, 4][..])];
        for n in [1, 2, usize::MAX] {
            for cells in [None, Some(3), Some(usize::MAX)] {
                assert_eq!(of(&one, |node| interrupt(node, n, cells)), None);
            }
        }
        assert_eq!(of(&[], |node| interrupt(node, 0, None)), None);
        let short = [("interrupts", &[1][..])];
        assert_eq!(of(&short, |node| interrupt(node, 0, Some(1))), None);
    }

    #[test]
    fn an_interrupt_is_found_by_its_name() {
        let names = [("interrupt-names", &[u32::from_be_bytes(*b"a\0bc"), 0][..])];
        let found = |name| of(&names, |node| named(node, name, 7));
        assert_eq!(found("a"), Some(0));
        assert_eq!(found("bc"), Some(1));
        assert_eq!(found("b"), None);
        assert_eq!(of(&[], |node| named(node, "a", 7)), Some(7));
    }
}

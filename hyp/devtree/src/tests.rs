extern crate std;

use super::*;
use dtoolkit::{Node, Property};
use proptest::prelude::*;
use std::string::String;
use std::vec::Vec;

/// A tree with a node and a property of these names.
fn tree(node: &str, property: &str) -> Vec<u8> {
    let mut all = Vec::new();
    let mut strings = std::vec![property.as_bytes(), b"\0reg\0"].concat();
    let reg = property.len() as u32 + 1;
    let push = |all: &mut Vec<u8>, words: &[u32]| {
        words.iter().for_each(|word| all.extend(word.to_be_bytes()));
    };
    let begin = |all: &mut Vec<u8>, name: &str| {
        push(all, &[BEGIN_NODE]);
        all.extend(name.as_bytes());
        all.push(0);
        all.resize(all.len().next_multiple_of(4), 0);
    };
    begin(&mut all, "");
    push(&mut all, &[NOP, PROP, 4, 0, 77]);
    begin(&mut all, node);
    push(&mut all, &[PROP, 6, reg, 1, 2 << 16]);
    push(&mut all, &[END_NODE, NOP, END_NODE, NOP, END]);
    strings.push(0);
    // The strings first, as no writer does it that is known here, and Linux
    // takes it all the same.
    let reservations = HEADER.next_multiple_of(8);
    let at = reservations + 16;
    let structure = (at + strings.len()).next_multiple_of(4);
    let total = structure + all.len();
    let mut data = Vec::new();
    let numbers = [
        MAGIC,
        total as u32,
        structure as u32,
        at as u32,
        reservations as u32,
        VERSION,
        16,
        0,
        strings.len() as u32,
        all.len() as u32,
    ];
    push(&mut data, &numbers);
    data.resize(at, 0);
    data.extend(strings);
    data.resize(structure, 0);
    data.extend(all);
    data
}

/// Reads all there is, as the users of a tree do.
fn read_all(fdt: Fdt<'_>) -> usize {
    fn of_node(node: dtoolkit::fdt::FdtNode<'_>) -> usize {
        let properties: usize = node
            .properties()
            .map(|p| p.name().len() + p.value().len() + usize::from(p.value_as::<&str>().is_ok()))
            .sum();
        let reg = node.reg().ok().flatten().map_or(0, Iterator::count);
        let ranges = node.ranges().ok().flatten().map_or(0, Iterator::count);
        let compatible = node.compatible().map_or(0, Iterator::count);
        let name = node.name().len() + node.name_without_address().len();
        let below: usize = node.children().map(of_node).sum();
        properties + reg + ranges + compatible + name + below
    }
    fdt.memory_reservations().count()
        + of_node(fdt.root())
        + usize::from(fdt.find_node("/a/b").is_some())
}

#[test]
fn names_are_not_checked() {
    for (node, property) in [
        ("usb@1", "snps,quirk-frame-length-adjustment"),
        ("a-node-whose-name-is-longer-than-31-characters", "reg"),
        ("regulator:odd name", "vendor,prop_with*star"),
        ("two@at@signs", "ünïcödé"),
        ("@", ""),
    ] {
        let data = tree(node, property);
        let fdt = open(&data).expect(node);
        let child = fdt.root().children().next().expect("a child");
        assert_eq!(child.name(), node);
        let first = fdt.root().properties().next().expect("a property");
        assert_eq!(
            (first.name(), first.value()),
            (property, &[0, 0, 0, 77][..])
        );
        assert!(fdt.find_node(&std::format!("/{node}")).is_some() || node.contains('/'));
        read_all(fdt);
    }
}

#[test]
fn what_is_damaged_is_said() {
    let good = tree("a", "b");
    let with = |at: usize, value: u32| {
        let mut data = good.clone();
        data[at..at + 4].copy_from_slice(&value.to_be_bytes());
        open(&data).expect_err("damaged")
    };
    assert_eq!(open(&[]).err(), Some(Damage::NoTree));
    assert_eq!(open(&good[..good.len() - 1]).err(), Some(Damage::NoTree));
    assert_eq!(with(0, 0), Damage::NoTree);
    assert_eq!(with(24, 18), Damage::Version(18));
    assert_eq!(with(20, 15), Damage::Version(16));
    assert_eq!(with(8, u32::MAX), Damage::Block);
    assert_eq!(with(36, u32::MAX), Damage::Block);
    assert_eq!(with(32, u32::MAX), Damage::Block);
    assert_eq!(with(16, good.len() as u32 - 8), Damage::Reservations);
    let root = u32::from_be_bytes(good[8..12].try_into().expect("four")) as usize;
    assert_eq!(with(root, END_NODE), Damage::Structure(root));
    assert_eq!(with(root + 12, PROP + 7), Damage::Structure(root + 12));
    // A property longer than the tree, one whose name is beyond the strings.
    assert_eq!(with(root + 16, u32::MAX), Damage::Structure(root + 12));
    assert_eq!(with(root + 20, 1000), Damage::Structure(root + 12));
    assert_eq!(with(good.len() - 4, NOP), Damage::Structure(good.len()));
    let mut no_text = tree("a", "b");
    let name = root + 32;
    no_text[name] = 0xff;
    assert_eq!(open(&no_text).err(), Some(Damage::Name(name)));
    assert!(std::format!("{}", Damage::Name(name)).contains("no text, at byte"));
}

#[test]
fn a_header_that_is_cut_short_is_no_tree() {
    let header = |length: usize, version: u32| {
        let mut data = std::vec![0; length];
        data[..4].copy_from_slice(&MAGIC.to_be_bytes());
        data[4..8].copy_from_slice(&(length as u32).to_be_bytes());
        data[20..24].copy_from_slice(&version.to_be_bytes());
        open(&data).expect_err("damaged")
    };
    for length in [24, HEADER - 4, HEADER - 1] {
        assert_eq!(header(length, OLDEST), Damage::NoTree, "{length}");
    }
    assert_eq!(header(HEADER, OLDEST - 1), Damage::Version(0));
}

#[test]
fn a_tree_that_is_compatible_with_no_older_one_is_read() {
    let mut data = tree("a", "b");
    data[24..28].copy_from_slice(&VERSION.to_be_bytes());
    assert!(open(&data).is_ok());
}

/// dtoolkit reads a node's properties up to its first child (Devicetree Specification 0.4,
/// 5.4.2).
#[test]
fn a_property_behind_a_child_is_damage() {
    let mut data = tree("a", "b");
    let end = data.len() - 16;
    let words = [END_NODE, NOP, END_NODE, NOP, END];
    let expected: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    assert!(data.ends_with(&expected));
    let property: Vec<u8> = [PROP, 0, 0].iter().flat_map(|w| w.to_be_bytes()).collect();
    data.splice(end..end, property);
    for (at, more) in [(4, 0), (36, 0)] {
        let old = u32::from_be_bytes(data[at..at + 4].try_into().expect("four"));
        data[at..at + 4].copy_from_slice(&(old + 12 + more).to_be_bytes());
    }
    assert_eq!(open(&data).err(), Some(Damage::Structure(end)));
}

#[test]
fn a_name_that_is_no_text_is_named_by_its_place() {
    let mut data = tree("a", "property");
    let name = data.windows(8).position(|window| window == b"property");
    let name = name.expect("there");
    data[name + 1] = 0xff;
    assert_eq!(open(&data).err(), Some(Damage::Name(name)));
}

/// Names that Linux takes as they are: of nodes and of properties, as many as are
/// looked for.
#[test]
fn names_that_are_no_text_become_text() {
    let mut good = tree("a", "b");
    assert!(!mend_names(&mut good));
    let mut odd = tree("n\u{e9}de", "pr\u{f6}p");
    assert!(!mend_names(&mut odd), "it is text");
    let spoil = |data: &mut [u8], name: &[u8]| {
        let at = data.windows(name.len()).position(|window| window == name);
        data[at.expect("there") + 1] = 0xff;
    };
    let mut odd = tree("node", "property");
    spoil(&mut odd, b"node\0");
    spoil(&mut odd, b"property\0");
    assert!(matches!(open(&odd), Err(Damage::Name(_))));
    assert!(mend_names(&mut odd));
    let fdt = open(&odd).expect("text now");
    assert!(fdt.find_node("/n?de").is_some(), "by its new name");
    assert!(fdt.root().property("p?operty").is_some());
    // Damage of another kind is left alone.
    let mut broken = tree("a", "b");
    let last = broken.len() - 1;
    broken[last] = 77;
    let before = broken.clone();
    assert!(!mend_names(&mut broken));
    assert_eq!(broken, before);
}

/// Version 16 has no length of the structure: what is there in the header is
/// something else.
#[test]
fn the_version_before_is_read() {
    let mut data = tree("a", "b");
    data[20..24].copy_from_slice(&16u32.to_be_bytes());
    data[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    let fdt = open(&data).expect("version 16");
    assert_eq!(fdt.root().children().count(), 1);
    read_all(fdt);
}

#[test]
fn a_console_is_guessed_from_paths_first() {
    let path = |text: &str| guess_uart(text.as_bytes());
    assert_eq!(path("x\0serial@1000\0/pl011@9000000\0"), Some(0x900_0000));
    assert_eq!(
        path("x\0/axi/serial@ff000000:115200n8\0"),
        Some(0xff00_0000)
    );
    assert_eq!(path("x\0serial@1000\0"), Some(0x1000));
    assert_eq!(
        path("/soc/uart@/uart@zz\0/myuart@12\0uart@123456789abcdef01\0"),
        None
    );
    assert_eq!(path("/pl011@9000000"), None, "no end");
    assert_eq!(path(""), None);
}

fn built() -> impl Strategy<Value = Vec<u8>> {
    (0usize..6, prop::collection::vec("[a-z,]{0,40}", 1..5)).prop_map(|(depth, names)| {
        let mut fdt = vm_fdt::FdtWriter::new().expect("a writer");
        let mut open = Vec::new();
        open.push(fdt.begin_node("").expect("root"));
        for n in 0..depth {
            let name = &names[n % names.len()];
            // The writer is strict about names; the damage below is not.
            let plain: String = name
                .chars()
                .filter(char::is_ascii_lowercase)
                .take(20)
                .collect();
            open.push(fdt.begin_node(&std::format!("n{plain}")).expect("a node"));
            fdt.property_array_u32("reg", &[1, 2, 3, 4]).expect("reg");
            fdt.property_string("compatible", "arm,pl011")
                .expect("text");
        }
        for node in open.into_iter().rev() {
            fdt.end_node(node).expect("in order");
        }
        fdt.finish().expect("whole")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// What is opened can be read to its end, whatever was damaged before.
    #[test]
    fn what_is_opened_is_read_without_a_fault(
        good in built(), damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..6),
    ) {
        prop_assert!(open(&good).is_ok());
        let mut data = good;
        for (at, value) in damage {
            let at = usize::from(at) % data.len();
            data[at] = value;
        }
        if let Ok(fdt) = open(&data) {
            read_all(fdt);
        }
        guess_uart(&data);
    }
}

/// It is told, rather than met by who reads the tree.
#[test]
fn a_nop_before_the_root_is_damage() {
    let mut data = tree("a", "b");
    let root = u32::from_be_bytes(data[8..12].try_into().expect("four")) as usize;
    data.splice(root..root, NOP.to_be_bytes());
    let total = data.len() as u32;
    data[4..8].copy_from_slice(&total.to_be_bytes());
    let size = u32::from_be_bytes(data[36..40].try_into().expect("four")) + 4;
    data[36..40].copy_from_slice(&size.to_be_bytes());
    assert!(open(&data).is_err());
}

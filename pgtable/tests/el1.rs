//! A map of EL1's own: registers, and each bit of its leaves.

mod plain;

use pgtable::{
    El1Map, El2Attrs, El2Config, El2Geometry, El2Range, Error, Granule, Pa, Stage2Regs, Va,
};
use plain::{Did, Plain};

/// The configuration, TCR_EL1 for it, and where descriptors keep address bits 51:48.
const FORMATS: [(Granule, u8, u8, bool, u64); 4] = [
    // T0SZ 16, write-back inner-shareable walks, 4K, EPD1, IPS 48 bits.
    (Granule::K4, 48, 48, false, 0x5_0080_3510),
    // DS, T0SZ 12, IPS 52 bits.
    (Granule::K4, 52, 52, true, 0x0800_0006_0080_350c),
    (Granule::K16, 52, 52, true, 0x0800_0006_0080_b50c),
    (Granule::K64, 52, 52, false, 0x6_0080_750c),
];

const ATTRS: [(El2Attrs, u64); 4] = [
    // AF, nG, UXN; AttrIndx 0; AP\[2\].
    (El2Attrs::CODE, 1 << 54 | 1 << 11 | 1 << 10 | 1 << 7),
    (El2Attrs::RODATA, 0b11 << 53 | 1 << 11 | 1 << 10 | 1 << 7),
    (El2Attrs::DATA, 0b11 << 53 | 1 << 11 | 1 << 10),
    (El2Attrs::DEVICE, 0b11 << 53 | 1 << 11 | 1 << 10 | 1 << 2),
];

fn geometry(granule: Granule, bits: u8, pa_bits: u8, lpa2: bool) -> El2Geometry {
    let mut config = El2Config::new(granule, bits, pa_bits);
    (config.lpa2, config.lva) = (lpa2, bits > 48);
    config.validate().unwrap()
}

#[test]
fn registers_and_leaves_are_as_the_manual_has_them() {
    for (granule, bits, pa_bits, lpa2, tcr) in FORMATS {
        let geometry = geometry(granule, bits, pa_bits, lpa2);
        assert_eq!(
            geometry.tcr_el1(),
            tcr,
            "{granule:?}: {:#x}",
            geometry.tcr_el1()
        );
        let page = granule.page_size();
        // Shareability stands where LPA2 has address bits.
        let shared = if lpa2 { 0 } else { 0b11 << 8 };
        for (attrs, expected) in ATTRS {
            let mem = Plain::new(page);
            let root = mem.root(page);
            let mut map = El1Map::new(geometry, root, &mem).unwrap();
            assert_eq!(map.ttbr(0x5a) >> 48, 0x5a);
            let at = (1 << (bits - 1)) + page;
            let range = El2Range::new(Va::new(at), Pa::new(at), page, attrs);
            let mut cpu = mem.cpu(Stage2Regs { vtcr: 0, vttbr: 0 });
            map.map(&mut cpu, &range).unwrap();
            let did = mem.did.borrow();
            let leaf = did.iter().rev().find_map(|did| match did {
                Did::Write { new, .. } => Some(*new),
                _ => None,
            });
            let leaf = leaf.expect("it is mapped");
            let address = match (lpa2, granule) {
                (true, _) => at & !(0b11 << 50) | (at >> 50 & 0b11) << 8,
                (false, Granule::K64) => at & !(0xf << 48) | (at >> 48) << 12,
                _ => at,
            };
            let bits = expected | shared | 0b11;
            assert_eq!(leaf, address | bits, "{granule:?} {attrs:?}: {leaf:#x}");
            assert!(!did.iter().any(|did| matches!(did, Did::Tlbi(_))));
            drop(did);
            // Something else there is refused.
            let mut other = range;
            other.attrs = if attrs == El2Attrs::CODE {
                El2Attrs::DATA
            } else {
                El2Attrs::CODE
            };
            let twice = map.map(&mut cpu, &other).map_err(|stopped| stopped.why);
            assert!(matches!(twice, Err(Error::Exists { .. })), "{twice:?}");
        }
    }
}

/// Where all of a machine's RAM is above 2^48, so are the tables: bits 51:48 of the root
/// stand in bits 5:2.
#[test]
fn a_root_above_48_bits_stands_whole_in_the_register() {
    for (granule, bits, pa_bits, lpa2, _) in FORMATS {
        let geometry = geometry(granule, bits, pa_bits, lpa2);
        for (root, expected) in [
            (0x0000_8765_4321_0000, 0x00a5_8765_4321_0000),
            (0x0001_8765_4321_0000, 0x00a5_8765_4321_0004),
            (0x0002_8765_4321_0000, 0x00a5_8765_4321_0008),
            (0x0004_8765_4321_0000, 0x00a5_8765_4321_0010),
            (0x0008_8765_4321_0000, 0x00a5_8765_4321_0020),
            (0x000f_ffff_ffff_0000, 0x00a5_ffff_ffff_003c),
        ] {
            let mem = Plain::new(granule.page_size());
            let map = El1Map::new(geometry, Pa::new(root), &mem);
            let Ok(map) = map else {
                assert!(root >> pa_bits != 0, "{granule:?}: {root:#x} is refused");
                continue;
            };
            assert_eq!(root >> pa_bits, 0, "{granule:?}: {root:#x} is taken");
            let ttbr = map.ttbr(0xa5);
            assert_eq!(ttbr, expected, "{granule:?}: {root:#x}: {ttbr:#x}");
        }
    }
}

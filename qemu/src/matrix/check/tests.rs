//! A boot that was right is taken, and each line that says otherwise is not.

use super::*;
use crate::matrix::axes::{Hardware, Kernel, Load, Mask, Own, Populate, Start};

/// A realm above 2^48, by its own addresses too.
const CELL: Cell = Cell {
    hw: Hardware::Lpa2,
    mask: Mask::Nothing,
    hyp: Pages::K4,
    own: Own::All,
    ram: Ram::Above51,
    ipa: 52,
    start: Start::Lowest,
    mode: Mode::Realm,
    kernel: Kernel::Tour,
    load: Load::Above48,
    cpus: 2,
    populate: Populate::Lazy,
};

const GUEST: &str = "loaded at 0x1000000000000\nwithin true\nrange 6 wide 1 lpa2 1\n\
                     memory 128\ncpus 2\npattern 16 same\nticks\nmoved 0 1\n\
                     RSI version 1.0\ngone for all\n";

/// T0SZ 12, SL0 2 (level 0: 52 bits are 16 tables), PS 52 bits, DS.
const LOG: [&str; 4] = [
    "hyp INFO host at 0xe800000600000",
    "hyp DEBUG EL2: code at 0xe800000200000, stack at 0xe800000b614b0, TTBR0_EL2 \
     0x8000008e0038, TCR_EL2 0x18086350c",
    "host DEBUG guest guest: 52 bits of IPA, from level 0, root tables: 16, LPA2, RAM at \
     0x1000000000000, realm, lazy",
    "hyp DEBUG realm 0xe800000030000: VTCR_EL2 0x1800e358c, VTTBR_EL2 0x1800000034038",
];

fn said(guest: &str, log: &[String]) -> Result<()> {
    check(&CELL, &Said { guest, log })
}

fn log() -> Vec<String> {
    LOG.map(String::from).to_vec()
}

#[test]
fn what_was_asked_for_is_taken() {
    said(GUEST, &log()).expect("it is right");
}

#[test]
fn a_guest_that_saw_something_else_is_not() {
    for line in GUEST.lines() {
        let without: String = GUEST
            .lines()
            .filter(|other| *other != line)
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(said(&without, &log()).is_err(), "without {line}");
    }
    for (is, other) in [
        ("wide 1", "wide 0"),
        ("lpa2 1", "lpa2 0"),
        ("0x1000000000000", "0x40000000"),
        ("moved 0 1", "moved 0 0"),
        ("gone for all", "still there for another CPU"),
        ("memory 128", "memory 129"),
        ("memory 128", "memory 70"),
    ] {
        assert!(said(&GUEST.replace(is, other), &log()).is_err(), "{other}");
    }
}

#[test]
fn tables_and_places_that_are_others_are_not() {
    for (is, other) in [
        // The host low, or outside of RAM.
        ("host at 0xe8", "host at 0x8"),
        ("host at 0xe800000", "host at 0xe800040"),
        // EL2's code, stack, root.
        ("code at 0xe8", "code at 0x8"),
        ("stack at 0xe8", "stack at 0x8"),
        ("0x8000008e0038", "0x8000008e0030"),
        // EL2: 48 bits of VA; no DS; 48 bits of PA; 64K.
        ("0x18086350c", "0x180863510"),
        ("0x18086350c", "0x8086350c"),
        ("0x18086350c", "0x18085350c"),
        ("0x18086350c", "0x18086750c"),
        // The guest's.
        ("52 bits of IPA", "48 bits of IPA"),
        ("from level 0", "from level -1"),
        ("root tables: 16", "root tables: 1,"),
        ("RAM at 0x1000000000000", "RAM at 0x40000000"),
        ("realm, lazy", "protected, lazy"),
        ("realm, lazy", "realm, eager"),
        // T0SZ, SL0, TG0, PS, DS, SL2.
        ("0x1800e358c", "0x1800e3590"),
        ("0x1800e358c", "0x1800e354c"),
        ("0x1800e358c", "0x1800e758c"),
        ("0x1800e358c", "0x1800d358c"),
        ("0x1800e358c", "0x800e358c"),
        ("0x1800e358c", "0x3800e358c"),
        ("realm 0xe8", "realm 0x8"),
        ("0x1800000034038", "0x1800000034030"),
    ] {
        let log = log().into_iter().map(|line| line.replace(is, other));
        let log: Vec<_> = log.collect();
        assert_ne!(log, LOG, "{is}");
        assert!(said(GUEST, &log).is_err(), "{is} is {other}");
    }
    for line in LOG {
        let mut log = log();
        log.retain(|other| other != line);
        assert!(said(GUEST, &log).is_err(), "without {line}");
    }
}

/// The fields of VTCR_EL2 and the number of root tables, from the Arm ARM's tables.
#[test]
fn fields_are_as_the_manual_has_them() {
    let of = |hyp, ipa, ram, level| {
        let cell = Cell {
            hyp,
            ipa,
            ram,
            ..CELL
        };
        vtcr(&cell, level)
    };
    let (low, high) = (Ram::Low, Ram::Above48);
    // 4K: level 2 and 4 tables, level 1, level 0; and by SL2 level -1.
    assert_eq!(of(Pages::K4, 32, low, 2), (32 | 5 << 16, 4));
    assert_eq!(of(Pages::K4, 40, low, 1), (24 | 1 << 6 | 5 << 16, 2));
    assert_eq!(of(Pages::K4, 48, low, 0), (16 | 2 << 6 | 5 << 16, 1));
    let lpa2 = 6 << 16 | 1 << 32;
    assert_eq!(of(Pages::K4, 52, low, -1), (12 | lpa2 | 1 << 33, 1));
    assert_eq!(of(Pages::K4, 40, high, 1), (24 | 1 << 6 | lpa2, 2));
    // 16K: level 0 with descriptors of 52 bits alone.
    let k16 = 2 << 14;
    assert_eq!(of(Pages::K16, 48, low, 1), (16 | 2 << 6 | k16 | 5 << 16, 2));
    assert_eq!(of(Pages::K16, 48, low, 0), (16 | 3 << 6 | k16 | lpa2, 1));
    // 64K: 52 bits by FEAT_LPA, which no bit says.
    let k64 = 1 << 14 | 6 << 16;
    assert_eq!(of(Pages::K64, 32, low, 3), (32 | k64, 8));
    assert_eq!(of(Pages::K64, 52, high, 1), (12 | 2 << 6 | k64, 1));
}

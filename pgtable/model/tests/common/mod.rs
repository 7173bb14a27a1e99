//! The machine and the tree that the traces in these tests begin with.
//!
//! 4K granule, 40-bit IPA from level 1 (two tables), FWB, two PEs, VMID 1.
//! Level 1 entry 0 leads to a level-2 table, its entry 0 to a level-3 table
//! with two pages, its entry 1 is a 2 MiB block.
#![allow(dead_code)] // Each test file uses its part.

use mmu_model::{Kind, trace};

/// Everything implemented but FEAT_BBM, two PEs.
pub const HEADER: &str = "mmu-trace 1\nfeatures max bbm=0\npes 2\n";

/// The tree.
pub const TREE: &str = "
0 alloc 0x80000000 8192 zeroed
0 dsb ishst
0 msr vtcr_el2 0x80053558
0 msr vttbr_el2 0x0001000080000000
0 isb
1 msr vtcr_el2 0x80053558
1 msr vttbr_el2 0x0001000080000000
1 isb
0 alloc 0x80010000 4096 zeroed
0 stlr 0x80000000 0x80010003
0 alloc 0x80011000 4096 zeroed
0 stlr 0x80010000 0x80011003
0 st 0x80011000 0x400007db
0 st 0x80011008 0x400017db
0 st 0x80010008 0x402007d9
0 dsb ishst
";

/// What follows an unmap in full, for one page at IPA 0.
pub const FLUSH_PAGE_0: &str = "
0 dsb ishst
0 tlbi ipas2e1is 0x0
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
";

pub fn judge(header: &str, body: &str) -> Option<(Kind, Option<Kind>)> {
    let text = format!("{header}{TREE}{body}");
    let judged = trace::judge(&text).unwrap_or_else(|e| panic!("{e}\n{body}"));
    judged.violation.map(|(line, v)| {
        println!("{v}");
        assert!(line > HEADER.lines().count());
        (v.kind, v.shown_by)
    })
}

#[track_caller]
pub fn bad_on(header: &str, kind: Kind, body: &str) {
    match judge(header, body) {
        Some((found, _)) => assert_eq!(found, kind, "{body}"),
        None => panic!("nothing found wrong, {kind:?} expected in\n{body}"),
    }
}

#[track_caller]
pub fn bad(kind: Kind, body: &str) {
    bad_on(HEADER, kind, body);
}

#[track_caller]
pub fn good_on(header: &str, body: &str) {
    assert_eq!(judge(header, body), None, "{body}");
}

#[track_caller]
pub fn good(body: &str) {
    good_on(HEADER, body);
}

/// All is said to be done.
pub const QUIESCE: &str = "0 quiesce 0 0x10000000000\n";

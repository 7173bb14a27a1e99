//! Mistakes that were made elsewhere, as traces: each must be found, and what
//! should have been done must pass. Numbers are those of the project's list of
//! field failures.

mod common;

use common::*;
use mmu_model::{Extent, Features, Kind, Shape, TlbiKind, decode, trace};

/// The table at level 2 entry 0 goes, with this invalidation, and is freed.
fn remove_table(invalidate: &str) -> String {
    format!(
        "0 st 0x80010000 0
0 dsb ishst
{invalidate}
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
0 free 0x80011000 4096
{QUIESCE}"
    )
}

/// Page 0 goes, with these lines after the store.
fn unmap_page(rest: &str) -> String {
    format!("0 st 0x80011000 0\n{rest}{QUIESCE}")
}

#[test]
fn n01_a_hint_where_a_table_was_removed() {
    bad(
        Kind::TtlMismatch,
        &remove_table("0 tlbi ripas2e1is 0x53c000000000"),
    );
    good(&remove_table("0 tlbi ripas2e1is 0x538000000000"));
}

#[test]
fn n02_deferred_invalidation_is_for_leaves_only() {
    // Two leaves gathered, flushed later: right.
    let flush = "0 dsb ishst\n0 tlbi ripas2e1is 0x400000000000\n0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n";
    let leaves = "0 st 0x80011000 0\n0 st 0x80011008 0\n";
    good(&format!("{leaves}{flush}{QUIESCE}"));
    // The table freed before the flush: wrong.
    let table = "0 st 0x80010000 0\n0 free 0x80011000 4096\n";
    bad(Kind::FreeWhileCached, &format!("{leaves}{table}{flush}"));
}

#[test]
fn n03_a_range_over_mixed_levels_takes_no_hint() {
    // Page 0 at level 3 and the block at level 2; 1024 pages: SCALE 1, NUM 15.
    let both = |op: &str| {
        format!(
            "0 st 0x80011000 0\n0 st 0x80010008 0\n0 dsb ishst\n0 tlbi ripas2e1is {op}\n0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n{QUIESCE}"
        )
    };
    bad(Kind::TtlMismatch, &both("0x57e000000000"));
    bad(Kind::TtlMismatch, &both("0x57c000000000"));
    good(&both("0x578000000000"));
}

fn range(xt: u64, ds: bool) -> Extent {
    let vtcr = 5 << 16 | 1 << 6 | 24 | u64::from(ds) << 32;
    let shape = Shape::stage2(vtcr, 0, &Features::max()).unwrap();
    decode(TlbiKind::Ripas2e1, xt, &shape, &Features::max()).unwrap()
}

#[test]
fn n04_exactly_two_to_the_21_pages() {
    let e = range(0x7f80_0004_0000, false);
    assert_eq!((e.lo, (e.hi - e.lo) >> 12), (1 << 30, 1 << 21));
}

#[test]
fn n06_with_ds_the_base_counts_in_64_kib() {
    // IPA 0x1000 given as a base: under DS that is IPA 0x10000.
    assert_eq!(range(1 << 46 | 1, false).lo, 0x1000);
    assert_eq!(range(1 << 46 | 1, true).lo, 0x1_0000);
    let ds = TREE
        .replace("0x80053558", "0x180053558")
        .replace("7db", "4db")
        .replace("7d9", "4d9");
    let run = |ops: &str| {
        let text = format!(
            "{HEADER}{ds}0 st 0x80011008 0\n0 dsb ishst\n{ops}0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n{QUIESCE}"
        );
        trace::judge(&text).unwrap().violation.map(|(_, v)| v.kind)
    };
    assert_eq!(
        run("0 tlbi ripas2e1is 0x400000000001\n"),
        Some(Kind::StaleTranslation)
    );
    assert_eq!(run("0 tlbi ipas2e1is 1\n"), None);
    assert_eq!(run("0 tlbi ripas2e1is 0x400000000000\n"), None);
}

#[test]
fn n07_only_the_first_page_flushed() {
    let two = |second: &str| {
        format!(
            "0 st 0x80011000 0\n0 st 0x80011008 0\n0 dsb ishst\n0 tlbi ipas2e1is 0\n{second}0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n{QUIESCE}"
        )
    };
    bad(
        Kind::ReservedOperand,
        &two("0 tlbi ipas2e1is 0x8000000000000001\n"),
    );
    bad(Kind::StaleTranslation, &two("0 tlbi ipas2e1is 0\n"));
    good(&two("0 tlbi ipas2e1is 1\n"));
}

#[test]
fn n08_the_operand_shift_is_12_for_every_granule() {
    // 16K: 40 bits from level 2, 16 tables (256 KiB); one 32 MiB block at
    // IPA 0x1_0000_0000.
    let tree = "mmu-trace 1
features max bbm=0
pes 2
0 alloc 0x80000000 0x40000 zeroed
0 dsb ishst
0 msr vtcr_el2 0x8005b558
0 msr vttbr_el2 0x0001000080000000
0 isb
0 st 0x80000400 0x400007d9
0 dsb ishst
0 st 0x80000400 0
0 dsb ishst
";
    let end = "0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n0 quiesce 0 0x10000000000\n";
    let run = |op: &str| {
        let text = format!("{tree}0 tlbi ipas2e1is {op}\n{end}");
        trace::judge(&text).unwrap().violation.map(|(_, v)| v.kind)
    };
    assert_eq!(run("0x100000"), None); // IPA >> 12
    assert_eq!(run("0x40000"), Some(Kind::StaleTranslation)); // IPA >> 14
    // TG: 2 for 16K, though VTCR_EL2 says 2 as well and 1 for 64K.
    assert_eq!(run("0xa00000100000"), None);
    assert_eq!(run("0x600000100000"), Some(Kind::TgMismatch));
}

#[test]
fn n10_n11_the_wrong_vmid_and_tge() {
    let other =
        "0 alloc 0x80100000 8192 zeroed\n0 dsb ish\n0 msr vttbr_el2 0x2000080100000\n0 isb\n";
    bad(
        Kind::WrongVmid,
        &unmap_page(&format!("{other}{FLUSH_PAGE_0}")),
    );
    let back = "0 msr vttbr_el2 0x1000080000000\n0 isb\n";
    good(&unmap_page(&format!("{other}{back}{FLUSH_PAGE_0}")));
    let tge = FLUSH_PAGE_0.replace(
        "0 tlbi vmalle1is",
        "0 msr hcr_el2 0x400408000000\n0 isb\n0 tlbi vmalle1is",
    );
    bad(Kind::WrongVmid, &unmap_page(&tge));
}

#[test]
fn n12_stage_2_only() {
    let only = FLUSH_PAGE_0.replace("0 tlbi vmalle1is\n0 dsb ish\n", "");
    bad(Kind::MissingStage1, &unmap_page(&only));
}

#[test]
fn n13_no_barrier_before_the_invalidation() {
    bad(
        Kind::TlbiBeforeDsb,
        &unmap_page(&FLUSH_PAGE_0.replace("0 dsb ishst\n", "")),
    );
}

#[test]
fn n14_an_empty_flush_and_a_barrier_too_small() {
    bad(Kind::StaleTranslation, &unmap_page("0 dsb ishst\n0 isb\n"));
    bad(
        Kind::LocalOnly,
        &unmap_page("0 dsb ishst\n0 tlbi vmalls12e1is\n0 dsb nsh\n0 isb\n"),
    );
}

#[test]
fn n15_an_operation_of_another_regime() {
    let el2 = "0 alloc 0x80200000 4096 zeroed
0 dsb ishst
0 msr mair_el2 0xff
0 msr tcr_el2 0x80853519
0 msr ttbr0_el2 0x80200000
0 isb
";
    let wrong = FLUSH_PAGE_0.replace("ipas2e1is 0x0", "vae2is 0x0");
    bad(
        Kind::StaleTranslation,
        &unmap_page(&format!("{el2}{wrong}")),
    );
    // With the address not shifted at all it lands elsewhere.
    let high = FLUSH_PAGE_0.replace("ipas2e1is 0x0", "vae2is 0x40000000");
    bad(Kind::RangeOverrun, &unmap_page(&format!("{el2}{high}")));
}

#[test]
fn n16_one_invalidation_for_a_whole_table() {
    bad(
        Kind::StaleTranslation,
        &remove_table("0 tlbi ipas2e1is 0x0"),
    );
}

#[test]
fn n17_tables_freed_before_the_invalidation() {
    bad(
        Kind::FreeWhileCached,
        "0 st 0x80010000 0\n0 free 0x80011000 4096\n",
    );
    let issued = "0 st 0x80010000 0\n0 dsb ishst\n0 tlbi vmalls12e1is\n0 free 0x80011000 4096\n";
    bad(Kind::MissingDsb, issued);
}

#[test]
fn n18_valid_to_invalid_flushes_too() {
    bad(Kind::StaleTranslation, &unmap_page("0 dsb ishst\n"));
}

#[test]
fn n19_splitting_invalidates_the_block_not_the_new_mapping() {
    // The block at 0x200000 becomes a table; 0x3ff000 is mapped anew.
    let fill: String = (0..511u64)
        .map(|i| {
            format!(
                "0 st {:#x} {:#x}\n",
                0x8001_2000 + i * 8,
                0x4020_07db + (i << 12)
            )
        })
        .collect();
    let split = |op: &str| {
        format!(
            "0 alloc 0x80012000 4096 zeroed
{fill}0 st 0x80012ff8 0x500007db
0 st 0x80010008 0
0 dsb ishst
0 tlbi ipas2e1is {op}
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
0 stlr 0x80010008 0x80012003
0 dsb ishst
{QUIESCE}"
        )
    };
    good(&split("0x200"));
    // Any address of one block entry does; with the level of the new page not.
    good(&split("0x3ff"));
    bad(Kind::TtlMismatch, &split("0x7000000003ff"));
    bad(Kind::MakeWhileUnclean, &split("0x400"));
}

#[test]
fn n20_no_operation_at_all_where_the_range_form_is_missing() {
    let none = HEADER.replace("max", "4k fwb xnx pa=48");
    bad_on(
        &none,
        Kind::StaleTranslation,
        &unmap_page("0 dsb ishst\n0 isb\n"),
    );
    bad_on(
        &none,
        Kind::UndefinedTlbi,
        &unmap_page("0 dsb ishst\n0 tlbi ripas2e1is 0x400000000000\n"),
    );
    good_on(
        &none,
        &unmap_page("0 dsb ishst\n0 tlbi vmalls12e1is\n0 dsb ish\n0 isb\n"),
    );
}

#[test]
fn n21_the_repeat_errata() {
    let header = HEADER.replace("max", "max erratum-repeat");
    bad_on(&header, Kind::MissingRepeat, &unmap_page(FLUSH_PAGE_0));
    good_on(
        &header,
        &unmap_page(&format!(
            "{FLUSH_PAGE_0}0 tlbi vmalle1is\n0 dsb ish\n0 isb\n"
        )),
    );
}

#[test]
fn n22_a_fault_on_an_entry_already_relaxed() {
    let ro = format!("0 st 0x80011000 0x4000075b\n{FLUSH_PAGE_0}");
    let relaxed = format!("{ro}0 st 0x80011000 0x400007db\n0 dsb ishst\n1 fault 0 w\n");
    bad(Kind::Livelock, &format!("{relaxed}1 fault 0 w\n"));
    good(&format!(
        "{relaxed}1 tlbi ipas2e1 0\n1 dsb nsh\n1 tlbi vmalle1\n1 dsb nsh\n1 fault 0 w\n"
    ));
}

#[test]
fn n23_n24_table_over_block_and_block_over_table() {
    bad(
        Kind::ValidToValidNeedsBbm,
        "0 alloc 0x80012000 4096 zeroed\n0 stlr 0x80010008 0x80012003\n0 tlbi vmalls12e1is\n0 dsb ish\n",
    );
    bad(
        Kind::ValidToValidNeedsBbm,
        "0 stlr 0x80010000 0x400007d9\n0 tlbi vmalls12e1is\n0 dsb ish\n",
    );
}

/// The block is split into 512 pages by `leaf`, and the promise compared.
fn split_and_compare(leaf: impl Fn(u64) -> u64) -> String {
    let fill: String = (0..512u64)
        .map(|i| format!("0 st {:#x} {:#x}\n", 0x8001_2000 + i * 8, leaf(i)))
        .collect();
    format!(
        "0 spec 0 8192 0x40000000
0 spec 0x200000 0x200000 0x40200000 rwxu forced-wb
0 alloc 0x80012000 4096 zeroed
{fill}0 st 0x80010008 0
0 dsb ishst
0 tlbi ipas2e1is 0x200
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
0 stlr 0x80010008 0x80012003
0 dsb ishst
{QUIESCE}"
    )
}

#[test]
fn n25_n26_children_of_a_split_block() {
    let right = |i: u64| 0x4020_07db + (i << 12);
    good(&split_and_compare(right));
    // All children alias the first; rights lost; the type lost; one missing.
    bad(Kind::SpecMismatch, &split_and_compare(|_| 0x4020_07db));
    bad(Kind::SpecMismatch, &split_and_compare(|i| right(i) & !0x80));
    bad(
        Kind::SpecMismatch,
        &split_and_compare(|i| right(i) | 1 << 54),
    );
    bad(
        Kind::SpecMismatch,
        &split_and_compare(|i| right(i) & !0x3c | 0x14),
    );
    bad(
        Kind::SpecMismatch,
        &split_and_compare(|i| if i == 511 { 0 } else { right(i) }),
    );
}

#[test]
fn n27_a_fold_over_pages_that_differ() {
    // Two pages that follow each other, but the block opens the rest as well.
    let fold = "0 spec 0 8192 0x40000000
0 st 0x80010000 0
0 dsb ishst
0 tlbi vmalls12e1is
0 dsb ish
0 isb
0 st 0x80010000 0x400007d9
0 dsb ishst
";
    bad(Kind::SpecMismatch, &format!("{fold}{QUIESCE}"));
}

#[test]
fn n28_blocks_and_reserved_descriptors() {
    // 4K level 0 without DS, and 0b01 at level 3.
    let level0 = "mmu-trace 1
features max
0 alloc 0x80000000 4096 zeroed
0 dsb ishst
0 msr vtcr_el2 0x80053590
0 msr vttbr_el2 0x0001000080000000
0 isb
0 st 0x80000000 0x80000007d9
";
    let kind = |text: &str| trace::judge(text).unwrap().violation.map(|(_, v)| v.kind);
    assert_eq!(kind(level0), Some(Kind::BlockIllegalLevel));
    let ds = level0
        .replace("0x80053590", "0x180053590")
        .replace("7d9", "4d9");
    assert_eq!(kind(&ds), None);
    bad(Kind::BlockIllegalLevel, "0 st 0x80011010 0x400027d9");
}

#[test]
fn n33_concatenated_roots_do_not_alias() {
    // A page promised at 2^39 and written into the first table.
    let map = |table: u64| {
        format!(
            "0 spec 0 8192 0x40000000
0 spec 0x200000 0x200000 0x40200000
0 spec 0x8000000000 0x40000000 0xc0000000
0 st {:#x} 0xc00007d9
0 dsb ishst
{QUIESCE}",
            0x8000_0000 + table
        )
    };
    bad(Kind::SpecMismatch, &map(8));
    good(&map(4096));
}

#[test]
fn n38_addresses_above_the_output_size() {
    // 4K without LPA2 has 48 bits of output, whatever PS says.
    let wide = TREE.replace("0x80053558", "0x80063558");
    let text = |leaf: &str| format!("{HEADER}{wide}0 st 0x80011010 {leaf}\n");
    let kind = |t: String| trace::judge(&t).unwrap().violation.map(|(_, v)| v.kind);
    assert_eq!(kind(text("0xffff400027db")), None);
    let small = HEADER.replace("max", "max pa=44");
    let at = |leaf: &str| kind(format!("{small}{wide}0 st 0x80011010 {leaf}\n"));
    assert_eq!(at("0xfff400027db"), None);
    assert_eq!(at("0x1000400027db"), Some(Kind::AddressSize));
}

#[test]
fn n40_adding_execution_for_one_level_only() {
    let header = HEADER.replace("max", "4k fwb xnx tlbirange ttl pa=48 vmid16");
    let own = "0 own 0x50000000 4096 vmid:1\n";
    let none = "0 st 0x80011010 0x400000500007db\n"; // XN = 10
    for exec in ["0x500007db", "0x200000500007db", "0x600000500007db"] {
        let add = format!("0 st 0x80011010 {exec}\n");
        bad_on(
            &header,
            Kind::MissingInstructionInvalidate,
            &format!("{own}{none}{add}"),
        );
        good_on(&header, &format!("{own}{none}0 ic 0x50000000 4096\n{add}"));
    }
}

#[test]
fn n41_memory_that_is_not_shareable() {
    bad(Kind::NotShareable, "0 st 0x80011010 0x400024db");
    good("0 st 0x80011010 0x400027db");
    good("0 st 0x80011010 0x400024c3"); // Device is shareable as it is
}

#[test]
fn n43_unmapping_a_page_drops_the_whole_block() {
    let unmap = "0 spec 0 8192 0x40000000
0 spec 0x200000 0x200000 0x40200000
0 spec 0x200000 4096 none
0 st 0x80010008 0
0 dsb ishst
0 tlbi ipas2e1is 0x200
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
";
    bad(Kind::SpecMismatch, &format!("{unmap}{QUIESCE}"));
}

#[test]
fn n50_a_frozen_value_that_looks_valid() {
    // Freezing must clear bit 0; anything else is the walker's to read.
    bad(
        Kind::ValidToValidNeedsBbm,
        "0 cas 0x80011000 0x400007db 0xfff00000000007df\n",
    );
    good(
        "0 cas 0x80011000 0x400007db 0xf000000000000000\n0 casl 0x80011000 0xf000000000000000 0x400007db\n",
    );
}

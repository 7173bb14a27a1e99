//! Each rule: a short trace that breaks it, and a near miss that does not.

use mmu_model::{Kind, trace};

mod common;

use common::*;

#[test]
fn the_tree_alone_is_right() {
    good("");
    good(QUIESCE);
}

#[test]
fn unmap_and_remap_in_full() {
    good(&format!("0 st 0x80011000 0\n{FLUSH_PAGE_0}{QUIESCE}"));
    good(&format!(
        "0 st 0x80011000 0\n{FLUSH_PAGE_0}0 st 0x80011000 0x400057db\n0 dsb ishst\n{QUIESCE}"
    ));
}

#[test]
fn valid_to_valid() {
    // Output address, memory type, shareability, block and table, contiguous.
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80011000 0x400057db");
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80011000 0x400007d7");
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80011000 0x400006db");
    bad(
        Kind::ValidToValidNeedsBbm,
        "0 alloc 0x80012000 4096 zeroed\n0 stlr 0x80010008 0x80012003",
    );
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80010000 0x400007d9");
    bad(
        Kind::ValidToValidNeedsBbm,
        "0 st 0x80011000 0x100000400007db",
    );
    bad(
        Kind::ValidToValidNeedsBbm,
        "0 alloc 0x80012000 4096 zeroed\n0 stlr 0x80010000 0x80012003",
    );
    // Rights, XN, software bits and the same again need none.
    good("0 st 0x80011000 0x4000075b\n");
    good("0 st 0x80011000 0x400000400007db\n");
    good("0 st 0x80011000 0x7800000400007db\n0 st 0x80011000 0x7800000400007db\n");
    good("0 stlr 0x80010000 0x80011003\n");
}

#[test]
fn an_entry_without_access_flag_is_not_cached() {
    let young = "0 st 0x80011010 0x400023db\n0 dsb ishst\n";
    good(&format!("{young}0 st 0x80011010 0x400093db\n"));
    good(&format!(
        "{young}0 st 0x80011010 0\n0 st 0x80011010 0x400097db\n0 dsb ishst\n{QUIESCE}"
    ));
    // One that lost it may still be: the earlier one had it.
    bad(
        Kind::MakeWhileUnclean,
        "0 st 0x80011000 0x400003db\n0 st 0x80011000 0\n0 st 0x80011000 0x400097db\n",
    );
}

#[test]
fn make_while_unclean() {
    bad(
        Kind::MakeWhileUnclean,
        "0 st 0x80011000 0\n0 dsb ishst\n0 st 0x80011000 0x400057db",
    );
    // The other page is nobody's business.
    good("0 st 0x80011000 0\n0 dsb ishst\n0 st 0x80011010 0x400057db");
    // Rolling back to what was there is no change.
    good(&format!(
        "0 swp 0x80011000 0x10\n0 swpl 0x80011000 0x400007db\n0 dsb ishst\n{QUIESCE}"
    ));
    // A block over pages that were removed one by one.
    bad(
        Kind::MakeWhileUnclean,
        "0 st 0x80010000 0\n0 dsb ishst\n0 st 0x80010000 0x400007d9",
    );
}

#[test]
fn tlbi_before_dsb() {
    let late = "0 st 0x80011000 0
0 tlbi ipas2e1is 0
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
";
    bad(Kind::TlbiBeforeDsb, &format!("{late}{QUIESCE}"));
    bad(
        Kind::TlbiBeforeDsb,
        &format!("{late}0 st 0x80011000 0x400057db"),
    );
    // A DMB orders, but completes nothing; DSB ISHLD waits for no store.
    let dmb = late.replace("0 tlbi ipas2e1is", "0 dmb ishst\n0 tlbi ipas2e1is");
    bad(Kind::TlbiBeforeDsb, &format!("{dmb}{QUIESCE}"));
    let ld = late.replace("0 tlbi ipas2e1is", "0 dsb ishld\n0 tlbi ipas2e1is");
    bad(Kind::TlbiBeforeDsb, &format!("{ld}{QUIESCE}"));
    let right = late.replace("0 tlbi ipas2e1is", "0 dsb ishst\n0 tlbi ipas2e1is");
    good(&format!("{right}{QUIESCE}"));
    // Another PE's DSB does not wait for this PE's store.
    let other = late.replace("0 tlbi ipas2e1is", "1 dsb ish\n0 tlbi ipas2e1is");
    bad(Kind::TlbiBeforeDsb, &format!("{other}{QUIESCE}"));
}

#[test]
fn tlbi_with_the_wrong_vmid() {
    let by = |vttbr: &str, isb: &str| {
        format!(
            "0 alloc 0x80100000 8192 zeroed
0 dsb ishst
0 st 0x80011000 0
0 dsb ish
0 msr vttbr_el2 {vttbr}
{isb}
0 tlbi ipas2e1is 0
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 msr vttbr_el2 0x0001000080000000
0 isb
{QUIESCE}"
        )
    };
    bad(Kind::WrongVmid, &by("0x0002000080100000", "0 isb"));
    good(&by("0x0001000080000000", "0 isb"));
    // Switching to the right VMID without ISB: not certain to be it.
    let enter = "0 alloc 0x80100000 8192 zeroed
0 dsb ishst
0 st 0x80011000 0
0 dsb ish
0 msr vttbr_el2 0x0002000080100000
0 isb
0 msr vttbr_el2 0x0001000080000000
";
    let flush = "0 tlbi ipas2e1is 0
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
";
    bad(Kind::MissingIsb, &format!("{enter}{flush}{QUIESCE}"));
    good(&format!("{enter}0 isb\n{flush}{QUIESCE}"));
}

#[test]
fn level_and_granule_hints() {
    let with = |op: &str| {
        format!(
            "0 st 0x80011000 0\n{}{QUIESCE}",
            FLUSH_PAGE_0.replace("ipas2e1is 0x0", op)
        )
    };
    good(&with("ipas2e1is 0x700000000000")); // TG 4K, level 3
    good(&with("ipas2le1is 0x700000000000"));
    bad(Kind::TtlMismatch, &with("ipas2e1is 0x600000000000"));
    bad(Kind::TgMismatch, &with("ipas2e1is 0xb00000000000"));
    // Ranges: two pages from 0, TG 1; then TG 2 (16K) and 3 (64K).
    good(&with("ripas2e1is 0x400000000000"));
    good(&with("ripas2e1is 0x406000000000"));
    bad(Kind::TtlMismatch, &with("ripas2e1is 0x404000000000"));
    bad(Kind::TgMismatch, &with("ripas2e1is 0x800000000000"));
    bad(Kind::TgMismatch, &with("ripas2e1is 0xc00000000000"));
    bad(Kind::TgMismatch, &with("ripas2e1is 0x0"));
    // The other page's address.
    bad(Kind::StaleTranslation, &with("ipas2e1is 0x1"));
    // The wrong regime never helps.
    bad(Kind::BadSetup, &with("vae2is 0x0"));
}

#[test]
fn a_removed_table_takes_no_hint() {
    let remove = |ops: &str| {
        format!(
            "0 st 0x80010000 0
0 dsb ishst
{ops}
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
0 free 0x80011000 4096
{QUIESCE}"
        )
    };
    good(&remove("0 tlbi ipas2e1is 0x0\n0 tlbi ipas2e1is 0x1"));
    // 512 pages: SCALE 1, NUM 7.
    good(&remove("0 tlbi ripas2e1is 0x538000000000"));
    bad(
        Kind::TtlMismatch,
        &remove("0 tlbi ripas2e1is 0x53e000000000"),
    );
    bad(
        Kind::TtlMismatch,
        &remove("0 tlbi ipas2e1is 0x600000000000"),
    );
    bad(
        Kind::LastLevelForTable,
        &remove("0 tlbi ripas2le1is 0x538000000000"),
    );
    // Only the first of its pages.
    bad(Kind::StaleTranslation, &remove("0 tlbi ipas2e1is 0x0"));
    // Leaves first, with the table still in walk caches: they come back.
    bad(
        Kind::LastLevelForTable,
        &remove("0 tlbi ripas2le1is 0x538000000000\n0 dsb ish\n0 tlbi ipas2e1is 0x2"),
    );
    good(&remove(
        "0 tlbi ipas2e1is 0x2\n0 dsb ish\n0 tlbi ripas2le1is 0x538000000000",
    ));
}

#[test]
fn combined_entries() {
    let only = |rest: &str| {
        format!("0 st 0x80011000 0\n0 dsb ishst\n0 tlbi ipas2e1is 0\n{rest}0 isb\n{QUIESCE}")
    };
    bad(Kind::MissingStage1, &only("0 dsb ish\n"));
    bad(
        Kind::Stage1BeforeStage2,
        &only("0 tlbi vmalle1is\n0 dsb ish\n"),
    );
    bad(Kind::MissingDsb, &only("0 dsb ish\n0 tlbi vmalle1is\n"));
    bad(Kind::MissingDsb, &only(""));
    bad(
        Kind::MissingDsb,
        &only("0 dsb ishst\n0 tlbi vmalle1is\n0 dsb ishst\n"),
    );
    bad(
        Kind::MissingDsb,
        &only("1 dsb ish\n0 tlbi vmalle1is\n1 dsb ish\n"),
    );
    good(&only("0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n"));
    good(&only("0 dsb sy\n0 tlbi vmalls12e1is\n0 dsb sy\n"));
    // With HCR_EL2.{E2H,TGE} = {1,1} VMALLE1IS is about another regime.
    let host = "0 dsb ish\n0 msr hcr_el2 0x400408000000\n0 isb\n0 tlbi vmalle1is\n0 dsb ish\n";
    bad(Kind::WrongVmid, &only(host));
    // Both at once, for the whole VMID or for all.
    for all in ["vmalls12e1is", "alle1is"] {
        good(&format!(
            "0 st 0x80011000 0\n0 dsb ishst\n0 tlbi {all}\n0 dsb ish\n0 isb\n{QUIESCE}"
        ));
    }
    // No leaf went, so no combined entry did.
    let empty = "0 alloc 0x80012000 4096 zeroed
0 stlr 0x80010010 0x80012003
0 dsb ishst
0 st 0x80010010 0
0 dsb ishst
0 tlbi ipas2e1is 0x400
0 dsb ish
0 isb
0 free 0x80012000 4096
";
    good(&format!("{empty}{QUIESCE}"));
}

#[test]
fn reach_of_barriers_and_invalidations() {
    let flush = |text: &str| format!("0 st 0x80011000 0\n{text}{QUIESCE}");
    bad(
        Kind::LocalOnly,
        &flush(&FLUSH_PAGE_0.replace("ipas2e1is", "ipas2e1")),
    );
    bad(
        Kind::LocalOnly,
        &flush(&FLUSH_PAGE_0.replace("vmalle1is", "vmalle1")),
    );
    bad(
        Kind::LocalOnly,
        &flush("0 dsb ishst\n0 tlbi vmalls12e1is\n0 dsb nsh\n0 isb\n"),
    );
    bad(
        Kind::LocalOnly,
        &flush(&FLUSH_PAGE_0.replace("ishst", "nshst")),
    );
    // On a machine of one PE, the local forms are all there is to do.
    let one = HEADER.replace("pes 2", "pes 1");
    let tree: String = TREE
        .lines()
        .filter(|l| !l.starts_with('1'))
        .fold(String::new(), |t, l| t + l + "\n");
    let text = format!(
        "{one}{tree}0 st 0x80011000 0\n0 dsb nshst\n0 tlbi ipas2e1 0\n0 dsb nsh\n0 tlbi vmalle1\n0 dsb nsh\n0 isb\n{QUIESCE}"
    );
    assert_eq!(trace::judge(&text).unwrap().violation, None);
}

#[test]
fn rights_taken_away() {
    let protect = "0 st 0x80011000 0x4000075b\n";
    bad(
        Kind::StaleTranslation,
        &format!("{protect}0 dsb ishst\n{QUIESCE}"),
    );
    good(&format!("{protect}{FLUSH_PAGE_0}{QUIESCE}"));
    // Execution too, and the four-way field is not a number: 00 to 10.
    bad(
        Kind::StaleTranslation,
        &format!("0 st 0x80011000 0x400000400007db\n0 dsb ishst\n{QUIESCE}"),
    );
    bad(
        Kind::StaleTranslation,
        &format!("0 st 0x80011000 0x200000400007db\n0 dsb ishst\n{QUIESCE}"),
    );
    // Given, not taken: nothing stale can do harm.
    let read_only = format!("{protect}{FLUSH_PAGE_0}");
    good(&format!(
        "{read_only}0 st 0x80011000 0x400007db\n0 dsb ishst\n{QUIESCE}"
    ));
    // Taken and given back is nothing; but rights lost in turn add up.
    let full = "0 st 0x80011000 0x400007db\n0 dsb ishst\n";
    good(&format!("{protect}{full}{QUIESCE}"));
    let other = "0 st 0x80011000 0x400000400007db\n"; // XN instead of RO
    bad(
        Kind::StaleTranslation,
        &format!("{protect}{other}0 dsb ishst\n{QUIESCE}"),
    );
    good(&format!("{protect}{other}{full}{QUIESCE}"));
    // An access flag taken away may be noticed late.
    good(&format!(
        "0 st 0x80011000 0x400003db\n0 dsb ishst\n{QUIESCE}"
    ));
}

#[test]
fn stores_must_be_seen() {
    bad(
        Kind::MissingStoreBarrier,
        &format!("0 st 0x80011010 0x400027db\n{QUIESCE}"),
    );
    good(&format!(
        "0 st 0x80011010 0x400027db\n0 dsb ishst\n{QUIESCE}"
    ));
    bad(
        Kind::MissingStoreBarrier,
        &format!("0 st 0x80011010 0x400027db\n0 dsb nshst\n{QUIESCE}"),
    );
    bad(
        Kind::MissingStoreBarrier,
        &format!("0 st 0x80011010 0x400027db\n0 dmb ish\n{QUIESCE}"),
    );
    // An annotation of an invalid entry is no walker's business.
    good(&format!("0 st 0x80011010 0x1230\n{QUIESCE}"));
    // Elsewhere in the address space it does not matter.
    good("0 st 0x80011010 0x400027db\n0 quiesce 0x40000000 0x80000000\n");
}

#[test]
fn isb_closes_the_sequence() {
    let flush = FLUSH_PAGE_0.replace("0 isb\n", "");
    bad(
        Kind::MissingIsb,
        &format!("0 st 0x80011000 0\n{flush}{QUIESCE}"),
    );
    bad(
        Kind::MissingIsb,
        &format!("0 msr hcr_el2 0x400000000000\n{QUIESCE}"),
    );
    good(&format!("0 msr hcr_el2 0x400000000000\n0 isb\n{QUIESCE}"));
}

#[test]
fn free_while_cached() {
    let remove = "0 st 0x80010000 0\n0 dsb ishst\n";
    let all = "0 tlbi vmalls12e1is\n0 dsb ish\n0 isb\n";
    let free = "0 free 0x80011000 4096\n";
    bad(Kind::FreeWhileCached, free);
    bad(Kind::FreeWhileCached, &format!("{remove}{free}"));
    bad(
        Kind::MissingDsb,
        &format!("{remove}0 tlbi vmalls12e1is\n{free}"),
    );
    good(&format!("{remove}{all}{free}"));
    bad(Kind::BadEvent, &format!("{remove}{all}{free}{free}"));
    // The root, while installed.
    bad(Kind::FreeWhileCached, "0 free 0x80000000 8192\n");
    // Used again as a table elsewhere, not even freed.
    bad(
        Kind::FreeWhileCached,
        &format!("{remove}0 stlr 0x80010018 0x80011003"),
    );
    good(&format!(
        "{remove}{all}0 zero 0x80011000 4096\n0 stlr 0x80010018 0x80011003\n"
    ));
}

#[test]
fn teardown_of_a_tree_nobody_runs() {
    let leave = "0 msr vttbr_el2 0\n0 isb\n1 msr vttbr_el2 0\n1 isb\n";
    let frees = "0 free 0x80011000 4096\n0 free 0x80010000 4096\n0 free 0x80000000 8192\n";
    // All at once, after one invalidation while its VMID was still current.
    let flush = "0 dsb ishst\n0 tlbi alle1is\n0 dsb ish\n0 isb\n";
    good(&format!("{leave}{flush}{frees}"));
    bad(Kind::FreeWhileCached, &format!("{leave}{frees}"));
    bad(Kind::FreeWhileCached, &format!("{flush}{leave}{frees}"));
}

#[test]
fn frozen_children() {
    let remove = "0 st 0x80010000 0\n0 dsb ishst\n";
    bad(
        Kind::FrozenChildWritten,
        &format!("{remove}0 st 0x80011010 0x400027db"),
    );
    // Clearing is harmless; after the invalidation anything is.
    good(&format!("{remove}0 st 0x80011000 0\n"));
    good(&format!(
        "{remove}0 tlbi vmalls12e1is\n0 dsb ish\n0 st 0x80011010 0x400027db"
    ));
    // Putting the same table back undoes the removal.
    good(&format!(
        "{remove}0 stlr 0x80010000 0x80011003\n0 dsb ishst\n{QUIESCE}"
    ));
    bad(
        Kind::StaleTranslation,
        &format!("{remove}0 st 0x80011000 0\n0 stlr 0x80010000 0x80011003\n0 dsb ishst\n{QUIESCE}"),
    );
}

#[test]
fn tables_are_written_before_they_are_linked() {
    let alloc = "0 alloc 0x80012000 4096 zeroed\n0 dsb ishst\n";
    let fill = "0 st 0x80012000 0x600007db\n";
    bad(
        Kind::TableUsedUninitialised,
        &format!("{alloc}{fill}0 st 0x80010010 0x80012003"),
    );
    good(&format!("{alloc}{fill}0 stlr 0x80010010 0x80012003"));
    good(&format!(
        "{alloc}{fill}0 dmb ishst\n0 st 0x80010010 0x80012003"
    ));
    good(&format!("{alloc}{fill}0 casl 0x80010010 0 0x80012003"));
    bad(
        Kind::TableUsedUninitialised,
        &format!("{alloc}{fill}0 cas 0x80010010 0 0x80012003"),
    );
    // A page that was not zeroed.
    let dirty = "0 alloc 0x80012000 4096 dirty\n";
    bad(
        Kind::TableUsedUninitialised,
        &format!("{dirty}{fill}0 stlr 0x80010010 0x80012003"),
    );
    good(&format!(
        "{dirty}0 zero 0x80012000 4096\n{fill}0 stlr 0x80010010 0x80012003"
    ));
    // A page that was freed.
    bad(
        Kind::TableUsedUninitialised,
        &format!("{alloc}0 free 0x80012000 4096\n0 stlr 0x80010010 0x80012003"),
    );
    // One page in two places.
    bad(Kind::TableLinkedTwice, "0 stlr 0x80010010 0x80011003");
}

#[test]
fn illegal_descriptors() {
    bad(Kind::BlockIllegalLevel, "0 st 0x80011010 0x400027d9");
    // A block at level 0 wants DS; here the start level is 1, so 1 GiB is fine.
    good("0 st 0x80000008 0x400007d9");
    bad(Kind::MisalignedOutput, "0 st 0x80000008 0x402007d9");
    bad(Kind::MisalignedOutput, "0 st 0x80010010 0x400807d9");
    bad(Kind::ReservedAttribute, "0 st 0x80011010 0x400027d3");
    // 40 output bits.
    let small = HEADER.replace("max", "max pa=40");
    good_on(&small, "0 st 0x80011010 0xff400027db");
    bad_on(&small, Kind::AddressSize, "0 st 0x80011010 0x100400027db");
    // nT of a block is no address bit.
    good("0 st 0x80000008 0x400107d9");
}

#[test]
fn ownership_of_outputs() {
    let mine = "0 own 0x50000000 0x10000 vmid:1\n";
    let other = "0 own 0x50000000 0x10000 vmid:2\n";
    let map = "0 st 0x80011010 0x500007db\n";
    good(&format!("{mine}{map}"));
    bad(Kind::OutputNotOwned, &format!("{other}{map}"));
    bad(
        Kind::OutputNotOwned,
        &format!("0 own 0x50000000 0x10000 hypervisor\n{map}"),
    );
    bad(Kind::OutputNotOwned, "0 st 0x80011010 0x800107db\n");
    // A block that reaches into it from below.
    bad(
        Kind::OutputNotOwned,
        "0 own 0x501ff000 4096 hypervisor\n0 st 0x80010010 0x500007d9",
    );
    // Given away while mapped, then while cached, then rightly.
    bad(
        Kind::OutputNotOwned,
        &format!("{mine}{map}0 own 0x50000000 4096 nobody"),
    );
    let unmap = "0 st 0x80011010 0\n0 dsb ishst\n";
    let flush = "0 tlbi ipas2e1is 2\n0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n";
    bad(
        Kind::OutputNotOwned,
        &format!("{mine}{map}{unmap}0 own 0x50000000 4096 nobody"),
    );
    bad(
        Kind::MissingStage1,
        &format!("{mine}{map}{unmap}0 tlbi ipas2e1is 2\n0 dsb ish\n0 own 0x50000000 4096 nobody"),
    );
    good(&format!(
        "{mine}{map}{unmap}{flush}0 own 0x50000000 4096 nobody"
    ));
    // The page beside it never was affected.
    good(&format!("{mine}{map}0 own 0x50001000 4096 nobody"));
    // A table allocated out of memory that a guest can reach.
    bad(
        Kind::OutputNotOwned,
        &format!("{mine}{map}0 alloc 0x50000000 4096 zeroed"),
    );
}

#[test]
fn caches() {
    let plain = HEADER.replace("max", "4k xnx tlbirange ttl pa=48");
    let own = "0 own 0x50000000 4096 vmid:1\n";
    let map = "0 st 0x80011010 0x400000500007ff\n"; // Normal WB, XN
    let clean = "0 dc 0x50000000 4096\n";
    let tree = |body: String| {
        // The tree's leaves without FWB: MemAttr 0xf.
        let text = format!("{plain}{TREE}{body}")
            .replace("7db\n", "7ff\n")
            .replace("7d9\n", "7fd\n");
        trace::judge(&text).unwrap().violation.map(|(_, v)| v.kind)
    };
    assert_eq!(tree(format!("{own}{map}")), Some(Kind::MissingCmo));
    assert_eq!(tree(format!("{own}{clean}{map}")), None);
    assert_eq!(tree(format!("{clean}{own}{map}")), Some(Kind::MissingCmo));
    // Device memory needs none.
    assert_eq!(tree(format!("{own}{}", map.replace("7ff", "7c7"))), None);
    // Instruction side: mapping executable, and adding execution.
    let exec = map.replace("400000", "");
    let ic = "0 ic 0x50000000 4096\n";
    assert_eq!(
        tree(format!("{own}{clean}{exec}")),
        Some(Kind::MissingInstructionInvalidate)
    );
    assert_eq!(tree(format!("{own}{clean}{ic}{exec}")), None);
    let add = exec.replace("0x", "0x0");
    assert_eq!(
        tree(format!("{own}{clean}{map}{add}")),
        Some(Kind::MissingInstructionInvalidate)
    );
    // EL0 only (01) and EL1 only (11) execute as well.
    let el0 = map.replace("0x400000", "0x200000");
    assert_eq!(
        tree(format!("{own}{clean}{map}{el0}")),
        Some(Kind::MissingInstructionInvalidate)
    );
    assert_eq!(tree(format!("{own}{clean}{map}{ic}{el0}")), None);
    // With FWB nothing of the data side is needed.
    good(&format!("{own}0 st 0x80011010 0x500007db"));
}

#[test]
fn plain_writes_lose_updates() {
    // HA and HD of VTCR_EL2 are set on both PEs.
    let hd = |body: &str| {
        let tree = TREE.replace("0x80053558", "0x80653558");
        let text = format!("{HEADER}{tree}0 st 0x80011010 0x8000040002 75b\n0 dsb ishst\n{body}")
            .replace("0x8000040002 75b", "0x800004000275b");
        trace::judge(&text).unwrap().violation.map(|(_, v)| v.kind)
    };
    assert_eq!(hd("0 st 0x80011010 0\n"), Some(Kind::PlainWriteRace));
    assert_eq!(hd("0 swp 0x80011010 0\n"), None);
    assert_eq!(hd("0 cas 0x80011010 0x800004000275b 0\n"), None);
    assert_eq!(
        hd("0 cas 0x80011010 0x80000400027db 0\n"),
        Some(Kind::BadEvent)
    );
    assert_eq!(hd("0 st 0x80011000 0\n"), None, "no DBM, no race");
}

#[test]
fn ranges_that_overrun() {
    // 40-bit IPA: the last two pages, and two beyond.
    good("0 tlbi ripas2e1is 0x40000ffffffe");
    bad(Kind::RangeOverrun, "0 tlbi ripas2e1is 0x40000fffffff");
    bad(Kind::RangeOverrun, "0 tlbi ipas2e1is 0x10000000");
    let window = "0 window 0 0x2000\n";
    good(&format!("{window}0 tlbi ripas2e1is 0x400000000000"));
    bad(
        Kind::RangeOverrun,
        &format!("{window}0 tlbi ripas2e1is 0x408000000000"),
    );
    good(&format!(
        "{window}0 window off\n0 tlbi ripas2e1is 0x408000000000"
    ));
}

#[test]
fn instructions_that_are_not_there() {
    let none = HEADER.replace("max", "4k fwb xnx pa=48");
    bad_on(
        &none,
        Kind::UndefinedTlbi,
        "0 tlbi ripas2e1is 0x400000000000",
    );
    bad_on(
        &none,
        Kind::ReservedOperand,
        "0 tlbi ipas2e1is 0x700000000000",
    );
    good_on(&none, "0 tlbi ipas2e1is 0x0");
    // Linux's operand of 2024.
    bad(
        Kind::ReservedOperand,
        "0 tlbi ripas2e1is 0xffff708000040000",
    );
}

#[test]
fn what_changed_is_compared_whenever_it_was() {
    // All that the tree says is promised, and holds.
    let promises = "0 spec 0 0x10000000000 none
0 spec 0 0x2000 0x40000000
0 spec 0x200000 0x200000 0x40200000
";
    good(&format!("{promises}{QUIESCE}{QUIESCE}"));
    // A page that nobody promised: not seen by who is quiet elsewhere, but
    // by the next who is quiet there, and by who comes after them.
    let page = "0 st 0x80011010 0x400027db\n0 dsb ishst\n";
    let elsewhere = "0 quiesce 0 0x2000\n0 quiesce 0x3000 0x10000000000\n";
    good(&format!("{promises}{QUIESCE}{page}{elsewhere}"));
    for ranges in [QUIESCE, "1 quiesce 0x2000 0x3000\n"] {
        bad(
            Kind::SpecMismatch,
            &format!("{promises}{QUIESCE}{page}{elsewhere}{ranges}"),
        );
    }
    // A promise that changes is as good as an entry that does.
    bad(
        Kind::SpecMismatch,
        &format!("{promises}{QUIESCE}0 spec 0x1000 0x1000 none\n{QUIESCE}"),
    );
    // Promises that came after the entries.
    bad(
        Kind::SpecMismatch,
        &format!("{QUIESCE}0 spec 0x1000 0x1000 0x40001000\n{QUIESCE}"),
    );
}

#[test]
fn a_group_is_compared_when_a_member_changes() {
    // Sixteen pages with the hint at IPA 0x10000, the last without it.
    let mut made = String::new();
    for n in 16..32 {
        let hint = if n == 31 { 0 } else { 1u64 << 52 };
        let word = (0x4000_07db + (n << 12)) | hint;
        made += &format!("0 st {:#x} {word:#x}\n", 0x8001_1000u64 + n * 8);
    }
    let first = "0 quiesce 0x10000 0x11000\n";
    bad(Kind::BadContiguous, &format!("{made}0 dsb ishst\n{first}"));
    let whole = made.replace("0x4001f7db", "0x1000004001f7db");
    good(&format!("{whole}0 dsb ishst\n{first}{QUIESCE}"));
    // One member loses a right: whoever is quiet at any other is told.
    let change = "0 st 0x800110f8 0x1000004001f75b
0 dsb ishst
0 tlbi ripas2e1is 0x0000438000000010
0 dsb ish
0 tlbi vmalle1is
0 dsb ish
0 isb
";
    bad(
        Kind::BadContiguous,
        &format!("{whole}0 dsb ishst\n{QUIESCE}{change}{first}"),
    );
}

#[test]
fn roots_and_registers() {
    // The root spans two pages: 8 KiB alignment.
    bad(
        Kind::UnalignedRoot,
        "0 alloc 0x80101000 8192 zeroed\n0 dsb ishst\n0 msr vttbr_el2 0x2000080101000\n0 isb",
    );
    good("0 alloc 0x80102000 8192 zeroed\n0 dsb ishst\n0 msr vttbr_el2 0x2000080102000\n0 isb");
    // One invalid value for another in the root is no matter of walkers.
    good(
        "0 alloc 0x80102000 8192 zeroed\n0 dsb ishst\n0 st 0x80102008 0x40\n0 msr vttbr_el2 0x2000080102000\n0 isb",
    );
    bad(
        Kind::MissingStoreBarrier,
        "0 alloc 0x80102000 8192 zeroed\n0 dsb ishst\n0 st 0x80102008 0x400007d9\n0 msr vttbr_el2 0x2000080102000\n0 isb",
    );
    // Not yet visible.
    bad(
        Kind::MissingStoreBarrier,
        "0 alloc 0x80102000 8192 zeroed\n0 msr vttbr_el2 0x2000080102000\n0 isb",
    );
    // The same VMID for another tree: an empty one may stand in (to invalidate
    // by VMID without refills), but nothing may be mapped in it.
    let again = "0 alloc 0x80102000 8192 zeroed\n0 dsb ishst\n1 msr vttbr_el2 0\n1 isb\n";
    let other = "0 msr vttbr_el2 0x1000080102000\n0 isb\n";
    let map = "0 st 0x80102000 0x400007d9\n";
    good(&format!("{again}{other}"));
    bad(Kind::VmidReused, &format!("{again}{other}{map}"));
    bad(
        Kind::VmidReused,
        &format!("{again}{map}0 dsb ishst\n{other}"),
    );
    let clean = "0 msr vttbr_el2 0\n0 isb\n0 tlbi alle1is\n0 dsb ish\n0 isb\n";
    good(&format!("{again}{clean}{other}{map}"));
    good(&format!(
        "{again}{other}0 tlbi vmalls12e1is\n0 dsb ish\n0 isb\n{map}"
    ));
    // Level 0 with a 40-bit PA.
    let small = HEADER.replace("max", "4k pa=40 fwb");
    let text = format!(
        "{small}0 msr vtcr_el2 0x80053598\n0 msr vttbr_el2 0x1000080000000\n0 isb\n0 quiesce 0 1\n"
    );
    let kind = trace::judge(&text).unwrap().violation.map(|(_, v)| v.kind);
    assert_eq!(kind, Some(Kind::BadSetup));
}

#[test]
fn contiguous_groups() {
    let group = |verb: &dyn Fn(u64) -> String| (0..16).map(verb).collect::<String>();
    // Pages 16..32 of the level-3 table at 0x5001_0000 on.
    let make = group(&|i| {
        format!(
            "0 st {:#x} {:#x}\n",
            0x8001_1080 + i * 8,
            1u64 << 52 | (0x5001_07db + (i << 12))
        )
    }) + "0 dsb ishst\n";
    good(&format!("{make}{QUIESCE}"));
    // A group that is not complete, or not aligned, or not alike.
    let part = make.replace("0 st 0x80011088 0x100000500117db\n", "");
    bad(Kind::BadContiguous, &format!("{part}{QUIESCE}"));
    let moved = group(&|i| {
        let leaf = 1u64 << 52 | (0x5001_17db + (i << 12));
        format!("0 st {:#x} {leaf:#x}\n", 0x8001_1080 + i * 8)
    });
    bad(
        Kind::BadContiguous,
        &format!("{moved}0 dsb ishst\n{QUIESCE}"),
    );
    bad(
        Kind::BadContiguous,
        &format!(
            "{}{QUIESCE}",
            make.replace("0x100000500157db", "0x1000005001575b")
        ),
    );
    // Break-before-make of one member only: the TLB may remake the whole.
    let flush = |i: u64| format!("0 tlbi ipas2e1is {:#x}\n", 16 + i);
    let end = "0 dsb ish\n0 tlbi vmalle1is\n0 dsb ish\n0 isb\n";
    let one = format!("{make}0 st 0x80011088 0\n0 dsb ishst\n{}{end}", flush(1));
    bad(
        Kind::ContiguousAlive,
        &format!("{one}0 st 0x80011088 0x600007db"),
    );
    // All members cleared, but only one address invalidated.
    let clear = group(&|i| format!("0 st {:#x} 0\n", 0x8001_1080 + i * 8)) + "0 dsb ishst\n";
    bad(
        Kind::StaleTranslation,
        &format!("{make}{clear}{}{end}{QUIESCE}", flush(0)),
    );
    let every: String = (0..16).map(flush).collect();
    good(&format!("{make}{clear}{every}{end}{QUIESCE}"));
    // 16 pages: SCALE 0, NUM 7.
    good(&format!(
        "{make}{clear}0 tlbi ripas2e1is 0x438000000010\n{end}{QUIESCE}"
    ));
    // Write-protecting all of a group: the TLBI counts once all are changed.
    let protect = |i: u64| {
        format!(
            "0 st {:#x} {:#x}\n",
            0x8001_1080 + i * 8,
            1u64 << 52 | (0x5001_075b + (i << 12))
        )
    };
    let halves: String = (0..8).map(protect).collect();
    let rest: String = (8..16).map(protect).collect();
    let range = "0 dsb ishst\n0 tlbi ripas2e1is 0x438000000010\n";
    good(&format!("{make}{halves}{rest}{range}{end}{QUIESCE}"));
    bad(
        Kind::ContiguousAlive,
        &format!("{make}{halves}{range}0 dsb ish\n{rest}{range}{end}{QUIESCE}").replace(
            &format!("{rest}{range}"),
            &format!("{rest}0 dsb ishst\n0 tlbi ripas2e1is 0x418000000018\n"),
        ),
    );
}

#[test]
fn level_2_break_before_make_behind_its_switch() {
    let two = HEADER.replace("bbm=0", "bbm=2");
    let fill: String = (0..512u64)
        .map(|i| {
            format!(
                "0 st {:#x} {:#x}\n",
                0x8001_2000 + i * 8,
                0x4020_07db + (i << 12)
            )
        })
        .collect();
    let split = format!(
        "0 alloc 0x80012000 4096 zeroed\n{fill}0 stlr 0x80010008 0x80012003\n0 dsb ishst\n"
    );
    bad(Kind::ValidToValidNeedsBbm, &split);
    good_on(&two, &split);
    // The old size must go before the work counts as done.
    bad_on(&two, Kind::StaleTranslation, &format!("{split}{QUIESCE}"));
    let flush = "0 tlbi vmalls12e1is\n0 dsb ish\n0 isb\n";
    good_on(&two, &format!("{split}{flush}{QUIESCE}"));
    // One child that leads elsewhere.
    bad_on(
        &two,
        Kind::ValidToValidNeedsBbm,
        &split.replace("0x402057db", "0x402067db"),
    );
    // And back.
    let fold = "0 st 0x80010008 0x402007d9\n0 dsb ishst\n";
    good_on(
        &two,
        &format!("{split}{flush}{fold}{flush}0 free 0x80012000 4096\n{QUIESCE}"),
    );
    bad_on(
        &two,
        Kind::FreeWhileCached,
        &format!("{split}{flush}{fold}0 free 0x80012000 4096\n"),
    );
}

#[test]
fn faults_that_come_again() {
    let ro = format!("0 st 0x80011000 0x4000075b\n{FLUSH_PAGE_0}");
    let relax = "0 st 0x80011000 0x400007db\n0 dsb nshst\n";
    let local = "1 tlbi ipas2e1 0\n1 dsb nsh\n1 tlbi vmalle1\n1 dsb nsh\n1 isb\n";
    let again = "1 fault 0x10 w\n";
    bad(Kind::Livelock, &format!("{ro}{relax}{again}{again}"));
    good(&format!("{ro}{relax}{again}{local}{again}"));
    good(&format!("{ro}{again}{again}"));
    // A hint of another level, or another VMID's, rids the CPU of nothing.
    for (level, right) in [(1, false), (2, false), (3, true)] {
        let hinted = format!(
            "1 tlbi ipas2e1 {:#x}\n1 dsb nsh\n1 tlbi vmalle1\n1 dsb nsh\n",
            (1u64 << 2 | level) << 44
        );
        let text = format!("{ro}{relax}{again}{hinted}{again}");
        if right {
            good(&text);
        } else {
            bad(Kind::Livelock, &text);
        }
    }
}

#[test]
fn promises() {
    let spec = "0 spec 0 8192 0x40000000 rwxu forced-wb\n0 spec 0x200000 0x200000 0x40200000\n";
    good(&format!("{spec}{QUIESCE}"));
    bad(
        Kind::SpecMismatch,
        &format!("0 spec 0 8192 0x40000000\n{QUIESCE}"),
    );
    bad(
        Kind::SpecMismatch,
        &format!("{spec}0 spec 0x1000 4096 none\n{QUIESCE}"),
    );
    bad(
        Kind::SpecMismatch,
        &format!("{spec}0 spec 0x5000 4096 0x40005000\n{QUIESCE}"),
    );
    bad(
        Kind::SpecMismatch,
        &format!("{spec}0 spec 0 4096 0x40000000 rw\n{QUIESCE}"),
    );
    bad(
        Kind::SpecMismatch,
        &format!("{spec}0 spec 0x201000 4096 0x40202000\n{QUIESCE}"),
    );
    good(&format!("{spec}0 spec 0x201000 4096 0x40201000\n{QUIESCE}"));
}

#[test]
fn the_repeat_errata() {
    let header = HEADER.replace("max", "max erratum-repeat");
    let once = format!("0 st 0x80011000 0\n{FLUSH_PAGE_0}");
    bad_on(&header, Kind::MissingRepeat, &format!("{once}{QUIESCE}"));
    good_on(
        &header,
        &format!("{once}0 tlbi vmalle1is\n0 dsb ish\n0 isb\n{QUIESCE}"),
    );
    bad_on(
        &header,
        Kind::MissingRepeat,
        &format!("{once}0 tlbi vmalle1is\n0 isb\n{QUIESCE}"),
    );
}

#[test]
fn the_range_length_erratum() {
    let header = HEADER.replace("max", "max erratum-range32");
    // Page 0 unmapped, 8 GiB invalidated in one: length 0 in 32 bits.
    let with = |op: &str| {
        format!(
            "0 st 0x80011000 0\n{}{QUIESCE}",
            FLUSH_PAGE_0.replace("ipas2e1is 0x0", op)
        )
    };
    bad_on(
        &header,
        Kind::StaleTranslation,
        &with("ripas2e1is 0x7f8000000000"),
    );
    good(&with("ripas2e1is 0x7f8000000000"));
    good_on(&header, &with("ripas2e1is 0x770000000000")); // NUM 14
}

#[test]
fn every_rule_explains_itself() {
    for kind in Kind::ALL {
        assert!(kind.explain().len() > 20, "{kind:?}");
    }
}

/// The example of the README is a trace, and right.
#[test]
fn the_readme_shows_a_right_trace() {
    let readme = include_str!("../README.md");
    let start = readme.rfind("```\nmmu-trace 1").unwrap() + 4;
    let end = start + readme[start..].find("```").unwrap();
    let text = &readme[start..end];
    assert_eq!(trace::judge(text).unwrap().violation, None);
    // Without its invalidation it is not.
    let lazy: String = text
        .lines()
        .filter(|l| !l.contains("tlbi"))
        .map(|l| format!("{l}\n"))
        .collect();
    assert!(trace::judge(&lazy).unwrap().violation.is_some());
}

#[test]
fn level_1_break_before_make_wants_nt() {
    let one = HEADER.replace("bbm=0", "bbm=1");
    let fill: String = (0..512u64)
        .map(|i| {
            format!(
                "0 st {:#x} {:#x}\n",
                0x8001_2000 + i * 8,
                0x4020_07db + (i << 12)
            )
        })
        .collect();
    let table = format!("0 alloc 0x80012000 4096 zeroed\n{fill}");
    let split = "0 stlr 0x80010008 0x80012003\n0 dsb ishst\n";
    let flush = "0 tlbi vmalls12e1is\n0 dsb ish\n0 isb\n";
    bad_on(&one, Kind::ValidToValidNeedsBbm, &format!("{table}{split}"));
    let nt = "0 st 0x80010008 0x402107d9\n0 dsb ishst\n";
    good_on(&one, &format!("{table}{nt}{split}{flush}{QUIESCE}"));
}

/// Each rule is broken by some trace in these tests.
#[test]
fn every_rule_has_its_trace() {
    let tests = [
        include_str!("violations.rs"),
        include_str!("elsewhere.rs"),
        include_str!("el2.rs"),
        include_str!("exact.rs"),
        include_str!("questions.rs"),
    ]
    .concat();
    for kind in Kind::ALL {
        assert!(tests.contains(&format!("Kind::{kind:?}")), "{kind:?}");
    }
}

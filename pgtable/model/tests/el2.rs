//! Stage 1 of EL2: the hypervisor's own map.

use mmu_model::{Kind, trace};

/// 4K, 39 bits from level 1; MAIR 0xff at index 0, 0x00 at index 1. A 1 GiB
/// block at 0, a table at 1 GiB with one 2 MiB block.
const START: &str = "mmu-trace 1
features max bbm=0
pes 2
0 alloc 0x80000000 4096 zeroed
0 dsb ishst
0 msr mair_el2 0xff
0 msr tcr_el2 0x80853519
0 msr ttbr0_el2 0x80000000
0 isb
1 msr mair_el2 0xff
1 msr tcr_el2 0x80853519
1 msr ttbr0_el2 0x80000000
1 isb
0 st 0x80000000 0x701
0 alloc 0x80001000 4096 zeroed
0 stlr 0x80000008 0x80001003
0 st 0x80001000 0x40000701
0 dsb ishst
0 isb
";

const QUIESCE: &str = "0 quiesce 0 0x8000000000\n";

#[track_caller]
fn judge(body: &str) -> Option<Kind> {
    let judged = trace::judge(&format!("{START}{body}")).unwrap();
    judged.violation.map(|(_, v)| {
        println!("{v}");
        v.kind
    })
}

#[track_caller]
fn bad(kind: Kind, body: &str) {
    assert_eq!(judge(body), Some(kind), "{body}");
}

#[track_caller]
fn good(body: &str) {
    assert_eq!(judge(body), None, "{body}");
}

/// The 2 MiB block goes.
fn unmap(ops: &str) -> String {
    format!("0 st 0x80001000 0\n{ops}{QUIESCE}")
}

#[test]
fn one_invalidation_is_enough() {
    good(QUIESCE);
    let flush = "0 dsb ishst\n0 tlbi vae2is 0x40000\n0 dsb ish\n0 isb\n";
    good(&unmap(flush));
    good(&unmap(&flush.replace("vae2is", "vale2is")));
    good(&unmap(&flush.replace("vae2is 0x40000", "alle2is")));
    // 512 pages at 1 GiB: SCALE 1, NUM 7; and a hint for level 2.
    good(&unmap(
        &flush.replace("vae2is 0x40000", "rvae2is 0x538000040000"),
    ));
    good(&unmap(
        &flush.replace("vae2is 0x40000", "rvale2is 0x53c000040000"),
    ));
    good(&unmap(&flush.replace("0x40000", "0x600000040000")));
}

#[test]
fn each_part_is_needed() {
    let flush = "0 dsb ishst\n0 tlbi vae2is 0x40000\n0 dsb ish\n0 isb\n";
    bad(
        Kind::TlbiBeforeDsb,
        &unmap(&flush.replace("0 dsb ishst\n", "")),
    );
    bad(Kind::StaleTranslation, &unmap("0 dsb ishst\n"));
    bad(Kind::MissingDsb, &unmap(&flush.replace("0 dsb ish\n", "")));
    bad(Kind::MissingIsb, &unmap(&flush.replace("0 isb\n", "")));
    bad(Kind::LocalOnly, &unmap(&flush.replace("vae2is", "vae2")));
    bad(
        Kind::StaleTranslation,
        &unmap(&flush.replace("0x40000", "0x40200")),
    );
    bad(
        Kind::TtlMismatch,
        &unmap(&flush.replace("0x40000", "0x700000040000")),
    );
    bad(
        Kind::TgMismatch,
        &unmap(&flush.replace("0x40000", "0xa00000040000")),
    );
    // Operations of the other regime do nothing here.
    let other = flush.replace("vae2is 0x40000", "alle1is");
    bad(Kind::StaleTranslation, &unmap(&other));
    let other = flush.replace("vae2is 0x40000", "vmalls12e1is");
    bad(Kind::StaleTranslation, &unmap(&other));
}

#[test]
fn a_new_mapping_wants_an_isb() {
    let map = "0 st 0x80001008 0x40200701\n";
    bad(Kind::MissingStoreBarrier, &format!("{map}{QUIESCE}"));
    bad(Kind::MissingIsb, &format!("{map}0 dsb ishst\n{QUIESCE}"));
    bad(
        Kind::MissingIsb,
        &format!("{map}0 isb\n0 dsb ishst\n{QUIESCE}"),
    );
    good(&format!("{map}0 dsb ishst\n0 isb\n{QUIESCE}"));
}

#[test]
fn break_before_make() {
    // Memory type by MAIR index, address, block over table.
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80001000 0x40000705");
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80001000 0x40200701");
    bad(Kind::ValidToValidNeedsBbm, "0 st 0x80000008 0x40000701");
    // An index that says the same memory type is the same.
    let same = START.replace("0xff\n", "0xffff\n") + "0 st 0x80001000 0x40000705\n";
    assert_eq!(trace::judge(&same).unwrap().violation, None);
    // Read-only and execute-never want an invalidation, but no break.
    let protect = "0 st 0x80001000 0x40000040000781\n";
    bad(
        Kind::StaleTranslation,
        &format!("{protect}0 dsb ishst\n0 isb\n{QUIESCE}"),
    );
    good(&format!(
        "{protect}0 dsb ishst\n0 tlbi vae2is 0x40000\n0 dsb ish\n0 isb\n{QUIESCE}"
    ));
    // The table goes.
    let remove = "0 st 0x80000008 0\n0 dsb ishst\n";
    let free = "0 free 0x80001000 4096\n";
    bad(Kind::FreeWhileCached, &format!("{remove}{free}"));
    bad(
        Kind::LastLevelForTable,
        &format!("{remove}0 tlbi vale2is 0x40000\n0 dsb ish\n{free}"),
    );
    good(&format!(
        "{remove}0 tlbi vae2is 0x40000\n0 dsb ish\n0 isb\n{free}{QUIESCE}"
    ));
}

#[test]
fn the_hypervisor_may_map_its_own_pages() {
    good("0 st 0x80001008 0x80000701\n");
    good("0 own 0x50000000 0x200000 hypervisor\n0 st 0x80001008 0x50000701\n");
}

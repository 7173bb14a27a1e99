//! A machine made by hand, in order, and each kind of fault in it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::judge::Fault;
use super::layout::Layout;
use super::ram::Ram;
use super::state::Kind;
use super::{Audit, plants};

const BASE: u64 = 0x4000_0000;
const GRANULES: u64 = 2048;
const SECRET: u64 = 0x5ec2_e75e_5ec2_e75e;

/// Where EL2 keeps what.
const SYSTEM: u64 = BASE + 0x1000;
const POOL: u64 = BASE + 0x4000;
const RANGE: u64 = BASE + 0x5000;
const WORDS: u64 = BASE + 0x6000;
const SPANS: u64 = BASE + 0x8000;
/// The host's tables: the root, level 2, and level 3 of the first 4 MiB.
const HOST: [u64; 4] = [BASE + 0x9000, BASE + 0xa000, BASE + 0xb000, BASE + 0xc000];
/// Granules of EL2's.
const OWN: u64 = 16;

/// 4K, 36 bits from level 1, 48 bits of PA.
const VTCR: u64 = 1 << 31 | 5 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 28;
const BLOCK: u64 = 0x7fd;
const PAGE: u64 = 0x7ff;
const TABLE: u64 = 0b11;
const UNPROTECTED: u64 = 1 << 55;

/// The realm's granules, one after another from here on, in the second 2 MiB.
const FIRST: u64 = 512;
const KINDS: [(Kind, u64); 10] = [
    (Kind::Rd, 1),
    (Kind::Rtt, 2), // the root
    (Kind::Rtt, 1), // of its own half, level 2
    (Kind::Rtt, 2), // and 3
    (Kind::Rtt, 1), // of the shared half
    (Kind::Rtt, 0),
    (Kind::Data, 0),
    (Kind::Data, 0),
    (Kind::Rec, 0),
    (Kind::Delegated, 0),
];
const RD: u64 = granule(FIRST);
const ROOT: u64 = granule(FIRST + 1);
const DATA: u64 = granule(FIRST + 6);
const REC: u64 = granule(FIRST + 8);
/// The host's granule that the realm shares, and its block.
const SHARED: u64 = granule(FIRST + 10);
const SHARED_BLOCK: u64 = BASE + (4 << 20);

const fn granule(n: u64) -> u64 {
    BASE + n * 4096
}

fn layout() -> Layout {
    Layout::made(
        &[("hyp::system::SYSTEM", SYSTEM - BASE)],
        &[
            (
                "spin::once::Once<hyp::system::System, spin::relax::Spin>",
                0x3000,
                &[("data", 0)],
            ),
            (
                "hyp::system::System",
                0x3000,
                &[
                    ("granules.shift", 0),
                    ("features.pa_bits", 4),
                    ("granules.ranges.data_ptr", 8),
                    ("granules.ranges.length", 16),
                    ("granules.words.data_ptr", 24),
                    ("granules.words.length", 32),
                    ("granules.spans.data_ptr", 40),
                    ("granules.spans.length", 48),
                    ("host.regs.vttbr", 56),
                    ("host.regs.vtcr", 64),
                    ("host.pool", 72),
                    ("own", 80),
                    ("vmids", 0x200),
                ],
            ),
            (
                "hyp::memory::pool::Pool",
                8,
                &[("state.data.value.left", 0)],
            ),
            (
                "hyp::memory::granule::Range",
                32,
                &[
                    ("region.base", 0),
                    ("region.size", 8),
                    ("first", 16),
                    ("first_span", 24),
                ],
            ),
            (
                "hyp::realm::Realm",
                0x400,
                &[
                    ("vttbr", 0),
                    ("vtcr", 8),
                    ("vmid", 16),
                    ("shared_from", 24),
                    ("posted.posting.data.value.page", 32),
                    ("posted.posting.data.value.granule", 40),
                    ("recs", 64),
                ],
            ),
            ("hyp::rec::Rec", 0x400, &[("rd", 0)]),
        ],
    )
}

/// Such a machine, a realm with a vCPU on it.
fn machine() -> Audit {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("ram");
    let file = File::create(&path).expect("a file");
    file.set_len(GRANULES * 4096).expect("room");
    let put = |pa: u64, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&bytes, pa - BASE).expect("room");
    };
    put(
        SYSTEM,
        &[12 | 48 << 32, RANGE, 1, WORDS, GRANULES, SPANS, 4],
    );
    put(SYSTEM + 56, &[HOST[0], VTCR, POOL, BASE, OWN * 4096]);
    put(SYSTEM + 0x200, &[1 << 5]);
    put(POOL, &[7]);
    put(RANGE, &[BASE, GRANULES * 4096, 0, 0]);
    let word = |n: u64| match n.checked_sub(FIRST) {
        _ if n < OWN => Kind::Hyp as u64,
        Some(10) => 1 << 5,
        Some(n @ 0..10) => KINDS[n as usize].0 as u64 | KINDS[n as usize].1 << 5,
        _ => 0,
    };
    let words: Vec<_> = (0..GRANULES / 2)
        .map(|n| word(2 * n) | word(2 * n + 1) << 32)
        .collect();
    put(WORDS, &words);
    put(SPANS, &[OWN, KINDS.len() as u64, 1 << 32, 0]);
    put(HOST[0] + 8, &[HOST[1] | TABLE]);
    let blocks = [2, 3].map(|n| (BASE + (n << 21)) | BLOCK);
    put(
        HOST[1],
        &[HOST[2] | TABLE, HOST[3] | TABLE, blocks[0], blocks[1]],
    );
    for n in 0..2 * 512 {
        if word(n) & 0xf == 0 {
            put(HOST[2] + 8 * n, &[granule(n) | PAGE]);
        }
    }
    put(RD, &[ROOT, VTCR, 5, 1 << 35]);
    put(RD + 64, &[REC]);
    put(REC, &[RD]);
    let table = |n: u64| granule(FIRST + 1 + n) | TABLE;
    put(ROOT + 8, &[table(1)]);
    put(ROOT + 8 * 32, &[table(3)]);
    put(granule(FIRST + 2), &[table(2)]);
    // A page, and one that is assigned and not RAM.
    put(granule(FIRST + 3), &[DATA | PAGE, (DATA + 4096) | (1 << 2)]);
    let block = SHARED_BLOCK | BLOCK | UNPROTECTED;
    put(granule(FIRST + 4), &[table(4), block]);
    put(granule(FIRST + 5), &[SHARED | PAGE | UNPROTECTED]);
    put(DATA + 24, &[SECRET; 8]);
    Audit {
        ram: Ram::open(&path, BASE).expect("opens"),
        layout: layout(),
        image: BASE,
        secret: SECRET,
    }
}

#[test]
fn a_machine_in_order_has_no_faults() {
    let report = machine().look().expect("can be read");
    assert_eq!(report.findings, []);
    assert_eq!((report.realms, report.secrets, report.shared), (1, 1, 2));
    assert_eq!((report.count(Kind::Rtt), report.count(Kind::Data)), (5, 2));
    assert!(!report.is_at_rest());
}

#[test]
fn each_kind_of_fault_is_found() {
    let mut audit = machine();
    let state = audit.state().expect("can be read");
    let count = plants::all_are_found(&mut audit, &state).expect("all are found");
    assert!(count > 40, "{count}");
}

/// Eight words one after the other, wherever they begin, and not seven.
#[test]
fn a_secret_is_found_wherever_it_begins() {
    let mut audit = machine();
    let page = SHARED + 4096;
    for (at, count, found) in [(0, 8, true), (13, 8, true), (504, 8, true), (13, 7, false)] {
        (at..at + count).for_each(|n| audit.ram.plant(page + 8 * n, SECRET));
        let report = audit.look().expect("can be read");
        let told = report
            .findings
            .iter()
            .any(|f| f.pa == page && f.fault == Fault::Secret);
        assert_eq!(told, found, "{count} at {at}");
        audit.ram.heal();
    }
}

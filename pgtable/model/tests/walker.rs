//! The walker: every legal start level and concatenation, both 52-bit formats,
//! and each check that ends in a fault.

use std::collections::HashMap;

use mmu_model::{
    Cache, Control, FaultKind, Features, Memory, Outcome, Perms, Regime, Shape, mair_memory,
    translate_raw,
};

/// Rows of "IPA bits: legal start levels with their number of tables", per
/// granule, from the architecture's rules worked out by hand. `D` marks what
/// needs DS = 1.
const ROWS: &str = "
32 | 2x4 1x1 | 2x1 | 3x8 2x1
33 | 2x8 1x1 | 2x1 | 3x16 2x1
34 | 2x16 1x1 | 2x1 | 2x1
35 | 1x1 | 2x1 | 2x1
36 | 1x1 | 2x1 | 2x1
38 | 1x1 | 2x4 1x1 | 2x1
39 | 1x1 | 2x8 1x1 | 2x1
40 | 1x2 0x1 | 2x16 1x1 | 2x1
41 | 1x4 0x1 | 1x1 | 2x1
42 | 1x8 0x1 | 1x1 | 2x1
43 | 1x16 0x1 | 1x1 | 2x2 1x1
44 | 0x1 | 1x1 | 2x4 1x1
46 | 0x1 | 1x1 | 2x16 1x1
47 | 0x1 | 1x1 | 1x1
48 | 0x1 | 1x2 0x1D | 1x1
49 | 0x2D -1x1D | 1x4D 0x1D | 1x1
50 | 0x4D -1x1D | 1x8D 0x1D | 1x1
51 | 0x8D -1x1D | 1x16D 0x1D | 1x1
52 | 0x16D -1x1D | 0x1D | 1x1
";

/// (TG0, level for SL0 = 0..3), 4K's level −1 being SL2 = 1, SL0 = 0.
const CODES: [(u64, [i8; 4]); 3] = [(0, [2, 1, 0, 9]), (2, [3, 2, 1, 0]), (1, [3, 2, 1, 9])];

fn vtcr(tg0: u64, (sl0, sl2): (u64, u64), ds: u64, ps: u64, ipa: u64) -> u64 {
    1 << 31 | sl2 << 33 | ds << 32 | ps << 16 | tg0 << 14 | 0x3500 | sl0 << 6 | (64 - ipa)
}

fn no_ttst() -> Features {
    Features {
        ttst: false,
        ..Features::max()
    }
}

#[test]
fn start_levels_and_concatenation() {
    let mut legal = 0;
    for row in ROWS.lines().filter(|l| !l.is_empty()) {
        let mut columns = row.split('|');
        let ipa: u64 = columns.next().unwrap().trim().parse().unwrap();
        for ((tg0, levels), column) in CODES.into_iter().zip(columns) {
            for ds in 0..2 {
                let allowed = |level: i8| {
                    column.split_whitespace().find_map(|entry| {
                        let (start, tables) = entry.split_once('x').unwrap();
                        let needs_ds = tables.ends_with('D');
                        let tables: u64 = tables.trim_end_matches('D').parse().unwrap();
                        let fits = start.parse() == Ok(level) && (!needs_ds || ds == 1);
                        // 64K knows no DS, and rows above 48 bits do not need it.
                        fits.then_some(tables)
                    })
                };
                for sl0 in 0..4u64 {
                    let level = levels[sl0 as usize];
                    let got = Shape::stage2(vtcr(tg0, (sl0, 0), ds, 6, ipa), 0, &no_ttst());
                    let want = allowed(level);
                    let tables = got.map(|s| (s.start, s.root_entries().div_ceil(1 << s.stride)));
                    assert_eq!(
                        tables.ok(),
                        want.map(|tables| (level, tables)),
                        "IPA {ipa}, TG0 {tg0}, SL0 {sl0}, DS {ds}"
                    );
                    legal += u32::from(want.is_some());
                }
                if tg0 == 0 {
                    let got = Shape::stage2(vtcr(0, (0, 1), ds, 6, ipa), 0, &no_ttst());
                    let want = if ds == 1 {
                        allowed(-1).map(|_| -1)
                    } else {
                        allowed(2).map(|_| 2)
                    };
                    assert_eq!(got.ok().map(|s| s.start), want, "SL2, IPA {ipa}, DS {ds}");
                    for sl0 in 1..4 {
                        let got = Shape::stage2(vtcr(0, (sl0, 1), 1, 6, ipa), 0, &no_ttst());
                        assert!(got.is_err(), "SL2 = 1 with SL0 = {sl0}");
                    }
                }
            }
        }
    }
    assert_eq!(legal, 140, "so many rows were checked");
}

#[test]
fn start_levels_that_a_smaller_part_refuses() {
    let part = |pa_bits| Features {
        pa_bits,
        lpa2: false,
        lva: false,
        ..no_ttst()
    };
    let start = |v, pa| Shape::stage2(v, 0, &part(pa)).map(|s| s.start).ok();
    // 4K level 0 and 64K level 1 need 44 bits, 16K level 1 needs 42.
    assert_eq!(start(vtcr(0, (2, 0), 0, 2, 40), 42), None);
    assert_eq!(start(vtcr(0, (2, 0), 0, 2, 40), 44), Some(0));
    assert_eq!(start(vtcr(0, (1, 0), 0, 2, 40), 40), Some(1));
    assert_eq!(start(vtcr(2, (2, 0), 0, 2, 40), 40), None);
    assert_eq!(start(vtcr(2, (2, 0), 0, 3, 40), 42), Some(1));
    assert_eq!(start(vtcr(1, (2, 0), 0, 3, 43), 42), None);
    assert_eq!(start(vtcr(1, (2, 0), 0, 4, 43), 44), Some(1));
    // An IPA is no wider than the PA.
    assert_eq!(start(vtcr(0, (2, 0), 0, 4, 48), 44), None);
    assert_eq!(start(vtcr(0, (2, 0), 0, 5, 48), 48), Some(0));
    // DS does nothing without LPA2.
    assert_eq!(start(vtcr(0, (2, 0), 1, 5, 52), 52), None);
    // T0SZ: 48 with FEAT_TTST, 47 for 64K; 4K level 3 only then.
    let tiny = |tg0, sl0, t0sz: u64, f: &Features| {
        Shape::stage2(vtcr(tg0, (sl0, 0), 0, 5, 64 - t0sz), 0, f)
    };
    assert_eq!(tiny(0, 3, 48, &Features::max()).map(|s| s.start), Ok(3));
    assert!(tiny(0, 3, 48, &no_ttst()).is_err());
    assert!(tiny(0, 0, 39, &no_ttst()).is_ok());
    assert!(tiny(0, 0, 40, &no_ttst()).is_err());
    assert!(tiny(1, 0, 47, &Features::max()).is_ok());
    assert!(tiny(1, 0, 48, &Features::max()).is_err());
    // TG0 = 3 is reserved; a granule may be missing.
    assert!(tiny(3, 1, 24, &Features::max()).is_err());
    let no16 = Features {
        granules: [true, false, true],
        ..Features::max()
    };
    assert!(tiny(2, 1, 24, &no16).is_err());
}

/// A memory of words, and walks over it.
#[derive(Default)]
struct Words(HashMap<u64, u64>);

impl Words {
    fn walk(&self, c: &Control, f: &Features, ia: u64) -> Outcome {
        translate_raw(c, f, ia, |pa| self.0.get(&pa).copied().unwrap_or(0))
    }
}

/// Writes an address into a descriptor as the format has it, by hand.
fn with_address(pa: u64, ds: bool, lpa: bool) -> u64 {
    if ds {
        pa & ((1 << 50) - 1) | (pa >> 50) << 8
    } else if lpa {
        pa & ((1 << 48) - 1) | (pa >> 48) << 12
    } else {
        pa
    }
}

fn stage2(vtcr: u64, ttbr: u64) -> Control {
    Control {
        regime: Regime::Stage2,
        tcr: vtcr,
        ttbr,
        hcr: 0,
        mair: 0,
    }
}

#[test]
fn every_level_of_every_shape_by_hand() {
    // (granule bits, TG0, SL0, SL2, DS, IPA bits, start)
    let shapes = [
        (12, 0, 0, 1, 1, 52, -1),
        (12, 0, 2, 0, 1, 52, 0),
        (12, 0, 2, 0, 0, 48, 0),
        (12, 0, 1, 0, 0, 43, 1),
        (12, 0, 0, 0, 0, 34, 2),
        (14, 2, 3, 0, 1, 52, 0),
        (14, 2, 2, 0, 1, 51, 1),
        (14, 2, 2, 0, 0, 48, 1),
        (14, 2, 1, 0, 0, 40, 2),
        (16, 1, 2, 0, 0, 52, 1),
        (16, 1, 1, 0, 0, 46, 2),
        (16, 1, 0, 0, 0, 33, 3),
    ];
    let f = Features::max();
    for (bits, tg0, sl0, sl2, ds, ipa_bits, start) in shapes {
        let lpa = bits == 16;
        let wide = ds == 1 || lpa;
        let stride = bits - 3;
        // The last page of the space, whose output lies as high as it may.
        let ia = (1u64 << ipa_bits) - 0x1000;
        let page = ia & !((1 << bits) - 1);
        let top = if wide { 52 } else { 48 };
        let oa = (1u64 << top) - (1 << bits);
        let high = if wide {
            0xc_0000_0000_0000u64
        } else {
            0x8000_0000_0000
        };
        let root = high | 0x4000_0000;
        let ttbr = if wide {
            root & ((1 << 48) - 1) | (root >> 48) << 2
        } else {
            root
        };
        let mut words = Words::default();
        let mut table = root;
        for level in start..=3i32 {
            let shift = bits + (3 - level) * stride;
            let index = if level == start {
                page >> shift
            } else {
                page >> shift & ((1 << stride) - 1)
            };
            let next = if level == 3 {
                oa
            } else {
                high | 0x5000_0000 | ((level + 2) as u64) << 20
            };
            let low = if level == 3 { 0x7ff } else { 3 };
            let low = if ds == 1 { low & !0x300 } else { low };
            words
                .0
                .insert(table + index * 8, with_address(next, ds == 1, lpa) | low);
            table = next;
        }
        let c = stage2(vtcr(tg0, (sl0, sl2), ds, 6, ipa_bits as u64), ttbr);
        let t = words
            .walk(&c, &f, ia)
            .unwrap_or_else(|e| panic!("{bits} {start}: {e:?}"));
        assert_eq!(t.pa, oa | ia & ((1 << bits) - 1));
        assert_eq!((t.level, i32::from(t.size_log2)), (3, bits));
        assert_eq!(
            t.attrs.sh, 3,
            "from the leaf, or from VTCR_EL2.SH0 under DS"
        );
        // One page below, nothing; above the space, a fault at level 0.
        let below = words.walk(&c, &f, page - 1).unwrap_err();
        assert_eq!((below.kind, below.level), (FaultKind::Translation, 3));
        if ipa_bits < 52 {
            let above = words.walk(&c, &f, 1 << ipa_bits).unwrap_err();
            assert_eq!((above.kind, above.level), (FaultKind::Translation, 0));
        }
    }
}

#[test]
fn blocks_where_they_are_legal_only() {
    let f = Features::max();
    // (TG0, SL0, SL2, DS, IPA, level, legal): the entry for IPA 0.
    let cases = [
        (0, 0, 1, 1, 52, -1, false),
        (0, 2, 0, 1, 48, 0, true),
        (0, 2, 0, 0, 48, 0, false),
        (0, 1, 0, 0, 40, 1, true),
        (0, 0, 0, 0, 34, 2, true),
        (2, 3, 0, 1, 52, 0, false),
        (2, 2, 0, 1, 48, 1, true),
        (2, 2, 0, 0, 48, 1, false),
        (2, 1, 0, 0, 40, 2, true),
        (2, 0, 0, 0, 26, 3, false),
        (1, 2, 0, 0, 48, 1, true),
        (1, 1, 0, 0, 42, 2, true),
        (1, 0, 0, 0, 33, 3, false),
    ];
    for (tg0, sl0, sl2, ds, ipa, level, legal) in cases {
        let c = stage2(vtcr(tg0, (sl0, sl2), ds, 6, ipa), 0x4000_0000);
        let got = translate_raw(&c, &f, 0, |_| 0x4fd);
        match got {
            Ok(t) => assert!(legal && i32::from(t.level) == level, "{tg0} level {level}"),
            Err(e) => {
                assert!(!legal, "{tg0} level {level}: {e:?}");
                assert_eq!(
                    (e.kind, i32::from(e.level)),
                    (FaultKind::Translation, level)
                );
            }
        }
    }
    // 64K level 1 wants 52 physical bits.
    let small = Features {
        pa_bits: 48,
        ..Features::max()
    };
    let c = stage2(vtcr(1, (2, 0), 0, 5, 48), 0x4000_0000);
    assert!(translate_raw(&c, &small, 0, |_| 0x4fd).is_err());
}

#[test]
fn address_size_faults() {
    let f = Features::max();
    // 4K, level 1, 40-bit output by PS.
    let c = stage2(vtcr(0, (1, 0), 0, 2, 40), 0x4000_0000);
    let at = |word: u64| translate_raw(&c, &f, 0, |_| word);
    assert!(at(0xff_c000_04fd).is_ok());
    let e = at(0x100_0000_04fd).unwrap_err();
    assert_eq!((e.kind, e.level), (FaultKind::AddressSize, 1));
    // A table address too, at the level of the entry.
    let e = at(0x100_0000_0003).unwrap_err();
    assert_eq!((e.kind, e.level), (FaultKind::AddressSize, 1));
    // The base register, at level 0.
    let c = stage2(vtcr(0, (1, 0), 0, 2, 40), 0x100_0000_0000);
    let e = translate_raw(&c, &f, 0, |_| 0).unwrap_err();
    assert_eq!((e.kind, e.level), (FaultKind::AddressSize, 0));
    // 64K: bits 15:12 are address bits, beyond the output size when PS is 48.
    let c = stage2(vtcr(1, (1, 0), 0, 5, 40), 0x4000_0000);
    let e = translate_raw(&c, &f, 0, |_| 0xf4fd).unwrap_err();
    assert_eq!((e.kind, e.level), (FaultKind::AddressSize, 2));
    // Without LPA they are ignored.
    let small = Features {
        pa_bits: 48,
        ..Features::max()
    };
    assert!(translate_raw(&c, &small, 0, |_| 0xf4fd).is_ok());
    // PS above what is implemented counts as what is.
    let c = stage2(vtcr(0, (1, 0), 0, 6, 40), 0x4000_0000);
    let e = translate_raw(&c, &Features::v8_0(), 0, |_| 0x100_0000_04fd).unwrap_err();
    assert_eq!(e.kind, FaultKind::AddressSize);
}

#[test]
fn flags_and_rights() {
    let c = stage2(vtcr(0, (1, 0), 0, 5, 40), 0x4000_0000);
    let f = Features::max();
    let at = |word: u64| translate_raw(&c, &f, 0, |_| word);
    let e = at(0xfd).unwrap_err();
    assert_eq!((e.kind, e.level), (FaultKind::AccessFlag, 1));
    // With HA the hardware sets it.
    let ha = stage2(c.tcr | 1 << 21, c.ttbr);
    assert!(translate_raw(&ha, &f, 0, |_| 0xfd).is_ok());
    assert!(translate_raw(&ha, &Features::v8_0(), 0, |_| 0xfd).is_err());
    for ap in 0..4u64 {
        let t = at(0x43d | ap << 6).unwrap();
        assert_eq!(u64::from(t.attrs.perms.0 & 3), ap);
        let e = t.allows(Perms(3)).err();
        assert_eq!(
            e.map(|e| (e.kind, e.level)),
            (ap != 3).then_some((FaultKind::Permission, 1))
        );
    }
    // The four ways of XN, and bit 54 alone without FEAT_XNX.
    let exec = |xn: u64, f: &Features| {
        let t = translate_raw(&c, f, 0, |_| 0x4fd | xn << 53).unwrap();
        (
            t.attrs.perms.covers(Perms::X),
            t.attrs.perms.covers(Perms::UX),
        )
    };
    assert_eq!(exec(0, &f), (true, true));
    assert_eq!(exec(1, &f), (false, true));
    assert_eq!(exec(2, &f), (false, false));
    assert_eq!(exec(3, &f), (true, false));
    let old = Features::v8_0();
    assert_eq!(
        [0, 1, 2, 3].map(|xn| exec(xn, &old).0),
        [true, true, false, false]
    );
    // Write permission by the dirty bit modifier, only under HD.
    let hd = stage2(c.tcr | 3 << 21, c.ttbr);
    let dbm = 0x47d | 1 << 51;
    assert!(
        translate_raw(&hd, &f, 0, |_| dbm)
            .unwrap()
            .allows(Perms::W)
            .is_ok()
    );
    assert!(at(dbm).unwrap().allows(Perms::W).is_err());
}

#[test]
fn memory_types() {
    let f = Features::max();
    let at = |attr: u64, fwb: bool| {
        let c = Control {
            hcr: u64::from(fwb) << 46,
            ..stage2(vtcr(0, (1, 0), 0, 5, 40), 0x4000_0000)
        };
        translate_raw(&c, &f, 0, |_| 0x4c1 | attr << 2)
            .unwrap()
            .attrs
            .memory
    };
    let normal = |outer, inner| Memory::Normal { outer, inner };
    use Cache::{NonCacheable as Nc, WriteBack as Wb, WriteThrough as Wt};
    for device in 0..4 {
        assert_eq!(at(device, false), Memory::Device(device as u8));
        assert_eq!(at(device, true), Memory::Device(device as u8));
    }
    assert_eq!(at(0xf, false), normal(Wb, Wb));
    assert_eq!(at(0x5, false), normal(Nc, Nc));
    assert_eq!(at(0xe, false), normal(Wb, Wt));
    assert_eq!(at(0x4, false), Memory::Reserved);
    assert_eq!(at(4, true), Memory::Reserved);
    assert_eq!(at(5, true), Memory::ForcedNonCacheable);
    assert_eq!(at(6, true), Memory::ForcedWriteBack);
    assert_eq!(at(7, true), Memory::Stage1);
    assert_eq!(mair_memory(0xff), normal(Wb, Wb));
    assert_eq!(mair_memory(0x44), normal(Nc, Nc));
    assert_eq!(mair_memory(0x04), Memory::Device(1));
}

#[test]
fn el2_stage_1() {
    let f = Features::max();
    // (TG0, T0SZ, DS, start)
    let cases = [
        (0, 16, 0, 0),
        (0, 25, 0, 1),
        (0, 12, 1, -1),
        (2, 16, 0, 0),
        (2, 17, 0, 1),
        (2, 12, 1, 0),
        (1, 16, 0, 1),
        (1, 12, 0, 1),
        (1, 22, 0, 2),
    ];
    for (tg0, t0sz, ds, start) in cases {
        let tcr = ds << 32 | 1 << 31 | 1 << 23 | 6 << 16 | tg0 << 14 | 0x3500 | t0sz;
        let shape = Shape::el2(tcr, &f).unwrap();
        assert_eq!(shape.start, start, "TG0 {tg0}, T0SZ {t0sz}");
    }
    assert!(
        Shape::el2(1 << 31 | 6 << 16 | 12, &f).is_err(),
        "52 bits of 4K need DS"
    );
    // Rights: AP[2] read-only, XN; the tables above may take more away.
    let tcr = 1 << 31 | 1 << 23 | 5 << 16 | 0x3500 | 25;
    let c = Control {
        regime: Regime::El2,
        tcr,
        ttbr: 0x4000_0000,
        hcr: 0,
        mair: 0xff04,
    };
    let at = |table: u64, leaf: u64| {
        let load = |pa| {
            if pa == 0x4000_0000 {
                table | 0x5000_0003
            } else {
                leaf
            }
        };
        translate_raw(&c, &f, 0x1234, load).unwrap()
    };
    let t = at(0, 0x8000_0701 | 1 << 2);
    assert_eq!(t.pa, 0x8000_1234);
    assert_eq!(t.attrs.perms, Perms::R | Perms::W | Perms::X);
    assert!(t.attrs.memory.cacheable());
    let t = at(0, 0x8000_0781 | 1 << 54);
    assert_eq!(
        (t.attrs.perms, t.attrs.memory),
        (Perms::R, Memory::Device(1))
    );
    assert_eq!(at(1 << 62, 0x8000_0705).attrs.perms, Perms::R | Perms::X);
    assert_eq!(at(1 << 60, 0x8000_0705).attrs.perms, Perms::R | Perms::W);
    let free = Control {
        tcr: tcr | 1 << 24,
        ..c
    };
    let load = |pa| {
        if pa == 0x4000_0000 {
            5 << 60 | 0x5000_0003
        } else {
            0x8000_0705
        }
    };
    let t = translate_raw(&free, &f, 0, load).unwrap();
    assert_eq!(t.attrs.perms, Perms::R | Perms::W | Perms::X, "HPD");
}

#[test]
fn concatenated_tables_do_not_alias() {
    // 40 bits of 4K from level 1: IPA 2^39 is the second table's first entry.
    let c = stage2(vtcr(0, (1, 0), 0, 2, 40), 0x4000_0000);
    let load = |pa| match pa {
        0x4000_0000 => 0x4000_04fd,
        0x4000_1000 => 0x8000_04fd,
        _ => 0,
    };
    let f = Features::v8_0();
    assert_eq!(translate_raw(&c, &f, 0, load).unwrap().pa, 0x4000_0000);
    assert_eq!(
        translate_raw(&c, &f, 1 << 39, load).unwrap().pa,
        0x8000_0000
    );
    // The hardware ignores low bits of the root.
    let skewed = stage2(c.tcr, 0x4000_1000);
    assert_eq!(translate_raw(&skewed, &f, 0, load).unwrap().pa, 0x4000_0000);
}

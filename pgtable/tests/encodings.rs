//! Which geometries there are, and every bit of registers and descriptors,
//! after the architecture's tables, not after `pgtable`.

use pgtable::{
    Access, Age, Annotation, Attrs, Budget, ConfigError, Device, Dirty, El2Access, El2Attrs,
    El2Config, El2Map, El2Memory, El2Range, Entry, Errata, Error, Execute, Features, Geometry,
    Granule, Ipa, Leaves, Level, Map, Memory, OaForm, Over, Pa, Share, Stage2, Stage2Config,
    Stage2Regs, Start, Sweep, TlbiKind, Va, Vmid,
};

mod plain;

use plain::{Did, Plain};

const PA_SIZES: [(u8, u64); 7] = [
    (32, 0),
    (36, 1),
    (40, 2),
    (42, 3),
    (44, 4),
    (48, 5),
    (52, 6),
];

fn level(number: i8) -> Level {
    Level::new(number).expect("a level")
}

fn page_bits(granule: Granule) -> u32 {
    match granule {
        Granule::K4 => 12,
        Granule::K16 => 14,
        Granule::K64 => 16,
    }
}

/// Address bits below an entry of a level.
fn shift(granule: Granule, level: i8) -> u32 {
    page_bits(granule) + (page_bits(granule) - 3) * (3 - level) as u32
}

/// What a stage 2 must obey: `SL0` and `SL2` that say this level, and how
/// many tables are concatenated.
fn legal(config: &Stage2Config, start: i8) -> Option<(u64, u64, u64)> {
    let (granule, ds) = (config.granule, config.lpa2);
    let (ipa, pa) = (u32::from(config.ipa_bits), u32::from(config.pa_bits));
    let (sl2, sl0, needs) = match (granule, start) {
        (Granule::K4, -1) if ds => (1, 0, 0),
        (Granule::K4, 0) => (0, 2, 44),
        (Granule::K4, 1) => (0, 1, 0),
        (Granule::K4, 2) => (0, 0, 0),
        (Granule::K4, 3) if config.features.ttst => (0, 3, 0),
        (Granule::K16, 0) if ds => (0, 3, 0),
        (Granule::K16, 1) => (0, 2, 42),
        (Granule::K64, 1) => (0, 2, 44),
        (Granule::K16 | Granule::K64, 2) => (0, 1, 0),
        (Granule::K16 | Granule::K64, 3) => (0, 0, 0),
        _ => return None,
    };
    let wide = ds || (granule == Granule::K64 && pa == 52);
    if pa < needs || ipa > pa || (ds && granule == Granule::K64) || (ipa > 48 && !wide) {
        return None;
    }
    let below = shift(granule, start);
    let entries = ipa.checked_sub(below)?;
    let stride = page_bits(granule) - 3;
    let concatenated = entries.saturating_sub(stride);
    let fits = entries >= 1 && concatenated <= 4 && (start >= 0 || entries <= 4);
    fits.then_some((sl2, sl0, 1 << concatenated))
}

#[test]
fn every_geometry_there_is_and_no_other() {
    let mut count = 0;
    for granule in Granule::ALL {
        for lpa2 in [false, true] {
            for (pa_bits, ps) in PA_SIZES {
                for ipa_bits in 30..=54 {
                    for start in -1..=3 {
                        for ttst in [false, true] {
                            let mut config = Stage2Config::new(granule, ipa_bits, pa_bits);
                            config.lpa2 = lpa2;
                            config.start = Start::At(level(start));
                            config.features.ttst = ttst;
                            let inside = (32..=52).contains(&ipa_bits);
                            let want = legal(&config, start).filter(|_| inside);
                            let got = config.validate();
                            assert_eq!(got.is_ok(), want.is_some(), "{config:?}: {got:?}");
                            if let (Ok(geometry), Some(want)) = (got, want) {
                                check(&geometry, &config, start, ps, want);
                                count += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(count > 500);
}

/// All that follows from a legal configuration.
fn check(geometry: &Geometry, config: &Stage2Config, start: i8, ps: u64, want: (u64, u64, u64)) {
    let (sl2, sl0, tables) = want;
    let granule = config.granule;
    let page = 1u64 << page_bits(granule);
    let per_table = 1usize << (page_bits(granule) - 3);
    assert_eq!(geometry.granule(), granule);
    assert_eq!(geometry.ipa_bits(), config.ipa_bits);
    assert_eq!(geometry.start().get(), start, "{config:?}");
    assert_eq!(geometry.root_tables() as u64, tables, "{config:?}");
    assert_eq!(geometry.root_align(), tables * page, "{config:?}");
    let shape = geometry.shape();
    assert_eq!(shape.root_align(), tables * page);
    let root_entries = 1usize << (u32::from(config.ipa_bits) - shift(granule, start));
    assert_eq!(shape.root_entries(), root_entries, "{config:?}");
    // 52 bits of output come from DS or, with 64K, from FEAT_LPA alone.
    let wide = config.pa_bits == 52 && (config.lpa2 || granule == Granule::K64);
    let oa_bits = if wide { 52 } else { config.pa_bits.min(48) };
    assert_eq!(shape.oa_bits(), oa_bits, "{config:?}");
    let form = match (granule, config.lpa2) {
        (_, true) => OaForm::Lpa2,
        (Granule::K64, _) if wide => OaForm::Lpa64k,
        _ => OaForm::Plain48,
    };
    assert_eq!(shape.oa_form(), form, "{config:?}");
    for number in start..=3 {
        let at = level(number);
        let bits = shift(granule, number);
        assert_eq!(geometry.span(at), 1 << bits, "{config:?}");
        assert_eq!(u32::from(shape.span_bits(at)), bits);
        let entries = if number == start {
            root_entries
        } else {
            per_table
        };
        assert_eq!(shape.entries(at), entries, "{config:?}");
        // Blocks: spec 1.4.
        let block = match (granule, number) {
            (_, 3 | 2) | (Granule::K4, 1) => true,
            (Granule::K4, 0) | (Granule::K16, 1) => config.lpa2,
            (Granule::K64, 1) => config.pa_bits == 52,
            _ => false,
        };
        assert_eq!(geometry.leaf_ok(at), block, "{number} {config:?}");
        let last = (1u64 << config.ipa_bits) - 1;
        assert_eq!(shape.index(at, Ipa::new(0)), 0);
        assert_eq!(shape.index(at, Ipa::new(last)), entries - 1, "{config:?}");
        // Bits above the space do not count.
        assert_eq!(shape.index(at, Ipa::new(u64::MAX)), entries - 1);
        assert_eq!(shape.index(at, Ipa::new((1 << bits) - 1)), 0);
        assert_eq!(
            shape.index(at, Ipa::new(1 << bits)),
            usize::from(entries > 1)
        );
    }
    let tg0 = match granule {
        Granule::K4 => 0b00,
        Granule::K16 => 0b10,
        Granule::K64 => 0b01,
    };
    let ps = if oa_bits == config.pa_bits { ps } else { 5 };
    let vtcr = (64 - u64::from(config.ipa_bits))
        | sl0 << 6
        | 0x3500
        | tg0 << 14
        | ps << 16
        | 1 << 31
        | u64::from(config.lpa2) << 32
        | sl2 << 33;
    assert_eq!(geometry.vtcr(), vtcr, "{config:?}");
    // A root as high as it goes: PA[51:48] in [5:2], when there are any.
    let root = (1u64 << oa_bits) - tables * page;
    let mut vttbr = root & 0xffff_ffff_ffff | 7 << 48;
    if oa_bits > 48 {
        vttbr |= root >> 48 << 2;
    }
    assert_eq!(
        geometry.vttbr(Pa::new(root), Vmid::new(7)),
        Ok(vttbr),
        "{config:?}"
    );
    // And one whose high bits differ.
    if oa_bits > 48 {
        let root = Pa::new(0x5_1234_5600_0000 & !(tables * page - 1));
        let vttbr = 0x1234_5600_0000 & !(tables * page - 1) | 0b1_0100 | 7 << 48;
        assert_eq!(geometry.vttbr(root, Vmid::new(7)), Ok(vttbr), "{config:?}");
    }
}

#[test]
fn features_have_their_bits() {
    let base = Stage2Config::new(Granule::K4, 40, 48);
    let plain = base.validate().expect("legal");
    let with = |features| {
        let geometry = Stage2Config { features, ..base }.validate();
        geometry.expect("legal")
    };
    let none = Features::default();
    let vmid16 = Features {
        vmid16: true,
        ..none
    };
    assert_eq!(with(vmid16).vtcr() ^ plain.vtcr(), 1 << 19);
    let access = Features {
        hw_access_flag: true,
        ..none
    };
    assert_eq!(with(access).vtcr() ^ plain.vtcr(), 1 << 21);
    let dirty = Features {
        hw_dirty: true,
        ..access
    };
    assert_eq!(with(dirty).vtcr() ^ plain.vtcr(), 0b11 << 21);
    let cnp = Features { cnp: true, ..none };
    assert_eq!(with(cnp).vtcr(), plain.vtcr());
    let root = Pa::new(0x8000_4000);
    assert_eq!(
        with(cnp).vttbr(root, Vmid::new(0xab)),
        Ok(0x00ab_0000_8000_4001)
    );
    assert_eq!(
        with(vmid16).vttbr(root, Vmid::new(0xabcd)),
        Ok(0xabcd_0000_8000_4000)
    );
    assert_eq!(plain.errata(), Errata::NONE);
    assert_eq!(*plain.features(), none);
    assert_eq!(*with(dirty).features(), dirty);
}

#[test]
fn what_is_wrong_with_a_configuration_is_said() {
    let base = Stage2Config::new(Granule::K4, 40, 48);
    let why = |config: Stage2Config| config.validate().expect_err("illegal");
    let sized = |granule, ipa, pa| Stage2Config::new(granule, ipa, pa);
    for bits in [0, 31, 53, 64, 255] {
        let error = why(sized(Granule::K4, bits, 48));
        assert_eq!(error, ConfigError::InputSize { bits });
    }
    for bits in [0, 31, 33, 35, 39, 41, 43, 45, 47, 49, 51, 53, 56] {
        let error = why(sized(Granule::K4, 32, bits));
        assert_eq!(error, ConfigError::PaSize { bits });
    }
    let mut config = sized(Granule::K64, 40, 52);
    config.lpa2 = true;
    assert_eq!(why(config), ConfigError::Lpa2With64k);
    for (granule, pa_bits) in [(Granule::K4, 52), (Granule::K16, 52), (Granule::K64, 48)] {
        let error = why(sized(granule, 49, pa_bits));
        assert_eq!(error, ConfigError::NeedsLpa { bits: 49 });
    }
    let error = why(sized(Granule::K4, 41, 40));
    let (bits, pa_bits) = (41, 40);
    assert_eq!(error, ConfigError::InputAbovePa { bits, pa_bits });
    let mut config = base;
    config.features.hw_dirty = true;
    assert_eq!(why(config), ConfigError::DirtyWithoutAccess);
    for (granule, number) in [
        (Granule::K4, -1),
        (Granule::K4, 3),
        (Granule::K16, -1),
        (Granule::K16, 0),
        (Granule::K64, -1),
        (Granule::K64, 0),
    ] {
        let mut config = sized(granule, 40, 48);
        config.start = Start::At(level(number));
        let level = level(number);
        assert_eq!(why(config), ConfigError::StartLevel { level });
    }
    for (granule, lpa2, number, bits, min, max) in [
        (Granule::K4, false, 2, 35, 22, 34),
        (Granule::K4, false, 1, 44, 31, 43),
        (Granule::K4, false, 0, 39, 40, 52),
        (Granule::K4, true, -1, 48, 49, 52),
        (Granule::K16, false, 3, 32, 15, 29),
        (Granule::K16, false, 2, 41, 26, 40),
        (Granule::K16, false, 1, 36, 37, 51),
        (Granule::K16, true, 0, 47, 48, 52),
        (Granule::K64, false, 3, 34, 17, 33),
        (Granule::K64, false, 2, 47, 30, 46),
        (Granule::K64, false, 1, 42, 43, 52),
    ] {
        let mut config = sized(granule, bits, if lpa2 { 52 } else { 48 });
        config.lpa2 = lpa2;
        config.start = Start::At(level(number));
        let level = level(number);
        let error = why(config);
        assert_eq!(error, ConfigError::StartSize { level, min, max });
    }
    for (granule, number, bits, pa_bits, needs) in [
        (Granule::K4, 0, 40, 42, 44),
        (Granule::K16, 1, 38, 40, 42),
        (Granule::K64, 1, 42, 42, 44),
    ] {
        let mut config = sized(granule, bits, pa_bits);
        config.start = Start::At(level(number));
        let level = level(number);
        let error = why(config);
        let small = ConfigError::StartNeedsPa {
            level,
            pa_bits: needs,
        };
        if granule == Granule::K64 {
            // 42 bits do not need level 1 at all.
            let (min, max) = (43, 52);
            assert_eq!(error, ConfigError::StartSize { level, min, max });
        } else {
            assert_eq!(error, small);
        }
    }
}

/// KVM's choice: as few levels as 16 concatenated tables allow, two at least.
#[test]
fn concatenation_takes_as_few_levels_as_it_may() {
    for (granule, picks) in [
        (
            Granule::K4,
            &[
                (32, 2, 4),
                (34, 2, 16),
                (35, 1, 1),
                (36, 1, 1),
                (40, 1, 2),
                (42, 1, 8),
                (43, 1, 16),
                (44, 0, 1),
                (48, 0, 1),
                (52, 0, 16),
            ][..],
        ),
        (
            Granule::K16,
            &[
                (32, 2, 1),
                (36, 2, 1),
                (40, 2, 16),
                (41, 1, 1),
                (42, 1, 1),
                (48, 1, 2),
                (51, 1, 16),
                (52, 0, 1),
            ],
        ),
        (
            Granule::K64,
            &[
                (32, 2, 1),
                (42, 2, 1),
                (43, 2, 2),
                (46, 2, 16),
                (47, 1, 1),
                (52, 1, 1),
            ],
        ),
    ] {
        for &(ipa_bits, start, tables) in picks {
            let mut config = Stage2Config::new(granule, ipa_bits, 52);
            config.lpa2 = granule != Granule::K64 && ipa_bits > 48;
            let geometry = config.validate().expect("legal");
            let got = (geometry.start().get(), geometry.root_tables());
            assert_eq!(got, (start, tables), "{granule:?} {ipa_bits}");
        }
    }
}

/// A wish for small blocks holds; one for larger than there are does not.
#[test]
fn the_largest_block_is_what_was_asked_for() {
    for (granule, lpa2) in [
        (Granule::K4, false),
        (Granule::K4, true),
        (Granule::K16, false),
        (Granule::K16, true),
        (Granule::K64, false),
    ] {
        for number in -1..=3 {
            let mut config = Stage2Config::new(granule, 48, 52);
            config.lpa2 = lpa2;
            let most = config.validate().expect("legal");
            config.largest_block = level(number);
            let geometry = config.validate().expect("legal");
            for at in 0..=3 {
                let want = at >= number && most.leaf_ok(level(at));
                assert_eq!(geometry.leaf_ok(level(at)), want, "{granule:?} {at}");
            }
            assert!(!geometry.leaf_ok(Level::MINUS_1));
        }
    }
}

fn each_attrs(xnx: bool, fwb: bool, mut check: impl FnMut(Attrs)) {
    let accesses = [Access::None, Access::Read, Access::Write, Access::ReadWrite];
    let executes = [Execute::All, Execute::El0, Execute::Never, Execute::El1];
    let memories = [
        Memory::Normal,
        Memory::NormalNonCacheable,
        Memory::FromStage1,
        Memory::Device(Device::NGnRnE),
        Memory::Device(Device::NGnRE),
        Memory::Device(Device::NGRE),
        Memory::Device(Device::GRE),
    ];
    for access in accesses {
        for execute in executes {
            if !xnx && matches!(execute, Execute::El0 | Execute::El1) {
                continue;
            }
            for memory in memories {
                if !fwb && memory == Memory::FromStage1 {
                    continue;
                }
                for share in [Share::Non, Share::Outer, Share::Inner] {
                    for bits in 0..64 {
                        check(Attrs {
                            access,
                            execute,
                            memory,
                            share,
                            age: [Age::Old, Age::Young][bits & 1],
                            dirty: [Dirty::Fault, Dirty::Track][bits >> 1 & 1],
                            soft: (bits >> 2) as u8,
                        });
                    }
                }
            }
        }
    }
}

/// The bits of attributes: spec 1.5.
fn bits(attrs: Attrs, fwb: bool, lpa2: bool) -> u64 {
    let memattr: u64 = match (attrs.memory, fwb) {
        (Memory::Normal, true) => 6,
        (Memory::FromStage1, true) => 7,
        (Memory::Normal | Memory::FromStage1, false) => 15,
        (Memory::NormalNonCacheable, _) => 5,
        (Memory::Device(Device::NGnRnE), _) => 0,
        (Memory::Device(Device::NGnRE), _) => 1,
        (Memory::Device(Device::NGRE), _) => 2,
        (Memory::Device(Device::GRE), _) => 3,
    };
    let s2ap: u64 = match attrs.access {
        Access::None => 0,
        Access::Read => 1,
        Access::Write => 2,
        Access::ReadWrite => 3,
    };
    let sh: u64 = match attrs.share {
        _ if lpa2 => 0,
        Share::Non => 0,
        Share::Outer => 2,
        Share::Inner => 3,
    };
    let xn: u64 = match attrs.execute {
        Execute::All => 0,
        Execute::El0 => 1,
        Execute::Never => 2,
        Execute::El1 => 3,
    };
    memattr << 2
        | s2ap << 6
        | sh << 8
        | u64::from(attrs.age == Age::Young) << 10
        | u64::from(attrs.dirty == Dirty::Track) << 51
        | xn << 53
        | u64::from(attrs.soft) << 55
}

#[test]
fn leaves_have_their_bits_and_are_read_back() {
    for (granule, lpa2, pa_bits) in [
        (Granule::K4, false, 48),
        (Granule::K4, true, 52),
        (Granule::K16, false, 48),
        (Granule::K16, true, 52),
        (Granule::K64, false, 48),
        (Granule::K64, false, 52),
    ] {
        for features in 0..4u8 {
            let (fwb, xnx) = (features & 1 != 0, features & 2 != 0);
            let mut config = Stage2Config::new(granule, 48, pa_bits);
            config.lpa2 = lpa2;
            config.features.fwb = fwb;
            config.features.xnx = xnx;
            let geometry = config.validate().expect("legal");
            let mut turn = 0usize;
            each_attrs(xnx, fwb, |attrs| {
                // Every level and address form by turns.
                turn += 1;
                let at = level(3 - (turn % 3) as i8);
                if !geometry.leaf_ok(at) {
                    return;
                }
                let span = geometry.span(at);
                let pas = [0, span, (1 << 47) | span, (1u64 << pa_bits) - span];
                let pa = pas[turn / 3 % 4];
                let address = match geometry.shape().oa_form() {
                    OaForm::Plain48 => pa,
                    OaForm::Lpa64k => pa & 0xffff_ffff_0000 | pa >> 48 << 12,
                    OaForm::Lpa2 => pa & 0x3_ffff_ffff_f000 | pa >> 50 << 8,
                };
                let kind = if at == Level::L3 { 3 } else { 1 };
                let raw = bits(attrs, fwb, lpa2) | address | kind;
                let encoded = geometry.encode_leaf(Pa::new(pa), attrs, at);
                assert_eq!(encoded, Ok(raw), "{granule:?} {pa:#x} {attrs:?} {at}");
                let share = if lpa2 { Share::Inner } else { attrs.share };
                let entry = Entry::Leaf {
                    pa: Pa::new(pa),
                    attrs: Attrs { share, ..attrs },
                    contiguous: false,
                };
                assert_eq!(geometry.decode(raw, at), entry, "{granule:?} {at}");
                let hinted = geometry.decode(raw | 1 << 52, at);
                let hint = matches!(
                    hinted,
                    Entry::Leaf {
                        contiguous: true,
                        ..
                    }
                );
                assert!(hint, "{granule:?} {at}: {hinted:?}");
                // nT of a block is no address.
                if at < Level::L3 && granule != Granule::K64 {
                    assert_eq!(geometry.decode(raw | 1 << 16, at), entry, "{granule:?}");
                }
            });
        }
    }
}

/// Encodings that nobody here writes are read as the nearest that is.
#[test]
fn foreign_encodings_are_read_as_something_sensible() {
    let read = |fwb, xnx, raw: u64| {
        let mut config = Stage2Config::new(Granule::K4, 40, 48);
        config.features.fwb = fwb;
        config.features.xnx = xnx;
        match config.validate().expect("legal").decode(raw | 3, Level::L3) {
            Entry::Leaf { attrs, .. } => attrs,
            other => panic!("{other:?}"),
        }
    };
    for memattr in 0..16u64 {
        let device = [Device::NGnRnE, Device::NGnRE, Device::NGRE, Device::GRE];
        let want = |fwb| match (memattr, fwb) {
            (0..=3, _) => Memory::Device(device[memattr as usize]),
            (5, _) => Memory::NormalNonCacheable,
            (6, true) | (15, false) => Memory::Normal,
            (7, true) => Memory::FromStage1,
            (_, true) => Memory::Device(Device::NGnRnE),
            (_, false) => Memory::NormalNonCacheable,
        };
        for fwb in [false, true] {
            assert_eq!(read(fwb, true, memattr << 2).memory, want(fwb));
        }
    }
    // Without FEAT_XNX bit 53 says nothing.
    for (xn, execute) in [
        (0b00u64, Execute::All),
        (0b01, Execute::All),
        (0b10, Execute::Never),
        (0b11, Execute::Never),
    ] {
        assert_eq!(read(false, false, xn << 53).execute, execute);
    }
    // SH of 01 is reserved.
    assert_eq!(read(false, false, 0b01 << 8).share, Share::Inner);
}

/// Four software bits there are: more in the field that says them reach no other bit.
#[test]
fn software_bits_stay_in_their_field() {
    let geometry = Stage2Config::new(Granule::K4, 40, 48).validate();
    let geometry = geometry.expect("every CPU has it");
    let leaf = |soft| {
        let attrs = Attrs {
            soft,
            ..Attrs::MEMORY
        };
        geometry.encode_leaf(Pa::new(0), attrs, Level::L3)
    };
    for soft in 0..=255 {
        assert_eq!(leaf(soft), leaf(soft & 0xf));
    }
}

#[test]
fn entries_that_are_no_leaves() {
    let mut config = Stage2Config::new(Granule::K4, 48, 48);
    config.start = Start::At(Level::L0);
    let k4 = config.validate().expect("legal");
    let mut config = Stage2Config::new(Granule::K64, 48, 52);
    config.start = Start::At(Level::L1);
    let k64 = config.validate().expect("legal");
    assert_eq!(k4.decode(0, Level::L3), Entry::Invalid(Annotation::EMPTY));
    let note = Annotation::new(0xfff0).expect("bits 1:0 are zero");
    assert_eq!(k4.decode(0xfff0, Level::L1), Entry::Invalid(note));
    assert_eq!(k4.decode(0xfff2, Level::L1), Entry::Frozen);
    assert_eq!(
        k4.decode(0x1234_5000 | 3, Level::L2),
        Entry::Table(Pa::new(0x1234_5000))
    );
    // A table of 64K with FEAT_LPA keeps PA[51:48] in [15:12].
    assert_eq!(
        k64.decode(0x1234_f003, Level::L1),
        Entry::Table(Pa::new(0xf_0000_1234_0000))
    );
    // 01 at level 3, a block where none may stand.
    assert_eq!(k4.decode(0x1001, Level::L3), Entry::Reserved(0x1001));
    assert_eq!(k4.decode(1, Level::L0), Entry::Reserved(1));
    assert_eq!(k4.decode(1, Level::MINUS_1), Entry::Reserved(1));
    for raw in 1..4 {
        assert_eq!(Annotation::new(raw), None);
    }
    assert_eq!(Annotation::new(4).map(Annotation::get), Some(4));
}

#[test]
fn what_a_leaf_cannot_be() {
    let geometry = Stage2Config::new(Granule::K4, 40, 48)
        .validate()
        .expect("legal");
    let encode = |pa, attrs, at| geometry.encode_leaf(Pa::new(pa), attrs, at);
    let memory = Attrs::MEMORY;
    let level = Level::L0;
    assert_eq!(encode(0, memory, level), Err(Error::BlockLevel { level }));
    assert_eq!(encode(0x800, memory, Level::L3), Err(Error::Align));
    assert_eq!(encode(0x1000, memory, Level::L2), Err(Error::Align));
    assert_eq!(encode(1 << 48, memory, Level::L3), Err(Error::Range));
    assert_eq!(encode(1 << 63, memory, Level::L3), Err(Error::Range));
    let el0 = memory.execute(Execute::El0);
    assert_eq!(encode(0, el0, Level::L3), Err(Error::Attributes));
    let el1 = memory.execute(Execute::El1);
    assert_eq!(encode(0, el1, Level::L3), Err(Error::Attributes));
}

/// A range that crosses the address where output bits move to another field.
#[test]
fn output_addresses_that_cross_into_the_high_field() {
    for (granule, lpa2, from) in [(Granule::K4, true, 50), (Granule::K64, false, 48)] {
        let mut config = Stage2Config::new(granule, 52, 52);
        config.lpa2 = lpa2;
        config.features.fwb = true;
        config.features.dic = true;
        let geometry = config.validate().expect("legal");
        let page = granule.page_size();
        for leaves in [Level::L3, Level::L2] {
            let span = geometry.span(leaves);
            let mem = Plain::new(page);
            let root = mem.root(geometry.root_align());
            let tree = Stage2::new(geometry, root, Vmid::new(1), &mem).expect("a root");
            let mut cpu = mem.cpu(tree.regs());
            for top in 1..(1u64 << (52 - from)) {
                let pa = (top << from) - 2 * span;
                let ipa = top * 64 * span;
                let map = Map::new(Ipa::new(ipa), Pa::new(pa), 5 * span, Attrs::MEMORY)
                    .leaves(Leaves::Exactly(leaves));
                tree.map(&mut cpu, &map, &mut Budget::unlimited())
                    .expect("mapped");
                for at in [0, span, 2 * span, 3 * span, 5 * span - 1] {
                    let got = tree.translate(Ipa::new(ipa + at));
                    let want = Pa::new(pa + at);
                    assert_eq!(
                        got,
                        Some((want, Attrs::MEMORY)),
                        "{granule:?} {top} {at:#x}"
                    );
                }
            }
        }
    }
}

/// TLBI operands of EL2's regime: 44 bits of VA, TTL, and range operations.
#[test]
fn el2_operands() {
    for (granule, va_bits, wide) in [
        (Granule::K4, 48, false),
        (Granule::K16, 48, false),
        (Granule::K64, 48, false),
        (Granule::K4, 52, true),
        (Granule::K64, 52, true),
    ] {
        for modern in [false, true] {
            let mut config = El2Config::new(granule, va_bits, if wide { 52 } else { 48 });
            config.lpa2 = wide && granule != Granule::K64;
            config.lva = wide;
            config.features.ttl = modern;
            config.features.tlb_range = modern;
            let geometry = config.validate().expect("legal");
            let page = granule.page_size();
            let mem = Plain::new(page);
            let mut map = El2Map::new(geometry, mem.root(page), &mem).expect("a root");
            let mut cpu = mem.cpu(Stage2Regs::default());
            let va = (1u64 << va_bits) - 64 * page;
            let range = El2Range::new(Va::new(va), Pa::new(0), 5 * page, El2Attrs::DATA);
            let (pages, over) = (Leaves::Largest, Over::Nothing);
            map.map(&mut cpu, &range.leaves(pages).over(over))
                .expect("mapped");
            mem.forget();
            // Permissions of one page, then of four.
            let rest = El2Range::new(Va::new(va + page), Pa::new(page), 4 * page, El2Attrs::DATA);
            let one = El2Range {
                size: page,
                ..range
            };
            let mut ops = Vec::new();
            for range in [one, rest] {
                let over = Over::Anything;
                map.map(
                    &mut cpu,
                    &El2Range {
                        attrs: El2Attrs::RODATA,
                        ..range
                    }
                    .over(over),
                )
                .expect("mapped");
                ops.extend(mem.changes().into_iter().filter_map(|did| match did {
                    Did::Tlbi(op) => Some((op.kind(), op.operand())),
                    _ => None,
                }));
            }
            let tg = match granule {
                Granule::K4 => 1u64,
                Granule::K16 => 2,
                Granule::K64 => 3,
            };
            let by_address = |at: u64| {
                let hint = if modern { (tg << 2 | 3) << 44 } else { 0 };
                (TlbiKind::Vae2is, at >> 12 & 0xfff_ffff_ffff | hint)
            };
            let what = format!("{granule:?} {va_bits} {modern}");
            assert_eq!(ops[0], by_address(va), "{what}");
            if !modern {
                let all: Vec<_> = (0..5).map(|index| by_address(va + index * page)).collect();
                assert_eq!(ops, all, "{what}");
            } else if !config.lpa2 {
                let base = (va + page) >> page_bits(granule) & 0x1f_ffff_ffff;
                let operand = tg << 46 | 1 << 39 | 3 << 37 | base;
                assert_eq!(ops[1..], [(TlbiKind::Rvae2is, operand)], "{what}");
            } else {
                // The base is in units of 64K: not before the fourth page.
                assert!(ops.iter().all(|op| op.0 == TlbiKind::Vae2is), "{what}");
            }
        }
    }
}

#[test]
fn el2_geometries_and_registers() {
    for granule in Granule::ALL {
        for lpa2 in [false, true] {
            for lva in [false, true] {
                for (pa_bits, ps) in PA_SIZES {
                    for va_bits in 30..=54u8 {
                        let mut config = El2Config::new(granule, va_bits, pa_bits);
                        config.lpa2 = lpa2;
                        config.lva = lva;
                        let k64 = granule == Granule::K64;
                        let wide = if k64 { lva } else { lpa2 };
                        let legal =
                            (32..=if wide { 52 } else { 48 }).contains(&va_bits) && !(lpa2 && k64);
                        let got = config.validate();
                        assert_eq!(got.is_ok(), legal, "{config:?}: {got:?}");
                        let Ok(geometry) = got else { continue };
                        let shape = geometry.shape();
                        // The first level whose entry does not cover it all.
                        let start = (-1..=3)
                            .find(|&at| shift(granule, at) < u32::from(va_bits))
                            .expect("a level");
                        assert_eq!(shape.start().get(), start, "{config:?}");
                        assert_eq!(shape.root_tables(), 1, "{config:?}");
                        assert_eq!(shape.ia_bits(), va_bits);
                        let oa_bits = if lpa2 || k64 {
                            pa_bits
                        } else {
                            pa_bits.min(48)
                        };
                        assert_eq!(shape.oa_bits(), oa_bits, "{config:?}");
                        let tg0 = match granule {
                            Granule::K4 => 0u64,
                            Granule::K16 => 0b10,
                            Granule::K64 => 0b01,
                        };
                        let ps = if oa_bits == pa_bits { ps } else { 5 };
                        let tcr = (64 - u64::from(va_bits))
                            | 0x3500
                            | tg0 << 14
                            | ps << 16
                            | 1 << 23
                            | 1 << 31
                            | u64::from(lpa2) << 32;
                        assert_eq!(geometry.tcr(), tcr, "{config:?}");
                        assert_eq!(geometry.mair(), 0x0044_04ff);
                        for at in start..=3 {
                            let block = match (granule, at) {
                                (_, 2 | 3) | (Granule::K4, 1) => true,
                                (Granule::K4, 0) | (Granule::K16, 1) => lpa2,
                                (Granule::K64, 1) => pa_bits == 52,
                                _ => false,
                            };
                            assert_eq!(shape.leaf_ok(level(at)), block, "{at} {config:?}");
                        }
                        let page = granule.page_size();
                        let root = (1u64 << oa_bits) - page;
                        let mut ttbr = root & 0xffff_ffff_ffff;
                        if oa_bits > 48 {
                            ttbr |= root >> 48 << 2;
                        }
                        assert_eq!(geometry.ttbr(Pa::new(root)), Ok(ttbr), "{config:?}");
                    }
                }
            }
        }
    }
}

/// Leaves of EL2's map: AttrIndx, AP[2:1], SH, AF, XN, and nothing else.
#[test]
fn el2_leaves_have_their_bits() {
    for lpa2 in [false, true] {
        let mut config = El2Config::new(Granule::K4, 39, 40);
        config.lpa2 = lpa2;
        let geometry = config.validate().expect("legal");
        for (index, memory) in [
            El2Memory::Normal,
            El2Memory::Device,
            El2Memory::NonCacheable,
            El2Memory::DeviceStrict,
        ]
        .into_iter()
        .enumerate()
        {
            for (access, bits) in [
                (El2Access::ReadExecute, 1u64 << 7),
                (El2Access::Read, 1 << 7 | 1 << 54),
                (El2Access::ReadWrite, 1 << 54),
            ] {
                for (at, size, kind) in [(Level::L3, 0x1000u64, 3u64), (Level::L2, 0x20_0000, 1)] {
                    let mem = Plain::new(4096);
                    let mut map = El2Map::new(geometry, mem.root(4096), &mem).expect("a root");
                    let mut cpu = mem.cpu(Stage2Regs::default());
                    let range = El2Range::new(
                        Va::new(0x4000_0000),
                        Pa::new(0x8000_0000),
                        size,
                        El2Attrs::DATA,
                    );
                    let attrs = El2Attrs { access, memory };
                    let (leaves, over) = (Leaves::Exactly(at), Over::Nothing);
                    map.map(
                        &mut cpu,
                        &El2Range { attrs, ..range }.leaves(leaves).over(over),
                    )
                    .expect("mapped");
                    let last = mem.changes().into_iter().rev().find_map(|did| match did {
                        Did::Write { new, .. } => Some(new),
                        _ => None,
                    });
                    let sh = if lpa2 { 0 } else { 0x300 };
                    let want =
                        0x8000_0000 | bits | 1 << 6 | sh | 1 << 10 | (index as u64) << 2 | kind;
                    assert_eq!(last, Some(want), "{attrs:?} {at}");
                    let got = map.translate(Va::new(0x4000_0123));
                    assert_eq!(got, Some((Pa::new(0x8000_0123), attrs, at)));
                }
            }
        }
    }
}

#[test]
fn attributes_are_changed_one_at_a_time() {
    let all = Attrs {
        access: Access::Write,
        execute: Execute::El1,
        memory: Memory::FromStage1,
        share: Share::Outer,
        age: Age::Old,
        dirty: Dirty::Track,
        soft: 6,
    };
    let (read, never) = (Access::Read, Execute::Never);
    let device = Memory::Device(Device::GRE);
    let (young, fault) = (Age::Young, Dirty::Fault);
    assert_eq!(
        all.access(read),
        Attrs {
            access: read,
            ..all
        }
    );
    assert_eq!(
        all.execute(never),
        Attrs {
            execute: never,
            ..all
        }
    );
    assert_eq!(
        all.memory(device),
        Attrs {
            memory: device,
            ..all
        }
    );
    assert_eq!(all.age(young), Attrs { age: young, ..all });
    assert_eq!(
        all.dirty(fault),
        Attrs {
            dirty: fault,
            ..all
        }
    );
    for soft in 0..=255 {
        let want = Attrs {
            soft: soft & 15,
            ..all
        };
        assert_eq!(all.soft(soft), want);
    }
    let device = Attrs::DEVICE;
    assert_eq!(device.execute, Execute::Never);
    assert_eq!(device.memory, Memory::Device(Device::NGnRE));
    assert_eq!(device.access, Access::ReadWrite);
    // Dirty is what tracks and was written.
    for access in [Access::None, Access::Read, Access::Write, Access::ReadWrite] {
        for dirty in [Dirty::Fault, Dirty::Track] {
            let written = matches!(access, Access::Write | Access::ReadWrite);
            let attrs = Attrs {
                access,
                dirty,
                ..all
            };
            assert_eq!(attrs.is_dirty(), written && dirty == Dirty::Track);
        }
    }
    let map = Map::new(Ipa::new(1), Pa::new(2), 3, all);
    let leaves = Leaves::AtMost(Level::L2);
    assert_eq!(map.leaves(leaves), Map { leaves, ..map });
    let over = Over::Anything;
    assert_eq!(map.over(over), Map { over, ..map });
    let caches = pgtable::Caches::Skip;
    assert_eq!(map.caches(caches), Map { caches, ..map });
}

#[test]
fn errata_are_sets() {
    let (one, other) = (Errata::QEMU_RANGE_LENGTH, Errata::TLBI_SYNC_REPEAT);
    assert_ne!(one, other);
    assert!(!Errata::NONE.has(one) && !Errata::NONE.has(other));
    assert!(one.has(one) && !one.has(other) && !other.has(one));
    for both in [one | other, one.with(other), other.with(one)] {
        assert!(both.has(one) && both.has(other) && both.has(both));
        assert!(!one.has(both));
    }
    assert_eq!(one | one, one);
    assert!(one.has(Errata::NONE));
    assert_eq!(pgtable::ERRATA.map(|row| row.flag), [one, other]);
}

/// Groups of the contiguous hint: 64 KiB to 16 GiB.
#[test]
fn contiguous_groups() {
    for (granule, sizes) in [
        (Granule::K4, [None, None, Some(34), Some(25), Some(16)]),
        (Granule::K16, [None, None, None, Some(30), Some(21)]),
        (Granule::K64, [None, None, None, Some(34), Some(21)]),
    ] {
        for (at, size) in (-1..=3).zip(sizes) {
            let bits = granule.contiguous_bits(level(at));
            let got = bits.map(|bits| u32::from(bits) + shift(granule, at));
            assert_eq!(got, size, "{granule:?} {at}");
        }
    }
}

/// What assemblers call the instructions, and a log with them.
#[test]
fn instructions_have_their_names() {
    use pgtable::{Barrier, TlbiKind as K};
    for (barrier, name) in [
        (Barrier::DsbIshst, "dsb ishst"),
        (Barrier::DsbIsh, "dsb ish"),
        (Barrier::DsbNshst, "dsb nshst"),
        (Barrier::DsbNsh, "dsb nsh"),
        (Barrier::Isb, "isb"),
    ] {
        assert_eq!(barrier.mnemonic(), name);
    }
    for (kind, name, operand) in [
        (K::Ipas2e1is, "ipas2e1is", true),
        (K::Ripas2e1is, "ripas2e1is", true),
        (K::Ipas2e1, "ipas2e1", true),
        (K::Vmalle1is, "vmalle1is", false),
        (K::Vmalle1, "vmalle1", false),
        (K::Vmalls12e1is, "vmalls12e1is", false),
        (K::Alle1is, "alle1is", false),
        (K::Vae2is, "vae2is", true),
        (K::Rvae2is, "rvae2is", true),
        (K::Alle2is, "alle2is", false),
    ] {
        assert_eq!((kind.mnemonic(), kind.has_operand()), (name, operand));
    }
    let geometry = Stage2Config::new(Granule::K4, 40, 48)
        .validate()
        .expect("legal");
    let mem = Plain::new(4096);
    let root = mem.root(geometry.root_align());
    let tree = Stage2::new(geometry, root, Vmid::new(1), &mem).expect("a root");
    let other = Stage2Regs {
        vttbr: tree.vttbr() ^ 1 << 50,
        ..tree.regs()
    };
    let mut cpu = mem.cpu(other);
    // A borrowed CPU does all that the CPU does.
    let mut borrowed = &mut cpu;
    let map = Map::new(Ipa::new(0x5000), Pa::new(0x1000), 4096, Attrs::MEMORY);
    tree.map(&mut borrowed, &map, &mut Budget::unlimited())
        .expect("mapped");
    let cleaned = |did: &Did| matches!(did, Did::Cache(_));
    assert_eq!(mem.changes().iter().filter(|did| cleaned(did)).count(), 2);
    tree.write_protect(
        &mut borrowed,
        Sweep {
            flush: pgtable::Flush::Now,
            ..Sweep::new(Ipa::new(0x5000), 4096)
        },
        &mut Budget::unlimited(),
    )
    .expect("mapped");
    let text: Vec<String> = mem
        .changes()
        .into_iter()
        .filter_map(|did| match did {
            Did::Tlbi(op) => Some(op.to_string()),
            Did::Barrier(barrier) => Some(barrier.mnemonic().into()),
            Did::Stage2(regs) => Some(format!("{regs:x?}")),
            _ => None,
        })
        .collect();
    let to = |regs: Stage2Regs| format!("{regs:x?}");
    let own = to(tree.regs());
    let back = to(other);
    let want = [
        "dsb ish",
        &own,
        "isb",
        "tlbi ipas2e1is, 0x0000000000000005",
        "dsb ish",
        "tlbi vmalle1is",
        "dsb ish",
        "isb",
        &back,
        "isb",
    ];
    assert_eq!(text, want);
}

/// A level that no table of the geometry has is asked for by mistake: that is no reason
/// to panic at EL2. 64K has no level -1 at all: its entries would cover 2^68 bytes.
#[test]
fn a_level_that_no_granule_has_is_no_panic() {
    for granule in Granule::ALL {
        let geometry = Stage2Config::new(granule, 40, 48).validate();
        let shape = *geometry.expect("every CPU has it").shape();
        let last = Ipa::new((1 << 40) - 1);
        assert_eq!(shape.index(Level::MINUS_1, last), 0, "{granule:?}");
    }
}

#[test]
fn numbers_and_addresses() {
    for byte in [0, 1, 0x1234_5000, u64::MAX] {
        assert_eq!(Ipa::new(byte).get(), byte);
        assert_eq!(Va::new(byte).get(), byte);
    }
    assert_eq!(Pa::new(0x1000).checked_add(0x234), Some(Pa::new(0x1234)));
    assert_eq!(Pa::new(0x1fff).align_down(12), Pa::new(0x1000));
    assert_eq!(Pa::new(0x1fff).align_down(0), Pa::new(0x1fff));
    assert_eq!(Pa::new(0x1fff).align_down(64), Pa::new(0));
    assert!(Pa::new(0x1000).is_aligned(12) && Pa::new(0).is_aligned(63));
    assert!(!Pa::new(0x1000).is_aligned(13) && !Pa::new(1).is_aligned(1));
    // What a log says.
    assert_eq!(Level::MINUS_1.to_string(), "level -1");
    assert_eq!(
        format!("{:?} {:?}", Level::L2, Ipa::new(0x40)),
        "L2 IPA 0x40"
    );
    assert_eq!(Ipa::new(0x40).to_string(), "0x40");
    let why = Error::Exists { level: Level::L2 };
    let stopped = pgtable::Stopped {
        why,
        next: Ipa::new(0x1000),
    };
    let text = "an entry stands in the way at level 2";
    assert_eq!(why.to_string(), text);
    assert_eq!(stopped.to_string(), format!("{text} (at IPA 0x1000)"));
    let error = ConfigError::Vmid { vmid: 300 };
    assert_eq!(error.to_string(), "VMID 300: this CPU has 8-bit VMIDs");
    let fault = pgtable::RttError::Rtt {
        level: Level::L3,
        top: Ipa::new(0x2000),
    };
    assert_eq!(fault.to_string(), "RTT entry at level 3 (top 0x2000)");
}

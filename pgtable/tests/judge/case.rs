//! Cases and operations made of plain numbers.
//!
//! A case is a format and the features of a CPU; an operation is four
//! numbers. Whatever they are, they mean something, so that a generator
//! cannot make a wrong one and a shrinker can make them small.

use pgtable::{Errata, Features, Granule, Level, Stage2Config, Start};

/// One operation.
pub type Op = [u64; 4];

/// A machine and a format, as a number.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub config: Stage2Config,
    pub bbm: u8,
    /// Those of the two guests and of the stranger.
    pub vmids: [u16; 3],
}

/// Every legal combination of granule, LPA2, sizes and start level.
pub fn geometries() -> Vec<Stage2Config> {
    let mut all = Vec::new();
    for granule in Granule::ALL {
        for lpa2 in [false, true] {
            for pa_bits in [32, 36, 40, 42, 44, 48, 52] {
                for ipa_bits in 32..=52 {
                    for start in -1..=3 {
                        let mut config = Stage2Config::new(granule, ipa_bits, pa_bits);
                        config.lpa2 = lpa2;
                        config.start = Start::At(Level::new(start).unwrap());
                        if config.validate().is_ok() {
                            all.push(config);
                        }
                    }
                }
            }
        }
    }
    all
}

/// The combination with this number, and features after its other bits.
pub fn case(geometries: &[Stage2Config], number: u64) -> Case {
    let mut config = geometries[(number as usize) % geometries.len()];
    let bits = number / geometries.len() as u64;
    let bit = |n: u64| bits >> n & 1 == 1;
    config.features = Features {
        tlb_range: !bit(0),
        ttl: !bit(1),
        fwb: !bit(2),
        xnx: !bit(3),
        vmid16: !bit(4),
        hw_access_flag: !bit(5),
        hw_dirty: !(bit(5) || bit(6) && bit(13)),
        ttst: false,
        cnp: bit(7),
        dic: !bit(8),
        bbm2: bit(9) && bit(10),
    };
    config.errata = Errata::NONE;
    if bit(11) {
        config.errata = config.errata | Errata::QEMU_RANGE_LENGTH;
    }
    if bit(12) {
        config.errata = config.errata | Errata::TLBI_SYNC_REPEAT;
    }
    // Any, and those that differ from it in one bit.
    let width = if config.features.vmid16 { 16 } else { 8 };
    let first = (bits >> 14 ^ number) as u16 & ((1u32 << width) - 1) as u16;
    let one = (bits >> 30 ^ number >> 7) % width;
    let (second, third) = (first ^ 1 << one, first ^ 1 << ((one + 3) % width));
    Case {
        config,
        bbm: if config.features.bbm2 { 2 } else { 0 },
        vmids: [first, second, third],
    }
}

impl Case {
    /// Another format that the same CPU has: with LPA2 where the case has it
    /// not, and in every other case another granule.
    pub fn stranger(&self) -> Stage2Config {
        let config = &self.config;
        let granule = match config.granule {
            Granule::K4 if config.ipa_bits.is_multiple_of(2) => Granule::K16,
            Granule::K16 if config.ipa_bits.is_multiple_of(2) => Granule::K4,
            Granule::K64 => Granule::K4,
            same => same,
        };
        let mut other = Stage2Config::new(granule, config.pa_bits.min(36), config.pa_bits);
        other.lpa2 = !config.lpa2;
        other.features = config.features;
        other.errata = config.errata;
        other
    }

    /// The CPU, as the model wants it told.
    pub fn model(&self) -> mmu_model::Features {
        let config = &self.config;
        let features = &config.features;
        mmu_model::Features {
            pa_bits: config.pa_bits,
            granules: [true; 3],
            // One of both formats has it.
            lpa2: true,
            lva: config.pa_bits == 52,
            ttst: features.ttst,
            ttl: features.ttl,
            tlbirange: features.tlb_range,
            xnx: features.xnx,
            fwb: features.fwb,
            bbm: self.bbm,
            vmid16: features.vmid16,
            hafdbs: u8::from(features.hw_access_flag) + u8::from(features.hw_dirty),
            dic: features.dic,
            errata: mmu_model::Errata {
                range_len_32: config.errata.has(Errata::QEMU_RANGE_LENGTH),
                repeat_tlbi: config.errata.has(Errata::TLBI_SYNC_REPEAT),
            },
        }
    }
}

/// A sequence of numbers that depends on its seed alone.
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A case. The larger the tables, the rarer: a table of 64K is filled by
    /// sixteen times the stores of one of 4K, and shows the same rules.
    pub fn case(&mut self, geometries: &[Stage2Config]) -> Case {
        loop {
            let case = case(geometries, self.number() >> 8);
            let one_in = match case.config.granule {
                Granule::K4 => 1,
                Granule::K16 => 2,
                Granule::K64 => 6,
            };
            if self.number().is_multiple_of(one_in) {
                return case;
            }
        }
    }

    /// Operations: of all kinds everywhere, or every other time of a few
    /// kinds in one place, so that they meet.
    pub fn sequence(&mut self, length: usize) -> Vec<Op> {
        let focus = self.number();
        let mut ops: Vec<Op> = (0..length).map(|_| self.op()).collect();
        if focus & 1 == 1 {
            let kinds = [0, 3, focus >> 8, focus >> 13, focus >> 18];
            for op in &mut ops {
                op[0] = op[0] & !0x1f | kinds[(op[0] >> 40) as usize % 5] & 0x1f;
                op[1] = op[1] & !0x1f | focus >> 3 & 0x1f;
            }
        }
        ops
    }

    pub fn op(&mut self) -> Op {
        [self.number(), self.number(), self.number(), self.number()]
    }
}

//! A configuration, its name, what excludes it, and its geometry.

use anyhow::{Context as _, Result, ensure};
use pgtable::{Geometry, Level, Stage2Config};

use super::axes::{Hardware, Kernel, Load, Mask, Mode, Own, Pages, Populate, Ram, Start};

/// Bits of IPA space: each size that stage 2 has here.
pub const IPA_BITS: std::ops::RangeInclusive<u8> = 32..=52;

/// A guest's CPUs.
pub const CPUS: [u32; 3] = [1, 2, 4];

/// A configuration: a value of each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The CPU.
    pub hw: Hardware,
    /// What is taken for absent.
    pub mask: Mask,
    /// EL2's granule.
    pub hyp: Pages,
    /// EL2's own addresses.
    pub own: Own,
    /// Where RAM is.
    pub ram: Ram,
    /// Bits of the guest's IPA space.
    pub ipa: u8,
    /// Where walks of its stage 2 start.
    pub start: Start,
    /// How its memory stands towards the host.
    pub mode: Mode,
    /// Its kernel.
    pub kernel: Kernel,
    /// Where its memory begins.
    pub load: Load,
    /// Its CPUs.
    pub cpus: u32,
    /// When it gets its memory.
    pub populate: Populate,
}

/// How many values each axis has, in the order of [`Cell::of`].
pub const SIZES: [usize; AXES] = [
    Hardware::ALL.len(),
    Mask::ALL.len(),
    Pages::ALL.len(),
    Own::ALL.len(),
    Ram::ALL.len(),
    (*IPA_BITS.end() - *IPA_BITS.start() + 1) as usize,
    Start::ALL.len(),
    Mode::ALL.len(),
    Kernel::ALL.len(),
    Load::ALL.len(),
    CPUS.len(),
    Populate::ALL.len(),
];

/// The number of axes.
pub const AXES: usize = 12;

/// The axes' names, as filters have them.
pub const KEYS: [&str; AXES] = [
    "hw", "mask", "hyp", "own", "ram", "ipa", "start", "mode", "kernel", "load", "cpus", "populate",
];

impl Cell {
    /// The configuration of these values, each by its place on its axis.
    pub fn of(places: [u8; AXES]) -> Self {
        let at = |axis: usize| usize::from(places[axis]);
        Self {
            hw: Hardware::ALL[at(0)],
            mask: Mask::ALL[at(1)],
            hyp: Pages::ALL[at(2)],
            own: Own::ALL[at(3)],
            ram: Ram::ALL[at(4)],
            ipa: IPA_BITS.start() + places[5],
            start: Start::ALL[at(6)],
            mode: Mode::ALL[at(7)],
            kernel: Kernel::ALL[at(8)],
            load: Load::ALL[at(9)],
            cpus: CPUS[at(10)],
            populate: Populate::ALL[at(11)],
        }
    }

    /// Its values' words, in the order of [`KEYS`].
    pub fn words(&self) -> [String; AXES] {
        [
            self.hw.word().into(),
            self.mask.word().into(),
            self.hyp.word().into(),
            self.own.word().into(),
            self.ram.word().into(),
            self.ipa.to_string(),
            self.start.word().into(),
            self.mode.word().into(),
            self.kernel.word().into(),
            self.load.word().into(),
            self.cpus.to_string(),
            self.populate.word().into(),
        ]
    }

    /// Its name, which is a file's too.
    pub fn name(&self) -> String {
        self.parts().join("_")
    }

    /// What its name is made of: a part for each axis.
    fn parts(&self) -> [String; AXES] {
        let mut parts = self.words();
        for (key, part) in KEYS.iter().zip(&mut parts) {
            match *key {
                "hyp" | "ipa" | "ram" => part.insert_str(0, key),
                "cpus" => part.push_str("cpu"),
                _ => {}
            }
        }
        parts
    }

    /// The configuration of this name, whether it can be or not.
    ///
    /// # Errors
    /// When none has it.
    pub fn called(name: &str) -> Result<Self> {
        let unknown = || format!("no configuration is called {name}: --list shows names");
        let parts: Vec<_> = name.split('_').collect();
        ensure!(parts.len() == AXES, "{}", unknown());
        let mut places = [0; AXES];
        for (axis, part) in parts.into_iter().enumerate() {
            let mut values = 0..SIZES[axis] as u8;
            let found = values.find(|&value| {
                places[axis] = value;
                Self::of(places).parts()[axis] == part
            });
            found.with_context(unknown)?;
        }
        Ok(Self::of(places))
    }

    /// Bits of physical addresses that EL2 sees.
    pub fn pa_bits(&self) -> u8 {
        match self.mask {
            Mask::Pa52 => self.hw.pa_bits().min(48),
            _ => self.hw.pa_bits(),
        }
    }

    /// Whether 4K and 16K translate to 52 bits.
    pub fn has_lpa2(&self) -> bool {
        self.hw == Hardware::Lpa2 && self.mask == Mask::Nothing
    }

    /// Bits of the addresses that a translation with these pages reaches.
    fn reach(&self, pages: Pages) -> u8 {
        if pages == Pages::K64 || self.has_lpa2() {
            self.pa_bits()
        } else {
            self.pa_bits().min(48)
        }
    }

    /// Whether virtual addresses have 52 bits with these pages.
    fn has_wide_va(&self, pages: Pages) -> bool {
        let has_lva = self.hw.pa_bits() == 52 && self.mask != Mask::Va52;
        self.has_lpa2() || pages == Pages::K64 && has_lva
    }

    /// Bits of virtual and physical addresses that EL2 could have.
    pub fn widest(&self) -> (u8, u8) {
        let va = if self.has_wide_va(self.hyp) { 52 } else { 48 };
        (va, self.reach(self.hyp))
    }

    /// Bits of EL2's own virtual and physical addresses: without a word, as many of the
    /// former as of the latter.
    pub fn own_bits(&self) -> (u8, u8) {
        let (va, reach) = self.widest();
        match self.own {
            Own::All => (reach.min(va), reach),
            Own::Va48Pa48 => (48, reach.min(48)),
            Own::Va48Pa52 => (48, reach),
            Own::Va52Pa48 => (va, reach.min(48)),
        }
    }

    /// Bits of the addresses that the guest's kernel reaches. Linux maps high memory
    /// where it likes; ours has it at its own address.
    fn kernel_reaches(&self) -> u8 {
        if self.kernel == Kernel::Tour {
            let wide = Pages::ALL.iter().any(|pages| {
                *pages != Pages::K16 && self.reach(*pages) == 52 && self.has_wide_va(*pages)
            });
            return if wide { 52 } else { self.pa_bits().min(48) };
        }
        let reach = self.reach(self.kernel.pages());
        if self.kernel.is_wide() {
            reach
        } else {
            reach.min(48)
        }
    }

    /// Whether the guest's tables hold 52 bits of address with 4K or 16K.
    fn is_lpa2(&self) -> bool {
        self.hyp != Pages::K64 && (self.ipa > 48 || self.ram != Ram::Low)
    }

    /// Its stage 2, walked from this level.
    fn geometry_from(&self, level: i8) -> Option<Geometry> {
        // Level 0 of 16K exists with descriptors of 52 bits alone.
        let lpa2 = self.is_lpa2() || self.hyp == Pages::K16 && level == 0;
        if lpa2 && !self.has_lpa2() {
            return None;
        }
        let mut config = Stage2Config::new(self.hyp.granule(), self.ipa, self.pa_bits());
        config.lpa2 = lpa2;
        config.start = pgtable::Start::At(Level::new(level)?);
        config.validate().ok()
    }

    /// The guest's stage 2, where there is one.
    pub fn geometry(&self) -> Option<Geometry> {
        let mut levels = (-1..=3).filter_map(|level| self.geometry_from(level));
        match self.start {
            Start::Highest => levels.next(),
            Start::Lowest => levels.next_back(),
        }
    }

    /// The same with EL2's own addresses as wide as they come.
    fn with_all_of_its_own(&self) -> Self {
        Self {
            own: Own::All,
            ..*self
        }
    }

    /// Whether some of the guest's memory would be mapped by blocks: of 2 MiB, or with
    /// FEAT_S2FWB of 32 MiB; those of 64K are larger than any guest here.
    fn has_blocks(&self) -> bool {
        let has_fwb = matches!(self.hw, Hardware::N2 | Hardware::Lpa | Hardware::Lpa2);
        self.hyp == Pages::K4 || self.hyp == Pages::K16 && has_fwb
    }

    /// Why it cannot be; `None` where it can.
    pub fn excluded(&self) -> Option<&'static str> {
        let wide = self.hw.pa_bits() == 52;
        let confidential = self.mode != Mode::Plain;
        let rules = [
            (
                self.mask != Mask::Nothing && !wide,
                "a CPU of 48 bits or less has nothing to be without",
            ),
            (
                !self.hw.has(self.hyp) || !self.hw.has(self.kernel.pages()),
                "Cortex-A72 has no 16K granule",
            ),
            (
                self.ram != Ram::Low && (self.reach(self.hyp) < 52 || self.mask != Mask::Nothing),
                "RAM above 2^48 takes a granule with 52 bits, in EL2's own tables too",
            ),
            (
                self.ram != Ram::Low && self.own_bits() != (52, 52),
                "EL2 has all RAM at its own address",
            ),
            (
                self.own != Own::All
                    && (!wide || self.own_bits() == self.with_all_of_its_own().own_bits()),
                "EL2's own addresses are like that without a word",
            ),
            (
                self.load != Load::Low && self.kernel != Kernel::Tour,
                "Linux begins below 2^48 of its own addresses: its first map has 48 bits",
            ),
            (
                self.load != Load::Low && self.ipa < if confidential { 50 } else { 49 },
                "the guest's memory lies beyond its IPA space, or in the half that is shared",
            ),
            (
                self.load != Load::Low && self.kernel_reaches() < 52,
                "the guest does not reach its own memory",
            ),
            (
                self.ipa > self.reach(self.hyp),
                "the IPA space is wider than what the granule translates to",
            ),
            (
                confidential && self.ipa > self.kernel_reaches(),
                "a confidential guest's devices are in its upper half, which its kernel \
                 must reach",
            ),
            (
                self.populate == Populate::Pages && !self.has_blocks(),
                "its memory is by pages without a word",
            ),
            (
                self.mode == Mode::Realm && !self.kernel.knows_realms(),
                "Linux knows realms from 6.13 on",
            ),
        ];
        let broken = rules.iter().find(|(breaks, _)| *breaks);
        if let Some((_, rule)) = broken {
            return Some(rule);
        }
        let Some(geometry) = self.geometry() else {
            return Some("no start level has so many bits with this granule");
        };
        // Of a root's address in VTTBR_EL2, QEMU (seen on 10.0) clears as many low bits as
        // the table is long, and bits 51:50 stand in its bits 5:4.
        let entry = geometry.span(geometry.start()).trailing_zeros();
        let few_entries = u32::from(self.ipa) < entry + 3;
        if few_entries && self.ram.base() >> 50 != 0 {
            return Some("QEMU looks for a root of fewer than 8 entries elsewhere");
        }
        // Where there is one level, it is the shortest.
        let other = Self {
            start: Start::Lowest,
            ..*self
        };
        let same = |other: Geometry| other.start() == geometry.start();
        (self.start == Start::Highest && other.geometry().is_some_and(same))
            .then_some("granule and IPA bits have one start level")
    }

    /// Holds a filter to the axes and their values.
    ///
    /// # Errors
    /// When it names one that there is not.
    pub fn checked(filter: &str) -> Result<()> {
        ensure!(
            filter.split(',').all(|term| !term.trim().is_empty()),
            "`{filter}` names nothing: expected KEY=VALUE, or a part of a name"
        );
        for (key, value) in filter.split(',').filter_map(|term| term.split_once('=')) {
            let (key, value) = (key.trim(), value.trim());
            let axis = KEYS.iter().position(|k| *k == key);
            let axis = axis.with_context(|| {
                format!("there is no axis `{key}`: there are {}", KEYS.join(", "))
            })?;
            let words: Vec<_> = (0..SIZES[axis] as u8)
                .map(|place| {
                    let mut places = [0; AXES];
                    places[axis] = place;
                    Self::of(places).words()[axis].clone()
                })
                .collect();
            ensure!(
                words.iter().any(|word| word == value),
                "{key} is never `{value}`: it is {}",
                words.join(", ")
            );
        }
        Ok(())
    }

    /// Whether all of its values are these: `key=word`, separated by commas.
    pub fn matches(&self, filter: &str) -> bool {
        let words = self.words();
        filter.split(',').all(|term| match term.split_once('=') {
            Some((key, value)) => KEYS
                .iter()
                .zip(&words)
                .any(|(k, word)| *k == key.trim() && word == value.trim()),
            None => self.name().contains(term.trim()),
        })
    }

    /// Whether what it runs on is no CPU that there is.
    pub fn is_masked(&self) -> bool {
        self.mask != Mask::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::cells;
    use crate::suite::Tier;

    #[test]
    fn a_name_is_a_configuration() {
        for cell in cells(Tier::Quick) {
            assert_eq!(Cell::called(&cell.name()).expect("its name"), cell);
        }
        let name = cells(Tier::Quick)[0].name();
        for wrong in ["", "nothing", &format!("{name}_"), &name[1..]] {
            let error = Cell::called(wrong).expect_err(wrong);
            assert!(error.to_string().contains("--list"), "{error}");
        }
    }

    /// A configuration that can be, and what a change of it makes of that.
    #[test]
    fn rules_exclude_what_cannot_be() {
        let cell = |name: &str| Cell::called(name).expect("a name");
        for name in [
            "lpa2_all_hyp4k_own_ram2p48_ipa52_short_realm_tour_load2p48_2cpu_lazy",
            "lpa2_all_hyp4k_own48x52_ramlow_ipa50_short_realm_tour_load2p48_2cpu_lazy",
            "lpa2_all_hyp16k_own52x48_ramlow_ipa49_long_plain_tour_load2p48_1cpu_eager",
            "lpa_all_hyp64k_own_ram2p51_ipa52_short_plain_debian13_load1g_1cpu_eager",
            "lpa_nopa52_hyp64k_own52x48_ramlow_ipa48_short_plain_debian12_load1g_1cpu_eager",
            "a76_all_hyp16k_own_ramlow_ipa40_short_protected_debian12_load1g_4cpu_lazy",
            "n2_all_hyp64k_own_ramlow_ipa33_long_realm_debian-backports_load1g_4cpu_lazy",
        ] {
            assert_eq!(cell(name).excluded(), None, "{name}");
        }
        for (name, rule) in [
            (
                "n2_nopa52_hyp4k_own_ramlow_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "without",
            ),
            (
                "a72_all_hyp16k_own_ramlow_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "16K",
            ),
            (
                "a72_all_hyp4k_own_ramlow_ipa40_short_plain_debian13-16k_load1g_1cpu_lazy",
                "16K",
            ),
            (
                "lpa_all_hyp4k_own_ram2p48_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "2^48",
            ),
            (
                "lpa2_nova52_hyp64k_own_ram2p48_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "2^48",
            ),
            (
                "lpa2_all_hyp4k_own48x52_ram2p48_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "own",
            ),
            (
                "n2_all_hyp4k_own48x48_ramlow_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "without",
            ),
            (
                "lpa_all_hyp4k_own48x48_ramlow_ipa40_short_plain_debian12_load1g_1cpu_lazy",
                "without",
            ),
            (
                "lpa2_all_hyp4k_own_ramlow_ipa52_short_plain_debian13_load2p48_1cpu_lazy",
                "Linux",
            ),
            (
                "lpa2_all_hyp4k_own_ramlow_ipa48_short_plain_tour_load2p48_1cpu_lazy",
                "beyond",
            ),
            (
                "lpa2_all_hyp4k_own_ramlow_ipa49_short_realm_tour_load2p48_1cpu_lazy",
                "shared",
            ),
            (
                "lpa_nova52_hyp64k_own_ramlow_ipa52_short_plain_tour_load2p48_1cpu_lazy",
                "reach",
            ),
            (
                "a76_all_hyp4k_own_ramlow_ipa41_short_plain_debian12_load1g_1cpu_lazy",
                "wider",
            ),
            (
                "lpa_all_hyp4k_own_ramlow_ipa49_short_plain_debian12_load1g_1cpu_lazy",
                "wider",
            ),
            (
                "lpa2_all_hyp4k_own_ramlow_ipa52_short_realm_tiny-4k-va48-pa48_load1g_1cpu_lazy",
                "upper",
            ),
            (
                "lpa2_all_hyp4k_own_ramlow_ipa40_short_realm_debian13_load1g_1cpu_lazy",
                "6.13",
            ),
            (
                "lpa2_all_hyp4k_own_ram2p51_ipa40_long_plain_debian12_load1g_1cpu_lazy",
                "QEMU",
            ),
            (
                "n2_all_hyp4k_own_ramlow_ipa44_long_plain_debian12_load1g_1cpu_lazy",
                "one start",
            ),
        ] {
            let why = cell(name).excluded().unwrap_or("nothing");
            assert!(why.contains(rule), "{name}: {why}");
        }
    }

    #[test]
    fn a_filter_asks_for_all_of_its_values() {
        let cell = cells(Tier::Quick)[0];
        let words = cell.words();
        let both = format!("hw={},cpus={}", words[0], words[10]);
        assert!(cell.matches(&both) && cell.matches(words[0].as_str()));
        let other = if words[10] == "4" { "2" } else { "4" };
        assert!(!cell.matches(&format!("hw={},cpus={other}", words[0])));
    }

    #[test]
    fn a_filter_names_what_there_is() {
        for right in ["hw=lpa2", "hw = lpa2, hyp=16k", "tiny-16k", "ipa=52,cpus=4"] {
            Cell::checked(right).expect(right);
        }
        let wrong = [("hv=lpa2", "hw"), ("hyp=8k", "16k"), ("ipa=53", "52")];
        for (wrong, named) in wrong {
            let error = Cell::checked(wrong).expect_err(wrong).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}

//! Every format of stage 2 that the CPU has, listed by `pgtable` and counted
//! apart from it.

use pgtable::{Features, Geometry, Granule, Level, Stage2Config, Start};
use tests::bare::console::Console;
use tests::println;
use tests::suite::Suite;

use crate::cpu::{Cpu, name};
use crate::erratum::errata;

/// Every granule, form, start level and size of IPA space, for this CPU;
/// [`Stage2Config::validate`] says which of them the architecture has.
fn configurations(cpu: &Cpu, features: Features) -> impl Iterator<Item = Stage2Config> {
    let granules = [Granule::K4, Granule::K16, Granule::K64].into_iter();
    let forms = granules.flat_map(|granule| [(granule, false), (granule, true)]);
    let forms = forms.filter(|&(granule, lpa2)| cpu.has(granule, lpa2));
    let starts = forms.flat_map(|form| (-1..=3).filter_map(Level::new).map(move |at| (form, at)));
    starts.flat_map(move |((granule, lpa2), level)| {
        (32..=52).map(move |ipa_bits| Stage2Config {
            lpa2,
            start: Start::At(level),
            features,
            errata: errata(),
            ..Stage2Config::new(granule, ipa_bits, cpu.pa_bits)
        })
    })
}

/// The formats with these features.
pub fn geometries(cpu: &Cpu, features: Features) -> impl Iterator<Item = Geometry> {
    configurations(cpu, features).filter_map(|config| config.validate().ok())
}

/// Whether the descriptors are LPA2's.
pub const fn is_lpa2(geometry: &Geometry) -> bool {
    geometry.vtcr() >> 32 & 1 != 0
}

/// A line of what the architecture has: sizes of IPA, and the concatenated root
/// tables at the largest of them. Taken from the tables of the Arm ARM (spec 1.2),
/// not from the formulas that `pgtable` goes by.
struct Row {
    granule: Granule,
    lpa2: bool,
    start: i8,
    /// Sizes with one root table.
    single: (u8, u8),
    /// The size with the most root tables, 2, 4, 8, 16 in a row behind `single`.
    most: (u8, usize),
    /// The physical address bits that this start level takes.
    pa_bits: u8,
}

const fn row(
    granule: Granule,
    lpa2: bool,
    start: i8,
    single: (u8, u8),
    most: (u8, usize),
    pa_bits: u8,
) -> Row {
    Row {
        granule,
        lpa2,
        start,
        single,
        most,
        pa_bits,
    }
}

/// `(0, 0)` where no single table serves 32 bits or more.
const TABLE: [Row; 15] = [
    row(Granule::K4, false, 0, (40, 48), (48, 1), 44),
    row(Granule::K4, false, 1, (32, 39), (43, 16), 32),
    row(Granule::K4, false, 2, (0, 0), (34, 16), 32),
    row(Granule::K4, true, -1, (49, 52), (52, 1), 44),
    row(Granule::K4, true, 0, (40, 48), (52, 16), 44),
    row(Granule::K4, true, 1, (32, 39), (43, 16), 32),
    row(Granule::K4, true, 2, (0, 0), (34, 16), 32),
    row(Granule::K16, false, 1, (37, 47), (48, 2), 42),
    row(Granule::K16, false, 2, (32, 36), (40, 16), 32),
    row(Granule::K16, true, 0, (48, 52), (52, 1), 42),
    row(Granule::K16, true, 1, (37, 47), (51, 16), 42),
    row(Granule::K16, true, 2, (32, 36), (40, 16), 32),
    row(Granule::K64, false, 1, (43, 52), (52, 1), 44),
    row(Granule::K64, false, 2, (32, 42), (46, 16), 32),
    row(Granule::K64, false, 3, (0, 0), (33, 16), 32),
];

impl Row {
    /// The root tables at a size; none where this start level does not serve it.
    fn tables(&self, ipa_bits: u8, cpu: &Cpu) -> Option<usize> {
        let (size, tables) = self.most;
        // More than 48 bits take LPA2, or 64K on a CPU of 52.
        let wide = self.lpa2 || (self.granule == Granule::K64 && cpu.pa_bits == 52);
        let largest = if wide { 52 } else { 48 };
        if cpu.pa_bits < self.pa_bits || ipa_bits > largest.min(cpu.pa_bits) || ipa_bits < 32 {
            return None;
        }
        if (self.single.0..=self.single.1).contains(&ipa_bits) {
            return Some(1);
        }
        let tables = tables >> size.checked_sub(ipa_bits)?;
        (tables > 1).then_some(tables)
    }
}

/// Compares both, each way, and prints what there is.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu) {
    let mut wanted = 0;
    let mut missing = 0;
    let mut listed = 0;
    let mut strange = 0;
    println!("granule lpa2 start  IPA bits  root tables  formats");
    for row in TABLE.iter().filter(|row| cpu.has(row.granule, row.lpa2)) {
        let mut here = 0;
        let mut bits = (0, 0);
        let mut tables = (0, 0);
        for ipa_bits in 32..=52 {
            let Some(expected) = row.tables(ipa_bits, cpu) else {
                continue;
            };
            let has = geometries(cpu, cpu.features).any(|geometry| {
                geometry.granule() == row.granule
                    && is_lpa2(&geometry) == row.lpa2
                    && geometry.start().get() == row.start
                    && geometry.ipa_bits() == ipa_bits
                    && geometry.root_tables() == expected
            });
            missing += u64::from(!has);
            if here == 0 {
                bits.0 = ipa_bits;
                tables.0 = expected;
            }
            (bits.1, tables.1) = (ipa_bits, expected);
            here += 1;
        }
        wanted += here;
        let form = if row.lpa2 { "yes" } else { "no" };
        println!(
            "{:>7} {form:>4} {:>5}  {:>2} to {:>2}  {:>4} to {:>4}  {here:>7}",
            name(row.granule),
            row.start,
            bits.0,
            bits.1,
            tables.0,
            tables.1
        );
    }
    for geometry in geometries(cpu, cpu.features) {
        listed += 1;
        let known = TABLE.iter().any(|row| {
            row.granule == geometry.granule()
                && row.lpa2 == is_lpa2(&geometry)
                && row.start == geometry.start().get()
                && row.tables(geometry.ipa_bits(), cpu) == Some(geometry.root_tables())
        });
        strange += u64::from(!known);
    }
    println!("stage 2: {listed} formats");
    suite.equal("formats/listed", listed, wanted);
    suite.equal("formats/missing", missing, 0);
    suite.equal("formats/unknown", strange, 0);
}

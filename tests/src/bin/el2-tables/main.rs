//! `pgtable` on a real MMU: at EL2, without Undercroft, this builds stage-2
//! tables of every format that the CPU has (granule, LPA2, start level,
//! concatenation, IPA size), and checks with `AT S12E1R` and with loads, stores
//! and fetches from EL1 that they translate as they should and fault as they
//! should. One line for each configuration, then `N passed, N failed`.
//!
//! `high=0x…` on the command line names RAM that the device tree does not, for
//! output addresses above 48 bits: 64 KiB of it are used.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod erratum;
#[cfg(target_os = "none")]
mod format;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod world;

tests::program!(image::main, 2);

#[cfg(target_os = "none")]
mod image {
    use pgtable::{Granule, Level, Stage2Config, Start};
    use tests::bare::console::Console;
    use tests::bare::machine;
    use tests::println;
    use tests::suite::Suite;

    use crate::{erratum, format, world};

    pub fn main() {
        let cpu = world::Cpu::read();
        let high = machine::get()
            .argument("high")
            .and_then(|value| u64::from_str_radix(value.trim_start_matches("0x"), 16).ok());
        println!("el2-tables: {cpu:?}, high {high:x?}");
        world::start();
        let mut suite = Suite::new(Console);
        let mut formats = 0;
        let oldest = Stage2Config::new(Granule::K4, 40, 40).features;
        // All that the CPU has, and as if it were of ARMv8.0.
        for features in [cpu.features, oldest] {
            for config in configurations(&cpu) {
                let config = Stage2Config {
                    features,
                    errata: erratum::errata(),
                    ..config
                };
                if let Ok(geometry) = config.validate() {
                    format::check(&mut suite, &cpu, geometry, high);
                    formats += 1;
                }
            }
        }
        suite.check("formats", formats > 20, formats);
        erratum::checks(&mut suite, &cpu);
        suite.finish();
    }

    /// Every granule, start level and size of IPA space; `validate` says which of
    /// them the architecture has.
    fn configurations(cpu: &world::Cpu) -> impl Iterator<Item = Stage2Config> {
        let granules = [Granule::K4, Granule::K16, Granule::K64].into_iter();
        let forms = granules.flat_map(|granule| [(granule, false), (granule, true)]);
        let forms = forms.filter(|&(granule, lpa2)| cpu.has(granule, lpa2));
        let starts =
            forms.flat_map(|form| (-1..=3).filter_map(Level::new).map(move |at| (form, at)));
        starts.flat_map(move |((granule, lpa2), level)| {
            (32..=52).map(move |ipa_bits| Stage2Config {
                lpa2,
                start: Start::At(level),
                ..Stage2Config::new(granule, ipa_bits, cpu.pa_bits)
            })
        })
    }
}

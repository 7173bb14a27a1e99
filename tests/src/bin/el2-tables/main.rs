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
mod cpu;
#[cfg(target_os = "none")]
mod erratum;
#[cfg(target_os = "none")]
mod format;
#[cfg(target_os = "none")]
mod formats;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod instructions;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod sequence;
#[cfg(target_os = "none")]
mod stage1;
#[cfg(target_os = "none")]
mod text;

tests::program!(image::main, 2);

#[cfg(target_os = "none")]
mod image {
    use pgtable::{Granule, Stage2Config};
    use tests::bare::console::Console;
    use tests::bare::machine;
    use tests::println;
    use tests::suite::Suite;

    use crate::cpu::Cpu;
    use crate::memory::Data;
    use crate::{erratum, format, formats, guest, memory, sequence, stage1};

    pub fn main() {
        let cpu = Cpu::read();
        let high = machine::get()
            .argument("high")
            .and_then(|value| u64::from_str_radix(value.trim_start_matches("0x"), 16).ok());
        if let Some(high) = high {
            memory::know_high(high);
        }
        println!("el2-tables: {cpu:?}, high {high:x?}");
        let mut suite = Suite::new(Console);
        stage1::checks(&mut suite, &cpu);
        let high = stage1::stay(&cpu, high);
        guest::start();
        formats::checks(&mut suite, &cpu);
        let oldest = Stage2Config::new(Granule::K4, 40, 40).features;
        // All that the CPU has, and as if it were of ARMv8.0.
        for features in [cpu.features, oldest] {
            for geometry in formats::geometries(&cpu, features) {
                format::check(&mut suite, &cpu, geometry, high);
            }
        }
        erratum::checks(&mut suite, &cpu);
        let memory = sequence::Memory {
            low: Data::behind_the_pool(),
            high: high.map(Data::at),
        };
        sequence::checks(&mut suite, &cpu, memory);
        suite.finish();
    }
}

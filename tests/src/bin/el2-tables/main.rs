//! `pgtable` on a real MMU: at EL2, without Undercroft, with `AT`, loads, stores
//! and fetches as judges. In this order, one line for each check:
//!
//! | module | checks |
//! |---|---|
//! | `stage1` | EL2's own stage 1 in every format that the CPU has; one of them stays on |
//! | `formats` | that stage 2's formats are those of the architecture, each way |
//! | `format` | each of them, with all features of the CPU and with none: accesses, blocks, splits, folds |
//! | `output` | that an output size smaller than the CPU's is kept to |
//! | `erratum` | QEMU's range TLBI, with the work-around and without |
//! | `example` | that the CPU of `pgtable`'s example does what it is asked |
//! | `sequence` | random operations and RTT commands in every format, against a plain list |
//! | `several` | all CPUs in one tree |
//!
//! What they stand on: `cpu` (ID registers), `instructions` (TLBI, DSB, AT), `guest`
//! (EL1, entered for one access), `memory` (tables and frames), `census` (counts).
//!
//! Words on the command line: `high=0x…` names RAM that the device tree does not,
//! 32 MiB of it, for output addresses above 48 bits; `seed=`, `runs=`, `ops=` and
//! `tell=1` are for the sequences.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod census;
#[cfg(target_os = "none")]
mod cpu;
#[cfg(target_os = "none")]
mod erratum;
#[cfg(target_os = "none")]
mod example;
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
mod output;
#[cfg(target_os = "none")]
mod sequence;
#[cfg(target_os = "none")]
mod several;
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
    use crate::{
        erratum, example, format, formats, guest, memory, output, sequence, several, stage1,
    };

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
        output::checks(&mut suite, &cpu);
        erratum::checks(&mut suite, &cpu);
        let memory = sequence::Memory {
            low: Data::behind_the_pool(),
            high: high.map(Data::at),
        };
        example::checks(&mut suite, &cpu, &memory.low);
        sequence::checks(&mut suite, &cpu, memory);
        several::checks(&mut suite, &cpu, memory);
        suite.finish();
    }
}

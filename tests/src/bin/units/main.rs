//! What programs expect that were written to test a hypervisor from inside, and that
//! know QEMU's virt machine alone: how they start, set up interrupts, timers, CPUs and
//! caches, and how they end.
//!
//! A check is one line, `ok NAME` or `FAIL NAME: …`. A line `= NAME VALUE` is a fact
//! that no rule decides: it should be the same on QEMU's machine itself.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod cache;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod gic;
#[cfg(target_os = "none")]
mod power;
#[cfg(target_os = "none")]
mod start;
#[cfg(target_os = "none")]
mod timer;
#[cfg(target_os = "none")]
mod vector_registers;
#[cfg(target_os = "none")]
mod vectors;

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::console::Console;
    use tests::bare::{asm, cpu, machine};
    use tests::println;
    use tests::suite::Suite;

    type Part = fn(&mut Suite<Console>);

    pub fn main() {
        let machine = machine::get();
        println!("units: {} vcpus", machine.cpus);
        let only = machine.argument("only");
        let wanted = |name: &str| only.is_none_or(|only| only.split(',').any(|word| word == name));
        let parts: [(&str, Part); 8] = [
            ("start", crate::start::checks),
            ("vectors", crate::vectors::checks),
            ("gic", crate::gic::checks),
            ("timer", crate::timer::checks),
            ("bench", crate::bench::checks),
            ("cache", crate::cache::checks),
            ("clock", crate::clock::checks),
            ("power", crate::power::calls),
        ];
        let mut suite = Suite::new(Console);
        for (name, part) in parts {
            if wanted(name) {
                part(&mut suite);
            }
        }
        let others: [(&str, Part); 4] = [
            ("gic", crate::gic::other_cpus),
            ("bench", crate::bench::other_cpus),
            ("vectors", crate::vector_registers::other_cpus),
            ("power", crate::power::other_cpus),
        ];
        for (name, part) in others {
            if wanted(name) && cpu::count() > 1 {
                part(&mut suite);
            }
        }
        asm::irq_off();
        suite.finish();
        // The others sleep for ever in a loop of WFI: that holds no end up.
        crate::power::halt_all();
    }
}

/// Prints a fact.
#[macro_export]
macro_rules! fact {
    ($name:expr, $value:expr) => {{
        let value: u64 = $value as u64;
        tests::println!("= {} {value:#x}", $name)
    }};
}

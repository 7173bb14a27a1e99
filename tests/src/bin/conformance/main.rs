//! What a guest may expect of its machine, checked from inside: one line for
//! each check, `ok NAME` or `FAIL NAME: …`, and `N passed, N failed`.
//!
//! It runs under Undercroft, and on QEMU itself, which tells whether a check
//! asks too much: the word `bare` of the command line leaves out what only a
//! guest of Undercroft is promised.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod behind;
#[cfg(target_os = "none")]
mod cpu_features;
#[cfg(target_os = "none")]
mod debug;
#[cfg(target_os = "none")]
mod gic;
#[cfg(target_os = "none")]
mod irq;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod mmio;
#[cfg(target_os = "none")]
mod power;
#[cfg(target_os = "none")]
mod psci;
#[cfg(target_os = "none")]
mod sequence;
#[cfg(target_os = "none")]
mod step;
#[cfg(target_os = "none")]
mod timer;

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::console::Console;
    use tests::bare::{asm, cpu, gic, machine};
    use tests::println;
    use tests::suite::Suite;

    pub fn main() {
        let machine = machine::get();
        println!("conformance: {} vcpus", machine.cpus);
        let bare = machine
            .bootargs
            .split_ascii_whitespace()
            .any(|w| w == "bare");
        let mut suite = Suite::new(Console);
        crate::psci::calls(&mut suite, bare);
        crate::irq::install();
        gic::start_distributor();
        gic::start_cpu();
        asm::irq_on();
        crate::timer::checks(&mut suite);
        crate::gic::checks(&mut suite);
        crate::memory::checks(&mut suite, bare);
        crate::mmio::checks(&mut suite);
        crate::behind::checks(&mut suite);
        crate::sequence::checks(&mut suite);
        crate::step::checks(&mut suite);
        crate::debug::checks(&mut suite, bare);
        crate::cpu_features::checks(&mut suite, bare);
        if cpu::count() > 1 {
            crate::psci::other_cpus(&mut suite, bare);
            crate::gic::other_cpus(&mut suite);
            crate::timer::other_cpus(&mut suite);
            crate::memory::other_cpus(&mut suite);
            crate::debug::other_cpus(&mut suite);
            crate::cpu_features::other_cpus(&mut suite);
        }
        if cpu::count() > 2 {
            crate::power::other_cpus(&mut suite, bare);
        }
        asm::irq_off();
        suite.finish();
    }
}

//! The smallest guest: says hello from each of its CPUs, and powers off.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::{asm, cpu, machine};
    use tests::println;

    pub fn main() {
        let machine = machine::get();
        let mib: u64 = machine.ram.iter().map(|r| (r.end - r.start) >> 20).sum();
        println!(
            "hello from EL{}, {} vcpus, {mib} MiB",
            asm::current_el(),
            machine.cpus
        );
        for index in 1..cpu::count() {
            let started = cpu::start(index, || println!("hello from vcpu {}", cpu::index()));
            if started != 0 || !cpu::wait_off(index) {
                println!("FAIL vcpu {index}: CPU_ON answers {started}");
            }
        }
        println!("goodbye");
    }
}

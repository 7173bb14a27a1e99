//! A guest that does what it must not: the word `do=` of its command line says
//! what. It should be stopped with a report, and never get to its last line.
//!
//! | `do=` | does |
//! |---|---|
//! | `read-above`, `write-above` | touches the first byte above its RAM |
//! | `exec-above` | jumps there |
//! | `read-hole` | reads where QEMU's virt machine has a device, and it has none |
//! | `beyond` | reads far above its RAM, below 4 GiB |
//! | `ldp-uart` | loads a pair from the UART: nothing that can be emulated |
//! | `walk-above` | has the MMU walk tables that are not there |
//! | `odd-gic` | reads the distributor unaligned, through Normal memory |
//!
//! `odd-gic` is the guest's own affair: it reads zero or faults in the guest,
//! and goes on.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use core::arch::asm;

    use tests::bare::{asm as instr, exception, machine, mmu};
    use tests::println;

    /// A virtio transport of QEMU's virt machine.
    const HOLE: u64 = 0x0a00_0000;
    const BEYOND: u64 = 0xf000_0000;
    /// Virtual gibibytes that nothing else uses.
    const ALIAS: u64 = 511;
    /// Where there is no table to walk.
    const NO_TABLE: u64 = 0xe000_0000;

    pub fn main() {
        let machine = machine::get();
        let what = machine.argument("do").unwrap_or("");
        let above = machine.ram_end();
        println!("trespass: {what}");
        // SAFETY: None of these has an effect on the program's own memory.
        let result = exception::probe(|| unsafe {
            match what {
                "read-above" => u64::from(instr::read32(above)),
                "write-above" => {
                    instr::write32(above, 0xdead_beef);
                    0
                }
                "exec-above" => {
                    asm!("blr {}", in(reg) above, out("x30") _, clobber_abi("C"));
                    0
                }
                "read-hole" => u64::from(instr::read32(HOLE)),
                "beyond" => u64::from(instr::read32(BEYOND)),
                "ldp-uart" => {
                    let (low, high): (u64, u64);
                    asm!("ldp {}, {}, [{}]", out(reg) low, out(reg) high, in(reg) machine.uart);
                    low ^ high
                }
                "walk-above" => {
                    let table = mmu::map_table(ALIAS, NO_TABLE);
                    u64::from(instr::read32(table))
                }
                "odd-gic" => {
                    let alias = mmu::map_gib(ALIAS, machine.gicd, true, 0);
                    let offset = machine.gicd & ((1 << 30) - 1);
                    u64::from(instr::read32(alias + offset + 1))
                }
                _ => {
                    println!("FAIL trespass: do={what} is none of those it knows");
                    0
                }
            }
        });
        match result {
            Ok(value) => println!("went on: {value:#x}"),
            Err(caught) => println!("went on: exception {:#x} at {:#x}", caught.esr, caught.far),
        }
    }
}

//! Resets its machine as often as it is told on its UART: `r` resets, `q` powers
//! off. With `again=yes` on its command line it resets again and again, unasked.
//!
//! A machine begins with its other CPUs off and, with `sweep=yes`, with RAM that
//! is zero but for the program and its device tree: before each reset all of that
//! is filled with ones. Each time its device tree has another seed, which it says.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use core::ops::Range;

    use tests::bare::{asm, cpu, machine, pl011, psci};
    use tests::println;

    pub fn main() {
        let machine = machine::get();
        let is = |key| machine.argument(key) == Some("yes");
        if is("sweep") {
            sweep();
        }
        // The other CPUs must be off when a machine begins, and one of them on
        // when it resets.
        for index in 1..cpu::count() {
            let state = psci::affinity_info(machine.mpidrs[index]);
            if state != 1 {
                println!("FAIL cpu {index} is not off: {state}");
            }
        }
        if cpu::count() > 1 {
            cpu::start(1, || {
                loop {
                    asm::wfe();
                }
            });
            if !cpu::eventually(|| cpu::starts(1) == 1) {
                println!("FAIL cpu 1 does not start");
            }
        }
        println!("seed {:#x}", machine.seed());
        println!("boot");
        if is("again") {
            psci::system_reset();
        }
        match pl011::get(machine.uart) {
            b'q' => psci::system_off(),
            _ => psci::system_reset(),
        }
    }

    /// RAM that is neither the program's nor the device tree's.
    fn rest() -> [Range<u64>; 3] {
        let machine = machine::get();
        let ram = &machine.ram[0];
        let tree = machine.tree.as_ptr().addr() as u64;
        let tree = tree & !0xfff..(tree + machine.tree.len() as u64).next_multiple_of(0x1000);
        let image = machine.image.start & !0xfff..machine.image.end.next_multiple_of(0x1000);
        let (first, second) = if tree.start < image.start {
            (tree, image)
        } else {
            (image, tree)
        };
        [
            ram.start..first.start,
            first.end..second.start,
            second.end..ram.end,
        ]
    }

    fn sweep() {
        let mut dirty = 0u64;
        for at in rest().into_iter().flat_map(|range| range.step_by(8)) {
            let word = core::ptr::with_exposed_provenance_mut::<u64>(at as usize);
            // SAFETY: RAM that nothing of the program's is in.
            unsafe {
                if word.read_volatile() != 0 {
                    if dirty == 0 {
                        println!("FAIL {at:#x} is not zero");
                    }
                    dirty += 1;
                }
                word.write_volatile(u64::MAX);
            }
        }
        println!("sweep: {dirty} words are not zero");
    }
}

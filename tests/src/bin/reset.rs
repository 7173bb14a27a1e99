//! Resets its machine ten times, then powers it off. The count is kept in RAM
//! above the image, which a reset leaves alone: PSCI says nothing of memory, but
//! a machine whose reset cleared it would be counted as one that never came back.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::{asm, cpu, machine, psci};
    use tests::println;

    /// Resets before the end.
    const TIMES: u64 = 10;
    /// From the image's end: far from what a loader puts beside it.
    const DISTANCE: u64 = 16 << 20;
    const MAGIC: u64 = 0x5265_7365_7420_2331;

    pub fn main() {
        let at = (machine::get().image.end + DISTANCE) & !7;
        let word = |n: u64| core::ptr::with_exposed_provenance_mut::<u64>((at + 8 * n) as usize);
        // SAFETY: RAM of the program's that nothing else uses.
        let (magic, count, check) = unsafe {
            (
                word(0).read_volatile(),
                word(1).read_volatile(),
                word(2).read_volatile(),
            )
        };
        let count = if magic == MAGIC && check == !count {
            count
        } else {
            0
        };
        println!("boot {count}");
        // The other CPUs must be off when a machine begins, and one of them on
        // when it resets.
        for index in 1..cpu::count() {
            let state = psci::affinity_info(machine::get().mpidrs[index]);
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
            if !cpu::within(5, || cpu::starts(1) == 1) {
                println!("FAIL cpu 1 does not start");
            }
        }
        if count == TIMES {
            println!("{TIMES} resets");
            // The next one who boots here counts anew.
            // SAFETY: As above.
            unsafe { word(0).write_volatile(0) };
            asm::clean(at, at + 24);
            psci::system_off();
        }
        // SAFETY: As above.
        unsafe {
            word(0).write_volatile(MAGIC);
            word(1).write_volatile(count + 1);
            word(2).write_volatile(!(count + 1));
        }
        asm::clean(at, at + 24);
        psci::system_reset();
    }
}

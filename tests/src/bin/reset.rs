//! Resets its machine ten times, or as often as `times=` of its command line
//! says, then powers it off. With `waits=yes` it waits for a byte on its UART
//! before the first reset.
//!
//! The count is kept at the end of RAM, which a reset leaves alone: PSCI says
//! nothing of memory, but a machine whose reset cleared it would be counted as
//! one that never came back.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::{asm, cpu, machine, pl011, psci};
    use tests::println;

    /// From the end of RAM: far from what a loader puts there.
    const DISTANCE: u64 = 1 << 20;
    const MAGIC: u64 = 0x5265_7365_7420_2331;

    pub fn main() {
        let machine = machine::get();
        let times = match machine.argument("times").map(str::parse) {
            Some(Ok(times)) => times,
            Some(Err(_)) => {
                println!("FAIL times= is no number");
                0
            }
            None => 10,
        };
        let at = machine.ram_end() - DISTANCE;
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
            if !cpu::within(5, || cpu::starts(1) == 1) {
                println!("FAIL cpu 1 does not start");
            }
        }
        if count == 0 && machine.argument("waits") == Some("yes") {
            println!("waits");
            pl011::get(machine.uart);
        }
        if count == times {
            println!("{times} resets");
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

//! A guest that does what it must not: the word `do=` of its command line says
//! what. It takes an external abort, as on hardware, and goes on; a strict guest
//! is stopped with a report, and never gets to its last line.
//!
//! | `do=` | does |
//! |---|---|
//! | `read-above`, `write-above` | touches the first byte above its RAM |
//! | `exec-above` | jumps there |
//! | `pair-above`, `post-above` | loads from there what has no syndrome |
//! | `read-hole` | reads where QEMU's virt machine has a device, and it has none |
//! | `beyond` | reads far above its RAM, below 4 GiB |
//! | `store-pair-above`, `zeros-above` | stores there what has no syndrome |
//! | `straddle-above` | stores half above its RAM |
//! | `gic` | does to the distributor and redistributors what has no syndrome |
//! | `walk-above` | has the MMU walk tables that are not there |
//! | `exec-walk-above`, `write-walk-above`, `at-walk-above` | the same by a jump, a store, an `at` |
//! | `odd-gic` | reads the distributor unaligned, through Normal memory |
//! | `code-gone` | loads a pair from the UART, and takes its own code away |
//! | `races` | changes code and tables under such loads, from another CPU |
//!
//! `odd-gic`, `code-gone` and `races` are the guest's own affair: they read
//! something or fault in the guest, and it goes on.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use core::arch::asm;
    use core::cell::UnsafeCell;
    use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use tests::bare::{asm as instr, code, cpu, exception, machine, mmu};
    use tests::println;

    /// fw_cfg of QEMU's virt machine.
    const HOLE: u64 = 0x0902_0000;
    const BEYOND: u64 = 0xf000_0000;
    /// Identification of the UART.
    const ID: u64 = 0xfe0;
    /// Virtual gibibytes that nothing else uses.
    const ALIAS: u64 = 511;
    /// Where there is no table to walk.
    const NO_TABLE: u64 = 0xe000_0000;

    /// # Safety
    /// The caller expects what may come.
    unsafe fn pair(at: u64) -> u64 {
        let (low, high): (u64, u64);
        // SAFETY: The caller's promise.
        unsafe { asm!("ldp {0:w}, {1:w}, [{2}]", out(reg) low, out(reg) high, in(reg) at) };
        low ^ high
    }

    /// Half of the store is RAM's, and done.
    ///
    /// # Safety
    /// Nobody needs what is before `end`.
    unsafe fn straddle(end: u64) -> u64 {
        // SAFETY: The caller's promise; the rest is the purpose.
        let half = unsafe {
            instr::write64(end - 8, 0);
            asm!("str {0:w}, [{1}]", in(reg) 0x4433_2211u64, in(reg) end - 2);
            instr::read64(end - 8)
        };
        println!("before the end of RAM: {half:#x}");
        half
    }

    /// Loads and stores without a syndrome, at X0.
    const WITHOUT: [(&str, u32); 11] = [
        ("ldp w1, w2, [x0]", 0x2940_0801),
        ("stp w1, w2, [x0]", 0x2900_0801),
        ("ldp x1, x2, [x0]", 0xa940_0801),
        ("ldr w1, [x0], #4", 0xb840_4401),
        ("str w1, [x0, #4]!", 0xb800_4c01),
        ("ldr d1, [x0]", 0xfd40_0001),
        ("st1 {v1.4s}, [x0]", 0x4c00_7801),
        ("ldxr w1, [x0]", 0x885f_7c01),
        ("ldadd w1, w2, [x0]", 0xb821_0002),
        ("swp w1, w2, [x0]", 0xb821_8002),
        ("casal w1, w2, [x0]", 0x88e1_fc02),
    ];

    /// Each of them at each of these frames; the frame is as it was.
    ///
    /// # Safety
    /// Reading the frames' first word does nothing.
    unsafe fn gic(frames: [u64; 2]) -> u64 {
        static WORD: code::Code = code::Code::new();
        // SAFETY: FP and SIMD are for whoever uses them.
        unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3u64 << 20) };
        for frame in frames {
            // SAFETY: The caller's promise.
            let before = unsafe { instr::read32(frame) };
            for (text, word) in WITHOUT {
                let at = WORD.put(&[word, code::RET]);
                // SAFETY: An abort is what is expected.
                let result = exception::probe(|| unsafe {
                    asm!("blr {}", in(reg) at, in("x0") frame, in("x1") !before, out("x30") _,
                        clobber_abi("C"));
                });
                // SAFETY: The caller's promise.
                let after = unsafe { instr::read32(frame) };
                match result {
                    Err(caught) if caught.is_external_abort() && after == before => {
                        println!("{text}: {:#x} at {:#x}", caught.esr, caught.far);
                    }
                    other => println!("FAIL {text}: {other:x?}, {before:#x} to {after:#x}"),
                }
            }
        }
        0
    }

    #[repr(C, align(4096))]
    struct Code(UnsafeCell<[u32; 1024]>);

    // SAFETY: Races on it are what the program is about.
    unsafe impl Sync for Code {}

    static CODE: Code = Code(UnsafeCell::new([0; 1024]));
    static AT_UART: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicBool = AtomicBool::new(false);

    /// `ldp w0, w1, [x0]`, `nop`, `ldraa x0, [x0]`, `dc zva, x1`, `ret`.
    const LDP: u32 = 0x2940_0400;
    const OTHERS: [u32; 5] = [LDP, 0xd503_201f, 0xf820_0400, 0xd50b_7421, LDP];
    const RET: u32 = 0xd65f_03c0;

    fn word(n: usize) -> *mut u32 {
        CODE.0.get().cast::<u32>().wrapping_add(n)
    }

    /// Calls the code through the alias of RAM, with X0.
    fn call(alias: u64, x0: u64) -> u64 {
        let at = alias + (CODE.0.get().expose_provenance() as u64 & ((1 << 30) - 1));
        let value: u64;
        // SAFETY: The code is a load and a return, whatever a race makes of it.
        unsafe {
            asm!("blr x9", in("x9") at, inout("x0") x0 => value, out("x30") _,
                clobber_abi("C"));
        }
        value
    }

    /// The second instruction finds its own code to be a device.
    fn code_gone(uart: u64) -> u64 {
        let ram = machine::get().image.start;
        // SAFETY: Nobody else is here.
        unsafe {
            word(0).write_volatile(LDP);
            word(1).write_volatile(RET);
        }
        let alias = mmu::map_gib(ALIAS, ram, true, 0);
        instr::clean(
            word(0).expose_provenance() as u64,
            word(2).expose_provenance() as u64,
        );
        let first = call(alias, uart + ID);
        // From here on the code is where the guest has none, while the TLB may
        // still have it.
        mmu::replace_gib(ALIAS, 0, true);
        let second = exception::probe(|| call(alias, uart + ID));
        println!("code-gone: {first:#x}, then {second:x?}");
        first
    }

    /// One CPU loads pairs from the UART, another one changes the code and the
    /// table that leads to it all the while.
    fn races(uart: u64) -> u64 {
        let ram = machine::get().image.start;
        // SAFETY: Nobody else is here yet.
        unsafe {
            word(0).write_volatile(LDP);
            word(1).write_volatile(RET);
        }
        mmu::map_gib(ALIAS, ram, true, 0);
        AT_UART.store(uart, Ordering::SeqCst);
        let started = cpu::start(1, || {
            let ram = machine::get().image.start;
            for n in 0.. {
                // SAFETY: The race is the purpose.
                unsafe { word(0).write_volatile(OTHERS[n % OTHERS.len()]) };
                mmu::replace_gib(ALIAS, if n % 7 == 0 { 0 } else { ram }, true);
                if DONE.load(Ordering::SeqCst) {
                    break;
                }
            }
        });
        if started != 0 {
            println!("FAIL races: CPU_ON answers {started}");
        }
        let mut met = 0;
        for _ in 0..5000 {
            let result = exception::probe(|| call(ALIAS << 30, uart + ID));
            met += u64::from(result.is_err());
        }
        DONE.store(true, Ordering::SeqCst);
        if !cpu::wait_off(1) {
            println!("FAIL races: the other CPU does not end");
        }
        println!("races: survived");
        met
    }

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
                "pair-above" => pair(above),
                "post-above" => {
                    let mut at = above;
                    asm!("ldr {0:w}, [{1}], #4", out(reg) _, inout(reg) at);
                    at
                }
                "store-pair-above" => {
                    asm!("stp {0:w}, {0:w}, [{1}]", in(reg) 0u64, in(reg) above);
                    0
                }
                "zeros-above" => {
                    asm!("dc zva, {}", in(reg) above + 0x44);
                    0
                }
                "straddle-above" => straddle(above),
                "gic" => gic([machine.gicd, machine.gicr]),
                "walk-above" => {
                    let table = mmu::map_table(ALIAS, NO_TABLE);
                    u64::from(instr::read32(table))
                }
                "write-walk-above" => {
                    let table = mmu::map_table(ALIAS, NO_TABLE);
                    instr::write32(table, 0);
                    0
                }
                "at-walk-above" => {
                    let table = mmu::map_table(ALIAS, NO_TABLE);
                    asm!("at s1e1r, {}", in(reg) table);
                    0
                }
                "exec-walk-above" => {
                    let table = mmu::map_table(ALIAS, NO_TABLE);
                    asm!("blr {}", in(reg) table, out("x30") _, clobber_abi("C"));
                    0
                }
                "odd-gic" => {
                    let alias = mmu::map_gib(ALIAS, machine.gicd, true, 0);
                    let offset = machine.gicd & ((1 << 30) - 1);
                    u64::from(instr::read32(alias + offset + 1))
                }
                "code-gone" => code_gone(machine.uart),
                "races" => races(machine.uart),
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

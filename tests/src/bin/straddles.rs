//! Loads and stores that begin in one page and end in the next, which is another
//! kind of memory: RAM, the UART (as Normal memory and as a device), what stage 1
//! does not map, and where nothing is. Each says what it did; it is the same on
//! QEMU's own machine and in a guest.
//!
//! The UART loops back to itself meanwhile: what DR was sent, it has received.
//! QEMU's sends it to its line as well: so none of it is a letter.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use arm64::regs::CPACR_EL1;
    use core::arch::asm;
    use core::cell::UnsafeCell;
    use tests::bare::asm::set;

    use tests::bare::code::{Code, RET};
    use tests::bare::{asm as instr, exception, machine, mmu, pl011};
    use tests::println;

    /// A virtual gibibyte that nothing else uses.
    const ALIAS: u64 = 500;
    const PAGE: u64 = 4096;

    const CR: u64 = 0x30;
    /// UARTEN, TXE and RXE; and LBE.
    const ON: u32 = 0x301;
    const LOOPED: u32 = ON | 1 << 7;
    const LCR_H_FIFO: u32 = 0x70;
    const FR_RXFE: u32 = 1 << 4;
    const RECEIVED: usize = 16;

    /// Address in X2; data in X0, X1 and V0, which the word names.
    const WORDS: [(&str, u64, u32); 15] = [
        ("strh w0, [x2]", 2, 0x7900_0040),
        ("str w0, [x2]", 4, 0xb900_0040),
        ("str x0, [x2]", 8, 0xf900_0040),
        ("str w0, [x2], #4", 4, 0xb800_4440),
        ("stp w0, w1, [x2]", 8, 0x2900_0440),
        ("stp x0, x1, [x2]", 16, 0xa900_0440),
        ("st1 {v0.8b}, [x2]", 8, 0x0c00_7040),
        ("ldrh w0, [x2]", 2, 0x7940_0040),
        ("ldrsh x0, [x2]", 2, 0x7980_0040),
        ("ldr w0, [x2]", 4, 0xb940_0040),
        ("ldr x0, [x2]", 8, 0xf940_0040),
        ("ldr w0, [x2], #4", 4, 0xb840_4440),
        ("ldp w0, w1, [x2]", 8, 0x2940_0440),
        ("ldp x0, x1, [x2]", 16, 0xa940_0440),
        ("ld1 {v0.8b}, [x2]", 8, 0x0c40_7040),
    ];

    /// What a page is.
    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        Ram,
        Uart,
        UartAsDevice,
        Unmapped,
        Nothing,
    }

    const PAIRS: [(&str, Kind, Kind); 9] = [
        ("ram, uart", Kind::Ram, Kind::Uart),
        ("ram, device", Kind::Ram, Kind::UartAsDevice),
        ("ram, unmapped", Kind::Ram, Kind::Unmapped),
        ("ram, nothing", Kind::Ram, Kind::Nothing),
        ("uart, ram", Kind::Uart, Kind::Ram),
        ("uart, uart", Kind::Uart, Kind::Uart),
        ("uart, unmapped", Kind::Uart, Kind::Unmapped),
        ("uart, nothing", Kind::Uart, Kind::Nothing),
        ("nothing, uart", Kind::Nothing, Kind::Uart),
    ];

    #[repr(C, align(4096))]
    struct Page(UnsafeCell<[u64; 512]>);

    // SAFETY: The boot CPU alone has a use for them.
    unsafe impl Sync for Page {}

    static TABLES: [Page; 2] = [const { Page(UnsafeCell::new([0; 512])) }; 2];
    static MEMORY: Page = Page(UnsafeCell::new([0; 512]));
    static CODE: Code = Code::new();

    fn address(page: &Page) -> u64 {
        page.0.get().expose_provenance() as u64
    }

    /// A descriptor: AttrIndx 1 is Normal, 0 a device; AF, inner shareable.
    fn descriptor(kind: Kind) -> u64 {
        let machine = machine::get();
        let (page, normal) = match kind {
            Kind::Ram => (address(&MEMORY), 1),
            Kind::Uart => (machine.uart, 1),
            Kind::UartAsDevice => (machine.uart, 0),
            Kind::Unmapped => return 0,
            Kind::Nothing => (machine.ram_end(), 1),
        };
        page | 1 << 10 | 3 << 8 | normal << 2 | 3
    }

    /// Maps two pages, one behind the other; where the second begins.
    fn map(pair: [Kind; 2]) -> u64 {
        let [upper, lower] = [&TABLES[0], &TABLES[1]].map(address);
        // SAFETY: Tables of this program, of an alias that nobody uses now.
        unsafe {
            instr::write64(upper, lower | 3);
            for (n, kind) in pair.into_iter().enumerate() {
                instr::write64(lower + 8 * n as u64, descriptor(kind));
            }
        }
        mmu::map_table(ALIAS, upper) + PAGE
    }

    #[derive(Clone, Copy, Debug, Default)]
    #[repr(C)]
    struct State {
        x: [u64; 3],
        padding: u64,
        v: [u64; 2],
    }

    fn run(state: &mut State, at: u64) {
        // SAFETY: The word reaches the two pages alone, and writes the registers
        // named here and V0, which the program does not use.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd",
                "ldp x0, x1, [x24]", "ldr x2, [x24, #16]", "ldr q0, [x24, #32]",
                "blr x25",
                "stp x0, x1, [x24]", "str x2, [x24, #16]", "str q0, [x24, #32]",
                ".arch_extension nosimd", ".arch_extension nofp",
                in("x24") &raw mut *state, in("x25") at,
                out("x0") _, out("x1") _, out("x2") _, out("x30") _,
            );
        }
    }

    fn uart(offset: u64, value: u32) {
        // SAFETY: A register of the UART's, which nobody else drives now.
        unsafe { instr::write32(machine::get().uart + offset, value) };
    }

    fn of_uart(offset: u64) -> u32 {
        // SAFETY: As above.
        unsafe { instr::read32(machine::get().uart + offset) }
    }

    /// What was received; nothing is left.
    fn received() -> [u32; RECEIVED] {
        let mut all = [0; RECEIVED];
        for word in &mut all {
            if of_uart(pl011::FR) & FR_RXFE == 0 {
                *word = of_uart(pl011::DR) | 1 << 31;
            }
        }
        all
    }

    /// RAM's first and last words.
    fn memory() -> [u64; 4] {
        let at = address(&MEMORY);
        // SAFETY: This program's page.
        [0, 8, PAGE - 16, PAGE - 8].map(|offset| unsafe { instr::read64(at + offset) })
    }

    fn one(name: &str, word: u32, va: u64) {
        for (n, offset) in [0, 8, PAGE - 16, PAGE - 8].into_iter().enumerate() {
            // SAFETY: This program's page.
            unsafe { instr::write64(address(&MEMORY) + offset, !(n as u64) << 32) };
        }
        let mut state = State {
            x: [0x8f8e_8d8c_8b8a_8988, 0x9796_9594_9392_9190, va],
            v: [0xa7a6_a5a4_a3a2_a1a0, 0],
            ..State::default()
        };
        let at = CODE.put(&[word, RET]);
        pl011::flush(machine::get().uart);
        uart(CR, LOOPED);
        for byte in 1..4 {
            uart(pl011::DR, byte);
        }
        let caught = exception::probe(|| run(&mut state, at)).err();
        let received = received();
        uart(CR, ON);
        let (esr, far) = caught.map_or((0, 0), |caught| (caught.esr, caught.far));
        println!(
            "{name} at -{}: {esr:#x} {:#x}",
            PAGE - va % PAGE,
            far & 0xffff
        );
        // Of vectors, what an abort leaves of a load is nobody's promise.
        let v = if esr == 0 { state.v[0] } else { 0 };
        println!("  {:x?} {v:x} {:x?}", &state.x[..2], memory());
        let sent = received.iter().take_while(|word| **word != 0);
        for word in sent {
            tests::print!("  {:x}", word & 0xffff);
        }
        println!("  x2 {:x}", state.x[2] & 0xffff);
    }

    pub fn main() {
        set(CPACR_EL1, CPACR_EL1.get() | 3 << 20);
        uart(pl011::LCR_H, LCR_H_FIFO);
        for (name, first, second) in PAIRS {
            let edge = map([first, second]);
            println!("straddles {name}");
            for (text, size, word) in WORDS {
                for before in [1, 2, 3, 5, 8, 13] {
                    if before < size {
                        one(text, word, edge - before);
                    }
                }
            }
        }
        println!("all told");
    }
}

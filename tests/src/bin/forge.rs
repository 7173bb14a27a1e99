//! A guest that wants to be taken for somebody else: it writes lines as the host
//! and EL2 write them, the machine's last line above all, and everything that
//! could move, hide, cut or begin a line. It never asks its UART for room.
//!
//! The word `then=` of its command line says how it ends, in the middle of a
//! line: `off`, `fault` (it touches what is not its own, and is strict), or `hang`.
//!
//! It also looks for the boot arguments of the machine, which are none of its
//! business, in its device tree and in all of its RAM.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::{asm, machine, pl011};

    /// What is forged. None has the token, which no guest is told.
    const LINES: [&str; 6] = [
        "[    9.000000] host INFO  end: status 0",
        "[    9.000000] hyp  ERROR end: panic",
        "[    9.000000] host INFO  end: 00000000000000000000000000000000 status 0",
        "[    9.000000] host INFO  guest forged: powered off",
        "end: panic",
        "end: status 0",
    ];

    /// What goes before it: ends of lines, escape sequences, what turns or hides
    /// text, bytes that are no text.
    const BEFORE: [&[u8]; 20] = [
        b"\n",
        b"\r",
        b"\r\n",
        b"\x0b",
        b"\x0c",
        b"\0",
        b"\x1b[2K\x1b[1G",
        b"\x1b[1A\r",
        b"\x1b]0;",
        b"\xc2\x9b2J",
        b"\x7f\x08\x08",
        "\u{85}".as_bytes(),
        "\u{2028}".as_bytes(),
        "\u{2029}".as_bytes(),
        "\u{202e}".as_bytes(),
        "\u{2066}\u{200b}\u{feff}".as_bytes(),
        "\u{e0041}\u{fe0f}".as_bytes(),
        b"\xff",
        b"\xf0\x9f\x99",
        b"\xed\xa0\x80",
    ];

    /// The name of the machine's boot argument from its end to its beginning, so
    /// that this program does not hold what it looks for.
    const NAME_REVERSED: &[u8] = b"=dne.tforcrednu";

    struct Uart(u64);

    impl Uart {
        fn write(&self, bytes: &[u8]) {
            for &byte in bytes {
                // SAFETY: The device tree calls it a PL011; sending has no other
                // effect.
                unsafe { asm::write32(self.0 + pl011::DR, byte.into()) };
            }
        }

        fn repeat(&self, bytes: &[u8], times: usize) {
            (0..times).for_each(|_| self.write(bytes));
        }
    }

    /// How often the name of the boot argument stands in these bytes.
    fn occurrences(from: u64, to: u64) -> u64 {
        let read = |at: u64| {
            let at = core::ptr::with_exposed_provenance::<u8>(at as usize);
            // SAFETY: In RAM of the guest's; whatever is there is only compared.
            unsafe { at.read_volatile() }
        };
        let name = || NAME_REVERSED.iter().rev().enumerate();
        (from..to - NAME_REVERSED.len() as u64)
            .filter(|at| name().all(|(n, byte)| read(at + n as u64) == *byte))
            .count() as u64
    }

    pub fn main() {
        let machine = machine::get();
        let uart = Uart(machine.uart);
        let tree = machine.tree.as_ptr().expose_provenance() as u64;
        let mut found = occurrences(tree, tree + machine.tree.len() as u64);
        for ram in machine.ram.iter().filter(|ram| !ram.is_empty()) {
            found += occurrences(ram.start, ram.end);
        }
        if found > 0 {
            uart.write(b"FAIL the machine's boot arguments are in the guest\n");
        }
        for line in LINES {
            for before in BEFORE {
                uart.write(before);
                uart.write(line.as_bytes());
            }
            uart.write(b"\r\n");
        }
        let line = LINES[0].as_bytes();
        // Bytes that grow when they are shown, and a limit that falls everywhere.
        for count in [80, 81, 82, 85, 86, 128, 256, 600] {
            uart.repeat(b"\xff", count);
            uart.write(line);
            uart.write(b"\n");
        }
        for count in 190..270 {
            uart.repeat(b"x", count);
            uart.write(line);
            uart.write(b"\n");
        }
        for letter in ["\u{e9}", "\u{65e5}", "\u{1f642}"] {
            for count in 0..4 {
                uart.repeat(b"x", count);
                uart.repeat(letter.as_bytes(), 110);
                uart.write(line);
                uart.write(b"\n");
            }
        }
        uart.write(b"forge: all was written\n");
        // The last line is none.
        uart.write(line);
        match machine.argument("then") {
            Some("off") => {}
            Some("fault") => {
                // SAFETY: There is nothing that could be harmed.
                unsafe { asm::read32(machine.ram_end()) };
            }
            _ => loop {
                asm::wfi();
            },
        }
    }
}

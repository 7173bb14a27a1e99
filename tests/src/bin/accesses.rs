//! Loads and stores of the UART at random, of every kind. One line a kind has a
//! digest of all that they did: to registers, to the UART, and by which abort. It
//! is the same on QEMU's own machine and in a guest, where the host emulates what
//! has no syndrome.
//!
//! | word | what it does |
//! |---|---|
//! | `seed=N` | which ones |
//! | `tell=KIND` | prints each of that kind |
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use arm64::regs::CPACR_EL1;
    use core::arch::asm;
    use tests::bare::asm::set;

    use tests::bare::code::{Code, RET};
    use tests::bare::{asm as instr, exception, machine, mmu};
    use tests::println;
    use tests::random::Random;

    /// Instructions of each kind.
    const ROUNDS: u32 = 200;
    /// A virtual gibibyte that nothing else uses.
    const ALIAS: u64 = 500;

    /// The UART's registers that keep what is written, with what they are set to
    /// first: ILPR to LCR_H, CR, IFLS, IMSC, ICR, DMACR. The FIFO is switched
    /// twice, which empties it.
    const FIRST: [(u64, u32); 10] = [
        (0x30, 0x301),
        (0x2c, 0x60),
        (0x2c, 0x70),
        (0x20, 0x8123_4567),
        (0x24, 0x89ab),
        (0x28, 0x2d),
        (0x34, 0x12),
        (0x38, 0),
        (0x48, 0),
        (0x44, 0xffff_ffff),
    ];
    /// Those that are looked at afterwards, RIS among them.
    const LAST: [u64; 9] = [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, 0x38, 0x3c, 0x48];

    /// A kind of instruction. Its base is X21; what else it names is X0 to X7, V0
    /// to V9, and X16 for an offset.
    struct Kind {
        name: &'static str,
        /// Bits that are set, of those that are fixed.
        set: u32,
        fixed: u32,
        /// Bits of an immediate offset that stay zero, so that it is small; and
        /// how far below zero it gets.
        small: u32,
        below: u64,
    }

    const fn kind(name: &'static str, set: u32, fixed: u32) -> Kind {
        Kind {
            name,
            set,
            fixed,
            small: 0,
            below: 0,
        }
    }

    /// Offsets of 7 bits that count in elements, of 16 bytes at most.
    const fn pair(name: &'static str, set: u32, fixed: u32) -> Kind {
        Kind {
            below: 0x40,
            small: 0x7c << 15,
            ..kind(name, set, fixed)
        }
    }

    /// Offsets of 9 bits.
    const fn unscaled(name: &'static str, set: u32, fixed: u32) -> Kind {
        Kind {
            below: 0x10,
            small: 0x1f0 << 12,
            ..kind(name, set, fixed)
        }
    }

    /// Offsets of 12 bits that count in elements.
    const fn scaled(name: &'static str, set: u32, fixed: u32) -> Kind {
        Kind {
            small: 0xffc << 10,
            ..kind(name, set, fixed)
        }
    }

    const KINDS: [Kind; 23] = [
        pair("pair-w", 0x2800_0000, 0xfe00_0000),
        pair("pair-x", 0xa800_0000, 0xfe00_0000),
        pair("pair-signed", 0x6840_0000, 0xfe40_0000),
        pair("pair-s", 0x2c00_0000, 0xfe00_0000),
        pair("pair-d", 0x6c00_0000, 0xfe00_0000),
        pair("pair-q", 0xac00_0000, 0xfe00_0000),
        unscaled("unscaled", 0x3800_0000, 0x3f20_0000),
        unscaled("unscaled-vector", 0x3c00_0000, 0x3f20_0000),
        unscaled("unscaled-ordered", 0x1900_0000, 0x3f20_0c00),
        scaled("scaled", 0x3900_0000, 0x3f00_0000),
        scaled("scaled-vector", 0x3d00_0000, 0x3f00_0000),
        kind("by-register", 0x3830_0800, 0x3f3f_0c00),
        kind("by-register-vector", 0x3c30_0800, 0x3f3f_0c00),
        kind("ordered", 0x089f_7c00, 0x3fbf_7c00),
        kind("ordered-pc", 0x38bf_c000, 0x3fff_fc00),
        kind("compare-and-swap", 0x08a0_7c00, 0x3fa0_7c00),
        kind("compare-and-swap-pair", 0x0820_7c00, 0xbfa0_7c00),
        kind("atomic", 0x3820_0000, 0x3f20_8c00),
        kind("swap", 0x3820_8000, 0x3f20_fc00),
        kind("structures", 0x0c00_0000, 0xbfbf_0000),
        kind("structures-post", 0x0c90_0000, 0xbfb0_0000),
        kind("structure", 0x0d00_0000, 0xbf9f_0000),
        kind("structure-post", 0x0d90_0000, 0xbf90_0000),
    ];

    static CODE: Code = Code::new();

    /// What an instruction finds and leaves.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    struct State {
        x: [u64; 8],
        base: u64,
        offset: u64,
        v: [[u64; 2]; 11],
    }

    impl State {
        /// Random bits, and an offset of few elements that may have bits above
        /// the 32 that count.
        fn random(random: &mut Random, base: u64) -> Self {
            let junk = if random.below(4) == 0 { 0x55 << 40 } else { 0 };
            Self {
                x: [0; 8].map(|_: u64| random.word()),
                base,
                offset: random.below(16) | junk,
                v: [[0; 2]; 11].map(|_: [u64; 2]| [random.word(), random.word()]),
            }
        }
    }

    fn run(state: &mut State, at: u64) {
        // SAFETY: The word reaches the UART or nothing, and writes the registers
        // named here and V0 to V10, which the program does not use.
        unsafe {
            asm!(
                ".arch_extension fp", ".arch_extension simd",
                "ldp x0, x1, [x24]", "ldp x2, x3, [x24, #16]",
                "ldp x4, x5, [x24, #32]", "ldp x6, x7, [x24, #48]",
                "ldp x21, x16, [x24, #64]",
                "ldp q0, q1, [x24, #80]", "ldp q2, q3, [x24, #112]",
                "ldp q4, q5, [x24, #144]", "ldp q6, q7, [x24, #176]",
                "ldp q8, q9, [x24, #208]", "ldr q10, [x24, #240]",
                "blr x25",
                "stp x0, x1, [x24]", "stp x2, x3, [x24, #16]",
                "stp x4, x5, [x24, #32]", "stp x6, x7, [x24, #48]",
                "stp x21, x16, [x24, #64]",
                "stp q0, q1, [x24, #80]", "stp q2, q3, [x24, #112]",
                "stp q4, q5, [x24, #144]", "stp q6, q7, [x24, #176]",
                "stp q8, q9, [x24, #208]", "str q10, [x24, #240]",
                ".arch_extension nosimd", ".arch_extension nofp",
                in("x24") &raw mut *state, in("x25") at,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _,
                out("x5") _, out("x6") _, out("x7") _, out("x16") _, out("x21") _,
                out("x30") _,
            );
        }
    }

    /// A random word of this kind. Pairs name two registers, and compare-and-swap
    /// even ones: nothing whose outcome the architecture leaves open.
    fn word(random: &mut Random, kind: &Kind) -> u32 {
        // The sign of a small offset: its upper bits are all as that one.
        let mut bits = random.word() as u32 & !kind.small;
        if kind.below > 0 && random.below(2) == 0 {
            bits |= kind.small;
        }
        let mut registers = 21 << 5 | (random.below(4) as u32) << 1;
        let mut named = 0x3ff;
        let is_free = |field: u32| kind.fixed & field == 0 && kind.small & field == 0;
        if kind.below == 0x40 {
            named |= 0x1f << 10;
            registers |= ((random.below(4) as u32) << 1 | 1) << 10;
        } else if is_free(0x1f << 16) {
            named |= 0x1f << 16;
            registers |= (random.below(4) as u32) << 17;
        }
        // By X16, or by what was accessed.
        if kind.set >> 20 & 0x0f == 9 && kind.set >> 24 & 0xbe == 0x0c {
            named |= 0xf << 16;
            registers |= if random.below(2) == 0 { 0 } else { 0xf << 16 };
        }
        (bits & !(named | kind.fixed)) | registers | kind.set
    }

    /// FNV-1a, in words.
    struct Digest(u64);

    impl Digest {
        fn add(&mut self, word: u64) {
            for byte in word.to_le_bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }

    fn put(offset: u64, value: u32) {
        // SAFETY: A register of the UART's, which nobody else drives now.
        unsafe { instr::write32(machine::get().uart + offset, value) };
    }

    fn preset() {
        for (offset, value) in FIRST {
            put(offset, value);
        }
    }

    /// What an instruction did.
    struct Did {
        /// The exception that it took: syndrome and address, or 0.
        esr: u64,
        far: u64,
        /// The UART's registers afterwards.
        uart: [u32; LAST.len()],
        state: State,
    }

    fn one(word: u32, mut state: State) -> Did {
        preset();
        let at = CODE.put(&[word, RET]);
        let caught = exception::probe(|| run(&mut state, at)).err();
        // SAFETY: Registers of the UART's, whose read does nothing.
        let get = |at| unsafe { instr::read32(machine::get().uart + at) };
        Did {
            esr: caught.map_or(0, |caught| caught.esr),
            far: caught.map_or(0, |caught| caught.far),
            uart: LAST.map(get),
            state,
        }
    }

    impl Did {
        /// All that must be the same. Of vectors, what an abort leaves of a load
        /// is nobody's promise.
        fn digest(&self, digest: &mut Digest) {
            digest.add(self.esr);
            digest.add(self.far);
            self.uart.iter().for_each(|word| digest.add((*word).into()));
            self.state.x.iter().for_each(|x| digest.add(*x));
            digest.add(self.state.base);
            if self.esr == 0 {
                self.state.v.iter().flatten().for_each(|v| digest.add(*v));
            }
        }
    }

    /// One where the registers are, or at the end of their page. Every second one
    /// is a multiple of 4, as all offsets of words are.
    fn target(random: &mut Random, kind: &Kind) -> u64 {
        let at = match random.below(4) {
            0 => 0xfe0 + random.below(0x28),
            1 => 0xf80 + random.below(0x60),
            _ => 0x20 + kind.below + random.below(0x30),
        };
        if random.below(2) == 0 { at & !3 } else { at }
    }

    /// The instruction, and what it changed.
    fn tell_one(word: u32, before: &State, did: &Did) {
        println!("{word:08x} at {:#x} by {:#x}", before.base, before.offset);
        println!("  esr {:#x} far {:#x} {:x?}", did.esr, did.far, did.uart);
        let after = &did.state;
        for (n, (old, new)) in before.x.iter().zip(&after.x).enumerate() {
            if old != new {
                println!("  x{n} {old:x} to {new:x}");
            }
        }
        for (n, (old, new)) in before.v.iter().zip(&after.v).enumerate() {
            if old != new {
                println!("  v{n} {old:x?} to {new:x?}");
            }
        }
        println!("  base {:#x}", after.base);
    }

    fn all_of(kind: &Kind, seed: u64, tell: bool, bases: [u64; 2]) {
        let mut random = Random::new(seed);
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        let [mut done, mut external, mut other] = [0u32; 3];
        for round in 0..ROUNDS {
            let word = word(&mut random, kind);
            let base = bases[round as usize % 2] + target(&mut random, kind);
            let state = State::random(&mut random, base);
            let did = one(word, state);
            did.digest(&mut digest);
            match did.esr {
                0 => done += 1,
                esr if esr >> 26 == 0x25 && esr & 0x3f == 0x10 => external += 1,
                _ => other += 1,
            }
            if tell {
                preset();
                tell_one(word, &state, &did);
            }
        }
        preset();
        println!(
            "{}: {done} done, {external} aborted, {other} not, digest {:016x}",
            kind.name, digest.0
        );
    }

    pub fn main() {
        let machine = machine::get();
        let seed = machine.argument("seed").and_then(|n| n.parse().ok());
        set(CPACR_EL1, CPACR_EL1.get() | 3 << 20);
        // As a device, and as memory that need not be aligned.
        let normal = mmu::map_gib(ALIAS, machine.uart, true, 0);
        let bases = [machine.uart, normal + (machine.uart & ((1 << 30) - 1))];
        for (n, kind) in KINDS.iter().enumerate() {
            let tell = machine.argument("tell") == Some(kind.name);
            all_of(kind, seed.unwrap_or(1) * 100 + n as u64, tell, bases);
        }
        println!("all told");
    }
}

//! Touches RAM that nobody has touched before, by every kind of access, and finds
//! zeros there: with one CPU, and with all of them at once in the same place and
//! beside each other. What one CPU has written stays, whoever comes after it.
//!
//! A hypervisor may give a guest its RAM piece by piece as it touches it. So each
//! check takes RAM 2 MiB from where the one before took it.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use arm64::regs::{CNTFRQ_EL0, PAR_EL1};
    use core::arch::asm;
    use core::ops::Range;
    use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use tests::bare::console::Console;
    use tests::bare::exception::{self, Caught, Frame};
    use tests::bare::{asm as instr, cpu, machine, mmu, psci};
    use tests::println;
    use tests::suite::Suite;

    /// What RAM is given by, at most.
    const PIECE: u64 = 2 << 20;
    const PAGE: u64 = 4096;
    /// A virtual gibibyte that nothing else uses.
    const ALIAS: u64 = 500;
    /// Rounds of all CPUs.
    const ROUNDS: u64 = 12;
    /// Words that all CPUs count in, in each round.
    const WORDS: u64 = 8;

    /// RAM that neither the program nor the boot loader has used: where the next
    /// check takes its own.
    static FRESH: AtomicU64 = AtomicU64::new(0);

    /// A piece that nobody has touched.
    fn fresh() -> u64 {
        let at = FRESH.fetch_add(PIECE, Ordering::SeqCst);
        assert!(at + PIECE <= machine::get().ram_end(), "more RAM, please");
        at
    }

    fn load(at: u64) -> u64 {
        // SAFETY: RAM that is this check's.
        unsafe { instr::read64(at) }
    }

    fn store(at: u64, value: u64) {
        // SAFETY: RAM that is this check's.
        unsafe { instr::write64(at, value) };
    }

    /// The first word that is not zero.
    fn dirty(range: Range<u64>) -> Option<u64> {
        range.step_by(8).find(|at| load(*at) != 0)
    }

    /// A piece is zero but for what was written, which is taken away.
    fn clean_but(suite: &mut Suite<Console>, name: &str, piece: u64, written: &[(u64, u64)]) {
        let right = written.iter().all(|&(at, value)| {
            let seen = load(at);
            store(at, 0);
            seen == value
        });
        let dirty = dirty(piece..piece + PIECE);
        let seen = format_args!("written {right}, not zero {dirty:x?}");
        suite.check(name, right && dirty.is_none(), seen);
    }

    /// An access at an address of a fresh piece: what then stands where.
    type Access = fn(u64) -> (u64, u64);

    const VALUE: u64 = 0x8877_6655_4433_2211;

    const ACCESSES: [(&str, Access); 12] = [
        ("load", |at| (at, load(at))),
        ("store", |at| {
            store(at, VALUE);
            (at, VALUE)
        }),
        ("load-pair", |at| {
            let (low, high): (u64, u64);
            // SAFETY: RAM that is this check's.
            unsafe { asm!("ldp {}, {}, [{}]", out(reg) low, out(reg) high, in(reg) at) };
            (at, low | high)
        }),
        ("store-pair", |at| {
            // SAFETY: As above.
            unsafe { asm!("stp {}, xzr, [{}]", in(reg) VALUE, in(reg) at) };
            (at, VALUE)
        }),
        ("post-index", |at| {
            let value: u64;
            // SAFETY: As above.
            unsafe { asm!("ldr {}, [{}], #8", out(reg) value, inout(reg) at => _) };
            (at, value)
        }),
        ("pre-index", |at| {
            // SAFETY: As above.
            unsafe { asm!("str {}, [{}, #-8]!", in(reg) VALUE, inout(reg) at + 8 => _) };
            (at, VALUE)
        }),
        ("exclusive", |at| {
            let value: u64;
            // SAFETY: As above.
            unsafe {
                asm!(
                    "2: ldxr {value}, [{at}]", "stxr {failed:w}, {new}, [{at}]",
                    "cbnz {failed:w}, 2b",
                    value = out(reg) value, failed = out(reg) _,
                    new = in(reg) VALUE, at = in(reg) at,
                );
            }
            (at, VALUE | value)
        }),
        ("atomic", |at| {
            let before: u64;
            // SAFETY: As above.
            unsafe {
                asm!(".arch_extension lse", "ldadd {}, {}, [{}]",
                    in(reg) VALUE, out(reg) before, in(reg) at);
            }
            (at, VALUE | before)
        }),
        ("compare-and-swap", |at| {
            let mut seen = 0u64;
            // SAFETY: As above.
            unsafe {
                asm!(".arch_extension lse", "casal {}, {}, [{}]",
                    inout(reg) seen, in(reg) VALUE, in(reg) at);
            }
            (at, VALUE | seen)
        }),
        ("zero-block", |at| {
            // SAFETY: As above.
            unsafe { asm!("dc zva, {}", in(reg) at + 4) };
            (at, 0)
        }),
        ("clean", |at| {
            instr::clean(at, at + 64);
            (at, 0)
        }),
        ("invalidate", |at| {
            // SAFETY: As above; what it held is nobody's.
            unsafe { asm!("dc ivac, {0}", "ic ivau, {0}", "dsb sy", "isb", in(reg) at) };
            (at, 0)
        }),
    ];

    fn accesses(suite: &mut Suite<Console>) {
        for (name, access) in ACCESSES {
            let piece = fresh();
            let written = access(piece + 0x1_2340);
            clean_but(suite, name, piece, &[written]);
        }
    }

    /// Accesses that begin in one piece and end in another.
    fn across(suite: &mut Suite<Console>) {
        let pieces = [fresh(), fresh()];
        let edge = pieces[1];
        let value: u64;
        // SAFETY: RAM that is this check's.
        unsafe { asm!("ldr {}, [{}]", out(reg) value, in(reg) edge - 3) };
        suite.equal("load-across", value, 0);
        let pieces = [fresh(), fresh()];
        let edge = pieces[1];
        // SAFETY: As above.
        unsafe { asm!("str {}, [{}]", in(reg) VALUE, in(reg) edge - 4) };
        let halves = [(edge - 8, VALUE << 32), (edge, VALUE >> 32)];
        clean_but(suite, "store-across", pieces[0], &halves);
        clean_but(suite, "store-across-above", pieces[1], &[]);
        let pieces = [fresh(), fresh()];
        let edge = pieces[1];
        // SAFETY: As above.
        unsafe { asm!("stp {0}, {0}, [{1}]", in(reg) VALUE, in(reg) edge - 8) };
        let halves = [(edge - 8, VALUE), (edge, VALUE)];
        clean_but(suite, "pair-across", pieces[0], &halves);
        clean_but(suite, "pair-across-above", pieces[1], &[]);
    }

    /// FEAT_MOPS, where it is told of: one instruction meets an abort in each piece.
    fn copies(suite: &mut Suite<Console>) {
        if !instr::has_memory_copies() {
            return;
        }
        let (from, to) = ([fresh(), fresh()], [fresh(), fresh()]);
        let (begin, at) = (from[0] + PIECE / 2 + 3, from[1] + 0x1000);
        let copied = to[0] + PIECE / 2 + 5 + (at - begin);
        store(at, VALUE);
        // SAFETY: RAM that is this check's.
        unsafe { instr::copy(begin, to[0] + PIECE / 2 + 5, PIECE) };
        clean_but(suite, "copy-from", from[1], &[(at, VALUE)]);
        clean_but(suite, "copy-to", to[1], &[(copied, VALUE)]);
        clean_but(suite, "copy-to-below", to[0], &[]);
        let [low, high] = [fresh(), fresh()];
        let edge = high - 0x2001;
        // SAFETY: As above.
        unsafe {
            asm!(
                ".arch_extension mops",
                "setp [{to}]!, {n}!, {value}",
                "setm [{to}]!, {n}!, {value}",
                "sete [{to}]!, {n}!, {value}",
                to = inout(reg) edge => _,
                n = inout(reg) 0x4000_u64 => _,
                value = in(reg) 0x11_u64,
            );
        }
        // What the ends have beside zeros.
        let ends = [(edge - 7, 0x11 << 56), (edge + 0x4000 - 1, 0x11)];
        let right = ends.iter().all(|&(at, value)| load(at) == value);
        let whole = edge + 7..edge + 0x4000 - 8;
        let set = whole.step_by(8).all(|at| load(at) == 0x1111_1111_1111_1111);
        let beside = dirty(low..edge & !7).or(dirty(high + 0x2000..high + PIECE));
        let seen = format_args!("ends {right}, between {set}, beside {beside:x?}");
        suite.check("set", right && set && beside.is_none(), seen);
    }

    /// The host executes a store to a device, the rest of which is fresh RAM.
    fn from_a_device(suite: &mut Suite<Console>) {
        let [upper, lower, ram] = [fresh(), fresh(), fresh()];
        let normal = 1 << 10 | 3 << 8 | 1 << 2 | 3;
        store(lower, machine::get().uart | normal);
        store(lower + 8, ram | normal);
        store(upper, lower | 3);
        let edge = mmu::map_table(ALIAS, upper) + PAGE;
        // SAFETY: What the UART gets is for a register that cannot be written.
        unsafe { asm!("str {}, [{}]", in(reg) VALUE, in(reg) edge - 4) };
        clean_but(suite, "from-a-device", ram, &[(ram, VALUE >> 32)]);
    }

    /// Where the one fetch goes that finds no instruction.
    static FETCHED: AtomicU64 = AtomicU64::new(0);
    static UNDEFINED: AtomicUsize = AtomicUsize::new(0);

    fn back(frame: &mut Frame) -> bool {
        let met = frame.esr >> 26 == 0 && frame.elr == FETCHED.load(Ordering::SeqCst);
        if met {
            UNDEFINED.fetch_add(1, Ordering::SeqCst);
            frame.elr = frame.x[30];
        }
        met
    }

    /// Fetches zeros, which is an undefined instruction.
    fn fetch(suite: &mut Suite<Console>) {
        let piece = fresh();
        FETCHED.store(piece + PAGE, Ordering::SeqCst);
        exception::on_sync(back);
        // SAFETY: The handler goes back behind the branch.
        unsafe { asm!("blr {}", in(reg) piece + PAGE, out("x30") _, clobber_abi("C")) };
        let undefined = UNDEFINED.load(Ordering::SeqCst);
        suite.equal("fetch", undefined as u64, 1);
        clean_but(suite, "fetch-beside", piece, &[]);
    }

    /// The MMU walks a table in fresh RAM: it has no entry.
    fn walks(suite: &mut Suite<Console>) {
        let no_entry = |caught: Result<(), Caught>, class: u64| {
            let caught = caught.err();
            // A translation fault of stage 1.
            caught.is_some_and(|c| c.class() == class && c.esr & 0xbc == 0x04)
        };
        type Walk = ([&'static str; 2], u64, fn(u64));
        let walks: [Walk; 3] = [
            (["walk-read", "table-of-read"], 0x25, |at| {
                load(at);
            }),
            (["walk-write", "table-of-write"], 0x25, |at| store(at, 1)),
            (["walk-fetch", "table-of-fetch"], 0x21, |at| {
                // SAFETY: The abort is what is expected.
                unsafe { asm!("blr {}", in(reg) at, out("x30") _, clobber_abi("C")) };
            }),
        ];
        for ([name, of_table], class, walk) in walks {
            let table = fresh();
            let at = mmu::map_table(ALIAS, table);
            let caught = exception::probe(|| walk(at));
            suite.check(name, no_entry(caught, class), format_args!("{caught:x?}"));
            clean_but(suite, of_table, table, &[]);
        }
        let table = fresh();
        let at = mmu::map_table(ALIAS, table);
        // SAFETY: It changes PAR_EL1 alone.
        let caught = exception::probe(|| unsafe {
            asm!("at s1e1r, {}", "isb", in(reg) at);
        });
        let par = PAR_EL1.get();
        let right = caught.is_ok() && par & 1 == 1 && par >> 1 & 0x3c == 0x04;
        suite.check("walk-at", right, format_args!("{caught:x?}, PAR {par:#x}"));
        clean_but(suite, "table-of-at", table, &[]);
    }

    /// Where all CPUs meet: how often they came.
    static CAME: AtomicUsize = AtomicUsize::new(0);
    /// What they do then, from where.
    static BASE: AtomicU64 = AtomicU64::new(0);
    static LOST: AtomicUsize = AtomicUsize::new(0);

    /// Waits for all CPUs.
    fn meet() {
        let come = CAME.fetch_add(1, Ordering::SeqCst);
        let all = (come / cpu::count() + 1) * cpu::count();
        if !cpu::eventually(|| CAME.load(Ordering::SeqCst) >= all) {
            LOST.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// The word that all CPUs count in, in a piece.
    fn counter(piece: u64, word: u64) -> &'static AtomicU64 {
        let at = piece + word * (PIECE / WORDS);
        // SAFETY: Aligned RAM that only the rounds use, and as this.
        unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(at as usize)) }
    }

    fn rounds() {
        let index = cpu::index() as u64;
        let cpus = cpu::count() as u64;
        let base = BASE.load(Ordering::SeqCst);
        for round in 0..ROUNDS {
            // All of them in one piece, each from another word on.
            let same = base + round * (1 + cpus) * PIECE;
            meet();
            for n in 0..WORDS {
                counter(same, (n + index) % WORDS).fetch_add(1, Ordering::SeqCst);
            }
            // Each in its own, beside the others'.
            let own = same + (1 + index) * PIECE;
            meet();
            store(own + PAGE, VALUE ^ own);
        }
        meet();
    }

    /// All CPUs at once: nothing that one has written is zeroed for another.
    fn together(suite: &mut Suite<Console>) {
        let cpus = cpu::count() as u64;
        let base = fresh();
        for _ in 1..ROUNDS * (1 + cpus) {
            fresh();
        }
        BASE.store(base, Ordering::SeqCst);
        let ended = cpu::together(rounds, rounds);
        let lost = LOST.load(Ordering::SeqCst);
        suite.check(
            "together",
            ended && lost == 0,
            format_args!("{lost} waited in vain"),
        );
        let (mut counts, mut own) = (0, 0);
        for round in 0..ROUNDS {
            let same = base + round * (1 + cpus) * PIECE;
            counts += (0..WORDS)
                .map(|word| counter(same, word).load(Ordering::SeqCst))
                .sum::<u64>();
            let pieces = (1..=cpus).map(|n| same + n * PIECE);
            own += pieces.filter(|at| load(at + PAGE) == VALUE ^ at).count() as u64;
        }
        suite.equal("same-piece", counts, ROUNDS * WORDS * cpus);
        suite.equal("pieces-beside", own, ROUNDS * cpus);
    }

    /// For who measures (`-icount shift=0`: a tick is a nanosecond, and that an
    /// instruction).
    fn cost() {
        let piece = fresh();
        let begun = cpu::now();
        let value = load(piece);
        let first = cpu::now() - begun;
        let begun = cpu::now();
        let again = load(piece + PAGE);
        let second = cpu::now() - begun;
        println!(
            "touch: first {first}, then {second} ticks of {} Hz ({})",
            CNTFRQ_EL0.get(),
            value | again
        );
    }

    pub fn main() {
        let machine = machine::get();
        let tree = machine.tree.as_ptr().addr() as u64 + machine.tree.len() as u64;
        let used = tree.max(machine.image.end);
        FRESH.store(used.next_multiple_of(PIECE), Ordering::SeqCst);
        let mut suite = Suite::new(Console);
        cost();
        accesses(&mut suite);
        across(&mut suite);
        copies(&mut suite);
        from_a_device(&mut suite);
        fetch(&mut suite);
        walks(&mut suite);
        together(&mut suite);
        suite.finish();
        psci::system_off();
    }
}

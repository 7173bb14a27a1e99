//! A guest of the boot matrix where no Linux goes: it looks at what the others look at
//! (memory, CPUs, a pattern that stays, the timer's ticks, each CPU) and at where it
//! was loaded, and says it in the same words between the marks of `mark=`.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

    use arm64::instr;

    use arm64::regs::{
        CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, ID_AA64MMFR0_EL1, ID_AA64MMFR2_EL1,
    };
    use tests::bare::{asm, cpu, exception, gic, machine, rsi};
    use tests::println;

    /// What the pattern fills.
    const PATTERN: u64 = 16 << 20;
    /// The virtual timer's PPI.
    const TIMER: u32 = 27;
    const TICKS: u32 = 5;

    /// What a realm shares at once: a block, where there are such.
    const PIECE: u64 = 2 << 20;
    /// RSI's word for what is not the realm's own.
    const EMPTY: u64 = 0;

    /// What another CPU reads, whether it has, whether it must not any more, and whether
    /// it still could.
    static READ: AtomicU64 = AtomicU64::new(0);
    static READING: AtomicBool = AtomicBool::new(false);
    static TOLD: AtomicBool = AtomicBool::new(false);
    static STALE: AtomicBool = AtomicBool::new(false);

    /// Interrupts of the timer.
    static TICKED: AtomicU32 = AtomicU32::new(0);

    pub fn main() {
        let machine = machine::get();
        let mark = machine.argument("mark").unwrap_or("tour");
        println!("{mark} begin");
        println!("loaded at {:#x}", machine.ram[0].start);
        println!("within {}", machine.ram[0].contains(&machine.image.start));
        let range = ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange);
        let wide = ID_AA64MMFR2_EL1.read(ID_AA64MMFR2_EL1::VARange);
        let lpa2 = u64::from(ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::TGran4) == 1);
        println!("range {range} wide {wide} lpa2 {lpa2}");
        let bytes: u64 = machine.ram.iter().map(|r| r.end - r.start).sum();
        println!("memory {}", bytes >> 20);
        println!("cpus {}", machine.cpus);
        let end = machine.ram_end();
        let right = pattern(end - 2 * PATTERN, end);
        println!(
            "pattern {} {}",
            PATTERN >> 20,
            if right { "same" } else { "lost" }
        );
        if ticks() {
            println!("ticks");
        }
        println!("moved{Visited}");
        if rsi::ipa_bits().is_some() {
            println!("RSI version 1.0");
            if machine.cpus > 1 {
                println!("{}", shared(end - 2 * PATTERN - PIECE));
            }
        }
        println!("{mark} end 0");
    }

    /// Fills the lower half of a range, copies it to the upper one and looks there.
    fn pattern(start: u64, end: u64) -> bool {
        let word = |at: u64| (at ^ 0x5a5a_5a5a).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let middle = start + (end - start) / 2;
        for at in (start..middle).step_by(8) {
            // SAFETY: The end of RAM, where nobody has put anything.
            unsafe { asm::write64(at, word(at)) };
        }
        for at in (start..middle).step_by(8) {
            // SAFETY: As above.
            unsafe { asm::write64(at + (middle - start), asm::read64(at)) };
        }
        // SAFETY: As above.
        let read = |at| unsafe { asm::read64(at + (middle - start)) };
        (start..middle).step_by(8).all(|at| read(at) == word(at))
    }

    /// The timer's interrupts come, one after the other.
    fn ticks() -> bool {
        exception::on_irq(|| {
            let intid = gic::acknowledge_and_end();
            if intid == TIMER {
                TICKED.fetch_add(1, Ordering::Relaxed);
                asm::set(CNTV_CVAL_EL0, cpu::now() + CNTFRQ_EL0.get() / 1000);
            }
        });
        gic::start_distributor();
        gic::start_cpu();
        gic::enable(TIMER, 0x80);
        asm::set(CNTV_CVAL_EL0, cpu::now());
        asm::set(CNTV_CTL_EL0, 1);
        instr::irq_on();
        let come = cpu::eventually(|| TICKED.load(Ordering::Relaxed) >= TICKS);
        asm::set(CNTV_CTL_EL0, 0);
        gic::disable(TIMER);
        come
    }

    /// What a realm shares is gone for all of its CPUs at once: another one reads a piece
    /// of memory all along, so that its TLB holds it, and must not when this one has been
    /// told that it is shared.
    fn shared(at: u64) -> &'static str {
        READ.store(at, Ordering::SeqCst);
        // SAFETY: Memory that nobody uses.
        unsafe { asm::write64(at, 1) };
        let began = cpu::start(1, || {
            let at = READ.load(Ordering::SeqCst);
            loop {
                // Before the access: what comes after it must fail.
                let told = TOLD.load(Ordering::SeqCst);
                // SAFETY: As above, or an abort.
                let seen = exception::probe(|| unsafe { asm::read64(at) });
                READING.store(true, Ordering::SeqCst);
                match seen {
                    Ok(_) if told => return STALE.store(true, Ordering::SeqCst),
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        let reads = || READING.load(Ordering::SeqCst);
        if began != 0 || !cpu::eventually(reads) {
            return "the other CPU does not read";
        }
        if rsi::set_all(&(at..at + PIECE), EMPTY).is_none() {
            return "not shared";
        }
        TOLD.store(true, Ordering::SeqCst);
        match (cpu::wait_off(1), STALE.load(Ordering::SeqCst)) {
            (true, false) => "gone for all",
            (true, true) => "still there for another CPU",
            (false, _) => "the other CPU does not end",
        }
    }

    /// The CPUs that have run, each once, in their order.
    struct Visited;

    static VISITS: AtomicU32 = AtomicU32::new(1);

    impl core::fmt::Display for Visited {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            write!(f, " 0")?;
            for index in 1..cpu::count() {
                let began = cpu::start(index, || {
                    VISITS.fetch_or(1 << cpu::index(), Ordering::Relaxed);
                });
                let came = began == 0 && cpu::wait_off(index);
                if came && VISITS.load(Ordering::Relaxed) >> index & 1 == 1 {
                    write!(f, " {index}")?;
                }
            }
            Ok(())
        }
    }
}

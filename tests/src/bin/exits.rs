//! What each way out of a guest and back costs, by the virtual counter: for
//! `cargo qemu bench exits`, which has a tick be an instruction.
//!
//! `do=exits` measures what one guest can by itself, `do=blocked` a vCPU that waits
//! while another guest has its CPU, `do=touch` memory that is there from the first
//! touch on. `do=spin` is that other guest, `do=wait` one that is only there. Each row
//! is a line `exit NAME MIN MEDIAN` of 1000 rounds, an empty round taken off.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use arm64::regs::{CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, ID_AA64MMFR0_EL1, VBAR_EL1};
    use core::arch::{asm, global_asm};
    use core::cell::UnsafeCell;
    use core::hint::black_box;
    use tests::bare::asm::{Conduit, irq_off, isb, read32, set, steer, wfi};
    use tests::bare::{gic, machine, psci};
    use tests::println;

    /// Rounds of each row.
    const ROUNDS: usize = 1000;
    /// Ticks between a timer's programming and its interrupt.
    const SOON: u64 = 2000;
    /// The virtual timer's interrupt.
    const TIMER: u32 = 27;
    const GICD_IIDR: u64 = 8;
    /// A register that reads the same for ever, and that the host reads.
    const UART_PERIPH_ID0: u64 = 0xfe0;
    const PAGE: u64 = 4096;

    struct Rounds(UnsafeCell<[u64; ROUNDS]>);

    // SAFETY: only the boot CPU measures.
    unsafe impl Sync for Rounds {}

    static TOOK: Rounds = Rounds(UnsafeCell::new([0; ROUNDS]));

    // An IRQ is told by the counter at the vector's first instruction, in x0, and goes
    // on, masked, where x1 says: nothing is saved. Where other
    // CPUs begin, nothing is set up.
    global_asm!(
        ".balign 2048",
        "lean_vectors:",
        ".skip 0x280",
        "mrs x0, cntvct_el0",
        "mrs x2, spsr_el1",
        "orr x2, x2, #0x80",
        "msr spsr_el1, x2",
        "msr elr_el1, x1",
        "eret",
        ".balign 2048",
        // x0 = 1: busy, 0: waits. Returns the counter at the vector.
        "await_irq:",
        "adr x1, 3f",
        "msr daifclr, #2",
        "cbz x0, 2f",
        "1: b 1b",
        "2: wfi",
        "b 2b",
        "3: ret",
        // x0 = what to write to ICC_SGI1R_EL1; returns ticks from there to the vector.
        "sgi_to_self:",
        "adr x1, 5f",
        "msr daifclr, #2",
        "isb",
        "mrs x3, cntvct_el0",
        "msr icc_sgi1r_el1, x0",
        "4: b 4b",
        "5: sub x0, x0, x3",
        "ret",
        "waits_for_ever:",
        "wfi",
        "b waits_for_ever",
    );

    unsafe extern "C" {
        static lean_vectors: u8;
        fn await_irq(busy: u64) -> u64;
        fn sgi_to_self(value: u64) -> u64;
        fn waits_for_ever();
    }

    fn now() -> u64 {
        isb();
        CNTVCT_EL0.get()
    }

    /// Prints a row of what each round gives; `empty` is in each and not meant.
    fn row(name: &str, empty: u64, mut round: impl FnMut() -> u64) {
        // SAFETY: this CPU alone has it, and no other row is under way.
        let took = unsafe { &mut *TOOK.0.get() };
        // Caches, and what is done once.
        for _ in 0..3 {
            round();
        }
        for took in took.iter_mut() {
            *took = round() - empty;
        }
        took.sort_unstable();
        println!("exit {name} {} {}", took[0], took[ROUNDS / 2]);
    }

    /// Ticks around what is done.
    #[inline(always)]
    fn around(what: impl FnOnce()) -> u64 {
        let begun = now();
        what();
        now() - begun
    }

    fn call() {
        let mut x0 = psci::fid::SMCCC_VERSION;
        // SAFETY: a call of the convention's own changes X0 to X3 at most.
        unsafe {
            match machine::get().conduit {
                Conduit::Hvc => asm!("hvc #0", inout("x0") x0,
                    out("x1") _, out("x2") _, out("x3") _),
                Conduit::Smc => asm!("smc #0", inout("x0") x0,
                    out("x1") _, out("x2") _, out("x3") _),
            }
        }
        black_box(x0);
    }

    fn expires(busy: bool) -> u64 {
        let at = CNTVCT_EL0.get() + SOON;
        CNTV_CVAL_EL0.set(at);
        set(CNTV_CTL_EL0, 1);
        // SAFETY: the vectors that return to it are set.
        let seen = unsafe { await_irq(busy.into()) };
        set(CNTV_CTL_EL0, 2);
        gic::acknowledge_and_end();
        seen - at
    }

    /// The interrupt controller, and vectors that do nothing but tell.
    fn begin() {
        irq_off();
        gic::start_distributor();
        gic::start_cpu();
        // SAFETY: the vectors stand there, and only IRQs are expected from here on.
        unsafe { steer(VBAR_EL1, &raw const lean_vectors as u64) };
        gic::enable(TIMER, 0x80);
        gic::enable(1, 0x80);
    }

    fn start_others() {
        let entry = waits_for_ever as *const () as u64;
        let vcpus = machine::get()
            .argument("vcpus")
            .and_then(|n| n.parse().ok());
        for n in 1..vcpus.unwrap_or(1u64) {
            let mpidr = (n / 16) << 8 | (n % 16);
            let answer = psci::psci(psci::fid::CPU_ON_64, mpidr, entry, 0);
            assert_eq!(answer, 0, "CPU {n}");
        }
        doze(1_000_000);
    }

    /// Waits, so that the other CPUs come to where they wait, too: where instructions are
    /// counted, one that works has all the time.
    fn doze(ticks: u64) {
        let until = now() + ticks;
        CNTV_CVAL_EL0.set(until);
        set(CNTV_CTL_EL0, 1);
        while now() < until {
            wfi();
        }
        set(CNTV_CTL_EL0, 2);
        gic::acknowledge_and_end();
    }

    fn exits() {
        let machine = machine::get();
        begin();
        start_others();
        let empty = around(|| ());
        row("hvc", empty, || around(call));
        row("id-register", empty, || {
            around(|| {
                black_box(ID_AA64MMFR0_EL1.get());
            })
        });
        // SAFETY: registers that can be read.
        let read = |at| unsafe { read32(at) };
        row("gicd", empty, || {
            around(|| {
                black_box(read(machine.gicd + GICD_IIDR));
            })
        });
        row("device", empty, || {
            around(|| {
                black_box(read(machine.uart + UART_PERIPH_ID0));
            })
        });
        row("timer", 0, || expires(true));
        let mpidr = machine.mpidrs[0];
        row("sgi", 1, || {
            let value = 1 << 24 | (mpidr >> 8 & 0xff) << 16 | 1 << (mpidr & 0xf);
            // SAFETY: as for the timer.
            let took = unsafe { sgi_to_self(value) };
            gic::acknowledge_and_end();
            took
        });
    }

    fn answer_sgis() {
        irq_off();
        gic::start_cpu();
        gic::enable(1, 0x80);
        loop {
            wfi();
            if gic::acknowledge_and_end() == 1 {
                gic::send_sgi(1, 0);
            }
        }
    }

    fn ipi() {
        begin();
        assert_eq!(tests::bare::cpu::start(1, answer_sgis), 0);
        doze(1_000_000);
        row("ipi", 0, || {
            let begun = now();
            gic::send_sgi(1, 1);
            while gic::acknowledge_and_end() != 1 {
                wfi();
            }
            let took = now() - begun;
            doze(10_000);
            took
        });
    }

    fn touch() {
        let machine = machine::get();
        let tree = machine.tree.as_ptr().addr() as u64 + machine.tree.len() as u64;
        let begin = tree.max(machine.image.end).next_multiple_of(4 << 20);
        let end = machine.ram_end() & !((4 << 20) - 1);
        let empty = around(|| ());
        let pages = (end - begin) / PAGE;
        let mut all = 0;
        for page in 0..pages {
            all += around(|| {
                // SAFETY: RAM that nobody uses.
                black_box(unsafe { tests::bare::asm::read64(begin + page * PAGE) });
            }) - empty;
        }
        println!("exit touch {} {}", all / pages, all / pages);
    }

    pub fn main() {
        match machine::get().argument("do").unwrap_or("exits") {
            "exits" => exits(),
            "ipi" => ipi(),
            "blocked" => {
                begin();
                start_others();
                row("blocked", 0, || expires(false));
            }
            "touch" => touch(),
            "spin" => loop {
                core::hint::spin_loop();
            },
            "wait" => loop {
                wfi();
            },
            other => println!("FAIL do={other} is nothing it does"),
        }
        println!("exits measured");
        loop {
            wfi();
        }
    }
}

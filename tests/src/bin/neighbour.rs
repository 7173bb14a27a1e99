//! A guest that measures its share of a CPU, or one that does what it can to take
//! its neighbours'.
//!
//! `do=measure` watches the counter for a while: a step that is much longer than
//! the usual is time that another had. It prints its share in thousandths and the
//! longest step in microseconds, and `ok` or `FAIL` by `least=` and `longest=`;
//! `for=` is how long, in microseconds.
//! Other `do=` are attacks and never end.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use arm64::regs::{CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0};
    use tests::bare::asm::read32;
    use tests::bare::asm::set;
    use tests::bare::{asm, cpu, gic, machine, pl011, psci};
    use tests::println;

    pub fn main() {
        match machine::get().argument("do").unwrap_or("measure") {
            "measure" => measure(),
            "sleep" => timer(&VIRTUAL, 20, 4800),
            "nap" => timer(&VIRTUAL, 2, 1),
            "doze" => timer(&VIRTUAL, 12, 1),
            "physical" => timer(&PHYSICAL, 20, 4800),
            "wfi" => pending_timer(asm::wfi),
            "wfe" => pending_timer(asm::wfe),
            "suspend" => pending_timer(|| {
                psci::psci(psci::fid::CPU_SUSPEND_64, 0, 0, 0);
            }),
            "sgi" => sgi(),
            "psci" => power_calls(),
            "exits" => exits(),
            "console" => loop {
                println!("all of this goes to the log of the machine, again and again");
            },
            "reset" => psci::system_reset(),
            other => println!("FAIL do={other} is nothing it does"),
        }
    }

    fn number(key: &str) -> u64 {
        let value = machine::get().argument(key).and_then(|v| v.parse().ok());
        value.unwrap_or(0)
    }

    /// The longest step of one that nobody interrupts, in microseconds.
    const USUAL: u64 = 2;

    /// Ticks of so many microseconds.
    fn ticks(us: u64) -> u64 {
        CNTFRQ_EL0.get() / 1000 * us / 1000
    }

    fn measure() {
        // Until the other has begun.
        let warm = cpu::now() + ticks(300_000);
        while cpu::now() < warm {}
        let start = cpu::now();
        let end = start + ticks(number("for"));
        let (mut lost, mut longest, mut last) = (0, 0, start);
        while last < end {
            let now = cpu::now();
            let step = now - last;
            if step > ticks(USUAL) {
                lost += step;
                longest = longest.max(step);
            }
            last = now;
        }
        let share = 1000 - lost * 1000 / (last - start);
        let longest = longest * 1000 / ticks(1000).max(1);
        let right = share >= number("least") && longest <= number("longest");
        println!(
            "{} share {share} longest {longest} us",
            if right { "ok" } else { "FAIL" }
        );
        println!("measured");
        loop {
            asm::wfi();
        }
    }

    /// A timer: its interrupt, and what programs and stops it.
    struct Timer {
        intid: u32,
        program: fn(u64),
        stop: fn(),
    }

    const VIRTUAL: Timer = Timer {
        intid: 27,
        program: |at| {
            set(CNTV_CVAL_EL0, at);
            set(CNTV_CTL_EL0, 1);
        },
        stop: || set(CNTV_CTL_EL0, 2),
    };

    const PHYSICAL: Timer = Timer {
        intid: 30,
        program: |at| {
            set(CNTP_CVAL_EL0, at);
            set(CNTP_CTL_EL0, 1);
        },
        stop: || set(CNTP_CTL_EL0, 2),
    };

    /// Waits and works by a timer.
    fn timer(timer: &Timer, waits: u64, works: u64) {
        gic::start_distributor();
        gic::start_cpu();
        gic::enable(timer.intid, 0x80);
        loop {
            (timer.program)(cpu::now() + ticks(waits));
            asm::wfi();
            (timer.stop)();
            let end = cpu::now() + ticks(works);
            while cpu::now() < end {}
        }
    }

    /// Waits with its timer's interrupt pending.
    fn pending_timer(wait: fn()) {
        gic::start_distributor();
        gic::start_cpu();
        gic::enable(27, 0x80);
        set(CNTV_CVAL_EL0, 0);
        set(CNTV_CTL_EL0, 1);
        loop {
            wait();
        }
    }

    fn sgi() {
        gic::start_distributor();
        gic::start_cpu();
        gic::enable(1, 0x80);
        loop {
            gic::send_sgi(1, 0);
            gic::end(gic::acknowledge());
            asm::wfi();
        }
    }

    /// Asks after CPUs and starts those that are on.
    fn power_calls() {
        loop {
            psci::affinity_info(asm::mpidr());
            psci::psci(psci::fid::CPU_ON_64, asm::mpidr(), cpu::entry(), 0);
            psci::psci(psci::fid::VERSION, 0, 0, 0);
        }
    }

    fn exits() {
        let uart = machine::get().uart;
        loop {
            // SAFETY: a register of the UART without side effects.
            unsafe { read32(uart + pl011::FR) };
        }
    }
}

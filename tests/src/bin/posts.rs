//! Writes to its UART without a look at it, which need not wait for the host, and
//! does something else at once.
//!
//! | `do=` | what it does behind its last byte |
//! |---|---|
//! | `off` | powers off |
//! | `reset` | resets, again and again |
//! | `fault` | reads what is above its RAM |
//! | `spin` | spins, with interrupts masked |
//! | `idle` | waits, with interrupts masked |
//! | `timer` | the same, and its physical timer fires all the time |
//! | `fired` | spins, and its physical timer has fired before |
//! | `again` | spins, and has written before: the host has come for that |
//! | `off-cpu` | turns the CPU off that wrote |
//! | `turns` | its CPUs write numbers in turns |
//!
//! Before `spin`, `idle`, `timer`, `fired`, `again` and `off-cpu` it says when it wrote that, in
//! microseconds of the counter; before all of `spin`, that it has begun.
#![cfg_attr(target_os = "none", no_std, no_main)]

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use arm64::regs::{CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0};
    use core::fmt::{self, Write};
    use core::sync::atomic::{AtomicU64, Ordering};

    use tests::bare::asm::{read64, wfi, write32};
    use tests::bare::{cpu, gic, machine, pl011, psci};
    use tests::println;

    /// Numbers that all CPUs write together.
    const TURNS: u64 = 3000;

    /// The UART, as one has it that never asks whether there is room.
    struct Uart;

    impl Write for Uart {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            let uart = machine::get().uart;
            for byte in text.bytes() {
                // SAFETY: the data register of the UART; to send has no other effect.
                unsafe { write32(uart + pl011::DR, byte.into()) };
            }
            Ok(())
        }
    }

    /// A UART cannot refuse.
    macro_rules! post {
        ($($argument:tt)*) => {{
            let _ = write!(Uart, $($argument)*);
        }};
    }

    fn micros() -> u64 {
        cpu::now() * 1_000_000 / CNTFRQ_EL0.get()
    }

    fn written() {
        post!("the last bytes, written at {} us\r\n", micros());
    }

    pub fn main() {
        match machine::get().argument("do").unwrap_or("off") {
            "off" => {
                post!("the last bytes");
                psci::system_off();
            }
            "reset" => {
                post!("the last bytes");
                psci::system_reset();
            }
            "fault" => {
                let machine = machine::get();
                post!("the last bytes");
                // SAFETY: no memory, and so an abort at the most.
                let value = unsafe { read64(machine.ram[0].end) };
                println!("FAIL it went on with {value:#x}");
            }
            "spin" => {
                println!("begun");
                written();
                loop {
                    core::hint::spin_loop();
                }
            }
            "idle" => {
                written();
                loop {
                    wfi();
                }
            }
            "timer" => timer(),
            "fired" => {
                CNTP_CVAL_EL0.set(0);
                CNTP_CTL_EL0.set(1);
                written();
                loop {
                    core::hint::spin_loop();
                }
            }
            "again" => {
                post!("once\r\n");
                let later = cpu::now() + CNTFRQ_EL0.get() / 50;
                while cpu::now() < later {
                    core::hint::spin_loop();
                }
                written();
                loop {
                    core::hint::spin_loop();
                }
            }
            "off-cpu" => {
                cpu::start(1, written);
                loop {
                    wfi();
                }
            }
            "turns" => turns(),
            other => println!("FAIL do={other} is nothing it does"),
        }
    }

    /// The physical timer fires every 10 ms; its interrupt is never taken.
    fn timer() {
        const INTID: u32 = 30;
        gic::start_distributor();
        gic::start_cpu();
        gic::enable(INTID, 0x80);
        let step = CNTFRQ_EL0.get() / 100;
        let arm = || {
            CNTP_CVAL_EL0.set(cpu::now() + step);
            CNTP_CTL_EL0.set(1);
        };
        arm();
        written();
        loop {
            wfi();
            arm();
        }
    }

    static NEXT: AtomicU64 = AtomicU64::new(0);

    /// Each CPU writes the number whose turn it is.
    fn turn() {
        let (me, all) = (cpu::index() as u64, cpu::count() as u64);
        loop {
            let number = NEXT.load(Ordering::Acquire);
            if number >= TURNS {
                return;
            }
            if number % all == me {
                post!("{number}\r\n");
                NEXT.store(number + 1, Ordering::Release);
            }
        }
    }

    fn turns() {
        for index in 1..cpu::count() {
            cpu::start(index, turn);
        }
        turn();
        while NEXT.load(Ordering::Acquire) < TURNS {}
        psci::system_off();
    }
}

//! EL2's own death: registers, syndrome in words, backtrace, and the end of the
//! machine.

use arm64::instr;
use arm64::regs::*;

use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::cpu::{dying, pe};
use crate::ending;
use crate::log::LastWords;
use crate::memory::granule::Spans;
use crate::system::System;
use ::rmi::end::{End, How};
use appendix::{Appendix, Header, Symbols};
use arm64::syndrome::{Class, Syndrome};

/// How often the CPU that reports has died while it did.
static AGAIN: AtomicU64 = AtomicU64::new(0);
/// It has come to where the machine is turned off.
static TRIED: AtomicBool = AtomicBool::new(false);
/// Start and end of the image in memory, its appendix included.
static IMAGE: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Registers at an exception that EL2 took from itself; asm.S builds it.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    x: [u64; 31],
    sp: u64,
    /// Where it was taken from.
    pub pc: u64,
    /// Its vector, 0 to 3.
    pub kind: u64,
}

/// Remembers where the image is, for names in backtraces.
pub fn set_image(base: u64, flat_end: u64) {
    IMAGE[0].store(base, Ordering::Relaxed);
    IMAGE[1].store(flat_end, Ordering::Relaxed);
}

/// Takes the log for the one report. Another CPU's death stops here. Its own,
/// while it reports, cuts the report short; a third one ends the machine as it
/// is.
fn begin() -> LastWords {
    if dying::claim(!crate::log::is_shared()) {
        pe::interrupt_others();
        return crate::log::last_words();
    }
    let again = AGAIN.load(Ordering::Relaxed);
    AGAIN.store(again + 1, Ordering::Relaxed);
    if again == 0 {
        let mut log = crate::log::last_words();
        let _ = if log.uart_faulted {
            writeln!(log, "\n*** the log's UART does not answer")
        } else {
            writeln!(log, "\n*** EL2 died again while it reported")
        };
        end(log);
    }
    off()
}

/// Ends the machine. Without the host's `end: status` line it counts as failed.
fn end(mut log: LastWords) -> ! {
    let (token, how) = (crate::log::token(), How::Panic);
    let _ = writeln!(log, "{}", End { token, how });
    log.send();
    off()
}

fn off() -> ! {
    // What a guest's memory held stays where it is rather than go to who comes next: if
    // scrubbing is what EL2 died of too, the machine stands still. No exclusives: the
    // MMU may be off.
    let tried = TRIED.load(Ordering::Relaxed);
    TRIED.store(true, Ordering::Relaxed);
    let scrub = |system| ending::scrub(system, Spans::All).is_ok();
    if !tried && System::installed().is_none_or(scrub) {
        crate::psci::system_off();
    }
    dying::halt()
}

/// Reports a Rust panic.
pub fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let mut log = begin();
    let _ = writeln!(log, "\n*** EL2 panic: {}", info.message());
    if let Some(at) = info.location() {
        let _ = writeln!(log, "    at {at}");
    }
    let frame = instr::frame_pointer();
    where_am_i(&mut log);
    backtrace(&mut log, None, frame);
    left_behind(&mut log);
    end(log)
}

/// Reports an exception that EL2 took from itself.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
extern "C" fn el2_exception(frame: &Frame) -> ! {
    let mut log = begin();
    if log.uart_faulted {
        let _ = writeln!(log, "\n*** the log's UART faults");
    }
    let kind = ["synchronous", "IRQ", "FIQ", "SError"][(frame.kind & 3) as usize];
    let _ = writeln!(log, "\n*** EL2 exception: {kind}");
    let esr = ESR_EL2.get();
    let _ = writeln!(log, "    esr {esr:#010x} ({})", Syndrome(esr));
    struck(&mut log, frame.kind, Syndrome(esr));
    let _ = writeln!(
        log,
        "    pc  {:#018x} sp  {:#018x} spsr {:#x}",
        frame.pc,
        frame.sp,
        SPSR_EL2.get()
    );
    registers(&mut log, frame, System::installed());
    where_am_i(&mut log);
    backtrace(&mut log, Some(frame.pc), frame.x[29]);
    left_behind(&mut log);
    end(log)
}

/// FAR_EL2 where EL2's own abort has written it. Else it holds where a guest's last struck,
/// which may be a confidential one's.
#[cfg_attr(not(any(target_os = "none", test)), expect(dead_code))]
fn struck(log: &mut impl Write, kind: u64, esr: Syndrome) {
    let aborts = matches!(esr.class(), Class::INST_ABORT | Class::DATA_ABORT);
    if kind & 3 != 0 || !(aborts || esr.class() == Class::PC_ALIGNMENT) || esr.far_not_valid() {
        return;
    }
    let far = FAR_EL2.get();
    let _ = writeln!(log, "    far {far:#018x}");
    if pe::is_guard_page(far) {
        let _ = writeln!(
            log,
            "    this is a stack's guard page: the stack overflowed"
        );
    }
}

/// X0 to X30 and HPFAR_EL2, unless they may hold what a confidential guest's registers
/// held: EL2 works on them, at its vectors and for the host, and the log is the host's to
/// read. Which vCPU EL2 worked for is not told from the registers of one that died.
#[cfg_attr(not(any(target_os = "none", test)), expect(dead_code))]
fn registers(log: &mut impl Write, frame: &Frame, system: Option<&System>) {
    if system.is_some_and(|system| crate::realm::any_is_confidential(&system.granules)) {
        let _ = writeln!(log, "    x0 to x30 may be a confidential guest's: not told");
        return;
    }
    let _ = writeln!(log, "    hpfar {:#x}", HPFAR_EL2.get());
    for (n, pair) in frame.x.chunks(2).enumerate() {
        let _ = write!(log, "    x{:<2} {:#018x}", n * 2, pair[0]);
        if let Some(odd) = pair.get(1) {
            let _ = write!(log, " x{:<2} {odd:#018x}", n * 2 + 1);
        }
        let _ = writeln!(log);
    }
}

/// What guests have written that the host will not take any more.
fn left_behind(log: &mut LastWords) {
    // The report first: many guests' words would push it out of the ring.
    log.send();
    if let Some(system) = System::installed() {
        crate::realm::report_posted(&system.granules, log);
    }
}

fn where_am_i(log: &mut LastWords) {
    let _ = writeln!(
        log,
        "    cpu mpidr {:#x}, image at {:#x}, hcr {:#x}, vttbr {:#x}",
        affinity(),
        IMAGE[0].load(Ordering::Relaxed),
        HCR_EL2.get(),
        VTTBR_EL2.get(),
    );
}

/// Follows the frame records from `fp`, at most 32 of them.
fn backtrace(log: &mut LastWords, pc: Option<u64>, mut fp: u64) {
    let [base, flat_end] = [&IMAGE[0], &IMAGE[1]].map(|w| w.load(Ordering::Relaxed));
    let symbols = symbols(flat_end);
    let mut print = |n: usize, pc: u64| {
        let offset = pc.wrapping_sub(base);
        let _ = match symbols.find(offset) {
            Some((name, inside)) => writeln!(log, "    #{n:<2} {offset:#010x} {name}+{inside:#x}"),
            None => writeln!(log, "    #{n:<2} {offset:#010x}"),
        };
    };
    let mut n = 0;
    if let Some(pc) = pc {
        print(n, pc);
        n += 1;
    }
    while n < 32 && fp.is_multiple_of(16) && pe::is_stack(fp) {
        // SAFETY: the frame record at `fp` is 16 bytes inside a stack of EL2's.
        let [next, lr] = unsafe { (fp as *const [u64; 2]).read() };
        if lr == 0 {
            break;
        }
        // The call is the instruction before the return address.
        print(n, lr.wrapping_sub(4));
        n += 1;
        if next <= fp {
            break;
        }
        fp = next;
    }
}

fn symbols(flat_end: u64) -> Symbols<'static> {
    if flat_end == 0 {
        return Symbols::NONE;
    }
    // SAFETY: the boot loader put the whole file into RAM, which goes on behind
    // the image's end; once EL2 has its own map, that is read-only data there.
    let header = unsafe { core::slice::from_raw_parts(flat_end as *const u8, Header::LEN) };
    let Some(header) = Header::read(header) else {
        return Symbols::NONE;
    };
    // SAFETY: as above, for the length that boot checked and mapped.
    let all =
        unsafe { core::slice::from_raw_parts(flat_end as *const u8, header.total_len() as usize) };
    Appendix::split(all).map_or(Symbols::NONE, |appendix| appendix.symbols)
}

/// Dies as the command line asks, so that a test sees the report.
#[cfg(target_os = "none")]
pub fn crash(how: crate::boot::tree::Crash) {
    use crate::boot::tree::Crash;
    /// Each turn takes a kilobyte of stack.
    #[expect(unconditional_recursion, reason = "it is to overflow")]
    #[inline(never)]
    fn deeper(depth: u64) -> u64 {
        let mut block = [depth; 128];
        core::hint::black_box(&mut block);
        deeper(depth + 1) + block[(depth % 128) as usize]
    }
    match how {
        Crash::Panic => panic!("undercroft.crash=panic"),
        Crash::Abort => {
            let code = IMAGE[0].load(Ordering::Relaxed) as *mut u32;
            // SAFETY: none: EL2's own map refuses the store, which is the test.
            unsafe { code.write_volatile(0) }
        }
        Crash::Stack => {
            core::hint::black_box(deeper(0));
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::rmi::fake::Host;
    use ::rmi::params::RealmFlags;
    use arm64::recording;
    use pgtable::Granule;
    use std::string::String;

    /// A guest's registers pass through EL2's: none are told where one keeps its own.
    #[test]
    fn a_report_tells_no_register_of_a_confidential_guest() {
        const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
        recording::set(HPFAR_EL2, SECRET);
        let frame = Frame {
            x: [SECRET; 31],
            sp: 0,
            pc: 0,
            kind: 0,
        };
        let told = |system: Option<&System>| {
            let mut text = String::new();
            registers(&mut text, &frame, system);
            text.matches("5ec2e75ec2e75ec2").count()
        };
        assert_eq!(told(None), 32, "there is no guest yet");
        let mut host = Host::new(Granule::K4, 8 << 20);
        assert_eq!(told(Some(host.system)), 32);
        host.realm_of(RealmFlags::NONCONF);
        assert_eq!(
            told(Some(host.system)),
            32,
            "a plain guest's are the host's"
        );
        drop(host);
        let mut host = Host::new(Granule::K4, 8 << 20);
        host.realm_of(RealmFlags::PROTECTED);
        assert_eq!(told(Some(host.system)), 0);
    }

    /// A system error, and what has no address, leave FAR_EL2 as a guest's abort wrote it:
    /// the log is the host's, which learns of a confidential guest's where in a page it was.
    #[test]
    fn a_report_tells_no_address_of_a_guests() {
        const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
        recording::set(FAR_EL2, SECRET);
        for (kind, esr, is_told) in [
            (0, 0x25 << 26 | 0x07, true),
            (0, 0x21 << 26 | 0x0f, true),
            (0, 0x22 << 26, true),
            // Not valid; BRK, an undefined instruction, SP; a system error; interrupts.
            (0, 0x25 << 26 | 1 << 10 | 0x10, false),
            (0, 0x3c << 26, false),
            (0, 0, false),
            (0, 0x26 << 26, false),
            (3, 0x2f << 26 | 0x11, false),
            (3, 0x25 << 26 | 0x07, false),
            (1, 0x24 << 26 | 0x07, false),
        ] {
            let mut text = String::new();
            struck(&mut text, kind, Syndrome(esr));
            let told = text.contains("5ec2e75ec2e75ec2");
            assert_eq!(told, is_told, "{kind} {esr:#x}: {text}");
        }
    }
}

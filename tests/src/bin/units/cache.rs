//! Code that is written anew and run at once, and maintenance by address of all memory.

use core::arch::asm;
use core::cell::UnsafeCell;

use tests::bare::console::Console;
use tests::bare::{cpu, exception, machine};
use tests::println;
use tests::suite::Suite;

use crate::fact;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u32; 1024]>);
// SAFETY: the boot CPU's alone.
unsafe impl Sync for Page {}
static PAGE: Page = Page(UnsafeCell::new([0; 1024]));

const RET: u32 = 0xd65f_03c0;
const fn mov_x0(value: u32) -> u32 {
    0xd280_0000 | value << 5
}

fn write(code: *mut u32, word: u32, clean: bool, invalidate: bool) {
    // SAFETY: the page is ours, and nobody runs it meanwhile.
    unsafe {
        code.write_volatile(word);
        if clean {
            asm!("dc cvau, {0}", "dsb ish", in(reg) code);
        }
        if invalidate {
            asm!("ic ivau, {0}", in(reg) code);
        }
        asm!("dsb ish", "isb");
    }
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    let (ctr, clidr): (u64, u64);
    // SAFETY: registers that are read.
    unsafe { asm!("mrs {}, ctr_el0", "mrs {}, clidr_el1", out(reg) ctr, out(reg) clidr) };
    fact!("cache/ctr", ctr);
    fact!("cache/clidr", clidr);
    let (clean, invalidate) = (ctr & 1 << 28 == 0, ctr & 1 << 29 == 0);
    let code = PAGE.0.get().cast::<u32>();
    // SAFETY: as above.
    write(unsafe { code.add(1) }, RET, true, true);
    // SAFETY: it holds a `mov` and a `ret` whenever it is called.
    let run: extern "C" fn() -> u64 = unsafe { core::mem::transmute(code) };
    let mut wrong = 0;
    for n in 0..5000u32 {
        write(code, mov_x0(0x42), true, true);
        wrong += u32::from(run() != 0x42);
        write(code, mov_x0(n & 0xff), clean, invalidate);
        wrong += u32::from(run() != u64::from(n & 0xff));
    }
    suite.equal("cache/new-code", wrong.into(), 0);
    memory(suite);
}

/// All RAM behind the program, which nobody has touched: by lines that are a page apart,
/// with the MMU on and off, then its content.
fn memory(suite: &mut Suite<Console>) {
    let machine = machine::get();
    let end = machine.ram_end();
    let from = (machine.image.end + 0x3f_ffff) & !0x1f_ffff;
    let third = ((end - from) / 3) & !0x1f_ffff;
    let start = cpu::now();
    let seen = exception::probe(|| {
        let mut at = from;
        while at < from + third {
            // SAFETY: our RAM; the lines hold nothing that anybody waits for.
            unsafe { asm!("dc civac, {0}", in(reg) at) };
            at += 4096;
        }
        // SAFETY: a barrier.
        unsafe { asm!("dsb sy") };
    });
    suite.check(
        "cache/clean-untouched",
        seen.is_ok(),
        format_args!("{seen:x?}"),
    );
    // SAFETY: everything is mapped at its own address, with the MMU or without it.
    unsafe {
        asm!(
            "mrs {old}, sctlr_el1",
            "bic {new}, {old}, #1",
            "msr sctlr_el1, {new}",
            "isb",
            "2: dc civac, {at}",
            "add {at}, {at}, #4096",
            "cmp {at}, {end}",
            "b.lo 2b",
            "dsb sy",
            "msr sctlr_el1, {old}",
            "isb",
            old = out(reg) _, new = out(reg) _, at = inout(reg) from + third => _,
            end = in(reg) from + 2 * third,
        );
    }
    println!("ok cache/clean-untouched-mmu-off");
    let mut odd = 0;
    let mut at = from;
    while at < end {
        let word = core::ptr::with_exposed_provenance_mut::<u64>(at as usize);
        // SAFETY: RAM behind the program; what the loader has put there is not ours to
        // change, so that it is written as it was.
        unsafe {
            let old = word.read_volatile();
            word.write_volatile(!old);
            odd += u64::from(word.read_volatile() != !old);
            word.write_volatile(old);
        }
        at += 4096;
    }
    suite.equal("cache/all-memory", odd, 0);
    println!("memory took {} ticks", cpu::now() - start);
}

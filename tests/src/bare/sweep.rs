//! Every system instruction there is, by its encoding: the program must only
//! ever see an exception of its own, whatever is above it must live.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::exception::{self, Caught};

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);

// SAFETY: One CPU sweeps.
unsafe impl Sync for Page {}

static CODE: Page = Page(UnsafeCell::new([0; 4096]));
static SCRATCH: Page = Page(UnsafeCell::new([0; 4096]));

/// What a sweep met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Instructions that did something, or nothing.
    pub done: u32,
    /// Those that were undefined.
    pub undefined: u32,
    /// Those that had another exception.
    pub other: u32,
    /// The last of these, and its syndrome.
    pub last: (u32, u64),
}

impl Met {
    fn note(&mut self, instruction: u32, result: Result<u64, Caught>) {
        match result {
            Ok(_) => self.done += 1,
            // FEAT_IDST tells the register of an undefined access to ID space.
            Err(caught) if matches!(caught.class(), 0 | 0x18) => self.undefined += 1,
            Err(caught) => {
                self.other += 1;
                self.last = (instruction, caught.esr);
            }
        }
    }
}

/// Executes one instruction with `x0`; X0 after it.
///
/// # Safety
/// What the instruction does is the caller's: registers other than X0 to X17 and
/// memory that is in use must survive it.
unsafe fn execute(instruction: u32, x0: u64) -> Result<u64, Caught> {
    const RET: u32 = 0xd65f_03c0;
    let code = CODE.0.get().expose_provenance() as u64;
    // SAFETY: The page is this module's; it is executable, as all RAM is.
    unsafe {
        super::asm::write32(code, instruction);
        super::asm::write32(code + 4, RET);
        asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) code,
            options(nostack));
    }
    // SAFETY: The caller's promise.
    exception::probe(|| unsafe {
        let out: u64;
        asm!("blr {code}", code = in(reg) code, inlateout("x0") x0 => out, out("x30") _,
            clobber_abi("C"));
        out
    })
}

fn encodings(op0: u32) -> impl Iterator<Item = u32> {
    (0..1 << 14).map(move |rest| 0xd500_0000 | op0 << 19 | rest << 5)
}

/// Reads every system register, and writes back what was read.
pub fn registers() -> Met {
    let mut met = Met::default();
    for register in [2, 3].into_iter().flat_map(encodings) {
        let read = register | 1 << 21;
        // SAFETY: A read changes nothing that is in use: no interrupt is
        // pending, and no check is under way.
        let result = unsafe { execute(read, 0) };
        met.note(read, result);
        if let Ok(value) = result {
            // SAFETY: The value that it has.
            met.note(register, unsafe { execute(register, value) });
        }
    }
    met
}

/// System registers of op0 2 and 3, by number: op0\[0\], op1, CRn, CRm, op2.
pub const REGISTERS: u32 = 1 << 15;

fn encoding(register: u32) -> u32 {
    0xd510_0000 | register << 5
}

/// Reads every system register that can be read, and tells number and value.
pub fn read_all(mut tell: impl FnMut(u32, u64)) {
    for register in 0..REGISTERS {
        // SAFETY: as in `registers`.
        if let Ok(value) = unsafe { execute(encoding(register) | 1 << 21, 0) } {
            tell(register, value);
        }
    }
}

/// Writes the registers for which `value` has one.
pub fn write_all(mut value: impl FnMut(u32) -> Option<u64>) {
    for register in 0..REGISTERS {
        if let Some(value) = value(register) {
            // SAFETY: the caller leaves out what the program lives by.
            let _ = unsafe { execute(encoding(register), value) };
        }
    }
}

/// Executes every cache, TLB and translation instruction, on a page of its own.
pub fn maintenance() -> Met {
    let mut met = Met::default();
    let at = SCRATCH.0.get().expose_provenance() as u64;
    for instruction in encodings(1) {
        // SAFETY: None writes memory but the scratch page; what is invalidated
        // is cleaned first or unchanged.
        met.note(instruction, unsafe { execute(instruction, at) });
    }
    met
}

//! Every system instruction there is, by its encoding: the program must only
//! ever see an exception of its own, whatever is above it must live.

use core::arch::asm;

use arm64::instr;
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
    }
    instr::dc_cvau(code);
    instr::dsb_ish();
    instr::ic_ivau(code);
    instr::dsb_ish();
    instr::isb();
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

/// Code in memory that deals with every register in turn. Whoever runs it skips
/// the instructions that take an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routine {
    /// Reads each into the next word at X1, or X3 where it cannot. X0 and X1
    /// change.
    Read,
    /// Writes X2 to each.
    Write,
    /// Writes to each its word at X1. X0 and X1 change.
    Restore,
}

impl Routine {
    /// Bytes of it.
    pub const fn bytes(self) -> u64 {
        let each = match self {
            Self::Read => 12,
            Self::Write => 4,
            Self::Restore => 8,
        };
        each * REGISTERS as u64 + 4
    }

    /// Writes it to `at`, without the registers that `leave` names by number.
    /// Reads read them all.
    ///
    /// # Safety
    /// [`Self::bytes`] bytes from there are the caller's, and nobody runs them.
    pub unsafe fn write(self, at: u64, leave: impl Fn(u32) -> bool) {
        const MOV_X0_X3: u32 = 0xaa03_03e0;
        const STR_X0: u32 = 0xf800_8420; // str x0, [x1], #8
        const LDR_X0: u32 = 0xf840_8420; // ldr x0, [x1], #8
        const NOP: u32 = 0xd503_201f;
        const RET: u32 = 0xd65f_03c0;
        let mut to = at;
        let mut put = |instruction: u32| {
            // SAFETY: the caller's promise.
            unsafe { super::asm::write32(to, instruction) };
            to += 4;
        };
        for register in 0..REGISTERS {
            let msr = encoding(register);
            let left = leave(register);
            match self {
                Self::Read => [MOV_X0_X3, msr | 1 << 21, STR_X0]
                    .into_iter()
                    .for_each(&mut put),
                Self::Write => put(if left { NOP } else { msr | 2 }),
                Self::Restore => [LDR_X0, if left { NOP } else { msr }]
                    .into_iter()
                    .for_each(&mut put),
            }
        }
        put(RET);
        super::asm::clean(at, at + self.bytes());
        super::asm::fetch_anew();
    }

    /// Runs one at `at` on this CPU, with X1, X2 and X3.
    ///
    /// # Safety
    /// It is there; what it does to the CPU is the caller's, and X1 has a word for
    /// each register, where it needs them.
    pub unsafe fn run(at: u64, x: [u64; 3]) {
        // SAFETY: the caller's promise.
        let _ = exception::probe(|| unsafe {
            asm!("blr {at}", at = in(reg) at, inlateout("x1") x[0] => _, in("x2") x[1],
                in("x3") x[2], out("x0") _, out("x30") _);
        });
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

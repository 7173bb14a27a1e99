//! Accesses that may meet an external abort and live: of memory that a lower
//! level named, and of devices that only the device tree vouches for.
//!
//! A device tree may name RAM that is not there. What EL2 touches because the
//! host said so goes through a few routines of asm.S: when an external abort strikes
//! inside one, the vector returns to its end, and it says so. What arrives later, as
//! an SError, is waited for before the routine ends, and is the routine's too; only what
//! a cache writes back later still is not told from EL2's own, and ends the machine.
//! [`is_there`] does not wait: EL2 is at its vector then, where a system error is the
//! level's that comes out.

use arm64::regs::{ELR_EL2, ESR_EL2, FAR_EL2, HPFAR_EL2, SPSR_EL2};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// The memory answered with an external abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalAbort;

type Result<T> = core::result::Result<T, ExternalAbort>;

/// The routines; each returns 0, or 1 after an external abort.
#[cfg(target_os = "none")]
mod routines {
    unsafe extern "C" {
        pub fn guarded_copy(to: *mut u8, from: *const u8, len: usize) -> u64;
        pub fn guarded_exit(exit: *mut u8, record: *const u64, state: *const u64) -> u64;
        pub fn guarded_zero(at: *mut u8, len: usize) -> u64;
        pub fn guarded_touch(begin: u64, end: u64) -> u64;
        pub fn guarded_read32(at: *const u32, to: *mut u32) -> u64;
        pub fn guarded_clean(start: u64, end: u64, line: u64) -> u64;
        pub fn guarded_translate(address: u64, to: *mut u64, look: u64) -> u64;
    }
}

/// The same on the development machine, where a test says what is not there.
#[cfg(not(target_os = "none"))]
mod routines {
    use crate::memory::phys::fake;
    use core::mem::offset_of;
    use rmi::run::RecExit;

    /// Where each word of the exit's own record stands in [`RecExit`].
    const EXIT_RECORD: [usize; 8] = {
        const GPRS: usize = offset_of!(RecExit, gprs);
        [
            offset_of!(RecExit, exit_reason),
            offset_of!(RecExit, esr),
            offset_of!(RecExit, far),
            offset_of!(RecExit, hpfar),
            GPRS,
            GPRS + 8,
            GPRS + 16,
            GPRS + 24,
        ]
    };

    /// Where each word of the vCPU's stands there.
    const EXIT_STATE: [usize; 10] = [
        offset_of!(RecExit, cntp_ctl),
        offset_of!(RecExit, cntp_cval),
        offset_of!(RecExit, cntv_ctl),
        offset_of!(RecExit, cntv_cval),
        offset_of!(RecExit, ripas_base),
        offset_of!(RecExit, ripas_top),
        offset_of!(RecExit, ripas_value),
        offset_of!(RecExit, imm),
        offset_of!(RecExit, elr),
        offset_of!(RecExit, spsr),
    ];

    pub unsafe fn guarded_copy(to: *mut u8, from: *const u8, len: usize) -> u64 {
        let is_there =
            |n: &usize| !fake::is_hole(to as usize + n, 1) && !fake::is_hole(from as usize + n, 1);
        let whole = !fake::is_hole(to as usize, len) && !fake::is_hole(from as usize, len);
        // What comes before the hole is copied.
        let good = if whole {
            len
        } else {
            (0..len).take_while(is_there).count()
        };
        // SAFETY: the caller's promise.
        unsafe { core::ptr::copy_nonoverlapping(from, to, good) };
        u64::from(!whole)
    }

    pub unsafe fn guarded_exit(exit: *mut u8, record: *const u64, state: *const u64) -> u64 {
        let gprs = offset_of!(RecExit, gprs);
        let (misr, pmu) = (
            offset_of!(RecExit, gicv3_misr),
            offset_of!(RecExit, pmu_ovf_status),
        );
        let blank = (gprs + 32..=gprs + 256).step_by(8);
        let blank = blank.chain([misr, misr + 8, pmu]).map(|at| (at, 0));
        // SAFETY: the caller, `write_exit`, has them from arrays of these lengths.
        let (record, state) = unsafe {
            (
                core::slice::from_raw_parts(record, EXIT_RECORD.len()),
                core::slice::from_raw_parts(state, EXIT_STATE.len()),
            )
        };
        let offsets = EXIT_RECORD.into_iter().chain(EXIT_STATE);
        let words = offsets.zip(record.iter().chain(state).copied());
        for (offset, value) in words.chain(blank) {
            // SAFETY: a field's offset, of the `RecExit` that the caller vouches for.
            let at = unsafe { exit.add(offset) };
            if fake::is_hole(at as usize, 8) {
                return 1;
            }
            // SAFETY: as above; 8 bytes of it, at any alignment.
            unsafe { at.cast::<[u8; 8]>().write(value.to_ne_bytes()) };
        }
        0
    }

    pub unsafe fn guarded_zero(at: *mut u8, len: usize) -> u64 {
        if fake::is_hole(at as usize, len) {
            return 1;
        }
        // SAFETY: the caller's promise.
        unsafe { at.write_bytes(0, len) };
        0
    }

    pub unsafe fn guarded_touch(begin: u64, end: u64) -> u64 {
        let mut words = (begin as usize..end as usize).step_by(0x1000);
        u64::from(words.any(|word| fake::is_hole(word, 8)))
    }

    pub unsafe fn guarded_read32(at: *const u32, to: *mut u32) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { guarded_copy(to.cast(), at.cast(), 4) }
    }

    pub unsafe fn guarded_clean(start: u64, end: u64, _line: u64) -> u64 {
        fake::note_cleaned(start as usize, (end - start) as usize);
        0
    }

    pub unsafe fn guarded_translate(_address: u64, to: *mut u64, _look: u64) -> u64 {
        let Some(par) = fake::translation() else {
            // As an exception to EL2 does.
            super::Taken {
                esr: 0x25 << 26 | 0x15,
                far: 0xfa,
                hpfar: 0xfb,
                elr: 0xfc,
                spsr: 0x3c8,
            }
            .restore();
            return 1;
        };
        arm64::regs::PAR_EL1.set(par);
        // SAFETY: the caller's promise.
        unsafe { to.write(par) };
        0
    }
}

fn outcome(failed: u64) -> Result<()> {
    if failed == 0 {
        Ok(())
    } else {
        Err(ExternalAbort)
    }
}

fn pointer<T>(pa: u64) -> *mut T {
    super::phys::pointer(pa)
}

/// A value in memory of a lower level, read once as that level left it.
///
/// # Errors
/// [`ExternalAbort`].
///
/// # Safety
/// `size_of::<T>()` bytes from `pa` are mapped in EL2's own map, and are of
/// granules in which EL2 keeps nothing.
pub unsafe fn read<T: FromBytes + FromZeros + IntoBytes>(pa: u64) -> Result<T> {
    let mut value = T::new_zeroed();
    // SAFETY: the caller's promise.
    unsafe { read_bytes(pa, value.as_mut_bytes())? };
    Ok(value)
}

/// As [`read`], for bytes at any alignment.
///
/// # Errors
/// [`ExternalAbort`]; what is in `bytes` then, is anything.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_bytes(pa: u64, bytes: &mut [u8]) -> Result<()> {
    // SAFETY: the caller's promise; EL2 keeps no object in that memory, so the
    // two do not overlap.
    outcome(unsafe { routines::guarded_copy(bytes.as_mut_ptr(), pointer(pa), bytes.len()) })
}

/// Copies `len` bytes of memory that a lower level may have named.
///
/// # Errors
/// [`ExternalAbort`]; a part may have been copied.
///
/// # Safety
/// Both are mapped in EL2's own map, apart from each other, and of granules in which
/// EL2 keeps nothing.
pub unsafe fn copy(to: u64, from: u64, len: u64) -> Result<()> {
    // SAFETY: the caller's promise.
    outcome(unsafe { routines::guarded_copy(pointer(to), pointer(from), len as usize) })
}

/// Writes a value to memory of a lower level.
///
/// # Errors
/// [`ExternalAbort`]; a part may have been written.
///
/// # Safety
/// As [`read`].
pub unsafe fn write<T: IntoBytes + Immutable>(pa: u64, value: &T) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { write_bytes(pa, value.as_bytes()) }
}

/// As [`write()`], for bytes at any alignment.
///
/// # Errors
/// [`ExternalAbort`]; a part may have been written.
///
/// # Safety
/// As [`read`].
pub unsafe fn write_bytes(pa: u64, bytes: &[u8]) -> Result<()> {
    // SAFETY: the caller's promise, as in `read_bytes`.
    outcome(unsafe { routines::guarded_copy(pointer(pa), bytes.as_ptr(), bytes.len()) })
}

/// Writes an exit to the host's page: `exit_reason`, `esr`, `far`, `hpfar` and the first
/// four `gprs` from `record`; `cntp_ctl` to `cntv_cval`, `ripas_base` to `ripas_value`,
/// `imm`, `elr` and `spsr` from `state`; and zeros to the other `gprs`, to the GIC's
/// registers but the lists, and to the PMU's. By a routine of its own: each exit does it.
///
/// # Errors
/// [`ExternalAbort`]; a part may have been written.
///
/// # Safety
/// As [`read`], for a [`RecExit`](rmi::run::RecExit) at `exit`, a multiple of 8.
pub unsafe fn write_exit(exit: u64, record: &[u64; 8], state: &[u64; 10]) -> Result<()> {
    // SAFETY: the routine reads 8 and 10 words, which the types have, and writes fields of
    // a `RecExit`, which the caller vouches for.
    outcome(unsafe { routines::guarded_exit(pointer(exit), record.as_ptr(), state.as_ptr()) })
}

/// Fills memory with zeros.
///
/// # Errors
/// [`ExternalAbort`]; a part may have been filled.
///
/// # Safety
/// As [`read`]; `pa` and `len` are multiples of 64.
pub unsafe fn zero(pa: u64, len: u64) -> Result<()> {
    // SAFETY: the caller's promise.
    outcome(unsafe { routines::guarded_zero(pointer(pa), len as usize) })
}

/// Asks whether there is memory: reads and writes a word of each 4 KiB, less than which
/// no machine has or lacks.
///
/// # Errors
/// [`ExternalAbort`].
///
/// # Safety
/// As [`read`]; `pa` and `len` are multiples of 4 KiB, and nobody else writes there.
pub unsafe fn touch(pa: u64, len: u64) -> Result<()> {
    let begin = pointer::<u8>(pa) as u64;
    // SAFETY: the caller's promise.
    outcome(unsafe { routines::guarded_touch(begin, begin + len) })
}

/// Reads a 32-bit register.
///
/// # Errors
/// [`ExternalAbort`]: no device answers there.
///
/// # Safety
/// `pa` is a multiple of 4, is reached by EL2, and reading it changes nothing
/// that anybody relies on.
pub unsafe fn read32(pa: u64) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the caller's promise.
    outcome(unsafe { routines::guarded_read32(pointer(pa), &raw mut value) })?;
    Ok(value)
}

/// Cleans and invalidates memory to the point of coherency, in lines of `line`
/// bytes. What answers with an external abort holds nothing to be cleaned.
///
/// # Safety
/// The range is mapped in EL2's own map.
pub unsafe fn clean_invalidate(pa: u64, len: u64, line: u64) {
    let start = pointer::<u8>(pa) as u64;
    let first = start & !(line - 1);
    // SAFETY: the caller's promise; the instruction changes no content.
    let _ = unsafe { routines::guarded_clean(first, start + len, line) };
}

/// What an address of EL1&0 is looked up for. asm.S has the numbers too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Look {
    /// Stage 1, to read from EL1 (`at s1e1r`).
    El1Read = 0,
    /// Stage 1, to write from EL1 (`at s1e1w`).
    El1Write = 1,
    /// Stage 1, to read from EL0 (`at s1e0r`).
    El0Read = 2,
    /// Stage 1, to write from EL0 (`at s1e0w`).
    El0Write = 3,
    /// Both stages, to read from EL1 (`at s12e1r`).
    BothEl1Read = 4,
}

/// What the CPU holds of the exception that EL2 has taken last. An abort in a guarded
/// routine is one too, and writes over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// HPFAR_EL2.
    pub hpfar: u64,
    /// ELR_EL2.
    pub elr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
}

impl Taken {
    /// What it holds now.
    #[inline(always)]
    pub fn get() -> Self {
        Self {
            esr: ESR_EL2.get(),
            far: FAR_EL2.get(),
            hpfar: HPFAR_EL2.get(),
            elr: ELR_EL2.get(),
            spsr: SPSR_EL2.get(),
        }
    }

    /// Puts it back.
    #[cold]
    pub fn restore(&self) {
        ESR_EL2.set(self.esr);
        FAR_EL2.set(self.far);
        HPFAR_EL2.set(self.hpfar);
        ELR_EL2.set(self.elr);
        SPSR_EL2.set(self.spsr);
    }
}

/// Whether both stages lead somewhere for a read of `address` by the current EL1.
/// PAR_EL1 changes; what is `taken` does not. As little as can be: it is asked for
/// each byte of a console.
#[inline(always)]
pub fn is_there(address: u64, taken: &Taken) -> bool {
    /// What the routine gives after an external abort: no PAR_EL1, in which bit 11 is
    /// set beside F.
    const ABORTED: u64 = 1;
    #[cfg(target_os = "none")]
    let par = {
        let mut par = address;
        // SAFETY: reads a lower level's tables through its own translation; the
        // routine changes these registers alone.
        unsafe {
            core::arch::asm!(
                "mov {link}, x30", "bl guarded_is_there", "mov x30, {link}",
                link = out(reg) _, inout("x0") par, out("x3") _, out("x4") _,
                options(nostack)
            );
        }
        par
    };
    #[cfg(not(target_os = "none"))]
    let par = {
        let mut par = ABORTED;
        // SAFETY: writes `par`.
        unsafe { routines::guarded_translate(address, &raw mut par, Look::BothEl1Read as u64) };
        par
    };
    if par & 1 == 0 {
        return true;
    }
    if par == ABORTED {
        taken.restore();
    }
    false
}

/// PAR_EL1 of a translation of `address` by the current EL1's own tables. The
/// register holds it too.
///
/// # Errors
/// [`ExternalAbort`] when the walk met one, which the register does not show. What EL2
/// has taken last is as before all the same.
pub fn translate(address: u64, look: Look) -> Result<u64> {
    let (mut par, taken) = (0, Taken::get());
    // SAFETY: reads a lower level's tables through its own translation, and
    // writes `par`.
    let failed = unsafe { routines::guarded_translate(address, &raw mut par, look as u64) };
    outcome(failed).inspect_err(|_| taken.restore())?;
    Ok(par)
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use rmi::run::RecExit;

    use super::super::phys::fake;
    use super::super::region::Region;
    use super::*;

    /// `guarded_exit` takes some of its words to stand beside each other.
    #[test]
    fn an_exit_is_laid_out_as_its_routine_has_it() {
        macro_rules! beside {
            ($($field:ident)*) => {
                let places = [$(offset_of!(RecExit, $field)),*];
                assert!(places.is_sorted_by(|a, b| a + 8 == *b), "{places:x?}");
            };
        }
        beside!(esr far hpfar);
        beside!(gicv3_misr gicv3_vmcr);
        beside!(cntp_ctl cntp_cval cntv_ctl cntv_cval);
        beside!(ripas_base ripas_top ripas_value);
        beside!(elr spsr pmu_ovf_status);
        let behind_gprs = offset_of!(RecExit, gprs) + 256;
        assert_eq!(offset_of!(RecExit, gicv3_hcr), behind_gprs);
    }

    #[test]
    fn what_is_not_there_is_an_error_and_the_rest_is_not() {
        fake::install(0x10_0000, 0x1_0000);
        fake::make_hole(Region::new(0x10_2000, 0x1000).unwrap());
        // SAFETY: this test's memory.
        unsafe {
            assert_eq!(write(0x10_1000, &0x1234_5678_u64), Ok(()));
            assert_eq!(read::<u64>(0x10_1000), Ok(0x1234_5678));
            assert_eq!(read32(0x10_1000), Ok(0x1234_5678));
            assert_eq!(write_exit(0x10_1800, &[1; 8], &[2; 10]), Ok(()));
            assert_eq!(read(0x10_1a18), Ok([1u64, 0]));
            assert_eq!(zero(0x10_1000, 0x1000), Ok(()));
            assert_eq!(read(0x10_1a18), Ok([0u64, 0]));
            assert_eq!(zero(0x10_2000, 0x1000), Err(ExternalAbort));
            assert_eq!(read::<u64>(0x10_2000), Err(ExternalAbort));
            assert_eq!(write(0x10_1ff8, &[0u64; 2]), Err(ExternalAbort));
            assert_eq!(write_exit(0x10_1a00, &[1; 8], &[2; 10]), Err(ExternalAbort));
            assert_eq!(read32(0x10_2ffc), Err(ExternalAbort));
            assert_eq!(read::<u64>(0x10_3000), Ok(0));
        }
    }

    #[test]
    fn whole_lines_are_cleaned() {
        fake::install(0x10_0000, 0x1_0000);
        fake::cleaned();
        // SAFETY: this test's memory.
        unsafe { clean_invalidate(0x10_0079, 8, 64) };
        assert_eq!(fake::cleaned(), [Region::new(0x10_0040, 0x41).unwrap()]);
    }
}

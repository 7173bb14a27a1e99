//! Bytes in bulk: a guest's memory is filled by what a CPU does fastest.

use arm64::regs::DCZID_EL0;

/// Whether so many bytes are copied or filled by this CPU's instruction for it
/// (FEAT_MOPS). CPUs may differ, and EL2 answers for each: a few bytes are not worth that.
#[cfg(target_os = "none")]
fn by_mops(bytes: usize) -> bool {
    use arm64::regs::ID_AA64ISAR2_EL1;

    bytes >= 4096 && ID_AA64ISAR2_EL1.is_set(ID_AA64ISAR2_EL1::MOPS)
}

/// Copies `lines` times 64 bytes, by what the CPU has for that, else with paired loads and
/// stores.
///
/// # Safety
/// `from` is readable and `to` writable for `lines * 64` bytes; they do not
/// overlap.
pub unsafe fn copy_lines(to: *mut u8, from: *const u8, lines: usize) {
    #[cfg(target_os = "none")]
    if by_mops(lines * 64) {
        // SAFETY: The caller's contract.
        unsafe {
            core::arch::asm!(
                ".arch_extension mops",
                "cpyfp [{to}]!, [{from}]!, {n}!",
                "cpyfm [{to}]!, [{from}]!, {n}!",
                "cpyfe [{to}]!, [{from}]!, {n}!",
                to = inout(reg) to => _, from = inout(reg) from => _,
                n = inout(reg) lines * 64 => _,
                options(nostack),
            );
        }
    } else if lines > 0 {
        // SAFETY: The caller's contract. Normal memory takes unaligned pairs.
        unsafe {
            core::arch::asm!(
                "2:",
                "ldp {a}, {b}, [{from}], #16",
                "ldp {c}, {d}, [{from}], #16",
                "stp {a}, {b}, [{to}], #16",
                "ldp {a}, {b}, [{from}], #16",
                "stp {c}, {d}, [{to}], #16",
                "ldp {c}, {d}, [{from}], #16",
                "stp {a}, {b}, [{to}], #16",
                "subs {n}, {n}, #1",
                "stp {c}, {d}, [{to}], #16",
                "b.ne 2b",
                to = inout(reg) to => _, from = inout(reg) from => _,
                n = inout(reg) lines => _,
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                options(nostack),
            );
        }
    }
    #[cfg(not(target_os = "none"))]
    // SAFETY: The caller's contract.
    unsafe {
        core::ptr::copy_nonoverlapping(from, to, lines * 64);
    }
}

/// Fills `size` bytes with zeroes, by what the CPU has for that, else by `dc zva` where it
/// is allowed and whole blocks of it are inside.
///
/// # Safety
/// `to` is writable for `size` bytes of Normal memory.
pub unsafe fn zero_bytes(to: *mut u8, size: usize) {
    #[cfg(target_os = "none")]
    if by_mops(size) {
        // SAFETY: The caller's contract.
        unsafe {
            core::arch::asm!(
                ".arch_extension mops",
                "setp [{to}]!, {n}!, xzr",
                "setm [{to}]!, {n}!, xzr",
                "sete [{to}]!, {n}!, xzr",
                to = inout(reg) to => _, n = inout(reg) size => _,
                options(nostack),
            );
        }
        return;
    }
    let block = 4usize << DCZID_EL0.read(DCZID_EL0::BS);
    let head = to.addr().next_multiple_of(block) - to.addr();
    let blocks = size.saturating_sub(head) / block;
    if DCZID_EL0.is_set(DCZID_EL0::DZP) || blocks == 0 || cfg!(not(target_os = "none")) {
        // SAFETY: The caller's contract.
        unsafe { core::ptr::write_bytes(to, 0, size) };
        return;
    }
    // SAFETY: The caller's contract; `head` and `blocks` stay inside.
    unsafe {
        core::ptr::write_bytes(to, 0, head);
        let from = zero_blocks(to.add(head), block, blocks);
        core::ptr::write_bytes(from, 0, size - head - blocks * block);
    }
}

/// Zeroes `blocks` blocks of `dc zva`; what is behind them.
///
/// # Safety
/// `to` is aligned to a block, and writable for all of them.
unsafe fn zero_blocks(to: *mut u8, block: usize, blocks: usize) -> *mut u8 {
    let mut at = to;
    #[cfg(target_os = "none")]
    // SAFETY: The caller's contract.
    unsafe {
        core::arch::asm!(
            "b 3f",
            "2:",
            ".rept 8",
            "dc zva, {at}",
            "add {at}, {at}, {block}",
            ".endr",
            "3:",
            "subs {eights}, {eights}, #1",
            "b.pl 2b",
            "b 5f",
            "4:",
            "dc zva, {at}",
            "add {at}, {at}, {block}",
            "5:",
            "subs {rest}, {rest}, #1",
            "b.pl 4b",
            at = inout(reg) at, block = in(reg) block,
            eights = inout(reg) blocks / 8 => _, rest = inout(reg) blocks % 8 => _,
            options(nostack),
        );
    }
    #[cfg(not(target_os = "none"))]
    {
        at = at.wrapping_add(block * blocks);
    }
    at
}

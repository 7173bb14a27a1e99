//! A first process whose first instruction ends a count, made by hand: a
//! static ELF program of a few instructions, linked at an address where no
//! kernel and no hypervisor executes.

use crate::guests::initrd;

/// Where it begins. Above 4 GiB, so that no identity map reaches it, and on a
/// 64 KiB boundary for every page size.
pub const START: u64 = 0x12_3456_0000;

/// Linux's `reboot` (`include/uapi/linux/reboot.h`) and its system call.
const MAGIC1: u64 = 0xfee1_dead;
const MAGIC2: u64 = 0x2812_1969;
const POWER_OFF: u64 = 0x4321_fedc;
const REBOOT: u64 = 142;

const EHDR_LEN: u16 = 64;
const PHDR_LEN: u16 = 56;

/// The initial RAM disk that holds it.
///
/// # Errors
/// None in practice.
pub fn ramdisk() -> anyhow::Result<Vec<u8>> {
    initrd::of_program(&program())
}

/// The program: powers the machine off.
fn program() -> Vec<u8> {
    let code: Vec<u32> = [(0, MAGIC1), (1, MAGIC2), (2, POWER_OFF), (8, REBOOT)]
        .into_iter()
        .flat_map(|(register, value)| {
            let (low, high) = (value as u32 & 0xffff, (value >> 16) as u32 & 0xffff);
            // movz x<register>, #low; movk x<register>, #high, lsl #16
            [
                0xd280_0000 | low << 5 | register,
                0xf2a0_0000 | high << 5 | register,
            ]
        })
        // svc #0; b .
        .chain([0xd400_0001, 0x1400_0000])
        .collect();
    let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    let offset = u64::from(EHDR_LEN + PHDR_LEN);
    let length = offset + code.len() as u64;

    let mut elf = Vec::new();
    // ELF64, little-endian, version 1.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_AARCH64.
    elf.extend([2u16, 183].iter().flat_map(|h| h.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [START + offset, u64::from(EHDR_LEN), 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [EHDR_LEN, PHDR_LEN, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // PT_LOAD, read and execute.
    elf.extend([1u32, 5].iter().flat_map(|w| w.to_le_bytes()));
    for word in [0, START, START, length, length, 0x1_0000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// The address of its first instruction.
pub const fn entry() -> u64 {
    START + (EHDR_LEN + PHDR_LEN) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object, ObjectSegment};

    #[test]
    fn it_is_a_program_that_starts_where_it_says() {
        let elf = program();
        let file = object::File::parse(&*elf).expect("an ELF file");
        assert_eq!(file.entry(), entry());
        let segment = file.segments().next().expect("a segment");
        assert_eq!(segment.address(), START);
        assert_eq!(segment.data().expect("data"), elf);
        // movz x0, #0xdead
        let at = usize::from(EHDR_LEN + PHDR_LEN);
        assert_eq!(elf[at..at + 4], 0xd29b_d5a0u32.to_le_bytes());
    }
}

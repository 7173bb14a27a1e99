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
    initrd::of_program(&elf(&power_off()))
}

/// Bytes of a line that [`writer`] writes, as they come out: the terminal puts a
/// carriage return before the newline.
pub const LINE: u64 = 65;

/// The initial RAM disk of a program that sleeps for so many seconds, writes so many
/// lines (below 65536) to its standard output, waits until they have left, and
/// powers off; and the address where it does the last.
///
/// # Errors
/// None in practice.
pub fn writer(seconds: u64, lines: u16) -> anyhow::Result<(Vec<u8>, u64)> {
    let (nanosleep, write, ioctl, drain) = (101, 64, 29, 0x5409);
    let text = b"0123456789abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ\n";
    let mut code = vec![
        ADR, // the time, to x0
        movz(1, 0),
        movz(8, nanosleep),
        SVC,
        movz(19, lines),
        0xb400_0013 | 8 << 5, // cbz x19, behind the loop
        movz(0, 1),
        ADR | 1, // the text, to x1
        movz(2, text.len() as u16),
        movz(8, write),
        SVC,
        0xd100_0673,                                // sub x19, x19, #1
        0x1400_0000 | (-7i32 as u32 & 0x03ff_ffff), // b to the cbz
        movz(0, 1),
        movz(1, drain),
        movz(2, 1),
        movz(8, ioctl),
        SVC,
    ];
    let end = entry() + 4 * code.len() as u64;
    code.extend(power_off());
    for (at, data) in [(0, code.len()), (7, code.len() + 4)] {
        code[at] |= ((data - at) as u32) << 5;
    }
    let time = [seconds, 0].map(u64::to_le_bytes);
    let data = time.as_flattened().iter().chain(text).copied();
    let data: Vec<u8> = data.collect();
    let words = data.as_chunks::<4>().0.iter();
    code.extend(words.map(|word| u32::from_le_bytes(*word)));
    Ok((initrd::of_program(&elf(&code))?, end))
}

/// `adr x0, .`; bits from 5 up count words from here.
const ADR: u32 = 0x1000_0000;
const SVC: u32 = 0xd400_0001;

/// `movz x<register>, #value`.
const fn movz(register: u32, value: u16) -> u32 {
    0xd280_0000 | (value as u32) << 5 | register
}

/// The code that powers the machine off.
fn power_off() -> Vec<u32> {
    [(0, MAGIC1), (1, MAGIC2), (2, POWER_OFF), (8, REBOOT)]
        .into_iter()
        .flat_map(|(register, value)| {
            let high = (value >> 16) as u32 & 0xffff;
            // movk x<register>, #high, lsl #16
            [
                movz(register, value as u16),
                0xf2a0_0000 | high << 5 | register,
            ]
        })
        // b .
        .chain([SVC, 0x1400_0000])
        .collect()
}

/// A program of this code.
fn elf(code: &[u32]) -> Vec<u8> {
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
        let elf = elf(&power_off());
        let file = object::File::parse(&*elf).expect("an ELF file");
        assert_eq!(file.entry(), entry());
        let segment = file.segments().next().expect("a segment");
        assert_eq!(segment.address(), START);
        assert_eq!(segment.data().expect("data"), elf);
        // movz x0, #0xdead
        let at = usize::from(EHDR_LEN + PHDR_LEN);
        assert_eq!(elf[at..at + 4], 0xd29b_d5a0u32.to_le_bytes());
    }

    #[test]
    fn movz_is_what_an_assembler_makes_of_it() {
        assert_eq!(movz(0, 0xdead), 0xd29b_d5a0);
        assert_eq!(movz(19, 1600), 0xd280_c813);
    }
}

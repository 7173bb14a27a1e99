//! A program as memory holds it: the loadable segments of an ELF file, one
//! flat binary from address 0 to the end of its bss.

use anyhow::{Context, Result, bail, ensure};
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// More than this is not one of our programs.
const LARGEST: u64 = 256 << 20;

/// Lays out a position independent program that is linked at address 0.
///
/// # Errors
/// When the file is not such a program for 64-bit Arm.
pub fn binary(data: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(data).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    ensure!(
        header.e_machine(endian) == elf::EM_AARCH64,
        "not a program for 64-bit Arm"
    );
    let mut flat = Vec::new();
    let mut lowest = None;
    for segment in header.program_headers(endian, data)? {
        let (size, start) = (segment.p_memsz(endian), segment.p_vaddr(endian));
        if segment.p_type(endian) != PT_LOAD || size == 0 {
            continue;
        }
        let end = start.checked_add(size).filter(|end| *end <= LARGEST);
        let Some(end) = end else {
            bail!("linked at {start:#x}: a program of ours is linked at address 0");
        };
        lowest = Some(lowest.unwrap_or(start).min(start));
        if flat.len() < end as usize {
            flat.resize(end as usize, 0);
        }
        let bytes = segment
            .data(endian, data)
            .ok()
            .filter(|bytes| bytes.len() as u64 <= size)
            .context("a segment lies outside the file")?;
        flat[start as usize..start as usize + bytes.len()].copy_from_slice(bytes);
    }
    match lowest {
        None => bail!("nothing to load"),
        Some(0) => Ok(flat),
        Some(start) => bail!("linked at {start:#x}: a program of ours is linked at address 0"),
    }
}

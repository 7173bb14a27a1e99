//! ELF files: loaded at their physical addresses, as they stream by.
//!
//! Headers must stand in the first 4 KiB, as every linker puts them.

use super::stream::Stream;
use super::{GuestMemory, HEAD, ImageError, Kind, Placed, check};
use crate::pace::{PIECE, Pace};
use alloc::vec::Vec;
use core::ops::Range;
use elf::abi::{EM_AARCH64, ET_DYN, ET_EXEC, PT_LOAD};
use elf::endian::{AnyEndian, EndianParse};
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};

/// It starts as an ELF file.
pub fn is(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Bytes of a 64-bit file header.
const FILE_HEADER: usize = 64;
/// Bytes of a program header, `e_phentsize`.
const PROGRAM_HEADER: usize = 56;

struct Segment {
    /// Bytes of the file.
    file: Range<u64>,
    /// Where they go.
    ipa: u64,
    /// Bytes that are zero behind them.
    zeroes: u64,
}

/// Places all PT_LOAD segments. The entry is the physical address of `e_entry`.
pub async fn load(
    stream: &mut Stream<'_>,
    memory: &mut impl GuestMemory,
    pace: &Pace,
) -> Result<Placed, ImageError> {
    let (segments, entry, range) = layout(stream.head(HEAD)?, memory)?;
    let mut at = 0u64;
    loop {
        let chunk = stream.chunk()?;
        if chunk.is_empty() {
            break;
        }
        let here = at..at + chunk.len() as u64;
        for segment in &segments {
            let from = segment.file.start.max(here.start);
            let to = segment.file.end.min(here.end);
            if from < to {
                memory.write(
                    segment.ipa + (from - segment.file.start),
                    &chunk[(from - at) as usize..(to - at) as usize],
                );
            }
        }
        at = here.end;
        pace.step().await;
    }
    for segment in &segments {
        if segment.file.end > at {
            return Err(ImageError::Corrupt("an ELF segment is cut off"));
        }
        let mut from = segment.ipa + (segment.file.end - segment.file.start);
        let end = from + segment.zeroes;
        while from < end {
            let piece = (end - from).min(PIECE);
            memory.zero(from, piece);
            from += piece;
            pace.step().await;
        }
    }
    Ok(Placed {
        kind: Kind::Elf,
        range,
        entry,
    })
}

type Layout = (Vec<Segment>, u64, Range<u64>);

/// The file's entry, and its segments, of whatever kind.
fn headers(head: &[u8]) -> Result<(u64, SegmentTable<'_, AnyEndian>), ImageError> {
    let corrupt = |_| ImageError::Corrupt("ELF header");
    let cut = ImageError::Corrupt("ELF headers are cut off");
    // The parser indexes the first bytes without asking.
    if head.len() < FILE_HEADER {
        return Err(cut);
    }
    let ident = parse_ident::<AnyEndian>(head).map_err(corrupt)?;
    let (endian, class) = (ident.0, ident.1);
    if class != Class::ELF64 {
        return Err(ImageError::Unsupported(
            "an ELF file that is not 64 bits wide",
        ));
    }
    if !endian.is_little() {
        return Err(ImageError::Unsupported("a big-endian ELF file"));
    }
    let header = FileHeader::parse_tail(ident, &head[16..]).map_err(corrupt)?;
    if header.e_machine != EM_AARCH64 {
        return Err(ImageError::Unsupported("an ELF file that is not for arm64"));
    }
    if !matches!(header.e_type, ET_EXEC | ET_DYN) {
        return Err(ImageError::Unsupported(
            "an ELF file that is not executable",
        ));
    }
    if usize::from(header.e_phentsize) != PROGRAM_HEADER {
        return Err(ImageError::Corrupt("ELF header"));
    }
    let table = usize::try_from(header.e_phoff)
        .ok()
        .and_then(|at| {
            let end = at.checked_add(usize::from(header.e_phnum) * PROGRAM_HEADER)?;
            head.get(at..end)
        })
        .ok_or(cut)?;
    Ok((header.e_entry, SegmentTable::new(endian, class, table)))
}

fn layout(head: &[u8], memory: &impl GuestMemory) -> Result<Layout, ImageError> {
    let (e_entry, table) = headers(head)?;
    let mut segments: Vec<Segment> = Vec::new();
    // By the virtual addresses, or, as of kernels that begin without an MMU, by the others.
    let (mut entry, mut physical) = (None, None);
    let mut range: Option<Range<u64>> = None;
    for segment in table.iter() {
        let ProgramHeader {
            p_type,
            p_offset: start,
            p_vaddr,
            p_paddr,
            p_filesz: file_size,
            p_memsz: size,
            ..
        } = segment;
        if p_type != PT_LOAD || size == 0 {
            continue;
        }
        let zeroes = size
            .checked_sub(file_size)
            .ok_or(ImageError::Corrupt("an ELF segment bigger than its memory"))?;
        let end = start
            .checked_add(file_size)
            .ok_or(ImageError::Corrupt("an ELF segment past the file"))?;
        let place = check(memory, p_paddr, size)?;
        let inside = e_entry.wrapping_sub(p_vaddr);
        if inside < size {
            entry = Some(place.start + inside);
        } else if place.contains(&e_entry) {
            physical = Some(e_entry);
        }
        if segments.iter().any(|s| {
            let other = s.ipa + (s.file.end - s.file.start) + s.zeroes;
            s.ipa < place.end && place.start < other
        }) {
            return Err(ImageError::Corrupt("two ELF segments collide"));
        }
        range = Some(match range {
            None => place.clone(),
            Some(r) => r.start.min(place.start)..r.end.max(place.end),
        });
        segments.push(Segment {
            file: start..end,
            ipa: place.start,
            zeroes,
        });
    }
    let range = range.ok_or(ImageError::Corrupt("an ELF file with nothing to load"))?;
    let entry = entry
        .or(physical)
        .ok_or(ImageError::Corrupt("an ELF entry outside its segments"))?;
    if !entry.is_multiple_of(4) {
        return Err(ImageError::Corrupt("an ELF entry that is no instruction"));
    }
    Ok((segments, entry, range))
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::super::RawPlace;
    use super::super::tests::{Ram, gzip, load};
    use super::*;
    use std::vec;

    /// An ELF file with segments (physical address, bytes, memory size), at
    /// virtual addresses 2^40 above.
    pub(crate) fn elf(segments: &[(u64, &[u8], u64)], entry: u64) -> Vec<u8> {
        let high = 1u64 << 40;
        let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        out.extend(2u16.to_le_bytes());
        out.extend(183u16.to_le_bytes());
        out.extend(1u32.to_le_bytes());
        out.extend((entry + high).to_le_bytes());
        out.extend(64u64.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 0, 0, 0] {
            out.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 56 * segments.len() as u64;
        for (address, bytes, size) in segments {
            out.extend(1u32.to_le_bytes());
            out.extend(5u32.to_le_bytes());
            for word in [
                offset,
                address + high,
                *address,
                bytes.len() as u64,
                *size,
                1,
            ] {
                out.extend(word.to_le_bytes());
            }
            offset += bytes.len() as u64;
        }
        for (_, bytes, _) in segments {
            out.extend(*bytes);
        }
        out
    }

    #[test]
    fn segments_go_to_their_physical_addresses() {
        let file = elf(
            &[(0x4000_0000, b"text", 4), (0x4010_0000, b"data", 12)],
            0x4000_0000,
        );
        for file in [file.clone(), gzip(&file)] {
            let mut ram = Ram::new(4 << 20);
            let placed = load(&file, RawPlace::default(), &mut ram).unwrap();
            assert_eq!(placed.kind, Kind::Elf);
            assert_eq!(placed.entry, 0x4000_0000);
            assert_eq!(placed.range, 0x4000_0000..0x4010_000c);
            assert_eq!(ram.at(0x4000_0000, 5), b"text\xaa");
            assert_eq!(ram.at(0x4010_0000, 13), b"data\0\0\0\0\0\0\0\0\xaa");
        }
    }

    #[test]
    fn files_that_cannot_run_say_why() {
        let mut ram = Ram::new(4 << 20);
        let mut fail = |file: &[u8]| load(file, RawPlace::default(), &mut ram).unwrap_err();
        let good = elf(&[(0x4000_0000, b"text", 4)], 0x4000_0000);
        assert!(matches!(
            fail(&good[..good.len() - 1]),
            ImageError::Corrupt(_)
        ));
        assert!(matches!(
            fail(&elf(&[(0x1000, b"text", 4)], 0x1000)),
            ImageError::Below {
                start: 0x1000,
                ram: 0x4000_0000
            }
        ));
        assert!(matches!(
            fail(&elf(&[(0x5000_0000, b"text", 4)], 0x5000_0000)),
            ImageError::DoesNotFit(_)
        ));
        assert!(matches!(
            fail(&elf(&[(0x4000_0000, b"text", 4)], 0x4000_0008)),
            ImageError::Corrupt(_)
        ));
        assert_eq!(
            fail(&elf(
                &[(0x4000_0000, b"text", 4), (0x4000_0002, b"more", 4)],
                0x4000_0000
            )),
            ImageError::Corrupt("two ELF segments collide")
        );
        for short in [4, 5, 15, 16, 40, 63, 100] {
            let cut = fail(&good[..short]);
            assert!(matches!(cut, ImageError::Corrupt(_)), "{short}: {cut}");
        }
        let mut other = good;
        other[18] = 62;
        assert!(matches!(fail(&other), ImageError::Unsupported(_)));
    }

    /// As QEMU has it: of a kernel that begins without an MMU the entry is physical.
    #[test]
    fn an_entry_may_be_physical() {
        const BASE: u64 = 0x4000_0000;
        let mut ram = Ram::new(64 << 10);
        let mut file = elf(&[(BASE, b"code", 16)], 0);
        file[24..32].copy_from_slice(&(BASE + 4).to_le_bytes());
        let placed = load(&file, RawPlace::default(), &mut ram).expect("an ELF file");
        assert_eq!(placed.entry, BASE + 4);
        // Nor anywhere else.
        file[24..32].copy_from_slice(&(BASE + 16).to_le_bytes());
        let refused = load(&file, RawPlace::default(), &mut ram);
        assert!(
            matches!(refused, Err(ImageError::Corrupt(_))),
            "{refused:?}"
        );
    }
}

//! The literals of a block (RFC 8878, 3.1.1.3.1).

use super::huffman::Table;
use super::{BLOCK, CORRUPT};
use crate::image::ImageError;

/// Reads the section that `source` begins with: its literals, in `source` or in
/// `room`, and what is behind it.
pub fn read<'b>(
    source: &'b [u8],
    table: &mut Table,
    room: &'b mut [u8; BLOCK],
) -> Result<(&'b [u8], &'b [u8]), ImageError> {
    let first = *source.first().ok_or(CORRUPT)?;
    let format = u32::from(first >> 2 & 3);
    match first & 3 {
        kind @ (0 | 1) => {
            let (header, size) = match format {
                0 | 2 => (1, usize::from(first >> 3)),
                1 => (2, field(source, 2)? >> 4),
                _ => (3, field(source, 3)? >> 4),
            };
            let rest = &source[header..];
            if kind == 0 {
                return rest.split_at_checked(size).ok_or(CORRUPT);
            }
            let (&byte, rest) = rest.split_first().ok_or(CORRUPT)?;
            let out = room.get_mut(..size).ok_or(CORRUPT)?;
            out.fill(byte);
            Ok((out, rest))
        }
        kind => {
            let (header, width) = match format {
                0 | 1 => (3, 10),
                2 => (4, 14),
                _ => (5, 18),
            };
            let fields = field(source, header)? >> 4;
            let mask = (1 << width) - 1;
            let (size, packed) = (fields & mask, fields >> width & mask);
            let (mut packed, rest) = source[header..].split_at_checked(packed).ok_or(CORRUPT)?;
            let out = room.get_mut(..size).ok_or(CORRUPT)?;
            if kind == 2 {
                let described = table.read(packed)?;
                packed = packed.get(described..).ok_or(CORRUPT)?;
            } else if table.is_empty() {
                return Err(CORRUPT);
            }
            if format == 0 {
                table.unpack(packed, out)?;
            } else {
                four(packed, table, out)?;
            }
            Ok((out, rest))
        }
    }
}

/// The first `count` bytes as a number, at most 5.
fn field(source: &[u8], count: usize) -> Result<usize, ImageError> {
    let bytes = source.get(..count).ok_or(CORRUPT)?;
    Ok((bytes.iter().rev()).fold(0, |value, &byte| value << 8 | usize::from(byte)))
}

/// Four streams, each of a quarter.
fn four(packed: &[u8], table: &Table, out: &mut [u8]) -> Result<(), ImageError> {
    let (jumps, mut streams) = packed.split_at_checked(6).ok_or(CORRUPT)?;
    let quarter = out.len().div_ceil(4);
    let mut out = out;
    for jump in jumps.as_chunks::<2>().0 {
        let size = usize::from(u16::from_le_bytes(*jump));
        let (stream, others) = streams.split_at_checked(size).ok_or(CORRUPT)?;
        let (now, later) = out.split_at_mut_checked(quarter).ok_or(CORRUPT)?;
        table.unpack(stream, now)?;
        (streams, out) = (others, later);
    }
    table.unpack(streams, out)
}

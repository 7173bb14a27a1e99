//! Zstandard (RFC 8878), one frame, in memory that its caller owns.
//!
//! A frame is unpacked block by block ([`Frame::block`]) into a ring that holds
//! what later blocks look back on. Nothing is allocated: [`Header::memory`] says
//! before the first block what the frame needs at most, and no content of a
//! frame needs more. A damaged frame is an error, never a panic.
//!
//! | module | holds |
//! |---|---|
//! | `bits` | bits of a slice, from its start or its end |
//! | `fse` | tables of finite state entropy |
//! | `huffman` | the code of literals |
//! | `literals` | a block's literals |
//! | `sequences` | how a block puts them together |
//! | `ring` | what has been unpacked last |

mod bits;
mod fse;
mod huffman;
mod literals;
mod ring;
mod sequences;

use super::ImageError;
use core::hash::Hasher;
use core::ops::Range;
use ring::{Cursor, Ring};
use twox_hash::XxHash64;

#[cfg(test)]
mod tests;

/// What a damaged frame is.
const CORRUPT: ImageError = ImageError::Corrupt("zstd data");

/// The most bytes of a block, packed or not.
pub const BLOCK: usize = 128 << 10;

/// The most that a frame may look back: what `zstd -22 --ultra` makes, with
/// which kernels are packed.
const WINDOW: u64 = 128 << 20;

/// A frame's first bytes.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// It starts as a frame.
pub fn is(file: &[u8]) -> bool {
    file.starts_with(&MAGIC)
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How far back a match may lie.
    window: usize,
    /// All bytes of the frame, where it says so.
    content: Option<u64>,
    /// A checksum follows the last block.
    checksum: bool,
}

impl Header {
    /// Reads the header that `file` begins with, and what is behind it.
    ///
    /// Errors are those of a frame that cannot be unpacked here, whatever there
    /// is of memory.
    pub fn parse(file: &[u8]) -> Result<(Self, &[u8]), ImageError> {
        const SHORT: ImageError = ImageError::Corrupt("zstd header");
        let mut rest = file.strip_prefix(&MAGIC).ok_or(SHORT)?;
        let mut take = |count: usize| -> Result<u64, ImageError> {
            let (field, behind) = rest.split_at_checked(count).ok_or(SHORT)?;
            rest = behind;
            Ok((field.iter().rev()).fold(0, |value, &byte| value << 8 | u64::from(byte)))
        };
        let descriptor = take(1)?;
        let single = descriptor & 1 << 5 != 0;
        if descriptor & 1 << 3 != 0 {
            return Err(SHORT);
        }
        let window = if single {
            None
        } else {
            let byte = take(1)?;
            let base = 1u64 << (10 + (byte >> 3));
            Some(base + base / 8 * (byte & 7))
        };
        if take([0, 1, 2, 4][(descriptor & 3) as usize])? != 0 {
            return Err(ImageError::Unsupported("a zstd frame with a dictionary"));
        }
        let content = match (descriptor >> 6, single) {
            (0, false) => None,
            (0, true) => Some(take(1)?),
            (1, _) => Some(take(2)? + 256),
            (2, _) => Some(take(4)?),
            _ => Some(take(8)?),
        };
        let window = window.or(content).unwrap_or(0);
        if window > WINDOW {
            return Err(ImageError::Unsupported("a zstd window above 128 MiB"));
        }
        let header = Self {
            window: window as usize,
            content,
            checksum: descriptor & 1 << 2 != 0,
        };
        Ok((header, rest))
    }

    /// Bytes of memory that unpacking takes, with `untaken` bytes that may wait
    /// while a block is added.
    pub fn memory(&self, untaken: usize) -> usize {
        // It cannot look back on more than there is.
        let back = (self.window as u64).min(self.content.unwrap_or(u64::MAX));
        BLOCK + untaken + back as usize + BLOCK
    }
}

/// What blocks hand on to later ones, besides bytes.
#[derive(Clone, Debug)]
pub struct Tables {
    huffman: huffman::Table,
    sequences: sequences::Tables,
}

impl Tables {
    /// Those of a frame's beginning.
    pub const fn new() -> Self {
        Self {
            huffman: huffman::Table::new(),
            sequences: sequences::Tables::new(),
        }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

/// A frame that is being unpacked.
pub struct Frame<'a> {
    header: Header,
    input: &'a [u8],
    cursor: Cursor,
    hash: XxHash64,
    /// The last block has been.
    ended: bool,
}

impl<'a> Frame<'a> {
    /// The frame that `file` is.
    pub fn new(file: &'a [u8], tables: &mut Tables) -> Result<Self, ImageError> {
        let (header, input) = Header::parse(file)?;
        tables.huffman.clear();
        tables.sequences.clear();
        Ok(Self {
            header,
            input,
            cursor: Cursor::default(),
            hash: XxHash64::with_seed(0),
            ended: false,
        })
    }

    /// Its header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// All of it has been unpacked, and its checksum agrees.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Unpacks a block into `memory`, at least [`Header::memory`] and the same at
    /// each call: the two parts of the memory that hold its bytes, in order.
    /// Bytes stay until as many more have been unpacked as `untaken` was.
    pub fn block(
        &mut self,
        tables: &mut Tables,
        memory: &mut [u8],
    ) -> Result<[Range<usize>; 2], ImageError> {
        let (room, bytes) = memory.split_first_chunk_mut::<BLOCK>().ok_or(CORRUPT)?;
        let (header, rest) = self.input.split_first_chunk::<3>().ok_or(CORRUPT)?;
        let header = u32::from_le_bytes([header[0], header[1], header[2], 0]);
        let (last, kind, size) = (header & 1 != 0, header >> 1 & 3, (header >> 3) as usize);
        // A block is no longer than what it could look back on.
        let most = self.header.window.min(BLOCK);
        let packed = if kind == 1 { 1 } else { size };
        let (data, rest) = rest.split_at_checked(packed).ok_or(CORRUPT)?;
        let begin = self.cursor;
        let mut ring = Ring::new(bytes, begin, self.header.window, most);
        match kind {
            0 => ring.push(data)?,
            1 => ring.fill(data[0], size)?,
            2 if size <= BLOCK => {
                let (literals, behind) = literals::read(data, &mut tables.huffman, room)?;
                tables.sequences.execute(behind, literals, &mut ring)?;
            }
            _ => return Err(CORRUPT),
        }
        self.cursor = ring.cursor();
        self.input = rest;
        let size = bytes.len();
        let count = (self.cursor.written - begin.written) as usize;
        let first = begin.at..(begin.at + count).min(size);
        let second = 0..count - first.len();
        if self.header.checksum {
            self.hash.write(&bytes[first.clone()]);
            self.hash.write(&bytes[second.clone()]);
        }
        if last {
            self.end()?;
        } else if self.too_long() {
            return Err(CORRUPT);
        }
        Ok([first, second].map(|part| part.start + BLOCK..part.end + BLOCK))
    }

    fn too_long(&self) -> bool {
        self.header.content.is_some_and(|c| self.cursor.written > c)
    }

    fn end(&mut self) -> Result<(), ImageError> {
        if (self.header.content).is_some_and(|content| content != self.cursor.written) {
            return Err(CORRUPT);
        }
        let mut rest = self.input;
        if self.header.checksum {
            let (sum, behind) = rest.split_first_chunk().ok_or(CORRUPT)?;
            if self.hash.finish() as u32 != u32::from_le_bytes(*sum) {
                return Err(ImageError::Corrupt("zstd checksum differs"));
            }
            rest = behind;
        }
        if is(rest) {
            return Err(ImageError::Unsupported("more than one zstd frame"));
        }
        self.ended = true;
        Ok(())
    }
}

//! The plain bytes of a file, whether it is packed or not, in chunks.
//!
//! [`Stream::chunk`] gives the next chunk; an empty one is the end, and only a
//! file that was whole and whose checksums agree comes to its end.
//!
//! All that unpacking takes is in [`Unpacker`], which is made once, for the
//! largest of all files: a kernel that was unpacked once can always be unpacked
//! again, whatever has become of the machine's memory.

use super::packed::Packed;
use super::{HEAD, ImageError, gzip, zboot, zstd};
use crate::pace::PIECE;
use alloc::boxed::Box;
use core::ops::Range;
use miniz_oxide::inflate::core::DecompressorOxide;

/// Memory and state of whatever unpacks; one file at a time.
pub struct Unpacker {
    inflate: Box<DecompressorOxide>,
    tables: Box<zstd::Tables>,
    memory: &'static mut [u8],
}

impl Unpacker {
    /// One that unpacks in `memory`, whose content does not matter.
    pub fn new(memory: &'static mut [u8]) -> Self {
        Self {
            inflate: Box::default(),
            tables: Box::default(),
            memory,
        }
    }

    /// Bytes of memory that unpacking the kernel `file` takes. A file that
    /// cannot be unpacked takes none; [`load`](super::load) says why it can't.
    pub fn memory_for(file: &[u8]) -> usize {
        let packed = zboot::payload(file).ok().flatten();
        match packed.unwrap_or_else(|| Packed::detect(file)) {
            Packed::Not(_) => 0,
            Packed::Gzip(_) => gzip::MEMORY,
            Packed::Zstd(frame) => {
                zstd::Header::parse(frame).map_or(0, |(header, _)| header.memory(HEAD))
            }
        }
    }
}

enum Source<'a> {
    Plain(&'a [u8]),
    Gzip(gzip::Member<'a>),
    Zstd(zstd::Frame<'a>),
}

/// The plain bytes of a file.
pub struct Stream<'a> {
    source: Source<'a>,
    unpacker: &'a mut Unpacker,
    /// Parts of the unpacker's memory whose bytes nobody has taken, in order.
    untaken: [Range<usize>; 2],
}

impl<'a> Stream<'a> {
    /// Unpacks `packed` in the unpacker's memory.
    ///
    /// Errors are those of a header, or that it takes more memory than that.
    pub fn new(packed: Packed<'a>, unpacker: &'a mut Unpacker) -> Result<Self, ImageError> {
        let (source, needs) = match packed {
            Packed::Not(file) => (Source::Plain(file), 0),
            Packed::Gzip(file) => {
                let member = gzip::Member::new(file, &mut unpacker.inflate)?;
                (Source::Gzip(member), gzip::MEMORY)
            }
            Packed::Zstd(file) => {
                let frame = zstd::Frame::new(file, &mut unpacker.tables)?;
                let needs = frame.header().memory(HEAD);
                (Source::Zstd(frame), needs)
            }
        };
        if needs > unpacker.memory.len() {
            return Err(ImageError::NoMemory(needs as u64));
        }
        Ok(Self {
            source,
            unpacker,
            untaken: [0..0, 0..0],
        })
    }

    /// Shows the first bytes, at least `want` (up to `HEAD`) unless the file is
    /// shorter, without taking them. To be asked for before the first chunk.
    pub fn head(&mut self, want: usize) -> Result<&[u8], ImageError> {
        if let Source::Plain(rest) = &self.source {
            return Ok(rest.get(..want).unwrap_or(rest));
        }
        let mut all = self.untaken[0].clone();
        while all.len() < want {
            // The memory has room for as much without beginning anew.
            let [some, _] = self.step()?;
            if some.is_empty() {
                break;
            }
            if all.is_empty() {
                all.start = some.start;
            }
            all.end = some.end;
            self.untaken[0] = all.clone();
        }
        Ok(&self.unpacker.memory[all])
    }

    /// The bytes that are left, of a file that is not packed.
    pub fn left(&self) -> Option<u64> {
        match &self.source {
            Source::Plain(rest) => Some(rest.len() as u64),
            Source::Gzip(_) | Source::Zstd(_) => None,
        }
    }

    /// The next chunk; empty at the end.
    pub fn chunk(&mut self) -> Result<&[u8], ImageError> {
        if let Source::Plain(rest) = &mut self.source {
            let (chunk, later) = rest.split_at(rest.len().min(PIECE as usize));
            *rest = later;
            return Ok(chunk);
        }
        if self.untaken.iter().all(Range::is_empty) {
            self.untaken = self.step()?;
        }
        let next = usize::from(self.untaken[0].is_empty());
        let chunk = core::mem::replace(&mut self.untaken[next], 0..0);
        Ok(&self.unpacker.memory[chunk])
    }

    /// Unpacks until there is something, or no more.
    fn step(&mut self) -> Result<[Range<usize>; 2], ImageError> {
        let memory = &mut *self.unpacker.memory;
        let mut parts = [0..0, 0..0];
        match &mut self.source {
            Source::Plain(_) => {}
            Source::Gzip(member) => {
                while parts[0].is_empty() && !member.ended() {
                    parts[0] = member.step(&mut self.unpacker.inflate, memory)?;
                }
            }
            Source::Zstd(frame) => {
                while parts.iter().all(Range::is_empty) && !frame.ended() {
                    parts = frame.block(&mut self.unpacker.tables, memory)?;
                }
            }
        }
        Ok(parts)
    }
}

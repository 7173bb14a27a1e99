//! gzip (RFC 1952), one member, in memory that its caller owns.

use super::ImageError;
use core::ops::Range;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// Bytes of memory that unpacking takes; deflate looks back on half of them.
pub const MEMORY: usize = 64 << 10;

/// It starts as a member.
pub fn is(file: &[u8]) -> bool {
    file.starts_with(&[0x1f, 0x8b])
}

/// A member that is being unpacked.
pub struct Member<'a> {
    input: &'a [u8],
    at: usize,
    crc: crc32fast::Hasher,
    size: u32,
    ended: bool,
}

impl<'a> Member<'a> {
    /// The member that `file` is.
    pub fn new(file: &'a [u8], state: &mut DecompressorOxide) -> Result<Self, ImageError> {
        let corrupt = ImageError::Corrupt("gzip header");
        let flags = match file {
            [0x1f, 0x8b, 8, flags, ..] if flags & 0xe0 == 0 => *flags,
            _ => return Err(corrupt),
        };
        let mut rest = file.get(10..).ok_or(corrupt.clone())?;
        if flags & 4 != 0 {
            let [low, high, tail @ ..] = rest else {
                return Err(corrupt);
            };
            let extra = usize::from(u16::from_le_bytes([*low, *high]));
            rest = tail.get(extra..).ok_or(corrupt.clone())?;
        }
        for text in [8, 16] {
            if flags & text != 0 {
                let end = rest.iter().position(|&b| b == 0).ok_or(corrupt.clone())?;
                rest = &rest[end + 1..];
            }
        }
        if flags & 2 != 0 {
            rest = rest.get(2..).ok_or(corrupt)?;
        }
        state.init();
        Ok(Self {
            input: rest,
            at: 0,
            crc: crc32fast::Hasher::new(),
            size: 0,
            ended: false,
        })
    }

    /// All of it has been unpacked, and its checksum agrees.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Unpacks some more into `memory`, the same [`MEMORY`] bytes at each call:
    /// where it stands there.
    pub fn step(
        &mut self,
        state: &mut DecompressorOxide,
        memory: &mut [u8],
    ) -> Result<Range<usize>, ImageError> {
        let memory = memory.get_mut(..MEMORY).unwrap_or_default();
        if self.at == MEMORY {
            self.at = 0;
        }
        // All input is there; the flag keeps its end an error that has a name.
        let flags = TINFL_FLAG_HAS_MORE_INPUT;
        let (status, read, written) = decompress(state, self.input, memory, self.at, flags);
        self.input = &self.input[read..];
        let out = self.at..self.at + written;
        self.at = out.end;
        self.crc.update(&memory[out.clone()]);
        self.size = self.size.wrapping_add(written as u32);
        match status {
            TINFLStatus::Done => self.end()?,
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => {
                return Err(ImageError::Corrupt("gzip data is cut off"));
            }
            _ => return Err(ImageError::Corrupt("gzip data")),
        }
        Ok(out)
    }

    fn end(&mut self) -> Result<(), ImageError> {
        self.ended = true;
        let [a, b, c, d, e, f, g, h, ref rest @ ..] = *self.input else {
            return Err(ImageError::Corrupt("gzip data is cut off"));
        };
        let crc = core::mem::take(&mut self.crc).finalize();
        if crc != u32::from_le_bytes([a, b, c, d]) {
            return Err(ImageError::Corrupt("gzip checksum differs"));
        }
        if self.size != u32::from_le_bytes([e, f, g, h]) {
            return Err(ImageError::Corrupt("gzip size differs"));
        }
        // Other bytes may follow, as they do in a flash or behind a padded file.
        if is(rest) {
            return Err(ImageError::Unsupported("more than one gzip member"));
        }
        Ok(())
    }
}

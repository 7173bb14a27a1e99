//! The arm64 Image (Linux Documentation/arch/arm64/booting.rst).

use super::stream::Stream;
use super::{GuestMemory, ImageError, Kind, Placed, check, copy};
use crate::pace::Pace;

const MAGIC: &[u8; 4] = b"ARM\x64";
/// An Image starts at a multiple of this, plus its text offset.
const ALIGN: u64 = 2 << 20;
/// The text offset of Images from before the header said it (Linux < 3.17).
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
/// QEMU keeps its own first instructions at RAM's base, in so many bytes: an Image
/// that would begin in them stands 2 MiB higher.
const LOADER: u64 = 4 << 10;

/// The header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes from a 2 MiB boundary to the Image.
    pub text_offset: u64,
    /// Bytes it occupies in memory; 0 in very old ones.
    pub image_size: u64,
    /// Bit 0: big-endian.
    pub flags: u64,
}

impl Header {
    /// Reads the first 64 bytes; `None` when there is no magic.
    ///
    /// A big-endian kernel is refused: no vCPU here starts as one. So is one whose
    /// first instruction would be misaligned.
    pub fn parse(head: &[u8]) -> Result<Option<Self>, ImageError> {
        if head.get(0x38..0x3c) != Some(MAGIC) {
            return Ok(None);
        }
        let word = |at: usize| {
            head[at..at + 8]
                .iter()
                .rev()
                .fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        let header = Self {
            text_offset: word(8),
            image_size: word(16),
            flags: word(24),
        };
        if header.flags & 1 != 0 {
            return Err(ImageError::Unsupported("a big-endian kernel"));
        }
        if header.image_size != 0 && !header.text_offset.is_multiple_of(4) {
            return Err(ImageError::Corrupt("an Image at no instruction's address"));
        }
        Ok(Some(header))
    }
}

/// Places an Image where the boot protocol and QEMU have it: at its text offset
/// from RAM's base, or one step above that.
pub async fn load(
    header: Header,
    stream: &mut Stream<'_>,
    memory: &mut impl GuestMemory,
    pace: &Pace,
) -> Result<Placed, ImageError> {
    let text_offset = if header.image_size == 0 {
        OLD_TEXT_OFFSET
    } else {
        header.text_offset
    };
    let step = if text_offset < LOADER { ALIGN } else { 0 };
    let base = memory.range().start.next_multiple_of(ALIGN) + step;
    let start = base
        .checked_add(text_offset)
        .ok_or(ImageError::Corrupt("an Image at no address"))?;
    // Before a byte is written, so that the message tells the whole need.
    let whole = check(memory, start, header.image_size)?;
    let size = copy(stream, start, memory, pace).await?;
    Ok(Placed {
        kind: Kind::Image,
        range: start..whole.end.max(start + size),
        entry: start,
    })
}

//! The plain bytes of a file, whether it is packed or not, in chunks.
//!
//! [`Stream::chunk`] gives the next chunk; an empty one is the end, and only a
//! file that was whole and whose checksums agree comes to its end.

use super::ImageError;
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::io::Read;

/// Bytes of a chunk; deflate looks back 32 KiB in it.
const CHUNK: usize = 64 << 10;

/// The most that a zstd frame may look back: what `zstd -22 --ultra` makes, with
/// which kernels are packed.
const ZSTD_WINDOW: u64 = 128 << 20;

enum Source<'a> {
    Plain(&'a [u8]),
    Gzip(Box<Gzip<'a>>),
    Zstd(Box<Zstd<'a>>),
}

/// The plain bytes of a file.
pub struct Stream<'a> {
    source: Source<'a>,
    /// Bytes seen by `head` and not yet taken.
    head: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> Stream<'a> {
    /// Unpacks what its magic says is packed; anything else is plain.
    pub fn detect(file: &'a [u8]) -> Result<Self, ImageError> {
        if file.starts_with(&[0x1f, 0x8b]) {
            Self::gzip(file)
        } else if file.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            Self::zstd(file)
        } else {
            Ok(Self::with(Source::Plain(file)))
        }
    }

    /// Unpacks gzip (RFC 1952), one member.
    pub fn gzip(file: &'a [u8]) -> Result<Self, ImageError> {
        Ok(Self::with(Source::Gzip(Box::new(Gzip::new(file)?))))
    }

    /// Unpacks zstd (RFC 8878), one frame.
    pub fn zstd(file: &'a [u8]) -> Result<Self, ImageError> {
        Ok(Self::with(Source::Zstd(Box::new(Zstd::new(file)?))))
    }

    fn with(source: Source<'a>) -> Self {
        Self {
            source,
            head: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Shows the first bytes, at least `want` unless the file is shorter,
    /// without taking them.
    pub fn head(&mut self, want: usize) -> Result<&[u8], ImageError> {
        if let Source::Plain(rest) = &self.source {
            return Ok(rest.get(..want).unwrap_or(rest));
        }
        while self.head.len() < want {
            let chunk = Self::fetch(&mut self.source, &mut self.buffer)?;
            if chunk.is_empty() {
                break;
            }
            self.head.extend_from_slice(chunk);
        }
        Ok(&self.head)
    }

    /// The next chunk; empty at the end.
    pub fn chunk(&mut self) -> Result<&[u8], ImageError> {
        if !self.head.is_empty() {
            self.buffer = core::mem::take(&mut self.head);
            return Ok(&self.buffer);
        }
        Self::fetch(&mut self.source, &mut self.buffer)
    }

    fn fetch<'b>(
        source: &'b mut Source<'a>,
        chunk: &'b mut Vec<u8>,
    ) -> Result<&'b [u8], ImageError> {
        match source {
            Source::Plain(rest) => Ok(core::mem::take(rest)),
            Source::Gzip(gzip) => gzip.chunk(),
            Source::Zstd(zstd) => {
                chunk.resize(CHUNK, 0);
                let size = zstd.read(chunk)?;
                Ok(&chunk[..size])
            }
        }
    }
}

struct Gzip<'a> {
    state: DecompressorOxide,
    input: &'a [u8],
    window: Vec<u8>,
    at: usize,
    crc: crc32fast::Hasher,
    size: u32,
    done: bool,
}

impl<'a> Gzip<'a> {
    fn new(file: &'a [u8]) -> Result<Self, ImageError> {
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
        Ok(Self {
            state: DecompressorOxide::new(),
            input: rest,
            window: vec![0; CHUNK],
            at: 0,
            crc: crc32fast::Hasher::new(),
            size: 0,
            done: false,
        })
    }

    fn chunk(&mut self) -> Result<&[u8], ImageError> {
        while !self.done {
            if self.at == CHUNK {
                self.at = 0;
            }
            let start = self.at;
            let (status, read, written) = decompress(
                &mut self.state,
                self.input,
                &mut self.window,
                start,
                // All input is there; the flag keeps its end an error we name.
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            self.input = &self.input[read..];
            self.at = start + written;
            let out = start..self.at;
            self.crc.update(&self.window[out.clone()]);
            self.size = self.size.wrapping_add(written as u32);
            match status {
                TINFLStatus::Done => self.finish()?,
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput | TINFLStatus::FailedCannotMakeProgress => {
                    return Err(ImageError::Corrupt("gzip data is cut off"));
                }
                _ => return Err(ImageError::Corrupt("gzip data")),
            }
            if written > 0 {
                return Ok(&self.window[out]);
            }
        }
        Ok(&[])
    }

    fn finish(&mut self) -> Result<(), ImageError> {
        self.done = true;
        let [a, b, c, d, e, f, g, h, ..] = *self.input else {
            return Err(ImageError::Corrupt("gzip data is cut off"));
        };
        let crc = core::mem::take(&mut self.crc).finalize();
        if crc != u32::from_le_bytes([a, b, c, d]) {
            return Err(ImageError::Corrupt("gzip checksum differs"));
        }
        if self.size != u32::from_le_bytes([e, f, g, h]) {
            return Err(ImageError::Corrupt("gzip size differs"));
        }
        Ok(())
    }
}

/// What a zstd frame looks back (RFC 8878, 3.1.1.1).
fn zstd_window(file: &[u8]) -> Option<u64> {
    let descriptor = *file.get(4)?;
    if descriptor & 1 << 5 == 0 {
        let byte = *file.get(5)?;
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * u64::from(byte & 7));
    }
    // A single segment: its content's size, behind the dictionary's number.
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let (size, bias) = match descriptor >> 6 {
        0 => (1, 0),
        1 => (2, 256),
        2 => (4, 0),
        _ => (8, 0),
    };
    let field = file.get(at..at + size)?;
    let value = (field.iter().rev()).fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    value.checked_add(bias)
}

struct Zstd<'a> {
    decoder: StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>,
}

impl<'a> Zstd<'a> {
    fn new(file: &'a [u8]) -> Result<Self, ImageError> {
        let window = zstd_window(file).ok_or(ImageError::Corrupt("zstd header"))?;
        if window > ZSTD_WINDOW {
            return Err(ImageError::Unsupported("a zstd window above 128 MiB"));
        }
        // The decoder's buffer grows by doubling, a little above the window; so
        // the allocator's blocks for its last two sizes must be there.
        let (mut last, mut before): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        let size = window.next_power_of_two() as usize;
        last.try_reserve_exact(2 * size)
            .and_then(|()| before.try_reserve_exact(size))
            .map_err(|_| ImageError::NoMemory(3 * size as u64))?;
        drop((last, before));
        let mut decoder = ruzstd::decoding::FrameDecoder::new();
        decoder.set_max_window_size(ZSTD_WINDOW);
        let decoder = StreamingDecoder::new_with_decoder(file, decoder)
            .map_err(|_| ImageError::Corrupt("zstd header"))?;
        Ok(Self { decoder })
    }

    fn read(&mut self, chunk: &mut [u8]) -> Result<usize, ImageError> {
        self.decoder
            .read(chunk)
            .map_err(|_| ImageError::Corrupt("zstd data"))
    }
}

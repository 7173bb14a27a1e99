//! What follows a flat binary in an image file: a payload and symbols.
//!
//! A header of 64 bytes stands at the binary's end, rounded up to 64 KiB.
//! Little-endian: magic `UCAPPEND`, `u32` version 1, `u32` length of the
//! header, then `u64` each: offset and length of the payload, offset and
//! length of the symbols, length of the whole, 0. Offsets count from the
//! header and are whole 4 KiB pages; an offset of 0 means there is none.

const MAGIC: &[u8; 8] = b"UCAPPEND";
const VERSION: u32 = 1;
const HEADER_LEN: u32 = 64;
const PAGE: usize = 4 << 10;

/// Where an appendix may begin, and the unit of an image's size: the largest
/// granule, so that no granule is shared by two owners.
pub const UNIT: usize = 64 << 10;

/// Appends `payload` and `symbols` to the flat binary `image`, and pads the
/// whole to [`UNIT`].
pub fn append(image: &mut Vec<u8>, payload: &[u8], symbols: &[u8]) {
    pad(image, UNIT);
    let start = image.len();
    image.resize(start + HEADER_LEN as usize, 0);
    let mut add = |part: &[u8]| -> [u64; 2] {
        if part.is_empty() {
            return [0, 0];
        }
        pad(image, PAGE);
        let offset = image.len() - start;
        image.extend(part);
        [offset as u64, part.len() as u64]
    };
    let payload = add(payload);
    let symbols = add(symbols);
    pad(image, UNIT);
    let total = (image.len() - start) as u64;

    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(HEADER_LEN.to_le_bytes());
    for word in payload.into_iter().chain(symbols).chain([total, 0]) {
        header.extend(word.to_le_bytes());
    }
    image[start..start + header.len()].copy_from_slice(&header);
}

/// The length of the payload in an image file, if it has an appendix.
pub fn payload_len(image: &[u8]) -> Option<u64> {
    let header = image.chunks(UNIT).find(|unit| unit.starts_with(MAGIC))?;
    let length = header.get(24..32)?;
    Some(u64::from_le_bytes(length.try_into().expect("8 bytes")))
}

fn pad(image: &mut Vec<u8>, unit: usize) {
    image.resize(image.len().next_multiple_of(unit), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_where_the_header_says() {
        let mut image = vec![7; 100];
        append(&mut image, b"payload", b"symbols");
        assert_eq!(image.len(), 2 * UNIT);
        let header = &image[UNIT..];
        assert_eq!(&header[..8], MAGIC);
        let word = |i: usize| {
            u64::from_le_bytes(header[16 + 8 * i..][..8].try_into().expect("8")) as usize
        };
        assert_eq!(&header[word(0)..][..word(1)], b"payload");
        assert_eq!(&header[word(2)..][..word(3)], b"symbols");
        assert_eq!([word(0) % PAGE, word(2) % PAGE], [0, 0]);
        assert_eq!(word(4), UNIT);
        assert_eq!(payload_len(&image), Some(7));
    }

    #[test]
    fn what_is_absent_has_offset_zero() {
        let mut image = Vec::new();
        append(&mut image, b"", b"s");
        assert_eq!(image[16..32], [0; 16]);
    }
}

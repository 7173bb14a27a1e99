//! Puts what crate [`appendix`] describes behind a flat binary: a payload and
//! symbols, in whole 4 KiB pages.

use ::appendix::{Header, MAGIC, Part};
use zerocopy::IntoBytes;

const PAGE: usize = 4 << 10;

/// Where an appendix may begin, and the unit of an image's size: the largest
/// granule, so that no granule is shared by two owners.
pub const UNIT: usize = 64 << 10;

/// Appends `payload` and `symbols` to the flat binary `image`, and pads the
/// whole to [`UNIT`].
pub fn append(image: &mut Vec<u8>, payload: &[u8], symbols: &[u8]) {
    pad(image, UNIT);
    let start = image.len();
    image.resize(start + Header::LEN, 0);
    let mut add = |part: &[u8]| {
        if part.is_empty() {
            return Part::default();
        }
        pad(image, PAGE);
        let offset = image.len() - start;
        image.extend(part);
        Part::new(offset as u64, part.len() as u64)
    };
    let payload = add(payload);
    let symbols = add(symbols);
    pad(image, UNIT);
    let total = (image.len() - start) as u64;

    let header = Header::new(payload, symbols, total);
    image[start..start + Header::LEN].copy_from_slice(header.as_bytes());
}

/// The length of the payload in an image file, if it has an appendix.
pub fn payload_len(image: &[u8]) -> Option<u64> {
    let header = image.chunks(UNIT).find(|unit| unit.starts_with(&MAGIC))?;
    Some(Header::read(header)?.payload().size())
}

fn pad(image: &mut Vec<u8>, unit: usize) {
    image.resize(image.len().next_multiple_of(unit), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::appendix::Appendix;

    #[test]
    fn parts_stand_where_the_reader_finds_them() {
        let mut image = vec![7; 100];
        append(&mut image, b"payload", b"symbols");
        assert_eq!(image.len(), 2 * UNIT);
        let read = Appendix::split(&image[UNIT..]).expect("one that was just made");
        assert_eq!(read.payload, b"payload");
        let at = read.payload.as_ptr().addr() - image.as_ptr().addr();
        assert!(at.is_multiple_of(PAGE));
        let header = Header::read(&image[UNIT..]).expect("as above");
        assert_eq!(header.total_len(), UNIT as u64);
        assert_eq!(payload_len(&image), Some(7));
    }

    #[test]
    fn what_is_absent_has_offset_zero() {
        let mut image = Vec::new();
        append(&mut image, b"", b"s");
        assert_eq!(image[16..32], [0; 16]);
    }
}

//! EFI zboot images: a PE stub with a packed Image inside (Linux
//! drivers/firmware/efi/libstub/zboot-header.S).

use super::ImageError;
use super::packed::Packed;

fn word(file: &[u8], at: usize) -> Option<usize> {
    let bytes = file.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(bytes) as usize)
}

/// The packed Image inside; `None` when the file is no zboot image.
///
/// Bytes 4 to 7 are `zimg`, then payload offset and size, and at 24 the name of
/// the packing, ended by a zero byte.
pub fn payload(file: &[u8]) -> Result<Option<Packed<'_>>, ImageError> {
    if !file.starts_with(b"MZ") || file.get(4..8) != Some(b"zimg") {
        return Ok(None);
    }
    let corrupt = ImageError::Corrupt("zboot header");
    let (Some(offset), Some(size), Some(name)) = (word(file, 8), word(file, 12), file.get(24..56))
    else {
        return Err(corrupt);
    };
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let payload = offset
        .checked_add(size)
        .and_then(|end| file.get(offset..end))
        .ok_or(ImageError::Corrupt("the zboot payload is cut off"))?;
    match &name[..end] {
        b"gzip" => Ok(Some(Packed::Gzip(payload))),
        b"zstd" | b"zstd22" => Ok(Some(Packed::Zstd(payload))),
        _ => Err(ImageError::Unsupported(
            "a zboot image packed with something else than gzip or zstd",
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::super::tests::{Ram, gzip, image, load};
    use super::super::{Kind, RawPlace};
    use super::*;
    use std::vec;
    use std::vec::Vec;

    pub(crate) fn zboot(payload: &[u8], name: &[u8]) -> Vec<u8> {
        let mut out = vec![0; 64];
        out[..8].copy_from_slice(b"MZ\0\0zimg");
        out[8..12].copy_from_slice(&64u32.to_le_bytes());
        out[12..16].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out[24..24 + name.len()].copy_from_slice(name);
        out.extend(payload);
        out
    }

    #[test]
    fn a_gzip_payload_is_an_image() {
        let kernel = image(70_000, 0x2_0000);
        let mut ram = Ram::new(4 << 20);
        let file = zboot(&gzip(&kernel), b"gzip");
        let placed = load(&file, RawPlace::default(), &mut ram).unwrap();
        assert_eq!(placed.kind, Kind::Image);
        assert_eq!(ram.at(placed.entry, kernel.len()), kernel);
    }

    #[test]
    fn a_zstd_payload_is_an_image() {
        let kernel = image(70_000, 0x2_0000);
        // One frame of raw blocks (RFC 8878, 3.1.1), 64 KiB window.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 6 << 3];
        let blocks: Vec<&[u8]> = kernel.chunks(60_000).collect();
        for (i, block) in blocks.iter().enumerate() {
            let last = u32::from(i + 1 == blocks.len());
            let header = (block.len() as u32) << 3 | last;
            frame.extend(&header.to_le_bytes()[..3]);
            frame.extend(*block);
        }
        let mut ram = Ram::new(4 << 20);
        for file in [zboot(&frame, b"zstd22"), frame.clone()] {
            let placed = load(&file, RawPlace::default(), &mut ram).unwrap();
            assert_eq!(ram.at(placed.entry, kernel.len()), kernel);
        }
        let cut = zboot(&frame[..frame.len() - 10], b"zstd");
        assert_eq!(
            load(&cut, RawPlace::default(), &mut ram),
            Err(ImageError::Corrupt("zstd data"))
        );
    }

    #[test]
    fn other_packings_and_cut_payloads_are_told() {
        assert!(matches!(
            payload(&zboot(b"x", b"lzma")),
            Err(ImageError::Unsupported(_))
        ));
        let file = zboot(&[0; 100], b"gzip");
        assert!(matches!(payload(&file[..100]), Err(ImageError::Corrupt(_))));
        assert!(matches!(payload(b"MZ"), Ok(None)));
    }
}

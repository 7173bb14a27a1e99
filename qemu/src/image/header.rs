//! The header of an arm64 Image (Linux, Documentation/arch/arm64/booting.rst):
//! 64 bytes, little-endian, `text_offset` at 8, `image_size` at 16, `flags` at
//! 24 and the magic `ARM\x64` at 56.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const LEN: usize = 64;
const TEXT_OFFSET: usize = 8;
const IMAGE_SIZE: usize = 16;
const OLD_TEXT_OFFSET: u64 = 0x8_0000;
const MAGIC_AT: usize = 56;
const MAGIC: &[u8] = b"ARM\x64";

/// The beginning of a file, as far as it tells what the file is.
///
/// # Errors
/// When it cannot be read.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(file)
        .and_then(|from| from.take(LEN as u64).read_to_end(&mut head))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(head)
}

/// Whether `data` begins with an arm64 Image header.
pub fn is_image(data: &[u8]) -> bool {
    data.len() >= LEN && &data[MAGIC_AT..MAGIC_AT + MAGIC.len()] == MAGIC
}

/// Writes the size that the boot loader must keep free.
///
/// # Errors
/// When there is no header.
pub fn set_size(image: &mut [u8], size: u64) -> Result<()> {
    ensure!(
        is_image(image),
        "it does not begin with an arm64 Image header"
    );
    image[IMAGE_SIZE..IMAGE_SIZE + 8].copy_from_slice(&size.to_le_bytes());
    Ok(())
}

/// The bytes that a boot loader must keep free from where the image begins; `None`
/// where it does not say.
pub fn size(image: &[u8]) -> Option<u64> {
    word(image, IMAGE_SIZE).filter(|size| *size != 0)
}

/// The offset from a 2 MiB boundary at which the image wants to stand. One whose
/// size is 0 is from before the header said either (Linux < 3.17).
pub fn text_offset(image: &[u8]) -> Option<u64> {
    match word(image, IMAGE_SIZE)? {
        0 => Some(OLD_TEXT_OFFSET),
        _ => word(image, TEXT_OFFSET),
    }
}

/// A number of the header, if there is one.
fn word(image: &[u8], at: usize) -> Option<u64> {
    let bytes = image.get(at..at + 8).filter(|_| is_image(image))?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

//! Puts the image file together from the two programs.

use anyhow::{Context, Result};

use super::{appendix, flat, header, symbols};

/// Makes `undercroft.img` from the ELF files of `hyp` and `host-loader`.
///
/// # Errors
/// When one of them is not a position independent program with an arm64 Image
/// header.
pub fn image(hyp: &[u8], host: &[u8]) -> Result<Vec<u8>> {
    let mut payload = flat::binary(host).context("host-loader")?;
    appendix::append(
        &mut payload,
        &[],
        &symbols::table(host).context("host-loader")?,
    );
    let size = size_of_host(payload.len() as u64);
    header::set_size(&mut payload, size).context("host-loader")?;

    let mut image = flat::binary(hyp).context("hyp")?;
    appendix::append(&mut image, &payload, &symbols::table(hyp).context("hyp")?);
    let size = image.len() as u64;
    header::set_size(&mut image, size).context("hyp")?;
    Ok(image)
}

/// Bytes that the host takes in memory, whose file has so many: its tables stand behind
/// it, and every page of one is whole.
pub fn size_of_host(file: u64) -> u64 {
    file.next_multiple_of(64 << 10) + ::appendix::TABLES
}

//! TF-A's firmware image package, in which its device tree (HW_CONFIG) is replaced:
//! that is the one it enters the image with (TF-A 2.12,
//! `include/tools_share/firmware_image_package.h`).
//!
//! ```text
//! 0    name 0xAA640001, serial number (4 bytes each), flags (8)
//! 16   entries of 40 bytes: UUID (16), offset, size, flags (8 each); little-endian
//!      the last is all zero but for its offset, which is the package's end
//! ```

use anyhow::{Context, Result, bail, ensure};

/// How a package begins.
pub const NAME: u32 = 0xaa64_0001;
const HEADER: usize = 16;
const ENTRY: usize = 40;
const OFFSET: usize = 16;
const SIZE: usize = 24;

/// The UUID of the last entry.
const LAST: [u8; 16] = [0; 16];

/// `UUID_HW_CONFIG`.
pub const HW_CONFIG: [u8; 16] = [
    0x08, 0xb8, 0xf1, 0xd9, 0xc9, 0xcf, 0x93, 0x49, 0xa9, 0x62, 0x6f, 0xbc, 0x6b, 0x72, 0x65, 0xcc,
];

/// The package with `tree` as its HW_CONFIG: it stands behind all else, and what was
/// there before is left unused.
///
/// # Errors
/// What is no package, or one without a device tree.
pub fn with_tree(package: &[u8], tree: &[u8]) -> Result<Vec<u8>> {
    let name = package.first_chunk().copied().map(u32::from_le_bytes);
    ensure!(
        name == Some(NAME),
        "it is no firmware image package of TF-A"
    );
    let mut made = package.to_vec();
    let end = (package.len() + tree.len()) as u64;
    let mut entries = made.get_mut(HEADER..).unwrap_or_default();
    let mut found = false;
    loop {
        let (entry, behind) = entries
            .split_at_mut_checked(ENTRY)
            .context("the package's list of images does not end")?;
        if entry.starts_with(&LAST) {
            write(entry, OFFSET, end);
            break;
        }
        if entry.starts_with(&HW_CONFIG) {
            write(entry, OFFSET, package.len() as u64);
            write(entry, SIZE, tree.len() as u64);
            found = true;
        }
        entries = behind;
    }
    if !found {
        bail!("it has no device tree (HW_CONFIG): TF-A builds one in with PLAT=fvp");
    }
    made.extend(tree);
    Ok(made)
}

fn write(entry: &mut [u8], field: usize, value: u64) {
    entry[field..field + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package of these images, each of one byte.
    fn package(images: &[[u8; 16]]) -> Vec<u8> {
        let data = HEADER + (images.len() + 1) * ENTRY;
        let mut package = NAME.to_le_bytes().to_vec();
        package.resize(HEADER, 7);
        let entry = |package: &mut Vec<u8>, uuid: [u8; 16], at: usize, size: u64| {
            package.extend(uuid);
            for word in [at as u64, size, 0] {
                package.extend(word.to_le_bytes());
            }
        };
        for (n, uuid) in images.iter().enumerate() {
            entry(&mut package, *uuid, data + n, 1);
        }
        entry(&mut package, LAST, data + images.len(), 0);
        package.extend((0..images.len()).map(|n| n as u8 + 1));
        package
    }

    /// An image: its UUID, and what it holds.
    type Image<'a> = ([u8; 16], &'a [u8]);

    /// Its images, and where it says that it ends.
    fn read(package: &[u8]) -> (Vec<Image<'_>>, usize) {
        let mut list = Vec::new();
        for entry in package[HEADER..].chunks(ENTRY) {
            let word = |at: usize| {
                let bytes = entry[at..at + 8].try_into().expect("8 bytes");
                u64::from_le_bytes(bytes) as usize
            };
            if entry.starts_with(&LAST) {
                return (list, word(OFFSET));
            }
            let content = &package[word(OFFSET)..word(OFFSET) + word(SIZE)];
            list.push((entry[..16].try_into().expect("a UUID"), content));
        }
        panic!("it does not end");
    }

    #[test]
    fn the_tree_is_replaced_and_the_rest_stays() {
        let (a, b) = ([0xa; 16], [0xb; 16]);
        let made = with_tree(&package(&[a, HW_CONFIG, b]), b"a tree").expect("a package");
        let (list, end) = read(&made);
        let expected: [Image<'_>; 3] = [(a, &[1]), (HW_CONFIG, b"a tree"), (b, &[3])];
        assert_eq!(list, expected);
        assert_eq!(end, made.len());
    }

    #[test]
    fn what_is_no_package_is_refused() {
        let whole = package(&[[0xa; 16], HW_CONFIG]);
        for bad in [&b"MZ"[..], &[], &whole[..HEADER], &whole[..HEADER + ENTRY]] {
            assert!(with_tree(bad, b"tree").is_err());
        }
        let error = with_tree(&package(&[[0xa; 16]]), b"tree").expect_err("no tree");
        assert!(error.to_string().contains("HW_CONFIG"), "{error}");
    }
}

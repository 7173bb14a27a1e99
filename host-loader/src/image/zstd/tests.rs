//! The decoder against the reference's packer and against another unpacker.

extern crate std;
use super::*;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::vec;
use std::vec::Vec;

/// Unpacks in exactly the memory that the header asks for.
fn unpack(file: &[u8]) -> Result<Vec<u8>, ImageError> {
    let (header, _) = Header::parse(file)?;
    let mut memory = vec![0xa5; header.memory(0)];
    let mut tables = Tables::new();
    // What an earlier frame left behind is no help.
    tables.sequences = sequences::Tables::new();
    let mut frame = Frame::new(file, &mut tables)?;
    let mut out = Vec::new();
    while !frame.ended() {
        for part in frame.block(&mut tables, &mut memory)? {
            out.extend(&memory[part]);
        }
    }
    Ok(out)
}

/// What another implementation makes of it.
fn other(file: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut reader = ruzstd::decoding::StreamingDecoder::new(file).ok()?;
    reader.read_to_end(&mut out).ok()?;
    Some(out)
}

struct Packing {
    level: i32,
    /// log2, or that of the level.
    window: Option<u32>,
    checksum: bool,
    /// The header says how many bytes there are.
    sized: bool,
    long: bool,
}

fn pack(data: &[u8], how: &Packing) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), how.level).unwrap();
    encoder.include_checksum(how.checksum).unwrap();
    encoder.include_contentsize(how.sized).unwrap();
    if let Some(log) = how.window {
        encoder.window_log(log).unwrap();
    }
    encoder.long_distance_matching(how.long).unwrap();
    if how.sized {
        encoder
            .set_pledged_src_size(Some(data.len() as u64))
            .unwrap();
    }
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Bytes as kernels have them: runs, words of few kinds, and parts that repeat
/// near and far, beside some that no packer makes smaller.
fn content(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let mut out = Vec::with_capacity(size);
    while out.len() < size {
        let most = 1 << random(14);
        let count = 1 + random(most);
        match random(5) {
            0 => out.extend(vec![random(256) as u8; count]),
            1 => out.extend((0..count).map(|_| random(256) as u8)),
            2 => out.extend((0..count).map(|_| b"etaoin shrdlu"[random(13)])),
            _ if out.is_empty() => {}
            _ => {
                let from = random(out.len());
                let end = (from + count).min(out.len());
                out.extend_from_within(from..end);
            }
        }
    }
    out.truncate(size);
    out
}

#[test]
fn all_levels_windows_and_sizes_unpack() {
    for (level, size, window) in [
        (1, 300_000, None),
        (3, 1_000_000, Some(10)),
        (-7, 500_000, None),
        (9, 700_000, Some(17)),
        (19, 600_000, None),
        (22, 500_000, Some(18)),
        (19, 0, None),
        (19, 1, None),
        (3, 255, None),
        (3, 256, None),
        (3, 65_791, None),
        (3, 65_792, None),
        (5, BLOCK, None),
        (5, BLOCK + 1, Some(14)),
    ] {
        for flags in [0, 3, 5, 6] {
            let how = Packing {
                level,
                window,
                checksum: flags & 1 != 0,
                sized: flags & 2 != 0,
                long: flags & 4 != 0,
            };
            let data = content(size as u64 + flags, size);
            let packed = pack(&data, &how);
            assert!(
                unpack(&packed).unwrap() == data,
                "{level} {size} {window:?} {flags}"
            );
        }
    }
}

#[test]
fn a_window_takes_what_its_header_says_and_never_more_than_the_content() {
    let data = content(7, 300_000);
    let how = |window, sized| Packing {
        level: 22,
        window: Some(window),
        checksum: true,
        sized,
        long: false,
    };
    let memory = |packed: &[u8]| Header::parse(packed).unwrap().0.memory(0);
    assert_eq!(memory(&pack(&data, &how(23, false))), (8 << 20) + 2 * BLOCK);
    assert_eq!(memory(&pack(&data, &how(23, true))), 300_000 + 2 * BLOCK);
    assert_eq!(
        memory(&pack(&data, &how(27, false))),
        (128 << 20) + 2 * BLOCK
    );
    assert_eq!(
        Header::parse(&pack(&data, &how(28, false))),
        Err(ImageError::Unsupported("a zstd window above 128 MiB"))
    );
}

#[test]
fn damage_is_told() {
    let how = Packing {
        level: 19,
        window: None,
        checksum: true,
        sized: false,
        long: false,
    };
    let data = content(3, 200_000);
    let packed = pack(&data, &how);
    let last = packed.len() - 1;
    let mut flipped = packed.clone();
    flipped[last] ^= 1;
    let differs = ImageError::Corrupt("zstd checksum differs");
    assert_eq!(unpack(&flipped), Err(differs));
    assert_eq!(unpack(&packed[..last]), Err(CORRUPT));
    assert_eq!(
        unpack(&[&packed[..], &packed].concat()),
        Err(ImageError::Unsupported("more than one zstd frame"))
    );
    // A number of a dictionary.
    let asks = [&MAGIC[..], &[1, 0, 9, 1, 0, 0]].concat();
    assert!(matches!(unpack(&asks), Err(ImageError::Unsupported(_))));
    // A frame that says less, or more, than it holds.
    for size in [4, 6] {
        let wrong = [&MAGIC[..], &[1 << 5, size, 5 << 3 | 1, 0, 0], b"12345"].concat();
        assert_eq!(unpack(&wrong), Err(CORRUPT));
    }
}

/// Blocks that would give more than a block may: 1 MiB of one literal.
#[test]
fn a_block_that_swells_is_refused() {
    let literals = [0b1101, 0xff, 0xff, 7, 0];
    let block = (literals.len() as u32) << 3 | 2 << 1 | 1;
    let frame = [
        &MAGIC[..],
        &[0, 17 << 3],
        &block.to_le_bytes()[..3],
        &literals,
    ]
    .concat();
    assert_eq!(unpack(&frame), Err(CORRUPT));
}

proptest! {
    #[test]
    fn what_is_packed_comes_back(
        seed in 1u64..,
        size in 0usize..400_000,
        level in -5i32..=19,
        window in prop::option::of(10u32..22),
        flags in 0u8..8,
    ) {
        let data = content(seed, size);
        let packed = pack(&data, &Packing {
            level,
            window,
            checksum: flags & 1 != 0,
            sized: flags & 2 != 0,
            long: flags & 4 != 0,
        });
        prop_assert!(unpack(&packed).unwrap() == data);
    }

    /// Whatever is done to a frame, it is an error or what another unpacker says.
    #[test]
    fn damage_never_panics(
        seed in 1u64..,
        size in 1usize..30_000,
        level in 1i32..=19,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts: bool,
    ) {
        let how = Packing { level, window: None, checksum: false, sized: true, long: false };
        let mut packed = pack(&content(seed, size), &how);
        for (at, byte) in flips {
            let at = 6 + at.index(packed.len() - 6);
            packed[at] = byte;
        }
        if cuts {
            packed.truncate(cut.index(packed.len()));
        }
        if let Ok(out) = unpack(&packed) {
            let other = std::panic::catch_unwind(|| other(&packed));
            if let Ok(Some(other)) = other {
                prop_assert!(out == other);
            }
        }
    }
}

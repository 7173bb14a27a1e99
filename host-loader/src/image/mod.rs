//! Kernel files: from the bundle straight into a guest's memory.
//!
//! A file may be wrapped (EFI zboot) and packed (gzip, zstd); under that it is an
//! arm64 Image, an ELF file or a raw binary. [`stream`] gives the plain bytes in
//! order, and each format places them as they come, so that a kernel is never
//! held twice. What is placed where comes back as [`Placed`].

pub mod arm64;
pub mod elf;
pub mod gzip;
pub mod packed;
pub mod stream;
pub mod zboot;
pub mod zstd;

use crate::pace::Pace;
use core::fmt;
use core::ops::Range;
use packed::Packed;
use stream::{Stream, Unpacker};

/// A guest's RAM, to write to.
pub trait GuestMemory {
    /// The IPAs that are RAM.
    fn range(&self) -> Range<u64>;

    /// Writes `bytes` at `ipa`. All of it lies inside [`range`](Self::range):
    /// the formats check before they place.
    fn write(&mut self, ipa: u64, bytes: &[u8]);

    /// All of these IPAs, under the same rule, is about to be written: what was there
    /// need not be zeroed before.
    fn will_write(&mut self, _ipas: Range<u64>) {}

    /// Writes `count` zero bytes at `ipa`, under the same rule.
    fn zero(&mut self, ipa: u64, count: u64);
}

/// Why a kernel cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// It is damaged; what exactly.
    Corrupt(&'static str),
    /// It is of a kind that cannot run here; what exactly.
    Unsupported(&'static str),
    /// Unpacking it takes this many bytes of the host's memory, more than was
    /// set aside.
    NoMemory(u64),
    /// It needs this IPA range, which ends behind RAM.
    DoesNotFit(Range<u64>),
    /// It needs what is below RAM, which begins here.
    Below {
        /// Where it begins.
        start: u64,
        /// Where RAM does.
        ram: u64,
    },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(what) => write!(f, "the file is corrupt: {what}"),
            Self::Unsupported(what) => write!(f, "the file cannot be run: {what}"),
            Self::NoMemory(bytes) => write!(
                f,
                "unpacking it takes {} MiB of memory beside the guests'; \
                 give the machine more",
                bytes >> 20
            ),
            Self::DoesNotFit(range) => write!(
                f,
                "it needs {:#x} to {:#x}, which is not all inside the guest's RAM; \
                 give it more memory",
                range.start, range.end
            ),
            Self::Below { start, ram } => write!(
                f,
                "it begins at {start:#x}, and the guest's RAM at {ram:#x}; \
                 it is linked or loaded for another machine"
            ),
        }
    }
}

/// What kind of kernel it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An arm64 Image, as Linux is.
    Image,
    /// An ELF file.
    Elf,
    /// Anything else: code from its first byte.
    Raw,
}

/// A kernel in a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What kind it was.
    pub kind: Kind,
    /// All that it occupies, zero-initialised memory included.
    pub range: Range<u64>,
    /// Where it starts.
    pub entry: u64,
}

/// What the configuration says about a raw binary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawPlace {
    /// Where it goes; [`RAW_OFFSET`] from RAM's base by default.
    pub load: Option<u64>,
    /// Where it starts; its first byte by default.
    pub entry: Option<u64>,
}

/// Where a raw binary goes, from RAM's base: as QEMU's `-kernel` has it.
pub const RAW_OFFSET: u64 = 0x8_0000;

/// The most that a format wants to see before it decides.
const HEAD: usize = 4096;

fn check(memory: &impl GuestMemory, start: u64, size: u64) -> Result<Range<u64>, ImageError> {
    let range = start..start.saturating_add(size);
    let ram = memory.range();
    if range.start < ram.start {
        let (start, ram) = (range.start, ram.start);
        return Err(ImageError::Below { start, ram });
    }
    if range.end > ram.end || range.end == u64::MAX {
        return Err(ImageError::DoesNotFit(range));
    }
    Ok(range)
}

/// Whether a file is code from its first byte, as it stands.
pub fn is_raw(file: &[u8]) -> bool {
    let is_plain =
        matches!(zboot::payload(file), Ok(None)) && matches!(Packed::detect(file), Packed::Not(_));
    let is_known = elf::is(file) || file.starts_with(b"MZ") || Packed::otherwise(file).is_some();
    is_plain && !is_known && matches!(arm64::Header::parse(file), Ok(None))
}

/// Places the kernel `file`, which `unpacker` unpacks where that is needed.
///
/// On an error memory may hold part of it, and the guest must not run.
pub async fn load(
    file: &[u8],
    raw: RawPlace,
    unpacker: &mut Unpacker,
    memory: &mut impl GuestMemory,
    pace: &Pace,
) -> Result<Placed, ImageError> {
    let packed = zboot::payload(file)?.unwrap_or_else(|| Packed::detect(file));
    let mut stream = Stream::new(packed, unpacker)?;
    let head = stream.head(HEAD)?;
    if elf::is(head) {
        return elf::load(&mut stream, memory, pace).await;
    }
    if let Some(header) = arm64::Header::parse(head)? {
        return arm64::load(header, &mut stream, memory, pace).await;
    }
    if head.starts_with(b"MZ") {
        return Err(ImageError::Unsupported(
            "a PE file that is neither an arm64 Image nor a zboot image",
        ));
    }
    if let Some(how) = Packed::otherwise(head) {
        return Err(ImageError::Unsupported(how));
    }
    load_raw(raw, &mut stream, memory, pace).await
}

async fn load_raw(
    place: RawPlace,
    stream: &mut Stream<'_>,
    memory: &mut impl GuestMemory,
    pace: &Pace,
) -> Result<Placed, ImageError> {
    let start = place
        .load
        .unwrap_or_else(|| memory.range().start + RAW_OFFSET);
    let size = copy(stream, start, memory, pace).await?;
    if size == 0 {
        return Err(ImageError::Corrupt("it is empty"));
    }
    let entry = place.entry.unwrap_or(start);
    if !entry.is_multiple_of(4) {
        return Err(ImageError::Unsupported("an entry that is no multiple of 4"));
    }
    if !memory.range().contains(&entry) {
        return Err(ImageError::DoesNotFit(entry..entry.saturating_add(4)));
    }
    Ok(Placed {
        kind: Kind::Raw,
        range: start..start + size,
        entry,
    })
}

/// Copies what is left of the stream to `start`: how many bytes.
async fn copy(
    stream: &mut Stream<'_>,
    start: u64,
    memory: &mut impl GuestMemory,
    pace: &Pace,
) -> Result<u64, ImageError> {
    if let Some(size) = stream.left() {
        let all = check(memory, start, size)?;
        memory.will_write(all);
    }
    let mut size = 0;
    loop {
        let chunk = stream.chunk()?;
        if chunk.is_empty() {
            return Ok(size);
        }
        let at = check(memory, start.saturating_add(size), chunk.len() as u64)?;
        memory.write(at.start, chunk);
        size += chunk.len() as u64;
        pace.step().await;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use crate::pace::at_once;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::vec;
    use std::vec::Vec;

    std::thread_local! {
        static UNPACKER: RefCell<Unpacker> =
            RefCell::new(Unpacker::new(Box::leak(vec![0xaa; 2 << 20].into())));
    }

    /// [`super::load`] with one unpacker for all files, as in the image.
    pub(crate) fn load(
        file: &[u8],
        raw: RawPlace,
        memory: &mut impl GuestMemory,
    ) -> Result<Placed, ImageError> {
        UNPACKER.with_borrow_mut(|unpacker| {
            at_once(super::load(file, raw, unpacker, memory, &Pace::new()))
        })
    }

    /// RAM as a vector, from `base`.
    pub(crate) struct Ram {
        pub base: u64,
        pub bytes: Vec<u8>,
    }

    impl Ram {
        pub(crate) fn new(size: usize) -> Self {
            Self {
                base: 0x4000_0000,
                bytes: vec![0xaa; size],
            }
        }

        pub(crate) fn at(&self, ipa: u64, len: usize) -> &[u8] {
            let start = (ipa - self.base) as usize;
            &self.bytes[start..start + len]
        }
    }

    impl GuestMemory for Ram {
        fn range(&self) -> Range<u64> {
            self.base..self.base + self.bytes.len() as u64
        }
        fn write(&mut self, ipa: u64, bytes: &[u8]) {
            let start = (ipa - self.base) as usize;
            self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
        }
        fn zero(&mut self, ipa: u64, count: u64) {
            let start = (ipa - self.base) as usize;
            self.bytes[start..start + count as usize].fill(0);
        }
    }

    pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0x1f, 0x8b, 8, 0x08, 0, 0, 0, 0, 0, 3];
        out.extend(b"vmlinux\0");
        out.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
        out.extend(crc32fast::hash(data).to_le_bytes());
        out.extend((data.len() as u32).to_le_bytes());
        out
    }

    /// An Image of `size` bytes that wants `image_size` in memory.
    pub(crate) fn image(size: usize, image_size: u64) -> Vec<u8> {
        let mut out: Vec<u8> = (0..size).map(|i| ((i * 7) >> 3) as u8).collect();
        out[..8].fill(0x1f);
        out[8..16].copy_from_slice(&0u64.to_le_bytes());
        out[16..24].copy_from_slice(&image_size.to_le_bytes());
        out[24..32].copy_from_slice(&0xau64.to_le_bytes());
        out[0x38..0x3c].copy_from_slice(b"ARM\x64");
        out
    }

    #[test]
    fn an_image_lands_on_its_offset_plain_or_packed() {
        let kernel = image(300_000, 0x10_0000);
        let plain = kernel.clone();
        for file in [plain, gzip(&kernel)] {
            let mut ram = Ram::new(8 << 20);
            let placed = load(&file, RawPlace::default(), &mut ram).unwrap();
            assert_eq!(placed.kind, Kind::Image);
            assert_eq!(placed.entry, 0x4020_0000);
            assert_eq!(placed.range, 0x4020_0000..0x4030_0000);
            assert_eq!(ram.at(0x4020_0000, kernel.len()), kernel);
        }
    }

    #[test]
    fn a_raw_binary_goes_where_qemu_puts_it_or_where_it_is_told() {
        let mut ram = Ram::new(4 << 20);
        let placed = load(&[1; 100], RawPlace::default(), &mut ram).unwrap();
        assert_eq!(placed.range, 0x4008_0000..0x4008_0064);
        assert_eq!(placed.entry, 0x4008_0000);
        let place = RawPlace {
            load: Some(0x4010_0000),
            entry: Some(0x4010_0040),
        };
        let placed = load(&[1; 100], place, &mut ram).unwrap();
        assert_eq!(
            (placed.range.start, placed.entry),
            (0x4010_0000, 0x4010_0040)
        );
        let outside = RawPlace {
            load: Some(0x4040_0000 - 50),
            entry: None,
        };
        assert!(matches!(
            load(&[1; 100], outside, &mut ram),
            Err(ImageError::DoesNotFit(_))
        ));
    }

    #[test]
    fn an_image_stands_where_qemu_puts_it() {
        let mut ram = Ram::new(8 << 20);
        for (offset, entry) in [
            (0, 0x4020_0000),
            (0xffc, 0x4020_0ffc),
            (0x1000, 0x4000_1000),
            (0x8_0000, 0x4008_0000),
            (0x20_0000, 0x4020_0000),
        ] {
            let mut kernel = image(5000, 0x2000);
            kernel[8..16].copy_from_slice(&u64::to_le_bytes(offset));
            let placed = load(&kernel, RawPlace::default(), &mut ram).unwrap();
            assert_eq!(
                (placed.entry, placed.range.start),
                (entry, entry),
                "{offset:#x}"
            );
        }
    }

    #[test]
    fn a_first_instruction_off_its_place_is_refused() {
        let mut ram = Ram::new(8 << 20);
        for offset in [1u64, 2, 3, 5, 0x8_0001] {
            let mut kernel = image(5000, 0x2000);
            kernel[8..16].copy_from_slice(&offset.to_le_bytes());
            for file in [kernel.clone(), gzip(&kernel)] {
                let refused = load(&file, RawPlace::default(), &mut ram);
                assert!(matches!(refused, Err(ImageError::Corrupt(_))), "{offset}");
            }
            // A very old one does not say its offset there.
            kernel[16..24].fill(0);
            let placed = load(&kernel, RawPlace::default(), &mut ram).unwrap();
            assert_eq!(placed.entry, 0x4008_0000);
        }
        let mut kernel = image(5000, 0x2000);
        kernel[8] = 4;
        let placed = load(&kernel, RawPlace::default(), &mut ram).unwrap();
        assert_eq!(placed.entry, 0x4020_0004);
        for place in [(Some(0x4010_0001), None), (None, Some(0x4008_0002))] {
            let (load_at, entry) = place;
            let place = RawPlace {
                load: load_at,
                entry,
            };
            assert!(matches!(
                load(&[1; 100], place, &mut ram),
                Err(ImageError::Unsupported(_))
            ));
        }
    }

    #[test]
    fn what_is_damaged_or_too_big_says_so() {
        let kernel = image(300_000, 0x10_0000);
        let packed = gzip(&kernel);
        let mut ram = Ram::new(8 << 20);
        let mut fail = |bytes: &[u8]| load(bytes, RawPlace::default(), &mut ram).unwrap_err();
        assert!(matches!(
            fail(&packed[..packed.len() / 2]),
            ImageError::Corrupt(_)
        ));
        assert!(matches!(
            fail(&packed[..packed.len() - 2]),
            ImageError::Corrupt(_)
        ));
        let mut flipped = packed.clone();
        let n = flipped.len();
        flipped[n - 8] ^= 1;
        assert_eq!(fail(&flipped), ImageError::Corrupt("gzip checksum differs"));
        assert!(matches!(
            fail(&image(1000, 64 << 20)),
            ImageError::DoesNotFit(_)
        ));
        assert!(matches!(
            fail(&image(1000, u64::MAX - 8)),
            ImageError::DoesNotFit(_)
        ));
        assert!(matches!(fail(b"MZ\0\0nothing"), ImageError::Unsupported(_)));
    }

    proptest! {
        #[test]
        fn damage_never_panics(
            kind in 0usize..4,
            flips in prop::collection::vec((0usize..4096, any::<u8>()), 0..12),
            cut in 0usize..6000,
        ) {
            let mut file = match kind {
                0 => image(5000, 0x2000),
                1 => gzip(&image(5000, 0x2000)),
                2 => super::elf::tests::elf(&[(0x4000_0000, b"code", 16)], 0x4000_0000),
                _ => super::zboot::tests::zboot(&gzip(&image(5000, 0x2000)), b"gzip"),
            };
            for (at, byte) in flips {
                let n = file.len();
                file[at % n] = byte;
            }
            file.truncate(file.len().saturating_sub(cut.saturating_sub(3000)));
            let mut ram = Ram::new(4 << 20);
            if let Ok(placed) = load(&file, RawPlace::default(), &mut ram) {
                prop_assert!(placed.range.end <= ram.range().end);
                prop_assert!(placed.range.start >= ram.base);
            }
        }
    }

    #[test]
    fn a_kernel_in_two_members_is_not_run_by_half() {
        let kernel = image(300_000, 0);
        let (first, second) = kernel.split_at(150_000);
        let mut ram = Ram::new(4 << 20);
        let mut load = |file: &[u8]| super::tests::load(file, RawPlace::default(), &mut ram);
        let both = [gzip(first), gzip(second)].concat();
        let refused = load(&both);
        assert!(
            matches!(refused, Err(ImageError::Unsupported(_))),
            "{refused:?}"
        );
        // What is no member may stand behind one.
        assert!(load(&[gzip(&kernel), vec![0xff; 100]].concat()).is_ok());
    }

    #[test]
    fn what_is_packed_otherwise_is_not_run_as_it_is() {
        let mut ram = Ram::new(4 << 20);
        for magic in [
            &b"\xfd7zXZ\0"[..],
            b"BZh91AY&SY",
            b"\x04\x22\x4d\x18",
            b"\x02\x21\x4c\x18",
            b"\x89LZO\0\r\n\x1a\n",
            b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            let file = [magic, &[0x5a; 4096]].concat();
            let refused = load(&file, RawPlace::default(), &mut ram);
            let named =
                matches!(refused, Err(ImageError::Unsupported(what)) if what.contains("unpack"));
            assert!(named && !is_raw(&file), "{refused:?}");
        }
        // Nor is what is alike: code may begin so.
        let file = [&b"BZh9"[..], &[0x5a; 4096]].concat();
        assert!(load(&file, RawPlace::default(), &mut ram).is_ok());
    }
}

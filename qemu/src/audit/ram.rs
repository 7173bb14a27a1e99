//! The machine's RAM, as QEMU leaves it in a file, and changes of it that a test makes.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// RAM: a file, which begins at a physical address, under words that were planted.
#[derive(Debug)]
pub struct Ram {
    base: u64,
    size: u64,
    file: File,
    planted: HashMap<u64, u64>,
    /// Where the file holds something: from, to, PAs.
    parts: Vec<(u64, u64)>,
}

impl Ram {
    /// The RAM in a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(file: &Path, base: u64) -> Result<Self> {
        let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
        let size = opened.metadata()?.len();
        Ok(Self {
            base,
            size,
            parts: parts(&opened, (base, size))?,
            file: opened,
            planted: HashMap::new(),
        })
    }

    /// Has a word read as `value`, whatever the file holds: at a multiple of 8.
    pub fn plant(&mut self, pa: u64, value: u64) {
        self.planted.insert(pa, value);
    }

    /// Forgets what was planted.
    pub fn heal(&mut self) {
        self.planted.clear();
    }

    /// Whether there is anything but zeros in a range, as far as the file tells by
    /// having it.
    pub fn has(&self, from: u64, to: u64) -> bool {
        let planted = || self.planted.keys().any(|pa| (from..to).contains(pa));
        self.parts.iter().any(|part| part.0 < to && from < part.1) || planted()
    }

    /// Words from `pa` on, a multiple of 8.
    ///
    /// # Errors
    /// When that is no RAM.
    pub fn words(&self, pa: u64, count: u64) -> Result<Vec<u64>> {
        let end = pa.checked_add(8 * count);
        let inside = end.is_some_and(|end| pa >= self.base && end <= self.base + self.size);
        ensure!(inside && pa.is_multiple_of(8), "{pa:#x} is no RAM");
        let mut bytes = vec![0; usize::try_from(8 * count)?];
        self.file.read_exact_at(&mut bytes, pa - self.base)?;
        let words = bytes.chunks_exact(8);
        let mut words: Vec<_> = words
            .map(|word| word.try_into().map_or(0, u64::from_le_bytes))
            .collect();
        if !self.planted.is_empty() {
            for (n, word) in (0..).zip(&mut words) {
                if let Some(planted) = self.planted.get(&(pa + 8 * n)) {
                    *word = *planted;
                }
            }
        }
        Ok(words)
    }

    /// One word.
    ///
    /// # Errors
    /// When that is no RAM.
    pub fn word(&self, pa: u64) -> Result<u64> {
        Ok(self.words(pa, 1)?[0])
    }

    /// A number of `bytes` bytes, 1, 2, 4 or 8, at a multiple of them.
    ///
    /// # Errors
    /// When that is no RAM.
    pub fn number(&self, pa: u64, bytes: u64) -> Result<u64> {
        let word = self.word(pa & !7)? >> (8 * (pa & 7));
        Ok(if bytes == 8 {
            word
        } else {
            word & ((1 << (8 * bytes)) - 1)
        })
    }
}

/// The parts of a file that are no holes.
fn parts(file: &File, (base, size): (u64, u64)) -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) => from,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(from))?;
        found.push((base + from, base + at));
    }
    Ok(found)
}

//! Archives in cpio's `newc` format, which Linux takes as an initial RAM disk
//! and `host-loader` as its bundle.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use cpio::newc::{self, Builder};

/// Bytes of a file that are in memory while it is copied.
const PIECE: usize = 256 << 10;

/// An archive under construction, in memory or in a file.
#[derive(Debug, Default)]
pub struct Archive<W = Vec<u8>> {
    to: W,
    /// Inode numbers differ, so that no reader takes two files for one.
    entries: u32,
}

impl Archive {
    /// An archive of nothing, in memory.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<W: Write> Archive<W> {
    /// An archive of nothing, to be written to `to`.
    pub fn to(to: W) -> Self {
        Self { to, entries: 0 }
    }

    /// Adds a folder; those above it must have been added before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn folder(&mut self, path: &str) -> Result<()> {
        let entry = self.entry(path).mode(0o040_755).nlink(2);
        self.put(entry, &[])
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) -> Result<()> {
        let entry = self
            .entry(path)
            .mode(0o020_600)
            .rdev_major(major)
            .rdev_minor(minor);
        self.put(entry, &[])
    }

    /// Adds a file that can be run.
    ///
    /// # Errors
    /// When it has 4 GiB or more, or cannot be written.
    pub fn program(&mut self, path: &str, data: &[u8]) -> Result<()> {
        let entry = self.entry(path).mode(0o100_755);
        self.put(entry, data).with_context(|| path.to_string())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it has 4 GiB or more, or cannot be written.
    pub fn file(&mut self, path: &str, data: &[u8]) -> Result<()> {
        let entry = self.entry(path).mode(0o100_644);
        self.put(entry, data).with_context(|| path.to_string())
    }

    /// Adds a file that holds what the one at `from` does, of which little is in memory at
    /// a time.
    ///
    /// # Errors
    /// When that one cannot be read, or has 4 GiB or more, or when it cannot be written.
    pub fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        let cannot = || format!("cannot pack {}", from.display());
        let data = File::open(from).with_context(cannot)?;
        let size = data.metadata().with_context(cannot)?.len();
        let entry = self.entry(path).mode(0o100_644);
        let mut data = BufReader::with_capacity(PIECE, data.take(size));
        self.put_from(entry, size, &mut data).with_context(cannot)
    }

    /// Closes the archive.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<W> {
        Ok(newc::trailer(self.to)?)
    }

    fn entry(&mut self, path: &str) -> Builder {
        self.entries += 1;
        Builder::new(path).ino(self.entries).nlink(1)
    }

    fn put(&mut self, entry: Builder, mut data: &[u8]) -> Result<()> {
        self.put_from(entry, data.len() as u64, &mut data)
    }

    fn put_from(&mut self, entry: Builder, size: u64, data: &mut impl Read) -> Result<()> {
        let size = u32::try_from(size)
            .map_err(|_| anyhow!("the file is larger than an archive's 4 GiB"))?;
        let mut writer = entry.write(&mut self.to, size);
        // By pieces of whatever buffer the data has.
        let copied = io::copy(data, &mut writer)?;
        ensure!(
            copied == u64::from(size),
            "{copied} bytes came instead of {size}"
        );
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neither a full disk nor an unreadable file is told as the other.
    #[test]
    fn what_cannot_be_packed_is_told() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(&[7; 1000]).expect("writes");
        let mut room = [0u8; 500];
        let error = Archive::to(&mut room[..]).copy("a", file.path());
        let said = format!("{:#}", error.expect_err("no room"));
        let named = format!("cannot pack {}: ", file.path().display());
        assert!(said.starts_with(&named) && !said.contains("read"), "{said}");
    }

    #[test]
    fn what_goes_in_comes_out() {
        let mut archive = Archive::new();
        archive.folder("dir").expect("fits");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"abc").expect("writes");
        archive.copy("dir/a", file.path()).expect("fits");
        archive.device("tty", 204, 64).expect("fits");
        let bytes = archive.finish().expect("closes");
        assert_eq!(bytes.len() % 4, 0);

        let mut names = Vec::new();
        let mut rest = &bytes[..];
        loop {
            let reader = newc::Reader::new(rest).expect("an entry");
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_string(), reader.entry().mode()));
            let mut data = Vec::new();
            if names.len() == 2 {
                rest = reader.to_writer(&mut data).expect("data");
                assert_eq!(data, b"abc");
            } else {
                rest = reader.finish().expect("next");
            }
        }
        assert_eq!(
            names,
            [
                ("dir".into(), 0o040_755),
                ("dir/a".into(), 0o100_644),
                ("tty".into(), 0o020_600)
            ]
        );
    }
}

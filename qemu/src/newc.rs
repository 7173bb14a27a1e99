//! Archives in cpio's `newc` format, which Linux takes as an initial RAM disk
//! and `host-loader` as its bundle.

use std::io::Write;

use anyhow::{Context, Result, anyhow};
use cpio::newc::{self, Builder};

/// An archive under construction, in memory.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Inode numbers differ, so that no reader takes two files for one.
    entries: u32,
}

impl Archive {
    /// An archive of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; those above it must have been added before.
    pub fn folder(&mut self, path: &str) {
        let entry = self.entry(path).mode(0o040_755).nlink(2);
        self.put(entry, &[]).expect("no data, no limit");
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        let entry = self
            .entry(path)
            .mode(0o020_600)
            .rdev_major(major)
            .rdev_minor(minor);
        self.put(entry, &[]).expect("no data, no limit");
    }

    /// Adds a file that can be run.
    ///
    /// # Errors
    /// When it has 4 GiB or more.
    pub fn program(&mut self, path: &str, data: &[u8]) -> Result<()> {
        let entry = self.entry(path).mode(0o100_755);
        self.put(entry, data).with_context(|| path.to_string())
    }

    /// Adds a file.
    ///
    /// # Errors
    /// When it has 4 GiB or more.
    pub fn file(&mut self, path: &str, data: &[u8]) -> Result<()> {
        let entry = self.entry(path).mode(0o100_644);
        self.put(entry, data).with_context(|| path.to_string())
    }

    /// Closes the archive.
    ///
    /// # Errors
    /// None in practice: memory takes all that is written.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(newc::trailer(self.bytes)?)
    }

    fn entry(&mut self, path: &str) -> Builder {
        self.entries += 1;
        Builder::new(path).ino(self.entries).nlink(1)
    }

    fn put(&mut self, entry: Builder, data: &[u8]) -> Result<()> {
        let size = u32::try_from(data.len())
            .map_err(|_| anyhow!("the file is larger than an archive's 4 GiB"))?;
        let mut writer = entry.write(&mut self.bytes, size);
        writer.write_all(data)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let mut archive = Archive::new();
        archive.folder("dir");
        archive.file("dir/a", b"abc").expect("fits");
        archive.device("tty", 204, 64);
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

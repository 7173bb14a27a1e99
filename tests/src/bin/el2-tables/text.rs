//! A check's name, put together without a heap.

use core::fmt::{self, Write};

/// Text of up to 96 bytes; what is more is left out.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    bytes: [u8; 96],
    len: usize,
}

impl Name {
    /// What `format_args!` says.
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut name = Self {
            bytes: [0; 96],
            len: 0,
        };
        // It never fails.
        let _ = name.write_fmt(text);
        name
    }

    /// The text.
    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?")
    }
}

impl Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(free) = self.bytes.get_mut(self.len) {
                *free = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

//! More of what a mapping may say.

use crate::attrs::{Access, Age, Attrs, Dirty};

impl Attrs {
    /// The same with other software bits (the low four count).
    pub const fn soft(self, soft: u8) -> Self {
        Self {
            soft: soft & 0xf,
            ..self
        }
    }

    /// The same with another access flag.
    pub const fn age(self, age: Age) -> Self {
        Self { age, ..self }
    }

    /// The same with other dirty tracking.
    pub const fn dirty(self, dirty: Dirty) -> Self {
        Self { dirty, ..self }
    }

    /// True when hardware marked the leaf written since the last harvest.
    pub fn is_dirty(&self) -> bool {
        self.dirty == Dirty::Track && matches!(self.access, Access::Write | Access::ReadWrite)
    }
}

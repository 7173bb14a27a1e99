//! Entries made by hand.

use crate::addr::{Level, Pa};
use crate::attrs::Attrs;
use crate::desc::TYPE;
use crate::errata::Errata;
use crate::error::Error;
use crate::format::Annotation;
use crate::geometry::Geometry;

impl Annotation {
    /// Makes an annotation of a descriptor's bits, of which \[1:0\] must be 0.
    pub const fn new(raw: u64) -> Option<Self> {
        if raw & TYPE == 0 {
            Some(Self(raw))
        } else {
            None
        }
    }
}

impl Geometry {
    /// Encodes a leaf of `level`.
    ///
    /// # Errors
    /// `BlockLevel` where none may stand, `Align` and `Range` for the
    /// address, `Attributes` for EL0- or EL1-only execute without FEAT_XNX.
    pub fn encode_leaf(&self, pa: Pa, attrs: Attrs, level: Level) -> Result<u64, Error> {
        let shape = self.shape();
        if !shape.leaf_ok(level) {
            return Err(Error::BlockLevel { level });
        }
        if pa.get() & (shape.span(level) - 1) != 0 {
            return Err(Error::Align);
        }
        shape.check_oa(pa, shape.span(level))?;
        Ok(self.encode_attrs(attrs)?.leaf(shape, pa, level).raw())
    }

    /// The errata it was made for.
    pub const fn errata(&self) -> Errata {
        self.0.errata
    }
}

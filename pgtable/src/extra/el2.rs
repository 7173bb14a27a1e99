//! EL2's own map, taken apart and read.

use crate::addr::{Level, Pa, Va};
use crate::el2::{
    AP_READ_ONLY, ATTR_INDEX_SHIFT, El2Access, El2Attrs, El2Geometry, El2Map, El2Memory, UXN_XN,
};
use crate::error::{Budget, Stopped};
use crate::format;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::shape::Shape;
use crate::sink::Ignore;
use crate::stage2::typed;
use crate::tree::Exclusive;
use crate::unmap::{Partial, Unmap, UnmapJob};

fn decode(raw: u64) -> El2Attrs {
    El2Attrs {
        access: match (raw & AP_READ_ONLY != 0, raw & UXN_XN != 0) {
            (true, false) => El2Access::ReadExecute,
            (true, true) => El2Access::Read,
            (false, _) => El2Access::ReadWrite,
        },
        memory: match raw >> ATTR_INDEX_SHIFT & 7 {
            0 => El2Memory::Normal,
            1 => El2Memory::Device,
            2 => El2Memory::NonCacheable,
            _ => El2Memory::DeviceStrict,
        },
    }
}

impl<M: TableMem> El2Map<M> {
    /// The geometry.
    pub const fn geometry(&self) -> &El2Geometry {
        &self.geometry
    }

    /// Removes what a range maps, splitting blocks at its ends.
    ///
    /// # Errors
    /// `Range`, `Align`; `NoMem` where a block could not be split.
    pub fn unmap<T: Maintenance>(
        &mut self,
        maint: &mut T,
        va: Va,
        size: u64,
    ) -> Result<Va, Stopped<Va>> {
        let end = self
            .core
            .shape
            .check_ia(va.get(), size)
            .map_err(|why| Stopped { why, next: va })?;
        let job = UnmapJob {
            start: va.get(),
            end,
            blank: 0,
            partial: Partial::Split,
            clean: false,
        };
        let (sink, all) = (&mut Ignore, &mut Budget::unlimited());
        typed(Unmap::<M, T, _, Exclusive>::new(&self.core, maint, sink, job, all).run())
    }

    /// Where a VA goes, and what is allowed there.
    pub fn translate(&self, va: Va) -> Option<(Pa, El2Attrs, Level)> {
        if va.get() >= self.core.shape.ia_end() {
            return None;
        }
        let slot = self.core.walk_to(va.get(), 3);
        if !format::is_leaf(slot.raw, slot.level) {
            return None;
        }
        let base = format::leaf_oa(&self.core.shape, slot.raw, slot.level);
        let pa = base + (va.get() - slot.base(va.get()));
        let level = Shape::level(slot.level);
        Some((Pa::new(pa), decode(slot.raw), level))
    }
}

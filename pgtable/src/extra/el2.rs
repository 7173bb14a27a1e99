//! EL2's own map, taken apart and read.

use crate::addr::{Level, Pa, Va};
use crate::desc::Desc;
use crate::el2::{
    AP_READ_ONLY, ATTR_INDEX_SHIFT, El2Access, El2Attrs, El2Geometry, El2Map, El2Memory, El2Range,
    UXN_XN,
};
use crate::error::{Budget, Stopped};
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::sink::Ignore;
use crate::stage2::{Leaves, typed};
use crate::tree::{Exclusive, Over};
use crate::unmap::{Partial, Removal, UnmapJob};

impl El2Range {
    /// The same with other leaves.
    pub const fn leaves(self, leaves: Leaves) -> Self {
        Self { leaves, ..self }
    }

    /// The same over other entries.
    pub const fn over(self, over: Over) -> Self {
        Self { over, ..self }
    }
}

fn decode(leaf: Desc) -> El2Attrs {
    El2Attrs {
        access: match (leaf.has(AP_READ_ONLY), leaf.has(UXN_XN)) {
            (true, false) => El2Access::ReadExecute,
            (true, true) => El2Access::Read,
            (false, _) => El2Access::ReadWrite,
        },
        memory: match leaf.raw() >> ATTR_INDEX_SHIFT & 7 {
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
        let range = self.core.shape.check_ia(va.into(), size);
        let job = UnmapJob {
            range: range.map_err(Stopped::at(va))?,
            blank: Desc::EMPTY,
            partial: Partial::Split,
            clean: false,
        };
        let (sink, all) = (&mut Ignore, &mut Budget::unlimited());
        let work = self.core.work(maint);
        typed(Removal::<M, T, _, Exclusive>::new(work, sink, all, job).run())
    }

    /// Where a VA goes, and what is allowed there.
    pub fn translate(&self, va: Va) -> Option<(Pa, El2Attrs, Level)> {
        let shape = &self.core.shape;
        let ia = shape.check(va.into()).ok()?;
        let slot = self.core.walk_to(ia, Level::L3);
        let base = slot.desc.leaf_pa(shape, slot.level);
        let leaf = slot.desc.is_leaf(slot.level);
        leaf.then(|| (base.plus(ia.since(slot.ia)), decode(slot.desc), slot.level))
    }
}

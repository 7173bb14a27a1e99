//! The public face of stage 2: one guest's tables, or the host's.

use crate::addr::{InputAddress, Ipa, Level, Pa, Vmid};
use crate::attrs::{Attrs, Memory};
use crate::config_error::ConfigError;
use crate::error::{Budget, Error, Stopped};
use crate::format::Entry;
use crate::geometry::Geometry;
use crate::maintenance::{Maintenance, Stage2Regs};
use crate::map::{MapJob, Mapping};
use crate::mem::TableMem;
use crate::plan::Regime;
use crate::sink::{Ignore, LeafSink};
use crate::tree::{Access, Core, Counting, Exclusive, Over, Shared};
use crate::unmap::{Partial, Unmap, UnmapJob};

/// Which leaves a mapping uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// The largest that address, size and geometry allow.
    Largest,
    /// The largest, but none above this level.
    AtMost(Level),
    /// This level alone; the range must keep to its span.
    Exactly(Level),
}

/// Whether caches are maintained where the CPU does not do it.
///
/// Without FEAT_S2FWB a guest may read memory past the cache: what was
/// written through it must be cleaned before. Without `CTR_EL0.DIC` stale
/// instructions may be fetched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caches {
    /// As this CPU needs it.
    Maintain,
    /// The caller knows that nothing is stale.
    Skip,
}

/// A range to map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Map {
    /// First IPA, page-aligned.
    pub ipa: Ipa,
    /// First PA, page-aligned.
    pub pa: Pa,
    /// Bytes, a multiple of the page.
    pub size: u64,
    /// What the leaves say.
    pub attrs: Attrs,
    /// Which leaves to use.
    pub leaves: Leaves,
    /// What may stand there now.
    pub over: Over,
    /// Cache maintenance.
    pub caches: Caches,
}

impl Map {
    /// Largest leaves over empty entries, with cache maintenance.
    pub const fn new(ipa: Ipa, pa: Pa, size: u64, attrs: Attrs) -> Self {
        Self {
            ipa,
            pa,
            size,
            attrs,
            leaves: Leaves::Largest,
            over: Over::Nothing,
            caches: Caches::Maintain,
        }
    }

    /// The same with other leaves.
    pub const fn leaves(self, leaves: Leaves) -> Self {
        Self { leaves, ..self }
    }

    /// The same over other entries.
    pub const fn over(self, over: Over) -> Self {
        Self { over, ..self }
    }

    /// The same with other cache maintenance.
    pub const fn caches(self, caches: Caches) -> Self {
        Self { caches, ..self }
    }
}

/// What a walk for one IPA found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The level of the entry.
    pub level: Level,
    /// The descriptor.
    pub raw: u64,
    /// The descriptor, decoded.
    pub entry: Entry,
    /// The first IPA that the entry covers.
    pub base: Ipa,
}

/// Stage-2 tables that hardware may be walking.
///
/// The protocol between CPUs is at the head of the module `tree`: `&self`
/// operations may run at once, `&mut self` ones remove tables. So there is
/// one of each tree, and no second to be had of it:
///
/// ```compile_fail
/// # use pgtable::*;
/// fn another<M: TableMem + Clone>(tree: &Stage2<M>) -> Stage2<M> {
///     tree.clone()
/// }
/// ```
#[derive(Debug)]
pub struct Stage2<M: TableMem> {
    pub(crate) core: Core<M>,
    pub(crate) geometry: Geometry,
    vttbr: u64,
    #[cfg(feature = "extra")]
    /// A teardown is under way: what is frozen in the root is out of all TLBs.
    pub(crate) cut: bool,
}

impl<M: TableMem> Stage2<M> {
    /// Takes charge of a root: [`Geometry::root_tables`] adjacent zeroed
    /// pages at `root`, aligned to [`Geometry::root_align`].
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = tree();
    /// # let all = &mut Budget::unlimited();
    /// let geometry = Stage2Config::new(Granule::K4, 40, 40).validate()?;
    /// let memory = Tables::new();
    /// assert_eq!((geometry.root_tables(), geometry.root_align()), (2, 8192));
    /// let root = memory.page().expect("a page");
    /// let _second = memory.page();
    /// let guest = Stage2::new(geometry, root, Vmid::new(3), &memory)?;
    /// assert_eq!(guest.vttbr() >> 48, 3);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A root or VMID that `VTTBR_EL2` cannot hold.
    pub fn new(geometry: Geometry, root: Pa, vmid: Vmid, mem: M) -> Result<Self, ConfigError> {
        let vttbr = geometry.vttbr(root, vmid)?;
        let core = Core::new(
            mem,
            geometry.shape(),
            root,
            Regime::Stage2(Stage2Regs {
                vtcr: geometry.vtcr(),
                vttbr,
            }),
            geometry.features(),
            geometry.errata(),
        );
        Ok(Self {
            core,
            geometry,
            vttbr,
            #[cfg(feature = "extra")]
            cut: false,
        })
    }

    /// The same tree with another rule for its tables' counts. For a tree
    /// that is still empty.
    pub fn counting(mut self, counting: Counting) -> Self {
        self.core.counting = counting;
        self
    }

    /// The geometry.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `VTTBR_EL2` for this tree.
    pub const fn vttbr(&self) -> u64 {
        self.vttbr
    }

    /// Both registers of stage 2 for this tree.
    pub const fn regs(&self) -> Stage2Regs {
        Stage2Regs {
            vtcr: self.geometry.vtcr(),
            vttbr: self.vttbr,
        }
    }

    /// The first root table.
    pub const fn root(&self) -> Pa {
        Pa::new(self.core.root)
    }

    /// Walks for one IPA and tells what stands there.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let found = tree.lookup(Ipa::new(0x4000_1234))?;
    /// assert_eq!((found.level, found.base), (Level::L3, Ipa::new(0x4000_1000)));
    /// assert!(matches!(found.entry, Entry::Leaf { pa, .. } if pa == Pa::new(0x8000_1000)));
    /// let nothing = tree.lookup(Ipa::new(0))?;
    /// assert_eq!(nothing.entry, Entry::Invalid(Annotation::EMPTY));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range` outside the IPA space.
    pub fn lookup(&self, ipa: Ipa) -> Result<Found, Error> {
        self.lookup_to(ipa, Level::L3)
    }

    /// As [`lookup`](Self::lookup), going down to `level` at most.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let found = tree.lookup_to(Ipa::new(0x4000_1234), Level::L2)?;
    /// assert!(matches!(found.entry, Entry::Table(_)));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range` outside the IPA space.
    pub fn lookup_to(&self, ipa: Ipa, level: Level) -> Result<Found, Error> {
        if ipa.get() >= self.core.shape.ia_end() {
            return Err(Error::Range);
        }
        let slot = self.core.walk_to(ipa.get(), level.get());
        let level = crate::shape::Shape::level(slot.level);
        Ok(Found {
            level,
            raw: slot.raw,
            entry: self.geometry.decode(slot.raw, level),
            base: Ipa::new(slot.base(ipa.get())),
        })
    }

    /// Translates one IPA as hardware would, permissions apart.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (pa, attrs) = tree.translate(Ipa::new(0x4000_1234)).expect("mapped");
    /// assert_eq!((pa, attrs), (Pa::new(0x8000_1234), Attrs::MEMORY));
    /// assert_eq!(tree.translate(Ipa::new(0x1234)), None);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, Attrs)> {
        let found = self.lookup(ipa).ok()?;
        match found.entry {
            Entry::Leaf { pa, attrs, .. } => {
                Some((Pa::new(pa.get() + (ipa.get() - found.base.get())), attrs))
            }
            _ => None,
        }
    }

    /// Maps a range. Under this shared access a table in the place of a
    /// block is an error; see [`map_exclusive`](Self::map_exclusive).
    ///
    /// Returns the first IPA not mapped: the end, unless the budget ended.
    /// Where caches are maintained and FEAT_S2FWB is not there, leaves are of
    /// 2 MiB at most (4K: level 2; 16K and 64K: pages), so that cleaning one
    /// is one bounded step. Who knows that nothing is stale
    /// ([`Caches::Skip`]) gets the largest.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = tree();
    /// # let all = &mut Budget::unlimited();
    /// // 1 GiB and 4 MiB, known to be clean: a block of level 1 and two of level 2.
    /// let map = Map::new(Ipa::new(0x4000_0000), Pa::new(0x8000_0000), 0x4040_0000, Attrs::MEMORY)
    ///     .caches(Caches::Skip);
    /// assert_eq!(tree.map(&mut cpu, &map, all)?, Ipa::new(0x8040_0000));
    /// assert_eq!(tree.lookup(Ipa::new(0x4000_0000))?.level, Level::L1);
    /// assert_eq!(tree.lookup(Ipa::new(0x8000_0000))?.level, Level::L2);
    ///
    /// // What stands there is in the way, unless one says otherwise.
    /// let page = Map::new(Ipa::new(0x4000_0000), Pa::new(0x9000_0000), 4096, Attrs::MEMORY);
    /// let stopped = tree.map(&mut cpu, &page, all).unwrap_err();
    /// assert_eq!(stopped.why, Error::Exists { level: Level::L1 });
    /// tree.map(&mut cpu, &page.over(Over::Anything), all)?;
    /// assert_eq!(tree.lookup(Ipa::new(0x4000_1000))?.level, Level::L3);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`, `Attributes` and `BlockLevel` before anything is
    /// changed; `Exists`, `Busy`, `NoMem`, `NeedsExclusive` where it stopped,
    /// and `Range` where [`TableMem::alloc`] gave a page that is none of the
    /// output space.
    #[inline(always)]
    pub fn map<T: Maintenance>(
        &self,
        maint: &mut T,
        map: &Map,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        // One leaf is what a fault maps. The attributes are encoded here, in
        // the caller, where they mostly are a constant.
        let core = &self.core;
        let caches = core.caches_matter
            || matches!(
                map.attrs.memory,
                Memory::NormalNonCacheable | Memory::FromStage1
            );
        let level = match map.leaves {
            Leaves::Exactly(level) => level,
            Leaves::Largest | Leaves::AtMost(_) => Level::L3,
        };
        if map.size == core.shape.span(level)
            && !(caches && map.caches == Caches::Maintain)
            && let Ok(attrs) = self.geometry.encode_attrs(map.attrs)
            && core.map_one(maint, (map.ipa.get(), map.pa.get()), attrs, level.get())
        {
            budget.spend(1);
            return Ok(Ipa::new(map.ipa.get().wrapping_add(map.size)));
        }
        self.map_with::<Shared, _, _>(maint, map, &mut Ignore, budget)
    }

    pub(crate) fn map_with<A: Access, T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        map: &Map,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let job = self
            .map_job(map)
            .map_err(|why| Stopped { why, next: map.ipa })?;
        typed(Mapping::<M, T, S, A>::new(&self.core, maint, sink, job, budget).run())
    }

    /// All checks of a mapping, before anything is changed.
    #[inline]
    pub(crate) fn map_job(&self, map: &Map) -> Result<MapJob, Error> {
        let shape = &self.core.shape;
        let end = shape.check_ia(map.ipa.get(), map.size)?;
        shape.check_oa(map.pa.get(), map.size)?;
        let attrs = self.geometry.encode_attrs(map.attrs)?;
        let maintain = map.caches == Caches::Maintain;
        let clean = maintain && self.core.needs_clean(attrs);
        let clean_old = maintain && !self.core.fwb && map.over == Over::Anything;
        // A leaf's cleaning is one step.
        let largest = if clean || clean_old {
            shape.cleaned_top()
        } else {
            -1
        };
        let (top, exact) = match map.leaves {
            Leaves::Largest => (largest, false),
            Leaves::AtMost(level) => (largest.max(level.get()), false),
            Leaves::Exactly(level) => (level.get(), true),
        };
        if exact {
            let level = Level::new(top).unwrap_or(Level::L3);
            if !shape.leaf_ok(level) || level < shape.start() || top < largest {
                return Err(Error::BlockLevel { level });
            }
            if (map.ipa.get() | map.pa.get() | map.size) & (shape.span(level) - 1) != 0 {
                return Err(Error::Align);
            }
        }
        Ok(MapJob {
            start: map.ipa.get(),
            end,
            oa: map.pa.get(),
            attrs,
            top: top.max(shape.start().get()),
            exact,
            over: map.over,
            clean,
            fetched: maintain && self.core.needs_fetch_sync(attrs),
            clean_old,
        })
    }

    /// Removes what `[ipa, ipa + size)` maps, and the tables that become
    /// empty. Entries end up empty; annotations go too. `sink` is told of
    /// each leaf, after every TLB has forgotten it (and, without
    /// FEAT_S2FWB, after its cache lines are cleaned and invalidated: the
    /// guest may have written past the cache). With FEAT_S2FWB only memory
    /// that was mapped as something else than [`Memory::Normal`] may have been
    /// written so: whoever maps such memory maintains it when it is told.
    ///
    /// Returns the first IPA not done: the end, unless the budget ended. In
    /// that case call again from there before anything else is done with
    /// the rest of the range: a large table may be taken apart half.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, size) = (Ipa::new(0x4000_0000), 3 * 4096);
    /// let mut free = Vec::new();
    /// let mut sink = |leaf: RemovedLeaf| free.push((leaf.pa(), leaf.size()));
    /// let next = tree.unmap(&mut cpu, ipa, size, Partial::Split, &mut sink, all)?;
    /// assert_eq!(next, Ipa::new(0x4000_3000));
    /// assert_eq!(free[0], (Pa::new(0x8000_0000), 4096));
    /// assert_eq!(free.len(), 3);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`; `InsideBlock`, `NoMem` (to split) where it stopped.
    pub fn unmap<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        partial: Partial,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let job = self.unmap_job(ipa, size, partial)?;
        self.clear::<Exclusive, _, _>(maint, sink, job, budget)
    }

    pub(crate) fn clear<A: Access, T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        sink: &mut S,
        job: UnmapJob,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        typed(Unmap::<M, T, S, A>::new(&self.core, maint, sink, job, budget).run())
    }

    /// All checks of a removal, before anything is changed.
    pub(crate) fn unmap_job(
        &self,
        ipa: Ipa,
        size: u64,
        partial: Partial,
    ) -> Result<UnmapJob, Stopped<Ipa>> {
        let end = self.core.shape.check_ia(ipa.get(), size);
        Ok(UnmapJob {
            start: ipa.get(),
            end: end.map_err(|why| Stopped { why, next: ipa })?,
            blank: 0,
            partial,
            clean: !self.core.fwb,
        })
    }
}

/// Gives raw progress its address type.
pub(crate) fn typed<A: InputAddress>(result: Result<u64, Stopped<u64>>) -> Result<A, Stopped<A>> {
    match result {
        Ok(next) => Ok(A::from_raw(next)),
        Err(Stopped { why, next }) => Err(Stopped {
            why,
            next: A::from_raw(next),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Annotation;
    use crate::testing::{Log, Plain};
    use crate::{Granule, RemovedLeaf, Stage2Config};
    extern crate std;
    use std::vec::Vec;

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn config(granule: Granule) -> Geometry {
        let mut config = Stage2Config::new(granule, 40, 48);
        config.features.tlb_range = true;
        config.features.ttl = true;
        config.features.fwb = true;
        config.features.dic = true;
        config.validate().unwrap()
    }

    fn tree(granule: Granule, mem: &Plain) -> (Stage2<&Plain>, Log) {
        let geometry = config(granule);
        let root = mem.root(geometry.root_align());
        let tree = Stage2::new(geometry, root, Vmid::new(5), mem).unwrap();
        let log = Log {
            regs: tree.regs(),
            ..Log::default()
        };
        (tree, log)
    }

    fn memory(granule: Granule) -> Plain {
        Plain::new(granule.page_size(), 16 * MIB)
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn largest_leaves_are_used() {
        let mem = memory(Granule::K4);
        let (tree, mut log) = tree(Granule::K4, &mem);
        let map = Map::new(
            Ipa::new(0x4000_0000),
            Pa::new(0x8000_0000),
            GIB + MIB * 4,
            Attrs::MEMORY,
        );
        let next = tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        assert_eq!(next, Ipa::new(0x8040_0000));
        assert_eq!(tree.lookup(Ipa::new(0x4123_4567)).unwrap().level, Level::L1);
        assert_eq!(tree.lookup(Ipa::new(0x8012_3456)).unwrap().level, Level::L2);
        let (pa, attrs) = tree.translate(Ipa::new(0x8012_3456)).unwrap();
        assert_eq!(pa, Pa::new(0xc012_3456));
        assert_eq!(attrs, Attrs::MEMORY);
        assert_eq!(mem.live.get(), 1);
        assert_eq!((log.tlbis(), log.barriers()), (0, 1));
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn a_gibibyte_of_pages_goes_with_two_tlbis() {
        let mem = memory(Granule::K4);
        let (mut tree, mut log) = tree(Granule::K4, &mem);
        let map = Map::new(
            Ipa::new(0x4000_0000),
            Pa::new(0x8000_0000),
            GIB,
            Attrs::MEMORY,
        )
        .leaves(Leaves::Exactly(Level::L3));
        tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        assert_eq!(mem.live.get(), 513);
        log.events.clear();
        let mut gone = 0u64;
        let mut sink = |leaf: RemovedLeaf| {
            assert_eq!(leaf.pa().get(), 0x8000_0000 + gone * 4096);
            gone += 1;
        };
        tree.unmap(
            &mut log,
            map.ipa,
            GIB,
            Partial::Split,
            &mut sink,
            &mut Budget::unlimited(),
        )
        .unwrap();
        assert_eq!(gone, 262_144);
        assert_eq!(mem.live.get(), 0);
        assert_eq!((log.tlbis(), log.barriers()), (2, 4));
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn a_page_out_of_a_block_leaves_the_rest() {
        for granule in Granule::ALL {
            let mem = memory(granule);
            let (mut tree, mut log) = tree(granule, &mem);
            let span = tree.geometry().span(Level::L2);
            let page = granule.page_size();
            let base = 4 * span;
            let map = Map::new(Ipa::new(base), Pa::new(8 * span), span, Attrs::MEMORY);
            tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
            assert_eq!(tree.lookup(Ipa::new(base)).unwrap().level, Level::L2);
            let hole = Ipa::new(base + 7 * page);
            let refused = tree.unmap(
                &mut log,
                hole,
                page,
                Partial::Refuse,
                &mut Ignore,
                &mut Budget::unlimited(),
            );
            assert_eq!(
                refused,
                Err(Stopped {
                    why: Error::InsideBlock { level: Level::L2 },
                    next: hole
                })
            );
            tree.unmap(
                &mut log,
                hole,
                page,
                Partial::Split,
                &mut Ignore,
                &mut Budget::unlimited(),
            )
            .unwrap();
            for index in 0..granule.entries() as u64 {
                let at = Ipa::new(base + index * page);
                let expected = (index != 7).then(|| Pa::new(8 * span + index * page));
                assert_eq!(tree.translate(at).map(|(pa, _)| pa), expected);
            }
            // Back again, then all of it: no table is left.
            let map = Map::new(hole, Pa::new(8 * span + 7 * page), page, Attrs::MEMORY);
            tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
            tree.unmap(
                &mut log,
                Ipa::new(base),
                span,
                Partial::Split,
                &mut Ignore,
                &mut Budget::unlimited(),
            )
            .unwrap();
            assert_eq!(mem.live.get(), 0);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn pages_become_a_block_again() {
        let mem = memory(Granule::K4);
        let (mut tree, mut log) = tree(Granule::K4, &mem);
        let block = Map::new(
            Ipa::new(0x4000_0000),
            Pa::new(0x8000_0000),
            4 * MIB,
            Attrs::MEMORY,
        );
        let pages = block.leaves(Leaves::Exactly(Level::L3));
        tree.map(&mut log, &pages, &mut Budget::unlimited())
            .unwrap();
        let shared = tree.map(
            &mut log,
            &block.over(Over::Anything),
            &mut Budget::unlimited(),
        );
        assert_eq!(
            shared.unwrap_err().why,
            Error::NeedsExclusive { level: Level::L2 }
        );
        let mut gone = Vec::new();
        tree.map_exclusive(
            &mut log,
            &block.over(Over::Anything),
            &mut |leaf: RemovedLeaf| gone.push(leaf.ia()),
            &mut Budget::unlimited(),
        )
        .unwrap();
        assert_eq!(gone.len(), 1024);
        assert_eq!(mem.live.get(), 1);
        assert_eq!(tree.lookup(Ipa::new(0x4000_0000)).unwrap().level, Level::L2);
    }

    #[test]
    fn annotations_stay_when_tables_are_made_under_them() {
        let mem = memory(Granule::K4);
        let (mut tree, mut log) = tree(Granule::K4, &mem);
        let owner = Annotation::new(0x1230).unwrap();
        tree.annotate(
            &mut log,
            Ipa::new(0x4000_0000),
            GIB,
            owner,
            Partial::Split,
            &mut Ignore,
            &mut Budget::unlimited(),
        )
        .unwrap();
        assert_eq!(mem.live.get(), 0);
        let map = Map::new(
            Ipa::new(0x4000_5000),
            Pa::new(0x9000_0000),
            4096,
            Attrs::MEMORY,
        );
        let refused = tree
            .map(&mut log, &map, &mut Budget::unlimited())
            .unwrap_err();
        assert_eq!(refused.why, Error::Exists { level: Level::L1 });
        tree.map(&mut log, &map.over(Over::Invalid), &mut Budget::unlimited())
            .unwrap();
        assert_eq!(
            tree.lookup(Ipa::new(0x4000_4000)).unwrap().entry,
            Entry::Invalid(owner)
        );
        assert!(tree.translate(map.ipa).is_some());
    }

    #[test]
    fn no_memory_leaves_what_is_below_next() {
        let mem = memory(Granule::K4);
        let (tree, mut log) = tree(Granule::K4, &mem);
        mem.limit.set(3);
        let map = Map::new(
            Ipa::new(0x4000_0000),
            Pa::new(0x8000_0000),
            8 * MIB,
            Attrs::MEMORY,
        )
        .leaves(Leaves::Exactly(Level::L3));
        let stopped = tree
            .map(&mut log, &map, &mut Budget::unlimited())
            .unwrap_err();
        assert_eq!(
            stopped,
            Stopped {
                why: Error::NoMem,
                next: Ipa::new(0x4040_0000)
            }
        );
        assert!(tree.translate(Ipa::new(0x403f_ffff)).is_some());
        assert!(tree.translate(Ipa::new(0x4040_0000)).is_none());
        assert_eq!(log.barriers(), 1);
    }

    #[test]
    #[cfg_attr(miri, ignore = "too long there")]
    fn a_budget_bounds_a_teardown_and_it_ends() {
        let mem = memory(Granule::K4);
        let (mut tree, mut log) = tree(Granule::K4, &mem);
        for gib in [1u64, 3, 500] {
            let map = Map::new(Ipa::new(gib * GIB), Pa::new(0), 64 * MIB, Attrs::MEMORY)
                .leaves(Leaves::Exactly(Level::L3));
            tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        }
        let end = 1u64 << 40;
        let mut at = Ipa::new(0);
        let mut calls = 0;
        while at.get() < end {
            let mut budget = Budget::entries(1);
            at = tree
                .unmap(
                    &mut log,
                    at,
                    end - at.get(),
                    Partial::Split,
                    &mut Ignore,
                    &mut budget,
                )
                .unwrap();
            calls += 1;
            assert!(calls < 5000);
        }
        assert!(calls > 90);
        assert_eq!(mem.live.get(), 0);
    }

    #[test]
    fn another_vmid_is_made_current_and_put_back() {
        let mem = memory(Granule::K4);
        let (mut tree, mut log) = tree(Granule::K4, &mem);
        let map = Map::new(Ipa::new(0), Pa::new(0), 4096, Attrs::MEMORY);
        tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        let other = Stage2Regs {
            vtcr: 0x8000_0000,
            vttbr: 0x0007_0000_1234_0000,
        };
        log.regs = other;
        log.events.clear();
        tree.unmap(
            &mut log,
            map.ipa,
            4096,
            Partial::Split,
            &mut Ignore,
            &mut Budget::unlimited(),
        )
        .unwrap();
        use crate::testing::Event::{self, Stage2 as Regs};
        use crate::{Barrier::*, TlbiKind::*};
        let b = Event::Barrier;
        let kinds: Vec<Event> = log.events.clone();
        assert_eq!(kinds[0], b(DsbIsh));
        assert_eq!(kinds[1], Regs(tree.regs()));
        assert_eq!(kinds[2], b(Isb));
        assert!(matches!(kinds[3], Event::Tlbi(op) if op.kind() == Ipas2e1is));
        assert_eq!(kinds[4], b(DsbIsh));
        assert!(matches!(kinds[5], Event::Tlbi(op) if op.kind() == Vmalle1is));
        assert_eq!(kinds[6], b(DsbIsh));
        assert_eq!(kinds[7], b(Isb));
        assert_eq!(kinds[8], Regs(other));
        assert_eq!(kinds[9], b(Isb));
        assert_eq!(kinds.len(), 10);
    }

    #[test]
    fn without_fwb_lines_are_cleaned_before_and_after() {
        use crate::CacheOp::{self, CleanInvalidateData};
        let mem = memory(Granule::K4);
        let geometry = Stage2Config::new(Granule::K4, 40, 48).validate().unwrap();
        let root = mem.root(geometry.root_align());
        let mut tree = Stage2::new(geometry, root, Vmid::new(5), &mem).unwrap();
        let mut log = Log {
            regs: tree.regs(),
            ..Log::default()
        };
        let (pa, size) = (Pa::new(0x8000_0000), 3 * 4096);
        let map = Map::new(Ipa::new(0x4000_0000), pa, size, Attrs::MEMORY);
        tree.map(&mut log, &map, &mut Budget::unlimited()).unwrap();
        use crate::testing::Event;
        let caches: Vec<Event> = log.events.drain(..).collect();
        assert_eq!(
            caches[..2],
            [
                Event::Cache(CleanInvalidateData { pa, size }),
                Event::Cache(CacheOp::InvalidateInstructions),
            ]
        );
        let all = &mut Budget::unlimited();
        tree.unmap(&mut log, map.ipa, size, Partial::Split, &mut Ignore, all)
            .unwrap();
        let tlbi = log
            .events
            .iter()
            .rposition(|event| matches!(event, Event::Tlbi(_)))
            .unwrap();
        let cleaned: Vec<usize> = (0..log.events.len())
            .filter(|&at| matches!(log.events[at], Event::Cache(CleanInvalidateData { .. })))
            .collect();
        // Three pages whose memory is adjacent: one run.
        let [last] = cleaned[..] else {
            panic!("{cleaned:?}");
        };
        assert_eq!(
            log.events[last],
            Event::Cache(CleanInvalidateData { pa, size })
        );
        assert!(last > tlbi);
    }
}

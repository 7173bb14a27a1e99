//! The public face of stage 2: one guest's tables, or the host's.

use crate::addr::{Ia, Ipa, Level, Pa, Vmid};
use crate::attrs::{Attrs, Memory};
use crate::config_error::ConfigError;
use crate::counting::Counting;
use crate::desc::Desc;
use crate::error::{Budget, Error, Stopped};
use crate::format::{Annotation, Entry};
use crate::geometry::Geometry;
use crate::maintenance::{Maintenance, Stage2Regs};
use crate::map::{MapJob, Mapping};
use crate::mem::TableMem;
use crate::plan::Regime;
use crate::sink::{Ignore, LeafSink};
use crate::tree::{Access, Core, Exclusive, Over, Shared};
use crate::unmap::{Partial, Removal, UnmapJob};

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

/// A range to unmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmap {
    /// First IPA, page-aligned.
    pub ipa: Ipa,
    /// Bytes, a multiple of the page.
    pub size: u64,
    /// What becomes of a block that it covers in part.
    pub partial: Partial,
    /// What its entries say afterwards.
    pub leave: Annotation,
}

impl Unmap {
    /// Leaves nothing; blocks at the ends are split.
    pub const fn new(ipa: Ipa, size: u64) -> Self {
        Self {
            ipa,
            size,
            partial: Partial::Split,
            leave: Annotation::EMPTY,
        }
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
        let regime = Regime::Stage2(Stage2Regs {
            vtcr: geometry.vtcr(),
            vttbr,
        });
        Ok(Self {
            core: Core::new(mem, root, regime, &geometry.0),
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
        self.core.root
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
        let ia = self.core.shape.check(ipa.into())?;
        let slot = self.core.walk_to(ia, level);
        Ok(Found {
            level: slot.level,
            raw: slot.desc.raw(),
            entry: self.geometry.decode(slot.desc.raw(), slot.level),
            base: slot.ia.into(),
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
            Entry::Leaf { pa, attrs, .. } => Some((pa.plus(ipa.get() - found.base.get()), attrs)),
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
        let caches = !(core.features.fwb && core.features.dic)
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
            && core.map_one(maint, (map.ipa.into(), map.pa), attrs, level)
        {
            budget.spend(1);
            return Ok(map.ipa.plus(map.size));
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
        let job = self.map_job(map).map_err(Stopped::at(map.ipa))?;
        let mapping = Mapping::<M, T, S, A>::new(self.core.work(maint), sink, budget, job);
        typed(mapping.run())
    }

    /// All checks of a mapping, before anything is changed.
    #[inline]
    pub(crate) fn map_job(&self, map: &Map) -> Result<MapJob, Error> {
        let (shape, features) = (&self.core.shape, &self.core.features);
        let leaf = self.geometry.encode_attrs(map.attrs)?;
        let maintain = map.caches == Caches::Maintain;
        let clean = maintain && features.needs_clean(leaf);
        let clean_old = maintain && !features.fwb && map.over == Over::Anything;
        // A leaf's cleaning is one step.
        let largest = if clean || clean_old {
            shape.cleaned_top()
        } else {
            Level::MINUS_1
        };
        let range = (map.ipa.into(), map.pa, map.size);
        let job = MapJob::new(shape, range, leaf, map.leaves, largest)?;
        Ok(MapJob {
            over: map.over,
            clean,
            fetched: maintain && features.needs_fetch_sync(leaf),
            clean_old,
            ..job
        })
    }

    /// Removes what a range maps, and the tables that become empty. Entries end
    /// up as it says, empty or annotated; annotations that were there go. `sink` is told of
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
    /// let pages = Unmap::new(Ipa::new(0x4000_0000), 3 * 4096);
    /// let mut free = Vec::new();
    /// let mut sink = |leaf: RemovedLeaf| free.push((leaf.pa(), leaf.size()));
    /// let next = tree.unmap(&mut cpu, &pages, &mut sink, all)?;
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
        range: &Unmap,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        // A page whose table keeps others, and that nobody is told of: what a granule
        // costs that changes owner, so it is short.
        if !S::WANTS
            && range.size == self.core.shape.span(Level::L3)
            && range.leave == Annotation::EMPTY
            && self.core.unmap_one(maint, range.ipa.into())
        {
            budget.spend(1);
            return Ok(range.ipa.plus(range.size));
        }
        self.unmap_with::<Exclusive, _, _>(maint, range, sink, budget)
    }

    pub(crate) fn unmap_with<A: Access, T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        range: &Unmap,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let covered = self.core.shape.check_ia(range.ipa.into(), range.size);
        let job = UnmapJob {
            range: covered.map_err(Stopped::at(range.ipa))?,
            blank: Desc::new(range.leave.get()),
            partial: range.partial,
            clean: !self.core.features.fwb,
        };
        let removal = Removal::<M, T, S, A>::new(self.core.work(maint), sink, budget, job);
        typed(removal.run())
    }
}

/// Gives progress the type of the face's addresses.
pub(crate) fn typed<A: From<Ia>>(result: Result<Ia, Stopped<Ia>>) -> Result<A, Stopped<A>> {
    result.map(A::from).map_err(Stopped::into)
}

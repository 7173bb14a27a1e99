//! Ranges mapped over others, annotated, and unmapped beside other CPUs.

use crate::addr::Ipa;
use crate::error::{Budget, Stopped};
use crate::format::Annotation;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::sink::LeafSink;
use crate::stage2::{Map, Stage2, Unmap};
use crate::sync::Synced;
use crate::tree::{Exclusive, Shared};
use crate::unmap::Partial;

impl Map {
    /// What is left of it from `next` on, where a call came to: for the next
    /// one. Nothing is left at its end, or past it.
    ///
    /// ```
    /// # use pgtable::*;
    /// let map = Map::new(Ipa::new(0x4000), Pa::new(0x9000), 0x3000, Attrs::MEMORY);
    /// let rest = map.advance(Ipa::new(0x5000));
    /// assert_eq!((rest.ipa, rest.pa, rest.size), (Ipa::new(0x5000), Pa::new(0xa000), 0x2000));
    /// ```
    pub const fn advance(self, next: Ipa) -> Self {
        let done = next.get().saturating_sub(self.ipa.get());
        let done = if done < self.size { done } else { self.size };
        Self {
            ipa: self.ipa.plus(done),
            pa: self.pa.plus(done),
            size: self.size - done,
            ..self
        }
    }
}

impl Unmap {
    /// The same with something else for blocks at the ends.
    pub const fn partial(self, partial: Partial) -> Self {
        Self { partial, ..self }
    }

    /// The same, which leaves `annotation` at the largest entries that stand inside
    /// the range.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, owner) = (Ipa::new(0x4000_2000), Annotation::new(7 << 12).expect("bits 1:0 are 0"));
    /// tree.unmap(&mut cpu, &Unmap::new(ipa, 4096).leaving(owner), &mut Ignore, all)?;
    /// assert_eq!(tree.lookup(ipa)?.entry, Entry::Invalid(owner));
    /// // Not to be mapped by accident.
    /// let page = Map::new(ipa, Pa::new(0x9000_0000), 4096, Attrs::MEMORY);
    /// assert!(tree.map(&mut cpu, &page, all).is_err());
    /// tree.map(&mut cpu, &page.over(Over::Invalid), all)?;
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn leaving(self, annotation: Annotation) -> Self {
        Self {
            leave: annotation,
            ..self
        }
    }
}

impl<M: TableMem> Stage2<M> {
    /// The memory that tables live in.
    pub const fn mem(&self) -> &M {
        &self.core.mem
    }

    /// As [`map`](Self::map), and with [`Over::Anything`](crate::Over::Anything) collapses tables
    /// into blocks, table by table. `sink` is told of leaves that are gone, and
    /// not of blocks in a table of tables that say what the new one says. Where a budget
    /// ends within such a table, what of it is above `next` may have the new mapping.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let block = Map::new(Ipa::new(0x4000_0000), Pa::new(0x8000_0000), 2 << 20, Attrs::MEMORY);
    /// let mut pages = 0;
    /// let mut sink = |_: RemovedLeaf| pages += 1;
    /// tree.map_exclusive(&mut cpu, &block.over(Over::Anything), &mut sink, all)?;
    /// assert_eq!(tree.lookup(Ipa::new(0x4000_0000))?.level, Level::L2);
    /// assert_eq!(pages, 512);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_exclusive<T: Maintenance, S: LeafSink>(
        &mut self,
        maint: &mut T,
        map: &Map,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        self.map_with::<Exclusive, _, _>(maint, map, sink, budget)
    }

    /// As [`unmap`](Self::unmap) beside other CPUs: tables stay.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let ipa = Ipa::new(0x4000_0000);
    /// let range = Unmap::new(ipa, 2 << 20).partial(Partial::Refuse);
    /// tree.unmap_leaves(&mut cpu, &range, &mut Ignore, all)?;
    /// assert_eq!(tree.translate(ipa), None);
    /// // Its table is still there.
    /// assert_eq!(tree.lookup(ipa)?.level, Level::L3);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`unmap`](Self::unmap), and `Busy`.
    pub fn unmap_leaves<T: Maintenance, S: LeafSink>(
        &self,
        maint: &mut T,
        range: &Unmap,
        sink: &mut S,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        self.unmap_with::<Shared, _, _>(maint, range, sink, budget)
    }

    /// Invalidates everything of this VMID on all CPUs: before a VMID is
    /// used again for another tree.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// // The proof frees what was taken out of this tree by other means.
    /// let _proof: Synced = tree.invalidate_all(&mut cpu);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn invalidate_all<T: Maintenance>(&self, maint: &mut T) -> Synced {
        self.core.work(maint).sync_all()
    }
}

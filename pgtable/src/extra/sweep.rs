//! Operations that change the leaves of a range in place.

use crate::addr::{Ia, Ipa, Level};
use crate::desc::{AF, DBM, Desc, S2AP_WRITE};
use crate::error::{Budget, Error, Stopped};
use crate::extra::alter::{Alter, Altering};
use crate::extra::gather::Gather;
use crate::maintenance::Maintenance;
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::stage2::{Stage2, typed};
use crate::unmap::Partial;

/// When the invalidation of changed leaves happens.
#[derive(Debug)]
pub enum Flush<'a> {
    /// Before the operation returns.
    Now,
    /// When the caller syncs the gather.
    Later(&'a mut Gather),
}

/// A range whose leaves are changed in place.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// First IPA, page-aligned.
    pub ipa: Ipa,
    /// Bytes, a multiple of the page.
    pub size: u64,
    /// What becomes of a block that it covers in part.
    pub partial: Partial,
    /// When TLBs forget what was.
    pub flush: Flush<'a>,
}

impl<'a> Sweep<'a> {
    /// Blocks at the ends change whole, and TLBs forget at once.
    pub const fn new(ipa: Ipa, size: u64) -> Self {
        Self {
            ipa,
            size,
            partial: Partial::DropWhole,
            flush: Flush::Now,
        }
    }

    /// The same with something else for blocks at the ends.
    pub fn partial(self, partial: Partial) -> Self {
        Self { partial, ..self }
    }

    /// The same, to be invalidated with a gather.
    pub fn later(self, gather: &'a mut Gather) -> Self {
        let flush = Flush::Later(gather);
        Self { flush, ..self }
    }
}

struct WriteProtect;

impl Alter for WriteProtect {
    #[inline]
    fn alter(&mut self, leaf: Desc) -> Desc {
        leaf.without(S2AP_WRITE | DBM)
    }
}

/// Counts, and changes nothing.
struct CountYoung<'a>(&'a mut u64);

impl Alter for CountYoung<'_> {
    const BREAKS_GROUPS: bool = false;

    #[inline]
    fn alter(&mut self, leaf: Desc) -> Desc {
        *self.0 += u64::from(leaf.has(AF));
        leaf
    }
}

struct ClearYoung;

impl Alter for ClearYoung {
    const SURE: Option<u64> = Some(AF);
    const BREAKS_GROUPS: bool = false;

    #[inline]
    fn alter(&mut self, leaf: Desc) -> Desc {
        leaf.without(AF)
    }
}

/// Tells of leaves that were written.
struct Harvest<F>(F);

impl<F: FnMut(Ia, Level)> Alter for Harvest<F> {
    #[inline]
    fn alter(&mut self, leaf: Desc) -> Desc {
        if leaf.has(S2AP_WRITE) {
            leaf.without(S2AP_WRITE).with(DBM)
        } else {
            leaf
        }
    }

    #[inline]
    fn altered(&mut self, at: Ia, level: Level, old: Desc) {
        if old.has(DBM) {
            (self.0)(at, level);
        }
    }
}

impl<M: TableMem> Stage2<M> {
    /// Changes leaves of a range and flushes as told. Returns where it came to, and
    /// how many it changed.
    #[inline]
    pub(crate) fn sweep<T: Maintenance, C: Alter>(
        &self,
        maint: &mut T,
        sweep: Sweep<'_>,
        change: C,
        budget: &mut Budget,
    ) -> Result<(Ipa, u64), Stopped<Ipa>> {
        let Sweep { ipa, flush, .. } = sweep;
        let range = self.core.shape.check_ia(ipa.into(), sweep.size);
        let range = range.map_err(Stopped::at(ipa))?;
        let mut now = Pending::new();
        let pending = match flush {
            Flush::Now => &mut now,
            Flush::Later(gather) => {
                let gather = gather.of(self.vttbr()).map_err(Stopped::at(ipa))?;
                &mut gather.pending
            }
        };
        let mut altering = Altering {
            work: self.core.work(&mut *maint),
            pending,
            budget,
            range,
            partial: sweep.partial,
            change,
            count: 0,
        };
        let result = altering.run();
        let count = altering.count;
        let _done = self.core.work(maint).sync(now.runs());
        typed(result).map(|next| (next, count))
    }

    /// Takes the right to write from all leaves of a range, for dirty logging by faults.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// tree.write_protect(&mut cpu, Sweep::new(Ipa::new(0x4000_0000), 2 << 20), all)?;
    /// // The next write faults, is logged, and may go on.
    /// let more = Permissions { access: Access::ReadWrite, execute: Execute::All };
    /// tree.relax(&mut cpu, Ipa::new(0x4000_5678), more)?;
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align` at once; `Busy` where it stopped.
    pub fn write_protect<T: Maintenance>(
        &self,
        maint: &mut T,
        range: Sweep<'_>,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let done = self.sweep(maint, range, WriteProtect, budget)?;
        Ok(done.0)
    }

    /// Counts the leaves of a range whose access flag is set.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (next, young) = tree.count_young(&mut cpu, Ipa::new(0x4000_0000), 2 << 20, all)?;
    /// assert_eq!((next, young), (Ipa::new(0x4020_0000), 512));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align` at once; `Busy` where it stopped.
    pub fn count_young<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        budget: &mut Budget,
    ) -> Result<(Ipa, u64), Stopped<Ipa>> {
        let mut young = 0;
        let count = CountYoung(&mut young);
        let (next, _) = self.sweep(maint, Sweep::new(ipa, size), count, budget)?;
        Ok((next, young))
    }

    /// Clears the access flag of all leaves of a range and counts those that
    /// had it. TLBs may go on using a leaf without setting the flag again
    /// until the gather is synced; a caller that only wants a statistic may
    /// sync rarely.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, size) = (Ipa::new(0x4000_0000), 2 << 20);
    /// let (_, were) = tree.clear_young(&mut cpu, Sweep::new(ipa, size), all)?;
    /// tree.mark_young(&mut cpu, ipa)?; // By an access flag fault, or by hardware.
    /// let (_, are) = tree.count_young(&mut cpu, ipa, size, all)?;
    /// assert_eq!((were, are), (512, 1));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align` at once; `Busy` where it stopped.
    pub fn clear_young<T: Maintenance>(
        &self,
        maint: &mut T,
        range: Sweep<'_>,
        budget: &mut Budget,
    ) -> Result<(Ipa, u64), Stopped<Ipa>> {
        self.sweep(maint, range, ClearYoung, budget)
    }

    /// Starts or restarts dirty tracking by hardware in a range: writable
    /// leaves become read-only with DBM, so that a write sets S2AP\[1\]
    /// again. `dirty` is told of leaves that had DBM and were written: their
    /// IPA and size. With `Flush::Later` a write that goes through a stale
    /// TLB entry is in no log until the sync.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, size) = (Ipa::new(0x4000_0000), 2 << 20);
    /// // The first harvest begins: from here on hardware marks what is written.
    /// tree.harvest_dirty(&mut cpu, Sweep::new(ipa, size), all, |_, _| ())?;
    /// let mut dirty = Vec::new();
    /// let tell = |at, bytes| dirty.push((at, bytes));
    /// tree.harvest_dirty(&mut cpu, Sweep::new(ipa, size), all, tell)?;
    /// assert!(dirty.is_empty()); // Nobody wrote.
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Attributes` without FEAT_HAFDBS dirty state; else as
    /// [`write_protect`](Self::write_protect).
    pub fn harvest_dirty<T: Maintenance>(
        &self,
        maint: &mut T,
        range: Sweep<'_>,
        budget: &mut Budget,
        mut dirty: impl FnMut(Ipa, u64),
    ) -> Result<Ipa, Stopped<Ipa>> {
        if !self.geometry.features().hw_dirty {
            let (why, next) = (Error::Attributes, range.ipa);
            return Err(Stopped { why, next });
        }
        let shape = &self.core.shape;
        let tell = |at: Ia, level| dirty(at.into(), shape.span(level));
        let done = self.sweep(maint, range, Harvest(tell), budget)?;
        Ok(done.0)
    }
}

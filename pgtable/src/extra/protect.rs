//! Permissions: restricted for a range, relaxed for one fault.

use crate::addr::Ipa;
use crate::attrs::{Access, Age, Attrs, Dirty, Execute};
use crate::error::{Budget, Error, Stopped};
use crate::extra::leaves::{ChangeJob, Gather};
use crate::format::{self, AF, DBM, S2AP_READ, S2AP_WRITE, XN};
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::plan::Pending;
use crate::stage2::{Stage2, typed};
use crate::sync::{self, Synced};
use crate::unmap::Partial;

/// When the invalidation of changed leaves happens.
#[derive(Debug)]
pub enum Flush<'a> {
    /// Before the operation returns.
    Now,
    /// When the caller syncs the gather.
    Later(&'a mut Gather),
}

/// What a leaf shall allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// Loads and stores.
    pub access: Access,
    /// Instruction fetch.
    pub execute: Execute,
}

/// How leaves are changed.
#[derive(Clone, Copy)]
struct How {
    partial: Partial,
    break_groups: bool,
    sure: u64,
}

impl How {
    const fn new(partial: Partial) -> Self {
        Self {
            partial,
            break_groups: true,
            sure: 0,
        }
    }
}

impl<M: TableMem> Stage2<M> {
    /// Gives all leaves of a range these permissions. Memory type, address
    /// and everything else stay. Dirty tracking (DBM) ends where the range
    /// becomes read-only, or writes would go on.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, size) = (Ipa::new(0x4000_0000), 2 << 20);
    /// let read_only = Permissions { access: Access::Read, execute: Execute::Never };
    /// tree.protect(&mut cpu, ipa, size, read_only, Partial::Split, Flush::Now, all)?;
    /// let (_, attrs) = tree.translate(ipa).expect("mapped");
    /// assert_eq!((attrs.access, attrs.execute), (Access::Read, Execute::Never));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`, `Attributes` at once; `InsideBlock`, `NoMem` (to
    /// split), `Busy` where it stopped.
    #[allow(clippy::too_many_arguments)]
    pub fn protect<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        permissions: Permissions,
        partial: Partial,
        flush: Flush<'_>,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let attrs = Attrs {
            access: permissions.access,
            execute: permissions.execute,
            ..Attrs::MEMORY
        };
        let bits = self
            .geometry
            .encode_attrs(attrs)
            .map_err(|why| Stopped { why, next: ipa })?
            & (S2AP_READ | S2AP_WRITE | XN);
        let keeps_dbm = bits & S2AP_WRITE != 0;
        let clear = S2AP_READ | S2AP_WRITE | XN | if keeps_dbm { 0 } else { DBM };
        let core = &self.core;
        let instructions = !core.dic;
        let before = |maint: &mut T, _, old, new| {
            if instructions && gains_execute(old, new, core.xnx) {
                maint.cache(CacheOp::InvalidateInstructions);
            }
        };
        let how = How::new(partial);
        let change = |raw| raw & !clear | bits;
        let told = |_, _, _| ();
        self.change::<false, T>(maint, ipa, size, how, flush, budget, change, before, told)
            .map(|(next, _)| next)
    }

    /// Takes the right to write from all leaves of a range; blocks that it
    /// covers in part lose it whole. For dirty logging by faults.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// tree.write_protect(&mut cpu, Ipa::new(0x4000_0000), 2 << 20, Flush::Now, all)?;
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
        ipa: Ipa,
        size: u64,
        flush: Flush<'_>,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let clear = S2AP_WRITE | DBM;
        let how = How::new(Partial::DropWhole);
        let change = |raw| raw & !clear;
        let (before, told) = (|_: &mut T, _, _, _| (), |_, _, _| ());
        self.change::<false, T>(maint, ipa, size, how, flush, budget, change, before, told)
            .map(|(next, _)| next)
    }

    /// Changes leaves of a range and flushes as told.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    fn change<const SURE: bool, T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        how: How,
        flush: Flush<'_>,
        budget: &mut Budget,
        change: impl Fn(u64) -> u64,
        before: impl FnMut(&mut T, i8, u64, u64),
        changed: impl FnMut(u64, i8, u64),
    ) -> Result<(Ipa, u64), Stopped<Ipa>> {
        let core = &self.core;
        let end = core
            .shape
            .check_ia(ipa.get(), size)
            .map_err(|why| Stopped { why, next: ipa })?;
        let mut job = ChangeJob {
            start: ipa.get(),
            end,
            partial: how.partial,
            break_groups: how.break_groups,
            sure: how.sure,
            count: 0,
        };
        let mut now = Pending::new();
        let (pending, at_once) = match flush {
            Flush::Now => (&mut now, true),
            Flush::Later(gather) if !gather.is_of(self.vttbr()) => {
                let why = Error::OtherTree;
                return Err(Stopped { why, next: ipa });
            }
            Flush::Later(gather) => (&mut gather.pending, false),
        };
        let result = core.change_leaves::<false, SURE, T>(
            maint, pending, &mut job, budget, change, before, changed,
        );
        if at_once {
            let _done: Synced = sync::sync(maint, &core.tlb, &now);
        }
        typed(result).map(|next| (next, job.count))
    }

    /// Adds permissions to the leaf of one IPA after a permission fault, and
    /// sets its access flag. Also when it has them already: this CPU's TLB
    /// may still hold the entry that faulted, and is rid of it here. Other
    /// CPUs that hold it fault once and come here themselves.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let ipa = Ipa::new(0x4000_0000);
    /// tree.write_protect(&mut cpu, ipa, 4096, Flush::Now, all)?;
    /// let more = Permissions { access: Access::ReadWrite, execute: Execute::Never };
    /// tree.relax(&mut cpu, ipa, more)?;
    /// let (_, attrs) = tree.translate(ipa).expect("mapped");
    /// assert_eq!(attrs, Attrs::MEMORY); // What it had before, it keeps.
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `Busy`; `Attributes`.
    pub fn relax<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        permissions: Permissions,
    ) -> Result<(), Error> {
        let core = &self.core;
        if ipa.get() >= core.shape.ia_end() {
            return Err(Error::Range);
        }
        let more = Attrs {
            access: permissions.access,
            age: Age::Young,
            ..Attrs::MEMORY
        };
        let add = self.geometry.encode_attrs(more)? & (S2AP_READ | S2AP_WRITE | AF);
        // What this CPU holds may be smaller than the leaf, where it faulted.
        let page = ipa.get() & !core.shape.page_mask();
        loop {
            let mut slot = core.walk_to(ipa.get(), 3);
            if format::is_frozen(slot.raw) {
                return Err(Error::Busy);
            }
            if !format::is_leaf(slot.raw, slot.level) {
                return Err(Error::Missing {
                    level: crate::shape::Shape::level(slot.level),
                });
            }
            let now = self.geometry.decode_attrs(slot.raw).execute;
            let execute = Attrs {
                execute: union(now, permissions.execute),
                ..Attrs::MEMORY
            };
            let new = slot.raw & !XN | add | (self.geometry.encode_attrs(execute)? & XN);
            if new != slot.raw {
                if slot.raw & format::CONTIGUOUS != 0 && (new ^ slot.raw) & !AF != 0 {
                    core.break_group(maint, &mut slot, ipa.get())?;
                    continue;
                }
                if !core.dic && gains_execute(slot.raw, new, core.xnx) {
                    maint.cache(CacheOp::InvalidateInstructions);
                }
                if core.mem.cas(slot.table, slot.index, slot.raw, new).is_err() {
                    continue;
                }
            }
            sync::sync_local(maint, &core.tlb, page, slot.level);
            return Ok(());
        }
    }

    /// Flushes what was gathered, on all CPUs, and waits for it.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let mut gather = tree.gather();
    /// for page in [0x4000_0000, 0x4000_8000] {
    ///     tree.write_protect(&mut cpu, Ipa::new(page), 4096, Flush::Later(&mut gather), all)?;
    /// }
    /// let _proof = tree.sync(&mut cpu, gather); // Both, with one invalidation.
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// The gather, unsynced, if it is another tree's.
    // It comes back by value: what it holds is still to be invalidated.
    #[allow(clippy::result_large_err)]
    pub fn sync<T: Maintenance>(&self, maint: &mut T, gather: Gather) -> Result<Synced, Gather> {
        if !gather.is_of(self.vttbr()) {
            return Err(gather);
        }
        Ok(self.core.flush(maint, gather))
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
        let young = core::cell::Cell::new(0u64);
        let count = |raw: u64| {
            young.set(young.get() + u64::from(raw & AF != 0));
            raw
        };
        let how = How {
            break_groups: false,
            ..How::new(Partial::DropWhole)
        };
        let (before, told) = (|_: &mut T, _, _, _| (), |_, _, _| ());
        let (next, _) = self.change::<false, T>(
            maint,
            ipa,
            size,
            how,
            Flush::Now,
            budget,
            count,
            before,
            told,
        )?;
        Ok((next, young.get()))
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
    /// let (_, were) = tree.clear_young(&mut cpu, ipa, size, Flush::Now, all)?;
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
        ipa: Ipa,
        size: u64,
        flush: Flush<'_>,
        budget: &mut Budget,
    ) -> Result<(Ipa, u64), Stopped<Ipa>> {
        let how = How {
            break_groups: false,
            sure: AF,
            ..How::new(Partial::DropWhole)
        };
        let old = |raw| raw & !AF;
        let (before, told) = (|_: &mut T, _, _, _| (), |_, _, _| ());
        self.change::<true, T>(maint, ipa, size, how, flush, budget, old, before, told)
    }

    /// Sets the access flag of the leaf of one IPA after an access flag
    /// fault. AF=0 entries are in no TLB: nothing to invalidate.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// tree.clear_young(&mut cpu, Ipa::new(0x4000_0000), 4096, Flush::Now, all)?;
    /// tree.mark_young(&mut cpu, Ipa::new(0x4000_0123))?;
    /// assert_eq!(tree.translate(Ipa::new(0x4000_0000)).expect("mapped").1.age, Age::Young);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `Busy`.
    pub fn mark_young<T: Maintenance>(&self, maint: &mut T, ipa: Ipa) -> Result<(), Error> {
        let core = &self.core;
        if ipa.get() >= core.shape.ia_end() {
            return Err(Error::Range);
        }
        loop {
            let slot = core.walk_to(ipa.get(), 3);
            if format::is_frozen(slot.raw) {
                return Err(Error::Busy);
            }
            if !format::is_leaf(slot.raw, slot.level) {
                return Err(Error::Missing {
                    level: crate::shape::Shape::level(slot.level),
                });
            }
            let new = slot.raw | AF;
            if new == slot.raw || core.mem.cas(slot.table, slot.index, slot.raw, new).is_ok() {
                sync::publish(maint, &core.tlb);
                return Ok(());
            }
        }
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
    /// tree.harvest_dirty(&mut cpu, ipa, size, Flush::Now, all, |_, _| ())?;
    /// let mut dirty = Vec::new();
    /// tree.harvest_dirty(&mut cpu, ipa, size, Flush::Now, all, |at, bytes| dirty.push((at, bytes)))?;
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
        ipa: Ipa,
        size: u64,
        flush: Flush<'_>,
        budget: &mut Budget,
        mut dirty: impl FnMut(Ipa, u64),
    ) -> Result<Ipa, Stopped<Ipa>> {
        if !self.geometry.features().hw_dirty {
            return Err(Stopped {
                why: Error::Attributes,
                next: ipa,
            });
        }
        let shape = &self.core.shape;
        let how = How::new(Partial::DropWhole);
        let clean = |raw| {
            if raw & S2AP_WRITE != 0 {
                (raw & !S2AP_WRITE) | DBM
            } else {
                raw
            }
        };
        let told = |at, level, old| {
            if old & DBM != 0 {
                dirty(Ipa::new(at), 1 << shape.shift(level));
            }
        };
        self.change::<false, T>(
            maint,
            ipa,
            size,
            how,
            flush,
            budget,
            clean,
            |_, _, _, _| (),
            told,
        )
        .map(|(next, _)| next)
    }
}

/// True when `new` may be fetched from where `old` could not.
fn gains_execute(old: u64, new: u64, xnx: bool) -> bool {
    let who = |raw: u64| match ((raw & XN) >> format::XN_SHIFT, xnx) {
        (0b00, _) | (0b01, false) => 0b11,
        (0b01, true) => 0b01,
        (0b11, true) => 0b10,
        _ => 0,
    };
    who(new) & !who(old) != 0
}

/// Fetch allowed by either.
const fn union(one: Execute, other: Execute) -> Execute {
    match (one, other) {
        (Execute::Never, any) | (any, Execute::Never) => any,
        (Execute::El0, Execute::El0) => Execute::El0,
        (Execute::El1, Execute::El1) => Execute::El1,
        _ => Execute::All,
    }
}

impl Attrs {
    /// True when hardware marked the leaf written since the last harvest.
    pub fn is_dirty(&self) -> bool {
        self.dirty == Dirty::Track && matches!(self.access, Access::Write | Access::ReadWrite)
    }
}

//! Looking at what stands in a range, without changing it.

use crate::addr::{Ipa, Level, Pa};
use crate::error::{Budget, Stopped};
use crate::format::{self, Entry};
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::shape::Shape;
use crate::stage2::Stage2;

/// When a visitor is called for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visit {
    /// A table, before what is in it.
    TablePre,
    /// A leaf, an annotation that is not empty, a frozen or reserved entry.
    Leaf,
    /// A table, after what is in it.
    TablePost,
}

/// What a walk does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Goes on, into the table if it is one.
    Descend,
    /// Goes on behind the table.
    Skip,
    /// Reads the entry again: it was just changed. Costs budget.
    Retry,
    /// Ends.
    Stop,
}

/// An entry that a walk came by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// When.
    pub visit: Visit,
    /// The first IPA that the entry covers.
    pub ipa: Ipa,
    /// Its level.
    pub level: Level,
    /// The descriptor.
    pub raw: u64,
    /// The descriptor, decoded.
    pub entry: Entry,
}

impl<M: TableMem> Stage2<M> {
    /// Visits what stands in a range, in order. Empty entries are passed
    /// over. Each table is read at most once, so a walk ends whatever is in
    /// memory; a table that goes meanwhile cannot be, by `&self`. After
    /// [`Visit::TablePost`] only [`Next::Stop`] makes a difference.
    ///
    /// Returns where it ended: the end of the range, or where the visitor
    /// or the budget stopped it.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (mut tables, mut leaves) = (0, 0);
    /// tree.walk(Ipa::new(0), 1 << 39, all, |seen| {
    ///     match seen.visit {
    ///         Visit::TablePre => tables += 1,
    ///         Visit::Leaf => leaves += 1,
    ///         Visit::TablePost => (),
    ///     }
    ///     Next::Descend
    /// })?;
    /// assert_eq!((tables, leaves), (2, 512));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`.
    pub fn walk(
        &self,
        ipa: Ipa,
        size: u64,
        budget: &mut Budget,
        mut visitor: impl FnMut(&Seen) -> Next,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let core = &self.core;
        let end = core
            .shape
            .check_ia(ipa.get(), size)
            .map_err(|why| Stopped { why, next: ipa })?;
        let mut at = ipa.get();
        // The way down, with what was read: a table is entered once.
        let mut stack = [core.walk_to(at.min(core.shape.ia_end() - 1), -2); 5];
        let mut depth = 0;
        'entries: while at < end {
            let slot = stack[depth];
            // A table that was only entered is no address passed.
            if budget.is_spent() && at > ipa.get() {
                return Ok(Ipa::new(at));
            }
            budget.spend(1);
            let raw = core.mem.load(slot.table, slot.index);
            let seen = |visit| Seen {
                visit,
                ipa: Ipa::new(slot.base(at)),
                level: Shape::level(slot.level),
                raw,
                entry: self.geometry.decode(raw, Shape::level(slot.level)),
            };
            if raw != 0 {
                let is_table = format::is_table(raw, slot.level);
                let visit = if is_table {
                    Visit::TablePre
                } else {
                    Visit::Leaf
                };
                match visitor(&seen(visit)) {
                    Next::Stop => return Ok(Ipa::new(at)),
                    Next::Retry if budget.is_spent() => return Ok(Ipa::new(at)),
                    Next::Retry => continue,
                    Next::Descend if is_table => {
                        stack[depth].raw = raw;
                        let child = core.child(&stack[depth], at);
                        depth += 1;
                        stack[depth] = child;
                        continue;
                    }
                    Next::Descend | Next::Skip => (),
                }
            }
            // On to the next entry, and up out of tables that end.
            at = slot.end(at);
            loop {
                let entries = core.shape.entries_at(stack[depth].level);
                stack[depth].index += 1;
                if at < end && stack[depth].index < entries {
                    continue 'entries;
                }
                if depth == 0 {
                    break 'entries;
                }
                depth -= 1;
                let table = stack[depth];
                let post = Seen {
                    visit: Visit::TablePost,
                    ipa: Ipa::new(table.base(at - 1)),
                    level: Shape::level(table.level),
                    raw: table.raw,
                    entry: self.geometry.decode(table.raw, Shape::level(table.level)),
                };
                if visitor(&post) == Next::Stop {
                    return Ok(Ipa::new(at.min(end)));
                }
            }
        }
        Ok(Ipa::new(at.min(end)))
    }

    /// Cleans and invalidates the data cache lines of all memory of a range
    /// that a guest may reach past the caches: Normal memory, which FEAT_S2FWB
    /// leaves to write-back alone if it was mapped as [`Memory::Normal`].
    ///
    /// Returns how far the budget went, be that inside a block.
    ///
    /// [`Memory::Normal`]: crate::Memory::Normal
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (mut at, end) = (Ipa::new(0x4000_0000), Ipa::new(0x4020_0000));
    /// while at < end {
    ///     // So much at once, and whatever waits in between.
    ///     let mut budget = Budget::entries(64);
    ///     at = tree.flush_caches(&mut cpu, at, end.get() - at.get(), &mut budget)?;
    /// }
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`.
    pub fn flush_caches<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let core = &self.core;
        let end = core
            .shape
            .check_ia(ipa.get(), size)
            .map_err(|why| Stopped { why, next: ipa })?;
        let mut at = ipa.get();
        loop {
            let mut found = None;
            let next = self.walk(Ipa::new(at), end - at, budget, |seen| {
                let leaf = seen.visit == Visit::Leaf
                    && format::is_leaf(seen.raw, seen.level.get())
                    && format::is_seen_uncached(seen.raw, core.fwb);
                if leaf {
                    found = Some((seen.ipa.get(), seen.level.get(), seen.raw));
                    return Next::Stop;
                }
                Next::Descend
            })?;
            at = next.get();
            let Some((base, level, raw)) = found else {
                return Ok(next);
            };
            let pa = Pa::new(format::leaf_oa(&core.shape, raw, level));
            let to = (base + core.shape.span_at(level)).min(end);
            let room = budget.bytes_left() & !core.shape.page_mask();
            let size = room.min(to - at);
            let pa = Pa::new(pa.get() + (at - base));
            maint.cache(CacheOp::CleanInvalidateData { pa, size });
            budget.spend_bytes(size);
            at += size;
            if at >= end || budget.is_spent() {
                return Ok(Ipa::new(at));
            }
        }
    }
}

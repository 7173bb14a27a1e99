//! Looking at what stands in a range, without changing it.

use crate::addr::{Extent, Ipa, Level};
use crate::desc::{Desc, Kind};
use crate::error::{Budget, Error, Stopped};
use crate::format::Entry;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::stage2::Stage2;
use crate::tree::Slot;

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
        let range = core.shape.check_ia(ipa.into(), size);
        let Extent { start, end } = range.map_err(Stopped::at(ipa))?;
        let mut at = start;
        if start >= end {
            return Ok(ipa);
        }
        // The way down, with what was read: a table is entered once.
        let mut stack = [core.root_slot(start); 5];
        let mut depth = 0;
        'entries: while at < end {
            // A table that was only entered is no address passed.
            if budget.is_spent() && at > start {
                return Ok(at.into());
            }
            budget.spend(1);
            let slot = &mut stack[depth];
            slot.desc = core.load(slot.table, slot.index);
            let slot = *slot;
            if slot.desc != Desc::EMPTY {
                let is_table = slot.desc.is_table(slot.level);
                let visit = if is_table {
                    Visit::TablePre
                } else {
                    Visit::Leaf
                };
                match visitor(&self.seen(&slot, visit)) {
                    Next::Stop => return Ok(at.into()),
                    Next::Retry if budget.is_spent() => return Ok(at.into()),
                    Next::Retry => continue,
                    Next::Descend if is_table => {
                        depth += 1;
                        stack[depth] = core.child(&slot, at);
                        continue;
                    }
                    Next::Descend | Next::Skip => (),
                }
            }
            // On to the next entry, and up out of tables that end.
            at = slot.end();
            loop {
                let entries = core.shape.entries(stack[depth].level);
                stack[depth] = stack[depth].after(1, Desc::EMPTY);
                if at < end && stack[depth].index < entries {
                    continue 'entries;
                }
                if depth == 0 {
                    break 'entries;
                }
                depth -= 1;
                let post = self.seen(&stack[depth], Visit::TablePost);
                if visitor(&post) == Next::Stop {
                    return Ok(at.min(end).into());
                }
            }
        }
        Ok(at.min(end).into())
    }

    fn seen(&self, slot: &Slot<M::Table>, visit: Visit) -> Seen {
        let raw = slot.desc.raw();
        Seen {
            visit,
            ipa: slot.ia.into(),
            level: slot.level,
            raw,
            entry: self.geometry.decode(raw, slot.level),
        }
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
    /// `Range`, `Align`; `Busy` where another CPU is changing what is mapped.
    pub fn flush_caches<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        size: u64,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let core = &self.core;
        let range = core.shape.check_ia(ipa.into(), size);
        let end = Ipa::from(range.map_err(Stopped::at(ipa))?.end);
        let mut at = ipa;
        loop {
            let mut found = None;
            let mut busy = false;
            let left = end.get() - at.get();
            at = self.walk(at, left, budget, |seen| {
                let leaf = Desc::new(seen.raw);
                // Memory is mapped there again when another CPU is done.
                if matches!(
                    leaf.kind(seen.level, &core.shape),
                    Kind::FrozenLeaf(_) | Kind::FrozenTable(_)
                ) {
                    busy = true;
                    return Next::Stop;
                }
                if leaf.is_leaf(seen.level) && core.features.needs_clean(leaf) {
                    found = Some((seen.ipa, seen.level, leaf));
                    return Next::Stop;
                }
                Next::Descend
            })?;
            if busy {
                return Err(Stopped::at(at)(Error::Busy));
            }
            let Some((base, level, leaf)) = found else {
                return Ok(at);
            };
            let offset = at.get() - base.get();
            let pa = leaf.leaf_pa(&core.shape, level).plus(offset);
            let room = budget.bytes_left() & !core.shape.page_mask();
            let to = base.plus(core.shape.span(level)).min(end);
            let size = room.min(to.get() - at.get());
            maint.cache(CacheOp::CleanInvalidateData { pa, size });
            budget.spend_bytes(size);
            at = at.plus(size);
            if at >= end || budget.is_spent() {
                return Ok(at);
            }
        }
    }
}

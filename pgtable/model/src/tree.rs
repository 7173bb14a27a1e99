//! Descriptors of live trees: what each store means, and whether it may be.
//!
//! A table page is *linked* once a walker can reach it from an installed root.
//! Stores to pages that are not linked are free. When a valid entry goes, its
//! whole subtree is *detached*: walkers may stay inside until the removal is
//! clean, so its entries stay frozen and its pages may not be freed.

use crate::descriptor::{AF, Attrs, BadDesc, CONTIGUOUS, DBM, Desc, Memory, NT};
use crate::event::How;
use crate::machine::{El2Change, Machine, NO_TREE, Pending, Table, Verdict};
use crate::mem::{Owner, Use};
use crate::shape::{HighAddress, Regime, Shape};
use crate::unclean::{Progress, Run, Was};
use crate::violation::Kind;

/// A store that has been made in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub pa: u64,
    pub old: u64,
    pub new: u64,
    pub how: How,
}

/// How a table becomes reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// A store to the entry above, which releases earlier stores or not.
    Store { released: bool },
    /// A write of the base register, which orders nothing.
    Register,
}

/// A subtree to visit: table, level, first input address.
type Visit = (u64, i8, u64);

impl Machine {
    /// The linked or detached table that holds the word at `pa`.
    pub(crate) fn table_of(&self, pa: u64) -> Option<Table> {
        self.sizes.iter().find_map(|&size| {
            let base = pa & !(size - 1);
            let table = self.tables.get(&base)?;
            (pa < base + table.entries * 8).then_some(*table)
        })
    }

    pub(crate) fn shape_of(&self, tree: u32) -> Shape {
        self.trees[tree as usize].shape
    }

    /// True if no walker can be inside the tree, nor any TLB know of it.
    pub(crate) fn dead(&self, tree: u32) -> bool {
        let t = &self.trees[tree as usize];
        t.installed == 0
            && t.contexts
                .iter()
                .all(|&c| self.contexts[c as usize].cached == 0)
    }

    /// True if the root holds no valid descriptor.
    pub(crate) fn root_is_empty(&self, tree: u32) -> bool {
        let t = &self.trees[tree as usize];
        let mut words = Vec::new();
        self.mem.nonzero(t.root, t.shape.root_entries(), &mut words);
        words.iter().all(|(_, word)| word & 1 == 0)
    }

    /// True if the tree may go: no PE has it, and nothing of it is cached since
    /// it was invalidated or has nothing in it.
    pub(crate) fn may_go(&self, tree: u32) -> bool {
        let t = &self.trees[tree as usize];
        let clean = |&c: &u32| self.contexts[c as usize].unclean.is_empty();
        self.dead(tree)
            || t.installed == 0 && t.contexts.iter().all(clean) && self.root_is_empty(tree)
    }

    /// Forgets a tree that is dead: its pages are plain memory again.
    pub(crate) fn retire(&mut self, tree: u32) {
        self.tables.retain(|_, t| t.tree != tree);
        self.outputs.retain(|&(_, t), _| t != tree);
        for c in std::mem::take(&mut self.trees[tree as usize].contexts) {
            let context = &mut self.contexts[c as usize];
            context.unclean.clear();
            context.tree = NO_TREE;
            context.cached = 0;
            context.flush = Default::default();
        }
        self.trees[tree as usize].retired = true;
    }

    /// A word was stored: judges it if a walker may read it.
    pub(crate) fn stored(&mut self, s: Stored) -> Verdict {
        if self.tables.is_empty() {
            return Ok(());
        }
        let Some(table) = self.table_of(s.pa) else {
            return Ok(());
        };
        if self.dead(table.tree) {
            self.retire(table.tree);
            return Ok(());
        }
        let shape = self.shape_of(table.tree);
        if table.tag != 0 && self.walkers_gone(&table) {
            self.tables.remove(&table.base);
            return Ok(());
        }
        // One invalid value for another is no matter of walkers.
        if s.old != s.new && (s.old | s.new) & 1 == 1 {
            let now = self.now;
            self.pes[usize::from(now)].pending.push(Pending {
                pa: s.pa,
                old: s.old,
                event: self.event,
                local: false,
            });
        }
        if table.tag != 0 {
            return self.stored_detached(&table, &shape, s);
        }
        self.stats.live_stores += 1;
        if shape.regime == Regime::El2 && s.old != s.new {
            self.pe().el2_change = El2Change::Stored;
        }
        let index = (s.pa - table.base) / 8;
        let ia = table.ia + (index << shape.shift(table.level));
        self.transition(&table, &shape, ia, s).map_err(|mut v| {
            v.pa.get_or_insert(s.pa);
            v.ia.get_or_insert(ia);
            v.level.get_or_insert(table.level);
            v
        })
    }

    /// A store into a table that was unlinked.
    fn stored_detached(&mut self, table: &Table, shape: &Shape, s: Stored) -> Verdict {
        if shape.decode(table.level, s.new) == Desc::Invalid {
            // Walkers may see it or not; what they had is unclean already. Were
            // the table put back, it is this store that must be complete.
            let level = table.level;
            let ia = table.ia + (((s.pa - table.base) / 8) << shape.shift(level));
            let end = ia + shape.span(level);
            let writer = self.now;
            for i in 0..self.trees[table.tree as usize].contexts.len() {
                let c = self.trees[table.tree as usize].contexts[i] as usize;
                let unclean = &mut self.contexts[c].unclean;
                for was in [Was::Leaf, Was::Table] {
                    let mut cleared = None;
                    let tagged = |r: &Run| r.tag == table.tag;
                    unclean.remove((was, level), ia, end, tagged, |_, run| cleared = Some(run));
                    if let Some(run) = cleared {
                        let run = Run { writer, ..run };
                        unclean.insert((was, level), shape.shift(level), ia, run);
                    }
                }
            }
            return Ok(());
        }
        if s.old == s.new {
            return Ok(());
        }
        let index = (s.pa - table.base) / 8;
        let mut v = self.violation(
            Kind::FrozenChildWritten,
            "the table was unlinked, but walkers may still be inside",
        );
        v.pa = Some(s.pa);
        v.ia = Some(table.ia + (index << shape.shift(table.level)));
        v.level = Some(table.level);
        Err(v)
    }

    /// True if no walk-cache entry can lead into a detached table any more.
    pub(crate) fn walkers_gone(&self, table: &Table) -> bool {
        let tree = &self.trees[table.tree as usize];
        !tree.contexts.iter().any(|&c| {
            self.contexts[c as usize]
                .unclean
                .overlapping(table.ia, table.ia + 1)
                .any(|(class, _, _, _)| class.0 == Was::Table && class.1 < table.level)
        })
    }

    fn transition(&mut self, table: &Table, shape: &Shape, ia: u64, s: Stored) -> Verdict {
        let level = table.level;
        let (old, new) = (shape.decode(level, s.old), shape.decode(level, s.new));
        if let (Desc::Leaf(_), true) = (old, shape.hd)
            && s.old & DBM != 0
            && !s.how.atomic()
        {
            return self.fail(
                Kind::PlainWriteRace,
                "hardware may set the dirty state between load and store",
            );
        }
        if let Desc::Bad(why) = new {
            return self.bad_descriptor(why, s.new);
        }
        match (old, new) {
            (Desc::Invalid | Desc::Bad(_), Desc::Invalid) => Ok(()),
            (Desc::Invalid | Desc::Bad(_), Desc::Leaf(oa)) => {
                self.make_leaf(table, shape, ia, oa, s.new)
            }
            (Desc::Invalid | Desc::Bad(_), Desc::Table(next)) => {
                self.make_table(table, shape, ia, next, s.how)
            }
            (Desc::Leaf(oa), Desc::Invalid) => {
                self.break_leaf(table, shape, ia, oa, s.old, 0);
                Ok(())
            }
            (Desc::Table(next), Desc::Invalid) => {
                self.break_table(table, shape, ia, next, s.old);
                Ok(())
            }
            (Desc::Leaf(from), Desc::Leaf(to)) => self.change_leaf(table, shape, ia, s, from, to),
            (Desc::Table(from), Desc::Table(to)) => {
                let controls = shape.table_controls(s.old) ^ shape.table_controls(s.new);
                if from == to && controls == 0 {
                    return Ok(());
                }
                self.fail(
                    Kind::ValidToValidNeedsBbm,
                    "a table descriptor was replaced by another",
                )
            }
            (Desc::Leaf(oa), Desc::Table(next)) => {
                if !self.cacheable(table.tree, level, ia, s.old, shape) {
                    self.break_leaf(table, shape, ia, oa, s.old, 0);
                    return self.make_table(table, shape, ia, next, s.how);
                }
                let allowed = self.features.bbm >= 2 || self.features.bbm == 1 && s.old & NT != 0;
                if allowed && self.maps_alike(table, shape, oa, s.old, next) {
                    self.make_table(table, shape, ia, next, s.how)?;
                    self.break_leaf(table, shape, ia, oa, s.old, 0);
                    return Ok(());
                }
                self.fail(
                    Kind::ValidToValidNeedsBbm,
                    "a live block was replaced by a table",
                )
            }
            (Desc::Table(next), Desc::Leaf(oa)) => {
                let allowed = self.features.bbm >= 2 || self.features.bbm == 1 && s.new & NT != 0;
                if allowed && self.maps_alike(table, shape, oa, s.new, next) {
                    self.break_table(table, shape, ia, next, s.old);
                    self.exempt = self.next_tag - 1;
                    let made = self.make_leaf(table, shape, ia, oa, s.new);
                    self.exempt = 0;
                    return made;
                }
                self.fail(
                    Kind::ValidToValidNeedsBbm,
                    "a live table was replaced by a block",
                )
            }
            (_, Desc::Bad(_)) => Ok(()),
        }
    }

    fn bad_descriptor(&self, why: BadDesc, word: u64) -> Verdict {
        let kind = match why {
            BadDesc::BlockLevel => Kind::BlockIllegalLevel,
            BadDesc::AddressSize => Kind::AddressSize,
        };
        self.fail(kind, format!("the descriptor is {word:#x}"))
    }

    /// True if a TLB may hold the leaf, or a looser one that stood there.
    fn cacheable(&self, tree: u32, level: i8, ia: u64, word: u64, shape: &Shape) -> bool {
        if word & AF != 0 || shape.ha {
            return true;
        }
        let contexts = &self.trees[tree as usize].contexts;
        contexts.iter().any(|&c| {
            self.contexts[c as usize]
                .unclean
                .overlapping(ia, ia + shape.span(level))
                .any(|(class, _, _, _)| class == (Was::Loose, level))
        })
    }

    fn leaf_attrs(&self, tree: u32, level: i8, word: u64) -> Attrs {
        let t = &self.trees[tree as usize];
        t.shape.attrs(level, word, t.mair)
    }

    /// A valid leaf changed in place.
    fn change_leaf(
        &mut self,
        table: &Table,
        shape: &Shape,
        ia: u64,
        s: Stored,
        from: u64,
        to: u64,
    ) -> Verdict {
        if s.old == s.new {
            return Ok(());
        }
        let level = table.level;
        let old = self.leaf_attrs(table.tree, level, s.old);
        let new = self.leaf_attrs(table.tree, level, s.new);
        if !self.cacheable(table.tree, level, ia, s.old, shape) {
            // No TLB ever held the old one: this is a make.
            self.break_leaf(table, shape, ia, from, s.old, 0);
            return self.make_leaf(table, shape, ia, to, s.new);
        }
        let same_type = old.memory == new.memory && old.sh == new.sh;
        if from != to || !same_type {
            return self.fail(
                Kind::ValidToValidNeedsBbm,
                if from != to {
                    "the output address of a live leaf changed"
                } else {
                    "the memory type or shareability of a live leaf changed"
                },
            );
        }
        if old.contiguous != new.contiguous {
            if self.features.bbm < 2 {
                return self.fail(
                    Kind::ValidToValidNeedsBbm,
                    "the contiguous hint of a live leaf changed",
                );
            }
            self.break_leaf(table, shape, ia, from, s.old, 0);
            return self.make_leaf(table, shape, ia, to, s.new);
        }
        let gained = new.perms.0 & !old.perms.0;
        if gained & 12 != 0 {
            self.check_instructions(shape, to, shape.shift(level))?;
        }
        let aged = old.af && !new.af;
        if !new.perms.covers(old.perms) || aged {
            let aged = new.perms.covers(old.perms);
            self.add_runs(
                table.tree,
                Was::Loose,
                level,
                shape,
                ia,
                from,
                s.old,
                0,
                aged,
            );
        }
        Ok(())
    }

    /// A new leaf where nothing valid stood.
    fn make_leaf(&mut self, table: &Table, shape: &Shape, ia: u64, oa: u64, word: u64) -> Verdict {
        let level = table.level;
        self.check_clash(table.tree)?;
        self.check_make_leaf(table.tree, shape, level, ia, oa, word)?;
        self.trees[table.tree as usize].contiguous |=
            self.leaf_attrs(table.tree, level, word).contiguous;
        self.check_neighbours(table, shape, ia, oa, word)?;
        self.leaf_added(table.tree, shape, (level, ia), oa, word)
    }

    /// Nothing unclean may lie under a new leaf, but for the leaf itself
    /// coming back as it was.
    fn check_make_leaf(
        &mut self,
        tree: u32,
        shape: &Shape,
        level: i8,
        ia: u64,
        oa: u64,
        word: u64,
    ) -> Verdict {
        let end = ia + shape.span(level);
        let contexts = self.trees[tree as usize].contexts.len();
        for i in 0..contexts {
            let c = self.trees[tree as usize].contexts[i] as usize;
            if self.contexts[c].unclean.is_empty() {
                continue;
            }
            let attrs = self.leaf_attrs(tree, level, word);
            if attrs.contiguous || self.contexts[c].unclean.has_contiguous() {
                self.check_make_group(c, shape, level, ia, oa, &attrs)?;
            }
            let mut back = None;
            let mut wrong = None;
            for (class, base, _, run) in self.contexts[c].unclean.overlapping(ia, end) {
                match class.0 {
                    Was::Loose => continue,
                    Was::Leaf => {
                        let was = self.leaf_attrs(tree, class.1, run.old);
                        let same = run.oa.wrapping_sub(base) == oa.wrapping_sub(ia)
                            && was.memory == attrs.memory
                            && was.sh == attrs.sh;
                        if same && class.1 == level && was.contiguous == attrs.contiguous {
                            back = Some(was);
                            continue;
                        }
                        // BBM level 2: two sizes of one translation may stand
                        // side by side until a TLBI.
                        if same && self.features.bbm >= 2 {
                            continue;
                        }
                    }
                    // BBM level 2: a table that said the same.
                    Was::Table => {}
                }
                if run.tag != 0 && run.tag == self.exempt {
                    continue;
                }
                let v = self.blame(
                    self.contexts[c].regime,
                    class,
                    base.max(ia),
                    run,
                    Kind::MakeWhileUnclean,
                );
                wrong = Some(v);
                break;
            }
            if let Some(v) = wrong {
                return Err(v);
            }
            if let Some(was) = back {
                let mut looser = None;
                self.contexts[c].unclean.remove(
                    (Was::Leaf, level),
                    ia,
                    end,
                    |_| true,
                    |base, run| looser = Some((base, run)),
                );
                let covered = attrs.perms.covers(was.perms);
                if let Some((base, mut run)) = looser
                    && !(covered && attrs.af)
                {
                    run.aged = covered;
                    let shift = shape.shift(level);
                    self.contexts[c]
                        .unclean
                        .insert((Was::Loose, level), shift, base, run);
                }
            }
        }
        Ok(())
    }

    /// A TLB may hold the entry of a whole contiguous group after one member
    /// was seen, and with it addresses of members that were never valid.
    fn check_make_group(
        &self,
        context: usize,
        shape: &Shape,
        level: i8,
        ia: u64,
        oa: u64,
        attrs: &Attrs,
    ) -> Verdict {
        let c = &self.contexts[context];
        let follows = |at: i8, base: u64, run: &Run| {
            let was = self.leaf_attrs(c.tree, at, run.old);
            at == level
                && attrs.contiguous
                && (was.contiguous || self.features.bbm >= 2)
                && run.oa.wrapping_sub(base) == oa.wrapping_sub(ia)
                && was.memory == attrs.memory
                && was.sh == attrs.sh
        };
        if attrs.contiguous {
            // The new entry may answer for the whole group at once.
            let low = (shape.span(level) << shape.group_log2(level)) - 1;
            for (class, base, _, run) in c.unclean.overlapping(ia & !low, (ia | low) + 1) {
                let other = base >= ia + shape.span(level) || base < ia;
                let fine =
                    class.0 == Was::Loose || class.0 == Was::Leaf && follows(class.1, base, run);
                if other && !fine {
                    return Err(self.blame(c.regime, class, base, run, Kind::MakeWhileUnclean));
                }
            }
        }
        for at in 0..=3 {
            let log2 = shape.group_log2(at);
            if log2 == 0 {
                continue;
            }
            let low = (shape.span(at) << log2) - 1;
            let end = ((ia + shape.span(level) - 1) | low) + 1;
            for (class, base, _, run) in c.unclean.overlapping(ia & !low, end) {
                if class != (Was::Leaf, at) || !run.contiguous {
                    continue;
                }
                let same = follows(at, base, run);
                if !same {
                    return Err(self.blame(c.regime, class, base, run, Kind::MakeWhileUnclean));
                }
            }
        }
        Ok(())
    }

    /// No entry of a contiguous group, live or stale, may cover a new table.
    fn check_table_in_group(&self, table: &Table, shape: &Shape, ia: u64) -> Verdict {
        let level = table.level;
        if !self.trees[table.tree as usize].contiguous {
            return Ok(());
        }
        for &c in &self.trees[table.tree as usize].contexts {
            let context = &self.contexts[c as usize];
            for at in (0..=3).filter(|&at| shape.group_log2(at) != 0) {
                let low = (shape.span(at) << shape.group_log2(at)) - 1;
                let last = (ia + shape.span(level) - 1) | low;
                for (class, base, _, run) in context.unclean.overlapping(ia & !low, last + 1) {
                    if class == (Was::Leaf, at) && run.contiguous {
                        let shown = Kind::MakeWhileUnclean;
                        return Err(self.blame(context.regime, class, base, run, shown));
                    }
                }
            }
        }
        let members = 1 << shape.group_log2(level);
        let first = ((ia - table.ia) >> shape.shift(level)) & !(members - 1);
        for other in first..(first + members).min(table.entries) {
            let word = self.mem.load(table.base + other * 8);
            let leaf = matches!(shape.decode(level, word), Desc::Leaf(_));
            if leaf && self.leaf_attrs(table.tree, level, word).contiguous {
                return self.fail(
                    Kind::BadContiguous,
                    "a table in the midst of a contiguous group",
                );
            }
        }
        Ok(())
    }

    /// Valid members of one contiguous group agree, at any time, in all but
    /// rights: a TLB may take any of them for the whole group.
    fn check_neighbours(
        &self,
        table: &Table,
        shape: &Shape,
        ia: u64,
        oa: u64,
        word: u64,
    ) -> Verdict {
        let level = table.level;
        let log2 = shape.group_log2(level);
        if log2 == 0 || !self.trees[table.tree as usize].contiguous {
            return Ok(());
        }
        let mine = self.leaf_attrs(table.tree, level, word);
        let index = (ia - table.ia) >> shape.shift(level);
        let first = index & !((1 << log2) - 1);
        for other in first..first + (1 << log2) {
            if other == index || other >= table.entries {
                continue;
            }
            let theirs = self.mem.load(table.base + other * 8);
            let agree = match shape.decode(level, theirs) {
                Desc::Leaf(at) => {
                    let a = self.leaf_attrs(table.tree, level, theirs);
                    let follows = at.wrapping_sub(other << shape.shift(level))
                        == oa.wrapping_sub(index << shape.shift(level));
                    let alike = a.memory == mine.memory && a.sh == mine.sh;
                    !(a.contiguous || mine.contiguous)
                        || a.contiguous && mine.contiguous && follows && alike
                }
                Desc::Table(_) => !mine.contiguous,
                _ => true,
            };
            if !agree {
                return self.fail(
                    Kind::BadContiguous,
                    format!("the leaf {word:#x} and its neighbour {theirs:#x} do not agree"),
                );
            }
        }
        Ok(())
    }

    /// Rules for a leaf that becomes reachable.
    fn leaf_added(
        &mut self,
        tree: u32,
        shape: &Shape,
        (level, ia): (i8, u64),
        oa: u64,
        word: u64,
    ) -> Verdict {
        let reserved = shape.misaligned(level, word);
        if reserved != 0 {
            return self.fail(
                Kind::MisalignedOutput,
                format!("address bits {reserved:#x} of {word:#x} lie below the block's size"),
            );
        }
        let attrs = self.leaf_attrs(tree, level, word);
        if attrs.memory == Memory::Reserved {
            return self.fail(Kind::ReservedAttribute, format!("the leaf is {word:#x}"));
        }
        if attrs.memory.cacheable() && attrs.sh == 0 && self.all != 1 {
            return self.fail(Kind::NotShareable, format!("the leaf is {word:#x}"));
        }
        self.trees[tree as usize].contiguous |= attrs.contiguous;
        let page = oa;
        let (oa, shift) = output_extent(shape, level, oa, word);
        let len = 1u64 << shift;
        if attrs.contiguous && page - oa != ia & (len - 1) {
            return self.fail(
                Kind::BadContiguous,
                "its output address is not where its place in the group asks for",
            );
        }
        *self
            .outputs
            .entry((oa | u64::from(shift), tree))
            .or_insert(0) += 1;
        if shape.regime == Regime::El2 {
            return Ok(());
        }
        let vmids_match = |v: u16| {
            let t = &self.trees[tree as usize];
            t.contexts
                .iter()
                .all(|&c| self.contexts[c as usize].vmid == v)
        };
        let mut data = false;
        let mut wrong = None;
        for (lo, _, usage) in self.mem.uses(oa, len) {
            let problem = match usage {
                Use::Unknown | Use::Data(Owner::Shared) => None,
                Use::Data(Owner::Vmid(v)) if vmids_match(v) => None,
                Use::Data(Owner::Vmid(_)) => Some("another VMID's memory"),
                Use::Data(Owner::Nobody) => Some("memory that has been given up"),
                Use::Data(Owner::Hypervisor) => Some("the hypervisor's own memory"),
                Use::Table => Some("a table page"),
                Use::Free => Some("a page in the table allocator"),
            };
            data |= matches!(usage, Use::Data(_));
            if let Some(what) = problem {
                wrong = Some((lo, what));
                break;
            }
        }
        if let Some((lo, what)) = wrong {
            let detail = format!("the leaf maps {lo:#x}, {what}");
            return self.fail(Kind::OutputNotOwned, detail);
        }
        if !data {
            return Ok(());
        }
        if !shape.fwb && attrs.memory.cacheable() {
            self.check_clean(oa, len)?;
        }
        if attrs.perms.0 & 12 != 0 {
            self.check_instructions(shape, oa, shift)?;
        }
        Ok(())
    }

    fn check_clean(&self, oa: u64, len: u64) -> Verdict {
        for (lo, hi, usage) in self.mem.uses(oa, len) {
            if matches!(usage, Use::Data(_)) && !self.clean_data.covers(lo, hi, true) {
                return self.fail(
                    Kind::MissingCmo,
                    format!("{lo:#x} was not cleaned since it changed hands"),
                );
            }
        }
        Ok(())
    }

    fn check_instructions(&self, shape: &Shape, oa: u64, shift: u8) -> Verdict {
        if self.features.dic || shape.regime == Regime::El2 {
            return Ok(());
        }
        for (lo, hi, usage) in self.mem.uses(oa, 1 << shift) {
            if matches!(usage, Use::Data(_)) && !self.clean_insn.covers(lo, hi, true) {
                return self.fail(
                    Kind::MissingInstructionInvalidate,
                    format!("{lo:#x} becomes executable"),
                );
            }
        }
        Ok(())
    }

    /// A leaf is gone from memory; TLBs may hold it.
    fn break_leaf(&mut self, table: &Table, shape: &Shape, ia: u64, oa: u64, word: u64, tag: u32) {
        let level = table.level;
        self.output_removed(table.tree, shape, level, oa, word);
        if self.cacheable(table.tree, level, ia, word, shape) {
            self.add_runs(
                table.tree,
                Was::Leaf,
                level,
                shape,
                ia,
                oa,
                word,
                tag,
                false,
            );
        }
    }

    fn output_removed(&mut self, tree: u32, shape: &Shape, level: i8, oa: u64, word: u64) {
        let (oa, shift) = output_extent(shape, level, oa, word);
        let key = (oa | u64::from(shift), tree);
        if let Some(count) = self.outputs.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.outputs.remove(&key);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn add_runs(
        &mut self,
        tree: u32,
        was: Was,
        level: i8,
        shape: &Shape,
        ia: u64,
        oa: u64,
        word: u64,
        tag: u32,
        aged: bool,
    ) {
        let shift = shape.shift(level);
        let end = ia + (1 << shift);
        let contiguous = was != Was::Table && self.leaf_attrs(tree, level, word).contiguous;
        let mut run = Run {
            entries: 1,
            old: match was {
                Was::Table => word,
                _ => attribute_bits(shape, word),
            },
            oa,
            tag,
            writer: self.now,
            contiguous,
            aged,
            since: self.event,
            progress: Progress::default(),
        };
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i] as usize;
            let unclean = &mut self.contexts[c].unclean;
            if !unclean.is_empty() {
                // One record per entry: the newest state with the oldest rights.
                unclean.remove(
                    (Was::Loose, level),
                    ia,
                    end,
                    |_| true,
                    |_, earlier| {
                        run.old = earlier.old;
                        run.since = run.since.min(earlier.since);
                        run.aged &= earlier.aged;
                        run.contiguous |= earlier.contiguous;
                    },
                );
                if was != Was::Loose {
                    unclean.remove((was, level), ia, end, |_| true, |_, _| {});
                }
            }
            unclean.insert((was, level), shift, ia, run);
        }
    }

    /// A table is gone from memory; walkers may be inside.
    fn break_table(&mut self, table: &Table, shape: &Shape, ia: u64, next: u64, word: u64) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.add_runs(
            table.tree,
            Was::Table,
            table.level,
            shape,
            ia,
            next,
            word,
            tag,
            false,
        );
        let mut stack: Vec<Visit> = vec![(next, table.level + 1, ia)];
        let mut words = std::mem::take(&mut self.scratch);
        while let Some((base, level, first)) = stack.pop() {
            let Some(t) = self.tables.get_mut(&base) else {
                continue;
            };
            t.tag = tag;
            let t = *t;
            words.clear();
            self.mem.nonzero(base, t.entries, &mut words);
            for &(index, word) in &words {
                let at = first + (index << shape.shift(level));
                match shape.decode(level, word) {
                    Desc::Leaf(oa) => self.break_leaf(&t, shape, at, oa, word, tag),
                    Desc::Table(below) => {
                        self.add_runs(
                            t.tree,
                            Was::Table,
                            level,
                            shape,
                            at,
                            below,
                            word,
                            tag,
                            false,
                        );
                        stack.push((below, level + 1, at));
                    }
                    _ => {}
                }
            }
        }
        self.scratch = words;
    }

    /// A table is linked where nothing valid stood.
    fn make_table(
        &mut self,
        table: &Table,
        shape: &Shape,
        ia: u64,
        next: u64,
        how: How,
    ) -> Verdict {
        let level = table.level;
        let end = ia + shape.span(level);
        if let Some(tag) = self.put_back(table.tree, level, ia, next) {
            return self.relink(table.tree, shape, level, ia, next, tag);
        }
        for &c in &self.trees[table.tree as usize].contexts {
            let context = &self.contexts[c as usize];
            if context.unclean.is_empty() {
                continue;
            }
            for (class, base, _, run) in context.unclean.overlapping(ia, end) {
                if class.0 != Was::Loose {
                    return Err(self.blame(
                        context.regime,
                        class,
                        base.max(ia),
                        run,
                        Kind::MakeWhileUnclean,
                    ));
                }
            }
        }
        self.check_clash(table.tree)?;
        self.check_table_in_group(table, shape, ia)?;
        let by = By::Store {
            released: how.releases(),
        };
        self.adopt(table.tree, next, level + 1, ia, by)
    }

    /// The tag of the removal that this link undoes, if it undoes one.
    fn put_back(&self, tree: u32, level: i8, ia: u64, next: u64) -> Option<u32> {
        let t = self.tables.get(&next)?;
        if t.tag == 0 || t.tree != tree || t.level != level + 1 || t.ia != ia {
            return None;
        }
        let contexts = &self.trees[tree as usize].contexts;
        contexts.iter().find_map(|&c| {
            self.contexts[c as usize]
                .unclean
                .overlapping(ia, ia + 1)
                .find(|(class, _, _, run)| *class == (Was::Table, level) && run.oa == next)
                .map(|(_, _, _, run)| run.tag)
        })
    }

    /// Links a detached subtree again where it was: what TLBs hold is right.
    fn relink(
        &mut self,
        tree: u32,
        shape: &Shape,
        level: i8,
        ia: u64,
        next: u64,
        tag: u32,
    ) -> Verdict {
        let mair = self.trees[tree as usize].mair;
        let end = ia + shape.span(level);
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i] as usize;
            let unclean = &mut self.contexts[c].unclean;
            unclean.remove((Was::Table, level), ia, end, |r| r.tag == tag, |_, _| {});
        }
        let mut stack: Vec<Visit> = vec![(next, level + 1, ia)];
        while let Some((base, level, first)) = stack.pop() {
            let Some(t) = self.tables.get_mut(&base) else {
                continue;
            };
            t.tag = 0;
            let t = *t;
            for i in 0..self.trees[tree as usize].contexts.len() {
                let c = self.trees[tree as usize].contexts[i] as usize;
                let unclean = &mut self.contexts[c].unclean;
                let mut words = Vec::new();
                self.mem.nonzero(base, t.entries, &mut words);
                for (index, word) in words {
                    let at = first + (index << shape.shift(level));
                    let to = at + shape.span(level);
                    match shape.decode(level, word) {
                        Desc::Leaf(oa) => {
                            // What a TLB holds is right again, unless it is the
                            // looser leaf that stood there earlier.
                            let now = shape.attrs(level, word, mair);
                            let mut looser = None;
                            unclean.remove(
                                (Was::Leaf, level),
                                at,
                                to,
                                |r| r.tag == tag,
                                |_, run| {
                                    let was = shape.attrs(level, run.old, mair);
                                    let covered = now.perms.covers(was.perms);
                                    if !covered || !now.af {
                                        looser = Some(Run {
                                            aged: covered,
                                            tag: 0,
                                            ..run
                                        });
                                    }
                                },
                            );
                            if let Some(run) = looser {
                                let shift = shape.shift(level);
                                unclean.insert((Was::Loose, level), shift, at, run);
                            }
                            if i == 0 {
                                let (oa, shift) = output_extent(shape, level, oa, word);
                                let key = (oa | u64::from(shift), tree);
                                *self.outputs.entry(key).or_insert(0) += 1;
                            }
                        }
                        Desc::Table(below) => {
                            unclean.remove(
                                (Was::Table, level),
                                at,
                                to,
                                |r| r.tag == tag,
                                |_, _| {},
                            );
                            if i == 0 {
                                stack.push((below, level + 1, at));
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        // Entries that were cleared meanwhile are gone like any other.
        for i in 0..self.trees[tree as usize].contexts.len() {
            let c = self.trees[tree as usize].contexts[i] as usize;
            self.contexts[c].unclean.retain(|_, run| {
                if run.tag == tag {
                    run.progress = Progress::default();
                    run.tag = 0;
                }
                true
            });
        }
        Ok(())
    }

    /// The root becomes walkable.
    pub(crate) fn adopt_root(&mut self, tree: u32) -> Verdict {
        let t = &self.trees[tree as usize];
        let (root, shape) = (t.root, t.shape);
        self.adopt(tree, root, shape.start, 0, By::Register)
    }

    /// Links a table and all below it.
    fn adopt(&mut self, tree: u32, base: u64, level: i8, ia: u64, by: By) -> Verdict {
        let shape = self.shape_of(tree);
        let mut stack: Vec<Visit> = vec![(base, level, ia)];
        let mut words = Vec::new();
        while let Some((base, level, first)) = stack.pop() {
            let entries = if level == shape.start {
                shape.root_entries()
            } else {
                1 << shape.stride
            };
            self.link(tree, base, entries, level, first, by)
                .map_err(|mut v| {
                    v.pa = Some(base);
                    v.ia = Some(first);
                    v
                })?;
            words.clear();
            self.mem.nonzero(base, entries, &mut words);
            for &(index, word) in &words {
                let at = first + (index << shape.shift(level));
                match shape.decode(level, word) {
                    Desc::Invalid => {}
                    Desc::Bad(why) => {
                        return self.bad_descriptor(why, word).map_err(|mut v| {
                            v.pa = Some(base + index * 8);
                            v.ia = Some(at);
                            v.level = Some(level);
                            v
                        });
                    }
                    Desc::Leaf(oa) => {
                        self.leaf_added(tree, &shape, (level, at), oa, word)?;
                        let table = self.tables[&base];
                        self.check_neighbours(&table, &shape, at, oa, word)?;
                    }
                    Desc::Table(next) => stack.push((next, level + 1, at)),
                }
            }
        }
        Ok(())
    }

    /// Walkers that see the link must see the table's contents.
    fn check_contents_visible(&self, base: u64, bytes: u64, by: By) -> Verdict {
        let now = self.now;
        let pe = &self.pes[usize::from(now)];
        let last = self.mem.last_store_by(base, bytes, now);
        match by {
            By::Store { released: true } => {}
            By::Store { released: false } if last > pe.ordered => {
                return self.fail(
                    Kind::TableUsedUninitialised,
                    "walkers may see the link before the table's contents",
                );
            }
            By::Register if last > pe.completed => {
                return self.fail(
                    Kind::MissingStoreBarrier,
                    "a table was written and no DSB followed before the root was installed",
                );
            }
            _ => {}
        }
        // What other PEs stored there must be complete; so must this PE's own
        // stores, where no store orders them.
        for (i, pe) in self.pes.iter().enumerate() {
            if i == usize::from(now) && by != By::Register {
                continue;
            }
            let old = pe
                .pending
                .iter()
                .find(|s| (base..base + bytes).contains(&s.pa) && self.mem.load(s.pa) != s.old);
            if let Some(s) = old {
                return self.fail(
                    Kind::MissingStoreBarrier,
                    format!("PE {i} stored to {:#x} and no DSB followed", s.pa),
                );
            }
        }
        Ok(())
    }

    fn link(&mut self, tree: u32, base: u64, entries: u64, level: i8, ia: u64, by: By) -> Verdict {
        let bytes = entries * 8;
        let earlier = self.tables.get(&base).copied();
        if let Some(t) = earlier {
            if t.tag == 0 && !self.dead(t.tree) {
                return self.fail(
                    Kind::TableLinkedTwice,
                    format!("it is linked at {:#x} already", t.ia),
                );
            }
            if self.dead(t.tree) {
                self.retire(t.tree);
            } else if !self.walkers_gone(&t) {
                return self.fail(
                    Kind::FreeWhileCached,
                    "the table is used again while walkers of its old place may be inside",
                );
            }
        }
        let mut wrong = None;
        for (lo, _, usage) in self.mem.uses(base, bytes) {
            wrong = match usage {
                Use::Free => Some((Kind::TableUsedUninitialised, lo, "was freed")),
                Use::Data(Owner::Hypervisor) | Use::Unknown | Use::Table => None,
                Use::Data(_) => Some((Kind::OutputNotOwned, lo, "is not the hypervisor's")),
            };
            if wrong.is_some() {
                break;
            }
        }
        if let Some((kind, lo, what)) = wrong {
            return self.fail(kind, format!("a table in {lo:#x}, which {what}"));
        }
        if self.mem.undefined(base, entries) {
            return self.fail(
                Kind::TableUsedUninitialised,
                "some of its entries were never written",
            );
        }
        self.check_contents_visible(base, bytes, by)?;
        // Who reaches it now reaches it by the link, which comes after them.
        let now = usize::from(self.now);
        self.pes[now]
            .pending
            .retain(|s| !(base..base + bytes).contains(&s.pa));
        if !self.sizes.contains(&bytes) {
            self.sizes.push(bytes);
        }
        self.tables.insert(
            base,
            Table {
                base,
                entries,
                tree,
                level,
                ia,
                tag: 0,
            },
        );
        Ok(())
    }

    /// True if the table at `next` maps all that one leaf of `word` maps, to
    /// the same place with the same attributes (FEAT_BBM level 2's condition).
    fn maps_alike(&self, table: &Table, shape: &Shape, oa: u64, word: u64, next: u64) -> bool {
        let want = self.leaf_attrs(table.tree, table.level, word);
        let mut stack = vec![(next, table.level + 1, oa)];
        while let Some((base, level, oa)) = stack.pop() {
            for index in 0..1u64 << shape.stride {
                let expect = oa + (index << shape.shift(level));
                let entry = self.mem.load(base + index * 8);
                match shape.decode(level, entry) {
                    Desc::Table(below) => stack.push((below, level + 1, expect)),
                    Desc::Leaf(found) => {
                        let got = self.leaf_attrs(table.tree, level, entry);
                        let same = got.memory == want.memory
                            && got.sh == want.sh
                            && got.perms == want.perms
                            && found == expect;
                        if !same {
                            return false;
                        }
                    }
                    _ => return false,
                }
            }
        }
        true
    }
}

/// The memory that a leaf opens, as (address, log2 size): with the contiguous
/// hint, all of its group's.
fn output_extent(shape: &Shape, level: i8, oa: u64, word: u64) -> (u64, u8) {
    let shift = shape.shift(level);
    if word & CONTIGUOUS == 0 {
        return (oa, shift);
    }
    let shift = shift + shape.group_log2(level);
    (oa & !((1 << shift) - 1), shift)
}

/// A leaf's word without its output address, and with the access flag, without
/// which no TLB would have taken it.
fn attribute_bits(shape: &Shape, word: u64) -> u64 {
    let mut bits = word & !(((1u64 << 50) - 1) & !0xfff);
    if shape.high == HighAddress::Lpa2 {
        bits &= !0x300;
    }
    bits | AF
}

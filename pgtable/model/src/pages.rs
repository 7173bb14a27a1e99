//! Pages that change hands: allocation, freeing, ownership.

use crate::machine::{LARGEST, Machine, Table, Verdict};
use crate::mem::{LastStore, Owner, Use};
use crate::shape::Regime;
use crate::unclean::Was;
use crate::violation::Kind;

impl Machine {
    /// Pages were taken for tables.
    pub(crate) fn alloc(&mut self, pa: u64, len: u64, zeroed: bool) -> Verdict {
        if len == 0 || len > LARGEST || !pa.is_multiple_of(8) || pa.checked_add(len).is_none() {
            return self.fail(Kind::BadEvent, "an allocation of no sensible size");
        }
        let taken = self
            .mem
            .uses(pa, len)
            .find(|(_, _, usage)| *usage == Use::Table);
        if let Some((at, _, _)) = taken {
            return self.fail(Kind::BadEvent, format!("{at:#x} is allocated already"));
        }
        self.leave_tables(pa, len)?;
        self.check_release(pa, len, Owner::Hypervisor)?;
        self.mem.set_use(pa, len, Use::Table);
        self.stats.table_bytes += len;
        if zeroed {
            let last = LastStore {
                pe: self.now,
                event: self.event,
            };
            self.mem.zero(pa, len, last);
        } else {
            self.mem.scramble(pa, len);
        }
        Ok(())
    }

    /// Table pages were given back.
    pub(crate) fn free(&mut self, pa: u64, len: u64) -> Verdict {
        if len == 0 || len > LARGEST || pa.checked_add(len).is_none() {
            return self.fail(Kind::BadEvent, "a free of no sensible size");
        }
        let not_table = self
            .mem
            .uses(pa, len)
            .find(|(_, _, usage)| *usage != Use::Table);
        match not_table {
            Some((at, _, Use::Free)) => {
                return self.fail(Kind::BadEvent, format!("{at:#x} was freed twice"));
            }
            Some((at, _, _)) => {
                return self.fail(Kind::BadEvent, format!("{at:#x} is no table page"));
            }
            None => {}
        }
        self.leave_tables(pa, len)?;
        self.mem.set_use(pa, len, Use::Free);
        self.stats.table_bytes = self.stats.table_bytes.saturating_sub(len);
        Ok(())
    }

    /// Tables that walkers may read and that overlap the range.
    fn tables_in(&self, pa: u64, len: u64) -> Vec<Table> {
        if (self.tables.len() as u64) < len / 4096 {
            let inside = |t: &&Table| t.base < pa + len && t.base + t.entries * 8 > pa;
            return self.tables.values().filter(inside).copied().collect();
        }
        let mut found = Vec::new();
        for &size in &self.sizes {
            let mut base = pa & !(size - 1);
            while base < pa + len {
                if let Some(t) = self.tables.get(&base)
                    && t.entries * 8 == size
                {
                    found.push(*t);
                }
                base += size;
            }
        }
        found
    }

    /// No walker may be inside a table in the range, which becomes something
    /// else.
    fn leave_tables(&mut self, pa: u64, len: u64) -> Verdict {
        for table in self.tables_in(pa, len) {
            self.free_table(&table).map_err(|mut v| {
                v.pa = Some(table.base);
                v
            })?;
        }
        Ok(())
    }

    fn free_table(&mut self, table: &Table) -> Verdict {
        if self.may_go(table.tree) {
            self.retire(table.tree);
            return Ok(());
        }
        if table.tag == 0 {
            let root = self.trees[table.tree as usize].root == table.base;
            return self.fail(
                Kind::FreeWhileCached,
                if root {
                    "the root is installed, or its VMID was not invalidated since"
                } else {
                    "the table is still linked"
                },
            );
        }
        let tree = &self.trees[table.tree as usize];
        for &c in &tree.contexts {
            let context = &self.contexts[c as usize];
            let held = context
                .unclean
                .overlapping(table.ia, table.ia + 1)
                .find(|(class, _, _, _)| class.0 == Was::Table && class.1 < table.level);
            if let Some((class, base, _, run)) = held {
                return Err(self.blame(context.regime, (class, base), run, Kind::FreeWhileCached));
            }
        }
        self.tables.remove(&table.base);
        Ok(())
    }

    /// Memory changes owner.
    pub(crate) fn own(&mut self, pa: u64, len: u64, owner: Owner) -> Verdict {
        if len == 0 || pa.checked_add(len).is_none() {
            return self.fail(Kind::BadEvent, "a change of owner of no memory");
        }
        self.check_release(pa, len, owner)?;
        let table = self
            .mem
            .uses(pa, len)
            .find(|(_, _, usage)| *usage == Use::Table);
        if let Some((at, _, _)) = table {
            return self.fail(Kind::BadEvent, format!("{at:#x} is a table page"));
        }
        self.leave_tables(pa, len)?;
        self.mem.set_use(pa, len, Use::Data(owner));
        self.clean_data.set(pa, pa + len, false);
        self.clean_insn.set(pa, pa + len, false);
        Ok(())
    }

    /// No tree that `owner` does not allow may map the range, nor any TLB.
    fn check_release(&self, pa: u64, len: u64, owner: Owner) -> Verdict {
        let end = pa + len;
        for (i, tree) in self.trees.iter().enumerate() {
            if tree.retired || tree.shape.regime == Regime::El2 {
                continue;
            }
            let allowed = match owner {
                Owner::Shared => true,
                Owner::Vmid(v) => tree
                    .contexts
                    .iter()
                    .all(|&c| self.contexts[c as usize].vmid == v),
                Owner::Nobody | Owner::Hypervisor => false,
            };
            if allowed {
                continue;
            }
            if let Some(oa) = self.mapped_output(i as u32, pa, end) {
                let mut v = self.violation(
                    Kind::OutputNotOwned,
                    "the memory is given away while a leaf maps it",
                );
                v.pa = Some(oa);
                return Err(v);
            }
            for &c in &tree.contexts {
                let context = &self.contexts[c as usize];
                for (class, base, last, run) in context.unclean.overlapping(0, u64::MAX) {
                    let mut bytes = last - base;
                    let mut oa = run.oa;
                    if run.contiguous {
                        let group = tree.shape.span(class.1) << tree.shape.group_log2(class.1);
                        bytes = (oa + bytes).next_multiple_of(group) - (oa & !(group - 1));
                        oa &= !(group - 1);
                    }
                    if class.0 != Was::Table && oa < end && oa + bytes > pa {
                        let ia = base + pa.saturating_sub(run.oa);
                        let shown = Kind::OutputNotOwned;
                        return Err(self.blame(context.regime, (class, ia), run, shown));
                    }
                }
            }
        }
        Ok(())
    }

    /// Some output address of a leaf of `tree` in `[pa, end)`.
    fn mapped_output(&self, tree: u32, pa: u64, end: u64) -> Option<u64> {
        let t = &self.trees[tree as usize];
        let shape = t.shape;
        // Leaves have a size per level, and groups have another.
        let single = (0..=3).map(|level| shape.shift(level));
        let groups = (1..=3)
            .filter(|&level| t.contiguous && shape.group_log2(level) != 0)
            .map(|level| shape.shift(level) + shape.group_log2(level));
        let shifts = single.chain(groups);
        let probes = shifts.clone().fold(0u64, |sum, shift| {
            sum.saturating_add(((end - pa) >> shift) + 2)
        });
        if probes > self.outputs.len() as u64 {
            return self.outputs.keys().find_map(|&(key, of)| {
                let (oa, shift) = (key & !63, key & 63);
                (of == tree && oa < end && oa + (1 << shift) > pa).then_some(oa)
            });
        }
        for shift in shifts {
            let span = 1u64 << shift;
            let mut oa = pa & !(span - 1);
            while oa < end {
                if self.outputs.contains_key(&(oa | u64::from(shift), tree)) {
                    return Some(oa);
                }
                oa += span;
            }
        }
        None
    }
}

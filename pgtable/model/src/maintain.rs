//! Barriers and TLB invalidation: how unclean entries become clean.

use crate::event::Accesses;
use crate::machine::{El2Change, Machine, Pending, Verdict};
use crate::shape::{Regime, Shape, vmid};
use crate::tlbi::{BadOp, Extent, Reach, TlbiKind, TlbiOp, decode};
use crate::unclean::{MAX_PES, PeMask, Progress, Was, note};
use crate::violation::Kind;

/// Who issued a TLBI, whom it reaches, and why it may do nothing for a context.
#[derive(Clone, Copy)]
struct Issue {
    issuer: usize,
    targets: PeMask,
    /// Of [`note`]; 0 if it is right.
    miss: u16,
}

/// Marks the first step (or the only one) as issued, as far as walkers of the
/// target PEs see the store.
fn issue_stage2(p: &mut Progress, issuer: usize, targets: PeMask) {
    if targets & !p.guard & !p.s2 != 0 {
        p.notes |= note::EARLY;
    }
    p.s2_pending[issuer] |= targets & p.guard & !p.s2;
}

/// Marks the removal of combined entries as issued, where stage 2 is done.
fn issue_stage1(p: &mut Progress, issuer: usize, targets: PeMask) {
    if targets & !p.s2 != 0 {
        p.notes |= note::S1_EARLY;
    }
    p.s1_pending[issuer] |= targets & p.s2 & !p.s1;
}

/// Both stages at once.
fn issue_both(p: &mut Progress, issuer: usize, targets: PeMask) {
    if targets & !p.guard & !(p.s2 & p.s1) != 0 {
        p.notes |= note::EARLY;
    }
    p.s2_pending[issuer] |= targets & p.guard & !p.s2;
    p.s1_pending[issuer] |= targets & p.guard & !p.s1;
}

/// Entries rid of by one instruction of the by-address kinds.
fn hits(class: (Was, i8), extent: &Extent) -> Result<(), u16> {
    match class.0 {
        Was::Table if extent.leaf_only => Err(note::LAST_LEVEL),
        Was::Table if extent.level.is_some() => Err(note::TTL),
        Was::Leaf | Was::Loose if !extent.leaf(class.1) => Err(note::TTL),
        _ => Ok(()),
    }
}

impl Machine {
    fn targets(&self, op: TlbiOp) -> PeMask {
        match op.reach {
            Reach::Local => 1 << self.now,
            Reach::Inner | Reach::Outer => self.all,
        }
    }

    /// PEs that have the context installed.
    fn installed_on(&self, context: usize) -> PeMask {
        self.pes.iter().enumerate().fold(0, |mask, (n, pe)| {
            let mut here = [pe.stage2, pe.el2].into_iter().flatten();
            let any = here.any(|(_, c)| c as usize == context);
            mask | PeMask::from(any) << n
        })
    }

    /// A TLBI instruction was issued.
    pub(crate) fn tlbi(&mut self, op: TlbiOp, xt: u64) -> Verdict {
        self.stats.tlbis += 1;
        let targets = self.targets(op);
        let issuer = usize::from(self.now);
        self.issue_late(issuer, targets);
        if op.kind.is_stage1_address() {
            return Ok(());
        }
        let pe = &self.pes[issuer];
        let regime = op.kind.regime();
        let (shape, vmid_now, ambiguous) = match regime {
            Regime::El2 => (pe.el2_shape, 0, None),
            Regime::Stage2 => {
                let read = |v: u64| {
                    if self.toy.is_some() {
                        (v >> 48) as u16
                    } else {
                        vmid(v, pe.vtcr, &self.features)
                    }
                };
                let now = read(pe.vttbr);
                let old = pe.old_vttbr.map(read).filter(|&old| old != now);
                (pe.shape, now, old)
            }
        };
        let extent = if op.kind.is_all() {
            None
        } else {
            let Some(shape) = shape else {
                return self.fail(
                    Kind::BadSetup,
                    "a TLBI by address before the regime's registers were written",
                );
            };
            Some(self.extent(op.kind, xt, &shape)?)
        };
        self.note_faults(op, extent.as_ref(), issuer, vmid_now);
        for i in 0..self.contexts.len() {
            let context = &self.contexts[i];
            if context.regime != regime {
                continue;
            }
            let mine = op.kind == TlbiKind::Alle1 || context.vmid == vmid_now;
            let unsure = ambiguous.is_some_and(|old| context.vmid == old || mine)
                && op.kind != TlbiKind::Alle1;
            if mine && !unsure && extent.is_none() && op.kind != TlbiKind::Vmalle1 {
                // A PE that runs on it now may take new entries at once.
                let installed = self.installed_on(i);
                self.contexts[i].flush[issuer] |= targets & !installed;
            }
            if self.contexts[i].unclean.is_empty() {
                continue;
            }
            let miss = if unsure {
                note::ISB
            } else if mine {
                0
            } else {
                note::WRONG_VMID
            };
            let issue = Issue {
                issuer,
                targets,
                miss,
            };
            match extent {
                Some(extent) => self.tlbi_extent(i, &extent, issue),
                None => self.tlbi_all(i, op.kind, issue),
            }
        }
        Ok(())
    }

    fn extent(
        &self,
        kind: TlbiKind,
        xt: u64,
        shape: &Shape,
    ) -> Result<Extent, Box<crate::Violation>> {
        let extent = decode(kind, xt, shape, &self.features).map_err(|bad| match bad {
            BadOp::NoRange => self.violation(Kind::UndefinedTlbi, ""),
            BadOp::Reserved(bits) => self.violation(
                Kind::ReservedOperand,
                format!("bits {bits:#x} of the operand {xt:#x} are reserved"),
            ),
        })?;
        let top = 1u64
            .checked_shl(u32::from(shape.ia_bits))
            .unwrap_or(u64::MAX);
        let over = |lo: u64, hi: u64| extent.lo < lo || extent.hi > hi;
        if over(0, top) || self.window.is_some_and(|(lo, hi)| over(lo, hi)) {
            let mut v = self.violation(
                Kind::RangeOverrun,
                format!("it covers {:#x} to {:#x}", extent.lo, extent.hi),
            );
            v.ia = Some(extent.lo);
            return Err(v);
        }
        Ok(extent)
    }

    /// By address or range, in one context.
    fn tlbi_extent(
        &mut self,
        i: usize,
        extent: &Extent,
        Issue {
            issuer,
            targets,
            miss,
        }: Issue,
    ) {
        let miss = match extent.mismatch {
            Some(_) => miss | note::TG,
            None => miss,
        };
        let (lo, hi) = (extent.lo, extent.hi);
        if miss != 0 {
            self.contexts[i]
                .unclean
                .touch(lo, hi, |_, _| true, |_, p| p.notes |= miss);
            return;
        }
        let issue = |class: (Was, i8), p: &mut Progress| match hits(class, extent) {
            Ok(()) => issue_stage2(p, issuer, targets),
            Err(why) => p.notes |= why,
        };
        // Where a removed table is still in a walk cache and this instruction
        // leaves it there, leaves below it come back from the table's memory.
        let behind: Vec<(u64, u64)> = if extent.tables() {
            Vec::new()
        } else {
            let found = self.contexts[i].unclean.overlapping(lo, hi);
            found
                .filter(|(class, _, _, run)| {
                    class.0 == Was::Table && targets & !run.progress.s2 != 0
                })
                .map(|(_, base, end, _)| (base, end))
                .collect()
        };
        let grouped = self.contexts[i].unclean.has_contiguous();
        let plain = |class: (Was, i8), run: &crate::unclean::Run| {
            let direct = class.0 == Was::Table || behind.is_empty() || run.tag == 0;
            direct && !run.contiguous
        };
        self.contexts[i].unclean.touch(lo, hi, plain, issue);
        if !behind.is_empty() {
            let mut at = lo;
            let mut sorted = behind.clone();
            sorted.sort_unstable();
            for (base, end) in sorted.into_iter().chain([(hi, hi)]) {
                if base > at {
                    self.contexts[i].unclean.touch(
                        at,
                        base.min(hi),
                        |class, run| class.0 != Was::Table && run.tag != 0 && !run.contiguous,
                        issue,
                    );
                }
                at = at.max(end);
            }
            for &(base, end) in &behind {
                self.contexts[i].unclean.touch(
                    lo.max(base),
                    hi.min(end),
                    |class, run| class.0 != Was::Table && run.tag != 0,
                    |_, p| p.notes |= note::REFILL,
                );
            }
        }
        if grouped {
            self.tlbi_groups(i, (lo, hi), &behind, issue);
        }
    }

    /// Members of contiguous groups: a TLB may remake the entry of the whole
    /// group from any member that is still valid. `behind` are the spans of
    /// removed tables that stay in walk caches, as above.
    fn tlbi_groups(
        &mut self,
        i: usize,
        (lo, hi): (u64, u64),
        behind: &[(u64, u64)],
        issue: impl Fn((Was, i8), &mut Progress) + Copy,
    ) {
        let tree = self.contexts[i].tree;
        let shape = self.shape_of(tree);
        let runs: Vec<_> = self.contexts[i]
            .unclean
            .overlapping(lo, hi)
            .filter(|(_, _, _, run)| run.contiguous)
            .map(|(class, base, end, run)| (class, base.max(lo), end.min(hi), run.tag))
            .collect();
        for (class, from, to, tag) in runs {
            let span = shape.span(class.1);
            let group = span << shape.group_log2(class.1);
            let mut at = from & !(group - 1);
            while at < to {
                let refills = tag != 0 && behind.iter().any(|&(a, b)| a < at + group && b > at);
                let miss = if refills {
                    note::REFILL
                } else if self.group_alive(tree, class, at, group) {
                    note::GROUP
                } else {
                    0
                };
                let (a, b) = (at.max(from), (at + group).min(to));
                self.contexts[i].unclean.touch(
                    a,
                    b,
                    |c, run| c == class && run.contiguous && run.tag == tag,
                    |c, p| match miss {
                        0 => issue(c, p),
                        why => p.notes |= why,
                    },
                );
                at += group;
            }
        }
    }

    /// True if a member of the group at `ia` can still remake what is unclean.
    fn group_alive(&self, tree: u32, class: (Was, i8), ia: u64, bytes: u64) -> bool {
        let shape = self.shape_of(tree);
        let members = bytes >> shape.shift(class.1);
        let Some(first) = self.entry_address(tree, class.1, ia) else {
            return false;
        };
        let t = &self.trees[tree as usize];
        let attrs = |n: u64| {
            let word = self.mem.load(first + n * 8);
            match shape.decode(class.1, word) {
                crate::Desc::Leaf(_) => Some(shape.attrs(class.1, word, t.mair)),
                _ => None,
            }
        };
        let hidden = self.pes.iter().any(|pe| {
            pe.pending
                .iter()
                .any(|s| s.pa >= first && s.pa < first + members * 8)
        });
        let mut live = (0..members).filter_map(attrs).filter(|a| a.contiguous);
        match class.0 {
            Was::Loose => {
                let least = (0..members)
                    .filter_map(attrs)
                    .fold(u8::MAX, |m, a| m & a.perms.0);
                hidden || live.any(|a| a.perms.0 & !least != 0)
            }
            _ => hidden || live.next().is_some(),
        }
    }

    /// Physical address of the entry for `ia` at `level`, if tables reach it.
    pub(crate) fn entry_address(&self, tree: u32, level: i8, ia: u64) -> Option<u64> {
        let t = &self.trees[tree as usize];
        let mut base = t.root;
        let mut at = t.shape.start;
        while at < level {
            let word = self.mem.load(base + t.shape.index(at, ia) * 8);
            match t.shape.decode(at, word) {
                crate::Desc::Table(next) => base = next,
                _ => return None,
            }
            at += 1;
        }
        Some(base + t.shape.index(level, ia) * 8)
    }

    /// The whole-VMID and whole-regime forms.
    fn tlbi_all(&mut self, i: usize, kind: TlbiKind, issue: Issue) {
        let Issue {
            issuer,
            targets,
            miss,
        } = issue;
        // With HCR_EL2.{E2H,TGE} = {1,1}, VMALLE1 acts on the EL2&0 regime.
        let hcr = self.pes[issuer].hcr;
        let miss = if kind == TlbiKind::Vmalle1 && hcr >> 34 & 1 == 1 && hcr >> 27 & 1 == 1 {
            miss | note::REGIME
        } else {
            miss
        };
        if miss != 0 {
            self.contexts[i].unclean.retain(|_, run| {
                run.progress.notes |= miss;
                true
            });
            return;
        }
        let grouped = self.contexts[i].unclean.has_contiguous();
        let issue = |class: (Was, i8), p: &mut Progress| match kind {
            TlbiKind::Vmalle1 => {
                if class.0 != Was::Table {
                    issue_stage1(p, issuer, targets);
                }
            }
            TlbiKind::Alle2 => issue_stage2(p, issuer, targets),
            _ => issue_both(p, issuer, targets),
        };
        if grouped && kind != TlbiKind::Vmalle1 {
            self.tlbi_groups(i, (0, u64::MAX >> 1), &[], issue);
        }
        self.contexts[i].unclean.retain(|class, run| {
            if !(grouped && run.contiguous && kind != TlbiKind::Vmalle1) {
                issue(class, &mut run.progress);
            }
            true
        });
    }

    /// The repeat that errata ask for: any broadcast TLBI after completion.
    fn issue_late(&mut self, issuer: usize, targets: PeMask) {
        if !self.features.errata.repeat_tlbi || targets != self.all {
            return;
        }
        for context in &mut self.contexts {
            let stage2 = context.regime == Regime::Stage2;
            context.unclean.retain(|class, run| {
                let p = &mut run.progress;
                let done = if stage2 && class.0 != Was::Table {
                    p.s2 & p.s1
                } else {
                    p.s2
                };
                p.late_pending[issuer] |= targets & done & !p.late;
                true
            });
        }
    }

    /// Once a store is complete nobody sees what stood there before it, even if
    /// another PE's earlier store to the same word never was completed itself.
    fn supersede(&mut self, issuer: usize, done: &[Pending]) {
        for (i, pe) in self.pes.iter_mut().enumerate() {
            if i != issuer && !pe.pending.is_empty() {
                pe.pending
                    .retain(|s| !done.iter().any(|d| d.pa == s.pa && d.event > s.event));
            }
        }
    }

    /// A DSB: `wide` reaches the inner shareable domain at least.
    pub(crate) fn dsb(&mut self, wide: bool, accesses: Accesses) {
        let issuer = usize::from(self.now);
        let own: PeMask = 1 << issuer;
        let wide = wide || self.all == own;
        let reach = if wide { self.all } else { own };
        let event = self.event;
        let stores = accesses != Accesses::Loads;
        if stores {
            let pe = &mut self.pes[issuer];
            pe.ordered = event;
            if wide {
                pe.completed = event;
            }
            if pe.el2_change == El2Change::Stored {
                pe.el2_change = El2Change::Visible;
            }
            if wide {
                let mut done = std::mem::take(&mut pe.pending);
                self.supersede(issuer, &done);
                done.clear();
                self.pes[issuer].pending = done;
            } else {
                for s in &mut pe.pending {
                    s.local = true;
                }
            }
        }
        let completes = accesses == Accesses::All;
        let all = self.all;
        let repeat = self.features.errata.repeat_tlbi;
        let mut completed = false;
        for i in 0..self.contexts.len() {
            let context = &mut self.contexts[i];
            if completes && context.flush[issuer] != 0 {
                let gone = context.flush[issuer] & reach;
                context.flush[issuer] &= !reach;
                completed |= gone != 0;
                context.cached &= !gone;
            }
            if context.unclean.is_empty() {
                continue;
            }
            let stage2 = context.regime == Regime::Stage2;
            context.unclean.retain(|class, run| {
                let p = &mut run.progress;
                if stores && run.writer as usize == issuer {
                    p.guard |= reach;
                }
                if completes {
                    completed |= complete(p, issuer, reach);
                }
                let done = p.s2 == all
                    && (p.s1 == all || !stage2 || class.0 == Was::Table)
                    && (p.late == all || !repeat);
                !done
            });
        }
        if completes {
            completed |= self.complete_faults(issuer);
        }
        if completed {
            self.pes[issuer].needs_isb = true;
        }
    }
}

/// Moves what the issuer's DSB completes from pending to done.
fn complete(p: &mut Progress, issuer: usize, reach: PeMask) -> bool {
    debug_assert!(issuer < MAX_PES);
    let mut any = false;
    for (done, pending) in [
        (&mut p.s2, &mut p.s2_pending[issuer]),
        (&mut p.s1, &mut p.s1_pending[issuer]),
        (&mut p.late, &mut p.late_pending[issuer]),
    ] {
        let now = *pending & reach;
        *done |= now;
        *pending &= !reach;
        any |= now != 0;
    }
    any
}

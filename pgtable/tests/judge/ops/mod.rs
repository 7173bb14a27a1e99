//! What the four numbers of an operation mean, and what each operation has to
//! do to the shadow.
//!
//! | number | bits |
//! |---|---|
//! | first | 4:0 kind, 9:8 CPU, 10 guest, 15:11 when memory runs out, 19:16 what goes on beside, 31:20 after how many steps, 63:32 where |
//! | second | the range: see `aim` |
//! | third | 7:0 length, 63:8 attributes, 63:48 length of a range in what is there |
//! | fourth | policies, budget, target, 63:60 which tree the CPU has loaded |

mod aim;
mod beside;
mod changing;
mod mapping;
mod removing;
mod shaping;

use super::driver::{PES, Run};
use super::shadow::State;
use super::tally::Outcome;
use pgtable::{Budget, Ipa, Over, Partial};

/// The kinds of operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Map,
    MapExclusive,
    Unmap,
    UnmapLeaves,
    UnmapLater,
    UnmapAll,
    Annotate,
    Protect,
    WriteProtect,
    Relax,
    Young,
    MarkYoung,
    Harvest,
    Split,
    Fold,
    FillAndFold,
    Contiguous,
    FillGroup,
    Subtree,
    Freeze,
    Hardware,
    FlushCaches,
}

use Kind as K;

/// Which kind the low bits of the first number mean.
const KINDS: [Kind; 32] = [
    K::Map,
    K::Map,
    K::Map,
    K::MapExclusive,
    K::MapExclusive,
    K::MapExclusive,
    K::Unmap,
    K::Unmap,
    K::UnmapLeaves,
    K::UnmapLater,
    K::UnmapAll,
    K::Annotate,
    K::Protect,
    K::Protect,
    K::WriteProtect,
    K::Relax,
    K::Relax,
    K::Young,
    K::MarkYoung,
    K::Harvest,
    K::Split,
    K::Split,
    K::Fold,
    K::FillAndFold,
    K::Contiguous,
    K::FillGroup,
    K::Subtree,
    K::Freeze,
    K::Freeze,
    K::Hardware,
    K::Hardware,
    K::FlushCaches,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            K::Map => "map",
            K::MapExclusive => "map exclusive",
            K::Unmap => "unmap",
            K::UnmapLeaves => "unmap leaves",
            K::UnmapLater => "unmap later",
            K::UnmapAll => "unmap all",
            K::Annotate => "annotate",
            K::Protect => "protect",
            K::WriteProtect => "write-protect",
            K::Relax => "relax",
            K::Young => "clear young",
            K::MarkYoung => "mark young",
            K::Harvest => "harvest dirty",
            K::Split => "split",
            K::Fold => "fold",
            K::FillAndFold => "fill and fold",
            K::Contiguous => "contiguous",
            K::FillGroup => "fill group",
            K::Subtree => "subtree",
            K::Freeze => "freeze",
            K::Hardware => "hardware",
            K::FlushCaches => "flush caches",
        }
    }

    /// Ranges are made of what is mapped, in so many cases of four.
    const fn aims(self) -> u64 {
        match self {
            K::Map | K::MapExclusive | K::Subtree | K::FillAndFold | K::FillGroup => 1,
            K::Unmap | K::UnmapLeaves | K::UnmapLater | K::Annotate | K::Freeze => 2,
            _ => 3,
        }
    }

    /// Other CPUs may be in the tree meanwhile: nothing but `&self` is used,
    /// after what was laid out for it.
    const fn shares(self) -> bool {
        !matches!(
            self,
            K::MapExclusive
                | K::Unmap
                | K::UnmapAll
                | K::Annotate
                | K::Fold
                | K::FillAndFold
                | K::Hardware
        )
    }

    /// It keeps to its range, so that other CPUs may change what is beside it.
    const fn keeps_to_range(self) -> bool {
        !matches!(self, K::Subtree | K::Freeze | K::FillGroup | K::Split)
    }

    /// Another CPU may remove a page of its range: the end is the same,
    /// whoever comes first.
    const fn bears_removal(self) -> bool {
        self.removes_leaves()
            || matches!(
                self,
                K::Protect | K::WriteProtect | K::Young | K::FlushCaches
            )
    }

    /// It removes leaves beside other CPUs, who may map anew what it removed.
    const fn removes_leaves(self) -> bool {
        matches!(self, K::UnmapLeaves | K::UnmapLater)
    }

    /// A guest may write while it goes on, and the shadow can tell what
    /// becomes of that.
    const fn bears_writes(self) -> bool {
        !matches!(
            self,
            K::Map | K::MapExclusive | K::Subtree | K::Freeze | K::Annotate
        )
    }
}

/// One operation, taken apart.
#[derive(Clone, Copy, Debug)]
struct Task {
    kind: Kind,
    guest: usize,
    start: u64,
    end: u64,
    /// What it may touch besides its range: the leaves at the ends, whole.
    low: u64,
    high: u64,
    partial: Partial,
    over: Over,
    b: u64,
    c: u64,
}

impl Task {
    /// Where an operation that takes leaves at its ends whole has begun, if it
    /// came to `next`: it may have stopped before the first.
    const fn from(&self, next: u64) -> u64 {
        if next > self.start { self.low } else { next }
    }

    const fn ipa(&self) -> Ipa {
        Ipa::new(self.start)
    }

    const fn size(&self) -> u64 {
        self.end - self.start
    }

    const fn budget(&self) -> Budget {
        match self.c >> 4 & 3 {
            0 => {
                // One in which cleaning the range takes some thousand calls.
                let (entries, least) = (1 + (self.c >> 6 & 63), self.size() >> 25);
                Budget::entries(if entries > least { entries } else { least })
            }
            _ => Budget::unlimited(),
        }
    }
}

impl Run<'_, '_> {
    /// Does one operation and judges what came of it.
    pub(super) fn step(&mut self, op: &[u64; 4]) {
        let judge = self.judge;
        let first = op[0];
        judge.pe.set((first >> 8 & 3) as u8 % PES as u8);
        // Now and then an allocator that fails soon.
        judge.limit.set(if first >> 11 & 7 == 7 {
            first >> 14 & 3
        } else {
            u64::MAX
        });
        // 131,072 pages of a root of 64K, each removed and cleaned by a call of
        // its own, made 2.5 million.
        judge.extend(10_000_000);
        let task = self.task(op);
        let guest = task.guest;
        self.load(op[3] >> 60);
        let (installed, events) = (judge.regs(), judge.events());
        let inside = task.start + (first >> 40) % (task.size() / self.page()) * self.page();
        let was = self.guests[guest].shadow.at(inside);
        if let Some(meanwhile) = self.meanwhile(&task, inside, first) {
            let after = first >> 22 & [3, 15, 63, 255][(first >> 20 & 3) as usize];
            judge.plan(meanwhile, after as u32);
        }
        judge.begin(task.kind.shares());
        let outcome = self.perform(&task);
        judge.begin(false);
        judge.limit.set(u64::MAX);
        if judge.regs() != installed && !matches!(task.kind, K::Relax | K::Hardware) {
            self.complain("another tree is installed after the operation");
        }
        self.absorb(guest);
        self.check_seen(guest, inside, was);
        self.meet(guest);
        judge.unplan();
        let made = judge.events() - events;
        self.tally.note(task.kind.name(), outcome, made);
        if judge.is_broken() {
            return;
        }
        self.settle(guest, task.low, task.high);
        self.settle_met(guest);
    }

    /// Takes an operation apart.
    fn task(&self, op: &[u64; 4]) -> Task {
        let [first, a, b, c] = *op;
        let kind = KINDS[(first & 31) as usize];
        let guest = (first >> 10 & 1) as usize;
        let aimed = if a >> 60 & 3 < kind.aims() {
            self.aimed(guest, a, b >> 48)
        } else {
            None
        };
        let (start, size) = aimed.unwrap_or_else(|| self.range(a, b));
        let (start, end) = self.in_blocks(kind, start, start + size, (b, c));
        let (low, high) = self.whole(guest, start, end);
        Task {
            kind,
            guest,
            start,
            end,
            low: low.min(start),
            high: high.max(end),
            partial: self.partial(c),
            over: [Over::Anything, Over::Invalid, Over::Nothing, Over::Anything]
                [(c / 3 % 4) as usize],
            b,
            c,
        }
    }

    fn perform(&mut self, task: &Task) -> Outcome {
        match task.kind {
            K::Map | K::MapExclusive => {
                let (pa, attrs, leaves) = self.mapping(task);
                self.map(task, pa, attrs, leaves)
            }
            K::Unmap | K::UnmapLeaves | K::UnmapLater => self.unmap(task),
            K::UnmapAll => {
                let entries = 64 + (task.c >> 6 & 1023);
                let budget = (task.c >> 4 & 3 == 0).then_some(entries);
                self.unmap_whole(task.guest, task.partial, budget)
            }
            K::Annotate => self.annotate(task),
            K::Protect => self.protect(task),
            K::WriteProtect => self.write_protect(task),
            K::Relax => self.relax(task),
            K::Young => self.young(task),
            K::MarkYoung => self.mark_young(task),
            K::Harvest => self.harvest(task),
            K::Split => self.split(task),
            K::Fold => self.fold(task.guest, task.start),
            K::FillAndFold => self.fill_and_fold(task),
            K::Contiguous => self.contiguous(task),
            K::FillGroup => self.fill_group(task),
            K::Subtree => self.subtree(task),
            K::Freeze => self.freeze(task),
            K::Hardware => self.hardware(task),
            K::FlushCaches => self.flush_caches(task),
        }
    }
}

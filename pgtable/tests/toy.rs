//! Every tree that a few operations can make, on tables of four entries:
//! three levels, sixty-four pages, judged by the model at each step.
//!
//! States are told apart by what the tables hold; each new one is reached by
//! its shortest sequence of operations, and from it all operations are tried.
//! `PGTABLE_DEPTH` sets the length (default 3).

mod judge;

use judge::{Cpu, Judge, own};
use mmu_model::{EventKind, Owner, Promise, Reg, Target};
use pgtable::{
    Attrs, Budget, Features, Geometry, Ignore, Ipa, Leaves, Level, Map, Over, Pa, Partial, Split,
    Stage2, Stopped, Sweep, TableMem, Unmap, Vmid,
};
use std::collections::HashSet;

const PAGE: u64 = 4096;
const PAGES: u64 = 64;
/// Two memories that a guest's pages can lead to.
const MEMORY: [u64; 2] = [0x4000_0000, 0x4010_0000];

#[derive(Clone, Copy, Debug)]
struct Mapping {
    at: u64,
    pages: u64,
    memory: usize,
    small: bool,
    exclusive: bool,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Map(Mapping),
    Unmap {
        at: u64,
        pages: u64,
        exclusive: bool,
    },
    Protect {
        at: u64,
        pages: u64,
    },
    Split {
        at: u64,
        pages: u64,
    },
    Fold {
        at: u64,
        level: Level,
    },
}

fn ops() -> Vec<Op> {
    let mut ops = Vec::new();
    // In the first block, across blocks, across the blocks of a level up.
    let ranges = [
        (0, 1),
        (1, 2),
        (0, 4),
        (2, 4),
        (4, 4),
        (0, 16),
        (12, 8),
        (0, 64),
    ];
    for (at, pages) in ranges {
        for memory in 0..2 {
            for small in [false, true] {
                for exclusive in [false, true] {
                    if memory == 1 && small {
                        continue;
                    }
                    ops.push(Op::Map(Mapping {
                        at,
                        pages,
                        memory,
                        small,
                        exclusive,
                    }));
                }
            }
        }
        ops.push(Op::Unmap {
            at,
            pages,
            exclusive: true,
        });
        ops.push(Op::Unmap {
            at,
            pages,
            exclusive: false,
        });
        ops.push(Op::Protect { at, pages });
        ops.push(Op::Split { at, pages });
    }
    for (at, level) in [(0, Level::L2), (4, Level::L2), (0, Level::L1)] {
        ops.push(Op::Fold { at, level });
    }
    ops
}

/// What a page leads to: its address, and whether it can be written.
type Shadow = [Option<(u64, bool)>; PAGES as usize];

/// The judge of tables of four entries, and memory that the guest has.
fn judge(features: Features) -> Judge {
    let model = mmu_model::Features {
        tlbirange: features.tlb_range,
        ttl: features.ttl,
        ..mmu_model::Features::max()
    };
    let header = mmu_model::trace::Header {
        features: model,
        pes: 2,
        toy: Some((12, 2, 3)),
    };
    let judge = Judge::on(header, PAGE);
    for memory in MEMORY {
        own(&judge, memory, PAGES * PAGE, Owner::Vmid(3));
    }
    judge
}

/// A tree on which a path is walked, and what it should say.
struct Walked<'j> {
    judge: &'j Judge,
    tree: Stage2<&'j Judge>,
    shadow: Shadow,
}

impl<'j> Walked<'j> {
    /// An empty tree, loaded by both CPUs.
    fn new(judge: &'j Judge, features: Features) -> Self {
        let geometry = Geometry::toy(2, 3, features);
        let root = judge.root(PAGE);
        let tree = Stage2::new(geometry, root, Vmid::new(3), judge).expect("a root");
        for pe in 0..2 {
            judge.pe.set(pe);
            judge.write(Reg::Vttbr, tree.vttbr());
            judge.event(EventKind::ISB);
        }
        Self {
            judge,
            tree,
            shadow: [None; PAGES as usize],
        }
    }

    fn apply(&mut self, op: Op) -> Result<(), String> {
        let (judge, cpu) = (self.judge, &mut Cpu(self.judge));
        let all = &mut Budget::unlimited();
        match op {
            Op::Map(mapping) => self.map(mapping),
            Op::Unmap {
                at,
                pages,
                exclusive,
            } => {
                let range = &Unmap::new(Ipa::new(at * PAGE), pages * PAGE);
                let done = if exclusive {
                    self.tree.unmap(cpu, range, &mut Ignore, all)
                } else {
                    self.tree.unmap_leaves(cpu, range, &mut Ignore, all)
                };
                done.map_err(|stopped| stopped.to_string())?;
                self.pages(at, pages).fill(None);
            }
            Op::Protect { at, pages } => {
                let readable = pgtable::Permissions {
                    access: pgtable::Access::Read,
                    execute: pgtable::Execute::All,
                };
                let range = Sweep::new(Ipa::new(at * PAGE), pages * PAGE).partial(Partial::Split);
                let done = self.tree.protect(cpu, range, readable, all);
                done.map_err(|stopped| stopped.to_string())?;
                for page in self.pages(at, pages).iter_mut().flatten() {
                    page.1 = false;
                }
            }
            Op::Split { at, pages } => {
                let range = Split {
                    ipa: Ipa::new(at * PAGE),
                    size: pages * PAGE,
                    to: Level::L3,
                };
                let take = |level| judge.alloc(level);
                let done = self.tree.split(cpu, &range, take, all);
                done.map_err(|stopped| stopped.to_string())?;
            }
            Op::Fold { at, level } => {
                let _ = self.tree.fold(cpu, Ipa::new(at * PAGE), level);
            }
        }
        Ok(())
    }

    /// A mapping may be refused where it meets what it may not replace.
    fn map(&mut self, mapping: Mapping) {
        let Mapping {
            at, pages, memory, ..
        } = mapping;
        let (cpu, all) = (&mut Cpu(self.judge), &mut Budget::unlimited());
        let to = Pa::new(MEMORY[memory] + at * PAGE);
        let leaves = if mapping.small {
            Leaves::Exactly(Level::L3)
        } else {
            Leaves::Largest
        };
        let map = Map::new(Ipa::new(at * PAGE), to, pages * PAGE, Attrs::MEMORY)
            .leaves(leaves)
            .over(Over::Anything);
        let done = if mapping.exclusive {
            self.tree.map_exclusive(cpu, &map, &mut Ignore, all)
        } else {
            self.tree.map(cpu, &map, all)
        };
        let next = done.unwrap_or_else(|stopped: Stopped<Ipa>| stopped.next);
        for page in at..next.get() / PAGE {
            self.shadow[page as usize] = Some((MEMORY[memory] + page * PAGE, true));
        }
    }

    fn pages(&mut self, at: u64, pages: u64) -> &mut [Option<(u64, bool)>] {
        &mut self.shadow[at as usize..(at + pages) as usize]
    }

    /// Asks the judge whether any TLB may know something else.
    fn is_judged(&self) -> Result<(), String> {
        for (page, state) in self.shadow.iter().enumerate() {
            let to = state.map(|(pa, write)| Target {
                pa,
                perms: Some(if write { 15 } else { 13 }),
                memory: None,
            });
            self.judge.event(EventKind::Spec(Promise {
                ia: page as u64 * PAGE,
                len: PAGE,
                to,
            }));
        }
        self.judge.event(EventKind::Quiesce {
            lo: 0,
            hi: PAGES * PAGE,
        });
        self.judge.broken.borrow().clone().map_or(Ok(()), Err)
    }

    /// What the tables hold, in the order of a walk, addresses of tables left
    /// out: they depend on the way. Each must count what it holds.
    fn held(&self) -> Result<Vec<u64>, String> {
        let judge = self.judge;
        let mut held = Vec::new();
        let mut tables = vec![(self.tree.root(), 1i8)];
        while let Some((table, level)) = tables.pop() {
            let mut nonzero = 0;
            for index in 0..4 {
                let raw = judge.load(judge.locate(table), index);
                nonzero += u32::from(raw != 0);
                if level < 3 && raw & 3 == 3 {
                    tables.push((Pa::new(raw & 0xffff_ffff_f000), level + 1));
                    held.push(3);
                } else {
                    held.push(raw);
                }
            }
            let counted = judge.count(table);
            if counted != nonzero {
                return Err(format!("{table} holds {nonzero}, counts {counted}"));
            }
        }
        Ok(held)
    }
}

/// Runs a path. Returns what the tables hold at its end.
fn run(path: &[Op], features: Features) -> Result<Vec<u64>, String> {
    let judge = judge(features);
    let mut walked = Walked::new(&judge, features);
    for (step, op) in path.iter().enumerate() {
        judge.pe.set(step as u8 % 2);
        let after = |what| format!("{what}\nafter {:#?}", &path[..=step]);
        walked.apply(*op).map_err(after)?;
        walked.is_judged().map_err(after)?;
    }
    walked.held().map_err(|what| format!("{what}: {path:#?}"))
}

#[test]
fn every_tree_to_a_depth() {
    let depth = std::env::var("PGTABLE_DEPTH")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(3);
    let exact = Features {
        fwb: true,
        dic: true,
        xnx: true,
        ..Features::default()
    };
    let ranges = Features {
        tlb_range: true,
        ttl: true,
        ..exact
    };
    for features in [exact, ranges] {
        let mut known = HashSet::new();
        let mut edge: Vec<Vec<Op>> = vec![Vec::new()];
        let mut runs = 0u64;
        for _ in 0..depth {
            let mut next = Vec::new();
            for path in &edge {
                for op in ops() {
                    let mut longer = path.clone();
                    longer.push(op);
                    runs += 1;
                    match run(&longer, features) {
                        Ok(held) => {
                            if known.insert(held) {
                                next.push(longer);
                            }
                        }
                        Err(what) => panic!("{what}"),
                    }
                }
            }
            edge = next;
        }
        println!("{} trees, {runs} runs", known.len());
        assert!(known.len() > 50);
    }
}

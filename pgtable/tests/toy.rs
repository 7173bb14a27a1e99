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
enum Op {
    Map {
        at: u64,
        pages: u64,
        memory: usize,
        small: bool,
        exclusive: bool,
    },
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
                    ops.push(Op::Map {
                        at,
                        pages,
                        memory,
                        small,
                        exclusive,
                    });
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

/// Runs a path. Returns what the tables hold at its end.
fn run(path: &[Op], features: Features) -> Result<Vec<u64>, String> {
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
    let geometry = Geometry::toy(2, 3, features);
    let root = judge.root(PAGE);
    let mut tree = Stage2::new(geometry, root, Vmid::new(3), &judge).expect("a root");
    for memory in MEMORY {
        own(&judge, memory, PAGES * PAGE, Owner::Vmid(3));
    }
    for pe in 0..2 {
        judge.pe.set(pe);
        judge.write(Reg::Vttbr, tree.vttbr());
        judge.event(EventKind::ISB);
    }
    let mut shadow: Shadow = [None; PAGES as usize];
    for (step, op) in path.iter().enumerate() {
        judge.pe.set(step as u8 % 2);
        let mut cpu = Cpu(&judge);
        let all = &mut Budget::unlimited();
        match *op {
            Op::Map {
                at,
                pages,
                memory,
                small,
                exclusive,
            } => {
                let to = MEMORY[memory] + at * PAGE;
                let map = Map::new(
                    Ipa::new(at * PAGE),
                    Pa::new(to),
                    pages * PAGE,
                    Attrs::MEMORY,
                )
                .leaves(if small {
                    Leaves::Exactly(Level::L3)
                } else {
                    Leaves::Largest
                })
                .over(Over::Anything);
                let done = if exclusive {
                    tree.map_exclusive(&mut cpu, &map, &mut Ignore, all)
                } else {
                    tree.map(&mut cpu, &map, all)
                };
                let next = done
                    .unwrap_or_else(|stopped: Stopped<Ipa>| stopped.next)
                    .get()
                    / PAGE;
                for page in at..next {
                    shadow[page as usize] = Some((MEMORY[memory] + page * PAGE, true));
                }
            }
            Op::Unmap {
                at,
                pages,
                exclusive,
            } => {
                let (from, size) = (Ipa::new(at * PAGE), pages * PAGE);
                let done = if exclusive {
                    tree.unmap(&mut cpu, &Unmap::new(from, size), &mut Ignore, all)
                } else {
                    tree.unmap_leaves(&mut cpu, &Unmap::new(from, size), &mut Ignore, all)
                };
                done.map_err(|stopped| stopped.to_string())?;
                shadow[at as usize..(at + pages) as usize].fill(None);
            }
            Op::Protect { at, pages } => {
                let readable = pgtable::Permissions {
                    access: pgtable::Access::Read,
                    execute: pgtable::Execute::All,
                };
                tree.protect(
                    &mut cpu,
                    Sweep::new(Ipa::new(at * PAGE), pages * PAGE).partial(Partial::Split),
                    readable,
                    all,
                )
                .map_err(|stopped| stopped.to_string())?;
                for page in shadow[at as usize..(at + pages) as usize]
                    .iter_mut()
                    .flatten()
                {
                    page.1 = false;
                }
            }
            Op::Split { at, pages } => {
                let take = |level| judge.alloc(level);
                tree.split(
                    &mut cpu,
                    &Split {
                        ipa: Ipa::new(at * PAGE),
                        size: pages * PAGE,
                        to: Level::L3,
                    },
                    take,
                    all,
                )
                .map_err(|stopped| stopped.to_string())?;
            }
            Op::Fold { at, level } => {
                let _ = tree.fold(&mut cpu, Ipa::new(at * PAGE), level);
            }
        }
        for (page, state) in shadow.iter().enumerate() {
            let to = state.map(|(pa, write)| Target {
                pa,
                perms: Some(if write { 15 } else { 13 }),
                memory: None,
            });
            judge.event(EventKind::Spec(Promise {
                ia: page as u64 * PAGE,
                len: PAGE,
                to,
            }));
        }
        judge.event(EventKind::Quiesce {
            lo: 0,
            hi: PAGES * PAGE,
        });
        if let Some(what) = judge.broken.borrow().as_ref() {
            return Err(format!("{what}\nafter {:#?}", &path[..=step]));
        }
    }
    // What the tables hold, in the order of a walk, addresses of tables left
    // out: they depend on the way.
    let mut held = Vec::new();
    let mut tables = vec![(root, 1i8)];
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
        if judge.count(table) != nonzero {
            return Err(format!(
                "{table} holds {nonzero}, counts {}: {path:#?}",
                judge.count(table)
            ));
        }
    }
    Ok(held)
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

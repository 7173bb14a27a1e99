//! RTT commands that clean more than a call may: they go on with each call,
//! and what others find meanwhile is what the command says it is.

mod plain;

use pgtable::{
    Attrs, Budget, CacheOp, Error, Granule, Ignore, Ipa, Level, Pa, RemovedLeaf, Rtt, RttError,
    RttState, Stage2Config, TableMem, TlbiKind, Vmid,
};
use plain::{Cpu, Did, Plain};

const PAGE: u64 = 64 << 10;
/// A block of level 2 with 64K pages.
const BLOCK: u64 = 512 << 20;
/// What a call cleans whatever its budget.
const STEP: u64 = 2 << 20;
const MEMORY: u64 = 64 << 30;

/// Tables of 64K pages without FWB, all of it the host's.
fn tables(mem: &Plain, ipa_bits: u8) -> (Rtt<&Plain>, Cpu<'_>) {
    let geometry = Stage2Config::new(Granule::K64, ipa_bits, 48)
        .validate()
        .expect("legal");
    let root = mem.root(geometry.root_align());
    let rtt = Rtt::new(geometry, root, Vmid::new(3), mem, Ipa::new(0)).expect("a root");
    let cpu = mem.cpu(rtt.regs());
    mem.forget();
    (rtt, cpu)
}

fn least() -> Budget {
    Budget::entries(0)
}

fn map_step(rtt: &mut Rtt<&Plain>, cpu: &mut Cpu<'_>, ipa: u64, pa: u64) -> Result<Ipa, RttError> {
    let (ipa, pa) = (Ipa::new(ipa), Pa::new(pa));
    rtt.map_unprotected(cpu, ipa, Level::L2, pa, Attrs::MEMORY, 1, &mut least())
}

fn map(rtt: &mut Rtt<&Plain>, cpu: &mut Cpu<'_>, ipa: u64, pa: u64) {
    let all = &mut Budget::unlimited();
    let (ipa, pa) = (Ipa::new(ipa), Pa::new(pa));
    rtt.map_unprotected(cpu, ipa, Level::L2, pa, Attrs::MEMORY, 1, all)
        .expect("mapped");
}

fn state(rtt: &Rtt<&Plain>, ipa: u64) -> (Level, RttState) {
    let entry = rtt.find(Ipa::new(ipa)).expect("inside");
    (entry.level, entry.state)
}

fn mapped_to(rtt: &Rtt<&Plain>, ipa: u64) -> Option<u64> {
    match state(rtt, ipa).1 {
        RttState::AssignedNs { pa, .. } => Some(pa.get()),
        RttState::UnassignedNs => None,
        other => panic!("{other:?}"),
    }
}

/// What was cleaned since, and how many TLBIs were done.
fn done(mem: &Plain) -> (Vec<(u64, u64)>, usize) {
    let mut cleaned = Vec::new();
    let mut tlbis = 0;
    for did in mem.changes() {
        match did {
            Did::Cache(CacheOp::CleanInvalidateData { pa, size }) => {
                cleaned.push((pa.get(), size));
            }
            Did::Tlbi(op) if op.kind() != TlbiKind::Vmalle1is => tlbis += 1,
            _ => (),
        }
    }
    (cleaned, tlbis)
}

/// `[pa, pa + BLOCK)` in steps.
fn steps(pa: u64) -> Vec<(u64, u64)> {
    (pa..pa + BLOCK)
        .step_by(STEP as usize)
        .map(|at| (at, STEP))
        .collect()
}

/// Calls until the command says something else than "again".
fn to_end<T>(mut command: impl FnMut() -> Result<T, RttError>) -> (u64, Result<T, RttError>) {
    for calls in 1..10_000 {
        match command() {
            Err(RttError::Again) => (),
            other => return (calls, other),
        }
    }
    panic!("no end");
}

#[test]
fn a_block_is_mapped_in_steps() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 42);
    // What is begun for one address and not gone on with is nothing.
    for _ in 0..3 {
        let answer = map_step(&mut rtt, &mut cpu, BLOCK, MEMORY + 7 * BLOCK);
        assert_eq!(answer, Err(RttError::Again));
        assert_eq!(mapped_to(&rtt, BLOCK), None);
        assert_eq!(rtt.translate(Ipa::new(BLOCK)), None);
    }
    assert_eq!(mem.count(rtt.root()), 0);
    let at = Ipa::new(BLOCK);
    let nothing = RttError::Rtt {
        level: Level::L2,
        top: Ipa::new(1 << 42),
    };
    let unmapped = rtt.unmap_unprotected(&mut cpu, at, Level::L2, &mut least());
    assert_eq!(unmapped, Err(nothing));
    mem.forget();
    let (calls, answer) = to_end(|| map_step(&mut rtt, &mut cpu, BLOCK, MEMORY));
    assert_eq!((calls, answer), (BLOCK / STEP, Ok(Ipa::new(2 * BLOCK))));
    assert_eq!(done(&mem), (steps(MEMORY), 0));
    assert_eq!(mapped_to(&rtt, BLOCK), Some(MEMORY));
}

/// Of several blocks only those are begun that a call may end.
#[test]
fn of_several_blocks_one_is_mapped_in_steps() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 42);
    let (at, pa) = (Ipa::new(0), Pa::new(MEMORY));
    let (calls, answer) = to_end(|| {
        // Units for all three entries, and bytes for a part of one.
        let budget = &mut Budget::entries(3);
        rtt.map_unprotected(&mut cpu, at, Level::L2, pa, Attrs::MEMORY, 3, budget)
    });
    assert_eq!((calls, answer), (BLOCK / STEP, Ok(Ipa::new(BLOCK))));
    assert_eq!(done(&mem), (steps(MEMORY), 0));
    assert_eq!(mapped_to(&rtt, 0), Some(MEMORY));
    assert_eq!(mapped_to(&rtt, BLOCK), None);
}

#[test]
fn a_table_comes_over_a_block_that_nobody_went_on_to_map() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 42);
    let answer = map_step(&mut rtt, &mut cpu, 0, MEMORY);
    assert_eq!(answer, Err(RttError::Again));
    rtt.create(&mut cpu, Ipa::new(0), Level::L3, mem.page())
        .expect("nothing is mapped");
    assert_eq!(state(&rtt, PAGE), (Level::L3, RttState::UnassignedNs));
}

#[test]
fn a_block_is_unmapped_in_steps() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 42);
    map(&mut rtt, &mut cpu, 0, MEMORY);
    map(&mut rtt, &mut cpu, 2 * BLOCK, MEMORY + BLOCK);
    mem.forget();
    let at = Ipa::new(0);
    let mut calls = 0;
    let removed = loop {
        calls += 1;
        match rtt.unmap_unprotected(&mut cpu, at, Level::L2, &mut least()) {
            Err(RttError::Again) => (),
            answer => break answer.expect("mapped"),
        }
        // No translation any more, but not yet the host's again.
        assert_eq!(rtt.translate(at), None);
        assert_eq!(mapped_to(&rtt, 0), Some(MEMORY));
        let busy = RttError::Rtt {
            level: Level::L2,
            top: at,
        };
        let over = map_step(&mut rtt, &mut cpu, 0, MEMORY + 2 * BLOCK);
        assert_eq!(over, Err(busy));
        let table = rtt.create(&mut cpu, at, Level::L3, mem.page());
        assert_eq!(table, Err(busy));
        let table = rtt.destroy(&mut cpu, at, Level::L3, &mut Ignore, &mut least());
        assert_eq!(table.map(|_| ()), Err(busy));
    };
    assert_eq!(calls, BLOCK / STEP);
    assert_eq!(removed.pa, Pa::new(MEMORY));
    assert_eq!(removed.top, Ipa::new(2 * BLOCK));
    assert_eq!(done(&mem), (steps(MEMORY), 1));
    assert_eq!(mapped_to(&rtt, 0), None);
}

/// With blocks of every state in it: mapped, half unmapped, half mapped.
#[test]
fn a_table_is_destroyed_in_steps() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 47);
    let base = Ipa::new(1 << 42);
    let block = |index: u64| base.get() + index * BLOCK;
    rtt.create(&mut cpu, base, Level::L2, mem.page())
        .expect("a table");
    map(&mut rtt, &mut cpu, block(0), MEMORY);
    map(&mut rtt, &mut cpu, block(5), MEMORY + BLOCK);
    let coming = map_step(&mut rtt, &mut cpu, block(6), MEMORY + 9 * BLOCK);
    assert_eq!(coming, Err(RttError::Again));
    map(&mut rtt, &mut cpu, block(7), MEMORY + 2 * BLOCK);
    let going = rtt.unmap_unprotected(&mut cpu, Ipa::new(block(5)), Level::L2, &mut least());
    assert_eq!(going, Err(RttError::Again));
    mem.forget();
    let mut told = Vec::new();
    let mut calls = 0;
    let removed = loop {
        let mut sink = |leaf: RemovedLeaf| told.push((leaf.ia(), leaf.pa().get(), leaf.size()));
        calls += 1;
        match rtt.destroy(&mut cpu, base, Level::L2, &mut sink, &mut least()) {
            Err(RttError::Again) => (),
            answer => break answer.expect("no life in it"),
        }
        let (level, entry) = state(&rtt, block(0));
        assert!(level == Level::L1 && matches!(entry, RttState::Table(_)));
        assert_eq!(mem.count(rtt.root()), 1);
        let gone = |ipa| {
            let (level, top) = (Level::L1, Ipa::new(ipa));
            Err(RttError::Rtt { level, top })
        };
        let over = map_step(&mut rtt, &mut cpu, block(3), MEMORY).map(|_| ());
        assert_eq!(over, gone(block(3)));
        let folded = rtt.fold(&mut cpu, base, Level::L2).map(|_| ());
        assert_eq!(folded, gone(base.get()));
        let made = rtt.create(&mut cpu, base, Level::L2, mem.page());
        assert_eq!(made, gone(base.get()));
        // Nor is it a table of another level.
        let below = rtt.destroy(&mut cpu, base, Level::L3, &mut Ignore, &mut least());
        assert_eq!(below.map(|_| ()), gone(base.get()));
    };
    assert_eq!(removed.top, Ipa::new(1 << 47));
    let want = [(0, 0), (5, 1), (7, 2)].map(|(at, to)| (block(at), MEMORY + to * BLOCK, BLOCK));
    assert_eq!(told, want);
    let (cleaned, tlbis) = done(&mem);
    let mut whole = steps(MEMORY);
    whole.extend(&steps(MEMORY + BLOCK)[1..]);
    whole.extend(steps(MEMORY + 2 * BLOCK));
    assert_eq!(cleaned, whole);
    // A step was done before, and the block that was coming takes a call.
    assert_eq!(calls, 3 * BLOCK / STEP);
    // All its blocks, by one operation each without ranges; once.
    assert_eq!(tlbis, 8192);
    assert_eq!(mem.count(rtt.root()), 0);
    assert_eq!(state(&rtt, block(0)), (Level::L1, RttState::UnassignedNs));
}

#[test]
fn a_realm_ends_in_steps() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 42);
    map(&mut rtt, &mut cpu, 0, MEMORY);
    map(&mut rtt, &mut cpu, 3 * BLOCK, MEMORY + BLOCK);
    let coming = map_step(&mut rtt, &mut cpu, BLOCK, MEMORY + 9 * BLOCK);
    assert_eq!(coming, Err(RttError::Again));
    mem.forget();
    let mut told = Vec::new();
    let mut at = Ipa::new(0);
    let mut calls = 0;
    let mut places = vec![at.get()];
    while at.get() < 1 << 42 {
        let mut sink = |leaf: RemovedLeaf| told.push((leaf.ia(), leaf.pa().get(), leaf.size()));
        let next = rtt.retire(&mut cpu, &mut sink, &mut least());
        let next = next.expect("no life in it");
        assert!(next >= at, "{next:?} after {at:?}");
        at = next;
        places.push(at.get());
        calls += 1;
        assert!(calls < 20_000);
    }
    // Each entry of the root takes a call, to be cut and to be released.
    places.dedup();
    let every: Vec<u64> = (0..=8192).map(|block| block * BLOCK).collect();
    assert_eq!(places, every);
    assert_eq!(
        told,
        [(0, MEMORY, BLOCK), (3 * BLOCK, MEMORY + BLOCK, BLOCK)]
    );
    let mut whole = steps(MEMORY);
    whole.extend(steps(MEMORY + BLOCK));
    assert_eq!(done(&mem).0, whole);
    let unmapped = (0..8192).all(|block| mapped_to(&rtt, block * BLOCK).is_none());
    assert!(unmapped);
}

/// Life is not retired, in steps or at once.
#[test]
fn a_live_realm_does_not_begin_to_end() {
    let mem = Plain::new(PAGE);
    let (mut rtt, mut cpu) = tables(&mem, 42);
    rtt.create(&mut cpu, Ipa::new(0), Level::L3, mem.page())
        .expect("a table");
    mem.forget();
    let used = Err(Error::InUse { level: Level::L2 });
    assert_eq!(rtt.retire(&mut cpu, &mut Ignore, &mut least()), used);
    assert!(mem.changes().is_empty());
}

//! Several CPUs call at once: nobody can say what each is answered, but what stands when
//! they pause must fit together. Locks are taken in order meanwhile, or the CPU dies
//! (`hyp::memory::order`).

use std::collections::BTreeMap;

use arm64::recording;
use arm64::regs::ESR_EL2;
use hyp::memory::granule::{Spans, State};
use hyp::memory::phys;
use hyp::realm::Realm;
use hyp::rec::Rec;
use hyp::rmi::fake::{Host, Peer, RAM};
use hyp::system::System;
use pgtable::Granule;

use crate::host::Random;

const CPUS: usize = 3;
/// Granules that all of them use, behind those that are each CPU's own.
const PAGES: u64 = 64;
/// Begins of each CPU's own pages: parameters, and what it runs vCPUs by.
const OWN: u64 = 80;
const SPACE: u64 = 1 << 32;
const SHARED: u64 = SPACE / 2;
/// A span that is mapped as a block too, and the entry that does, in either half.
const BLOCK: u64 = RAM + SPAN;
const BLOCK_AT: u64 = 2 * SPAN;
const SPAN: u64 = 2 << 20;

/// Calls that are made, some more often.
const CALLS: [u64; 31] = [
    0xC400_0151,
    0xC400_0151,
    0xC400_0151,
    0xC400_0151,
    0xC400_0152,
    0xC400_0153,
    0xC400_0154,
    0xC400_0154,
    0xC400_0155,
    0xC400_0157,
    0xC400_0158,
    0xC400_0159,
    0xC400_015A,
    0xC400_015B,
    0xC400_015C,
    0xC400_015D,
    0xC400_015D,
    0xC400_015D,
    0xC400_015E,
    0xC400_015F,
    0xC400_015F,
    0xC400_0162,
    0xC400_0164,
    0xC400_0166,
    0xC400_0168,
    0xC400_0169,
    0xC600_0014,
    0xC600_0015,
    0xC600_0016,
    0xC600_0017,
    0xC600_0018,
];

/// Runs rounds of so many calls of each CPU.
///
/// # Errors
/// What does not fit together, after which round.
pub fn run(seed: u64, rounds: u64, calls: u64) -> Result<u64, String> {
    recording::reset();
    let mut host = Host::new(Granule::K4, 4 << 20);
    host.cpu.begin_host(0, 0);
    for round in 0..rounds {
        let died = std::thread::scope(|scope| {
            let all: Vec<_> = (1..=CPUS)
                .map(|index| {
                    // SAFETY: the thread ends before this function does.
                    let cpu = unsafe { host.another(index) };
                    let system = host.system;
                    let seed = seed << 20 | round << 4 | index as u64;
                    scope.spawn(move || {
                        let mut cpu = cpu.begin();
                        let mut random = Random::new(seed);
                        for _ in 0..calls {
                            step(&mut cpu, system, &mut random, index as u64);
                        }
                    })
                })
                .collect();
            let ended = all.into_iter().map(|thread| thread.join());
            ended.filter_map(Result::err).map(said).collect::<Vec<_>>()
        });
        if let Some(what) = died.first() {
            return Err(format!("seed {seed}, round {round}: a CPU died: {what}"));
        }
        audit(&mut host).map_err(|what| format!("seed {seed}, round {round}: {what}"))?;
    }
    Ok(rounds * calls * CPUS as u64)
}

fn said(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.unwrap_or_else(|| "of no words".into())
}

fn page(n: u64) -> u64 {
    RAM + n * 4096
}

/// A granule that is in this state, or was a moment ago.
fn pick(system: &System, random: &mut Random, state: State) -> u64 {
    let from = random.below(PAGES);
    let all = (0..PAGES).map(|n| page((from + n) % PAGES));
    let is = |pa: &u64| {
        let granule = system.granules.get(*pa);
        granule.is_some_and(|granule| granule.state() == state)
    };
    all.into_iter().find(is).unwrap_or(page(from))
}

/// A call about the block, its pages, or the table that takes its place.
fn of_block(system: &System, random: &mut Random) -> [u64; 6] {
    let [rd, free] = [State::Rd, State::Delegated].map(|state| pick(system, random, state));
    let at = BLOCK_AT | (random.below(2) * SHARED);
    let page = BLOCK + random.below(512) * 4096;
    let (level, end) = (2 + random.below(2), BLOCK_AT + SPAN);
    match random.below(16) {
        0..4 => [
            0xC400_015F,
            rd,
            SHARED | BLOCK_AT,
            2,
            BLOCK | 6 << 2 | 3 << 6,
            0,
        ],
        4 => [0xC400_0162, rd, SHARED | BLOCK_AT, 2, 0, 0],
        5 => [
            0xC400_015F,
            rd,
            SHARED | BLOCK_AT | (page - BLOCK),
            3,
            page | 6 << 2 | 3 << 6,
            0,
        ],
        6 => [0xC400_0162, rd, SHARED | BLOCK_AT | (page - BLOCK), 3, 0, 0],
        7 => [0xC400_015D, rd, free, at, 3, 0],
        8 => [0xC400_0166, rd, at, 3, 0, 0],
        9 => [0xC400_015E, rd, at, level, 0, 0],
        10 => [0xC400_0151, page, 0, 0, 0, 0],
        11 => [0xC600_0015, BLOCK, BLOCK + SPAN, 0, 0, 0],
        12 => [0xC600_0014, BLOCK, BLOCK + SPAN, 0, 0, 0],
        13 => [0xC600_0016, rd, BLOCK_AT, end, BLOCK, 0],
        14 => [0xC600_0017, rd, BLOCK_AT, end, BLOCK, 0],
        _ => [0xC600_0018, rd, BLOCK_AT, end, 0, 0],
    }
}

fn step(cpu: &mut Peer, system: &System, random: &mut Random, index: u64) {
    if random.percent(15) {
        let call = of_block(system, random);
        while cpu.turn(call).is_none() {}
        return;
    }
    let function = CALLS[random.below(CALLS.len() as u64) as usize];
    let states = [State::Rd, State::Rec, State::Delegated, State::Ns];
    let [rd, rec, free, hosts] = states.map(|state| pick(system, random, state));
    let [other, root] = [State::Rec, State::Delegated].map(|state| pick(system, random, state));
    let level = 2 + random.below(2);
    let table = (random.below(2) * SHARED) | random.below(2) << 21;
    let ipa = table | random.below(3) << 12;
    let (own, up) = (page(OWN + 2 * index), 1 + random.below(4));
    let at = if level == 2 {
        table & !0x3fff_ffff
    } else {
        table
    };
    let x = match function {
        0xC400_0151 => [hosts, 0, 0, 0, 0],
        0xC400_0152 => [free, 0, 0, 0, 0],
        0xC400_0154 => [rd, free, ipa, 0, 0],
        // A realm is new for some time: what is donated to it is.
        0xC400_0157 if random.percent(50) => [own, 0, 0, 0, 0],
        0xC400_0158 => {
            realm_params(own, root, 1 + random.below(3), random);
            [free, own, 0, 0, 0]
        }
        0xC400_015A => {
            let params = [(0, 1), (0x100, random.below(3)), (0x200, 0x4000_0000)];
            write(own, &params);
            [rd, free, own, 0, 0]
        }
        0xC400_015B => [rec, 0, 0, 0, 0],
        0xC400_015C => {
            write(own + 4096, &[(0, random.below(2) << 4)]);
            run_as(random, ipa & (SHARED - 1), up);
            [rec, own + 4096, 0, 0, 0]
        }
        0xC400_015D => [rd, free, at, level, 0],
        0xC400_015E | 0xC400_0166 => [rd, at, level, 0, 0],
        0xC400_015F => [rd, ipa, 3, hosts | 6 << 2 | 3 << 6, 0],
        0xC400_0162 => [rd, ipa, 3, 0, 0],
        0xC400_0164 => [rec, other, 0, 0, 0],
        0xC400_0168 => [rd, ipa, ipa + (up << 12), 0, 0],
        0xC400_0169 => {
            let own = ipa & (SHARED - 1);
            [rd, rec, own, own + (up << 12), 0]
        }
        0xC400_0153 => [rd, free, ipa, hosts, random.below(2)],
        0xC600_0014 => [hosts, hosts + (up << 12), 0, 0, 0],
        0xC600_0015 => [free, free + (up << 12), 0, 0, 0],
        0xC600_0016 => [rd, ipa, ipa + (up << 12), free, 0],
        0xC600_0017 => [rd, ipa, ipa + (up << 12), hosts, 0],
        0xC600_0018 => [rd, ipa, ipa + (up << 12), 0, 0],
        _ => [rd, ipa, 0, 0, 0],
    };
    let [a, b, c, d, e] = x;
    while cpu.turn([function, a, b, c, d, e]).is_none() {}
}

/// A guest that asks for something of its memory by RSI, of realms alone, and waits.
fn run_as(random: &mut Random, ipa: u64, up: u64) {
    let call = match random.below(6) {
        0..3 => [0xC400_0197, ipa, ipa + (up << 12), random.below(2), 1],
        3 => [0xC400_0198, ipa, ipa + (up << 12), 0, 0],
        4 => [0xC400_0196, ipa, 0, 0, 0],
        _ => [0xC400_0199, ipa, 0, 0, 0],
    };
    let mut calls = std::iter::once(call);
    recording::run_as(Box::new(move |gprs| {
        let class = match calls.next() {
            Some(call) => {
                gprs.x[..5].copy_from_slice(&call);
                0x17
            }
            None => 0x01,
        };
        recording::set(ESR_EL2, class << 26 | 1 << 25);
        0
    }));
}

/// Parameters in a page of the CPU's own, which nobody gives away.
fn write(pa: u64, words: &[(u64, u64)]) {
    for at in (0..0x900).step_by(8) {
        // SAFETY: this CPU's own page.
        unsafe { phys::write(pa + at, 0u64) };
    }
    for (offset, word) in words {
        // SAFETY: as above.
        unsafe { phys::write(pa + offset, *word) };
    }
}

fn realm_params(pa: u64, root: u64, vmid: u64, random: &mut Random) {
    let mode = match random.below(10) {
        0..3 => 1 << 62,
        3..5 => 1 << 61,
        _ => 0,
    };
    write(
        pa,
        &[
            (0, 1 << 63 | mode),
            (0x18, 1),
            (0x20, 1),
            (8, 32),
            (0x800, vmid),
            (0x808, root),
            (0x810, 1),
            (0x818, 1),
        ],
    );
}

/// What of a realm's tables is found: granules with how they are used.
#[derive(Default)]
struct Found {
    data: BTreeMap<u64, u32>,
    tables: BTreeMap<u64, u32>,
    /// By table, what keeps it.
    kept: BTreeMap<u64, u32>,
    shared: BTreeMap<u64, u32>,
    /// Blocks of the host's.
    blocks: u32,
}

/// States, counts, content, tables and the host's reach fit together.
fn audit(host: &mut Host) -> Result<(), String> {
    let granules = &host.system.granules;
    let of = |state| {
        let mut all = Vec::new();
        granules.each(Spans::All, &[state], |pa| all.push(pa));
        all
    };
    let (rds, recs) = (of(State::Rd), of(State::Rec));
    let mut found = Found::default();
    for rd in &rds {
        // SAFETY: no call is made meanwhile.
        let roots = unsafe { Realm::at(*rd) }.roots;
        *found.tables.entry(roots.base).or_default() += 1;
        table(host, *rd, (1, 0), roots.base, &mut found);
    }
    let mut vcpus = BTreeMap::<u64, u32>::new();
    for rec in recs {
        // SAFETY: no call is made meanwhile.
        *vcpus.entry(unsafe { Rec::at(rec) }.rd).or_default() += 1;
    }
    for (n, reached) in (0..).zip(host.mapped()) {
        let (pa, granule) = (page(n), host.granule(n));
        let (state, count) = (granule.state(), granule.count());
        let times = |map: &BTreeMap<u64, u32>| map.get(&pa).copied().unwrap_or(0);
        let (owned, used) = match state {
            State::Ns => (
                times(&found.data) + times(&found.tables) == 0,
                times(&found.shared),
            ),
            State::Delegated => (host.is_zero(n), 0),
            State::Rd => (true, times(&vcpus)),
            State::Rec => (vcpus.contains_key(&rd_of(pa)), 0),
            State::Data => (times(&found.data) == 1, 0),
            State::Rtt => (times(&found.tables) == 1, times(&found.kept)),
            State::RecAux | State::Hyp | State::Unscrubbed => (false, 0),
        };
        if !owned || count != used || reached != (state == State::Ns) {
            return Err(format!(
                "{pa:#x} is {state:?}, counts {count} for {used}, has a place: {owned}, \
                 the host reaches it: {reached}"
            ));
        }
    }
    span(host, found.blocks)
}

/// The span's word counts what there is: when all of it is let go, nothing is left.
fn span(host: &Host, blocks: u32) -> Result<(), String> {
    let granules = &host.system.granules;
    let foreign = (BLOCK..BLOCK + SPAN)
        .step_by(4096)
        .filter(|pa| {
            granules
                .get(*pa)
                .is_some_and(|page| page.state() != State::Ns)
        })
        .count() as u64;
    (0..blocks).for_each(|_| granules.put_block(BLOCK));
    granules.return_to_host(BLOCK, foreign);
    let free = granules.get_block(BLOCK);
    if free {
        granules.put_block(BLOCK);
    }
    let unmapped = granules.leave_host(BLOCK, foreign);
    let lent = (0..blocks).all(|_| granules.get_block(BLOCK));
    if free && unmapped && lent {
        Ok(())
    } else {
        Err(format!(
            "{blocks} blocks, {foreign} that left: {free} {unmapped} {lent}"
        ))
    }
}

fn rd_of(rec: u64) -> u64 {
    // SAFETY: a REC, and no call is made meanwhile.
    unsafe { Rec::at(rec) }.rd
}

/// Looks at a table and at those below it.
fn table(host: &mut Host, rd: u64, at: (u64, u64), pa: u64, found: &mut Found) {
    let (level, base) = at;
    let span = 1 << (12 + 9 * (3 - level));
    let end = if level == 1 { SPACE } else { base + 512 * span };
    for ipa in (base..end).step_by(span as usize) {
        let [_, is, state, desc, _] = host.call([0xC400_0161, rd, ipa, level, 0, 0]);
        assert_eq!(is, level, "a walk reaches the tables that it has reached");
        let to = desc & !0xfff;
        let mut keeps = || *found.kept.entry(pa).or_default() += 1;
        match state {
            1 if ipa >= SHARED && level == 2 => found.blocks += 1,
            // SAFETY: no call is made meanwhile.
            1 if ipa >= unsafe { Realm::at(rd) }.shared_from => {
                *found.shared.entry(to).or_default() += 1;
            }
            1 => {
                keeps();
                for page in (to..to + span).step_by(4096) {
                    *found.data.entry(page).or_default() += 1;
                }
            }
            2 => {
                keeps();
                *found.tables.entry(to).or_default() += 1;
                table(host, rd, (level + 1, ipa), to, found);
            }
            _ => {}
        }
    }
}

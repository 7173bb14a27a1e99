//! What must hold of EL2's state while no PE is in EL2.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;

use super::ram::Ram;
use super::state::{Kind, Realm, State};
use super::tree::{Tree, What};

/// A word of RAM that a guest keeps to itself, again and again.
pub const LENGTH: usize = 8;
/// An entry of a realm's tables that is of the half it shares (bit 55).
const UNPROTECTED: u64 = 1 << 55;
/// An invalid entry that a granule of a realm's stands behind (bit 2).
const ASSIGNED: u64 = 1 << 2;

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The host's stage 2 maps a granule that is not the host's.
    Reached(Kind),
    /// It maps memory of EL2's.
    ReachedOwn,
    /// It maps an address to another.
    NotIdentity,
    /// It does not map a granule that is the host's.
    Lost,
    /// A realm has for its own what is no DATA.
    NotData(Option<Kind>),
    /// A realm has for a table what is no RTT.
    NotRtt(Option<Kind>),
    /// A realm shares what is not the host's.
    NotShared(Option<Kind>),
    /// So many places of realms have it, and one may.
    Places(u64),
    /// A realm's memory or table that is no realm's.
    Nobodys(Kind),
    /// A vCPU of no realm, or one that its realm does not list.
    NotListed,
    /// Its count is the first, and the second was found.
    Count(Kind, u64, u64),
    /// So many blocks are counted for its span, and so many were found.
    Blocks(u64, u64),
    /// So many granules of its span are counted as not the host's, and so many are.
    Foreign(u64, u64),
    /// It is DELEGATED, and not zero.
    NotZero,
    /// It holds a guest's secret, and the host reaches it.
    Secret,
    /// A number that no state has.
    NoState,
    /// Its lock is held, by nobody.
    Locked,
    /// A VMID that is taken by none, or by two.
    Vmid(u16),
}

/// A fault, and the physical address that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The address.
    pub pa: u64,
    /// The fault.
    pub fault: Fault,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}: {:?}", self.pa, self.fault)
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What does not hold.
    pub findings: Vec<Finding>,
    /// Granules of each kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// Realms.
    pub realms: u64,
    /// Places where realms map the host's memory.
    pub shared: u64,
    /// Granules that hold the secret.
    pub secrets: u64,
}

impl Report {
    fn find(&mut self, pa: u64, fault: Fault) {
        self.findings.push(Finding { pa, fault });
    }

    /// Granules of a kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.kinds.get(&kind).copied().unwrap_or(0)
    }

    /// Whether no realm is there, nor anything that was given for one.
    pub fn is_at_rest(&self) -> bool {
        let others = self.kinds.keys();
        self.realms == 0
            && others
                .into_iter()
                .all(|kind| [Kind::Ns, Kind::Hyp].contains(kind))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} realms, {} shared", self.realms, self.shared)?;
        for (kind, count) in &self.kinds {
            write!(f, ", {count} {kind:?}")?;
        }
        write!(f, ", {} with the secret", self.secrets)
    }
}

/// What realms have of the machine's memory.
#[derive(Debug, Default)]
struct Held {
    /// Places of each granule that realms have for their own, tables too.
    own: BTreeMap<u64, u64>,
    /// Places of each granule of the host's, by pages.
    shared: BTreeMap<u64, u64>,
    /// Blocks of each span of the host's.
    blocks: BTreeMap<u64, u64>,
    /// Live entries of each table.
    live: BTreeMap<u64, u64>,
}

/// Looks at all of it. `secret`: what stands in a granule of a guest's, [`LENGTH`]
/// times, and nowhere where the host can reach it.
///
/// # Errors
/// When a tree cannot be read.
pub fn judge(ram: &Ram, state: &State, secret: u64) -> Result<Report> {
    let mut report = Report {
        realms: state.realms.len() as u64,
        ..Report::default()
    };
    let mut held = Held::default();
    for realm in &state.realms {
        walk(ram, state, realm, &mut held, &mut report)?;
    }
    let reached = host(ram, state, &mut report)?;
    granules(ram, state, &held, &mut report)?;
    lists(state, &mut report);
    spans(state, &held, &mut report);
    secrets(ram, state, (secret, &reached), &mut report)?;
    let lost = state
        .all(Kind::Ns)
        .into_iter()
        .filter(|pa| !is_in(&reached, *pa));
    lost.for_each(|pa| report.find(pa, Fault::Lost));
    report.findings.sort_unstable();
    report.findings.dedup();
    Ok(report)
}

/// Everything that a realm's tables lead to.
fn walk(
    ram: &Ram,
    state: &State,
    realm: &Realm,
    held: &mut Held,
    report: &mut Report,
) -> Result<()> {
    let kind = |pa| state.word(pa).and_then(|(_, word)| word.kind());
    let tree = Tree::new(realm.stage2, state.pa_bits)?;
    let mut table = |held: &mut Held, pa: u64| {
        *held.own.entry(pa).or_default() += 1;
        if kind(pa) != Some(Kind::Rtt) {
            report.find(pa, Fault::NotRtt(kind(pa)));
        }
    };
    let (root, count) = tree.roots();
    for n in 0..count {
        table(held, root + n * state.granule());
    }
    let mut wrong = Vec::new();
    tree.each(ram, &mut |entry| {
        let unprotected = entry.word & UNPROTECTED != 0;
        let (own, pa) = match entry.what {
            What::Table(next) => {
                table(held, next);
                *held.live.entry(entry.table).or_default() += 1;
                return Ok(());
            }
            What::Leaf(pa) if unprotected => (false, pa),
            What::Leaf(pa) => (true, pa),
            What::Invalid if entry.word & ASSIGNED != 0 && !unprotected => {
                (true, tree.address(entry.word).unwrap_or(u64::MAX))
            }
            What::Invalid => return Ok(()),
        };
        let granules = (pa..pa + (1 << entry.shift)).step_by(1 << state.shift);
        if own {
            *held.live.entry(entry.table).or_default() += 1;
        }
        // What the tables call the realm's own is in the half that is.
        if own != (entry.ia < realm.shared_from) {
            wrong.push((pa, Fault::NotShared(kind(pa))));
        }
        let block = u32::from(entry.shift) == state.span_shift();
        if !own && block {
            *held.blocks.entry(pa >> entry.shift).or_default() += 1;
        }
        for pa in granules {
            let (is, fault) = if own {
                (Kind::Data, Fault::NotData(kind(pa)))
            } else {
                (Kind::Ns, Fault::NotShared(kind(pa)))
            };
            if kind(pa) != Some(is) {
                wrong.push((pa, fault));
            }
            if own {
                *held.own.entry(pa).or_default() += 1;
            } else if !block {
                *held.shared.entry(pa).or_default() += 1;
            }
        }
        Ok(())
    })?;
    wrong
        .into_iter()
        .for_each(|(pa, fault)| report.find(pa, fault));
    if let Some(page) = realm.posted {
        *held.shared.entry(page).or_default() += 1;
    }
    Ok(())
}

/// The host's stage 2: the addresses that it reaches, from and to.
fn host(ram: &Ram, state: &State, report: &mut Report) -> Result<Vec<(u64, u64)>> {
    let tree = Tree::new(state.host, state.pa_bits)?;
    let mut reached = Vec::new();
    tree.each(ram, &mut |entry| {
        let What::Leaf(pa) = entry.what else {
            return Ok(());
        };
        let end = pa + (1 << entry.shift);
        if pa != entry.ia {
            report.find(pa, Fault::NotIdentity);
        }
        reached.push((pa, end));
        for granule in (pa..end).step_by(1 << state.shift) {
            match state.word(granule).map(|(_, word)| word.kind()) {
                None | Some(Some(Kind::Ns) | None) => {}
                Some(Some(kind)) => report.find(granule, Fault::Reached(kind)),
            }
        }
        for &(from, to) in &state.own {
            if pa < to && from < end {
                report.find(pa.max(from), Fault::ReachedOwn);
            }
        }
        Ok(())
    })?;
    reached.sort_unstable();
    Ok(reached)
}

fn is_in(ranges: &[(u64, u64)], pa: u64) -> bool {
    let after = ranges.partition_point(|(from, _)| *from <= pa);
    after > 0 && pa < ranges[after - 1].1
}

/// Each granule against what realms have of it.
fn granules(ram: &Ram, state: &State, held: &Held, report: &mut Report) -> Result<()> {
    let recs = |rd: u64| state.recs.iter().filter(|(_, of)| *of == rd).count() as u64;
    for (pa, word) in state.granules() {
        let Some(kind) = word.kind() else {
            report.find(pa, Fault::NoState);
            continue;
        };
        *report.kinds.entry(kind).or_default() += 1;
        if word.is_locked() {
            report.find(pa, Fault::Locked);
        }
        let places = held.own.get(&pa).copied().unwrap_or(0);
        match (kind, places) {
            (Kind::Data | Kind::Rtt, 0) => report.find(pa, Fault::Nobodys(kind)),
            (_, 0 | 1) => {}
            _ => report.find(pa, Fault::Places(places)),
        }
        let found = match kind {
            Kind::Ns => held.shared.get(&pa).copied(),
            Kind::Rtt => held.live.get(&pa).copied(),
            Kind::Rd => Some(recs(pa)),
            _ => None,
        };
        let found = found.unwrap_or(0);
        if kind == Kind::Ns {
            report.shared += found;
        }
        if kind != Kind::Hyp && word.count() != found {
            report.find(pa, Fault::Count(kind, word.count(), found));
        }
        if kind == Kind::Delegated && ram.has(pa, pa + state.granule()) {
            let words = ram.words(pa, state.granule() / 8)?;
            if words.iter().any(|word| *word != 0) {
                report.find(pa, Fault::NotZero);
            }
        }
    }
    Ok(())
}

/// vCPUs and VMIDs.
fn lists(state: &State, report: &mut Report) {
    let listed = |rec, rd| {
        let mut realms = state.realms.iter();
        realms.any(|realm| realm.rd == rd && realm.recs.contains(&rec))
    };
    for &(rec, rd) in &state.recs {
        if !listed(rec, rd) {
            report.find(rec, Fault::NotListed);
        }
    }
    for realm in &state.realms {
        let theirs = |rec: &&u64| state.recs.contains(&(**rec, realm.rd));
        if realm.recs.iter().filter(theirs).count() != realm.recs.len() {
            report.find(realm.rd, Fault::NotListed);
        }
        let same = state.realms.iter().filter(|other| other.vmid == realm.vmid);
        if same.count() != 1 || !state.vmids.contains(&realm.vmid) || realm.vmid == 0 {
            report.find(realm.rd, Fault::Vmid(realm.vmid));
        }
    }
    for vmid in state.vmids.iter().filter(|vmid| **vmid != 0) {
        if !state.realms.iter().any(|realm| realm.vmid == *vmid) {
            report.find(0, Fault::Vmid(*vmid));
        }
    }
}

/// Words of spans: blocks \[63:32\], granules that are not the host's \[31:0\].
fn spans(state: &State, held: &Held, report: &mut Report) {
    let (span, all) = (
        state.span_shift(),
        1u64 << (state.span_shift() - state.shift),
    );
    for range in &state.ranges {
        for (n, &word) in (range.base >> span..).zip(&range.spans) {
            let first = n << span;
            let pas = (first..first + (1 << span)).step_by(1 << state.shift);
            let ns = |pa: &u64| {
                state
                    .word(*pa)
                    .is_some_and(|(_, w)| w.kind() == Some(Kind::Ns))
            };
            // Of two ranges of RAM in one span each has a word of its own.
            let here = |pa: &u64| {
                let end = range.base + ((range.words.len() as u64) << state.shift);
                (range.base..end).contains(pa)
            };
            let foreign = all - pas.filter(here).filter(ns).count() as u64;
            if word & 0xffff_ffff != foreign {
                report.find(first, Fault::Foreign(word & 0xffff_ffff, foreign));
            }
            let blocks = held.blocks.get(&n).copied().unwrap_or(0);
            if word >> 32 != blocks {
                report.find(first, Fault::Blocks(word >> 32, blocks));
            }
            report.shared += blocks;
        }
    }
}

/// Granules in which the secret stands.
fn secrets(
    ram: &Ram,
    state: &State,
    (secret, reached): (u64, &[(u64, u64)]),
    report: &mut Report,
) -> Result<()> {
    let granule = state.granule();
    // As many at once as are read in one go.
    const BYTES: u64 = 1 << 20;
    for range in &state.ranges {
        let end = range.base + ((range.words.len() as u64) << state.shift);
        for from in (range.base..end).step_by(BYTES as usize) {
            let to = end.min(from + BYTES);
            if !ram.has(from, to) {
                continue;
            }
            let words = ram.words(from, (to - from) / 8)?;
            let all = words.chunks_exact((granule / 8) as usize);
            for (pa, words) in (from..).step_by(granule as usize).zip(all) {
                if repeats(words, secret) {
                    report.secrets += 1;
                    if is_in(reached, pa) {
                        report.find(pa, Fault::Secret);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whether a word stands [`LENGTH`] times, one behind the other.
fn repeats(words: &[u64], secret: u64) -> bool {
    let every = words.iter().step_by(LENGTH);
    // One of so many that follow each other stands at a multiple of their number.
    let near = every.enumerate().filter(|(_, word)| **word == secret);
    near.into_iter().any(|(n, _)| {
        let at = n * LENGTH;
        let around = &words[at.saturating_sub(LENGTH - 1)..words.len().min(at + LENGTH)];
        around
            .windows(LENGTH)
            .any(|some| some.iter().all(|word| *word == secret))
    })
}

//! Whether `hyp`'s state is what the specification says: granules, tables, memory.

use core::sync::atomic::Ordering;

use hyp::kicks::NO_REC;
use hyp::memory::granule::{GranuleWord, State as Is};
use hyp::memory::phys;
use hyp::rec::{self, Rec};
use mmu_model::{Control, Features, Regime, translate_raw};

use crate::pair::{Pair, read};
use crate::spec::tables::{ATTRIBUTES, Entry, Ripas};
use crate::spec::{Content, Pending, Realm, State};

type Checked = Result<(), String>;

/// Of what is alike, one of so many is looked at.
const SAMPLE: usize = 37;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, at: u64, is: T, said: T) -> Checked {
    if is == said {
        return Ok(());
    }
    Err(format!("{what} {at:#x} is {is:x?}, not {said:x?}"))
}

/// After a call: states and counts of all granules that ever were used, what it named,
/// and what changed.
pub fn after(pair: &mut Pair, x: &[u64; 6], answer: &[u64; 5]) -> Checked {
    // Whoever ends the machine waits for it, and whoever kicks relies on it.
    let runs = pair.host.cpu.pe.runs().load(Ordering::SeqCst);
    same("what runs behind a call of", x[1], runs, NO_REC)?;
    for pa in &pair.touched {
        word(pair, *pa)?;
    }
    tables(pair)?;
    let named = x[1..].iter().chain(&answer[1..]);
    let named: Vec<u64> = named.copied().chain(pair.spec.changed.clone()).collect();
    for rd in pair.spec.realms.keys() {
        measured(pair, *rd)?;
    }
    for pa in &named {
        word(pair, *pa)?;
        content(pair, *pa)?;
        vcpu(pair, *pa)?;
    }
    let rd = x[1];
    if pair.spec.realms.contains_key(&rd) {
        for ipa in [x[2], x[3], x[4], answer[1], answer[2]] {
            for level in pair.spec.realms[&rd].tables.start..=3 {
                let ipa = ipa & !(pair.spec.machine.span(level) - 1);
                entry(pair, rd, ipa, level)?;
            }
        }
    }
    Ok(())
}

/// All there is. Of granules that never were used, and of entries that say what those
/// beside them say, a sample.
pub fn everything(pair: &mut Pair) -> Checked {
    for (n, (pa, _)) in pair.spec.granules().enumerate() {
        word(pair, pa)?;
        if pair.touched.contains(&pa) {
            content(pair, pa)?;
        } else if n % SAMPLE == 0 {
            same("memory at", pa, read(pa), 0)?;
        }
        vcpu(pair, pa)?;
    }
    tables(pair)?;
    let realms: Vec<u64> = pair.spec.realms.keys().copied().collect();
    for rd in realms {
        measured(pair, rd)?;
        for (ipa, level, said) in places(&pair.spec.realms[&rd]) {
            entry(pair, rd, ipa, level)?;
            walk_of_realm(pair, rd, (ipa, level), said)?;
        }
    }
    walks_of_host(pair)
}

/// Entries to be looked at: address, level, and what stands there.
fn places(realm: &Realm) -> Vec<(u64, i8, Entry)> {
    let mut all = Vec::new();
    for (key, table) in &realm.tables.all {
        let entries = table.entries();
        for (index, entry) in entries.iter().enumerate() {
            let [before, after] = [index.wrapping_sub(1), index + 1].map(|n| entries.get(n));
            let alike = before == Some(entry) && after == Some(entry);
            if !alike || index % SAMPLE == 0 || entry.is_live() {
                all.push((realm.tables.address(*key, index), key.0, *entry));
            }
        }
    }
    all
}

/// State and count of a granule, if it is one.
fn word(pair: &Pair, pa: u64) -> Checked {
    let Some(said) = pair.spec.granule(pa) else {
        return Ok(());
    };
    let word = pair.host.system.granules.get(pa).ok_or("no granule")?;
    same("granule", pa, state(word), Some(said.state))?;
    match pair.spec.count(pa) {
        Some(count) => same("count of", pa, word.count(), count),
        None => Ok(()),
    }
}

/// Counts of all tables.
fn tables(pair: &Pair) -> Checked {
    for realm in pair.spec.realms.values() {
        for (key, table) in &realm.tables.all {
            let granules = if key.0 == realm.tables.start {
                &realm.roots[..]
            } else {
                std::slice::from_ref(&table.pa)
            };
            let words = granules
                .iter()
                .filter_map(|pa| pair.host.system.granules.get(*pa));
            let count: u32 = words.map(GranuleWord::count).sum();
            same("count of table", table.pa, count, table.kept)?;
        }
    }
    Ok(())
}

fn state(word: &GranuleWord) -> Option<State> {
    Some(match word.state() {
        Is::Ns => State::Ns,
        Is::Delegated => State::Delegated,
        Is::Rd => State::Rd,
        Is::Rec => State::Rec,
        Is::Data => State::Data,
        Is::Rtt => State::Rtt,
        Is::Unscrubbed => State::Unscrubbed,
        Is::RecAux | Is::Hyp => return None,
    })
}

/// All of what a granule holds.
fn content(pair: &Pair, pa: u64) -> Checked {
    let Some(said) = pair.spec.granule(pa) else {
        return Ok(());
    };
    let Content::Words(word, but) = &said.content else {
        return Ok(());
    };
    let words = phys::pointer::<u64>(pa);
    // SAFETY: a granule of the fake machine's, which this thread alone uses.
    let words = unsafe { std::slice::from_raw_parts(words, pair.host.size as usize / 8) };
    let said = |n: usize| but.get(&(8 * n as u64)).unwrap_or(word);
    let differs = |(n, is): (usize, &u64)| (is != word || !but.is_empty()) && is != said(n);
    match words.iter().enumerate().position(differs) {
        None => Ok(()),
        Some(n) => same("memory at", pa + 8 * n as u64, words[n], *said(n)),
    }
}

/// What a realm is measured as, and which guests are.
fn measured(pair: &Pair, rd: u64) -> Checked {
    // SAFETY: an RD of the fake machine's, which no call ends meanwhile.
    let is = unsafe { hyp::realm::Realm::at(rd) }.measured.lock();
    let said = &pair.spec.realms[&rd].measured;
    let is = (0..6).map(|index| is.as_ref().and_then(|all| all.read(index)).copied());
    let said = (0..6).map(|index| said.as_ref().and_then(|all| all.values.get(index)).copied());
    for (index, (is, said)) in is.zip(said).enumerate() {
        same(&format!("measurement {index} of"), rd, is, said)?;
    }
    Ok(())
}

/// What of a vCPU shows.
fn vcpu(pair: &Pair, pa: u64) -> Checked {
    let Some(said) = pair.spec.recs.get(&pa) else {
        return Ok(());
    };
    // SAFETY: a REC of the fake machine's, which nobody runs.
    let is = unsafe { Rec::at(pa) };
    // SAFETY: as above.
    let state = unsafe { &*is.state.get() };
    same("realm of vCPU", pa, is.rd, said.rd)?;
    same("index of vCPU", pa, is.index as u64, said.index)?;
    same("runnable of vCPU", pa, is.runnable(), said.runnable)?;
    let target = |mpidr| rmi::params::mpidr_index(mpidr).unwrap_or(u64::MAX);
    let pending = match state.pending {
        rec::Pending::Nothing => Pending::Nothing,
        rec::Pending::Mmio(esr, _) => Pending::Access(esr.is_write(), esr.register() as usize),
        rec::Pending::Abort(..) => Pending::Abort,
        rec::Pending::CpuOn(to, entry, context) => Pending::CpuOn(target(to), entry, context),
        rec::Pending::AffinityInfo(to) => Pending::AffinityInfo(target(to)),
        rec::Pending::HostCall(ipa) => Pending::HostCall(ipa),
        rec::Pending::Ripas => Pending::Ripas {
            reached: state.ripas.reached,
            top: state.ripas.top,
            asked: state.ripas.asked,
            ram: state.ripas.to == pgtable::Ripas::Ram,
            destroyed: state.ripas.destroyed == pgtable::ChangeDestroyed::Yes,
        },
    };
    same("what is pending of vCPU", pa, pending, said.pending)?;
    same("PC of vCPU", pa, state.gprs.pc, said.pc)?;
    same("registers of vCPU", pa, state.gprs.x, said.x)?;
    let taken = (state.el1.esr >> 26, state.el1.elr);
    same("exception of vCPU", pa, taken, said.taken)
}

/// What RTT_READ_ENTRY tells.
fn entry(pair: &mut Pair, rd: u64, ipa: u64, level: i8) -> Checked {
    let x = [0xC400_0161, rd, ipa, i64::from(level) as u64, 0, 0];
    let said = pair.spec.call(x, &read);
    let is = pair.host.call(x);
    same(&format!("level {level} of realm {rd:#x} at"), ipa, is, said)
}

/// FEAT_S2FWB in HCR_EL2.
const FWB: u64 = 1 << 46;

/// What hardware finds by a root, as the architecture has it.
fn walk(pair: &Pair, vttbr: u64, vtcr: u64, ipa: u64) -> Option<(u64, u8)> {
    let machine = &pair.spec.machine;
    let features = Features {
        pa_bits: machine.pa_bits as u8,
        lpa2: machine.lpa2,
        ttst: machine.ttst,
        fwb: machine.fwb,
        ..Features::max()
    };
    let control = Control {
        regime: Regime::Stage2,
        tcr: vtcr,
        ttbr: vttbr,
        hcr: if machine.fwb { FWB } else { 0 },
        mair: 0,
    };
    let found = translate_raw(&control, &features, ipa, read).ok()?;
    Some((found.pa, found.attrs.perms.0))
}

/// A realm reaches what its tables say, and nothing else: of an entry the first and
/// the last page.
fn walk_of_realm(pair: &Pair, rd: u64, at: (u64, i8), entry: Entry) -> Checked {
    let realm = &pair.spec.realms[&rd];
    // SAFETY: an RD of the fake machine's, which no call ends meanwhile.
    let is = unsafe { hyp::realm::Realm::at(rd) };
    same("VMID of realm", rd, is.vttbr >> 48, realm.vmid.into())?;
    if matches!(entry, Entry::Table(_)) {
        return Ok(());
    }
    let (ipa, level) = at;
    for offset in [0, pair.spec.machine.span(level) - 8] {
        let found = walk(pair, is.vttbr, is.vtcr, ipa + offset);
        let said = mapped(realm, entry, offset);
        same("what hardware finds at", ipa + offset, found, said)?;
    }
    Ok(())
}

/// Read, write, execute at EL1, execute at EL0.
const ALL: u8 = 0b1111;

/// Where an entry leads, and what it allows.
fn mapped(realm: &Realm, entry: Entry, offset: u64) -> Option<(u64, u8)> {
    match entry {
        Entry::Assigned(Ripas::Ram, pa) => Some((pa + offset, ALL)),
        Entry::AssignedNs(desc) => {
            let access = (desc >> 6 & 0b11) as u8;
            // Confidential guests execute nothing of the host's; plain ones what they
            // may read or not.
            let execute = if realm.shared_from == 0 { 0b1100 } else { 0 };
            Some(((desc & !ATTRIBUTES) + offset, access | execute))
        }
        _ => None,
    }
}

/// The host reaches what is its own, where it is, and nothing else.
fn walks_of_host(pair: &Pair) -> Checked {
    let regs = pair.host.system.host.regs();
    for (pa, granule) in pair.spec.granules() {
        let found = walk(pair, regs.vttbr, regs.vtcr, pa).map(|(to, _)| to);
        let said = (granule.state == State::Ns).then_some(pa);
        same("what the host finds at", pa, found, said)?;
    }
    let behind = pair.spec.machine.ram_base + pair.spec.machine.ram_size;
    same(
        "behind RAM the host finds at",
        behind,
        walk(pair, regs.vttbr, regs.vtcr, behind),
        None,
    )
}

//! The RTT commands: tables, and the host's memory in them.
//!
//! Memory of the host's that a guest maps is counted while it is mapped
//! ([`crate::memory::lent`]).

use ::rmi::Status;
use ::rmi::rtt::{self as abi, EntryState};
use pgtable::{
    Access, Attrs, Execute, HostPages, Ipa, Level, Memory, Pa, RemovedLeaf, RttAt, RttError,
    RttState,
};

use super::args::{budget, level, lock};
use super::{Outcome, Walked};
use crate::memory::granule::State;
use crate::memory::{maintenance, phys};
use crate::realm::{Realm, RttMem};
use crate::system::System;

/// A realm's tables.
pub type Tables = pgtable::Rtt<RttMem>;

/// Calls `f` with the realm's tables, under the RD's lock no longer than to find
/// them: the realm cannot go while its `rtt` lock is held.
pub fn with_rtt<R>(
    system: &System,
    rd: u64,
    f: impl FnOnce(&mut Tables, &mut maintenance::Pe) -> R,
) -> Result<R, Status> {
    let rd_lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held until its `rtt` lock is, and REALM_DESTROY
    // takes that too.
    let realm = unsafe { Realm::at(rd) };
    let mut rtt = realm.rtt.lock();
    drop(rd_lock);
    let tables = rtt.as_mut().ok_or(Status::ErrorInput)?;
    let mut pe = system.host.pe();
    Ok(f(tables, &mut pe))
}

/// As [`with_rtt`] for a command that names a level.
fn with_rtt_at<R>(
    system: &System,
    rd: u64,
    at: i64,
    f: impl FnOnce(&mut Tables, &mut maintenance::Pe, Level) -> R,
) -> Result<R, Status> {
    let at = level(at)?;
    with_rtt(system, rd, |tables, pe| f(tables, pe, at))
}

/// The status of a failure of a command that has no budget.
pub fn status(error: RttError) -> Status {
    match error {
        RttError::Input | RttError::Again => Status::ErrorInput,
        RttError::Rtt { level, .. } => Status::ErrorRtt(level.get() as u8),
    }
}

/// What a walk reports to the host; `None` if the budget ended.
pub fn walked<T>(result: Result<(T, Ipa), RttError>) -> Option<Walked<T>> {
    let (outcome, top) = match result {
        Ok((value, top)) => (Ok(value), top.get()),
        Err(RttError::Again) => return None,
        Err(error @ RttError::Rtt { top, .. }) => (Err(status(error)), top.get()),
        Err(error @ RttError::Input) => (Err(status(error)), 0),
    };
    Some(Walked { outcome, top })
}

/// The same of a command that does all or nothing, and never says "again".
pub fn walked_once<T>(removed: Outcome<Result<(T, Ipa), RttError>>) -> Walked<T> {
    match removed {
        Err(status) => status.into(),
        Ok(result) => walked(result).unwrap_or_else(|| Status::ErrorInput.into()),
    }
}

/// Puts the delegated granule `rtt` into the realm as a table of `at`.
pub fn create(system: &System, rd: u64, rtt: u64, ipa: u64, at: i64) -> Outcome {
    let at = level(at)?;
    with_rtt(system, rd, |tables, pe| {
        // After the realm's locks, as every command has it.
        let table = lock(system, rtt, State::Delegated)?;
        // A block of the host's memory becomes pages of it: counted as such.
        let block = (at == Level::L3)
            .then(|| mapped_at(tables, ipa, Level::L2))
            .flatten();
        if block.is_some_and(|block| !system.granules.lend_pages(block)) {
            return Err(Status::ErrorInput);
        }
        let created = tables.create(pe, RttAt::new(Ipa::new(ipa), at), Pa::new(rtt));
        if let Some(block) = block {
            match created {
                Ok(()) => system.granules.put_block(block),
                Err(_) => system.granules.take_back_all_pages(block),
            }
        }
        created.map_err(status)?;
        table.unlock_as(State::Rtt);
        Ok(())
    })?
}

/// Takes the table of `at` at `ipa` out of the realm: its granule. `None`: call
/// again.
pub fn destroy(system: &System, rd: u64, ipa: u64, at: i64) -> Option<Walked<u64>> {
    let removed = with_rtt_at(system, rd, at, |tables, pe, at| {
        let mut unmapped =
            |leaf: RemovedLeaf| system.granules.take_back(leaf.pa().get(), leaf.size());
        let removed = tables.destroy(
            pe,
            RttAt::new(Ipa::new(ipa), at),
            &mut unmapped,
            &mut budget(),
        )?;
        scrub(system, removed.pa.get(), State::Rtt);
        Ok((removed.pa.get(), removed.top))
    });
    match removed {
        Err(status) => Some(status.into()),
        Ok(result) => walked(result),
    }
}

/// Makes one entry of a table of alike entries: the granule that it was.
pub fn fold(system: &System, rd: u64, ipa: u64, at: i64) -> Outcome<u64> {
    let at = level(at)?;
    let folded = with_rtt(system, rd, |tables, pe| {
        // Pages of the host's memory become a block of it: counted as such.
        let size = system.granules.span_size();
        // A table's, that is, and not an entry's of the root or amid a table.
        let names_table = at > tables.geometry().start() && ipa.is_multiple_of(size);
        let first = (at == Level::L3 && names_table)
            .then(|| mapped_at(tables, ipa, Level::L3))
            .flatten();
        let block = first.filter(|first| first.is_multiple_of(size));
        if block.is_some_and(|block| !system.granules.get_block(block)) {
            // A part of it is not the host's, or was not a moment ago: no block.
            return Err(RttError::Rtt {
                level: at,
                top: Ipa::new(ipa),
            });
        }
        let folded = tables.fold(pe, RttAt::new(Ipa::new(ipa), at));
        if let Ok(table) = folded {
            scrub(system, table.get(), State::Rtt);
        }
        match (folded, block) {
            (Ok(_), Some(block)) => system.granules.take_back_all_pages(block),
            (Err(_), Some(block)) => system.granules.put_block(block),
            (_, None) => {}
        }
        folded
    })?;
    folded.map(Pa::get).map_err(status)
}

/// A table, or memory, that left its tree becomes a delegated granule again.
#[inline(always)]
pub fn scrub(system: &System, pa: u64, was: State) {
    if let Some(granule) = system.granules.get(pa).and_then(|g| g.lock(was)) {
        // SAFETY: the tree has let go of it, and no walker and no TLB knows it.
        unsafe { phys::zero(pa, system.granules.size()) };
        granule.unlock_as(State::Delegated);
    }
}

/// What stands in a realm's tables.
pub struct Entry {
    level: Level,
    state: EntryState,
    descriptor: u64,
    ripas: u64,
}

impl Entry {
    /// X1–X4 of `RTT_READ_ENTRY`.
    pub fn outputs(self) -> [u64; 4] {
        let level = i64::from(self.level.get()) as u64;
        [level, self.state as u64, self.descriptor, self.ripas]
    }
}

/// Reads what stands at `ipa`, down to `at`.
pub fn read_entry(system: &System, rd: u64, ipa: u64, at: i64) -> Outcome<Entry> {
    let at = level(at)?;
    let read = with_rtt(system, rd, |tables, _| tables.read(Ipa::new(ipa), at))?;
    let entry = read.map_err(status)?;
    let (state, descriptor, ripas) = match entry.state {
        RttState::Unassigned(ripas) => (EntryState::Unassigned, 0, ripas as u64),
        RttState::Assigned { ripas, pa } => (EntryState::Assigned, pa.get(), ripas as u64),
        RttState::UnassignedNs => (EntryState::Unassigned, 0, 0),
        RttState::AssignedNs { pa, attrs } => (EntryState::Assigned, describe(pa, attrs), 0),
        RttState::Table(pa) => (EntryState::Table, pa.get(), 0),
    };
    Ok(Entry {
        level: entry.level,
        state,
        descriptor,
        ripas,
    })
}

/// The descriptor of `RTT_MAP_UNPROTECTED` that makes this mapping.
fn describe(pa: Pa, attrs: Attrs) -> u64 {
    let memory = match attrs.memory {
        Memory::Normal => abi::MEMATTR_NORMAL_WB,
        Memory::NormalNonCacheable => abi::MEMATTR_NORMAL_NC,
        Memory::FromStage1 => abi::MEMATTR_PASSTHROUGH,
        Memory::Device(device) => device as u64,
    };
    let access = match attrs.access {
        Access::None => 0,
        Access::Read => abi::DESC_READ,
        Access::Write => abi::DESC_WRITE,
        Access::ReadWrite => abi::DESC_READ | abi::DESC_WRITE,
    };
    pa.get() | memory << abi::DESC_MEMATTR_SHIFT | access
}

/// The mapping that a host's descriptor asks for: `None` when it has other bits
/// than address, memory type and access, or a reserved memory type.
fn parse(descriptor: u64) -> Option<(u64, Attrs)> {
    let known = abi::DESC_OA
        | abi::DESC_MEMATTR_MASK << abi::DESC_MEMATTR_SHIFT
        | abi::DESC_READ
        | abi::DESC_WRITE;
    if descriptor & !known != 0 {
        return None;
    }
    let memory = match descriptor >> abi::DESC_MEMATTR_SHIFT & abi::DESC_MEMATTR_MASK {
        abi::MEMATTR_NORMAL_WB => Memory::Normal,
        abi::MEMATTR_NORMAL_NC => Memory::NormalNonCacheable,
        abi::MEMATTR_PASSTHROUGH => Memory::FromStage1,
        // Reserved; or Device, which no RAM is in any guest.
        _ => return None,
    };
    let access = match (
        descriptor & abi::DESC_READ != 0,
        descriptor & abi::DESC_WRITE != 0,
    ) {
        (false, false) => Access::None,
        (true, false) => Access::Read,
        (false, true) => Access::Write,
        (true, true) => Access::ReadWrite,
    };
    let attrs = Attrs::MEMORY.memory(memory).access(access);
    Some((descriptor & abi::DESC_OA, attrs))
}

/// Maps the host's memory at `ipa` by one entry of `at`.
pub fn map_unprotected(system: &System, rd: u64, ipa: u64, at: i64, descriptor: u64) -> Outcome {
    let (pa, attrs) = parse(descriptor).ok_or(Status::ErrorInput)?;
    let mapped = with_rtt_at(system, rd, at, |tables, pe, at| {
        let geometry = *tables.geometry();
        // A plain guest executes what it can read; a confidential one nothing that
        // the host can write.
        let is_confidential = tables.is_protected(Ipa::new(0));
        let attrs = attrs.execute(if is_confidential {
            Execute::Never
        } else {
            Execute::All
        });
        if !geometry.leaf_ok(at) || pa % geometry.span(at) != 0 {
            return Err(RttError::Input);
        }
        let size = geometry.span(at);
        if !system.granules.lend(pa, size) {
            return Err(RttError::Input);
        }
        let memory = HostPages {
            ipa: Ipa::new(ipa),
            level: at,
            pa: Pa::new(pa),
            attrs,
            count: 1,
        };
        let mapped = tables.map_unprotected(pe, &memory, &mut budget());
        if mapped.is_err() {
            system.granules.take_back(pa, size);
        }
        mapped
    })?;
    mapped.map(|_| ()).map_err(status)
}

/// The host's memory that one entry of `at` maps at `ipa`.
fn mapped_at(tables: &Tables, ipa: u64, at: Level) -> Option<u64> {
    match tables.read(Ipa::new(ipa), at) {
        Ok(entry) if entry.level == at => match entry.state {
            RttState::AssignedNs { pa, .. } => Some(pa.get()),
            _ => None,
        },
        _ => None,
    }
}

/// Unmaps one entry of `at`.
pub fn unmap_unprotected(system: &System, rd: u64, ipa: u64, at: i64) -> Walked<()> {
    walked_once(with_rtt_at(system, rd, at, |tables, pe, at| {
        let size = tables.geometry().span(at);
        let removed = tables.unmap_unprotected(pe, Ipa::new(ipa), at, &mut budget())?;
        system.granules.take_back(removed.pa.get(), size);
        Ok(((), removed.top))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_is_read_as_it_is_told() {
        let pa = 0x4000_5000;
        for memory in 0..=abi::DESC_MEMATTR_MASK {
            for access in [
                0,
                abi::DESC_READ,
                abi::DESC_WRITE,
                abi::DESC_READ | abi::DESC_WRITE,
            ] {
                let descriptor = pa | memory << abi::DESC_MEMATTR_SHIFT | access;
                let Some((to, attrs)) = parse(descriptor) else {
                    continue;
                };
                assert_eq!(to, pa);
                assert_eq!(describe(Pa::new(to), attrs), descriptor);
                assert!(!matches!(attrs.memory, Memory::Device(_)), "{memory}");
            }
        }
        let known = abi::DESC_OA
            | abi::DESC_MEMATTR_MASK << abi::DESC_MEMATTR_SHIFT
            | abi::DESC_READ
            | abi::DESC_WRITE;
        for bit in (0..64).filter(|bit| known >> bit & 1 == 0) {
            assert!(parse(pa | abi::DESC_READ | 1 << bit).is_none(), "bit {bit}");
        }
    }
}

//! The RTT commands of a plain guest: tables, and the host's memory in them.
//!
//! Memory of the host's that a guest maps is counted while it is mapped, by page
//! or by block, and that count blocks its delegation.

use ::rmi::Status;
use ::rmi::rtt::{self as abi, EntryState};
use pgtable::{
    Access, Attrs, Budget, Execute, Ipa, Level, Memory, Pa, RemovedLeaf, RttError, RttState,
};

use super::realm::lock;
use super::{NONE, Outcome};
use crate::System;
use crate::memory::granule::State;
use crate::memory::{maintenance, phys};
use crate::realm::{Realm, RttMem};

/// Outcome of the commands that tell `top` in failure too.
type Topped = Result<[u64; 4], (Status, [u64; 4])>;

/// Work of one call on a CPU without FEAT_S2FWB: 8 MiB of memory cleaned, a
/// few milliseconds. The host takes its interrupts, and goes on.
pub fn budget() -> Budget {
    Budget::entries(2048)
}

/// Calls `f` with the realm's tables, under the RD's lock no longer than to find
/// them: the realm cannot go while its `rtt` lock is held.
fn with_rtt<R>(
    system: &System,
    rd: u64,
    f: impl FnOnce(&mut pgtable::Rtt<RttMem>, &mut maintenance::Pe) -> R,
) -> Result<R, Status> {
    let rd_lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held until its `rtt` lock is, and REALM_DESTROY
    // takes that too.
    let realm = unsafe { Realm::at(rd) };
    let mut rtt = realm.rtt.lock();
    drop(rd_lock);
    let tables = rtt.as_mut().ok_or(Status::ErrorInput)?;
    let mut pe = maintenance::Pe::new(system.features.dcache_line);
    Ok(f(tables, &mut pe))
}

/// As [`with_rtt`] for a command that names a level.
fn with_rtt_at<R>(
    system: &System,
    rd: u64,
    at: u64,
    f: impl FnOnce(&mut pgtable::Rtt<RttMem>, &mut maintenance::Pe, Level) -> R,
) -> Result<R, Status> {
    let at = level(at)?;
    with_rtt(system, rd, |tables, pe| f(tables, pe, at))
}

fn level(raw: u64) -> Result<Level, Status> {
    i8::try_from(raw as i64)
        .ok()
        .and_then(Level::new)
        .ok_or(Status::ErrorInput)
}

/// The status of a failure of a command that has no budget.
fn status(error: RttError) -> Status {
    topped(error).map_or(Status::ErrorInput, |(status, _)| status)
}

/// The status and `top` of a failure; `None` if the budget ended.
fn topped(error: RttError) -> Option<(Status, u64)> {
    match error {
        RttError::Input => Some((Status::ErrorInput, 0)),
        RttError::Rtt { level, top } => Some((Status::ErrorRtt(level.get() as u8), top.get())),
        RttError::Again => None,
    }
}

/// Puts the delegated granule `rtt` into the realm as a table of `at`.
pub fn create(system: &System, rd: u64, rtt: u64, ipa: u64, at: u64) -> Outcome {
    let at = level(at)?;
    with_rtt(system, rd, |tables, pe| {
        // After the realm's locks, as every command has it.
        let table = lock(system, rtt, State::Delegated)?;
        // A block of the host's memory becomes pages of it: counted as such.
        let block = (at == Level::L3)
            .then(|| mapped_at(tables, ipa, Level::L2))
            .flatten();
        if block.is_some_and(|block| !get_pages(system, block)) {
            return Err(Status::ErrorInput);
        }
        let created = tables.create(pe, Ipa::new(ipa), at, Pa::new(rtt));
        if let Some(block) = block {
            match created {
                Ok(()) => system.granules.put_block(block),
                Err(_) => put_pages(system, block, block + system.granules.span_size()),
            }
        }
        created.map_err(status)?;
        table.become_(State::Rtt);
        Ok(NONE)
    })?
}

/// Takes the table of `at` at `ipa` out of the realm. `None`: call again.
pub fn destroy(system: &System, rd: u64, ipa: u64, at: u64) -> Option<Topped> {
    let removed = with_rtt_at(system, rd, at, |tables, pe, at| {
        let mut unmapped =
            |leaf: RemovedLeaf| put_host_memory(system, leaf.pa().get(), leaf.size());
        let removed = tables.destroy(pe, Ipa::new(ipa), at, &mut unmapped, &mut budget());
        if let Ok(removed) = &removed {
            scrub_table(system, removed.pa.get());
        }
        removed
    });
    match removed {
        Err(status) => Some(Err((status, NONE))),
        Ok(Ok(removed)) => Some(Ok([removed.pa.get(), removed.top.get(), 0, 0])),
        Ok(Err(error)) => topped(error).map(|(status, top)| Err((status, [0, top, 0, 0]))),
    }
}

/// Makes one entry of a table of alike entries.
pub fn fold(system: &System, rd: u64, ipa: u64, at: u64) -> Outcome {
    let at = level(at)?;
    let folded = with_rtt(system, rd, |tables, pe| {
        // Pages of the host's memory become a block of it: counted as such.
        let size = system.granules.span_size();
        let first = (at == Level::L3)
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
        let folded = tables.fold(pe, Ipa::new(ipa), at);
        if let Ok(table) = folded {
            scrub_table(system, table.get());
        }
        match (folded, block) {
            (Ok(_), Some(block)) => put_pages(system, block, block + size),
            (Err(_), Some(block)) => system.granules.put_block(block),
            (_, None) => {}
        }
        folded
    })?;
    folded.map(|table| [table.get(), 0, 0, 0]).map_err(status)
}

/// A table that left its tree becomes a delegated granule again.
fn scrub_table(system: &System, pa: u64) {
    if let Some(table) = system.granules.get(pa).and_then(|g| g.lock(State::Rtt)) {
        // SAFETY: the tree has let go of it, and no walker knows it.
        unsafe { phys::zero(pa, system.granules.size()) };
        table.become_(State::Delegated);
    }
}

/// Tells what stands at `ipa`, down to `at`.
pub fn read_entry(system: &System, rd: u64, ipa: u64, at: u64) -> Outcome {
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
    Ok([
        entry.level.get() as i64 as u64,
        state as u64,
        descriptor,
        ripas,
    ])
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
        0 => Memory::Device(pgtable::Device::NGnRnE),
        1 => Memory::Device(pgtable::Device::NGnRE),
        2 => Memory::Device(pgtable::Device::NGRE),
        3 => Memory::Device(pgtable::Device::GRE),
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
    // A plain guest executes what it can read: only confidential realms have
    // unprotected memory that is never executable.
    let execute = match memory {
        Memory::Device(_) => Execute::Never,
        _ => Execute::All,
    };
    Some((
        descriptor & abi::DESC_OA,
        Attrs::MEMORY.memory(memory).access(access).execute(execute),
    ))
}

/// Maps the host's memory at `ipa` by one entry of `at`. `None`: call again.
pub fn map_unprotected(
    system: &System,
    rd: u64,
    ipa: u64,
    at: u64,
    descriptor: u64,
) -> Option<Outcome> {
    let Some((pa, attrs)) = parse(descriptor) else {
        return Some(Err(Status::ErrorInput));
    };
    let mapped = with_rtt_at(system, rd, at, |tables, pe, at| {
        let geometry = *tables.geometry();
        if !geometry.leaf_ok(at) || pa % geometry.span(at) != 0 {
            return Err(RttError::Input);
        }
        let size = geometry.span(at);
        if !get_host_memory(system, pa, size) {
            return Err(RttError::Input);
        }
        let (ipa, to, budget) = (Ipa::new(ipa), Pa::new(pa), &mut budget());
        let mapped = tables.map_unprotected(pe, ipa, at, to, attrs, 1, budget);
        if mapped.is_err() {
            put_host_memory(system, pa, size);
        }
        mapped
    });
    match mapped {
        Err(status) => Some(Err(status)),
        Ok(Ok(_)) => Some(Ok(NONE)),
        Ok(Err(error)) => topped(error).map(|(status, _)| Err(status)),
    }
}

/// Counts a mapping of `[pa, pa + size)`, a page or a block: false, and nothing
/// counted, unless all of it is the host's RAM.
fn get_host_memory(system: &System, pa: u64, size: u64) -> bool {
    if size == system.granules.span_size() {
        return system.granules.get_block(pa);
    }
    let granule = system.granules.get(pa);
    match granule.and_then(|granule| granule.pin(State::Ns)) {
        Some(pin) if size == system.granules.size() => {
            pin.keep();
            true
        }
        _ => false,
    }
}

/// Takes the count of [`get_host_memory`] back.
pub fn put_host_memory(system: &System, pa: u64, size: u64) {
    if size == system.granules.span_size() {
        system.granules.put_block(pa);
    } else if let Some(granule) = system.granules.get(pa) {
        granule.put();
    }
}

/// Counts each page of a block's memory, before the block becomes a table.
fn get_pages(system: &System, block: u64) -> bool {
    let (size, step) = (system.granules.span_size(), system.granules.size());
    for page in (block..block + size).step_by(step as usize) {
        if !get_host_memory(system, page, step) {
            put_pages(system, block, page);
            return false;
        }
    }
    true
}

/// Takes the counts of the pages in `[from, to)` back.
fn put_pages(system: &System, from: u64, to: u64) {
    let step = system.granules.size();
    for page in (from..to).step_by(step as usize) {
        put_host_memory(system, page, step);
    }
}

/// The host's memory that one entry of `at` maps at `ipa`.
fn mapped_at(tables: &pgtable::Rtt<RttMem>, ipa: u64, at: Level) -> Option<u64> {
    match tables.read(Ipa::new(ipa), at) {
        Ok(entry) if entry.level == at => match entry.state {
            RttState::AssignedNs { pa, .. } => Some(pa.get()),
            _ => None,
        },
        _ => None,
    }
}

/// Unmaps one entry of `at`. `None`: call again.
pub fn unmap_unprotected(system: &System, rd: u64, ipa: u64, at: u64) -> Option<Topped> {
    let removed = with_rtt_at(system, rd, at, |tables, pe, at| {
        let size = tables.geometry().span(at);
        let removed = tables.unmap_unprotected(pe, Ipa::new(ipa), at, &mut budget());
        if let Ok(removed) = &removed {
            put_host_memory(system, removed.pa.get(), size);
        }
        removed
    });
    match removed {
        Err(status) => Some(Err((status, NONE))),
        Ok(Ok(removed)) => Some(Ok([removed.top.get(), 0, 0, 0])),
        Ok(Err(error)) => topped(error).map(|(status, top)| Err((status, [top, 0, 0, 0]))),
    }
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
                let device = matches!(attrs.memory, Memory::Device(_));
                assert_eq!(attrs.execute == Execute::Never, device, "{memory}");
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

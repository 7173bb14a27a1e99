//! A hypervisor's use of the crate, whole: where its tables live
//! (`memory.rs`), what its CPU executes (`cpu.rs`), and loops that go on where
//! a budget ended.
//!
//! ```text
//! cargo run -p pgtable --example hypervisor
//! ```
//!
//! On arm64 at EL2 the CPU is real; elsewhere it prints its instructions.

mod cpu;
mod memory;

use cpu::Cpu;
use memory::Pool;
use pgtable::{
    Attrs, Budget, Error, Geometry, Granule, Ipa, Map, Pa, RemovedLeaf, Stage2, Stage2Config,
    Stopped, Unmap, Vmid,
};

/// What one call may do before interrupts are taken.
fn step() -> Budget {
    Budget::entries(512)
}

/// The format of a guest: from ID registers in earnest.
fn geometry() -> Geometry {
    let mut config = Stage2Config::new(Granule::K4, 40, 48);
    config.features.tlb_range = true;
    config.features.fwb = true;
    config.features.dic = true;
    config.validate().expect("every such CPU has it")
}

/// Maps all of it, in as many calls as the budget makes of it.
fn map_all(tree: &Stage2<&Pool>, cpu: &mut Cpu, whole: Map) -> Result<(), Stopped<Ipa>> {
    let mut rest = whole;
    while rest.size > 0 {
        match tree.map(cpu, &rest, &mut step()) {
            Ok(next) => rest = rest.advance(next),
            // Another CPU is at that entry: it will not be long.
            Err(stopped) if stopped.why == Error::Busy => rest = rest.advance(stopped.next),
            Err(stopped) => return Err(stopped),
        }
        // Here a hypervisor takes its interrupts.
    }
    Ok(())
}

/// Takes all of it away again. `free` gets memory that no TLB knows any more.
fn unmap_all(
    tree: &mut Stage2<&Pool>,
    cpu: &mut Cpu,
    (ipa, size): (Ipa, u64),
    mut free: impl FnMut(Pa, u64),
) -> Result<(), Stopped<Ipa>> {
    let end = ipa.get() + size;
    let mut at = ipa;
    while at.get() < end {
        let left = end - at.get();
        let sink = &mut |leaf: RemovedLeaf| free(leaf.pa(), leaf.size());
        at = tree.unmap(cpu, &Unmap::new(at, left), sink, &mut step())?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let geometry = geometry();
    let pool = Pool::new(64);
    let root = pool.root(&geometry).ok_or("no pages for a root")?;
    let mut tree = Stage2::new(geometry, root, Vmid::new(1), &pool)?;
    let mut cpu = Cpu::new();

    // Memory that does not keep to blocks at its beginning: pages, then blocks.
    let (ipa, pa) = (Ipa::new(0x401f_0000), Pa::new(0x801f_0000));
    map_all(&tree, &mut cpu, Map::new(ipa, pa, 64 << 20, Attrs::MEMORY))?;
    let (to, _) = tree.translate(Ipa::new(0x4123_4567)).ok_or("a hole")?;
    println!("IPA 0x41234567 goes to {to}; {} tables", pool.used());

    let mut bytes = 0;
    unmap_all(&mut tree, &mut cpu, (ipa, 64 << 20), |_, size| {
        bytes += size;
    })?;
    println!("{bytes} bytes are free, and all tables but the root");
    assert_eq!((bytes, pool.used()), (64 << 20, geometry.root_tables()));

    // The end: the VMID and the root's pages are free after it.
    let end = Ipa::new(1 << geometry.ipa_bits());
    let mut at = Ipa::new(0);
    while at < end {
        at = tree.teardown(&mut cpu, at, &mut pgtable::Ignore, &mut step());
    }
    Ok(())
}

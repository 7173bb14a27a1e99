//! What is gathered stays frozen until its sync, and other operations may come
//! in between: whatever they did, the sync ends, empties what still is held,
//! and touches nothing else.

mod plain;

use pgtable::{
    Attrs, Budget, Entry, Gather, Granule, Ignore, Ipa, Leaves, Level, Map, Pa, Partial, Stage2,
    Stage2Config, Vmid,
};
use plain::Plain;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// The end of a GiB of IPAs is far off.
const BASE: Ipa = Ipa::new(0x4000_0000);

fn tree(mem: &Plain) -> Stage2<&Plain> {
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    config.features.dic = true;
    let geometry = config.validate().unwrap();
    let root = mem.root(geometry.root_align());
    Stage2::new(geometry, root, Vmid::new(5), mem).unwrap()
}

fn pages(ipa: Ipa, size: u64) -> Map {
    Map::new(ipa, Pa::new(0x8000_0000), size, Attrs::MEMORY).leaves(Leaves::Exactly(Level::L3))
}

fn gathered(mem: &Plain, tree: &Stage2<&Plain>, ipa: Ipa, size: u64) -> Gather {
    let mut gather = Gather::new();
    let done = tree.unmap_later(
        &mut mem.cpu(tree.vttbr()),
        ipa,
        size,
        Partial::Split,
        &mut gather,
        &mut Budget::unlimited(),
        drop,
    );
    assert_eq!(done, Ok(Ipa::new(ipa.get() + size)));
    gather
}

/// Takes `size` bytes out, with their tables.
fn unmap(mem: &Plain, tree: &mut Stage2<&Plain>, ipa: Ipa, size: u64) {
    let mut cpu = mem.cpu(tree.vttbr());
    let all = &mut Budget::unlimited();
    let done = tree.unmap(&mut cpu, ipa, size, Partial::Split, &mut Ignore, all);
    assert_eq!(done, Ok(Ipa::new(ipa.get() + size)));
}

#[test]
fn a_sync_ends_when_its_table_is_gone() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.vttbr());
    let all = &mut Budget::unlimited();
    tree.map(&mut cpu, &pages(BASE, 2 * PAGE), all).unwrap();
    let gather = gathered(&mem, &tree, BASE, PAGE);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let _synced = tree.sync(&mut cpu, gather);
    assert_eq!(tree.translate(BASE), None);
}

#[test]
fn a_sync_leaves_a_block_that_came_in_its_place() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.vttbr());
    let all = &mut Budget::unlimited();
    tree.map(&mut cpu, &pages(BASE, BLOCK), all).unwrap();
    let gather = gathered(&mem, &tree, BASE, BLOCK);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let block = Map::new(BASE, Pa::new(0x9000_0000), BLOCK, Attrs::MEMORY);
    tree.map(&mut cpu, &block, all).unwrap();
    let _synced = tree.sync(&mut cpu, gather);
    let (pa, _) = tree.translate(BASE).expect("it is mapped");
    assert_eq!(pa, block.pa);
}

#[test]
fn a_sync_empties_what_is_left_behind_a_table_that_is_gone() {
    let mem = Plain::new(PAGE);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.vttbr());
    let all = &mut Budget::unlimited();
    let first = Ipa::new(BASE.get() + BLOCK - 2 * PAGE);
    tree.map(&mut cpu, &pages(first, 4 * PAGE), all).unwrap();
    let gather = gathered(&mem, &tree, first, 4 * PAGE);
    unmap(&mem, &mut tree, BASE, BLOCK);
    let _synced = tree.sync(&mut cpu, gather);
    for n in 0..4 {
        let found = tree.lookup(Ipa::new(first.get() + n * PAGE)).unwrap();
        let empty = matches!(found.entry, Entry::Invalid(note) if note.get() == 0);
        assert!(empty, "page {n}: {found:x?}");
    }
    // And can be mapped again.
    tree.map(&mut cpu, &pages(first, 4 * PAGE), all).unwrap();
}

//! A gather that outlives what it noted.
mod plain;
use pgtable::*;
use plain::Plain;

fn tree(mem: &Plain) -> Stage2<&Plain> {
    let mut config = Stage2Config::new(Granule::K4, 39, 48);
    config.features.fwb = true;
    config.features.dic = true;
    let geometry = config.validate().unwrap();
    let root = mem.root(geometry.root_align());
    Stage2::new(geometry, root, Vmid::new(5), mem).unwrap()
}

/// Unmap a page (later), then all around it (now), then sync.
#[test]
fn the_table_goes_before_the_sync() {
    let mem = Plain::new(4096);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.vttbr());
    let all = || Budget::unlimited();
    let base = Ipa::new(0x4000_0000);
    let page = Map::new(base, Pa::new(0x8000_0000), 8192, Attrs::MEMORY);
    tree.map(&mut cpu, &page, &mut all()).unwrap();
    let mut gather = Gather::new();
    tree.unmap_later(
        &mut cpu,
        base,
        4096,
        Partial::Split,
        &mut gather,
        &mut all(),
        |_| (),
    )
    .unwrap();
    let done = tree.unmap(
        &mut cpu,
        base,
        2 << 20,
        Partial::Split,
        &mut Ignore,
        &mut all(),
    );
    eprintln!("unmap: {done:?}, {:?}", tree.lookup(base));
    let _ = tree.sync(&mut cpu, gather); // hangs
}

/// The same for a whole table of pages, and a block is mapped there: sync takes it away.
#[test]
fn a_block_stands_there_at_the_sync() {
    let mem = Plain::new(4096);
    let mut tree = tree(&mem);
    let mut cpu = mem.cpu(tree.vttbr());
    let all = || Budget::unlimited();
    let base = Ipa::new(0x4000_0000);
    let size = 2 << 20;
    let pages = Map::new(base, Pa::new(0x8000_0000), size, Attrs::MEMORY)
        .leaves(Leaves::Exactly(Level::L3));
    tree.map(&mut cpu, &pages, &mut all()).unwrap();
    let mut gather = Gather::new();
    tree.unmap_later(
        &mut cpu,
        base,
        size,
        Partial::Split,
        &mut gather,
        &mut all(),
        |_| (),
    )
    .unwrap();
    let done = tree.unmap(
        &mut cpu,
        base,
        size,
        Partial::Split,
        &mut Ignore,
        &mut all(),
    );
    eprintln!("unmap: {done:?}, {:?}", tree.lookup(base));
    let block = Map::new(base, Pa::new(0x9000_0000), size, Attrs::MEMORY);
    let done = tree.map(&mut cpu, &block, &mut all());
    eprintln!("map: {done:?}, {:?}", tree.lookup(base));
    let mapped = tree.translate(base);
    let _ = tree.sync(&mut cpu, gather);
    assert_eq!(tree.translate(base), mapped);
}

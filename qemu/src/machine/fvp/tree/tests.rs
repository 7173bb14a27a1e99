use dtoolkit::fdt::Fdt;
use dtoolkit::{Node, Property};
use hyp::boot::tree::{Conduit, Machine, Steps};
use hyp::memory::region::Region;

use super::super::parts::{self, BUNDLE};
use super::*;
use crate::size::Size;

const BOOTARGS: &str = "undercroft.granule=16k undercroft.log=serial1";

/// What EL2's own reader makes of a machine's tree, with pages of so many bytes.
fn read(cpus: u32, ram: Size, page: u64) -> Box<Machine> {
    let banks = parts::banks(ram).expect("so much RAM");
    let bundle = parts::place(loaded(), Some(loaded()), ram)
        .expect("they fit")
        .pop()
        .map(|part| part.span);
    let data = make(&Contents {
        cpus,
        banks: &banks,
        bootargs: BOOTARGS,
        bundle,
    });
    let data = data.expect("a tree");
    let mut machine = Box::new(Machine::new());
    machine.read(TREE.at, &data).expect("a sound tree");
    machine.check().expect("all that EL2 needs");
    let steps = Steps {
        memory: page,
        device: page,
        end: 1 << 52,
    };
    machine
        .settle(&data, &steps, &|_| None)
        .expect("a machine to run on");
    machine
}

fn loaded() -> parts::Loaded {
    parts::Loaded {
        file: "file".into(),
        size: 3 << 20,
    }
}

fn region(at: u64, size: u64) -> Region {
    Region::new(at, size).expect("no wrap")
}

#[test]
fn the_hypervisor_finds_all_that_it_needs() {
    for (page, cpus) in [(4 << 10, 1), (16 << 10, 5), (64 << 10, 8)] {
        let machine = read(cpus, Size::mib(3072), page);
        let pes: Vec<u64> = machine.pes.iter().copied().collect();
        let all = [
            0, 0x100, 0x200, 0x300, 0x1_0000, 0x1_0100, 0x1_0200, 0x1_0300,
        ];
        assert_eq!(pes, all[..cpus as usize]);
        let ram: Vec<_> = machine.ram.iter().copied().collect();
        let banks = [
            region(0x8000_0000, 0x7c00_0000),
            region(0x8_8000_0000, 0x4400_0000),
        ];
        assert_eq!(ram, banks);
        assert_eq!(machine.initrd, Some(region(BUNDLE, 3 << 20)));
        assert_eq!(machine.console, Some(region(0x1c09_0000, 0x1000)));
        assert_eq!(machine.uart, Some(region(0x1c0a_0000, 0x1000)));
        assert!(machine.psci == Some(Conduit::Smc));
        let gic = &machine.gic;
        assert_eq!(gic.distributor, region(0x2f00_0000, 0x1_0000));
        assert_eq!(gic.redistributors[..], [region(0x2f10_0000, 0x20_0000)]);
        let ppi = &gic.ppi;
        let numbers = (ppi.maintenance, ppi.virtual_timer, ppi.hyp_timer);
        assert_eq!(numbers, (25, 27, 26));
        // The console and the distributor are the host's, the log's UART is not.
        for (at, his) in [
            (0x1c09_0000, true),
            (0x2f00_0000, true),
            (0x1c0a_0000, false),
        ] {
            assert_eq!(machine.devices.covers(&region(at, 0x1000)), his, "{at:#x}");
        }
        assert_eq!(machine.settings.granule, Some(pgtable::Granule::K16));
    }
}

#[test]
fn the_firmware_finds_what_it_needs() {
    let banks = parts::banks(Size::mib(1024)).expect("so much RAM");
    let contents = |cpus| Contents {
        cpus,
        banks: &banks,
        bootargs: BOOTARGS,
        bundle: None,
    };
    let data = make(&contents(6)).expect("a tree");
    let tree = Fdt::new(&data).expect("a tree");
    let node = |path: &str| tree.find_node(path).expect(path);
    let clusters = node("/cpus/cpu-map").children();
    let cores: Vec<usize> = clusters.map(|c| c.children().count()).collect();
    assert_eq!(cores, [4, 2]);
    let aliases = node("/aliases");
    let log = aliases.property("serial1").expect("an alias");
    let log = node(log.value_as::<&str>().expect("a path"));
    let clocks = log.property("clocks").expect("clocks");
    assert!(clocks.value().starts_with(&CLOCK.to_be_bytes()));
    let frequency = |path: &str| {
        let property = node(path).property("clock-frequency").expect("a frequency");
        property.value_as::<u32>().expect("a number")
    };
    assert_eq!(frequency("/clock-uart"), UART_CLOCK);
    assert_eq!(frequency("/timer"), COUNTER);
    assert!(make(&contents(MAX_CPUS)).is_ok());
    let error = make(&contents(MAX_CPUS + 1)).expect_err("too many");
    assert!(error.to_string().contains("--smp 9"), "{error}");
    let long = "x".repeat(TREE.size as usize);
    let error = make(&Contents {
        bootargs: &long,
        ..contents(1)
    });
    let error = error.expect_err("too long").to_string();
    assert!(error.contains("firmware has room for 16384"), "{error}");
}

//! Machines whose devices stand where they should not.

extern crate std;

use super::super::Steps;
use super::super::TreeError;
use super::super::builder::{Tree, ranges, settled, steps};
use crate::memory::region::Region;
use proptest::prelude::*;
use std::vec::Vec;

const K4: u64 = 0x1000;
const K16: u64 = 0x4000;
const K64: u64 = 0x1_0000;

/// Transports: a block device behind the first, none behind the next seven, and
/// nothing at all beyond.
fn transports(at: u64) -> Option<u32> {
    match (at & !0x1ff, at & 0x1ff) {
        (0xa00_0000..0xa00_1000, 0) => Some(0x7472_6976),
        (0xa00_0000, 8) => Some(2),
        (0xa00_0000..0xa00_1000, 8) => Some(0),
        (0xa00_1000..0xa00_2000, _) => Some(0),
        _ => None,
    }
}

/// What the host has of a tree's devices, in pages of this size.
fn of(tree: Tree, page: u64) -> Vec<(u64, u64)> {
    ranges(
        &settled(&tree.finish(), &steps(page), &transports)
            .unwrap()
            .devices,
    )
}

fn uart(tree: Tree) -> Tree {
    tree.device("pl011@9000000", "arm,pl011", &[0x900_0000, 0x1000])
}

const UART: (u64, u64) = (0x900_0000, 0x900_1000);

/// QEMU's virt machine, more or less.
fn virt() -> Tree {
    let mut tree = uart(Tree::with_ram())
        .device("pl031@9010000", "arm,pl031", &[0x901_0000, 0x1000])
        .device("fw-cfg@9020000", "qemu,fw-cfg-mmio", &[0x902_0000, 0x18])
        .device("pl061@9030000", "arm,pl061", &[0x903_0000, 0x1000])
        .device("smmuv3@9050000", "arm,smmu-v3", &[0x905_0000, 0x2_0000])
        .device(
            "flash@0",
            "cfi-flash",
            &[0, 0x400_0000, 0x400_0000, 0x400_0000],
        )
        .device(
            "pcie@10000000",
            "pci-host-ecam-generic",
            &[0x40_1000_0000, 0x1000_0000],
        )
        .node("intc@8000000", |t| {
            t.compatible(&["arm,gic-v3"])
                .numbers("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])
                .cells()
                .flag("ranges")
                .device("its@8080000", "arm,gic-v3-its", &[0x808_0000, 0x2_0000])
        });
    for n in 0..32 {
        let base = 0xa00_0000 + n * 0x200;
        tree = tree.device(
            &std::format!("virtio_mmio@{base:x}"),
            "virtio,mmio",
            &[base, 0x200],
        );
    }
    tree
}

#[test]
fn a_virt_machine_has_uart_clock_gpio_and_distributor_for_the_host() {
    let distributor = (0x800_0000, 0x801_0000);
    let clock_and_gpio = |page| {
        [
            (0x901_0000, 0x901_0000 + page),
            (0x903_0000, 0x903_0000 + page),
        ]
    };
    for page in [K4, K16] {
        let [clock, gpio] = clock_and_gpio(page);
        let uart = (0x900_0000, 0x900_0000 + page);
        assert_eq!(
            of(virt(), page),
            [distributor, uart, clock, gpio],
            "{page:#x}"
        );
    }
    // 64 KiB: UART and clock are neighbours.
    let joined = [
        distributor,
        (0x900_0000, 0x902_0000),
        (0x903_0000, 0x904_0000),
    ];
    assert_eq!(of(virt(), K64), joined);
}

#[test]
fn what_masters_memory_or_has_no_name_is_absent() {
    for kind in [
        "arm,gic-v3-its",
        "arm,gic-600",
        "arm,smmu-v3",
        "arm,mmu-500",
        "arm,coresight-etm4x",
        "arm,coresight-cpu-debug",
        "arm,coresight-tmc",
        "qemu,fw-cfg-mmio",
        "pci-host-ecam-generic",
        "arm,pl330",
        "arm,pl080",
        "snps,dwmac",
        "arasan,sdhci-8.9a",
        "generic-ahci",
        "cfi-flash",
        "arm,armv7-timer-mem",
        "no,such-thing",
        "",
    ] {
        let tree = uart(Tree::with_ram()).device("x@a000000", kind, &[0xa00_0000, 0x1000]);
        assert_eq!(of(tree, K4), [UART], "{kind}");
    }
    // Registers without any name.
    let tree = uart(Tree::with_ram()).node("x", |t| t.numbers("reg", &[0xa00_0000, 0x1000]));
    assert_eq!(of(tree, K4), [UART]);
}

#[test]
fn a_known_fallback_is_no_excuse_for_an_unknown_first_name() {
    let with = |names: &[&str]| {
        let reg = [0x900_0000, 0x1000];
        of(
            Tree::with_ram().node("x", |t| t.compatible(names).numbers("reg", &reg)),
            K4,
        )
    };
    assert_eq!(with(&["arm,pl011", "arm,primecell"]), [UART]);
    assert_eq!(
        with(&["brcm,bcm2835-pl011", "arm,pl011", "arm,primecell"]),
        [UART]
    );
    assert_eq!(with(&["acme,uart-with-dma", "arm,pl011"]), []);
    assert_eq!(with(&["arm,primecell"]), []);
}

#[test]
fn a_page_that_others_share_is_not_mapped() {
    // A UART at 0x900_1000 with another device 4, 16 and 64 KiB on.
    for (neighbour, lost_at) in [
        (0x900_1ff0u64, K4),
        (0x900_2000, K16),
        (0x900_4000, K64),
        (0x900_fffc, K64),
        (0x901_0000, 0),
        (0x8ff_fffc, 0),
    ] {
        for page in [K4, K16, K64] {
            let tree = Tree::with_ram()
                .device("uart", "ns16550a", &[0x900_1000, 0x100])
                .device("x", "no,such-thing", &[neighbour, 4]);
            let base = 0x900_1000 & !(page - 1);
            let expected = if lost_at != 0 && page >= lost_at {
                std::vec![]
            } else {
                std::vec![(base, base + page)]
            };
            assert_eq!(of(tree, page), expected, "{neighbour:#x} in {page:#x}");
        }
    }
}

#[test]
fn a_region_loses_the_pages_that_others_share_alone() {
    let tree = Tree::with_ram()
        .device("uart", "ns16550a", &[0x900_0800, 0x4000])
        .device("x", "no,such-thing", &[0x900_2004, 4]);
    assert_eq!(
        of(tree, K4),
        [(0x900_0000, 0x900_2000), (0x900_3000, 0x900_5000)]
    );
}

#[test]
fn ram_and_reserved_memory_are_no_devices() {
    // RAM, RAM that is switched off, no-map, /memreserve/: all over a UART.
    let ram = |t: Tree| t.memory(0x900_0000, 0x10);
    let off = |t: Tree| {
        t.node("x", |t| {
            t.text("device_type", "memory")
                .text("status", "disabled")
                .numbers("reg", &[0x900_0ff0, 0x10])
        })
    };
    let no_map = |t: Tree| t.no_map(&[(0x900_0800, 0x10)]);
    assert_eq!(of(ram(uart(Tree::with_ram())), K4), []);
    assert_eq!(of(off(uart(Tree::with_ram())), K4), []);
    assert_eq!(of(no_map(uart(Tree::with_ram())), K4), []);
    let header = Tree::reserving(&[(0x900_0000, 8)]).memory(0x4000_0000, 0x1000_0000);
    assert_eq!(of(uart(header), K4), []);
}

#[test]
fn a_node_that_is_not_okay_is_no_device_and_takes_its_page_along() {
    let status = |own: &str, above: &str, page| {
        let tree = Tree::with_ram().node("bus", |t| {
            t.cells()
                .flag("ranges")
                .text("status", above)
                .node("uart", |t| {
                    t.compatible(&["arm,pl011"])
                        .text("status", own)
                        .numbers("reg", &[0x904_0000, 0x1000])
                })
        });
        of(tree.device("rtc", "arm,pl031", &[0x904_1000, 0x1000]), page)
    };
    assert_eq!(status("okay", "ok", K4), [(0x904_0000, 0x904_2000)]);
    for (own, above) in [
        ("disabled", "okay"),
        ("reserved", "okay"),
        ("fail", "okay"),
        ("fail-sss", "okay"),
        ("nonsense", "okay"),
        ("okay", "disabled"),
    ] {
        assert_eq!(
            status(own, above, K4),
            [(0x904_1000, 0x904_2000)],
            "{own} {above}"
        );
        assert_eq!(status(own, above, K64), [], "{own} {above}");
    }
}

#[test]
fn addresses_go_through_every_bus() {
    let inner = |t: Tree| {
        t.cells()
            // Two windows, one after the other below, apart above.
            .numbers("ranges", &[0, 0x1_0000, 0x1000, 0x1000, 0x8_0000, 0x1000])
            .device("a", "arm,pl011", &[0, 0x1000])
            .device("b", "arm,pl031", &[0x1000, 0x800])
            // Across both: in pieces for the CPU, so not the host's.
            .device("c", "arm,pl061", &[0x800, 0x1000])
            .device("d", "arm,sp804", &[0x2000, 0x1000])
    };
    let outer = |t: Tree| {
        t.cells()
            .numbers("ranges", &[0, 0x10_0000_0000, 0x10_0000])
            .node("inner", inner)
            .node("opaque", |t| {
                t.cells().device("e", "arm,pl011", &[0x2000, 0x1000])
            })
    };
    let without_c = |t: Tree| {
        t.cells()
            .numbers("ranges", &[0, 0x1_0000, 0x1000, 0x1000, 0x8_0000, 0x1000])
            .device("a", "arm,pl011", &[0, 0x1000])
            .device("b", "arm,pl031", &[0x1000, 0x800])
    };
    // The one in pieces takes the pages of both others.
    assert_eq!(of(Tree::with_ram().node("outer", outer), K4), []);
    let tree = Tree::with_ram().node("outer", |t| {
        t.cells()
            .numbers("ranges", &[0, 0x10_0000_0000, 0x10_0000])
            .node("inner", without_c)
    });
    let a = (0x10_0001_0000, 0x10_0001_1000);
    assert_eq!(of(tree, K4), [a, (0x10_0008_0000, 0x10_0008_1000)]);
}

#[test]
fn transports_are_the_hosts_where_nothing_is_behind_them() {
    let with = |bases: &[u64]| {
        let add = |t: Tree, base: &u64| {
            t.device(
                &std::format!("virtio_mmio@{base:x}"),
                "virtio,mmio",
                &[*base, 0x200],
            )
        };
        of(bases.iter().fold(Tree::with_ram(), add), K4)
    };
    let page = (0xa00_0000, 0xa00_1000);
    assert_eq!(with(&[0xa00_0200, 0xa00_0400]), [page]);
    assert_eq!(
        with(&[0xa00_0200, 0xa00_0000]),
        [],
        "a block device beside it"
    );
    assert_eq!(with(&[0xa00_1000]), [], "no transport");
    assert_eq!(with(&[0xb00_0000]), [], "nothing answers");
}

#[test]
fn a_uart_of_the_logs_own_is_not_the_hosts() {
    let tree = |bootargs: &str, second: &str| {
        let tree = Tree::with_ram()
            .node("chosen", |t| {
                t.text("bootargs", bootargs)
                    .text("stdout-path", "/pl011@9000000")
            })
            .node("aliases", |t| t.text("serial1", "/pl011@9040000"));
        uart(tree).node("pl011@9040000", |t| {
            t.compatible(&["arm,pl011"])
                .text("status", second)
                .numbers("reg", &[0x904_0000, 0x1000])
        })
    };
    let settled = |tree: Tree| settled(&tree.finish(), &steps(K4), &transports).unwrap();
    let own = settled(tree("undercroft.log=serial1", "okay"));
    assert_eq!(own.own_uart().map(|uart| uart.base()), Some(0x904_0000));
    assert_eq!(ranges(&own.devices), [UART]);
    let shared = settled(tree("", "okay"));
    assert_eq!(shared.own_uart(), None);
    assert_eq!(ranges(&shared.devices), [UART, (0x904_0000, 0x904_1000)]);
    // As on virt,secure=on: the second UART is another world's.
    let secure = settled(tree("undercroft.log=serial1", "disabled"));
    assert_eq!(secure.uart.map(|uart| uart.base()), Some(0x900_0000));
    assert_eq!(secure.own_uart(), None);
    assert_eq!(ranges(&secure.devices), [UART]);
}

#[test]
fn devices_beyond_the_hosts_stage_2_are_left_out() {
    let tree = || uart(Tree::with_ram()).device("x", "arm,pl031", &[1 << 48, 0x1000]);
    assert_eq!(of(tree(), K4), [UART]);
    let wide = Steps {
        end: 1 << 52,
        ..steps(K4)
    };
    let devices = settled(&tree().finish(), &wide, &transports)
        .unwrap()
        .devices;
    assert_eq!(ranges(&devices), [UART, (1 << 48, (1 << 48) + 0x1000)]);
}

#[test]
fn more_devices_than_a_set_holds_are_refused() {
    let mut tree = Tree::with_ram();
    for n in 0..300u64 {
        let base = 0x1000_0000 + n * 0x2_0000;
        tree = tree.device(
            &std::format!("serial@{base:x}"),
            "arm,pl011",
            &[base, 0x1000],
        );
    }
    let refused = settled(&tree.finish(), &steps(K4), &transports).unwrap_err();
    assert_eq!(refused, TreeError::ManyDevices);
}

#[test]
fn a_tree_nested_without_end_is_refused() {
    // The writer itself stops before that: a node without anything is put into
    // itself, and the header's words are set right.
    let tree = |depth: usize| {
        let mut data = Tree::with_ram().node("bus", |t| t).finish();
        let node = *b"\0\0\0\x01bus\0\0\0\0\x02";
        let at = data.windows(12).position(|part| part == node).unwrap();
        let (begin, end) = node.split_at(8);
        data.splice(
            at..at + 12,
            [begin.repeat(depth), end.repeat(depth)].concat(),
        );
        // Sizes of the whole and of the structure, and where the strings are.
        for word in [1, 3, 9] {
            let field = &mut data[4 * word..4 * word + 4];
            let old = u32::from_be_bytes(field.try_into().unwrap());
            let new = old + 12 * (depth as u32 - 1);
            field.copy_from_slice(&new.to_be_bytes());
        }
        data
    };
    assert!(settled(&tree(64), &steps(K4), &transports).is_ok());
    let refused = settled(&tree(65), &steps(K4), &transports).unwrap_err();
    assert_eq!(refused, TreeError::TooDeep);
}

#[test]
fn hundreds_of_others_are_all_minded() {
    let with = |last: u64| {
        let mut tree = uart(Tree::with_ram());
        for base in (0x1000_0000u64..).step_by(0x2_0000).take(400).chain([last]) {
            let name = std::format!("x@{base:x}");
            tree = tree.device(&name, "no,such-thing", &[base, 4]);
        }
        of(tree, K4)
    };
    assert_eq!(with(0x900_1000), [UART]);
    assert_eq!(with(0x900_0ffc), [], "it stands in the UART's page");
}

/// What a node of a random tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Uart,
    SwitchedOff,
    Unknown,
    Ram,
    NoMap,
}

const KIND: [Kind; 6] = [
    Kind::Uart,
    Kind::Uart,
    Kind::SwitchedOff,
    Kind::Unknown,
    Kind::Ram,
    Kind::NoMap,
];

proptest! {
    /// Page by page: one that a UART has a part of, and nothing else.
    #[test]
    fn every_page_is_the_hosts_where_uarts_alone_are(
        nodes in prop::collection::vec((prop::sample::select(&KIND[..]), 0u64..0x100, 1u64..0x20), 1..12),
        page in prop::sample::select(&[K4, K16, K64][..]),
    ) {
        const BASE: u64 = 0x900_0000;
        const UNIT: u64 = 0x400;
        let region = |base: u64, size: u64| {
            Region::new(BASE + base * UNIT, size * UNIT).unwrap()
        };
        let mut tree = Tree::with_ram();
        let mut kept = Vec::new();
        for (n, &(kind, base, size)) in nodes.iter().enumerate() {
            let region = region(base, size);
            let reg = [region.base(), region.size()];
            let name = std::format!("n{n}");
            tree = match kind {
                Kind::Uart => tree.device(&name, "arm,pl011", &reg),
                Kind::Unknown => tree.device(&name, "no,such-thing", &reg),
                Kind::SwitchedOff => tree.node(&name, |t| {
                    t.compatible(&["arm,pl011"]).text("status", "disabled").numbers("reg", &reg)
                }),
                Kind::Ram => tree.node(&name, |t| {
                    t.text("device_type", "memory").numbers("reg", &reg)
                }),
                Kind::NoMap => {
                    kept.push((reg[0], reg[1]));
                    tree
                }
            };
        }
        let tree = tree.no_map(&kept);
        let devices = settled(&tree.finish(), &steps(page), &transports).unwrap().devices;
        for at in (BASE..BASE + 0x200 * UNIT).step_by(page as usize) {
            let here = Region::new(at, page).unwrap();
            let mut kinds = nodes
                .iter()
                .filter(|(_, base, size)| region(*base, *size).overlaps(&here))
                .map(|node| node.0)
                .peekable();
            let expected = kinds.peek().is_some() && kinds.all(|kind| kind == Kind::Uart);
            prop_assert_eq!(devices.covers(&here), expected, "{:#x}", at);
            prop_assert_eq!(devices.overlaps(&here), expected, "{:#x}", at);
        }
    }
}

#[test]
fn a_name_that_is_no_text_is_an_unknown_one() {
    for (names, is_his) in [
        (&b"arm,pl011\0arm,primecell\0"[..], true),
        (b"arm,pl011\0\xff\0", false),
        (b"\xff\0arm,pl011\0", false),
        (b"arm,pl011\0\0", false),
        (b"arm,pl011", false),
        (b"", false),
    ] {
        let tree = Tree::with_ram().node("uart@9000000", |t| {
            t.bytes("compatible", names)
                .numbers("reg", &[0x900_0000, 0x1000])
        });
        let expected: &[_] = if is_his { &[UART] } else { &[] };
        assert_eq!(of(tree, K4), expected, "{names:x?}");
    }
}

/// What resets the machine past EL2 would leave guests' memory to who comes next.
#[test]
fn a_watchdog_is_not_the_hosts() {
    for kind in ["arm,sp805", "arm,sbsa-gwdt"] {
        let tree = uart(Tree::with_ram()).device("wdt@a000000", kind, &[0xa00_0000, 0x1000]);
        assert_eq!(of(tree, K4), [UART], "{kind}");
    }
}

/// The count says more regions than there are registers of.
#[test]
fn redistributor_regions_are_those_that_there_are() {
    let tree = Tree::with_ram()
        .node("gic", |t| {
            t.compatible(&["arm,gic-v3"])
                .bytes("#redistributor-regions", &[0xff; 4])
                .numbers("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])
        })
        .finish();
    let begun = std::time::Instant::now();
    let machine = super::super::builder::machine(&tree).expect("a machine");
    assert_eq!(machine.gic.redistributors.len(), 1);
    assert!(begun.elapsed().as_secs() < 60);
}

/// Where nothing names the console, it is the first UART that is not the log's.
#[test]
fn the_logs_own_uart_is_no_console() {
    let tree = Tree::with_ram()
        .node("chosen", |t| t.text("bootargs", "undercroft.log=serial1"))
        .node("aliases", |t| t.text("serial1", "/pl011@9040000"))
        .device("pl011@9040000", "arm,pl011", &[0x904_0000, 0x1000]);
    let machine = settled(&uart(tree).finish(), &steps(K4), &transports).expect("a machine");
    let own = machine.own_uart().map(|own| own.base());
    assert_eq!(own, Some(0x904_0000));
    assert_eq!(ranges(&machine.devices), [UART]);
}

//! Device trees of machines that differ where machines do, and damaged ones.

extern crate std;

use std::vec::Vec;

use proptest::prelude::*;
use vm_fdt::{FdtReserveEntry, FdtWriter};

use super::builder::{DTB, Tree, machine, ranges, settled, steps};
use super::*;
use crate::cpu::gic::Ppis;

/// How a board says what it has.
#[derive(Clone, Copy)]
struct Board {
    /// Devices stand under /soc, whose addresses begin at 0.
    soc: bool,
    /// Cells of an interrupt.
    interrupt_cells: usize,
    /// Cells of a CPU's `reg`.
    cpu_cells: u32,
    /// Cells of /chosen's initrd addresses.
    initrd_cells: usize,
    bootargs: &'static str,
}

const VIRT: Board = Board {
    soc: false,
    interrupt_cells: 3,
    cpu_cells: 1,
    initrd_cells: 2,
    bootargs: "undercroft.log=serial1",
};

const BASE: u64 = 0x10_0000_0000;

impl Board {
    fn tree(self) -> Vec<u8> {
        self.build().expect("vm-fdt takes what is well-formed")
    }

    fn build(self) -> Result<Vec<u8>, vm_fdt::Error> {
        let reserve = FdtReserveEntry::new(0x4010_0000, 0x1000)?;
        let mut w = FdtWriter::new_with_mem_reserv(&[reserve])?;
        let root = w.begin_node("")?;
        w.property_u32("#address-cells", 2)?;
        w.property_u32("#size-cells", 2)?;

        let node = w.begin_node("aliases")?;
        let path = |name| {
            if self.soc {
                std::format!("/soc/{name}")
            } else {
                std::format!("/{name}")
            }
        };
        w.property_string("serial0", &path("pl011@1000000"))?;
        w.property_string("serial1", &path("pl011@1040000"))?;
        w.end_node(node)?;

        let node = w.begin_node("chosen")?;
        w.property_string("bootargs", self.bootargs)?;
        w.property_string("stdout-path", "serial0:115200n8")?;
        for (name, value) in [
            ("linux,initrd-start", 0x4400_0000u64),
            ("linux,initrd-end", 0x4500_0000),
        ] {
            if self.initrd_cells == 2 {
                w.property_u64(name, value)?;
            } else {
                w.property_u32(name, value as u32)?;
            }
        }
        w.end_node(node)?;

        memory(&mut w)?;
        self.cpus(&mut w)?;

        let node = w.begin_node("psci")?;
        w.property_string("compatible", "arm,psci-1.0")?;
        w.property_string("method", "smc")?;
        w.end_node(node)?;
        let node = w.begin_node("timer")?;
        w.property_string("compatible", "arm,armv8-timer")?;
        let list = [(1, 13), (1, 14), (1, 11), (1, 10)];
        w.property_array_u32("interrupts", &self.interrupts(&list))?;
        w.end_node(node)?;

        self.devices(&mut w)?;
        w.end_node(root)?;
        w.finish()
    }

    fn interrupts(&self, list: &[(u32, u32)]) -> Vec<u32> {
        let cells = |&(kind, number)| {
            let mut cells = std::vec![kind, number, 4];
            cells.resize(self.interrupt_cells, 0);
            cells
        };
        list.iter().flat_map(cells).collect()
    }

    fn cpus(&self, w: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let node = w.begin_node("cpus")?;
        w.property_u32("#address-cells", self.cpu_cells)?;
        w.property_u32("#size-cells", 0)?;
        for mpidr in [0u32, 1, 0x100] {
            let cpu = w.begin_node(&std::format!("cpu@{mpidr:x}"))?;
            w.property_string("device_type", "cpu")?;
            if self.cpu_cells == 2 {
                w.property_u64("reg", u64::from(mpidr))?;
            } else {
                w.property_u32("reg", mpidr)?;
            }
            w.end_node(cpu)?;
        }
        w.end_node(node)
    }

    fn devices(&self, w: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
        let base = if self.soc { 0 } else { 0x800_0000 };
        let soc = if self.soc {
            let soc = w.begin_node("soc")?;
            w.property_u32("#address-cells", 2)?;
            w.property_u32("#size-cells", 2)?;
            w.property_array_u64("ranges", &[0, BASE, 0x1000_0000])?;
            Some(soc)
        } else {
            None
        };
        let node = w.begin_node("intc")?;
        w.property_string("compatible", "arm,gic-v3")?;
        w.property_array_u64("reg", &[base, 0x1_0000, base + 0xa_0000, 0xf6_0000])?;
        w.property_array_u32("interrupts", &self.interrupts(&[(1, 9)]))?;
        w.end_node(node)?;
        for offset in [0x100_0000, 0x104_0000u64] {
            let node = w.begin_node(&std::format!("pl011@{offset:x}"))?;
            w.property_string_list(
                "compatible",
                std::vec!["arm,pl011".into(), "arm,primecell".into()],
            )?;
            w.property_array_u64("reg", &[base + offset, 0x1000])?;
            w.end_node(node)?;
        }
        if let Some(soc) = soc {
            w.end_node(soc)?;
        }
        Ok(())
    }
}

fn memory(w: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    // Two nodes, out of order, and one that is switched off.
    for (at, status) in [
        (0x8_0000_0000u64, "okay"),
        (0x4000_0000, "okay"),
        (0x9_0000_0000, "disabled"),
    ] {
        let node = w.begin_node(&std::format!("memory@{at:x}"))?;
        w.property_string("device_type", "memory")?;
        w.property_string("status", status)?;
        w.property_array_u64("reg", &[at, 0x1000_0000])?;
        w.end_node(node)?;
    }

    let node = w.begin_node("reserved-memory")?;
    w.property_u32("#address-cells", 2)?;
    w.property_u32("#size-cells", 2)?;
    w.property_null("ranges")?;
    let child = w.begin_node("firmware@40200000")?;
    w.property_array_u64("reg", &[0x4020_0000, 0x2000])?;
    w.end_node(child)?;
    w.end_node(node)?;
    Ok(())
}

fn read(board: Board) -> Machine {
    let machine = machine(&board.tree()).unwrap();
    machine.check().unwrap();
    machine
}

fn bases(regions: &Regions) -> Vec<u64> {
    regions.iter().map(Region::base).collect()
}

#[test]
fn boards_that_say_it_differently_are_understood_alike() {
    for board in [
        VIRT,
        Board { soc: true, ..VIRT },
        Board {
            interrupt_cells: 4,
            ..VIRT
        },
        Board {
            cpu_cells: 2,
            initrd_cells: 1,
            ..VIRT
        },
    ] {
        let m = read(board);
        let base = if board.soc { BASE } else { 0x800_0000 };
        assert_eq!(
            bases(&m.memory),
            [0x4000_0000, 0x8_0000_0000],
            "the disabled node is none"
        );
        assert_eq!(bases(&m.reserved), [0x4010_0000, 0x4020_0000]);
        assert_eq!(m.initrd, Region::new(0x4400_0000, 0x100_0000));
        assert_eq!(m.pes[..], [0, 1, 0x100]);
        assert_eq!(m.gic.distributor.base(), base);
        assert_eq!(
            m.gic.redistributors[..],
            [Region::new(base + 0xa_0000, 0xf6_0000).unwrap()]
        );
        assert_eq!(m.uart.map(|u| u.base()), Some(base + 0x104_0000));
        assert_eq!(
            m.gic.ppi,
            Ppis {
                maintenance: 25,
                virtual_timer: 27,
                hyp_timer: 26
            }
        );
        assert_eq!(m.psci, Some(Conduit::Smc));
    }
}

#[test]
fn without_a_word_for_it_the_log_is_on_stdout() {
    let m = read(Board {
        bootargs: "quiet",
        ..VIRT
    });
    assert_eq!(m.uart.map(|u| u.base()), Some(0x900_0000));
}

#[test]
fn the_log_has_its_own_uart_or_the_hosts() {
    let machine = read(VIRT);
    let (log, console) = (machine.uart.unwrap(), machine.console.unwrap());
    assert_ne!(log, console);
    let uarts = machine.uarts();
    assert_eq!(uarts.log, Some((log.base(), Owner::El2)));
    assert_eq!(uarts.spare, Some(console.base()));
    let machine = read(Board {
        bootargs: "",
        ..VIRT
    });
    let uarts = machine.uarts();
    assert_eq!(uarts.log, Some((console.base(), Owner::Host)));
    assert_eq!(uarts.spare, None);
}

#[test]
fn settings_are_read_and_strangers_ignored() {
    let s = Settings::parse(
        "quiet undercroft.loglevel=debug undercroft.granule=16k undercroft.el2=52x48 undercroft.el2=9x9 undercroft.log=serial1 undercroft.x=y",
    );
    assert_eq!(s.level, LevelFilter::Debug);
    assert_eq!(s.granule, Some(Granule::K16));
    assert!(s.log_on_serial1);
    assert_eq!(s.el2_bits, Some((52, 48)));
    assert_eq!(Settings::parse("undercroft.granule=2k").granule, None);
    let widths = |words| {
        let s = Settings::parse(words);
        (s.mask.pa_52, s.mask.va_52, s.el2_bits)
    };
    for (words, expected) in [
        ("quiet", (false, false, None)),
        ("undercroft.pa=48", (true, false, None)),
        ("undercroft.va=48", (false, true, None)),
        ("undercroft.va=48 undercroft.pa=48", (true, true, None)),
        ("undercroft.pa=52 undercroft.va=52", (false, false, None)),
        ("undercroft.el2=48x48", (false, false, Some((48, 48)))),
        ("undercroft.el2=48x52", (false, false, Some((48, 52)))),
    ] {
        assert_eq!(widths(words), expected, "{words}");
    }
    let token = "00112233445566778899aabbccddeeff";
    let told = std::format!("quiet undercroft.end={token}");
    assert_eq!(Settings::parse(&told).end, Token::parse(token));
}

#[test]
fn ram_is_whole_granules_that_nothing_keeps() {
    // RAM from 4 KiB before 64 KiB on to 12 KiB behind, in two nodes that touch
    // where no granule begins.
    let tree = Tree::reserving(&[(0x4100_0000, 0x800)])
        .memory(0x4000_f000, 0x0800_0800)
        .memory(0x4800_f800, 0x0800_3800)
        .no_map(&[
            (0x4200_1234, 0x10),
            (0x4300_0000, 0x1_0000),
            (0x5000_0000, 0x1),
        ])
        .finish();
    for (page, expected) in [
        (
            0x1000,
            [
                (0x4000_f000, 0x4200_1000),
                (0x4200_2000, 0x4300_0000),
                (0x4301_0000, 0x5000_0000),
                (0x5000_1000, 0x5001_3000),
            ],
        ),
        (
            0x4000,
            [
                (0x4001_0000, 0x4200_0000),
                (0x4200_4000, 0x4300_0000),
                (0x4301_0000, 0x5000_0000),
                (0x5000_4000, 0x5001_0000),
            ],
        ),
    ] {
        let m = settled(&tree, &steps(page), &|_| None).unwrap();
        assert_eq!(ranges(&m.ram), expected, "{page:#x}");
        assert_eq!(bases(&m.reserved)[0], 0x4100_0000, "still RAM");
    }
    let m = settled(&tree, &steps(0x4000), &|_| None).unwrap();
    let withheld = [
        (0x4000_c000, 0x4001_0000),
        (0x4200_0000, 0x4200_4000),
        (0x4300_0000, 0x4301_0000),
        (0x5000_0000, 0x5000_4000),
        (0x5001_0000, 0x5001_4000),
    ];
    assert_eq!(ranges(&m.withheld), withheld);
    let m = settled(&tree, &steps(0x1_0000), &|_| None).unwrap();
    let expected = [
        (0x4001_0000, 0x4200_0000),
        (0x4201_0000, 0x4300_0000),
        (0x4301_0000, 0x5000_0000),
    ];
    assert_eq!(ranges(&m.ram), expected);
    // EL2's own granule may be the larger one.
    let apart = Steps {
        memory: 0x1_0000,
        ..steps(0x1000)
    };
    let m = settled(&tree, &apart, &|_| None).unwrap();
    assert_eq!(ranges(&m.ram), expected);
}

#[test]
fn what_is_reserved_without_ranges_is_found_and_what_is_off_is_not() {
    let child = |t: Tree, name: &str, base: u64, status: &str| {
        t.node(name, |t| {
            t.text("status", status)
                .numbers("reg", &[base, 0x1000])
                .flag("no-map")
        })
    };
    let tree = Tree::with_ram().node("reserved-memory", |t| {
        let t = child(t.cells(), "a", 0x4200_0000, "okay");
        child(t, "b", 0x4300_0000, "disabled")
    });
    let m = settled(&tree.finish(), &steps(0x1000), &|_| None).unwrap();
    let expected = [(0x4000_0000, 0x4200_0000), (0x4200_1000, 0x5000_0000)];
    assert_eq!(ranges(&m.ram), expected);
    assert_eq!(ranges(&m.reserved), [(0x4200_0000, 0x4200_1000)]);
}

#[test]
fn what_the_boot_loader_left_must_lie_in_ram() {
    let refused = |tree: Tree| settled(&tree.finish(), &steps(0x1000), &|_| None).err();
    let initrd = |start, end| {
        Tree::with_ram().node("chosen", |t| {
            t.numbers("linux,initrd-start", &[start])
                .numbers("linux,initrd-end", &[end])
        })
    };
    assert_eq!(refused(Tree::with_ram()), None);
    assert_eq!(refused(initrd(0x4400_0000, 0x4500_0123)), None);
    assert_eq!(
        refused(initrd(0x9400_0000, 0x9400_0000)),
        None,
        "there is none"
    );
    let outside = Some(TreeError::InitrdOutside);
    assert_eq!(refused(initrd(0x4f00_0000, 0x5000_0001)), outside);
    let reserved = initrd(0x4400_0000, 0x4500_0000).no_map(&[(0x44ff_ffff, 1)]);
    assert_eq!(refused(reserved), outside);
    let elsewhere = Tree::reserving(&[]).memory(0x8000_0000, 0x1000_0000);
    let outside = Some(TreeError::TreeOutside);
    assert_eq!(refused(elsewhere), outside);
    assert_eq!(refused(Tree::with_ram().no_map(&[(DTB, 8)])), outside);
}

#[test]
fn more_ranges_than_a_set_holds_are_refused() {
    let mut tree = Tree::with_ram();
    for n in 0..300 {
        tree = tree.memory(0x1_0000_0000 + n * 0x20_0000, 0x10_0000);
    }
    let refused = settled(&tree.finish(), &steps(0x1000), &|_| None).unwrap_err();
    assert_eq!(refused, TreeError::ManyRam);
    let many: Vec<_> = (0..250)
        .map(|n| (0x4000_0000 + n * 0x2000, 0x800))
        .collect();
    let m = settled(
        &Tree::with_ram().no_map(&many).finish(),
        &steps(0x1000),
        &|_| None,
    );
    assert_eq!(m.unwrap().ram.iter().count(), 250);
    let many: Vec<_> = (0..300)
        .map(|n| (0x4000_0000 + n * 0x2000, 0x800))
        .collect();
    let refused = settled(
        &Tree::with_ram().no_map(&many).finish(),
        &steps(0x1000),
        &|_| None,
    );
    assert_eq!(refused.err(), Some(TreeError::ManyReserved));
}

#[test]
fn redistributors_may_stand_further_apart() {
    let gic = |t: Tree| {
        t.compatible(&["arm,gic-v3"])
            .numbers("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0xf6_0000])
            .numbers("redistributor-stride", &[0x4_0000])
    };
    let tree = Tree::with_ram().node("intc", gic).finish();
    let m = machine(&tree).unwrap();
    assert_eq!(m.gic.stride, Some(0x4_0000));
    assert_eq!(read(VIRT).gic.stride, None);
}

proptest! {
    /// A damaged tree is refused or misread, never a panic.
    #[test]
    fn damage_is_survived(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24), cut in any::<prop::sample::Index>(), cuts in any::<bool>()) {
        let mut tree = VIRT.tree();
        for (index, byte) in changes {
            let at = index.index(tree.len());
            tree[at] = byte;
        }
        if cuts {
            tree.truncate(cut.index(tree.len()));
        }
        if let Ok(mut machine) = machine(&tree) {
            let _ = machine.check();
            let steps = Steps { memory: 0x1_0000, device: 0x1000, end: 1 << 48 };
            let _ = machine.settle(&tree, &steps, &|_| None);
        }
    }
}

#[test]
fn psci_is_found_by_what_it_is_called_and_must_be_called_by_smc() {
    let psci = |compatible: &'static [u8], method: &'static [u8]| {
        let tree = Tree::with_ram().node("firmware", |t| {
            t.node("psci", |t| {
                t.bytes("compatible", compatible).bytes("method", method)
            })
        });
        machine(&tree.finish()).expect("a machine").psci
    };
    for compatible in [&b"arm,psci-0.2\0"[..], b"arm,psci-1.0\0arm,psci\0"] {
        assert_eq!(psci(compatible, b"smc\0"), Some(Conduit::Smc));
        assert_eq!(psci(compatible, b"hvc\0"), Some(Conduit::Hvc));
        assert_eq!(psci(compatible, b"none\0"), None);
    }
    // The first counts, of those that are there.
    let nodes = Tree::with_ram()
        .node("off", |t| {
            t.bytes("compatible", b"arm,psci-1.0\0")
                .bytes("method", b"hvc\0")
                .bytes("status", b"disabled\0")
        })
        .node("psci", |t| {
            t.bytes("compatible", b"arm,psci-1.0\0")
                .bytes("method", b"smc\0")
        })
        .node("more", |t| {
            t.bytes("compatible", b"arm,psci-1.0\0")
                .bytes("method", b"hvc\0")
        });
    assert_eq!(
        machine(&nodes.finish()).expect("a machine").psci,
        Some(Conduit::Smc)
    );
    // The numbers of its functions are its own.
    assert_eq!(psci(b"arm,psci\0", b"smc\0"), None);
    for method in ["hvc", "none"] {
        let mut tree = VIRT.tree();
        let at = (tree.windows(4).position(|w| w == b"smc\0")).expect("it is there");
        tree[at..at + 3].copy_from_slice(&method.as_bytes()[..3]);
        let refused = machine(&tree).expect("a machine").check();
        assert!(matches!(refused, Err(TreeError::NoPsci)), "{refused:?}");
    }
}

#[test]
fn texts_that_are_none_are_as_if_not_there() {
    let tree = Tree::with_ram()
        .node("chosen", |t| {
            t.bytes("bootargs", b"undercroft.granule=64k \xff\0")
                .bytes("stdout-path", b"/pl011\xff\0")
        })
        .device("pl011@9000000", "arm,pl011", &[0x900_0000, 0x1000])
        .node("memory@50000000", |t| {
            t.bytes("device_type", b"memory\xff\0")
                .numbers("reg", &[0x5000_0000, 0x1000])
        })
        .node("psci", |t| {
            t.bytes("compatible", b"arm,psci-1.0\0")
                .bytes("method", b"\xff\0")
        });
    let machine = machine(&tree.finish()).expect("a machine");
    assert_eq!(machine.console.map(|uart| uart.base()), Some(0x900_0000));
    assert_eq!(machine.settings.granule, None);
    assert_eq!(machine.psci, None);
    assert_eq!(ranges(&machine.memory), [(0x4000_0000, 0x5000_0000)]);
}

/// What is read with the MMU off may be in a cache alone, and what is written then, a cache
/// may still have as it was: all of a tree is cleaned once before it is read, and once
/// more when it was mended.
#[test]
fn a_tree_is_cleaned_before_it_is_read_and_when_it_was_mended() {
    use arm64::recording::{self, Event};
    let tree = Tree::with_ram().node("node", |t| t).finish();
    let length = tree.len() as u64;
    let mut words = std::vec![0u64; tree.len().div_ceil(8)];
    for spoilt in [false, true] {
        let to = zerocopy::IntoBytes::as_mut_bytes(words.as_mut_slice());
        to[..tree.len()].copy_from_slice(&tree);
        let at = tree.windows(5).position(|window| window == b"node\0");
        if spoilt {
            to[at.expect("there")] = 0xff;
        }
        let pa = words.as_mut_ptr().expose_provenance() as u64;
        let done = recording::of(|| {
            // SAFETY: this test's memory, which nobody else has.
            let text = unsafe { bytes(pa) }.expect("a tree");
            assert!(devtree::open(text).is_ok());
        });
        let line = instr::dcache_line();
        let lines = (pa & !(line - 1)..pa + length).step_by(line as usize);
        for at in lines {
            let cleaned = Event::Instruction("dc civac", Some(at));
            let times = done.iter().filter(|event| **event == cleaned).count();
            let of_header = usize::from(at < pa + HEADER);
            assert_eq!(
                times,
                1 + of_header + usize::from(spoilt),
                "{at:#x} {spoilt}"
            );
        }
    }
}

/// The timer of a tree, its interrupts by this property.
fn timer(property: &str, numbers: &[u32], names: Option<&[u8]>) -> (u32, u32) {
    // Of three cells, behind a parent's where the property has them.
    let parent = usize::from(property == "interrupts-extended");
    let cells = |number| [9, 1, number, 4].into_iter().skip(1 - parent);
    let cells = numbers.iter().flat_map(|number| cells(*number));
    let value: Vec<u8> = cells.flat_map(u32::to_be_bytes).collect();
    let tree = Tree::with_ram().node("timer", |t| {
        let t = t.compatible(&["arm,armv8-timer"]).bytes(property, &value);
        match names {
            Some(names) => t.bytes("interrupt-names", names),
            None => t,
        }
    });
    let ppi = machine(&tree.finish()).expect("a machine").gic.ppi;
    (ppi.virtual_timer, ppi.hyp_timer)
}

#[test]
fn a_timers_interrupts_are_found_as_linux_finds_them() {
    // In the binding's order.
    assert_eq!(timer("interrupts", &[13, 14, 11, 10], None), (27, 26));
    // Renesas's, each with its parent.
    let five = [13, 14, 11, 10, 12];
    assert_eq!(timer("interrupts-extended", &five, None), (27, 26));
    // By name, where they have names.
    let names = b"phys\0virt\0hyp-phys\0hyp-virt\0";
    assert_eq!(
        timer("interrupts", &[14, 11, 10, 12], Some(names)),
        (27, 26)
    );
    assert_eq!(
        timer("interrupts", &[14, 11], Some(b"phys\0virt\0")),
        (0, 0)
    );
}

#[test]
fn a_stride_of_nothing_is_none() {
    let tree = Tree::with_ram().node("intc", |t| {
        t.compatible(&["arm,gic-v3"])
            .numbers("reg", &[0x800_0000, 0x1_0000, 0x80a_0000, 0x10_0000])
            .numbers("redistributor-stride", &[0])
    });
    let machine = machine(&tree.finish()).expect("a machine");
    assert_eq!(machine.gic.stride, None);
}

//! Device trees of machines, and of damaged ones.

use host_loader::platform::Platform;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

/// A machine with what boot loaders and boards put into a tree: four-cell
/// interrupts, a CPU that is off limits, memory that may not be mapped, a
/// console by alias with options, a log on serial1.
fn tree(log: &str) -> Vec<u8> {
    let write = || -> Result<Vec<u8>, vm_fdt::Error> {
        let mut fdt =
            FdtWriter::new_with_mem_reserv(&[vm_fdt::FdtReserveEntry::new(0x8800_0000, 0x2000)?])?;
        let root = fdt.begin_node("")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 2)?;
        let node = fdt.begin_node("aliases")?;
        fdt.property_string("serial0", "/soc/uart@9000000")?;
        fdt.property_string("serial1", "/soc/uart@9040000")?;
        fdt.end_node(node)?;
        let node = fdt.begin_node("chosen")?;
        fdt.property_string("stdout-path", "serial0:115200n8")?;
        fdt.property_string("bootargs", &format!("quiet undercroft.log={log}"))?;
        fdt.property_u32("linux,initrd-start", 0x9000_0000)?;
        fdt.property_u64("linux,initrd-end", 0x9000_1000)?;
        fdt.end_node(node)?;
        for (base, size) in [
            (0x8000_0000u64, 0x4000_0000u64),
            (0x8_8000_0000, 0x1000_0000),
        ] {
            let node = fdt.begin_node(&format!("memory@{base:x}"))?;
            fdt.property_string("device_type", "memory")?;
            fdt.property_array_u64("reg", &[base, size])?;
            fdt.end_node(node)?;
        }
        reserved(&mut fdt)?;
        clocks(&mut fdt)?;
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 2)?;
        fdt.property_u32("#size-cells", 0)?;
        for (mpidr, status) in [(0u64, "okay"), (0x100, "disabled"), (0x1_0000_0200, "okay")] {
            let node = fdt.begin_node(&format!("cpu@{mpidr:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_string("status", status)?;
            fdt.property_u64("reg", mpidr)?;
            fdt.end_node(node)?;
        }
        fdt.end_node(cpus)?;
        let node = fdt.begin_node("timer")?;
        fdt.property_string("compatible", "arm,armv8-timer")?;
        fdt.property_array_u32("interrupts", &[1, 13, 4, 0, 1, 12, 4, 0, 1, 10, 4, 0])?;
        fdt.end_node(node)?;
        let soc = fdt.begin_node("soc")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 1)?;
        // Two windows, the second for what no driver here may find.
        fdt.property_array_u32(
            "ranges",
            &[0x800_0000, 0, 0x1800_0000, 0x200_0000, 0, 1, 0, 0x1000],
        )?;
        for (base, spi) in [(0x904_0000u32, 8u32), (0x900_0000, 1), (0xc00_0000, 2)] {
            let node = fdt.begin_node(&format!("uart@{base:x}"))?;
            fdt.property_string("compatible", "arm,pl011")?;
            fdt.property_array_u32("reg", &[base, 0x1000])?;
            fdt.property_array_u32("interrupts", &[0, spi, 4, 0])?;
            fdt.end_node(node)?;
        }
        let node = fdt.begin_node("gic@8000000")?;
        fdt.property_string("compatible", "arm,gic-v3")?;
        fdt.property_u32("#interrupt-cells", 4)?;
        fdt.property_u32("#redistributor-regions", 2)?;
        fdt.property_array_u32(
            "reg",
            &[
                0x800_0000, 0x1_0000, 0x80a_0000, 0x2_0000, 0x80e_0000, 0x2_0000, 0x1000, 0x1000,
            ],
        )?;
        fdt.end_node(node)?;
        fdt.end_node(soc)?;
        fdt.end_node(root)?;
        fdt.finish()
    };
    write().unwrap()
}

/// Memory that may not be mapped, and a log.
fn reserved(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let node = fdt.begin_node("secure@a0000000")?;
    fdt.property_array_u64("reg", &[0xa000_0000, 0x10_0000])?;
    fdt.property_null("no-map")?;
    fdt.end_node(node)?;
    let node = fdt.begin_node("log@a1000000")?;
    fdt.property_array_u64("reg", &[0xa100_0000, 0x1000])?;
    fdt.end_node(node)?;
    fdt.end_node(reserved)
}

/// Two clocks of the day: one that goes by what somebody starts and then by what runs, one
/// by what runs alone.
fn clocks(fdt: &mut FdtWriter) -> Result<(), vm_fdt::Error> {
    for (handle, kind) in [(5, "vendor,gate"), (6, "fixed-clock")] {
        let node = fdt.begin_node(&format!("clock-{handle}"))?;
        fdt.property_string("compatible", kind)?;
        fdt.property_phandle(handle)?;
        fdt.end_node(node)?;
    }
    for (base, by) in [(0x1c17_0000u64, &[5u32, 6][..]), (0x1c18_0000, &[6])] {
        let node = fdt.begin_node(&format!("rtc@{base:x}"))?;
        fdt.property_string("compatible", "arm,pl031")?;
        fdt.property_array_u64("reg", &[base, 0x1000])?;
        fdt.property_array_u32("clocks", by)?;
        fdt.end_node(node)?;
    }
    Ok(())
}

#[test]
fn a_board_is_read_as_it_is() {
    let platform = Platform::parse(&tree("serial1")).unwrap();
    assert_eq!(
        platform.memory,
        [0x8000_0000..0xc000_0000, 0x8_8000_0000..0x8_9000_0000]
    );
    assert_eq!(
        platform.reserved,
        [
            0x8800_0000..0x8800_2000,
            0xa000_0000..0xa010_0000,
            0xa100_0000..0xa100_1000
        ]
    );
    assert_eq!(platform.no_map, vec![0xa000_0000..0xa010_0000; 1]);
    assert_eq!(platform.cpus, [0, 0x1_0000_0200]);
    assert_eq!(platform.initrd, Some(0x9000_0000..0x9000_1000));
    assert_eq!(
        (platform.timer_intid, platform.virtual_timer_intid),
        (28, 26)
    );
    assert_eq!(platform.gic.distributor, 0x1800_0000..0x1801_0000);
    assert_eq!(
        platform.gic.redistributors,
        [0x180a_0000..0x180c_0000, 0x180e_0000..0x1810_0000]
    );
    let console = platform.console.unwrap();
    assert_eq!((console.base, console.intid), (0x1900_0000, Some(33)));
    let log = platform.log.unwrap();
    assert_eq!((log.base, log.intid), (0x1904_0000, Some(40)));
}

#[test]
fn without_the_word_the_log_has_no_uart_of_its_own() {
    assert_eq!(Platform::parse(&tree("serial0")).unwrap().log, None);
}

/// One that nobody has started may hang whoever reads it.
#[test]
fn a_clock_that_somebody_has_to_start_is_passed_over() {
    let mut bytes = tree("serial1");
    let platform = Platform::parse(&bytes).unwrap();
    assert_eq!(platform.clock, Some(0x1c18_0000));
    let kind = b"fixed-clock";
    let at = bytes.windows(kind.len()).position(|part| part == kind);
    bytes[at.expect("it is there")] = b'm';
    assert_eq!(Platform::parse(&bytes).unwrap().clock, None);
}

/// Cells of an interrupt: 0 and 1 are SPIs and PPIs, 2 and 3 those of GICv3.1.
#[test]
fn an_interrupt_has_the_number_of_its_kind() {
    let cells = |kind: u32, number: u32| [kind, number, 4, 0].map(u32::to_be_bytes).concat();
    let of_log = cells(0, 8);
    for (kind, number, intid) in [
        (0, 987, Some(1019)),
        (0, 988, None),
        (1, 15, Some(31)),
        (1, 16, None),
        (2, 0, Some(4096)),
        (2, 1023, Some(5119)),
        (2, 1024, None),
        (3, 0, Some(1056)),
        (3, 63, Some(1119)),
        (3, 64, None),
        (4, 0, None),
        (0, u32::MAX, None),
    ] {
        let mut bytes = tree("serial1");
        let at = bytes.windows(16).position(|part| part == of_log);
        let at = at.expect("it is there");
        bytes[at..at + 16].copy_from_slice(&cells(kind, number));
        let log = Platform::parse(&bytes).unwrap().log.unwrap();
        assert_eq!(log.intid, intid, "{kind} {number}");
    }
}

#[test]
fn texts_that_are_none_are_as_if_not_there() {
    let mut bytes = tree("serial1");
    for text in [&b"serial0:115200n8"[..], b"quiet undercroft"] {
        let at = bytes.windows(text.len()).position(|part| part == text);
        bytes[at.expect("it is there")] = 0xff;
    }
    let platform = Platform::parse(&bytes).unwrap();
    assert_eq!((&platform.bootargs[..], &platform.log), ("", &None));
    // The first UART, as of a tree without a word.
    assert_eq!(platform.console.map(|uart| uart.base), Some(0x1904_0000));
}

proptest! {
    #[test]
    fn damage_is_a_sentence_or_a_platform(
        flips in prop::collection::vec((0usize..4096, any::<u8>()), 1..8),
        cut in prop::option::of(0usize..4096),
    ) {
        let mut bytes = tree("serial1");
        for (at, byte) in flips {
            let n = bytes.len();
            bytes[at % n] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut);
        }
        if let Err(error) = Platform::parse(&bytes) {
            let sentence = error.to_string();
            prop_assert!(sentence.contains("device tree"), "{}", sentence);
        }
    }
}

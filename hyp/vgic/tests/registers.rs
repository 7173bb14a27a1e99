//! The register map, register by register, as a guest sees it.
#![allow(missing_docs)]

use proptest::prelude::*;
use vgic::{
    Affinity, At, Distributor, Error, Frame, ListRegisters, Read, Redistributor, SPIS, SgiRegister,
    VcpuSet, Vgic, hcr, lr, vmcr,
};

struct Set {
    redists: Vec<Redistributor>,
    kicks: Vec<usize>,
}

impl VcpuSet for Set {
    fn count(&self) -> usize {
        self.redists.len()
    }

    fn redistributor(&mut self, vcpu: usize) -> Option<&mut Redistributor> {
        self.redists.get_mut(vcpu)
    }

    fn kick(&mut self, vcpu: usize) {
        self.kicks.push(vcpu);
    }
}

struct Guest {
    dist: Distributor,
    set: Set,
}

const ALL_ON: u64 = 0xff << 24 | vmcr::VENG0 | vmcr::VENG1;

fn at(offset: u64, size: usize) -> At {
    At { offset, size }
}

const GICD: Frame = Frame::Distributor;

impl Guest {
    /// vCPUs at Aff0 0, 1, … of cluster 0.5.1.
    fn new(vcpus: u8) -> Self {
        let at = |n| Redistributor::new(Affinity::new(0, 5, 1, n));
        Self {
            dist: Distributor::new(),
            set: Set {
                redists: (0..vcpus).map(at).collect(),
                kicks: Vec::new(),
            },
        }
    }

    fn vgic(&mut self) -> Vgic<'_, impl VcpuSet> {
        Vgic::new(&mut self.dist, &mut self.set)
    }

    fn read(&mut self, frame: Frame, offset: u64, size: usize) -> u64 {
        match self.vgic().read(0, frame, At { offset, size }) {
            Read::Value(value) => value,
            Read::Again => panic!("no list register holds anything"),
        }
    }

    fn write(&mut self, frame: Frame, offset: u64, size: usize, value: u64) {
        self.vgic().write(0, frame, At { offset, size }, value);
    }

    /// Enters vCPU `n`: the list registers it gets.
    fn fill(&mut self, n: usize, count: usize) -> ListRegisters {
        let mut lrs = ListRegisters::new(count);
        self.vgic().fill(n, ALL_ON, &mut lrs);
        lrs
    }

    fn kicked(&mut self) -> Vec<usize> {
        let mut kicks = std::mem::take(&mut self.set.kicks);
        kicks.sort_unstable();
        kicks.dedup();
        kicks
    }

    /// Groups on, and this SPI in Group 1, on, and routed to vCPU `n`.
    fn with_spi(vcpus: u8, spi: u32, n: u8) -> Self {
        let mut guest = Self::new(vcpus);
        guest.write(GICD, 0, 4, 3);
        let word = u64::from(spi / 32 * 4);
        guest.write(GICD, 0x080 + word, 4, u32::MAX.into());
        guest.write(GICD, 0x100 + word, 4, 1 << (spi % 32));
        let route = Affinity::new(0, 5, 1, n).to_mpidr();
        guest.write(GICD, 0x6000 + 8 * u64::from(spi), 8, route);
        guest.kicked();
        guest
    }
}

#[test]
fn gicd_ctlr_has_two_enables_and_fixed_are_and_ds() {
    let mut guest = Guest::new(2);
    assert_eq!(guest.read(GICD, 0, 4), 0x50);
    guest.write(GICD, 0, 4, u64::MAX);
    assert_eq!(guest.read(GICD, 0, 4), 0x53);
    assert_eq!(guest.kicked(), [0, 1]);
    guest.write(GICD, 0, 4, 0x10);
    assert_eq!(guest.read(GICD, 0, 4), 0x50);
}

#[test]
fn gicd_typer_tells_what_there_is() {
    let mut guest = Guest::new(2);
    let typer = guest.read(GICD, 4, 4);
    assert_eq!(32 * ((typer & 0x1f) + 1), 32 + SPIS as u64, "ITLinesNumber");
    assert_eq!(typer >> 5 & 7, 0, "CPUNumber: no legacy PEs");
    assert_eq!(typer >> 8 & 1, 0, "no extended SPIs");
    assert_eq!(typer >> 10 & 1, 0, "one Security state");
    assert_eq!(typer >> 16 & 3, 0, "no message-based SPIs, no LPIs");
    assert_eq!(typer >> 19 & 0x1f, 9, "IDbits");
    assert_eq!(typer >> 24 & 1, 1, "A3V");
    assert_eq!(typer >> 25 & 1, 0, "1-of-N is there");
    guest.write(GICD, 4, 4, 0);
    assert_eq!(guest.read(GICD, 4, 4), typer);
    assert_eq!(guest.read(GICD, 0x0c, 4), 0, "TYPER2");
    assert_eq!(guest.read(GICD, 0x10, 4), 0, "STATUSR");
}

#[test]
fn identification_says_gicv3_in_every_frame() {
    let mut guest = Guest::new(1);
    for frame in [GICD, Frame::Redistributor(0)] {
        assert_eq!(guest.read(frame, 0xffe8, 4) & 0xf0, 0x30);
        assert_eq!(guest.read(frame, 0xfff0, 4), 0x0d);
        assert_eq!(guest.read(frame, 0xfff4, 4), 0xf0);
        assert_eq!(guest.read(frame, 0xfff8, 4), 0x05);
        assert_eq!(guest.read(frame, 0xfffc, 4), 0xb1);
    }
    assert_eq!(
        guest.read(GICD, 8, 4),
        guest.read(Frame::Redistributor(0), 4, 4)
    );
    assert_eq!(guest.read(GICD, 8, 4) & 0xfff, 0x43b);
}

#[test]
fn words_0_of_the_distributor_are_not_there() {
    let mut guest = Guest::new(1);
    for register in [
        0x080, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380, 0x400, 0x41c, 0xc00, 0xc04,
    ] {
        guest.write(GICD, register, 4, u32::MAX.into());
        assert_eq!(guest.read(GICD, register, 4), 0, "{register:#x}");
    }
    // The SGIs and PPIs noticed nothing.
    assert_eq!(guest.read(Frame::Sgi(0), 0x200, 4), 0);
    assert_eq!(guest.read(Frame::Sgi(0), 0x100, 4), 0xffff);
}

#[test]
fn words_after_the_last_spi_are_not_there() {
    let mut guest = Guest::new(1);
    let words = (SPIS / 32 + 1) as u64 * 4;
    for register in [0x080, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380] {
        guest.write(GICD, register + words, 4, u32::MAX.into());
        assert_eq!(guest.read(GICD, register + words, 4), 0, "{register:#x}");
        guest.write(GICD, register + 0x7c, 4, u32::MAX.into());
        assert_eq!(guest.read(GICD, register + 0x7c, 4), 0, "{register:#x}");
    }
    let end = 32 + SPIS as u64;
    guest.write(GICD, 0x400 + end, 4, u32::MAX.into());
    assert_eq!(guest.read(GICD, 0x400 + end, 4), 0);
    guest.write(GICD, 0xc00 + end / 4, 4, u32::MAX.into());
    assert_eq!(guest.read(GICD, 0xc00 + end / 4, 4), 0);
    guest.write(GICD, 0x6000 + 8 * end, 8, u64::MAX);
    assert_eq!(guest.read(GICD, 0x6000 + 8 * end, 8), 0);
}

#[test]
fn set_and_clear_registers_share_their_bits() {
    for (frame, offset) in [(GICD, 8), (Frame::Sgi(0), 0)] {
        let mut guest = Guest::new(1);
        for (set, clear) in [(0x100, 0x180), (0x200, 0x280), (0x300, 0x380)] {
            let (set, clear) = (set + offset, clear + offset);
            guest.write(frame, clear, 4, u32::MAX.into());
            assert_eq!(guest.read(frame, set, 4), 0);
            guest.write(frame, set, 4, 0xf000_000f);
            guest.write(frame, set, 4, 0x10);
            assert_eq!(guest.read(frame, set, 4), 0xf000_001f);
            assert_eq!(guest.read(frame, clear, 4), 0xf000_001f);
            guest.write(frame, clear, 4, 0x8000_0001);
            assert_eq!(guest.read(frame, set, 4), 0x7000_001e);
        }
    }
}

#[test]
fn priorities_are_bytes_of_five_bits() {
    for (frame, first) in [(GICD, 0x400 + 64), (Frame::Sgi(0), 0x400)] {
        let mut guest = Guest::new(1);
        guest.write(frame, first, 4, 0x0123_45ff);
        assert_eq!(guest.read(frame, first, 4), 0x0020_40f8);
        guest.write(frame, first + 2, 1, 0xa7);
        assert_eq!(guest.read(frame, first, 4), 0x00a0_40f8);
        assert_eq!(guest.read(frame, first + 2, 1), 0xa0);
        assert_eq!(guest.read(frame, first + 4, 4), 0);
        // No halfword or doubleword accesses, none unaligned.
        guest.write(frame, first, 2, 0xffff);
        guest.write(frame, first, 8, u64::MAX);
        guest.write(frame, first + 1, 4, u32::MAX.into());
        assert_eq!(guest.read(frame, first, 4), 0x00a0_40f8);
        assert_eq!(guest.read(frame, first, 2), 0);
        assert_eq!(guest.read(frame, first, 8), 0);
        assert_eq!(guest.read(frame, first + 1, 4), 0);
    }
}

#[test]
fn configuration_is_fixed_for_sgis_and_linked_ppis() {
    let mut guest = Guest::new(1);
    guest.set.redists[0].link(27, 27).unwrap();
    let sgi = Frame::Sgi(0);
    assert_eq!(guest.read(sgi, 0xc00, 4), 0xaaaa_aaaa);
    guest.write(sgi, 0xc00, 4, 0);
    assert_eq!(guest.read(sgi, 0xc00, 4), 0xaaaa_aaaa);
    guest.write(sgi, 0xc04, 4, u32::MAX.into());
    assert_eq!(
        guest.read(sgi, 0xc04, 4),
        0xaaaa_aaaa & !(2 << (2 * (27 - 16)))
    );
    guest.write(GICD, 0xc10, 4, u32::MAX.into());
    assert_eq!(guest.read(GICD, 0xc10, 4), 0xaaaa_aaaa);
    assert_eq!(guest.read(GICD, 0xc0c, 4), 0);
}

#[test]
fn itargetsr_sgir_and_security_registers_are_not_there() {
    let mut guest = Guest::new(1);
    for offset in (0x800..0xc00)
        .step_by(4)
        .chain([0xd04, 0xe08, 0xf00, 0xf10, 0xf20, 0x40])
    {
        guest.write(GICD, offset, 4, u32::MAX.into());
        assert_eq!(guest.read(GICD, offset, 4), 0, "{offset:#x}");
    }
    assert_eq!(guest.read(Frame::Sgi(0), 0x200, 4), 0, "SGIR sends nothing");
}

#[test]
fn irouter_is_64_bits_and_two_halves() {
    let mut guest = Guest::new(1);
    let at = 0x6000 + 8 * 40;
    guest.write(GICD, at, 8, u64::MAX);
    assert_eq!(guest.read(GICD, at, 8), 0xff_80ff_ffff);
    assert_eq!(guest.read(GICD, at, 4), 0x80ff_ffff);
    assert_eq!(guest.read(GICD, at + 4, 4), 0xff);
    guest.write(GICD, at, 4, 0x0001_0203);
    assert_eq!(guest.read(GICD, at, 8), 0xff_0001_0203);
    guest.write(GICD, at + 4, 4, 7);
    assert_eq!(guest.read(GICD, at, 8), 0x07_0001_0203);
    guest.write(GICD, at + 4, 8, 0);
    guest.write(GICD, at + 1, 1, 0xff);
    guest.write(GICD, at + 2, 2, 0xffff);
    assert_eq!(guest.read(GICD, at, 8), 0x07_0001_0203);
    assert_eq!(guest.read(GICD, at + 8, 8), 0, "its neighbour");
    // SGIs and PPIs have no route.
    guest.write(GICD, 0x6000 + 8 * 31, 8, u64::MAX);
    assert_eq!(guest.read(GICD, 0x6000 + 8 * 31, 8), 0);
}

#[test]
fn gicr_typer_names_the_vcpu() {
    let mut guest = Guest::new(3);
    for n in 0..3 {
        let frame = Frame::Redistributor(n);
        let typer = guest.read(frame, 8, 8);
        assert_eq!(typer >> 32, 0x0005_0100 | n as u64, "affinity");
        assert_eq!(typer >> 8 & 0xffff, n as u64, "Processor_Number");
        assert_eq!(typer >> 4 & 1, u64::from(n == 2), "Last");
        assert_eq!(typer & 0xf, 0, "no LPIs");
        assert_eq!(guest.read(frame, 8, 4), typer & 0xffff_ffff);
        assert_eq!(guest.read(frame, 12, 4), typer >> 32);
        assert_eq!(guest.read(frame, 12, 8), 0, "unaligned");
    }
    assert_eq!(guest.read(Frame::Redistributor(3), 8, 8), 0);
    assert_eq!(guest.read(Frame::Redistributor(usize::MAX), 8, 8), 0);
    assert_eq!(guest.read(Frame::Sgi(usize::MAX), 0x100, 4), 0);
}

#[test]
fn gicr_waker_answers_at_once() {
    let mut guest = Guest::new(1);
    let frame = Frame::Redistributor(0);
    assert_eq!(guest.read(frame, 0x14, 4), 6);
    guest.write(frame, 0x14, 4, 0);
    assert_eq!(guest.read(frame, 0x14, 4), 0);
    guest.write(frame, 0x14, 4, u32::MAX.into());
    assert_eq!(guest.read(frame, 0x14, 4), 6);
}

#[test]
fn no_lpis() {
    let mut guest = Guest::new(1);
    let frame = Frame::Redistributor(0);
    for (offset, size) in [
        (0, 4),
        (0x40, 8),
        (0x70, 8),
        (0x78, 8),
        (0xa0, 8),
        (0xc0, 4),
    ] {
        guest.write(frame, offset, size, u64::MAX);
        assert_eq!(guest.read(frame, offset, size), 0, "{offset:#x}");
    }
}

#[test]
fn redistributor_frames_alternate() {
    assert_eq!(
        Frame::of_redistributors(0x14),
        (Frame::Redistributor(0), 0x14)
    );
    assert_eq!(Frame::of_redistributors(0x1_0100), (Frame::Sgi(0), 0x100));
    assert_eq!(
        Frame::of_redistributors(0x4_ffe8),
        (Frame::Redistributor(2), 0xffe8)
    );
    assert_eq!(Frame::of_redistributors(0x7_0c04), (Frame::Sgi(3), 0xc04));
}

#[test]
fn sgis_go_where_the_register_says() {
    let mut guest = Guest::new(4);
    let cluster = 5 << 32 | 1 << 16;
    let pending = |guest: &mut Guest| {
        (0..4)
            .map(|n| {
                let value = guest.read(Frame::Sgi(n), 0x200, 4);
                guest.write(Frame::Sgi(n), 0x280, 4, u64::MAX);
                value
            })
            .collect::<Vec<_>>()
    };
    for (value, expected) in [
        (cluster | 7 << 24 | 0b1010, [0, 0x80, 0, 0x80]),
        (cluster | 15 << 24 | 0xffff, [0x8000; 4]),
        // RS is RES0. Another Aff1, Aff2, Aff3.
        (cluster | 1 << 44 | 0xf, [1; 4]),
        (cluster | 2 << 16 | 0xf, [0; 4]),
        (cluster | 1 << 33 | 0xf, [0; 4]),
        (cluster | 1 << 48 | 0xf, [0; 4]),
        // All but the sender, whatever the rest says.
        (1 << 40 | 2 << 24, [4, 4, 0, 4]),
    ] {
        guest.vgic().send_sgi(2, SgiRegister::Sgi1, value);
        assert_eq!(pending(&mut guest), expected, "{value:#x}");
    }
    // Group 1 is for ICC_SGI1R_EL1 alone.
    guest.write(Frame::Sgi(0), 0x080, 4, 1 << 3);
    for register in [SgiRegister::Sgi0, SgiRegister::Asgi1] {
        guest.vgic().send_sgi(2, register, cluster | 3 << 24 | 0b11);
        assert_eq!(pending(&mut guest), [0, 8, 0, 0]);
    }
    guest
        .vgic()
        .send_sgi(2, SgiRegister::Sgi1, cluster | 3 << 24 | 0b11);
    assert_eq!(pending(&mut guest), [8, 8, 0, 0]);
}

/// A number that a guest or a host names is masked where it indexes, as a CPU may
/// have guessed that it is one (CVE-2017-5753).
#[test]
fn a_number_from_outside_is_masked_before_it_indexes() {
    use arm64::recording::{Event, of};
    let masked = |f: &mut dyn FnMut(&mut Guest)| {
        let mut guest = Guest::new(1);
        let events = of(|| f(&mut guest));
        events.contains(&Event::Instruction("csdb", None))
    };
    assert!(masked(&mut |g| {
        let _ = g.vgic().set_spi(40, true);
    }));
    assert!(masked(&mut |g| g.vgic().deactivate(
        0,
        40,
        ALL_ON | vmcr::VEOIM
    )));
    // Words of all interrupts, and a route.
    for (offset, size) in [
        (0x104, 4),
        (0x404 + 0x20, 4),
        (0xc08, 4),
        (0x6000 + 8 * 40, 8),
    ] {
        assert!(
            masked(&mut |g| {
                let _ = g.vgic().read(0, GICD, at(offset, size));
            }),
            "{offset:#x}"
        );
        assert!(
            masked(&mut |g| g.vgic().write(0, GICD, at(offset, size), 0)),
            "{offset:#x}"
        );
    }
    assert!(
        !masked(&mut |g| {
            let _ = g.vgic().read(0, GICD, at(0, 4));
        }),
        "no index"
    );
}

#[test]
fn lines_that_are_not_there_are_refused() {
    let mut guest = Guest::new(1);
    let mut vgic = guest.vgic();
    for intid in [0, 31, 32 + SPIS as u32, 1020, 8192, u32::MAX] {
        assert_eq!(
            vgic.set_spi(intid, true),
            Err(Error::NoSuchInterrupt(intid))
        );
    }
    for intid in [0, 15, 32, u32::MAX] {
        assert_eq!(
            vgic.set_ppi(0, intid, true),
            Err(Error::NoSuchInterrupt(intid))
        );
    }
    assert_eq!(vgic.set_ppi(1, 16, true), Err(Error::NoSuchVcpu(1)));
    assert_eq!(
        guest.set.redists[0].link(15, 27),
        Err(Error::NoSuchInterrupt(15))
    );
    assert_eq!(
        guest.set.redists[0].link(27, 32),
        Err(Error::NoSuchInterrupt(32))
    );
    for error in [Error::NoSuchInterrupt(9), Error::NoSuchVcpu(9)] {
        assert!(error.to_string().contains('9'));
    }
}

#[test]
fn an_spi_kicks_the_vcpu_it_is_routed_to_and_no_other() {
    let mut guest = Guest::with_spi(4, 50, 2);
    guest.vgic().set_spi(50, true).unwrap();
    assert_eq!(guest.kicked(), [2]);
    let lrs = guest.fill(2, 4);
    assert_eq!(lrs.used(), 1);
    assert_eq!(lrs.lr[0], lr::PENDING | lr::GROUP1 | lr::EOI | 50);
    // It is the other's to give up before it can go anywhere.
    let route = Affinity::new(0, 5, 1, 3).to_mpidr();
    guest.write(GICD, 0x6000 + 8 * 50, 8, route);
    assert_eq!(guest.kicked(), [2]);
    assert_eq!(guest.fill(3, 4).used(), 0);
    let _ = guest.vgic().sync(2, ALL_ON, &lrs);
    assert_eq!(guest.kicked(), [3]);
    assert_eq!(guest.fill(2, 4).used(), 0);
    assert_eq!(guest.fill(3, 4).used(), 1);
}

#[test]
fn whatever_ends_a_pending_interrupt_kicks_who_holds_it() {
    type End = fn(&mut Guest);
    let cases: [(&str, End); 6] = [
        ("ICENABLER", |g| g.write(GICD, 0x180 + 4, 4, 1 << 18)),
        ("ICPENDR", |g| g.write(GICD, 0x280 + 4, 4, 1 << 18)),
        ("IPRIORITYR", |g| g.write(GICD, 0x400 + 50, 1, 0x80)),
        ("IGROUPR", |g| g.write(GICD, 0x080 + 4, 4, 0)),
        ("GICD_CTLR", |g| g.write(GICD, 0, 4, 0)),
        ("the line", |g| g.vgic().set_spi(50, false).unwrap()),
    ];
    for (what, end) in cases {
        let mut guest = Guest::with_spi(2, 50, 1);
        guest.vgic().set_spi(50, true).unwrap();
        let lrs = guest.fill(1, 4);
        assert!(!guest.set.redists[1].needs_fill());
        guest.kicked();
        end(&mut guest);
        assert!(guest.kicked().contains(&1), "{what}");
        assert!(guest.set.redists[1].needs_fill(), "{what}");
        let _ = guest.vgic().sync(1, ALL_ON, &lrs);
        let value = guest.fill(1, 4).lr[0];
        match what {
            "IPRIORITYR" => assert_eq!(lr::priority(value), 0x80),
            "IGROUPR" => assert_eq!(value & lr::GROUP1, 0),
            // A level that is high is pending, whatever ICPENDR says.
            "ICPENDR" => assert_eq!(value, lrs.lr[0]),
            _ => assert_eq!(value, 0, "{what}"),
        }
    }
}

#[test]
fn state_in_a_running_list_register_is_fetched_before_it_is_read() {
    let mut guest = Guest::with_spi(2, 50, 1);
    guest.vgic().set_spi(50, true).unwrap();
    let mut lrs = guest.fill(1, 4);
    guest.kicked();
    assert_eq!(guest.vgic().read(0, GICD, at(0x304, 4)), Read::Again);
    assert_eq!(guest.kicked(), [1]);
    assert_eq!(guest.vgic().read(0, GICD, at(0x304, 4)), Read::Again);
    // The guest acknowledged it meanwhile. It goes on with it, and the read ends.
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    let _ = guest.vgic().sync(1, ALL_ON, &lrs);
    let lrs = guest.fill(1, 4);
    assert_eq!(
        guest.vgic().read(0, GICD, at(0x304, 4)),
        Read::Value(1 << 18)
    );
    // A later read is another question.
    assert_eq!(guest.vgic().read(0, GICD, at(0x304, 4)), Read::Again);
    let _ = guest.vgic().sync(1, ALL_ON, &lrs);
    assert_eq!(
        guest.vgic().read(0, GICD, at(0x304, 4)),
        Read::Value(1 << 18)
    );
    assert_eq!(
        guest.vgic().read(0, GICD, at(0x104, 4)),
        Read::Value(1 << 18)
    );
}

#[test]
fn a_question_from_long_ago_is_not_this_one() {
    let mut guest = Guest::with_spi(2, 50, 1);
    guest.vgic().set_spi(50, true).unwrap();
    let lrs = guest.fill(1, 4);
    assert_eq!(guest.vgic().read(0, GICD, at(0x304, 4)), Read::Again);
    // The reader went on to something else and comes back to it by chance.
    let _ = guest.fill(0, 4);
    let _ = guest.fill(0, 4);
    let _ = guest.vgic().sync(1, ALL_ON, &lrs);
    let _ = guest.fill(1, 4);
    assert_eq!(guest.vgic().read(0, GICD, at(0x304, 4)), Read::Again);
}

#[test]
fn the_timer_that_fires_again_is_seen_before_the_list_registers_are_folded() {
    let mut guest = Guest::new(1);
    guest.set.redists[0].link(27, 27).unwrap();
    guest.write(GICD, 0, 4, 3);
    guest.write(Frame::Sgi(0), 0x100, 4, 1 << 27);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    let mut lrs = guest.fill(0, 4);
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    let mut lrs = guest.fill(0, 4);
    // The guest ended it, and its source has been low and is high again.
    lrs.lr[0] &= !lr::ACTIVE;
    assert!(!guest.set.redists[0].needs_fill());
    guest.vgic().set_ppi(0, 27, true).unwrap();
    assert!(guest.set.redists[0].needs_fill());
    let synced = guest.vgic().sync(0, ALL_ON, &lrs);
    assert_eq!(synced.resample, 1 << 27);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    assert_eq!(
        guest.fill(0, 4).lr[0] & (lr::PENDING | lr::ACTIVE),
        lr::PENDING
    );
}

#[test]
fn a_linked_ppi_that_software_pends_while_active_is_delivered_again() {
    let mut guest = Guest::new(1);
    guest.set.redists[0].link(27, 27).unwrap();
    guest.write(GICD, 0, 4, 3);
    guest.write(Frame::Sgi(0), 0x100, 4, 1 << 27);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    let mut lrs = guest.fill(0, 4);
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    guest.write(Frame::Sgi(0), 0x200, 4, 1 << 27);
    // Beyond HW = 1; its end comes to EL2, which then ends the physical one.
    let mut lrs = guest.fill(0, 4);
    assert_eq!(lrs.lr[0], lr::PENDING | lr::ACTIVE | lr::EOI | 27);
    assert_eq!(lrs.physical_active, 1 << 27);
    lrs.lr[0] = lr::EOI | 27;
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    let lrs = guest.fill(0, 4);
    assert_eq!((lrs.used(), lrs.physical_active), (0, 0));
}

#[test]
fn with_overflow_an_active_interrupt_is_not_pending_behind_the_back() {
    let mut guest = Guest::new(1);
    guest.write(GICD, 0, 4, 3);
    let sgi = Frame::Sgi(0);
    // SGI 0 before 1 before 2; 2 is acknowledged and pends again.
    guest.write(sgi, 0x400, 4, 0x0060_4020);
    guest.write(sgi, 0x200, 4, 1 << 2);
    let mut lrs = guest.fill(0, 2);
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    guest.write(sgi, 0x200, 4, 1 << 2);
    let lrs = guest.fill(0, 2);
    assert_eq!(lrs.lr[0] >> 62, 3, "alone it is both");
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    guest.write(sgi, 0x200, 4, 3);
    let lrs = guest.fill(0, 2);
    assert_eq!(lrs.lr[0], lr::PENDING | 0x20 << lr::PRIORITY_SHIFT);
    assert_eq!(
        lrs.lr[1],
        lr::ACTIVE | lr::EOI | 0x60 << lr::PRIORITY_SHIFT | 2
    );
    assert_eq!(
        lrs.hcr & hcr::MAINTENANCE,
        hcr::NPIE | hcr::VGRP0DIE | hcr::VGRP1DIE
    );
}

#[test]
fn whoever_is_given_an_active_interrupt_looks() {
    let mut guest = Guest::with_spi(2, 50, 1);
    let _ = (guest.fill(0, 4), guest.fill(1, 4));
    guest.write(Frame::Sgi(0), 0x300, 4, 1 << 20);
    assert_eq!(guest.kicked(), [0]);
    assert!(guest.set.redists[0].needs_fill());
    assert_eq!(guest.fill(0, 4).lr[0], lr::ACTIVE | 20);
    guest.write(GICD, 0x304, 4, 1 << 18);
    assert_eq!(guest.kicked(), [1]);
    assert_eq!(guest.fill(1, 4).lr[0], lr::ACTIVE | lr::GROUP1 | 50);
}

#[test]
fn the_end_of_a_linked_ppi_outside_the_list_registers_ends_both() {
    let mut guest = Guest::new(1);
    guest.set.redists[0].link(27, 27).unwrap();
    guest.write(GICD, 0, 4, 3);
    guest.write(Frame::Sgi(0), 0x100, 4, 1 << 27);
    guest.write(Frame::Sgi(0), 0x418, 4, 0x8000_0000);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    let mut lrs = guest.fill(0, 1);
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    // An SGI of higher priority needs the one list register.
    guest.write(Frame::Sgi(0), 0x200, 4, 1);
    let mut lrs = guest.fill(0, 1);
    assert_eq!(lrs.lr[0], lr::PENDING);
    assert_eq!(lrs.hcr, hcr::EN | hcr::LRENPIE | hcr::TDIR);
    assert_eq!(lrs.physical_active, 1 << 27);
    lrs.lr[0] = 0;
    lrs.hcr |= 1 << 27;
    let synced = guest.vgic().sync(0, ALL_ON, &lrs);
    assert_eq!(
        (synced.resample, synced.physical_active),
        (1 << 27, 1 << 27)
    );
    assert_eq!(guest.read(Frame::Sgi(0), 0x300, 4), 0);
    let lrs = guest.fill(0, 1);
    assert_eq!((lrs.used(), lrs.physical_active), (0, 0));
}

#[test]
fn one_of_n_goes_to_one_that_is_awake_and_enabled() {
    let mut guest = Guest::with_spi(4, 50, 0);
    guest.write(GICD, 0x6000 + 8 * 50, 8, 1 << 31);
    for n in 1..4 {
        guest.write(Frame::Redistributor(n), 0x14, 4, 0);
    }
    let mut lrs = ListRegisters::new(4);
    guest.vgic().fill(1, ALL_ON & !vmcr::VENG1, &mut lrs);
    guest.vgic().fill(2, ALL_ON, &mut lrs);
    guest.vgic().fill(3, ALL_ON, &mut lrs);
    guest.kicked();
    guest.vgic().set_spi(50, true).unwrap();
    assert_eq!(guest.kicked(), [2]);
    // vCPU 2 has turned its group off since, so another is asked.
    guest.vgic().fill(2, ALL_ON & !vmcr::VENG1, &mut lrs);
    assert_eq!(lrs.used(), 0);
    assert_ne!(lrs.hcr & hcr::VGRP1EIE, 0);
    assert_eq!(guest.kicked(), [3]);
    assert_eq!(guest.fill(0, 4).used(), 0, "asleep");
    assert_eq!(guest.fill(3, 4).used(), 1);
    assert_eq!(guest.fill(2, 4).used(), 0, "taken");
}

/// SPI 50 for any of `vcpus`, all of them awake and with these VMCRs last seen.
fn with_any_spi(vmcrs: &[u64]) -> Guest {
    let mut guest = Guest::with_spi(vmcrs.len() as u8, 50, 0);
    guest.write(GICD, 0x6000 + 8 * 50, 8, 1 << 31);
    let mut lrs = ListRegisters::new(4);
    for (n, &vmcr) in vmcrs.iter().enumerate() {
        guest.write(Frame::Redistributor(n), 0x14, 4, 0);
        guest.vgic().fill(n, vmcr, &mut lrs);
    }
    guest.kicked();
    guest
}

#[test]
fn a_vcpu_that_loses_the_group_passes_one_of_n_on() {
    const OFF: u64 = ALL_ON & !vmcr::VENG1;
    // With nothing in its list registers, and with something else there.
    for busy in [false, true] {
        let mut guest = with_any_spi(&[ALL_ON, ALL_ON]);
        if busy {
            guest.write(Frame::Sgi(0), 0x200, 4, 1);
        }
        let lrs = guest.fill(0, 4);
        guest.vgic().set_spi(50, true).unwrap();
        assert_eq!(guest.kicked(), [0]);
        let _ = guest.vgic().sync(0, OFF, &lrs);
        assert_eq!(guest.kicked(), [1], "{busy}");
        assert_eq!(guest.fill(1, 4).used(), 1);
    }
}

#[test]
fn one_of_n_waits_for_the_first_to_enable_the_group() {
    const OFF: u64 = ALL_ON & !vmcr::VENG1;
    let mut guest = with_any_spi(&[OFF, OFF]);
    guest.vgic().set_spi(50, true).unwrap();
    assert_eq!(guest.kicked(), [0, 1]);
    let mut lrs = ListRegisters::new(4);
    for n in 0..2 {
        guest.vgic().fill(n, OFF, &mut lrs);
        assert_eq!((lrs.used(), lrs.hcr & hcr::MAINTENANCE), (0, hcr::VGRP1EIE));
        assert!(guest.set.redists[n].needs_sync());
    }
    let _ = guest.vgic().sync(1, ALL_ON, &lrs);
    assert!(guest.set.redists[1].needs_fill());
    assert_eq!(guest.fill(1, 4).used(), 1);
}

#[test]
fn a_vcpu_that_falls_asleep_passes_one_of_n_on() {
    let mut guest = with_any_spi(&[ALL_ON, ALL_ON]);
    guest.vgic().set_spi(50, true).unwrap();
    assert_eq!(guest.kicked(), [0]);
    guest.write(Frame::Redistributor(0), 0x14, 4, 2);
    assert!(guest.kicked().contains(&1));
    assert_eq!(guest.fill(0, 4).used(), 0);
    assert_eq!(guest.fill(1, 4).used(), 1);
}

#[test]
fn a_vcpu_that_wakes_looks_for_one_of_n() {
    let mut guest = Guest::with_spi(1, 50, 0);
    guest.write(GICD, 0x6000 + 8 * 50, 8, 1 << 31);
    guest.vgic().set_spi(50, true).unwrap();
    assert!(guest.kicked().is_empty());
    assert_eq!(guest.fill(0, 4).used(), 0);
    guest.write(Frame::Redistributor(0), 0x14, 4, 0);
    assert_eq!(guest.kicked(), [0]);
    assert!(guest.set.redists[0].needs_fill());
    assert_eq!(guest.fill(0, 4).used(), 1);
}

#[test]
fn a_vcpu_that_goes_to_sleep_leaves_one_of_n_to_others() {
    let mut guest = Guest::with_spi(2, 50, 0);
    guest.write(GICD, 0x6000 + 8 * 50, 8, 1 << 31);
    let mut lrs = ListRegisters::new(4);
    for n in 0..2 {
        guest.write(Frame::Redistributor(n), 0x14, 4, 0);
        guest.vgic().fill(n, ALL_ON, &mut lrs);
    }
    guest.kicked();
    guest.vgic().set_spi(50, true).unwrap();
    assert_eq!(guest.kicked(), [0]);
    guest.vgic().reset_vcpu(0);
    assert_eq!(guest.kicked(), [1]);
    assert_eq!(guest.fill(0, 4).used(), 0);
    assert_eq!(guest.fill(1, 4).used(), 1);
}

#[test]
fn any_vcpu_may_deactivate_an_spi() {
    let mut guest = Guest::with_spi(2, 50, 1);
    guest.vgic().set_spi(50, true).unwrap();
    let mut lrs = guest.fill(1, 4);
    assert_ne!(lrs.hcr & hcr::TDIR, 0);
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    guest.vgic().set_spi(50, false).unwrap();
    guest.kicked();
    // Not with EOImode 0, not what is not there.
    guest.vgic().deactivate(0, 50, ALL_ON);
    for intid in [160, 1023, 8192, 0xff_ffff] {
        guest.vgic().deactivate(0, intid, ALL_ON | vmcr::VEOIM);
    }
    assert!(guest.kicked().is_empty());
    guest.vgic().deactivate(0, 50, ALL_ON | vmcr::VEOIM);
    assert_eq!(guest.kicked(), [1]);
    let _ = guest.vgic().sync(1, ALL_ON | vmcr::VEOIM, &lrs);
    assert_eq!(guest.read(GICD, 0x304, 4), 0);
    assert_eq!(guest.fill(1, 4).used(), 0);
}

#[test]
fn one_vcpu_with_room_needs_no_trap_of_dir() {
    let mut guest = Guest::with_spi(1, 50, 0);
    guest.vgic().set_spi(50, true).unwrap();
    let lrs = guest.fill(0, 4);
    assert_eq!((lrs.used(), lrs.hcr), (1, hcr::EN));
    let _ = guest.vgic().sync(0, ALL_ON, &lrs);
    assert!(guest.set.redists[0].needs_fill());
    guest.vgic().set_spi(50, false).unwrap();
    assert_eq!(guest.fill(0, 4).used(), 0);
    assert!(!guest.set.redists[0].needs_fill() && !guest.set.redists[0].needs_sync());
}

#[test]
fn a_fill_without_sync_loses_nothing() {
    let mut guest = Guest::with_spi(1, 50, 0);
    guest.write(GICD, 0x204, 4, 1 << 18);
    let first = guest.fill(0, 4).lr;
    assert_eq!(first[0], lr::PENDING | lr::GROUP1 | 50);
    assert_eq!(guest.fill(0, 4).lr, first);
}

#[test]
fn the_timer_is_linked_while_its_source_is_high_or_it_is_active() {
    let mut guest = Guest::new(1);
    guest.set.redists[0].link(27, 26).unwrap();
    let timer = Frame::Sgi(0);
    guest.vgic().set_ppi(0, 27, true).unwrap();
    // Off for the guest: kept quiet all the same, and sampled again.
    let lrs = guest.fill(0, 4);
    assert_eq!((lrs.used(), lrs.physical_active), (0, 1 << 26));
    assert!(guest.set.redists[0].needs_sync());
    let synced = guest.vgic().sync(0, ALL_ON, &lrs);
    assert_eq!(
        (synced.resample, synced.physical_active),
        (1 << 27, 1 << 26)
    );
    // On: a list register with HW, and after its acknowledgement still linked.
    guest.write(timer, 0x100, 4, 1 << 27);
    guest.write(GICD, 0, 4, 3);
    let mut lrs = guest.fill(0, 4);
    assert_eq!(
        lrs.lr[0],
        lr::PENDING | lr::HW | 26 << lr::PINTID_SHIFT | 27
    );
    lrs.lr[0] ^= lr::PENDING | lr::ACTIVE;
    let synced = guest.vgic().sync(0, ALL_ON, &lrs);
    assert_eq!(
        (synced.resample, synced.physical_active),
        (1 << 27, 1 << 26)
    );
    let mut lrs = guest.fill(0, 4);
    assert_eq!(lrs.lr[0], lr::ACTIVE | lr::HW | 26 << lr::PINTID_SHIFT | 27);
    assert_eq!(lrs.physical_active, 1 << 26);
    // The guest's deactivation ended both.
    lrs.lr[0] &= !lr::ACTIVE;
    let synced = guest.vgic().sync(0, ALL_ON, &lrs);
    assert_eq!((synced.resample, synced.physical_active), (1 << 27, 0));
    assert_eq!(
        (guest.fill(0, 4).used(), guest.fill(0, 4).physical_active),
        (0, 0)
    );
}

#[test]
fn wfi_ends_for_what_the_mask_and_groups_let_through() {
    let mut guest = Guest::with_spi(2, 50, 1);
    guest.write(GICD, 0x400 + 50, 1, 0x80);
    guest.vgic().set_spi(50, true).unwrap();
    let mask = |mask: u64| mask << 24 | vmcr::VENG1;
    assert!(!guest.vgic().pending(0, mask(0xff)));
    assert!(guest.vgic().pending(1, mask(0x81)));
    assert!(!guest.vgic().pending(1, mask(0x80)));
    assert!(!guest.vgic().pending(1, mask(0xff) & !vmcr::VENG1));
    assert!(!guest.vgic().pending(7, mask(0xff)));
    guest.write(GICD, 0, 4, 1);
    assert!(!guest.vgic().pending(1, mask(0xff)));
    guest.vgic().set_ppi(0, 30, true).unwrap();
    guest.write(Frame::Sgi(0), 0x100, 4, 1 << 30);
    assert!(guest.vgic().pending(0, mask(0xff) | vmcr::VENG0));
}

#[test]
fn power_off_resets_a_vcpu_and_keeps_its_lines() {
    let mut guest = Guest::with_spi(2, 50, 1);
    guest.vgic().set_spi(50, true).unwrap();
    guest.vgic().set_ppi(1, 30, true).unwrap();
    for offset in [0x080, 0x100, 0x200, 0x300] {
        guest.write(Frame::Sgi(1), offset, 4, 0x4000_0003);
    }
    guest.write(Frame::Sgi(1), 0x400, 4, u32::MAX.into());
    let _ = guest.fill(1, 4);
    guest.vgic().reset_vcpu(1);
    for (offset, expected) in [
        (0x080, 0),
        (0x100, 0xffff),
        (0x200, 0x4000_0000),
        (0x300, 0),
        (0x400, 0),
    ] {
        assert_eq!(
            guest.read(Frame::Sgi(1), offset, 4),
            expected,
            "{offset:#x}"
        );
    }
    // The SPI still waits for it, and is nobody's.
    assert_eq!(guest.read(GICD, 0x204, 4), 1 << 18);
    assert_eq!(guest.fill(1, 4).used(), 1);
}

#[test]
fn reset_forgets_all_but_lines_and_affinities() {
    let mut guest = Guest::with_spi(2, 50, 1);
    guest.vgic().set_spi(50, true).unwrap();
    guest.write(GICD, 0x208, 4, 0xff);
    let _ = guest.fill(1, 4);
    guest.vgic().reset();
    assert_eq!(guest.read(GICD, 0, 4), 0x50);
    assert_eq!(guest.read(GICD, 0x104, 4), 0);
    assert_eq!(guest.read(GICD, 0x204, 4), 1 << 18);
    assert_eq!(guest.read(GICD, 0x208, 4), 0);
    assert_eq!(guest.read(GICD, 0x6000 + 8 * 50, 8), 0);
    assert_eq!(guest.read(Frame::Redistributor(1), 12, 4), 0x0005_0101);
    assert_eq!(guest.fill(1, 4).used(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Nothing a guest can do to the registers, in the order it likes and
    /// between entries with whatever the list registers then say, is a panic;
    /// and the two things that must never be, are not: an interrupt in two list
    /// registers, and one that was never made pending or active in any.
    #[test]
    fn hostile_guests_get_nowhere(
        steps in prop::collection::vec(
            (any::<u8>(), 0..4_usize, prop_oneof![0_u64..0x1000, 0x6000_u64..0x6600, any::<u64>()],
             prop::sample::select(vec![1_usize, 2, 4, 8]), any::<u64>()),
            1..200,
        ),
        count in prop::sample::select(vec![1_usize, 4, 16]),
    ) {
        let mut guest = Guest::new(3);
        let mut lrs = vec![ListRegisters::new(count); 3];
        guest.write(GICD, 0, 4, 3);
        for (what, vcpu, offset, size, value) in steps {
            let frame = match what & 3 {
                0 | 1 => GICD,
                2 => Frame::Sgi(vcpu),
                _ => Frame::Redistributor(vcpu),
            };
            match what >> 2 & 7 {
                0 | 1 => guest.write(frame, offset, size, value),
                2 => guest.write(frame, offset & !3, 4, value),
                3 => {
                    if let Read::Value(value) = guest.vgic().read(vcpu, frame, at(offset, size)) {
                        prop_assert!(size == 8 || value >> (8 * size) == 0);
                    }
                }
                4 => guest.vgic().send_sgi(vcpu, SgiRegister::Sgi1, value),
                5 => guest.vgic().deactivate(vcpu, value & 0xff, vmcr::VEOIM),
                _ if vcpu < 3 => {
                    // The guest moves states of list registers as it can.
                    let lrs = &mut lrs[vcpu];
                    for n in 0..lrs.used() {
                        if value & 1 << n != 0 {
                            lrs.lr[n] ^= lr::PENDING | lr::ACTIVE;
                        }
                        if value & 1 << (n + 16) != 0 {
                            lrs.lr[n] &= !lr::ACTIVE;
                        }
                    }
                    lrs.hcr |= value & 0x1f << 27;
                    let mut vgic = Vgic::new(&mut guest.dist, &mut guest.set);
                    let _ = vgic.sync(vcpu, value, lrs);
                    vgic.fill(vcpu, value, lrs);
                    let intids = || lrs.lr[..lrs.used()].iter().map(|&v| lr::intid(v));
                    let distinct: std::collections::HashSet<_> = intids().collect();
                    prop_assert_eq!(distinct.len(), lrs.used());
                    prop_assert!(intids().all(|n| n < 32 + SPIS as u32));
                    prop_assert!(lrs.lr[..lrs.used()].iter().all(|v| v >> 62 != 0));
                    prop_assert!(lrs.lr[lrs.used()..].iter().all(|&v| v == 0));
                }
                _ => {}
            }
        }
    }
}

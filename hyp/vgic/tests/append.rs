//! Where the short way into a list register is none: nothing changes then.
#![allow(missing_docs)]

use vgic::{
    Affinity, At, Distributor, Frame, ListRegisters, Loaded, Read, Redistributor, Rise,
    SgiRegister, VcpuSet, Vgic, lr, vmcr,
};

const TIMER: u32 = 27;
const ON: u64 = vmcr::VENG0 | vmcr::VENG1 | 0xf8 << 24;

struct One(Redistributor);

impl VcpuSet for One {
    fn count(&self) -> usize {
        1
    }

    fn redistributor(&mut self, vcpu: usize) -> Option<&mut Redistributor> {
        (vcpu == 0).then_some(&mut self.0)
    }

    fn kick(&mut self, _vcpu: usize) {}
}

/// A vCPU whose list registers are filled: with nothing, and everything is on.
struct Vcpu {
    dist: Distributor,
    set: One,
    lrs: ListRegisters,
}

impl Vcpu {
    fn new(list_registers: usize) -> Self {
        let mut redist = Redistributor::new(Affinity::new(0, 0, 0, 0));
        redist.link(TIMER, TIMER).unwrap();
        let mut vcpu = Self {
            dist: Distributor::new(),
            set: One(redist),
            lrs: ListRegisters::new(list_registers),
        };
        vcpu.write(Frame::Distributor, 0, 0b11);
        vcpu.write(Frame::Sgi(0), 0x80, 0xffff_ffff);
        vcpu.write(Frame::Sgi(0), 0x100, 0xffff_ffff);
        vcpu.fill();
        vcpu
    }

    fn vgic(&mut self) -> Vgic<'_, One> {
        Vgic::new(&mut self.dist, &mut self.set)
    }

    fn write(&mut self, frame: Frame, offset: u64, value: u64) {
        self.vgic().write(0, frame, At { offset, size: 4 }, value);
    }

    fn fill(&mut self) {
        Vgic::new(&mut self.dist, &mut self.set).fill(0, ON, &mut self.lrs);
    }

    /// Takes all back: the guest has done this to its first list register.
    fn refill(&mut self, change: fn(u64) -> u64) {
        self.lrs.lr[0] = change(self.lrs.lr[0]);
        let _ = Vgic::new(&mut self.dist, &mut self.set).sync(0, ON, &self.lrs);
        self.fill();
    }

    /// Lends what was sent while it runs, if that is all there is to do.
    fn top_up(&mut self) -> bool {
        let loaded = Loaded {
            lrs: &mut self.lrs,
            vmcr: ON,
            read: |_| 0,
        };
        Vgic::new(&mut self.dist, &mut self.set).top_up(0, loaded, |_| {})
    }

    fn send(&mut self, sgi: u64) {
        let value = sgi << 24 | 1;
        self.vgic().send_sgi(0, SgiRegister::Sgi1, value);
    }

    /// Whether there is a short way, with this in the list register it had.
    fn has_one(&mut self, what: (u32, Rise), vmcr: u64, was: u64) -> bool {
        let before = format!("{:?} {:?} {:?}", self.dist, self.set.0, self.lrs);
        let loaded = Loaded {
            lrs: &mut self.lrs,
            vmcr,
            read: |_| was,
        };
        let appended = Vgic::new(&mut self.dist, &mut self.set).append(0, what, loaded);
        let after = format!("{:?} {:?} {:?}", self.dist, self.set.0, self.lrs);
        assert!(appended.is_some() || before == after, "{what:?}");
        appended.is_some()
    }
}

const SGI: (u32, Rise) = (1, Rise::Sgi);

#[test]
fn one_that_is_settled_has_it() {
    for what in [SGI, (TIMER, Rise::Linked)] {
        let mut vcpu = Vcpu::new(4);
        assert!(vcpu.has_one(what, ON, 0));
        // Again when the guest is done with it, and not before.
        let (pending, active) = (vcpu.lrs.lr[0], vcpu.lrs.lr[0] ^ lr::PENDING ^ lr::ACTIVE);
        for was in [pending, active, pending | lr::ACTIVE] {
            assert!(!vcpu.has_one(what, ON, was), "{was:#x}");
        }
        assert!(vcpu.has_one(what, ON, pending & !lr::PENDING));
        assert_eq!((vcpu.lrs.used(), vcpu.lrs.lr[0]), (1, pending));
    }
}

#[test]
fn one_whose_deactivation_is_news_has_none() {
    let mut vcpu = Vcpu::new(4);
    assert!(vcpu.has_one(SGI, ON, 0));
    let done = vcpu.lrs.lr[0] & !lr::PENDING;
    assert!(!vcpu.has_one(SGI, ON, done | lr::EOI));
    assert!(vcpu.has_one(SGI, ON, done));
}

#[test]
fn one_that_is_to_look_has_none() {
    // An SGI was sent; another was made active.
    let changes: [fn(&mut Vcpu); 2] = [
        |vcpu| vcpu.send(2),
        |vcpu| vcpu.write(Frame::Sgi(0), 0x300, 1 << 3),
    ];
    for change in changes {
        let mut vcpu = Vcpu::new(4);
        change(&mut vcpu);
        assert!(!vcpu.has_one(SGI, ON, 0));
        vcpu.refill(|lr| lr);
        assert!(vcpu.has_one(SGI, ON, 0));
    }
}

#[test]
fn one_that_others_wait_for_has_none() {
    let mut vcpu = Vcpu::new(1);
    vcpu.send(1);
    vcpu.send(2);
    vcpu.refill(|lr| lr);
    let done = vcpu.lrs.lr[0] & !lr::PENDING;
    assert!(!vcpu.has_one(SGI, ON, done), "another is outside");
    vcpu.refill(|lr| lr & !lr::PENDING);
    assert!(!vcpu.has_one(SGI, ON, 0), "no list register is free");
}

#[test]
fn one_that_is_off_has_none() {
    for (frame, offset, value) in [
        (Frame::Sgi(0), 0x180, 1 << 1 | 1 << TIMER),
        (Frame::Distributor, 0, 0b01),
        (Frame::Sgi(0), 0x300, 1 << 1 | 1 << TIMER),
    ] {
        for what in [SGI, (TIMER, Rise::Linked)] {
            let mut vcpu = Vcpu::new(4);
            vcpu.write(frame, offset, value);
            vcpu.fill();
            let was = vcpu.lrs.lr[0];
            assert!(!vcpu.has_one(what, ON, was), "{offset:#x} {what:?}");
        }
    }
}

#[test]
fn one_whose_groups_have_changed_has_none() {
    for group in [vmcr::VENG0, vmcr::VENG1] {
        let mut vcpu = Vcpu::new(4);
        assert!(!vcpu.has_one(SGI, ON & !group, 0));
        // The priority mask is the CPU's own matter.
        assert!(vcpu.has_one(SGI, ON ^ 0x80 << 24, 0));
    }
}

#[test]
fn one_that_a_write_has_changed_has_none() {
    let mut vcpu = Vcpu::new(4);
    assert!(vcpu.has_one(SGI, ON, 0));
    let done = vcpu.lrs.lr[0] & !lr::PENDING;
    vcpu.write(Frame::Sgi(0), 0x300, 1 << 1);
    assert!(!vcpu.has_one(SGI, ON, done));
}

#[test]
fn what_cannot_be_lent_at_once_is_to_be_filled() {
    let mut vcpu = Vcpu::new(1);
    vcpu.send(1);
    assert!(vcpu.top_up());
    assert!(!vcpu.set.0.needs_fill());
    vcpu.send(2);
    assert!(!vcpu.top_up(), "no list register is free");
    assert!(vcpu.set.0.needs_fill(), "it is forgotten");
}

#[test]
fn an_interrupt_comes_between_two_tries_of_a_read() {
    for interrupted in [false, true] {
        let mut vcpu = Vcpu::new(4);
        assert!(vcpu.has_one(SGI, ON, 0));
        let at = At {
            offset: 0x300,
            size: 4,
        };
        assert_eq!(vcpu.vgic().read(0, Frame::Sgi(0), at), Read::Again);
        vcpu.refill(|lr| lr);
        if interrupted {
            assert!(vcpu.has_one((TIMER, Rise::Linked), ON, 0));
        }
        // Whoever reads now asks anew: the handler may.
        let read = vcpu.vgic().read(0, Frame::Sgi(0), at);
        assert_eq!(read == Read::Again, interrupted);
    }
}

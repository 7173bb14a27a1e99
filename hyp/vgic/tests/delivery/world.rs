//! A guest on several vCPUs beside the plain specification of its GIC: an
//! operation is done to both, and what can be observed must be the same.

use crate::hardware::SPURIOUS;
use crate::machine::{Machine, TIMER, affinity, at};
use crate::spec::{Gic, Route};
use vgic::{Frame, SgiRegister, vmcr};

/// PEs of the larger machine; the other has one, where less is trapped.
pub const PES: usize = 3;

/// Interrupts under test: enough to overflow 16 list registers, in all banks.
pub const INTIDS: [u32; 24] = [
    0, 1, 7, 15, 16, 20, 26, TIMER, 30, 31, 32, 33, 34, 35, 50, 63, 64, 65, 95, 96, 127, 128, 158,
    159,
];

/// What a guest, its devices or the hypervisor does.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Moves the input of an interrupt (SPIs, and PPIs other than the timer).
    Line {
        pe: usize,
        intid: u32,
        level: bool,
    },
    Timer {
        pe: usize,
        level: bool,
    },
    Sgi {
        from: usize,
        to: u16,
        sgi: u32,
        register: SgiRegister,
    },
    SgiToOthers {
        from: usize,
        sgi: u32,
    },
    Bit {
        pe: usize,
        intid: u32,
        register: Bit,
    },
    Group {
        pe: usize,
        intid: u32,
        group1: bool,
    },
    Priority {
        pe: usize,
        intid: u32,
        priority: u8,
        byte: bool,
    },
    Config {
        pe: usize,
        intid: u32,
        edge: bool,
    },
    Route {
        pe: usize,
        spi: u32,
        route: Route,
    },
    Distributor {
        pe: usize,
        enables: [bool; 2],
    },
    Sleep {
        pe: usize,
        sleep: bool,
    },
    Acknowledge {
        pe: usize,
    },
    End {
        pe: usize,
    },
    Deactivate {
        pe: usize,
        intid: u32,
    },
    Enables {
        pe: usize,
        group1: bool,
        on: bool,
    },
    Mask {
        pe: usize,
        mask: u8,
    },
    Split {
        pe: usize,
        split: bool,
    },
    Stop {
        pe: usize,
    },
    Put {
        pe: usize,
    },
    Enter {
        pe: usize,
    },
    Read {
        pe: usize,
        intid: u32,
    },
}

/// The registers of one bit for each interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    SetEnable = 0x100,
    ClearEnable = 0x180,
    SetPending = 0x200,
    ClearPending = 0x280,
    SetActive = 0x300,
    ClearActive = 0x380,
}

/// The frame of the registers of an interrupt as `pe` names it.
fn frame(pe: usize, intid: u32) -> Frame {
    if intid < 32 {
        Frame::Sgi(pe)
    } else {
        Frame::Distributor
    }
}

/// The offset and bit of an interrupt in a register of one bit each.
fn bit_of(register: u64, intid: u32) -> (u64, u64) {
    (register + u64::from(intid / 32 * 4), 1 << (intid % 32))
}

struct World {
    pes: usize,
    machine: Machine,
    gic: Gic,
}

impl World {
    fn new(pes: usize, list_registers: usize) -> Self {
        let mut world = Self {
            pes,
            machine: Machine::new(pes, list_registers),
            gic: Gic::new(pes, 128),
        };
        // What a kernel does at boot: everything on.
        for pe in 0..world.pes {
            world.apply(Op::Enter { pe });
            world.apply(Op::Sleep { pe, sleep: false });
            world.apply(Op::Mask { pe, mask: 0xff });
            world.apply(Op::Enables {
                pe,
                group1: true,
                on: true,
            });
            world.apply(Op::Enables {
                pe,
                group1: false,
                on: true,
            });
        }
        world.apply(Op::Distributor {
            pe: 0,
            enables: [true, true],
        });
        for (n, &intid) in INTIDS.iter().enumerate() {
            for pe in 0..if intid < 32 { pes } else { 1 } {
                let group1 = n % 3 != 0;
                world.apply(Op::Group { pe, intid, group1 });
                let priority = (n as u8 % 6) * 32;
                world.apply(Op::Priority {
                    pe,
                    intid,
                    priority,
                    byte: true,
                });
                world.apply(Op::Config {
                    pe,
                    intid,
                    edge: n % 2 == 0,
                });
                world.apply(Op::Bit {
                    pe,
                    intid,
                    register: Bit::SetEnable,
                });
            }
        }
        world
    }

    fn apply(&mut self, op: Op) {
        let Self { machine, gic, .. } = self;
        match op {
            Op::Line { pe, intid, level } => {
                gic.irq(pe, intid).set_line(level);
                if intid < 32 {
                    machine.vgic().set_ppi(pe, intid, level).unwrap();
                } else {
                    machine.vgic().set_spi(intid, level).unwrap();
                }
            }
            Op::Timer { pe, level } => self.timer(pe, level),
            Op::Sgi {
                from,
                to,
                sgi,
                register,
            } => self.sgi(from, to, sgi, register),
            Op::SgiToOthers { from, sgi } => self.sgi_to_others(from, sgi),
            Op::Bit {
                pe,
                intid,
                register,
            } => self.bit(pe, intid, register),
            Op::Group { pe, intid, group1 } => self.group(pe, intid, group1),
            Op::Priority {
                pe,
                intid,
                priority,
                byte,
            } => self.priority(pe, intid, priority, byte),
            Op::Config { pe, intid, edge } => self.config(pe, intid, edge),
            Op::Route { pe, spi, route } => self.route(pe, spi, route),
            Op::Distributor { pe, enables } => {
                gic.enables = enables;
                let value = u64::from(enables[0]) | u64::from(enables[1]) << 1;
                machine.write(pe, Frame::Distributor, at(0, 4), value);
            }
            Op::Sleep { pe, sleep } => {
                gic.pes[pe].awake = !sleep;
                let value = u64::from(sleep) << 1;
                machine.write(pe, Frame::Redistributor(pe), at(0x14, 4), value);
            }
            Op::Stop { pe } => machine.stop(pe),
            Op::Put { pe } => machine.put(pe),
            Op::Enter { pe } => machine.enter(pe),
            Op::Read { pe, intid } => self.compare(pe, intid),
            // The guest's own doing: not while it is stopped.
            Op::Acknowledge { pe } | Op::End { pe } | Op::Deactivate { pe, .. }
                if !machine.in_guest[pe] => {}
            Op::Enables { pe, .. } | Op::Mask { pe, .. } if !machine.in_guest[pe] => {}
            Op::Acknowledge { pe } => {
                if let Some((_, _, group1)) = machine.cpu[pe].peek() {
                    let intid = machine.cpu[pe].acknowledge(group1);
                    assert_ne!(intid, SPURIOUS);
                    gic.acknowledge(pe, intid);
                }
            }
            Op::End { pe } => {
                if let Some(running) = gic.end(pe) {
                    machine.cpu[pe].end(running.intid, running.group1);
                }
            }
            Op::Deactivate { pe, intid } => self.deactivate(pe, intid),
            Op::Enables { pe, group1, on } => {
                gic.pes[pe].enables[usize::from(group1)] = on;
                let bit = if group1 { vmcr::VENG1 } else { vmcr::VENG0 };
                let vmcr = &mut machine.cpu[pe].vmcr;
                *vmcr = *vmcr & !bit | if on { bit } else { 0 };
            }
            Op::Mask { pe, mask } => {
                gic.pes[pe].mask = mask;
                let vmcr = &mut machine.cpu[pe].vmcr;
                *vmcr = *vmcr & !(0xff << 24) | u64::from(mask) << 24;
            }
            Op::Split { pe, split } => self.split(pe, split),
        }
        self.machine.settle();
    }

    /// A list register with HW = 1 does not see its source fall before the guest
    /// takes it: the next exit does.
    fn timer(&mut self, pe: usize, level: bool) {
        let machine = &mut self.machine;
        let falls = machine.timer[pe] && !level;
        self.gic.irq(pe, TIMER).set_line(level);
        machine.set_timer(pe, level);
        if falls && machine.in_guest[pe] {
            machine.put(pe);
            machine.enter(pe);
        }
    }

    /// To each PE of a mask.
    fn sgi(&mut self, from: usize, to: u16, sgi: u32, register: SgiRegister) {
        for pe in (0..self.pes).filter(|pe| to & 1 << pe != 0) {
            let group1 = register == SgiRegister::Sgi1;
            self.gic.send_sgi(pe, sgi, group1);
            let at = affinity(pe).to_mpidr();
            let value = u64::from(sgi) << 24 | (at >> 8 & 0xff) << 16 | 1 << (at & 0xf);
            self.machine.send_sgi(from, register, value);
        }
    }

    fn sgi_to_others(&mut self, from: usize, sgi: u32) {
        for pe in (0..self.pes).filter(|&pe| pe != from) {
            self.gic.send_sgi(pe, sgi, true);
        }
        let value = u64::from(sgi) << 24 | 1 << 40;
        let register = SgiRegister::Sgi1;
        self.machine.vgic().send_sgi(from, register, value);
    }

    fn bit(&mut self, pe: usize, intid: u32, register: Bit) {
        let gic = &mut self.gic;
        // An EOI would not find what somebody else deactivated.
        if register == Bit::ClearActive && gic.is_running(pe, intid) {
            return;
        }
        let irq = gic.irq(pe, intid);
        match register {
            Bit::SetEnable => irq.enabled = true,
            Bit::ClearEnable => irq.enabled = false,
            Bit::SetPending => irq.latch = true,
            Bit::ClearPending => irq.latch = false,
            Bit::SetActive => irq.active = true,
            Bit::ClearActive => irq.active = false,
        }
        let (offset, bit) = bit_of(register as u64, intid);
        let frame = frame(pe, intid);
        self.machine.write(pe, frame, at(offset, 4), bit);
    }

    fn group(&mut self, pe: usize, intid: u32, group1: bool) {
        let Self { machine, gic, .. } = self;
        // Of an active interrupt this is UNPREDICTABLE.
        if gic.irq(pe, intid).active {
            return;
        }
        gic.irq(pe, intid).group1 = group1;
        let (offset, bit) = bit_of(0x080, intid);
        let before = machine.read(pe, frame(pe, intid), offset, 4);
        let value = if group1 { before | bit } else { before & !bit };
        machine.write(pe, frame(pe, intid), at(offset, 4), value);
    }

    fn priority(&mut self, pe: usize, intid: u32, priority: u8, byte: bool) {
        let Self { machine, gic, .. } = self;
        gic.irq(pe, intid).priority = priority & 0xf8;
        let offset = 0x400 + u64::from(intid);
        let (frame, value) = (frame(pe, intid), u64::from(priority));
        if byte {
            machine.write(pe, frame, at(offset, 1), value);
            return;
        }
        let shift = offset % 4 * 8;
        let word = machine.read(pe, frame, offset & !3, 4);
        let value = word & !(0xff << shift) | value << shift;
        machine.write(pe, frame, at(offset & !3, 4), value);
    }

    fn config(&mut self, pe: usize, intid: u32, edge: bool) {
        let Self { machine, gic, .. } = self;
        if intid >= 16 && intid != TIMER {
            gic.irq(pe, intid).edge = edge;
        }
        let offset = 0xc00 + u64::from(intid / 16 * 4);
        let bit = 2 << (intid % 16 * 2);
        let before = machine.read(pe, frame(pe, intid), offset, 4);
        let value = if edge { before | bit } else { before & !bit };
        machine.write(pe, frame(pe, intid), at(offset, 4), value);
    }

    fn route(&mut self, pe: usize, spi: u32, route: Route) {
        self.gic.irq(pe, spi).route = route;
        let value = match route {
            Route::To(target) => affinity(target).to_mpidr(),
            Route::Nowhere => 0x00ff_0000_0000 | 9,
            Route::Any => 1 << 31,
        };
        let offset = 0x6000 + 8 * u64::from(spi);
        let distributor = Frame::Distributor;
        self.machine.write(pe, distributor, at(offset, 8), value);
    }

    /// With EOImode 0 nobody else's EOI may miss it.
    fn deactivate(&mut self, pe: usize, intid: u32) {
        let pes = &self.gic.pes;
        let runs = |pe: usize| pes[pe].running.iter().any(|r| r.intid == intid);
        let of_others = (0..pes.len()).any(|n| n != pe && !pes[n].split && runs(n));
        if !(runs(pe) || intid >= 32 && of_others) {
            self.gic.deactivate(pe, intid);
            self.machine.deactivate(pe, intid);
        }
    }

    /// Not under a running handler. The exit says which EOImode an interrupt was
    /// acknowledged with that is still active.
    fn split(&mut self, pe: usize, split: bool) {
        let Self { machine, gic, .. } = self;
        if !gic.pes[pe].running.is_empty() {
            return;
        }
        if machine.in_guest[pe] {
            machine.put(pe);
            machine.enter(pe);
        }
        gic.pes[pe].split = split;
        let vmcr = &mut machine.cpu[pe].vmcr;
        *vmcr = *vmcr & !vmcr::VEOIM | if split { vmcr::VEOIM } else { 0 };
    }

    /// The registers of an interrupt say what the specification says.
    fn compare(&mut self, pe: usize, intid: u32) {
        let Self { machine, gic, .. } = self;
        let irq = gic.irq(pe, intid).clone();
        for (register, expected) in [
            (0x080, irq.group1),
            (0x100, irq.enabled),
            (0x180, irq.enabled),
            (0x200, irq.pending()),
            (0x280, irq.pending()),
            (0x300, irq.active),
            (0x380, irq.active),
        ] {
            let (offset, bit) = bit_of(register, intid);
            let value = machine.read(pe, frame(pe, intid), offset, 4);
            assert_eq!(value & bit != 0, expected, "{register:#x} {irq:?}");
        }
        let priority = machine.read(pe, frame(pe, intid), 0x400 + u64::from(intid), 1);
        assert_eq!(priority, irq.priority.into());
        let config = machine.read(pe, frame(pe, intid), 0xc00 + u64::from(intid / 16 * 4), 4);
        assert_eq!(config >> (intid % 16 * 2) & 3, u64::from(irq.edge) << 1);
    }

    /// Each PE in the guest is signalled what the specification allows, nothing
    /// is in two list registers, and a vCPU outside knows if it has to run.
    fn check(&mut self) {
        self.check_any();
        let Self { pes, machine, gic } = self;
        let pes = *pes;
        let mut shared = std::collections::HashSet::new();
        for pe in 0..pes {
            let signalled = gic.signalled(pe);
            let mut own = std::collections::HashSet::new();
            for intid in machine.lent(pe) {
                assert!(own.insert(intid), "{intid} is twice in list registers");
                assert!(intid < 32 || shared.insert(intid), "{intid} is on two PEs");
            }
            if machine.in_guest[pe] {
                match machine.cpu[pe].peek() {
                    Some((intid, priority, group1)) => {
                        let it = (priority, intid);
                        let allowed = signalled.must.contains(&it) || signalled.may.contains(&it);
                        assert!(allowed, "PE {pe} is signalled {intid}, not {signalled:?}");
                        let first = signalled.must.first().map_or(0xff, |&(first, _)| first);
                        assert!(priority <= first, "PE {pe}: {intid} before {signalled:?}");
                        assert_eq!(group1, gic.irq(pe, intid).group1);
                    }
                    None => assert!(
                        signalled.must.is_empty(),
                        "PE {pe} is not signalled {signalled:?}"
                    ),
                }
            } else if machine.lent(pe).is_empty() {
                let vmcr = machine.cpu[pe].vmcr;
                let pending = machine.vgic().pending(pe, vmcr);
                assert!(
                    pending || signalled.must.is_empty(),
                    "PE {pe} sleeps over {signalled:?}"
                );
                assert!(!pending || gic.wakes(pe), "PE {pe} wakes for nothing");
            }
        }
    }

    /// An SPI for any PE is with one, if all that could take it are in the guest
    /// and have room.
    fn check_any(&self) {
        let Self { pes, machine, gic } = self;
        let taken: Vec<u32> = (0..*pes).flat_map(|pe| machine.lent(pe)).collect();
        for irq in gic.irqs_of(0).filter(|irq| irq.route == Route::Any) {
            let mut takers = (0..*pes).filter(|&pe| gic.waits_for(pe, irq)).peekable();
            let ready =
                |pe: usize| machine.in_guest[pe] && machine.cpu[pe].hcr & vgic::hcr::NPIE == 0;
            assert!(
                takers.peek().is_none() || taken.contains(&irq.intid) || !takers.all(ready),
                "nobody takes {irq:?}"
            );
        }
    }

    /// Everything that waits arrives, once handlers run to their ends.
    fn drain(&mut self) {
        let pes = self.pes;
        for pe in 0..pes {
            self.apply(Op::Enter { pe });
            self.apply(Op::Mask { pe, mask: 0xff });
            self.apply(Op::Sleep { pe, sleep: false });
            self.apply(Op::Enables {
                pe,
                group1: true,
                on: true,
            });
            self.apply(Op::Enables {
                pe,
                group1: false,
                on: true,
            });
            self.apply(Op::Enter { pe });
            while !self.gic.pes[pe].running.is_empty() {
                self.apply(Op::End { pe });
            }
        }
        self.apply(Op::Distributor {
            pe: 0,
            enables: [true, true],
        });
        for &intid in &INTIDS {
            for pe in 0..pes {
                self.apply(Op::Bit {
                    pe,
                    intid,
                    register: Bit::ClearActive,
                });
            }
        }
        for _ in 0..pes * INTIDS.len() {
            for pe in 0..pes {
                self.check();
                if let Some((intid, _, _)) = self.machine.cpu[pe].peek() {
                    self.apply(Op::Acknowledge { pe });
                    if intid == TIMER {
                        self.apply(Op::Timer { pe, level: false });
                    } else if intid >= 16 {
                        self.apply(Op::Line {
                            pe,
                            intid,
                            level: false,
                        });
                    }
                    self.check();
                    self.apply(Op::End { pe });
                    self.apply(Op::Bit {
                        pe,
                        intid,
                        register: Bit::ClearActive,
                    });
                }
            }
        }
        for pe in 0..pes {
            for &intid in &INTIDS {
                self.compare(pe, intid);
            }
            for irq in self.gic.irqs_of(pe) {
                assert!(!self.gic.waits_for(pe, irq), "PE {pe} never got {irq:?}");
            }
        }
    }
}

/// Does `ops` on `pes` PEs, checking after each, and lets everything arrive.
pub fn run(list_registers: usize, pes: usize, ops: &[Op]) -> usize {
    let mut world = World::new(pes, list_registers);
    world.check();
    for &op in ops {
        world.apply(op);
        world.check();
    }
    world.drain();
    world.machine.appended
}

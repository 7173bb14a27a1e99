//! The same machine with kicks on their way: other PEs go on while a change has
//! not reached them. What is observed then depends on the order, so this holds
//! the crate to what is true in any: nothing is lost, no edge is delivered that
//! was not raised, and no SPI is on two PEs.

use proptest::prelude::*;
use vgic::{Frame, SgiRegister, vmcr};

use crate::machine::{Machine, affinity, at};

const PES: usize = 3;

/// Edge-triggered SPIs, and SGIs.
const SPIS: [u32; 12] = [32, 33, 34, 50, 63, 64, 65, 95, 96, 127, 158, 159];
const SGIS: [u32; 3] = [0, 7, 15];

/// Level-sensitive SPIs, whose handlers lower the line.
const LEVELS: [u32; 3] = [40, 70, 100];

#[derive(Clone, Copy, Debug)]
enum Op {
    Raise(u32),
    Line {
        spi: u32,
        level: bool,
    },
    Sgi {
        from: usize,
        to: usize,
        sgi: u32,
    },
    Acknowledge(usize),
    End(usize),
    /// With EOImode 1: the nth that waits for it is deactivated, an SPI by `pe`.
    Deactivate {
        pe: usize,
        nth: usize,
    },
    Route {
        pe: usize,
        spi: u32,
        to: Option<usize>,
    },
    Enable {
        pe: usize,
        spi: u32,
        on: bool,
    },
    Priority {
        pe: usize,
        spi: u32,
        priority: u8,
    },
    Mask {
        pe: usize,
        mask: u8,
    },
    Group {
        pe: usize,
        on: bool,
    },
    Stop(usize),
    Put(usize),
    Enter(usize),
    Kick(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let pe = 0..PES;
    let spi = prop::sample::select([&SPIS[..], &LEVELS[..]].concat());
    let edge = prop::sample::select(&SPIS[..]);
    let line = prop::sample::select(&LEVELS[..]);
    let sgi = prop::sample::select(&SGIS[..]);
    prop_oneof![
        8 => edge.prop_map(Op::Raise),
        4 => (line, prop::bool::weighted(0.7)).prop_map(|(spi, level)| Op::Line { spi, level }),
        8 => (pe.clone(), 0..8_usize).prop_map(|(pe, nth)| Op::Deactivate { pe, nth }),
        4 => (pe.clone(), pe.clone(), sgi).prop_map(|(from, to, sgi)| Op::Sgi { from, to, sgi }),
        12 => pe.clone().prop_map(Op::Acknowledge),
        10 => pe.clone().prop_map(Op::End),
        4 => (pe.clone(), spi.clone(), prop::option::weighted(0.7, 0..PES))
            .prop_map(|(pe, spi, to)| Op::Route { pe, spi, to }),
        4 => (pe.clone(), spi.clone(), prop::bool::weighted(0.7))
            .prop_map(|(pe, spi, on)| Op::Enable { pe, spi, on }),
        2 => (pe.clone(), spi, 0_u8..8)
            .prop_map(|(pe, spi, n)| Op::Priority { pe, spi, priority: n * 24 }),
        1 => (pe.clone(), prop::sample::select(vec![0x40, 0xff]))
            .prop_map(|(pe, mask)| Op::Mask { pe, mask }),
        1 => (pe.clone(), prop::bool::weighted(0.6)).prop_map(|(pe, on)| Op::Group { pe, on }),
        2 => pe.clone().prop_map(Op::Stop),
        1 => pe.clone().prop_map(Op::Put),
        4 => pe.clone().prop_map(Op::Enter),
        8 => pe.prop_map(Op::Kick),
    ]
}

/// What is known of an interrupt of one destination: an SPI, or an SGI of a PE.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    raised: u32,
    acknowledged: u32,
    /// Raised since it was last acknowledged.
    due: bool,
}

struct World {
    machine: Machine,
    split: bool,
    running: Vec<Vec<u32>>,
    /// Priority dropped, not deactivated: by whom and what.
    dropped: Vec<(usize, u32)>,
    accounts: Vec<Account>,
}

impl World {
    fn new(list_registers: usize, split: bool) -> Self {
        let mut machine = Machine::new(PES, list_registers);
        machine.write(0, Frame::Distributor, at(0, 4), 3);
        for pe in 0..PES {
            machine.write(pe, Frame::Redistributor(pe), at(0x14, 4), 0);
            machine.write(pe, Frame::Sgi(pe), at(0x080, 4), u32::MAX.into());
            let split = if split { vmcr::VEOIM } else { 0 };
            machine.cpu[pe].vmcr = 0xff << 24 | vmcr::VENG1 | split;
            machine.enter(pe);
        }
        for word in 1..=4 {
            machine.write(
                0,
                Frame::Distributor,
                at(0x080 + 4 * word, 4),
                u32::MAX.into(),
            );
            machine.write(
                0,
                Frame::Distributor,
                at(0x100 + 4 * word, 4),
                u32::MAX.into(),
            );
            machine.write(
                0,
                Frame::Distributor,
                at(0xc00 + 8 * word, 4),
                u32::MAX.into(),
            );
            machine.write(
                0,
                Frame::Distributor,
                at(0xc04 + 8 * word, 4),
                u32::MAX.into(),
            );
        }
        for spi in LEVELS {
            let offset = 0xc00 + u64::from(spi / 16 * 4);
            let config = machine.read(0, Frame::Distributor, offset, 4) & !(2 << (spi % 16 * 2));
            machine.write(0, Frame::Distributor, at(offset, 4), config);
        }
        machine.settle();
        Self {
            machine,
            split,
            dropped: Vec::new(),
            running: vec![Vec::new(); PES],
            accounts: vec![Account::default(); 160 + 16 * PES],
        }
    }

    fn account(&mut self, pe: usize, intid: u32) -> &mut Account {
        let at = if intid < 16 {
            160 + 16 * pe + intid as usize
        } else {
            intid as usize
        };
        &mut self.accounts[at]
    }

    fn raise(&mut self, pe: usize, intid: u32) {
        let account = self.account(pe, intid);
        account.raised += 1;
        account.due = true;
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Raise(spi) => {
                self.raise(0, spi);
                let mut vgic = self.machine.vgic();
                vgic.set_spi(spi, true).unwrap();
                vgic.set_spi(spi, false).unwrap();
            }
            Op::Sgi { from, to, sgi } => {
                self.raise(to, sgi);
                let at = affinity(to).to_mpidr();
                let value = u64::from(sgi) << 24 | (at >> 8 & 0xff) << 16 | 1 << (at & 0xf);
                self.machine.vgic().send_sgi(from, SgiRegister::Sgi1, value);
            }
            Op::Acknowledge(pe) => self.acknowledge(pe),
            Op::End(pe) => {
                if self.machine.in_guest[pe]
                    && let Some(intid) = self.running[pe].pop()
                {
                    self.machine.cpu[pe].end(intid, true);
                    if self.split {
                        self.dropped.push((pe, intid));
                    }
                }
            }
            Op::Deactivate { pe, nth } => {
                if let Some(&(owner, intid)) = self.dropped.get(nth) {
                    let pe = if intid < 32 { owner } else { pe };
                    if self.machine.in_guest[pe] {
                        self.dropped.swap_remove(nth);
                        self.machine.deactivate(pe, intid);
                    }
                }
            }
            Op::Line { spi, level } => {
                self.account(0, spi).due = level;
                self.machine.vgic().set_spi(spi, level).unwrap();
            }
            Op::Route { pe, spi, to } => {
                let value = to.map_or(1 << 31, |to| affinity(to).to_mpidr());
                let offset = 0x6000 + 8 * u64::from(spi);
                self.machine
                    .write(pe, Frame::Distributor, at(offset, 8), value);
            }
            Op::Enable { pe, spi, on } => {
                let register = if on { 0x100 } else { 0x180 };
                let offset = register + u64::from(spi / 32 * 4);
                self.machine
                    .write(pe, Frame::Distributor, at(offset, 4), 1 << (spi % 32));
            }
            Op::Priority { pe, spi, priority } => {
                let offset = 0x400 + u64::from(spi);
                self.machine
                    .write(pe, Frame::Distributor, at(offset, 1), priority.into());
            }
            Op::Mask { pe, .. } | Op::Group { pe, .. } if !self.machine.in_guest[pe] => {}
            Op::Mask { pe, mask } => {
                let vmcr = &mut self.machine.cpu[pe].vmcr;
                *vmcr = *vmcr & !(0xff << 24) | u64::from(mask) << 24;
            }
            Op::Group { pe, on } => {
                let vmcr = &mut self.machine.cpu[pe].vmcr;
                *vmcr = *vmcr & !vmcr::VENG1 | if on { vmcr::VENG1 } else { 0 };
            }
            Op::Stop(pe) => self.machine.stop(pe),
            Op::Put(pe) => self.machine.put(pe),
            Op::Enter(pe) => self.machine.enter(pe),
            Op::Kick(pe) => {
                self.machine.interrupt(pe);
            }
        }
        self.is_sane();
    }

    /// Takes the interrupt that is offered, if one is, and lowers its line.
    fn acknowledge(&mut self, pe: usize) {
        if !self.machine.in_guest[pe] {
            return;
        }
        let Some((intid, _, group1)) = self.machine.cpu[pe].peek() else {
            return;
        };
        assert_eq!(self.machine.cpu[pe].acknowledge(group1), intid);
        self.running[pe].push(intid);
        if LEVELS.contains(&intid) {
            self.machine.vgic().set_spi(intid, false).unwrap();
            self.account(0, intid).due = false;
            return;
        }
        let account = self.account(pe, intid);
        account.acknowledged += 1;
        account.due = false;
        let known = account.acknowledged <= account.raised;
        assert!(known, "{intid}: {account:?}");
    }

    /// The hypervisor's own interrupts end, and no SPI is on two PEs.
    fn is_sane(&mut self) {
        for pe in 0..PES {
            let storm = (0..8).all(|_| self.machine.local_interrupt(pe));
            assert!(!storm, "interrupts to the hypervisor do not end");
        }
        let mut shared = std::collections::HashSet::new();
        for pe in 0..PES {
            for intid in self.machine.lent(pe) {
                assert!(intid < 32 || shared.insert(intid), "{intid} is on two PEs");
            }
        }
    }

    /// What was raised since it was last taken is taken now.
    fn drain(&mut self) {
        for pe in 0..PES {
            self.apply(Op::Enter(pe));
            self.apply(Op::Mask { pe, mask: 0xff });
            self.apply(Op::Group { pe, on: true });
        }
        for spi in SPIS.into_iter().chain(LEVELS) {
            self.apply(Op::Enable {
                pe: 0,
                spi,
                on: true,
            });
        }
        self.machine.settle();
        for _ in 0..2 * (SPIS.len() + LEVELS.len() + SGIS.len()) {
            for pe in 0..PES {
                while !self.running[pe].is_empty() {
                    self.apply(Op::End(pe));
                }
                while !self.dropped.is_empty() {
                    self.apply(Op::Deactivate { pe, nth: 0 });
                }
                self.machine.settle();
                self.apply(Op::Acknowledge(pe));
            }
        }
        for (n, account) in self.accounts.iter().enumerate() {
            assert!(!account.due, "{n} was lost: {account:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_while_kicks_are_late(
        ops in prop::collection::vec(op(), 1..200),
        list_registers in prop::sample::select(vec![1_usize, 2, 4, 16]),
        split in any::<bool>(),
    ) {
        let mut world = World::new(list_registers, split);
        for op in ops {
            world.apply(op);
        }
        world.drain();
    }
}

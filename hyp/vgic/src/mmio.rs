//! The register map: `GICD_*`, and the two frames of `GICR_*`.
//!
//! The registers of 32 interrupts stand at the same offsets in `GICD` and in
//! `SGI_base`, so they are decoded once. A register that is not there, or an
//! access of a size or alignment that it does not have, reads as zero and
//! ignores writes.

use arm64::instr;

use crate::distributor::CTLR_ENABLES;
use crate::intid::{FIRST_SPI, PRIVATE, SPI_WORDS, bits};
use crate::redistributor::PROCESSOR_SLEEP;
use crate::signal::{Place, spi_index};
use crate::{VcpuSet, Vgic};

/// The size of the distributor in a guest's IPA space.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;

/// The size of one vCPU's redistributor, `RD_base` and `SGI_base`.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// A 64 KiB frame of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `GICD`
    Distributor,
    /// `RD_base` of this vCPU
    Redistributor(usize),
    /// `SGI_base` of this vCPU
    Sgi(usize),
}

impl Frame {
    /// The frame and the offset in it, from an offset into the guest's region of
    /// redistributors. The vCPU may not exist; its frame then reads as zero.
    #[must_use]
    pub const fn of_redistributors(offset: u64) -> (Self, u64) {
        let vcpu = (offset / REDISTRIBUTOR_SIZE) as usize;
        let within = offset % 0x1_0000;
        if offset % REDISTRIBUTOR_SIZE < 0x1_0000 {
            (Self::Redistributor(vcpu), within)
        } else {
            (Self::Sgi(vcpu), within)
        }
    }
}

/// The answer to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Read {
    /// The value, zero-extended.
    Value(u64),
    /// It depends on list registers of running vCPUs, which were kicked. Drop
    /// the lock and try again after they folded: let the guest execute the
    /// instruction again.
    Again,
}

// GICD and SGI_base
const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const IPRIORITYR: u64 = 0x400;
const ICFGR: u64 = 0xc00;

// GICD
const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IIDR: u64 = 0x0008;
const GICD_IROUTER: u64 = 0x6000;

// RD_base
const GICR_IIDR: u64 = 0x0004;
const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;

/// `GICD_CTLR.{DS, ARE}`: one Security state, affinity routing, both fixed.
const CTLR_FIXED: u32 = 1 << 6 | 1 << 4;

/// `GICD_TYPER`: 24 bits of affinity and Aff3 (A3V), 10 bits of INTID (IDbits),
/// and the SPIs; no LPIs, no extended range, 1-of-N (No1N is 0).
const TYPER: u32 = 1 << 24 | 9 << 19 | SPI_WORDS as u32;

/// `GICD_IIDR` and `GICR_IIDR`: product U by Arm's JEP106 code, which is what
/// the drivers of Arm's architecture look for.
const IIDR: u32 = (b'U' as u32) << 24 | 0x43b;

/// `GICR_WAKER.ChildrenAsleep`
const CHILDREN_ASLEEP: u32 = 1 << 2;

/// `GICD_IROUTER<n>.Interrupt_Routing_Mode`
const ROUTE_TO_ANY: u64 = 1 << 31;

/// What of a frame is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Offset in the frame, in bytes.
    pub offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub size: usize,
}

/// A register of a bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    /// `IPRIORITYR`, of these interrupts: the first, and how many.
    Priority(usize, usize),
    /// `ICFGR`, for the upper or lower 16 interrupts.
    Config(usize),
}

/// Finds the register of a bank at `offset`, and the bank's number: 0 for
/// INTIDs 0–31.
fn decode(offset: u64, size: usize) -> Option<(Kind, usize)> {
    let word = size == 4 && offset.is_multiple_of(4);
    let at = |base: u64| ((offset - base) / 4) as usize;
    let (kind, bank) = match offset {
        IGROUPR..0x100 => (Kind::Group, at(IGROUPR)),
        ISENABLER..0x180 => (Kind::SetEnable, at(ISENABLER)),
        ICENABLER..0x200 => (Kind::ClearEnable, at(ICENABLER)),
        ISPENDR..0x280 => (Kind::SetPending, at(ISPENDR)),
        ICPENDR..0x300 => (Kind::ClearPending, at(ICPENDR)),
        ISACTIVER..0x380 => (Kind::SetActive, at(ISACTIVER)),
        ICACTIVER..0x400 => (Kind::ClearActive, at(ICACTIVER)),
        IPRIORITYR..0x800 if word || size == 1 => {
            let intid = (offset - IPRIORITYR) as usize;
            return Some((Kind::Priority(intid % PRIVATE, size), intid / PRIVATE));
        }
        ICFGR..0xd00 => (Kind::Config(at(ICFGR) % 2), at(ICFGR) / 2),
        _ => return None,
    };
    word.then_some((kind, bank))
}

/// A bank of the distributor's, from 1.
fn shared(bank: usize) -> Option<Place> {
    instr::index(bank.checked_sub(1)?, SPI_WORDS).map(Place::Shared)
}

/// The bits of `value` for an access of 4 bytes to one half of a 64-bit
/// register, or of all 8: the mask of what is accessed, and its shift.
fn half(offset: u64, size: usize) -> Option<(u64, u32)> {
    match (offset % 8, size) {
        (0, 8) => Some((u64::MAX, 0)),
        (0, 4) => Some((0xffff_ffff, 0)),
        (4, 4) => Some((0xffff_ffff << 32, 32)),
        _ => None,
    }
}

/// The identification registers at the end of each frame, one byte in each word.
/// `PIDR2.ArchRev` says GICv3; the component identification is the fixed one of
/// a CoreSight component.
fn identification(offset: u64) -> u32 {
    match offset {
        0xffe8 => 0x3b,
        0xfff0 => 0x0d,
        0xfff4 => 0xf0,
        0xfff8 => 0x05,
        0xfffc => 0xb1,
        _ => 0,
    }
}

/// The value of a register of the distributor's that never changes, whoever reads it:
/// `GICD_TYPER` and `GICD_IIDR`.
#[must_use]
pub const fn fixed(at: At) -> Option<u32> {
    match (at.offset, at.size) {
        (GICD_TYPER, 4) => Some(TYPER),
        (GICD_IIDR, 4) => Some(IIDR),
        _ => None,
    }
}

impl<S: VcpuSet + ?Sized> Vgic<'_, S> {
    /// A guest's read in `frame`, by `vcpu`.
    ///
    /// The vCPU's own list registers should be folded; if they are not, reads of
    /// pending and active state answer [`Read::Again`].
    pub fn read(&mut self, vcpu: usize, frame: Frame, at: At) -> Read {
        let At { offset, size } = at;
        let word = size == 4 && offset.is_multiple_of(4);
        let value = match frame {
            Frame::Distributor => {
                if let Some(value) = fixed(at) {
                    return Read::Value(value.into());
                }
                if let Some((kind, bank)) = decode(offset, size) {
                    return match shared(bank) {
                        Some(place) => self.read_bank(vcpu, place, kind),
                        None => Read::Value(0),
                    };
                }
                match offset {
                    GICD_CTLR if word => (self.dist.ctlr | CTLR_FIXED).into(),
                    GICD_IROUTER..0x8000 => self.read_route(offset, size),
                    _ if word => identification(offset).into(),
                    _ => 0,
                }
            }
            Frame::Sgi(target) => match decode(offset, size) {
                Some((kind, 0)) => {
                    return self.read_bank(vcpu, Place::Private(target), kind);
                }
                _ => 0,
            },
            Frame::Redistributor(target) => {
                let last = self.vcpus.count().checked_sub(1) == Some(target);
                let Some(redist) = self.vcpus.redistributor(target) else {
                    return Read::Value(0);
                };
                match offset {
                    GICR_IIDR if word => IIDR.into(),
                    GICR_TYPER..=0x000f => half(offset, size).map_or(0, |(mask, shift)| {
                        let typer = u64::from(redist.affinity.bits()) << 32
                            | (target as u64 & 0xffff) << 8
                            | u64::from(last) << 4;
                        (typer & mask) >> shift
                    }),
                    GICR_WAKER if word && redist.is_awake() => 0,
                    GICR_WAKER if word => (PROCESSOR_SLEEP | CHILDREN_ASLEEP).into(),
                    _ if word => identification(offset).into(),
                    _ => 0,
                }
            }
        };
        Read::Value(value)
    }

    /// A guest's write of the low bytes of `value` in `frame`, by `vcpu`.
    pub fn write(&mut self, vcpu: usize, frame: Frame, at: At, value: u64) {
        let At { offset, size } = at;
        let word = size == 4 && offset.is_multiple_of(4);
        match frame {
            Frame::Distributor => match decode(offset, size) {
                Some((kind, bank)) => {
                    if let Some(place) = shared(bank) {
                        self.write_bank(vcpu, place, kind, value as u32);
                    }
                }
                None => match offset {
                    GICD_CTLR if word => self.set_ctlr(value as u32),
                    GICD_IROUTER..0x8000 => self.write_route(offset, size, value),
                    _ => {}
                },
            },
            Frame::Sgi(target) => {
                if let Some((kind, 0)) = decode(offset, size) {
                    self.write_bank(vcpu, Place::Private(target), kind, value as u32);
                }
            }
            Frame::Redistributor(target) => {
                if offset == GICR_WAKER && word {
                    self.write_waker(target, value as u32);
                }
            }
        }
    }

    fn read_bank(&mut self, reader: usize, place: Place, kind: Kind) -> Read {
        let state = match kind {
            Kind::SetPending | Kind::ClearPending => Some(0),
            Kind::SetActive | Kind::ClearActive => Some(1),
            _ => None,
        };
        if let Some(state) = state
            && !self.is_settled(reader, place, state)
        {
            return Read::Again;
        }
        let Some(bank) = self.bank(place) else {
            return Read::Value(0);
        };
        Read::Value(match kind {
            Kind::Group => bank.group1.into(),
            Kind::SetEnable | Kind::ClearEnable => bank.enabled.into(),
            Kind::SetPending | Kind::ClearPending => bank.pending_seen().into(),
            Kind::SetActive | Kind::ClearActive => bank.active.into(),
            Kind::Priority(from, count) => bank.priority[from..from + count]
                .iter()
                .rev()
                .fold(0, |value, &priority| value << 8 | u64::from(priority)),
            Kind::Config(half) => spread(bank.edge >> (16 * half)).into(),
        })
    }

    fn write_bank(&mut self, writer: usize, place: Place, kind: Kind, value: u32) {
        let hw = match place {
            Place::Private(vcpu) => self.vcpus.redistributor(vcpu).map_or(0, |r| r.hw),
            Place::Shared(_) => 0,
        };
        let Some(bank) = self.bank(place) else { return };
        let changed = match kind {
            Kind::Group => bank.set_group(value),
            Kind::SetEnable => bank.set_enabled(value, true),
            Kind::ClearEnable => bank.set_enabled(value, false),
            Kind::SetPending => {
                bank.set_pending(value);
                value
            }
            Kind::ClearPending => {
                bank.clear_pending(value);
                value
            }
            Kind::SetActive => return self.write_active(writer, place, value, true),
            Kind::ClearActive => return self.write_active(writer, place, value, false),
            Kind::Priority(from, count) => value
                .to_le_bytes()
                .iter()
                .take(count)
                .enumerate()
                .fold(0, |changed, (n, &priority)| {
                    changed | bank.set_priority(from + n, priority)
                }),
            Kind::Config(half) => {
                // SGIs are edge-triggered, linked PPIs level-sensitive.
                let fixed = match place {
                    Place::Private(_) => hw | 0xffff,
                    Place::Shared(_) => 0,
                };
                let mask = 0xffff << (16 * half) & !fixed;
                bank.set_edge(mask, gather(value) << (16 * half))
            }
        };
        self.notify(place, changed);
    }

    fn read_route(&self, offset: u64, size: usize) -> u64 {
        let Some(spi) = spi_index(((offset - GICD_IROUTER) / 8) as u32) else {
            return 0;
        };
        let Some((mask, shift)) = half(offset, size) else {
            return 0;
        };
        (self.route(spi) & mask) >> shift
    }

    /// `GICD_IROUTER<n>` of an SPI.
    fn route(&self, spi: usize) -> u64 {
        let any = if self.dist.routed_to_any(spi) {
            ROUTE_TO_ANY
        } else {
            0
        };
        crate::Affinity::from_bits(self.dist.route[spi]).to_mpidr() | any
    }

    fn write_route(&mut self, offset: u64, size: usize, value: u64) {
        let Some(spi) = spi_index(((offset - GICD_IROUTER) / 8) as u32) else {
            return;
        };
        let Some((mask, shift)) = half(offset, size) else {
            return;
        };
        let route = self.route(spi) & !mask | value << shift & mask;
        self.dist.route[spi] = crate::Affinity::from_mpidr(route).bits();
        let bit = 1 << (spi % 32);
        if route & ROUTE_TO_ANY != 0 {
            self.dist.any[spi / 32] |= bit;
        } else {
            self.dist.any[spi / 32] &= !bit;
        }
        self.notify(Place::Shared(spi / 32), bit);
    }

    fn write_waker(&mut self, vcpu: usize, value: u32) {
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return;
        };
        let sleeps = value & PROCESSOR_SLEEP;
        if core::mem::replace(&mut redist.waker, sleeps) == sleeps {
            return;
        }
        // What any PE may take: this one now may, or no longer does.
        self.mark(vcpu);
        if sleeps != 0 {
            self.find_others();
        }
    }

    /// True if the pending and active state of a bank is known well enough for
    /// `reader`: each vCPU with one of its interrupts in a list register has
    /// folded since the reader first asked. Otherwise kicks those.
    fn is_settled(&mut self, reader: usize, place: Place, state: u32) -> bool {
        let Some(held) = self.bank(place).map(|bank| bank.held) else {
            return true;
        };
        let epoch = self.dist.epoch;
        let (key, target) = match place {
            Place::Private(vcpu) => ((vcpu as u32) << 4 | 8 | state << 1 | 1, vcpu),
            Place::Shared(word) => (1 << 31 | (word as u32) << 4 | state << 1 | 1, 0),
        };
        let Some(redist) = self.vcpus.redistributor(reader) else {
            return true;
        };
        // An older question that happens to be alike does not count: between
        // two tries of one instruction the guest is entered at most once.
        let again = redist.awaited == key && redist.entries.wrapping_sub(redist.awaited_entry) <= 1;
        let since = if again { redist.awaited_since } else { epoch };
        let mut settled = true;
        for bit in bits(held) {
            let holder = match place {
                Place::Private(_) => target,
                Place::Shared(word) => self.dist.owner[word * 32 + bit].into(),
            };
            let folded = again
                && self
                    .vcpus
                    .redistributor(holder)
                    .is_none_or(|r| r.synced.wrapping_sub(since) as i32 > 0);
            if !folded {
                settled = false;
                self.mark(holder);
            }
        }
        if let Some(redist) = self.vcpus.redistributor(reader) {
            redist.awaited = if settled { 0 } else { key };
            redist.awaited_since = since;
            redist.awaited_entry = redist.entries;
        }
        settled
    }
}

/// The bits of the lower half, each in the upper bit of a pair: `ICFGR` from
/// edges.
fn spread(edges: u32) -> u32 {
    bits(edges & 0xffff).fold(0, |value, bit| value | 2 << (2 * bit))
}

/// The upper bit of each pair, side by side: edges from `ICFGR`.
fn gather(value: u32) -> u32 {
    (0..16).fold(0, |edges, bit| edges | (value >> (2 * bit + 1) & 1) << bit)
}

const _: () = assert!(CTLR_FIXED & CTLR_ENABLES == 0 && FIRST_SPI as usize == PRIVATE);

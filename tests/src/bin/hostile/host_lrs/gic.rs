//! A GICv3 of this host's own, for a realm of two vCPUs: registers, lines, and list
//! registers filled and read back (IHI0069H, chapters 4 and 12).

use core::fmt;

use vgic::hcr;
use vgic::lr::{ACTIVE, EOI, GROUP1, PENDING, PRIORITY_SHIFT, intid};

/// vCPUs.
pub const VCPUS: usize = 2;
/// INTIDs that there are.
pub const INTIDS: usize = 48;
/// Interrupts of the timers, and the SPIs: one edge-triggered, one level-sensitive.
pub const VIRTUAL_TIMER: usize = 27;
pub const PHYSICAL_TIMER: usize = 30;
pub const EDGE_SPI: usize = 40;
pub const LEVEL_SPI: usize = 41;

/// Those that are pending by an event, and not by their line.
const EDGES: u64 = 0xffff | 1 << EDGE_SPI;
/// Where the SPIs begin among the bits of a vCPU's interrupts.
const SPIS: u64 = !0 << 32;

/// Offset of the redistributors from the distributor, and bytes of each.
const REDISTRIBUTORS: u64 = 0xa_0000;
const REDISTRIBUTOR: u64 = 0x2_0000;

/// How the host uses the list registers.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// So many of them.
    pub lists: usize,
    /// An active interrupt leaves its list register when another is pending: the guest's
    /// EOI is counted then.
    pub evicts: bool,
}

/// A vCPU's interrupts, each a bit by INTID, SPIs among them.
#[derive(Clone, Copy, Debug)]
pub struct Vcpu {
    enabled: u64,
    /// Of those in [`EDGES`].
    pending: u64,
    active: u64,
    /// Active, and in no list register.
    evicted: u64,
    lines: u64,
    given: [u64; 16],
    given_hcr: u64,
    awake: bool,
    /// Events of each, and rises of a line that this host drives.
    pub raised: [u64; INTIDS],
    /// How often the guest took each, by the list registers.
    pub taken: [u64; INTIDS],
    /// EOIs that were counted.
    pub counted: u64,
    /// What the list registers told that cannot be.
    pub wrong: u64,
}

impl Vcpu {
    const NEW: Self = Self {
        enabled: 0,
        pending: 0,
        active: 0,
        evicted: 0,
        lines: 0,
        given: [0; 16],
        given_hcr: 0,
        awake: false,
        raised: [0; INTIDS],
        taken: [0; INTIDS],
        counted: 0,
        wrong: 0,
    };

    /// Whether nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        (self.pending | self.active | self.lines) == 0
    }
}

impl fmt::Display for Vcpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pending,
            active,
            lines,
            wrong,
            counted,
            ..
        } = self;
        write!(
            f,
            "pending {pending:#x}, active {active:#x}, lines {lines:#x}, {wrong} wrong, "
        )?;
        write!(f, "{counted} EOIs counted, raised and taken:")?;
        let all = self.raised.iter().zip(&self.taken).enumerate();
        for (intid, (raised, taken)) in all.filter(|(_, (a, b))| **a + **b != 0) {
            write!(f, " {intid}: {raised} {taken}")?;
        }
        Ok(())
    }
}

/// All of it.
#[derive(Debug)]
pub struct Gic {
    by: Use,
    ctlr: u32,
    enabled: u64,
    /// vCPU of the SPIs from 40 on.
    routes: [usize; INTIDS - EDGE_SPI],
    /// The vCPUs.
    pub vcpus: [Vcpu; VCPUS],
}

/// INTIDs of a vCPU's interrupts.
fn each(mut bits: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let intid = bits.trailing_zeros() as usize;
        bits &= bits.wrapping_sub(1);
        (intid < 64).then_some(intid)
    })
}

impl Gic {
    /// As out of reset.
    pub const fn new(by: Use) -> Self {
        Self {
            by,
            ctlr: 0,
            enabled: 0,
            routes: [VCPUS; INTIDS - EDGE_SPI],
            vcpus: [Vcpu::NEW; VCPUS],
        }
    }

    /// An access at this offset from the distributor: what is read.
    pub fn access(&mut self, offset: u64, write: Option<u64>) -> u64 {
        if let Some(offset) = offset.checked_sub(REDISTRIBUTORS) {
            let index = (offset / REDISTRIBUTOR) as usize;
            let vcpu = self.vcpus.get_mut(index);
            return vcpu.map_or(0, |vcpu| private(vcpu, offset % REDISTRIBUTOR, write));
        }
        match (offset, write) {
            (0, Some(value)) => self.ctlr = value as u32,
            (0, None) => return self.ctlr.into(),
            (0x104, Some(value)) => self.enabled |= value << 32,
            (0x104, None) => return self.enabled >> 32,
            (0x6000.., Some(value)) => {
                let intid = (offset - 0x6000) as usize / 8;
                if let Some(route) = self.routes.get_mut(intid.wrapping_sub(EDGE_SPI)) {
                    *route = (value & 0xff) as usize;
                }
            }
            _ => {}
        }
        0
    }

    /// Whether an SPI is enabled, and this vCPU's.
    pub fn is_routed(&self, intid: usize, vcpu: usize) -> bool {
        let on = self.ctlr & 2 != 0 && self.enabled >> intid & 1 != 0;
        on && self.routes.get(intid.wrapping_sub(EDGE_SPI)) == Some(&vcpu)
    }

    /// Whether an event is pending, by what is known since the vCPU's last exit.
    pub fn is_pending(&self, vcpu: usize, intid: usize) -> bool {
        self.vcpus[vcpu].pending >> intid & 1 != 0
    }

    /// An event: false when it is pending already.
    pub fn event(&mut self, vcpu: usize, intid: usize) -> bool {
        let Some(vcpu) = self.vcpus.get_mut(vcpu) else {
            return false;
        };
        let fresh = vcpu.pending >> intid & 1 == 0;
        vcpu.pending |= 1 << intid;
        vcpu.raised[intid] += 1;
        fresh
    }

    /// A line is at this level.
    pub fn line(&mut self, vcpu: usize, intid: usize, level: bool) {
        let vcpu = &mut self.vcpus[vcpu];
        let old = vcpu.lines;
        vcpu.lines = old & !(1 << intid) | u64::from(level) << intid;
        vcpu.raised[intid] += u64::from(vcpu.lines > old);
    }

    /// `gicv3_hcr` and `gicv3_lrs` for a vCPU's entry.
    pub fn fill(&mut self, vcpu: usize) -> (u64, [u64; 16]) {
        let Use { lists, evicts } = self.by;
        let spis = if self.ctlr & 2 == 0 { 0 } else { self.enabled };
        let vcpu = &mut self.vcpus[vcpu];
        let enabled = if vcpu.awake { vcpu.enabled } else { 0 } & !SPIS | spis;
        let fresh = (vcpu.pending | vcpu.lines) & enabled & !vcpu.active;
        vcpu.evicted = if evicts && fresh != 0 { vcpu.active } else { 0 };
        let mut lrs = [0; 16];
        let mut free = lrs[..lists].iter_mut();
        let mut left = 0;
        for id in each(vcpu.active & !vcpu.evicted).chain(each(fresh)) {
            let Some(lr) = free.next() else {
                left += 1;
                continue;
            };
            let bit = 1u64 << id;
            let active = vcpu.active & bit != 0;
            // A level-sensitive one that is active is looked at when it is ended.
            let pending = vcpu.pending & bit != 0 || !active;
            *lr = GROUP1 | 0xa0 << PRIORITY_SHIFT | id as u64;
            for (is, field) in [
                (active, ACTIVE),
                (pending, PENDING),
                (bit & EDGES == 0, EOI),
            ] {
                *lr |= if is { field } else { 0 };
            }
            vcpu.pending &= !bit;
        }
        let mut bits = 0;
        if left > 0 && lists > 1 {
            bits |= hcr::UIE;
        } else if left > 0 {
            lrs[0] |= EOI;
        }
        if vcpu.evicted != 0 {
            bits |= hcr::LRENPIE;
        }
        (vcpu.given, vcpu.given_hcr) = (lrs, bits);
        (bits, lrs)
    }

    /// Takes them back from a vCPU's exit.
    pub fn fold(&mut self, vcpu: usize, bits: u64, lrs: &[u64; 16]) {
        let vcpu = &mut self.vcpus[vcpu];
        let mut wrong = bits & !hcr::EOI_COUNT != vcpu.given_hcr;
        vcpu.active = vcpu.evicted;
        for _ in 0..hcr::eoi_count(bits) {
            wrong |= vcpu.active == 0;
            vcpu.active &= vcpu.active.wrapping_sub(1);
            vcpu.counted += 1;
        }
        for (given, lr) in vcpu.given.into_iter().zip(*lrs) {
            let state = PENDING | ACTIVE;
            wrong |= (given ^ lr) & !state != 0 || lr & !given & PENDING != 0;
            let id = intid(given) as usize;
            if given & !lr & PENDING != 0 {
                vcpu.taken[id] += 1;
            }
            if lr & PENDING != 0 {
                vcpu.pending |= 1 << id & EDGES;
            }
            if lr & ACTIVE != 0 {
                vcpu.active |= 1 << id;
            }
        }
        vcpu.wrong += u64::from(wrong);
    }
}

/// An access to a vCPU's redistributor.
fn private(vcpu: &mut Vcpu, offset: u64, write: Option<u64>) -> u64 {
    match (offset, write) {
        (0x14, Some(value)) => vcpu.awake = value & 2 == 0,
        (0x14, None) => return if vcpu.awake { 0 } else { 0b110 },
        (0x1_0100, Some(value)) => vcpu.enabled |= value,
        (0x1_0100, None) => return vcpu.enabled,
        _ => {}
    }
    0
}

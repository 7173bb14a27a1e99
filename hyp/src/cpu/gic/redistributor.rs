//! Redistributors: which there are, and how a PE sets its SGIs and PPIs in its own
//! (IHI0069, 12.11).

use arm64::mmio::Frame;
use log::warn;
use spin::mutex::SpinMutex;

use super::Frames;
use crate::memory::region::Region;

/// Offsets in a redistributor: RD_base, and SGI_base 64 KiB above.
pub mod gicr {
    #![allow(missing_docs)] // the names are the specification's
    pub const CTLR: u64 = 0x0;
    pub const TYPER: u64 = 0x8;
    pub const STATUSR: u64 = 0x10;
    pub const WAKER: u64 = 0x14;
    pub const SGI_BASE: u64 = 0x1_0000;
    pub const IGROUPR0: u64 = SGI_BASE + 0x80;
    pub const ISENABLER0: u64 = SGI_BASE + 0x100;
    pub const ICENABLER0: u64 = SGI_BASE + 0x180;
    pub const ISPENDR0: u64 = SGI_BASE + 0x200;
    pub const ICPENDR0: u64 = SGI_BASE + 0x280;
    pub const ISACTIVER0: u64 = SGI_BASE + 0x300;
    pub const ICACTIVER0: u64 = SGI_BASE + 0x380;
    pub const IPRIORITYR: u64 = SGI_BASE + 0x400;
    pub const ICFGR: u64 = SGI_BASE + 0xc00;
    /// Both frames.
    pub const SIZE: u64 = 0x2_0000;
    /// With the two frames of GICv4 behind them (TYPER.VLPIS).
    pub const SIZE_VLPIS: u64 = 0x4_0000;

    pub const CTLR_ENABLE_LPIS: u64 = 1 << 0;
    pub const CTLR_RWP: u64 = 1 << 3;
    pub const TYPER_VLPIS: u64 = 1 << 1;
    pub const TYPER_LAST: u64 = 1 << 4;
    pub const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
}

/// Held from the reading of a redistributor's register to its writing.
static MODIFY: SpinMutex<()> = SpinMutex::new(());

/// A redistributor, all of whose registers are reached through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Redistributor(Frame<{ gicr::SIZE }>);

impl Redistributor {
    /// The redistributor with RD_base here.
    ///
    /// # Safety
    /// As for [`Frame::new`]. Those who write (this file and
    /// exception/redistributor.rs) write states and settings of interrupts, none
    /// that has the GIC access memory.
    pub const unsafe fn new(rd_base: u64) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Frame::new(rd_base) })
    }

    /// Reads `size` bytes: 1, 4 or 8.
    #[inline]
    pub fn read(self, offset: u64, size: u32) -> u64 {
        match size {
            1 => self.0.read::<u8>(offset).into(),
            4 => self.0.read::<u32>(offset).into(),
            _ => self.0.read(offset),
        }
    }

    /// Writes them.
    #[inline]
    pub fn write(self, offset: u64, size: u32, value: u64) {
        match size {
            1 => self.0.write(offset, value as u8),
            4 => self.0.write(offset, value as u32),
            _ => self.0.write(offset, value),
        }
    }

    /// Replaces a register's value by what `change` makes of it, as one step for
    /// all who change registers so.
    pub fn modify(self, offset: u64, size: u32, change: impl FnOnce(u64) -> u64) {
        let _lock = MODIFY.lock();
        self.write(offset, size, change(self.read(offset, size)));
    }

    /// The redistributors of one region: each with its TYPER.
    ///
    /// # Safety
    /// As for [`new`](Self::new), for each of them.
    pub unsafe fn all_of(region: Region, stride: Option<u64>) -> impl Iterator<Item = (Self, u64)> {
        let mut next = Some(region.base());
        core::iter::from_fn(move || {
            let base = next?;
            if base.checked_add(gicr::SIZE)? > region.end() {
                return None;
            }
            // SAFETY: the caller's promise.
            let frame = unsafe { Self::new(base) };
            let typer = frame.read(gicr::TYPER, 8);
            let own = if typer & gicr::TYPER_VLPIS != 0 {
                gicr::SIZE_VLPIS
            } else {
                gicr::SIZE
            };
            next = base
                .checked_add(stride.unwrap_or(own))
                .filter(|_| typer & gicr::TYPER_LAST == 0);
            Some((frame, typer))
        })
    }

    /// That of the PE with this affinity.
    ///
    /// # Safety
    /// As for [`all_of`](Self::all_of).
    pub unsafe fn find(frames: &Frames, mpidr: u64) -> Option<Self> {
        let affinity = affinity(mpidr);
        let regions = frames.redistributors.iter();
        regions
            // SAFETY: the caller's promise.
            .flat_map(|region| unsafe { Self::all_of(*region, frames.stride) })
            .find(|(_, typer)| typer >> 32 == affinity)
            .map(|(frame, _)| frame)
    }

    fn read32(self, offset: u64) -> u32 {
        self.0.read(offset)
    }

    fn is_set(self, offset: u64, intid: u32) -> bool {
        self.read32(offset) >> intid & 1 != 0
    }

    /// Writes the bit of one SGI or PPI to a register where zeros do nothing.
    pub(super) fn put(self, offset: u64, intid: u32) {
        self.0.write(offset, 1u32 << intid);
    }

    fn wait_for_writes(self) {
        while u64::from(self.read32(gicr::CTLR)) & gicr::CTLR_RWP != 0 {
            core::hint::spin_loop();
        }
    }

    pub(super) fn wake(self) {
        let asleep = gicr::WAKER_PROCESSOR_SLEEP;
        self.modify(gicr::WAKER, 4, |waker| waker & !asleep);
    }

    /// Has it access no memory: a boot loader may have left LPIs on, with tables
    /// in what is RAM like any other now.
    pub fn stop_lpis(self) {
        let lpis = || self.read(gicr::CTLR, 4) & gicr::CTLR_ENABLE_LPIS != 0;
        if !lpis() {
            return;
        }
        self.modify(gicr::CTLR, 4, |ctlr| ctlr & !gicr::CTLR_ENABLE_LPIS);
        self.wait_for_writes();
        if lpis() {
            warn!(
                "the GIC goes on using the LPI tables of the boot loader: \
                 the device tree must reserve them"
            );
        }
    }

    /// Whether an SGI or PPI is pending.
    pub(super) fn is_pending(self, intid: u32) -> bool {
        self.is_set(gicr::ISPENDR0, intid)
    }

    /// Whether it is active.
    pub(super) fn is_active(self, intid: u32) -> bool {
        self.is_set(gicr::ISACTIVER0, intid)
    }

    /// Its settings.
    pub(super) fn line(self, intid: u32) -> Line {
        Line {
            enabled: self.is_set(gicr::ISENABLER0, intid),
            group1: self.is_set(gicr::IGROUPR0, intid),
            priority: self.0.read(gicr::IPRIORITYR + u64::from(intid)),
            edge: intid >= 16 && self.is_edge(intid),
        }
    }

    fn is_edge(self, intid: u32) -> bool {
        let (register, bit) = config(intid);
        u64::from(self.read32(register)) & bit != 0
    }

    /// Changes them from what they are. When it returns, one that is disabled is not
    /// signalled.
    pub(super) fn set_line(self, intid: u32, was: Line, line: Line) {
        // An SGI is edge-triggered, and nothing else.
        let edge = intid >= 16 && line.edge != was.edge;
        // The way that an interrupt is triggered changes while it is disabled
        // (IHI0069H, 12.9.9).
        if !line.enabled || edge {
            self.put(gicr::ICENABLER0, intid);
            self.wait_for_writes();
        }
        if line.group1 != was.group1 {
            self.set_bit(gicr::IGROUPR0, 1 << intid, line.group1);
        }
        if line.priority != was.priority {
            self.0
                .write(gicr::IPRIORITYR + u64::from(intid), line.priority);
        }
        if edge {
            let (register, bit) = config(intid);
            self.set_bit(register, bit, line.edge);
        }
        if line.enabled {
            self.put(gicr::ISENABLER0, intid);
        }
    }

    fn set_bit(self, offset: u64, bit: u64, set: bool) {
        self.modify(offset, 4, |old| if set { old | bit } else { old & !bit });
    }
}

/// ICFGR of an interrupt, and its bit there that says edge-triggered.
fn config(intid: u32) -> (u64, u64) {
    (
        gicr::ICFGR + u64::from(intid / 16) * 4,
        2 << (intid % 16 * 2),
    )
}

/// An affinity of MPIDR_EL1's as GICR_TYPER has it.
fn affinity(mpidr: u64) -> u64 {
    (mpidr & 0xff_ffff) | (mpidr >> 8 & 0xff00_0000)
}

/// The settings of an SGI or PPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    enabled: bool,
    group1: bool,
    priority: u8,
    edge: bool,
}

impl Line {
    /// What EL2 needs of an interrupt that it takes: the highest priority, which the host
    /// cannot mask ([`super::loan`]), and level-sensitive as timers are.
    pub(super) const OURS: Self = Self {
        enabled: true,
        group1: true,
        priority: 0,
        edge: false,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_is_of_four_levels() {
        // U and MT are none of it.
        assert_eq!(affinity(0x12_c134_5678), 0x1234_5678);
    }
}

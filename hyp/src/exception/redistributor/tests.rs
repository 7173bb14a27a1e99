//! Accesses of the host's, held against a redistributor that keeps what is written.

use super::*;
use crate::memory::region::Region;
use arm64::recording::{self, Event};
use proptest::prelude::*;

const BASE: u64 = 0x80a_0000;

const PPI: Ppis = Ppis {
    maintenance: 25,
    virtual_timer: 27,
    hyp_timer: 26,
};

/// The bits of EL2's own: two PPIs, and the SGI of kicks.
const HIDDEN: u64 = 1 << 25 | 1 << 26;
const KEPT: u64 = HIDDEN | 1 << 7;

/// The redistributor under test, with its registers all zero.
fn frame() -> Redistributor {
    recording::reset();
    at(BASE)
}

fn at(rd_base: u64) -> Redistributor {
    // SAFETY: a record is behind it, and no GIC.
    unsafe { Redistributor::new(rd_base) }
}

/// A region of redistributors with these TYPER.VLPIS.
fn region(base: u64, vlpis: &[bool]) -> Region {
    let mut frame = base;
    for (n, has_vlpis) in vlpis.iter().enumerate() {
        let last = n + 1 == vlpis.len();
        let typer = (n as u64) << 32 | u64::from(last) << 4 | u64::from(*has_vlpis) << 1 | 1;
        recording::set_device(frame + gicr::TYPER, 8, typer);
        frame += if *has_vlpis { 0x4_0000 } else { 0x2_0000 };
    }
    Region::new(base, 0x100_0000).unwrap()
}

fn write(frame: Redistributor, offset: u64, size: u32, value: u64) {
    let access = Access {
        offset,
        size,
        write: Some(value & (u64::MAX >> (64 - 8 * size))),
    };
    perform(frame, Own::new(&PPI), access);
}

/// A register that holds `before`, after a write of `value`.
fn after(offset: u64, size: u32, before: u64, value: u64) -> u64 {
    let frame = frame();
    recording::set_device(BASE + offset, size, before);
    write(frame, offset, size, value);
    recording::device(BASE + offset, size)
}

/// A register as the host reads it, when the machine's is all ones.
fn seen(offset: u64, size: u32) -> u64 {
    let frame = frame();
    recording::set_device(BASE + offset, size, !0);
    let access = Access {
        offset,
        size,
        write: None,
    };
    perform(frame, Own::new(&PPI), access)
}

#[test]
fn lpis_are_not_there() {
    // CTLR: EnableLPIs, CES and IR; TYPER: PLPIS, VLPIS, Dirty, DirectLPI, MPAM,
    // RVPEID, CommonLPIAff, VSGI.
    assert_eq!(seen(0x0, 4), 1 << 31 | 0b111 << 24 | 1 << 3);
    assert_eq!(after(0x0, 4, 0, 0xffff_ffff), 0b111 << 24);
    assert_eq!(after(0x0, 4, 1 << 24, 1 << 26), 1 << 26);
    let typer = 0xffff_ffff_f8ff_ff30;
    assert_eq!(seen(0x8, 8), typer);
    assert_eq!(seen(0x8, 4), typer & 0xffff_ffff);
    assert_eq!(seen(0xc, 4), typer >> 32);
    // SETLPIR, CLRLPIR, PROPBASER, PENDBASER, INVLPIR, INVALLR, SYNCR, MPAMIDR,
    // PARTIDR, and what is implementation defined.
    let lpis = [
        0x40, 0x48, 0x70, 0x78, 0xa0, 0xb0, 0xc0, 0x18, 0x1c, 0x20, 0x24, 0xc000, 0x100, 0x110,
    ];
    for at in lpis {
        for (at, size) in [(at, 4), (at + 4, 4), (at, 8)] {
            // 4 bytes on are others' at 0x1c and 0x20.
            assert_eq!(seen(at, size), 0, "{at:#x}");
            assert_eq!(after(at, size, 0, !0), 0, "{at:#x}");
        }
    }
}

/// Who reads that it is a GICv4 looks for TYPER.VLPIS, or takes frames for virtual LPIs as
/// there: neither is.
#[test]
fn a_gicv4_is_a_gicv3_to_the_host() {
    for revision in [3, 4] {
        let frame = frame();
        recording::set_device(BASE + 0xffe8, 4, 0xb | revision << 4);
        let access = |write| Access {
            offset: 0xffe8,
            size: 4,
            write,
        };
        assert_eq!(perform(frame, Own::new(&PPI), access(None)), 0x3b);
        perform(frame, Own::new(&PPI), access(Some(0)));
        assert_eq!(recording::device(BASE + 0xffe8, 4), 0xb | revision << 4);
    }
    // The others are the machine's.
    for at in [0xffd0, 0xffe0, 0xffe4, 0xffec, 0xfffc] {
        assert_eq!(seen(at, 4), 0xffff_ffff, "{at:#x}");
    }
}

#[test]
fn a_redistributor_is_woken_and_never_put_to_sleep() {
    assert_eq!(after(0x14, 4, 0b110, 0), 0b100);
    assert_eq!(after(0x14, 4, 0b000, 0b010), 0);
    assert_eq!(after(0x14, 4, 0b110, 0xffff_ffff), 0b110);
    assert_eq!(seen(0x14, 4), 0xffff_ffff);
}

#[test]
fn el2s_interrupts_are_neither_seen_nor_changed() {
    let ones = 0xffff_ffff;
    for at in [0x100, 0x180, 0x200, 0x280, 0x300, 0x380] {
        let at = gicr::SGI_BASE + at;
        assert_eq!(seen(at, 4), ones & !HIDDEN, "{at:#x}");
        assert_eq!(after(at, 4, 0, ones), ones & !KEPT, "{at:#x}");
        for extended in [at + 4, at + 8] {
            assert_eq!(seen(extended, 4), ones, "{extended:#x}");
            assert_eq!(after(extended, 4, 0, ones), ones, "{extended:#x}");
        }
    }
    for at in [0x80, 0xf80] {
        let at = gicr::SGI_BASE + at;
        assert_eq!(seen(at, 4), ones & !HIDDEN);
        assert_eq!(after(at, 4, 0, ones), ones & !KEPT);
        assert_eq!(after(at, 4, ones, 0), KEPT);
        assert_eq!(after(at + 8, 4, ones, 0), 0);
    }
    // Priorities: a byte each, by byte or word. The kick's is read, not written.
    let priority = gicr::SGI_BASE + 0x400;
    for (intid, seen_as, kept) in [(24, 0xff, 0), (25, 0, 0x5a), (26, 0, 0x5a), (7, 0xff, 0x5a)] {
        assert_eq!(seen(priority + intid, 1), seen_as, "{intid}");
        let written = after(priority + intid, 1, 0x5a, 0);
        assert_eq!(written, kept, "{intid}");
    }
    assert_eq!(seen(priority + 24, 4), 0xff00_00ff);
    assert_eq!(after(priority + 24, 4, 0x5a5a_5a5a, 0), 0x005a_5a00);
    assert_eq!(
        after(priority + 32, 4, 0x5a5a_5a5a, 0),
        0,
        "an extended one"
    );
    assert_eq!(
        after(priority + 92, 4, 0, ones),
        ones,
        "the last extended one"
    );
    // Configuration: two bits each.
    let config = gicr::SGI_BASE + 0xc00;
    assert_eq!(after(config, 4, 0, ones), ones & !(3 << 14));
    assert_eq!(after(config + 4, 4, 0, ones), ones & !(0xf << 18));
    assert_eq!(after(config + 0x14, 4, 0, ones), ones);
}

#[test]
fn the_virtual_timer_is_the_hosts_to_set() {
    let at = gicr::SGI_BASE + 0x100;
    assert_eq!(after(at, 4, 0, 1 << 27 | 1 << 30), 1 << 27 | 1 << 30);
}

#[test]
fn accesses_of_other_sizes_do_nothing() {
    for (at, size) in [
        (0x0, 1),
        (0x0, 8),
        (0x1, 4),
        (0xa, 4),
        (0xc, 8),
        (0x14, 2),
        (gicr::SGI_BASE + 0x100, 1),
        (gicr::SGI_BASE + 0x100, 8),
        (gicr::SGI_BASE + 0x400, 2),
        (gicr::SGI_BASE + 0x400, 8),
        (gicr::SGI_BASE + 0x402, 4),
    ] {
        assert_eq!(seen(at, size), 0, "{at:#x}");
        assert_eq!(after(at, size, 0, !0), 0, "{at:#x}");
    }
}

#[test]
fn what_is_read_only_stays() {
    for at in [0x4, 0xffec, gicr::SGI_BASE + 0xffe8] {
        assert_eq!(seen(at, 4), 0xffff_ffff, "{at:#x}");
        assert_eq!(after(at, 4, 0x3b, 0), 0x3b, "{at:#x}");
    }
    assert_eq!(after(0x8, 8, 0x11, 0), 0x11);
}

#[test]
fn frames_follow_each_other_whatever_stands_behind_them() {
    let mut frames = Frames::NONE;
    frames
        .redistributors
        .push(region(BASE, &[false, true, true, false]));
    frames.redistributors.push(region(0x4000_0000, &[true]));
    let found = |ipa| {
        // SAFETY: a record is behind them.
        unsafe { locate(&frames, ipa) }
    };
    for (n, real) in [(0, 0), (1, 0x2_0000), (2, 0x6_0000), (3, 0xa_0000)] {
        let ipa = BASE + n * 0x2_0000 + 0x1_0400;
        let right = Place::Redistributor(at(BASE + real), 0x1_0400);
        assert_eq!(found(ipa), Some(right), "{n}");
    }
    assert_eq!(found(BASE + 4 * 0x2_0000), None, "behind the last");
    assert_eq!(found(BASE - 1), None);
    assert_eq!(
        found(0x4000_0008),
        Some(Place::Redistributor(at(0x4000_0000), 8))
    );
    assert_eq!(found(0x4002_0000), None, "its VLPI frame is not there");
}

#[test]
fn a_stride_of_the_device_tree_counts() {
    for n in 0..2u64 {
        recording::set_device(BASE + n * 0x8_0000 + 8, 8, n << 32 | n << 4 | 2);
    }
    let mut frames = Frames::NONE;
    let region = Region::new(BASE, 0x10_0000).unwrap();
    frames.redistributors.push(region);
    frames.stride = Some(0x8_0000);
    let found = |offset| {
        // SAFETY: a record is behind them.
        unsafe { locate(&frames, BASE + offset) }
    };
    let second = at(BASE + 0x8_0000);
    assert_eq!(found(0x8_0014), Some(Place::Redistributor(second, 0x14)));
    assert_eq!(found(0x2_0000), Some(Place::Between));
    assert_eq!(found(0x10_0000), None);
}

proptest! {
    /// Whatever the host does with a redistributor: nothing that has the GIC use
    /// memory or that is EL2's is written.
    #[test]
    fn no_access_reaches_memory_or_el2s_interrupts(
        accesses in prop::collection::vec((0u64..0x2_0000, 0u32..4, any::<u64>()), 1..200)
    ) {
        let frame = frame();
        let events = recording::of(|| {
            for (offset, size, value) in accesses {
                // Near the registers that there are, half of the time.
                let offset = if value & 1 == 0 { offset } else { offset & 0x1_0fff };
                write(frame, offset, 1 << size, value);
                write(frame, offset & !3, 4, value);
            }
        });
        for event in events {
            let Event::Store(address, _, value) = event else { continue };
            let offset = address - BASE;
            let harmless = match offset {
                0x0 => value & !CTLR_DPG == 0,
                0x10 | 0x14 => true,
                0x1_0080..=0x1_03ff => offset & 0x7f > 0 || value & KEPT == 0,
                // Their fields are looked at below.
                0x1_0400..=0x1_045f | 0x1_0c00..=0x1_0c17 | 0x1_0f80..=0x1_0f8b => true,
                _ => false,
            };
            prop_assert!(harmless, "{:#x} at {:#x}", value, offset);
        }
        let own = [(0x1_0c00u64, 3u64 << 14), (0x1_0c04, 0xf << 18), (0x1_0f80, KEPT)];
        for (offset, bits) in own {
            prop_assert_eq!(recording::device(BASE + offset, 4) & bits, 0);
        }
        for id in [7, 25, 26] {
            prop_assert_eq!(recording::device(BASE + 0x1_0400 + id, 1), 0);
        }
    }
}

/// A region that ends with its last frame, whose TYPER.Last is clear.
#[test]
fn a_region_is_full_of_frames() {
    for (size, frames) in [(0x2_0000, 1), (0x3_ffff, 1), (0x4_0000, 2), (0x1_ffff, 0)] {
        let region = Region::new(BASE, size).unwrap();
        // SAFETY: a record is behind them.
        let found = unsafe { Redistributor::all_of(region, None) };
        assert_eq!(found.count(), frames, "{size:#x}");
    }
}

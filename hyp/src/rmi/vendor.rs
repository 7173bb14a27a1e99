//! The vendor calls (`rmi::vendor`).

use arm64::regs::CNTPCT_EL0;
use core::sync::atomic::Ordering;

use ::rmi::Status;
use ::rmi::feature::VendorFeatures;
use ::rmi::text::is_plain;
use ::rmi::vendor::{
    Exit, GICD_IPA, GICR_IPA, HISTORY_LEN, LOG_INPUT_MAX, LOG_LINE_MAX, RangeKind,
};
use log::Level;

use super::Outcome;
use super::args::{lock, lock_idle_rec, pin, pin_around};
use crate::guest::interrupts::intid;
use crate::memory::granule::State;
use crate::memory::guarded;
use crate::posting::Posting;
use crate::realm::{self, MAX_RECS, Realm};
use crate::rec::Rec;
use crate::system::System;

/// What the host can count on.
pub fn features(system: &System) -> VendorFeatures {
    VendorFeatures {
        granule_shift: system.granules.shift() as u8,
        pa_bits: system.features.pa_bits,
        fwb: system.features.fwb,
        nonconf: true,
        el2_vgic: true,
        protected: true,
        vmid16: system.features.vmid16,
    }
}

/// The ranges of RAM that were taken before the host began.
pub fn memory_range(system: &System, index: u64) -> Outcome<[u64; 3]> {
    let hyp = system.own.iter().map(|r| (*r, RangeKind::Hypervisor));
    let host = core::iter::once((system.host_image, RangeKind::HostImage));
    let withheld = system.withheld.iter();
    let all = hyp
        .chain(host)
        .chain(withheld.map(|r| (*r, RangeKind::Withheld)));
    let (region, kind) = usize::try_from(index)
        .ok()
        .and_then(|index| all.clone().nth(index))
        .ok_or(Status::ErrorInput)?;
    Ok([region.base(), region.size(), kind as u64])
}

/// One line of the host's, into the log.
pub fn log(system: &System, level: u64, pa: u64, length: u64) -> Outcome {
    let level = match level {
        1 => Level::Error,
        2 => Level::Warn,
        3 => Level::Info,
        4 => Level::Debug,
        5 => Level::Trace,
        _ => return Err(Status::ErrorInput),
    };
    if length > LOG_LINE_MAX {
        return Err(Status::ErrorInput);
    }
    let mut line = [0u8; LOG_LINE_MAX as usize];
    let line = &mut line[..length as usize];
    {
        let _pin = pin_around(system, pa, length)?;
        // SAFETY: inside a granule of the host's, pinned as such.
        unsafe { guarded::read_bytes(pa, line) }.map_err(|_| Status::ErrorInput)?;
    }
    let text = core::str::from_utf8(line).map_err(|_| Status::ErrorInput)?;
    if !text.chars().all(is_plain) {
        return Err(Status::ErrorInput);
    }
    // The host filters by the same setting; the last line goes out at any.
    crate::log::of_host(level, text);
    crate::log::written();
    Ok(())
}

/// What was typed at the log's own UART.
pub fn log_input() -> Outcome<[u64; 4]> {
    let mut bytes = [0; LOG_INPUT_MAX];
    let count = crate::log::receive(&mut bytes).ok_or(Status::ErrorInput)?;
    let mut words = [0; LOG_INPUT_MAX / 8];
    for (n, &byte) in bytes[..count].iter().enumerate() {
        words[n / 8] |= u64::from(byte) << (8 * (n % 8));
    }
    let [x2, x3, x4] = words;
    Ok([count as u64, x2, x3, x4])
}

/// A page for the accesses of a realm's device that need not wait for the host, or
/// none any more.
pub fn set_posted(system: &System, rd: u64, page: u64, ipa: u64, delay: u64) -> Outcome {
    let _lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    let outcome = |done| {
        if done {
            Ok(())
        } else {
            Err(Status::ErrorInput)
        }
    };
    if page == 0 {
        return outcome(realm.posted.end(&system.granules));
    }
    let aligned = ipa.is_multiple_of(posted::PAGE as u64);
    let shared = ipa.checked_sub(realm.shared_from);
    let at = shared.ok_or(Status::ErrorInput)?;
    if !aligned || ipa >> realm.ipa_bits != 0 || realm.posted.is_set() || is_gic(at) {
        return Err(Status::ErrorInput);
    }
    let pin = pin(system, page)?;
    let posting = Posting::new(ipa, page, pin, delay).map_err(|_| Status::ErrorInput)?;
    realm.posted.set(posting);
    Ok(())
}

/// Whether EL2's vGIC has its registers there, from the shared half's begin, for some
/// number of vCPUs.
const fn is_gic(ipa: u64) -> bool {
    let frames = MAX_RECS as u64 * vgic::REDISTRIBUTOR_SIZE;
    ipa.wrapping_sub(GICD_IPA) < vgic::DISTRIBUTOR_SIZE || ipa.wrapping_sub(GICR_IPA) < frames
}

/// Drives a line of a guest's interrupt controller.
pub fn set_spi(system: &System, rd: u64, spi: u64, level: u64) -> Outcome {
    let _lock = lock(system, rd, State::Rd)?;
    // SAFETY: the RD's lock is held.
    let realm = unsafe { Realm::at(rd) };
    let spi = u32::try_from(spi).map_err(|_| Status::ErrorInput)?;
    if level > 1 || realm.host_lrs {
        return Err(Status::ErrorInput);
    }
    realm
        .with_vgic(None, |vgic| vgic.set_spi(spi, level == 1))
        .map_err(|_| Status::ErrorInput)
}

/// Whether a vCPU that waits in the host would be woken, by interrupts that are EL2's.
pub fn rec_pending(system: &System, rec: u64) -> Outcome<bool> {
    let _lock = lock_idle_rec(system, rec)?;
    // SAFETY: the REC's lock is held, and it does not run.
    let (vcpu, run) = unsafe { (Rec::at(rec), &mut *Rec::at(rec).state.get()) };
    // SAFETY: it counts in its RD.
    let realm = unsafe { Realm::at(vcpu.rd) };
    if realm.host_lrs {
        return Err(Status::ErrorInput);
    }
    vcpu.kicks.looks();
    let now = CNTPCT_EL0.get();
    let vtimer = run.vtimer.ctl & 0b11 == 1 && now >= run.vtimer.cval;
    let ptimer = run.ptimer.level(now);
    Ok(realm.with_vgic(Some(vcpu.index), |vgic| {
        // The PPIs and the vCPU exist.
        let _ = vgic.set_ppi(vcpu.index, intid::VIRTUAL_TIMER, vtimer);
        let _ = vgic.set_ppi(vcpu.index, intid::PHYSICAL_TIMER, ptimer);
        vgic.pending(vcpu.index, run.interface.vmcr)
    }))
}

/// The last exits of a plain guest's vCPU that does not run, oldest first.
pub fn rec_history(system: &System, rec: u64, pa: u64) -> Outcome<u64> {
    let _pin = pin(system, pa)?;
    let _lock = lock_idle_rec(system, rec)?;
    // SAFETY: the REC's lock is held.
    let vcpu = unsafe { Rec::at(rec) };
    // SAFETY: it counts in its RD.
    if unsafe { Realm::at(vcpu.rd) }.is_confidential() {
        return Err(Status::ErrorInput);
    }
    // SAFETY: the REC's lock is held, and it does not run.
    let run = unsafe { &*vcpu.state.get() };
    let count = run.exits.min(HISTORY_LEN as u64);
    for n in 0..count {
        let exit: Exit = run.history[((run.exits - count + n) % HISTORY_LEN as u64) as usize];
        // SAFETY: inside the pinned granule of the host's.
        unsafe { guarded::write(pa + n * size_of::<Exit>() as u64, &exit) }
            .map_err(|_| Status::ErrorInput)?;
    }
    Ok(count)
}

/// Has a vCPU come back to the host.
pub fn kick(system: &System, rec: u64) -> Outcome {
    let _lock = lock(system, rec, State::Rec)?;
    // SAFETY: the REC's lock is held.
    let vcpu = unsafe { Rec::at(rec) };
    vcpu.exit_requested.store(true, Ordering::SeqCst);
    realm::kick(rec, vcpu);
    Ok(())
}

//! Questions to a running machine, over the log's UART: Ctrl-T asks where every
//! vCPU is.
//!
//! Each CPU answers for its own vCPUs, when a kick has brought it out of its
//! guest: so no CPU looks at another's.

use crate::arch::local;
use crate::guest::handle::Guest;
use crate::guest::realm::describe;
use crate::machine::Machine;
use crate::rmi_call;
use alloc::format;
use alloc::string::String;
use arm64::syndrome::Syndrome;
use core::sync::atomic::Ordering;
use rmi::vendor::{Exit, HISTORY_LEN};

/// The byte that asks: Ctrl-T.
const ASK: u8 = 0x14;

/// The log's UART, which is EL2's, has received something, or has room for more
/// of the log: EL2 sees to that at any call. What one call leaves interrupts
/// again.
pub fn input(machine: &Machine) {
    let Ok((bytes, count)) = rmi_call::log_input() else {
        return;
    };
    if bytes[..count].contains(&ASK) {
        machine.reports.fetch_add(1, Ordering::AcqRel);
        for (index, cpu) in machine.cpus.iter().enumerate() {
            if cpu.started.load(Ordering::Acquire) {
                machine.wake(index);
            }
        }
    }
}

/// Logs the last exits of this CPU's vCPUs.
pub fn report<'a>(machine: &Machine, held: impl Iterator<Item = (&'a Guest, usize)>) {
    let size = machine.granules.lock().granule();
    let Some(page) = machine.granules.lock().take(size, size) else {
        log::error!("last exits: no RAM left to read them into");
        return;
    };
    log::info!("last exits on CPU {}:", local::index());
    for (guest, index) in held {
        let (vcpu, name) = (&guest.vcpus[index], &guest.name);
        if guest.is_protected() {
            log::info!("vcpu {name}/{index}: its exits are its own");
            continue;
        }
        match rmi_call::rec_history(vcpu.rec, page) {
            Ok(count) => {
                let exits: *const [Exit; HISTORY_LEN] =
                    core::ptr::with_exposed_provenance(page as usize);
                // SAFETY: The granule is the host's and EL2 has filled it; any
                // bytes are exits.
                let exits = unsafe { &*exits };
                for exit in &exits[..(count as usize).min(HISTORY_LEN)] {
                    // Exits that are no aborts have no IPA.
                    let region = match exit.ipa {
                        0 => String::new(),
                        ipa => describe(ipa, &guest.ram, guest.shared),
                    };
                    let reason = match exit.esr {
                        Exit::INTERRUPT => String::from("interrupt"),
                        esr => format!("{}", Syndrome(esr)),
                    };
                    log::info!(
                        "vcpu {}/{}: {} elr={:#x} far={:#x} ipa={:#x} {}",
                        name,
                        index,
                        reason,
                        exit.elr,
                        exit.far,
                        exit.ipa,
                        region
                    );
                }
                if count == 0 {
                    log::info!("vcpu {name}/{index}: has not run");
                }
            }
            Err(error) => log::info!("vcpu {name}/{index}: {error}"),
        }
    }
    machine.granules.lock().give(page, size);
}

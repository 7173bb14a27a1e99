//! Who runs where: each vCPU stays on its CPU, each CPU takes its vCPUs in turn.
//!
//! A CPU with one vCPU lets it wait for interrupts in hardware. A CPU with
//! several traps WFI, gives each its share by the physical timer ([`turns`]), and
//! sleeps only when none can run; then the timer is set to the first of their
//! deadlines, and EL2's kick tells of interrupts that come before. All time is on
//! somebody's account: what passes between two turns, on that of the next.
//!
//! No wake-up is lost: interrupts are masked and acknowledged only at the head
//! of the loop, so what arrives between looking and sleeping is still pending,
//! and ends the sleep. A vCPU that is off is tried again when its `starts` have
//! moved since before the entry that found it off.

use crate::arch::{cpu, insn};
use crate::life::{self, Guest, Vcpu};
use crate::machine::{self, Machine};
use crate::run::{self, Outcome};
use crate::turns::{Candidate, State, Turn, Turns};
use crate::{console, gic, monitor, rmi_call};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use rmi::run::EnterFlags;

/// Slices in a second.
const SLICES: u64 = 200;

/// A vCPU on this CPU.
pub struct Slot {
    /// Its guest.
    pub guest: Arc<Guest>,
    /// Its index there.
    pub index: usize,
    pending: EnterFlags,
    turn: Turn,
}

impl Slot {
    fn vcpu(&self) -> &Vcpu {
        &self.guest.vcpus[self.index]
    }
}

impl Candidate for Slot {
    fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn starts(&self) -> u32 {
        self.vcpu().starts.load(Ordering::SeqCst)
    }

    fn pending(&self) -> bool {
        // An error shows at the next entry.
        rmi_call::rec_pending(self.vcpu().rec).unwrap_or(true)
    }
}

/// Has a vCPU that was started looked at by its CPU, if that has found it off:
/// one that runs has nothing to look at.
pub fn start(vcpu: &Vcpu) {
    // Either this CPU sees that the other found it off, or the other sees the
    // start when it looks after saying so.
    vcpu.starts.fetch_add(1, Ordering::SeqCst);
    if vcpu.off.load(Ordering::SeqCst) {
        machine::get().wake(vcpu.cpu);
    }
}

/// A further CPU's way here.
pub fn secondary() -> ! {
    let machine = machine::get();
    let started = machine.gic.lock().start_cpu(&private(machine));
    if let Err(error) = started {
        panic!("CPU {}: {error}", cpu::index());
    }
    log::debug!("CPU {} runs", cpu::index());
    run_loop(machine)
}

/// The private interrupts that every CPU takes.
pub fn private(machine: &Machine) -> [u32; 3] {
    [
        rmi::vendor::KICK_SGI,
        gic::CALL_SGI,
        machine.platform.timer_intid,
    ]
}

/// Runs this CPU's vCPUs until the machine ends.
pub fn run_loop(machine: &'static Machine) -> ! {
    let me = &machine.cpus[cpu::index()];
    // Room for every vCPU there is: a reset allocates nothing here.
    let vcpus = machine.bundle.guests.iter().map(|guest| guest.vcpus.value);
    let mut slots: Vec<Slot> = Vec::with_capacity(vcpus.sum());
    let mut turns = Turns::new(insn::cntfrq() / SLICES);
    let mut reported = machine.reports.load(Ordering::Acquire);
    let mut since = insn::cntpct();
    loop {
        gic::take_all(|intid| interrupt(machine, intid));
        for (guest, index) in me.inbox.lock().drain(..) {
            // Only vCPU 0 starts by itself; the others are asked for.
            let state = if index == 0 {
                State::Ready
            } else {
                State::Off(0)
            };
            slots.push(Slot {
                guest,
                index,
                pending: EnterFlags::empty(),
                turn: Turn::new(state),
            });
        }
        let reports = machine.reports.load(Ordering::Acquire);
        if reports != reported {
            reported = reports;
            monitor::report(machine, &slots);
        }
        if let Some(gone) = slots.iter().position(|slot| slot.guest.stopping()) {
            let slot = slots.remove(gone);
            turns.removed(gone);
            life::leave(slot.guest);
            continue;
        }
        let choice = turns.choose(&mut slots, insn::cntpct());
        set_timer(choice.timer);
        let Some(at) = choice.run else {
            insn::dsb_sy();
            insn::wfi();
            since = insn::cntpct();
            continue;
        };
        let shared = slots.len() > 1;
        let slot = &mut slots[at];
        slot.vcpu().off.store(false, Ordering::SeqCst);
        let starts = slot.starts();
        let outcome = run::run(machine, &slot.guest, slot.index, shared, &mut slot.pending);
        match outcome {
            Outcome::Interrupted | Outcome::Stopping => {}
            Outcome::Waits(deadline) => slot.turn.state = State::Waits(deadline),
            Outcome::Off => {
                slot.vcpu().off.store(true, Ordering::SeqCst);
                slot.turn.state = State::Off(starts);
            }
        }
        let now = insn::cntpct();
        slot.turn.charge(now.saturating_sub(since));
        since = now;
    }
}

/// Sets this CPU's physical timer to a value of the counter, or stops it.
fn set_timer(at: Option<u64>) {
    match at {
        Some(at) => {
            insn::set_cntp_cval(at);
            insn::set_cntp_ctl(1);
        }
        None => insn::set_cntp_ctl(0),
    }
    insn::isb();
}

/// Serves an interrupt of the machine, so that its line drops.
fn interrupt(machine: &Machine, intid: u32) {
    let of = |uart: &Option<crate::platform::Uart>| uart.as_ref().and_then(|u| u.intid);
    if intid == machine.platform.timer_intid {
        set_timer(None);
    } else if Some(intid) == of(&machine.platform.console) {
        console::input(machine);
    } else if Some(intid) == of(&machine.platform.log) {
        monitor::input(machine);
    }
    // A kick or a call has done its work by arriving.
}

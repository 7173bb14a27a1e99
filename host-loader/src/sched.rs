//! Who runs where: each vCPU stays on its CPU, each CPU takes its vCPUs in turn,
//! and the jobs of guests that stopped there.
//!
//! A CPU with one vCPU lets it wait for interrupts in hardware. A CPU with
//! several traps WFI, gives each its share by the physical timer ([`crate::turns`]), and
//! sleeps only when none can run; then the timer is set to the first of their
//! deadlines, and EL2's kick signals interrupts that come before. Alarms of guests'
//! clocks are deadlines too, whoever runs ([`crate::alarm`]). All time is on
//! somebody's account: what passes between two turns, on that of the next.
//!
//! No wake-up is lost: interrupts are masked and acknowledged only at the head
//! of the loop, so what arrives between looking and sleeping is still pending,
//! and ends the sleep. A vCPU that is off is tried again when its `starts` have
//! moved since before the entry that found it off.

use crate::alarm::{self, WallClock};
use crate::arch::local;
use crate::guest::handle::{Guest, Vcpu};
use crate::life::{self, Job};
use crate::machine::{self, Machine};
use crate::run::{self, Outcome};
use crate::turns::{Candidate, State, Turn, Turns};
use crate::{console, gic, monitor, rmi_call};
use alloc::sync::Arc;
use alloc::vec::Vec;
use arm64::instr;
use arm64::regs::{CNTFRQ_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0, CNTPCT_EL0};
use core::sync::atomic::Ordering;
use rmi::run::EnterFlags;

/// Slices in a second.
const SLICES: u64 = 200;

/// What a turn costs beside its time when its vCPU then waits or is off, as a part
/// of a slice: to come back it interrupts a neighbour, on whose account that is,
/// and would, woken all the time, leave it nothing but interruptions.
const WAIT_PART: u64 = 500;

/// A wait that ends within this part of a slice is none: another's turn would be
/// over before it began. The guest's WFI ends early, as any may.
const SHORT_WAIT_PART: u64 = 500;

/// How long a job goes on before the CPU looks at its interrupts, as a part of a
/// slice.
const JOB_PART: u64 = 5;

/// Something that takes turns on this CPU.
struct Slot {
    what: What,
    turn: Turn,
    /// Whose account it is on: a guest's place in the configuration, and a vCPU's
    /// index.
    account: (usize, usize),
}

enum What {
    Vcpu(Held),
    Job(Job),
}

/// A vCPU that this CPU holds.
struct Held {
    guest: Arc<Guest>,
    /// Its index there.
    index: usize,
    pending: EnterFlags,
}

impl Held {
    fn vcpu(&self) -> &Vcpu {
        &self.guest.vcpus[self.index]
    }
}

impl Slot {
    fn held(&self) -> Option<&Held> {
        match &self.what {
            What::Vcpu(held) => Some(held),
            What::Job(_) => None,
        }
    }
}

impl Candidate for Slot {
    fn turn(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn starts(&self) -> u32 {
        self.held()
            .map_or(0, |held| held.vcpu().starts.load(Ordering::SeqCst))
    }

    fn pending(&self) -> bool {
        // An error shows at the next entry.
        self.held()
            .is_none_or(|held| rmi_call::rec_pending(held.vcpu().rec).unwrap_or(true))
    }
}

/// A further CPU's way here.
pub fn secondary() -> ! {
    let machine = machine::get();
    let started = machine.gic.lock().start_cpu(&private(machine));
    if let Err(error) = started {
        panic!("CPU {}: {error}", local::index());
    }
    log::debug!("CPU {} runs", local::index());
    run_loop(machine)
}

/// The private interrupts that every CPU takes. The host leaves the virtual timer to
/// guests: it is set up here so that EL2 has nothing to set up at each turn of one.
pub fn private(machine: &Machine) -> [u32; 4] {
    [
        rmi::vendor::KICK_SGI,
        gic::CALL_SGI,
        machine.platform.timer_intid,
        machine.platform.virtual_timer_intid,
    ]
}

/// All that takes turns on a CPU.
struct Schedule {
    machine: &'static Machine,
    slots: Vec<Slot>,
    turns: Turns,
    /// Accounts of vCPUs that left and may come back: a reset is no new account.
    left: Vec<((usize, usize), Turn)>,
    /// When the last turn ended.
    since: u64,
}

/// Runs this CPU's vCPUs until the machine ends.
pub fn run_loop(machine: &'static Machine) -> ! {
    let me = &machine.cpus[local::index()];
    // Room for every vCPU there is: a reset allocates nothing here.
    let guests = machine.bundle.guests.iter();
    let vcpus = guests.map(|guest| guest.guest.vcpus as usize).sum();
    let mut schedule = Schedule {
        machine,
        slots: Vec::with_capacity(vcpus),
        turns: Turns::new(slice()),
        left: Vec::with_capacity(vcpus),
        since: CNTPCT_EL0.get(),
    };
    let mut reported = machine.reports.load(Ordering::Acquire);
    loop {
        gic::take_all(|intid| interrupt(machine, intid));
        for (guest, index) in me.inbox.lock().drain(..) {
            schedule.arrive(guest, index);
        }
        let reports = machine.reports.load(Ordering::Acquire);
        if reports != reported {
            reported = reports;
            let held = schedule.slots.iter().filter_map(Slot::held);
            monitor::report(machine, held.map(|held| (&*held.guest, held.index)));
        }
        while schedule.let_go_of_one() {}
        schedule.turn();
    }
}

/// Ticks of a slice.
fn slice() -> u64 {
    CNTFRQ_EL0.get() / SLICES
}

impl Schedule {
    fn arrive(&mut self, guest: Arc<Guest>, index: usize) {
        // Only vCPU 0 starts by itself; the others are asked for.
        let state = if index == 0 {
            State::Waits(Some(0))
        } else {
            State::Off(0)
        };
        let account = (guest.config, index);
        let before = self.left.iter().position(|left| left.0 == account);
        let turn = match before.map(|at| self.left.swap_remove(at).1) {
            Some(turn) => turn.with(state),
            None => Turn::new(state),
        };
        self.slots.push(Slot {
            what: What::Vcpu(Held {
                guest,
                index,
                pending: EnterFlags::empty(),
            }),
            turn,
            account,
        });
    }

    /// Lets go of a vCPU whose guest stops, if there is one. What then is to be
    /// done for the guest goes on with its account.
    fn let_go_of_one(&mut self) -> bool {
        let stops = |slot: &Slot| slot.held().is_some_and(|held| held.guest.stopping());
        let Some(at) = self.slots.iter().position(stops) else {
            return false;
        };
        let Slot {
            what: What::Vcpu(held),
            turn,
            account,
        } = self.slots.remove(at)
        else {
            return false;
        };
        self.turns.removed(at);
        match life::leave(self.machine, held.guest) {
            Some(job) => self.slots.push(Slot {
                what: What::Job(job),
                turn: turn.with(State::Ready),
                account,
            }),
            None => self.left.push((account, turn)),
        }
        true
    }

    /// The next alarm of a guest's clock that is not due `now`; those that are have come.
    fn alarm(&self, now: u64) -> Option<u64> {
        if !alarm::is_any() {
            return None;
        }
        let clocks = || {
            self.slots
                .iter()
                .filter_map(Slot::held)
                .map(|held| &held.guest.clock)
        };
        clocks()
            .filter(|clock| clock.due() <= now)
            .for_each(WallClock::look);
        clocks()
            .map(WallClock::due)
            .min()
            .filter(|due| *due != u64::MAX)
    }

    /// Gives whoever's turn it is a turn, or sleeps.
    fn turn(&mut self) {
        let now = CNTPCT_EL0.get();
        let alarm = self.alarm(now);
        let choice = self.turns.choose(&mut self.slots, now);
        set_timer(choice.timer.into_iter().chain(alarm).min());
        let Some(at) = choice.next else {
            instr::dsb_sy();
            instr::wfi();
            self.since = CNTPCT_EL0.get();
            return;
        };
        let shared = self.slots.len() > 1;
        let slot = &mut self.slots[at];
        let mut beside = 0;
        let done = match &mut slot.what {
            What::Vcpu(held) => {
                enter(self.machine, held, &mut slot.turn, shared);
                if slot.turn.state != State::Ready {
                    beside = slice() / WAIT_PART;
                }
                false
            }
            What::Job(job) => {
                let soon = CNTPCT_EL0.get() + slice() / JOB_PART;
                job.pace.allow(choice.timer.unwrap_or(u64::MAX).min(soon));
                job.turn()
            }
        };
        let now = CNTPCT_EL0.get();
        slot.turn.charge(now.saturating_sub(self.since) + beside);
        self.since = now;
        if done {
            let slot = self.slots.remove(at);
            self.turns.removed(at);
            self.left.push((slot.account, slot.turn));
        }
    }
}

/// Runs a vCPU until it comes out.
fn enter(machine: &Machine, held: &mut Held, turn: &mut Turn, shared: bool) {
    held.vcpu().off.store(false, Ordering::SeqCst);
    let starts = held.vcpu().starts.load(Ordering::SeqCst);
    let outcome = run::run(machine, &held.guest, held.index, shared, &mut held.pending);
    let soon = CNTPCT_EL0.get() + slice() / SHORT_WAIT_PART;
    match outcome {
        Outcome::Interrupted | Outcome::Stopping => {}
        Outcome::Waits(Some(at)) if at <= soon => {}
        Outcome::Waits(deadline) => turn.state = State::Waits(deadline),
        Outcome::Off => {
            held.vcpu().off.store(true, Ordering::SeqCst);
            turn.state = State::Off(starts);
        }
    }
}

/// Sets this CPU's physical timer to a value of the counter, or stops it.
fn set_timer(at: Option<u64>) {
    match at {
        Some(at) => {
            CNTP_CVAL_EL0.set(at);
            CNTP_CTL_EL0.set(1);
        }
        None => CNTP_CTL_EL0.set(0),
    }
    instr::isb();
}

/// Serves an interrupt of the machine, so that its line drops.
fn interrupt(machine: &Machine, intid: u32) {
    let of = |uart: &Option<crate::platform::Uart>| uart.as_ref().and_then(|u| u.intid);
    if intid == machine.platform.timer_intid {
        set_timer(None);
    } else if Some(intid) == of(&machine.platform.console) {
        // Held until all is done: whoever takes the guest apart takes it from here
        // first, so its page and its realm are there.
        let owner = machine.console_guest.lock();
        console::input(&machine.console, owner.as_ref().map(|guest| &guest.console));
    } else if Some(intid) == of(&machine.platform.log) {
        monitor::input(machine);
    }
    // A kick or a call has done its work by arriving. The virtual timer's comes at most
    // as a guest's, which ended before it was taken.
}

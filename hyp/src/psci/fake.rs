//! PEs and a firmware on the development machine: each PE is a thread, and one
//! of them runs at a time. Who goes on at each of the firmware's calls (before
//! it and after it) is the input's choice, so every order of what PEs see of
//! each other is some input's.

extern crate std;

use core::cell::Cell;
use core::mem;
use std::boxed::Box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;
use std::{thread, vec};

use rmi::fid;
use rmi::psci::{self, Psci};
use rmi::smccc::narrow;

use super::{Firmware, Relay};
use crate::cpu::gic::Redistributor;
use crate::cpu::pe::{Entry, Pe, Power, Stacks};
use crate::memory::region::Region;
use arm64::frame::Regime;

/// Where the firmware starts a PE.
const ENTRY: u64 = 0x4008_0000;

/// Functions that the host calls; those of one kind are as likely as another.
const FUNCTIONS: [u32; 14] = [
    fid::PSCI_CPU_ON,
    fid::PSCI_CPU_ON,
    fid::PSCI_CPU_ON,
    narrow(fid::PSCI_CPU_ON),
    fid::PSCI_CPU_OFF,
    fid::PSCI_CPU_OFF,
    fid::PSCI_CPU_OFF,
    fid::PSCI_AFFINITY_INFO,
    narrow(fid::PSCI_AFFINITY_INFO),
    fid::PSCI_CPU_SUSPEND,
    fid::PSCI_SYSTEM_RESET,
    fid::PSCI_FEATURES,
    fid::PSCI_VERSION,
    fid::PSCI_MIGRATE_INFO_TYPE,
];

/// What unwinds a PE that the firmware has turned off.
struct TurnedOff;

/// A PE as the firmware has it: what it was started with, where the host begins
/// then, and how often it came up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Off,
    Pending(u64, u64),
    On,
}

#[derive(Debug)]
struct State {
    input: Vec<u8>,
    /// Whose turn it is; nobody's in the end.
    turn: Option<usize>,
    seen: Vec<Seen>,
    /// The host's call that each PE is in: entry and context of a `CPU_ON`.
    calls: Vec<Option<(u64, u64)>>,
}

impl State {
    fn byte(&mut self) -> u8 {
        self.input.pop().unwrap_or(0)
    }

    /// Who is next: anybody who is on as long as there is input, then whoever
    /// has a call to end.
    fn next(&mut self) -> Option<usize> {
        let from = usize::from(self.byte());
        let all = self.seen.len();
        let more = !self.input.is_empty();
        (from..from + all)
            .map(|n| n % all)
            .find(|n| self.seen[*n] != Seen::Off && (more || self.calls[*n].is_some()))
    }
}

#[derive(Debug)]
struct Machine {
    pes: Box<[Pe]>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The firmware as one PE sees it.
struct Seat<'a> {
    machine: &'a Machine,
    me: usize,
    /// How often it has waited.
    waited: Cell<u64>,
    /// How often it waits for a PE that it has started, before it goes on.
    patience: u64,
}

impl Machine {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat<'_> {
    /// Lets somebody go on. False when it is over for this PE.
    fn pass(&self) -> bool {
        let mut state = self.machine.lock();
        if state.turn.is_some() {
            state.turn = state.next();
        }
        self.machine.changed.notify_all();
        self.wait(state)
    }

    fn wait(&self, state: MutexGuard<'_, State>) -> bool {
        let others = |s: &mut State| s.turn.is_some_and(|turn| turn != self.me);
        let state = self.machine.changed.wait_while(state, others);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        state.turn.is_some()
    }

    fn started(&self) {
        let machine = self.machine;
        let pe = &machine.pes[self.me];
        let mut state = machine.lock();
        let Seen::Pending(pc, context) = mem::replace(&mut state.seen[self.me], Seen::On) else {
            panic!("nobody started it");
        };
        let refuse = state.byte() == 1;
        drop(state);
        if refuse {
            super::refuse(pe, self);
        } else {
            pe.arrive();
            assert_eq!(pe.start(), (pc, context), "it begins where the host said");
        }
    }

    fn call(&self) {
        let machine = self.machine;
        let mut state = machine.lock();
        let function = FUNCTIONS[usize::from(state.byte()) % FUNCTIONS.len()];
        let target = usize::from(state.byte()) % (machine.pes.len() + 1);
        let target = machine.pes.get(target).map_or(0xff_0000, |pe| pe.mpidr);
        let (entry, context) = (u64::from(state.byte()), self.me as u64);
        state.calls[self.me] = Some((entry, context));
        drop(state);
        let relay = Relay {
            pes: &machine.pes,
            me: Some(&machine.pes[self.me]),
            firmware: self,
        };
        let call = Psci::read(function, [target, entry, context]).expect("one of PSCI's");
        let answer = relay.call(call);
        let right = match call {
            Psci::CpuOn { .. } => matches!(
                answer,
                psci::SUCCESS
                    | psci::INVALID_PARAMETERS
                    | psci::ALREADY_ON
                    | psci::ON_PENDING
                    | psci::INTERNAL_FAILURE
            ),
            Psci::CpuOff => answer == psci::DENIED,
            _ => true,
        };
        assert!(right, "{function:#x} answers {answer}");
        machine.lock().calls[self.me] = None;
    }

    /// What this PE does when it is its turn, until the firmware turns it off.
    fn turn(&self) {
        let pending = matches!(self.machine.lock().seen[self.me], Seen::Pending(..));
        let turn = AssertUnwindSafe(|| if pending { self.started() } else { self.call() });
        if let Err(cause) = catch_unwind(turn) {
            let mut state = self.machine.lock();
            state.calls[self.me] = None;
            if cause.is::<TurnedOff>() {
                return;
            }
            state.turn = None;
            self.machine.changed.notify_all();
            drop(state);
            resume_unwind(cause);
        }
    }

    fn run(&self) {
        let mut more = self.wait(self.machine.lock());
        while more {
            self.turn();
            more = self.pass();
        }
    }

    fn serve(&self, function: u32, args: [u64; 3]) -> i64 {
        let pes = &self.machine.pes;
        let mut state = self.machine.lock();
        let target = pes.iter().position(|pe| pe.mpidr == args[0]);
        match (function, target) {
            (fid::PSCI_CPU_ON, Some(target)) => {
                let with = [ENTRY, core::ptr::from_ref(&pes[target]) as u64];
                assert_eq!(
                    args[1..],
                    with,
                    "every PE starts in EL2, with its own block"
                );
                let fails = state.byte() == 1;
                match state.seen[target] {
                    Seen::On => psci::ALREADY_ON,
                    Seen::Pending(..) => psci::ON_PENDING,
                    Seen::Off if fails => psci::INTERNAL_FAILURE,
                    Seen::Off => {
                        let (entry, context) = state.calls[self.me].expect("the host's call");
                        state.seen[target] = Seen::Pending(entry, context);
                        psci::SUCCESS
                    }
                }
            }
            (fid::PSCI_AFFINITY_INFO, Some(target)) => match state.seen[target] {
                Seen::On => psci::AFFINITY_ON,
                Seen::Pending(..) => psci::AFFINITY_ON_PENDING,
                Seen::Off => psci::AFFINITY_OFF,
            },
            (fid::PSCI_CPU_OFF, _) => {
                if state.byte() == 1 && state.calls[self.me].is_some() {
                    return psci::DENIED;
                }
                state.seen[self.me] = Seen::Off;
                drop(state);
                resume_unwind(Box::new(TurnedOff))
            }
            (fid::PSCI_SYSTEM_OFF | fid::PSCI_SYSTEM_RESET, _) => {
                assert_eq!(args, [0; 3]);
                psci::INTERNAL_FAILURE
            }
            _ => panic!("the host's {function:#x} {args:x?} reaches the firmware"),
        }
    }
}

impl Firmware for Seat<'_> {
    fn call(&self, function: u32, args: [u64; 3]) -> i64 {
        self.pass();
        let answer = self.serve(function, args);
        self.pass();
        answer
    }

    fn entry(&self) -> u64 {
        ENTRY
    }

    fn standby(&self) {
        self.pass();
    }

    fn now(&self) -> u64 {
        self.waited.get()
    }

    fn patience(&self) -> u64 {
        self.patience
    }

    /// Whoever else is to go on: in the end, who is on the way.
    fn pause(&self) {
        self.waited.set(self.waited.get() + 1);
        let mut state = self.machine.lock();
        let next = state.next();
        let coming = |seen: &Seen| matches!(seen, Seen::Pending(..));
        let coming = state.seen.iter().position(coming);
        state.turn = if next == Some(self.me) && coming.is_some() {
            coming
        } else {
            next
        };
        self.machine.changed.notify_all();
        if !self.wait(state) {
            resume_unwind(Box::new(TurnedOff));
        }
    }
}

/// Has `count` PEs, of which the first is on, do what the input says; its first byte,
/// how long who starts one waits for it.
///
/// # Panics
/// When a call is answered wrongly, the firmware is asked what it must not be, a
/// PE begins elsewhere than the host said, or, in the end, EL2 and the firmware
/// disagree on which are on.
pub fn run(count: usize, input: &[u8]) {
    let stacks = Region::new(0, count as u64 * Stacks::stride(0x1000)).expect("no overflow");
    let stacks = Stacks::new(stacks, 0x1000);
    // SAFETY: a record is behind it, and no GIC.
    let gicr = unsafe { Redistributor::new(0) };
    let pe = |n| {
        Pe::new(
            n,
            n as u64,
            gicr,
            Entry::new(&stacks, n, Regime::default(), 0),
        )
    };
    let mut seen = vec![Seen::Off; count];
    seen[0] = Seen::On;
    let (patience, input) = input.split_first().unwrap_or((&0, &[]));
    let machine = Machine {
        pes: (0..count).map(pe).collect(),
        state: Mutex::new(State {
            input: input.iter().rev().copied().collect(),
            turn: Some(0),
            seen,
            calls: vec![None; count],
        }),
        changed: Condvar::new(),
    };
    machine.pes[0].arrive();
    thread::scope(|scope| {
        let machine = &machine;
        let seats = (0..count).map(|me| Seat {
            machine,
            me,
            waited: Cell::new(0),
            patience: u64::from(*patience),
        });
        let threads: Vec<_> = seats.map(|seat| scope.spawn(move || seat.run())).collect();
        for thread in threads {
            if let Err(cause) = thread.join() {
                resume_unwind(cause);
            }
        }
    });
    let state = machine.lock();
    for (pe, seen) in machine.pes.iter().zip(&state.seen) {
        let right = match seen {
            Seen::Off => Power::Off,
            Seen::Pending(..) => Power::Starting,
            Seen::On => Power::On,
        };
        assert_eq!(pe.power(), right, "PE {} is {seen:?}", pe.index);
    }
}

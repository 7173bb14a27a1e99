//! Whose turn it is on one CPU: pure, so that it is tested where it compiles.

/// What a vCPU can do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It can be entered.
    Ready,
    /// It waits for an interrupt, or for this time of the physical counter.
    Waits(Option<u64>),
    /// It is off; its starts were these before the entry that found it so.
    Off(u32),
}

/// A vCPU that takes turns.
pub trait Candidate {
    /// Its state.
    fn state(&mut self) -> &mut State;
    /// How often it was asked to start.
    fn starts(&self) -> u32;
    /// It has an interrupt that ends its wait.
    fn pending(&self) -> bool;
}

/// What a CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The vCPU to enter; `None` to sleep.
    pub run: Option<usize>,
    /// When the timer must call, at the latest.
    pub timer: Option<u64>,
}

/// Chooses among `candidates`, from number `turn` on, at time `now`. Those whose
/// wait is over, or that were started, become ready. `slice` ticks is the
/// longest that one runs while there are others.
pub fn choose<C: Candidate>(candidates: &mut [C], turn: usize, now: u64, slice: u64) -> Choice {
    let count = candidates.len();
    let mut run = None;
    let mut deadline = None;
    for i in 0..count {
        let at = (turn + i) % count;
        let candidate = &mut candidates[at];
        let ready = match *candidate.state() {
            State::Ready => true,
            State::Off(seen) => candidate.starts() != seen,
            State::Waits(until) => {
                let over = until.is_some_and(|at| at <= now) || candidate.pending();
                if !over {
                    deadline = [deadline, until].into_iter().flatten().min();
                }
                over
            }
        };
        if ready {
            *candidate.state() = State::Ready;
            run = run.or(Some(at));
        }
    }
    let timer = match run {
        // A kick for a vCPU that waits here reaches EL2, not the host, while
        // another runs: the slice bounds how long it goes unseen.
        Some(_) if count > 1 => Some(deadline.unwrap_or(u64::MAX).min(now.saturating_add(slice))),
        Some(_) => None,
        None => deadline,
    };
    Choice { run, timer }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    struct Vcpu {
        state: State,
        starts: u32,
        pending: bool,
    }

    impl Candidate for Vcpu {
        fn state(&mut self) -> &mut State {
            &mut self.state
        }
        fn starts(&self) -> u32 {
            self.starts
        }
        fn pending(&self) -> bool {
            self.pending
        }
    }

    fn vcpu() -> impl Strategy<Value = Vcpu> {
        let state = prop_oneof![
            Just(State::Ready),
            prop::option::of(0u64..100).prop_map(State::Waits),
            (0u32..2).prop_map(State::Off),
        ];
        (state, 0u32..2, any::<bool>()).prop_map(|(state, starts, pending)| Vcpu {
            state,
            starts,
            pending,
        })
    }

    fn may_run(vcpu: &Vcpu, now: u64) -> bool {
        match vcpu.state {
            State::Ready => true,
            State::Waits(until) => vcpu.pending || until.is_some_and(|at| at <= now),
            State::Off(seen) => seen != vcpu.starts,
        }
    }

    proptest! {
        #[test]
        fn one_that_may_run_runs_and_sleep_ends_in_time(
            vcpus in prop::collection::vec(vcpu(), 0..6), turn in 0usize..6, now in 0u64..100,
        ) {
            let turn = if vcpus.is_empty() { 0 } else { turn % vcpus.len() };
            let mut after = vcpus.clone();
            let choice = choose(&mut after, turn, now, 7);
            // The first in turn that may run.
            let order: Vec<usize> = (0..vcpus.len()).map(|i| (turn + i) % vcpus.len()).collect();
            let first = order.iter().copied().find(|&i| may_run(&vcpus[i], now));
            prop_assert_eq!(choice.run, first);
            let earliest = vcpus.iter().filter(|v| !may_run(v, now)).filter_map(|v| match v.state {
                State::Waits(until) => until,
                _ => None,
            }).min();
            match first {
                None => prop_assert_eq!(choice.timer, earliest),
                Some(_) if vcpus.len() == 1 => prop_assert_eq!(choice.timer, None),
                Some(_) => prop_assert_eq!(choice.timer, Some(earliest.unwrap_or(u64::MAX).min(now + 7))),
            }
            for (before, after) in vcpus.iter().zip(&after) {
                if may_run(before, now) {
                    prop_assert_eq!(after.state, State::Ready);
                } else {
                    prop_assert_eq!(after.state, before.state);
                }
            }
        }

        #[test]
        fn everyone_gets_a_turn(count in 1usize..6) {
            let ready = Vcpu { state: State::Ready, starts: 0, pending: false };
            let mut vcpus = std::vec![ready; count];
            let mut ran = std::vec![0; count];
            let mut turn = 0;
            for _ in 0..count * 5 {
                let at = choose(&mut vcpus, turn, 0, 1).run.unwrap();
                ran[at] += 1;
                turn = (at + 1) % count;
            }
            prop_assert!(ran.iter().all(|&n| n == 5));
        }
    }

    /// CPU_OFF against CPU_ON, in every order that two CPUs can produce: a start
    /// that EL2 accepted is never lost.
    #[test]
    fn a_start_is_never_lost() {
        // The other CPU's start falls before the entry, or while the vCPU runs
        // and turns itself off, or after.
        for start_at in 0..3 {
            let mut vcpu = Vcpu {
                state: State::Ready,
                starts: 1,
                pending: false,
            };
            vcpu.starts += u32::from(start_at == 0);
            let seen = vcpu.starts;
            // It runs, and is off for EL2 when it returns.
            vcpu.starts += u32::from(start_at == 1);
            vcpu.state = State::Off(seen);
            vcpu.starts += u32::from(start_at == 2);
            let again = choose(std::slice::from_mut(&mut vcpu), 0, 0, 1)
                .run
                .is_some();
            // A start before it was off was answered ALREADY_ON.
            assert_eq!(again, start_at != 0);
        }
    }
}

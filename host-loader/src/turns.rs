//! Whose turn it is on one CPU: pure, so that it is tested where it compiles.
//!
//! Each vCPU has an account of the time that it took, the host's and EL2's work
//! for it included. The one that took least runs, until it is half a slice ahead
//! of another; so an interruption costs nobody the rest of a slice, and a wait
//! that ends interrupts only whoever is that far ahead. What a vCPU leaves unused
//! while it waits is kept up to one slice, no more: so one that waits a little and
//! works a little is served at once beside one that only works, and none gets
//! more than its share by the way it waits.

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

/// A vCPU's state and account.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Its state.
    pub state: State,
    /// Ticks that it took; `None` before it was looked at. Comparable on one CPU
    /// only.
    used: Option<u64>,
}

impl Turn {
    /// Of a vCPU that joins a CPU.
    pub const fn new(state: State) -> Self {
        Self { state, used: None }
    }

    /// The same account in another state.
    pub const fn with(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// Puts time that it took on its account, in ticks.
    pub fn charge(&mut self, ticks: u64) {
        self.used = Some(self.used.unwrap_or(0).saturating_add(ticks));
    }
}

/// A vCPU that takes turns.
pub trait Candidate {
    /// Its state and account.
    fn turn(&mut self) -> &mut Turn;
    /// How often it was asked to start.
    fn starts(&self) -> u32;
    /// It has an interrupt that ends its wait.
    fn pending(&self) -> bool;
}

/// What a CPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The vCPU to enter; `None` to sleep.
    pub next: Option<usize>,
    /// When the timer must call, at the latest.
    pub timer: Option<u64>,
}

/// The turns of one CPU.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// Ticks of a slice.
    slice: u64,
    /// The least that one that could run had on its account: it only grows.
    clock: u64,
    /// Who had the last turn.
    current: usize,
}

impl Turns {
    /// Nobody has had a turn. `slice` ticks is about the longest that one runs
    /// while another could.
    pub const fn new(slice: u64) -> Self {
        Self {
            slice,
            clock: 0,
            current: usize::MAX,
        }
    }

    /// Chooses among `candidates` at time `now`. Those whose wait is over, or that
    /// were started, become ready.
    pub fn choose<C: Candidate>(&mut self, candidates: &mut [C], now: u64) -> Choice {
        for candidate in candidates.iter_mut() {
            self.wake(candidate, now);
        }
        let used = |candidate: &mut C| candidate.turn().used.unwrap_or(0);
        let mut least: Option<(usize, u64)> = None;
        for (at, candidate) in candidates.iter_mut().enumerate() {
            if candidate.turn().state == State::Ready
                && least.is_none_or(|(_, least)| used(candidate) < least)
            {
                least = Some((at, used(candidate)));
            }
        }
        let Some((first, clock)) = least else {
            return Choice {
                next: None,
                timer: candidates.iter_mut().filter_map(deadline).min(),
            };
        };
        self.clock = self.clock.max(clock);
        // Whoever had the last turn keeps it until it is ahead.
        let goes_on = candidates.get_mut(self.current).is_some_and(|current| {
            current.turn().state == State::Ready && used(current) <= clock + self.ahead()
        });
        if !goes_on {
            self.current = first;
        }
        let run = self.current;
        let mine = used(&mut candidates[run]);
        let timer = (0..candidates.len())
            .filter(|&at| at != run)
            .filter_map(|at| self.calls(&mut candidates[at], mine, now))
            .min();
        Choice {
            next: Some(run),
            timer,
        }
    }

    /// Candidate `at` has left; those behind it move up.
    pub fn removed(&mut self, at: usize) {
        if self.current == at {
            self.current = usize::MAX;
        } else if self.current > at && self.current != usize::MAX {
            self.current -= 1;
        }
    }

    /// How far ahead of another one is when its turn ends.
    const fn ahead(&self) -> u64 {
        self.slice / 2
    }

    /// What one that waits has on its account when its wait ends.
    fn after_wait(&self, used: Option<u64>) -> u64 {
        used.map_or(self.clock, |used| {
            used.max(self.clock.saturating_sub(self.slice))
        })
    }

    fn wake<C: Candidate>(&self, candidate: &mut C, now: u64) {
        let ready = match candidate.turn().state {
            State::Ready => false,
            State::Off(seen) => candidate.starts() != seen,
            State::Waits(until) => until.is_some_and(|at| at <= now) || candidate.pending(),
        };
        let turn = candidate.turn();
        if ready {
            turn.state = State::Ready;
            turn.used = Some(self.after_wait(turn.used));
        } else if turn.used.is_none() {
            turn.used = Some(self.clock);
        }
    }

    /// When a turn that begins `now` with `mine` on its account must be looked at
    /// for this other candidate's sake.
    fn calls<C: Candidate>(&self, other: &mut C, mine: u64, now: u64) -> Option<u64> {
        let turn = *other.turn();
        let until = |used: u64| now.saturating_add((used + self.ahead() + 1).saturating_sub(mine));
        match turn.state {
            State::Ready => Some(until(turn.used.unwrap_or(0))),
            // A start calls by itself.
            State::Off(_) => None,
            // Its interrupts do not while another runs: a slice bounds how long
            // they go unseen.
            State::Waits(at) => {
                let look = now.saturating_add(self.slice);
                let entitled = until(self.after_wait(turn.used));
                Some(at.unwrap_or(u64::MAX).max(entitled).min(look))
            }
        }
    }
}

fn deadline<C: Candidate>(candidate: &mut C) -> Option<u64> {
    match candidate.turn().state {
        State::Waits(until) => until,
        State::Ready | State::Off(_) => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const SLICE: u64 = 1000;

    /// What a simulated vCPU does, over and over.
    #[derive(Clone, Copy, Debug)]
    enum Habit {
        /// Works.
        Spins,
        /// Works so long, then waits so long.
        Sleeps { works: u64, waits: u64 },
        /// Works so long, then waits for an interrupt that comes after so long,
        /// which the host sees only when it looks.
        IsWoken { works: u64, after: u64 },
        /// Comes out all the time, by interrupts of the machine.
        Exits { every: u64 },
        /// Turns itself off after so long and is started at once.
        Restarts { works: u64 },
    }

    #[derive(Clone, Debug)]
    struct Vcpu {
        turn: Turn,
        habit: Habit,
        starts: u32,
        left: u64,
        pends_at: u64,
        now: u64,
        ran: u64,
        /// When it could go on, and the longest that it then had to wait.
        since: Option<u64>,
        latest: u64,
    }

    impl Candidate for Vcpu {
        fn turn(&mut self) -> &mut Turn {
            &mut self.turn
        }
        fn starts(&self) -> u32 {
            self.starts
        }
        fn pending(&self) -> bool {
            self.pends_at <= self.now
        }
    }

    impl Vcpu {
        fn new(habit: Habit) -> Self {
            Self {
                turn: Turn::new(State::Ready),
                habit,
                starts: 0,
                left: 0,
                pends_at: u64::MAX,
                now: 0,
                ran: 0,
                since: None,
                latest: 0,
            }
        }

        /// Runs until it comes out or `until`; the time then.
        fn run(&mut self, now: u64, until: u64) -> u64 {
            let works = match self.habit {
                Habit::Spins => u64::MAX,
                Habit::Exits { every } => every,
                Habit::Sleeps { works, .. }
                | Habit::IsWoken { works, .. }
                | Habit::Restarts { works } => works,
            };
            if self.left == 0 {
                self.left = works;
            }
            let took = self.left.min(until - now).max(1);
            self.left = self.left.saturating_sub(took);
            self.ran += took;
            let now = now + took;
            if self.left == 0 {
                match self.habit {
                    Habit::Spins | Habit::Exits { .. } => {}
                    Habit::Sleeps { waits, .. } => {
                        self.turn.state = State::Waits(Some(now + waits));
                        self.since = Some(now + waits);
                    }
                    Habit::IsWoken { after, .. } => {
                        self.turn.state = State::Waits(None);
                        self.pends_at = now + after;
                        self.since = Some(now + after);
                    }
                    Habit::Restarts { .. } => {
                        self.turn.state = State::Off(self.starts);
                        self.starts += 1;
                    }
                }
            }
            now
        }
    }

    /// Lets them run for `time`, and gives what each did.
    fn simulate(habits: &[Habit], time: u64) -> Vec<Vcpu> {
        let mut turns = Turns::new(SLICE);
        let mut vcpus: Vec<Vcpu> = habits.iter().copied().map(Vcpu::new).collect();
        let mut now = 0;
        while now < time {
            vcpus.iter_mut().for_each(|v| v.now = now);
            let choice = turns.choose(&mut vcpus, now);
            match choice.next {
                Some(at) => {
                    assert!(
                        choice.timer.is_none_or(|at| at > now),
                        "a timer in the past"
                    );
                    let vcpu = &mut vcpus[at];
                    if let Some(since) = vcpu.since.take() {
                        vcpu.latest = vcpu.latest.max(now.saturating_sub(since));
                    }
                    if vcpu.pends_at <= now {
                        vcpu.pends_at = u64::MAX;
                    }
                    let end = vcpu.run(now, choice.timer.unwrap_or(time).min(time).max(now + 1));
                    vcpu.turn.charge(end - now);
                    now = end;
                }
                None => {
                    // The host sleeps until the timer or an interrupt's kick.
                    let kick = vcpus.iter().map(|v| v.pends_at).min().unwrap_or(u64::MAX);
                    let wake = choice.timer.unwrap_or(u64::MAX).min(kick).min(time);
                    assert!(wake > now, "sleeps though one could run");
                    now = wake;
                }
            }
        }
        vcpus
    }

    fn habit() -> impl Strategy<Value = Habit> {
        prop_oneof![
            Just(Habit::Spins),
            (1u64..3 * SLICE, 1u64..3 * SLICE)
                .prop_map(|(works, waits)| Habit::Sleeps { works, waits }),
            (1u64..3 * SLICE, 0u64..3 * SLICE)
                .prop_map(|(works, after)| Habit::IsWoken { works, after }),
            (1u64..SLICE).prop_map(|every| Habit::Exits { every }),
            (1u64..SLICE).prop_map(|works| Habit::Restarts { works }),
        ]
    }

    proptest! {
        #[test]
        fn one_that_works_gets_its_share_beside_any_others(
            others in prop::collection::vec(habit(), 1..6),
        ) {
            let mut habits = others;
            habits.push(Habit::Spins);
            let time = 400 * SLICE;
            let vcpus = simulate(&habits, time);
            let share = vcpus.last().unwrap().ran * habits.len() as u64;
            prop_assert!(share * 100 >= time * 95, "{} of {time}", vcpus.last().unwrap().ran);
        }

        #[test]
        fn one_that_works_a_little_is_served_at_once(
            works in 1u64..SLICE / 8, waits in SLICE / 2..4 * SLICE, spinners in 1usize..4,
        ) {
            let mut habits = std::vec![Habit::Spins; spinners];
            habits.push(Habit::Sleeps { works, waits: waits * spinners as u64 });
            let vcpus = simulate(&habits, 400 * SLICE);
            let latest = vcpus.last().unwrap().latest;
            prop_assert!(latest <= SLICE / 2 + 2, "{latest}");
        }

        #[test]
        fn all_that_could_run_do(habits in prop::collection::vec(habit(), 1..6)) {
            let time = 400 * SLICE;
            let least = time / habits.len() as u64 / 8;
            for (habit, vcpu) in habits.iter().zip(simulate(&habits, time)) {
                let wants = match *habit {
                    Habit::Spins | Habit::Exits { .. } | Habit::Restarts { .. } => true,
                    Habit::Sleeps { works, waits: pause } | Habit::IsWoken { works, after: pause } => {
                        works >= pause
                    }
                };
                prop_assert!(!wants || vcpu.ran >= least, "{habit:?} ran {}", vcpu.ran);
            }
        }
    }

    #[test]
    fn sleeping_a_moment_gains_nothing() {
        // 20 us of sleep and 4.8 ms of work, in slices of 5 ms.
        let habits = [
            Habit::Spins,
            Habit::Sleeps {
                works: 960,
                waits: 4,
            },
        ];
        let vcpus = simulate(&habits, 1000 * SLICE);
        assert!(vcpus[0].ran >= 480 * SLICE, "{}", vcpus[0].ran);
    }

    #[test]
    fn those_that_leave_and_join_keep_the_others_in_turn() {
        let mut turns = Turns::new(SLICE);
        let mut vcpus: Vec<Vcpu> = (0..3).map(|_| Vcpu::new(Habit::Spins)).collect();
        for _ in 0..100 {
            let at = turns.choose(&mut vcpus, 0).next.unwrap();
            vcpus[at].turn.charge(SLICE / 3);
        }
        let before: Vec<u64> = vcpus.iter().map(|v| v.turn.used.unwrap()).collect();
        vcpus.remove(0);
        turns.removed(0);
        vcpus.push(Vcpu::new(Habit::Spins));
        turns.choose(&mut vcpus, 0);
        // The new one has no claim on the time before it came.
        let least = before.iter().min().unwrap();
        assert!(vcpus[2].turn.used.unwrap() >= *least);
    }

    /// CPU_OFF against CPU_ON, in every order that two CPUs can produce: a start
    /// that EL2 accepted is never lost.
    #[test]
    fn a_start_is_never_lost() {
        // The other CPU's start falls before the entry, or while the vCPU runs
        // and turns itself off, or after.
        for start_at in 0..3 {
            let mut vcpu = Vcpu::new(Habit::Spins);
            vcpu.starts = 1 + u32::from(start_at == 0);
            let seen = vcpu.starts;
            // It runs, and is off for EL2 when it returns.
            vcpu.starts += u32::from(start_at == 1);
            vcpu.turn.state = State::Off(seen);
            vcpu.starts += u32::from(start_at == 2);
            let again = Turns::new(SLICE)
                .choose(std::slice::from_mut(&mut vcpu), 0)
                .next
                .is_some();
            // A start before it was off was answered ALREADY_ON.
            assert_eq!(again, start_at != 0);
        }
    }

    #[test]
    fn the_one_that_has_a_turn_keeps_it_when_one_before_it_leaves() {
        let mut turns = Turns::new(SLICE);
        let mut vcpus: Vec<Vcpu> = (0..3).map(|_| Vcpu::new(Habit::Spins)).collect();
        for (vcpu, used) in vcpus.iter_mut().zip([9, 1, 2]) {
            vcpu.turn.charge(used);
        }
        assert_eq!(turns.choose(&mut vcpus, 0).next, Some(1));
        vcpus[1].turn.charge(SLICE / 4);
        vcpus.remove(0);
        turns.removed(0);
        assert_eq!(turns.choose(&mut vcpus, 0).next, Some(0));
        vcpus[0].turn.charge(1);
        vcpus.remove(0);
        turns.removed(0);
        assert_eq!(turns.choose(&mut vcpus, 0).next, Some(0));
    }

    #[test]
    fn a_wait_keeps_one_slice_and_interrupts_nobody_before_its_time() {
        let clock = 100 * SLICE;
        let turns = Turns {
            clock,
            ..Turns::new(SLICE)
        };
        for (before, after) in [
            (None, clock),
            (Some(0), clock - SLICE),
            (Some(clock - 1), clock - 1),
            (Some(clock + 1), clock + 1),
        ] {
            assert_eq!(turns.after_wait(before), after, "{before:?}");
        }
        let mut other = Vcpu::new(Habit::Spins);
        let now = 7;
        for (ahead, wakes, calls) in [
            // Its deadline is nothing before it is entitled to a turn.
            (300, Some(now + 1), now + 300 + SLICE / 2 + 1),
            (0, Some(now + SLICE - 1), now + SLICE - 1),
            // Its interrupts are looked for once a slice.
            (0, None, now + SLICE),
            (5 * SLICE, None, now + SLICE),
        ] {
            other.turn = Turn::new(State::Waits(wakes));
            other.turn.charge(clock + ahead);
            assert_eq!(turns.calls(&mut other, clock, now), Some(calls));
        }
    }

    #[test]
    fn the_least_account_only_grows() {
        let mut turns = Turns::new(SLICE);
        let mut vcpus = [Vcpu::new(Habit::Spins)];
        for (used, clock) in [(100, 100), (10, 100), (101, 101)] {
            vcpus[0].turn = Turn::new(State::Ready);
            vcpus[0].turn.charge(used);
            turns.choose(&mut vcpus, 0);
            assert_eq!(turns.clock, clock);
        }
    }
}

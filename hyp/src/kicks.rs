//! Who interrupts whom when a vCPU's interrupts have changed.
//!
//! If it runs, its PE is interrupted; if it waits in the host of the PE where it
//! last ran, the host is, which may sleep. While that PE runs another vCPU nothing
//! is sent: its host looks when that one comes out. One interrupt is enough until
//! somebody looks.
//!
//! None is lost. Whoever runs a vCPU or asks for it publishes that before it
//! looks at what is pending; whoever changes what is pending does so before it
//! reads what is published; and all of these are in one order (SeqCst), or what is
//! pending is behind a lock that both take.

use core::sync::atomic::{AtomicU64, Ordering};

/// The PA of no REC: what a PE runs that runs none.
pub const NO_REC: u64 = u64::MAX;

/// The number of no PE.
const NO_PE: u64 = u64::MAX;

/// A word that PEs share: every access to it is in one order with those to all
/// others.
pub trait Word {
    /// Reads it.
    fn get(&self) -> u64;
    /// Writes it.
    fn set(&self, value: u64);
    /// Writes it; what it was.
    fn swap(&self, value: u64) -> u64;
}

impl Word for AtomicU64 {
    fn get(&self) -> u64 {
        self.load(Ordering::SeqCst)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::SeqCst);
    }

    fn swap(&self, value: u64) -> u64 {
        Self::swap(self, value, Ordering::SeqCst)
    }
}

/// A vCPU's side of it.
#[derive(Debug)]
pub struct Kicks<W = AtomicU64> {
    /// PE where it runs or last ran.
    pe: W,
    /// The number, from 1, of the PE where it was kicked, and has not looked since.
    /// One that was sent to a PE that it has left meanwhile stands for no other.
    kicked: W,
}

impl Kicks {
    /// Of one that never ran.
    pub fn new() -> Self {
        Self {
            pe: AtomicU64::new(NO_PE),
            kicked: AtomicU64::new(0),
        }
    }
}

impl Default for Kicks {
    fn default() -> Self {
        Self::new()
    }
}

impl<W: Word> Kicks<W> {
    /// The vCPU at `rec` is about to run on the PE of this number, whose `runs` is
    /// what it runs. It looks after that.
    pub fn enters(&self, pe: usize, runs: &W, rec: u64) {
        self.pe.set(pe as u64);
        runs.set(rec);
    }

    /// It runs no more. A kick that was sent and not taken is the host's now; the
    /// next is sent.
    pub fn leaves(&self, runs: &W) {
        runs.set(NO_REC);
        self.looks();
    }

    /// What is pending is looked at from here on: what came before is seen, what
    /// comes later kicks again.
    pub fn looks(&self) {
        self.kicked.set(0);
    }

    /// What is pending has changed. `runs` finds what the PE of a number runs,
    /// `None` for the caller's own. The PE to interrupt, if there is one.
    pub fn changed<'a>(&self, rec: u64, runs: impl FnOnce(usize) -> Option<&'a W>) -> Option<usize>
    where
        W: 'a,
    {
        let pe = usize::try_from(self.pe.get()).ok()?;
        let now = runs(pe)?.get();
        let looks = now == rec || now == NO_REC;
        let number = (pe as u64).wrapping_add(1);
        (looks && self.kicked.swap(number) != number).then_some(pe)
    }
}

/// vCPUs of a realm that a call has kicked: they look when it is over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kicked(u64);

impl Kicked {
    /// Whether it is the call's first kick of this vCPU.
    pub fn is_first(&mut self, vcpu: usize) -> bool {
        // One too many is no harm.
        let bit = u64::checked_shl(1, vcpu as u32).unwrap_or(0);
        let first = self.0 & bit == 0;
        self.0 |= bit;
        first
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use core::cell::RefCell;
    use std::collections::BTreeSet;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::vec::Vec;

    /// Words of a [`Machine`].
    const WORDS: usize = 7;

    /// What two PEs have done: what is in the words, and what each access of either
    /// PE read. That says all, for they do nothing else.
    #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
    struct State {
        words: [u64; WORDS],
        past: [Vec<u64>; 2],
    }

    /// A PE that goes through its past again, and then does one access more.
    #[derive(Default)]
    struct Replay {
        state: State,
        me: usize,
        position: usize,
        done: bool,
    }

    std::thread_local! {
        static REPLAY: RefCell<Replay> = RefCell::default();
    }

    /// What unwinds it then.
    struct OneMore;

    /// What comes of one more access of the PE `me`, which does `what`; or, when it
    /// has none left, what it returns.
    fn step<R>(state: &State, me: usize, what: impl FnOnce() -> R) -> Result<State, R> {
        REPLAY.set(Replay {
            state: state.clone(),
            me,
            ..Replay::default()
        });
        let end = catch_unwind(AssertUnwindSafe(what));
        let replay = REPLAY.take();
        match end {
            Ok(end) if !replay.done => Err(end),
            Err(cause) if !cause.is::<OneMore>() => resume_unwind(cause),
            _ => Ok(replay.state),
        }
    }

    /// A word by its place.
    struct Stepped(usize);

    impl Stepped {
        fn access(&self, what: impl FnOnce(&mut u64) -> u64) -> u64 {
            let value = REPLAY.with_borrow_mut(|replay| {
                let past = &mut replay.state.past[replay.me];
                if replay.position == past.len() {
                    if replay.done {
                        return None;
                    }
                    replay.done = true;
                    past.push(what(&mut replay.state.words[self.0]));
                }
                replay.position += 1;
                past.get(replay.position - 1).copied()
            });
            value.unwrap_or_else(|| resume_unwind(std::boxed::Box::new(OneMore)))
        }
    }

    impl Word for Stepped {
        fn get(&self) -> u64 {
            self.access(|word| *word)
        }

        fn set(&self, value: u64) {
            self.access(|word| {
                *word = value;
                0
            });
        }

        fn swap(&self, value: u64) -> u64 {
            self.access(|word| core::mem::replace(word, value))
        }
    }

    const REC: u64 = 0x4000_0000;
    const OTHER: u64 = 0x4000_1000;

    /// Two PEs and what the GIC has for each, a vCPU, and its pending interrupts.
    struct Machine {
        kicks: Kicks<Stepped>,
        runs: [Stepped; 2],
        pending: Stepped,
        irq: [Stepped; 2],
    }

    /// Where a machine's `irq` is.
    const IRQ: usize = 5;

    const MACHINE: Machine = Machine {
        kicks: Kicks {
            pe: Stepped(0),
            kicked: Stepped(1),
        },
        runs: [Stepped(2), Stepped(3)],
        pending: Stepped(4),
        irq: [Stepped(IRQ), Stepped(IRQ + 1)],
    };

    impl Machine {
        /// Another PE makes interrupts pending, `count` in turn. Kicks that it sent.
        fn changes(&self, count: u64) -> u64 {
            let mut sent = 0;
            for n in 1..=count {
                self.pending.set(n);
                let runs = |pe: usize| self.runs.get(pe);
                if let Some(pe) = self.kicks.changed(REC, runs) {
                    sent += 1;
                    self.irq[pe].set(1);
                }
            }
            sent
        }

        /// The vCPU runs on a PE until no interrupt of the GIC's ends its turn:
        /// what it saw last.
        fn runs_on(&self, pe: usize) -> u64 {
            self.kicks.enters(pe, &self.runs[pe], REC);
            self.looks(pe)
        }

        /// It comes out, and the host looks at it, as often as it is interrupted.
        fn waits_on(&self, pe: usize) -> u64 {
            self.kicks.leaves(&self.runs[pe]);
            self.looks(pe)
        }

        fn looks(&self, pe: usize) -> u64 {
            loop {
                self.kicks.looks();
                let seen = self.pending.get();
                if self.irq[pe].swap(0) == 0 {
                    return seen;
                }
            }
        }
    }

    /// Every order of a vCPU's life, which begins where `first` says, and of
    /// `changes` interrupts that become pending for it. `life` says what was seen
    /// last, and on which PE: either all were, or an interrupt is on its way there.
    /// How many ends there are.
    fn every_order(changes: u64, first: u64, life: fn(&Machine) -> (u64, usize)) -> usize {
        let begin = State {
            words: [first, 0, NO_REC, NO_REC, 0, 0, 0],
            ..State::default()
        };
        let mut known = BTreeSet::from([begin.clone()]);
        let mut open = std::vec![begin];
        let mut ends = 0;
        while let Some(state) = open.pop() {
            let lives = step(&state, 0, || life(&MACHINE));
            let sends = step(&state, 1, || MACHINE.changes(changes));
            if let (Err((seen, pe)), Err(sent)) = (&lives, &sends) {
                ends += 1;
                let comes = state.words[IRQ + pe] != 0;
                assert!(*seen == changes || comes, "one is lost: {state:x?}");
                assert!(*sent <= changes, "{sent} kicks: {state:x?}");
            }
            let next = lives.ok().into_iter().chain(sends.ok());
            open.extend(next.filter(|next| known.insert(next.clone())));
        }
        ends
    }

    /// A kicker that looked where a vCPU was, before it went elsewhere, does not
    /// keep the next from reaching it.
    #[test]
    fn a_kick_to_a_pe_that_it_has_left_stands_for_no_other() {
        const REC: u64 = 0x8000;
        let runs = [const { AtomicU64::new(NO_REC) }; 2];
        let kicks = Kicks::new();
        kicks.enters(0, &runs[0], REC);
        kicks.leaves(&runs[0]);
        let first = kicks.changed(REC, |pe| {
            kicks.enters(1, &runs[1], REC);
            kicks.looks();
            Some(&runs[pe])
        });
        assert_eq!(first, Some(0));
        assert_eq!(kicks.changed(REC, |pe| Some(&runs[pe])), Some(1));
        assert_eq!(
            kicks.changed(REC, |pe| Some(&runs[pe])),
            None,
            "one is enough"
        );
    }

    #[test]
    fn no_order_loses_a_kick_of_one_that_is_entered() {
        for first in [0, 1, NO_PE] {
            let ends = every_order(1, first, |machine| (machine.runs_on(0), 0));
            assert!(ends > 2, "{ends}");
        }
    }

    #[test]
    fn no_order_loses_a_kick_of_one_that_comes_out() {
        let ends = every_order(1, 0, |machine| {
            machine.runs_on(0);
            (machine.waits_on(0), 0)
        });
        assert!(ends > 2, "{ends}");
    }

    #[test]
    fn no_order_loses_one_of_two_kicks() {
        let ends = every_order(2, 0, |machine| (machine.runs_on(0), 0));
        assert!(ends > 2, "{ends}");
        let ends = every_order(2, 0, |machine| (machine.waits_on(0), 0));
        assert!(ends > 2, "{ends}");
    }

    #[test]
    fn no_order_loses_a_kick_of_one_that_moves() {
        let ends = every_order(1, 0, |machine| {
            machine.waits_on(0);
            (machine.runs_on(1), 1)
        });
        assert!(ends > 2, "{ends}");
    }

    #[test]
    fn no_order_loses_a_kick_while_the_pe_runs_another() {
        let ends = every_order(1, 0, |machine| {
            machine.runs[0].set(OTHER);
            machine.runs[0].set(NO_REC);
            (machine.waits_on(0), 0)
        });
        assert!(ends > 2, "{ends}");
    }

    fn alone() -> (Kicks, AtomicU64) {
        let kicks = Kicks::new();
        let runs = AtomicU64::new(NO_REC);
        kicks.enters(0, &runs, REC);
        (kicks, runs)
    }

    #[test]
    fn one_interrupt_is_enough_until_somebody_looks() {
        let (kicks, runs) = alone();
        assert_eq!(kicks.changed(REC, |_| Some(&runs)), Some(0));
        assert_eq!(kicks.changed(REC, |_| Some(&runs)), None);
        kicks.looks();
        assert_eq!(kicks.changed(REC, |_| Some(&runs)), Some(0));
        kicks.leaves(&runs);
        assert_eq!(kicks.changed(REC, |_| Some(&runs)), Some(0));
    }

    #[test]
    fn a_pe_that_runs_another_is_left_alone() {
        let (kicks, runs) = alone();
        kicks.leaves(&runs);
        Word::set(&runs, OTHER);
        assert_eq!(kicks.changed(REC, |_| Some(&runs)), None);
        // Nobody was kicked: nothing stands for the next.
        Word::set(&runs, NO_REC);
        assert_eq!(kicks.changed(REC, |_| Some(&runs)), Some(0));
        kicks.looks();
        assert_eq!(Kicks::new().changed(REC, |_| Some(&runs)), None);
        assert_eq!(kicks.changed(REC, |_| None), None);
    }

    #[test]
    fn a_call_kicks_each_vcpu_once() {
        let mut kicked = Kicked::default();
        for vcpu in [0, 5, 63] {
            assert!(kicked.is_first(vcpu), "{vcpu}");
            assert!(!kicked.is_first(vcpu), "{vcpu}");
        }
        assert!(kicked.is_first(64) && kicked.is_first(64));
    }
}

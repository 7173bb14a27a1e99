//! The locks with an order among them ([docs/locking.md]): of a realm, of the host's
//! stage 2, of the pool, of measurements. In the image each is a spin lock and no more. On the
//! development machine each CPU, which is a thread there, notes what it holds, those
//! of granules too, and dies when it takes one out of order: whether or not another
//! CPU was there to wait for.
//!
//! [docs/locking.md]: ../../../../docs/locking.md

#[cfg(target_os = "none")]
pub use spin::mutex::{
    SpinMutex as MeasuredLock, SpinMutex as PoolLock, SpinMutex as RealmLock, SpinMutex as TreeLock,
};

#[cfg(not(target_os = "none"))]
pub use checked::{
    Lock, MeasuredLock, PoolLock, REALM, RealmLock, TreeLock, idle, lets_go, may_wait, rank_of,
    takes, watched,
};

#[cfg(not(target_os = "none"))]
mod checked {
    extern crate std;

    use core::ops::{Deref, DerefMut};
    use std::boxed::Box;
    use std::cell::RefCell;
    use std::vec::Vec;

    use spin::mutex::{SpinMutex, SpinMutexGuard};

    use crate::memory::granule::State;

    /// The rank of a realm's locks.
    pub const REALM: u8 = 3;
    const TREE: u8 = 6;
    const POOL: u8 = 7;
    const MEASURED: u8 = 8;

    /// A realm's tables, its interrupts, its posted accesses.
    pub type RealmLock<T> = Lock<T, REALM>;
    /// The host's stage 2.
    pub type TreeLock<T> = Lock<T, TREE>;
    /// The pool.
    pub type PoolLock<T> = Lock<T, POOL>;
    /// A realm's measurements.
    pub type MeasuredLock<T> = Lock<T, MEASURED>;

    /// Is told where a lock is that is about to be let go, and the ranks of those that
    /// stay held.
    type Watcher = Box<dyn FnMut(usize, &[u8])>;

    std::thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
        /// Ranks and addresses of what this CPU holds.
        static HELD: RefCell<Vec<(u8, usize)>> = const { RefCell::new(Vec::new()) };
    }

    /// The place of a granule's lock. Whoever waits for one waits for that of a granule
    /// in a certain state, so each state has a place; the host's granules come last,
    /// for what a realm maps of them is counted under the realm's locks.
    pub fn rank_of(state: State) -> u8 {
        match state {
            State::Rd => 1,
            State::Rec => 2,
            State::Delegated | State::RecAux | State::Data | State::Rtt | State::Unscrubbed => 4,
            State::Ns | State::Hyp => 5,
        }
    }

    /// This CPU is about to wait for a lock: of granules of one rank by address, of
    /// the rest one of a rank.
    ///
    /// # Panics
    /// Out of order.
    pub fn may_wait(rank: u8, at: usize) {
        HELD.with_borrow(|held| {
            let behind = |&(other, place): &(u8, usize)| {
                let by_address = !matches!(rank, REALM | TREE | POOL | MEASURED) && place < at;
                other < rank || other == rank && by_address
            };
            let ordered = held.iter().all(behind);
            assert!(ordered, "a lock of rank {rank} at {at:#x} under {held:x?}");
        });
    }

    /// This CPU takes a lock, which it may have to wait for.
    ///
    /// # Panics
    /// Out of order.
    pub fn takes(rank: u8, at: usize) {
        may_wait(rank, at);
        HELD.with_borrow_mut(|held| held.push((rank, at)));
    }

    /// It lets go of one.
    ///
    /// # Panics
    /// When it does not hold it.
    pub fn lets_go(at: usize) {
        HELD.with_borrow_mut(|held| {
            let place = held.iter().rposition(|(_, other)| *other == at);
            held.remove(place.expect("what is let go of was taken"));
        });
        WATCHER.with_borrow_mut(|watcher| {
            if let Some(watcher) = watcher {
                let ranks = |held: &Vec<(u8, usize)>| held.iter().map(|(rank, _)| *rank).collect();
                let left: Vec<u8> = HELD.with_borrow(ranks);
                watcher(at, &left);
            }
        });
    }

    /// Does `f` while `watcher` looks at each lock that this CPU lets go of.
    pub fn watched<R>(watcher: impl FnMut(usize, &[u8]) + 'static, f: impl FnOnce() -> R) -> R {
        WATCHER.set(Some(Box::new(watcher)));
        let done = f();
        WATCHER.set(None);
        done
    }

    /// It holds none: as a guest or the host begins to run.
    ///
    /// # Panics
    /// When it does.
    pub fn idle() {
        HELD.with_borrow(|held| assert!(held.is_empty(), "the CPU leaves EL2 with {held:x?}"));
    }

    /// A spin lock with a rank.
    #[derive(Debug)]
    pub struct Lock<T, const RANK: u8>(SpinMutex<T>);

    impl<T, const RANK: u8> Lock<T, RANK> {
        /// One that nobody holds.
        pub const fn new(value: T) -> Self {
            Self(SpinMutex::new(value))
        }

        fn at(&self) -> usize {
            core::ptr::from_ref(self).cast::<u8>() as usize
        }

        /// Waits for it.
        ///
        /// # Panics
        /// Out of order.
        pub fn lock(&self) -> Guard<'_, T> {
            takes(RANK, self.at());
            Guard {
                guard: self.0.lock(),
                at: self.at(),
            }
        }

        /// Takes it if nobody holds it.
        pub fn try_lock(&self) -> Option<Guard<'_, T>> {
            let guard = self.0.try_lock()?;
            HELD.with_borrow_mut(|held| held.push((RANK, self.at())));
            Some(Guard {
                guard,
                at: self.at(),
            })
        }
    }

    /// A lock that is held.
    #[derive(Debug)]
    pub struct Guard<'a, T> {
        guard: SpinMutexGuard<'a, T>,
        at: usize,
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            &self.guard
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            &mut self.guard
        }
    }

    impl<T> Drop for Guard<'_, T> {
        fn drop(&mut self) {
            lets_go(self.at);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use std::panic::catch_unwind;

        #[test]
        fn locks_are_taken_in_one_order() {
            static REALM: RealmLock<u8> = RealmLock::new(0);
            static OTHER: RealmLock<u8> = RealmLock::new(0);
            static TREE: TreeLock<u8> = TreeLock::new(0);
            idle();
            {
                let _realm = REALM.lock();
                let _tree = TREE.lock();
                assert!(catch_unwind(|| takes(rank_of(State::Ns), 0)).is_err());
                assert!(catch_unwind(idle).is_err());
            }
            assert!(
                catch_unwind(|| {
                    let _realm = REALM.lock();
                    let _other = OTHER.lock();
                })
                .is_err()
            );
            assert!(
                catch_unwind(|| {
                    let _tree = TREE.lock();
                    let _realm = REALM.lock();
                })
                .is_err()
            );
            // Granules of one rank by address, and the host's behind a realm's.
            let (delegated, host) = (rank_of(State::Delegated), rank_of(State::Ns));
            takes(delegated, 8);
            takes(rank_of(State::Rtt), 16);
            takes(host, 4);
            assert!(catch_unwind(|| takes(delegated, 12)).is_err());
            for at in [8, 16, 4] {
                lets_go(at);
            }
            idle();
        }
    }
}

//! Granules one after another that change owner together.

use super::granule::{GranuleWord, Granules, Locked, Span, State};

/// Granules of one span, one after another, that this CPU has locked; dropping it
/// unlocks them.
#[derive(Debug)]
#[must_use]
pub struct LockedRun<'a> {
    words: &'a [GranuleWord],
    span: &'a Span,
    pa: u64,
    granule: u64,
}

impl Granules {
    /// Locks the granules of `[pa, end)`, by address, up to the first that is not in
    /// `state` or that something depends on, and to the end of a span. `None` when
    /// that is the first one already.
    pub fn lock_run(&self, pa: u64, end: u64, state: State) -> Option<LockedRun<'_>> {
        debug_assert!(state != State::Rtt, "its count rises without its lock");
        let span_end = (pa | (self.span_size() - 1)).saturating_add(1);
        let most = end
            .min(span_end)
            .saturating_sub(pa)
            .wrapping_shr(self.shift()) as usize;
        let (words, span) = self.from(pa)?;
        let count = words
            .iter()
            .take(most)
            .take_while(|word| word.lock_unused(state))
            .count();
        (count > 0).then(|| LockedRun {
            words: &words[..count],
            span,
            pa,
            granule: self.size(),
        })
    }
}

impl LockedRun<'_> {
    /// PA of the first.
    pub fn pa(&self) -> u64 {
        self.pa
    }

    /// How many they are.
    pub fn count(&self) -> u64 {
        self.words.len() as u64
    }

    /// Bytes of all.
    pub fn size(&self) -> u64 {
        self.count() * self.granule
    }

    /// Cuts it behind so many: what is left of it comes back.
    pub fn split_off(&mut self, count: u64) -> Self {
        let (first, rest) = self.words.split_at(count as usize);
        self.words = first;
        Self {
            words: rest,
            span: self.span,
            pa: self.pa + count * self.granule,
            granule: self.granule,
        }
    }

    /// They stop being the host's: false while a block maps them.
    pub fn leave_host(&self) -> bool {
        self.span.leave_host(self.count())
    }

    /// They are the host's again: whether all of their span is now.
    pub fn return_to_host(&self) -> bool {
        self.span.return_to_host(self.count())
    }

    /// Unlocks them in another state.
    pub fn unlock_as(self, state: State) {
        for word in self.words {
            word.unlock_unused(state);
        }
        core::mem::forget(self);
    }
}

impl Drop for LockedRun<'_> {
    fn drop(&mut self) {
        for word in self.words {
            drop(Locked::kept(word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::phys;
    use crate::memory::region::{Region, Regions};

    const RAM: u64 = 0x4000_0000;

    fn table() -> Granules {
        let mut ram = Regions::new();
        let region = Region::new(RAM, 0x40_0000).expect("no overflow");
        ram.insert(region).expect("the first");
        phys::fake::install(0x1_0000, 0x1_0000);
        // SAFETY: the fake memory is this test's.
        unsafe { Granules::new(&ram, 12, 0x1_0000) }
    }

    #[test]
    fn a_run_ends_where_something_else_begins() {
        let table = table();
        let word = |n: u64| table.get(RAM + n * 0x1000).expect("RAM");
        word(7).pin(State::Ns).expect("the host's").keep();
        word(20)
            .lock(State::Ns)
            .expect("free")
            .unlock_as(State::Data);
        for (from, end, count) in [(0, 1024, 7), (8, 1024, 12), (21, 1024, 491), (21, 30, 9)] {
            let run = table.lock_run(RAM + from * 0x1000, RAM + end * 0x1000, State::Ns);
            let run = run.expect("the first is free");
            assert_eq!((run.count(), run.size()), (count, count * 0x1000));
            assert_eq!(run.pa(), RAM + from * 0x1000);
        }
        for from in [7, 20] {
            let pa = RAM + from * 0x1000;
            assert!(table.lock_run(pa, RAM + 0x40_0000, State::Ns).is_none());
            // Nor is it left locked.
            let state = word(from).state();
            assert!(word(from).lock(state).is_some());
        }
        assert!(table.lock_run(RAM, RAM, State::Ns).is_none());
        assert!(table.lock_run(RAM + 8, RAM + 0x2000, State::Ns).is_none());
        let behind = RAM + 0x40_0000;
        assert!(table.lock_run(behind, behind + 0x1000, State::Ns).is_none());
    }

    #[test]
    fn a_run_is_unlocked_part_by_part() {
        let table = table();
        let mut run = table
            .lock_run(RAM, RAM + 0x8000, State::Ns)
            .expect("all free");
        let rest = run.split_off(3);
        assert_eq!((rest.pa(), rest.count(), run.count()), (RAM + 0x3000, 5, 3));
        run.unlock_as(State::Delegated);
        drop(rest);
        for n in 0..8 {
            let word = table.get(RAM + n * 0x1000).expect("RAM");
            let state = if n < 3 { State::Delegated } else { State::Ns };
            assert_eq!(word.state(), state);
            drop(word.lock(state).expect("unlocked"));
        }
    }
}

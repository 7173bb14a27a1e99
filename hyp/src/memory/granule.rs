//! Who owns each granule of RAM.
//!
//! One 32-bit word a granule: state, lock and reference count.
//!
//! Lock protocol. A granule's lock guards its state and what lies in it. Locks
//! are taken in the order RD, REC, the realm's own locks, then DELEGATED, RTT and
//! DATA, then the host's, and among equals by address ([`super::order`]); a
//! granule is locked *expecting a state*, so that an argument named twice is
//! refused (its state cannot be both) instead of waited for. State and lock
//! change together ([`Locked::unlock_as`]). The count falls at any time. Of the host's
//! granules it rises by a pin, which waits while one is locked; of an RTT under the lock
//! of its realm's tables; of others under their own lock. So whoever holds the lock of
//! anything but an RTT and reads 0 knows that nobody else has come to depend on it, or
//! will meanwhile: the word is its own ([`super::run`]).
//!
//! *Spans*: memory that a guest maps by a block (level 2) is not counted granule
//! by granule, which would make one call's work as long as a block has granules.
//! Each span of a block's size has one word: how many blocks map it, and how many
//! of its granules are not the host's. One of the two is always 0.
//!
//! What the count counts: of an RD its RECs; of a REC whether it runs; of an RTT
//! its live entries; of the host's memory (NS) the unprotected mappings of it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use arm64::instr;

#[cfg(not(target_os = "none"))]
use super::order;
use super::region::{Region, Regions};

/// What a granule is (DEN0137 1.0, A2.2.2, and EL2's own).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The host's.
    Ns = 0,
    /// Given to EL2, all zero, no use yet.
    Delegated = 1,
    /// A realm descriptor.
    Rd = 2,
    /// A realm execution context: a vCPU.
    Rec = 3,
    /// Auxiliary to a REC.
    RecAux = 4,
    /// A realm's memory.
    Data = 5,
    /// A realm translation table.
    Rtt = 6,
    /// EL2's own, for ever.
    Hyp = 7,
    /// Was a realm's memory, and holds what that left: becomes the host's by way of a
    /// scrub, and nothing else.
    Unscrubbed = 8,
}

const STATE: u32 = 0xf;
const LOCK: u32 = 1 << 4;
const COUNT_SHIFT: u32 = 5;
const COUNT_ONE: u32 = 1 << COUNT_SHIFT;
/// Largest count.
pub const COUNT_MAX: u32 = u32::MAX >> COUNT_SHIFT;

/// One granule's word.
#[derive(Debug)]
#[repr(transparent)]
pub struct GranuleWord(AtomicU32);

impl GranuleWord {
    fn state_of(word: u32) -> State {
        match word & STATE {
            0 => State::Ns,
            1 => State::Delegated,
            2 => State::Rd,
            3 => State::Rec,
            4 => State::RecAux,
            5 => State::Data,
            6 => State::Rtt,
            8 => State::Unscrubbed,
            _ => State::Hyp,
        }
    }

    /// Where its lock is, for the order among them.
    #[cfg(not(target_os = "none"))]
    fn place(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// The state at this moment; only the lock makes it stay.
    pub fn state(&self) -> State {
        Self::state_of(self.0.load(Ordering::Acquire))
    }

    /// The count at this moment.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Acquire) >> COUNT_SHIFT
    }

    /// Locks the granule if it is in `state`; `None` when it is not.
    pub fn lock(&self, state: State) -> Option<Locked<'_>> {
        loop {
            let word = self.0.load(Ordering::Relaxed);
            if word & STATE != state as u32 {
                return None;
            }
            #[cfg(not(target_os = "none"))]
            order::may_wait(order::rank_of(state), self.place());
            if word & LOCK == 0
                && self
                    .0
                    .compare_exchange_weak(word, word | LOCK, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                #[cfg(not(target_os = "none"))]
                order::takes(order::rank_of(state), self.place());
                return Some(Locked(self));
            }
            core::hint::spin_loop();
        }
    }

    /// As [`Self::lock`], of one that nothing depends on: whether it is that. Its word is
    /// this CPU's alone until [`Self::unlock_unused`].
    pub(super) fn lock_unused(&self, state: State) -> bool {
        let free = state as u32;
        let locked =
            (self.0).compare_exchange(free, free | LOCK, Ordering::Acquire, Ordering::Relaxed);
        if locked.is_ok() {
            #[cfg(not(target_os = "none"))]
            order::takes(order::rank_of(state), self.place());
            return true;
        }
        match self.lock(state) {
            Some(locked) if locked.count() == 0 => {
                core::mem::forget(locked);
                true
            }
            _ => false,
        }
    }

    /// Lets go of it in another state.
    pub(super) fn unlock_unused(&self, state: State) {
        #[cfg(not(target_os = "none"))]
        order::lets_go(self.place());
        self.0.store(state as u32, Ordering::Release);
    }

    /// Adds a reference if the granule is in `state` and not locked for a change
    /// of it; `None` when it is in another state or the count is full.
    pub fn pin(&self, state: State) -> Option<Pin<'_>> {
        loop {
            let word = self.0.load(Ordering::Relaxed);
            if word & STATE != state as u32 || word >> COUNT_SHIFT == COUNT_MAX {
                return None;
            }
            #[cfg(not(target_os = "none"))]
            order::may_wait(order::rank_of(state), self.place());
            if word & LOCK == 0
                && self
                    .0
                    .compare_exchange_weak(
                        word,
                        word + COUNT_ONE,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    )
                    .is_ok()
            {
                return Some(Pin(self));
            }
            core::hint::spin_loop();
        }
    }

    /// Adds one to the count of a granule whose state the caller keeps in place.
    pub fn get(&self) {
        let word = self.0.fetch_add(COUNT_ONE, Ordering::AcqRel);
        assert!(word >> COUNT_SHIFT < COUNT_MAX, "granule count overflow");
    }

    /// Takes one from the count.
    pub fn put(&self) {
        let word = self.0.fetch_sub(COUNT_ONE, Ordering::AcqRel);
        assert!(word >> COUNT_SHIFT > 0, "granule count underflow");
    }

    /// Changes the count by a signed number, under the same rules.
    pub fn add(&self, by: i32) {
        let old = self
            .0
            .fetch_add((by as u32) << COUNT_SHIFT, Ordering::AcqRel);
        let new = i64::from(old >> COUNT_SHIFT) + i64::from(by);
        assert!(
            (0..=i64::from(COUNT_MAX)).contains(&new),
            "granule count {new}"
        );
    }
}

/// A granule that this CPU has locked; dropping it unlocks.
#[derive(Debug)]
#[must_use]
pub struct Locked<'a>(&'a GranuleWord);

impl<'a> Locked<'a> {
    /// The granule.
    pub fn granule(&self) -> &'a GranuleWord {
        self.0
    }

    /// The count.
    pub fn count(&self) -> u32 {
        self.0.count()
    }

    /// A granule that was kept locked.
    pub(super) fn kept(granule: &'a GranuleWord) -> Self {
        Self(granule)
    }

    /// Unlocks it in another state.
    pub fn unlock_as(self, state: State) {
        let granule = self.0;
        core::mem::forget(self);
        #[cfg(not(target_os = "none"))]
        order::lets_go(granule.place());
        // Both are whose lock it is, and nobody else's to change; the count is not.
        let old = granule.0.load(Ordering::Relaxed) & (STATE | LOCK);
        granule.0.fetch_xor(old ^ state as u32, Ordering::Release);
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        #[cfg(not(target_os = "none"))]
        order::lets_go(self.0.place());
        self.0.0.fetch_and(!LOCK, Ordering::Release);
    }
}

/// A reference that keeps a granule in its state; dropping it lets go.
#[derive(Debug)]
#[must_use]
pub struct Pin<'a>(&'a GranuleWord);

impl Pin<'_> {
    /// Keeps the reference beyond this value's life: whoever ends the use calls
    /// [`GranuleWord::put`].
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        self.0.put();
    }
}

/// A range of RAM and where its words begin.
#[derive(Clone, Copy, Debug)]
struct Range {
    region: Region,
    first: usize,
    first_span: usize,
}

/// The word of a span: blocks that map it \[63:32\], granules in it that are not
/// the host's, or no RAM, \[31:0\].
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Span(AtomicU64);

const SPAN_BLOCK: u64 = 1 << 32;
const SPAN_FOREIGN: u64 = SPAN_BLOCK - 1;

impl Span {
    /// Changes the word, unless `refuse` says no: what it was.
    fn change(&self, refuse: impl Fn(u64) -> bool, by: u64) -> Option<u64> {
        let step = |word: u64| (!refuse(word)).then(|| word.wrapping_add(by));
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
            .ok()
    }

    /// Whether a granule of it is not the host's, or was not a moment ago.
    fn has_foreign(&self) -> bool {
        self.0.load(Ordering::Acquire) & SPAN_FOREIGN != 0
    }

    /// So many granules of it stop being the host's: false while a block maps them.
    pub(super) fn leave_host(&self, count: u64) -> bool {
        self.change(|word| word >> 32 != 0, count).is_some()
    }

    /// They are the host's again: whether all of it is now.
    pub(super) fn return_to_host(&self, count: u64) -> bool {
        let fewer = |word: u64| word & SPAN_FOREIGN < count;
        let before = self.change(fewer, count.wrapping_neg());
        before.expect("foreign granule count underflow") == count
    }
}

/// Which spans are looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spans {
    /// Those that are not all the host's by their count.
    Counted,
    /// All, whatever their count says: EL2 may die of a wrong one.
    All,
}

/// log2 of a level-2 block's bytes, for a granule's.
const fn span_shift(shift: u32) -> u32 {
    2 * shift - 3
}

/// The table over all RAM.
#[derive(Debug)]
pub struct Granules {
    words: &'static [GranuleWord],
    spans: &'static [Span],
    ranges: &'static [Range],
    shift: u32,
    span_shift: u32,
}

impl Granules {
    /// Bytes that the table for `ram` needs.
    pub fn bytes_for(ram: &Regions, shift: u32) -> u64 {
        let mut ranges = 0;
        let (granules, spans) = Self::lay_out(ram, shift, &mut |_| ranges += 1);
        (size_of::<Range>() * ranges + 8 * spans + 4 * granules) as u64
    }

    /// Passes `range` each range of RAM with its words' places: how many granules
    /// and spans there are.
    fn lay_out(ram: &Regions, shift: u32, range: &mut impl FnMut(Range)) -> (usize, usize) {
        let (mut granules, mut spans) = (0, 0);
        let whole = ram.iter().map(|r| r.shrink_to(1 << shift));
        for region in whole.filter(|r| !r.is_empty()) {
            range(Range {
                region,
                first: granules,
                first_span: spans,
            });
            granules += (region.size() >> shift) as usize;
            spans += (region.grow_to(1 << span_shift(shift)).size() >> span_shift(shift)) as usize;
        }
        (granules, spans)
    }

    /// The table for `ram`, in the memory at `place`: all are the host's at first.
    ///
    /// # Safety
    /// `place` is [`Self::bytes_for`] bytes of mapped RAM, aligned to 8, that are
    /// the table's for ever.
    pub unsafe fn new(ram: &Regions, shift: u32, place: u64) -> Self {
        let list = super::phys::pointer::<Range>(place);
        let mut count = 0;
        let (granules, spans) = Self::lay_out(ram, shift, &mut |range| {
            // SAFETY: the caller's promise: the list of ranges comes first.
            unsafe { list.add(count).write(range) };
            count += 1;
        });
        let words = place + (size_of::<Range>() * count) as u64;
        let after = words + 8 * spans as u64;
        // SAFETY: the caller's promise; zero is a free granule of the host's, and
        // a span of such that no block maps. The list was just written.
        let (ranges, spans, words) = unsafe {
            super::phys::zero(words, 8 * spans as u64 + 4 * granules as u64);
            (
                core::slice::from_raw_parts(list, count),
                core::slice::from_raw_parts(super::phys::pointer::<Span>(words), spans),
                core::slice::from_raw_parts(super::phys::pointer::<GranuleWord>(after), granules),
            )
        };
        let table = Self {
            words,
            spans,
            ranges,
            shift,
            span_shift: span_shift(shift),
        };
        for range in table.ranges {
            // What of the first and the last span is no RAM.
            let whole = range.region.grow_to(1 << span_shift(shift));
            let before = (range.region.base() - whole.base()) >> shift;
            let behind = (whole.end() - range.region.end()) >> shift;
            let last = ((whole.size() >> span_shift(shift)) as usize).saturating_sub(1);
            table.spans[range.first_span].leave_host(before);
            table.spans[range.first_span + last].leave_host(behind);
        }
        table
    }

    /// log2 of a granule's bytes.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// Bytes of a granule.
    pub fn size(&self) -> u64 {
        1u64.wrapping_shl(self.shift)
    }

    /// The granule at `pa`: `None` when `pa` is not aligned or not RAM.
    pub fn get(&self, pa: u64) -> Option<&GranuleWord> {
        let (_, index) = self.find(pa)?;
        instr::element(self.words, index)
    }

    /// The granules from `pa` on to the end of its range of RAM, and the span of the
    /// first: `None` as for [`Self::get`].
    pub(super) fn from(&self, pa: u64) -> Option<(&[GranuleWord], &Span)> {
        let (range, index) = self.find(pa)?;
        let end = range.first + range.region.size().wrapping_shr(self.shift) as usize;
        let words = self.words.get(instr::index(index, end)?..end)?;
        Some((words, self.span_in(range, pa)?))
    }

    fn find(&self, pa: u64) -> Option<(&Range, usize)> {
        // Every command comes here several times: with no more checks than it takes.
        if pa & !(u64::MAX.wrapping_shl(self.shift)) != 0 {
            return None;
        }
        let range = self.ranges.iter().find(|r| r.region.contains(pa))?;
        let offset = pa - range.region.base();
        let index = range.first + offset.wrapping_shr(self.shift) as usize;
        Some((range, index))
    }

    /// The ranges of RAM.
    pub fn ram(&self) -> impl Iterator<Item = Region> {
        self.ranges.iter().map(|range| range.region)
    }

    /// Passes `each` the granules that are in one of `states`, none of them the host's,
    /// when it comes to them, by PA.
    pub fn each(&self, spans: Spans, states: &[State], mut each: impl FnMut(u64)) {
        for range in self.ranges {
            let (mut pa, end) = (range.region.base(), range.region.end());
            while pa < end {
                let first = range.first + ((pa - range.region.base()) >> self.shift) as usize;
                let next = (pa | (self.span_size() - 1)).saturating_add(1).min(end);
                let count = ((next - pa) >> self.shift) as usize;
                let look =
                    spans == Spans::All || self.span_in(range, pa).is_some_and(Span::has_foreign);
                let count = if look { count } else { 0 };
                for (n, granule) in self.words[first..][..count].iter().enumerate() {
                    if states.contains(&granule.state()) {
                        each(pa + ((n as u64) << self.shift));
                    }
                }
                pa = next;
            }
        }
    }

    /// The span that `pa` is in.
    fn span(&self, pa: u64) -> Option<&Span> {
        let range = self.ranges.iter().find(|r| r.region.contains(pa))?;
        self.span_in(range, pa)
    }

    #[inline(always)]
    fn span_in(&self, range: &Range, pa: u64) -> Option<&Span> {
        let number = |pa: u64| pa.wrapping_shr(self.span_shift);
        let index = number(pa) - number(range.region.base());
        instr::element(self.spans, range.first_span + index as usize)
    }

    /// For tests: as [`LockedRun::leave_host`](super::run::LockedRun::leave_host), of
    /// whatever granules of the span at `pa`.
    #[cfg(not(target_os = "none"))]
    pub fn leave_host(&self, pa: u64, count: u64) -> bool {
        self.span(pa).is_some_and(|span| span.leave_host(count))
    }

    /// For tests: the way back.
    #[cfg(not(target_os = "none"))]
    pub fn return_to_host(&self, pa: u64, count: u64) -> bool {
        self.span(pa).is_some_and(|span| span.return_to_host(count))
    }

    /// Bytes of a span: of a level-2 block.
    pub fn span_size(&self) -> u64 {
        1u64.wrapping_shl(self.span_shift)
    }

    /// Counts a block that maps the span at `pa`: false unless all of it is RAM of
    /// the host's.
    pub fn get_block(&self, pa: u64) -> bool {
        let full = |word: u64| word & SPAN_FOREIGN != 0 || word >> 32 == u64::from(u32::MAX);
        pa.is_multiple_of(self.span_size())
            && self
                .span(pa)
                .is_some_and(|span| span.change(full, SPAN_BLOCK).is_some())
    }

    /// Takes back what [`Self::get_block`] counted.
    pub fn put_block(&self, pa: u64) {
        let none = |word: u64| word >> 32 == 0;
        let span = self.span(pa);
        let done = span.and_then(|span| span.change(none, SPAN_BLOCK.wrapping_neg()));
        assert!(done.is_some(), "block count underflow");
    }

    /// Takes `region` for EL2, before there is a host.
    pub fn claim(&self, region: Region) {
        let mut pa = region.base() & !(self.size() - 1);
        while pa < region.end() {
            if let Some(granule) = self.get(pa) {
                granule.0.store(State::Hyp as u32, Ordering::Relaxed);
                self.span(pa).map(|span| span.leave_host(1));
            }
            pa += self.size();
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn table(ram: &[(u64, u64)]) -> Granules {
        let mut regions = Regions::new();
        for &(base, size) in ram {
            regions.insert(Region::new(base, size).unwrap()).unwrap();
        }
        super::super::phys::fake::install(0x1_0000, 0x1_0000);
        // SAFETY: the fake memory is this test's.
        unsafe { Granules::new(&regions, 12, 0x1_0000) }
    }

    #[test]
    fn a_hosts_address_is_masked_before_it_indexes() {
        use arm64::recording::{Event, of};
        let g = table(&[(0x4000_0000, 0x40_0000)]);
        let masked = [Event::Instruction("csdb", None)];
        assert_eq!(of(|| assert!(g.get(0x4000_1000).is_some())), masked);
        assert_eq!(of(|| assert!(g.get_block(0x4000_0000))), masked);
        assert_eq!(of(|| assert!(g.get(0x8000_0000).is_none())), []);
    }

    #[test]
    fn only_aligned_ram_has_granules() {
        let g = table(&[(0x4000_0800, 0x2800), (0x8000_0000, 0x1000)]);
        assert!(g.get(0x4000_0000).is_none());
        assert!(g.get(0x4000_1000).is_some());
        assert!(g.get(0x4000_1800).is_none());
        assert!(g.get(0x4000_2000).is_some());
        assert!(g.get(0x4000_3000).is_none());
        assert!(g.get(0x8000_0000).is_some());
        assert!(g.get(0x8000_1000).is_none());
        assert!(g.get(!0xfff).is_none());
    }

    #[test]
    fn locks_expect_a_state() {
        let g = table(&[(0x4000_0000, 0x2000)]);
        let granule = g.get(0x4000_0000).unwrap();
        assert!(granule.lock(State::Delegated).is_none());
        granule.lock(State::Ns).unwrap().unlock_as(State::Delegated);
        let locked = granule.lock(State::Delegated).unwrap();
        assert!(
            granule.lock(State::Rd).is_none(),
            "named twice: refused, not waited for"
        );
        drop(locked);
        assert_eq!(granule.state(), State::Delegated);
    }

    #[test]
    fn counts_survive_state_changes_and_pins_let_go() {
        let g = table(&[(0x4000_0000, 0x2000)]);
        let granule = g.get(0x4000_1000).unwrap();
        {
            let _a = granule.pin(State::Ns).unwrap();
            granule.pin(State::Ns).unwrap().keep();
            assert_eq!(granule.count(), 2);
        }
        granule.lock(State::Ns).unwrap().unlock_as(State::Rtt);
        assert_eq!((granule.state(), granule.count()), (State::Rtt, 1));
        granule.put();
        assert!(granule.pin(State::Ns).is_none());
    }

    #[test]
    fn a_span_is_mapped_by_blocks_or_has_foreign_granules() {
        // 3 MiB from 1 MiB on, in spans of 2 MiB: half a span, then a whole one.
        let g = table(&[(0x4010_0000, 0x30_0000)]);
        assert!(!g.get_block(0x4000_0000), "half of it is no RAM");
        assert!(!g.get_block(0x4020_1000), "not aligned");
        assert!(g.get_block(0x4020_0000) && g.get_block(0x4020_0000));
        assert!(!g.leave_host(0x4020_5000, 1), "a guest maps it");
        assert!(
            g.leave_host(0x4010_0000, 1),
            "its neighbour span is another matter"
        );
        g.put_block(0x4020_0000);
        assert!(!g.leave_host(0x4020_5000, 1));
        g.put_block(0x4020_0000);
        assert!(g.leave_host(0x4020_5000, 1) && g.leave_host(0x403f_e000, 2));
        assert!(!g.get_block(0x4020_0000));
        assert!(!g.return_to_host(0x4020_5000, 1), "two are still away");
        assert!(g.return_to_host(0x403f_e000, 2));
        assert!(!g.return_to_host(0x4010_0000, 1), "half of it is no RAM");
        assert!(g.get_block(0x4020_0000));
        assert!(!g.get_block(0x4040_0000), "no RAM at all");
    }

    #[test]
    fn what_is_not_the_hosts_is_found_by_span() {
        // Spans in part, and a second range of RAM.
        let g = table(&[(0x4010_0000, 0x50_0000), (0x8000_0000, 0x40_0000)]);
        let found = |states: &[State]| {
            let mut all = Vec::new();
            g.each(Spans::Counted, states, |pa| all.push(pa));
            let mut every = Vec::new();
            g.each(Spans::All, states, |pa| every.push(pa));
            assert_eq!(all, every);
            all
        };
        assert_eq!(found(&[State::Data, State::Rd]), []);
        let places = [
            (0x4010_0000, State::Rd),
            (0x401f_f000, State::Data),
            (0x4040_1000, State::Data),
            (0x405f_f000, State::Rec),
            (0x8020_3000, State::Data),
        ];
        for (pa, state) in places {
            let run = g.lock_run(pa, pa + 0x1000, State::Ns).unwrap();
            assert!(run.leave_host());
            run.unlock_as(state);
        }
        assert_eq!(found(&[State::Rec]), [0x405f_f000]);
        assert_eq!(
            found(&[State::Data]),
            [0x401f_f000, 0x4040_1000, 0x8020_3000]
        );
        let all = [State::Rd, State::Rec, State::Data];
        assert_eq!(found(&all), places.map(|(pa, _)| pa));
    }

    #[test]
    fn contended_locks_exclude() {
        let granule = GranuleWord(AtomicU32::new(0));
        let mut total = 0u64;
        let shared = &raw mut total as usize;
        std::thread::scope(|s| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    s.spawn(|| {
                        for _ in 0..10_000 {
                            let _locked = granule.lock(State::Ns).unwrap();
                            // SAFETY: the granule's lock guards the number.
                            unsafe { *(shared as *mut u64) += 1 };
                        }
                    })
                })
                .collect();
            for t in threads {
                t.join().unwrap();
            }
        });
        assert_eq!(total, 40_000);
    }
}

//! A map from address ranges to values, with a default for the rest.

use std::cell::Cell;
use std::collections::BTreeMap;

/// Disjoint half-open ranges with equal neighbours merged.
///
/// Questions come in sweeps, so that the range of the last answer is
/// remembered.
#[derive(Clone, Debug, Default)]
pub struct RangeMap<V: Copy> {
    /// Start → (end, value); the default value is never stored.
    map: BTreeMap<u64, (u64, V)>,
    last: Cell<Option<(u64, u64, V)>>,
}

impl<V: Copy + PartialEq + Default> RangeMap<V> {
    /// The range around `at`, which may be one of the default.
    fn around(&self, at: u64) -> (u64, u64, V) {
        if let Some(last) = self.last.get()
            && last.0 <= at
            && at < last.1
        {
            return last;
        }
        let found = match self.map.range(..=at).next_back() {
            Some((&start, &(end, value))) if at < end => (start, end, value),
            before => {
                let start = before.map_or(0, |(_, &(end, _))| end);
                let after = self.map.range(at..).next();
                let end = after.map_or(u64::MAX, |(&start, _)| start);
                (start, end, V::default())
            }
        };
        self.last.set(Some(found));
        found
    }

    /// The value at `at`.
    pub fn get(&self, at: u64) -> V {
        self.around(at).2
    }

    /// Sets `[lo, hi)`.
    pub fn set(&mut self, lo: u64, hi: u64, value: V) {
        if lo >= hi {
            return;
        }
        let (_, to, now) = self.around(lo);
        if now == value && hi <= to {
            return;
        }
        self.last.set(None);
        let (mut lo, mut hi) = (lo, hi);
        // Cut a range that begins before and reaches in.
        if let Some((&start, &(end, old))) = self.map.range(..lo).next_back()
            && end > lo
        {
            self.map.insert(start, (lo, old));
            if end > hi {
                self.map.insert(hi, (end, old));
            }
        }
        // Drop what lies inside, keeping the tail of the last.
        while let Some((&start, &(end, old))) = self.map.range(lo..hi).next() {
            self.map.remove(&start);
            if end > hi {
                self.map.insert(hi, (end, old));
            }
        }
        if value == V::default() {
            return;
        }
        if let Some((&start, &(end, old))) = self.map.range(..lo).next_back()
            && end == lo
            && old == value
        {
            self.map.remove(&start);
            lo = start;
        }
        if let Some(&(end, old)) = self.map.get(&hi)
            && old == value
        {
            self.map.remove(&hi);
            hi = end;
        }
        self.map.insert(lo, (hi, value));
    }

    /// The ranges over `[lo, hi)` that differ from the default, clipped.
    pub fn iter(&self, lo: u64, hi: u64) -> impl Iterator<Item = (u64, u64, V)> + '_ {
        let first = self
            .map
            .range(..lo)
            .next_back()
            .filter(|(_, (end, _))| *end > lo)
            .map_or(lo, |(&start, _)| start);
        self.map
            .range(first..hi.max(first))
            .map(move |(&start, &(end, value))| (start.max(lo), end.min(hi), value))
            .filter(|(from, to, _)| from < to)
    }

    /// As [`iter`](Self::iter), from the last range to the first.
    pub fn iter_rev(&self, lo: u64, hi: u64) -> impl Iterator<Item = (u64, u64, V)> + '_ {
        let mut at = hi;
        std::iter::from_fn(move || {
            while at > lo {
                let (start, end, value) = self.around(at - 1);
                let to = end.min(at);
                at = start.max(lo);
                if value != V::default() {
                    return Some((at, to, value));
                }
            }
            None
        })
    }

    /// True if all of `[lo, hi)` has `value`, which is not the default.
    pub fn covers(&self, lo: u64, hi: u64, value: V) -> bool {
        let mut at = lo;
        while at < hi {
            let (_, end, found) = self.around(at);
            if found != value {
                return false;
            }
            at = end;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_an_array() {
        let mut map = RangeMap::default();
        let mut array = [0u8; 64];
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % n
        };
        for _ in 0..20_000 {
            let (a, b, v) = (next(65), next(65), next(3) as u8);
            map.set(a, b, v);
            if a < b {
                array[a as usize..b as usize].fill(v);
            }
            let at = next(64);
            assert_eq!(map.get(at), array[at as usize]);
            let (lo, hi) = (next(64), next(64));
            if lo < hi {
                let part = &array[lo as usize..hi as usize];
                let total: u64 = map.iter(lo, hi).map(|(s, e, _)| e - s).sum();
                let full = part.iter().filter(|x| **x != 0).count() as u64;
                assert_eq!(total, full);
                let reversed: u64 = map.iter_rev(lo, hi).map(|(s, e, _)| e - s).sum();
                assert_eq!(reversed, full);
                assert_eq!(map.covers(lo, hi, 1), part.iter().all(|x| *x == 1));
            }
        }
    }
}

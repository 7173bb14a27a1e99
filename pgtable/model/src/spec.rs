//! The specification map: what the tables are supposed to say.

use std::collections::BTreeMap;

use crate::event::Target;

/// A reference map from input ranges to targets; all else is unmapped.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Start → (end, target of the start).
    map: BTreeMap<u64, (u64, Target)>,
}

const fn offset(target: Target, by: u64) -> Target {
    Target {
        pa: target.pa.wrapping_add(by),
        ..target
    }
}

impl Spec {
    /// Sets `[lo, hi)` to lead to `target` onwards, or to nothing.
    pub fn set(&mut self, lo: u64, hi: u64, target: Option<Target>) {
        if lo >= hi {
            return;
        }
        if let Some((&start, &(end, old))) = self.map.range(..lo).next_back()
            && end > lo
        {
            self.map.insert(start, (lo, old));
            if end > hi {
                self.map.insert(hi, (end, offset(old, hi - start)));
            }
        }
        while let Some((&start, &(end, old))) = self.map.range(lo..hi).next() {
            self.map.remove(&start);
            if end > hi {
                self.map.insert(hi, (end, offset(old, hi - start)));
            }
        }
        if let Some(target) = target {
            self.map.insert(lo, (hi, target));
        }
    }

    /// Where `ia` leads.
    pub fn get(&self, ia: u64) -> Option<Target> {
        let (&start, &(end, target)) = self.map.range(..=ia).next_back()?;
        (ia < end).then(|| offset(target, ia - start))
    }

    /// Mapped ranges over `[lo, hi)`, clipped, with the target of their start.
    pub fn iter(&self, lo: u64, hi: u64) -> impl Iterator<Item = (u64, u64, Target)> + '_ {
        let first = self
            .map
            .range(..lo)
            .next_back()
            .filter(|(_, (end, _))| *end > lo)
            .map_or(lo, |(&start, _)| start);
        self.map
            .range(first..hi.max(first))
            .map(move |(&start, &(end, target))| {
                let from = start.max(lo);
                (from, end.min(hi), offset(target, from - start))
            })
            .filter(|(from, to, _)| from < to)
    }

    /// Applies `f` to every target in `[lo, hi)` (a change of rights, say).
    pub fn update(&mut self, lo: u64, hi: u64, f: impl Fn(Target) -> Target) {
        let parts: Vec<_> = self.iter(lo, hi).collect();
        for (from, to, target) in parts {
            self.set(from, to, Some(f(target)));
        }
    }
}

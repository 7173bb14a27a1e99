//! Covering arrays: as few configurations as a greedy search finds in which all values
//! of so many axes meet that can.

use super::cell::{AXES, Cell, SIZES};

/// A configuration by the places of its values.
type Places = [u8; AXES];

/// All combinations of values, the last axis' first.
pub fn all() -> impl Iterator<Item = Places> {
    std::iter::successors(Some([0; AXES]), |places| {
        let mut next = *places;
        for axis in (0..AXES).rev() {
            next[axis] += 1;
            if usize::from(next[axis]) < SIZES[axis] {
                return Some(next);
            }
            next[axis] = 0;
        }
        None
    })
}

/// Those that no rule excludes.
pub fn legal() -> Vec<Places> {
    all()
        .filter(|places| Cell::of(*places).excluded().is_none())
        .collect()
}

/// Values of `strength` axes that are to meet.
#[derive(Clone, Debug)]
struct Tuples {
    /// The sets of axes.
    axes: Vec<Vec<usize>>,
    /// Of each set, which combinations are left.
    left: Vec<Vec<bool>>,
    count: usize,
}

impl Tuples {
    /// Those that meet in some configuration.
    fn of(legal: &[Places], strength: usize) -> Self {
        let axes: Vec<Vec<usize>> = (0u32..1 << AXES)
            .filter(|set| set.count_ones() as usize == strength)
            .map(|set| (0..AXES).filter(|axis| set >> axis & 1 != 0).collect())
            .collect();
        let sizes = axes
            .iter()
            .map(|set| set.iter().map(|&a| SIZES[a]).product());
        let left = sizes.map(|size: usize| vec![false; size]).collect();
        let mut this = Self {
            axes,
            left,
            count: 0,
        };
        for places in legal {
            for n in 0..this.axes.len() {
                let at = this.place(n, places);
                let is_new = !std::mem::replace(&mut this.left[n][at], true);
                this.count += usize::from(is_new);
            }
        }
        this
    }

    fn place(&self, set: usize, places: &Places) -> usize {
        let axes = self.axes[set].iter();
        axes.fold(0, |at, &axis| at * SIZES[axis] + usize::from(places[axis]))
    }

    /// How many of them meet here.
    fn gain(&self, places: &Places) -> usize {
        let sets = 0..self.axes.len();
        sets.filter(|&n| self.left[n][self.place(n, places)])
            .count()
    }

    fn take(&mut self, places: &Places) {
        for n in 0..self.axes.len() {
            let at = self.place(n, places);
            let was_left = std::mem::replace(&mut self.left[n][at], false);
            self.count -= usize::from(was_left);
        }
    }

    /// One that is left: its axes with their values.
    fn first(&self) -> Option<Vec<(usize, u8)>> {
        let mut sets = self.axes.iter().zip(&self.left);
        sets.find_map(|(axes, left)| {
            let mut at = left.iter().position(|left| *left)?;
            let values = axes.iter().rev().map(|&axis| {
                let value = at % SIZES[axis];
                at /= SIZES[axis];
                (axis, value as u8)
            });
            Some(values.collect())
        })
    }
}

/// Configurations in which all values of `strength` axes meet that can, beside those
/// that are there already. The same each time.
pub fn cover(legal: &[Places], strength: usize, there: &[Places]) -> Vec<Places> {
    // Of all that have what is to meet, so many are looked at.
    const LOOKED_AT: usize = 200;
    let mut tuples = Tuples::of(legal, strength);
    for places in there {
        tuples.take(places);
    }
    let mut chosen = Vec::new();
    // A generator of Marsaglia's, so that those looked at are of all kinds.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    while let Some(values) = tuples.first() {
        let meet = |places: &&Places| values.iter().all(|&(axis, value)| places[axis] == value);
        let has: Vec<&Places> = legal.iter().filter(meet).collect();
        let looked_at = (0..LOOKED_AT).map(|_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            has[(random % has.len() as u64) as usize]
        });
        let best = looked_at.max_by_key(|places| tuples.gain(places));
        let Some(best) = best else { break };
        tuples.take(best);
        chosen.push(*best);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_that_can_meet_does() {
        let legal = legal();
        assert!(legal.len() > 10_000, "{}", legal.len());
        let chosen = cover(&legal, 2, &[]);
        let mut left = Tuples::of(&legal, 2);
        let pairs = left.count;
        for places in &chosen {
            assert!(Cell::of(*places).excluded().is_none());
            left.take(places);
        }
        assert_eq!(left.count, 0, "of {pairs} pairs");
        assert_eq!(cover(&legal, 2, &[]), chosen, "the same each time");
        assert!(cover(&legal, 2, &chosen).is_empty());
        // Widths and kernels alone make 252 pairs.
        assert!(chosen.len() < 270, "{}", chosen.len());
        let names: std::collections::BTreeSet<_> = chosen
            .iter()
            .map(|places| Cell::of(*places).name())
            .collect();
        assert_eq!(names.len(), chosen.len());
    }
}

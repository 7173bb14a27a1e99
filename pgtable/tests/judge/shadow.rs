//! What the tree should say: a plain map of ranges.

use pgtable::Attrs;
use std::collections::BTreeMap;

/// What a range of IPAs is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Mapped from this address on.
    Mapped { pa: u64, attrs: Attrs },
    /// Invalid with these bits.
    Annotated(u64),
}

impl State {
    /// The state of what begins `by` bytes further.
    fn after(self, by: u64) -> Self {
        match self {
            Self::Mapped { pa, attrs } => Self::Mapped { pa: pa + by, attrs },
            other => other,
        }
    }
}

/// A range and its state: first IPA, one past the last, state at the first.
pub type Piece = (u64, u64, State);

/// Ranges that are not empty, by first IPA.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    map: BTreeMap<u64, (u64, State)>,
}

impl Shadow {
    /// Cuts the range that contains `at`, so that one begins there.
    fn cut(&mut self, at: u64) {
        let Some((&start, range)) = self.map.range_mut(..at).next_back() else {
            return;
        };
        let (end, state) = *range;
        if end > at {
            range.0 = at;
            self.map.insert(at, (end, state.after(at - start)));
        }
    }

    pub fn clear(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.cut(start);
        self.cut(end);
        while let Some((&at, _)) = self.map.range(start..end).next() {
            self.map.remove(&at);
        }
    }

    pub fn set(&mut self, start: u64, end: u64, state: State) {
        self.clear(start, end);
        if start < end {
            self.map.insert(start, (end, state));
        }
    }

    /// Pieces that overlap a range, cut to it.
    pub fn pieces(&self, start: u64, end: u64) -> Vec<Piece> {
        if start >= end {
            return Vec::new();
        }
        let before = self.map.range(..start).next_back();
        before
            .into_iter()
            .chain(self.map.range(start..end))
            .filter(|&(_, &(to, _))| to > start)
            .map(|(&at, &(to, state))| {
                let from = at.max(start);
                (from, to.min(end), state.after(from - at))
            })
            .collect()
    }

    pub fn at(&self, ipa: u64) -> Option<State> {
        let (&at, &(end, state)) = self.map.range(..=ipa).next_back()?;
        (ipa < end).then(|| state.after(ipa - at))
    }

    /// Some piece, if there is any: number `n`, counted round and round.
    pub fn some(&self, n: u64) -> Option<Piece> {
        let count = self.map.len();
        let (&at, &(end, state)) = self.map.iter().nth((n % count.max(1) as u64) as usize)?;
        Some((at, end, state))
    }

    /// Changes the attributes of what is mapped in a range.
    pub fn change(&mut self, start: u64, end: u64, f: impl Fn(Attrs) -> Attrs) {
        if start >= end {
            return;
        }
        self.cut(start);
        self.cut(end);
        for (_, (_, state)) in self.map.range_mut(start..end) {
            if let State::Mapped { attrs, .. } = state {
                *attrs = f(*attrs);
            }
        }
    }

    /// The parts of `[pa, end)` that nothing here maps, in order.
    pub fn unmapped(&self, pa: u64, end: u64) -> Vec<(u64, u64)> {
        let mut mapped: Vec<(u64, u64)> = self
            .map
            .iter()
            .filter_map(|(&at, &(to, state))| match state {
                State::Mapped { pa: from, .. } => Some((from, from + (to - at))),
                State::Annotated(_) => None,
            })
            .filter(|&(from, to)| from < end && pa < to)
            .collect();
        mapped.sort_unstable();
        let mut at = pa;
        let mut gaps = Vec::new();
        for (from, to) in mapped {
            if from > at {
                gaps.push((at, from));
            }
            at = at.max(to);
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }
}

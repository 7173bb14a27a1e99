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

/// Ranges that are not empty, by first IPA.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    map: BTreeMap<u64, (u64, State)>,
}

impl Shadow {
    /// Cuts the range that contains `at`, so that one begins there.
    fn cut(&mut self, at: u64) {
        let Some((&start, &(end, state))) = self.map.range(..at).next_back() else {
            return;
        };
        if end <= at {
            return;
        }
        self.map.insert(start, (at, state));
        let rest = match state {
            State::Mapped { pa, attrs } => State::Mapped {
                pa: pa + (at - start),
                attrs,
            },
            other => other,
        };
        self.map.insert(at, (end, rest));
    }

    pub fn clear(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        self.cut(start);
        self.cut(end);
        let gone: Vec<u64> = self.map.range(start..end).map(|(&at, _)| at).collect();
        for at in gone {
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
    pub fn pieces(&self, start: u64, end: u64) -> Vec<(u64, u64, State)> {
        let mut cut = self.clone_range(start, end);
        cut.cut(start);
        cut.cut(end);
        cut.map
            .range(start..end)
            .map(|(&at, &(to, state))| (at, to, state))
            .collect()
    }

    fn clone_range(&self, start: u64, end: u64) -> Self {
        let mut map = BTreeMap::new();
        if let Some((&at, &range)) = self.map.range(..start).next_back() {
            map.insert(at, range);
        }
        map.extend(self.map.range(start..end).map(|(&at, &range)| (at, range)));
        Self { map }
    }

    pub fn at(&self, ipa: u64) -> Option<State> {
        self.pieces(ipa, ipa + 1)
            .first()
            .map(|&(_, _, state)| state)
    }

    pub fn all(&self) -> impl Iterator<Item = (u64, u64, State)> + '_ {
        self.map.iter().map(|(&at, &(end, state))| (at, end, state))
    }

    /// Changes the attributes of what is mapped in a range.
    pub fn change(&mut self, start: u64, end: u64, f: impl Fn(Attrs) -> Attrs) {
        for (at, to, state) in self.pieces(start, end) {
            if let State::Mapped { pa, attrs } = state {
                self.set(
                    at,
                    to,
                    State::Mapped {
                        pa,
                        attrs: f(attrs),
                    },
                );
            }
        }
    }

    /// True when some range other than `[start, end)` maps memory of
    /// `[pa, pa + len)`.
    pub fn maps(&self, pa: u64, len: u64) -> bool {
        self.all().any(|(at, to, state)| match state {
            State::Mapped { pa: from, .. } => from < pa + len && pa < from + (to - at),
            State::Annotated(_) => false,
        })
    }
}

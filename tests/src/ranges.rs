//! What a range of addresses should be: pieces in order, in a fixed array, since
//! a bare-metal program has no heap.

/// What stands somewhere, and how it goes on further up.
pub trait State: Copy + PartialEq {
    /// The same, `bytes` further up in the range.
    #[must_use]
    fn onward(self, bytes: u64) -> Self;
}

/// A piece: `[start, end)`, and what stands at `start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<S> {
    /// The first address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// What stands at `start`; further up it is [`State::onward`].
    pub state: S,
}

impl<S: State> Piece<S> {
    /// The part of it in `[start, end)`, which it meets.
    fn within(self, start: u64, end: u64) -> Self {
        let from = self.start.max(start);
        Self {
            start: from,
            end: self.end.min(end),
            state: self.state.onward(from - self.start),
        }
    }
}

/// Up to `N` pieces, in order and apart; what is in none of them is empty.
#[derive(Debug)]
pub struct Ranges<S, const N: usize> {
    pieces: [Option<Piece<S>>; N],
    len: usize,
}

impl<S: State, const N: usize> Default for Ranges<S, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: State, const N: usize> Ranges<S, N> {
    /// All empty.
    pub const fn new() -> Self {
        Self {
            pieces: [None; N],
            len: 0,
        }
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.len = 0;
    }

    /// Pieces that there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The piece number `n`, in order.
    pub fn get(&self, n: usize) -> Option<Piece<S>> {
        if n < self.len { self.pieces[n] } else { None }
    }

    /// The number of the first piece that ends behind `at`.
    fn first_behind(&self, at: u64) -> usize {
        self.pieces[..self.len].partition_point(|piece| piece.is_some_and(|p| p.end <= at))
    }

    /// What stands at `at`.
    pub fn at(&self, at: u64) -> Option<S> {
        let piece = self.get(self.first_behind(at))?;
        (piece.start <= at).then(|| piece.state.onward(at - piece.start))
    }

    /// The pieces that meet `[start, end)`, cut to it.
    pub fn pieces(&self, start: u64, end: u64) -> impl Iterator<Item = Piece<S>> + '_ {
        let first = self.first_behind(start);
        self.pieces[first..self.len]
            .iter()
            .flatten()
            .take_while(move |piece| start < end && piece.start < end)
            .map(move |piece| piece.within(start, end))
    }

    fn insert(&mut self, n: usize, piece: Piece<S>) {
        assert!(self.len < N, "more than {N} pieces");
        self.pieces.copy_within(n..self.len, n + 1);
        self.pieces[n] = Some(piece);
        self.len += 1;
    }

    fn remove(&mut self, n: usize) {
        self.pieces.copy_within(n + 1..self.len, n);
        self.len -= 1;
    }

    /// Empties `[start, end)`; where its pieces stood.
    fn carve(&mut self, start: u64, end: u64) -> usize {
        let mut n = self.first_behind(start);
        while let Some(piece) = self.get(n).filter(|piece| piece.start < end) {
            if piece.start < start && piece.end > end {
                self.pieces[n] = Some(piece.within(piece.start, start));
                self.insert(n + 1, piece.within(end, piece.end));
                return n + 1;
            }
            if piece.start < start {
                self.pieces[n] = Some(piece.within(piece.start, start));
                n += 1;
            } else if piece.end > end {
                self.pieces[n] = Some(piece.within(end, piece.end));
                return n;
            } else {
                self.remove(n);
            }
        }
        n
    }

    /// Empties `[start, end)`.
    pub fn clear(&mut self, start: u64, end: u64) {
        if start < end {
            self.carve(start, end);
        }
    }

    /// Makes `[start, end)` this, and one piece of neighbours that go on alike.
    pub fn set(&mut self, start: u64, end: u64, state: S) {
        if start >= end {
            return;
        }
        let mut n = self.carve(start, end);
        let mut piece = Piece { start, end, state };
        if let Some(below) = n.checked_sub(1).and_then(|below| self.get(below))
            && below.end == start
            && below.state.onward(start - below.start) == state
        {
            piece.start = below.start;
            piece.state = below.state;
            n -= 1;
            self.remove(n);
        }
        if let Some(above) = self.get(n)
            && above.start == end
            && state.onward(end - start) == above.state
        {
            piece.end = above.end;
            self.remove(n);
        }
        self.insert(n, piece);
    }

    /// Changes what stands in `[start, end)`; `None` empties it.
    pub fn change(&mut self, start: u64, end: u64, mut f: impl FnMut(S) -> Option<S>) {
        let mut at = start;
        while at < end {
            let Some(piece) = self.pieces(at, end).next() else {
                return;
            };
            match f(piece.state) {
                None => self.clear(piece.start, piece.end),
                Some(new) => self.set(piece.start, piece.end, new),
            }
            at = piece.end;
        }
    }

    /// True when all of `[start, end)` is in pieces.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let held: u64 = self.pieces(start, end).map(|p| p.end - p.start).sum();
        held == end.saturating_sub(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Cell {
        Runs(u64),
        Same(u8),
    }

    impl State for Cell {
        fn onward(self, bytes: u64) -> Self {
            match self {
                Self::Runs(from) => Self::Runs(from + bytes),
                same @ Self::Same(_) => same,
            }
        }
    }

    /// Against an array with one cell an address.
    #[test]
    fn as_an_array_says() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut plain = [None; 64];
            let mut ranges = Ranges::<Cell, 65>::new();
            for _ in 0..200 {
                let start = random.below(64);
                let end = start + random.below(64 - start + 1);
                match random.below(4) {
                    0 => {
                        ranges.clear(start, end);
                        plain[start as usize..end as usize].fill(None);
                    }
                    1 => {
                        let from = random.below(3) + start;
                        ranges.set(start, end, Cell::Runs(from));
                        for at in start..end {
                            plain[at as usize] = Some(Cell::Runs(from + at - start));
                        }
                    }
                    2 => {
                        let same = Cell::Same(random.below(2) as u8);
                        ranges.set(start, end, same);
                        plain[start as usize..end as usize].fill(Some(same));
                    }
                    _ => {
                        let f = |cell| match cell {
                            Cell::Same(0) => None,
                            Cell::Same(n) => Some(Cell::Same(n - 1)),
                            Cell::Runs(from) => Some(Cell::Runs(from + 1)),
                        };
                        ranges.change(start, end, f);
                        for cell in &mut plain[start as usize..end as usize] {
                            *cell = cell.and_then(f);
                        }
                    }
                }
                for at in 0..64 {
                    assert_eq!(ranges.at(at), plain[at as usize], "seed {seed} at {at}");
                }
                let covered = plain[start as usize..end as usize]
                    .iter()
                    .all(Option::is_some);
                assert_eq!(ranges.covers(start, end), covered);
                let mut last = 0;
                for piece in ranges.pieces(start, end) {
                    assert!(piece.start >= last.max(start) && piece.start < piece.end);
                    assert_eq!(plain[piece.start as usize], Some(piece.state));
                    last = piece.end;
                }
            }
        }
    }

    #[test]
    fn alike_neighbours_are_one() {
        let mut ranges = Ranges::<Cell, 4>::new();
        ranges.set(0, 8, Cell::Runs(100));
        ranges.set(16, 24, Cell::Runs(116));
        ranges.set(8, 16, Cell::Runs(108));
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges.at(23), Some(Cell::Runs(123)));
    }

    #[test]
    #[should_panic(expected = "more than 2 pieces")]
    fn too_many_is_told() {
        let mut ranges = Ranges::<Cell, 2>::new();
        for at in 0..3 {
            ranges.set(at * 2, at * 2 + 1, Cell::Same(0));
        }
    }
}

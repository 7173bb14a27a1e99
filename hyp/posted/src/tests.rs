use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::vec::Vec;

use proptest::prelude::*;

use crate::*;

const DATA: Access = Access::DATA;

fn open() -> View {
    let mut view = View::CLOSED;
    view.reads(0x18, 0x1_2345, true);
    view.reads(0x3c, 7, false);
    view.waits(0);
    view
}

fn post(poster: &mut Poster, mut page: &Page, value: u64) -> Post {
    poster.write(&mut page, DATA, value)
}

fn read(poster: &mut Poster, mut page: &Page, offset: u64, size: u32) -> Option<u64> {
    poster.read(&mut page, Access::new(offset, size.ilog2())?)
}

#[test]
fn only_plain_accesses_of_the_first_registers_are_served() {
    for offset in 0..PAGE as u64 {
        for shift in 0..=16 {
            let right = offset % 4 == 0 && offset < 256 && shift <= 2;
            let access = Access::new(offset, shift);
            assert_eq!(access.is_some(), right, "{offset} {shift}");
        }
    }
}

#[test]
fn a_write_is_what_its_word_says() {
    for register in 0..REGISTERS as u64 {
        for shift in 0..=2 {
            let access = Access::new(4 * register, shift).unwrap();
            let write = Write::new(access, 0x9988_7766_8765_4321);
            assert_eq!((write.offset(), write.size_shift()), (4 * register, shift));
            assert_eq!(u64::from(write.value()), access.cut(0x8765_4321));
        }
    }
    // EL2 posts no such thing, and the host may do so in its own page.
    let write = Write(u64::MAX);
    assert!(write.offset() < 4 * REGISTERS as u64 && write.size_shift() <= 3);
}

#[test]
fn a_closed_page_serves_nothing() {
    let (page, mut poster) = (Page::new(), Poster::new());
    assert_eq!(post(&mut poster, &page, 1), Post::Refused);
    page.show(&open());
    assert_eq!(post(&mut poster, &page, 1), Post::Done);
    page.taken();
    page.close();
    // The first one behind the close calls the host, and it is the last.
    assert_eq!(post(&mut poster, &page, 1), Post::Call);
    page.taken();
    assert_eq!(post(&mut poster, &page, 1), Post::Refused);
    assert_eq!(read(&mut poster, &page, 0x18, 4), None);
    assert_eq!(read(&mut poster, &page, 0x3c, 4), None);
    assert!(page.is_empty());
}

#[test]
fn reads_are_as_wide_as_they_are_and_wait_for_what_waits() {
    let (page, mut poster) = (Page::new(), Poster::new());
    page.show(&open());
    assert_eq!(read(&mut poster, &page, 0x18, 4), Some(0x1_2345));
    assert_eq!(read(&mut poster, &page, 0x18, 2), Some(0x2345));
    assert_eq!(read(&mut poster, &page, 0x18, 1), Some(0x45));
    assert_eq!(read(&mut poster, &page, 0x3c, 4), Some(7));
    assert_eq!(read(&mut poster, &page, 0x1c, 4), None);
    assert_eq!(post(&mut poster, &page, 1), Post::Done);
    assert_eq!(read(&mut poster, &page, 0x18, 4), Some(0x1_2345));
    assert_eq!(
        read(&mut poster, &page, 0x3c, 4),
        None,
        "it may not stand for the write"
    );
    page.taken();
    assert_eq!(read(&mut poster, &page, 0x3c, 4), Some(7));
}

#[test]
fn a_write_of_what_is_there_changes_nothing() {
    let (page, mut poster) = (Page::new(), Poster::new());
    let mut view = open();
    view.keeps(0x38, 0x1_0050);
    page.show(&view);
    let mut write = |offset, size: u32, value| {
        let access = Access::new(offset, size.ilog2()).unwrap();
        poster.write(&mut &page, access, value)
    };
    assert_eq!(write(0x38, 4, 0x1_0050), Post::Done);
    assert_eq!(write(0x38, 4, 0x1_0051), Post::Refused);
    // Half a register is written with zeros above.
    assert_eq!(write(0x38, 2, 0x50), Post::Refused);
    assert_eq!(
        write(0x18, 4, 0x1_2345),
        Post::Refused,
        "that one only reads"
    );
    page.close();
    assert_eq!(write(0x38, 4, 0x1_0050), Post::Refused);
    assert!(page.is_empty());
}

#[test]
fn half_a_ring_calls_the_host_and_a_full_one_takes_nothing() {
    assert_eq!(2 * CALL_AT, ENTRIES);
    let (page, mut poster) = (Page::new(), Poster::new());
    page.show(&open());
    for n in 0..ENTRIES {
        let right = if n + 1 < CALL_AT {
            Post::Done
        } else {
            Post::Call
        };
        assert_eq!(post(&mut poster, &page, n), right, "{n}");
    }
    assert_eq!(post(&mut poster, &page, 0), Post::Refused);
    let mut left = 0;
    poster.waiting(&mut &page, |write| {
        assert_eq!(u64::from(write.value()), left);
        left += 1;
    });
    assert_eq!(left, ENTRIES);
    for n in 0..ENTRIES {
        assert_eq!(
            page.next().map(|write| write.value().into()),
            Some(n & 0xff)
        );
        page.taken();
    }
    assert_eq!(page.next(), None);
}

#[test]
fn half_a_ring_is_counted_from_what_the_host_has_taken() {
    let (page, mut poster) = (Page::new(), Poster::new());
    page.show(&open());
    for n in 0..CALL_AT - 1 {
        assert_eq!(post(&mut poster, &page, n), Post::Done, "{n}");
    }
    for _ in 0..100 {
        page.taken();
    }
    for n in 0..100 {
        assert_eq!(post(&mut poster, &page, n), Post::Done, "{n}");
    }
    assert_eq!(page.waiting(), CALL_AT - 1);
    assert_eq!(post(&mut poster, &page, 0), Post::Call);
}

#[test]
fn a_write_waits_where_its_own_register_may() {
    let (page, mut poster) = (Page::new(), Poster::new());
    let mut view = View::CLOSED;
    view.waits(0x14);
    page.show(&view);
    for register in 0..REGISTERS as u64 {
        let access = Access::new(4 * register, 2).unwrap();
        let right = if register == 5 {
            Post::Done
        } else {
            Post::Refused
        };
        assert_eq!(poster.write(&mut &page, access, 1), right, "{register}");
    }
}

/// The last word counts for its value, and what may be read remains so.
#[test]
fn a_register_may_be_named_twice() {
    let (page, mut poster) = (Page::new(), Poster::new());
    let mut view = View::CLOSED;
    view.reads(0x18, 1, true);
    view.reads(0x18, 2, false);
    page.show(&view);
    assert_eq!(read(&mut poster, &page, 0x18, 4), Some(2));
}

/// A page that remembers what is done to it, in order.
struct Ordered<'a>(&'a Page, Vec<(char, usize)>);

impl Memory for Ordered<'_> {
    fn load(&mut self, word: usize) -> u64 {
        self.1.push(('r', word));
        (&mut { self.0 }).load(word)
    }
    fn store(&mut self, word: usize, value: u64) {
        self.1.push(('w', word));
        (&mut { self.0 }).store(word, value);
    }
    fn fence(&mut self) {
        self.1.push(('f', 0));
    }
}

/// The entry before its number, the number before the look whether the page is
/// still open, with a fence in between; a value behind what allows it, and behind the
/// number that says that nothing waits.
#[test]
fn el2s_accesses_are_in_order() {
    let (page, mut poster) = (Page::new(), Poster::new());
    page.show(&open());
    post(&mut poster, &page, 0);
    let mut ordered = Ordered(&page, Vec::new());
    assert_eq!(poster.write(&mut ordered, DATA, 7), Post::Done);
    let entry = word::entry(1);
    let right = [
        ('w', entry),
        ('w', word::POSTED),
        ('f', 0),
        ('r', word::WRITABLE),
    ];
    assert_eq!(ordered.1, right);
    page.taken();
    page.taken();
    let mut ordered = Ordered(&page, Vec::new());
    let when_empty = Access::new(0x3c, 2).unwrap();
    assert_eq!(poster.read(&mut ordered, when_empty), Some(7));
    let right = [
        word::READABLE,
        word::TAKEN,
        word::READABLE_WHEN_EMPTY,
        word::VALUES + 15,
    ];
    assert_eq!(ordered.1, right.map(|word| ('r', word)));
    let mut ordered = Ordered(&page, Vec::new());
    let always = Access::new(0x18, 2).unwrap();
    assert_eq!(poster.read(&mut ordered, always), Some(0x1_2345));
    let right = [word::READABLE, word::VALUES + 6];
    assert_eq!(ordered.1, right.map(|word| ('r', word)));
}

#[test]
fn what_is_not_taken_waits() {
    let (page, mut poster) = (Page::new(), Poster::new());
    page.show(&open());
    for n in 0..5 {
        post(&mut poster, &page, n);
    }
    let mut seen = Vec::new();
    let taken = page.take(|write| {
        seen.push(write.value());
        write.value() != 3
    });
    assert_eq!((taken, &seen[..]), (3, &[0, 1, 2, 3][..]));
    assert_eq!(
        (page.waiting(), page.next().map(Write::value)),
        (2, Some(3))
    );
    assert_eq!(page.take(|_| true), 2);
    assert_eq!(page.take(|_| panic!("nothing waits")), 0);
}

/// A page whose host writes anything into it.
struct Hostile<'a>(&'a mut dyn FnMut() -> u64);

impl Memory for Hostile<'_> {
    fn load(&mut self, word: usize) -> u64 {
        assert!(word < PAGE / 8);
        (self.0)()
    }
    fn store(&mut self, word: usize, _: u64) {
        assert!(word < PAGE / 8);
    }
    fn fence(&mut self) {}
}

proptest! {
    /// Whatever the host writes, EL2 stays inside the page and counts for itself.
    #[test]
    fn a_hostile_page_is_survived(
        words in prop::collection::vec(any::<u64>(), 1..400),
        offsets in prop::collection::vec((0u64..256, any::<bool>()), 1..60),
    ) {
        let mut words = words.into_iter().cycle();
        let mut next = || words.next().unwrap_or(0);
        let mut poster = Poster::new();
        for (offset, write) in offsets {
            let Some(access) = Access::new(offset & !3, 2) else { continue };
            if write {
                let _ = poster.write(&mut Hostile(&mut next), access, 1);
            } else {
                let _ = poster.read(&mut Hostile(&mut next), access);
            }
        }
        let mut told = 0;
        poster.waiting(&mut Hostile(&mut next), |_| told += 1);
        prop_assert!(told <= ENTRIES);
    }

    /// What is taken is what was posted, in order, each once.
    #[test]
    fn nothing_is_lost_or_told_twice(
        steps in prop::collection::vec((0u64..300, 0u64..300), 1..40),
    ) {
        let (page, mut poster) = (Page::new(), Poster::new());
        page.show(&open());
        let mut waits = VecDeque::new();
        let mut n = 0;
        for (posts, takes) in steps {
            for _ in 0..posts {
                n += 1;
                if post(&mut poster, &page, n) == Post::Refused {
                    prop_assert_eq!(waits.len() as u64, ENTRIES);
                } else {
                    waits.push_back(n & 0xff);
                }
            }
            for _ in 0..takes {
                let taken = page.next().map(|write| u64::from(write.value()));
                prop_assert_eq!(taken, waits.pop_front());
                if taken.is_some() {
                    page.taken();
                }
            }
            prop_assert_eq!(page.is_empty(), waits.is_empty());
        }
    }
}

/// Which of the two goes on at each access to the page, until both have ended.
struct Turns {
    /// Who goes on: bits, the lowest first.
    order: Mutex<u64>,
    moved: std::sync::Condvar,
    ended: [AtomicBool; 2],
}

impl Turns {
    fn take(&self, me: usize) -> MutexGuard<'_, u64> {
        let order = self.order.lock().unwrap();
        let other = || self.ended[1 - me].load(Ordering::SeqCst);
        self.moved
            .wait_while(order, |order| (*order & 1) as usize != me && !other())
            .unwrap()
    }

    fn step<R>(&self, me: usize, f: impl FnOnce() -> R) -> R {
        let mut order = self.take(me);
        let result = f();
        *order >>= 1;
        self.moved.notify_all();
        result
    }

    fn end(&self, me: usize) {
        let _order = self.order.lock().unwrap();
        self.ended[me].store(true, Ordering::SeqCst);
        self.moved.notify_all();
    }
}

struct InTurn<'a>(&'a Page, &'a Turns);

impl Memory for InTurn<'_> {
    fn load(&mut self, word: usize) -> u64 {
        self.1.step(0, || (&mut { self.0 }).load(word))
    }
    fn store(&mut self, word: usize, value: u64) {
        self.1.step(0, || (&mut { self.0 }).store(word, value));
    }
    fn fence(&mut self) {}
}

/// In every order of the accesses of both: a host that closes the page and takes
/// what waits has taken the write, or is called for it, or the write was refused.
#[test]
fn in_every_order_a_write_is_seen_or_calls_the_host() {
    let mut outcomes = Vec::new();
    // EL2 has five accesses, or four when it knows from before what may wait; the
    // host has five steps.
    let orders = (0u64..1 << 10).filter(|order| order.count_ones() == 5);
    for (order, knows) in orders.flat_map(|order| [(order, false), (order, true)]) {
        let page = Page::new();
        page.show(&open());
        let mut poster = Poster::new();
        if knows {
            assert_eq!(post(&mut poster, &page, 4), Post::Done);
            page.taken();
        }
        let turns = Turns {
            order: Mutex::new(order),
            moved: std::sync::Condvar::new(),
            ended: [AtomicBool::new(false), AtomicBool::new(false)],
        };
        let (posted, seen) = thread::scope(|scope| {
            let el2 = scope.spawn(|| {
                let post = poster.write(&mut InTurn(&page, &turns), DATA, 5);
                turns.end(0);
                post
            });
            // As `Page::close`, store by store.
            for word in host::CLOSED {
                turns.step(1, || (&mut &page).store(word, 0));
            }
            let seen = turns.step(1, || page.next().is_some());
            turns.end(1);
            (el2.join().unwrap(), seen)
        });
        match posted {
            Post::Refused => assert!(page.is_empty(), "{order:b}"),
            Post::Done => assert!(seen, "{order:b}"),
            Post::Call => assert!(!page.is_empty(), "{order:b}"),
        }
        outcomes.push((posted, seen));
    }
    for outcome in [
        (Post::Refused, false),
        (Post::Done, true),
        (Post::Call, false),
    ] {
        assert!(outcomes.contains(&outcome), "{outcome:?} never came");
    }
}

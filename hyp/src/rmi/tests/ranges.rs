//! The calls of a range do what those of one granule do, many at a time.

use super::*;
use pgtable::Granule;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
/// More than a block of 16K, and what is no whole block.
const RAM_OF_HOST: u64 = 35 * MIB;

/// Status and `top` of a call of a range.
fn range(h: &mut Host, function: u64, base: u64, top: u64) -> (Status, u64) {
    let answer = h.call(raw(function, &[base, top]));
    (Status::unpack(answer[0]).expect("a status"), answer[1])
}

#[test]
fn a_range_is_given_and_taken_back_in_steps() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_OF_HOST);
        let (base, top) = (RAM + 3 * h.size, RAM + RAM_OF_HOST - h.size);
        for (function, state) in [
            (vendor::GRANULE_RANGE_DELEGATE, State::Delegated),
            (vendor::GRANULE_RANGE_UNDELEGATE, State::Ns),
        ] {
            let (mut at, mut calls) = (base, 0);
            while at < top {
                let (status, next) = range(&mut h, function, at, top);
                assert_eq!(status, Status::Success);
                assert!(next > at && next - at <= 2 * MIB && next <= top);
                (at, calls) = (next, calls + 1);
            }
            assert_eq!(calls, 18, "one for 2 MiB");
            let last = (top - RAM) / h.size;
            for n in 0..h.pages() {
                let inside = (3..last).contains(&n);
                assert_eq!(h.state(n), if inside { state } else { State::Ns });
            }
            let mapped = h.mapped();
            let kept = |n: usize| state == State::Ns || !(3..last).contains(&(n as u64));
            assert!(
                (0..mapped.len()).all(|n| mapped[n] == kept(n)),
                "{granule:?}"
            );
        }
        assert_eq!(h.tables(), 0, "blocks again");
    }
}

#[test]
fn a_range_ends_before_what_cannot_change() {
    let mut h = Host::new(Granule::K4, 16 << 20);
    let (give, take) = (
        vendor::GRANULE_RANGE_DELEGATE,
        vendor::GRANULE_RANGE_UNDELEGATE,
    );
    for (base, top) in [
        (RAM, RAM),
        (RAM + 0x1000, RAM),
        (RAM + 8, RAM + 0x1000),
        (RAM, RAM + 8),
        (0, 0x1000),
        (RAM - 0x1000, RAM + 0x1000),
        (!0xfff, !0),
        (!0xfff, 0),
        // Its span ends where the addresses do.
        (!0x1f_ffff, !0xfff),
        (!0xf_ffff, !0xffff),
    ] {
        for function in [give, take] {
            let (status, _) = range(&mut h, function, base, top);
            assert_eq!(status, Status::ErrorInput, "{base:#x} {top:#x}");
        }
    }
    // A granule that is given already, one that somebody holds, one without memory.
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(5)]);
    h.granule(9).pin(State::Ns).expect("the host's").keep();
    phys::fake::make_hole(Region::new(h.page(13), 0x1000).unwrap());
    h.write(14, [0x11u8; 4096]);
    for (from, to) in [(0, 5), (6, 9), (10, 13), (14, 20)] {
        let (base, top) = (h.page(from), h.page(20));
        let (status, next) = range(&mut h, give, base, top);
        assert_eq!((status, next), (Status::Success, h.page(to)));
    }
    for n in [5, 9, 13] {
        let (base, top) = (h.page(n), h.page(20));
        let (status, _) = range(&mut h, give, base, top);
        assert_eq!(status, Status::ErrorInput, "{n}");
    }
    assert_eq!((h.state(9), h.state(13)), (State::Ns, State::Ns));
    assert!(h.system.host.reaches(h.page(9)) && h.system.host.reaches(h.page(13)));
    assert!((14..20).all(|n| h.is_zero(n)));
    let (base, top) = (h.page(0), h.page(20));
    let (_, next) = range(&mut h, take, base, top);
    assert_eq!(next, h.page(9));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// By ranges or one by one, in any order: the same states, the same memory of
    /// the host's, the same tables.
    #[test]
    fn ranges_and_single_granules_end_alike(
        steps in prop::collection::vec((any::<bool>(), 0u64..2000, 1u64..1400), 1..24),
        which in 0usize..3,
    ) {
        let granule = Granule::ALL[which];
        let ends: Vec<_> = [true, false].into_iter().map(|by_range| {
            let mut h = Host::new(granule, RAM_OF_HOST);
            for &(gives, from, count) in &steps {
                let (from, to) = (from % h.pages(), (from % h.pages() + count).min(h.pages()));
                let functions = match gives {
                    true => [vendor::GRANULE_RANGE_DELEGATE, fid::RMI_GRANULE_DELEGATE],
                    false => [vendor::GRANULE_RANGE_UNDELEGATE, fid::RMI_GRANULE_UNDELEGATE],
                };
                let mut at = from;
                while at < to {
                    let (base, top) = (h.page(at), h.page(to));
                    if by_range {
                        let (status, next) = range(&mut h, functions[0], base, top);
                        // What cannot change is passed over.
                        at = if status == Status::Success { (next - RAM) / h.size } else { at + 1 };
                    } else {
                        h.status(functions[1], &[base]);
                        at += 1;
                    }
                }
            }
            let states: Vec<_> = (0..h.pages()).map(|n| h.state(n)).collect();
            (states, h.mapped(), h.tables())
        }).collect();
        prop_assert_eq!(&ends[0], &ends[1]);
    }
}

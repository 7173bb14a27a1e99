//! Hosts that call what they like, and memory that is not there.

use super::*;

/// What a call is given. Small numbers name pages, levels and IPAs that meet
/// often enough.
#[derive(Clone, Copy, Debug)]
enum Argument {
    Page(u64),
    Block(u64),
    /// A page, or a block, as it is mapped.
    Mapped(u64),
    Raw(u64),
}

fn argument() -> impl Strategy<Value = Argument> {
    prop_oneof![
        8 => (0u64..24).prop_map(Argument::Page),
        3 => (0u64..5).prop_map(Argument::Raw),
        2 => (0u64..4).prop_map(Argument::Block),
        2 => (0u64..6).prop_map(Argument::Mapped),
        1 => any::<u64>().prop_map(Argument::Raw),
    ]
}

impl Argument {
    fn value(self, h: &Host) -> u64 {
        let block = h.geometry().span(pgtable::Level::L2);
        match self {
            Self::Page(n) => h.page(n),
            Self::Block(n) => n * block,
            Self::Mapped(n) if n & 1 == 0 => h.page(n) | DESC,
            Self::Mapped(n) => (RAM + n / 2 * block) | DESC,
            Self::Raw(value) => value,
        }
    }
}

/// A call, and the turns that the host gives it before it makes another.
fn call() -> impl Strategy<Value = (u64, [Argument; 5], usize)> {
    let functions: Vec<u64> = (fid::RMI_VERSION..=fid::RMI_RTT_SET_RIPAS)
        .filter(|f| *f != fid::RMI_REC_ENTER)
        .chain([fid::RMI_GRANULE_DELEGATE; 12])
        .chain(
            [
                fid::RMI_RTT_CREATE,
                fid::RMI_REALM_CREATE,
                fid::RMI_REC_CREATE,
                fid::RMI_DATA_CREATE_UNKNOWN,
            ]
            .repeat(4),
        )
        .chain(vendor::VERSION..=vendor::LOG_INPUT)
        .chain(vendor::REC_READ..=vendor::REC_WRITE)
        .chain(vendor::GRANULE_RANGE_DELEGATE..=vendor::RTT_DATA_UNMAP)
        .collect();
    (
        prop::sample::select(functions),
        prop::array::uniform5(argument()),
        prop_oneof![Just(1usize), 2usize..9, Just(usize::MAX)],
    )
}

#[test]
fn a_granule_without_memory_stays_the_hosts() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        let absent = h.page(3);
        let hole = Region::new(absent + h.size / 2, 64).unwrap();
        phys::fake::make_hole(hole);
        for _ in 0..3 {
            let refused = h.status(fid::RMI_GRANULE_DELEGATE, &[absent]);
            assert_eq!(refused, Status::ErrorInput);
            assert_eq!((h.state(3), h.granule(3).count()), (State::Ns, 0));
        }
        assert!(h.mapped().iter().all(|mapped| *mapped));
        assert_eq!(h.tables(), 0);
        // Its span is whole too: a block may map it.
        let granules = &h.system.granules;
        assert_eq!(granules.get_block(RAM), granules.span_size() <= RAM_SIZE);
    }
}

#[test]
fn what_the_host_names_and_is_not_there_fails_the_command() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let absent = h.page(3);
    phys::fake::make_hole(Region::new(absent, h.size).unwrap());
    for n in [1, 16, 17, 60] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
    }
    let (rd, rec) = (h.page(1), h.page(60));
    let refused = h.status(fid::RMI_REALM_CREATE, &[rd, absent]);
    assert_eq!(refused, Status::ErrorInput);
    assert_eq!(h.state(1), State::Delegated);
    h.write(2, h.realm_params(1, 16));
    h.ok(fid::RMI_REALM_CREATE, &[rd, h.page(2)]);
    let refused = h.status(fid::RMI_REC_CREATE, &[rd, rec, absent]);
    assert_eq!(refused, Status::ErrorInput);
    let refused = h.status(vendor::LOG, &[3, absent + 8, 5]);
    assert_eq!(refused, Status::ErrorInput);
    assert_eq!(h.granule(3).count(), 0, "no pin is left");
}

#[test]
fn a_hundred_thousand_steps_leave_no_table_behind() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let n = random % h.pages();
            let function = match h.state(n) {
                State::Ns => fid::RMI_GRANULE_DELEGATE,
                _ => fid::RMI_GRANULE_UNDELEGATE,
            };
            h.ok(function, &[h.page(n)]);
        }
        for n in 0..h.pages() {
            if h.state(n) == State::Delegated {
                h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(n)]);
            }
        }
        assert_eq!(h.tables(), 0, "{granule:?}");
    }
}

/// An own realm is ended now and then, in a few turns or to the end.
fn calls() -> impl Strategy<Value = Vec<(u64, [Argument; 5], usize)>> {
    let end = [Argument::Page(1); 5];
    let end = (Just(fid::RMI_REALM_DESTROY), Just(end), 1usize..5);
    prop::collection::vec(prop_oneof![30 => call().boxed(), 1 => end.boxed()], 1..200)
}

/// What memory a realm at page 1 has, if there is one: its granules by the addresses
/// that the calls name.
fn memory_of_realm(h: &Host) -> Vec<u64> {
    if h.state(1) != State::Rd {
        return Vec::new();
    }
    // SAFETY: an RD, which no call ends meanwhile.
    let realm = unsafe { Realm::at(h.page(1)) };
    let tables = realm.rtt.lock();
    let Some(tables) = tables.as_ref() else {
        return Vec::new();
    };
    let block = h.geometry().span(pgtable::Level::L2);
    let pages = (0..24).map(|n| h.page(n)).chain((0..5).map(|n| n * h.size));
    let places = pages.chain((0..4).map(|n| n * block));
    let mut found: Vec<_> = places
        .filter_map(|ipa| tables.find(pgtable::Ipa::new(ipa)).ok().map(|e| (ipa, e)))
        .filter_map(|(ipa, entry)| match entry.state {
            pgtable::RttState::Assigned { pa, .. } => Some((ipa, pa.get())),
            _ => None,
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found.into_iter().map(|(_, pa)| pa).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// No sequence of calls panics, whatever is left in the middle, and no
    /// granule that the host has back keeps a count or anything of EL2's.
    #[test]
    fn a_hostile_host_gets_nowhere(
        granule in prop::sample::select(&Granule::ALL[..]),
        mode in prop::sample::select(
            std::vec![RealmFlags::NONCONF, RealmFlags::PROTECTED, RealmFlags::empty()],
        ),
        calls in calls(),
    ) {
        let ram = match granule {
            Granule::K4 => RAM_SIZE,
            Granule::K16 => 64 << 20,
            Granule::K64 => 16 << 20,
        };
        let mut h = Host::new(granule, ram);
        // Something to attack: a realm with a REC, params pages lying about.
        h.realm_of(mode);
        if granule == Granule::K4 {
            h.rec(0, 20);
        }
        // And tables for the addresses that the calls name, where it keeps memory.
        if mode != RealmFlags::NONCONF {
            let start = h.geometry().start().get();
            for level in start + 1..=3 {
                let page = h.page(40 + level as u64);
                h.ok(fid::RMI_GRANULE_DELEGATE, &[page]);
                let above = pgtable::Level::new(level - 1).unwrap();
                let base = RAM & !(h.geometry().span(above) - 1);
                h.ok(fid::RMI_RTT_CREATE, &[h.page(1), page, base, level as u64]);
            }
            let top = RAM + 24 * h.size;
            h.ok(fid::RMI_RTT_INIT_RIPAS, &[h.page(1), RAM, top]);
        }
        h.write(3, h.realm_params(2, 4));
        let mut p = RecParams::new_zeroed();
        p.mpidr = 1;
        h.write(2, p);
        for (function, args, turns) in calls {
            let args = args.map(|argument| argument.value(&h));
            for _ in 0..turns {
                if let Some(answer) = h.turn(raw(function, &args)) {
                    let known = Status::unpack(answer[0]).is_some();
                    prop_assert!(answer[0] == NOT_SUPPORTED || known);
                    break;
                }
            }
        }
        // What the host reaches is its own, and what is a realm's is in one place.
        let mapped = h.mapped();
        for n in 0..h.pages() {
            prop_assert_eq!(mapped[n as usize], h.state(n) == State::Ns, "page {}", n);
        }
        let memory = memory_of_realm(&h);
        for (n, pa) in memory.iter().enumerate() {
            prop_assert_eq!(h.state((pa - RAM) / h.size), State::Data);
            prop_assert!(!memory[..n].contains(pa), "{:#x} twice", pa);
        }
        for n in 0..h.pages() {
            let granule = h.system.granules.get(h.page(n)).unwrap();
            if granule.state() == State::Delegated {
                prop_assert!(h.is_zero(n), "page {n} is delegated and not zero");
                prop_assert_eq!(granule.count(), 0);
            }
        }
    }
}

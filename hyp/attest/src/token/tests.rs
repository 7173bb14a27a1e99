extern crate std;
use std::vec::Vec;

use super::*;

const REALM_OF_ONES: Realm<'static> = Realm {
    personalization: &[1; 64],
    algorithm: Algorithm::Sha256,
    measurements: &[[1; 64]; 5],
};

fn attester(seed: u8) -> Attester {
    Attester::new::<Sha256>(&mut Generator::from_entropy(&[seed; 32]).unwrap(), &[9; 32])
}

/// All of a token, in parts of this size.
fn token(attester: &Attester, session: &mut Session, part: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = std::vec![0; part];
    loop {
        let step = session.step(attester, &REALM_OF_ONES, &mut buffer).unwrap();
        all.extend_from_slice(&buffer[..step.written]);
        assert!(step.complete || step.written == part || !session.is_signed());
        if step.complete {
            return all;
        }
    }
}

#[test]
fn parts_of_any_size_are_the_same_token() {
    let attester = attester(1);
    let whole = |part| {
        let mut session = Session::NONE;
        session.begin(&[5; 64]);
        let all = token(&attester, &mut session, part);
        assert!(!session.is_begun());
        assert_eq!(session.step(&attester, &REALM_OF_ONES, &mut [0; 9]), None);
        all
    };
    let first = whole(4096);
    assert_eq!(first.len(), attester.token_length(Algorithm::Sha256));
    for part in [1, 7, 64, 256, first.len() - 1, first.len()] {
        assert_eq!(first, whole(part), "{part}");
    }
}

#[test]
fn no_room_is_no_step_and_no_end() {
    let attester = attester(1);
    let mut session = Session::NONE;
    assert_eq!(session.step(&attester, &REALM_OF_ONES, &mut []), None);
    session.begin(&[5; 64]);
    for _ in 0..6 {
        let step = session.step(&attester, &REALM_OF_ONES, &mut []).unwrap();
        assert_eq!((step.written, step.complete), (0, false));
    }
    token(&attester, &mut session, 100);
}

#[test]
fn a_measurement_that_is_extended_meanwhile_is_the_next_tokens() {
    let attester = attester(1);
    let mut session = Session::NONE;
    session.begin(&[5; 64]);
    let whole = token(&attester, &mut session, 4096);
    session.begin(&[5; 64]);
    let (mut all, mut buffer) = (Vec::new(), [0; 300]);
    for n in 0u8.. {
        let realm = Realm {
            measurements: &[[1 + n; 64]; 5],
            ..REALM_OF_ONES
        };
        let step = session.step(&attester, &realm, &mut buffer).unwrap();
        all.extend_from_slice(&buffer[..step.written]);
        if step.complete {
            break;
        }
    }
    assert_eq!(whole, all);
}

#[test]
fn a_begin_forgets_the_session_before() {
    let attester = attester(1);
    let mut session = Session::NONE;
    session.begin(&[5; 64]);
    session.step(&attester, &REALM_OF_ONES, &mut [0; 1000]);
    session.begin(&[6; 64]);
    let again = token(&attester, &mut session, 500);
    session.begin(&[6; 64]);
    assert_eq!(again, token(&attester, &mut session, 5000));
}

#[test]
fn keys_are_of_the_entropy() {
    let (one, same, other) = (attester(1), attester(1), attester(2));
    assert_eq!(one.platform.instance, same.platform.instance);
    assert_ne!(one.platform.instance, other.platform.instance);
    assert_ne!(one.platform.public, other.platform.public);
    let keys = [one, other].map(|attester| {
        let public = made(&attester).vouched.public;
        [public, attester.platform.public]
    });
    assert_ne!(keys[0][0], keys[1][0]);
    assert_ne!(keys[0][0], keys[0][1]);
}

/// What realms' tokens are made with, however many calls it takes.
fn made(attester: &Attester) -> &Realms {
    (0..9).find_map(|_| attester.realms()).expect("made by now")
}

/// A boot without realms makes no signature; the first token's steps are each as long as
/// one, and write nothing until it is signed. The others are signed at once.
#[test]
fn the_first_token_makes_what_all_are_made_with() {
    let attester = attester(1);
    assert!(attester.realms.get().is_none());
    let (mut first, mut other) = (Session::NONE, Session::NONE);
    first.begin(&[5; 64]);
    other.begin(&[6; 64]);
    let mut room = [0; 4096];
    let known = |attester: &Attester| {
        let drawn = attester.drawn.lock();
        drawn.as_ref().map(|drawn| drawn.known.is_some())
    };
    for after in [Some(true), None] {
        assert!(attester.realms.get().is_none());
        let step = first.step(&attester, &REALM_OF_ONES, &mut room).unwrap();
        assert_eq!((step.written, step.complete), (0, false));
        assert!(first.is_begun() && !first.is_signed());
        assert_eq!(known(&attester), after);
    }
    assert_eq!(room, [0; 4096]);
    let length = attester.token_length(Algorithm::Sha256);
    for session in [&mut first, &mut other] {
        let step = session.step(&attester, &REALM_OF_ONES, &mut room).unwrap();
        assert_eq!((step.written, step.complete), (length, true));
    }
}

/// Nobody waits for another CPU's step, nor does it again.
#[test]
fn a_step_of_another_cpus_is_no_step() {
    let attester = attester(1);
    let mut session = Session::NONE;
    session.begin(&[5; 64]);
    let busy = attester.drawn.lock();
    let step = session.step(&attester, &REALM_OF_ONES, &mut [0; 99]);
    let step = step.unwrap();
    assert_eq!((step.written, step.complete), (0, false));
    assert!(busy.as_ref().unwrap().known.is_none());
    drop(busy);
    assert!(!token(&attester, &mut session, 4096).is_empty());
}

/// The platform's key signs one token: nothing is left that could sign another.
#[test]
fn the_platforms_key_is_forgotten() {
    let attester = attester(1);
    let of = |at: *const u8, size| -> Vec<u8> {
        // SAFETY: bytes of the attester's.
        (0..size)
            .map(|n| unsafe { at.add(n).read_volatile() })
            .collect()
    };
    let key = {
        let drawn = attester.drawn.lock();
        let scalar = drawn.as_ref().unwrap().platform.as_nonzero_scalar();
        of((&raw const *scalar).cast(), size_of_val(scalar))
    };
    let is_there = || {
        let all = of((&raw const attester).cast(), size_of::<Attester>());
        all.windows(key.len()).any(|part| part == key)
    };
    assert!(is_there());
    made(&attester);
    assert!(!is_there());
}

#[test]
fn a_boot_is_told_from_others() {
    let said = std::format!("{}", attester(1));
    let words: Vec<_> = said.split(' ').collect();
    assert_eq!(words.len(), 7);
    assert_eq!((words[1].len(), words[2], words[6].len()), (65, "0x20", 64));
    assert_ne!(said, std::format!("{}", attester(2)));
}

/// A REC's page has room for it, and a token fits a granule of 4 KiB.
#[test]
fn it_is_small() {
    assert!(size_of::<Session>() <= 512);
    let length = attester(1).token_length(Algorithm::Sha512);
    assert!(length < 4096, "{length}");
}

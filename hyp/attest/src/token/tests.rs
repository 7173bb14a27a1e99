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
        assert!(step.complete || step.written == part);
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
    for _ in 0..3 {
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
    assert_ne!(one.public, other.public);
    assert_ne!(one.public, one.platform.public);
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

//! Tokens of any claims, read by others: ciborium and coset take them apart, and
//! p384 verifies both signatures with keys that are found in the token alone.

use attest::{Algorithm, Attester, Generator, Realm, Session};
use ciborium::Value;
use coset::{CborSerializable, CoseKey, CoseSign1, Label, TaggedCborSerializable, iana};
use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature, VerifyingKey};
use proptest::array::uniform;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

fn map(bytes: &[u8]) -> Vec<(Value, Value)> {
    let value: Value = ciborium::from_reader(bytes).expect("CBOR");
    value.into_map().expect("a map")
}

fn claim(map: &[(Value, Value)], key: u64) -> &Value {
    let mut found = map.iter().filter(|(name, _)| *name == Value::from(key));
    let (_, value) = found.next().unwrap_or_else(|| panic!("no claim {key}"));
    assert!(found.next().is_none(), "two of {key}");
    value
}

fn bytes(map: &[(Value, Value)], key: u64) -> &[u8] {
    claim(map, key).as_bytes().expect("bytes")
}

fn text(map: &[(Value, Value)], key: u64) -> &str {
    claim(map, key).as_text().expect("text")
}

/// The uncompressed point of a `COSE_Key`.
fn point(cose_key: &[u8]) -> Vec<u8> {
    let key = CoseKey::from_slice(cose_key).expect("a COSE_Key");
    assert_eq!(key.kty, coset::KeyType::Assigned(iana::KeyType::EC2));
    let parameter = |label: i64| {
        let found = key.params.iter().find(|(l, _)| *l == Label::Int(label));
        found.expect("a parameter").1.clone()
    };
    assert_eq!(parameter(-1), Value::from(2), "P-384");
    let part = |label| parameter(label).into_bytes().expect("bytes");
    [vec![4], part(-2), part(-3)].concat()
}

fn verify(token: &[u8], cose_key: &[u8]) -> CoseSign1 {
    let token = CoseSign1::from_tagged_slice(token).expect("a COSE_Sign1");
    let algorithm = coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES384);
    assert_eq!(token.protected.header.alg, Some(algorithm));
    let key = VerifyingKey::from_sec1_bytes(&point(cose_key)).expect("a point");
    token
        .verify_signature(&[], |signature, data| {
            key.verify(data, &Signature::from_slice(signature)?)
        })
        .expect("the signature holds");
    token
}

/// A token, made in steps of this size.
fn token(attester: &Attester, challenge: &[u8; 64], realm: &Realm<'_>, step: usize) -> Vec<u8> {
    let mut session = Session::NONE;
    session.begin(challenge);
    let (mut all, mut part) = (Vec::new(), vec![0; step]);
    loop {
        let step = session.step(attester, realm, &mut part).expect("a session");
        all.extend_from_slice(&part[..step.written]);
        if step.complete {
            return all;
        }
    }
}

/// Both tokens of a collection.
fn split(token: &[u8]) -> [Vec<u8>; 2] {
    let value: Value = ciborium::from_reader(token).expect("CBOR");
    let (tag, collection) = value.into_tag().expect("a tag");
    assert_eq!(tag, 399);
    let collection = collection.into_map().expect("a map");
    assert_eq!(collection.len(), 2);
    [44234, 44241].map(|key| bytes(&collection, key).to_vec())
}

fn check_platform(platform: &[u8], code: &[u8]) -> Vec<(Value, Value)> {
    let token = CoseSign1::from_tagged_slice(platform).expect("a COSE_Sign1");
    let cose_key = token.unprotected.key_id;
    let claims = map(&verify(platform, &cose_key).payload.expect("claims"));
    assert_eq!(claims.len(), 8);
    assert_eq!(text(&claims, 265), "tag:arm.com,2023:cca_platform#1.0.0");
    let instance = [&[1], &Sha256::digest(point(&cose_key))[..]].concat();
    assert_eq!(bytes(&claims, 256), instance);
    let id = bytes(&claims, 2396);
    assert!(id.len() == 32 && id.starts_with(b"Undercroft 0."));
    assert_eq!(*claim(&claims, 2395), Value::from(0), "lifecycle unknown");
    assert!(!bytes(&claims, 2401).is_empty());
    assert_eq!(text(&claims, 2402), "sha-256");
    let software = claim(&claims, 2399).as_array().expect("components");
    assert_eq!(software.len(), 1);
    let el2 = software[0].as_map().expect("a component");
    assert_eq!(bytes(el2, 2), &Sha256::digest(code)[..]);
    assert_eq!(bytes(el2, 5), [0; 32], "nobody signed it");
    assert_eq!(text(el2, 6), "sha-256");
    claims
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_claims_come_out_as_they_went_in(
        entropy in prop::collection::vec(any::<u8>(), 32..200),
        code in prop::collection::vec(any::<u8>(), 0..300),
        challenge in uniform::<_, 64>(any::<u8>()),
        personalization in uniform::<_, 64>(any::<u8>()),
        measurements in uniform::<_, 5>(uniform::<_, 64>(any::<u8>())),
        long in any::<bool>(),
        step in 1usize..2000,
    ) {
        let (algorithm, name, length) = if long {
            (Algorithm::Sha512, "sha-512", 64)
        } else {
            (Algorithm::Sha256, "sha-256", 32)
        };
        let mut generator = Generator::from_entropy(&entropy).expect("enough of it");
        let attester = Attester::new::<Sha256>(&mut generator, &code);
        let realm = Realm {
            personalization: &personalization,
            algorithm,
            measurements: &measurements,
        };
        let whole = token(&attester, &challenge, &realm, step);
        prop_assert_eq!(whole.len(), attester.token_length(algorithm));

        let [platform, realm] = split(&whole);
        let of_platform = check_platform(&platform, &code);
        // The key is in the claims: they are read once to find it, then trusted.
        let unread = CoseSign1::from_tagged_slice(&realm).expect("a COSE_Sign1");
        prop_assert!(unread.unprotected.is_empty());
        let claims = map(&unread.payload.expect("claims"));
        let key = bytes(&claims, 44237);
        verify(&realm, key);
        prop_assert_eq!(claims.len(), 8);
        prop_assert_eq!(text(&claims, 265), "tag:arm.com,2023:realm#1.0.0");
        prop_assert_eq!(bytes(&claims, 10), challenge);
        prop_assert_eq!(bytes(&claims, 44235), personalization);
        prop_assert_eq!(text(&claims, 44236), name);
        prop_assert_eq!(bytes(&claims, 44238), &measurements[0][..length]);
        let extensible = claim(&claims, 44239).as_array().expect("measurements");
        let expected = measurements[1..].iter().map(|m| Value::from(&m[..length]));
        prop_assert!(expected.eq(extensible.iter().cloned()));
        // The platform names the realms' key.
        prop_assert_eq!(text(&claims, 44240), "sha-256");
        prop_assert_eq!(bytes(&of_platform, 10), &Sha256::digest(key)[..]);
    }
}

#[test]
fn a_changed_byte_is_noticed() {
    let mut generator = Generator::from_entropy(&[3; 32]).expect("enough of it");
    let attester = Attester::new::<Sha256>(&mut generator, &[4; 32]);
    let realm = Realm {
        personalization: &[0; 64],
        algorithm: Algorithm::Sha256,
        measurements: &[[7; 64]; 5],
    };
    let [_, signed] = split(&token(&attester, &[1; 64], &realm, 4096));
    let claims = CoseSign1::from_tagged_slice(&signed).expect("a COSE_Sign1");
    let claims = map(&claims.payload.expect("claims"));
    let key = VerifyingKey::from_sec1_bytes(&point(bytes(&claims, 44237))).expect("a point");
    let (mut held, mut broke) = (0, 0);
    for at in 0..signed.len() {
        let mut changed = signed.clone();
        changed[at] ^= 0x10;
        let read = CoseSign1::from_tagged_slice(&changed);
        let holds = read.is_ok_and(|token| {
            let verified = token.verify_signature(&[], |signature, data| {
                key.verify(data, &Signature::from_slice(signature)?)
            });
            verified.is_ok()
        });
        held += usize::from(holds);
        broke += usize::from(!holds);
    }
    // The unprotected header is nobody's: its one byte may change.
    assert!(held <= 1, "{held} held, {broke} broke");
}

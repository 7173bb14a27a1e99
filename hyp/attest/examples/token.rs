//! Writes a token of made-up claims to a file, for other programs to verify:
//! `cargo run -p attest --example token FILE [sha-512]`.
//!
//! The claims are the ones that `verify.py` is told: a challenge of bytes that count
//! up, a personalization value that counts down, and measurements of their number's
//! byte.

use std::time::{SystemTime, UNIX_EPOCH};

use attest::{Algorithm, Attester, Generator, Realm, Session};
use sha2::Sha256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("no file was named")?;
    let algorithm = match arguments.next().as_deref() {
        Some("sha-512") => Algorithm::Sha512,
        _ => Algorithm::Sha256,
    };
    // Keys of an example: they need not be secret, only different each time.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let entropy = [now.to_le_bytes(), [7; 16]].concat();
    let mut generator = Generator::from_entropy(&entropy).ok_or("too little entropy")?;
    let attester = Attester::new::<Sha256>(&mut generator, b"code");
    let challenge = core::array::from_fn(|n| n as u8);
    let realm = Realm {
        personalization: &core::array::from_fn(|n| 63 - n as u8),
        algorithm,
        measurements: &core::array::from_fn(|n| [n as u8; 64]),
    };
    let mut session = Session::NONE;
    session.begin(&challenge);
    let mut token = vec![0; attester.token_length(algorithm)];
    while session.is_begun() {
        session.step(&attester, &realm, &mut token);
    }
    std::fs::write(file, token)?;
    Ok(())
}

//! Tokens, verified by libraries of another language: `tests/attestation/verify.py`
//! with pycose and cbor2, in an environment of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest, Sha256};

use super::call::{Call, Called, LIMIT};
use super::{Case, Context, Counts, Outcome};
use crate::scratch;
use crate::workspace::in_path;

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![Case::of_cargo("check/attestation", example)];
    // With a generator of the CPU's, and with the device tree's seed alone.
    for cpu in ["max", "cortex-a57"] {
        cases.push(Case::new(
            format!("attestation/measured-{cpu}"),
            move |context| measured(context, cpu),
        ));
    }
    cases
}

/// Python with what the verifier needs.
#[derive(Debug)]
pub struct Verifier {
    python: PathBuf,
    script: PathBuf,
}

impl Verifier {
    /// Makes its environment, once a target folder. `Err` in the inner result says what
    /// this machine lacks.
    ///
    /// # Errors
    /// When what is there cannot be called.
    pub fn find(context: &Context) -> Result<Result<Self, String>> {
        let Some(python) = in_path("python3") else {
            return Ok(Err("no python3: apt-get install python3-venv".into()));
        };
        let folder = context.workspace.root.join("tests/attestation");
        // One at a time: several cases verify.
        let scratch = context.workspace.scratch();
        scratch::make(&scratch)?;
        let lock = File::create(scratch.join("attestation.lock"))?;
        lock.lock().context("cannot wait for another verifier")?;
        let place = scratch.join("attestation");
        let own = place.join("bin/python");
        if !own.is_file() {
            let made = Call::program(python, LIMIT).args(["-m", "venv"]);
            if made.args([&place]).call()?.code != Some(0) {
                return Ok(Err(
                    "no python3 -m venv: apt-get install python3-venv".into()
                ));
            }
        }
        // What is there already is not asked for again.
        let called = Call::program(&own, LIMIT)
            .args(["-m", "pip", "install", "--quiet", "--no-input"])
            .args(["--disable-pip-version-check", "--requirement"])
            .args([folder.join("requirements.txt")])
            .call()?;
        if called.code != Some(0) {
            let why = called.stderr.lines().last().unwrap_or_default();
            return Ok(Err(format!("pip cannot fetch pycose and cbor2: {why}")));
        }
        Ok(Ok(Self {
            python: own,
            script: folder.join("verify.py"),
        }))
    }

    /// Has a token verified, and its claims compared with these.
    ///
    /// # Errors
    /// When it cannot be called.
    pub fn verify(&self, token: &Path, claims: &[&str]) -> Result<Called> {
        Call::program(&self.python, LIMIT)
            .args([self.script.as_path(), token])
            .args(claims)
            .call()
    }
}

/// What the log says was measured is what the image's file has, and no two boots have
/// the same keys.
fn measured(context: &Context, cpu: &str) -> Result<()> {
    let boot = || -> Result<[String; 3]> {
        let called = Call::run(context)?
            .args(["--guest", "hello", "--cpu", cpu])
            .call()?
            .ended(0)?;
        let said = called.stderr.lines().find_map(measurement);
        said.context("the log does not say what was measured")
    };
    let ([first, bytes, hash], [second, ..]) = (boot()?, boot()?);
    let file = fs::read(&context.image()?.file)?;
    let part = file.get(..usize::from_str_radix(&bytes, 16)?);
    let part = part.context("more was measured than the file has")?;
    ensure!(
        hash == hex(Sha256::digest(part)),
        "{hash} is another file's"
    );
    ensure!(first != second, "two boots have the instance {first}");
    Ok(())
}

/// What a line of the log says was measured: the instance, how many bytes, and their
/// SHA-256, all hexadecimal.
pub fn measurement(line: &str) -> Option<[String; 3]> {
    let (_, said) = line.split_once("attestation: instance ")?;
    let (instance, rest) = said.split_once(", 0x")?;
    let (bytes, hash) = rest.split_once(" bytes of EL2 ")?;
    Some([instance, bytes, hash.trim()].map(str::to_string))
}

/// Bytes as hexadecimal.
pub fn hex(bytes: impl IntoIterator<Item = u8>) -> String {
    bytes
        .into_iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Tokens of the crate's example hold; changed ones, and ones of other claims, do not.
fn example(context: &Context) -> Result<Outcome> {
    let verifier = match Verifier::find(context)? {
        Ok(verifier) => verifier,
        Err(why) => return Ok(Outcome::skipped(why)),
    };
    let folder = tempfile::tempdir_in(&context.folder)?;
    let file = folder.path().join("token");
    let (challenge, personalization) = (hex(0..64), hex((0..64).rev()));
    for (hash, length) in [("sha-256", 32), ("sha-512", 64)] {
        Call::of(context.workspace.cargo(), LIMIT)
            .args(["run", "--quiet", "-p", "attest", "--example", "token", "--"])
            .args([file.as_os_str(), hash.as_ref()])
            .call()?
            .ended(0)?;
        let measurements: Vec<_> = (0..5).map(|n| hex([n; 64][..length].to_vec())).collect();
        // SHA-256 of `code`.
        let image = "5694d08a2e53ffcae0c3103e5ad6f6076abd960eb1f8a56577040bc1028f702b";
        let mut claims = vec!["--hash", hash, "--image", image];
        claims.extend(["--challenge", &challenge]);
        claims.extend(["--personalization", &personalization]);
        claims.extend(["--rim", &measurements[0]]);
        for (number, measurement) in ["1", "2", "3", "4"].iter().zip(&measurements[1..]) {
            claims.extend(["--rem", number, measurement]);
        }
        verifier.verify(&file, &claims)?.ended(0)?;
        let other = verifier.verify(&file, &["--challenge", &personalization])?;
        other.ended(1)?.tells(&["the challenge is another"])?;
    }
    let token = fs::read(&file).context("the token")?;
    for part in 0..8 {
        let mut changed = token.clone();
        let at = token.len() * part / 8 + 9;
        changed[at] ^= 1;
        fs::write(&file, &changed)?;
        let called = verifier.verify(&file, &[])?;
        ensure!(called.code == Some(1), "byte {at} may change: {called:?}");
    }
    for (what, changed) in unsigned(&token) {
        fs::write(&file, &changed)?;
        let called = verifier.verify(&file, &[])?;
        ensure!(called.code == Some(1), "{what}: a token: {called:?}");
    }
    Ok(Counts::ONE.into())
}

/// A token with other bytes where no signature covers them: what RFC 9052 (3, 4.2) calls
/// malformed, and what stands behind an envelope.
fn unsigned(token: &[u8]) -> [(&'static str, Vec<u8>); 8] {
    // Tag 399, a map of two, 44234, a byte string; 44241, another.
    let length = usize::from(u16::from_be_bytes([token[8], token[9]]));
    let (platform, realm) = (&token[10..10 + length], &token[16 + length..]);
    let with = |platform: &[u8], realm: &[u8]| {
        let mut out = token[..7].to_vec();
        for (key, part) in [(&[][..], platform), (&[0x19, 0xac, 0xd1], realm)] {
            out.extend(key);
            out.push(0x59);
            out.extend((part.len() as u16).to_be_bytes());
            out.extend(part);
        }
        out
    };
    // Tag 18, an array of four, the protected header: then the other one.
    let (before, kid, rest) = (&platform[..7], &platform[8..118], &platform[118..]);
    let of_platform = |header: &[&[u8]]| {
        let envelope = [before, &header.concat(), rest].concat();
        with(&envelope, realm)
    };
    let of_realm = |header: &[u8]| {
        let envelope = [&realm[..7], header, &realm[8..]].concat();
        with(platform, &envelope)
    };
    assert_eq!(with(platform, realm), token, "the example is laid out so");
    [
        ("bytes behind", with(&[platform, &[0; 64]].concat(), realm)),
        (
            "bytes behind the other",
            with(platform, &[realm, &[0]].concat()),
        ),
        ("two kids", of_platform(&[&[0xa2, 4, 0x41, 7], kid])),
        ("no kid", of_platform(&[&[0xa1, 0x18, 0x4d], &kid[1..]])),
        ("a header more", of_realm(&[0xa1, 0x18, 0x63, 0x41, 7])),
        ("what is critical", of_realm(&[0xa1, 2, 0x81, 0x18, 0x63])),
        (
            "no length",
            with(&[&[0xd2, 0x9f], &platform[2..], &[0xff]].concat(), realm),
        ),
        (
            "a length in more bytes",
            with(&[&[0xd2, 0x98, 4], &platform[2..]].concat(), realm),
        ),
    ]
}

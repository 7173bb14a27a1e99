//! `COSE_Sign1` by ES384, and `COSE_Key` (RFC 9052, 4.2 and 7; RFC 9053, 2.1 and
//! 7.1.1), written piece by piece to whoever takes them.

use core::convert::Infallible;

use minicbor::data::Tag;
use minicbor::encode::{Encoder, Error, Write};
use p384::ecdsa::signature::hazmat::PrehashSigner;
use p384::ecdsa::{Signature, SigningKey};
use sha2::{Digest, Sha384};

use crate::claims::Claims;

/// What is written to: it takes everything.
pub(crate) type Out<'a> = Encoder<&'a mut dyn Write<Error = Infallible>>;
pub(crate) type Done = Result<(), Error<Infallible>>;

/// A signature by ES384: r, then s.
pub(crate) type SignatureBytes = [u8; 96];

/// Bytes of a `COSE_Key` of P-384.
pub(crate) const KEY_LENGTH: usize = 107;

/// The protected header: ES384.
const PROTECTED: &[u8] = &[0xa1, 0x01, 0x38, 0x22];
const TAG_SIGN1: u64 = 18;

/// The part of a text that falls into a window.
#[derive(Default)]
pub(crate) struct Window<'a> {
    /// Bytes before it that are still to come.
    pub skip: usize,
    /// What of the window is free.
    pub free: &'a mut [u8],
    /// Bytes seen, in the window or not.
    pub total: usize,
}

impl Write for Window<'_> {
    type Error = Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.total += bytes.len();
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        let part = &bytes[skipped..];
        let count = part.len().min(self.free.len());
        let (to, free) = core::mem::take(&mut self.free).split_at_mut(count);
        to.copy_from_slice(&part[..count]);
        self.free = free;
        Ok(())
    }
}

struct Hash(Sha384);

impl Write for Hash {
    type Error = Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.update(bytes);
        Ok(())
    }
}

/// Writes a text to a sink.
pub(crate) fn write(sink: &mut dyn Write<Error = Infallible>, body: impl Fn(&mut Out<'_>) -> Done) {
    // Such a sink takes all, and no message of an encoder's own is ever made.
    let _ = body(&mut Encoder::new(sink));
}

/// Bytes of a text.
pub(crate) fn length(body: impl Fn(&mut Out<'_>) -> Done) -> usize {
    let mut window = Window::default();
    write(&mut window, body);
    window.total
}

/// A byte string with a text inside it.
pub(crate) fn wrap(out: &mut Out<'_>, body: impl Fn(&mut Out<'_>) -> Done) -> Done {
    out.bytes_len(length(&body) as u64)?;
    body(out)
}

/// An envelope: claims, and who signs them.
pub(crate) struct Sign1<'a> {
    pub claims: &'a dyn Claims,
    /// What the unprotected header says of the key (`kid`), or nothing.
    pub kid: &'a [u8],
}

impl Sign1<'_> {
    /// Signs the `Sig_structure` of it.
    pub fn sign(&self, key: &SigningKey) -> SignatureBytes {
        let mut hash = Hash(Sha384::new());
        write(&mut hash, |out| {
            out.array(4)?.str("Signature1")?.bytes(PROTECTED)?;
            out.bytes(&[])?;
            wrap(out, |out| self.claims.encode(out))
        });
        // It fails for a hash of less than half a scalar's length only.
        let signature: Result<Signature, _> = key.sign_prehash(&hash.0.finalize());
        signature.map_or([0; 96], |signature| signature.to_bytes().into())
    }

    /// Writes it with its signature.
    pub fn encode(&self, signature: &SignatureBytes, out: &mut Out<'_>) -> Done {
        out.tag(Tag::new(TAG_SIGN1))?.array(4)?.bytes(PROTECTED)?;
        out.map(u64::from(!self.kid.is_empty()))?;
        if !self.kid.is_empty() {
            out.u8(4)?.bytes(self.kid)?;
        }
        wrap(out, |out| self.claims.encode(out))?;
        out.bytes(signature)?.ok()
    }
}

/// The public half of a key as a `COSE_Key`, and SHA-256 of its uncompressed point.
pub(crate) fn public(key: &SigningKey) -> ([u8; KEY_LENGTH], [u8; 32]) {
    let point = key.verifying_key().to_sec1_point(false);
    let (x, y) = point.as_bytes()[1..].split_at(48);
    let mut bytes = [0; KEY_LENGTH];
    let mut window = Window {
        free: &mut bytes,
        ..Window::default()
    };
    write(&mut window, |out| {
        // kty: EC2; crv: P-384; x; y.
        out.map(4)?.u8(1)?.u8(2)?.i8(-1)?.u8(2)?;
        out.i8(-2)?.bytes(x)?.i8(-3)?.bytes(y)?.ok()
    });
    (bytes, sha2::Sha256::digest(point.as_bytes()).into())
}

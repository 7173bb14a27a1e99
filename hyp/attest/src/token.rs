//! The keys of one boot, and the tokens that they sign.

use core::fmt;

use minicbor::data::Tag;
use p384::ecdsa::SigningKey;
use sha2::digest::typenum::U32;
use sha2::{Digest, Sha256};

use crate::claims::{Algorithm, Measurements, PlatformClaims, Realm, RealmClaims};
use crate::cose::{self, Done, KEY_LENGTH, Out, Sign1, SignatureBytes, Window};
use crate::random::Generator;

/// The collection and its two tokens (DEN0137, A7.2).
const TAG_COLLECTION: u64 = 399;
const PLATFORM: u16 = 44234;
const REALM: u16 = 44241;

/// Who signs the tokens of one boot: the realms' key, and what the platform's key
/// said of it.
///
/// The platform's key signs one token, which names the realms' key, and is forgotten.
#[derive(Debug)]
pub struct Attester {
    key: SigningKey,
    public: [u8; KEY_LENGTH],
    platform: Platform,
}

/// The platform token's parts.
#[derive(Debug)]
struct Platform {
    public: [u8; KEY_LENGTH],
    instance: [u8; 32],
    challenge: [u8; 32],
    image: [u8; 32],
    measured: usize,
    signature: SignatureBytes,
}

impl Platform {
    fn encode(&self, out: &mut Out<'_>) -> Done {
        self.signed(|token| token.encode(&self.signature, out))
    }

    fn signed<R>(&self, then: impl FnOnce(Sign1<'_>) -> R) -> R {
        then(Sign1 {
            claims: &PlatformClaims {
                challenge: &self.challenge,
                instance: &self.instance,
                image: &self.image,
            },
            kid: &self.public,
        })
    }
}

impl Attester {
    /// Makes the keys of this boot, and the platform's token. `code` is what runs at EL2,
    /// and is measured by `Hash`, a SHA-256.
    pub fn new<Hash>(generator: &mut Generator, code: &[u8]) -> Self
    where
        Hash: Digest<OutputSize = U32>,
    {
        let (key, of_platform) = (generator.key(), generator.key());
        let (public, _) = cose::public(&key);
        let (of_platform_public, instance) = cose::public(&of_platform);
        let mut platform = Platform {
            public: of_platform_public,
            instance,
            challenge: Sha256::digest(public).into(),
            image: Hash::digest(code).into(),
            measured: code.len(),
            signature: [0; 96],
        };
        platform.signature = platform.signed(|token| token.sign(&of_platform));
        Self {
            key,
            public,
            platform,
        }
    }

    /// Bytes of a token of a realm that is measured so.
    pub fn token_length(&self, algorithm: Algorithm) -> usize {
        let realm = Realm {
            personalization: &[0; 64],
            algorithm,
            measurements: &[[0; 64]; 5],
        };
        let claims = self.claims(&[0; 64], realm);
        cose::length(|out| self.encode(&claims, &[0; 96], out))
    }

    fn claims<'a>(&'a self, challenge: &'a [u8; 64], realm: Realm<'a>) -> RealmClaims<'a> {
        RealmClaims {
            challenge,
            realm,
            public: &self.public,
        }
    }

    fn encode(
        &self,
        claims: &RealmClaims<'_>,
        signature: &SignatureBytes,
        out: &mut Out<'_>,
    ) -> Done {
        out.tag(Tag::new(TAG_COLLECTION))?.map(2)?.u16(PLATFORM)?;
        cose::wrap(out, |out| self.platform.encode(out))?;
        out.u16(REALM)?;
        let token = Sign1 { claims, kid: &[] };
        cose::wrap(out, |out| token.encode(signature, out))
    }
}

/// What a verifier may know a boot by: the platform's public key by its hash (the
/// instance id, but its first byte), and what was measured.
impl fmt::Display for Attester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8; 32]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        f.write_str("instance ")?;
        hex(f, &self.platform.instance)?;
        write!(f, ", {:#x} bytes of EL2 ", self.platform.measured)?;
        hex(f, &self.platform.image)
    }
}

/// A token on its way to a realm, in steps: RSI_ATTESTATION_TOKEN_INIT begins one, each
/// RSI_ATTESTATION_TOKEN_CONTINUE takes a part. It is a REC's.
///
/// The rest of a token is written from the measurements as they were when it was
/// signed, whatever the realm adds to them meanwhile.
#[derive(Debug)]
pub struct Session {
    stage: Stage,
    challenge: [u8; 64],
    measurements: Measurements,
    signature: SignatureBytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    None,
    Begun,
    /// And so many bytes of the token are written.
    Signed(usize),
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes that were written.
    pub written: usize,
    /// There is no more, and the session is over.
    pub complete: bool,
}

impl Session {
    /// No session.
    pub const NONE: Self = Self {
        stage: Stage::None,
        challenge: [0; 64],
        measurements: [[0; 64]; 5],
        signature: [0; 96],
    };

    /// Begins one, whatever there was.
    pub fn begin(&mut self, challenge: &[u8; 64]) {
        self.stage = Stage::Begun;
        self.challenge = *challenge;
    }

    /// Whether one was begun and is not over.
    pub fn is_begun(&self) -> bool {
        self.stage != Stage::None
    }

    /// Writes the next bytes of the token, as many as there is room for; the first step
    /// signs. The realm's personalization and algorithm are the same at each. `None`
    /// without a session.
    pub fn step(&mut self, attester: &Attester, realm: &Realm<'_>, to: &mut [u8]) -> Option<Step> {
        if self.stage == Stage::Begun {
            self.measurements = *realm.measurements;
            let claims = &attester.claims(&self.challenge, *realm);
            self.signature = Sign1 { claims, kid: &[] }.sign(&attester.key);
            self.stage = Stage::Signed(0);
        }
        let Stage::Signed(skip) = self.stage else {
            return None;
        };
        let measurements = &self.measurements;
        let realm = Realm {
            measurements,
            ..*realm
        };
        let claims = attester.claims(&self.challenge, realm);
        let room = to.len();
        let (free, total) = (to, 0);
        let mut window = Window { skip, free, total };
        cose::write(&mut window, |out| {
            attester.encode(&claims, &self.signature, out)
        });
        let written = room - window.free.len();
        let complete = skip + written == window.total;
        self.stage = if complete {
            Stage::None
        } else {
            Stage::Signed(skip + written)
        };
        Some(Step { written, complete })
    }
}

#[cfg(test)]
mod tests;

//! The keys of one boot, and the tokens that they sign.

use core::fmt;

use minicbor::data::Tag;
use p384::SecretKey;
use p384::ecdsa::SigningKey;
use sha2::digest::typenum::U32;
use sha2::{Digest, Sha256};
use spin::Once;
use spin::mutex::SpinMutex;

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
/// Both keys are drawn at once, and what a boot is known by is the platform's. The rest
/// is made when the first realm asks ([`Session::step`]): it takes as long as two
/// signatures, and most boots have no realm. The platform's key then signs one token,
/// which names the realms' key, and is forgotten.
#[derive(Debug)]
pub struct Attester {
    platform: Platform,
    drawn: SpinMutex<Option<Drawn>>,
    realms: Once<Realms>,
}

/// The platform, as its token tells of it.
#[derive(Debug)]
struct Platform {
    public: [u8; KEY_LENGTH],
    instance: [u8; 32],
    image: [u8; 32],
    measured: usize,
}

/// Keys of which nobody has the public half of the realms' yet, nor a signature.
#[derive(Debug)]
struct Drawn {
    platform: SigningKey,
    realms: SecretKey,
    known: Option<SigningKey>,
}

/// What all realms' tokens are made with.
#[derive(Debug)]
struct Realms {
    key: SigningKey,
    vouched: Vouched,
}

/// What each token says of the realms' key, and the platform's token of it.
#[derive(Debug)]
struct Vouched {
    public: [u8; KEY_LENGTH],
    challenge: [u8; 32],
    signature: SignatureBytes,
}

impl Platform {
    fn token<R>(&self, challenge: &[u8; 32], then: impl FnOnce(Sign1<'_>) -> R) -> R {
        then(Sign1 {
            claims: &PlatformClaims {
                challenge,
                instance: &self.instance,
                image: &self.image,
            },
            kid: &self.public,
        })
    }

    /// Says with its key that this one is the realms'.
    fn vouch(&self, own: &SigningKey, key: &SigningKey) -> Vouched {
        let (public, _) = cose::public(key);
        let challenge = Sha256::digest(public).into();
        Vouched {
            public,
            challenge,
            signature: self.token(&challenge, |token| token.sign(own)),
        }
    }

    /// Writes a whole token: this platform's and a realm's.
    fn encode(
        &self,
        vouched: &Vouched,
        claims: &RealmClaims<'_>,
        signature: &SignatureBytes,
        out: &mut Out<'_>,
    ) -> Done {
        out.tag(Tag::new(TAG_COLLECTION))?.map(2)?.u16(PLATFORM)?;
        self.token(&vouched.challenge, |token| {
            cose::wrap(out, |out| token.encode(&vouched.signature, out))
        })?;
        out.u16(REALM)?;
        let token = Sign1 { claims, kid: &[] };
        cose::wrap(out, |out| token.encode(signature, out))
    }
}

impl Vouched {
    /// Of no key: as long as any.
    const NONE: Self = Self {
        public: [0; KEY_LENGTH],
        challenge: [0; 32],
        signature: [0; 96],
    };

    fn claims<'a>(&'a self, challenge: &'a [u8; 64], realm: Realm<'a>) -> RealmClaims<'a> {
        RealmClaims {
            challenge,
            realm,
            public: &self.public,
        }
    }
}

impl Attester {
    /// Draws the keys of this boot. `code` is what runs at EL2, and is measured by
    /// `Hash`, a SHA-256.
    pub fn new<Hash>(generator: &mut Generator, code: &[u8]) -> Self
    where
        Hash: Digest<OutputSize = U32>,
    {
        let (realms, of_platform) = (generator.key(), SigningKey::from(generator.key()));
        let (public, instance) = cose::public(&of_platform);
        Self {
            platform: Platform {
                public,
                instance,
                image: Hash::digest(code).into(),
                measured: code.len(),
            },
            drawn: SpinMutex::new(Some(Drawn {
                platform: of_platform,
                realms,
                known: None,
            })),
            realms: Once::new(),
        }
    }

    /// What realms' tokens are made with. Each call before that is complete does a part,
    /// no longer than a signature; while another CPU does one, none.
    fn realms(&self) -> Option<&Realms> {
        if let Some(realms) = self.realms.get() {
            return Some(realms);
        }
        let mut kept = self.drawn.try_lock()?;
        let drawn = kept.as_mut()?;
        let Some(key) = &drawn.known else {
            drawn.known = Some(SigningKey::from(&drawn.realms));
            return None;
        };
        self.realms.call_once(|| Realms {
            key: key.clone(),
            vouched: self.platform.vouch(&drawn.platform, key),
        });
        // Where they are: a key that is moved away is still where it was.
        *kept = None;
        None
    }

    /// Bytes of a token of a realm that is measured so.
    pub fn token_length(&self, algorithm: Algorithm) -> usize {
        let realm = Realm {
            personalization: &[0; 64],
            algorithm,
            measurements: &[[0; 64]; 5],
        };
        let claims = Vouched::NONE.claims(&[0; 64], realm);
        cose::length(|out| {
            let signature = &[0; 96];
            self.platform
                .encode(&Vouched::NONE, &claims, signature, out)
        })
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

    /// Whether the token is signed, so that what is left is to write it.
    pub fn is_signed(&self) -> bool {
        matches!(self.stage, Stage::Signed(_))
    }

    /// Writes the next bytes of the token, as many as there is room for. The first step
    /// signs, and writes nothing while there is more to do for the key that does. The
    /// realm's personalization and algorithm are the same at each. `None` without a
    /// session.
    pub fn step(&mut self, attester: &Attester, realm: &Realm<'_>, to: &mut [u8]) -> Option<Step> {
        if self.stage == Stage::None {
            return None;
        }
        let Some(Realms { key, vouched }) = attester.realms() else {
            let (written, complete) = (0, false);
            return Some(Step { written, complete });
        };
        let skip = if let Stage::Signed(skip) = self.stage {
            skip
        } else {
            self.measurements = *realm.measurements;
            let claims = &vouched.claims(&self.challenge, *realm);
            self.signature = Sign1 { claims, kid: &[] }.sign(key);
            0
        };
        let measurements = &self.measurements;
        let realm = Realm {
            measurements,
            ..*realm
        };
        let claims = vouched.claims(&self.challenge, realm);
        let room = to.len();
        let (free, total) = (to, 0);
        let mut window = Window { skip, free, total };
        let platform = &attester.platform;
        cose::write(&mut window, |out| {
            platform.encode(vouched, &claims, &self.signature, out)
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

//! The claims of both tokens and their numbers (DEN0137 1.0-rel0, A7.2;
//! draft-ffm-rats-cca-token-00).

use crate::cose::{Done, Out};

/// How a realm is measured (DEN0137 1.0-rel0, B4.4.7 RmiHashAlgorithm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// SHA-256.
    Sha256 = 0,
    /// SHA-512.
    Sha512 = 1,
}

impl Algorithm {
    /// That with this number.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Sha256),
            1 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Bytes of a measurement.
    pub const fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Its name in IANA's registry of hash functions.
    const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha-256",
            Self::Sha512 => "sha-512",
        }
    }
}

/// The RIM and four REMs, as RSI_MEASUREMENT_READ numbers them: a measurement is the
/// first bytes, the rest is not looked at.
pub type Measurements = [[u8; 64]; 5];

/// What a token says of its realm.
#[derive(Clone, Copy, Debug)]
pub struct Realm<'a> {
    /// What the host wrote into the realm's parameters (RPV).
    pub personalization: &'a [u8; 64],
    /// How it is measured.
    pub algorithm: Algorithm,
    /// Its measurements.
    pub measurements: &'a Measurements,
}

/// A set of claims, a CBOR map.
pub(crate) trait Claims {
    /// Writes the map.
    fn encode(&self, out: &mut Out<'_>) -> Done;
}

/// Keys of claims.
mod key {
    pub const CHALLENGE: u16 = 10;
    pub const INSTANCE_ID: u16 = 256;
    pub const PROFILE: u16 = 265;
    pub const LIFECYCLE: u16 = 2395;
    pub const IMPLEMENTATION_ID: u16 = 2396;
    pub const SOFTWARE: u16 = 2399;
    pub const CONFIG: u16 = 2401;
    pub const PLATFORM_HASH: u16 = 2402;
    pub const PERSONALIZATION: u16 = 44235;
    pub const REALM_HASH: u16 = 44236;
    pub const REALM_KEY: u16 = 44237;
    pub const INITIAL: u16 = 44238;
    pub const EXTENSIBLE: u16 = 44239;
    pub const KEY_HASH: u16 = 44240;
}

/// The realm token's claims.
pub(crate) struct RealmClaims<'a> {
    pub challenge: &'a [u8; 64],
    pub realm: Realm<'a>,
    /// The key that signs it, a COSE_Key.
    pub public: &'a [u8],
}

impl Claims for RealmClaims<'_> {
    fn encode(&self, out: &mut Out<'_>) -> Done {
        let Realm {
            personalization,
            algorithm,
            measurements: [initial, extensible @ ..],
        } = self.realm;
        let length = algorithm.length();
        out.map(8)?;
        out.u16(key::CHALLENGE)?.bytes(self.challenge)?;
        out.u16(key::PERSONALIZATION)?.bytes(personalization)?;
        out.u16(key::REALM_KEY)?.bytes(self.public)?;
        out.u16(key::REALM_HASH)?.str(algorithm.name())?;
        out.u16(key::KEY_HASH)?.str(Algorithm::Sha256.name())?;
        out.u16(key::PROFILE)?.str("tag:arm.com,2023:realm#1.0.0")?;
        out.u16(key::INITIAL)?.bytes(&initial[..length])?;
        out.u16(key::EXTENSIBLE)?.array(extensible.len() as u64)?;
        for measurement in extensible {
            out.bytes(&measurement[..length])?;
        }
        Ok(())
    }
}

/// What stands in the place of a platform's options: what is not there.
const CONFIG: &[u8] = b"no RME, no memory encryption, no hardware root of trust";
/// The security state of a platform that nothing vouches for.
const LIFECYCLE_UNKNOWN: u16 = 0;
/// The author of software that nobody signed.
const NO_SIGNER: [u8; 32] = [0; 32];
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `Undercroft` and its version, in 32 bytes.
const IMPLEMENTATION_ID: [u8; 32] = {
    let (name, version) = (b"Undercroft ", VERSION.as_bytes());
    let (mut id, mut n) = ([0; 32], 0);
    while n < name.len() + version.len() {
        id[n] = if n < name.len() {
            name[n]
        } else {
            version[n - name.len()]
        };
        n += 1;
    }
    id
};

/// The platform token's claims.
pub(crate) struct PlatformClaims<'a> {
    /// Hash of the realm token's key.
    pub challenge: &'a [u8; 32],
    /// Hash of the platform's key.
    pub instance: &'a [u8; 32],
    /// SHA-256 of what runs at EL2.
    pub image: &'a [u8; 32],
}

impl Claims for PlatformClaims<'_> {
    fn encode(&self, out: &mut Out<'_>) -> Done {
        // A UEID of type RAND (RFC 9711, 4.2.1.1).
        let mut instance = [1; 33];
        instance[1..].copy_from_slice(self.instance);
        out.map(8)?;
        out.u16(key::PROFILE)?
            .str("tag:arm.com,2023:cca_platform#1.0.0")?;
        out.u16(key::CHALLENGE)?.bytes(self.challenge)?;
        out.u16(key::IMPLEMENTATION_ID)?.bytes(&IMPLEMENTATION_ID)?;
        out.u16(key::INSTANCE_ID)?.bytes(&instance)?;
        out.u16(key::CONFIG)?.bytes(CONFIG)?;
        out.u16(key::LIFECYCLE)?.u16(LIFECYCLE_UNKNOWN)?;
        out.u16(key::PLATFORM_HASH)?.str(Algorithm::Sha256.name())?;
        // Of each component: type, measurement, version, signer, hash.
        out.u16(key::SOFTWARE)?.array(1)?.map(5)?;
        out.u8(1)?.str("Undercroft EL2")?.u8(2)?.bytes(self.image)?;
        out.u8(4)?.str(VERSION)?.u8(5)?.bytes(&NO_SIGNER)?;
        out.u8(6)?.str(Algorithm::Sha256.name())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_algorithms_have_their_numbers() {
        for raw in 0..=u8::MAX {
            let right = match raw {
                0 => Some((Algorithm::Sha256, 32, "sha-256")),
                1 => Some((Algorithm::Sha512, 64, "sha-512")),
                _ => None,
            };
            let found = Algorithm::from_raw(raw);
            assert_eq!(found.map(|of| (of, of.length(), of.name())), right, "{raw}");
        }
    }
}

//! A realm's measurements: of what it is made of, in order (its initial measurement),
//! and four that it extends itself (DEN0137 1.0, A7.1).

use ::rmi::params::{RealmParams, RecFlags, RecParams};
use core::mem::offset_of;
use sha2::{Sha256, Sha512};

/// A hash, and zeros behind one that is shorter.
pub type Digest = [u8; 64];

/// Bytes of each structure that is measured of a realm and a REC.
const PARAMS: usize = 0x1000;
/// Bytes of a measurement descriptor (C1.11 to C1.13).
const DESCRIPTOR: usize = 0x100;
/// Where each has its length, the measurement so far, and what is its own.
const LEN: usize = 8;
const RIM: usize = 0x10;
const OWN: usize = 0x50;

/// What hashes (B4.4.7 RmiHashAlgorithm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// SHA-256.
    Sha256 = 0,
    /// SHA-512.
    Sha512 = 1,
}

/// Bytes of a structure, and where in it they stand.
type Field<'a> = (usize, &'a [u8]);

impl Algorithm {
    /// That with this number.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Sha256),
            1 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// Bytes of a hash.
    pub const fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The hash of these bytes.
    pub fn hash(self, bytes: &[u8]) -> Digest {
        self.sparse(bytes.len(), &[(0, bytes)])
    }

    /// The hash of a structure that is zero but for these fields, in order.
    fn sparse(self, size: usize, fields: &[Field<'_>]) -> Digest {
        match self {
            Self::Sha256 => sparse::<Sha256>(size, fields),
            Self::Sha512 => sparse::<Sha512>(size, fields),
        }
    }
}

fn sparse<D: sha2::Digest>(size: usize, fields: &[Field<'_>]) -> Digest {
    const ZEROS: [u8; 64] = [0; 64];
    let mut hash = D::new();
    let mut at = 0;
    let end: Field<'_> = (size, &[]);
    for &(offset, bytes) in fields.iter().chain([&end]) {
        while at < offset {
            let few = ZEROS.len().min(offset - at);
            hash.update(&ZEROS[..few]);
            at += few;
        }
        hash.update(bytes);
        at += bytes.len();
    }
    let mut digest = [0; 64];
    let hashed = hash.finalize();
    digest[..hashed.len()].copy_from_slice(&hashed);
    digest
}

/// All of a realm's.
#[derive(Debug)]
pub struct Measurements {
    /// What hashes.
    pub algorithm: Algorithm,
    /// The initial one, and the four that it extends.
    values: [Digest; 5],
}

impl Measurements {
    /// Of a realm with these parameters (B4.3.9.4).
    pub fn of_realm(algorithm: Algorithm, params: &RealmParams) -> Self {
        let flags = params.flags.to_le_bytes();
        let initial = algorithm.sparse(
            PARAMS,
            &[
                (offset_of!(RealmParams, flags), &flags),
                (offset_of!(RealmParams, s2sz), &[params.s2sz]),
                (offset_of!(RealmParams, sve_vl), &[params.sve_vl]),
                (offset_of!(RealmParams, num_bps), &[params.num_bps]),
                (offset_of!(RealmParams, num_wps), &[params.num_wps]),
                (
                    offset_of!(RealmParams, pmu_num_ctrs),
                    &[params.pmu_num_ctrs],
                ),
                (offset_of!(RealmParams, hash_algo), &[params.hash_algo]),
            ],
        );
        let none = [0; 64];
        Self {
            algorithm,
            values: [initial, none, none, none, none],
        }
    }

    /// A granule of data at `ipa`, with the hash of its content if that counts
    /// (B4.3.1.4).
    pub fn add_data(&mut self, ipa: u64, flags: u64, content: Option<Digest>) {
        let content = content.unwrap_or([0; 64]);
        let (ipa, flags) = (ipa.to_le_bytes(), flags.to_le_bytes());
        let own: [Field<'_>; 3] = [(OWN, &ipa), (OWN + 8, &flags), (OWN + 16, &content)];
        self.add(0, &own);
    }

    /// A vCPU, if it may run (B4.3.12.4).
    pub fn add_rec(&mut self, params: &RecParams) {
        if params.flags & RecFlags::RUNNABLE.bits() == 0 {
            return;
        }
        let (flags, pc) = (params.flags.to_le_bytes(), params.pc.to_le_bytes());
        let gprs = zerocopy::IntoBytes::as_bytes(&params.gprs);
        let content = self.algorithm.sparse(
            PARAMS,
            &[
                (offset_of!(RecParams, flags), &flags),
                (offset_of!(RecParams, pc), &pc),
                (offset_of!(RecParams, gprs), gprs),
            ],
        );
        self.add(1, &[(OWN, &content)]);
    }

    /// Addresses that became RAM, those of one entry (B4.3.18.4).
    pub fn add_ripas(&mut self, base: u64, top: u64) {
        let (base, top) = (base.to_le_bytes(), top.to_le_bytes());
        self.add(2, &[(OWN, &base), (OWN + 8, &top)]);
    }

    /// Extends the initial one by a descriptor of this kind.
    fn add(&mut self, kind: u8, own: &[Field<'_>]) {
        let [rim, ..] = self.values;
        let kind = [kind];
        let len = (DESCRIPTOR as u64).to_le_bytes();
        let mut fields = arrayvec::ArrayVec::<Field<'_>, 6>::new();
        fields.extend([(0, &kind[..]), (LEN, &len[..]), (RIM, &rim[..])]);
        fields.extend(own.iter().copied());
        self.values[0] = self.algorithm.sparse(DESCRIPTOR, &fields);
    }

    /// All five.
    pub fn all(&self) -> &[Digest; 5] {
        &self.values
    }

    /// One of the five.
    pub fn read(&self, index: u64) -> Option<&Digest> {
        self.values.get(usize::try_from(index).ok()?)
    }

    /// Extends one of the realm's own four by these bytes: false where there is none
    /// with this number (B5.3.7).
    pub fn extend(&mut self, index: u64, by: &[u8]) -> bool {
        let size = self.algorithm.size();
        let Some(value @ 1..) = usize::try_from(index).ok() else {
            return false;
        };
        let Some(value) = self.values.get_mut(value) else {
            return false;
        };
        let old = *value;
        let fields: [Field<'_>; 2] = [(0, &old[..size]), (size, by)];
        *value = self.algorithm.sparse(size + by.len(), &fields);
        true
    }
}

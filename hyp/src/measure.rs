//! A realm's measurements: of what it is made of, in order (its initial measurement),
//! and four that it extends itself (DEN0137 1.0, A7.1).

use ::rmi::params::{RealmParams, RecFlags, RecParams};
use attest::Algorithm;
use core::mem::offset_of;
use sha2::Sha512;

mod sha256;

pub use sha256::Sha256;

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

/// Bytes of a structure, and where in it they stand.
type Field<'a> = (usize, &'a [u8]);

/// The hash of these bytes.
pub fn hash(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    match algorithm {
        Algorithm::Sha256 => digest::<Sha256>(bytes),
        Algorithm::Sha512 => digest::<Sha512>(bytes),
    }
}

fn digest<D: sha2::Digest>(bytes: &[u8]) -> Digest {
    let hash = D::digest(bytes);
    let mut digest = [0; 64];
    digest[..hash.len()].copy_from_slice(&hash);
    digest
}

/// The hash of a structure that is zero but for these fields.
fn hash_of<const SIZE: usize>(algorithm: Algorithm, fields: &[Field<'_>]) -> Digest {
    let mut bytes = [0; SIZE];
    for (offset, field) in fields {
        bytes[*offset..][..field.len()].copy_from_slice(field);
    }
    hash(algorithm, &bytes)
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
        let initial = hash_of::<PARAMS>(
            algorithm,
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

    /// A granule of data at `ipa`, with the hash of its content, or zeros if that does not
    /// count (B4.3.1.4).
    pub fn add_data(&mut self, ipa: u64, flags: u64, content: &Digest) {
        let (ipa, flags) = (ipa.to_le_bytes(), flags.to_le_bytes());
        let own: [Field<'_>; 3] = [(OWN, &ipa), (OWN + 8, &flags), (OWN + 16, content)];
        self.add(0, &own);
    }

    /// A vCPU, if it may run (B4.3.12.4).
    pub fn add_rec(&mut self, params: &RecParams) {
        if params.flags & RecFlags::RUNNABLE.bits() == 0 {
            return;
        }
        let (flags, pc) = (params.flags.to_le_bytes(), params.pc.to_le_bytes());
        let gprs = zerocopy::IntoBytes::as_bytes(&params.gprs);
        let content = hash_of::<PARAMS>(
            self.algorithm,
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
        self.values[0] = hash_of::<DESCRIPTOR>(self.algorithm, &fields);
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
        let size = self.algorithm.length();
        let Some(value @ 1..) = usize::try_from(index).ok() else {
            return false;
        };
        let Some(value) = self.values.get_mut(value) else {
            return false;
        };
        let mut bytes = [0; 128];
        bytes[..size].copy_from_slice(&value[..size]);
        bytes[size..][..by.len()].copy_from_slice(by);
        *value = hash(self.algorithm, &bytes[..size + by.len()]);
        true
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;
    use sha2::{Digest as _, Sha256};
    use std::format;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;
    use zerocopy::{FromBytes, FromZeros};

    const ALL: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

    /// The hash of bytes that are there in one piece.
    fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut digest = [0; 64];
        match algorithm {
            Algorithm::Sha256 => digest[..32].copy_from_slice(&Sha256::digest(bytes)),
            Algorithm::Sha512 => digest.copy_from_slice(&Sha512::digest(bytes)),
        }
        digest
    }

    /// A page of which these ranges are kept, and the rest is zero.
    fn kept(page: &[u8], ranges: &[core::ops::Range<usize>]) -> Vec<u8> {
        let mut kept = vec![0; page.len()];
        for range in ranges {
            kept[range.clone()].copy_from_slice(&page[range.clone()]);
        }
        kept
    }

    /// A descriptor by hand: what is its own begins at 0x50.
    fn descriptor(kind: u8, rim: &Digest, own: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.resize(8, 0);
        bytes.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        bytes.extend(rim);
        bytes.extend(own.concat());
        bytes.resize(256, 0);
        bytes
    }

    fn begun(algorithm: Algorithm) -> Measurements {
        Measurements::of_realm(algorithm, &RealmParams::new_zeroed())
    }

    fn hex(digest: &Digest) -> String {
        let hex = digest.iter().map(|byte| format!("{byte:02x}"));
        hex.collect()
    }

    /// Computed by others:
    ///
    /// ```text
    /// import hashlib, struct
    /// for kind, h in (0, hashlib.sha256), (1, hashlib.sha512):
    ///     p = bytearray(4096)
    ///     p[7], p[8], p[24], p[32], p[48] = 128, 40, 1, 1, kind
    ///     r = h(p).digest()
    ///     d = struct.pack("<QQ64sQQ", 2, 256, r, 1 << 30, (1 << 30) + 4096)
    ///     print(r.hex(), h(d.ljust(256, b"\0")).hexdigest())
    /// ```
    #[test]
    fn a_realm_of_one_page_is_what_python_says() {
        for (algorithm, created, with_ram) in [
            (
                Algorithm::Sha256,
                "3e8c783d1ab115ecbbae80705f23ea683a5cc6585ab348125f565f5cc0d2c668",
                "99e0b44c5558402413864bb7f25a52762481090ef572276d4a466cf2e14b26a5",
            ),
            (
                Algorithm::Sha512,
                "d26223c695b318546345830b5438d46fb82f090faa011753cf9fe33349b48223\
                 bb15a7dfbbffa1e4d49d1bcff940e84bf7ee370c344081c165bd7646a1d017f9",
                "c8e367e357ae5d0f7cb451e899576b0ad34ad129a25f3ed213a02d2dd34b7714\
                 54b2aabd07d196b5562f28cb9a7f251162f691db9442c31426ca2f0b7a638c4c",
            ),
        ] {
            let mut params = RealmParams::new_zeroed();
            (params.flags, params.s2sz) = (1 << 63, 40);
            (params.num_bps, params.num_wps) = (1, 1);
            params.hash_algo = algorithm as u8;
            let mut measured = Measurements::of_realm(algorithm, &params);
            let told = |measured: &Measurements| hex(&measured.values[0]);
            assert_eq!(told(&measured), format!("{created:0<128}"));
            measured.add_ripas(1 << 30, (1 << 30) + 0x1000);
            assert_eq!(told(&measured), format!("{with_ram:0<128}"));
            assert_eq!(measured.values[1..], [[0; 64]; 4]);
        }
    }

    proptest! {
        /// Of parameters counts what is named, whatever else the host's pages hold.
        #[test]
        fn of_a_page_counts_what_is_measured(
            page in proptest::collection::vec(any::<u8>(), 4096),
            runnable in any::<bool>(),
        ) {
            for algorithm in ALL {
                let params = RealmParams::read_from_bytes(&page).expect("its size");
                let mut measured = Measurements::of_realm(algorithm, &params);
                let fields = [0..9, 0x10..0x11, 0x18..0x19, 0x20..0x21, 0x28..0x29, 0x30..0x31];
                let rim = of(algorithm, &kept(&page, &fields));
                prop_assert_eq!(&measured.values[0], &rim);

                let mut page = page.clone();
                page[0] = page[0] & !1 | u8::from(runnable);
                let params = RecParams::read_from_bytes(&page).expect("its size");
                measured.add_rec(&params);
                let content = of(algorithm, &kept(&page, &[0..8, 0x200..0x208, 0x300..0x340]));
                let with_rec = of(algorithm, &descriptor(1, &rim, &[&content]));
                let expected = if runnable { with_rec } else { rim };
                prop_assert_eq!(measured.values[0], expected);
            }
        }

        #[test]
        fn data_counts_by_its_address_and_its_content_if_that_is_asked(
            content in proptest::collection::vec(any::<u8>(), 0..200),
            ipa in any::<u64>(),
            flags in any::<u64>(),
        ) {
            for algorithm in ALL {
                let mut measured = begun(algorithm);
                let before = measured.values[0];
                let own = [&ipa.to_le_bytes()[..], &flags.to_le_bytes()];
                measured.add_data(ipa, flags, &[0; 64]);
                let first = of(algorithm, &descriptor(0, &before, &own));
                prop_assert_eq!(&measured.values[0], &first);
                let hash = of(algorithm, &content);
                prop_assert_eq!(super::hash(algorithm, &content), hash);
                measured.add_data(ipa, flags, &hash);
                let own = [own[0], own[1], &hash];
                let second = of(algorithm, &descriptor(0, &first, &own));
                prop_assert_eq!(measured.values[0], second);
            }
        }
    }

    #[test]
    fn an_order_is_another_measurement() {
        for algorithm in ALL {
            let (mut one, mut two) = (begun(algorithm), begun(algorithm));
            one.add_ripas(0, 0x1000);
            one.add_ripas(0x1000, 0x2000);
            two.add_ripas(0x1000, 0x2000);
            two.add_ripas(0, 0x1000);
            assert_ne!(one.values[0], two.values[0]);
        }
    }

    #[test]
    fn four_are_extended_and_five_are_read() {
        let by: [u8; 64] = core::array::from_fn(|n| 0x80 | n as u8);
        for algorithm in ALL {
            let mut measured = begun(algorithm);
            for index in 1..=4 {
                for size in 0..=64 {
                    let old = measured.values[index as usize];
                    assert!(measured.extend(index, &by[..size]));
                    let bytes = [&old[..algorithm.length()], &by[..size]].concat();
                    let new = of(algorithm, &bytes);
                    assert_eq!(measured.read(index), Some(&new), "{index} {size}");
                }
            }
            let before = measured.values;
            for index in [0, 5, 1 << 32, u64::MAX] {
                assert!(!measured.extend(index, &by), "{index}");
            }
            assert_eq!(measured.values, before);
            assert_eq!(measured.read(0), Some(&before[0]));
            assert_eq!([5, 1 << 32, u64::MAX].map(|n| measured.read(n)), [None; 3]);
        }
    }

    #[test]
    fn algorithms_are_numbered() {
        let all = [0, 1, 2, 3, 255].map(Algorithm::from_raw);
        let [first, second] = ALL.map(Some);
        assert_eq!(all, [first, second, None, None, None]);
    }
}

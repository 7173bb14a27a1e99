//! The calls of RSI 1.0 (DEN0137 1.0-rel0, B5.3), as a realm's guest makes them by
//! SMC. Any other guest is answered [`crate::NOT_SUPPORTED`], by which its kernel sees
//! that it runs in an ordinary VM.

use crate::table::calls;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

calls! {
    /// A call of a realm's guest.
    enum Rsi(u64), "", 10 arguments;

    /// Which revisions are offered, around the one that is requested.
    0xC400_0190 RSI_VERSION = Version { requested } -> [lower, higher];
    /// A feature register.
    0xC400_0191 RSI_FEATURES = Features { index } -> [value];
    /// A measurement, in 8 registers.
    0xC400_0192 RSI_MEASUREMENT_READ = MeasurementRead { index }
        -> [m0, m1, m2, m3, m4, m5, m6, m7];
    /// Extends a measurement by `size` bytes, in 8 registers.
    0xC400_0193 RSI_MEASUREMENT_EXTEND = MeasurementExtend {
        index, size, m0, m1, m2, m3, m4, m5, m6, m7
    };
    /// Begins an attestation token over a challenge, in 8 registers.
    0xC400_0194 RSI_ATTESTATION_TOKEN_INIT = AttestationTokenInit {
        c0, c1, c2, c3, c4, c5, c6, c7
    } -> [max_size];
    /// Writes the next part of the token into the page at `ipa`.
    0xC400_0195 RSI_ATTESTATION_TOKEN_CONTINUE = AttestationTokenContinue { ipa, offset, size }
        -> [length];
    /// Writes what the realm is into the page at `ipa`.
    0xC400_0196 RSI_REALM_CONFIG = RealmConfig { ipa };
    /// Asks for a change of `[base, top)`.
    0xC400_0197 RSI_IPA_STATE_SET = IpaStateSet { base, top, ripas, flags }
        -> [new_base, response];
    /// What `[base, top)` is, and up to where.
    0xC400_0198 RSI_IPA_STATE_GET = IpaStateGet { base, top } -> [reached, ripas];
    /// Calls the host, by the structure at `ipa`.
    0xC400_0199 RSI_HOST_CALL = HostCall { ipa };
}

/// X0 of an answer (B5.4.1 RsiCommandReturnCode).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Code {
    /// Done.
    Success = 0,
    /// An argument.
    ErrorInput = 1,
    /// Not in this state.
    ErrorState = 2,
    /// More of it is to come: the same call again.
    Incomplete = 3,
    /// For a reason of the machine's.
    ErrorUnknown = 4,
}

/// Bytes that the addresses of RSI are aligned to, whatever the host's granule.
pub const GRANULE: u64 = 0x1000;

/// Flag of [`Rsi::IpaStateSet`]: what was taken away becomes memory again, too.
pub const CHANGE_DESTROYED: u64 = 1 << 0;

/// X2 of the answer to [`Rsi::IpaStateSet`]: the host did what was asked.
pub const ACCEPT: u64 = 0;
/// The host refused.
pub const REJECT: u64 = 1;

/// What [`Rsi::RealmConfig`] writes (B5.4.5 RsiRealmConfig), zeros up to
/// [`GRANULE`] behind it.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RealmConfig {
    /// Width of the IPA space in bits.
    pub ipa_width: u64,
    /// Measurement algorithm: 0 SHA-256, 1 SHA-512.
    pub hash_algo: u64,
    /// Zero.
    pub pad: [u64; 0x3e],
    /// Realm personalisation value.
    pub rpv: [u8; 64],
}

/// What [`Rsi::HostCall`] names (B5.4.3 RsiHostCall), aligned to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostCall {
    /// An immediate, for the host.
    pub imm: u16,
    /// Not looked at.
    pub pad: [u8; 6],
    /// Registers for the host, and from it.
    pub gprs: [u64; 31],
}

impl HostCall {
    /// All zero.
    pub const ZERO: Self = Self {
        imm: 0,
        pad: [0; 6],
        gprs: [0; 31],
    };
}

/// The last identifier of the RSI range.
pub const LAST: u64 = 0xC400_01AF;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_is_the_specifications() {
        assert_eq!(offset_of!(RealmConfig, hash_algo), 8);
        assert_eq!(offset_of!(RealmConfig, rpv), 0x200);
        assert_eq!(offset_of!(HostCall, gprs), 8);
        assert_eq!(size_of::<HostCall>(), 0x100);
    }
}

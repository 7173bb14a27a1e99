//! The calls of RSI 1.0 (DEN0137 1.0-rel0, B5.3), as a realm's guest makes them by
//! SMC. No guest is a realm's yet: each is answered
//! [`crate::NOT_SUPPORTED`], by which a kernel sees that it runs in an ordinary VM.

use crate::table::calls;

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

/// The last identifier of the RSI range.
pub const LAST: u64 = 0xC400_01AF;

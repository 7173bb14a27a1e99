//! What `REALM_CREATE` and `REC_CREATE` read from the host's page.
//!
//! Each structure is 4 KiB, at the start of one granule of the host's memory
//! (DEN0137 1.0, B4.4.10 RmiRealmParams and B4.4.17 RmiRecParams).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags::bitflags! {
    /// `RealmParams::flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RealmFlags: u64 {
        /// The realm's stage 2 uses LPA2.
        const LPA2 = 1 << 0;
        /// The realm may use SVE.
        const SVE = 1 << 1;
        /// The realm has a PMU.
        const PMU = 1 << 2;
        /// Vendor: a guest that knows nothing of realms: RSI is not there, PSCI is by
        /// HVC too, nothing is measured. Its memory is its own all the same.
        const PROTECTED = 1 << 61;
        /// Vendor: a plain guest. Its memory stays the host's: all of its IPA
        /// space is unprotected, and unprotected memory is executable.
        const NONCONF = 1 << 62;
        /// Vendor: EL2 models the GIC's distributor and redistributors and the
        /// timers; list registers in the run page are ignored.
        const EL2_VGIC = 1 << 63;
    }
}

/// Parameters of `REALM_CREATE`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RealmParams {
    /// [`RealmFlags`].
    pub flags: u64,
    /// Width of the IPA space in bits.
    pub s2sz: u8,
    _pad0: [u8; 7],
    /// SVE vector length, as ZCR_EL2.LEN.
    pub sve_vl: u8,
    _pad1: [u8; 7],
    /// Breakpoints less one.
    pub num_bps: u8,
    _pad2: [u8; 7],
    /// Watchpoints less one.
    pub num_wps: u8,
    _pad3: [u8; 7],
    /// PMU event counters.
    pub pmu_num_ctrs: u8,
    _pad4: [u8; 7],
    /// Measurement algorithm: 0 SHA-256, 1 SHA-512.
    pub hash_algo: u8,
    _pad5: [u8; 0x400 - 0x31],
    /// Realm personalisation value.
    pub rpv: [u8; 64],
    _pad6: [u8; 0x800 - 0x440],
    /// Virtual machine identifier, unused.
    pub vmid: u16,
    _pad7: [u8; 6],
    /// PA of the first root RTT.
    pub rtt_base: u64,
    /// Start level, −1 to 3.
    pub rtt_level_start: i64,
    /// Concatenated root RTTs, 1 to 16.
    pub rtt_num_start: u32,
    _pad8: [u8; 0x1000 - 0x81c],
}

bitflags::bitflags! {
    /// `RecParams::flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RecFlags: u64 {
        /// The REC may be entered; otherwise it waits for a `CPU_ON`.
        const RUNNABLE = 1 << 0;
    }
}

/// Most auxiliary granules that a REC can be given.
pub const MAX_REC_AUX: usize = 16;

/// Parameters of `REC_CREATE`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct RecParams {
    /// [`RecFlags`].
    pub flags: u64,
    _pad0: [u8; 0x100 - 8],
    /// MPIDR of the vCPU; see [`mpidr_index`].
    pub mpidr: u64,
    _pad1: [u8; 0x200 - 0x108],
    /// Where the vCPU starts, IPA.
    pub pc: u64,
    _pad2: [u8; 0x300 - 0x208],
    /// X0 to X7 at the start.
    pub gprs: [u64; 8],
    _pad3: [u8; 0x800 - 0x340],
    /// Entries of `aux` in use.
    pub num_aux: u64,
    /// PAs of the auxiliary granules.
    pub aux: [u64; MAX_REC_AUX],
    _pad4: [u8; 0x1000 - 0x888],
}

/// The index of the REC with this MPIDR: Aff3:Aff2:Aff1:Aff0\[3:0\]. Indices are
/// handed out in order from 0 (DEN0137 1.0, A2.3.3). `None` when a bit outside
/// those fields is set.
pub const fn mpidr_index(mpidr: u64) -> Option<u64> {
    if mpidr & !0xff_00ff_ff0f != 0 {
        return None;
    }
    Some(mpidr & 0xf | (mpidr >> 8 & 0xffff) << 4 | (mpidr >> 32 & 0xff) << 20)
}

/// The MPIDR of the REC with this index, the inverse of [`mpidr_index`].
pub const fn index_mpidr(index: u64) -> u64 {
    index & 0xf | (index >> 4 & 0xffff) << 8 | (index >> 20 & 0xff) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layout_is_the_specifications() {
        assert_eq!(size_of::<RealmParams>(), 0x1000);
        assert_eq!(offset_of!(RealmParams, s2sz), 0x8);
        assert_eq!(offset_of!(RealmParams, sve_vl), 0x10);
        assert_eq!(offset_of!(RealmParams, num_bps), 0x18);
        assert_eq!(offset_of!(RealmParams, num_wps), 0x20);
        assert_eq!(offset_of!(RealmParams, pmu_num_ctrs), 0x28);
        assert_eq!(offset_of!(RealmParams, hash_algo), 0x30);
        assert_eq!(offset_of!(RealmParams, rpv), 0x400);
        assert_eq!(offset_of!(RealmParams, vmid), 0x800);
        assert_eq!(offset_of!(RealmParams, rtt_base), 0x808);
        assert_eq!(offset_of!(RealmParams, rtt_level_start), 0x810);
        assert_eq!(offset_of!(RealmParams, rtt_num_start), 0x818);
        assert_eq!(size_of::<RecParams>(), 0x1000);
        assert_eq!(offset_of!(RecParams, mpidr), 0x100);
        assert_eq!(offset_of!(RecParams, pc), 0x200);
        assert_eq!(offset_of!(RecParams, gprs), 0x300);
        assert_eq!(offset_of!(RecParams, num_aux), 0x800);
        assert_eq!(offset_of!(RecParams, aux), 0x808);
    }

    #[test]
    fn mpidr_indices_are_consecutive() {
        for index in (0..70_000).chain((1 << 28) - 3..1 << 28) {
            assert_eq!(mpidr_index(index_mpidr(index)), Some(index));
        }
        assert_eq!(index_mpidr(16), 0x100);
        assert_eq!(mpidr_index(0x10), None);
        assert_eq!(mpidr_index(1 << 31), None);
    }
}

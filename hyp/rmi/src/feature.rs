//! Feature registers: what `RMI_FEATURES(0)` and `VENDOR_FEATURES` answer.

/// RMI feature register 0 (DEN0137 1.0, B4.4.4), field by field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feature0 {
    /// Widest IPA space of a realm in bits, `S2SZ` \[7:0\].
    pub s2sz: u8,
    /// Realms may use LPA2, \[8\].
    pub lpa2: bool,
    /// Breakpoints less one, `NUM_BPS` \[19:14\].
    pub num_bps: u8,
    /// Watchpoints less one, `NUM_WPS` \[25:20\].
    pub num_wps: u8,
    /// SHA-256 measurements, \[32\].
    pub sha256: bool,
    /// SHA-512 measurements, \[33\].
    pub sha512: bool,
    /// List registers less one, `GICV3_NUM_LRS` \[37:34\].
    pub gicv3_num_lrs: u8,
    /// log2 of the RECs a realm may have, `MAX_RECS_ORDER` \[41:38\].
    pub max_recs_order: u8,
}

impl Feature0 {
    /// The register's value.
    pub const fn pack(self) -> u64 {
        self.s2sz as u64
            | (self.lpa2 as u64) << 8
            | (self.num_bps as u64 & 0x3f) << 14
            | (self.num_wps as u64 & 0x3f) << 20
            | (self.sha256 as u64) << 32
            | (self.sha512 as u64) << 33
            | (self.gicv3_num_lrs as u64 & 0xf) << 34
            | (self.max_recs_order as u64 & 0xf) << 38
    }

    /// Reads the register.
    pub const fn unpack(raw: u64) -> Self {
        Self {
            s2sz: raw as u8,
            lpa2: raw >> 8 & 1 != 0,
            num_bps: (raw >> 14 & 0x3f) as u8,
            num_wps: (raw >> 20 & 0x3f) as u8,
            sha256: raw >> 32 & 1 != 0,
            sha512: raw >> 33 & 1 != 0,
            gicv3_num_lrs: (raw >> 34 & 0xf) as u8,
            max_recs_order: (raw >> 38 & 0xf) as u8,
        }
    }
}

/// The vendor feature register, X1 of [`crate::vendor::FEATURES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VendorFeatures {
    /// log2 of the granule that every command counts in: 12, 14 or 16; \[7:0\].
    pub granule_shift: u8,
    /// Output (physical) address bits, \[15:8\].
    pub pa_bits: u8,
    /// The forced-write-back attribute encoding is in force (FEAT_S2FWB), so
    /// that the host need not clean what it writes for a guest; \[16\].
    /// Without it EL2 cleans what it maps, and maps no more than 2 MiB by one
    /// entry: see [`largest_level`](Self::largest_level).
    pub fwb: bool,
    /// `REALM_CREATE` takes [`crate::params::RealmFlags::NONCONF`], \[17\].
    pub nonconf: bool,
    /// `REALM_CREATE` takes [`crate::params::RealmFlags::EL2_VGIC`], \[18\].
    pub el2_vgic: bool,
    /// `REALM_CREATE` takes [`crate::params::RealmFlags::PROTECTED`], \[19\].
    pub protected: bool,
    /// VMIDs of realms have 16 bits, else 8; \[20\].
    pub vmid16: bool,
}

impl VendorFeatures {
    /// The register's value.
    pub const fn pack(self) -> u64 {
        self.granule_shift as u64
            | (self.pa_bits as u64) << 8
            | (self.fwb as u64) << 16
            | (self.nonconf as u64) << 17
            | (self.el2_vgic as u64) << 18
            | (self.protected as u64) << 19
            | (self.vmid16 as u64) << 20
    }

    /// Reads the register.
    pub const fn unpack(raw: u64) -> Self {
        Self {
            granule_shift: raw as u8,
            pa_bits: (raw >> 8) as u8,
            fwb: raw >> 16 & 1 != 0,
            nonconf: raw >> 17 & 1 != 0,
            el2_vgic: raw >> 18 & 1 != 0,
            protected: raw >> 19 & 1 != 0,
            vmid16: raw >> 20 & 1 != 0,
        }
    }

    /// The level of the largest entries that fit into RAM of any size, and that
    /// `RTT_MAP_UNPROTECTED` takes: 2 where blocks are, else 3. With FEAT_S2FWB it
    /// takes those of level 1, too.
    pub const fn largest_level(&self) -> i64 {
        if self.fwb || self.granule_shift == 12 {
            2
        } else {
            3
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feature0_fields_stand_where_the_specification_puts_them() {
        let f = Feature0 {
            s2sz: 48,
            lpa2: true,
            num_bps: 1,
            num_wps: 1,
            sha256: true,
            sha512: false,
            gicv3_num_lrs: 3,
            max_recs_order: 8,
        };
        assert_eq!(
            f.pack(),
            48 | 1 << 8 | 1 << 14 | 1 << 20 | 1 << 32 | 3 << 34 | 8 << 38
        );
        assert_eq!(Feature0::unpack(f.pack()), f);
    }

    #[test]
    fn vendor_round_trip() {
        let f = VendorFeatures {
            granule_shift: 14,
            pa_bits: 52,
            fwb: true,
            nonconf: true,
            el2_vgic: true,
            protected: true,
            vmid16: true,
        };
        assert_eq!(VendorFeatures::unpack(f.pack()), f);
    }

    #[test]
    fn an_entry_maps_what_one_call_cleans() {
        for (fwb, shift, level) in [
            (false, 12, 2),
            (false, 14, 3),
            (false, 16, 3),
            (true, 12, 2),
            (true, 14, 2),
            (true, 16, 2),
        ] {
            let f = VendorFeatures {
                granule_shift: shift,
                fwb,
                ..VendorFeatures::default()
            };
            assert_eq!(f.largest_level(), level, "{f:?}");
        }
    }
}

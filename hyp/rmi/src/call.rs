//! The names of calls, for people: how many arguments each has, and how many
//! results beside X0.

use core::fmt;

use crate::{fid, vendor};

/// A call, as a trace shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name in its specification; `None` for one that nobody defines.
    pub name: Option<&'static str>,
    /// Arguments, from X1 on.
    pub arguments: usize,
    /// Results from X1 on.
    pub results: usize,
}

/// The call of this identifier: of RMI, of PSCI and its like, or a vendor call. A
/// 32-bit one and a 64-bit one of the same function have the same name.
pub fn of(function: u64) -> Call {
    let known = |name, arguments, results| Call {
        name: Some(name),
        arguments,
        results,
    };
    let narrow = u32::try_from(function).unwrap_or(0);
    match function {
        fid::RMI_VERSION => return known("RMI_VERSION", 1, 2),
        fid::RMI_GRANULE_DELEGATE => return known("RMI_GRANULE_DELEGATE", 1, 0),
        fid::RMI_GRANULE_UNDELEGATE => return known("RMI_GRANULE_UNDELEGATE", 1, 0),
        fid::RMI_DATA_CREATE => return known("RMI_DATA_CREATE", 5, 0),
        fid::RMI_DATA_CREATE_UNKNOWN => return known("RMI_DATA_CREATE_UNKNOWN", 3, 0),
        fid::RMI_DATA_DESTROY => return known("RMI_DATA_DESTROY", 2, 2),
        fid::RMI_REALM_ACTIVATE => return known("RMI_REALM_ACTIVATE", 1, 0),
        fid::RMI_REALM_CREATE => return known("RMI_REALM_CREATE", 2, 0),
        fid::RMI_REALM_DESTROY => return known("RMI_REALM_DESTROY", 1, 0),
        fid::RMI_REC_CREATE => return known("RMI_REC_CREATE", 3, 0),
        fid::RMI_REC_DESTROY => return known("RMI_REC_DESTROY", 1, 0),
        fid::RMI_REC_ENTER => return known("RMI_REC_ENTER", 2, 0),
        fid::RMI_RTT_CREATE => return known("RMI_RTT_CREATE", 4, 0),
        fid::RMI_RTT_DESTROY => return known("RMI_RTT_DESTROY", 3, 2),
        fid::RMI_RTT_MAP_UNPROTECTED => return known("RMI_RTT_MAP_UNPROTECTED", 4, 0),
        fid::RMI_RTT_READ_ENTRY => return known("RMI_RTT_READ_ENTRY", 3, 4),
        fid::RMI_RTT_UNMAP_UNPROTECTED => return known("RMI_RTT_UNMAP_UNPROTECTED", 3, 1),
        fid::RMI_PSCI_COMPLETE => return known("RMI_PSCI_COMPLETE", 3, 0),
        fid::RMI_FEATURES => return known("RMI_FEATURES", 1, 1),
        fid::RMI_RTT_FOLD => return known("RMI_RTT_FOLD", 3, 1),
        fid::RMI_REC_AUX_COUNT => return known("RMI_REC_AUX_COUNT", 1, 1),
        fid::RMI_RTT_INIT_RIPAS => return known("RMI_RTT_INIT_RIPAS", 3, 1),
        fid::RMI_RTT_SET_RIPAS => return known("RMI_RTT_SET_RIPAS", 4, 1),
        vendor::VERSION => return known("VENDOR_VERSION", 0, 1),
        vendor::FEATURES => return known("VENDOR_FEATURES", 0, 1),
        vendor::MEMORY_RANGE => return known("VENDOR_MEMORY_RANGE", 1, 3),
        vendor::LOG => return known("VENDOR_LOG", 3, 0),
        vendor::SET_SPI => return known("VENDOR_SET_SPI", 3, 0),
        vendor::REC_PENDING => return known("VENDOR_REC_PENDING", 1, 1),
        vendor::REC_HISTORY => return known("VENDOR_REC_HISTORY", 2, 1),
        vendor::KICK => return known("VENDOR_KICK", 1, 0),
        vendor::LOG_INPUT => return known("VENDOR_LOG_INPUT", 0, 4),
        _ => {}
    }
    match narrow {
        fid::SMCCC_VERSION => known("SMCCC_VERSION", 0, 0),
        fid::SMCCC_ARCH_FEATURES => known("SMCCC_ARCH_FEATURES", 1, 0),
        fid::PSCI_VERSION => known("PSCI_VERSION", 0, 0),
        fid::PSCI_CPU_SUSPEND_32 | fid::PSCI_CPU_SUSPEND_64 => known("PSCI_CPU_SUSPEND", 3, 0),
        fid::PSCI_CPU_OFF => known("PSCI_CPU_OFF", 0, 0),
        fid::PSCI_CPU_ON_32 | fid::PSCI_CPU_ON_64 => known("PSCI_CPU_ON", 3, 0),
        fid::PSCI_AFFINITY_INFO_32 | fid::PSCI_AFFINITY_INFO_64 => {
            known("PSCI_AFFINITY_INFO", 2, 0)
        }
        fid::PSCI_MIGRATE_INFO_TYPE => known("PSCI_MIGRATE_INFO_TYPE", 0, 0),
        fid::PSCI_SYSTEM_OFF => known("PSCI_SYSTEM_OFF", 0, 0),
        fid::PSCI_SYSTEM_RESET => known("PSCI_SYSTEM_RESET", 0, 0),
        fid::PSCI_FEATURES => known("PSCI_FEATURES", 1, 0),
        fid::TRNG_VERSION => known("TRNG_VERSION", 0, 0),
        fid::TRNG_FEATURES => known("TRNG_FEATURES", 1, 0),
        fid::TRNG_GET_UUID => known("TRNG_GET_UUID", 0, 3),
        // What is random stays with who asked for it.
        fid::TRNG_RND_32 | fid::TRNG_RND_64 => known("TRNG_RND", 1, 0),
        _ => Call {
            name: None,
            arguments: 3,
            results: 0,
        },
    }
}

/// A call with its arguments, X1 and on, as `NAME(0x1, 0x2)`.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The function identifier, X0.
    pub function: u64,
    /// X1 and on.
    pub arguments: &'a [u64],
}

impl fmt::Display for Made<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = of(self.function);
        match call.name {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{:#x}", self.function)?,
        }
        f.write_str("(")?;
        for (n, argument) in self.arguments.iter().take(call.arguments).enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{argument:#x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn a_call_shows_its_name_and_as_many_arguments_as_it_has() {
        let shown = |function, arguments: &[u64]| {
            let made = Made {
                function,
                arguments,
            };
            made.to_string()
        };
        let five = [1, 2, 3, 4, 5];
        assert_eq!(
            shown(fid::RMI_REALM_CREATE, &five),
            "RMI_REALM_CREATE(0x1, 0x2)"
        );
        assert_eq!(shown(fid::PSCI_VERSION.into(), &five), "PSCI_VERSION()");
        assert_eq!(shown(0xc700_0000, &five), "0xc7000000(0x1, 0x2, 0x3)");
        // The upper half is a part of the identifier.
        assert_eq!(of(1 << 32 | u64::from(fid::PSCI_VERSION)).name, None);
    }
}

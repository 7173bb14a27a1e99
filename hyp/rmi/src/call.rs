//! Calls of all kinds: what the host may call, and how calls are shown to people.

use core::fmt;

use crate::command::Command;
use crate::psci::Psci;
use crate::rsi::Rsi;
use crate::smccc::trng::Trng;
use crate::smccc::{Smccc, counted};
use crate::status::{NOT_SUPPORTED, Status};
pub use crate::table::Info;
use crate::vendor::Vendor;

/// A call of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCall {
    /// Of RMI.
    Rmi(Command),
    /// Of Undercroft's own.
    Vendor(Vendor),
    /// About the machine's power.
    Psci(Psci),
    /// Of the calling convention.
    Smccc(Smccc),
}

impl HostCall {
    /// The call that X0 to X5 are; `None` when the host has none of this
    /// identifier. The upper half of X0 is a part of that.
    #[inline(always)]
    pub const fn decode(x: [u64; 6]) -> Option<Self> {
        let [function, a, b, c, d, e] = x;
        if let Some(command) = Command::decode(function, [a, b, c, d, e]) {
            return Some(Self::Rmi(command));
        }
        if let Some(call) = Vendor::decode(function, [a, b, c, d, e]) {
            return Some(Self::Vendor(call));
        }
        if function >> 32 != 0 {
            return None;
        }
        let function = function as u32;
        if let Some(call) = Psci::read(function, [a, b, c]) {
            return Some(Self::Psci(call));
        }
        match Smccc::decode(function, counted(function, [a, b, c])) {
            Some(call) => Some(Self::Smccc(call)),
            None => None,
        }
    }
}

/// The tables of all calls: of the host, of guests, of both.
pub const TABLES: [&[Info]; 6] = [
    Command::TABLE,
    Vendor::TABLE,
    Rsi::TABLE,
    Psci::TABLE,
    Smccc::TABLE,
    Trng::TABLE,
];

/// The row of a function, whoever calls it: a 32-bit form has that of the 64-bit
/// one.
pub fn info(function: u64) -> Option<&'static Info> {
    let wide = u32::try_from(function).ok().and_then(|function| {
        Psci::read(function, [0; 3])
            .map(Psci::info)
            .or_else(|| Trng::read(function, [0; 3]).map(Trng::info))
    });
    let of = |info: &&Info| info.function == function;
    wide.or_else(|| TABLES.into_iter().flatten().find(of))
}

/// A call with its arguments, X1 and on, as `NAME(0x1, 0x2)`. One that no table
/// has shows three.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    /// The function identifier, X0.
    pub function: u64,
    /// X1 and on.
    pub arguments: &'a [u64],
}

impl fmt::Display for Made<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = info(self.function);
        match info {
            Some(info) => f.write_str(info.name)?,
            None => write!(f, "{:#x}", self.function)?,
        }
        let count = info.map_or(3, |info| info.arguments.len());
        write!(f, "({})", List(self.arguments, count))
    }
}

/// The answer to a call, X0 and on, as `SUCCESS, 0x1`: X0 in words where it is a
/// status, and as many outputs as the call has.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The function that was called.
    pub function: u64,
    /// X0 and on.
    pub results: &'a [u64],
}

impl fmt::Display for Answered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((&x0, outputs)) = self.results.split_first() else {
            return Ok(());
        };
        let info = info(self.function);
        let has_status = info.is_some_and(|info| {
            let mut tables = [Command::TABLE, Vendor::TABLE].into_iter().flatten();
            tables.any(|row| row.function == info.function)
        });
        if x0 == NOT_SUPPORTED {
            return f.write_str("NOT_SUPPORTED");
        }
        match Status::unpack(x0).filter(|_| has_status) {
            Some(status) => write!(f, "{status}")?,
            None => write!(f, "{x0:#x}")?,
        }
        let count = info.map_or(0, |info| info.outputs.len()).min(outputs.len());
        if count != 0 {
            write!(f, ", {}", List(outputs, count))?;
        }
        Ok(())
    }
}

/// As many of these numbers as there are to be, on one line.
struct List<'a>(&'a [u64], usize);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, number) in self.0.iter().take(self.1).enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{number:#x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::fid;
    use crate::smccc::narrow;
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
        assert_eq!(shown(narrow(fid::TRNG_RND).into(), &five), "TRNG_RND(0x1)");
        assert_eq!(shown(crate::vendor::RANDOM, &five), "VENDOR_RANDOM()");
        assert_eq!(shown(0xc700_0000, &five), "0xc7000000(0x1, 0x2, 0x3)");
        // The upper half is a part of the identifier.
        assert_eq!(info(1 << 32 | u64::from(fid::PSCI_VERSION)), None);
    }

    #[test]
    fn an_answer_shows_its_status_and_as_many_outputs_as_there_are() {
        let shown = |function, results: &[u64]| Answered { function, results }.to_string();
        let five = [0, 1, 2, 3, 4];
        assert_eq!(shown(fid::RMI_FEATURES, &five), "SUCCESS, 0x1");
        assert_eq!(
            shown(fid::RMI_RTT_DESTROY, &[0x204, 0, 7, 8, 9]),
            "ERROR_RTT(2), 0x0, 0x7"
        );
        assert_eq!(shown(fid::RMI_REALM_ACTIVATE, &[0x102]), "ERROR_REALM(1)");
        assert_eq!(shown(crate::vendor::KICK, &[3, 9]), "ERROR_REC");
        assert_eq!(shown(crate::vendor::KICK, &[1]), "ERROR_INPUT");
        // No status, whatever it looks like.
        assert_eq!(shown(fid::PSCI_VERSION.into(), &[1, 1]), "0x1");
        assert_eq!(
            shown(fid::RMI_VERSION, &[0x1_0000, 1, 2]),
            "0x10000, 0x1, 0x2"
        );
        assert_eq!(shown(0, &[u64::MAX, 1]), "NOT_SUPPORTED");
        let none = [u64::MAX, 0, 0];
        assert_eq!(shown(fid::RMI_DATA_DESTROY, &none), "NOT_SUPPORTED");
    }
}

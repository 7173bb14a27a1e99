//! Return codes of RMI commands (DEN0137 1.0, B4.4.1 RmiCommandReturnCode).

use core::fmt;

/// X0 of a call whose function identifier is not served (SMCCC).
pub const NOT_SUPPORTED: u64 = u64::MAX;

/// The result of an RMI command: X0 is `status[7:0] | index[15:8]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The command did all of its work.
    Success,
    /// An argument was not what the command takes; nothing changed.
    ErrorInput,
    /// The realm is in the wrong state. The index tells which from
    /// `REC_ENTER`: 0 for NEW, 1 for SYSTEM_OFF; else it is 0.
    ErrorRealm(u8),
    /// The REC is in the wrong state.
    ErrorRec,
    /// An RTT walk ended elsewhere; the index is the level it reached.
    ErrorRtt(u8),
}

impl Status {
    /// The value for X0.
    pub const fn pack(self) -> u64 {
        match self {
            Self::Success => 0,
            Self::ErrorInput => 1,
            Self::ErrorRealm(index) => 2 | (index as u64) << 8,
            Self::ErrorRec => 3,
            Self::ErrorRtt(level) => 4 | (level as u64) << 8,
        }
    }

    /// Reads X0; `None` for a value that RMI 1.0 does not define, among them
    /// [`NOT_SUPPORTED`].
    pub const fn unpack(x0: u64) -> Option<Self> {
        let index = (x0 >> 8) as u8;
        if x0 >> 16 != 0 {
            return None;
        }
        match x0 as u8 {
            0 => Some(Self::Success),
            1 => Some(Self::ErrorInput),
            2 => Some(Self::ErrorRealm(index)),
            3 => Some(Self::ErrorRec),
            4 => Some(Self::ErrorRtt(index)),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    /// As the specification names it, with the index where it has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("SUCCESS"),
            Self::ErrorInput => f.write_str("ERROR_INPUT"),
            Self::ErrorRealm(index) => write!(f, "ERROR_REALM({index})"),
            Self::ErrorRec => f.write_str("ERROR_REC"),
            Self::ErrorRtt(level) => write!(f, "ERROR_RTT({})", *level as i8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for status in [
            Status::Success,
            Status::ErrorInput,
            Status::ErrorRealm(1),
            Status::ErrorRec,
            Status::ErrorRtt(3),
        ] {
            assert_eq!(Status::unpack(status.pack()), Some(status));
        }
        assert_eq!(Status::ErrorRtt(2).pack(), 0x204);
        assert_eq!(Status::unpack(NOT_SUPPORTED), None);
        assert_eq!(Status::unpack(5), None);
    }
}

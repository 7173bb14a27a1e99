//! How a table of calls is written: one row a call, from which its identifier,
//! its type, its names for people and both directions of its registers come.
//!
//! ```text
//! /// What it does.
//! 0xC400_015E RMI_RTT_DESTROY = RttDestroy { rd, ipa, level: i64 } -> [rtt, top];
//! ```
//!
//! Left of `=` stand the function identifier (X0) and the name that the
//! specification gives it; then the variant with its arguments, X1 and on in this
//! order, `u64` where no type is said; then its outputs, X1 and on of the answer
//! beside the status in X0 (PSCI's calls and their like answer in X0 alone).

/// What a message shows of a call: its row, as words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The function identifier, X0 of the call.
    pub function: u64,
    /// Its name in its specification.
    pub name: &'static str,
    /// The names of its arguments, X1 and on.
    pub arguments: &'static [&'static str],
    /// The names of its outputs, X1 and on of the answer.
    pub outputs: &'static [&'static str],
}

/// The type of an argument.
macro_rules! argument {
    () => {
        u64
    };
    ($type:ty) => {
        $type
    };
}

/// Writes a table of calls: an enum with `decode`, `encode`, `info` and `TABLE`,
/// and beside it the module `fid` of its identifiers.
macro_rules! calls {
    (
        $(#[$about:meta])*
        enum $Calls:ident($fid:ty), $prefix:literal, $registers:literal arguments;
        $(
            $(#[$doc:meta])*
            $function:literal $NAME:ident = $Call:ident
                $({ $($argument:ident $(: $type:ty)?),+ })?
                $(-> [$($output:ident),+])?;
        )+
    ) => {
        /// The identifiers of these calls, X0.
        pub mod fid {
            $(
                #[doc = concat!("Of [`super::", stringify!($Calls), "::", stringify!($Call), "`].")]
                pub const $NAME: $fid = $function;
            )+
        }

        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // of fields: the specification's names, as the row says
        pub enum $Calls {
            $(
                $(#[$doc])*
                $Call $({ $($argument: $crate::table::argument!($($type)?)),+ })?,
            )+
        }

        impl $Calls {
            /// Registers behind X0 that may hold arguments.
            pub const ARGUMENTS: usize = $registers;

            /// All rows, in the order of the table.
            pub const TABLE: &'static [$crate::table::Info] = &[$(
                $crate::table::Info {
                    function: $function,
                    name: concat!($prefix, stringify!($NAME)),
                    arguments: &[$($(stringify!($argument)),+)?],
                    outputs: &[$($(stringify!($output)),+)?],
                },
            )+];

            /// The call that X0 and the registers behind it are; `None` when no
            /// row has this identifier. Whether the arguments make sense is for
            /// whoever serves it.
            #[inline(always)]
            pub const fn decode(function: $fid, registers: [u64; $registers]) -> Option<Self> {
                match function {
                    $(
                        $function => {
                            let [$($($argument,)+)? ..] = registers;
                            Some(Self::$Call $({
                                $($argument: $argument as $crate::table::argument!($($type)?)),+
                            })?)
                        }
                    )+
                    _ => None,
                }
            }

            /// X0 and on of this call; registers without an argument are zero.
            #[inline(always)]
            pub const fn encode(self) -> [u64; 1 + $registers] {
                match self {
                    $(
                        Self::$Call $({ $($argument),+ })? => {
                            $crate::table::pad(&[$function, $($($argument as u64),+)?])
                        }
                    )+
                }
            }

            /// Its row.
            pub const fn info(self) -> &'static $crate::table::Info {
                let mut row = 0;
                let [function, ..] = self.encode();
                // Every variant has one.
                while Self::TABLE[row].function != function {
                    row += 1;
                }
                &Self::TABLE[row]
            }
        }

        impl From<$Calls> for [u64; 1 + $registers] {
            #[inline(always)]
            fn from(call: $Calls) -> Self {
                call.encode()
            }
        }
    };
}

pub(crate) use {argument, calls};

/// These words, and zeros behind them.
#[inline(always)]
pub(crate) const fn pad<const N: usize>(words: &[u64]) -> [u64; N] {
    let mut all = [0; N];
    let mut n = 0;
    while n < words.len() {
        all[n] = words[n];
        n += 1;
    }
    all
}

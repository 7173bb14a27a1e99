//! Errors that a person reads.

/// An enum of errors, each with the sentence that says what to do; and of those of
/// others, which have theirs.
macro_rules! errors {
    (
        $(#[$about:meta])*
        $name:ident { $($error:ident: $words:literal,)* } $($other:ident($of:ty),)*
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $words] $error,)*
            $(#[doc = concat!("A [`", stringify!($of), "`].")] $other($of),)*
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self {
                    $(Self::$error => f.write_str($words),)*
                    $(Self::$other(why) => core::fmt::Display::fmt(why, f),)*
                }
            }
        }

        $(impl From<$of> for $name {
            fn from(why: $of) -> Self {
                Self::$other(why)
            }
        })*
    };
}

pub(crate) use errors;

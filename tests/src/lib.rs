//! What the bare-metal programs of this crate share.
//!
//! Each program in `src/bin/` is one flat image with an arm64 Image header. It
//! boots wherever a kernel does: as a guest under Undercroft, on QEMU's virt
//! machine itself, or, for `hostile`, in the place of the EL1 host. It learns
//! where it is from its device tree and prints to the PL011 of `stdout-path`.
//! [`program!`] makes a function its start.
//!
//! | module | holds |
//! |---|---|
//! | [`suite`] | checks, one line each, and their sum |
//! | [`random`] | numbers that a seed repeats |
//! | [`ranges`] | what a range of addresses should be, without a heap |
//! | `bare` | entry, exceptions, console, CPUs, GIC: the image's alone |
//!
//! A program that is built for the development machine says what it is, no more.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
pub mod bare;
pub mod random;
pub mod ranges;
pub mod suite;

/// Makes a `fn()` the program's start; it returns to power the machine off.
/// `$el` is the exception level that it must be entered at.
#[macro_export]
macro_rules! program {
    ($main:path, $el:literal) => {
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn program_main() {
            $main();
        }

        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        static PROGRAM_LEVEL: u64 = $el;

        #[cfg(not(target_os = "none"))]
        fn main() {
            eprintln!(
                "{} is a bare-metal program for aarch64; tests/README.md says how to run it",
                env!("CARGO_BIN_NAME")
            );
        }
    };
}

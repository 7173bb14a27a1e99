//! The EL1 host's image: from EL2's hand to the run loop.
//!
//! EL2 places the image at a multiple of 2 MiB and enters its first byte at EL1
//! with the MMU off and X0 = PA of the machine's device tree. Build it with
//! `-Crelocation-model=pic -Cforce-frame-pointers=yes`; `build.rs` has the link
//! arguments. Natively this is a library, and this program says so.
#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(target_os = "none", no_main)]

#[cfg(target_os = "none")]
mod boot;

#[cfg(not(target_os = "none"))]
fn main() {
    println!(
        "host-loader runs at EL1 under Undercroft; build it for \
         aarch64-unknown-none-softfloat, or use `cargo qemu run`"
    );
}

//! The image file: `undercroft.img`, one arm64 Image that any boot loader for
//! arm64 Linux starts, made of `hyp`, `host-loader` and a table of symbols.
//!
//! ```text
//! 0             hyp's flat binary, from its arm64 Image header to its bss
//! image end     appendix header, 64 bytes, at the next 64 KiB
//!   host_off      host-loader's flat binary, itself with an appendix that
//!                 holds its own symbols
//!   sym_off       hyp's symbols
//! ```

pub mod appendix;
pub mod assemble;
pub mod flat;
pub mod header;
pub mod symbols;

//! Link arguments of the image: only the bare-metal binary has any.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let script = Path::new(&root).join("../linker/host-loader.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    for argument in [
        "-pie",
        "--no-dynamic-linker",
        // The loader at our entry applies R_AARCH64_RELATIVE and nothing else.
        "-znotext",
        "-Bsymbolic",
        "--no-apply-dynamic-relocs",
        // In debug information, code that was left out is nowhere, not at 0, where
        // the image begins.
        "-zdead-reloc-in-nonalloc=.debug_info=0xffffffffffffffff",
        "-zdead-reloc-in-nonalloc=.debug_aranges=0xffffffffffffffff",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

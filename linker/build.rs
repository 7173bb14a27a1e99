//! Links an image by the script of its package's name, position independent: the
//! build script of each. Natively there is nothing to link so.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=../linker/build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let [root, package] = ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME"]
        .map(|name| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}")));
    let script = Path::new(&root).join(format!("../linker/{package}.ld"));
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    for argument in [
        "-pie",
        "--no-dynamic-linker",
        "-znotext",
        "-Bsymbolic",
        "-zmax-page-size=0x10000",
        // An ADRP at a page's end, and the load behind it (Cortex-A53, Arm 843419).
        "--fix-cortex-a53-843419",
        // The relocation loop at the entry (hyp/arm64/src/image.s) applies
        // R_AARCH64_RELATIVE and nothing else.
        "--no-apply-dynamic-relocs",
        // In debug information, code that was left out is nowhere, not at 0, where
        // the image begins.
        "-zdead-reloc-in-nonalloc=.debug_info=0xffffffffffffffff",
        "-zdead-reloc-in-nonalloc=.debug_aranges=0xffffffffffffffff",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

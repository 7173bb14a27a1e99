//! Links the image by `linker/hyp.ld`, position independent.

fn main() {
    let bare_metal = std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../linker/hyp.ld");
    println!("cargo::rerun-if-changed={script}");
    if bare_metal {
        for arg in [
            &format!("-T{script}"),
            "-pie",
            "--no-dynamic-linker",
            "-znotext",
            "-zmax-page-size=0x10000",
            // No instruction may depend on the link address: see the relocation
            // loop in asm.S, which applies R_AARCH64_RELATIVE only.
            "--no-apply-dynamic-relocs",
            // In debug information, code that was left out is nowhere, not at 0, where
            // the image begins.
            "-zdead-reloc-in-nonalloc=.debug_info=0xffffffffffffffff",
            "-zdead-reloc-in-nonalloc=.debug_aranges=0xffffffffffffffff",
        ] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
    }
}

//! How a position-independent image begins, whoever boots it.

/// The head of an image, and the way to its `then` with x19 = the device tree, x20
/// = where the image is, its relocations applied, and exceptions masked. It is
/// entered with the MMU off.
///
/// The arm64 Image header stands at address 0 (Linux,
/// Documentation/arch/arm64/booting.rst); `flags` are its flags. The linker script
/// has `.head.text` first, and defines `__image_size`, `__rela_start` and
/// `__rela_end`. Only R_AARCH64_RELATIVE is applied: the image is linked alone.
#[macro_export]
macro_rules! image_head {
    (flags = $flags:literal, then = $then:literal) => {
        core::arch::global_asm!(
            ".section .head.text, \"ax\"",
            ".global _head",
            "_head:",
            "b 1f",
            ".long 0",
            ".quad 0",                      // text_offset
            ".quad __image_size",
            ".quad {flags}",
            ".quad 0, 0, 0",
            ".ascii \"ARM\\x64\"",
            ".long 0",
            "1: msr daifset, #0xf",
            "mov x19, x0",
            "adrp x20, _head",
            "add x20, x20, :lo12:_head",
            "adrp x0, __rela_start",
            "add x0, x0, :lo12:__rela_start",
            "adrp x1, __rela_end",
            "add x1, x1, :lo12:__rela_end",
            "2: cmp x0, x1",
            concat!("b.hs ", $then),
            "ldp x2, x3, [x0], #16",        // r_offset, r_info
            "ldr x4, [x0], #8",             // r_addend
            "cmp w3, #{relative}",
            "b.ne 2b",
            "add x4, x4, x20",
            "str x4, [x2, x20]",
            "b 2b",
            ".text",
            flags = const $flags,
            relative = const 1027,          // R_AARCH64_RELATIVE
        );
    };
}

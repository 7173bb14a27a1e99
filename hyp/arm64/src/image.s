// What every image begins with, and macros that each uses. Operands: `flags`, the
// header's flags; offsets of a Regime (frame.rs), `ttbr0` and `mair`.
//
// The linker script has .head.text first, and defines __image_size, __rela_start
// and __rela_end.

// The arm64 Image header (Linux, Documentation/arch/arm64/booting.rst).
    .section .head.text, "ax"
    .global _head
_head:
    b       image_entry
    .long   0
    .quad   0                           // text_offset
    .quad   __image_size
    .quad   {flags}
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

// x0 = device tree, MMU and caches off, at any level. Goes on at `primary_entry`
// with exceptions masked, relocated, x19 = device tree, x20 = where the image is.
image_entry:
    msr     daifset, #0xf
    mov     x19, x0
    mov     x29, xzr
    mov     x30, xzr
    adrp    x20, _head
    add     x20, x20, :lo12:_head
    adrp    x0, __rela_start
    add     x0, x0, :lo12:__rela_start
    adrp    x1, __rela_end
    add     x1, x1, :lo12:__rela_end
0:  cmp     x0, x1
    b.hs    primary_entry
    ldp     x2, x3, [x0], #16           // r_offset, r_info
    ldr     x4, [x0], #8                // r_addend
    cmp     w3, #1027                   // R_AARCH64_RELATIVE: it is linked alone
    b.ne    0b
    add     x4, x4, x20
    str     x4, [x2, x20]
    b       0b

// The address of a symbol near by.
    .macro  address register, symbol
    adrp    \register, \symbol
    add     \register, \register, :lo12:\symbol
    .endm

// Loads a Regime at `at` to the registers of this level, and turns the MMU on:
// caches and TLBs hold nothing of before. Clobbers x1 to x4.
    .macro  load_regime at, level, entries
    ldp     x1, x2, [\at, #{ttbr0}]     // TTBR0, TCR
    ldp     x3, x4, [\at, #{mair}]      // MAIR, SCTLR
    ic      iallu
    tlbi    \entries
    dsb     nsh
    isb
    msr     ttbr0_\level, x1
    msr     tcr_\level, x2
    msr     mair_\level, x3
    isb
    msr     sctlr_\level, x4
    isb
    .endm

// X2 to X29 to or from an array of general registers at `at`.
    .macro  each_pair transfer, at
    each_scratch_pair \transfer, \at
    each_kept_pair \transfer, \at
    .endm

// Of these, those that a function may change, and X19.
    .macro  each_scratch_pair transfer, at
    \transfer x2, x3, [\at, #(2 * 8)]
    \transfer x4, x5, [\at, #(4 * 8)]
    \transfer x6, x7, [\at, #(6 * 8)]
    \transfer x8, x9, [\at, #(8 * 8)]
    \transfer x10, x11, [\at, #(10 * 8)]
    \transfer x12, x13, [\at, #(12 * 8)]
    \transfer x14, x15, [\at, #(14 * 8)]
    \transfer x16, x17, [\at, #(16 * 8)]
    \transfer x18, x19, [\at, #(18 * 8)]
    .endm

// And those that it keeps.
    .macro  each_kept_pair transfer, at
    \transfer x20, x21, [\at, #(20 * 8)]
    \transfer x22, x23, [\at, #(22 * 8)]
    \transfer x24, x25, [\at, #(24 * 8)]
    \transfer x26, x27, [\at, #(26 * 8)]
    \transfer x28, x29, [\at, #(28 * 8)]
    .endm

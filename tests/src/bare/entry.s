/*
 * What cannot be written in Rust: the Image header, the way to Rust on the boot
 * CPU and on others, and the vectors. A program runs at the exception level it
 * was entered at, EL1 or EL2.
 */

    .section .head.text, "ax"

/* arm64 Image header (Linux, Documentation/arch/arm64/booting.rst). */
    .global _head
_head:
    b       entry
    .long   0
    .quad   0                       /* text_offset */
    .quad   image_size
    .quad   0xa                     /* little endian, 4K, anywhere */
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

/* x0 = PA of the device tree. MMU off, DAIF masked. */
entry:
    mov     x19, x0
    mov     x29, xzr
    mov     x30, xzr
    msr     spsel, #1
    adrp    x1, {stacks}
    add     x1, x1, :lo12:{stacks}
    mov     x2, #{stack}
    add     sp, x1, x2
    adrp    x20, _head
    add     x20, x20, :lo12:_head   /* load address = relocation bias */

    /* Only R_AARCH64_RELATIVE (1027) can be there: the image is linked alone. */
    adrp    x1, rela_start
    add     x1, x1, :lo12:rela_start
    adrp    x2, rela_end
    add     x2, x2, :lo12:rela_end
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1]            /* r_offset, r_info */
    ldr     x5, [x1, #16]           /* r_addend */
    add     x1, x1, #24
    cmp     w4, #1027
    b.ne    1b
    add     x5, x5, x20
    str     x5, [x3, x20]
    b       1b
2:  mov     x0, xzr
    bl      set_vectors
    mov     x0, x19
    mov     x1, x20
    adrp    x2, image_end
    add     x2, x2, :lo12:image_end
    bl      {boot}
    b       .

/* x0 = this CPU's index, kept in the thread register. */
set_vectors:
    mrs     x2, CurrentEL
    cmp     x2, #8
    b.eq    1f
    adrp    x1, vectors_el1
    add     x1, x1, :lo12:vectors_el1
    msr     vbar_el1, x1
    msr     tpidr_el1, x0
    isb
    ret
1:  adrp    x1, vectors_el2
    add     x1, x1, :lo12:vectors_el2
    msr     vbar_el2, x1
    msr     tpidr_el2, x0
    isb
    ret

/*
 * A further CPU, by PSCI CPU_ON, at the level of the first. x0 = its index; what
 * it loads into the MMU's registers of that level was written by the boot CPU:
 * ttbr0, tcr, mair, sctlr.
 */
    .global secondary_entry
secondary_entry:
    mov     x19, x0
    mov     x29, xzr
    msr     spsel, #1
    bl      translate
    adrp    x1, {stacks}
    add     x1, x1, :lo12:{stacks}
    mov     x2, #{stack}
    madd    x1, x19, x2, x1
    add     sp, x1, x2
    mov     x0, x19
    bl      set_vectors
    mov     x0, x19
    bl      {secondary}
    b       .

/* Turns this CPU's MMU on as the boot CPU's is. */
translate:
    adrp    x1, {registers}
    add     x1, x1, :lo12:{registers}
    ldp     x2, x3, [x1]
    ldp     x4, x5, [x1, #16]
    mrs     x6, CurrentEL
    cmp     x6, #8
    b.eq    1f
    ic      iallu
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     ttbr0_el1, x2
    msr     tcr_el1, x3
    msr     mair_el1, x4
    isb
    msr     sctlr_el1, x5
    isb
    ret
1:  ic      iallu
    tlbi    alle2
    dsb     nsh
    isb
    msr     ttbr0_el2, x2
    msr     tcr_el2, x3
    msr     mair_el2, x4
    isb
    msr     sctlr_el2, x5
    isb
    ret

/*
 * park(x0 = 14 words, x1 = index): turns this CPU off, by SMC; returns 0 when
 * another has turned it on again at `unpark` with the words as context, or
 * PSCI's answer if it was denied.
 */
    .global park
park:
    stp     x19, x20, [x0]
    stp     x21, x22, [x0, #16]
    stp     x23, x24, [x0, #32]
    stp     x25, x26, [x0, #48]
    stp     x27, x28, [x0, #64]
    stp     x29, x30, [x0, #80]
    mov     x2, sp
    stp     x2, x1, [x0, #96]
    mov     w0, #2                  /* PSCI_CPU_OFF */
    movk    w0, #0x8400, lsl #16
    smc     #0
    ret

    .global unpark
unpark:
    mov     x19, x0
    msr     spsel, #1
    bl      translate
    ldp     x2, x0, [x19, #96]
    mov     sp, x2
    bl      set_vectors
    ldp     x29, x30, [x19, #80]
    ldp     x27, x28, [x19, #64]
    ldp     x25, x26, [x19, #48]
    ldp     x23, x24, [x19, #32]
    ldp     x21, x22, [x19, #16]
    ldp     x19, x20, [x19]
    mov     x0, xzr
    ret

/* An exception's frame: x0-x30, elr, spsr, esr, far. x0 = frame, x1 = vector. */
    .macro  vector level, number
    .balign 128
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x1, #\number
    b       exception_\level
    .endm

    .macro  vectors level
    .section .text.vectors, "ax"
    .balign 2048
vectors_\level:
    vector  \level, 0
    vector  \level, 1
    vector  \level, 2
    vector  \level, 3
    vector  \level, 4
    vector  \level, 5
    vector  \level, 6
    vector  \level, 7
    vector  \level, 8
    vector  \level, 9
    vector  \level, 10
    vector  \level, 11
    vector  \level, 12
    vector  \level, 13
    vector  \level, 14
    vector  \level, 15

exception_\level:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_\level
    stp     x30, x2, [sp, #240]
    mrs     x2, spsr_\level
    mrs     x3, esr_\level
    stp     x2, x3, [sp, #256]
    mrs     x2, far_\level
    str     x2, [sp, #272]
    mov     x0, sp
    bl      {exception}
    ldp     x30, x2, [sp, #240]
    msr     elr_\level, x2
    ldr     x2, [sp, #256]
    msr     spsr_\level, x2
    ldp     x28, x29, [sp, #224]
    ldp     x26, x27, [sp, #208]
    ldp     x24, x25, [sp, #192]
    ldp     x22, x23, [sp, #176]
    ldp     x20, x21, [sp, #160]
    ldp     x18, x19, [sp, #144]
    ldp     x16, x17, [sp, #128]
    ldp     x14, x15, [sp, #112]
    ldp     x12, x13, [sp, #96]
    ldp     x10, x11, [sp, #80]
    ldp     x8, x9, [sp, #64]
    ldp     x6, x7, [sp, #48]
    ldp     x4, x5, [sp, #32]
    ldp     x2, x3, [sp, #16]
    ldp     x0, x1, [sp]
    add     sp, sp, #288
    eret
    .endm

    vectors el1
    vectors el2

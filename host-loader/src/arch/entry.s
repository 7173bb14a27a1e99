/*
 * Everything of the host that cannot be written in Rust: the Image header, the
 * way from the entry with the MMU off to Rust with it on, the same for further
 * CPUs, and the exception vectors.
 */

    .section .head.text, "ax"

/* arm64 Image header (Linux Documentation/arch/arm64/booting.rst). */
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

/* x0 = PA of the device tree. MMU off, DAIF masked, EL1h. */
    .global entry
entry:
    mov     x19, x0
    mov     x29, xzr
    mov     x30, xzr
    adrp    x1, boot_stack_top
    add     x1, x1, :lo12:boot_stack_top
    msr     spsel, #1
    mov     sp, x1
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
2:  adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    adrp    x1, {boot_cpu}
    add     x1, x1, :lo12:{boot_cpu}
    adrp    x2, exception_stack_top
    add     x2, x2, :lo12:exception_stack_top
    str     x2, [x1]                /* CpuLocal::exception_stack */
    msr     tpidr_el1, x1
    isb

    mov     x0, x19
    mov     x1, x20
    adrp    x2, image_end
    add     x2, x2, :lo12:image_end
    bl      {early_map}             /* fills EARLY_REGISTERS */

    /* What was just written went past the caches: drop what they hold of it. */
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3
    adrp    x2, image_end
    add     x2, x2, :lo12:image_end
    mov     x1, x20
3:  dc      civac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    3b
    dsb     sy

    adrp    x0, {registers}
    add     x0, x0, :lo12:{registers}
    bl      mmu_on
    mov     x0, x19
    bl      host_main
    b       .

/* x0 = registers (MMU_REGISTERS' layout): ttbr0, tcr, mair, sctlr. */
mmu_on:
    ldp     x1, x2, [x0]
    ldp     x3, x4, [x0, #16]
    ic      iallu
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     ttbr0_el1, x1
    msr     tcr_el1, x2
    msr     mair_el1, x3
    isb
    msr     sctlr_el1, x4
    isb
    ret

/*
 * A further CPU, by PSCI CPU_ON. x0 = PA of its CpuStart: ttbr0, tcr, mair,
 * sctlr, stack top, PA of its CpuLocal; cleaned to memory by its starter.
 */
    .global secondary_entry
secondary_entry:
    mov     x19, x0
    mov     x29, xzr
    msr     spsel, #1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    bl      mmu_on
    ldp     x1, x0, [x19, #32]
    mov     sp, x1
    msr     tpidr_el1, x0
    mov     x30, xzr
    bl      {secondary_main}
    b       .

/*
 * Every exception of the host is its end: interrupts stay masked and are
 * acknowledged where the run loop looks for them. The handler gets x0 =
 * vector number, x1 = the frame: x0-x30, sp, on the CPU's exception stack.
 */
    .macro  vector number
    .balign 128
    msr     tpidr_el0, x0
    mov     x0, #\number
    b       exception
    .endm

    .section .text.vectors, "ax"
    .balign 2048
vectors:
    vector 0
    vector 1
    vector 2
    vector 3
    vector 4
    vector 5
    vector 6
    vector 7
    vector 8
    vector 9
    vector 10
    vector 11
    vector 12
    vector 13
    vector 14
    vector 15

exception:
    msr     tpidrro_el0, x1
    mrs     x1, tpidr_el1
    ldr     x1, [x1]                /* CpuLocal::exception_stack */
    sub     x1, x1, #272
    stp     x2, x3, [x1, #16]
    stp     x4, x5, [x1, #32]
    stp     x6, x7, [x1, #48]
    stp     x8, x9, [x1, #64]
    stp     x10, x11, [x1, #80]
    stp     x12, x13, [x1, #96]
    stp     x14, x15, [x1, #112]
    stp     x16, x17, [x1, #128]
    stp     x18, x19, [x1, #144]
    stp     x20, x21, [x1, #160]
    stp     x22, x23, [x1, #176]
    stp     x24, x25, [x1, #192]
    stp     x26, x27, [x1, #208]
    stp     x28, x29, [x1, #224]
    mov     x2, sp
    stp     x30, x2, [x1, #240]
    mrs     x2, tpidr_el0
    mrs     x3, tpidrro_el0
    stp     x2, x3, [x1]
    mov     sp, x1
    mov     x29, xzr
    bl      {exception_handler}
    b       .

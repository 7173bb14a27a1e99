/*
 * What cannot be written in Rust, but what every image has (hyp/arm64/src/image.s):
 * the way to Rust on the boot CPU and on others, and the vectors. A program runs at
 * the exception level it was entered at, EL1 or EL2.
 */

    .section .head.text, "ax"

/* From image_entry. MMU off. */
primary_entry:
    msr     spsel, #1
    address x1, {stacks}
    mov     x2, #{stack}
    add     sp, x1, x2
    mov     x0, xzr
    bl      set_vectors
    mov     x0, x19
    mov     x1, x20
    address x2, image_end
    bl      {boot}
    b       .

/* x0 = this CPU's index, kept in the thread register. */
set_vectors:
    mrs     x2, CurrentEL
    cmp     x2, #8
    b.eq    1f
    address x1, vectors_el1
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
 * A further CPU, by PSCI CPU_ON, at the level of the first. x0 = its index; the
 * Regime that it loads was written by the boot CPU.
 */
    .global secondary_entry
secondary_entry:
    mov     x19, x0
    mov     x29, xzr
    msr     spsel, #1
    bl      translate
    address x1, {stacks}
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
    address x0, {registers}
    mrs     x1, CurrentEL
    cmp     x1, #8
    b.eq    1f
    load_regime x0, el1, vmalle1
    ret
1:  load_regime x0, el2, alle2
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

/* An exception's Frame begins with X0 to X30. x0 = frame, x1 = vector. */
    .macro  vector level, number
    .balign 128
    sub     sp, sp, #{frame_size}
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
    each_pair stp, sp
    str     x30, [sp, #(30 * 8)]
    mrs     x2, elr_\level
    mrs     x3, spsr_\level
    stp     x2, x3, [sp, #{frame_elr}]
    mrs     x2, esr_\level
    str     x2, [sp, #{frame_esr}]
    mrs     x2, far_\level
    str     x2, [sp, #{frame_far}]
    mov     x0, sp
    bl      {exception}
    ldr     x2, [sp, #{frame_elr}]
    ldr     x3, [sp, #{frame_spsr}]
    msr     elr_\level, x2
    msr     spsr_\level, x3
    ldr     x30, [sp, #(30 * 8)]
    each_pair ldp, sp
    ldp     x0, x1, [sp]
    add     sp, sp, #{frame_size}
    eret
    .endm

    vectors el1
    vectors el2

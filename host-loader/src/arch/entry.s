/*
 * Everything of the host that cannot be written in Rust, but what every image has
 * (hyp/arm64/src/image.s): the way to Rust with the MMU on, the same for further
 * CPUs, and the exception vectors.
 */

    .section .head.text, "ax"

/* From image_entry. MMU off, EL1h. */
primary_entry:
    msr     spsel, #1
    address x1, boot_stack_top
    mov     sp, x1
    address x1, vectors
    msr     vbar_el1, x1
    address x1, {boot_cpu}
    address x2, exception_stack_top
    str     x2, [x1, #{exception_stack}]
    msr     tpidr_el1, x1
    isb

    mov     x0, x19
    bl      {early_map}             /* fills REGISTERS */

    /* What was just written went past the caches: drop what they hold of it. */
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3
    ldr     x2, [x20, #16]          /* image_size: the tables stand at the end */
    add     x2, x20, x2
    mov     x1, x20
3:  dc      civac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    3b
    dsb     sy

    address x0, {registers}
    load_regime x0, el1, vmalle1
    mov     x0, x19
    bl      host_main
    b       .

/*
 * A further CPU, by PSCI CPU_ON. x0 = PA of its CpuStart, which its starter has
 * cleaned to memory.
 */
    .global secondary_entry
secondary_entry:
    mov     x19, x0
    mov     x29, xzr
    msr     spsel, #1
    address x1, vectors
    msr     vbar_el1, x1
    add     x0, x19, #{start_regime}
    load_regime x0, el1, vmalle1
    ldr     x1, [x19, #{start_stack}]
    mov     sp, x1
    ldr     x0, [x19, #{start_local}]
    msr     tpidr_el1, x0
    mov     x30, xzr
    bl      {secondary_main}
    b       .

/*
 * Every exception of the host is its end: interrupts stay masked and are
 * acknowledged where the run loop looks for them. The handler gets x0 =
 * vector number, x1 = the Frame, on the CPU's exception stack.
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
    ldr     x1, [x1, #{exception_stack}]
    sub     x1, x1, #{frame_size}
    each_pair stp, x1
    mov     x2, sp
    stp     x30, x2, [x1, #(30 * 8)] /* Frame::sp is behind X30 */
    mrs     x2, tpidr_el0
    mrs     x3, tpidrro_el0
    stp     x2, x3, [x1]
    mov     sp, x1
    mov     x29, xzr
    bl      {exception_handler}
    b       .

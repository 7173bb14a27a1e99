// A realm of two vCPUs that interrupt each other, with both timers on. Position
// independent, at most 4 KiB, MMU off.
//
// In: x0 this vCPU's index, x1 its memory (IPA of zeros, 1 KiB for each vCPU), x2 the
// device in the shared half, x3 rounds of 16 SGIs, x4 interrupts of each timer.
//
// A vCPU's memory: its SGIs in all, its interrupts by INTID (INTIDS words), interrupts
// that had no cause, and whether it is ready.
//
// The device: +0x08 lowers the level-sensitive line; +0x20 no more interrupts are raised;
// +0x28 reads 1 when none is left; +0x30 is read to wait; +0x40 interrupts without cause;
// +0x48 SGIs sent; +0x50 an exception; +0x100 on: interrupts by INTID.
//
// Each timer fires once when it is set going, which is done where something is sent or
// waited for: so a slow machine does nothing but its interrupts.
//
// The handler uses x0 to x8, all else x9 and above: x18 interrupts of each timer, x19 index,
// x20 device, x21 own memory, x22 the other's, x23 redistributor, x24 distributor, x26 ticks
// of a timer, x27 INTID, x28 rounds left, x29 SGIs sent.
    .set    INTIDS, {INTIDS}
    .balign 4096
    .global host_lrs_code
host_lrs_code:
    mov     x19, x0
    mov     x20, x2
    mov     x28, x3
    mov     x18, x4
    mov     x29, xzr
    eor     x9, x0, #1
    add     x21, x1, x0, lsl #10
    add     x22, x1, x9, lsl #10
    adr     x9, host_lrs_code
    add     x9, x9, #0x800
    msr     vbar_el1, x9
    isb

    movz    x9, #0x0100, lsl #16
    sub     x24, x20, x9                    // GICD
    add     x23, x24, #0xa0, lsl #12
    add     x23, x23, x19, lsl #17          // GICR
    ldr     w9, [x23, #0x14]                // WAKER
    bic     w9, w9, #2
    str     w9, [x23, #0x14]
1:  ldr     w9, [x23, #0x14]
    tbnz    w9, #2, 1b
    add     x23, x23, #0x10, lsl #12        // SGI_base
    mov     w9, #-1
    str     w9, [x23, #0x80]                // IGROUPR0
    movz    w9, #0x4800, lsl #16
    movk    w9, #0xffff
    str     w9, [x23, #0x100]               // ISENABLER0: SGIs, 27, 30
    ldr     w10, [x23, #0x100]
    cmp     w9, w10
    b.ne    failed
    cbnz    x19, 2f
    mov     w9, #0x12
    str     w9, [x24]                       // CTLR: ARE, Group 1
    mov     w9, #-1
    str     w9, [x24, #0x84]                // IGROUPR1
    movz    w9, #2, lsl #16
    movz    w10, #0xc08
    str     w9, [x24, x10]                  // ICFGR2: 40 is edge-triggered
    movz    x10, #0x6140
    str     xzr, [x24, x10]                 // IROUTER40: the first vCPU
    add     x10, x10, #8
    mov     x9, #1
    str     x9, [x24, x10]                  // IROUTER41: the second
    mov     w9, #0x300
    str     w9, [x24, #0x104]               // ISENABLER1: 40 and 41
2:  mov     x9, #0xff
    msr     icc_pmr_el1, x9
    mov     x9, #1
    msr     icc_igrpen1_el1, x9
    isb

    str     x9, [x21, #(8 + 8 * INTIDS + 8)]
3:  ldr     x9, [x20, #0x30]
    ldr     x9, [x22, #(8 + 8 * INTIDS + 8)]
    cbz     x9, 3b

    mrs     x26, cntfrq_el0
    mov     x9, #4000
    udiv    x26, x26, x9
    msr     daifclr, #2

    // All SGIs to the other, then until it has taken them all.
4:  bl      timers
    mov     x27, xzr
5:  lsl     x9, x27, #24
    eor     x11, x19, #1
    mov     x10, #1
    lsl     x10, x10, x11
    orr     x9, x9, x10
    msr     icc_sgi1r_el1, x9
    isb
    add     x29, x29, #1
    add     x27, x27, #1
    cmp     x27, #16
    b.lo    5b
6:  msr     daifset, #2
    ldr     x9, [x22]
    cmp     x9, x29
    b.hs    7f
    bl      timers
    wfi
    msr     daifclr, #2
    b       6b
7:  msr     daifclr, #2
    subs    x28, x28, #1
    b.ne    4b

    // As many from the other, and of the timers.
8:  msr     daifset, #2
    ldr     x9, [x21]
    cmp     x9, x29
    b.lo    9f
    ldr     x9, [x21, #(8 + 8 * 27)]
    cmp     x9, x18
    b.lo    9f
    ldr     x9, [x21, #(8 + 8 * 30)]
    cmp     x9, x18
    b.hs    10f
9:  bl      timers
    wfi
    msr     daifclr, #2
    b       8b

    // No timer's interrupt is on its way when its output is low and the host has seen that.
10: msr     cntv_ctl_el0, xzr
    msr     cntp_ctl_el0, xzr
    isb
    str     xzr, [x20, #0x20]
    msr     daifclr, #2
11: ldr     x9, [x20, #0x28]
    cbz     x9, 11b
    msr     daifset, #2

    mov     x27, xzr
    add     x10, x21, #8
    add     x11, x20, #0x100
12: ldr     x9, [x10, x27, lsl #3]
    str     x9, [x11, x27, lsl #3]
    add     x27, x27, #1
    cmp     x27, #INTIDS
    b.lo    12b
    ldr     x9, [x21, #(8 + 8 * INTIDS)]
    str     x9, [x20, #0x40]
    str     x29, [x20, #0x48]
    movz    x0, #0x0002
    movk    x0, #0x8400, lsl #16
    smc     #0

    // Sets those timers going that have fired.
timers:
    mov     x10, #1
    mrs     x9, cntv_ctl_el0
    tbnz    x9, #0, 13f
    mrs     x9, cntvct_el0
    add     x9, x9, x26
    msr     cntv_cval_el0, x9
    msr     cntv_ctl_el0, x10
13: mrs     x9, cntp_ctl_el0
    tbnz    x9, #0, 14f
    mrs     x9, cntpct_el0
    add     x9, x9, x26
    msr     cntp_cval_el0, x9
    msr     cntp_ctl_el0, x10
14: isb
    ret

failed:
    mov     x9, #-1
    str     x9, [x20, #0x50]
    b       .

    .org    host_lrs_code + 0xa00           // synchronous, of this level
    mrs     x9, esr_el1
    str     x9, [x20, #0x50]
    b       .
    .org    host_lrs_code + 0xa80           // IRQ
    b       handler
    .org    host_lrs_code + 0xc00
handler:
    mrs     x0, icc_iar1_el1
    and     x1, x0, #0xffffff
    cmp     x1, #1020
    b.hs    24f                             // gone meanwhile
    cmp     x1, #INTIDS
    b.hs    failed
    add     x2, x21, #8
    ldr     x3, [x2, x1, lsl #3]
    add     x3, x3, #1
    str     x3, [x2, x1, lsl #3]
    cmp     x1, #27
    b.eq    20f
    cmp     x1, #30
    b.eq    21f
    cmp     x1, #41
    b.eq    22f
    cmp     x1, #16
    b.hs    23f
    ldr     x3, [x21]
    add     x3, x3, #1
    str     x3, [x21]
    b       23f
20: mrs     x4, cntv_ctl_el0
    msr     cntv_ctl_el0, xzr
    isb
    b       25f
21: mrs     x4, cntp_ctl_el0
    msr     cntp_ctl_el0, xzr
    isb
25: tbnz    x4, #2, 23f
    ldr     x3, [x21, #(8 + 8 * INTIDS)]
    add     x3, x3, #1
    str     x3, [x21, #(8 + 8 * INTIDS)]
    b       23f
22: str     xzr, [x20, #0x08]
23: msr     icc_eoir1_el1, x0
    isb
24: eret
    .org    host_lrs_code + 0x1000

// All assembly of the EL2 image but what every image has (arm64/src/image.s) and
// single instructions (arm64::instr): the entries of the boot CPU and of the
// others, the vectors, and the switch to a lower exception level and back.

// Names of newer registers are known; the code is Armv8.0's.
    .arch   armv9.4-a

// ---------------------------------------------------------------------------
// Control registers of EL2 that newer CPUs have beside SCTLR_EL2 and TCR_EL2: all
// that they add is off. Out of reset they hold anything. Clobbers x6.
    .macro  newer_controls
    mrs     x6, id_aa64mmfr3_el1
    tst     x6, #0xf                    // TCRX
    b.eq    .Lnewer1_\@
    msr     tcr2_el2, xzr
.Lnewer1_\@:
    tst     x6, #0xf0                   // SCTLRX
    b.eq    .Lnewer2_\@
    msr     sctlr2_el2, xzr
.Lnewer2_\@:
    mrs     x6, id_aa64pfr1_el1
    tst     x6, #(0xf << 44)            // GCS
    b.eq    .Lnewer3_\@
    msr     gcscr_el2, xzr
.Lnewer3_\@:
    isb
    .endm

// ---------------------------------------------------------------------------
// Sets HCR_EL2 while no access is under way: on some CPUs its translation would be
// another's (errata.rs, HcrApart).
    .macro  set_hcr to
    dsb     nsh
    msr     hcr_el2, \to
    isb
    .endm

// ---------------------------------------------------------------------------
// The boot CPU, from image_entry: sets up a stack and the vectors of the exception
// level it finds itself at.
    .section .head.text, "ax"
primary_entry:
    mrs     x0, CurrentEL
    cmp     x0, #(2 << 2)
    b.ne    2f                          // Rust says why this will not do
    // HCR_EL2: RW, E2H and TGE clear; AMO, so that a system error from before is EL2's
    // to pass over when it takes any.
    ldr     x0, =((1 << 31) | (1 << 5))
    set_hcr x0
    ldr     x0, =0x30c50830             // SCTLR_EL2: RES1, MMU and caches off
    msr     sctlr_el2, x0
    msr     tpidr_el2, xzr
    newer_controls
    address x0, vectors
    msr     vbar_el2, x0
    isb
2:  msr     spsel, #1
    address x0, __boot_stack_top
    mov     sp, x0
    mov     x0, x19
    mov     x1, x20
    bl      primary_start
3:  wfe
    b       3b

// ---------------------------------------------------------------------------
// A CPU that was started, x0 = its `Pe`; or, with x1 = where it goes on in Rust,
// the boot CPU when it takes up its own tables and stack.
    .global secondary_entry
secondary_entry:
    ldr     x1, [x0, #{pe_entry}]
    .global take_up
take_up:
    msr     daifset, #0xf
    mov     x20, x1
    mov     x19, x0
    ldr     x0, =((1 << 31) | (1 << 5)) // as at the image's entry
    set_hcr x0
    newer_controls
    add     x0, x19, #{pe_regime}
    load_regime x0, el2, alle2
    address x0, vectors
    msr     vbar_el2, x0
    msr     tpidr_el2, x19
    isb
    msr     spsel, #1
    ldr     x0, [x19, #{pe_stack}]
    mov     sp, x0
    mov     x29, xzr
    mov     x30, xzr
    mov     x0, x19
    blr     x20
4:  wfe
    b       4b

// ---------------------------------------------------------------------------
// EL2's vectors.
//
// From EL2 itself: but for the guarded routines below, nothing is expected, so
// the state goes to the emergency stack (the fault may be the stack's) and Rust
// reports.
    .macro  from_el2 kind
    .balign 0x80
    report  \kind
    .endm

    .macro  report kind
    msr     tpidr_el0, x0               // the guest's; it will not run again
    mrs     x0, tpidr_el2
    cbz     x0, 5f
    ldr     x0, [x0, #{pe_emergency}]
    b       6f
5:  address x0, boot_emergency_top
6:  msr     sp_el0, x0
    mov     x0, #\kind
    b       fatal
    .endm

// From a lower level: SP is the address of its `Gprs` (arm64::frame), which get
// X0 to X30.
    .macro  from_lower kind
    .balign 0x80
    stp     x0, x1, [sp]
    each_pair stp, sp
    str     x30, [sp, #(30 * 8)]
    .if     \kind == 0
    ldp     x2, x1, [sp, #{gprs_stack}]
    cbnz    x1, at_vector
    .endif
    mov     x0, #\kind
    b       leave_lower
    .endm

// The same on a PE that has steps to take.
    .macro  from_lower_by_steps kind
    .balign 0x80
    stp     x0, x1, [sp]
    each_pair stp, sp
    str     x30, [sp, #(30 * 8)]
    mov     x4, #\kind
    b       steps
    .endm

// A table: what stands in it for what comes from a lower level.
    .macro  table lower
    .balign 0x80
    b       guarded_abort               // synchronous, on SP_EL0
    from_el2 1
    from_el2 2
    .balign 0x80
    b       guarded_error_taken         // system error, on SP_EL0
    from_el2 0
    from_el2 1
    from_el2 2
    from_el2 3
    .rept   2
    \lower  0
    \lower  1
    \lower  2
    \lower  3
    .endr
    .endm

    .text
    .balign 0x800
    .global vectors
vectors:
    table   from_lower
    .balign 0x800
    .global vectors_with_steps
vectors_with_steps:
    table   from_lower_by_steps

// x4 = kind. What the CPU predicts by is forgotten before any branch that it might
// foretell by a lower level's; then as `from_lower`. The word is a
// cpu::speculation::Steps.
steps:
    mrs     x5, tpidr_el2
    ldr     x5, [x5, #{pe_steps}]
    tbnz    x5, #31, 3f
    tbnz    x5, #8, 2f
    ands    x3, x5, #0xff
    b.eq    4f
1:  b       . + 4                       // so many branches, and no other, are its history
    subs    x3, x3, #1
    b.ne    1b
    dsb     nsh
    isb
    b       4f
2:  hint    #22                         // clrbhb
    isb
    b       4f
3:  mov     w0, w5
    smc     #0                          // keeps all but x0 to x3
4:  mov     x0, x4
    cbnz    x0, leave_by_steps
    ldp     x2, x1, [sp, #{gprs_stack}]
    cbnz    x1, at_vector_by_steps
    b       leave_by_steps

// ---------------------------------------------------------------------------
// What the compiler calls to copy or fill more than 32 bytes: it may store no unaligned
// words. That of its own library takes three times as long for what is aligned.

// memcpy(x0 = to, x1 = from, x2 = bytes) -> to
    .global memcpy
memcpy:
    mov     x3, x0
    eor     x4, x0, x1
    tst     x4, #7
    b.ne    3f
5:  tst     x3, #7                      // bytes, to where words begin
    b.eq    1f
    cbz     x2, 4f
    ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       5b
1:  subs    x2, x2, #16
    b.lo    2f
    ldp     x4, x5, [x1], #16
    stp     x4, x5, [x3], #16
    b       1b
2:  tbz     x2, #3, 0f
    ldr     x4, [x1], #8
    str     x4, [x3], #8
0:  and     x2, x2, #7
3:  cbz     x2, 4f
    ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       3b
4:  ret

// memset(x0 = to, w1 = byte, x2 = bytes) -> to
    .global memset
memset:
    mov     x3, x0
    and     x4, x1, #0xff
    orr     x4, x4, x4, lsl #8
    orr     x4, x4, x4, lsl #16
    orr     x4, x4, x4, lsl #32
5:  tst     x3, #7                      // bytes, to where words begin
    b.eq    1f
    cbz     x2, 4f
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       5b
1:  subs    x2, x2, #64
    b.lo    2f
    stp     x4, x4, [x3], #16
    stp     x4, x4, [x3], #16
    stp     x4, x4, [x3], #16
    stp     x4, x4, [x3], #16
    b       1b
2:  add     x2, x2, #64
0:  subs    x2, x2, #8
    b.lo    0f
    str     x4, [x3], #8
    b       0b
0:  and     x2, x2, #7
3:  cbz     x2, 4f
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       3b
4:  ret

// ---------------------------------------------------------------------------
// Guarded routines (memory/guarded.rs): each returns 0, or 1 when an access in it
// met an external abort, at once or late. They run on SP_EL0, whose value they leave
// alone: so an abort in them comes to a vector of its own, where registers are
// free to use, and no stack is.
guarded_begin:

// EL2's own system error is taken before, and is not taken for the routine's.
    .macro  guarded
    esb
    msr     spsel, #0
    .endm

// guarded_copy(x0 = to, x1 = from, x2 = bytes)
    .global guarded_copy
guarded_copy:
    guarded
    orr     x3, x0, x1
    tst     x3, #7
    b.ne    2f
1:  cmp     x2, #64
    b.lo    4f
    ldp     x3, x4, [x1], #16
    ldp     x5, x6, [x1], #16
    ldp     x7, x8, [x1], #16
    ldp     x9, x10, [x1], #16
    stp     x3, x4, [x0], #16
    stp     x5, x6, [x0], #16
    stp     x7, x8, [x0], #16
    stp     x9, x10, [x0], #16
    sub     x2, x2, #64
    b       1b
4:  subs    x2, x2, #16
    b.lo    0f
    ldp     x3, x4, [x1], #16
    stp     x3, x4, [x0], #16
    b       4b
0:  tbz     x2, #3, 0f
    ldr     x3, [x1], #8
    str     x3, [x0], #8
0:  and     x2, x2, #7
2:  cbz     x2, guarded_done
    ldrb    w3, [x1], #1
    strb    w3, [x0], #1
    sub     x2, x2, #1
    b       2b

// guarded_exit(x0 = RecExit of the host's, x1 = the exit's words, x2 = the vCPU's)
    .global guarded_exit
guarded_exit:
    guarded
    ldp     x3, x4, [x1]
    ldp     x5, x7, [x1, #16]
    str     x3, [x0, #{exit_reason}]
    stp     x4, x5, [x0, #{exit_esr}]
    str     x7, [x0, #({exit_esr} + 16)]
    ldp     x3, x4, [x1, #32]
    ldp     x5, x7, [x1, #48]
    add     x6, x0, #{exit_gprs}
    stp     x3, x4, [x6]
    stp     x5, x7, [x6, #16]
    .set    zeroed, 32                  // X4 and on, what follows X30, gicv3_hcr
    .rept   14
    stp     xzr, xzr, [x6, #zeroed]
    .set    zeroed, zeroed + 16
    .endr
    str     xzr, [x6, #zeroed]
    add     x6, x0, #{exit_misr}        // and gicv3_vmcr
    stp     xzr, xzr, [x6]
    ldp     x3, x4, [x2]
    ldp     x5, x7, [x2, #16]
    add     x6, x0, #{exit_timers}
    stp     x3, x4, [x6]
    stp     x5, x7, [x6, #16]
    ldp     x3, x4, [x2, #32]
    ldp     x5, x7, [x2, #48]
    add     x6, x0, #{exit_ripas}
    stp     x3, x4, [x6]
    str     x5, [x6, #16]
    str     x7, [x0, #{exit_imm}]
    ldp     x3, x4, [x2, #64]
    add     x6, x0, #{exit_elr}
    stp     x3, x4, [x6]
    str     xzr, [x6, #16]              // pmu_ovf_status
    b       guarded_done

// guarded_zero(x0 = at, x1 = bytes), multiples of 64
    .global guarded_zero
guarded_zero:
    guarded
1:  cbz     x1, guarded_done
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    sub     x1, x1, #64
    b       1b

// guarded_touch(x0 = begin, x1 = end): a word of each 4 KiB stays what it is
    .global guarded_touch
guarded_touch:
    guarded
1:  cmp     x0, x1
    b.hs    guarded_done
    ldr     x2, [x0]
    str     x2, [x0]
    add     x0, x0, #0x1000
    b       1b

// guarded_read32(x0 = register, x1 = where its value goes)
    .global guarded_read32
guarded_read32:
    guarded
    ldr     w2, [x0]
    str     w2, [x1]
    b       guarded_done

// guarded_clean(x0 = first line, x1 = end, x2 = bytes of a line)
    .global guarded_clean
guarded_clean:
    guarded
1:  cmp     x0, x1
    b.hs    0f
    dc      civac, x0
    add     x0, x0, x2
    b       1b
0:  b       guarded_done

// guarded_is_there(x0 = address) -> PAR_EL1 of both stages, for a read of EL1; 1 (F)
// after an external abort. Changes x0, x3 and x4 alone.
    .global guarded_is_there
guarded_looks:
guarded_is_there:
    msr     spsel, #0
    at      s12e1r, x0
    isb
    mrs     x0, par_el1
    msr     spsel, #1
    ret

// guarded_translate(x0 = address, x1 = where PAR_EL1 goes, x2 = a `Look`). The walk
// goes through a guest's tables, which may lie where no memory answers.
    .global guarded_translate
guarded_translate:
    guarded
    tbnz    x2, #2, 4f
    tbnz    x2, #1, 2f
    tbnz    x2, #0, 1f
    at      s1e1r, x0
    b       5f
1:  at      s1e1w, x0
    b       5f
2:  tbnz    x2, #0, 3f
    at      s1e0r, x0
    b       5f
3:  at      s1e0w, x0
    b       5f
4:  at      s12e1r, x0
guarded_looks_end:
5:  isb
    mrs     x2, par_el1
    str     x2, [x1]

// What an access met late comes here, and is still the routine's. A vCPU's turn ends
// here too, by guarded_exit, before another PE may have it: TLB and cache maintenance that
// its guest has begun is completed by a DSB of this PE alone, and the guest's own may come
// on that other.
guarded_done:
    dsb     sy
    esb
    isb
    msr     spsel, #1
    mov     x0, #0
    ret

// guarded_error(): takes the system error that is pending, if it still is; 1 when
// it was. System errors are masked before it, and are not behind it.
    .global guarded_error
guarded_error:
    msr     spsel, #0
    msr     daifclr, #4
    b       guarded_done
guarded_end:

guarded_failed:
    msr     spsel, #1
    mov     x0, #1
    ret

// x3 = where the exception came from; to 0 when that is no guarded routine.
    .macro  is_guarded
    mrs     x3, elr_el2
    adr     x4, guarded_begin
    cmp     x3, x4
    b.lo    0f
    adr     x4, guarded_end
    cmp     x3, x4
    b.hs    0f
    .endm

// A system error on SP_EL0: of a guarded routine, or EL2's own.
guarded_error_taken:
    is_guarded
    b       guarded_fails
0:  report  3

// A synchronous exception on SP_EL0: in a guarded routine, or in a report.
guarded_abort:
    is_guarded
    adr     x4, guarded_looks
    sub     x3, x3, x4
    cmp     x3, #(guarded_looks_end - guarded_looks)
    mov     x4, #0x08                   // 0x10, 0x18: external abort, parity
    mov     x3, #0x0f                   // 0x10 to 0x1f: the same, on a walk too
    csel    x3, x3, x4, lo
    mrs     x4, esr_el2
    bic     x3, x4, x3
    and     x3, x3, #0x3f
    ubfx    x4, x4, #26, #6
    cmp     x4, #0x25
    ccmp    x3, #0x10, #0, eq
    b.ne    0f
guarded_fails:
    adr     x3, guarded_failed
    msr     elr_el2, x3
    eret
    dsb     nsh
    isb
0:  report  0

// ---------------------------------------------------------------------------
// x0 = kind, original x0 in TPIDR_EL0. Builds the `Frame` of
// exception/report.rs, which begins with X0 to X30.
fatal:
    msr     spsel, #0
    sub     sp, sp, #{frame_size}
    each_pair stp, sp
    str     x0, [sp, #{frame_kind}]
    mrs     x0, tpidr_el0
    stp     x0, x1, [sp]
    msr     spsel, #1
    mov     x1, sp
    msr     spsel, #0
    stp     x30, x1, [sp, #(30 * 8)]    // Frame::sp is behind X30
    mrs     x1, elr_el2
    str     x1, [sp, #{frame_pc}]
    mov     x0, sp
    bl      el2_exception
7:  wfe
    b       7b

// ---------------------------------------------------------------------------
// enter_lower(x0 = &mut Gprs) -> kind of the exception that came back.
// X0 to X30 stand first in Gprs; PC and PSTATE are a pair.
    .global enter_lower
enter_lower:
    stp     x29, x30, [sp, #-96]!
    mov     x29, sp
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x29, [x0, #{gprs_stack}]
    mov     sp, x0

    esb                                 // EL2's own is not taken for that level's
    ldp     x1, x2, [x0, #{gprs_pc}]
    msr     elr_el2, x1
    msr     spsr_el2, x2
resume:
    each_kept_pair ldp, sp
resume_scratch:
    each_scratch_pair ldp, sp
    ldr     x30, [sp, #(30 * 8)]
    ldp     x0, x1, [sp]
    eret
    dsb     nsh                         // no speculation past the return
    isb

// A synchronous exception of a level that is served at the vector, for X1, on the
// stack X2: guest::fast::serve says by `Served` how to go on. Rust's functions keep X19
// to X29. System errors stay masked: what waits is still that level's when it goes
// on, and so is what memory does to it that is touched here: the host's page, and the
// vCPU's own state.
    .macro  serve_at_vector
    mov     x19, sp
    mov     x0, sp
    mov     sp, x2
    bl      {serve}
    mov     sp, x19
    tbnz    x0, #0, resume_scratch      // Enter
    cmp     x0, #{enter_changed}
    b.eq    resume                      // else No, or the host: a kind
    .endm

    .macro  leave
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [sp, #{gprs_pc}]
    ldr     x1, [sp, #{gprs_stack}]
    mov     sp, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #96
    .endm

at_vector:
    serve_at_vector
// x0 = kind. A system error that waits is the lower level's, and is taken before any
// of EL2's own can be; from there on EL2 takes its own, and dies of them.
leave_lower:
    esb
    mrs     x1, disr_el1
leave_looked:
    cbnz    x1, leave_with_error
    msr     daifclr, #4
    leave
    ret

// A system error waited: Rust says what came back.
leave_with_error:
    mov     x4, sp                      // &mut Gprs
    leave
    mov     x1, x4
    b       system_error_waited

// The same on a PE that has steps to take.
at_vector_by_steps:
    serve_at_vector
leave_by_steps:
    mrs     x1, tpidr_el2
    ldr     x1, [x1, #{pe_steps}]
    tbz     x1, #32, leave_lower
    dsb     sy                          // without FEAT_RAS, it is pending behind these
    isb
    mrs     x1, isr_el1
    and     x1, x1, #(1 << 8)           // A
    b       leave_looked

    .bss
    .balign 16
    .skip   0x1000
boot_emergency_top:

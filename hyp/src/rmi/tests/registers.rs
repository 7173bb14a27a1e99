//! `REC_READ` and `REC_WRITE`.

use super::*;

#[test]
fn a_write_of_registers_reaches_no_more_of_pstate_than_the_flags() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    run.gprs.x[3] = 33;
    let mut q = [0; 32];
    q[31] = 1 << 127 | 7;
    run.fp.set_q(q);
    (run.el1.sp_el0, run.el1.sp_el1) = (10, 11);
    (run.el1.tcr, run.el1.ttbr0, run.fp_pe) = (12, 13, 0);
    run.el1.ttbr1 = 14;
    let (rec, page) = (h.page(60), h.page(3));
    h.ok(vendor::REC_READ, &[rec, page]);
    // SAFETY: the fake host's page.
    let mut registers: Registers = unsafe { phys::read(page) };
    assert_eq!((registers.x[3], registers.sp), (33, [10, 11]));
    assert_eq!(registers.v[31], [7, 1 << 63]);
    assert_eq!((registers.tcr, registers.ttbr), (12, [13, 14]));
    assert_eq!((registers.pc, registers.pstate), (0x4000_0000, 0x8020_0c05));

    // An instruction that is not over yet leaves step and BTYPE.
    registers.finish = Finish::Done as u64;
    h.write(3, registers);
    h.ok(vendor::REC_WRITE, &[rec, page]);
    assert_eq!(run.gprs.pstate, 0x8020_0c05);
    run.pending = Pending::Abort(Syndrome(0x9200_0006), 0x900_0000);
    run.fp_pe = 0;

    registers.pstate = 0x4000_01c9; // EL2h, Z.
    registers.pc = u64::MAX - 3;
    registers.x[3] = 34;
    registers.sp = [20, 21];
    registers.v[0] = [1, 2];
    (registers.tcr, registers.ttbr[0], registers.sctlr) = (0, 0, 0xff);
    registers.finish = Finish::Done as u64;
    h.write(3, registers);
    h.ok(vendor::REC_WRITE, &[rec, page]);
    assert_eq!(run.gprs.pstate, 0x4000_0005, "no step, no BTYPE, no EL2");
    assert_eq!((run.gprs.pc, run.gprs.x[3]), (u64::MAX - 3, 34));
    assert_eq!((run.el1.sp_el0, run.el1.sp_el1), (20, 21));
    assert_eq!(
        (run.el1.tcr, run.el1.ttbr0, run.el1.sctlr),
        (12, 13, El1::SCTLR_RESET)
    );
    assert_eq!((run.fp.q()[0], run.fp_pe), (2 << 64 | 1, NO_PE));
    assert_eq!(
        h.status(vendor::REC_WRITE, &[rec, page]),
        Status::ErrorRec,
        "done already"
    );
}

#[test]
fn a_write_of_registers_ends_an_abort_as_it_is_told() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    let (rec, page) = (h.page(60), h.page(3));
    h.ok(vendor::REC_READ, &[rec, page]);
    // SAFETY: the fake host's page.
    let mut registers: Registers = unsafe { phys::read(page) };
    registers.finish = Finish::Abort as u64;
    registers.iss = !0;
    registers.far = 0x1234;
    h.write(3, registers);
    h.ok(vendor::REC_WRITE, &[rec, page]);
    assert_eq!(
        run.el1.esr,
        0x25 << 26 | 1 << 25 | 1 << 10 | 1 << 8 | 1 << 6 | 0x3f
    );
    assert_eq!(
        (run.el1.far, run.el1.elr, run.el1.spsr),
        (0x1234, 0x4000_0000, 0x8020_0c05)
    );
    assert_eq!((run.gprs.pc, run.gprs.pstate & 0xf), (0x4000_8200, 5));

    for (finish, iss, fetch, esr) in [
        (Finish::Abort, 0x10, 1, 0x21 << 26 | 1 << 25 | 0x10),
        (Finish::Abort, 0x50, 0, 0x25 << 26 | 1 << 25 | 0x50),
        (Finish::Again, 0x10, 1, 0),
    ] {
        run.pending = Pending::Mmio(Syndrome(0x9200_0006), 0);
        (run.el1.esr, run.gprs.x[0]) = (0, 5);
        (registers.finish, registers.iss, registers.fetch) = (finish as u64, iss, fetch);
        registers.x[0] = 6;
        h.write(3, registers);
        h.ok(vendor::REC_WRITE, &[rec, page]);
        assert_eq!(run.el1.esr, esr);
        let taken = finish != Finish::Again;
        assert_eq!(run.gprs.x[0], if taken { 6 } else { 5 });
        assert_eq!(run.pending, Pending::Nothing);
    }
}

#[test]
fn registers_are_refused_where_they_are_nobodys() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    let (rec, page, rd) = (h.page(60), h.page(3), h.page(1));
    let mut registers = Registers::new_zeroed();
    registers.finish = 3;
    h.write(3, registers);
    for function in [vendor::REC_READ, vendor::REC_WRITE] {
        for args in [
            [rec, page + 8],
            [rec, page + 512],
            [rec, rec],
            [rec, !0x3ff],
            [rd, page],
            [page, page],
            [u64::MAX, page],
        ] {
            assert_eq!(h.status(function, &args), Status::ErrorInput, "{args:x?}");
        }
    }
    assert_eq!(
        h.status(vendor::REC_WRITE, &[rec, page]),
        Status::ErrorInput,
        "no such end"
    );
    h.write(3, Registers::new_zeroed());
    for pending in [
        Pending::Nothing,
        Pending::CpuOn(0, 0, 0),
        Pending::AffinityInfo(0),
    ] {
        run.pending = pending;
        assert_eq!(h.status(vendor::REC_WRITE, &[rec, page]), Status::ErrorRec);
        assert_eq!(run.pending, pending);
    }
    // Running: its granule is counted.
    let granule = h.system.granules.get(rec).unwrap();
    granule.get();
    assert_eq!(h.status(vendor::REC_READ, &[rec, page]), Status::ErrorRec);
    granule.put();
}

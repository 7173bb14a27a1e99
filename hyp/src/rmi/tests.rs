//! The handlers against a fake machine: RAM in a buffer, no CPU behind.
//!
//! A plain guest's life from first to last, the order of refusals, and random
//! hostile hosts: whatever they call, nothing panics, and what they gave away
//! comes back whole.

extern crate std;

use std::vec::Vec;

use ::rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams, index_mpidr};
use ::rmi::run::EnterFlags;
use ::rmi::{NOT_SUPPORTED, Status, fid, psci, rtt, vendor};
use pgtable::Granule;
use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

use ::rmi::registers::{Finish, Registers};
use ::rmi::syndrome::Syndrome;

use super::fake::{Host, RAM};
use super::{Answer, serve};
use crate::cpu::context::El1;
use crate::memory::granule::State;
use crate::memory::phys;
use crate::memory::region::Region;
use crate::realm::Realm;
use crate::rec::{NO_PE, Pending, Rec, Run};

/// The host's RAM, unless more is needed.
const RAM_SIZE: u64 = 8 << 20;

impl Host {
    /// One turn of a call: `None` if there is more of it to be done.
    fn turn(&mut self, function: u64, args: &[u64]) -> Option<Answer> {
        let mut all = [0; 5];
        all[..args.len()].copy_from_slice(args);
        serve(&mut self.cpu, function, all)
    }

    fn call(&mut self, function: u64, args: &[u64]) -> Answer {
        loop {
            if let Some(answer) = self.turn(function, args) {
                return answer;
            }
        }
    }

    fn status(&mut self, function: u64, args: &[u64]) -> Status {
        Status::unpack(self.call(function, args)[0]).expect("a status")
    }

    #[track_caller]
    fn ok(&mut self, function: u64, args: &[u64]) -> Answer {
        let answer = self.call(function, args);
        assert_eq!(answer[0], 0, "{function:#x} {args:x?}");
        answer
    }

    fn state(&self, n: u64) -> State {
        self.cpu.system.granules.get(self.page(n)).unwrap().state()
    }

    fn write<T: IntoBytes>(&self, n: u64, value: T) {
        // SAFETY: the page is the fake host's.
        unsafe { phys::write(self.page(n), value) }
    }

    fn realm_params(&self, vmid: u16, root: u64) -> RealmParams {
        let geometry = self.geometry();
        let mut p = RealmParams::new_zeroed();
        p.flags = (RealmFlags::NONCONF | RealmFlags::EL2_VGIC).bits();
        p.s2sz = 40;
        p.vmid = vmid;
        p.rtt_base = self.page(root);
        p.rtt_level_start = i64::from(geometry.start().get());
        p.rtt_num_start = geometry.root_tables() as u32;
        p
    }

    /// RD at page 1, roots from 16 on (aligned for 16 of them), params at 2.
    fn realm(&mut self) {
        self.ok(fid::RMI_GRANULE_DELEGATE, &[self.page(1)]);
        let roots = self.geometry().root_tables() as u64;
        for n in 0..roots {
            self.ok(fid::RMI_GRANULE_DELEGATE, &[self.page(16 + n)]);
        }
        self.write(2, self.realm_params(1, 16));
        self.ok(fid::RMI_REALM_CREATE, &[self.page(1), self.page(2)]);
    }

    fn rec(&mut self, index: u64, page: u64) {
        let mut p = RecParams::new_zeroed();
        p.flags = RecFlags::RUNNABLE.bits();
        p.mpidr = index_mpidr(index);
        self.write(2, p);
        self.ok(fid::RMI_GRANULE_DELEGATE, &[self.page(page)]);
        self.ok(
            fid::RMI_REC_CREATE,
            &[self.page(1), self.page(page), self.page(2)],
        );
    }
}

/// A vCPU whose last exit was an abort without a syndrome, and its state.
fn aborted(h: &mut Host) -> &'static mut Run {
    h.realm();
    h.rec(0, 60);
    // SAFETY: the fake machine's REC, which nobody runs.
    let run = unsafe { &mut *Rec::at(h.page(60)).run.get() };
    run.pending = Pending::Abort(Syndrome(0x9200_0006), 0x900_0000);
    (run.gprs.pc, run.gprs.pstate) = (0x4000_0000, 0x8020_0c05);
    run.el1.vbar = 0x4000_8000;
    run
}

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
    let granule = h.cpu.system.granules.get(rec).unwrap();
    granule.get();
    assert_eq!(h.status(vendor::REC_READ, &[rec, page]), Status::ErrorRec);
    granule.put();
}

const DESC: u64 =
    rtt::MEMATTR_NORMAL_WB << rtt::DESC_MEMATTR_SHIFT | rtt::DESC_READ | rtt::DESC_WRITE;

#[test]
fn a_plain_guest_from_first_to_last() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        h.realm();
        let rd = h.page(1);
        let g = h.geometry();
        // Tables down to level 3 at IPA 1 GiB, then one page.
        let mut tables = Vec::new();
        for level in g.start().get() + 1..=3 {
            let page = 40 + level as u64;
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
            h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(page), RAM, level as u64]);
            assert_eq!(h.state(page), State::Rtt);
            tables.push((level, page));
        }
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM, 3, h.page(50) | DESC],
        );
        let entry = h.ok(fid::RMI_RTT_READ_ENTRY, &[rd, RAM, 3]);
        assert_eq!(entry[1..4], [3, 1, h.page(50) | DESC]);

        // Mapped memory cannot be given away; unmapped it can.
        assert_eq!(
            h.status(fid::RMI_GRANULE_DELEGATE, &[h.page(50)]),
            Status::ErrorInput
        );
        h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 3]);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(50)]);
        h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(50)]);
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM, 3, h.page(50) | DESC],
        );

        h.rec(0, 60);
        h.rec(1, 61);
        h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
        assert_eq!(
            h.status(fid::RMI_REALM_DESTROY, &[rd]),
            Status::ErrorRealm(0),
            "has RECs"
        );
        h.ok(fid::RMI_REC_DESTROY, &[h.page(60)]);
        h.ok(fid::RMI_REC_DESTROY, &[h.page(61)]);
        if !tables.is_empty() {
            assert_eq!(
                h.status(fid::RMI_REALM_DESTROY, &[rd]),
                Status::ErrorRealm(0),
                "has tables"
            );
        }
        for &(level, page) in tables.iter().rev() {
            let gone = h.ok(fid::RMI_RTT_DESTROY, &[rd, RAM, level as u64]);
            assert_eq!(gone[1], h.page(page));
            assert!(gone[2] > RAM, "top is past it");
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(page)]);
        }
        h.ok(fid::RMI_REALM_DESTROY, &[rd]);
        for page in [1, 16, 60, 61] {
            assert_eq!(h.state(page), State::Delegated);
            h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(page)]);
        }
        let count = h.cpu.system.granules.get(h.page(50)).unwrap().count();
        assert_eq!(
            count, 0,
            "destroying the leaf table let go of what it mapped"
        );
    }
}

#[test]
fn blocks_and_pages_of_them_are_counted_alike() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let rd = h.page(1);
    for (level, page) in [(2, 42), (3, 43)] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
        if level == 2 {
            h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(page), RAM, level]);
        }
    }
    let block = RAM + 0x20_0000;
    let inside = block + 0x5000;
    let give = |h: &mut Host| h.status(fid::RMI_GRANULE_DELEGATE, &[inside]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, RAM, 2, block | DESC]);
    assert_eq!(give(&mut h), Status::ErrorInput, "in a block");
    // Unfolded: pages now.
    h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(43), RAM, 3]);
    assert_eq!(give(&mut h), Status::ErrorInput, "in a page");
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM + 0x5000, 3]);
    assert_eq!(give(&mut h), Status::Success);
    assert_eq!(
        h.status(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, RAM + 0x40_0000, 2, block | DESC]
        ),
        Status::ErrorInput,
        "a granule of it is not the host's"
    );
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[inside]);
    h.ok(
        fid::RMI_RTT_MAP_UNPROTECTED,
        &[rd, RAM + 0x5000, 3, inside | DESC],
    );
    // Folded: a block again.
    let table = h.ok(fid::RMI_RTT_FOLD, &[rd, RAM, 3]);
    assert_eq!(table[1], h.page(43));
    assert_eq!(give(&mut h), Status::ErrorInput);
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 2]);
    assert_eq!(give(&mut h), Status::Success);
    let granules = &h.cpu.system.granules;
    for page in (block..block + 0x20_0000).step_by(0x1000) {
        assert_eq!(granules.get(page).unwrap().count(), 0);
    }
}

/// A gigabyte, of which EL2 would count the first page.
#[test]
fn blocks_that_nobody_can_count_are_refused() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    assert_eq!(h.geometry().start(), pgtable::Level::L1);
    let map = [h.page(1), RAM, 1, RAM | DESC];
    assert_eq!(
        h.status(fid::RMI_RTT_MAP_UNPROTECTED, &map),
        Status::ErrorInput
    );
    assert_eq!(h.granule(0).count(), 0);
}

#[test]
fn tables_that_are_refused_change_no_count() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let (rd, block) = (h.page(1), RAM + 0x20_0000);
    for page in [42, 43] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(42), RAM, 2]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, RAM, 2, block | DESC]);
    // Not where an entry of level 2 begins.
    let create = [rd, h.page(43), RAM + 0x1000, 3];
    assert_eq!(h.status(fid::RMI_RTT_CREATE, &create), Status::ErrorInput);
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 2]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block]);
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[block]);
    // A page is no block, though it is where one could begin.
    h.ok(fid::RMI_RTT_CREATE, &[rd, h.page(43), RAM, 3]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &[rd, RAM, 3, block | DESC]);
    let folded = h.status(fid::RMI_RTT_FOLD, &[rd, RAM, 3]);
    assert!(matches!(folded, Status::ErrorRtt(_)), "{folded:?}");
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, RAM, 3]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block]);
}

/// Without FEAT_S2FWB a block of 32 MiB is cleaned 8 MiB a turn. Its memory
/// stays the guest's until the last.
#[test]
fn large_blocks_take_turns() {
    let size = 32 << 20;
    let mut h = Host::new(Granule::K16, 2 * size);
    h.realm();
    let rd = h.page(1);
    assert_eq!(h.geometry().start(), pgtable::Level::L2);
    let block = RAM + size;
    let inside = block + 5 * h.size;
    let map = [rd, RAM, 2, block | DESC];
    for (function, args, counted) in [
        (fid::RMI_RTT_MAP_UNPROTECTED, &map[..], 0),
        (fid::RMI_RTT_UNMAP_UNPROTECTED, &map[..3], 1),
    ] {
        for _ in 0..3 {
            assert_eq!(h.turn(function, args), None);
            let given = h.status(fid::RMI_GRANULE_DELEGATE, &[inside]);
            if counted == 1 {
                assert_eq!(given, Status::ErrorInput, "not unmapped yet");
            } else {
                assert_eq!(given, Status::Success, "not mapped yet");
                h.ok(fid::RMI_GRANULE_UNDELEGATE, &[inside]);
            }
        }
        let answer = h.turn(function, args).expect("the last turn");
        assert_eq!(answer[0], Status::Success.pack());
    }
    h.ok(fid::RMI_GRANULE_DELEGATE, &[inside]);

    // A realm with blocks in its root ends likewise.
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[inside]);
    h.ok(fid::RMI_RTT_MAP_UNPROTECTED, &map);
    for _ in 0..3 {
        assert_eq!(h.turn(fid::RMI_REALM_DESTROY, &[rd]), None);
        let given = h.status(fid::RMI_GRANULE_DELEGATE, &[inside]);
        assert_eq!(given, Status::ErrorInput, "not cleaned yet");
    }
    h.ok(fid::RMI_REALM_DESTROY, &[rd]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[inside]);
}

/// Every command of the tables at every level, those that no tree has included.
#[test]
fn levels_that_a_tree_has_not_are_refused() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, 64 << 20);
        h.realm();
        let (rd, rtt) = (h.page(1), h.page(40));
        h.ok(fid::RMI_GRANULE_DELEGATE, &[rtt]);
        let start = i64::from(h.geometry().start().get());
        for level in (-5..start).chain(4..9) {
            for ipa in [
                0,
                h.size,
                1 << 30,
                1 << 39,
                (1 << 40) - h.size,
                1 << 40,
                1 << 63,
            ] {
                let (at, page) = (level as u64, RAM | DESC);
                for (function, args) in [
                    (fid::RMI_RTT_MAP_UNPROTECTED, [rd, ipa, at, page]),
                    (fid::RMI_RTT_UNMAP_UNPROTECTED, [rd, ipa, at, 0]),
                    (fid::RMI_RTT_CREATE, [rd, rtt, ipa, at]),
                    (fid::RMI_RTT_DESTROY, [rd, ipa, at, 0]),
                    (fid::RMI_RTT_FOLD, [rd, ipa, at, 0]),
                    (fid::RMI_RTT_READ_ENTRY, [rd, ipa, at, 0]),
                ] {
                    let status = h.status(function, &args);
                    assert_eq!(status, Status::ErrorInput, "{function:#x} {ipa:#x} {level}");
                }
            }
        }
    }
}

/// Between the moment that a granule is the host's again and the one that its
/// block is whole, nothing that holds it becomes a block that nobody counts.
#[test]
fn pages_of_a_block_that_is_not_whole_do_not_fold() {
    let mut h = Host::new(Granule::K4, 16 << 20);
    h.realm();
    let (rd, block) = (h.page(1), RAM + (8 << 20));
    for (n, level) in [(40, 1), (41, 2), (42, 3)] {
        let table = h.page(n);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[table]);
        let made = h.status(fid::RMI_RTT_CREATE, &[rd, table, 0, level]);
        let above = i64::from(h.geometry().start().get()) >= level as i64;
        assert_eq!(made == Status::Success, !above, "level {level}");
    }
    for at in (0..2 << 20).step_by(4096) {
        h.ok(
            fid::RMI_RTT_MAP_UNPROTECTED,
            &[rd, at, 3, (block + at) | DESC],
        );
    }
    // As UNDELEGATE on another CPU leaves it for a moment.
    assert!(h.cpu.system.granules.leave_host(block));
    let folded = h.status(fid::RMI_RTT_FOLD, &[rd, 0, 3]);
    assert!(matches!(folded, Status::ErrorRtt(_)), "{folded:?}");
    h.cpu.system.granules.return_to_host(block);
    h.ok(fid::RMI_RTT_FOLD, &[rd, 0, 3]);
    h.ok(fid::RMI_RTT_UNMAP_UNPROTECTED, &[rd, 0, 2]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[block]);
}

/// Without FEAT_S2FWB a host looks past the caches: memory has the zeros too.
#[test]
fn what_comes_back_is_zero_in_memory() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, 16 << 20);
        let page = h.page(3);
        h.ok(fid::RMI_GRANULE_DELEGATE, &[page]);
        phys::fake::cleaned();
        h.ok(fid::RMI_GRANULE_UNDELEGATE, &[page]);
        let all = [Region::new(page, h.size).expect("no overflow")];
        assert_eq!(phys::fake::cleaned(), all);
    }
}

/// A realm's VMID is another's when the last turn of its end is over, and not
/// before: its root has 16 tables, which take many.
#[test]
fn a_vmid_is_free_when_its_realm_has_ended() {
    let mut h = Host::new(Granule::K16, 16 << 20);
    h.realm();
    let (rd, other) = (h.page(1), h.page(3));
    let roots = h.geometry().root_tables() as u64;
    assert_eq!(roots, 16);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[other]);
    for n in 0..roots {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(64 + n)]);
    }
    h.write(2, h.realm_params(1, 64));
    let params = h.page(2);
    let mut turns = 0;
    while h.turn(fid::RMI_REALM_DESTROY, &[rd]).is_none() {
        turns += 1;
        let again = h.status(fid::RMI_REALM_CREATE, &[other, params]);
        assert_eq!(again, Status::ErrorInput, "after {turns} turns");
        assert_eq!((h.state(1), h.state(16)), (State::Rd, State::Rtt));
    }
    assert!(turns > 8, "{turns}");
    assert_eq!(h.state(16), State::Delegated);
    h.ok(fid::RMI_REALM_CREATE, &[other, params]);
}

#[test]
fn what_comes_back_is_zero() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.write(5, [0xffu8; 4096]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(5)]);
    h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(5)]);
    // SAFETY: the fake host's page.
    let bytes: [u8; 4096] = unsafe { phys::read(h.page(5)) };
    assert_eq!(bytes, [0; 4096]);
}

#[test]
fn arguments_named_twice_are_refused() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(16)]);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(17)]);
    h.write(2, h.realm_params(1, 16));
    let create = |h: &mut Host, rd, params| h.status(fid::RMI_REALM_CREATE, &[rd, params]);
    let (a, b, params) = (h.page(16), h.page(17), h.page(2));
    assert_eq!(
        create(&mut h, a, params),
        Status::ErrorInput,
        "rd is a root"
    );
    assert_eq!(
        create(&mut h, b, params),
        Status::ErrorInput,
        "rd is the other root"
    );
    assert_eq!(create(&mut h, params, params), Status::ErrorInput);
    assert_eq!(
        (h.state(16), h.state(17)),
        (State::Delegated, State::Delegated)
    );
}

#[test]
fn realms_do_not_share_a_vmid() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    for page in [3, 32, 33] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.write(2, h.realm_params(1, 32));
    assert_eq!(
        h.status(fid::RMI_REALM_CREATE, &[h.page(3), h.page(2)]),
        Status::ErrorInput
    );
    h.write(2, h.realm_params(0, 32));
    assert_eq!(
        h.status(fid::RMI_REALM_CREATE, &[h.page(3), h.page(2)]),
        Status::ErrorInput,
        "the host's"
    );
    h.write(2, h.realm_params(2, 32));
    h.ok(fid::RMI_REALM_CREATE, &[h.page(3), h.page(2)]);
}

#[test]
fn recs_come_in_order_and_only_while_new() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let mut p = RecParams::new_zeroed();
    p.mpidr = index_mpidr(1);
    h.write(2, p);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    let args = [h.page(1), h.page(60), h.page(2)];
    assert_eq!(h.status(fid::RMI_REC_CREATE, &args), Status::ErrorInput);
    h.rec(0, 61);
    h.write(2, p);
    h.ok(fid::RMI_REC_CREATE, &args);
    assert_eq!(
        h.status(fid::RMI_REC_ENTER, &[h.page(61), h.page(3)]),
        Status::ErrorRealm(0),
        "NEW"
    );
    h.ok(fid::RMI_REALM_ACTIVATE, &[h.page(1)]);
    assert_eq!(
        h.status(fid::RMI_REALM_ACTIVATE, &[h.page(1)]),
        Status::ErrorRealm(0)
    );
    assert_eq!(
        h.status(fid::RMI_REC_ENTER, &[h.page(60), h.page(3)]),
        Status::ErrorRec,
        "off"
    );
    assert_eq!(
        h.status(fid::RMI_REC_ENTER, &[h.page(61), h.page(61)]),
        Status::ErrorInput
    );
    p.mpidr = index_mpidr(2);
    h.write(2, p);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(62)]);
    let args = [h.page(1), h.page(62), h.page(2)];
    assert_eq!(
        h.status(fid::RMI_REC_CREATE, &args),
        Status::ErrorRealm(0),
        "not NEW"
    );
}

#[test]
fn a_rec_begins_as_its_parameters_say() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    let args = [h.page(1), h.page(60), h.page(2)];
    let mut p = RecParams::new_zeroed();
    p.num_aux = 1;
    h.write(2, p);
    assert_eq!(h.status(fid::RMI_REC_CREATE, &args), Status::ErrorInput);
    p.num_aux = 0;
    p.pc = 0x4000_1234;
    p.gprs = [1, 2, 3, 4, 5, 6, 7, 8];
    h.write(2, p);
    h.ok(fid::RMI_REC_CREATE, &args);
    // SAFETY: the fake machine's REC, which nobody runs.
    let gprs = &unsafe { &*Rec::at(h.page(60)).run.get() }.gprs;
    assert_eq!(
        (gprs.pc, gprs.x[..9].to_vec()),
        (p.pc, std::vec![1, 2, 3, 4, 5, 6, 7, 8, 0])
    );
}

#[test]
fn a_realm_has_no_more_recs_than_it_can_list() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    let most = crate::realm::MAX_RECS as u64;
    for index in 0..most {
        h.rec(index, 100 + index);
    }
    let mut p = RecParams::new_zeroed();
    p.mpidr = index_mpidr(most);
    h.write(2, p);
    h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(60)]);
    let args = [h.page(1), h.page(60), h.page(2)];
    assert_eq!(h.status(fid::RMI_REC_CREATE, &args), Status::ErrorInput);
}

#[test]
fn a_rec_that_runs_is_left_alone() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    h.realm();
    h.rec(0, 60);
    let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
    h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
    let granule = h.cpu.system.granules.get(rec).unwrap();
    granule.get();
    assert_eq!(h.status(fid::RMI_REC_DESTROY, &[rec]), Status::ErrorRec);
    assert_eq!(h.status(fid::RMI_REC_ENTER, &[rec, page]), Status::ErrorRec);
    granule.put();
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(rd) };
    assert_eq!(realm.rec(0), Some(rec));
    h.ok(fid::RMI_REC_DESTROY, &[rec]);
    assert_eq!(realm.rec(0), None, "nobody finds it any more");
}

/// What an entry says must be an answer to the last exit.
#[test]
fn an_entry_answers_what_the_last_exit_asked() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    let (rd, rec, page) = (h.page(1), h.page(60), h.page(3));
    h.ok(fid::RMI_REALM_ACTIVATE, &[rd]);
    let (mmio, sea) = (EnterFlags::EMUL_MMIO, EnterFlags::INJECT_SEA);
    for (pending, flags) in [
        (Pending::CpuOn(1, 0, 0), EnterFlags::empty()),
        (Pending::AffinityInfo(1), EnterFlags::empty()),
        (Pending::Abort(Syndrome(0x9200_0006), 0), mmio),
        (Pending::Nothing, mmio),
        (Pending::Nothing, sea),
    ] {
        run.pending = pending;
        h.write(3, flags.bits());
        let refused = h.status(fid::RMI_REC_ENTER, &[rec, page]);
        assert_eq!(refused, Status::ErrorRec, "{pending:?} {flags:?}");
        assert_eq!(run.pending, pending);
    }
    // SAFETY: the fake machine's realm.
    unsafe { Realm::at(rd) }.set_state(crate::realm::State::SystemOff);
    let ended = h.status(fid::RMI_REC_ENTER, &[rec, page]);
    assert_eq!(ended, Status::ErrorRealm(1));
}

#[test]
fn a_psci_call_is_completed_once_by_a_vcpu_of_its_realm() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let run = aborted(&mut h);
    h.rec(1, 61);
    // Another realm, with a vCPU 1 of its own.
    for page in [4, 32, 33, 62, 63] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(page)]);
    }
    h.write(2, h.realm_params(2, 32));
    h.ok(fid::RMI_REALM_CREATE, &[h.page(4), h.page(2)]);
    for (index, page) in [(0, 62), (1, 63)] {
        let mut p = RecParams::new_zeroed();
        p.mpidr = index_mpidr(index);
        h.write(2, p);
        let args = [h.page(4), h.page(page), h.page(2)];
        h.ok(fid::RMI_REC_CREATE, &args);
    }
    let [caller, target, other] = [60, 61, 63].map(|n| h.page(n));
    // SAFETY: the fake machine's REC, which nobody runs.
    let vcpu = unsafe { Rec::at(target) };
    let on = Pending::CpuOn(index_mpidr(1), 0x4000_0000, 7);
    let info = Pending::AffinityInfo(index_mpidr(1));
    let (done, denied) = (psci::SUCCESS as u64, psci::DENIED as u64);
    vcpu.set_runnable(false);
    run.pending = on;
    for args in [
        [caller, other, done],
        [caller, caller, done],
        [caller, target, psci::ALREADY_ON as u64],
        [caller, target, 1],
        [target, caller, done],
    ] {
        let refused = h.status(fid::RMI_PSCI_COMPLETE, &args);
        assert_eq!(refused, Status::ErrorInput, "{args:x?}");
    }
    for busy in [caller, target] {
        h.cpu.system.granules.get(busy).unwrap().get();
    }
    let args = [caller, target, done];
    assert_eq!(h.status(fid::RMI_PSCI_COMPLETE, &args), Status::ErrorInput);
    h.cpu.system.granules.get(caller).unwrap().put();
    assert_eq!((run.pending, vcpu.runnable()), (on, false));
    // Still on its way out of CPU_OFF.
    h.ok(fid::RMI_PSCI_COMPLETE, &args);
    assert_eq!(
        (run.gprs.x[0] as i64, vcpu.runnable()),
        (psci::ON_PENDING, false)
    );
    h.cpu.system.granules.get(target).unwrap().put();
    for (pending, status, answer, runnable) in [
        (info, done, psci::AFFINITY_OFF, false),
        (on, denied, psci::DENIED, false),
        (on, done, psci::SUCCESS, true),
        (on, done, psci::ALREADY_ON, true),
        (info, done, psci::AFFINITY_ON, true),
    ] {
        run.pending = pending;
        let args = [caller, target, status];
        h.ok(fid::RMI_PSCI_COMPLETE, &args);
        assert_eq!((run.gprs.x[0] as i64, vcpu.runnable()), (answer, runnable));
        assert_eq!(
            h.status(fid::RMI_PSCI_COMPLETE, &args),
            Status::ErrorInput,
            "twice"
        );
    }
    // SAFETY: as above.
    let gprs = &unsafe { &*vcpu.run.get() }.gprs;
    assert_eq!((gprs.pc, gprs.x[0]), (0x4000_0000, 7));
}

#[test]
fn what_is_not_there_says_so() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    for function in [
        fid::RMI_DATA_CREATE,
        fid::RMI_RTT_INIT_RIPAS,
        0xc400_0156,
        0xc600_00ff,
        0,
    ] {
        assert_eq!(h.call(function, &[])[0], NOT_SUPPORTED, "{function:#x}");
    }
    assert_eq!(
        h.call(fid::RMI_VERSION, &[0x1_0000])[..3],
        [0, 0x1_0000, 0x1_0000]
    );
    assert_eq!(
        h.call(fid::RMI_VERSION, &[0x2_0000])[..3],
        [1, 0x1_0000, 0x1_0000]
    );
    assert_eq!(h.ok(fid::RMI_FEATURES, &[1])[1], 0);
    assert_eq!(h.ok(vendor::VERSION, &[])[1], vendor::VERSION_1_0);
    assert_eq!(h.status(vendor::MEMORY_RANGE, &[3]), Status::ErrorInput);
    assert_eq!(
        h.status(vendor::LOG, &[3, RAM + 4000, 200]),
        Status::ErrorInput,
        "over the granule's end"
    );
    assert_eq!(
        h.status(vendor::LOG, &[3, u64::MAX, 256]),
        Status::ErrorInput
    );
}

/// What a guest's or a file's text could hide or forge with is refused, whoever
/// lets it through.
#[test]
fn the_log_takes_plain_text_only() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let mut log = |text: &str| {
        let mut line = [0; 64];
        line[..text.len()].copy_from_slice(text.as_bytes());
        h.write(3, line);
        h.status(vendor::LOG, &[3, RAM + 3 * 0x1000, text.len() as u64])
    };
    for text in ["", "guest a: hello", "naïve 日本語 🙂"] {
        assert_eq!(log(text), Status::Success, "{text}");
    }
    for bad in [
        "\n",
        "\r",
        "\0",
        "\t",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{9b}",
        "\u{ad}",
        "\u{200b}",
        "\u{2028}",
        "\u{2029}",
        "\u{202e}",
        "\u{2066}",
        "\u{feff}",
        "\u{fe0f}",
        "\u{e0041}",
    ] {
        assert_eq!(log(&std::format!("a{bad}b")), Status::ErrorInput, "{bad:?}");
    }
    // The log's UART is the host's here, or there is none.
    assert_eq!(h.status(vendor::LOG_INPUT, &[]), Status::ErrorInput);
}

/// What a call is given. Small numbers name pages, levels and IPAs that meet
/// often enough.
#[derive(Clone, Copy, Debug)]
enum Argument {
    Page(u64),
    Block(u64),
    /// A page, or a block, as it is mapped.
    Mapped(u64),
    Raw(u64),
}

fn argument() -> impl Strategy<Value = Argument> {
    prop_oneof![
        8 => (0u64..24).prop_map(Argument::Page),
        3 => (0u64..5).prop_map(Argument::Raw),
        2 => (0u64..4).prop_map(Argument::Block),
        2 => (0u64..6).prop_map(Argument::Mapped),
        1 => any::<u64>().prop_map(Argument::Raw),
    ]
}

impl Argument {
    fn value(self, h: &Host) -> u64 {
        let block = h.geometry().span(pgtable::Level::L2);
        match self {
            Self::Page(n) => h.page(n),
            Self::Block(n) => n * block,
            Self::Mapped(n) if n & 1 == 0 => h.page(n) | DESC,
            Self::Mapped(n) => (RAM + n / 2 * block) | DESC,
            Self::Raw(value) => value,
        }
    }
}

/// A call, and the turns that the host gives it before it makes another.
fn call() -> impl Strategy<Value = (u64, [Argument; 5], usize)> {
    let functions: Vec<u64> = (fid::RMI_VERSION..=fid::RMI_RTT_SET_RIPAS)
        .filter(|f| *f != fid::RMI_REC_ENTER)
        .chain([fid::RMI_GRANULE_DELEGATE; 12])
        .chain(
            [
                fid::RMI_RTT_CREATE,
                fid::RMI_REALM_CREATE,
                fid::RMI_REC_CREATE,
            ]
            .repeat(4),
        )
        .chain(vendor::VERSION..=vendor::LOG_INPUT)
        .chain(vendor::REC_READ..=vendor::REC_WRITE)
        .collect();
    (
        prop::sample::select(functions),
        prop::array::uniform5(argument()),
        prop_oneof![Just(1usize), 2usize..9, Just(usize::MAX)],
    )
}

#[test]
fn a_granule_without_memory_stays_the_hosts() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        let absent = h.page(3);
        let hole = Region::new(absent + h.size / 2, 64).unwrap();
        phys::fake::make_hole(hole);
        for _ in 0..3 {
            let refused = h.status(fid::RMI_GRANULE_DELEGATE, &[absent]);
            assert_eq!(refused, Status::ErrorInput);
            assert_eq!((h.state(3), h.granule(3).count()), (State::Ns, 0));
        }
        assert!(h.mapped().iter().all(|mapped| *mapped));
        assert_eq!(h.tables(), 0);
        // Its span is whole too: a block may map it.
        let granules = &h.cpu.system.granules;
        assert_eq!(granules.get_block(RAM), granules.span_size() <= RAM_SIZE);
    }
}

#[test]
fn what_the_host_names_and_is_not_there_fails_the_command() {
    let mut h = Host::new(Granule::K4, RAM_SIZE);
    let absent = h.page(3);
    phys::fake::make_hole(Region::new(absent, h.size).unwrap());
    for n in [1, 16, 17, 60] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
    }
    let (rd, rec) = (h.page(1), h.page(60));
    let refused = h.status(fid::RMI_REALM_CREATE, &[rd, absent]);
    assert_eq!(refused, Status::ErrorInput);
    assert_eq!(h.state(1), State::Delegated);
    h.write(2, h.realm_params(1, 16));
    h.ok(fid::RMI_REALM_CREATE, &[rd, h.page(2)]);
    let refused = h.status(fid::RMI_REC_CREATE, &[rd, rec, absent]);
    assert_eq!(refused, Status::ErrorInput);
    let refused = h.status(vendor::LOG, &[3, absent + 8, 5]);
    assert_eq!(refused, Status::ErrorInput);
    assert_eq!(h.granule(3).count(), 0, "no pin is left");
}

#[test]
fn a_hundred_thousand_steps_leave_no_table_behind() {
    for granule in Granule::ALL {
        let mut h = Host::new(granule, RAM_SIZE);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            // xorshift64
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let n = random % h.pages();
            let function = match h.state(n) {
                State::Ns => fid::RMI_GRANULE_DELEGATE,
                _ => fid::RMI_GRANULE_UNDELEGATE,
            };
            h.ok(function, &[h.page(n)]);
        }
        for n in 0..h.pages() {
            if h.state(n) == State::Delegated {
                h.ok(fid::RMI_GRANULE_UNDELEGATE, &[h.page(n)]);
            }
        }
        assert_eq!(h.tables(), 0, "{granule:?}");
    }
}

/// An own realm is ended now and then, in a few turns or to the end.
fn calls() -> impl Strategy<Value = Vec<(u64, [Argument; 5], usize)>> {
    let end = [Argument::Page(1); 5];
    let end = (Just(fid::RMI_REALM_DESTROY), Just(end), 1usize..5);
    prop::collection::vec(prop_oneof![30 => call().boxed(), 1 => end.boxed()], 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// No sequence of calls panics, whatever is left in the middle, and no
    /// granule that the host has back keeps a count or anything of EL2's.
    #[test]
    fn a_hostile_host_gets_nowhere(
        granule in prop::sample::select(&Granule::ALL[..]),
        calls in calls(),
    ) {
        let ram = match granule {
            Granule::K4 => RAM_SIZE,
            Granule::K16 => 64 << 20,
            Granule::K64 => 16 << 20,
        };
        let mut h = Host::new(granule, ram);
        // Something to attack: a realm with a REC, params pages lying about.
        h.realm();
        if granule == Granule::K4 {
            h.rec(0, 20);
        }
        h.write(3, h.realm_params(2, 4));
        let mut p = RecParams::new_zeroed();
        p.mpidr = 1;
        h.write(2, p);
        for (function, args, turns) in calls {
            let args = args.map(|argument| argument.value(&h));
            for _ in 0..turns {
                if let Some(answer) = h.turn(function, &args) {
                    let known = Status::unpack(answer[0]).is_some();
                    prop_assert!(answer[0] == NOT_SUPPORTED || known);
                    break;
                }
            }
        }
        for n in 0..h.pages() {
            let granule = h.cpu.system.granules.get(h.page(n)).unwrap();
            if granule.state() == State::Delegated {
                prop_assert!(h.is_zero(n), "page {n} is delegated and not zero");
                prop_assert_eq!(granule.count(), 0);
            }
        }
    }
}

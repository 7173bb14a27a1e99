//! Realms whose host has their interrupts: what an entry takes and in which order it is
//! loaded, what an exit tells, and what is an exit.

use super::*;
use crate::cpu::gic::{self, gicr};
use crate::guest::exits::synchronous;
use crate::guest::record::{Next, Record};
use crate::guest::vcpu::RunningVcpu;
use ::rmi::run::{ExitReason, RecEnter, RecExit, RecRun};
use arm64::recording::{self, Event};
use arm64::regs::*;
use core::mem::offset_of;
use vgic::{hcr, lr};

const SHARED: u64 = 1 << 39;
const REC: u64 = 60;
const RUN: u64 = 3;
/// List registers of the machine: `ICH_VTR_EL2` with 5 bits of priority, 16 of INTID, TDS.
const COUNT: usize = 4;
const VTR: u64 = 4 << 29 | 4 << 26 | TDS | (COUNT as u64 - 1);
/// ICC_DIR_EL1 has a trap of its own.
const TDS: u64 = 1 << 19;
/// A WFI that was trapped.
const WFI: u64 = 0x01 << 26 | 1 << 25;
const GIVEN: [u64; 4] = [
    lr::PENDING | lr::GROUP1 | lr::EOI | 27,
    0,
    lr::ACTIVE | lr::GROUP1 | 0xa0 << 48 | 40,
    lr::PENDING | lr::ACTIVE | 3,
];

/// Parameters of a realm of RMI 1.0, in page 2.
fn create(h: &mut Host, flags: RealmFlags) -> Status {
    let mut params = h.realm_params(1, 16);
    params.flags = flags.bits();
    (params.num_bps, params.num_wps) = (1, 1);
    h.write(2, params);
    h.status(fid::RMI_REALM_CREATE, &[h.page(1), h.page(2)])
}

/// A machine with such a realm and a vCPU, which runs if it is entered.
fn machine() -> Host {
    recording::reset();
    recording::set(ICH_VTR_EL2, VTR);
    let mut h = Host::new(Granule::K4, 16 << 20);
    for n in [1, 16, 17] {
        h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
    }
    assert_eq!(create(&mut h, RealmFlags::empty()), Status::Success);
    h.rec(0, REC);
    h.ok(fid::RMI_REALM_ACTIVATE, &[h.page(1)]);
    recording::set(ESR_EL2, WFI);
    h
}

fn vcpu(h: &Host) -> &'static mut VcpuState {
    // SAFETY: the fake machine's vCPU, which nobody runs.
    unsafe { &mut *Rec::at(h.page(REC)).state.get() }
}

/// Enters the vCPU with these flags, `gicv3_hcr` and `gicv3_lrs`.
fn enter(h: &mut Host, flags: EnterFlags, hcr: u64, lrs: &[u64]) -> Status {
    let page = h.page(RUN);
    let gic = page + offset_of!(RecEnter, gicv3_hcr) as u64;
    let mut given = [0u64; 17];
    given[0] = hcr;
    given[1..=lrs.len()].copy_from_slice(lrs);
    // SAFETY: the page is the fake host's.
    unsafe {
        phys::write(page, flags.bits());
        phys::write(gic, given);
    }
    h.status(fid::RMI_REC_ENTER, &[h.page(REC), page])
}

/// The word of the exit record at this offset.
fn told(h: &Host, offset: usize) -> u64 {
    let at = h.page(RUN) + (offset_of!(RecRun, exit) + offset) as u64;
    // SAFETY: the page is the fake host's.
    unsafe { phys::read(at) }
}

fn reason(h: &Host) -> u64 {
    told(h, offset_of!(RecExit, exit_reason))
}

#[test]
fn a_realm_without_a_mode_of_undercrofts_own_is_its_hosts() {
    for (flags, made, host_lrs) in [
        (RealmFlags::empty(), true, true),
        (RealmFlags::EL2_VGIC, true, false),
        (RealmFlags::PROTECTED, false, false),
        (RealmFlags::NONCONF, false, false),
        (RealmFlags::SVE, false, false),
        (RealmFlags::LPA2, false, false), // this machine has none
    ] {
        let mut h = Host::new(Granule::K4, 16 << 20);
        for n in [1, 16, 17] {
            h.ok(fid::RMI_GRANULE_DELEGATE, &[h.page(n)]);
        }
        let status = [Status::ErrorInput, Status::Success][usize::from(made)];
        assert_eq!(create(&mut h, flags), status, "{flags:?}");
        if made {
            // SAFETY: the fake machine's realm.
            assert_eq!(unsafe { Realm::at(h.page(1)) }.host_lrs, host_lrs);
        }
    }
}

/// Each check of what a host gives, behind those of the vCPU's state and before that of
/// the answers.
#[test]
fn what_hardware_must_not_get_is_the_recs_error() {
    let mut h = machine();
    let none = EnterFlags::empty();
    let pending = lr::PENDING | 40;
    for (hcr, lrs) in [
        (hcr::EN, &[][..]),
        (1 << 8, &[]),
        (1 << 27, &[]),
        (0, &[lr::HW | pending]),
        (0, &[pending | 1 << 40]),
        (0, &[0, pending | 1 << 48]),
        (0, &[0, 0, lr::ACTIVE | 1020]),
        (0, &[lr::PENDING | 1056]),
        (0, &[0, 0, 0, lr::PENDING | 1 << 16]),
        (0, &[pending, 0, 0, lr::ACTIVE | 40]),
    ] {
        assert_eq!(enter(&mut h, none, hcr, lrs), Status::ErrorRec, "{lrs:x?}");
        let lrs = &vcpu(&h).lrs;
        assert_eq!((lrs.lr, lrs.hcr), ([0; 16], hcr::EN), "nothing is taken");
    }
    // Those that hardware lacks are not looked at.
    let more = [pending, 0, 0, 0, pending | lr::HW];
    assert_eq!(enter(&mut h, none, 0, &more), Status::Success);
    assert_eq!(told(&h, offset_of!(RecExit, gicv3_lrs) + 8 * 4), 0);
    // The extended range is there where ICC_CTLR_EL1 says so.
    recording::set(ICC_CTLR_EL1, 1 << 19);
    assert_eq!(
        enter(&mut h, none, 0, &[lr::PENDING | 1056]),
        Status::Success
    );
    let bad = [lr::HW | pending];
    let odd = EnterFlags::from_bits_retain(1 << 5);
    assert_eq!(enter(&mut h, odd, 0, &bad), Status::ErrorInput);
    // Taken although the answer is none, nothing would be.
    assert_eq!(
        enter(&mut h, EnterFlags::EMUL_MMIO, 0, &GIVEN),
        Status::ErrorRec
    );
    assert_ne!(vcpu(&h).lrs.lr[..4], GIVEN);
    // SAFETY: the fake machine's realm.
    unsafe { Realm::at(h.page(1)) }.set_state(crate::realm::State::SystemOff);
    assert_eq!(enter(&mut h, none, 0, &bad), Status::ErrorRealm(1));
}

/// The interface's own registers, then the list registers, and last what turns it on; and
/// at the exit all is read before it is turned off.
#[test]
fn list_registers_go_in_whole_and_come_out_as_they_stand() {
    let mut h = machine();
    recording::set(ICH_MISR_EL2, 0b1001);
    vcpu(&h).interface.vmcr = 0xf800_0002;
    let mut status = Status::ErrorInput;
    let flags = EnterFlags::TRAP_WFI;
    let host = hcr::UIE | hcr::TDIR;
    let events = recording::of(|| status = enter(&mut h, flags, host, &GIVEN));
    assert_eq!(status, Status::Success);
    let of_interface: Vec<_> = events
        .iter()
        .filter(|event| match event {
            Event::Mrs(name) | Event::Msr(name, _) => name.starts_with("ICH"),
            _ => false,
        })
        .copied()
        .collect();
    let lrs = ["ICH_LR0_EL2", "ICH_LR1_EL2", "ICH_LR2_EL2", "ICH_LR3_EL2"];
    let mut right = Vec::from([
        Event::Mrs("ICH_VTR_EL2"),
        Event::Msr("ICH_VMCR_EL2", 0xf800_0002),
        Event::Msr("ICH_AP0R0_EL2", 0),
        Event::Msr("ICH_AP1R0_EL2", 0),
    ]);
    right.extend(
        lrs.iter()
            .zip(GIVEN)
            .map(|(lr, given)| Event::Msr(lr, given)),
    );
    right.push(Event::Msr("ICH_HCR_EL2", hcr::EN | host));
    right.extend(lrs.map(Event::Mrs));
    right.extend([
        Event::Mrs("ICH_HCR_EL2"),
        Event::Mrs("ICH_MISR_EL2"),
        Event::Msr("ICH_HCR_EL2", 0),
        Event::Mrs("ICH_VMCR_EL2"),
        Event::Mrs("ICH_AP0R0_EL2"),
        Event::Mrs("ICH_AP1R0_EL2"),
    ]);
    assert_eq!(of_interface, right);
    assert_eq!(reason(&h), ExitReason::Sync as u64);
    for (n, given) in GIVEN.into_iter().enumerate() {
        assert_eq!(told(&h, offset_of!(RecExit, gicv3_lrs) + 8 * n), given);
    }
    for (offset, value) in [
        (offset_of!(RecExit, gicv3_hcr), host),
        (offset_of!(RecExit, gicv3_misr), 0b1001),
        (offset_of!(RecExit, gicv3_vmcr), 0xf800_0002),
        (offset_of!(RecExit, gicv3_lrs) + 8 * COUNT, 0),
    ] {
        assert_eq!(told(&h, offset), value, "{offset:#x}");
    }
}

/// Cortex-A53, A57, A72 and A73 have no trap of ICC_DIR_EL1 alone: their TDIR is RES0.
#[test]
fn a_deactivation_traps_on_each_cpu() {
    for (vtr, own) in [(VTR, true), (VTR & !TDS, false)] {
        let mut h = machine();
        let of_cpu = h.cpu.gic;
        recording::set(ICH_VTR_EL2, vtr);
        // SAFETY: a record is behind it, and no GIC.
        let distributor = unsafe { arm64::mmio::Frame::new(0x800_0000) };
        h.cpu.gic = gic::Gic::init(distributor, h.cpu.pe.gicr, of_cpu.ppi);
        for host in [0, hcr::UIE, hcr::TDIR] {
            let mut status = Status::ErrorInput;
            let events =
                recording::of(|| status = enter(&mut h, EnterFlags::TRAP_WFI, host, &GIVEN));
            assert_eq!(status, Status::Success);
            let common = if own || host != hcr::TDIR { 0 } else { hcr::TC };
            let on = Event::Msr("ICH_HCR_EL2", hcr::EN | host | common);
            assert!(events.contains(&on), "{host:#x} {own}");
            assert_eq!(told(&h, offset_of!(RecExit, gicv3_hcr)), host);
        }
    }
}

/// The guest's deactivations that no list register had are told once.
#[test]
fn an_exit_tells_the_count_of_eois_and_the_hosts_bits() {
    let mut h = machine();
    // What is read after it was written: as the guest leaves it.
    let state = vcpu(&h);
    recording::set(ICH_HCR_EL2, hcr::EN | hcr::LRENPIE | 1 << 8 | 3 << 27);
    crate::guest::host_lrs::leave(&h.cpu.gic, state);
    // SAFETY: the page is the fake host's.
    unsafe { crate::guest::host_lrs::write_exit(h.page(RUN), state) }.unwrap();
    let hcr = told(&h, offset_of!(RecExit, gicv3_hcr));
    assert_eq!(hcr, hcr::LRENPIE | 3 << 27);
    let events = recording::of(|| {
        assert_eq!(enter(&mut h, EnterFlags::empty(), 0, &[]), Status::Success);
    });
    assert!(events.contains(&Event::Msr("ICH_HCR_EL2", hcr::EN)));
    assert_eq!(told(&h, offset_of!(RecExit, gicv3_hcr)), 0);
}

/// The output of each timer, as it is against what was told: whether the guest is entered,
/// and whether the virtual timer's interrupt is kept from the PE.
#[test]
fn a_timer_that_rises_or_falls_is_an_exit() {
    for was in [false, true] {
        for is in [false, true] {
            for physical in [false, true] {
                let mut h = machine();
                let state = vcpu(&h);
                let ctl = [1, 5][usize::from(is)];
                if physical {
                    state.told.timers = [was, false];
                    (state.ptimer.ctl, state.ptimer.cval) = (1, 100);
                    recording::set(CNTPCT_EL0, [50, 100][usize::from(is)]);
                } else {
                    state.told.timers = [false, was];
                    state.vtimer.ctl = ctl;
                }
                let events = recording::of(|| {
                    let status = enter(&mut h, EnterFlags::TRAP_WFI, 0, &GIVEN);
                    assert_eq!(status, Status::Success);
                });
                let changed = was != is;
                let right = [ExitReason::Sync, ExitReason::Irq][usize::from(changed)];
                assert_eq!(reason(&h), right as u64, "{was} {is} {physical}");
                let ppi = 1 << 27;
                let kept = events.contains(&Event::Store(gicr::ISACTIVER0, 4, ppi));
                let freed = events.contains(&Event::Store(gicr::ICACTIVER0, 4, ppi));
                assert_eq!((kept, freed), (is && !physical, true));
                let offset = [offset_of!(RecExit, cntv_ctl), offset_of!(RecExit, cntp_ctl)];
                assert_eq!(told(&h, offset[usize::from(physical)]), ctl);
                assert_eq!(vcpu(&h).told.timers.contains(&true), is);
                assert_eq!(told(&h, offset_of!(RecExit, gicv3_lrs)), GIVEN[0]);
                // CNTHP stands in for a physical timer that is yet to rise.
                let set = events.contains(&Event::Msr("CNTHP_CTL_EL2", 1));
                assert_eq!(set, physical && !is);
                // And once it is told, the guest goes on.
                enter(&mut h, EnterFlags::TRAP_WFI, 0, &GIVEN);
                assert_eq!(reason(&h), ExitReason::Sync as u64);
            }
        }
    }
}

/// A vCPU that comes out before it runs, for whatever reason, keeps what it was given.
#[test]
fn what_did_not_run_is_given_back() {
    let mut h = machine();
    h.ok(vendor::KICK, &[h.page(REC)]);
    let status = enter(&mut h, EnterFlags::empty(), hcr::NPIE, &GIVEN);
    assert_eq!(status, Status::Success);
    assert_eq!(reason(&h), ExitReason::Irq as u64);
    assert_eq!(told(&h, offset_of!(RecExit, gicv3_hcr)), hcr::NPIE);
    for (n, given) in GIVEN.into_iter().enumerate() {
        assert_eq!(told(&h, offset_of!(RecExit, gicv3_lrs) + 8 * n), given);
    }
}

/// Runs `f` with the vCPU on its PE.
fn running<R>(h: &mut Host, f: impl FnOnce(&mut RunningVcpu<'_>, &mut VcpuState) -> R) -> R {
    let state = vcpu(h);
    // SAFETY: the fake machine's realm and vCPU, which nobody runs.
    let (realm, rec) = unsafe { (Realm::at(h.page(1)), Rec::at(h.page(REC))) };
    let cpu = &mut h.cpu;
    f(&mut RunningVcpu { cpu, realm, rec }, state)
}

fn exit(h: &mut Host, esr: u64) -> Next {
    let pa = h.page(REC);
    running(h, |vcpu, state| synchronous(vcpu, pa, state, Syndrome(esr)))
}

/// INTIDs of the machine's PPIs; EL2's SGI; one of the host's; none.
#[test]
fn interrupts_of_the_host_and_maintenance_are_exits() {
    let mut h = machine();
    for (intid, is_exit) in [
        (25, true),
        (26, false),
        (27, false),
        (40, true),
        (7, false),
        (1023, false),
    ] {
        recording::set(ICC_HPPIR1_EL1, intid);
        recording::set(ICC_IAR1_EL1, intid);
        h.cpu.timer_active = false;
        let exits = running(&mut h, |vcpu, state| vcpu.physical(state));
        assert_eq!(exits, is_exit, "{intid}");
        // It stays active: its guest does not deactivate it.
        assert_eq!(h.cpu.timer_active, intid == 27);
    }
}

#[test]
fn writes_of_the_guests_gic_are_the_hosts() {
    let mut h = machine();
    // MSR from X5; ICC_DIR_EL1 traps if the host has said so.
    let write = |op2: u64| 0x18 << 26 | 1 << 25 | 3 << 20 | op2 << 17 | 12 << 10 | 5 << 5 | 11 << 1;
    let value = 0x1234_5678_0400_0001;
    for (op2, rest) in [(1, 0), (5, 0), (6, 0), (7, 0), (5, 0b111 << 22 | 1 << 40)] {
        let state = vcpu(&h);
        (state.gprs.pc, state.gprs.x[5]) = (0x4000_0000, value);
        let Next::Exit(record) = exit(&mut h, write(op2) | rest) else {
            panic!("{op2}: the guest goes on");
        };
        let right = Record {
            esr: write(op2),
            gprs: [value, 0, 0, 0],
            ..Record::new(ExitReason::Sync)
        };
        assert_eq!(std::format!("{record:?}"), std::format!("{right:?}"));
        assert_eq!(
            (state.gprs.pc, state.pending),
            (0x4000_0004, Pending::Nothing)
        );
    }
    // XZR; and a read, which there is none of.
    let Next::Exit(record) = exit(&mut h, write(5) | 31 << 5) else {
        panic!("the guest goes on");
    };
    assert_eq!(record.gprs, [0; 4]);
    recording::set(ESR_EL1, 0);
    assert!(matches!(exit(&mut h, write(5) | 1), Next::Enter));
    assert_eq!(recording::get(ESR_EL1), 1 << 25, "undefined");
}

#[test]
fn the_frames_of_el2s_gic_are_not_there() {
    let mut h = machine();
    for at in [vendor::GICD_IPA, vendor::GICR_IPA + 0x1_0100] {
        let ipa = SHARED | at;
        recording::set(HPFAR_EL2, ipa >> 12 << 4);
        recording::set(FAR_EL2, ipa & 0xfff);
        let esr = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 7;
        let Next::Exit(record) = exit(&mut h, esr) else {
            panic!("{at:#x} is served");
        };
        assert_eq!((record.hpfar, record.far), (ipa >> 12 << 4, ipa & 0xfff));
        assert!(matches!(vcpu(&h).pending, Pending::Mmio(..)));
    }
    for (function, args) in [
        (vendor::SET_SPI, [h.page(1), 40, 1]),
        (vendor::REC_PENDING, [h.page(REC), 0, 0]),
    ] {
        assert_eq!(h.status(function, &args), Status::ErrorInput);
    }
    // What a WFI waits for is the host's to know.
    vcpu(&h).gprs.pc = 0x4000_0000;
    for wfe in [0, 1] {
        let Next::Exit(record) = exit(&mut h, WFI | wfe | 0x1e << 20) else {
            panic!("the guest goes on");
        };
        assert_eq!(record.esr, 0x01 << 26 | wfe);
    }
    assert_eq!(vcpu(&h).gprs.pc, 0x4000_0008);
}

/// A vCPU that is turned on again has timers out of reset, as the host expects.
#[test]
fn a_reset_vcpu_has_told_nothing() {
    let mut h = machine();
    let state = vcpu(&h);
    state.told.timers = [true, true];
    state.reset(0x4000_0000, 0);
    assert_eq!(enter(&mut h, EnterFlags::TRAP_WFI, 0, &[]), Status::Success);
    assert_eq!(reason(&h), ExitReason::Sync as u64);
}

/// An SGI to whomever is the host's to send: EL2 models no redistributor for it, and nobody
/// would hear of one that it took at the vector.
#[test]
fn no_sgi_is_sent_at_the_vector() {
    let mut h = machine();
    let state = vcpu(&h);
    // SAFETY: the fake machine's realm.
    let realm = unsafe { Realm::at(h.page(1)) };
    const MSR: u64 = 0x18 << 26 | 1 << 25 | 3 << 20 | 5 << 17 | 12 << 10 | 5 << 5 | 11 << 1;
    recording::set(ESR_EL2, MSR);
    recording::set(SPSR_EL2, 0x3c5);
    recording::set(ELR_EL2, 0x1000);
    state.lrs_loaded = true;
    for value in [5 << 24 | 1, 5 << 24 | 2, 5 << 24 | 3, 1 << 40] {
        state.gprs.x[5] = value;
        let served = crate::guest::fast::serve(state, realm);
        assert_eq!(served, crate::cpu::context::Served::No, "{value:#x}");
        assert_eq!(recording::get(ELR_EL2), 0x1000);
        assert!(matches!(exit(&mut h, MSR), Next::Exit(_)));
    }
}

//! Anything a guest, a host or broken hardware can pass in: no panic, no
//! interrupt in two list registers of a vCPU, no SPI lent to two, none that the
//! guest does not have, and `ICH_HCR_EL2` with bits of `fill`'s choice only.
//! `cargo fuzz run hostile -- -max_len=4096`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::HashSet;
use vgic::{
    Affinity, At, Distributor, Frame, Interface, ListRegisters, MAX_LIST_REGISTERS, Read,
    Redistributor, SPIS, SgiRegister, VcpuSet, Vgic, hcr, lr,
};

/// vCPUs that exist; those of higher indices are named, too.
const VCPUS: usize = 3;

/// Linked PPIs, each to a physical one.
const LINKS: [(u32, u32); 2] = [(27, 27), (30, 26)];

struct Set(Vec<Redistributor>);

impl VcpuSet for Set {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn redistributor(&mut self, vcpu: usize) -> Option<&mut Redistributor> {
        self.0.get_mut(vcpu)
    }
    fn kick(&mut self, vcpu: usize) {
        assert!(vcpu < VCPUS, "a vCPU that does not exist is kicked");
    }
}

struct Guest {
    dist: Distributor,
    set: Set,
    lrs: Vec<ListRegisters>,
    /// List registers are lent to the vCPU.
    live: [bool; VCPUS],
}

/// What two words stand for: `kind`, and a value.
fn step(guest: &mut Guest, kind: u64, value: u64) {
    let mut vgic = Vgic::new(&mut guest.dist, &mut guest.set);
    let vcpu = (kind >> 8 & 3) as usize;
    let size = 1 << (kind >> 10 & 3);
    // Where registers are, now and then anywhere.
    let offset = match kind >> 12 & 7 {
        0 => kind >> 16,
        1 => 0x6000 + (kind >> 16 & 0x7ff),
        2 => 0xff00 + (kind >> 16 & 0xff),
        _ => kind >> 16 & 0xfff,
    };
    let frame = match kind >> 56 & 7 {
        0..=3 => Frame::Distributor,
        4 | 5 => Frame::Sgi(vcpu),
        6 => Frame::Redistributor(vcpu),
        _ => Frame::of_redistributors(value).0,
    };
    match kind & 15 {
        0..=3 => vgic.write(vcpu, frame, At { offset, size }, value),
        4 => {
            if let Read::Value(value) = vgic.read(vcpu, frame, At { offset, size }) {
                assert!(size == 8 || value >> (8 * size) == 0, "wider than it is");
            }
        }
        5 => {
            let register = [SgiRegister::Sgi0, SgiRegister::Sgi1, SgiRegister::Asgi1]
                [(kind >> 16) as usize % 3];
            vgic.send_sgi(vcpu, register, value);
        }
        6 => vgic.deactivate(vcpu, value & 0x3ff, kind),
        7 => {
            let intid = (kind >> 16) as u32 & 0xff;
            let done = vgic.set_spi(intid, value & 1 == 1);
            assert_eq!(done.is_ok(), (32..32 + SPIS as u32).contains(&intid));
        }
        8 => {
            let intid = (kind >> 16) as u32 & 0x3f;
            let done = vgic.set_ppi(vcpu, intid, value & 1 == 1);
            assert_eq!(done.is_ok(), (16..32).contains(&intid) && vcpu < VCPUS);
        }
        9 => {
            let _ = vgic.pending(vcpu, value);
        }
        10 if value & 7 == 0 => {
            vgic.reset();
            guest.live = [false; VCPUS];
        }
        10 => {
            vgic.reset_vcpu(vcpu);
            if let Some(live) = guest.live.get_mut(vcpu) {
                *live = false;
            }
        }
        _ if vcpu < VCPUS => {
            let lrs = &mut guest.lrs[vcpu];
            run(lrs, kind, value);
            let vmcr = value ^ kind;
            let synced = vgic.sync(vcpu, vmcr, lrs);
            let sources = LINKS.iter().fold(0, |all, (ppi, _)| all | 1 << ppi);
            assert_eq!(synced.resample & !sources, 0, "a PPI that is not linked");
            guest.live[vcpu] = false;
            if kind >> 20 & 3 != 0 {
                vgic.fill(vcpu, vmcr, lrs);
                guest.live[vcpu] = true;
                check(guest, vcpu);
            }
        }
        _ => {
            // Vcpus that are not there have nothing to fill or to fold.
            let mut lrs = ListRegisters::new(4);
            vgic.fill(vcpu, value, &mut lrs);
            assert_eq!(lrs.used(), 0);
            let _ = vgic.sync(vcpu, value, &lrs);
        }
    }
}

/// List registers while their vCPU runs: states move as a guest moves them, or
/// anyhow.
fn run(lrs: &mut ListRegisters, kind: u64, value: u64) {
    let used = lrs.used();
    for (n, register) in lrs.lr[..used].iter_mut().enumerate() {
        let bits = value.rotate_right(2 * n as u32) & 3;
        *register = match kind >> 16 & 3 {
            0 => *register,
            1 => *register & !(lr::PENDING | lr::ACTIVE) | bits << 62,
            2 => *register ^ bits << 62,
            _ => value.rotate_left(n as u32 * 7),
        };
    }
    lrs.hcr = match kind >> 18 & 3 {
        0 => lrs.hcr,
        1 => lrs.hcr | (value & 0x1f) << 27,
        _ => value,
    };
}

fn check(guest: &Guest, vcpu: usize) {
    let lrs = &guest.lrs[vcpu];
    assert!(lrs.used() <= lrs.count());
    assert!(lrs.lr[lrs.used()..].iter().all(|&value| value == 0));
    let own = hcr::EN | hcr::MAINTENANCE | hcr::TDIR;
    assert_eq!(lrs.hcr & !own, 0, "bits that are not of fill's choice");
    let links = LINKS
        .iter()
        .fold(0, |all, (_, physical)| all | 1 << physical);
    assert_eq!(lrs.physical_active & !links, 0);
    for &value in &lrs.lr[..lrs.used()] {
        assert!(
            value & (lr::PENDING | lr::ACTIVE) != 0,
            "{value:#x} is invalid"
        );
        assert!(lr::intid(value) < 32 + SPIS as u32);
        if value & lr::HW != 0 {
            let physical = ((value & lr::PINTID_MASK) >> lr::PINTID_SHIFT) as u32;
            assert!(LINKS.contains(&(lr::intid(value), physical)));
            assert!(value >> 62 != 3, "hardware has no such state with HW");
            assert!(lrs.physical_active >> physical & 1 == 1);
        }
    }
    let mut lent = HashSet::new();
    for (n, lrs) in guest.lrs.iter().enumerate().filter(|(n, _)| guest.live[*n]) {
        for &value in &lrs.lr[..lrs.used()] {
            let intid = lr::intid(value);
            let whose = if intid < 32 { n } else { VCPUS };
            assert!(lent.insert((whose, intid)), "{intid} is lent twice");
        }
    }
}

/// HOST_LRS: what passes is what hardware takes.
fn host_lrs(words: &[[u64; 2]]) {
    let mut lrs = [0; MAX_LIST_REGISTERS];
    let values = words.iter().skip(1).flatten();
    lrs.iter_mut()
        .zip(values)
        .for_each(|(at, value)| *at = *value);
    let Some([kind, host_hcr]) = words.first() else {
        return;
    };
    let interface = Interface {
        list_registers: (kind & 31) as usize,
        priority_bits: 4 + (kind >> 8 & 7) as u32,
        intid_bits: [16, 24][(kind >> 16 & 1) as usize],
        extended_range: kind >> 17 & 1 == 1,
    };
    if interface.check(*host_hcr, &lrs).is_err() {
        return;
    }
    assert_eq!(host_hcr & !(hcr::MAINTENANCE | hcr::TDIR), 0);
    let mut seen = HashSet::new();
    for &value in lrs.iter().take(interface.list_registers) {
        if value & (lr::PENDING | lr::ACTIVE) != 0 {
            assert_eq!(value & (lr::HW | lr::PINTID_MASK & !lr::EOI), 0);
            assert!(u64::from(lr::intid(value)) < 1 << interface.intid_bits);
            assert!(seen.insert(lr::intid(value)), "one vINTID twice");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let words: Vec<u64> = data
        .as_chunks()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .collect();
    let (pairs, _) = words.as_chunks::<2>();
    let Some(([which, _], steps)) = pairs.split_first() else {
        return;
    };
    if which & 7 == 7 {
        return host_lrs(steps);
    }
    let count = [1, 2, 4, 16][(which >> 8) as usize & 3];
    let redistributor = |n: usize| {
        let mut it = Redistributor::new(Affinity::new(0, 0, n as u8 / 2, n as u8 % 2));
        for (ppi, physical) in LINKS {
            it.link(ppi, physical).expect("both are PPIs");
        }
        it
    };
    let mut guest = Guest {
        dist: Distributor::new(),
        set: Set((0..VCPUS).map(redistributor).collect()),
        lrs: vec![ListRegisters::new(count); VCPUS],
        live: [false; VCPUS],
    };
    for [kind, value] in steps {
        step(&mut guest, *kind, *value);
    }
});

//! PEs with virtual CPU interfaces, and the hypervisor's part in between: what
//! `hyp` does around the crate, reduced to its order of calls.

use vgic::{
    Affinity, Appended, At, Distributor, Frame, ListRegisters, Loaded, Reach, Read, Redistributor,
    Rise, SgiRegister, VcpuSet, Vgic, hcr, reach, sgi_of,
};

use crate::hardware::Interface;

/// What of a frame is accessed, by offset and bytes.
pub const fn at(offset: u64, size: usize) -> At {
    At { offset, size }
}

/// The virtual timer, linked to the physical PPI of the same number.
pub const TIMER: u32 = 27;

#[derive(Clone)]
struct Set {
    redists: Vec<Redistributor>,
    kicked: Vec<bool>,
}

impl VcpuSet for Set {
    fn count(&self) -> usize {
        self.redists.len()
    }

    fn redistributor(&mut self, vcpu: usize) -> Option<&mut Redistributor> {
        self.redists.get_mut(vcpu)
    }

    fn kick(&mut self, vcpu: usize) {
        self.kicked[vcpu] = true;
    }
}

#[derive(Clone)]
pub struct Machine {
    dist: Distributor,
    set: Set,
    pub cpu: Vec<Interface>,
    lrs: Vec<ListRegisters>,
    pub in_guest: Vec<bool>,
    /// The list registers are the guest's, not yet folded.
    live: Vec<bool>,
    /// The output of each PE's timer.
    pub timer: Vec<bool>,
    /// Exits for maintenance, kicks and the timer.
    pub exits: usize,
    /// Interrupts that took the short way.
    pub appended: usize,
}

/// PEs two to a cluster.
pub fn affinity(pe: usize) -> Affinity {
    Affinity::new(0, 0, (pe / 2) as u8, (pe % 2) as u8)
}

impl Machine {
    pub fn new(pes: usize, list_registers: usize) -> Self {
        let redist = |pe| {
            let mut redist = Redistributor::new(affinity(pe));
            redist.link(TIMER, TIMER).unwrap();
            redist
        };
        Self {
            dist: Distributor::new(),
            set: Set {
                redists: (0..pes).map(redist).collect(),
                kicked: vec![false; pes],
            },
            cpu: vec![Interface::new(list_registers); pes],
            lrs: vec![ListRegisters::new(list_registers); pes],
            in_guest: vec![false; pes],
            live: vec![false; pes],
            timer: vec![false; pes],
            exits: 0,
            appended: 0,
        }
    }

    /// A guest's SGI; one to itself alone takes the short way where there is one.
    pub fn send_sgi(&mut self, from: usize, register: SgiRegister, value: u64) {
        let own = reach(value, affinity(from)) == Reach::Itself && self.in_guest[from];
        let sgi = (sgi_of(value), Rise::Sgi);
        if own && register == SgiRegister::Sgi1 && self.append(from, sgi) {
            return;
        }
        self.vgic().send_sgi(from, register, value);
    }

    /// Lends one interrupt of a running guest's, while its list registers stay. It gets
    /// what it would by the general way, and whenever all are filled anew, all is as if
    /// it had gone that way.
    fn append(&mut self, pe: usize, what: (u32, Rise)) -> bool {
        if !self.live[pe] {
            return false;
        }
        let mut general = self.clone();
        general.raise(pe, what);
        let cpu = &mut self.cpu[pe];
        let lrs = &mut self.lrs[pe];
        let before = format!("{:?} {:?} {lrs:?}", self.dist, self.set.redists);
        let mut vgic = Vgic::new(&mut self.dist, &mut self.set);
        let loaded = Loaded {
            lrs,
            vmcr: cpu.vmcr,
            read: |n: usize| cpu.lr[n],
        };
        let appended = vgic.append(pe, what, loaded);
        let lrs = &self.lrs[pe];
        let Some(Appended { index, value }) = appended else {
            let after = format!("{:?} {:?} {lrs:?}", self.dist, self.set.redists);
            assert_eq!(before, after, "nothing has changed");
            return false;
        };
        let (intid, rise) = what;
        assert_eq!(vgic::lr::intid(value), intid);
        cpu.lr[index] = value;
        if rise == Rise::Linked {
            cpu.physical_active |= 1 << intid;
        }
        self.appended += 1;
        general.refill(pe);
        let mut mine = self.clone();
        mine.refill(pe);
        assert_eq!(mine.guest_sees(pe), general.guest_sees(pe), "{what:?}");
        true
    }

    /// Lends SGIs that were sent, while the list registers stay: the next time that all
    /// are filled, all is as if they had been at once.
    fn top_up(&mut self, pe: usize) -> bool {
        let mut general = self.clone();
        general.refill(pe);
        let Self {
            dist,
            set,
            cpu,
            lrs,
            ..
        } = self;
        let mut written = Vec::new();
        let loaded = Loaded {
            lrs: &mut lrs[pe],
            vmcr: cpu[pe].vmcr,
            read: |n: usize| cpu[pe].lr[n],
        };
        let done = Vgic::new(dist, set).top_up(pe, loaded, |appended| written.push(appended));
        for Appended { index, value } in written {
            cpu[pe].lr[index] = value;
        }
        if done {
            self.appended += 1;
            let mut mine = self.clone();
            mine.refill(pe);
            assert_eq!(mine.guest_sees(pe), general.guest_sees(pe));
        }
        done
    }

    /// Makes an interrupt of a vCPU's own pending, the general way.
    fn raise(&mut self, pe: usize, (intid, rise): (u32, Rise)) {
        match rise {
            Rise::Sgi => {
                let at = affinity(pe).to_mpidr();
                let value = u64::from(intid) << 24 | (at >> 8 & 0xff) << 16 | 1 << (at & 0xf);
                self.vgic().send_sgi(pe, SgiRegister::Sgi1, value);
            }
            Rise::Linked => {
                self.exit(pe);
                self.vgic().set_ppi(pe, intid, true).unwrap();
            }
        }
    }

    /// Takes all back and lends it again.
    fn refill(&mut self, pe: usize) {
        self.put(pe);
        self.enter(pe);
    }

    /// What a guest can take, and what it has taken: list registers by their values,
    /// physical interrupts that are active, maintenance that is asked for.
    fn guest_sees(&self, pe: usize) -> (Vec<u64>, u32, u64) {
        let cpu = &self.cpu[pe];
        let mut lr = cpu.lr.clone();
        lr.sort_unstable();
        (lr, cpu.physical_active, cpu.hcr)
    }

    pub fn vgic(&mut self) -> Vgic<'_, impl VcpuSet> {
        Vgic::new(&mut self.dist, &mut self.set)
    }

    pub fn enter(&mut self, pe: usize) {
        if self.set.redists[pe].needs_fill() && !(self.live[pe] && self.top_up(pe)) {
            self.exit(pe);
            let vmcr = self.cpu[pe].vmcr;
            let mut vgic = Vgic::new(&mut self.dist, &mut self.set);
            vgic.fill(pe, vmcr, &mut self.lrs[pe]);
            let lrs = &self.lrs[pe];
            let cpu = &mut self.cpu[pe];
            cpu.lr.copy_from_slice(&lrs.lr[..lrs.count()]);
            cpu.hcr = lrs.hcr;
            cpu.physical_active = lrs.physical_active;
            self.live[pe] = true;
        }
        self.in_guest[pe] = true;
    }

    /// Stops the guest; what is in list registers stays there.
    pub fn stop(&mut self, pe: usize) {
        self.in_guest[pe] = false;
    }

    /// Stops the guest and takes everything back, as an access needs it.
    fn exit(&mut self, pe: usize) {
        self.stop(pe);
        if self.set.redists[pe].needs_sync() {
            self.fold(pe);
        }
    }

    /// Stops the guest and leaves the PE.
    pub fn put(&mut self, pe: usize) {
        self.stop(pe);
        self.fold(pe);
    }

    fn fold(&mut self, pe: usize) {
        self.live[pe] = false;
        let cpu = &mut self.cpu[pe];
        let lrs = &mut self.lrs[pe];
        let used = lrs.used();
        lrs.lr[..used].copy_from_slice(&cpu.lr[..used]);
        lrs.hcr = cpu.hcr;
        let mut vgic = Vgic::new(&mut self.dist, &mut self.set);
        let synced = vgic.sync(pe, cpu.vmcr, lrs);
        assert_eq!(
            synced.physical_active, cpu.physical_active,
            "the physical interrupt is as hardware left it"
        );
        assert_eq!(synced.resample & !(1 << TIMER), 0);
        if synced.resample != 0 {
            vgic.set_ppi(pe, TIMER, self.timer[pe]).unwrap();
        }
    }

    /// The timer's output moves. Without a guest on the PE the hypervisor knows
    /// it at once, with one only by the interrupt or at the next exit.
    pub fn set_timer(&mut self, pe: usize, level: bool) {
        self.timer[pe] = level;
        if !self.in_guest[pe] {
            self.vgic().set_ppi(pe, TIMER, level).unwrap();
        }
    }

    /// Lets kicks, maintenance and timer interrupts take their course.
    ///
    /// Panics if they do not come to an end: that is an interrupt storm.
    pub fn settle(&mut self) {
        for _ in 0..8 {
            // Every PE has its turn each time round.
            let busy = (0..self.cpu.len()).filter(|&pe| self.interrupt(pe)).count();
            if busy == 0 {
                return;
            }
        }
        panic!("interrupts to the hypervisor do not end");
    }

    /// Takes the interrupts to the hypervisor that are there on a PE, kicks only
    /// if they have arrived. Answers if there was one.
    pub fn interrupt(&mut self, pe: usize) -> bool {
        let kicked = core::mem::take(&mut self.set.kicked[pe]);
        if !self.in_guest[pe] {
            // Stopped is not for long: it goes on or is put away.
            if kicked {
                self.fold(pe);
            }
            return kicked;
        }
        self.local_interrupt(pe) || {
            if kicked {
                self.stop(pe);
                self.exits += 1;
                self.enter(pe);
            }
            kicked
        }
    }

    /// Takes a maintenance or timer interrupt: those of the PE itself, which
    /// come at once.
    pub fn local_interrupt(&mut self, pe: usize) -> bool {
        if !self.in_guest[pe] {
            return false;
        }
        let timer = self.timer[pe] && self.cpu[pe].physical_active & (1 << TIMER) == 0;
        if !timer && !self.cpu[pe].maintenance() {
            return false;
        }
        if timer && self.append(pe, (TIMER, Rise::Linked)) {
            self.exits += 1;
            return true;
        }
        self.stop(pe);
        if timer {
            // As its IRQ comes, with the list registers where they are.
            self.vgic().set_ppi(pe, TIMER, true).unwrap();
        } else {
            self.exit(pe);
        }
        self.exits += 1;
        self.enter(pe);
        true
    }

    /// Runs a trapped access of a vCPU.
    fn trapped<T>(&mut self, pe: usize, access: impl FnOnce(&mut Self) -> T) -> T {
        let was_in = self.in_guest[pe];
        self.exit(pe);
        let answer = access(self);
        if was_in {
            self.enter(pe);
        }
        answer
    }

    pub fn write(&mut self, pe: usize, frame: Frame, at: At, value: u64) {
        self.trapped(pe, |m| {
            m.vgic().write(pe, frame, at, value);
        });
    }

    /// Reads as a guest does, whose instruction is executed until it is done.
    pub fn read(&mut self, pe: usize, frame: Frame, offset: u64, size: usize) -> u64 {
        for _ in 0..4 {
            let read = self.trapped(pe, |m| m.vgic().read(pe, frame, At { offset, size }));
            if let Read::Value(value) = read {
                return value;
            }
            self.settle();
        }
        panic!("the read does not end");
    }

    pub fn deactivate(&mut self, pe: usize, intid: u32) {
        if self.cpu[pe].hcr & hcr::TDIR != 0 {
            let vmcr = self.cpu[pe].vmcr;
            self.trapped(pe, |m| m.vgic().deactivate(pe, intid.into(), vmcr));
        } else {
            self.cpu[pe].deactivate_by_guest(intid);
        }
    }

    /// The INTIDs in the list registers of PEs, for those that are lent.
    pub fn lent(&self, pe: usize) -> Vec<u32> {
        if !self.live[pe] {
            return Vec::new();
        }
        let valid = |&&value: &&u64| value >> 62 != 0;
        let used = self.lrs[pe].used();
        self.cpu[pe].lr[..used]
            .iter()
            .filter(valid)
            .map(|&value| vgic::lr::intid(value))
            .collect()
    }
}

//! A running vCPU's interrupts: list registers in and out, timers, kicks.
//!
//! The list registers stay loaded over exits that do not concern them; whoever
//! looks at the vGIC's state folds them back first ([`RunningVcpu::fold`]).

use super::host_lrs;
use super::vcpu::RunningVcpu;
use crate::cpu::gic::{self, Taken};
use crate::realm::Realm;
use crate::rec::{VcpuState, asserts};
use arm64::regs::{
    CNTHP_CTL_EL2, CNTHP_CVAL_EL2, CNTPCT_EL0, CNTV_CTL_EL0, ICH_HCR_EL2, ICH_VMCR_EL2,
};
use vgic::{Appended, ListRegisters, Loaded, Rise, Vgic};

/// INTIDs that a guest's device tree names for its timers (QEMU virt's).
pub mod intid {
    /// Virtual timer.
    pub const VIRTUAL_TIMER: u32 = 27;
    /// Physical timer.
    pub const PHYSICAL_TIMER: u32 = 30;
}

/// Lends one interrupt of the vCPU's, which runs here, while its list registers stay
/// loaded. False where that takes more than one of them: nothing has changed.
#[inline(always)]
pub fn append(realm: &Realm, state: &mut VcpuState, what: (u32, Rise)) -> bool {
    if !state.lrs_loaded || realm.host_lrs {
        return false;
    }
    let index = state.index;
    let loaded = loaded(&mut state.lrs);
    let appended = realm.with_vgic(Some(index), |v| v.append(index, what, loaded));
    appended.map(write).is_some()
}

/// This PE's list registers, as they were filled.
#[inline(always)]
fn loaded(lrs: &mut ListRegisters) -> Loaded<'_, impl Fn(usize) -> u64> {
    Loaded {
        lrs,
        vmcr: ICH_VMCR_EL2.get(),
        read: gic::read_lr,
    }
}

#[inline(always)]
fn write(Appended { index, value }: Appended) {
    gic::write_lr(index, value);
}

/// Sets CNTHP for the guest's physical timer, unless its line is high already, and
/// for the host.
fn set_cnthp(state: &VcpuState, level: bool) {
    let of_guest = state.ptimer.deadline().filter(|_| !level);
    let Some(at) = of_guest.into_iter().chain(state.call_host_at).min() else {
        CNTHP_CTL_EL2.set(0);
        return;
    };
    CNTHP_CVAL_EL2.set(at);
    CNTHP_CTL_EL2.set(1);
}

impl RunningVcpu<'_> {
    /// Calls the vGIC under its lock.
    pub fn vgic<R>(&mut self, f: impl FnOnce(&mut Vgic<'_, crate::realm::Vcpus<'_>>) -> R) -> R {
        self.realm.with_vgic(Some(self.rec.index), f)
    }

    fn redistributor<R>(&self, f: impl FnOnce(&vgic::Redistributor) -> R) -> R {
        let _dist = self.realm.vgic.lock();
        // SAFETY: the realm's `vgic` lock, which guards it, is held.
        f(unsafe { &*self.rec.redistributor.get() })
    }

    /// Before each entry: the list registers say all there is to say. False when the
    /// host, whose they are, is to see something first.
    pub fn prepare(&mut self, state: &mut VcpuState) -> bool {
        if self.realm.host_lrs {
            return host_lrs::prepare(self, state);
        }
        let (fill, sync) = self.redistributor(|r| (r.needs_fill(), r.needs_sync()));
        if state.lrs_loaded && (!fill || self.top_up(state)) {
            return true;
        }
        if !fill && !sync && self.resume(state) {
            return true;
        }
        if sync {
            self.fold(state);
        }
        let (index, vmcr) = (self.rec.index, ICH_VMCR_EL2.get());
        let lrs = &mut state.lrs;
        self.vgic(|v| v.fill(index, vmcr, lrs));
        let timer = 1 << self.cpu.gic.ppi.virtual_timer;
        self.set_timer_active(state.lrs.physical_active & timer != 0);
        gic::write_lrs(self.cpu.gic.list_registers, &state.lrs.lr);
        self.cpu.lrs_are_zero = state.lrs.used() == 0;
        self.cpu.gic.turn_on(state.lrs.hcr);
        state.lrs_loaded = true;
        true
    }

    /// The vCPU comes back, nothing of its was in a list register, and nothing has
    /// changed since: they are as it left them, or are made so.
    fn resume(&mut self, state: &mut VcpuState) -> bool {
        if state.lrs.used() != 0 {
            return false;
        }
        if !self.cpu.lrs_are_zero {
            gic::write_lrs(self.cpu.gic.list_registers, &state.lrs.lr);
            self.cpu.lrs_are_zero = true;
        }
        self.set_timer_active(false);
        self.cpu.gic.turn_on(state.lrs.hcr);
        state.lrs_loaded = true;
        true
    }

    /// Lends SGIs that were sent to the vCPU; false where it takes more than that.
    fn top_up(&mut self, state: &mut VcpuState) -> bool {
        let index = self.rec.index;
        let loaded = loaded(&mut state.lrs);
        self.vgic(|v| v.top_up(index, loaded, write))
    }

    /// Reads the list registers back into the vGIC's state, when they hold
    /// anything.
    pub fn fold(&mut self, state: &mut VcpuState) {
        if self.redistributor(vgic::Redistributor::needs_sync) {
            self.leave(state);
        }
    }

    /// The same whatever they hold: when the vCPU leaves the PE, the vGIC takes over
    /// its priority mask and group enables too.
    pub fn leave(&mut self, state: &mut VcpuState) {
        if self.realm.host_lrs {
            return host_lrs::leave(&self.cpu.gic, state);
        }
        let (index, vmcr) = (self.rec.index, ICH_VMCR_EL2.get());
        // Else they were folded, or are whoever's who ran before.
        if state.lrs_loaded {
            self.cpu.lrs_are_zero = state.lrs.used() == 0;
            if !state.lrs.asks_nothing() {
                gic::read_lrs(self.cpu.gic.list_registers, &mut state.lrs.lr);
                state.lrs.hcr = ICH_HCR_EL2.get();
            }
        }
        let timer = self.timer_level();
        let physical = self.cpu.gic.ppi.virtual_timer;
        let lrs = &state.lrs;
        let synced = self.vgic(|v| {
            let synced = v.sync(index, vmcr, lrs);
            if synced.resample & 1 << intid::VIRTUAL_TIMER != 0 {
                // The INTID is a PPI and the vCPU exists.
                let _ = v.set_ppi(index, intid::VIRTUAL_TIMER, timer);
            }
            synced
        });
        // Else it is as whoever ran here before has left it.
        if state.lrs_loaded {
            self.cpu.timer_active = synced.physical_active & 1 << physical != 0;
        }
        state.lrs_loaded = false;
    }

    /// The level of the virtual timer's output now.
    pub fn timer_level(&self) -> bool {
        asserts(CNTV_CTL_EL0.get())
    }

    /// Has the virtual timer's physical interrupt be active, or not.
    pub fn set_timer_active(&mut self, active: bool) {
        if active != self.cpu.timer_active {
            self.cpu.gic.set_timer_active(active);
            self.cpu.timer_active = active;
        }
    }

    /// A physical IRQ ended the guest's turn. True when it is the host's.
    pub fn physical(&mut self, state: &mut VcpuState) -> bool {
        let taken = self.cpu.gic.take();
        if self.realm.host_lrs && taken != Taken::HypTimer {
            return host_lrs::physical(self, taken);
        }
        match taken {
            Taken::Host => return true,
            // For this vCPU, which looks before it is entered again; or for one
            // that the host left waiting here, which the host sees at its turn.
            Taken::Kick | Taken::Nothing => {}
            Taken::VirtualTimer => {
                if self.timer_level()
                    && append(self.realm, state, (intid::VIRTUAL_TIMER, Rise::Linked))
                {
                    self.cpu.timer_active = true;
                    return false;
                }
                // Folded first: the vGIC still takes the last one for pending
                // that the guest has long deactivated, and would see no change.
                self.fold(state);
                self.cpu.timer_active = true;
                let (index, level) = (self.rec.index, self.timer_level());
                let _ = self.vgic(|v| v.set_ppi(index, intid::VIRTUAL_TIMER, level));
                // If the level fell meanwhile, filling clears the active state.
                state.lrs_loaded = false;
            }
            Taken::HypTimer => {
                self.physical_timer(state);
                return state.call_host_at.is_some_and(|at| CNTPCT_EL0.get() >= at);
            }
            Taken::Maintenance => self.fold(state),
        }
        false
    }

    /// The guest's physical timer changed, or fired: moves its line and sets
    /// CNTHP for the next time.
    pub fn physical_timer(&mut self, state: &VcpuState) {
        let level = state.ptimer.level(CNTPCT_EL0.get());
        if !self.realm.host_lrs {
            let index = self.rec.index;
            let _ = self.vgic(|v| v.set_ppi(index, intid::PHYSICAL_TIMER, level));
        }
        set_cnthp(state, level);
    }

    /// Has the vCPU come out to the host after so many ticks, unless it does so
    /// sooner.
    pub fn call_host_in(&mut self, state: &mut VcpuState, ticks: u64) {
        if state.call_host_at.is_none() {
            let now = CNTPCT_EL0.get();
            state.call_host_at = Some(now.saturating_add(ticks));
            state.gprs.host_is_called = true;
            set_cnthp(state, state.ptimer.level(now));
            // What calls the host would end a wait of the guest's before its time. A host
            // with list registers of its own is told of waits as it asks.
            if !self.realm.host_lrs {
                self.cpu.trap_wfi();
            }
        }
    }

    /// True when the vCPU need not wait in WFI. Its list registers are folded.
    pub fn deliverable(&mut self) -> bool {
        let (index, vmcr) = (self.rec.index, ICH_VMCR_EL2.get());
        let timer = self.timer_level();
        self.vgic(|v| {
            let _ = v.set_ppi(index, intid::VIRTUAL_TIMER, timer);
            v.pending(index, vmcr)
        })
    }
}

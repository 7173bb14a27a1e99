//! What EL2 borrows of the host's interrupts for a guest's turn, and gives back.

use arm64::regs::*;
use arm64::{bits, instr};

use super::Gic;
use super::redistributor::{Line, gicr};

/// A mask that EL2's own interrupts pass, with four bits of priority or more. Theirs is 0;
/// where there is a Secure state and EL3 leaves group 0 to us (SCR_EL3.FIQ = 0), the mask is
/// as the hardware has it, and of ours that is 0x80 (IHI0069H, 4.8.6).
const PASSES_OURS: u64 = 0x90;

/// What the host's CPU interface and the virtual timer's interrupt had before EL2
/// borrowed them for a guest.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostInterface {
    pmr: u64,
    ctlr: u64,
    igrpen1: u64,
    timer: Line,
    timer_active: bool,
    /// By a write of the host's: its timer is off meanwhile.
    timer_pending: bool,
}

impl Gic {
    /// Borrows from the host, for a guest: the CPU interface, so that EL2's own
    /// interrupts pass and what else the host lets through (what it masks by priority
    /// stays masked: DEN0137, A6.1), group 1 is on, and EOI only drops priority (the
    /// virtual timer's interrupt stays active until the guest deactivates it); and that
    /// interrupt. `changed`: the host may have changed it since the last time.
    pub fn borrow(&self, host: &mut HostInterface, changed: bool) {
        host.pmr = ICC_PMR_EL1.get();
        host.ctlr = ICC_CTLR_EL1.get();
        host.igrpen1 = ICC_IGRPEN1_EL1.get();
        ICC_PMR_EL1.set(host.pmr.max(PASSES_OURS));
        ICC_CTLR_EL1.set(host.ctlr | bits!(ICC_CTLR_EL1: EOImode));
        ICC_IGRPEN1_EL1.write(ICC_IGRPEN1_EL1::Enable::SET);
        // Without Enable, EL1's access to ICC_SRE_EL1 traps: it is shared.
        ICC_SRE_EL2.set(bits!(ICC_SRE_EL2: SRE, DFB, DIB));
        let (frame, timer) = (self.redistributor, self.ppi.virtual_timer);
        if changed {
            host.timer = frame.line(timer);
        }
        if changed || host.timer_pending {
            // The host's timer was stopped by a write that counts from here on: before,
            // what is pending may be its line, and comes back for good as the host's write.
            instr::isb();
            host.timer_pending = frame.is_pending(timer);
            if host.timer_pending {
                frame.put(gicr::ICPENDR0, timer);
            }
        }
        if host.timer != Line::OURS {
            frame.set_line(timer, host.timer, Line::OURS);
        }
        host.timer_active = frame.is_active(timer);
        if host.timer_active {
            self.set_timer_active(false);
        }
    }

    /// Gives it back as it was, whatever the guest has left: it may have
    /// acknowledged the timer's interrupt and not ended it.
    pub fn give_back(&self, host: &HostInterface) {
        self.set_timer_active(host.timer_active);
        let (frame, timer) = (self.redistributor, self.ppi.virtual_timer);
        if host.timer != Line::OURS {
            // The guest's timer is off before an edge of its line could be the host's.
            instr::isb();
            frame.set_line(timer, Line::OURS, host.timer);
        }
        if host.timer_pending {
            frame.put(gicr::ISPENDR0, timer);
        }
        ICC_PMR_EL1.set(host.pmr);
        ICC_CTLR_EL1.set(host.ctlr);
        ICC_IGRPEN1_EL1.set(host.igrpen1);
        ICC_SRE_EL2.set(bits!(ICC_SRE_EL2: SRE, DFB, DIB, ENABLE));
    }
}

//! What a guest does with the UART while the host looks elsewhere.

use super::registers::*;
use super::{Pl011, Sender};
use posted::View;

impl Pl011 {
    /// What of it needs no host. A byte may wait where sending it would change no
    /// interrupt's level; of all that can be read it then changes RIS alone, and
    /// that only where TX is not raised yet. The registers that only keep what is
    /// written to them may be written with that.
    pub fn view(&self) -> View {
        let mut view = View::CLOSED;
        // Of ICR, which reads as 0, a write of that clears nothing.
        for offset in [ILPR, IBRD, FBRD, LCR_H, IFLS, IMSC, ICR, DMACR] {
            view.keeps(offset, self.peek(offset));
        }
        if self.cr & CR_LBE == 0 {
            view.keeps(CR, self.cr);
        }
        for offset in [RSR, MIS] {
            view.reads(offset, self.peek(offset), true);
        }
        let raised = self.raw.contains(Interrupts::TX);
        view.reads(RIS, self.peek(RIS), raised);
        if self.sender == Sender::IDLE {
            view.reads(FR, self.peek(FR), true);
        }
        let quiet = raised || !self.mask.contains(Interrupts::TX);
        if quiet && !self.sender.full && self.cr & CR_LBE == 0 {
            view.waits(DR);
        }
        view
    }
}

//! Inputs, deactivation and reset, and who must hear of a change.

use arm64::instr;

use crate::bank::Bank;
use crate::distributor::{CTLR_ENABLES, Distributor};
use crate::intid::{Affinity, Error, FIRST_SPI, SPI_WORDS, SPIS, bits};
use crate::redistributor::{PROCESSOR_SLEEP, Redistributor, SGIS, ppi_bit};
use crate::{VcpuSet, Vgic, vmcr};

/// Where a bank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The SGIs and PPIs of a vCPU.
    Private(usize),
    /// The 32 SPIs from `32 + 32 * n` on.
    Shared(usize),
}

impl<S: VcpuSet + ?Sized> Vgic<'_, S> {
    /// Moves the input of an SPI. Where the guest made it edge-triggered a
    /// rise makes it pending; where level-sensitive it is pending while high.
    ///
    /// # Errors
    /// [`Error::NoSuchInterrupt`] if `intid` is none of the SPIs.
    pub fn set_spi(&mut self, intid: u32, level: bool) -> Result<(), Error> {
        let spi = spi_index(intid).ok_or(Error::NoSuchInterrupt(intid))?;
        let changed = self.dist.banks[spi / 32].set_line(spi % 32, level);
        self.notify(Place::Shared(spi / 32), changed);
        Ok(())
    }

    /// Moves the input of a PPI of a vCPU, as [`set_spi`](Self::set_spi) does.
    /// For a linked PPI this is the level of the physical interrupt's source as
    /// just sampled, because `sync` asked or the physical interrupt came.
    ///
    /// # Errors
    /// [`Error::NoSuchInterrupt`] if `intid` is no PPI, [`Error::NoSuchVcpu`].
    pub fn set_ppi(&mut self, vcpu: usize, intid: u32, level: bool) -> Result<(), Error> {
        let bit = ppi_bit(intid)?;
        let redist = self
            .vcpus
            .redistributor(vcpu)
            .ok_or(Error::NoSuchVcpu(vcpu))?;
        let changed = redist.bank.set_line(bit, level);
        // A linked PPI that is masked needs its physical interrupt active too;
        // and one that is high still is high again, if hardware ended it.
        if (changed | redist.bank.line & 1 << bit) & redist.hw != 0 {
            redist.dirty = 1;
        }
        self.notify(Place::Private(vcpu), changed);
        Ok(())
    }

    /// The guest's `ICC_DIR_EL1` on a vCPU, trapped (`ICH_HCR_EL2.TDIR`). The
    /// value is that of the register, `vmcr` is `ICH_VMCR_EL2`. As on a GIC, an
    /// SPI may be deactivated by another vCPU than the one that acknowledged it.
    pub fn deactivate(&mut self, vcpu: usize, value: u64, vmcr: u64) {
        // With EOImode 0 the write is an error that a GIC may ignore.
        if vmcr & vmcr::VEOIM == 0 {
            return;
        }
        let intid = (value & 0xff_ffff) as u32;
        let (place, bit) = match spi_index(intid) {
            Some(spi) => (Place::Shared(spi / 32), spi % 32),
            None if intid < FIRST_SPI => (Place::Private(vcpu), intid as usize),
            None => return,
        };
        self.write_active(vcpu, place, 1 << bit, false);
    }

    /// Takes the whole vGIC back to reset, as the guest's system reset does.
    /// Inputs keep their levels: the devices say when they fall. No vCPU may be
    /// running.
    pub fn reset(&mut self) {
        let lines = self.dist.banks.each_ref().map(|bank| bank.line);
        let epoch = self.dist.epoch;
        *self.dist = Distributor::new();
        self.dist.epoch = epoch;
        for (bank, line) in self.dist.banks.iter_mut().zip(lines) {
            bank.line = line;
        }
        for vcpu in 0..self.vcpus.count() {
            self.reset_vcpu(vcpu);
        }
    }

    /// Takes a vCPU's redistributor back to reset, as its power-off does (PSCI
    /// CPU_OFF). Its inputs and links stay; its SPIs that were pending go back to
    /// the distributor, those that were active stay so. The vCPU may not be
    /// running.
    pub fn reset_vcpu(&mut self, vcpu: usize) {
        self.abandon(vcpu);
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return;
        };
        redist.bank.reset(SGIS, SGIS);
        redist.waker = PROCESSOR_SLEEP;
        redist.linked = 0;
        redist.vmcr = 0;
        redist.awaited = 0;
        redist.dirty = 1;
        self.find_others();
    }

    /// Gives up what the vCPU's list registers hold as if the guest had not run
    /// since `fill`: for resets, and so that a `fill` without `sync` loses
    /// nothing.
    pub(crate) fn abandon(&mut self, vcpu: usize) {
        let Some(redist) = self.vcpus.redistributor(vcpu) else {
            return;
        };
        let (held, used) = redist.held();
        redist.used = 0;
        redist.notices = 0;
        for &intid in &held[..used] {
            let intid = u32::from(intid);
            if intid < FIRST_SPI {
                release(&mut redist.bank, intid as usize);
            } else if let Some(spi) = spi_index(intid) {
                release(&mut self.dist.banks[spi / 32], spi % 32);
            }
        }
    }

    /// Announces all SPIs that wait for any vCPU anew: one that they may have been
    /// announced to is no longer there for them.
    pub(crate) fn find_others(&mut self) {
        for word in 0..SPI_WORDS {
            self.notify(Place::Shared(word), self.dist.any[word]);
        }
    }

    /// `GICD_CTLR`: the groups that are let through.
    pub(crate) fn set_ctlr(&mut self, value: u32) {
        let value = value & CTLR_ENABLES;
        if core::mem::replace(&mut self.dist.ctlr, value) != value {
            for vcpu in 0..self.vcpus.count() {
                self.mark(vcpu);
            }
        }
    }

    /// `ISACTIVER`, `ICACTIVER` and `ICC_DIR_EL1`, by the vCPU `writer`.
    pub(crate) fn write_active(&mut self, writer: usize, place: Place, mask: u32, to: bool) {
        let Some(bank) = self.bank(place) else { return };
        let fresh = bank.set_active(mask, to);
        if let Place::Shared(word) = place {
            for bit in bits(fresh) {
                let spi = word * 32 + bit;
                // Somebody must hold it. A GIC has the state in the
                // distributor; here it is with the vCPU it is routed to.
                let target = if self.dist.routed_to_any(spi) {
                    None
                } else {
                    self.vcpus.find(Affinity::from_bits(self.dist.route[spi]))
                };
                let owner = target.unwrap_or(writer);
                self.dist.owner[spi] = owner as u16;
                self.mark(owner);
            }
        } else if let Place::Private(vcpu) = place
            && fresh != 0
        {
            self.mark(vcpu);
        }
        self.notify(place, mask);
    }

    /// The bank at `place`.
    pub(crate) fn bank(&mut self, place: Place) -> Option<&mut Bank> {
        match place {
            Place::Private(vcpu) => self.vcpus.redistributor(vcpu).map(|r| &mut r.bank),
            Place::Shared(word) => self.dist.banks.get_mut(word),
        }
    }

    /// Notifies those concerned by a change to the interrupts in `changed`: the
    /// vCPU whose list register has one, or those to which one can now go.
    pub(crate) fn notify(&mut self, place: Place, changed: u32) {
        let groups = self.dist.groups();
        let Some(bank) = self.bank(place) else { return };
        let concerned = bank.concerned(changed, groups);
        if concerned == 0 {
            return;
        }
        match place {
            Place::Private(vcpu) => self.mark(vcpu),
            Place::Shared(word) => {
                let held = bank.held;
                for bit in bits(concerned) {
                    let spi = word * 32 + bit;
                    if held & 1 << bit != 0 {
                        self.mark(self.dist.owner[spi].into());
                    } else {
                        self.announce(spi);
                    }
                }
            }
        }
    }

    /// Announces an SPI that no list register has to a vCPU that may take it.
    pub(crate) fn announce(&mut self, spi: usize) {
        if self.dist.routed_to_any(spi) {
            self.announce_to_one(spi);
        } else if let Some(vcpu) = self.vcpus.find(Affinity::from_bits(self.dist.route[spi])) {
            self.mark(vcpu);
        }
    }

    /// Chooses one of those that take part and, as far as is known, have the
    /// group enabled; if it turns out not to, `find_others` comes here again. If
    /// there is none, marks all that take part, so that an enable is noticed.
    fn announce_to_one(&mut self, spi: usize) {
        let group1 = self.dist.banks[spi / 32].is_group1(spi % 32);
        let chosen = self.first_taker(0, |redist| vmcr::enables(redist.vmcr.into(), group1));
        if let Some(vcpu) = chosen {
            return self.mark(vcpu);
        }
        let mut from = 0;
        while let Some(vcpu) = self.first_taker(from, |_| true) {
            self.mark(vcpu);
            from = vcpu + 1;
        }
    }

    /// The first vCPU from `from` on that is awake and as `suits` asks.
    fn first_taker(
        &mut self,
        from: usize,
        suits: impl Fn(&Redistributor) -> bool,
    ) -> Option<usize> {
        (from..self.vcpus.count()).find(|&vcpu| {
            self.vcpus
                .redistributor(vcpu)
                .is_some_and(|redist| redist.is_awake() && suits(redist))
        })
    }

    /// Makes a vCPU look again.
    pub(crate) fn mark(&mut self, vcpu: usize) {
        if let Some(redist) = self.vcpus.redistributor(vcpu) {
            redist.dirty = 1;
            self.vcpus.kick(vcpu);
        }
    }
}

/// The index of an SPI.
pub(crate) fn spi_index(intid: u32) -> Option<usize> {
    let spi = intid.checked_sub(FIRST_SPI)? as usize;
    instr::index(spi, SPIS)
}

/// Takes back what a list register was lent.
fn release(bank: &mut Bank, bit: usize) {
    let mask = 1 << bit;
    bank.held &= !mask;
    bank.edited &= !mask;
    bank.latch |= bank.lent & mask;
    bank.lent &= !mask;
}

//! Accesses of a device of the host's that need not wait for the host (crate
//! `posted`): the page, and who serves them.

use core::fmt::Write;

use arm64::frame::Gprs;
use arm64::syndrome::Syndrome;
use posted::{Access, PAGE, Page, Post, Poster};

use crate::cpu::access;
use crate::cpu::context::Served;
use crate::memory::granule::{Granules, Pin};
use crate::memory::guarded::{self, ExternalAbort, Taken};
use crate::memory::order::RealmLock;
use crate::memory::phys;

/// What a realm's device may have: a page of the host's that speaks for it.
#[derive(Debug)]
pub struct Device {
    posting: RealmLock<Posting>,
}

impl Device {
    /// One without a page.
    pub const fn without_page() -> Self {
        Self {
            posting: RealmLock::new(Posting::NONE),
        }
    }

    /// Whether it has one. That changes under the RD's lock.
    pub fn is_set(&self) -> bool {
        self.posting.lock().page.is_some()
    }

    /// Gives it a page.
    pub fn set(&self, posting: Posting) {
        *self.posting.lock() = posting;
    }

    /// Takes its page away, from all vCPUs: false when it has none.
    pub fn end(&self, granules: &Granules) -> bool {
        let posting = core::mem::replace(&mut *self.posting.lock(), Posting::NONE);
        let Some(granule) = posting.page.and_then(|_| granules.get(posting.granule)) else {
            return false;
        };
        granule.put();
        true
    }

    /// How long a write may wait, in ticks of the counter.
    pub fn delay(&self) -> u64 {
        self.posting.lock().delay
    }

    /// Reports, when EL2 dies, what the guest `vmid` has written that the host has
    /// not taken.
    pub fn report(&self, vmid: u16, log: &mut impl Write) {
        let Some(posting) = self.posting.try_lock() else {
            return;
        };
        let Some(mut page) = posting.page else {
            return;
        };
        let mut begun = false;
        posting.poster.waiting(&mut page, |write| {
            if !begun {
                begun = true;
                let _ = write!(log, "guest vmid {vmid}: the host has not seen: ");
            }
            let _ = write!(log, "{}", core::ascii::escape_default(write.value() as u8));
        });
        if begun {
            let _ = writeln!(log);
        }
    }

    /// Does `f` as one that dies with the lock in its hands does.
    #[cfg(test)]
    pub fn while_held(&self, f: impl FnOnce()) {
        let _held = self.posting.lock();
        f();
    }

    /// Serves an access of the device that was taken with this SCTLR_EL1, or has it
    /// wait: at the vector, the way of every byte on a console. What is not plain is
    /// not served here, but by the host. Whoever serves it steps over it.
    #[inline(always)]
    pub fn serve(&self, gprs: &mut Gprs, taken: &Taken, sctlr: u64) -> Served {
        self.posting.lock().serve(gprs, taken, sctlr)
    }
}

/// A page of the host's, and the device that it speaks for.
#[derive(Debug)]
pub struct Posting {
    /// HPFAR_EL2 of a fault in the device's page.
    hpfar: u64,
    /// At the start of a granule that stays the host's, where memory answers.
    page: Option<&'static Page>,
    /// PA of that granule.
    granule: u64,
    /// How long a write may wait, in ticks of the counter.
    delay: u64,
    /// The last read that was served, and the last write.
    known: [Known; 2],
    poster: Poster,
}

impl Posting {
    /// No page, for no device.
    const NONE: Self = Self {
        hpfar: u64::MAX,
        page: None,
        granule: 0,
        delay: 0,
        known: [Known::NONE; 2],
        poster: Poster::new(),
    };

    /// For the device at the IPA `device`, a multiple of 4 KiB: the page at the
    /// start of the granule that `pin` keeps the host's, from now on.
    ///
    /// # Errors
    /// [`ExternalAbort`]: no memory answers there.
    pub fn new(device: u64, page: u64, pin: Pin<'_>, delay: u64) -> Result<Self, ExternalAbort> {
        try_all(page)?;
        pin.keep();
        Ok(Self {
            hpfar: device >> 12 << 4,
            // SAFETY: the granule is the host's until `Device::end`, and EL2 touches
            // it by atomic accesses alone.
            page: Some(unsafe { &*phys::pointer::<Page>(page) }),
            granule: page,
            delay,
            ..Self::NONE
        })
    }
}

/// Reads and writes all of the page once, so that who serves at the vector need not
/// reckon with an external abort.
fn try_all(page: u64) -> Result<(), ExternalAbort> {
    for line in (page..).step_by(64).take(PAGE / 64) {
        // SAFETY: of the host's granule, as the caller says; aligned.
        unsafe {
            let words: [u64; 8] = guarded::read(line)?;
            guarded::write(line, &words)?;
        }
    }
    Ok(())
}

/// An access that was looked at before: a driver makes the same ones again and
/// again.
#[derive(Debug)]
#[repr(align(64))]
struct Known {
    /// ESR_EL2, FAR_EL2 and SCTLR_EL1, from which the rest follows.
    of: [u64; 3],
    access: Access,
    /// It may be the end of one that began in the page before.
    may_be_second: bool,
    /// When it is served.
    then: Served,
}

impl Known {
    /// None: no access has this syndrome.
    const NONE: Self = Self {
        of: [u64::MAX; 3],
        access: Access::DATA,
        may_be_second: false,
        then: Served::No,
    };

    /// Whether it is what is known.
    #[inline(always)]
    const fn is(&self, [esr, far, sctlr]: [u64; 3]) -> bool {
        (esr ^ self.of[0]) | (far ^ self.of[1]) | (sctlr ^ self.of[2]) == 0
    }

    /// What there is to know of an access; `None` for one that is the host's.
    #[inline(always)]
    fn look_at(of: [u64; 3]) -> Option<Self> {
        let [esr, far, sctlr] = of;
        let esr = Syndrome(esr);
        if !esr.is_plain_access() || Gprs::may_be_big_endian(sctlr) {
            return None;
        }
        let (offset, shift) = (far % PAGE as u64, esr.size_shift());
        Some(Self {
            of,
            access: Access::new(offset, shift)?,
            may_be_second: offset == 0 && shift != 0 && access::may_be_unaligned(sctlr),
            then: if esr.has_wnr() {
                Served::Enter
            } else {
                Served::written(esr.register())
            },
        })
    }
}

impl Posting {
    /// Serves the access that was taken with this SCTLR_EL1.
    #[inline(always)]
    fn serve(&mut self, gprs: &mut Gprs, taken: &Taken, sctlr: u64) -> Served {
        let Some(mut page) = self.page else {
            return Served::No;
        };
        if self.hpfar != taken.hpfar {
            return Served::No;
        }
        let (this, esr) = ([taken.esr, taken.far, sctlr], Syndrome(taken.esr));
        let known = &mut self.known[usize::from(esr.has_wnr())];
        if !known.is(this) {
            let Some(now) = Known::look_at(this) else {
                return Served::No;
            };
            *known = now;
        }
        if !Gprs::steps_plainly(taken.spsr) || (known.may_be_second && access::is_second(taken)) {
            return Served::No;
        }
        if esr.has_wnr() {
            let value = gprs.get(esr.register());
            match self.poster.write(&mut page, known.access, value) {
                Post::Refused => Served::No,
                Post::Done if gprs.host_is_called => Served::Enter,
                Post::Done => Served::HostSoon,
                Post::Call => Served::HostNow,
            }
        } else {
            let Some(value) = self.poster.read(&mut page, known.access) else {
                return Served::No;
            };
            gprs.set(esr.register(), value);
            known.then
        }
    }
}

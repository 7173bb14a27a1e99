//! Accesses of a device of the host's that need not wait for the host (crate
//! `posted`): the page, and who serves them.

use core::fmt::Write;
use core::sync::atomic::{Ordering, fence};

use arm64::regs::SCTLR_EL1;
use arm64::syndrome::{Class, Syndrome};
use posted::{Access, Memory, Post, Poster};

use super::interrupts::Interrupts;
use crate::cpu::fault::faulting_ipa;
use crate::memory::granule::{Granules, Pin, State};
use crate::memory::guarded::{self, ExternalAbort};
use crate::memory::phys;
use crate::realm::Realm;
use crate::rec::Run;

/// Of a realm without such a page: where no device is.
pub const NOWHERE: u64 = u64::MAX;

/// A page of the host's that speaks for a device.
#[derive(Debug)]
pub struct Posting {
    /// Where the device is, IPA.
    device: u64,
    page: HostPage,
    /// How long a write may wait, in ticks of the counter.
    delay: u64,
    poster: Poster,
}

/// The page's PA: the start of a granule of the host's that is pinned.
#[derive(Clone, Copy, Debug)]
struct HostPage(u64);

impl HostPage {
    /// The PA of a word in it; the page's is a multiple of what it holds.
    #[inline]
    const fn word(self, word: usize) -> u64 {
        self.0 | (8 * word as u64)
    }
}

impl Memory for HostPage {
    type Error = ExternalAbort;

    fn load(&mut self, word: usize) -> Result<u64, ExternalAbort> {
        // SAFETY: in the page, which is the host's as long as the pin is kept.
        let value = unsafe { guarded::load64(self.word(word)) };
        fence(Ordering::Acquire);
        value
    }

    fn store(&mut self, word: usize, value: u64) -> Result<(), ExternalAbort> {
        fence(Ordering::Release);
        // SAFETY: as above; both are multiples of 8.
        unsafe { guarded::put(self.0, &[[8 * word as u64, value]]) }
    }

    fn fence(&mut self) {
        fence(Ordering::SeqCst);
    }

    fn load_both(&mut self, words: [usize; 2]) -> Result<[u64; 2], ExternalAbort> {
        // SAFETY: as above.
        unsafe { guarded::load64_both(words.map(|word| self.word(word))) }
    }

    fn store_both(&mut self, stores: [(usize, u64); 2], load: usize) -> Result<u64, ExternalAbort> {
        let stores = stores.map(|(word, value)| (self.word(word), value));
        // SAFETY: as above.
        unsafe { guarded::store64_both(stores, self.word(load)) }
    }
}

impl Posting {
    /// For the device at the IPA `device`: the page at the start of the granule that
    /// `pin` keeps the host's, from now on.
    pub fn new(device: u64, page: u64, pin: Pin<'_>, delay: u64) -> Self {
        pin.keep();
        Self {
            device,
            page: HostPage(page),
            delay,
            poster: Poster::new(),
        }
    }

    /// Lets go of the page.
    pub fn end(self, granules: &Granules) {
        if let Some(granule) = granules.get(self.page.0) {
            granule.put();
        }
    }
}

/// What became of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is no access that is served here.
    No,
    /// The guest goes on.
    Enter,
    /// The same, but the host is to come before.
    CallHost,
}

/// Serves an access of the device, or has it wait. This is the way of every byte
/// on a console: nothing else is done here.
#[inline]
pub fn serve(guest: &mut Interrupts<'_>, run: &mut Run, esr: Syndrome) -> Served {
    let device = guest.realm.posted_at.load(Ordering::Relaxed);
    let plain =
        esr.class() == Class::DATA_ABORT_LOWER && esr.has_access() && esr.fault().is_translation();
    if !plain {
        return Served::No;
    }
    // Above the device's page as below it: no register of the page's.
    let offset = faulting_ipa(esr).wrapping_sub(device);
    let Some(access) = Access::new(offset, esr.size_shift()) else {
        return Served::No;
    };
    // Of one that may be the end of another there is more to find out.
    if offset == 0 && !super::access::as_told(esr).has_access() {
        return Served::No;
    }
    serve_access(guest, run, esr, device, access)
}

#[inline]
fn serve_access(
    guest: &mut Interrupts<'_>,
    run: &mut Run,
    esr: Syndrome,
    at: u64,
    access: Access,
) -> Served {
    let mut posting = guest.realm.posted.lock();
    let Some(Posting {
        device,
        page,
        delay,
        poster,
    }) = posting.as_mut()
    else {
        return Served::No;
    };
    // The host may have given it another device meanwhile.
    if *device != at {
        return Served::No;
    }
    let big_endian = run.gprs.is_big_endian(SCTLR_EL1.get());
    if !esr.is_write() {
        // A page that does not answer serves nothing.
        let Ok(Some(value)) = poster.read(page, access) else {
            return Served::No;
        };
        let value = esr.ordered(value, big_endian);
        run.gprs.set(esr.register(), esr.extend(value));
        run.gprs.step_over(esr);
        return Served::Enter;
    }
    let value = esr.ordered(run.gprs.get(esr.register()), big_endian);
    let post = poster.write(page, access, value);
    let delay = *delay;
    drop(posting);
    match post {
        Err(ExternalAbort) | Ok(Post::Refused) => Served::No,
        Ok(Post::Done) => {
            run.gprs.step_over(esr);
            guest.call_host_in(run, delay);
            Served::Enter
        }
        Ok(Post::Call) => {
            run.gprs.step_over(esr);
            Served::CallHost
        }
    }
}

/// The page of a host that will not look at it again.
struct Left(HostPage);

impl Memory for Left {
    type Error = ExternalAbort;

    fn load(&mut self, word: usize) -> Result<u64, ExternalAbort> {
        let at = phys::pointer::<u64>(self.0.word(word));
        // SAFETY: as `HostPage::load`. Not by a guarded routine, which works on
        // the stack that a report may be on; a page in which something was posted
        // has answered before.
        Ok(unsafe { at.read_volatile() })
    }

    fn store(&mut self, _word: usize, _value: u64) -> Result<(), ExternalAbort> {
        Err(ExternalAbort)
    }

    fn fence(&mut self) {}
}

/// Tells, when EL2 dies, what guests have written that the host has not taken.
pub fn report(granules: &Granules, log: &mut impl Write) {
    granules.each(State::Rd, |rd| {
        // SAFETY: the granule is an RD, and no call ends while EL2 dies.
        let realm = unsafe { Realm::at(rd) };
        let Some(posting) = realm.posted.try_lock() else {
            return;
        };
        let Some(Posting { page, poster, .. }) = &*posting else {
            return;
        };
        let mut begun = false;
        let _ = poster.waiting(&mut Left(*page), |write| {
            if !begun {
                begun = true;
                let _ = write!(log, "guest vmid {}: the host has not seen: ", realm.vmid);
            }
            let _ = write!(log, "{}", core::ascii::escape_default(write.value as u8));
        });
        if begun {
            let _ = writeln!(log);
        }
    });
}

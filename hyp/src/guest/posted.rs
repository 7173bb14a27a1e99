//! Accesses of a device of the host's that need not wait for the host (crate
//! `posted`): the page, and who serves them.

use core::fmt::Write;
use core::sync::atomic::{Ordering, fence};

use ::rmi::run::ExitReason;
use ::rmi::syndrome::Syndrome;
use posted::{Access, Memory, PAGE, Post, Poster};

use super::exits::Next;
use super::interrupts::Interrupts;
use super::run::Record;
use crate::memory::granule::{Granules, Pin, State};
use crate::memory::guarded::{self, ExternalAbort};
use crate::memory::phys;
use crate::mrs;
use crate::realm::Realm;
use crate::rec::Run;

/// A page of the host's, and the device that it speaks for.
#[derive(Debug)]
pub struct Posting {
    page: HostPage,
    /// Where the device is in the IPA space, a multiple of [`PAGE`].
    ipa: u64,
    /// How long a write may wait, in ticks of the counter.
    delay: u64,
    poster: Poster,
}

/// The page's PA: the start of a granule of the host's that is pinned.
#[derive(Clone, Copy, Debug)]
struct HostPage(u64);

impl Memory for HostPage {
    type Error = ExternalAbort;

    fn load(&mut self, word: usize) -> Result<u64, ExternalAbort> {
        // SAFETY: in the page, which is the host's as long as the pin is kept.
        let value = unsafe { guarded::load64(self.0 + 8 * word as u64) };
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
}

impl Posting {
    /// The page at the start of the granule that `pin` keeps the host's, from now
    /// on.
    pub fn new(page: u64, pin: Pin<'_>, ipa: u64, delay: u64) -> Self {
        pin.keep();
        Self {
            page: HostPage(page),
            ipa,
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

/// Serves an access at `ipa`, or has it wait; `None` when it is the host's.
pub fn access(guest: &mut Interrupts<'_>, run: &mut Run, esr: Syndrome, ipa: u64) -> Option<Next> {
    let mut posting = guest.realm.posted.lock();
    let Posting {
        page,
        ipa: base,
        delay,
        poster,
    } = posting.as_mut()?;
    let offset = ipa.checked_sub(*base).filter(|at| *at < PAGE as u64)?;
    let access = Access::new(offset, esr.size().into())?;
    let big_endian = run.gprs.is_big_endian(mrs!("sctlr_el1"));
    if !esr.is_write() {
        // A page that does not answer serves nothing.
        let value = poster.read(page, access).ok()??;
        let value = esr.ordered(value, big_endian);
        run.gprs.set(esr.register(), esr.extend(value));
        run.gprs.step_over(esr);
        return Some(Next::Enter);
    }
    let value = esr.ordered(run.gprs.get(esr.register()), big_endian);
    let post = poster.write(page, access, value).ok()?;
    let delay = *delay;
    drop(posting);
    match post {
        Post::Refused => None,
        Post::Done => {
            run.gprs.step_over(esr);
            guest.call_host_in(run, delay);
            Some(Next::Enter)
        }
        Post::Call => {
            run.gprs.step_over(esr);
            Some(Next::Exit(Record::new(ExitReason::Irq)))
        }
    }
}

/// The page of a host that will not look at it again.
struct Left(HostPage);

impl Memory for Left {
    type Error = ExternalAbort;

    fn load(&mut self, word: usize) -> Result<u64, ExternalAbort> {
        let at = phys::pointer::<u64>(self.0.0 + 8 * word as u64);
        // SAFETY: as `HostPage::load`. Not by a guarded routine, which works on
        // the stack that a report may be on; the page has answered before.
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

//! What time it is: the machine's clock at boot, and the counter since.

use arm64::regs::{CNTFRQ_EL0, CNTPCT_EL0};

/// A time that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Seconds since 1970 when the counter stood at `counter`.
    seconds: u32,
    counter: u64,
}

impl Time {
    /// It is so many seconds after 1970.
    pub fn from_unix(seconds: u32) -> Self {
        Self {
            seconds,
            counter: CNTPCT_EL0.get(),
        }
    }

    /// The seconds since 1970.
    pub fn now(&self) -> u64 {
        let ticks = CNTPCT_EL0.get().saturating_sub(self.counter);
        let since = ticks.checked_div(CNTFRQ_EL0.get()).unwrap_or(0);
        u64::from(self.seconds).saturating_add(since)
    }

    /// What the physical counter counts when it comes to be so many seconds after 1970.
    pub fn counter_at(&self, seconds: u64) -> u64 {
        let from = seconds.saturating_sub(self.seconds.into());
        let ticks = from.saturating_mul(CNTFRQ_EL0.get());
        self.counter.saturating_add(ticks)
    }

    /// That of the machine's PL031; 1970 without one.
    ///
    /// # Safety
    /// The registers are mapped as Device at `base`, and nobody else uses them.
    #[cfg(target_os = "none")]
    pub unsafe fn of_machine(base: Option<u64>) -> Self {
        let seconds = base.map_or(0, |base| {
            let registers = core::ptr::with_exposed_provenance_mut(base as usize);
            // SAFETY: the caller's promise.
            unsafe { arm_pl031::Rtc::new(registers) }.get_unix_timestamp()
        });
        Self::from_unix(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arm64::recording;

    #[test]
    fn a_second_begins_where_the_counter_says() {
        recording::set(CNTFRQ_EL0, 1000);
        recording::set(CNTPCT_EL0, 500);
        let time = Time::from_unix(1_800_000_000);
        assert_eq!(time.counter_at(1_800_000_003), 3500);
        assert_eq!(time.counter_at(7), 500, "before it began");
        for (count, seconds) in [(3499, 2), (3500, 3), (u64::MAX, (u64::MAX - 500) / 1000)] {
            recording::set(CNTPCT_EL0, count);
            assert_eq!(time.now(), 1_800_000_000 + seconds);
        }
        assert_eq!(time.counter_at(u64::MAX), u64::MAX);
    }
}

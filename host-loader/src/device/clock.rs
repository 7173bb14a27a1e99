//! A PL031 (Arm DDI 0224): seconds, and an alarm.

/// The registers, by offset.
const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;
/// The first of its eight identification registers.
const ID: u64 = 0xfe0;
const IDS: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A clock. It goes by another, which counts seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// How far the guest has set it before the other, modulo 2^32.
    ahead: u32,
    set: u32,
    matches: u32,
    masked_in: bool,
    /// When by the other clock it comes to `matches`.
    alarm: Option<u64>,
    raised: bool,
}

impl Clock {
    /// Reads a register, at `now` of the other clock.
    pub fn read(&self, offset: u64, now: u64) -> u32 {
        match offset {
            DR => self.shows(now),
            MR => self.matches,
            LR => self.set,
            CR => 1,
            IMSC => self.masked_in.into(),
            RIS => self.raised.into(),
            MIS => self.line().into(),
            ID..=0xffc => IDS[((offset - ID) / 4) as usize].into(),
            _ => 0,
        }
    }

    /// Writes one.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) {
        match offset {
            MR => self.matches = value,
            LR => (self.set, self.ahead) = (value, value.wrapping_sub(now as u32)),
            IMSC => self.masked_in = value & 1 != 0,
            ICR => self.raised &= value & 1 == 0,
            _ => {}
        }
        if matches!(offset, MR | LR) {
            let left = self.matches.wrapping_sub(self.shows(now));
            self.alarm = Some(now + u64::from(left));
        }
        self.pass(now);
    }

    /// It is `now`.
    pub fn pass(&mut self, now: u64) {
        if self.alarm.is_some_and(|at| at <= now) {
            self.alarm = None;
            self.raised = true;
        }
    }

    /// When it has to be told of the time, by the other clock, for its interrupt.
    pub fn alarm(&self) -> Option<u64> {
        self.alarm.filter(|_| self.masked_in)
    }

    /// The level of its interrupt.
    pub const fn line(&self) -> bool {
        self.raised && self.masked_in
    }

    const fn shows(&self, now: u64) -> u32 {
        (now as u32).wrapping_add(self.ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_from_where_it_is_set() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(DR, 1000), 1000);
        clock.write(LR, 5, 1000);
        assert_eq!(clock.read(DR, 1000), 5);
        assert_eq!(clock.read(DR, 1007), 12);
        assert_eq!((clock.read(LR, 1007), clock.read(CR, 1007)), (5, 1));
        clock.write(DR, 7, 1007);
        assert_eq!(clock.read(DR, 1007), 12, "nobody writes that");
    }

    #[test]
    fn it_is_a_pl031() {
        let clock = Clock::default();
        assert_eq!(clock.read(0xfe0, 0), 0x31);
        assert_eq!(clock.read(0xfe4, 0), 0x10);
        assert_eq!(clock.read(0xffc, 0), 0xb1);
    }

    #[test]
    fn its_alarm_comes_once_and_stays_until_it_is_cleared() {
        let mut clock = Clock::default();
        let raw = |clock: &Clock| (clock.read(RIS, 0), clock.read(MIS, 0), clock.line());
        clock.write(MR, 1010, 1000);
        assert_eq!(clock.alarm(), None, "nobody would hear of it");
        clock.write(IMSC, 1, 1000);
        assert_eq!(clock.alarm(), Some(1010));
        clock.write(IMSC, !1, 1000);
        assert_eq!((clock.read(IMSC, 1000), clock.alarm()), (0, None));
        clock.pass(1009);
        assert_eq!(raw(&clock), (0, 0, false));
        clock.pass(1010);
        assert_eq!((raw(&clock), clock.alarm()), ((1, 0, false), None));
        clock.write(IMSC, 1, 1011);
        assert_eq!(raw(&clock), (1, 1, true));
        clock.write(ICR, !1, 1011);
        assert_eq!(raw(&clock), (1, 1, true), "of another bit");
        clock.write(ICR, 1, 1011);
        assert_eq!(raw(&clock), (0, 0, false));
        clock.pass(2000);
        assert_eq!(raw(&clock), (0, 0, false));
        // Where it stands now, at once; where it has been, once around.
        clock.write(MR, 2000, 2000);
        assert_eq!(raw(&clock), (1, 1, true));
        clock.write(ICR, 1, 2000);
        clock.write(MR, 1999, 2000);
        assert_eq!(clock.alarm(), Some(2000 + u64::from(u32::MAX)));
        // It is set nearer to it.
        clock.write(LR, 1990, 2000);
        assert_eq!(clock.alarm(), Some(2009));
    }
}

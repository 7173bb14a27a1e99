//! A PL031 (Arm DDI 0224): seconds, for a guest that starts from flash. Its alarm never
//! comes.

/// The registers, by offset.
const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
/// The first of its eight identification registers.
const ID: u64 = 0xfe0;
const IDS: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// How far the guest has set it before or behind the host's.
    ahead: u32,
    set: u32,
    matches: u32,
    mask: u32,
}

impl Clock {
    /// Reads a register, `now` seconds after 1970.
    pub fn read(&self, offset: u64, now: u32) -> u32 {
        match offset {
            DR => now.wrapping_add(self.ahead),
            MR => self.matches,
            LR => self.set,
            CR => 1,
            IMSC => self.mask,
            ID..=0xffc => IDS[((offset - ID) / 4) as usize].into(),
            // No alarm is raw or masked.
            _ => 0,
        }
    }

    /// Writes one.
    pub fn write(&mut self, offset: u64, value: u32, now: u32) {
        match offset {
            MR => self.matches = value,
            LR => (self.set, self.ahead) = (value, value.wrapping_sub(now)),
            IMSC => self.mask = value & 1,
            _ => {}
        }
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
        assert_eq!(clock.read(0x14, 0), 0, "no alarm");
    }
}

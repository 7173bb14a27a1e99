//! Registers of devices, by frames that an access cannot leave.

/// What a register of a device may be: 1, 2, 4 or 8 bytes.
pub trait Word: Copy {
    /// Loads it, by one instruction that has a syndrome.
    ///
    /// # Safety
    /// A register is at `address`, as [`Frame::new`] has it, or the caller is
    /// ready for the abort.
    unsafe fn load(address: u64) -> Self;
    /// Stores it, likewise.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    unsafe fn store(self, address: u64);
}

macro_rules! words {
    ($($word:ident $load:literal $store:literal;)*) => {$(
        impl Word for $word {
            #[inline(always)]
            unsafe fn load(address: u64) -> Self {
                #[cfg(target_os = "none")]
                {
                    let value: u64;
                    // SAFETY: the caller's promise.
                    unsafe {
                        core::arch::asm!(concat!($load, ", [{}]"), out(reg) value,
                            in(reg) address, options(nostack, preserves_flags));
                    }
                    value as Self
                }
                #[cfg(not(target_os = "none"))]
                {
                    crate::recording::load(address, size_of::<Self>() as u32) as Self
                }
            }

            #[inline(always)]
            unsafe fn store(self, address: u64) {
                #[cfg(target_os = "none")]
                // SAFETY: the caller's promise.
                unsafe {
                    core::arch::asm!(concat!($store, ", [{}]"), in(reg) u64::from(self),
                        in(reg) address, options(nostack, preserves_flags));
                }
                #[cfg(not(target_os = "none"))]
                crate::recording::store(address, size_of::<Self>() as u32, self.into());
            }
        }
    )*};
}

words! {
    u8 "ldrb {:w}" "strb {:w}";
    u16 "ldrh {:w}" "strh {:w}";
    u32 "ldr {:w}" "str {:w}";
    u64 "ldr {:x}" "str {:x}";
}

/// `SIZE` bytes of a device's registers. Whoever has one may access all of it,
/// and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Frame<const SIZE: u64>(u64);

impl<const SIZE: u64> Frame<SIZE> {
    /// The frame at `base`.
    ///
    /// # Safety
    /// The registers of a device are there, mapped at their own address for as
    /// long as a copy of the frame is used, and what is written to them by those
    /// who get a copy has the device access no memory that it may not.
    pub const unsafe fn new(base: u64) -> Self {
        Self(base)
    }

    /// Its first address.
    pub const fn base(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn at<T: Word>(self, offset: u64) -> u64 {
        let size = size_of::<T>() as u64;
        assert!(offset <= SIZE - size && offset.is_multiple_of(size));
        self.0 + offset
    }

    /// Reads the register at `offset`.
    ///
    /// # Panics
    /// When the frame has no such register: it ends before, or lies askew.
    #[inline(always)]
    pub fn read<T: Word>(self, offset: u64) -> T {
        // SAFETY: inside the frame, by its contract.
        unsafe { T::load(self.at::<T>(offset)) }
    }

    /// Writes it.
    ///
    /// # Panics
    /// As for [`read`](Self::read).
    #[inline(always)]
    pub fn write<T: Word>(self, offset: u64, value: T) {
        // SAFETY: inside the frame, by its contract.
        unsafe { value.store(self.at::<T>(offset)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::{self, Event};

    fn frame() -> Frame<0x1000> {
        // SAFETY: nothing but a record is behind it.
        unsafe { Frame::new(0x0a00_0000) }
    }

    #[test]
    fn accesses_have_their_size_and_place() {
        recording::set_device(0x0a00_0008, 8, 0x1122_3344_5566_7788);
        let events = recording::of(|| {
            assert_eq!(frame().read::<u32>(0xc), 0x1122_3344);
            frame().write::<u8>(0xfff, 0x5a);
            frame().write::<u64>(0xff8, 7);
        });
        assert_eq!(
            events,
            [
                Event::Load(0x0a00_000c, 4),
                Event::Store(0x0a00_0fff, 1, 0x5a),
                Event::Store(0x0a00_0ff8, 8, 7),
            ]
        );
    }

    #[test]
    #[should_panic(expected = "offset")]
    fn an_access_does_not_leave_its_frame() {
        frame().read::<u32>(0xffd);
    }

    #[test]
    #[should_panic(expected = "offset")]
    fn nor_does_a_far_one() {
        frame().write::<u8>(u64::MAX, 0);
    }
}

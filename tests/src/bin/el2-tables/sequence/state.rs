//! What a guest's addresses should be.

use core::cell::UnsafeCell;

use pgtable::{Access, Attrs, Dirty};
use tests::ranges::{Ranges, State};

/// Pieces of a guest's space that are kept apart.
pub const PIECES: usize = 600;

/// What a range of IPAs is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Is {
    /// Mapped from this address on. The access flag is not kept here.
    Mapped {
        /// The address.
        pa: u64,
        /// How.
        attrs: Attrs,
    },
    /// Invalid with these bits.
    Annotated(u64),
}

impl State for Is {
    fn onward(self, bytes: u64) -> Self {
        match self {
            Self::Mapped { pa, attrs } => Self::Mapped {
                pa: pa + bytes,
                attrs,
            },
            same @ Self::Annotated(_) => same,
        }
    }
}

/// A guest's addresses.
pub type Shadow = Ranges<Is, PIECES>;

struct Shadows([UnsafeCell<Shadow>; 2]);

// SAFETY: The boot CPU alone runs sequences, one at a time.
unsafe impl Sync for Shadows {}

static SHADOWS: Shadows = Shadows([const { UnsafeCell::new(Ranges::new()) }; 2]);

/// A guest's list, empty.
///
/// # Safety
/// One at a time for each `guest`, on the boot CPU.
pub unsafe fn shadow(guest: usize) -> &'static mut Shadow {
    // SAFETY: The caller's promise.
    let shadow = unsafe { &mut *SHADOWS.0[guest].get() };
    shadow.reset();
    shadow
}

/// Changes how mapped memory is mapped; the rest stays.
pub fn change(shadow: &mut Shadow, start: u64, end: u64, f: impl Fn(Attrs) -> Attrs) {
    shadow.change(start, end, |is| {
        Some(match is {
            Is::Mapped { pa, attrs } => Is::Mapped {
                pa,
                attrs: f(attrs),
            },
            other @ Is::Annotated(_) => other,
        })
    });
}

/// The access without stores.
pub const fn without_write(access: Access) -> Access {
    match access {
        Access::ReadWrite | Access::Read => Access::Read,
        Access::Write | Access::None => Access::None,
    }
}

/// The access with stores.
pub const fn with_write(access: Access) -> Access {
    match access {
        Access::ReadWrite | Access::Read => Access::ReadWrite,
        Access::Write | Access::None => Access::Write,
    }
}

/// What either allows.
pub const fn either(one: Access, other: Access) -> Access {
    let read = matches!(one, Access::Read | Access::ReadWrite)
        || matches!(other, Access::Read | Access::ReadWrite);
    let write = matches!(one, Access::Write | Access::ReadWrite)
        || matches!(other, Access::Write | Access::ReadWrite);
    match (read, write) {
        (true, true) => Access::ReadWrite,
        (true, false) => Access::Read,
        (false, true) => Access::Write,
        (false, false) => Access::None,
    }
}

/// Whether a store is allowed.
pub const fn writes(access: Access) -> bool {
    matches!(access, Access::Write | Access::ReadWrite)
}

/// Whether a load is allowed.
pub const fn reads(access: Access) -> bool {
    matches!(access, Access::Read | Access::ReadWrite)
}

/// Whether hardware marks a store to it instead of faulting.
pub fn tracks(attrs: &Attrs, hw_dirty: bool) -> bool {
    hw_dirty && attrs.dirty == Dirty::Track
}

//! The errata that this crate knows, as a table.

use crate::errata::Errata;

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Erratum {
    /// The flag that turns the work-around on.
    pub flag: Errata,
    /// Its name, for the boot log.
    pub name: &'static str,
    /// When a machine has it.
    pub condition: &'static str,
    /// What this crate does then.
    pub work_around: &'static str,
}

/// Every erratum that this crate knows.
pub const ERRATA: [Erratum; 2] = [
    Erratum {
        flag: Errata::QEMU_RANGE_LENGTH,
        name: "QEMU 32-bit TLBI range length",
        condition: "QEMU (7.2 to 11.1.3 seen): the length of a range TLBI is computed in \
                    32 bits, so a multiple of 4 GiB leaves entries stale",
        work_around: "every range operation is kept below 4 GiB",
    },
    Erratum {
        flag: Errata::TLBI_SYNC_REPEAT,
        name: "CVE-2025-10263",
        condition: "CPUs where TLBI and DSB may complete before another CPU's store made \
                    through the old translation is observed",
        work_around: "each broadcast sync ends with one more stage-1 TLBI and DSB",
    },
];

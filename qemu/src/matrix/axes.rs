//! What a configuration is made of: the axes of the matrix and their values.

/// An axis: its values, each by the word that names and filters take.
macro_rules! axis {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $value:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$about])* $value),+
        }

        impl $name {
            /// All values, in their order.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// The word for it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Self::$value => $word),+
                }
            }
        }
    };
}

axis! {
    /// The CPU, by what of physical addresses and granules it has.
    Hardware {
        /// Cortex-A76: 40 bits.
        A76 = "a76",
        /// Cortex-A72: 44 bits, no 16K.
        A72 = "a72",
        /// Neoverse N1: 48 bits, stage-2 granules as stage 1's.
        N1 = "n1",
        /// Neoverse N2: 48 bits, FEAT_TLBIRANGE, FEAT_TTL, FEAT_S2FWB.
        N2 = "n2",
        /// FEAT_LPA: 52 bits with 64K alone.
        Lpa = "lpa",
        /// FEAT_LPA2: 52 bits with every granule.
        Lpa2 = "lpa2",
    }
}

axis! {
    /// What of the CPU is taken for absent, by a boot argument.
    Mask {
        /// Nothing.
        Nothing = "all",
        /// Physical addresses of more than 48 bits.
        Pa52 = "nopa52",
        /// Virtual addresses of more than 48 bits.
        Va52 = "nova52",
    }
}

axis! {
    /// A translation granule, of EL2 or of a guest.
    Pages {
        /// 4 KiB.
        K4 = "4k",
        /// 16 KiB.
        K16 = "16k",
        /// 64 KiB.
        K64 = "64k",
    }
}

axis! {
    /// How many bits of virtual and physical addresses EL2's own stage 1 has.
    Own {
        /// As many as the CPU translates to, of both.
        All = "own",
        /// 48 of both.
        Va48Pa48 = "own48x48",
        /// 48 of virtual, 52 of physical addresses.
        Va48Pa52 = "own48x52",
        /// 52 of virtual, 48 of physical addresses.
        Va52Pa48 = "own52x48",
    }
}

axis! {
    /// Where RAM is: EL2, the host and all guests' memory.
    Ram {
        /// Where QEMU's machine has it, at 1 GiB.
        Low = "low",
        /// At 2^48.
        Above48 = "2p48",
        /// At 0xe800000000000: bits 51:48 of each address differ from zero.
        Above51 = "2p51",
    }
}

axis! {
    /// How a guest's memory stands towards the host.
    Mode {
        /// Shared.
        Plain = "plain",
        /// The guest's own.
        Protected = "protected",
        /// Its own, and it knows.
        Realm = "realm",
    }
}

axis! {
    /// When a guest gets its memory.
    Populate {
        /// All at start, by the largest blocks.
        Eager = "eager",
        /// A piece at its first touch.
        Lazy = "lazy",
        /// All at start, by pages alone.
        Pages = "pages",
    }
}

axis! {
    /// Which of the start levels that granule and IPA bits have.
    Start {
        /// The lowest: fewest levels, most root tables.
        Lowest = "short",
        /// The highest: most levels, one root table or few.
        Highest = "long",
    }
}

axis! {
    /// Where the guest's memory begins, by its own addresses.
    Load {
        /// At 1 GiB, as on QEMU's machine.
        Low = "load1g",
        /// At 2^48.
        Above48 = "load2p48",
    }
}

axis! {
    /// The guest's kernel.
    Kernel {
        /// A tiny one: 4K pages, addresses of 48 bits.
        Tiny4k48 = "tiny-4k-va48-pa48",
        /// 4K, 52 bits.
        Tiny4k52 = "tiny-4k-va52-pa52",
        /// 16K, 48 bits.
        Tiny16k48 = "tiny-16k-va48-pa48",
        /// 16K, 52 bits.
        Tiny16k52 = "tiny-16k-va52-pa52",
        /// 64K, 48 bits.
        Tiny64k48 = "tiny-64k-va48-pa48",
        /// 64K, 52 bits.
        Tiny64k52 = "tiny-64k-va52-pa52",
        /// Debian 12's: 4K, 48 bits.
        Debian12 = "debian12",
        /// Debian 13's: 4K, 52 bits.
        Debian13 = "debian13",
        /// Debian 13's of 16K, 52 bits.
        Debian13On16k = "debian13-16k",
        /// Debian's newest for 13: 4K, 52 bits, and it knows realms.
        Backports = "debian-backports",
        /// The same of 16K.
        BackportsOn16k = "debian-backports-16k",
        /// No Linux: a program of ours that does the same tour, wherever it is.
        Tour = "tour",
    }
}

impl Hardware {
    /// QEMU's name of the CPU.
    pub const fn cpu(self) -> &'static str {
        match self {
            Self::A76 => "cortex-a76",
            Self::A72 => "cortex-a72",
            Self::N1 => "neoverse-n1",
            Self::N2 => "neoverse-n2",
            Self::Lpa => "max,pauth-impdef=on,lpa2=off",
            Self::Lpa2 => "max,pauth-impdef=on",
        }
    }

    /// Bits of its physical addresses.
    pub const fn pa_bits(self) -> u8 {
        match self {
            Self::A76 => 40,
            Self::A72 => 44,
            Self::N1 | Self::N2 => 48,
            Self::Lpa | Self::Lpa2 => 52,
        }
    }

    /// Whether it translates with this granule.
    pub const fn has(self, pages: Pages) -> bool {
        !matches!((self, pages), (Self::A72, Pages::K16))
    }
}

impl Mask {
    /// The boot argument that asks for it.
    pub const fn argument(self) -> &'static str {
        match self {
            Self::Nothing => "",
            Self::Pa52 => " undercroft.pa=48",
            Self::Va52 => " undercroft.va=48",
        }
    }
}

impl Own {
    /// The boot argument that asks for it.
    pub const fn argument(self) -> &'static str {
        match self {
            Self::All => "",
            Self::Va48Pa48 => " undercroft.el2=48x48",
            Self::Va48Pa52 => " undercroft.el2=48x52",
            Self::Va52Pa48 => " undercroft.el2=52x48",
        }
    }
}

impl Load {
    /// Where that is.
    pub const fn base(self) -> u64 {
        match self {
            Self::Low => 0x4000_0000,
            Self::Above48 => 1 << 48,
        }
    }
}

impl Pages {
    /// Bytes.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::K4 => 4 << 10,
            Self::K16 => 16 << 10,
            Self::K64 => 64 << 10,
        }
    }

    /// As the table library has it.
    pub const fn granule(self) -> pgtable::Granule {
        match self {
            Self::K4 => pgtable::Granule::K4,
            Self::K16 => pgtable::Granule::K16,
            Self::K64 => pgtable::Granule::K64,
        }
    }
}

impl Ram {
    /// Where it begins.
    pub const fn base(self) -> u64 {
        match self {
            Self::Low => crate::machine::virt::RAM_BASE,
            Self::Above48 => 1 << 48,
            Self::Above51 => 0xe_8000_0000_0000,
        }
    }
}

impl Kernel {
    /// Its pages.
    pub const fn pages(self) -> Pages {
        match self {
            Self::Tiny16k48 | Self::Tiny16k52 | Self::Debian13On16k | Self::BackportsOn16k => {
                Pages::K16
            }
            Self::Tiny64k48 | Self::Tiny64k52 => Pages::K64,
            _ => Pages::K4,
        }
    }

    /// Whether it is made for addresses of 52 bits.
    pub const fn is_wide(self) -> bool {
        !matches!(
            self,
            Self::Tiny4k48 | Self::Tiny16k48 | Self::Tiny64k48 | Self::Debian12
        )
    }

    /// Whether it comes from Debian's archive; a tiny one is built when a user asks for
    /// it, or in a cache of the user's.
    pub const fn is_packaged(self) -> bool {
        matches!(
            self,
            Self::Debian12
                | Self::Debian13
                | Self::Debian13On16k
                | Self::Backports
                | Self::BackportsOn16k
        )
    }

    /// Whether it knows what a realm is: Linux 6.13 and later.
    pub const fn knows_realms(self) -> bool {
        !matches!(self, Self::Debian12 | Self::Debian13 | Self::Debian13On16k)
    }
}

//! What a load or store instruction does, as a value: which registers, how
//! many bytes, where.

/// Where the address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// A general register; 31 is the stack pointer.
    Register(u8),
    /// The instruction's own address.
    Pc,
}

/// What is added to the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offset {
    /// Bytes.
    Immediate(i64),
    /// A register, extended and shifted left.
    Register {
        /// Its number; 31 is zero.
        m: u8,
        /// How it is widened.
        extend: Extend,
        /// Bits that it is shifted by.
        shift: u8,
    },
}

/// How an offset register is widened to 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extend {
    /// Zero-extended from 32 bits.
    Uxtw,
    /// All 64 bits.
    Lsl,
    /// Sign-extended from 32 bits.
    Sxtw,
    /// All 64 bits, by another name.
    Sxtx,
}

/// What the base register becomes, and which of its values addresses memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// The base stays; base + offset addresses memory.
    Offset,
    /// The base becomes base + offset, which addresses memory.
    Pre,
    /// The base becomes base + offset; the old base addresses memory.
    Post,
}

/// How a loaded value fills its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Widen {
    /// With zeros.
    Zero,
    /// With its sign, to 32 bits; the upper half is zero.
    Sign32,
    /// With its sign, to 64 bits.
    Sign64,
}

/// From memory, or to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Memory to registers.
    Load,
    /// Registers to memory.
    Store,
}

/// What an instruction needs the right to do with the memory that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// To read it.
    Read,
    /// To write it.
    Write,
    /// Both.
    ReadWrite,
}

/// What an atomic makes of memory's value and its operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combine {
    /// Sum.
    Add,
    /// Memory without the operand's bits.
    Clear,
    /// Exclusive or.
    Eor,
    /// Or.
    Set,
    /// The larger, signed.
    Smax,
    /// The smaller, signed.
    Smin,
    /// The larger, unsigned.
    Umax,
    /// The smaller, unsigned.
    Umin,
    /// The operand.
    Swap,
}

/// Elements of SIMD registers: LD1 to LD4 and ST1 to ST4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// All of `registers` × `structure` registers.
    Whole {
        /// Repetitions, each of `structure` registers.
        repeat: u8,
        /// Registers are all 16 bytes wide, else 8.
        wide: bool,
    },
    /// One lane of each register; the other lanes stay.
    One {
        /// Its number.
        lane: u8,
    },
    /// Every lane is the loaded element.
    Replicate {
        /// Registers are all 16 bytes wide, else 8.
        wide: bool,
    },
}

/// What is moved. `size` is the log2 of an element's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// One or two general registers.
    General {
        /// Load or store.
        direction: Direction,
        /// The first register.
        t: u8,
        /// The second, of a pair.
        t2: Option<u8>,
        /// 0 to 3.
        size: u8,
        /// Of a load.
        widen: Widen,
    },
    /// One or two SIMD and FP registers.
    Vector {
        /// Load or store.
        direction: Direction,
        /// The first register.
        t: u8,
        /// The second, of a pair.
        t2: Option<u8>,
        /// 0 to 4.
        size: u8,
    },
    /// Structures of SIMD elements.
    Structure {
        /// Load or store.
        direction: Direction,
        /// The first register; the others follow it, 0 after 31.
        t: u8,
        /// Elements of one structure, 1 to 4.
        elements: u8,
        /// Which lanes.
        lanes: Lanes,
        /// 0 to 3.
        size: u8,
    },
    /// A load that marks what it loads.
    LoadExclusive {
        /// The first register.
        t: u8,
        /// The second, of a pair.
        t2: Option<u8>,
        /// 0 to 3.
        size: u8,
    },
    /// A store that happens while the mark stands.
    StoreExclusive {
        /// Becomes 0 if it happened, else 1.
        s: u8,
        /// The first register.
        t: u8,
        /// The second, of a pair.
        t2: Option<u8>,
        /// 0 to 3.
        size: u8,
    },
    /// Memory becomes a combination of itself and a register.
    Atomic {
        /// Which.
        combine: Combine,
        /// The operand.
        s: u8,
        /// Becomes memory's old value.
        t: u8,
        /// 0 to 3.
        size: u8,
    },
    /// Memory becomes `t` (of a pair: and `t` + 1) if it is `s`, which becomes
    /// its old value.
    CompareSwap {
        /// Compared.
        s: u8,
        /// The new value.
        t: u8,
        /// Two registers each.
        pair: bool,
        /// 0 to 3.
        size: u8,
    },
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What is moved.
    pub action: Action,
    /// Where to and from.
    pub base: Base,
    /// And how far from there.
    pub offset: Offset,
    /// And what becomes of the base.
    pub index: Index,
    /// As EL0 would, LDTR and its like.
    pub unprivileged: bool,
}

impl Action {
    /// log2 of an element's bytes.
    pub const fn size(self) -> u8 {
        match self {
            Self::General { size, .. }
            | Self::Vector { size, .. }
            | Self::Structure { size, .. }
            | Self::LoadExclusive { size, .. }
            | Self::StoreExclusive { size, .. }
            | Self::Atomic { size, .. }
            | Self::CompareSwap { size, .. } => size,
        }
    }

    /// Consecutive elements in memory.
    pub const fn count(self) -> u64 {
        match self {
            Self::General { t2, .. }
            | Self::Vector { t2, .. }
            | Self::LoadExclusive { t2, .. }
            | Self::StoreExclusive { t2, .. } => 1 + t2.is_some() as u64,
            Self::Structure {
                elements,
                lanes,
                size,
                ..
            } => match lanes {
                Lanes::Whole { repeat, wide } => {
                    let bytes = if wide { 16 } else { 8 };
                    (repeat * elements) as u64 * (bytes >> size)
                }
                Lanes::One { .. } | Lanes::Replicate { .. } => elements as u64,
            },
            Self::Atomic { .. } => 1,
            Self::CompareSwap { pair, .. } => 1 + pair as u64,
        }
    }

    /// Bytes in memory.
    pub const fn bytes(self) -> u64 {
        self.count() << self.size()
    }

    /// What it needs the right to do.
    pub const fn touch(self) -> Touch {
        match self {
            Self::General { direction, .. }
            | Self::Vector { direction, .. }
            | Self::Structure { direction, .. } => match direction {
                Direction::Load => Touch::Read,
                Direction::Store => Touch::Write,
            },
            Self::LoadExclusive { .. } => Touch::Read,
            Self::StoreExclusive { .. } => Touch::Write,
            Self::Atomic { .. } | Self::CompareSwap { .. } => Touch::ReadWrite,
        }
    }
}

//! Fields of an instruction.

/// Bits `[high:low]`.
pub const fn bits(word: u32, high: u32, low: u32) -> u32 {
    word >> low & (u32::MAX >> (31 - (high - low)))
}

/// Bit `n`.
pub const fn bit(word: u32, n: u32) -> bool {
    word >> n & 1 != 0
}

/// The register number in bits `[low + 4:low]`.
pub const fn register(word: u32, low: u32) -> u8 {
    bits(word, low + 4, low) as u8
}

/// Bits `[high:low]` as a signed number.
pub const fn signed(word: u32, high: u32, low: u32) -> i64 {
    let unused = 31 - high;
    ((word << unused) as i32 >> (unused + low)) as i64
}

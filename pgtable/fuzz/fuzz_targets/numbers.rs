//! An input as numbers.

/// The input's words; what is left over at its end is not looked at.
pub fn numbers(data: &[u8]) -> Vec<u64> {
    data.as_chunks()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .collect()
}

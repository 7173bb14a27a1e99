//! What a single setting must be, wherever it comes from: the file, or an option.
//! A refusal says what the setting is and what was expected.

use alloc::format;
use alloc::string::{String, ToString};

use super::quote::Value;
use super::size::Shown;
use super::{Measure, Mode, PERSONALIZATION, Populate, RAM_BASE};

/// The unit that guest memory is counted in: what one level-2 block of the 4K
/// granule covers.
pub const MEMORY_UNIT: u64 = 2 << 20;

/// The most vCPUs that a guest can have: EL2 has indices for so many
/// (`hyp::realm::MAX_RECS`).
pub const MAX_VCPUS: u32 = 64;

/// Bytes of the longest command line that Linux on arm64 takes, without the zero
/// at its end (`COMMAND_LINE_SIZE`).
pub const MAX_CMDLINE: usize = 2047;

/// A guest's name.
pub fn name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if matches!(name.len(), 1..=32) && !name.starts_with('.') && name.chars().all(plain) {
        return Ok(());
    }
    Err(format!(
        "name = {}: expected 1 to 32 letters, digits, -, _ or ., not beginning with .",
        Value(name)
    ))
}

/// Bytes of a guest's memory.
pub fn memory(bytes: u64) -> Result<(), String> {
    if bytes > 0 && bytes.is_multiple_of(MEMORY_UNIT) {
        return Ok(());
    }
    Err(memory_is(&format!("\"{}\"", Shown(bytes))))
}

/// What is wrong with an amount of memory that reads so.
pub(crate) fn memory_is(text: &str) -> String {
    format!("memory = {text}: expected a multiple of 2M, such as \"512M\"")
}

/// The number of a guest's vCPUs.
pub fn vcpus(count: i64) -> Result<u32, String> {
    match u32::try_from(count) {
        Ok(count @ 1..=MAX_VCPUS) => Ok(count),
        _ => Err(format!("vcpus = {count}: expected 1 to {MAX_VCPUS}")),
    }
}

/// A kernel's command line.
pub fn cmdline(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        return Err("cmdline holds a zero byte, where it would end".to_string());
    }
    if text.len() > MAX_CMDLINE {
        return Err(format!(
            "cmdline is {} bytes long: expected at most {MAX_CMDLINE}, which is what Linux \
             takes",
            text.len()
        ));
    }
    Ok(())
}

/// A guest's mode.
pub fn mode(text: &str) -> Result<Mode, String> {
    if let Some((_, mode)) = Mode::ALL.iter().find(|(word, _)| *word == text) {
        return Ok(*mode);
    }
    let value = Value(text);
    Err(format!(
        "mode = {value}: expected \"plain\", \"protected\" or \"realm\""
    ))
}

/// What of a realm counts.
pub fn measure(text: &str) -> Result<Measure, String> {
    let known = Measure::ALL.iter().find(|(word, _)| *word == text);
    known
        .map(|(_, measure)| *measure)
        .ok_or_else(|| format!("measure = {}: expected \"all\" or \"none\"", Value(text)))
}

/// A realm's personalization value: the bytes, and zeros behind them.
pub fn personalization(text: &str) -> Result<[u8; PERSONALIZATION], String> {
    let bad = || {
        format!(
            "personalization = {}: expected up to {PERSONALIZATION} bytes, as two hexadecimal \
             digits each",
            Value(text)
        )
    };
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 2 * PERSONALIZATION {
        return Err(bad());
    }
    let mut bytes = [0; PERSONALIZATION];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or_else(bad);
        *byte = (digit(0)? << 4 | digit(1)?) as u8;
    }
    Ok(bytes)
}

/// Bits of an IPA space; how many its memory takes and its CPU has is the host's to say.
pub fn ipa_bits(bits: i64) -> Result<u32, String> {
    match u32::try_from(bits) {
        Ok(bits @ 32..=52) => Ok(bits),
        _ => Err(format!("ipa_bits = {bits}: expected 32 to 52")),
    }
}

/// Where a walk of stage 2 starts; which levels its granule and IPA bits have is the
/// host's to say.
pub fn start_level(level: i64) -> Result<i64, String> {
    match level {
        -1..=3 => Ok(level),
        _ => Err(format!("start_level = {level}: expected -1 to 3")),
    }
}

/// IPA of a guest's memory: what of it lies beyond its IPA space is the host's to say.
pub fn ram_base(base: i64) -> Result<u64, String> {
    let valid = |base: &u64| (RAM_BASE..1 << 52).contains(base) && base.is_multiple_of(MEMORY_UNIT);
    let base_is = u64::try_from(base).ok().filter(valid);
    base_is.ok_or_else(|| {
        format!("ram_base = {base:#x}: expected a multiple of 2M from {RAM_BASE:#x} to 2^52")
    })
}

/// A setting of realms, of a guest that is none.
pub(crate) fn of_realm(key: &str) -> String {
    format!("{key} is for realms: expected mode = \"realm\" beside it")
}

/// When a guest gets its memory.
pub fn populate(text: &str) -> Result<Populate, String> {
    let known = Populate::ALL.iter().find(|(word, _)| *word == text);
    known.map(|(_, populate)| *populate).ok_or_else(|| {
        format!(
            "populate = {}: expected \"eager\", \"lazy\", \"pages\" or \"lazy-pages\"",
            Value(text)
        )
    })
}

/// An address of a guest's.
pub(crate) fn address(key: &str, value: i64) -> Result<u64, String> {
    u64::try_from(value).map_err(|_| format!("{key} = {value}: expected an address"))
}

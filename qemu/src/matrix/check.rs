//! Whether a configuration was what it says: what the guest has seen, and what EL2 and
//! the host say of their tables and where they stand.

use anyhow::{Context as _, Result, ensure};

use super::axes::{Kernel, Mask, Mode, Pages, Ram};
use super::cell::Cell;
use super::machine::memory;

/// What the guest does: a line of each thing that it looks at.
///
/// `managed` is in pages and `MemTotal` the same memory in KiB; the 39th word of a
/// process's `stat` is the CPU that it runs on.
pub const TASK: &str = r#"
pages=$(awk '$1 == "managed" { sum += $2 } END { print sum }' /proc/zoneinfo)
total=$(awk '$1 == "MemTotal:" { print $2 }' /proc/meminfo)
echo "page $((total / pages))"
echo "memory $((total / 1024))"
echo "cpus $(nproc)"
mkdir -p /mnt; mount -t tmpfs tmpfs /mnt; cd /mnt
seq 40000 | head -c 131072 >half
for file in one two; do
    cat half half half half half half half half >part
    cat part part part part >piece
    cat piece piece piece piece >$file
done
cmp one two && echo "pattern $(($(wc -c <one) >> 20)) $(tail -c 131072 two | cmp - half && echo same)"
ticks() { awk '/arch_timer/ { for (n = 2; n <= NF; n++) sum += $n } END { print sum + 0 }' /proc/interrupts; }
before=$(ticks); usleep 200000
[ $(ticks) -gt $before ] && echo "ticks"
moved=
for cpu in $(seq 0 $(($(nproc) - 1))); do
    moved="$moved $(taskset $((1 << cpu)) awk '{ print $39 }' /proc/self/stat)"
done
echo "moved$moved"
dmesg | grep -o 'RSI version 1.0'
true
"#;

/// Which of the fields of VTCR_EL2 the geometry is: T0SZ, SL0, TG0, PS, DS, SL2.
const GEOMETRY: u64 = 0x3f | 3 << 6 | 3 << 14 | 7 << 16 | 1 << 32 | 1 << 33;

/// Bits of addresses by the codes of VTCR_EL2.PS, TCR_EL2.PS and ID_AA64MMFR0_EL1.PARange.
const RANGES: [u8; 7] = [32, 36, 40, 42, 44, 48, 52];

/// The fields of VTCR_EL2 as the Arm ARM has them, and the number of root tables: not as
/// the library under test computes them.
fn vtcr(cell: &Cell, level: i8) -> (u64, u32) {
    // TG0, the bits of a page's offset and of each level's index, and SL0 from level 0 on.
    let (tg0, page, stride, sl0) = match cell.hyp {
        Pages::K4 => (0, 12, 9, [2, 1, 0, 3]),
        Pages::K16 => (2, 14, 11, [3, 2, 1, 0]),
        Pages::K64 => (1, 16, 13, [3, 2, 1, 0]),
    };
    let lpa2 = cell.hyp != Pages::K64
        && (cell.ipa > 48 || cell.ram != Ram::Low || cell.hyp == Pages::K16 && level == 0);
    let most = if lpa2 || cell.hyp == Pages::K64 {
        52
    } else {
        48
    };
    let has = cell.pa_bits().min(most);
    let ps = RANGES.iter().position(|bits| *bits == has).unwrap_or(7) as u64;
    let sl = usize::try_from(level).map_or(1 << 33, |level| sl0[level] << 6);
    let resolved = page + stride * (4 - i32::from(level));
    let roots = 1 << (i32::from(cell.ipa) - resolved).max(0);
    let t0sz = 64 - u64::from(cell.ipa);
    (
        t0sz | sl | tg0 << 14 | ps << 16 | u64::from(lpa2) << 32,
        roots,
    )
}

/// TCR_EL2.DS and PS.
const DS: u32 = 32;
const PS: u32 = 16;

/// What a run said.
#[derive(Debug)]
pub struct Said<'a> {
    /// The guest's lines.
    pub guest: &'a str,
    /// The log's.
    pub log: &'a [String],
}

/// Holds what was said to the configuration.
///
/// # Errors
/// What was otherwise.
pub fn check(cell: &Cell, said: &Said<'_>) -> Result<()> {
    guest(cell, said.guest)?;
    tables(cell, said)?;
    places(cell, said)
}

/// What the guest has seen.
fn guest(cell: &Cell, text: &str) -> Result<()> {
    let cpus = cell.cpus;
    let moved: String = (0..cpus).map(|cpu| format!(" {cpu}")).collect();
    let mut expected = vec![
        format!("cpus {cpus}"),
        "pattern 16 same".into(),
        "ticks".into(),
        format!("moved{moved}"),
    ];
    if cell.kernel == Kernel::Tour {
        expected.push(format!("loaded at {:#x}", cell.load.base()));
        expected.push("within true".into());
        // What a CPU has, the guest sees of it what is not masked.
        let wide_va = u64::from(cell.hw.pa_bits() == 52 && cell.mask != Mask::Va52);
        let lpa2 = u64::from(cell.has_lpa2());
        let holds = RANGES
            .iter()
            .position(|bits| *bits >= cell.ipa)
            .unwrap_or(6);
        expected.push(format!("range {holds} wide {wide_va} lpa2 {lpa2}"));
        if cell.mode == Mode::Realm && cpus > 1 {
            expected.push("gone for all".into());
        }
    } else {
        expected.push(format!("page {}", cell.kernel.pages().bytes() >> 10));
    }
    if cell.mode == Mode::Realm {
        expected.push("RSI version 1.0".into());
    }
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    for line in &expected {
        ensure!(
            lines.contains(&line.as_str()),
            "the guest did not say `{line}`:\n{text}"
        );
    }
    let has = lines.iter().find_map(|line| line.strip_prefix("memory "));
    let has: u64 = has.and_then(|mib| mib.parse().ok()).unwrap_or(0);
    let given = memory(cell.kernel).as_mib();
    // What the kernel keeps for itself is more with larger pages.
    ensure!(
        has <= given && has * 10 >= given * 6,
        "the guest has {has} MiB of {given}"
    );
    Ok(())
}

/// Whether the guest's tables, and EL2's own, are of the geometry that was asked for.
fn tables(cell: &Cell, said: &Said<'_>) -> Result<()> {
    let geometry = cell.geometry().context("the configuration is excluded")?;
    let level = geometry.start().get();
    let (expected, roots) = vtcr(cell, level);
    let line = find(said, "bits of IPA, from level")?;
    let words = format!(
        "{} bits of IPA, from level {}, root tables: {}",
        cell.ipa, level, roots
    );
    ensure!(line.contains(&words), "expected `{words}`: {line}");
    let words = format!(
        "RAM at {:#x}, {}, {}",
        cell.load.base(),
        cell.mode.word(),
        cell.populate.word()
    );
    ensure!(line.ends_with(&words), "expected `{words}`: {line}");
    let line = find(said, "realm 0x")?;
    let vtcr = number(line, "VTCR_EL2 ")?;
    ensure!(
        vtcr & GEOMETRY == expected,
        "expected VTCR_EL2 {expected:#x}: {line}"
    );
    let line = find(said, "EL2: code at")?;
    let tcr = number(line, "TCR_EL2 ")?;
    let granule = match tcr >> 14 & 3 {
        0 => Pages::K4,
        1 => Pages::K64,
        _ => Pages::K16,
    };
    let (va, pa) = cell.own_bits();
    let lpa2 = cell.hyp != Pages::K64 && va.max(pa) > 48;
    let has = RANGES.get((tcr >> PS & 7) as usize).copied().unwrap_or(0);
    ensure!(
        granule == cell.hyp
            && 64 - (tcr & 0x3f) == u64::from(va)
            && has == pa
            && (tcr >> DS & 1 == 1) == lpa2,
        "expected {}, {va} bits of VA and {pa} of PA: {line}",
        cell.hyp.word()
    );
    Ok(())
}

/// Whether everything stands where it was asked to.
fn places(cell: &Cell, said: &Said<'_>) -> Result<()> {
    let own = find(said, "EL2: code at")?;
    let host = find(said, "host at 0x")?;
    let realm = find(said, "realm 0x")?;
    // Bits 51:48 of a table's address are bits 5:2 of its register.
    let of_base = |register: u64| register & 0xffff_ffff_f000 | (register >> 2 & 0xf) << 48;
    let wide = cell.ram != Ram::Low;
    let base = |register: u64| {
        if wide {
            of_base(register)
        } else {
            register & 0xffff_ffff_f000
        }
    };
    let places = [
        ("EL2's code", number(own, "code at ")?),
        ("EL2's stack", number(own, "stack at ")?),
        ("EL2's tables", base(number(own, "TTBR0_EL2 ")?)),
        ("the host", number(host, "host at ")?),
        ("the realm's descriptor", number(realm, "realm ")?),
        ("the realm's tables", base(number(realm, "VTTBR_EL2 ")?)),
    ];
    let from = cell.ram.base();
    for (what, at) in places {
        ensure!(
            (from..from + (1 << 30)).contains(&at),
            "{what}: {at:#x} is not in RAM from {from:#x}"
        );
    }
    Ok(())
}

/// The line of the log with this in it.
fn find<'a>(said: &Said<'a>, sign: &str) -> Result<&'a str> {
    let line = said.log.iter().find(|line| line.contains(sign));
    line.map(String::as_str)
        .with_context(|| format!("no line of the log has `{sign}`"))
}

/// The hexadecimal number behind `sign`.
fn number(line: &str, sign: &str) -> Result<u64> {
    let digits = line.split_once(sign).map_or("", |(_, rest)| rest);
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    let end = digits
        .find(|c: char| !c.is_ascii_hexdigit())
        .unwrap_or(digits.len());
    u64::from_str_radix(&digits[..end], 16).with_context(|| format!("no `{sign}`: {line}"))
}

#[cfg(test)]
mod tests;

//! Whether a configuration was what it says: what the guest has seen, and what EL2 and
//! the host say of their tables and where they stand.

use anyhow::{Context as _, Result, ensure};

use super::axes::{Mask, Mode, Pages, Ram};
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

/// TCR_EL2.DS.
const DS: u32 = 32;

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
        format!("page {}", cell.kernel.pages().bytes() >> 10),
        format!("cpus {cpus}"),
        "pattern 16 same".into(),
        "ticks".into(),
        format!("moved{moved}"),
    ];
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
    let line = find(said, "bits of IPA, from level")?;
    let words = format!(
        "{} bits of IPA, from level {}, root tables: {}",
        cell.ipa,
        geometry.start().get(),
        geometry.root_tables()
    );
    ensure!(line.contains(&words), "expected `{words}`: {line}");
    let line = find(said, "realm 0x")?;
    let vtcr = number(line, "VTCR_EL2 ")?;
    ensure!(
        vtcr & GEOMETRY == geometry.vtcr() & GEOMETRY,
        "expected VTCR_EL2 {:#x}: {line}",
        geometry.vtcr() & GEOMETRY
    );
    let line = find(said, "EL2: code at")?;
    let tcr = number(line, "TCR_EL2 ")?;
    let granule = match tcr >> 14 & 3 {
        0 => Pages::K4,
        1 => Pages::K64,
        _ => Pages::K16,
    };
    let lpa2 = cell.hyp != Pages::K64 && cell.has_lpa2();
    let wide = lpa2 || cell.hyp == Pages::K64 && cell.mask != Mask::Va52;
    let bits = if wide {
        cell.pa_bits()
    } else {
        cell.pa_bits().min(48)
    };
    ensure!(
        granule == cell.hyp && 64 - (tcr & 0x3f) == u64::from(bits) && (tcr >> DS & 1 == 1) == lpa2,
        "expected {} and {bits} bits: {line}",
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

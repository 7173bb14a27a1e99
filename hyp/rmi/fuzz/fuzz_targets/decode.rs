//! What crosses the interface, from any bits: calls, results, feature registers,
//! parameter and run pages, syndromes. Nothing panics, and whatever has a
//! meaning says the same after a round trip. `cargo fuzz run decode`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rmi::call::{HostCall, Made, TABLES, info};
use rmi::feature::{Feature0, VendorFeatures};
use rmi::params::{self, RealmFlags, RealmParams, RecFlags, RecParams};
use rmi::run::{EnterFlags, ExitReason, RecRun};
use arm64::syndrome::Syndrome;
use rmi::{NOT_SUPPORTED, Status, vendor};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A page of the host's as a structure: any bytes are one, and it is them.
fn page<T: FromBytes + IntoBytes + Immutable>(bytes: &[u8]) -> T {
    let mut page = T::new_zeroed();
    let count = bytes.len().min(size_of::<T>());
    page.as_mut_bytes()[..count].copy_from_slice(&bytes[..count]);
    let read = T::read_from_bytes(page.as_bytes()).expect("of its size");
    assert_eq!(read.as_bytes(), page.as_bytes());
    read
}

fn registers(raw: u64) {
    if let Some(status) = Status::unpack(raw) {
        assert_ne!(raw, NOT_SUPPORTED);
        assert_eq!(Status::unpack(status.pack()), Some(status));
        assert_eq!(status.pack() & 0xff, raw & 0xff);
    }
    let features = Feature0::unpack(raw);
    assert_eq!(Feature0::unpack(features.pack()), features);
    assert_eq!(features.pack() & !raw, 0, "bits out of nothing");
    let features = VendorFeatures::unpack(raw);
    assert_eq!(VendorFeatures::unpack(features.pack()), features);
    assert_eq!(features.pack() & !raw, 0, "bits out of nothing");
    if let Some(index) = params::mpidr_index(raw) {
        assert!(index < 1 << 28);
        assert_eq!(params::index_mpidr(index), raw);
    }
    if let Some(reason) = ExitReason::from_raw(raw) {
        assert_eq!(reason as u64, raw);
    }
}

/// The register that a load of `esr` leaves, the way the manual puts it:
/// SignExtend or ZeroExtend to the register's width, then zeros above.
fn loaded(esr: u64, value: u64) -> u64 {
    let (signed, wide) = (esr >> 21 & 1 == 1, esr >> 15 & 1 == 1);
    let extended = match (esr >> 22 & 3, signed) {
        (0, false) => u64::from(value as u8),
        (1, false) => u64::from(value as u16),
        (2, false) => u64::from(value as u32),
        (0, true) => i64::from(value as i8) as u64,
        (1, true) => i64::from(value as i16) as u64,
        (2, true) => i64::from(value as i32) as u64,
        _ => value,
    };
    // Only a signed load of less than 64 bits asks for the width.
    if signed && !wide && esr >> 22 & 3 != 3 {
        extended & 0xffff_ffff
    } else {
        extended
    }
}

fn syndrome(raw: u64, value: u64) {
    let esr = Syndrome(raw);
    assert!(matches!(esr.size(), 1 | 2 | 4 | 8));
    assert!(esr.register() < 32 && esr.sysreg_rt() < 32);
    assert_eq!(esr.extend(value), loaded(raw, value));
    let bits = 8 * u128::from(esr.size());
    assert_eq!(u128::from(esr.cut(value)), u128::from(value) % (1 << bits));
    assert!(!(esr.is_write() && esr.is_cache_maintenance()));
    assert!(!esr.is_emulatable() || esr.has_access());
    assert!(!esr.fault().is_translation() || esr.fault().words() == "translation fault");
    // One line, and not a long one, for whatever comes.
    let words = esr.to_string();
    assert!(!words.is_empty() && words.len() < 160 && !words.contains('\n'));
    assert_eq!(raw >> 26 & 0x3f, u64::from(esr.class().0));
}

/// Six registers as a call of the host's, and as words for people.
fn call(x: [u64; 6]) {
    let made = Made {
        function: x[0],
        arguments: &x[1..],
    };
    let words = made.to_string();
    assert!(words.ends_with(')') && words.len() < 160);
    let Some(call) = HostCall::decode(x) else {
        return;
    };
    // 32-bit forms are those of the same call.
    let back: Vec<u64> = match call {
        HostCall::Rmi(call) => call.encode().into(),
        HostCall::Vendor(call) => call.encode().into(),
        HostCall::Psci(call) => call.encode().into(),
        HostCall::Smccc(call) => call.encode().into(),
    };
    let mut again = [0; 6];
    again[..back.len()].copy_from_slice(&back);
    assert_eq!(HostCall::decode(again), Some(call));
    assert!(info(x[0]).is_some_and(|info| words.starts_with(info.name)));
}

fuzz_target!(|data: &[u8]| {
    let words: Vec<u64> = data
        .as_chunks()
        .0
        .iter()
        .map(|bytes| u64::from_le_bytes(*bytes))
        .collect();
    for (n, &raw) in words.iter().enumerate() {
        registers(raw);
        syndrome(raw, words[words.len() - 1 - n]);
    }
    for x in words.array_windows() {
        call(*x);
        // One that there is, with these arguments.
        let rows: Vec<_> = TABLES.into_iter().flatten().collect();
        let [n, rest @ ..] = x;
        let [a, b, c, d, e] = rest;
        call([rows[*n as usize % rows.len()].function, *a, *b, *c, *d, *e]);
    }
    let realm: RealmParams = page(data);
    let _ = RealmFlags::from_bits(realm.flags);
    let rec: RecParams = page(data);
    let _ = RecFlags::from_bits(rec.flags);
    registers(rec.mpidr);
    let run: RecRun = page(data);
    let _ = EnterFlags::from_bits(run.enter.flags);
    registers(run.exit.exit_reason);
    syndrome(run.exit.esr, run.enter.gprs[0]);
    let exit: vendor::Exit = page(data);
    syndrome(exit.esr, exit.far);
});

//! PSCI 1.1 (DEN0022) and SMCCC 1.2 (DEN0028), by HVC and SMC.

use core::sync::atomic::{AtomicU64, Ordering};

use tests::bare::asm::{self, Conduit};
use tests::bare::console::Console;
use tests::bare::psci::{affinity_info, call_by, fid, psci};
use tests::bare::{cpu, machine};
use tests::suite::Suite;

const NOT_SUPPORTED: i64 = -1;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const INVALID_ADDRESS: i64 = -9;

/// Functions that nobody has, and those of interfaces that a plain guest has not.
const UNKNOWN: [(&str, u64); 9] = [
    ("zero", 0),
    ("psci-32", 0x8400_001f),
    ("psci-64", 0xc400_001f),
    ("system-off-64", 0xC400_0008),
    ("rmi-version", 0xC400_0150),
    ("rsi-version", 0xC400_0190),
    ("vendor", 0xC600_0000),
    ("vendor-log", 0xC600_0003),
    ("all-ones", 0xffff_ffff),
];

/// What one CPU can ask.
pub fn calls(suite: &mut Suite<Console>, bare: bool) {
    let own = machine::get().conduit;
    for (word, conduit) in [("hvc", Conduit::Hvc), ("smc", Conduit::Smc)] {
        if bare && conduit != own {
            continue;
        }
        let mut named = |name: &str, right: bool, seen: i64| {
            let mut text = Name::new("psci/");
            text.push(word);
            text.push("/");
            text.push(name);
            suite.check(text.as_str(), right, format_args!("{seen}"));
        };
        let ask = |function, a, b, c| call_by(conduit, function, a, b, c);
        let version = ask(fid::VERSION, 0, 0, 0);
        named("version", version == 0x1_0001, version);
        if !bare {
            let version = ask(fid::SMCCC_VERSION, 0, 0, 0);
            named("smccc-version", version == 0x1_0002, version);
            let features = ask(fid::FEATURES, fid::SMCCC_VERSION, 0, 0);
            named("features-smccc", features == 0, features);
            let arch = ask(0x8000_0001, 0x8000_0000, 0, 0);
            named("arch-features-version", arch == 0, arch);
            let arch = ask(0x8000_0001, 0x8000_7fff, 0, 0);
            named("arch-features-unknown", arch as i32 == -1, arch);
        }
        for function in [
            fid::VERSION,
            fid::CPU_SUSPEND,
            fid::CPU_SUSPEND_64,
            fid::CPU_OFF,
            fid::CPU_ON,
            fid::CPU_ON_64,
            fid::AFFINITY_INFO,
            fid::AFFINITY_INFO_64,
            fid::SYSTEM_OFF,
            fid::SYSTEM_RESET,
            fid::FEATURES,
        ] {
            let answer = ask(fid::FEATURES, function, 0, 0);
            named("features", answer == 0, answer);
        }
        let unknown = ask(fid::FEATURES, 0x8400_001f, 0, 0);
        named("features-unknown", unknown as i32 == -1, unknown);
        for (name, function) in UNKNOWN {
            let answer = ask(function, 0x1_0000, 0, 0);
            named(
                name,
                answer == NOT_SUPPORTED || answer as u32 == u32::MAX,
                answer,
            );
        }
        let kind = ask(fid::MIGRATE_INFO_TYPE, 0, 0, 0);
        named(
            "migrate-info-type",
            kind == 2 || kind == NOT_SUPPORTED,
            kind,
        );

        let me = asm::mpidr();
        let entry = cpu::entry();
        let on = ask(fid::CPU_ON_64, me, entry, 0);
        named("cpu-on-self", on == ALREADY_ON, on);
        let on = ask(fid::CPU_ON, me, entry & 0xffff_ffff, 0);
        named("cpu-on-self-32", on as i32 == ALREADY_ON as i32, on);
        for (name, mpidr) in [
            ("cpu-on-nobody", 0x00ff_00ff),
            ("cpu-on-aff3", 0xff_0000_0000),
            ("cpu-on-reserved-bits", 1 << 60),
        ] {
            let on = ask(fid::CPU_ON_64, mpidr, entry, 0);
            named(name, on == INVALID_PARAMETERS, on);
        }
        let state = ask(fid::AFFINITY_INFO_64, me, 0, 0);
        named("affinity-self", state == 0, state);
        let state = ask(fid::AFFINITY_INFO_64, 0x00ff_00ff, 0, 0);
        named("affinity-nobody", state == INVALID_PARAMETERS, state);
        if !bare {
            let state = ask(fid::AFFINITY_INFO_64, me, 4, 0);
            named("affinity-level", state == INVALID_PARAMETERS, state);
        }
    }

    // SMCCC 1.1 and later: a call changes X0 to X3 only; 1.2: X4 to X17 stay.
    let out = asm::call(own, [fid::VERSION, 1, 2, 3, 4, 5, 6, 7]);
    let kept = (4..18).all(|n| {
        out[n]
            == if n < 8 {
                n as u64
            } else {
                0xca11_0000 + n as u64
            }
    });
    suite.check("smccc/preserves-x4-x17", kept, format_args!("{out:x?}"));
}

static SEEN: AtomicU64 = AtomicU64::new(0);

/// What needs a second CPU.
pub fn other_cpus(suite: &mut Suite<Console>, bare: bool) {
    let machine = machine::get();
    let other = machine.mpidrs[1];
    suite.check(
        "psci/others-off",
        affinity_info(other) == 1,
        affinity_info(other),
    );
    if !bare {
        let on = psci(fid::CPU_ON_64, other, 1 << 55, 1);
        suite.check("psci/cpu-on-bad-entry", on == INVALID_ADDRESS, on);
        let state = affinity_info(other);
        suite.check("psci/off-after-bad-entry", state == 1, state);
    }
    // It stays on until told.
    SEEN.store(0, Ordering::SeqCst);
    let job = || {
        SEEN.store(asm::mpidr() + 1, Ordering::SeqCst);
        cpu::eventually(|| SEEN.load(Ordering::SeqCst) == u64::MAX);
    };
    let on = cpu::start(1, job);
    suite.check("psci/cpu-on", on == 0, on);
    let up = cpu::eventually(|| SEEN.load(Ordering::SeqCst) != 0);
    let mpidr = SEEN.load(Ordering::SeqCst);
    suite.check(
        "psci/cpu-on-runs",
        up && mpidr == other + 1,
        format_args!("{mpidr:#x}"),
    );
    let on = psci(fid::CPU_ON_64, other, cpu::entry(), 1);
    suite.check("psci/cpu-on-again", on == ALREADY_ON, on);
    suite.check(
        "psci/affinity-on",
        affinity_info(other) == 0,
        affinity_info(other),
    );
    SEEN.store(u64::MAX, Ordering::SeqCst);
    suite.check("psci/cpu-off", cpu::wait_off(1), affinity_info(other));

    let mut rounds = 0;
    while rounds < 100 && cpu::start(1, || {}) == 0 && cpu::wait_off(1) {
        rounds += 1;
    }
    suite.check("psci/off-and-on-100-times", rounds == 100, rounds);

    // All at once, each at the others: one CPU_ON wins, the rest are refused.
    let together = cpu::together(|| {}, || {});
    suite.check("psci/all-on-and-off", together, "one did not come or go");
}

/// A check's name in parts.
pub struct Name {
    text: [u8; 64],
    length: usize,
}

impl Name {
    /// Begins with `text`.
    pub fn new(text: &str) -> Self {
        let mut name = Self {
            text: [0; 64],
            length: 0,
        };
        name.push(text);
        name
    }

    /// Adds `text`, as far as there is room.
    pub fn push(&mut self, text: &str) {
        for byte in text.bytes().filter(u8::is_ascii) {
            if let Some(free) = self.text.get_mut(self.length) {
                *free = byte;
                self.length += 1;
            }
        }
    }

    /// The whole.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.text[..self.length]).unwrap_or("?")
    }
}

//! What a program asks EL2 when it is a realm: RSI 1.0 (DEN0137), by SMC.

use core::cell::UnsafeCell;
use core::ops::Range;

use rmi::rsi::{Code, HostCall, RealmConfig, Rsi};

use super::asm::{self, Conduit};

/// Makes a call: X0 and on of its answer.
pub fn rsi(call: Rsi) -> [u64; 18] {
    let registers = call.encode();
    asm::call(Conduit::Smc, core::array::from_fn(|n| registers[n]))
}

/// Memory that EL2 writes to, at its own address with the MMU on or off.
#[repr(C, align(4096))]
struct Page<T>(UnsafeCell<T>);

// SAFETY: Used by the boot CPU alone.
unsafe impl<T> Sync for Page<T> {}

static CONFIG: Page<RealmConfig> = Page(UnsafeCell::new(RealmConfig {
    ipa_width: 0,
    hash_algo: 0,
    pad: [0; 0x3e],
    rpv: [0; 64],
}));
static CALL: Page<HostCall> = Page(UnsafeCell::new(HostCall::ZERO));

/// Width of the realm's addresses in bits; `None` for a program that is no realm.
pub fn ipa_bits() -> Option<u64> {
    let requested = rmi::VERSION_1_0;
    let [x0, ..] = rsi(Rsi::Version { requested });
    let ipa = CONFIG.0.get().expose_provenance() as u64;
    if x0 != Code::Success as u64 || rsi(Rsi::RealmConfig { ipa })[0] != 0 {
        return None;
    }
    asm::clean(ipa, ipa + 4096);
    // SAFETY: EL2 has written it, and nobody else does.
    Some(unsafe { CONFIG.0.get().read_volatile().ipa_width })
}

/// Asks for a change of addresses, once: how far it came, and the response.
///
/// # Errors
/// X0, where the call failed.
pub fn set_state(ipas: &Range<u64>, ripas: u64) -> Result<(u64, u64), u64> {
    let [x0, reached, response, ..] = rsi(Rsi::IpaStateSet {
        base: ipas.start,
        top: ipas.end,
        ripas,
        flags: rmi::rsi::CHANGE_DESTROYED,
    });
    if x0 == 0 {
        Ok((reached, response))
    } else {
        Err(x0)
    }
}

/// Asks until all of it is done, and how often that was; `None` if it does not get on.
pub fn set_all(ipas: &Range<u64>, ripas: u64) -> Option<u64> {
    let mut rest = ipas.clone();
    let mut calls = 0;
    while !rest.is_empty() {
        let (reached, response) = set_state(&rest, ripas).ok()?;
        if reached <= rest.start || reached > rest.end || response != rmi::rsi::ACCEPT {
            return None;
        }
        rest.start = reached;
        calls += 1;
    }
    Some(calls)
}

/// What addresses are, and up to where.
pub fn state(ipas: &Range<u64>) -> [u64; 3] {
    let (base, top) = (ipas.start, ipas.end);
    let [x0, reached, ripas, ..] = rsi(Rsi::IpaStateGet { base, top });
    [x0, reached, ripas]
}

/// Calls the host with `imm` and registers: X0 and the registers of its answer.
pub fn call_host(imm: u16, gprs: [u64; 31]) -> (u64, [u64; 31]) {
    let at = CALL.0.get();
    // SAFETY: The boot CPU's alone, and EL2's only within the call.
    unsafe {
        (*at).imm = imm;
        (*at).gprs = gprs;
    }
    let ipa = at.expose_provenance() as u64;
    let [x0, ..] = rsi(Rsi::HostCall { ipa });
    // SAFETY: As above.
    (x0, unsafe { at.read_volatile() }.gprs)
}

//! The CPU of the development machine: a register file of each thread's own,
//! which keeps what was written, and a record of what was done in which order.

use core::cell::RefCell;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::frame::Gprs;
use crate::regs::{CTR_EL0, Reg, Register};

/// What the code under test did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Read a system register.
    Mrs(&'static str),
    /// Wrote one.
    Msr(&'static str, u64),
    /// Issued an instruction, with its operand.
    Instruction(&'static str, Option<u64>),
    /// Called the level above, by this instruction, with this function.
    Call(&'static str, u64),
    /// Read a device's register: address and bytes.
    Load(u64, u32),
    /// Wrote one: address, bytes and value.
    Store(u64, u32, u64),
}

/// Serves calls in place of the level above: X0 to X5, X0 to X4 of the answer.
pub type Handler = Box<dyn FnMut([u64; 6]) -> [u64; 5]>;

/// Is a lower level that is entered, with its registers: it does something, and the
/// number of the exception that brings it out again is the answer, as EL2's vectors
/// have it: 0 is a synchronous one.
pub type LowerLevel = Box<dyn FnMut(&mut Gprs) -> u64>;

/// NOT_SUPPORTED (SMCCC 1.2, 5.2).
const NOT_SUPPORTED: u64 = u64::MAX;

struct Cpu {
    registers: BTreeMap<&'static str, u64>,
    devices: BTreeMap<u64, u8>,
    /// What was done, while it is recorded.
    events: Option<Vec<Event>>,
}

impl Default for Cpu {
    /// All zero, but for cache lines of 64 bytes.
    fn default() -> Self {
        let lines = CTR_EL0::DminLine.val(4).value;
        Self {
            registers: BTreeMap::from([(CTR_EL0.name(), lines)]),
            devices: BTreeMap::new(),
            events: None,
        }
    }
}

std::thread_local! {
    static CPU: RefCell<Cpu> = RefCell::default();
    static HANDLER: RefCell<Option<Handler>> = const { RefCell::new(None) };
    static LOWER: RefCell<Option<LowerLevel>> = const { RefCell::new(None) };
}

fn with<R>(f: impl FnOnce(&mut Cpu) -> R) -> R {
    CPU.with(|cpu| f(&mut cpu.borrow_mut()))
}

impl Cpu {
    fn note(&mut self, event: Event) {
        if let Some(events) = &mut self.events {
            events.push(event);
        }
    }

    fn load(&self, address: u64, size: u32) -> u64 {
        let byte = |n| self.devices.get(&(address + n)).copied().unwrap_or(0);
        (0..u64::from(size)).fold(0, |value, n| value | u64::from(byte(n)) << (8 * n))
    }

    fn store(&mut self, address: u64, size: u32, value: u64) {
        for n in 0..u64::from(size) {
            self.devices.insert(address + n, (value >> (8 * n)) as u8);
        }
    }
}

/// What `f` does, in order. Registers keep their values over it.
pub fn of(f: impl FnOnce()) -> Vec<Event> {
    let outer = with(|cpu| cpu.events.replace(Vec::new()));
    f();
    with(|cpu| core::mem::replace(&mut cpu.events, outer)).unwrap_or_default()
}

/// Forgets every value: as a thread begins. A record goes on.
pub fn reset() {
    with(|cpu| {
        let events = cpu.events.take();
        *cpu = Cpu {
            events,
            ..Cpu::default()
        };
    });
    HANDLER.with(|handler| *handler.borrow_mut() = None);
    LOWER.with(|lower| *lower.borrow_mut() = None);
}

/// Gives a register the value that it is read with, until it is written.
pub fn set<T: Register>(_: Reg<T>, value: u64) {
    with(|cpu| cpu.registers.insert(T::NAME, value));
}

/// What a register holds.
pub fn get<T: Register>(_: Reg<T>) -> u64 {
    with(|cpu| cpu.registers.get(T::NAME).copied().unwrap_or(0))
}

/// Gives `size` bytes of a device the value that they are read with, until they
/// are written.
pub fn set_device(address: u64, size: u32, value: u64) {
    with(|cpu| cpu.store(address, size, value));
}

/// What `size` bytes of a device hold.
pub fn device(address: u64, size: u32) -> u64 {
    with(|cpu| cpu.load(address, size))
}

/// Sets what this thread's `smc` and `hvc` reach; `NOT_SUPPORTED` answers before.
pub fn answer_calls(handler: Handler) {
    HANDLER.with(|h| *h.borrow_mut() = Some(handler));
}

/// Sets what a lower level does that this thread enters. Before, it comes out at once,
/// by a synchronous exception that the registers tell.
pub fn run_as(lower: LowerLevel) {
    LOWER.with(|l| *l.borrow_mut() = Some(lower));
}

/// Enters a lower level with these registers: by which exception it came out.
pub fn enter(gprs: &mut Gprs) -> u64 {
    LOWER.with(|l| l.borrow_mut().as_mut().map_or(0, |lower| lower(gprs)))
}

pub(crate) fn mrs(name: &'static str) -> u64 {
    with(|cpu| {
        cpu.note(Event::Mrs(name));
        cpu.registers.get(name).copied().unwrap_or(0)
    })
}

pub(crate) fn msr(name: &'static str, value: u64) {
    with(|cpu| {
        cpu.note(Event::Msr(name, value));
        cpu.registers.insert(name, value);
    });
}

pub(crate) fn instruction(name: &'static str, operand: Option<u64>) {
    with(|cpu| cpu.note(Event::Instruction(name, operand)));
}

pub(crate) fn random() -> Option<u64> {
    instruction("mrs rndrrs", None);
    None
}

pub(crate) fn load(address: u64, size: u32) -> u64 {
    with(|cpu| {
        cpu.note(Event::Load(address, size));
        cpu.load(address, size)
    })
}

pub(crate) fn store(address: u64, size: u32, value: u64) {
    with(|cpu| {
        cpu.note(Event::Store(address, size, value));
        cpu.store(address, size, value);
    });
}

pub(crate) fn call(name: &'static str, arguments: [u64; 6]) -> [u64; 5] {
    with(|cpu| cpu.note(Event::Call(name, arguments[0])));
    HANDLER.with(|h| match h.borrow_mut().as_mut() {
        Some(handler) => handler(arguments),
        None => [NOT_SUPPORTED, 0, 0, 0, 0],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instr;
    use crate::regs::{CNTFRQ_EL0, CNTV_CTL_EL0, VTTBR_EL2};

    #[test]
    fn a_register_keeps_what_was_written_and_the_record_its_order() {
        reset();
        set(CNTFRQ_EL0, 62_500_000);
        let events = of(|| {
            CNTV_CTL_EL0.write(CNTV_CTL_EL0::ENABLE::SET);
            instr::isb();
            // SAFETY: no translation is behind it.
            unsafe { VTTBR_EL2.steer(0x4000_0000) };
            instr::tlbi_vae2is(7);
            assert_eq!(CNTFRQ_EL0.get(), 62_500_000);
        });
        assert_eq!(
            events,
            [
                Event::Msr("CNTV_CTL_EL0", 1),
                Event::Instruction("isb", None),
                Event::Msr("VTTBR_EL2", 0x4000_0000),
                Event::Instruction("tlbi vae2is", Some(7)),
                Event::Mrs("CNTFRQ_EL0"),
            ]
        );
        assert!(CNTV_CTL_EL0.is_set(CNTV_CTL_EL0::ENABLE));
        reset();
        assert_eq!(get(VTTBR_EL2), 0);
    }

    #[test]
    fn records_nest() {
        let outer = of(|| {
            instr::wfi();
            assert_eq!(of(instr::wfe).len(), 1);
            instr::wfi();
        });
        assert_eq!(outer, [Event::Instruction("wfi", None); 2]);
    }
}

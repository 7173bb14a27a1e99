//! A guest's aborts: which the host emulates, which the guest takes, and which
//! stop it.
//!
//! What an access of nothing is on hardware, it is here: a synchronous external
//! abort that the guest takes itself. The log tells the first of each guest; a
//! guest with `strict = true` is stopped instead.

use crate::arch::insn;
use crate::emulate::execute::{Abort, Place, Space, Written};
use crate::emulate::state::Cpu;
use crate::emulate::walk::{self, Access, Kind, Tables};
use crate::emulate::{self, Cause, Outcome};
use crate::guest::map;
use crate::guest::ram;
use crate::guest::realm::describe;
use crate::life::{Guest, Stop, Vcpu};
use crate::machine::Machine;
use crate::rmi_call;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use log::Level;
use rmi::registers::Registers;
use rmi::run::RecExit;
use rmi::syndrome::{Class, Syndrome};
use zerocopy::FromZeros;

/// How often an instruction may be left to the guest again, one time after the
/// other. It faults otherwise than its tables say only while they change.
const AGAIN: u64 = 16;

/// What follows an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The guest goes on: EL2 knows all it needs.
    Enter,
    /// It goes on once its device has room.
    Later,
    /// It takes a synchronous external abort at its access.
    External,
    /// It is stopping.
    Stopped,
}

/// How often in succession an instruction was left to its guest.
#[derive(Debug, Default)]
pub struct Repeats {
    pc: AtomicU64,
    count: AtomicU64,
}

impl Repeats {
    /// Counts one more at `pc`; true when these are too many.
    fn add(&self, pc: u64) -> bool {
        // Only the CPU that holds the vCPU is here.
        let count = if self.pc.swap(pc, Ordering::Relaxed) == pc {
            self.count.load(Ordering::Relaxed) + 1
        } else {
            1
        };
        self.count.store(count, Ordering::Relaxed);
        count > AGAIN
    }

    fn clear(&self) {
        self.count.store(0, Ordering::Relaxed);
    }
}

/// The IPA of an abort, as far as EL2 tells it.
pub const fn ipa(exit: &RecExit) -> u64 {
    Syndrome(exit.esr).ipa(exit.hpfar, exit.far)
}

/// Serves an abort that is no access of a device with a syndrome.
pub fn serve(machine: &Machine, guest: &Guest, index: usize, exit: &RecExit) -> Next {
    let esr = Syndrome(exit.esr);
    let data = esr.class() == Class::DATA_ABORT_LOWER;
    // One that is not aligned may end where there is something else.
    let parted = esr.is_emulatable() && !ipa(exit).is_multiple_of(esr.size().into());
    if (data && !esr.is_emulatable()) || esr.on_walk() || parted {
        return with_registers(machine, guest, index, exit);
    }
    trespass(guest, index, exit, None)
}

/// Reports what the guest did, once, or stops it.
fn trespass(guest: &Guest, index: usize, exit: &RecExit, cause: Option<Cause>) -> Next {
    let first = !guest.trespassed.swap(true, Ordering::Relaxed);
    if first || guest.strict {
        report(guest, index, exit, cause);
    }
    if guest.strict {
        guest.stop(Stop::Fault);
        return Next::Stopped;
    }
    if first {
        let text = "  it takes an external abort; more of them are not told";
        guest.log(Level::Warn, format_args!("{text}"));
    }
    Next::External
}

/// Says what the guest did.
pub fn report(guest: &Guest, index: usize, exit: &RecExit, cause: Option<Cause>) {
    let esr = Syndrome(exit.esr);
    let ipa = ipa(exit);
    let did = match (esr.on_walk(), esr.class(), esr.is_write()) {
        (true, ..) => "has its tables at",
        (_, Class::INST_ABORT_LOWER, _) => "fetched from",
        (_, _, true) => "wrote to",
        (_, _, false) => "read from",
    };
    let tell = |text: core::fmt::Arguments<'_>| guest.log(Level::Error, text);
    tell(format_args!("vCPU {index} {did} IPA {ipa:#x}"));
    tell(format_args!("  {}", describe(ipa, &guest.ram)));
    match cause {
        Some(Cause::Aarch32) => tell(format_args!("  by an A32 instruction: not emulated")),
        Some(Cause::NoCode(at)) => {
            tell(format_args!("  by an instruction outside RAM, at {at:#x}"));
        }
        Some(Cause::Unknown(word)) => tell(format_args!("  by {word:#010x}: not emulated")),
        Some(Cause::Parted(word)) => {
            tell(format_args!(
                "  {word:#010x} parts an exclusive from its store"
            ));
        }
        Some(Cause::Access) | None => {}
    }
    tell(format_args!("  elr={:#x} far={:#x}", exit.elr, exit.far));
    tell(format_args!("  {esr}"));
    tell(format_args!("  esr={:#x} spsr={:#x}", exit.esr, exit.spsr));
}

/// The page of `REC_READ` and `REC_WRITE`: aligned so that it lies in one
/// granule.
#[repr(C, align(1024))]
struct Page(Registers);

/// Serves an abort that takes the vCPU's registers to understand.
fn with_registers(machine: &Machine, guest: &Guest, index: usize, exit: &RecExit) -> Next {
    let vcpu = &guest.vcpus[index];
    let mut page = Page(Registers::new_zeroed());
    let at = (&raw mut page).expose_provenance() as u64;
    let called = rmi_call::rec_read(vcpu.rec, at).and_then(|()| {
        let (next, outcome) = decide(machine, guest, index, exit, &mut page.0);
        emulate::finish(&mut page.0, &outcome);
        rmi_call::rec_write(vcpu.rec, at).map(|()| next)
    });
    match called {
        Ok(next) => next,
        Err(error) => {
            let text = format_args!("vCPU {index}: its registers: {error}");
            guest.log(Level::Error, text);
            guest.stop(Stop::Fault);
            Next::Stopped
        }
    }
}

fn decide(
    machine: &Machine,
    guest: &Guest,
    index: usize,
    exit: &RecExit,
    registers: &mut Registers,
) -> (Next, Outcome) {
    let esr = Syndrome(exit.esr);
    let mut cpu = Cpu {
        registers: *registers,
        zero_block: 4 << (insn::dczid() & 0xf),
    };
    let mut space = View { machine, guest };
    let outcome = if esr.on_walk() {
        on_walk(&cpu, &mut space, exit)
    } else if esr.is_cache_maintenance() {
        // There is nothing to maintain.
        cpu.registers.pc = cpu.registers.pc.wrapping_add(4);
        Outcome::Done
    } else {
        emulate::run(&mut cpu, &mut space, exit.far, esr.is_write())
    };
    let outcome = bounded(&guest.vcpus[index], exit, outcome);
    // What was done before an instruction of a sequence aborted is done; an
    // exclusive that never gets to its store is as if it had not begun.
    if !matches!(outcome, Outcome::Abort(_, Cause::Parted(_))) {
        *registers = cpu.registers;
    }
    let (abort, cause) = match outcome {
        Outcome::Abort(abort, cause) => (abort, cause),
        Outcome::Later => return (Next::Later, outcome),
        _ => return (Next::Enter, outcome),
    };
    let external = abort.code == Abort::EXTERNAL || walk::Fault(abort.code).is_external();
    if !external {
        // Its own tables' doing, and its own affair.
        return (Next::Enter, outcome);
    }
    let next = match trespass(guest, index, exit, Some(cause)) {
        Next::External => Next::Enter,
        other => other,
    };
    (next, outcome)
}

/// An abort on a walk, with the level that it struck.
fn on_walk(cpu: &Cpu, space: &mut View<'_>, exit: &RecExit) -> Outcome {
    let esr = Syndrome(exit.esr);
    let fetch = esr.class() == Class::INST_ABORT_LOWER;
    let kind = match (fetch, esr.is_write()) {
        (true, _) => Kind::Fetch,
        (_, true) => Kind::Write,
        (_, false) => Kind::Read,
    };
    let as_el0 = cpu.is_el0();
    match walk::translate(cpu, space, exit.far, Access { kind, as_el0 }) {
        Err(fault) if fault.is_external() => {
            let abort = Abort {
                far: exit.far,
                code: fault.0,
                write: esr.is_write(),
                fetch,
            };
            Outcome::Abort(abort, Cause::Access)
        }
        // It has changed its tables meanwhile.
        _ => Outcome::Again,
    }
}

/// The outcome, where one that the guest would meet again for ever becomes an
/// abort.
fn bounded(vcpu: &Vcpu, exit: &RecExit, outcome: Outcome) -> Outcome {
    let cause = match outcome {
        Outcome::Again => Cause::Access,
        Outcome::Parted(word) => Cause::Parted(word),
        Outcome::Done | Outcome::Later | Outcome::Abort(..) => {
            vcpu.repeats.clear();
            return outcome;
        }
    };
    if !vcpu.repeats.add(exit.elr) {
        return outcome;
    }
    vcpu.repeats.clear();
    let esr = Syndrome(exit.esr);
    let abort = Abort {
        far: exit.far,
        code: Abort::EXTERNAL,
        write: esr.is_write(),
        fetch: esr.class() == Class::INST_ABORT_LOWER,
    };
    Outcome::Abort(abort, cause)
}

/// A guest's memory and devices, for an emulated instruction.
struct View<'a> {
    machine: &'a Machine,
    guest: &'a Guest,
}

impl Tables for View<'_> {
    fn load(&mut self, ipa: u64) -> Option<u64> {
        let at = ram::find(&self.guest.runs, ipa, 8)?;
        Some(at.load(8, self.machine.features.fwb))
    }

    fn exchange(&mut self, ipa: u64, old: u64, new: u64) -> bool {
        ram::find(&self.guest.runs, ipa, 8)
            .is_some_and(|at| at.exchange(old, new, self.machine.features.fwb))
    }
}

impl Space for View<'_> {
    fn place(&self, ipa: u64) -> Place {
        if ram::find(&self.guest.runs, ipa, 1).is_some() {
            Place::Ram
        } else if map::UART.contains(&ipa) || map::FLASH.contains(&ipa) {
            Place::Device
        } else {
            Place::Nothing
        }
    }

    fn read(&mut self, ipa: u64, size: u64) -> Option<u64> {
        if let Some(at) = ram::find(&self.guest.runs, ipa, size) {
            return Some(at.load(size, self.machine.features.fwb));
        }
        device_read(self.machine, self.guest, ipa, size)
    }

    fn write(&mut self, ipa: u64, size: u64, value: u64) -> Written {
        if let Some(at) = ram::find(&self.guest.runs, ipa, size) {
            at.store(size, value, self.machine.features.fwb);
            return Written::Done;
        }
        device_write(self.machine, self.guest, ipa, size, value)
    }

    fn takes(&mut self, ipa: u64, size: u64) -> bool {
        size == 0
            || ipa & !0xfff != map::UART.start
            || self
                .guest
                .console
                .lock()
                .takes(self.guest, self.machine, ipa & 0xfff)
    }
}

/// A read of a device of the host's; `None` where there is none for all of it.
#[inline]
pub fn device_read(machine: &Machine, guest: &Guest, ipa: u64, size: u64) -> Option<u64> {
    if let Some(offset) = offset_in(&map::UART, ipa, size) {
        let mut console = guest.console.lock();
        return Some(parts(offset, size).fold(0, |value, (at, bytes)| {
            let part = console.read(guest, machine, offset + at) & (u64::MAX >> (64 - 8 * bytes));
            value | part << (8 * at)
        }));
    }
    // Erased, and not to be written.
    offset_in(&map::FLASH, ipa, size).map(|_| u64::MAX >> (64 - 8 * size))
}

/// A write to a device of the host's, where there is one for all of it.
#[inline]
pub fn device_write(machine: &Machine, guest: &Guest, ipa: u64, size: u64, value: u64) -> Written {
    if let Some(offset) = offset_in(&map::UART, ipa, size) {
        let mut console = guest.console.lock();
        for (at, bytes) in parts(offset, size) {
            let part = value >> (8 * at) & (u64::MAX >> (64 - 8 * bytes));
            if !console.write(guest, machine, offset + at, part) {
                return Written::Later;
            }
        }
        return Written::Done;
    }
    match offset_in(&map::FLASH, ipa, size) {
        Some(_) => Written::Done,
        None => Written::Nowhere,
    }
}

/// Where an access is in a range that holds all of it.
fn offset_in(range: &Range<u64>, ipa: u64, size: u64) -> Option<u64> {
    let offset = ipa.checked_sub(range.start)?;
    let room = (range.end - range.start).checked_sub(size)?;
    (offset <= room).then_some(offset)
}

/// The pieces, offset and bytes, in which an access reaches registers of four
/// bytes, as on QEMU's virt machine: of the lowest bit that is set in address or
/// size, and never more than a register.
fn parts(offset: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut at = 0;
    core::iter::from_fn(move || {
        if at >= size {
            return None;
        }
        let bytes = 1 << ((size - at) | (offset + at) | 4).trailing_zeros();
        at += bytes;
        Some((at - bytes, bytes))
    })
}

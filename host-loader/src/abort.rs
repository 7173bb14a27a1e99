//! A guest's aborts: which the host emulates, which the guest takes, and which
//! stop it.
//!
//! What an access of nothing is on hardware, it is here: a synchronous external
//! abort that the guest takes itself. The log has the first of each guest; a
//! guest with `strict = true` is stopped instead.

use crate::asks;
use crate::console::Console;
use crate::device::bus::{self, Joined, PAGE};
use crate::device::flash::erased;
use crate::device::transport;
use crate::emulate::execute::{Abort, By, Nowhere, Place, Space};
use crate::emulate::state::Cpu;
use crate::emulate::walk::{self, Access, Kind, Miss, Tables};
use crate::emulate::{self, Cause, Outcome};
use crate::guest::flash::Devices;
use crate::guest::handle::{Guest, Stop, Vcpu};
use crate::guest::live::Populated;
use crate::guest::map;
use crate::guest::realm::describe;
use crate::machine::Machine;
use crate::rmi_call;
use arm64::regs::DCZID_EL0;
use arm64::syndrome::{Class, Syndrome};
use core::sync::atomic::Ordering;
use log::Level;
use rmi::registers::Registers;
use rmi::run::RecExit;
use spin::Mutex;
use zerocopy::FromZeros;

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

/// The IPA of an abort, as far as EL2 reports it.
pub const fn ipa(exit: &RecExit) -> u64 {
    Syndrome(exit.esr).ipa(exit.hpfar, exit.far)
}

/// Serves an abort that is no access of a device with a syndrome.
pub fn serve(machine: &Machine, guest: &Guest, index: usize, exit: &RecExit) -> Next {
    let esr = Syndrome(exit.esr);
    if esr.fault().is_translation()
        && let Some(next) = first_touch(machine, guest, index, exit)
    {
        return next;
    }
    let data = esr.class() == Class::DATA_ABORT_LOWER;
    // One that is not aligned may end where there is something else.
    let parted = esr.is_emulatable() && !ipa(exit).is_multiple_of(esr.size().into());
    let by_registers = (data && !esr.is_emulatable()) || esr.on_walk() || parted;
    if by_registers && !guest.is_protected() {
        return with_registers(machine, guest, index, exit);
    }
    let next = trespass(machine, guest, index, exit, None);
    // An error of the machine's in its own half: EL2 has told it, and takes no answer.
    let told = ipa(exit) < guest.shared && !esr.fault().is_translation();
    if told && next == Next::External {
        return Next::Enter;
    }
    next
}

/// Serves a touch of RAM that the guest has not got yet; `None` if there is none, or
/// the guest has it and aborts all the same.
fn first_touch(machine: &Machine, guest: &Guest, index: usize, exit: &RecExit) -> Option<Next> {
    let ipa = ipa(exit);
    let (memory, granules) = (&guest.memory, machine.granules);
    let populated = memory.populate(ipa).or_else(|| memory.touch(granules, ipa));
    match populated? {
        Ok(Populated::Now) => Some(Next::Enter),
        // EL2 tells of no abort where a confidential guest's own memory is, and takes
        // none for an answer: it was on its way.
        Ok(Populated::Before) if guest.is_protected() => Some(Next::Enter),
        // By another vCPU, since this one aborted.
        Ok(Populated::Before) => (!guest.vcpus[index].spurious.add(ipa)).then_some(Next::Enter),
        Err(error) => {
            asks::failed(machine, guest, index, ipa, error);
            Some(Next::Stopped)
        }
    }
}

/// Reports what the guest did, once, or stops it.
fn trespass(
    machine: &Machine,
    guest: &Guest,
    index: usize,
    exit: &RecExit,
    cause: Option<Cause>,
) -> Next {
    let first = !guest.trespassed.swap(true, Ordering::Relaxed);
    if first || guest.strict {
        report(guest, index, exit, cause);
    }
    if guest.strict {
        machine.stop(guest, Stop::Fault);
        return Next::Stopped;
    }
    if first {
        let text = "  it takes an external abort; more of them are not reported";
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
    tell(format_args!(
        "  {}",
        describe(ipa, &guest.ram, guest.shared)
    ));
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
    tell(format_args!("  {esr}"));
    if guest.is_protected() {
        tell(format_args!(
            "  esr={:#x}; where, the host is not told",
            exit.esr
        ));
        return;
    }
    tell(format_args!("  elr={:#x} far={:#x}", exit.elr, exit.far));
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
            machine.stop(guest, Stop::Fault);
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
        zero_block: 4 << DCZID_EL0.read(DCZID_EL0::BS),
    };
    let outcome = {
        // No other vCPU's access comes into the middle of one.
        let mut space = View {
            guest,
            console: &mut guest.console.lock(),
        };
        if esr.on_walk() {
            on_walk(&cpu, &mut space, exit)
        } else if esr.is_cache_maintenance() {
            // There is nothing to maintain.
            cpu.registers.pc = cpu.registers.pc.wrapping_add(4);
            Outcome::Done
        } else {
            emulate::serve(&mut cpu, &mut space, exit.far, By::of(esr))
        }
    };
    let outcome = bounded(&guest.vcpus[index], exit, outcome);
    // What was done before an instruction of a sequence aborted is done; an
    // exclusive that never gets to its store is as if it had not begun.
    if !matches!(outcome, Outcome::Abort(_, Cause::Parted(_))) {
        *registers = cpu.registers;
    }
    let (abort, cause) = match outcome {
        Outcome::Abort(abort, cause) => (abort, cause),
        Outcome::Later | Outcome::Paused => return (Next::Later, outcome),
        _ => return (Next::Enter, outcome),
    };
    let external = abort.code == Abort::EXTERNAL || walk::Fault(abort.code).is_external();
    if !external {
        // Its own tables' doing, and its own affair.
        return (Next::Enter, outcome);
    }
    let next = match trespass(machine, guest, index, exit, Some(cause)) {
        Next::External => Next::Enter,
        other => other,
    };
    (next, outcome)
}

/// An abort on a walk, with the level that it struck.
fn on_walk(cpu: &Cpu, space: &mut View<'_>, exit: &RecExit) -> Outcome {
    let by = By::of(Syndrome(exit.esr));
    let kind = match by {
        By::Fetch => Kind::Fetch,
        By::Write => Kind::Write,
        By::Read | By::Maintenance => Kind::Read,
    };
    let as_el0 = cpu.is_el0();
    match walk::translate(cpu, space, exit.far, Access { kind, as_el0 }) {
        Err(Miss::Fault(fault)) if fault.is_external() => {
            let abort = Abort {
                far: exit.far,
                code: fault.0,
                by,
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
        Outcome::Done | Outcome::Later | Outcome::Paused | Outcome::Abort(..) => {
            vcpu.repeats.clear();
            return outcome;
        }
    };
    if !vcpu.repeats.add(exit.elr) {
        return outcome;
    }
    vcpu.repeats.clear();
    let abort = Abort {
        far: exit.far,
        code: Abort::EXTERNAL,
        by: By::of(Syndrome(exit.esr)),
    };
    Outcome::Abort(abort, cause)
}

/// A guest's memory and devices, for an emulated instruction.
struct View<'a> {
    guest: &'a Guest,
    console: &'a mut Console,
}

impl Tables for View<'_> {
    fn load(&mut self, ipa: u64) -> Option<u64> {
        let ram = &self.guest.memory;
        let spot = ram.spot(ipa, 8).or_else(|| self.guest.program_at(ipa, 8));
        Some(spot?.load(8, ram.is_coherent()))
    }

    fn exchange(&mut self, ipa: u64, old: u64, new: u64) -> bool {
        let ram = &self.guest.memory;
        ram.spot(ipa, 8)
            .is_some_and(|at| at.exchange(old, new, ram.is_coherent()))
    }
}

impl Space for View<'_> {
    fn place(&self, ipa: u64) -> Place {
        if self.guest.memory.contains(ipa) {
            Place::Ram
        } else if self.guest.program_at(ipa, 1).is_some() {
            Place::Program
        } else if Device::of(self.guest, ipa, 1).is_some() {
            Place::Device
        } else {
            Place::Nothing
        }
    }

    fn read(&mut self, ipa: u64, size: u64) -> Result<u64, Nowhere> {
        let ram = &self.guest.memory;
        let program = || self.guest.program_at(ipa, size);
        if let Some(at) = ram.spot(ipa, size).or_else(program) {
            return Ok(at.load(size, ram.is_coherent()));
        }
        match Device::of(self.guest, ipa, size).ok_or(Nowhere)? {
            Device::Uart(offset) => {
                let read = |at| self.console.read(at);
                Ok(bus::read_piece(offset, size, read))
            }
            Device::Clock(offset) => Ok(self.guest.clock.read(offset, size)),
            Device::Flash(devices) => Ok(devices.lock().read(ipa, size)),
            Device::Erased => Ok(erased(size)),
            Device::Transports(offset) => Ok(bus::read_piece(offset, size, transport::read)),
        }
    }

    fn write(&mut self, ipa: u64, size: u64, value: u64) -> Result<(), Nowhere> {
        let ram = &self.guest.memory;
        if let Some(at) = ram.spot(ipa, size) {
            at.store(size, value, ram.is_coherent());
            return Ok(());
        }
        match Device::of(self.guest, ipa, size).ok_or(Nowhere)? {
            Device::Uart(offset) => {
                for (at, value) in bus::writes_of_piece(offset, size, value) {
                    self.console.write(at, value);
                }
            }
            Device::Clock(offset) => self.guest.clock.write(offset, size, value),
            Device::Flash(devices) => devices.lock().write(ipa, size, value),
            Device::Erased | Device::Transports(_) => {}
        }
        Ok(())
    }

    fn takes(&mut self, ipa: u64, size: u64) -> bool {
        let is_uart = size > 0 && ipa & !(PAGE - 1) == map::UART.start;
        !is_uart || self.console.takes(ipa & (PAGE - 1))
    }
}

/// A device of the host's.
enum Device<'a> {
    /// The PL011, at this offset.
    Uart(u64),
    /// The PL031, at this offset.
    Clock(u64),
    /// Of a guest that starts from flash.
    Flash(&'a Mutex<Devices>),
    /// Erased, and not to be written.
    Erased,
    /// The virtio transports, from this offset.
    Transports(u64),
}

impl<'a> Device<'a> {
    /// The one that has all of an access. What leaves a page goes elsewhere than
    /// to the next address: where is not known here.
    #[inline]
    fn of(guest: &'a Guest, ipa: u64, size: u64) -> Option<Self> {
        if ipa % PAGE + size > PAGE {
            return None;
        }
        if map::UART.contains(&ipa) {
            return Some(Self::Uart(ipa - map::UART.start));
        }
        if map::CLOCK.contains(&ipa) {
            return Some(Self::Clock(ipa - map::CLOCK.start));
        }
        if map::TRANSPORTS.contains(&ipa) {
            return Some(Self::Transports(ipa - map::TRANSPORTS.start));
        }
        match &guest.flash {
            Some(devices) => Devices::have(ipa).then_some(Self::Flash(devices)),
            None => map::FLASH.contains(&ipa).then_some(Self::Erased),
        }
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Done,
    /// It has not begun, and could be done later.
    Later,
    /// There is nothing to write to.
    Nowhere,
}

/// A read of a device of the host's; `None` where there is none for all of it.
#[inline]
pub fn device_read(guest: &Guest, ipa: u64, size: u64) -> Option<u64> {
    let ipa = ipa.checked_sub(guest.shared)?;
    let mut joined = Joined::default();
    match Device::of(guest, ipa, size)? {
        Device::Uart(offset) => {
            let mut console = guest.console.lock();
            for (at, bytes) in bus::pieces(offset, size) {
                let read = |at| console.read(at);
                joined.add(bus::read_piece(offset + at, bytes, read), bytes);
            }
        }
        Device::Clock(offset) => {
            for (at, bytes) in bus::pieces(offset, size) {
                joined.add(guest.clock.read(offset + at, bytes), bytes);
            }
        }
        Device::Flash(devices) => {
            let devices = devices.lock();
            for (at, bytes) in bus::pieces(ipa, size) {
                joined.add(devices.read(ipa + at, bytes), bytes);
            }
        }
        Device::Erased => return Some(erased(size)),
        Device::Transports(offset) => {
            for (at, bytes) in bus::pieces(offset, size) {
                joined.add(bus::read_piece(offset + at, bytes, transport::read), bytes);
            }
        }
    }
    Some(joined.value(size))
}

/// A write to a device of the host's, where there is one for all of it: all of
/// its pieces, or none.
#[inline]
pub fn device_write(guest: &Guest, ipa: u64, size: u64, value: u64) -> Written {
    let of_device = ipa
        .checked_sub(guest.shared)
        .and_then(|at| Device::of(guest, at, size));
    match of_device {
        Some(Device::Uart(offset)) => {
            let mut console = guest.console.lock();
            if !console.takes(offset) {
                return Written::Later;
            }
            for (at, bytes) in bus::pieces(offset, size) {
                for (at, value) in bus::writes_of_piece(offset + at, bytes, value >> (8 * at)) {
                    console.write(at, value);
                }
            }
            Written::Done
        }
        Some(Device::Clock(offset)) => {
            for (at, bytes) in bus::pieces(offset, size) {
                guest.clock.write(offset + at, bytes, value >> (8 * at));
            }
            Written::Done
        }
        Some(Device::Flash(devices)) => {
            let mut devices = devices.lock();
            for (at, bytes) in bus::pieces(ipa, size) {
                devices.write(ipa + at, bytes, value >> (8 * at));
            }
            Written::Done
        }
        Some(Device::Erased | Device::Transports(_)) => Written::Done,
        None => Written::Nowhere,
    }
}

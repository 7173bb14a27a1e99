//! Accesses without a syndrome, to devices of the host's: the instruction is
//! read from the guest's memory and executed here.
//!
//! A data abort describes all of an access only for loads and stores of one general
//! register without writeback. For all others ([`encoding`] has them) the host
//! takes the vCPU's registers, fetches the instruction once through the guest's
//! own tables ([`walk`]), and executes it ([`execute`], [`integer`]), as QEMU's
//! virt machine would have done.
//!
//! All of it is the guest's: it may change code and tables at any time, and so
//! everything is read once, checked, and bounded.

pub mod encoding;
pub mod execute;
pub mod instruction;
pub mod integer;
pub mod state;
pub mod walk;
mod word;

use execute::{Abort, By, Mark, OfRam, Place, Space, Undone};
use instruction::Action;
use rmi::registers::{Finish, Registers};
use state::Cpu;
use walk::{Access, Kind};

/// Instructions that are executed behind a load-exclusive, at most.
const SEQUENCE: usize = 64;

/// Loads and stores among them, at most: each may have the host erase flash, or populate
/// RAM, and no guest chooses how long.
const ACCESSES: usize = 4;

/// What became of an instruction that the host was asked to execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and so may be some that follow it.
    Done,
    /// It is done, but its store-exclusive, if one follows, will fail: this word
    /// stands between them, which only the guest can execute.
    Parted(u32),
    /// The guest can do it itself, or will take an exception of its own: it has
    /// changed its code or tables meanwhile.
    Again,
    /// The guest executes it again once the device has room for it.
    Later,
    /// What came before the instruction at PC is done: the guest goes on there
    /// once the device has room for it. A store-exclusive that follows will fail.
    Paused,
    /// The guest takes an abort.
    Abort(Abort, Cause),
}

/// Why a guest takes an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The access led to nothing, or its own tables forbid it.
    Access,
    /// It executes AArch32.
    Aarch32,
    /// Its instructions are not in RAM; they are at this IPA.
    NoCode(u64),
    /// A load or store that is not known here.
    Unknown(u32),
    /// An exclusive access that this word parts from its store.
    Parted(u32),
}

/// Executes the instruction at the vCPU's PC. `far` is where it took its abort, and
/// `by` what it did there.
pub fn serve(cpu: &mut Cpu, space: &mut impl Space, far: u64, by: By) -> Outcome {
    let external = |cause| {
        let abort = Abort {
            far,
            code: Abort::EXTERNAL,
            by,
        };
        Outcome::Abort(abort, cause)
    };
    if cpu.is_aarch32() {
        return external(Cause::Aarch32);
    }
    let word = match fetch(cpu, space) {
        Ok(word) => word,
        Err(Unfetched::Fault) => return Outcome::Again,
        Err(Unfetched::NoRam(ipa)) => return external(Cause::NoCode(ipa)),
    };
    if let Some(t) = encoding::zero_block(word) {
        let done = execute::zero_block(cpu, space, cpu.x(t));
        return finished(cpu, done);
    }
    let Some(instruction) = encoding::decode(word) else {
        return if encoding::is_load_or_store(word) {
            external(Cause::Unknown(word))
        } else {
            Outcome::Again
        };
    };
    let mut mark = None;
    let done = execute::execute(cpu, space, &instruction, OfRam::Left, &mut mark);
    match finished(cpu, done) {
        Outcome::Done if mark.is_some() && !cpu.is_stepping() => sequence(cpu, space, &mut mark),
        outcome => outcome,
    }
}

/// The outcome of an instruction; the PC moves on when it is done.
fn finished(cpu: &mut Cpu, done: Result<(), Undone>) -> Outcome {
    match done {
        Ok(()) => {
            cpu.registers.pc = cpu.registers.pc.wrapping_add(4);
            Outcome::Done
        }
        Err(Undone::Again) => Outcome::Again,
        Err(Undone::Later) => Outcome::Later,
        Err(Undone::Abort(abort)) => Outcome::Abort(abort, Cause::Access),
    }
}

/// Executes what follows a load-exclusive, until its store is done, or up to the
/// first instruction that only the guest can execute. What was done stays done,
/// whatever becomes of the rest: a load of a device may not be made twice. Of
/// alignment, the guest's CPU is the judge.
fn sequence(cpu: &mut Cpu, space: &mut impl Space, mark: &mut Mark) -> Outcome {
    let mut accesses = 0;
    for _ in 0..SEQUENCE {
        let Ok(word) = fetch(cpu, space) else {
            return Outcome::Done;
        };
        if integer::execute(cpu, word) {
            continue;
        }
        let instruction = match encoding::decode(word) {
            Some(instruction) => instruction,
            None if integer::ends_sequence(word) => return Outcome::Done,
            None => return Outcome::Parted(word),
        };
        let is_store = match instruction.action {
            Action::StoreExclusive { .. } => true,
            Action::LoadExclusive { .. } => return Outcome::Done,
            Action::General { .. } => false,
            _ => return Outcome::Parted(word),
        };
        if !execute::is_aligned(cpu, &instruction, *mark) {
            return Outcome::Parted(word);
        }
        if !is_store && accesses == ACCESSES {
            return Outcome::Parted(word);
        }
        accesses += 1;
        let done = execute::execute(cpu, space, &instruction, OfRam::Done, mark);
        match finished(cpu, done) {
            Outcome::Done if !is_store => {}
            Outcome::Again => return Outcome::Done,
            Outcome::Later => return Outcome::Paused,
            outcome => return outcome,
        }
    }
    Outcome::Done
}

enum Unfetched {
    /// Stage 1 has no translation, or forbids it.
    Fault,
    /// It leads to this IPA, where no RAM is.
    NoRam(u64),
}

fn fetch(cpu: &Cpu, space: &mut impl Space) -> Result<u32, Unfetched> {
    let access = Access {
        kind: Kind::Fetch,
        as_el0: cpu.is_el0(),
    };
    let pc = cpu.registers.pc;
    if !pc.is_multiple_of(4) {
        return Err(Unfetched::Fault);
    }
    let ipa = walk::translate(cpu, space, pc, access).map_err(|_| Unfetched::Fault)?;
    if !matches!(space.place(ipa), Place::Ram | Place::Program) {
        return Err(Unfetched::NoRam(ipa));
    }
    let word = space.read(ipa, 4).map_err(|_| Unfetched::NoRam(ipa))?;
    Ok(word as u32)
}

/// Writes an outcome into the page that EL2 reads.
pub fn finish(registers: &mut Registers, outcome: &Outcome) {
    let abort = match outcome {
        Outcome::Done | Outcome::Parted(_) | Outcome::Paused => {
            registers.finish = Finish::Done as u64;
            return;
        }
        Outcome::Again | Outcome::Later => {
            registers.finish = Finish::Again as u64;
            return;
        }
        Outcome::Abort(abort, _) => abort,
    };
    registers.finish = Finish::Abort as u64;
    registers.iss = u64::from(abort.code) | abort.by.bits();
    registers.far = abort.far;
    registers.fetch = (abort.by == By::Fetch).into();
}

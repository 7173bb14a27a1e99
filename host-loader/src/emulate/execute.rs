//! Loads and stores, executed on devices of the host's and on RAM.
//!
//! As on QEMU's virt machine: every page that an instruction touches is
//! translated before anything happens; then its elements are accessed in order;
//! an abort among them leaves what was done, and no register changes.

use super::instruction::{
    Action, Base, Combine, Direction, Extend, Index, Instruction, Lanes, Offset, Touch, Widen,
};
use super::state::Cpu;
use super::walk::{self, Access, Kind, Miss, Tables};
use crate::device::bus::{self, Joined, PAGE, Way};
use arm64::syndrome::{Class, Syndrome};

/// What lies behind a guest's IPAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// RAM of the guest's.
    Ram,
    /// A program in flash: to be read and executed, and written to as a device.
    Program,
    /// A device that the host models.
    Device,
    /// Nothing that the host serves.
    Nothing,
}

/// There is nothing that could be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nowhere;

/// A guest's memory and devices, by IPA. Accesses are of 1, 2, 4 or 8 bytes,
/// aligned to their size: pieces, as [`bus`] has them.
pub trait Space: Tables {
    /// What is there.
    fn place(&self, ipa: u64) -> Place;
    /// Reads RAM or a device: all bits that are answered.
    fn read(&mut self, ipa: u64, size: u64) -> Result<u64, Nowhere>;
    /// Writes RAM or a device; `value` holds what follows the piece, too. A
    /// device takes all that an instruction writes once it
    /// [began](Space::takes).
    fn write(&mut self, ipa: u64, size: u64, value: u64) -> Result<(), Nowhere>;
    /// Whether an instruction that writes these bytes can begin: false for a
    /// device that has no room.
    fn takes(&mut self, ipa: u64, size: u64) -> bool;
}

/// What met an abort, as a syndrome describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// An instruction fetch.
    Fetch,
    /// A load.
    Read,
    /// A store.
    Write,
    /// Cache maintenance or address translation (CM): a write, too.
    Maintenance,
}

impl By {
    /// Who met the abort of this syndrome.
    pub const fn of(esr: Syndrome) -> Self {
        if esr.class().0 == Class::INST_ABORT_LOWER.0 {
            Self::Fetch
        } else if esr.is_cache_maintenance() {
            Self::Maintenance
        } else if esr.is_write() {
            Self::Write
        } else {
            Self::Read
        }
    }

    /// CM and WnR of ESR_EL1.
    pub const fn bits(self) -> u64 {
        match self {
            Self::Fetch | Self::Read => 0,
            Self::Write => 1 << 6,
            Self::Maintenance => 1 << 8 | 1 << 6,
        }
    }
}

/// An abort that the guest takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// The address that it is about.
    pub far: u64,
    /// The fault status code.
    pub code: u8,
    /// Who met it.
    pub by: By,
}

impl Abort {
    /// Synchronous external abort.
    pub const EXTERNAL: u8 = 0x10;
}

/// Why an instruction was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undone {
    /// The guest takes an abort.
    Abort(Abort),
    /// The guest can do it itself, or meets what its tables say now: all of it
    /// is RAM, or an entry changed under the walk.
    Again,
    /// The device has no room for it: the guest executes it again, later.
    Later,
}

/// What a load-exclusive has marked: an IPA and the bytes there.
pub type Mark = Option<(u64, u64)>;

/// Who does an access of nothing but RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfRam {
    /// The guest, which can: [`Undone::Again`].
    Left,
    /// The host.
    Done,
}

/// The elements of one instruction in memory.
struct Span<'a, S> {
    space: &'a mut S,
    va: u64,
    bytes: u64,
    big_endian: bool,
    /// IPAs in the first page and in the last.
    pages: [u64; 2],
}

impl<S: Space> Span<'_, S> {
    fn external(&self, at: u64, by: By) -> Undone {
        Undone::Abort(Abort {
            far: at,
            code: Abort::EXTERNAL,
            by,
        })
    }

    /// There is nothing else.
    fn is_ram(&self) -> bool {
        let is_ram = |ipa: &u64| self.space.place(*ipa) == Place::Ram;
        self.pages.iter().all(is_ram)
    }

    fn ipa(&self, at: u64) -> u64 {
        let page = usize::from((at ^ self.va) & !(PAGE - 1) != 0);
        self.pages[page] & !(PAGE - 1) | at & (PAGE - 1)
    }

    /// Calls `f` with offset, IPA and size of the pieces that `size` bytes at
    /// offset `at` are accessed in.
    fn pieces(
        &mut self,
        at: u64,
        size: u64,
        by: By,
        mut f: impl FnMut(&mut S, u64, u64, u64) -> Result<(), Nowhere>,
    ) -> Result<(), Undone> {
        let start = self.va.wrapping_add(at);
        for (done, bytes) in bus::pieces(start, size) {
            let va = start.wrapping_add(done);
            let ipa = self.ipa(va);
            f(self.space, done, ipa, bytes).map_err(|Nowhere| self.external(va, by))?;
        }
        Ok(())
    }

    /// `size` bytes at offset `at`, the first lowest. Of more than a word, each
    /// word is an access of its own.
    fn load_bytes(&mut self, at: u64, size: u64) -> Result<u128, Undone> {
        let mut value = 0u128;
        for (done, bytes) in bus::words(self.va.wrapping_add(at), size, Way::Read) {
            let mut joined = Joined::default();
            self.pieces(at + done, bytes, By::Read, |space, _, ipa, bytes| {
                joined.add(space.read(ipa, bytes)?, bytes);
                Ok(())
            })?;
            value |= u128::from(joined.value(bytes)) << (8 * done);
        }
        Ok(value)
    }

    fn store_bytes(&mut self, at: u64, size: u64, value: u128) -> Result<(), Undone> {
        for (done, bytes) in bus::words(self.va.wrapping_add(at), size, Way::Write) {
            let word = (value >> (8 * done)) as u64 & mask(bytes);
            self.pieces(at + done, bytes, By::Write, |space, offset, ipa, bytes| {
                space.write(ipa, bytes, word >> (8 * offset))
            })?;
        }
        Ok(())
    }

    /// The element of `size` bytes at offset `at`.
    fn load(&mut self, at: u64, size: u64) -> Result<u128, Undone> {
        let value = self.load_bytes(at, size)?;
        Ok(self.ordered(value, size))
    }

    fn store(&mut self, at: u64, size: u64, value: u128) -> Result<(), Undone> {
        let value = self.ordered(value, size);
        self.store_bytes(at, size, value)
    }

    /// Between a register's value and memory's, the first byte lowest.
    fn ordered(&self, value: u128, size: u64) -> u128 {
        if self.big_endian {
            value.swap_bytes() >> (128 - 8 * size)
        } else {
            value
        }
    }
}

/// The lowest `bytes` bytes, of 8 at most.
const fn mask(bytes: u64) -> u64 {
    u64::MAX >> (64 - 8 * bytes)
}

fn widen(value: u64, size: u8, how: Widen) -> u64 {
    let unused = 64 - (8 << size);
    let signed = ((value << unused) as i64 >> unused) as u64;
    match how {
        Widen::Zero => value,
        Widen::Sign32 => signed & 0xffff_ffff,
        Widen::Sign64 => signed,
    }
}

/// The address of an instruction, and what its base register becomes.
fn address(cpu: &Cpu, instruction: &Instruction) -> (u64, Option<(u8, u64)>) {
    let base = match instruction.base {
        Base::Register(n) => cpu.x_or_sp(n),
        Base::Pc => cpu.registers.pc,
    };
    let offset = match instruction.offset {
        Offset::Immediate(bytes) => bytes as u64,
        Offset::Register { m, extend, shift } => {
            let x = cpu.x(m);
            let wide = match extend {
                Extend::Uxtw => x & 0xffff_ffff,
                Extend::Sxtw => x as u32 as i32 as i64 as u64,
                Extend::Lsl | Extend::Sxtx => x,
            };
            wide << shift
        }
    };
    let sum = base.wrapping_add(offset);
    let Base::Register(n) = instruction.base else {
        return (sum, None);
    };
    match instruction.index {
        Index::Offset => (sum, None),
        Index::Pre => (sum, Some((n, sum))),
        Index::Post => (base, Some((n, sum))),
    }
}

/// Whether the CPU would do this access of a device without a word about its
/// address: it and the stack pointer that leads there are aligned, or it is the
/// one that a load-exclusive was allowed.
pub fn is_aligned(cpu: &Cpu, instruction: &Instruction, mark: Mark) -> bool {
    let (va, _) = address(cpu, instruction);
    let action = instruction.action;
    let is_stack = instruction.base == Base::Register(31);
    if is_stack && !cpu.x_or_sp(31).is_multiple_of(16) {
        return false;
    }
    match action {
        Action::StoreExclusive { .. } => {
            let marked = mark.is_some_and(|(ipa, _)| ipa % PAGE == va % PAGE);
            marked || va.is_multiple_of(action.bytes())
        }
        _ => va.is_multiple_of(1 << action.size()),
    }
}

/// Executes one load or store; the PC stays. On an error nothing of `cpu` has
/// changed.
pub fn execute(
    cpu: &mut Cpu,
    space: &mut impl Space,
    instruction: &Instruction,
    of_ram: OfRam,
    mark: &mut Mark,
) -> Result<(), Undone> {
    let (va, base) = address(cpu, instruction);
    let action = instruction.action;
    if let Action::StoreExclusive { s, .. } = action
        && mark.is_none()
    {
        cpu.set_x(s, 1);
        return Ok(());
    }
    let as_el0 = cpu.is_el0() || (instruction.unprivileged && !cpu.uao());
    let mut span = span(
        cpu,
        space,
        Bytes {
            va,
            count: action.bytes(),
        },
        action.touch(),
        as_el0,
    )?;
    if of_ram == OfRam::Left && span.is_ram() {
        return Err(Undone::Again);
    }
    let mut new = *cpu;
    match action {
        Action::General { .. } | Action::Vector { .. } => registers(&mut new, &mut span, action)?,
        Action::Structure { .. } => structure(&mut new, &mut span, action)?,
        Action::LoadExclusive { t, t2, size } => {
            general(&mut new, &mut span, Direction::Load, [Some(t), t2], size)?;
            *mark = Some((span.ipa(va), span.bytes));
        }
        Action::StoreExclusive { s, t, t2, size } => {
            let here = Some((span.ipa(va), span.bytes));
            let stands = mark.take() == here;
            if stands {
                general(&mut new, &mut span, Direction::Store, [Some(t), t2], size)?;
            }
            new.set_x(s, u64::from(!stands));
        }
        Action::Atomic { .. } | Action::CompareSwap { .. } => {
            atomic(&mut new, &mut span, action)?;
        }
    }
    // After the load: of a register that is both, the base wins, as on QEMU.
    if let Some((n, value)) = base {
        new.set_x_or_sp(n, value);
    }
    *cpu = new;
    Ok(())
}

/// Executes `dc zva` of the block that holds `va`: zeros, a byte at a time, as
/// QEMU's machine writes them to a device.
pub fn zero_block(cpu: &Cpu, space: &mut impl Space, va: u64) -> Result<(), Undone> {
    let bytes = cpu.zero_block;
    let start = va & !(bytes - 1);
    let area = Bytes {
        va: start,
        count: bytes,
    };
    let mut span = span(cpu, space, area, Touch::Write, cpu.is_el0())?;
    if span.is_ram() {
        return Err(Undone::Again);
    }
    (0..bytes).try_for_each(|at| span.store(at, 1, 0))
}

/// What an instruction touches.
struct Bytes {
    va: u64,
    count: u64,
}

/// Translates what an instruction touches: all of it, before
/// any of it is accessed. Of alignment the CPU has judged: where it asks for
/// some, stage 1 has its word before stage 2 (DDI0487, AArch64.S1Translate), and
/// an access without it does not come here.
fn span<'a, S: Space>(
    cpu: &Cpu,
    space: &'a mut S,
    Bytes { va, count: bytes }: Bytes,
    touch: Touch,
    as_el0: bool,
) -> Result<Span<'a, S>, Undone> {
    let last = va.wrapping_add(bytes - 1);
    let mut translate = |va| translate(cpu, space, va, touch, as_el0);
    let first = translate(va)?;
    let second = if (va ^ last) & !(PAGE - 1) == 0 {
        first
    } else {
        translate(last & !(PAGE - 1))?
    };
    let span = Span {
        space,
        va,
        bytes,
        big_endian: cpu.is_big_endian(),
        pages: [first, second],
    };
    let in_first = bytes.min(PAGE - va % PAGE);
    let ready = touch == Touch::Read
        || (span.space.takes(first, in_first)
            && span.space.takes(second & !(PAGE - 1), bytes - in_first));
    if ready { Ok(span) } else { Err(Undone::Later) }
}

fn translate(
    cpu: &Cpu,
    tables: &mut impl Tables,
    va: u64,
    touch: Touch,
    as_el0: bool,
) -> Result<u64, Undone> {
    let mut walk = |kind| walk::translate(cpu, tables, va, Access { kind, as_el0 });
    let kind = match touch {
        Touch::Read => Kind::Read,
        Touch::Write | Touch::ReadWrite => Kind::Write,
    };
    let fault = match walk(kind) {
        Ok(ipa) => return Ok(ipa),
        Err(Miss::Changed) => return Err(Undone::Again),
        Err(Miss::Fault(fault)) => fault,
    };
    // Of an instruction that does both, WnR says what could not be done if it
    // only read (DDI0487, ESR_EL1).
    let by = match touch {
        Touch::Read => By::Read,
        Touch::ReadWrite if walk(Kind::Read).is_err() => By::Read,
        Touch::Write | Touch::ReadWrite => By::Write,
    };
    Err(Undone::Abort(Abort {
        far: va,
        code: fault.0,
        by,
    }))
}

/// Moves consecutive elements to or from general registers, zero-extended: one
/// access, a pair of words too, as on QEMU's machine.
fn general<S: Space>(
    cpu: &mut Cpu,
    span: &mut Span<'_, S>,
    direction: Direction,
    registers: [Option<u8>; 2],
    size: u8,
) -> Result<(), Undone> {
    let elements = || {
        registers
            .into_iter()
            .flatten()
            .zip((0u32..).step_by(8 << size))
    };
    let bytes = 1 << size;
    match direction {
        Direction::Load => {
            let all = span.load_bytes(0, span.bytes)?;
            for (t, at) in elements() {
                let value = all >> at & u128::from(mask(bytes));
                cpu.set_x(t, span.ordered(value, bytes) as u64);
            }
        }
        Direction::Store => {
            let all = elements().fold(0, |all, (t, at)| {
                let value = cpu.x(t) & mask(bytes);
                all | span.ordered(value.into(), bytes) << at
            });
            span.store_bytes(0, span.bytes, all)?;
        }
    }
    Ok(())
}

fn registers<S: Space>(
    cpu: &mut Cpu,
    span: &mut Span<'_, S>,
    action: Action,
) -> Result<(), Undone> {
    match action {
        Action::General {
            direction,
            t,
            t2,
            size,
            widen: how,
        } => {
            general(cpu, span, direction, [Some(t), t2], size)?;
            if direction == Direction::Load {
                for t in [Some(t), t2].into_iter().flatten() {
                    cpu.set_x(t, widen(cpu.x(t), size, how));
                }
            }
        }
        Action::Vector {
            direction,
            t,
            t2,
            size,
        } => {
            for (n, t) in [Some(t), t2].into_iter().flatten().enumerate() {
                let at = (n as u64) << size;
                match direction {
                    Direction::Load => {
                        let value = span.load(at, 1 << size)?;
                        cpu.set_v(t, value);
                    }
                    Direction::Store => {
                        let value = cpu.v(t) & (u128::MAX >> (128 - (8 << size)));
                        span.store(at, 1 << size, value)?;
                    }
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// LD1 to LD4 and ST1 to ST4.
fn structure<S: Space>(
    cpu: &mut Cpu,
    span: &mut Span<'_, S>,
    action: Action,
) -> Result<(), Undone> {
    let Action::Structure {
        direction,
        t,
        elements,
        lanes,
        size,
    } = action
    else {
        return Ok(());
    };
    // Registers and lanes in the order of memory; and one lane's width there.
    let (repeat, lanes_each, first_lane, size) = match lanes {
        // One register after the other: QEMU's machine loads double words.
        Lanes::Whole { repeat, wide } if elements == 1 && !span.big_endian => {
            (repeat, 1 << wide as u8, 0, 3)
        }
        Lanes::Whole { repeat, wide } => (repeat, (8 << wide as u8) >> size, 0, size),
        Lanes::One { lane } => (1, 1, lane, size),
        Lanes::Replicate { .. } => (1, 1, 0, size),
    };
    let bits = 8u32 << size;
    let lane_mask = u128::MAX >> (128 - bits);
    let mut at = 0;
    for r in 0..repeat {
        for lane in first_lane..first_lane + lanes_each {
            for e in 0..elements {
                let register = (t + r + e) % 32;
                let shift = u32::from(lane) * bits;
                let old = cpu.v(register);
                if direction == Direction::Store {
                    span.store(at, 1 << size, old >> shift & lane_mask)?;
                } else {
                    let value = span.load(at, 1 << size)?;
                    let kept = match lanes {
                        // The upper half of an 8-byte register is zero.
                        Lanes::Whole { .. } if lane == 0 => 0,
                        _ => old & !(lane_mask << shift),
                    };
                    cpu.set_v(register, kept | value << shift);
                }
                at += 1 << size;
            }
        }
    }
    if let Lanes::Replicate { wide } = lanes {
        for e in 0..elements {
            let register = (t + e) % 32;
            let element = cpu.v(register) & lane_mask;
            let count = (if wide { 128 } else { 64 }) / bits;
            let all = (0..count).fold(0, |all, lane| all | element << (lane * bits));
            cpu.set_v(register, all);
        }
    }
    Ok(())
}

fn atomic<S: Space>(cpu: &mut Cpu, span: &mut Span<'_, S>, action: Action) -> Result<(), Undone> {
    match action {
        Action::Atomic {
            combine,
            s,
            t,
            size,
        } => {
            // An abort is the read's, as on QEMU; the architecture leaves it open.
            let old = span.load(0, 1 << size)? as u64;
            let new = combined(combine, old, cpu.x(s), size);
            span.store(0, 1 << size, new.into())?;
            cpu.set_x(t, old);
        }
        Action::CompareSwap { s, t, pair, size } => {
            let (count, bytes) = (1 + u64::from(pair), 1 << size);
            // One access of a pair, too; its first register is first in memory.
            let in_memory = |span: &Span<'_, S>, first: u8| {
                (0..count).fold(0, |all, n| {
                    let value = cpu.x(second(first, n)) & mask(bytes);
                    all | span.ordered(value.into(), bytes) << (8 * (n << size))
                })
            };
            let (expected, new) = (in_memory(span, s), in_memory(span, t));
            let old = span.load_bytes(0, span.bytes)?;
            // What is not replaced is written again, as on QEMU.
            let new = if old == expected { new } else { old };
            span.store_bytes(0, span.bytes, new)?;
            for n in 0..count {
                let value = old >> (8 * (n << size)) & u128::from(mask(bytes));
                cpu.set_x(second(s, n), span.ordered(value, bytes) as u64);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Register `n` of a pair; 31 has no second.
fn second(register: u8, n: u64) -> u8 {
    register + n as u8
}

fn combined(combine: Combine, old: u64, operand: u64, size: u8) -> u64 {
    let mask = mask(1 << size);
    let operand = operand & mask;
    let signed = |value: u64| widen(value, size, Widen::Sign64) as i64;
    let new = match combine {
        Combine::Add => old.wrapping_add(operand),
        Combine::Clear => old & !operand,
        Combine::Eor => old ^ operand,
        Combine::Set => old | operand,
        Combine::Smax => [old, operand][usize::from(signed(operand) > signed(old))],
        Combine::Smin => [old, operand][usize::from(signed(operand) < signed(old))],
        Combine::Umax => old.max(operand),
        Combine::Umin => old.min(operand),
        Combine::Swap => operand,
    };
    new & mask
}

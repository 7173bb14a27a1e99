//! The encodings of loads and stores (DDI0487, C4.1.94), and nothing else.
//!
//! What is not here is no load or store that a guest of ours has: MTE's tag
//! accesses, LS64, MOPS, RCW, SVE and SME are hidden from it, prefetches do not
//! fault, and for LDRAA and LDRAB one would need the guest's keys.

use super::instruction::{
    Action, Base, Combine, Direction, Extend, Index, Instruction, Lanes, Offset, Widen,
};
use super::word::{bit, bits, register, signed};

const fn direction(load: bool) -> Direction {
    if load {
        Direction::Load
    } else {
        Direction::Store
    }
}

/// True when the word is in the group of loads and stores: what it does, this
/// module may or may not know.
pub const fn is_load_or_store(word: u32) -> bool {
    bit(word, 27) && !bit(word, 25)
}

/// The register of `dc zva`, if the word is that.
pub const fn zero_block(word: u32) -> Option<u8> {
    if word & !0x1f == 0xd50b_7420 {
        Some(register(word, 0))
    } else {
        None
    }
}

/// The load or store that a word is.
pub fn decode(word: u32) -> Option<Instruction> {
    if !is_load_or_store(word) {
        return None;
    }
    match (bits(word, 29, 28), bit(word, 26), bit(word, 24)) {
        (0b00, true, single) => structures(word, single),
        (0b00, false, false) => exclusives(word),
        (0b01, false, true) => ordered_unscaled(word),
        (0b01, _, false) => literal(word),
        (0b10, ..) => pairs(word),
        (0b11, _, true) => unsigned_offset(word),
        (0b11, _, false) => other_offsets(word),
        _ => None,
    }
}

/// An access at `[Xn]`.
fn at_register(word: u32, action: Action) -> Instruction {
    Instruction {
        action,
        base: Base::Register(register(word, 5)),
        offset: Offset::Immediate(0),
        index: Index::Offset,
        unprivileged: false,
    }
}

fn general(word: u32, direction: Direction, size: u8, widen: Widen) -> Action {
    Action::General {
        direction,
        t: register(word, 0),
        t2: None,
        size,
        widen,
    }
}

/// LD1 to LD4, ST1 to ST4, of several structures or of a single one.
fn structures(word: u32, single: bool) -> Option<Instruction> {
    if bit(word, 31) {
        return None;
    }
    let post = bit(word, 23);
    let (wide, load, m) = (bit(word, 30), bit(word, 22), register(word, 16));
    let (elements, lanes, size) = if single {
        single_structure(word, wide, load)?
    } else {
        if bit(word, 21) {
            return None;
        }
        let (repeat, elements) = match bits(word, 15, 12) {
            0b0000 => (1, 4),
            0b0010 => (4, 1),
            0b0100 => (1, 3),
            0b0110 => (3, 1),
            0b0111 => (1, 1),
            0b1000 => (1, 2),
            0b1010 => (2, 1),
            _ => return None,
        };
        let size = bits(word, 11, 10) as u8;
        if size == 3 && !wide && elements != 1 {
            return None;
        }
        (elements, Lanes::Whole { repeat, wide }, size)
    };
    let action = Action::Structure {
        direction: direction(load),
        t: register(word, 0),
        elements,
        lanes,
        size,
    };
    let plain = at_register(word, action);
    if !post {
        return (m == 0).then_some(plain);
    }
    let offset = if m == 31 {
        Offset::Immediate(action.bytes() as i64)
    } else {
        Offset::Register {
            m,
            extend: Extend::Lsl,
            shift: 0,
        }
    };
    Some(Instruction {
        offset,
        index: Index::Post,
        ..plain
    })
}

fn single_structure(word: u32, wide: bool, load: bool) -> Option<(u8, Lanes, u8)> {
    let (opcode, s, size) = (bits(word, 15, 13), bits(word, 12, 12), bits(word, 11, 10));
    let elements = ((opcode & 1) << 1 | bits(word, 21, 21)) as u8 + 1;
    let number = (wide as u32) << 3 | s << 2 | size;
    let (lane, size) = match opcode >> 1 {
        0 => (number, 0),
        1 if size & 1 == 0 => (number >> 1, 1),
        2 if size == 0 => (number >> 2, 2),
        2 if size == 1 && s == 0 => (number >> 3, 3),
        3 if load && s == 0 => return Some((elements, Lanes::Replicate { wide }, size as u8)),
        _ => return None,
    };
    Some((elements, Lanes::One { lane: lane as u8 }, size))
}

/// Exclusives, compare and swap, and ordered accesses without an offset.
fn exclusives(word: u32) -> Option<Instruction> {
    let size = bits(word, 31, 30) as u8;
    let load = bit(word, 22);
    let (s, t, t2) = (register(word, 16), register(word, 0), register(word, 10));
    let exclusive = |size, t2| {
        if load {
            Action::LoadExclusive { t, t2, size }
        } else {
            Action::StoreExclusive { s, t, t2, size }
        }
    };
    let action = match (bit(word, 23), bit(word, 21)) {
        (false, false) => exclusive(size, None),
        (false, true) if size >= 2 => exclusive(size, Some(t2)),
        // CASP: registers are even.
        (false, true) if t2 == 31 && (s | t) & 1 == 0 => Action::CompareSwap {
            s,
            t,
            pair: true,
            size: size + 2,
        },
        // LDAR, STLR, and LDLAR, STLLR.
        (true, false) => general(word, direction(load), size, Widen::Zero),
        (true, true) if t2 == 31 => Action::CompareSwap {
            s,
            t,
            pair: false,
            size,
        },
        _ => return None,
    };
    Some(at_register(word, action))
}

/// What the fields size and opc say of a general register: direction, size and
/// widening. `None` for prefetches and what is unallocated.
fn kind(size: u8, opc: u32) -> Option<(Direction, Widen)> {
    Some(match opc {
        0 => (Direction::Store, Widen::Zero),
        1 => (Direction::Load, Widen::Zero),
        2 if size < 3 => (Direction::Load, Widen::Sign64),
        3 if size < 2 => (Direction::Load, Widen::Sign32),
        _ => return None,
    })
}

/// LDAPUR, STLUR and their like.
fn ordered_unscaled(word: u32) -> Option<Instruction> {
    if bit(word, 21) || bits(word, 11, 10) != 0 {
        return None;
    }
    let size = bits(word, 31, 30) as u8;
    let (direction, widen) = kind(size, bits(word, 23, 22))?;
    Some(Instruction {
        offset: Offset::Immediate(signed(word, 20, 12)),
        ..at_register(word, general(word, direction, size, widen))
    })
}

/// LDR and LDRSW of a literal.
fn literal(word: u32) -> Option<Instruction> {
    let opc = bits(word, 31, 30) as u8;
    let t = register(word, 0);
    let action = match (bit(word, 26), opc) {
        (false, 0 | 1) => general(word, Direction::Load, 2 + opc, Widen::Zero),
        (false, 2) => general(word, Direction::Load, 2, Widen::Sign64),
        (true, 0..=2) => Action::Vector {
            direction: Direction::Load,
            t,
            t2: None,
            size: 2 + opc,
        },
        _ => return None,
    };
    Some(Instruction {
        action,
        base: Base::Pc,
        offset: Offset::Immediate(signed(word, 23, 5) * 4),
        index: Index::Offset,
        unprivileged: false,
    })
}

/// LDP, STP, LDPSW, LDNP and STNP.
fn pairs(word: u32) -> Option<Instruction> {
    let (opc, mode) = (bits(word, 31, 30) as u8, bits(word, 24, 23));
    let (t, t2) = (register(word, 0), Some(register(word, 10)));
    let direction = direction(bit(word, 22));
    let action = if bit(word, 26) {
        if opc == 3 {
            return None;
        }
        Action::Vector {
            direction,
            t,
            t2,
            size: 2 + opc,
        }
    } else {
        let (size, widen) = match opc {
            0 => (2, Widen::Zero),
            2 => (3, Widen::Zero),
            // LDPSW; the store is MTE's, and there is none without allocation.
            1 if direction == Direction::Load && mode != 0 => (2, Widen::Sign64),
            _ => return None,
        };
        Action::General {
            direction,
            t,
            t2,
            size,
            widen,
        }
    };
    Some(Instruction {
        offset: Offset::Immediate(signed(word, 21, 15) << action.size()),
        index: match mode {
            1 => Index::Post,
            3 => Index::Pre,
            _ => Index::Offset,
        },
        ..at_register(word, action)
    })
}

/// One register, of either kind, by the fields size, V and opc.
fn one_register(word: u32) -> Option<Action> {
    let (size, opc) = (bits(word, 31, 30) as u8, bits(word, 23, 22));
    if !bit(word, 26) {
        let (direction, widen) = kind(size, opc)?;
        return Some(general(word, direction, size, widen));
    }
    let size = match (opc >> 1, size) {
        (0, size) => size,
        (1, 0) => 4,
        _ => return None,
    };
    Some(Action::Vector {
        direction: direction(opc & 1 != 0),
        t: register(word, 0),
        t2: None,
        size,
    })
}

/// An unsigned offset that counts in elements.
fn unsigned_offset(word: u32) -> Option<Instruction> {
    let action = one_register(word)?;
    Some(Instruction {
        offset: Offset::Immediate(i64::from(bits(word, 21, 10)) << action.size()),
        ..at_register(word, action)
    })
}

/// Signed offsets of bytes, register offsets, atomics.
fn other_offsets(word: u32) -> Option<Instruction> {
    let mode = bits(word, 11, 10);
    if bit(word, 21) {
        return match mode {
            0b00 => atomic(word),
            0b10 => register_offset(word),
            _ => None,
        };
    }
    let unprivileged = mode == 0b10;
    if unprivileged && bit(word, 26) {
        return None;
    }
    Some(Instruction {
        offset: Offset::Immediate(signed(word, 20, 12)),
        index: match mode {
            0b01 => Index::Post,
            0b11 => Index::Pre,
            _ => Index::Offset,
        },
        unprivileged,
        ..at_register(word, one_register(word)?)
    })
}

fn register_offset(word: u32) -> Option<Instruction> {
    let action = one_register(word)?;
    let extend = match bits(word, 15, 13) {
        0b010 => Extend::Uxtw,
        0b011 => Extend::Lsl,
        0b110 => Extend::Sxtw,
        0b111 => Extend::Sxtx,
        _ => return None,
    };
    Some(Instruction {
        offset: Offset::Register {
            m: register(word, 16),
            extend,
            shift: if bit(word, 12) { action.size() } else { 0 },
        },
        ..at_register(word, action)
    })
}

/// LDADD and its like, SWP, and LDAPR.
fn atomic(word: u32) -> Option<Instruction> {
    if bit(word, 26) {
        return None;
    }
    let (size, s) = (bits(word, 31, 30) as u8, register(word, 16));
    let combine = match (bit(word, 15), bits(word, 14, 12)) {
        (false, opc) => [
            Combine::Add,
            Combine::Clear,
            Combine::Eor,
            Combine::Set,
            Combine::Smax,
            Combine::Smin,
            Combine::Umax,
            Combine::Umin,
        ][opc as usize],
        (true, 0) => Combine::Swap,
        // Acquire, no release.
        (true, 0b100) if bits(word, 23, 22) == 0b10 => {
            let load = general(word, Direction::Load, size, Widen::Zero);
            return Some(at_register(word, load));
        }
        _ => return None,
    };
    let t = register(word, 0);
    let action = Action::Atomic {
        combine,
        s,
        t,
        size,
    };
    Some(at_register(word, action))
}

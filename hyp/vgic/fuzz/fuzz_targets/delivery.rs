//! Guests, devices and the hypervisor do what they please: what vCPUs are
//! signalled and what registers say is what the plain specification of `tests/`
//! says, after every step. `cargo fuzz run delivery -- -max_len=1280`.

#![no_main]

#[path = "../../tests/delivery/hardware.rs"]
mod hardware;
#[path = "../../tests/delivery/machine.rs"]
mod machine;
#[path = "../../tests/delivery/spec.rs"]
mod spec;
#[path = "../../tests/delivery/world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;
use machine::TIMER;
use spec::Route;
use vgic::SgiRegister;
use world::{Bit, INTIDS, Op, PES, run};

/// Operations in one input, 4 bytes each.
const MOST: usize = 320;

const SGIS: &[u32] = INTIDS.split_at(4).0;
const SPIS: &[u32] = INTIDS.split_at(11).1;

const BITS: [Bit; 6] = [
    Bit::SetEnable,
    Bit::ClearEnable,
    Bit::SetPending,
    Bit::ClearPending,
    Bit::SetActive,
    Bit::ClearActive,
];

/// The operation that four bytes stand for.
fn op(pes: usize, [kind, pe, which, how]: [u8; 4]) -> Op {
    let pe = pe as usize % pes;
    let pick = |from: &[u32]| from[which as usize % from.len()];
    let (intid, sgi, spi) = (pick(&INTIDS), pick(SGIS), pick(SPIS));
    let on = how & 1 == 1;
    match kind % 24 {
        0..=2 if intid >= 16 && intid != TIMER => Op::Line {
            pe,
            intid,
            level: on,
        },
        0..=3 => Op::Timer { pe, level: on },
        4 => Op::Sgi {
            from: pe,
            to: u16::from(how >> 2) & ((1 << pes) - 1),
            sgi,
            register: [
                SgiRegister::Sgi0,
                SgiRegister::Sgi1,
                SgiRegister::Sgi1,
                SgiRegister::Asgi1,
            ][how as usize & 3],
        },
        5 => Op::SgiToOthers { from: pe, sgi },
        6..=8 => Op::Bit {
            pe,
            intid,
            register: BITS[how as usize % BITS.len()],
        },
        9 => Op::Group {
            pe,
            intid,
            group1: on,
        },
        10 => Op::Priority {
            pe,
            intid,
            priority: how & 0xfe,
            byte: on,
        },
        11 => Op::Config {
            pe,
            intid,
            edge: on,
        },
        12 => Op::Route {
            pe,
            spi,
            route: match how as usize % (pes + 3) {
                0 => Route::Nowhere,
                1 | 2 => Route::Any,
                to => Route::To(to - 3),
            },
        },
        13 => Op::Distributor {
            pe,
            enables: [on, how & 2 == 2],
        },
        14 => Op::Sleep { pe, sleep: on },
        15 | 16 => Op::Acknowledge { pe },
        17 => Op::End { pe },
        18 => Op::Deactivate { pe, intid },
        19 => Op::Enables {
            pe,
            group1: which & 1 == 1,
            on,
        },
        20 => Op::Mask { pe, mask: how },
        21 => Op::Split { pe, split: on },
        22 => match how % 3 {
            0 => Op::Stop { pe },
            1 => Op::Put { pe },
            _ => Op::Enter { pe },
        },
        _ => Op::Read { pe, intid },
    }
}

fuzz_target!(|data: &[u8]| {
    let ([which, rest @ ..], _) = data.as_chunks::<4>() else {
        return;
    };
    let pes = if which[0] & 1 == 0 { PES } else { 1 };
    let list_registers = [1, 2, 4, 16][which[1] as usize & 3];
    let ops: Vec<Op> = rest.iter().take(MOST).map(|at| op(pes, *at)).collect();
    run(list_registers, pes, &ops);
});

//! Guests on several vCPUs do what they please; what they can observe must be
//! what the plain specification of the GIC says, with 1, 4 and 16 list registers.
#![allow(missing_docs)]

mod hardware;
mod late;
mod machine;
mod spec;
mod world;

use machine::TIMER;
use proptest::prelude::*;
use spec::Route;
use vgic::SgiRegister;
use world::{Bit, INTIDS, Op, PES, run};

fn op(pes: usize) -> impl Strategy<Value = Op> {
    let pe = 0..pes;
    let intid = prop::sample::select(&INTIDS[..]);
    let spi = prop::sample::select(&INTIDS[10..]);
    let line = prop::sample::select(
        INTIDS
            .iter()
            .copied()
            .filter(|&n| n >= 16 && n != TIMER)
            .collect::<Vec<_>>(),
    );
    let route = prop_oneof![
        4 => (0..pes).prop_map(Route::To),
        1 => Just(Route::Nowhere),
        2 => Just(Route::Any),
    ];
    let bit = prop::sample::select(vec![
        Bit::SetEnable,
        Bit::ClearEnable,
        Bit::SetPending,
        Bit::SetPending,
        Bit::ClearPending,
        Bit::SetActive,
        Bit::ClearActive,
        Bit::ClearActive,
    ]);
    let register = prop::sample::select(vec![
        SgiRegister::Sgi0,
        SgiRegister::Sgi1,
        SgiRegister::Sgi1,
        SgiRegister::Asgi1,
    ]);
    let priority = (0_u8..8).prop_map(|n| n * 24 + 5);
    prop_oneof![
        12 => (pe.clone(), line, any::<bool>())
            .prop_map(|(pe, intid, level)| Op::Line { pe, intid, level }),
        5 => (pe.clone(), any::<bool>()).prop_map(|(pe, level)| Op::Timer { pe, level }),
        4 => (pe.clone(), 0..1_u16 << pes, prop::sample::select(&INTIDS[..4]), register)
            .prop_map(|(from, to, sgi, register)| Op::Sgi { from, to, sgi, register }),
        1 => (pe.clone(), prop::sample::select(&INTIDS[..4]))
            .prop_map(|(from, sgi)| Op::SgiToOthers { from, sgi }),
        14 => (pe.clone(), intid.clone(), bit)
            .prop_map(|(pe, intid, register)| Op::Bit { pe, intid, register }),
        2 => (pe.clone(), intid.clone(), any::<bool>())
            .prop_map(|(pe, intid, group1)| Op::Group { pe, intid, group1 }),
        4 => (pe.clone(), intid.clone(), priority, any::<bool>())
            .prop_map(|(pe, intid, priority, byte)| Op::Priority { pe, intid, priority, byte }),
        3 => (pe.clone(), intid.clone(), any::<bool>())
            .prop_map(|(pe, intid, edge)| Op::Config { pe, intid, edge }),
        4 => (pe.clone(), spi, route).prop_map(|(pe, spi, route)| Op::Route { pe, spi, route }),
        1 => (pe.clone(), prop::array::uniform2(prop::bool::weighted(0.8)))
            .prop_map(|(pe, enables)| Op::Distributor { pe, enables }),
        1 => (pe.clone(), prop::bool::weighted(0.3))
            .prop_map(|(pe, sleep)| Op::Sleep { pe, sleep }),
        24 => pe.clone().prop_map(|pe| Op::Acknowledge { pe }),
        16 => pe.clone().prop_map(|pe| Op::End { pe }),
        8 => (pe.clone(), intid.clone())
            .prop_map(|(pe, intid)| Op::Deactivate { pe, intid }),
        2 => (pe.clone(), any::<bool>(), prop::bool::weighted(0.7))
            .prop_map(|(pe, group1, on)| Op::Enables { pe, group1, on }),
        2 => (pe.clone(), prop::sample::select(vec![0_u8, 0x40, 0x80, 0xf8, 0xff, 0xff]))
            .prop_map(|(pe, mask)| Op::Mask { pe, mask }),
        2 => (pe.clone(), any::<bool>()).prop_map(|(pe, split)| Op::Split { pe, split }),
        2 => pe.clone().prop_map(|pe| Op::Stop { pe }),
        1 => pe.clone().prop_map(|pe| Op::Put { pe }),
        4 => pe.clone().prop_map(|pe| Op::Enter { pe }),
        6 => (pe, intid).prop_map(|(pe, intid)| Op::Read { pe, intid }),
    ]
}
/// Who gives an SPI up while stopped tells the one it now goes to.
#[test]
fn a_stopped_pe_hands_over() {
    let ops = [
        Op::Route {
            pe: 0,
            spi: 65,
            route: Route::To(2),
        },
        Op::Line {
            pe: 0,
            intid: 65,
            level: true,
        },
        Op::Stop { pe: 2 },
        Op::Route {
            pe: 0,
            spi: 65,
            route: Route::To(0),
        },
    ];
    run(16, PES, &ops);
}

/// A machine of one PE or several, and what is done to it.
fn plan() -> impl Strategy<Value = (usize, Vec<Op>)> {
    prop_oneof![1 => Just(1), 3 => Just(PES)]
        .prop_flat_map(|pes| (Just(pes), prop::collection::vec(op(pes), 1..160)))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn with_1_list_register(plan in plan()) {
        run(1, plan.0, &plan.1);
    }

    #[test]
    fn with_4_list_registers(plan in plan()) {
        run(4, plan.0, &plan.1);
    }

    #[test]
    fn with_16_list_registers(plan in plan()) {
        run(16, plan.0, &plan.1);
    }
}

/// A write makes an interrupt active that the guest is done with, before its list
/// register is looked at: the guest's next EOI means the one that runs.
#[test]
fn what_is_made_active_behind_its_end_is_not_what_an_eoi_means() {
    let bit = |pe, intid, register| Op::Bit {
        pe,
        intid,
        register,
    };
    let ops = [
        Op::Timer { pe: 0, level: true },
        Op::Acknowledge { pe: 0 },
        bit(0, 95, Bit::SetPending),
        Op::Acknowledge { pe: 0 },
        bit(0, 0, Bit::ClearPending),
        Op::End { pe: 0 },
        bit(1, 95, Bit::SetActive),
        Op::Line {
            pe: 0,
            intid: 30,
            level: true,
        },
        Op::End { pe: 0 },
    ];
    run(1, PES, &ops);
}

/// What a guest does most: it sends itself an SGI and takes its timer's interrupt, again
/// and again, beside others.
#[test]
fn the_short_way_is_taken() {
    let mut ops = Vec::new();
    for round in 0..40 {
        ops.extend([
            Op::Sgi {
                from: 0,
                to: 1,
                sgi: [1, 7, 15][round % 3],
                register: SgiRegister::Sgi1,
            },
            Op::Acknowledge { pe: 0 },
            Op::End { pe: 0 },
            Op::Timer { pe: 0, level: true },
            Op::Acknowledge { pe: 0 },
            Op::Timer {
                pe: 0,
                level: false,
            },
            Op::End { pe: 0 },
        ]);
    }
    for pes in [1, PES] {
        let appended = run(4, pes, &ops);
        assert!(appended >= 40, "{appended} of 80, {pes} PEs");
    }
}

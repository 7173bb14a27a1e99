//! Calls on PEs and a firmware of the development machine.

extern crate std;
use super::*;
use crate::cpu::gic::Redistributor;
use crate::cpu::pe::{Entry, Stacks};
use crate::memory::region::Region;
use arm64::frame::Regime;
use arm64::recording::{self, Event};
use arm64::regs::CNTFRQ_EL0;
use core::cell::{Cell, RefCell};
use proptest::prelude::*;
use rmi::smccc::narrow;
use std::vec::Vec;

/// A firmware that answers everything alike, and what it was asked.
struct Says {
    answer: i64,
    asked: RefCell<Vec<(u32, [u64; 3])>>,
    waited: Cell<u32>,
    started: Started,
}

/// What becomes of a PE that was started.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Started {
    Comes,
    /// It will not do.
    Refuses,
    /// The firmware has lost it.
    Never,
}

impl Firmware for Says {
    fn call(&self, function: u32, args: [u64; 3]) -> i64 {
        self.asked.borrow_mut().push((function, args));
        self.answer
    }
    fn entry(&self) -> u64 {
        0x4008_0000
    }
    fn standby(&self) {
        self.waited.set(self.waited.get() + 1);
    }
    fn now(&self) -> u64 {
        // The counter wraps meanwhile.
        u64::from(self.waited.get()).wrapping_sub(2)
    }
    fn patience(&self) -> u64 {
        100
    }
    /// Whoever was started has come, or goes off again.
    fn pause(&self) {
        self.waited.set(self.waited.get() + 1);
        assert!(self.waited.get() <= 101, "it is given up");
        if self.started == Started::Never {
            return;
        }
        let started = self.asked.borrow().last().expect("CPU_ON").1[2];
        // SAFETY: the `Pe` that the caller has, as `CPU_ON` had it.
        let pe = unsafe { &*core::ptr::with_exposed_provenance::<Pe>(started as usize) };
        if self.started == Started::Refuses {
            super::refuse(pe, &says(psci::SUCCESS));
        } else {
            pe.arrive();
        }
    }
}

fn says(answer: i64) -> Says {
    Says {
        answer,
        asked: RefCell::default(),
        waited: Cell::default(),
        started: Started::Comes,
    }
}

/// PEs 0 and 1, which are off.
fn two() -> [Pe; 2] {
    let stacks = Region::new(0, 2 * Stacks::stride(0x1000)).expect("no overflow");
    let stacks = Stacks::new(stacks, 0x1000);
    // SAFETY: a record is behind it, and no GIC.
    let gicr = unsafe { Redistributor::new(0) };
    [0, 1].map(|n| {
        Pe::new(
            n,
            n as u64,
            gicr,
            Entry::new(&stacks, n, Regime::default(), 0),
        )
    })
}

#[track_caller]
fn answers(pes: &[Pe], firmware: &Says, function: u32, args: [u64; 3], expected: i64) {
    let relay = Relay {
        pes,
        me: pes.first(),
        firmware,
    };
    let call = Psci::read(function, args).expect("one of PSCI's");
    assert_eq!(relay.call(call), expected, "{call:x?}");
}

#[test]
fn every_function_that_features_names_is_served() {
    let (pes, firmware) = (two(), says(psci::SUCCESS));
    let relay = Relay {
        pes: &pes,
        me: None,
        firmware: &firmware,
    };
    for function in (0x8400_0000u32..0x8400_0020).chain(0xc400_0000..0xc400_0020) {
        let call = Psci::read(function, [fid::PSCI_VERSION.into(), 0, 0]);
        let served = call.is_some_and(|call| relay.call(call) != psci::NOT_SUPPORTED);
        let asked = Psci::Features {
            function: function.into(),
        };
        let told = relay.call(asked) == psci::SUCCESS;
        assert_eq!(told, served, "{function:#x}");
    }
}

#[test]
fn affinities_are_whole_and_of_level_0() {
    let (pes, firmware) = (two(), says(psci::AFFINITY_OFF));
    let on = fid::PSCI_CPU_ON;
    let info = fid::PSCI_AFFINITY_INFO;
    for bits in [2, 1 << 8, 1 << 24, 1 << 31, 1 << 32, 1 << 63] {
        for function in [on, info] {
            let args = [bits | 1, 0, 0];
            answers(&pes, &firmware, function, args, psci::INVALID_PARAMETERS);
        }
    }
    answers(&pes, &firmware, info, [1, 1, 0], psci::INVALID_PARAMETERS);
    assert_eq!(firmware.asked.take(), []);
    // A 32-bit call has no upper halves.
    let high = 7 << 32;
    let args = [high | 1, high, high];
    answers(
        &pes,
        &firmware,
        narrow(fid::PSCI_AFFINITY_INFO),
        args,
        psci::AFFINITY_OFF,
    );
    answers(
        &pes,
        &firmware,
        narrow(fid::PSCI_CPU_ON),
        [high | 1, high | 8, high | 9],
        1,
    );
    let block = core::ptr::from_ref(&pes[1]) as u64;
    let asked = [
        (fid::PSCI_AFFINITY_INFO, [1, 0, 0]),
        (fid::PSCI_CPU_ON, [1, 0x4008_0000, block]),
    ];
    assert_eq!(firmware.asked.take(), asked);
    assert_eq!(pes[1].start(), (8, 9));
}

#[test]
fn a_pe_is_off_when_the_firmware_says_so() {
    let pes = two();
    let info = fid::PSCI_AFFINITY_INFO;
    for (firmware, told) in [
        (psci::AFFINITY_ON, psci::AFFINITY_ON),
        (psci::AFFINITY_ON_PENDING, psci::AFFINITY_ON_PENDING),
        (psci::AFFINITY_OFF, psci::AFFINITY_OFF),
        (psci::INVALID_PARAMETERS, psci::AFFINITY_OFF),
    ] {
        answers(&pes, &says(firmware), info, [1, 0, 0], told);
    }
    let firmware = says(psci::SUCCESS);
    answers(&pes, &firmware, fid::PSCI_CPU_ON, [1, 0, 0], psci::SUCCESS);
    let answer = |of_on: i64, of_info: i64| {
        answers(&pes, &firmware, fid::PSCI_CPU_ON, [1, 0, 0], of_on);
        answers(&pes, &firmware, info, [1, 0, 0], of_info);
    };
    answer(psci::ALREADY_ON, psci::AFFINITY_ON);
    assert!(pes[1].leave() && pes[1].claim_start(0, 0).is_ok());
    answer(psci::ON_PENDING, psci::AFFINITY_ON_PENDING);
    assert_eq!(firmware.asked.borrow().len(), 1, "the first start alone");
}

/// A CPU that lacks what EL2 goes by is refused on itself: its starter learns it.
#[test]
fn who_starts_a_cpu_that_will_not_do_is_told() {
    let pes = two();
    let firmware = Says {
        started: Started::Refuses,
        ..says(psci::SUCCESS)
    };
    let on = fid::PSCI_CPU_ON;
    for _ in 0..2 {
        answers(&pes, &firmware, on, [1, 8, 9], psci::INTERNAL_FAILURE);
    }
    assert_eq!(firmware.asked.borrow().len(), 1, "it is not started again");
    let off = says(psci::AFFINITY_OFF);
    let info = fid::PSCI_AFFINITY_INFO;
    answers(&pes, &off, info, [1, 0, 0], psci::AFFINITY_OFF);
}

/// Who starts a CPU that never comes waits no longer than a while. It is on its way,
/// and if it comes after all, it begins where it was to.
#[test]
fn who_starts_a_cpu_that_does_not_come_is_not_held_for_ever() {
    let pes = two();
    let firmware = Says {
        started: Started::Never,
        ..says(psci::SUCCESS)
    };
    let (on, info) = (fid::PSCI_CPU_ON, fid::PSCI_AFFINITY_INFO);
    answers(&pes, &firmware, on, [1, 8, 9], psci::SUCCESS);
    assert_eq!(firmware.waited.get(), 101);
    let pending = psci::AFFINITY_ON_PENDING;
    answers(&pes, &firmware, info, [1, 0, 0], pending);
    answers(&pes, &firmware, on, [1, 10, 11], psci::ON_PENDING);
    assert_eq!(pes[1].start(), (8, 9));
    pes[1].arrive();
    answers(&pes, &firmware, info, [1, 0, 0], psci::AFFINITY_ON);
    answers(&pes, &firmware, on, [1, 10, 11], psci::ALREADY_ON);
}

/// The counter's ticks are its own machine's.
#[test]
fn a_cpu_is_waited_for_in_seconds() {
    for (hertz, ticks) in [
        (62_500_000, 312_500_000),
        (1_000_000_000, 5_000_000_000),
        (0, 5_000_000_000),
        (u64::MAX, u64::MAX),
    ] {
        recording::set(CNTFRQ_EL0, hertz);
        assert_eq!(Smc.patience(), ticks);
    }
    recording::set(CNTPCT_EL0, 77);
    assert_eq!(Smc.now(), 77);
    assert_eq!(recording::of(|| Smc.pause()), [], "it is not put to sleep");
}

/// The firmware is asked for a work-around where there is one, and it knows the
/// question; its answer is of 32 bits.
#[test]
fn a_firmwares_word_on_work_arounds_is_asked_for_where_it_can_answer() {
    const WORK_AROUND: u32 = fid::SMCCC_ARCH_WORKAROUND_1;
    let ask = |el3: u64, knows: u64, answer: u64| {
        recording::reset();
        recording::set(ID_AA64PFR0_EL1, el3 << 12);
        recording::answer_calls(std::boxed::Box::new(move |[function, about, ..]| {
            let x0 = match (function as u32, about as u32) {
                (fid::PSCI_FEATURES, fid::SMCCC_VERSION) => knows,
                (fid::SMCCC_ARCH_FEATURES, WORK_AROUND) => answer,
                _ => panic!("{function:#x} {about:#x}"),
            };
            [x0, 0, 0, 0, 0]
        }));
        let mut said = 0;
        let events = recording::of(|| said = arch_features(WORK_AROUND));
        let call = |event: &&Event| matches!(event, Event::Call("smc", _));
        let calls = events.iter().filter(call);
        (said, calls.count())
    };
    // Without an EL3, an SMC is undefined at EL2.
    assert_eq!(ask(0, 0, 0), (psci::NOT_SUPPORTED, 0));
    assert_eq!(ask(1, u64::MAX, 0).0, psci::NOT_SUPPORTED);
    assert_eq!(ask(1, 0xffff_ffff, 0).0, psci::NOT_SUPPORTED);
    for (x0, said) in [
        (0, 0),
        (1, 1),
        (u64::MAX, -1),
        (0xffff_ffff, -1),
        (1 << 32, 0),
    ] {
        assert_eq!(ask(1, 0, x0).0, said, "{x0:#x}");
        assert_eq!(ask(2, 0, x0).0, said, "{x0:#x}");
    }
}

#[test]
fn a_firmwares_entropy_is_asked_for_where_there_is_some() {
    let ask = |el3: u64, version: u64, status: u64| {
        recording::reset();
        recording::set(ID_AA64PFR0_EL1, el3 << 12);
        recording::answer_calls(std::boxed::Box::new(move |[function, about, ..]| {
            match function as u32 {
                fid::PSCI_FEATURES => [0; 5],
                fid::TRNG_VERSION => [version, 0, 0, 0, 0],
                fid::TRNG_RND => [status, about, 2, 3, 4],
                _ => panic!("{function:#x}"),
            }
        }));
        entropy()
    };
    assert_eq!(ask(1, 0x1_0000, 0), Some([192, 2, 3]));
    assert_eq!(ask(1, 0x1_0001, 0), Some([192, 2, 3]));
    assert_eq!(ask(0, 0x1_0000, 0), None);
    // NOT_SUPPORTED, as both widths say it; NO_ENTROPY.
    assert_eq!(ask(1, u64::MAX, 0), None);
    assert_eq!(ask(1, 0xffff_ffff, 0), None);
    assert_eq!(ask(1, 0x1_0000, -3i64 as u64), None);
}

#[test]
fn a_suspended_pe_waits() {
    let (pes, firmware) = (two(), says(psci::DENIED));
    for function in [narrow(fid::PSCI_CPU_SUSPEND), fid::PSCI_CPU_SUSPEND] {
        answers(&pes, &firmware, function, [0; 3], psci::SUCCESS);
    }
    assert_eq!(
        (firmware.waited.get(), firmware.asked.take()),
        (2, Vec::new())
    );
}

/// An interrupt that is EL1's to take need not wake a level above it.
#[test]
fn who_waits_for_the_hosts_interrupts_has_them_meanwhile() {
    recording::reset();
    let hosts = bits!(HCR_EL2: VM, RW, AMO, VSE);
    recording::set(HCR_EL2, hosts);
    let waits = recording::of(|| Smc.standby());
    let instruction = |name| Event::Instruction(name, None);
    assert_eq!(
        waits,
        [
            Event::Mrs("HCR_EL2"),
            instruction("dsb sy"),
            Event::Msr("HCR_EL2", hosts | 0b11 << 3),
            instruction("isb"),
            instruction("wfi"),
            Event::Msr("HCR_EL2", hosts),
            instruction("isb"),
        ]
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever PEs turn themselves off and each other on, and whatever the
    /// firmware refuses meanwhile.
    #[test]
    fn cpus_go_off_and_on_in_any_order(
        count in 1usize..4,
        input in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4], 1..256),
    ) {
        fake::run(count, &input);
    }
}

/// One PE claims the other's start while that is on its way out of a
/// `CPU_OFF` that the firmware denies, and is off for good, by the next, when
/// the firmware is asked to start it.
#[test]
fn a_claim_outlives_a_denied_cpu_off() {
    let input = [
        255, 0, 169, 0, 0, 2, 0, 0, 53, 0, 0, 0, 0, 0, 0, 71, 0, 0, 0, 0, 0, 0, 133, 0, 0, 109, 24,
        0, 0, 1, 30, 49, 0, 0, 20, 219, 0, 0, 0, 11, 0, 53, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 7, 0,
        0, 49, 46, 0, 0, 7, 1, 0, 14, 118, 0, 55, 161, 53, 0, 0, 5, 172, 0, 0, 215, 2,
    ];
    fake::run(2, &input);
}

/// Neither a call of the firmware's nor its stores to a device wait for EL2's.
#[test]
fn where_a_pe_begins_is_seen_before_it_is_turned_on() {
    let pes = two();
    let relay = Relay {
        pes: &pes,
        me: pes.first(),
        firmware: &Smc,
    };
    let call = Psci::CpuOn {
        target: 1,
        entry: 0x4000_0000,
        context: 7,
    };
    let events = recording::of(|| assert_ne!(relay.call(call), psci::SUCCESS));
    let order = [
        Event::Instruction("dsb ishst", None),
        Event::Call("smc", fid::PSCI_CPU_ON.into()),
    ];
    assert_eq!(events, order);
}

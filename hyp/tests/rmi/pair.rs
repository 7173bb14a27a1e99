//! `hyp` on a fake machine and the specification beside it: each operation happens to
//! both, and what differs is said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use arm64::recording;
use arm64::regs::{ESR_EL2, FAR_EL2, HPFAR_EL2, ICH_VTR_EL2};
use hyp::features::{Features, GranuleSupport};
use hyp::memory::phys;
use hyp::rmi::fake::{Host, RAM};
use pgtable::Granule;
use rmi::call::{Answered, Made};

use crate::check;
use crate::spec::{Act, Content, Exit, Machine, Spec, State};

/// A machine to run on: granule, RAM in bytes, CPU.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub name: &'static str,
    granule: Granule,
    ram: u64,
    change: fn(&mut Features),
}

const MIB: u64 = 1 << 20;

/// Each has room for a whole span of a level-2 entry, but the last.
pub const CASES: [Case; 6] = [
    Case {
        name: "4K",
        granule: Granule::K4,
        ram: 6 * MIB,
        change: |_| {},
    },
    Case {
        name: "4K, FWB, LPA2, 8-bit VMIDs",
        granule: Granule::K4,
        ram: 4 * MIB,
        change: |features| {
            features.fwb = true;
            features.vmid16 = false;
            features.ttst = true;
            features.pa_bits = 52;
            features.stage2 = [GranuleSupport::Lpa2; 3];
        },
    },
    Case {
        name: "16K",
        granule: Granule::K16,
        ram: 36 * MIB,
        change: |_| {},
    },
    Case {
        name: "16K, FWB, LPA2",
        granule: Granule::K16,
        ram: 64 * MIB,
        change: |features| {
            features.fwb = true;
            features.pa_bits = 52;
            features.stage2 = [GranuleSupport::Lpa2; 3];
        },
    },
    Case {
        name: "64K, FWB, 44 bits",
        granule: Granule::K64,
        ram: 1024 * MIB,
        change: |features| {
            features.fwb = true;
            features.pa_bits = 44;
        },
    },
    Case {
        name: "64K",
        granule: Granule::K64,
        ram: 24 * MIB,
        change: |_| {},
    },
];

/// ICH_VTR_EL2: four list registers, with 5 bits of priority and INTIDs of 16.
const VTR: u64 = 4 << 29 | 4 << 26 | 3;

/// What happens to both.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// A call of the host's, X0 to X5.
    Call([u64; 6]),
    /// REC_ENTER of a REC with a run page, and what the guest does then.
    Enter(u64, u64, Act),
    /// The host, or the guest whose memory it is, writes zeros to a granule, and these
    /// words by offset.
    Write(u64, Vec<(u64, u64)>),
    /// The host, or the guest whose memory it is, writes a word all over a granule.
    Fill(u64, u64),
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call([function, arguments @ ..]) => {
                let function = *function;
                let made = Made {
                    function,
                    arguments,
                };
                write!(f, "{made}")
            }
            Self::Enter(rec, run, act) => {
                write!(f, "RMI_REC_ENTER({rec:#x}, {run:#x}): {act:x?}")
            }
            Self::Write(pa, words) => write!(f, "write {pa:#x}: {words:x?}"),
            Self::Fill(pa, word) => write!(f, "fill {pa:#x}: {word:#x}"),
        }
    }
}

/// Both.
pub struct Pair {
    pub host: Host,
    pub spec: Spec,
    /// Calls made, by function and status.
    pub tally: Tally,
    /// Granules that ever were something else, or written.
    pub touched: BTreeSet<u64>,
}

/// How often functions answered a status.
pub type Tally = BTreeMap<(u64, u64), u64>;

impl Pair {
    pub fn new(case: &Case) -> Self {
        recording::reset();
        recording::set(ICH_VTR_EL2, VTR);
        let mut host = Host::with(case.granule, case.ram, case.change);
        let features = host.system.features;
        let lpa2 = features.stage2[0] == GranuleSupport::Lpa2;
        let machine = Machine {
            page_bits: case.granule.page_bits().into(),
            ram_base: RAM,
            ram_size: case.ram,
            pa_bits: features.pa_bits.into(),
            lpa2: lpa2 && case.granule != Granule::K64,
            fwb: features.fwb,
            vmid16: features.vmid16,
            ttst: features.ttst,
            list_registers: host.cpu.gic.list_registers as u64,
        };
        host.cpu.begin_host(0, 0);
        Self {
            host,
            spec: Spec::new(machine),
            tally: Tally::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Lets it happen to both.
    ///
    /// # Errors
    /// What differs, in words; a panic of `hyp`'s is one.
    pub fn apply(&mut self, op: &Op) -> Result<(), String> {
        let done = catch_unwind(AssertUnwindSafe(|| self.apply_to_both(op)));
        self.touched.extend(&self.spec.changed);
        done.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("a panic: {}", text.unwrap_or("of no words")))
        })
    }

    fn apply_to_both(&mut self, op: &Op) -> Result<(), String> {
        self.spec.changed.clear();
        match op {
            Op::Call(x) => {
                let expected = self.spec.call(*x, &read);
                let answer = self.host.call(*x);
                self.count(x[0], answer[0]);
                same_answer(x[0], expected, answer)?;
                check::after(self, x, &answer)
            }
            Op::Enter(rec, run, act) => self.enter(*rec, *run, *act),
            Op::Write(pa, words) => {
                if self.is_somebodys(*pa) {
                    fill(*pa, self.host.size, 0);
                    for (offset, word) in words {
                        // SAFETY: a granule of the fake host's, or of a guest's.
                        unsafe { phys::write(pa + offset, *word) };
                    }
                    let words = words.iter().copied().collect();
                    self.spec.written(*pa, Content::Words(0, words));
                }
                Ok(())
            }
            Op::Fill(pa, word) => {
                if self.is_somebodys(*pa) {
                    fill(*pa, self.host.size, *word);
                    self.spec.written(*pa, Content::all(*word));
                }
                Ok(())
            }
        }
    }

    /// Memory that the host or a guest may write.
    fn is_somebodys(&self, pa: u64) -> bool {
        self.spec.is(pa, State::Ns) || self.spec.is(pa, State::Data)
    }

    fn count(&mut self, function: u64, x0: u64) {
        *self.tally.entry((function, x0 & 0xff)).or_default() += 1;
    }

    fn enter(&mut self, rec: u64, run: u64, act: Act) -> Result<(), String> {
        let act = if self.spec.tells(rec, act) {
            act
        } else {
            Act::Wait
        };
        let (expected, exit) = self.spec.enter(rec, run, &read, act);
        if exit.is_some() {
            self.spec.written(run, Content::Other);
        }
        play(act);
        let x = [0xC400_015C, rec, run, 0, 0, 0];
        let answer = self.host.call(x);
        self.count(x[0], answer[0]);
        same_answer(x[0], expected, answer)?;
        if let Some(expected) = exit {
            let told = told(run);
            if told != expected {
                return Err(format!("the exit is {told:x?}, not {expected:x?}"));
            }
        }
        check::after(self, &x, &answer)
    }
}

/// Has the guest do this when it runs, and wait whenever it runs on.
fn play(act: Act) {
    let mut acts = std::iter::once(act);
    recording::run_as(Box::new(move |gprs| {
        let (esr, ipa) = match acts.next().unwrap_or(Act::Wait) {
            Act::Wait => (0x01 << 26 | 1 << 25 | 0x1e << 20, 0),
            Act::Call { smc, x } => {
                gprs.x[..x.len()].copy_from_slice(&x);
                // An HVC's exception comes when it is done, a trapped SMC's instead.
                gprs.pc += if smc { 0 } else { 4 };
                (if smc { 0x17 } else { 0x16 } << 26 | 1 << 25, 0)
            }
            Act::Access {
                ipa,
                writes,
                register,
            } => {
                let syndrome = register.map_or(0, |register| 1 << 24 | 3 << 22 | register << 16);
                // Translation fault, level 3.
                let esr = 0x24 << 26 | 1 << 25 | 1 << 15 | u64::from(writes) << 6 | 0x07;
                (esr | syndrome as u64, ipa)
            }
        };
        recording::set(ESR_EL2, esr);
        recording::set(HPFAR_EL2, ipa >> 12 << 4);
        recording::set(FAR_EL2, ipa & 0xfff);
        0
    }));
}

/// What the run page tells of an exit.
fn told(run: u64) -> Exit {
    let word = |offset| read(run + 0x800 + offset);
    let (reason, esr) = (word(0), word(0x100));
    let aborts = esr >> 26 == 0x24;
    Exit {
        reason,
        class: esr >> 26,
        emulatable: aborts && esr >> 24 & 1 != 0,
        fault: if aborts { esr & 0x3f } else { 0 },
        hpfar: word(0x110),
        x: std::array::from_fn(|n| word(0x200 + 8 * n as u64)),
        ripas: [0x500, 0x508, 0x510].map(word),
        imm: word(0x600),
        gic: std::array::from_fn(|n| word(0x300 + 8 * n as u64)),
        pc: word(0x6f0),
    }
}

/// Eight bytes of the fake machine's memory.
pub fn read(pa: u64) -> u64 {
    // SAFETY: whoever asks has looked that it is RAM.
    unsafe { phys::read(pa) }
}

fn fill(pa: u64, size: u64, word: u64) {
    for at in (pa..pa + size).step_by(8) {
        // SAFETY: a granule of the host's or a guest's, which no CPU uses.
        unsafe { phys::write(at, word) };
    }
}

fn same_answer(function: u64, expected: [u64; 5], answer: [u64; 5]) -> Result<(), String> {
    if answer == expected {
        return Ok(());
    }
    let (answer, expected) = (&answer[..], &expected[..]);
    let [answer, expected] = [answer, expected].map(|results| {
        let shown = Answered { function, results };
        format!("{shown} {results:x?}")
    });
    Err(format!("it answers {answer},\n    not         {expected}"))
}

//! Random operations on two guests' tables, each held against a plain list of what
//! should be mapped, and against what EL1 sees: `AT S12E1R`, loads, stores and
//! fetches at the edges of everything that an operation touched, before it (so
//! that TLBs know what was) and after.
//!
//! A sequence is made of its seed alone: format, features and operations. The
//! command line chooses: `seed=N` the first, `runs=N` how many, `ops=N` how long.
//! A failure names its seed and the number of its operation; `seed=N runs=1` with
//! the same `ops` on the same CPU is the same sequence again, and `tell=1` prints
//! each operation before it is done.

mod ops;
pub mod place;
mod probe;
mod rtt;
mod state;

use pgtable::{Features, Geometry, Level};
use tests::bare::console::Console;
use tests::bare::machine;
use tests::println;
use tests::random::Random;
use tests::suite::Suite;

use crate::cpu::{Cpu, name};
use crate::formats::{self, is_lpa2};
use crate::memory::Data;
use crate::text::Name;

/// An operation: four numbers, whatever they are.
type Op = [u64; 4];

/// What is wrong.
type Wrong = Name;

/// Memory for guests: behind the image, and above 48 bits where there is any.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Behind the image.
    pub low: Data,
    /// Above 48 bits.
    pub high: Option<Data>,
}

macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// A kind of operation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Kind {
            $($kind,)*
        }

        impl Kind {
            /// All of them, in the order of their numbers.
            const ALL: &'static [Self] = &[$(Self::$kind,)*];

            const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    Map "map",
    MapOver "map over",
    UnmapLeaves "unmap leaves",
    UnmapLater "unmap later",
    Unmap "unmap",
    Annotate "annotate",
    Protect "protect",
    WriteProtect "write-protect",
    Relax "relax",
    Age "age",
    MarkYoung "mark young",
    Harvest "harvest dirty",
    Split "split",
    Fold "fold",
    Contiguous "contiguous",
    Subtree "subtree",
    Freeze "freeze",
    OtherGuest "other guest",
    Walk "walk",
    TearDown "tear down",
    Touch "touch",
    FlushCaches "flush caches",
}

/// An operation's first number chooses from these: mapping and unmapping more
/// often than the rest.
const MIX: [Kind; 28] = [
    Kind::Map,
    Kind::Map,
    Kind::Map,
    Kind::MapOver,
    Kind::MapOver,
    Kind::MapOver,
    Kind::UnmapLeaves,
    Kind::UnmapLater,
    Kind::Unmap,
    Kind::Unmap,
    Kind::Annotate,
    Kind::Protect,
    Kind::Protect,
    Kind::WriteProtect,
    Kind::Relax,
    Kind::Age,
    Kind::MarkYoung,
    Kind::Harvest,
    Kind::Split,
    Kind::Fold,
    Kind::Contiguous,
    Kind::Subtree,
    Kind::Freeze,
    Kind::OtherGuest,
    Kind::Walk,
    Kind::TearDown,
    Kind::Touch,
    Kind::FlushCaches,
];

/// How often operations of each kind did all that was asked, and how often they
/// stopped for a reason.
#[derive(Debug)]
struct Tally {
    done: [u32; Kind::ALL.len()],
    refused: [u32; Kind::ALL.len()],
    rtt: rtt::Tally,
}

fn argument(key: &str, default: u64) -> u64 {
    let value = machine::get().argument(key);
    value.and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Whether each operation is printed before it is done.
fn told() -> bool {
    argument("tell", 0) != 0
}

/// The features of a sequence: some of those that the CPU has.
fn features(cpu: &Cpu, bits: u64) -> Features {
    let has = &cpu.features;
    let bit = |n: u64| bits >> n & 1 == 1;
    // Mostly there: each of them missing is the rarer case.
    let most = |n: u64| bits >> n & 3 != 3;
    Features {
        tlb_range: has.tlb_range && most(0),
        ttl: has.ttl && most(2),
        fwb: has.fwb && most(4),
        xnx: has.xnx && most(6),
        vmid16: has.vmid16 && most(8),
        hw_access_flag: cpu.hafdbs >= 1 && bit(10),
        hw_dirty: cpu.hafdbs >= 2 && bit(10) && bit(11),
        ttst: has.ttst,
        cnp: has.cnp,
        dic: has.dic && most(12),
        bbm2: cpu.bbm >= 2 && bit(14),
    }
}

/// The format of a sequence.
fn geometry(cpu: &Cpu, seed: u64, random: &mut Random) -> Option<Geometry> {
    let bits = random.word() >> 8;
    let count = formats::geometries(cpu, cpu.features).count() as u64;
    // A format has to have room for guests, their code and some places.
    formats::geometries(cpu, features(cpu, bits)).nth((seed % count) as usize)
}

/// Runs the sequences; one line each.
pub fn checks(suite: &mut Suite<Console>, cpu: &Cpu, memory: Memory) {
    let count = formats::geometries(cpu, cpu.features).count() as u64;
    let first = argument("seed", 1);
    let runs = argument("runs", 2 * count);
    let length = argument("ops", 60);
    println!(
        "sequences: seeds {first} to {}, {length} operations each",
        first + runs - 1
    );
    let mut tally = Tally {
        done: [0; Kind::ALL.len()],
        refused: [0; Kind::ALL.len()],
        rtt: rtt::Tally::default(),
    };
    for seed in first..first + runs {
        let mut random = Random::new(seed);
        let Some(geometry) = geometry(cpu, seed, &mut random) else {
            suite.check("sequence", false, format_args!("seed {seed}: no format"));
            continue;
        };
        let memory = place::for_format(&geometry, memory, seed);
        let title = |kind| title(kind, seed, &geometry);
        // Every fourth is a realm's: the same walker under other commands.
        let (kind, result) = if random.below(4) == 0 && rtt::fits(&geometry) {
            let result = rtt::run(&mut random, geometry, memory, length, &mut tally.rtt);
            ("realm", result)
        } else {
            let result = ops::run(&mut random, geometry, memory, length, &mut tally);
            ("sequence", result)
        };
        let seen = result.as_ref().err().copied();
        let seen = seen.unwrap_or_else(|| Name::new(format_args!("")));
        suite.check(title(kind).text(), result.is_ok(), seen);
    }
    for &kind in Kind::ALL {
        let (done, refused) = (tally.done[kind as usize], tally.refused[kind as usize]);
        if done + refused > 0 {
            println!("{:>14}: {done:>6} done, {refused:>6} refused", kind.name());
        }
    }
    tally.rtt.print();
}

fn title(kind: &str, seed: u64, geometry: &Geometry) -> Name {
    let features = geometry.features();
    let flag = |has: bool, text: &'static str| if has { text } else { "" };
    Name::new(format_args!(
        "{kind}/seed {seed} {}{} ipa{} start{} x{}{}{}{}{}{}{}",
        name(geometry.granule()),
        flag(is_lpa2(geometry), "-lpa2"),
        geometry.ipa_bits(),
        geometry.start().get(),
        geometry.root_tables(),
        flag(features.tlb_range, " range"),
        flag(features.ttl, " ttl"),
        flag(features.fwb, " fwb"),
        flag(features.hw_access_flag, " ha"),
        flag(features.hw_dirty, " hd"),
        flag(features.bbm2, " bbm2"),
    ))
}

/// Bytes that an entry of level 2 covers.
fn block(geometry: &Geometry) -> u64 {
    geometry.span(Level::L2)
}

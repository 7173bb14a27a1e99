//! The trace: one event a line, for judges that are not ours and programs that
//! are not ours.
//!
//! A trace begins with a line `mmu-trace 1`, then lines that describe the
//! machine (`features …`, `pes N`, `toy …`), then events. `#` begins a comment.
//! The grammar is in this crate's README.
//!
//! ```
//! use mmu_model::trace;
//! let text = "mmu-trace 1\nfeatures v8.0\npes 1\n0 alloc 0x80000000 4096 zeroed\n";
//! let trace = trace::parse(text).unwrap();
//! assert_eq!(trace.events.len(), 1);
//! assert!(trace::judge(text).unwrap().violation.is_none());
//! ```

use std::fmt::{self, Write as _};

use crate::descriptor::{Cache, Memory};
use crate::event::{Accesses, Barrier, Domain, Event, EventKind, How, Promise, Reg, Target};
use crate::features::Features;
use crate::machine::{Machine, Stats};
use crate::mem::Owner;
use crate::shape::Shape;
use crate::tlbi::TlbiOp;
use crate::violation::Violation;

/// First line of every trace.
pub const MAGIC: &str = "mmu-trace 1";

/// The machine a trace was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Features.
    pub features: Features,
    /// Number of PEs.
    pub pes: usize,
    /// A toy shape: page bits, stride, levels.
    pub toy: Option<(u8, u8, u8)>,
}

impl Header {
    /// A machine with this header's parameters.
    pub fn machine(&self) -> Machine {
        match self.toy {
            Some((page_bits, stride, levels)) => Machine::toy(
                Shape::toy(page_bits, stride, levels),
                self.features,
                self.pes,
            ),
            None => Machine::new(self.features, self.pes),
        }
    }
}

/// A parsed trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The machine.
    pub header: Header,
    /// The events, each with its line number.
    pub events: Vec<(usize, Event)>,
}

/// A line that is no trace line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What was expected.
    pub expected: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: expected {}", self.line, self.expected)
    }
}

impl std::error::Error for ParseError {}

const REGS: [(&str, Reg); 6] = [
    ("vttbr_el2", Reg::Vttbr),
    ("vtcr_el2", Reg::Vtcr),
    ("hcr_el2", Reg::Hcr),
    ("ttbr0_el2", Reg::Ttbr0El2),
    ("tcr_el2", Reg::TcrEl2),
    ("mair_el2", Reg::MairEl2),
];

const BARRIERS: [(&str, Domain, Accesses); 12] = [
    ("ish", Domain::Inner, Accesses::All),
    ("ishst", Domain::Inner, Accesses::Stores),
    ("ishld", Domain::Inner, Accesses::Loads),
    ("nsh", Domain::NonShareable, Accesses::All),
    ("nshst", Domain::NonShareable, Accesses::Stores),
    ("nshld", Domain::NonShareable, Accesses::Loads),
    ("osh", Domain::Outer, Accesses::All),
    ("oshst", Domain::Outer, Accesses::Stores),
    ("oshld", Domain::Outer, Accesses::Loads),
    ("sy", Domain::System, Accesses::All),
    ("st", Domain::System, Accesses::Stores),
    ("ld", Domain::System, Accesses::Loads),
];

/// Flags of the `features` line, by name.
fn flags(f: &mut Features) -> [(&'static str, &mut bool); 13] {
    let [k4, k16, k64] = &mut f.granules;
    [
        ("4k", k4),
        ("16k", k16),
        ("64k", k64),
        ("lpa2", &mut f.lpa2),
        ("lva", &mut f.lva),
        ("ttst", &mut f.ttst),
        ("ttl", &mut f.ttl),
        ("tlbirange", &mut f.tlbirange),
        ("xnx", &mut f.xnx),
        ("fwb", &mut f.fwb),
        ("vmid16", &mut f.vmid16),
        ("dic", &mut f.dic),
        ("erratum-range32", &mut f.errata.range_len_32),
    ]
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut features = self.features;
        write!(
            f,
            "{MAGIC}\nfeatures pa={} bbm={} hafdbs={}",
            features.pa_bits, features.bbm, features.hafdbs
        )?;
        if features.errata.repeat_tlbi {
            write!(f, " erratum-repeat")?;
        }
        for (name, on) in flags(&mut features) {
            if *on {
                write!(f, " {name}")?;
            }
        }
        writeln!(f, "\npes {}", self.pes)?;
        if let Some((page_bits, stride, levels)) = self.toy {
            writeln!(f, "toy {page_bits} {stride} {levels}")?;
        }
        Ok(())
    }
}

fn memory_name(memory: Memory) -> String {
    let cache = |c| match c {
        Cache::NonCacheable => "nc",
        Cache::WriteThrough => "wt",
        Cache::WriteBack => "wb",
    };
    match memory {
        Memory::Device(n) => format!("device{n}"),
        Memory::Normal { outer, inner } => format!("normal-{}-{}", cache(outer), cache(inner)),
        Memory::ForcedWriteBack => "forced-wb".into(),
        Memory::ForcedNonCacheable => "forced-nc".into(),
        Memory::Stage1 => "stage1".into(),
        Memory::Reserved => "reserved".into(),
    }
}

fn memory_from(name: &str) -> Option<Memory> {
    let mut all = vec![
        Memory::ForcedWriteBack,
        Memory::ForcedNonCacheable,
        Memory::Stage1,
        Memory::Reserved,
    ];
    all.extend((0..4).map(Memory::Device));
    let caches = [Cache::NonCacheable, Cache::WriteThrough, Cache::WriteBack];
    for outer in caches {
        all.extend(caches.map(|inner| Memory::Normal { outer, inner }));
    }
    all.into_iter().find(|m| memory_name(*m) == name)
}

fn perms_name(perms: u8) -> String {
    let mut out = String::new();
    for (bit, c) in ['r', 'w', 'x', 'u'].into_iter().enumerate() {
        if perms >> bit & 1 == 1 {
            out.push(c);
        }
    }
    if out.is_empty() {
        out.push('-');
    }
    out
}

fn perms_from(text: &str) -> Option<u8> {
    if text == "-" {
        return Some(0);
    }
    text.chars().try_fold(0, |perms, c| {
        let bit = "rwxu".find(c)?;
        Some(perms | 1 << bit)
    })
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.pe)?;
        match self.kind {
            EventKind::Store { pa, value, how } => {
                let verb = match how {
                    How::Plain => "st",
                    How::Release => "stlr",
                    How::Atomic => "swp",
                    How::AtomicRelease => "swpl",
                };
                write!(f, "{verb} {pa:#x} {value:#x}")
            }
            EventKind::Cas {
                pa,
                expected,
                value,
                release,
            } => {
                let verb = if release { "casl" } else { "cas" };
                write!(f, "{verb} {pa:#x} {expected:#x} {value:#x}")
            }
            EventKind::Zero { pa, len } => write!(f, "zero {pa:#x} {len}"),
            EventKind::Barrier(Barrier::Isb) => write!(f, "isb"),
            EventKind::Barrier(Barrier::Dsb(d, a)) => write!(f, "dsb {}", barrier_name(d, a)),
            EventKind::Barrier(Barrier::Dmb(d, a)) => write!(f, "dmb {}", barrier_name(d, a)),
            EventKind::Tlbi { op, xt } if op.kind.is_all() && xt == 0 => write!(f, "tlbi {op}"),
            EventKind::Tlbi { op, xt } => write!(f, "tlbi {op} {xt:#x}"),
            EventKind::Write { reg, value } => {
                let name = REGS.iter().find(|(_, r)| *r == reg).map_or("?", |(n, _)| n);
                write!(f, "msr {name} {value:#x}")
            }
            EventKind::Alloc { pa, len, zeroed } => {
                let state = if zeroed { "zeroed" } else { "dirty" };
                write!(f, "alloc {pa:#x} {len} {state}")
            }
            EventKind::Free { pa, len } => write!(f, "free {pa:#x} {len}"),
            EventKind::Own { pa, len, owner } => {
                write!(f, "own {pa:#x} {len} ")?;
                match owner {
                    Owner::Nobody => write!(f, "nobody"),
                    Owner::Shared => write!(f, "shared"),
                    Owner::Hypervisor => write!(f, "hypervisor"),
                    Owner::Vmid(v) => write!(f, "vmid:{v}"),
                }
            }
            EventKind::CleanData { pa, len } => write!(f, "dc {pa:#x} {len}"),
            EventKind::InvalidateInstructions { len: u64::MAX, .. } => write!(f, "ic all"),
            EventKind::InvalidateInstructions { pa, len } => write!(f, "ic {pa:#x} {len}"),
            EventKind::Fault { ia, access } => {
                write!(f, "fault {ia:#x} {}", perms_name(access))
            }
            EventKind::Window { hi: 0, .. } => write!(f, "window off"),
            EventKind::Window { lo, hi } => write!(f, "window {lo:#x} {hi:#x}"),
            EventKind::Spec(Promise { ia, len, to }) => {
                write!(f, "spec {ia:#x} {len} ")?;
                match to {
                    None => write!(f, "none"),
                    Some(t) => {
                        write!(f, "{:#x}", t.pa)?;
                        if let Some(perms) = t.perms {
                            write!(f, " {}", perms_name(perms))?;
                        }
                        if let Some(memory) = t.memory {
                            if t.perms.is_none() {
                                write!(f, " any")?;
                            }
                            write!(f, " {}", memory_name(memory))?;
                        }
                        Ok(())
                    }
                }
            }
            EventKind::Quiesce { lo, hi } => write!(f, "quiesce {lo:#x} {hi:#x}"),
        }
    }
}

fn barrier_name(domain: Domain, accesses: Accesses) -> &'static str {
    BARRIERS
        .iter()
        .find(|(_, d, a)| *d == domain && *a == accesses)
        .map_or("sy", |(n, _, _)| n)
}

/// Writes a trace: the header first, then events as they come.
#[derive(Clone, Debug)]
pub struct Writer<W> {
    out: W,
    line: String,
}

impl<W: std::io::Write> Writer<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn new(mut out: W, header: &Header) -> std::io::Result<Self> {
        write!(out, "{header}")?;
        Ok(Self {
            out,
            line: String::new(),
        })
    }

    /// Adds an event.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn event(&mut self, event: &Event) -> std::io::Result<()> {
        self.line.clear();
        // Writing to a string cannot fail.
        let _ = writeln!(self.line, "{event}");
        self.out.write_all(self.line.as_bytes())
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// What `out` reports on flushing.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.out.flush()?;
        Ok(self.out)
    }
}

struct Fields<'a>(std::str::SplitWhitespace<'a>);

type Expected = String;

impl<'a> Fields<'a> {
    fn word(&mut self, what: &str) -> Result<&'a str, Expected> {
        self.0.next().ok_or_else(|| what.to_owned())
    }

    fn number(&mut self, what: &str) -> Result<u64, Expected> {
        let word = self.word(what)?;
        number(word).ok_or_else(|| format!("{what} instead of `{word}`"))
    }

    fn small<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, Expected> {
        T::try_from(self.number(what)?).map_err(|_| what.to_owned())
    }

    fn end(mut self) -> Result<(), Expected> {
        match self.0.next() {
            None => Ok(()),
            Some(word) => Err(format!("the end of the line instead of `{word}`")),
        }
    }
}

fn number(word: &str) -> Option<u64> {
    let clean = word.replace('_', "");
    match clean.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => clean.parse().ok(),
    }
}

fn parse_features(mut fields: Fields<'_>) -> Result<Features, Expected> {
    let mut f = Features::v8_0();
    f.granules = [false; 3];
    for word in fields.0.by_ref() {
        if let Some((name, value)) = word.split_once('=') {
            let value = number(value)
                .and_then(|v| u8::try_from(v).ok())
                .ok_or_else(|| format!("a number after `{name}=`"))?;
            match name {
                "pa" if (32..=52).contains(&value) => f.pa_bits = value,
                "bbm" if value <= 2 => f.bbm = value,
                "hafdbs" if value <= 2 => f.hafdbs = value,
                _ => return Err("pa=32..52, bbm=0..2 or hafdbs=0..2".into()),
            }
        } else if word == "v8.0" {
            f = Features::v8_0();
        } else if word == "max" {
            f = Features::max();
        } else if word == "erratum-repeat" {
            f.errata.repeat_tlbi = true;
        } else {
            let mut known = flags(&mut f);
            let flag = known.iter_mut().find(|(name, _)| *name == word);
            match flag {
                Some((_, on)) => **on = true,
                None => return Err(format!("a feature instead of `{word}`")),
            }
        }
    }
    Ok(f)
}

fn parse_event(verb: &str, f: &mut Fields<'_>) -> Result<EventKind, Expected> {
    match verb {
        "st" | "stlr" | "swp" | "swpl" | "cas" | "casl" | "zero" => parse_store(verb, f),
        "isb" | "dsb" | "dmb" | "tlbi" | "msr" | "dc" | "ic" => parse_instruction(verb, f),
        "alloc" | "free" | "own" => parse_memory(verb, f),
        "fault" | "window" | "spec" | "quiesce" => parse_question(verb, f),
        other => Err(no_event(other)),
    }
}

fn no_event(verb: &str) -> Expected {
    format!("an event instead of `{verb}`")
}

/// Address and length of physical memory.
fn parse_range(f: &mut Fields<'_>) -> Result<(u64, u64), Expected> {
    let pa = f.number("a physical address")?;
    Ok((pa, f.number("a length in bytes")?))
}

/// What writes memory.
fn parse_store(verb: &str, f: &mut Fields<'_>) -> Result<EventKind, Expected> {
    let how = match verb {
        "st" => How::Plain,
        "stlr" => How::Release,
        "swp" => How::Atomic,
        "swpl" => How::AtomicRelease,
        "cas" | "casl" => {
            return Ok(EventKind::Cas {
                pa: f.number("a physical address")?,
                expected: f.number("the value found")?,
                value: f.number("the value stored")?,
                release: verb == "casl",
            });
        }
        "zero" => {
            let (pa, len) = parse_range(f)?;
            return Ok(EventKind::Zero { pa, len });
        }
        other => return Err(no_event(other)),
    };
    Ok(EventKind::Store {
        pa: f.number("a physical address")?,
        value: f.number("a value")?,
        how,
    })
}

/// Barriers, maintenance, registers.
fn parse_instruction(verb: &str, f: &mut Fields<'_>) -> Result<EventKind, Expected> {
    Ok(match verb {
        "isb" => EventKind::ISB,
        "dsb" | "dmb" => {
            let name = f.word("a barrier option")?;
            let (_, d, a) = BARRIERS
                .into_iter()
                .find(|(n, _, _)| *n == name)
                .ok_or_else(|| format!("ish, ishst, nsh, sy, … instead of `{name}`"))?;
            EventKind::Barrier(if verb == "dsb" {
                Barrier::Dsb(d, a)
            } else {
                Barrier::Dmb(d, a)
            })
        }
        "tlbi" => {
            let name = f.word("a TLBI operation")?;
            let op = TlbiOp::parse(name)
                .ok_or_else(|| format!("a TLBI operation instead of `{name}`"))?;
            let xt = match f.0.next() {
                Some(word) => number(word).ok_or("the operand")?,
                None if op.kind.is_all() => 0,
                None => return Err("the operand".into()),
            };
            EventKind::Tlbi { op, xt }
        }
        "msr" => {
            let name = f.word("a register")?;
            let (_, reg) = REGS
                .into_iter()
                .find(|(n, _)| *n == name)
                .ok_or_else(|| format!("vttbr_el2, vtcr_el2, … instead of `{name}`"))?;
            let value = f.number("a value")?;
            EventKind::Write { reg, value }
        }
        "dc" => {
            let (pa, len) = parse_range(f)?;
            EventKind::CleanData { pa, len }
        }
        "ic" => {
            let (pa, len) = match f.word("an address or `all`")? {
                "all" => (0, u64::MAX),
                first => (
                    number(first).ok_or("a physical address")?,
                    f.number("a length in bytes")?,
                ),
            };
            EventKind::InvalidateInstructions { pa, len }
        }
        other => return Err(no_event(other)),
    })
}

/// Whose memory is whose.
fn parse_memory(verb: &str, f: &mut Fields<'_>) -> Result<EventKind, Expected> {
    let (pa, len) = parse_range(f)?;
    Ok(match verb {
        "alloc" => {
            let zeroed = match f.word("zeroed or dirty")? {
                "zeroed" => true,
                "dirty" => false,
                other => return Err(format!("zeroed or dirty instead of `{other}`")),
            };
            EventKind::Alloc { pa, len, zeroed }
        }
        "free" => EventKind::Free { pa, len },
        "own" => {
            let owner = match f.word("an owner")? {
                "nobody" => Owner::Nobody,
                "shared" => Owner::Shared,
                "hypervisor" => Owner::Hypervisor,
                other => {
                    let v = other.strip_prefix("vmid:").and_then(number);
                    let v = v.and_then(|v| u16::try_from(v).ok());
                    let why = "nobody, shared, hypervisor or vmid:N";
                    Owner::Vmid(v.ok_or(why)?)
                }
            };
            EventKind::Own { pa, len, owner }
        }
        other => return Err(no_event(other)),
    })
}

/// What guests meet, and what the judge is asked.
fn parse_question(verb: &str, f: &mut Fields<'_>) -> Result<EventKind, Expected> {
    Ok(match verb {
        "fault" => EventKind::Fault {
            ia: f.number("an input address")?,
            access: perms_from(f.word("rights such as rw")?).ok_or("letters of rwxu")?,
        },
        "window" => match f.word("an input address or `off`")? {
            "off" => EventKind::Window { lo: 0, hi: 0 },
            lo => EventKind::Window {
                lo: number(lo).ok_or("an input address")?,
                hi: f.number("an input address")?,
            },
        },
        "spec" => {
            let ia = f.number("an input address")?;
            let len = f.number("a length in bytes")?;
            let to = parse_target(f)?;
            EventKind::Spec(Promise { ia, len, to })
        }
        "quiesce" => EventKind::Quiesce {
            lo: f.number("an input address")?,
            hi: f.number("an input address")?,
        },
        other => return Err(no_event(other)),
    })
}

/// Where a promised range leads to.
fn parse_target(f: &mut Fields<'_>) -> Result<Option<Target>, Expected> {
    let pa = match f.word("an output address or `none`")? {
        "none" => return Ok(None),
        pa => number(pa).ok_or("an output address")?,
    };
    let perms = match f.0.next() {
        None | Some("any") => None,
        Some(text) => Some(perms_from(text).ok_or("letters of rwxu")?),
    };
    let memory = match f.0.next() {
        None => None,
        Some(name) => Some(memory_from(name).ok_or("a memory type")?),
    };
    Ok(Some(Target { pa, perms, memory }))
}

/// Reads a whole trace.
///
/// # Errors
/// The first line that is none, and what was expected there.
pub fn parse(text: &str) -> Result<Trace, ParseError> {
    let mut header = Header {
        features: Features::max(),
        pes: 1,
        toy: None,
    };
    let mut begun = false;
    let mut events = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line_number = i + 1;
        let fail = |expected: String| ParseError {
            line: line_number,
            expected,
        };
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        if !begun {
            if line != MAGIC {
                return Err(fail(format!("`{MAGIC}`")));
            }
            begun = true;
            continue;
        }
        let mut f = Fields(line.split_whitespace());
        let first = f.word("an event").map_err(fail)?;
        if first.as_bytes()[0].is_ascii_digit() {
            let pe = number(first).and_then(|n| u8::try_from(n).ok());
            let pe = pe.ok_or_else(|| fail("a PE number".into()))?;
            let verb = f.word("an event").map_err(fail)?;
            let kind = parse_event(verb, &mut f).map_err(fail)?;
            f.end().map_err(fail)?;
            events.push((line_number, Event { pe, kind }));
            continue;
        }
        if !events.is_empty() {
            return Err(fail("an event".into()));
        }
        match first {
            "features" => header.features = parse_features(f).map_err(fail)?,
            "pes" => {
                header.pes = f.small("a number of PEs").map_err(fail)?;
                if !(1..=crate::MAX_PES).contains(&header.pes) {
                    return Err(fail(format!("1 to {} PEs", crate::MAX_PES)));
                }
                f.end().map_err(fail)?;
            }
            "toy" => {
                let page_bits: u8 = f.small("page bits").map_err(fail)?;
                let stride: u8 = f.small("a stride").map_err(fail)?;
                let levels: u8 = f.small("levels").map_err(fail)?;
                let legal = (6..=16).contains(&page_bits)
                    && (1..=9).contains(&stride)
                    && (1..=4).contains(&levels)
                    && stride + 3 <= page_bits;
                if !legal {
                    return Err(fail("page bits 6..16, stride 1..9, levels 1..4".into()));
                }
                header.toy = Some((page_bits, stride, levels));
                f.end().map_err(fail)?;
            }
            other => return Err(fail(format!("an event instead of `{other}`"))),
        }
    }
    if !begun {
        return Err(ParseError {
            line: 1,
            expected: format!("`{MAGIC}`"),
        });
    }
    Ok(Trace { header, events })
}

/// What became of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Counts, up to the end or the violation.
    pub stats: Stats,
    /// The first rule broken, and the line that broke it.
    pub violation: Option<(usize, Box<Violation>)>,
}

/// Judges a trace.
///
/// # Errors
/// The first line that is no trace line.
pub fn judge(text: &str) -> Result<Judgement, ParseError> {
    let trace = parse(text)?;
    let mut machine = trace.header.machine();
    let mut violation = None;
    for (line, event) in trace.events {
        if let Err(broken) = machine.on(event) {
            violation = Some((line, broken));
            break;
        }
    }
    Ok(Judgement {
        stats: machine.stats(),
        violation,
    })
}

//! What RMI 1.0 says, as a program: granules, realms, vCPUs and tables as they are
//! thought of, and for each command what it asks, in which order, what it answers,
//! and what it changes.
//!
//! Written from DEN0137 1.0 and `docs/abi.md`, apart from what it judges: it shares no
//! number, no type and no line with `hyp`, and is as plain as it can be, at any cost.
//! A command is one function here. It first asks, and each question that fails is its
//! answer (`?`); only then it changes something: so a failure changes nothing.
//!
//! | file | holds |
//! |---|---|
//! | `format` | sizes of tables and entries, which realms the architecture has |
//! | `tables` | tables and entries, walks, `top` |
//! | `granules` | DELEGATE, UNDELEGATE, and both of a range |
//! | `realms`, `recs`, `enter` | realms and vCPUs |
//! | `rsi`, `measure` | what realms ask for, and what they are measured by |
//! | `gic` | interrupts of realms whose host has them |
//! | `rtt`, `data`, `runs` | tables' commands; memory's, and those of a range |
//!
//! A new call is a row of [`Spec::call`] and a function beside those like it.

mod data;
mod enter;
pub mod format;
mod gic;
mod granules;
mod measure;
mod realms;
mod recs;
pub mod rsi;
mod rtt;
mod runs;
pub mod tables;

use std::collections::BTreeMap;

pub use enter::{Act, Exit};
pub use format::Machine;
pub use realms::{Life, Realm};
pub use recs::{Pending, Rec, mpidr_of};

/// Functions of PSCI.
pub mod psci {
    pub use super::enter::{AFFINITY_INFO, CPU_OFF, CPU_ON, CPU_SUSPEND, SYSTEM_OFF, SYSTEM_RESET};
}

/// X0 of an answer, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Input,
    /// With its index.
    Realm(u8),
    Rec,
    /// With the level that is told.
    Rtt(i8),
}

impl Status {
    fn x0(self) -> u64 {
        match self {
            Self::Input => 1,
            Self::Realm(index) => 2 | u64::from(index) << 8,
            Self::Rec => 3,
            Self::Rtt(level) => 4 | u64::from(level as u8) << 8,
        }
    }
}

/// Why a command changed nothing, and X1 to X4 of its answer.
#[derive(Clone, Copy, Debug)]
pub struct Refusal(Status, [u64; 4]);

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self(status, [0; 4])
    }
}

/// X1 to X4, or why not.
pub type Outcome = Result<[u64; 4], Refusal>;

/// What there is no output of.
pub const NOTHING: [u64; 4] = [0; 4];

/// X1 of an answer that has nothing else.
pub fn one(x1: u64) -> [u64; 4] {
    [x1, 0, 0, 0]
}

/// Goes on if that is so.
pub fn ask(so: bool, otherwise: Status) -> Result<(), Status> {
    if so { Ok(()) } else { Err(otherwise) }
}

/// The states of a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ns,
    Delegated,
    Rd,
    Rec,
    Data,
    Rtt,
    /// Was a realm's, and is not scrubbed yet.
    Unscrubbed,
}

/// What a granule holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// This word, over and over, but for these, by offset.
    Words(u64, BTreeMap<u64, u64>),
    /// What nobody looks at: a structure of EL2's, or of the host's with what EL2 wrote.
    Other,
}

impl Content {
    pub const ZERO: Self = Self::all(0);

    pub const fn all(word: u64) -> Self {
        Self::Words(word, BTreeMap::new())
    }
}

/// A granule of RAM.
#[derive(Clone, Debug)]
pub struct Granule {
    pub state: State,
    pub content: Content,
    /// Of the host's: places where a realm maps it as a page, and where its page of
    /// posted accesses is.
    pub uses: u32,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Spec {
    pub machine: Machine,
    granules: Vec<Granule>,
    /// By span of a level-2 entry: realms' blocks that map it.
    blocks: BTreeMap<u64, u32>,
    /// By the PA of the RD.
    pub realms: BTreeMap<u64, Realm>,
    /// By the PA of the REC.
    pub recs: BTreeMap<u64, Rec>,
    /// Granules whose state or content changed since somebody cleared it.
    pub changed: Vec<u64>,
}

/// Reads eight bytes of the host's memory.
pub type Memory<'a> = &'a dyn Fn(u64) -> u64;

impl Spec {
    /// A machine whose RAM is all the host's, and zero.
    pub fn new(machine: Machine) -> Self {
        let granule = Granule {
            state: State::Ns,
            content: Content::ZERO,
            uses: 0,
        };
        Self {
            machine,
            granules: vec![granule; (machine.ram_size / machine.page()) as usize],
            blocks: BTreeMap::new(),
            realms: BTreeMap::new(),
            recs: BTreeMap::new(),
            changed: Vec::new(),
        }
    }

    /// The answer, X0 to X4, to a call of the host's, X0 to X5; REC_ENTER is
    /// [`Spec::enter`].
    pub fn call(&mut self, x: [u64; 6], memory: Memory<'_>) -> [u64; 5] {
        let [function, a, b, c, d, e] = x;
        answer(match function {
            0xC400_0150 => return version(a),
            0xC400_0151 => self.granule_delegate(a),
            0xC400_0152 => self.granule_undelegate(a),
            0xC400_0153 => self.data_create([a, b, c, d, e], memory),
            0xC400_0154 => self.data_create_unknown(a, b, c),
            0xC400_0155 => self.data_destroy(a, b),
            0xC400_0157 => self.realm_activate(a),
            0xC400_0158 => self.realm_create(a, b, memory),
            0xC400_0159 => self.realm_destroy(a),
            0xC400_015A => self.rec_create(a, b, c, memory),
            0xC400_015B => self.rec_destroy(a),
            0xC400_015D => self.rtt_create(a, b, c, d as i64),
            0xC400_015E => self.rtt_destroy(a, b, c as i64),
            0xC400_015F => self.rtt_map_unprotected(a, b, c as i64, d),
            0xC400_0161 => self.rtt_read_entry(a, b, c as i64),
            0xC400_0162 => self.rtt_unmap_unprotected(a, b, c as i64),
            0xC400_0164 => self.psci_complete(a, b, c as i64),
            0xC400_0165 => Ok(one(if a == 0 { self.machine.feature0() } else { 0 })),
            0xC400_0166 => self.rtt_fold(a, b, c as i64),
            0xC400_0167 => self.rec_aux_count(a),
            0xC400_0168 => self.rtt_init_ripas(a, b, c),
            0xC400_0169 => self.rtt_set_ripas(a, b, c, d),
            0xC600_0007 => self.kick(a),
            0xC600_0013 => self.set_posted(a, b, c),
            0xC600_0014 => self.granule_range_delegate(a, b),
            0xC600_0015 => self.granule_range_undelegate(a, b),
            0xC600_0016 => self.rtt_data_map(a, b..c, d),
            0xC600_0017 => self.rtt_data_donate(a, b..c, d),
            0xC600_0018 => self.rtt_data_unmap(a, b..c),
            _ => return [u64::MAX, 0, 0, 0, 0],
        })
    }

    /// All granules, with their addresses.
    pub fn granules(&self) -> impl Iterator<Item = (u64, &Granule)> {
        let (base, size) = (self.machine.ram_base, self.machine.page());
        let at = move |(n, granule)| (base + n as u64 * size, granule);
        self.granules.iter().enumerate().map(at)
    }

    /// The granule at `pa`: `None` where `pa` is not the begin of one.
    pub fn granule(&self, pa: u64) -> Option<&Granule> {
        let offset = pa.checked_sub(self.machine.ram_base)?;
        let aligned = offset.is_multiple_of(self.machine.page());
        let index = (offset / self.machine.page()) as usize;
        self.granules.get(index).filter(|_| aligned)
    }

    fn granule_mut(&mut self, pa: u64) -> &mut Granule {
        let index = (pa - self.machine.ram_base) / self.machine.page();
        &mut self.granules[index as usize]
    }

    /// Whether `pa` is a granule in this state.
    pub fn is(&self, pa: u64, state: State) -> bool {
        self.granule(pa)
            .is_some_and(|granule| granule.state == state)
    }

    /// A granule becomes something else.
    fn becomes(&mut self, pa: u64, state: State, content: Content) {
        let granule = self.granule_mut(pa);
        (granule.state, granule.content) = (state, content);
        self.changed.push(pa);
    }

    /// Notes what the host, or the guest that has it, wrote to all of a granule.
    pub fn written(&mut self, pa: u64, content: Content) {
        self.granule_mut(pa).content = content;
        self.changed.push(pa);
    }

    /// The granule that holds the byte at `pa`, and where it does.
    fn holder(&self, pa: u64) -> (u64, u64) {
        let offset = pa % self.machine.page();
        (pa - offset, offset)
    }

    /// A word of a realm's memory: what is there is known.
    fn word(&self, pa: u64) -> u64 {
        let (granule, offset) = self.holder(pa);
        match self.granule(granule).map(|granule| &granule.content) {
            Some(Content::Words(word, but)) => *but.get(&offset).unwrap_or(word),
            _ => unreachable!("a realm's memory at {pa:#x}"),
        }
    }

    /// Words that are written into a realm's memory.
    fn write(&mut self, pa: u64, words: &[u64]) {
        let (granule, offset) = self.holder(pa);
        if let Content::Words(_, but) = &mut self.granule_mut(granule).content {
            but.extend((offset..).step_by(8).zip(words.iter().copied()));
        }
        self.changed.push(granule);
    }

    /// Whether a realm maps the span at `pa` by a block.
    fn in_block(&self, pa: u64) -> bool {
        self.blocks
            .get(&(pa / self.machine.span(2)))
            .is_some_and(|n| *n > 0)
    }

    /// What a granule's count is: of an RD its RECs; of the host's memory its uses;
    /// of a table the entries that keep it. Those of a realm's root count together,
    /// which is not told here.
    pub fn count(&self, pa: u64) -> Option<u32> {
        let granule = self.granule(pa)?;
        Some(match granule.state {
            State::Ns => granule.uses,
            State::Rd => self.recs.values().filter(|rec| rec.rd == pa).count() as u32,
            State::Rtt => return None,
            State::Delegated | State::Rec | State::Data | State::Unscrubbed => 0,
        })
    }

    /// `rd` as a realm's.
    pub fn realm(&self, rd: u64) -> Result<&Realm, Status> {
        self.realms.get(&rd).ok_or(Status::Input)
    }

    fn realm_mut(&mut self, rd: u64) -> Result<&mut Realm, Status> {
        self.realms.get_mut(&rd).ok_or(Status::Input)
    }
}

fn answer(outcome: Outcome) -> [u64; 5] {
    let (x0, [x1, x2, x3, x4]) = match outcome {
        Ok(outputs) => (0, outputs),
        Err(Refusal(status, outputs)) => (status.x0(), outputs),
    };
    [x0, x1, x2, x3, x4]
}

/// One revision, 1.0, which a refusal tells too.
fn version(requested: u64) -> [u64; 5] {
    [u64::from(requested != 0x1_0000), 0x1_0000, 0x1_0000, 0, 0]
}

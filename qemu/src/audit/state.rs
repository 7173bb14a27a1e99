//! What EL2 says of itself: the table of granules, the host's stage 2, the realms.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::layout::Layout;
use super::ram::Ram;
use super::tree::Registers;

/// What a granule is: `hyp::memory::granule::State`, whose numbers these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The host's.
    Ns,
    /// Given, and not used.
    Delegated,
    /// A realm's descriptor.
    Rd,
    /// A vCPU.
    Rec,
    /// Auxiliary to a vCPU.
    RecAux,
    /// A realm's memory.
    Data,
    /// A realm's table.
    Rtt,
    /// EL2's own.
    Hyp,
    /// Was a realm's memory, and becomes the host's by a scrub alone.
    Unscrubbed,
}

impl Kind {
    /// All of them, by number.
    pub const ALL: [Self; 9] = [
        Self::Ns,
        Self::Delegated,
        Self::Rd,
        Self::Rec,
        Self::RecAux,
        Self::Data,
        Self::Rtt,
        Self::Hyp,
        Self::Unscrubbed,
    ];
}

/// A granule's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word(pub u32);

impl Word {
    /// What it is; `None` for a number that no state has.
    pub fn kind(self) -> Option<Kind> {
        Kind::ALL.get((self.0 & 0xf) as usize).copied()
    }

    /// Whether somebody has its lock.
    pub fn is_locked(self) -> bool {
        self.0 & 1 << 4 != 0
    }

    /// Its count.
    pub fn count(self) -> u64 {
        (self.0 >> 5).into()
    }
}

/// Words of granules and of spans that follow one another: where EL2 keeps them, and
/// what they are about.
#[derive(Clone, Debug)]
pub struct Range {
    /// The first granule's PA.
    pub base: u64,
    /// PA of its word.
    pub at: u64,
    /// The words.
    pub words: Vec<Word>,
    /// PA of the word of the span that the first granule is in.
    pub spans_at: u64,
    /// The spans' words.
    pub spans: Vec<u64>,
}

/// A realm.
#[derive(Clone, Debug)]
pub struct Realm {
    /// PA of its RD.
    pub rd: u64,
    /// Its stage 2.
    pub stage2: Registers,
    /// Its VMID.
    pub vmid: u16,
    /// Where the half of its addresses begins that it shares: 0 for a plain guest.
    pub shared_from: u64,
    /// The granule of its posted accesses.
    pub posted: Option<u64>,
    /// Its vCPUs' granules.
    pub recs: BTreeSet<u64>,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct State {
    /// log2 of a granule's bytes.
    pub shift: u32,
    /// Bits of a physical address.
    pub pa_bits: u8,
    /// The granules of RAM.
    pub ranges: Vec<Range>,
    /// The host's stage 2.
    pub host: Registers,
    /// Pages of EL2's own pool that nobody has.
    pub pool_left: u64,
    /// VMIDs that are taken.
    pub vmids: BTreeSet<u16>,
    /// EL2's own memory: from, to.
    pub own: Vec<(u64, u64)>,
    /// The realms.
    pub realms: Vec<Realm>,
    /// The realm that each vCPU says it is of.
    pub recs: Vec<(u64, u64)>,
}

const SYSTEM: &str = "hyp::system::System";
const POOL: &str = "hyp::memory::pool::Pool";
const RANGE: &str = "hyp::memory::granule::Range";
const REALM: &str = "hyp::realm::Realm";
const REC: &str = "hyp::rec::Rec";

/// Reads members of a structure in RAM.
struct At<'a> {
    ram: &'a Ram,
    layout: &'a Layout,
    of: &'static str,
    pa: u64,
}

impl At<'_> {
    fn place(&self, path: &str) -> Result<u64> {
        Ok(self.pa + self.layout.offset(self.of, path)?)
    }

    fn number(&self, path: &str, bytes: u64) -> Result<u64> {
        self.ram.number(self.place(path)?, bytes)
    }

    fn word(&self, path: &str) -> Result<u64> {
        self.number(path, 8)
    }

    /// A slice: where it is, and how long.
    fn slice(&self, path: &str) -> Result<(u64, u64)> {
        let part = |name| self.word(&format!("{path}.{name}"));
        Ok((part("data_ptr")?, part("length")?))
    }
}

impl State {
    /// Reads it from RAM, of an image that begins at `image`.
    ///
    /// # Errors
    /// Says what is not as it must be.
    pub fn read(ram: &Ram, layout: &Layout, image: u64) -> Result<Self> {
        let once = "spin::once::Once<hyp::system::System, spin::relax::Spin>";
        let system = image + layout.symbol("hyp::system::SYSTEM")? + layout.offset(once, "data")?;
        let at = |of, pa| At {
            ram,
            layout,
            of,
            pa,
        };
        let system = at(SYSTEM, system);
        let shift = system.number("granules.shift", 4)? as u32;
        ensure!(
            matches!(shift, 12 | 14 | 16),
            "no granule has 2^{shift} bytes: is the image at {image:#x} this one?"
        );
        let mut state = Self {
            shift,
            pa_bits: system.number("features.pa_bits", 1)? as u8,
            ranges: ranges(&system, shift)?,
            host: Registers {
                vttbr: system.word("host.regs.vttbr")?,
                vtcr: system.word("host.regs.vtcr")?,
            },
            pool_left: at(POOL, system.word("host.pool")?).word("state.data.value.left")?,
            vmids: vmids(&system)?,
            own: Vec::new(),
            realms: Vec::new(),
            recs: Vec::new(),
        };
        let own = system.place("own")?;
        for n in 0..2 {
            let (base, size) = (ram.word(own + 16 * n)?, ram.word(own + 16 * n + 8)?);
            state.own.push((base, base + size));
        }
        for rd in state.all(Kind::Rd) {
            state.realms.push(realm(&at(REALM, rd))?);
        }
        for rec in state.all(Kind::Rec) {
            state.recs.push((rec, at(REC, rec).word("rd")?));
        }
        Ok(state)
    }

    /// Bytes of a granule.
    pub fn granule(&self) -> u64 {
        1 << self.shift
    }

    /// log2 of the bytes of a span.
    pub fn span_shift(&self) -> u32 {
        2 * self.shift - 3
    }

    /// The granules of one kind.
    pub fn all(&self, kind: Kind) -> Vec<u64> {
        let granules = self.granules();
        let these = granules.filter(|(_, word)| word.kind() == Some(kind));
        these.map(|(pa, _)| pa).collect()
    }

    /// All granules of RAM, with their words.
    pub fn granules(&self) -> impl Iterator<Item = (u64, Word)> {
        self.ranges.iter().flat_map(|range| {
            let pas = (range.base..).step_by(1 << self.shift);
            pas.zip(range.words.iter().copied())
        })
    }

    /// The word of the granule at `pa`, and its own PA.
    pub fn word(&self, pa: u64) -> Option<(u64, Word)> {
        self.ranges.iter().find_map(|range| {
            let n = pa.checked_sub(range.base)? >> self.shift;
            let word = range.words.get(usize::try_from(n).ok()?)?;
            Some((range.at + 4 * n, *word))
        })
    }
}

fn ranges(system: &At<'_>, shift: u32) -> Result<Vec<Range>> {
    let (list, count) = system.slice("granules.ranges")?;
    let (words, granules) = system.slice("granules.words")?;
    let (spans, all_spans) = system.slice("granules.spans")?;
    ensure!(count > 0 && count < 256, "{count} ranges of RAM");
    let size = system.layout.size(RANGE)?;
    let mut found = Vec::new();
    for n in 0..count {
        let range = At {
            of: RANGE,
            pa: list + n * size,
            ..*system
        };
        let (base, bytes) = (range.word("region.base")?, range.word("region.size")?);
        let (first, first_span) = (range.word("first")?, range.word("first_span")?);
        let (count, span) = (bytes >> shift, 2 * shift - 3);
        let spans_here = ((base + bytes - 1) >> span) - (base >> span) + 1;
        let fits = first + count <= granules && first_span + spans_here <= all_spans;
        ensure!(fits && bytes > 0, "the table has no room for {base:#x}");
        let at = words + 4 * first;
        // Two words of granules in one of RAM's, wherever they begin.
        let from = at & !7;
        let pairs = system
            .ram
            .words(from, (at + 4 * count).div_ceil(8) - from / 8)?;
        let halves = pairs
            .into_iter()
            .flat_map(|two| [two as u32, (two >> 32) as u32]);
        let skip = usize::from(at != from);
        let words = halves.skip(skip).take(usize::try_from(count)?).map(Word);
        let spans_at = spans + 8 * first_span;
        found.push(Range {
            base,
            at,
            words: words.collect(),
            spans_at,
            spans: system.ram.words(spans_at, spans_here)?,
        });
    }
    Ok(found)
}

fn vmids(system: &At<'_>) -> Result<BTreeSet<u16>> {
    let words = system.ram.words(system.place("vmids")?, 1024)?;
    let bits = words.into_iter().enumerate().flat_map(|(n, word)| {
        (0..64)
            .filter(move |bit| word >> bit & 1 != 0)
            .map(move |bit| n * 64 + bit)
    });
    bits.map(|vmid| u16::try_from(vmid).context("a VMID of more than 16 bits"))
        .collect()
}

fn realm(at: &At<'_>) -> Result<Realm> {
    let posting = at.word("posted.posting.data.value.page")?;
    let posted = at.word("posted.posting.data.value.granule")?;
    let recs = at.ram.words(at.place("recs")?, 64)?;
    Ok(Realm {
        rd: at.pa,
        stage2: Registers {
            vttbr: at.word("vttbr")?,
            vtcr: at.word("vtcr")?,
        },
        vmid: at.number("vmid", 2)? as u16,
        shared_from: at.word("shared_from")?,
        posted: (posting != 0).then_some(posted),
        recs: recs.into_iter().filter(|rec| *rec != 0).collect(),
    })
}

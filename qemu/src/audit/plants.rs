//! Faults put into a machine's memory on purpose, one of each kind: an audit that
//! misses one is none.

use anyhow::{Context, Result, ensure};

use super::Audit;
use super::judge::{Fault, LENGTH};
use super::state::{Kind, Realm, State};
use super::tree::{Entry, Tree, What};

/// What tells a page from a block.
const PAGE: u64 = 1 << 1;
/// An output address below 48 bits, in a descriptor.
const ADDRESS: u64 = 0xffff_ffff_f000;

/// Whether a fault is the one that was planted.
type Is = Box<dyn Fn(&Fault) -> bool>;

/// A fault: its name, the words that it changes, how it shows, and where.
struct Plant {
    name: String,
    words: Vec<(u64, u64)>,
    pa: Option<u64>,
    is: Is,
}

impl Plant {
    fn new(
        name: impl Into<String>,
        words: Vec<(u64, u64)>,
        pa: impl Into<Option<u64>>,
        is: impl Fn(&Fault) -> bool + 'static,
    ) -> Self {
        let (name, pa, is) = (name.into(), pa.into(), Box::new(is));
        Self {
            name,
            words,
            pa,
            is,
        }
    }
}

/// Plants each fault in turn and looks: how many there were. The machine is in the
/// middle of a protected guest's life, and in order.
///
/// # Errors
/// Names the fault that was not found.
pub fn all_are_found(audit: &mut Audit, state: &State) -> Result<usize> {
    let garden = Garden::new(audit, state)?;
    let mut plants = Vec::new();
    garden.reached(&mut plants)?;
    garden.states(&mut plants)?;
    garden.counts(&mut plants)?;
    garden.tables(&mut plants)?;
    garden.contents(&mut plants)?;
    garden.lists(&mut plants)?;
    let count = plants.len();
    for plant in plants {
        plant
            .words
            .iter()
            .for_each(|&(pa, word)| audit.ram.plant(pa, word));
        let report = audit.look().with_context(|| plant.name.clone())?;
        audit.ram.heal();
        let mut found = report.findings.iter();
        let found = found.any(|f| plant.pa.is_none_or(|pa| pa == f.pa) && (plant.is)(&f.fault));
        ensure!(
            found,
            "planted and not found: {} at {:x?}; found {:x?}",
            plant.name,
            plant.pa,
            report.findings
        );
    }
    let report = audit.look()?;
    ensure!(report.findings.is_empty(), "not healed: {report}");
    Ok(count)
}

/// Where faults can be planted.
struct Garden<'a> {
    audit: &'a Audit,
    state: &'a State,
    realm: &'a Realm,
    host: Tree,
    tree: Tree,
    /// Entries of the realm's: a page of its own, and one that it shares.
    own: Entry,
    shared: Entry,
}

impl<'a> Garden<'a> {
    fn new(audit: &'a Audit, state: &'a State) -> Result<Self> {
        let realm = state.realms.iter().find(|realm| realm.shared_from != 0);
        let realm = realm.context("no protected realm")?;
        let tree = Tree::new(realm.stage2, state.pa_bits)?;
        let (mut own, mut shared) = (None, None);
        tree.each(&audit.ram, &mut |entry| {
            if let (What::Leaf(_), 3) = (entry.what, entry.level) {
                let to = if entry.ia < realm.shared_from {
                    &mut own
                } else {
                    &mut shared
                };
                *to = Some(*entry);
            }
            Ok(())
        })?;
        Ok(Self {
            audit,
            state,
            realm,
            host: Tree::new(state.host, state.pa_bits)?,
            tree,
            own: own.context("the realm has no page of its own")?,
            shared: shared.context("the realm shares no page")?,
        })
    }

    /// The first granule of a kind.
    fn first(&self, kind: Kind) -> Result<u64> {
        let all = self.state.all(kind);
        all.first()
            .copied()
            .with_context(|| format!("no granule is {kind:?}"))
    }

    /// A granule of the host's that no realm has, and the host's entry maps alone.
    fn plain(&self) -> Result<u64> {
        let span = self.state.span_shift();
        let near = self.own_pa() >> span;
        let all = self.state.granules();
        let mut free = all.filter(|(_, w)| w.kind() == Some(Kind::Ns) && w.count() == 0);
        let found = free.find(|(pa, _)| pa >> span == near);
        found
            .map(|(pa, _)| pa)
            .context("no granule of the host's beside the guest's")
    }

    fn own_pa(&self) -> u64 {
        match self.own.what {
            What::Leaf(pa) => pa,
            _ => 0,
        }
    }

    fn shared_pa(&self) -> u64 {
        match self.shared.what {
            What::Leaf(pa) => pa,
            _ => 0,
        }
    }

    /// The words that give the granule at `pa` another word.
    fn granule(&self, pa: u64, change: impl Fn(u32) -> u32) -> Result<Vec<(u64, u64)>> {
        let (at, word) = self.state.word(pa).context("no granule")?;
        let (whole, shift) = (at & !7, 8 * (at & 7));
        let old = self.audit.ram.word(whole)?;
        let new = u64::from(change(word.0)) << shift;
        Ok(vec![(whole, old & !(0xffff_ffff << shift) | new)])
    }

    fn become_(&self, pa: u64, kind: Kind) -> Result<Vec<(u64, u64)>> {
        self.granule(pa, |word| word & !0xf | kind as u32)
    }

    fn member(&self, of: &str, path: &str, pa: u64) -> Result<u64> {
        Ok(pa + self.audit.layout.offset(of, path)?)
    }

    /// What is not the host's, in its stage 2.
    fn reached(&self, plants: &mut Vec<Plant>) -> Result<()> {
        let plain = self.plain()?;
        let (at, level, word) = self.host.slot(&self.audit.ram, plain)?;
        ensure!(level == 3, "the guest's neighbour is in a block");
        let is = |fault: &Fault| *fault == Fault::Lost;
        plants.push(Plant::new("lost", vec![(at, 0)], plain, is));
        let attributes = word & !ADDRESS & !PAGE;
        let other = attributes | PAGE | self.own_pa();
        let is = |fault: &Fault| *fault == Fault::NotIdentity;
        plants.push(Plant::new("an alias", vec![(at, other)], self.own_pa(), is));
        let is = |fault: &Fault| *fault == Fault::Reached(Kind::Data);
        plants.push(Plant::new(
            "by an alias",
            vec![(at, other)],
            self.own_pa(),
            is,
        ));
        for kind in [
            Kind::Data,
            Kind::Rtt,
            Kind::Rec,
            Kind::Rd,
            Kind::Delegated,
            Kind::Hyp,
        ] {
            let pa = self.first(kind)?;
            let (at, level, _) = self.host.slot(&self.audit.ram, pa)?;
            let bits = self.state.shift + (3 - level) as u32 * (self.state.shift - 3);
            let page = if level == 3 { PAGE } else { 0 };
            let leaf = (pa & !((1 << bits) - 1)) | attributes | page;
            let is = move |fault: &Fault| *fault == Fault::Reached(kind);
            plants.push(Plant::new(
                format!("reached {kind:?}"),
                vec![(at, leaf)],
                pa,
                is,
            ));
            if kind == Kind::Hyp {
                let is = |fault: &Fault| *fault == Fault::ReachedOwn;
                plants.push(Plant::new("reached own", vec![(at, leaf)], None, is));
            }
        }
        Ok(())
    }

    /// Granules whose state is another.
    fn states(&self, plants: &mut Vec<Plant>) -> Result<()> {
        for kind in [
            Kind::Delegated,
            Kind::RecAux,
            Kind::Data,
            Kind::Rtt,
            Kind::Hyp,
            Kind::Unscrubbed,
        ] {
            let pa = self.plain()?;
            let is = move |fault: &Fault| *fault == Fault::Reached(kind);
            let name = format!("the host's is {kind:?}");
            plants.push(Plant::new(name, self.become_(pa, kind)?, pa, is));
        }
        let (own, shared) = (self.own_pa(), self.shared_pa());
        let root = self.tree.roots().0;
        type Row<'r> = (&'r str, u64, Kind, fn(&Fault) -> bool);
        let rows: [Row<'_>; 6] = [
            ("data is given", own, Kind::Delegated, |f| {
                matches!(f, Fault::NotData(_))
            }),
            ("data is given, and not zero", own, Kind::Delegated, |f| {
                *f == Fault::NotZero
            }),
            ("data is the host's", own, Kind::Ns, |f| {
                matches!(f, Fault::NotData(_))
            }),
            ("data is a table", own, Kind::Rtt, |f| {
                matches!(f, Fault::NotData(_))
            }),
            ("a root is given", root, Kind::Delegated, |f| {
                matches!(f, Fault::NotRtt(_))
            }),
            ("shared is given", shared, Kind::Delegated, |f| {
                matches!(f, Fault::NotShared(_))
            }),
        ];
        for (name, pa, kind, is) in rows {
            plants.push(Plant::new(name, self.become_(pa, kind)?, pa, is));
        }
        let given = self.first(Kind::Delegated)?;
        for kind in [Kind::Data, Kind::Rtt] {
            let is = move |fault: &Fault| *fault == Fault::Nobodys(kind);
            let name = format!("nobody's {kind:?}");
            plants.push(Plant::new(name, self.become_(given, kind)?, given, is));
        }
        let words = self.granule(given, |word| word | 1 << 4)?;
        plants.push(Plant::new("locked", words, given, |f| *f == Fault::Locked));
        let words = self.granule(given, |word| word | 0xf)?;
        plants.push(Plant::new("no state", words, given, |f| {
            *f == Fault::NoState
        }));
        Ok(())
    }

    /// Counts that are one too many or too few.
    fn counts(&self, plants: &mut Vec<Plant>) -> Result<()> {
        let one = 1 << 5;
        let table = self.own.table;
        for (name, pa, kind) in [
            ("of the host's", self.shared_pa(), Kind::Ns),
            ("of the host's, mapped nowhere", self.plain()?, Kind::Ns),
            ("of a table", table, Kind::Rtt),
            ("of a realm", self.realm.rd, Kind::Rd),
            ("of a vCPU", self.first(Kind::Rec)?, Kind::Rec),
            ("of data", self.own_pa(), Kind::Data),
        ] {
            let is = move |fault: &Fault| matches!(fault, Fault::Count(k, ..) if *k == kind);
            let words = self.granule(pa, |word| word + one)?;
            plants.push(Plant::new(format!("count {name}"), words, pa, is));
        }
        let words = self.granule(table, |word| word - one)?;
        let is = |fault: &Fault| matches!(fault, Fault::Count(Kind::Rtt, ..));
        plants.push(Plant::new("a count too few", words, table, is));
        let range = &self.state.ranges[0];
        let (at, word) = (range.spans_at, range.spans[0]);
        let is = |fault: &Fault| matches!(fault, Fault::Blocks(..));
        plants.push(Plant::new(
            "a block",
            vec![(at, word + (1 << 32))],
            None,
            is,
        ));
        let is = |fault: &Fault| matches!(fault, Fault::Foreign(..));
        plants.push(Plant::new(
            "a foreign granule",
            vec![(at, word + 1)],
            None,
            is,
        ));
        Ok(())
    }

    /// Entries of a realm's tables.
    fn tables(&self, plants: &mut Vec<Plant>) -> Result<()> {
        let (own, shared) = (self.own_pa(), self.shared_pa());
        let last = |entry: &Entry| entry.table + self.state.granule() - 8;
        let twice = vec![(last(&self.own), self.own.word)];
        let is = |fault: &Fault| matches!(fault, Fault::Places(2));
        plants.push(Plant::new("data twice", twice, own, is));
        // As an entry that is assigned, and not RAM.
        let kept = self.own.word & ADDRESS | 1 << 2;
        let is = |fault: &Fault| matches!(fault, Fault::Places(2));
        let words = vec![(last(&self.own), kept)];
        plants.push(Plant::new("data twice, not mapped", words, own, is));
        let is = |fault: &Fault| matches!(fault, Fault::Nobodys(Kind::Data));
        plants.push(Plant::new("data nowhere", vec![(self.own.at, 0)], own, is));
        let word = self.shared.word;
        let is = |fault: &Fault| matches!(fault, Fault::Count(Kind::Ns, 1, 2));
        let words = vec![(last(&self.shared), word)];
        plants.push(Plant::new("shared, not counted", words, shared, is));
        let is = |fault: &Fault| matches!(fault, Fault::Count(Kind::Ns, 1, 0));
        plants.push(Plant::new(
            "counted, not shared",
            vec![(self.shared.at, 0)],
            shared,
            is,
        ));
        let wrong = word & !ADDRESS | own;
        let is = |fault: &Fault| matches!(fault, Fault::NotShared(Some(Kind::Data)));
        let words = vec![(self.shared.at, wrong)];
        plants.push(Plant::new("data, shared", words, own, is));
        let wrong = self.own.word & !ADDRESS | self.plain()?;
        let is = |fault: &Fault| matches!(fault, Fault::NotData(Some(Kind::Ns)));
        let words = vec![(self.own.at, wrong)];
        plants.push(Plant::new(
            "the host's as its own",
            words,
            self.plain()?,
            is,
        ));
        Ok(())
    }

    /// What granules hold.
    fn contents(&self, plants: &mut Vec<Plant>) -> Result<()> {
        let given = self.first(Kind::Delegated)?;
        let last = given + self.state.granule() - 8;
        let is = |fault: &Fault| *fault == Fault::NotZero;
        plants.push(Plant::new("a last word", vec![(last, 1)], given, is));
        let plain = self.plain()?;
        let words = (0..LENGTH as u64).map(|n| (plain + 8 * n, self.audit.secret));
        let is = |fault: &Fault| *fault == Fault::Secret;
        plants.push(Plant::new("the secret", words.collect(), plain, is));
        Ok(())
    }

    /// vCPUs and VMIDs.
    fn lists(&self, plants: &mut Vec<Plant>) -> Result<()> {
        let rec = self.first(Kind::Rec)?;
        let of = self.member("hyp::rec::Rec", "rd", rec)?;
        let is = |fault: &Fault| *fault == Fault::NotListed;
        plants.push(Plant::new("another's vCPU", vec![(of, 0)], rec, is));
        let recs = self.member("hyp::realm::Realm", "recs", self.realm.rd)?;
        plants.push(Plant::new("no vCPU", vec![(recs, 0)], rec, is));
        let once = "spin::once::Once<hyp::system::System, spin::relax::Spin>";
        let system = self.audit.image + self.audit.layout.symbol("hyp::system::SYSTEM")?;
        let system = system + self.audit.layout.offset(once, "data")?;
        let vmids = self.member("hyp::system::System", "vmids", system)?;
        let is = |fault: &Fault| matches!(fault, Fault::Vmid(_));
        plants.push(Plant::new("no VMID", vec![(vmids, 0)], None, is));
        let more = self.audit.ram.word(vmids)? | 1 << 63;
        plants.push(Plant::new("a VMID too many", vec![(vmids, more)], None, is));
        Ok(())
    }
}

//! Another CPU of the hypervisor, which works on the same tree meanwhile.
//!
//! Operations that take `&self` may run on many CPUs at once. While one goes
//! on, another CPU does a whole one of its own: between any load, swap,
//! barrier and TLBI of the first. It faults pages in beside it, ages, removes
//! and protects; and it may lose any race by `Busy`. Every interleaving of
//! two short operations is searched elsewhere (`tests/interleavings.rs`, on
//! the smallest tables); here are all of them, on all formats, by chance.

use super::{Cpu, Judge};
use pgtable::{
    Access, Attrs, Budget, Error, Execute, Gather, Geometry, HeldLeaf, Ipa, Leaves, Level, Map,
    Over, Pa, Partial, Permissions, RemovedLeaf, Stage2, Sweep, Unmap, UnmapLater, Vmid,
};

/// What the other CPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Maps a page, as a fault does.
    Map {
        pa: u64,
        attrs: Attrs,
    },
    /// The same over whatever stands there.
    Replace {
        pa: u64,
        attrs: Attrs,
    },
    /// Maps a page so and takes it out again, for a gather that is synced when
    /// the first CPU's operation has ended.
    Hold {
        pa: u64,
        attrs: Attrs,
    },
    /// Links a subtree with this one page in the place of a block.
    Link {
        pa: u64,
        attrs: Attrs,
    },
    MarkYoung,
    ClearYoung,
    Unmap,
    WriteProtect,
    Relax,
}

/// An operation of another CPU on one page.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub pe: u8,
    pub geometry: Geometry,
    pub root: Pa,
    pub vmid: u16,
    pub ipa: u64,
    pub work: Work,
}

/// What became of it.
#[derive(Debug)]
pub struct Done {
    pub peer: Peer,
    pub result: Result<(), Error>,
    /// Leaves removed: IPA, bytes, PA.
    pub gone: Vec<(u64, u64, u64)>,
    /// What waits for a sync.
    pub held: Option<(Gather, Vec<HeldLeaf>)>,
}

impl Peer {
    /// Does it, on its CPU.
    pub(super) fn act(self, judge: &Judge) -> Done {
        let acting = judge.pe.replace(self.pe);
        let tree = Stage2::new(self.geometry, self.root, Vmid::new(self.vmid), judge)
            .expect("the tree is there already");
        let cpu = &mut Cpu(judge);
        let (ipa, page) = (Ipa::new(self.ipa), self.geometry.granule().page_size());
        let all = &mut Budget::unlimited();
        let mut gone = Vec::new();
        let mut held = None;
        let result = match self.work {
            Work::Map { pa, attrs } => {
                let map = Map::new(ipa, Pa::new(pa), page, attrs)
                    .leaves(Leaves::Exactly(Level::L3))
                    .over(Over::Nothing);
                tree.map(cpu, &map, all)
                    .map(drop)
                    .map_err(|stopped| stopped.why)
            }
            Work::Replace { pa, attrs } => {
                let map = Map::new(ipa, Pa::new(pa), page, attrs)
                    .leaves(Leaves::Exactly(Level::L3))
                    .over(Over::Anything);
                tree.map(cpu, &map, all)
                    .map(drop)
                    .map_err(|stopped| stopped.why)
            }
            Work::Hold { pa, attrs } => {
                let map = Map::new(ipa, Pa::new(pa), page, attrs)
                    .leaves(Leaves::Exactly(Level::L3))
                    .over(Over::Nothing);
                let mut gather = tree.gather();
                let mut leaves = Vec::new();
                let result = tree.map(cpu, &map, all).and_then(|_| {
                    let sink = |leaf| leaves.push(leaf);
                    tree.unmap_later(
                        cpu,
                        UnmapLater::new(ipa, page, &mut gather).partial(Partial::Refuse),
                        all,
                        sink,
                    )
                });
                held = Some((gather, leaves));
                result.map(drop).map_err(|stopped| stopped.why)
            }
            Work::Link { pa, attrs } => self.link(&tree, cpu, pa, attrs),
            Work::MarkYoung => tree.mark_young(cpu, ipa),
            Work::ClearYoung => tree
                .clear_young(cpu, Sweep::new(ipa, page), all)
                .map(drop)
                .map_err(|stopped| stopped.why),
            Work::Unmap => {
                let mut sink =
                    |leaf: RemovedLeaf| gone.push((leaf.ipa().get(), leaf.size(), leaf.pa().get()));
                tree.unmap_leaves(cpu, &Unmap::new(ipa, page), &mut sink, all)
                    .map(drop)
                    .map_err(|stopped| stopped.why)
            }
            Work::WriteProtect => tree
                .write_protect(cpu, Sweep::new(ipa, page), all)
                .map(drop)
                .map_err(|stopped| stopped.why),
            Work::Relax => {
                let permissions = Permissions {
                    access: Access::Read,
                    execute: Execute::Never,
                };
                let relaxed = tree.relax(cpu, ipa, permissions);
                // Others may learn late of it: the model's quiet point may not.
                judge.event(mmu_model::EventKind::DSB_ISHST);
                relaxed
            }
        };
        judge.pe.set(acting);
        Done {
            peer: self,
            result,
            gone,
            held,
        }
    }

    fn link(
        self,
        tree: &Stage2<&Judge>,
        cpu: &mut Cpu<'_>,
        pa: u64,
        attrs: Attrs,
    ) -> Result<(), Error> {
        let span = self.geometry.span(Level::L2);
        let base = Ipa::new(self.ipa & !(span - 1));
        let page = self.geometry.granule().page_size();
        let mut aside = tree.subtree(base, Level::L2)?;
        let map = Map::new(Ipa::new(self.ipa), Pa::new(pa), page, attrs);
        let built = aside.map(cpu, &map, &mut Budget::unlimited());
        let linked = match built {
            Ok(_) => aside.link(cpu, Over::Anything),
            Err(stopped) => Err((aside, stopped.why)),
        };
        linked.map_err(|(aside, why)| {
            let whole = aside.discard(&mut Budget::unlimited());
            assert!(whole.is_ok(), "an unlimited budget");
            why
        })
    }
}

//! Permissions and the access flag: of a range, and of the leaf that faulted.

use crate::addr::{Ia, Ipa, Level};
use crate::attrs::{Access, Age, Attrs, Execute};
use crate::config::Features;
use crate::desc::{AF, CONTIGUOUS, DBM, Desc, Kind, S2AP_READ, S2AP_WRITE, XN, XN_SHIFT};
use crate::error::{Budget, Error, Stopped};
use crate::extra::alter::Alter;
use crate::extra::sweep::Sweep;
use crate::maintenance::{CacheOp, Maintenance};
use crate::mem::TableMem;
use crate::stage2::Stage2;
use crate::sync;
use crate::tree::{Core, Slot};

/// What a leaf shall allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Permissions {
    /// Loads and stores.
    pub access: Access,
    /// Instruction fetch.
    pub execute: Execute,
}

/// Leaves get other permissions.
struct Protect<'a> {
    clear: u64,
    set: u64,
    features: &'a Features,
}

impl Alter for Protect<'_> {
    #[inline]
    fn alter(&mut self, leaf: Desc) -> Desc {
        leaf.without(self.clear).with(self.set)
    }

    #[inline]
    fn before<T: Maintenance>(&mut self, maint: &mut T, old: Desc, new: Desc) {
        self.features.sync_fetch(maint, old, new);
    }
}

impl Features {
    /// Invalidates instruction caches before a leaf may be fetched from that could
    /// not be.
    fn sync_fetch<T: Maintenance>(&self, maint: &mut T, old: Desc, new: Desc) {
        if !self.dic && gains_execute(old, new, self.xnx) {
            maint.cache(CacheOp::InvalidateInstructions);
        }
    }
}

impl<M: TableMem> Core<M> {
    /// The leaf of one address.
    fn leaf(&self, ia: Ia) -> Result<Slot<M::Table>, Error> {
        let slot = self.walk_to(self.shape.check(ia)?, Level::L3);
        match slot.kind(&self.shape) {
            Kind::Leaf => Ok(slot),
            kind if kind.is_frozen() => Err(Error::Busy),
            _ => Err(Error::Missing { level: slot.level }),
        }
    }
}

impl<M: TableMem> Stage2<M> {
    /// Gives all leaves of a range these permissions. Memory type, address
    /// and everything else stay. Dirty tracking (DBM) ends where the range
    /// becomes read-only, or writes would go on.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let (ipa, size) = (Ipa::new(0x4000_0000), 2 << 20);
    /// let range = Sweep::new(ipa, size).partial(Partial::Split);
    /// let read_only = Permissions { access: Access::Read, execute: Execute::Never };
    /// tree.protect(&mut cpu, range, read_only, all)?;
    /// let (_, attrs) = tree.translate(ipa).expect("mapped");
    /// assert_eq!((attrs.access, attrs.execute), (Access::Read, Execute::Never));
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`, `Align`, `Attributes` at once; `InsideBlock`, `NoMem` (to
    /// split), `Busy` where it stopped.
    pub fn protect<T: Maintenance>(
        &self,
        maint: &mut T,
        range: Sweep<'_>,
        permissions: Permissions,
        budget: &mut Budget,
    ) -> Result<Ipa, Stopped<Ipa>> {
        let attrs = Attrs {
            access: permissions.access,
            execute: permissions.execute,
            ..Attrs::MEMORY
        };
        let bits = self.geometry.encode_attrs(attrs);
        let bits = bits.map_err(Stopped::at(range.ipa))?;
        let rights = S2AP_READ | S2AP_WRITE | XN;
        let keeps_dbm = bits.has(S2AP_WRITE);
        let change = Protect {
            clear: rights | if keeps_dbm { 0 } else { DBM },
            set: bits.raw() & rights,
            features: &self.core.features,
        };
        let done = self.sweep(maint, range, change, budget)?;
        Ok(done.0)
    }

    /// Adds permissions to the leaf of one IPA after a permission fault, and
    /// sets its access flag. Also when it has them already: this CPU's TLB
    /// may still hold the entry that faulted, and is rid of it here. Other
    /// CPUs that hold it fault once and come here themselves.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// let ipa = Ipa::new(0x4000_0000);
    /// tree.write_protect(&mut cpu, Sweep::new(ipa, 4096), all)?;
    /// let more = Permissions { access: Access::ReadWrite, execute: Execute::Never };
    /// tree.relax(&mut cpu, ipa, more)?;
    /// let (_, attrs) = tree.translate(ipa).expect("mapped");
    /// assert_eq!(attrs, Attrs::MEMORY); // What it had before, it keeps.
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `Busy`; `Attributes`.
    pub fn relax<T: Maintenance>(
        &self,
        maint: &mut T,
        ipa: Ipa,
        permissions: Permissions,
    ) -> Result<(), Error> {
        let core = &self.core;
        let mut slot = core.leaf(ipa.into())?;
        loop {
            let new = self.relaxed(slot.desc, permissions)?;
            if slot.desc.has(CONTIGUOUS) && !new.is_like(slot.desc, AF) {
                core.work(maint).break_group(&mut slot)?;
            } else {
                if new != slot.desc {
                    core.features.sync_fetch(maint, slot.desc, new);
                }
                if new == slot.desc || core.swap(&slot, new) {
                    break;
                }
            }
            slot = core.leaf(ipa.into())?;
        }
        // What this CPU holds may be smaller than the leaf, where it faulted.
        let page = core.shape.span(Level::L3);
        sync::sync_local(maint, &core.tlb, ipa.floor(page).into(), slot.level);
        Ok(())
    }

    /// The leaf with more permissions, and young.
    fn relaxed(&self, leaf: Desc, more: Permissions) -> Result<Desc, Error> {
        let now = self.geometry.decode_attrs(leaf);
        let attrs = self.geometry.encode_attrs(Attrs {
            access: more.access,
            execute: union(now.execute, more.execute),
            age: Age::Young,
            ..Attrs::MEMORY
        })?;
        let add = attrs.raw() & (S2AP_READ | S2AP_WRITE | XN | AF);
        Ok(leaf.without(XN).with(add))
    }

    /// Sets the access flag of the leaf of one IPA after an access flag
    /// fault. AF=0 entries are in no TLB: nothing to invalidate.
    ///
    /// ```
    /// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
    /// # use {example::*, pgtable::*};
    /// # let (mut tree, mut cpu) = mapped();
    /// # let all = &mut Budget::unlimited();
    /// tree.clear_young(&mut cpu, Sweep::new(Ipa::new(0x4000_0000), 4096), all)?;
    /// tree.mark_young(&mut cpu, Ipa::new(0x4000_0123))?;
    /// assert_eq!(tree.translate(Ipa::new(0x4000_0000)).expect("mapped").1.age, Age::Young);
    /// # let _ = (&mut tree, &mut cpu, all);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// `Range`; `Missing` where no leaf stands; `Busy`.
    pub fn mark_young<T: Maintenance>(&self, maint: &mut T, ipa: Ipa) -> Result<(), Error> {
        let core = &self.core;
        loop {
            let slot = core.leaf(ipa.into())?;
            if slot.desc.has(AF) || core.swap(&slot, slot.desc.with(AF)) {
                core.work(maint).publish();
                return Ok(());
            }
        }
    }
}

/// True when `new` may be fetched from where `old` could not.
fn gains_execute(old: Desc, new: Desc, xnx: bool) -> bool {
    let who = |leaf: Desc| match ((leaf.raw() & XN) >> XN_SHIFT, xnx) {
        (0b00, _) | (0b01, false) => 0b11,
        (0b01, true) => 0b01,
        (0b11, true) => 0b10,
        _ => 0,
    };
    who(new) & !who(old) != 0
}

/// Fetch allowed by either.
const fn union(one: Execute, other: Execute) -> Execute {
    match (one, other) {
        (Execute::Never, any) | (any, Execute::Never) => any,
        (Execute::El0, Execute::El0) => Execute::El0,
        (Execute::El1, Execute::El1) => Execute::El1,
        _ => Execute::All,
    }
}

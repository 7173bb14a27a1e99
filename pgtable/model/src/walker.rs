//! The walk: from a root and an input address to a translation or a fault.

use crate::descriptor::{Attrs, Desc, Perms};
use crate::shape::{Regime, Shape};

/// Kinds of fault a walk ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FaultKind {
    /// Nothing is mapped.
    Translation,
    /// An address exceeds the output size.
    AddressSize,
    /// The access flag is clear and software manages it.
    AccessFlag,
    /// The leaf does not allow the access.
    Permission,
}

/// A fault, as ESR_ELx would report it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fault {
    /// Kind.
    pub kind: FaultKind,
    /// Level of the walk at which it was met.
    pub level: i8,
}

/// A translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Translation {
    /// Output address of the input address itself.
    pub pa: u64,
    /// Level of the leaf.
    pub level: i8,
    /// log2 of the bytes that the leaf maps.
    pub size_log2: u8,
    /// Attributes, hierarchical controls applied.
    pub attrs: Attrs,
    /// The raw leaf.
    pub desc: u64,
}

/// What an input address leads to.
pub type Outcome = Result<Translation, Fault>;

/// Rights that the tables above a stage-1 leaf take away (APTable\[1\] bit 62
/// makes all below read-only, XNTable bit 60 makes it non-executable).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Above {
    read_only: bool,
    no_execute: bool,
}

impl Above {
    pub(crate) fn through(self, shape: &Shape, word: u64) -> Self {
        let controls = shape.table_controls(word);
        Self {
            read_only: self.read_only || controls & 1 << 62 != 0,
            no_execute: self.no_execute || controls & 1 << 60 != 0,
        }
    }

    fn limit(self, mut perms: Perms) -> Perms {
        if self.read_only {
            perms.0 &= !Perms::W.0;
        }
        if self.no_execute {
            perms.0 &= !(Perms::X.0 | Perms::UX.0);
        }
        perms
    }
}

/// Where one step of a walk leads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Next(u64, Above),
    End(Outcome),
}

/// One step: `word` read at `level` for `ia`.
pub(crate) fn step(
    shape: &Shape,
    mair: u64,
    (level, word): (i8, u64),
    ia: u64,
    above: Above,
) -> Step {
    let fault = |kind| Step::End(Err(Fault { kind, level }));
    match shape.decode(level, word) {
        Desc::Invalid => fault(FaultKind::Translation),
        Desc::Bad(why) => fault(why.fault()),
        Desc::Table(next) => Step::Next(next, above.through(shape, word)),
        Desc::Leaf(oa) => {
            let mut attrs = shape.attrs(level, word, mair);
            attrs.perms = above.limit(attrs.perms);
            if !attrs.af && !shape.ha {
                return fault(FaultKind::AccessFlag);
            }
            let size_log2 = shape.shift(level);
            Step::End(Ok(Translation {
                pa: oa | ia & ((1 << size_log2) - 1),
                level,
                size_log2,
                attrs,
                desc: word,
            }))
        }
    }
}

/// Walks from `root` with the words that `load` returns.
///
/// # Errors
/// The fault that an access would take. Rights are not checked here: use
/// [`Translation::allows`].
pub fn walk(
    shape: &Shape,
    root: u64,
    mair: u64,
    ia: u64,
    mut load: impl FnMut(u64) -> u64,
) -> Outcome {
    if !shape.in_range(ia) {
        return Err(Fault {
            kind: FaultKind::Translation,
            level: 0,
        });
    }
    let mut table = root;
    let mut above = Above::default();
    let mut level = shape.start;
    loop {
        let word = load(table + shape.index(level, ia) * 8);
        match step(shape, mair, (level, word), ia, above) {
            Step::End(outcome) => return outcome,
            Step::Next(next, limits) => {
                table = next;
                above = limits;
                level += 1;
            }
        }
    }
}

impl Translation {
    /// Checks an access against the leaf's rights.
    ///
    /// # Errors
    /// A permission fault at the leaf's level.
    pub fn allows(&self, access: Perms) -> Result<(), Fault> {
        if self.attrs.perms.covers(access) {
            Ok(())
        } else {
            Err(Fault {
                kind: FaultKind::Permission,
                level: self.level,
            })
        }
    }
}

/// Raw control registers of a regime, enough to translate on one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Regime.
    pub regime: Regime,
    /// VTCR_EL2 or TCR_EL2.
    pub tcr: u64,
    /// VTTBR_EL2 or TTBR0_EL2.
    pub ttbr: u64,
    /// HCR_EL2.
    pub hcr: u64,
    /// MAIR_EL2 (EL2 stage 1 only).
    pub mair: u64,
}

/// Walks from raw registers and raw memory, nothing else.
///
/// # Errors
/// The fault that an access would take.
///
/// ```
/// use mmu_model::{Control, Features, Regime, translate_raw};
/// // 4K, 40 bits from level 1 (two tables), inner shareable write-back walks.
/// let control = Control {
///     regime: Regime::Stage2,
///     tcr: 1 << 31 | 2 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | 24,
///     ttbr: 0x8000_0000,
///     hcr: 0,
///     mair: 0,
/// };
/// // IPA 2^39 is the first entry of the second table.
/// let block = 0x7fd | 0x40_0000_0000;
/// let load = |pa| if pa == 0x8000_1000 { block } else { 0 };
/// let at = translate_raw(&control, &Features::v8_0(), 1 << 39 | 0x1234, load).unwrap();
/// assert_eq!(at.pa, 0x40_0000_1234);
/// ```
pub fn translate_raw(
    control: &Control,
    features: &crate::Features,
    ia: u64,
    load: impl FnMut(u64) -> u64,
) -> Outcome {
    let shape = match control.regime {
        Regime::Stage2 => Shape::stage2(control.tcr, control.hcr, features),
        Regime::El2 => Shape::el2(control.tcr, features),
    };
    let shape = shape.map_err(|e| e.fault)?;
    let (root, _) = shape.root(control.ttbr).map_err(|e| e.fault)?;
    walk(&shape, root, control.mair, ia, load)
}

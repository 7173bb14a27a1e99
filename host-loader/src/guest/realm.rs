//! A realm by RMI: built in the order that RMI 1.0 asks for, taken apart in the
//! reverse, every granule counted.
//!
//! [`Realm`] knows how far it came, so that [`Realm::destroy`] undoes a
//! half-built one too. What EL2 will not give back is never used again: it is
//! leaked, and reported.

use super::delegated::{delegate_one, leaked, reclaim};
use super::failure::RealmError;
use super::handover::{Heir, Reached};
use super::map;
use super::pieces::PIECE_SIZE;
use super::ram::{Extent, Ram};
use super::vmid::{Vmids, Width};
use crate::granules::Granules;
use crate::pace::Pace;
use crate::rmi_call::{self, CallError};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use guest_config::{Mode, PERSONALIZATION};
use pgtable::{Granule, Level, Stage2Config, Start};
use posted::Page;
use rmi::Status;
use rmi::feature::VendorFeatures;
use rmi::params::{RealmFlags, RealmParams, RecFlags, RecParams};
use rmi::rtt::{DESC_MEMATTR_SHIFT, DESC_READ, DESC_WRITE, MEMATTR_NORMAL_WB};
use rmi::run::RecRun;
use spin::Mutex;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// What a mapping lets the guest do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

impl Rights {
    /// Those bits of a descriptor that are no address.
    pub const fn attributes(self) -> u64 {
        MEMATTR_NORMAL_WB << DESC_MEMATTR_SHIFT
            | match self {
                Self::Read => DESC_READ,
                Self::ReadWrite => DESC_READ | DESC_WRITE,
            }
    }
}

/// The stage-2 tables' shape: of a granule size and an IPA width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// log2 of the granule.
    pub granule_shift: u32,
    /// Bits of the IPA space.
    pub ipa_bits: u32,
    /// Level that the walk starts at.
    pub start_level: i64,
    /// Concatenated root tables.
    pub roots: u32,
    /// Its descriptors hold 52 bits of address with a granule that otherwise has 48.
    pub lpa2: bool,
}

impl Shape {
    /// Bits of IPAs below `ipa_end`.
    pub fn bits(ipa_end: u64) -> u32 {
        64 - ipa_end.saturating_sub(1).leading_zeros()
    }

    /// The shape for IPAs below `ipa_end`: concatenating root tables wherever
    /// the architecture lets it, as KVM does, but never starting below level
    /// 2, so that blocks can be mapped.
    pub fn for_ipas(granule_shift: u32, ipa_end: u64) -> Self {
        let stride = granule_shift - 3;
        // 64K needs 34 bits for level 2; the others have it at 32.
        let least = if granule_shift == 16 { 34 } else { 32 };
        let ipa_bits = Self::bits(ipa_end).max(least);
        let mut levels = 1;
        while granule_shift + levels * stride + 4 < ipa_bits {
            levels += 1;
        }
        let covered = granule_shift + levels * stride;
        Self {
            granule_shift,
            ipa_bits,
            start_level: 4 - i64::from(levels),
            roots: 1 << ipa_bits.saturating_sub(covered),
            lpa2: false,
        }
    }

    /// The same IPA space, walked from this level; `None` where a CPU of so many bits of
    /// address cannot, which has LPA2 for this granule or not.
    pub fn starting_at(self, level: i64, pa_bits: u8, has_lpa2: bool) -> Option<Self> {
        let granule = match self.granule_shift {
            12 => Granule::K4,
            14 => Granule::K16,
            _ => Granule::K64,
        };
        // Level 0 of 16K exists with descriptors of 52 bits alone.
        let needs_lpa2 = self.lpa2 || granule == Granule::K16 && level == 0;
        let start = Level::new(i8::try_from(level).ok()?)?;
        let geometry = Stage2Config {
            start: Start::At(start),
            lpa2: needs_lpa2 && has_lpa2,
            ..Stage2Config::new(granule, self.ipa_bits as u8, pa_bits)
        };
        let geometry = geometry.validate().ok()?;
        Some(Self {
            start_level: level,
            roots: geometry.root_tables() as u32,
            lpa2: needs_lpa2,
            ..self
        })
    }

    /// The level of the largest entries that map memory: no level above the root has any.
    pub fn largest_level(&self, features: &VendorFeatures) -> i64 {
        features.largest_level().max(self.start_level)
    }

    /// Bytes that one entry of `level` maps.
    pub const fn entry_size(&self, level: i64) -> u64 {
        1 << (self.granule_shift + (3 - level) as u32 * (self.granule_shift - 3))
    }

    /// Bytes of a granule.
    pub const fn granule(&self) -> u64 {
        1 << self.granule_shift
    }

    /// Where the half of the IPA space begins that a guest of this mode shares with the
    /// host, and its devices' addresses with it: 0 for a plain one, which has no other.
    pub const fn shared(&self, mode: Mode) -> u64 {
        match mode {
            Mode::Plain => 0,
            Mode::Protected | Mode::Realm => 1 << (self.ipa_bits - 1),
        }
    }
}

/// A realm's stage 2, for mappings that need no tables beyond those it has.
#[derive(Clone, Copy, Debug)]
pub struct Stage2 {
    rd: u64,
    shape: Shape,
    /// The level of the largest entries that map memory.
    largest: i64,
    mode: Mode,
}

impl Stage2 {
    /// The realm's descriptor.
    pub fn rd(self) -> u64 {
        self.rd
    }

    /// Where the half begins that is shared.
    pub fn shared(self) -> u64 {
        self.shape.shared(self.mode)
    }

    /// Whether the guest knows that it is a realm.
    pub fn is_realm(self) -> bool {
        self.mode == Mode::Realm
    }

    /// Whether one entry maps a piece of RAM.
    pub fn maps_pieces(self) -> bool {
        self.largest == 2 && self.shape.entry_size(2) == PIECE_SIZE
    }

    /// The realm, as who gets memory.
    pub fn heir(self) -> Heir {
        Heir { rd: self.rd }
    }

    /// The entries that map an extent: level-2 blocks where there are such and it is
    /// aligned, pages elsewhere. It counts in granules.
    fn entries(self, Extent { ipa, pa, size }: Extent) -> impl Iterator<Item = (Extent, i64)> {
        let block = self.shape.entry_size(2);
        let mut done = 0;
        core::iter::from_fn(move || {
            let left = size - done;
            let (ipa, pa) = (ipa + done, pa + done);
            let fits = (ipa | pa).is_multiple_of(block) && left >= block;
            let level = if fits { self.largest } else { 3 };
            let size = self.shape.entry_size(level);
            done += size;
            (left > 0).then_some((Extent { ipa, pa, size }, level))
        })
    }

    /// Maps an extent of the host's memory for which there are tables, to be read; or
    /// unmaps it again.
    pub fn show(self, extent: Extent, shown: bool) -> Result<(), RealmError> {
        for (entry, level) in self.entries(extent) {
            let desc = entry.pa | Rights::Read.attributes();
            if shown {
                rmi_call::rtt_map_unprotected(self.rd, entry.ipa, level, desc)
                    .map_err(failed("RTT_MAP_UNPROTECTED"))?;
            } else {
                rmi_call::rtt_unmap_unprotected(self.rd, entry.ipa, level)
                    .result
                    .map_err(failed("RTT_UNMAP_UNPROTECTED"))?;
            }
        }
        Ok(())
    }

    /// Splits the block that maps a piece, if one does and there is a table for it.
    pub fn split(self, ram: &Ram, piece: usize) {
        if self.is_block(ram, piece) {
            let at = (piece, ram.piece(piece).start);
            ram.splits().split(self.rd, at, self.shape.granule());
        }
    }

    /// Whether one entry maps this piece.
    fn is_block(self, ram: &Ram, piece: usize) -> bool {
        let entry = self.entries_of(ram, piece).next();
        entry.is_some_and(|(entry, level)| level == 2 && entry.size == PIECE_SIZE)
    }

    /// The entries that map a piece of a guest's RAM.
    pub fn entries_of(self, ram: &Ram, piece: usize) -> impl Iterator<Item = (Extent, i64)> {
        let parts = ram.parts_of(piece);
        parts.flat_map(move |part| self.entries(part))
    }

    /// Lets the guest have a piece of its RAM, zeroed, for which there are tables. After
    /// an error a plain guest has nothing of it, a protected one perhaps a part; or its RAM
    /// is lost.
    pub fn populate(self, ram: &Ram, piece: usize) -> Result<(), RealmError> {
        match self.mode {
            Mode::Plain => self.map_piece(ram, piece),
            Mode::Protected => self.give_piece(ram, piece),
            Mode::Realm => self.give_own(ram, piece),
        }
    }

    /// Whether what [`Self::populate`] gives stays the host's to touch, who zeroes it;
    /// else EL2 does, and the host cannot reach it.
    pub fn is_hosts(self) -> bool {
        self.mode == Mode::Plain
    }

    fn give_piece(self, ram: &Ram, piece: usize) -> Result<(), RealmError> {
        let mut parts = ram.parts_of(piece);
        parts.try_for_each(|part| self.heir().give_zeros(ram, part))
    }

    /// The same of what a realm does not share of a piece.
    fn give_own(self, ram: &Ram, piece: usize) -> Result<(), RealmError> {
        let shares = ram.shares().lock();
        let mut rest = ram.piece(piece);
        while let Some(own) = shares.first_own(&rest) {
            rest.start = own.end;
            let mut parts = ram.parts(own);
            parts.try_for_each(|part| self.heir().give_zeros(ram, part))?;
        }
        // Who shares a part of it from here on takes that back.
        ram.pieces().set_mapped(piece);
        Ok(())
    }

    fn map_piece(self, ram: &Ram, piece: usize) -> Result<(), RealmError> {
        let rights = Rights::ReadWrite;
        for (entry, level) in self.entries_of(ram, piece) {
            let desc = entry.pa | rights.attributes();
            if let Err(error) = rmi_call::rtt_map_unprotected(self.rd, entry.ipa, level, desc) {
                let mapped = self.entries_of(ram, piece);
                for (mapped, level) in mapped.take_while(|(mapped, _)| mapped.ipa < entry.ipa) {
                    if !self.unmap(mapped.ipa, level) {
                        ram.lose();
                    }
                }
                return Err(RealmError::Call("RTT_MAP_UNPROTECTED", error));
            }
        }
        Ok(())
    }

    /// Whether what was mapped there is the host's alone again.
    fn unmap(self, ipa: u64, level: i64) -> bool {
        let unmapped = rmi_call::rtt_unmap_unprotected(self.rd, ipa, level).result;
        unmapped
            .inspect_err(|error| leaked("RTT_UNMAP_UNPROTECTED", *error))
            .is_ok()
    }
}

/// What building and taking apart work with.
#[derive(Clone, Copy, Debug)]
pub struct BuildContext<'a> {
    /// The host's free RAM.
    pub granules: &'a Mutex<Granules>,
    /// Where the work may stop, and for how long it goes on.
    pub pace: &'a Pace,
}

/// A vCPU's granules.
#[derive(Debug)]
struct Rec {
    granule: u64,
    aux: Vec<u64>,
    /// The page of entry and exit, the host's own.
    run_page: u64,
    created: bool,
}

/// Mapped entries of one level, IPA after IPA.
#[derive(Debug)]
struct Mapped {
    ipas: Range<u64>,
    level: i64,
}

/// What a realm is to be.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// How its memory stands towards the host.
    pub mode: Mode,
    /// Its tables'.
    pub shape: Shape,
    /// No entry maps more than a page.
    pub by_pages: bool,
    /// It gets its RAM by pieces, when they are touched.
    pub lazy: bool,
    /// Its personalization value.
    pub personalization: [u8; PERSONALIZATION],
}

/// A realm, in the making or whole.
#[derive(Debug)]
pub struct Realm {
    shape: Shape,
    rd: u64,
    roots: u64,
    /// Granules delegated so far: rd and roots.
    delegated: Vec<u64>,
    created: bool,
    /// Its VMID, from just before it is created.
    vmid: Option<u16>,
    mode: Mode,
    /// The level of the largest entries that map memory.
    largest: i64,
    mapped: Vec<Mapped>,
    /// The guest's RAM, from just before it has some of it.
    ram: Option<Arc<Ram>>,
    /// It is mapped by pieces, those that say so; otherwise `mapped` has it.
    by_pieces: bool,
    /// What it gets as a block is split.
    splits: bool,
    tables: usize,
    aux_count: usize,
    recs: Vec<Rec>,
    /// The page of accesses that need not wait, from the host's granules.
    posted: Option<u64>,
}

/// Those of all realms that live. Innermost lock.
static VMIDS: Mutex<Vmids> = Mutex::new(Vmids::new());

fn failed(what: &'static str) -> impl Fn(CallError) -> RealmError {
    move |error| RealmError::Call(what, error)
}

/// Fills a scratch granule with `value` for the time of `f`, which gets its PA.
fn with_page<T: IntoBytes + Immutable, R>(
    granules: &Mutex<Granules>,
    value: &T,
    f: impl FnOnce(u64) -> Result<R, RealmError>,
) -> Result<R, RealmError> {
    let size = granules.lock().granule();
    let page = granules
        .lock()
        .take(size, size)
        .ok_or(RealmError::NoMemory("a page of parameters"))?;
    let bytes = value.as_bytes();
    // SAFETY: The granule is the host's, mapped at its own address, and no
    // other reference to it exists. A granule holds at least 4 KiB.
    unsafe {
        core::ptr::copy_nonoverlapping(
            bytes.as_ptr(),
            core::ptr::with_exposed_provenance_mut(page as usize),
            bytes.len(),
        );
    }
    let result = f(page);
    granules.lock().give(page, size);
    result
}

impl Realm {
    /// Creates a realm of this kind.
    ///
    /// On an error nothing is left behind.
    pub async fn create(
        context: BuildContext<'_>,
        kind: Kind,
        features: &VendorFeatures,
    ) -> Result<Self, RealmError> {
        let Kind {
            mode,
            shape,
            by_pages,
            lazy,
            ..
        } = kind;
        // Memory of its own comes by pages in one call too, where there is a table.
        let splits = by_pages && lazy && mode == Mode::Plain;
        let largest = if by_pages && !splits {
            3
        } else {
            shape.largest_level(features)
        };
        let mut realm = Self {
            shape,
            rd: 0,
            roots: 0,
            delegated: Vec::new(),
            created: false,
            vmid: None,
            mode,
            largest,
            mapped: Vec::new(),
            ram: None,
            by_pieces: false,
            splits,
            tables: 0,
            aux_count: 0,
            recs: Vec::new(),
            posted: None,
        };
        match realm.try_create(context.granules, &kind.personalization, features) {
            Ok(()) => Ok(realm),
            Err(error) => {
                realm.destroy(context).await;
                Err(error)
            }
        }
    }

    fn try_create(
        &mut self,
        granules: &Mutex<Granules>,
        personalization: &[u8; PERSONALIZATION],
        features: &VendorFeatures,
    ) -> Result<(), RealmError> {
        let granule = self.shape.granule();
        let roots_size = granule * u64::from(self.shape.roots);
        let lacks = RealmError::NoMemory("a realm's root tables");
        {
            let mut granules = granules.lock();
            self.rd = granules.take(granule, granule).ok_or(lacks.clone())?;
            // Concatenated tables are aligned to their total size.
            self.roots = match granules.take(roots_size, roots_size) {
                Some(roots) => roots,
                None => {
                    granules.give(self.rd, granule);
                    return Err(lacks);
                }
            };
        }
        let all = (0..u64::from(self.shape.roots)).map(|i| self.roots + i * granule);
        for pa in [self.rd].into_iter().chain(all) {
            rmi_call::granule_delegate(pa).map_err(failed("GRANULE_DELEGATE"))?;
            self.delegated.push(pa);
        }
        let mut flags = RealmFlags::EL2_VGIC
            | match self.mode {
                Mode::Plain => RealmFlags::NONCONF,
                Mode::Protected => RealmFlags::PROTECTED,
                Mode::Realm => RealmFlags::empty(),
            };
        flags.set(RealmFlags::LPA2, self.shape.lpa2);
        let mut params = RealmParams::new_zeroed();
        params.flags = flags.bits();
        params.s2sz = self.shape.ipa_bits as u8;
        params.vmid = VMIDS
            .lock()
            .take(Width::of(features))
            .ok_or(RealmError::NoVmid)?;
        self.vmid = Some(params.vmid);
        params.rpv = *personalization;
        params.num_bps = 1;
        params.num_wps = 1;
        params.rtt_base = self.roots;
        params.rtt_level_start = self.shape.start_level;
        params.rtt_num_start = self.shape.roots;
        with_page(granules, &params, |page| {
            rmi_call::realm_create(self.rd, page).map_err(failed("REALM_CREATE"))
        })?;
        self.created = true;
        let aux = rmi_call::rec_aux_count(self.rd).map_err(failed("REC_AUX_COUNT"))?;
        self.aux_count = (aux as usize).min(rmi::params::MAX_REC_AUX);
        Ok(())
    }

    /// The realm descriptor's PA: what calls name the realm by.
    pub fn rd(&self) -> u64 {
        self.rd
    }

    /// The stage 2's shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The stage 2, for mappings by pieces.
    pub fn stage2(&self) -> Stage2 {
        Stage2 {
            rd: self.rd,
            shape: self.shape,
            largest: self.largest,
            mode: self.mode,
        }
    }

    /// What is added to the address of a device: a protected guest's stand in the half
    /// that it shares.
    pub fn shared(&self) -> u64 {
        self.shape.shared(self.mode)
    }

    /// Maps what is claimed of a guest's RAM, and makes all tables that mapping the
    /// rest takes, so that nothing is missing at a first touch.
    ///
    /// On an error a part may be mapped; `destroy` knows it.
    pub async fn map_claimed(
        &mut self,
        context: BuildContext<'_>,
        ram: &Arc<Ram>,
    ) -> Result<(), RealmError> {
        (self.ram, self.by_pieces) = (Some(ram.clone()), true);
        let stage2 = self.stage2();
        let range = ram.range();
        let mut last = [None; 5];
        for ipa in range.step_by(PIECE_SIZE as usize) {
            let Some(piece) = ram.piece_at(ipa) else {
                continue;
            };
            for (entry, level) in stage2.entries_of(ram, piece) {
                for below in self.shape.start_level + 1..=level {
                    let base = entry.ipa & !(self.shape.entry_size(below - 1) - 1);
                    let last = &mut last[below as usize];
                    if *last != Some(base) {
                        self.add_table(context.granules, base, below)?;
                        *last = Some(base);
                    }
                }
            }
            context.pace.step().await;
        }
        if self.mode != Mode::Plain {
            return self.give_claimed(context, ram).await;
        }
        for piece in ram.pieces().claimed() {
            stage2.map_piece(ram, piece)?;
            ram.pieces().set_mapped(piece);
            context.pace.step().await;
        }
        Ok(())
    }

    /// Where it is to be mapped by pages: splits what is mapped by blocks, and sets tables
    /// aside to do so with the rest.
    pub async fn split_blocks(&self, context: BuildContext<'_>, ram: &Ram) {
        if !self.splits {
            return;
        }
        let stage2 = self.stage2();
        let pieces = ram.range().step_by(PIECE_SIZE as usize);
        let pieces = pieces.filter_map(|ipa| ram.piece_at(ipa));
        let blocks = pieces.filter(|&piece| stage2.is_block(ram, piece)).count();
        ram.splits().reserve(context.granules, blocks as u64);
        for piece in ram.pieces().mapped() {
            stage2.split(ram, piece);
            context.pace.step().await;
        }
    }

    /// Tells a protected guest of its RAM, and gives it what is claimed of it, with
    /// what is in it.
    async fn give_claimed(
        &mut self,
        context: BuildContext<'_>,
        ram: &Ram,
    ) -> Result<(), RealmError> {
        let heir = self.stage2().heir();
        self.in_steps(context, ram.range(), |ipas| heir.tell_ram(ipas))
            .await?;
        for piece in ram.pieces().claimed() {
            for part in ram.parts_of(piece) {
                self.give_content(context, part).await?;
            }
            ram.pieces().set_mapped(piece);
        }
        Ok(())
    }

    async fn give_content(
        &mut self,
        context: BuildContext<'_>,
        Extent { ipa, pa, size }: Extent,
    ) -> Result<(), RealmError> {
        let heir = self.stage2().heir();
        let give = |ipas: Range<u64>| {
            heir.give_content(Extent {
                ipa: ipas.start,
                pa: pa + (ipas.start - ipa),
                size: ipas.end - ipas.start,
            })
        };
        self.in_steps(context, ipa..ipa + size, give).await
    }

    /// Calls until all of these addresses are done, and makes the tables that are missing.
    pub(super) async fn in_steps(
        &mut self,
        BuildContext { granules, pace }: BuildContext<'_>,
        mut ipas: Range<u64>,
        call: impl Fn(Range<u64>) -> Result<Reached, RealmError>,
    ) -> Result<(), RealmError> {
        while !ipas.is_empty() {
            match call(ipas.clone())? {
                Reached::To(ipa) => ipas.start = ipa,
                Reached::NoTable(level) => self.add_table(granules, ipas.start, level)?,
            }
            pace.step().await;
        }
        Ok(())
    }

    /// Gives a guest all of its RAM, with what is in it, by entries as large as there are.
    ///
    /// On an error a part may be the guest's; `destroy` knows it.
    pub async fn fill(
        &mut self,
        context: BuildContext<'_>,
        ram: &Arc<Ram>,
    ) -> Result<(), RealmError> {
        self.ram = Some(ram.clone());
        for extent in ram.extents() {
            match self.mode {
                Mode::Plain => self.map(context, *extent, Rights::ReadWrite).await?,
                // A realm's content is copied: `measured`.
                Mode::Protected | Mode::Realm => self.give_content(context, *extent).await?,
            }
        }
        let claimed = ram.pieces().claimed();
        claimed.for_each(|piece| ram.pieces().set_mapped(piece));
        Ok(())
    }

    /// Maps an extent of the host's memory into the guest, with entries as large as
    /// there are.
    ///
    /// On an error a part may be mapped; `destroy` knows it.
    pub async fn map(
        &mut self,
        context: BuildContext<'_>,
        extent: Extent,
        rights: Rights,
    ) -> Result<(), RealmError> {
        for (Extent { ipa, pa, size }, level) in self.stage2().entries(extent) {
            self.map_entry(context.granules, ipa, level, pa | rights.attributes())?;
            self.note(ipa..ipa + size, level);
            context.pace.step().await;
        }
        Ok(())
    }

    fn note(&mut self, ipas: Range<u64>, level: i64) {
        match self.mapped.last_mut() {
            Some(last) if last.level == level && last.ipas.end == ipas.start => {
                last.ipas.end = ipas.end;
            }
            _ => self.mapped.push(Mapped { ipas, level }),
        }
    }

    fn map_entry(
        &mut self,
        granules: &Mutex<Granules>,
        ipa: u64,
        level: i64,
        desc: u64,
    ) -> Result<(), RealmError> {
        // At most one table is missing at each level between root and entry.
        for _ in self.shape.start_level..=level {
            match rmi_call::rtt_map_unprotected(self.rd, ipa, level, desc) {
                Ok(()) => return Ok(()),
                Err(CallError::Status(Status::ErrorRtt(reached)))
                    if i64::from(reached as i8) < level =>
                {
                    self.add_table(granules, ipa, i64::from(reached as i8) + 1)?;
                }
                Err(error) => return Err(RealmError::Call("RTT_MAP_UNPROTECTED", error)),
            }
        }
        let stuck = CallError::Status(Status::ErrorRtt(level as u8));
        Err(RealmError::Call("RTT_MAP_UNPROTECTED", stuck))
    }

    pub(super) fn add_table(
        &mut self,
        granules: &Mutex<Granules>,
        ipa: u64,
        level: i64,
    ) -> Result<(), RealmError> {
        add_table(self.stage2(), granules, ipa, level)?;
        self.tables += 1;
        Ok(())
    }

    /// A table of it is one no longer.
    pub(super) fn lose_table(&mut self) {
        self.tables -= 1;
    }

    /// Memory is mapped by blocks too.
    pub(super) fn has_blocks(&self) -> bool {
        self.largest == 2
    }

    /// The guest is about to have some of this RAM.
    pub(super) fn set_ram(&mut self, ram: &Arc<Ram>) {
        self.ram = Some(ram.clone());
    }

    /// Adds the next vCPU: it starts at `pc` with X0 = `x0`; the first is the
    /// one that runs at once.
    pub fn add_rec(
        &mut self,
        granules: &Mutex<Granules>,
        pc: u64,
        x0: u64,
    ) -> Result<(), RealmError> {
        let index = self.recs.len() as u64;
        let size = self.shape.granule();
        let run_page = granules
            .lock()
            .take(size, size)
            .ok_or(RealmError::NoMemory("a vCPU's run page"))?;
        // SAFETY: As in `with_page`. The page stays the host's; see `run_page`.
        unsafe {
            core::ptr::write_bytes(
                core::ptr::with_exposed_provenance_mut::<u8>(run_page as usize),
                0,
                size_of::<RecRun>(),
            );
        }
        let granule = match delegate_one(granules, "a vCPU") {
            Ok(granule) => granule,
            Err(error) => {
                granules.lock().give(run_page, size);
                return Err(error);
            }
        };
        self.recs.push(Rec {
            granule,
            aux: Vec::with_capacity(self.aux_count),
            run_page,
            created: false,
        });
        let aux_count = self.aux_count;
        let Some(rec) = self.recs.last_mut() else {
            return Ok(());
        };
        for _ in 0..aux_count {
            rec.aux.push(delegate_one(granules, "a vCPU")?);
        }
        let mut params = RecParams::new_zeroed();
        if index == 0 {
            params.flags = RecFlags::RUNNABLE.bits();
        }
        params.mpidr = rmi::params::index_mpidr(index);
        params.pc = pc;
        params.gprs[0] = x0;
        params.num_aux = aux_count as u64;
        params.aux[..aux_count].copy_from_slice(&rec.aux);
        with_page(granules, &params, |page| {
            rmi_call::rec_create(self.rd, rec.granule, page).map_err(failed("REC_CREATE"))
        })?;
        rec.created = true;
        Ok(())
    }

    /// Gives the device at `device`, of the IPA space, a page for accesses that need
    /// not wait for the host; see crate `posted`.
    pub fn add_posted(
        &mut self,
        granules: &Mutex<Granules>,
        device: u64,
        delay: u64,
    ) -> Result<(), RealmError> {
        let size = self.shape.granule();
        let page = granules
            .lock()
            .take(size, size)
            .ok_or(RealmError::NoMemory("a device's page"))?;
        // SAFETY: As in `with_page`. The page stays the host's; see `posted`.
        unsafe { core::ptr::with_exposed_provenance_mut::<Page>(page as usize).write(Page::new()) };
        if let Err(error) = rmi_call::set_posted(self.rd, page, device, delay) {
            granules.lock().give(page, size);
            return Err(RealmError::Call("SET_POSTED", error));
        }
        self.posted = Some(page);
        Ok(())
    }

    /// That page.
    pub fn posted(&self) -> Option<*const Page> {
        self.posted
            .map(|page| core::ptr::with_exposed_provenance(page as usize))
    }

    /// PA of vCPU `index`: what calls name it by.
    pub fn rec(&self, index: usize) -> u64 {
        self.recs[index].granule
    }

    /// The page through which vCPU `index` is entered.
    pub fn run_page(&self, index: usize) -> *mut RecRun {
        core::ptr::with_exposed_provenance_mut(self.recs[index].run_page as usize)
    }

    /// Lets the realm run.
    pub fn activate(&mut self) -> Result<(), RealmError> {
        rmi_call::realm_activate(self.rd).map_err(failed("REALM_ACTIVATE"))
    }

    /// Takes all of it apart and gives the granules back. None of its vCPUs
    /// runs. What EL2 keeps is leaked, and the log says so.
    pub async fn destroy(mut self, context: BuildContext<'_>) {
        let BuildContext { granules, pace } = context;
        let size = self.shape.granule();
        for rec in self.recs.drain(..).rev() {
            granules.lock().give(rec.run_page, size);
            if rec.created
                && let Err(error) = rmi_call::rec_destroy(rec.granule)
            {
                leaked("REC_DESTROY", error);
                continue;
            }
            reclaim(granules, rec.granule);
            for aux in rec.aux {
                reclaim(granules, aux);
            }
            pace.step().await;
        }
        let shared = self.ram.clone().filter(|_| self.mode == Mode::Realm);
        self.take_memory_back(context).await;
        if let Some(ram) = &shared {
            self.tables += ram.shares().lock().tables;
        }
        if self.tables > 0 {
            for level in (self.shape.start_level + 1..=3).rev() {
                self.destroy_tables(context, level).await;
            }
        }
        if self.created
            && let Err(error) = rmi_call::realm_destroy(self.rd)
        {
            leaked("REALM_DESTROY", error);
            // What it shares is mapped as before.
            if let Some(ram) = shared {
                ram.lose();
            }
            return;
        }
        if let Some(ram) = shared {
            ram.forget_shares(granules);
        }
        if let Some(page) = self.posted.take() {
            granules.lock().give(page, size);
        }
        if let Some(vmid) = self.vmid.take() {
            VMIDS.lock().give(vmid);
        }
        // Those that were taken but never delegated are simply the host's.
        if self.rd != 0 && self.roots != 0 {
            let all = (0..u64::from(self.shape.roots)).map(|i| self.roots + i * size);
            for pa in [self.rd].into_iter().chain(all) {
                if self.delegated.contains(&pa) {
                    reclaim(granules, pa);
                } else {
                    granules.lock().give(pa, size);
                }
            }
        }
    }

    /// Takes the guest's memory back. RAM that EL2 keeps a part of, or leaves mapped,
    /// is lost.
    async fn take_memory_back(&mut self, BuildContext { granules, pace }: BuildContext<'_>) {
        let stage2 = self.stage2();
        let mut is_whole = true;
        for Mapped { ipas, level } in self.mapped.drain(..) {
            for ipa in ipas.step_by(self.shape.entry_size(level) as usize) {
                is_whole &= stage2.unmap(ipa, level);
                pace.step().await;
            }
        }
        let Some(ram) = self.ram.take() else {
            return;
        };
        if !stage2.is_hosts() {
            if let Err(error) = stage2.heir().take_back(ram.range(), pace).await {
                log::error!("{error}; the guest's memory is lost until the machine restarts");
                is_whole = false;
            }
        } else if self.by_pieces {
            for piece in ram.pieces().mapped() {
                let at = (piece, ram.piece(piece).start);
                if !ram.splits().join(self.rd, at, granules) {
                    self.tables += 1;
                }
                for (entry, level) in stage2.entries_of(&ram, piece) {
                    is_whole &= stage2.unmap(entry.ipa, level);
                    pace.step().await;
                }
            }
        }
        ram.splits().release(granules);
        if !is_whole {
            ram.lose();
        }
    }

    /// Removes all tables of `level`, by `top` from hole to hole.
    async fn destroy_tables(&mut self, context: BuildContext<'_>, level: i64) {
        let end = 1u64 << self.shape.ipa_bits;
        let mut ipa = 0;
        while ipa < end && self.tables > 0 {
            let walked = rmi_call::rtt_destroy(self.rd, ipa, level);
            match walked.result {
                Ok(rtt) => {
                    self.tables -= 1;
                    reclaim(context.granules, rtt);
                }
                Err(CallError::Status(Status::ErrorRtt(_))) => {}
                Err(error) => {
                    leaked("RTT_DESTROY", error);
                    return;
                }
            }
            if walked.top <= ipa {
                leaked(
                    "RTT_DESTROY",
                    CallError::Status(Status::ErrorRtt(level as u8)),
                );
                return;
            }
            ipa = walked.top;
            context.pace.step().await;
        }
    }
}

/// Adds a table of `level` to a realm, for what is at `ipa`. Who counts tables counts it.
pub(super) fn add_table(
    stage2: Stage2,
    granules: &Mutex<Granules>,
    ipa: u64,
    level: i64,
) -> Result<(), RealmError> {
    let base = ipa & !(stage2.shape.entry_size(level - 1) - 1);
    let rtt = delegate_one(granules, "a stage-2 table")?;
    if let Err(error) = rmi_call::rtt_create(stage2.rd, rtt, base, level) {
        reclaim(granules, rtt);
        return Err(RealmError::Call("RTT_CREATE", error));
    }
    Ok(())
}

/// A sentence about where `ipa` lies in a guest with this RAM, whose devices stand
/// from `shared` on.
pub fn describe(ipa: u64, ram: &core::ops::Range<u64>, shared: u64) -> String {
    let at = if ipa < shared { 0 } else { shared };
    let (name, range, inside) = map::nearest(ipa - at, ram);
    let word = if inside { "in" } else { "near" };
    let half = if at == 0 { "" } else { " of the shared half" };
    format!("{word} {name} {:#x}-{:#x}{half}", range.start, range.end)
}

/// The run page as bytes were a structure: it is one (`zerocopy` checks).
const _: () = {
    const fn is_plain<T: FromBytes + IntoBytes + Immutable + KnownLayout>() {}
    is_plain::<RecRun>();
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::{Extent, Shape, Stage2};
    use guest_config::Mode;
    use rmi::feature::VendorFeatures;
    use std::vec::Vec;

    const RAM_END: u64 = 0x6000_0000;

    /// log2 of the granule, IPA bits, LPA2 at hand; then levels and root tables.
    type Row = (u32, u32, bool, &'static [(i64, u32)]);

    #[test]
    fn a_walk_starts_where_the_architecture_has_it() {
        let rows: [Row; 9] = [
            (12, 32, false, &[(1, 1), (2, 4)]),
            (12, 40, false, &[(0, 1), (1, 2)]),
            (12, 48, false, &[(0, 1)]),
            (12, 52, true, &[(-1, 1), (0, 16)]),
            (14, 48, false, &[(1, 2)]),
            (14, 48, true, &[(0, 1), (1, 2)]),
            (14, 52, true, &[(0, 1)]),
            (16, 32, false, &[(2, 1), (3, 8)]),
            (16, 52, false, &[(1, 1)]),
        ];
        for (granule_shift, bits, has_lpa2, expected) in rows {
            let usual = Shape {
                ipa_bits: bits,
                lpa2: granule_shift != 16 && bits > 48,
                ..Shape::for_ipas(granule_shift, RAM_END)
            };
            let starting_at = |level| usual.starting_at(level, 52, has_lpa2);
            let found: Vec<_> = (-1..=3)
                .filter_map(starting_at)
                .map(|shape| (shape.start_level, shape.roots))
                .collect();
            assert_eq!(found, expected, "{granule_shift} {bits} {has_lpa2}");
        }
        // Descriptors of level 0 of 16K are of 52 bits, whatever the addresses.
        let usual = Shape::for_ipas(14, 1 << 48);
        assert!(
            usual
                .starting_at(0, 48, true)
                .is_some_and(|shape| shape.lpa2)
        );
        // A CPU of fewer bits has fewer levels (spec of each granule's first).
        let usual = Shape::for_ipas(12, 1 << 40);
        assert!(usual.starting_at(0, 40, false).is_none());
        assert!(usual.starting_at(1, 40, false).is_some());
    }

    /// log2 of the granule, level of the root, FEAT_S2FWB, level of the largest entries.
    type Largest = (u32, i64, bool, i64);

    #[test]
    fn no_entry_is_larger_than_those_of_the_root() {
        let rows: [Largest; 7] = [
            (12, 1, false, 2),
            (12, 2, true, 2),
            (14, 2, false, 3),
            (14, 2, true, 2),
            (16, 2, false, 3),
            (16, 2, true, 2),
            (16, 3, true, 3),
        ];
        for (granule_shift, root, fwb, largest) in rows {
            let features = VendorFeatures {
                granule_shift: granule_shift as u8,
                fwb,
                ..VendorFeatures::default()
            };
            let usual = Shape {
                ipa_bits: 32,
                ..Shape::for_ipas(granule_shift, RAM_END)
            };
            let shape = usual.starting_at(root, 48, false).unwrap();
            let stage2 = Stage2 {
                rd: 0,
                shape,
                largest: shape.largest_level(&features),
                mode: Mode::Plain,
            };
            // A block of level 2, and a granule behind it.
            let (block, granule) = (shape.entry_size(2), shape.granule());
            let ipa = 0x4000_0000;
            let extent = Extent {
                ipa,
                pa: 0x8000_0000,
                size: block + granule,
            };
            let entries: Vec<_> = stage2.entries(extent).collect();
            let size = shape.entry_size(largest);
            let whole = (0..block / size).map(|n| (n * size, size, largest));
            let expected: Vec<_> = whole.chain([(block, granule, 3)]).collect();
            let found: Vec<_> = (entries.iter())
                .map(|(entry, level)| (entry.ipa - ipa, entry.size, *level))
                .collect();
            let row = (granule_shift, root, fwb);
            assert!(found == expected, "{row:?}: first {:x?}", entries[0]);
            assert!(entries.iter().all(|(entry, _)| entry.pa - entry.ipa == ipa));
        }
    }
}

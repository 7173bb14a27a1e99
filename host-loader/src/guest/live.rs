//! The RAM of a guest that runs: what the host may touch of it, and how the guest
//! gets it.
//!
//! Of a guest that is populated lazily, every access of its RAM comes here before
//! it is done, whoever does it: the guest's own as an abort, the host's by
//! [`LiveRam::spot`]. Whoever comes first zeroes the piece and maps it; another who
//! comes meanwhile waits for that, which takes no lock and waits for nobody.

use super::failure::RealmError;
pub use super::pieces::Populated;
use super::ram::{Ram, Spot};
use super::realm::Stage2;
use super::sharing::{Asked, Sharing};
use crate::granules::Granules;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{Ordering, fence};
use spin::Mutex;

/// RAM of a guest that runs.
#[derive(Clone, Debug)]
pub struct LiveRam {
    ram: Arc<Ram>,
    stage2: Stage2,
    coherent: bool,
}

impl LiveRam {
    /// The RAM that `stage2` maps, or will. `coherent`: all of the guest's accesses
    /// are cached (FEAT_S2FWB).
    pub fn new(ram: Arc<Ram>, stage2: Stage2, coherent: bool) -> Self {
        Self {
            ram,
            stage2,
            coherent,
        }
    }

    /// All of the guest's accesses are cached.
    pub fn is_coherent(&self) -> bool {
        self.coherent
    }

    /// Whether there is RAM at `ipa`.
    pub fn contains(&self, ipa: u64) -> bool {
        self.ram.piece_at(ipa).is_some()
    }

    /// The place of `size` bytes at `ipa`, an aligned 1, 2, 4 or 8; `None` where
    /// there is no RAM, or it cannot be had, or it is a protected guest's own.
    pub fn spot(&self, ipa: u64, size: u64) -> Option<Spot> {
        if !self.stage2.is_hosts() {
            return None;
        }
        // Aligned, all of it is in one piece.
        let spot = self.ram.find(ipa, size)?;
        self.populate(ipa)?.ok().map(|_| spot)
    }

    fn sharing<'a>(&'a self, granules: &'a Mutex<Granules>) -> Sharing<'a> {
        Sharing {
            stage2: self.stage2,
            ram: &self.ram,
            granules,
            coherent: self.coherent,
        }
    }

    /// Changes a part of its RAM as the vCPU `rec` of a realm has asked; `None` where
    /// that is not all RAM.
    pub fn change(
        &self,
        granules: &Mutex<Granules>,
        rec: u64,
        ipas: Range<u64>,
        to: Asked,
    ) -> Option<Result<(), RealmError>> {
        let ram = self.ram.range();
        let inside = self.stage2.is_realm()
            && ram.start <= ipas.start
            && ipas.start < ipas.end
            && ipas.end <= ram.end;
        inside.then(|| self.sharing(granules).change(rec, ipas, to))
    }

    /// Lets a realm have what it touched at `ipa` in the half that it shares; `None` where
    /// nothing is, because it is no address of its RAM, or that is its own.
    pub fn touch(
        &self,
        granules: &Mutex<Granules>,
        ipa: u64,
    ) -> Option<Result<Populated, RealmError>> {
        if !self.stage2.is_realm() {
            return None;
        }
        let ipa = ipa.checked_sub(self.stage2.shared())?;
        self.ram.piece_at(ipa)?;
        self.sharing(granules).touch(ipa)
    }

    /// Lets the guest have the piece that `ipa` is in; `None` if there is no RAM. An
    /// error is EL2's, which did not map it; a plain guest then has nothing of it, and a
    /// protected one perhaps a part, which its end takes back.
    pub fn populate(&self, ipa: u64) -> Option<Result<Populated, RealmError>> {
        let piece = self.ram.piece_at(ipa)?;
        let pieces = self.ram.pieces();
        while !pieces.is_mapped(piece) {
            if pieces.claim(piece) {
                return Some(self.fill(piece).map(|()| Populated::Now));
            }
            core::hint::spin_loop();
        }
        if self.stage2.is_realm() {
            // Who changes what it is has changed it then.
            drop(self.ram.shares().lock());
        }
        Some(Ok(Populated::Before))
    }

    /// Fills a piece that is claimed here.
    fn fill(&self, piece: usize) -> Result<(), RealmError> {
        if self.stage2.is_hosts() {
            self.ram.zero_piece(piece);
            if !self.coherent {
                self.ram.clean_piece(piece);
            }
            // Who sees the piece by its tables sees zeros.
            fence(Ordering::SeqCst);
        }
        let mapped = self.stage2.populate(&self.ram, piece);
        match mapped {
            Ok(()) => {
                self.stage2.split(&self.ram, piece);
                self.ram.pieces().set_mapped(piece);
            }
            Err(_) => self.ram.pieces().unclaim(piece),
        }
        mapped
    }
}

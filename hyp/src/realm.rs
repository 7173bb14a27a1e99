//! A realm: what lies in its descriptor's granule (RD).
//!
//! Lock protocol. The RD granule's own lock guards creation and destruction of
//! the realm and of its RECs. While a REC exists the RD stays (its count), so a
//! running REC reaches its realm without that lock; what it shares with others
//! is behind locks here: `rtt`, the tables, and `vgic`, the interrupts of all
//! vCPUs; and behind a third, `posted`, the page of its device's accesses. None is
//! held while another is taken, nor while a guest runs. `measured` is taken beneath
//! all of them.

use arm64::instr;
use arm64::regs::affinity;
use core::fmt::Write;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use pgtable::{Ipa, Level, Pa, Rtt, RttState, Synced, TableMem};
use rmi::params::RealmFlags;
use vgic::{Affinity, Distributor, Redistributor, VcpuSet, Vgic};

use crate::cpu::pe::{MAX_PES, Pe};
use crate::cpu::{gic, pe};
use crate::idregs::Shown;
use crate::kicks::Kicked;
use crate::measure::Measurements;
use crate::memory::granule::{self, GranuleWord, Granules, Spans};
use crate::memory::order::{MeasuredLock, RealmLock};
use crate::memory::phys;
use crate::memory::pool::{entries_in_ram, exchange};
use crate::posting::Device;
use crate::rec::Rec;

/// RECs of one realm, at the most: a power of two (feature register 0, MAX_RECS_ORDER).
pub const MAX_RECS: usize = 64;

/// The life of a realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Being built.
    New = 0,
    /// Runs.
    Active = 1,
    /// Called SYSTEM_OFF or SYSTEM_RESET.
    SystemOff = 2,
}

/// What a guest is, by the flags that it is created with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its memory is the host's.
    Plain,
    /// Its memory is its own, and it does not know.
    Protected,
    /// A realm of RMI 1.0: measured, and RSI answers.
    Realm,
}

impl Mode {
    /// That of these flags; `None` where they do not go together.
    pub const fn of(flags: RealmFlags) -> Option<Self> {
        let plain = flags.contains(RealmFlags::NONCONF);
        let protected = flags.contains(RealmFlags::PROTECTED);
        match (plain, protected, flags.contains(RealmFlags::EL2_VGIC)) {
            (true, false, true) => Some(Self::Plain),
            (false, true, true) => Some(Self::Protected),
            // The other is RMI 1.0's own mode, HOST_LRS.
            (false, false, true | false) => Some(Self::Realm),
            _ => None,
        }
    }

    /// See [`Realm::shared_from`].
    pub const fn shared_from(self, ipa_bits: u8) -> u64 {
        match self {
            Self::Plain => 0,
            Self::Protected | Self::Realm => 1 << (ipa_bits - 1),
        }
    }
}

/// What a realm is created as.
#[derive(Debug)]
pub struct Identity {
    /// [`RealmFlags`], of which a mode was made.
    pub flags: RealmFlags,
    /// That mode.
    pub mode: Mode,
    /// Its tag in TLBs.
    pub vmid: u16,
    /// The realm personalisation value.
    pub rpv: [u8; 64],
    /// A realm's, of its parameters.
    pub measured: Option<Measurements>,
}

/// The granules of a realm's root, one after another.
#[derive(Clone, Copy, Debug)]
pub struct Roots {
    /// PA of the first.
    pub base: u64,
    /// How many there are.
    pub count: u64,
}

/// The descriptor.
#[derive(Debug)]
#[repr(C)]
pub struct Realm {
    /// Accesses of its device that need not wait for the host. First: at the vector it
    /// takes no instruction to find.
    pub posted: Device,
    state: AtomicU8,
    /// What it is.
    pub mode: Mode,
    /// The host has its interrupts (HOST_LRS): EL2 models no GIC for it.
    pub host_lrs: bool,
    /// The realm personalisation value.
    pub rpv: [u8; 64],
    /// Of a realm: what it was made of, and has noted since.
    pub measured: MeasuredLock<Option<Measurements>>,
    /// Width of its IPA space.
    pub ipa_bits: u8,
    /// Where the half of its IPA space begins that it shares with the host, and where
    /// its devices stand: 0 for a plain guest, which has no other.
    pub shared_from: u64,
    /// Its tag in TLBs.
    pub vmid: u16,
    /// `VTTBR_EL2` while one of its RECs runs.
    pub vttbr: u64,
    /// `VTCR_EL2`.
    pub vtcr: u64,
    granule_shift: u32,
    /// The root's granules.
    pub roots: Roots,
    /// Its tables; `None` once they are retired.
    pub rtt: RealmLock<Option<Rtt<RttMem>>>,
    /// Its interrupts: those of the distributor here, a vCPU's in its REC.
    pub vgic: RealmLock<Distributor>,
    /// ID registers that it has read.
    pub shown: Shown,
    /// PAs of its RECs by index, 0 for none.
    recs: [AtomicU64; MAX_RECS],
    /// RECs ever created: the next index.
    pub created: AtomicU64,
    /// By PE: 1 + index of the REC that last ran there, 0 for none.
    last_on_pe: [AtomicU8; MAX_PES],
}

const _: () = assert!(size_of::<Realm>() <= 4096);

impl Realm {
    /// A realm in state NEW.
    pub fn new(identity: Identity, roots: Roots, rtt: Rtt<RttMem>) -> Self {
        let geometry = *rtt.geometry();
        let ipa_bits = geometry.ipa_bits();
        let mode = identity.mode;
        Self {
            posted: Device::without_page(),
            state: AtomicU8::new(State::New as u8),
            mode,
            host_lrs: !identity.flags.contains(RealmFlags::EL2_VGIC),
            rpv: identity.rpv,
            measured: MeasuredLock::new(identity.measured),
            ipa_bits,
            shared_from: mode.shared_from(ipa_bits),
            vmid: identity.vmid,
            vttbr: rtt.regs().vttbr,
            vtcr: geometry.vtcr(),
            granule_shift: geometry.span(Level::L3).trailing_zeros(),
            roots,
            rtt: RealmLock::new(Some(rtt)),
            vgic: RealmLock::new(Distributor::new()),
            shown: Shown::new(),
            recs: [const { AtomicU64::new(0) }; MAX_RECS],
            created: AtomicU64::new(0),
            last_on_pe: [const { AtomicU8::new(0) }; MAX_PES],
        }
    }

    /// The realm in the RD granule at `pa`.
    ///
    /// # Safety
    /// The granule is an RD and stays one for `'a`: its lock is held, or a REC
    /// of it exists.
    pub unsafe fn at<'a>(pa: u64) -> &'a Self {
        // SAFETY: an RD granule holds a `Realm`; what changes in it is atomic or
        // behind a lock.
        unsafe { &*phys::pointer::<Self>(pa) }
    }

    /// Its memory is no matter of the host's.
    pub fn is_confidential(&self) -> bool {
        self.shared_from != 0
    }

    /// An address of memory that the host cannot reach.
    pub fn is_protected(&self, ipa: u64) -> bool {
        ipa < self.shared_from
    }

    /// An address that a vCPU may begin at: of a confidential guest's own half.
    pub fn is_executable(&self, ipa: u64) -> bool {
        ipa >> self.ipa_bits == 0 && (!self.is_confidential() || self.is_protected(ipa))
    }

    /// What stands at an address, once whoever changes the tables is done; `None` outside
    /// of the realm, and at its end.
    pub fn entry(&self, ipa: u64) -> Option<RttState> {
        let rtt = self.rtt.lock();
        let entry = rtt.as_ref()?.find(Ipa::new(ipa)).ok()?;
        Some(entry.state)
    }

    /// RECs that it may have: by RMI 1.0 (DEN0137, B4.4.6) one less than the power of two,
    /// which one with EL2's vGIC, and so of Undercroft's own, has all of.
    pub fn most_recs(&self) -> usize {
        MAX_RECS - usize::from(self.host_lrs)
    }

    /// Bytes of a granule of EL2's, by which its tables map.
    pub fn granule(&self) -> u64 {
        1 << self.granule_shift
    }

    /// Its state.
    pub fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::New,
            1 => State::Active,
            _ => State::SystemOff,
        }
    }

    /// Changes its state.
    pub fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// PA of the REC with this index.
    pub fn rec(&self, index: usize) -> Option<u64> {
        let pa = instr::element(&self.recs, index)?.load(Ordering::Acquire);
        (pa != 0).then_some(pa)
    }

    /// Enters or removes (0) a REC. Under the RD's lock and, for a realm with
    /// EL2's vGIC, its `vgic` lock.
    pub fn set_rec(&self, index: usize, pa: u64) {
        self.recs[index].store(pa, Ordering::Release);
    }

    /// Notes that the REC runs on this PE; true when another of this realm ran
    /// there before, whose stage-1 entries have the same tags.
    pub fn runs_on(&self, pe: usize, index: usize) -> bool {
        let me = index as u8 + 1;
        self.last_on_pe[pe].swap(me, Ordering::Relaxed) != me
    }

    /// Calls the vGIC under its lock. `me`: the vCPU that makes the call, which needs no
    /// kick.
    #[inline(always)]
    pub fn with_vgic<R>(
        &self,
        me: Option<usize>,
        f: impl FnOnce(&mut Vgic<'_, Vcpus<'_>>) -> R,
    ) -> R {
        let mut dist = self.vgic.lock();
        let mut vcpus = self.vcpus(&mut dist, me);
        f(&mut Vgic::new(&mut dist, &mut vcpus))
    }

    /// The vCPUs, for a call of the vGIC, whose lock the caller holds. `me`: the
    /// vCPU that makes the call, which needs no kick.
    fn vcpus<'a>(&'a self, _lock: &mut Distributor, me: Option<usize>) -> Vcpus<'a> {
        Vcpus {
            realm: self,
            me,
            kicked: Kicked::default(),
        }
    }
}

/// The vCPUs of a realm while its `vgic` lock is held.
#[derive(Debug)]
pub struct Vcpus<'a> {
    realm: &'a Realm,
    me: Option<usize>,
    kicked: Kicked,
}

impl VcpuSet for Vcpus<'_> {
    fn count(&self) -> usize {
        self.realm.created.load(Ordering::Acquire) as usize
    }

    fn redistributor(&mut self, vcpu: usize) -> Option<&mut Redistributor> {
        let rec = self.realm.rec(vcpu)?;
        // SAFETY: a REC that the realm lists exists; it is unlisted under the
        // `vgic` lock, which the caller holds, before it goes. That lock also
        // guards the redistributor in it.
        unsafe { Some(&mut *Rec::at(rec).redistributor.get()) }
    }

    fn find(&mut self, affinity: Affinity) -> Option<usize> {
        let index = rmi::params::mpidr_index(affinity.to_mpidr())? as usize;
        (index < self.count() && self.realm.rec(index).is_some()).then_some(index)
    }

    fn kick(&mut self, vcpu: usize) {
        if self.me == Some(vcpu) || !self.kicked.is_first(vcpu) {
            return;
        }
        if let Some(rec) = self.realm.rec(vcpu) {
            // SAFETY: as `redistributor`; what a kick reads is atomic.
            kick(rec, unsafe { Rec::at(rec) });
        }
    }
}

/// Has the REC at `pa` look at its interrupts, which have just changed.
pub fn kick(pa: u64, rec: &Rec) {
    let me = affinity();
    let all = pe::all();
    let others = |pe: usize| all.get(pe).filter(|pe| pe.mpidr != me);
    if let Some(pe) = rec.kicks.changed(pa, |pe| others(pe).map(Pe::runs)) {
        gic::send_kick(all[pe].mpidr);
    }
}

/// Whether there is a realm whose memory is no matter of the host's, when EL2 dies.
pub fn any_is_confidential(granules: &Granules) -> bool {
    let mut any = false;
    granules.each(Spans::All, &[granule::State::Rd], |rd| {
        // SAFETY: the granule is an RD, and no call ends while EL2 dies.
        any |= unsafe { Realm::at(rd) }.is_confidential();
    });
    any
}

/// Reports, when EL2 dies, what guests have written that the host has not taken.
pub fn report_posted(granules: &Granules, log: &mut impl Write) {
    granules.each(Spans::All, &[granule::State::Rd], |rd| {
        // SAFETY: the granule is an RD, and no call ends while EL2 dies.
        let realm = unsafe { Realm::at(rd) };
        realm.posted.report(realm.vmid, log);
    });
}

/// Memory of a realm's tables: granules that the host gave, one RTT command at a
/// time; the count is the granule's.
#[derive(Clone, Copy, Debug)]
pub struct RttMem {
    /// Who owns each granule.
    pub granules: &'static Granules,
}

impl TableMem for RttMem {
    entries_in_ram!(exchange);

    fn alloc(&self, _level: Level) -> Option<Pa> {
        None
    }

    fn free(&self, _table: Pa, _level: Level, _proof: &Synced) {}

    fn count(&self, table: Pa) -> u32 {
        let granule = self.granules.get(table.get());
        granule.map_or(0, GranuleWord::count)
    }

    fn add_count(&self, table: Pa, by: i32) {
        if let Some(granule) = self.granules.get(table.get()) {
            granule.add(by);
        }
    }
}

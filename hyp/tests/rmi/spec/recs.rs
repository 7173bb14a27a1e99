//! vCPUs: made, ended, answered.

use super::realms::Life;
use super::{Content, Memory, NOTHING, Outcome, Spec, State, Status, ask, one};

/// What a vCPU waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    Nothing,
    /// The answer to an access that the host can emulate: whether it writes, and the
    /// register.
    Access(bool, usize),
    /// The answer to one that it cannot.
    Abort,
    /// PSCI_COMPLETE of a CPU_ON: the other vCPU's index, where it begins, its X0.
    CpuOn(u64, u64, u64),
    /// PSCI_COMPLETE of an AFFINITY_INFO.
    AffinityInfo(u64),
    /// The host's changes of what a realm was told of addresses.
    Ripas {
        /// How far they have come, and how far they may.
        reached: u64,
        top: u64,
        /// What the guest named: base and top.
        asked: (u64, u64),
        /// They become RAM; or EMPTY.
        ram: bool,
        /// What was destroyed, too.
        destroyed: bool,
    },
    /// The host's registers, by the structure at this address.
    HostCall(u64),
}

/// A vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Rec {
    pub rd: u64,
    pub index: u64,
    pub runnable: bool,
    pub pending: Pending,
    /// The host asked for an exit.
    pub kicked: bool,
    pub pc: u64,
    /// X0 to X30.
    pub x: [u64; 31],
    /// The last exception that it was made to take: its class, and where.
    pub taken: (u64, u64),
}

/// vCPUs of a realm, at most.
const MOST: u64 = 64;
/// Granules that may be named in addition to a vCPU's own.
const MOST_AUX: u64 = 16;

/// The index of an MPIDR: Aff3, Aff2, Aff1 and four bits of Aff0 (A2.3.3).
fn index_of(mpidr: u64) -> Option<u64> {
    let fields = 0xff_00ff_ff0f;
    let index = mpidr & 0xf
        | (mpidr >> 8 & 0xff) << 4
        | (mpidr >> 16 & 0xff) << 12
        | (mpidr >> 32 & 0xff) << 20;
    (mpidr & !fields == 0).then_some(index)
}

/// The MPIDR of an index.
pub fn mpidr_of(index: u64) -> u64 {
    index & 0xf | (index >> 4 & 0xff) << 8 | (index >> 12 & 0xff) << 16 | (index >> 20 & 0xff) << 32
}

impl Spec {
    fn rec(&self, pa: u64) -> Result<&Rec, Status> {
        self.recs.get(&pa).ok_or(Status::Input)
    }

    /// RMI_REC_AUX_COUNT: Undercroft needs none.
    pub(super) fn rec_aux_count(&mut self, rd: u64) -> Outcome {
        self.realm(rd)?;
        Ok(one(0))
    }

    /// RMI_REC_CREATE.
    pub(super) fn rec_create(
        &mut self,
        rd: u64,
        rec: u64,
        params: u64,
        memory: Memory<'_>,
    ) -> Outcome {
        ask(self.is(params, State::Ns), Status::Input)?;
        let word = |offset| memory(params + offset);
        let (flags, mpidr, pc, aux) = (word(0), word(0x100), word(0x200), word(0x800));
        ask(flags & !1 == 0 && aux <= MOST_AUX, Status::Input)?;
        ask(self.is(rec, State::Delegated), Status::Input)?;
        let realm = self.realm(rd)?;
        ask(realm.life == Life::New, Status::Realm(0))?;
        ask(realm.made < MOST, Status::Realm(0))?;
        ask(index_of(mpidr) == Some(realm.made), Status::Input)?;
        ask(aux == 0, Status::Input)?;
        let index = realm.made;
        let mut x = [0; 31];
        for (x, at) in x.iter_mut().zip((0x300..0x340).step_by(8)) {
            *x = word(at);
        }
        let realm = self.realm_mut(rd)?;
        realm.made += 1;
        if let Some(measured) = &mut realm.measured
            && flags & 1 != 0
        {
            measured.rec(flags, pc, &x[..8]);
        }
        self.becomes(rec, State::Rec, Content::Other);
        let made = Rec {
            rd,
            index,
            runnable: flags & 1 != 0,
            pending: Pending::Nothing,
            kicked: false,
            pc,
            x,
            taken: (0, 0),
        };
        self.recs.insert(rec, made);
        Ok(NOTHING)
    }

    /// RMI_REC_DESTROY of one that does not run.
    pub(super) fn rec_destroy(&mut self, rec: u64) -> Outcome {
        self.rec(rec)?;
        self.recs.remove(&rec);
        self.becomes(rec, State::Delegated, Content::ZERO);
        Ok(NOTHING)
    }

    /// RMI_PSCI_COMPLETE. Only a CPU_ON of a vCPU that is off can be denied.
    pub(super) fn psci_complete(&mut self, calling: u64, target: u64, status: i64) -> Outcome {
        const SUCCESS: i64 = 0;
        const DENIED: i64 = -3;
        const ALREADY_ON: i64 = -4;
        ask(calling != target, Status::Input)?;
        let (caller, other) = (*self.rec(calling)?, *self.rec(target)?);
        ask(caller.rd == other.rd, Status::Input)?;
        let is_on = other.runnable;
        let mut begins = None;
        let told = match (caller.pending, status) {
            (Pending::CpuOn(index, ..), SUCCESS) if index == other.index && is_on => ALREADY_ON,
            (Pending::CpuOn(index, pc, x0), SUCCESS) if index == other.index => {
                begins = Some((pc, x0));
                SUCCESS
            }
            (Pending::CpuOn(index, ..), DENIED) if index == other.index && !is_on => DENIED,
            (Pending::AffinityInfo(index), SUCCESS) if index == other.index => i64::from(!is_on),
            _ => return Err(Status::Input.into()),
        };
        self.recs.entry(calling).and_modify(|rec| {
            rec.pending = Pending::Nothing;
            rec.x[..4].copy_from_slice(&[told as u64, 0, 0, 0]);
        });
        if let Some((pc, x0)) = begins {
            self.recs.entry(target).and_modify(|rec| {
                rec.runnable = true;
                rec.pending = Pending::Nothing;
                rec.pc = pc;
                rec.x = [0; 31];
                rec.x[0] = x0;
                rec.taken = (0, 0);
            });
        }
        Ok(NOTHING)
    }

    /// KICK: it comes out before it does anything else.
    pub(super) fn kick(&mut self, rec: u64) -> Outcome {
        self.rec(rec)?;
        self.recs.entry(rec).and_modify(|rec| rec.kicked = true);
        Ok(NOTHING)
    }
}

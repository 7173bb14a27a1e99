//! What all PEs share: built once by boot, then handed to who needs it.

use arm64::instr;
use attest::{Attester, Generator};
use log::{info, warn};
use spin::Once;
use spin::mutex::SpinMutex;

use crate::cpu::Shared;
use crate::cpu::gic::Frames;
use crate::errata::InForce;
use crate::features::{Features, IdRegisters, Unfit};
use crate::idregs::Common;
use crate::measure::Sha256;
use crate::memory::granule::Granules;
use crate::memory::host::HostMemory;
use crate::memory::region::{Region, Regions};
use crate::memory::residue;
use crate::speculation::{Defence, Speculation, Steps};
use crate::vmid::Vmids;

/// Everything that all PEs share, complete before a lower level runs.
#[derive(Debug)]
pub struct System {
    /// The CPUs' features: those of the boot PE, which the others must share.
    pub features: Features,
    /// Errata of the CPUs that have come.
    pub errata: &'static InForce,
    /// What guests are told of them.
    pub common: Common,
    /// Random numbers of everybody's, on a machine that has a source of entropy.
    pub random: Option<SpinMutex<Generator>>,
    /// What runs at EL2, its variables aside: it is measured.
    pub code: &'static [u8],
    /// See [`Self::attester`].
    pub attester: Once<Attester>,
    /// The interrupt controller.
    pub gic: &'static Frames,
    /// The granule of every table.
    pub granule: pgtable::Granule,
    /// Who owns each granule of RAM.
    pub granules: Granules,
    /// The host's stage 2.
    pub host: HostMemory,
    /// RAM that is EL2's own: image and working memory.
    pub own: [Region; 2],
    /// RAM that neither EL2 nor the host touches.
    pub withheld: &'static Regions,
    /// Where the host's image was placed.
    pub host_image: Region,
    /// VMIDs in use.
    pub vmids: Vmids,
    /// The firmware was asked to clear RAM after a reset.
    pub protection_asked: Once<()>,
}

/// Random numbers, which cannot be computed from what is in RAM afterwards.
pub fn words<const N: usize>(random: &SpinMutex<Generator>) -> [u64; N] {
    residue::leaving_none::<{ residue::OF_RANDOM_NUMBERS }, _>(|| random.lock().words())
}

static SYSTEM: Once<System> = Once::new();

impl System {
    /// What each PE needs of it.
    pub fn shared(&'static self) -> Shared {
        Shared {
            features: &self.features,
            errata: self.errata,
            common: &self.common,
            random: self.random.as_ref(),
            attester: self.attester(),
            frames: self.gic,
            host_stage2: self.host.regs(),
        }
    }

    /// Who signs realms' tokens, on a machine that has random numbers. The first call
    /// makes its keys.
    pub fn attester(&self) -> Option<&Attester> {
        let random = self.random.as_ref()?;
        let new = || Attester::new::<Sha256>(&mut random.lock(), self.code);
        Some(self.attester.call_once(new))
    }

    /// Leaves no key in RAM.
    ///
    /// # Safety
    /// The machine ends: nobody signs any more.
    pub unsafe fn forget_keys(&self) {
        if self.attester.is_completed() {
            let (keys, size) = (self.attester.as_mut_ptr(), size_of::<Attester>() as u64);
            // SAFETY: it was made, and by the caller's promise nobody uses it.
            unsafe { keys.write_bytes(0, 1) };
            instr::clean_invalidate(keys as u64, size, self.features.dcache_line);
        }
    }

    /// Takes in the CPU that calls, with these registers, before it runs a lower
    /// level: what its vectors do. `firmware` is SMCCC_ARCH_FEATURES.
    ///
    /// # Errors
    /// Why it must stay off.
    pub fn admit(&self, cpu: &IdRegisters, firmware: impl Fn(u32) -> i64) -> Result<Steps, Unfit> {
        let features = Features::of(cpu);
        if let Some(why) = features.unfit_for(&self.features) {
            return Err(why);
        }
        let stand = Speculation::of(cpu, firmware);
        let news = self.common.add(stand)?;
        if news && stand.v2.min(stand.bhb) == Defence::None {
            warn!("cpu: {stand}");
        } else if news {
            info!("cpu: {stand}");
        }
        self.errata.add(features.midr, |erratum| info!("{erratum}"));
        Ok(if features.ras {
            stand.steps
        } else {
            stand.steps.and(Steps::WITHOUT_RAS)
        })
    }

    /// Keeps it for the PEs that start later, and for a report of EL2's death.
    pub fn install(self) -> &'static Self {
        SYSTEM.call_once(|| self)
    }

    /// The one that was installed. Of use only where nothing hands it on: where a
    /// PE starts, and in a panic.
    pub fn installed() -> Option<&'static Self> {
        SYSTEM.get()
    }
}

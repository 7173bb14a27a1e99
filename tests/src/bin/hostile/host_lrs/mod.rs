//! Realms of RMI 1.0's own mode: this host has a GICv3 for them ([`gic`]), and fills the
//! list registers.
//!
//! Two vCPUs send each other bursts of SGIs, and wait until each is taken; both timers
//! fire and two SPIs come meanwhile. What the guest counted is what this host's GIC has
//! sent, by one list register and by all, whether an active interrupt keeps its own or is
//! counted at its end. With two CPUs each runs a vCPU; with one they take turns.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

use arm64::regs::{CNTFRQ_EL0, ICC_SGI1R_EL1};
use arm64::syndrome::Syndrome;
use arm64::sysreg::Sysreg;
use rmi::params::{RealmParams, RecParams};
use rmi::run::{EnterFlags, ExitReason, RecEnter, RecExit, RecRun};
use rmi::vendor::{GICD_IPA, Vendor};
use rmi::{Command, fid};
use tests::bare::asm::{read32, read64, write8, write32, write64};
use tests::bare::console::Console;
use tests::bare::{cpu, gic as own};
use tests::suite::Suite;
use vgic::{hcr, lr};

use crate::calls::{INPUT, REC, SUCCESS, ask, granule, status};
use crate::granules::{delegate, fill, is_zero, undelegate};
use crate::realm::{IPA_BITS, span, start_level, table, write_params, write_rec};
use crate::tiny::{RAM, Tiny};

mod gic;

use gic::{EDGE_SPI, Gic, INTIDS, LEVEL_SPI, PHYSICAL_TIMER, Use, VCPUS, VIRTUAL_TIMER};

global_asm!(include_str!("payload.s"), INTIDS = const INTIDS);

unsafe extern "C" {
    static host_lrs_code: u8;
}

/// Where the half begins that the host shares, and a device in it.
const SHARED: u64 = 1 << (IPA_BITS - 1);
const DEVICE: u64 = SHARED | 0x0900_0000;
/// Bursts of 16 SGIs that each vCPU sends: 10,000 of both.
const ROUNDS: u64 = 313;
/// Interrupts of each timer at the least.
const TICKS: u64 = 300;
/// An SPI is raised at each so many exits.
const EDGE_EACH: u64 = 64;
const LEVEL_EACH: u64 = 48;
/// Interrupts of each SPI at the least.
const SPIS: u64 = 20;
/// This host's own interrupt: a vCPU of that CPU has got one.
const NEWS: u32 = 1;

/// What a vCPU has told, and how it came out.
#[derive(Clone, Copy, Debug)]
struct Told {
    counts: [u64; INTIDS],
    uncaused: u64,
    sent: u64,
    /// What ended it, if not its own last call: a status, a syndrome, a reason.
    fault: Option<(&'static str, u64)>,
    closing: bool,
    done: bool,
    /// The answer to its access, which waits.
    answer: Option<u64>,
    exits: u64,
    interrupts: u64,
    maintenance: u64,
    vmcr: u64,
}

impl Told {
    const NONE: Self = Self {
        counts: [0; INTIDS],
        uncaused: 0,
        sent: 0,
        fault: None,
        closing: false,
        done: false,
        answer: None,
        exits: 0,
        interrupts: 0,
        maintenance: 0,
        vmcr: 0,
    };
}

/// How it is run.
#[derive(Clone, Copy, Debug)]
struct Mode {
    by: Use,
    flags: EnterFlags,
}

/// The host of a realm.
struct Host {
    mode: Mode,
    gic: Gic,
    told: [Told; VCPUS],
    started: u64,
}

struct Locked {
    taken: AtomicBool,
    host: UnsafeCell<Host>,
}

// SAFETY: `with` alone reaches what is inside, one CPU at a time.
unsafe impl Sync for Locked {}

static HOST: Locked = Locked {
    taken: AtomicBool::new(false),
    host: UnsafeCell::new(Host::new(Mode {
        by: Use {
            lists: 1,
            evicts: false,
        },
        flags: EnterFlags::empty(),
    })),
};

fn with<R>(f: impl FnOnce(&mut Host) -> R) -> R {
    while HOST.taken.swap(true, Ordering::Acquire) {
        core::hint::spin_loop();
    }
    // SAFETY: this CPU alone has taken it.
    let result = f(unsafe { &mut *HOST.host.get() });
    HOST.taken.store(false, Ordering::Release);
    result
}

/// An exit's fields.
#[derive(Clone, Copy, Debug)]
struct Exit {
    reason: u64,
    esr: u64,
    ipa: u64,
    value: u64,
    hcr: u64,
    lrs: [u64; 16],
    misr: u64,
    vmcr: u64,
    cntp_ctl: u64,
    cntv_ctl: u64,
}

impl Exit {
    fn read(run: u64) -> Self {
        // SAFETY: the run page is the host's.
        let word =
            |offset: usize| unsafe { read64(run + (offset_of!(RecRun, exit) + offset) as u64) };
        let far = word(offset_of!(RecExit, far)) & 0xfff;
        Self {
            reason: word(offset_of!(RecExit, exit_reason)),
            esr: word(offset_of!(RecExit, esr)),
            ipa: word(offset_of!(RecExit, hpfar)) >> 4 << 12 | far,
            value: word(offset_of!(RecExit, gprs)),
            hcr: word(offset_of!(RecExit, gicv3_hcr)),
            lrs: core::array::from_fn(|n| word(offset_of!(RecExit, gicv3_lrs) + 8 * n)),
            misr: word(offset_of!(RecExit, gicv3_misr)),
            vmcr: word(offset_of!(RecExit, gicv3_vmcr)),
            cntp_ctl: word(offset_of!(RecExit, cntp_ctl)),
            cntv_ctl: word(offset_of!(RecExit, cntv_ctl)),
        }
    }
}

impl Host {
    const fn new(mode: Mode) -> Self {
        Self {
            mode,
            gic: Gic::new(mode.by),
            told: [Told::NONE; VCPUS],
            started: 0,
        }
    }

    /// Takes an exit of a vCPU; the vCPU that has got news by it.
    fn take(&mut self, vcpu: usize, exit: &Exit) -> Option<usize> {
        self.gic.fold(vcpu, exit.hcr, &exit.lrs);
        // ENABLE and ISTATUS are set, IMASK is not.
        let asserts = |ctl: u64| ctl & 0b111 == 0b101;
        let line = |gic: &mut Gic, timer, ctl| gic.line(vcpu, timer, asserts(ctl));
        line(&mut self.gic, VIRTUAL_TIMER, exit.cntv_ctl);
        line(&mut self.gic, PHYSICAL_TIMER, exit.cntp_ctl);
        let told = &mut self.told[vcpu];
        told.exits += 1;
        told.maintenance += u64::from(exit.misr != 0);
        told.vmcr = exit.vmcr;
        match ExitReason::from_raw(exit.reason) {
            Some(ExitReason::Irq) => told.interrupts += 1,
            Some(ExitReason::Psci) if exit.value == u64::from(fid::PSCI_CPU_OFF) => {
                told.done = true;
            }
            Some(ExitReason::Sync) if exit.esr >> 26 == 0x01 => {}
            Some(ExitReason::Sync) if exit.esr >> 26 == 0x18 => return self.sgi(vcpu, exit),
            Some(ExitReason::Sync) if exit.esr >> 26 == 0x24 => self.access(vcpu, exit),
            _ => told.fault = Some(("exit", exit.reason << 32 | exit.esr)),
        }
        self.raise(vcpu);
        None
    }

    /// SPIs come with the exits of the vCPU that has them: what it has not taken yet is
    /// known then.
    fn raise(&mut self, vcpu: usize) {
        let (exits, gic) = (self.told[vcpu].exits, &mut self.gic);
        if self.told[vcpu].closing {
            return;
        }
        if exits.is_multiple_of(EDGE_EACH)
            && gic.is_routed(EDGE_SPI, vcpu)
            && !gic.is_pending(vcpu, EDGE_SPI)
        {
            gic.event(vcpu, EDGE_SPI);
        }
        if exits.is_multiple_of(LEVEL_EACH) && gic.is_routed(LEVEL_SPI, vcpu) {
            gic.line(vcpu, LEVEL_SPI, true);
        }
    }

    fn sgi(&mut self, from: usize, exit: &Exit) -> Option<usize> {
        let esr = Syndrome(exit.esr);
        let (to, intid) = (exit.value & 0xffff, exit.value >> 24 & 0xf);
        let right = Sysreg::of(esr) == ICC_SGI1R_EL1::ENCODING
            && !esr.sysreg_is_read()
            && esr.sysreg_rt() == 9
            && to == 1 << (1 - from)
            && self.gic.event(1 - from, intid as usize);
        if !right {
            self.told[from].fault = Some(("SGI", exit.value));
        }
        Some(1 - from)
    }

    fn access(&mut self, vcpu: usize, exit: &Exit) {
        let write = (exit.esr >> 6 & 1 != 0).then_some(exit.value);
        let told = &mut self.told[vcpu];
        let offset = exit.ipa.wrapping_sub(DEVICE);
        let value = match (offset, write) {
            (0x08, Some(_)) => {
                self.gic.line(vcpu, LEVEL_SPI, false);
                0
            }
            (0x20, Some(_)) => {
                told.closing = true;
                0
            }
            (0x28, None) => self.gic.vcpus[vcpu].is_quiet().into(),
            (0x30, None) => 0,
            (0x40, Some(value)) => {
                told.uncaused = value;
                0
            }
            (0x48, Some(value)) => {
                told.sent = value;
                0
            }
            (0x100..0x800, Some(value)) => {
                told.counts[(offset as usize - 0x100) / 8 % INTIDS] = value;
                0
            }
            _ if exit.ipa.wrapping_sub(SHARED | GICD_IPA) < 0x100_0000 => {
                self.gic.access(exit.ipa - (SHARED | GICD_IPA), write)
            }
            _ => {
                told.fault = Some(("access", exit.ipa));
                0
            }
        };
        told.answer = Some(value);
    }

    /// Whether a vCPU is to go on.
    fn goes_on(&mut self, vcpu: usize) -> bool {
        let late = cpu::now() - self.started > cpu::PATIENCE * CNTFRQ_EL0.get().max(1 << 20);
        if late && self.told.iter().any(|told| !told.done) {
            self.told[vcpu].fault = Some(("late", 0));
        }
        self.told.iter().all(|told| told.fault.is_none()) && !self.told[vcpu].done
    }
}

/// The realm: code, and a granule of zeros.
struct Realm(Tiny);

impl Realm {
    fn existing() -> Self {
        Self(Tiny::existing(0, 3 * granule(), VCPUS as u64))
    }

    fn memory(&self) -> [u64; 3] {
        [0, 1, 2].map(|n| self.0.memory(n * granule()))
    }

    /// `None` when a call fails.
    fn build() -> Option<Self> {
        let this = Self::existing();
        let (rd, params) = (this.0.rd(), this.0.params());
        let [own, zeros, source] = this.memory();
        write_params(params, this.0.root(), 90);
        // SAFETY: a granule of this host's.
        unsafe {
            write64(params + offset_of!(RealmParams, flags) as u64, 0);
            write8(params + offset_of!(RealmParams, num_bps) as u64, 1);
            write8(params + offset_of!(RealmParams, num_wps) as u64, 1);
        }
        let mut right = this.of_el2().all(|pa| delegate(pa) == SUCCESS);
        right &= status(Command::RealmCreate { rd, params }) == SUCCESS;
        for level in start_level() + 1..=3 {
            let base = RAM & !(span(level - 1) - 1);
            right &= table(rd, this.table(level), base, level) == SUCCESS;
        }
        let (base, top) = (RAM, RAM + 2 * granule());
        right &= ask(Command::RttInitRipas { rd, base, top })[..2] == [SUCCESS, top];
        fill(source, 0);
        let code = (&raw const host_lrs_code).addr() as u64;
        for offset in (0..4096).step_by(4) {
            // SAFETY: the program's code, and a granule of this host's.
            unsafe { write32(source + offset, read32(code + offset)) };
        }
        right &= status(Command::DataCreate {
            rd,
            data: own,
            ipa: RAM,
            src: source,
            flags: 0,
        }) == SUCCESS;
        right &= status(Command::DataCreateUnknown {
            rd,
            data: zeros,
            ipa: RAM + granule(),
        }) == SUCCESS;
        for vcpu in 0..VCPUS as u64 {
            write_rec(params, vcpu, true, RAM, vcpu);
            let words = [RAM + granule(), DEVICE, ROUNDS, TICKS];
            for (n, word) in (1..).zip(words) {
                let to = params + (offset_of!(RecParams, gprs) + 8 * n) as u64;
                // SAFETY: inside the page.
                unsafe { write64(to, word) };
            }
            fill(this.0.run(vcpu), 0);
            let rec = this.0.rec(vcpu);
            right &= status(Command::RecCreate { rd, rec, params }) == SUCCESS;
        }
        (right && this.0.activate()).then_some(this)
    }

    fn table(&self, level: i64) -> u64 {
        self.0.granule(8 + level as u64)
    }

    /// The granules of the realm's own, or EL2's for it.
    fn of_el2(&self) -> impl Iterator<Item = u64> {
        let [own, zeros, _] = self.memory();
        let recs = [0, 1].map(|vcpu| self.0.rec(vcpu));
        let tables = (start_level() + 1..=3).map(|level| self.table(level));
        [self.0.rd(), self.0.root(), own, zeros]
            .into_iter()
            .chain(recs)
            .chain(tables)
    }

    /// `REC_ENTER` of a vCPU with all that is told.
    fn enter(&self, vcpu: usize, flags: EnterFlags, value: u64, gic: (u64, [u64; 16])) -> u64 {
        let run = self.0.run(vcpu as u64);
        let put = |offset: usize, value: u64| {
            // SAFETY: the run page is the host's.
            unsafe { write64(run + offset as u64, value) };
        };
        put(offset_of!(RecEnter, flags), flags.bits());
        put(offset_of!(RecEnter, gprs), value);
        put(offset_of!(RecEnter, gicv3_hcr), gic.0);
        for (n, lr) in gic.1.into_iter().enumerate() {
            put(offset_of!(RecEnter, gicv3_lrs) + 8 * n, lr);
        }
        let rec = self.0.rec(vcpu as u64);
        status(Command::RecEnter { rec, run })
    }

    /// One turn of a vCPU.
    fn turn(&self, vcpu: usize) {
        let (mut flags, answer, gic) = with(|host| {
            let answer = host.told[vcpu].answer.take();
            (host.mode.flags, answer, host.gic.fill(vcpu))
        });
        if answer.is_some() {
            flags |= EnterFlags::EMUL_MMIO;
        }
        let status = self.enter(vcpu, flags, answer.unwrap_or(0), gic);
        if status != SUCCESS {
            with(|host| host.told[vcpu].fault = Some(("REC_ENTER", status)));
            return;
        }
        let exit = Exit::read(self.0.run(vcpu as u64));
        if exit.reason == ExitReason::Irq as u64 {
            // Before what they tell of is looked at.
            while own::acknowledge_and_end() != own::NOTHING {}
        }
        let news = with(|host| host.take(vcpu, &exit));
        if let Some(other) = news.filter(|other| *other < cpu::count()) {
            own::send_sgi(NEWS, other);
        }
    }

    /// Takes it apart; whether all came back, and zero.
    fn destroy(self) -> bool {
        let rd = self.0.rd();
        let mut right = true;
        for vcpu in 0..VCPUS as u64 {
            let rec = self.0.rec(vcpu);
            right &= status(Command::RecDestroy { rec }) == SUCCESS;
        }
        for ipa in [RAM, RAM + granule()] {
            right &= ask(Command::DataDestroy { rd, ipa })[0] == SUCCESS;
        }
        for level in (start_level() + 1..=3).rev() {
            let ipa = RAM & !(span(level - 1) - 1);
            right &= status(Command::RttDestroy { rd, ipa, level }) == SUCCESS;
        }
        right &= status(Command::RealmDestroy { rd }) == SUCCESS;
        self.of_el2().fold(right, |right, pa| {
            right & (undelegate(pa) == SUCCESS && is_zero(pa))
        })
    }
}

/// This CPU's GIC, for the host's own interrupt.
fn ready() {
    own::start_cpu();
    own::enable(NEWS, 0x80);
}

/// Runs vCPU 1 on this CPU.
fn beside() {
    ready();
    let realm = Realm::existing();
    while with(|host| host.goes_on(1)) {
        realm.turn(1);
    }
    own::disable(NEWS);
}

/// Runs both to their end.
fn run(realm: &Realm) -> bool {
    let both = cpu::count() > 1;
    let started = both && cpu::start(1, beside) == 0;
    let mine = if both { 0..1 } else { 0..VCPUS };
    loop {
        let mut goes_on = false;
        for vcpu in mine.clone() {
            if with(|host| host.goes_on(vcpu)) {
                realm.turn(vcpu);
                goes_on = true;
            }
        }
        if !goes_on {
            break;
        }
    }
    started == both && (!both || cpu::wait_off(1))
}

/// The checks.
pub fn checks(suite: &mut Suite<Console>) {
    own::start_distributor();
    ready();
    let features = ask(Command::Features { index: 0 })[1];
    let all = (features >> 34 & 0xf) as usize + 1;
    suite.check("host-lrs/list-registers", all >= 4, all);
    let (none, waits) = (EnterFlags::empty(), EnterFlags::TRAP_WFI);
    // With one CPU, a vCPU that waits must come out for the other.
    let alone = cpu::count() == 1;
    for (lists, evicts, flags) in [
        (1, false, none),
        (1, true, waits),
        (4, false, none),
        (4, false, waits | EnterFlags::TRAP_WFE),
    ] {
        let flags = if alone { flags | waits } else { flags };
        let by = Use { lists, evicts };
        whole(suite, Mode { by, flags });
    }
    own::disable(NEWS);
}

/// A realm from first to last.
fn whole(suite: &mut Suite<Console>, mode: Mode) {
    let Some(realm) = Realm::build() else {
        suite.check("host-lrs/build", false, "a call fails");
        return;
    };
    refusals(suite, &realm);
    with(|host| {
        *host = Host::new(mode);
        host.started = cpu::now();
    });
    let ran = run(&realm);
    // Nobody else has it any more.
    let (gic, told) = with(|host| (host.gic.vcpus, host.told));
    for (vcpu, (gic, told)) in gic.iter().zip(&told).enumerate() {
        verdict(
            suite,
            &Seen {
                mode,
                vcpu,
                gic,
                told,
            },
        );
    }
    tests::println!(
        "host-lrs: {mode:?}: {:?} exits, {:?} IRQ, {:?} maintenance, {:?} EOIs counted",
        told.map(|told| told.exits),
        told.map(|told| told.interrupts),
        told.map(|told| told.maintenance),
        gic.map(|gic| gic.counted),
    );
    suite.check("host-lrs/ran", ran, "CPU 1 was not on, or stays on");
    suite.check("host-lrs/gone", realm.destroy(), "not all came back");
}

/// What hardware must not get, and what is of EL2's vGIC.
fn refusals(suite: &mut Suite<Console>, realm: &Realm) {
    let none = EnterFlags::empty();
    let with = |first: u64, second: u64| {
        let mut lrs = [0; 16];
        (lrs[0], lrs[1]) = (first, second);
        lrs
    };
    let pending = lr::PENDING | lr::GROUP1 | 40;
    for (name, bits, lrs) in [
        ("host-lrs/hcr-en", hcr::EN, with(0, 0)),
        ("host-lrs/hcr-eoi-count", 1 << 27, with(0, 0)),
        ("host-lrs/lr-hw", 0, with(pending | lr::HW, 0)),
        ("host-lrs/lr-twice", 0, with(pending, pending)),
        ("host-lrs/lr-intid", 0, with(0, lr::PENDING | 1020)),
    ] {
        suite.equal(name, realm.enter(0, none, 0, (bits, lrs)), REC);
    }
    let (rd, rec) = (realm.0.rd(), realm.0.rec(0));
    let spi = Vendor::SetSpi {
        rd,
        intid: 40,
        level: 1,
    };
    suite.equal("host-lrs/no-set-spi", status(spi), INPUT);
    let pending = Vendor::RecPending { rec };
    suite.equal("host-lrs/no-rec-pending", status(pending), INPUT);
}

/// A vCPU at its end.
struct Seen<'a> {
    mode: Mode,
    vcpu: usize,
    gic: &'a gic::Vcpu,
    told: &'a Told,
}

impl fmt::Display for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            mode,
            vcpu,
            gic,
            told,
        } = self;
        let Told {
            fault,
            sent,
            uncaused,
            exits,
            interrupts,
            maintenance,
            ..
        } = told;
        write!(
            f,
            "{mode:?} vCPU {vcpu}: fault {fault:x?}, {sent} sent, {uncaused} without cause, "
        )?;
        write!(
            f,
            "{exits} exits, {interrupts} IRQ, {maintenance} maintenance; {gic}; counted:"
        )?;
        for (intid, count) in told
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count != 0)
        {
            write!(f, " {intid}: {count}")?;
        }
        Ok(())
    }
}

fn verdict(suite: &mut Suite<Console>, seen: &Seen<'_>) {
    let Seen { gic, told, .. } = seen;
    let done = told.done && told.fault.is_none();
    suite.check("host-lrs/ends", done, seen);
    let sgis = told.sent == 16 * ROUNDS
        && (0..16).all(|id| [told.counts, gic.raised, gic.taken].map(|all| all[id]) == [ROUNDS; 3]);
    suite.check("host-lrs/each-sgi-once", sgis, seen);
    let spi = [EDGE_SPI, LEVEL_SPI][seen.vcpu];
    let spis = told.counts[spi] >= SPIS && told.counts[spi] == gic.raised[spi];
    suite.check("host-lrs/each-spi-once", spis, seen);
    let timers = [VIRTUAL_TIMER, PHYSICAL_TIMER];
    let ticks = timers.iter().all(|timer| told.counts[*timer] >= TICKS);
    suite.check("host-lrs/timers", ticks && told.uncaused == 0, seen);
    suite.check("host-lrs/as-sent", told.counts == gic.taken, seen);
    suite.check("host-lrs/as-they-stand", gic.wrong == 0, seen);
    // Maintenance comes, and the group and the mask are the guest's.
    let interface = told.maintenance > 0 && told.vmcr & 2 != 0 && told.vmcr >> 24 & 0xf0 == 0xf0;
    suite.check("host-lrs/interface", interface, seen);
    let counted = (gic.counted > 0) == seen.mode.by.evicts;
    suite.check("host-lrs/counted-eois", counted, seen);
}

//! A million operations are judged in seconds, so that they can be in CI.
//!
//! The operations are those of a plain table library, written out as events:
//! map a page, unmap and flush one page, protect, sweep a whole table away.

use mmu_model::{Event, EventKind, Features, Machine, Reg, TlbiKind, TlbiOp};

const ROOT: u64 = 0x8000_0000;
const L2: u64 = 0x8001_0000;
const L3: u64 = 0x8100_0000;
const TABLES: u64 = 64;

struct Driver {
    machine: Machine,
    events: u64,
}

impl Driver {
    fn on(&mut self, kind: EventKind) {
        self.events += 1;
        let event = Event { pe: 0, kind };
        if let Err(v) = self.machine.on(event) {
            panic!("{v}\n{event}");
        }
    }

    fn tlbi(&mut self, kind: TlbiKind, xt: u64) {
        let op = TlbiOp::is(kind);
        self.on(EventKind::Tlbi { op, xt });
    }

    fn flush(&mut self, kind: TlbiKind, xt: u64) {
        self.on(EventKind::DSB_ISHST);
        self.tlbi(kind, xt);
        self.on(EventKind::DSB_ISH);
        self.tlbi(TlbiKind::Vmalle1, 0);
        self.on(EventKind::DSB_ISH);
        self.on(EventKind::ISB);
    }

    fn alloc(&mut self, pa: u64, len: u64) {
        let zeroed = true;
        self.on(EventKind::Alloc { pa, len, zeroed });
    }

    fn link(&mut self, n: u64) {
        self.alloc(L3 + n * 4096, 4096);
        let value = (L3 + n * 4096) | 3;
        let how = mmu_model::How::Release;
        let pa = L2 + n * 8;
        self.on(EventKind::Store { pa, value, how });
    }
}

fn start() -> Driver {
    let mut d = Driver {
        machine: Machine::new(Features::max(), 2),
        events: 0,
    };
    d.alloc(ROOT, 8192);
    d.on(EventKind::DSB_ISHST);
    let setup = [(Reg::Vtcr, 0x8005_3558), (Reg::Vttbr, 1 << 48 | ROOT)];
    for (reg, value) in setup {
        d.on(EventKind::Write { reg, value });
    }
    d.on(EventKind::ISB);
    d.alloc(L2, 4096);
    d.on(EventKind::DSB_ISHST);
    d.on(EventKind::store(ROOT, L2 | 3));
    for n in 0..TABLES {
        d.link(n);
    }
    d.on(EventKind::DSB_ISHST);
    d
}

#[test]
fn a_million_operations() {
    let mut d = start();
    let mut seed = 1u64;
    let began = std::time::Instant::now();
    let mut operations = 0u64;
    while operations < 1_000_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let page = (seed >> 33) % (TABLES * 512);
        let pa = L3 + page * 8;
        let word = d.machine.mem().load(pa);
        operations += 1;
        match (seed >> 24) % 64 {
            // A whole table goes, its pages with it, and comes back empty.
            0 => {
                let n = page / 512;
                d.on(EventKind::store(L2 + n * 8, 0));
                // 512 pages: SCALE 1, NUM 7.
                d.flush(TlbiKind::Ripas2e1, 0x5380_0000_0000 | n << 9);
                let pa = L3 + n * 4096;
                d.on(EventKind::Free { pa, len: 4096 });
                d.link(n);
                d.on(EventKind::DSB_ISHST);
            }
            // Sixteen pages mapped in one call.
            1..24 => {
                let first = page & !15;
                for p in first..first + 16 {
                    let pa = L3 + p * 8;
                    if d.machine.mem().load(pa) == 0 {
                        d.on(EventKind::store(pa, 0x2_0000_07db + (p << 12)));
                    }
                }
                d.on(EventKind::DSB_ISHST);
            }
            24..40 if word != 0 => {
                d.on(EventKind::store(pa, word & !0x80));
                d.flush(TlbiKind::Ipas2e1, page);
            }
            _ if word != 0 => {
                d.on(EventKind::store(pa, 0));
                d.flush(TlbiKind::Ipas2e1, page | 7 << 44);
            }
            _ => {
                d.on(EventKind::store(pa, 0x2_0000_07db + (page << 12)));
                d.on(EventKind::DSB_ISHST);
            }
        }
        let (lo, hi) = (page << 12, (page + 1) << 12);
        d.on(EventKind::Quiesce { lo, hi });
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{operations} operations, {} events, {seconds:.1} s",
        d.events
    );
    assert!(d.events > 4_000_000);
    assert_eq!(d.machine.unclean_runs(), 0);
}

#[test]
fn a_gigabyte_unmapped_is_one_record() {
    let mut d = start();
    for page in 0..TABLES * 512 {
        d.on(EventKind::store(
            L3 + page * 8,
            0x2_0000_07db + (page << 12),
        ));
    }
    d.on(EventKind::DSB_ISHST);
    for page in 0..TABLES * 512 {
        d.on(EventKind::store(L3 + page * 8, 0));
    }
    assert_eq!(d.machine.unclean_runs(), 1);
    // Page by page, as a CPU without range invalidation is asked to.
    d.on(EventKind::DSB_ISHST);
    for page in 0..TABLES * 512 {
        d.tlbi(TlbiKind::Ipas2e1, page);
        assert!(d.machine.unclean_runs() <= 2);
    }
    d.on(EventKind::DSB_ISH);
    d.tlbi(TlbiKind::Vmalle1, 0);
    d.on(EventKind::DSB_ISH);
    assert_eq!(d.machine.unclean_runs(), 0);
}

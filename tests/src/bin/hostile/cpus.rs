//! The host's own CPUs: its power calls, its registers, and CPUs that it loses by
//! its own fault.

use rmi::vendor::RangeKind;
use tests::bare::console::Console;
use tests::bare::psci::{affinity_info, fid, psci};
use tests::bare::{asm, cpu, machine, sweep};
use tests::suite::Suite;

use crate::calls::{self, memory_ranges};
use crate::granules::{at, delegate, kept_out, undelegate};

const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;

/// The checks. The last of them loses every CPU but this one.
pub fn checks(suite: &mut Suite<Console>) {
    for (name, met) in [
        ("host/registers", sweep::registers()),
        ("host/maintenance", sweep::maintenance()),
    ] {
        let right = met.undefined > 1000 && met.done > 20;
        suite.check(name, right, format_args!("{met:x?}"));
    }
    calls::still_there(suite, "host/rmi-version");
    let entry = cpu::entry();
    let on = |mpidr: u64, entry: u64| psci(fid::CPU_ON_64, mpidr, entry, 0);
    for mpidr in [0x00ff_00ff, 1 << 40, u64::MAX] {
        let answer = on(mpidr, entry);
        suite.check("host/cpu-on-nobody", answer == INVALID_PARAMETERS, answer);
    }
    let answer = on(asm::mpidr(), entry);
    suite.check("host/cpu-on-self", answer == ALREADY_ON, answer);
    let answer = psci(0xc400_001f, 0, 0, 0);
    suite.check("host/psci-unknown", answer == -1, answer);
    if cpu::count() == 1 {
        return;
    }
    let mut rounds = 0;
    while rounds < 50 && cpu::start(1, || {}) == 0 && cpu::wait_off(1) {
        rounds += 1;
    }
    suite.check("host/off-and-on-50-times", rounds == 50, rounds);
    lost(suite);
}

/// CPUs that are started where the host may not be: that is the host's loss, and
/// EL2 goes on.
fn lost(suite: &mut Suite<Console>) {
    let el2 = memory_ranges().find(|range| range.2 == RangeKind::Hypervisor as u64);
    let granule = at(3);
    delegate(granule);
    let places = [el2.map_or(0, |range| range.0), granule, 1 << 60 | 2];
    for (index, entry) in (1..cpu::count()).zip(places) {
        let mpidr = machine::get().mpidrs[index];
        let answer = psci(fid::CPU_ON_64, mpidr, entry, 0);
        // Refused, or lost: on for ever, and nowhere.
        let right = answer == 0 || affinity_info(mpidr) == 1;
        suite.check("host/lost-cpu", right, answer);
    }
    let lives = cpu::within(1, || {
        calls::status(rmi::fid::RMI_VERSION, rmi::VERSION_1_0, 0, 0) != calls::SUCCESS
    });
    suite.check("host/lives-on", !lives, "RMI_VERSION fails");
    suite.check(
        "host/lost-kept-out",
        kept_out(granule),
        "the granule was reached",
    );
    suite.equal("host/lost-undelegate", undelegate(granule), calls::SUCCESS);
}

/// Has the boot CPU go off and on a hundred times: CPU 1 takes the program over
/// and ends it, for CPU 0 begins on an empty stack.
pub fn boot_cpu() -> ! {
    let answer = cpu::start(1, || {
        let mut suite = Suite::new(Console);
        let mut rounds = 0;
        while rounds < 100 && cpu::wait_off(0) && cpu::start(0, || {}) == 0 {
            rounds += 1;
        }
        suite.check("host/boot-cpu-100-times", rounds == 100, rounds);
        calls::still_there(&mut suite, "host/boot-cpu-rmi-version");
        let status = u64::from(!suite.finish());
        calls::end(machine::get().bootargs, rmi::end::How::Status(status));
        tests::bare::psci::system_off();
    });
    tests::println!("CPU 1 takes over: {answer}");
    psci(fid::CPU_OFF, 0, 0, 0);
    tests::println!("FAIL host/boot-cpu-off: it came back");
    tests::bare::psci::system_off()
}

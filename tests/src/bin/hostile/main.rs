//! An EL1 host in the place of host-loader, with nothing good in mind: it calls
//! every function with every kind of argument, touches what is not its own, and
//! does it from all CPUs at once. EL2 must refuse, survive, and stay right.
//!
//! It is also a correct small host: it builds a plain guest by RMI and compares
//! every exit and every status with the specification (DEN0137 1.0).
//!
//! `seed=N` and `calls=N` of the command line choose the random part.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod absent;
#[cfg(target_os = "none")]
mod audit;
#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod costs;
#[cfg(target_os = "none")]
mod cpus;
#[cfg(target_os = "none")]
mod cycles;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod fuzz;
#[cfg(target_os = "none")]
mod granules;
#[cfg(target_os = "none")]
mod guest;
#[cfg(target_os = "none")]
mod host_lrs;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod kicks;
#[cfg(target_os = "none")]
mod log;
#[cfg(target_os = "none")]
mod masters;
#[cfg(target_os = "none")]
mod posted;
#[cfg(target_os = "none")]
mod protected;
#[cfg(target_os = "none")]
mod races;
#[cfg(target_os = "none")]
mod realm;
#[cfg(target_os = "none")]
mod remains;
#[cfg(target_os = "none")]
mod sealed;
#[cfg(target_os = "none")]
mod simd;
#[cfg(target_os = "none")]
mod tiny;
#[cfg(target_os = "none")]
mod tries;
#[cfg(target_os = "none")]
mod worlds;

tests::program!(image::main, 1);

#[cfg(target_os = "none")]
mod image {
    use tests::bare::console::Console;
    use tests::bare::machine;
    use tests::println;
    use tests::suite::Suite;

    use crate::calls;

    pub fn main() {
        let machine = machine::get();
        let number = |key: &str| machine.argument(key).and_then(|value| value.parse().ok());
        let (seed, count) = (
            number("seed").unwrap_or(1),
            number("calls").unwrap_or(20_000),
        );
        println!(
            "hostile: {} cpus, seed {seed}, {count} calls each",
            machine.cpus
        );
        let mut suite = Suite::new(Console);
        // It finds the granule, too.
        calls::identity(&mut suite);
        crate::audit::point("begin");
        if let Some(only) = machine.argument("do") {
            match only {
                "power" => crate::cpus::off_and_on(&mut suite),
                "stress" => {
                    crate::fuzz::checks(&mut suite, seed, count);
                    calls::still_there(&mut suite, "stress/rmi-version");
                }
                "cycles" => crate::cycles::checks(&mut suite),
                "canary" => crate::protected::canary(&mut suite),
                "costs" => crate::costs::measure(&mut suite),
                "canary-of-vcpu" => crate::remains::checks(&mut suite),
                "host-lrs" => crate::host_lrs::checks(&mut suite),
                "tries" => crate::tries::checks(&mut suite),
                "worlds" => {
                    crate::worlds::checks(&mut suite);
                    crate::simd::checks(&mut suite);
                }
                _ => {
                    suite.check("hostile/do", false, only);
                }
            }
            end(suite);
            return;
        }
        crate::log::checks(&mut suite);
        crate::granules::checks(&mut suite, seed);
        crate::masters::checks(&mut suite);
        crate::devices::checks(&mut suite);
        crate::absent::checks(&mut suite);
        crate::realm::checks(&mut suite);
        crate::guest::checks(&mut suite);
        crate::protected::checks(&mut suite);
        crate::tries::checks(&mut suite);
        crate::worlds::checks(&mut suite);
        crate::simd::checks(&mut suite);
        crate::interrupts::checks(&mut suite);
        crate::kicks::checks(&mut suite);
        crate::posted::checks(&mut suite);
        crate::races::checks(&mut suite);
        crate::fuzz::checks(&mut suite, seed, count);
        crate::cpus::checks(&mut suite);
        calls::still_there(&mut suite, "end/rmi-version");
        end(suite);
    }

    fn end(suite: Suite<Console>) {
        // Calls at random have given away more than the checks know of.
        crate::granules::take_back();
        crate::audit::point("end");
        let status = u64::from(!suite.finish());
        let how = rmi::end::How::Status(status);
        calls::end(machine::get().bootargs, how);
    }
}

//! The EL2 image. A boot, from the top:
//!
//! `asm.S` relocates and calls `primary_start` with the MMU off; that finds the
//! machine and builds EL2's own map; `asm.S` switches to it and calls
//! `primary_main`, which takes charge of memory and begins the host. A PE that
//! the host turns on comes by `started_main`, whether it booted or not.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod image {
    use core::arch::global_asm;
    use core::mem::offset_of;

    use appendix::{Appendix, Header};
    use arm64::frame::{Gprs, Regime};
    use arm64::instr;
    use arm64::regs::{CurrentEL, TCR_EL2, TTBR0_EL2};
    use arm64::steering::{dc_ivac, hvc};
    use hyp::boot::seed;
    use hyp::boot::tree::{self, Conduit, Machine, TreeError};
    use hyp::boot::{BootError, ERRATA, Layout, TableGranules};
    use hyp::cpu::Cpu;
    use hyp::cpu::context::Served;
    use hyp::cpu::dying::halt;
    use hyp::cpu::pe::{self, Pe};
    use hyp::cpu::system_error;
    use hyp::early::Early;
    use hyp::exception::{host, report};
    use hyp::features::{Features, IdRegisters};
    use hyp::guest::fast;
    use hyp::log::Uarts;
    use hyp::log::uart::{Owner, answers};
    use hyp::memory::guarded;
    use hyp::memory::region::Region;
    use hyp::memory::residue;
    use hyp::memory::stage1::Image;
    use hyp::psci;
    use hyp::system::System;
    use log::{debug, error, info, warn};
    use rmi::end::How;
    use rmi::run::RecExit;
    use spin::mutex::SpinMutex;

    global_asm!(
        include_str!("../arm64/src/image.s"),
        include_str!("asm.S"),
        flags = const 0x8,              // little endian, anywhere in memory
        ttbr0 = const offset_of!(Regime, ttbr0),
        mair = const offset_of!(Regime, mair),
        pe_stack = const offset_of!(Pe, entry.stack_top),
        pe_emergency = const offset_of!(Pe, entry.emergency_top),
        pe_regime = const offset_of!(Pe, entry.regime),
        pe_entry = const offset_of!(Pe, entry.rust),
        pe_steps = const offset_of!(Pe, entry.steps),
        exit_reason = const offset_of!(RecExit, exit_reason),
        exit_esr = const offset_of!(RecExit, esr),
        exit_gprs = const offset_of!(RecExit, gprs),
        exit_misr = const offset_of!(RecExit, gicv3_misr),
        exit_timers = const offset_of!(RecExit, cntp_ctl),
        exit_ripas = const offset_of!(RecExit, ripas_base),
        exit_imm = const offset_of!(RecExit, imm),
        exit_elr = const offset_of!(RecExit, elr),
        gprs_pc = const offset_of!(Gprs, pc),
        gprs_stack = const Gprs::STACK,
        serve = sym fast::serve,
        enter_changed = const Served::EnterChanged as u64,
        frame_pc = const offset_of!(report::Frame, pc),
        frame_kind = const offset_of!(report::Frame, kind),
        frame_size = const size_of::<report::Frame>(),
    );

    unsafe extern "C" {
        static __text_end: u8;
        static __rodata_end: u8;
        static __image_end: u8;
        fn take_up(pe: &'static Pe, entry: extern "C" fn(&'static Pe) -> !) -> !;
    }

    /// What the part with the MMU off hands to the part with it on.
    struct Found {
        machine: &'static Machine,
        features: Features,
        image: Image,
        appendix: Appendix<'static>,
        layout: Layout,
    }

    static FOUND: Early<SpinMutex<Option<Found>>> = Early::new();
    /// The boot's, which fills it in its place: it is large.
    static MACHINE: SpinMutex<Machine> = SpinMutex::new(Machine::new());

    /// The boot PE, MMU off: finds the machine, builds EL2's own map.
    #[unsafe(no_mangle)]
    extern "C" fn primary_start(dtb: u64, base: u64) -> ! {
        // SAFETY: x0 as the boot protocol has it.
        let tree = unsafe { tree::bytes(dtb) };
        // SAFETY: this is done once, and nobody else names it.
        let machine = unsafe { &mut *MACHINE.as_mut_ptr() };
        let read = tree.and_then(|data| machine.read(dtb, data).map(|()| data));
        let tree = match read {
            Ok(tree) => tree,
            Err(why) => no_machine(machine, tree.unwrap_or(&[]), why),
        };
        // From here on a fault has a report, of the log's UART too.
        report::set_image(base, &raw const __image_end as u64);
        // SAFETY: this PE has started no other. The device tree calls them PL011s,
        // and EL2 maps them at their own addresses.
        unsafe { hyp::log::start(machine.uarts(), machine.settings.end) };
        log::set_max_level(machine.settings.level);
        let traced = machine.settings.level == log::LevelFilter::Trace;
        hyp::log::trace::set_calls(traced || machine.settings.trace_calls);
        let psci = machine.psci;
        if level() != 2 {
            find_uart(machine.uarts(), tree);
            error!(
                "entered at EL{}: Undercroft needs EL2 (QEMU: -M virt,virtualization=on)",
                level()
            );
            stop(psci);
        }
        info!("Undercroft {} at {base:#x}", env!("CARGO_PKG_VERSION"));
        let uarts = machine.uarts();
        let pe = match prepare(machine, tree, base) {
            Ok(pe) => pe,
            Err(why) => {
                find_uart(uarts, tree);
                error!("{why}");
                stop(psci);
            }
        };
        // SAFETY: asm.S loads the map just built, in which this code stands at
        // its own address, and goes on at `primary_main` on this PE's stack. That
        // is this boot's alone: a PE that is started again, this one too, comes
        // by its `Pe`'s entry.
        unsafe { take_up(pe, primary_main) }
    }

    fn prepare(
        machine: &'static mut Machine,
        tree: &[u8],
        base: u64,
    ) -> Result<&'static Pe, BootError> {
        machine.settings.mask.begin();
        let features = Features::read();
        info!("cpu: {features}");
        ERRATA.begin(features.midr, |erratum| info!("{erratum}"));
        machine.check()?;
        features.check()?;
        if machine.pes_left > 0 {
            warn!(
                "{} CPUs stay off: {} are driven, and the device tree has more",
                machine.pes_left,
                pe::MAX_PES
            );
        }
        let granules = TableGranules::choose(&features, machine.settings.granule)?;
        machine.settle(tree, &granules.steps(&features), &probe)?;
        let machine = &*machine;
        let flat_end = &raw const __image_end as u64;
        let (image, appendix) = find_image(base, flat_end)?;
        let layout = Layout::plan(machine, &features, granules, &image, &appendix)?;
        let entry = started_main as *const () as u64;
        let early = layout.written_early();
        let line = features.dcache_line;
        // What a boot loader has left of it in a cache is not to come over what is written.
        for region in early {
            instr::clean_invalidate(region.base(), region.size(), line);
        }
        let pe = layout.build_pes(machine, &features, &image, entry)?;
        let data = image.data;
        let found = Found {
            machine,
            features,
            image,
            appendix,
            layout,
        };
        // SAFETY: this PE has started no other.
        unsafe { FOUND.set(SpinMutex::new(Some(found))) };
        // What was written past the caches must not be hidden by what they held.
        for region in early.into_iter().chain([data]) {
            for at in (region.base()..region.end()).step_by(line as usize) {
                // SAFETY: this PE wrote with its caches off, so that no line of
                // what is EL2's alone holds anything that is wanted.
                unsafe { dc_ivac(at) };
            }
        }
        instr::dsb_sy();
        Ok(pe)
    }

    /// Reads a device's register, if a device is there.
    fn probe(address: u64) -> Option<u32> {
        // SAFETY: a register of a device in the tree, which no driver uses yet.
        unsafe { guarded::read32(address) }.ok()
    }

    /// The image's parts, and the appendix that the runner put behind it.
    fn find_image(base: u64, flat_end: u64) -> Result<(Image, Appendix<'static>), BootError> {
        // SAFETY: the boot loader put the whole file into RAM, which goes on
        // behind the image's end.
        let header = unsafe { core::slice::from_raw_parts(flat_end as *const u8, Header::LEN) };
        let length = Header::read(header)
            .ok_or(BootError::NoAppendix)?
            .total_len();
        // SAFETY: as above, for the length that the runner wrote.
        let bytes = unsafe { core::slice::from_raw_parts(flat_end as *const u8, length as usize) };
        let appendix = Appendix::split(bytes).ok_or(BootError::BadAppendix)?;
        let text_end = &raw const __text_end as u64;
        let rodata_end = &raw const __rodata_end as u64;
        let part = |from: u64, to: u64| Region::new(from, to - from).unwrap_or(Region::EMPTY);
        let image = Image {
            text: part(base, text_end),
            rodata: [
                part(text_end, rodata_end),
                part(flat_end, flat_end + length),
            ],
            data: part(rodata_end, flat_end),
        };
        Ok((image, appendix))
    }

    /// The boot PE, MMU on: takes charge of memory, begins the host.
    extern "C" fn primary_main(pe: &'static Pe) -> ! {
        hyp::log::share();
        // The generator as it was when keys were drawn from it, and they, are on the stack.
        let (system, machine) = residue::leaving_none::<{ residue::OF_A_BOOT }, _>(take_charge);
        if let Some(crash) = machine.settings.crash {
            report::crash(crash);
        }
        let mut cpu = come(pe, system);
        cpu.begin_host(system.host_image.base(), machine.dtb.base());
        hyp::log::host_runs();
        host::run(system, &mut cpu)
    }

    /// Builds what all PEs share. A frame of its own: what it moves about is
    /// large, and the host's turn never ends.
    #[inline(never)]
    fn take_charge() -> (&'static System, &'static Machine) {
        let found = FOUND.get().and_then(|found| found.lock().take());
        let found = found.expect("primary_start leaves what it found");
        let pes = found.machine.pes.len();
        let Found {
            machine,
            features,
            image,
            appendix,
            layout,
        } = found;
        // SAFETY: the tree is RAM, and nobody else runs yet.
        let random = unsafe { seed::begin(machine.dtb, features.rng, psci::entropy) };
        let system = match layout.build_system(machine, features, &image, &appendix) {
            Ok(system) => System { random, ..system }.install(),
            Err(why) => refuse(why),
        };
        // Here and now: nobody waits for it.
        if let Some(attester) = system.attester() {
            info!("attestation: {attester}");
        }
        if machine.settings.log_on_serial1 && machine.own_uart().is_none() {
            warn!("undercroft.log=serial1: there is none, and the host writes here too");
        }
        for region in machine.ram.iter() {
            info!("ram {region}");
        }
        for region in machine.devices.iter() {
            debug!("device of the host {region}");
        }
        info!("image {}, own memory {}", image.region(), layout.own);
        info!(
            "{} granules of {} KiB, {pes} cpus",
            machine
                .ram
                .iter()
                .map(|r| r.size() >> system.granules.shift())
                .sum::<u64>(),
            system.granules.size() >> 10,
        );
        info!("host at {:#x}", system.host_image.base());
        let own = (TTBR0_EL2.get(), TCR_EL2.get());
        debug!(
            "EL2: code at {:#x}, stack at {:p}, TTBR0_EL2 {:#x}, TCR_EL2 {:#x}",
            image.text.base(),
            &raw const own,
            own.0,
            own.1,
        );
        let host = system.host.regs();
        debug!(
            "host: VTCR_EL2 {:#x}, VTTBR_EL2 {:#x}",
            host.vtcr, host.vttbr
        );
        (system, machine)
    }

    /// Any PE that the host turned on, the one that booted among them.
    extern "C" fn started_main(pe: &'static Pe) -> ! {
        let system = System::installed().expect("the host runs before it starts a CPU");
        let mut cpu = come(pe, system);
        let (pc, context) = pe.start();
        cpu.begin_host(pc, context);
        host::run(system, &mut cpu)
    }

    /// This PE's, if it will do.
    fn come(pe: &'static Pe, system: &'static System) -> Cpu {
        match system.admit(&IdRegisters::read(), psci::arch_features) {
            Ok(steps) => pe.set_steps(steps),
            Err(why) => {
                error!("cpu {:#x} stays off: {why}", pe.mpidr);
                psci::refuse_start(pe);
                halt()
            }
        }
        system_error::begin();
        let cpu = Cpu::new(pe, &system.shared());
        pe.arrive();
        cpu
    }

    /// Says why this machine will not do, and turns it off.
    fn refuse(why: BootError) -> ! {
        error!("{why}");
        hyp::log::end(How::Status(2));
        psci::system_off();
        halt()
    }

    /// The same when the device tree cannot be read, with the power calls that are
    /// likely.
    fn no_machine(machine: &Machine, data: &[u8], why: TreeError) -> ! {
        let uarts = machine.uarts();
        // SAFETY: as in `primary_start`, with the MMU off.
        unsafe { hyp::log::start(uarts, machine.settings.end) };
        find_uart(uarts, data);
        error!("{why}");
        let likely = if level() == 2 {
            Conduit::Smc
        } else {
            Conduit::Hvc
        };
        stop(machine.psci.or(Some(likely)))
    }

    /// Where QEMU's virt machine has its UART.
    const UART_OF_QEMU: u64 = 0x0900_0000;

    /// Gives the log a UART for its last words, if the tree names none: one
    /// that its words seem to lead to, else that of QEMU's virt machine, if it
    /// identifies itself as a PL011. At another level than EL2 a read of nothing
    /// would be fatal, and only the tree's words count.
    fn find_uart(uarts: Uarts, data: &[u8]) {
        if uarts.log.is_some() {
            return;
        }
        let guess = devtree::guess_uart(data);
        let found = if level() == 2 {
            let mut likely = guess.into_iter().chain([UART_OF_QEMU]);
            likely.find(|base| answers(*base, &probe))
        } else {
            guess
        };
        // SAFETY: it says that it is a PL011, or the tree's words look like one's.
        // Nobody drives it; the MMU is off.
        found.inspect(|base| unsafe { hyp::log::follow(*base, Owner::Host) });
    }

    fn level() -> u64 {
        CurrentEL.read(CurrentEL::EL)
    }

    /// The same before there is anything but a device tree.
    fn stop(psci: Option<Conduit>) -> ! {
        hyp::log::end(How::Status(2));
        match psci {
            // At EL2 it would be EL2's own.
            Some(Conduit::Hvc) if level() != 2 => {
                let off = rmi::fid::PSCI_SYSTEM_OFF.into();
                // SAFETY: it does not come back, or changes nothing.
                unsafe { hvc([off, 0, 0, 0, 0, 0]) };
            }
            Some(Conduit::Smc) if level() == 2 => psci::system_off(),
            _ => {}
        }
        halt()
    }

    #[panic_handler]
    fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
        report::panic(info)
    }
}

/// On the development machine there is nothing to run.
#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("hyp is the EL2 image; `cargo qemu run` builds it and boots it.");
}

//! Arm's Base RevC model, `FVP_Base_RevC-2xAEMvA`: two clusters of the architecture's
//! envelope, here with LPA2 and 52 bits, and a GICv3.
//!
//! A model has no firmware of its own. At EL3 stands TF-A, its bl1.bin and fip.bin,
//! built to enter at [`parts::IMAGE`] what the model has loaded there (`README.md` has
//! the command). It enters at EL2, with the device tree of its package in x0: the tree
//! that [`tree`] makes, which [`fip`] puts there.
//!
//! | module | idea |
//! |---|---|
//! | [`parts`] | where all of it stands |
//! | [`tree`] | the device tree |
//! | [`fip`] | the firmware's package, with that tree |
//!
//! Parameters and their values are those of TF-A's
//! `docs/plat/arm/fvp/fvp-aemv8-base.rst` and Arm's Shrinkwrap
//! (`config/FVP_Base_RevC-2xAEMvA-base.yaml`, `config/arch/`); the two for 52 bits with 4K
//! and 16K are as projects that run the model have them. A model's own `--list-params`
//! has the last word: nobody has run this on one yet.

pub mod fip;
pub mod parts;
pub mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Description;
use crate::image::header;
use parts::{Loaded, Part};
use tree::{CLUSTER, Contents};

/// The model's program.
pub const PROGRAM: &str = "FVP_Base_RevC-2xAEMvA";

/// The firmware's files.
pub const BL1: &str = "bl1.bin";
/// The package of its later parts.
pub const FIP: &str = "fip.bin";

/// The device tree's file.
const TREE: &str = "undercroft.dtb";

/// Parameters whatever the machine.
const ALWAYS: [&str; 13] = [
    // So many GiB: half of it below 4 GiB.
    "bp.dram_size=4",
    // The firmware's memory is its own.
    "bp.secure_memory=1",
    // One CPU begins; PSCI starts the others.
    "pctl.startup=0.0.0.0",
    // The system counter runs, whoever would have started it.
    "bp.refcounter.non_arch_start_at_default=1",
    // PSCI's SYSTEM_OFF ends the model.
    "bp.ve_sysregs.exit_on_shutdown=1",
    "cache_state_modelled=0",
    "bp.vis.disable_visualisation=1",
    "bp.terminal_0.start_telnet=0",
    "bp.terminal_1.start_telnet=0",
    "bp.terminal_2.start_telnet=0",
    "bp.terminal_3.start_telnet=0",
    "bp.pl011_uart0.unbuffered_output=1",
    "bp.pl011_uart1.unbuffered_output=1",
];

/// Parameters of either cluster: 52 bits with every granule (FEAT_LPA, FEAT_LVA and
/// FEAT_LPA2, which Armv8.7 has).
const OF_CLUSTER: [&str; 12] = [
    "PA_SIZE=52",
    "has_arm_v8-1=1",
    "has_arm_v8-2=1",
    "has_arm_v8-3=1",
    "has_arm_v8-4=1",
    "has_arm_v8-5=1",
    "has_arm_v8-6=1",
    "has_arm_v8-7=1",
    "has_16k_granule=1",
    "has_large_va=1",
    // At stage 1 and at stage 2.
    "has_52bit_address_with_4k=2",
    "has_52bit_address_with_16k=2",
];

/// Where the UARTs' output goes.
#[derive(Clone, Debug)]
pub struct Uarts {
    /// The guest's console; `-` is the model's standard output.
    pub console: PathBuf,
    /// The log.
    pub log: PathBuf,
}

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What it has.
    pub description: Description,
    /// Where everything stands.
    pub parts: Vec<Part>,
    /// The words that start the model: its program, or those of a container.
    model: Vec<String>,
    bl1: PathBuf,
    fip: PathBuf,
}

/// What a machine is made of, beside its description.
#[derive(Clone, Debug)]
pub struct Means<'a> {
    /// The words that start the model.
    pub model: Vec<String>,
    /// The folder that has the firmware; without one the command names its files only.
    pub firmware: Option<&'a Path>,
    /// Where the files of this machine go.
    pub folder: &'a Path,
}

impl Machine {
    /// Makes the machine of this description, whose last word is `watched` for or not,
    /// and writes its device tree and its firmware's package.
    ///
    /// # Errors
    /// A description that the model cannot have, and files that cannot be read or
    /// written.
    pub fn of(description: Description, means: Means<'_>, watched: bool) -> Result<Self> {
        let image = loaded(&description.kernel, |data| {
            // Firmware enters where it was built for.
            ensure!(
                header::text_offset(data) == Some(0),
                "--image: no arm64 Image that may stand at a multiple of 2 MiB"
            );
            Ok(header::size(data))
        })?;
        let bundle = description.initrd.as_deref();
        let bundle = bundle.map(|file| loaded(file, |_| Ok(None))).transpose()?;
        let parts = parts::place(image, bundle, description.ram)?;
        let token = description.end.as_ref().filter(|_| watched);
        let tree = tree::make(&Contents {
            cpus: description.cpus,
            banks: &parts::banks(description.ram)?,
            bootargs: &super::watched(&description.append, token),
            bundle: parts
                .iter()
                .find(|p| p.span.at == parts::BUNDLE)
                .map(|p| p.span),
        })?;
        write(&means.folder.join(TREE), &tree)?;
        let (bl1, fip) = match means.firmware {
            Some(firmware) => {
                let from = firmware.join(FIP);
                let package = fip::with_tree(&read(&from)?, &tree)
                    .with_context(|| from.display().to_string())?;
                let fip = means.folder.join(FIP);
                write(&fip, &package)?;
                (firmware.join(BL1), fip)
            }
            None => (BL1.into(), FIP.into()),
        };
        Ok(Self {
            description,
            parts,
            model: means.model,
            bl1,
            fip,
        })
    }

    /// The device tree's file.
    pub fn tree(folder: &Path) -> PathBuf {
        folder.join(TREE)
    }

    /// The words of the command that starts it.
    pub fn command(&self, uarts: &Uarts) -> Vec<String> {
        let mut words = self.model.clone();
        let mut set = |parameter: String| words.extend(["-C".into(), parameter]);
        for parameter in ALWAYS {
            set(parameter.into());
        }
        let cpus = self.description.cpus;
        for (cluster, cores) in [cpus.min(CLUSTER), cpus.saturating_sub(CLUSTER)]
            .into_iter()
            .enumerate()
        {
            set(format!("cluster{cluster}.NUM_CORES={cores}"));
            for parameter in OF_CLUSTER {
                set(format!("cluster{cluster}.{parameter}"));
            }
        }
        for (parameter, file) in [
            ("bp.pl011_uart0.out_file", &uarts.console),
            ("bp.pl011_uart1.out_file", &uarts.log),
            ("bp.secureflashloader.fname", &self.bl1),
            ("bp.flashloader0.fname", &self.fip),
        ] {
            set(format!("{parameter}={}", file.display()));
        }
        for part in &self.parts {
            let Some(file) = &part.file else { continue };
            let data = format!("cluster0.cpu0={}@{:#x}", file.display(), part.span.at);
            words.extend(["--data".into(), data]);
        }
        words
    }

    /// The command as a person would type it.
    pub fn command_line(&self, uarts: &Uarts) -> String {
        let words = self.command(uarts);
        super::typed(words.iter().map(String::as_str))
    }
}

/// A file to load, which takes its own size in RAM or what it says of itself.
fn loaded(file: &Path, says: impl Fn(&[u8]) -> Result<Option<u64>>) -> Result<Loaded> {
    let data = read(file)?;
    let file = std::path::absolute(file).context("the current folder is gone")?;
    let size = (data.len() as u64).max(says(&data)?.unwrap_or(0));
    Ok(Loaded { file, size })
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

fn write(file: &Path, data: &[u8]) -> Result<()> {
    fs::write(file, data).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size::Size;
    use rmi::end::Token;

    /// An Image that takes more than its file has, and a bundle, in `folder`.
    fn description(folder: &Path, cpus: u32) -> Description {
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        header::set_size(&mut image, 5 << 20).expect("a header");
        let kernel = folder.join("undercroft.img");
        fs::write(&kernel, image).expect("writes");
        let initrd = folder.join("bundle.cpio");
        fs::write(&initrd, [1; 100]).expect("writes");
        Description {
            cpus,
            ram: Size::mib(1024),
            kernel,
            initrd: Some(initrd),
            append: "a b".into(),
            end: Some(Token::of_bits(7)),
            log_uart: true,
        }
    }

    fn machine(folder: &Path, cpus: u32, watched: bool) -> Machine {
        let means = Means {
            model: vec!["a container".into(), PROGRAM.into()],
            firmware: None,
            folder,
        };
        Machine::of(description(folder, cpus), means, watched).expect("a machine")
    }

    #[test]
    fn a_command_line_can_be_typed() {
        let folder = tempfile::tempdir().expect("a folder");
        let uarts = Uarts {
            console: "-".into(),
            log: "a log".into(),
        };
        let line = machine(folder.path(), 6, false).command_line(&uarts);
        let words = shlex::split(&line).expect("a shell can read it");
        assert_eq!(words[..2], ["a container", PROGRAM]);
        let image = folder.path().join("undercroft.img");
        for (option, value) in [
            ("-C", "cluster0.NUM_CORES=4".into()),
            ("-C", "cluster1.NUM_CORES=2".into()),
            ("-C", "cluster1.PA_SIZE=52".into()),
            ("-C", "bp.pl011_uart1.out_file=a log".into()),
            ("-C", "bp.flashloader0.fname=fip.bin".into()),
            (
                "--data",
                format!("cluster0.cpu0={}@0x80200000", image.display()),
            ),
        ] {
            let pair = [option, &value];
            assert!(words.windows(2).any(|w| w == pair), "{pair:?} in {line}");
        }
        let few = machine(folder.path(), 1, false).command_line(&uarts);
        assert!(few.contains("cluster0.NUM_CORES=1") && few.contains("cluster1.NUM_CORES=0"));
    }

    #[test]
    fn an_image_takes_what_it_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = machine(folder.path(), 1, false);
        let part = |name| machine.parts.iter().find(|part| part.name == name);
        assert_eq!(part("undercroft.img").map(|p| p.span.size), Some(5 << 20));
        assert_eq!(part("bundle.cpio").map(|p| p.span.size), Some(100));
    }

    #[test]
    fn only_a_machine_that_is_watched_has_a_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let has = |watched| {
            machine(folder.path(), 1, watched);
            let tree = fs::read(Machine::tree(folder.path())).expect("a tree");
            let token = b"a b undercroft.end=00000000000000000000000000000007\0";
            tree.windows(token.len()).any(|bytes| bytes == token)
        };
        assert!(has(true) && !has(false));
    }

    #[test]
    fn firmware_without_a_package_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(FIP), "no package").expect("writes");
        let means = Means {
            model: vec![PROGRAM.into()],
            firmware: Some(folder.path()),
            folder: folder.path(),
        };
        let error = Machine::of(description(folder.path(), 1), means, false);
        let text = format!("{:#}", error.expect_err("no firmware"));
        assert!(text.contains(FIP) && text.contains("TF-A"), "{text}");
    }
}

//! A configuration as a machine: its guest, its RAM, and how the image gets there.
//!
//! QEMU's `-kernel` puts an image where the machine's own RAM is. RAM above 2^48 is a
//! device's, so there the image is loaded as it is, and a few instructions in flash
//! start it as a boot loader would, with a device tree that names that RAM alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use dtoolkit::Node;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::axes::{Kernel, Mode, Populate, Ram};
use super::cell::Cell;
use crate::bundle;
use crate::config::{self, Guest};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::machine::virt::{Console, Control, Machine};
use crate::run::ending;
use crate::setup::qemu::Qemu;
use crate::size::Size;
use crate::suite::call::Call;
use crate::workspace::Workspace;

/// A guest's memory.
const MEMORY_OF_TINY: Size = Size::mib(128);
const MEMORY_OF_DEBIANS: Size = Size::mib(384);

/// RAM where EL2, the host and the guest are.
const RAM: Size = Size::mib(1024);

/// Where in RAM above 2^48 a boot loader would have put the image, the device tree and
/// the bundle.
const IMAGE_AT: u64 = 2 << 20;
const TREE_AT: u64 = 0x1000_0000;
const BUNDLE_AT: u64 = 0x2000_0000;

/// QEMU's patience for a device tree.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What a machine is built from.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The project's folders.
    pub workspace: &'a Workspace,
    /// The emulator.
    pub qemu: &'a Qemu,
    /// The image under test.
    pub image: &'a Path,
    /// Where files of this machine go.
    pub folder: &'a Path,
}

/// The kernel's file; `None` where only a user's cache could have it.
///
/// # Errors
/// When it cannot be fetched.
pub fn kernel(workspace: &Workspace, kernel: Kernel) -> Result<Option<PathBuf>> {
    if kernel.is_packaged() {
        let guest = catalogue::find(kernel.word())?;
        return Cache::of(workspace).kernel(guest).map(Some);
    }
    let folder = workspace.guests_of_user();
    let file = folder.map(|folder| folder.join(format!("{}.Image.gz", kernel.word())));
    Ok(file.filter(|file| file.is_file()))
}

/// A guest's memory with this kernel.
pub const fn memory(kernel: Kernel) -> Size {
    if kernel.is_packaged() {
        MEMORY_OF_DEBIANS
    } else {
        MEMORY_OF_TINY
    }
}

/// The machine of a configuration whose guest boots `kernel` and does this task.
///
/// # Errors
/// When something cannot be had.
pub fn machine(parts: &Parts<'_>, cell: &Cell, kernel: PathBuf, task: &Task) -> Result<Machine> {
    let busybox = Cache::of(parts.workspace).busybox()?;
    let initrd = parts.folder.join("initrd");
    fs::write(&initrd, initrd::build(&busybox, "guest", task)?)?;
    let geometry = cell.geometry().context("the configuration is excluded")?;
    let guest = Guest {
        initrd: Some(initrd),
        cmdline: Some("console=ttyAMA0 quiet nowatchdog".into()),
        vcpus: cell.cpus,
        mode: match cell.mode {
            Mode::Plain => config::Mode::Plain,
            Mode::Protected => config::Mode::Protected,
            Mode::Realm => config::Mode::Realm,
        },
        ipa_bits: Some(cell.ipa.into()),
        start_level: Some(geometry.start().get().into()),
        populate: Some(match cell.populate {
            Populate::Eager => config::Populate::Eager,
            Populate::Lazy => config::Populate::Lazy,
        }),
        ..Guest::new("guest", kernel, memory(cell.kernel))
    };
    let bundle = parts.folder.join("bundle.cpio");
    fs::write(&bundle, bundle::pack(&[guest])?)?;
    let log_uart = Machine::can_have_log_uart(parts.qemu);
    let log = if log_uart {
        " undercroft.log=serial1"
    } else {
        ""
    };
    let mut machine = Machine {
        qemu: parts.qemu.clone(),
        cpu: cell.hw.cpu().into(),
        cpus: cell.cpus,
        ram: RAM,
        kernel: Some(parts.image.to_path_buf()),
        initrd: Some(bundle.clone()),
        append: format!(
            "undercroft.granule={} undercroft.loglevel=debug{log}{}",
            cell.hyp.word(),
            cell.without.argument()
        ),
        end: Some(ending::token()?),
        el2: true,
        log_uart,
        debugger: None,
        extra: Vec::new(),
    };
    if cell.ram != Ram::Low {
        raise(parts, cell.ram, &bundle, &mut machine)?;
    }
    Ok(machine)
}

/// Has the machine's RAM stand where no `-kernel` reaches, with all that a boot loader
/// puts there.
fn raise(parts: &Parts<'_>, ram: Ram, bundle: &Path, machine: &mut Machine) -> Result<()> {
    let (base, size) = (ram.base(), RAM.bytes());
    let room = if base.ilog2() == 48 { "1P" } else { "4000T" };
    // QEMU's own, which the device tree does not name.
    machine.ram = Size::mib(128);
    machine.kernel = None;
    machine.initrd = None;
    let boot_arguments = machine.boot_arguments();
    machine.append.clear();
    let device = format!("virtio-mem-pci,memdev=high,memaddr={base:#x},requested-size={RAM}");
    let ram = [
        "-m",
        &format!("slots=4,maxmem={room}"),
        "-nic",
        "none",
        "-object",
        &format!("memory-backend-ram,id=high,size={RAM}"),
        "-device",
        &device,
    ];
    machine.extra.extend(ram.map(OsString::from));
    let tree = parts.folder.join("tree.dtb");
    let words = machine.arguments(Console::Pipes, Control::Plain);
    let dump = format!("dumpdtb={}", plain(&tree)?);
    Call::program(&machine.qemu.program, PATIENCE)
        .args(words)
        .args(["-machine", &dump])
        .call()?
        .ended(0)?;
    let initrd = (
        base + BUNDLE_AT,
        base + BUNDLE_AT + bundle.metadata()?.len(),
    );
    let data = with_ram(&fs::read(&tree)?, (base, size), &boot_arguments, initrd)?;
    fs::write(&tree, data)?;
    let first = parts.folder.join("first.bin");
    fs::write(&first, starter(base + TREE_AT, base + IMAGE_AT))?;
    let mut add = |words: [String; 2]| machine.extra.extend(words.map(OsString::from));
    add(["-bios".into(), first.display().to_string()]);
    for (file, at) in [
        (parts.image, IMAGE_AT),
        (&tree, TREE_AT),
        (bundle, BUNDLE_AT),
    ] {
        let at = base + at;
        let loader = format!("loader,file={},addr={at:#x},force-raw=on", plain(file)?);
        add(["-device".into(), loader]);
    }
    Ok(())
}

/// A file's name where a comma would end it.
fn plain(file: &Path) -> Result<String> {
    let name = file.display().to_string();
    ensure!(!name.contains(','), "QEMU takes no comma in {name}");
    Ok(name)
}

/// QEMU's device tree with this RAM and no other, and what a boot loader adds.
fn with_ram(
    data: &[u8],
    (base, size): (u64, u64),
    boot_arguments: &str,
    initrd: (u64, u64),
) -> Result<Vec<u8>> {
    let fdt = Fdt::new(data).map_err(|e| anyhow!("QEMU's device tree: {e}"))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let root = tree.find_node_mut("/").context("a tree has a root")?;
    let nodes = fdt.root();
    let names: Vec<_> = nodes
        .children()
        .map(|node| node.name().to_string())
        .collect();
    for name in names.iter().filter(|name| name.starts_with("memory@")) {
        root.remove_child(name);
    }
    let reg = [base.to_be_bytes(), size.to_be_bytes()].concat();
    root.add_child(
        DeviceTreeNode::builder(format!("memory@{base:x}"))?
            .property(DeviceTreeProperty::new("device_type", "memory")?)
            .property(DeviceTreeProperty::new("reg", reg)?)
            .build(),
    );
    let chosen = tree.find_node_mut("/chosen").context("QEMU's /chosen")?;
    for (name, value) in [
        ("linux,initrd-start", initrd.0),
        ("linux,initrd-end", initrd.1),
    ] {
        chosen.add_property(DeviceTreeProperty::new(name, value.to_be_bytes().to_vec())?);
    }
    chosen.add_property(DeviceTreeProperty::new("bootargs", boot_arguments)?);
    Ok(tree.to_dtb())
}

/// What stands in flash: X0 and a branch, as the boot protocol has them. The two
/// addresses stand behind the instructions.
fn starter(tree: u64, image: u64) -> Vec<u8> {
    // ldr x0, tree; ldr x1, image; br x1; nop.
    let code: [u32; 4] = [0x5800_0080, 0x5800_00a1, 0xd61f_0020, 0xd503_201f];
    let code = code.into_iter().flat_map(u32::to_le_bytes);
    let addresses = [tree, image].into_iter().flat_map(u64::to_le_bytes);
    code.chain(addresses).collect()
}

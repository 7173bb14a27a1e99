//! A configuration as a machine: its guest, its RAM, and how the image gets there.
//!
//! QEMU's `-kernel` puts an image where the machine's own RAM is. RAM above 2^48 is a
//! device's, so there the image is loaded as it is, and a few instructions in flash
//! start it as a boot loader would, with a device tree that names that RAM alone.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use dtoolkit::Node;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::axes::{Kernel, Load, Populate, Ram};
use super::cell::Cell;
use crate::build;
use crate::config::{self, Guest};
use crate::guests::catalogue;
use crate::guests::fetch::Cache;
use crate::guests::initrd::{self, Task};
use crate::machine::virt::{self, Console, Control, Machine};
use crate::size::Size;
use crate::suite::call::Call;
use crate::suite::{Context, boots};
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

/// The kernel's file.
///
/// # Errors
/// When it cannot be fetched; the inner one when it is a tiny one that is not built.
pub fn kernel(workspace: &Workspace, kernel: Kernel) -> Result<Result<PathBuf, String>> {
    if kernel == Kernel::Tour {
        return build::program(workspace, kernel.word()).map(Ok);
    }
    let cache = Cache::of(workspace);
    if !kernel.is_packaged() {
        return Ok(cache.tiny_kernel(kernel.word()));
    }
    let guest = catalogue::find(kernel.word())?;
    cache.kernel(guest).map(Ok)
}

/// A guest's memory with this kernel.
pub const fn memory(kernel: Kernel) -> Size {
    if kernel.is_packaged() {
        MEMORY_OF_DEBIANS
    } else {
        MEMORY_OF_TINY
    }
}

/// A configuration as a machine that can be started.
#[derive(Debug)]
pub struct Prepared {
    /// The machine.
    pub machine: Machine,
    /// Its guest.
    pub guest: Guest,
    /// The files that it is made of.
    pub inputs: Vec<PathBuf>,
}

/// The machine of a configuration whose guest boots `kernel` and does this task; its
/// files go into `folder`.
///
/// # Errors
/// When something cannot be had.
pub fn machine(
    context: &Context,
    folder: &Path,
    cell: &Cell,
    kernel: PathBuf,
    task: &Task,
) -> Result<Prepared> {
    let mut inputs = vec![context.image()?.file.clone(), kernel.clone()];
    let mut initrd = None;
    if cell.kernel != Kernel::Tour {
        let busybox = Cache::of(&context.workspace).busybox()?;
        let file = folder.join("initrd");
        fs::write(&file, initrd::build(&busybox, "guest", task)?)?;
        inputs.push(file.clone());
        initrd = Some(file);
    }
    let geometry = cell.geometry().context("the configuration is excluded")?;
    let guest = Guest {
        initrd,
        cmdline: Some(match (cell.kernel, task) {
            (Kernel::Tour, Task::Command { mark, .. }) => format!("mark={mark}"),
            _ => "console=ttyAMA0 quiet nowatchdog".into(),
        }),
        ram_base: (cell.load != Load::Low).then(|| cell.load.base()),
        vcpus: cell.cpus,
        mode: cell.mode.word().parse().map_err(|e: String| anyhow!(e))?,
        ipa_bits: Some(cell.ipa.into()),
        start_level: Some(geometry.start().get().into()),
        populate: Some(match cell.populate {
            Populate::Eager => config::Populate::Eager,
            Populate::Lazy => config::Populate::Lazy,
            Populate::Pages => config::Populate::Pages,
        }),
        ..Guest::new("guest", kernel, memory(cell.kernel))
    };
    let mut machine = boots::machine(context, folder, std::slice::from_ref(&guest))?;
    machine.cpu = cell.hw.cpu().into();
    machine.cpus = cell.cpus;
    machine.ram = RAM;
    machine.append = (machine.append)
        .replace("granule=4k", &format!("granule={}", cell.hyp.word()))
        .replace("loglevel=info", "loglevel=debug")
        + cell.mask.argument()
        + cell.own.argument();
    if cell.ram != Ram::Low {
        raise(folder, cell.ram, &mut machine)?;
    }
    Ok(Prepared {
        machine,
        guest,
        inputs,
    })
}

/// Has the machine's RAM stand where no `-kernel` reaches, with all that a boot loader
/// puts there.
fn raise(folder: &Path, ram: Ram, machine: &mut Machine) -> Result<()> {
    let base = ram.base();
    machine.ram_base = base;
    let room = if base.ilog2() == 48 { "1P" } else { "4000T" };
    // QEMU's own, which the device tree does not name.
    machine.ram = Size::mib(128);
    let image = machine.kernel.take().context("there is an image")?;
    let bundle = machine.initrd.take().context("there is a bundle")?;
    let boot_arguments = machine.boot_arguments();
    machine.append.clear();
    let mut add = |words: &[String]| machine.extra.extend(words.iter().map(OsString::from));
    add(&["-nic", "none"].map(String::from));
    add(&virt::more_ram(base, RAM, room));
    let tree = tree(folder, machine)?;
    let initrd = (
        base + BUNDLE_AT,
        base + BUNDLE_AT + bundle.metadata()?.len(),
    );
    let ram = (base, RAM.bytes());
    let data = with_ram(&fs::read(&tree)?, ram, &boot_arguments, initrd)?;
    fs::write(&tree, data)?;
    let first = folder.join("first.bin");
    fs::write(&first, starter(base + TREE_AT, base + IMAGE_AT))?;
    machine.extra.extend(["-bios".into(), first.into()]);
    for (file, at) in [(image, IMAGE_AT), (tree, TREE_AT), (bundle, BUNDLE_AT)] {
        let words = virt::loaded(&file, base + at);
        machine.extra.extend(words.map(OsString::from));
    }
    Ok(())
}

/// The device tree that QEMU makes of a machine, as a file of `folder`.
///
/// # Errors
/// When it makes none.
pub fn tree(folder: &Path, machine: &Machine) -> Result<PathBuf> {
    let tree = folder.join("tree.dtb");
    let words = machine.arguments(Console::Pipes, Control::Plain);
    Call::program(&machine.qemu.program, PATIENCE)
        .args(words)
        .args(["-machine", &format!("dumpdtb={}", virt::escaped(&tree))])
        .call()?
        .ended(0)?;
    Ok(tree)
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

//! Hosts on machines that have more than memory and a console: masters of memory,
//! RAM that firmware keeps or that is not there, worlds apart.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::boots::LIMIT;
use super::call::Call;
use super::on_target::{failed_none, hostile_image, hostile_on};
use super::{Case, Context};
use crate::machine::virt;
use crate::size::Size;

/// CPUs and granules that differ in what their stage 2 can do.
const KINDS: [(&str, &str); 5] = [
    ("cortex-a72", "4k"),
    ("cortex-a72", "64k"),
    ("max", "4k"),
    ("max", "16k"),
    ("max", "64k"),
];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (cpu, granule) in KINDS {
        let usual = [
            Case::new(
                format!("tests/hostile-masters-{cpu}-{granule}"),
                move |context| masters(context, cpu, granule, 2000),
            ),
            Case::new(
                format!("tests/hostile-absent-{cpu}-{granule}"),
                move |context| absent(context, cpu, granule),
            ),
        ];
        // For time: the quick tier has `tests/hostile-stress-16k`.
        let is_quick = (cpu, granule) != ("max", "16k");
        cases.extend(usual.map(|case| if is_quick { case } else { case.full() }));
        cases.push(
            Case::new(
                format!("tests/hostile-100000-steps-{cpu}-{granule}"),
                move |context| masters(context, cpu, granule, 100_000),
            )
            .full(),
        );
    }
    for granule in ["4k", "64k"] {
        cases.push(Case::new(
            format!("boots/odd-memory-{granule}"),
            move |context| odd_memory(context, granule),
        ));
    }
    for smp in ["1", "3"] {
        cases.push(Case::new(format!("boots/gicv4-smp{smp}"), move |context| {
            gicv4(context, smp)
        }));
    }
    cases.push(Case::new("tests/hostile-secure-world", secure));
    cases.push(Case::new("tests/hostile-smmu-unnamed-ram", |context| {
        let smmu = ["-machine", "iommu=smmuv3", "-m", "1G"].map(String::from);
        let ram = virt::more_ram(1 << 32, Size::mib(1024), "16G");
        let machine: Vec<String> = smmu.into_iter().chain(ram).collect();
        hostile_on(
            context,
            "2",
            "4k",
            "calls=1000 unnamed=0x100000000",
            machine,
        )
    }));
    cases
}

/// With a disk to program, in a page that others share.
fn masters(context: &Context, cpu: &str, granule: &str, steps: u32) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let disk = folder.path().join("disk");
    fs::write(&disk, vec![0xdb; 64 << 10])?;
    let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
    let machine = [
        "-cpu",
        cpu,
        "-m",
        "1G",
        "-drive",
        &drive,
        "-device",
        "virtio-blk-device,drive=disk",
    ];
    let words = format!("calls=1000 disk=1 steps={steps}");
    hostile_on(context, "2", granule, &words, machine)
}

/// The second UART is the secure world's: the log is on the console.
fn secure(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let image = hostile_image(context, folder.path())?;
    let called = Call::program(&context.qemu()?.program, LIMIT)
        .args(["-machine", "virt,virtualization=on,secure=on,gic-version=3"])
        .args(["-cpu", "max", "-smp", "2", "-m", "512M"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio", "-serial", "null"])
        .args(["-append", "undercroft.log=serial1 calls=1000", "-kernel"])
        .args([image])
        .call()?
        .ended(0)?;
    failed_none(&called)?;
    called.shows(&[" passed, 0 failed", "Undercroft", "end: status 0"])?;
    Ok(())
}

/// RAM of the tree that the machine does not have.
const ABSENT: u64 = 0x1_0000_0000;
/// RAM that firmware keeps, in the middle of a page.
const KEEP: u64 = 0x4a00_0800;

/// A device tree that names RAM that is not there, and keeps some that is; and
/// RAM that ends where no large granule does.
fn absent(context: &Context, cpu: &str, granule: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let tree = folder.path().join("tree.dtb");
    dump(context, cpu, &tree)?;
    let data = fs::read(&tree)?;
    fs::write(&tree, with_more(&data, &[absent_ram()?, kept_ram()?])?)?;
    let file = tree.display().to_string();
    // QEMU rounds memory up to 8 KiB.
    let machine = ["-cpu", cpu, "-m", "524296k", "-dtb", &file];
    let words = format!("calls=1000 absent={ABSENT:#x} keep={KEEP:#x}");
    hostile_on(context, "2", granule, &words, machine)
}

/// The same memory, all of which is there, under a host that means well.
fn odd_memory(context: &Context, granule: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let tree = folder.path().join("tree.dtb");
    dump(context, "max", &tree)?;
    let data = fs::read(&tree)?;
    fs::write(&tree, with_more(&data, &[kept_ram()?])?)?;
    let file = tree.display().to_string();
    Call::run(context)?
        .args(["--guest", "hello", "--cpu", "max", "--granule", granule])
        .args(["--memory", "256M", "--smp", "2"])
        .args(["--", "-m", "786440k", "-dtb", &file])
        .call()?
        .ended(0)?
        .shows(&["hello from EL1, 2 vcpus"])?
        .calmly()?;
    Ok(())
}

/// A GICv4, whose redistributors are larger than what the host has of them.
fn gicv4(context: &Context, smp: &str) -> Result<()> {
    Call::run(context)?
        .args(["--guest", "hello", "--smp", smp])
        .args(["--", "-machine", "gic-version=4"])
        .call()?
        .ended(0)?
        .shows(&[&format!("hello from EL1, {smp} vcpus")])?
        .calmly()?;
    Ok(())
}

/// Has QEMU write the tree of the machine that `hostile_on` starts.
fn dump(context: &Context, cpu: &str, file: &Path) -> Result<()> {
    let machine = format!(
        "virt,virtualization=on,gic-version=3,dumpdtb={}",
        file.display()
    );
    Call::program(&context.qemu()?.program, LIMIT)
        .args(["-machine", &machine, "-cpu", cpu, "-smp", "2"])
        .args(["-nodefaults", "-display", "none"])
        .args(["-serial", "null", "-serial", "null"])
        .call()?
        .ended(0)?;
    Ok(())
}

/// The tree with more nodes.
fn with_more(data: &[u8], nodes: &[DeviceTreeNode]) -> Result<Vec<u8>> {
    let fdt = Fdt::new(data).map_err(|e| anyhow!("QEMU's device tree: {e}"))?;
    let mut tree = DeviceTree::from_fdt(&fdt);
    let root = tree.find_node_mut("/").context("a tree has a root")?;
    for node in nodes {
        root.add_child(node.clone());
    }
    Ok(tree.to_dtb())
}

fn reg(base: u64, size: u64) -> Result<DeviceTreeProperty> {
    let bytes = [base.to_be_bytes(), size.to_be_bytes()].concat();
    Ok(DeviceTreeProperty::new("reg", bytes)?)
}

/// RAM that is not there. QEMU itself replaces nodes that are called `memory`.
fn absent_ram() -> Result<DeviceTreeNode> {
    Ok(DeviceTreeNode::builder(format!("ram@{ABSENT:x}"))?
        .property(DeviceTreeProperty::new("device_type", "memory")?)
        .property(reg(ABSENT, 4 << 20)?)
        .build())
}

/// RAM that firmware keeps.
fn kept_ram() -> Result<DeviceTreeNode> {
    let keep = DeviceTreeNode::builder(format!("firmware@{KEEP:x}"))?
        .property(reg(KEEP, 0x1000)?)
        .property(DeviceTreeProperty::new("no-map", [0u8; 0])?)
        .build();
    Ok(DeviceTreeNode::builder("reserved-memory")?
        .property(DeviceTreeProperty::new("#address-cells", 2u32)?)
        .property(DeviceTreeProperty::new("#size-cells", 2u32)?)
        .property(DeviceTreeProperty::new("ranges", [0u8; 0])?)
        .child(keep)
        .build())
}

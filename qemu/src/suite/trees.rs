//! Device trees that Linux boots boot here, whatever their names and however
//! large; and one that cannot be read is told of on the UART that it seems to
//! have, before the machine ends.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::call::{Call, Called};
use super::{Case, Context};
use crate::build;
use crate::machine::virt::loaded;

/// Memory of these machines.
const RAM: &str = "768M";

/// What is done to QEMU's tree.
type Edit = fn(&mut Tree);

/// Trees that Linux boots.
const GOOD: [(&str, Edit); 7] = [
    ("long-property", |tree| {
        tree.add_named("a", "snps,quirk-frame-length-adjustment-and-more");
    }),
    ("long-node", |tree| {
        tree.add_named("a-node-whose-name-is-longer-than-31-characters", "a");
    }),
    ("odd-property", |tree| {
        tree.add_named("a", "vendor,prop_with*star");
    }),
    ("odd-node", |tree| {
        tree.add_named("regulator:odd name@1@2", "a");
    }),
    ("name-that-is-no-text", |tree| {
        tree.add_named("odd-name", "odd-property");
        replace(&mut tree.structure, b"odd-name\0", b"odd\xfename\0");
        replace(&mut tree.strings, b"odd-property\0", b"odd\xffproperty\0");
    }),
    ("reserved-ranges", |tree| tree.reserve(120)),
    ("nested", |tree| tree.nest(60)),
];

/// Trees that are too much for a table of ours, and what is said.
const TOO_MUCH: [(&str, &str, Edit); 2] = [
    (
        "too-many-reserved-ranges",
        "reserves too many ranges",
        |tree| tree.reserve(300),
    ),
    ("nested-too-deep", "nested more than 64", |tree| {
        tree.nest(2000);
    }),
];

/// The cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, edit) in GOOD {
        cases.push(Case::new(format!("trees/{name}"), move |context| {
            booted(context, edit)?.ended(0)?.shows(&["goodbye"])?;
            Ok(())
        }));
    }
    for (name, says, edit) in TOO_MUCH {
        cases.push(Case::new(format!("trees/{name}"), move |context| {
            booted(context, edit)?
                .ended(125)?
                .tells(&["the device tree", says])?
                .tells(&["end: ", "status 2"])?;
            Ok(())
        }));
    }
    cases.push(Case::new("trees/damaged", |context| {
        let called = booted_by_hand(context, |tree| {
            let at = tree.structure.len() - 8;
            tree.structure[at..at + 4].copy_from_slice(&77u32.to_be_bytes());
        })?;
        called.shows(&["the device tree", "damaged", "end: status 2"])?;
        Ok(())
    }));
    cases.push(Case::new("trees/longer-than-2-mib", |context| {
        let called = booted_by_hand(context, |tree| {
            let value = vec![0; 3 << 18];
            let node = tree.property("long", &value);
            tree.add(Tree::node("long", &node));
        })?;
        called.shows(&["the device tree is longer than 2 MiB", "end: status 2"])?;
        Ok(())
    }));
    cases.push(Case::new("trees/no-interrupt-controller", |context| {
        let called = booted_by_hand(context, |tree| {
            // Nobody's binding.
            replace(&mut tree.structure, b"arm,gic-v3\0", b"arm,gic-v9\0");
        })?;
        called.shows(&["the device tree has no GICv3", "end: status 2"])?;
        Ok(())
    }));
    cases.push(Case::new("trees/many-names-that-are-no-text", |context| {
        let called = booted_by_hand(context, |tree| {
            for _ in 0..100 {
                tree.add_named("odd-name", "a");
                replace(&mut tree.structure, b"odd-name\0", b"odd\xfename\0");
            }
        })?;
        called.shows(&["a name in the device tree is no text", "end: status 2"])?;
        Ok(())
    }));
    cases.push(Case::new("trees/stdout-path-that-is-no-text", |context| {
        let called = booted(context, |tree| {
            // Of aliases, too.
            let none = b"/pl011\xfe9000000\0";
            while replace(&mut tree.structure, b"/pl011@9000000\0", none) {}
        })?;
        called.ended(0)?.shows(&["goodbye"])?;
        Ok(())
    }));
    // Nothing says where a console is: QEMU's machine has one all the same.
    cases.push(Case::new("trees/no-uart", |context| {
        let called = booted_by_hand(context, |tree| {
            let names: [(&[u8], &[u8]); 3] = [
                (b"arm,pl011\0", b"arm,pl911\0"),
                (b"pl011@", b"pl911@"),
                (b"arm,gic-v3\0", b"arm,gic-v9\0"),
            ];
            for (here, not) in names {
                while replace(&mut tree.structure, here, not) {}
            }
        })?;
        called.shows(&["the device tree has no GICv3", "end: status 2"])?;
        Ok(())
    }));
    for (name, x0) in [("none", NOTHING), ("not-at-x0", AT_CODE)] {
        cases.push(Case::new(format!("trees/{name}"), move |context| {
            let called = booted_with(context, x0, |_| {})?;
            called.shows(&["no device tree", "end: status 2"])?;
            Ok(())
        }));
    }
    cases.push(Case::new("trees/more-cpus-than-driven", |context| {
        let hello = build::program(&context.workspace, "hello")?;
        let folder = tempfile::tempdir_in(&context.folder)?;
        fs::copy(hello, folder.path().join("hello"))?;
        let guest = |name: &str, vcpus: u32| {
            format!(
                "[[guest]]\nname = \"{name}\"\nkernel = \"hello\"\nmemory = \"32M\"\n\
                 vcpus = {vcpus}\n"
            )
        };
        let file = folder.path().join("guests.toml");
        fs::write(&file, guest("a", 64) + &guest("b", 64) + &guest("c", 2))?;
        Call::run(context)?
            .args(["--smp", "130", "--cpu", "cortex-a72", "--guests"])
            .args([&file])
            .call()?
            .ended(0)?
            .tells(&["2 CPUs stay off", "128"])?
            .tells(&["CPUs: 128"])?;
        Ok(())
    }));
    cases.push(Case::new("trees/smp-of-no-guest", |context| {
        Call::run(context)?
            .args(["--guest", "hello", "--smp", "65"])
            .call()?
            .ended(125)?
            .tells(&["--smp 65", "64"])?;
        Ok(())
    }));
    cases.push(Case::new("trees/xlnx-versal-virt", versal));
    cases
}

/// Another machine than virt, from its own device tree.
fn versal(context: &Context) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let bundle = folder.path().join("bundle.cpio");
    let guest = build::program(&context.workspace, "hello")?;
    let toml = "[[guest]]\nname = \"a\"\nkernel = \"k\"\nmemory = \"64M\"\nvcpus = 2\n";
    let mut archive = crate::newc::Archive::new();
    archive.file("guests.toml", toml.as_bytes())?;
    archive.file("k", &fs::read(guest)?)?;
    fs::write(&bundle, archive.finish()?)?;
    let called = Call::program(&context.qemu()?.program, super::boots::LIMIT)
        .args(["-M", "xlnx-versal-virt", "-m", "2G", "-serial", "stdio"])
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-kernel"])
        .args([&context.image()?.file])
        .args(["-initrd"])
        .args([&bundle])
        .call()?
        .ended(0)?;
    called.shows(&["hello from vcpu 1", "end: status 0"])?;
    Ok(())
}

/// A tree's two blocks; no reservations.
struct Tree {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Tree {
    fn read(data: &[u8]) -> Result<Self> {
        let field = |n: usize| -> Result<usize> {
            let bytes = data.get(4 * n..4 * n + 4).context("a header")?;
            Ok(u32::from_be_bytes(bytes.try_into()?) as usize)
        };
        let block = |at: usize, size: usize| data.get(at..at + size).context("a block");
        Ok(Self {
            structure: block(field(2)?, field(9)?)?.to_vec(),
            strings: block(field(3)?, field(8)?)?.to_vec(),
        })
    }

    /// The words of a property.
    fn property(&mut self, name: &str, value: &[u32]) -> Vec<u8> {
        let name_at = self.strings.len() as u32;
        self.strings.extend(name.as_bytes());
        self.strings.push(0);
        let header = [3, 4 * value.len() as u32, name_at];
        let words = header.iter().chain(value);
        words.flat_map(|word| word.to_be_bytes()).collect()
    }

    /// A node with all of this inside.
    fn node(name: &str, inside: &[u8]) -> Vec<u8> {
        let mut node = 1u32.to_be_bytes().to_vec();
        node.extend(name.as_bytes());
        node.push(0);
        node.resize(node.len().next_multiple_of(4), 0);
        node.extend(inside);
        node.extend(2u32.to_be_bytes());
        node
    }

    /// Puts a node below the root.
    fn add(&mut self, node: Vec<u8>) {
        let at = self.structure.len() - 8;
        self.structure.splice(at..at, node);
    }

    /// A node of this name with a property of that one.
    fn add_named(&mut self, node: &str, property: &str) {
        let inside = self.property(property, &[0x20]);
        self.add(Self::node(node, &inside));
    }

    /// So many pages of RAM, each by itself; nobody may map every second one.
    fn reserve(&mut self, count: u32) {
        let mut inside = self.property("#address-cells", &[2]);
        inside.extend(self.property("#size-cells", &[2]));
        inside.extend(self.property("ranges", &[]));
        let no_map = self.property("no-map", &[]);
        for n in 0..count {
            let at = 0x6000_0000 + n * 0x2_0000;
            let mut page = self.property("reg", &[0, at, 0, 0x1000]);
            if n % 2 == 0 {
                page.extend(&no_map);
            }
            inside.extend(Self::node(&format!("page@{at:x}"), &page));
        }
        self.add(Self::node("reserved-memory", &inside));
    }

    /// So many buses, one on the other, and a device on the last.
    fn nest(&mut self, depth: u32) {
        let mut bus = self.property("#address-cells", &[2]);
        bus.extend(self.property("#size-cells", &[2]));
        bus.extend(self.property("ranges", &[]));
        let registers = self.property("reg", &[0, 0x0b00_0000, 0, 0x1000]);
        let mut inside = Self::node("device@b000000", &registers);
        for _ in 1..depth {
            inside = Self::node("bus", &[&bus[..], &inside].concat());
        }
        self.add(inside);
    }

    fn bytes(&self) -> Vec<u8> {
        let (reservations, structure) = (40u32, 56u32);
        let strings = structure + self.structure.len() as u32;
        let sizes = [self.strings.len() as u32, self.structure.len() as u32];
        let total = strings + sizes[0];
        let header = [
            0xd00d_feed,
            total,
            structure,
            strings,
            reservations,
            17,
            16,
            0,
            sizes[0],
            sizes[1],
        ];
        let mut data: Vec<u8> = header.iter().flat_map(|word| word.to_be_bytes()).collect();
        data.extend([0; 16]);
        data.extend(&self.structure);
        data.extend(&self.strings);
        data
    }
}

/// The usual machine with a tree that was changed, and a small guest.
fn booted(context: &Context, edit: Edit) -> Result<Called> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let mut tree = of_qemu(context, folder.path())?;
    edit(&mut tree);
    let file = folder.path().join("tree.dtb");
    fs::write(&file, tree.bytes())?;
    Call::run(context)?
        .args(["--guest", "hello", "--ram", RAM, "--", "-dtb"])
        .args([&file])
        .call()
}

/// Replaces the first; whether there was one.
fn replace(data: &mut [u8], from: &[u8], to: &[u8]) -> bool {
    let at = data.windows(from.len()).position(|part| part == from);
    if let Some(at) = at {
        data[at..at + to.len()].copy_from_slice(to);
    }
    at.is_some()
}

/// The tree that QEMU makes for its virt machine.
fn of_qemu(context: &Context, folder: &Path) -> Result<Tree> {
    let file = folder.join("qemu.dtb");
    let machine = format!(
        "virt,virtualization=on,gic-version=3,dumpdtb={}",
        file.display()
    );
    Call::program(&context.qemu()?.program, super::boots::LIMIT)
        .args([
            "-machine",
            &machine,
            "-m",
            RAM,
            "-cpu",
            "max",
            "-nodefaults",
        ])
        .args(["-display", "none", "-serial", "null", "-serial", "null"])
        .call()?
        .ended(0)?;
    Tree::read(&fs::read(file)?)
}

/// `movz x0, #…, lsl #16`: where the tree is, where code is, and nowhere.
const AT_TREE: &str = "0xd2a90000";
const AT_CODE: &str = "0xd2a8e000";
const NOTHING: &str = "0xd2a00000";

/// Boots the image with a tree that QEMU itself would not take.
fn booted_by_hand(context: &Context, edit: impl FnOnce(&mut Tree)) -> Result<Called> {
    booted_with(context, AT_TREE, edit)
}

/// The same with another X0: image and tree are put into RAM, and three
/// instructions go from one to the other.
fn booted_with(context: &Context, x0: &str, edit: impl FnOnce(&mut Tree)) -> Result<Called> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let mut tree = of_qemu(context, folder.path())?;
    edit(&mut tree);
    let file = folder.path().join("tree.dtb");
    fs::write(&file, tree.bytes())?;
    let image = &context.image()?.file;
    // movz x0; movz x1, #0x4020, lsl #16; br x1.
    let first = format!("0xd2a80401{},data-len=8", x0.trim_start_matches("0x"));
    let code = [&first, "0xd61f0020,data-len=4"];
    let called = Call::program(&context.qemu()?.program, super::boots::LIMIT)
        .args([
            "-machine",
            "virt,virtualization=on,gic-version=3",
            "-m",
            RAM,
        ])
        .args([
            "-cpu",
            "max",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args(["-serial", "stdio"])
        .args(loaded(image, 0x4020_0000))
        .args(loaded(&file, 0x4800_0000))
        .args([
            "-device",
            &format!("loader,addr=0x47000000,data={}", code[0]),
        ])
        .args([
            "-device",
            &format!("loader,addr=0x47000008,data={}", code[1]),
        ])
        .args(["-device", "loader,addr=0x47000000,cpu-num=0"])
        .call()?
        .ended(0)?;
    Ok(called)
}

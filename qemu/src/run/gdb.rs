//! A debugger for a machine that waits for one: where it connects, and the line
//! that starts it.
//!
//! QEMU's server gives whoever connects its monitor, and with that all that its
//! user may do. So it listens on a socket in a folder of this user's alone,
//! unless a TCP port is asked for.

use std::env::consts::ARCH;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSegment};
use tempfile::TempDir;

use crate::build::Image;
use crate::config::Guest;
use crate::image::{appendix, assemble, header};
use crate::machine::virt::{Debugger, Machine};
use crate::ui;
use crate::workspace::in_path;

/// QEMU keeps this much at the base of RAM for itself, and so does the host
/// for a guest's Image.
const QEMU_KEEPS: u64 = 2 << 20;

/// hyp puts the host at a multiple of this.
const HOST_ALIGN: u64 = 2 << 20;

/// Where a plain guest sees the base of its RAM.
const GUEST_RAM_BASE: u64 = 0x4000_0000;

/// The longest path that a Unix socket can have (`struct sockaddr_un`, less a NUL).
const LONGEST_SOCKET: usize = 107;

/// Debian's package of a gdb that knows the machine, and its program.
pub const PACKAGE: &str = "gdb-multiarch";

/// Where the debugger finds the machine, while this lives.
#[derive(Debug)]
pub struct Gdb {
    /// For QEMU.
    pub at: Debugger,
    /// A folder of its own where the run's is too deep for a socket.
    folder: Option<TempDir>,
}

impl Gdb {
    /// A socket in `folder`, which is this user's alone, or a TCP port.
    ///
    /// # Errors
    /// When the port is another's.
    pub fn open(port: Option<u16>, folder: &Path) -> Result<Self> {
        if let Some(port) = port {
            free(port)?;
            return Ok(Self {
                at: Debugger::Port(port),
                folder: None,
            });
        }
        let socket = folder.join("gdb.socket");
        if fits(&socket) {
            // Of a dry run before, perhaps.
            let _ = fs::remove_file(&socket);
            return Ok(Self {
                at: Debugger::Socket(socket),
                folder: None,
            });
        }
        let short = tempfile::Builder::new()
            .prefix("undercroft-gdb-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a folder for the debugger's socket")?;
        Ok(Self {
            at: Debugger::Socket(short.path().join("gdb.socket")),
            folder: Some(short),
        })
    }
}

impl Gdb {
    /// Leaves what it made for whoever starts the machine.
    pub fn keep(self) {
        if let Some(folder) = self.folder {
            let _ = folder.keep();
        }
    }
}

/// Whether a socket can have this path, for QEMU and for gdb, which takes what
/// has a colon for a host and a port.
fn fits(socket: &Path) -> bool {
    let text = socket.as_os_str().as_encoded_bytes();
    text.len() <= LONGEST_SOCKET && !text.contains(&b':') && socket.to_str().is_some()
}

/// Asks for a port that nobody has.
fn free(port: u16) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => bail!(
            "--gdb {port}: another program listens on port {port}: take another, or --gdb \
             alone, which needs none"
        ),
        Err(error) => Err(error).with_context(|| format!("--gdb {port}: cannot listen there")),
        Ok(_) => Ok(()),
    }
}

/// Where what is debugged stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    hyp: u64,
    /// `None` where only the log knows.
    host: Option<u64>,
}

impl Places {
    fn of(ram: u64, image: &[u8]) -> Self {
        let hyp = kernel_place(ram, image).unwrap_or(ram + QEMU_KEEPS);
        // hyp puts the host at the lowest place that is free, which is below hyp itself
        // unless the host has outgrown it, and else behind it.
        let host = appendix::payload_len(image).map(|len| {
            let len = assemble::size_of_host(len);
            if ram + len <= hyp {
                ram
            } else {
                (hyp + image.len() as u64).next_multiple_of(HOST_ALIGN)
            }
        });
        Self { hyp, host }
    }
}

/// Where an arm64 Image that begins with `head` is loaded, by QEMU and by the
/// host: not into the first 2 MiB, where a boot loader keeps things of its own.
fn kernel_place(ram: u64, head: &[u8]) -> Option<u64> {
    let offset = header::text_offset(head)?;
    let kept = if offset < 4096 { QEMU_KEEPS } else { 0 };
    Some(ram + kept + offset)
}

/// Writes what gdb is to do into `folder`, and returns the line that has it done,
/// with what to know: for when QEMU listens. `names` is a file with the first guest's
/// symbols.
///
/// # Errors
/// When a file cannot be read or written, or gdb cannot take its name.
pub fn told(
    machine: &Machine,
    image: &Image,
    guests: &[Guest],
    names: Option<&Path>,
    folder: &Path,
) -> Result<Option<String>> {
    let Some(debugger) = &machine.debugger else {
        return Ok(None);
    };
    let data = fs::read(&image.file).unwrap_or_default();
    let places = Places::of(machine.ram_base, &data);
    let mut script = String::from("set confirm off\nset architecture aarch64\n");
    if let Some(hyp) = &image.hyp {
        script += &symbols(hyp, Some(places.hyp))?;
    }
    if let (Some(host), Some(at)) = (&image.host, places.host) {
        script += &symbols(host, Some(at))?;
    }
    if let Some(file) = names {
        let head = guests.first().map(|guest| fs::read(&guest.kernel));
        let head = head.transpose().context("cannot read the guest's kernel")?;
        let place = kernel_place(GUEST_RAM_BASE, &head.unwrap_or_default());
        script += &symbols(file, place.filter(|_| floats(file)))?;
    }
    script += &match debugger {
        Debugger::Port(port) => format!("target remote 127.0.0.1:{port}\n"),
        // Not quoted: gdb takes all of the line.
        Debugger::Socket(path) => format!("target remote {}\n", path.display()),
    };
    let file = folder.join("gdb");
    fs::write(&file, script).with_context(|| format!("cannot write {}", file.display()))?;

    let (program, installed) = program();
    let file = file.to_str().context("a path that is no text")?;
    let line = shlex::try_join([program, "-x", file]).context("a path with a NUL")?;
    let mut text =
        format!("The machine waits for a debugger. In another terminal:\n\n  {line}\n\n");
    if !installed {
        let lack = format!("{program} is not in PATH: sudo apt-get install {PACKAGE}");
        text += &format!("{}\n", ui::fold(&lack, "  "));
    }
    if let Debugger::Port(port) = debugger {
        ui::warn(format_args!(
            "every user of this machine can reach port {port}, and with it all that you may \
             do; --gdb alone is yours alone"
        ));
    }
    text += &ui::fold(&whereabouts(&places, image, guests, names), "  ");
    Ok(Some(text))
}

/// What stands where, for people.
fn whereabouts(places: &Places, image: &Image, guests: &[Guest], names: Option<&Path>) -> String {
    let mut text = format!("hyp is at {:#x}", places.hyp);
    text += &match (places.host, &image.host) {
        (Some(at), _) => format!(", host-loader at {at:#x}."),
        (None, Some(host)) => format!(
            ", host-loader where the log says `host at ADDRESS`; then, in gdb:\n  \
             add-symbol-file {} -o ADDRESS",
            quoted(host).unwrap_or_default()
        ),
        (None, None) => ".".into(),
    };
    for guest in guests {
        let head = fs::read(&guest.kernel).unwrap_or_default();
        let kernel = kernel_place(GUEST_RAM_BASE, &head).map_or_else(
            || "its kernel's place is its format's to say".into(),
            |place| format!("kernel at {place:#x}"),
        );
        text += &format!(
            "\nguest {}: RAM from IPA {GUEST_RAM_BASE:#x}, {kernel}.",
            guest.name
        );
    }
    if names.is_none() && !guests.is_empty() {
        text += "\nA guest's own names come from --guest-symbols FILE, such as its vmlinux.";
    }
    text
}

/// The command that reads a file's symbols, which stand at `at` if not where
/// they are linked.
fn symbols(file: &Path, at: Option<u64>) -> Result<String> {
    let at = at.map_or_else(String::new, |at| format!(" -o {at:#x}"));
    Ok(format!("add-symbol-file {}{at}\n", quoted(file)?))
}

/// A path as gdb's commands take it: between quotes, with a backslash before what
/// would end them.
fn quoted(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .filter(|text| !text.contains('\n'))
        .with_context(|| format!("gdb cannot take the path {}", path.display()))?;
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    Ok(format!("\"{text}\""))
}

/// Whether a program is linked at 0, to stand anywhere.
fn floats(file: &Path) -> bool {
    let data = fs::read(file).unwrap_or_default();
    let lowest = object::File::parse(&*data)
        .ok()
        .and_then(|file| file.segments().map(|segment| segment.address()).min());
    lowest == Some(0)
}

/// The debugger to start, and whether it is there.
fn program() -> (&'static str, bool) {
    // A gdb for this machine alone knows no other.
    let own = (ARCH == "aarch64").then_some("gdb");
    let known = [Some(PACKAGE), Some("aarch64-linux-gnu-gdb"), own];
    let found = known.into_iter().flatten().find(|p| in_path(p).is_some());
    (found.unwrap_or(PACKAGE), found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_stands_in_the_runs_folder_or_in_a_short_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = Gdb::open(None, folder.path()).expect("opens");
        let Debugger::Socket(path) = &own.at else {
            panic!("a port");
        };
        assert!(path.starts_with(folder.path()));
        for name in ["x".repeat(120), "a:b".into()] {
            let deep = folder.path().join(name);
            fs::create_dir(&deep).expect("makes");
            let other = Gdb::open(None, &deep).expect("opens");
            let Debugger::Socket(path) = &other.at else {
                panic!("a port");
            };
            assert!(fits(path), "{}", path.display());
            let parent = path.parent().expect("a folder");
            let mode = parent.metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o700);
        }
    }

    #[test]
    fn a_busy_port_is_named() {
        let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = busy.local_addr().expect("an address").port();
        let error = Gdb::open(Some(port), Path::new("/nowhere")).expect_err("busy");
        assert!(error.to_string().contains(&format!("port {port}")));
    }

    #[test]
    fn a_path_can_be_any_text() {
        let path = Path::new("/a b/\"c\"/d\\e");
        assert_eq!(
            symbols(path, Some(0x10)).expect("a path"),
            "add-symbol-file \"/a b/\\\"c\\\"/d\\\\e\" -o 0x10\n"
        );
        assert!(quoted(Path::new("/a\nb")).is_err());
    }

    #[test]
    fn an_image_stands_where_its_header_says() {
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        // Of no size, and so of an old kernel, whatever it says of an offset.
        assert_eq!(kernel_place(0x4000_0000, &image), Some(0x4008_0000));
        image[8..16].copy_from_slice(&0x4321_0000u64.to_le_bytes());
        assert_eq!(kernel_place(0x4000_0000, &image), Some(0x4008_0000));
        image[8..16].copy_from_slice(&0u64.to_le_bytes());
        image[16..24].copy_from_slice(&0x1_0000u64.to_le_bytes());
        assert_eq!(kernel_place(0x4000_0000, &image), Some(0x4020_0000));
        image[8..16].copy_from_slice(&0x10_0000u64.to_le_bytes());
        assert_eq!(kernel_place(0x4000_0000, &image), Some(0x4010_0000));
        assert_eq!(kernel_place(0, b"raw"), None);
    }
}

//! QEMU's `virt` machine: one that starts at EL2 with a GICv3 and, from QEMU
//! 9.1, two UARTs. The first UART is the guest's console, the second the log.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use rmi::end::Token;

use super::Description;
use crate::setup::qemu::{Qemu, SECOND_UART};
use crate::size::Size;

/// The CPU unless another is asked for: everything that QEMU knows, with a
/// pointer authentication that costs emulation the least.
pub const DEFAULT_CPU: &str = "max,pauth-impdef=on";

/// Where QEMU's `virt` begins its RAM.
pub const RAM_BASE: u64 = 0x4000_0000;

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The emulator.
    pub qemu: Qemu,
    /// QEMU's name of the CPU.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: u32,
    /// Amount of RAM.
    pub ram: Size,
    /// Where the RAM is that the image gets.
    pub ram_base: u64,
    /// What QEMU loads and starts; `None` where a firmware among the further
    /// arguments is started.
    pub kernel: Option<PathBuf>,
    /// What QEMU loads beside it.
    pub initrd: Option<PathBuf>,
    /// Boot arguments, which QEMU puts into the device tree.
    pub append: String,
    /// What the image's last word must hold, so that it is no guest's.
    pub end: Option<Token>,
    /// Whether the CPUs have EL2, and start there.
    pub el2: bool,
    /// Whether the log has a UART of its own.
    pub log_uart: bool,
    /// Where QEMU waits for a debugger.
    pub debugger: Option<Debugger>,
    /// Further arguments of QEMU, as they are.
    pub extra: Vec<OsString>,
}

/// Where QEMU waits for a debugger before it runs the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Debugger {
    /// A Unix socket, which QEMU makes.
    Socket(PathBuf),
    /// A TCP port of this machine alone, and of all its users.
    Port(u16),
}

/// Where the ends of the first UART are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// A person's, with QEMU's monitor behind Ctrl-a.
    Terminal,
    /// Standard input and output as they are.
    Pipes,
}

/// Where the second UART and QEMU's monitor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The log goes to standard error, as a person would start QEMU.
    Plain,
    /// Both are sockets that QEMU inherits under these numbers.
    Sockets {
        /// The log's.
        log: i32,
        /// The monitor's.
        monitor: i32,
    },
}

impl Machine {
    /// QEMU's machine of this description: its CPUs have EL2.
    pub fn of(description: Description, qemu: Qemu, cpu: &str, extra: &[OsString]) -> Self {
        Self {
            qemu,
            cpu: cpu.into(),
            cpus: description.cpus,
            ram: description.ram,
            ram_base: RAM_BASE,
            kernel: Some(description.kernel),
            initrd: description.initrd,
            append: description.append,
            end: description.end,
            el2: true,
            log_uart: description.log_uart,
            debugger: None,
            extra: extra.to_vec(),
        }
    }

    /// Whether this QEMU can give the log a UART of its own.
    pub fn can_have_log_uart(qemu: &Qemu) -> bool {
        qemu.version >= SECOND_UART
    }

    /// The boot arguments for an image whose end is watched.
    pub fn boot_arguments(&self) -> String {
        self.with_token(&self.append)
    }

    fn with_token(&self, arguments: &str) -> String {
        super::watched(arguments, self.end.as_ref())
    }

    /// QEMU's arguments. Where the machine is watched, its boot arguments have the
    /// token, those of the user's own `-append` too, which replaces ours.
    pub fn arguments(&self, console: Console, control: Control) -> Vec<OsString> {
        let el2 = if self.el2 { "on" } else { "off" };
        let mut list: Vec<OsString> = Vec::new();
        let mut add = |parts: &[&str]| list.extend(parts.iter().map(OsString::from));
        add(&[
            "-machine",
            &format!("virt,virtualization={el2},gic-version=3"),
        ]);
        add(&["-cpu", &self.cpu, "-smp", &self.cpus.to_string()]);
        add(&["-m", &self.ram.to_string()]);
        // Nothing that was not asked for; a reset of the machine is its end.
        add(&["-nodefaults", "-display", "none", "-no-reboot"]);
        add(&[
            "-serial",
            match console {
                Console::Terminal => "mon:stdio",
                Console::Pipes => "stdio",
            },
        ]);
        match control {
            Control::Plain if self.log_uart => add(&["-serial", "file:/dev/stderr"]),
            Control::Plain => {}
            Control::Sockets { log, monitor } => {
                if self.log_uart {
                    add(&["-chardev", &format!("socket,id=log,fd={log}")]);
                    add(&["-serial", "chardev:log"]);
                }
                add(&["-chardev", &format!("socket,id=monitor,fd={monitor}")]);
                add(&["-qmp", "chardev:monitor"]);
            }
        }
        match &self.debugger {
            None => {}
            Some(Debugger::Port(port)) => {
                add(&["-S", "-gdb", &format!("tcp:127.0.0.1:{port}")]);
            }
            Some(Debugger::Socket(path)) => {
                let path = escaped(path);
                let socket = format!("socket,id=gdb,path={path},server=on,wait=off");
                add(&["-S", "-chardev", &socket, "-gdb", "chardev:gdb"]);
            }
        }
        let watched = control != Control::Plain;
        if !self.append.is_empty() {
            let append = if watched {
                self.boot_arguments()
            } else {
                self.append.clone()
            };
            add(&["-append", &append]);
        }
        if let Some(kernel) = &self.kernel {
            list.push("-kernel".into());
            list.push(kernel.clone().into());
        }
        if let Some(initrd) = &self.initrd {
            list.push("-initrd".into());
            list.push(initrd.clone().into());
        }
        let mut append = false;
        for argument in &self.extra {
            list.push(match argument.to_str() {
                Some(text) if append && watched => self.with_token(text).into(),
                _ => argument.clone(),
            });
            append = argument == "-append" || argument == "--append";
        }
        list
    }

    /// The command as a person would type it.
    pub fn command_line(&self, console: Console) -> String {
        let mut words = vec![self.qemu.program.display().to_string()];
        let arguments = self.arguments(console, Control::Plain);
        words.extend(arguments.iter().map(|a| a.to_string_lossy().into_owned()));
        super::typed(words.iter().map(String::as_str))
    }
}

/// The arguments that have QEMU put a file's bytes, as they are, to an address.
pub fn loaded(file: &Path, at: u64) -> [String; 2] {
    let file = escaped(file);
    let device = format!("loader,file={file},addr={at:#x},force-raw=on");
    ["-device".into(), device]
}

/// The arguments for RAM that QEMU's device tree does not name: a device's that needs no
/// driver. `room` is how far addresses go, as QEMU has sizes.
pub fn more_ram(at: u64, size: Size, room: &str) -> [String; 6] {
    [
        "-m".into(),
        format!("slots=4,maxmem={room}"),
        "-object".into(),
        format!("memory-backend-ram,id=more,size={size}"),
        "-device".into(),
        format!("virtio-mem-pci,memdev=more,memaddr={at:#x},requested-size={size}"),
    ]
}

/// A file's name within an argument of QEMU's, which a comma would end.
pub fn escaped(file: &Path) -> String {
    file.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::qemu::Version;

    fn machine() -> Machine {
        Machine {
            qemu: Qemu {
                program: "qemu-system-aarch64".into(),
                version: Version(10, 0),
            },
            cpu: "cortex-a72".into(),
            cpus: 2,
            ram: Size::mib(768),
            ram_base: RAM_BASE,
            kernel: Some("undercroft.img".into()),
            initrd: Some("bundle.cpio".into()),
            append: "undercroft.granule=4k a b".into(),
            end: Some(Token::of_bits(7)),
            el2: true,
            log_uart: true,
            debugger: None,
            extra: vec!["-trace".into()],
        }
    }

    #[test]
    fn a_command_line_can_be_typed() {
        let line = machine().command_line(Console::Terminal);
        let words = shlex::split(&line).expect("a shell can read it");
        assert_eq!(words[0], "qemu-system-aarch64");
        assert!(
            line.contains("virt,virtualization=on,gic-version=3"),
            "{line}"
        );
        assert!(
            words.contains(&"undercroft.granule=4k a b".to_string()),
            "{line}"
        );
        assert!(words.windows(2).any(|w| w == ["-serial", "mon:stdio"]));
        assert!(
            words
                .windows(2)
                .any(|w| w == ["-serial", "file:/dev/stderr"])
        );
        assert_eq!(words.last().map(String::as_str), Some("-trace"));
    }

    #[test]
    fn only_a_machine_that_is_watched_has_a_token() {
        let mut machine = machine();
        machine.extra = ["-append", "own words", "-name", "x"]
            .map(Into::into)
            .into();
        let sockets = Control::Sockets { log: 3, monitor: 4 };
        let token = "undercroft.end=00000000000000000000000000000007";
        let append = |control| -> Vec<String> {
            let arguments = machine.arguments(Console::Pipes, control);
            let pairs = arguments.windows(2).filter(|pair| pair[0] == "-append");
            pairs
                .map(|pair| pair[1].to_string_lossy().into_owned())
                .collect()
        };
        assert_eq!(
            append(sockets),
            [
                format!("undercroft.granule=4k a b {token}"),
                format!("own words {token}")
            ]
        );
        assert_eq!(
            append(Control::Plain),
            ["undercroft.granule=4k a b", "own words"]
        );
    }

    #[test]
    fn an_old_qemu_gets_one_uart() {
        let mut machine = machine();
        machine.log_uart = false;
        let line = machine.command_line(Console::Pipes);
        assert_eq!(line.matches("-serial").count(), 1, "{line}");
    }
}

//! The machine as its device tree describes it.
//!
//! Read once at boot; nothing here is a board's constant. A property that is
//! needed and missing is an error that names it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use arm64::intid::Kind;
use core::fmt;
use core::ops::Range;
use devtree::Damage;
use dtoolkit::error::StandardError;
use dtoolkit::fdt::FdtNode;
use dtoolkit::standard::{NodeStandard, Status};
use dtoolkit::{Node, Property};

/// A PL011 of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Path of its node.
    pub path: String,
    /// PA of its registers, 4 KiB of them.
    pub base: u64,
    /// Its interrupt, an INTID; `None` when the tree names none.
    pub intid: Option<u32>,
}

/// The GICv3 of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gic {
    /// Distributor registers.
    pub distributor: Range<u64>,
    /// Redistributor regions.
    pub redistributors: Vec<Range<u64>>,
}

/// What the host knows of the machine.
#[derive(Clone, Debug, Default)]
pub struct Platform {
    /// RAM, as the memory nodes have it.
    pub memory: Vec<Range<u64>>,
    /// Ranges that are not free: memreserve and reserved-memory.
    pub reserved: Vec<Range<u64>>,
    /// Those of them that must not even be mapped.
    pub no_map: Vec<Range<u64>>,
    /// The bundle; `None` when the boot loader gave none.
    pub initrd: Option<Range<u64>>,
    /// Boot arguments.
    pub bootargs: String,
    /// `/chosen/rng-seed`: what the boot loader has drawn for whoever it boots.
    pub rng_seed: Vec<u8>,
    /// Affinities (MPIDR_EL1 fields) of the CPUs, in the tree's order.
    pub cpus: Vec<u64>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The guest console: `stdout-path`, else the first PL011.
    pub console: Option<Uart>,
    /// The log's UART where it is another than the console.
    pub log: Option<Uart>,
    /// The registers of a PL031, which tells the time.
    pub clock: Option<u64>,
    /// INTID of the physical timer of EL1 (CNTP).
    pub timer_intid: u32,
    /// INTID of the virtual timer (CNTV).
    pub virtual_timer_intid: u32,
}

/// The boot arguments alone, of a tree that may be of no other use.
pub fn boot_arguments(dtb: &[u8]) -> &str {
    let fdt = devtree::open(dtb).ok();
    let chosen = fdt.and_then(|fdt| fdt.root().child("chosen"));
    let property = chosen.and_then(|chosen| chosen.property("bootargs"));
    property.and_then(|p| p.value_as().ok()).unwrap_or("")
}

/// The value of `key=value` in `bootargs`; the last one counts.
pub fn boot_argument<'a>(bootargs: &'a str, key: &str) -> Option<&'a str> {
    bootargs
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .next_back()
}

/// What of the device tree is not as it must be.
#[derive(Clone, Debug)]
pub enum PlatformError {
    /// It is damaged.
    Damaged(Damage),
    /// A node's `reg` is not of the cells that it must be.
    Reg(String, StandardError),
    /// A node's `reg` passes the end of addresses.
    RegEnd(String),
    /// A CPU's node has no `reg`.
    NoReg(String),
    /// A property of /chosen is not of one or two cells.
    Cells(&'static str),
    /// The initrd ends before it starts.
    Initrd,
    /// It has no memory.
    NoMemory,
    /// It has no CPU.
    NoCpu,
    /// It has no GICv3 with its registers.
    NoGic,
}

impl fmt::Display for PlatformError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Damaged(damage) = self {
            return damage.fmt(f);
        }
        f.write_str("device tree: ")?;
        match self {
            Self::Damaged(_) => Ok(()),
            Self::Reg(node, why) => write!(f, "{node}: reg: {why}"),
            Self::RegEnd(node) => write!(f, "{node}: reg passes the end of addresses"),
            Self::NoReg(path) => write!(f, "{path}: no reg"),
            Self::Cells(name) => write!(f, "/chosen/{name}: expected one or two cells"),
            Self::Initrd => f.write_str("/chosen: the initrd ends before it starts"),
            Self::NoMemory => f.write_str("no memory node"),
            Self::NoCpu => f.write_str("no CPU node"),
            Self::NoGic => f.write_str("no GICv3 (arm,gic-v3) with its registers"),
        }
    }
}

/// The `reg` entries of a node as ranges.
fn reg(node: FdtNode<'_>) -> Result<Vec<Range<u64>>, PlatformError> {
    let name = || node.name().to_string();
    let wrong = |why| PlatformError::Reg(name(), why);
    let mut out = Vec::new();
    let entries = node.reg().map_err(|why| wrong(why.into()))?;
    for entry in entries.into_iter().flatten() {
        let start: u64 = entry.address().map_err(wrong)?;
        let size: u64 = entry.size().map_err(wrong)?;
        let end = start
            .checked_add(size)
            .ok_or_else(|| PlatformError::RegEnd(name()))?;
        out.push(start..end);
    }
    Ok(out)
}

fn cells(value: &[u8]) -> impl Iterator<Item = u32> + '_ {
    value
        .chunks_exact(4)
        .map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]))
}

/// A value of one or two cells.
fn integer(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 | 8 => Some(cells(value).fold(0, |high, low| high << 32 | u64::from(low))),
        _ => None,
    }
}

/// The `index`-th interrupt of a node below a GIC with `width` cells each.
fn interrupt(node: FdtNode<'_>, index: usize, width: usize) -> Option<u32> {
    let [kind, number] = devtree::interrupt(node, index, Some(width))?;
    let (first, kind) = match kind {
        0 => (32, Kind::Spi),
        1 => (16, Kind::Ppi),
        2 => (4096, Kind::ExtendedSpi),
        3 => (1056, Kind::ExtendedPpi),
        _ => return None,
    };
    let intid = number.checked_add(first)?;
    (Kind::of(intid) == kind).then_some(intid)
}

fn usable(node: &FdtNode<'_>) -> bool {
    matches!(node.status(), Ok(Status::Okay))
}

/// How addresses below a bus become addresses above it: its `ranges`.
enum Bus {
    /// The same addresses.
    Identity,
    /// Windows: start below, start above, bytes.
    Windows(Vec<(u64, u64, u64)>),
    /// What is below cannot be addressed from above.
    Opaque,
}

impl Bus {
    fn of(node: FdtNode<'_>) -> Self {
        let Ok(Some(ranges)) = node.ranges() else {
            return Self::Opaque;
        };
        let mut any = false;
        let windows = ranges
            .inspect(|_| any = true)
            // Those with wider addresses, as PCI's, are no registers of ours.
            .filter_map(|r| {
                let below = r.child_bus_address().ok()?;
                let above = r.parent_bus_address().ok()?;
                Some((below, above, r.length().ok()?))
            })
            .collect();
        if any {
            Self::Windows(windows)
        } else {
            Self::Identity
        }
    }

    fn raise(&self, range: &Range<u64>) -> Option<Range<u64>> {
        match self {
            Self::Identity => Some(range.clone()),
            Self::Opaque => None,
            Self::Windows(windows) => windows.iter().find_map(|&(below, above, bytes)| {
                let from = range.start.checked_sub(below)?;
                let to = range.end.checked_sub(below)?;
                (to <= bytes).then_some(above.checked_add(from)?..above.checked_add(to)?)
            }),
        }
    }
}

/// What a walk through the tree meets before it is known which of it is used.
#[derive(Default)]
struct Found {
    uarts: Vec<Uart>,
    /// PL031s, by address, and by which clock each goes, if the tree says so.
    clocks: Vec<(u64, Option<u32>)>,
    /// Clocks that nobody stops.
    fixed: Vec<u32>,
}

impl Found {
    /// The first PL031 that answers: not one whose clock somebody has to start.
    fn clock(&self) -> Option<u64> {
        let runs = |by: &u32| self.fixed.contains(by);
        let mut clocks = self.clocks.iter();
        clocks.find_map(|(at, by)| by.as_ref().is_none_or(runs).then_some(*at))
    }
}

/// A node with all that is above it.
struct Place<'a, 'b> {
    node: FdtNode<'a>,
    path: &'b str,
    /// The buses above it, outermost first.
    buses: &'b [Bus],
}

impl Place<'_, '_> {
    /// Its registers as the CPU addresses them. What the buses above do not
    /// pass is left out.
    fn registers(&self) -> Result<Vec<Range<u64>>, PlatformError> {
        let raise = |range| {
            let mut buses = self.buses.iter().rev();
            buses.try_fold(range, |range, bus| bus.raise(&range))
        };
        Ok(reg(self.node)?.into_iter().filter_map(raise).collect())
    }
}

/// Visits all nodes below `node`, depth first, at most 16 deep.
fn visit<'a>(
    node: FdtNode<'a>,
    path: &str,
    buses: &mut Vec<Bus>,
    f: &mut impl FnMut(&Place<'a, '_>),
) {
    if buses.len() == 16 {
        return;
    }
    for child in node.children() {
        let path = format!("{path}/{}", child.name());
        f(&Place {
            node: child,
            path: &path,
            buses,
        });
        buses.push(Bus::of(child));
        visit(child, &path, buses, f);
        buses.pop();
    }
}

/// The path that an alias or a path names, without options behind a colon.
fn resolve(aliases: &[(String, String)], name: &str) -> String {
    let name = name.split(':').next().unwrap_or(name);
    if name.starts_with('/') {
        return name.to_string();
    }
    aliases
        .iter()
        .find(|(alias, _)| alias == name)
        .map_or_else(String::new, |(_, path)| path.clone())
}

impl Platform {
    /// Reads the device tree.
    pub fn parse(dtb: &[u8]) -> Result<Self, PlatformError> {
        let fdt = devtree::open(dtb).map_err(PlatformError::Damaged)?;
        let root = fdt.root();
        let mut platform = Self {
            // The architecture's recommended PPIs, unless /timer names others.
            timer_intid: 30,
            virtual_timer_intid: 27,
            ..Self::default()
        };
        for reservation in fdt.memory_reservations() {
            let start = reservation.address();
            platform
                .reserved
                .push(start..start.saturating_add(reservation.size()));
        }
        let mut aliases = Vec::new();
        if let Some(node) = root.child("aliases") {
            for property in node.properties() {
                if let Ok(path) = property.value_as::<&str>() {
                    aliases.push((property.name().to_string(), path.to_string()));
                }
            }
        }
        let mut stdout = None;
        if let Some(chosen) = root.child("chosen") {
            // What is no text is as if it were not there, as EL2 has it.
            let text = |name: &str| -> Option<String> {
                let text = chosen.property(name)?.value_as::<&str>().ok()?;
                Some(text.to_string())
            };
            platform.bootargs = text("bootargs").unwrap_or_default();
            if let Some(seed) = chosen.property("rng-seed") {
                platform.rng_seed = seed.value().to_vec();
            }
            stdout = text("stdout-path").map(|name| resolve(&aliases, &name));
            let address = |name: &'static str| -> Result<Option<u64>, PlatformError> {
                match chosen.property(name) {
                    None => Ok(None),
                    Some(p) => integer(p.value())
                        .map(Some)
                        .ok_or(PlatformError::Cells(name)),
                }
            };
            let (start, end) = (address("linux,initrd-start")?, address("linux,initrd-end")?);
            if let (Some(start), Some(end)) = (start, end) {
                if end < start {
                    return Err(PlatformError::Initrd);
                }
                platform.initrd = (end > start).then_some(start..end);
            }
        }
        // The GIC says how many cells an interrupt takes: three, or four.
        let mut width = 3;
        visit(root, "", &mut Vec::new(), &mut |place| {
            let node = place.node;
            if node.is_compatible("arm,gic-v3") {
                let cells = node.property("#interrupt-cells");
                width = cells.and_then(|p| integer(p.value())).unwrap_or(3) as usize;
            }
        });
        let mut found = Found::default();
        let mut failed = Ok(());
        visit(root, "", &mut Vec::new(), &mut |place| {
            if !usable(&place.node) {
                return;
            }
            if let Err(e) = platform.visit_node(place, width, &mut found)
                && failed.is_ok()
            {
                failed = Err(e);
            }
        });
        failed?;
        platform.clock = found.clock();
        platform.choose_uarts(&aliases, stdout.as_deref(), found.uarts);
        platform.check()
    }

    fn visit_node(
        &mut self,
        place: &Place<'_, '_>,
        width: usize,
        found: &mut Found,
    ) -> Result<(), PlatformError> {
        let (node, path) = (place.node, place.path);
        let device_type = node
            .property("device_type")
            .and_then(|p| p.value_as::<&str>().ok().map(ToString::to_string));
        match device_type.as_deref() {
            Some("memory") => self
                .memory
                .extend(place.registers()?.into_iter().filter(|r| !r.is_empty())),
            Some("cpu") => {
                let id = node
                    .property("reg")
                    .and_then(|p| integer(p.value()))
                    .ok_or_else(|| PlatformError::NoReg(path.to_string()))?;
                self.cpus.push(id);
            }
            _ => {}
        }
        if path.starts_with("/reserved-memory/") {
            let ranges = place.registers()?;
            if node.property("no-map").is_some() {
                self.no_map.extend(ranges.iter().cloned());
            }
            self.reserved.extend(ranges);
        }
        if node.is_compatible("arm,gic-v3") {
            let regions = node
                .property("#redistributor-regions")
                .and_then(|p| integer(p.value()))
                .unwrap_or(1) as usize;
            let mut ranges = place.registers()?.into_iter();
            self.gic.distributor = ranges.next().unwrap_or_default();
            self.gic.redistributors = ranges.take(regions).collect();
        }
        if node.is_compatible("arm,pl011")
            && let Some(range) = place.registers()?.first()
        {
            found.uarts.push(Uart {
                path: path.to_string(),
                base: range.start,
                intid: interrupt(node, 0, width),
            });
        }
        if node.is_compatible("arm,pl031")
            && let Some(range) = place.registers()?.first()
        {
            let clocked = node.property("clocks");
            let by = clocked.and_then(|p| cells(p.value()).next());
            found.clocks.push((range.start, by));
        }
        if node.is_compatible("fixed-clock") {
            let handle = node.property("phandle");
            found
                .fixed
                .extend(handle.and_then(|p| cells(p.value()).next()));
        }
        if node.is_compatible("arm,armv8-timer") {
            let ours = [&mut self.timer_intid, &mut self.virtual_timer_intid];
            for (place, (name, at)) in ours.into_iter().zip([("phys", 1), ("virt", 2)]) {
                let at = devtree::named(node, name, at);
                let found = at.and_then(|at| interrupt(node, at, width));
                *place = found.unwrap_or(*place);
            }
        }
        Ok(())
    }

    fn choose_uarts(
        &mut self,
        aliases: &[(String, String)],
        stdout: Option<&str>,
        uarts: Vec<Uart>,
    ) {
        let by_path = |path: &str| uarts.iter().find(|u| u.path == path).cloned();
        self.console = stdout.and_then(by_path).or_else(|| uarts.first().cloned());
        if boot_argument(&self.bootargs, "undercroft.log") == Some("serial1") {
            self.log = by_path(&resolve(aliases, "serial1"))
                .filter(|log| Some(log) != self.console.as_ref());
        }
    }

    fn check(self) -> Result<Self, PlatformError> {
        if self.memory.is_empty() {
            return Err(PlatformError::NoMemory);
        }
        if self.cpus.is_empty() {
            return Err(PlatformError::NoCpu);
        }
        if self.gic.distributor.is_empty() || self.gic.redistributors.is_empty() {
            return Err(PlatformError::NoGic);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that nobody has started may hang whoever reads it.
    #[test]
    fn the_first_clock_that_runs_by_itself_counts() {
        let clock = |clocks: &[(u64, Option<u32>)], fixed: &[u32]| {
            let found = Found {
                clocks: clocks.to_vec(),
                fixed: fixed.to_vec(),
                ..Found::default()
            };
            found.clock()
        };
        assert_eq!(clock(&[], &[7]), None);
        assert_eq!(
            clock(&[(1, Some(6)), (2, Some(7)), (3, None)], &[7]),
            Some(2)
        );
        assert_eq!(clock(&[(1, Some(6)), (3, None)], &[7]), Some(3));
        assert_eq!(clock(&[(1, Some(6))], &[]), None);
    }

    #[test]
    fn the_last_boot_argument_counts() {
        let args = "quiet undercroft.log=serial0 x=1  undercroft.log=serial1";
        assert_eq!(boot_argument(args, "undercroft.log"), Some("serial1"));
        assert_eq!(boot_argument(args, "undercroft.l"), None);
        assert_eq!(boot_argument("", "a"), None);
    }
}

//! The line that starts a debugger on a machine that waits for one.

use super::plan::Guests;
use crate::build::Image;
use crate::image::{appendix, header};
use crate::machine::virt::{Machine, RAM_BASE};
use crate::ui;

/// QEMU keeps this much at the base of RAM for itself, and so does the host
/// for a guest's Image.
const QEMU_KEEPS: u64 = 2 << 20;

/// Where a plain guest sees the base of its RAM.
const GUEST_RAM_BASE: u64 = 0x4000_0000;

/// Prints the debugger's line, with the symbols of both images, and where the
/// guests are loaded.
pub fn tell(machine: &Machine, image: &Image, guests: &Guests) {
    let Some(port) = machine.gdb else { return };
    let mut line = format!("gdb-multiarch -ex 'target remote 127.0.0.1:{port}'");
    // QEMU loads an image at its offset from the base of RAM, but not into
    // the first 2 MiB, where its own few instructions stand.
    let offset = std::fs::read(&image.file)
        .ok()
        .as_deref()
        .and_then(header::text_offset);
    let mut address = RAM_BASE + offset.unwrap_or(0);
    if offset.unwrap_or(0) < 4096 {
        address += QEMU_KEEPS;
    }
    if let Some(hyp) = &image.hyp {
        line += &format!(" -ex 'add-symbol-file {} -o {address:#x}'", hyp.display());
    }
    // hyp puts the host at the lowest place that is free, which is below hyp
    // itself unless the host has outgrown it.
    let data = std::fs::read(&image.file).unwrap_or_default();
    let fits = appendix::payload_len(&data).is_some_and(|len| RAM_BASE + len <= address);
    if let Some(host) = image.host.as_ref().filter(|_| fits) {
        line += &format!(" -ex 'add-symbol-file {} -o {RAM_BASE:#x}'", host.display());
    }
    ui::note(
        "Waiting",
        format_args!("for a debugger on port {port}; start it with"),
    );
    ui::say(format_args!("\n{line}\n"));
    ui::say(format_args!(
        "hyp is at {address:#x}; break there with `hbreak *{address:#x}`."
    ));
    match &image.host {
        Some(_) if fits => ui::say(format_args!(
            "host-loader is at {RAM_BASE:#x}, as the log will confirm."
        )),
        Some(host) => {
            ui::say("host-loader is where the log says `host at ADDRESS`; then, in gdb:");
            ui::say(format_args!(
                "  add-symbol-file {} -o ADDRESS",
                host.display()
            ));
        }
        None => {}
    }
    for guest in &guests.list {
        let head = std::fs::read(&guest.kernel).unwrap_or_default();
        let kernel = header::text_offset(&head).map_or_else(
            || "its kernel's place is its format's to say".into(),
            |offset| format!("kernel at {:#x}", GUEST_RAM_BASE + QEMU_KEEPS + offset),
        );
        ui::say(format_args!(
            "guest {}: RAM from IPA {GUEST_RAM_BASE:#x}, {kernel}.",
            guest.name
        ));
    }
}

//! A QEMU plugin that counts the instructions which all CPUs execute until one
//! of them first executes the instruction at a given virtual address.
//!
//! Arguments: `until=ADDRESS` (hexadecimal) and `out=FILE`, into which the
//! count goes as a decimal number. Idle time costs nothing, so with `-icount`
//! the same machine gives the same number every time.
//!
//! Facts: QEMU's `include/qemu/qemu-plugin.h`, API version 2 (QEMU 9.0) and
//! later. From version 7 (QEMU 11.1) on, a callback of a translated block gets
//! the block and data of ours, before it got our id and the block; the rest of
//! what is used here has stayed the same.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// `qemu_plugin_u64`: a counter in each CPU's slot of a scoreboard.
#[repr(C)]
#[derive(Clone, Copy)]
struct Counter {
    score: *mut c_void,
    offset: usize,
}

/// `QEMU_PLUGIN_INLINE_ADD_U64`.
const ADD: c_int = 0;
/// `QEMU_PLUGIN_CB_NO_REGS`.
const NO_REGISTERS: c_int = 0;

unsafe extern "C" {
    fn qemu_plugin_scoreboard_new(element_size: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(entry: Counter) -> u64;
    // Before version 7 there is no third argument, and nobody looks at it.
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: u64,
        cb: extern "C" fn(*mut c_void, *mut c_void),
        userdata: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(tb: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;
    fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        insn: *mut c_void,
        op: c_int,
        entry: Counter,
        imm: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        cb: extern "C" fn(c_uint, *mut c_void),
        flags: c_int,
        userdata: *mut c_void,
    );
}

/// The API version that QEMU compares with those it speaks: the runner knows
/// which QEMU it builds this for.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = match option_env!("UNDERCROFT_PLUGIN_API") {
    Some(text) => match c_int::from_str_radix(text, 10) {
        Ok(version) => version,
        Err(_) => panic!("UNDERCROFT_PLUGIN_API is no number"),
    },
    None => 2,
};

/// From this API version on the block comes first.
const BLOCK_FIRST: c_int = 7;

/// The beginning of `qemu_info_t`.
#[repr(C)]
struct Info {
    target: *const c_char,
    /// The API versions that QEMU speaks.
    oldest: c_int,
    newest: c_int,
}

/// What the arguments asked for, and the counter.
struct Task {
    until: u64,
    out: String,
    counter: Counter,
}

// SAFETY: the only pointer in it is QEMU's handle of a scoreboard, which QEMU
// lets any of its threads use.
unsafe impl Send for Task {}
// SAFETY: as above; nothing in it changes after it was made.
unsafe impl Sync for Task {}

static TASK: OnceLock<Task> = OnceLock::new();
static REACHED: AtomicBool = AtomicBool::new(false);

/// Called by QEMU once, before the machine runs; 0 means success.
///
/// # Safety
/// `argv` points to `argc` strings that end with a NUL, and `info` to what QEMU
/// says of itself, as QEMU guarantees.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    info: *const c_void,
    argc: c_int,
    argv: *const *const c_char,
) -> c_int {
    let (mut until, mut out) = (None, None);
    for i in 0..usize::try_from(argc).unwrap_or(0) {
        // SAFETY: the caller promises `argc` strings at `argv`.
        let argument = unsafe { CStr::from_ptr(*argv.add(i)) }.to_string_lossy();
        match argument.split_once('=') {
            Some(("until", value)) => {
                until = u64::from_str_radix(value.trim_start_matches("0x"), 16).ok();
            }
            Some(("out", value)) => out = Some(value.to_string()),
            _ => {}
        }
    }
    let (Some(until), Some(out)) = (until, out) else {
        eprintln!("count: needs until=ADDRESS and out=FILE");
        return 1;
    };
    // SAFETY: QEMU allows this call during installation.
    let score = unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) };
    let counter = Counter { score, offset: 0 };
    if TASK
        .set(Task {
            until,
            out,
            counter,
        })
        .is_err()
    {
        return 1;
    }
    // SAFETY: the caller promises QEMU's description of itself.
    let newest = unsafe { (*info.cast::<Info>()).newest };
    let translated = if newest >= BLOCK_FIRST {
        block_first
    } else {
        block_second
    };
    // SAFETY: `id` is ours, and the callback lives as long as this library,
    // which is never unloaded. It takes what this QEMU gives it.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, translated, std::ptr::null_mut()) };
    0
}

extern "C" fn block_first(block: *mut c_void, _data: *mut c_void) {
    translated(block);
}

/// The first argument is our id: a number of 64 bits, passed as a pointer is.
extern "C" fn block_second(_id: *mut c_void, block: *mut c_void) {
    translated(block);
}

/// Called for each block that QEMU translates: counts each of its instructions
/// and watches for the one that ends the count.
fn translated(block: *mut c_void) {
    let Some(task) = TASK.get() else { return };
    // SAFETY: QEMU passes a block that is valid during this call.
    let count = unsafe { qemu_plugin_tb_n_insns(block) };
    for index in 0..count {
        // SAFETY: `index` is below the number of instructions of the block.
        let insn = unsafe { qemu_plugin_tb_get_insn(block, index) };
        // SAFETY: `insn` is valid while its block is, and so is the counter.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, ADD, task.counter, 1);
        };
        // SAFETY: `insn` is valid while its block is.
        if unsafe { qemu_plugin_insn_vaddr(insn) } == task.until {
            // SAFETY: as above; the callback takes no data.
            unsafe {
                qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    reached,
                    NO_REGISTERS,
                    std::ptr::null_mut(),
                );
            };
        }
    }
}

/// Called when a CPU executes the awaited instruction.
extern "C" fn reached(_cpu: c_uint, _data: *mut c_void) {
    let Some(task) = TASK.get() else { return };
    if REACHED.swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: the counter's scoreboard lives as long as QEMU.
    let count = unsafe { qemu_plugin_u64_sum(task.counter) };
    if let Err(error) = std::fs::write(&task.out, format!("{count}\n")) {
        eprintln!("count: cannot write {}: {error}", task.out);
    }
}

//! What EL2 and the host run before their MMU is on, where exclusive accesses need
//! not work: by QEMU's list of what it translates, which it makes in the order in
//! which code is first reached.

use std::fs;
use std::ops::Range;

use anyhow::{Context as _, Result, ensure};

use super::call::Call;
use super::{Case, Context};
use crate::build;
use crate::machine::virt::RAM_BASE;

/// MSR SCTLR_EL2 and SCTLR_EL1 of any register.
const SET_SCTLR_EL2: u32 = 0xd51c_1000;
const SET_SCTLR_EL1: u32 = 0xd518_1000;

/// What an image may be large, and what each begins at a multiple of.
const IMAGE: u64 = 2 << 20;

/// The cases.
pub fn cases() -> Vec<Case> {
    let machines = [("cortex-a72", "4k"), ("neoverse-n1", "64k"), ("max", "16k")];
    let case = |(cpu, granule)| {
        let name = format!("early/no-exclusives-{cpu}-{granule}");
        Case::new(name, move |context| no_exclusives(context, cpu, granule))
    };
    machines.into_iter().map(case).collect()
}

fn no_exclusives(context: &Context, cpu: &str, granule: &str) -> Result<()> {
    let folder = tempfile::tempdir_in(&context.folder)?;
    let list = folder.path().join("list");
    let kernel = build::program(&context.workspace, "hello")?;
    Call::run(context)?
        .args(["--cpu", cpu, "--granule", granule, "--smp", "2"])
        .args(["--initrd", "none", "--kernel"])
        .args([kernel.as_os_str()])
        .args(["--", "-d", "in_asm", "-D"])
        .args([list.as_os_str()])
        .call()?
        .ended(0)?;
    let list = fs::read_to_string(&list)?;
    let code: Vec<(u64, u32)> = list.lines().filter_map(instruction).collect();
    ensure!(!code.is_empty(), "QEMU lists no code");
    // Behind QEMU's own words at RAM's base EL2 is reached first, the host next, each
    // at its first word.
    let begins = |at: &u64| at.is_multiple_of(IMAGE) && *at != RAM_BASE;
    let mut bases = code.iter().map(|(at, _)| *at).filter(begins);
    let el2 = bases.next().context("EL2 does not begin")?;
    let host = bases.find(|at| *at != el2).context("no host begins")?;
    // EL2 says first that its MMU is off.
    judge(&code, el2..el2 + IMAGE, SET_SCTLR_EL2, 2).context("EL2")?;
    judge(&code, host..host + IMAGE, SET_SCTLR_EL1, 1).context("the host")
}

/// No exclusive access in the code of `image` that stands before its `nth` write of
/// SCTLR.
fn judge(code: &[(u64, u32)], image: Range<u64>, sctlr: u32, nth: usize) -> Result<()> {
    let of_image = || code.iter().filter(|(at, _)| image.contains(at));
    let on = of_image()
        .enumerate()
        .filter(|(_, (_, word))| word & !0x1f == sctlr)
        .map(|(place, _)| place)
        .nth(nth - 1)
        .context("its MMU never goes on")?;
    let early = of_image().take(on);
    let exclusive: Vec<String> = early
        .filter(|(_, word)| is_exclusive(*word))
        .map(|(at, word)| format!("{:#x}: {word:08x}", at - image.start))
        .collect();
    ensure!(
        exclusive.is_empty(),
        "exclusive accesses before its MMU is on, by place in the image:\n{}",
        exclusive.join("\n")
    );
    Ok(())
}

/// A line of the list: the address, and the word that stands there.
fn instruction(line: &str) -> Option<(u64, u32)> {
    let (address, rest) = line.strip_prefix("0x")?.split_once(':')?;
    let word = rest.split_whitespace().next()?;
    let address = u64::from_str_radix(address, 16).ok()?;
    Some((address, u32::from_str_radix(word, 16).ok()?))
}

/// Load-exclusive, store-exclusive, compare-and-swap (Arm ARM C4.1, Loads and stores:
/// bit 23 tells load-acquire and store-release from them, and bit 21 compare-and-swap),
/// or an atomic memory operation.
fn is_exclusive(word: u32) -> bool {
    let ordered = word & 0x0080_0000 != 0 && word & 0x0020_0000 == 0;
    let exclusive = word & 0x3f00_0000 == 0x0800_0000 && !ordered;
    // LDAPR has their form.
    let atomic = word & 0x3b20_0c00 == 0x3820_0000 && word & 0xf000 != 0xc000;
    exclusive || atomic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusive_accesses_are_known() {
        // ldaxrb w10,[x9]; stxr w10,x9,[x8]; casal x0,x1,[x2]; ldadd x0,x1,[x2];
        // swpb w0,w1,[x2]
        for word in [
            0x085f_fd2a,
            0xc80a_7d09,
            0xc8e0_fc41,
            0xf820_0041,
            0x3820_8041,
        ] {
            assert!(is_exclusive(word), "{word:x}");
        }
        // ldar x0,[x1]; stlrb w0,[x1]; ldapr x0,[x1]; ldr x0,[x1,x2]; stp x0,x1,[sp]
        for word in [
            0xc8df_fc20,
            0x089f_fc20,
            0xf8bf_c020,
            0xf862_6820,
            0xa900_07e0,
        ] {
            assert!(!is_exclusive(word), "{word:x}");
        }
        assert_eq!(
            instruction("0x4020713c:  085ffd2a  ldaxrb   w10, [x9]"),
            Some((0x4020_713c, 0x085f_fd2a))
        );
    }
}

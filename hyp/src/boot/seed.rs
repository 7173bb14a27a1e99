//! Entropy for EL2's generator, gathered while nobody else runs. What is taken from
//! the device tree is overwritten: the host must not know what keys are made of.

use arm64::instr;
use attest::{Entropy, Generator};
use core::ops::Range;
use dtoolkit::{Node, Property};
use log::{info, warn};
use spin::mutex::SpinMutex;

use crate::memory::phys;
use crate::memory::region::Region;

/// What the boot loader leaves in `/chosen`.
const SEEDS: [&str; 2] = ["rng-seed", "kaslr-seed"];
/// Numbers that the CPU is asked for, where each may fail: half of them would do.
const OF_CPU: usize = 8;

/// Gathers what there is, and gives the host seeds of its own where it would have had
/// the boot loader's.
///
/// # Safety
/// `dtb` is RAM that EL2 maps, and nobody else reads or writes it meanwhile.
pub unsafe fn begin(
    dtb: Region,
    has_rng: bool,
    firmware: impl Fn() -> Option<[u64; 3]>,
) -> Option<SpinMutex<Generator>> {
    let mut entropy = Entropy::default();
    let mut add = |words: &[u64]| {
        words.iter().for_each(|w| entropy.add(&w.to_le_bytes()));
        words.len()
    };
    let asked = if has_rng { OF_CPU } else { 0 };
    let cpu = (0..asked)
        .filter_map(|_| instr::rndrrs())
        .map(|word| add(&[word]));
    let of_cpu: usize = cpu.sum();
    let of_firmware = firmware().map_or(0, |words| add(&words));
    // SAFETY: the caller's promise.
    let tree =
        unsafe { core::slice::from_raw_parts_mut(phys::pointer(dtb.base()), dtb.size() as usize) };
    let (generator, of_tree) = replace(tree, entropy);
    // The host reads it with its caches off.
    instr::clean_to_poc(dtb.base(), dtb.size());
    let (of_cpu, of_firmware) = (8 * of_cpu, 8 * of_firmware);
    let words = format_args!(
        "{of_cpu} of the CPU, {of_firmware} of the firmware, {of_tree} of the device tree"
    );
    if generator.is_some() {
        info!("bytes of entropy: {words}");
    } else {
        warn!("bytes of entropy: {words}; too few for random numbers and attestation");
    }
    generator.map(SpinMutex::new)
}

/// A generator of this entropy and the seeds of a tree, which has fresh ones then; and
/// how many bytes they were. A tree whose seeds EL2 has no use for keeps them.
fn replace(tree: &mut [u8], mut entropy: Entropy) -> (Option<Generator>, usize) {
    let places = SEEDS.map(|name| seed(tree, name).unwrap_or(0..0));
    for place in &places {
        entropy.add(&tree[place.clone()]);
    }
    let mut generator = entropy.generator();
    if let Some(generator) = &mut generator {
        for place in &places {
            generator.fill(&mut tree[place.clone()]);
        }
    }
    (generator, places.iter().map(Range::len).sum())
}

/// Where a seed is.
fn seed(tree: &[u8], name: &str) -> Option<Range<usize>> {
    let fdt = devtree::open(tree).ok()?;
    let property = fdt.find_node("/chosen")?.property(name)?;
    let value = property.value();
    let start = value.as_ptr().addr().checked_sub(tree.as_ptr().addr())?;
    Some(start..start + value.len())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;
    use vm_fdt::FdtWriter;

    /// A tree with these properties of `/chosen`.
    fn tree(chosen: &[(&str, &[u8])]) -> Vec<u8> {
        let mut fdt = FdtWriter::new().unwrap();
        let root = fdt.begin_node("").unwrap();
        let node = fdt.begin_node("chosen").unwrap();
        for (name, value) in chosen {
            fdt.property(name, value).unwrap();
        }
        fdt.end_node(node).unwrap();
        fdt.end_node(root).unwrap();
        fdt.finish().unwrap()
    }

    fn values(tree: &[u8]) -> Vec<Vec<u8>> {
        let places = SEEDS.iter().filter_map(|name| seed(tree, name));
        places.map(|place| tree[place].to_vec()).collect()
    }

    #[test]
    fn the_host_has_seeds_that_were_nobodys() {
        let before = tree(&[
            ("bootargs", b"a\0"),
            ("rng-seed", &[7; 32]),
            ("kaslr-seed", &[9; 8]),
        ]);
        let mut after = before.clone();
        let (generator, bytes) = replace(&mut after, Entropy::default());
        assert_eq!(bytes, 40);
        let mut words = generator.unwrap().words::<4>();
        let [rng, kaslr] = &values(&after)[..] else {
            panic!("both are there")
        };
        assert!(rng.len() == 32 && *rng != [7; 32] && kaslr.len() == 8 && *kaslr != [9; 8]);
        assert!(!rng.starts_with(&kaslr[..]));
        // Nothing else has changed.
        let differ = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(differ <= 40);
        // What is drawn depends on the seed and on what came before it.
        let mut entropy = Entropy::default();
        entropy.add(&[1]);
        let other = replace(&mut before.clone(), entropy).0.unwrap().words();
        assert_ne!(words, other);
        words = replace(&mut tree(&[("rng-seed", &[8; 32])]), Entropy::default())
            .0
            .unwrap()
            .words();
        assert_ne!(words, other);
    }

    #[test]
    fn too_little_is_left_to_the_host() {
        for chosen in [
            &[("rng-seed", &[7u8; 23][..]), ("kaslr-seed", &[9; 8])][..],
            &[],
        ] {
            let before = tree(chosen);
            let mut after = before.clone();
            let (generator, _) = replace(&mut after, Entropy::default());
            assert!(generator.is_none());
            assert_eq!(before, after);
        }
        // With another source it is enough, and goes.
        let mut after = tree(&[("rng-seed", &[7; 16])]);
        let mut entropy = Entropy::default();
        entropy.add(&[3; 24]);
        assert!(replace(&mut after, entropy).0.is_some());
        assert_ne!(values(&after), [[7; 16]]);
        // Without a seed there is none to replace.
        let mut entropy = Entropy::default();
        entropy.add(&[3; 32]);
        let mut after = tree(&[]);
        assert!(replace(&mut after, entropy).0.is_some());
        assert_eq!(after, tree(&[]));
    }
}

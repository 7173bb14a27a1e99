//! Leaves told in runs.

use crate::sink::{LeafSink, RemovedLeaf, RemovedRun};

/// Leaves are told in runs: to whoever gives memory back range by range.
///
/// ```
/// # mod example { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/example.rs")); }
/// # use {example::*, pgtable::*};
/// # let (mut tree, mut cpu) = mapped();
/// # let all = &mut Budget::unlimited();
/// let mut free = Vec::new();
/// let mut sink = Runs(|run: RemovedRun| free.push((run.pa(), run.size())));
/// tree.unmap(&mut cpu, &Unmap::new(Ipa::new(0x4000_0000), 2 << 20), &mut sink, all)?;
/// assert_eq!(free, [(Pa::new(0x8000_0000), 2 << 20)]); // 512 pages.
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs<F>(pub F);

impl<F: FnMut(RemovedRun)> LeafSink for Runs<F> {
    #[inline]
    fn leaf(&mut self, leaf: RemovedLeaf) {
        (self.0)(RemovedRun::new(leaf, 1));
    }
    #[inline]
    fn run(&mut self, run: RemovedRun) {
        (self.0)(run);
    }
}

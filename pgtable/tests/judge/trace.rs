//! A run's events, written out for judges that are not ours: the format is in
//! the model's README.
//!
//! `PGTABLE_TRACE` names a file, which then holds the last run of the test, or
//! a directory, which gets a file for each run. A run that fails or panics is
//! written, too.

use mmu_model::Event;
use mmu_model::trace::{Header, Writer};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs of this program that were traced.
static RUNS: AtomicU64 = AtomicU64::new(0);

/// The events of one run, on their way to a file.
pub struct Trace {
    writer: Option<Writer<Vec<u8>>>,
    path: PathBuf,
}

impl Trace {
    /// A trace, if `PGTABLE_TRACE` asks for it.
    pub fn wanted(header: &Header) -> Option<Self> {
        let mut path = PathBuf::from(std::env::var_os("PGTABLE_TRACE")?);
        if path.is_dir() {
            let run = RUNS.fetch_add(1, Ordering::Relaxed);
            path.push(format!("{}-{run}.trace", std::process::id()));
        }
        let writer = Writer::new(Vec::new(), header).expect("a vector takes all");
        Some(Self {
            writer: Some(writer),
            path,
        })
    }

    /// Writes an event.
    pub fn event(&mut self, event: &Event) {
        if let Some(writer) = &mut self.writer {
            writer.event(event).expect("a vector takes all");
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let text = self.writer.take().and_then(|writer| writer.finish().ok());
        if let Some(text) = text
            && let Err(error) = std::fs::write(&self.path, text)
        {
            eprintln!("PGTABLE_TRACE: {}: {error}", self.path.display());
        }
    }
}

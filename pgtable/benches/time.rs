//! The workloads in nanoseconds, for information: instruction counts are the
//! gate (`instructions`).

// What criterion's macros make has no documentation.
#![allow(missing_docs)]

mod common;

use common::{FORMATS, Plain, Prepared, WORKLOADS};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

fn workloads(criterion: &mut Criterion) {
    let format = FORMATS[0];
    let mut group = criterion.benchmark_group(format.name);
    group.sample_size(10);
    for (workload, _, _) in WORKLOADS {
        // One memory for all rounds: tables that go are not used again.
        group.bench_function(workload, |bencher| {
            bencher.iter_batched(
                || {
                    let plain: &Plain = Box::leak(Box::new(Plain::new(format.granule, 1600)));
                    let root = plain.root(format.geometry().root_align());
                    Prepared::new(format, root, plain, workload)
                },
                |mut prepared| prepared.measured(workload),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, workloads);
criterion_main!(benches);

//! The workloads in nanoseconds, for information: instruction counts are the
//! gate (`instructions`).

// What criterion's macros make has no documentation.
#![allow(missing_docs)]

mod common;

use common::{FORMATS, Plain, Prepared, WORKLOADS};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::time::Duration;

fn workloads(criterion: &mut Criterion) {
    let format = FORMATS[0];
    let mut group = criterion.benchmark_group(format.name);
    group.sample_size(10);
    group.warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(2));
    // One memory for all rounds: what a tree's tables lie in is never freed.
    let plain: &Plain = Box::leak(Box::new(Plain::new(format.granule, 1600)));
    for (workload, _, _) in WORKLOADS {
        group.bench_function(workload, |bencher| {
            bencher.iter_batched(
                || {
                    plain.reset();
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

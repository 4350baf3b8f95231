//! Criterion benches over the rows' bench cases on the CPU and on a hardware GPU, if there is one.
//!
//! `cargo bench -p tritter-benches -- rms_norm` runs one row. `tritter bench kernels` gives the same
//! cases with the share of the device's peaks.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;
use tritter_runtime::bench::{Prepared, native};
use tritter_runtime::op::{Row, Size};
use tritter_runtime::{Device, cpu};

fn rows(criterion: &mut Criterion) {
    let mut devices = vec![cpu::open()];
    devices.extend(Device::open("auto").ok().filter(|device| device.caps().backend != "cpu"));
    for device in devices {
        for row in Row::all() {
            // bf16 only where there are kernels for it.
            for case in
                (row.cases)(Size::Bench).into_iter().filter(|case| case.fits(device.caps()) && native(&device, case))
            {
                let Ok(prepared) = Prepared::new(&device, &case) else { continue };
                let cost = case.op.cost(&case.specs());
                let mut group = criterion.benchmark_group(format!("{}/{}", device.caps().id, row.name));
                group
                    .sample_size(10)
                    .measurement_time(Duration::from_millis(500))
                    .warm_up_time(Duration::from_millis(100));
                group.throughput(Throughput::Bytes((cost.read + cost.written) * prepared.sets()));
                group.bench_function(&case.label, |b| b.iter(|| prepared.run()));
                group.finish();
            }
        }
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);

//! Micro-benchmarks of the record-batch codec: building, validating and reading one batch of about 1 MB.
//!
//! Payloads are incompressible, as elsewhere in this crate, but for the compressed cases, which would say nothing then.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use highwater_proto::batch::{
    BatchBuilder, BatchLimits, BatchView, Compression, ValidateDepth, stamped_prefix, validate,
};

/// Record bytes and records of a batch.
const SHAPES: [(&str, usize, usize); 2] = [("1KiBx1000", 1024, 1000), ("100Bx10000", 100, 10_000)];
const KEY: &[u8] = b"N14228";

/// Bytes without pattern: a xorshift generator, so that every run measures the same.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// Half noise, half zeros: halves under every codec.
fn half_noise(bytes: usize) -> Vec<u8> {
    let mut out = noise(bytes);
    for chunk in out.chunks_mut(64) {
        let half = chunk.len() / 2;
        chunk[..half].fill(0);
    }
    out
}

fn fill(builder: &mut BatchBuilder, payload: &[u8], record_bytes: usize) -> Bytes {
    for (timestamp_ms, value) in (1_700_000_000_000..).zip(payload.chunks_exact(record_bytes)) {
        builder.push(timestamp_ms, Some(KEY), Some(value), &[]).expect("it fits");
    }
    builder.build().expect("it has records")
}

fn read_all(batch: Bytes) -> usize {
    let view = BatchView::parse(batch).expect("the batch is whole");
    let records = view.records().expect("the codec is known");
    records.map(|record| record.expect("the record is whole").payload_bytes()).sum()
}

fn uncompressed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_codec");
    let limits = BatchLimits::default();
    for (shape, record_bytes, records) in SHAPES {
        let payload = noise(record_bytes * records);
        let batch = fill(&mut BatchBuilder::new(Compression::None), &payload, record_bytes);
        group.throughput(Throughput::Bytes(batch.len() as u64));
        // The batch is dropped each time, as if it had been sent.
        let mut builder = BatchBuilder::with_capacity(Compression::None, batch.len());
        group.bench_function(format!("build/{shape}"), |bencher| {
            bencher.iter(|| fill(&mut builder, black_box(&payload), record_bytes));
        });
        for (depth, name) in
            [(ValidateDepth::Header, "header"), (ValidateDepth::Structure, "structure")]
        {
            group.bench_function(format!("validate_{name}/{shape}"), |bencher| {
                bencher.iter(|| validate(black_box(&batch), depth, &limits).expect("it is valid"));
            });
        }
        group.bench_function(format!("read/{shape}"), |bencher| {
            bencher.iter_batched(|| batch.clone(), read_all, BatchSize::SmallInput);
        });
        group.bench_function(format!("stamp/{shape}"), |bencher| {
            bencher.iter(|| stamped_prefix(black_box(&batch), black_box(12_345), black_box(6)));
        });
    }
    group.finish();
}

fn compressed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch_codec_compressed");
    group.sample_size(20);
    let limits = BatchLimits::default();
    let (shape, record_bytes, records) = SHAPES[0];
    let payload = half_noise(record_bytes * records);
    group.throughput(Throughput::Bytes(payload.len() as u64));
    for compression in Compression::ALL.into_iter().filter(|&it| it != Compression::None) {
        let mut builder = BatchBuilder::new(compression);
        let batch = fill(&mut builder, &payload, record_bytes);
        group.bench_function(format!("build/{compression}/{shape}"), |bencher| {
            bencher.iter(|| fill(&mut builder, black_box(&payload), record_bytes));
        });
        group.bench_function(format!("validate_structure/{compression}/{shape}"), |bencher| {
            let depth = ValidateDepth::Structure;
            bencher.iter(|| validate(black_box(&batch), depth, &limits).expect("it is valid"));
        });
    }
    group.finish();
}

criterion_group!(benches, uncompressed, compressed);
criterion_main!(benches);

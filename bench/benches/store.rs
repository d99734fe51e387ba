//! The object memory: what a block costs, and a put beside a plain copy into
//! memory that is as warm.

use std::hint::black_box;
use std::time::Duration;

use collimate::store::Index;
use collimate::{base::Rank, mem::Bytes};
use collimate_bench::arena;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SIZES: [usize; 6] = [8, 1 << 10, 64 << 10, 1 << 20, 4 << 20, 64 << 20];

fn alloc_free(c: &mut Criterion) {
    let mut group = c.benchmark_group("alloc_free");
    for len in [64, 4096, 64 << 10, 1 << 20] {
        let arena = arena(64 << 20);
        let _neighbours: Vec<_> = (0..32).map(|_| arena.alloc(len).expect("the arena has room")).collect();
        group.bench_function(BenchmarkId::from_parameter(len), |b| b.iter(|| arena.alloc(black_box(len))));
    }
    group.finish();
}

fn put(c: &mut Criterion) {
    let mut group = c.benchmark_group("put");
    for len in SIZES {
        let from = vec![7; len];
        let arena = arena(256 << 20);
        let mut to = vec![0; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("recycled", len), |b| b.iter(|| arena.put(black_box(&from))));
        group.bench_function(BenchmarkId::new("memcpy", len), |b| {
            b.iter(|| black_box(&mut to[..]).copy_from_slice(black_box(&from)))
        });
    }
    group.finish();
}

fn put_fresh(c: &mut Criterion) {
    let mut group = c.benchmark_group("put_fresh");
    for len in [1 << 20, 64 << 20] {
        let from = vec![7; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("arena", len), |b| {
            b.iter_with_large_setup(|| arena(len), |arena| arena.put(black_box(&from)).map(|sealed| (sealed, arena)))
        });
        group.bench_function(BenchmarkId::new("memcpy", len), |b| {
            b.iter_with_large_setup(
                || arena(len).alloc(len).expect("the arena has room"),
                |mut to| {
                    to.bytes_mut().copy_from_slice(black_box(&from));
                    to
                },
            )
        });
    }
    group.finish();
}

fn lend(c: &mut Criterion) {
    let arena = arena(64 << 20);
    let mut index = Index::new();
    let objects: Vec<Bytes> = (0..1000).map(|_| arena.put(&[7; 100]).expect("the arena has room").into()).collect();
    let ids: Vec<_> = objects.iter().map(|object| index.export(object)).collect();
    let mut next = (0..ids.len()).cycle();
    c.bench_function("lend_give_back", |b| {
        b.iter(|| {
            let id = ids[next.next().expect("a cycle has no end")];
            let info = index.lend(id, Rank(3));
            index.give_back(id, Rank(3), 1).expect("it was lent");
            info
        })
    });
}

criterion_group! {
    name = store;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = alloc_free, put, put_fresh, lend
}
criterion_main!(store);

//! Messages of the per-task path and one control message: to bytes and back.

use std::hint::black_box;
use std::time::Duration;

use collimate::base::Tag;
use collimate::wire::{Control, Goodbye, Message, SpawnBuilder, SpawnCall, write_control, write_inline_result};
use criterion::{Criterion, criterion_group, criterion_main};

const CALL: SpawnCall = SpawnCall { function: 3, request: 77, parent: Tag::ROOT, call: 5, stolen: false };

fn spawn(buffer: &mut Vec<u8>) {
    let mut builder = SpawnBuilder::new(buffer, black_box(CALL), 2);
    builder.inline(&black_box(7u64).to_ne_bytes(), 8).inline(b"the second argument", 1);
    builder.finish().expect("well within the limits");
}

fn result(buffer: &mut Vec<u8>) {
    let bytes = black_box(7u64).to_ne_bytes();
    write_inline_result(buffer, black_box(77), &bytes, 8).expect("well within the limits");
}

fn goodbye(buffer: &mut Vec<u8>) {
    let message = Control::Goodbye(Goodbye { status: black_box(0), reason: String::new() });
    write_control(buffer, &message).expect("well within the limits");
}

fn messages(c: &mut Criterion) {
    for (name, write) in [("spawn", spawn as fn(&mut Vec<u8>)), ("result", result), ("goodbye", goodbye)] {
        let mut group = c.benchmark_group(name);
        let mut buffer = Vec::new();
        group.bench_function("encode", |b| b.iter(|| write(&mut buffer)));
        write(&mut buffer);
        group.bench_function("parse", |b| b.iter(|| Message::parse(black_box(&buffer)).is_ok()));
        let mut copy = vec![0; buffer.len()];
        group.bench_function("memcpy", |b| b.iter(|| black_box(&mut copy[..]).copy_from_slice(black_box(&buffer))));
        group.finish();
    }
}

criterion_group! {
    name = wire;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = messages
}
criterion_main!(wire);

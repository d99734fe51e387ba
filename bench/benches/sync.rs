//! The lock-free parts: what a task costs before anything runs it elsewhere.

use std::any::Any;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use collimate::base::Tag;
use collimate::sync::{Call, Handle, Lineage, Steal, Stored, Task, deque, frame};
use criterion::{Criterion, criterion_group, criterion_main};

const SLOTS: usize = 1 << 13;

struct Increment(u64);

impl Call for Increment {
    type Output = u64;
    fn run(self, result: &mut Stored<u64>) {
        *result = Stored::Value(self.0 + 1);
    }
    fn kind(&self) -> &'static (dyn Any + Send + Sync) {
        &()
    }
}

fn increment(x: u64) -> (Task, Handle<u64>) {
    frame(|| Increment(x), Lineage { parent: Tag::ROOT, index: 0 }, 0)
}

fn task_frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("task_frame");
    group.bench_function("make_run_take", |b| {
        b.iter(|| {
            let (task, handle) = increment(black_box(7));
            task.run();
            handle.take().ok()
        })
    });
    group.bench_function("make_run_inline", |b| {
        b.iter(|| {
            let (task, handle) = increment(black_box(7));
            handle.run_inline(task).ok()
        })
    });
    group.bench_function("boxed_closure", |b| {
        b.iter(|| {
            let x = black_box(7u64);
            let call: Box<dyn FnOnce() -> u64> = black_box(Box::new(move || x + 1));
            call()
        })
    });
    group.finish();
}

fn deques(c: &mut Criterion) {
    let mut group = c.benchmark_group("deque");
    let (owner, stealer) = deque::<Task>(SLOTS);
    let mut spare = Some(increment(7));
    group.bench_function("push_pop", |b| {
        b.iter(|| {
            let (task, handle) = spare.take().expect("put back below");
            assert!(owner.push(task).is_ok());
            spare = owner.pop().map(|task| (task, handle));
        })
    });
    group.bench_function("push_steal", |b| {
        b.iter(|| {
            let (task, handle) = spare.take().expect("put back below");
            assert!(owner.push(task).is_ok());
            match stealer.steal() {
                Steal::Got(task) => spare = Some((task, handle)),
                Steal::Empty | Steal::Lost => panic!("nobody else takes tasks"),
            }
        })
    });
    group.finish();
}

/// The owner waits for each task that it pushes until a thief on another core
/// has run it.
fn handing_over(c: &mut Criterion) {
    let (owner, stealer) = deque::<Task>(SLOTS);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match stealer.steal() {
                    Steal::Got(task) => task.run(),
                    Steal::Empty | Steal::Lost => std::hint::spin_loop(),
                }
            }
        });
        c.bench_function("push_stolen_done", |b| {
            b.iter(|| {
                let (task, handle) = increment(black_box(7));
                assert!(owner.push(task).is_ok());
                while !handle.is_done() {
                    std::hint::spin_loop();
                }
            })
        });
        stop.store(true, Ordering::Relaxed);
    });
}

criterion_group! {
    name = sync;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = task_frame, deques, handing_over
}
criterion_main!(sync);

//! `collimate bench latency`: the round trip of a task, from its worker to
//! another process over TCP, and fork-join.

use std::hint::black_box;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::bare::{self, Poll, on_rank_1};
use super::measure::{Compared, Effort, Failed, Round, Samples, compare, interleave, sample, spin_until};
use super::record::{Figure, Record, Reference, Target};

/// Round trips in a sample of what takes nanoseconds.
const BATCH: u64 = 1000;
/// The same of what takes a fraction of a microsecond, for ours and the
/// reference alike.
const SMALL_BATCH: u64 = 8;

/// Spawn and get on one worker; fib(30) on one worker.
pub fn in_worker(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let compared = interleave(
        effort.rounds(),
        || Ok(sample(effort.count(500), BATCH, || nothing::spawn().get())?),
        || sample(effort.count(500), BATCH, boxed_call),
    )?;
    emit(record("task_round_trip", "in_worker", &compared, "boxed closure called at once", None));

    if collimate::size() > 1 {
        eprintln!("collimate: fork_join left out: other ranks would take part of the tree");
        return Ok(());
    }
    let n = if effort.quick { 15 } else { 30 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let target = Target { ratio: Some(3.0), ..Target::default() };
    for (variant, task) in [("spawn_one", fib_one as fn(u64) -> _), ("spawn_both", fib_both)] {
        let ours = || time_tree(n, || task(n));
        let reference = || time_tree(n, || Ok(pool.install(|| fib_rayon(n))));
        let compared = interleave(effort.rounds(), ours, reference)?;
        let name = "rayon::join, same tree, 1 thread";
        let mut record = record("fork_join", "in_worker", &compared, name, Some(target));
        record.variant = Some(variant.into());
        emit(record);
    }
    Ok(())
}

/// To another worker of this rank and back, both awake.
pub fn cross_worker(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(4000);
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds() {
        let seen = sample(count, SMALL_BATCH, || {
            let result = nothing::spawn();
            spin_until("that another worker takes a task", || result.is_ready())?;
            result.get().map_err(Failed::from)
        })?;
        let resumed = get_from_another(effort.count(2000))?;
        rounds.push((seen, resumed, bare::between_threads(count, SMALL_BATCH)?));
    }
    let name = "bare two-thread ping-pong";
    let seen = compare(&rounds.iter().map(|(seen, _, bare)| (*seen, *bare)).collect::<Vec<_>>());
    let target = Target { p50_ns: Some(1000.0), ..Target::default() };
    emit(record("task_round_trip", "cross_worker", &seen, name, Some(target)));
    let resumed = compare(&rounds.iter().map(|(_, resumed, bare)| (*resumed, *bare)).collect::<Vec<_>>());
    let mut record = record("task_round_trip", "cross_worker", &resumed, name, None);
    record.variant = Some("get_suspends".into());
    emit(record);
    Ok(())
}

/// To the other rank of this host and back.
pub fn cross_process(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(4000);
    let reference = || bare::between_processes(count, SMALL_BATCH);
    let compared = interleave(effort.rounds(), || remote(count, SMALL_BATCH), reference)?;
    let target = Target { ratio: Some(5.0), p50_ns: Some(2000.0), ..Target::default() };
    let name = "bare shared-memory ping-pong between two processes";
    emit(record("task_round_trip", "cross_process", &compared, name, Some(target)));
    Ok(())
}

/// To the other rank over loopback TCP and back. `fabric` is the backend's
/// name.
pub fn tcp(fabric: &str, effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(3000);
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds() {
        rounds.push((remote(count, 1)?, bare::over_tcp(count, Poll::Epoll)?, bare::over_tcp(count, Poll::Read)?));
    }
    let with_epoll = compare(&rounds.iter().map(|(ours, epoll, _)| (*ours, *epoll)).collect::<Vec<_>>());
    let with_read = compare(&rounds.iter().map(|(ours, _, read)| (*ours, *read)).collect::<Vec<_>>());
    let target = Target { ratio: Some(1.3), ..Target::default() };
    for (compared, name, target) in [
        (with_epoll, "bare epoll busy-poll ping-pong, 64 B", Some(target)),
        (with_read, "bare nonblocking read ping-pong, 64 B", None),
    ] {
        let mut record = record("task_round_trip", "tcp", &compared, name, target);
        record.variant = Some(fabric.into());
        emit(record);
    }
    Ok(())
}

/// A record of two times.
pub fn record(metric: &str, path: &str, compared: &Compared, reference: &str, target: Option<Target>) -> Record {
    Record {
        metric: metric.into(),
        path: path.into(),
        variant: None,
        bytes: None,
        ranks: collimate::size(),
        workers: collimate::workers() as u32,
        figure: Figure::percentiles(compared.ours),
        in_place: None,
        reference: Reference { name: reference.into(), figure: Figure::percentiles(compared.reference) },
        ratio: compared.ratio,
        target,
    }
}

/// How many additions `fib(n)` is, each of which forks.
pub fn forks(n: u64) -> u64 {
    let (mut a, mut b) = (0u64, 0u64);
    for _ in 2..=n {
        (a, b) = (b, 1 + a + b);
    }
    b
}

/// `fib` with one half spawned.
#[collimate::task]
pub fn fib_one(n: u64) -> Result<u64, collimate::Error> {
    if n < 2 {
        return Ok(n);
    }
    let spawned = fib_one::spawn(n - 1);
    let here = fib_one(n - 2)?;
    Ok(spawned.get()? + here)
}

/// `fib` with both halves spawned.
#[collimate::task]
pub fn fib_both(n: u64) -> Result<u64, collimate::Error> {
    if n < 2 {
        return Ok(n);
    }
    let (left, right) = (fib_both::spawn(n - 1), fib_both::spawn(n - 2));
    Ok(left.get()? + right.get()?)
}

/// The same tree in rayon.
pub fn fib_rayon(n: u64) -> u64 {
    if n < 2 {
        return n;
    }
    let (left, right) = rayon::join(|| fib_rayon(n - 1), || fib_rayon(n - 2));
    left + right
}

/// Time per fork of a tree, the better of two.
pub fn time_tree(n: u64, tree: impl Fn() -> Result<u64, collimate::Error>) -> Result<Round, Failed> {
    let mut samples = Samples::new();
    for _ in 0..2 {
        let start = Instant::now();
        black_box(tree()?);
        samples.add(start.elapsed(), forks(n));
    }
    Ok(samples.round())
}

#[collimate::task]
fn nothing() {}

#[collimate::task]
fn increment(x: u64) -> u64 {
    x + 1
}

fn boxed_call() -> Result<(), Failed> {
    let call: Box<dyn FnOnce() -> u64> = black_box(Box::new(move || 7));
    black_box(call());
    Ok(())
}

/// A task with 8 bytes in and 8 out on rank 1.
fn remote(count: u64, batch: u64) -> Result<Round, Failed> {
    let mut number = 0;
    sample(count, batch, || {
        let next = increment::spawn_with(on_rank_1(), number).get()?;
        if next != number + 1 {
            return Err(format!("rank 1 says that {number} + 1 is {next}").into());
        }
        number = next;
        Ok(())
    })
}

static STARTED: AtomicU64 = AtomicU64::new(0);

/// Runs long enough that whoever asked is suspended; returns when it began and
/// when it ended.
#[collimate::task]
fn linger() -> (u64, u64) {
    let began = now();
    STARTED.fetch_add(1, Ordering::Release);
    let until = Instant::now() + Duration::from_micros(10);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    (began, now())
}

/// From spawn to start on another worker, and from its end to the return of a
/// `get` that was suspended.
fn get_from_another(count: u64) -> Result<Round, Failed> {
    let mut samples = Samples::new();
    for _ in 0..count {
        let before = STARTED.load(Ordering::Relaxed);
        let start = now();
        let result = linger::spawn();
        spin_until("that another worker takes a task", || STARTED.load(Ordering::Acquire) != before)?;
        let (began, ended) = result.get()?;
        let resumed = now();
        samples.add(Duration::from_nanos(began.saturating_sub(start) + resumed.saturating_sub(ended)), 1);
    }
    Ok(samples.round())
}

/// Nanoseconds since some moment.
fn now() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_are_counted() {
        fn count(n: u64) -> u64 {
            if n < 2 { 0 } else { 1 + count(n - 1) + count(n - 2) }
        }
        for n in 0..20 {
            assert_eq!(forks(n), count(n), "fib({n})");
        }
        assert_eq!(fib_rayon(20), 6765);
    }
}

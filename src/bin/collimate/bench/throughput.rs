//! `collimate bench throughput`: tasks per second, flat and as a tree, more
//! threads than cores, and what idle ranks use.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use super::latency::{fib_one, fib_rayon, time_tree};
use super::measure::{Compared, Effort, Failed, Round, interleave, sample};
use super::record::{Figure, Record, Reference, Target};

/// What a spread task computes: some 20 µs. A number of steps and no time, for
/// time also passes for a task whose core another one has.
const SPREAD_STEPS: u64 = 10_000;
/// Spread tasks that are under way at once.
const SPREAD_WINDOW: usize = 512;
/// What the rate of several ranks is called.
const SPREAD: &str = "spread";

/// Empty tasks per second and worker: a flat batch and a tree.
pub fn tasks(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let workers = collimate::workers();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(workers).build()?;
    let count = effort.count(1_000_000);
    let rounds = effort.rounds().min(7);
    let flat = interleave(
        rounds,
        || {
            per_task(count, || {
                let results: Vec<_> = (0..count).map(|_| nothing::spawn()).collect();
                results.into_iter().try_for_each(|r| r.get())
            })
        },
        || {
            per_task(count, || {
                pool.scope(|scope| (0..count).for_each(|_| scope.spawn(|_| ())));
                Ok(())
            })
        },
    )?;
    emit(rate("flat", &flat, &format!("rayon scope, {workers} threads")));

    let n = if effort.quick { 15 } else { 30 };
    let tree = interleave(
        rounds,
        || time_tree(n, || fib_one::spawn(n).get()),
        || time_tree(n, || Ok(pool.install(|| fib_rayon(n)))),
    )?;
    emit(rate("tree", &tree, &format!("rayon::join, same tree, {workers} threads")));
    Ok(())
}

/// Short tasks spread over all ranks.
pub fn spread(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(40_000);
    run_spread(count / 10)?;
    let mut rates: Vec<f64> = Vec::new();
    for _ in 0..effort.rounds().min(3) {
        let start = Instant::now();
        run_spread(count)?;
        rates.push(count as f64 / start.elapsed().as_secs_f64());
    }
    let per_s = super::measure::median(rates);
    // What the cores of this host could do if nothing but the tasks ran.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = collimate::size() as usize * collimate::workers();
    let bare = sample(effort.count(2000), 1, || {
        black_box(compute(black_box(SPREAD_STEPS)));
        Ok::<(), Failed>(())
    })?;
    let ideal = cores.min(workers) as f64 * 1e9 / bare.p50_ns;
    emit(Record {
        metric: "tasks".into(),
        path: "cross_process".into(),
        variant: Some(SPREAD.into()),
        bytes: None,
        ranks: collimate::size(),
        workers: collimate::workers() as u32,
        figure: Figure::rate(per_s),
        in_place: None,
        reference: Reference { name: "the cores at no cost of tasks".into(), figure: Figure::rate(ideal) },
        ratio: ideal / per_s,
        target: None,
    });
    Ok(())
}

/// What waiting ranks use, rank 0 included: the greatest of them.
pub fn idle(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let ranks = collimate::size();
    let observer = ranks - 1;
    let on = |rank| collimate::Options::new().rank(rank);
    let pids: Vec<u32> = (0..observer).map(|rank| process::spawn_with(on(rank)).get()).collect::<Result<_, _>>()?;
    let patience = if effort.quick { 200 } else { 2000 };
    let percents = observe::spawn_with(on(observer), pids, patience).get()?;
    let most = percents.into_iter().fold(0.0, f64::max);
    emit(Record {
        metric: "idle".into(),
        path: "cross_process".into(),
        variant: None,
        bytes: None,
        ranks,
        workers: collimate::workers() as u32,
        figure: Figure { percent: Some(most), ..Figure::default() },
        in_place: None,
        reference: Reference {
            name: "a busy core".into(),
            figure: Figure { percent: Some(100.0), ..Figure::default() },
        },
        ratio: most / 100.0,
        target: Some(Target { percent: Some(2.0), ..Target::default() }),
    });
    Ok(())
}

/// Compares the rate of more ranks with that of the job of fewer before it;
/// other records stay as they are.
pub fn beside_fewer(mut record: Record, before: &[Record]) -> Record {
    let is_spread = |r: &Record| r.variant.as_deref() == Some(SPREAD);
    let fewer = before.iter().find(|r| is_spread(r) && r.ranks < record.ranks);
    if let Some(fewer) = fewer.filter(|_| is_spread(&record))
        && let (Some(rate), Some(rate_of_fewer)) = (record.figure.per_s, fewer.figure.per_s)
    {
        record.variant = Some("oversubscribed".into());
        record.ratio = rate_of_fewer / rate;
        record.target = Some(Target { ratio: Some(2.0), ..Target::default() });
        let name = format!("{} ranks x {} worker, same tasks", fewer.ranks, fewer.workers);
        record.reference = Reference { name, figure: fewer.figure };
    }
    record
}

#[collimate::task]
fn nothing() {}

/// Steps of a xorshift generator, each of which needs the one before.
#[collimate::task]
fn compute(steps: u64) -> u64 {
    let mut x = steps | 1;
    for _ in 0..steps {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}

#[collimate::task]
fn process() -> u32 {
    std::process::id()
}

/// Percent of a core that each process uses during so many milliseconds.
#[collimate::task]
fn observe(pids: Vec<u32>, milliseconds: u64) -> Result<Vec<f64>, String> {
    let used = || pids.iter().map(|pid| cpu_ns(*pid)).collect::<Result<Vec<u64>, String>>();
    // What they did before this one began has come to rest by then.
    std::thread::sleep(Duration::from_millis(milliseconds / 4));
    let (before, start) = (used()?, Instant::now());
    std::thread::sleep(Duration::from_millis(milliseconds));
    let (after, elapsed) = (used()?, start.elapsed().as_nanos() as f64);
    Ok(before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before) as f64 / elapsed * 100.0).collect())
}

/// Processor time of all threads of a process.
fn cpu_ns(pid: u32) -> Result<u64, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| format!("process {pid}: {e}"))?;
    let ticks = parse_ticks(&text).ok_or_else(|| format!("/proc/{pid}/stat cannot be read"))?;
    Ok(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second())
}

/// utime + stime, the 14th and 15th field; the second is in parentheses and
/// may contain anything.
fn parse_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn run_spread(count: u64) -> Result<(), Failed> {
    let mut under_way = VecDeque::with_capacity(SPREAD_WINDOW);
    for _ in 0..count {
        if under_way.len() == SPREAD_WINDOW
            && let Some(oldest) = under_way.pop_front()
        {
            let oldest: collimate::Ref<u64> = oldest;
            oldest.get()?;
        }
        under_way.push_back(compute::spawn_with(collimate::Options::new().spread(), SPREAD_STEPS));
    }
    under_way.into_iter().try_for_each(|r| r.get().map(drop))?;
    Ok(())
}

fn per_task(count: u64, batch: impl Fn() -> Result<(), collimate::Error>) -> Result<Round, Failed> {
    let start = Instant::now();
    batch()?;
    let each = start.elapsed().as_nanos() as f64 / count as f64;
    Ok(Round { p50_ns: each, p99_ns: each })
}

/// A record of rates per worker.
fn rate(variant: &str, compared: &Compared, reference: &str) -> Record {
    let workers = collimate::workers();
    let rate = |round: &Round| Figure::rate(1e9 / round.p50_ns / workers as f64);
    Record {
        metric: "tasks".into(),
        path: if workers > 1 { "cross_worker" } else { "in_worker" }.into(),
        variant: Some(variant.into()),
        bytes: None,
        ranks: collimate::size(),
        workers: workers as u32,
        figure: rate(&compared.ours),
        in_place: None,
        reference: Reference { name: reference.into(), figure: rate(&compared.reference) },
        ratio: compared.ratio,
        target: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "77 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1";
        assert_eq!(parse_ticks(stat), Some(42));
        assert_eq!(parse_ticks("77 (a"), None);
        assert!(cpu_ns(std::process::id()).is_ok());
    }
}

//! From the start of `collimate run` to the end of the first task.

use rustix::time::{ClockId, clock_gettime};

use super::bare::on_rank_1;
use super::measure::{Effort, Failed, Samples, compare};
use super::record::{Figure, Record, Reference, Target};
use super::stage::Stage;
use super::{Job, Metric, print};

/// Starts two ranks several times, and for reference two processes that do
/// nothing.
pub fn measure(metric: Metric, effort: Effort) -> Result<Record, String> {
    let (mut ours, mut bare) = (Samples::new(), Samples::new());
    for number in 0..=effort.count(10).min(10) {
        let start = now();
        let mut job = Job::start(metric, Stage::Start, effort)?;
        let done = job.line()?.ok_or("no rank said when the first task was done")?;
        let done: u64 = done.parse().map_err(|e| format!("a rank's time cannot be read: {e}"))?;
        job.end()?;
        let idle = two_processes().map_err(|e| format!("cannot start a process: {e}"))?;
        if number > 0 {
            ours.add(std::time::Duration::from_nanos(done.saturating_sub(start)), 1);
            bare.add(idle, 1);
        }
    }
    let compared = compare(&[(ours.round(), bare.round())]);
    let shape = Stage::Start.shape(effort);
    Ok(Record {
        metric: "start".into(),
        path: "cross_process".into(),
        variant: None,
        bytes: None,
        ranks: shape.ranks,
        workers: shape.workers,
        figure: Figure::percentiles(compared.ours),
        in_place: None,
        reference: Reference {
            name: "two processes that start and end".into(),
            figure: Figure::percentiles(compared.reference),
        },
        ratio: compared.ratio,
        target: Some(Target { p50_ns: Some(100e6), ..Target::default() }),
    })
}

/// On the ranks: says when the first task was done.
pub fn first_task() -> Result<(), Failed> {
    first::spawn_with(on_rank_1()).get()?;
    print(&format!("{}\n", now()));
    Ok(())
}

#[collimate::task]
fn first() {}

fn two_processes() -> std::io::Result<std::time::Duration> {
    use std::process::{Command, Stdio};
    let start = std::time::Instant::now();
    let me = std::env::current_exe()?;
    let spawn = || Command::new(&me).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let (mut first, mut second) = (spawn()?, spawn()?);
    first.wait()?;
    second.wait()?;
    Ok(start.elapsed())
}

/// Nanoseconds of a clock that all processes of the host share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

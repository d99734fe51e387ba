//! Deaths of ranks and launchers, and ranks with nothing to do.

use std::time::{Duration, Instant};

use collimate::{ControlStore, Error, ErrorKind, Options, Ref, Table};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::Scenario;
use crate::harness::{Running, Test, job, processor_time, test};

pub const SCENARIOS: &[Scenario] = &[
    ("a rank dies", a_rank_dies),
    ("a large rank dies", a_large_rank_dies),
    ("a rank stops", a_rank_stops),
    ("linger", linger),
    ("idle", idle),
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for fabric in ["shm", "uring", "epoll"] {
        tests.push(test(format!("a_rank_dies_{fabric}"), move || {
            let done = job(3, "a rank dies").env("COLLIMATE_FABRIC", fabric).run();
            assert!(done.status == Some(1) && done.stderr.contains("rank 1 (pid "), "{done:#?}");
            assert!(done.stdout.contains("went on"), "{done:#?}");
        }));
        tests.push(test(format!("a_rank_stops_{fabric}"), move || {
            let done = job(3, "a rank stops").env("COLLIMATE_FABRIC", fabric).run();
            assert!(done.stdout.contains("went on"), "{done:#?}");
        }));
        tests.push(test(format!("the_driver_dies_{fabric}"), move || {
            let running = started(4, fabric);
            kill(rank_0(&running));
            let begun = Instant::now();
            let done = running.finish();
            assert_eq!(done.status, Some(1), "{done:#?}");
            assert!(begun.elapsed() < Duration::from_secs(10) && done.stderr.contains("rank 0 "), "{done:#?}");
            assert!(done.stderr.lines().count() <= 4, "{done:#?}");
        }));
    }
    tests.push(test("a_large_rank_dies", || {
        // A host that keeps us waiting for as long may make it fail once.
        let mut seen = Vec::new();
        while seen.last() != Some(&1.0) {
            assert!(seen.len() < 3, "the control store went on only after the end of the process");
            seen.push(job(3, "a large rank dies").env("COLLIMATE_FABRIC", "shm").run().number("before"));
        }
    }));
    tests.push(test("the_launcher_dies", || {
        for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
            let running = started(4, "auto");
            signal_to(running.pid(), signal);
            // Whatever is left after a few seconds fails this.
            let done = running.finish();
            assert_ne!(done.status, Some(0), "{done:#?}");
            job(2, "a rank dies").env("COLLIMATE_TEST_SPARE", "1").run().succeeded();
        }
    }));
    tests.push(test("idle_ranks_are_idle", || {
        for fabric in ["shm", "uring", "epoll"] {
            let share = || {
                let job = job(4, "idle").env("COLLIMATE_FABRIC", fabric).env("COLLIMATE_WORKERS", "2");
                job.run().succeeded().number("share")
            };
            // What else runs on the host makes each wake-up cost more, never less.
            let mut shares = Vec::new();
            while shares.last().is_none_or(|share| *share >= 0.015) {
                assert!(shares.len() < 3, "{shares:?} of a core over {fabric}");
                shares.push(share());
            }
        }
    }));
    tests
}

/// A job whose ranks all run.
fn started(ranks: u32, fabric: &str) -> Running {
    let running = job(ranks, "linger").env("COLLIMATE_FABRIC", fabric).start();
    let begun = Instant::now();
    // The launcher and its ranks, of which rank 0 names its state.
    while running.processes().len() < ranks as usize + 1 || driver(&running).is_none() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the ranks start");
        std::thread::sleep(Duration::from_millis(10));
    }
    running
}

/// The process that has a thread of the driver's.
fn driver(running: &Running) -> Option<u32> {
    running.processes().into_iter().find(|pid| {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        threads
            .into_iter()
            .any(|t| std::fs::read_to_string(t.path().join("comm")).is_ok_and(|c| c.trim() == "the-driver"))
    })
}

fn rank_0(running: &Running) -> u32 {
    driver(running).expect("seen before")
}

fn signal_to(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn kill(pid: u32) {
    signal_to(pid, Signal::KILL);
}

#[collimate::task]
fn pid() -> u32 {
    std::process::id()
}

#[collimate::task]
fn sleep(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

#[collimate::main]
fn a_rank_dies() -> Result<(), Error> {
    let on = |rank: u32| Options::new().rank(rank);
    let victim = pid::spawn_with(on(1)).get()?;
    if std::env::var_os("COLLIMATE_TEST_SPARE").is_some() {
        return Ok(());
    }
    let pending: Vec<Ref<u64>> = (0..50).map(|_| sleep::spawn_with(on(1), 60_000)).collect();
    let elsewhere = sleep::spawn_with(on(2), 500);
    std::thread::sleep(Duration::from_millis(50));
    kill(victim);
    let begun = Instant::now();
    for r in pending {
        let error = r.get_timeout(Duration::from_secs(20)).unwrap_err();
        assert!(error.kind == ErrorKind::RankLost && error.message.contains("rank 1"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let late = pid::spawn_with(on(1)).get().unwrap_err();
    assert!(late.kind == ErrorKind::RankLost && late.message.contains("rank 1"), "{late}");
    assert_eq!(elsewhere.get()?, 500);
    let spread: Vec<_> = (0..6).map(|_| pid::spawn_with(Options::new().spread())).collect();
    spread.into_iter().try_for_each(|r| r.get().map(drop))?;
    println!("went on");
    Ok(())
}

#[collimate::task]
fn length(bytes: &[u8]) -> usize {
    bytes.len()
}

/// Whether no thread of a process runs: a signal is not instant.
fn is_stopped(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stat = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
    threads.map(stat).all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
}

#[collimate::task]
fn hold(bytes: usize) -> u32 {
    std::mem::forget(vec![7u8; bytes]);
    std::process::id()
}

/// The kernel takes long to take a gigabyte apart, and closes connections after
/// that only; the control store does not wait for it.
#[collimate::main]
fn a_large_rank_dies() -> Result<(), Box<dyn std::error::Error>> {
    let victim = hold::spawn_with(Options::new().rank(1), 1 << 30).get()?;
    let store = ControlStore::of_job()?;
    store.put(Table::Names, b"before", b"").wait()?;
    let process = pidfd_open(Pid::from_raw(victim as i32).unwrap(), PidfdFlags::empty())?;
    kill(victim);
    store.put(Table::Names, b"after", b"").wait()?;
    let mut end = [PollFd::new(&process, PollFlags::IN)];
    let has_ended = poll(&mut end, Some(&Default::default()))?;
    println!("before={}", 1 - has_ended);
    Ok(())
}

/// A process that is stopped reads nothing, and closes nothing either.
#[collimate::main]
fn a_rank_stops() -> Result<(), Error> {
    let on = |rank: u32| Options::new().rank(rank);
    let victim = pid::spawn_with(on(1)).get()?;
    signal_to(victim, Signal::STOP);
    while !is_stopped(victim) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let bytes = vec![7; 4_000];
    let pending: Vec<Ref<usize>> = (0..6_000).map(|_| length::spawn_with(on(1), &bytes)).collect();
    for r in pending {
        let error = r.get_timeout(Duration::from_secs(30)).unwrap_err();
        assert!(error.kind == ErrorKind::RankLost && error.message.contains("rank 1"), "{error}");
    }
    assert_eq!(length::spawn_with(on(2), &bytes).get()?, 4_000);
    println!("went on");
    Ok(())
}

#[collimate::main]
fn linger() -> Result<(), Error> {
    for rank in 0..collimate::size() {
        pid::spawn_with(Options::new().rank(rank)).get()?;
    }
    let named = std::thread::Builder::new().name("the-driver".into());
    let thread = named.spawn(|| std::thread::sleep(Duration::from_secs(50))).unwrap();
    thread.join().unwrap();
    Ok(())
}

/// Prints the largest share of a core that a rank took while nothing was to do.
#[collimate::main]
fn idle() -> Result<(), Error> {
    let pids: Vec<u32> =
        (0..collimate::size()).map(|r| pid::spawn_with(Options::new().rank(r)).get()).collect::<Result<_, Error>>()?;
    let never = sleep::spawn_with(Options::new().rank(1), 5_000);
    std::thread::sleep(Duration::from_millis(300));
    let before: Vec<Duration> = pids.iter().map(|pid| processor_time(*pid)).collect();
    let begun = Instant::now();
    let error = never.get_timeout(Duration::from_secs(3)).unwrap_err();
    let took = begun.elapsed();
    assert_eq!(error.kind, ErrorKind::TimedOut);
    let used = pids.iter().zip(before).map(|(pid, before)| processor_time(*pid) - before);
    println!("share={}", used.max().unwrap().as_secs_f64() / took.as_secs_f64());
    Ok(())
}

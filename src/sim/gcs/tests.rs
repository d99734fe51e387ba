//! The runs that every change must pass.
//!
//! `cargo test` plays few seeds, since it does not optimise; `scripts/test`
//! plays 2,000 in the profile `sim`, `scripts/check --long` a million.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::plan::{MS, Plan};
use super::world::{Report, World, play};
use crate::gcs::{Bug, Epoch};

/// Seeds within which every deliberate bug must be caught.
const SEEDS: u64 = 2_000;
/// Seeds of a run that nobody asked for more.
const SEEDS_DEFAULT: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// `cargo xtask sim --seed S`.
#[test]
fn replay() {
    let Some(seed) = number("COLLIMATE_SIM_SEED") else { return };
    let plan = Plan::of_seed(seed);
    println!("{plan:#?}");
    let report = play(&plan);
    println!("{report:#?}");
    assert_eq!(report.violation.as_deref().map(|violation| println!("{violation}")), None);
}

#[test]
fn no_seed_finds_a_violation() {
    let count = number("COLLIMATE_SIM_SEEDS").unwrap_or(SEEDS_DEFAULT);
    let first = number("COLLIMATE_SIM_FIRST").unwrap_or(0);
    let next = AtomicU64::new(first);
    let total = Mutex::new((Report::default(), 0));
    let workers = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let report = play(&Plan::of_seed(seed));
                    let (total, seeds) = &mut *total.lock().expect("no worker has panicked");
                    *seeds += 1;
                    total.add(report, seed);
                    if total.violation.is_some() {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (total, seeds) = total.into_inner().expect("no worker has panicked");
    println!("{seeds} seeds: {total:?}");
    if let Some(violation) = total.violation {
        panic!("{violation}");
    }
}

impl Report {
    fn add(&mut self, other: Report, seed: u64) {
        let replay = |violation| format!("replay it with: cargo xtask sim --seed {seed}\n{violation}");
        self.violation = self.violation.take().or(other.violation.map(replay));
        self.events += other.events;
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.crashes += other.crashes;
        self.epochs += other.epochs;
        self.took_ns += other.took_ns;
        self.recovery_ns = self.recovery_ns.max(other.recovery_ns);
        self.control_bytes += other.control_bytes;
    }
}

#[test]
#[ignore = "takes minutes where it is not optimised: scripts/test runs it in the profile `sim`"]
fn every_deliberate_bug_is_caught() {
    for bug in Bug::ALL {
        let caught = (0..SEEDS).find_map(|seed| Some((seed, play(&Plan::of_seed(seed).with_bug(bug)).violation?)));
        let (seed, violation) = caught.unwrap_or_else(|| panic!("{bug:?} is not caught by {SEEDS} seeds"));
        println!("{bug:?} is caught by seed {seed}: {}", violation.lines().next().unwrap_or_default());
    }
}

/// A run is a function of its seed: else no failure could be replayed.
#[test]
fn a_seed_is_one_run() {
    let runs = [0, 1].map(|_| format!("{:?}", play(&Plan::of_seed(3))));
    assert_eq!(runs[0], runs[1]);
}

/// Whoever of a chain and quorum of three ends, and whenever: the others go on
/// within the time of a few messages, though silence counts after a second only.
#[test]
fn the_end_of_a_process_is_a_short_pause() {
    let mut longest = 0;
    for seed in 0..60 {
        let mut world = World::new(Plan::small(seed));
        let killed_at = 20 * MS + seed * 37_000;
        while world.now < killed_at && world.step() {}
        world.end(seed as usize % 3);
        while world.now < killed_at + 60 * MS && world.step() {}
        assert_eq!(world.report.violation, None, "seed {seed}");
        let pause = world.users[0].longest_pause(killed_at - MS, world.now);
        assert!(pause < 3 * MS, "seed {seed}: {pause} ns; {}", world.describe());
        longest = longest.max(pause);
    }
    println!("longest pause of a client when one of three ends: {} us", longest / 1_000);
}

/// All processes of a job end at once and come back, clients too; of each chain at
/// least one with its disk. All that was acknowledged is there, and all goes on.
#[test]
fn a_job_comes_back_from_its_disks() {
    for (ranks, seed) in [1, 2, 3, 5].into_iter().flat_map(|ranks| (0..6).map(move |seed| (ranks, seed))) {
        let mut world = World::new(Plan::durable(seed, ranks));
        while world.now < 15 * MS && world.step() {}
        world.restart_job();
        assert_eq!(world.report.crashes, ranks, "all had a keeper");
        world.run();
        assert_eq!(world.report.violation, None, "{ranks} ranks, seed {seed}");
        assert!(world.report.operations > 100, "{:?}", world.report);
    }
}

/// A replica takes the place of one that ends while clients write more, and the
/// state is larger, than what is kept for it or goes in one turn. They do not wait
/// for it, neither while it takes the state over nor when it becomes the tail.
#[test]
fn a_replica_joins_while_clients_write() {
    let (mut longest, mut pause) = (0, 0);
    for seed in 0..8 {
        let mut world = World::new(Plan::busy(seed));
        let killed_at = 40 * MS + seed * 37_000;
        while world.now < killed_at && world.step() {}
        world.end(seed as usize % 3);
        while world.latest[0].joining.is_none() && world.step() {}
        let began = world.now;
        let joined = |world: &World| world.latest[0].epoch > Epoch(2) && world.is_full();
        while !joined(&world) && world.now < killed_at + 100 * MS && world.step() {}
        assert_eq!(world.report.violation, None, "seed {seed}");
        assert!(world.is_full(), "seed {seed}: nobody has joined: {}", world.describe());
        longest = longest.max(world.now - began);
        let joined_at = world.now;
        while world.now < joined_at + 5 * MS && world.step() {}
        let pauses = world.users.iter().map(|user| user.longest_pause(began, world.now));
        pause = pause.max(pauses.max().unwrap_or(u64::MAX));
        assert_eq!(world.report.violation, None, "seed {seed}");
    }
    println!("a replica joined within {} us; longest pause of a client: {} us", longest / 1_000, pause / 1_000);
    assert!(pause < 3 * MS, "a client waited for {pause} ns");
}

/// A thousand ranks, most of them clients with little to do; the head of the
/// chain ends. Until a spare has taken a place in it and every rank knows.
#[test]
fn a_thousand_ranks_settle_within_a_second() {
    let ranks = 1_000;
    let mut world = World::new(Plan::large(ranks));
    let killed_at = 100 * MS;
    while world.now < killed_at && world.step() {}
    let rate = |bytes: u64, ns: u64| bytes * 1_000_000_000 / ns / u64::from(ranks);
    let at_rest = rate(world.report.control_bytes, world.now);
    let before = world.report.control_bytes;
    world.kill(0);
    while !world.has_settled(Epoch(1)) && world.now < killed_at + 1_000 * MS && world.step() {}
    let took = world.now - killed_at;
    let during = rate(world.report.control_bytes - before, took);
    println!(
        "{ranks} ranks settled after {} us; control bytes per rank and second: {at_rest} at rest, {during} meanwhile",
        took / 1_000
    );
    assert_eq!(world.report.violation, None);
    assert!(world.has_settled(Epoch(1)), "not settled after a second: {:?}", world.latest);
}

//! Many tasks, random graphs, thieves, resources and sleepy ranks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use collimate::base::event::Event;
use collimate::base::rng::Rng;
use collimate::node::Node;
use collimate::{Error, ErrorKind, Options, Ref};

use crate::Scenario;
use crate::errors::example;
use crate::harness::{Test, job, program, test};

pub const SCENARIOS: &[Scenario] =
    &[("many", many), ("graphs", graphs), ("imbalance", imbalance), ("sleepy", sleepy), ("licences", licences)];

pub fn tests() -> Vec<Test> {
    let mut tests = vec![
        test("many_small_tasks", || {
            job(4, "many").run().succeeded();
        }),
        test("work_is_stolen", || {
            job(4, "imbalance").env("COLLIMATE_WORKERS", "1").run().succeeded();
        }),
        test("resources_are_not_oversold", || {
            job(2, "licences")
                .env("COLLIMATE_WORKERS", "4")
                .env("COLLIMATE_RESOURCES", "licence=2,disk=10")
                .run()
                .succeeded();
        }),
    ];
    for fabric in ["auto", "uring", "epoll"] {
        for (ranks, workers) in [(1, "2"), (2, "1"), (4, "2")] {
            tests.push(test(format!("graphs_{ranks}x{workers}_{fabric}"), move || {
                job(ranks, "graphs")
                    .env("COLLIMATE_FABRIC", fabric)
                    .env("COLLIMATE_WORKERS", workers)
                    .run()
                    .succeeded();
            }));
        }
        for workers in ["1", "2"] {
            tests.push(test(format!("sleepy_x{workers}_{fabric}"), move || {
                let job = job(3, "sleepy").env("COLLIMATE_FABRIC", fabric).env("COLLIMATE_WORKERS", workers);
                job.run().succeeded();
            }));
        }
    }
    tests.push(test("one_digest", || {
        let digest = |ranks, fabric: &str| {
            let done = program(ranks, example("es"), &["--quick"]).env("COLLIMATE_FABRIC", fabric).run();
            let last = done.stdout.lines().last().unwrap_or_default().to_string();
            assert!(done.status == Some(0) && last.starts_with("digest "), "{done:#?}");
            last
        };
        let first = digest(1, "auto");
        for (ranks, fabric) in [(2, "auto"), (2, "uring"), (2, "epoll"), (4, "auto"), (4, "uring"), (4, "epoll")] {
            assert_eq!(digest(ranks, fabric), first, "{ranks} ranks over {fabric}");
        }
    }));
    tests
}

fn node() -> &'static Node {
    Node::current().expect("inside a job")
}

#[collimate::task]
fn next(x: u64) -> u64 {
    x.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(9)
}

#[collimate::main]
fn many() -> Result<(), Error> {
    const TASKS: u64 = 200_000;
    const BURST: u64 = 20_000;
    for burst in 0..TASKS / BURST {
        let refs: Vec<Ref<u64>> =
            (0..BURST).map(|i| next::spawn_with(Options::new().spread(), burst * BURST + i)).collect();
        for (i, r) in (0..BURST).zip(refs) {
            assert_eq!(r.get()?, next(burst * BURST + i));
        }
    }
    Ok(())
}

#[collimate::task]
fn combine(seed: u64, inputs: Vec<u64>) -> u64 {
    inputs.iter().fold(seed, |sum, x| next(sum ^ x))
}

/// A task that makes tasks of its own.
#[collimate::task]
fn split(seed: u64, levels: u32) -> Result<u64, Error> {
    if levels == 0 {
        return Ok(next(seed));
    }
    let children: Vec<Ref<u64>> = (0..2).map(|i| split::spawn(next(seed ^ i), levels - 1)).collect();
    combine::spawn_with(Options::new().spread(), seed, children).get()
}

fn split_oracle(seed: u64, levels: u32) -> u64 {
    if levels == 0 {
        return next(seed);
    }
    combine(seed, (0..2).map(|i| split_oracle(next(seed ^ i), levels - 1)).collect())
}

/// Random graphs: each task takes results of earlier ones, on random ranks.
#[collimate::main]
fn graphs() -> Result<(), Error> {
    let size = u64::from(collimate::size());
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let mut below = |n: u64| rng.below(n as usize) as u64;
        let (mut refs, mut oracle): (Vec<Ref<u64>>, Vec<u64>) = (vec![], vec![]);
        for i in 0..800u64 {
            let inputs: Vec<usize> = (0..below(4).min(i)).map(|_| below(i) as usize).collect();
            let (options, levels) = match below(8) {
                0..3 => (Options::new(), 0),
                3..5 => (Options::new().rank(below(size) as u32), 0),
                5..7 => (Options::new().spread(), 0),
                _ => (Options::new(), 1 + below(3) as u32),
            };
            if levels > 0 {
                refs.push(split::spawn(i, levels));
                oracle.push(split_oracle(i, levels));
            } else {
                let given: Vec<Ref<u64>> = inputs.iter().map(|at| refs[*at].clone()).collect();
                refs.push(combine::spawn_with(options, i, given));
                oracle.push(combine(i, inputs.iter().map(|at| oracle[*at]).collect()));
            }
        }
        for (i, (r, expected)) in refs.into_iter().zip(oracle).enumerate() {
            assert_eq!(r.get()?, expected, "task {i} of graph {seed}");
        }
    }
    Ok(())
}

#[collimate::task]
fn busy(ms: u64) -> u32 {
    std::thread::sleep(Duration::from_millis(ms));
    collimate::rank()
}

/// What one rank made is taken by those that have nothing to do.
#[collimate::main]
fn imbalance() -> Result<(), Error> {
    let start = Instant::now();
    let refs: Vec<Ref<u32>> = (0..64).map(|_| busy::spawn(20)).collect();
    let mut done = [0u32; 4];
    for r in refs {
        done[r.get()? as usize] += 1;
    }
    let (took, alone) = (start.elapsed(), Duration::from_millis(64 * 20));
    let stolen = node().count_of(Event::TaskStolen);
    assert!(took < alone * 2 / 3, "{took:?}, alone {alone:?}, by rank {done:?}");
    assert_eq!(stolen, u64::from(done[1] + done[2] + done[3]));
    Ok(())
}

/// Small remote calls between sleeps of random length: every way to fall
/// asleep and to be woken.
#[collimate::main]
fn sleepy() -> Result<(), Error> {
    let mut rng = Rng::new(7);
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    for i in 0u64.. {
        if start.elapsed() > Duration::from_millis(2500) {
            break;
        }
        match rng.below(4) {
            0 => std::thread::sleep(Duration::from_micros(rng.below(8000) as u64)),
            1 => std::thread::sleep(Duration::from_micros(rng.below(400) as u64)),
            2 => {
                _ = next::spawn_with(Options::new().rank(2), 1)
                    .get_timeout(Duration::from_micros(rng.below(300) as u64))
            }
            _ => (),
        }
        let before = Instant::now();
        let there = next::spawn_with(Options::new().rank(1), i);
        let local = next::spawn(i);
        let both = combine::spawn_with(Options::new().rank(2), i, vec![there, local]);
        assert_eq!(both.get_timeout(Duration::from_secs(20))?, combine(i, vec![next(i), next(i)]));
        slowest = slowest.max(before.elapsed());
    }
    println!("slowest_ms={}", slowest.as_millis());
    Ok(())
}

static INSIDE: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);

#[collimate::task]
fn licensed(nested: bool) -> Result<u64, Error> {
    let inside = INSIDE.fetch_add(1, Ordering::SeqCst) + 1;
    MOST.fetch_max(inside, Ordering::SeqCst);
    if nested {
        busy::spawn(1).get()?;
    } else {
        std::thread::sleep(Duration::from_millis(2));
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    Ok(MOST.load(Ordering::SeqCst))
}

#[collimate::task]
fn license_fails() -> Result<(), String> {
    Err("still gives it back".into())
}

#[collimate::main]
fn licences() -> Result<(), Error> {
    let options = || Options::new().resource("licence", 1);
    for rank in 0..2 {
        let refs: Vec<_> = (0..60).map(|i| licensed::spawn_with(options().rank(rank), i % 2 == 0)).collect();
        let most = refs.into_iter().map(|r| r.get()).collect::<Result<Vec<u64>, Error>>()?.into_iter().max();
        assert_eq!(most, Some(2), "two at a time on rank {rank}");
        for _ in 0..5 {
            assert!(license_fails::spawn_with(options().rank(rank)).get().is_err());
        }
        assert!(licensed::spawn_with(Options::new().resource("licence", 2).rank(rank), false).get().is_ok());
        let error = licensed::spawn_with(Options::new().resource("licence", 3).rank(rank), false).get().unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadCall, "{error}");
    }
    let nobody = licensed::spawn_with(Options::new().resource("unicorn", 1), false).get().unwrap_err();
    assert!(nobody.kind == ErrorKind::BadCall && nobody.message.contains("COLLIMATE_RESOURCES"), "{nobody}");
    let spread: Vec<_> = (0..20).map(|_| licensed::spawn_with(options().spread(), false)).collect();
    spread.into_iter().try_for_each(|r| r.get().map(drop))
}

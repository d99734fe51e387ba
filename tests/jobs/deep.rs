//! Very deep nesting of `get`: it ends, with a result or a clear error.

use std::time::Duration;

use collimate::{Error, ErrorKind, Options};

use crate::Scenario;
use crate::harness::{Test, job, test};

pub const SCENARIOS: &[Scenario] = &[("deep", deep), ("deep across", deep_across)];

const LEVELS: u32 = 100_000;

/// Each costs two messages and a stack. `LEVELS=100000` runs out of stacks, for
/// a person with patience.
const LEVELS_ACROSS: u32 = 3_000;

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for (ranks, workers) in [(1, "1"), (1, "2"), (2, "1"), (2, "2")] {
        tests.push(test(format!("deep_{ranks}x{workers}"), move || {
            let job = job(ranks, "deep").env("COLLIMATE_WORKERS", workers).within(Duration::from_secs(40));
            job.run().succeeded();
        }));
    }
    for fabric in ["shm", "epoll"] {
        tests.push(test(format!("deep_across_{fabric}"), move || {
            job(2, "deep across").env("COLLIMATE_FABRIC", fabric).run().succeeded();
        }));
    }
    tests.push(test("deep_on_small_stacks", || {
        job(1, "deep").env("COLLIMATE_STACK", "64K").run().succeeded();
    }));
    tests
}

#[collimate::task]
fn nest(levels: u32) -> Result<u32, Error> {
    if levels == 0 { Ok(0) } else { Ok(nest::spawn(levels - 1).get()? + 1) }
}

/// Each level on the other rank.
#[collimate::task]
fn bounce(levels: u32) -> Result<u32, Error> {
    if levels == 0 {
        return Ok(0);
    }
    let other = Options::new().rank((collimate::rank() + 1) % collimate::size());
    Ok(bounce::spawn_with(other, levels - 1).get()? + 1)
}

fn check(result: Result<u32, Error>, levels: u32) {
    match result {
        Ok(n) => assert_eq!(n, levels),
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::StackExhausted, "{}", error.message);
            assert!(error.message.contains("nest fewer"), "{}", error.message);
        }
    }
}

#[collimate::main]
fn deep() -> Result<(), Error> {
    for _ in 0..2 {
        check(nest::spawn(LEVELS).get(), LEVELS);
    }
    assert_eq!(nest::spawn(1000).get()?, 1000);
    Ok(())
}

#[collimate::main]
fn deep_across() -> Result<(), Error> {
    let levels = std::env::var("LEVELS").map_or(LEVELS_ACROSS, |n| n.parse().unwrap());
    for _ in 0..2 {
        check(bounce::spawn(levels).get(), levels);
    }
    Ok(())
}

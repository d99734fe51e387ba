//! Memory of objects: a full store says so, and what nobody holds is freed.

use collimate::{Array, Error, ErrorKind, Options, Ref};

use crate::Scenario;
use crate::harness::{Test, job, test};

pub const SCENARIOS: &[Scenario] = &[("full", full), ("freed", freed)];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for fabric in ["shm", "uring", "epoll"] {
        tests.push(test(format!("full_store_{fabric}"), move || {
            job(2, "full").env("COLLIMATE_STORE", "4M").env("COLLIMATE_FABRIC", fabric).run().succeeded();
        }));
        tests.push(test(format!("freed_{fabric}"), move || {
            let calls = if fabric == "shm" { "10000" } else { "600" };
            let job = job(3, "freed").env("COLLIMATE_STORE", "64M").env("COLLIMATE_FABRIC", fabric);
            job.env("CALLS", calls).run().succeeded();
        }));
    }
    tests
}

const MIB: usize = 1 << 20;

#[collimate::task]
fn bytes(n: usize) -> Vec<u8> {
    vec![3; n]
}

#[collimate::task]
fn array(n: usize) -> Result<Array<u8>, Error> {
    collimate::put(&vec![4u8; n])?.get()
}

#[collimate::task]
fn count(values: &[u8]) -> usize {
    values.len()
}

fn full_error(error: &Error, rank: u32) {
    assert_eq!(error.kind, ErrorKind::StoreFull, "{error}");
    assert!(error.message.contains(&format!("rank {rank}")), "{error}");
    assert!(error.message.chars().filter(char::is_ascii_digit).count() > 7, "the sizes: {error}");
}

#[collimate::main]
fn full() -> Result<(), Error> {
    full_error(&collimate::put(&vec![0u8; 8 * MIB]).unwrap_err(), 0);
    let mut held = Vec::new();
    let error = loop {
        match collimate::put(&vec![0u8; MIB / 2]) {
            Ok(r) => held.push(r),
            Err(error) => break error,
        }
    };
    full_error(&error, 0);
    assert!(held.len() >= 6, "{}", held.len());
    let there = Options::new().rank(1);
    // An argument that has no room here, a result that has none there.
    full_error(&count::spawn_with(there.clone(), vec![1u8; MIB]).get().unwrap_err(), 0);
    drop(held);
    full_error(&bytes::spawn_with(there.clone(), 8 * MIB).get().unwrap_err(), 1);
    full_error(&array::spawn_with(there.clone(), 8 * MIB).get().unwrap_err(), 1);
    // Room again.
    assert_eq!(count::spawn_with(there.clone(), vec![1u8; 2 * MIB]).get()?, 2 * MIB);
    assert_eq!(bytes::spawn_with(there, 2 * MIB).get()?.len(), 2 * MIB);
    Ok(())
}

/// Many times the store's size, by every way.
#[collimate::main]
fn freed() -> Result<(), Error> {
    let calls: usize = std::env::var("CALLS").unwrap().parse().unwrap();
    let on = |i: usize| Options::new().rank(1 + (i % 2) as u32);
    for i in 0..calls / 20 {
        drop(collimate::put(&vec![i as u8; MIB])?);
    }
    let megabyte = vec![9u8; MIB];
    let mut window: Vec<Ref<usize>> = Vec::new();
    for i in 0..calls {
        window.push(count::spawn_with(on(i), &megabyte[..]));
        if window.len() == 8 {
            for r in window.drain(..) {
                assert_eq!(r.get()?, MIB);
            }
        }
    }
    for i in 0..calls / 10 {
        let made = array::spawn_with(on(i), MIB);
        let other = count::spawn_with(on(i + 1), &made);
        let mine = bytes::spawn_with(on(i), MIB);
        assert_eq!((other.get()?, made.get()?.len(), mine.get()?.len()), (MIB, MIB, MIB));
    }
    Ok(())
}

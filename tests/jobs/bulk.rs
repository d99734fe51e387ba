//! Large objects between ranks that cannot map each other's memory.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use collimate::base::event::Event;
use collimate::node::Node;
use collimate::{Array, Error, Options, Ref};
use rustix::process::{Pid, Signal, getpid, kill_process};

use crate::Scenario;
use crate::harness::{Test, job, test};

pub const SCENARIOS: &[Scenario] = &[
    ("broadcast", broadcast),
    ("a source dies", a_source_dies),
    ("many arguments", many_arguments),
    ("two holders", two_holders),
    ("a source stops", a_source_stops),
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for fabric in ["uring", "epoll"] {
        let with_fabric = move |ranks, scenario| job(ranks, scenario).env("COLLIMATE_FABRIC", fabric);
        tests.push(test(format!("broadcast_{fabric}"), move || {
            let done = with_fabric(4, "broadcast").env("COLLIMATE_STORE", "256M").run().succeeded();
            let (from_owner, in_all) = (done.number("from_owner"), done.number("in_all"));
            assert!((3.0..3.01).contains(&in_all), "{done:#?}");
            assert!((0.99..2.0).contains(&from_owner), "the owner sent {from_owner} copies: {done:#?}");
        }));
        tests.push(test(format!("a_source_dies_{fabric}"), move || {
            let done = with_fabric(4, "a source dies").env("COLLIMATE_STORE", "512M").run();
            assert!(done.status == Some(1) && done.stderr.contains("rank 1 (pid "), "{done:#?}");
            assert!(done.stdout.contains("went on"), "{done:#?}");
        }));
        tests.push(test(format!("a_source_stops_{fabric}"), move || {
            with_fabric(4, "a source stops").env("COLLIMATE_STORE", "512M").run().succeeded();
        }));
        tests.push(test(format!("two_holders_{fabric}"), move || {
            with_fabric(4, "two holders").env("COLLIMATE_STORE", "256M").run().succeeded();
        }));
        tests.push(test(format!("many_arguments_{fabric}"), move || {
            with_fabric(2, "many arguments").env("COLLIMATE_STORE", "256M").run().succeeded();
        }));
    }
    tests
}

const MIB: usize = 1 << 20;

/// Repeats after a length that no chunk is a multiple of.
const PERIOD: usize = MIB - 7;

/// One period of bytes that tell where they are.
fn period(seed: u64) -> Vec<u8> {
    let word = |i: u64| (i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    (0..MIB as u64 / 8).flat_map(|i| word(i).to_le_bytes()).take(PERIOD).collect()
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = period(seed).repeat(len.div_ceil(PERIOD));
    bytes.truncate(len);
    bytes
}

fn read() -> (u64, u64) {
    let node = Node::current().expect("this is a rank");
    (node.count_of(Event::ReadFromOwner), node.count_of(Event::ReadFromCopy))
}

fn on(rank: u32) -> Options {
    Options::new().rank(rank)
}

static KEPT: Mutex<Vec<Array<u8>>> = Mutex::new(Vec::new());

/// Checks an object, and keeps it if told to.
#[collimate::task]
fn check(bytes: Array<u8>, seed: u64, keep: bool) -> Result<usize, String> {
    let expected = period(seed);
    if let Some(at) = bytes.chunks(PERIOD).position(|part| part != &expected[..part.len()]) {
        return Err(format!("rank {} has other bytes in part {at}", collimate::rank()));
    }
    let len = bytes.len();
    if keep {
        KEPT.lock().unwrap().push(bytes);
    }
    Ok(len)
}

#[collimate::task]
fn bytes_read() -> (u64, u64) {
    read()
}

#[collimate::main]
fn broadcast() -> Result<(), Error> {
    let len = 48 * MIB + 12_345;
    let object = collimate::put(&pattern(len, 7))?;
    let readers: Vec<Ref<usize>> = (1..4).map(|rank| check::spawn_with(on(rank), &object, 7, true)).collect();
    for reader in readers {
        assert_eq!(reader.get()?, len);
    }
    let mut sum = (0, 0);
    for rank in 1..4 {
        let (from_owner, from_copies) = bytes_read::spawn_with(on(rank)).get()?;
        println!("rank {rank} read {from_owner} bytes of the owner and {from_copies} of others");
        sum = (sum.0 + from_owner, sum.1 + from_copies);
    }
    println!("from_owner={}", sum.0 as f64 / len as f64);
    println!("in_all={}", (sum.0 + sum.1) as f64 / len as f64);
    Ok(())
}

/// Ends or stops this rank amid the next transfer to it; its process.
#[collimate::task]
fn stop_amid(bytes: u64, for_good: bool) -> i32 {
    let signal = if for_good { Signal::KILL } else { Signal::STOP };
    let before = read();
    std::thread::spawn(move || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            let now = read();
            if now.0 + now.1 - before.0 - before.1 >= bytes {
                return kill_process(getpid(), signal).expect("this process may be stopped");
            }
            std::thread::yield_now();
        }
    });
    getpid().as_raw_nonzero().get()
}

#[collimate::main]
fn a_source_dies() -> Result<(), Error> {
    let len = 64 * MIB;
    let object = collimate::put(&pattern(len, 9))?;
    stop_amid::spawn_with(on(1), (len / 4) as u64, true).get()?;
    let dies = check::spawn_with(on(1), &object, 9, false);
    // So that the others are told to read from it.
    std::thread::sleep(Duration::from_millis(2));
    let others: Vec<Ref<usize>> = (2..4).map(|rank| check::spawn_with(on(rank), &object, 9, false)).collect();
    for other in others {
        assert_eq!(other.get()?, len);
    }
    // It may have been done before it died.
    if let Err(error) = dies.get() {
        assert!(error.message.contains("rank 1"), "{error}");
    }
    while bytes_read::spawn_with(on(1)).get().is_ok() {}
    println!("went on");
    Ok(())
}

#[collimate::main]
fn a_source_stops() -> Result<(), Error> {
    let len = 64 * MIB;
    let object = collimate::put(&pattern(len, 9))?;
    let pid = stop_amid::spawn_with(on(1), (len / 4) as u64, false).get()?;
    let stops = check::spawn_with(on(1), &object, 9, false);
    std::thread::sleep(Duration::from_millis(2));
    let others: Vec<Ref<usize>> = (2..4).map(|rank| check::spawn_with(on(rank), &object, 9, false)).collect();
    for other in others {
        assert_eq!(other.get()?, len);
    }
    // It may be that the others were done before it stopped.
    let stopped = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
    let begun = Instant::now();
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(stopped) {
        assert!(begun.elapsed() < Duration::from_secs(20), "it stops");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_raw(pid).expect("a process"), Signal::CONT).expect("it is there");
    assert_eq!(stops.get()?, len);
    Ok(())
}

/// Short objects beside long ones, one object for several tasks at a time, more
/// at once than may be under way.
#[collimate::main]
fn many_arguments() -> Result<(), Error> {
    let long = collimate::put(&pattern(64 * MIB, 1))?;
    let mut calls: Vec<(usize, Ref<usize>)> = Vec::new();
    for i in 0..4 {
        calls.push((64 * MIB, check::spawn_with(on(1), &long, 1, i == 0)));
    }
    for i in 0..40u64 {
        let len = [10_000, 300_000, 2 * MIB - 1, 2 * MIB][i as usize % 4];
        calls.push((len, check::spawn_with(on(1), collimate::put(&pattern(len, i))?, i, false)));
    }
    for (len, call) in calls {
        assert_eq!(call.get()?, len);
    }
    let (from_owner, _) = bytes_read::spawn_with(on(1)).get()?;
    assert!(from_owner < 128 * MIB as u64, "the long object was read more than once: {from_owner}");
    // It still has the long one; nothing of that is read again.
    check::spawn_with(on(1), &long, 1, false).get()?;
    assert_eq!(bytes_read::spawn_with(on(1)).get()?, (from_owner, 0));
    Ok(())
}

/// Whoever has a copy serves it, as long as it has it.
#[collimate::main]
fn two_holders() -> Result<(), Error> {
    let len = 24 * MIB + 5;
    let object = collimate::put(&pattern(len, 3))?;
    for rank in 1..3 {
        check::spawn_with(on(rank), &object, 3, true).get()?;
    }
    // Both are done, and nobody has the object on loan.
    check::spawn_with(on(3), &object, 3, false).get()?;
    assert_eq!(bytes_read::spawn_with(on(3)).get()?, (0, len as u64));
    // Nobody has a copy any more, though the owner does not know.
    for rank in 1..3 {
        drop_kept::spawn_with(on(rank)).get()?;
    }
    check::spawn_with(on(3), &object, 3, false).get()?;
    assert_eq!(bytes_read::spawn_with(on(3)).get()?, (len as u64, len as u64));
    Ok(())
}

#[collimate::task]
fn drop_kept() {
    KEPT.lock().unwrap().clear();
}

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
        tests.push(test(format!("bulk_broadcast_{fabric}"), move || {
            let done = with_fabric(4, "broadcast").env("COLLIMATE_STORE", "256M").run().succeeded();
            let (from_owner, in_all) = (done.number("from_owner"), done.number("in_all"));
            assert!((3.0..3.01).contains(&in_all), "{done:#?}");
            assert!((0.99..2.0).contains(&from_owner), "the owner sent {from_owner} copies: {done:#?}");
        }));
        tests.push(test(format!("bulk_a_source_dies_{fabric}"), move || {
            let done = with_fabric(4, "a source dies").env("COLLIMATE_STORE", "512M").run();
            assert!(done.status == Some(1) && done.stderr.contains("rank 1 (pid "), "{done:#?}");
            assert!(done.stdout.contains("went on"), "{done:#?}");
        }));
        tests.push(test(format!("bulk_a_source_stops_{fabric}"), move || {
            with_fabric(4, "a source stops").env("COLLIMATE_STORE", "512M").run().succeeded();
        }));
        tests.push(test(format!("bulk_two_holders_{fabric}"), move || {
            with_fabric(4, "two holders").env("COLLIMATE_STORE", "256M").run().succeeded();
        }));
        tests.push(test(format!("bulk_many_arguments_{fabric}"), move || {
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

#[collimate::task]
fn process() -> i32 {
    getpid().as_raw_nonzero().get()
}

/// Has this rank stop `process` when it has read so many bytes of copies.
#[collimate::task]
fn stop_when_read(process: i32, bytes: u64) {
    let (_, before) = read();
    std::thread::spawn(move || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            if read().1 - before >= bytes {
                return signal(process, Signal::STOP);
            }
            std::thread::yield_now();
        }
    });
}

fn signal(process: i32, signal: Signal) {
    kill_process(Pid::from_raw(process).expect("a process"), signal).expect("it is there");
}

fn is_stopped(process: i32) -> bool {
    let stopped = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(stopped)
}

/// A transfer by way of rank 1, which was stopped amid it.
struct Amid {
    source: i32,
    len: usize,
    /// What rank 1 was to have.
    first: Ref<usize>,
    /// What ranks 2 and 3 are to have.
    others: Vec<Ref<usize>>,
}

fn stop_amid() -> Result<Amid, Error> {
    let len = 64 * MIB;
    let source = process::spawn_with(on(1)).get()?;
    for seed in 0..10 {
        let object = collimate::put(&pattern(len, seed))?;
        let before = bytes_read::spawn_with(on(1)).get()?;
        let first = check::spawn_with(on(1), &object, seed, true);
        // Once it reads the owner sends the others to it, and it keeps what it has.
        while bytes_read::spawn_with(on(1)).get()? == before {}
        stop_when_read::spawn_with(on(2), source, len as u64 / 16).get()?;
        let others: Vec<Ref<usize>> = (2..4).map(|rank| check::spawn_with(on(rank), &object, seed, false)).collect();
        let begun = Instant::now();
        while !is_stopped(source) {
            assert!(begun.elapsed() < Duration::from_secs(20), "rank 2 reads from rank 1");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Those that have all by now have not been held up.
        std::thread::sleep(Duration::from_millis(100));
        if !others.iter().all(Ref::is_ready) {
            return Ok(Amid { source, len, first, others });
        }
        signal(source, Signal::CONT);
        first.get()?;
        drop_kept::spawn_with(on(1)).get()?;
    }
    panic!("the others were never held up");
}

#[collimate::main]
fn a_source_dies() -> Result<(), Error> {
    let Amid { source, len, first, others } = stop_amid()?;
    signal(source, Signal::KILL);
    for other in others {
        assert_eq!(other.get()?, len);
    }
    // It may have been done before it died.
    if let Err(error) = first.get() {
        assert!(error.message.contains("rank 1"), "{error}");
    }
    while bytes_read::spawn_with(on(1)).get().is_ok() {}
    println!("went on");
    Ok(())
}

#[collimate::main]
fn a_source_stops() -> Result<(), Error> {
    let Amid { source, len, first, others } = stop_amid()?;
    for other in others {
        assert_eq!(other.get()?, len);
    }
    assert!(is_stopped(source), "the others had all without it");
    signal(source, Signal::CONT);
    assert_eq!(first.get()?, len);
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

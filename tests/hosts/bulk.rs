//! Large objects to hosts of several ranks each.

use std::process::Command;
use std::sync::Mutex;

use collimate::base::event::Event;
use collimate::base::limits::BULK_BYTES_MIN;
use collimate::node::Node;
use collimate::{Array, Error, Options, Ref};

use crate::Scenario;
use crate::harness::{Test, test};
use crate::net::Net;

pub const SCENARIOS: &[Scenario] = &[("one copy a host", one_copy_a_host), ("broadcast", broadcast)];

/// The test that needs libfabric.
pub const BROADCAST_OFI: &str = "broadcast_ofi";

pub fn tests() -> Vec<Test> {
    let mut tests = vec![test("one_copy_a_host", || {
        let net = Net::up(3);
        let done = net.job(2, "one copy a host").env("COLLIMATE_STORE", "128M").run().succeeded();
        assert_eq!(done.number("copies"), 2.0, "{done:#?}");
    })];
    for (name, fabric) in [("broadcast_uring", "uring"), ("broadcast_epoll", "epoll"), (BROADCAST_OFI, "ofi")] {
        tests.push(test(name, move || {
            let net = Net::up(4);
            let job = net.job(1, "broadcast").env("COLLIMATE_FABRIC", fabric).env("COLLIMATE_LOG", "1");
            let done = job.env("COLLIMATE_STORE", "128M").run();
            assert_eq!(done.status, Some(0), "{done:#?}");
            for rank in 1..4 {
                assert!(done.stderr.contains(&format!("rank 0: {fabric} to rank {rank}")), "{done:#?}");
            }
        }));
    }
    tests
}

/// Why libfabric cannot be used here, as `collimate info` has it.
pub fn why_no_ofi() -> Option<String> {
    let info = Command::new(env!("CARGO_BIN_EXE_collimate")).arg("info").env("COLLIMATE_FABRIC", "ofi").output();
    let info = match info {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => return Some(error.to_string()),
    };
    let line = info.lines().find(|line| line.trim_start().starts_with("ofi ")).unwrap_or_default();
    (!line.contains(" available: ") || line.contains("not available")).then(|| line.trim().to_string())
}

const MIB: usize = 1 << 20;

static KEPT: Mutex<Vec<Array<u8>>> = Mutex::new(Vec::new());

/// Checks an object and keeps it.
#[collimate::task]
fn check(bytes: Array<u8>) -> Result<usize, String> {
    let len = bytes.len();
    match bytes.chunks(MIB).zip(0..).find(|(part, byte)| *part != vec![*byte; MIB]) {
        Some((_, at)) => Err(format!("rank {} has other bytes in part {at}", collimate::rank())),
        None => {
            KEPT.lock().unwrap().push(bytes);
            Ok(len)
        }
    }
}

/// Lends what was kept on to another rank.
#[collimate::task]
fn pass_on(to: u32) -> Result<usize, Error> {
    let kept = KEPT.lock().unwrap().pop().expect("it was kept");
    check::spawn_with(Options::new().rank(to), kept).get()
}

#[collimate::task]
fn bytes_read() -> u64 {
    let node = Node::current().expect("this is a rank");
    node.count_of(Event::ReadFromOwner) + node.count_of(Event::ReadFromCopy)
}

#[collimate::main]
fn one_copy_a_host() -> Result<(), Error> {
    let len = 8 * MIB;
    let bytes: Vec<u8> = (0..8u8).flat_map(|i| vec![i; MIB]).collect();
    let object = collimate::put(&bytes)?;
    let on = |rank: u32| Options::new().rank(rank);
    let readers: Vec<Ref<usize>> = (1..6).map(|rank| check::spawn_with(on(rank), &object)).collect();
    for reader in readers {
        assert_eq!(reader.get()?, len);
    }
    let mut sum = 0;
    for rank in 1..6 {
        sum += bytes_read::spawn_with(on(rank)).get()?;
    }
    println!("copies={}", sum as f64 / len as f64);
    // What is used in place is lent on, within the host and beyond it.
    for (from, to) in [(2, 3), (3, 2), (2, 4), (3, 5), (5, 2)] {
        assert_eq!(pass_on::spawn_with(on(from), to).get()?, len);
    }
    Ok(())
}

/// Bytes that this rank has read from ranks other than the owner.
#[collimate::task]
fn bytes_of_copies() -> u64 {
    Node::current().expect("this is a rank").count_of(Event::ReadFromCopy)
}

/// All ranks read one object at a time, and then the last one what the others
/// have; it finds it with them.
#[collimate::main]
fn broadcast() -> Result<(), Error> {
    let len = 8 * MIB;
    assert!(len as u64 > BULK_BYTES_MIN);
    let bytes: Vec<u8> = (0..8u8).flat_map(|i| vec![i; MIB]).collect();
    let on = |rank: u32| Options::new().rank(rank);
    let ranks = collimate::size();
    let object = collimate::put(&bytes)?;
    let readers: Vec<Ref<usize>> = (1..ranks).map(|rank| check::spawn_with(on(rank), &object)).collect();
    for reader in readers {
        assert_eq!(reader.get()?, len);
    }
    let object = collimate::put(&bytes)?;
    for rank in 1..ranks {
        assert_eq!(check::spawn_with(on(rank), &object).get()?, len);
    }
    let mut from_copies = 0;
    for rank in 1..ranks {
        from_copies += bytes_of_copies::spawn_with(on(rank)).get()?;
    }
    println!("from_copies={}", from_copies as f64 / len as f64);
    // The last reader alone had others to read from, whatever the first round was.
    assert!(from_copies > 0, "nobody read from a reader");
    Ok(())
}

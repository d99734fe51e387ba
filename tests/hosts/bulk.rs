//! Large objects to hosts of several ranks each.

use std::sync::Mutex;

use collimate::base::event::Event;
use collimate::node::Node;
use collimate::{Array, Error, Options, Ref};

use crate::Scenario;
use crate::harness::{Test, test};
use crate::net::Net;

pub const SCENARIOS: &[Scenario] = &[("one copy a host", one_copy_a_host)];

pub fn tests() -> Vec<Test> {
    vec![test("one_copy_a_host", || {
        let net = Net::up(3);
        let done = net.job(2, "one copy a host").env("COLLIMATE_STORE", "128M").run().succeeded();
        assert_eq!(done.number("copies"), 2.0, "{done:#?}");
    })]
}

const MIB: usize = 1 << 20;

static KEPT: Mutex<Vec<Array<u8>>> = Mutex::new(Vec::new());

/// Checks an object and keeps it.
#[collimate::task]
fn check(bytes: Array<u8>) -> Result<usize, String> {
    let len = bytes.len();
    match bytes.chunks(MIB).zip(0..).find(|(part, byte)| part.iter().any(|b| b != byte)) {
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

//! Every kind of value, by every way that it can travel.

use std::collections::BTreeMap;
use std::time::Duration;

use collimate::{Array, Error, ErrorKind, Options, Ref};
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Scenario;
use crate::harness::{Test, job, test, under_mpi};

pub const SCENARIOS: &[Scenario] = &[("values", values), ("large", large), ("waits", waits), ("places", places)];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for scenario in ["values", "large", "waits", "places"] {
        tests.push(test(format!("{scenario}_alone"), move || {
            job(1, scenario).run().succeeded();
        }));
        for fabric in ["shm", "uring", "epoll"] {
            for ranks in [2, 4] {
                tests.push(test(format!("{scenario}_{ranks}_{fabric}"), move || {
                    job(ranks, scenario).env("COLLIMATE_FABRIC", fabric).run().succeeded();
                }));
            }
        }
    }
    for launcher in ["mpirun.openmpi", "mpirun.mpich"] {
        tests.push(test(format!("values_under_{launcher}"), move || {
            under_mpi(launcher, 2, "values").run().succeeded();
        }));
    }
    tests
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Dot,
    Circle { radius: f64 },
    Polygon(Vec<(i32, i32)>),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Particle {
    name: String,
    mass: Option<f64>,
    tags: BTreeMap<String, Vec<u8>>,
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Point {
    x: f64,
    y: f64,
}

macro_rules! echoes {
    ($($name:ident: $type:ty;)*) => {
        $(
            #[collimate::task]
            fn $name(value: $type) -> $type {
                value
            }
        )*
    };
}

echoes! {
    echo_u64: u64;
    echo_f32: f32;
    echo_bool: bool;
    echo_char: char;
    echo_unit: ();
    echo_pair: (u8, String);
    echo_option: Option<Vec<u16>>;
    echo_text: String;
    echo_shape: Shape;
    echo_particle: Particle;
    echo_point: Point;
    echo_points: Vec<Point>;
    echo_bytes: Vec<u8>;
    echo_words: Vec<String>;
    echo_array: [u32; 5];
    echo_big: Array<u64>;
}

#[collimate::task]
fn echo_result(value: Result<u8, String>) -> Result<u8, String> {
    value
}

#[collimate::task]
fn length(text: &str) -> usize {
    text.chars().count()
}

#[collimate::task]
fn norm(points: &[Point]) -> f64 {
    points.iter().map(|p| p.x * p.x + p.y * p.y).sum()
}

#[collimate::task]
fn describe(particle: &Particle, point: Point) -> String {
    format!("{} at {} {}", particle.name, point.x, point.y)
}

#[collimate::task]
fn nothing() {}

#[collimate::task(results = 2)]
fn divide(a: u64, b: u64) -> (u64, u64) {
    (a / b, a % b)
}

#[collimate::task(results = 3)]
fn three(text: &str) -> Result<(String, usize, Vec<u8>), Error> {
    Ok((text.to_uppercase(), text.len(), text.bytes().rev().collect()))
}

#[collimate::task]
fn sum(values: Vec<u64>) -> u64 {
    values.iter().sum()
}

fn on(rank: u32) -> Options {
    Options::new().rank(rank)
}

#[collimate::main]
fn values() -> Result<(), Error> {
    let particle = Particle {
        name: "électron".into(),
        mass: Some(9.1e-31),
        tags: BTreeMap::from([("lepton".into(), vec![1, 2, 3]), (String::new(), vec![])]),
        shape: Shape::Polygon(vec![(1, -1), (i32::MIN, i32::MAX)]),
    };
    let points: Vec<Point> = (0..700).map(|i| Point { x: f64::from(i), y: -0.5 }).collect();
    for rank in 0..collimate::size() {
        macro_rules! same {
            ($($task:ident($value:expr);)*) => {$(
                let value = $value;
                let first = $task::spawn_with(on(rank), value.clone());
                assert_eq!(first.clone().get()?, value, "{} on rank {rank}", stringify!($task));
                // The result of a remote task as an argument of another one.
                let next = (rank + 1) % collimate::size();
                assert_eq!($task::spawn_with(on(next), &first).get()?, value, "{} on", stringify!($task));
                assert_eq!($task::spawn(&first).get()?, value);
                assert_eq!($task::spawn_with(on(rank), collimate::put_value(value.clone())?).get()?, value);
            )*};
        }
        same! {
            echo_u64(u64::MAX - 3);
            echo_f32(f32::MIN_POSITIVE);
            echo_bool(true);
            echo_char('é');
            echo_pair((7, "seven".to_string()));
            echo_option(Some(vec![1u16, 2, 3]));
            echo_option(None::<Vec<u16>>);
            echo_text("x".repeat(10_000));
            echo_text(String::new());
            echo_shape(Shape::Dot);
            echo_shape(Shape::Circle { radius: 0.1 });
            echo_particle(particle.clone());
            echo_bytes(Vec::<u8>::new());
            echo_bytes(vec![5u8; 4096]);
            echo_bytes(vec![6u8; 4097]);
            echo_words(vec![String::new(), "two".to_string()]);
            echo_words(vec!["long".to_string(); 5_000]);
            echo_array([1u32, 2, 3, 4, 5]);
        }
        assert_eq!(echo_point::spawn_with(on(rank), points[3]).get()?, points[3]);
        assert_eq!(echo_points::spawn_with(on(rank), points.clone()).get()?, points);
        echo_unit::spawn_with(on(rank), ()).get()?;
        nothing::spawn_with(on(rank)).get()?;
        assert_eq!(echo_result::spawn_with(on(rank), Ok::<u8, String>(3)).get()?, 3);
        let refused = echo_result::spawn_with(on(rank), Err::<u8, String>("no".into())).get().unwrap_err();
        assert_eq!((refused.kind, refused.message.as_str()), (ErrorKind::Failed, "no"));

        assert_eq!(length::spawn_with(on(rank), "déjà").get()?, 4);
        let text = echo_text::spawn_with(on(rank), "later".to_string());
        assert_eq!(length::spawn_with(on(rank), &text).get()?, 5);
        assert!((norm::spawn_with(on(rank), &points[..2]).get()? - 1.5).abs() < 1e-12);
        let shared = collimate::put(&points)?;
        assert_eq!(norm::spawn_with(on(rank), &shared).get()?, norm(&points));
        let made = echo_points::spawn_with(on(rank), points.clone());
        assert_eq!(norm::spawn_with(on((rank + 1) % collimate::size()), &made).get()?, norm(&points));
        let one = collimate::put_value(particle.clone())?;
        assert_eq!(describe::spawn_with(on(rank), &one, points[1]).get()?, "électron at 1 -0.5");

        let (quotient, remainder) = divide::spawn_with(on(rank), 17, 5);
        assert_eq!(sum::spawn_with(on(rank), vec![quotient.clone(), remainder.clone()]).get()?, 5);
        assert_eq!((remainder.get()?, quotient.get()?), (2, 3));
        let (upper, bytes, reversed) = three::spawn_with(on(rank), "abc");
        assert_eq!((upper.get()?.as_str(), bytes.get()?, reversed.get()?.as_slice()), ("ABC", 3, &b"cba"[..]));

        let many: Vec<Ref<u64>> =
            (0..100).map(|i| echo_u64::spawn_with(on((rank + i) % collimate::size()), u64::from(i))).collect();
        assert_eq!(sum::spawn_with(on(rank), many).get()?, 4950);
    }
    Ok(())
}

#[collimate::task]
fn ramp(n: usize, first: u64) -> Vec<u64> {
    (first..).take(n).collect()
}

#[collimate::task]
fn ramp_array(n: usize, first: u64) -> Result<Array<u64>, Error> {
    collimate::put(&ramp(n, first))?.get()
}

#[collimate::task]
fn total(values: &[u64]) -> u64 {
    values.iter().fold(0, |sum, v| sum.wrapping_add(*v))
}

#[collimate::task]
fn total_of_array(values: Array<u64>) -> u64 {
    total(&values)
}

/// Lends what it was lent to the next rank, and so on.
#[collimate::task]
fn pass_on(values: Array<u64>, hops: u32) -> Result<u64, Error> {
    if hops == 0 {
        return Ok(total(&values));
    }
    let next = (collimate::rank() + 1) % collimate::size();
    pass_on::spawn_with(Options::new().rank(next), values, hops - 1).get()
}

/// 10 MiB and more, in every direction.
#[collimate::main]
fn large() -> Result<(), Error> {
    const N: usize = 10 << 17;
    let values = ramp(N, 5);
    let expected = total(&values);
    let put = collimate::put(&values)?;
    let size = collimate::size();
    for rank in 0..size {
        let next = (rank + 1) % size;
        assert_eq!(total::spawn_with(on(rank), &values[..]).get()?, expected);
        assert_eq!(total::spawn_with(on(rank), &put).get()?, expected);
        assert_eq!(total_of_array::spawn_with(on(rank), &put).get()?, expected);
        assert_eq!(echo_big::spawn_with(on(rank), &put).get()?[..], values[..]);
        let made = ramp::spawn_with(on(rank), N, 5);
        let made_array = ramp_array::spawn_with(on(rank), N, 5);
        assert_eq!(total::spawn_with(on(next), &made).get()?, expected);
        assert_eq!(total::spawn_with(on(next), &made_array).get()?, expected);
        assert_eq!(total_of_array::spawn_with(on(next), &made_array).get()?, expected);
        assert_eq!(pass_on::spawn_with(on(next), &made_array, 2 * size).get()?, expected);
        assert_eq!(made.get()?, values);
        assert_eq!(made_array.get()?[..], values[..]);
    }
    Ok(())
}

#[collimate::task]
fn nap(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

#[collimate::task]
fn after(first: u64, second: u64) -> u64 {
    first + second
}

#[collimate::main]
fn waits() -> Result<(), Error> {
    let last = collimate::size() - 1;
    let slow = nap::spawn_with(on(last), 300);
    let chained = after::spawn_with(on(last), &slow, 1);
    let local = after::spawn_with(on(0), &chained, &slow);
    if last > 0 {
        let early = slow.clone().get_timeout(Duration::from_millis(20)).unwrap_err();
        assert_eq!(early.kind, ErrorKind::TimedOut, "{early}");
        assert!(!local.is_ready());
        assert!(collimate::wait(std::slice::from_ref(&slow), 1, Duration::from_millis(5))?.is_empty());
    }
    assert_eq!(slow.clone().get_timeout(Duration::from_secs(30))?, 300);
    assert_eq!((slow.clone().get()?, slow.get()?), (300, 300));
    assert_eq!((local.get()?, chained.get()?), (601, 301));

    let naps: Vec<Ref<u64>> = [1, 400, 2, 3].map(|ms| nap::spawn_with(on(last), ms)).into();
    assert!(!collimate::wait(&naps, 1, Duration::from_secs(30))?.is_empty());
    assert_eq!(collimate::wait(&naps, 4, Duration::from_secs(30))?, [0, 1, 2, 3]);
    assert_eq!(collimate::wait(&naps, 9, Duration::from_secs(30))?, [0, 1, 2, 3]);
    assert!(collimate::wait::<u64>(&[], 1, Duration::from_secs(30))?.is_empty());
    assert_eq!(collimate::wait(&naps, 0, Duration::ZERO)?.len(), 4);

    // From a thread that is no worker.
    let other = std::thread::spawn(move || {
        let naps: Vec<Ref<u64>> = (0..20).map(|_| nap::spawn_with(on(last), 1)).collect();
        let soon = collimate::wait(&naps, 3, Duration::from_secs(30))?;
        assert!(soon.len() >= 3);
        let never = nap::spawn_with(on(last), 60).get_timeout(Duration::from_millis(1));
        assert!(never.is_err_and(|e| e.kind == ErrorKind::TimedOut));
        naps.into_iter().map(Ref::get).sum::<Result<u64, Error>>()
    });
    let watch = nap::spawn(1);
    while !other.is_finished() {
        nap::spawn(1).get()?;
    }
    assert_eq!(watch.get()?, 1);
    assert_eq!(other.join().unwrap()?, 20);
    Ok(())
}

#[collimate::task]
fn here() -> u32 {
    collimate::rank()
}

#[collimate::task]
fn fan(depth: u32) -> Result<u64, Error> {
    if depth == 0 {
        return Ok(1);
    }
    let children: Vec<_> = (0..3).map(|_| fan::spawn_with(Options::new().spread(), depth - 1)).collect();
    children.into_iter().map(Ref::get).sum()
}

#[collimate::task]
fn fail_here() -> Result<(), String> {
    Err("as asked".into())
}

#[collimate::main]
fn places() -> Result<(), Error> {
    let size = collimate::size();
    for rank in 0..size {
        assert_eq!(here::spawn_with(on(rank)).get()?, rank);
        let error = fail_here::spawn_with(on(rank).name("scout")).get().unwrap_err();
        assert_eq!((error.trail[0].task.as_str(), error.trail[0].rank), ("scout", rank), "{error}");
    }
    let mut visited = vec![0; size as usize];
    let spread: Vec<_> = (0..2 * size).map(|_| here::spawn_with(Options::new().spread())).collect();
    for r in spread {
        visited[r.get()? as usize] += 1;
    }
    assert!(visited.iter().all(|n| *n == 2), "{visited:?}");
    assert_eq!(fan::spawn(6).get()?, 729);
    let nowhere = here::spawn_with(on(size)).get().unwrap_err();
    assert_eq!(nowhere.kind, ErrorKind::BadCall, "{nowhere}");
    Ok(())
}

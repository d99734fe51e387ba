//! The control store in ranks: its operations from everywhere, deaths of its
//! replicas under load, and what it refuses.

use std::time::{Duration, Instant};

use collimate::{ControlError, ControlStore, Error, Options, Refusal, Table};
use rustix::process::{Pid, Signal, kill_process};

use crate::Scenario;
use crate::harness::{Test, job, lasting, test};

pub const SCENARIOS: &[Scenario] = &[
    ("control operations", operations),
    ("control limits", limits),
    ("control watch", watching),
    ("control deaths", deaths),
    ("control keeps", keeps),
];

pub fn tests() -> Vec<Test> {
    let mut tests = Vec::new();
    for fabric in ["shm", "uring", "epoll"] {
        tests.push(test(format!("control_operations_{fabric}"), move || {
            for (ranks, replicas, shards) in [(1, 3, 2), (2, 3, 1), (3, 3, 3), (5, 2, 4)] {
                let job = job(ranks, "control operations").env("COLLIMATE_FABRIC", fabric);
                let job = job.env("COLLIMATE_GCS_REPLICAS", replicas.to_string());
                job.env("COLLIMATE_GCS_SHARDS", shards.to_string()).run().succeeded();
            }
        }));
        tests.push(test(format!("control_survives_replicas_{fabric}"), move || {
            // Of these chains the ranks that die are head, middle and tail.
            let job = lasting(5, "control deaths").env("COLLIMATE_FABRIC", fabric).env("COLLIMATE_GCS_SHARDS", "3");
            let done = job.run();
            assert!(done.status == Some(0) && done.stdout.contains("nothing lost"), "{done:#?}");
            assert_eq!(done.stderr.matches("goes on without it").count(), 2, "{done:#?}");
        }));
    }
    for ranks in [1, 2, 3] {
        tests.push(test(format!("control_comes_back_from_disk_{ranks}"), move || comes_back(ranks)));
    }
    tests.push(test("control_refuses_another_layout", || {
        let folder = Folder::new("layout");
        kept(1, &folder, "0").succeeded();
        let done = kept(2, &folder, "0");
        assert!(done.status == Some(1) && done.stderr.contains("is of a job with"), "{done:#?}");
    }));
    tests.push(test("control_begins_after_a_start_that_failed", || {
        // A run that ended before its ranks knew each other.
        let folder = Folder::new("failed");
        std::fs::create_dir(folder.0.join("rank-0")).unwrap();
        std::fs::write(folder.0.join("rank-0/life"), "1").unwrap();
        kept(3, &folder, "0").succeeded();
        // And one that ended when only rank 1 had its first state on disk.
        let folder = Folder::new("begun");
        kept(3, &folder, "0").succeeded();
        for rank in 0..3 {
            let log = folder.0.join(format!("rank-{rank}/shard-0.log"));
            let bytes = std::fs::read(&log).unwrap();
            // Whose it is, and all of an empty state.
            let end_of = |at: usize| at + 12 + u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            std::fs::write(&log, if rank == 1 { &bytes[..end_of(end_of(0))] } else { b"" }).unwrap();
        }
        kept(3, &folder, "0").succeeded();
    }));
    tests.push(test("control_refuses_a_damaged_log", || {
        let folder = Folder::new("damage");
        kept(1, &folder, "0").succeeded();
        let log = folder.0.join("rank-0/shard-0.log");
        let mut bytes = std::fs::read(&log).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&log, bytes).unwrap();
        let done = kept(1, &folder, "0");
        assert!(done.status == Some(1) && done.stderr.contains("shard-0.log"), "{done:#?}");
        assert!(done.stderr.contains("COLLIMATE_GCS_TRUNCATE=1"), "{done:#?}");
        let job = job(1, "control keeps").env("COLLIMATE_GCS_DIR", folder.0.to_str().unwrap());
        job.env("COLLIMATE_GCS_TRUNCATE", "1").env("EXPECTED", "0").run().succeeded();
    }));
    tests.push(test("control_limits", || drop(job(2, "control limits").run().succeeded())));
    tests.push(test("control_watch", || {
        job(3, "control watch").env("COLLIMATE_GCS_SHARDS", "3").run().succeeded();
    }));
    tests
}

/// A folder that goes with its owner.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("clm-control-{name}-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        Folder(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

fn kept(ranks: u32, folder: &Folder, expected: &str) -> crate::harness::Finished {
    let job = job(ranks, "control keeps").env("COLLIMATE_GCS_DIR", folder.0.to_str().unwrap());
    job.env("EXPECTED", expected).run()
}

/// Runs a job on one folder again and again, at times with a sudden end: what
/// was answered in one run is there in the next.
fn comes_back(ranks: u32) {
    let folder = Folder::new(&format!("kept-{ranks}"));
    let mut expected = 0;
    for end in ["", "kill", "kill", ""] {
        let job = job(ranks, "control keeps").env("COLLIMATE_GCS_DIR", folder.0.to_str().unwrap());
        let done = job.env("EXPECTED", expected.to_string()).env("END", end).run();
        assert_eq!(done.status == Some(0), end.is_empty(), "{done:#?}");
        let last = done.stdout.lines().filter_map(|line| line.strip_prefix("written ")).next_back();
        let written: u64 = last.unwrap_or_else(|| panic!("{done:#?}")).parse().unwrap();
        assert!(written > expected, "{done:#?}");
        expected = written;
    }
}

/// Finds what the runs before have written, writes more, and ends as told.
#[collimate::main]
fn keeps() -> Result<(), Box<dyn std::error::Error>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let expected = number("EXPECTED");
    let store = ControlStore::of_job()?;
    for n in 0..expected {
        let record = store.get(Table::Lineage, &key(n)).wait()?;
        assert_eq!(record.map(|record| record.value.to_vec()), Some(n.to_le_bytes().to_vec()), "record {n}");
    }
    for n in expected..expected + 200 {
        store.put(Table::Lineage, &key(n), &n.to_le_bytes()).wait()?;
        println!("written {}", n + 1);
        if n == expected + 150 && std::env::var("END").is_ok_and(|end| end == "kill") {
            // More than are answered are under way.
            let _under_way: Vec<_> = (0..100).map(|m| store.put(Table::Lineage, &key(n + 1 + m), b"later")).collect();
            let ranks = (0..collimate::size()).rev();
            let pids: Vec<_> = ranks.map(|rank| process::spawn_with(Options::new().rank(rank)).get()).collect();
            for pid in pids {
                kill_process(Pid::from_raw(pid? as i32).expect("a process"), Signal::KILL)?;
            }
        }
    }
    Ok(())
}

fn key(number: u64) -> Vec<u8> {
    format!("key/{number}").into_bytes()
}

/// Counts up a record that many ranks count up.
#[collimate::task]
fn count_up(times: u64) -> Result<(), Error> {
    let store = ControlStore::of_job().expect("in a task");
    for _ in 0..times {
        loop {
            let (version, count) = match store.get(Table::Jobs, b"count").wait().expect("there are replicas") {
                Some(record) => (record.version, u64::from_le_bytes(record.value[..].try_into().expect("a count"))),
                None => (0, 0),
            };
            let next = (count + 1).to_le_bytes();
            match store.compare_and_swap(Table::Jobs, b"count", version, Some(&next)).wait() {
                Ok(_) => break,
                Err(ControlError::Refused(Refusal::VersionMismatch { .. })) => (),
                Err(error) => panic!("{error}"),
            }
        }
    }
    Ok(())
}

#[collimate::main]
fn operations() -> Result<(), Box<dyn std::error::Error>> {
    let store = ControlStore::of_job()?;
    // More than are under way at once, in one go.
    let puts: Vec<_> = (0..3000).map(|n| store.put(Table::Names, &key(n), &n.to_le_bytes())).collect();
    let versions = puts.into_iter().map(|put| put.wait()).collect::<Result<Vec<_>, _>>()?;
    for n in [0, 1, 2999] {
        let record = store.get(Table::Names, &key(n)).wait()?.expect("it was put");
        assert_eq!((record.version, &record.value[..]), (versions[n as usize], &n.to_le_bytes()[..]));
    }
    let all = store.scan(Table::Names, b"key/")?;
    assert_eq!(all.len(), 3000);
    assert!(all.is_sorted_by(|(one, _), (other, _)| one < other));
    let keys: Vec<Vec<u8>> = (0..3001).map(key).collect();
    let found = store.multi_get(Table::Names, &keys.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    assert!(found[..3000].iter().all(Option::is_some) && found[3000].is_none());
    let long: Vec<Vec<u8>> = (0..600).map(|n| format!("{n:0>200}").into_bytes()).collect();
    let found = store.multi_get(Table::Names, &long.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    assert!(found.len() == 600 && found.iter().all(Option::is_none));
    store.delete(Table::Names, &key(7)).wait()?;
    assert_eq!(store.get(Table::Names, &key(7)).wait()?, None);
    store.delete_prefix(Table::Names, b"key/2")?;
    assert_eq!(store.scan(Table::Names, b"key/2")?.len(), 0);
    assert_eq!(store.scan(Table::Names, b"key/1")?.len(), 1111);
    for part in [b"one ", b"two "] {
        store.append(Table::Lineage, b"story", part).wait()?;
    }
    assert_eq!(&store.get(Table::Lineage, b"story").wait()?.expect("appended").value[..], b"one two ");

    let ranks = collimate::size();
    let counting: Vec<_> = (0..ranks).map(|rank| count_up::spawn_with(Options::new().rank(rank), 20)).collect();
    counting.into_iter().try_for_each(|one| one.get())?;
    let count = store.get(Table::Jobs, b"count").wait()?.expect("counted");
    assert_eq!(&count.value[..], (u64::from(ranks) * 20).to_le_bytes());
    // Every rank has said who it is.
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.scan(Table::Nodes, b"")?.len() < ranks as usize {
        assert!(Instant::now() < deadline, "all ranks are among the nodes");
    }
    Ok(())
}

#[collimate::main]
fn limits() -> Result<(), ControlError> {
    let store = ControlStore::of_job()?;
    assert!(Table::from_number(99).unwrap_err().to_string().contains("no table 99"));
    let refused = |error: ControlError, text: &str| {
        assert!(matches!(error, ControlError::Refused(_)) && error.to_string().contains(text), "{error}");
    };
    refused(store.put(Table::Names, b"", b"x").wait().unwrap_err(), "the key is empty");
    refused(store.put(Table::Names, &[b'k'; 257], b"x").wait().unwrap_err(), "a key of 257 bytes");
    refused(store.put(Table::Names, b"k", &[0; 16385]).wait().unwrap_err(), "a value of 16385 bytes");
    store.put(Table::Names, &[b'k'; 256], &[0; 16384]).wait()?;
    refused(store.append(Table::Names, &[b'k'; 256], b"x").wait().unwrap_err(), "a value of 16385 bytes");
    let version = store.put(Table::Names, b"k", b"1").wait()?;
    refused(store.compare_and_swap(Table::Names, b"k", 0, None).wait().unwrap_err(), "the record has version");
    store.compare_and_swap(Table::Names, b"k", version, None).wait()?;
    assert_eq!(store.get(Table::Names, b"k").wait()?, None);
    Ok(())
}

#[collimate::task]
fn write_some(of: u32, times: u64) -> Result<(), Error> {
    let store = ControlStore::of_job().expect("in a task");
    for n in 0..times {
        let key = format!("watched/{of}/{}", n % 5);
        store.put(Table::Actors, key.as_bytes(), &n.to_le_bytes()).wait().expect("there are replicas");
    }
    Ok(())
}

#[collimate::main]
fn watching() -> Result<(), Box<dyn std::error::Error>> {
    const TIMES: u64 = 200;
    let store = ControlStore::of_job()?;
    let mut watch = store.watch(Table::Actors, b"watched/")?;
    let ranks = collimate::size();
    let writing: Vec<_> =
        (0..ranks).map(|rank| write_some::spawn_with(Options::new().rank(rank), rank, TIMES)).collect();
    let mut seen = std::collections::BTreeMap::<Vec<u8>, Vec<u64>>::new();
    let mut count = 0;
    while count < u64::from(ranks) * TIMES {
        let changes = watch.changes()?;
        assert!(!changes.missed);
        for event in changes.events {
            let value = event.value.expect("nothing is deleted");
            seen.entry(event.key.to_vec()).or_default().push(u64::from_le_bytes(value[..].try_into()?));
            count += 1;
        }
    }
    writing.into_iter().try_for_each(|one| one.get())?;
    assert_eq!(seen.len(), 5 * ranks as usize);
    for (key, values) in seen {
        let first = values[0];
        let expected: Vec<u64> = (0..TIMES).filter(|n| n % 5 == first).collect();
        assert_eq!(values, expected, "{key:?}");
    }
    Ok(())
}

#[collimate::task]
fn process() -> u32 {
    std::process::id()
}

/// Writes to all shards all the time while two of the three first replicas die,
/// one after the other has been replaced.
#[collimate::main]
fn deaths() -> Result<(), Box<dyn std::error::Error>> {
    let store = ControlStore::of_job()?;
    let mut longest = Duration::ZERO;
    let mut written = 0u64;
    for victim in [1, 2] {
        let pid = process::spawn_with(Options::new().rank(victim)).get()?;
        let begun = Instant::now();
        let mut killed = false;
        while begun.elapsed() < Duration::from_millis(1500) {
            if !killed && begun.elapsed() > Duration::from_millis(100) {
                kill_process(Pid::from_raw(pid as i32).expect("a process"), Signal::KILL)?;
                killed = true;
            }
            let start = Instant::now();
            let window: Vec<_> = (0..16)
                .map(|n| store.put(Table::ObjectLocations, &key(written + n), &(written + n).to_le_bytes()))
                .collect();
            window.into_iter().try_for_each(|put| put.wait().map(drop))?;
            written += 16;
            longest = longest.max(start.elapsed());
        }
    }
    let all = store.scan(Table::ObjectLocations, b"key/")?;
    assert_eq!(all.len() as u64, written);
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.scan(Table::Nodes, b"")?.len() != 3 {
        assert!(Instant::now() < deadline, "the dead are no nodes any more");
    }
    println!("nothing lost; the longest pause was {longest:?} in {written} writes");
    Ok(())
}

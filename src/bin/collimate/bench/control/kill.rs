//! A rank is killed while writes are under way: how long the writes of each
//! shard pause, and whether any that was acknowledged is lost.
//!
//! With three ranks, three shards and chains of three, the one that is killed
//! is the head of a chain, the middle of another and the tail of the third.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use collimate::gcs::{Key, ShardId, founding_chains, shard_of};
use collimate::{ControlStore, Table};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::super::latency::record;
use super::super::measure::{Effort, Failed, Round, Samples, compare};
use super::super::record::{Figure, Record, Target};
use super::super::stage::Stage;
use super::super::{Job, Metric, print};
use super::ours::Window;

const RANKS: usize = 3;
/// The rank that is killed; the driver, which writes, is rank 0.
const VICTIM: u32 = 1;
/// Its places in the chains.
const PLACES: [&str; RANKS] = ["head", "middle", "tail"];

/// Writes under way in each shard.
const UNDER_WAY: usize = 16;
/// Bytes of a value: the number of the write.
const VALUE: usize = 8;
/// Keys of a question when all is read back.
const KEYS_PER_QUESTION: usize = 256;

/// The kill comes after so much writing, and up to as much more.
const BEFORE: Duration = Duration::from_millis(100);
/// Writing after it.
const AFTER: Duration = Duration::from_millis(400);
/// A pause that begins so long after it is not of its doing.
const OVER: Duration = Duration::from_millis(100);

/// The longest pause that there should be.
const PAUSE_NS: f64 = 10e6;

/// What one job has seen of the shard in which the killed rank had one place.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Seen {
    /// The longest time between two acknowledgements before the kill, or from when
    /// it is long over: what the host does to us anyway.
    otherwise_ns: u64,
    /// The longest one around it.
    pause_ns: u64,
    /// Acknowledged writes; all were there in the end.
    writes: u64,
}

/// Kills one rank of each of many jobs.
pub fn measure(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), String> {
    let kills = if effort.quick { 3 } else { 300 };
    let mut all: Vec<[Seen; RANKS]> = Vec::new();
    let mut failures = Vec::new();
    for number in 1..=kills {
        match one_job(effort) {
            Ok(seen) => all.push(seen),
            Err(why) => failures.push(format!("job {number}: {why}")),
        }
    }
    for (place, name) in PLACES.iter().enumerate() {
        let seen: Vec<Seen> = all.iter().map(|job| job[place]).collect();
        if !seen.is_empty() {
            emit(of_place(name, &seen));
        }
    }
    match failures.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} of {kills} jobs failed, the first: {first}", failures.len())),
    }
}

fn one_job(effort: Effort) -> Result<[Seen; RANKS], String> {
    let mut job = Job::start(Metric::Control, Stage::ControlKill, effort)?;
    let line = job.line()?;
    // The killed rank is the job's failure; the line is the driver's success.
    let end = job.end();
    let line = line.ok_or_else(|| end.err().unwrap_or_else(|| "rank 0 ended and said nothing".into()))?;
    serde_json::from_str(&line).map_err(|e| format!("rank 0 printed what is no result: {e}"))
}

fn of_place(place: &str, seen: &[Seen]) -> Record {
    let percentiles = |ns: &dyn Fn(&Seen) -> u64| {
        let mut samples = Samples::new();
        seen.iter().for_each(|one| samples.add(Duration::from_nanos(ns(one)), 1));
        samples.round()
    };
    let compared = compare(&[(percentiles(&|one| one.pause_ns), percentiles(&|one| one.otherwise_ns))]);
    let name = "longest pause otherwise";
    let mut record = record("control_kill", "cross_process", &compared, name, None);
    let most = |ns: &dyn Fn(&Seen) -> u64| seen.iter().map(ns).max().map(|most| most as f64);
    let figure = |round: Round, most| Figure { max_ns: most, ..Figure::percentiles(round) };
    record.variant = Some(format!("{place}, {} kills", seen.len()));
    record.ranks = RANKS as u32;
    record.workers = 1;
    record.figure = figure(compared.ours, most(&|one| one.pause_ns));
    record.reference.figure = figure(compared.reference, most(&|one| one.otherwise_ns));
    record.target = Some(Target { max_ns: Some(PAUSE_NS), ..Target::default() });
    record
}

/// On the ranks: writes to all shards, kills one rank meanwhile, and prints what
/// was seen, by the place that the killed rank had.
pub fn one() -> Result<(), Failed> {
    let victim = process::spawn_with(collimate::Options::new().rank(VICTIM)).get()?;
    let chains = founding_chains(&["one host"; RANKS], RANKS, RANKS as u16);
    let here = || collimate::Options::new().rank(collimate::rank());
    let shards: Vec<_> = (0..RANKS as u16).map(|shard| write_steadily::spawn_with(here(), shard)).collect();
    let killer = std::thread::spawn(move || -> Result<(), rustix::io::Errno> {
        let jitter = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
        std::thread::sleep(BEFORE + BEFORE * (jitter % 1000) / 1000);
        KILLED_AT.store(now(), Ordering::SeqCst);
        kill_process(Pid::from_raw(victim as i32).ok_or(rustix::io::Errno::SRCH)?, Signal::KILL)?;
        std::thread::sleep(AFTER);
        STOP.store(true, Ordering::SeqCst);
        Ok(())
    });
    let mut seen = [Seen::default(); RANKS];
    for (chain, shard) in chains.iter().zip(shards) {
        let place = chain.members.iter().position(|member| member.rank.0 == VICTIM);
        seen[place.ok_or("the victim is in every chain")?] = shard.get()?;
    }
    killer.join().map_err(|_| "the killer panicked")??;
    print(&format!("{}\n", serde_json::to_string(&seen)?));
    Ok(())
}

#[collimate::task]
fn process() -> u32 {
    std::process::id()
}

/// When the rank was killed, or [`NOT_YET`].
static KILLED_AT: AtomicU64 = AtomicU64::new(NOT_YET);
const NOT_YET: u64 = u64::MAX;
/// Whether there has been writing enough.
static STOP: AtomicBool = AtomicBool::new(false);

#[collimate::task]
fn write_steadily(shard: u16) -> Result<Seen, String> {
    let store = ControlStore::of_job().map_err(|e| e.to_string())?;
    let mut numbers = (0..).filter(|number: &u64| shard_of(&key(*number), RANKS) == ShardId(shard));
    let mut written = Vec::new();
    let mut window = Window::new(UNDER_WAY);
    let mut seen = Seen::default();
    let mut last = now();
    while !STOP.load(Ordering::Relaxed) {
        let number = numbers.next().ok_or("the numbers have run out")?;
        written.push(number);
        let begin = || store.put(Table::Names, &key(number).bytes, &number.to_le_bytes());
        if window.push(begin).map_err(|e| format!("a write failed: {e}"))? {
            let acknowledged = now();
            let killed_at = KILLED_AT.load(Ordering::SeqCst);
            let over = killed_at.saturating_add(OVER.as_nanos() as u64);
            let is_around = acknowledged >= killed_at && last < over;
            let longest = if is_around { &mut seen.pause_ns } else { &mut seen.otherwise_ns };
            *longest = (*longest).max(acknowledged - last);
            last = acknowledged;
        }
    }
    window.finish().map_err(|e| format!("a write failed: {e}"))?;
    for some in written.chunks(KEYS_PER_QUESTION) {
        let keys: Vec<Key> = some.iter().map(|number| key(*number)).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| &key.bytes[..]).collect();
        let found =
            store.multi_get(Table::Names, &keys).map_err(|e| format!("what was written cannot be read: {e}"))?;
        for (number, record) in some.iter().zip(found) {
            let value: [u8; VALUE] = number.to_le_bytes();
            if record.is_none_or(|record| record.value[..] != value) {
                return Err(format!("write {number} of shard {shard} was acknowledged and is not there"));
            }
        }
    }
    seen.writes = written.len() as u64;
    Ok(seen)
}

fn key(number: u64) -> Key {
    Key::new(Table::Names, format!("write:{number}").as_bytes())
}

/// Nanoseconds since some moment.
fn now() -> u64 {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

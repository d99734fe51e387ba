//! `collimate bench control`: the control store beside what its targets name: a
//! ring of messages, redis with a replica, etcd.

mod etcd;
mod grpc;
mod kill;
mod load;
mod memory;
mod ours;
mod peer;
mod redis;
mod ring;

pub use kill::{measure as kills, one as one_kill};
pub use memory::short_records;
pub use peer::Folder;
pub use redis::obstacle as redis_obstacle;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use collimate::base::Config;

use super::latency::record;
use super::measure::{Compared, Effort, Failed, Round, compare};
use super::record::{Figure, Record, Target};
use etcd::Etcd;
use ours::Writer;
use redis::Redis;

/// Of writes whose rate is measured.
const VALUE_BYTES: usize = 512;
/// Different keys that are written, in turn.
const KEYS: usize = 10_000;

/// Writes under way at once, whoever is measured.
const UNDER_WAY: [usize; 2] = [64, 512];

/// What a write may take above three hops.
const WRITE_ABOVE_HOPS_NS: f64 = 3000.0;

/// One write after the other, beside a message that goes round the same ranks.
pub fn write_latency(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let count = effort.count(5000);
    let writer = Writer::new()?;
    let mut ours = Vec::new();
    let mut rings: [Vec<Round>; ring::WAYS.len()] = Default::default();
    for _ in 0..effort.rounds() {
        ours.push(writer.latency(count)?);
        for (rounds, waiting) in rings.iter_mut().zip(ring::WAYS) {
            rounds.push(ring::rounds(count, waiting)?);
        }
    }
    for (rounds, waiting) in rings.iter().zip(ring::WAYS) {
        let pairs: Vec<_> = ours.iter().copied().zip(rounds.iter().copied()).collect();
        let compared = compare(&pairs);
        let bound = compared.reference.p50_ns + WRITE_ABOVE_HOPS_NS;
        let target = (waiting == ring::LIKE_RANKS).then(|| Target { p50_ns: Some(bound), ..Target::default() });
        let name = format!("three hops of a bare shm fabric, {waiting}");
        emit(record("control_write", "cross_process", &compared, &name, target));
    }
    Ok(())
}

/// Many writes under way, beside redis.
pub fn write_rate(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let writer = Writer::new()?;
    let redis = &Redis::start()?;
    for under_way in UNDER_WAY {
        let ways: Vec<Way<'_>> = [1, 4, under_way]
            .map(|connections| Way {
                name: format!("redis, a replica, WAIT 1: {connections} x {} SET", under_way / connections),
                rate: Box::new(move |time| redis.rate(connections, under_way, time)),
            })
            .into();
        beside("control_writes", &writer, under_way, effort, &ways, 1.0 / 3.0, emit)?;
    }
    Ok(())
}

/// Many writes under way that are on disk when they are acknowledged, beside
/// etcd: members as many as our replicas, and a single one.
pub fn durable_rate(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let folder = Config::from_env()?.gcs_dir.ok_or("the control store has no folder to be on disk in")?;
    let writer = Writer::new()?;
    let (three, one) = (Etcd::start::<3>()?, Etcd::start::<1>()?);
    for under_way in UNDER_WAY {
        let before = last_write(&folder)?;
        for (members, etcd) in [("three members", &three), ("one member", &one)] {
            let ways: Vec<Way<'_>> = [1, 8]
                .map(|connections| Way {
                    name: format!("etcd, {members}: {connections} connections"),
                    rate: Box::new(move |time| etcd.rate(connections, under_way, time)),
                })
                .into();
            beside("control_durable", &writer, under_way, effort, &ways, 0.5, emit)?;
        }
        if last_write(&folder)? == before {
            return Err(format!("the control store has written nothing to {}", folder.display()).into());
        }
    }
    Ok(())
}

/// A way in which a peer has writes under way, and its rate in some time.
struct Way<'a> {
    name: String,
    rate: Box<dyn Fn(Duration) -> Result<f64, Failed> + 'a>,
}

/// Ours beside each way of a peer, in turns. The target counts for the peer's
/// best.
fn beside(
    metric: &str,
    writer: &Writer,
    under_way: usize,
    effort: Effort,
    ways: &[Way<'_>],
    target: f64,
    emit: &mut dyn FnMut(Record),
) -> Result<(), Failed> {
    let (rounds, time) = if effort.quick { (1, 200) } else { (7, 1000) };
    let time = Duration::from_millis(time);
    let per_write = |rate: f64| Round { p50_ns: 1e9 / rate, p99_ns: 1e9 / rate };
    // Nobody's first connections and first touches of memory count.
    writer.rate(under_way, time / 4)?;
    for way in ways {
        (way.rate)(time / 4)?;
    }
    let mut pairs = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        let ours = per_write(writer.rate(under_way, time)?);
        for (pairs, way) in pairs.iter_mut().zip(ways) {
            pairs.push((ours, per_write((way.rate)(time)?)));
        }
    }
    let compared: Vec<Compared> = pairs.iter().map(|pairs| compare(pairs)).collect();
    let best = compared.iter().map(|c| c.reference.p50_ns).fold(f64::INFINITY, f64::min);
    for (compared, way) in compared.iter().zip(ways) {
        let target = (compared.reference.p50_ns == best).then(|| Target { ratio: Some(target), ..Target::default() });
        let mut record = record(metric, "cross_process", compared, &way.name, target);
        record.variant = Some(format!("{under_way} under way"));
        record.bytes = Some(VALUE_BYTES as u64);
        record.figure = Figure::rate(1e9 / compared.ours.p50_ns);
        record.reference.figure = Figure::rate(1e9 / compared.reference.p50_ns);
        emit(record);
    }
    Ok(())
}

/// When something in a folder, or in the folders in it, was written last.
fn last_write(folder: &Path) -> Result<SystemTime, Failed> {
    let unreadable = |e| format!("cannot read {}: {e}", folder.display());
    let mut last = UNIX_EPOCH;
    for entry in std::fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let written = if metadata.is_dir() { last_write(&entry.path())? } else { metadata.modified()? };
        last = last.max(written);
    }
    Ok(last)
}

/// Why there can be no comparison with etcd, if so.
pub fn durable_obstacle() -> Option<String> {
    /// `statfs(2)`.
    const TMPFS: u32 = 0x0102_1994;
    let folder = std::env::temp_dir();
    match rustix::fs::statfs(&folder) {
        Ok(found) if found.f_type as u32 == TMPFS => {
            Some(format!("{} is in memory; let TMPDIR name a folder on a disk", folder.display()))
        }
        _ => etcd::obstacle(),
    }
}

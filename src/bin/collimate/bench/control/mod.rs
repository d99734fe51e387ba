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

pub use etcd::obstacle as etcd_obstacle;
pub use kill::{measure as kills, one as one_kill};
pub use memory::short_records;
pub use peer::Folder;
pub use redis::obstacle as redis_obstacle;

use std::time::Duration;

use super::latency::record;
use super::measure::{Effort, Failed, Round, compare, median};
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
        let peer =
            |connections| -> Peer<'_> { (connections, Box::new(move |time| redis.rate(connections, under_way, time))) };
        let peers = [1, 4, under_way].map(peer);
        let (ours, theirs, connections) = beside(&writer, under_way, effort, &peers)?;
        let name = format!("redis, a replica, WAIT 1, {connections} connections");
        let target = Target { ratio: Some(1.0 / 3.0), ..Target::default() };
        emit(rates("control_writes", under_way, &ours, &theirs, &name, target));
    }
    Ok(())
}

/// Many writes under way that are on disk when they are acknowledged, beside
/// etcd.
pub fn durable_rate(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let writer = Writer::new()?;
    let clusters = [("of three", Etcd::start::<3>()?), ("of one", Etcd::start::<1>()?)];
    for under_way in UNDER_WAY {
        for (members, etcd) in &clusters {
            let peer = |connections| -> Peer<'_> {
                (connections, Box::new(move |time| etcd.rate(connections, under_way, time)))
            };
            let (ours, theirs, connections) = beside(&writer, under_way, effort, &[1, 8].map(peer))?;
            let name = format!("etcd {members}, {connections} connections");
            let target = Target { ratio: Some(0.5), ..Target::default() };
            emit(rates("control_durable", under_way, &ours, &theirs, &name, target));
        }
    }
    Ok(())
}

/// A peer's way to have writes under way: with so many connections, the rate of
/// some time.
type Peer<'a> = (usize, Box<dyn Fn(Duration) -> Result<f64, Failed> + 'a>);

/// Rates of ours and of the peer's best way, and which that is. All take turns.
fn beside(
    writer: &Writer,
    under_way: usize,
    effort: Effort,
    peers: &[Peer<'_>],
) -> Result<(Vec<f64>, Vec<f64>, usize), Failed> {
    let (rounds, time) = if effort.quick { (1, 200) } else { (7, 1000) };
    let time = Duration::from_millis(time);
    let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); peers.len()]);
    for _ in 0..rounds {
        ours.push(writer.rate(under_way, time)?);
        for (rates, (_, peer)) in theirs.iter_mut().zip(peers) {
            rates.push(peer(time)?);
        }
    }
    let ways = theirs.into_iter().zip(peers.iter().map(|(connections, _)| *connections));
    let best = ways.max_by(|(a, _), (b, _)| median(a.clone()).total_cmp(&median(b.clone())));
    let (theirs, connections) = best.ok_or("a peer without a way")?;
    Ok((ours, theirs, connections))
}

fn rates(metric: &str, under_way: usize, ours: &[f64], theirs: &[f64], name: &str, target: Target) -> Record {
    let round = |rate: &f64| Round { p50_ns: 1e9 / rate, p99_ns: 1e9 / rate };
    let pairs: Vec<_> = ours.iter().map(round).zip(theirs.iter().map(round)).collect();
    let compared = compare(&pairs);
    let mut record = record(metric, "cross_process", &compared, name, Some(target));
    record.variant = Some(format!("{under_way} under way"));
    record.bytes = Some(VALUE_BYTES as u64);
    record.figure = Figure::rate(1e9 / compared.ours.p50_ns);
    record.reference.figure = Figure::rate(1e9 / compared.reference.p50_ns);
    record
}

//! `collimate bench broadcast`: one object to many hosts, in virtual time. The
//! code that decides is the one that ranks run; links, latencies and deaths are
//! a model (`collimate::sim`), so that the figures are the same on any machine.

use collimate::base::Rank;
use collimate::sim::{NetworkConfig, Scenario};

use super::measure::{Effort, Failed};
use super::record::{Figure, Record, Reference, Target};

/// 25 Gb/s links, as many clusters have them; 5 us from host to host; a host
/// that died is noticed after 10 ms.
const NETWORK: NetworkConfig = NetworkConfig { bits_per_s: 25e9, latency_ns: 5_000, detection_ns: 10_000_000 };

const GIB: u64 = 1 << 30;

/// How much longer than one transfer a broadcast to eight ranks may take.
const RATIO_MAX: f64 = 1.3;

/// What else happens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// The rank in the middle of the chain dies halfway.
    Death,
    /// One link has a quarter of the others' bandwidth.
    SlowLink,
}

/// Broadcasts of several sizes to several numbers of ranks.
pub fn simulate(effort: Effort, emit: &mut dyn FnMut(Record)) -> Result<(), Failed> {
    let ranks: &[u32] = if effort.quick { &[2, 8] } else { &[2, 4, 8, 16, 32, 64] };
    for ranks in ranks {
        emit(broadcast(*ranks, GIB, Trouble::None)?);
    }
    emit(broadcast(8, GIB, Trouble::Death)?);
    emit(broadcast(8, GIB, Trouble::SlowLink)?);
    let sizes: &[u64] = if effort.quick { &[1 << 20] } else { &[64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20] };
    for ranks in [8, 64] {
        for bytes in sizes {
            emit(broadcast(ranks, *bytes, Trouble::None)?);
        }
    }
    Ok(())
}

fn broadcast(ranks: u32, bytes: u64, trouble: Trouble) -> Result<Record, Failed> {
    let one_ns = Scenario::broadcast(2, bytes, NETWORK).run().last_ns() as f64;
    let mut scenario = Scenario::broadcast(ranks, bytes, NETWORK);
    match trouble {
        Trouble::None => (),
        Trouble::Death => scenario.deaths = vec![(Rank(ranks / 2), one_ns as u64 / 2)],
        Trouble::SlowLink => scenario.speeds = vec![(Rank(ranks / 2), 0.25)],
    }
    let report = scenario.run();
    if let Some(error) = report.ends.values().find_map(|end| end.error.clone()) {
        return Err(error.into());
    }
    let all_ns = report.last_ns() as f64;
    let variant = match trouble {
        Trouble::None => format!("{ranks} hosts, owner sends {:.2}x", report.sent[0] as f64 / bytes as f64),
        Trouble::Death => format!("{ranks} hosts, one dies halfway"),
        Trouble::SlowLink => format!("{ranks} hosts, one with a quarter of the bandwidth"),
    };
    let is_target = ranks == 8 && bytes == GIB && trouble == Trouble::None;
    Ok(Record {
        metric: "broadcast".into(),
        path: "simulated".into(),
        variant: Some(variant),
        bytes: Some(bytes),
        ranks,
        workers: 1,
        figure: Figure::transfer(all_ns, all_ns, bytes),
        in_place: None,
        reference: Reference { name: "one transfer".into(), figure: Figure::transfer(one_ns, one_ns, bytes) },
        ratio: all_ns / one_ns,
        target: is_target.then(|| Target { ratio: Some(RATIO_MAX), ..Target::default() }),
    })
}

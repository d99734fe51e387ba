//! Broadcasts that must be fast, and any transfers that must be right.

use super::*;
use crate::base::limits::BULK_BYTES_MIN;
use crate::base::rng::Rng;

const NETWORK: NetworkConfig = NetworkConfig { bits_per_s: 25e9, latency_ns: 5_000, detection_ns: 10_000_000 };
const GIB: u64 = 1 << 30;

/// Longer than anybody may wait.
const FOR_GOOD_NS: u64 = 150_000_000_000;

#[test]
fn a_broadcast_to_seven_takes_little_longer_than_one_transfer() {
    let one = Scenario::broadcast(2, GIB, NETWORK).run();
    let all = Scenario::broadcast(8, GIB, NETWORK).run();
    assert!(one.all_well() && all.all_well());
    let ratio = all.last_ns() as f64 / one.last_ns() as f64;
    println!(
        "one transfer {:.3} ms, broadcast {:.3} ms, ratio {ratio:.4}",
        one.last_ns() as f64 / 1e6,
        all.last_ns() as f64 / 1e6
    );
    println!("sent: {:?}, messages {}", all.sent, all.messages);
    assert!(ratio < 1.3, "{ratio}");
    assert!(all.sent.iter().all(|sent| *sent < GIB + GIB / 10), "{:?}", all.sent);
    let wire = GIB as f64 * 8.0 / 25e9 * 1e9;
    assert!((one.last_ns() as f64) < 1.05 * wire);
}

#[test]
fn the_death_of_a_link_in_the_chain_costs_its_detection() {
    let whole = Scenario::broadcast(8, GIB, NETWORK).run().last_ns();
    for dead in [1, 4, 7] {
        let mut scenario = Scenario::broadcast(8, GIB, NETWORK);
        scenario.deaths = vec![(Rank(dead), whole / 2)];
        let report = scenario.run();
        println!("{dead} dies: {:.3} ms against {:.3}", report.last_ns() as f64 / 1e6, whole as f64 / 1e6);
        assert!(report.all_well() && report.ends.len() == 6, "{:?}", report.ends);
        assert!(report.last_ns() < whole + 2 * NETWORK.detection_ns + whole / 10);
    }
}

#[test]
fn a_copy_outlives_the_owner() {
    // Rank 2 comes when rank 1 has all, or half; then the owner dies.
    for half in [false, true] {
        let mut scenario = Scenario::broadcast(3, GIB, NETWORK);
        let one_ns = Scenario::broadcast(2, GIB, NETWORK).run().last_ns();
        let start_ns = if half { 0 } else { one_ns };
        scenario.objects[0].readers[1].start_ns = start_ns;
        scenario.deaths = vec![(Rank(0), start_ns + one_ns / 2)];
        let report = scenario.run();
        let error = |rank: u32| report.ends[&(0, Rank(rank))].error.as_ref().map(ToString::to_string);
        if half {
            let text = error(2).expect("half of it is nowhere any more");
            assert!(text.contains("rank 0: its host died") && text.contains("rank 1: "), "{text}");
            assert!(error(1).is_some());
        } else {
            assert_eq!((error(1), error(2)), (None, None));
            assert_eq!((report.sent[0], report.sent[1]), (GIB, GIB));
        }
    }
}

#[test]
fn holders_serve_a_late_reader_together() {
    let mut scenario = Scenario::broadcast(4, GIB, NETWORK);
    let one_ns = Scenario::broadcast(2, GIB, NETWORK).run().last_ns();
    scenario.objects[0].readers[2].start_ns = 2 * one_ns;
    let report = scenario.run();
    // Ranks 1 and 2 sent about half each, beside what rank 1 sent to rank 2.
    let half = GIB / 2 - GIB / 20..GIB / 2 + GIB / 20;
    assert!(report.all_well() && half.contains(&report.sent[2]), "{:?}", report.sent);
    assert!(half.contains(&(report.sent[1] - GIB)) && report.sent[0] == GIB, "{:?}", report.sent);
}

#[test]
fn a_rank_that_stops_holds_up_nobody_else() {
    let whole = Scenario::broadcast(8, GIB, NETWORK).run().last_ns();
    for stopped in [1, 4, 6] {
        let mut scenario = Scenario::broadcast(8, GIB, NETWORK);
        scenario.stops = vec![(Rank(stopped), whole / 2, 30_000_000_000)];
        let report = scenario.run();
        assert!(report.all_well() && report.ends.len() == 7);
        let others = report.ends.iter().filter(|((_, rank), _)| *rank != Rank(stopped));
        let last = others.map(|(_, end)| end.at_ns).max().unwrap();
        assert!(last < whole + 2_500_000_000, "rank {stopped} stops: {last}");
    }
}

#[test]
fn a_rank_that_stops_for_good_holds_up_nobody_else() {
    let whole = Scenario::broadcast(8, GIB, NETWORK).run().last_ns();
    // Before it can answer, amid its reads, and as one that shares a host's copy.
    for (stopped, at_ns, ranks_per_host) in [(1, 12_000, 1), (1, 16_000, 1), (3, 50_000_000, 1), (4, 12_000, 4)] {
        let mut scenario = Scenario::broadcast(8, GIB, NETWORK);
        scenario.ranks_per_host = ranks_per_host;
        scenario.objects[0].readers.retain(|reader| reader.rank.0 >= ranks_per_host);
        scenario.stops = vec![(Rank(stopped), at_ns, FOR_GOOD_NS)];
        let report = scenario.run();
        let others = report.ends.iter().filter(|((_, rank), _)| *rank != Rank(stopped));
        let last = others.map(|(_, end)| end.at_ns).max().unwrap();
        assert!(last < 2 * whole + 3_000_000_000, "rank {stopped} stops at {at_ns}: {last}");
    }
}

#[test]
fn a_lender_that_stops_for_good_holds_up_nobody() {
    let mut scenario = Scenario::broadcast(6, GIB, NETWORK);
    scenario.objects[0].lender = Rank(5);
    scenario.objects[0].readers.pop();
    for at_ns in [1, 12_000, 50_000_000] {
        scenario.stops = vec![(Rank(5), at_ns, FOR_GOOD_NS)];
        let report = scenario.run();
        assert!(report.all_well() && report.last_ns() < 10_000_000_000, "{at_ns}: {}", report.last_ns());
    }
}

#[test]
fn more_than_memory_holds_comes_in_turns() {
    let mut scenario = Scenario::broadcast(2, 64 << 20, NETWORK);
    scenario.objects = vec![scenario.objects[0].clone(); 40];
    (scenario.store_bytes, scenario.drop_when_read) = (GIB, true);
    let report = scenario.run();
    assert!(report.all_well() && report.ends.len() == 40, "{:?}", report.ends);
    // What is longer than all memory fails, alone.
    scenario.objects[7].bytes = 2 * GIB;
    let report = scenario.run();
    let failed: Vec<_> = report.ends.iter().filter(|(_, end)| end.error.is_some()).map(|(which, _)| *which).collect();
    assert_eq!(failed, [(7, Rank(1))]);
}

#[test]
fn a_host_reads_one_copy_for_all_its_ranks() {
    let mut scenario = Scenario::broadcast(16, 64 << 20, NETWORK);
    scenario.ranks_per_host = 4;
    scenario.objects[0].readers.retain(|reader| reader.rank.0 >= 4);
    let report = scenario.run();
    assert!(report.all_well() && report.ends.len() == 12);
    let copies: u64 = report.sent.iter().sum::<u64>() >> 20;
    assert_eq!(copies, 3 * 64, "{:?}", report.sent);
    // Those that read for host 2 die, one after the other.
    scenario.deaths = vec![(Rank(8), 10_000_000), (Rank(9), 25_000_000)];
    let report = scenario.run();
    assert!(report.all_well() && report.ends.len() == 10);
}

/// Anything may happen: several objects, owners that do not lend, readers that
/// come late, hosts that die, links of all speeds.
fn anything(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let ranks = 2 + rng.below(9) as u32;
    let ranks_per_host = [1, 1, 2, 4][rng.below(4)];
    let batch = [1, 3, 40][rng.below(3)];
    let mut objects = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let owner = Rank(rng.below(ranks as usize) as u32);
        let lender = if rng.below(3) == 0 { Rank(rng.below(ranks as usize) as u32) } else { owner };
        let bytes = match rng.below(4) {
            0 => rng.below(BULK_BYTES_MIN as usize) as u64,
            1 => BULK_BYTES_MIN + rng.below(8) as u64,
            2 => rng.below(32 << 20) as u64,
            _ => rng.below(100 << 20) as u64,
        };
        let spread_ns = [1, 1_000_000, 100_000_000][rng.below(3)];
        let mut readers = Vec::new();
        for rank in (0..ranks).map(Rank).filter(|rank| *rank != owner && *rank != lender) {
            // What lies on the same host is not brought anywhere.
            if rank.0 / ranks_per_host != owner.0 / ranks_per_host && rng.below(5) > 0 {
                readers.push(Reader { rank, start_ns: rng.below(spread_ns) as u64 });
            }
        }
        objects.push(Object { owner, lender, bytes, readers });
    }
    let mut deaths = Vec::new();
    for _ in 0..rng.below(1 + ranks as usize / 2) {
        deaths.push((Rank(rng.below(ranks as usize) as u32), rng.below(60_000_000) as u64));
    }
    let mut stops = Vec::new();
    for _ in 0..[0, 0, 1, 2][rng.below(4)] {
        let for_ns = [100_000_000, 3_000_000_000, 20_000_000_000, FOR_GOOD_NS][rng.below(4)];
        stops.push((Rank(rng.below(ranks as usize) as u32), rng.below(40_000_000) as u64, for_ns));
    }
    let speeds = (0..ranks).filter(|_| rng.below(4) == 0).collect::<Vec<_>>();
    let speeds = speeds.into_iter().map(|rank| (Rank(rank), 0.05 + rng.below(40) as f64 / 10.0)).collect();
    let detection_ns = [0, 10_000, 3_000_000][rng.below(3)];
    let network = NetworkConfig { detection_ns, latency_ns: 1 + rng.below(200_000) as u64, ..NETWORK };
    Scenario {
        ranks,
        network,
        objects,
        deaths,
        stops,
        speeds,
        drop_when_read: rng.below(2) == 0,
        ranks_per_host,
        store_bytes: u64::MAX,
        batch,
    }
}

impl Scenario {
    /// When everything should be over: as if one link, the slowest, had to carry
    /// every copy, and a few ranks after each other were found to have stopped.
    fn enough_ns(&self) -> u64 {
        let copies: u64 = self.objects.iter().map(|object| object.bytes * object.readers.len() as u64).sum();
        let slowest = self.speeds.iter().map(|(_, speed)| *speed).fold(1.0, f64::min);
        let carried_ns = copies as f64 * 8e9 / (self.network.bits_per_s * slowest);
        10_000_000_000 + carried_ns as u64
    }
}

#[test]
fn whatever_dies_a_read_ends_and_no_memory_is_read_that_is_not_kept() {
    for seed in 0..300 {
        let scenario = anything(seed);
        let played = std::panic::catch_unwind(|| scenario.run());
        let report = played.unwrap_or_else(|_| panic!("seed {seed}: {scenario:#?}"));
        let dead = |rank| scenario.deaths.iter().any(|(d, _)| *d == rank);
        let stopped = |rank| scenario.stops.iter().any(|(s, ..)| *s == rank);
        for ((number, rank), end) in &report.ends {
            let object = &scenario.objects[*number];
            // Whoever lives need not wait for a stopped rank, but for the owner.
            if ![*rank, object.owner].into_iter().any(|rank| stopped(rank) || dead(rank)) {
                assert!(end.at_ns < scenario.enough_ns(), "seed {seed}: object {number} at {rank}: {} ns", end.at_ns);
            }
            if let Some(error) = &end.error {
                assert!(dead(object.owner) || dead(object.lender), "seed {seed}: {rank} failed for no reason: {error}");
                let text = error.to_string();
                let cause = text.contains("its host died") || text.contains("knows of no rank");
                assert!(cause && text.contains(&object.owner.to_string()), "seed {seed}: {text}");
            }
        }
    }
}

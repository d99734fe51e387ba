//! A quorum of one, which decides at once, and replicas that are only spoken for.

use super::*;
use crate::gcs::{Bugs, Seq};

const SHARD: ShardId = ShardId(0);
const DETECTION: Nanos = 1_000_000_000;

fn id(rank: u32) -> ReplicaId {
    ReplicaId { rank: Rank(rank), incarnation: 1 }
}

/// A member on a rank of its own, with a chain for each of these.
fn member(hosts: &[u64], replicas: usize, chains: &[&[u32]]) -> Member {
    let chain = |(shard, ranks): (u16, &&[u32])| ChainConfig {
        shard: ShardId(shard),
        epoch: Epoch(1),
        members: ranks.iter().copied().map(id).collect(),
        joining: None,
    };
    let options = MemberOptions {
        me: Rank(90),
        members: vec![Rank(90)],
        timing: Timing::for_detection(DETECTION),
        replicas,
        hosts: hosts.to_vec(),
        founding: (0..).zip(chains).map(chain).collect(),
        bugs: Bugs::default(),
    };
    let mut member = Member::new(options, 0, None).expect("a sound configuration");
    turn(&mut member, 0);
    member
}

fn turn(member: &mut Member, now: Nanos) {
    member.tick(now);
    // What is proposed in one is decided by the next.
    for _ in 0..2 {
        member.flush(now, &mut Vec::new());
    }
}

fn beat(rank: u32, now: Nanos) -> Beat {
    Beat { from: id(rank), sent: now, received: Some(Seq(0)), linked: true, restored: None }
}

/// Replicas of the first shard speak: those in the chain of its epoch.
fn hear(member: &mut Member, now: Nanos, beats: impl IntoIterator<Item = Beat>) {
    let known = chain(member).clone();
    for beat in beats {
        let is_in = known.members.iter().chain(&known.joining).any(|replica| *replica == beat.from);
        let epoch = if is_in { known.epoch } else { Epoch(0) };
        let from = Address::Replica(beat.from.rank);
        member.receive(now, from, Message { shard: SHARD, epoch, body: Body::Beat(beat) }, &mut Vec::new());
    }
}

fn chain(member: &Member) -> &ChainConfig {
    member.directory().chain(SHARD).expect("it was founded")
}

fn ranks(member: &Member) -> Vec<u32> {
    chain(member).members.iter().map(|member| member.rank.0).collect()
}

/// Who is called to join when rank 2 of a chain of the ranks 0 and 2 ends.
fn joins(hosts: &[u64], others: &[&[u32]]) -> Option<u32> {
    let chains: Vec<&[u32]> = std::iter::once(&[0, 2][..]).chain(others.iter().copied()).collect();
    let mut member = member(hosts, 2, &chains);
    hear(&mut member, 1, [0, 1, 2, 3].map(|rank| beat(rank, 1)));
    member.ended(2, Rank(2));
    turn(&mut member, 3);
    assert_eq!(ranks(&member), [0]);
    hear(&mut member, 4, [0, 1, 3].map(|rank| beat(rank, 4)));
    turn(&mut member, 5);
    chain(&member).joining.map(|joining| joining.rank.0)
}

#[test]
fn who_joins_is_on_another_host_and_in_few_chains() {
    assert_eq!(joins(&[7, 7, 9, 9], &[]), Some(3), "rank 1 is on the host of rank 0");
    assert_eq!(joins(&[7, 7, 9, 9], &[&[3], &[3]]), Some(3), "however much is there");
    assert_eq!(joins(&[7, 8, 9, 9], &[]), Some(1));
    assert_eq!(joins(&[7, 8, 9, 9], &[&[3], &[1, 3], &[1], &[1]]), Some(3), "in two chains, and the other in three");
    assert_eq!(joins(&[7, 7, 7, 7], &[&[1]]), Some(3), "there is no other host");
    assert_eq!(joins(&[], &[]), Some(1), "nothing is known of hosts");
}

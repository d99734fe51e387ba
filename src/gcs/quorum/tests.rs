//! A quorum of one, which decides at once, and replicas that are only spoken for.

use super::*;
use crate::gcs::{Action, Blob, Bugs, ClientId, Command, Key, Limits, Op, Options, Replica, Seq, Table};

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
        life: 1,
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
    Beat { from: id(rank), sent: now, received: Some(Seq(0)), linked: true, restored: None, cut: Vec::new() }
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

#[test]
fn of_two_members_that_cannot_reach_each_other_the_later_goes() {
    // Who says of whom that it is cut off, and who has not been heard of just now.
    let remain = |cuts: &[(u32, u32)], quiet: Option<u32>| {
        let mut member = member(&[], 3, &[&[0, 1, 2]]);
        let now = DETECTION;
        hear(&mut member, now, [0, 1, 2].map(|rank| beat(rank, now)));
        let now = now + DETECTION * 3 / 4;
        let cut = |rank| cuts.iter().filter(|(by, _)| *by == rank).map(|(_, of)| Rank(*of)).collect();
        let speak = (0..3).filter(|rank| quiet != Some(*rank));
        hear(&mut member, now, speak.map(|rank| Beat { cut: cut(rank), ..beat(rank, now) }));
        turn(&mut member, now);
        ranks(&member)
    };
    assert_eq!(remain(&[(1, 0)], None), [0, 2]);
    assert_eq!(remain(&[(0, 1)], None), [0, 2]);
    assert_eq!(remain(&[(0, 1)], Some(1)), [0, 2]);
    assert_eq!(remain(&[(2, 1)], None), [0, 1]);
    assert_eq!(remain(&[(1, 0), (2, 1)], None), [0, 2], "one change at a time");
    assert_eq!(remain(&[(2, 0)], None), [0, 1, 2], "they are no neighbours");
    assert_eq!(remain(&[(1, 0)], Some(0)), [0, 1, 2], "rank 0 may be about to be found silent");
}

/// The earlier has been lost by the leader too: it is the one that goes.
/// Else it would offer itself for ever, and never be called again.
#[test]
fn who_was_called_and_did_not_hear_of_it_is_told_when_it_is_too_late() {
    let mut member = member(&[], 2, &[&[0, 2]]);
    hear(&mut member, 1, [0, 1, 2].map(|rank| beat(rank, 1)));
    member.ended(2, Rank(2));
    turn(&mut member, 3);
    hear(&mut member, 4, [0, 1].map(|rank| beat(rank, 4)));
    turn(&mut member, 5);
    assert_eq!(chain(&member).joining, Some(id(1)));
    let speak = |member: &mut Member, now| {
        let mut out = Vec::new();
        let message = Message { shard: SHARD, epoch: Epoch(0), body: Body::Beat(beat(1, now)) };
        member.receive(now, Address::Replica(Rank(1)), message, &mut out);
        out.into_iter().find_map(|action| match action {
            MemberAction::Send(_, message) if matches!(message.body, Body::UsedUp(_)) => Some(message),
            _ => None,
        })
    };
    assert_eq!(speak(&mut member, 6), None, "it may join still");
    member.ended(7, Rank(1));
    turn(&mut member, 8);
    assert_eq!((ranks(&member), chain(&member).joining), (vec![0], None));
    let told = speak(&mut member, 2 * DETECTION).expect("it is told");
    for (incarnation, retires) in [(1, true), (2, false)] {
        let mut replica = Replica::spare(Parted::options(1, incarnation));
        replica.receive(0, Address::Quorum(Rank(90)), told.clone(), &mut Vec::new());
        assert_eq!(replica.is_retired(), retires, "incarnation {incarnation}");
    }
}

#[test]
fn who_is_silent_goes_before_who_has_lost_it() {
    let mut member = member(&[], 3, &[&[0, 1, 2]]);
    hear(&mut member, 1, [0, 1, 2].map(|rank| beat(rank, 1)));
    for now in [DETECTION / 2 + 2, DETECTION, DETECTION * 6 / 5] {
        let cut = Beat { cut: vec![Rank(0)], ..beat(1, now) };
        hear(&mut member, now, [cut, beat(2, now)]);
        turn(&mut member, now);
    }
    assert_eq!(ranks(&member), [1, 2]);
}

/// A chain of the ranks 0, 1 and 2 with a quorum of one on a rank of its own.
/// Between two of them nothing arrives any more.
struct Parted {
    member: Member,
    replicas: Vec<Replica>,
    parted: Option<[Rank; 2]>,
    now: Nanos,
    done: Vec<u64>,
}

impl Parted {
    fn new() -> Parted {
        let member = member(&[], 3, &[&[0, 1, 2]]);
        let founding = chain(&member).clone();
        let found = |rank| Replica::founding(Parted::options(rank, 1), founding.clone(), 0, &mut Vec::new());
        Parted { replicas: (0..3).map(found).collect(), member, parted: None, now: 0, done: Vec::new() }
    }

    fn options(rank: u32, incarnation: u32) -> Options {
        Options {
            me: ReplicaId { rank: Rank(rank), incarnation },
            shard: SHARD,
            quorum: vec![Rank(90)],
            timing: Timing::for_detection(DETECTION),
            durable: false,
            limits: Limits::default(),
            bugs: Bugs::default(),
        }
    }

    fn part(&mut self, ranks: [u32; 2]) {
        let [one, other] = ranks.map(Rank);
        self.parted = Some([one, other]);
        self.replicas[one.index()].ended(self.now, other);
        self.replicas[other.index()].ended(self.now, one);
    }

    fn put(&mut self, number: u64) {
        let client = ClientId { rank: Rank(70), incarnation: 1 };
        let op = Op::Put { key: Key::new(Table::Names, b"a"), value: Blob::from("1") };
        let body = Body::Commands(vec![Command { client, number, settled: 0, op }]);
        let Some(head) = chain(&self.member).head() else { return };
        let message = Message { shard: SHARD, epoch: chain(&self.member).epoch, body };
        self.deliver(Address::Client(Rank(70)), Address::Replica(head.rank), message);
    }

    /// Lets time pass in beats.
    fn run(&mut self, detections: u64) {
        for _ in 0..detections * 10 {
            self.now += DETECTION / 10;
            let mut sent = Vec::new();
            for replica in &mut self.replicas {
                replica.tick(self.now);
            }
            self.member.tick(self.now);
            // What is told is answered, and that once more.
            for _ in 0..8 {
                for replica in &mut self.replicas {
                    let mut out = Vec::new();
                    replica.flush(self.now, &mut out);
                    sent.extend(out.into_iter().map(|action| (Address::Replica(replica.id().rank), action)));
                }
                self.settle(std::mem::take(&mut sent));
                let mut out = Vec::new();
                self.member.flush(self.now, &mut out);
                self.settle_member(out);
            }
        }
    }

    fn settle(&mut self, actions: Vec<(Address, Action)>) {
        for (from, action) in actions {
            if let Action::Send(to, message) = action {
                self.deliver(from, to, message);
            }
        }
    }

    fn settle_member(&mut self, actions: Vec<MemberAction>) {
        for action in actions {
            if let MemberAction::Send(to, message) = action {
                self.deliver(Address::Quorum(Rank(90)), to, message);
            }
        }
    }

    fn deliver(&mut self, from: Address, to: Address, message: Message) {
        if self.parted.is_some_and(|parted| parted.contains(&from.rank()) && parted.contains(&to.rank())) {
            return;
        }
        match to {
            Address::Replica(rank) => {
                let mut out = Vec::new();
                let replica = &mut self.replicas[rank.index()];
                replica.receive(self.now, from, message, &mut out);
                if replica.is_retired() {
                    *replica = Replica::spare(Parted::options(rank.0, replica.id().incarnation + 1));
                    for other in self.parted.into_iter().flatten().filter(|other| *other != rank) {
                        replica.ended(self.now, other);
                    }
                }
                self.settle(out.into_iter().map(|action| (to, action)).collect());
            }
            Address::Quorum(_) => {
                let mut out = Vec::new();
                self.member.receive(self.now, from, message, &mut out);
                self.settle_member(out);
            }
            Address::Client(_) => {
                if let Body::Outcomes(outcomes) = message.body {
                    self.done.extend(outcomes.into_iter().map(|(_, number, _)| number));
                }
            }
        }
    }
}

#[test]
fn a_chain_goes_on_without_the_link_between_two_that_live() {
    for parted in [[0, 1], [1, 2]] {
        let mut job = Parted::new();
        job.run(1);
        job.put(1);
        job.run(1);
        assert_eq!(job.done, [1]);
        job.part(parted);
        job.put(2);
        job.run(3);
        assert!(job.done.contains(&2), "{parted:?}: {:?}", chain(&job.member));
        let [_, later] = parted;
        assert!(!chain(&job.member).members.contains(&id(later)), "{:?}", chain(&job.member));
        job.run(3);
        // The one that went can be behind another, if that is the tail.
        let whole: &[u32] = if later == 1 { &[0, 2, 1] } else { &[0, 1] };
        assert_eq!(ranks(&job.member), whole);
        job.put(3);
        job.run(1);
        assert!(job.done.contains(&3), "{parted:?}: {:?}", chain(&job.member));
    }
}

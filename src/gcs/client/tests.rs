//! A client by itself: what it sends is looked at, what it is told is made up.

use super::super::record::{Blob, Table};
use super::*;

const QUORUM: [Rank; 3] = [Rank(7), Rank(8), Rank(9)];

fn id(rank: u32) -> ReplicaId {
    ReplicaId { rank: Rank(rank), incarnation: 1 }
}

fn chain(epoch: u64, ranks: &[u32]) -> ChainConfig {
    let members = ranks.iter().copied().map(id).collect();
    ChainConfig { shard: ShardId(0), epoch: Epoch(epoch), members, joining: None }
}

fn client(founding: ChainConfig) -> Client {
    Client::new(ClientOptions {
        me: ClientId { rank: Rank(50), incarnation: 1 },
        quorum: QUORUM.to_vec(),
        founding: vec![founding],
        timing: Timing::for_detection(1_000_000_000),
        deadline: 5_000_000_000,
    })
}

fn put(client: &mut Client, now: Nanos) -> Token {
    let op = Op::Put { key: Key::new(Table::Names, b"a"), value: Blob::from("1") };
    client.command(now, op).expect("within the limits")
}

/// Tells of a chain.
fn tell(client: &mut Client, now: Nanos, chain: ChainConfig) {
    client.receive(now, Message { shard: chain.shard, epoch: chain.epoch, body: Body::Chain(Some(chain)) });
}

/// To whom commands go in a turn, and which members of the quorum are asked for
/// the chain after which epoch.
fn turn(client: &mut Client, now: Nanos) -> (Vec<Rank>, Vec<(Rank, Epoch)>) {
    let mut out = Vec::new();
    client.flush(now, &mut out);
    let (mut commands, mut asked) = (Vec::new(), Vec::new());
    for action in out {
        match action {
            Action::Send(Address::Replica(to), Message { body: Body::Commands(_), .. }) => commands.push(to),
            Action::Send(Address::Quorum(to), Message { body: Body::Locate, epoch, .. }) => asked.push((to, epoch)),
            other => panic!("{other:?}"),
        }
    }
    (commands, asked)
}

#[test]
fn keys_are_spread_over_the_shards() {
    let mut counts = [0; 4];
    for number in 0..4000_u32 {
        counts[usize::from(shard_of(&Key::new(Table::Names, &number.to_le_bytes()), 4).0)] += 1;
    }
    assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
}

#[test]
fn of_two_members_that_end_the_second_is_not_forgotten() {
    let all = |epoch| QUORUM.map(|rank| (rank, Epoch(epoch))).to_vec();
    let mut client = client(chain(1, &[0, 1, 2]));
    turn(&mut client, 0);
    put(&mut client, 1);
    turn(&mut client, 1);
    client.ended(2, Rank(0));
    client.ended(2, Rank(1));
    assert_eq!(turn(&mut client, 2).1, all(1));
    tell(&mut client, 3, chain(2, &[1, 2]));
    assert_eq!(client.next_due(), 3);
    assert_eq!(turn(&mut client, 3).1, all(2), "rank 1 will not answer");
    tell(&mut client, 4, chain(3, &[2]));
    let (commands, asked) = turn(&mut client, 4);
    assert_eq!(commands, [Rank(2)]);
    assert!(asked.len() <= 1, "all members are there: {asked:?}");
}

#[test]
fn who_alone_has_lost_the_head_is_told_so_at_the_deadline() {
    let mut client = client(chain(1, &[0, 1]));
    let token = put(&mut client, 0);
    turn(&mut client, 0);
    client.ended(1, Rank(0));
    turn(&mut client, 5_000_000_000);
    let cause = Cause::CutOff { head: Rank(0), shard: ShardId(0) };
    let failure = Failure::Deadline(Some(cause));
    let text = failure.to_string();
    assert!(text.contains("the connection with rank 0, the head of shard 0, has ended"), "{text}");
    assert_eq!(client.notices(), [Notice::Command(token, Err(failure))]);
    // The next chain has another.
    tell(&mut client, 5_000_000_001, chain(2, &[1]));
    let token = put(&mut client, 6_000_000_000);
    turn(&mut client, 6_000_000_000);
    turn(&mut client, 11_000_000_000);
    assert_eq!(client.notices(), [Notice::Command(token, Err(Failure::Deadline(None)))]);
}

/// An end that is told late is of an earlier life of a rank: the chain that there
/// is does not change for it.
#[test]
fn a_query_is_sent_though_all_members_are_said_to_have_ended() {
    let mut client = client(chain(1, &[0, 1]));
    client.ended(1, Rank(0));
    client.ended(1, Rank(1));
    tell(&mut client, 2, chain(2, &[0, 1]));
    client.query(3, ShardId(0), Query::Get(vec![Key::new(Table::Names, b"a")])).expect("within the limits");
    let mut out = Vec::new();
    client.flush(3, &mut out);
    let is_query = |action: &Action| matches!(action, Action::Send(Address::Replica(_), Message { body: Body::Queries(..), .. }));
    assert!(out.iter().any(is_query), "{out:?}");
}

//! A chain on a table: messages are handed over one after the other, in order.

mod join;

use std::collections::VecDeque;

use super::super::log;
use super::super::message::{Changes, Entry, Part, Watch};
use super::super::record::{Blob, Key, Table};
use super::super::state::{Command, Found, Op, Query};
use super::*;

const CLIENT: ClientId = ClientId { rank: Rank(50), incarnation: 1 };
const QUORUM: Rank = Rank(40);

/// Replicas of one shard on the ranks 0, 1 and so on, and what the client got.
struct Chain {
    replicas: Vec<Replica>,
    now: Nanos,
    epoch: Epoch,
    quorum_lives: bool,
    got: Vec<Body>,
    written: usize,
    syncs: Vec<(usize, Seq)>,
}

fn id(rank: u32) -> ReplicaId {
    ReplicaId { rank: Rank(rank), incarnation: 1 }
}

fn put(number: u64, key: &str, value: &str) -> Command {
    let op = Op::Put { key: Key::new(Table::Names, key.as_bytes()), value: Blob::from(value) };
    command(number, op)
}

fn command(number: u64, op: Op) -> Command {
    Command { client: CLIENT, number, settled: 0, op }
}

fn get(key: &str) -> Query {
    Query::Get(vec![Key::new(Table::Names, key.as_bytes())])
}

impl Chain {
    fn new(count: u32, durable: bool) -> Chain {
        let members: Vec<ReplicaId> = (0..count).map(id).collect();
        let chain = ChainConfig { shard: ShardId(0), epoch: Epoch(1), members, joining: None };
        let mut table =
            Chain { replicas: Vec::new(), now: 0, epoch: Epoch(1), quorum_lives: true, got: Vec::new(), written: 0, syncs: Vec::new() };
        let mut actions = Vec::new();
        for rank in 0..count {
            let options = Options {
                me: id(rank),
                shard: ShardId(0),
                quorum: vec![QUORUM],
                timing: Timing::default(),
                durable,
                limits: Limits::default(),
                bugs: Bugs::default(),
            };
            let mut out = Vec::new();
            table.replicas.push(Replica::founding(options, chain.clone(), 0, &mut out));
            actions.push(out);
        }
        for (rank, out) in actions.into_iter().enumerate() {
            table.settle(rank, out);
        }
        table
    }

    /// Hands everything over until nobody has anything to say.
    fn settle(&mut self, rank: usize, out: Vec<Action>) {
        let mut queue: VecDeque<(usize, Action)> = out.into_iter().map(|action| (rank, action)).collect();
        loop {
            for (rank, replica) in self.replicas.iter_mut().enumerate() {
                let mut out = Vec::new();
                replica.flush(self.now, &mut out);
                queue.extend(out.into_iter().map(|action| (rank, action)));
            }
            let Some((rank, action)) = queue.pop_front() else { return };
            match action {
                Action::Send(Address::Replica(to), message) => {
                    let Some(replica) = self.replicas.get_mut(to.index()) else { continue };
                    let mut out = Vec::new();
                    replica.receive(self.now, Address::Replica(Rank(rank as u32)), message, &mut out);
                    queue.extend(out.into_iter().map(|action| (to.index(), action)));
                }
                Action::Send(Address::Quorum(_), Message { body: Body::Beat(beat), .. }) if self.quorum_lives => {
                    let grant = Body::Grant { to: beat.from, echo: beat.sent };
                    let message = Message { shard: ShardId(0), epoch: self.epoch, body: grant };
                    self.replicas[rank].receive(self.now, Address::Quorum(QUORUM), message, &mut Vec::new());
                }
                Action::Send(Address::Quorum(_), _) => {}
                Action::Send(_, message) => self.got.push(message.body),
                Action::Append(bytes) | Action::Replace(bytes) => self.written += bytes.len(),
                Action::Sync(seq) => self.syncs.push((rank, seq)),
            }
        }
    }

    fn tell(&mut self, rank: usize, epoch: u64, body: Body) {
        let mut out = Vec::new();
        let message = Message { shard: ShardId(0), epoch: Epoch(epoch), body };
        self.replicas[rank].receive(self.now, Address::Client(CLIENT.rank), message, &mut out);
        self.settle(rank, out);
    }

    fn read(&mut self, rank: usize, query: Query) -> Found {
        self.tell(rank, self.epoch.0, Body::Queries(CLIENT, vec![(1, query)]));
        match self.got.pop() {
            Some(Body::Answers(_, mut answers)) => answers.remove(0).1.expect("an answer").1,
            other => panic!("{other:?}"),
        }
    }

    /// The disks of these finish all they were asked for.
    fn sync(&mut self, ranks: &[usize]) {
        for (rank, seq) in std::mem::take(&mut self.syncs) {
            if ranks.contains(&rank) {
                self.replicas[rank].disk(DiskEvent::Synced(seq));
            } else {
                self.syncs.push((rank, seq));
            }
        }
        self.settle(0, Vec::new());
    }
}

fn value(found: Found) -> Option<String> {
    let Found::Records(records) = found else { panic!("{found:?}") };
    records[0].as_ref().map(|record| String::from_utf8_lossy(&record.value).into_owned())
}

#[test]
fn a_write_is_read_at_every_replica() {
    let mut table = Chain::new(3, false);
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1"), put(2, "b", "2")]));
    assert_eq!(table.got.pop(), Some(Body::Outcomes(vec![(CLIENT, 1, Ok(Seq(1))), (CLIENT, 2, Ok(Seq(2)))])));
    for rank in 0..3 {
        assert_eq!(value(table.read(rank, get("b"))), Some("2".into()));
        assert_eq!(value(table.read(rank, get("c"))), None);
        assert_eq!(table.replicas[rank].sizes().1, 0, "nothing is kept that all have");
    }
}

#[test]
fn a_command_that_comes_again_happens_once() {
    let mut table = Chain::new(3, false);
    let append = |number| {
        let key = Key::new(Table::Lineage, b"t");
        Body::Commands(vec![command(number, Op::Append { key, bytes: Blob::from("x") })])
    };
    for number in [1, 1, 2, 1] {
        table.tell(0, 1, append(number));
        table.now += Timing::default().word;
    }
    let outcomes: Vec<Body> = std::mem::take(&mut table.got);
    let of = |number| Body::Outcomes(vec![(CLIENT, number, Ok(Seq(number)))]);
    assert_eq!(outcomes, [of(1), of(1), of(2), of(1)]);
    let scan = Query::Scan { table: Table::Lineage, prefix: Blob::from(""), after: None };
    let Found::Page { records, more: false } = table.read(1, scan) else { panic!() };
    assert_eq!(&records[0].1.value[..], b"xx");
}

#[test]
fn the_word_of_a_commit_is_kept_back_where_there_are_many() {
    let mut table = Chain::new(3, false);
    let word = Timing::default().word;
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1")]));
    for number in 2..=5 {
        table.tell(0, 1, Body::Commands(vec![put(number, "a", "2")]));
    }
    let applied = |table: &Chain| [0, 1, 2].map(|rank: usize| table.replicas[rank].state().applied().0);
    assert_eq!((table.got.len(), applied(&table)), (5, [1, 1, 5]), "clients are told at once, and the first word");
    assert_eq!(table.replicas[2].next_due(), word);
    // One of the five comes again: the head has it, and its outcome will come.
    table.tell(0, 1, Body::Commands(vec![put(3, "a", "2")]));
    assert_eq!((table.got.len(), table.replicas[0].last()), (5, Seq(5)));
    assert_eq!(value(table.read(1, get("a"))), Some("2".into()), "who has not heard asks");
    assert_eq!(applied(&table), [5, 5, 5]);
    table.tell(0, 1, Body::Commands(vec![put(6, "a", "3")]));
    assert_eq!(applied(&table), [5, 5, 6]);
    table.now += word;
    table.settle(0, Vec::new());
    assert_eq!(applied(&table), [6, 6, 6]);
    table.tell(0, 1, Body::Commands(vec![put(3, "a", "2")]));
    assert_eq!(table.got.pop(), Some(Body::Outcomes(vec![(CLIENT, 3, Ok(Seq(3)))])));
}

#[test]
fn a_version_is_compared_and_limits_are_kept() {
    let mut table = Chain::new(2, false);
    let key = Key::new(Table::Actors, b"a");
    let swap = |number, expected, value: Option<&str>| {
        let value = value.map(Blob::from);
        Body::Commands(vec![command(number, Op::CompareAndSwap { key: key.clone(), expected, value })])
    };
    let mut outcome = |body| {
        table.tell(0, 1, body);
        match table.got.pop() {
            Some(Body::Outcomes(mut outcomes)) => outcomes.remove(0).2,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(outcome(swap(1, Seq(0), Some("first"))), Ok(Seq(1)));
    assert_eq!(outcome(swap(2, Seq(0), Some("second"))), Err(Refusal::VersionMismatch { current: Seq(1) }));
    assert_eq!(outcome(swap(3, Seq(1), None)), Ok(Seq(3)));
    assert_eq!(outcome(swap(4, Seq(1), Some("third"))), Err(Refusal::VersionMismatch { current: Seq(0) }));
    let long = "v".repeat(crate::base::limits::GCS_VALUE_BYTES_MAX + 1);
    assert_eq!(outcome(Body::Commands(vec![put(5, "k", &long)])), Err(Refusal::ValueTooLong { bytes: long.len() }));
    assert!(matches!(outcome(Body::Commands(vec![put(6, &long, "")])), Err(Refusal::KeyTooLong { .. })));
}

#[test]
fn who_speaks_of_an_earlier_epoch_is_told_the_chain() {
    let mut table = Chain::new(2, false);
    table.tell(0, 0, Body::Commands(vec![put(1, "a", "1")]));
    assert!(matches!(table.got.pop(), Some(Body::Chain(Some(chain))) if chain.epoch == Epoch(1)));
    table.tell(1, 1, Body::Commands(vec![put(1, "a", "1")]));
    assert!(matches!(table.got.pop(), Some(Body::Chain(Some(_)))), "only the head takes commands");
    assert_eq!(table.replicas[0].last(), Seq(0));
}

#[test]
fn without_a_lease_nothing_is_read() {
    let mut table = Chain::new(2, false);
    table.now = Timing::default().lease;
    table.tell(1, 1, Body::Queries(CLIENT, vec![(7, get("a"))]));
    assert_eq!(table.got.pop(), None, "the lease may come");
    table.now += Timing::default().resend;
    table.quorum_lives = false;
    table.replicas[1].tick(table.now);
    table.settle(1, Vec::new());
    assert_eq!(table.got.pop(), Some(Body::NotNow(CLIENT, vec![7], Refusal::NoLease(Rank(1)))));
}

#[test]
fn a_durable_write_waits_for_every_disk() {
    let mut table = Chain::new(3, true);
    table.sync(&[0, 1, 2]);
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1")]));
    for ranks in [&[2][..], &[0]] {
        table.sync(ranks);
        assert_eq!(table.got, [], "a disk is missing");
    }
    table.sync(&[1]);
    assert_eq!(table.got.pop(), Some(Body::Outcomes(vec![(CLIENT, 1, Ok(Seq(1)))])));
}

#[test]
fn a_full_disk_refuses_writes_and_not_reads() {
    let mut table = Chain::new(2, true);
    table.sync(&[0, 1]);
    table.replicas[1].disk(DiskEvent::Full);
    table.settle(0, Vec::new());
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1")]));
    assert_eq!(table.got.pop(), Some(Body::NotNow(CLIENT, vec![1], Refusal::DiskFull(Rank(1)))));
    assert_eq!(value(table.read(0, get("a"))), None);
    table.replicas[1].disk(DiskEvent::Space);
    table.settle(0, Vec::new());
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1")]));
    table.sync(&[0, 1]);
    assert_eq!(table.got.pop(), Some(Body::Outcomes(vec![(CLIENT, 1, Ok(Seq(1)))])));
}

/// All changes of one command are told at once, or that it is time to read.
#[test]
fn a_watch_begins_anew_at_a_change_of_too_many_records() {
    let mut table = Chain::new(2, false);
    let watch = Watch { client: CLIENT, number: 7, prefix: Key::new(Table::Names, b"n"), since: None };
    table.tell(1, 1, Body::Watch(watch));
    let fill = |first: u64| (first..first + 200).map(|n| put(n, &format!("n{n:0>200}"), "")).collect();
    table.tell(0, 1, Body::Commands(fill(1)));
    let op = Op::DeletePrefix { table: Table::Names, prefix: Blob::from("n") };
    table.tell(0, 1, Body::Commands(vec![command(201, op)]));
    let changes = |body| if let Body::Changes(changes) = body { Some(changes) } else { None };
    let told: Vec<Changes> = std::mem::take(&mut table.got).into_iter().filter_map(changes).collect();
    let (last, before) = told.split_last().unwrap();
    assert!(before[0].afresh && before.iter().skip(1).all(|changes| !changes.afresh && changes.events.len() > 50));
    assert_eq!(before.iter().map(|changes| changes.events.len()).sum::<usize>(), 200);
    assert_eq!((last.afresh, last.events.len(), last.through), (true, 0, Seq(201)));
}

#[test]
fn control_memory_is_a_function_of_live_work() {
    let mut state = State::default();
    let mut sizes = Vec::new();
    for number in 1..=40_000_u64 {
        let key = Key::new(Table::Jobs, &(number / 2).to_le_bytes());
        let op = if number % 2 == 0 { Op::Put { key, value: Blob::from("job") } } else { Op::Delete { key } };
        let command = Command { client: CLIENT, number, settled: number - 1, op };
        assert_eq!(state.apply(Seq(number), &command, Bugs::default()), Some(Ok(Seq(number))));
        sizes.push(state.sizes());
    }
    assert_eq!(sizes[39_999], sizes[9_999]);
    assert_eq!((sizes[39_999].records, sizes[39_999].outcomes), (1, 1));
}

#[test]
fn a_neighbour_that_stays_out_of_reach_is_told_to_the_quorum() {
    let mut table = Chain::new(3, false);
    let patience = Timing::default().detection;
    let said = |replica: &mut Replica, now| {
        let mut out = Vec::new();
        replica.tick(now);
        replica.flush(now, &mut out);
        let beats = out.into_iter().filter_map(|action| match action {
            Action::Send(_, Message { body: Body::Beat(beat), .. }) => Some(beat.cut),
            _ => None,
        });
        beats.last().expect("a beat is due")
    };
    let replica = &mut table.replicas[1];
    for rank in [0, 2, 7] {
        replica.ended(5, Rank(rank));
    }
    assert_eq!(said(replica, 5), [], "it may be that they have ended, and others know");
    assert_eq!(said(replica, 5 + patience), [Rank(0), Rank(2)], "rank 7 is no neighbour");
    let word = Message { shard: ShardId(0), epoch: Epoch(1), body: Body::Committed { through: Seq(0), full: None } };
    replica.receive(6 + patience, Address::Replica(Rank(2)), word, &mut Vec::new());
    assert_eq!(said(replica, 5 + 2 * patience), [Rank(0)], "there is another connection with rank 2");
    assert_eq!(said(&mut table.replicas[2], 5 + 2 * patience), []);

    let options = Options { me: id(9), ..table.replicas[0].options.clone() };
    let mut spare = Replica::spare(options);
    spare.ended(5, Rank(2));
    assert_eq!(said(&mut spare, 5), [Rank(2)], "a spare one does not know who its neighbour will be");
}

/// While a connection is said to have ended neighbours try whether another is
/// there, and one that comes takes that back on both sides.
#[test]
fn a_connection_that_has_come_back_is_found_by_idle_neighbours() {
    for ended in [&[(0, 1)][..], &[(1, 0)], &[(0, 1), (1, 0)]] {
        let mut table = Chain::new(2, false);
        for (at, of) in ended {
            table.replicas[*at].ended(0, Rank(*of));
        }
        let resend = Timing::default().resend;
        for step in 0..3 {
            table.now = step * resend;
            for replica in &mut table.replicas {
                replica.tick(table.now);
            }
            table.settle(0, Vec::new());
        }
        assert!(table.replicas.iter().all(|replica| replica.cut.is_empty()), "{ended:?}");
    }
}

#[test]
fn that_there_is_space_again_is_heard_though_the_word_is_lost() {
    let mut table = Chain::new(3, false);
    table.replicas[2].disk(DiskEvent::Full);
    table.settle(0, Vec::new());
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1")]));
    assert_eq!(table.got.pop(), Some(Body::NotNow(CLIENT, vec![1], Refusal::DiskFull(Rank(2)))));
    table.replicas[2].disk(DiskEvent::Space);
    table.replicas[2].flush(table.now, &mut Vec::new());
    let resend = Timing::default().resend;
    for _ in 0..4 {
        table.now += resend;
        table.replicas.iter_mut().for_each(|replica| replica.tick(table.now));
        table.settle(0, Vec::new());
    }
    table.tell(0, 1, Body::Commands(vec![put(1, "a", "1")]));
    assert_eq!(table.got.pop(), Some(Body::Outcomes(vec![(CLIENT, 1, Ok(Seq(1)))])));
}

/// What is written meanwhile is in the log before and in the one that takes its place.
#[test]
fn a_long_log_is_begun_anew_a_piece_in_each_turn() {
    let mut table = Chain::new(1, true);
    table.sync(&[0]);
    let replica = &mut table.replicas[0];
    replica.options.limits = Limits { rewrite_bytes: 40_000, part_bytes: 1_000, ..Limits::default() };
    let (mut disk, mut turns, mut replaced) = (Vec::new(), 0, 0);
    for number in 1..=1_600_u64 {
        let op = put(number, &format!("{}", number % 300), &"v".repeat(80)).op;
        let body = Body::Commands(vec![Command { client: CLIENT, number, settled: number - 1, op }]);
        let mut out = Vec::new();
        let message = Message { shard: ShardId(0), epoch: Epoch(1), body };
        replica.receive(0, Address::Client(CLIENT.rank), message, &mut out);
        replica.flush(0, &mut out);
        turns += usize::from(replica.rewrite.is_some());
        assert_eq!(replica.rewrite.is_some(), replica.state.clone().read_view(Reads::Log, 1, &mut Vec::new()));
        assert!(replica.rewrite.is_none() || replica.next_due() == 0);
        for action in out {
            match action {
                Action::Append(bytes) => disk.extend(bytes),
                Action::Replace(bytes) => {
                    assert!(turns > bytes.len() / 2_000, "{} bytes in {turns} turns", bytes.len());
                    (disk, turns) = (bytes, 0);
                    replaced += 1;
                }
                Action::Sync(seq) => replica.disk(DiskEvent::Synced(seq)),
                Action::Send(..) => {}
            }
        }
    }
    replica.flush(0, &mut Vec::new());
    assert!(replaced > 1);
    let Recovered { owner, mut state, entries, damage, .. } = log::recover(&disk);
    assert_eq!((owner, damage), (1, None));
    for Entry { seq, command } in entries {
        state.apply(seq, &command, Bugs::default());
    }
    assert_eq!((state.applied(), replica.state.applied()), (Seq(1_600), Seq(1_600)));
    let whole = |state: &State| {
        let mut bytes = Vec::new();
        state.put(&mut bytes);
        bytes
    };
    assert!(whole(&state) == whole(&replica.state), "the log gives another state");
}

/// What an earlier life has left keeps its name until this one goes on with it.
#[test]
fn a_log_that_is_begun_anew_before_that_is_still_of_the_earlier_life() {
    let mut state = State::default();
    state.apply(Seq(1), &put(1, "a", "1"), Bugs::default());
    let left = log::encode_snapshot(7, &state);
    let options = |incarnation| Options {
        me: ReplicaId { incarnation, ..id(0) },
        shard: ShardId(0),
        quorum: vec![QUORUM],
        timing: Timing::default(),
        durable: true,
        limits: Limits::default(),
        bugs: Bugs::default(),
    };
    let replaced = |replica: &mut Replica| {
        let mut out = Vec::new();
        replica.flush(0, &mut out);
        out.into_iter().find_map(|action| if let Action::Replace(bytes) = action { Some(bytes) } else { None })
    };
    let mut replica = Replica::restored(options(9), log::recover(&left));
    assert_eq!(replaced(&mut replica), None);
    // What was being added may be torn.
    replica.disk(DiskEvent::Full);
    replica.disk(DiskEvent::Space);
    let recovered = log::recover(&replaced(&mut replica).expect("a log that is whole"));
    assert_eq!((recovered.owner, recovered.state.applied()), (7, Seq(1)));
    // A founder whose log was never written begins it with the first state.
    let mut founder = Replica::restored(options(9), Recovered { owner: 1, ..Recovered::default() });
    let recovered = log::recover(&replaced(&mut founder).expect("a whole first state"));
    assert_eq!((recovered.owner, recovered.damage), (1, None));
}

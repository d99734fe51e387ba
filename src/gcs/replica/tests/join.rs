//! A replica joins while commands go on: in turns, each of which takes all that
//! has come and does what is due, so that it can be said how long they are.

use std::collections::VecDeque;

use super::super::super::log::entry_bytes;
use super::*;
use crate::base::rng::Rng;

/// What was the most in any turn.
#[derive(Debug, Default)]
struct Longest {
    given: usize,
    taken: usize,
    passed_on: usize,
    carried_out: usize,
    kept: usize,
    under_way: u64,
    parts: usize,
}

struct Joining {
    replicas: Vec<Replica>,
    inboxes: Vec<VecDeque<(Address, Message)>>,
    now: Nanos,
    epoch: u64,
    number: u64,
    rng: Rng,
    refused: usize,
    /// Whether the one that joins has said that its link stands.
    linked: bool,
    longest: Longest,
    /// What neighbours have said of the state that is taken over, if that is kept.
    letters: Option<Vec<(usize, (Address, Message))>>,
}

const JOINER: usize = 3;
const VALUE_BYTES: usize = 70;
/// At ten thousand turns a second these are 200,000 commands.
const COMMANDS_A_TURN: usize = 20;

impl Joining {
    /// A chain of three that has so many records, and one that is in no chain.
    fn new(limits: Limits, records: u64) -> Joining {
        let mut joining = Joining {
            replicas: Vec::new(),
            inboxes: (0..4).map(|_| VecDeque::new()).collect(),
            now: 0,
            epoch: 1,
            number: 0,
            rng: Rng::new(records),
            refused: 0,
            linked: false,
            longest: Longest::default(),
            letters: None,
        };
        for rank in 0..4 {
            let options = Options {
                me: id(rank),
                shard: ShardId(0),
                quorum: vec![QUORUM],
                timing: Timing::default(),
                durable: false,
                limits,
                bugs: Bugs::default(),
            };
            let mut out = Vec::new();
            let replica = match rank as usize {
                JOINER => Replica::spare(options),
                _ => Replica::founding(options, chain(1, &[0, 1, 2], None), 0, &mut out),
            };
            joining.replicas.push(replica);
            joining.perform(rank as usize, out);
        }
        (0..8).for_each(|_| joining.round(&[0, 1, 2, 3]));
        while joining.replicas[2].state().sizes().records < records as usize {
            let first = joining.replicas[2].state().sizes().records as u64;
            joining.write((first..records.min(first + 100)).collect());
            (0..4).for_each(|_| joining.round(&[0, 1, 2, 3]));
        }
        joining.longest = Longest::default();
        joining
    }

    /// The client writes these records.
    fn write(&mut self, records: Vec<u64>) {
        let value = "v".repeat(VALUE_BYTES);
        let commands = records.into_iter().map(|record| {
            self.number += 1;
            let key = Key::new(Table::Lineage, format!("record {record:>12}").as_bytes());
            let op = Op::Put { key, value: Blob::from(&value) };
            Command { client: CLIENT, number: self.number, settled: self.number - 1, op }
        });
        let body = Body::Commands(commands.collect());
        self.tell(0, Address::Client(CLIENT.rank), body);
    }

    fn write_any(&mut self, records: usize) {
        let some = (0..COMMANDS_A_TURN).map(|_| self.rng.below(records + records / 8) as u64).collect();
        self.write(some);
    }

    fn tell(&mut self, to: usize, from: Address, body: Body) {
        self.inboxes[to].push_back((from, Message { shard: ShardId(0), epoch: Epoch(self.epoch), body }));
    }

    fn change(&mut self, members: &[u32], joining: Option<u32>) {
        self.epoch += 1;
        let chain = chain(self.epoch, members, joining);
        (0..4).for_each(|rank| self.tell(rank, Address::Quorum(QUORUM), Body::Chain(Some(chain.clone()))));
    }

    /// One turn of each of these.
    fn round(&mut self, ranks: &[usize]) {
        self.now += 100_000;
        for rank in ranks {
            let replica = &mut self.replicas[*rank];
            let before = replica.state().applied().0;
            let mut out = Vec::new();
            let mut taken = 0;
            for (from, message) in std::mem::take(&mut self.inboxes[*rank]) {
                if let Body::Part(part) = &message.body {
                    taken += part.bytes.len();
                }
                replica.receive(self.now, from, message, &mut out);
            }
            replica.tick(self.now);
            replica.flush(self.now, &mut out);
            let longest = &mut self.longest;
            longest.taken = longest.taken.max(taken);
            if *rank == JOINER && replica.complete && before >= replica.state.sizes().records as u64 {
                let carried_out = replica.state().applied().0 - before;
                longest.carried_out = longest.carried_out.max(carried_out as usize * VALUE_BYTES);
            } else if *rank != JOINER {
                longest.kept = longest.kept.max(replica.sizes().1);
                longest.under_way = longest.under_way.max(replica.last().0 - replica.state().applied().0);
            }
            self.perform(*rank, out);
        }
    }

    fn perform(&mut self, rank: usize, out: Vec<Action>) {
        let (mut given, mut passed_on) = (0, 0);
        for action in out {
            let Action::Send(to, message) = action else { continue };
            match (to, message.body) {
                (Address::Replica(to), body) => {
                    match &body {
                        Body::Part(part) => {
                            given += part.bytes.len();
                            self.longest.parts += 1;
                        }
                        Body::Forward(forward) if to.index() == JOINER => {
                            passed_on += forward.entries.iter().map(entry_bytes).sum::<usize>();
                        }
                        _ => {}
                    }
                    let message = Message { shard: ShardId(0), epoch: message.epoch, body };
                    let letter = (Address::Replica(Rank(rank as u32)), message);
                    if matches!(letter.1.body, Body::Part(_) | Body::Link(_)) {
                        self.letters.iter_mut().for_each(|letters| letters.push((to.index(), letter.clone())));
                    }
                    self.inboxes[to.index()].push_back(letter);
                }
                (Address::Quorum(_), Body::Beat(beat)) => {
                    self.linked |= rank == JOINER && beat.linked;
                    let grant = Body::Grant { to: beat.from, echo: beat.sent };
                    self.inboxes[rank].push_back((
                        Address::Quorum(QUORUM),
                        Message { shard: ShardId(0), epoch: message.epoch, body: grant },
                    ));
                }
                (_, Body::NotNow(_, numbers, Refusal::Busy)) => self.refused += numbers.len(),
                _ => {}
            }
        }
        self.longest.given = self.longest.given.max(given);
        self.longest.passed_on = self.longest.passed_on.max(passed_on);
    }

    /// Nothing more is written, and all have the same.
    fn ends_well(&mut self, ranks: &[usize]) {
        for _ in 0..200 {
            self.round(ranks);
        }
        let whole = |replica: &Replica| {
            let mut bytes = Vec::new();
            replica.state().put(&mut bytes);
            bytes
        };
        let head = whole(&self.replicas[0]);
        for rank in ranks {
            assert!(whole(&self.replicas[*rank]) == head, "replica {rank} has another state");
            assert!(self.replicas[*rank].is_linked(), "replica {rank}");
            assert_eq!(self.replicas[*rank].sizes().1, 0, "replica {rank} keeps what all have");
        }
    }
}

fn chain(epoch: u64, members: &[u32], joining: Option<u32>) -> ChainConfig {
    let members = members.iter().copied().map(id).collect();
    ChainConfig { shard: ShardId(0), epoch: Epoch(epoch), members, joining: joining.map(id) }
}

/// One joins while all write, becomes the tail, and no turn was long.
fn joins(records: usize) {
    let limits = Limits::default();
    let mut table = Joining::new(limits, records as u64);
    table.change(&[0, 1, 2], Some(3));
    let mut rounds = 0;
    while !table.linked {
        table.write_any(records);
        table.round(&[0, 1, 2, 3]);
        rounds += 1;
        assert!(rounds < 100 + records / 50, "{rounds} rounds: {:?}", table.longest);
    }
    let parts = table.longest.parts;
    println!("{records} records in {parts} parts and {rounds} turns: {:?}", table.longest);
    assert!(parts * limits.part_bytes > records * VALUE_BYTES);
    table.change(&[0, 1, 2, 3], None);
    for _ in 0..20 {
        table.write_any(records);
        table.round(&[0, 1, 2, 3]);
    }
    let Longest { given, taken, passed_on, carried_out, kept, under_way, .. } = table.longest;
    let at_once = limits.parts_at_once * (limits.part_bytes + 1024);
    assert!(given <= at_once && taken <= at_once, "{:?}", table.longest);
    assert!(passed_on.max(carried_out) <= limits.turn_bytes + 1024, "{:?}", table.longest);
    assert!(kept < 20 * COMMANDS_A_TURN && under_way < 20 * COMMANDS_A_TURN as u64, "{:?}", table.longest);
    assert_eq!((table.refused, table.longest.parts), (0, parts), "writers waited, or the new tail took a whole state");
    table.ends_well(&[0, 1, 2, 3]);
}

#[test]
fn a_replica_joins_in_short_turns_while_all_write() {
    joins(20_000);
}

/// `cargo test --profile sim --lib -- --ignored a_million --nocapture`
#[test]
#[ignore = "takes minutes where it is not optimised: scripts/test runs it in the profile `sim`"]
fn a_replica_joins_a_state_of_a_million_records() {
    joins(1_000_000);
}

/// One that does not take what it is sent holds writers up when there is no more
/// room for it, and then goes on from where it was.
#[test]
fn writers_wait_when_too_much_would_be_kept_for_one_that_joins() {
    let small = Limits { log_entries: 400, log_bytes: 50_000, part_bytes: 2_000, turn_bytes: 16_000, ..Limits::default() };
    for limits in [Limits { log_bytes: usize::MAX / 8, ..small }, Limits { log_entries: 1 << 40, ..small }] {
        let mut table = Joining::new(limits, 2_000);
        table.change(&[0, 1, 2], Some(3));
        for round in 0..400 {
            table.write_any(2_000);
            let ranks = if (3..200).contains(&round) { &[0, 1, 2][..] } else { &[0, 1, 2, 3] };
            table.round(ranks);
            let bytes = table.replicas[..JOINER].iter().map(|replica| replica.log.bytes()).max().unwrap();
            assert!(bytes <= 2 * limits.log_bytes + 10_000, "{bytes} bytes are kept");
            if round == 199 {
                assert!(table.refused > 1_000, "nobody waits: {:?}", table.longest);
            }
        }
        assert!(table.linked, "it has not caught up");
        assert!(table.longest.kept <= 2 * limits.log_entries);
        table.change(&[0, 1, 2, 3], None);
        table.ends_well(&[0, 1, 2, 3]);
    }
}

/// What comes late of a transfer that has ended changes nothing, nor does a word
/// of the one that joins from before it had what it has.
#[test]
fn what_comes_late_of_a_transfer_is_ignored() {
    let limits = Limits { part_bytes: 2_000, ..Limits::default() };
    let mut table = Joining::new(limits, 1_000);
    table.change(&[0, 1, 2], Some(3));
    table.letters = Some(Vec::new());
    while !table.linked {
        table.write_any(1_000);
        table.round(&[0, 1, 2, 3]);
    }
    table.ends_well(&[0, 1, 2, 3]);
    let (before, parts) = (table.replicas.clone(), table.longest.parts);
    let late = table.letters.take().unwrap();
    assert!(late.len() > 50, "{}", late.len());
    for (to, letter) in late {
        table.inboxes[to].push_back(letter);
    }
    (0..4).for_each(|_| table.round(&[0, 1, 2, 3]));
    assert_eq!(table.longest.parts, parts);
    for (rank, replica) in table.replicas.iter().enumerate() {
        assert_eq!(replica.state(), before[rank].state());
        assert_eq!((replica.last(), replica.is_linked()), (before[rank].last(), true));
    }
}

#[test]
fn one_that_is_given_no_state_ends_its_life() {
    let mut table = Joining::new(Limits::default(), 100);
    table.change(&[0, 1, 2], Some(3));
    table.round(&[3]);
    let part = Part { to: id(3), at: Seq(7), index: 0, last: false, bytes: Blob::from(&[77; 9]) };
    table.tell(JOINER, Address::Replica(Rank(2)), Body::Part(part));
    table.round(&[3]);
    assert!(table.replicas[JOINER].is_retired());
}

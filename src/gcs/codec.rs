//! What the store's parts say to each other, as bytes: one packet is one message
//! of the fabric. Any bytes may come; what is no packet is refused.
//!
//! What goes along with every operation has a form of its own (`hot`), in which
//! what follows from what stands before takes no room; the rest is in that of
//! `postcard`.

mod fields;
mod hot;

use thiserror::Error;

pub(super) use self::fields::{Reader, put, put_bytes, put_number};
use self::hot::Before;
pub(super) use self::hot::{put_key, put_record, read_key, read_record};
use super::agreement::ConsensusMessage;
use super::message::{Address, Body, Entry, Epoch, Message, ShardId};
use crate::base::Rank;
use crate::base::limits::{MESSAGE_BYTES_MAX, RANKS_MAX};

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// Among replicas, clients and members of the quorum.
    Message {
        /// For whom.
        to: Address,
        /// From whom.
        from: Address,
        /// What.
        message: Message,
    },
    /// Among the members of the quorum, about what they agree on.
    Consensus(ConsensusMessage),
}

/// Why bytes are no packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PacketError {
    /// Nothing, or nothing that is known, is in the first byte.
    #[error("a packet of the control store of unknown kind: the peer runs another version, or the bytes are damaged")]
    Kind,
    /// There is too much of it.
    #[error("a packet of the control store with {0} bytes: at most {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The bytes after the first have no meaning.
    #[error("a packet of the control store that cannot be read: the peer runs another version, or the bytes are damaged")]
    Body,
}

const KIND_MESSAGE: u8 = 1;
const KIND_CONSENSUS: u8 = 2;

impl Packet {
    /// Adds the packet's bytes to the end.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Packet::Message { to, from, message } => encode_message(*to, *from, message, bytes),
            Packet::Consensus(message) => {
                bytes.push(KIND_CONSENSUS);
                fields::put(message, bytes);
            }
        }
    }

    /// Reads a packet, of which these are all bytes.
    ///
    /// # Errors
    /// If they are not a packet.
    pub fn decode(bytes: &[u8]) -> Result<Packet, PacketError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(PacketError::TooLong(bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        let packet = match reader.byte() {
            Some(KIND_MESSAGE) => read_message(&mut reader),
            Some(KIND_CONSENSUS) => reader.other().map(Packet::Consensus),
            _ => return Err(PacketError::Kind),
        };
        packet.filter(|_| reader.is_at_end()).ok_or(PacketError::Body)
    }
}

/// The bytes of [`Packet::Message`], of a message that stays where it is.
pub fn encode_message(to: Address, from: Address, message: &Message, bytes: &mut Vec<u8>) {
    let (to_kind, to) = parts_of(to);
    let (from_kind, from) = parts_of(from);
    bytes.extend_from_slice(&[KIND_MESSAGE, to_kind | from_kind << 2]);
    put_number(u64::from(to.0), bytes);
    put_number(u64::from(from.0), bytes);
    put_number(u64::from(message.shard.0), bytes);
    put_number(message.epoch.0, bytes);
    hot::put_body(&message.body, bytes);
}

fn read_message(reader: &mut Reader<'_>) -> Option<Packet> {
    let kinds = reader.byte()?;
    let to = address_of(kinds & 3, reader.number()?)?;
    let from = address_of(kinds >> 2, reader.number()?)?;
    let shard = ShardId(u16::try_from(reader.number()?).ok()?);
    let epoch = Epoch(reader.number()?);
    let body: Body = hot::read_body(reader)?;
    Some(Packet::Message { to, from, message: Message { shard, epoch, body } })
}

fn parts_of(address: Address) -> (u8, Rank) {
    match address {
        Address::Replica(rank) => (0, rank),
        Address::Quorum(rank) => (1, rank),
        Address::Client(rank) => (2, rank),
    }
}

fn address_of(kind: u8, rank: u64) -> Option<Address> {
    let rank = Rank(u32::try_from(rank).ok().filter(|rank| *rank < RANKS_MAX)?);
    match kind {
        0 => Some(Address::Replica(rank)),
        1 => Some(Address::Quorum(rank)),
        2 => Some(Address::Client(rank)),
        _ => None,
    }
}

/// Adds a command with its place, by itself.
pub(super) fn put_entry(entry: &Entry, bytes: &mut Vec<u8>) {
    Before::default().put_entry(entry, bytes);
}

/// A command with its place, of which these are all bytes.
pub(super) fn read_entry(bytes: &[u8]) -> Option<Entry> {
    let mut reader = Reader::new(bytes);
    let entry = Before::default().read_entry(&mut reader)?;
    reader.is_at_end().then_some(entry)
}

#[cfg(test)]
mod tests {
    use super::super::message::*;
    use super::super::quorum::{Member, MemberAction, MemberOptions};
    use super::super::record::{Blob, Key, Record, Refusal, Seq, Table};
    use super::super::state::{ClientId, Command, Event, Found, Op, Query};
    use super::super::{Bugs, Timing};
    use super::*;
    use crate::base::Rank;
    use crate::base::limits::{GCS_FORWARD_BYTES_MAX, GCS_KEY_BYTES_MAX, GCS_PAGE_BYTES_MAX, GCS_VALUE_BYTES_MAX};
    use crate::base::rng::Rng;

    const CLIENT: ClientId = ClientId { rank: Rank(70), incarnation: 2 };

    fn id(rank: u32) -> ReplicaId {
        ReplicaId { rank: Rank(rank), incarnation: 3 }
    }

    fn ops() -> Vec<Op> {
        let key = Key::new(Table::Actors, b"an actor");
        let value = Blob::from(&[7; 300]);
        vec![
            Op::Put { key: key.clone(), value: value.clone() },
            Op::CompareAndSwap { key: key.clone(), expected: Seq(9), value: Some(value.clone()) },
            Op::CompareAndSwap { key: key.clone(), expected: Seq(0), value: None },
            Op::Delete { key: key.clone() },
            Op::Append { key, bytes: value },
            Op::DeletePrefix { table: Table::Lineage, prefix: Blob::from("") },
            Op::EndClient { client: CLIENT },
        ]
    }

    fn commands() -> Vec<Command> {
        let number = |(n, op)| Command { client: CLIENT, number: 1_000_000 + n as u64, settled: 999_990, op };
        ops().into_iter().enumerate().map(number).collect()
    }

    /// Every kind of thing that is said, with every kind of thing in it.
    fn bodies() -> Vec<Body> {
        let key = Key::new(Table::Names, b"name");
        let record = Record { version: Seq(1 << 40), value: Blob::from("value") };
        let refusals = [
            Refusal::UnknownTable(9),
            Refusal::EmptyKey,
            Refusal::KeyTooLong { bytes: 300 },
            Refusal::ValueTooLong { bytes: 70_000 },
            Refusal::TooManyKeys { keys: 5_000 },
            Refusal::VersionMismatch { current: Seq(5) },
            Refusal::ClientEnded(Rank(4)),
            Refusal::WindowExceeded,
            Refusal::Busy,
            Refusal::DiskFull(Rank(1)),
        ];
        let outcomes = refusals.iter().cloned().map(Err).chain([Ok(Seq(77)), Ok(Seq(78))]);
        let entry = |(n, command)| Entry { seq: Seq(101 + n as u64), command };
        let queries = vec![
            (5, Query::Get(vec![key.clone(), key.clone()])),
            (6, Query::Scan { table: Table::Jobs, prefix: Blob::from("j"), after: Some(Blob::from("j1")) }),
            (7, Query::Scan { table: Table::Jobs, prefix: Blob::from(""), after: None }),
        ];
        let answers = vec![
            (5, Ok((Seq(9), Found::Records(vec![Some(record.clone()), None])))),
            (6, Ok((Seq(9), Found::Page { records: vec![(Blob::from("j2"), record)], more: true }))),
            (7, Err(Refusal::Busy)),
        ];
        let events = vec![
            Event { version: Seq(8), key: key.clone(), value: Some(Blob::from("x")) },
            Event { version: Seq(9), key: key.clone(), value: None },
        ];
        let chain =
            ChainConfig { shard: ShardId(1), epoch: Epoch(4), members: vec![id(0), id(1)], joining: Some(id(2)) };
        vec![
            Body::Commands(commands()),
            Body::Outcomes(outcomes.enumerate().map(|(n, outcome)| (CLIENT, 50 + n as u64, outcome)).collect()),
            Body::Queries(CLIENT, queries),
            Body::Answers(CLIENT, answers),
            Body::NotNow(CLIENT, vec![1, 2, u64::MAX], Refusal::DiskFull(Rank(2))),
            Body::Watch(Watch { client: CLIENT, number: 3, prefix: key, since: Some(Seq(8)) }),
            Body::Changes(Changes { client: CLIENT, number: 3, after: Seq(7), events, through: Seq(9), afresh: false }),
            Body::Chain(Some(chain)),
            Body::Chain(None),
            Body::Locate,
            Body::Forward(Forward {
                to: id(1),
                after: Seq(100),
                entries: commands().into_iter().enumerate().map(entry).collect(),
                durable: Seq(u64::MAX),
                link: Some(Seq(100)),
            }),
            Body::Link(Link { from: id(1), received: Seq(7), complete: true, next: Some((Seq(6), 2)), resend: true }),
            Body::Part(Part { to: id(2), at: Seq(6), index: 1, last: false, bytes: Blob::from(&[1; 100]) }),
            Body::Committed { through: Seq(55), full: Some(Rank(2)) },
            Body::Tail(id(1), 12),
            Body::TailIs(12, Seq(55)),
            Body::Beat(Beat { from: id(1), sent: 1 << 60, received: None, linked: false, restored: Some(1), cut: vec![Rank(0), Rank(300)] }),
            Body::Grant { to: id(1), echo: 1 << 60 },
            Body::UsedUp(id(2)),
        ]
    }

    /// What two members say to each other until one leads and a chain is changed.
    fn consensus() -> Vec<Packet> {
        let chain = ChainConfig { shard: ShardId(0), epoch: Epoch(1), members: vec![id(0), id(1)], joining: None };
        let member = |rank| {
            let options = MemberOptions {
                me: Rank(rank),
                life: 1,
                members: vec![Rank(0), Rank(1)],
                timing: Timing::default(),
                replicas: 2,
                hosts: Vec::new(),
                founding: vec![chain.clone()],
                bugs: Bugs::default(),
            };
            Member::new(options, 0, None).expect("a sound configuration")
        };
        let mut members = [member(0), member(1)];
        let mut said = Vec::new();
        for turn in 0..400 {
            let mut out = Vec::new();
            for member in &mut members {
                member.tick(turn * Timing::default().quorum_tick / 2);
                member.flush(0, &mut out);
            }
            for action in out {
                let MemberAction::Consensus(to, message) = action else { continue };
                members[to.index()].consensus(message.clone());
                said.push(Packet::Consensus(message));
            }
        }
        said
    }

    fn packets() -> Vec<Vec<u8>> {
        let message = |body| Message { shard: ShardId(1), epoch: Epoch(4), body };
        let message = |body| Packet::Message {
            to: Address::Replica(Rank(1)),
            from: Address::Client(Rank(70)),
            message: message(body),
        };
        bodies().into_iter().map(message).chain(consensus()).map(|packet| bytes_of(&packet)).collect()
    }

    fn bytes_of(packet: &Packet) -> Vec<u8> {
        let mut bytes = Vec::new();
        packet.encode(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_said_is_heard() {
        for body in bodies() {
            let (to, from) = (Address::Quorum(Rank(0)), Address::Replica(Rank(RANKS_MAX - 1)));
            let message = Message { shard: ShardId(300), epoch: Epoch(1 << 33), body };
            let mut bytes = vec![1, 2, 3];
            encode_message(to, from, &message, &mut bytes);
            let Ok(Packet::Message { to: heard_to, from: heard_from, message: heard }) = Packet::decode(&bytes[3..])
            else {
                panic!("{message:?} is not read")
            };
            assert_eq!((heard_to, heard_from, heard), (to, from, message));
        }
        let said = consensus();
        assert!(said.len() > 20, "{} messages", said.len());
        for packet in said {
            let bytes = bytes_of(&packet);
            assert_eq!(bytes_of(&Packet::decode(&bytes).unwrap()), bytes);
        }
    }

    #[test]
    fn a_packet_has_nothing_missing_and_nothing_behind_it() {
        assert_eq!(Packet::decode(&[]).unwrap_err(), PacketError::Kind);
        assert_eq!(Packet::decode(&[9, 1]).unwrap_err(), PacketError::Kind);
        assert_eq!(Packet::decode(&vec![1; 70_000]).unwrap_err(), PacketError::TooLong(70_000));
        for mut bytes in packets() {
            for end in 1..bytes.len() {
                assert!(Packet::decode(&bytes[..end]).is_err(), "{end} of {bytes:?}");
            }
            bytes.push(0);
            assert_eq!(Packet::decode(&bytes).unwrap_err(), PacketError::Body);
        }
    }

    /// What a turn may gather goes out in pieces that fit a message.
    #[test]
    fn the_longest_of_each_kind_fits_a_message() {
        let long = Key::new(Table::Names, &[255; GCS_KEY_BYTES_MAX]);
        let value = Blob::from(&[255; GCS_VALUE_BYTES_MAX]);
        let most = ClientId { rank: Rank(u32::MAX), incarnation: u32::MAX };
        let op = Op::Put { key: long.clone(), value: value.clone() };
        let command = Command { client: most, number: u64::MAX, settled: u64::MAX, op };
        let room = |bytes: usize| GCS_FORWARD_BYTES_MAX / bytes + 1;
        let small = Command { op: Op::Delete { key: Key::new(Table::Names, b"k") }, ..command.clone() };
        let entry = |command: &Command| Entry { seq: Seq(u64::MAX), command: command.clone() };
        let forward = |entries| {
            let to = ReplicaId { rank: Rank(u32::MAX), incarnation: u32::MAX };
            Body::Forward(Forward { to, after: Seq(u64::MAX), entries, durable: Seq(u64::MAX), link: Some(Seq(u64::MAX)) })
        };
        let record = Record { version: Seq(u64::MAX), value };
        let page = GCS_PAGE_BYTES_MAX / record.value.len() + 1;
        let bodies = [
            Body::Commands(vec![command.clone(); room(command.op.bytes())]),
            Body::Commands(vec![small.clone(); room(small.op.bytes())]),
            forward(vec![entry(&command); room(command.op.bytes())]),
            forward(vec![entry(&small); room(small.op.bytes())]),
            Body::Answers(most, vec![(u64::MAX, Ok((Seq(u64::MAX), Found::Records(vec![Some(record.clone()); page]))))]),
            Body::Outcomes(vec![(most, u64::MAX, Ok(Seq(u64::MAX))); 1024]),
            Body::Queries(most, vec![(u64::MAX, Query::Get(vec![long; 120])); 1]),
        ];
        for body in bodies {
            let message = Message { shard: ShardId(u16::MAX), epoch: Epoch(u64::MAX), body };
            let mut bytes = Vec::new();
            encode_message(Address::Client(Rank(4095)), Address::Replica(Rank(4095)), &message, &mut bytes);
            assert!(bytes.len() + 512 <= MESSAGE_BYTES_MAX, "{}", bytes.len());
            assert!(Packet::decode(&bytes).is_ok());
        }
    }

    /// Whatever is read can be written, and is then what was read: nothing has
    /// two meanings.
    #[test]
    fn any_bytes_are_read_or_refused() {
        let mut rng = Rng::new(4);
        let packets = packets();
        let mut read = 0;
        for round in 0..40_000 {
            let mut bytes = packets[rng.below(packets.len())].clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(bytes.len());
                match rng.below(4) {
                    0 => bytes[at] ^= 1 << rng.below(8),
                    1 => bytes[at] = rng.next_u64() as u8,
                    // A length or a number that claims all that there may be.
                    2 => _ = bytes.splice(at..at + 1, [0xff, 0xff, 0xff, 0xff, 0x0f]),
                    _ => {
                        let other = &packets[rng.below(packets.len())];
                        bytes.truncate(at);
                        bytes.extend(&other[rng.below(other.len())..]);
                    }
                }
                bytes.resize(bytes.len().max(1), 0);
            }
            if let Ok(packet) = Packet::decode(&bytes) {
                read += 1;
                let again = bytes_of(&packet);
                let same = Packet::decode(&again).map(|packet| bytes_of(&packet));
                assert_eq!(same.as_ref(), Ok(&again), "round {round}");
            }
        }
        assert!(read > 1_000, "only {read} changed packets were still packets");
    }
}

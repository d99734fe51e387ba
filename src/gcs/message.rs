//! Who takes part and what they say to each other.

use serde::{Deserialize, Serialize};

use super::record::{Blob, Key, Refusal, Seq};
use super::state::{ClientId, Command, Event, Found, Outcome, Query};
use crate::base::Rank;

/// A moment on the monotonic clock of whoever is told it, in nanoseconds.
pub type Nanos = u64;

/// A shard of the keyspace.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ShardId(pub u16);

/// Counts the configurations of a shard, from 1. A message of an earlier one is
/// refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// One life of a replica: a rank that has lost what it knew, or was removed,
/// comes back with another incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ReplicaId {
    /// The rank.
    pub rank: Rank,
    /// Which of its lives, from 1.
    pub incarnation: u32,
}

/// The chain of a shard in one epoch.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ChainConfig {
    /// Whose.
    pub shard: ShardId,
    /// Which.
    pub epoch: Epoch,
    /// Head first, tail last.
    pub members: Vec<ReplicaId>,
    /// Who is being brought up to date behind the tail.
    pub joining: Option<ReplicaId>,
}

impl ChainConfig {
    /// The one who orders.
    pub fn head(&self) -> Option<ReplicaId> {
        self.members.first().copied()
    }

    /// The one who answers.
    pub fn tail(&self) -> Option<ReplicaId> {
        self.members.last().copied()
    }

    /// Where in the chain a replica stands.
    pub fn position(&self, replica: ReplicaId) -> Option<usize> {
        self.members.iter().position(|member| *member == replica)
    }

    /// Who comes before a member or the one that joins.
    pub fn predecessor(&self, replica: ReplicaId) -> Option<ReplicaId> {
        match self.position(replica) {
            Some(position) => position.checked_sub(1).map(|before| self.members[before]),
            None if self.joining == Some(replica) => self.tail(),
            None => None,
        }
    }

    /// Who comes after a member: the tail is followed by the one that joins.
    pub fn successor(&self, replica: ReplicaId) -> Option<ReplicaId> {
        let position = self.position(replica)?;
        self.members.get(position + 1).copied().or(self.joining)
    }
}

/// A command with its place in the order.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its place.
    pub seq: Seq,
    /// What.
    pub command: Command,
}

/// Who sends or gets a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Address {
    /// The replica of the message's shard on a rank. Which life of it is meant
    /// is for the message to say.
    Replica(Rank),
    /// The member of the configuration quorum on a rank.
    Quorum(Rank),
    /// The client on a rank.
    Client(Rank),
}

impl Address {
    /// Where that is.
    pub fn rank(self) -> Rank {
        match self {
            Address::Replica(rank) | Address::Quorum(rank) | Address::Client(rank) => rank,
        }
    }
}

/// What replicas of a shard, their clients and the quorum say.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Of which shard.
    pub shard: ShardId,
    /// As of which epoch the sender speaks.
    pub epoch: Epoch,
    /// What.
    pub body: Body,
}

/// The answer to a query, by the client's number, and as of which command.
pub type Answer = (u64, Result<(Seq, Found), Refusal>);

/// What a [`Message`] says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Body {
    /// Client to head: carry these out.
    Commands(Vec<Command>),
    /// Head or tail to client: what came of its commands, by number.
    Outcomes(Vec<(ClientId, u64, Outcome)>),
    /// Client to any replica: answer these, by a number of the client's.
    Queries(ClientId, Vec<(u64, Query)>),
    /// Replica to client: the answers, and as of which command.
    Answers(ClientId, Vec<Answer>),
    /// Replica to client: these commands must be sent again later, and why.
    NotNow(ClientId, Vec<u64>, Refusal),
    /// Client to any replica: tell of the changes; repeated to stay alive and
    /// to say how far they have come.
    Watch(Watch),
    /// Replica to client: changes.
    Changes(Changes),
    /// To whoever spoke as of an earlier epoch, or to the wrong one: the chain.
    Chain(Option<ChainConfig>),
    /// Client to quorum: which chain is there?
    Locate,

    /// Member to successor: the commands after `after`.
    Forward(Forward),
    /// Successor to its predecessor: what it has.
    Link(Link),
    /// Member to successor: a part of its state.
    Part(Part),
    /// Member to predecessor: everything up to here is at the tail and on every
    /// disk that counts.
    Committed {
        /// The last such command.
        through: Seq,
        /// A disk that is full further down.
        full: Option<Rank>,
    },
    /// Member to tail: how far is it? By a number of the asker's.
    Tail(ReplicaId, u64),
    /// Tail to member: so far.
    TailIs(u64, Seq),

    /// Replica to every member of the quorum: I live.
    Beat(Beat),
    /// Member of the quorum to replica: you may answer reads.
    Grant {
        /// Whose.
        to: ReplicaId,
        /// The beat's clock.
        echo: Nanos,
    },
    /// Member of the quorum to a replica that knows of no chain: this life of it
    /// was called into one, and is out of it again.
    UsedUp(ReplicaId),
}

/// See [`Body::Watch`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Watch {
    /// Who.
    pub client: ClientId,
    /// The client's number for it.
    pub number: u64,
    /// What keys begin with.
    pub prefix: Key,
    /// All changes up to here have been seen; nothing for a first message.
    pub since: Option<Seq>,
}

/// See [`Body::Changes`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// Whose.
    pub client: ClientId,
    /// The client's number for the watch.
    pub number: u64,
    /// They follow on this one; a receiver that is not there yet asks again.
    pub after: Seq,
    /// The matching changes.
    pub events: Vec<Event>,
    /// They are all there are up to here.
    pub through: Seq,
    /// The watch begins here, or changes before `through` are forgotten: what is
    /// there must be read.
    pub afresh: bool,
}

/// See [`Body::Forward`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Forward {
    /// For whom.
    pub to: ReplicaId,
    /// The place before the first of them.
    pub after: Seq,
    /// The commands.
    pub entries: Vec<Entry>,
    /// Up to here they are on the disks of all members before.
    pub durable: Seq,
    /// What the sender had when this epoch's link was made.
    pub link: Option<Seq>,
}

/// See [`Body::Link`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Link {
    /// Who.
    pub from: ReplicaId,
    /// The last command that it has.
    pub received: Seq,
    /// Whether a state is there on which commands can follow.
    pub complete: bool,
    /// Which part of which state it wants next, if it is taking one over.
    pub next: Option<(Seq, u32)>,
    /// Whether commands are to be sent from there on, or only the position is told.
    pub resend: bool,
}

/// See [`Body::Part`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Part {
    /// For whom.
    pub to: ReplicaId,
    /// The state after this command.
    pub at: Seq,
    /// Which part.
    pub index: u32,
    /// Whether there is none behind it.
    pub last: bool,
    /// The bytes.
    pub bytes: Blob,
}

/// See [`Body::Beat`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Beat {
    /// Who.
    pub from: ReplicaId,
    /// When, on its clock.
    pub sent: Nanos,
    /// What it has: the last command, if it has a complete state.
    pub received: Option<Seq>,
    /// Whether its link of this epoch stands: the one that joins is up to date.
    pub linked: bool,
    /// Which life of it has left what it has on disk.
    pub restored: Option<u32>,
    /// Its neighbours in the chain from which nothing has come since the
    /// connection with them ended; of one that is in no chain, any ranks.
    pub cut: Vec<Rank>,
}

/// What a core wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// A message is to be sent; it may be lost.
    Send(Address, Message),
    /// Bytes are to be added to the log, in the order of these actions.
    Append(Vec<u8>),
    /// The log is to be on disk; told by [`DiskEvent::Synced`].
    Sync(Seq),
    /// The log is to be replaced by this snapshot, at once or not at all, and
    /// to be on disk.
    Replace(Vec<u8>),
}

/// What the disk tells a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskEvent {
    /// Everything up to here is on disk.
    Synced(Seq),
    /// There was no space for what was to be added.
    Full,
    /// There may be space again.
    Space,
}

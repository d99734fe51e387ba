//! The replicated state of a shard: a deterministic function of the commands in
//! their order. Records, what clients have sent, and the latest changes for
//! watchers; all of it is a function of what is alive, none of what was.

mod snapshot;

use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;

use serde::{Deserialize, Serialize};

pub(super) use self::snapshot::{Builder, Reads};
use self::snapshot::{READERS, View};
use super::bug::{Bug, Bugs};
use super::record::{Blob, Key, Record, Refusal, Seq, Table, check_prefix, check_value};
use crate::base::Rank;
use crate::base::limits::{GCS_HISTORY_EVENTS, GCS_KEYS_MAX, GCS_PAGE_BYTES_MAX, GCS_WINDOW};

/// A user of the store: a rank, and which of the processes that had its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ClientId {
    /// The rank.
    pub rank: Rank,
    /// Counts the processes that were this rank; a later one ends the earlier.
    pub incarnation: u32,
}

/// What a client wants changed. However often it is sent, it happens once.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Command {
    /// Whose.
    pub client: ClientId,
    /// Counts this client's commands to this shard, from 1.
    pub number: u64,
    /// The client knows the outcomes of all its commands up to this one.
    pub settled: u64,
    /// What.
    pub op: Op,
}

/// A change.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Op {
    /// Writes a record, whatever was there.
    Put {
        /// Where.
        key: Key,
        /// What.
        value: Blob,
    },
    /// Writes or deletes a record if it has this version.
    CompareAndSwap {
        /// Where.
        key: Key,
        /// The version; 0 if there must be no record.
        expected: Seq,
        /// What, or nothing to delete it.
        value: Option<Blob>,
    },
    /// Deletes a record, if there is one.
    Delete {
        /// Where.
        key: Key,
    },
    /// Adds to the end of a record, or makes one.
    Append {
        /// Where.
        key: Key,
        /// What is added.
        bytes: Blob,
    },
    /// Deletes all records whose keys begin so: those of finished work.
    DeletePrefix {
        /// In which table.
        table: Table,
        /// How keys begin.
        prefix: Blob,
    },
    /// Forgets what was kept for a client that is gone.
    EndClient {
        /// Which.
        client: ClientId,
    },
}

impl Op {
    /// Whether it keeps the limits.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Op::Put { key, value: bytes } | Op::Append { key, bytes } => {
                key.check().and_then(|()| check_value(bytes.len()))
            }
            Op::CompareAndSwap { key, value, .. } => {
                key.check().and_then(|()| check_value(value.as_ref().map_or(0, |v| v.len())))
            }
            Op::Delete { key } => key.check(),
            Op::DeletePrefix { prefix, .. } => check_prefix(prefix),
            Op::EndClient { .. } => Ok(()),
        }
    }

    /// About how many bytes it has in a message.
    pub(super) fn bytes(&self) -> usize {
        let value = match self {
            Op::Put { value, .. } | Op::Append { bytes: value, .. } => value.len(),
            Op::CompareAndSwap { value, .. } => value.as_ref().map_or(0, |value| value.len()),
            Op::DeletePrefix { prefix, .. } => prefix.len(),
            Op::Delete { .. } | Op::EndClient { .. } => 0,
        };
        48 + value + self.key().map_or(0, |key| key.bytes.len())
    }

    /// The one key that it changes, if it is one.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Op::Put { key, .. } | Op::CompareAndSwap { key, .. } | Op::Delete { key } | Op::Append { key, .. } => {
                Some(key)
            }
            Op::DeletePrefix { .. } | Op::EndClient { .. } => None,
        }
    }
}

/// What came of a command: the version that it made, or why it did nothing.
pub type Outcome = Result<Seq, Refusal>;

/// What a client wants to know.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Query {
    /// These records, all as of one moment.
    Get(Vec<Key>),
    /// The records whose keys begin with a prefix, in order, as of one moment.
    Scan {
        /// In which table.
        table: Table,
        /// How keys begin.
        prefix: Blob,
        /// Only keys beyond this one: the last of the page before.
        after: Option<Blob>,
    },
}

impl Query {
    /// Whether it keeps the limits.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Query::Get(keys) if keys.len() > GCS_KEYS_MAX => Err(Refusal::TooManyKeys { keys: keys.len() }),
            Query::Get(keys) => {
                keys.iter().try_for_each(Key::check)?;
                let bytes = self.bytes();
                if bytes > GCS_PAGE_BYTES_MAX { Err(Refusal::QueryTooLong { bytes }) } else { Ok(()) }
            }
            Query::Scan { prefix, after, .. } => {
                check_prefix(prefix)?;
                after.iter().try_for_each(|after| check_prefix(after))
            }
        }
    }

    /// About how many bytes it has in a message.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Query::Get(keys) => keys.iter().map(|key| key.bytes.len() + 4).sum::<usize>() + 16,
            Query::Scan { prefix, after, .. } => prefix.len() + after.as_ref().map_or(0, |after| after.len()) + 32,
        }
    }
}

/// The answer to a [`Query`].
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Found {
    /// The records asked for, in that order, as far as they fit one message;
    /// the others must be asked for again.
    Records(Vec<Option<Record>>),
    /// A page of a scan.
    Page {
        /// What was found.
        records: Vec<(Blob, Record)>,
        /// Whether there is more behind the last of them.
        more: bool,
    },
}

impl Found {
    /// About how many bytes it has in a message.
    pub(super) fn bytes(&self) -> usize {
        let of = |record: &Record| record.value.len() + RECORD_BYTES;
        match self {
            Found::Records(records) => {
                records.iter().map(|record| record.as_ref().map_or(RECORD_BYTES, of)).sum::<usize>()
            }
            Found::Page { records, .. } => records.iter().map(|(key, record)| key.len() + of(record)).sum(),
        }
    }
}

/// What a record has in a message besides its key and its value, at most.
const RECORD_BYTES: usize = 16;

/// A change that was committed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Event {
    /// The command that made it.
    pub version: Seq,
    /// Where.
    pub key: Key,
    /// What is there now.
    pub value: Option<Blob>,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct State {
    applied: Seq,
    records: BTreeMap<Key, Record>,
    sessions: BTreeMap<Rank, Session>,
    /// The latest changes, for those who watch; `forgotten` is the last one
    /// that is not there any more.
    history: VecDeque<Event>,
    forgotten: Seq,
    /// What those still need who read it in pieces.
    views: [Option<View>; READERS],
}

/// What is kept of a rank's commands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Session {
    incarnation: u32,
    ended: bool,
    /// Outcomes up to here are known to the client.
    settled: u64,
    /// From the one after `settled` on, as far as they are there.
    outcomes: VecDeque<Option<Outcome>>,
}

impl Session {
    /// Where the outcome of a command stands that the client may not know.
    fn place(&self, number: u64) -> Option<usize> {
        Some(number.checked_sub(self.settled)?.checked_sub(1)? as usize)
    }

    fn note(&mut self, number: u64, outcome: Outcome) {
        let Some(place) = self.place(number) else { return };
        if place >= self.outcomes.len() {
            // None, but for commands that come out of their order.
            (self.outcomes.len()..place).for_each(|_| self.outcomes.push_back(None));
            self.outcomes.push_back(Some(outcome));
        } else {
            self.outcomes[place] = Some(outcome);
        }
    }

    fn settle(&mut self, settled: u64) {
        let more = settled.saturating_sub(self.settled);
        self.settled += more;
        self.outcomes.drain(..self.outcomes.len().min(more as usize));
    }
}

/// What is known of a command before it is carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It has not been carried out.
    New,
    /// It has, and this came of it.
    Done(Outcome),
    /// It has, and its client knows what came of it.
    Settled,
}

impl State {
    /// The last command that was carried out.
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// Carries out the next command, and says what came of it if its client
    /// may still want to know.
    ///
    /// # Panics
    /// If `seq` is not the next place: the caller keeps the order.
    pub fn apply(&mut self, seq: Seq, command: &Command, bugs: Bugs) -> Option<Outcome> {
        assert_eq!(seq, self.applied.next(), "a command out of its order");
        self.applied = seq;
        match self.standing(command) {
            Standing::Done(outcome) if !bugs.has(Bug::DoubleApply) => return Some(outcome),
            Standing::Settled if !bugs.has(Bug::DoubleApply) => return None,
            _ => {}
        }
        self.keep_session(command.client.rank);
        let outcome = match self.admit(command) {
            Ok(()) => self.perform(seq, &command.op),
            Err(refusal) => return Some(Err(refusal)),
        };
        let session = self.sessions.get_mut(&command.client.rank)?;
        if !session.ended {
            session.note(command.number, outcome.clone());
        }
        Some(outcome)
    }

    /// What is known of a command.
    pub fn standing(&self, command: &Command) -> Standing {
        let Some(session) = self.sessions.get(&command.client.rank) else { return Standing::New };
        if session.incarnation != command.client.incarnation {
            return Standing::New;
        }
        let Some(place) = session.place(command.number) else { return Standing::Settled };
        match session.outcomes.get(place) {
            Some(Some(outcome)) => Standing::Done(outcome.clone()),
            _ => Standing::New,
        }
    }

    /// Opens or brings up to date the session of the command's client.
    fn admit(&mut self, command: &Command) -> Result<(), Refusal> {
        let ClientId { rank, incarnation } = command.client;
        let fresh = Session { incarnation, ended: false, settled: 0, outcomes: VecDeque::new() };
        let session = self.sessions.entry(rank).or_insert_with(|| fresh.clone());
        if session.incarnation < incarnation {
            *session = fresh;
        }
        if session.incarnation > incarnation || session.ended {
            return Err(Refusal::ClientEnded(rank));
        }
        // A client cannot know the outcome of what it is about to send.
        let settled = command.settled.min(command.number.saturating_sub(1));
        if command.number > session.settled.max(settled).saturating_add(GCS_WINDOW) {
            return Err(Refusal::WindowExceeded);
        }
        session.settle(settled);
        Ok(())
    }

    fn perform(&mut self, seq: Seq, op: &Op) -> Outcome {
        op.check()?;
        match op {
            Op::Put { key, value } => self.write(seq, key, value),
            Op::CompareAndSwap { key, expected, value } => {
                let current = self.records.get(key).map_or(Seq(0), |record| record.version);
                if current != *expected {
                    return Err(Refusal::VersionMismatch { current });
                }
                match value {
                    Some(value) => self.write(seq, key, value),
                    None => self.delete(seq, key),
                }
            }
            Op::Delete { key } => self.delete(seq, key),
            Op::Append { key, bytes } => {
                let before = self.records.get(key).map_or(&[][..], |record| &record.value);
                check_value(before.len() + bytes.len())?;
                let value = Blob::from([before, bytes].concat());
                self.write(seq, key, &value);
            }
            Op::DeletePrefix { table, prefix } => {
                let keys: Vec<Key> = self.range(*table, prefix, None).map(|(key, _)| key.clone()).collect();
                keys.iter().for_each(|key| self.delete(seq, key));
            }
            Op::EndClient { client } => self.end(*client),
        }
        Ok(seq)
    }

    fn write(&mut self, version: Seq, key: &Key, value: &Blob) {
        self.keep_record(key);
        // What is remembered goes soon: it may be a part of the message it came in.
        self.remember(Event { version, key: key.clone(), value: Some(value.clone()) });
        match self.records.entry(key.kept()) {
            btree_map::Entry::Occupied(mut record) => {
                let record = record.get_mut();
                record.version = version;
                record.value.take_over(value);
            }
            btree_map::Entry::Vacant(place) => _ = place.insert(Record { version, value: value.kept() }),
        }
    }

    fn delete(&mut self, version: Seq, key: &Key) {
        self.keep_record(key);
        if self.records.remove(key).is_some() {
            self.remember(Event { version, key: key.clone(), value: None });
        }
    }

    fn remember(&mut self, event: Event) {
        self.history.push_back(event);
        if self.history.len() > GCS_HISTORY_EVENTS {
            self.forgotten = self.history.pop_front().map_or(self.forgotten, |event| event.version);
        }
    }

    /// Of an ended client only the number of its process stays, so that none of
    /// its commands that are still on their way is taken for a new one.
    fn end(&mut self, client: ClientId) {
        self.keep_session(client.rank);
        let ended =
            Session { incarnation: client.incarnation, ended: true, settled: u64::MAX, outcomes: VecDeque::new() };
        let session = self.sessions.entry(client.rank).or_insert_with(|| ended.clone());
        if session.incarnation <= client.incarnation {
            *session = ended;
        }
    }

    /// Answers a query as of now.
    pub fn answer(&self, query: &Query) -> Found {
        match query {
            Query::Get(keys) => {
                let mut room = GCS_PAGE_BYTES_MAX;
                let fits = |record: &Option<&Record>| {
                    let bytes = record.map_or(0, |r| r.value.len()) + RECORD_BYTES;
                    let first = room == GCS_PAGE_BYTES_MAX;
                    room = room.saturating_sub(bytes);
                    room > 0 || first
                };
                let records = keys.iter().map(|key| self.records.get(key)).take_while(fits);
                Found::Records(records.map(|record| record.cloned()).collect())
            }
            Query::Scan { table, prefix, after } => {
                let mut records = Vec::new();
                let mut room = GCS_PAGE_BYTES_MAX;
                for (key, record) in self.range(*table, prefix, after.as_ref()) {
                    let bytes = key.bytes.len() + record.value.len() + RECORD_BYTES;
                    if records.len() == GCS_KEYS_MAX || bytes > room && !records.is_empty() {
                        return Found::Page { records, more: true };
                    }
                    room = room.saturating_sub(bytes);
                    records.push((key.bytes.clone(), record.clone()));
                }
                Found::Page { records, more: false }
            }
        }
    }

    fn range<'s>(
        &'s self,
        table: Table,
        prefix: &'s Blob,
        after: Option<&Blob>,
    ) -> impl Iterator<Item = (&'s Key, &'s Record)> {
        let start = match after.filter(|after| *after >= prefix) {
            Some(after) => Bound::Excluded(Key { table, bytes: after.clone() }),
            None => Bound::Included(Key { table, bytes: prefix.clone() }),
        };
        let records = self.records.range((start, Bound::Unbounded));
        records.take_while(move |(key, _)| key.table == table && key.bytes.starts_with(prefix))
    }

    /// The changes after `since`, or nothing if some of them are forgotten.
    pub fn changes(&self, since: Seq) -> Option<impl Iterator<Item = &Event>> {
        let first = self.history.partition_point(|event| event.version <= since);
        (since >= self.forgotten).then(|| self.history.iter().skip(first))
    }

    /// A bug: no commands, and the place after them.
    #[cfg(test)]
    pub(super) fn hollow(at: Seq) -> State {
        State { applied: at, forgotten: at, ..State::default() }
    }

    /// How much is kept: records, outcomes of commands, changes.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            records: self.records.len(),
            sessions: self.sessions.len(),
            outcomes: self.sessions.values().map(|session| session.outcomes.iter().flatten().count()).sum(),
            changes: self.history.len(),
        }
    }
}

/// What a [`State`] keeps, counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sizes {
    /// Records.
    pub records: usize,
    /// Ranks that have ever sent a command.
    pub sessions: usize,
    /// Outcomes that their clients may not know yet.
    pub outcomes: usize,
    /// Changes for those who watch.
    pub changes: usize,
}

//! The control store: small records that outlive the ranks that wrote them.

use thiserror::Error;

use crate::base::TaskError;
use crate::base::limits::{GCS_KEYS_MAX, GCS_PAGE_BYTES_MAX};
use crate::node::{
    Blob, ControlAnswer, ControlReply, ControlRequest, Event, Failure, Found, Handle, Key, Node, Op, Query, Resolved,
    Seq, ShardId, Stored, WatchId,
};
pub use crate::node::{Refusal, Table};

/// The control store of the job that this process belongs to: a map from keys to
/// records, in [tables](Table), kept by chains of replicas on several ranks.
///
/// Every operation takes effect at one moment between its call and its answer
/// (it is linearizable), once, whatever ranks die meanwhile. A write that was
/// answered is on all replicas of its shard, and with `COLLIMATE_GCS_DIR` on all
/// their disks. Keys have 1 to 256 bytes, values up to 16 KiB: what is larger
/// belongs in the object store.
///
/// Operations are under way from the moment they are called; [`Pending::wait`]
/// gives the answer, and in a task other tasks run meanwhile. Those that are under
/// way at once may happen in any order: wait for the one that must come first.
///
/// The tables `Nodes`, `Jobs` and `Functions` are Collimate's own: read them, and
/// write to the others.
///
/// `docs/protocols/chain.md` has the protocol, after van Renesse and Schneider,
/// "Chain Replication for Supporting High Throughput and Availability" (OSDI 2004).
///
/// # Examples
/// ```
/// use collimate::{ControlStore, Table};
///
/// #[collimate::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let store = ControlStore::of_job()?;
///     let version = store.put(Table::Names, b"solver", b"rank 3").wait()?;
///     store.compare_and_swap(Table::Names, b"solver", version, Some(b"rank 4")).wait()?;
///     let record = store.get(Table::Names, b"solver").wait()?.expect("it was put above");
///     assert_eq!(&record.value[..], b"rank 4");
///     Ok(())
/// }
/// ```
#[derive(Clone, Copy)]
pub struct ControlStore {
    node: &'static Node,
}

/// A record of the control store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlRecord {
    /// Which change of its shard wrote it: grows with every change, and is never 0.
    pub version: u64,
    /// Its bytes.
    pub value: Blob,
}

/// A change that a [`Watch`] tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlChange {
    /// Which change of its shard it is.
    pub version: u64,
    /// The record's key.
    pub key: Blob,
    /// What it has now; nothing if it was deleted.
    pub value: Option<Blob>,
}

/// Why an operation of the control store has no answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The store cannot do it, and did nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer within 30 s; a change may have been made, or may still be.
    #[error("the control store: {0}")]
    Deadline(String),
    /// The runtime is not running, or ended before the answer was there.
    #[error("{0}")]
    NotRunning(String),
}

/// An operation of the control store under way.
#[must_use = "an operation that nobody waits for may fail unseen"]
pub struct Pending<T> {
    handle: Handle<ControlReply>,
    read: fn(ControlAnswer) -> Option<T>,
    /// In which table, and if it is one, in which shard.
    place: (Table, Option<ShardId>),
}

impl ControlStore {
    /// The store of this process's job.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] where Collimate is not running.
    pub fn of_job() -> Result<ControlStore, ControlError> {
        let node = Node::current().ok_or_else(|| not_running(&super::Error::not_running()))?;
        Ok(ControlStore { node })
    }

    /// Writes a record, whatever was there. The answer is its version.
    pub fn put(&self, table: Table, key: &[u8], value: &[u8]) -> Pending<u64> {
        self.change(Op::Put { key: Key::new(table, key), value: value.into() })
    }

    /// Writes a record, or deletes it with `None`, if it has the version
    /// `expected`; 0 if there must be none. Otherwise it fails with
    /// [`Refusal::VersionMismatch`], which has the record's version.
    pub fn compare_and_swap(&self, table: Table, key: &[u8], expected: u64, value: Option<&[u8]>) -> Pending<u64> {
        let (key, expected, value) = (Key::new(table, key), Seq(expected), value.map(Blob::from));
        self.change(Op::CompareAndSwap { key, expected, value })
    }

    /// Deletes a record, if there is one.
    pub fn delete(&self, table: Table, key: &[u8]) -> Pending<u64> {
        self.change(Op::Delete { key: Key::new(table, key) })
    }

    /// Adds to the end of a record, or makes one.
    pub fn append(&self, table: Table, key: &[u8], bytes: &[u8]) -> Pending<u64> {
        self.change(Op::Append { key: Key::new(table, key), bytes: bytes.into() })
    }

    /// Deletes all records whose keys begin so: those of finished work. It is
    /// done shard by shard, not at one moment.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn delete_prefix(&self, table: Table, prefix: &[u8]) -> Result<(), ControlError> {
        let delete = |shard| {
            let op = Op::DeletePrefix { table, prefix: prefix.into() };
            self.ask((table, Some(shard)), ControlRequest::CommandIn(shard, op), version)
        };
        let all: Vec<Pending<u64>> = self.shards().map(delete).collect();
        all.into_iter().try_for_each(|one| one.wait().map(drop))
    }

    /// Reads a record.
    pub fn get(&self, table: Table, key: &[u8]) -> Pending<Option<ControlRecord>> {
        let key = Key::new(table, key);
        let shard = self.node.shard_of(&key);
        self.ask((table, Some(shard)), ControlRequest::Query(shard, Query::Get(vec![key])), |answer| match answer {
            ControlAnswer::Found(_, Found::Records(records)) => Some(records.into_iter().next()?.map(record)),
            _ => None,
        })
    }

    /// Reads several records, in the order asked for: those of one shard as of one
    /// moment, as far as they fit a message (1,024 of them, or 32 KiB).
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn multi_get(&self, table: Table, keys: &[&[u8]]) -> Result<Vec<Option<ControlRecord>>, ControlError> {
        let mut found = vec![None; keys.len()];
        let mut wanted: Vec<Vec<usize>> = self.shards().map(|_| Vec::new()).collect();
        for (at, key) in keys.iter().enumerate() {
            wanted[usize::from(self.node.shard_of(&Key::new(table, key)).0)].push(at);
        }
        while wanted.iter().any(|places| !places.is_empty()) {
            let ask = |(shard, places): (ShardId, &Vec<usize>)| {
                let page = &places[..page_of(places.iter().map(|at| keys[*at].len())).min(places.len())];
                let some = page.iter().map(|at| Key::new(table, keys[*at])).collect();
                (!places.is_empty()).then(|| self.ask((table, Some(shard)), ControlRequest::Query(shard, Query::Get(some)), records))
            };
            let asked: Vec<_> = self.shards().zip(&wanted).map(ask).collect();
            for (places, pending) in wanted.iter_mut().zip(asked) {
                let Some(pending) = pending else { continue };
                let records = pending.wait()?;
                let answered = records.len().clamp(1, places.len());
                for (at, record) in places.drain(..answered).zip(records) {
                    found[at] = record;
                }
            }
        }
        Ok(found)
    }

    /// All records whose keys begin so, in the order of their keys: those that
    /// are there all the while are in it, each as of a moment of its own page.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<(Blob, ControlRecord)>, ControlError> {
        let page = |shard, after: Option<Blob>| {
            let query = Query::Scan { table, prefix: prefix.into(), after };
            (shard, self.ask((table, Some(shard)), ControlRequest::Query(shard, query), |answer| match answer {
                ControlAnswer::Found(_, Found::Page { records, more }) => Some((records, more)),
                _ => None,
            }))
        };
        let mut all = Vec::new();
        let mut pages: Vec<_> = self.shards().map(|shard| page(shard, None)).collect();
        while let Some((shard, pending)) = pages.pop() {
            let (records, more) = pending.wait()?;
            if let Some((last, _)) = records.last().filter(|_| more) {
                pages.push(page(shard, Some(last.clone())));
            }
            all.extend(records.into_iter().map(|(key, found)| (key, record(found))));
        }
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(all)
    }

    /// Tells of all changes from now on of records whose keys begin so: every
    /// change of a key, once and in order, however ranks die. The first that it
    /// tells of may have been made shortly before.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    ///
    /// # Examples
    /// ```
    /// use collimate::{ControlStore, Table};
    ///
    /// #[collimate::main]
    /// fn main() -> Result<(), collimate::ControlError> {
    ///     let store = ControlStore::of_job()?;
    ///     let mut watch = store.watch(Table::Names, b"phase/")?;
    ///     store.put(Table::Names, b"phase/1", b"done").wait()?;
    ///     let changes = watch.changes()?;
    ///     assert_eq!(&changes.events[0].key[..], b"phase/1");
    ///     Ok(())
    /// }
    /// ```
    pub fn watch(&self, table: Table, prefix: &[u8]) -> Result<Watch, ControlError> {
        let key = Key::new(table, prefix);
        let opened = self.ask((table, None), ControlRequest::Watch(key), |answer| match answer {
            ControlAnswer::Watched(id) => Some(id),
            _ => None,
        });
        Ok(Watch { store: *self, table, id: opened.wait()? })
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.node.shards()).map(ShardId)
    }

    fn change(&self, op: Op) -> Pending<u64> {
        let place = op.key().map_or((Table::Names, None), |key| (key.table, Some(self.node.shard_of(key))));
        self.ask(place, ControlRequest::Command(op), version)
    }

    fn ask<T>(
        &self,
        place: (Table, Option<ShardId>),
        request: ControlRequest,
        read: fn(ControlAnswer) -> Option<T>,
    ) -> Pending<T> {
        Pending { handle: self.node.control(request), read, place }
    }
}

impl<T> Pending<T> {
    /// Waits for the answer. Inside a task other tasks run meanwhile.
    ///
    /// # Errors
    /// [`ControlError`] says which; the store gives up after 30 s.
    pub fn wait(self) -> Result<T, ControlError> {
        let unanswered = || ControlError::NotRunning("the runtime ended before the control store answered".into());
        let reply = match Node::resolve(self.handle) {
            Some(Ok(Resolved::Owned(Stored::Value(reply)))) => reply,
            Some(Ok(Resolved::Shared(handle))) => match handle.peek() {
                Some(Stored::Value(reply)) => reply.clone(),
                _ => return Err(unanswered()),
            },
            Some(Err(error)) => return Err(not_running(&error)),
            _ => return Err(unanswered()),
        };
        match reply {
            Ok(answer) => (self.read)(answer).ok_or_else(unanswered),
            Err(Failure::Refused(refusal)) => Err(refusal.into()),
            Err(late) => Err(ControlError::Deadline(match self.place {
                (table, Some(shard)) => format!("table {table:?}, shard {}: {late}", shard.0),
                (table, None) => format!("table {table:?}: {late}"),
            })),
        }
    }

    /// Whether `wait` would return at once.
    pub fn is_ready(&self) -> bool {
        self.handle.is_done()
    }
}

/// Changes of records whose keys begin alike; ends when it is dropped.
pub struct Watch {
    store: ControlStore,
    table: Table,
    id: WatchId,
}

/// What a [`Watch`] has seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ControlChanges {
    /// There may have been changes before these that are not told of, because
    /// this rank was out of touch, or the reader late, for more changes than
    /// are kept: what is there must be read again.
    pub missed: bool,
    /// What has changed, those of one key in order.
    pub events: Vec<ControlChange>,
}

impl Watch {
    /// Waits for changes.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] when the runtime ends before there are any.
    pub fn changes(&mut self) -> Result<ControlChanges, ControlError> {
        let next = self.store.ask((self.table, None), ControlRequest::Next(self.id), |answer| match answer {
            ControlAnswer::Changes { events, missed } => {
                Some(ControlChanges { missed, events: events.into_iter().map(change).collect() })
            }
            _ => None,
        });
        next.wait()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _unwatched = self.store.node.control(ControlRequest::Unwatch(self.id));
    }
}

/// What a key costs a message besides its bytes, at most.
const KEY_OVERHEAD: usize = 16;

/// How many of the keys of these lengths go into one question: at least one.
fn page_of(lengths: impl Iterator<Item = usize>) -> usize {
    let mut room = GCS_PAGE_BYTES_MAX / 2;
    let fits = |length: &usize| {
        let fits = *length <= room;
        room = room.saturating_sub(length + KEY_OVERHEAD);
        fits
    };
    lengths.take(GCS_KEYS_MAX).take_while(fits).count().max(1)
}

fn version(answer: ControlAnswer) -> Option<u64> {
    match answer {
        ControlAnswer::Done(version) => Some(version.0),
        _ => None,
    }
}

fn records(answer: ControlAnswer) -> Option<Vec<Option<ControlRecord>>> {
    match answer {
        ControlAnswer::Found(_, Found::Records(found)) => {
            Some(found.into_iter().map(|one| one.map(record)).collect())
        }
        _ => None,
    }
}

fn record(found: crate::node::Record) -> ControlRecord {
    ControlRecord { version: found.version.0, value: found.value }
}

fn change(event: Event) -> ControlChange {
    ControlChange { version: event.version.0, key: event.key.bytes, value: event.value }
}

fn not_running(error: &TaskError) -> ControlError {
    ControlError::NotRunning(error.to_string())
}

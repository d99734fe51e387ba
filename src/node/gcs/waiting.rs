//! Operations of this rank on the control store: what is asked, who waits for
//! the answer, and how far watches have come.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use crate::base::limits::GCS_DEADLINE;
use crate::gcs::{Client, Event, Failure, Found, Key, Nanos, Notice, Op, Query, Refusal, Seq, ShardId, Token};
use crate::sync::{Call, Stored, Task};

/// What is asked of the store.
#[derive(Clone, PartialEq, Debug)]
pub enum ControlRequest {
    /// A change of one record.
    Command(Op),
    /// A change in one shard.
    CommandIn(ShardId, Op),
    /// A question to one shard.
    Query(ShardId, Query),
    /// To be told of changes of all records whose keys begin so; answered when
    /// all shards tell of them.
    Watch(Key),
    /// The changes since this was asked last, once there are some.
    Next(WatchId),
    /// To be told no more.
    Unwatch(WatchId),
}

/// A watch of this rank.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WatchId(u64);

/// What comes of it.
#[derive(Clone, PartialEq, Debug)]
pub enum ControlAnswer {
    /// The change was made, as this command.
    Done(Seq),
    /// What was found, as of this command.
    Found(Seq, Found),
    /// It is watched from now on.
    Watched(WatchId),
    /// Changes in order; `missed` if there may have been others before them, so
    /// that what is there must be read again.
    Changes {
        /// What changed.
        events: Vec<Event>,
        /// See above.
        missed: bool,
    },
    /// It is watched no more.
    Unwatched,
}

/// The result of an operation.
pub type ControlReply = Result<ControlAnswer, Failure>;

/// The frame of an operation: completed by the node, never run.
pub(in crate::node) struct Operation;

impl Call for Operation {
    type Output = ControlReply;
    fn run(self, _: &mut Stored<ControlReply>) {}
    fn kind(&self) -> &'static (dyn Any + Send + Sync) {
        &()
    }
}

/// Changes kept for a reader that does not come; then it is told that it has
/// missed some.
const UNREAD_MAX: usize = 64 * 1024;

/// All operations under way.
#[derive(Default)]
pub(super) struct Waiting {
    operations: FxHashMap<Token, Task>,
    watches: BTreeMap<WatchId, Watch>,
    watch_of: FxHashMap<Token, WatchId>,
    next_watch: u64,
    /// Until when watches must have begun, the earliest first.
    opening: VecDeque<(Nanos, WatchId)>,
}

/// One watch: over all shards, for keys with one beginning are in all of them.
struct Watch {
    tokens: Vec<Token>,
    /// Shards that have not begun to tell, and who waits for the last of them.
    silent: usize,
    opener: Option<Task>,
    news: VecDeque<Event>,
    missed: bool,
    reader: Option<Task>,
}

impl Waiting {
    /// Begins an operation.
    pub fn ask(&mut self, client: &mut Client, now: Nanos, request: ControlRequest, task: Task) {
        let begun = match request {
            ControlRequest::Command(op) => client.command(now, op),
            ControlRequest::CommandIn(shard, op) => client.command_in(now, shard, op),
            ControlRequest::Query(shard, query) => client.query(now, shard, query),
            ControlRequest::Watch(prefix) => return self.watch(client, now, &prefix, task),
            ControlRequest::Next(id) => return self.next(id, task),
            ControlRequest::Unwatch(id) => {
                self.unwatch(client, id);
                return answer(task, Ok(ControlAnswer::Unwatched));
            }
        };
        match begun {
            Ok(token) => {
                self.operations.insert(token, task);
            }
            Err(refusal) => answer(task, Err(refusal.into())),
        }
    }

    /// How many operations there are, besides watches.
    pub fn operations(&self) -> usize {
        self.operations.len()
    }

    /// Gives up watches that have not begun in time.
    pub fn expire(&mut self, client: &mut Client, now: Nanos) {
        while let Some((_, id)) = self.opening.pop_front_if(|(until, _)| *until <= now) {
            if let Some(task) = self.watches.get_mut(&id).and_then(|watch| watch.opener.take()) {
                self.unwatch(client, id);
                answer(task, Err(Failure::Deadline(None)));
            }
        }
    }

    /// When [`Waiting::expire`] has something to do.
    pub fn next_due(&self) -> Nanos {
        self.opening.front().map_or(Nanos::MAX, |(until, _)| *until)
    }

    /// Passes on what the client was told.
    pub fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Command(token, result) => {
                if let Some(task) = self.operations.remove(&token) {
                    answer(task, result.map(ControlAnswer::Done));
                }
            }
            Notice::Query(token, result) => {
                if let Some(task) = self.operations.remove(&token) {
                    answer(task, result.map(|(at, found)| ControlAnswer::Found(at, found)));
                }
            }
            Notice::WatchBegins(token, _) => {
                let Some((id, watch)) = self.watch_with(token) else { return };
                if watch.silent == 0 {
                    watch.missed = true;
                    watch.tell();
                } else {
                    watch.silent -= 1;
                    if watch.silent == 0
                        && let Some(task) = watch.opener.take()
                    {
                        answer(task, Ok(ControlAnswer::Watched(id)));
                    }
                }
            }
            Notice::Changed(token, events) => {
                let Some((_, watch)) = self.watch_with(token) else { return };
                watch.news.extend(events);
                if watch.news.len() > UNREAD_MAX {
                    watch.news.clear();
                    watch.missed = true;
                }
                watch.tell();
            }
        }
    }

    fn watch_with(&mut self, token: Token) -> Option<(WatchId, &mut Watch)> {
        let id = *self.watch_of.get(&token)?;
        Some((id, self.watches.get_mut(&id)?))
    }

    fn watch(&mut self, client: &mut Client, now: Nanos, prefix: &Key, task: Task) {
        let begun = client.shards().map(|shard| client.watch(now, shard, prefix.clone()));
        let tokens = match begun.collect::<Result<Vec<Token>, Refusal>>() {
            Ok(tokens) => tokens,
            // What one shard refuses, the first refuses.
            Err(refusal) => return answer(task, Err(refusal.into())),
        };
        self.next_watch += 1;
        let id = WatchId(self.next_watch);
        self.watch_of.extend(tokens.iter().map(|token| (*token, id)));
        let silent = tokens.len();
        let watch = Watch { tokens, silent, opener: Some(task), news: VecDeque::new(), missed: false, reader: None };
        self.watches.insert(id, watch);
        self.opening.push_back((now + GCS_DEADLINE.as_nanos() as Nanos, id));
    }

    fn unwatch(&mut self, client: &mut Client, id: WatchId) {
        for token in self.watches.remove(&id).map(|watch| watch.tokens).into_iter().flatten() {
            client.unwatch(token);
            self.watch_of.remove(&token);
        }
    }

    fn next(&mut self, id: WatchId, task: Task) {
        match self.watches.get_mut(&id) {
            Some(watch) => {
                watch.reader = Some(task);
                watch.tell();
            }
            None => answer(task, Ok(ControlAnswer::Unwatched)),
        }
    }
}

impl Watch {
    /// Gives the reader, if there is one, what has gathered.
    fn tell(&mut self) {
        if self.news.is_empty() && !self.missed {
            return;
        }
        if let Some(task) = self.reader.take() {
            let events = std::mem::take(&mut self.news).into();
            answer(task, Ok(ControlAnswer::Changes { events, missed: std::mem::take(&mut self.missed) }));
        }
    }
}

fn answer(task: Task, reply: ControlReply) {
    let mut reply = Some(reply);
    task.store(&mut |slot| {
        if let Some(slot) = slot.downcast_mut::<Option<Stored<ControlReply>>>() {
            *slot = reply.take().map(Stored::Value);
        }
    });
}

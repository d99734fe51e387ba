//! What others use the store through: finds the shard and the replica, keeps
//! many operations under way, asks again after losses and changes of the chain.
//! However often it asks, a command happens once.

#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;
use twox_hash::XxHash3_128;

use self::window::Window;
use super::message::{Action, Address, Body, ChainConfig, Epoch, Message, Nanos, ReplicaId, ShardId, Watch};
use super::record::{Key, Refusal, Seq, check_prefix};
use super::state::{ClientId, Command, Event, Found, Op, Query};
use super::timing::Timing;
use crate::base::Rank;
use crate::base::limits::{GCS_FORWARD_BYTES_MAX, GCS_PAGE_BYTES_MAX};

/// What a client is made with.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Who it is.
    pub me: ClientId,
    /// Where the members of the configuration quorum are.
    pub quorum: Vec<Rank>,
    /// The chains at the start of the job: one for each shard, in order.
    pub founding: Vec<ChainConfig>,
    /// The periods of the protocol.
    pub timing: Timing,
    /// How long an operation may take.
    pub deadline: Nanos,
}

/// An operation of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// Why an operation ended without an answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Failure {
    /// The store cannot do this, and did nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No answer within the deadline. A command may have happened, or may still.
    #[error("no answer within the deadline{}", because(.0))]
    Deadline(Option<Cause>),
}

/// What is known of why there was no answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Cause {
    /// A replica could not carry it out for the time being.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The head cannot be reached from here, and the chain goes on with it, for
    /// others can. Only the head takes commands.
    #[error(
        "the connection with {head}, the head of shard {}, has ended, and nobody has taken its place: check the network \
         between the two, and start the job again", shard.0
    )]
    CutOff {
        /// Where the head is.
        head: Rank,
        /// Whose.
        shard: ShardId,
    },
}

fn because(cause: &Option<Cause>) -> String {
    const UNKNOWN: &str = ": none of its replicas has answered. They, or most members of the quorum, may be gone or cut \
                           off: COLLIMATE_LOG=1 shows which ranks were lost";
    cause.as_ref().map_or_else(|| UNKNOWN.into(), |cause| format!(": {cause}"))
}

/// What a client is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A command has ended.
    Command(Token, Result<Seq, Failure>),
    /// A query has: what was found, and as of which command.
    Query(Token, Result<(Seq, Found), Failure>),
    /// What is watched has changed, in this order.
    Changed(Token, Vec<Event>),
    /// A watch begins: read what is there, at this place in the order or later.
    /// Not only at first: also when changes may have been missed because the
    /// watch was out of touch for too long.
    WatchBegins(Token, Seq),
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    shards: Vec<Shard>,
    next_token: u64,
    notices: Vec<Notice>,
    turn: u64,
}

#[derive(Debug)]
struct Shard {
    chain: ChainConfig,
    commands: Window,
    queries: BTreeMap<u64, Attempt<Query>>,
    /// Those that have never been sent.
    new_queries: Vec<u64>,
    watches: BTreeMap<u64, WatchState>,
    /// Before this nothing has to be sent again or takes too long, so that
    /// nothing is looked through in most turns.
    look_at: Nanos,
    locate_at: Nanos,
    locates: u64,
    /// Members of the chain with which there is no connection any more.
    gone: BTreeSet<ReplicaId>,
    /// The whole quorum is to be asked for the next chain.
    ask_all: bool,
}

#[derive(Debug)]
struct Attempt<T> {
    token: Token,
    what: T,
    deadline: Nanos,
    again_at: Nanos,
    tries: u32,
    cause: Option<Refusal>,
}

#[derive(Debug)]
struct WatchState {
    prefix: Key,
    since: Option<Seq>,
    renew_at: Nanos,
    replica: u64,
    heard_at: Nanos,
}

/// Which shard of so many a key belongs to.
pub fn shard_of(key: &Key, shards: usize) -> ShardId {
    if shards == 1 {
        return ShardId(0);
    }
    let hash = XxHash3_128::oneshot_with_seed(key.table as u64, &key.bytes) as u64;
    ShardId(((u128::from(hash) * shards as u128) >> 64) as u16)
}

impl Client {
    /// A client of a store with these shards.
    pub fn new(options: ClientOptions) -> Client {
        let shard = |chain: &ChainConfig| Shard {
            chain: chain.clone(),
            commands: Window::new(),
            queries: BTreeMap::new(),
            new_queries: Vec::new(),
            watches: BTreeMap::new(),
            look_at: Nanos::MAX,
            locate_at: 0,
            locates: 0,
            gone: BTreeSet::new(),
            ask_all: false,
        };
        let shards = options.founding.iter().map(shard).collect();
        let turn = u64::from(options.me.rank.0);
        Client { options, shards, next_token: 1, notices: Vec::new(), turn }
    }

    /// Who it is.
    pub fn id(&self) -> ClientId {
        self.options.me
    }

    /// All shards.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.shards.len() as u16).map(ShardId)
    }

    /// Which shard a key belongs to.
    pub fn shard_of(&self, key: &Key) -> ShardId {
        shard_of(key, self.shards.len())
    }

    /// The epoch of a shard as it is known here.
    pub fn epoch(&self, shard: ShardId) -> Epoch {
        self.shards.get(usize::from(shard.0)).map_or(Epoch(0), |shard| shard.chain.epoch)
    }

    /// Has something changed in the shard of the key.
    ///
    /// # Errors
    /// If a limit is not kept.
    pub fn command(&mut self, now: Nanos, op: Op) -> Result<Token, Refusal> {
        let shard = op.key().map_or(ShardId(0), |key| self.shard_of(key));
        self.command_in(now, shard, op)
    }

    /// Has something changed in one shard: what concerns more than one key is
    /// asked of each.
    ///
    /// # Errors
    /// If a limit is not kept.
    pub fn command_in(&mut self, now: Nanos, shard: ShardId, op: Op) -> Result<Token, Refusal> {
        op.check()?;
        let attempt = self.attempt(now, op);
        let token = attempt.token;
        let shard = &mut self.shards[usize::from(shard.0)];
        shard.look_at = shard.look_at.min(attempt.deadline);
        shard.commands.push(attempt);
        Ok(token)
    }

    /// Asks one shard, to which all keys of the query must belong.
    ///
    /// # Errors
    /// If a limit is not kept.
    pub fn query(&mut self, now: Nanos, shard: ShardId, query: Query) -> Result<Token, Refusal> {
        query.check()?;
        let attempt = self.attempt(now, query);
        let token = attempt.token;
        let shard = &mut self.shards[usize::from(shard.0)];
        shard.look_at = shard.look_at.min(attempt.deadline);
        shard.new_queries.push(token.0);
        shard.queries.insert(token.0, attempt);
        Ok(token)
    }

    /// Is told of all changes in one shard whose keys begin so, until
    /// [`unwatch`](Client::unwatch).
    ///
    /// # Errors
    /// If no key may begin so.
    pub fn watch(&mut self, now: Nanos, shard: ShardId, prefix: Key) -> Result<Token, Refusal> {
        check_prefix(&prefix.bytes)?;
        let token = self.attempt(now, ()).token;
        let replica = self.next_turn();
        let watch = WatchState { prefix, since: None, renew_at: now, replica, heard_at: now };
        let shard = &mut self.shards[usize::from(shard.0)];
        shard.look_at = shard.look_at.min(now);
        shard.watches.insert(token.0, watch);
        Ok(token)
    }

    /// Up to where a watch has told of everything; nothing before it begins.
    pub fn watched_through(&self, token: Token) -> Option<Seq> {
        self.shards.iter().find_map(|shard| shard.watches.get(&token.0))?.since
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, token: Token) {
        for shard in &mut self.shards {
            shard.watches.remove(&token.0);
        }
    }

    /// Takes what has happened since this was asked last.
    pub fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// Operations under way.
    pub fn under_way(&self) -> usize {
        self.shards.iter().map(|shard| shard.commands.len() + shard.queries.len()).sum()
    }

    fn attempt<T>(&mut self, now: Nanos, what: T) -> Attempt<T> {
        self.next_token += 1;
        let token = Token(self.next_token);
        Attempt { token, what, deadline: now + self.options.deadline, again_at: Nanos::MAX, tries: 0, cause: None }
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// Takes a message.
    pub fn receive(&mut self, now: Nanos, message: Message) {
        let me = self.options.me;
        let Some(shard) = self.shards.get_mut(usize::from(message.shard.0)) else { return };
        match message.body {
            Body::Outcomes(outcomes) => {
                for (_, number, outcome) in outcomes.into_iter().filter(|(client, ..)| *client == me) {
                    if let Some(attempt) = shard.commands.remove(number) {
                        self.notices.push(Notice::Command(attempt.token, outcome.map_err(Failure::Refused)));
                    }
                }
            }
            Body::Answers(client, answers) if client == me => {
                for (token, answer) in answers {
                    if shard.queries.remove(&token).is_some() {
                        self.notices.push(Notice::Query(Token(token), answer.map_err(Failure::Refused)));
                    }
                }
            }
            Body::NotNow(client, numbers, why) if client == me => {
                let again_at = now + self.options.timing.resend / 2;
                shard.look_at = shard.look_at.min(again_at);
                for number in numbers {
                    // Numbers of commands and of queries are told apart by what
                    // was asked; a pause that meets the wrong one does no harm.
                    for cause in [
                        shard.commands.get_mut(number).map(|a| (&mut a.cause, &mut a.again_at)),
                        shard.queries.get_mut(&number).map(|a| (&mut a.cause, &mut a.again_at)),
                    ] {
                        let Some((cause, at)) = cause else { continue };
                        *cause = Some(why.clone());
                        *at = again_at;
                    }
                }
            }
            Body::Chain(Some(chain)) => shard.adopt(now, chain),
            Body::Chain(None) => shard.locate_at = now,
            Body::Changes(changes) if changes.client == me => {
                let Some(watch) = shard.watches.get_mut(&changes.number) else { return };
                let token = Token(changes.number);
                watch.heard_at = now;
                match watch.since {
                    Some(since) if !changes.afresh => {
                        if changes.after > since {
                            // Some were lost on the way.
                            watch.renew_at = now;
                            shard.look_at = now;
                            return;
                        }
                        let news: Vec<Event> =
                            changes.events.into_iter().filter(|event| event.version > since).collect();
                        watch.since = Some(since.max(changes.through));
                        if !news.is_empty() {
                            self.notices.push(Notice::Changed(token, news));
                        }
                    }
                    Some(since) if changes.through <= since => {}
                    None if !changes.afresh => {}
                    _ => {
                        watch.since = Some(changes.through);
                        self.notices.push(Notice::WatchBegins(token, changes.through));
                    }
                }
            }
            _ => {}
        }
    }

    /// Sends what is due, first and again, and ends what took too long.
    pub fn flush(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let Client { options, shards, notices, turn, .. } = self;
        for shard in shards {
            let look = now >= shard.look_at;
            if look {
                shard.look_at = Nanos::MAX;
                shard.expire(now, notices);
                shard.send_watches(now, options, turn, out);
            }
            shard.send_commands(now, look, options, out);
            shard.send_queries(now, look, options, turn, out);
            if look {
                shard.look_at = shard.next_look();
            }
            shard.locate(now, options, out);
        }
    }
}

/// Connections and time.
impl Client {
    /// The connection with a rank has ended. What its replicas were asked is asked
    /// of others, and the quorum is asked for the chains without them.
    pub fn ended(&mut self, now: Nanos, rank: Rank) {
        let of_quorum = self.options.quorum.contains(&rank);
        for shard in &mut self.shards {
            let gone = shard.chain.members.iter().filter(|member| member.rank == rank);
            let known = shard.gone.len();
            shard.gone.extend(gone);
            if shard.gone.len() > known {
                shard.queries.values_mut().for_each(|attempt| attempt.hurry(now));
                shard.watches.values_mut().for_each(|watch| watch.renew_at = now);
                shard.look_at = now;
            }
            // A member of the quorum may have ended with the question.
            if shard.gone.len() > known || of_quorum && !shard.gone.is_empty() {
                shard.ask_all = true;
                shard.locate_at = now;
            }
        }
    }

    /// When [`flush`](Client::flush) has something to do, if nothing comes before.
    pub fn next_due(&self) -> Nanos {
        if !self.notices.is_empty() {
            return 0;
        }
        self.shards.iter().map(Shard::next_due).min().unwrap_or(Nanos::MAX)
    }
}

impl Shard {
    fn next_due(&self) -> Nanos {
        if self.commands.has_news() || !self.new_queries.is_empty() {
            return 0;
        }
        self.look_at.min(self.locate_at)
    }

    /// When something of what has been sent is due again or takes too long.
    fn next_look(&self) -> Nanos {
        let commands = self.commands.iter().map(Attempt::due);
        let queries = self.queries.values().map(Attempt::due);
        let renewals = self.watches.values().map(|watch| watch.renew_at);
        commands.chain(queries).chain(renewals).min().unwrap_or(Nanos::MAX)
    }

    /// A later chain: what is under way goes to it at once.
    fn adopt(&mut self, now: Nanos, chain: ChainConfig) {
        if chain.shard != self.chain.shard || chain.epoch <= self.chain.epoch {
            return;
        }
        self.chain = chain;
        // Of several that end at once the quorum removes one after the other: the
        // chain without the rest is still to come.
        self.gone.retain(|member| self.chain.position(*member).is_some());
        self.ask_all = !self.gone.is_empty();
        if self.ask_all {
            self.locate_at = now;
        }
        self.commands.iter_mut().for_each(|attempt| attempt.hurry(now));
        self.queries.values_mut().for_each(|attempt| attempt.hurry(now));
        self.watches.values_mut().for_each(|watch| watch.renew_at = now);
        self.look_at = now;
    }

    fn expire(&mut self, now: Nanos, notices: &mut Vec<Notice>) {
        let head = self.chain.head().filter(|head| self.gone.contains(head));
        let cut_off = head.map(|head| Cause::CutOff { head: head.rank, shard: self.chain.shard });
        self.commands.expire(now, |token, cause| {
            let cause = cut_off.clone().or(cause.map(Cause::Refused));
            notices.push(Notice::Command(token, Err(Failure::Deadline(cause))));
        });
        self.queries.retain(|_, attempt| {
            let over = now >= attempt.deadline;
            if over {
                notices.push(Notice::Query(attempt.token, Err(Failure::Deadline(attempt.cause.take().map(Cause::Refused)))));
            }
            !over
        });
    }

    /// All commands that are due, in as few messages to the head as they fit.
    fn send_commands(&mut self, now: Nanos, again: bool, options: &ClientOptions, out: &mut Vec<Action>) {
        if !again && !self.commands.has_news() {
            return;
        }
        let Shard { chain, commands, locate_at, look_at, .. } = self;
        let (client, settled, head) = (options.me, commands.settled(), chain.head());
        let mut message = Vec::new();
        let mut room = GCS_FORWARD_BYTES_MAX;
        for (number, attempt) in commands.due(now, again) {
            attempt.delay(now, options.timing);
            *look_at = (*look_at).min(attempt.again_at);
            if attempt.tries > 2 {
                *locate_at = (*locate_at).min(now);
            }
            let bytes = attempt.what.bytes();
            if bytes > room && !message.is_empty() {
                room = GCS_FORWARD_BYTES_MAX;
                send(chain, head, Body::Commands(std::mem::take(&mut message)), out);
            }
            room = room.saturating_sub(bytes);
            message.push(Command { client, number, settled, op: attempt.what.clone() });
        }
        if !message.is_empty() {
            send(chain, head, Body::Commands(message), out);
        }
    }

    /// All queries that are due, in as few messages as they fit; each to another
    /// member.
    fn send_queries(
        &mut self,
        now: Nanos,
        again: bool,
        options: &ClientOptions,
        turn: &mut u64,
        out: &mut Vec<Action>,
    ) {
        let mut due = std::mem::take(&mut self.new_queries);
        if again {
            let is_due = |attempt: &Attempt<Query>| attempt.tries == 0 || attempt.again_at <= now;
            due = self.queries.iter().filter(|(_, attempt)| is_due(attempt)).map(|(token, _)| *token).collect();
        }
        let mut messages: Vec<Vec<(u64, Query)>> = Vec::new();
        let mut room = 0;
        for token in due {
            if let Some(attempt) = self.queries.get_mut(&token) {
                attempt.delay(now, options.timing);
                self.look_at = self.look_at.min(attempt.again_at);
                if attempt.tries > 2 {
                    self.locate_at = self.locate_at.min(now);
                }
                let bytes = attempt.what.bytes();
                match messages.last_mut().filter(|last| last.len() < QUERIES_AT_ONCE && bytes <= room) {
                    Some(last) => last.push((token, attempt.what.clone())),
                    None => {
                        room = GCS_PAGE_BYTES_MAX;
                        messages.push(vec![(token, attempt.what.clone())]);
                    }
                }
                room = room.saturating_sub(bytes);
            }
        }
        for queries in messages {
            *turn += 1;
            self.send(self.member(*turn), Body::Queries(options.me, queries), out);
        }
    }

    fn send_watches(&mut self, now: Nanos, options: &ClientOptions, turn: &mut u64, out: &mut Vec<Action>) {
        let patience = options.timing.watch / 2;
        let mut messages = Vec::new();
        for (number, watch) in &mut self.watches {
            if watch.renew_at > now {
                continue;
            }
            watch.renew_at = now + options.timing.watch / 8;
            if now > watch.heard_at + patience {
                *turn += 1;
                watch.replica = *turn;
                watch.heard_at = now;
                self.locate_at = self.locate_at.min(now);
            }
            let prefix = watch.prefix.clone();
            let message = Watch { client: options.me, number: *number, prefix, since: watch.since };
            messages.push((watch.replica, message));
        }
        for (replica, message) in messages {
            self.send(self.member(replica), Body::Watch(message), out);
        }
    }

    /// Asks for the chain, when there are signs that it has changed.
    fn locate(&mut self, now: Nanos, options: &ClientOptions, out: &mut Vec<Action>) {
        if self.locate_at > now {
            return;
        }
        self.locate_at = now + options.timing.watch;
        if self.commands.len() + self.queries.len() + self.watches.len() > 0 {
            self.locate_at = now + options.timing.detection;
        }
        self.locates += 1;
        let members = options.quorum.len() as u64;
        let turn = (self.locates + u64::from(options.me.rank.0)).checked_rem(members);
        let ask_all = std::mem::take(&mut self.ask_all);
        for (place, rank) in options.quorum.iter().enumerate() {
            if ask_all || turn == Some(place as u64) {
                let message = Message { shard: self.chain.shard, epoch: self.chain.epoch, body: Body::Locate };
                out.push(Action::Send(Address::Quorum(*rank), message));
            }
        }
    }

    /// Some member that is not known to be gone. If all are, any: what is told of
    /// an end may be of an earlier life.
    fn member(&self, turn: u64) -> Option<ReplicaId> {
        let members = &self.chain.members;
        let there: Vec<&ReplicaId> = members.iter().filter(|member| !self.gone.contains(member)).collect();
        let index = |count: usize| turn.checked_rem(count as u64).map(|index| index as usize);
        match index(there.len()) {
            Some(index) => there.get(index).copied().copied(),
            None => members.get(index(members.len())?).copied(),
        }
    }

    fn send(&self, to: Option<ReplicaId>, body: Body, out: &mut Vec<Action>) {
        send(&self.chain, to, body, out);
    }
}

fn send(chain: &ChainConfig, to: Option<ReplicaId>, body: Body, out: &mut Vec<Action>) {
    if let Some(replica) = to {
        let message = Message { shard: chain.shard, epoch: chain.epoch, body };
        out.push(Action::Send(Address::Replica(replica.rank), message));
    }
}

/// Queries in one message.
const QUERIES_AT_ONCE: usize = 64;

impl<T> Attempt<T> {
    /// When it must be looked at. What has never been sent is known by itself.
    fn due(&self) -> Nanos {
        self.again_at.min(self.deadline)
    }

    /// If it has been sent, it is sent again.
    fn hurry(&mut self, now: Nanos) {
        if self.tries > 0 {
            self.again_at = now;
        }
    }

    /// Each time it waits longer for the answer, up to the detection time.
    fn delay(&mut self, now: Nanos, timing: Timing) {
        let patience = (timing.resend << self.tries.min(8)).min(timing.detection * 2);
        self.again_at = now + patience;
        self.tries += 1;
    }
}

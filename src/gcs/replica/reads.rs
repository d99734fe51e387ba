//! Reads: who may answer them and when. Queries are answered by any member that
//! holds a lease; where changes are under way it asks the tail first. Watches
//! tell of what is committed.

use std::collections::BTreeMap;

use super::super::bug::Bug;
use super::super::message::{Action, Address, Body, Changes, Nanos, ReplicaId, Watch};
use super::super::record::{Refusal, Seq};
use super::super::state::{ClientId, Event, Query};
use super::Replica;
use crate::base::limits::{GCS_PAGE_BYTES_MAX, GCS_PARKED_MAX, GCS_WATCHES_MAX};

/// The right to answer reads in this epoch: a majority of the quorum has granted
/// it within the lease period, counted from before they did.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Lease {
    /// The clock of the latest beat that each member answered with a grant.
    granted: Vec<Option<Nanos>>,
    /// Grants that answer beats up to these count no more.
    revoked: Vec<Option<Nanos>>,
}

impl Lease {
    pub(super) fn new(members: usize) -> Lease {
        Lease { granted: vec![None; members], revoked: vec![None; members] }
    }

    pub(super) fn grant(&mut self, member: Option<usize>, echo: Nanos) {
        let Some(member) = member else { return };
        if self.revoked[member] < Some(echo) {
            self.granted[member] = self.granted[member].max(Some(echo));
        }
    }

    /// What a member has granted counts no more, nor what it may still say to
    /// beats up to now.
    pub(super) fn revoke(&mut self, member: usize, now: Nanos) {
        self.granted[member] = None;
        self.revoked[member] = Some(now);
    }


    fn holds(&self, now: Nanos, period: Nanos) -> bool {
        let alive = self.granted.iter().filter(|granted| granted.is_some_and(|at| now < at + period)).count();
        alive > self.granted.len() / 2
    }
}

/// Queries that wait for the tail.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Parked {
    /// The number of the question that must be answered.
    question: u64,
    client: ClientId,
    number: u64,
    query: Query,
}

/// A query that waits for a lease, or for the link of an epoch that has just
/// begun.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Waiting {
    since: Nanos,
    client: ClientId,
    number: u64,
    query: Query,
}

/// Somebody who is told of changes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Watcher {
    watch: Watch,
    /// Everything up to here was looked through.
    scanned: Seq,
    /// The last message went up to here.
    told: Seq,
    /// A message is due even without changes.
    due: bool,
    pub(super) expires: Nanos,
}

impl Replica {
    /// Whether it may answer reads now.
    pub fn may_read(&self, now: Nanos) -> bool {
        self.serves() && self.is_leased(now) && self.has_committed()
    }

    pub(super) fn is_leased(&self, now: Nanos) -> bool {
        self.lease.holds(now, self.options.timing.lease) || self.options.bugs.has(Bug::DropLease)
    }

    /// Whether a tail has committed everything that an earlier one may have:
    /// it has that since its link stands, but commits it only once it is granted
    /// a lease, and with disks once those before it say that it is on theirs.
    fn has_committed(&self) -> bool {
        let caught_up = self.link_target.is_none_or(|target| self.state.applied() >= target);
        !self.is_tail() || (self.open || self.options.bugs.has(Bug::CommitEarly)) && caught_up
    }

    pub(super) fn on_queries(
        &mut self,
        now: Nanos,
        client: ClientId,
        queries: Vec<(u64, Query)>,
        out: &mut Vec<Action>,
    ) {
        if self.parked.len() + self.waiting.len() + queries.len() > GCS_PARKED_MAX || self.position().is_none() {
            let numbers = queries.into_iter().map(|(number, _)| number).collect();
            return self.send(Address::Client(client.rank), Body::NotNow(client, numbers, Refusal::Busy), out);
        }
        if !self.may_read(now) {
            let waiting = queries.into_iter().map(|(number, query)| Waiting { since: now, client, number, query });
            return self.waiting.extend(waiting);
        }
        let is_tail = self.is_tail();
        let mut answers = Vec::new();
        let mut room = GCS_PAGE_BYTES_MAX;
        for (number, query) in queries {
            if let Err(refusal) = query.check() {
                answers.push((number, Err(refusal)));
            } else if is_tail || self.options.bugs.has(Bug::ReadDirty) || !self.is_about_to_change(&query) {
                let found = self.state.answer(&query);
                let bytes = found.bytes();
                if bytes > room && !answers.is_empty() {
                    let body = Body::Answers(client, std::mem::take(&mut answers));
                    self.send(Address::Client(client.rank), body, out);
                    room = GCS_PAGE_BYTES_MAX;
                }
                room = room.saturating_sub(bytes);
                answers.push((number, Ok((self.state.applied(), found))));
            } else {
                let question = self.asked + 1;
                self.parked.push_back(Parked { question, client, number, query });
                self.turn.ask_tail = true;
            }
        }
        if !answers.is_empty() {
            self.send(Address::Client(client.rank), Body::Answers(client, answers), out);
        }
    }

    /// Whether a command under way touches what is asked for.
    fn is_about_to_change(&mut self, query: &Query) -> bool {
        self.under_way.touches(query, self.log.from(self.state.applied().next()))
    }

    /// A query that was parked waits for what the next epoch brings.
    pub(super) fn wait(&mut self, now: Nanos, parked: Parked, out: &mut Vec<Action>) {
        if self.position().is_none() {
            return self.put_off(parked, out);
        }
        let Parked { client, number, query, .. } = parked;
        self.waiting.push_back(Waiting { since: now, client, number, query });
    }

    /// Answers what has waited for a lease and for the link, if they are there.
    pub(super) fn answer_waiting(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if self.waiting.is_empty() && self.askers.is_empty() || !self.may_read(now) {
            return;
        }
        for (asker, number) in std::mem::take(&mut self.askers) {
            self.on_tail(now, asker, number, out);
        }
        let mut of_clients: BTreeMap<ClientId, Vec<(u64, Query)>> = BTreeMap::new();
        for Waiting { client, number, query, .. } in std::mem::take(&mut self.waiting) {
            of_clients.entry(client).or_default().push((number, query));
        }
        for (client, queries) in of_clients {
            self.on_queries(now, client, queries, out);
        }
    }

    /// Who has waited in vain is told to ask again.
    pub(super) fn waiting_too_long(&mut self, now: Nanos) {
        let patience = self.options.timing.resend;
        let late = self.waiting.partition_point(|waiting| waiting.since + patience <= now);
        let numbers = self.waiting.drain(..late).map(|waiting| (waiting.client, waiting.number)).collect::<Vec<_>>();
        for (client, number) in numbers {
            self.turn.put_off.entry(client).or_default().push(number);
        }
    }

    /// Says so.
    pub(super) fn tell_put_off(&mut self, out: &mut Vec<Action>) {
        for (client, numbers) in std::mem::take(&mut self.turn.put_off) {
            let why = Refusal::NoLease(self.options.me.rank);
            self.send(Address::Client(client.rank), Body::NotNow(client, numbers, why), out);
        }
    }

    /// One question for all queries of the turn.
    pub(super) fn ask_tail(&mut self, out: &mut Vec<Action>) {
        if !std::mem::take(&mut self.turn.ask_tail) {
            return;
        }
        if let Some(tail) = self.chain.as_ref().and_then(|chain| chain.tail()) {
            self.asked += 1;
            self.send(Address::Replica(tail.rank), Body::Tail(self.options.me, self.asked), out);
        }
    }

    pub(super) fn on_tail(&mut self, now: Nanos, asker: ReplicaId, number: u64, out: &mut Vec<Action>) {
        if !self.is_tail() {
            return;
        }
        if self.may_read(now) {
            self.send(Address::Replica(asker.rank), Body::TailIs(number, self.state.applied()), out);
        } else if self.chain.as_ref().is_some_and(|chain| chain.position(asker).is_some()) {
            let asked = self.askers.entry(asker).or_default();
            *asked = number.max(*asked);
        }
    }

    pub(super) fn on_tail_is(&mut self, now: Nanos, number: u64, seq: Seq, out: &mut Vec<Action>) {
        if self.is_tail() || self.position().is_none() {
            return;
        }
        self.turn.commit_to_tell = true;
        self.advance(seq);
        let reads = self.may_read(now) && self.state.applied() >= seq;
        while self.parked.front().is_some_and(|parked| parked.question <= number) {
            let Some(parked) = self.parked.pop_front() else { break };
            if reads {
                let answer = Ok((self.state.applied(), self.state.answer(&parked.query)));
                let body = Body::Answers(parked.client, vec![(parked.number, answer)]);
                self.send(Address::Client(parked.client.rank), body, out);
            } else {
                self.put_off(parked, out);
            }
        }
    }

    pub(super) fn put_off(&self, parked: Parked, out: &mut Vec<Action>) {
        let body = Body::NotNow(parked.client, vec![parked.number], Refusal::Busy);
        self.send(Address::Client(parked.client.rank), body, out);
    }

    pub(super) fn on_watch(&mut self, now: Nanos, watch: Watch) {
        let known = self.watchers.contains_key(&(watch.client, watch.number));
        if !self.serves() || !known && self.watchers.len() >= GCS_WATCHES_MAX {
            return;
        }
        // A watch without a place begins with what is committed now.
        let told = watch.since.unwrap_or(self.state.applied());
        let expires = now + self.options.timing.watch;
        let key = (watch.client, watch.number);
        self.watchers.insert(key, Watcher { scanned: told, told, due: true, expires, watch });
        self.turn.applied = true;
    }

    pub(super) fn tell_watchers(&mut self, out: &mut Vec<Action>) {
        if !std::mem::take(&mut self.turn.applied) || !self.complete {
            return;
        }
        let applied = self.state.applied();
        let mut messages = Vec::new();
        for watcher in self.watchers.values_mut() {
            let Watch { client, number, ref prefix, since } = watcher.watch;
            let changes = self.state.changes(watcher.scanned);
            let begins = watcher.due && since.is_none();
            let mut message = Changes {
                client,
                number,
                after: watcher.told,
                events: Vec::new(),
                through: watcher.scanned.max(applied),
                afresh: changes.is_none() || begins,
            };
            let matches =
                |event: &&Event| event.key.table == prefix.table && event.key.bytes.starts_with(&prefix.bytes);
            let mut room = GCS_PAGE_BYTES_MAX;
            for event in changes.into_iter().flatten().filter(matches) {
                let bytes = event.key.bytes.len() + event.value.as_ref().map_or(0, |v| v.len()) + 32;
                if bytes > room && !message.events.is_empty() {
                    // A message ends between commands, never within one. The
                    // changes of a single one that are too many are not told:
                    // there is another state to begin with.
                    message.events.retain(|before: &Event| before.version < event.version);
                    message.afresh |= message.events.is_empty();
                    message.through = message.events.last().map_or(event.version, |last| last.version);
                    break;
                }
                room = room.saturating_sub(bytes);
                message.events.push(event.clone());
            }
            watcher.scanned = message.through;
            if std::mem::take(&mut watcher.due) || message.afresh || !message.events.is_empty() {
                watcher.told = message.through;
                self.turn.applied |= message.through < applied;
                messages.push((client, message));
            }
        }
        for (client, message) in messages {
            self.send(Address::Client(client.rank), Body::Changes(message), out);
        }
    }
}

//! The way of a command through a replica: the head gives it a place, each
//! passes it on, the tail commits it, and the word of that goes back.

use std::collections::VecDeque;

use super::super::bug::Bug;
use super::super::log;
use super::super::message::{Action, Address, Body, Entry, Forward, Nanos};
use super::super::record::{Refusal, Seq};
use super::super::state::{Command, Standing};
use super::Replica;
use crate::base::limits::{GCS_FORWARD_BYTES_MAX, GCS_LOG_ENTRIES_MAX, GCS_LOG_REWRITE_BYTES, MESSAGE_BYTES_MAX};

/// Outcomes in one message: with a client, a number and a place each fits, and
/// no client has more under way.
const OUTCOMES_AT_ONCE: usize = 1024;
const _: () = assert!(OUTCOMES_AT_ONCE * 32 + 1024 <= MESSAGE_BYTES_MAX);

impl Replica {
    /// Commands from a client: only the head takes them.
    pub(super) fn on_commands(&mut self, commands: Vec<Command>, out: &mut Vec<Action>) {
        let Some(client) = commands.first().map(|command| command.client) else { return };
        if !self.is_head() {
            return self.send(Address::Client(client.rank), Body::Chain(self.chain.clone()), out);
        }
        let mut put_off = Vec::new();
        let obstacle = if self.serves() { self.obstacle() } else { Some(Refusal::Busy) };
        for command in commands {
            let dedup = !self.options.bugs.has(Bug::DoubleApply);
            match self.state.standing(&command) {
                Standing::Done(outcome) if dedup => {
                    let outcomes = self.turn.outcomes.entry(command.client.rank).or_default();
                    outcomes.push((command.client, command.number, outcome));
                    continue;
                }
                Standing::Settled if dedup => continue,
                _ if dedup && self.under_way.has(&command, from(&self.log, self.state.applied().next())) => {
                    // It waits for what all others wait for.
                    if obstacle.is_some() {
                        put_off.push(command.number);
                    }
                    continue;
                }
                _ => {}
            }
            let full = self.last.0 - self.state.applied().0 >= GCS_LOG_ENTRIES_MAX as u64;
            if obstacle.is_some() || full {
                put_off.push(command.number);
                continue;
            }
            if self.options.bugs.has(Bug::AcknowledgeAtHead) {
                let outcomes = self.turn.outcomes.entry(command.client.rank).or_default();
                outcomes.push((command.client, command.number, Ok(self.last.next())));
            }
            self.keep(Entry { seq: self.last.next(), command });
        }
        if !put_off.is_empty() {
            let why = obstacle.unwrap_or(Refusal::Busy);
            self.send(Address::Client(client.rank), Body::NotNow(client, put_off, why), out);
        }
    }

    /// Adds the next command to the log.
    pub(super) fn keep(&mut self, entry: Entry) {
        self.last = entry.seq;
        self.under_way.add(&entry.command);
        self.log.push_back(entry);
    }

    /// Commands from the predecessor.
    pub(super) fn on_forward(&mut self, from: Address, forward: Forward) {
        let stale = self.options.bugs.has(Bug::SkipEpochCheck);
        let expected = self.predecessor().is_some_and(|before| Address::Replica(before.rank) == from);
        if !self.complete || !expected && !stale {
            return;
        }
        let had = self.last;
        if forward.after > self.last {
            self.turn.link_due = Some(true);
            return;
        }
        for entry in forward.entries {
            if entry.seq == self.last.next() {
                self.keep(entry);
            }
        }
        self.upstream_durable = self.upstream_durable.max(forward.durable);
        if let Some(target) = forward.link {
            self.link_target = Some(target);
        }
        self.link_up();
        if self.last == had {
            // The one before may not know what it is told again.
            self.turn.commit_to_tell = true;
        } else {
            self.turn.word_owed |= self.is_tail();
        }
        if self.position().is_none() {
            self.turn.link_due.get_or_insert(false);
            self.advance(self.last);
        }
    }

    /// The link stands when everything is here that the predecessor had when it
    /// was made, and on disk where that counts.
    pub(super) fn link_up(&mut self) {
        let has = if self.options.durable { self.last.min(self.synced) } else { self.last };
        if !self.linked && self.complete && self.link_target.is_some_and(|target| has >= target) {
            self.linked = true;
            if self.position().is_some() && !self.proven {
                self.proven = true;
                if self.options.durable {
                    self.log_bytes = usize::MAX;
                }
            }
            self.turn.beat_due = true;
        }
    }

    /// Passes on what the successor has not been sent.
    pub(super) fn forward(&mut self, out: &mut Vec<Action>) {
        let Some(successor) = self.successor() else { return };
        // One that joins gets nothing that might still come to nothing.
        let end = if self.is_tail() { self.state.applied() } else { self.last };
        let durable = self.durable();
        let durable_news = self.options.durable && durable > self.turn.told_durable;
        let Some(downstream) = &mut self.downstream else { return };
        let mut first_message = durable_news || std::mem::take(&mut downstream.probe_due);
        let mut messages = Vec::new();
        while downstream.sent < end || first_message {
            first_message = false;
            let after = downstream.sent;
            let mut entries = Vec::new();
            let mut bytes = 0;
            for entry in from(&self.log, after.next()).take_while(|entry| entry.seq <= end) {
                bytes += log::entry_bytes(entry);
                if bytes > GCS_FORWARD_BYTES_MAX && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
            downstream.sent = entries.last().map_or(end.max(after), |entry: &Entry| entry.seq);
            messages.push(Forward { to: successor, after, entries, durable, link: downstream.link_target });
        }
        if !messages.is_empty() {
            self.turn.told_durable = durable;
        }
        for message in messages {
            self.send(Address::Replica(successor.rank), Body::Forward(message), out);
        }
        if self.options.bugs.has(Bug::TruncateEarly) && !self.is_tail() {
            let sent = self.downstream.as_ref().map_or(Seq(0), |downstream| downstream.sent);
            self.advance(sent);
        }
    }

    /// Up to here commands are on the disks of this member and all before it.
    fn durable(&self) -> Seq {
        if self.options.durable && !self.options.bugs.has(Bug::SkipSync) {
            self.synced.min(self.upstream_durable)
        } else {
            Seq(u64::MAX)
        }
    }

    /// The tail commits what has passed every member.
    pub(super) fn commit_as_tail(&mut self) {
        if self.is_tail() && self.serves() {
            let through = self.last.min(self.durable());
            if through > self.state.applied() {
                self.turn.word_owed = true;
                self.advance(through);
            }
        }
    }

    /// Carries out what is committed.
    pub(super) fn advance(&mut self, through: Seq) {
        let answers = self.is_tail() && self.serves();
        let through = through.min(self.last);
        let Replica { state, log, under_way, turn, options, .. } = self;
        for entry in from(log, state.applied().next()).take_while(|entry| entry.seq <= through) {
            if entry.seq != state.applied().next() {
                break;
            }
            let command = &entry.command;
            let outcome = state.apply(entry.seq, command, options.bugs);
            under_way.remove(command);
            turn.applied = true;
            if let Some(outcome) = outcome.filter(|_| answers) {
                let outcomes = turn.outcomes.entry(command.client.rank).or_default();
                outcomes.push((command.client, command.number, outcome));
            }
        }
        if state.applied() == self.last {
            under_way.rest();
        }
        self.trim();
    }

    /// Drops from the log what nobody will ask for: what is committed, except
    /// for what a joining replica has not got.
    pub(super) fn trim(&mut self) {
        let applied = self.state.applied();
        let wanted = self.downstream.as_ref().filter(|_| self.is_tail()).map_or(applied, |joining| joining.received);
        let written = if self.options.durable { self.written } else { applied };
        let spare = GCS_LOG_ENTRIES_MAX as u64;
        let floor = wanted.min(applied).min(written).max(Seq(applied.0.saturating_sub(spare)));
        while self.log.front().is_some_and(|entry| entry.seq <= floor) {
            self.log.pop_front();
        }
    }

    /// Tells the predecessor what is committed. A tail that has told of something
    /// just now tells later of all that came since: nobody waits for the word, and
    /// whoever is asked for what may have changed asks the tail.
    pub(super) fn tell_commit(&mut self, now: Nanos, out: &mut Vec<Action>) {
        let owed = self.turn.word_owed && now >= self.next_word;
        if !(std::mem::take(&mut self.turn.commit_to_tell) | owed) {
            return;
        }
        if std::mem::take(&mut self.turn.word_owed) {
            self.next_word = now + self.options.timing.word;
        }
        if self.position().is_none() || !self.complete {
            return;
        }
        if let Some(before) = self.predecessor() {
            let full = self.full_below.or(self.disk_full.then_some(self.options.me.rank));
            let body = Body::Committed { through: self.state.applied(), full };
            self.send(Address::Replica(before.rank), body, out);
        }
    }

    pub(super) fn tell_outcomes(&mut self, out: &mut Vec<Action>) {
        for (rank, mut outcomes) in std::mem::take(&mut self.turn.outcomes) {
            while outcomes.len() > OUTCOMES_AT_ONCE {
                let rest = outcomes.split_off(OUTCOMES_AT_ONCE);
                self.send(Address::Client(rank), Body::Outcomes(std::mem::replace(&mut outcomes, rest)), out);
            }
            self.send(Address::Client(rank), Body::Outcomes(outcomes), out);
        }
    }

    /// Writes the turn's commands to the log, all with one sync; now and then
    /// the log is begun anew from the state.
    pub(super) fn write_log(&mut self, out: &mut Vec<Action>) {
        if !self.options.durable || !self.complete || self.disk_full {
            return;
        }
        let next = self.written.next();
        // What one that joins has carried out may be gone before it was written.
        let gap = next <= self.last && from(&self.log, next).next().is_none_or(|entry| entry.seq != next);
        if self.log_bytes > GCS_LOG_REWRITE_BYTES || gap {
            let mut bytes = self.snapshot();
            from(&self.log, self.state.applied().next()).for_each(|entry| log::encode_entry(entry, &mut bytes));
            self.log_bytes = 0;
            out.push(Action::Replace(bytes));
        } else if self.written < self.last {
            let mut bytes = Vec::with_capacity(from(&self.log, next).map(log::entry_bytes).sum());
            from(&self.log, next).for_each(|entry| log::encode_entry(entry, &mut bytes));
            self.log_bytes += bytes.len();
            out.push(Action::Append(bytes));
        } else {
            return;
        }
        self.written = self.last;
        out.push(Action::Sync(self.last));
        self.trim();
    }
}

/// The entries from this place on: a log has no gap.
pub(super) fn from(log: &VecDeque<Entry>, seq: Seq) -> impl Iterator<Item = &Entry> {
    let first = log.front().map_or(0, |front| seq.0.saturating_sub(front.seq.0));
    log.range(log.len().min(first as usize)..)
}

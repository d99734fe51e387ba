//! The way of a command through a replica: the head gives it a place, each
//! passes it on, the tail commits it, and the word of that goes back.

use super::super::bug::Bug;
use super::super::limits::Limits;
use super::super::log;
use super::super::message::{Action, Address, Body, Entry, Forward, Nanos};
use super::super::record::{Refusal, Seq};
use super::super::state::{Command, Reads, Standing};
use super::Replica;
use crate::base::limits::{GCS_FORWARD_BYTES_MAX, MESSAGE_BYTES_MAX};

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
        let limits = self.options.limits;
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
                _ if dedup && self.under_way.has(&command, self.log.from(self.state.applied().next())) => {
                    // It waits for what all others wait for.
                    if obstacle.is_some() {
                        put_off.push(command.number);
                    }
                    continue;
                }
                _ => {}
            }
            let under_way = self.last.0 - self.state.applied().0;
            let full = under_way >= limits.log_entries as u64 || self.log.bytes() >= limits.log_bytes;
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
        self.log.push(entry);
    }

    /// Commands from the predecessor.
    pub(super) fn on_forward(&mut self, from: Address, forward: Forward) {
        let stale = self.options.bugs.has(Bug::SkipEpochCheck);
        let expected = self.predecessor().is_some_and(|before| Address::Replica(before.rank) == from);
        if !self.complete && self.taking.is_none() || !expected && !stale {
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
        }
    }

    /// What one that joins has and is committed is carried out: as much as there is
    /// time for in one turn.
    pub(super) fn catch_up(&mut self) {
        if self.position().is_some() || !self.has_more_to_carry_out() {
            return;
        }
        let mut room = self.options.limits.turn_bytes;
        let fits = |entry: &&Entry| {
            let fits = room > 0;
            room = room.saturating_sub(log::entry_bytes(entry));
            fits
        };
        let through = self.log.from(self.state.applied().next()).take_while(fits).last().map(|entry| entry.seq);
        self.advance(through.unwrap_or_default());
        self.link_up();
    }

    /// Whether one that joins has commands to carry out.
    pub(super) fn has_more_to_carry_out(&self) -> bool {
        self.complete && self.chain.is_some() && self.position().is_none() && self.state.applied() < self.last
    }

    /// The link stands when everything is here that the predecessor had when it
    /// was made, and on disk where that counts; that of one that joins, when it
    /// has carried out all that came since.
    pub(super) fn link_up(&mut self) {
        let has = if self.options.durable { self.last.min(self.synced) } else { self.last };
        if self.has_more_to_carry_out() {
            return;
        }
        if !self.linked && self.complete && self.link_target.is_some_and(|target| has >= target) {
            self.linked = true;
            self.proven |= self.position().is_some();
            self.turn.beat_due = true;
        }
    }

    /// Up to where the successor is sent commands: one that joins gets nothing
    /// that might still come to nothing.
    fn to_send(&self) -> Seq {
        if self.is_tail() { self.state.applied() } else { self.last }
    }

    /// Whether the successor has not been sent all of that.
    pub(super) fn has_more_to_send(&self) -> bool {
        self.downstream.as_ref().is_some_and(|downstream| downstream.sent < self.to_send())
    }

    /// Passes on what the successor has not been sent: as much as there is time
    /// for in one turn.
    pub(super) fn forward(&mut self, out: &mut Vec<Action>) {
        let Some(successor) = self.successor() else { return };
        let end = self.to_send();
        let mut room = self.options.limits.turn_bytes;
        let durable = self.durable();
        let durable_news = self.options.durable && durable > self.turn.told_durable;
        let Some(downstream) = &mut self.downstream else { return };
        let mut first_message = durable_news || std::mem::take(&mut downstream.probe_due);
        let mut messages = Vec::new();
        while downstream.sent < end && room > 0 || first_message {
            first_message = false;
            let after = downstream.sent;
            let mut entries = Vec::new();
            let mut bytes = 0;
            for entry in self.log.from(after.next()).take_while(|entry| entry.seq <= end) {
                bytes += log::entry_bytes(entry);
                if bytes > GCS_FORWARD_BYTES_MAX.min(room) && !entries.is_empty() {
                    break;
                }
                entries.push(entry.clone());
            }
            room = room.saturating_sub(bytes);
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

    /// The tail commits what has passed every member; not while one that joins
    /// has so much to get that it would be too much to keep.
    pub(super) fn commit_as_tail(&mut self) {
        if self.is_tail() && self.serves() && !self.is_far_ahead() {
            let through = self.last.min(self.durable());
            if through > self.state.applied() {
                self.turn.word_owed = true;
                self.advance(through);
            }
        }
    }

    /// Whether as much is kept for the one that joins as may be.
    fn is_far_ahead(&self) -> bool {
        let Limits { log_entries, log_bytes, .. } = self.options.limits;
        let lag = self.downstream.as_ref().map_or(0, |joining| self.state.applied().0.saturating_sub(joining.received.0));
        lag >= log_entries as u64 || lag > 0 && self.log.bytes() >= log_bytes
    }

    /// Carries out what is committed.
    pub(super) fn advance(&mut self, through: Seq) {
        let is_tail = self.is_tail();
        let answers = is_tail && self.serves();
        let through = through.min(self.last);
        if let Some(downstream) = self.downstream.as_mut().filter(|_| !is_tail) {
            // What is committed is on every member.
            downstream.received = downstream.received.max(through);
        }
        let Replica { state, log, under_way, turn, options, .. } = self;
        for entry in log.from(state.applied().next()).take_while(|entry| entry.seq <= through) {
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

    /// Drops from the log what nobody will ask for: what is committed, and has got
    /// to the successor. Until that has said what it has, no more is kept than
    /// there may be under way.
    pub(super) fn trim(&mut self) {
        let applied = self.state.applied();
        let written = if self.options.durable { self.written } else { applied };
        let wanted = match &self.downstream {
            Some(downstream) => downstream.received,
            None if self.successor().is_some() => Seq(0),
            None => applied,
        };
        let Limits { log_entries, log_bytes, .. } = self.options.limits;
        let may_drop = self.downstream.is_none();
        self.log.drop_while(|log, seq| {
            let too_much = may_drop && (log.len() > log_entries || log.bytes() > log_bytes);
            seq <= applied && (seq <= written.min(wanted) || too_much)
        });
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

    /// Writes the turn's commands to the log, all with one sync. A log that
    /// nothing can be added to is begun anew at once; one that has become long too,
    /// but a piece in each turn.
    pub(super) fn write_log(&mut self, out: &mut Vec<Action>) {
        if !self.options.durable || !self.complete || self.disk_full {
            return;
        }
        let (next, applied) = (self.written.next(), self.state.applied());
        // What an earlier life has left is its own until this one goes on with it.
        let owner = if self.proven { self.options.me.incarnation } else { self.restored.unwrap_or(0) };
        // What was carried out may be gone before it was written.
        let gap = next <= self.last && self.log.first().is_none_or(|first| first > next);
        let Some(log_owner) = self.log_owner.filter(|_| !gap) else {
            let mut log = log::encode_snapshot(owner, &self.state);
            self.log.from(applied.next()).for_each(|entry| log::encode_entry(entry, &mut log));
            self.written = self.last;
            return self.begin_log(owner, log, out);
        };
        if self.log_bytes > self.options.limits.rewrite_bytes && self.rewrite.is_none() {
            self.begin_rewrite(log_owner);
        }
        let goes_on = self.proven && log_owner != owner;
        if self.written < self.last || goes_on {
            let mut bytes = Vec::new();
            if goes_on {
                log::encode_owner(owner, &mut bytes);
                self.log_owner = Some(owner);
            }
            for entry in self.log.from(next) {
                log::encode_entry(entry, &mut bytes);
                self.written = entry.seq;
                if bytes.len() >= self.options.limits.turn_bytes {
                    break;
                }
            }
            self.log_bytes += bytes.len();
            self.rewrite.iter_mut().for_each(|rewrite| rewrite.behind.extend_from_slice(&bytes));
            out.push(Action::Append(bytes));
            out.push(Action::Sync(self.written));
            self.trim();
        }
        self.go_on_rewriting(out);
    }

    /// Begins to write the log anew, from the state as it is now and what the log
    /// has behind it.
    fn begin_rewrite(&mut self, owner: u32) {
        self.state.view(Reads::Log);
        let (mut log, mut behind) = (Vec::new(), Vec::new());
        log::encode_owner(owner, &mut log);
        let written = self.log.from(self.state.applied().next()).take_while(|entry| entry.seq <= self.written);
        written.for_each(|entry| log::encode_entry(entry, &mut behind));
        self.rewrite = Some(Rewrite { log, behind });
    }

    fn go_on_rewriting(&mut self, out: &mut Vec<Action>) {
        let Some(rewrite) = &mut self.rewrite else { return };
        let mut piece = Vec::new();
        let more = self.state.read_view(Reads::Log, self.options.limits.part_bytes, &mut piece);
        log::encode_piece(&piece, &mut rewrite.log);
        if let Some(Rewrite { mut log, behind }) = self.rewrite.take_if(|_| !more) {
            log.extend(behind);
            self.begin_log(self.log_owner.unwrap_or_default(), log, out);
        }
    }

    /// Has this log take the place of what is on disk. It has all that was written.
    pub(super) fn begin_log(&mut self, owner: u32, log: Vec<u8>, out: &mut Vec<Action>) {
        self.rewrite = None;
        self.state.end_view(Reads::Log);
        self.log_owner = Some(owner);
        self.log_bytes = 0;
        out.push(Action::Replace(log));
        out.push(Action::Sync(self.written));
        self.trim();
    }

    /// Whether there is something to write that was too much for one turn.
    pub(super) fn has_more_to_write(&self) -> bool {
        let more = self.written < self.last || self.rewrite.is_some();
        more && self.options.durable && self.complete && !self.disk_full
    }
}

/// A log that is begun anew while the one before goes on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Rewrite {
    /// Whose it is, and the state as far as it was read.
    log: Vec<u8>,
    /// What is behind the state.
    behind: Vec<u8>,
}

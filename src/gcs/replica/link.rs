//! How neighbours agree on what the successor has: at the start of every epoch,
//! after a gap, and while a replica takes over a whole state.
//!
//! A state is taken over once in an epoch at most, and the successor only ever
//! goes forward in it: so what says that it has less than it has said before is
//! late, and nothing is done about it.

use std::collections::VecDeque;

use super::super::bug::Bug;
use super::super::log;
use super::super::message::{Action, Address, Body, Link, Part};
use super::super::record::{Blob, Seq};
use super::super::state::{Builder, Reads, State};
use super::Replica;

/// What a member knows of its successor in this epoch.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Downstream {
    /// Everything up to here has been sent.
    pub(super) sent: Seq,
    /// The successor has everything up to here, or will have it with the state
    /// that it is taking over.
    pub(super) received: Seq,
    /// What this member had when the successor made the link.
    pub(super) link_target: Option<Seq>,
    /// A message is due even if there is nothing new.
    pub(super) probe_due: bool,
    /// The successor has a state on which commands can follow.
    follows: bool,
    giving: Option<Giving>,
}

/// A state that a successor takes over in parts, while it goes on changing here.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Giving {
    at: Seq,
    /// Those that the successor may not have, and which the first of them is.
    parts: VecDeque<Blob>,
    first: u32,
    /// How many of them are on their way.
    sent: usize,
    /// Whether there are more behind them.
    more: bool,
}

/// A state that is being taken over. The commands behind it come meanwhile.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Taking {
    at: Seq,
    next: u32,
    builder: Builder,
    /// What goes to disk of it.
    log: Vec<u8>,
}

impl Replica {
    /// The successor says what it has.
    pub(super) fn on_link(&mut self, link: Link) {
        if self.successor() != Some(link.from) || !self.complete {
            return;
        }
        let applied = self.state.applied();
        let has = if self.is_tail() { applied } else { self.last };
        let oldest = self.log.first().map_or(applied, |first| Seq(first.0 - 1));
        let forgets = self.options.bugs.has(Bug::ForgetSuffix);
        let downstream = self.downstream.get_or_insert(Downstream {
            sent: if forgets { has } else { link.received },
            received: Seq(0),
            link_target: Some(has),
            probe_due: true,
            follows: false,
            giving: None,
        });
        if downstream.follows && !(link.complete && link.received >= downstream.received) {
            return;
        }
        let from = downstream.giving.as_ref().map_or(oldest, |giving| giving.at);
        if link.complete && link.received >= from {
            downstream.follows = true;
            downstream.giving = None;
            downstream.received = downstream.received.max(link.received);
            if link.resend && !forgets {
                downstream.sent = link.received;
                downstream.probe_due = true;
            }
            self.state.end_view(Reads::Successor);
            return self.trim();
        }
        let giving = downstream.giving.get_or_insert_with(|| {
            self.state.view(Reads::Successor);
            (downstream.sent, downstream.received) = (applied, applied);
            Giving { at: applied, parts: VecDeque::new(), first: 0, sent: 0, more: true }
        });
        let next = link.next.filter(|(at, _)| *at == giving.at).map(|(_, next)| next);
        if next.unwrap_or(0) < giving.first {
            return;
        }
        while next.is_some_and(|next| giving.first < next) && giving.parts.pop_front().is_some() {
            giving.first += 1;
            giving.sent = giving.sent.saturating_sub(1);
        }
        if next.is_some() {
            downstream.received = downstream.received.max(link.received);
        }
        if link.resend {
            giving.sent = 0;
            downstream.sent = downstream.received;
            downstream.probe_due = true;
        }
        self.trim();
    }

    /// Sends the next parts of the state to a successor that takes it over: no
    /// more than may be on their way at once.
    pub(super) fn give(&mut self, out: &mut Vec<Action>) {
        let (successor, limits) = (self.successor(), self.options.limits);
        let Replica { downstream, state, .. } = self;
        let giving = downstream.as_mut().and_then(|downstream| downstream.giving.as_mut());
        let (Some(to), Some(giving)) = (successor, giving) else { return };
        while giving.more && giving.parts.len() < limits.parts_at_once {
            let mut bytes = Vec::with_capacity(limits.part_bytes);
            giving.more = state.read_view(Reads::Successor, limits.part_bytes, &mut bytes);
            giving.parts.push_back(Blob::from(bytes));
        }
        let (at, count) = (giving.at, giving.parts.len());
        let new = giving.parts.iter().enumerate().skip(std::mem::replace(&mut giving.sent, count));
        let parts: Vec<Part> = new
            .map(|(place, bytes)| {
                let last = !giving.more && place + 1 == count;
                Part { to, at, index: giving.first + place as u32, last, bytes: bytes.clone() }
            })
            .collect();
        for part in parts {
            self.send(Address::Replica(to.rank), Body::Part(part), out);
        }
    }

    /// A part of the predecessor's state.
    pub(super) fn on_part(&mut self, part: Part, out: &mut Vec<Action>) {
        if self.proven || self.complete && part.at <= self.last {
            return;
        }
        #[cfg(test)]
        if self.options.bugs.has(Bug::JoinEarly) {
            self.begin_taking(part.at);
            return self.install(State::hollow(part.at), Vec::new(), out);
        }
        let is_later = self.taking.as_ref().is_none_or(|taking| taking.at < part.at);
        if is_later && part.index == 0 {
            self.begin_taking(part.at);
        }
        let Some(taking) = self.taking.as_mut().filter(|taking| (taking.at, taking.next) == (part.at, part.index)) else {
            return;
        };
        taking.next += 1;
        if self.options.durable {
            log::encode_piece(&part.bytes, &mut taking.log);
        }
        self.turn.link_due.get_or_insert(false);
        let sound = taking.builder.take(&part.bytes).is_some();
        if sound && !part.last {
            return;
        }
        let taken = self.taking.take().and_then(|mut taking| Some((taking.builder.finish()?, taking.log)));
        match taken.filter(|(state, _)| sound && state.applied() == part.at) {
            Some((state, log)) => self.install(state, log, out),
            // What it was told makes no state. Its next life asks for another.
            None => self.retire(),
        }
    }

    /// From here on it has nothing but what it takes over.
    fn begin_taking(&mut self, at: Seq) {
        self.forget();
        self.downstream = None;
        self.last = at;
        let mut log = Vec::new();
        // It is not all that was ever committed until the link stands as a member.
        log::encode_owner(0, &mut log);
        self.taking = Some(Taking { at, next: 0, builder: Builder::default(), log });
    }

    /// A state that was begun and will not be ended comes to nothing.
    pub(super) fn stop_taking(&mut self) {
        if self.taking.is_some() {
            self.forget();
        }
    }

    fn install(&mut self, state: State, log: Vec<u8>, out: &mut Vec<Action>) {
        self.taking = None;
        self.written = state.applied();
        self.rewrite = None;
        self.state = state;
        self.complete = true;
        self.turn.applied = true;
        self.turn.link_due.get_or_insert(false);
        if self.options.durable {
            self.synced = Seq(0);
            self.begin_log(0, log, out);
        }
    }

    /// Says what it has to the predecessor.
    pub(super) fn send_link(&mut self, out: &mut Vec<Action>) {
        let Some(resend) = self.turn.link_due.take() else { return };
        let Some(before) = self.predecessor() else { return };
        let link = Link {
            from: self.options.me,
            received: self.last,
            complete: self.complete,
            next: self.taking.as_ref().map(|taking| (taking.at, taking.next)),
            resend,
        };
        self.send(Address::Replica(before.rank), Body::Link(link), out);
    }

    /// Whether neighbours have something to say that may be lost.
    pub(super) fn awaits_neighbours(&self) -> bool {
        let unlinked = !self.linked && self.predecessor().is_some();
        let cut = self.is_cut_from(self.predecessor()) || self.is_cut_from(self.successor());
        unlinked || self.successor_lags() || cut || self.disk_full || self.full_below.is_some()
    }

    /// Whether the successor has not said yet that it has what it was sent, or
    /// that it is committed.
    fn successor_lags(&self) -> bool {
        let applied = self.state.applied();
        let lags = |downstream: &Downstream| match self.is_tail() {
            true => downstream.received < downstream.sent,
            false => downstream.received < applied || applied < self.last,
        };
        self.downstream.as_ref().is_some_and(lags)
    }

    /// Asks again for whatever may have been lost.
    pub(super) fn resend(&mut self) {
        if self.chain.is_none() {
            return;
        }
        // What has ended may have begun again: that shows when something comes.
        if !self.linked && self.predecessor().is_some() || self.is_cut_from(self.predecessor()) {
            self.turn.link_due = Some(true);
        }
        let lags = self.successor_lags();
        let cut = self.is_cut_from(self.successor());
        let full = self.full_below.is_some();
        // The successor answers a probe with how far it is, and whether there is space again.
        if let Some(downstream) = self.downstream.as_mut().filter(|_| lags || cut || full) {
            downstream.probe_due = true;
        }
        self.turn.commit_to_tell |= self.disk_full || self.full_below.is_some();
        self.turn.ask_tail |= !self.parked.is_empty();
    }
}

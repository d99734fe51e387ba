//! How neighbours agree on what the successor has: at the start of every epoch,
//! after a gap, and while a replica takes over a whole state.

use super::super::bug::Bug;
use super::super::log;
use super::super::message::{Action, Address, Body, Link, Part};
use super::super::record::{Blob, Seq};
use super::super::state::State;
use super::Replica;
use super::under_way::UnderWay;

/// What a member knows of its successor in this epoch.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Downstream {
    /// Everything up to here has been sent.
    pub(super) sent: Seq,
    /// The successor has said that it has everything up to here.
    pub(super) received: Seq,
    /// What this member had when the successor made the link.
    pub(super) link_target: Option<Seq>,
    /// A message is due even if there is nothing new.
    pub(super) probe_due: bool,
    /// The state that the successor is taking over, in parts.
    parts: Option<(Seq, Vec<Blob>)>,
}

/// A state that is being taken over.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Taking {
    at: Seq,
    count: u32,
    parts: Vec<Blob>,
}

impl Replica {
    /// The successor says what it has.
    pub(super) fn on_link(&mut self, link: Link, out: &mut Vec<Action>) {
        if self.successor() != Some(link.from) || !self.complete {
            return;
        }
        let has = if self.is_tail() { self.state.applied() } else { self.last };
        let forgets = self.options.bugs.has(Bug::ForgetSuffix);
        let downstream = self.downstream.get_or_insert(Downstream {
            sent: if forgets { has } else { link.received },
            received: Seq(0),
            link_target: Some(has),
            probe_due: true,
            parts: None,
        });
        if link.complete {
            downstream.received = downstream.received.max(link.received);
        }
        let oldest = self.log.front().map_or(self.state.applied(), |entry| Seq(entry.seq.0 - 1));
        let can_follow = link.complete && link.received >= oldest.min(self.state.applied());
        if can_follow {
            downstream.parts = None;
            if link.resend && !forgets {
                downstream.sent = link.received;
                downstream.probe_due = true;
            }
            self.trim();
            return;
        }
        if link.resend {
            self.send_parts(link, out);
        }
    }

    /// Sends the next few parts of the state to a successor that cannot go on
    /// from where it is.
    fn send_parts(&mut self, link: Link, out: &mut Vec<Action>) {
        let parts = self.downstream.as_mut().and_then(|downstream| downstream.parts.take());
        let (at, parts) = parts.unwrap_or_else(|| {
            // What a joiner has on disk is not all until its link stands as a member.
            let bytes = log::encode_snapshot(0, &self.state);
            (self.state.applied(), bytes.chunks(self.options.limits.part_bytes).map(Blob::from).collect())
        });
        let first = link.next.filter(|(of, _)| *of == at).map_or(0, |(_, next)| next as usize);
        let count = parts.len() as u32;
        for (index, bytes) in parts.iter().enumerate().skip(first).take(self.options.limits.parts_at_once) {
            let part = Part { to: link.from, at, index: index as u32, count, bytes: bytes.clone() };
            self.send(Address::Replica(link.from.rank), Body::Part(part), out);
        }
        if let Some(downstream) = &mut self.downstream {
            downstream.received = at;
            downstream.sent = at;
            downstream.parts = Some((at, parts));
        }
    }

    /// A part of the predecessor's state.
    pub(super) fn on_part(&mut self, part: Part, out: &mut Vec<Action>) {
        if self.proven || self.complete && part.at <= self.last {
            return;
        }
        #[cfg(test)]
        if self.options.bugs.has(Bug::JoinEarly) {
            self.turn.link_due = Some(true);
            return self.install(State::hollow(part.at), Vec::new(), out);
        }
        let fresh = Taking { at: part.at, count: part.count, parts: Vec::new() };
        let taking = match &mut self.taking {
            Some(taking) if taking.at >= part.at => taking,
            _ => self.taking.insert(fresh),
        };
        if taking.at != part.at || taking.count != part.count || part.index as usize != taking.parts.len() {
            return;
        }
        taking.parts.push(part.bytes);
        let got = taking.parts.len();
        if got == taking.count as usize {
            let bytes: Vec<u8> = taking.parts.iter().flat_map(|part| part.iter().copied()).collect();
            self.taking = None;
            if let Ok(state) = log::decode_snapshot(&bytes) {
                self.install(state, bytes, out);
            }
            self.turn.link_due = Some(true);
        } else if got.is_multiple_of(self.options.limits.parts_at_once) {
            self.turn.link_due = Some(true);
        }
    }

    fn install(&mut self, state: State, bytes: Vec<u8>, out: &mut Vec<Action>) {
        self.last = state.applied();
        self.state = state;
        self.log.clear();
        self.under_way = UnderWay::default();
        self.written = self.last;
        self.complete = true;
        self.turn.applied = true;
        if self.options.durable {
            self.synced = Seq(0);
            self.log_bytes = 0;
            out.push(Action::Replace(bytes));
            out.push(Action::Sync(self.last));
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
            next: self.taking.as_ref().map(|taking| (taking.at, taking.parts.len() as u32)),
            resend,
        };
        self.send(Address::Replica(before.rank), Body::Link(link), out);
    }

    /// Whether neighbours have something to say that may be lost.
    pub(super) fn awaits_neighbours(&self) -> bool {
        let unlinked = !self.linked && self.predecessor().is_some();
        let uncommitted = !self.is_tail() && self.state.applied() < self.last;
        let lags = self.downstream.as_ref().is_some_and(|d| uncommitted || self.is_tail() && d.received < d.sent);
        let cut = self.is_cut_from(self.predecessor()) || self.is_cut_from(self.successor());
        unlinked || lags || cut || self.disk_full || self.full_below.is_some()
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
        let waits_for_commit = !self.is_tail() && self.state.applied() < self.last;
        let joiner_lags = |sent: Seq, received: Seq| self.is_tail() && received < sent;
        let lags = self.downstream.as_ref().is_some_and(|d| waits_for_commit || joiner_lags(d.sent, d.received));
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

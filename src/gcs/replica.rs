//! One replica of one shard: a link of the chain. It is told messages, the time
//! and what its disk did, and says what is to be sent and written.
//!
//! `docs/protocols/chain.md` has the protocol and why it holds. Here: what a
//! replica is and how it moves from epoch to epoch. `order` has the way of a
//! command, `link` how neighbours agree on what the other has, `reads` leases,
//! queries and watches.

mod link;
mod order;
mod reads;
mod suffix;
#[cfg(test)]
mod tests;
mod under_way;

use std::collections::{BTreeMap, VecDeque};

use self::link::{Downstream, Taking};
use self::order::Rewrite;
use self::reads::{Lease, Parked, Waiting, Watcher};
use self::suffix::Suffix;
use self::under_way::UnderWay;
use super::bug::{Bug, Bugs};
use super::limits::Limits;
use super::log::Recovered;
use super::message::{
    Action, Address, Beat, Body, ChainConfig, DiskEvent, Epoch, Message, Nanos, ReplicaId, ShardId,
};
use super::record::{Refusal, Seq};
use super::state::{ClientId, Outcome, Reads, Sizes, State};
use super::timing::Timing;
use crate::base::Rank;
use crate::base::limits::GCS_EARLY_MAX;

/// What a replica is made with.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Options {
    /// Who it is.
    pub me: ReplicaId,
    /// Of which shard.
    pub shard: ShardId,
    /// Where the members of the configuration quorum are.
    pub quorum: Vec<Rank>,
    /// The periods of the protocol.
    pub timing: Timing,
    /// Whether a command counts only when it is on the disks of all members.
    pub durable: bool,
    /// How much it keeps, and does in one turn.
    pub limits: Limits,
    /// None, outside of tests.
    pub bugs: Bugs,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    options: Options,
    chain: Option<ChainConfig>,
    retired: bool,
    /// Which of its lives left the state that it has from disk.
    restored: Option<u32>,
    /// Whether it has been a linked member, so that it has all that was ever
    /// committed and may become the head.
    proven: bool,

    /// The state after all committed commands.
    state: State,
    /// Commands up to `last`: those that are not committed, and before them
    /// what the successor may need. One that takes a state over keeps here what
    /// follows on that.
    log: Suffix,
    last: Seq,
    /// Commands up to here are in the disk's log, or on their way there.
    written: Seq,
    under_way: UnderWay,

    /// Whether the state is one on which commands can follow.
    complete: bool,
    linked: bool,
    link_target: Option<Seq>,
    taking: Option<Taking>,
    downstream: Option<Downstream>,

    synced: Seq,
    upstream_durable: Seq,
    disk_full: bool,
    full_below: Option<Rank>,
    log_bytes: usize,
    /// Which life the log on disk says that it is of, if there is one that can be
    /// added to.
    log_owner: Option<u32>,
    rewrite: Option<Rewrite>,

    lease: Lease,
    /// Whether it has had a lease of this epoch, and as the tail has committed
    /// since what an earlier one may have.
    open: bool,
    parked: VecDeque<Parked>,
    waiting: VecDeque<Waiting>,
    /// Who has asked the tail how far it is before it could tell.
    askers: BTreeMap<ReplicaId, u64>,
    asked: u64,
    watchers: BTreeMap<(ClientId, u64), Watcher>,

    /// Messages that speak of an epoch to come: of who was told of it sooner.
    early: VecDeque<(Address, Message)>,
    /// Ranks with which the connection has ended, and when, or when this epoch
    /// began; until something comes from there again.
    cut: BTreeMap<Rank, Nanos>,
    next_beat: Nanos,
    /// Never while nothing is out that could be lost.
    next_resend: Nanos,
    /// When a tail may tell of a commit again.
    next_word: Nanos,
    turn: Turn,
}

/// What the turn under way has gathered, so that it goes out at once.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Turn {
    outcomes: BTreeMap<Rank, Vec<(ClientId, u64, Outcome)>>,
    commit_to_tell: bool,
    /// What a tail has committed is to be told as soon as `next_word`.
    word_owed: bool,
    told_durable: Seq,
    link_due: Option<bool>,
    ask_tail: bool,
    put_off: BTreeMap<ClientId, Vec<u64>>,
    beat_due: bool,
    applied: bool,
}

/// Ranks that one that is in no chain says it cannot reach.
const CUT_MAX: usize = 64;

impl Replica {
    /// A replica that knows nothing and waits to be called into a chain.
    pub fn spare(options: Options) -> Replica {
        Replica {
            lease: Lease::new(options.quorum.len()),
            options,
            chain: None,
            retired: false,
            restored: None,
            proven: false,
            state: State::default(),
            log: Suffix::default(),
            last: Seq(0),
            written: Seq(0),
            under_way: UnderWay::default(),
            complete: false,
            linked: false,
            link_target: None,
            taking: None,
            downstream: None,
            synced: Seq(0),
            upstream_durable: Seq(0),
            disk_full: false,
            full_below: None,
            log_bytes: 0,
            log_owner: None,
            rewrite: None,
            open: false,
            parked: VecDeque::new(),
            waiting: VecDeque::new(),
            askers: BTreeMap::new(),
            asked: 0,
            watchers: BTreeMap::new(),
            early: VecDeque::new(),
            cut: BTreeMap::new(),
            next_beat: 0,
            next_resend: Nanos::MAX,
            next_word: 0,
            turn: Turn::default(),
        }
    }

    /// A replica of the first chain of a shard, which all ranks know from the
    /// start. Its state is empty and complete.
    pub fn founding(options: Options, chain: ChainConfig, now: Nanos, out: &mut Vec<Action>) -> Replica {
        let mut replica = Replica::spare(options);
        replica.complete = true;
        replica.proven = true;
        replica.enter(chain, now, out);
        replica
    }

    /// A replica that has what an earlier life of this rank left on disk. It
    /// answers nobody until the quorum has found that no life of the chain goes
    /// on, and makes a chain of such replicas. What was left before the link of
    /// that life stood is worth nothing.
    pub fn restored(options: Options, recovered: Recovered) -> Replica {
        let mut replica = Replica::spare(options);
        if recovered.owner == 0 {
            return replica;
        }
        replica.restored = Some(recovered.owner);
        // A founder's log that was never written is begun with the first state.
        replica.log_owner = (recovered.clean_bytes > 0).then_some(recovered.owner);
        replica.log_bytes = recovered.clean_bytes;
        replica.complete = true;
        replica.last = recovered.state.applied();
        replica.state = recovered.state;
        for entry in recovered.entries {
            if entry.seq == replica.last.next() {
                replica.keep(entry);
            }
        }
        replica.turn = Turn::default();
        replica.synced = replica.last;
        replica.written = replica.last;
        replica
    }

    /// Who it is.
    pub fn id(&self) -> ReplicaId {
        self.options.me
    }

    /// The epoch that it is in.
    pub fn epoch(&self) -> Epoch {
        self.chain.as_ref().map_or(Epoch(0), |chain| chain.epoch)
    }

    /// The chain as it knows it.
    pub fn chain(&self) -> Option<&ChainConfig> {
        self.chain.as_ref()
    }

    /// Whether it was removed: it answers nobody any more, and its rank may take
    /// part again only as another life.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Whether something is to be done that was too much for one turn.
    fn has_more_to_do(&self) -> bool {
        self.has_more_to_send() || self.has_more_to_carry_out() || self.has_more_to_write()
    }

    /// Whether its link of this epoch stands.
    pub fn is_linked(&self) -> bool {
        self.linked
    }

    /// Whether it has all that was ever committed, so that a chain can go on
    /// with it alone.
    pub fn may_lead(&self) -> bool {
        self.proven && !self.retired
    }

    /// The committed state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The last command that it has.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// What it keeps: of the state, and commands.
    pub fn sizes(&self) -> (Sizes, usize) {
        (self.state.sizes(), self.log.len())
    }

    /// Takes a message. What is to be done for it may wait for [`flush`], which
    /// ends the turn.
    ///
    /// [`flush`]: Replica::flush
    pub fn receive(&mut self, now: Nanos, from: Address, message: Message, out: &mut Vec<Action>) {
        let Message { shard, epoch, body } = message;
        if self.retired || shard != self.options.shard {
            return;
        }
        if !self.cut.is_empty() {
            self.cut.remove(&from.rank());
        }
        match body {
            Body::Chain(Some(chain)) => {
                let newer = chain.epoch > self.epoch() && chain.shard == shard;
                if newer && matches!(from, Address::Quorum(_)) {
                    self.enter(chain, now, out);
                }
                return;
            }
            Body::UsedUp(life) => {
                // It was called, never heard of it, and would wait for ever.
                if life == self.options.me && self.chain.is_none() && matches!(from, Address::Quorum(_)) {
                    self.retire();
                }
                return;
            }
            Body::Commands(_) | Body::Queries(..) | Body::Watch(_) => {
                return self.receive_from_client(now, from, epoch, body, out);
            }
            _ => {}
        }
        let current = self.epoch();
        if epoch > current {
            self.turn.beat_due = true;
            if matches!(body, Body::Link(_) | Body::Tail(..)) {
                self.keep_early(from, Message { shard, epoch, body });
            }
            return;
        }
        if epoch != current && !self.options.bugs.has(Bug::SkipEpochCheck) {
            return;
        }
        match body {
            Body::Forward(forward) if forward.to == self.options.me => self.on_forward(from, forward),
            Body::Link(link) => self.on_link(link),
            Body::Part(part) if part.to == self.options.me => self.on_part(part, out),
            Body::Committed { through, full } if self.is_successor(from) => {
                self.full_below = full;
                self.turn.commit_to_tell = true;
                self.advance(through);
            }
            Body::Tail(asker, number) => self.on_tail(now, asker, number, out),
            Body::TailIs(number, seq) => self.on_tail_is(now, number, seq, out),
            Body::Grant { to, echo } if to == self.options.me => {
                let member = self.options.quorum.iter().position(|rank| Address::Quorum(*rank) == from);
                self.lease.grant(member, echo);
            }
            _ => {}
        }
    }

    /// Commands, queries and watches; they are answered even if the answer is
    /// only where to turn to.
    fn receive_from_client(&mut self, now: Nanos, from: Address, epoch: Epoch, body: Body, out: &mut Vec<Action>) {
        if epoch > self.epoch() {
            self.turn.beat_due = true;
            let message = Message { shard: self.options.shard, epoch, body };
            if !self.keep_early(from, message) {
                self.send(from, Body::Chain(None), out);
            }
            return;
        }
        if epoch < self.epoch() && !self.options.bugs.has(Bug::SkipEpochCheck) {
            return self.send(from, Body::Chain(self.chain.clone()), out);
        }
        match body {
            Body::Commands(commands) => self.on_commands(commands, out),
            Body::Queries(client, queries) => self.on_queries(now, client, queries, out),
            Body::Watch(watch) => self.on_watch(now, watch),
            _ => {}
        }
    }

    /// Keeps a message until the epoch comes that it speaks of, if there is room.
    fn keep_early(&mut self, from: Address, message: Message) -> bool {
        let room = self.early.len() < GCS_EARLY_MAX;
        if room {
            self.early.push_back((from, message));
        }
        room
    }

    /// The connection with a rank has ended, or this side is about to end it:
    /// what the quorum's member there has granted counts no more, and the quorum
    /// is told if a neighbour stays out of reach. Must be told before the
    /// connection is closed from this side.
    pub fn ended(&mut self, now: Nanos, rank: Rank) {
        if let Some(member) = self.options.quorum.iter().position(|member| *member == rank) {
            self.lease.revoke(member, now);
        }
        if rank != self.options.me.rank {
            self.cut.entry(rank).or_insert(now);
        }
        let involved = |chain: &ChainConfig| chain.members.iter().chain(&chain.joining).any(|other| other.rank == rank);
        if self.chain.as_ref().is_some_and(involved) && !self.retired {
            // Whoever knows of a later chain answers with it.
            self.turn.beat_due = true;
        }
    }

    /// What the disk did.
    pub fn disk(&mut self, event: DiskEvent) {
        match event {
            DiskEvent::Synced(through) => self.synced = self.synced.max(through.min(self.last)),
            DiskEvent::Full => self.disk_full = true,
            DiskEvent::Space => self.disk_full = false,
        }
        if event == DiskEvent::Space {
            // What was being added when the space ended may be torn.
            self.log_owner = None;
        }
        self.turn.commit_to_tell = true;
        self.link_up();
    }

    /// Time has passed: says what is due.
    pub fn tick(&mut self, now: Nanos) {
        if self.retired {
            return;
        }
        if now >= self.next_beat {
            self.turn.beat_due = true;
        }
        if now >= self.next_resend {
            self.next_resend = now + self.options.timing.resend;
            self.resend();
            self.waiting_too_long(now);
        }
        self.watchers.retain(|_, watcher| watcher.expires > now);
    }

    /// When [`tick`](Replica::tick) and [`flush`](Replica::flush) have something
    /// to do, if nothing comes before.
    pub fn next_due(&self) -> Nanos {
        if self.retired {
            return Nanos::MAX;
        }
        if self.turn.beat_due || self.turn.applied || self.has_more_to_do() {
            return 0;
        }
        let word = if self.turn.word_owed { self.next_word } else { Nanos::MAX };
        self.next_beat.min(self.next_resend).min(word)
    }

    /// Ends a turn: everything that it gathered goes out, as one message to each.
    pub fn flush(&mut self, now: Nanos, out: &mut Vec<Action>) {
        if self.retired {
            return;
        }
        self.write_log(out);
        if self.is_open(now) || self.options.bugs.has(Bug::CommitEarly) {
            self.commit_as_tail();
        }
        self.catch_up();
        self.give(out);
        self.forward(out);
        // Clients first: the predecessor does not wait for the word, and would
        // take a core from the one who does.
        self.tell_put_off(out);
        self.tell_outcomes(out);
        self.tell_commit(now, out);
        self.send_link(out);
        self.answer_waiting(now, out);
        self.ask_tail(out);
        self.tell_watchers(out);
        if std::mem::take(&mut self.turn.beat_due) {
            let beat = self.options.timing.beat;
            // A spare one has no lease to renew.
            self.next_beat = Timing::after(now, if self.chain.is_some() { beat } else { 2 * beat });
            self.beat(now, out);
        }
        if !self.awaits() {
            self.next_resend = Nanos::MAX;
        } else if self.next_resend == Nanos::MAX {
            self.next_resend = now + self.options.timing.resend;
        }
    }

    /// Whether a majority of the quorum has granted a lease of this epoch: then
    /// nobody reads in an earlier one any more, who would not see what is
    /// committed now.
    fn is_open(&mut self, now: Nanos) -> bool {
        self.open |= self.serves() && self.is_leased(now);
        self.open
    }

    /// Whether something is out that may be lost.
    pub fn awaits(&self) -> bool {
        self.awaits_neighbours() || !self.parked.is_empty() || !self.waiting.is_empty()
    }

    /// Moves to a later epoch. What was committed stays; every link is made anew.
    fn enter(&mut self, chain: ChainConfig, now: Nanos, out: &mut Vec<Action>) {
        let me = self.options.me;
        let position = chain.position(me);
        let joins = chain.joining == Some(me);
        let is_new = self.chain.is_none();
        if position.is_none() && !joins {
            if !is_new {
                self.retire();
            }
            return;
        }
        if joins && self.restored.take().is_some() {
            // Others went on without it: what it had not committed may never
            // have been.
            self.forget();
        }
        if self.restored.take().is_some() {
            self.proven = true;
        }
        let is_head = position == Some(0);
        self.linked = is_head && self.proven;
        self.link_target = (is_head && self.proven).then_some(self.last);
        self.stop_taking();
        self.downstream = None;
        self.state.end_view(Reads::Successor);
        self.upstream_durable = if is_head { Seq(u64::MAX) } else { Seq(0) };
        self.full_below = None;
        self.lease = Lease::new(self.options.quorum.len());
        self.open = false;
        let Turn { outcomes, put_off, .. } = std::mem::take(&mut self.turn);
        self.turn = Turn { outcomes, put_off, beat_due: true, ..Turn::default() };
        self.chain = Some(chain);
        self.askers.clear();
        // Who was out of reach may have come back as another life.
        self.cut.values_mut().for_each(|since| *since = now);
        for parked in std::mem::take(&mut self.parked) {
            self.wait(now, parked, out);
        }
        self.turn.link_due = (!is_head).then_some(true);
        self.turn.commit_to_tell = true;
        self.next_resend = Nanos::MAX;
        self.trim();
        let applied = self.state.applied();
        let uncommitted = self.log.from(applied.next());
        self.under_way = UnderWay::of(is_head, uncommitted);
        for (from, message) in std::mem::take(&mut self.early) {
            self.receive(now, from, message, out);
        }
    }

    fn retire(&mut self) {
        self.retired = true;
        self.forget();
        self.watchers.clear();
        self.parked.clear();
        self.waiting.clear();
        self.early.clear();
        self.turn = Turn::default();
    }

    fn forget(&mut self) {
        self.state = State::default();
        self.log.clear();
        self.last = Seq(0);
        self.synced = Seq(0);
        self.written = Seq(0);
        self.under_way = UnderWay::default();
        self.taking = None;
        self.rewrite = None;
        self.complete = false;
        self.proven = false;
    }

    fn beat(&self, now: Nanos, out: &mut Vec<Action>) {
        let beat = Beat {
            from: self.options.me,
            sent: now,
            received: (self.proven || self.restored.is_some()).then_some(self.last),
            linked: self.linked,
            restored: self.restored,
            cut: self.out_of_reach(now),
        };
        for rank in &self.options.quorum {
            self.send(Address::Quorum(*rank), Body::Beat(beat.clone()), out);
        }
    }

    /// See [`Beat::cut`].
    fn out_of_reach(&self, now: Nanos) -> Vec<Rank> {
        if self.chain.is_none() {
            return self.cut.keys().copied().take(CUT_MAX).collect();
        }
        let patience = self.options.timing.detection;
        let neighbours = [self.predecessor(), self.successor()].into_iter().flatten().map(|replica| replica.rank);
        neighbours.filter(|rank| self.cut.get(rank).is_some_and(|since| now >= since + patience)).collect()
    }

    /// Whether the connection with a neighbour has ended.
    fn is_cut_from(&self, neighbour: Option<ReplicaId>) -> bool {
        neighbour.is_some_and(|replica| self.cut.contains_key(&replica.rank))
    }

    fn position(&self) -> Option<usize> {
        self.chain.as_ref()?.position(self.options.me)
    }

    fn is_head(&self) -> bool {
        self.position() == Some(0)
    }

    fn is_tail(&self) -> bool {
        self.chain.as_ref().is_some_and(|chain| chain.tail() == Some(self.options.me))
    }

    fn predecessor(&self) -> Option<ReplicaId> {
        self.chain.as_ref()?.predecessor(self.options.me)
    }

    fn successor(&self) -> Option<ReplicaId> {
        self.chain.as_ref()?.successor(self.options.me)
    }

    fn is_successor(&self, from: Address) -> bool {
        !self.is_tail() && self.successor().is_some_and(|successor| Address::Replica(successor.rank) == from)
    }

    /// Whether it may take part in answering: its link stands, and as a member.
    fn serves(&self) -> bool {
        self.linked && self.proven && self.position().is_some()
    }

    fn send(&self, to: Address, body: Body, out: &mut Vec<Action>) {
        out.push(Action::Send(to, Message { shard: self.options.shard, epoch: self.epoch(), body }));
    }

    /// Why commands cannot be taken, if they cannot.
    fn obstacle(&self) -> Option<Refusal> {
        if self.disk_full {
            return Some(Refusal::DiskFull(self.options.me.rank));
        }
        self.full_below.map(Refusal::DiskFull)
    }
}

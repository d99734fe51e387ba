//! A member of the configuration quorum: it agrees with the others on which
//! chain every shard has, grants leases, and, while it leads, finds who is gone
//! and proposes what follows from that.

use std::collections::{BTreeMap, BTreeSet};

use omnipaxos::errors::ConfigError;

use super::agreement::{Agreement, ConsensusMessage};
use super::bug::Bugs;
use super::directory::Directory;
use super::granter::Granter;
use super::message::{Address, Beat, Body, ChainConfig, Epoch, Message, Nanos, ReplicaId, ShardId};
use super::quorum_log::QuorumLog;
use super::timing::Timing;
use crate::base::Rank;
use crate::base::limits::GCS_ASKERS_MAX;

/// What a member is made with.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// Who it is.
    pub me: Rank,
    /// Which of its lives this is; later ones have higher numbers.
    pub life: u32,
    /// All members, itself included, in the same order for all: one, or at
    /// least three if one may be lost.
    pub members: Vec<Rank>,
    /// The periods of the protocol.
    pub timing: Timing,
    /// How many replicas a chain should have.
    pub replicas: usize,
    /// The host of each rank, by rank: a replica that joins should be on one of
    /// its own. What is not here is not known.
    pub hosts: Vec<u64>,
    /// The chains at the start of the job, the same for all.
    pub founding: Vec<ChainConfig>,
    /// None, outside of tests.
    pub bugs: Bugs,
}

/// What a member wants done.
#[derive(Clone, Debug)]
pub enum MemberAction {
    /// This is to be on disk, instead of what was there, before anything that
    /// follows is done.
    Save(Vec<u8>),
    /// A message is to be sent; it may be lost.
    Send(Address, Message),
    /// Likewise, to another member.
    Consensus(Rank, ConsensusMessage),
}

/// See the module.
pub struct Member {
    options: MemberOptions,
    agreement: Agreement,
    directory: Directory,
    decided: usize,
    granters: BTreeMap<ShardId, Granter>,
    heard: BTreeMap<(ShardId, ReplicaId), Heard>,
    /// Beats that cannot be granted yet, but may be soon.
    waiting: BTreeMap<(ShardId, ReplicaId), (Epoch, Beat)>,
    /// Lives up to these have ended.
    gone: BTreeMap<(ShardId, Rank), (u32, Nanos)>,
    /// Who is told of the next chain, until when.
    askers: BTreeMap<(ShardId, Address), Nanos>,
    leads_since: Option<Nanos>,
    proposed: BTreeMap<ShardId, (Epoch, Nanos)>,
    /// Shards whose chains may have to change.
    due: BTreeSet<ShardId>,
    /// Shards in which what stood against a grant may be gone.
    freed: BTreeSet<ShardId>,
    next_check: Nanos,
    next_sweep: Nanos,
    /// When the leader is asked for changes that others know of.
    catch_up_at: Option<Nanos>,
}

/// What is known of a replica.
#[derive(Clone, Debug)]
struct Heard {
    since: Nanos,
    at: Nanos,
    epoch: Epoch,
    beat: Beat,
}

impl Member {
    /// A member; `saved` is what an earlier life of it left on disk. Without
    /// that, a rank that was a member before must not be one again.
    ///
    /// # Errors
    /// If the consensus library does not take the members.
    pub fn new(options: MemberOptions, now: Nanos, saved: Option<QuorumLog>) -> Result<Member, ConfigError> {
        let first_life = saved.is_none();
        let storage = saved.unwrap_or_else(|| QuorumLog::founded(options.founding.clone()));
        let (directory, decided) = storage.directory();
        let me = options.members.iter().position(|member| *member == options.me).unwrap_or(0);
        let granter = Granter::new(now, options.timing.hold, first_life);
        Ok(Member {
            agreement: Agreement::new(me, options.life, options.members.len(), options.timing.quorum_tick, now, storage)?,
            granters: directory.chains().map(|chain| (chain.shard, granter.clone())).collect(),
            directory,
            decided,
            heard: BTreeMap::new(),
            waiting: BTreeMap::new(),
            gone: BTreeMap::new(),
            askers: BTreeMap::new(),
            leads_since: None,
            proposed: BTreeMap::new(),
            due: BTreeSet::new(),
            freed: BTreeSet::new(),
            next_check: now,
            next_sweep: now,
            catch_up_at: None,
            options,
        })
    }

    /// What has been agreed on, as far as it is known here.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Whether it believes to lead.
    pub fn leads(&self) -> bool {
        self.leads_since.is_some()
    }

    /// Takes a message of a replica or a client.
    pub fn receive(&mut self, now: Nanos, from: Address, message: Message, out: &mut Vec<MemberAction>) {
        let Message { shard, epoch, body } = message;
        let Some(chain) = self.directory.chain(shard) else { return };
        match body {
            Body::Locate if epoch < chain.epoch => answer(from, chain, out),
            Body::Locate if self.askers.len() < GCS_ASKERS_MAX => {
                self.askers.insert((shard, from), now + self.options.timing.watch);
            }
            Body::Beat(beat) => {
                if let Some((_, since)) = self.gone(shard, beat.from) {
                    // What was on its way when the connection ended says nothing: only
                    // what comes much later has found another way here.
                    if now < since + self.options.timing.detection {
                        return;
                    }
                    self.gone.remove(&(shard, beat.from.rank));
                }
                if epoch < chain.epoch {
                    answer(from, chain, out);
                }
                let is_in = chain.position(beat.from).is_some() || chain.joining == Some(beat.from);
                if epoch == Epoch(0) && !is_in && !self.directory.is_fresh(shard, beat.from) {
                    let message = Message { shard, epoch: chain.epoch, body: Body::UsedUp(beat.from) };
                    out.push(MemberAction::Send(from, message));
                }
                if epoch > chain.epoch {
                    // What told this member of that epoch is late or lost.
                    self.catch_up_at.get_or_insert(now + self.options.timing.resend);
                }
                if epoch > chain.epoch || epoch == chain.epoch && chain.position(beat.from).is_some() {
                    self.waiting.insert((shard, beat.from), (epoch, beat.clone()));
                } else {
                    // That it speaks of this epoch may end a lease of an earlier one.
                    self.try_grant(now, shard, epoch, &beat, out);
                }
                self.note(now, shard, epoch, beat);
                self.grant_waiting(now, shard, out);
            }
            _ => {}
        }
    }

    /// Keeps what a replica says of itself.
    fn note(&mut self, now: Nanos, shard: ShardId, epoch: Epoch, beat: Beat) {
        let mut heard = Heard { since: now, at: now, epoch, beat };
        let Some(known) = self.heard.get_mut(&(shard, heard.beat.from)) else {
            self.due.insert(shard);
            self.heard.insert((shard, heard.beat.from), heard);
            return;
        };
        known.at = now;
        heard.since = known.since;
        if (heard.epoch, heard.beat.sent) >= (known.epoch, known.beat.sent) {
            let is_news = |a: &Heard, b: &Heard| {
                a.epoch != b.epoch
                    || a.beat.linked != b.beat.linked
                    || a.beat.restored != b.beat.restored
                    || a.beat.cut != b.beat.cut
                    || a.beat.received.is_some() != b.beat.received.is_some()
            };
            if is_news(known, &heard) {
                self.due.insert(shard);
            }
            *known = heard;
        }
    }

    /// Grants what can be granted. Whoever speaks of an epoch has no lease of an
    /// earlier one, so what one of them says may be what another waited for.
    fn grant_waiting(&mut self, now: Nanos, shard: ShardId, out: &mut Vec<MemberAction>) {
        let epoch = self.directory.chain(shard).map_or(Epoch(0), |chain| chain.epoch);
        for _ in 0..2 {
            let beats: Vec<(Epoch, Beat)> =
                self.waiting.range((shard, FIRST)..=(shard, LAST)).map(|(_, waiting)| waiting.clone()).collect();
            for (of, beat) in beats {
                if of < epoch || of == epoch && self.try_grant(now, shard, of, &beat, out) {
                    self.waiting.remove(&(shard, beat.from));
                }
            }
        }
    }

    fn try_grant(&mut self, now: Nanos, shard: ShardId, epoch: Epoch, beat: &Beat, out: &mut Vec<MemberAction>) -> bool {
        let MemberOptions { timing, bugs, .. } = self.options;
        let (Some(chain), Some(granter)) = (self.directory.chain(shard), self.granters.get_mut(&shard)) else {
            return false;
        };
        let granted = granter.grant(now, chain, epoch, beat, timing.hold, bugs);
        if granted {
            let body = Body::Grant { to: beat.from, echo: beat.sent };
            out.push(MemberAction::Send(Address::Replica(beat.from.rank), Message { shard, epoch, body }));
        }
        granted
    }

    /// Takes a message of another member.
    pub fn consensus(&mut self, message: ConsensusMessage) {
        self.agreement.receive(message);
    }

    /// The connection with a rank has ended, and it is certain that its process
    /// has ended too or that its replicas have dropped the grants of this member
    /// ([`Replica::ended`]): the end came from that side. Where this side has
    /// closed the connection, or a host has fallen silent, nothing is told here
    /// and the leases run out.
    ///
    /// Nothing that came over a later connection may be told before this.
    ///
    /// [`Replica::ended`]: super::Replica::ended
    pub fn ended(&mut self, now: Nanos, rank: Rank) {
        for (shard, granter) in &mut self.granters {
            granter.forget(rank);
            self.freed.insert(*shard);
            let lives = self.heard.range((*shard, FIRST)..=(*shard, LAST)).filter(|((_, id), _)| id.rank == rank);
            let latest = lives.map(|((_, id), _)| id.incarnation).max().unwrap_or(0);
            let latest = latest.max(self.directory.latest_life(*shard, rank));
            let (gone, since) = self.gone.entry((*shard, rank)).or_default();
            *gone = latest.max(*gone);
            *since = now;
            self.due.insert(*shard);
        }
        self.heard.retain(|(_, replica), _| replica.rank != rank);
        self.waiting.retain(|(_, replica), _| replica.rank != rank);
        self.askers.retain(|(_, asker), _| asker.rank() != rank);
        if let Some(member) = self.options.members.iter().position(|member| *member == rank) {
            self.agreement.ended(now, member);
        }
    }

    /// Whether a life of a replica has ended: the last such life, and since when.
    fn gone(&self, shard: ShardId, replica: ReplicaId) -> Option<(u32, Nanos)> {
        self.gone.get(&(shard, replica.rank)).copied().filter(|(gone, _)| replica.incarnation <= *gone)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos) {
        let Timing { beat, detection, .. } = self.options.timing;
        self.agreement.tick(now);
        if now >= self.next_check {
            self.next_check = Timing::after(now, beat);
            self.due.extend(self.granters.keys());
        }
        if self.catch_up_at.is_some_and(|at| now >= at) {
            self.catch_up_at = None;
            self.agreement.catch_up();
        }
        if now >= self.next_sweep {
            self.next_sweep = now + detection;
            self.heard.retain(|_, heard| heard.at + 20 * detection > now);
            self.waiting.retain(|key, _| self.heard.contains_key(key));
            self.askers.retain(|_, until| *until > now);
        }
    }

    /// When [`tick`](Member::tick) and [`flush`](Member::flush) have something
    /// to do, if nothing comes before.
    pub fn next_due(&self) -> Nanos {
        if !self.freed.is_empty() || self.agreement.leads() != self.leads() || self.leads() && !self.due.is_empty() {
            return 0;
        }
        let check = if self.leads() { self.next_check } else { Nanos::MAX };
        let catch_up = self.catch_up_at.unwrap_or(Nanos::MAX);
        self.agreement.next_due().min(check).min(catch_up)
    }

    /// Ends a turn: what was agreed on meanwhile takes effect, and messages go out.
    pub fn flush(&mut self, now: Nanos, out: &mut Vec<MemberAction>) {
        let mut told = Vec::new();
        match (self.agreement.leads(), self.leads_since) {
            (true, None) => {
                self.leads_since = Some(now);
                self.due.extend(self.granters.keys());
                // Whoever led before may not have told them.
                told.extend(self.directory.chains().map(|chain| (None, chain.clone())));
            }
            (false, Some(_)) => {
                self.leads_since = None;
                self.proposed.clear();
            }
            _ => {}
        }
        if self.leads() {
            self.manage(now);
        }
        for next in self.agreement.decided(self.decided) {
            let before = self.directory.chain(next.shard).cloned();
            self.decided += 1;
            if self.directory.apply(&next).is_ok() {
                self.due.insert(next.shard);
                self.catch_up_at = None;
                told.push((before, next));
            }
        }
        self.agreement.fold(self.decided);
        let messages = self.agreement.outgoing();
        out.extend(self.agreement.changed().map(MemberAction::Save));
        for (to, message) in messages {
            out.push(MemberAction::Consensus(self.options.members[to], message));
        }
        for (before, next) in told {
            self.tell(before, &next, out);
            self.freed.insert(next.shard);
        }
        for shard in std::mem::take(&mut self.freed) {
            self.grant_waiting(now, shard, out);
        }
    }

    /// Tells of a new chain: all who asked, the replica beside this member, and
    /// as the leader all who are in the chain or were.
    fn tell(&mut self, before: Option<ChainConfig>, next: &ChainConfig, out: &mut Vec<MemberAction>) {
        let (me, leads) = (self.options.me, self.leads());
        let involved = before.iter().chain([next]).flat_map(|chain| chain.members.iter().chain(&chain.joining));
        let ranks: BTreeSet<Rank> = involved.map(|replica| replica.rank).filter(|rank| leads || *rank == me).collect();
        for rank in ranks {
            answer(Address::Replica(rank), next, out);
        }
        if before.is_some() {
            let first = (next.shard, Address::Replica(Rank(0)));
            let mut later = self.askers.split_off(&first);
            let after = ShardId(next.shard.0.saturating_add(1));
            let mut rest = later.split_off(&(after, Address::Replica(Rank(0))));
            self.askers.append(&mut rest);
            for (_, asker) in later.into_keys() {
                answer(asker, next, out);
            }
        }
    }

    /// What a leader does: finds what the chains need and proposes it, one
    /// change of a shard at a time.
    fn manage(&mut self, now: Nanos) {
        let patience = self.options.timing.detection;
        for shard in std::mem::take(&mut self.due) {
            let Some(chain) = self.directory.chain(shard) else { continue };
            let proposed = self.proposed.get(&shard);
            if proposed.is_some_and(|(epoch, at)| *epoch == chain.epoch && now < at + patience) {
                continue;
            }
            if let Some(next) = self.next_chain(now, chain) {
                debug_assert!(self.directory.judge(&next).is_ok(), "{chain:?} -> {next:?}");
                let epoch = chain.epoch;
                if self.agreement.propose(next) {
                    self.proposed.insert(shard, (epoch, now));
                }
            }
        }
    }

    /// What should become of a chain.
    fn next_chain(&self, now: Nanos, chain: &ChainConfig) -> Option<ChainConfig> {
        let leads_since = self.leads_since?;
        let heard = |replica: ReplicaId| self.heard.get(&(chain.shard, replica));
        // Whoever has just begun to lead may not have heard of anybody yet.
        let silent = |replica: ReplicaId| {
            let last = heard(replica).map_or(leads_since, |heard| heard.at.max(leads_since));
            self.gone(chain.shard, replica).is_some() || now > last + self.options.timing.detection
        };
        let proven = |replica: ReplicaId| {
            chain.epoch == Epoch(1) || heard(replica).is_some_and(|heard| heard.beat.received.is_some())
        };
        let next = |members: Vec<ReplicaId>, joining| {
            Some(ChainConfig { shard: chain.shard, epoch: Epoch(chain.epoch.0 + 1), members, joining })
        };
        if let Some(members) = self.revived(now, chain, silent) {
            return next(members, None);
        }
        let alive: Vec<ReplicaId> = chain.members.iter().copied().filter(|member| !silent(*member)).collect();
        let joining = chain.joining.filter(|joining| !silent(*joining));
        let can_lead = alive.first().is_some_and(|head| proven(*head));
        if can_lead && (alive != chain.members || joining != chain.joining) {
            return next(alive, joining);
        }
        if alive != chain.members {
            // None that could go on without the others has been heard of.
            return None;
        }
        if let Some(apart) = self.apart(now, chain).filter(|_| can_lead) {
            let rest = |replica: &ReplicaId| *replica != apart;
            return next(alive.into_iter().filter(rest).collect(), joining.filter(rest));
        }
        if let Some(joining) = chain.joining {
            let up_to_date = heard(joining).is_some_and(|heard| heard.epoch == chain.epoch && heard.beat.linked);
            return up_to_date.then(|| next([&alive[..], &[joining]].concat(), None)).flatten();
        }
        // The others of the chain must have made their links, or the one that
        // joins may find a tail that has not got everything itself.
        let settled = alive.iter().all(|m| heard(*m).is_some_and(|h| h.epoch == chain.epoch && h.beat.linked));
        if alive.len() < self.options.replicas && settled {
            return next(alive, Some(self.spare(now, chain)?));
        }
        None
    }

    /// Of two neighbours that cannot reach each other the later: what it has, the
    /// other has too. The other must have been heard of just now, or it may be
    /// that one that is about to be found silent.
    fn apart(&self, now: Nanos, chain: &ChainConfig) -> Option<ReplicaId> {
        let heard = |replica: ReplicaId| {
            self.heard.get(&(chain.shard, replica)).filter(|heard| heard.epoch == chain.epoch)
        };
        let says = |one: ReplicaId, other: ReplicaId| heard(one).is_some_and(|heard| heard.beat.cut.contains(&other.rank));
        let is_there = |one| heard(one).is_some_and(|heard| now <= heard.at + self.options.timing.detection / 2);
        let earlier = chain.members.iter();
        let later = chain.members.iter().chain(&chain.joining).skip(1);
        let mut pairs = earlier.zip(later);
        let apart = pairs.find(|(one, other)| (says(**one, **other) || says(**other, **one)) && is_there(**one));
        apart.map(|(_, other)| *other)
    }

    /// A replica that could join: one that can reach the tail, on a host that no
    /// member is on, then in as few chains as can be. One that has said that it
    /// cannot is called after a while if there is no other: its connection may
    /// have come back, and that shows only when it is used.
    fn spare(&self, now: Nanos, chain: &ChainConfig) -> Option<ReplicaId> {
        let host = |replica: &ReplicaId| self.options.hosts.get(replica.rank.index());
        let taken: BTreeSet<&u64> = chain.members.iter().filter_map(host).collect();
        let shares_host = |replica: &ReplicaId| host(replica).is_some_and(|host| taken.contains(host));
        let is_in = |rank: Rank, chain: &ChainConfig| chain.members.iter().chain(&chain.joining).any(|r| r.rank == rank);
        let chains_of = |rank: Rank| self.directory.chains().filter(|chain| is_in(rank, chain)).count();
        let is_cut = |replica: &ReplicaId| {
            let heard = self.heard.get(&(chain.shard, *replica));
            heard.zip(chain.tail()).is_some_and(|(heard, tail)| heard.beat.cut.contains(&tail.rank))
        };
        let candidates = self.heard.range((chain.shard, FIRST)..=(chain.shard, LAST));
        let fit = candidates.filter(|((_, replica), heard)| {
            now <= heard.at + self.options.timing.detection
                && (!is_cut(replica) || now > heard.since + RECALL_DETECTIONS * self.options.timing.detection)
                && self.directory.is_fresh(chain.shard, *replica)
                && chain.members.iter().all(|member| member.rank != replica.rank)
        });
        let latest_lives: BTreeMap<Rank, ReplicaId> = fit.map(|((_, replica), _)| (replica.rank, *replica)).collect();
        let order = |replica: &ReplicaId| (is_cut(replica), shares_host(replica), chains_of(replica.rank), *replica);
        latest_lives.into_values().min_by_key(order)
    }

    /// The later lives of members that have left their state on disk, if no member
    /// goes on: the one that has most is the head. Each of them has everything
    /// that was ever acknowledged, for that was on the disks of all. So one would
    /// do; the others are waited for as long as they may come, since those that
    /// are not in the chain then must join it from nothing.
    fn revived(
        &self,
        now: Nanos,
        chain: &ChainConfig,
        silent: impl Fn(ReplicaId) -> bool,
    ) -> Option<Vec<ReplicaId>> {
        let mut lives = Vec::new();
        let mut missing = false;
        for member in &chain.members {
            let first = ReplicaId { rank: member.rank, incarnation: member.incarnation + 1 };
            let last = ReplicaId { rank: member.rank, incarnation: u32::MAX };
            let later = self.heard.range((chain.shard, first)..=(chain.shard, last)).next_back();
            if let Some(((_, id), heard)) = later {
                let is_state = |left_by| self.directory.is_state_of(chain.shard, *member, left_by);
                if heard.beat.restored.is_some_and(is_state) {
                    lives.push((heard.beat.received?, heard.since, *id));
                }
            } else if silent(*member) {
                missing = true;
            } else {
                // One that lives and never got all of the state has nothing to
                // add, and cannot get it any more.
                let heard = self.heard.get(&(chain.shard, *member))?;
                if heard.epoch != chain.epoch || heard.beat.received.is_some() {
                    return None;
                }
            }
        }
        let since = lives.iter().map(|(_, since, _)| *since).min()?;
        if missing && now < since + REVIVAL_DETECTIONS * self.options.timing.detection {
            return None;
        }
        lives.sort_by_key(|(received, ..)| std::cmp::Reverse(*received));
        Some(lives.into_iter().map(|(.., id)| id).collect())
    }
}

/// For how many detection times disks that may come back are waited for when
/// others of the chain are there.
const REVIVAL_DETECTIONS: u64 = 4;
/// For how many detection times one that cannot reach the tail is not called.
const RECALL_DETECTIONS: u64 = 8;
const FIRST: ReplicaId = ReplicaId { rank: Rank(0), incarnation: 0 };
const LAST: ReplicaId = ReplicaId { rank: Rank(u32::MAX), incarnation: u32::MAX };

/// Tells of a chain.
fn answer(to: Address, chain: &ChainConfig, out: &mut Vec<MemberAction>) {
    let body = Body::Chain(Some(chain.clone()));
    out.push(MemberAction::Send(to, Message { shard: chain.shard, epoch: chain.epoch, body }));
}

#[cfg(test)]
mod tests;

//! A member of the configuration quorum: it agrees with the others on which
//! chain every shard has, through a consensus library, grants leases, and, while
//! it leads, finds who is silent and proposes what follows from that.

use std::collections::{BTreeMap, BTreeSet};

use omnipaxos::errors::ConfigError;
use omnipaxos::util::{LogEntry, NodeId};
use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};

use super::bug::Bugs;
use super::directory::Directory;
use super::granter::Granter;
use super::message::{Address, Beat, Body, ChainConfig, Epoch, Message, Nanos, ReplicaId, ShardId};
use super::quorum_log::{QuorumLog, SharedLog};
use super::timing::Timing;
use crate::base::Rank;

/// What members say to each other about what they agree on.
pub type ConsensusMessage = omnipaxos::messages::Message<ChainConfig>;

/// What a member is made with.
#[derive(Clone, Debug)]
pub struct MemberOptions {
    /// Who it is.
    pub me: Rank,
    /// All members, itself included, in the same order for all; at least two.
    pub members: Vec<Rank>,
    /// The periods of the protocol.
    pub timing: Timing,
    /// How many replicas a chain should have.
    pub replicas: usize,
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
    paxos: OmniPaxos<ChainConfig, SharedLog>,
    log: SharedLog,
    directory: Directory,
    decided: usize,
    granters: BTreeMap<ShardId, Granter>,
    heard: BTreeMap<(ShardId, ReplicaId), Heard>,
    leads_since: Option<Nanos>,
    proposed: BTreeMap<ShardId, (Epoch, Nanos)>,
    next_tick: Nanos,
    behind: bool,
    next_catch_up: Nanos,
}

/// What is known of a replica.
#[derive(Clone, Debug)]
struct Heard {
    at: Nanos,
    epoch: Epoch,
    beat: Beat,
}

/// Ticks of the library without a word from its leader before another is
/// elected.
const ELECTION_TICKS: u64 = 5;
/// Ticks before it says again what may have been lost.
const RESEND_TICKS: u64 = 3;
/// Changes that are kept before all members are asked whether they have them.
const CHANGES_KEPT: usize = 64;

impl Member {
    /// A member; `saved` is what an earlier life of it left on disk. Without
    /// that, a rank that was a member before must not be one again.
    pub fn new(options: MemberOptions, now: Nanos, saved: Option<QuorumLog>) -> Result<Member, ConfigError> {
        let first_life = saved.is_none();
        let storage = saved.unwrap_or_else(|| QuorumLog::founded(options.founding.clone()));
        let (directory, decided) = storage.directory();
        let log = SharedLog::new(storage);
        let number_of = |rank| options.members.iter().position(|member| *member == rank).map_or(0, |i| i as NodeId + 1);
        let config = OmniPaxosConfig {
            cluster_config: ClusterConfig {
                configuration_id: 1,
                nodes: options.members.iter().map(|rank| number_of(*rank)).collect(),
                flexible_quorum: None,
            },
            server_config: ServerConfig {
                pid: number_of(options.me),
                election_tick_timeout: ELECTION_TICKS,
                resend_message_tick_timeout: RESEND_TICKS,
                ..ServerConfig::default()
            },
        };
        let granter = Granter::new(now, options.timing.hold, first_life);
        Ok(Member {
            paxos: config.build(log.clone())?,
            log,
            granters: directory.chains().map(|chain| (chain.shard, granter.clone())).collect(),
            directory,
            decided,
            heard: BTreeMap::new(),
            leads_since: None,
            proposed: BTreeMap::new(),
            next_tick: now,
            behind: false,
            next_catch_up: now,
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
        let Some(chain) = self.directory.chain(message.shard) else { return };
        match message.body {
            Body::Locate if message.epoch < chain.epoch => answer(from, chain, Body::Chain(Some(chain.clone())), out),
            Body::Beat(beat) => {
                let Some(granter) = self.granters.get_mut(&message.shard) else { return };
                let MemberOptions { timing, bugs, .. } = self.options;
                if granter.grant(now, chain, message.epoch, &beat, timing.hold, bugs) {
                    let grant = Body::Grant { to: beat.from, echo: beat.sent };
                    answer(from, chain, grant, out);
                } else if message.epoch < chain.epoch {
                    answer(from, chain, Body::Chain(Some(chain.clone())), out);
                }
                // Somebody else has learned more: what told this member was lost.
                self.behind |= message.epoch > chain.epoch;
                let heard = Heard { at: now, epoch: message.epoch, beat };
                let known = self.heard.entry((message.shard, heard.beat.from)).or_insert_with(|| heard.clone());
                known.at = now;
                if (heard.epoch, heard.beat.sent) >= (known.epoch, known.beat.sent) {
                    *known = heard;
                }
            }
            _ => {}
        }
    }

    /// Takes a message of another member.
    pub fn consensus(&mut self, message: ConsensusMessage) {
        self.paxos.handle_incoming(message);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos) {
        if now >= self.next_tick {
            self.next_tick = now + self.options.timing.quorum_tick;
            self.paxos.tick();
        }
        let me = self.options.members.iter().position(|rank| *rank == self.options.me).map_or(0, |i| i as NodeId + 1);
        if self.paxos.get_current_leader() == Some((me, true)) {
            self.leads_since.get_or_insert(now);
            self.manage(now);
        } else {
            self.leads_since = None;
        }
        if self.behind && now >= self.next_catch_up {
            self.behind = false;
            self.next_catch_up = now + self.options.timing.detection;
            if let Some((leader, _)) = self.paxos.get_current_leader().filter(|(leader, _)| *leader != me) {
                self.paxos.reconnected(leader);
            }
        }
        let forgotten = 20 * self.options.timing.detection;
        self.heard.retain(|_, heard| heard.at + forgotten > now);
    }

    /// Ends a turn: what was agreed on meanwhile takes effect, and messages go out.
    pub fn flush(&mut self, out: &mut Vec<MemberAction>) {
        let mut changed = Vec::new();
        if self.paxos.get_decided_idx() > self.decided {
            for entry in self.paxos.read_decided_suffix(self.decided).unwrap_or_default() {
                let LogEntry::Decided(next) = entry else { continue };
                let before = self.directory.chain(next.shard).cloned();
                self.decided += 1;
                if self.directory.apply(&next).is_ok() {
                    changed.push((before, next));
                }
            }
            if self.leads() && self.decided - self.paxos.get_compacted_idx() > CHANGES_KEPT {
                // Refused while a member is behind: then the next change tries again.
                let _ = self.paxos.trim(None);
            }
        }
        let mut messages = Vec::new();
        self.paxos.take_outgoing_messages(&mut messages);
        self.save(out);
        for message in messages {
            let to = message.get_receiver() as usize - 1;
            if let Some(rank) = self.options.members.get(to) {
                out.push(MemberAction::Consensus(*rank, message));
            }
        }
        for (before, next) in changed.into_iter().filter(|_| self.leads_since.is_some()) {
            let mut told: Vec<Rank> =
                before.iter().chain([&next]).flat_map(|c| c.members.iter().chain(&c.joining)).map(|r| r.rank).collect();
            told.sort_unstable();
            told.dedup();
            for rank in told {
                answer(Address::Replica(rank), &next, Body::Chain(Some(next.clone())), out);
            }
        }
    }

    fn save(&mut self, out: &mut Vec<MemberAction>) {
        out.extend(self.log.changed().map(MemberAction::Save));
    }

    /// What a leader does: finds what the chains need and proposes it, one
    /// change of a shard at a time.
    fn manage(&mut self, now: Nanos) {
        let patience = 4 * self.options.timing.detection;
        let mut proposals = Vec::new();
        for chain in self.directory.chains() {
            let proposed = self.proposed.get(&chain.shard);
            if proposed.is_some_and(|(epoch, at)| *epoch == chain.epoch && now < at + patience) {
                continue;
            }
            if let Some(next) = self.next_chain(now, chain) {
                debug_assert!(self.directory.judge(&next).is_ok(), "{chain:?} -> {next:?}");
                proposals.push((chain.epoch, next));
            }
        }
        for (epoch, next) in proposals {
            let shard = next.shard;
            // Refused only while the library changes its own members, which it never does here.
            if self.paxos.append(next).is_ok() {
                self.proposed.insert(shard, (epoch, now));
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
            now > last + self.options.timing.detection
        };
        let proven = |replica: ReplicaId| {
            chain.epoch == Epoch(1) || heard(replica).is_some_and(|heard| heard.beat.received.is_some())
        };
        let next = |members: Vec<ReplicaId>, joining| {
            Some(ChainConfig { shard: chain.shard, epoch: Epoch(chain.epoch.0 + 1), members, joining })
        };
        if let Some(members) = self.revived(chain) {
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

    /// A replica that could join: one that is in no chain yet before one that is.
    fn spare(&self, now: Nanos, chain: &ChainConfig) -> Option<ReplicaId> {
        let busy: BTreeSet<Rank> = self.directory.chains().flat_map(|c| c.members.iter().map(|m| m.rank)).collect();
        let candidates = self.heard.range((chain.shard, FIRST)..=(chain.shard, LAST));
        let fit = candidates.filter(|((_, replica), heard)| {
            now <= heard.at + self.options.timing.detection
                && self.directory.is_fresh(chain.shard, *replica)
                && chain.members.iter().all(|member| member.rank != replica.rank)
        });
        let latest_lives: BTreeMap<Rank, ReplicaId> = fit.map(|((_, replica), _)| (replica.rank, *replica)).collect();
        latest_lives.into_values().min_by_key(|replica| (busy.contains(&replica.rank), *replica))
    }

    /// The later lives of all members, if all have ended and left their state on
    /// disk: the one that has most is the head. A member that lives and never got
    /// all of the state has nothing to add, and cannot get it any more.
    fn revived(&self, chain: &ChainConfig) -> Option<Vec<ReplicaId>> {
        let mut lives = Vec::new();
        for member in &chain.members {
            let first = ReplicaId { rank: member.rank, incarnation: member.incarnation + 1 };
            let last = ReplicaId { rank: member.rank, incarnation: u32::MAX };
            if let Some((id, heard)) = self.heard.range((chain.shard, first)..=(chain.shard, last)).next_back() {
                let left_by = heard.beat.restored?;
                if !self.directory.is_state_of(chain.shard, *member, left_by) {
                    return None;
                }
                lives.push((heard.beat.received?, id.1));
            } else {
                let heard = self.heard.get(&(chain.shard, *member))?;
                if heard.epoch != chain.epoch || heard.beat.received.is_some() {
                    return None;
                }
            }
        }
        lives.sort_by_key(|(received, _)| std::cmp::Reverse(*received));
        (!lives.is_empty()).then(|| lives.into_iter().map(|(_, id)| id).collect())
    }
}

const FIRST: ReplicaId = ReplicaId { rank: Rank(0), incarnation: 0 };
const LAST: ReplicaId = ReplicaId { rank: Rank(u32::MAX), incarnation: u32::MAX };

fn answer(to: Address, chain: &ChainConfig, body: Body, out: &mut Vec<MemberAction>) {
    out.push(MemberAction::Send(to, Message { shard: chain.shard, epoch: chain.epoch, body }));
}

//! How the members of the quorum agree on changes, one after the other: through
//! the consensus library, or alone where there is one member.
//!
//! When the leader is lost for certain, or there has been none yet, one member
//! stands at once, the same in the eyes of all. Only if that leads to nothing do
//! the library's elections begin, which count ticks: these are slow while there is
//! a leader, and faster without, each a quarter longer than the one before, since
//! one that is over before the others can have answered finds nobody.
//!
//! The library takes it that what one member says to another comes in order, and
//! wants to be told where something was lost: so all but heartbeats is numbered.
//! What comes late is dropped, and where numbers are missing the leader is asked
//! to begin with this member anew.

use omnipaxos::errors::ConfigError;
use omnipaxos::messages::Message;
use omnipaxos::util::{LogEntry, NodeId};
use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};
use serde::{Deserialize, Serialize};

use super::message::{ChainConfig, Nanos};
use super::quorum_log::{QuorumLog, SharedLog};
use super::timing::Timing;

/// What members say to each other about what they agree on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConsensusMessage {
    /// Which life of the sender says it.
    life: u32,
    /// Its place among all that this life says to this member; heartbeats have none.
    number: u64,
    content: Message<ChainConfig>,
}

impl ConsensusMessage {
    /// The place of the sender in the list of members.
    pub fn sender(&self) -> Option<usize> {
        (self.content.get_sender() as usize).checked_sub(1)
    }
}

/// The first pause between two ticks while there is no leader: time enough for
/// the one that stands, on a busy host.
const HASTE: Nanos = 3_000_000;
/// Ticks until the library says again what may be lost. What is said twice and
/// was not lost makes it begin anew.
const RESEND_TICKS: u64 = 5;
/// Changes that are kept before all members are asked whether they have them.
const CHANGES_KEPT: usize = 64;

/// See the module. Members are told apart by their place in the list of them.
pub(super) struct Agreement {
    log: SharedLog,
    /// Nothing for a member that is alone.
    library: Option<OmniPaxos<ChainConfig, SharedLog>>,
    me: usize,
    life: u32,
    others: Vec<Other>,
    slow: Nanos,
    pace: Nanos,
    next_tick: Nanos,
    had_leader: bool,
}

/// What a member knows of another one.
#[derive(Clone, Copy, Default)]
struct Other {
    /// Its process has ended, and nothing has come from a later life.
    lost: bool,
    life: u32,
    /// The numbers of what comes next from there, and goes there.
    incoming: u64,
    outgoing: u64,
}

impl Agreement {
    /// The member at `me` of so many, in one of its lives.
    pub(super) fn new(
        me: usize,
        life: u32,
        members: usize,
        slow: Nanos,
        now: Nanos,
        log: QuorumLog,
    ) -> Result<Agreement, ConfigError> {
        let log = SharedLog::new(log);
        let library = if members > 1 {
            let config = OmniPaxosConfig {
                cluster_config: ClusterConfig {
                    configuration_id: 1,
                    nodes: (0..members).map(number).collect(),
                    flexible_quorum: None,
                },
                server_config: ServerConfig {
                    pid: number(me),
                    election_tick_timeout: 1,
                    resend_message_tick_timeout: RESEND_TICKS,
                    ..ServerConfig::default()
                },
            };
            Some(config.build(log.clone())?)
        } else {
            None
        };
        let mut agreement = Agreement {
            log,
            library,
            me,
            life,
            others: vec![Other::default(); members],
            slow,
            pace: HASTE.min(slow),
            next_tick: now + HASTE.min(slow),
            had_leader: false,
        };
        // Whoever led before this life may have ended as well.
        agreement.stand();
        Ok(agreement)
    }

    /// Takes a message of another member.
    pub(super) fn receive(&mut self, message: ConsensusMessage) {
        let leader = self.leader();
        let ConsensusMessage { life, number: place, content } = message;
        let from = (content.get_sender() as usize).wrapping_sub(1);
        let Some(other) = self.others.get_mut(from).filter(|_| from != self.me) else { return };
        let Some(library) = self.library.as_mut().filter(|_| content.get_receiver() == number(self.me)) else { return };
        if life < other.life {
            return;
        }
        if life > other.life {
            *other = Other { life, incoming: 0, ..*other };
        }
        other.lost = false;
        if matches!(content, Message::SequencePaxos(_)) {
            if place < other.incoming {
                return;
            }
            if place > other.incoming && leader == Some(from) {
                library.reconnected(number(from));
            }
            other.incoming = place.saturating_add(1);
        }
        library.handle_incoming(content);
    }

    /// The process of a member has ended.
    pub(super) fn ended(&mut self, now: Nanos, member: usize) {
        if let Some(other) = self.others.get_mut(member) {
            other.lost = true;
        }
        if self.leader() == Some(member) {
            self.stand();
        }
        self.find_pace(now);
    }

    /// Tries to lead, if that is for this one to try first. Whoever else begins
    /// to lead does no harm.
    fn stand(&mut self) {
        let first = self.others.iter().rposition(|other| !other.lost);
        if let Some(library) = self.library.as_mut().filter(|_| first == Some(self.me)) {
            library.try_become_leader();
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Nanos) {
        self.find_pace(now);
        if now >= self.next_tick {
            self.pace = (self.pace + self.pace / 4).min(self.slow);
            self.next_tick = if self.pace < self.slow { now + self.pace } else { Timing::after(now, self.slow) };
            self.library.iter_mut().for_each(OmniPaxos::tick);
        }
    }

    fn find_pace(&mut self, now: Nanos) {
        let has_leader = self.has_leader();
        if self.had_leader != has_leader {
            self.had_leader = has_leader;
            self.pace = if has_leader { self.slow } else { HASTE.min(self.slow) };
            self.next_tick = now + self.pace;
        }
    }

    /// When [`tick`](Agreement::tick) has something to do.
    pub(super) fn next_due(&self) -> Nanos {
        match &self.library {
            None => Nanos::MAX,
            Some(_) if self.had_leader != self.has_leader() => 0,
            Some(_) => self.next_tick,
        }
    }

    /// Who leads, as far as is known.
    fn leader(&self) -> Option<usize> {
        let (leader, _) = self.library.as_ref()?.get_current_leader()?;
        (leader as usize).checked_sub(1)
    }

    /// Whether there is a leader, as far as is known; it need not have told this
    /// member everything yet.
    fn has_leader(&self) -> bool {
        self.leader().and_then(|leader| self.others.get(leader)).is_some_and(|leader| !leader.lost)
    }

    /// Whether this member leads.
    pub(super) fn leads(&self) -> bool {
        match &self.library {
            None => true,
            Some(library) => library.get_current_leader() == Some((number(self.me), true)),
        }
    }

    /// Proposes a change; whether that was possible.
    pub(super) fn propose(&mut self, change: ChainConfig) -> bool {
        match &mut self.library {
            None => {
                self.log.decide(change);
                true
            }
            // Refused only while the library changes its own members, which it never does here.
            Some(library) => library.append(change).is_ok(),
        }
    }

    /// All changes that were agreed on after the first `known`.
    pub(super) fn decided(&self, known: usize) -> Vec<ChainConfig> {
        let Some(library) = &self.library else { return self.log.decided(known) };
        if library.get_decided_idx() <= known {
            return Vec::new();
        }
        let entries = library.read_decided_suffix(known).unwrap_or_default();
        let change = |entry| if let LogEntry::Decided(change) = entry { Some(change) } else { None };
        entries.into_iter().filter_map(change).collect()
    }

    /// Folds old changes, of which so many were agreed on, into one state.
    pub(super) fn fold(&mut self, decided: usize) {
        if !self.leads() || self.log.kept() <= CHANGES_KEPT {
            return;
        }
        match &mut self.library {
            None => self.log.fold(decided),
            // Refused while a member is behind: then the next change tries again.
            Some(library) => _ = library.trim(None),
        }
    }

    /// Asks the leader for what was lost on its way.
    pub(super) fn catch_up(&mut self) {
        let leader = self.leader().filter(|leader| *leader != self.me);
        if let (Some(leader), Some(library)) = (leader, &mut self.library) {
            library.reconnected(number(leader));
        }
    }

    /// What is to be sent, and to whom; after what is to be saved.
    pub(super) fn outgoing(&mut self) -> Vec<(usize, ConsensusMessage)> {
        let mut messages = Vec::new();
        if let Some(library) = &mut self.library {
            library.take_outgoing_messages(&mut messages);
        }
        let mut placed = |content: Message<ChainConfig>| {
            let to = (content.get_receiver() as usize).checked_sub(1)?;
            let other = self.others.get_mut(to)?;
            let number = other.outgoing;
            other.outgoing += u64::from(matches!(content, Message::SequencePaxos(_)));
            Some((to, ConsensusMessage { life: self.life, number, content }))
        };
        messages.into_iter().filter_map(&mut placed).collect()
    }

    /// What is to be saved, if it has changed since this was asked last.
    pub(super) fn changed(&self) -> Option<Vec<u8>> {
        self.log.changed()
    }
}

/// The library counts from 1.
fn number(member: usize) -> NodeId {
    member as NodeId + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcs::message::{Epoch, ShardId};

    /// Delivers what members say, and what follows from it, but for what `held` takes.
    fn exchange(members: &mut [Option<Agreement>], mut held: impl FnMut(usize, &ConsensusMessage) -> bool) {
        loop {
            let said: Vec<_> = members.iter_mut().flatten().flat_map(Agreement::outgoing).collect();
            if said.is_empty() {
                return;
            }
            for (to, message) in said {
                if let Some(member) = members[to].as_mut().filter(|_| !held(to, &message)) {
                    member.receive(message);
                }
            }
        }
    }

    #[test]
    fn a_request_that_is_overtaken_stops_nobody() {
        let founded = || QuorumLog::founded(Vec::new());
        let member = |me, life, log| Agreement::new(me, life, 3, 1_000_000, 0, log).unwrap();
        let mut members: Vec<_> = (0..3).map(|me| Some(member(me, 1, founded()))).collect();
        exchange(&mut members, |_, _| false);
        assert!(members[2].as_ref().is_some_and(Agreement::leads));
        // Another life of the first asks the leader to begin with it, and that is late.
        let saved = members[0].as_ref().and_then(Agreement::changed).unwrap();
        members[0] = Some(member(0, 2, QuorumLog::decode(&saved).unwrap()));
        members[1] = None;
        let mut late = Vec::new();
        exchange(&mut members, |to, message| {
            late.extend((to == 2).then(|| message.clone()));
            to == 2
        });
        let request = late.into_iter().next().unwrap();
        // Meanwhile the leader stands again, and is promised all it needs.
        members[2].as_mut().unwrap().stand();
        exchange(&mut members, |_, _| false);
        members[2].as_mut().unwrap().receive(request);
        exchange(&mut members, |_, _| false);
        let change = ChainConfig { shard: ShardId(0), epoch: Epoch(2), members: Vec::new(), joining: None };
        assert!(members[2].as_mut().unwrap().propose(change.clone()));
        exchange(&mut members, |_, _| false);
        for member in [0, 2] {
            assert_eq!(members[member].as_ref().unwrap().decided(0), std::slice::from_ref(&change), "member {member}");
        }
    }
}

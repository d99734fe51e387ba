//! How a member of the configuration quorum grants leases: to the members of the
//! latest chain that it knows, and only once no lease of an earlier epoch that
//! it granted can still be used.
//!
//! A replica reads under grants of a majority. Two majorities share a member,
//! and no member has grants of two epochs out at once: so nobody reads in an
//! epoch while somebody still can in an earlier one.

use std::collections::BTreeMap;

use super::bug::{Bug, Bugs};
use super::message::{Beat, ChainConfig, Epoch, Nanos, ReplicaId};
use crate::base::Rank;

/// The leases of one shard that a member of the quorum has granted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Granter {
    /// None is granted before this.
    quiet_until: Nanos,
    held: BTreeMap<ReplicaId, (Epoch, Nanos)>,
}

impl Granter {
    /// A granter that may have granted leases in an earlier life up to `now`,
    /// of which it knows nothing, unless this is the start of the job.
    pub fn new(now: Nanos, hold: Nanos, first_life: bool) -> Granter {
        Granter { quiet_until: if first_life { 0 } else { now + hold }, held: BTreeMap::new() }
    }

    /// Whether the beat of a replica is answered by a grant, given the chain as
    /// it is known here.
    pub fn grant(&mut self, now: Nanos, chain: &ChainConfig, epoch: Epoch, beat: &Beat, hold: Nanos, bugs: Bugs) -> bool {
        self.held.retain(|_, (_, until)| *until > now);
        // Whoever speaks of a later epoch reads in no earlier one any more.
        if self.held.get(&beat.from).is_some_and(|(held, _)| *held < epoch) {
            self.held.remove(&beat.from);
        }
        let earlier = self.held.values().any(|(held, _)| *held < epoch) && !bugs.has(Bug::GrantEarly);
        let is_member = chain.position(beat.from).is_some();
        if epoch != chain.epoch || !is_member || earlier || now < self.quiet_until {
            return false;
        }
        self.held.insert(beat.from, (epoch, now + hold));
        true
    }

    /// Nobody on this rank reads under a grant of this member any more.
    pub fn forget(&mut self, rank: Rank) {
        self.held.retain(|replica, _| replica.rank != rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcs::ShardId;

    #[test]
    fn no_two_epochs_have_leases_at_once() {
        let id = |rank| ReplicaId { rank: Rank(rank), incarnation: 1 };
        let chain = |epoch, members: &[ReplicaId]| ChainConfig {
            shard: ShardId(0),
            epoch: Epoch(epoch),
            members: members.to_vec(),
            joining: None,
        };
        let beat = |rank| Beat { from: id(rank), sent: 0, received: None, linked: true, restored: None, cut: Vec::new() };
        let mut granter = Granter::new(0, 100, true);
        let mut grant = |now, chain: &ChainConfig, epoch, rank| {
            granter.grant(now, chain, Epoch(epoch), &beat(rank), 100, Bugs::default())
        };
        let first = chain(1, &[id(0), id(1)]);
        assert!(grant(0, &first, 1, 0) && grant(10, &first, 1, 1));
        assert!(!grant(10, &first, 1, 2), "not a member");
        let second = chain(2, &[id(1)]);
        assert!(!grant(20, &second, 1, 1), "an earlier epoch");
        assert!(!grant(30, &second, 2, 1), "rank 0 may read until 100");
        assert!(grant(100, &second, 2, 1));
        let third = chain(3, &[id(1)]);
        assert!(grant(101, &third, 3, 1), "it gave up the lease of epoch 2 itself");
        let fourth = chain(4, &[id(0)]);
        assert!(!grant(102, &fourth, 4, 0), "rank 1 may read until 201");
        granter.forget(Rank(1));
        assert!(granter.grant(103, &fourth, Epoch(4), &beat(0), 100, Bugs::default()));
        let mut reborn = Granter::new(50, 100, false);
        assert!(!reborn.grant(149, &third, Epoch(3), &beat(1), 100, Bugs::default()));
        assert!(reborn.grant(150, &third, Epoch(3), &beat(1), 100, Bugs::default()));
    }
}

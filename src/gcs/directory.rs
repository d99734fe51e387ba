//! Which chain every shard has, and which changes are allowed: what the
//! configuration quorum agrees on. Whoever proposes a change may be wrong about
//! what is alive; what is not allowed here does not happen.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::message::{ChainConfig, Epoch, ReplicaId, ShardId};
use crate::base::Rank;

/// See the module.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Directory {
    chains: BTreeMap<ShardId, ChainConfig>,
    /// The latest life of each rank that was in a shard's chain. None up to it
    /// comes back.
    used: BTreeMap<(ShardId, Rank), u32>,
    /// The life in which a member came into the chain by a way other than from
    /// its own disk: what that life and later ones left is the chain's.
    origins: BTreeMap<(ShardId, Rank), u32>,
}

/// What one change does to a chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// Members or the one that joins are gone.
    Shrinks,
    /// A replica begins to be brought up to date.
    Joins,
    /// The one that joins becomes the tail.
    Grows,
    /// Every life of the chain has ended; later ones take over what they left on
    /// disk.
    Revives,
}

/// Why a change does not happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Rejection {
    /// The shard does not exist.
    #[error("there is no such shard")]
    NoSuchShard,
    /// The change is not for the chain that there is.
    #[error("the chain has changed meanwhile")]
    Outdated,
    /// A replica that was removed, or an earlier life, would be in the chain.
    #[error("a replica that was removed cannot come back")]
    Removed,
    /// Nothing that a chain may become.
    #[error("a chain cannot change so")]
    NotAllowed,
}

impl Directory {
    /// The first chain of each shard.
    pub fn founded(chains: Vec<ChainConfig>) -> Directory {
        let used = chains.iter().flat_map(|chain| {
            chain.members.iter().map(|member| ((chain.shard, member.rank), member.incarnation)).collect::<Vec<_>>()
        });
        let used: BTreeMap<_, _> = used.collect();
        Directory { origins: used.clone(), used, chains: chains.into_iter().map(|chain| (chain.shard, chain)).collect() }
    }

    /// The chain of a shard.
    pub fn chain(&self, shard: ShardId) -> Option<&ChainConfig> {
        self.chains.get(&shard)
    }

    /// All chains.
    pub fn chains(&self) -> impl Iterator<Item = &ChainConfig> {
        self.chains.values()
    }

    /// Whether a replica could join a shard.
    pub fn is_fresh(&self, shard: ShardId, replica: ReplicaId) -> bool {
        self.used.get(&(shard, replica.rank)).is_none_or(|used| *used < replica.incarnation)
    }

    /// The latest life of a rank that was in the chain of a shard; 0 if none was.
    pub fn latest_life(&self, shard: ShardId, rank: Rank) -> u32 {
        self.used.get(&(shard, rank)).copied().unwrap_or(0)
    }

    /// Whether what a life of a rank left on disk is what its chain's present
    /// member had on disk.
    pub fn is_state_of(&self, shard: ShardId, member: ReplicaId, left_by: u32) -> bool {
        let origin = self.origins.get(&(shard, member.rank)).copied().unwrap_or(u32::MAX);
        (origin..=member.incarnation).contains(&left_by)
    }

    /// Makes a change, if it is allowed.
    pub fn apply(&mut self, next: &ChainConfig) -> Result<Change, Rejection> {
        let change = self.judge(next)?;
        for replica in next.members.iter().chain(&next.joining) {
            self.used.insert((next.shard, replica.rank), replica.incarnation);
        }
        if let (Change::Joins, Some(joining)) = (change, next.joining) {
            self.origins.insert((next.shard, joining.rank), joining.incarnation);
        }
        self.chains.insert(next.shard, next.clone());
        Ok(change)
    }

    /// What a change would be.
    pub fn judge(&self, next: &ChainConfig) -> Result<Change, Rejection> {
        let current = self.chains.get(&next.shard).ok_or(Rejection::NoSuchShard)?;
        if next.epoch != Epoch(current.epoch.0 + 1) {
            return Err(Rejection::Outdated);
        }
        if next.members.is_empty() {
            return Err(Rejection::NotAllowed);
        }
        let same_members = next.members == current.members;
        let mut rest = current.members.iter();
        let fewer = next.members.iter().all(|member| rest.any(|other| other == member));
        let fresh = |replica: &ReplicaId| self.is_fresh(next.shard, *replica);
        match (current.joining, next.joining) {
            (before, after) if same_members && after == before => Err(Rejection::NotAllowed),
            (before, after) if fewer && (after == before || after.is_none()) => Ok(Change::Shrinks),
            (None, Some(joining)) if same_members => {
                let other_rank = current.members.iter().all(|member| member.rank != joining.rank);
                match fresh(&joining) {
                    true if other_rank => Ok(Change::Joins),
                    true => Err(Rejection::NotAllowed),
                    false => Err(Rejection::Removed),
                }
            }
            (Some(joining), None) if grown(current, joining) == next.members => Ok(Change::Grows),
            (_, None) if ranks_are_among(next, current) => {
                if next.members.iter().all(fresh) { Ok(Change::Revives) } else { Err(Rejection::Removed) }
            }
            _ => Err(Rejection::NotAllowed),
        }
    }
}

fn grown(current: &ChainConfig, joining: ReplicaId) -> Vec<ReplicaId> {
    current.members.iter().copied().chain([joining]).collect()
}

/// Whether no rank of a chain is twice in it, and all are in the other.
fn ranks_are_among(next: &ChainConfig, current: &ChainConfig) -> bool {
    let ranks = |chain: &ChainConfig| chain.members.iter().map(|member| member.rank).collect::<BTreeSet<Rank>>();
    ranks(next).len() == next.members.len() && ranks(next).is_subset(&ranks(current))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(rank: u32, incarnation: u32) -> ReplicaId {
        ReplicaId { rank: Rank(rank), incarnation }
    }

    fn chain(epoch: u64, members: &[ReplicaId], joining: Option<ReplicaId>) -> ChainConfig {
        ChainConfig { shard: ShardId(0), epoch: Epoch(epoch), members: members.to_vec(), joining }
    }

    #[test]
    fn a_chain_loses_members_and_gains_them_at_the_tail() {
        let (a, b, c, d) = (id(0, 1), id(1, 1), id(2, 1), id(3, 1));
        let mut directory = Directory::founded(vec![chain(1, &[a, b, c], None)]);
        assert_eq!(directory.apply(&chain(2, &[b, c], None)), Ok(Change::Shrinks));
        assert_eq!(directory.apply(&chain(2, &[b], None)), Err(Rejection::Outdated));
        assert_eq!(directory.apply(&chain(3, &[], None)), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(3, &[c, b], None)), Err(Rejection::Removed));
        assert_eq!(directory.apply(&chain(3, &[b, c], None)), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(3, &[b, c], Some(a))), Err(Rejection::Removed));
        assert_eq!(directory.apply(&chain(3, &[b, c], Some(id(1, 2)))), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(3, &[b, c, d], None)), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(3, &[b, c], Some(d))), Ok(Change::Joins));
        assert_eq!(directory.apply(&chain(4, &[c], Some(d))), Ok(Change::Shrinks));
        assert_eq!(directory.apply(&chain(5, &[d, c], None)), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(5, &[c, d], None)), Ok(Change::Grows));
        assert_eq!(directory.apply(&chain(6, &[c, d], Some(id(0, 2)))), Ok(Change::Joins));
        assert_eq!(directory.apply(&chain(7, &[c, d], None)), Ok(Change::Shrinks));
        assert_eq!(directory.apply(&chain(8, &[c, d], Some(id(0, 2)))), Err(Rejection::Removed));
    }

    #[test]
    fn only_later_lives_revive_a_chain() {
        let mut directory = Directory::founded(vec![chain(1, &[id(0, 1), id(1, 1)], None)]);
        assert_eq!(directory.apply(&chain(2, &[id(1, 2), id(0, 1)], None)), Err(Rejection::Removed));
        assert_eq!(directory.apply(&chain(2, &[id(1, 2), id(1, 3)], None)), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(2, &[id(2, 2)], None)), Err(Rejection::NotAllowed));
        assert_eq!(directory.apply(&chain(2, &[id(1, 2), id(0, 2)], None)), Ok(Change::Revives));
        let elsewhere = ChainConfig { shard: ShardId(1), ..chain(3, &[id(1, 2)], None) };
        assert_eq!(directory.apply(&elsewhere), Err(Rejection::NoSuchShard));
    }
}

//! Where the control store lives at the start of a job: a function of which rank
//! runs on which host, so that all ranks find the same without a word.

use std::collections::BTreeMap;

use super::message::{ChainConfig, Epoch, ReplicaId, ShardId};
use crate::base::Rank;

/// The first chains of a job, one for each shard in order. `hosts` names the
/// host of every rank, by rank.
///
/// A chain has `replicas` members, or all ranks if there are fewer: the first
/// ranks of different hosts, and where hosts run out the next ranks of those.
/// Each shard begins one rank further, so that heads and tails, which have more
/// to do, are spread.
///
/// # Examples
/// ```
/// use collimate::gcs::founding_chains;
///
/// // Ranks 0 and 1 share a host: the chain of two is on ranks 0 and 2.
/// let chains = founding_chains(&["a", "a", "b"], 2, 1);
/// let ranks: Vec<u32> = chains[0].members.iter().map(|member| member.rank.0).collect();
/// assert_eq!(ranks, [0, 2]);
/// ```
pub fn founding_chains<H: Ord>(hosts: &[H], replicas: usize, shards: u16) -> Vec<ChainConfig> {
    let ranks = spread(hosts);
    let members = |shard: u16| {
        let turned = ranks.iter().cycle().skip(usize::from(shard) % ranks.len().max(1));
        let life = |rank: &Rank| ReplicaId { rank: *rank, incarnation: 1 };
        turned.take(replicas.min(ranks.len())).map(life).collect()
    };
    let chain = |shard| ChainConfig { shard: ShardId(shard), epoch: Epoch(1), members: members(shard), joining: None };
    (0..shards).map(chain).collect()
}

/// The ranks of the configuration quorum, by the same rule: five of them, of
/// which two can be lost; three or one where there are not enough ranks, for an
/// even number could lose no more than the odd one below it.
pub fn founding_quorum<H: Ord>(hosts: &[H]) -> Vec<Rank> {
    let ranks = spread(hosts);
    let odd = ranks.len() - usize::from(ranks.len().is_multiple_of(2) && !ranks.is_empty());
    ranks.into_iter().take(odd.min(QUORUM_MAX)).collect()
}

const QUORUM_MAX: usize = 5;

/// All ranks: the first of every host, then the second of every host, and so on.
fn spread<H: Ord>(hosts: &[H]) -> Vec<Rank> {
    let mut seen = BTreeMap::new();
    let place_on_host = |(rank, host)| {
        let before: &mut u32 = seen.entry(host).or_default();
        *before += 1;
        (*before, Rank(rank))
    };
    let mut ordered: Vec<(u32, Rank)> = (0..).zip(hosts).map(place_on_host).collect();
    ordered.sort_unstable();
    ordered.into_iter().map(|(_, rank)| rank).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(hosts: &str, replicas: usize, shards: u16) -> Vec<Vec<u32>> {
        let hosts: Vec<char> = hosts.chars().collect();
        let chains = founding_chains(&hosts, replicas, shards);
        assert!(chains.iter().enumerate().all(|(number, chain)| usize::from(chain.shard.0) == number));
        chains.iter().map(|chain| chain.members.iter().map(|member| member.rank.0).collect()).collect()
    }

    #[test]
    fn replicas_are_on_different_hosts_where_there_are_enough() {
        assert_eq!(ranks("aabbcc", 3, 1), [[0, 2, 4]]);
        assert_eq!(ranks("abab", 3, 1), [[0, 1, 2]], "two hosts: the third shares one");
        assert_eq!(ranks("aaab", 3, 1), [[0, 3, 1]]);
        assert_eq!(ranks("aa", 3, 1), [[0, 1]], "no more replicas than ranks");
        assert_eq!(ranks("a", 3, 2), [[0], [0]]);
        assert_eq!(ranks("", 3, 1), [[0_u32; 0]; 1]);
    }

    #[test]
    fn the_quorum_is_odd() {
        let quorum = |hosts: &str| {
            let hosts: Vec<char> = hosts.chars().collect();
            founding_quorum(&hosts).into_iter().map(|rank| rank.0).collect::<Vec<_>>()
        };
        assert_eq!(quorum("a"), [0]);
        assert_eq!(quorum("ab"), [0]);
        assert_eq!(quorum("aab"), [0, 2, 1]);
        assert_eq!(quorum("abcd"), [0, 1, 2]);
        assert_eq!(quorum("aabbcc"), [0, 2, 4, 1, 3]);
        assert_eq!(quorum(""), [0; 0]);
    }

    #[test]
    fn shards_begin_one_rank_further_each() {
        assert_eq!(ranks("abc", 3, 4), [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]);
        assert_eq!(ranks("aabb", 1, 5), [[0], [2], [1], [3], [0]]);
    }
}

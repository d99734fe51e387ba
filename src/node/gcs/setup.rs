//! Who keeps what of the control store: a function of the cards of all ranks, so
//! that all find the same without a word.

use serde::{Deserialize, Serialize};

use super::disk::{LIVES_MAX, Layout};
use crate::base::{Config, Rank};
use crate::boot::Card;
use crate::gcs::{ChainConfig, founding_chains, founding_quorum};

/// What all ranks must have set alike, as it stands on their cards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(in crate::node) struct Agreement {
    replicas: u8,
    shards: u16,
    durable: bool,
    /// Which run of the job on its directory this is, from 1; only rank 0's counts.
    life: u32,
    /// Whether an earlier run has got so far as to keep anything there; likewise.
    has_past: bool,
}

/// Who keeps what at the start, and in which life of the job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::node) struct Setup {
    pub replicas: usize,
    /// By rank.
    pub hosts: Vec<u64>,
    pub quorum: Vec<Rank>,
    pub chains: Vec<ChainConfig>,
    pub life: u32,
    pub has_past: bool,
}

impl Agreement {
    /// What this rank would agree to.
    pub fn of(config: &Config, life: u32, has_past: bool) -> Agreement {
        let Config { gcs_replicas: replicas, gcs_shards: shards, .. } = *config;
        Agreement { replicas, shards, durable: config.gcs_dir.is_some(), life, has_past }
    }

    /// As it goes on the card.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain numbers can be encoded")
    }
}

impl Setup {
    /// What must be the same in all runs of a job on one folder.
    pub fn layout(&self, ranks: u32) -> Layout {
        let (replicas, shards) = (self.replicas as u32, self.chains.len() as u32);
        Layout { ranks, replicas, shards, quorum: self.quorum.clone() }
    }

    /// Reads all cards.
    ///
    /// # Errors
    /// In words, if two ranks have set different things.
    pub fn agreed(cards: &[Card]) -> Result<Setup, String> {
        let read = |card: &Card| {
            postcard::from_bytes::<Agreement>(&card.note)
                .map_err(|_| format!("{} runs another version of Collimate: start all ranks from the same build", card.rank))
        };
        let first = read(&cards[0])?;
        for card in &cards[1..] {
            let theirs = read(card)?;
            let differ = |variable: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
                let (zero, rank) = (cards[0].rank, card.rank);
                Err(format!("{variable} is {ours} on {zero} and {theirs} on {rank}: set it alike on all ranks"))
            };
            if theirs.replicas != first.replicas {
                return differ("COLLIMATE_GCS_REPLICAS", &first.replicas, &theirs.replicas);
            }
            if theirs.shards != first.shards {
                return differ("COLLIMATE_GCS_SHARDS", &first.shards, &theirs.shards);
            }
            if theirs.durable != first.durable {
                let set = |durable| if durable { "set" } else { "not set" };
                return differ("COLLIMATE_GCS_DIR", &set(first.durable), &set(theirs.durable));
            }
        }
        if !(1..=LIVES_MAX).contains(&first.life) {
            let (zero, life) = (cards[0].rank, first.life);
            return Err(format!(
                "{zero} says that this is run {life} of the job, and runs are numbered from 1 to {LIVES_MAX}: start all \
                 ranks from the same build"
            ));
        }
        let hosts: Vec<u64> = cards.iter().map(|card| card.host.0).collect();
        Ok(Setup {
            replicas: usize::from(first.replicas),
            quorum: founding_quorum(&hosts),
            chains: founding_chains(&hosts, usize::from(first.replicas), first.shards),
            hosts,
            life: first.life,
            has_past: first.has_past,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::HostId;

    fn card(rank: u32, config: &Config) -> Card {
        Card {
            rank: Rank(rank),
            host: HostId(u64::from(rank) / 2),
            tcp: "127.0.0.1:1".parse().unwrap(),
            unix: String::new(),
            pid: 1,
            lanes: 0,
            note: Agreement::of(config, 7, true).encode(),
        }
    }

    #[test]
    fn all_ranks_find_the_same() {
        let config = Config { gcs_replicas: 2, gcs_shards: 3, ..Config::default() };
        let cards: Vec<Card> = (0..5).map(|rank| card(rank, &config)).collect();
        let setup = Setup::agreed(&cards).unwrap();
        assert_eq!(setup.life, 7);
        assert_eq!(setup.hosts, [0, 0, 1, 1, 2]);
        assert_eq!(setup.quorum, [0, 2, 4, 1, 3].map(Rank));
        assert_eq!(setup.chains.len(), 3);
        assert!(setup.chains.iter().all(|chain| chain.members.len() == 2));
    }

    #[test]
    fn what_differs_is_named_with_both_ranks() {
        let config = Config::default();
        let others = [
            (Config { gcs_replicas: 2, ..Config::default() }, "COLLIMATE_GCS_REPLICAS is 3 on rank 0 and 2 on rank 1"),
            (Config { gcs_shards: 9, ..Config::default() }, "COLLIMATE_GCS_SHARDS is 1 on rank 0 and 9 on rank 1"),
            (
                Config { gcs_dir: Some("/x".into()), ..Config::default() },
                "COLLIMATE_GCS_DIR is not set on rank 0 and set on rank 1",
            ),
        ];
        for (other, text) in others {
            let error = Setup::agreed(&[card(0, &config), card(1, &other)]).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        for life in [0, LIVES_MAX + 1] {
            let zero = Card { note: Agreement::of(&config, life, true).encode(), ..card(0, &config) };
            let error = Setup::agreed(&[zero, card(1, &config)]).unwrap_err();
            assert!(error.contains(&format!("run {life} of the job")), "{error}");
        }
        let stranger = Card { note: vec![1], ..card(1, &config) };
        assert!(Setup::agreed(&[card(0, &config), stranger]).unwrap_err().contains("another version"));
    }
}

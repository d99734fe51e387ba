//! What a replica must know of the commands that it has and that are not committed
//! here: a head, that one which comes again is there; a member that may answer
//! reads, whether what is asked for may be about to change.
//!
//! All of it follows from the log. Where commands come in the order of their
//! numbers, and nobody reads, nothing is looked up in it and none of it is made:
//! it is when it is first asked for, and kept until nothing is under way.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHashSet};
use twox_hash::XxHash3_128;

use super::super::message::Entry;
use super::super::record::{Key, Table};
use super::super::state::{ClientId, Command, Query};
use crate::base::Rank;

const TABLES: usize = Table::ALL.len();

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct UnderWay {
    is_head: bool,
    /// Of a head: the last command that it was given by a client of each rank, by
    /// its incarnation and its number. What comes after it is new.
    latest: BTreeMap<Rank, (u32, u64)>,
    commands: Kept<FxHashSet<(ClientId, u64)>>,
    keys: Kept<Keys>,
}

/// Something that is made of what is under way when it is needed.
#[derive(Clone, Debug, Default)]
struct Kept<T> {
    is_made: bool,
    of: T,
}

/// Which keys are about to change.
#[derive(Clone, Debug, Default)]
struct Keys {
    /// How many commands change a key with this hash. Two keys that share it are
    /// taken for one, which costs a question to the tail.
    keys: FxHashMap<u64, u32>,
    /// How many change a key of each table: a scan is not looked at more closely.
    tables: [u32; TABLES],
    /// How many change more than one key.
    wide: u32,
}

/// Two replicas with the same log differ only in what they have made of it.
impl PartialEq for UnderWay {
    fn eq(&self, _: &UnderWay) -> bool {
        true
    }
}

impl Eq for UnderWay {}

impl Hash for UnderWay {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl UnderWay {
    /// What commands that are not committed come to, for a head or not.
    pub(super) fn of<'e>(is_head: bool, entries: impl Iterator<Item = &'e Entry>) -> UnderWay {
        let mut under_way = UnderWay { is_head, ..UnderWay::default() };
        entries.for_each(|entry| under_way.add(&entry.command));
        under_way
    }

    #[inline]
    pub(super) fn add(&mut self, command: &Command) {
        if self.is_head {
            let ClientId { rank, incarnation } = command.client;
            let latest = self.latest.entry(rank).or_default();
            *latest = (*latest).max((incarnation, command.number));
            if self.commands.is_made {
                self.commands.of.insert((command.client, command.number));
            }
        }
        if self.keys.is_made {
            self.keys.of.add(command);
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, command: &Command) {
        if self.commands.is_made {
            self.commands.of.remove(&(command.client, command.number));
        }
        if self.keys.is_made {
            self.keys.of.remove(command);
        }
    }

    /// Nothing is under way.
    #[inline]
    pub(super) fn rest(&mut self) {
        self.commands.is_made = false;
        self.keys.is_made = false;
    }

    /// Whether a head has this command; `entries` are all that are under way.
    #[inline]
    pub(super) fn has<'e>(&mut self, command: &Command, entries: impl Iterator<Item = &'e Entry>) -> bool {
        let ClientId { rank, incarnation } = command.client;
        let is_new = self.latest.get(&rank).is_none_or(|latest| (incarnation, command.number) > *latest);
        !is_new && self.commands(entries).contains(&(command.client, command.number))
    }

    #[cold]
    fn commands<'e>(&mut self, entries: impl Iterator<Item = &'e Entry>) -> &FxHashSet<(ClientId, u64)> {
        let Kept { is_made, of } = &mut self.commands;
        if !std::mem::replace(is_made, true) {
            of.clear();
            of.extend(entries.map(|entry| (entry.command.client, entry.command.number)));
        }
        of
    }

    /// Whether an answer from the committed state might be too old; `entries` are
    /// all that are under way.
    pub(super) fn touches<'e>(&mut self, query: &Query, entries: impl Iterator<Item = &'e Entry>) -> bool {
        let Kept { is_made, of } = &mut self.keys;
        if !std::mem::replace(is_made, true) {
            of.clear();
            entries.for_each(|entry| of.add(&entry.command));
        }
        of.touches(query)
    }
}

impl Keys {
    fn clear(&mut self) {
        self.keys.clear();
        self.tables = [0; TABLES];
        self.wide = 0;
    }

    fn add(&mut self, command: &Command) {
        match command.op.key() {
            Some(key) => {
                *self.keys.entry(hash_of(key)).or_default() += 1;
                self.tables[key.table as usize] += 1;
            }
            None => self.wide += 1,
        }
    }

    fn remove(&mut self, command: &Command) {
        let Some(key) = command.op.key() else {
            self.wide -= 1;
            return;
        };
        self.tables[key.table as usize] -= 1;
        let hash = hash_of(key);
        if let Some(count) = self.keys.get_mut(&hash) {
            *count -= 1;
            if *count == 0 {
                self.keys.remove(&hash);
            }
        }
    }

    fn touches(&self, query: &Query) -> bool {
        self.wide > 0
            || match query {
                Query::Get(keys) => !self.keys.is_empty() && keys.iter().any(|key| self.keys.contains_key(&hash_of(key))),
                Query::Scan { table, .. } => self.tables[*table as usize] > 0,
            }
    }
}

#[inline]
fn hash_of(key: &Key) -> u64 {
    XxHash3_128::oneshot_with_seed(key.table as u64, &key.bytes) as u64
}

//! What a replica must know of the commands that it has and that are not committed
//! here: a head, that one which comes again is there; a member that may answer
//! reads, whether what is asked for may be about to change.
//!
//! All of it follows from the log, and is made from it when a replica's place in
//! its chain changes.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hash, Hasher};

use twox_hash::XxHash3_128;

use super::super::message::Entry;
use super::super::record::{Key, Table};
use super::super::state::{ClientId, Command, Query};

const TABLES: usize = Table::ALL.len();

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct UnderWay {
    is_head: bool,
    answers: bool,
    commands: HashSet<(ClientId, u64), BuildHasherDefault<Mixer>>,
    /// How many change a key with this hash. Two keys that share it are taken
    /// for one, which costs a question to the tail.
    keys: HashMap<u64, u32, BuildHasherDefault<Mixer>>,
    /// How many change a key of each table: a scan is not looked at more closely.
    tables: [u32; TABLES],
    /// How many change more than one key.
    wide: u32,
}

impl Hash for UnderWay {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.is_head, self.answers, self.commands.len(), self.tables, self.wide).hash(state);
    }
}

impl UnderWay {
    /// What the commands that are not committed come to, for a head or not and
    /// for a replica that must ask the tail or not.
    pub(super) fn of<'e>(is_head: bool, answers: bool, entries: impl Iterator<Item = &'e Entry>) -> UnderWay {
        let mut under_way = UnderWay { is_head, answers, ..UnderWay::default() };
        entries.for_each(|entry| under_way.add(&entry.command));
        under_way
    }

    #[inline]
    pub(super) fn add(&mut self, command: &Command) {
        if self.is_head {
            self.commands.insert((command.client, command.number));
        }
        if self.answers {
            match command.op.key() {
                Some(key) => {
                    *self.keys.entry(hash_of(key)).or_default() += 1;
                    self.tables[key.table as usize] += 1;
                }
                None => self.wide += 1,
            }
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, command: &Command) {
        if self.is_head {
            self.commands.remove(&(command.client, command.number));
        }
        if self.answers {
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
    }

    /// Whether a head has this command.
    #[inline]
    pub(super) fn has(&self, command: &Command) -> bool {
        self.commands.contains(&(command.client, command.number))
    }

    /// Whether an answer from the committed state might be too old.
    pub(super) fn touches(&self, query: &Query) -> bool {
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

/// A hash of a few numbers that is the same in every run. Those who could choose
/// numbers that collide have the job's key, and would only slow themselves down.
#[derive(Clone, Copy, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

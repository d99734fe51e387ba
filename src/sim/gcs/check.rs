//! What must hold of a run: committed commands are the same everywhere, every
//! key is linearizable, no acknowledged write is lost, watches miss nothing.

use std::collections::{BTreeMap, BTreeSet};

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::workload::{Did, Got, Seen, Watched};
use crate::gcs::{Event, Key, Replica, Seq};

/// What was committed in a shard, put together from all replicas.
#[derive(Debug, Default)]
pub struct Truth {
    changes: BTreeMap<Seq, Vec<Event>>,
}

impl Truth {
    /// Adds what a replica has committed since it had `before`.
    pub fn add(&mut self, replica: &Replica, before: Seq) -> Result<(), String> {
        let Some(changes) = replica.state().changes(before) else { return Ok(()) };
        let mut by_command: BTreeMap<Seq, Vec<Event>> = BTreeMap::new();
        for event in changes {
            by_command.entry(event.version).or_default().push(event.clone());
        }
        for (seq, events) in by_command {
            let known = self.changes.entry(seq).or_insert_with(|| events.clone());
            if *known != events {
                return Err(format!("{:?} committed {events:?}, another replica {known:?}", replica.id()));
            }
        }
        Ok(())
    }

    /// The first change whose value ends so: the write of that text.
    fn version_of(&self, key: &Key, text: &str) -> Option<Seq> {
        let mut events = self.changes.values().flatten();
        let ends = |event: &&Event| event.value.as_ref().is_some_and(|v| event.key == *key && v.ends_with(text.as_bytes()));
        events.find(ends).map(|event| event.version)
    }

    /// Every write that was acknowledged is there.
    pub fn has_all_acknowledged(&self, seen: &[Seen]) -> Result<(), String> {
        for Seen { key, did, returned, .. } in seen {
            let Some((_, Got::Wrote(version))) = returned else { continue };
            let (Did::Put(text) | Did::Append(text) | Did::Swap(_, text)) = did else { continue };
            let events = self.changes.get(version).into_iter().flatten();
            let matches = |event: &Event| {
                event.key == *key && event.value.as_ref().is_some_and(|value| value.ends_with(text.as_bytes()))
            };
            if !events.into_iter().any(matches) {
                return Err(format!("{did:?} of {key:?} was acknowledged as {version} and is not there"));
            }
        }
        Ok(())
    }

    /// A watch was told of every change between its first and its last, in order.
    pub fn explains(&self, watched: &Watched, ended: bool) -> Result<(), String> {
        let truth = self.changes.range(watched.began.next()..).flat_map(|(_, events)| events);
        let expected: Vec<&Event> = truth.collect();
        let got: Vec<&Event> = watched.events.iter().collect();
        if !expected.starts_with(&got) {
            let at = got.iter().zip(&expected).take_while(|(a, b)| a == b).count();
            return Err(format!(
                "a watch from {} was told {:?} as change {at}, there was {:?}",
                watched.began,
                got.get(at),
                expected.get(at)
            ));
        }
        if ended && got.len() < expected.len() {
            return Err(format!("a watch from {} was never told of {:?}", watched.began, expected[got.len()]));
        }
        Ok(())
    }
}

/// Whether what clients saw of each key could have happened one after the other.
pub fn linearizable(seen: &[Seen], truth: &Truth) -> Result<(), String> {
    let keys: BTreeSet<&Key> = seen.iter().map(|seen| &seen.key).collect();
    for key in keys {
        let of_key: Vec<&Seen> = seen.iter().filter(|seen| seen.key == *key).collect();
        key_is_linearizable(&of_key, truth)?;
    }
    Ok(())
}

fn key_is_linearizable(seen: &[&Seen], truth: &Truth) -> Result<(), String> {
    // By time; what begins when something else ends is taken to overlap it.
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    let mut operations = Vec::new();
    for seen in seen {
        let operation = match &seen.did {
            Did::Put(text) => Operation::Put(digest(0, text)),
            Did::Append(text) => Operation::Append(text.clone()),
            Did::Swap(expected, text) => Operation::Swap(expected.0, digest(0, text)),
            Did::Delete => Operation::Delete,
            Did::Read => Operation::Read,
        };
        let mut returned = seen.returned.clone();
        if let (None, Did::Put(text) | Did::Append(text) | Did::Swap(_, text)) = (&returned, &seen.did) {
            // Whether it happened is not known to its client, but it is known.
            match truth.version_of(&seen.key, text) {
                Some(version) => returned = Some((u64::MAX, Got::Wrote(version))),
                None => continue,
            }
        }
        moments.push((seen.invoked_at, false, operations.len()));
        if let Some((at, _)) = &returned {
            moments.push((*at, true, operations.len()));
        }
        operations.push((operation, returned.map(|(_, got)| got)));
    }
    moments.sort_unstable();

    let mut tester = LinearizabilityTester::new(Register::default());
    let mut threads: BTreeMap<usize, u32> = BTreeMap::new();
    let mut free: Vec<u32> = Vec::new();
    let mut count = 0;
    for (_, ends, number) in moments {
        let (operation, got) = &operations[number];
        if ends {
            let thread = threads[&number];
            let result = match got {
                Some(Got::Wrote(version)) => Ended::Wrote(version.0),
                Some(Got::Mismatch(version)) => Ended::Mismatch(version.0),
                Some(Got::Read(None)) => Ended::Found(None),
                Some(Got::Read(Some((version, text)))) => Ended::Found(Some((version.0, digest(0, text)))),
                None => continue,
            };
            tester.on_return(thread, result).map_err(|e| format!("the checker: {e}"))?;
            free.push(thread);
        } else {
            let thread = free.pop().unwrap_or_else(|| {
                count += 1;
                count
            });
            threads.insert(number, thread);
            tester.on_invoke(thread, operation.clone()).map_err(|e| format!("the checker: {e}"))?;
        }
    }
    if tester.is_consistent() {
        return Ok(());
    }
    let mut lines: Vec<String> = seen
        .iter()
        .map(|s| format!("  {:>10} {:?} -> {:?}", s.invoked_at, s.did, s.returned))
        .collect();
    lines.sort();
    Err(format!("not linearizable: {:?}\n{}", seen[0].key, lines.join("\n")))
}

/// Stands for a text of parts that each end with `;`, appended to another.
fn digest(before: u64, text: &str) -> u64 {
    text.split_inclusive(';').fold(before, |digest, part| {
        part.bytes().fold(digest.rotate_left(7) ^ 0x9e37_79b9_7f4a_7c15, |d, byte| {
            (d ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    })
}

/// One record, as it should behave.
#[derive(Clone, Debug, Default)]
struct Register {
    value: Option<u64>,
    /// The version, as far as it is known.
    version: Version,
    /// All versions so far are at most this.
    floor: u64,
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
enum Version {
    #[default]
    None,
    Is(u64),
    Unknown,
}

#[derive(Clone, PartialEq, Debug)]
enum Operation {
    Put(u64),
    Append(String),
    Swap(u64, u64),
    Delete,
    Read,
}

#[derive(Clone, Debug, PartialEq)]
enum Ended {
    Wrote(u64),
    Mismatch(u64),
    Found(Option<(u64, u64)>),
}

impl Register {
    fn has_version(&self, version: u64) -> bool {
        match self.version {
            Version::None => version == 0,
            Version::Is(mine) => version == mine,
            Version::Unknown => version > 0,
        }
    }

    fn write(&mut self, operation: &Operation) {
        self.value = match operation {
            Operation::Put(value) | Operation::Swap(_, value) => Some(*value),
            Operation::Append(text) => Some(digest(self.value.unwrap_or(0), text)),
            Operation::Delete => None,
            Operation::Read => self.value,
        };
    }
}

impl SequentialSpec for Register {
    type Op = Operation;
    type Ret = Ended;

    /// Only for what nobody knows the result of.
    fn invoke(&mut self, operation: &Operation) -> Ended {
        self.write(operation);
        self.version = if self.value.is_some() { Version::Unknown } else { Version::None };
        Ended::Wrote(0)
    }

    fn is_valid_step(&mut self, operation: &Operation, result: &Ended) -> bool {
        match (operation, result) {
            (Operation::Read, Ended::Found(None)) => self.value.is_none(),
            (Operation::Read, Ended::Found(Some((version, value)))) => {
                let fits = self.value == Some(*value) && self.has_version(*version);
                self.version = Version::Is(*version);
                fits
            }
            (Operation::Swap(expected, _), Ended::Mismatch(current)) => {
                self.has_version(*current) && current != expected
            }
            (Operation::Read, _) | (_, Ended::Mismatch(_) | Ended::Found(_)) => false,
            (operation, Ended::Wrote(version)) => {
                if let Operation::Swap(expected, _) = operation
                    && !self.has_version(*expected)
                {
                    return false;
                }
                if *version <= self.floor {
                    return false;
                }
                self.floor = *version;
                let deletes = *operation == Operation::Delete;
                self.write(operation);
                self.version = if deletes { Version::None } else { Version::Is(*version) };
                true
            }
        }
    }
}

//! What must hold of a run: committed commands are the same everywhere, every
//! key is linearizable, no acknowledged write is lost, watches miss nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use stateright::semantics::{ConsistencyTester, LinearizabilityTester, SequentialSpec};

use super::workload::{Did, Got, Seen, Watched};
use crate::gcs::{Event, Key, Replica, Seq};

/// Stack of the tester: used only as far as it is needed.
const STACK_BYTES: usize = 256 << 20;

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
        let ends =
            |event: &&Event| event.value.as_ref().is_some_and(|v| event.key == *key && v.ends_with(text.as_bytes()));
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

/// The tester looks through all orders, which takes for ever; so every operation
/// says which place it claims by the versions and places that the store told.
/// Whether that order is one, with these results and these times, is for the
/// tester to find out. The store's claims are exact unless it is wrong.
fn key_is_linearizable(seen: &[&Seen], truth: &Truth) -> Result<(), String> {
    let ended = what_happened(seen, truth);
    let writes: BTreeSet<Seq> = ended.iter().filter_map(|(_, _, got)| got.as_ref()?.wrote()).collect();
    let interval = |got: &Got| match got {
        Got::Wrote(version) => Some((writes.range(..=version).count(), 0)),
        Got::Read(as_of, _) => Some((writes.range(..=as_of).count(), 1)),
        Got::Mismatch(Seq(0)) => None,
        Got::Mismatch(current) => Some((writes.range(..=current).count(), 1)),
    };
    let mut order: Vec<_> = ended
        .iter()
        .enumerate()
        .filter_map(|(number, (seen, _, got))| Some((interval(got.as_ref()?)?, seen.invoked_at, number)))
        .collect();
    order.sort_unstable();
    let places: BTreeMap<usize, usize> =
        order.iter().enumerate().map(|(place, (_, _, number))| (*number, place)).collect();

    // By time; what begins when something else ends is taken to overlap it.
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (number, (seen, returned_at, _)) in ended.iter().enumerate() {
        moments.push((seen.invoked_at, false, number));
        moments.push((*returned_at, true, number));
    }
    moments.sort_unstable();
    let mut tester = LinearizabilityTester::new(Register::default());
    let mut threads: BTreeMap<usize, u32> = BTreeMap::new();
    let mut free: Vec<u32> = Vec::new();
    let mut count = 0;
    for (_, ends, number) in moments {
        let (seen, _, got) = &ended[number];
        if ends {
            let Some(got) = got else { continue };
            tester.on_return(threads[&number], got.clone()).map_err(|e| format!("the checker: {e}"))?;
            free.push(threads[&number]);
        } else {
            let thread = free.pop().unwrap_or_else(|| {
                count += 1;
                count
            });
            threads.insert(number, thread);
            let operation = (places.get(&number).copied(), seen.did.clone());
            tester.on_invoke(thread, operation).map_err(|e| format!("the checker: {e}"))?;
        }
    }
    // The tester goes as deep as there are operations.
    let consistent = thread::scope(|scope| {
        let deep = thread::Builder::new().stack_size(STACK_BYTES);
        deep.spawn_scoped(scope, || tester.is_consistent()).expect("a thread").join().expect("no panic")
    });
    if consistent {
        return Ok(());
    }
    let line =
        |(seen, at, got): &(&Seen, u64, Option<Got>)| (seen.invoked_at, format!("to {at}: {:?} -> {got:?}", seen.did));
    let mut lines: Vec<_> = ended.iter().map(line).collect();
    lines.sort();
    Err(format!("not linearizable: {:?}\n{lines:#?}", seen[0].key))
}

/// What each client saw, and for what no client knows, what became of it. What
/// has left no trace has not happened.
fn what_happened<'s>(seen: &[&'s Seen], truth: &Truth) -> Vec<(&'s Seen, u64, Option<Got>)> {
    let mut ended = Vec::new();
    let mut deletes: Vec<&'s Seen> = Vec::new();
    let mut known: BTreeSet<Seq> = BTreeSet::new();
    for seen in seen {
        match (&seen.returned, &seen.did) {
            // That nothing was there says nothing of when: the tester would try
            // all places, in all orders.
            (Some((_, Got::Mismatch(Seq(0)))), _) => {}
            (Some((at, got)), _) => {
                known.extend(got.wrote());
                ended.push((*seen, *at, Some(got.clone())));
            }
            (None, Did::Put(text) | Did::Append(text) | Did::Swap(_, text)) => {
                if let Some(version) = truth.version_of(&seen.key, text) {
                    ended.push((*seen, u64::MAX, Some(Got::Wrote(version))));
                }
            }
            (None, Did::Delete) => deletes.push(seen),
            (None, Did::Read) => {}
        }
    }
    // A deletion that nobody has seen the end of is taken for the one that was
    // begun first, which fits whenever any of them does.
    deletes.sort_by_key(|seen| seen.invoked_at);
    let key = seen.first().map(|seen| &seen.key);
    let events = truth.changes.values().flatten();
    let unexplained = events.filter(|e| Some(&e.key) == key && e.value.is_none() && !known.contains(&e.version));
    for (seen, event) in deletes.into_iter().zip(unexplained) {
        ended.push((seen, u64::MAX, Some(Got::Wrote(event.version))));
    }
    ended
}

impl Got {
    fn wrote(&self) -> Option<Seq> {
        match self {
            Got::Wrote(version) => Some(*version),
            Got::Mismatch(_) | Got::Read(..) => None,
        }
    }
}

/// One record, as it should behave.
#[derive(Clone, Debug, Default)]
struct Register {
    record: Option<(Seq, String)>,
    place: usize,
}

impl SequentialSpec for Register {
    /// An operation and the place that it claims.
    type Op = (Option<usize>, Did);
    type Ret = Got;

    /// Not asked for: every operation that is looked at has ended.
    fn invoke(&mut self, _: &Self::Op) -> Got {
        Got::Read(Seq(0), None)
    }

    fn is_valid_step(&mut self, (place, did): &Self::Op, got: &Got) -> bool {
        if place.is_some_and(|place| place != self.place) {
            return false;
        }
        self.place += usize::from(place.is_some());
        let current = self.record.as_ref().map_or(Seq(0), |(version, _)| *version);
        match (did, got) {
            (Did::Read, Got::Read(_, found)) => *found == self.record,
            (Did::Swap(expected, _), Got::Mismatch(found)) => *found == current && found != expected,
            (Did::Read, _) | (_, Got::Read(..) | Got::Mismatch(_)) => false,
            (Did::Swap(expected, _), Got::Wrote(_)) if *expected != current => false,
            (did, Got::Wrote(version)) => {
                self.record = match (did, self.record.take()) {
                    (Did::Put(text) | Did::Swap(_, text), _) => Some((*version, text.clone())),
                    (Did::Append(text), before) => {
                        Some((*version, before.map_or_else(String::new, |(_, before)| before) + text))
                    }
                    _ => None,
                };
                *version > current
            }
        }
    }
}

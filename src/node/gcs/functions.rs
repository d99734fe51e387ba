//! Task tables in the control store: a rank whose binary differs from a peer's
//! finds there which tasks the peer has, and under which numbers.
//!
//! A table is known by the hash of its binary's tasks. It has a record for each
//! task, by number, and one at its head that says how many there are, which is
//! written when all others are there: who has seen that one finds the others.

use std::collections::HashMap;

use crate::base::FunctionId;
use crate::base::limits::{GCS_KEYS_MAX, NAME_BYTES_MAX, SIGNATURE_BYTES_MAX, TASKS_MAX};
use crate::gcs::{Client, Found, Key, Nanos, Notice, Op, Query, ShardId, Table, Token};
use crate::node::registry::TaskEntry;

/// See the module.
#[derive(Default)]
pub(super) struct Functions {
    /// Records of our own table that are not there yet, before its head.
    unwritten: usize,
    head: Option<Op>,
    readings: HashMap<u64, Reading>,
    purposes: HashMap<Token, Purpose>,
    /// Tables that have been read, by hash.
    pub read: Vec<(u64, Vec<TaskEntry>)>,
    /// Why a table can be neither written nor read.
    pub failed: Option<String>,
}

/// A table that is being read.
struct Reading {
    watch: Token,
    entries: Vec<Option<TaskEntry>>,
    missing: usize,
}

/// What an operation is for.
enum Purpose {
    Write,
    Watch(u64),
    Head(u64),
    Entries(u64, Vec<u32>),
}

impl Functions {
    /// Writes our table.
    pub fn register(&mut self, client: &mut Client, now: Nanos, hash: u64, entries: &[TaskEntry]) {
        let count = (entries.len() as u32).to_le_bytes();
        self.head = Some(Op::Put { key: head_key(hash), value: count.as_slice().into() });
        let too_long = |e: &&TaskEntry| e.name.len() > NAME_BYTES_MAX || e.signature.len() > SIGNATURE_BYTES_MAX;
        if let Some(entry) = entries.iter().find(too_long) {
            let limits = format!("its name may have {NAME_BYTES_MAX} bytes, its signature {SIGNATURE_BYTES_MAX}");
            self.failed = Some(format!("task `{}` is too long to be told to other binaries: {limits}", entry.name));
            return;
        }
        for (number, entry) in (0..).zip(entries) {
            let value = encode(entry).as_slice().into();
            self.unwritten += 1;
            self.write(client, now, Op::Put { key: entry_key(hash, number), value });
        }
        if self.unwritten == 0 {
            self.write_head(client, now);
        }
    }

    /// Reads the table with this hash, if that is not under way.
    pub fn want(&mut self, client: &mut Client, now: Nanos, hash: u64) {
        if self.readings.contains_key(&hash) {
            return;
        }
        let head = head_key(hash);
        match client.watch(now, client.shard_of(&head), head) {
            Ok(watch) => {
                self.purposes.insert(watch, Purpose::Watch(hash));
                self.readings.insert(hash, Reading { watch, entries: Vec::new(), missing: 0 });
            }
            Err(refusal) => self.fail("read", &refusal.into()),
        }
    }

    /// Takes what the client was told; gives it back if it is for others.
    pub fn notice(&mut self, client: &mut Client, now: Nanos, notice: Notice) -> Option<Notice> {
        let (Notice::Command(token, _)
        | Notice::Query(token, _)
        | Notice::WatchBegins(token, _)
        | Notice::Changed(token, _)) = &notice;
        let token = *token;
        if !self.purposes.contains_key(&token) {
            return Some(notice);
        }
        match notice {
            Notice::Command(_, result) => {
                self.purposes.remove(&token);
                match result {
                    Ok(_) => {
                        self.unwritten = self.unwritten.saturating_sub(1);
                        if self.unwritten == 0 {
                            self.write_head(client, now);
                        }
                    }
                    Err(failure) => self.fail("written", &failure),
                }
            }
            // The head may be there already, or it has just been written.
            Notice::WatchBegins(..) | Notice::Changed(..) => {
                if let Some(Purpose::Watch(hash)) = self.purposes.get(&token) {
                    let (hash, key) = (*hash, head_key(*hash));
                    self.ask(client, now, client.shard_of(&key), Query::Get(vec![key]), Purpose::Head(hash));
                }
            }
            Notice::Query(_, result) => {
                let purpose = self.purposes.remove(&token);
                match (purpose, result) {
                    (Some(Purpose::Head(hash)), Ok((_, Found::Records(records)))) => {
                        if let Some(Some(head)) = records.first() {
                            self.read_entries(client, now, hash, &head.value);
                        }
                    }
                    (Some(Purpose::Entries(hash, numbers)), Ok((_, Found::Records(records)))) => {
                        let values = records.iter().map(|record| record.as_ref().map(|record| &record.value[..]));
                        self.arrived(client, now, hash, numbers, values);
                    }
                    (_, Err(failure)) => self.fail("read", &failure),
                    _ => (),
                }
            }
        }
        None
    }

    fn write(&mut self, client: &mut Client, now: Nanos, op: Op) {
        match client.command(now, op) {
            Ok(token) => drop(self.purposes.insert(token, Purpose::Write)),
            Err(refusal) => self.fail("written", &refusal.into()),
        }
    }

    fn write_head(&mut self, client: &mut Client, now: Nanos) {
        if let Some(head) = self.head.take() {
            self.write(client, now, head);
        }
    }

    fn ask(&mut self, client: &mut Client, now: Nanos, shard: ShardId, query: Query, purpose: Purpose) {
        match client.query(now, shard, query) {
            Ok(token) => drop(self.purposes.insert(token, purpose)),
            Err(refusal) => self.fail("read", &refusal.into()),
        }
    }

    /// The head says how many records there are: asks for all of them.
    fn read_entries(&mut self, client: &mut Client, now: Nanos, hash: u64, head: &[u8]) {
        let Some(reading) = self.readings.get_mut(&hash).filter(|reading| reading.entries.is_empty()) else { return };
        let count = head.try_into().map_or(usize::MAX, |bytes| u32::from_le_bytes(bytes) as usize);
        if count > TASKS_MAX {
            self.failed = Some(format!("the head of task table {hash:#x} in the control store is damaged"));
            return;
        }
        reading.entries = vec![None; count];
        reading.missing = count;
        self.ask_for(client, now, hash, (0..count as u32).collect());
        self.finish(client, hash);
    }

    /// Asks for these records, in as few questions as there are shards.
    fn ask_for(&mut self, client: &mut Client, now: Nanos, hash: u64, numbers: Vec<u32>) {
        let mut by_shard: HashMap<ShardId, Vec<u32>> = HashMap::new();
        for number in numbers {
            by_shard.entry(client.shard_of(&entry_key(hash, number))).or_default().push(number);
        }
        for (shard, numbers) in by_shard {
            for some in numbers.chunks(GCS_KEYS_MAX) {
                let keys = some.iter().map(|number| entry_key(hash, *number)).collect();
                self.ask(client, now, shard, Query::Get(keys), Purpose::Entries(hash, some.to_vec()));
            }
        }
    }

    /// Records of a table, in the order of their numbers, as many as fitted one answer.
    fn arrived<'a>(
        &mut self,
        client: &mut Client,
        now: Nanos,
        hash: u64,
        numbers: Vec<u32>,
        values: impl ExactSizeIterator<Item = Option<&'a [u8]>>,
    ) {
        let Some(reading) = self.readings.get_mut(&hash) else { return };
        let answered = values.len().min(numbers.len());
        for (number, value) in numbers.iter().zip(values) {
            let entry = value.and_then(decode);
            if entry.is_none() {
                self.failed = Some(format!("task {number} of table {hash:#x} in the control store is missing or damaged"));
                return;
            }
            reading.entries[*number as usize] = entry;
            reading.missing -= 1;
        }
        if answered < numbers.len() {
            self.ask_for(client, now, hash, numbers[answered..].to_vec());
        }
        self.finish(client, hash);
    }

    fn finish(&mut self, client: &mut Client, hash: u64) {
        if self.readings.get(&hash).is_some_and(|reading| reading.missing == 0)
            && let Some(Reading { watch, entries, .. }) = self.readings.remove(&hash)
        {
            client.unwatch(watch);
            self.purposes.remove(&watch);
            self.read.push((hash, entries.into_iter().flatten().collect()));
        }
    }

    fn fail(&mut self, what: &str, failure: &crate::gcs::Failure) {
        self.failed = Some(format!("a task table cannot be {what} in the control store: {failure}"));
    }
}

fn head_key(hash: u64) -> Key {
    Key::new(Table::Functions, &hash.to_be_bytes())
}

fn entry_key(hash: u64, number: u32) -> Key {
    let mut bytes = hash.to_be_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    Key::new(Table::Functions, &bytes)
}

fn encode(entry: &TaskEntry) -> Vec<u8> {
    postcard::to_stdvec(&(entry.id.0, &entry.name, &entry.signature)).expect("plain data can be encoded")
}

fn decode(bytes: &[u8]) -> Option<TaskEntry> {
    let (id, name, signature): (u64, &str, &str) = postcard::from_bytes(bytes).ok()?;
    let fits = name.len() <= NAME_BYTES_MAX && signature.len() <= SIGNATURE_BYTES_MAX;
    fits.then(|| TaskEntry { id: FunctionId(id), name: name.into(), signature: signature.into() })
}

//! The form of what goes along with every operation. Commands of one client
//! follow each other by number, and entries of the log by place: what is one more
//! than before, or the same, takes one bit.

use super::super::message::{Body, Entry, Forward, ReplicaId};
use super::super::record::{Key, Record, Seq, Table};
use super::super::state::{ClientId, Command, Found, Op, Outcome, Query};
use super::fields::{Reader, put, put_bytes, put_number};
use crate::base::Rank;

const OTHER: u8 = 0;
const COMMANDS: u8 = 1;
const OUTCOMES: u8 = 2;
const QUERIES: u8 = 3;
const ANSWERS: u8 = 4;
const FORWARD: u8 = 5;
const COMMITTED: u8 = 6;

pub(super) fn put_body(body: &Body, bytes: &mut Vec<u8>) {
    match body {
        Body::Commands(commands) => {
            bytes.push(COMMANDS);
            put_number(commands.len() as u64, bytes);
            let mut before = Before::default();
            commands.iter().for_each(|command| before.put_command(command, 0, bytes));
        }
        Body::Forward(forward) => {
            bytes.push(FORWARD);
            put_replica(forward.to, bytes);
            put_number(forward.after.0, bytes);
            // Without disks it is the last place there is.
            put_number(forward.durable.0.wrapping_add(1), bytes);
            put_optional(forward.link, bytes);
            put_number(forward.entries.len() as u64, bytes);
            let mut before = Before { seq: forward.after, ..Before::default() };
            forward.entries.iter().for_each(|entry| before.put_entry(entry, bytes));
        }
        Body::Outcomes(outcomes) => {
            bytes.push(OUTCOMES);
            put_number(outcomes.len() as u64, bytes);
            let mut before = Before::default();
            outcomes.iter().for_each(|outcome| before.put_outcome(outcome, bytes));
        }
        Body::Queries(client, queries) => {
            bytes.push(QUERIES);
            put_client(*client, bytes);
            put_number(queries.len() as u64, bytes);
            queries.iter().for_each(|(number, query)| {
                put_number(*number, bytes);
                put_query(query, bytes);
            });
        }
        Body::Answers(client, answers) => {
            bytes.push(ANSWERS);
            put_client(*client, bytes);
            put_number(answers.len() as u64, bytes);
            for (number, answer) in answers {
                put_number(*number, bytes);
                match answer {
                    Ok((seq, found)) => put_found(*seq, found, bytes),
                    Err(refusal) => {
                        bytes.push(REFUSED);
                        put(refusal, bytes);
                    }
                }
            }
        }
        Body::Committed { through, full } => {
            bytes.push(COMMITTED);
            put_number(through.0, bytes);
            put_optional(full.map(|rank| Seq(u64::from(rank.0))), bytes);
        }
        other => {
            bytes.push(OTHER);
            put(other, bytes);
        }
    }
}

pub(super) fn read_body(reader: &mut Reader<'_>) -> Option<Body> {
    match reader.byte()? {
        OTHER => reader.other(),
        COMMANDS => {
            let mut before = Before::default();
            let commands = reader.items(COMMAND_BYTES_MIN, |reader| before.read_command(reader, 0).map(|(_, c)| c))?;
            Some(Body::Commands(commands))
        }
        FORWARD => {
            let to = read_replica(reader)?;
            let after = Seq(reader.number()?);
            let durable = Seq(reader.number()?.wrapping_sub(1));
            let link = read_optional(reader)?;
            let mut before = Before { seq: after, ..Before::default() };
            let entries = reader.items(COMMAND_BYTES_MIN, |reader| before.read_entry(reader))?;
            Some(Body::Forward(Forward { to, after, entries, durable, link }))
        }
        OUTCOMES => {
            let mut before = Before::default();
            reader.items(1, |reader| before.read_outcome(reader)).map(Body::Outcomes)
        }
        QUERIES => {
            let client = read_client(reader)?;
            let queries = reader.items(3, |reader| Some((reader.number()?, read_query(reader)?)))?;
            Some(Body::Queries(client, queries))
        }
        ANSWERS => {
            let client = read_client(reader)?;
            let answers = reader.items(3, |reader| {
                let number = reader.number()?;
                let answer = match reader.byte()? {
                    REFUSED => Err(reader.other()?),
                    kind => Ok(read_found(kind, reader)?),
                };
                Some((number, answer))
            })?;
            Some(Body::Answers(client, answers))
        }
        COMMITTED => {
            let through = Seq(reader.number()?);
            let full = read_optional(reader)?.map(|rank| u32::try_from(rank.0));
            Some(Body::Committed { through, full: full.transpose().ok()?.map(Rank) })
        }
        _ => None,
    }
}

/// What stands before a command, an entry or an outcome.
#[derive(Default)]
pub(super) struct Before {
    client: Option<ClientId>,
    number: u64,
    settled: u64,
    pub(super) seq: Seq,
}

const KIND: u8 = 0b111;
const SAME_CLIENT: u8 = 1 << 3;
const NEXT_NUMBER: u8 = 1 << 4;
const SAME_SETTLED: u8 = 1 << 5;
const NEXT_SEQ: u8 = 1 << 6;

/// What comes first, and the two numbers of a client, or a table and a length.
const COMMAND_BYTES_MIN: usize = 3;

impl Before {
    #[inline]
    pub(super) fn put_entry(&mut self, entry: &Entry, bytes: &mut Vec<u8>) {
        let next = entry.seq.0 == self.seq.0.wrapping_add(1);
        self.seq = entry.seq;
        self.put_command(&entry.command, if next { NEXT_SEQ } else { 0 }, bytes);
        if !next {
            put_number(entry.seq.0, bytes);
        }
    }

    #[inline(always)]
    pub(super) fn read_entry(&mut self, reader: &mut Reader<'_>) -> Option<Entry> {
        let (flags, command) = self.read_command(reader, NEXT_SEQ)?;
        let seq = if flags & NEXT_SEQ != 0 { self.seq.0.checked_add(1)? } else { reader.number()? };
        self.seq = Seq(seq);
        Some(Entry { seq: self.seq, command })
    }

    #[inline]
    fn put_command(&mut self, command: &Command, flags: u8, bytes: &mut Vec<u8>) {
        let kind = match &command.op {
            Op::Put { .. } => PUT,
            Op::CompareAndSwap { value: Some(_), .. } => SWAP,
            Op::CompareAndSwap { value: None, .. } => SWAP_FOR_NOTHING,
            Op::Delete { .. } => DELETE,
            Op::Append { .. } => APPEND,
            Op::DeletePrefix { .. } => DELETE_PREFIX,
            Op::EndClient { .. } => END_CLIENT,
        };
        let same_client = self.client == Some(command.client);
        let next_number = command.number == self.number.wrapping_add(1);
        let same_settled = command.settled == self.settled;
        let flag = |flag, is: bool| if is { flag } else { 0 };
        let same = flag(SAME_CLIENT, same_client) | flag(NEXT_NUMBER, next_number) | flag(SAME_SETTLED, same_settled);
        bytes.push(kind | flags | same);
        if !same_client {
            put_client(command.client, bytes);
        }
        if !next_number {
            put_number(command.number, bytes);
        }
        if !same_settled {
            put_number(command.settled, bytes);
        }
        (self.client, self.number, self.settled) = (Some(command.client), command.number, command.settled);
        put_op(&command.op, bytes);
    }

    #[inline(always)]
    fn read_command(&mut self, reader: &mut Reader<'_>, allowed: u8) -> Option<(u8, Command)> {
        let flags = reader.byte()?;
        if flags & !(KIND | SAME_CLIENT | NEXT_NUMBER | SAME_SETTLED | allowed) != 0 {
            return None;
        }
        let client = if flags & SAME_CLIENT != 0 { self.client? } else { read_client(reader)? };
        let next = flags & NEXT_NUMBER != 0;
        let number = if next { self.number.checked_add(1)? } else { reader.number()? };
        let settled = if flags & SAME_SETTLED != 0 { self.settled } else { reader.number()? };
        (self.client, self.number, self.settled) = (Some(client), number, settled);
        let op = read_op(flags & KIND, reader)?;
        Some((flags, Command { client, number, settled, op }))
    }

    #[inline]
    fn put_outcome(&mut self, (client, number, outcome): &(ClientId, u64, Outcome), bytes: &mut Vec<u8>) {
        let same_client = self.client == Some(*client);
        let next_number = *number == self.number.wrapping_add(1);
        let next_seq = matches!(outcome, Ok(seq) if seq.0 == self.seq.0.wrapping_add(1));
        let flag = |flag, is: bool| if is { flag } else { 0 };
        let same = flag(SAME_CLIENT, same_client) | flag(NEXT_NUMBER, next_number) | flag(NEXT_SEQ, next_seq);
        bytes.push(same | u8::from(outcome.is_err()));
        if !same_client {
            put_client(*client, bytes);
        }
        if !next_number {
            put_number(*number, bytes);
        }
        match outcome {
            Ok(_) if next_seq => {}
            Ok(seq) => put_number(seq.0, bytes),
            Err(refusal) => put(refusal, bytes),
        }
        (self.client, self.number) = (Some(*client), *number);
        if let Ok(seq) = outcome {
            self.seq = *seq;
        }
    }

    #[inline]
    fn read_outcome(&mut self, reader: &mut Reader<'_>) -> Option<(ClientId, u64, Outcome)> {
        let flags = reader.byte()?;
        let client = if flags & SAME_CLIENT != 0 { self.client? } else { read_client(reader)? };
        let next = flags & NEXT_NUMBER != 0;
        let number = if next { self.number.checked_add(1)? } else { reader.number()? };
        let outcome = match flags & !(SAME_CLIENT | NEXT_NUMBER) {
            0 => Ok(Seq(reader.number()?)),
            NEXT_SEQ => Ok(Seq(self.seq.0.checked_add(1)?)),
            1 => Err(reader.other()?),
            _ => return None,
        };
        (self.client, self.number) = (Some(client), number);
        if let Ok(seq) = outcome {
            self.seq = seq;
        }
        Some((client, number, outcome))
    }
}

const PUT: u8 = 0;
const SWAP: u8 = 1;
const SWAP_FOR_NOTHING: u8 = 2;
const DELETE: u8 = 3;
const APPEND: u8 = 4;
const DELETE_PREFIX: u8 = 5;
const END_CLIENT: u8 = 6;

#[inline]
fn put_op(op: &Op, bytes: &mut Vec<u8>) {
    match op {
        Op::Put { key, value } | Op::Append { key, bytes: value } => {
            put_key(key, bytes);
            put_bytes(value, bytes);
        }
        Op::CompareAndSwap { key, expected, value } => {
            put_key(key, bytes);
            put_number(expected.0, bytes);
            value.iter().for_each(|value| put_bytes(value, bytes));
        }
        Op::Delete { key } => put_key(key, bytes),
        Op::DeletePrefix { table, prefix } => {
            bytes.push(*table as u8);
            put_bytes(prefix, bytes);
        }
        Op::EndClient { client } => put_client(*client, bytes),
    }
}

#[inline(always)]
fn read_op(kind: u8, reader: &mut Reader<'_>) -> Option<Op> {
    Some(match kind {
        PUT => Op::Put { key: read_key(reader)?, value: reader.blob()? },
        APPEND => Op::Append { key: read_key(reader)?, bytes: reader.blob()? },
        SWAP | SWAP_FOR_NOTHING => {
            let key = read_key(reader)?;
            let expected = Seq(reader.number()?);
            let value = if kind == SWAP { Some(reader.blob()?) } else { None };
            Op::CompareAndSwap { key, expected, value }
        }
        DELETE => Op::Delete { key: read_key(reader)? },
        DELETE_PREFIX => {
            let Key { table, bytes: prefix } = read_key(reader)?;
            Op::DeletePrefix { table, prefix }
        }
        END_CLIENT => Op::EndClient { client: read_client(reader)? },
        _ => return None,
    })
}

const GET: u8 = 0;
const SCAN: u8 = 1;
const SCAN_ON: u8 = 2;

fn put_query(query: &Query, bytes: &mut Vec<u8>) {
    match query {
        Query::Get(keys) => {
            bytes.push(GET);
            put_number(keys.len() as u64, bytes);
            keys.iter().for_each(|key| put_key(key, bytes));
        }
        Query::Scan { table, prefix, after } => {
            bytes.push(if after.is_some() { SCAN_ON } else { SCAN });
            bytes.push(*table as u8);
            put_bytes(prefix, bytes);
            after.iter().for_each(|after| put_bytes(after, bytes));
        }
    }
}

fn read_query(reader: &mut Reader<'_>) -> Option<Query> {
    match reader.byte()? {
        GET => reader.items(2, read_key).map(Query::Get),
        kind @ (SCAN | SCAN_ON) => {
            let Key { table, bytes: prefix } = read_key(reader)?;
            let after = if kind == SCAN_ON { Some(reader.blob()?) } else { None };
            Some(Query::Scan { table, prefix, after })
        }
        _ => None,
    }
}

const RECORDS: u8 = 0;
const LAST_PAGE: u8 = 1;
const PAGE: u8 = 2;
const REFUSED: u8 = 3;

fn put_found(seq: Seq, found: &Found, bytes: &mut Vec<u8>) {
    let kind = match found {
        Found::Records(_) => RECORDS,
        Found::Page { more: false, .. } => LAST_PAGE,
        Found::Page { more: true, .. } => PAGE,
    };
    bytes.push(kind);
    put_number(seq.0, bytes);
    match found {
        Found::Records(records) => {
            put_number(records.len() as u64, bytes);
            for record in records {
                bytes.push(u8::from(record.is_some()));
                record.iter().for_each(|record| put_record(record, bytes));
            }
        }
        Found::Page { records, .. } => {
            put_number(records.len() as u64, bytes);
            for (key, record) in records {
                put_bytes(key, bytes);
                put_record(record, bytes);
            }
        }
    }
}

fn read_found(kind: u8, reader: &mut Reader<'_>) -> Option<(Seq, Found)> {
    let seq = Seq(reader.number()?);
    let found = match kind {
        RECORDS => Found::Records(reader.items(1, |reader| match reader.flag()? {
            false => Some(None),
            true => read_record(reader).map(Some),
        })?),
        PAGE | LAST_PAGE => {
            let records = reader.items(3, |reader| Some((reader.blob()?, read_record(reader)?)))?;
            Found::Page { records, more: kind == PAGE }
        }
        _ => return None,
    };
    Some((seq, found))
}

pub(in crate::gcs) fn put_record(record: &Record, bytes: &mut Vec<u8>) {
    put_number(record.version.0, bytes);
    put_bytes(&record.value, bytes);
}

pub(in crate::gcs) fn read_record(reader: &mut Reader<'_>) -> Option<Record> {
    Some(Record { version: Seq(reader.number()?), value: reader.blob()? })
}

#[inline]
pub(in crate::gcs) fn put_key(key: &Key, bytes: &mut Vec<u8>) {
    bytes.push(key.table as u8);
    put_bytes(&key.bytes, bytes);
}

#[inline(always)]
pub(in crate::gcs) fn read_key(reader: &mut Reader<'_>) -> Option<Key> {
    Some(Key { table: Table::from_number(reader.byte()?).ok()?, bytes: reader.blob()? })
}

#[inline]
fn put_client(client: ClientId, bytes: &mut Vec<u8>) {
    put_number(u64::from(client.rank.0), bytes);
    put_number(u64::from(client.incarnation), bytes);
}

#[inline]
fn read_client(reader: &mut Reader<'_>) -> Option<ClientId> {
    Some(ClientId { rank: reader.rank()?, incarnation: reader.short_number()? })
}

fn put_replica(replica: ReplicaId, bytes: &mut Vec<u8>) {
    put_number(u64::from(replica.rank.0), bytes);
    put_number(u64::from(replica.incarnation), bytes);
}

fn read_replica(reader: &mut Reader<'_>) -> Option<ReplicaId> {
    Some(ReplicaId { rank: reader.rank()?, incarnation: reader.short_number()? })
}

fn put_optional(number: Option<Seq>, bytes: &mut Vec<u8>) {
    bytes.push(u8::from(number.is_some()));
    number.iter().for_each(|number| put_number(number.0, bytes));
}

fn read_optional(reader: &mut Reader<'_>) -> Option<Option<Seq>> {
    Some(if reader.flag()? { Some(Seq(reader.number()?)) } else { None })
}

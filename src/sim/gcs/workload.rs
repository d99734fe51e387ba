//! What clients do, and what they saw of it.

use std::collections::BTreeMap;

use super::plan::Plan;
use crate::base::Rank;
use crate::base::rng::Rng;
use crate::gcs::{
    Action, Blob, ChainConfig, Client, ClientId, ClientOptions, Event, Failure, Found, Key, Message, Notice, Op, Query,
    Refusal, Seq, ShardId, Table, Token,
};

/// An operation on one key as its client saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub key: Key,
    pub did: Did,
    pub invoked_at: u64,
    /// When it ended, if its client knows how.
    pub returned: Option<(u64, Got)>,
}

/// What was asked.
#[derive(Clone, PartialEq, Debug)]
pub enum Did {
    Put(String),
    Append(String),
    Delete,
    Swap(Seq, String),
    Read,
}

/// What came of it.
#[derive(Clone, PartialEq, Debug)]
pub enum Got {
    Wrote(Seq),
    Mismatch(Seq),
    /// As of which command, and what was there.
    Read(Seq, Option<(Seq, String)>),
}

/// What a watch told.
#[derive(Clone, Debug)]
pub struct Watched {
    pub shard: ShardId,
    pub began: Seq,
    pub events: Vec<Event>,
}

/// A client and what it has under way.
pub struct User {
    pub client: Client,
    rng: Rng,
    pub alive: bool,
    next_at: u64,
    under_way: BTreeMap<Token, (u64, Doing)>,
    made: u64,
    known: BTreeMap<Key, Seq>,
    pub seen: Vec<Seen>,
    pub watched: Vec<Watched>,
    watches: BTreeMap<Token, (ShardId, usize)>,
    pub done_since_heal: usize,
    /// Why operations failed that should not have.
    pub wrong: Option<String>,
}

#[derive(Clone, Debug)]
enum Doing {
    Write(Key, Did),
    Read(Vec<Key>),
    Scan(ShardId),
}

/// The tables' keys: `k0`, `k1` and so on.
pub fn keys(plan: &Plan) -> Vec<Key> {
    (0..plan.keys).map(|number| Key::new(Table::Names, format!("k{number}").as_bytes())).collect()
}

const PREFIX: &[u8] = b"k";

impl User {
    pub fn new(plan: &Plan, me: ClientId, quorum: Vec<Rank>, founding: Vec<ChainConfig>, now: u64) -> User {
        let seed = plan.seed ^ u64::from(me.rank.0) << 32 ^ u64::from(me.incarnation) << 48;
        let mut rng = Rng::new(seed);
        let short = rng.below(100) < plan.impatient_percent;
        let deadline = if short { 3 * plan.timing.detection } else { 1_000_000_000 };
        let options = ClientOptions { me, quorum, founding, timing: plan.timing, deadline };
        let mut user = User {
            client: Client::new(options),
            rng,
            alive: true,
            next_at: now,
            under_way: BTreeMap::new(),
            made: 0,
            known: BTreeMap::new(),
            seen: Vec::new(),
            watched: Vec::new(),
            watches: BTreeMap::new(),
            done_since_heal: 0,
            wrong: None,
        };
        if plan.watches {
            for shard in (0..plan.shards).map(ShardId) {
                let token = user.client.watch(now, shard, Key::new(Table::Names, PREFIX)).expect("a short prefix");
                user.watches.insert(token, (shard, usize::MAX));
            }
        }
        user
    }

    pub fn receive(&mut self, now: u64, message: Message) {
        self.client.receive(now, message);
    }

    /// Starts what is due and sends it.
    pub fn turn(&mut self, now: u64, world_now: u64, plan: &Plan, stop: bool, out: &mut Vec<Action>) {
        self.note(world_now);
        while !stop && now >= self.next_at && self.under_way.len() < plan.pipeline {
            self.next_at = now + self.rng.below(2 * plan.think_ns as usize) as u64;
            self.start(now, world_now, plan);
        }
        self.client.flush(now, out);
        self.note(world_now);
    }

    fn start(&mut self, now: u64, world_now: u64, plan: &Plan) {
        let all = keys(plan);
        let key = all[self.rng.below(all.len())].clone();
        self.made += 1;
        let me = self.client.id();
        let text = format!("{}.{}.{};", me.rank.0, me.incarnation, self.made);
        let did = match self.rng.below(20) {
            0..6 => Did::Put(text),
            6..9 => Did::Append(text),
            9 => Did::Delete,
            10..12 => Did::Swap(self.known.get(&key).copied().unwrap_or_default(), text),
            _ => Did::Read,
        };
        let op = match &did {
            Did::Put(text) => Op::Put { key: key.clone(), value: Blob::from(text) },
            Did::Append(text) => Op::Append { key: key.clone(), bytes: Blob::from(text) },
            Did::Delete => Op::Delete { key: key.clone() },
            Did::Swap(expected, text) => {
                Op::CompareAndSwap { key: key.clone(), expected: *expected, value: Some(Blob::from(text)) }
            }
            Did::Read => {
                let shard = self.client.shard_of(&key);
                let (query, doing) = if self.rng.below(3) > 0 {
                    let mut some = vec![key.clone()];
                    some.extend(
                        all.into_iter()
                            .filter(|k| self.client.shard_of(k) == shard && *k != key && self.rng.below(3) == 0),
                    );
                    (Query::Get(some.clone()), Doing::Read(some))
                } else {
                    let query = Query::Scan { table: Table::Names, prefix: Blob::from(PREFIX), after: None };
                    (query, Doing::Scan(shard))
                };
                let token = self.client.query(now, shard, query).expect("within the limits");
                self.under_way.insert(token, (world_now, doing));
                return;
            }
        };
        let token = self.client.command(now, op).expect("within the limits");
        self.under_way.insert(token, (world_now, Doing::Write(key, did)));
    }

    /// Writes down what the client was told.
    fn note(&mut self, now: u64) {
        for notice in self.client.notices() {
            match notice {
                Notice::Command(token, result) => {
                    let Some((invoked_at, Doing::Write(key, did))) = self.under_way.remove(&token) else { continue };
                    self.done_since_heal += usize::from(result.is_ok());
                    let got = match result {
                        Ok(seq) => Some(Got::Wrote(seq)),
                        Err(Failure::Refused(Refusal::VersionMismatch { current })) => Some(Got::Mismatch(current)),
                        Err(Failure::Deadline(_)) => None,
                        Err(Failure::Refused(why)) => {
                            self.wrong = Some(format!("a command was refused: {why}"));
                            None
                        }
                    };
                    if let Some(Got::Wrote(seq) | Got::Mismatch(seq)) = got {
                        self.known.insert(key.clone(), seq);
                    }
                    self.seen.push(Seen { key, did, invoked_at, returned: got.map(|got| (now, got)) });
                }
                Notice::Query(token, result) => {
                    let Some((invoked_at, doing)) = self.under_way.remove(&token) else { continue };
                    let Ok((as_of, found)) = result else { continue };
                    self.done_since_heal += 1;
                    self.note_found(invoked_at, now, doing, as_of, found);
                }
                Notice::WatchBegins(token, began) => {
                    let Some((shard, place)) = self.watches.get_mut(&token) else { continue };
                    *place = self.watched.len();
                    self.watched.push(Watched { shard: *shard, began, events: Vec::new() });
                }
                Notice::Changed(token, events) => {
                    let Some((_, place)) = self.watches.get(&token) else { continue };
                    match self.watched.get_mut(*place) {
                        Some(watched) => watched.events.extend(events),
                        None => self.wrong = Some("changes before the watch began".into()),
                    }
                }
            }
        }
    }

    fn note_found(&mut self, invoked_at: u64, now: u64, doing: Doing, as_of: Seq, found: Found) {
        let text = |value: &Blob| String::from_utf8_lossy(value).into_owned();
        let pairs: Vec<(Key, Option<(Seq, String)>)> = match (doing, found) {
            (Doing::Read(keys), Found::Records(records)) if keys.len() == records.len() => {
                keys.into_iter().zip(records.into_iter().map(|r| r.map(|r| (r.version, text(&r.value))))).collect()
            }
            (Doing::Scan(shard), Found::Page { records, more: false }) => {
                let found: BTreeMap<&[u8], _> = records.iter().map(|(key, record)| (&key[..], record)).collect();
                let of_shard = |number: &usize| {
                    self.client.shard_of(&Key::new(Table::Names, format!("k{number}").as_bytes())) == shard
                };
                let keys = (0..8).filter(of_shard).map(|number| format!("k{number}"));
                keys.map(|key| {
                    let record = found.get(key.as_bytes()).map(|r| (r.version, text(&r.value)));
                    (Key::new(Table::Names, key.as_bytes()), record)
                })
                .collect()
            }
            (doing, found) => {
                self.wrong = Some(format!("{doing:?} was answered by {found:?}"));
                return;
            }
        };
        for (key, read) in pairs {
            if let Some((version, _)) = &read {
                self.known.insert(key.clone(), *version);
            }
            self.seen.push(Seen { key, did: Did::Read, invoked_at, returned: Some((now, Got::Read(as_of, read))) });
        }
    }

    /// The process ends: nobody will know what came of what is under way.
    pub fn crash(&mut self) {
        self.alive = false;
        self.give_up();
    }

    /// Counts what is under way as never answered.
    pub fn give_up(&mut self) {
        for (invoked_at, doing) in std::mem::take(&mut self.under_way).into_values() {
            if let Doing::Write(key, did) = doing {
                self.seen.push(Seen { key, did, invoked_at, returned: None });
            }
        }
    }

    /// Whether its watch of a shard, if it has one, has told of all up to here.
    pub fn has_seen(&self, shard: ShardId, seq: Seq) -> bool {
        let mut of_shard = self.watches.iter().filter(|(_, (of, _))| *of == shard);
        of_shard.all(|(token, _)| self.client.watched_through(*token).is_some_and(|through| through >= seq))
    }

    /// The longest time within these in which nothing came back.
    pub fn longest_pause(&self, from: u64, to: u64) -> u64 {
        let ends = self.seen.iter().filter_map(|seen| Some(seen.returned.as_ref()?.0));
        let mut moments: Vec<u64> = ends.filter(|at| (from..to).contains(at)).chain([from, to]).collect();
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(to - from)
    }

    /// Operations that have not ended.
    pub fn pending(&self) -> usize {
        self.under_way.len()
    }
}

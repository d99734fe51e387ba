//! A state as bytes, a piece at a time, while it goes on changing: whoever reads
//! it so has a [`View`], which keeps what stood in those places that have changed
//! and have not been read yet. And a state from such pieces.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::super::codec::{Reader, put, put_bytes, put_key, put_number, put_record, read_key, read_record};
use super::super::record::{Key, Record, Seq};
use super::{Event, Outcome, Session, State};
use crate::base::Rank;

/// Who reads a state in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::gcs) enum Reads {
    /// A successor that takes it over.
    Successor,
    /// The log, which is begun anew.
    Log,
}

/// How many can read at once.
pub(super) const READERS: usize = 2;

/// A state as it was when this was made, as far as it has not been read. It keeps
/// no more than that.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct View {
    applied: Seq,
    forgotten: Seq,
    next: Next,
    /// Sessions that have changed since and are still to be read, as they were;
    /// nothing where there was none.
    sessions: BTreeMap<Rank, Option<Session>>,
    /// The same for records. One that is newer than the view was not there.
    records: BTreeMap<Key, Record>,
    events: VecDeque<Event>,
}

/// What is read next: of sessions and records, those behind these.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Next {
    Head,
    Sessions(Option<Rank>),
    Records(Option<Key>),
    Events,
    End,
}

const END: u8 = 0;
const HEAD: u8 = 1;
const SESSION: u8 = 2;
const RECORD: u8 = 3;
const EVENT: u8 = 4;

/// What passing over a record costs that the view has not.
const PASSED_BYTES: usize = 64;

impl State {
    /// Begins to read the state as it is now.
    pub(in crate::gcs) fn view(&mut self, reader: Reads) {
        self.views[reader as usize] = Some(View::of(self));
    }

    /// Adds the next piece of about so many bytes, and says whether there are more.
    pub(in crate::gcs) fn read_view(&mut self, reader: Reads, room: usize, bytes: &mut Vec<u8>) -> bool {
        let Some(mut view) = self.views[reader as usize].take() else { return false };
        let more = view.read(self, room, bytes);
        self.views[reader as usize] = Some(view).filter(|_| more);
        more
    }

    /// Nothing more is read.
    pub(in crate::gcs) fn end_view(&mut self, reader: Reads) {
        self.views[reader as usize] = None;
    }

    /// Adds all of it.
    #[cfg(test)]
    pub(in crate::gcs) fn put(&self, bytes: &mut Vec<u8>) {
        View::of(self).read(self, usize::MAX, bytes);
    }

    /// All of it in pieces of about so many bytes.
    pub(in crate::gcs) fn pieces(&self, room: usize) -> impl Iterator<Item = Vec<u8>> {
        let mut view = Some(View::of(self));
        std::iter::from_fn(move || {
            let mut piece = Vec::new();
            let more = view.as_mut()?.read(self, room, &mut piece);
            view = view.take().filter(|_| more);
            Some(piece)
        })
    }

    /// A record is about to change.
    #[inline]
    pub(super) fn keep_record(&mut self, key: &Key) {
        let State { views, records, .. } = self;
        for view in views.iter_mut().flatten() {
            let is_read = match &view.next {
                Next::Head | Next::Sessions(_) => false,
                Next::Records(after) => after.as_ref().is_some_and(|after| key <= after),
                Next::Events | Next::End => true,
            };
            if !is_read
                && let Some((key, record)) = records.get_key_value(key)
                && record.version <= view.applied
            {
                view.records.insert(key.clone(), record.clone());
            }
        }
    }

    /// A session is about to change.
    #[inline]
    pub(super) fn keep_session(&mut self, rank: Rank) {
        let State { views, sessions, .. } = self;
        for view in views.iter_mut().flatten() {
            let is_read = match view.next {
                Next::Head => false,
                Next::Sessions(after) => after.is_some_and(|after| rank <= after),
                _ => true,
            };
            if !is_read {
                view.sessions.entry(rank).or_insert_with(|| sessions.get(&rank).cloned());
            }
        }
    }
}

impl View {
    fn of(state: &State) -> View {
        View {
            applied: state.applied,
            forgotten: state.forgotten,
            next: Next::Head,
            sessions: BTreeMap::new(),
            records: BTreeMap::new(),
            events: state.history.clone(),
        }
    }

    fn read(&mut self, state: &State, room: usize, bytes: &mut Vec<u8>) -> bool {
        let end = bytes.len().saturating_add(room);
        while bytes.len() < end {
            match &mut self.next {
                Next::Head => {
                    bytes.push(HEAD);
                    put_number(self.applied.0, bytes);
                    put_number(self.forgotten.0, bytes);
                    self.next = Next::Sessions(None);
                }
                Next::Sessions(after) => {
                    let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
                    let mut all = merged(state.sessions.range(range), self.sessions.range(range));
                    while bytes.len() < end {
                        let Some((rank, session)) = all.next() else {
                            drop(all);
                            self.sessions.clear();
                            self.next = Next::Records(None);
                            break;
                        };
                        *after = Some(*rank);
                        put_session(*rank, session, bytes);
                    }
                }
                Next::Records(after) => {
                    let after = after.take();
                    if self.read_records(state, after, end, bytes) {
                        return true;
                    }
                }
                Next::Events => match self.events.pop_front() {
                    Some(event) => {
                        bytes.push(EVENT);
                        put_number(event.version.0, bytes);
                        put_key(&event.key, bytes);
                        bytes.push(u8::from(event.value.is_some()));
                        event.value.iter().for_each(|value| put_bytes(value, bytes));
                    }
                    None => self.next = Next::End,
                },
                Next::End => {
                    bytes.push(END);
                    return false;
                }
            }
        }
        true
    }

    /// Reads records until there is no room; false if all are read before.
    fn read_records(&mut self, state: &State, after: Option<Key>, end: usize, bytes: &mut Vec<u8>) -> bool {
        let range = (after.as_ref().map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let mut now = state.records.range::<Key, _>(range).peekable();
        let mut before = self.records.iter().peekable();
        let mut last = None;
        let mut passed = 0;
        while bytes.len().saturating_add(passed) < end {
            let changed = before.next_if(|(key, _)| now.peek().is_none_or(|(next, _)| key <= next));
            let Some((key, record)) = changed.or_else(|| now.next()) else {
                self.records.clear();
                self.next = Next::Events;
                return false;
            };
            last = Some(key);
            if record.version <= self.applied {
                bytes.push(RECORD);
                put_key(key, bytes);
                put_record(record, bytes);
            } else {
                passed += PASSED_BYTES;
            }
        }
        let last = last.cloned().or(after);
        while self.records.first_key_value().is_some_and(|(key, _)| Some(key) <= last.as_ref()) {
            self.records.pop_first();
        }
        self.next = Next::Records(last);
        true
    }
}

/// What is there now, but where it has changed what was there before, in order.
fn merged<'s, K: Ord + 's, V: 's>(
    now: impl Iterator<Item = (&'s K, &'s V)>,
    before: impl Iterator<Item = (&'s K, &'s Option<V>)>,
) -> impl Iterator<Item = (&'s K, &'s V)> {
    let (mut now, mut before) = (now.peekable(), before.peekable());
    std::iter::from_fn(move || {
        loop {
            let Some((changed, _)) = before.peek() else { return now.next() };
            if now.peek().is_some_and(|(key, _)| key < changed) {
                return now.next();
            }
            now.next_if(|(key, _)| key == changed);
            if let (key, Some(value)) = before.next()? {
                return Some((key, value));
            }
        }
    })
}
fn put_session(rank: Rank, session: &Session, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&[SESSION, u8::from(session.ended)]);
    put_number(u64::from(rank.0), bytes);
    put_number(u64::from(session.incarnation), bytes);
    put_number(session.settled, bytes);
    put_number(session.outcomes.len() as u64, bytes);
    for outcome in &session.outcomes {
        match outcome {
            None => bytes.push(0),
            Some(Ok(seq)) => {
                bytes.push(1);
                put_number(seq.0, bytes);
            }
            Some(Err(refusal)) => {
                bytes.push(2);
                put(refusal, bytes);
            }
        }
    }
}

fn read_session(reader: &mut Reader<'_>) -> Option<(Rank, Session)> {
    let ended = reader.flag()?;
    let rank = reader.rank()?;
    let incarnation = reader.short_number()?;
    let settled = reader.number()?;
    let outcomes: Vec<Option<Outcome>> = reader.items(1, |reader| match reader.byte()? {
        0 => Some(None),
        1 => Some(Some(Ok(Seq(reader.number()?)))),
        2 => reader.other().map(|refusal| Some(Err(refusal))),
        _ => None,
    })?;
    Some((rank, Session { incarnation, ended, settled, outcomes: outcomes.into() }))
}

/// A state that is made from its pieces.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(in crate::gcs) struct Builder {
    state: State,
    begun: bool,
    ended: bool,
}

impl Builder {
    /// Takes the next piece. Nothing if it is none.
    pub(in crate::gcs) fn take(&mut self, piece: &[u8]) -> Option<()> {
        let mut reader = Reader::copying(piece);
        while !reader.is_at_end() {
            let kind = reader.byte()?;
            if self.ended || self.begun == (kind == HEAD) {
                return None;
            }
            let state = &mut self.state;
            match kind {
                HEAD => {
                    self.begun = true;
                    (state.applied, state.forgotten) = (Seq(reader.number()?), Seq(reader.number()?));
                }
                SESSION => {
                    let (rank, session) = read_session(&mut reader)?;
                    state.sessions.insert(rank, session);
                }
                RECORD => {
                    let key = read_key(&mut reader)?;
                    state.records.insert(key, read_record(&mut reader)?);
                }
                EVENT => {
                    let (version, key) = (Seq(reader.number()?), read_key(&mut reader)?);
                    let value = if reader.flag()? { Some(reader.blob()?) } else { None };
                    state.history.push_back(Event { version, key, value });
                }
                END => self.ended = true,
                _ => return None,
            }
        }
        Some(())
    }

    /// The state, once all of it is there.
    pub(in crate::gcs) fn finish(&mut self) -> Option<State> {
        self.ended.then(|| std::mem::take(&mut self.state))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::bug::Bugs;
    use super::super::super::record::{Blob, Table};
    use super::super::{ClientId, Command, Op};
    use super::*;
    use crate::base::rng::Rng;

    /// The next command of one of a few clients on one of a few keys.
    fn change(state: &mut State, rng: &mut Rng) {
        let seq = state.applied().next();
        let key = Key::new(Table::ALL[rng.below(3)], format!("key {}", rng.below(300)).as_bytes());
        let value = Blob::from(&vec![seq.0 as u8; rng.below(80)]);
        let client = ClientId { rank: Rank(rng.below(9) as u32), incarnation: 1 + rng.below(40) as u32 / 39 };
        let op = match rng.below(12) {
            0..6 => Op::Put { key, value },
            6..8 => Op::Append { key, bytes: value },
            8..10 => Op::Delete { key },
            10 => Op::DeletePrefix { table: key.table, prefix: Blob::from(format!("key {}", rng.below(30)).as_bytes()) },
            _ => Op::EndClient { client: ClientId { rank: Rank(20 + rng.below(9) as u32), incarnation: 1 } },
        };
        let command = Command { client, number: seq.0, settled: seq.0.saturating_sub(50), op };
        state.apply(seq, &command, Bugs::default());
    }

    /// However much changes between the pieces, they are the state as it was.
    #[test]
    fn a_view_is_the_state_when_it_was_made() {
        for seed in 0..40 {
            let mut rng = Rng::new(seed);
            let mut state = State::default();
            (0..rng.below(1_500)).for_each(|_| change(&mut state, &mut rng));
            let mut whole = Vec::new();
            state.put(&mut whole);
            state.view(Reads::Successor);
            state.view(Reads::Log);
            let (mut builder, mut pieces) = (Builder::default(), Vec::new());
            let room = 1 + rng.below(4_000);
            loop {
                let mut piece = Vec::new();
                let more = state.read_view(Reads::Successor, room, &mut piece);
                assert!(piece.len() <= room + 1_500, "{}", piece.len());
                builder.take(&piece).expect("a piece");
                pieces.extend(piece);
                if !more {
                    break;
                }
                (0..rng.below(60)).for_each(|_| change(&mut state, &mut rng));
            }
            assert_eq!(pieces, whole, "seed {seed}");
            let mut again = Vec::new();
            builder.finish().expect("all of it").put(&mut again);
            assert_eq!(again, whole);
            let mut later = Vec::new();
            state.read_view(Reads::Log, usize::MAX, &mut later);
            assert_eq!(later, whole, "what another has read is there");
            assert_eq!(state.views, [None, None]);
        }
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let mut rng = Rng::new(1);
        let mut state = State::default();
        (0..300).for_each(|_| change(&mut state, &mut rng));
        let mut whole = Vec::new();
        state.put(&mut whole);
        assert!(Builder::default().finish().is_none());
        assert!(Builder::default().take(&whole[1..]).is_none(), "it has no head");
        for end in (1..whole.len()).step_by(7) {
            let mut builder = Builder::default();
            assert!(builder.take(&whole[..end]).is_none() || builder.finish().is_none(), "{end}");
        }
        let mut builder = Builder::default();
        builder.take(&whole).unwrap();
        assert!(builder.take(&[END]).is_none(), "something behind it");
    }
}

//! The protocol of large objects, for one rank: reader, holder and lender at
//! once. Messages and ends of reads come in, [`Action`]s go out.
//!
//! As reader it asks the lender from whom to read, subscribes to those copies
//! and reads what they have, chunk by chunk; a source that is lost or has
//! nothing any more is replaced by asking again. As holder it tells those that
//! subscribed what has come, and has its copy kept until they are done: only
//! memory that its holder keeps for the reader is ever read. As lender it has
//! the [`Directory`]. The owner's memory needs no subscription, for whoever
//! reads it has it on loan.

use std::collections::{HashMap, VecDeque};
use std::fmt;

use slab::Slab;

use super::chunks::{ChunkSet, Chunking};
use super::directory::{Directory, Plan};
use super::fetch::{ChunkRead, Fetch};
use super::flow::{Flow, Turn};
use crate::base::Rank;
use crate::base::limits::{BULK_BYTES_MIN, BULK_LOCATES_MAX, OBJECT_ALIGN};
use crate::wire::{Bulk, BulkBody, CopyId};

/// See the module.
#[derive(Debug)]
pub struct Exchange {
    me: Rank,
    arrivals: Slab<Arrival>,
    /// Arrivals in chunks, which others may read from.
    by_copy: HashMap<CopyId, usize>,
    /// Copies that others read from here.
    served: HashMap<CopyId, Served>,
    reads: Slab<ReadUnderWay>,
    flow: Flow,
    directory: Directory,
    lost: HashMap<Rank, String>,
    actions: VecDeque<Action>,
    /// Arrivals with chunks that their readers have not been told of.
    news: Vec<usize>,
    subscriptions: u32,
}

/// An object that is to be brought here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Its name.
    pub copy: CopyId,
    /// In whose memory it lies, on loan to us.
    pub owner: Rank,
    /// Its first byte there.
    pub from: u64,
    /// Its bytes.
    pub len: u64,
    /// Its first byte in this rank's arena, where it goes.
    pub to: u64,
}

/// What the exchange wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Send a message.
    Send(Rank, Bulk),
    /// Read a chunk; to be answered by [`Exchange::read_ended`].
    Read {
        /// Names the read.
        token: usize,
        /// The arrival that it is for.
        arrival: usize,
        /// From whom.
        rank: Rank,
        /// What.
        read: ChunkRead,
    },
    /// An object is here. If it is `kept`, its memory must stay until
    /// [`Memory::unpin`].
    Done {
        /// The arrival, whose number is used again.
        arrival: usize,
        /// The object.
        copy: CopyId,
        /// Others still read from it.
        kept: bool,
    },
    /// An object will not come; otherwise as [`Action::Done`].
    Failed {
        /// The arrival.
        arrival: usize,
        /// The object.
        copy: CopyId,
        /// Others still read from it.
        kept: bool,
        /// Why.
        error: FetchError,
    },
}

/// An object that could not be read from anybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchError {
    /// The object.
    pub copy: CopyId,
    /// In whose memory it was.
    pub owner: Rank,
    /// Its bytes.
    pub len: u64,
    /// Who was tried, and why each had to be given up.
    pub causes: Vec<(Rank, String)>,
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FetchError { copy, owner, len, causes } = self;
        let (lender, object) = (copy.lender, copy.object);
        write!(f, "object {object:#x} of {lender}, {len} bytes in the memory of {owner}, has no source left")?;
        for (at, (rank, cause)) in causes.iter().enumerate() {
            write!(f, "{}{rank}: {cause}", if at == 0 { ": " } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for FetchError {}

/// What the exchange asks of this rank's memory.
pub trait Memory {
    /// The object that this rank has lent to `borrower`: whose memory it lies
    /// in, and its bytes.
    fn lent(&self, object: u64, borrower: Rank) -> Option<(Rank, u64)>;

    /// Keeps the complete copy where it is, if there still is one: its first
    /// byte in this rank's arena, and its bytes.
    fn pin(&mut self, copy: CopyId) -> Option<(u64, u64)>;

    /// Ends [`Memory::pin`], or what [`Action::Done`] and [`Action::Failed`] say
    /// is kept.
    fn unpin(&mut self, copy: CopyId);
}

/// A chunk that has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Landed {
    /// Its bytes.
    pub bytes: u64,
    /// From the owner's memory, not from another reader's copy.
    pub from_owner: bool,
}

/// A message that a peer must not send: what it did.
pub type Violation = &'static str;

#[derive(Debug)]
struct Arrival {
    wanted: Wanted,
    fetch: Fetch,
    subscribed: Vec<Subscription>,
    /// Whom to try if the lender cannot be asked.
    reserves: Vec<Rank>,
    /// The lender was asked and has not answered.
    locating: bool,
    locates: u32,
    causes: Vec<(Rank, String)>,
    /// Words of the set of chunks that changed since the last report.
    changed: Option<(u32, u32)>,
    failed: bool,
    /// Its end is among the actions.
    ended: bool,
}

/// A holder that keeps its copy for us, or was asked to.
#[derive(Debug)]
struct Subscription {
    rank: Rank,
    number: u32,
    /// It is told so once nothing is read from it any more.
    leaving: bool,
}

#[derive(Debug)]
struct Served {
    /// With the numbers of their subscriptions.
    readers: Vec<(Rank, u32)>,
    state: Serving,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Serving {
    /// While it arrives.
    Partly(usize),
    /// All of it, pinned from `offset` on.
    Whole { offset: u64, chunks: u32 },
    /// What has come before it was given up, pinned.
    Broken,
}

#[derive(Debug)]
struct ReadUnderWay {
    arrival: usize,
    rank: Rank,
    chunk: u32,
    len: u64,
}

impl Exchange {
    /// Nothing under way at rank `me`.
    pub fn new(me: Rank) -> Exchange {
        Exchange {
            me,
            arrivals: Slab::new(),
            by_copy: HashMap::new(),
            served: HashMap::new(),
            reads: Slab::new(),
            flow: Flow::new(),
            directory: Directory::new(),
            lost: HashMap::new(),
            actions: VecDeque::new(),
            news: Vec::new(),
            subscriptions: 0,
        }
    }

    /// Whether there is nothing for [`Exchange::next`] to do before something
    /// else happens.
    pub fn is_idle(&self) -> bool {
        self.arrivals.is_empty() && self.actions.is_empty()
    }

    /// The arrival of an object that is on its way already.
    pub fn arriving(&self, copy: CopyId) -> Option<(usize, Wanted)> {
        let arrival = *self.by_copy.get(&copy)?;
        Some((arrival, self.arrivals[arrival].wanted))
    }

    /// How an object of `len` bytes is cut.
    pub fn chunking(len: u64) -> Chunking {
        if len < BULK_BYTES_MIN { Chunking::whole(len) } else { Chunking::of(len) }
    }

    /// Brings an object here; ends in [`Action::Done`] or [`Action::Failed`].
    pub fn start(&mut self, wanted: Wanted) -> usize {
        let chunking = Exchange::chunking(wanted.len);
        let arrival = self.arrivals.insert(Arrival {
            wanted,
            fetch: Fetch::new(chunking),
            subscribed: Vec::new(),
            reserves: Vec::new(),
            locating: false,
            locates: 0,
            causes: Vec::new(),
            changed: None,
            failed: false,
            ended: false,
        });
        if chunking.count() == 1 {
            // Not worth the question who else has it.
            match self.lost.get(&wanted.owner) {
                Some(cause) => self.fail(arrival, wanted.owner, cause.clone()),
                None => {
                    self.arrivals[arrival].fetch.add_whole(wanted.owner, wanted.from);
                    self.flow.want(wanted.owner, arrival);
                }
            }
        } else {
            self.by_copy.insert(wanted.copy, arrival);
            self.locate(arrival, None);
            self.proceed(arrival);
        }
        arrival
    }

    /// A peer's message. An error means that the peer is broken.
    pub fn receive(&mut self, from: Rank, message: Bulk, memory: &mut dyn Memory) -> Result<(), Violation> {
        let copy = message.copy;
        match message.what {
            BulkBody::Locate { gone } => self.on_locate(from, copy, gone, memory),
            BulkBody::Arrived { complete } => {
                if copy.lender != self.me {
                    return Err("a report about an object that this rank has not lent");
                }
                self.directory.finish(copy.object, from, complete);
                Ok(())
            }
            BulkBody::Sources { primaries, ranks } => {
                if copy.lender != from || ranks.contains(&self.me) {
                    return Err("sources of an object that it cannot know");
                }
                self.on_sources(copy, primaries as usize, &ranks);
                Ok(())
            }
            BulkBody::Subscribe { number } => self.on_subscribe(from, copy, number, memory),
            BulkBody::Unsubscribe { number } => {
                // If it was refused, there is none.
                self.unsubscribe(copy, memory, |reader| *reader == (from, number));
                Ok(())
            }
            BulkBody::Holding { number, offset, first, words } => {
                self.on_holding(from, copy, number, offset, first, &words)
            }
            BulkBody::Gone { number } => {
                self.on_gone(from, copy, number);
                Ok(())
            }
        }
    }

    /// A read ended, well or not. What it brought.
    pub fn read_ended(&mut self, token: usize, result: Result<(), String>, now_ns: u64) -> Option<Landed> {
        let ReadUnderWay { arrival, rank, chunk, len } = self.reads.try_remove(token)?;
        self.flow.ended(rank, len);
        let entry = self.arrivals.get_mut(arrival)?;
        let landed = result.is_ok().then_some(Landed { bytes: len, from_owner: rank == entry.wanted.owner });
        match result {
            Ok(()) => {
                entry.fetch.arrived(rank, chunk, now_ns);
                let word = chunk / 64;
                let news = entry.changed.get_or_insert((word, word));
                *news = (news.0.min(word), news.1.max(word));
                self.news.push(arrival);
            }
            Err(cause) => {
                entry.fetch.failed(rank, chunk);
                self.drop_source(arrival, rank, cause);
            }
        }
        self.proceed(arrival);
        landed
    }

    /// A peer is gone; reads from it have ended or will.
    pub fn peer_lost(&mut self, rank: Rank, cause: &str, memory: &mut dyn Memory) {
        self.lost.insert(rank, cause.to_string());
        self.directory.lost(rank);
        for copy in self.served.keys().copied().collect::<Vec<_>>() {
            self.unsubscribe(copy, memory, |(reader, _)| *reader == rank);
        }
        let affected = self.arrivals.iter().filter(|(_, a)| a.concerns(rank)).map(|(n, _)| n);
        for arrival in affected.collect::<Vec<_>>() {
            self.arrivals[arrival].subscribed.retain(|s| s.rank != rank);
            self.drop_source(arrival, rank, cause.to_string());
            self.proceed(arrival);
        }
    }

    /// The last loan of an object has ended.
    pub fn freed(&mut self, object: u64) {
        self.directory.freed(object);
    }

    /// What is to be done next; `None` when nothing is before something else
    /// happens. To be called until then after every other call, or after a few.
    pub fn next(&mut self, now_ns: u64) -> Option<Action> {
        if self.actions.is_empty() {
            self.read_more(now_ns);
        }
        if self.actions.is_empty() {
            self.tell_news();
        }
        let mut action = self.actions.pop_front()?;
        if let Action::Done { arrival, kept, .. } | Action::Failed { arrival, kept, .. } = &mut action {
            *kept = self.settle(*arrival);
        }
        Some(action)
    }

    /// Objects on their way here.
    pub fn under_way(&self) -> usize {
        self.arrivals.len()
    }

    /// Bytes on their way here.
    pub fn bytes_in_flight(&self) -> u64 {
        self.flow.in_flight()
    }

    /// Copies that others read from here, and objects in the directory.
    pub fn serving(&self) -> (usize, usize) {
        (self.served.len(), self.directory.len())
    }

    fn send(&mut self, to: Rank, copy: CopyId, what: BulkBody) {
        if !self.lost.contains_key(&to) {
            self.actions.push_back(Action::Send(to, Bulk { copy, what }));
        }
    }

    fn on_locate(
        &mut self,
        from: Rank,
        copy: CopyId,
        gone: Option<Rank>,
        memory: &mut dyn Memory,
    ) -> Result<(), Violation> {
        let lent = memory.lent(copy.object, from).filter(|_| copy.lender == self.me);
        let (owner, len) = lent.ok_or("a question for an object that it was not lent")?;
        let chunks = Exchange::chunking(len).count();
        let lost = &self.lost;
        let plan = self.directory.locate(copy.object, from, owner, chunks, gone, |rank| !lost.contains_key(&rank));
        let Plan { primaries, ranks } = plan;
        self.send(from, copy, BulkBody::Sources { primaries, ranks });
        Ok(())
    }

    fn on_sources(&mut self, copy: CopyId, primaries: usize, ranks: &[Rank]) {
        // The answer may come when the object is here or was given up.
        let Some(&arrival) = self.by_copy.get(&copy) else { return };
        let entry = &mut self.arrivals[arrival];
        if !std::mem::take(&mut entry.locating) || entry.failed {
            return;
        }
        entry.reserves = ranks.iter().skip(primaries).copied().rev().collect();
        for rank in &ranks[..primaries] {
            self.use_source(arrival, *rank);
        }
        self.proceed(arrival);
    }

    /// Begins to read from `rank`, or asks it to be read from.
    fn use_source(&mut self, arrival: usize, rank: Rank) {
        if let Some(cause) = self.lost.get(&rank) {
            let cause = cause.clone();
            return self.replace(arrival, rank, cause);
        }
        let entry = &mut self.arrivals[arrival];
        let Wanted { owner, from, copy, .. } = entry.wanted;
        if rank == owner {
            entry.fetch.add_whole(owner, from);
            self.flow.want(rank, arrival);
        } else if let Some(subscription) = entry.subscribed.iter().find(|s| s.rank == rank) {
            if subscription.leaving {
                self.replace(arrival, rank, "it has no copy any more".into());
            }
        } else {
            let number = self.subscriptions;
            self.subscriptions = self.subscriptions.wrapping_add(1);
            entry.subscribed.push(Subscription { rank, number, leaving: false });
            self.send(rank, copy, BulkBody::Subscribe { number });
        }
    }

    fn on_subscribe(
        &mut self,
        from: Rank,
        copy: CopyId,
        number: u32,
        memory: &mut dyn Memory,
    ) -> Result<(), Violation> {
        let arriving = self.by_copy.get(&copy).copied().filter(|arrival| !self.arrivals[*arrival].failed);
        let state = match (self.served.get(&copy), arriving) {
            (Some(served), _) if served.readers.iter().any(|(reader, _)| *reader == from) => {
                return Err("a second subscription to one copy");
            }
            (None, Some(arrival)) => Some(Serving::Partly(arrival)),
            (None, None) => memory.pin(copy).map(|(offset, len)| {
                Serving::Whole { offset, chunks: Exchange::chunking(len).count() }
            }),
            (Some(Served { state: Serving::Broken, .. }), _) => None,
            (Some(served), _) => Some(served.state),
        };
        let (offset, words) = match state {
            Some(Serving::Partly(arrival)) => {
                let entry = &self.arrivals[arrival];
                (entry.wanted.to, entry.fetch.here().words().to_vec())
            }
            Some(Serving::Whole { offset, chunks }) => (offset, ChunkSet::all(chunks).words().to_vec()),
            Some(Serving::Broken) | None => {
                self.send(from, copy, BulkBody::Gone { number });
                return Ok(());
            }
        };
        let state = state.unwrap_or(Serving::Broken);
        let served = self.served.entry(copy).or_insert_with(|| Served { readers: Vec::new(), state });
        served.readers.push((from, number));
        self.send(from, copy, BulkBody::Holding { number, offset, first: 0, words });
        Ok(())
    }

    /// Ends the subscriptions of those readers for whom `leaves` holds.
    fn unsubscribe(&mut self, copy: CopyId, memory: &mut dyn Memory, leaves: impl Fn(&(Rank, u32)) -> bool) {
        let Some(served) = self.served.get_mut(&copy) else { return };
        served.readers.retain(|reader| !leaves(reader));
        if served.readers.is_empty() {
            let state = served.state;
            self.served.remove(&copy);
            if !matches!(state, Serving::Partly(_)) {
                memory.unpin(copy);
            }
        }
    }

    fn on_holding(
        &mut self,
        from: Rank,
        copy: CopyId,
        number: u32,
        offset: u64,
        first: u32,
        words: &[u64],
    ) -> Result<(), Violation> {
        if !offset.is_multiple_of(OBJECT_ALIGN as u64) {
            return Err("a copy that is not aligned");
        }
        // Our end of the subscription may be on its way.
        let Some((arrival, subscription)) = self.subscription(from, copy, number) else { return Ok(()) };
        if self.arrivals[arrival].subscribed[subscription].leaving {
            return Ok(());
        }
        let added = self.arrivals[arrival].fetch.add_chunks(from, offset, first, words);
        added.map_err(|_| "chunks that the object does not have")?;
        self.flow.want(from, arrival);
        Ok(())
    }

    fn on_gone(&mut self, from: Rank, copy: CopyId, number: u32) {
        if let Some((arrival, _)) = self.subscription(from, copy, number) {
            self.drop_source(arrival, from, "it has no copy any more".into());
            self.proceed(arrival);
        }
    }

    /// A subscription of ours: the arrival, and its place there.
    fn subscription(&self, to: Rank, copy: CopyId, number: u32) -> Option<(usize, usize)> {
        let arrival = *self.by_copy.get(&copy)?;
        let subscribed = &self.arrivals[arrival].subscribed;
        Some((arrival, subscribed.iter().position(|s| (s.rank, s.number) == (to, number))?))
    }

    /// Reads no more from `rank`, and finds another.
    fn drop_source(&mut self, arrival: usize, rank: Rank, cause: String) {
        let entry = &mut self.arrivals[arrival];
        let awaited = entry.locating && rank == entry.wanted.copy.lender;
        let used = entry.fetch.has_source(rank) || entry.subscribed.iter().any(|s| s.rank == rank && !s.leaving);
        entry.fetch.drop_source(rank);
        entry.reserves.retain(|reserve| *reserve != rank);
        entry.subscribed.iter_mut().filter(|s| s.rank == rank).for_each(|s| s.leaving = true);
        if awaited {
            entry.locating = false;
        }
        if awaited || used {
            self.replace(arrival, rank, cause);
        }
    }

    /// Finds another source than `rank`.
    fn replace(&mut self, arrival: usize, rank: Rank, cause: String) {
        let entry = &mut self.arrivals[arrival];
        if !entry.causes.iter().any(|(known, _)| *known == rank) {
            entry.causes.push((rank, cause));
        }
        if !entry.failed && !entry.is_whole() {
            self.locate(arrival, Some(rank));
        }
    }

    /// Asks the lender for sources, or takes one of those that it named before.
    fn locate(&mut self, arrival: usize, gone: Option<Rank>) {
        let entry = &mut self.arrivals[arrival];
        let Wanted { copy, owner, .. } = entry.wanted;
        if entry.fetch.chunking().count() > 1
            && !self.lost.contains_key(&copy.lender)
            && entry.locates < BULK_LOCATES_MAX
        {
            entry.locates += 1;
            entry.locating = true;
            return self.send(copy.lender, copy, BulkBody::Locate { gone });
        }
        if entry.fetch.sources().next().is_some() || entry.subscribed.iter().any(|s| !s.leaving) {
            return;
        }
        match entry.reserves.pop() {
            Some(rank) => self.use_source(arrival, rank),
            None if entry.fetch.chunking().count() > 1 && gone != Some(owner) && !self.lost.contains_key(&owner) => {
                self.use_source(arrival, owner);
            }
            None => self.give_up(arrival),
        }
    }

    /// No rank is left that could be asked.
    fn give_up(&mut self, arrival: usize) {
        let entry = &mut self.arrivals[arrival];
        entry.failed = true;
        let Wanted { copy, owner, .. } = entry.wanted;
        let nobody = "it knows of no rank that has a copy".to_string();
        for (rank, otherwise) in [(copy.lender, Some(nobody)), (owner, None)] {
            let cause = self.lost.get(&rank).cloned().or(otherwise);
            if let Some(cause) = cause.filter(|_| !entry.causes.iter().any(|(known, _)| *known == rank)) {
                entry.causes.push((rank, cause));
            }
        }
    }

    fn fail(&mut self, arrival: usize, rank: Rank, cause: String) {
        self.arrivals[arrival].causes.push((rank, cause));
        self.arrivals[arrival].failed = true;
        self.proceed(arrival);
    }

    /// Goes on with an arrival after something has changed: reads more, or ends
    /// it.
    fn proceed(&mut self, arrival: usize) {
        let Some(entry) = self.arrivals.get_mut(arrival) else { return };
        let over = entry.failed || entry.is_whole();
        let (copy, fetch) = (entry.wanted.copy, &entry.fetch);
        let left = entry.subscribed.extract_if(.., |s| (s.leaving || over) && fetch.in_flight_from(s.rank) == 0);
        let left: Vec<Subscription> = left.collect();
        if !over && !entry.locating && entry.fetch.sources().next().is_none() && entry.subscribed.is_empty() {
            self.give_up(arrival);
        }
        let entry = &self.arrivals[arrival];
        let over = entry.failed || entry.is_whole();
        let ended = over && entry.fetch.in_flight() == 0;
        for rank in entry.fetch.sources() {
            self.flow.want(rank, arrival);
        }
        for Subscription { rank, number, .. } in left {
            self.send(rank, copy, BulkBody::Unsubscribe { number });
        }
        if ended {
            self.end(arrival);
        }
    }

    fn end(&mut self, arrival: usize) {
        let entry = &mut self.arrivals[arrival];
        entry.ended = true;
        let complete = entry.is_whole();
        debug_assert!(complete || entry.failed);
        let Wanted { copy, owner, len, .. } = entry.wanted;
        let causes = std::mem::take(&mut entry.causes);
        if entry.fetch.chunking().count() > 1 {
            self.by_copy.remove(&copy);
            self.send(copy.lender, copy, BulkBody::Arrived { complete });
        }
        self.actions.push_back(match complete {
            true => Action::Done { arrival, copy, kept: false },
            false => {
                Action::Failed { arrival, copy, kept: false, error: FetchError { copy, owner, len, causes } }
            }
        });
    }

    /// Forgets an arrival whose end is being told; whether others read from it.
    fn settle(&mut self, arrival: usize) -> bool {
        let Arrival { wanted, fetch, .. } = self.arrivals.remove(arrival);
        let served = self.served.get_mut(&wanted.copy).filter(|served| served.state == Serving::Partly(arrival));
        let Some(served) = served else { return false };
        let complete = fetch.is_complete();
        served.state = match complete {
            true => Serving::Whole { offset: wanted.to, chunks: fetch.chunking().count() },
            false => Serving::Broken,
        };
        for (reader, number) in served.readers.clone() {
            let what = match complete {
                true => {
                    let words = fetch.here().words().to_vec();
                    BulkBody::Holding { number, offset: wanted.to, first: 0, words }
                }
                false => BulkBody::Gone { number },
            };
            self.send(reader, wanted.copy, what);
        }
        true
    }

    fn read_more(&mut self, now_ns: u64) {
        let (arrivals, reads) = (&mut self.arrivals, &mut self.reads);
        let next = self.flow.next(|rank, arrival| {
            let entry = arrivals.get_mut(arrival).filter(|entry| !entry.failed);
            let Some(read) = entry.and_then(|entry| entry.fetch.next(rank, now_ns)) else { return Turn::Passes };
            let token = reads.insert(ReadUnderWay { arrival, rank, chunk: read.chunk, len: read.len });
            Turn::Reads(read.len, Action::Read { token, arrival, rank, read })
        });
        self.actions.extend(next);
    }

    /// Tells those that read from here what has come since.
    fn tell_news(&mut self) {
        for arrival in std::mem::take(&mut self.news) {
            let Some(entry) = self.arrivals.get_mut(arrival) else { continue };
            let Some((first, last)) = entry.changed.take() else { continue };
            let copy = entry.wanted.copy;
            let Some(served) = self.served.get(&copy) else { continue };
            if served.state != Serving::Partly(arrival) {
                continue;
            }
            let words = &entry.fetch.here().words()[first as usize..=last as usize];
            let (offset, words) = (entry.wanted.to, words.to_vec());
            for (reader, number) in served.readers.clone() {
                self.send(reader, copy, BulkBody::Holding { number, offset, first, words: words.clone() });
            }
        }
    }
}

impl Arrival {
    fn is_whole(&self) -> bool {
        self.fetch.is_complete()
    }

    /// Whether the loss of `rank` changes anything for it.
    fn concerns(&self, rank: Rank) -> bool {
        self.fetch.has_source(rank)
            || self.subscribed.iter().any(|s| s.rank == rank)
            || self.reserves.contains(&rank)
            || self.locating && self.wanted.copy.lender == rank
    }
}

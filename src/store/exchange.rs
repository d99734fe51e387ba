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

mod holder;
mod stalls;
mod terms;

use std::collections::{BTreeSet, HashMap, VecDeque};

use slab::Slab;

use self::holder::{ReaderHere, Served, Serving};
pub use self::terms::{Action, FetchError, Landed, Memory, NearCopy, Violation, Wanted};
use super::chunks::{ChunkSet, Chunking};
use super::directory::{Asker, Directory, Plan};
use super::fetch::Fetch;
use super::flow::{Flow, Turn};
use crate::base::Rank;
use crate::base::limits::{BULK_LOCATES_MAX, OBJECT_ALIGN};
use crate::wire::{Bulk, BulkBody, CopyId};

/// See the module.
#[derive(Debug)]
pub struct Exchange {
    me: Rank,
    /// Ranks of the job.
    size: u32,
    /// Ranks whose memory this one reads in place.
    mapped: BTreeSet<Rank>,
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
    /// Arrivals that are to move once only stalled reads are under way to them.
    moving: Vec<usize>,
    /// Arrivals that wait for memory, the first one first.
    parked: VecDeque<usize>,
    /// Looks since memory of an arrival may have become free.
    unfreed: u32,
    subscriptions: u32,
}

/// For what is under way and not waited for.
const NO_ARRIVAL: usize = usize::MAX;

const NO_SUCH_CHUNK: Violation = "chunks that the object does not have";

const NO_SUCH_RANK: Violation = "a rank that the job does not have";

#[derive(Debug)]
struct Arrival {
    wanted: Wanted,
    /// Its first byte in this rank's arena, once it has a place.
    to: Option<u64>,
    fetch: Fetch,
    /// The one whose copy will be used in place.
    near: Option<Near>,
    subscribed: Vec<Subscription>,
    /// Whom to try if the lender cannot be asked.
    reserves: Vec<Rank>,
    /// The lender was asked and has not answered.
    locating: bool,
    /// Looks since.
    unanswered: u32,
    locates: u32,
    /// Looks since something came.
    quiet: u32,
    room: Room,
    /// Nothing more is read into its memory.
    moving: bool,
    /// A chunk's memory is still with a fabric: it must move.
    blocked: bool,
    causes: Vec<(Rank, String)>,
    /// Words of the set of chunks that changed since the last report.
    changed: Option<(u32, u32)>,
    failed: bool,
    /// Its end is among the actions.
    ended: bool,
}

/// Whether an arrival waits for memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Room {
    /// It has some, or needs none yet.
    Unasked,
    /// [`Action::Place`] is among the actions; whether it was parked before.
    Asked(bool),
    /// There was none.
    Parked,
}

/// A holder that keeps its copy for us, or was asked to.
#[derive(Debug)]
struct Subscription {
    rank: Rank,
    number: u32,
    /// Looks since it said something.
    quiet: u32,
    /// It is told so once nothing is read from it any more.
    leaving: bool,
}

#[derive(Debug)]
struct Near {
    rank: Rank,
    has: ChunkSet,
    offset: u64,
}

#[derive(Debug)]
struct ReadUnderWay {
    arrival: usize,
    rank: Rank,
    chunk: u32,
    len: u64,
    /// The chunk was asked of another rank since.
    reclaimed: bool,
}

impl Exchange {
    /// Nothing under way at rank `me` of a job of `size` ranks.
    pub fn new(me: Rank, size: u32) -> Exchange {
        Exchange {
            me,
            size,
            mapped: BTreeSet::new(),
            arrivals: Slab::new(),
            by_copy: HashMap::new(),
            served: HashMap::new(),
            reads: Slab::new(),
            flow: Flow::new(),
            directory: Directory::new(),
            lost: HashMap::new(),
            actions: VecDeque::new(),
            news: Vec::new(),
            moving: Vec::new(),
            parked: VecDeque::new(),
            unfreed: 0,
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

    /// Brings an object here; ends in [`Action::Done`] or [`Action::Failed`].
    pub fn start(&mut self, wanted: Wanted) -> usize {
        let chunking = wanted.chunking();
        let arrival = self.arrivals.insert(Arrival {
            wanted,
            to: None,
            fetch: Fetch::new(chunking),
            near: None,
            subscribed: Vec::new(),
            reserves: Vec::new(),
            locating: false,
            unanswered: 0,
            locates: 0,
            quiet: 0,
            room: Room::Unasked,
            moving: false,
            blocked: false,
            causes: Vec::new(),
            changed: None,
            failed: false,
            ended: false,
        });
        if !wanted.is_exchanged() {
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

    /// The memory of `rank` is read in place.
    pub fn map(&mut self, rank: Rank) {
        self.mapped.insert(rank);
    }

    /// A copy is not read in place any more.
    pub fn left(&mut self, place: NearCopy) {
        self.send(place.holder, place.copy, BulkBody::Unsubscribe { number: place.number });
    }

    /// A peer's message. An error means that the peer is broken.
    pub fn receive(&mut self, from: Rank, message: Bulk, memory: &mut dyn Memory) -> Result<(), Violation> {
        let copy = message.copy;
        match message.what {
            BulkBody::Locate { gone, group } => {
                if group.0.max(gone.map_or(0, |gone| gone.0)) >= self.size {
                    return Err(NO_SUCH_RANK);
                }
                self.on_locate(copy, Asker { rank: from, group, gone }, memory)
            }
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
                if ranks.iter().any(|rank| rank.0 >= self.size) {
                    return Err(NO_SUCH_RANK);
                }
                self.on_sources(copy, primaries as usize, &ranks);
                Ok(())
            }
            BulkBody::Subscribe { number, in_place } => {
                self.on_subscribe(copy, ReaderHere { rank: from, number, in_place }, memory)
            }
            BulkBody::Unsubscribe { number } => {
                // If it was refused, there is none.
                self.unsubscribe(copy, memory, |reader| (reader.rank, reader.number) == (from, number));
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
        let ReadUnderWay { arrival, rank, chunk, len, reclaimed } = self.reads.try_remove(token)?;
        if self.flow.ended(rank, len) {
            self.revive(rank);
        }
        let entry = self.arrivals.get_mut(arrival).filter(|_| !reclaimed)?;
        let landed = result.is_ok().then_some(Landed { bytes: len, from_owner: rank == entry.wanted.owner });
        match result {
            Ok(()) => {
                entry.fetch.arrived(rank, chunk, now_ns);
                entry.quiet = 0;
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
            // Who read in place may have lent it on: that memory stays as it is
            // for good, as what was lent to a rank that died does.
            let told = self.served.get(&copy).is_some_and(|served| matches!(served.state, Serving::Whole { .. }));
            self.unsubscribe(copy, memory, |reader| reader.rank == rank && !(reader.in_place && told));
        }
        let affected = self.arrivals.iter().filter(|(_, a)| a.concerns(rank)).map(|(n, _)| n);
        for arrival in affected.collect::<Vec<_>>() {
            self.drop_source(arrival, rank, cause.to_string());
            self.arrivals[arrival].subscribed.retain(|s| s.rank != rank);
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
        loop {
            if self.actions.is_empty() {
                let next_move = self.next_move();
                self.actions.extend(next_move);
            }
            if self.actions.is_empty() {
                self.read_more(now_ns);
            }
            if self.actions.is_empty() {
                self.tell_news();
            }
            let mut action = self.actions.pop_front()?;
            match &mut action {
                Action::Done { arrival, kept, .. } | Action::Failed { arrival, kept, .. } => *kept = self.settle(*arrival),
                Action::Near { arrival, .. } => _ = self.settle(*arrival),
                // What has ended meanwhile needs no memory.
                Action::Place { arrival } if self.arrivals[*arrival].ended => continue,
                Action::Send(..) | Action::Read { .. } | Action::Place { .. } | Action::Move { .. } => (),
            }
            return Some(action);
        }
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

    /// Whether others read from the copy that is here, or on its way.
    pub fn is_served(&self, copy: CopyId) -> bool {
        self.served.contains_key(&copy)
    }

    fn send(&mut self, to: Rank, copy: CopyId, what: BulkBody) {
        if !self.lost.contains_key(&to) {
            self.actions.push_back(Action::Send(to, Bulk { copy, what }));
        }
    }

    fn on_locate(&mut self, copy: CopyId, asker: Asker, memory: &mut dyn Memory) -> Result<(), Violation> {
        let from = asker.rank;
        let lent = memory.lent(copy.object, from).filter(|_| copy.lender == self.me);
        let (owner, len) = lent.ok_or("a question for an object that it was not lent")?;
        let chunks = Chunking::of(len).count();
        let lost = &self.lost;
        let plan = self.directory.locate(copy.object, asker, owner, chunks, |rank| !lost.contains_key(&rank));
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
            entry.subscribed.push(Subscription { rank, number, quiet: 0, leaving: false });
            // Once something was read it is as well to read the rest.
            let in_place = self.mapped.contains(&rank) && entry.to.is_none() && entry.near.is_none();
            if in_place {
                let has = ChunkSet::none(entry.fetch.chunking().count());
                entry.near = Some(Near { rank, has, offset: 0 });
            }
            self.send(rank, copy, BulkBody::Subscribe { number, in_place });
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
        let entry = &mut self.arrivals[arrival];
        if entry.subscribed[subscription].leaving {
            return Ok(());
        }
        if offset.checked_add(entry.wanted.len).is_none() {
            return Err("a copy that no memory could hold");
        }
        entry.subscribed[subscription].quiet = 0;
        match entry.near.as_mut().filter(|near| near.rank == from) {
            Some(near) => {
                let before = near.has.filled();
                near.has.merge(first, words).map_err(|_| NO_SUCH_CHUNK)?;
                near.offset = offset;
                if near.has.filled() > before {
                    entry.quiet = 0;
                }
                self.proceed(arrival);
            }
            None => {
                entry.fetch.add_chunks(from, offset, first, words).map_err(|_| NO_SUCH_CHUNK)?;
                self.flow.want(from, arrival);
            }
        }
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
        entry.near.take_if(|near| near.rank == rank);
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
        let is_exchanged = entry.wanted.is_exchanged();
        if is_exchanged
            && !self.lost.contains_key(&copy.lender)
            && entry.locates < BULK_LOCATES_MAX
        {
            entry.locates += 1;
            if !std::mem::replace(&mut entry.locating, true) {
                entry.unanswered = 0;
            }
            let group = self.mapped.first().map_or(self.me, |first| self.me.min(*first));
            return self.send(copy.lender, copy, BulkBody::Locate { gone, group });
        }
        if entry.fetch.sources().next().is_some() || entry.subscribed.iter().any(|s| !s.leaving) {
            return;
        }
        match entry.reserves.pop() {
            Some(rank) => self.use_source(arrival, rank),
            None if is_exchanged && gone != Some(owner) && !self.lost.contains_key(&owner) => {
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
        let Some(entry) = self.arrivals.get_mut(arrival).filter(|entry| !entry.ended) else { return };
        if let Some(near) = entry.near.take_if(|near| near.has.is_full())
            && let Some(at) = entry.subscribed.iter().position(|s| s.rank == near.rank)
        {
            if entry.to.is_none() {
                let Subscription { rank: holder, number, .. } = entry.subscribed.swap_remove(at);
                return self.end_near(arrival, holder, number, near.offset);
            }
            entry.fetch.add_whole(near.rank, near.offset);
        }
        // A source that has left is told so once nothing is read from it.
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
        if entry.wanted.is_exchanged() {
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

    /// Ends an arrival by a copy that is read where it is.
    fn end_near(&mut self, arrival: usize, holder: Rank, number: u32, offset: u64) {
        let entry = &mut self.arrivals[arrival];
        entry.ended = true;
        let Wanted { copy, len, .. } = entry.wanted;
        for Subscription { rank, number, .. } in std::mem::take(&mut entry.subscribed) {
            self.send(rank, copy, BulkBody::Unsubscribe { number });
        }
        self.by_copy.remove(&copy);
        self.send(copy.lender, copy, BulkBody::Arrived { complete: false });
        let place = NearCopy { copy, holder, number, offset, len };
        self.actions.push_back(Action::Near { arrival, place });
    }

    fn read_more(&mut self, now_ns: u64) {
        let (arrivals, reads, actions) = (&mut self.arrivals, &mut self.reads, &mut self.actions);
        let next = self.flow.next(|rank, arrival| {
            let entry = arrivals.get_mut(arrival).filter(|entry| !entry.failed && !entry.moving);
            let Some(entry) = entry.filter(|entry| entry.room == Room::Unasked) else { return Turn::Passes };
            if entry.to.is_none() {
                if entry.fetch.wants_of(rank) {
                    entry.room = Room::Asked(false);
                    actions.push_back(Action::Place { arrival });
                }
                return Turn::Passes;
            }
            let Some(read) = entry.fetch.next(rank, now_ns) else { return Turn::Passes };
            let token = reads.insert(ReadUnderWay { arrival, rank, chunk: read.chunk, len: read.len, reclaimed: false });
            Turn::Reads(read.len, Action::Read { token, arrival, rank, read })
        });
        self.actions.extend(next);
    }
}

impl Arrival {
    fn is_whole(&self) -> bool {
        self.fetch.is_complete()
    }

    /// Whether its end gives memory back.
    fn holds_memory(&self) -> bool {
        self.to.is_some() && self.room == Room::Unasked
    }

    /// Whether the loss of `rank` changes anything for it.
    fn concerns(&self, rank: Rank) -> bool {
        self.fetch.has_source(rank)
            || self.subscribed.iter().any(|s| s.rank == rank)
            || self.reserves.contains(&rank)
            || self.locating && self.wanted.copy.lender == rank
    }
}

#[cfg(test)]
mod tests;

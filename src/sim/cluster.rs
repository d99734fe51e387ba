//! Ranks that read objects from each other: one [`Exchange`] per host, messages
//! in their encoded form, and memory of which only the book-keeping exists.
//!
//! The book-keeping is the oracle: a read of memory that its owner does not
//! keep, or of a chunk that is not there, ends the run with a panic.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::network::{Happening, Network, NetworkConfig};
use crate::base::Rank;
use crate::base::limits::{FETCH_BYTES_MAX, FETCH_PEER_BYTES_MAX, SHARED_FROM, STALL_CHECK_EVERY};
use crate::store::{Action, ChunkRead, ChunkSet, Chunking, Exchange, FetchError, Memory, NearCopy, Wanted};
use crate::wire::{Bulk, CopyId, Message, write_bulk};

/// What is to be played.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Hosts, of one rank each.
    pub ranks: u32,
    /// What connects them.
    pub network: NetworkConfig,
    /// What is read.
    pub objects: Vec<Object>,
    /// Which host dies when.
    pub deaths: Vec<(Rank, u64)>,
    /// Which rank stops when, and for how long, as by SIGSTOP.
    pub stops: Vec<(Rank, u64, u64)>,
    /// Hosts with faster or slower links.
    pub speeds: Vec<(Rank, f64)>,
    /// Whether readers drop what they have read at once, or keep it.
    pub drop_when_read: bool,
    /// So many ranks, by number, are one host and read each other's memory in
    /// place; each has a link of its own nevertheless.
    pub ranks_per_host: u32,
    /// What each rank's memory holds of what arrives.
    pub store_bytes: u64,
    /// Events in all before ranks act on theirs, as those do that poll seldom.
    pub batch: u32,
}

/// An object and those that read it.
#[derive(Clone, Debug)]
pub struct Object {
    /// In whose memory it lies.
    pub owner: Rank,
    /// Who lends it.
    pub lender: Rank,
    /// Its bytes.
    pub bytes: u64,
    /// Who reads it.
    pub readers: Vec<Reader>,
}

/// A rank that reads an object.
#[derive(Clone, Copy, Debug)]
pub struct Reader {
    /// Which.
    pub rank: Rank,
    /// When it learns that it has the object on loan.
    pub start_ns: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// How each reader's read ended, by object and rank; those that died are
    /// not among them.
    pub ends: BTreeMap<(usize, Rank), End>,
    /// Bytes that each rank sent.
    pub sent: Vec<u64>,
    /// Messages in all.
    pub messages: u64,
    /// Their bytes.
    pub message_bytes: u64,
}

/// How a read ended.
#[derive(Clone, PartialEq, Debug)]
pub struct End {
    /// When.
    pub at_ns: u64,
    /// Why not well.
    pub error: Option<FetchError>,
}

impl Report {
    /// When the last reader was done.
    pub fn last_ns(&self) -> u64 {
        self.ends.values().map(|end| end.at_ns).max().unwrap_or(0)
    }

    /// Whether every reader that lived has the object.
    pub fn all_well(&self) -> bool {
        self.ends.values().all(|end| end.error.is_none())
    }
}

impl Scenario {
    /// One object of `bytes` from rank 0 to all others, at once.
    pub fn broadcast(ranks: u32, bytes: u64, network: NetworkConfig) -> Scenario {
        let readers = (1..ranks).map(|rank| Reader { rank: Rank(rank), start_ns: 0 }).collect();
        let object = Object { owner: Rank(0), lender: Rank(0), bytes, readers };
        Scenario {
            ranks,
            network,
            objects: vec![object],
            deaths: Vec::new(),
            stops: Vec::new(),
            speeds: Vec::new(),
            drop_when_read: false,
            ranks_per_host: 1,
            store_bytes: u64::MAX,
            batch: 1,
        }
    }

    /// What a reader is told of an object, which lies at `from`. The lender has
    /// lent it to the readers before, in their order.
    fn wanted(&self, number: usize, reader: Rank, from: u64) -> Wanted {
        let Object { owner, lender, bytes, readers } = &self.objects[number];
        let before = readers.iter().position(|r| r.rank == reader).unwrap_or(0);
        let copy = CopyId { lender: *lender, object: number as u64 };
        Wanted { copy, owner: *owner, from, len: *bytes, shared: before + 1 >= SHARED_FROM }
    }

    /// Plays it to the end.
    ///
    /// # Panics
    /// If memory is read that must not be, a limit is exceeded, a message is
    /// refused, a reader never ends, or something is kept for nobody.
    pub fn run(&self) -> Report {
        let mut cluster = Cluster::new(self);
        cluster.play();
        cluster.report()
    }
}

struct Cluster<'s> {
    scenario: &'s Scenario,
    network: Network<Parcel>,
    ranks: Vec<Member>,
    ends: BTreeMap<(usize, Rank), End>,
    /// Reads that will end, if nobody dies.
    expected: usize,
    messages: u64,
    message_bytes: u64,
}

/// One rank.
struct Member {
    exchange: Exchange,
    store: Store,
    /// Which object each arrival is, and where it goes, once it has a place.
    arrivals: HashMap<usize, (usize, Option<u64>)>,
    /// Copies that are used in place, until the end.
    near: Vec<NearCopy>,
    /// From whom, what, for which arrival and where to.
    reads: HashMap<usize, (Rank, ChunkRead, usize, Option<u64>)>,
    /// Where objects were before they were moved.
    former: HashMap<usize, Vec<u64>>,
    in_flight: HashMap<Rank, u64>,
    known_dead: Vec<Rank>,
}

/// The book-keeping of one rank's memory.
#[derive(Default)]
struct Store {
    me: Rank,
    /// Objects that this rank lends, to whom and how often.
    loans: HashMap<u64, Loan>,
    /// What lies where; numbers are never used again.
    places: BTreeMap<u64, Place>,
    complete: HashMap<CopyId, u64>,
    kept: HashMap<CopyId, u64>,
    /// Where kept objects were before.
    also_kept: HashMap<CopyId, Vec<u64>>,
    next: u64,
    /// Bytes that are free.
    room: u64,
}

struct Loan {
    owner: Rank,
    bytes: u64,
    borrowers: Vec<Rank>,
}

struct Place {
    bytes: u64,
    chunking: Chunking,
    chunks: ChunkSet,
    /// The reader itself, and whoever it is kept for.
    users: u32,
}

#[derive(Debug)]
enum Parcel {
    Bulk(Vec<u8>),
    Release(u64),
}

const ALIGN: u64 = 1 << 20;

/// The alarm at which a rank looks for stalled sources, and how often it does;
/// after the last one, whatever has not ended never will.
const CHECK: u64 = u64::MAX;
const CHECK_NS: u64 = STALL_CHECK_EVERY.as_nanos() as u64;
const CHECKS_END_NS: u64 = 200_000_000_000;

impl Store {
    fn take(&mut self, bytes: u64, chunking: Chunking, chunks: ChunkSet) -> u64 {
        let at = self.next;
        self.next += bytes.next_multiple_of(ALIGN) + ALIGN;
        self.places.insert(at, Place { bytes, chunking, chunks, users: 1 });
        at
    }

    fn leave(&mut self, at: u64) {
        let place = self.places.get_mut(&at).expect("whatever is left was there");
        place.users -= 1;
        if place.users == 0 {
            self.room += place.bytes;
            self.places.remove(&at);
            self.complete.retain(|_, place| *place != at);
        }
    }

    /// The same for what arrives, if there is room.
    fn take_room(&mut self, bytes: u64, chunking: Chunking, chunks: ChunkSet) -> Option<u64> {
        self.room = self.room.checked_sub(bytes)?;
        Some(self.take(bytes, chunking, chunks))
    }

    /// Whether the bytes may be read, and are what they should be.
    fn serves(&self, offset: u64, len: u64) -> bool {
        let Some((start, place)) = self.places.range(..=offset).next_back() else { return false };
        let inner = offset - start;
        if (inner, len) == (0, place.bytes) {
            return place.chunks.is_full();
        }
        let chunking = &place.chunking;
        let first = (inner / chunking.chunk_bytes()) as u32;
        inner + len <= place.bytes && chunking.span(first) == (inner, len) && place.chunks.contains(first)
    }
}

impl Memory for Store {
    fn lent(&self, object: u64, borrower: Rank) -> Option<(Rank, u64)> {
        let loan = self.loans.get(&object)?;
        loan.borrowers.contains(&borrower).then_some((loan.owner, loan.bytes))
    }

    fn pin(&mut self, copy: CopyId) -> Option<(u64, u64)> {
        let at = *self.complete.get(&copy)?;
        let place = self.places.get_mut(&at)?;
        place.users += 1;
        assert!(self.kept.insert(copy, at).is_none(), "{:?}: {copy:?} is pinned twice", self.me);
        Some((at, place.bytes))
    }

    fn unpin(&mut self, copy: CopyId) {
        // What was given up before it had a place is kept nowhere.
        if let Some(at) = self.kept.remove(&copy) {
            self.leave(at);
        }
        self.also_kept.remove(&copy).unwrap_or_default().into_iter().for_each(|at| self.leave(at));
    }
}

impl<'s> Cluster<'s> {
    fn new(scenario: &'s Scenario) -> Cluster<'s> {
        let mut network = Network::new(scenario.ranks as usize, scenario.network);
        let member = |rank| Member {
            exchange: Exchange::new(Rank(rank), scenario.ranks),
            store: Store { me: Rank(rank), next: ALIGN, room: scenario.store_bytes, ..Store::default() },
            arrivals: HashMap::new(),
            near: Vec::new(),
            former: HashMap::new(),
            reads: HashMap::new(),
            in_flight: HashMap::new(),
            known_dead: Vec::new(),
        };
        let mut ranks: Vec<Member> = (0..scenario.ranks).map(member).collect();
        let host = |rank: usize| rank as u32 / scenario.ranks_per_host;
        for (rank, member) in ranks.iter_mut().enumerate() {
            let others = (0..scenario.ranks).filter(|other| *other as usize != rank);
            let near = others.filter(|other| host(*other as usize) == host(rank));
            near.for_each(|other| member.exchange.map(Rank(other)));
        }
        for (number, object) in scenario.objects.iter().enumerate() {
            let chunking = Chunking::of(object.bytes);
            let chunks = ChunkSet::all(chunking.count());
            ranks[object.owner.index()].store.take(object.bytes, chunking, chunks);
            let borrowers = object.readers.iter().map(|reader| reader.rank).collect();
            let loan = Loan { owner: object.owner, bytes: object.bytes, borrowers };
            ranks[object.lender.index()].store.loans.insert(number as u64, loan);
            for reader in &object.readers {
                network.at(reader.rank.index(), reader.start_ns, number as u64);
            }
        }
        for (rank, at_ns) in &scenario.deaths {
            network.kill(rank.index(), *at_ns);
        }
        for (rank, at_ns, for_ns) in &scenario.stops {
            network.stop(rank.index(), *at_ns, *for_ns);
        }
        for rank in 0..ranks.len() {
            network.at(rank, CHECK_NS, CHECK);
        }
        for (rank, speed) in &scenario.speeds {
            network.set_speed(rank.index(), *speed);
        }
        let expected = scenario.objects.iter().map(|object| object.readers.len()).sum();
        Cluster { scenario, network, ranks, ends: BTreeMap::new(), expected, messages: 0, message_bytes: 0 }
    }

    fn play(&mut self) {
        let (mut events, mut waiting) = (0, BTreeSet::new());
        loop {
            if events % self.scenario.batch == 0 {
                std::mem::take(&mut waiting).into_iter().for_each(|host| self.act(host));
            }
            let Some((host, happening)) = self.network.step() else {
                if waiting.is_empty() {
                    return;
                }
                events = 0;
                continue;
            };
            events += 1;
            waiting.insert(host);
            let now_ns = self.network.now_ns();
            let member = &mut self.ranks[host];
            match happening {
                Happening::Alarm { what: CHECK } => self.check(host),
                Happening::Alarm { what } => self.start(host, what as usize),
                Happening::Message { from, message: Parcel::Bulk(bytes) } => {
                    if member.known_dead.contains(&Rank(from as u32)) {
                        continue;
                    }
                    let Ok(Message::Bulk(message)) = Message::parse(&bytes) else { panic!("{bytes:?}") };
                    let done = member.exchange.receive(Rank(from as u32), message.clone(), &mut member.store);
                    assert_eq!(done, Ok(()), "{message:?} from {from} to {host}");
                }
                Happening::Message { from, message: Parcel::Release(object) } => self.release(host, from, object),
                Happening::ReadEnded { token, ok } => self.read_ended(host, token, ok, now_ns),
                Happening::Lost { host: dead } => {
                    member.known_dead.push(Rank(dead as u32));
                    member.exchange.peer_lost(Rank(dead as u32), "its host died", &mut member.store);
                }
            }
        }
    }

    /// Has a rank look for stalled sources, when it has acted on all that came.
    fn check(&mut self, host: usize) {
        self.act(host);
        self.ranks[host].exchange.check_stalls();
        self.act(host);
        if self.network.now_ns() < CHECKS_END_NS && self.is_waited_for() {
            self.network.at(host, CHECK_NS, CHECK);
        }
    }

    /// Whether somebody that lives waits for an object.
    fn is_waited_for(&self) -> bool {
        let objects = self.scenario.objects.iter().enumerate();
        let mut readers = objects.flat_map(|(number, object)| object.readers.iter().map(move |r| (number, r.rank)));
        self.ends.len() < self.expected
            && readers
                .any(|(number, rank)| self.network.is_alive(rank.index()) && !self.ends.contains_key(&(number, rank)))
    }

    fn start(&mut self, host: usize, number: usize) {
        let wanted = self.scenario.wanted(number, Rank(host as u32), self.place_of(number));
        let member = &mut self.ranks[host];
        let arrival = member.exchange.start(wanted);
        member.arrivals.insert(arrival, (number, None));
    }

    /// Where an object lies at its owner: owners take places in the order of
    /// the objects, before anything is read.
    fn place_of(&self, number: usize) -> u64 {
        let owner = self.scenario.objects[number].owner;
        let before = self.scenario.objects[..number].iter().filter(|o| o.owner == owner);
        ALIGN + before.map(|o| o.bytes.next_multiple_of(ALIGN) + ALIGN).sum::<u64>()
    }

    fn read_ended(&mut self, host: usize, token: usize, ok: bool, now_ns: u64) {
        let (source, read, arrival, to) = self.ranks[host].reads.remove(&token).expect("a read ends once");
        if ok && self.network.is_alive(source.index()) {
            let serves = self.ranks[source.index()].store.serves(read.offset, read.len);
            assert!(serves, "rank {host} read {read:?} of {source}, which keeps nothing there");
        }
        let member = &mut self.ranks[host];
        *member.in_flight.get_mut(&source).expect("it was started") -= read.len;
        // What was moved meanwhile, or has ended, comes to where it was.
        let waited_for = member.arrivals.get(&arrival).is_some_and(|(_, at)| *at == to);
        if ok && waited_for {
            let at = member.arrivals[&arrival].1.expect("it has a place");
            let place = member.store.places.get_mut(&at).expect("it is arriving");
            assert!(place.chunks.insert(read.chunk), "rank {host} read {read:?} twice");
        }
        let result = if ok { Ok(()) } else { Err("its host died".to_string()) };
        member.exchange.read_ended(token, result, now_ns);
    }

    fn act(&mut self, host: usize) {
        let now_ns = self.network.now_ns();
        while let Some(action) = self.ranks[host].exchange.next(now_ns) {
            match action {
                Action::Send(to, message) => self.send(host, to, &message),
                Action::Read { token, rank, read, arrival } => self.read(host, rank, token, read, arrival),
                Action::Place { arrival } | Action::Move { arrival } => self.place(host, arrival),
                Action::Near { arrival, place } => self.near(host, arrival, place),
                Action::Done { arrival, copy, kept } => self.end(host, arrival, copy, kept, None),
                Action::Failed { arrival, copy, kept, error } => self.end(host, arrival, copy, kept, Some(error)),
            }
        }
    }

    fn send(&mut self, from: usize, to: Rank, message: &Bulk) {
        let mut bytes = Vec::new();
        write_bulk(&mut bytes, message);
        self.messages += 1;
        self.message_bytes += bytes.len() as u64;
        self.network.send(from, to.index(), Parcel::Bulk(bytes));
    }

    fn read(&mut self, host: usize, source: Rank, token: usize, read: ChunkRead, arrival: usize) {
        if self.network.is_alive(source.index()) {
            let serves = self.ranks[source.index()].store.serves(read.offset, read.len);
            assert!(serves, "rank {host} reads {read:?} of {source}, which has nothing there");
        }
        let member = &mut self.ranks[host];
        let to = member.arrivals[&arrival].1;
        assert!(to.is_some(), "rank {host} reads {read:?} to nowhere");
        let from_it = member.in_flight.entry(source).or_default();
        *from_it += read.len;
        assert!(*from_it < FETCH_PEER_BYTES_MAX + read.len, "too much under way from {source}");
        assert!(member.exchange.bytes_in_flight() < FETCH_BYTES_MAX + read.len, "too much under way");
        member.reads.insert(token, (source, read, arrival, to));
        self.network.read(host, source.index(), read.len, token);
    }

    /// Gives an object a place, or another one with what is here of it.
    fn place(&mut self, host: usize, arrival: usize) {
        let member = &mut self.ranks[host];
        let (number, at) = member.arrivals.get_mut(&arrival).expect("it is arriving");
        let wanted = self.scenario.wanted(*number, Rank(host as u32), 0);
        let chunking = wanted.chunking();
        let chunks = match at {
            Some(from) => member.store.places[from].chunks.clone(),
            None => ChunkSet::none(chunking.count()),
        };
        let Some(to) = member.store.take_room(wanted.len, chunking, chunks) else {
            return member.exchange.no_room(arrival);
        };
        match at.replace(to) {
            Some(from) if member.exchange.is_served(wanted.copy) => {
                member.former.entry(arrival).or_default().push(from)
            }
            Some(from) => member.store.leave(from),
            None => (),
        }
        member.exchange.placed(arrival, to);
    }

    fn end(&mut self, host: usize, arrival: usize, copy: CopyId, kept: bool, error: Option<FetchError>) {
        let member = &mut self.ranks[host];
        let (number, at) = member.arrivals.remove(&arrival).expect("an arrival ends once");
        if kept && let Some(at) = at {
            member.store.places.get_mut(&at).expect("it has just come").users += 1;
            assert!(member.store.kept.insert(copy, at).is_none(), "kept twice");
        }
        for former in member.former.remove(&arrival).unwrap_or_default() {
            match kept {
                true => member.store.also_kept.entry(copy).or_default().push(former),
                false => member.store.leave(former),
            }
        }
        assert!(error.is_some() || at.is_some(), "an object without a place");
        if let Some(at) = at {
            if error.is_none() {
                assert!(member.store.places[&at].chunks.is_full(), "rank {host} has an object with holes");
                member.store.complete.insert(copy, at);
            }
            if error.is_some() || self.scenario.drop_when_read {
                member.store.leave(at);
            }
        }
        let end = End { at_ns: self.network.now_ns(), error };
        self.ends.insert((number, Rank(host as u32)), end);
        self.network.send(host, copy.lender.index(), Parcel::Release(copy.object));
    }

    /// An object is there in place: it must be kept, and whole.
    fn near(&mut self, host: usize, arrival: usize, place: NearCopy) {
        let (number, at) = self.ranks[host].arrivals.remove(&arrival).expect("an arrival ends once");
        assert_eq!(at, None, "memory was taken for nothing");
        assert_eq!(host as u32 / self.scenario.ranks_per_host, place.holder.0 / self.scenario.ranks_per_host);
        if self.network.is_alive(place.holder.index()) {
            let store = &self.ranks[place.holder.index()].store;
            assert_eq!(store.kept.get(&place.copy), Some(&place.offset), "rank {host} uses what is not kept");
            assert!(store.places[&place.offset].chunks.is_full(), "rank {host} uses what is not there");
        }
        let member = &mut self.ranks[host];
        match self.scenario.drop_when_read {
            true => member.exchange.left(place),
            false => member.near.push(place),
        }
        self.ends.insert((number, Rank(host as u32)), End { at_ns: self.network.now_ns(), error: None });
        self.network.send(host, place.copy.lender.index(), Parcel::Release(place.copy.object));
    }

    fn release(&mut self, host: usize, from: usize, object: u64) {
        let member = &mut self.ranks[host];
        let loan = member.store.loans.get_mut(&object).expect("what is given back was lent");
        let at = loan.borrowers.iter().position(|rank| rank.index() == from).expect("given back once");
        loan.borrowers.swap_remove(at);
        if loan.borrowers.is_empty() {
            member.store.loans.remove(&object);
            member.exchange.freed(object);
        }
    }

    fn report(mut self) -> Report {
        for host in 0..self.ranks.len() {
            for place in std::mem::take(&mut self.ranks[host].near) {
                self.ranks[host].exchange.left(place);
            }
            self.act(host);
        }
        self.play();
        for (number, object) in self.scenario.objects.iter().enumerate() {
            for reader in &object.readers {
                let lives = self.network.is_alive(reader.rank.index());
                let ended = self.ends.contains_key(&(number, reader.rank));
                assert!(ended || !lives, "object {number} never came to {} and no error did", reader.rank);
            }
        }
        self.ends.retain(|(_, rank), _| self.network.is_alive(rank.index()));
        for (host, member) in self.ranks.iter().enumerate().filter(|(host, _)| self.network.is_alive(*host)) {
            // What a dead rank used in place stays as it is.
            if self.scenario.ranks_per_host == 1 || self.scenario.deaths.is_empty() {
                assert!(member.store.kept.is_empty(), "rank {host} keeps {:?} for nobody", member.store.kept);
                assert_eq!(member.exchange.serving().0, 0, "rank {host} serves nobody");
            }
            assert_eq!(member.exchange.bytes_in_flight(), 0);
            assert_eq!(member.exchange.under_way(), 0);
        }
        Report {
            ends: self.ends,
            sent: (0..self.ranks.len()).map(|host| self.network.sent(host)).collect(),
            messages: self.messages,
            message_bytes: self.message_bytes,
        }
    }
}

#[cfg(test)]
mod tests;

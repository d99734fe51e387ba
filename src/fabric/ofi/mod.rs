//! libfabric: the networks that have no verbs (Slingshot, EFA, Omni-Path), and
//! any other that it has a provider for.
//!
//! One reliable-datagram endpoint serves all peers. The TCP stream that `boot`
//! hands over carries the set-up (addresses, cookies, keys of regions) and is
//! then the proof of life. A message is one frame; a read is a one-sided read
//! of the provider, whose keys every peer has had from the start, so that what
//! lies outside a region is refused without asking anybody.
//!
//! A provider delivers messages in the order in which they were sent to one
//! peer, but may finish a long one after the short ones behind it: numbers in
//! the frames put them in order again.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) mod frame;
mod leftovers;
mod order;
mod peer;
mod reads;
mod setup;
mod sleep;
mod waited;

use frame::HEADER;
use leftovers::Leftover;
use order::Misplaced;
use peer::Peer;
use reads::Done;
use setup::{Hello, Readable};
use sleep::Sleeper;

use super::peers::Peers;
use super::stream::prepare;
use super::{Event, Fabric, FabricError, Kind, Link, RegionKey, RemoteSpan};
use crate::base::event::{Counters, Event as Counted};
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};
use crate::sys::{OfiCapacity, OfiEndpoint, OfiEvent, OfiOffer, OfiPosted, OfiSummary};

pub use frame::parse as parse_ofi_frame;

/// Polls between two looks for ended peers: often enough for a spinning rank,
/// rare enough to cost a spin nothing.
const LOOK_EVERY: u32 = 1024;

/// How often a sleeper looks that nobody else would wake: late enough to cost
/// little, early enough for a message that nobody waits for in a hurry.
const TICK: Duration = Duration::from_millis(1);

/// How often a sleeper looks whether those that owe something are still there.
const WATCH: Duration = Duration::from_secs(1);

/// The number of a greeting, which is no message.
const GREETING: u64 = u64::MAX;

/// See the module.
pub struct OfiFabric {
    rank: Rank,
    counters: Arc<Counters>,
    peers: Peers<Peer>,
    /// Peers that were closed here, as long as something of theirs is under way.
    leaving: Vec<Peer>,
    /// The last cookie of ranks that were peers: what they sent before they
    /// knew of the end is no offence.
    former: HashMap<Rank, u64>,
    endpoint: OfiEndpoint,
    regions: Vec<Readable>,
    /// What came while there was nobody to tell.
    inbox: VecDeque<Kept>,
    /// Reads that have ended, while they are collected.
    done: Vec<Done>,
    /// Peers from which something is read.
    reading: Vec<Rank>,
    /// Some peer has ended, or was closed here, and is not forgotten yet.
    some_end: bool,
    leftovers: Vec<Leftover>,
    sleeper: Sleeper,
    silence: Duration,
    connections: u32,
    polls: u32,
    is_armed: bool,
    /// Something was refused for lack of room since the last poll.
    was_full: bool,
}

enum Kept {
    Message(Rank, Vec<u8>),
    Read(Rank, Done),
}

impl OfiFabric {
    /// A fabric without peers, over what a provider offers.
    pub fn new(rank: Rank, offer: OfiOffer, counters: Arc<Counters>) -> Result<OfiFabric, FabricError> {
        let capacity = OfiCapacity {
            message_bytes_max: HEADER + limits::MESSAGE_BYTES_MAX,
            receives: limits::OFI_RECEIVES,
            sends_max: limits::OFI_SENDS_MAX,
        };
        let endpoint =
            OfiEndpoint::open(offer, capacity).map_err(|error| FabricError::os(rank, "libfabric", error))?;
        let sleeper =
            Sleeper::new(endpoint.wait_fd()).map_err(|error| FabricError::os(rank, "epoll_create", error))?;
        Ok(OfiFabric {
            rank,
            counters,
            peers: Peers::new(),
            leaving: Vec::new(),
            former: HashMap::new(),
            endpoint,
            regions: Vec::new(),
            inbox: VecDeque::new(),
            done: Vec::new(),
            reading: Vec::new(),
            some_end: false,
            leftovers: Vec::new(),
            sleeper,
            silence: limits::PEER_SILENCE_MAX,
            connections: 0,
            polls: 0,
            is_armed: false,
            was_full: false,
        })
    }

    /// Which provider it is.
    pub fn summary(&self) -> &OfiSummary {
        self.endpoint.summary()
    }

    /// Opens the way in both directions: each side sends a greeting through
    /// libfabric and says on the stream that it has had the other's.
    fn greet(&mut self, peer: Rank, deadline: Instant) -> Result<(), FabricError> {
        let (mut is_sent, mut is_told, mut is_heard) = (false, false, false);
        while !(is_sent && is_told && is_heard) {
            let Some(state) = self.peers.get_mut(peer) else { return Err(FabricError::NotConnected(peer)) };
            if !is_sent {
                let header = frame::header(frame::Kind::Greeting, self.rank, state.cookie_out, 0);
                let posted =
                    self.endpoint.send(state.address, (state.tag(), GREETING), HEADER, std::iter::once(&header[..]));
                is_sent = posted.map_err(|error| FabricError::os(peer, "fi_send", error))? != OfiPosted::Full;
            }
            if state.has_greeted && !is_told {
                state.stream.write_all(b"+").map_err(|error| FabricError::os(peer, "connect", error))?;
                is_told = true;
            }
            if !is_heard {
                match state.stream.read(&mut [0]) {
                    Ok(0) => return Err(FabricError::Closed(peer)),
                    Ok(_) => is_heard = true,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(error) => return Err(FabricError::os(peer, "connect", error)),
                }
            }
            if let Some(ending) = &state.ending {
                return Err(ending.cause.clone());
            }
            if Instant::now() > deadline {
                let summary = self.endpoint.summary();
                let (name, domain) = (&summary.full_name, &summary.domain);
                let cause = format!("no greeting through {name} on {domain}: can the two hosts reach each other there?");
                return Err(FabricError::os(peer, "libfabric", cause));
            }
            self.progress_aside();
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Lets the provider work, and keeps what came for the next poll.
    fn progress_aside(&mut self) {
        let mut kept = std::mem::take(&mut self.inbox);
        self.progress(&mut |event| {
            if let Event::Message { peer, bytes } = event {
                kept.push_back(Kept::Message(peer, bytes.to_vec()));
            }
        });
        self.inbox = kept;
    }

    /// Lets the provider work and reports messages.
    fn progress(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let OfiFabric { peers, leaving, former, counters, endpoint, some_end, .. } = self;
        let mut events = 0;
        let result = endpoint.progress(&mut |event| match event {
            OfiEvent::Message(bytes) => events += receive(peers, former, counters, bytes, some_end, sink),
            OfiEvent::Unreceived(_) => counters.count(Counted::BadFrame),
            OfiEvent::Sent((tag, number), result) => {
                let Some(peer) = find(peers, leaving, tag) else { return };
                peer.outgoing.has_left(number);
                if let Err(error) = result {
                    peer.suspect(FabricError::os(peer.rank, "fi_send", error));
                    *some_end = true;
                }
            }
            OfiEvent::Read(tag, transfer, result) => {
                let Some(peer) = find(peers, leaving, tag) else { return };
                peer.reads.part_ended(peer.rank, transfer, result.map_err(|error| error.to_string()));
            }
        });
        if let Err(error) = result {
            *some_end = true;
            for (rank, peer) in peers.iter_mut() {
                peer.end(FabricError::os(rank, "libfabric", &error));
            }
        }
        events
    }

    /// Asks for parts of reads and reports the reads that have ended.
    fn advance_reads(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let OfiFabric { peers, leaving, reading, endpoint, done, was_full, some_end, .. } = self;
        let mut events = 0;
        let mut advance = |peer: &mut Peer| {
            // No provider likes to be asked for the memory of a process that
            // has ended.
            if peer.reads.can_post() || peer.reads.some_failed() {
                peer.look();
            }
            match &peer.ending {
                Some(ending) => {
                    *some_end = true;
                    peer.reads.fail(&ending.cause, done);
                }
                None => *was_full |= !peer.reads.post(endpoint, peer.rank, peer.address, peer.tag(), done),
            }
            peer.reads.take_done(endpoint, done);
            events += done.len();
            report(peer.rank, done, sink);
            !peer.reads.is_empty()
        };
        reading.retain(|rank| peers.get_mut(*rank).is_some_and(&mut advance));
        for peer in leaving {
            advance(peer);
        }
        events
    }

    /// Reports the peers that have ended.
    fn finish_ended(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let over: Vec<Rank> =
            self.peers.iter_mut().filter_map(|(rank, peer)| peer.is_over().then_some(rank)).collect();
        let mut events = 0;
        for rank in over {
            let Some(mut peer) = self.peers.remove(rank) else { continue };
            let cause = peer.ending.take().map_or(FabricError::Closed(rank), |ending| ending.cause);
            if matches!(cause, FabricError::Silent { .. }) {
                self.counters.count(Counted::StuckPeer);
            }
            peer.reads.abandon(&mut self.endpoint, &cause, &mut self.done);
            events += self.done.len() + 1;
            report(rank, &mut self.done, sink);
            self.forget(&mut peer);
            sink(Event::Lost { peer: rank, cause });
        }
        let mut i = 0;
        while let Some(peer) = self.leaving.get(i) {
            if !peer.is_gone() {
                i += 1;
                continue;
            }
            let mut peer = self.leaving.swap_remove(i);
            let cause = FabricError::NotConnected(peer.rank);
            peer.reads.abandon(&mut self.endpoint, &cause, &mut self.done);
            events += self.done.len();
            report(peer.rank, &mut self.done, sink);
        }
        self.some_end = !self.leaving.is_empty() || self.peers.iter().any(|(_, peer)| peer.ending.is_some());
        events
    }

    /// Looks at the connections, and at what needs looking after.
    fn look(&mut self) {
        let peers = &mut self.peers;
        self.sleeper.look(|rank| {
            if let Some(peer) = peers.get_mut(rank) {
                peer.look();
            }
        });
        for (rank, peer) in self.peers.iter_mut() {
            if peer.ending.is_none() && peer.is_stuck() {
                peer.end(peer.silent());
            } else if peer.ending.is_none() && peer.misses_one() {
                self.counters.count(Counted::BadFrame);
                peer.end(FabricError::BadFrame(rank, "a message is missing between others".into()));
            }
            if peer.ending.is_some() {
                self.some_end = true;
                // Its stream would wake every sleeper until it is closed.
                self.sleeper.forget(&peer.stream);
                peer.look();
            }
        }
        self.leftovers.retain(|leftover| !leftover.remove());
    }

    fn forget(&mut self, peer: &mut Peer) {
        self.sleeper.forget(&peer.stream);
        self.former.insert(peer.rank, peer.cookie_in);
        self.leftovers.extend(peer.leftover.take().filter(|leftover| !leftover.remove()));
    }
}

/// The peer that an operation was for.
fn find<'p>(peers: &'p mut Peers<Peer>, leaving: &'p mut [Peer], tag: u64) -> Option<&'p mut Peer> {
    let of_peers = peers.get_mut(Rank(tag as u32)).filter(|peer| peer.tag() == tag);
    of_peers.or_else(|| leaving.iter_mut().find(|peer| peer.tag() == tag))
}

/// Takes one frame, which may come from anybody.
fn receive(
    peers: &mut Peers<Peer>,
    former: &HashMap<Rank, u64>,
    counters: &Counters,
    bytes: &[u8],
    some_end: &mut bool,
    sink: &mut dyn FnMut(Event<'_>),
) -> usize {
    let Ok(frame) = frame::parse(bytes) else {
        counters.count(Counted::BadFrame);
        return 0;
    };
    let Some(peer) = peers.get_mut(frame.from).filter(|peer| peer.cookie_in == frame.cookie) else {
        if former.get(&frame.from) != Some(&frame.cookie) {
            counters.count(Counted::BadFrame);
        }
        return 0;
    };
    if frame.kind == frame::Kind::Greeting {
        peer.has_greeted = true;
        return 0;
    }
    let rank = peer.rank;
    let mut events = 0;
    let taken = peer.accept(frame.number, frame.body, &mut |bytes| {
        sink(Event::Message { peer: rank, bytes });
        events += 1;
    });
    if let Err(misplaced) = taken {
        let what = match misplaced {
            Misplaced::Again(number) => {
                counters.count(Counted::BadFrame);
                format!("message {number} again")
            }
            Misplaced::TooEarly(number) => {
                counters.count(Counted::Overrun);
                format!("message {number}, which is beyond what it may have under way")
            }
        };
        peer.end(FabricError::BadFrame(rank, what));
        *some_end = true;
    }
    events
}

fn report(peer: Rank, done: &mut Vec<Done>, sink: &mut dyn FnMut(Event<'_>)) {
    for Done { token, lease, result } in done.drain(..) {
        sink(Event::ReadDone { peer, token, lease, result });
    }
}

/// What tells this host, as the `shm` provider sees it, from others.
fn place(provider: &str) -> String {
    if provider != "shm" {
        return String::new();
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let device = std::fs::metadata("/dev/shm").map_or(0, |folder| folder.dev());
    format!("{} {device}", boot.trim())
}

impl Fabric for OfiFabric {
    fn kind(&self) -> Kind {
        Kind::Ofi
    }

    fn register(&mut self, key: RegionKey, region: Arc<Region>) -> Result<(), FabricError> {
        let len = region.len() as u64;
        let registered = self.endpoint.register(region).map_err(|error| {
            let text = self.endpoint.explain(&error);
            FabricError::os(self.rank, "registration of memory with libfabric", text)
        })?;
        self.regions.push(Readable { name: key, len, key: registered });
        Ok(())
    }

    fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        let Link::Tcp(mut stream) = link else {
            return Err(FabricError::os(peer, "connect", "libfabric needs a TCP stream"));
        };
        if peer == self.rank || self.peers.contains(peer) {
            return Err(FabricError::os(peer, "connect", "connected already"));
        }
        let deadline = Instant::now() + limits::SET_UP_DEADLINE;
        let mut cookie = [0; 8];
        getrandom::fill(&mut cookie).map_err(|error| FabricError::os(peer, "getrandom", error))?;
        let summary = self.endpoint.summary();
        let hello = Hello {
            rank: self.rank,
            protocol: self.endpoint.protocol(),
            cookie: u64::from_le_bytes(cookie),
            process: std::process::id(),
            provider: summary.full_name.clone(),
            place: place(&summary.provider),
            address: self.endpoint.address().map_err(|error| FabricError::os(peer, "libfabric", error))?,
            regions: self.regions.clone(),
        };
        let theirs = hello.exchange(peer, &mut stream, deadline)?;
        prepare(&stream, self.silence).map_err(|error| FabricError::os(peer, "setsockopt", error))?;
        let address =
            self.endpoint.insert(&theirs.address).map_err(|error| FabricError::os(peer, "libfabric", error))?;
        self.connections = self.connections.wrapping_add(1);
        self.peers.insert(peer, Peer::new(self.connections, stream, address, hello.cookie, self.silence, theirs));
        let mut outcome = self.greet(peer, deadline);
        if outcome.is_ok()
            && let Some(state) = self.peers.get_mut(peer)
        {
            outcome =
                self.sleeper.watch(peer, &state.stream).map_err(|error| FabricError::os(peer, "epoll_ctl", error));
        }
        if outcome.is_err() {
            self.peers.remove(peer);
        }
        outcome
    }

    fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes > limits::MESSAGE_BYTES_MAX {
            return Err(FabricError::TooLong(bytes, limits::MESSAGE_BYTES_MAX));
        }
        let to = self.peers.get_mut(peer).filter(|to| to.ending.is_none()).ok_or(FabricError::NotConnected(peer))?;
        let Some(number) = to.outgoing.next(bytes) else {
            self.was_full = true;
            return Err(FabricError::Full(peer));
        };
        let header = frame::header(frame::Kind::Message, self.rank, to.cookie_out, number);
        let all = std::iter::once(&header[..]).chain(parts.iter().copied());
        match self.endpoint.send(to.address, (to.tag(), number), HEADER + bytes, all) {
            Ok(OfiPosted::Full) => {
                self.was_full = true;
                Err(FabricError::Full(peer))
            }
            Ok(posted) => {
                to.outgoing.went(bytes, posted == OfiPosted::UnderWay);
                Ok(())
            }
            Err(error) => {
                to.suspect(FabricError::os(peer, "fi_send", error));
                self.some_end = true;
                Err(FabricError::NotConnected(peer))
            }
        }
    }

    fn map(&self, _peer: Rank, _key: RegionKey) -> Option<Arc<Region>> {
        None
    }

    fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) -> Result<(), FabricError> {
        let result = match self.peers.get_mut(peer).filter(|of| of.ending.is_none()) {
            None => Err(FabricError::NotConnected(peer)),
            Some(of) => match of.key_of(from).filter(|_| from.len == into.range().len() as u64) {
                None => Err(FabricError::NoSuchMemory(peer, from)),
                Some(_) if from.len == 0 => Ok(()),
                Some(key) => {
                    of.reads.push(into, from, key, token);
                    if !self.reading.contains(&peer) {
                        self.reading.push(peer);
                    }
                    return Ok(());
                }
            },
        };
        self.inbox.push_back(Kept::Read(peer, Done { token, lease: into, result }));
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.polls = self.polls.wrapping_add(1);
        self.was_full = false;
        if std::mem::take(&mut self.is_armed) || self.polls.is_multiple_of(LOOK_EVERY) {
            self.look();
        }
        let mut events = 0;
        while let Some(kept) = self.inbox.pop_front() {
            events += 1;
            match kept {
                Kept::Message(peer, bytes) => sink(Event::Message { peer, bytes: &bytes }),
                Kept::Read(peer, Done { token, lease, result }) => {
                    sink(Event::ReadDone { peer, token, lease, result });
                }
            }
        }
        events += self.progress(sink);
        if !self.reading.is_empty() || !self.leaving.is_empty() {
            events += self.advance_reads(sink);
        }
        if self.some_end {
            events += self.finish_ended(sink);
        }
        events
    }

    fn arm(&mut self) -> bool {
        self.is_armed = true;
        // What the provider has completed already would not wake anybody, nor
        // would what a poll is to do about it.
        self.progress_aside();
        let was_full = self.was_full;
        let waits_for_poll = |peer: &Peer| peer.reads.some_done() || peer.reads.can_post() && !was_full;
        if !self.inbox.is_empty() || self.peers.iter().any(|(_, peer)| waits_for_poll(peer)) {
            return false;
        }
        let needs_watch = |peer: &Peer| peer.owes() || peer.has_gap();
        let tick = if self.was_full
            || self.endpoint.wait_fd().is_none()
            || !self.leaving.is_empty()
            || self.peers.iter().any(|(_, peer)| peer.ending.is_some())
        {
            TICK
        } else if !self.leftovers.is_empty() || self.peers.iter().any(|(_, peer)| needs_watch(peer)) {
            WATCH
        } else {
            Duration::ZERO
        };
        self.sleeper.tick(tick);
        self.endpoint.wait_fd().is_none() || self.endpoint.try_wait()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.sleeper.as_fd()
    }

    fn close(&mut self, peer: Rank) {
        let Some(mut state) = self.peers.remove(peer) else { return };
        state.say_goodbye();
        self.forget(&mut state);
        let cause = FabricError::NotConnected(peer);
        state.end(cause.clone());
        state.reads.fail(&cause, &mut self.done);
        self.inbox.extend(self.done.drain(..).map(|done| Kept::Read(peer, done)));
        self.leaving.push(state);
        self.some_end = true;
    }
}

impl Drop for OfiFabric {
    /// Peers learn of the end from their streams, and end them when they have
    /// what was sent before: that may still need this side to leave.
    fn drop(&mut self) {
        let is_there = |(rank, peer): (Rank, &mut Peer)| {
            peer.look();
            peer.ending.is_none().then_some(rank)
        };
        let ranks: Vec<Rank> = self.peers.iter_mut().filter_map(is_there).collect();
        ranks.into_iter().for_each(|rank| self.close(rank));
        self.leaving.retain(|peer| peer.outgoing.count() > 0);
        let deadline = Instant::now() + limits::OFI_DRAIN_DEADLINE;
        while !self.leaving.is_empty() && Instant::now() < deadline {
            self.progress(&mut |_| ());
            self.leaving.retain(|peer| !peer.has_heard());
            std::thread::yield_now();
        }
        self.leftovers.iter().for_each(|leftover| _ = leftover.remove());
    }
}

#[cfg(test)]
mod tests;

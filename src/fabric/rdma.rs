//! RDMA verbs: reliable connections between network cards, InfiniBand or RoCE.
//!
//! Each peer has a queue pair; all share one receive queue and one completion
//! queue, which whoever polls looks at. Nothing here is a system call once a
//! connection is up, but the calls for sleeping.
//!
//! # How bytes go
//! - **A message** is one SEND into a buffer that waits at the peer. The first
//!   of a turn goes at once and inline, taken by the library from where the
//!   caller has it; those that follow before the next poll are copied into send
//!   memory and go together with one call. A message too long for a buffer is
//!   one WRITE with immediate into a slot of a window that the peer granted to
//!   this rank alone.
//! - **Room** is counted by the sender. Each side starts with as many credits
//!   and slots as the other has buffers and slots for it, and is told what it
//!   may use again in the head of whatever comes next, or in a frame of its own
//!   when it is half. So the shared queue cannot run dry; a peer that sends
//!   beyond its room is cut off. How much room a peer has depends on how many
//!   there are; all of it is made at the start, so that what cannot be had is
//!   known before any peer relies on it.
//! - **A read** is one or more READs straight into the lease, a bounded number
//!   at a time. What may be read was told at the start: a span outside is
//!   refused here, before the peer's card is asked.
//!
//! Most work requests ask for no completion, only one in 32 and every read
//! does: a send queue completes in order, so that one tells of all before it.
//!
//! # How a peer ends
//! It says goodbye; or its process ends, and with it the TCP connection that
//! carried the set-up; or its host stops answering, which the card finds within
//! half a second if anything is under way, so that an idle connection carries a
//! WRITE of nothing twice a second. In each case the queue pair is failed, the
//! card gives back what it held, the pair is destroyed, and only then do leases
//! and slots go to anyone else.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use slab::Slab;

use super::peers::Peers;
use super::{Event, Fabric, FabricError, Kind, Link, RegionKey, RemoteSpan};
use crate::base::event::{Counters, Event as Counted};
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};
use crate::sys::{AsyncEvent, Completion, CompletionQueue, RdmaMemory as Memory, PairCounts, Poller, QueuePair, ReceiveQueue, RdmaWindow as Window};

mod device;
pub(super) mod frame;
mod peer;
mod room;
mod setup;
#[cfg(test)]
mod tests;

pub use device::{RdmaDevice, rdma_available};
pub use frame::{Frame as RdmaFrame, FrameKind as RdmaFrameKind, parse as parse_rdma_frame};

use device::Found;
use frame::{Frame, FrameKind};
use peer::{Beat, Peer, ReadDone, Refusal, State};
use room::Room;
use setup::{Hello, RemoteRegion};

/// Batches of completions that one poll takes.
const BATCHES: usize = 8;

/// Polls between two looks for what is no completion: often enough for a
/// rank that polls once a millisecond between short tasks, rare enough to cost a
/// spin nothing.
const LOOK_EVERY: u32 = 256;

/// What the poller's tokens stand for; peers follow.
const CHANNEL: usize = 0;
const TIMER: usize = 1;
const DEVICE: usize = 2;
const FIRST_PEER: usize = 3;

/// See the module.
pub struct RdmaFabric {
    rank: Rank,
    counters: Arc<Counters>,
    counts: RdmaCounts,
    peers: Slab<Peer>,
    /// Where the peers are that are connected, by rank.
    places: Peers<usize>,
    /// And where any is, by the number of its queue pair; sorted.
    pairs: Vec<(u32, usize)>,
    /// Those that sent since the last poll, those that were served in this
    /// one, and those that are ending.
    in_turn: Vec<usize>,
    served: Vec<usize>,
    ending: Vec<usize>,
    /// Completions that were taken and not handled.
    taken: Vec<Completion>,
    reads_done: VecDeque<ReadDone>,
    /// A long message, copied out of its slot.
    scratch: Vec<u8>,
    room: Room,
    /// For peers that are not connected yet.
    seats: Vec<Seat>,
    regions: Vec<(RegionKey, Arc<Memory>)>,
    // Queues go after the pairs that use them.
    receives: ReceiveQueue,
    completions: CompletionQueue,
    poller: Poller,
    timer: OwnedFd,
    found: Found,
    /// Whether the stream of some peer has ended, as far as was looked.
    some_ended: bool,
    armed: bool,
    polls: u32,
}

/// What a fabric has done, for the targets that are counted and not timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RdmaCounts {
    /// Messages that were sent.
    pub messages_sent: u64,
    /// Messages that were received.
    pub messages_received: u64,
    /// Work requests that were posted, of any kind.
    pub work_requests: u64,
    /// Calls that posted them.
    pub doorbells: u64,
    /// Work requests that asked for a completion.
    pub signalled: u64,
    /// Completions that were taken for what was sent, read or written.
    pub send_completions: u64,
    /// Messages that the library took from where the caller had them.
    pub inlined: u64,
    /// Messages that were copied into send memory instead.
    pub copied: u64,
    /// Long messages that were copied out of their slot.
    pub copied_out: u64,
    /// Frames that only gave room.
    pub room_frames: u64,
    /// Writes of nothing, to idle peers.
    pub heartbeats: u64,
    /// Bytes that were read from peers.
    pub bytes_read: u64,
    /// Destinations of reads that had to be registered for it.
    pub registrations: u64,
}

impl RdmaFabric {
    /// A fabric with room for so many peers, on the device and the address that
    /// are asked for, or on the best that there is.
    pub fn new(
        rank: Rank,
        peers: u32,
        device: Option<&str>,
        gid_index: Option<u8>,
        counters: Arc<Counters>,
    ) -> Result<RdmaFabric, FabricError> {
        let found = device::find(device, gid_index).map_err(|why| FabricError::os(rank, "RDMA", why))?;
        let name = found.adapter.name();
        let room = Room::plan(peers, &found.capacity());
        let room = room.map_err(|why| FabricError::os(rank, "RDMA", format!("{name}: {why}")))?;
        let os = |what: &'static str| move |error: io::Error| FabricError::os(rank, what, explain(error, room.bytes()));
        let receives = ReceiveQueue::new(&found.adapter, room.receives(), limits::RDMA_BUFFER_BYTES);
        let receives = receives.map_err(os("RDMA receive buffers"))?;
        let completions = CompletionQueue::new(&found.adapter, room.completions());
        let completions = completions.map_err(os("ibv_create_cq"))?;
        let seats = (0..room.peers()).map(|_| Seat::new(&found, room, &completions, &receives));
        let seats = seats.collect::<io::Result<Vec<Seat>>>().map_err(os("RDMA memory for each peer"))?;
        let poller = Poller::new().map_err(os("epoll_create"))?;
        let timer = timer().map_err(os("timerfd_create"))?;
        poller.add(&completions, CHANNEL).map_err(os("epoll_ctl"))?;
        poller.add(&timer, TIMER).map_err(os("epoll_ctl"))?;
        poller.add(&*found.adapter, DEVICE).map_err(os("epoll_ctl"))?;
        Ok(RdmaFabric {
            rank,
            counters,
            counts: RdmaCounts::default(),
            peers: Slab::new(),
            places: Peers::new(),
            pairs: Vec::new(),
            in_turn: Vec::new(),
            served: Vec::new(),
            ending: Vec::new(),
            taken: Vec::new(),
            reads_done: VecDeque::new(),
            scratch: Vec::new(),
            room,
            seats,
            regions: Vec::new(),
            receives,
            completions,
            poller,
            timer,
            found,
            some_ended: false,
            armed: false,
            polls: 0,
        })
    }

    /// The device that is used.
    pub fn device(&self) -> RdmaDevice {
        self.found.summary()
    }

    /// What was done so far.
    pub fn counts(&self) -> RdmaCounts {
        self.peers.iter().fold(self.counts, |counts, (_, peer)| counts.with(peer.pair.counts()))
    }

    /// Looks at everything that is not a completion.
    fn look(&mut self) {
        let (mut ticked, mut device) = (false, false);
        let (peers, completions, some_ended) = (&mut self.peers, &mut self.completions, &mut self.some_ended);
        // A failing epoll tells nothing; the card still finds dead peers.
        let _ = self.poller.take(|readiness| match readiness.token {
            CHANNEL => completions.disarm(),
            TIMER => ticked = true,
            DEVICE => device = true,
            token => {
                if let Some(peer) = peers.get_mut(token - FIRST_PEER) {
                    peer.has_ended |= readiness.readable || readiness.ended;
                    *some_ended |= peer.has_ended;
                }
            }
        });
        if ticked {
            let mut count = [0; 8];
            let _expirations = rustix::io::read(&self.timer, &mut count);
            self.beat();
        }
        if device {
            self.take_events();
        }
    }

    fn beat(&mut self) {
        let up: Vec<usize> = self.peers.iter().filter(|(_, peer)| peer.is_up()).map(|(place, _)| place).collect();
        for place in up {
            let peer = &mut self.peers[place];
            let rank = peer.rank;
            match peer.beat() {
                Ok(Beat::Busy) => {}
                Ok(Beat::Sent) => self.counts.heartbeats += 1,
                Ok(Beat::Stuck) => {
                    self.counters.count(Counted::StuckPeer);
                    let seconds = limits::PEER_SILENCE_MAX.as_secs();
                    self.fail(place, FabricError::Silent { peer: rank, seconds });
                }
                Err(error) => self.fail(place, FabricError::os(rank, "an RDMA heartbeat", error)),
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.found.adapter.take_event() {
            match event {
                AsyncEvent::Access(pair) => {
                    if let Some(place) = self.place_of(pair) {
                        self.counters.count(Counted::RefusedRead);
                        let rank = self.peers[place].rank;
                        self.fail(place, FabricError::BadFrame(rank, "a request for memory that it may not have".into()));
                    }
                }
                AsyncEvent::Pair(pair) => {
                    if let Some(place) = self.place_of(pair) {
                        let rank = self.peers[place].rank;
                        self.fail(place, FabricError::os(rank, "RDMA", "the queue pair failed"));
                    }
                }
                AsyncEvent::Device => self.fail_all("RDMA"),
                AsyncEvent::Other => {}
            }
        }
    }

    #[inline]
    fn place_of(&self, pair: u32) -> Option<usize> {
        let found = self.pairs.binary_search_by_key(&pair, |(number, _)| *number).ok()?;
        Some(self.pairs[found].1)
    }

    /// Gives a connection up; what is said about it is `cause`, unless this
    /// side has closed it.
    fn fail(&mut self, place: usize, cause: FabricError) {
        let peer = &mut self.peers[place];
        let report = match peer.state {
            State::Failing { .. } => return,
            State::Closing { .. } => None,
            State::Up => Some(cause),
        };
        if let Some(FabricError::BadFrame(..)) = report {
            self.counters.count(Counted::BadFrame);
        }
        if peer.is_up() {
            self.ending.push(place);
        }
        peer.fail(Instant::now() + limits::RDMA_END_DEADLINE, report);
    }

    /// Handles one completion. A message is given to `sink` here.
    #[inline]
    fn handle(&mut self, completion: Completion, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let place = self.place_of(completion.pair());
        let received = match self.receives.take(completion) {
            Ok(received) => received,
            Err(completion) => return place.map_or(0, |place| self.handle_own(place, &completion, sink)),
        };
        let completion = received.completion();
        let mut events = 0;
        if let Some(place) = place
            && self.peers[place].is_up()
        {
            let peer = &mut self.peers[place];
            if completion.is_ok() {
                let bytes = match completion.immediate() {
                    None => Ok(self.receives.bytes(&received)),
                    Some(slot) if peer.has_slot(slot) && completion.bytes() as usize <= limits::RDMA_SLOT_BYTES => {
                        self.counts.copied_out += 1;
                        peer.window.copy_out(slot, completion.bytes() as usize, &mut self.scratch);
                        Ok(&self.scratch[..])
                    }
                    Some(slot) => Err(Refusal::Bad(format!("{} bytes in slot {slot}", completion.bytes()))),
                };
                let owed_much = peer.owes_much();
                match bytes.and_then(|bytes| peer.take(bytes, completion.immediate())) {
                    Ok(Frame { kind: FrameKind::Message, body, .. }) => {
                        if !owed_much && peer.owes_much() {
                            self.served.push(place);
                        }
                        self.counts.messages_received += 1;
                        events += 1;
                        sink(Event::Message { peer: peer.rank, bytes: body });
                    }
                    Ok(Frame { kind: FrameKind::Room, .. }) => {}
                    Ok(Frame { kind: FrameKind::Goodbye, .. }) => {
                        let cause = FabricError::Closed(peer.rank);
                        self.fail(place, cause);
                    }
                    Err(refusal) => self.refuse(place, refusal),
                }
            } else if !completion.is_flushed() {
                let what = completion.text(&self.found.adapter);
                self.refuse(place, Refusal::Bad(format!("what could not be received: {what}")));
            }
        }
        self.receives.give_back(received);
        events
    }

    /// Handles the completion of a work request of this side.
    fn handle_own(&mut self, place: usize, completion: &Completion, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.counts.send_completions += 1;
        let taken = self.peers[place].complete(completion);
        if taken.is_ours && !completion.is_ok() {
            self.explain_failure(place, completion);
        } else if taken.reads > 0 || self.peers[place].is_reading() {
            self.ask(place);
            return self.report_reads(sink);
        }
        0
    }

    #[cold]
    fn refuse(&mut self, place: usize, refusal: Refusal) {
        let what = match refusal {
            Refusal::Bad(what) => what,
            Refusal::Overrun => {
                self.counters.count(Counted::Overrun);
                "a message beyond the room that it was given".into()
            }
        };
        let rank = self.peers[place].rank;
        self.fail(place, FabricError::BadFrame(rank, what));
    }

    /// A work request failed: says why, as well as this side can know.
    #[cold]
    fn explain_failure(&mut self, place: usize, completion: &Completion) {
        let text = completion.text(&self.found.adapter);
        let peer = &mut self.peers[place];
        // A process that ends takes its queue pair with it; the stream knows.
        let ended = if peer.is_up() { peer.look_at_stream() } else { None };
        let cause = match ended {
            Some(cause) => cause,
            // Nobody here has failed the pair: the card did, for what was asked.
            None if completion.is_flushed() && peer.is_up() => {
                self.counters.count(Counted::RefusedRead);
                let what = format!("a request that the card refuses, as for memory that it may not have ({text})");
                FabricError::BadFrame(peer.rank, what)
            }
            None if completion.is_remote_access() => {
                let what = format!("a table with memory that its card does not let be read ({text})");
                FabricError::BadFrame(peer.rank, what)
            }
            None if completion.is_silence() => {
                FabricError::os(peer.rank, "RDMA", format!("its host does not answer ({text})"))
            }
            None => FabricError::os(peer.rank, "RDMA", text),
        };
        self.fail(place, cause);
    }

    fn report_reads(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        while let Some(done) = self.reads_done.pop_front() {
            events += 1;
            sink(done.into_event());
        }
        events
    }

    /// Takes out the reads that are over, and asks for what comes next.
    fn ask(&mut self, place: usize) {
        let chunk = limits::RDMA_READ_BYTES.min(self.found.port.message_bytes_max as usize);
        let (regions, adapter, registrations) = (&self.regions, &self.found.adapter, &mut self.counts.registrations);
        let memory_of = |lease: &Lease| {
            let (region, range) = (lease.region(), lease.range());
            if let Some((_, memory)) = regions.iter().find(|(_, memory)| memory.covers(region, &range)) {
                return Ok(memory.clone());
            }
            *registrations += 1;
            let len = range.len();
            Memory::private(adapter, region, range).map(Arc::new).map_err(|error| io::Error::other(explain(error, len)))
        };
        let peer = &mut self.peers[place];
        if let Err(error) = peer.ask(chunk, memory_of) {
            let cause = FabricError::os(peer.rank, "posting an RDMA read", error);
            return self.fail(place, cause);
        }
        // Some may have failed before the card was asked.
        while let Some(done) = peer.next_done() {
            self.counts.bytes_read += if done.result.is_ok() { done.lease.range().len() as u64 } else { 0 };
            self.reads_done.push_back(done);
        }
    }

    /// Looks whether those that are ending have ended.
    #[cold]
    fn progress_ending(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        for place in std::mem::take(&mut self.ending) {
            let peer = &mut self.peers[place];
            let (is_due, is_closing) = match peer.state {
                State::Up => (false, false),
                State::Closing { deadline } => (peer.has_said_goodbye() || Instant::now() > deadline, true),
                State::Failing { marker, deadline, .. } => {
                    (marker.is_none_or(|marker| peer.pair.has_done(marker)) || Instant::now() > deadline, false)
                }
            };
            if !is_due {
                self.ending.push(place);
            } else if is_closing {
                let cause = FabricError::NotConnected(peer.rank);
                self.fail(place, cause);
                self.ending.push(place);
            } else {
                events += self.end(place, sink);
            }
        }
        events
    }

    /// The last of a peer: its reads and its loss are reported.
    fn end(&mut self, place: usize, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut peer = self.peers.remove(place);
        let rank = peer.rank;
        self.pairs.retain(|(_, other)| *other != place);
        for list in [&mut self.in_turn, &mut self.served] {
            list.retain(|other| *other != place);
        }
        if self.places.get_mut(rank).is_some_and(|current| *current == place) {
            self.places.remove(rank);
        }
        // Closing the stream, which comes next, removes it as well.
        let _ = self.poller.remove(&peer.stream);
        self.counts = self.counts.with(peer.pair.counts());
        let report = match std::mem::replace(&mut peer.state, State::Up) {
            State::Failing { report, .. } => report,
            State::Up | State::Closing { .. } => None,
        };
        let mut events = 0;
        let cause = report.clone().unwrap_or(FabricError::NotConnected(rank));
        peer.dissolve(&cause, |done| {
            events += 1;
            sink(done.into_event());
        });
        if let Some(cause) = report {
            events += 1;
            sink(Event::Lost { peer: rank, cause });
        }
        events
    }

    /// Sends what was collected, and begins a new turn.
    fn flush(&mut self) {
        while let Some(place) = self.in_turn.pop() {
            let peer = &mut self.peers[place];
            peer.in_turn = false;
            if let Err(error) = peer.pair.flush() {
                let cause = FabricError::os(peer.rank, "posting to an RDMA queue pair", error);
                self.fail(place, cause);
            }
        }
    }

    /// Tells the peers that were served in this poll what they may send again.
    fn give_room(&mut self) {
        let mut left = std::mem::take(&mut self.served);
        left.retain(|place| {
            let peer = &mut self.peers[*place];
            if !peer.is_up() || !peer.owes_much() {
                return false;
            }
            match peer.give_room() {
                Ok(()) => {
                    self.counts.room_frames += u64::from(!peer.owes_much());
                    peer.owes_much()
                }
                Err(error) => {
                    let cause = FabricError::os(peer.rank, "posting to an RDMA queue pair", error);
                    self.fail(*place, cause);
                    false
                }
            }
        });
        self.served = left;
    }

    /// Ends those whose process has, now that all they sent was delivered.
    #[cold]
    fn fail_ended(&mut self) {
        self.some_ended = false;
        let ended: Vec<usize> = self.peers.iter().filter(|(_, peer)| peer.has_ended).map(|(place, _)| place).collect();
        for place in ended {
            let peer = &mut self.peers[place];
            peer.has_ended = false;
            if let Some(cause) = peer.look_at_stream() {
                self.fail(place, cause);
            }
        }
    }

    #[cold]
    fn fail_all(&mut self, what: &'static str) {
        let all: Vec<usize> = self.peers.iter().map(|(place, _)| place).collect();
        for place in all {
            let rank = self.peers[place].rank;
            self.fail(place, FabricError::os(rank, what, "the RDMA device has failed"));
        }
    }

    /// A place for one more peer: one of those made at the start, or in place
    /// of one that has ended.
    fn take_seat(&mut self) -> io::Result<Seat> {
        if self.peers.len() as u32 >= self.room.peers() {
            return Err(io::Error::other(format!("there is room for {} peers only", self.room.peers())));
        }
        let seat = self.seats.pop().map_or_else(|| Seat::new(&self.found, self.room, &self.completions, &self.receives), Ok);
        seat.map_err(|error| io::Error::other(explain(error, self.room.bytes())))
    }
}

/// What the card needs for a peer besides receive buffers.
struct Seat {
    pair: QueuePair,
    window: Window,
}

impl Seat {
    fn new(found: &Found, room: Room, completions: &CompletionQueue, receives: &ReceiveQueue) -> io::Result<Seat> {
        let window = Window::new(&found.adapter, room.slots(), limits::RDMA_SLOT_BYTES)?;
        let (depth, every) = (room.work_requests(), room.sends_per_completion());
        let pair = QueuePair::new(completions, receives, &found.port, depth, every, room.send_bytes())?;
        Ok(Seat { pair, window })
    }
}

impl Fabric for RdmaFabric {
    fn kind(&self) -> Kind {
        Kind::Rdma
    }

    fn register(&mut self, key: RegionKey, region: Arc<Region>) -> Result<(), FabricError> {
        let refused = |why: String| FabricError::os(self.rank, "registering memory with the RDMA device", why);
        if self.regions.len() >= limits::RDMA_REGIONS_MAX {
            return Err(refused("too many regions".into()));
        }
        let memory = Memory::shared(&self.found.adapter, &region).map_err(|e| refused(explain(e, region.len())))?;
        self.regions.push((key, Arc::new(memory)));
        Ok(())
    }

    fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        let Link::Tcp(mut stream) = link else {
            return Err(FabricError::os(peer, "connect", "RDMA needs a TCP stream"));
        };
        if peer == self.rank || self.places.contains(peer) {
            return Err(FabricError::os(peer, "connect", "connected already"));
        }
        let deadline = Instant::now() + limits::SET_UP_DEADLINE;
        let os = |what: &'static str| move |error: io::Error| FabricError::os(peer, what, error);
        stream.set_nonblocking(false).map_err(os("connect"))?;
        stream.set_write_timeout(Some(limits::SET_UP_DEADLINE)).map_err(os("connect"))?;

        let Seat { mut pair, window } = self.take_seat().map_err(os("RDMA memory for a peer"))?;
        let found = &self.found;
        let outcome = (|| {
            let first_packet = first_packet().map_err(os("random numbers"))?;
            let reads_in = found.adapter.reads_in_max();
            let own = Hello {
                rank: self.rank,
                pair: pair.number(),
                first_packet,
                lid: found.port.lid,
                needs_global_route: found.port.needs_global_route,
                mtu: found.port.mtu,
                gid: found.gid.bytes,
                reads_in,
                credits: self.room.credits,
                slots: self.room.slots(),
                window_address: window.address(),
                window_key: window.remote_key(),
                regions: self.regions.iter().map(|(key, memory)| RemoteRegion {
                    key: *key,
                    address: memory.address(),
                    len: memory.len() as u64,
                    remote_key: memory.remote_key(),
                }).collect(),
            };
            let theirs = setup::exchange(&mut stream, peer, &own, deadline)?;
            let remote = setup::remote(found, &theirs, self.room.reads());
            pair.connect(&found.port, &remote, first_packet, reads_in).map_err(os("connecting an RDMA queue pair"))?;
            setup::both_ready(&mut stream, peer, deadline)?;
            stream.set_nonblocking(true).map_err(os("connect"))?;
            Ok(Peer::new(peer, stream, pair, window, remote.reads_out, self.room, theirs))
        })();
        let place = self.peers.vacant_key();
        let added = outcome.and_then(|state: Peer| {
            self.poller.add(&state.stream, FIRST_PEER + place).map_err(os("epoll_ctl"))?;
            Ok(state)
        });
        let state = match added {
            Ok(state) => state,
            Err(error) => {
                if let FabricError::BadFrame(..) = error {
                    self.counters.count(Counted::BadFrame);
                }
                return Err(error);
            }
        };
        let number = state.pair.number();
        let sorted = self.pairs.partition_point(|(other, _)| *other < number);
        self.pairs.insert(sorted, (number, place));
        self.peers.insert(state);
        self.places.insert(peer, place);
        Ok(())
    }

    #[inline]
    fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes > limits::MESSAGE_BYTES_MAX {
            return Err(FabricError::TooLong(bytes, limits::MESSAGE_BYTES_MAX));
        }
        let place = *self.places.get_mut(peer).ok_or(FabricError::NotConnected(peer))?;
        let to = &mut self.peers[place];
        if !to.is_up() {
            return Err(FabricError::NotConnected(peer));
        }
        // Whoever sleeps next has no turn to collect for.
        match to.send(parts, bytes, self.armed) {
            Ok(()) => {
                if !to.in_turn {
                    to.in_turn = true;
                    self.in_turn.push(place);
                }
                self.counts.messages_sent += 1;
                Ok(())
            }
            Err(full @ FabricError::Full(_)) => Err(full),
            Err(cause) => {
                self.fail(place, cause.clone());
                Err(cause)
            }
        }
    }

    fn map(&self, _peer: Rank, _key: RegionKey) -> Option<Arc<Region>> {
        None
    }

    fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) -> Result<(), FabricError> {
        let Some(place) = self.places.get_mut(peer).copied() else {
            let result = Err(FabricError::NotConnected(peer));
            self.reads_done.push_back(ReadDone { peer, token, lease: into, result });
            return Ok(());
        };
        match self.peers[place].read(from, into, token) {
            Ok(()) => self.ask(place),
            Err(done) => self.reads_done.push_back(done),
        }
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.polls = self.polls.wrapping_add(1);
        if self.armed || self.polls.is_multiple_of(LOOK_EVERY) {
            self.armed = false;
            self.look();
        }
        let mut events = 0;
        if !self.in_turn.is_empty() {
            self.flush();
        }
        if !self.reads_done.is_empty() {
            events += self.report_reads(sink);
        }
        let mut is_drained = false;
        for _ in 0..BATCHES {
            let fresh = self.completions.poll(&mut self.taken);
            is_drained = fresh.as_ref().is_ok_and(|fresh| *fresh < CompletionQueue::BATCH);
            if fresh.is_err() {
                self.fail_all("polling completions");
            }
            if self.taken.is_empty() {
                break;
            }
            let mut taken = std::mem::take(&mut self.taken);
            for completion in taken.drain(..) {
                events += self.handle(completion, sink);
            }
            self.taken = taken;
            // Buffers are there again before anyone is told of room.
            if self.receives.flush().is_err() {
                self.fail_all("offering receive buffers");
            }
            if is_drained {
                break;
            }
        }
        if !self.served.is_empty() {
            self.give_room();
        }
        if self.some_ended && is_drained {
            self.fail_ended();
        }
        if !self.ending.is_empty() {
            events += self.progress_ending(sink);
        }
        events
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        self.flush();
        // What came before this is found by the look after it.
        let is_armed = self.completions.arm().is_ok() && self.completions.poll(&mut self.taken).is_ok();
        let is_quiet = self.taken.is_empty() && self.reads_done.is_empty();
        is_armed && is_quiet && self.ending.is_empty() && self.served.is_empty() && !self.some_ended
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.poller.as_fd()
    }

    fn close(&mut self, peer: Rank) {
        let Some(place) = self.places.remove(peer) else { return };
        let state = &mut self.peers[place];
        if let State::Failing { report, .. } = &mut state.state {
            *report = None;
            return;
        }
        state.state = State::Closing { deadline: Instant::now() + limits::RDMA_END_DEADLINE };
        state.has_said_goodbye();
        self.ending.push(place);
    }
}

impl Drop for RdmaFabric {
    /// What was sent is still on its way, and no socket's buffer keeps it: waits
    /// until it has arrived, as long as an end may take.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let ranks: Vec<Rank> = self.places.iter().map(|(rank, _)| rank).collect();
        ranks.into_iter().for_each(|rank| self.close(rank));
        let deadline = Instant::now() + 2 * limits::RDMA_END_DEADLINE;
        while !self.peers.is_empty() && Instant::now() < deadline {
            self.look();
            self.poll(&mut |_| ());
            std::thread::yield_now();
        }
    }
}

impl RdmaCounts {
    fn with(self, pair: PairCounts) -> RdmaCounts {
        RdmaCounts {
            work_requests: self.work_requests + pair.work_requests,
            doorbells: self.doorbells + pair.doorbells,
            signalled: self.signalled + pair.signalled,
            inlined: self.inlined + pair.inlined,
            copied: self.copied + pair.copied,
            ..self
        }
    }
}

impl ReadDone {
    fn into_event(self) -> Event<'static> {
        let ReadDone { peer, token, lease, result } = self;
        Event::ReadDone { peer, token, lease, result }
    }
}

/// Ticks for heartbeats, so that nobody looks at a clock.
fn timer() -> io::Result<OwnedFd> {
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let every = limits::RDMA_HEARTBEAT;
    let every = Timespec { tv_sec: every.as_secs() as i64, tv_nsec: every.subsec_nanos().into() };
    let setting = Itimerspec { it_interval: every, it_value: every };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
    Ok(timer)
}

/// A number of 24 bits that an earlier connection's late packets will hardly
/// have.
fn first_packet() -> io::Result<u32> {
    Ok(getrandom::u32().map_err(io::Error::other)? >> 8)
}

/// An error of the library, with what to do about the one that everybody meets.
fn explain(error: io::Error, bytes: usize) -> String {
    if error.kind() != io::ErrorKind::OutOfMemory {
        return error.to_string();
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let limit = limit.map_or("unlimited".into(), |bytes| format!("{} KiB", bytes / 1024));
    format!("{error}: raise the limit of locked memory (ulimit -l, now {limit}); {} KiB are needed", bytes.div_ceil(1024))
}

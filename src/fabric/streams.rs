//! All TCP connections of one fabric, and everything that its two backends
//! have in common. Reading sockets directly, guided by epoll, is in here, since
//! the io_uring backend needs it as well.
//!
//! A socket that had bytes a moment ago is *active*: it is read directly,
//! without asking epoll first, which is one system call instead of two while
//! two ranks talk. The others are found by an edge of the poller.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lanes::{Lanes, Line};
use super::outbox::{Serving, Source};
use super::peers::Peers;
use super::stream::{HEAT, Stream};
use super::zerocopy::Policy;
use super::{Event, FabricError, Link, RegionKey, RemoteSpan};
use crate::base::event::{Counters, Event as Counted};
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};
use crate::sys::Poller;

/// Polls between two questions to epoll while some socket is active.
const ASK_EVERY: u32 = 16;

pub(super) struct Streams {
    rank: Rank,
    counters: Arc<Counters>,
    tuning: Tuning,
    pub(super) peers: Peers<Lanes>,
    regions: Vec<(RegionKey, Arc<Region>)>,
    poller: Poller,
    /// Connections with output.
    pending: Vec<Line>,
    /// Connections to receive from without being told to.
    active: Vec<Line>,
    /// Peers whose connections have ended and who are to be reported.
    over: Vec<Rank>,
    /// Peers that have closed a further connection, and until when the first
    /// one is read before they count as ended: messages may be left in it.
    closing: Vec<(Rank, Instant)>,
    /// Reads that failed on this side.
    abandoned: VecDeque<(Rank, u64, Lease, FabricError)>,
    /// Lanes but the first on which reads are under way.
    lanes_reading: usize,
    /// Bytes that wait for all peers, beyond each one's reserve.
    shared_bytes: usize,
    scratch: Box<[u8]>,
    turn: u32,
    /// Nobody will poll before the poller says so.
    armed: bool,
}

/// What differs between the backends, and what tests set otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// Up to so many sockets are tried without being told to.
    pub(super) active_max: usize,
    /// How long a peer may be silent.
    pub(super) silence: Duration,
    /// Whether bulk is sent without copying it.
    pub(super) zero_copy: Policy,
}

impl Streams {
    pub(super) fn new(rank: Rank, tuning: Tuning, counters: Arc<Counters>) -> Result<Streams, FabricError> {
        Ok(Streams {
            rank,
            counters,
            tuning,
            peers: Peers::new(),
            regions: Vec::new(),
            poller: Poller::new().map_err(|error| FabricError::os(rank, "epoll_create", error))?,
            pending: Vec::new(),
            active: Vec::new(),
            over: Vec::new(),
            closing: Vec::new(),
            abandoned: VecDeque::new(),
            lanes_reading: 0,
            shared_bytes: 0,
            scratch: vec![0; limits::MESSAGE_BYTES_MAX].into_boxed_slice(),
            turn: 1,
            armed: false,
        })
    }

    pub(super) fn register(&mut self, key: RegionKey, region: Arc<Region>) {
        self.regions.retain(|(known, _)| *known != key);
        self.regions.push((key, region));
    }

    pub(super) fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        let (first, more) = match link {
            Link::Tcp(socket) => (socket, Vec::new()),
            Link::Lanes(first, more) => (first, more),
            Link::Unix(_) => return Err(FabricError::os(peer, "connect", "a TCP fabric needs a TCP stream")),
        };
        if peer == self.rank || self.peers.contains(peer) {
            return Err(FabricError::os(peer, "connect", "connected already"));
        }
        let lanes = Lanes::new(peer, first, more, &self.tuning)?;
        let lines: Vec<Line> = (0..).zip(lanes.iter()).map(|(lane, _)| Line { peer, lane }).collect();
        for (line, stream) in lines.iter().zip(lanes.iter()) {
            let added = self.poller.add(&stream.socket, line.to_number() as usize);
            added.map_err(|error| FabricError::os(peer, "epoll_ctl", error))?;
        }
        self.peers.insert(peer, lanes);
        lines.into_iter().for_each(|line| self.note(line));
        Ok(())
    }

    pub(super) fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes > limits::MESSAGE_BYTES_MAX {
            return Err(FabricError::TooLong(bytes, limits::MESSAGE_BYTES_MAX));
        }
        let stream = self.peers.get_mut(peer).ok_or(FabricError::NotConnected(peer))?.first();
        // Requests and refusals are queued whatever waits already.
        let shared = limits::STREAM_QUEUES_BYTES.saturating_sub(self.shared_bytes);
        let result = stream.send(parts, bytes, self.turn, shared);
        // The next poll may be far off: whoever is armed is busy or asleep.
        if self.armed && !stream.blocked {
            stream.flush();
        }
        self.note(Line { peer, lane: 0 });
        result
    }

    pub(super) fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) {
        let Some(lanes) = self.peers.get_mut(peer) else {
            self.abandoned.push_back((peer, token, into, FabricError::NotConnected(peer)));
            return;
        };
        if from.len != into.range().len() as u64 {
            self.abandoned.push_back((peer, token, into, FabricError::NoSuchMemory(peer, from)));
            return;
        }
        let lane = lanes.choose(from.len);
        if let Some(stream) = lanes.get_mut(lane) {
            stream.inbox.add_read(from, into, token);
            stream.heat = HEAT;
        }
        lanes.start_reads(lane);
        if !lanes.first().blocked {
            lanes.first().flush();
        }
        self.note(Line { peer, lane });
        self.note(Line { peer, lane: 0 });
    }

    /// A turn by direct calls on the sockets.
    pub(super) fn poll_sockets(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.start_turn();
        if self.is_time_to_ask() || self.some_blocked() {
            self.ask();
        }
        let events = self.receive_active(sink);
        events + self.finish_turn(sink)
    }

    /// The start of each poll.
    pub(super) fn start_turn(&mut self) {
        self.armed = false;
        self.flush();
    }

    /// Learns from epoll what has changed.
    pub(super) fn ask(&mut self) {
        let (peers, active) = (&mut self.peers, &mut self.active);
        // A failing epoll would leave sockets unread until it works again; it
        // fails only for a bad descriptor, which this one is not.
        let _ = self.poller.take(|readiness| {
            let line = Line::from_number(readiness.token as u32);
            let Some(stream) = peers.get_mut(line.peer).and_then(|lanes| lanes.get_mut(line.lane)) else { return };
            stream.blocked &= !readiness.writable;
            stream.ending |= readiness.ended;
            if readiness.failed {
                stream.outbox.take_notices(&stream.socket);
            }
            if readiness.readable || readiness.ended {
                stream.readable = true;
                if !std::mem::replace(&mut stream.is_active, true) {
                    active.push(line);
                }
            }
        });
    }

    /// Receives from the sockets that are active, directly.
    pub(super) fn receive_active(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        let crowded = self.active.len() > self.tuning.active_max;
        let mut i = 0;
        while let Some(&line) = self.active.get(i) {
            let Some(stream) = self.stream(line) else {
                self.active.swap_remove(i);
                continue;
            };
            // A read's bytes had better not take a detour, however many talk.
            let cools = crowded && !stream.inbox.is_filling();
            stream.heat = if cools { 0 } else { stream.heat.saturating_sub(1) };
            let is_due = stream.readable || stream.heat > 0;
            if is_due {
                events += self.receive(line, sink);
            }
            match self.stream(line) {
                Some(stream) if stream.ended.is_none() && (stream.readable || stream.heat > 0) => i += 1,
                stream => {
                    if let Some(stream) = stream {
                        stream.is_active = false;
                    }
                    self.active.swap_remove(i);
                }
            }
            self.note(line);
        }
        events
    }

    /// Whether it is time to look for bytes from peers that are not active.
    pub(super) fn is_time_to_ask(&self) -> bool {
        self.active.is_empty() || self.turn.is_multiple_of(ASK_EVERY)
    }

    /// Those whose messages are received directly all the time.
    pub(super) fn talkative(&self) -> impl Iterator<Item = Line> {
        let is_talkative = |line: &Line| self.peers.get(line.peer).is_some_and(|lanes| lanes.get(0).is_some_and(Stream::is_talkative));
        let few = if self.active.len() > self.tuning.active_max { &[] } else { &self.active[..] };
        few.iter().copied().filter(|line| line.lane == 0).filter(is_talkative)
    }

    /// Whether bytes may come on a connection that only the poller watches.
    pub(super) fn expects_chunks(&self) -> bool {
        self.lanes_reading > 0
    }

    /// Takes bytes that a backend received by itself, on lane 0.
    pub(super) fn accept(&mut self, peer: Rank, bytes: &[u8], sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Some(lanes) = self.peers.get_mut(peer) else { return 0 };
        let events = lanes.first().accept(bytes, sink);
        lanes.first().was_fed();
        let line = Line { peer, lane: 0 };
        self.follow_up(line);
        self.note(line);
        events
    }

    /// Takes note of an end that a backend was told of.
    pub(super) fn end(&mut self, peer: Rank, note: impl FnOnce(&mut Stream)) {
        if let Some(lanes) = self.peers.get_mut(peer) {
            note(lanes.first());
        }
        self.note(Line { peer, lane: 0 });
    }

    /// Sends what is queued, as far as there is room.
    pub(super) fn flush(&mut self) {
        let mut i = 0;
        while let Some(&line) = self.pending.get(i) {
            let Some(stream) = self.stream(line) else {
                self.pending.swap_remove(i);
                continue;
            };
            if !stream.blocked {
                stream.flush();
            }
            if stream.has_output() {
                i += 1;
            } else {
                stream.is_pending = false;
                self.pending.swap_remove(i);
            }
            self.note(line);
        }
    }

    pub(super) fn some_blocked(&self) -> bool {
        !self.each_is(&self.pending, |stream| !stream.blocked)
    }

    /// The end of each poll: answers go out, ends are reported.
    pub(super) fn finish_turn(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.turn = self.turn.wrapping_add(1).max(1);
        self.flush();
        let mut events = 0;
        while let Some((peer, token, lease, cause)) = self.abandoned.pop_front() {
            sink(Event::ReadDone { peer, token, lease, result: Err(cause) });
            events += 1;
        }
        if !self.closing.is_empty() {
            let now = Instant::now();
            self.over.extend(self.closing.iter().filter(|(_, until)| *until <= now).map(|(peer, _)| *peer));
        }
        while let Some(peer) = self.over.pop() {
            let Some(mut lanes) = self.remove(peer) else { continue };
            let cause = lanes.iter_mut().find_map(|stream| stream.ended.take()).unwrap_or(FabricError::Closed(peer));
            match cause {
                FabricError::BadFrame(..) => self.counters.count(Counted::BadFrame),
                FabricError::Silent { .. } => self.counters.count(Counted::StuckPeer),
                _ => {}
            }
            for stream in lanes.iter_mut() {
                stream.fail_reads(&cause, |token, lease, cause| {
                    sink(Event::ReadDone { peer, token, lease, result: Err(cause) });
                    events += 1;
                });
            }
            sink(Event::Lost { peer, cause });
            events += 1;
        }
        events
    }

    /// Sends what can go now; whether there is nothing to do until the poller
    /// says so.
    pub(super) fn arm(&mut self) -> bool {
        self.armed = true;
        self.flush();
        // What has come by another way is still an edge to the poller, which
        // would end every sleep at once.
        self.ask();
        let mut quiet = self.over.is_empty() && self.closing.is_empty() && self.abandoned.is_empty();
        quiet &= self.each_is(&self.pending, |stream| stream.blocked);
        quiet && self.each_is(&self.active, |stream| !stream.readable)
    }

    pub(super) fn wait_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    pub(super) fn close(&mut self, peer: Rank) {
        if let Some(lanes) = self.peers.get_mut(peer)
            && lanes.iter().all(|stream| stream.ended.is_none())
        {
            lanes.iter_mut().for_each(|stream| stream.shut_down(&mut self.scratch));
        }
        if let Some(mut lanes) = self.remove(peer) {
            let abandoned = &mut self.abandoned;
            for stream in lanes.iter_mut() {
                stream.fail_reads(&FabricError::NotConnected(peer), |token, lease, cause| {
                    abandoned.push_back((peer, token, lease, cause));
                });
            }
        }
    }

    /// What each lane's trial of sends without a copy has said.
    #[cfg(test)]
    pub(super) fn zero_copy_verdicts(&self) -> Vec<Option<bool>> {
        let streams = self.peers.iter().flat_map(|(_, lanes)| lanes.iter());
        streams.filter_map(|stream| Some(stream.outbox.zero_copy()?.verdict())).collect()
    }

    fn each_is(&self, lines: &[Line], holds: impl Fn(&Stream) -> bool) -> bool {
        let stream = |line: &Line| self.peers.get(line.peer).and_then(|lanes| lanes.get(line.lane));
        lines.iter().all(|line| stream(line).is_none_or(&holds))
    }

    #[inline]
    fn stream(&mut self, line: Line) -> Option<&mut Stream> {
        self.peers.get_mut(line.peer)?.get_mut(line.lane)
    }

    fn receive(&mut self, line: Line, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Some(stream) = self.peers.get_mut(line.peer).and_then(|lanes| lanes.get_mut(line.lane)) else { return 0 };
        let events = stream.receive(&mut self.scratch, sink);
        self.follow_up(line);
        events
    }

    /// What received bytes ask for: reads to serve, and room for more reads.
    fn follow_up(&mut self, line: Line) {
        let Line { peer, lane } = line;
        let Some(lanes) = self.peers.get_mut(peer) else { return };
        lanes.start_reads(lane);
        let Some(stream) = lanes.get_mut(lane) else { return };
        if stream.inbox.requests.is_empty() {
            return;
        }
        let mut requests = std::mem::take(&mut stream.inbox.requests);
        for request in requests.drain(..) {
            let region = self.regions.iter().find(|(key, _)| *key == request.span.key).map(|(_, region)| region);
            let source = region
                .filter(|region| region.span(request.span.offset, request.span.len).is_ok())
                .map(|region| Source { region: region.clone(), offset: request.span.offset, left: request.span.len });
            if source.is_none() {
                self.counters.count(Counted::RefusedRead);
            }
            let Some(lanes) = self.peers.get_mut(peer) else { return };
            let served = match lanes.get_mut(request.lane) {
                Some(stream) => stream.outbox.serve(Serving { id: request.id, source }),
                None => Err(format!("a read by way of lane {}, which there is not", request.lane)),
            };
            if let Err(what) = served {
                lanes.first().end(FabricError::BadFrame(peer, what));
                break;
            }
            self.note(Line { peer, lane: request.lane });
        }
        requests.clear();
        if let Some(stream) = self.stream(line) {
            stream.inbox.requests = requests;
        }
        self.note(Line { peer, lane: 0 });
    }

    /// Takes a peer out of everything. The shutdown ends what a backend has
    /// under way on the socket.
    fn remove(&mut self, peer: Rank) -> Option<Lanes> {
        let lanes = self.peers.remove(peer)?;
        for list in [&mut self.pending, &mut self.active] {
            list.retain(|line| line.peer != peer);
        }
        self.over.retain(|rank| *rank != peer);
        self.closing.retain(|(rank, _)| *rank != peer);
        for stream in lanes.iter() {
            self.lanes_reading -= usize::from(stream.is_reading);
            self.shared_bytes -= stream.shared_bytes;
            let _ = self.poller.remove(&stream.socket);
            let _ = stream.socket.shutdown(std::net::Shutdown::Both);
        }
        Some(lanes)
    }

    /// A peer that closes closes all connections, but what it said before may
    /// still be in the first one, or on its way.
    fn lane_closed(&mut self, peer: Rank) {
        let is_known = self.over.contains(&peer) || self.closing.iter().any(|(rank, _)| *rank == peer);
        let Some(first) = self.peers.get_mut(peer).map(Lanes::first).filter(|_| !is_known) else { return };
        self.closing.push((peer, Instant::now() + limits::LANE_GRACE));
        first.readable = true;
        first.ending = true;
        self.note(Line { peer, lane: 0 });
    }

    /// Puts a connection on the lists that its state asks for, and counts what
    /// it takes of what all share.
    fn note(&mut self, line: Line) {
        let Some(stream) = self.peers.get_mut(line.peer).and_then(|lanes| lanes.get_mut(line.lane)) else { return };
        match stream.ended {
            Some(FabricError::Closed(_)) if line.lane > 0 => return self.lane_closed(line.peer),
            Some(_) if self.over.contains(&line.peer) => return,
            Some(_) => return self.over.push(line.peer),
            None => (),
        }
        let waiting = stream.outbox.waiting().saturating_sub(limits::STREAM_QUEUE_RESERVE);
        if waiting != stream.shared_bytes {
            self.shared_bytes = self.shared_bytes - stream.shared_bytes + waiting;
            stream.shared_bytes = waiting;
        }
        if line.lane > 0 && stream.is_reading != stream.inbox.is_reading() {
            stream.is_reading = !stream.is_reading;
            self.lanes_reading = if stream.is_reading { self.lanes_reading + 1 } else { self.lanes_reading - 1 };
        }
        if stream.has_output() && !std::mem::replace(&mut stream.is_pending, true) {
            self.pending.push(line);
        }
        if (stream.readable || stream.heat > 0) && !std::mem::replace(&mut stream.is_active, true) {
            self.active.push(line);
        }
    }
}

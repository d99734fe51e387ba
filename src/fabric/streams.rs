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

use super::peers::Peers;
use super::stream::{HEAT, Regions, Stream};
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
    pub(super) peers: Peers<Stream>,
    pub(super) regions: Regions,
    poller: Poller,
    /// Connections with output.
    pending: Vec<Rank>,
    /// Connections to receive from without being told to.
    active: Vec<Rank>,
    /// Connections that have ended and are to be reported.
    over: Vec<Rank>,
    /// Reads that failed on this side.
    abandoned: VecDeque<(Rank, u64, Lease, FabricError)>,
    scratch: Box<[u8]>,
    turn: u32,
    active_max: usize,
}

impl Streams {
    /// Up to `active_max` sockets are tried without being told to.
    pub(super) fn new(rank: Rank, active_max: usize, counters: Arc<Counters>) -> Result<Streams, FabricError> {
        Ok(Streams {
            rank,
            counters,
            peers: Peers::new(),
            regions: Regions::new(),
            poller: Poller::new().map_err(|error| FabricError::os(rank, "epoll_create", error))?,
            pending: Vec::new(),
            active: Vec::new(),
            over: Vec::new(),
            abandoned: VecDeque::new(),
            scratch: vec![0; limits::MESSAGE_BYTES_MAX].into_boxed_slice(),
            turn: 1,
            active_max,
        })
    }

    pub(super) fn register(&mut self, key: RegionKey, region: Arc<Region>) {
        self.regions.insert(key, region);
    }

    pub(super) fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        let Link::Tcp(socket) = link else {
            return Err(FabricError::os(peer, "connect", "a TCP fabric needs a TCP stream"));
        };
        if peer == self.rank || self.peers.contains(peer) {
            return Err(FabricError::os(peer, "connect", "connected already"));
        }
        let stream = Stream::new(peer, socket)?;
        self.poller.add(&stream.socket, peer.index()).map_err(|error| FabricError::os(peer, "epoll_ctl", error))?;
        self.peers.insert(peer, stream);
        self.activate(peer);
        Ok(())
    }

    pub(super) fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes > limits::MESSAGE_BYTES_MAX {
            return Err(FabricError::TooLong(bytes, limits::MESSAGE_BYTES_MAX));
        }
        let stream = self.peers.get_mut(peer).ok_or(FabricError::NotConnected(peer))?;
        let result = stream.send(parts, bytes, self.turn);
        self.note(peer);
        result
    }

    pub(super) fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) {
        match self.peers.get_mut(peer) {
            None => self.abandoned.push_back((peer, token, into, FabricError::NotConnected(peer))),
            Some(_) if from.len != into.range().len() as u64 => {
                self.abandoned.push_back((peer, token, into, FabricError::NoSuchMemory(peer, from)));
            }
            Some(stream) => {
                stream.read(from, into, token);
                self.note(peer);
            }
        }
    }

    /// A turn by direct calls on the sockets.
    pub(super) fn poll_sockets(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        self.flush();
        if self.is_time_to_ask() || self.some_blocked() {
            self.ask();
        }
        let events = self.receive_active(sink);
        events + self.finish_turn(sink)
    }

    /// Learns from epoll what has changed.
    pub(super) fn ask(&mut self) {
        let (peers, active) = (&mut self.peers, &mut self.active);
        // A failing epoll would leave sockets unread until it works again; it
        // fails only for a bad descriptor, which this one is not.
        let _ = self.poller.take(|readiness| {
            let rank = Rank(readiness.token as u32);
            let Some(stream) = peers.get_mut(rank) else { return };
            stream.blocked &= !readiness.writable;
            stream.ending |= readiness.ended;
            if readiness.readable || readiness.ended {
                stream.readable = true;
                if !std::mem::replace(&mut stream.is_active, true) {
                    active.push(rank);
                }
            }
        });
    }

    /// Receives from the sockets that are active, directly.
    pub(super) fn receive_active(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        let crowded = self.active.len() > self.active_max;
        let mut i = 0;
        while let Some(&rank) = self.active.get(i) {
            let Some(stream) = self.peers.get_mut(rank) else {
                self.active.swap_remove(i);
                continue;
            };
            // A read's bytes had better not take a detour, however many talk.
            let cools = crowded && !stream.expects_bulk();
            stream.heat = if cools { 0 } else { stream.heat.saturating_sub(1) };
            if stream.readable || stream.heat > 0 {
                events += stream.receive(&mut self.scratch, &self.regions, sink);
            }
            if stream.ended.is_some() || (!stream.readable && stream.heat == 0) {
                stream.is_active = false;
                self.active.swap_remove(i);
            } else {
                i += 1;
            }
            self.note(rank);
        }
        events
    }

    /// Whether it is time to look for bytes from peers that are not active.
    pub(super) fn is_time_to_ask(&self) -> bool {
        self.active.is_empty() || self.turn.is_multiple_of(ASK_EVERY)
    }

    /// Takes bytes that a backend received by itself.
    pub(super) fn accept(&mut self, peer: Rank, bytes: &[u8], sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Some(stream) = self.peers.get_mut(peer) else { return 0 };
        let events = stream.accept(bytes, &self.regions, sink);
        stream.heat = HEAT;
        self.note(peer);
        events
    }

    /// Takes note of an end that a backend was told of.
    pub(super) fn end(&mut self, peer: Rank, note: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.peers.get_mut(peer) {
            note(stream);
        }
        self.note(peer);
    }

    /// Sends what is queued, as far as there is room.
    pub(super) fn flush(&mut self) {
        let mut i = 0;
        while let Some(&rank) = self.pending.get(i) {
            let Some(stream) = self.peers.get_mut(rank) else {
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
            self.note(rank);
        }
    }

    pub(super) fn some_blocked(&mut self) -> bool {
        let peers = &mut self.peers;
        self.pending.iter().any(|rank| peers.get_mut(*rank).is_some_and(|stream| stream.blocked))
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
        while let Some(peer) = self.over.pop() {
            let Some(mut stream) = self.remove(peer) else { continue };
            let cause = stream.ended.take().unwrap_or(FabricError::Closed(peer));
            if let FabricError::BadFrame(..) = cause {
                self.counters.count(Counted::BadFrame);
            }
            stream.fail_reads(&cause, |token, lease, cause| {
                sink(Event::ReadDone { peer, token, lease, result: Err(cause) });
                events += 1;
            });
            sink(Event::Lost { peer, cause });
            events += 1;
        }
        events
    }

    /// Sends what can go now; whether there is nothing to do until the poller
    /// says so.
    pub(super) fn arm(&mut self) -> bool {
        self.flush();
        // What has come by another way is still an edge to the poller, which
        // would end every sleep at once.
        self.ask();
        let peers = &mut self.peers;
        let waits_for_room = |rank: &Rank| peers.get_mut(*rank).is_none_or(|stream| stream.blocked);
        let mut quiet = self.over.is_empty() && self.abandoned.is_empty() && self.pending.iter().all(waits_for_room);
        for rank in &self.active {
            quiet &= !self.peers.get_mut(*rank).is_some_and(|stream| stream.readable);
        }
        quiet
    }

    pub(super) fn wait_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    pub(super) fn close(&mut self, peer: Rank) {
        if let Some(stream) = self.peers.get_mut(peer)
            && stream.ended.is_none()
        {
            stream.shut_down(&mut self.scratch);
        }
        if let Some(mut stream) = self.remove(peer) {
            let abandoned = &mut self.abandoned;
            stream.fail_reads(&FabricError::NotConnected(peer), |token, lease, cause| {
                abandoned.push_back((peer, token, lease, cause));
            });
        }
    }

    /// Takes a connection out of everything. The shutdown ends what a backend
    /// has under way on the socket.
    fn remove(&mut self, peer: Rank) -> Option<Stream> {
        let stream = self.peers.remove(peer)?;
        for list in [&mut self.pending, &mut self.active, &mut self.over] {
            list.retain(|rank| *rank != peer);
        }
        let _ = self.poller.remove(&stream.socket);
        let _ = stream.socket.shutdown(std::net::Shutdown::Both);
        Some(stream)
    }

    fn activate(&mut self, rank: Rank) {
        if let Some(stream) = self.peers.get_mut(rank)
            && !std::mem::replace(&mut stream.is_active, true)
        {
            self.active.push(rank);
        }
    }

    /// Puts a connection on the lists that its state asks for.
    fn note(&mut self, rank: Rank) {
        let Some(stream) = self.peers.get_mut(rank) else { return };
        if stream.ended.is_some() {
            if !self.over.contains(&rank) {
                self.over.push(rank);
            }
            return;
        }
        if stream.has_output() && !std::mem::replace(&mut stream.is_pending, true) {
            self.pending.push(rank);
        }
        if (stream.readable || stream.heat > 0) && !std::mem::replace(&mut stream.is_active, true) {
            self.active.push(rank);
        }
    }
}

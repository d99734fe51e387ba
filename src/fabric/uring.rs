//! TCP through io_uring: a multishot receive on every socket, so that a busy
//! rank learns of bytes from a word in memory, and of many sockets at once.
//!
//! # Which thread does what
//! The ring belongs to the thread that polls first, its *owner*; the kernel
//! serves nobody else. But the node lets any of its threads call, one at a
//! time, and the owner may be busy with a user's task for long. Then the other
//! thread must get on without the ring. What makes this safe:
//!
//! 1. The ring defers its work (`sys::uring`): bytes move from a socket into a
//!    buffer only within a call of the owner, and calls do not overlap. So,
//!    between calls, each byte is either in a completion that can be read from
//!    memory, or still in the socket.
//! 2. Every poll first takes the completions that are there. After that,
//!    whatever is in the socket comes next in the stream, and *any* thread may
//!    take it with a plain `recv`. Should the owner's receive later find the
//!    socket empty, it goes on waiting: nothing is lost, nothing comes twice.
//! 3. Nothing is sent through the ring. A send under way there could be
//!    finished by the owner only, and would block the order of the stream for
//!    everybody else; and with one peer it is a system call either way. All
//!    sends are plain non-blocking calls, and bursts are collected
//!    (`stream.rs`).
//!
//! So the owner polls: completions, flag, enter if it is set, completions;
//! anyone else: completions, then sockets as the epoll backend does, poller and
//! all. Point 2 serves the owner too: one or two peers that talk all the time
//! are received from by `recv`, which is quicker than an enter and a completion,
//! and so is the bulk of a read, straight into its place; the ring is then
//! looked at every few polls, for the others. A receive of such a peer is taken
//! out of the ring until it falls silent.
//!
//! Only lane 0 of a peer is in the ring. On the others chunks of reads come, and
//! those want to be received straight into their place: by `recv`, on a socket
//! that is tried while a read is under way on it.
//!
//! A receive that has stopped (buffers ran out) is started again by the owner's
//! next poll. The descriptor to wait for is the poller's, which watches the
//! sockets: it wakes any thread, and in an armed ring no work is left behind.
//! If the owner ends, the kernel cancels its receives, and the others go on as
//! above.

use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::lanes::Line;
use super::streams::{Streams, Tuning};
use super::zerocopy::Policy;
use super::{Event, Fabric, FabricError, Kind, Link, RegionKey, RemoteSpan};
use crate::base::event::Counters;
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};
use crate::sys::{ReceiveRing, Received, UringFeatures};

/// Past this, the ring costs less than trying.
const ACTIVE_MAX: usize = 2;

/// Polls between two looks at connections that neither the ring watches nor a
/// read keeps busy: their end is all that can come.
const LOOK_EVERY: u32 = 4096;

/// See the module.
pub struct UringFabric {
    pub(super) streams: Streams,
    ring: Ring,
    buffers: Buffers,
    polls: u32,
    /// Tells a connection from an earlier one to the same rank.
    connections: u32,
    /// Connections without a receive in the ring: rank and number.
    unarmed: Vec<(Rank, u32)>,
    /// The number of each peer's present connection.
    current: Vec<u32>,
    /// By peer, whether that one has a receive in the ring that is to go on.
    in_ring: Vec<bool>,
}

enum Ring {
    /// Made by the first poll.
    Unmade,
    Made(Box<ReceiveRing>),
    /// Could not be made; the sockets are used directly.
    Refused,
}

/// The memory that the kernel receives into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffers {
    pub(super) count: u16,
    pub(super) bytes: u32,
    /// A buffer is filled by several receives, one behind the other.
    pub(super) incremental: bool,
}

impl Buffers {
    /// 4 MiB in all. Where a receive takes a whole buffer, they are smaller, so
    /// that small messages waste less.
    fn fitting(features: &UringFeatures) -> Buffers {
        match features.incremental {
            Ok(()) => Buffers { count: 64, bytes: 64 * 1024, incremental: true },
            Err(_) => Buffers { count: 256, bytes: 16 * 1024, incremental: false },
        }
    }
}

impl UringFabric {
    /// A fabric without peers. Fails with the reason if io_uring cannot be used
    /// here.
    pub fn new(rank: Rank, counters: Arc<Counters>) -> Result<UringFabric, FabricError> {
        UringFabric::with_features(rank, UringFabric::tuning(), UringFeatures::here(), counters)
    }

    pub(super) fn with_features(
        rank: Rank,
        tuning: Tuning,
        features: &UringFeatures,
        counters: Arc<Counters>,
    ) -> Result<UringFabric, FabricError> {
        features.suffice().map_err(|reason| FabricError::os(rank, "io_uring", reason))?;
        UringFabric::with(rank, tuning, Buffers::fitting(features), counters)
    }

    pub(super) fn with(
        rank: Rank,
        tuning: Tuning,
        buffers: Buffers,
        counters: Arc<Counters>,
    ) -> Result<UringFabric, FabricError> {
        Ok(UringFabric {
            streams: Streams::new(rank, tuning, counters)?,
            ring: Ring::Unmade,
            buffers,
            polls: 0,
            connections: 0,
            unarmed: Vec::new(),
            current: Vec::new(),
            in_ring: Vec::new(),
        })
    }

    pub(super) fn tuning() -> Tuning {
        Tuning { active_max: ACTIVE_MAX, silence: limits::PEER_SILENCE_MAX, zero_copy: Policy::Measured }
    }

    fn has_completions(&mut self) -> bool {
        if let Ring::Made(ring) = &mut self.ring { ring.has_completions() } else { false }
    }

    fn take_completions(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let Ring::Made(ring) = &mut self.ring else { return 0 };
        let (streams, current, unarmed) = (&mut self.streams, &self.current, &mut self.unarmed);
        let in_ring = &mut self.in_ring;
        let mut events = 0;
        ring.drain(|token, received, more| {
            let (peer, number) = (Rank(token as u32), (token >> 32) as u32);
            // An earlier connection's, or one that was closed.
            if current.get(peer.index()) != Some(&number) {
                return;
            }
            match received {
                Received::Bytes(bytes) => events += streams.accept(peer, bytes, sink),
                Received::End => streams.end(peer, |stream| stream.end(FabricError::Closed(peer))),
                Received::NoBuffers => {}
                // Cancelled, or the thread that started it has ended.
                Received::Failed(error) if error == Errno::CANCELED.raw_os_error() => {}
                Received::Failed(error) => {
                    streams.end(peer, |stream| stream.end_with(Errno::from_raw_os_error(error)));
                }
            }
            if !more {
                in_ring[peer.index()] = false;
                unarmed.push((peer, number));
            }
        });
        events
    }

    /// The owner's part of a poll before the completions.
    fn progress(&mut self) {
        let Ring::Made(ring) = &mut self.ring else { return };
        // Whoever talks without pause is received from directly; a request in
        // the ring would only be woken for each of its messages, too.
        for line in self.streams.talkative() {
            let Some(number) = self.current.get(line.peer.index()) else { continue };
            if self.in_ring[line.peer.index()] && ring.cancel(token(line.peer, *number)).is_ok() {
                self.in_ring[line.peer.index()] = false;
            }
        }
        let mut i = 0;
        while let Some(&(peer, number)) = self.unarmed.get(i) {
            let lanes = self.streams.peers.get_mut(peer);
            let Some(lanes) = lanes.filter(|_| self.current.get(peer.index()) == Some(&number)) else {
                self.unarmed.swap_remove(i);
                continue;
            };
            if lanes.first().is_talkative() {
                i += 1;
                continue;
            }
            if ring.receive(&lanes.first().socket, token(peer, number)).is_err() {
                // No room in the kernel now. Until there is, the poller tells.
                self.streams.ask();
                break;
            }
            self.in_ring[peer.index()] = true;
            self.unarmed.swap_remove(i);
        }
        // A ring that cannot be entered leaves the bytes in the sockets.
        if ring.progress().is_err() {
            self.streams.ask();
        }
    }
}

impl Fabric for UringFabric {
    fn kind(&self) -> Kind {
        Kind::Uring
    }

    fn register(&mut self, key: RegionKey, region: Arc<Region>) -> Result<(), FabricError> {
        self.streams.register(key, region);
        Ok(())
    }

    fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        self.streams.connect(peer, link)?;
        self.connections += 1;
        if self.current.len() <= peer.index() {
            self.current.resize(peer.index() + 1, 0);
            self.in_ring.resize(peer.index() + 1, false);
        }
        self.in_ring[peer.index()] = false;
        self.current[peer.index()] = self.connections;
        self.unarmed.push((peer, self.connections));
        Ok(())
    }

    fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        self.streams.send(peer, parts)
    }

    fn map(&self, _peer: Rank, _key: RegionKey) -> Option<Arc<Region>> {
        None
    }

    fn read(&mut self, peer: Rank, from: RemoteSpan, into: Lease, token: u64) -> Result<(), FabricError> {
        self.streams.read(peer, from, into, token);
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        if let Ring::Unmade = self.ring {
            let Buffers { count, bytes, incremental } = self.buffers;
            self.ring = match ReceiveRing::new(count, bytes, incremental) {
                Ok(ring) => Ring::Made(Box::new(ring)),
                Err(_) => Ring::Refused,
            };
        }
        if !matches!(&self.ring, Ring::Made(ring) if ring.is_owner()) {
            let events = self.take_completions(sink);
            return events + self.streams.poll_sockets(sink);
        }
        self.streams.start_turn();
        self.polls = self.polls.wrapping_add(1);
        let is_time = self.streams.is_time_to_ask();
        // Only lane 0 is in the ring.
        let lanes_due = is_time && self.streams.expects_chunks() || self.polls.is_multiple_of(LOOK_EVERY);
        if lanes_due || self.streams.some_blocked() {
            self.streams.ask();
        }
        // Another thread may have left completions; after them, and before the
        // kernel moves more, the sockets are next.
        let mut events = self.take_completions(sink);
        events += self.streams.receive_active(sink);
        if is_time {
            self.progress();
            events += self.take_completions(sink);
        }
        events + self.streams.finish_turn(sink)
    }

    fn arm(&mut self) -> bool {
        let ready = match &self.ring {
            Ring::Unmade => true,
            Ring::Refused => false,
            Ring::Made(ring) => {
                // Another thread cannot make the ring do its work, and need not.
                if ring.is_owner() {
                    self.progress();
                }
                self.has_completions()
            }
        };
        !ready && self.streams.arm()
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.streams.wait_fd()
    }

    fn close(&mut self, peer: Rank) {
        self.streams.close(peer);
    }
}

impl Drop for UringFabric {
    /// The ring keeps sockets open until the kernel has wound it up: the peers
    /// are told at once.
    fn drop(&mut self) {
        for stream in self.streams.peers.iter().flat_map(|(_, lanes)| lanes.iter()) {
            let _ = stream.socket.shutdown(Shutdown::Both);
        }
    }
}

fn token(peer: Rank, number: u32) -> u64 {
    u64::from(number) << 32 | u64::from(Line { peer, lane: 0 }.to_number())
}

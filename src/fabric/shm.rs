//! Shared memory between the ranks of a host: one ring in each direction per
//! pair, and the peers' regions mapped read-only.
//!
//! The Unix stream that `boot` hands over carries the set-up (who, which
//! regions, the descriptors). Afterwards it is a doorbell, rung with one byte
//! only while the other side sleeps, and the proof of life: its end is the end
//! of the peer, unless its presence (`sys::Witness`) has told so before, while the
//! kernel takes apart what memory it had. What the peer published before it died is
//! still delivered, since the ring outlives it. Regions stay mapped after that, too.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use super::peers::Peers;
use super::setup::{Fields, fill};
use super::{Event, Fabric, FabricError, Kind, Link, RegionKey, RemoteSpan};
use crate::base::event::{Counters, Event as Counted};
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region};
use crate::sync::{CONTROL_LINES, Consumer, Producer};
use crate::sys::{FDS_MAX, Poller, SharedLines, Witness, open_region, presence_fds, receive_fds, region_fd, send_fds};

const SEGMENT_LINES: usize = CONTROL_LINES + limits::RING_LINES;

/// Messages taken from one peer before the next one's turn.
const BATCH: usize = 64;

/// Polls between two looks for ended peers: often enough for a spinning rank,
/// rare enough to cost a spin nothing.
const LOOK_EVERY: u32 = 256;

/// Descriptors of a set-up beside those of regions: the ring and the presence.
const FDS_BESIDE_REGIONS: usize = 3;

/// So many rings, a megabyte each for both directions, are made resident when they
/// are made. More would be much memory on a host of many ranks, few of which talk
/// much to each other.
const RINGS_POPULATED: usize = 8;

const MAGIC: u64 = u64::from_le_bytes(*b"clm-shm2");

/// See the module.
pub struct ShmFabric {
    rank: Rank,
    counters: Arc<Counters>,
    regions: Vec<(RegionKey, Arc<Region>)>,
    peers: Peers<Peer>,
    /// Regions of all peers that there have been.
    maps: HashMap<(Rank, RegionKey), Arc<Region>>,
    reads_done: VecDeque<ReadDone>,
    poller: Poller,
    armed: bool,
    polls: u32,
}

struct Peer {
    rank: Rank,
    stream: UnixStream,
    producer: Producer<SharedLines>,
    consumer: Consumer<SharedLines>,
    witness: Witness,
    /// Set once the connection has ended: reported when the ring is empty.
    ended: Option<FabricError>,
}

struct ReadDone {
    peer: Rank,
    token: u64,
    lease: Lease,
    result: Result<(), FabricError>,
}

impl ShmFabric {
    /// A fabric without peers.
    pub fn new(rank: Rank, counters: Arc<Counters>) -> Result<ShmFabric, FabricError> {
        Ok(ShmFabric {
            rank,
            counters,
            regions: Vec::new(),
            peers: Peers::new(),
            maps: HashMap::new(),
            reads_done: VecDeque::new(),
            poller: Poller::new().map_err(|error| FabricError::os(rank, "epoll_create", error))?,
            armed: false,
            polls: 0,
        })
    }

    /// Empties doorbells and notes who has ended.
    fn look_for_ends(&mut self) {
        let peers = &mut self.peers;
        // A failing epoll leaves the doorbells as they are; the rings do not
        // depend on them.
        let _ = self.poller.take(|readiness| {
            if let Some(peer) = peers.get_mut(Rank(readiness.token as u32)) {
                peer.empty_doorbell(readiness.ended);
            }
        });
        for (rank, peer) in peers.iter_mut() {
            if peer.ended.is_none() && peer.witness.is_over() {
                peer.ended = Some(FabricError::Closed(rank));
            }
        }
    }

    fn report_ended(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let over: Vec<(Rank, FabricError)> =
            self.peers.iter().filter_map(|(rank, peer)| peer.over().map(|cause| (rank, cause))).collect();
        for (peer, cause) in &over {
            self.close(*peer);
            if let FabricError::BadFrame(..) = cause {
                self.counters.count(Counted::BadFrame);
            }
            sink(Event::Lost { peer: *peer, cause: cause.clone() });
        }
        over.len()
    }
}

impl Fabric for ShmFabric {
    fn kind(&self) -> Kind {
        Kind::Shm
    }

    fn register(&mut self, key: RegionKey, region: Arc<Region>) -> Result<(), FabricError> {
        if region_fd(&region).is_none() {
            return Err(FabricError::os(self.rank, "register", "the region is not shared memory"));
        }
        if self.regions.len() + FDS_BESIDE_REGIONS >= FDS_MAX {
            return Err(FabricError::os(self.rank, "register", "too many regions"));
        }
        self.regions.push((key, region));
        Ok(())
    }

    fn connect(&mut self, peer: Rank, link: Link) -> Result<(), FabricError> {
        let Link::Unix(stream) = link else {
            return Err(FabricError::os(peer, "connect", "shared memory needs a Unix stream"));
        };
        if peer == self.rank || self.peers.contains(peer) {
            return Err(FabricError::os(peer, "connect", "connected already"));
        }
        let deadline = Instant::now() + limits::SET_UP_DEADLINE;
        let os = |what: &'static str| move |error: std::io::Error| FabricError::os(peer, what, error);

        stream.set_nonblocking(false).map_err(os("connect"))?;
        stream.set_write_timeout(Some(limits::SET_UP_DEADLINE)).map_err(os("connect"))?;
        let creates = self.rank < peer;
        let own =
            if creates { Some(SharedLines::create(2 * SEGMENT_LINES).map_err(os("memfd_create"))?) } else { None };
        send_hello(&stream, self.rank, &self.regions, own.as_ref()).map_err(os("sendmsg"))?;
        let hello = receive_hello(&stream, peer, !creates, deadline)?;
        let witness = Witness::open(hello.presence).map_err(os("mmap of a presence"))?;
        let segment = match (own, hello.segment) {
            (Some(own), _) => own,
            (None, Some(fd)) => SharedLines::open(fd, 2 * SEGMENT_LINES).map_err(os("mmap"))?,
            (None, None) => return Err(FabricError::BadFrame(peer, "a set-up without a ring".into())),
        };
        if self.peers.iter().count() < RINGS_POPULATED {
            segment.populate();
        }
        let mut maps = Vec::new();
        for (key, len, fd) in hello.regions {
            maps.push((key, Arc::new(open_region(fd, len).map_err(os("mmap of a region"))?)));
        }
        stream.set_nonblocking(true).map_err(os("connect"))?;
        self.poller.add_readable(&stream, peer.index()).map_err(os("epoll_ctl"))?;

        self.maps.extend(maps.into_iter().map(|(key, region)| ((peer, key), region)));
        // The creator writes the first half.
        let (first, second) = segment.split(SEGMENT_LINES);
        let (out, inward) = if creates { (first, second) } else { (second, first) };
        let state = Peer {
            rank: peer,
            stream,
            producer: Producer::new(out, limits::MESSAGE_BYTES_MAX),
            consumer: Consumer::new(inward, limits::MESSAGE_BYTES_MAX),
            witness,
            ended: None,
        };
        self.peers.insert(peer, state);
        Ok(())
    }

    fn send(&mut self, peer: Rank, parts: &[&[u8]]) -> Result<(), FabricError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes > limits::MESSAGE_BYTES_MAX {
            return Err(FabricError::TooLong(bytes, limits::MESSAGE_BYTES_MAX));
        }
        let to = self.peers.get_mut(peer).filter(|to| to.ended.is_none()).ok_or(FabricError::NotConnected(peer))?;
        match to.producer.try_push(parts) {
            Ok(true) => {
                if to.producer.must_ring() {
                    to.ring_doorbell();
                }
                Ok(())
            }
            Ok(false) => Err(FabricError::Full(peer)),
            Err(error) => {
                let cause = FabricError::BadFrame(peer, error.to_string());
                to.ended = Some(cause.clone());
                Err(cause)
            }
        }
    }

    fn map(&self, peer: Rank, key: RegionKey) -> Option<Arc<Region>> {
        self.maps.get(&(peer, key)).cloned()
    }

    fn read(&mut self, peer: Rank, from: RemoteSpan, mut into: Lease, token: u64) -> Result<(), FabricError> {
        let result = match self.maps.get(&(peer, from.key)) {
            _ if !self.peers.contains(peer) => Err(FabricError::NotConnected(peer)),
            Some(region) if from.len == into.range().len() as u64 => {
                into.copy_from(region, from.offset).map_err(|_| FabricError::NoSuchMemory(peer, from))
            }
            _ => Err(FabricError::NoSuchMemory(peer, from)),
        };
        self.reads_done.push_back(ReadDone { peer, token, lease: into, result });
        Ok(())
    }

    fn poll(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        let mut events = 0;
        if self.armed {
            self.armed = false;
            self.peers.iter_mut().for_each(|(_, peer)| peer.consumer.disarm());
            self.look_for_ends();
        }
        while let Some(ReadDone { peer, token, lease, result }) = self.reads_done.pop_front() {
            sink(Event::ReadDone { peer, token, lease, result });
            events += 1;
        }
        let mut some_ended = false;
        for (_, peer) in self.peers.iter_mut() {
            events += peer.deliver(sink);
            some_ended |= peer.ended.is_some();
        }
        if some_ended {
            events += self.report_ended(sink);
        }
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(LOOK_EVERY) {
            self.look_for_ends();
        }
        events
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        let mut quiet = self.reads_done.is_empty();
        for (_, peer) in self.peers.iter_mut() {
            quiet &= peer.consumer.arm() && peer.ended.is_none();
            if peer.consumer.must_ring() {
                peer.ring_doorbell();
            }
        }
        quiet
    }

    fn wait_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    fn close(&mut self, peer: Rank) {
        if let Some(peer) = self.peers.remove(peer) {
            // Closing the stream, which comes next, removes it as well.
            let _ = self.poller.remove(&peer.stream);
        }
    }
}

impl Peer {
    /// Why the connection has ended, once nothing is left to deliver.
    fn over(&self) -> Option<FabricError> {
        match &self.ended {
            Some(FabricError::Closed(_)) if self.consumer.ready() => None,
            ended => ended.clone(),
        }
    }

    fn deliver(&mut self, sink: &mut dyn FnMut(Event<'_>)) -> usize {
        if !matches!(self.ended, None | Some(FabricError::Closed(_))) {
            return 0;
        }
        let peer = self.rank;
        for events in 0..BATCH {
            match self.consumer.try_pop(|bytes| sink(Event::Message { peer, bytes })) {
                Ok(Some(())) => {}
                Ok(None) => {
                    if self.consumer.must_ring() {
                        self.ring_doorbell();
                    }
                    return events;
                }
                Err(error) => {
                    self.ended = Some(FabricError::BadFrame(peer, error.to_string()));
                    return events;
                }
            }
        }
        BATCH
    }

    /// A full doorbell rings already, and a broken one is found by reading.
    fn ring_doorbell(&mut self) {
        let _ = self.stream.write(&[1]);
    }

    /// Takes what rang. What comes later tells so again, and so does the end,
    /// unless it was told already: then it is read up to.
    fn empty_doorbell(&mut self, ended: bool) {
        let mut bytes = [0; 64];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(n) if n < bytes.len() && !ended => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.ended.get_or_insert(FabricError::Closed(self.rank));
    }
}

struct Hello {
    segment: Option<OwnedFd>,
    presence: [OwnedFd; 2],
    regions: Vec<(RegionKey, usize, OwnedFd)>,
}

const HELLO_HEAD: usize = 24;
const HELLO_REGION: usize = 12;

/// Little-endian: magic u64, rank u32, ring lines u64, count u32, and for each
/// region its key u32 and length u64. The ring's descriptor comes first, then the
/// presence's.
fn send_hello(
    stream: &UnixStream,
    rank: Rank,
    regions: &[(RegionKey, Arc<Region>)],
    segment: Option<&SharedLines>,
) -> std::io::Result<()> {
    let mut bytes = Vec::with_capacity(HELLO_HEAD + regions.len() * HELLO_REGION);
    bytes.extend_from_slice(&MAGIC.to_le_bytes());
    bytes.extend_from_slice(&rank.0.to_le_bytes());
    bytes.extend_from_slice(&(limits::RING_LINES as u64).to_le_bytes());
    bytes.extend_from_slice(&(regions.len() as u32).to_le_bytes());
    let mut fds: Vec<BorrowedFd<'_>> = segment.map(SharedLines::fd).into_iter().collect();
    fds.extend(presence_fds()?);
    for (key, region) in regions {
        bytes.extend_from_slice(&key.0.to_le_bytes());
        bytes.extend_from_slice(&(region.len() as u64).to_le_bytes());
        fds.extend(region_fd(region));
    }
    send_fds(stream, &bytes, &fds)
}

fn receive_hello(stream: &UnixStream, peer: Rank, with_segment: bool, deadline: Instant) -> Result<Hello, FabricError> {
    let bad = |what: &str| FabricError::BadFrame(peer, format!("{what} in the set-up of shared memory"));
    let mut fds = Vec::new();
    let mut receive = |bytes: &mut [u8]| {
        fill(peer, bytes, deadline, |left| stream.set_read_timeout(Some(left)), |b| receive_fds(stream, b, &mut fds))
    };
    let mut head = [0; HELLO_HEAD];
    receive(&mut head)?;
    let mut head = Fields(&head);
    let expected = (Some(MAGIC), Some(peer.0), Some(limits::RING_LINES as u64));
    if (head.u64(), head.u32(), head.u64()) != expected {
        return Err(bad("another program, version or rank"));
    }
    let count = head.u32().map(|count| count as usize).filter(|count| count + FDS_BESIDE_REGIONS <= FDS_MAX);
    let count = count.ok_or_else(|| bad("too many regions"))?;
    let mut body = vec![0; count * HELLO_REGION];
    receive(&mut body)?;
    if fds.len() != count + 2 + usize::from(with_segment) {
        return Err(bad("a wrong number of descriptors"));
    }
    let mut fds = fds.into_iter();
    let segment = if with_segment { fds.next() } else { None };
    let (Some(list), Some(gate)) = (fds.next(), fds.next()) else { return Err(bad("no presence")) };
    let mut body = Fields(&body);
    let regions = fds.map(|fd| Some((RegionKey(body.u32()?), body.u64()? as usize, fd))).collect::<Option<_>>();
    Ok(Hello { segment, presence: [list, gate], regions: regions.ok_or_else(|| bad("a wrong length"))? })
}

//! What every backend must do, as one suite that is instantiated for each.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::streams::Tuning;
use super::{
    EpollFabric, Event, Fabric, FabricError, Kind, Link, OfiFabric, RdmaFabric, RegionKey, RemoteSpan, ShmFabric,
    UringFabric, rdma_available,
};
use crate::base::event::{Counters, Event as Counted};
use crate::base::{Rank, limits};
use crate::mem::{Lease, Region, test_lease};
use crate::sys::{OfiOffer, UringFeatures, create_region, ofi_available};

mod rdma_two_hosts;

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: RegionKey = RegionKey(5);

/// Peers that an RDMA fabric is made for: most tests have fewer.
const RDMA_PEERS: u32 = 4;

/// Messages of a child that must not be killed at work.
const REST_AFTER: u32 = 3_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    Shm,
    Rdma,
    Uring,
    RingOnly,
    Epoll,
    /// The same two with further connections for large reads.
    UringLanes,
    EpollLanes,
    /// The providers of libfabric that need no hardware.
    OfiTcp,
    OfiShm,
    /// What the node takes where the kernel lacks something.
    Without(Feature),
}

/// What a kernel may lack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Feature {
    Ring,
    DeferredWork,
    BufferRings,
    Multishot,
    Incremental,
}

impl Backend {
    fn module(self) -> &'static str {
        match self {
            Backend::Shm => "shm",
            Backend::Rdma => "rdma",
            Backend::Uring => "uring",
            Backend::RingOnly => "ring_only",
            Backend::Epoll => "epoll",
            Backend::UringLanes => "uring_lanes",
            Backend::EpollLanes => "epoll_lanes",
            Backend::OfiTcp => "ofi_tcp",
            Backend::OfiShm => "ofi_shm",
            Backend::Without(Feature::Ring) => "without_ring",
            Backend::Without(Feature::DeferredWork) => "without_deferred_work",
            Backend::Without(Feature::BufferRings) => "without_buffer_rings",
            Backend::Without(Feature::Multishot) => "without_multishot",
            Backend::Without(Feature::Incremental) => "without_incremental",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Backend::Shm => Kind::Shm,
            Backend::Rdma => Kind::Rdma,
            Backend::Uring | Backend::RingOnly | Backend::UringLanes => Kind::Uring,
            Backend::Without(Feature::Incremental) => Kind::Uring,
            Backend::Epoll | Backend::EpollLanes | Backend::Without(_) => Kind::Epoll,
            Backend::OfiTcp | Backend::OfiShm => Kind::Ofi,
        }
    }

    fn lanes(self) -> usize {
        if matches!(self, Backend::UringLanes | Backend::EpollLanes) { 3 } else { 0 }
    }

    /// Whether it can be tried: where not, the node uses another. The variable
    /// says what must be here, so that no test may pass by doing nothing.
    pub(super) fn is_here(self) -> bool {
        let (word, found) = match self {
            Backend::Rdma => ("verbs", rdma_available(None, None).is_ok()),
            Backend::OfiTcp => ("ofi", ofi_available(Some("tcp")).is_ok()),
            Backend::OfiShm => ("ofi", ofi_available(Some("shm")).is_ok()),
            _ => ("uring", self.kind() != Kind::Uring || UringFeatures::here().suffice().is_ok()),
        };
        let required = std::env::var("COLLIMATE_TEST_REQUIRED").unwrap_or_default();
        assert!(found || !required.split_whitespace().any(|w| w == word), "{self:?} must be here, and is not");
        found
    }
}

/// Tests of a backend, where it can be used.
macro_rules! cases {
    ($kind:expr, $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                if $kind.is_here() {
                    super::$test($kind);
                }
            }
        )*
    };
}

mod robustness;

fn make(kind: Backend, rank: Rank, counters: Arc<Counters>) -> Box<dyn Fabric> {
    match kind {
        Backend::Shm => Box::new(ShmFabric::new(rank, counters).unwrap()),
        Backend::Rdma => Box::new(RdmaFabric::new(rank, RDMA_PEERS, None, None, counters).unwrap()),
        Backend::Uring | Backend::UringLanes => Box::new(UringFabric::new(rank, counters).unwrap()),
        Backend::RingOnly => {
            // Without the direct path for talkative peers.
            let tuning = Tuning { active_max: 0, ..UringFabric::tuning() };
            Box::new(UringFabric::with_features(rank, tuning, UringFeatures::here(), counters).unwrap())
        }
        Backend::Epoll | Backend::EpollLanes => Box::new(EpollFabric::new(rank, counters).unwrap()),
        Backend::OfiTcp => Box::new(OfiFabric::new(rank, ofi_offer("tcp"), counters).unwrap()),
        Backend::OfiShm => Box::new(OfiFabric::new(rank, ofi_offer("shm"), counters).unwrap()),
        Backend::Without(feature) => without(feature, rank, counters),
    }
}

fn ofi_offer(provider: &str) -> OfiOffer {
    OfiOffer::find(Some(provider), Some(Ipv4Addr::LOCALHOST.into())).unwrap()
}

/// What the node makes on a system that lacks something: io_uring if it will
/// do, else epoll.
fn without(feature: Feature, rank: Rank, counters: Arc<Counters>) -> Box<dyn Fabric> {
    let mut features = UringFeatures::here().clone();
    let reason = format!("{feature:?} is forbidden by a test");
    *match feature {
        Feature::Ring => &mut features.ring,
        Feature::DeferredWork => &mut features.deferred_work,
        Feature::BufferRings => &mut features.buffer_rings,
        Feature::Multishot => &mut features.multishot,
        Feature::Incremental => &mut features.incremental,
    } = Err(reason.clone());
    match UringFabric::with_features(rank, UringFabric::tuning(), &features, counters.clone()) {
        Ok(fabric) => Box::new(fabric),
        Err(error) => {
            // The first thing that lacks is named, on a system with all of it.
            if UringFeatures::here().suffice().is_ok() {
                assert!(error.to_string().contains(&reason), "{error}");
            }
            Box::new(EpollFabric::new(rank, counters).unwrap())
        }
    }
}

pub(super) fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (a, listener.accept().unwrap().0)
}

fn link_pair(kind: Backend) -> (Link, Link) {
    if kind == Backend::Shm {
        let (a, b) = UnixStream::pair().unwrap();
        return (Link::Unix(a), Link::Unix(b));
    }
    let (a, b) = tcp_pair();
    let (more_a, more_b): (Vec<_>, Vec<_>) = (0..kind.lanes()).map(|_| tcp_pair()).unzip();
    if more_a.is_empty() { (Link::Tcp(a), Link::Tcp(b)) } else { (Link::Lanes(a, more_a), Link::Lanes(b, more_b)) }
}

/// A fabric and all that it has reported.
struct Node {
    rank: Rank,
    fabric: Box<dyn Fabric>,
    counters: Arc<Counters>,
    messages: VecDeque<(Rank, Vec<u8>)>,
    reads: HashMap<u64, (Lease, Result<(), FabricError>)>,
    lost: Vec<(Rank, FabricError)>,
}

impl Node {
    fn new(kind: Backend, rank: u32) -> Node {
        let counters = Arc::new(Counters::new());
        let fabric = make(kind, Rank(rank), counters.clone());
        assert_eq!(fabric.kind(), kind.kind());
        Node::of(fabric, rank, counters)
    }

    fn of(fabric: Box<dyn Fabric>, rank: u32, counters: Arc<Counters>) -> Node {
        let rank = Rank(rank);
        Node { rank, fabric, counters, messages: VecDeque::new(), reads: HashMap::new(), lost: Vec::new() }
    }

    fn poll(&mut self) -> usize {
        let (messages, reads, lost) = (&mut self.messages, &mut self.reads, &mut self.lost);
        let mut seen = 0;
        let reported = self.fabric.poll(&mut |event| {
            seen += 1;
            match event {
                Event::Message { peer, bytes } => messages.push_back((peer, bytes.to_vec())),
                Event::ReadDone { token, lease, result, .. } => {
                    assert!(reads.insert(token, (lease, result)).is_none(), "a read ended twice");
                }
                Event::Lost { peer, cause } => lost.push((peer, cause)),
            }
        });
        assert_eq!(reported, seen);
        reported
    }

    fn send(&mut self, to: Rank, bytes: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.fabric.send(to, &[bytes]) {
                Ok(()) => return,
                Err(FabricError::Full(peer)) => assert_eq!(peer, to),
                Err(error) => panic!("{error}"),
            }
            assert!(Instant::now() < deadline, "full for ever");
            self.poll();
            std::thread::yield_now();
        }
    }

    /// Sleeps as the node does until there is something to poll.
    fn sleep(&mut self) {
        if self.fabric.arm() {
            let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            let fd = self.fabric.wait_fd();
            let ready = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_eq!(ready, 1, "{} overslept", self.rank);
        }
    }
}

/// Polls all nodes until the condition holds.
fn run(nodes: &mut [&mut Node], what: &str, mut done: impl FnMut(&[&mut Node]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(nodes) {
        assert!(Instant::now() < deadline, "waited for ever: {what}");
        nodes.iter_mut().for_each(|node| _ = node.poll());
        std::thread::yield_now();
    }
}

fn connect(a: &mut Node, b: &mut Node, kind: Backend) {
    let (to_b, to_a) = link_pair(kind);
    std::thread::scope(|scope| {
        scope.spawn(|| a.fabric.connect(b.rank, to_b).unwrap());
        b.fabric.connect(a.rank, to_a).unwrap();
    });
}

fn pair(kind: Backend) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(kind, 0), Node::new(kind, 1));
    connect(&mut a, &mut b, kind);
    (a, b)
}

/// A pair of which the second has a region with a known pattern.
fn pair_with_region(kind: Backend, len: usize) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(kind, 0), Node::new(kind, 1));
    b.fabric.register(KEY, patterned(len)).unwrap();
    connect(&mut a, &mut b, kind);
    (a, b)
}

fn patterned(len: usize) -> Arc<Region> {
    let region = Arc::new(create_region(len).unwrap());
    let mut lease = test_lease(&region, 0..len);
    lease.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = pattern(i));
    region
}

fn pattern(i: usize) -> u8 {
    (i ^ (i >> 8) ^ (i >> 16)) as u8
}

fn lease(len: usize) -> Lease {
    test_lease(&Arc::new(Region::heap(len)), 0..len)
}

/// The message with number `i`: it names itself, and varies in length.
fn numbered(i: u32) -> Vec<u8> {
    let long = if i.is_multiple_of(97) { 20_000 } else { 300 };
    let mut message = i.to_le_bytes().to_vec();
    message.resize(4 + (i as usize).wrapping_mul(7919) % long, i as u8);
    message
}

fn ordered_delivery(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    let count = 5_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (0..count).for_each(|i| a.send(Rank(1), &numbered(i)));
            run(&mut [&mut a], "the answer", |nodes| !nodes[0].messages.is_empty());
        });
        for i in 0..count {
            run(&mut [&mut b], "the next message", |nodes| !nodes[0].messages.is_empty());
            assert_eq!(b.messages.pop_front().unwrap(), (Rank(0), numbered(i)));
        }
        b.send(Rank(0), b"done");
        b.poll();
    });
}

fn all_sizes(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    let max = limits::MESSAGE_BYTES_MAX;
    let edges = [0, 1, 7, 8, 9, 55, 56, 57, 63, 64, 65, 111, 112, 113, 4095, 4096, 32_768, 65_000, max - 1, max];
    for len in edges.into_iter().chain((0..max).step_by(4_099)) {
        let message: Vec<u8> = (0..len).map(|i| pattern(i + len)).collect();
        a.send(Rank(1), &message);
        run(&mut [&mut a, &mut b], "a message", |nodes| !nodes[1].messages.is_empty());
        assert!(b.messages.pop_front().unwrap() == (Rank(0), message), "{len} bytes");
    }
}

fn parts_are_joined(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    let body: Vec<u8> = (0..1000).map(pattern).collect();
    for cuts in [1, 2, 3, 15, 16, 17, 100, 999] {
        let parts: Vec<&[u8]> = body.chunks(body.len() / cuts).flat_map(|part| [part, &[]]).collect();
        a.fabric.send(Rank(1), &parts).unwrap();
        a.fabric.send(Rank(1), &[]).unwrap();
    }
    run(&mut [&mut a, &mut b], "all messages", |nodes| nodes[1].messages.len() == 16);
    for pair in b.messages.make_contiguous().chunks(2) {
        assert!(pair[0].1 == body && pair[1].1.is_empty());
    }
}

fn too_long_is_refused(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    let max = limits::MESSAGE_BYTES_MAX;
    let long = vec![0; max];
    assert_eq!(a.fabric.send(Rank(1), &[&long, &[1]]), Err(FabricError::TooLong(max + 1, max)));
    assert_eq!(a.fabric.send(Rank(7), &[b"x"]), Err(FabricError::NotConnected(Rank(7))));
    a.send(Rank(1), b"still here");
    run(&mut [&mut a, &mut b], "a message", |nodes| nodes[1].messages.len() == 1);
}

fn full_and_recovery(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    let message = vec![3; 50_000];
    let mut sent = 0_usize;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let number = sent.to_le_bytes();
        match a.fabric.send(Rank(1), &[&number, &message]) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error, FabricError::Full(Rank(1)));
                // The sockets' own buffers may have room once more.
                if (0..20).all(|_| a.poll() == 0 && a.fabric.send(Rank(1), &[&number, &message]).is_err()) {
                    break;
                }
                sent += 1;
            }
        }
        assert!(Instant::now() < deadline, "never full");
    }
    // Whoever waits for room is woken when there is some, and polls on: what is
    // under way may need a hand.
    let has_some = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| {
            a.sleep();
            let deadline = Instant::now() + PATIENCE;
            while !has_some.load(Ordering::Relaxed) && Instant::now() < deadline {
                a.poll();
            }
        });
        std::thread::sleep(Duration::from_millis(50));
        run(&mut [&mut b], "some", |nodes| nodes[0].messages.len() > 2);
        has_some.store(true, Ordering::Relaxed);
        run(&mut [&mut b], "the sleeper", |_| sleeper.is_finished());
    });
    run(&mut [&mut a, &mut b], "all", |nodes| nodes[1].messages.len() == sent);
    for (i, (_, bytes)) in b.messages.iter().enumerate() {
        assert_eq!((&bytes[..8], bytes.len()), (&i.to_le_bytes()[..], 50_008));
    }
    a.send(Rank(1), b"and on");
    run(&mut [&mut a, &mut b], "one more", |nodes| nodes[1].messages.len() == sent + 1);
}

fn both_directions(kind: Backend) {
    let (a, b) = pair(kind);
    let count = 3_000_u32;
    let both = [(a, Rank(1)), (b, Rank(0))];
    let finished = Mutex::new(0);
    std::thread::scope(|scope| {
        for (mut node, peer) in both {
            let finished = &finished;
            scope.spawn(move || {
                for i in 0..count {
                    node.send(peer, &numbered(i));
                    node.poll();
                }
                run(&mut [&mut node], "all", |nodes| nodes[0].messages.len() == count as usize);
                for (i, (from, bytes)) in node.messages.iter().enumerate() {
                    assert!(*from == peer && *bytes == numbered(i as u32), "message {i}");
                }
                *finished.lock().unwrap() += 1;
                run(&mut [&mut node], "the other side", |_| *finished.lock().unwrap() == 2);
            });
        }
    });
}

fn three_peers(kind: Backend) {
    let mut nodes: Vec<Node> = (0..4).map(|rank| Node::new(kind, rank)).collect();
    for i in 0..4 {
        for j in i + 1..4 {
            let (low, high) = nodes.split_at_mut(j);
            connect(&mut low[i], &mut high[0], kind);
        }
    }
    for round in 0..50 {
        for node in &mut nodes {
            let from = node.rank;
            for to in (0..4).map(Rank).filter(|to| *to != from) {
                node.send(to, &numbered(round * 100 + from.0 * 10 + to.0));
            }
        }
    }
    let mut all: Vec<&mut Node> = nodes.iter_mut().collect();
    run(&mut all, "all", |nodes| nodes.iter().all(|node| node.messages.len() == 150));
    for node in &mut nodes {
        let to = node.rank;
        for from in (0..4).map(Rank).filter(|from| *from != to) {
            let from_one: Vec<_> = node.messages.iter().filter(|(rank, _)| *rank == from).collect();
            assert_eq!(from_one.len(), 50);
            for (round, (_, bytes)) in from_one.into_iter().enumerate() {
                assert!(*bytes == numbered(round as u32 * 100 + from.0 * 10 + to.0));
            }
        }
    }
    // One dies; the others go on.
    drop(nodes.pop());
    let mut rest: Vec<&mut Node> = nodes.iter_mut().collect();
    run(&mut rest, "the loss", |nodes| nodes.iter().all(|node| node.lost.len() == 1));
    for node in &mut nodes {
        assert_eq!(node.lost[0], (Rank(3), FabricError::Closed(Rank(3))));
        assert_eq!(node.fabric.send(Rank(3), &[b"x"]), Err(FabricError::NotConnected(Rank(3))));
    }
    nodes[0].send(Rank(1), b"alive");
    let mut rest: Vec<&mut Node> = nodes.iter_mut().collect();
    run(&mut rest, "a message", |nodes| nodes[1].messages.len() == 151);
}

fn reads(kind: Backend) {
    let len = if kind == Backend::Rdma { 6 << 20 } else { 24 << 20 };
    let (mut a, mut b) = pair_with_region(kind, len);
    let spans = [(0, 0), (len, 0), (1, 1), (100, 4096), (7, len / 2 + 3), (0, len), (len - 1, 1), (12_345, 700_001)];
    for (token, (offset, bytes)) in spans.into_iter().enumerate() {
        let span = RemoteSpan { key: KEY, offset: offset as u64, len: bytes as u64 };
        a.fabric.read(Rank(1), span, lease(bytes), token as u64).unwrap();
        a.send(Rank(1), b"between");
        b.send(Rank(0), b"back");
    }
    run(&mut [&mut a, &mut b], "the reads", |nodes| {
        nodes[0].reads.len() == spans.len()
            && nodes[1].messages.len() == spans.len()
            && nodes[0].messages.len() == spans.len()
    });
    for (token, (offset, bytes)) in spans.into_iter().enumerate() {
        let (lease, result) = &a.reads[&(token as u64)];
        assert_eq!((result, lease.bytes().len()), (&Ok(()), bytes));
        assert!(lease.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(offset + i)), "read {token}");
    }
}

fn reads_out_of_range_fail_alone(kind: Backend) {
    let (mut a, mut b) = pair_with_region(kind, 10_000);
    let bad = [(KEY, 9_999, 2), (KEY, u64::MAX, 2), (KEY, 10_001, 0), (RegionKey(9), 0, 1)];
    for (token, (key, offset, len)) in bad.into_iter().enumerate() {
        a.fabric.read(Rank(1), RemoteSpan { key, offset, len }, lease(len as usize), token as u64).unwrap();
    }
    let good = RemoteSpan { key: KEY, offset: 9_000, len: 1_000 };
    a.fabric.read(Rank(1), good, lease(1_000), 99).unwrap();
    run(&mut [&mut a, &mut b], "the reads", |nodes| nodes[0].reads.len() == 5);
    for (token, (key, offset, len)) in bad.into_iter().enumerate() {
        let error = FabricError::NoSuchMemory(Rank(1), RemoteSpan { key, offset, len });
        assert_eq!(a.reads[&(token as u64)].1, Err(error));
    }
    assert_eq!(a.reads[&99].1, Ok(()));
    // Where the reader has the peer's table of regions, it asks for no such.
    if !matches!(kind.kind(), Kind::Shm | Kind::Rdma | Kind::Ofi) {
        assert_eq!(b.counters.get(Counted::RefusedRead), bad.len() as u64);
    }
    assert!(a.lost.is_empty() && b.lost.is_empty());
}

fn more_reads_than_fit(kind: Backend) {
    let (mut a, mut b) = pair_with_region(kind, 100_000);
    let count = 3 * limits::STREAM_READS_MAX as u64;
    for token in 0..count {
        let span = RemoteSpan { key: KEY, offset: token, len: 5_000 };
        a.fabric.read(Rank(1), span, lease(5_000), token).unwrap();
    }
    run(&mut [&mut a, &mut b], "the reads", |nodes| nodes[0].reads.len() == count as usize);
    for (token, (lease, result)) in &a.reads {
        let expected = |(i, byte): (usize, &u8)| *byte == pattern(i + *token as usize);
        assert!(result.is_ok() && lease.bytes().iter().enumerate().all(expected), "read {token}");
    }
    // Reads that cannot be still give the lease back.
    let span = RemoteSpan { key: KEY, offset: 0, len: 10 };
    a.fabric.read(Rank(9), span, lease(10), 9_000).unwrap();
    a.fabric.read(Rank(1), span, lease(11), 9_001).unwrap();
    run(&mut [&mut a, &mut b], "the failures", |nodes| nodes[0].reads.len() == count as usize + 2);
    assert_eq!(a.reads[&9_000].1, Err(FabricError::NotConnected(Rank(9))));
    assert_eq!(a.reads[&9_001].1, Err(FabricError::NoSuchMemory(Rank(1), span)));
}

fn map_where_it_can(kind: Backend) {
    let (mut a, mut b) = pair_with_region(kind, 100_000);
    assert!(a.fabric.map(Rank(1), RegionKey(6)).is_none());
    let mapped = a.fabric.map(Rank(1), KEY);
    assert_eq!(mapped.is_some(), kind == Backend::Shm);
    let Some(mapped) = mapped else { return };
    let mut copy = lease(100_000);
    copy.copy_from(&mapped, 0).unwrap();
    assert!(copy.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(i)));
    b.fabric.close(Rank(0));
    run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 1);
    drop(b);
    copy.bytes_mut().fill(0);
    copy.copy_from(&a.fabric.map(Rank(1), KEY).unwrap(), 0).unwrap();
    assert!(copy.bytes()[99_999] == pattern(99_999), "a dead rank's memory stays readable");
}

fn a_sleeper_is_woken(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(move || {
            for i in 0..20 {
                while b.messages.len() <= i && b.lost.is_empty() {
                    if b.poll() == 0 {
                        b.sleep();
                    }
                }
                b.send(Rank(0), b"got it");
                b.poll();
            }
            while b.lost.is_empty() {
                b.sleep();
                b.poll();
            }
        });
        for i in 0..20 {
            if i % 4 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            a.send(Rank(1), &numbered(i));
            a.poll();
            run(&mut [&mut a], "the answer", |nodes| nodes[0].messages.len() == i as usize + 1);
        }
        std::thread::sleep(Duration::from_millis(20));
        drop(a);
        sleeper.join().unwrap();
    });
}

fn close_says_goodbye(kind: Backend) {
    let (mut a, mut b) = pair_with_region(kind, 1 << 20);
    (0..10).for_each(|i| a.send(Rank(1), &numbered(i)));
    let span = RemoteSpan { key: KEY, offset: 0, len: 1 << 20 };
    a.fabric.read(Rank(1), span, lease(1 << 20), 1).unwrap();
    a.fabric.close(Rank(1));
    assert_eq!(a.fabric.send(Rank(1), &[b"x"]), Err(FabricError::NotConnected(Rank(1))));
    run(&mut [&mut a, &mut b], "the end", |nodes| nodes[1].lost.len() == 1 && nodes[0].reads.len() == 1);
    assert_eq!(b.lost[0], (Rank(0), FabricError::Closed(Rank(0))));
    assert_eq!(b.messages.len(), 10, "what was sent before arrives");
    (0..100).for_each(|_| _ = a.poll());
    assert!(a.lost.is_empty(), "who closes is not told");
}

/// The node moves between threads, as the right to poll does; a thread that
/// has it no more is busy and does not help.
fn threads_take_turns(kind: Backend) {
    let (mut a, b) = pair_with_region(kind, 4 << 20);
    let count = 6_000_u32;
    let echo = std::thread::spawn(move || {
        let mut b = b;
        let mut answered = 0;
        while answered < count {
            run(&mut [&mut b], "messages", |nodes| !nodes[0].messages.is_empty());
            while let Some((from, bytes)) = b.messages.pop_front() {
                b.send(from, &bytes);
                answered += 1;
            }
        }
        run(&mut [&mut b], "the end", |nodes| !nodes[0].lost.is_empty());
    });
    let (to_others, from_main) = mpsc::channel::<(Node, u32)>();
    let (to_main, from_others) = mpsc::channel::<(Node, u32)>();
    let other = std::thread::spawn(move || {
        while let Ok((mut node, mut sent)) = from_main.recv() {
            turn(&mut node, &mut sent, count);
            to_main.send((node, sent)).unwrap();
        }
    });
    let mut sent = 0;
    while a.messages.len() < count as usize {
        turn(&mut a, &mut sent, count);
        to_others.send((a, sent)).unwrap();
        (a, sent) = from_others.recv().unwrap();
    }
    // The last reads may still be under way.
    run(&mut [&mut a], "the reads", |nodes| nodes[0].reads.len() == (count / 1_000) as usize);
    drop(to_others);
    other.join().unwrap();
    for (i, (_, bytes)) in a.messages.iter().enumerate() {
        assert!(*bytes == numbered(i as u32), "message {i}");
    }
    assert!(a.lost.is_empty());
    for (lease, result) in a.reads.values() {
        assert!(result.is_ok() && lease.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(i)));
    }
    drop(a);
    echo.join().unwrap();
}

/// What one thread's call has found is not overtaken by what the next one
/// finds.
fn armed_by_one_thread_polled_by_another(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    run(&mut [&mut a, &mut b], "nothing", {
        let mut polls = 0;
        move |_| {
            polls += 1;
            polls > 10
        }
    });
    for i in (0..100).step_by(2) {
        b.send(Rank(0), &numbered(i));
        b.poll();
        a.sleep();
        // By now the message is there, and a ring has completed it.
        a.fabric.arm();
        b.send(Rank(0), &numbered(i + 1));
        b.poll();
        let wanted = i as usize + 2;
        let a = &mut a;
        let mut both = move || run(&mut [a], "both", |nodes| nodes[0].messages.len() == wanted);
        // Every third time the owner itself goes on.
        if i % 3 == 0 { both() } else { std::thread::scope(|scope| scope.spawn(both).join().unwrap()) }
    }
    for (i, (_, bytes)) in a.messages.iter().enumerate() {
        assert!(*bytes == numbered(i as u32), "message {i}");
    }
}

/// Sends some more, starts a read now and then, and polls until most answers
/// have come; the rest is for the next turn to take.
fn turn(node: &mut Node, sent: &mut u32, count: u32) {
    if sent.is_multiple_of(1_000) {
        let span = RemoteSpan { key: KEY, offset: 0, len: 4 << 20 };
        node.fabric.read(Rank(1), span, lease(4 << 20), u64::from(*sent)).unwrap();
    }
    let goal = (*sent + 200).min(count);
    (*sent..goal).for_each(|i| node.send(Rank(1), &numbered(i)));
    *sent = goal;
    let wanted = if goal == count { count } else { goal - 100 };
    run(&mut [node], "answers", |nodes| nodes[0].messages.len() >= wanted as usize);
}

fn a_drop_amid_a_read(kind: Backend) {
    // A card reads ahead by itself, but no further than this; and emulated
    // machines are slow.
    let len = if kind == Backend::Rdma { 24 << 20 } else { 64 << 20 };
    let (mut a, mut b) = pair_with_region(kind, len);
    let span = RemoteSpan { key: KEY, offset: 0, len: len as u64 };
    a.fabric.read(Rank(1), span, lease(len), 1).unwrap();
    // A card needs nobody's help for what was asked of it: only a part was.
    if !matches!(kind, Backend::Shm | Backend::Rdma) {
        (0..20).for_each(|_| {
            a.poll();
            b.poll();
        });
        assert!(a.reads.is_empty(), "the read is under way");
    }
    drop(b);
    run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 1);
    let expected = if kind == Backend::Shm { Ok(()) } else { Err(FabricError::Closed(Rank(1))) };
    assert_eq!(a.reads[&1].1, expected);
    assert_eq!(a.lost, [(Rank(1), FabricError::Closed(Rank(1)))]);
}

/// A process of its own, killed at full speed.
fn a_killed_process(kind: Backend) {
    let (near, far): (Link, OwnedFd) = if kind == Backend::Shm {
        let (near, far) = UnixStream::pair().unwrap();
        (Link::Unix(near), far.into())
    } else {
        let (near, far) = tcp_pair();
        (Link::Tcp(near), far.into())
    };
    // The child calls for its lanes, one after the other.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("fabric::conformance::{}::child", kind.module()), "--ignored"])
        .env("COLLIMATE_TEST_PORT", listener.local_addr().unwrap().port().to_string())
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lanes: Vec<TcpStream> = (0..kind.lanes()).map(|_| listener.accept().unwrap().0).collect();
    let near = match near {
        Link::Tcp(first) if !lanes.is_empty() => Link::Lanes(first, lanes),
        near => near,
    };
    let mut a = Node::new(kind, 0);
    // A fabric waits for a peer that is there, not for one that is starting.
    if let (Kind::Ofi, Link::Tcp(stream)) = (kind.kind(), &near) {
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&timeout)), Ok(1));
    }
    a.fabric.connect(Rank(1), near).unwrap();
    run(&mut [&mut a], "messages of the child", |nodes| nodes[0].messages.len() > 2_000);
    if kind == Backend::OfiShm {
        // See `child`: it is to be killed at rest.
        run(&mut [&mut a], "the last message", |nodes| nodes[0].messages.len() as u32 == REST_AFTER);
        std::thread::sleep(Duration::from_millis(300));
    }
    let span = RemoteSpan { key: KEY, offset: 0, len: 8 << 20 };
    a.fabric.read(Rank(1), span, lease(8 << 20), 1).unwrap();
    a.poll();
    child.kill().unwrap();
    child.wait().unwrap();
    run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 1);
    assert_eq!(a.lost[0], (Rank(1), FabricError::Closed(Rank(1))));
    assert!(a.reads.contains_key(&1), "every read ends");
    let left = std::fs::read_dir("/dev/shm").unwrap().flatten();
    let of_child = format!("{}:", child.id());
    assert!(left.into_iter().all(|file| !file.file_name().to_string_lossy().starts_with(&of_child)));
    for (i, (_, bytes)) in a.messages.iter().enumerate() {
        assert!(*bytes == numbered(i as u32), "message {i}");
    }
}

/// The other process of [`a_killed_process`]; ends by itself if nobody kills
/// it, and does nothing in a run of all ignored tests.
fn child(kind: Backend) {
    let Ok(fd) = std::io::stdin().as_fd().try_clone_to_owned() else { return };
    if rustix::net::getpeername(&fd).is_err() {
        return;
    }
    let port = std::env::var("COLLIMATE_TEST_PORT").unwrap().parse().unwrap();
    let lanes: Vec<_> = (0..kind.lanes()).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let link = match kind {
        Backend::Shm => Link::Unix(fd.into()),
        _ if lanes.is_empty() => Link::Tcp(fd.into()),
        _ => Link::Lanes(fd.into(), lanes),
    };
    let mut b = Node::new(kind, 1);
    // Not filled: on a slow machine the other side would not wait for it.
    b.fabric.register(KEY, Arc::new(create_region(8 << 20).unwrap())).unwrap();
    b.fabric.connect(Rank(0), link).unwrap();
    let deadline = Instant::now() + PATIENCE;
    for i in 0.. {
        if !b.lost.is_empty() || Instant::now() > deadline {
            return;
        }
        // The `shm` provider of libfabric 1.17 shares spin locks between
        // processes: killed with one of them, a process stops its partners.
        if kind == Backend::OfiShm && i == REST_AFTER {
            return std::thread::sleep(PATIENCE);
        }
        match b.fabric.send(Rank(0), &[&numbered(i)]) {
            Ok(()) => {}
            Err(FabricError::NotConnected(_)) => return,
            Err(_) => b.send(Rank(0), &numbered(i)),
        }
        b.poll();
    }
}

/// Bytes that no peer would send, each over a raw socket of its own.
fn garbage_is_named_and_harms_nobody(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    let frames: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 64],
        &[1, 0, 1, 0, 1, 0, 0, 0, 9],
        &[31, 0, 0, 0, 2, 0, 0, 0],
        &[0, 0, 0, 0, 9, 0, 0, 0],
        &[16, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
        &[8, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
        &[1, 0, 0, 0, 1, 0, 0, 1, 0],
    ];
    for (i, garbage) in frames.into_iter().enumerate() {
        let rank = Rank(10 + i as u32);
        let (near, mut far) = tcp_pair();
        a.fabric.connect(rank, Link::Tcp(near)).unwrap();
        far.write_all(&[&[2, 0, 0, 0, 1, 0, 0, 0, b'h', b'i'], garbage].concat()).unwrap();
        run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 1);
        let (lost, cause) = a.lost.remove(0);
        assert_eq!(a.counters.get(Counted::BadFrame), i as u64 + 1);
        assert!(lost == rank && matches!(&cause, FabricError::BadFrame(peer, _) if *peer == rank), "{cause}");
        assert!(cause.to_string().contains(&rank.to_string()));
        assert_eq!(a.messages.pop_front(), Some((rank, b"hi".to_vec())), "what came before is delivered");
    }
    // A frame cut in the middle, and one that never ends.
    let (near, mut far) = tcp_pair();
    a.fabric.connect(Rank(30), Link::Tcp(near)).unwrap();
    far.write_all(&[100, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3]).unwrap();
    (0..50).for_each(|_| _ = a.poll());
    far.shutdown(Shutdown::Write).unwrap();
    run(&mut [&mut a], "the loss", |nodes| nodes[0].lost == [(Rank(30), FabricError::Closed(Rank(30)))]);
    b.send(Rank(0), b"unharmed");
    run(&mut [&mut a, &mut b], "a message", |nodes| nodes[0].messages.len() == 1);
}

/// A set-up that is not one.
fn a_wrong_set_up_is_refused(kind: Backend) {
    let mut a = Node::new(kind, 3);
    let (tcp, _other) = tcp_pair();
    assert!(a.fabric.connect(Rank(4), Link::Tcp(tcp)).is_err());
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(&[7; 100]).unwrap();
    let error = a.fabric.connect(Rank(4), Link::Unix(near)).unwrap_err();
    assert!(matches!(error, FabricError::BadFrame(Rank(4), _)), "{error}");
    let (near, far) = UnixStream::pair().unwrap();
    drop(far);
    assert!(a.fabric.connect(Rank(4), Link::Unix(near)).is_err());
    assert_eq!(a.fabric.send(Rank(4), &[b"x"]), Err(FabricError::NotConnected(Rank(4))));
}

macro_rules! conformance {
    ($name:ident, $kind:expr, $($test:ident)*) => {
        mod $name {
            use super::*;
            cases!($kind, $($test)*);

            #[test]
            #[ignore = "the other process of a_killed_process"]
            fn child() {
                super::child($kind);
            }
        }
    };
}

macro_rules! for_all {
    ($name:ident, $kind:expr, $($extra:ident)*) => {
        conformance!($name, $kind, ordered_delivery all_sizes parts_are_joined too_long_is_refused full_and_recovery
            both_directions three_peers reads reads_out_of_range_fail_alone more_reads_than_fit map_where_it_can a_sleeper_is_woken
            close_says_goodbye threads_take_turns armed_by_one_thread_polled_by_another a_drop_amid_a_read a_killed_process $($extra)*);
    };
}

/// The rate of reads of 1 MiB within one host, to be compared with
/// `ib_read_bw -s 1048576` there: as many under way, into registered memory, and
/// nobody polls at the other side.
#[test]
#[ignore = "a measurement"]
fn rdma_bandwidth() {
    const BYTES: usize = 1 << 20;
    let (count, at_once) = (200, usize::from(limits::RDMA_READS_MAX));
    if !Backend::Rdma.is_here() {
        return;
    }
    let (mut a, mut b) = (Node::new(Backend::Rdma, 0), Node::new(Backend::Rdma, 1));
    b.fabric.register(KEY, patterned(BYTES)).unwrap();
    let target = Arc::new(create_region(at_once * BYTES).unwrap());
    a.fabric.register(KEY, target.clone()).unwrap();
    connect(&mut a, &mut b, Backend::Rdma);
    let span = RemoteSpan { key: KEY, offset: 0, len: BYTES as u64 };
    let mut leases: Vec<Lease> = (0..at_once).map(|i| test_lease(&target, i * BYTES..(i + 1) * BYTES)).collect();
    let (start, mut asked, mut done) = (Instant::now(), 0, 0);
    while done < count {
        while asked < count
            && let Some(lease) = leases.pop()
        {
            a.fabric.read(Rank(1), span, lease, asked).unwrap();
            asked += 1;
        }
        a.poll();
        for (_, (lease, result)) in a.reads.drain() {
            assert_eq!(result, Ok(()));
            leases.push(lease);
            done += 1;
        }
        std::thread::yield_now();
    }
    let mib_per_s = count as f64 / start.elapsed().as_secs_f64();
    println!("{count} reads of 1 MiB, {at_once} under way: bandwidth={mib_per_s:.1} MiB/s");
    assert!(leases.iter().all(|lease| lease.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(i))));
}

for_all!(shm, Backend::Shm, a_wrong_set_up_is_refused);
for_all!(rdma, Backend::Rdma,);
for_all!(epoll, Backend::Epoll, garbage_is_named_and_harms_nobody);
for_all!(epoll_lanes, Backend::EpollLanes, garbage_is_named_and_harms_nobody);
for_all!(uring, Backend::Uring, garbage_is_named_and_harms_nobody);
for_all!(uring_lanes, Backend::UringLanes, garbage_is_named_and_harms_nobody);
for_all!(ring_only, Backend::RingOnly, garbage_is_named_and_harms_nobody);
for_all!(without_ring, Backend::Without(Feature::Ring),);
for_all!(without_deferred_work, Backend::Without(Feature::DeferredWork),);
for_all!(without_buffer_rings, Backend::Without(Feature::BufferRings),);
for_all!(without_multishot, Backend::Without(Feature::Multishot),);
for_all!(without_incremental, Backend::Without(Feature::Incremental), garbage_is_named_and_harms_nobody);
for_all!(ofi_tcp, Backend::OfiTcp,);
for_all!(ofi_shm, Backend::OfiShm,);

//! What takes two hosts with RDMA verbs. Ignored in an ordinary run, and started
//! by name and environment, as `scripts/rdma-vm.d/two-hosts` does:
//!
//! - `fabric::conformance::rdma_two_hosts::serve` with `COLLIMATE_TEST_LISTEN`,
//!   an address and port of its host, and `…::call` on the other host with
//!   `COLLIMATE_TEST_CONNECT`, the same: the suite's scenarios across the two.
//! - `…::survive` with `COLLIMATE_TEST_LISTEN` and `COLLIMATE_TEST_MARKER`, and
//!   `…::perish` on the other host with `COLLIMATE_TEST_CONNECT`. When the file
//!   of the marker appears, reads from the other host are under way: that is
//!   the time to take its power away.
//!
//! Either side may start first. Without their variables they do nothing.

use std::io::Read;
use std::net::SocketAddr;

use super::*;

/// What a host reads from the other.
const REGION_BYTES: usize = 6 << 20;

/// How long the other host may take to start.
const START: Duration = Duration::from_secs(60);

/// One of two hosts: they meet on one connection, and connect fabrics on others.
struct Host {
    listener: Option<TcpListener>,
    address: SocketAddr,
    meeting: TcpStream,
}

impl Host {
    /// The side that the environment says, if it says one.
    fn of(variable: &str) -> Option<Host> {
        let address: SocketAddr = std::env::var(variable).ok()?.parse().expect("an address and a port");
        let listener = (variable == "COLLIMATE_TEST_LISTEN").then(|| TcpListener::bind(address).unwrap());
        let meeting = stream(listener.as_ref(), address);
        meeting.set_read_timeout(Some(PATIENCE)).unwrap();
        Some(Host { listener, address, meeting })
    }

    fn calls(&self) -> bool {
        self.listener.is_none()
    }

    fn connect(&self, node: &mut Node, peer: Rank) {
        node.fabric.connect(peer, Link::Tcp(stream(self.listener.as_ref(), self.address))).unwrap();
    }

    /// Waits until the other side is here, too.
    fn meet(&mut self) {
        self.meeting.write_all(&[1]).unwrap();
        self.meeting.read_exact(&mut [0]).expect("the other host goes on");
    }
}

fn stream(listener: Option<&TcpListener>, address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + START;
    loop {
        let tried = match listener {
            Some(listener) => listener.accept().map(|(stream, _)| stream),
            None => TcpStream::connect(address),
        };
        match tried {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "no connection with the other host: {error}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What both hosts do, each its part. The caller is rank 0, the other rank 1.
type Scenario = fn(&mut Host, &mut Node);

const SCENARIOS: [(&str, Scenario); 7] = [
    ("ordered delivery", ordered_delivery),
    ("all sizes", all_sizes),
    ("reads", reads),
    ("out of range", out_of_range),
    ("full and recovery", full_and_recovery),
    ("a sleeper", a_sleeper),
    ("close", close),
];

fn play(mut host: Host) {
    for (name, scenario) in SCENARIOS {
        let (own, peer) = if host.calls() { (0, Rank(1)) } else { (1, Rank(0)) };
        let mut node = Node::new(Backend::Rdma, own);
        node.fabric.register(KEY, patterned(REGION_BYTES)).unwrap();
        host.connect(&mut node, peer);
        scenario(&mut host, &mut node);
        host.meet();
        println!("{name}: ok");
    }
}

fn ordered_delivery(host: &mut Host, node: &mut Node) {
    let count = 5_000;
    if host.calls() {
        (0..count).for_each(|i| node.send(Rank(1), &numbered(i)));
        run(&mut [node], "the answer", |nodes| !nodes[0].messages.is_empty());
        return;
    }
    for i in 0..count {
        run(&mut [node], "the next message", |nodes| !nodes[0].messages.is_empty());
        assert!(node.messages.pop_front().unwrap() == (Rank(0), numbered(i)), "message {i}");
    }
    node.send(Rank(0), b"done");
    node.poll();
}

fn all_sizes(host: &mut Host, node: &mut Node) {
    let max = limits::MESSAGE_BYTES_MAX;
    let edges = [0, 1, 7, 8, 9, 63, 64, 65, 4095, 4096, 4097, 5_000, 32_768, max - 1, max];
    for len in edges.into_iter().chain((0..max).step_by(4_099)) {
        let message: Vec<u8> = (0..len).map(|i| pattern(i + len)).collect();
        if host.calls() {
            node.send(Rank(1), &message);
        }
        run(&mut [node], "a message", |nodes| !nodes[0].messages.is_empty());
        let (from, bytes) = node.messages.pop_front().unwrap();
        assert!(bytes == message, "{len} bytes");
        if !host.calls() {
            node.send(from, &bytes);
        }
    }
    node.poll();
}

fn reads(host: &mut Host, node: &mut Node) {
    let peer = if host.calls() { Rank(1) } else { Rank(0) };
    let len = REGION_BYTES;
    let spans = [(0, 0), (len, 0), (1, 1), (100, 4096), (7, len / 2 + 3), (0, len), (len - 1, 1), (12_345, 700_001)];
    for (token, (offset, bytes)) in spans.into_iter().enumerate() {
        let span = RemoteSpan { key: KEY, offset: offset as u64, len: bytes as u64 };
        node.fabric.read(peer, span, lease(bytes), token as u64).unwrap();
        node.send(peer, b"between");
    }
    run(&mut [node], "the reads", |nodes| nodes[0].reads.len() == spans.len() && nodes[0].messages.len() == spans.len());
    for (token, (offset, _)) in spans.into_iter().enumerate() {
        let (lease, result) = &node.reads[&(token as u64)];
        assert_eq!(*result, Ok(()));
        assert!(lease.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(offset + i)), "read {token}");
    }
}

fn out_of_range(host: &mut Host, node: &mut Node) {
    if !host.calls() {
        return;
    }
    let end = REGION_BYTES as u64;
    let bad = [(KEY, end - 1, 2), (KEY, u64::MAX, 2), (KEY, end + 1, 0), (RegionKey(9), 0, 1)];
    for (token, (key, offset, len)) in bad.into_iter().enumerate() {
        node.fabric.read(Rank(1), RemoteSpan { key, offset, len }, lease(len as usize), token as u64).unwrap();
    }
    node.fabric.read(Rank(1), RemoteSpan { key: KEY, offset: end - 100, len: 100 }, lease(100), 99).unwrap();
    run(&mut [node], "the reads", |nodes| nodes[0].reads.len() == 5);
    for (token, (key, offset, len)) in bad.into_iter().enumerate() {
        let error = FabricError::NoSuchMemory(Rank(1), RemoteSpan { key, offset, len });
        assert_eq!(node.reads[&(token as u64)].1, Err(error));
    }
    assert_eq!(node.reads[&99].1, Ok(()));
    assert!(node.lost.is_empty());
}

fn full_and_recovery(host: &mut Host, node: &mut Node) {
    let message = vec![3; 50_000];
    if !host.calls() {
        // Nothing is received before the caller is full.
        host.meet();
        host.meet();
        run(&mut [node], "the last message", |nodes| nodes[0].messages.back().is_some_and(|(_, b)| b == b"last"));
        node.messages.pop_back();
        for (i, (_, bytes)) in node.messages.iter().enumerate() {
            assert_eq!((&bytes[..8], bytes.len()), (&i.to_le_bytes()[..], 50_008));
        }
        return;
    }
    let mut sent = 0_usize;
    while node.fabric.send(Rank(1), &[&sent.to_le_bytes(), &message]).is_ok() {
        sent += 1;
        assert!(sent < 10_000, "never full");
    }
    host.meet();
    node.poll();
    assert_eq!(node.fabric.send(Rank(1), &[&message]), Err(FabricError::Full(Rank(1))));
    host.meet();
    node.sleep();
    node.send(Rank(1), b"last");
    node.poll();
}

fn a_sleeper(host: &mut Host, node: &mut Node) {
    for i in 0..20 {
        if host.calls() {
            std::thread::sleep(Duration::from_millis(if i % 4 == 0 { 20 } else { 0 }));
            node.send(Rank(1), &numbered(i));
            node.poll();
        }
        while node.messages.len() <= i as usize {
            assert!(node.lost.is_empty(), "{:?}", node.lost);
            if node.poll() == 0 {
                node.sleep();
            }
        }
        if !host.calls() {
            node.send(Rank(0), b"got it");
            node.poll();
        }
    }
}

fn close(host: &mut Host, node: &mut Node) {
    if host.calls() {
        (0..10).for_each(|i| node.send(Rank(1), &numbered(i)));
        node.fabric.close(Rank(1));
        assert_eq!(node.fabric.send(Rank(1), &[b"x"]), Err(FabricError::NotConnected(Rank(1))));
        (0..1_000).for_each(|_| _ = node.poll());
        host.meet();
        assert!(node.lost.is_empty(), "who closes is not told");
        return;
    }
    run(&mut [node], "the end", |nodes| !nodes[0].lost.is_empty());
    assert_eq!(node.lost, [(Rank(0), FabricError::Closed(Rank(0)))]);
    assert_eq!(node.messages.len(), 10, "what was sent before arrives");
    host.meet();
}

#[test]
#[ignore = "one of two hosts"]
fn serve() {
    Host::of("COLLIMATE_TEST_LISTEN").into_iter().for_each(play);
}

#[test]
#[ignore = "one of two hosts"]
fn call() {
    Host::of("COLLIMATE_TEST_CONNECT").into_iter().for_each(play);
}

/// How soon a survivor must know.
const NOTICE_MAX: Duration = Duration::from_secs(2);

/// Rank 0 reads from rank 2 on the other host, which dies, and talks to rank 1
/// on its own. Rank 3, on its own too, is connected to rank 2 and asleep.
#[test]
#[ignore = "the host that survives"]
fn survive() {
    let Ok(marker) = std::env::var("COLLIMATE_TEST_MARKER") else { return };
    let Some(mut host) = Host::of("COLLIMATE_TEST_LISTEN") else { return };
    let (mut node, mut near) = (Node::new(Backend::Rdma, 0), Node::new(Backend::Rdma, 1));
    let own = patterned(REGION_BYTES);
    node.fabric.register(KEY, own.clone()).unwrap();
    near.fabric.register(KEY, patterned(REGION_BYTES)).unwrap();
    connect(&mut node, &mut near, Backend::Rdma);
    host.connect(&mut node, Rank(2));
    let mut sleeper = Node::new(Backend::Rdma, 3);
    host.connect(&mut sleeper, Rank(2));
    host.meet();
    let meeting = host.meeting.try_clone().unwrap();
    let asleep = std::thread::spawn(move || sleep_through(sleeper, meeting));

    let whole = RemoteSpan { key: KEY, offset: 0, len: REGION_BYTES as u64 };
    let (mut asked, mut filled, mut last_sign) = (0, 0, Instant::now());
    let deadline = Instant::now() + PATIENCE;
    while node.lost.is_empty() {
        assert!(Instant::now() < deadline, "the other host was not killed, or nobody notices");
        // Four reads under way at any time, and messages to both.
        while asked < filled + 4 {
            node.fabric.read(Rank(2), whole, lease(REGION_BYTES), asked).unwrap();
            asked += 1;
        }
        for peer in [1, 2] {
            let sent = node.fabric.send(Rank(peer), &[b"from the survivor"]);
            assert!(matches!(sent, Ok(()) | Err(FabricError::Full(_) | FabricError::NotConnected(Rank(2)))), "{sent:?}");
        }
        near.poll();
        node.poll();
        let before = filled;
        while node.reads.get(&filled).is_some_and(|(_, result)| result.is_ok()) {
            node.reads.remove(&filled);
            filled += 1;
        }
        if filled > before || node.messages.drain(..).count() > 0 {
            last_sign = Instant::now();
        }
        if filled == 1 && before == 0 {
            std::fs::write(&marker, "reads are under way").unwrap();
        }
        std::thread::yield_now();
    }
    let silence = last_sign.elapsed();
    println!("busy: lost {silence:?} after the last sign of life, {filled} whole reads: {}", node.lost[0].1);
    assert!(silence < NOTICE_MAX);
    assert!(node.lost.len() == 1 && node.lost[0].0 == Rank(2) && node.lost[0].1.to_string().contains("rank 2"));
    for token in filled..asked {
        let (_, result) = node.reads.remove(&token).expect("every read gave its lease back");
        assert!(result.is_ok() || result == Err(node.lost[0].1.clone()), "{result:?}");
    }
    // Nobody else is harmed: not the own arena, not the other peer.
    let own = test_lease(&own, 0..REGION_BYTES);
    assert!(own.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(i)));
    near.fabric.read(Rank(0), whole, lease(REGION_BYTES), 1).unwrap();
    node.fabric.read(Rank(1), whole, lease(REGION_BYTES), asked).unwrap();
    near.send(Rank(0), b"are you there");
    run(&mut [&mut node, &mut near], "the other peer", |nodes| {
        nodes.iter().all(|node| node.reads.len() == 1) && nodes[0].messages.iter().any(|(peer, _)| *peer == Rank(1))
    });
    for (lease, result) in node.reads.values().chain(near.reads.values()) {
        assert_eq!(*result, Ok(()));
        assert!(lease.bytes().iter().enumerate().all(|(i, byte)| *byte == pattern(i)));
    }
    assert!(near.lost.is_empty() && node.lost.len() == 1);
    asleep.join().unwrap();
}

/// Sends nothing, and sleeps until it hears of a loss. Whether the other host
/// lives is told by its bytes on `meeting`.
fn sleep_through(mut node: Node, mut meeting: TcpStream) {
    let last_sign = Arc::new(Mutex::new(Instant::now()));
    let heard = last_sign.clone();
    meeting.set_read_timeout(None).unwrap();
    // Ends with the process: nothing comes from a host without power.
    std::thread::spawn(move || {
        while meeting.read_exact(&mut [0]).is_ok() {
            *heard.lock().unwrap() = Instant::now();
        }
    });
    let deadline = Instant::now() + PATIENCE;
    while node.lost.is_empty() {
        assert!(Instant::now() < deadline, "the other host was not killed, or the sleeper is not told");
        node.sleep();
        node.poll();
    }
    let silence = last_sign.lock().unwrap().elapsed();
    println!("asleep: lost {silence:?} after the last sign of life: {}", node.lost[0].1);
    assert!(silence < NOTICE_MAX);
}

/// Serves reads and answers messages until its host is no more.
#[test]
#[ignore = "the host that is killed"]
fn perish() {
    let Some(mut host) = Host::of("COLLIMATE_TEST_CONNECT") else { return };
    let mut node = Node::new(Backend::Rdma, 2);
    node.fabric.register(KEY, patterned(REGION_BYTES)).unwrap();
    host.connect(&mut node, Rank(0));
    host.connect(&mut node, Rank(3));
    host.meet();
    let (deadline, mut signed) = (Instant::now() + PATIENCE, Instant::now());
    while node.lost.is_empty() && Instant::now() < deadline {
        if signed.elapsed() > Duration::from_millis(20) {
            host.meeting.write_all(&[1]).unwrap();
            signed = Instant::now();
        }
        node.poll();
        if node.messages.drain(..).count() > 0 {
            let _full_or_lost = node.fabric.send(Rank(0), &[b"from the victim"]);
        }
        std::thread::yield_now();
    }
}

//! What the conformance suite cannot see: strangers at the endpoint, a peer
//! that keeps to no rule, one that stops.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use super::*;
use crate::fabric::conformance::tcp_pair;
use crate::mem::test_lease;
use crate::sys::{OfiAddress, create_region, ofi_available};

const PATIENCE: Duration = Duration::from_secs(30);
const KEY: RegionKey = RegionKey(1);

struct Node {
    fabric: OfiFabric,
    counters: Arc<Counters>,
    messages: VecDeque<Vec<u8>>,
    reads: Vec<(u64, Lease, Result<(), FabricError>)>,
    lost: Vec<(Rank, FabricError)>,
}

impl Node {
    fn new(rank: u32, provider: &str) -> Node {
        let counters = Arc::new(Counters::new());
        let mut fabric = OfiFabric::new(Rank(rank), offer(provider), counters.clone()).unwrap();
        let region = Arc::new(create_region(4 << 20).unwrap());
        test_lease(&region, 0..4 << 20).bytes_mut().fill(7);
        fabric.register(KEY, region).unwrap();
        Node { fabric, counters, messages: VecDeque::new(), reads: Vec::new(), lost: Vec::new() }
    }

    fn poll(&mut self) {
        let (messages, reads, lost) = (&mut self.messages, &mut self.reads, &mut self.lost);
        self.fabric.poll(&mut |event| match event {
            Event::Message { bytes, .. } => messages.push_back(bytes.to_vec()),
            Event::ReadDone { token, lease, result, .. } => reads.push((token, lease, result)),
            Event::Lost { peer, cause } => lost.push((peer, cause)),
        });
    }
}

fn providers() -> impl Iterator<Item = &'static str> {
    ["tcp", "shm"].into_iter().filter(|name| ofi_available(Some(name)).is_ok())
}

fn offer(provider: &str) -> OfiOffer {
    OfiOffer::find(Some(provider), Some(Ipv4Addr::LOCALHOST.into())).unwrap()
}

fn run(nodes: &mut [&mut Node], what: &str, mut done: impl FnMut(&[&mut Node]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(nodes) {
        assert!(Instant::now() < deadline, "waited for ever: {what}");
        nodes.iter_mut().for_each(|node| node.poll());
        std::thread::yield_now();
    }
}

fn connect(a: &mut Node, b: &mut Node) -> [Result<(), FabricError>; 2] {
    let (to_b, to_a) = tcp_pair();
    let (rank_a, rank_b) = (a.fabric.rank, b.fabric.rank);
    std::thread::scope(|scope| {
        let first = scope.spawn(move || a.fabric.connect(rank_b, Link::Tcp(to_b)));
        let second = b.fabric.connect(rank_a, Link::Tcp(to_a));
        [first.join().unwrap(), second]
    })
}

fn pair(provider: &str) -> (Node, Node) {
    let (mut a, mut b) = (Node::new(0, provider), Node::new(1, provider));
    assert_eq!(connect(&mut a, &mut b), [Ok(()), Ok(())]);
    (a, b)
}

/// An endpoint that is nobody's peer, and what it needs to reach `node`.
fn stranger(provider: &str, node: &Node) -> (OfiEndpoint, OfiAddress) {
    let capacity = OfiCapacity { message_bytes_max: 70_000, receives: 16, sends_max: 64 };
    let mut endpoint = OfiEndpoint::open(offer(provider), capacity).unwrap();
    let address = endpoint.insert(&node.fabric.endpoint.address().unwrap()).unwrap();
    (endpoint, address)
}

fn send(endpoint: &mut OfiEndpoint, to: OfiAddress, bytes: &[u8], node: &mut Node) {
    let deadline = Instant::now() + PATIENCE;
    while endpoint.send(to, (0, 0), bytes.len(), std::iter::once(bytes)).unwrap() == OfiPosted::Full {
        assert!(Instant::now() < deadline, "full for ever");
        endpoint.progress(&mut |_| ()).unwrap();
        node.poll();
    }
}

#[test]
fn what_strangers_send_is_counted_and_harms_nobody() {
    for provider in providers() {
        let (mut a, mut b) = pair(provider);
        let (mut endpoint, to) = stranger(provider, &a);
        let cookie = a.fabric.peers.get_mut(Rank(1)).unwrap().cookie_in;
        let mut wrong = vec![
            b"x".to_vec(),
            b"GET / HTTP/1.1\r\nHost: collimate.invalid\r\n\r\n".to_vec(),
            vec![0xff; 60_000],
            frame::header(frame::Kind::Message, Rank(1), cookie ^ 1, 0).to_vec(),
            frame::header(frame::Kind::Greeting, Rank(1), 0, 0).to_vec(),
            frame::header(frame::Kind::Message, Rank(2), cookie, 0).to_vec(),
            frame::header(frame::Kind::Message, Rank(u32::MAX), cookie, 0).to_vec(),
            frame::header(frame::Kind::Message, Rank(1), cookie, 0)[..HEADER - 1].to_vec(),
        ];
        // More than a buffer holds; `shm` of 1.17 would try to for ever.
        if provider == "tcp" {
            wrong.push(vec![0; 69_000]);
        }
        for bytes in &wrong {
            send(&mut endpoint, to, bytes, &mut a);
        }
        run(&mut [&mut a], "the strange frames", |nodes| {
            endpoint.progress(&mut |_| ()).unwrap();
            nodes[0].counters.get(Counted::BadFrame) == wrong.len() as u64
        });
        b.fabric.send(Rank(0), &[b"unharmed"]).unwrap();
        run(&mut [&mut a, &mut b], "a message", |nodes| nodes[0].messages.len() == 1);
        assert!(a.messages[0] == b"unharmed" && a.lost.is_empty() && b.lost.is_empty(), "{provider}");
    }
}

/// With the cookie of a peer, so that it is the peer who broke the rules.
#[test]
fn a_peer_that_numbers_wrongly_is_named_and_the_others_go_on() {
    for provider in providers() {
        let (mut a, mut b) = pair(provider);
        let mut c = Node::new(2, provider);
        assert_eq!(connect(&mut a, &mut c), [Ok(()), Ok(())]);
        b.fabric.send(Rank(0), &[b"first"]).unwrap();
        run(&mut [&mut a, &mut b], "a message", |nodes| nodes[0].messages.len() == 1);
        let (mut endpoint, to) = stranger(provider, &a);
        let cookie = a.fabric.peers.get_mut(Rank(1)).unwrap().cookie_in;
        let again = frame::header(frame::Kind::Message, Rank(1), cookie, 0);
        send(&mut endpoint, to, &again, &mut a);
        run(&mut [&mut a], "the loss", |nodes| {
            endpoint.progress(&mut |_| ()).unwrap();
            nodes[0].lost.len() == 1
        });
        let (rank, cause) = &a.lost[0];
        assert!(*rank == Rank(1) && cause.to_string().contains("message 0 again"), "{cause}");
        assert_eq!(a.counters.get(Counted::BadFrame), 1);
        run(&mut [&mut b], "the other side", |nodes| nodes[0].lost.len() == 1);
        c.fabric.send(Rank(0), &[b"unharmed"]).unwrap();
        run(&mut [&mut a, &mut c], "a message", |nodes| nodes[0].messages.len() == 2);
        // What is far beyond the window is told from what is early.
        let cookie = a.fabric.peers.get_mut(Rank(2)).unwrap().cookie_in;
        send(&mut endpoint, to, &frame::header(frame::Kind::Message, Rank(2), cookie, 1 << 40), &mut a);
        run(&mut [&mut a], "the loss", |nodes| {
            endpoint.progress(&mut |_| ()).unwrap();
            nodes[0].lost.len() == 2
        });
        assert_eq!(a.counters.get(Counted::Overrun), 1);
    }
}

/// Only where the provider looks at keys: `shm` reads as any process of the
/// same user may.
#[test]
fn a_key_that_does_not_exist_opens_nothing() {
    if !providers().any(|name| name == "tcp") {
        return;
    }
    let (mut a, mut b) = pair("tcp");
    let (mut endpoint, to) = stranger("tcp", &a);
    let transfer = endpoint.begin_transfer(Lease::heap(4096), 5).unwrap();
    let right = a.fabric.regions[0].key;
    let wrong = crate::sys::OfiKey { key: right.key ^ 1, base: right.base };
    let deadline = Instant::now() + PATIENCE;
    while endpoint.read(transfer, 0, 4096, to, wrong, 0).unwrap() == OfiPosted::Full {
        assert!(Instant::now() < deadline);
        endpoint.progress(&mut |_| ()).unwrap();
        a.poll();
    }
    let mut ended = None;
    run(&mut [&mut a], "the refusal", |_| {
        endpoint
            .progress(&mut |event| {
                if let OfiEvent::Read(5, _, result) = event {
                    ended = Some(result);
                }
            })
            .unwrap();
        ended.is_some()
    });
    assert!(ended.unwrap().is_err());
    let lease = endpoint.end_transfer(transfer).unwrap();
    assert!(lease.bytes().iter().all(|byte| *byte == 0), "nothing was read");
    b.fabric.send(Rank(0), &[b"unharmed"]).unwrap();
    run(&mut [&mut a, &mut b], "a message", |nodes| nodes[0].messages.len() == 1);
    assert!(a.lost.is_empty());
}

/// It is there and does not poll: as a stopped process, or one in a debugger.
#[test]
fn a_peer_that_takes_nothing_is_given_up_with_its_reads() {
    if !providers().any(|name| name == "tcp") {
        return;
    }
    let [mut a, mut b, mut c] = [0, 1, 2].map(|rank| Node::new(rank, "tcp"));
    a.fabric.silence = Duration::from_secs(1);
    assert_eq!(connect(&mut a, &mut b), [Ok(()), Ok(())]);
    assert_eq!(connect(&mut a, &mut c), [Ok(()), Ok(())]);
    let span = RemoteSpan { key: KEY, offset: 0, len: 4 << 20 };
    a.fabric.read(Rank(1), span, Lease::heap(4 << 20), 9).unwrap();
    while a.fabric.send(Rank(1), &[&[1; 60_000]]).is_ok() {}
    c.fabric.send(Rank(0), &[b"meanwhile"]).unwrap();
    run(&mut [&mut a, &mut c], "the loss", |nodes| nodes[0].lost.len() == 1);
    assert_eq!(a.lost[0], (Rank(1), FabricError::Silent { peer: Rank(1), seconds: 1 }));
    assert_eq!(a.counters.get(Counted::StuckPeer), 1);
    assert!(matches!(&a.reads[..], [(9, lease, Err(FabricError::Silent { .. }))] if lease.range().len() == 4 << 20));
    a.fabric.send(Rank(2), &[b"go on"]).unwrap();
    run(&mut [&mut a, &mut c], "a message", |nodes| nodes[1].messages.len() == 1 && nodes[0].messages.len() == 1);
    // It goes on too late.
    run(&mut [&mut a, &mut b, &mut c], "the other side", |nodes| nodes[1].lost.len() == 1);
}

/// The process was stopped, not its peer, which has done all that it should.
#[test]
fn a_rank_that_was_stopped_itself_blames_nobody() {
    if !providers().any(|name| name == "tcp") {
        return;
    }
    let [mut a, mut b] = [0, 1].map(|rank| Node::new(rank, "tcp"));
    a.fabric.silence = Duration::from_secs(1);
    assert_eq!(connect(&mut a, &mut b), [Ok(()), Ok(())]);
    let span = RemoteSpan { key: KEY, offset: 0, len: 2 << 20 };
    a.fabric.read(Rank(1), span, Lease::heap(2 << 20), 9).unwrap();
    run(&mut [&mut a], "the first parts", |nodes| owes(nodes[0]));
    a.fabric.look();
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_secs(2) {
        b.poll();
        std::thread::sleep(Duration::from_millis(1));
    }
    a.fabric.look();
    run(&mut [&mut a, &mut b], "the read", |nodes| nodes[0].reads.len() == 1);
    assert!(a.reads[0].2.is_ok() && a.lost.is_empty(), "{:?}", a.lost);
}

fn owes(node: &Node) -> bool {
    node.fabric.peers.get(Rank(1)).is_some_and(|peer| peer.reads.are_under_way())
}

/// As an endpoint that has failed says so at every poll.
#[test]
fn an_end_that_is_said_again_comes_no_later() {
    if !providers().any(|name| name == "tcp") {
        return;
    }
    let (mut a, _b) = pair("tcp");
    let span = RemoteSpan { key: KEY, offset: 0, len: 4 << 20 };
    a.fabric.read(Rank(1), span, Lease::heap(4 << 20), 9).unwrap();
    run(&mut [&mut a], "the first parts", |nodes| owes(nodes[0]));
    let deadline = Instant::now() + PATIENCE;
    let mut times = 0;
    while a.lost.is_empty() {
        assert!(Instant::now() < deadline, "no loss");
        times += 1;
        for (rank, peer) in a.fabric.peers.iter_mut() {
            peer.end(FabricError::os(rank, "libfabric", format!("failure {times}")));
        }
        a.fabric.some_end = true;
        a.poll();
    }
    let text = a.lost[0].1.to_string();
    assert!(text.ends_with("failure 1") && a.lost.len() == 1, "{text}");
    assert!(matches!(&a.reads[..], [(9, _, Err(_))]));
}

#[test]
fn a_sleeper_is_not_left_with_work_to_do() {
    for provider in providers() {
        let (mut a, mut b) = pair(provider);
        let span = RemoteSpan { key: KEY, offset: 0, len: 100_000 };
        a.fabric.read(Rank(1), span, Lease::heap(100_000), 9).unwrap();
        assert!(!a.fabric.arm(), "nobody has asked for it yet");
        run(&mut [&mut a], "the request", |nodes| owes(nodes[0]) || !nodes[0].reads.is_empty());
        // The end of the read comes to `arm` and to nobody else.
        let deadline = Instant::now() + PATIENCE;
        let mut was_armed = true;
        while owes(&a) {
            assert!(Instant::now() < deadline, "no end of the read");
            b.poll();
            was_armed = a.fabric.arm();
        }
        assert!(a.reads.len() == 1 || !was_armed, "{provider}: the read has ended and nothing would wake");
        a.poll();
        assert!(matches!(&a.reads[..], [(9, _, Ok(()))]), "{provider}");
    }
}

#[test]
fn a_wrong_set_up_is_refused() {
    let names: Vec<&str> = providers().collect();
    let [first, second] = names[..] else { return };
    let (mut a, mut b) = (Node::new(0, first), Node::new(1, second));
    for error in connect(&mut a, &mut b).map(Result::unwrap_err) {
        let text = error.to_string();
        assert!(text.contains(first) && text.contains(second), "{text}");
    }
    let (near, mut far) = tcp_pair();
    far.write_all(&[7; 100]).unwrap();
    let error = a.fabric.connect(Rank(4), Link::Tcp(near)).unwrap_err();
    assert!(matches!(error, FabricError::BadFrame(Rank(4), _)), "{error}");
    assert_eq!(a.fabric.send(Rank(4), &[b"x"]), Err(FabricError::NotConnected(Rank(4))));
}

//! What a network and a peer can do to a TCP fabric: cuts anywhere, buffers
//! that are full or run out, resets, silence, crowds, and bytes that are wrong.
//! The far side is a plain socket where it is to misbehave.

use std::io::Read;

use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;
use crate::fabric::frame;
use crate::fabric::uring::Buffers;
use crate::fabric::zerocopy::Policy;
use crate::sys::{allow_uncopied, deafen};

/// Short enough to wait for, long enough for a busy machine.
const SILENCE: Duration = Duration::from_secs(2);

/// A node that has less patience than usual.
fn impatient(kind: Backend, rank: u32) -> Node {
    let (at, counters) = (Rank(rank), Arc::new(Counters::new()));
    let hasten = |tuning| Tuning { silence: SILENCE, ..tuning };
    let fabric: Box<dyn Fabric> = match kind.kind() {
        Kind::Epoll => Box::new(EpollFabric::with(at, hasten(EpollFabric::tuning()), counters.clone()).unwrap()),
        _ => {
            let (tuning, features) = (hasten(UringFabric::tuning()), UringFeatures::here());
            Box::new(UringFabric::with_features(at, tuning, features, counters.clone()).unwrap())
        }
    };
    Node::of(fabric, rank, counters)
}

/// Connects a plain socket as that peer.
fn plain_peer(node: &mut Node, rank: u32) -> TcpStream {
    let (near, far) = tcp_pair();
    node.fabric.connect(Rank(rank), Link::Tcp(near)).unwrap();
    far
}

/// The same with further connections; the first of the result is lane 0.
fn plain_peer_with_lanes(node: &mut Node, rank: u32, lanes: usize) -> Vec<TcpStream> {
    let (near, mut far) = tcp_pair();
    let (near_lanes, far_lanes): (Vec<_>, Vec<_>) = (0..lanes).map(|_| tcp_pair()).unzip();
    far.set_nodelay(true).unwrap();
    node.fabric.connect(Rank(rank), Link::Lanes(near, near_lanes)).unwrap();
    far.flush().unwrap();
    std::iter::once(far).chain(far_lanes).collect()
}

/// The smallest socket buffers that the kernel gives.
fn shrink(socket: &TcpStream) {
    sockopt::set_socket_send_buffer_size(socket, 1).unwrap();
    sockopt::set_socket_recv_buffer_size(socket, 1).unwrap();
}

fn tiny_pair() -> (TcpStream, TcpStream) {
    let (near, far) = tcp_pair();
    shrink(&near);
    shrink(&far);
    (near, far)
}

fn message(bytes: &[u8]) -> Vec<u8> {
    [&frame::message_header(bytes.len()), bytes].concat()
}

fn chunk(id: u64, bytes: &[u8]) -> Vec<u8> {
    [&frame::chunk_header(id, bytes.len()), bytes].concat()
}

fn span(offset: u64, len: u64) -> RemoteSpan {
    RemoteSpan { key: KEY, offset, len }
}

fn poll_some(node: &mut Node) {
    (0..20).for_each(|_| _ = node.poll());
}

/// One stream of all kinds of frames, cut in two at every place.
fn cuts_at_every_byte(kind: Backend) {
    let mut a = Node::new(kind, 0);
    let stream = [
        message(b"one"),
        chunk(0, b"0123456"),
        message(b""),
        frame::refusal(1).to_vec(),
        chunk(0, b"789"),
        chunk(2, b""),
        message(&[7; 40]),
    ]
    .concat();
    for cut in 0..stream.len() {
        let rank = cut as u32 + 1;
        let mut far = plain_peer(&mut a, rank);
        far.set_nodelay(true).unwrap();
        for (token, len) in [(0, 10), (1, 5), (2, 0)] {
            a.fabric.read(Rank(rank), span(0, len), lease(len as usize), token).unwrap();
        }
        far.write_all(&stream[..cut]).unwrap();
        poll_some(&mut a);
        far.write_all(&stream[cut..]).unwrap();
        run(&mut [&mut a], "all of it", |nodes| nodes[0].messages.len() == 3 && nodes[0].reads.len() == 3);
        let messages: Vec<_> = a.messages.drain(..).map(|(_, bytes)| bytes).collect();
        assert_eq!(messages, [b"one".to_vec(), vec![], vec![7; 40]], "cut at {cut}");
        assert_eq!(a.reads[&0].0.bytes(), b"0123456789", "cut at {cut}");
        assert_eq!(a.reads[&1].1, Err(FabricError::NoSuchMemory(Rank(rank), span(0, 5))));
        assert_eq!(a.reads[&2].1, Ok(()));
        a.reads.clear();
        a.fabric.close(Rank(rank));
    }
    assert!(a.lost.is_empty());
}

/// Every send is short and nearly every call finds no room.
fn no_room_to_speak_of(kind: Backend) {
    let (mut a, mut b) = (Node::new(kind, 0), Node::new(kind, 1));
    let region = patterned(300_000);
    for node in [&mut a, &mut b] {
        node.fabric.register(KEY, region.clone()).unwrap();
    }
    let (near, far) = tiny_pair();
    let (near_lanes, far_lanes): (Vec<_>, Vec<_>) = (0..kind.lanes()).map(|_| tiny_pair()).unzip();
    a.fabric.connect(Rank(1), Link::Lanes(near, near_lanes)).unwrap();
    b.fabric.connect(Rank(0), Link::Lanes(far, far_lanes)).unwrap();
    // Windows this small move a few KiB in a fifth of a second.
    for token in 0..2 {
        for (node, peer) in [(&mut a, Rank(1)), (&mut b, Rank(0))] {
            node.fabric.read(peer, span(token, 70_000), lease(70_000), token).unwrap();
        }
    }
    let (mut from_a, mut from_b) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    let is_done = |node: &Node| node.messages.len() == 30 && node.reads.len() == 2;
    while !is_done(&a) || !is_done(&b) {
        assert!(Instant::now() < deadline, "{} and {} messages", a.messages.len(), b.messages.len());
        for (node, peer, sent) in [(&mut a, Rank(1), &mut from_a), (&mut b, Rank(0), &mut from_b)] {
            if *sent < 30 && node.fabric.send(peer, &[&numbered(*sent)]).is_ok() {
                *sent += 1;
            }
            node.poll();
        }
    }
    for node in [&a, &b] {
        assert!(node.messages.iter().enumerate().all(|(i, (_, bytes))| *bytes == numbered(i as u32)));
        for (token, (lease, result)) in &node.reads {
            let expected = |(i, byte): (usize, &u8)| *byte == pattern(i + *token as usize);
            assert!(result.is_ok() && lease.bytes().iter().enumerate().all(expected), "read {token}");
        }
    }
}

/// The ring's buffers hold 128 bytes in all.
fn buffers_run_out(incremental: bool) {
    let features = UringFeatures::here();
    if features.suffice().is_err() || (incremental && features.incremental.is_err()) {
        return;
    }
    let counters = Arc::new(Counters::new());
    let buffers = Buffers { count: 2, bytes: 64, incremental };
    // Nothing but the ring receives.
    let tuning = Tuning { active_max: 0, ..UringFabric::tuning() };
    let fabric = UringFabric::with(Rank(0), tuning, buffers, counters.clone()).unwrap();
    let mut a = Node::of(Box::new(fabric), 0, counters);
    let mut peers: Vec<TcpStream> = (1..=5).map(|rank| plain_peer(&mut a, rank)).collect();
    for round in 0..40 {
        for far in &mut peers {
            far.write_all(&message(&numbered(round))).unwrap();
        }
        // Sometimes much has come before the next look.
        if round % 3 == 0 {
            poll_some(&mut a);
        }
    }
    run(&mut [&mut a], "all", |nodes| nodes[0].messages.len() == 200);
    for rank in 1..=5 {
        let from_one = a.messages.iter().filter(|(from, _)| *from == Rank(rank));
        assert!(from_one.enumerate().all(|(round, (_, bytes))| *bytes == numbered(round as u32)));
    }
    // A sleeper is woken although there is no buffer.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            (&peers[0]).write_all(&message(&[1; 1000])).unwrap();
        });
        while a.messages.len() == 200 {
            if a.poll() == 0 {
                a.sleep();
            }
        }
    });
}

#[test]
fn buffers_run_out_and_nothing_is_lost() {
    buffers_run_out(false);
}

#[test]
fn shared_buffers_run_out_and_nothing_is_lost() {
    buffers_run_out(true);
}

fn resets(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    for (rank, amid_read) in [(10, false), (11, true)] {
        let mut far = plain_peer(&mut a, rank);
        (0..50).for_each(|i| far.write_all(&message(&numbered(i))).unwrap());
        poll_some(&mut a);
        let before = a.messages.len();
        a.fabric.read(Rank(rank), span(0, 1000), lease(1000), u64::from(rank)).unwrap();
        if amid_read {
            far.write_all(&chunk(0, &[1; 600])).unwrap();
        } else {
            far.write_all(&message(&[1; 600])[..100]).unwrap();
        }
        a.poll();
        sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
        drop(far);
        // Output meets the reset as input does.
        let _ = a.fabric.send(Rank(rank), &[b"too late"]);
        run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 1);
        assert_eq!(a.lost.pop(), Some((Rank(rank), FabricError::Closed(Rank(rank)))));
        assert_eq!(a.reads[&u64::from(rank)].1, Err(FabricError::Closed(Rank(rank))));
        assert!(before > 0 && a.messages.drain(..).enumerate().all(|(i, (_, bytes))| bytes == numbered(i as u32)));
        b.send(Rank(0), b"unharmed");
        run(&mut [&mut a, &mut b], "a message", |nodes| nodes[0].messages.len() == 1);
        a.messages.clear();
    }
    poll_some(&mut a);
    assert!(a.lost.is_empty(), "a loss is told once");
}

/// Peers whose network is cut: no end comes, no answer, no reset.
fn silence_ends(kind: Backend) {
    let mut a = impatient(kind, 0);
    let (idle, mut amid_read, sent_to) = (plain_peer(&mut a, 1), plain_peer(&mut a, 2), plain_peer(&mut a, 3));
    let mut lively = plain_peer(&mut a, 4);
    a.fabric.read(Rank(2), span(0, 1000), lease(1000), 2).unwrap();
    amid_read.write_all(&chunk(0, &[1; 600])[..300]).unwrap();
    poll_some(&mut a);
    [&idle, &amid_read, &sent_to].into_iter().for_each(deafen);
    let cut = Instant::now();
    a.send(Rank(3), b"into the void");
    a.fabric.read(Rank(3), span(0, 1), lease(1), 3).unwrap();
    run(&mut [&mut a], "three losses", |nodes| nodes[0].lost.len() == 3);
    assert!(cut.elapsed() < 5 * SILENCE, "{:?}", cut.elapsed());
    a.lost.sort_by_key(|(rank, _)| *rank);
    for (i, (rank, cause)) in a.lost.iter().enumerate() {
        let expected = FabricError::Silent { peer: Rank(i as u32 + 1), seconds: SILENCE.as_secs() };
        assert_eq!((rank.0, cause), (i as u32 + 1, &expected));
        assert!(cause.to_string().contains(&rank.to_string()) && cause.to_string().contains("network"));
    }
    assert!(a.reads[&2].1.is_err() && a.reads[&3].1.is_err());
    assert_eq!(a.counters.get(Counted::StuckPeer), 3);
    lively.write_all(&message(b"here")).unwrap();
    run(&mut [&mut a], "a message", |nodes| nodes[0].messages == [(Rank(4), b"here".to_vec())]);
}

/// A peer that takes nothing: its sender is told so, others notice nothing, and
/// in the end it is given up.
fn who_stops_reading_is_given_up(kind: Backend) {
    let mut a = impatient(kind, 0);
    let (near, stuck) = tiny_pair();
    a.fabric.connect(Rank(1), Link::Tcp(near)).unwrap();
    let mut lively = plain_peer(&mut a, 2);
    let stopped = Instant::now();
    let mut accepted = 0;
    let mut fulls = 0;
    while fulls < 100 {
        match a.fabric.send(Rank(1), &[&[1; 10_000]]) {
            Ok(()) => accepted += 10_000,
            Err(error) => {
                assert_eq!(error, FabricError::Full(Rank(1)));
                fulls += 1;
            }
        }
        a.poll();
    }
    assert!(accepted < limits::STREAM_QUEUE_BYTES + 100_000, "{accepted} bytes wait");
    let mut answer = [0; 14];
    while a.lost.is_empty() {
        assert!(stopped.elapsed() < 10 * SILENCE, "a stuck peer stays for ever");
        a.send(Rank(2), b"lively");
        a.poll();
        lively.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[8..], b"lively");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(a.lost, [(Rank(1), FabricError::Silent { peer: Rank(1), seconds: SILENCE.as_secs() })]);
    assert_eq!(a.counters.get(Counted::StuckPeer), 1);
    drop(stuck);
}

/// Many that take nothing at once: what waits for them has a bound, and the
/// others are served.
fn what_waits_in_all_is_bounded(kind: Backend) {
    let mut a = Node::new(kind, 0);
    let stuck = limits::STREAM_QUEUES_BYTES / (limits::STREAM_QUEUE_BYTES - limits::STREAM_QUEUE_RESERVE) + 100;
    let mut far = Vec::new();
    for rank in 1..=stuck as u32 {
        let (near, other) = tiny_pair();
        a.fabric.connect(Rank(rank), Link::Tcp(near)).unwrap();
        far.push(other);
    }
    let mut lively = plain_peer(&mut a, 0xfff);
    let mut accepted = 0;
    let part = vec![1; 60_000];
    for rank in 1..=stuck as u32 {
        while a.fabric.send(Rank(rank), &[&part]).is_ok() {
            accepted += part.len();
        }
    }
    // A kernel that was told to keep little keeps a segment of 64 KiB.
    let in_sockets = 2 * limits::MESSAGE_BYTES_MAX;
    let bound = limits::STREAM_QUEUES_BYTES + stuck * (limits::STREAM_QUEUE_RESERVE + in_sockets);
    assert!(accepted < bound, "{accepted} bytes wait, {bound} may");
    assert!(accepted > limits::STREAM_QUEUES_BYTES, "only {accepted} bytes wait");
    for _ in 0..20 {
        a.send(Rank(0xfff), &part);
        a.poll();
        lively.read_exact(&mut vec![0; 60_008]).unwrap();
    }
    // What a lost peer had waiting is room for others.
    let last = Rank(stuck as u32);
    assert_eq!(a.fabric.send(last, &[&part]), Err(FabricError::Full(last)));
    far.drain(..10);
    run(&mut [&mut a], "the losses", |nodes| nodes[0].lost.len() == 10);
    assert_eq!(a.fabric.send(last, &[&part]), Ok(()));
}

fn a_thousand_connections(kind: Backend) {
    const PEERS: u32 = 1000;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|has| has < 3000) {
        setrlimit(Resource::Nofile, Rlimit { current: maximum.map(|most| most.min(3000)), maximum }).unwrap();
    }
    let mut one = Node::new(kind, 0);
    let _alone = plain_peer(&mut one, 1);
    let idle_one = idle_poll(&mut one);

    let mut a = Node::new(kind, 0);
    let mut far: Vec<TcpStream> = (1..=PEERS).map(|rank| plain_peer(&mut a, rank)).collect();
    poll_some(&mut a);
    let idle_all = idle_poll(&mut a);
    assert!(idle_all < 20 * idle_one, "a poll takes {idle_all:?} with {PEERS} idle peers, {idle_one:?} with one");

    for round in 0..3 {
        for far in &mut far {
            far.write_all(&message(&numbered(round))).unwrap();
        }
        let wanted = PEERS as usize;
        run(&mut [&mut a], "one from each", |nodes| nodes[0].messages.len() == wanted);
        let mut seen: Vec<u32> = a.messages.drain(..).map(|(rank, _)| rank.0).collect();
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(1..=PEERS));
        for rank in 1..=PEERS {
            a.send(Rank(rank), b"and back");
        }
        poll_some(&mut a);
        for far in &mut far {
            let mut back = [0; 16];
            far.read_exact(&mut back).unwrap();
            assert_eq!(&back[8..], b"and back");
        }
    }

    // Ten that never stop talking, and one word from each of the others.
    let babble = message(&[3; 1000]).repeat(20);
    far.iter().for_each(|far| far.set_nonblocking(true).unwrap());
    let (loud, quiet) = far.split_at_mut(10);
    quiet.iter_mut().for_each(|far| far.write_all(&message(b"word")).unwrap());
    run(&mut [&mut a], "the quiet ones", |nodes| {
        for far in loud.iter_mut() {
            let mut rest = &babble[..];
            while !rest.is_empty() {
                match far.write(rest) {
                    Ok(sent) => rest = &rest[sent..],
                    // Cut off within a message, it may not go on with another.
                    Err(_) => break,
                }
            }
            if !rest.len().is_multiple_of(1008) {
                far.set_nonblocking(false).unwrap();
                far.write_all(&rest[..rest.len() % 1008]).unwrap();
                far.set_nonblocking(true).unwrap();
            }
        }
        nodes[0].messages.iter().filter(|(rank, _)| rank.0 > 10).count() == quiet.len()
    });
    assert!(a.lost.is_empty());
}

/// How long a poll takes that finds nothing; the best of some, since the
/// machine is not ours alone.
fn idle_poll(node: &mut Node) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        for _ in 0..200 {
            node.poll();
        }
        best = best.min(start.elapsed() / 200);
    }
    best.max(Duration::from_nanos(100))
}

/// All messages of a turn leave although nobody polls.
fn an_armed_fabric_sends_at_once(kind: Backend) {
    let (mut a, mut b) = pair(kind);
    run(&mut [&mut a, &mut b], "nothing", {
        let mut polls = 0;
        move |_| {
            polls += 1;
            polls > 300
        }
    });
    a.fabric.arm();
    (0..10).for_each(|i| a.fabric.send(Rank(1), &[&numbered(i)]).unwrap());
    run(&mut [&mut b], "all ten", |nodes| nodes[0].messages.len() == 10);
    assert!(b.messages.iter().enumerate().all(|(i, (_, bytes))| *bytes == numbered(i as u32)));
}

/// Reads without end, too many at once, and by ways that there are not.
fn bad_reads_are_refused(kind: Backend) {
    let mut a = Node::new(kind, 0);
    let region = Arc::new(create_region(32 << 20).unwrap());
    a.fabric.register(KEY, region).unwrap();
    let mut lively = plain_peer(&mut a, 9);

    // The connection stays when memory is refused.
    let outside = [(0, 33 << 20), (u64::MAX, 1), (1, u64::MAX), (32 << 20, 1)];
    for (id, (offset, len)) in (0..).zip(outside) {
        lively.write_all(&frame::read_request(id, span(offset, len), 0)).unwrap();
    }
    let unknown = RemoteSpan { key: RegionKey(77), offset: 0, len: 1 };
    lively.write_all(&frame::read_request(4, unknown, 0)).unwrap();
    lively.write_all(&frame::read_request(5, span(7, 3), 0)).unwrap();
    let mut answers = [0; 5 * 16 + 19];
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| lively.read_exact(&mut answers));
        run(&mut [&mut a], "the answers", |_| reading.is_finished());
        reading.join().unwrap().unwrap();
    });
    for id in 0..5 {
        assert_eq!(answers[id * 16..][..16], frame::refusal(id as u64));
    }
    assert_eq!(answers[80..96], frame::chunk_header(5, 3));
    assert_eq!(a.counters.get(Counted::RefusedRead), 5);

    // A peer that asks for more than it may, and takes nothing.
    let mut greedy = plain_peer(&mut a, 1);
    let requests: Vec<u8> = (0..2 * limits::STREAM_READS_MAX as u64)
        .flat_map(|id| frame::read_request(id, span(0, 32 << 20), 0))
        .collect();
    greedy.write_all(&requests).unwrap();
    // One that names a lane that it does not have.
    let mut lost_way = plain_peer(&mut a, 2);
    lost_way.write_all(&frame::read_request(0, span(0, 1), 1)).unwrap();
    // Chunks that nobody asked for, or more of them than were.
    let mut generous = plain_peer(&mut a, 3);
    a.fabric.read(Rank(3), span(0, 10), lease(10), 1).unwrap();
    generous.write_all(&chunk(0, &[0; 11])).unwrap();
    let mut late = plain_peer(&mut a, 4);
    a.fabric.read(Rank(4), span(0, 10), lease(10), 2).unwrap();
    late.write_all(&[chunk(0, &[0; 10]), chunk(0, &[0; 10])].concat()).unwrap();
    let mut wavering = plain_peer(&mut a, 5);
    a.fabric.read(Rank(5), span(0, 10), lease(10), 3).unwrap();
    wavering.write_all(&[&chunk(0, &[0; 5])[..], &frame::refusal(0)].concat()).unwrap();

    run(&mut [&mut a], "the losses", |nodes| nodes[0].lost.len() == 5);
    for (rank, cause) in &a.lost {
        assert!(matches!(cause, FabricError::BadFrame(peer, _) if peer == rank), "{cause}");
    }
    assert_eq!(a.counters.get(Counted::BadFrame), 5);
    assert!(a.reads[&1].1.is_err() && a.reads[&2].1.is_ok() && a.reads[&3].1.is_err());
    lively.write_all(&message(b"unharmed")).unwrap();
    run(&mut [&mut a], "a message", |nodes| nodes[0].messages.len() == 1);
}

/// Messages do not stand behind bulk.
fn messages_pass_bulk(kind: Backend) {
    let (mut a, mut b) = pair_with_region(kind, 64 << 20);
    (0..4).for_each(|token| a.fabric.read(Rank(1), span(0, 64 << 20), lease(64 << 20), token).unwrap());
    let mut answered = 0;
    let deadline = Instant::now() + PATIENCE;
    while a.reads.len() < 4 {
        assert!(Instant::now() < deadline, "the reads take for ever");
        if a.messages.len() == answered {
            a.send(Rank(1), b"question");
        }
        if b.messages.len() > answered {
            answered += 1;
            b.send(Rank(0), b"answer");
        }
        a.poll();
        b.poll();
    }
    // Each takes a few polls, in each of which a lane moves half a megabyte.
    assert!(answered > 20, "{answered} answers during 256 MiB");
    assert!(a.reads.values().all(|(lease, result)| result.is_ok() && lease.bytes()[77] == pattern(77)));
}

/// Bulk is served right however it is sent; over loopback, where the kernel
/// copies it in the end, it says so and the trial ends it.
#[test]
fn bulk_without_a_copy() {
    for (policy, verdict) in [(Policy::Measured, false), (Policy::Always, true), (Policy::Never, false)] {
        let counters = Arc::new(Counters::new());
        let tuning = Tuning { zero_copy: policy, ..EpollFabric::tuning() };
        let mut b = EpollFabric::with(Rank(1), tuning, counters).unwrap();
        let mut a = Node::new(Backend::EpollLanes, 0);
        b.register(KEY, patterned(16 << 20)).unwrap();
        let (near, far) = link_pair(Backend::EpollLanes);
        a.fabric.connect(Rank(1), near).unwrap();
        b.connect(Rank(0), far).unwrap();
        for round in 0..3 {
            for token in 0..6 {
                a.fabric.read(Rank(1), span(token, 15 << 20), lease(15 << 20), token).unwrap();
            }
            run(&mut [&mut a], "the reads", |nodes| {
                b.poll(&mut |event| assert!(matches!(event, Event::Message { .. }), "{event:?}"));
                nodes[0].reads.len() == 6
            });
            for (token, (lease, result)) in a.reads.drain() {
                let expected = |(i, byte): (usize, &u8)| *byte == pattern(i + token as usize);
                let is_right = lease.bytes().iter().enumerate().step_by(1001).all(expected);
                assert!(result.is_ok() && is_right, "{policy:?}, round {round}, read {token}");
            }
        }
        let verdicts = b.streams.zero_copy_verdicts();
        let allowed = sockopt_allows_uncopied();
        assert_eq!(verdicts, [Some(verdict && allowed); 3], "{policy:?}");
        a.send(Rank(1), b"still here");
        let mut heard = false;
        run(&mut [&mut a], "a message", |_| {
            b.poll(&mut |event| heard |= matches!(event, Event::Message { .. }));
            heard
        });
    }
}

fn sockopt_allows_uncopied() -> bool {
    allow_uncopied(tcp_pair().0).is_ok()
}

/// Which lanes reads take, what may come on them, and how they end.
/// The end of a further connection may be seen long before the first one has
/// been read to its own end.
fn what_was_said_before_the_end_arrives(kind: Backend) {
    let mut a = Node::new(kind, 0);
    let mut far = plain_peer_with_lanes(&mut a, 1, 2);
    a.poll();
    let mut first = far.remove(0);
    let said: Vec<u8> = (0..60).flat_map(|i| message(&[i; 40_000])).collect();
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            drop(far);
            std::thread::sleep(Duration::from_millis(50));
            first.write_all(&said).unwrap();
        });
        run(&mut [&mut a], "the end", |nodes| !nodes[0].lost.is_empty());
        writing.join().unwrap();
    });
    assert_eq!(a.lost, [(Rank(1), FabricError::Closed(Rank(1)))]);
    assert!(a.messages.len() == 60 && a.messages.iter().zip(0..).all(|((_, bytes), i)| *bytes == [i; 40_000]));
}

fn lanes_and_their_ends(kind: Backend) {
    let mut a = Node::new(kind, 0);
    let large = limits::LANE_READ_BYTES_MIN;
    let mut far = plain_peer_with_lanes(&mut a, 1, 3);
    for (token, len) in [large, large * 3, large, large, large - 1, large].into_iter().enumerate() {
        a.fabric.read(Rank(1), span(0, len), lease(len as usize), token as u64).unwrap();
    }
    let mut requests = [0; 6 * 40];
    far[0].read_exact(&mut requests).unwrap();
    let lanes: Vec<u8> = requests.chunks(40).map(|request| request[36]).collect();
    assert_eq!(lanes, [1, 2, 3, 1, 0, 3], "the least loaded, and lane 0 for what is short");
    for (lane, id) in [(1, 0), (1, 1), (3, 0), (3, 1)] {
        let bytes = [lane as u8; limits::LANE_READ_BYTES_MIN as usize];
        let mut writer = far[lane].try_clone().unwrap();
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || writer.write_all(&chunk(id, &bytes)));
            run(&mut [&mut a], "the chunk", |_| writing.is_finished());
            writing.join().unwrap().unwrap();
        });
    }
    run(&mut [&mut a], "four reads", |nodes| nodes[0].reads.len() == 4);
    for (token, lane) in [(0, 1), (3, 1), (2, 3), (5, 3)] {
        assert!(a.reads[&token].0.bytes().iter().all(|byte| *byte == lane), "read {token}");
    }
    // One lane ends: so does the peer, once, and its other reads.
    far.remove(2);
    run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 1);
    assert_eq!(a.lost[0], (Rank(1), FabricError::Closed(Rank(1))));
    assert!(a.reads[&1].1.is_err() && a.reads[&4].1.is_err());
    // The other lanes are closed with it.
    far[0].set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(far[1].read(&mut [0; 8]).unwrap(), 0);

    // An idle lane's end is noticed too, asleep or not.
    let mut far = plain_peer_with_lanes(&mut a, 2, 2);
    poll_some(&mut a);
    far.pop();
    run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == 2);
    let mut far = plain_peer_with_lanes(&mut a, 3, 2);
    run(&mut [&mut a], "nothing", {
        let mut polls = 0;
        move |_| {
            polls += 1;
            polls > 300
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(30));
            far.remove(1);
        });
        while a.lost.len() == 2 {
            a.sleep();
            a.poll();
        }
    });

    // Messages and requests have no business there.
    for (rank, bytes) in [(4, message(b"x")), (5, frame::read_request(0, span(0, 1), 0).to_vec()), (6, chunk(9, b"x"))]
    {
        let mut far = plain_peer_with_lanes(&mut a, rank, 1);
        far[1].write_all(&bytes).unwrap();
        run(&mut [&mut a], "the loss", |nodes| nodes[0].lost.len() == rank as usize);
        let (lost, cause) = a.lost.last().unwrap();
        assert!(*lost == Rank(rank) && matches!(cause, FabricError::BadFrame(..)), "{cause}");
    }
    assert_eq!(a.counters.get(Counted::BadFrame), 3);
    poll_some(&mut a);
    assert_eq!(a.lost.len(), 6);
}

macro_rules! robustness {
    ($name:ident, $kind:expr, $($test:ident)*) => {
        mod $name {
            use super::*;
            cases!($kind, $($test)*);
        }
    };
}

robustness!(epoll, Backend::Epoll, cuts_at_every_byte no_room_to_speak_of resets silence_ends
    who_stops_reading_is_given_up what_waits_in_all_is_bounded a_thousand_connections
    an_armed_fabric_sends_at_once bad_reads_are_refused);
robustness!(uring, Backend::Uring, cuts_at_every_byte no_room_to_speak_of resets silence_ends
    who_stops_reading_is_given_up what_waits_in_all_is_bounded a_thousand_connections
    an_armed_fabric_sends_at_once bad_reads_are_refused);
robustness!(ring_only, Backend::RingOnly, cuts_at_every_byte no_room_to_speak_of resets bad_reads_are_refused);
robustness!(epoll_lanes, Backend::EpollLanes, no_room_to_speak_of messages_pass_bulk lanes_and_their_ends
    what_was_said_before_the_end_arrives);
robustness!(uring_lanes, Backend::UringLanes, no_room_to_speak_of messages_pass_bulk lanes_and_their_ends
    what_was_said_before_the_end_arrives);

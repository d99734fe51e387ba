//! What only this backend can be asked: its counted targets, and peers that
//! break its rules. Everything here needs a device and passes without one.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use super::room::Capacity;
use super::*;
use crate::fabric::conformance::tcp_pair;
use crate::mem::test_lease;

const PATIENCE: Duration = Duration::from_secs(60);
const KEY: RegionKey = RegionKey(5);

/// A fabric and what it has reported.
struct Node {
    fabric: RdmaFabric,
    counters: Arc<Counters>,
    messages: Vec<(Rank, Vec<u8>)>,
    reads: Vec<(u64, Result<(), FabricError>)>,
    lost: Vec<(Rank, FabricError)>,
}

impl Node {
    fn new(rank: u32) -> Option<Node> {
        Node::with_peers(rank, 2)
    }

    fn with_peers(rank: u32, peers: u32) -> Option<Node> {
        rdma_available(None, None).ok()?;
        let counters = Arc::new(Counters::new());
        let fabric = RdmaFabric::new(Rank(rank), peers, None, None, counters.clone()).unwrap();
        Some(Node { fabric, counters, messages: Vec::new(), reads: Vec::new(), lost: Vec::new() })
    }

    fn poll(&mut self) {
        let (messages, reads, lost) = (&mut self.messages, &mut self.reads, &mut self.lost);
        self.fabric.poll(&mut |event| match event {
            Event::Message { peer, bytes } => messages.push((peer, bytes.to_vec())),
            Event::ReadDone { token, result, .. } => reads.push((token, result)),
            Event::Lost { peer, cause } => lost.push((peer, cause)),
        });
    }

    fn peer(&mut self, rank: u32) -> &mut Peer {
        let place = *self.fabric.places.get_mut(Rank(rank)).unwrap();
        &mut self.fabric.peers[place]
    }

    fn read(&mut self, from: u32, offset: u64, len: u64, token: u64) {
        let lease = test_lease(&Arc::new(Region::heap(len as usize)), 0..len as usize);
        self.fabric.read(Rank(from), RemoteSpan { key: KEY, offset, len }, lease, token).unwrap();
    }
}

fn run(nodes: &mut [&mut Node], what: &str, mut done: impl FnMut(&[&mut Node]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(nodes) {
        assert!(Instant::now() < deadline, "waited for ever: {what}");
        nodes.iter_mut().for_each(|node| node.poll());
        std::thread::yield_now();
    }
}

fn connect(a: &mut Node, b: &mut Node) {
    let (to_b, to_a) = tcp_pair();
    let (rank_a, rank_b) = (a.fabric.rank, b.fabric.rank);
    std::thread::scope(|scope| {
        scope.spawn(|| a.fabric.connect(rank_b, Link::Tcp(to_b)).unwrap());
        b.fabric.connect(rank_a, Link::Tcp(to_a)).unwrap();
    });
}

/// Three ranks that all know each other; each has a region of 1 MiB.
fn three() -> Option<[Node; 3]> {
    let mut nodes = [Node::new(0)?, Node::new(1)?, Node::new(2)?];
    for node in &mut nodes {
        node.fabric.register(KEY, Arc::new(Region::heap(1 << 20))).unwrap();
    }
    let [a, b, c] = &mut nodes;
    connect(a, b);
    connect(a, c);
    connect(b, c);
    Some(nodes)
}

/// That the first and the last of three still talk.
fn assert_unharmed(a: &mut Node, c: &mut Node) {
    a.fabric.send(Rank(2), &[b"unharmed"]).unwrap();
    a.read(2, 100, 1000, 77);
    run(&mut [a, c], "a message and a read", |nodes| !nodes[1].messages.is_empty() && !nodes[0].reads.is_empty());
    assert_eq!(c.messages, [(Rank(0), b"unharmed".to_vec())]);
    assert_eq!(a.reads, [(77, Ok(()))]);
    assert!(c.lost.is_empty() && a.lost.is_empty());
}

/// The loss of the second of three, as the first and the third see it.
fn lost(nodes: &mut [Node; 3], expected: &str) -> FabricError {
    let [a, b, c] = nodes;
    run(&mut [&mut *a, b, c], "the loss", |nodes| !nodes[0].lost.is_empty());
    let (rank, cause) = a.lost.remove(0);
    assert_eq!(rank, Rank(1));
    assert!(cause.to_string().contains("rank 1") && cause.to_string().contains(expected), "{cause}");
    assert!(a.lost.is_empty());
    assert_unharmed(a, c);
    cause
}

/// The targets for one small message: one work request, at most one completion
/// for 16, and no copy but the one that has to be.
#[test]
fn small_messages_cost_what_they_should() {
    let (Some(mut a), Some(mut b)) = (Node::new(0), Node::new(1)) else { return };
    connect(&mut a, &mut b);
    let message = [7; 64];
    for count in [1, 10] {
        let (a_before, total) = (a.fabric.counts(), 10_000_u64);
        let mut sent = 0;
        while sent < total {
            for _ in 0..count.min(total - sent) {
                match a.fabric.send(Rank(1), &[&message[..20], &message[20..]]) {
                    Ok(()) => sent += 1,
                    Err(error) => assert_eq!(error, FabricError::Full(Rank(1))),
                }
            }
            a.poll();
            b.poll();
        }
        run(&mut [&mut a, &mut b], "all", |nodes| nodes[1].messages.len() == total as usize);
        let after = a.fabric.counts();
        let messages = after.messages_sent - a_before.messages_sent;
        // Heartbeats and room given back are not messages.
        let others = after.heartbeats - a_before.heartbeats;
        let requests = after.work_requests - a_before.work_requests;
        let completions = after.send_completions - a_before.send_completions;
        let doorbells = after.doorbells - a_before.doorbells;
        let moved = after.inlined + after.copied - a_before.inlined - a_before.copied;
        assert_eq!(messages, total);
        assert_eq!(requests - others, messages, "one work request each");
        assert!(completions * 16 <= messages, "{completions} completions");
        assert_eq!(moved, messages, "each is copied once, by the library or by us");
        if count == 1 {
            assert_eq!(after.inlined - a_before.inlined, messages, "by the library alone");
        } else {
            // The first of a turn goes at once, the others together.
            assert!(doorbells * count <= 2 * messages + 4 * count, "{doorbells} calls");
        }
        println!("turns of {count}: {messages} messages, {requests} work requests, {doorbells} post calls, {completions} completions");
        b.messages.clear();
    }
}

#[test]
fn a_frame_that_cannot_be_costs_its_sender_the_connection() {
    let frames: [(&[u8], &str); 7] = [
        (&[], "shorter than its head"),
        (&[1, 0, 0], "shorter than its head"),
        (&[9, 0, 0, 0, 0, 0, 0, 0], "kind 9"),
        (&[1, 0, 0, 0, 5, 0, 0, 0, b'x'], "a frame of 5 bytes in 1"),
        (&[1, 0, 1, 0, 0, 0, 0, 0], "not in use"),
        (&[1, 1, 0, 0, 0, 0, 0, 0], "not in use"),
        (&[2, 0, 0, 0, 0, 0, 0, 0], "too little room"),
    ];
    for (frame, expected) in frames {
        let Some(mut nodes) = three() else { return };
        nodes[1].fabric.send(Rank(0), &[b"before"]).unwrap();
        let pair = &mut nodes[1].peer(0).pair;
        assert!(pair.push_send(frame, &[]));
        pair.flush().unwrap();
        let cause = lost(&mut nodes, expected);
        assert!(matches!(cause, FabricError::BadFrame(Rank(1), _)));
        assert_eq!(nodes[0].messages, [(Rank(1), b"before".to_vec())], "what came before is delivered");
        assert_eq!(nodes[0].counters.get(Counted::BadFrame), 1);
    }
}

#[test]
fn a_message_in_a_wrong_slot_or_too_long_is_refused() {
    for (slot, expected) in [(1, "in slot 1, not 0"), (900, "in slot 900"), (0, "could not be received")] {
        let Some(mut nodes) = three() else { return };
        let peer = nodes[1].peer(0);
        let bytes = vec![0; limits::MESSAGE_BYTES_MAX];
        let head = frame::head(FrameKind::Message, 0, 0, bytes.len());
        let (window, key) = peer.window_of_peer();
        // The last one is no write to a slot but a SEND too long for a buffer.
        if slot == 0 {
            assert!(peer.pair.push_send(&head, &[&bytes]));
        } else {
            let address = window + u64::from(slot % limits::RDMA_SLOTS) * limits::RDMA_SLOT_BYTES as u64;
            assert!(peer.pair.push_write(&head, &[&bytes], address, key, slot));
        }
        peer.pair.flush().unwrap();
        let cause = lost(&mut nodes, expected);
        assert!(matches!(cause, FabricError::BadFrame(Rank(1), _)), "{cause}");
    }
}

#[test]
fn who_sends_beyond_its_credits_is_cut_off() {
    let Some(mut nodes) = three() else { return };
    let mut sent = 0;
    // Nobody polls at the other side, so no room comes back.
    while nodes[1].fabric.send(Rank(0), &[b"x"]).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, limits::RDMA_CREDITS, "an honest sender stops");
    nodes[1].peer(0).forget_credits();
    nodes[1].fabric.send(Rank(0), &[b"one too many"]).unwrap();
    nodes[1].poll();
    let cause = lost(&mut nodes, "beyond the room");
    assert!(matches!(cause, FabricError::BadFrame(Rank(1), _)));
    assert_eq!(nodes[0].messages.len(), limits::RDMA_CREDITS as usize);
    assert_eq!(nodes[0].counters.get(Counted::Overrun), 1);
}

#[test]
fn a_key_that_the_card_refuses_costs_that_connection_only() {
    let Some(mut nodes) = three() else { return };
    nodes[0].peer(1).regions_mut()[0].remote_key ^= 0x5a_5a5a;
    nodes[0].read(1, 0, 1000, 1);
    let [a, b, c] = &mut nodes;
    run(&mut [&mut *a, b, c], "the loss", |nodes| !nodes[0].lost.is_empty() && !nodes[1].lost.is_empty());
    assert_eq!(b.lost[0].0, Rank(0));
    let (rank, cause) = a.lost.remove(0);
    assert!(rank == Rank(1) && cause.to_string().contains("does not let be read"), "{cause}");
    assert_eq!(a.reads.remove(0), (1, Err(cause)), "its read ends first");
    assert_eq!(a.counters.get(Counted::BadFrame), 1);
    assert_unharmed(a, c);
}

/// The same from the other side: a peer asks for memory with a key of its own
/// invention, and does not tell.
#[test]
fn who_asks_for_what_it_may_not_have_is_cut_off() {
    let Some(mut nodes) = three() else { return };
    let [a, b, c] = &mut nodes;
    b.peer(0).regions_mut()[0].remote_key ^= 0x5a_5a5a;
    b.read(0, 0, 1000, 1);
    run(&mut [&mut *a, c], "the loss", |nodes| !nodes[0].lost.is_empty());
    let (rank, cause) = a.lost.remove(0);
    assert!(rank == Rank(1) && matches!(cause, FabricError::BadFrame(Rank(1), _)), "{cause}");
    assert!(cause.to_string().contains("memory that it may not have"), "{cause}");
    assert_eq!(a.counters.get(Counted::RefusedRead), 1);
    assert_unharmed(a, c);
}

/// Slots and leases are used again only when the card is done with them: many
/// peers that end amid their messages and reads leave no trace.
#[test]
fn peers_come_and_go_amid_their_traffic() {
    let Some(mut a) = Node::new(0) else { return };
    let Some(mut c) = Node::new(2) else { return };
    for node in [&mut a, &mut c] {
        node.fabric.register(KEY, Arc::new(Region::heap(1 << 20))).unwrap();
    }
    connect(&mut a, &mut c);
    for round in 0..10 {
        let mut b = Node::new(1).unwrap();
        b.fabric.register(KEY, Arc::new(Region::heap(8 << 20))).unwrap();
        connect(&mut a, &mut b);
        a.read(1, 0, 8 << 20, 1);
        for _ in 0..4 {
            a.fabric.send(Rank(1), &[&vec![1; 60_000]]).unwrap();
            b.fabric.send(Rank(0), &[&vec![2; 60_000]]).unwrap();
        }
        (0..round).for_each(|_| a.poll());
        drop(b);
        run(&mut [&mut a], "the loss", |nodes| !nodes[0].lost.is_empty());
        assert_eq!(a.lost.remove(0), (Rank(1), FabricError::Closed(Rank(1))));
        assert_eq!(a.reads.len(), 1, "the read ended, one way or the other");
        a.reads.clear();
        assert!(a.messages.drain(..).all(|(_, bytes)| bytes == [2; 60_000]));
    }
    assert_eq!(a.fabric.peers.len(), 1);
    assert_unharmed(&mut a, &mut c);
}

#[test]
fn a_set_up_that_is_none_is_refused() {
    let Some(mut a) = Node::new(0) else { return };
    for (bytes, counted) in [(vec![7; 100], 1), (Vec::new(), 1)] {
        let (near, mut far) = tcp_pair();
        far.write_all(&bytes).unwrap();
        drop(far);
        let error = a.fabric.connect(Rank(4), Link::Tcp(near)).unwrap_err();
        assert!(error.to_string().contains("rank 4"), "{error}");
        assert_eq!(a.counters.get(Counted::BadFrame), counted);
        assert_eq!(a.fabric.send(Rank(4), &[b"x"]), Err(FabricError::NotConnected(Rank(4))));
    }
    let mut b = Node::new(1).unwrap();
    connect(&mut a, &mut b);
    b.fabric.send(Rank(0), &[b"hello"]).unwrap();
    run(&mut [&mut a], "a message", |nodes| !nodes[0].messages.is_empty());
}

/// A process that is stopped acknowledges everything, for its card does, and
/// takes nothing.
#[test]
fn a_peer_that_takes_nothing_is_given_up() {
    let Some(mut nodes) = three() else { return };
    let [a, _stopped, c] = &mut nodes;
    while a.fabric.send(Rank(1), &[b"x"]).is_ok() {}
    let beats = limits::PEER_SILENCE_MAX.as_millis() / limits::RDMA_HEARTBEAT.as_millis();
    (0..beats).for_each(|_| a.fabric.beat());
    a.poll();
    assert!(a.lost.is_empty(), "not before its time");
    a.fabric.beat();
    run(&mut [&mut *a, c], "the loss", |nodes| !nodes[0].lost.is_empty());
    let (rank, cause) = a.lost.remove(0);
    assert!(rank == Rank(1) && matches!(cause, FabricError::Silent { peer: Rank(1), .. }), "{cause}");
    assert_eq!(a.counters.get(Counted::StuckPeer), 1);
    assert_unharmed(a, c);
}

/// Room is made for as many peers as there will be, and for no more.
#[test]
fn each_of_many_peers_has_its_room() {
    let Some(mut hub) = Node::with_peers(0, 7) else { return };
    let mut others: Vec<Node> = (1..8).map(|rank| Node::new(rank).unwrap()).collect();
    others.iter_mut().for_each(|other| connect(&mut hub, other));
    let sent: u32 = others
        .iter_mut()
        .map(|other| {
            let sent = (0..1000).take_while(|_| other.fabric.send(Rank(0), &[&[5; 500]]).is_ok()).count();
            other.poll();
            sent as u32
        })
        .sum();
    assert_eq!(sent, 7 * limits::RDMA_CREDITS, "each has its own room");
    run(&mut [&mut hub], "all", |nodes| nodes[0].messages.len() == sent as usize);
    for other in &mut others {
        run(&mut [other], "room", |nodes| nodes[0].fabric.peers.iter().all(|(_, peer)| peer.has_room()));
        other.fabric.send(Rank(0), &[b"more"]).unwrap();
    }
    let mut all: Vec<&mut Node> = others.iter_mut().chain([&mut hub]).collect();
    run(&mut all, "more", |nodes| nodes[7].messages.len() == sent as usize + 7);
    assert!(hub.lost.is_empty());
}

/// Two ranks with unlike room use what both have, and a long message goes
/// through the smallest window.
#[test]
fn who_has_little_room_is_sent_little() {
    let (Some(mut a), Some(mut b)) = (Node::new(0), Node::new(1)) else { return };
    let little = Capacity { receives: 20, completions: 1000, work_requests: 1000, pairs: 10 };
    b.fabric.room = Room::plan(2, &little).unwrap();
    b.fabric.seats.clear();
    connect(&mut a, &mut b);
    for (from, to) in [(0, 1), (1, 0)] {
        let mut nodes = [&mut a, &mut b];
        let sent = (0..1000).take_while(|_| nodes[from].fabric.send(Rank(to), &[b"x"]).is_ok()).count();
        assert_eq!(sent, 4, "half of twenty buffers, but for the spare ones");
        run(&mut nodes, "all", |nodes| nodes[to as usize].messages.len() == 4);
    }
    let long = vec![3; limits::MESSAGE_BYTES_MAX];
    let mut nodes = [&mut a, &mut b];
    for total in 5..50 {
        run(&mut nodes, "room", |nodes| nodes[0].fabric.peers.iter().all(|(_, peer)| peer.has_room()));
        while let Err(full) = nodes[0].fabric.send(Rank(1), &[&long]) {
            assert_eq!(full, FabricError::Full(Rank(1)));
            nodes.iter_mut().for_each(|node| node.poll());
        }
        run(&mut nodes, "a long message", |nodes| nodes[1].messages.len() == total);
        assert_eq!(nodes[1].messages[total - 1].1, long);
    }
    assert!(a.lost.is_empty() && b.lost.is_empty());
}

#[test]
fn more_peers_than_room_was_made_for_are_refused() {
    let Some(mut hub) = Node::with_peers(0, 1) else { return };
    let mut b = Node::new(1).unwrap();
    connect(&mut hub, &mut b);
    let (near, _far) = tcp_pair();
    let error = hub.fabric.connect(Rank(2), Link::Tcp(near)).unwrap_err();
    assert!(error.to_string().contains("rank 2") && error.to_string().contains("room for 1 peers"), "{error}");
    let error = RdmaFabric::new(Rank(0), 1 << 30, None, None, Arc::default()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    hub.fabric.send(Rank(1), &[b"unharmed"]).unwrap();
    run(&mut [&mut b], "a message", |nodes| !nodes[0].messages.is_empty());
}

/// A destination that the card may not have, as with a limit of locked memory.
#[test]
fn a_read_that_cannot_begin_is_reported() {
    let Some([mut a, b, mut c]) = three() else { return };
    let place = *a.fabric.places.get_mut(Rank(1)).unwrap();
    let lease = test_lease(&Arc::new(Region::heap(1000)), 0..1000);
    let span = RemoteSpan { key: KEY, offset: 0, len: 1000 };
    assert!(a.peer(1).read(span, lease, 1).is_ok());
    a.peer(1).ask(1000, |_| Err(io::ErrorKind::OutOfMemory.into())).unwrap();
    a.fabric.ask(place);
    assert!(!a.fabric.arm(), "there is something to report");
    a.poll();
    let (token, result) = a.reads.remove(0);
    assert!(token == 1 && result.unwrap_err().to_string().contains("registering the destination"));
    assert!(!a.fabric.peers[place].is_reading());
    assert_unharmed(&mut a, &mut c);
    drop(b);
}

/// What the card would not let go of: the read is over all the same.
#[test]
fn a_lease_that_is_kept_is_replaced() {
    let Some([mut a, _b, _c]) = three() else { return };
    a.read(1, 0, 1000, 1);
    let mut ended = Vec::new();
    let cause = FabricError::NotConnected(Rank(1));
    a.peer(1).settle_without_leases(&cause, |done| ended.push((done.token, done.lease.range().len(), done.result)));
    assert_eq!(ended, [(1, 1000, Err(cause))]);
}

/// Between short tasks a worker polls and does not sleep.
#[test]
fn an_idle_pair_beats_under_rare_polls() {
    let (Some(mut a), Some(mut b)) = (Node::new(0), Node::new(1)) else { return };
    connect(&mut a, &mut b);
    for _ in 0..600 {
        a.poll();
        std::thread::sleep(Duration::from_millis(3));
    }
    assert!(a.fabric.counts().heartbeats >= 1, "{:?}", a.fabric.counts());
}

#[test]
fn a_refused_registration_says_what_to_do() {
    let refused = explain(io::Error::from_raw_os_error(12), 64 << 20);
    assert!(refused.contains("ulimit -l") && refused.contains("65536 KiB"), "{refused}");
    assert!(!explain(io::Error::from_raw_os_error(22), 1).contains("ulimit"));
}

/// As an ordinary user with a limit of locked memory; root is not limited. Under
/// the first there is no room for a peer, under the second none for a region.
#[test]
fn a_limit_of_locked_memory_is_named() {
    if rdma_available(None, None).is_err() || !rustix::process::geteuid().is_root() {
        return;
    }
    let needed = Room::plan(1, &device::find(None, None).unwrap().capacity()).unwrap().bytes();
    for (limit, needed) in [(64, needed), (needed / 1024 + 512, 1 << 20)] {
        let limited = format!(
            "ulimit -l {limit} && exec \"$0\" --exact fabric::rdma::tests::register_as_nobody --ignored --nocapture"
        );
        let out = std::process::Command::new("sh")
            .args(["-c", &limited, std::env::current_exe().unwrap().to_str().unwrap()])
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        // Where nobody may not even run this program, there is nothing to see.
        if out.status.code() == Some(126) {
            return;
        }
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains(&format!("ulimit -l, now {limit} KiB")), "{out:?}");
        assert!(text.contains(&format!("{} KiB are needed", needed.div_ceil(1024))), "{text}");
    }
}

#[test]
#[ignore = "the other process of a_limit_of_locked_memory_is_named"]
fn register_as_nobody() {
    let outcome = RdmaFabric::new(Rank(0), 1, None, None, Arc::new(Counters::new()))
        .and_then(|mut fabric| fabric.register(KEY, Arc::new(Region::heap(1 << 20))));
    outcome.inspect_err(|error| println!("{error}")).unwrap_err();
}

/// An idle connection is alive, and its heartbeats are seen by nobody.
#[test]
fn an_idle_pair_beats_and_stays() {
    let (Some(mut a), Some(mut b)) = (Node::new(0), Node::new(1)) else { return };
    connect(&mut a, &mut b);
    let until = Instant::now() + 4 * limits::RDMA_HEARTBEAT;
    while Instant::now() < until {
        // As a sleeping rank does, which the timer wakes.
        if a.fabric.arm() {
            let fd = a.fabric.wait_fd();
            let timeout = Timespec { tv_sec: 2, tv_nsec: 0 };
            let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)).unwrap(), 1, "the timer wakes a sleeper");
        }
        a.poll();
    }
    assert!(a.fabric.counts().heartbeats >= 2, "{:?}", a.fabric.counts());
    assert!(a.lost.is_empty() && b.lost.is_empty() && b.messages.is_empty());
}

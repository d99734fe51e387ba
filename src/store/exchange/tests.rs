//! Two ranks that talk to this one, well and badly.

use super::*;
use crate::base::limits::BULK_SOURCES_MAX;
use crate::base::rng::Rng;
use crate::store::ChunkRead;

const ME: Rank = Rank(0);
const A: Rank = Rank(1);
const B: Rank = Rank(2);
const LEN: u64 = 4 << 20;

/// Memory that lends object 7 to rank 1 and has a complete copy of another one's
/// object 8.
#[derive(Default)]
struct Plain {
    pinned: Vec<CopyId>,
}

impl Memory for Plain {
    fn lent(&self, object: u64, borrower: Rank) -> Option<(Rank, u64)> {
        (object == 7 && borrower == A).then_some((ME, LEN))
    }

    fn pin(&mut self, copy: CopyId) -> Option<(u64, u64)> {
        (copy.object == 8).then(|| self.pinned.push(copy)).map(|()| (64, LEN))
    }

    fn unpin(&mut self, copy: CopyId) {
        self.pinned.retain(|pinned| *pinned != copy);
    }
}

fn copy(lender: Rank, object: u64) -> CopyId {
    CopyId { lender, object }
}

fn actions(exchange: &mut Exchange, now_ns: u64) -> Vec<Action> {
    std::iter::from_fn(|| exchange.next(now_ns)).collect()
}

fn messages(exchange: &mut Exchange) -> Vec<(Rank, BulkBody)> {
    let only_messages = |action| match action {
        Action::Send(to, message) => Some((to, message.what)),
        _ => None,
    };
    actions(exchange, 0).into_iter().filter_map(only_messages).collect()
}

fn reads(exchange: &mut Exchange, now_ns: u64) -> Vec<(usize, Rank, ChunkRead)> {
    let mut reads = Vec::new();
    while let Some(action) = exchange.next(now_ns) {
        if let Action::Read { token, rank, read, arrival } = action {
            if reads.is_empty() {
                exchange.placed(arrival, 1 << 30);
            }
            reads.push((token, rank, read));
        }
    }
    reads
}

fn wanted(lender: Rank) -> Wanted {
    Wanted { copy: copy(lender, 5), owner: lender, from: 0, len: LEN, shared: false }
}

#[test]
fn what_a_peer_cannot_say_is_refused_and_changes_nothing() {
    let mut exchange = Exchange::new(ME);
    let mut memory = Plain::default();
    exchange.start(wanted(A));
    assert_eq!(messages(&mut exchange), [(A, BulkBody::Locate { gone: None, group: ME })]);
    let locate = BulkBody::Locate { gone: None, group: A };
    let holding = |offset, first, words| BulkBody::Holding { number: 0, offset, first, words };
    exchange
        .receive(A, Bulk { copy: copy(A, 5), what: BulkBody::Sources { primaries: 1, ranks: vec![B, A] } }, &mut memory)
        .unwrap();
    assert_eq!(messages(&mut exchange), [(B, BulkBody::Subscribe { number: 0, in_place: false })]);
    for (from, about, what) in [
        (A, copy(ME, 9), locate.clone()),
        (B, copy(ME, 7), locate.clone()),
        (A, copy(B, 7), locate),
        (A, copy(B, 7), BulkBody::Arrived { complete: true }),
        (B, copy(A, 5), BulkBody::Sources { primaries: 1, ranks: vec![B] }),
        (A, copy(A, 5), BulkBody::Sources { primaries: 1, ranks: vec![ME] }),
        (B, copy(A, 5), holding(1, 0, vec![1])),
        (B, copy(A, 5), holding(0, 0, vec![1 << 63])),
        (B, copy(A, 5), holding(0, 9, vec![1])),
    ] {
        let before = format!("{exchange:?}");
        let refused = exchange.receive(from, Bulk { copy: about, what: what.clone() }, &mut memory);
        assert!(refused.is_err(), "{what:?} from {from}");
        assert_eq!(format!("{exchange:?}"), before, "{what:?} from {from}");
    }
    // A second subscription with a number that is in use.
    let subscribe = Bulk { copy: copy(B, 8), what: BulkBody::Subscribe { number: 3, in_place: false } };
    exchange.receive(A, subscribe.clone(), &mut memory).unwrap();
    assert!(exchange.receive(A, subscribe, &mut memory).is_err());
    assert_eq!(memory.pinned.len(), 1);
}

#[test]
fn what_is_late_is_ignored() {
    let mut exchange = Exchange::new(ME);
    let mut memory = Plain::default();
    for (from, about, what) in [
        (A, copy(A, 5), BulkBody::Sources { primaries: 1, ranks: vec![B; BULK_SOURCES_MAX] }),
        (A, copy(A, 5), BulkBody::Holding { number: 1, offset: 0, first: 0, words: vec![1] }),
        (A, copy(A, 5), BulkBody::Gone { number: 1 }),
        (A, copy(A, 5), BulkBody::Unsubscribe { number: 1 }),
        (A, copy(ME, 7), BulkBody::Arrived { complete: true }),
    ] {
        assert_eq!(exchange.receive(from, Bulk { copy: about, what }, &mut memory), Ok(()));
    }
    assert!(messages(&mut exchange).is_empty() && exchange.is_idle());
}

#[test]
fn an_earlier_subscription_says_nothing_about_a_later_one() {
    let mut exchange = Exchange::new(ME);
    let mut memory = Plain::default();
    exchange.start(wanted(A));
    let sources = |ranks| Bulk { copy: copy(A, 5), what: BulkBody::Sources { primaries: 1, ranks } };
    let holding = |number, offset| BulkBody::Holding { number, offset, first: 0, words: vec![0xffff] };
    exchange.receive(A, sources(vec![B]), &mut memory).unwrap();
    exchange.receive(B, Bulk { copy: copy(A, 5), what: BulkBody::Gone { number: 0 } }, &mut memory).unwrap();
    exchange.receive(A, sources(vec![B]), &mut memory).unwrap();
    messages(&mut exchange);
    exchange.receive(B, Bulk { copy: copy(A, 5), what: holding(0, 64) }, &mut memory).unwrap();
    assert!(reads(&mut exchange, 0).is_empty(), "that memory may be another object's by now");
    exchange.receive(B, Bulk { copy: copy(A, 5), what: holding(1, 128) }, &mut memory).unwrap();
    assert!(reads(&mut exchange, 0).iter().all(|(_, rank, read)| *rank == B && read.offset % (256 << 10) == 128));
}

#[test]
fn a_pin_ends_with_its_reader() {
    let mut exchange = Exchange::new(ME);
    let mut memory = Plain::default();
    let say = |exchange: &mut Exchange, memory: &mut Plain, from, what| {
        exchange.receive(from, Bulk { copy: copy(B, 8), what }, memory).unwrap();
    };
    for (reader, number) in [(A, 1), (B, 2)] {
        say(&mut exchange, &mut memory, reader, BulkBody::Subscribe { number, in_place: false });
    }
    assert_eq!(memory.pinned.len(), 1, "once for both");
    say(&mut exchange, &mut memory, A, BulkBody::Unsubscribe { number: 1 });
    assert_eq!(memory.pinned.len(), 1);
    exchange.peer_lost(B, "it died", &mut memory);
    assert!(memory.pinned.is_empty() && exchange.serving() == (0, 0));
    // Whoever used it in place may have lent it on.
    say(&mut exchange, &mut memory, A, BulkBody::Subscribe { number: 3, in_place: true });
    exchange.peer_lost(A, "it died", &mut memory);
    assert_eq!(memory.pinned.len(), 1);
}

#[test]
fn a_slow_source_gets_little_and_nothing_at_the_end() {
    let mut exchange = Exchange::new(ME);
    let mut memory = Plain::default();
    let len = 64 << 20;
    exchange.start(Wanted { copy: copy(A, 5), owner: A, from: 0, len, shared: false });
    let sources = Bulk { copy: copy(A, 5), what: BulkBody::Sources { primaries: 2, ranks: vec![B, A] } };
    exchange.receive(A, sources, &mut memory).unwrap();
    let all = BulkBody::Holding { number: 0, offset: 0, first: 0, words: vec![!0; 4] };
    exchange.receive(B, Bulk { copy: copy(A, 5), what: all }, &mut memory).unwrap();
    // A takes 1 us for a chunk, B 20 us.
    let mut under_way: Vec<(u64, usize, Rank)> = Vec::new();
    let (mut now_ns, mut free_ns, mut from_b, mut last_of_b) = (0, [0u64; 2], 0, 0);
    loop {
        for (token, rank, _) in reads(&mut exchange, now_ns) {
            let (which, takes) = if rank == A { (0, 1_000) } else { (1, 20_000) };
            free_ns[which] = free_ns[which].max(now_ns) + takes;
            under_way.push((free_ns[which], token, rank));
        }
        let Some(next) = (0..under_way.len()).min_by_key(|at| under_way[*at].0) else { break };
        let (at_ns, token, rank) = under_way.swap_remove(next);
        now_ns = at_ns;
        if rank == B {
            (from_b, last_of_b) = (from_b + 1, at_ns);
        }
        exchange.read_ended(token, Ok(()), now_ns);
    }
    assert!((2..=20).contains(&from_b), "{from_b} chunks of 256");
    assert!(now_ns < 300_000, "{now_ns} ns, of which B's last chunk {last_of_b}");
}

/// Messages that pass the wire's checks, from peers that mean harm or are
/// confused, between reads that end in any order: nothing panics, no limit is
/// exceeded, and every arrival ends when all peers are gone.
#[test]
fn no_order_of_messages_does_harm() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut exchange = Exchange::new(ME);
        let mut memory = Plain::default();
        exchange.map(Rank(3));
        let (mut under_way, mut in_flight, mut started, mut ended) = (Vec::new(), 0, 0, 0);
        for step in 0..600u64 {
            let some_rank = |rng: &mut Rng| Rank(rng.below(5) as u32);
            let now_ns = step * 20_000_000;
            match rng.below(8) {
                0 if exchange.under_way() < 6 => {
                    let (lender, owner) = (Rank(1 + rng.below(4) as u32), Rank(1 + rng.below(4) as u32));
                    let len = [1000, 100_000, LEN, 40 << 20][rng.below(4)];
                    let copy = copy(lender, 5 + rng.below(4) as u64);
                    if exchange.arriving(copy).is_none() {
                        exchange.start(Wanted { copy, owner, from: 0, len, shared: rng.below(2) == 0 });
                        started += 1;
                    }
                }
                1..3 if !under_way.is_empty() => {
                    let (token, len) = under_way.swap_remove(rng.below(under_way.len()));
                    in_flight -= len;
                    let result = if rng.below(4) > 0 { Ok(()) } else { Err("it failed".to_string()) };
                    exchange.read_ended(token, result, now_ns);
                }
                3 => exchange.check_stalls(now_ns),
                _ => {
                    let copy = copy(some_rank(&mut rng), 5 + rng.below(4) as u64);
                    let number = rng.below(4) as u32;
                    let words = (0..1 + rng.below(3)).map(|_| rng.next_u64() >> rng.below(64)).collect();
                    let ranks: Vec<Rank> = (0..rng.below(4)).map(|_| some_rank(&mut rng)).collect();
                    let what = match rng.below(8) {
                        0 => BulkBody::Locate { gone: Some(some_rank(&mut rng)), group: some_rank(&mut rng) },
                        1 | 2 => BulkBody::Sources { primaries: ranks.len().min(1) as u32, ranks },
                        3 => BulkBody::Arrived { complete: rng.below(2) == 0 },
                        4 => BulkBody::Subscribe { number, in_place: rng.below(3) == 0 },
                        5 => BulkBody::Unsubscribe { number },
                        6 => BulkBody::Holding { number, offset: 64, first: rng.below(3) as u32, words },
                        _ => BulkBody::Gone { number },
                    };
                    let _refused = exchange.receive(Rank(1 + rng.below(4) as u32), Bulk { copy, what }, &mut memory);
                }
            }
            while let Some(action) = exchange.next(now_ns) {
                match action {
                    Action::Read { token, arrival, read, .. } => {
                        exchange.placed(arrival, 1 << 30);
                        under_way.push((token, read.len));
                        in_flight += read.len;
                    }
                    Action::Move { arrival } if rng.below(3) == 0 => exchange.cannot_place(arrival),
                    Action::Move { arrival } => exchange.placed(arrival, 2 << 30),
                    Action::Near { place, .. } => {
                        exchange.left(place);
                        ended += 1;
                    }
                    Action::Done { .. } | Action::Failed { .. } => ended += 1,
                    Action::Send(to, _) => assert_ne!(to, ME),
                }
            }
            assert!(exchange.bytes_in_flight() <= in_flight, "seed {seed}");
        }
        for (token, _) in under_way {
            exchange.read_ended(token, Err("it is gone".into()), u64::MAX);
        }
        for rank in 1..5 {
            exchange.peer_lost(Rank(rank), "it is gone", &mut memory);
        }
        let ends = |action: &Action| !matches!(action, Action::Send(..) | Action::Read { .. } | Action::Move { .. });
        ended += actions(&mut exchange, u64::MAX).iter().filter(|action| ends(action)).count();
        assert_eq!((started, exchange.under_way(), exchange.bytes_in_flight()), (ended, 0, 0), "seed {seed}");
    }
}

//! Two ranks that talk to this one, well and badly.

use super::*;
use crate::base::limits::{BULK_SOURCES_MAX, IN_PLACE_MAX};
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
        match action {
            Action::Read { token, rank, read, .. } => reads.push((token, rank, read)),
            Action::Place { arrival } => exchange.placed(arrival, 1 << 30),
            Action::Move { arrival } => exchange.placed(arrival, 2 << 30),
            _ => (),
        }
    }
    reads
}

fn wanted(lender: Rank) -> Wanted {
    Wanted { copy: copy(lender, 5), owner: lender, from: 0, len: LEN, shared: false }
}

#[test]
fn what_a_peer_cannot_say_is_refused_and_changes_nothing() {
    let mut exchange = Exchange::new(ME, 5);
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
        // Ranks that this job does not have.
        (A, copy(A, 5), BulkBody::Sources { primaries: 1, ranks: vec![Rank(5)] }),
        (A, copy(A, 5), BulkBody::Sources { primaries: 1, ranks: vec![B, Rank(4000)] }),
        (A, copy(ME, 7), BulkBody::Locate { gone: Some(Rank(5)), group: A }),
        (A, copy(ME, 7), BulkBody::Locate { gone: None, group: Rank(5) }),
        // Its last chunks would be beyond all addresses.
        (B, copy(A, 5), holding(u64::MAX - 63, 0, vec![1])),
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
    let mut exchange = Exchange::new(ME, 5);
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
    let mut exchange = Exchange::new(ME, 5);
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
    let mut exchange = Exchange::new(ME, 5);
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
    let mut exchange = Exchange::new(ME, 5);
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

/// Looks at transfers until one that saw nothing for long enough; what was sent.
fn look_for_long(exchange: &mut Exchange) -> Vec<(Rank, BulkBody)> {
    let looks = (0..5).flat_map(|_| {
        exchange.check_stalls();
        messages(exchange)
    });
    looks.collect()
}

fn say(exchange: &mut Exchange, from: Rank, about: CopyId, what: BulkBody) {
    exchange.receive(from, Bulk { copy: about, what }, &mut Plain::default()).unwrap();
}

fn told(exchange: &mut Exchange, lender: Rank, primaries: u32, ranks: &[Rank]) {
    say(exchange, lender, copy(lender, 5), BulkBody::Sources { primaries, ranks: ranks.to_vec() });
}

fn has(number: u32, words: Vec<u64>) -> BulkBody {
    BulkBody::Holding { number, offset: 0, first: 0, words }
}

#[test]
fn whoever_never_answers_is_replaced() {
    let mut exchange = Exchange::new(ME, 5);
    exchange.start(wanted(A));
    told(&mut exchange, A, 1, &[B]);
    messages(&mut exchange);
    let helped = [(A, BulkBody::Locate { gone: Some(B), group: ME })];
    assert_eq!(look_for_long(&mut exchange), helped);
    assert_eq!(look_for_long(&mut exchange), [], "once");
    // It had stopped after it sent all that it had; or waits itself, and says so.
    let mut exchange = Exchange::new(ME, 5);
    exchange.start(wanted(A));
    told(&mut exchange, A, 1, &[B]);
    for _ in 0..4 {
        say(&mut exchange, B, copy(A, 5), has(0, vec![1]));
        for (token, ..) in reads(&mut exchange, 0) {
            exchange.read_ended(token, Ok(()), 0);
        }
        (0..4).for_each(|_| exchange.check_stalls());
        assert_eq!(messages(&mut exchange), []);
    }
    exchange.check_stalls();
    assert_eq!(messages(&mut exchange), helped);
}

#[test]
fn whoever_waits_tells_those_that_wait_for_it() {
    let mut exchange = Exchange::new(ME, 5);
    exchange.start(wanted(A));
    told(&mut exchange, A, 1, &[B]);
    say(&mut exchange, Rank(3), copy(A, 5), BulkBody::Subscribe { number: 9, in_place: false });
    messages(&mut exchange);
    exchange.check_stalls();
    let alive = messages(&mut exchange);
    assert!(matches!(&alive[..], [(Rank(3), BulkBody::Holding { number: 9, .. })]), "{alive:?}");
}

#[test]
fn a_lender_that_does_not_answer_is_not_waited_for() {
    let mut exchange = Exchange::new(ME, 5);
    exchange.start(Wanted { owner: B, ..wanted(A) });
    messages(&mut exchange);
    let mut seen = Vec::new();
    for _ in 0..5 {
        exchange.check_stalls();
        seen = reads(&mut exchange, 0);
    }
    assert!(!seen.is_empty() && seen.iter().all(|(_, rank, _)| *rank == B), "{seen:?}");
    // The one that was to share its copy stops, and the lender is that one.
    let mut exchange = Exchange::new(ME, 5);
    exchange.map(A);
    exchange.start(Wanted { owner: B, ..wanted(A) });
    told(&mut exchange, A, 1, &[A]);
    messages(&mut exchange);
    (0..5).for_each(|_| exchange.check_stalls());
    assert!(reads(&mut exchange, 0).iter().any(|(_, rank, _)| *rank == B));
}

#[test]
fn a_rank_that_sends_nothing_of_one_object_is_not_waited_for_with_another() {
    let mut exchange = Exchange::new(ME, 5);
    let other = Wanted { copy: copy(A, 6), owner: A, len: 64 << 20, ..wanted(A) };
    exchange.start(other);
    say(&mut exchange, A, other.copy, BulkBody::Sources { primaries: 1, ranks: vec![B] });
    say(&mut exchange, B, other.copy, has(0, vec![!0; 4]));
    exchange.start(wanted(A));
    told(&mut exchange, A, 2, &[B, A]);
    // B is the faster one.
    let mut under_way = Vec::new();
    say(&mut exchange, B, copy(A, 5), has(1, vec![0xffff]));
    for round in 0..4u64 {
        under_way.extend(reads(&mut exchange, round * 100));
        for (token, rank, _) in std::mem::take(&mut under_way) {
            exchange.read_ended(token, Ok(()), round * 100 + if rank == B { 1 } else { 99 });
        }
    }
    // From now on B sends nothing.
    let mut now_ns = 1000;
    while exchange.arriving(copy(A, 5)).is_some() && now_ns < 3000 {
        for (token, rank, _) in reads(&mut exchange, now_ns) {
            if rank == A {
                exchange.read_ended(token, Ok(()), now_ns + 99);
            }
        }
        exchange.check_stalls();
        now_ns += 100;
    }
    assert!(exchange.arriving(copy(A, 5)).is_none(), "{exchange:?}");
}

/// An arrival from B, which has stopped, and A, which has not: what is under way
/// from each.
fn half_stalled(exchange: &mut Exchange) -> (Vec<usize>, Vec<usize>) {
    exchange.start(wanted(A));
    told(exchange, A, 2, &[B, A]);
    say(exchange, B, copy(A, 5), has(0, vec![0xffff]));
    let (of_b, mut of_a): (Vec<_>, Vec<_>) = reads(exchange, 0).into_iter().partition(|(_, rank, _)| *rank == B);
    assert!(!of_b.is_empty() && !of_a.is_empty());
    let (token, ..) = of_a.pop().unwrap();
    for _ in 0..4 {
        exchange.check_stalls();
    }
    exchange.read_ended(token, Ok(()), 0);
    let token_of = |(token, _, _): &(usize, Rank, ChunkRead)| *token;
    (of_b.iter().map(token_of).collect(), of_a.iter().map(token_of).collect())
}

#[test]
fn a_stall_costs_nothing_that_is_under_way_from_others() {
    let mut exchange = Exchange::new(ME, 5);
    let (of_b, of_a) = half_stalled(&mut exchange);
    exchange.check_stalls();
    let moves = |exchange: &mut Exchange| actions(exchange, 0).iter().any(|a| matches!(a, Action::Move { .. }));
    assert!(!moves(&mut exchange), "what comes from A would be lost");
    for token in of_a {
        assert!(exchange.read_ended(token, Ok(()), 0).is_some());
    }
    assert!(moves(&mut exchange));
    // Without room nothing is given up: what B sends is welcome.
    let arrival = exchange.arriving(copy(A, 5)).unwrap().0;
    exchange.no_room(arrival);
    assert!(exchange.read_ended(of_b[0], Ok(()), 0).is_some());
    assert!(!actions(&mut exchange, 0).iter().any(|a| matches!(a, Action::Failed { .. })));
    assert!(of_b[1..].iter().all(|token| exchange.read_ended(*token, Ok(()), 0).is_some()));
}

#[test]
fn what_failed_does_not_wait_for_a_rank_that_stopped() {
    let mut exchange = Exchange::new(ME, 5);
    exchange.start(wanted(A));
    told(&mut exchange, A, 1, &[A]);
    let under_way = reads(&mut exchange, 0);
    exchange.cannot_read(under_way[0].0);
    let arrival = exchange.arriving(copy(A, 5)).unwrap().0;
    (0..5).for_each(|_| exchange.check_stalls());
    assert_eq!(actions(&mut exchange, 0), [Action::Move { arrival }]);
    exchange.no_room(arrival);
    exchange.check_stalls();
    assert!(matches!(&actions(&mut exchange, 0)[..], [.., Action::Failed { .. }]));
    assert_eq!(exchange.under_way(), 0);
}

#[test]
fn a_chunk_whose_memory_a_fabric_keeps_is_read_elsewhere() {
    let mut exchange = Exchange::new(ME, 5);
    let arrival = exchange.start(wanted(A));
    told(&mut exchange, A, 1, &[A]);
    let mut under_way = reads(&mut exchange, 0);
    let (refused, _, first) = under_way.remove(0);
    exchange.cannot_read(refused);
    assert_eq!(actions(&mut exchange, 0), [], "others are under way to where it was");
    under_way.iter().for_each(|(token, ..)| assert!(exchange.read_ended(*token, Ok(()), 0).is_some()));
    assert_eq!(actions(&mut exchange, 0), [Action::Move { arrival }]);
    exchange.placed(arrival, 2 << 30);
    let again = reads(&mut exchange, 0);
    assert_eq!((again[0].1, again[0].2), (A, first), "A is as good as before");
}

#[test]
fn an_object_waits_for_memory_that_others_will_give_back() {
    let mut exchange = Exchange::new(ME, 5);
    let short = |object| Wanted { copy: copy(A, object), len: 1000, ..wanted(A) };
    let arrivals: Vec<usize> = (10..13).map(|object| exchange.start(short(object))).collect();
    let places = |exchange: &mut Exchange| {
        let of = |action| if let Action::Place { arrival } = action { Some(arrival) } else { None };
        actions(exchange, 0).into_iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(places(&mut exchange), arrivals);
    exchange.placed(arrivals[0], 0);
    exchange.no_room(arrivals[1]);
    exchange.no_room(arrivals[2]);
    let under_way = reads(&mut exchange, 0);
    assert_eq!(under_way.len(), 1);
    // They come in their turn, and the first one's end is tried at once.
    exchange.read_ended(under_way[0].0, Ok(()), 0);
    assert_eq!(places(&mut exchange), [arrivals[1]]);
    exchange.no_room(arrivals[1]);
    exchange.check_stalls();
    assert_eq!(places(&mut exchange), [arrivals[1]]);
    exchange.placed(arrivals[1], 0);
    let [Action::Place { .. }, Action::Read { token, .. }] = actions(&mut exchange, 0)[..] else { panic!() };
    exchange.no_room(arrivals[2]);
    exchange.read_ended(token, Ok(()), 0);
    // Nobody gives anything back.
    let mut looks = 0;
    while exchange.under_way() > 0 && looks < 1000 {
        places(&mut exchange).into_iter().for_each(|arrival| exchange.no_room(arrival));
        exchange.check_stalls();
        looks += 1;
    }
    assert!((10..100).contains(&looks), "{looks}");
}

#[test]
fn a_broken_copy_is_forgotten_with_its_last_reader() {
    let mut exchange = Exchange::new(ME, 5);
    let mut memory = Plain::default();
    exchange.start(wanted(A));
    say(&mut exchange, B, copy(A, 5), BulkBody::Subscribe { number: 1, in_place: true });
    exchange.peer_lost(A, "it died", &mut memory);
    messages(&mut exchange);
    assert_eq!(exchange.serving().0, 1);
    exchange.peer_lost(B, "it died", &mut memory);
    assert_eq!(exchange.serving().0, 0, "it never had the whole to use");
}

#[test]
fn a_reader_has_one_subscription_to_a_copy_that_it_reads() {
    let mut exchange = Exchange::new(ME, 5);
    let mut memory = Plain::default();
    let subscribe = |number, in_place| Bulk { copy: copy(B, 8), what: BulkBody::Subscribe { number, in_place } };
    for number in 0..100 {
        exchange.receive(A, subscribe(number, false), &mut memory).unwrap();
    }
    let Served { readers, .. } = &exchange.served[&copy(B, 8)];
    assert_eq!(readers.iter().map(|r| r.number).collect::<Vec<_>>(), [99]);
    // In place it may be used often, but not without end.
    for number in 100..200 + IN_PLACE_MAX as u32 {
        exchange.receive(A, subscribe(number, true), &mut memory).unwrap();
    }
    assert_eq!(exchange.served[&copy(B, 8)].readers.len(), IN_PLACE_MAX);
    assert!(messages(&mut exchange).contains(&(A, BulkBody::Gone { number: 199 + IN_PLACE_MAX as u32 })));
}

/// Messages that pass the wire's checks, from peers that mean harm or are
/// confused, between reads that end in any order: nothing panics, no limit is
/// exceeded, and every arrival ends when all peers are gone.
#[test]
fn no_order_of_messages_does_harm() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let mut exchange = Exchange::new(ME, 5);
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
                3 => exchange.check_stalls(),
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
                    Action::Read { token, .. } if rng.below(20) == 0 => exchange.cannot_read(token),
                    Action::Read { token, read, .. } => {
                        under_way.push((token, read.len));
                        in_flight += read.len;
                    }
                    Action::Place { arrival } | Action::Move { arrival } if rng.below(3) == 0 => exchange.no_room(arrival),
                    Action::Place { arrival } => exchange.placed(arrival, 1 << 30),
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

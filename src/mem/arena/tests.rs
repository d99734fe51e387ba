//! The arena's promises: alignment, reuse, exact refusal, no overlap.

use super::*;
use crate::base::rng::Rng;

fn arena(bytes: usize) -> Arena {
    Arena::new(Arc::new(Region::heap(bytes)))
}

#[test]
fn every_object_is_aligned_and_has_its_length() {
    let arena = arena(8 << 20);
    let mut live = Vec::new();
    for len in [0, 1, 8, 63, 64, 65, 500, 4096, SMALL_BYTES_MAX, SMALL_BYTES_MAX + 1, 70_000, 1 << 20] {
        let block = arena.alloc(len).unwrap();
        assert_eq!(block.offset() % OBJECT_ALIGN as u64, 0, "{len}");
        assert!(block.bytes().as_ptr().addr().is_multiple_of(OBJECT_ALIGN), "{len}");
        assert_eq!((block.bytes().len(), block.len()), (len, len));
        live.push(block);
    }
}

#[test]
fn what_was_freed_is_used_next() {
    let arena = arena(8 << 20);
    for len in [8, 3000, 100_000, 3 << 20] {
        let keep = arena.alloc(len).unwrap();
        let first = arena.alloc(len).unwrap();
        let offset = first.offset();
        drop(first.seal());
        assert_eq!(arena.alloc(len).unwrap().offset(), offset, "{len}");
        drop(keep);
    }
}

#[test]
fn a_full_arena_says_so_with_its_sizes_and_works_again() {
    let arena = arena(1 << 20);
    let empty = arena.usage();
    assert_eq!((empty.free, empty.largest_free), (1 << 20, 1 << 20));
    let mut blocks: Vec<Block> = (0..16).map(|_| arena.alloc(1 << 16).unwrap()).collect();
    let none = StoreFull { asked: 1, free: 0, largest_free: 0, capacity: 1 << 20 };
    assert_eq!(arena.alloc(1).unwrap_err(), none);
    blocks.remove(3);
    blocks.remove(7);
    let parts = StoreFull { asked: 65_537, free: 2 << 16, largest_free: 1 << 16, capacity: 1 << 20 };
    let error = arena.alloc(65_537).unwrap_err();
    assert_eq!(error, parts);
    let text = error.to_string();
    for word in ["65537", "131072", "65536", "1048576", "COLLIMATE_STORE"] {
        assert!(text.contains(word), "{text}");
    }
    drop(blocks);
    assert_eq!(arena.usage(), empty);
    assert_eq!(arena.alloc(1 << 20).unwrap().len(), 1 << 20);
    assert!(arena.alloc(usize::MAX).is_err());
}

#[test]
fn the_last_byte_can_be_a_small_object() {
    let arena = arena(1 << 20);
    let mut small = Vec::new();
    while let Ok(sealed) = arena.put(&[1; 64]) {
        small.push(sealed);
    }
    assert_eq!(small.len(), (1 << 20) / 64);
    drop(small);
    let large = arena.alloc((1 << 20) - 128).unwrap();
    let (one, other) = (arena.put(b"a").unwrap(), arena.put(b"b").unwrap());
    assert!(arena.put(b"c").is_err());
    drop((large, one, other));
    assert_eq!(arena.alloc(1 << 20).unwrap().len(), 1 << 20);
}

#[test]
fn a_small_object_finds_room_in_a_larger_class() {
    let arena = arena(1 << 20);
    let large = arena.put(&[1; 8000]).unwrap();
    let rest = arena.alloc(arena.usage().largest_free as usize).unwrap();
    assert_eq!(arena.usage().largest_free, 0);
    let small: Vec<Sealed> = std::iter::from_fn(|| arena.put(&[2; 10]).ok()).collect();
    assert_eq!(small.len(), 7, "the blocks of the slab that has the first object");
    assert!(large.iter().all(|b| *b == 1) && small.iter().all(|s| **s == [2; 10]));
    drop((large, small, rest));
    assert_eq!(arena.alloc(1 << 20).unwrap().len(), 1 << 20);
}

#[test]
fn fresh_memory_is_populated_once() {
    static BYTES: AtomicUsize = AtomicUsize::new(0);
    let region = Arc::new(Region::heap(16 << 20));
    let arena = Arena::with_populate(region, |bytes| {
        BYTES.fetch_add(bytes.len(), Ordering::Relaxed);
    });
    let bytes: Vec<u8> = (0..5_000_000u32).map(|i| i as u8).collect();
    for _ in 0..3 {
        assert_eq!(*arena.put(&bytes).unwrap(), bytes[..]);
    }
    assert_eq!(BYTES.load(Ordering::Relaxed), bytes.len());
    let mut block = arena.alloc(6_000_000).unwrap();
    block.write(1_000_000, &bytes);
    assert_eq!(block.bytes()[1_000_000..], bytes[..]);
    assert_eq!(BYTES.load(Ordering::Relaxed), 6_000_000_usize.next_multiple_of(64));
}

#[test]
fn a_lease_carries_the_block() {
    let arena = arena(1 << 20);
    let free = arena.usage().free;
    let mut lease = arena.alloc(100_000).unwrap().into_lease();
    lease.bytes_mut().fill(9);
    let sealed = Block::from_lease(lease).unwrap().seal();
    assert!(sealed.len() == 100_000 && sealed.iter().all(|b| *b == 9));
    drop(sealed);
    drop(arena.alloc(100_000).unwrap().into_lease());
    assert_eq!(arena.usage().free, free);
    // SAFETY: nothing else uses this region.
    let other = unsafe { Lease::new(Arc::new(Region::heap(64)), 0..64) }.unwrap();
    assert_eq!(Block::from_lease(other).unwrap_err().range(), 0..64);
}

#[test]
fn objects_outlive_the_arena() {
    let sealed = arena(1 << 20).put(b"still here").unwrap();
    assert_eq!(&*sealed, b"still here");
}

/// Every live object holds its own number in every byte, so that two that
/// overlap cannot both be intact.
fn stress(arena: &Arena, seed: u64, rounds: usize) {
    let mut rng = Rng::new(seed);
    let mut live: Vec<(Sealed, u8)> = Vec::new();
    for round in 0..rounds {
        if rng.below(9) < 5 {
            let len = match rng.below(8) {
                0 => rng.below(200_000),
                1..=2 => rng.below(20_000),
                _ => rng.below(600),
            };
            let mark = (seed as u8).wrapping_mul(31).wrapping_add(round as u8);
            match arena.alloc(len) {
                Ok(mut block) => {
                    block.bytes_mut().fill(mark);
                    live.push((block.seal(), mark));
                }
                Err(full) => {
                    assert!(full.largest_free <= full.free && full.free <= full.capacity, "{full}");
                    live.truncate(live.len() / 2);
                }
            }
        } else if !live.is_empty() {
            let (sealed, mark) = live.swap_remove(rng.below(live.len()));
            assert!(sealed.iter().all(|b| *b == mark), "seed {seed}, round {round}");
        }
    }
    for (sealed, mark) in live {
        assert!(sealed.iter().all(|b| *b == mark), "seed {seed}");
    }
}

#[test]
fn objects_never_overlap() {
    for seed in 0..20 {
        let arena = arena(2 << 20);
        stress(&arena, seed, 1000);
        assert_eq!(arena.usage().free, 2 << 20);
        assert_eq!(arena.alloc(2 << 20).unwrap().len(), 2 << 20, "seed {seed}: memory was lost to fragments");
    }
}

#[test]
fn threads_share_an_arena() {
    let arena = arena(16 << 20);
    let (sender, receiver) = std::sync::mpsc::channel::<(Sealed, u8)>();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (arena, sender) = (&arena, sender.clone());
            scope.spawn(move || {
                for turn in 0..20 {
                    stress(arena, 1000 + thread * 100 + turn, 100);
                    let mark = (thread * 20 + turn) as u8;
                    let len = if turn % 2 == 0 { 300 } else { 30_000 };
                    let sealed = arena.put(&vec![mark; len]).expect("the arena has room");
                    sender.send((sealed, mark)).expect("the receiver waits");
                }
            });
        }
        drop(sender);
        let received = receiver.iter().filter(|(s, mark)| s.iter().all(|b| b == mark)).count();
        assert_eq!(received, 80);
    });
    assert_eq!(arena.usage().free, 16 << 20);
    assert_eq!(arena.alloc(16 << 20).unwrap().len(), 16 << 20);
}

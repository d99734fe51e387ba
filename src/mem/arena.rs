//! A rank's own object memory: hands out parts of one region to be filled and
//! sealed, and takes each back when its last reader is done.
//!
//! Up to 8 KiB a block comes from a slab of its size class, out of one of a
//! few shards, each behind a lock that its threads rarely share; larger blocks
//! and the slabs themselves come from the extents, behind one more lock. Locks
//! are taken in the order shard, extents. All book-keeping is in ordinary
//! memory, so that no peer can read or harm it.
//!
//! Deliberately absent: giving memory back to the operating system. A page's
//! first touch costs more than copying it, so memory is used again instead,
//! and what was used before goes first.

use std::fmt;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use super::copy::copy;
use super::extents::{Extents, Taken};
use super::slab::{Class, SLAB_BYTES, SMALL_BYTES_MAX, SlabId, Slabs};
use super::{Lease, Region};
use crate::base::limits::OBJECT_ALIGN;

/// Makes pages resident before they are written, which costs less than a
/// fault for each; must leave the bytes as they are.
pub type Populate = fn(&mut [u8]);

/// The allocator over one region, for one rank. A clone is another handle to
/// the same memory.
#[derive(Clone)]
pub struct Arena {
    shards: Arc<[Arc<Shard>]>,
}

/// The arena has no room for an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreFull {
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes free, in parts.
    pub free: u64,
    /// Bytes of the longest free part.
    pub largest_free: u64,
    /// Bytes of the whole arena.
    pub capacity: u64,
}

impl fmt::Display for StoreFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoreFull { asked, free, largest_free, capacity } = self;
        write!(
            f,
            "the object store is full: {asked} bytes asked for, {free} of {capacity} bytes free, \
             {largest_free} of them in one piece; raise COLLIMATE_STORE or drop refs that are no longer needed"
        )
    }
}

impl std::error::Error for StoreFull {}

/// How full an arena is. Exact when no other thread uses it meanwhile.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Bytes of the whole arena.
    pub capacity: u64,
    /// Bytes free, in parts.
    pub free: u64,
    /// Bytes of the longest part that is in no slab.
    pub largest_free: u64,
}

impl Arena {
    /// An arena over the whole of `region`, which nobody else hands out.
    ///
    /// # Panics
    /// If the region is read-only or does not start at a multiple of 64.
    pub fn new(region: Arc<Region>) -> Arena {
        Arena::with_populate(region, |_| ())
    }

    /// As [`Arena::new`]; `populate` is called before memory that was never
    /// used is written in bulk.
    ///
    /// # Panics
    /// As [`Arena::new`].
    pub fn with_populate(region: Arc<Region>, populate: Populate) -> Arena {
        assert!(region.is_writable(), "an arena over a read-only region");
        assert!(region.base().addr().get().is_multiple_of(OBJECT_ALIGN), "an arena over a region that is not aligned");
        let capacity = region.len() as u64 / OBJECT_ALIGN as u64 * OBJECT_ALIGN as u64;
        let shards = shards_for(capacity);
        let pool = Arc::new(Pool { region, populate, extents: Mutex::new(Extents::new(capacity)) });
        let shard = || Arc::new(Shard { slabs: Mutex::new(Slabs::new()), pool: pool.clone() });
        Arena { shards: std::iter::repeat_with(shard).take(shards).collect() }
    }

    /// The region that the arena hands out.
    pub fn region(&self) -> &Arc<Region> {
        &self.pool().region
    }

    /// `len` bytes at a multiple of 64, to fill and seal. What they hold is
    /// left over from earlier objects.
    pub fn alloc(&self, len: usize) -> Result<Block, StoreFull> {
        let found = if len <= SMALL_BYTES_MAX { self.take_small(Class::of(len)) } else { self.take_large(len) };
        let (grant, fresh) = found.ok_or_else(|| self.full(len))?;
        let offset = grant.offset as usize;
        // SAFETY: the extents and slabs hand out offsets within the region.
        let start = unsafe { self.region().base().add(offset) };
        let fresh = (fresh.start as usize).max(offset) - offset..(fresh.end as usize).saturating_sub(offset).min(len);
        Ok(Block { start, len, fresh, grant })
    }

    /// A sealed copy of `bytes`.
    pub fn put(&self, bytes: &[u8]) -> Result<Sealed, StoreFull> {
        let mut block = self.alloc(bytes.len())?;
        block.write(0, bytes);
        Ok(block.seal())
    }

    /// How full the arena is.
    pub fn usage(&self) -> Usage {
        let in_slabs: u64 = self.shards.iter().map(|shard| lock(&shard.slabs).free()).sum();
        let extents = lock(&self.pool().extents);
        Usage { capacity: extents.capacity(), free: extents.free() + in_slabs, largest_free: extents.largest() }
    }

    fn take_small(&self, class: Class) -> Option<(Grant, Range<u64>)> {
        let small = |shard: &Arc<Shard>, offset, slab| {
            let grant = Grant { shard: shard.clone(), offset, home: Home::Slab(slab) };
            Some((grant, 0..0))
        };
        let (shard, mut slabs) = self.own_shard();
        if let Some((offset, slab)) = slabs.take(class).or_else(|| shard.pool.refill(&mut slabs, class)) {
            return small(shard, offset, slab);
        }
        drop(slabs);
        self.release_empty_slabs();
        for shard in self.shards.iter() {
            let mut slabs = lock(&shard.slabs);
            if let Some((offset, slab)) = slabs.take(class).or_else(|| shard.pool.refill(&mut slabs, class)) {
                return small(shard, offset, slab);
            }
        }
        self.take_extent(class.bytes()).or_else(|| {
            self.shards.iter().find_map(|shard| {
                let (offset, slab) = lock(&shard.slabs).take_larger(class)?;
                small(shard, offset, slab)
            })
        })
    }

    fn take_large(&self, len: usize) -> Option<(Grant, Range<u64>)> {
        let rounded = (len as u64).checked_next_multiple_of(OBJECT_ALIGN as u64)?;
        self.take_extent(rounded).or_else(|| {
            self.release_empty_slabs();
            self.take_extent(rounded)
        })
    }

    fn take_extent(&self, len: u64) -> Option<(Grant, Range<u64>)> {
        let Taken { offset, fresh } = lock(&self.pool().extents).take(len)?;
        let shard = self.shards[own_index() & (self.shards.len() - 1)].clone();
        Some((Grant { shard, offset, home: Home::Extent(len) }, fresh))
    }

    /// The calling thread's shard, or one that is not busy.
    fn own_shard(&self) -> (&Arc<Shard>, MutexGuard<'_, Slabs>) {
        let mask = self.shards.len() - 1;
        let own = own_index();
        for i in 0..=mask {
            let shard = &self.shards[(own + i) & mask];
            match shard.slabs.try_lock() {
                Ok(slabs) => return (shard, slabs),
                Err(TryLockError::Poisoned(slabs)) => return (shard, slabs.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        let shard = &self.shards[own & mask];
        (shard, lock(&shard.slabs))
    }

    fn release_empty_slabs(&self) {
        for shard in self.shards.iter() {
            let mut slabs = lock(&shard.slabs);
            let empty = slabs.release_empty();
            let mut extents = lock(&shard.pool.extents);
            empty.into_iter().for_each(|base| extents.give(base, SLAB_BYTES));
        }
    }

    fn full(&self, asked: usize) -> StoreFull {
        let Usage { capacity, free, largest_free } = self.usage();
        StoreFull { asked: asked as u64, free, largest_free, capacity }
    }

    fn pool(&self) -> &Pool {
        &self.shards[0].pool
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({:?})", self.usage())
    }
}

/// Exclusive memory of an arena, to be filled and sealed. Dropped unsealed, it
/// goes back.
pub struct Block {
    start: NonNull<u8>,
    len: usize,
    /// The part that was never used before, so that its pages may be missing.
    fresh: Range<usize>,
    grant: Grant,
}

// SAFETY: the block has the exclusive right to its bytes, which any thread may
// read and write; the grant's parts are `Send` and `Sync`.
unsafe impl Send for Block {}
// SAFETY: as above; `&Block` only reads.
unsafe impl Sync for Block {}

impl Block {
    /// Bytes asked for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no bytes were asked for.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte's offset in the arena's region.
    pub fn offset(&self) -> u64 {
        self.grant.offset
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start..start + len` lies in the region, which the grant
        // keeps mapped; it was handed out to this block alone, and nobody
        // writes it while `self` is borrowed. Every byte of a region is
        // initialised: by the system, or by an earlier object.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Copies `bytes` to position `at`, in the way that suits their number and
    /// the state of the memory.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let fresh = self.fresh.start.max(at)..self.fresh.end.min(at.saturating_add(bytes.len()));
        let populate = self.grant.shard.pool.populate;
        let to = &mut self.bytes_mut()[at..][..bytes.len()];
        if fresh.len() < POPULATE_BYTES_MIN {
            return copy(to, bytes);
        }
        let mut done = 0;
        for (to, from) in to.chunks_mut(POPULATE_CHUNK_BYTES).zip(bytes.chunks(POPULATE_CHUNK_BYTES)) {
            let missing = (fresh.start - at).max(done)..(fresh.end - at).min(done + to.len());
            if !missing.is_empty() {
                populate(&mut to[missing.start - done..missing.end - done]);
            }
            copy(to, from);
            done += to.len();
        }
    }

    /// Ends writing: from now on the bytes are shared and never change.
    pub fn seal(self) -> Sealed {
        Sealed(Arc::new(SealedBytes { start: self.start, len: self.len, _grant: self.grant }))
    }

    /// The block as a lease, for a fabric to fill; dropping the lease frees
    /// the memory.
    pub fn into_lease(self) -> Lease {
        let region = self.grant.shard.pool.region.clone();
        let start = self.grant.offset as usize;
        // SAFETY: the block had the exclusive right to the range and passes
        // it on, together with the grant that keeps others out.
        let lease = unsafe { Lease::new(region, start..start + self.len) };
        lease.expect("an arena hands out parts of its region").owned_by(Box::new(self.grant))
    }

    /// The block that a lease was made of; any other lease comes back.
    pub fn from_lease(lease: Lease) -> Result<Block, Lease> {
        let (grant, range) = lease.into_owner::<Grant>()?;
        // SAFETY: the range was checked against the region in `into_lease`.
        let start = unsafe { grant.shard.pool.region.base().add(range.start) };
        Ok(Block { start, len: range.len(), fresh: 0..0, grant: *grant })
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes at {})", self.len, self.offset())
    }
}

/// An object in this rank's arena: immutable bytes, shared by reference count,
/// freed when the last clone goes.
#[derive(Clone)]
pub struct Sealed(Arc<SealedBytes>);

struct SealedBytes {
    start: NonNull<u8>,
    len: usize,
    _grant: Grant,
}

// SAFETY: nobody writes the bytes of a sealed block until the grant is
// dropped, so any thread may read them; the grant is `Send`.
unsafe impl Send for SealedBytes {}
// SAFETY: as above; the grant is used only in its drop.
unsafe impl Sync for SealedBytes {}

impl Sealed {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `Block::bytes`; since the seal nobody has the right to
        // write them, and `self` keeps the grant.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }

    /// The first byte's offset in the arena's region.
    pub fn offset(&self) -> u64 {
        self.0._grant.offset
    }

    /// A number that no other object has while this one lives.
    pub(super) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl Deref for Sealed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes at {})", self.len(), self.offset())
    }
}

/// What all shards draw from.
struct Pool {
    region: Arc<Region>,
    populate: Populate,
    extents: Mutex<Extents>,
}

impl Pool {
    /// Adds a slab of `class` and takes its first block.
    fn refill(&self, slabs: &mut Slabs, class: Class) -> Option<(u64, SlabId)> {
        let Taken { offset, fresh } = lock(&self.extents).take_high(SLAB_BYTES)?;
        if !fresh.is_empty() {
            // SAFETY: the slab lies in the region and was just handed out; no
            // block of it is out yet, so this is the only reference into it.
            let slab = unsafe {
                let start = self.region.base().add(offset as usize);
                std::slice::from_raw_parts_mut(start.as_ptr(), SLAB_BYTES as usize)
            };
            (self.populate)(slab);
        }
        slabs.add(class, offset);
        slabs.take(class)
    }
}

/// Small blocks for a few threads. On its own cache lines: blocks count
/// references to their shard.
#[repr(align(128))]
struct Shard {
    slabs: Mutex<Slabs>,
    pool: Arc<Pool>,
}

/// The right to a range; gives it back when dropped.
struct Grant {
    shard: Arc<Shard>,
    offset: u64,
    home: Home,
}

enum Home {
    Slab(SlabId),
    Extent(u64),
}

impl Drop for Grant {
    fn drop(&mut self) {
        let Shard { slabs, pool } = &*self.shard;
        match self.home {
            Home::Slab(slab) => {
                let mut slabs = lock(slabs);
                if let Some(base) = slabs.give(self.offset, slab) {
                    lock(&pool.extents).give(base, SLAB_BYTES);
                }
            }
            Home::Extent(len) => lock(&pool.extents).give(self.offset, len),
        }
    }
}

/// Fresh memory below this is left to page faults.
const POPULATE_BYTES_MIN: usize = 64 * 1024;

/// Fresh memory is made resident this much ahead of the copy, so that the
/// zeroes that the system writes are still in a cache when they are
/// overwritten.
const POPULATE_CHUNK_BYTES: usize = 1 << 20;

const SHARDS_MAX: usize = 8;

/// A power of two, and few enough that slabs that are mostly empty cannot fill
/// a small arena.
fn shards_for(capacity: u64) -> usize {
    let affordable = (capacity / (64 * SLAB_BYTES)).clamp(1, SHARDS_MAX as u64) as usize;
    1 << affordable.ilog2()
}

/// A number per thread, dense from 0.
fn own_index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    OWN.with(|own| *own)
}

/// A panic while the lock was held can only be a broken invariant that was
/// reported then; memory must still be given back while it unwinds.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
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
}

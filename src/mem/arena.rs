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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

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
    /// used is written in bulk. For regions whose pages are not resident yet:
    /// on resident ones it costs time and gains nothing.
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
        self.take(len).ok_or_else(|| self.full(len))
    }

    /// A sealed copy of `bytes`.
    pub fn put(&self, bytes: &[u8]) -> Result<Sealed, StoreFull> {
        let mut block = self.take(bytes.len()).ok_or_else(|| self.full(bytes.len()))?;
        block.write(0, bytes);
        Ok(block.seal())
    }

    /// How full the arena is.
    pub fn usage(&self) -> Usage {
        let in_slabs: u64 = self.shards.iter().map(|shard| lock(&shard.slabs).free()).sum();
        let extents = lock(&self.pool().extents);
        Usage { capacity: extents.capacity(), free: extents.free() + in_slabs, largest_free: extents.largest() }
    }

    /// Inlined into its two callers, so that a block is made in place: moving
    /// it costs as much as finding it.
    #[inline(always)]
    fn take(&self, len: usize) -> Option<Block> {
        if len > SMALL_BYTES_MAX {
            return self.take_large(len);
        }
        let class = Class::of(len);
        let (shard, mut slabs) = self.own_shard();
        let Some((offset, slab)) = slabs.take(class) else {
            drop(slabs);
            return self.take_small_slowly(class, len);
        };
        drop(slabs);
        Some(Block::new(Grant { shard: shard.clone(), offset, home: Home::Slab(slab) }, len, 0..0))
    }

    /// With a new slab, else with what other shards and larger classes have,
    /// else with an extent.
    #[cold]
    fn take_small_slowly(&self, class: Class, len: usize) -> Option<Block> {
        let block = |shard: &Arc<Shard>, (offset, slab)| {
            Block::new(Grant { shard: shard.clone(), offset, home: Home::Slab(slab) }, len, 0..0)
        };
        let (shard, mut slabs) = self.own_shard();
        if let Some(found) = shard.pool.refill(&mut slabs, class) {
            return Some(block(shard, found));
        }
        drop(slabs);
        self.release_empty_slabs();
        let class_of_any_shard = self.shards.iter().find_map(|shard| {
            let mut slabs = lock(&shard.slabs);
            let found = slabs.take(class).or_else(|| shard.pool.refill(&mut slabs, class))?;
            Some(block(shard, found))
        });
        let larger = || {
            self.shards.iter().find_map(|shard| {
                let found = lock(&shard.slabs).take_larger(class)?;
                Some(block(shard, found))
            })
        };
        class_of_any_shard.or_else(|| self.take_extent(class.bytes(), len)).or_else(larger)
    }

    fn take_large(&self, len: usize) -> Option<Block> {
        let rounded = (len as u64).checked_next_multiple_of(OBJECT_ALIGN as u64)?;
        self.take_extent(rounded, len).or_else(|| {
            self.release_empty_slabs();
            self.take_extent(rounded, len)
        })
    }

    fn take_extent(&self, bytes: u64, len: usize) -> Option<Block> {
        let units = u32::try_from(bytes / OBJECT_ALIGN as u64).ok()?;
        let Taken { offset, fresh } = lock(&self.pool().extents).take(bytes)?;
        let shard = self.shards[own_index() & (self.shards.len() - 1)].clone();
        let fresh = if fresh.is_empty() {
            0..0
        } else {
            (fresh.start - offset) as usize..len.min((fresh.end - offset) as usize)
        };
        Some(Block::new(Grant { shard, offset, home: Home::Extent { units } }, len, fresh))
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
    #[inline]
    fn new(grant: Grant, len: usize, fresh: Range<usize>) -> Block {
        // SAFETY: grants are for ranges within the region.
        let start = unsafe { grant.shard.pool.region.base().add(grant.offset as usize) };
        Block { start, len, fresh, grant }
    }

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
    #[inline]
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        if self.fresh.len() < POPULATE_BYTES_MIN {
            copy(&mut self.bytes_mut()[at..][..bytes.len()], bytes);
        } else {
            self.write_fresh(at, bytes);
        }
    }

    fn write_fresh(&mut self, at: usize, bytes: &[u8]) {
        let fresh = self.fresh.start.max(at)..self.fresh.end.min(at.saturating_add(bytes.len()));
        let populate = self.grant.shard.pool.populate;
        let to = &mut self.bytes_mut()[at..][..bytes.len()];
        if fresh.is_empty() {
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
        Sealed(Arc::new(SealedBytes { start: self.start, len: self.len, grant: self.grant }))
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
        Ok(Block::new(*grant, range.len(), 0..0))
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
    grant: Grant,
}

// SAFETY: nobody writes the bytes of a sealed block until the grant is
// dropped, so any thread may read them, but for an `Assembly`, which lets nobody
// read them before they are complete; the grant is `Send`.
unsafe impl Send for SealedBytes {}
// SAFETY: as above; the grant is used only in its drop.
unsafe impl Sync for SealedBytes {}

impl Sealed {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: as in `Block::bytes`; since the seal nobody has the right to
        // write them, and `self` keeps the grant. (An `Assembly` has one whose
        // chunks are written; it does not call this, and gives the value out
        // when all are.)
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }

    /// The first byte's offset in the arena's region.
    pub fn offset(&self) -> u64 {
        self.0.grant.offset
    }

    /// A handle that does not keep the object.
    pub fn downgrade(&self) -> WeakSealed {
        WeakSealed(Arc::downgrade(&self.0))
    }

    /// A number that no other object has while this one lives.
    pub(super) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// The region that it lies in.
    pub(super) fn region(&self) -> &Arc<Region> {
        &self.0.grant.shard.pool.region
    }
}

/// An object that may have been freed.
#[derive(Clone)]
pub struct WeakSealed(Weak<SealedBytes>);

impl WeakSealed {
    /// The object, if somebody still has it.
    pub fn upgrade(&self) -> Option<Sealed> {
        self.0.upgrade().map(Sealed)
    }

    /// Whether somebody still has it, or had just now.
    pub fn is_alive(&self) -> bool {
        self.0.strong_count() > 0
    }
}

impl fmt::Debug for WeakSealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakSealed")
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
    /// Its length in units of 64 bytes: an object has 256 GiB at most.
    Extent {
        units: u32,
    },
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
            Home::Extent { units } => lock(&pool.extents).give(self.offset, u64::from(units) * OBJECT_ALIGN as u64),
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
mod tests;

//! A region is a range of bytes with a fixed address in this process, part of
//! which other processes may read. Exclusive use of a part is a [`Lease`].

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::base::limits::OBJECT_ALIGN;

/// A mapped range of bytes. Says nothing about who may use which part: that is
/// what [`Lease`] and the arena are for.
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    /// What keeps the mapping alive; dropped last.
    owner: Box<dyn Any + Send + Sync>,
}

// SAFETY: a region is an address and a length; the mapping behind it outlives
// it (`owner`) and every access goes through a method that says what it needs.
unsafe impl Send for Region {}
// SAFETY: as above; no method changes bytes without exclusive use of them.
unsafe impl Sync for Region {}

/// A part of a region that does not lie within it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfRange {
    /// First byte asked for.
    pub offset: u64,
    /// Bytes asked for.
    pub len: u64,
    /// Bytes that the region has.
    pub region_len: u64,
}

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at offset {} do not lie in a region of {} bytes", self.len, self.offset, self.region_len)
    }
}

impl std::error::Error for OutOfRange {}

impl Region {
    /// A region over memory that `owner` keeps mapped.
    ///
    /// # Safety
    /// `base..base + len` must be mapped readable (and writable if `writable`)
    /// for as long as `owner` lives, must not move, and must not be written
    /// through anything but this region while the region lives, except by
    /// another process that follows the seal-once rule.
    pub unsafe fn from_raw(base: NonNull<u8>, len: usize, writable: bool, owner: Box<dyn Any + Send + Sync>) -> Region {
        Region { base, len, writable, owner }
    }

    /// A zeroed region on the heap, 64-byte aligned, for tests and for jobs of
    /// a single rank.
    pub fn heap(len: usize) -> Region {
        // Zeroed by the allocator, so that large regions take no page before
        // they are used.
        let mut bytes = vec![0_u8; len + OBJECT_ALIGN];
        let skipped = bytes.as_ptr().align_offset(OBJECT_ALIGN);
        let base = NonNull::from(&mut bytes[skipped..][..len]).cast();
        // SAFETY: a vector's bytes stay where they are while it is moved, until
        // the region drops it, and nobody else has their address.
        unsafe { Region::from_raw(base, len, true, Box::new(bytes)) }
    }

    /// Whether this process may write the region.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Bytes in the region.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What keeps the mapping alive, for the layer that made it.
    pub fn owner(&self) -> &(dyn Any + Send + Sync) {
        &*self.owner
    }

    /// The address of the first byte.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of `len` bytes at `offset`, if they lie within.
    pub fn span(&self, offset: u64, len: u64) -> Result<NonNull<[u8]>, OutOfRange> {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.len as u64);
        if !fits {
            return Err(OutOfRange { offset, len, region_len: self.len as u64 });
        }
        // SAFETY: offset <= self.len, so the address stays within the mapping.
        let start = unsafe { self.base.add(offset as usize) };
        Ok(NonNull::slice_from_raw_parts(start, len as usize))
    }
}

/// The exclusive right to the bytes of a part of a region, held by one value
/// at a time: an arena hands it out, a fabric fills it, a seal ends it.
pub struct Lease {
    region: Arc<Region>,
    range: Range<usize>,
    /// What gives the range back to where it came from when it is dropped.
    owner: Option<Box<dyn Any + Send>>,
}

impl Lease {
    /// A lease on `range` of `region`.
    ///
    /// # Safety
    /// No other lease on, and no reference into, any byte of the range may
    /// exist while this one does.
    pub unsafe fn new(region: Arc<Region>, range: Range<usize>) -> Result<Lease, OutOfRange> {
        assert!(region.writable, "a lease on a read-only region");
        region.span(range.start as u64, range.len() as u64)?;
        Ok(Lease { region, range, owner: None })
    }

    /// A lease on zeroed bytes of its own, in place of one that cannot be had
    /// back.
    pub fn heap(len: usize) -> Lease {
        let region = Arc::new(Region::heap(len));
        Lease { region, range: 0..len, owner: None }
    }

    /// The same lease, with the value whose drop ends the exclusive right.
    pub(super) fn owned_by(self, owner: Box<dyn Any + Send>) -> Lease {
        Lease { owner: Some(owner), ..self }
    }

    /// What [`Lease::owned_by`] was given, if it is an `O`, and the range.
    pub(super) fn into_owner<O: Any>(self) -> Result<(Box<O>, Range<usize>), Lease> {
        let Lease { region, range, owner } = self;
        match owner.map(<Box<dyn Any + Send>>::downcast::<O>) {
            Some(Ok(owner)) => Ok((owner, range)),
            Some(Err(other)) => Err(Lease { region, range, owner: Some(other) }),
            None => Err(Lease { region, range, owner: None }),
        }
    }

    /// The region that the lease is on.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The part of the region.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies in the region (checked in `new`) and nobody
        // writes it while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.region.base.as_ptr().add(self.range.start), self.range.len()) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the lease is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.region.base.as_ptr().add(self.range.start), self.range.len()) }
    }

    /// Fills the lease from another region (or another part of the same).
    pub fn copy_from(&mut self, source: &Region, offset: u64) -> Result<(), OutOfRange> {
        let span = source.span(offset, self.range.len() as u64)?;
        // SAFETY: both ranges lie within mappings that live (span, `new`), and
        // the destination is exclusive; `copy` allows them to overlap. That the
        // source is not written meanwhile is the seal-once rule.
        unsafe { std::ptr::copy(span.cast::<u8>().as_ptr(), self.bytes_mut().as_mut_ptr(), self.range.len()) };
        Ok(())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?})", self.range)
    }
}

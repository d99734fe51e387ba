//! The immutable bytes of an object, wherever they live: in this rank's arena,
//! in a peer's, or on the heap.

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{OutOfRange, Region, Sealed};
use crate::base::Rank;

/// An object's bytes. A clone costs one reference count; the last one frees
/// the memory or tells its owner.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// In this rank's arena.
    Sealed(Sealed),
    /// In the arena of a peer on this host.
    Foreign(Foreign),
    /// On the heap.
    Heap(Heap),
}

impl Bytes {
    /// Where in this rank's arena the bytes start, if they are there.
    pub fn offset(&self) -> Option<u64> {
        match self {
            Bytes::Sealed(sealed) => Some(sealed.offset()),
            Bytes::Foreign(_) | Bytes::Heap(_) => None,
        }
    }

    /// The bytes as values of a plain type, read in place.
    pub fn as_slice<T: FromBytes + Immutable + KnownLayout>(&self) -> Result<&[T], Misfit> {
        let bytes: &[u8] = self;
        <[T]>::ref_from_bytes(bytes).map_err(|_| Misfit {
            bytes: bytes.len(),
            element: size_of::<T>(),
            align: align_of::<T>(),
            type_name: std::any::type_name::<T>(),
        })
    }

    /// A number that no other object has while a clone of this one lives.
    pub fn identity(&self) -> usize {
        match self {
            Bytes::Sealed(sealed) => sealed.identity(),
            Bytes::Foreign(foreign) => Arc::as_ptr(&foreign.0).addr(),
            Bytes::Heap(heap) => Arc::as_ptr(&heap.words).addr(),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Sealed(sealed) => sealed,
            Bytes::Foreign(foreign) => foreign,
            Bytes::Heap(heap) => heap,
        }
    }
}

impl From<Sealed> for Bytes {
    fn from(sealed: Sealed) -> Bytes {
        Bytes::Sealed(sealed)
    }
}

impl From<Foreign> for Bytes {
    fn from(foreign: Foreign) -> Bytes {
        Bytes::Foreign(foreign)
    }
}

impl From<Heap> for Bytes {
    fn from(heap: Heap) -> Bytes {
        Bytes::Heap(heap)
    }
}

/// Bytes that are not a whole number of aligned values of the type asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Misfit {
    /// Bytes of the object.
    pub bytes: usize,
    /// Bytes of one value.
    pub element: usize,
    /// Alignment of the type.
    pub align: usize,
    /// The type.
    pub type_name: &'static str,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Misfit { bytes, element, align, type_name } = self;
        write!(
            f,
            "an object of {bytes} bytes cannot be read as [{type_name}], whose values have {element} bytes aligned to \
             {align}: was it made as another type?"
        )
    }
}

impl std::error::Error for Misfit {}

/// An object in a peer's arena, read where it lies.
#[derive(Clone)]
pub struct Foreign(Arc<Borrow>);

struct Borrow {
    owner: Rank,
    offset: u64,
    start: NonNull<u8>,
    len: usize,
    done: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    /// Keeps the mapping.
    _region: Arc<Region>,
}

// SAFETY: the bytes are only read, and lie in a region that is kept; the
// other parts are `Send`.
unsafe impl Send for Borrow {}
// SAFETY: as above; `done` is behind a lock.
unsafe impl Sync for Borrow {}

/// Why a range cannot be read as a peer's object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ForeignError {
    /// It does not lie in the peer's region.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// Objects start at multiples of 64.
    #[error("an object at offset {0} is not aligned to 64 bytes")]
    Misaligned(u64),
    /// This process may write the region, so that it is not a peer's.
    #[error("a peer's object in a region that this process may write")]
    Writable,
}

impl Foreign {
    /// The `len` bytes at `offset` of the region of `owner`. When the last clone
    /// goes, `done` is called, to tell the peer.
    pub fn new(
        owner: Rank,
        region: Arc<Region>,
        offset: u64,
        len: u64,
        done: impl FnOnce() + Send + 'static,
    ) -> Result<Foreign, ForeignError> {
        if region.is_writable() {
            return Err(ForeignError::Writable);
        }
        if !offset.is_multiple_of(crate::base::limits::OBJECT_ALIGN as u64) {
            return Err(ForeignError::Misaligned(offset));
        }
        let span = region.span(offset, len)?;
        let done = Mutex::new(Some(Box::new(done) as Box<dyn FnOnce() + Send>));
        Ok(Foreign(Arc::new(Borrow { owner, offset, start: span.cast(), len: span.len(), done, _region: region })))
    }
}

impl Foreign {
    /// The rank in whose region the object is.
    pub fn owner(&self) -> Rank {
        self.0.owner
    }

    /// Its first byte there.
    pub fn offset(&self) -> u64 {
        self.0.offset
    }
}

impl Deref for Foreign {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the range lies in the region (`Region::span`), which is kept
        // mapped. This process cannot write it. Whoever made the read-only
        // region promised (`Region::from_raw`) that the process that can
        // follows the seal-once rule: what it named to us stays as it is until
        // we say that we are done, which is when `Borrow` is dropped.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.len) }
    }
}

impl Drop for Borrow {
    fn drop(&mut self) {
        let done = self.done.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = done {
            done();
        }
    }
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Foreign({} bytes)", self.len())
    }
}

/// An object on the heap, 16-byte aligned.
#[derive(Clone)]
pub struct Heap {
    words: Arc<[u128]>,
    len: usize,
}

impl Heap {
    /// `len` bytes, zeroed and then filled by `fill`.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> Heap {
        let mut words: Arc<[u128]> = std::iter::repeat_n(0, len.div_ceil(size_of::<u128>())).collect();
        let all = Arc::get_mut(&mut words).expect("nobody else has the new words");
        fill(&mut zerocopy::IntoBytes::as_mut_bytes(all)[..len]);
        Heap { words, len }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Heap {
        Heap::filled(bytes.len(), |to| to.copy_from_slice(bytes))
    }
}

impl Deref for Heap {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &zerocopy::IntoBytes::as_bytes(&*self.words)[..self.len]
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Heap({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::mem::Arena;

    /// A read-only region of 256 bytes: 0, 1, 2 and so on.
    fn peer_region() -> Arc<Region> {
        #[repr(align(64))]
        struct Lines([u8; 256]);
        let mut lines = Box::new(Lines(std::array::from_fn(|i| i as u8)));
        let base = NonNull::from(&mut lines.0).cast();
        // SAFETY: the box keeps the bytes where they are, and nobody writes them.
        Arc::new(unsafe { Region::from_raw(base, 256, false, lines) })
    }

    impl Drop for CountsDrops {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    struct CountsDrops(Arc<AtomicUsize>);

    #[test]
    fn the_last_reader_tells_the_owner_once() {
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let foreign = Foreign::new(Rank(1), peer_region(), 64, 10, move || drop(CountsDrops(count))).unwrap();
        let bytes = Bytes::from(foreign);
        let clone = bytes.clone();
        assert_eq!(bytes.identity(), clone.identity());
        drop(bytes);
        assert_eq!(told.load(Ordering::Relaxed), 0);
        assert_eq!(clone[..], (64..74).collect::<Vec<u8>>());
        std::thread::spawn(move || drop(clone)).join().unwrap();
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_range_from_a_peer_is_checked() {
        let refused = |region: Arc<Region>, offset, len| Foreign::new(Rank(1), region, offset, len, || ()).unwrap_err();
        let outside = |offset, len| ForeignError::OutOfRange(OutOfRange { offset, len, region_len: 256 });
        assert_eq!(refused(peer_region(), 192, 65), outside(192, 65));
        assert_eq!(refused(peer_region(), 64, u64::MAX), outside(64, u64::MAX));
        assert_eq!(refused(peer_region(), 1, 1), ForeignError::Misaligned(1));
        assert_eq!(refused(Arc::new(Region::heap(256)), 0, 1), ForeignError::Writable);
        assert!(Foreign::new(Rank(1), peer_region(), 256, 0, || ()).unwrap().is_empty());
    }

    #[test]
    fn every_home_reads_the_same() {
        let arena = Arena::new(Arc::new(Region::heap(1 << 20)));
        let data: Vec<u8> = (0..200).collect();
        let homes = [
            Bytes::from(arena.put(&data).unwrap()),
            Foreign::new(Rank(1), peer_region(), 0, 200, || ()).unwrap().into(),
            Heap::copy_of(&data).into(),
        ];
        for bytes in &homes {
            assert_eq!(bytes[..], data[..]);
            assert!(bytes.as_ptr().addr().is_multiple_of(16));
            let words = bytes.as_slice::<u64>().unwrap();
            assert_eq!((words.len(), words[1].to_le()), (25, 0x0f0e_0d0c_0b0a_0908));
        }
        assert_eq!(homes.each_ref().map(|b| b.offset().is_some()), [true, false, false]);
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_name() {
        let bytes = Bytes::from(Heap::copy_of(&[0; 12]));
        assert_eq!(bytes.as_slice::<u32>().unwrap(), [0; 3]);
        let misfit = bytes.as_slice::<f64>().unwrap_err();
        assert_eq!((misfit.bytes, misfit.element, misfit.align), (12, 8, 8));
        assert!(misfit.to_string().contains("f64"), "{misfit}");
        assert_eq!(Bytes::from(Heap::copy_of(&[])).as_slice::<f64>().unwrap(), [0.0; 0]);
    }
}

//! An object that arrives in chunks, several at a time and in any order, while
//! peers read the chunks that are here.
//!
//! Every chunk is absent, leased or present, and goes from one to the next only
//! that way, but back to absent when its lease is dropped unfilled. So a chunk
//! has one writer at a time and none once it is present; nobody in this process
//! can refer to the bytes of the whole before all chunks are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::{Block, Lease, Sealed};

/// See the module.
pub struct Assembly {
    parts: Arc<Parts>,
}

/// The memory of an object, kept from being used for another. Gives no access to
/// the bytes, which may be incomplete.
pub struct Pin {
    _whole: Sealed,
}

struct Parts {
    /// Its bytes are not looked at before every chunk is present.
    whole: Sealed,
    chunk_bytes: usize,
    states: Box<[AtomicU8]>,
}

const ABSENT: u8 = 0;
const LEASED: u8 = 1;
const PRESENT: u8 = 2;

/// What a chunk's lease carries: the right to fill the chunk.
struct Right {
    parts: Arc<Parts>,
    chunk: usize,
    filled: bool,
}

impl Assembly {
    /// A block to be filled in chunks of `chunk_bytes`, the last of which may be
    /// shorter.
    ///
    /// # Panics
    /// If `chunk_bytes` is 0.
    pub fn new(block: Block, chunk_bytes: u64) -> Assembly {
        let chunk_bytes = usize::try_from(chunk_bytes).unwrap_or(usize::MAX);
        let chunks = block.len().div_ceil(chunk_bytes).max(1);
        let states = std::iter::repeat_with(|| AtomicU8::new(ABSENT)).take(chunks).collect();
        Assembly { parts: Arc::new(Parts { whole: block.seal(), chunk_bytes, states }) }
    }

    /// The first byte's offset in the arena's region.
    pub fn offset(&self) -> u64 {
        self.parts.whole.offset()
    }

    /// A chunk, to be filled by a fabric; `None` if it is leased, present or no
    /// chunk of this object.
    pub fn lease(&self, chunk: u32) -> Option<Lease> {
        let parts = &self.parts;
        let chunk = chunk as usize;
        // Acquire: whoever had the chunk before is done with it.
        let state = parts.states.get(chunk)?;
        state.compare_exchange(ABSENT, LEASED, Ordering::Acquire, Ordering::Relaxed).ok()?;
        let right = Right { parts: parts.clone(), chunk, filled: false };
        let inner = chunk * parts.chunk_bytes;
        let start = parts.whole.offset() as usize + inner;
        let len = parts.chunk_bytes.min(parts.whole.len() - inner);
        // SAFETY: chunks do not overlap, and of this one there is no other
        // lease: it was absent, which it is only before its first lease and
        // after one was dropped unfilled. No reference into it exists: the block
        // had the only right to its bytes, and `whole` is given out by `seal`
        // alone, once every chunk is present, which no chunk ceases to be.
        // `right` keeps the memory for as long as the lease lives.
        let lease = unsafe { Lease::new(parts.whole.region().clone(), start..start + len) };
        Some(lease.ok()?.owned_by(Box::new(right)))
    }

    /// Takes a chunk's lease back after it was filled. Any other lease comes
    /// back as it is.
    pub fn accept(lease: Lease) -> Result<(), Lease> {
        let (mut right, _) = lease.into_owner::<Right>()?;
        right.filled = true;
        Ok(())
    }

    /// The same object in another block of the same length, with copies of the
    /// chunks that are present. What was leased of this one may still be filled,
    /// to no effect.
    ///
    /// # Panics
    /// If the block has another length.
    pub fn move_to(self, mut block: Block) -> Assembly {
        let parts = &self.parts;
        assert_eq!(block.len(), parts.whole.len(), "an object does not change its length");
        let mut present = Vec::new();
        for (chunk, state) in parts.states.iter().enumerate() {
            // Acquire: what was written to the chunk is seen.
            if state.load(Ordering::Acquire) != PRESENT {
                continue;
            }
            present.push(chunk);
            let inner = chunk * parts.chunk_bytes;
            let len = parts.chunk_bytes.min(parts.whole.len() - inner);
            let offset = parts.whole.offset() + inner as u64;
            let span = parts.whole.region().span(offset, len as u64).expect("it lies in the arena");
            // SAFETY: the chunk lies in the region, which `whole` keeps mapped;
            // it is present, so that it has no writer and never will.
            let bytes = unsafe { std::slice::from_raw_parts(span.cast::<u8>().as_ptr(), len) };
            block.bytes_mut()[inner..inner + len].copy_from_slice(bytes);
        }
        let moved = Assembly::new(block, parts.chunk_bytes as u64);
        present.into_iter().for_each(|chunk| moved.parts.states[chunk].store(PRESENT, Ordering::Release));
        moved
    }

    /// Keeps the memory, whatever becomes of the assembly.
    pub fn pin(&self) -> Pin {
        Pin { _whole: self.parts.whole.clone() }
    }

    /// The whole object, if every chunk is present.
    pub fn seal(self) -> Result<Sealed, Assembly> {
        // Acquire: what was written to the chunks is seen.
        match self.parts.states.iter().all(|state| state.load(Ordering::Acquire) == PRESENT) {
            true => Ok(self.parts.whole.clone()),
            false => Err(self),
        }
    }
}

impl Pin {
    /// Keeps a complete object where it is.
    pub fn of(whole: Sealed) -> Pin {
        Pin { _whole: whole }
    }
}

impl Drop for Right {
    fn drop(&mut self) {
        let state = if self.filled { PRESENT } else { ABSENT };
        // Release: what was written to the chunk is seen by whoever finds it so.
        self.parts.states[self.chunk].store(state, Ordering::Release);
    }
}

impl fmt::Debug for Assembly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = self.parts.states.iter().filter(|state| state.load(Ordering::Relaxed) == PRESENT).count();
        write!(f, "Assembly({present} of {} chunks at {})", self.parts.states.len(), self.offset())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::base::rng::Rng;
    use crate::mem::{Arena, Region};

    fn arena() -> Arena {
        Arena::new(Arc::new(Region::heap(1 << 20)))
    }

    #[test]
    fn chunks_filled_in_any_order_by_many_threads_make_the_object() {
        let arena = arena();
        let data: Vec<u8> = (0..100_001u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for seed in 0..20 {
            let assembly = Assembly::new(arena.alloc(data.len()).unwrap(), 4096);
            let mut chunks: Vec<u32> = (0..25).collect();
            let mut rng = Rng::new(seed);
            for i in (1..chunks.len()).rev() {
                chunks.swap(i, rng.below(i + 1));
            }
            std::thread::scope(|scope| {
                for part in chunks.chunks(7) {
                    let leases: Vec<_> = part.iter().map(|chunk| (*chunk, assembly.lease(*chunk).unwrap())).collect();
                    let data = &data;
                    scope.spawn(move || {
                        for (chunk, mut lease) in leases {
                            let len = lease.bytes().len();
                            lease.bytes_mut().copy_from_slice(&data[chunk as usize * 4096..][..len]);
                            Assembly::accept(lease).unwrap();
                        }
                    });
                }
            });
            assert_eq!(assembly.seal().unwrap()[..], data[..]);
        }
    }

    #[test]
    fn a_chunk_is_leased_once_and_again_only_if_it_was_not_filled() {
        let arena = arena();
        let assembly = Assembly::new(arena.alloc(10_000).unwrap(), 4096);
        let lease = assembly.lease(1).unwrap();
        assert!(assembly.lease(1).is_none() && assembly.lease(3).is_none() && assembly.lease(u32::MAX).is_none());
        drop(lease);
        let lease = assembly.lease(1).unwrap();
        assert_eq!(lease.range().len(), 4096);
        Assembly::accept(lease).unwrap();
        assert!(assembly.lease(1).is_none());
        let assembly = assembly.seal().unwrap_err();
        let last = assembly.lease(2).unwrap();
        assert_eq!(last.range().len(), 10_000 - 2 * 4096);
        Assembly::accept(last).unwrap();
        let first = assembly.lease(0).unwrap();
        let assembly = assembly.seal().unwrap_err();
        Assembly::accept(first).unwrap();
        assert_eq!(assembly.seal().unwrap().len(), 10_000);
    }

    #[test]
    fn what_is_moved_has_what_was_present_and_ignores_what_comes_late() {
        let arena = arena();
        let assembly = Assembly::new(arena.alloc(10_000).unwrap(), 4096);
        let fill = |assembly: &Assembly, chunk, byte| {
            let mut lease = assembly.lease(chunk).unwrap();
            lease.bytes_mut().fill(byte);
            lease
        };
        Assembly::accept(fill(&assembly, 2, 2)).unwrap();
        let late = fill(&assembly, 0, 9);
        let moved = assembly.move_to(arena.alloc(10_000).unwrap());
        assert!(moved.lease(2).is_none());
        Assembly::accept(late).unwrap();
        let moved = moved.seal().unwrap_err();
        Assembly::accept(fill(&moved, 0, 0)).unwrap();
        Assembly::accept(fill(&moved, 1, 1)).unwrap();
        let bytes = moved.seal().unwrap();
        assert!(bytes.chunks(4096).enumerate().all(|(i, chunk)| chunk.iter().all(|b| *b == i as u8)));
    }

    #[test]
    fn memory_stays_while_a_lease_or_a_pin_does() {
        let arena = arena();
        let free = arena.usage().free;
        let assembly = Assembly::new(arena.alloc(100_000).unwrap(), 4096);
        let (lease, pin) = (assembly.lease(0).unwrap(), assembly.pin());
        drop(assembly);
        assert!(arena.usage().free < free);
        drop(pin);
        assert!(arena.usage().free < free);
        drop(lease);
        assert_eq!(arena.usage().free, free);
    }

    #[test]
    fn another_lease_comes_back_and_an_empty_object_is_one_chunk() {
        let arena = arena();
        let lease = arena.alloc(64).unwrap().into_lease();
        assert!(Assembly::accept(lease).is_err());
        let assembly = Assembly::new(arena.alloc(0).unwrap(), 1);
        Assembly::accept(assembly.lease(0).unwrap()).unwrap();
        assert!(assembly.seal().unwrap().is_empty());
    }
}

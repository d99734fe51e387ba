//! Memory that a network card may read or write.

use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::adapter::Adapter;
use super::{ffi, non_null};
use crate::mem::Region;

/// A part of a region that is registered with an adapter, for as long as this
/// lives.
pub struct Memory {
    registration: NonNull<ffi::ibv_mr>,
    range: Range<usize>,
    // Dropped after the registration.
    region: Arc<Region>,
    adapter: Arc<Adapter>,
}

// SAFETY: a registration is read-only after it was made, and its end is thread
// safe as the whole library.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Registers a whole region, to be read by peers and filled by reads of
    /// this process.
    pub fn shared(adapter: &Arc<Adapter>, region: &Arc<Region>) -> io::Result<Memory> {
        let local = if region.is_writable() { ffi::IBV_ACCESS_LOCAL_WRITE } else { 0 };
        Memory::register(adapter, region, 0..region.len(), local | ffi::IBV_ACCESS_REMOTE_READ)
    }

    /// Registers a part of a region for the use of this process alone.
    ///
    /// # Panics
    /// If the region is read-only.
    pub fn private(adapter: &Arc<Adapter>, region: &Arc<Region>, range: Range<usize>) -> io::Result<Memory> {
        assert!(region.is_writable(), "nothing could be received into a read-only region");
        Memory::register(adapter, region, range, ffi::IBV_ACCESS_LOCAL_WRITE)
    }

    fn register(adapter: &Arc<Adapter>, region: &Arc<Region>, range: Range<usize>, access: u32) -> io::Result<Memory> {
        let span = region.span(range.start as u64, range.len() as u64);
        let span = span.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        // SAFETY: the span lies in the region, which this value keeps mapped
        // until the registration has ended; the domain lives with the adapter.
        let registration = unsafe {
            let address = span.cast::<libc::c_void>().as_ptr();
            (adapter.verbs.ibv_reg_mr)(adapter.domain.as_ptr(), address, range.len(), access as i32)
        };
        let registration = non_null(registration)?;
        Ok(Memory { registration, range, region: region.clone(), adapter: adapter.clone() })
    }

    /// Whether `range` of `region` lies in this.
    pub fn covers(&self, region: &Arc<Region>, range: &Range<usize>) -> bool {
        Arc::ptr_eq(&self.region, region) && self.range.start <= range.start && range.end <= self.range.end
    }

    /// The address of the first byte, as peers name it.
    pub fn address(&self) -> u64 {
        self.region.base().as_ptr() as u64 + self.range.start as u64
    }

    /// How many bytes are registered.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// What peers need to name besides the address.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: the registration lives, and its keys do not change.
        unsafe { (*self.registration.as_ptr()).rkey }
    }

    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.registration.as_ptr()).lkey }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `register`, ended once. If the library refuses, which
        // it does only for memory windows that are bound, the region is kept.
        if unsafe { (self.adapter.verbs.ibv_dereg_mr)(self.registration.as_ptr()) } != 0 {
            std::mem::forget(self.region.clone());
        }
    }
}

/// Memory of this process, in slots, that one peer writes as it likes.
pub struct Window {
    memory: Memory,
    slots: u32,
    slot_bytes: usize,
}

impl Window {
    /// Zeroed memory of its own.
    pub fn new(adapter: &Arc<Adapter>, slots: u32, slot_bytes: usize) -> io::Result<Window> {
        // Nobody else has the region, so nothing in this process refers to
        // bytes that a peer changes.
        let region = Arc::new(Region::heap(slots as usize * slot_bytes));
        let access = ffi::IBV_ACCESS_LOCAL_WRITE | ffi::IBV_ACCESS_REMOTE_WRITE;
        let memory = Memory::register(adapter, &region, 0..region.len(), access)?;
        Ok(Window { memory, slots, slot_bytes })
    }

    /// The address of the first slot, as the peer names it.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// What the peer needs to name besides the address.
    pub fn remote_key(&self) -> u32 {
        self.memory.remote_key()
    }

    /// Replaces what is in `into` by the first `len` bytes of a slot. A peer
    /// that keeps no order may tear them; what is looked at afterwards is the
    /// copy, which it cannot change any more.
    ///
    /// # Panics
    /// If there is no such slot, or it is shorter.
    pub fn copy_out(&self, slot: u32, len: usize, into: &mut Vec<u8>) {
        assert!(slot < self.slots && len <= self.slot_bytes, "{len} bytes of slot {slot}");
        into.clear();
        into.reserve(len);
        // SAFETY: the slot lies in the region (asserted), which lives; the
        // vector has room for `len` bytes, which the copy initialises. The card
        // may write the source meanwhile, as another process could write shared
        // memory: any bytes are a valid result.
        unsafe {
            let from = self.memory.region.base().as_ptr().add(slot as usize * self.slot_bytes);
            std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), len);
            into.set_len(len);
        }
    }
}

//! Buffers for messages, made in slabs and registered once.

use std::ffi::c_void;
use std::ptr::NonNull;

use super::OfiError;
use super::memory::{Mr, Registrar};
use crate::mem::Region;

/// Buffers of one slab.
const SLAB: usize = 16;

/// See the module. A buffer is a number; who has it says so by holding it.
pub(super) struct Buffers {
    /// Bytes of a buffer.
    bytes: usize,
    max: usize,
    access: u32,
    slabs: Vec<Slab>,
    free: Vec<u32>,
}

struct Slab {
    region: Region,
    mr: Option<Mr>,
}

/// A buffer's place.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub start: NonNull<u8>,
    pub descriptor: *mut c_void,
}

impl Buffers {
    /// No buffers yet, and never more than `max`.
    pub fn new(bytes: usize, max: usize, access: u32) -> Buffers {
        let bytes = bytes.next_multiple_of(64);
        Buffers { bytes, max, access, slabs: Vec::new(), free: Vec::new() }
    }

    /// A free buffer, if there is one or one can be made.
    pub fn take(&mut self, registrar: &Registrar) -> Result<Option<u32>, OfiError> {
        if self.free.is_empty() && self.slabs.len() * SLAB < self.max {
            let region = Region::heap(self.bytes * SLAB);
            let mr = if registrar.is_needed_locally() {
                let all = NonNull::slice_from_raw_parts(region.base(), region.len());
                // SAFETY: the region is kept beside its registration, and no
                // reference is made to a buffer that an operation has.
                Some(unsafe { registrar.register(all, self.access) }?)
            } else {
                None
            };
            let first = (self.slabs.len() * SLAB) as u32;
            self.slabs.push(Slab { region, mr });
            self.free.extend((first..first + SLAB as u32).rev());
        }
        Ok(self.free.pop())
    }

    /// Takes back a buffer that no operation has.
    pub fn give_back(&mut self, buffer: u32) {
        self.free.push(buffer);
    }

    pub fn place(&self, buffer: u32) -> Place {
        let slab = &self.slabs[buffer as usize / SLAB];
        let offset = buffer as usize % SLAB * self.bytes;
        // SAFETY: the slab has SLAB buffers of `bytes` bytes.
        let start = unsafe { slab.region.base().add(offset) };
        Place { start, descriptor: slab.mr.as_ref().map_or(std::ptr::null_mut(), Mr::descriptor) }
    }

    /// Bytes of each.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Ends the registrations that can be ended.
    pub fn unregister(&mut self) {
        for slab in &mut self.slabs {
            slab.mr = slab.mr.take().and_then(|mr| mr.close().err());
        }
    }

    /// Whether some memory is registered.
    pub fn are_registered(&self) -> bool {
        self.slabs.iter().any(|slab| slab.mr.is_some())
    }
}

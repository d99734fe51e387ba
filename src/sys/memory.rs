//! Memory that processes share: regions that only their owner can write, and
//! segments of atomic lines that two processes write. Both are memfds, sealed
//! against a change of size, so that no peer can make an access fault, and gone
//! with the last process that has them.

use std::ffi::c_void;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise};

use crate::mem::Region;
use crate::sync::Line;

const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// A new zeroed region that others can map, but not write: the descriptor is
/// sealed after this process has mapped it.
pub fn create_region(len: usize) -> io::Result<Region> {
    let fd = create_memfd("collimate-region", len)?;
    let mapping = Mapping::of(fd, len, true)?;
    fcntl_add_seals(&mapping.fd, SIZE_SEALS | SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
    Ok(mapping.into_region(len))
}

/// A peer's region, read-only. Refuses a descriptor that its owner could still
/// shrink.
pub fn open_region(fd: OwnedFd, len: usize) -> io::Result<Region> {
    check_sealed(&fd, len)?;
    Ok(Mapping::of(fd, len, false)?.into_region(len))
}

/// The descriptor behind a region that this module made.
pub fn region_fd(region: &Region) -> Option<BorrowedFd<'_>> {
    region.owner().downcast_ref::<Mapping>().map(|mapping| mapping.fd.as_fd())
}
/// A segment of cache lines that the processes which have it may all write.
/// Cheap to clone; the mapping goes with the last clone.
#[derive(Clone)]
pub struct SharedLines {
    mapping: Arc<Mapping>,
    first: usize,
    count: usize,
}

impl SharedLines {
    /// A new zeroed segment.
    pub fn create(count: usize) -> io::Result<SharedLines> {
        let len = count * size_of::<Line>();
        let fd = create_memfd("collimate-ring", len)?;
        fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL)?;
        Ok(SharedLines { mapping: Arc::new(Mapping::of(fd, len, true)?), first: 0, count })
    }

    /// A segment that a peer created with the same count.
    pub fn open(fd: OwnedFd, count: usize) -> io::Result<SharedLines> {
        let len = count * size_of::<Line>();
        check_sealed(&fd, len)?;
        Ok(SharedLines { mapping: Arc::new(Mapping::of(fd, len, true)?), first: 0, count })
    }

    /// The descriptor, to pass it on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd.as_fd()
    }

    /// Makes the pages of the whole mapping resident, so that none of them is met
    /// for the first time by a message. Where the system cannot (Linux before 5.14,
    /// memory limits) it does nothing.
    pub fn populate(&self) {
        let Mapping { base, len, .. } = &*self.mapping;
        // SAFETY: the mapping lives as long as `self`; the advice changes neither its
        // content nor its place.
        let _ = unsafe { madvise(base.as_ptr().cast(), *len, Advice::LinuxPopulateWrite) };
    }

    /// Two halves of the segment.
    ///
    /// # Panics
    /// If there are fewer than `at` lines.
    pub fn split(self, at: usize) -> (SharedLines, SharedLines) {
        assert!(at <= self.count);
        let rest = SharedLines { mapping: self.mapping.clone(), first: self.first + at, count: self.count - at };
        (SharedLines { count: at, ..self }, rest)
    }
}

impl AsRef<[Line]> for SharedLines {
    #[inline]
    fn as_ref(&self) -> &[Line] {
        // SAFETY: the mapping has at least `first + count` lines (`create`,
        // `open`, `split`), is page-aligned, cannot shrink (sealed) and lives
        // as long as `self`. It is private to this type, whose only access is
        // through atomic words, for which any content is valid.
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr().cast::<Line>().add(self.first), self.count) }
    }
}

/// Types that any memory of the right size is a value of, whoever writes it.
///
/// # Safety
/// Every bit pattern is valid, and what others may write is read atomically.
pub(super) unsafe trait AnyBits {}

/// A value that several processes have, all of which can write it, or its owner alone.
pub(super) struct SharedPages<T> {
    mapping: Mapping,
    of: PhantomData<T>,
}

impl<T: AnyBits> SharedPages<T> {
    /// A new zeroed one.
    pub(super) fn create(name: &str) -> io::Result<SharedPages<T>> {
        let fd = create_memfd(name, size_of::<T>())?;
        fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL)?;
        Ok(SharedPages { mapping: Mapping::of(fd, size_of::<T>(), true)?, of: PhantomData })
    }

    /// A new zeroed one that others can only read.
    pub(super) fn create_for_readers(name: &str) -> io::Result<SharedPages<T>> {
        let mapping = Mapping::of(create_memfd(name, size_of::<T>())?, size_of::<T>(), true)?;
        fcntl_add_seals(&mapping.fd, SIZE_SEALS | SealFlags::FUTURE_WRITE | SealFlags::SEAL)?;
        Ok(SharedPages { mapping, of: PhantomData })
    }

    /// One that a peer created. What is not `writable` must only be read.
    pub(super) fn open(fd: OwnedFd, writable: bool) -> io::Result<SharedPages<T>> {
        check_sealed(&fd, size_of::<T>())?;
        Ok(SharedPages { mapping: Mapping::of(fd, size_of::<T>(), writable)?, of: PhantomData })
    }

    /// The descriptor, to pass it on.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.mapping.fd.as_fd()
    }
}

impl<T: AnyBits> Deref for SharedPages<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the mapping is as long as a `T`, page-aligned, cannot shrink
        // (sealed) and lives as long as `self`; any content is a `T` (`AnyBits`).
        unsafe { self.mapping.base.cast::<T>().as_ref() }
    }
}

/// A mapped memfd.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    fd: OwnedFd,
}

// SAFETY: an address and a descriptor; access goes through `Region` and
// `SharedLines`, which have their own rules.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(fd: OwnedFd, len: usize, writable: bool) -> io::Result<Mapping> {
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // The system refuses a mapping of no bytes.
        let mapped = len.max(1);
        // SAFETY: a new mapping at an address of the kernel's choice; nobody
        // else has it.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), mapped, protection, MapFlags::SHARED, &fd, 0)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { base, len: mapped, writable, fd })
    }

    fn into_region(self, len: usize) -> Region {
        let (base, writable) = (self.base, self.writable);
        // SAFETY: the mapping is owned by the region and does not move; its
        // size is sealed. Writers are this region alone (writable: the seal
        // keeps others out), or the owner by the seal-once rule (read-only).
        unsafe { Region::from_raw(base, len, writable, Box::new(self)) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `of` made, and nothing refers to it
        // any more. Unmapping what is mapped cannot fail.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

fn create_memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len as u64)?;
    Ok(fd)
}

fn check_sealed(fd: &OwnedFd, len: usize) -> io::Result<()> {
    if !fcntl_get_seals(fd)?.contains(SIZE_SEALS) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the descriptor is not sealed against a change of size",
        ));
    }
    let size = fstat(fd)?.st_size as u64;
    if size != len as u64 {
        let text = format!("the descriptor has {size} bytes, not {len}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Lease;

    fn clone_fd(region: &Region) -> OwnedFd {
        region_fd(region).unwrap().try_clone_to_owned().unwrap()
    }

    #[test]
    fn what_the_owner_writes_others_see_and_cannot_change() {
        let mine = Arc::new(create_region(10_000).unwrap());
        let theirs = Arc::new(open_region(clone_fd(&mine), 10_000).unwrap());
        assert_eq!((mine.len(), theirs.len()), (10_000, 10_000));
        // SAFETY: the only lease on the region.
        let mut lease = unsafe { Lease::new(mine.clone(), 100..200) }.unwrap();
        lease.bytes_mut().fill(9);
        let heap = Arc::new(Region::heap(100));
        // SAFETY: the only lease on the region.
        let mut copy = unsafe { Lease::new(heap, 0..100) }.unwrap();
        copy.copy_from(&theirs, 100).unwrap();
        assert!(copy.bytes().iter().all(|b| *b == 9));
        assert!(copy.copy_from(&theirs, 9_901).is_err());

        let fd = clone_fd(&mine);
        assert!(Mapping::of(fd.try_clone().unwrap(), 10_000, true).is_err(), "mapped writable by a peer");
        assert!(rustix::io::pwrite(&fd, b"x", 0).is_err(), "written through the descriptor");
        assert!(ftruncate(&fd, 1).is_err(), "shrunk by a peer");
        assert!(open_region(fd, 20_000).is_err(), "a wrong size is refused");
    }

    #[test]
    fn an_unsealed_descriptor_is_refused() {
        assert!(open_region(create_memfd("t", 4096).unwrap(), 4096).is_err());
        assert!(SharedLines::open(create_memfd("t", 4096).unwrap(), 64).is_err());
        assert!(region_fd(&Region::heap(64)).is_none());
    }

    #[test]
    fn an_empty_region_is_a_region() {
        let region = create_region(0).unwrap();
        assert!(region.is_empty() && open_region(clone_fd(&region), 0).unwrap().is_empty());
    }
}

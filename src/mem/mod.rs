//! Memory that other ranks can read: regions, leases on parts of them, the
//! arena that hands parts out, and the immutable objects that become of them.
//! Runs under plain heap memory too; what maps shared memory is in `sys`.

mod arena;
mod assembly;
mod bytes;
mod copy;
mod extents;
mod region;
mod slab;

pub use arena::{Arena, Block, Populate, Sealed, StoreFull, Usage, WeakSealed};
pub use assembly::{Assembly, Pin};
pub use bytes::{Bytes, Foreign, ForeignError, Heap, Misfit};
pub use region::{Lease, OutOfRange, Region};

/// A lease for a test that makes no other on the same bytes.
#[cfg(test)]
pub(crate) fn test_lease(region: &std::sync::Arc<Region>, range: std::ops::Range<usize>) -> Lease {
    // SAFETY: what the caller, a test, is told to see to.
    unsafe { Lease::new(region.clone(), range) }.expect("the range lies in the region")
}

//! Memory that other ranks can read: regions, leases on parts of them, the
//! arena that hands parts out, and the immutable objects that become of them.
//! Runs under plain heap memory too; what maps shared memory is in `sys`.

mod arena;
mod bytes;
mod copy;
mod extents;
mod region;
mod slab;

pub use arena::{Arena, Block, Populate, Sealed, StoreFull, Usage};
pub use bytes::{Bytes, Foreign, ForeignError, Heap, Misfit};
pub use region::{Lease, OutOfRange, Region};

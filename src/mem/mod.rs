//! Memory that other ranks can read: regions, and leases on parts of them.
//! Runs under plain heap memory too; what maps shared memory is in `sys`.

mod region;

pub use region::{Lease, OutOfRange, Region};

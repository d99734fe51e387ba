//! The primitives of this folder: the standard library's, or loom's under
//! `--cfg loom`, by the same names. Run the models with
//! `RUSTFLAGS="--cfg loom" cargo test --lib sync:: --release`.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(not(loom))]
pub use std::sync::{Arc, Mutex};
#[cfg(all(test, not(loom)))]
pub use std::{sync::Condvar, thread};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::{Arc, Mutex};
#[cfg(all(test, loom))]
pub use loom::{sync::Condvar, thread};

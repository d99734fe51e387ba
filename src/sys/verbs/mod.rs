//! RDMA verbs: `libibverbs`, loaded when it is first asked for, and safe types
//! over the few of its objects that a fabric needs.
//!
//! Who owns the memory that a network card may touch decides whether this is
//! sound, so each object holds what its work requests point to:
//!
//! - [`Memory`] is a registered part of a region. Peers may read it, or
//!   nobody; nothing else writes it than a [`QueuePair`] that holds a lease.
//! - [`Window`] is memory that a peer writes whenever it likes. No reference
//!   into it is ever made: bytes are copied out.
//! - [`ReceiveQueue`] owns its buffers. A [`Filled`] is the proof that the
//!   card has given one back, and offering the buffer again consumes it.
//! - [`QueuePair`] owns its send memory, and the leases that reads fill, until
//!   their completions have come or the pair is destroyed, after which the card
//!   touches nothing on its behalf.
//! - A [`Completion`] is made by [`CompletionQueue::poll`] alone, cannot be
//!   copied, and names the object that it belongs to by a number which is
//!   unique in the process.
//!
//! Policy is not here: when to send, how many reads to have under way and what
//! an error means is the fabric's business.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::verbs_bindings as ffi;

mod adapter;
mod completion;
mod memory;
mod pair;
mod receive;

pub use adapter::{Adapter, AsyncEvent, Gid, GidKind, Port, Transport, adapter_names};
pub use completion::{Completion, CompletionQueue};
pub use memory::{Memory, Window};
pub use pair::{Address, PairCounts, QueuePair, ReadId, Remote};
pub use receive::{ReceiveQueue, Filled};

/// The library's functions; loaded once and never unloaded, since its
/// providers leave threads and handlers behind.
fn library() -> Result<&'static ffi::Library, String> {
    static LIBRARY: OnceLock<Result<ffi::Library, String>> = OnceLock::new();
    // SAFETY: the constructors of libibverbs and of what it links set up their
    // own state only; the types of its functions are those of its header, which
    // the bindings were made from, at the versions that the loader picks by
    // default as a linker would.
    let loaded = LIBRARY.get_or_init(|| unsafe { ffi::Library::new("libibverbs.so.1") }.map_err(|e| e.to_string()));
    loaded.as_ref().map_err(|why| format!("libibverbs cannot be loaded: {why}"))
}

/// A number for an object whose work requests must not be taken for another's.
fn next_owner() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The identity of a work request: whose, and which.
fn work_id(owner: u32, number: u32) -> u64 {
    u64::from(owner) << 32 | u64::from(number)
}

/// For functions that return an error number.
fn check(status: i32) -> io::Result<()> {
    match status {
        0 => Ok(()),
        // Some of them return -1 and leave the number in errno.
        -1 => Err(io::Error::last_os_error()),
        error => Err(io::Error::from_raw_os_error(error.abs())),
    }
}

/// For functions that return a pointer, and NULL with an error in errno.
fn non_null<T>(pointer: *mut T) -> io::Result<std::ptr::NonNull<T>> {
    std::ptr::NonNull::new(pointer).ok_or_else(io::Error::last_os_error)
}

#[cfg(test)]
mod tests;

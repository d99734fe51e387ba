//! What the benches share.

use std::sync::Arc;

use collimate::mem::{Arena, Region};

/// An arena over `bytes` of memory, as a rank has one.
pub fn arena(bytes: usize) -> Arena {
    Arena::with_populate(Arc::new(Region::heap(bytes)), collimate::sys::populate_fresh)
}

//! Which objects of a rank its peers know, and who still reads them. Decides
//! only when memory may go; what moves bytes and messages is elsewhere.

mod index;

pub use index::{Index, ObjectId, ObjectInfo, Stats, StoreError};

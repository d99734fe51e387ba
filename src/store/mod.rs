//! Which objects of a rank its peers know, who still reads them, and from whom
//! a large one is read. Decides only; what moves bytes and messages is
//! elsewhere.

mod bulk;
mod chunks;
mod directory;
mod fetch;
mod flow;
mod index;

pub use bulk::{Action, Exchange, FetchError, Landed, Memory, Violation, Wanted};
pub use chunks::{ChunkSet, Chunking, NoSuchChunk};
pub use directory::{Directory, Plan};
pub use fetch::{ChunkRead, Fetch};
pub use flow::{Flow, Turn};
pub use index::{Index, ObjectId, ObjectInfo, Stats, StoreError};

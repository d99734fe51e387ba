//! Which objects of a rank its peers know, who still reads them, and from whom
//! a large one is read. Decides only; what moves bytes and messages is
//! elsewhere.

mod chunks;
mod directory;
mod exchange;
mod fetch;
mod flow;
mod index;

pub use chunks::{ChunkSet, Chunking, NoSuchChunk};
pub use directory::{Asker, Directory, Plan};
pub use exchange::{Action, Exchange, FetchError, Landed, Memory, NearCopy, Violation, Wanted};
pub use fetch::{ChunkRead, Fetch};
pub use flow::{Flow, Turn};
pub use index::{Index, ObjectId, ObjectInfo, Stats, StoreError};

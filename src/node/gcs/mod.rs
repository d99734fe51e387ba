//! The control store in a rank: its replicas, its member of the quorum and its
//! client, the time that they are told, their messages on the fabrics, and their
//! files.
//!
//! | File | What |
//! |---|---|
//! | `host` | one turn of the cores: what arrived, what is due, what goes out |
//! | `waiting` | operations of this rank under way, and who waits for them |
//! | `functions` | task tables, registered in the store and read from it |
//! | `setup` | who keeps what, the same on all ranks |
//! | `disk` | what is kept on disk, and what is found there at the start |

mod disk;
mod functions;
mod host;
mod setup;
mod waiting;

pub use disk::{DiskError, DiskOptions, Home, Layout, QuorumDisk, ReplicaDisk};
pub(super) use host::Gcs;
pub(super) use waiting::Operation;
pub(super) use setup::{Agreement, Setup};
pub use waiting::{ControlAnswer, ControlReply, ControlRequest, WatchId};

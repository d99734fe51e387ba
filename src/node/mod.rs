//! The only place where the pure cores meet the machine: owns all of a rank's
//! state, runs its workers and its service thread, and dispatches what arrives.
//!
//! | File | What |
//! |---|---|
//! | `rank` | what the threads of a rank share, and the paths between them |
//! | `worker` | the loop of a worker, waiting without blocking it |
//! | `service` | the network and the timers while workers are busy or asleep |
//! | `state`, `events` | connections, calls under way, lent objects; dispatch |
//! | `bulk` | objects on their way between arenas |
//! | `control`, `gcs` | the control store: its place in the node; its cores in this rank |
//! | `registry`, `transfer` | task functions; arguments and results in transit |
//! | `start` | from a mesh of connections to a running rank, and its end |

mod bulk;
mod control;
mod events;
mod fabrics;
mod gcs;
mod rank;
mod registry;
mod service;
mod start;
mod state;
mod transfer;
mod worker;

pub use fabrics::Survey;
pub use gcs::{ControlAnswer, ControlReply, ControlRequest, WatchId};
pub use gcs::{DiskError, DiskOptions, Home, Layout, QuorumDisk, ReplicaDisk};
pub use linkme;
pub use rank::{Ended, Node, Target};
pub use registry::{Registry, TASKS, TaskType, declare};
pub use start::{Running, StartError, default_store_bytes, start};
pub use transfer::{Incoming, Outgoing, Pack, Received, Reply};
pub use worker::{Resolved, Waitable};

pub use crate::gcs::{Blob, Event, Failure, Found, Key, Op, Query, Record, Refusal, Seq, ShardId, Table};
pub use crate::mem::{Bytes, Heap};
pub use crate::sched::{Choice, Demand, Place};
pub use crate::sys::say_line;
pub use crate::sync::{Call, Handle, Lineage, Share, Stored, Task, Wake, done, frame};

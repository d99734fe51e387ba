//! What users call; the only surface under SemVer.

mod array;
mod codec;
mod control;
mod control_store;
mod entry;
mod param;
pub mod raw;
mod reference;
mod spawn;

pub use array::{Array, Pod};
pub use collimate_macros::{main, task};
pub use control::{put, put_value, rank, size, wait, workers};
pub use control_store::{
    ControlChange, ControlChanges, ControlError, ControlRecord, ControlStore, Pending, Refusal, Table, Watch,
};
pub use entry::{Outcome, Runtime};
pub use reference::{Error, Ref};
pub use spawn::Options;

pub use crate::base::{ErrorKind, Hop};
pub use crate::node::Blob;

/// What the attributes expand to. No stable surface.
#[doc(hidden)]
pub mod __private {
    pub use super::codec::{Codec, Pick, Picked};
    pub use super::entry::main;
    pub use super::param::{IntoSlice, IntoText, IntoValue, Param, Slice, Text, Value};
    pub use super::reference::failure::{IntoFailure, Wrap};
    pub use super::spawn::{Extras, Fallible, Function, complete, project, receive, run, spawn};
    pub use crate::base::{ErrorKind, TaskError};
    pub use crate::node::{Call, Demand, Incoming, Outgoing, Received, Stored, TASKS, TaskType, Task, Waitable, linkme};
}

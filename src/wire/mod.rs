//! What ranks say to each other, as bytes. Messages of the per-task path are
//! fixed layouts ([`Spawn`], [`TaskResult`], [`Release`], [`StealRequest`],
//! [`Bulk`]); everything rarer is a [`Control`] message in FlatBuffers.
//!
//! A received message is verified once, by [`Message::parse`], and typed from
//! then on. The only folder that names FlatBuffers. Deliberately absent: who
//! sent a message and what is done about it, which is the node's business.

mod bulk;
mod control;
mod error;
mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[allow(
    missing_docs,
    unsafe_op_in_unsafe_fn,
    dead_code,
    unused_imports,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated"
)]
#[rustfmt::skip]
#[path = "generated/control.rs"]
mod generated;

pub use bulk::{Bulk, BulkBody, CopyId, write_bulk};
pub use control::{Control, ErrorReport, Goodbye, Hello, Shutdown};
pub use error::WireError;
pub use frame::{
    Argument, Arguments, Message, ObjectRecord, Outcome, Release, Spawn, SpawnBuilder, SpawnCall, StealRequest,
    TaskResult, begin_gcs, write_control, write_error, write_inline_result, write_object_result, write_release,
    write_steal_request,
};

/// The version of everything in this folder. Two ranks work together only if
/// theirs is the same; [`Hello`] carries it.
pub const SCHEMA_VERSION: u32 = 3;
